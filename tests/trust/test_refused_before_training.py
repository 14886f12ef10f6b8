"""Extreme requests: each ends done, or is refused in one sentence before the first step of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import network_of, optimizer_steps

import clbench
from clbench import ConfigError, RunError, Stage, Strategy, Traits
from clbench.cli import main
from clbench.config.registry import entry_point_names
from clbench.data.scenario import Scenario
from clbench.running.check import check
from clbench.running.resolve import resolve, strategy_class
from clbench.scenarios import dataset_from_arrays, split

NAMES = entry_point_names("clbench.strategies")
BN = "mlp:4[batch_norm=true]"
PLAIN: dict[str, Any] = {"model": "mlp:4", "epochs": 1, "batch_size": 4, "lr": 0.05, "threads": 1}


def stripes(n: int = 6, side: int = 6, **options: Any) -> Scenario:
    """Return a scenario of 4 classes of n training and 3 test images, side x side pixels, by default of 2 tasks."""
    draw = np.random.default_rng(0)

    def images(k: int) -> Any:
        labels = np.arange(4).repeat(k)
        bright = 60 * labels[:, None, None] + draw.integers(0, 50, (4 * k, side, side))
        return bright.astype(np.uint8), labels

    return split(dataset_from_arrays(*images(n), *images(3), name="stripes"), **({"tasks": 2} | options))


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the steps of all optimizers of torch."""
    steps = [0]

    def step(*_: Any) -> None:
        steps[0] += 1

    with optimizer_steps(before=step):
        yield steps


def outcome(name: str, scenario: Scenario, out: Path, **options: Any) -> str:
    """Return "done", or why it was refused; anything else fails the test."""
    memory = options.pop("memory_size", None)
    if memory is not None and strategy_class(name).traits.memory != "none":
        options["memory_size"] = memory
    reason = ""
    with counted() as steps:
        try:
            result = clbench.run(scenario, name, out=out, **(PLAIN | options | network_of(name)))
        except ConfigError as error:
            reason = str(error)
    if reason:
        assert (steps, reason.isprintable(), (out / "run.json").exists()) == ([0], True, False)
        return reason
    assert np.isfinite(result.accuracy[-1]).all()
    return result.status


# Each request: training images of a class, pixels of a side, how it is cut, and options of the run.
REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one image a class": ({"n": 1}, {"memory_size": 1}),
    "one image a task": ({"n": 1, "tasks": 4}, {"memory_size": 1}),
    "one at a time": ({"n": 1, "tasks": 4}, {"memory_size": 1, "batch_size": 1}),
    "two images a class, one exemplar": ({"n": 2}, {"memory_size": 1, "model": BN}),
    "one image a task, batch norm": ({"n": 1, "tasks": 4}, {"memory_size": 1, "model": BN}),
    "two images a task, batch norm": ({"n": 2, "tasks": 4}, {"memory_size": 1, "model": BN}),
    "one at a time, batch norm": ({}, {"memory_size": 4, "model": BN, "batch_size": 1}),
    "three in batches of two, batch norm": ({"n": 3, "tasks": 4}, {"memory_size": 3, "model": BN, "batch_size": 2}),
    "one step": ({}, {"memory_size": 2, "epochs": None, "iterations": 1}),
    "one pixel": ({"side": 1}, {"memory_size": 4}),
    "one pixel, convolutions": ({"side": 1, "n": 2}, {"memory_size": 2, "model": "conv:2-2"}),
    "one task": ({"tasks": 1, "n": 2}, {"memory_size": 2, "model": BN}),
    "half held out": ({"n": 2, "validation": 0.5}, {"memory_size": 2, "patience": 1}),
    "no whole batch": ({"n": 3}, {"memory_size": 2, "drop_last": True, "batch_size": 5}),
    "larger than the data": ({}, {"memory_size": 1000, "batch_size": 1000}),
}
FAST = ("one image a class", "one image a task, batch norm", "two images a class, one exemplar", "one step")


def cells() -> Iterator[Any]:
    for request, (made, _) in REQUESTS.items():
        for name in NAMES:
            settings = strategy_class(name).traits.settings
            for setting in settings:
                if setting != "class" and made.get("tasks") == 4:
                    continue  # a task of one class is refused in these settings anyway
                quick = request in FAST and setting == settings[0]
                yield pytest.param(request, name, setting, marks=[] if quick else [pytest.mark.soak])


@pytest.mark.parametrize(("request_", "name", "setting"), list(cells()))
def test_every_strategy_is_done_or_refuses_before_the_first_step(
    request_: str, name: str, setting: str, tmp_path: Path
) -> None:
    made, options = REQUESTS[request_]
    outcome(name, stripes(setting=setting, **made), tmp_path / "run", **options)


@pytest.mark.parametrize("name", NAMES)
def test_one_image_at_a_time_is_enough_without_batch_norm(name: str, tmp_path: Path) -> None:
    """BiC alone holds an image of each class out, so that none would be left."""
    setting = strategy_class(name).traits.settings[0]
    scenario = stripes(n=1, setting=setting)
    found = outcome(name, scenario, tmp_path / "run", memory_size=1, batch_size=1)
    assert found == "done" or (name == "bic" and "none of the 2 of task 1" in found)


# The requests that began to train, and ended in the words of another


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (f"naive --model {BN} --batch-size 1", ["batch_size=1", BN, "batch norm needs two"]),
        (f"naive --model {BN} --limit 1 --tasks 10", ["task 0 has one training image", "batch norm needs two"]),
        (f"gdumb --model {BN} --memory-size 1", ["gdumb", "one image", "batch norm needs two"]),
        (f"gdumb --model {BN} --memory-per-class 1 --tasks 10", ["gdumb", "one image", "batch norm needs two"]),
        (f"agem[reference_size=1] --model {BN}", ["reference_size=1", "batch norm needs two"]),
        ("bic --limit 1", ["bic", "task 1"]),
        ("naive --iterations 0", ["iterations=0"]),
        ("naive --epochs 0", ["epochs=0"]),
        ("naive --validation 0.9 --limit 1", ["validation=0.9", "none to train on"]),
        ("naive --patience 1", ["validation"]),
        ("naive --drop-last --batch-size 9 --limit 4", ["drop_last", "8 training images"]),
        ("naive --setting task --tasks 10", ["one class"]),
    ],
)
def test_a_request_that_cant_be_met_is_one_line_and_exit_code_2(
    arguments: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with counted() as steps, pytest.raises(SystemExit) as ended:
        main(["run", "split-mnist-5k", *arguments.split(), "--out", str(tmp_path / "run"), "--threads", "1"])
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n"), steps) == (2, 1, [0])
    assert not [word for word in words if word not in error], error


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        # Frozen from the start, batch norm needs no second image.
        ("naive", {"train": "head", "batch_size": 1}),
        ("joint", {}),
    ],
)
def test_batch_norm_that_needs_no_second_image_is_no_reason(
    strategy: str, options: dict[str, Any], tmp_path: Path
) -> None:
    scenario = stripes(tasks=4)
    if strategy == "joint":
        # A later task of one image stands beside the images of the first.
        few = scenario.tasks[3]
        scenario.tasks[3] = replace(few, train=few.train.subset(torch.tensor([0])))
    assert outcome(strategy, scenario, tmp_path / "run", model=BN, **options) == "done"


def test_a_convolution_that_has_more_than_one_pixel_left_takes_one_image(tmp_path: Path) -> None:
    scenario = stripes(n=1, tasks=4)
    assert outcome("naive", scenario, tmp_path / "a", model="conv:2-2") == "done"
    # 6, 3, 1 pixels: the third batch norm sees one value a channel.
    assert "one training image" in outcome("naive", scenario, tmp_path / "b", model="conv:2-2-2")


def test_a_strategy_of_ones_own_whose_stage_has_one_image_is_named(tmp_path: Path) -> None:
    class Alone(Strategy):
        traits = Traits(family="replay")

        def stages(self, task: Any) -> list[Stage]:
            return [Stage(task.train), Stage(task.train.subset(torch.tensor([0])), "again")]

    with pytest.raises(RunError, match="stage 'again' of task 0 has a batch of one image: batch norm needs two"):
        clbench.run(stripes(), Alone, out=tmp_path / "run", **(PLAIN | {"model": BN}))
    assert clbench.run(stripes(), Alone, out=tmp_path / "other", **PLAIN).status == "done"


# A scenario of one's own


def broken(**changes: Any) -> Scenario:
    return replace(stripes(), **changes)


def without_images(task: int) -> Scenario:
    scenario = stripes()
    part = scenario.tasks[task]
    scenario.tasks[task] = replace(part, train=part.train.subset(torch.arange(0)))
    return scenario


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (lambda: broken(std=(0.0,)), ["std=(0.0,)", "above 0"]),
        (lambda: broken(std=(float("nan"),)), ["std=(nan,)"]),
        (lambda: broken(std=(float("inf"),)), ["std=(inf,)"]),
        (lambda: broken(mean=(float("nan"),)), ["mean=(nan,)"]),
        (
            lambda: broken(train=replace(stripes().train, images=stripes().train.images / 255)),
            ["torch.float32", "uint8"],
        ),
        (lambda: broken(test=replace(stripes().test, images=stripes().test.images.long())), ["torch.int64", "uint8"]),
        (lambda: without_images(0), ["task 0", "no training image"]),
        (lambda: without_images(1), ["task 1", "no training image"]),
    ],
)
def test_a_scenario_whose_images_are_no_numbers_is_refused(
    scenario: Any, words: list[str], tmp_path: Path, refused: Any
) -> None:
    with counted() as steps, refused(*words):
        clbench.run(scenario(), "naive", out=tmp_path / "run", **PLAIN)
    assert steps == [0]


def test_a_data_set_of_one_grey_is_trained_on(tmp_path: Path) -> None:
    """Its deviation is 0, and what is divided by is not."""
    grey = np.full((8, 6, 6), 7, np.uint8)
    data = dataset_from_arrays(grey, np.arange(8) % 4, grey, np.arange(8) % 4, name="grey")
    assert outcome("naive", split(data, tasks=2), tmp_path / "run") == "done"


@pytest.mark.parametrize("name", NAMES)
def test_checking_a_usual_request_builds_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every claim is checked where they are listed, so a check has to cost next to nothing.

    A check of a transformer looks at its blocks, which are made without numbers.
    """
    scenario = stripes(setting=strategy_class(name).traits.settings[0])
    memory = {"memory_size": 4} if strategy_class(name).traits.needs_memory else {}
    config = resolve(scenario, name, PLAIN | network_of(name) | memory)
    monkeypatch.setattr("clbench.learning.strategy.build_model", lambda *_: pytest.fail("built"))
    check(config, scenario, strategy_class(name)(**config.strategy_options))
