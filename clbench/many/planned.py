"""A run that is planned, and what became of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clbench.config.run import RunConfig
from clbench.learning.strategy import Strategy
from clbench.results.result import Result


@dataclass(frozen=True)
class PlannedRun:
    """One run, complete and checked, the folder it goes to, and the class where one was handed over."""

    config: RunConfig
    folder: Path
    given: type[Strategy] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a planned run: the sentence that says why it failed, and where it was done.

    source: `here`; `before`, which was finished already; `elsewhere`, by another process meanwhile; `held`, not yet.
    """

    planned: PlannedRun
    error: str | None = None
    source: Literal["here", "before", "elsewhere", "held"] = "here"

    @property
    def result(self) -> Result | None:
        """The result, read from the run's folder; None for a failed run."""
        return Result.load(self.planned.folder) if self.error is None else None
