"""Options that published protocols ask for beside the methods, each against values by hand or from plain autograd."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import clbench
from clbench.cli.listing import LISTINGS
from clbench.config.registry import entry_point_names
from clbench.data.batches import Pipeline
from clbench.learning.memory import MEMORIES, argmax_herding, quotas
from clbench.reports.claims.avalanche_baselines import LwFOfBaselines, LwFOfOldOutputs
from clbench.reports.claims.rebuffi2017 import BiasesDoNotDecay, Finetuning, ICaRLAsReleased, LwFMCAsReleased
from clbench.reports.claims.vandeven2019 import ICaRLWithSoftTargets, LwFByShare
from clbench.reports.claims.vandeven2022 import JointByTasks, LwFByOldTasks, ReplayByTasks
from clbench.reports.claims.zenke2017 import SplitMNISTTestedOnTraining
from clbench.running.resolve import prepare, resolve, scenario_class, strategy_class
from clbench.strategies.er import ER
from clbench.strategies.joint import Joint
from clbench.strategies.lwf import LwF
from clbench.strategies.si import SI

FULL = {"head": "full", "loss_outputs": "all"}


@pytest.mark.parametrize("strategy", [ER, ReplayByTasks])
def test_er_weighs_the_current_batch_one_of_n_tasks(run, strategy):
    """van de Ven's weights: 1/N on the current batch, 1 - 1/N on the replayed one; ER itself has 1/2 for both."""
    seen: set[int] = set()

    class Watch(strategy):
        def loss(self, batch: Any) -> Any:
            terms = super().loss(batch)
            n = self.progress.task + 1
            replayed = self.replay(len(batch))
            if replayed is not None:
                seen.add(n)
                share = 1 / n if strategy is ReplayByTasks else 0.5
                current = F.cross_entropy(self.model(batch.images), batch.labels)
                past = F.cross_entropy(self.model(replayed.images), replayed.labels)
                assert float(terms["classification"].detach()) == pytest.approx(share * float(current), rel=1e-4)
                assert float(terms["replay"].detach()) == pytest.approx((1 - share) * float(past), rel=1e-4)
            return terms

    run(Watch, memory_per_class=4, memory_policy="random", **FULL)
    assert seen == {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("strategy", "strength", "of_ce", "of_kl"),
    [
        (LwF, 3.0, [1, 1, 1, 1], [3, 3, 3, 3]),
        (LwFByOldTasks, 3.0, [1, 1, 1, 1], [3, 6, 9, 12]),
        (LwFByShare, 3.0, [1 / 2, 1 / 3, 1 / 4, 1 / 5], [3 / 2, 2, 9 / 4, 12 / 5]),
        (LwFOfOldOutputs, 3.0, [1, 1, 1, 1], [3, 3, 3, 3]),
        # Avalanche's baseline: CE / n and alpha = 0.5, 1.333, 2.25, 3.2.
        (LwFOfBaselines, 1.0, [1 / 2, 1 / 3, 1 / 4, 1 / 5], [0.5, 4 / 3, 2.25, 3.2]),
    ],
)
def test_lwf_weighs_its_terms_as_published(run, strategy, strength, of_ce, of_kl):
    """The weights are written down by hand; the terms come from plain softmax, T = 2, over all outputs or the old."""
    seen: set[int] = set()

    class Watch(strategy):
        def loss(self, batch: Any) -> Any:
            terms = super().loss(batch)
            task = self.progress.task
            logits = self.model(batch.images).detach()
            ce = float(F.cross_entropy(logits, batch.labels))
            if self.teacher is None:
                assert float(terms["classification"].detach()) == pytest.approx(ce, rel=1e-4)
                return terms
            seen.add(task)
            width = 2 * task if issubclass(strategy, LwFOfOldOutputs) else 10
            p = (self.teacher(batch.images)[:, :width].double() / 2).softmax(1)
            q = (logits[:, :width].double() / 2).softmax(1)
            kl = float((p * (p / q).log()).sum(1).mean())
            assert float(terms["classification"].detach()) == pytest.approx(of_ce[task - 1] * ce, rel=1e-4)
            assert float(terms["distillation"].detach()) == pytest.approx(of_kl[task - 1] * kl, rel=1e-3, abs=1e-6)
            return terms

    run(Watch, strategy_options={"strength": strength}, **FULL)
    assert seen == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("strategy", "options", "fields", "words"),
    [
        (LwFOfOldOutputs, {}, {}, ("LwFOfOldOutputs", "head='full'")),
        (LwFOfOldOutputs, {"softmax": "per-task"}, FULL, ("LwFOfOldOutputs", "one softmax")),
        (JointByTasks, {}, {}, ("JointByTasks", "iterations")),
        (ICaRLWithSoftTargets, {"loss_form": "softmax"}, {"memory_size": 20}, ("loss_form=sigmoid", "temperature")),
        (ReplayByTasks, {"weighting": "size"}, {"memory_size": 20}, ("weighting", "share")),
    ],
)
def test_what_a_protocol_cannot_use_is_refused(run, refused, strategy, options, fields, words):
    with refused(*words):
        run(strategy, strategy_options=options, **fields)


def test_a_protocol_has_a_name_that_no_list_shows():
    """A claim finds it, in every process; a user who mistypes is led to a method, not to a protocol."""
    assert strategy_class("vandeven2022-er") is ReplayByTasks
    assert scenario_class("zenke2017-split-mnist") is SplitMNISTTestedOnTraining
    names = entry_point_names("clbench.protocols")
    assert names
    assert not set(names) & {*entry_point_names("clbench.strategies"), *entry_point_names("clbench.scenarios")}
    for kind in ("strategies", "scenarios"):
        assert {row["name"] for row in LISTINGS[kind]()} == set(entry_point_names(f"clbench.{kind}"))
    for find, mistyped in ((strategy_class, "vandeven2022-err"), (scenario_class, "zenke2017-split-mnistt")):
        with pytest.raises(clbench.ConfigError) as caught:
            find(mistyped)
        assert f"{mistyped[:-1]}'" not in str(caught.value)


def test_the_total_gradient_adds_what_the_penalty_pulls_to_sis_path(run):
    """The two path integrals differ by -sum of penalty gradient times step, the gradient 2 c Omega (w - w*) by hand."""
    differences: list[float] = []

    class Watch(SI):
        def _begin_path(self) -> None:
            super()._begin_path()
            self.pulled = {n: torch.zeros_like(p) for n, p in self.model.named_parameters()}
            self.data = {n: torch.zeros_like(p) for n, p in self.model.named_parameters()}

        def after_backward(self, batch: Any) -> None:
            super().after_backward(batch)
            self.own = {n: p.grad.clone() for n, p in self.model.named_parameters()}
            self.start_of_step = {n: p.detach().clone() for n, p in self.model.named_parameters()}

        def after_step(self, batch: Any) -> None:
            super().after_step(batch)
            for n, p in self.model.named_parameters():
                step = p.detach() - self.start_of_step[n]
                self.data[n] -= self.own[n] * step
                if self.importance:
                    pull = 2 * self.strength * self.importance[n] * (self.start_of_step[n] - self.anchor[n])
                    self.pulled[n] -= pull * step

        def end_task(self, task: Any) -> None:
            for n, value in self.path.items():
                torch.testing.assert_close(value, self.data[n] + self.pulled[n], rtol=1e-3, atol=1e-6)
            differences.append(max(float(v.abs().max()) for v in self.pulled.values()))
            super().end_task(task)

    run(Watch, strategy_options={"strength": 50.0, "gradient": "total"}, optimizer="adam", lr=0.01, **FULL)
    assert differences[0] == 0
    assert min(differences[1:]) > 1e-5


def test_joint_takes_the_iterations_once_for_each_task_so_far(run):
    counted = {
        strategy: [task["steps"] for task in run(strategy, iterations=3).record["tasks"]]
        for strategy in (Joint, JointByTasks)
    }
    assert counted == {Joint: [3, 3, 3, 3, 3], JointByTasks: [3, 6, 9, 12, 15]}


def test_new_outputs_begin_as_asked(run):
    """Zeros give each of two outputs probability 1/2, so the first loss is log 2; he draws N(0, 1/32), bias 0."""
    first: dict[str, Any] = {}

    class Watch(clbench.Strategy):
        traits = clbench.Traits(family="reference")

        def loss(self, batch: Any) -> Any:
            terms = super().loss(batch)
            key = self.config.model.head_init
            if key not in first:
                first[key] = (float(terms["classification"].detach()), copy.deepcopy(self.model.head))
            return terms

    for init in ("default", "zeros", "he"):
        run(Watch, head_init=init)
    assert first["zeros"][0] == pytest.approx(math.log(2), rel=1e-6)
    assert not first["zeros"][1].weight.any()
    assert not first["he"][1].bias.any()
    assert first["default"][1].bias.any()
    assert float(first["he"][1].weight.detach().std()) == pytest.approx(1 / math.sqrt(32), rel=0.3)


def test_evaluation_on_the_training_images_tests_what_was_trained(run, tiny, tmp_path):
    """The weights on disk, applied to the training images by plain torch, give the last row of the matrix."""
    result = run("naive", tiny.tested_on_training(), normalize="none", out=tmp_path / "r")
    state = torch.load(tmp_path / "r" / "model.pt", weights_only=True)
    weights = list(state.values())
    for task in tiny.tasks:
        x = task.train.images.float().flatten(1) / 255
        logits = F.relu(x @ weights[0].T + weights[1]) @ weights[2].T + weights[3]
        right = float((logits.argmax(1) == task.train.labels).double().mean())
        assert result.accuracy[-1, task.index] == pytest.approx(right)
    assert [task["n_test"] for task in result.record["scenario"]["tasks"]] == [20] * 5
    rules = [w["rule"] for w in result.record["warnings"]]
    assert rules == ["evaluated-on-training-data"]
    usual = run("naive")
    assert usual.record["warnings"] == []
    assert usual.recorded.identity != result.recorded.identity


def test_zenkes_split_mnist_tests_each_task_on_its_training_images():
    """The images that are tested are those that are trained on; the tasks are those of split-mnist."""

    class Small(SplitMNISTTestedOnTraining):
        dataset = "mnist-5k"

    config = resolve("split-mnist-5k", "naive", {"limit": 10})
    made = Small("small", config.scenario_options).build(config)
    _, usual = prepare(config)
    assert made.test is made.train
    assert [task.test.ids.tolist() for task in made.tasks] == [task.train.ids.tolist() for task in usual.tasks]
    assert [task.classes for task in made.tasks] == [task.classes for task in usual.tasks]


def test_icarls_old_targets_can_be_softened(run):
    """Targets of old outputs sigmoid(z / 2), as in van de Ven's code; sums over classes, by hand from the formula."""
    checked: list[int] = []

    class Watch(ICaRLWithSoftTargets):
        def loss(self, batch: Any) -> Any:
            terms = super().loss(batch)
            n, old = 2 * (self.progress.task + 1), 2 * self.progress.task
            g = torch.sigmoid(self.model(batch.images)[:, :n].detach().double())
            q = torch.zeros(len(batch), n, dtype=torch.float64)
            q[torch.arange(len(batch)), batch.labels] = 1
            if old:
                q[:, :old] = torch.sigmoid(self.teacher(batch.images)[:, :old].double() / 2)
            by_hand = -(q * g.log() + (1 - q) * (1 - g).log()).sum(1).mean()
            assert float(terms["bce"].detach()) == pytest.approx(float(by_hand), rel=1e-4)
            checked.append(n)
            return terms

    run(Watch, memory_size=30, head="full", strategy_options={"reduction": "sum"})
    assert set(checked) == {2, 4, 6, 8, 10}


def test_the_mean_image_is_taken_away_before_a_crop_adds_zeros(tiny):
    """x / 255 - mean over all training images, by numpy; an augmented image is one of its 81 crops, mirrored or not."""
    config = resolve("split-mnist-5k", "naive", {"normalize": "pixel-mean", "augment": "crop-flip", "epochs": 1})
    pipeline = Pipeline(tiny, config, torch.device("cpu"))
    ids = tiny.tasks[0].train.ids[:6]
    originals = tiny.train.images.numpy().astype("float64")
    wanted = torch.from_numpy(originals[ids.numpy()] / 255 - originals.mean(0) / 255).float()
    torch.testing.assert_close(pipeline.batch(ids, slice(0, 2), None).images, wanted, rtol=0, atol=1e-6)
    padded = F.pad(wanted, (4, 4, 4, 4))
    for image, big in zip(pipeline.batch(ids, slice(0, 2), ("x", 1)).images, padded, strict=True):
        crops = [big[:, y : y + 28, x : x + 28] for y in range(9) for x in range(9)]
        assert any(torch.allclose(image, c, atol=1e-6) or torch.allclose(image, c.flip(-1), atol=1e-6) for c in crops)


@pytest.mark.parametrize(
    ("base", "options", "still"),
    [
        (clbench.Strategy, {}, set()),
        (BiasesDoNotDecay, {}, {"bias"}),
        (clbench.Strategy, {"decay_norms": False}, {"bias", "gamma"}),
        (BiasesDoNotDecay, {"decay_norms": False}, {"bias", "gamma"}),
    ],
)
def test_weight_decay_reaches_what_it_is_asked_to(run, base, options, still):
    """Without a gradient a step of rate 0.1 and decay 0.5 multiplies by 0.95; iCaRL's decays weights and gammas."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}

    class Still(base):
        traits = clbench.Traits(family="reference")

        def loss(self, batch: Any) -> Any:
            if not before:
                before.update({n: p.detach().clone() for n, p in self.model.named_parameters()})
            return 0 * sum(p.sum() for p in self.model.parameters())

        def after_step(self, batch: Any) -> None:
            if not after:
                after.update({n: p.detach().clone() for n, p in self.model.named_parameters()})

    run(Still, model="mlp[widths=[8],batch_norm=true]", lr=0.1, weight_decay=0.5, **options)
    kinds = set()
    for name, value in before.items():
        kind = "bias" if name.endswith("bias") else "gamma" if value.dim() == 1 else "weight"
        kinds.add(kind)
        torch.testing.assert_close(after[name], value if kind in still else 0.95 * value)
    assert kinds == {"bias", "gamma", "weight"}


@pytest.mark.parametrize("strategy", [ICaRLAsReleased, Finetuning, LwFMCAsReleased])
def test_every_strategy_of_the_icarl_protocol_spares_the_biases(strategy):
    """A bias does not decay, a weight and the factor of a normalisation layer do."""
    one = torch.nn.Parameter(torch.ones(2))
    decays = {name: strategy().decays(name, one) for name in ("model.head.bias", "model.0.bias", "model.0.weight")}
    assert decays == {"model.head.bias": False, "model.0.bias": False, "model.0.weight": True}
    assert type(strategy()).decays is not clbench.Strategy.decays


def test_finetuning_has_the_loss_of_icarl_without_distillation(run):
    """The matrix is that of icarl[distillation=false], digit for digit, where nothing decays."""
    assert Finetuning().distillation is False
    ours, theirs = (run(s, memory_size=0, head="full") for s in (Finetuning, "icarl[distillation=false]"))
    assert ours.record["accuracy"] == theirs.record["accuracy"]


def test_a_total_is_rounded_as_asked():
    """2000 over 30 classes is 66.67: 67 each are 2010 (the authors' code), 66 each 1980, else 2000 in all."""
    assert quotas(30, 2000, rounding="ceil") == [67] * 30
    assert quotas(30, 2000, rounding="floor") == [66] * 30
    assert quotas(30, 2000) == [67] * 20 + [66] * 10
    assert quotas(4, 2000, rounding="ceil") == quotas(4, 2000, rounding="floor") == [500] * 4


def test_the_authors_walk_meets_rows_again_by_hand():
    """Rows (1,0), (0,2), (0,1), unit (1,0), (0,1), (0,1): mu = (1/3, 2/3).

    w = mu picks row 1 (tie with 2); w = (2/3, 1/3) picks row 0; w = (0, 1) picks row 1 again, w = mu: so row 2 is never
    met. A mean that is normalised again would give another walk.
    """
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    assert argmax_herding(rows, 3).tolist() == [1, 0]
    assert argmax_herding(rows, 1).tolist() == [1]
    assert argmax_herding(rows, 3, steps=1).tolist() == [1]


def test_a_memory_herded_by_the_authors_walk_keeps_what_it_has_met_and_shrinks_from_the_end():
    """The rows above and a row alone: 2 and 1 distinct exemplars; the counts say so."""
    memory = MEMORIES["herding-argmax"](size=6)
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    memory.update(torch.tensor([10, 11, 12]), torch.tensor([7, 7, 7]), torch.Generator(), rows)
    assert (memory.ids.tolist(), memory.counts()) == ([11, 10], {7: 2})
    for new in range(5):
        memory.update(torch.tensor([20 + new]), torch.tensor([new]), torch.Generator(), rows[:1])
    assert memory.counts() == {7: 1} | dict.fromkeys(range(5), 1)
    assert memory.ids.tolist() == [11, 20, 21, 22, 23, 24]


def test_permuted_images_may_stay_as_large_as_they_are(refused):
    """28 x 28 in Zenke's experiment, 32 x 32 (a padding of 2, the default) in van de Ven's."""
    for padding, size in ((0, 28), (1, 30), (None, 32)):
        _, scenario = prepare(resolve("permuted-mnist-5k", "naive", {"padding": padding, "tasks": 2}))
        assert scenario.image_shape == (1, size, size)
    for name in ("rotated-mnist-5k", "split-mnist-5k"):
        with refused("padding"):
            prepare(resolve(name, "naive", {"padding": 2}))


def test_bf16_runs_have_their_channels_last_and_repeat_to_the_bit(run):
    seen: list[bool] = []

    class Watch(clbench.Strategy):
        traits = clbench.Traits(family="reference")

        def loss(self, batch: Any) -> Any:
            weight = next(p for p in self.model.parameters() if p.dim() == 4 and p.shape[1] > 1)
            seen.append(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous())
            return super().loss(batch)

    options = {"model": "conv:4-4", "precision": "bf16"}
    first, second = (run(Watch, **options).accuracy for _ in range(2))
    assert seen
    assert all(seen)
    assert (first == second)[~torch.isnan(torch.from_numpy(first)).numpy()].all()


@pytest.mark.parametrize("gone", ["memory_rounding=ceil", "decay_biases=false", "evaluate_on=train"])
def test_what_one_protocol_needs_is_no_option_of_a_run(refused, gone):
    """The strategies and the scenario of the claims have it; neither a field nor brackets ask for it."""
    name, _, value = gone.partition("=")
    with refused(name):
        resolve("split-mnist-5k", f"icarl[{gone}]", {})
    with refused(name):
        resolve("split-mnist-5k", "icarl", {name: value})
    with refused(name):
        resolve(f"split-mnist-5k[{gone}]", "icarl", {})
