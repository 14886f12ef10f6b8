"""Methods against other people's codes: the same small network, first weights and batches, step by step.

`other_code.npz` is written by make_other_code.py, which names repositories and commits and calls their code.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import clbench
from clbench.reports.claims.avalanche_baselines import LwFOfBaselines
from clbench.scenarios import dataset_from_arrays, split
from clbench.strategies.agem import AGEM
from clbench.strategies.bic import BiC
from clbench.strategies.der import DER
from clbench.strategies.derpp import DERpp
from clbench.strategies.er import ER
from clbench.strategies.er_ace import ERACE
from clbench.strategies.ewc import EWC
from clbench.strategies.gem import GEM
from clbench.strategies.hat import HAT
from clbench.strategies.icarl import ICaRL
from clbench.strategies.lucir import LUCIR
from clbench.strategies.lwf import LwF
from clbench.strategies.lwf_mc import LwFMC
from clbench.strategies.mas import MAS
from clbench.strategies.mir import MIR
from clbench.strategies.naive import Naive
from clbench.strategies.packnet import PackNet
from clbench.strategies.podnet import spatial_distillation
from clbench.strategies.si import SI
from clbench.strategies.wa import WA

GIVEN = dict(np.load(Path(__file__).with_name("other_code.npz")))
SAMPLES, LABELS = GIVEN["samples"], GIVEN["labels"]
STEPS = 4
FULL = {"head": "full", "loss_outputs": "all"}
# As large as all batches before, so that a memory of everything is replayed as a whole.
DOUBLING = ((3, 3, 6, 12), (24,), (48,))


class GivenHead(clbench.models.Head):
    def grow(self, n_outputs, generator, init="default"):
        old = self.out_features
        super().grow(n_outputs, generator, init)
        with torch.no_grad():
            self.weight[old:] = torch.from_numpy(GIVEN["w3"][old:n_outputs])
            self.bias[old:] = torch.from_numpy(GIVEN["b3"][old:n_outputs])


class Precise(nn.Flatten):
    def forward(self, images):
        return super().forward(images.double())


class Given(clbench.models.Network):
    """12-8-8-outputs in float64, with the given weights."""

    def __init__(self, image_shape):
        first = nn.Sequential(Precise(), nn.Linear(12, 8), nn.ReLU())
        super().__init__([first, nn.Sequential(nn.Linear(8, 8), nn.ReLU())], 8)
        self.head = GivenHead(8)
        self.double()
        with torch.no_grad():
            for name, parameter in zip(("w1", "b1", "w2", "b2"), self.backbone.parameters(), strict=True):
                parameter.copy_(torch.from_numpy(GIVEN[name]))


def ours(strategy, out, *, batches=None, samples=slice(None), setting="class", **options):
    """Train and return the losses of all steps, penalties included, the weights after each task, and the strategy.

    All steps are on the whole task, or on `batches`, sizes in the order of the samples.
    """
    told = SimpleNamespace(losses=[], weights=[], memories=[], importances=[])

    class Watched(strategy):
        def stages(self, task):
            stages = super().stages(task)
            if batches is None:
                return stages
            parts = task.train.ids.argsort().split(batches[task.index])
            return [replace(stages[0], data=task.train.subset(part), name=str(i)) for i, part in enumerate(parts)]

        def loss(self, batch):
            terms = super().loss(batch)
            told.losses.append(sum(float(term.detach()) for term in terms.values()))
            return terms

        def penalty(self):
            penalty = super().penalty()
            told.losses[-1] += 0.0 if penalty is None else float(penalty.detach())
            return penalty

        def end_task(self, task):
            super().end_task(task)
            told.strategy = self
            told.weights += [p.detach().numpy().reshape(-1).copy() for p in self.model.parameters()]
            told.memories.append(None if self.memory is None else self.memory.ids.clone())
            told.importances.append(flat(getattr(self, "importance", {})))

    data = dataset_from_arrays(SAMPLES[samples], LABELS[samples], 255 - SAMPLES[:6], np.arange(6))
    options = {"epochs": STEPS if batches is None else 1, "batch_size": 10**4, "lr": 0.2} | options
    fixed = {"optimizer": "sgd", "normalize": "none", "threads": 1, "out": out}
    clbench.run(split(data, tasks=3, setting=setting), Watched, model=Given, **fixed, **options)
    told.weights = np.concatenate(told.weights)
    return told


def agree(told, name, scale=1.0, atol=1e-12, of_losses=None):
    """Losses, where they are given, and weights equal those of the other code."""
    if f"{name}_losses" in GIVEN:
        found = np.array(told.losses) * scale
        np.testing.assert_allclose(found, GIVEN[f"{name}_losses"], rtol=0, atol=of_losses or atol)
    weights = GIVEN[f"{name}_weights"]
    np.testing.assert_allclose(told.weights[-len(weights) :], weights, rtol=0, atol=atol)


def flat(tensors):
    return np.concatenate([np.empty(0), *(tensor.numpy().reshape(-1) for tensor in tensors.values())])


def test_naive(tmp_path):
    agree(ours(Naive, tmp_path, **FULL), "avalanche_naive")


def test_lwf(tmp_path):
    agree(ours(LwF, tmp_path, strategy_options={"strength": 1.5, "temperature": 2.0}), "avalanche_lwf")


def test_lwf_of_avalanches_baselines(tmp_path):
    """The claim's protocol: cross-entropy by N, and weights of the distillation that grow with the tasks."""
    agree(ours(LwFOfBaselines, tmp_path, **FULL), "baselines_lwf")


@pytest.mark.parametrize(("name", "labels"), [("ewc", "empirical"), ("ewc_exact", "exact")])
def test_ewc_of_van_de_ven(tmp_path, name, labels):
    """They divide the sum over n samples by n - 1, so that their Fisher information is n / (n - 1) times ours."""
    options = {"strength": 3.0 * 24 / 23, "fisher_labels": labels}
    told = ours(EWC, tmp_path, strategy_options=options, **FULL)
    agree(told, f"vandeven_{name}")
    np.testing.assert_allclose(
        told.importances[0] * 24 / 23, GIVEN[f"vandeven_{name}_importance"], rtol=1e-9, atol=1e-15
    )


def test_online_ewc_of_van_de_ven(tmp_path):
    """They decay the sum once more when they take the penalty of it, so that ours has gamma times their strength."""
    options = {"mode": "online", "decay": 0.6, "strength": 3.0 * 0.6 * 24 / 23}
    told = ours(EWC, tmp_path, strategy_options=options, **FULL)
    agree(told, "vandeven_online_ewc")
    found = told.importances[1] * 24 / 23
    np.testing.assert_allclose(found, GIVEN["vandeven_online_ewc_importance"], rtol=1e-9, atol=1e-15)


def test_ewc_of_avalanche(tmp_path):
    """Its penalty has no factor 1/2 and is summed in float32; its importance is of one sample in each batch."""
    told = ours(EWC, tmp_path, strategy_options={"strength": 2 * 3.0}, **FULL)
    agree(told, "avalanche_ewc_single", of_losses=1e-7)
    np.testing.assert_allclose(told.importances[0], GIVEN["avalanche_ewc_single_fisher"], rtol=1e-9, atol=1e-15)


def test_avalanche_squares_the_mean_gradient_of_a_batch(tmp_path):
    """Its importance of all 24 samples in one batch is the squared gradient of their mean loss, and ours is more."""
    told = ours(EWC, tmp_path, strategy_options={"strength": 0.0}, **FULL)
    model = Given((3, 2, 2))
    model.head.grow(6, torch.Generator())
    torch.nn.utils.vector_to_parameters(torch.from_numpy(told.weights[:230]), model.parameters())
    images = torch.from_numpy(SAMPLES[:24]).float() * torch.tensor(1 / 255)
    nn.functional.cross_entropy(model(images), torch.from_numpy(LABELS[:24])).backward()
    squares = np.concatenate([p.grad.numpy().reshape(-1) ** 2 for p in model.parameters()])
    np.testing.assert_allclose(GIVEN["avalanche_ewc_fisher"], squares, rtol=1e-9, atol=1e-15)
    assert told.importances[0].sum() > 1.3 * squares.sum()


def test_si(tmp_path):
    options = {"strength": 0.8, "xi": 0.1, "gradient": "total", "relu": False}
    told = ours(SI, tmp_path, strategy_options=options, **FULL)
    agree(told, "vandeven_si")
    np.testing.assert_allclose(told.importances[1], GIVEN["vandeven_si_importance"], rtol=1e-9, atol=1e-12)


def test_mas_of_its_authors(tmp_path):
    """Their importance is ours where a batch of that pass has one sample; of more they take the sum's gradient."""
    told = ours(MAS, tmp_path, strategy_options={"strength": 0.01}, **FULL)
    agree(told, "authors_mas")
    np.testing.assert_allclose(told.importances[2], GIVEN["authors_mas_omega"], rtol=1e-9, atol=1e-12)


def test_mas_of_avalanche(tmp_path):
    """It keeps alpha old + (1 - alpha) new in the place of the authors' sum, so a third task differs."""
    told = ours(MAS, tmp_path, strategy_options={"strength": 0.02}, **FULL)
    theirs = GIVEN["avalanche_mas_weights"]
    np.testing.assert_allclose(told.weights[:460], theirs[:460], rtol=0, atol=1e-12)
    assert np.abs(told.weights[460:] - theirs[460:]).max() > 1e-3


@pytest.mark.parametrize("name", ["avalanche_agem", "mammoth_agem"])
def test_agem(tmp_path, name):
    """The reference gradient is that of the whole memory, so that nobody's draw decides."""
    told = ours(AGEM, tmp_path, memory_size=96, strategy_options={"reference_size": 48}, **FULL)
    agree(told, name)
    assert np.abs(told.weights - GIVEN["avalanche_naive_weights"]).max() > 1e-3


def test_gem(tmp_path):
    """The authors add 0.001 to the diagonal of their quadratic program; ours is the program of the paper."""
    told = ours(GEM, tmp_path, samples=slice(72), memory_size=96, strategy_options={"margin": 0.5}, **FULL)
    agree(told, "authors_gem_exact")
    ridge = np.abs(told.weights - GIVEN["authors_gem_weights"]).max()
    assert 1e-6 < ridge < 1e-2


def test_er(tmp_path):
    agree(ours(ER, tmp_path, batches=DOUBLING, memory_size=96, **FULL), "mammoth_er")


@pytest.mark.parametrize(
    ("strategy", "options"), [(DER, {"alpha": 0.7}), (DERpp, {"alpha": 0.7, "beta": 0.4})], ids=["der", "derpp"]
)
def test_der_of_its_authors(tmp_path, strategy, options):
    """Both keep logits in float32."""
    told = ours(strategy, tmp_path, batches=DOUBLING, memory_size=96, strategy_options=options, **FULL)
    name = f"mammoth_{strategy.__name__.lower()}"
    agree(told, name, atol=1e-8, of_losses=1e-7)
    order = told.strategy.ids.argsort()
    np.testing.assert_allclose(told.strategy.logits[order].numpy(), GIVEN[f"{name}_logits"], rtol=0, atol=2e-7)


def test_er_ace(tmp_path):
    """Avalanche takes half the sum of the two losses, and its steps are twice as long here."""
    told = ours(ERACE, tmp_path, batches=DOUBLING, memory_size=96, **FULL)
    agree(told, "avalanche_er_ace", scale=np.array([1.0, *[0.5] * 5]))


def test_mir(tmp_path):
    """Avalanche adds the losses of the batch and of what is replayed, and ours is their mean, as of one batch."""
    told = ours(MIR, tmp_path, batches=((24,), (6,) * 4, (6,) * 8), memory_size=96,
                strategy_options={"candidates": 96}, **FULL)  # fmt: skip
    agree(told, "avalanche_mir", scale=np.array([1.0, *[2.0] * 12]))


def test_lwf_mc(tmp_path):
    agree(ours(LwFMC, tmp_path, head="full"), "mammoth_lwf_mc")


def test_icarl(tmp_path):
    """Losses, weights, and the exemplars in their order after each task: 12, 6 and 4 of each class."""
    told = ours(ICaRL, tmp_path, memory_size=24, **FULL)
    agree(told, "mammoth_icarl")
    kept = SAMPLES.reshape(-1, 12)[torch.cat(told.memories)]
    np.testing.assert_array_equal(kept, GIVEN["mammoth_icarl_memories"])


def test_icarl_with_softmax_of_pycil(tmp_path):
    """Weights, exemplars, and the class means of the last task, which ours keeps in float32."""
    told = ours(ICaRL, tmp_path, memory_size=24, strategy_options={"loss_form": "softmax"})
    agree(told, "pycil_icarl")
    kept = SAMPLES.reshape(-1, 12)[torch.cat(told.memories)]
    np.testing.assert_array_equal(kept, GIVEN["pycil_icarl_memories"])
    np.testing.assert_allclose(told.strategy.means.reshape(-1), GIVEN["pycil_icarl_means"], rtol=0, atol=1e-7)


def test_wa(tmp_path):
    """PyCIL leaves out the paper's clipping of the head's weights."""
    agree(ours(WA, tmp_path, memory_size=24, strategy_options={"clip_weights": False}), "pycil_wa")


def test_the_first_stage_of_bic(tmp_path):
    """There is no second stage without exemplars. PyCIL takes the softmax twice there, and FACIL adds 0.05 beta^2."""
    agree(ours(BiC, tmp_path, memory_size=0), "pycil_bic")


def test_the_spatial_distillation_of_podnet():
    """PyCIL's NCA is another: it takes the margin from all classes, where it cancels, and adds 1 to the denominator."""
    student, teacher = (list(torch.from_numpy(GIVEN[f"maps_{name}"])) for name in ("student", "teacher"))
    np.testing.assert_allclose(spatial_distillation(student, teacher), GIVEN["pycil_pod_spatial"], rtol=1e-12)


def test_lucir(tmp_path):
    """The ranking is summed over the k new classes, as in the paper; Mammoth's is their mean, at twice the weight here.

    Its factor of the less-forget term lags by a task, sqrt(t - 1), and is set to the paper's sqrt(old / new) there.
    """
    told = []

    class Watched(LUCIR):
        def begin_run(self):
            super().begin_run()
            self.scale.data = self.scale.double()

        def end_task(self, task):
            super().end_task(task)
            kept = [*self.model.backbone.parameters(), self.model.head.weight, self.scale]
            told.append(flat({str(i): weight.detach() for i, weight in enumerate(kept)}))

    options = {"less_forget": 1.5, "margin": 0.5, "top_k": 2, "initial_scale": 1.0}
    found = ours(Watched, tmp_path, memory_size=96, strategy_options=options)
    found.weights = np.concatenate(told)
    agree(found, "mammoth_lucir", atol=1e-10)


def test_hat_of_its_authors(tmp_path):
    """In batch b of B, s is (b - 1) / B of its way from 1 / smax to smax; in the paper and ours (b - 1) / (B - 1)."""
    told = []

    class Theirs(HAT):
        def begin_task(self, task):
            super().begin_task(task)
            given = (torch.from_numpy(GIVEN[name][task.index]) for name in ("e1", "e2"))
            self.embedding = nn.ParameterDict({name: e.clone() for name, e in zip(self.embedding, given, strict=True)})

        def _scale(self):
            share = int(self.progress.stage) / (8 if self.progress.task == 2 else 4)
            return 1 / self.smax + (self.smax - 1 / self.smax) * share

        def end_task(self, task):
            super().end_task(task)
            head = self.model.head
            own = [head.weight[task.outputs], head.bias[task.outputs]]
            told.extend(
                flat({str(i): w.detach() for i, w in enumerate([*self.model.backbone.parameters(), *own, *self.used])})
            )

    ours(Theirs, tmp_path, setting="task", batches=((6,) * 4, (6,) * 4, (6,) * 8), strategy_options={"smax": 40.0})
    np.testing.assert_allclose(told, GIVEN["authors_hat_weights"], rtol=0, atol=1e-12)


def test_packnet_of_its_authors(tmp_path):
    """Weights, and the task that each weight belongs to; six steps a task, the last two after pruning.

    They prune every weight that equals the largest pruned one, and ours as many as are asked for: so zeros, which a
    dead unit has, may go to a task.
    """
    weights, owners, zero = [], [], []

    class Watched(PackNet):
        def end_task(self, task):
            super().end_task(task)
            head = self.model.head
            own = [*self.model.backbone.parameters(), head.weight[task.outputs], head.bias[task.outputs]]
            weights.append(flat({str(i): weight.detach() for i, weight in enumerate(own)}))
            owners.append(flat({name: owner + 1 for name, owner in self.owner.items()}))
            zero.append(flat({name: weight.detach() == 0 for name, weight in self._weights().items()}))

    ours(Watched, tmp_path, setting="task", epochs=6, strategy_options={"prune": 0.5, "retrain": 1 / 3})
    np.testing.assert_allclose(np.concatenate(weights), GIVEN["authors_packnet_weights"], rtol=0, atol=1e-12)
    differ = np.concatenate(owners) != GIVEN["authors_packnet_owners"]
    assert not GIVEN["authors_packnet_owners"][differ].any()
    assert np.concatenate(zero)[differ].all()
    assert differ.sum() < 0.03 * len(differ)
