"""Online accuracy: each new sample is tested just before it is learnt, and nothing else changes by that."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import StopAt, StoppedError
from torch import Tensor

import clbench
from clbench import ConfigError, Strategy, Traits
from clbench.learning.strategy import Stage

FAST: dict[str, Any] = {"limit": 8, "epochs": 2, "batch_size": 5, "threads": 1, "lr": 0.05, "quiet": True}


class Counting(Strategy):
    """Counts by itself, one sample at a time, from the outputs that its loss has computed before the step."""

    traits = Traits(family="reference")

    def begin_run(self) -> None:
        self.right: dict[str, int] = {}

    def loss(self, batch: Any) -> Tensor:
        logits = self.model(batch.images)
        if self.progress.epoch == 0:
            for row, label, task in zip(logits.tolist(), batch.labels.tolist(), batch.tasks.tolist(), strict=True):
                if task == self.progress.task:
                    own = self.outputs_of(task)
                    competing = range(own.start, own.stop) if self.setting == "task" else range(len(row))
                    key = f"{task} {max(competing, key=lambda output, row=row: row[output]) == label}"
                    self.right[key] = self.right.get(key, 0) + 1
        return self.classification_loss(logits, batch)

    def end_task(self, task: Any) -> None:
        for key, n in self.right.items():
            self.log(key, n)


@pytest.mark.parametrize(
    "options",
    [
        {"setting": "class"},
        {"setting": "task"},
        {"setting": "domain"},
        {"setting": "class", "memory_size": 10},
        {"setting": "class", "iterations": 2, "epochs": None},
        {"setting": "class", "blurry": 0.3, "head": "full", "loss_outputs": "all"},
    ],
    ids=str,
)
def test_it_is_the_share_that_the_step_itself_would_have_got_right(options: dict[str, Any], tmp_path: Path) -> None:
    """The test counts in the loss; exemplars, second passes and augmentation are no part of it."""
    asked = {k: v for k, v in {**FAST, "model": "mlp:16", **options}.items() if v is not None}
    result = clbench.run("split-mnist-5k", Counting, out=tmp_path / "run", online_accuracy=True, **asked)
    counts = result.recorded.tasks[-1].logged
    right = [int(counts.get(f"{task} True") or 0) for task in range(5)]
    tested = [right[task] + int(counts.get(f"{task} False") or 0) for task in range(5)]
    assert [task.online_accuracy for task in result.recorded.tasks] == [
        r / n for r, n in zip(right, tested, strict=True)
    ]
    assert sum(tested) == (50 if "iterations" in options else 80)
    assert result.metrics["average_online_accuracy"] == sum(right) / sum(tested)
    assert result.recorded.metrics["average_online_accuracy"] == sum(right) / sum(tested)
    beside = "task_aware" if result.recorded.headline.matrix == "class_incremental" else "class_incremental"
    assert result.summary(matrix=beside)["average_online_accuracy"] is None


def test_an_augmented_image_is_tested_as_it_is(tmp_path: Path) -> None:
    """The network of the test answers whether the first pixel, which a crop by 27 of 28 loses, is the image's own."""
    seen: list[Tensor] = []

    class Seeing(Strategy):
        traits = Traits(family="reference")

        def stages(self, task: Any) -> list[Stage]:
            seen.clear()
            return super().stages(task)

        def scores(self, images: Tensor, task: int | None = None) -> Tensor:
            seen.append(images.clone())
            return super().scores(images)

        def loss(self, batch: Any) -> Tensor:
            if self.progress.epoch == 0:
                assert torch.equal(seen.pop(), self.normalize(batch.originals))
                assert not seen
                assert not torch.equal(batch.images, self.normalize(batch.originals))
            return self.classification_loss(self.model(batch.images), batch)

    asked = {**FAST, "model": "mlp:16", "augment": "crop", "tasks": 2}
    result = clbench.run("split-mnist-5k", Seeing, out=tmp_path / "run", online_accuracy=True, **asked)
    assert all(task.online_accuracy is not None for task in result.recorded.tasks)


HARSH = "mlp:16-16[batch_norm=true,dropout=0.5]"


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("naive", {"augment": "crop-flip", "mixup": 0.4}),
        ("joint", {}),
        ("er", {"memory_size": 10}),
        ("icarl", {"memory_size": 10}),
        ("bic", {"memory_size": 10}),
        ("derpp", {"memory_size": 10, "head": "full", "loss_outputs": "all"}),
        ("lwf", {"optimizer": "adam", "optimizer_state": "keep", "lr": 0.005}),
        ("packnet", {"setting": "task", "model": "mlp:16[dropout=0.5]"}),
        ("naive", {"model": "conv:4-4[dropout=0.5]", "on_nan": "skip", "accumulate": 1}),
    ],
    ids=str,
)
def test_it_changes_no_bit_of_the_training(strategy: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Batch norm, dropout, augmentation, memory and kept statistics are those of the run without it."""
    asked = {**FAST, "tasks": 5, "model": HARSH, **options}
    without, beside = (
        clbench.run("split-mnist-5k", strategy, out=tmp_path / str(on), online_accuracy=on, **asked)
        for on in (False, True)
    )
    assert (tmp_path / "True" / "model.pt").read_bytes() == (tmp_path / "False" / "model.pt").read_bytes()
    assert beside.record["accuracy"] == without.record["accuracy"]
    losses = [[epoch["losses"] for epoch in result.record["training"]] for result in (without, beside)]
    assert losses[0] == losses[1]
    assert beside.metrics["average_online_accuracy"] is not None
    assert without.metrics["average_online_accuracy"] is None
    assert "tested" not in json.dumps(without.record["training"])
    assert "online_accuracy" not in without.record["tasks"][0]


@pytest.mark.parametrize("at", [(0, 2), (2, 2), (3, None)], ids=str)
def test_a_run_that_is_stopped_goes_on_to_the_same_counts(at: Any, tmp_path: Path) -> None:
    """The state is saved after each step, within the first pass, in which the counts are on the device."""
    do = functools.partial(
        clbench.run, "split-mnist-5k", "naive", model=HARSH, online_accuracy=True, checkpoint_every="1-steps", **FAST
    )
    whole = do(out=tmp_path / "whole")
    with pytest.raises(StoppedError):
        do(out=tmp_path / "stopped", observer=StopAt(*at))
    again = do(out=tmp_path / "stopped", resume=True)
    shares = [[task.online_accuracy for task in result.recorded.tasks] for result in (whole, again)]
    assert shares[0] == shares[1]
    assert again.metrics == whole.metrics


def test_a_strategy_that_takes_no_step_has_none_and_says_so(tmp_path: Path) -> None:
    class Resting(Strategy):
        traits = Traits(family="reference")

        def stages(self, task: Any) -> list[Stage]:
            return []

    result = clbench.run("split-mnist-5k", Resting, out=tmp_path / "run", model="mlp:8", online_accuracy=True, **FAST)
    assert [task.online_accuracy for task in result.recorded.tasks] == [None] * 5
    assert result.metrics["average_online_accuracy"] is None
    assert [w.text for w in result.recorded.warnings if w.rule == "not-tested-on-the-way"] == [
        "Resting: tasks 0 to 4 are learnt in no step, so that nothing was tested while the samples came, and no "
        "average over the stream is given"
    ]


def test_a_step_that_is_left_out_has_learnt_nothing_and_is_not_counted(tmp_path: Path) -> None:
    """The third step of the first task has an infinite loss: 8 of 10 samples are left, as batches have 4, 4 and 2."""

    class Failing(Strategy):
        traits = Traits(family="reference")

        def loss(self, batch: Any) -> Tensor:
            loss = self.classification_loss(self.model(batch.images), batch)
            return loss * torch.inf if (self.progress.task, self.progress.step) == (0, 2) else loss

    asked = {**FAST, "batch_size": 4, "tasks": 2, "limit": 2, "model": "mlp:8", "online_accuracy": True}
    result = clbench.run("split-mnist-5k", Failing, out=tmp_path / "run", on_nan="skip", **asked)
    assert [epoch.tested for epoch in result.recorded.training] == [8, 0, 10, 0]


def test_who_can_not_do_it_refuses_it_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't honour online_accuracy=True; leave it at False"):
        clbench.run("split-mnist-5k", "avalanche:Naive", out=tmp_path / "run", online_accuracy=True, epochs=1)
    with pytest.raises(ConfigError, match="--seeds-together: online_accuracy=True needs runs one by one"):
        clbench.compare(
            "split-mnist-5k", ["naive"], out=tmp_path / "many", seeds=2, seeds_together=True, online_accuracy=True
        )


@pytest.mark.parametrize("online", [[3, 2], [-1, 2], [1], [1, 2, 3], ["1", 2], [[1, 2]]], ids=str)
def test_counts_that_are_none_are_refused(online: Any) -> None:
    with pytest.raises(ConfigError, match="online"):
        clbench.metrics.average_online_accuracy(online)
    assert clbench.metrics.average_online_accuracy([0, 0]) is None
