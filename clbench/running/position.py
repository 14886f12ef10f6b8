"""The position of a run under way, as its folder holds it; it is read without torch, here and on other machines."""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from clbench.support.text import clock, printable

NAME = "progress.json"


@dataclass(frozen=True)
class Position:
    """The position of a run; None for each part that is not known yet.

    task, epoch: from 0; n_epochs: of the stage, at most.
    preparing: what the run does before its first task, in words.
    loss: the mean of the epoch so far, or of the one before.
    share: of the run that is done, from 0 to 1.
    seconds: since the run began, or was continued; seconds_left: of the whole run, at the pace so far.
    """

    task: int
    n_tasks: int
    stage: str = ""
    epoch: int = 0
    n_epochs: int | None = None
    loss: float | None = None
    images_per_second: float | None = None
    share: float = 0.0
    seconds: float = 0.0
    seconds_left: float | None = None
    preparing: str = ""

    @property
    def parts(self) -> dict[str, str]:
        """The parts that a person reads, by the names of columns; empty for those that are not known."""
        of_all = f" of {self.n_epochs}" if self.n_epochs else ""
        return {
            "task": printable(self.preparing) or f"{self.task} ({self.task + 1} of {self.n_tasks})",
            "epoch": f"{self.epoch + 1}{of_all}" if self.stage else "",
            "loss": "" if self.loss is None else f"{self.loss:.3f}",
            "images/s": "" if self.images_per_second is None else f"{self.images_per_second:,.0f}",
            "left": "" if self.seconds_left is None else clock(self.seconds_left),
        }

    def __str__(self) -> str:
        behind = ("images/s", "left")
        told = [f"{v} {k}" if k in behind else f"{k} {v}" for k, v in self.parts.items() if v]
        if self.preparing:
            told[0] = self.parts["task"]
        if self.stage not in ("", "train"):
            told.insert(1, printable(self.stage))
        return ", ".join(told)


def position(folder: Path) -> Position | None:
    """Return the position of the run of a folder, or None where its file says nothing; its times run on since then."""
    try:
        age = max(0.0, time.time() - os.stat(folder / NAME).st_mtime)
        read = Position(**json.loads((folder / NAME).read_bytes()))
        left = None if read.seconds_left is None else max(0.0, read.seconds_left - age)
        found = replace(read, seconds=read.seconds + age, seconds_left=left)
        # Another program's file of this name may hold anything, so it must be possible to show the parts.
        return found if found.parts else None
    except (OSError, ValueError, TypeError, RecursionError, OverflowError):
        return None
