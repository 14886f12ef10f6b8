"""The observer that keeps the position of a run in its folder, for all who show it."""

import json
import math
import os
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Progress
from clbench.results.record import EpochRecord
from clbench.running.observer import Observer
from clbench.running.position import NAME, Position
from clbench.running.resolve import strategy_class
from clbench.support.text import clock

# Seconds between two writes at least. They wait for no disk: nothing is lost with the file.
EVERY = 1.0


class Pace(Observer):
    """Keeps the position of a run under way in its folder, from what the run tells anyway.

    A step costs a look at the clock; nothing here waits for the device.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self.wrote = -math.inf

    def begin(self, config: RunConfig, scenario: Scenario, first_task: int) -> None:
        """Write that the run begins, or goes on, at a task."""
        images = [len(task.train) for task in scenario.tasks]
        if strategy_class(config.strategy, config.code).traits.data_access == "all":
            images = [sum(images[: i + 1]) for i in range(len(images))]
        # The share of the run that is done before each task, and at the end.
        self.shares = [sum(images[:i]) / sum(images) for i in range(len(images) + 1)]
        self.batch_size = config.training.batch_size
        self.loss: float | None = None
        self.speed: float | None = None
        self.began = time.monotonic()
        # The share and time of this process's first step, by which the pace is measured, and the last write.
        self.first: tuple[float, float] | None = None
        self.last: tuple[int, str, int, int, float] | None = None
        # When the first of the features that are computed here was told, and how many there were.
        self.computing: tuple[float, int] | None = None
        self.start = Position(first_task, len(images), share=self.shares[first_task])
        self._write(self.start)
        # The first step is written at once.
        self.wrote = -math.inf

    def step(self, progress: Progress, loss: float | None) -> None:
        """Hear of a step, and write where the run is when it is time to."""
        if loss is not None:
            self.loss = loss
        now = time.monotonic()
        if self.first is None:
            self.first = self._share(progress), now
        if now - self.wrote < EVERY:
            return
        at = (progress.task, progress.stage, progress.epoch, progress.step, now)
        if self.last is not None and self.last[:3] == at[:3]:
            self.speed = (at[3] - self.last[3]) * self.batch_size / (now - self.last[4])
        self.last = at
        n_epochs = math.ceil(progress.steps / progress.steps_per_epoch) if progress.steps_per_epoch else 0
        done = self._share(progress)
        seconds, gained = now - self.first[1], done - self.first[0]
        self._write(
            Position(
                task=progress.task,
                n_tasks=len(self.shares) - 1,
                stage=progress.stage,
                epoch=progress.epoch,
                n_epochs=n_epochs or None,
                loss=self.loss,
                images_per_second=self.speed,
                share=done,
                seconds=now - self.began,
                seconds_left=seconds / gained * (1 - done) if gained > 0 and seconds > EVERY else None,
            )
        )

    def features_computed(self, done: int | None, total: int) -> None:
        """Hear how many features of a frozen network are computed, and write it when it is time to."""
        now = time.monotonic()
        if done == total:
            self._write(self.start)
            # The first step is written at once.
            self.wrote = -math.inf
            return
        if now - self.wrote < EVERY:
            return
        if done is None:
            self._write(replace(self.start, preparing="waiting for features that another run computes"))
            return
        began, before = self.computing = self.computing or (now, done)
        speed = (done - before) / (now - began) if done > before else None
        # The time that the run itself takes is not known yet.
        left = "" if speed is None else f", {clock((total - done) / speed)} left"
        text = f"features of {done:,} of {total:,} images{left}"
        self._write(replace(self.start, preparing=text, images_per_second=speed, seconds=now - self.began))

    def epoch(self, record: EpochRecord) -> None:
        """Hear of an epoch, which knows its loss and speed."""
        self.loss = sum(value or 0.0 for value in record.losses.values())
        self.speed = (record.images or 0) / max(record.seconds or 0.0, 1e-9)

    def close(self) -> None:
        """The run has ended."""
        with suppress(OSError):
            self.file.unlink(missing_ok=True)

    def _share(self, progress: Progress) -> float:
        """Return the share of the run that is done, in images to be trained on."""
        before, behind = self.shares[progress.task], self.shares[progress.task + 1]
        within = (progress.stages_done + progress.step / max(progress.steps, progress.step, 1)) / progress.n_stages
        return before + within * (behind - before)

    def _write(self, position: Position) -> None:
        self.wrote = time.monotonic()
        unfinished = self.file.with_suffix(".tmp")
        # A folder that can't be written is told of by those who write what counts.
        with suppress(OSError):
            unfinished.write_text(json.dumps(asdict(position)), encoding="utf-8")
            os.replace(unfinished, self.file)
