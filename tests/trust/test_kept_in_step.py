"""State that two places keep in step, on the paths where one of them has nothing to add."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from shared import network_of

import clbench
from clbench import Strategy, Traits
from clbench.config.registry import entry_point_names
from clbench.strategies.der import DER
from clbench.strategies.derpp import DERpp
from clbench.tools.conformance import check_strategy

# Steps that are left out: the very first one, one in the middle, the last of a task, all of a task.
STEPS: dict[str, set[tuple[int, int]]] = {
    "first": {(0, 0)},
    "middle": {(0, 2), (1, 1)},
    "last": {(0, 4), (1, 4)},
    "two in a row": {(1, 1), (1, 2)},
    "whole task": {(0, step) for step in range(5)},
    "many": {(task, step) for task in range(5) for step in (0, 3)},
}
# Five steps a task: 20 images, 4 at once.
SMALL: dict[str, Any] = {"model": "mlp:8", "batch_size": 4, "on_nan": "skip"}


def spoilt(kind: type[Strategy], steps: set[tuple[int, int]], **attributes: Any) -> Any:
    """Return a strategy whose loss is NaN at some steps, given as (task, step)."""

    def loss(self: Any, batch: Any) -> Any:
        terms = kind.loss(self, batch)
        terms = terms if isinstance(terms, dict) else {"loss": terms}
        if (self.progress.task, self.progress.step) in steps:
            return {name: term * torch.nan for name, term in terms.items()}
        return terms

    return type(kind.__name__, (kind,), {"loss": loss, "__module__": __name__, **attributes})


def weights(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "model.pt", weights_only=True)
    return found


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", [DER, DERpp], ids=["der", "derpp"])
def test_logits_belong_to_the_exemplars_beside_which_they_are_stored(kind: type[DER], steps: str, run: Any) -> None:
    """The report: `der --on-nan skip` ended in an IndexError, or with exemplars that had another's logits.

    Independently: the test notes for each sample the logits of the last step that was taken with it.
    """
    noted: dict[int, torch.Tensor] = {}
    compared: list[int] = []

    def after_step(self: Any, batch: Any) -> None:
        width = self.answers.shape[1]
        noted.update(zip(batch.ids.tolist(), self.answers.clone(), strict=True))
        kind.after_step(self, batch)
        assert self.ids.tolist() == self.memory.ids.tolist()
        for sample, stored in zip(self.ids.tolist(), self.logits, strict=True):
            known = len(noted[sample])
            assert torch.equal(stored[:known], noted[sample])
            # Outputs that came later have the lowest logit of the sample.
            assert (stored[known:] == noted[sample].min()).all()
            assert len(stored) == width
            compared.append(sample)

    result = run(spoilt(kind, STEPS[steps], after_step=after_step), memory_size=6, **SMALL)
    assert result.status == "done"
    assert sum(epoch["skipped"] for epoch in result.record["training"]) == len(STEPS[steps])
    assert len(compared) > 30


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_samples_of_a_step_that_is_left_out_are_not_offered_to_the_memory(policy: str, run: Any) -> None:
    """The memory has room for all 100 samples of the run, so it holds those of the steps that were taken."""
    offered: list[int] = []
    taken: list[int] = []

    class Counts(Strategy):
        traits = Traits(family="replay", memory="replayed")

        def begin_run(self) -> None:
            self.seen: dict[int, int] = {}

        def loss(self, batch: Any) -> Any:
            offered.extend(batch.ids.tolist())
            return super().loss(batch)

        def after_step(self, batch: Any) -> None:
            """Keep a number for each exemplar, as a strategy of the user's own would."""
            taken.extend(batch.ids.tolist())
            self.seen.update(dict.fromkeys(batch.ids.tolist(), self.progress.step))
            assert set(self.memory.ids.tolist()) == set(self.seen)

    result = run(spoilt(Counts, STEPS["many"]), memory_size=200, memory_policy=policy, **SMALL)
    assert len(offered) == 100
    assert len(taken) == 60
    assert result.record["tasks"][-1]["n_exemplars"] == 60


# They replay exemplars, or read in a step what earlier steps have left.
READ_EARLIER_STEPS = (
    *("agem", "bic", "der", "derpp", "dgr", "er", "er-ace", "er-aml", "gdumb", "gem", "gsa", "hat"),
    *("icarl", "lucir", "lwf[recorded=true]", "mir", "packnet", "pnn", "podnet", "rwalk", "scr", "si"),
)


@pytest.mark.parametrize("strategy", READ_EARLIER_STEPS)
def test_strategies_end_well_where_steps_are_left_out(strategy: str, run: Any, cut: Any) -> None:
    settings = {"setting": "task"} if strategy in ("hat", "packnet", "pnn") else {}
    name = strategy.partition("[")[0]
    cls = clbench.running.resolve.strategy_class(name)
    options = {"recorded": True} if "[" in strategy else {}
    memory = {"memory_size": 10} if cls.traits.needs_memory else {}
    made = spoilt(cls, STEPS["middle"])
    result = run(made, cut(**settings), strategy_options=options, **memory, **SMALL)
    assert result.status == "done"
    assert sum(epoch.get("skipped", 0) for epoch in result.record["training"]) >= 1


class Batches(Strategy):
    """Naive; a class attribute says what becomes of some steps."""

    traits = Traits(family="reference")
    how: ClassVar[str] = ""

    def loss(self, batch: Any) -> Any:
        if (self.progress.task, self.progress.step) not in STEPS["many"]:
            return self.classification_loss(self.model(batch.images), batch)
        if self.how == "left out":
            return self.classification_loss(self.model(batch.images), batch) * torch.nan
        # The network never sees the batch, and no weight moves, under sgd without momentum.
        return sum(p.sum() for p in self.model.parameters()) * 0.0


def test_batch_norm_does_not_count_a_batch_that_is_left_out(run: Any, tmp_path: Path) -> None:
    """As if its batch had not been: weights, running statistics and the count of batches are the same to the bit."""
    for how in ("left out", "never seen"):
        strategy = type("Batches", (Batches,), {"how": how, "__module__": __name__})
        run(strategy, out=tmp_path / how, **SMALL | {"model": "mlp:8[batch_norm=true]"})
    one, other = (weights(tmp_path / how) for how in ("left out", "never seen"))
    assert any("running_var" in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_penalty_that_is_not_finite_leaves_the_whole_step_out(run: Any) -> None:
    """after_backward was called for it; the memory gets nothing all the same."""
    held: list[int] = []

    class Bad(Strategy):
        traits = Traits(family="replay", memory="replayed")

        def penalty(self) -> Any:
            wrong = (self.progress.task, self.progress.step) in STEPS["many"]
            return self.model.head.weight.square().sum() * (torch.inf if wrong else 0.0)

        def after_step(self, batch: Any) -> None:
            held.append(len(self.memory))

    run(Bad, memory_size=200, memory_policy="reservoir", **SMALL)
    assert held == list(range(4, 61, 4))


def test_the_conformance_kit_finds_exemplars_and_what_is_kept_for_them_out_of_step() -> None:
    class KeptInTheLoss(Strategy):
        """Keeps a number for each exemplar where the loss is computed."""

        traits = Traits(family="replay", memory="replayed", needs_memory=True, memory_policy="reservoir")

        def begin_run(self) -> None:
            self.order: list[int] = []

        def loss(self, batch: Any) -> Any:
            self.order += batch.ids.tolist()
            factor = 1 + 0.5 * (len(self.order) - len(self.memory) if self.memory else 0)
            return self.classification_loss(self.model(batch.images * factor), batch)

    (outcome,) = check_strategy(KeptInTheLoss, checks=["steps_left_out"])
    assert outcome.status == "failed"
    assert "left out" in outcome.reason


# The optimizer's statistics and the parameters, which may come later

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
}
# Those whose parameters come and go from task to task.
GROWING = ("hat", "pnn", "bic", "podnet", "packnet", "dgr")


def _cases() -> list[Any]:
    names = entry_point_names("clbench.strategies")
    return [
        pytest.param(name, kind, marks=() if name in GROWING and kind in ("momentum", "adam") else pytest.mark.soak)
        for name in names
        for kind in OPTIMIZERS
    ]


@pytest.mark.parametrize(("strategy", "optimizer"), _cases())
def test_every_strategy_keeps_the_state_of_every_optimizer_or_is_refused(
    strategy: str, optimizer: str, run: Any, cut: Any
) -> None:
    """The report: `hat` and `pnn` with momentum that is kept ended in a TypeError in task 2."""
    options = {"iterations": 2, "optimizer_state": "keep"} | OPTIMIZERS[optimizer] | network_of(strategy, "mlp:8-8")
    cls = clbench.running.resolve.strategy_class(strategy)
    setting = cls.traits.settings[0]
    memory = {"memory_size": 10} if cls.traits.needs_memory else {}
    try:
        result = run(strategy, cut(task_sizes=[2, 2, 2], setting=setting), **options, **memory)
    except clbench.ConfigError:
        return
    assert result.status == "done"


class Grows(Strategy):
    """Gets a parameter of its own in each task, that one of the task before being gone or of another shape."""

    traits = Traits(family="replay")
    shape: ClassVar[Any] = None

    def begin_task(self, task: Any) -> None:
        name = f"extra_{task.index}" if self.shape is None else "extra"
        setattr(self, name, torch.nn.Parameter(torch.ones(self.shape[task.index] if self.shape else (3,))))

    def loss(self, batch: Any) -> Any:
        own = [v for k, v in vars(self).items() if k.startswith("extra")]
        return super().loss(batch) | {"extra": sum((p - 2).square().sum() for p in own)}


SHAPES: dict[str, Any] = {
    "a new name": None,
    "more rows": [(2, 3), (4, 3), (5, 3), (6, 3), (7, 3)],
    "fewer rows": [(6, 3), (5, 3), (4, 3), (3, 3), (2, 3)],
    "more columns": [(3, 2), (3, 3), (3, 4), (3, 5), (3, 6)],
    "another dimension": [(3,), (3, 2), (), (4,), (1, 1, 1)],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adam"])
def test_parameters_of_ones_own_may_come_later_or_change_their_shape(shape: str, optimizer: str, run: Any) -> None:
    strategy = type("Grows", (Grows,), {"shape": SHAPES[shape], "__module__": __name__})
    result = run(strategy, model="mlp:8", optimizer_state="keep", **OPTIMIZERS[optimizer])
    assert result.status == "done"


def test_a_new_parameter_begins_with_the_momentum_that_its_first_gradient_gives(run: Any, tmp_path: Path) -> None:
    """SGD's velocity is v <- 0.9 v + g from v = 0. By hand, w from 1 under the loss (w - 2)^2, rate 0.1, two steps:

    g = -2, v = -2, w = 1.2; then g = -1.6, v = -3.4, w = 1.54. The old parameter goes on with its velocity.
    """
    found: dict[str, list[float]] = {}

    class Two(Strategy):
        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            if task.index < 2:
                setattr(self, f"w{task.index}", torch.nn.Parameter(torch.ones(1)))

        def loss(self, batch: Any) -> Any:
            own = {k: v for k, v in vars(self).items() if k in ("w0", "w1")}
            return super().loss(batch) | {"extra": sum((p - 2).square().sum() for p in own.values())}

        def after_step(self, batch: Any) -> None:
            for name in ("w0", "w1"):
                if name in vars(self):
                    found.setdefault(name, []).append(float(getattr(self, name).detach()))

    run(Two, iterations=2, optimizer_state="keep", optimizer="sgd", momentum=0.9, lr=0.1)
    expected, weight, velocity = [], 1.0, 0.0
    for _ in range(10):
        velocity = 0.9 * velocity + 2 * (weight - 2)
        weight -= 0.1 * velocity
        expected.append(weight)
    assert expected[:2] == pytest.approx([1.2, 1.54])
    assert found["w0"] == pytest.approx(expected, abs=1e-5)
    assert found["w1"] == pytest.approx(expected[:8], abs=1e-5)
