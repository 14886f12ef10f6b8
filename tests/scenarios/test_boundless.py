"""Streams without boundaries (Si-Blurry): which images come when, and who is refused because it would have to know."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clbench
from clbench.config.errors import ConfigError
from clbench.config.registry import entry_point_names
from clbench.running.check import check
from clbench.running.resolve import prepare, resolve, strategy_class
from clbench.scenarios import dataset_from_arrays, split


def cut(tasks: int = 3, **options: Any) -> Any:
    """Six classes of 20 images, which are 2 x 2 pixels."""
    y = np.arange(6).repeat(20)
    x = np.arange(len(y), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return split(dataset_from_arrays(x, y, 255 - x, y), tasks=tasks, **options)


@pytest.mark.parametrize(
    ("tasks", "disjoint", "blurry", "own"),
    [
        # One of the two classes of a task is its own: 20 + 10 that stay + a third of 3 x 10 that are dealt out.
        (3, 0.5, 0.5, {0, 2, 4}),
        # All classes are blurry: of each task's 40 images 10 are dealt out.
        (3, 0.0, 0.25, set()),
        # A third of six classes, of which the second task's share begins at 3 * 1/3 = 1: one of each three.
        (2, 1 / 3, 0.5, {0, 3}),
        # Six tasks of a class: 0.5 * 1 rounds down to none of the first and 0.5 * 2 to one of the first two.
        (6, 0.5, 0.5, {1, 3, 5}),
    ],
)
def test_disjoint_classes_stay_and_a_share_of_the_others_is_dealt_out(
    tasks: int, disjoint: float, blurry: float, own: set[int]
) -> None:
    made = cut(tasks, disjoint=disjoint, blurry=blurry)
    assert made.boundless
    ids = torch.cat([task.train.ids for task in made.tasks])
    assert sorted(ids.tolist()) == list(range(120))
    elsewhere = 0
    for task in made.tasks:
        foreign = set(task.train.classes.tolist()) - set(task.classes)
        assert not foreign & own
        for c in task.classes:
            here = int((task.train.classes == c).sum())
            assert here == 20 if c in own else here >= round(20 * (1 - blurry)) - 20 // tasks
        elsewhere += int((~torch.isin(task.train.classes, torch.tensor(task.classes))).sum())
    dealt = round(blurry * 20) * (6 - len(own))
    # A part that is dealt out comes back to its own task by chance: one in `tasks`.
    assert 0.4 * dealt * (1 - 1 / tasks) < elsewhere <= dealt
    if tasks == 3:
        assert {len(task.train) for task in made.tasks} == {40}
    assert (made.train.tasks[ids] == torch.cat([task.train.tasks for task in made.tasks])).all()


def test_the_class_order_seed_draws_the_stream() -> None:
    def views(**options: Any) -> list[list[int]]:
        return [task.train.ids.tolist() for task in cut(disjoint=0.0, blurry=0.5, **options).tasks]

    assert views() == views(seed=3) == views(class_order_seed=None)
    order = list(range(6))
    assert views(class_order=order) == views()
    assert views(class_order=order, class_order_seed=1) != views()


def test_all_classes_disjoint_is_the_plain_split_without_boundaries() -> None:
    plain, stream = cut(), cut(disjoint=1.0)
    for one, other in zip(plain.tasks, stream.tasks, strict=True):
        assert torch.equal(one.train.ids, other.train.ids)
        assert torch.equal(one.test.ids, other.test.ids)
    assert stream.boundless
    assert not plain.boundless
    assert plain.digest() != stream.digest()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"disjoint": 0.5}, ("disjoint=0.5", "blurry=0", "disjoint=1")),
        ({"disjoint": 1.0, "blurry": 0.5}, ("disjoint=1", "blurry=0.5")),
        ({"disjoint": 1.5}, ("disjoint=1.5", "0 to 1")),
        ({"disjoint": -0.1, "blurry": 0.1}, ("disjoint=-0.1", "0 to 1")),
        ({"disjoint": float("nan"), "blurry": 0.1}, ("disjoint=nan",)),
        ({"disjoint": 1.0, "setting": "task"}, ("task-incremental", "setting=class")),
    ],
)
def test_a_stream_that_makes_no_sense_is_refused(options: dict[str, Any], words: Any, refused: Any) -> None:
    with refused(*words):
        cut(**options)


# The references joint and cumulative read all data, whatever the boundaries.
FREE = {"naive", "joint", "cumulative", "er", "er-ace", "er-aml", "mir", "der", "derpp", "scr", "gdumb"}
FREE |= {"cbp", "l2-init"}
# They run where the user says how: a memory that is filled as the stream goes by, or weights.
WITH_OPTIONS = {"agem": "memory_policy", "slda": "weights", "frozen-ncm": "weights"}


@pytest.mark.parametrize("name", entry_point_names("clbench.strategies"))
def test_who_needs_boundaries_is_refused_by_name(name: str) -> None:
    traits = strategy_class(name).traits
    asked = {"disjoint": 0.5, "blurry": 0.1, "limit": 2}
    if "class" not in traits.settings or traits.needs_transformer:
        assert traits.needs_boundaries
        return

    def try_it(**more: Any) -> None:
        config, scenario = prepare(resolve("split-mnist-5k", name, asked | more))
        check(config, scenario, strategy_class(name)(**config.strategy_options))

    if name in FREE:
        try_it()
        return
    with pytest.raises(ConfigError) as error:
        try_it()
    if name in WITH_OPTIONS:
        assert WITH_OPTIONS[name] in str(error.value)
    elif name not in str(error.value):
        # Other things that the strategy can't do were said first.
        assert traits.needs_boundaries
    else:
        assert "acts where tasks begin or end" in str(error.value) or traits.needs_boundaries
    if name == "agem":
        try_it(memory_policy="reservoir")


@pytest.mark.parametrize(
    ("strategy", "fields", "words"),
    [
        ("er", {"epochs": 2}, ("epochs=2", "epochs=1")),
        ("er", {"iterations": 5}, ("epochs=None", "epochs=1")),
        ("er", {"budget": "flops=1e9"}, ("budget=flops=", "a budget of bytes is accepted")),
        ("er", {"optimizer_state": "reset"}, ("optimizer_state=reset", "keep")),
        ("er", {"schedule": "cosine"}, ("schedule",)),
        ("er", {"lr_warmup": 1}, ("schedule",)),
        ("er", {"patience": 2, "validation": 0.5}, ("patience=2",)),
        ("er", {"per_task": [{"lr": 0.1}] * 5}, ("per_task",)),
        ("er", {"memory_policy": "herding"}, ("memory_policy='herding'", "reservoir")),
        ("er", {"head": "growing", "loss_outputs": "seen"}, ("loss_outputs", "head='full'")),
        ("naive", {"memory_size": 10}, ("naive", "memory_size")),
    ],
)
def test_what_would_tell_a_boundary_is_refused(
    strategy: str, fields: dict[str, Any], words: Any, refused: Any, tmp_path: Path
) -> None:
    with refused(*words):
        clbench.run("split-mnist-5k", strategy, out=tmp_path, disjoint=1.0, limit=5, **fields)


@pytest.mark.parametrize("name", ["naive", "er", "scr", "gdumb"])
def test_a_stream_runs_by_itself(name: str, tmp_path: Path) -> None:
    """One option is enough: the training is that of `online`, with outputs for all classes."""
    result = clbench.run(
        "split-mnist-5k", name, out=tmp_path, disjoint=0.5, blurry=0.2, limit=10, model="mlp:8", threads=1
    )
    config = result.record["config"]
    assert (config["epochs"], config["batch_size"], config["head"]) == (1, 10, "full")
    assert (config["loss_outputs"], config["optimizer_state"]) == ("all", "keep")
    assert np.isfinite(result.accuracy[-1]).all()


def test_a_handed_over_stream_has_the_same_training(tmp_path: Path) -> None:
    result = clbench.run(cut(disjoint=0.5, blurry=0.5), "er", out=tmp_path, model="mlp:8", threads=1)
    assert (result.record["config"]["epochs"], result.record["config"]["head"]) == (1, "full")


def test_a_memory_is_told_nothing_of_what_will_come(tmp_path: Path) -> None:
    told = {}
    for disjoint in (None, 1.0):
        seen = []

        class Spy(strategy_class("er")):  # type: ignore[misc]
            def end_task(self, task: Any) -> None:
                seen.append(self.memory._expected is not None)  # noqa: B023

        fields = {"limit": 5, "model": "mlp:8", "threads": 1, "memory_size": 5, "online": True, "disjoint": disjoint}
        clbench.run("split-mnist-5k", Spy, out=tmp_path / str(disjoint), **fields)
        told[disjoint] = seen
    assert told == {None: [True] * 5, 1.0: [False] * 5}
