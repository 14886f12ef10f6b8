"""Early stopping, label smoothing, schedules, trained layers, precision, devices and memory over the tasks."""

import copy
import gc
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shared import optimizer_steps
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

import clbench
from clbench import Observer, Stage, Strategy, Traits
from clbench.learning.early_stopping import Best, validation_loss
from clbench.learning.losses import cross_entropy
from clbench.learning.memory import Memory
from clbench.results.result import Result
from clbench.running.process import process_settings
from clbench.running.resolve import find_device, resolve

HARSH = "mlp:16-16[batch_norm=true,dropout=0.5]"


class StoppedError(Exception):
    """An interruption at a task boundary."""


class StopAfter(Observer):
    def __init__(self, task: int) -> None:
        self.last = task

    def task(self, task: int, row: list[float | None]) -> None:
        if task == self.last:
            raise StoppedError


class Rates(Observer):
    """The learning rate of each step, by task."""

    def __init__(self) -> None:
        self.of: dict[int, list[float]] = {}

    def step(self, progress: Any, loss: float | None) -> None:
        self.of.setdefault(progress.task, []).append(progress.learning_rate)


def numbers(result: Result) -> str:
    """All measurements of a run without its times."""
    training = [{k: v for k, v in entry.items() if k != "seconds"} for entry in result.record["training"]]
    return json.dumps([result.record["accuracy"], training])


def model_of(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "model.pt", weights_only=True)
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Early stopping


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the validation losses by hand, the same for each task."""

    def given(values: list[float]) -> None:
        def stand_in(strategy: Strategy, context: Any) -> float:
            return values[context.progress.epoch]

        monkeypatch.setattr("clbench.learning.trainer.validation_loss", stand_in)

    return given


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        # 2.0 is the lowest, then two epochs in a row that are not below it.
        ([3.0, 2.0, 2.5, 2.0, 1.0, 0.5], {"patience": 2}, 4, 1),
        # One epoch without progress, then progress: the count begins again.
        ([3.0, 3.5, 2.0, 2.5, 1.0, 1.5], {"patience": 2}, 6, 4),
        # 2.9 and 2.8 are not below 3.0 by more than 0.25; 2.8 is nearer to the bar, not below it.
        ([3.0, 2.9, 2.8, 1.0, 0.5, 0.1], {"patience": 2, "min_delta": 0.25}, 3, 0),
        ([3.0, 2.9, 2.8, 1.0, 0.5, 0.1], {"patience": 3, "min_delta": 0.25}, 6, 5),
        # Never better than infinity: nothing to go back to.
        ([math.nan] * 6, {"patience": 3}, 3, None),
    ],
)
def test_a_stage_ends_after_patience_epochs_without_progress(values, options, epochs, best, losses, run, cut):
    """Counted by hand; each task begins anew, and the epoch that was kept is recorded."""
    losses(values)
    result = run(scenario=cut(validation=0.2), epochs=6, **options)
    assert [task["epochs"] for task in result.record["tasks"]] == [epochs] * 5
    kept = {} if best is None else {"train": best}
    assert [task["best_epochs"] for task in result.record["tasks"]] == [kept] * 5
    found = [entry["validation_loss"] for entry in result.record["training"] if entry["task"] == 3]
    assert str(found) == str(values[:epochs])


def test_stopping_restores_the_best_weights_and_what_was_learnt_but_not_the_memory(losses, run, cut):
    """The weights of each epoch are noted during the run; the second is the best of four, batch norm included."""
    losses([2.0, 1.0, 3.0, 3.0, 0.0])
    noted: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []

    class Learner(Strategy):
        traits = Traits(family="replay", memory="replayed")

        def begin_task(self, task: Any) -> None:
            if task.index == 0:
                self.table, self.scale = torch.zeros(2), nn.Parameter(torch.ones(1))

        def loss(self, batch: Any) -> Any:
            classification = self.classification_loss(self.model(batch.images), batch)
            return {"classification": classification, "scale": (self.scale - 2).square().sum()}

        def after_step(self, batch: Any) -> None:
            self.table = self.table + 1
            if self.progress.step % self.progress.steps_per_epoch == self.progress.steps_per_epoch - 1:
                noted.append(self.snapshot())

        def snapshot(self) -> dict[str, Any]:
            learnt = {"model": self.model.state_dict(), "table": self.table, "scale": self.scale.detach()}
            return copy.deepcopy(learnt) | {"memory": self.memory.ids.tolist()}

        def end_task(self, task: Any) -> None:
            assert self.trainable()["scale"] is self.scale
            ends.append(self.snapshot())

    options = {"model": HARSH, "momentum": 0.9, "memory_size": 7, "memory_policy": "reservoir"}
    result = run(Learner, cut(validation=0.2), epochs=5, patience=2, **options)
    assert [task["best_epochs"] for task in result.record["tasks"]] == [{"train": 1}] * 5
    for task, end in enumerate(ends):
        best, last = noted[4 * task + 1], noted[4 * task + 3]
        assert same(end["model"], best["model"])
        assert not same(end["model"], last["model"])
        assert torch.equal(end["table"], best["table"])
        assert torch.equal(end["scale"], best["scale"])
        assert end["memory"] == last["memory"]
        assert len(end["memory"]) == 7


def test_a_memory_is_not_part_of_what_is_restored():
    strategy = clbench.running.resolve.strategy_class("naive")()
    strategy.memory = clbench.memory.ReservoirMemory(size=4)
    strategy.note = torch.zeros(1)
    best = Best(strategy)
    best.keep()
    ids = torch.arange(4)
    strategy.memory.update(ids, ids, torch.Generator())
    strategy.note = torch.ones(1)
    best.restore()
    assert strategy.memory.ids.tolist() == [0, 1, 2, 3]
    assert strategy.note.tolist() == [0.0]


def test_stopping_does_not_shift_what_later_tasks_draw(losses, run, cut):
    """Task 0 stops early or not: the samples, dropout and memory draws of task 1 are the same."""
    drawn: list[list[Any]] = []

    class Watch(Strategy):
        traits = Traits(family="replay", memory="replayed")

        def loss(self, batch: Any) -> Any:
            replayed = self.replay(4)
            ids = [] if replayed is None else replayed.ids.tolist()
            if self.progress.task == 1:
                drawn[-1].append((batch.ids.tolist(), ids, torch.rand(3).tolist()))
            return super().loss(batch)

    for values in ([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]):
        losses(values)
        drawn.append([])
        options = {"memory_size": 6, "memory_policy": "reservoir", "model": HARSH}
        run(Watch, cut(validation=0.2), epochs=4, patience=1, **options)
    n = len(drawn[0])
    assert n > 0
    assert len(drawn[1]) == 2 * n
    assert drawn[0] == drawn[1][:n]


def test_the_watched_loss_is_of_the_current_tasks_validation_split_alone(run, cut):
    """Against -log softmax over the seen outputs, by hand, in eval mode; smoothing, penalty and replay leave it be."""
    scenario = cut(validation=0.2)
    expected: list[float] = []

    class Watch(Strategy):
        traits = Traits(family="replay", memory="replayed")

        def penalty(self) -> Tensor:
            return 0.01 * sum(p.square().sum() for p in self.model.parameters())

        def loss(self, batch: Any) -> Any:
            terms = super().loss(batch)
            replayed = self.replay(4)
            if replayed is not None:
                terms["replay"] = self.classification_loss(self.model(replayed.images), replayed)
            return terms

        def after_step(self, batch: Any) -> None:
            if self.progress.step % self.progress.steps_per_epoch < self.progress.steps_per_epoch - 1:
                return
            held = scenario.tasks[self.progress.task].validation
            model = copy.deepcopy(self.model).eval()
            with torch.no_grad():
                probabilities = model(self.normalize(held.images))[:, : 2 * self.progress.task + 2].softmax(1)
            expected.append(-float(probabilities[torch.arange(len(held)), held.labels].log().mean()))

    options = {"memory_size": 6, "memory_policy": "reservoir", "label_smoothing": 0.3, "model": HARSH}
    result = run(Watch, scenario, epochs=3, patience=3, **options)
    found = [entry["validation_loss"] for entry in result.record["training"]]
    assert found == pytest.approx(expected, rel=1e-5)
    assert {len(task.validation) for task in scenario.tasks} == {4}


@pytest.mark.parametrize(
    "strategy", ["naive", "lwf", "er", "icarl", "bic", "packnet", "hat", "si", "dgr", "der", "pnn"]
)
def test_strategies_of_all_kinds_can_be_stopped_early(strategy, run, cut):
    setting = "task" if strategy in ("packnet", "hat", "pnn") else "class"
    memory = {"memory_size": 20} if strategy in ("er", "icarl", "bic", "der") else {}
    result = run(strategy, cut(validation=0.2, setting=setting, tasks=3), epochs=3, patience=1, lr=0.01, **memory)
    for task in result.record["tasks"]:
        assert task["best_epochs"]
    # BiC's second stage balances old and new classes: the current task alone is no judge of it.
    watched = [entry for entry in result.record["training"] if entry["stage"] != "bias"]
    assert all(math.isfinite(entry["validation_loss"]) for entry in watched)


def test_a_stage_that_old_tasks_count_in_is_not_stopped_early(run, cut, tmp_path):
    """BiC's fit of its two parameters: all of its epochs, none of them judged on the current task."""
    options = {"strategy_options": {"bias_epochs": 7}, "memory_size": 20, "patience": 1, "epochs": 2}
    result = run("bic", cut(validation=0.2, tasks=3), out=tmp_path / "bic", **options)
    bias = [entry for entry in result.record["training"] if entry["stage"] == "bias"]
    assert len(bias) == 2 * 7
    assert all("validation_loss" not in entry for entry in bias)
    header, *lines = (tmp_path / "bic" / "training.csv").read_text().splitlines()
    column = header.split(",").index("validation_loss")
    empty = [line.split(",")[column] == "" for line in lines]
    assert empty == [entry["stage"] == "bias" for entry in result.record["training"]]


def test_watching_without_a_validation_split_is_refused_with_the_remedy(refused):
    with refused("patience", "validation", "0.1"):
        clbench.run("split-mnist-5k", "naive", patience=3)
    with refused("plateau", "validation", "0.1"):
        clbench.run("split-mnist-5k", "naive", schedule="plateau")
    with refused("plateau", "schedule_scope"):
        clbench.run("split-mnist-5k", "naive", schedule="plateau", schedule_scope="run", validation=0.1)


# Label smoothing


def smoothed_by_hand(row: list[float], label: int, active: list[int], alpha: float) -> float:
    """-sum over active k of ((1 - alpha) [k = label] + alpha / K) log p_k (Szegedy et al. 2016, section 7)."""
    total = sum(math.exp(row[k]) for k in active)
    weights = {k: (1 - alpha) * (k == label) + alpha / len(active) for k in active}
    return -sum(weights[k] * math.log(math.exp(row[k]) / total) for k in active)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_label_smoothing_is_the_formula_over_a_slice_and_over_a_mask(alpha):
    logits = [[0.5, -1.0, 2.0, 0.3], [1.5, 0.2, -0.7, 3.0]]
    labels = torch.tensor([2, 1])
    expected = [smoothed_by_hand(logits[i], [2, 1][i], [1, 2], alpha) for i in range(2)]
    found = cross_entropy(torch.tensor(logits), labels, slice(1, 3), label_smoothing=alpha, reduction="none")
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    mask = torch.tensor([[True, False, True, True], [False, True, False, True]])
    expected = [smoothed_by_hand(logits[0], 2, [0, 2, 3], alpha), smoothed_by_hand(logits[1], 1, [1, 3], alpha)]
    found = cross_entropy(torch.tensor(logits), labels, mask, label_smoothing=alpha, reduction="none")
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    mean = cross_entropy(torch.tensor(logits), labels, mask, label_smoothing=alpha)
    assert float(mean) == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_a_smoothed_loss_over_a_mask_has_finite_gradients():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[True, True, False, False]] * 3)
    cross_entropy(logits, torch.tensor([0, 1, 0]), mask, label_smoothing=0.2).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[:, 2:].any()


def test_smoothing_is_in_the_training_loss_only(run, cut):
    """The first batch's loss is the formula's; distillation and the validation loss are those of equal weights."""
    first: dict[float, dict[str, float]] = {}

    for alpha in (0.0, 0.4):

        class Watch(clbench.running.resolve.strategy_class("lwf")):  # type: ignore[misc]
            def loss(self, batch: Any, alpha: float = alpha) -> Any:
                terms = super().loss(batch)
                if self.progress.task == 1 and self.progress.step == 0:
                    logits = self.model(batch.images).tolist()
                    labels = batch.labels.tolist()
                    hand = [smoothed_by_hand(*pair, list(range(4)), alpha) for pair in zip(logits, labels, strict=True)]
                    assert float(terms["classification"].detach()) == pytest.approx(sum(hand) / len(hand), rel=1e-4)
                    first[alpha] = {name: float(term.detach()) for name, term in terms.items()}
                    first[alpha]["validation"] = validation_loss(self, self._context)
                return terms

        # lr 1e-9: the weights are the same with and without, up to what float32 can't tell.
        run(Watch, cut(validation=0.2), lr=1e-9, label_smoothing=alpha)
    assert first[0.4]["classification"] != pytest.approx(first[0.0]["classification"], rel=1e-3)
    assert first[0.4]["distillation"] == pytest.approx(first[0.0]["distillation"], abs=1e-6)
    assert first[0.4]["validation"] == pytest.approx(first[0.0]["validation"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["icarl", "lwf-mc"])
def test_smoothing_is_refused_with_a_sigmoid_loss(strategy, run, refused):
    with refused("label_smoothing", strategy):
        run(strategy, label_smoothing=0.1, **({"memory_size": 20} if strategy == "icarl" else {}))


# Learning rates


def rates(run: Any, cut: Any, **options: Any) -> list[list[float]]:
    """The learning rate of each step of two tasks; with 20 images and batches of 10, an epoch is two steps."""
    seen = Rates()
    run(scenario=cut(tasks=2, class_order=[0, 1, 2, 3]), observer=seen, batch_size=10, **options)
    # A task has 2 classes of 10 images.
    return [seen.of[0], seen.of[1]]


COURSES: list[tuple[dict[str, Any], list[float], list[float]]] = [
    ({"epochs": 2}, [1, 1, 1, 1], [1, 1, 1, 1]),
    ({"epochs": 4, "schedule": "step", "step_epochs": 2}, [1, 1, 1, 1] + [0.1] * 4, [1, 1, 1, 1] + [0.1] * 4),
    (
        {"epochs": 2, "schedule": "step", "step_epochs": 1, "lr_factor": 0.5, "schedule_scope": "run"},
        [1, 1, 0.5, 0.5],
        [0.25, 0.25, 0.125, 0.125],
    ),
    (
        {"epochs": 4, "schedule": "multistep", "milestones": [1, 3]},
        [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01],
        [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01],
    ),
    (
        {"epochs": 2, "schedule": "multistep", "milestones": [1, 3], "schedule_scope": "run"},
        [1, 1, 0.1, 0.1],
        [0.1, 0.1, 0.01, 0.01],
    ),
    # cos(0), cos(pi/4), cos(pi/2), cos(3 pi/4): (1 + .) / 2.
    (
        {"epochs": 2, "schedule": "cosine"},
        [1, 0.853553, 0.5, 0.146447],
        [1, 0.853553, 0.5, 0.146447],
    ),
    # The same half period over both tasks: steps of pi/8; (1 + cos) / 2.
    (
        {"epochs": 2, "schedule": "cosine", "schedule_scope": "run"},
        [1, 0.961940, 0.853553, 0.691342],
        [0.5, 0.308658, 0.146447, 0.038060],
    ),
    ({"iterations": 4, "schedule": "cosine"}, [1, 0.853553, 0.5, 0.146447], [1, 0.853553, 0.5, 0.146447]),
    # Two epochs, four steps, of linear warm-up; no step at rate 0.
    ({"epochs": 3, "lr_warmup": 2}, [0.25, 0.5, 0.75, 1, 1, 1], [0.25, 0.5, 0.75, 1, 1, 1]),
    ({"epochs": 2, "lr_warmup": 1, "schedule_scope": "run"}, [0.5, 1, 1, 1], [1, 1, 1, 1]),
    # The last step of the warm-up is at the full rate though step lowers it from the next on.
    ({"epochs": 2, "lr_warmup": 1, "schedule": "step", "step_epochs": 1}, [0.5, 1, 0.1, 0.1], [0.5, 1, 0.1, 0.1]),
    # After the warm-up the cosine runs through its whole half period.
    (
        {"epochs": 3, "lr_warmup": 1, "schedule": "cosine"},
        [0.5, 1, 1, 0.853553, 0.5, 0.146447],
        [0.5, 1, 1, 0.853553, 0.5, 0.146447],
    ),
]


@pytest.mark.parametrize(("options", "first", "second"), COURSES, ids=lambda v: str(v)[:50])
def test_every_schedule_has_the_rates_worked_out_by_hand(options, first, second, run, cut):
    one, two = rates(run, cut, lr=0.2, **options)
    assert one == pytest.approx([0.2 * factor for factor in first], rel=1e-5)
    assert two == pytest.approx([0.2 * factor for factor in second], rel=1e-5)


def test_plateau_lowers_the_rate_after_epochs_without_progress_and_begins_again(losses, run, cut):
    """No progress in epochs 2 and 3, so half from epoch 4 on; none in 4 and 5 either, so a quarter from 6 on."""
    losses([3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0])
    options = {"schedule": "plateau", "lr_patience": 2, "lr_factor": 0.5}
    result = run(scenario=cut(validation=0.2), epochs=8, lr=0.4, **options)
    for task in range(5):
        found = [entry["lr"] for entry in result.record["training"] if entry["task"] == task]
        assert found == pytest.approx([0.4] * 4 + [0.2] * 2 + [0.1] * 2)
    assert "best" not in result.record["training"][0]


def test_the_rate_is_scaled_with_the_batch_and_the_record_says_so(run, cut):
    """0.2 for batches of 40 is 0.05 for batches of 10, warm-up and all."""
    one, _ = rates(run, cut, lr=0.2, base_batch_size=40, epochs=2, lr_warmup=1)
    assert one == pytest.approx([0.025, 0.05, 0.05, 0.05])
    result = run(lr=0.2, base_batch_size=40, batch_size=10)
    assert result.record["learning_rate"] == pytest.approx(0.05)
    assert result.record["config"]["lr"] == 0.2
    assert result.record["tasks"][0]["learning_rates"] == pytest.approx([0.05])


CONTINUED: list[dict[str, Any]] = [
    {"schedule": "cosine", "schedule_scope": "run", "optimizer_state": "keep", "momentum": 0.9},
    {
        "schedule": "multistep",
        "milestones": [3, 7],
        "schedule_scope": "run",
        "optimizer_state": "keep",
        "optimizer": "adam",
        "lr": 0.01,
    },
    {"schedule": "plateau", "lr_patience": 1, "validation": 0.2, "patience": 2, "momentum": 0.9},
]


@pytest.mark.parametrize("options", CONTINUED, ids=lambda o: o["schedule"])
def test_a_resumed_run_goes_on_with_its_rate_schedule_and_optimizer_state(options, run, cut, tmp_path):
    """The loss does not jump: every loss, rate and weight is that of the run that was not interrupted."""
    options = dict(options)
    scenario = cut(validation=options.pop("validation", 0.0))
    whole = run(scenario=scenario, out=tmp_path / "whole", epochs=2, **options)
    for task in (1, 3):
        with pytest.raises(StoppedError):
            run(
                scenario=scenario,
                out=tmp_path / "parts",
                epochs=2,
                resume=True,
                observer=StopAfter(task),
                **options,
            )
    seen = Rates()
    parts = run(scenario=scenario, out=tmp_path / "parts", epochs=2, resume=True, observer=seen, **options)
    assert numbers(parts) == numbers(whole)
    assert same(model_of(tmp_path / "parts"), model_of(tmp_path / "whole"))
    if options.get("schedule_scope") == "run":
        assert seen.of[4][0] < options.get("lr", 0.1) / 2
        # Without its optimizer state the run would have given other numbers.
        other = run(scenario=scenario, epochs=2, **(options | {"optimizer_state": "reset"}))
        assert numbers(other) != numbers(whole)


@pytest.mark.parametrize("options", CONTINUED, ids=lambda o: o["schedule"])
def test_a_run_resumed_within_a_task_goes_on_at_the_same_place_of_its_schedule(options, run, cut, tmp_path):
    """Stopped in a second epoch and continued from its first step: rates of the steps, losses, weights are the same."""
    options = dict(options)
    scenario = cut(validation=options.pop("validation", 0.0))
    options |= {"scenario": scenario, "epochs": 2}
    seen = Rates()
    whole = run(out=tmp_path / "whole", observer=seen, **options)

    class StopAtStep(Observer):
        def step(self, progress: Any, loss: float | None) -> None:
            if (progress.task, progress.step) == (3, per_epoch + 2):
                raise StoppedError

    per_epoch = whole.record["training"][0]["steps"]
    with pytest.raises(StoppedError):
        run(out=tmp_path / "parts", checkpoint_every=f"{per_epoch + 1}-steps", observer=StopAtStep(), **options)
    rest = Rates()
    parts = run(out=tmp_path / "parts", resume=True, observer=rest, **options)
    assert rest.of == {3: seen.of[3][per_epoch + 1 :], 4: seen.of[4]}
    assert numbers(parts) == numbers(whole)
    assert same(model_of(tmp_path / "parts"), model_of(tmp_path / "whole"))


def test_kept_momentum_of_a_grown_head_is_zero_for_the_new_rows(run):
    """SGD with momentum 0.5 and no gradient: old rows go on by lr * 0.5 * v, new rows stay; a reset stays put."""
    moved: dict[str, Tensor] = {}
    for state in ("keep", "reset"):

        class Still(Strategy):
            traits = Traits(family="reference")

            def stages(self, task: Any) -> list[Stage]:
                self.before = self.model.head.weight.detach().clone()
                return super().stages(task)

            def loss(self, batch: Any) -> Any:
                factor = 1.0 if self.progress.task == 0 else 0.0
                return factor * super().loss(batch)["classification"]

            def end_task(self, task: Any, state: str = state) -> None:
                if task.index == 1:
                    moved[state] = (self.model.head.weight.detach() - self.before).abs().amax(1)

        run(Still, iterations=1, momentum=0.5, optimizer_state=state)
    assert moved["reset"].tolist() == [0.0] * 4
    assert (moved["keep"][:2] > 0).all()
    assert moved["keep"][2:].tolist() == [0.0] * 2


# Trained parameters


class Watched(Strategy):
    """Naive, with the state at the start of a stage beside that at its end."""

    traits = Traits(family="reference")

    def stages(self, task: Any) -> list[Stage]:
        self.before = copy.deepcopy(dict(self.model.state_dict()))
        return super().stages(task)

    def end_task(self, task: Any) -> None:
        self.changed = {n for n, v in self.model.state_dict().items() if not torch.equal(v, self.before[n])}
        Watched.seen = self.changed


@pytest.mark.parametrize(
    ("train", "blocks"), [("all", {"0", "1", "head"}), ("head", {"head"}), ("last-1", {"1", "head"})]
)
def test_what_is_frozen_keeps_its_bits_batch_norm_statistics_included(train, blocks, run):
    """Momentum and weight decay would move parameters that are not left out of the optimizer."""
    run(Watched, train=train, model=HARSH, momentum=0.9, weight_decay=0.1, epochs=2)
    moved = {name.split(".")[1] if name.startswith("backbone") else "head" for name in Watched.seen}
    assert moved == blocks
    if train != "head":
        assert any("running_mean" in name for name in Watched.seen)


def test_training_more_blocks_than_there_are_is_refused(run, refused, tmp_path):
    with refused("last-3", "2 blocks", "last-2"):
        run(train="last-3", model=HARSH, out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def groups_of(run: Any, **options: Any) -> list[dict[str, Any]]:
    """The optimizer's groups in the first step: shapes of the parameters, rate and decay."""
    found: list[Any] = []

    def look(optimizer: Any, *_: Any) -> None:
        found.append(
            [
                {"shapes": [tuple(p.shape) for p in g["params"]], "lr": g["lr"], "decay": g["weight_decay"]}
                for g in optimizer.param_groups
            ]
        )

    with optimizer_steps(before=look):
        run(iterations=1, **options)
    first: list[dict[str, Any]] = found[0]
    return first


def test_the_backbone_has_its_own_rate(run, cut):
    """mlp:8 on 28 x 28: the backbone's tensors are (8, 784) and (8,), the head's (2, 8) and (2,)."""
    groups = groups_of(run, model="mlp:8", lr=0.4, backbone_lr_factor=0.25)
    assert [(g["shapes"], g["lr"]) for g in groups] == [
        ([(8, 784), (8,)], pytest.approx(0.1)),
        ([(2, 8), (2,)], pytest.approx(0.4)),
    ]
    one, _ = rates(run, cut, model="mlp:8", lr=0.4, backbone_lr_factor=0.25, epochs=1)
    assert one == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize("option", ["decay_head", "decay_norms"])
def test_weight_decay_leaves_out_what_it_is_told_to(option, run):
    groups = groups_of(run, model="mlp:8[batch_norm=true]", weight_decay=0.5, **{option: False})
    spared = {shape for g in groups if g["decay"] == 0.0 for shape in g["shapes"]}
    decayed = {shape for g in groups if g["decay"] == 0.5 for shape in g["shapes"]}
    if option == "decay_head":
        assert (spared, decayed) == ({(2, 8), (2,)}, {(8, 784), (8,)})
    else:
        assert (spared, decayed) == ({(8,), (2,)}, {(8, 784), (2, 8)})


def test_clipping_bounds_the_norm_of_the_whole_gradient(run):
    norms: list[float] = []

    class Watch(Strategy):
        traits = Traits(family="reference")

        def after_step(self, batch: Any) -> None:
            parts = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
            norms.append(float(torch.stack(parts).norm()))

    run(Watch, lr=0.01)
    free, norms[:] = list(norms), []
    run(Watch, lr=0.01, clip=0.05)
    assert min(free) > 0.05
    assert norms == pytest.approx([0.05] * len(norms), rel=1e-3)


def test_nesterov_steps_as_worked_out_by_hand(run):
    """Constant gradient 1, lr 0.1, momentum 0.5: v = 1, 1.5, 1.75; steps 0.1 * (1 + 0.5 v)."""
    seen: list[float] = []

    class Constant(Strategy):
        traits = Traits(family="reference")

        def loss(self, batch: Any) -> Tensor:
            return self.model(batch.images).sum() * 0 + self.model.head.bias.sum()

        def after_step(self, batch: Any) -> None:
            seen.append(float(self.model.head.bias[0].detach()))

    run(Constant, iterations=3, momentum=0.5, nesterov=True)
    assert [seen[0] - seen[1], seen[1] - seen[2]] == pytest.approx([0.175, 0.1875], rel=1e-4)


# Options cost nothing


@pytest.mark.parametrize(
    "neutral",
    [
        {"label_smoothing": 0.0},
        {"clip": 1e9},
        {"lr_warmup": 0, "schedule": "constant", "schedule_scope": "task"},
        {"schedule": "step", "step_epochs": 2},
        {"schedule": "multistep", "milestones": [2]},
        {"base_batch_size": 8},
        {"train": "last-2"},
        {"backbone_lr_factor": 1.0},
        {"decay_head": True, "decay_norms": True, "nesterov": False},
        {"optimizer_state": "reset", "precision": "fp32"},
    ],
    ids=lambda o: next(iter(o)),
)
def test_an_option_at_its_neutral_value_changes_no_bit(neutral, run, tmp_path):
    common = {"model": HARSH, "momentum": 0.9, "epochs": 2}
    plain = run("lwf", out=tmp_path / "plain", **common)
    other = run("lwf", out=tmp_path / "other", **common, **neutral)
    assert numbers(plain) == numbers(other)
    assert same(model_of(tmp_path / "plain"), model_of(tmp_path / "other"))


def test_watching_the_validation_loss_changes_no_bit_of_training(run, cut):
    """A plateau that is never reached; dropout draws, batch-norm statistics and modes are as they were."""
    scenario = cut(validation=0.2)
    common = {"model": HARSH, "epochs": 3, "scenario": scenario}
    plain = run(**common)
    watched = run(**common, schedule="plateau", lr_patience=100)
    for entry in watched.record["training"]:
        del entry["validation_loss"]
    assert numbers(plain) == numbers(watched)


# Precision


@pytest.mark.parametrize("strategy", ["naive", "lwf", "ewc", "mas", "si", "er", "der", "icarl", "lucir"])
def test_bf16_has_finite_losses_and_importances_in_float32(strategy, run):
    state: dict[str, Any] = {}

    class Look(clbench.running.resolve.strategy_class(strategy)):  # type: ignore[misc]
        def end_task(self, task: Any) -> None:
            super().end_task(task)
            state.update(self.state())

    memory = {"memory_size": 20} if Look.traits.needs_memory or strategy == "icarl" else {}
    result = run(Look, precision="bf16", lr=0.01, epochs=2, **memory)
    for entry in result.record["training"]:
        assert all(math.isfinite(value) for value in entry["losses"].values())
    tensors = [v for v in state.values() if isinstance(v, Tensor)]
    tensors += [t for v in state.values() if isinstance(v, dict) for t in v.values() if isinstance(t, Tensor)]
    tensors += list(state["model"].state_dict().values())
    assert all(t.dtype == torch.float32 for t in tensors if t.is_floating_point())


@pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("bf16", False), ("tf32", True)])
def test_products_in_float32_are_rounded_on_a_gpu_only_by_tf32(precision, rounded):
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    config = resolve("split-mnist-5k", "naive", {"threads": 1}).replace(precision=precision)
    with process_settings(config):
        assert [backend.allow_tf32 for backend in backends] == [rounded, rounded]
    assert [backend.allow_tf32 for backend in backends] == before


def test_a_cpu_has_no_tensorfloat32(run, refused):
    with refused("precision=tf32", "cpu", "fp32 and bf16"):
        run(precision="tf32")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lwf", "er", "ewc"])
def test_three_seeds_in_bf16_land_where_float32_lands(strategy, tmp_path):
    """split-mnist-5k, task-incremental, a convolutional network with batch norm: the means of three seeds differ by at
    most 2 points or two standard errors of their difference.
    """
    fields = {"model": "conv:16-32", "setting": "task", "epochs": 1, "limit": 100, "threads": 1}
    means, variances = {}, 0.0
    for precision in ("fp32", "bf16"):
        found = [
            clbench.run(
                "split-mnist-5k",
                strategy,
                seed=seed,
                precision=precision,
                out=tmp_path / f"{precision}-{seed}",
                **fields,
            ).metrics["average_accuracy"]
            for seed in range(3)
        ]
        means[precision] = statistics.mean(found)
        variances += statistics.variance(found) / 3
    assert means["fp32"] > 0.75  # chance is 0.5
    assert abs(means["bf16"] - means["fp32"]) <= max(0.02, 2 * math.sqrt(variances))


def test_the_gradient_of_one_batch_in_bf16_is_close_to_float32(run):
    """bfloat16 has 8 bits: a relative error of some 2^-8 per product; loss terms are in float32."""
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for precision in ("fp32", "bf16"):

        class Look(clbench.running.resolve.strategy_class("lwf")):  # type: ignore[misc]
            def loss(self, batch: Any) -> Any:
                self.terms = super().loss(batch)
                return self.terms

            def after_backward(self, batch: Any, precision: str = precision) -> None:
                gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()])
                if self.progress.task == 1 and self.progress.step == 0:
                    found[precision] = (gradient, {k: v.detach() for k, v in self.terms.items()})
                self.terms = {}

        # The weights stay what they were, so that both see the same model at task 1.
        run(Look, precision=precision, lr=1e-12)
    (exact, terms), (rounded, rounded_terms) = found["fp32"], found["bf16"]
    assert all(term.dtype == torch.float32 for term in rounded_terms.values())
    assert float(F.cosine_similarity(exact, rounded, dim=0)) > 0.999
    assert float(rounded.norm() / exact.norm()) == pytest.approx(1, abs=0.02)
    assert float(rounded_terms["classification"]) == pytest.approx(float(terms["classification"]), rel=0.02)
    assert not torch.equal(exact, rounded)


# Devices


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_picks_cuda_then_mps_then_cpu(cuda, mps, expected, monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert find_device("auto") == expected
    assert find_device("cpu") == "cpu"
    if mps:
        assert find_device("mps") == "mps"
    else:
        with refused("mps", "auto", "cpu"):
            find_device("mps")


class Float64(TorchDispatchMode):
    """Notes every operation that makes a float64 tensor with more than one value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else (made,):
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                self.seen.add(str(func))
        return made


@pytest.mark.parametrize("strategy", ["naive", "lwf", "ewc", "si", "er", "icarl", "agem", "packnet"])
def test_no_step_and_no_evaluation_makes_a_float64(strategy, run, cut):
    """MPS has no float64. Herding works on the CPU whatever the device, and is left out of the look."""
    looking = Float64()

    class Look(clbench.running.resolve.strategy_class(strategy)):  # type: ignore[misc]
        def loss(self, batch: Any) -> Any:
            assert all(t.dtype != torch.float64 for t in (batch.images, batch.labels, batch.tasks))
            with looking:
                return super().loss(batch)

        def after_backward(self, batch: Any) -> None:
            with looking:
                super().after_backward(batch)

        def penalty(self) -> Any:
            with looking:
                return super().penalty()

        def after_step(self, batch: Any) -> None:
            with looking:
                super().after_step(batch)

        def scores(self, images: Tensor, task: int | None = None) -> Any:
            with looking:
                return super().scores(images) if task is None else super().scores(images, task)

    memory = {"memory_size": 20} if Look.traits.needs_memory or strategy == "icarl" else {}
    run(Look, cut(setting="task") if strategy == "packnet" else None, lr=0.01, **memory)
    assert not looking.seen


class Synchronisations:
    """Counts the calls that make the host wait for a floating-point or bool tensor, which live on the device.

    Sample ids (int64) and the choice of exemplars live on the CPU by design, where reading them waits for nobody.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("item", "cpu", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "nonzero"):
            monkeypatch.setattr(Tensor, name, self._counting(getattr(Tensor, name)))
        monkeypatch.setattr(Memory, "update", self._uncounted(Memory.update))

    def _uncounted(self, original: Any) -> Any:
        def stand_in(*args: Any) -> None:
            before = self.count
            original(*args)
            self.count = before

        return stand_in

    def _counting(self, original: Any) -> Any:
        def stand_in(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if tensor.is_floating_point() or tensor.dtype == torch.bool:
                self.count += 1
            return original(tensor, *args, **kwargs)

        return stand_in


@pytest.mark.parametrize("strategy", ["naive", "lwf", "ewc", "mas", "si", "er", "derpp", "agem", "icarl"])
def test_a_step_waits_for_the_device_at_most_once_in_50_steps(strategy, run, cut, monkeypatch):
    """An epoch of 100 steps: the loss is read after steps 50 and 100."""
    waits = Synchronisations(monkeypatch)
    at: dict[tuple[int, int], int] = {}

    class Note(Observer):
        def step(self, progress: Any, loss: float | None) -> None:
            at[progress.task, progress.step] = waits.count

    scenario = cut(task_sizes=[4, 4, 2], limit=50)
    memory = {"memory_size": 20} if strategy in ("er", "derpp", "agem", "icarl") else {}
    run(strategy, scenario, batch_size=2, observer=Note(), lr=0.01, **memory)
    for task in (0, 1):
        assert (task, 100) in at
        assert at[task, 49] - at[task, 1] == 0
        assert at[task, 100] - at[task, 1] <= 2
    assert waits.count > 4


def test_the_counter_of_synchronisations_counts(run, cut, monkeypatch):
    waits = Synchronisations(monkeypatch)
    at: list[int] = []

    class Waiting(Strategy):
        traits = Traits(family="reference")

        def after_step(self, batch: Any) -> None:
            float(self.model.head.bias.detach().sum())
            at.append(waits.count)

    run(Waiting, cut(task_sizes=[4, 4, 2], limit=10), batch_size=2)
    assert at[10] - at[0] >= 10


# Memory over the tasks


def live_bytes() -> int:
    """Bytes of all tensors that Python can reach, each storage once; those that a compiler traced with have none."""
    gc.collect()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if issubclass(type(t), Tensor) and not issubclass(type(t), FakeTensor) and t.layout == torch.strided
    }
    return sum(storages.values())


@pytest.mark.parametrize("strategy", ["er", "lwf", "ewc[mode=online]"])
def test_what_is_held_is_flat_from_task_2_on(strategy, run):
    """All outputs exist from the start, so that the head does not grow, and the memory is full after one task."""
    held: list[int] = []

    class Look(Observer):
        def task(self, task: int, row: list[float | None]) -> None:
            held.append(live_bytes())

    memory = {"memory_size": 20} if strategy == "er" else {}
    result = run(strategy, head="full", observer=Look(), **memory)
    ledger = [sum(entry["bytes"].values()) for entry in result.record["ledger"]]
    assert ledger[1:] == [ledger[1]] * 4
    for later in held[2:]:
        assert later == pytest.approx(held[1], rel=0.001)
    assert all(task["peak_memory_bytes"] > 0 for task in result.record["tasks"])


# Weights from a file


def test_a_backbone_is_taken_over_and_the_head_is_new(run, tmp_path):
    run(out=tmp_path / "source", model=HARSH, epochs=2)
    source = model_of(tmp_path / "source")
    starts: list[dict[str, Tensor]] = []

    class Look(Strategy):
        traits = Traits(family="reference")

        def begin_task(self, task: Any) -> None:
            starts.append(copy.deepcopy(dict(self.model.state_dict())))

    run(Look, model=HARSH, seed=1, weights=str(tmp_path / "source" / "model.pt"))
    for name, value in starts[0].items():
        if name.startswith("head."):
            assert value.shape[0] == 0
        else:
            assert torch.equal(value, source[name])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s | {"backbone.1.0.weight": torch.zeros(16, 8)}, ["backbone.1.0.weight", "[16, 8]", "[16, 16]"]),
        (lambda s: {k: v for k, v in s.items() if k != "backbone.0.2.running_var"}, ["running_var", "missing"]),
        (lambda s: s | {"backbone.1.0.wieght": torch.zeros(1)}, ["wieght", "backbone.1.0.weight"]),
        (lambda s: list(s.values()), ["not a state dict"]),
        (lambda s: {"epoch": 3}, ["not a state dict"]),
    ],
    ids=["shape", "missing", "unknown", "a list", "no tensors"],
)
def test_weights_that_do_not_fit_are_refused_naming_the_layer(spoil, words, run, refused, tmp_path):
    run(out=tmp_path / "source", model=HARSH)
    torch.save(spoil(model_of(tmp_path / "source")), tmp_path / "spoilt.pt")
    with refused("spoilt.pt", *words):
        run(model=HARSH, weights=str(tmp_path / "spoilt.pt"), out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_weights_of_another_model_name_the_layer(run, refused, tmp_path):
    run(out=tmp_path / "source", model="mlp:8")
    with refused("backbone.0.1.weight", "[8, 784]", "[32, 784]"):
        run(model="mlp:32", weights=str(tmp_path / "source" / "model.pt"))


# Weights that torchvision knows by name


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and no network."""

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


def test_weights_by_their_torchvision_name_start_the_backbone(hub, run, cut):
    """A file of the published name holds torchvision's own ResNet-18; the model's features equal its features."""
    from torchvision.models import resnet18

    torch.manual_seed(5)
    published = resnet18(weights=None)
    torch.save(published.state_dict(), hub / "resnet18-f37072fd.pth")
    found: dict[str, Any] = {}

    class Look(Strategy):
        traits = Traits(family="reference")

        def begin_task(self, task: Any) -> None:
            if task.index == 0:
                images = self.normalize(task.train.images[:2])
                found["ours"] = self.features(images).detach()
                published.fc = nn.Identity()
                # Channels last as in ours, so that both take the same kernels.
                published.to(memory_format=torch.channels_last)
                found["theirs"] = published(images.expand(-1, 3, -1, -1)).detach()
                found["blocks"] = len(self.model.blocks())

    options = {"model": "torchvision[name=resnet18]", "weights": "ResNet18_Weights.IMAGENET1K_V1", "train": "last-1"}
    result = run(Look, cut(tasks=2, limit=2), **options)
    assert torch.equal(found["ours"], found["theirs"])
    assert found["blocks"] == 5  # the stem and four stages
    assert result.record["strategy"]["features"] == "start from ResNet18_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["Network is unreachable", "resnet18-f37072fd.pth", "checkpoints"]),
        ({"offline": True}, ["offline", "https://download.pytorch.org/models/resnet18-f37072fd.pth"]),
        ({"weights": "ResNet18_Weights.IMAGENET1K_V9"}, ["IMAGENET1K_V9", "IMAGENET1K_V1"]),
        ({"weights": "ResNet81_Weights.DEFAULT"}, ["ResNet81_Weights", "ResNet18_Weights"]),
    ],
    ids=["no network", "offline", "version", "network"],
)
def test_weights_that_are_not_to_be_had_are_refused_with_the_remedy(options, words, hub, run, refused):
    options = {"model": "torchvision", "weights": "ResNet18_Weights.IMAGENET1K_V1"} | options
    with refused(*words):
        run(**options)


def test_weights_of_another_torchvision_network_name_the_layer(hub, run, refused):
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), hub / "resnet18-f37072fd.pth")
    with refused("weights=ResNet18_Weights.IMAGENET1K_V1", "backbone.layer1"):
        run(model="torchvision[name=resnet34]", weights="ResNet18_Weights.IMAGENET1K_V1")
