"""Accuracy while a stream goes by: on the classes seen so far, and on samples that come some steps later.

The numbers are computed again from the weights that each step began with, by a plain loop over the samples.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clbench
from clbench.results.result import Result
from clbench.strategies.naive import Naive

FIELDS: dict[str, Any] = {"limit": 12, "model": "mlp:8", "threads": 1, "tasks": 3, "online": True, "batch_size": 7}


def watched(out: Path, **more: Any) -> tuple[Result, list[Any], Any]:
    """A run, what its steps began with and learnt (task, model, images, labels), and the strategy at its end."""
    kept: list[Any] = []
    latest: list[Any] = []

    class Watched(Naive):
        def loss(self, batch: Any) -> Any:
            kept.append((self.progress.task, copy.deepcopy(self.model).eval(), batch.images, batch.labels))
            return super().loss(batch)

        def end_task(self, task: Any) -> None:
            latest[:] = [self]

    result = clbench.run("split-mnist-5k", Watched, out=out, **(FIELDS | more))
    return result, kept, latest[0]


@pytest.mark.parametrize("stream", [{}, {"disjoint": 0.3, "blurry": 0.5}], ids=["sharp", "blurry"])
@pytest.mark.parametrize("delay", [0, 1, 4, 1000])
def test_near_future_accuracy_is_that_of_the_model_some_steps_before(stream: Any, delay: int, tmp_path: Path) -> None:
    result, kept, last = watched(tmp_path, near_future=delay, **stream)
    scenario = last._context.scenario
    right = tested = 0
    for task in range(3):
        steps = [step for step in kept if step[0] == task]
        seen = scenario.n_outputs if stream else scenario.seen_outputs(task)
        for place, (_, _, images, labels) in enumerate(steps):
            before = steps[max(place - delay, 0)][1]
            with torch.no_grad():
                right += int((before(images)[:, :seen].argmax(1) == labels).sum())
            tested += len(labels)
    assert tested == 120
    assert result.metrics["near_future_accuracy"] == pytest.approx(right / tested)
    assert result.summary()["near_future_accuracy"] == result.metrics["near_future_accuracy"]
    if delay == 0:
        asked = clbench.run("split-mnist-5k", "naive", out=tmp_path / "o", online_accuracy=True, **FIELDS, **stream)
        assert asked.metrics["average_online_accuracy"] == result.metrics["near_future_accuracy"]


@pytest.mark.parametrize("stream", [{}, {"disjoint": 0.3, "blurry": 0.5}], ids=["sharp", "blurry"])
@pytest.mark.parametrize("every", [7, 25, 60])
def test_anytime_accuracy_is_that_on_the_classes_that_have_come(stream: Any, every: int, tmp_path: Path) -> None:
    result, kept, last = watched(tmp_path, anytime=every, **stream)
    scenario, pipeline = last._context.scenario, last._context.pipeline
    ids = torch.cat([task.test.ids for task in scenario.tasks])
    images = torch.cat([part for part, _, _ in pipeline.test_passes(ids)])
    labels = scenario.test.labels[ids]
    seen: set[int] = set()
    expected, samples, after = [], 0, [model for _, model, _, _ in kept[1:]] + [last.model.eval()]
    for (_, _, _, learnt), model in zip(kept, after, strict=True):
        seen |= set(learnt.tolist())
        if (samples + len(learnt)) // every > samples // every:
            outputs = sorted(seen)
            asked = torch.isin(labels, torch.tensor(outputs))
            with torch.no_grad():
                guess = torch.tensor(outputs)[model(images[asked])[:, outputs].argmax(1)]
            expected.append((samples + len(learnt), float((guess == labels[asked]).double().mean())))
        samples += len(learnt)
    found = [(point["samples"], point["accuracy"]) for point in result.record["anytime"]]
    assert len(found) > 1
    assert found == [(n, pytest.approx(value)) for n, value in expected]
    assert result.metrics["anytime_accuracy"] == pytest.approx(np.mean([value for _, value in expected]))


def test_they_change_no_training_and_go_on_where_a_run_was_left(tmp_path: Path) -> None:
    """A memory, a loss with draws and dropout; the run is ended in the middle of its second task."""
    fields: dict[str, Any] = {"limit": 12, "model": "mlp:8", "threads": 1, "tasks": 3, "online": True}
    fields |= {"memory_size": 10, "checkpoint_every": "1-steps"}
    asked = {"anytime": 20, "near_future": 3, "online_accuracy": True}
    options = {"strategy_options": {"view": "crop", "replayed": 5}}

    class End(clbench.Observer):
        def step(self, progress: Any, loss: Any) -> None:
            if (progress.task, progress.step) == (1, 3):
                raise KeyboardInterrupt

    plain = clbench.run("split-mnist-5k", "scr", out=tmp_path / "plain", **fields, **options)
    whole = clbench.run("split-mnist-5k", "scr", out=tmp_path / "whole", **fields, **asked, **options)
    with pytest.raises(KeyboardInterrupt):
        clbench.run("split-mnist-5k", "scr", out=tmp_path / "halves", observer=End(), **fields, **asked, **options)
    halves = clbench.run("split-mnist-5k", "scr", out=tmp_path / "halves", resume=True, **fields, **asked, **options)
    assert np.array_equal(plain.accuracy, whole.accuracy, equal_nan=True)
    assert halves.record["metrics"] == whole.record["metrics"]
    assert halves.record["anytime"] == whole.record["anytime"]
    assert "anytime" not in plain.record


@pytest.mark.parametrize("strategy", ["joint", "gdumb"])
def test_who_does_not_learn_samples_as_they_come_is_tested_after_each_task_alone(strategy: str, tmp_path: Path) -> None:
    fields = {"disjoint": 1.0, "limit": 5, "model": "mlp:8", "threads": 1}
    result = clbench.run("split-mnist-5k", strategy, out=tmp_path, anytime=10, **fields)
    assert result.metrics["anytime_accuracy"] is None
    assert "anytime" not in result.record
    assert any(one["rule"] == "no-anytime-accuracy" for one in result.record["warnings"])


def test_an_average_over_the_stream_needs_every_task(tmp_path: Path) -> None:
    """slda takes steps in the first task alone, and an average over its samples is none over the stream."""
    fields = {"online": True, "limit": 5, "model": "mlp:8", "threads": 1, "anytime": 5, "near_future": 1}
    result = clbench.run("split-mnist-5k", "slda", out=tmp_path, online_accuracy=True, **fields)
    assert result.record["tasks"][0]["online_accuracy"] is not None
    for name in ("average_online_accuracy", "near_future_accuracy", "anytime_accuracy"):
        assert result.metrics[name] is None
    (told,) = [one["text"] for one in result.record["warnings"] if one["rule"] == "not-tested-on-the-way"]
    assert "tasks 1 to 4 are learnt in no step" in told


@pytest.mark.parametrize(
    ("strategy", "fields", "words"),
    [
        ("naive", {"setting": "task"}, ("anytime=10", "naive", "task")),
        ("xdg", {"setting": "task"}, ("anytime=10", "xdg")),
        ("naive", {"anytime": 0}, ("anytime=0",)),
        ("naive", {"near_future": -1}, ("near_future=-1",)),
    ],
)
def test_who_is_told_the_task_is_refused(
    strategy: str, fields: dict[str, Any], words: Any, refused: Any, tmp_path: Path
) -> None:
    with refused(*words):
        clbench.run("split-mnist-5k", strategy, out=tmp_path, **({"limit": 5, "epochs": 1, "anytime": 10} | fields))
