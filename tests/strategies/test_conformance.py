"""Every built-in strategy passes the conformance kit, and every check of the kit catches a strategy broken that way."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clbench.config.errors import RunError
from clbench.config.registry import entry_point_names
from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.memory import ReservoirMemory
from clbench.learning.strategy import Stage, Strategy, Strength, Traits
from clbench.running.resolve import strategy_class
from clbench.strategies.ewc import EWC
from clbench.tools.conformance import CHECKS, Bench, check_strategy

BUILT_IN = entry_point_names("clbench.strategies")
# The kit takes minutes for a transformer, and a few runs of each are in test_grid.py and test_presets.py.
TRANSFORMERS = [name for name in BUILT_IN if strategy_class(name).traits.needs_transformer]
OTHERS = [name for name in BUILT_IN if name not in TRANSFORMERS]
SAMPLE = ("derpp", "ewc", "icarl", "packnet")


def _builtin(name: str) -> Any:
    slow = pytest.mark.soak if name in TRANSFORMERS else pytest.mark.slow
    return pytest.param(name, marks=() if name in SAMPLE else slow)


@pytest.mark.parametrize("name", [_builtin(name) for name in BUILT_IN])
def test_built_in_strategy_passes_every_check(name: str) -> None:
    """The next test does the check in another process for most of them, because each start takes seconds."""
    checks = [check for check in CHECKS if check != "another_process" or name in TRANSFORMERS]
    outcomes = check_strategy(name, checks=checks)
    assert [o.check for o in outcomes] == checks
    assert [f"{o.check}: {o.reason}" for o in outcomes if o.status == "failed"] == []
    assert all(o.reason for o in outcomes if o.status == "not applicable")


@pytest.mark.slow
def test_another_process_gives_the_same_matrices(tmp_path: Path) -> None:
    """The runs of the kit, in one process for all OTHERS, in which sets of texts have another order."""
    code = """
import json, sys
from pathlib import Path
from clbench.running.resolve import strategy_class
from clbench.tools.conformance import Bench

runs = {name: Bench(strategy_class(name), Path(sys.argv[1], name)).plain for name in sys.argv[2:]}
print(json.dumps({name: run.record["classifiers"] for name, run in runs.items()}))
"""
    surroundings = os.environ | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"}
    given = [sys.executable, "-c", code, tmp_path / "there", *OTHERS]
    done = subprocess.run(given, env=surroundings, capture_output=True, encoding="utf-8", check=True)
    there = json.loads(done.stdout)
    assert set(there) == set(OTHERS)
    for name, matrices in there.items():
        assert matrices == Bench(strategy_class(name), tmp_path / "here" / name).plain.record["classifiers"], name


class Healthy(Strategy):
    """Naive fine-tuning."""

    traits = Traits(family="reference")


class NamesNoCheck(Healthy):
    """Declares a check not applicable that the kit does not have."""

    traits = replace(Healthy.traits, not_applicable={"neutral": "it is never off"})


class ConstructorActs(Healthy):
    """Does more than store its hyper-parameters."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.cache: list[int] = []


class LosesOptions(Healthy):
    """Forgets its hyper-parameters when pickled."""

    strength: Strength = 1.0

    def __getstate__(self) -> dict[str, Any]:
        return {"strength": 2.0}


class FailsInTaskSetting(Healthy):
    """Declares a setting in which it fails."""

    def begin_task(self, task: Task) -> None:
        if self.setting == "task":
            raise RunError("no")


class DrawsFromNowhere(Healthy):
    """Uses randomness that no seed fixes."""

    def loss(self, batch: Batch) -> Tensor:
        noise = torch.from_numpy(np.random.default_rng().normal(size=tuple(batch.images.shape)).astype("float32"))
        return self.classification_loss(self.model(batch.images + noise), batch)


class NeverOff(Healthy):
    """Has a strength of 0 that still acts."""

    strength: Strength = 1.0

    def penalty(self) -> Tensor:
        return (self.strength + 1) * self.model.head.weight.square().sum()


class NoEffect(Healthy):
    """Has a strength that never acts."""

    strength: Strength = 1.0


class ForgetsItsState(EWC):
    """Keeps something out of the state that is saved."""

    strength: Strength = 1e4

    def state(self) -> dict[str, Any]:
        return {k: v for k, v in super().state().items() if k not in ("importance", "anchor")}

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if "importance" not in vars(self):
            self.importance, self.anchor, self.offset = {}, {}, 0.0


class HoldsOnToTheModel(Healthy):
    """Its loss reaches the model by another way than the strategy: after an interruption that is another one."""

    def stages(self, task: Task) -> list[Stage]:
        model = self.model
        return [Stage(task.train, loss=lambda batch: self.classification_loss(model(batch.images), batch))]


class KeepsCode(Healthy):
    """Keeps a function in its state, which no safe file can hold."""

    def begin_task(self, task: Task) -> None:
        self.function = _a_function


def _a_function() -> None:
    """Something executable."""


class CountsInTheLoss(Healthy):
    """Counts its steps where the loss is computed, so that it counts those that are left out."""

    def begin_run(self) -> None:
        self.steps = 0

    def loss(self, batch: Batch) -> Tensor:
        self.steps += 1
        return self.classification_loss(self.model(batch.images), batch) / self.steps


class DrawsFromASet(Healthy):
    """Takes the first of a set of texts, which differs from process to process."""

    def loss(self, batch: Batch) -> Tensor:
        first = next(iter({f"part {n}" for n in range(100)}))
        return self.classification_loss(self.model(batch.images * int(first.split()[1]) / 10), batch)


class TwoClassesOnly(Healthy):
    """Takes it for granted that a task has two classes."""

    def loss(self, batch: Batch) -> Tensor:
        if int(batch.labels.max() - batch.labels.min()) > 1:
            raise ValueError("more than two classes")
        return self.classification_loss(self.model(batch.images), batch)


class NeedsTwoClasses(Healthy):
    """Can't learn a task of one class."""

    def begin_task(self, task: Task) -> None:
        if len(task.classes) < 2:
            raise ValueError("one class")


class OneSampleAtATime(Healthy):
    """Feeds batch norm a single sample."""

    def loss(self, batch: Batch) -> Tensor:
        self.model(batch.images[:1])
        return self.classification_loss(self.model(batch.images), batch)


class LearnsWhileTested(Healthy):
    """Changes its weights when it is tested."""

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        self.model.head.weight.data.mul_(0.5)
        return self.model(images)


class FailsUntrained(Healthy):
    """Can't be tested before it has learnt something."""

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        if "learnt" not in vars(self):
            raise ValueError("not trained yet")
        return self.model(images)

    def end_task(self, task: Task) -> None:
        self.learnt = True


class UsesTheBatch(Healthy):
    """Centres the scores on the batch that is tested, so neighbours decide."""

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        logits: Tensor = self.model(images)
        return logits - logits.mean(0)


class Hoards(Healthy):
    """Takes a larger memory than it was given."""

    traits = replace(Healthy.traits, memory="own")

    def begin_run(self) -> None:
        self.memory = ReservoirMemory(size=50)

    def end_task(self, task: Task) -> None:
        assert self.memory is not None
        self.memory.update(task.train.ids, task.train.classes, self.rng("memory"))


class KeepsImages(Healthy):
    """Keeps a task's images outside the memory."""

    def end_task(self, task: Task) -> None:
        self.kept = task.train.images


class NotANumber(Healthy):
    """Keeps a statistic that is not a number."""

    def after_step(self, batch: Batch) -> None:
        self.statistic = torch.tensor(float("nan"))


class TouchesTheModel(Healthy):
    """Changes weights outside training."""

    def end_task(self, task: Task) -> None:
        with torch.no_grad():
            self.model.head.weight.mul_(1.01)


class ReplacesParameters(Healthy):
    """Replaces a layer during a stage, so that the optimizer trains a stale one."""

    def after_step(self, batch: Batch) -> None:
        self.model.head = copy.deepcopy(self.model.head)


class LooksAtImages(Healthy):
    """Declares that it works on features, and scales what it is given by itself, as only images may be."""

    traits = replace(Healthy.traits, on_features=True)

    def scores(self, images: Any, task: int | None = None) -> Any:
        return self.model(images / 2)


BROKEN: list[tuple[str, type[Strategy]]] = [
    ("features_once", LooksAtImages),
    ("declarations", NamesNoCheck),
    ("hyper_parameters", ConstructorActs),
    ("picklable", LosesOptions),
    ("settings", FailsInTaskSetting),
    ("determinism", DrawsFromNowhere),
    ("neutral_at_zero", NeverOff),
    ("neutral_at_zero", NoEffect),
    ("resume_at_task_boundaries", ForgetsItsState),
    ("resume_within_a_task", HoldsOnToTheModel),
    ("state_in_the_middle_of_a_stage", KeepsCode),
    ("steps_left_out", CountsInTheLoss),
    ("another_process", DrawsFromASet),
    ("unequal_tasks", TwoClassesOnly),
    ("one_class_a_task", NeedsTwoClasses),
    ("batch_norm", OneSampleAtATime),
    ("evaluation_has_no_effect", LearnsWhileTested),
    ("evaluation_before_training", FailsUntrained),
    ("no_leak_at_test", UsesTheBatch),
    ("memory_budget", Hoards),
    ("no_images_kept", KeepsImages),
    ("losses_are_finite", NotANumber),
    ("model_untouched_by_task_ends", TouchesTheModel),
    ("optimizer", ReplacesParameters),
]


def test_there_is_a_broken_strategy_for_every_check() -> None:
    assert {check for check, _ in BROKEN} == set(CHECKS)


@pytest.mark.parametrize(("check", "broken"), BROKEN, ids=[f"{c}-{b.__name__}" for c, b in BROKEN])
def test_check_catches_a_strategy_broken_that_way(check: str, broken: type[Strategy]) -> None:
    (outcome,) = check_strategy(broken, checks=[check])
    assert outcome.status == "failed", outcome
    assert outcome.reason


def test_a_healthy_strategy_of_ones_own_passes() -> None:
    outcomes = check_strategy(Healthy)
    assert [o for o in outcomes if o.status == "failed"] == []


def test_a_check_can_be_declared_not_applicable_with_a_reason() -> None:
    class Declared(TouchesTheModel):
        """Says that it touches the model, and why."""

        traits = replace(
            TouchesTheModel.traits,
            not_applicable={"model_untouched_by_task_ends": "aligning the weights is the method"},
        )

    (outcome,) = check_strategy(Declared, checks=["model_untouched_by_task_ends"])
    assert (outcome.status, outcome.reason) == ("not applicable", "aligning the weights is the method")
