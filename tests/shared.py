"""What several files of tests use: an observer that stops a run at a place, and a memory's slots dealt out by hand."""

from typing import Any

from clbench import Observer


class StoppedError(Exception):
    """Raised in the middle of a run by the test."""


class StopAt(Observer):
    """Stops a run after a step of a task, or after the task."""

    def __init__(self, task: int, step: int | None = None) -> None:
        self.at = (task, step)

    def step(self, progress: Any, loss: float | None) -> None:
        if (progress.task, progress.step) == self.at:
            raise StoppedError

    def task(self, task: int, row: Any) -> None:
        if (task, None) == self.at:
            raise StoppedError


def dealt(samples: list[int], size: int) -> list[int]:
    """Deal `size` slots out one at a time, to each class in turn that has samples left."""
    slots = [0] * len(samples)
    while size and slots != samples:
        for c, n in enumerate(samples):
            if size and slots[c] < n:
                slots[c] += 1
                size -= 1
    return slots
