"""LwF.MC and PODNet: losses worked out by hand, and what both have in common with iCaRL."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from clbench.models.blocks import block_outputs
from clbench.strategies.icarl import ICaRL
from clbench.strategies.lwf_mc import LwFMC
from clbench.strategies.podnet import PODNet, hinge_nca, pooled, spatial_distillation

ADAM = {"optimizer": "adam", "lr": 0.01}
SIZES = {"5x2": [2] * 5, "4/3/3": [4, 3, 3], "10x1": [1] * 10}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bce(x, target):
    return -target * math.log(sigmoid(x)) - (1 - target) * math.log(1 - sigmoid(x))


# LwF.MC


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_lwf_mc_loss_by_hand(reduction):
    """Two samples, two old outputs and one new: old targets are the old network's sigmoids, the new one is one-hot."""
    logits, old = [[0.5, -1.0, 2.0], [1.5, 0.0, -0.5]], [[1.0, -2.0], [0.0, 0.3]]
    labels = [2, 2]
    strategy = LwFMC(reduction=reduction)
    tasks = [SimpleNamespace(outputs=slice(0, 2)), SimpleNamespace(outputs=slice(2, 3))]
    strategy._context = SimpleNamespace(
        scenario=SimpleNamespace(setting="class", tasks=tasks), progress=SimpleNamespace(task=1)
    )
    strategy.model, strategy.teacher = (lambda images: torch.tensor(logits)), lambda images: torch.tensor(old)
    batch = SimpleNamespace(images=None, labels=torch.tensor(labels), active=slice(0, 3), partners=None)
    terms = [bce(z[i], sigmoid(o[i])) for z, o in zip(logits, old, strict=True) for i in range(2)]
    terms += [bce(z[2], 1.0) for z in logits]
    wanted = sum(terms) / 2 / (3 if reduction == "mean" else 1)
    assert float(strategy.loss(batch)["bce"]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("model", ["mlp:16", "mlp:16[batch_norm=true]", "conv:4-4"])
def test_lwf_mc_is_icarl_without_a_memory(model, sizes, run, cut):
    """The paper's LwF.MC is iCaRL's training without exemplars, classified by the outputs: the same run to the bit."""
    options = {"scenario": cut(task_sizes=SIZES[sizes], limit=20), "model": model, "epochs": 2, **ADAM}
    ours = run(LwFMC, **options)
    theirs = run(ICaRL, memory_size=0, strategy_options={"classifier": "linear"}, **options)
    assert ours.record["accuracy"] == theirs.record["classifiers"]["linear"]
    assert [e["losses"] for e in ours.record["training"]] == [e["losses"] for e in theirs.record["training"]]


@pytest.mark.parametrize("setting", ["class", "task"])
def test_lwf_mc_learns_new_classes_under_a_full_head(setting, run, cut):
    """The old network has outputs for classes yet to come, too; what it says there is no target."""
    result = run(LwFMC, cut(setting=setting, limit=50), head="full", epochs=6, **ADAM)
    learnt = [result.record["accuracy"]["task_aware"][i][i] for i in range(5)]
    assert min(learnt) > 0.7


def test_lwf_mc_refuses_what_it_cannot_do(run, cut, refused):
    with refused("lwf-mc", "loss_outputs='new'"):
        run(LwFMC, loss_outputs="new")
    with refused("LwFMC", "domain-incremental", "class, task"):
        run(LwFMC, cut(setting="domain"))
    with refused("LwFMC", "memory"):
        run(LwFMC, memory_size=20)


# PODNet


def test_pod_by_hand():
    """Maps (1 2; 3 4) against (1 1; 1 1).

    Squares (1 4; 9 16): rows sum to 5 and 25, columns to 10 and 20, norm sqrt(1150); of the ones all four are 1/2. The
    distance of two unit vectors with dot product 30 / sqrt(1150) is sqrt(2 - 60 / sqrt(1150)) = 0.4803.
    """
    student, teacher = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.ones(1, 1, 2, 2)
    torch.testing.assert_close(pooled(student), torch.tensor([[5.0, 25.0, 10.0, 20.0]]) / math.sqrt(1150))
    wanted = math.sqrt(2 - 60 / math.sqrt(1150))
    assert float(spatial_distillation([student], [teacher])) == pytest.approx(wanted, rel=1e-5)
    # Equal maps in a second block are at distance 0; the mean is over blocks.
    both = spatial_distillation([student, teacher], [teacher, teacher])
    assert float(both) == pytest.approx(wanted / 2, rel=1e-5)
    # A second sample at distance 0 halves it, too; the sign of a map does not count.
    batch = spatial_distillation([torch.cat([student, -teacher])], [torch.cat([teacher, teacher])])
    assert float(batch) == pytest.approx(wanted / 2, rel=1e-5)


def test_pod_of_units_without_a_place():
    """(3, 4) as two maps of one pixel: squares 9 and 16, pooled twice, norm sqrt(2 (81 + 256))."""
    wanted = torch.tensor([[9.0, 16.0, 9.0, 16.0]]) / math.sqrt(674)
    torch.testing.assert_close(pooled(torch.tensor([[3.0, 4.0]])), wanted)


def test_pod_has_a_gradient_where_student_and_teacher_agree():
    """At the first step of a task the two are the same network, and a norm has no slope at 0."""
    maps = torch.rand(2, 3, 4, 4, requires_grad=True)
    spatial_distillation([maps], [maps.detach()]).backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_nca_by_hand():
    """eta = 2, margin = 0.6, similarities 0.9, 0.1, 0.3, the first class right: log(e^0.2 + e^0.6) - 2 * 0.3."""
    similarities = torch.tensor([[0.9, 0.1, 0.3]])
    loss = hinge_nca(similarities, torch.tensor([0]), torch.tensor(2.0), 0.6)
    assert float(loss) == pytest.approx(math.log(math.exp(0.2) + math.exp(0.6)) - 0.6, rel=1e-5)
    # Past the margin the hinge holds it at 0: log(e^-10 + e^-10) - 10 * (1 - 0.6) < 0.
    apart = torch.tensor([[1.0, -1.0, -1.0]])
    assert float(hinge_nca(apart, torch.tensor([0]), torch.tensor(10.0), 0.6)) == 0


def test_nca_of_a_single_class_is_zero_and_has_no_gradient():
    similarities = torch.rand(4, 1, requires_grad=True)
    eta = torch.tensor(3.0, requires_grad=True)
    loss = hinge_nca(similarities, torch.zeros(4, dtype=torch.int64), eta, 0.6)
    loss.backward()
    assert loss.item() == 0
    assert not similarities.grad.any()
    assert not eta.grad.any()


def test_similarities_weigh_proxies_by_their_softmax():
    """Cosines 1 and 0 to the proxies of class 0, 0.6 and 0.8 to those of class 1; lengths do not count."""
    strategy = PODNet()
    strategy.proxies = torch.tensor([[[2.0, 0.0], [0.0, 3.0]], [[0.6, 0.8], [4.0, 3.0]]])
    found = strategy._similarities(torch.tensor([[5.0, 0.0]]))
    first = math.e / (math.e + 1)
    second = (0.6 * math.exp(0.6) + 0.8 * math.exp(0.8)) / (math.exp(0.6) + math.exp(0.8))
    torch.testing.assert_close(found, torch.tensor([[first, second]]))


@pytest.mark.parametrize("model", ["mlp:16-12", "mlp:16-12[batch_norm=true]", "conv:4-4"])
def test_podnet_distils_all_blocks_but_the_last_and_the_features(model, run, cut):
    """Each term is recomputed from the old model's blocks; both grow with sqrt(seen classes / new classes)."""
    checked = []

    class Watched(PODNet):
        def begin_task(self, task):
            self.old = copy.deepcopy(self.model).eval().requires_grad_(False)
            super().begin_task(task)

        def loss(self, batch):
            terms = super().loss(batch)
            if self.progress.task and not self.progress.step % 4:
                flags = [m.training for m in self.model.modules()]
                now, was = block_outputs(copy.deepcopy(self.model), batch.images), block_outputs(self.old, batch.images)
                factor = math.sqrt([4 / 4, 7 / 3, 10 / 3][self.progress.task])
                flat = (1 - F.cosine_similarity(now[-1], was[-1])).mean()
                assert terms["flat"].item() == pytest.approx(factor * 0.5 * flat.item(), rel=1e-4, abs=1e-6)
                spatial = spatial_distillation(now[:1], was[:1])
                assert terms["spatial"].item() == pytest.approx(factor * 2.0 * spatial.item(), rel=1e-4, abs=1e-6)
                assert flags == [m.training for m in self.model.modules()]
                checked.append(flat.item())
            return terms

    weights = {"spatial": 2.0, "flat": 0.5}
    tasks = cut(task_sizes=[4, 3, 3])
    run(Watched, tasks, model=model, memory_size=20, epochs=2, strategy_options=weights, **ADAM)
    assert max(checked) > 0.01


@pytest.mark.parametrize("head", ["growing", "full"])
@pytest.mark.parametrize("sizes", SIZES)
def test_podnet_on_any_sizes_of_tasks(sizes, head, run, cut):
    """Every class has its proxies when its task begins, and every cell due is a number."""
    proxies = []

    class Watched(PODNet):
        def end_task(self, task):
            proxies.append(tuple(self.proxies.shape))

    tasks = cut(task_sizes=SIZES[sizes])
    result = run(Watched, tasks, head=head, model="mlp:16", memory_size=20, strategy_options={"proxies_per_class": 3})
    seen = [sum(SIZES[sizes][: i + 1]) for i in range(len(SIZES[sizes]))]
    assert proxies == [(n, 3, 16) for n in seen]
    rows = result.record["accuracy"]["class_incremental"]
    assert all(value is not None for i, row in enumerate(rows) for value in row[: i + 1])


def test_podnet_proxies_start_as_features_of_their_class(run, cut):
    """Each new proxy is the feature vector of a training image of its class, under the model as the task began."""

    class Watched(PODNet):
        def begin_task(self, task):
            super().begin_task(task)
            for output in range(task.outputs.start, task.outputs.stop):
                own = task.train.images[task.train.labels == output]
                with torch.no_grad():
                    features = copy.deepcopy(self.model).eval().features(self.normalize(own))
                distances = torch.cdist(self.proxies[output].detach(), features)
                assert distances.min(1).values.max() < 1e-4
                assert len(distances.min(1).indices.unique()) > 1

    run(Watched, cut(task_sizes=[4, 3, 3]), memory_size=20)


def test_podnet_refuses_what_it_cannot_do(run, cut, refused):
    with refused("podnet", "loss_outputs='new'"):
        run(PODNet, loss_outputs="new", memory_size=20)
    with refused("PODNet", "task-incremental"):
        run(PODNet, cut(setting="task"), memory_size=20)


@pytest.mark.slow
def test_podnet_on_5000_digits_keeps_what_naive_training_forgets(tmp_path):
    """200 exemplars: far above naive training (20 %), which its distillation and its classifier alone would not be."""
    import clbench

    result = clbench.run("split-mnist-5k", PODNet, setting="class", threads=1, out=tmp_path)
    assert result.record["metrics"]["average_accuracy"] > 0.7
