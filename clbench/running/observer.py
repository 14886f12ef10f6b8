"""What follows a run while it is under way: progress bars, trackers."""

from typing import Any

from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Progress


class Observer:
    """What a run tells while it goes on; overrides what it wants to hear."""

    def begin(self, config: RunConfig, scenario: Scenario, first_task: int) -> None:
        """The run starts, or goes on at `first_task`."""

    def step(self, progress: Progress, loss: float | None) -> None:
        """A step is done; `loss`, the mean of the epoch so far, is known every 50 steps."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is done: the entry of run.json's `training`."""

    def task(self, task: int, row: list[float | None]) -> None:
        """A task is done: its row of the headline matrix."""

    def resumed(self, training: list[dict[str, Any]]) -> None:
        """The run goes on behind these epochs, entries of run.json's `training`; called after `begin`."""

    def written(self, record: dict[str, Any]) -> None:
        """run.json has been written: at the beginning, after each task, at the end."""

    def close(self) -> None:
        """The run has ended, whether done, failed or interrupted."""


def both(*observers: Observer) -> Observer:
    """Return an observer that passes all it hears on."""
    return _Both(*observers)


class _Both(Observer):
    """Tells two observers."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def begin(self, config: RunConfig, scenario: Scenario, first_task: int) -> None:
        for observer in self.observers:
            observer.begin(config, scenario, first_task)

    def step(self, progress: Progress, loss: float | None) -> None:
        for observer in self.observers:
            observer.step(progress, loss)

    def epoch(self, record: dict[str, Any]) -> None:
        for observer in self.observers:
            observer.epoch(record)

    def task(self, task: int, row: list[float | None]) -> None:
        for observer in self.observers:
            observer.task(task, row)

    def resumed(self, training: list[dict[str, Any]]) -> None:
        for observer in self.observers:
            observer.resumed(training)

    def written(self, record: dict[str, Any]) -> None:
        for observer in self.observers:
            observer.written(record)

    def close(self) -> None:
        for observer in self.observers:
            observer.close()
