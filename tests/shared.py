"""Tools of several files of tests: commands, runs that are stopped, optimizers that are watched, slots by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch

from clbench import Observer
from clbench.cli import main
from clbench.running.resolve import strategy_class
from clbench.tools.conformance import TRANSFORMER

# The transformer of the conformance kit, but narrow, so that a test on 1,000 images takes a fraction of the time.
NARROW = "vit[image_size=28,patch_size=14,width=24,depth=5]"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    """Return the exit code of a command, what it prints, and what it says on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def network_of(strategy: str, otherwise: str | None = None) -> dict[str, str]:
    """Return the model that a small run of a strategy asks for: a transformer where it needs one, or another."""
    if strategy_class(strategy).traits.needs_transformer:
        # The components of CODA-Prompt are orthogonal, 10 for each of 10 tasks, and need as many dimensions.
        return {"model": TRANSFORMER if strategy == "coda-prompt" else NARROW}
    return {} if otherwise is None else {"model": otherwise}


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


@contextmanager
def optimizer_steps(
    before: Callable[[Any], None] = lambda optimizer: None, after: Callable[[Any], None] = lambda optimizer: None
) -> Iterator[None]:
    """Call a function on every optimizer of torch just before and just after each of its steps.

    Hooks that torch calls for all optimizers would not do: a run sets those of its caller aside.
    """
    init = torch.optim.Optimizer.__init__

    def hooked(self: torch.optim.Optimizer, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        self.register_step_pre_hook(lambda optimizer, *_: before(optimizer))
        self.register_step_post_hook(lambda optimizer, *_: after(optimizer))

    with mock.patch.object(torch.optim.Optimizer, "__init__", hooked):
        yield


def dealt(samples: list[int], size: int) -> list[int]:
    """Deal `size` slots out one at a time, to each class in turn that has samples left."""
    slots = [0] * len(samples)
    while size and slots != samples:
        for c, n in enumerate(samples):
            if size and slots[c] < n:
                slots[c] += 1
                size -= 1
    return slots
