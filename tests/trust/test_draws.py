"""The draws of a user's code from the global streams of torch, NumPy and Python are functions of the run's seed."""

import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from shared import StopAt, StoppedError

import clbench
from clbench import Strategy, Traits
from clbench.models import build_model
from clbench.running.resolve import prepare, resolve
from clbench.tools.conformance import check_strategy

SMALL: dict[str, Any] = {"model": "mlp:8", "batch_size": 8}
DRAWS = {
    "NumPy": lambda: float(np.random.rand()),
    "Python": random.random,
    "torch": lambda: float(torch.rand(())),
}
HOOKS = ("begin_run", "begin_task", "stages", "before", "loss", "after_step", "features", "end_task", "scores")


class Draws(Strategy):
    """Draws a number from each global stream in every hook; all of them reach the loss."""

    traits = Traits(family="replay")
    trace: ClassVar[dict[Any, list[float]]] = {}

    def draw(self, hook: str) -> float:
        p = self.progress
        values = [draw() for draw in DRAWS.values()]
        self.trace[hook, p.task, p.stage, p.epoch, p.step] = values
        return sum(values)

    def begin_run(self) -> None:
        self.factor = 1 + self.draw("begin_run")

    def begin_task(self, task: Any) -> None:
        self.factor += self.draw("begin_task")

    def stages(self, task: Any) -> Any:
        self.factor += self.draw("stages")
        return [clbench.Stage(self.with_exemplars(task.train), before=self.before)]

    def before(self) -> None:
        self.factor += self.draw("before")

    def loss(self, batch: Any) -> Any:
        factor = self.draw("loss") + self.factor
        return factor / 10 * self.classification_loss(self.model(batch.images), batch)

    def after_step(self, batch: Any) -> None:
        self.factor += self.draw("after_step") / 10

    def features(self, images: Any) -> Any:
        self.factor += self.draw("features")
        return super().features(images)

    def end_task(self, task: Any) -> None:
        self.factor = 1 + self.draw("end_task")

    def scores(self, images: Any, task: int | None = None) -> Any:
        noise = self.draw("scores")
        return self.model(images) + noise * torch.randn(images.shape[0], 1, device=images.device)


def traced(run: Any, **options: Any) -> tuple[dict[Any, list[float]], Any]:
    Draws.trace = {}
    for generator in (lambda: random.seed(), lambda: np.random.seed(), lambda: torch.seed()):
        generator()  # the caller's streams are anywhere
    result = run(Draws, **SMALL | options)
    return Draws.trace, result


def weights(folder: Path) -> Any:
    return torch.load(folder / "model.pt", weights_only=True)


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(v, weights(other)[k]) for k, v in weights(one).items())


@pytest.mark.parametrize("memory", [{}, {"memory_size": 6, "memory_policy": "herding"}], ids=["naive", "herding"])
def test_two_runs_draw_the_same_in_every_hook_and_another_seed_draws_others(
    memory: Any, run: Any, tmp_path: Path
) -> None:
    one, first = traced(run, out=tmp_path / "one", **memory)
    other, second = traced(run, out=tmp_path / "other", **memory)
    assert one == other
    assert {hook for hook, *_ in one} == set(HOOKS) - (set() if memory else {"features"})
    assert first.record["classifiers"] == second.record["classifiers"]
    assert same(tmp_path / "one", tmp_path / "other")
    third, _ = traced(run, seed=1, **memory)
    assert third.keys() == one.keys()
    assert all(third[key] != one[key] for key in one)


@pytest.mark.parametrize(("task", "step"), [(1, 2), (1, None), (0, 2)])
def test_a_resumed_run_draws_the_same(task: int, step: int | None, run: Any, tmp_path: Path) -> None:
    memory = {"memory_size": 6, "memory_policy": "herding", "checkpoint_every": "1-steps", "eval_every": "epoch"}
    whole, first = traced(run, out=tmp_path / "whole", **memory)
    with pytest.raises(StoppedError):
        traced(run, out=tmp_path / "resumed", observer=StopAt(task, step), **memory)
    resumed, second = traced(run, out=tmp_path / "resumed", resume=True, **memory)
    assert resumed
    assert all(whole[key] == values for key, values in resumed.items())
    assert first.record["classifiers"] == second.record["classifiers"]
    assert same(tmp_path / "whole", tmp_path / "resumed")


def test_evaluations_and_validation_change_no_draw_of_training(run: Any, tmp_path: Path) -> None:
    once, _ = traced(run, out=tmp_path / "once", epochs=2)
    often, _ = traced(run, out=tmp_path / "often", epochs=2, eval_every=1)
    training = [key for key in once if key[0] != "scores"]
    assert all(once[key] == often[key] for key in training)
    assert same(tmp_path / "once", tmp_path / "often")


def test_an_interrupted_validation_draws_the_same(run: Any, cut: Any, tmp_path: Path) -> None:
    """Stopped after the last step of an epoch, before the validation whose noise decides where training stops."""
    options = {"validation": 0.3, "patience": 1, "epochs": 3, "checkpoint_every": "1-steps"}
    scenario = cut(validation=options.pop("validation"))
    traced(run, scenario=scenario, out=tmp_path / "whole", **options)
    with pytest.raises(StoppedError):
        traced(run, scenario=scenario, out=tmp_path / "resumed", observer=StopAt(1, 2), **options)
    traced(run, scenario=scenario, out=tmp_path / "resumed", resume=True, **options)
    assert same(tmp_path / "whole", tmp_path / "resumed")


def test_what_a_step_draws_does_not_depend_on_what_was_drawn_before(run: Any) -> None:
    """One strategy draws a thousand numbers more in its first step; the later steps of both draw the same."""

    class Greedy(Draws):
        def after_step(self, batch: Any) -> None:
            if (self.progress.task, self.progress.step) == (0, 0):
                np.random.rand(1000)
                [random.random() for _ in range(1000)]
                torch.rand(1000)
            super().after_step(batch)

    one, _ = traced(run)
    Greedy.trace = Draws.trace = {}
    run(Greedy, **SMALL)
    other = Draws.trace
    later = [key for key in one if key[0] == "loss" and key[1:] != (0, "train", 0, 0)]
    assert len(later) == 14
    assert all(one[key] == other[key] for key in later)


NOISY = """
import random
from typing import Annotated

import clbench
import numpy as np
import torch
from pydantic import Field


class Noisy(clbench.ScenarioSpec):
    preset = {"epochs": 1, "model": "mlp:8", "optimizer": "sgd", "lr": 0.1, "batch_size": 8}
    noise: Annotated[int, Field(ge=0, le=100)] = 40

    def build(self, config):
        def draw(n):
            labels = np.arange(4).repeat(n)
            noise = np.random.randint(0, self.noise + 1, (len(labels), 8, 8))
            noise = noise + int(random.random() * 50) + int(torch.rand(()) * 50)
            return (40 * labels[:, None, None] + noise).clip(0, 255).astype(np.uint8), labels

        data = clbench.scenarios.dataset_from_arrays(*draw(8), *draw(4), name="noisy")
        return clbench.scenarios.split(data, tasks=2, setting=self.setting, name=config.scenario)
"""


def test_a_scenario_that_draws_is_the_same_for_every_seed_and_moves_no_stream_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package declares a scenario whose images come from the global streams."""
    (tmp_path / "noisy_scenario.py").write_text(NOISY, "utf-8")
    declared = tmp_path / "noisy-1.0.dist-info"
    declared.mkdir()
    (declared / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n", "utf-8")
    (declared / "entry_points.txt").write_text("[clbench.scenarios]\nnoisy = noisy_scenario:Noisy\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def built(seed: int) -> tuple[Any, list[float]]:
        start(seed)
        _, scenario = prepare(resolve("noisy", "naive", {"seed": seed}))
        return scenario.train.images, [draw() for draw in DRAWS.values()]

    (one, first), (other, _) = built(3), built(4)
    assert torch.equal(one, other)
    assert len(one.unique()) > 10
    start(3)
    assert first == [draw() for draw in DRAWS.values()]


def start(seed: int) -> None:
    """Put the caller's streams at a place."""
    for begin in (random.seed, np.random.seed, torch.manual_seed):
        begin(seed)


def test_building_a_network_moves_no_stream_of_the_caller() -> None:
    start(5)
    expected = [draw() for draw in DRAWS.values()]
    start(5)
    build_model("mlp:8", (1, 8, 8), 0)
    assert [draw() for draw in DRAWS.values()] == expected


# The conformance kit finds draws that no seed reaches.


class FromTheSystem(Strategy):
    """Draws from the system's own source."""

    traits = Traits(family="reference")

    def loss(self, batch: Any) -> Any:
        import os

        noise = int.from_bytes(os.urandom(2)) / 65536
        return self.classification_loss(self.model(batch.images + noise), batch)


class FromSecrets(Strategy):
    """Draws from `secrets`."""

    traits = Traits(family="reference")

    def loss(self, batch: Any) -> Any:
        import secrets

        return self.classification_loss(self.model(batch.images + secrets.randbelow(1000) / 1000), batch)


class FromUuid(Strategy):
    """Draws from random UUIDs."""

    traits = Traits(family="reference")

    def loss(self, batch: Any) -> Any:
        import uuid

        return self.classification_loss(self.model(batch.images + uuid.uuid4().int % 1000 / 1000), batch)


class FromTheClock(Strategy):
    """Draws from the time of day."""

    traits = Traits(family="reference")

    def loss(self, batch: Any) -> Any:
        import time

        return self.classification_loss(self.model(batch.images + time.time_ns() // 100 % 1000 / 1000), batch)


class FromAnUnseededGenerator(Strategy):
    """Draws from a generator of NumPy without a seed."""

    traits = Traits(family="reference")

    def begin_run(self) -> None:
        self.chance = np.random.default_rng()

    def loss(self, batch: Any) -> Any:
        return self.classification_loss(self.model(batch.images + float(self.chance.random())), batch)


class FromAnAddress(Strategy):
    """Draws from the addresses of objects in memory."""

    traits = Traits(family="reference")

    def loss(self, batch: Any) -> Any:
        noise = id(batch) // 16 % 1000 / 1000
        return self.classification_loss(self.model(batch.images + noise), batch)


@pytest.mark.parametrize(
    "broken", [FromTheSystem, FromSecrets, FromUuid, FromTheClock, FromAnUnseededGenerator, FromAnAddress]
)
def test_the_kit_finds_what_no_seed_reaches(broken: type[Strategy]) -> None:
    (outcome,) = check_strategy(broken, checks=["determinism"])
    assert (outcome.status, outcome.reason) == ("failed", "the same config gave another matrix")


def test_the_kit_passes_what_draws_from_the_global_streams() -> None:
    checks = ["determinism", "resume_at_task_boundaries", "resume_within_a_task", "evaluation_has_no_effect"]
    outcomes = check_strategy(Noisy, checks=checks)
    assert [(o.status, o.reason) for o in outcomes] == [("passed", "")] * len(checks)


class Noisy(Strategy):
    """Adds noise of all three streams to the images of a step."""

    traits = Traits(family="reference")

    def loss(self, batch: Any) -> Any:
        noise = np.random.rand() + random.random()
        return self.classification_loss(self.model(batch.images + noise + torch.rand(())), batch)


@pytest.mark.slow
def test_a_comparison_over_two_processes_draws_the_same(tiny: Any, tmp_path: Path) -> None:
    options: Any = {"seeds": 2, "epochs": 1, "limit": 10, "model": "mlp:8", "threads": 1}
    file = f"{__file__}:Noisy"
    found = [
        clbench.compare("split-mnist-5k", [file], out=tmp_path / str(jobs), jobs=jobs, **options) for jobs in (1, 2)
    ]
    assert [r.record["classifiers"] for r in found[0]] == [r.record["classifiers"] for r in found[1]]
