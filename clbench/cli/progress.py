"""Runs under way as progress bars."""

import time
from collections.abc import Sequence

from rich.progress import Progress as Bars
from rich.progress import ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Progress
from clbench.many.planned import Outcome, PlannedRun
from clbench.results.record import EpochRecord
from clbench.running.observer import Observer
from clbench.support.locks import is_held
from clbench.support.text import duration


class BarObserver(Observer):
    """Shows task, stage, epoch, loss and images/s of the run under way."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.tasks = bars.add_task("", total=1, visible=False)
        self.steps = bars.add_task("", total=1, visible=False)
        self.loss, self.speed = "", ""

    def begin(self, config: RunConfig, scenario: Scenario, first_task: int) -> None:
        """Show the run's name and its tasks."""
        name = f"{config.label}, seed {config.seed}".replace("[", "\\[")
        self.bars.reset(self.tasks, total=len(scenario.tasks), completed=first_task, description=name, visible=True)

    def step(self, progress: Progress, loss: float | None) -> None:
        """Move the step bar; the loss is known from time to time."""
        if loss is not None:
            self.loss = f" loss {loss:.3f}"
        within = progress.step - progress.epoch * progress.steps_per_epoch
        self.bars.update(
            self.steps,
            total=progress.steps_per_epoch,
            completed=within,
            visible=True,
            description=f"task {progress.task} {progress.stage} epoch {progress.epoch}{self.loss}{self.speed}",
        )

    def epoch(self, record: EpochRecord) -> None:
        """Show the speed and losses of the epoch."""
        self.loss = f" loss {sum(value or 0.0 for value in record.losses.values()):.3f}"
        self.speed = f" {(record.images or 0) / max(record.seconds or 0.0, 1e-9):,.0f} images/s"

    def task(self, task: int, row: list[float | None]) -> None:
        """Move the task bar."""
        self.bars.update(self.tasks, completed=task + 1)


class RunCount:
    """Shows how many planned runs are done, running, failed and left, and the time left at the pace so far."""

    def __init__(self, planned: Sequence[PlannedRun]) -> None:
        self.left = {item.folder for item in planned}
        self.done, self.failed, self.here = 0, 0, 0
        self.started = time.monotonic()

    def finished(self, outcome: Outcome) -> None:
        """Count a run."""
        self.left.discard(outcome.planned.folder)
        self.done += outcome.error is None
        self.failed += outcome.error is not None
        self.here += outcome.source == "here"

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the runs that are left take at the pace of those done here; None before the first."""
        return (time.monotonic() - self.started) / self.here * len(self.left) if self.here else None

    def __str__(self) -> str:
        running = sum(is_held(folder) for folder in self.left)
        parts = [f"{self.done} done", f"{running} running", f"{self.failed} failed", f"{len(self.left) - running} left"]
        seconds = self.seconds_left
        return ", ".join(parts + ([] if seconds is None or not self.left else [f"about {duration(seconds)}"]))


class TimeLeft(ProgressColumn):
    """The time left; for a bar of many runs, what became of them too."""

    max_refresh = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.plain = TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        """Return the text of one bar."""
        count = task.fields.get("count")
        return self.plain.render(task) if count is None else Text(str(count))
