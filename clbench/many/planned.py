"""A planned run, and its outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from clbench.config.run import RunConfig
from clbench.results.result import Result


@dataclass(frozen=True)
class PlannedRun:
    """One complete, checked run, its folder, and the classes that the caller handed over, by kind ("strategy")."""

    config: RunConfig
    folder: Path
    given: Mapping[str, type] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a planned run: a sentence on why it failed, if it did, and where it was done.

    source: `here`; `before` (finished already); `elsewhere` (by another process meanwhile); `held` (another is at it).
    """

    planned: PlannedRun
    error: str | None = None
    source: Literal["here", "before", "elsewhere", "held"] = "here"

    def without_classes(self) -> "Outcome":
        """Return the outcome as it may travel back to the caller's process.

        A class that came back would put the functions that it was sent with in the place of the caller's own.
        """
        return self.of(replace(self.planned, given={}))

    def of(self, planned: PlannedRun) -> "Outcome":
        """Return the outcome as that of a planned run, which is the same but for its classes."""
        return replace(self, planned=planned)

    @property
    def result(self) -> Result | None:
        """The result, read from the run's folder; None for a failed run."""
        return Result.load(self.planned.folder) if self.error is None else None
