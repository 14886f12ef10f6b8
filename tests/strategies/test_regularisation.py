"""SI, MAS, RWalk and L2: values by hand, and brute-force references over recorded steps."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clbench
from clbench.config.errors import ConfigError
from clbench.data.scenario import Images, ImageSet
from clbench.learning.importance import mas_importance
from clbench.scenarios import dataset_from_arrays, split
from clbench.strategies.l2 import L2
from clbench.strategies.mas import MAS
from clbench.strategies.naive import Naive
from clbench.strategies.rwalk import RWalk
from clbench.strategies.si import SI

ALL = [SI, MAS, RWalk, L2]
BATCH_NORM = "mlp[widths=[12],batch_norm=true]"


def scenario(sizes, setting="task", per_class=12):
    """Noisy copies of one random 6 x 6 picture for each class."""
    rng = np.random.default_rng(0)
    n_classes = sum(sizes)
    pictures = rng.integers(0, 256, (n_classes, 6, 6))

    def draw(n):
        y = np.repeat(np.arange(n_classes), n)
        return np.clip(pictures[y] + rng.normal(0, 60, (len(y), 6, 6)), 0, 255).astype(np.uint8), y

    return split(dataset_from_arrays(*draw(per_class), *draw(5)), task_sizes=sizes, setting=setting)


def run(strategy, tasks, out, **options):
    options = {"model": "mlp:12", "epochs": 2, "batch_size": 8, "optimizer": "adam", "lr": 0.01} | options
    return clbench.run(tasks, strategy, out=out, threads=1, memory_size=options.pop("memory_size", None), **options)


def recorded(strategy):
    """A subclass that notes, at each step: weights before and after it, and the loss's gradient by plain autograd."""

    class Recorded(strategy):
        def loss(self, batch):
            twin = copy.deepcopy(self.model)
            start = batch.active.start
            data_loss = F.cross_entropy(twin(batch.images)[:, batch.active], batch.labels - start)
            gradient = torch.autograd.grad(data_loss, list(twin.parameters()), allow_unused=True)
            self._step = (
                self.progress.task,
                [p.detach().clone() for p in self.model.parameters()],
                [torch.zeros_like(p) if g is None else g for p, g in zip(twin.parameters(), gradient, strict=True)],
            )
            return super().loss(batch)

        def penalty(self):
            self._penalty = super().penalty()
            return self._penalty

        def after_step(self, batch):
            super().after_step(batch)
            task, before, gradient = self._step
            pulled = None if self._penalty is None else float(self._penalty.detach())
            after = [p.detach().clone() for p in self.model.parameters()]
            kept = [g.clone() for g in self.gradients.values()]
            self.records.append(SimpleNamespace(task=task, before=before, gradient=gradient, after=after, kept=kept,
                                              penalty=pulled))  # fmt: skip
            self._step = self._penalty = None

        def end_task(self, task):
            path = {name: value.clone() for name, value in getattr(self, "path", {}).items()}
            super().end_task(task)
            self.ends.append(SimpleNamespace(path=path, importance=copy.deepcopy(self.importance),
                                             names=[n for n, _ in self.model.named_parameters()]))  # fmt: skip

    Recorded.records, Recorded.ends = [], []
    return Recorded


# Synaptic intelligence


@pytest.mark.parametrize("optimizer", [{"lr": 0.02}, {"lr": 0.002, "momentum": 0.9}, {"optimizer": "adam", "lr": 5e-4}])
def test_path_integral_is_the_drop_of_the_loss(optimizer, tmp_path):
    """The line integral of a gradient is the difference of the loss at its ends, whatever path an optimizer takes."""
    found = {}

    class Watched(SI):
        def stages(self, task):
            found["before"] = self.data_loss(task)
            return super().stages(task)

        def end_task(self, task):
            found["drop"] = found["before"] - self.data_loss(task)
            found["integral"] = float(sum(omega.sum() for omega in self.path.values()))
            super().end_task(task)

        def data_loss(self, task):
            images = torch.tensor(np.asarray(task.train.images)) / 255
            with torch.no_grad():
                return float(F.cross_entropy(self.model(images), task.train.labels))

    options = {"optimizer": "sgd", "epochs": 60, "batch_size": 10**6, "normalize": "none"} | optimizer
    run(Watched, scenario([3]), tmp_path, **options)
    assert found["drop"] > 0.1
    assert found["integral"] == pytest.approx(found["drop"], rel=0.1)


@pytest.mark.parametrize("strategy", [SI, RWalk])
@pytest.mark.parametrize("strength", [1.0, 300.0])
def test_the_gradient_is_that_of_the_data_loss_alone(strategy, strength, tmp_path):
    """At every step of the later tasks, the penalty being above 0, it equals autograd of the cross-entropy."""
    watched = recorded(strategy)
    options = {"strength": strength} | ({"xi": 1e-3} if strategy is SI else {})
    run(watched, scenario([2, 2, 2]), tmp_path, strategy_options=options)
    away = [step for step in watched.records if step.task > 0 and step.penalty > 1e-6]
    assert len(away) >= 10
    for step in away:
        for kept, expected in zip(step.kept, step.gradient, strict=True):
            torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("relu", [True, False])
def test_si_against_recorded_steps(relu, tmp_path):
    """omega and Omega in float64 from the recorded weights and gradients, Adam with a strong penalty."""
    watched = recorded(SI)
    options = {"strength": 100.0, "xi": 0.01, "relu": relu}
    run(watched, scenario([2, 3, 2]), tmp_path, lr=0.1, strategy_options=options)
    total = None
    for task, end in enumerate(watched.ends):
        steps = [step for step in watched.records if step.task == task]
        for i, name in enumerate(end.names):
            before = [s.before[i].double().numpy() for s in steps]
            after = [s.after[i].double().numpy() for s in steps]
            gradient = [s.gradient[i].double().numpy() for s in steps]
            omega = -sum(g * (b - a) for g, a, b in zip(gradient, before, after, strict=True))
            np.testing.assert_allclose(end.path[name].numpy(), omega, rtol=1e-3, atol=1e-6)
            expected = omega / ((after[-1] - before[0]) ** 2 + 0.01)
            if task:
                old = total[name]
                expected[: len(old)] += old
            expected = np.maximum(expected, 0) if relu else expected
            np.testing.assert_allclose(end.importance[name].numpy(), expected, rtol=1e-3, atol=1e-4)
        total = {name: value.double().numpy() for name, value in end.importance.items()}
    assert any((value < 0).any() for value in total.values()) != relu


def test_si_by_hand():
    """w goes from 1 to 3: 9 / (2^2 + .5) = 2. At w = 4 the penalty is 10 * 2 * (4 - 3)^2 = 20, its gradient 40.

    A second task goes back from 4 to 3 against a rise of 7.5: -7.5 / (1 + .5) = -5, 2 - 5 = -3, which relu makes 0.
    """
    nothing = torch.zeros(1, dtype=torch.int64)
    data = ImageSet(Images(nothing, nothing, nothing, nothing), nothing)
    for relu, last in ((True, 0.0), (False, -3.0)):
        strategy = SI(strength=10.0, xi=0.5, relu=relu)
        strategy.model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0]))})
        weight = strategy.model["w"]
        strategy.begin_run()
        for task, start, end, omega in ((0, 1.0, 3.0, 9.0), (1, 4.0, 3.0, -7.5)):
            weight.data.fill_(start)
            view = SimpleNamespace(index=task, train=data)
            strategy.stages(view)[0].before()
            if task == 1:
                penalty = strategy.penalty()
                penalty.backward()
                assert penalty.item() == 20
                assert weight.grad.tolist() == [40.0]
            strategy.path["w"] += omega
            weight.data.fill_(end)
            strategy.end_task(view)
        assert strategy.importance["w"].tolist() == [last]


# Memory aware synapses


def test_mas_importance_of_a_linear_model_by_hand():
    """f = W x with W = [[1, 0], [0, 2]] and b = 0. d||f||^2 / dW_ij = 2 f_i x_j and / db_i = 2 f_i.

    x = (1, 2): f = (1, 4), so 2 f x^T = [[2, 4], [8, 16]]; x = (-3, 1): f = (-3, 2), so [[18, -6], [-12, 4]].
    Means of the absolute values: [[10, 5], [10, 10]] and, for b, (|2| + |-6|, |8| + |4|) / 2 = (4, 6).
    """
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        model.bias.zero_()
    images = torch.tensor([[1.0, 2.0], [-3.0, 1.0]])
    found = mas_importance(model, [images])
    assert found["weight"].tolist() == [[10.0, 5.0], [10.0, 10.0]]
    assert found["bias"].tolist() == [4.0, 6.0]
    second = mas_importance(model, images.split(1), active=slice(1, 2))
    assert second["weight"].tolist() == [[0.0, 0.0], [10.0, 10.0]]
    assert second["bias"].tolist() == [0.0, 6.0]
    with pytest.raises(ConfigError, match="no samples"):
        mas_importance(model, [])


def test_mas_importance_of_a_batch_norm_model_is_that_of_one_sample_at_a_time():
    """Against ordinary backward passes in eval mode; nothing of the model changes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
    model(torch.randn(20, 5))
    state, images = copy.deepcopy(model.state_dict()), torch.randn(23, 5)
    single = copy.deepcopy(model).eval()
    expected = {name: torch.zeros_like(p) for name, p in single.named_parameters()}
    for image in images:
        single.zero_grad()
        single(image[None]).square().sum().backward()
        for name, p in single.named_parameters():
            expected[name] += p.grad.abs() / len(images)
    for size in (4, 23):
        found = mas_importance(model, images.split(10), chunk_size=size)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
    assert model.training
    assert model[1].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_mas_adds_up_the_importance_of_the_tasks_outputs(tmp_path):
    """The head's bias by hand: d||f||^2 / db_i = 2 f_i, so Omega_i is the mean of |2 f_i| over the task of output i.

    In task-incremental learning a row gets nothing from a task that it does not belong to.
    """
    found = []

    class Watched(MAS):
        def end_task(self, task):
            images = torch.tensor(np.asarray(task.train.images)) / 255
            self.model.eval()
            with torch.no_grad():
                found.append((2 * self.model(images)[:, task.outputs]).abs().mean(0))
            super().end_task(task)
            self.kept.append(self.importance["head.bias"].clone())

    Watched.kept = []
    run(Watched, scenario([2, 3]), tmp_path, normalize="none", model=BATCH_NORM)
    torch.testing.assert_close(Watched.kept[0], found[0])
    torch.testing.assert_close(Watched.kept[1], torch.cat(found))


# Riemannian walk


@pytest.mark.parametrize("alpha", [0.9, 0.25])
def test_rwalk_against_recorded_steps(alpha, tmp_path):
    """Eq. 6-8 in float64, step by step over recorded weights and gradients; intervals of 4 steps, the last shorter."""
    watched = recorded(RWalk)
    options = {"strength": 5.0, "interval": 4, "alpha": alpha, "epsilon": 1e-4}
    run(watched, scenario([2, 3, 2]), tmp_path, strategy_options=options)
    fisher, score = {}, {}
    for task, end in enumerate(watched.ends):
        steps = [step for step in watched.records if step.task == task]
        assert len(steps) % 4
        gained = {}
        for i, name in enumerate(end.names):
            gained[name] = np.zeros(steps[0].before[i].shape)
            for k in range(0, len(steps), 4):
                part = steps[k : k + 4]
                drop, squares = 0.0, []
                for s in part:
                    g = s.gradient[i].double().numpy()
                    drop = drop - g * (s.after[i].double().numpy() - s.before[i].double().numpy())
                    squares.append(g**2)
                now = np.mean(squares, axis=0)
                fisher[name] = extended(fisher[name], now) if name in fisher else now
                moved = part[-1].after[i].double().numpy() - part[0].before[i].double().numpy()
                gained[name] += np.maximum(0, drop / (0.5 * fisher[name] * moved**2 + 1e-4))
                fisher[name] = alpha * now + (1 - alpha) * fisher[name]
            if task:
                score[name] = 0.5 * (extended(score[name], gained[name]) + gained[name])
            else:
                score[name] = gained[name]
        for name in end.names:
            expected = fisher[name] / max(v.max() for v in fisher.values())
            expected = expected + score[name] / max(v.max() for v in score.values())
            np.testing.assert_allclose(end.importance[name].numpy(), expected, rtol=2e-3, atol=1e-5)


def extended(value, like):
    """Zeros for the rows that a parameter has gained."""
    return np.pad(value, [(0, len(like) - len(value))] + [(0, 0)] * (value.ndim - 1))


# L2


def test_l2_by_hand():
    """3 / 2 ((2 - 1)^2 + (4 - 2)^2) = 7.5, with gradients 3 (2 - 1) and 3 (4 - 2); a row that came later is free."""
    strategy = L2(strength=3.0)
    strategy.model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, 2.0]))})
    strategy.begin_run()
    assert strategy.penalty() is None
    strategy.end_task(SimpleNamespace(index=0))
    strategy.model["w"] = nn.Parameter(torch.tensor([2.0, 4.0, 9.0]))
    penalty = strategy.penalty()
    penalty.backward()
    assert penalty.item() == 7.5
    assert strategy.model["w"].grad.tolist() == [3.0, 6.0, 0.0]


# All of them


def weights_of(folder):
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.mark.parametrize("memory", [None, 8])
@pytest.mark.parametrize("strategy", ALL)
def test_neutral_at_strength_zero(strategy, memory, tmp_path):
    """The naive run bit for bit, with and without a memory; a large strength changes it."""
    tasks = scenario([2, 2, 2], "class")
    naive = run(Naive, tasks, tmp_path / "naive", model=BATCH_NORM, memory_size=memory)
    result = run(
        strategy, tasks, tmp_path / "zero", model=BATCH_NORM, memory_size=memory, strategy_options={"strength": 0.0}
    )
    np.testing.assert_array_equal(result.accuracy, naive.accuracy)
    expected, found = weights_of(tmp_path / "naive"), weights_of(tmp_path / "zero")
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    run(strategy, tasks, tmp_path / "large", model=BATCH_NORM, memory_size=memory, strategy_options={"strength": 1e3})
    assert any(not torch.equal(value, expected[name]) for name, value in weights_of(tmp_path / "large").items())


@pytest.mark.parametrize(
    ("sizes", "setting"), [([4, 3, 3], "class"), ([4, 3, 3], "task"), ([1, 1, 1], "class"), ([2, 2, 2], "domain")]
)
@pytest.mark.parametrize("strategy", ALL)
def test_unequal_tasks_single_classes_and_batch_norm(strategy, sizes, setting, tmp_path):
    """Every cell of a task that was learnt has a value; 13 samples in batches of 4 leave a last batch of one."""
    result = run(strategy, scenario(sizes, setting, 13), tmp_path, model=BATCH_NORM, batch_size=4)
    assert np.isfinite(result.accuracy[np.tril_indices(3)]).all()


@pytest.mark.parametrize("strategy", ALL)
def test_what_is_kept_is_importance_and_anchor(strategy, tmp_path):
    """Nothing of a task's walk stays behind: model, anchor, importance, Fisher and score, all of one size."""
    result = run(strategy, scenario([2, 2]), tmp_path)
    kept = {name: n for name, n in result.record["ledger"][-1]["bytes"].items() if n}
    assert set(kept) <= {"model", "anchor", "importance", "fisher", "score"}
    assert set(kept.values()) == {kept["model"]}
