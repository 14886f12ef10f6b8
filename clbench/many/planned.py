"""A planned run, and its outcome."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clbench.config.run import RunConfig
from clbench.data.spec import ScenarioSpec
from clbench.learning.strategy import Strategy
from clbench.results.result import Result


@dataclass(frozen=True)
class PlannedRun:
    """One complete, checked run, its folder, and the classes that the caller passed: strategy, scenario."""

    config: RunConfig
    folder: Path
    given: tuple[type[Strategy] | type[ScenarioSpec], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The outcome of a planned run: a sentence on why it failed, if it did, and where it was done.

    source: `here`; `before` (finished already); `elsewhere` (by another process meanwhile); `held` (another is at it).
    """

    planned: PlannedRun
    error: str | None = None
    source: Literal["here", "before", "elsewhere", "held"] = "here"

    @property
    def result(self) -> Result | None:
        """The result, read from the run's folder; None for a failed run."""
        return Result.load(self.planned.folder) if self.error is None else None
