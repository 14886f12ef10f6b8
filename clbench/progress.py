"""A run under way as progress bars."""

from typing import Any

from rich.progress import Progress as Bars

from clbench.config import RunConfig
from clbench.runner import Observer
from clbench.scenario import Scenario
from clbench.strategy import Progress


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

    def epoch(self, record: dict[str, Any]) -> None:
        """Show the speed and losses of the epoch."""
        self.loss = f" loss {sum(record['losses'].values()):.3f}"
        self.speed = f" {record['images'] / max(record['seconds'], 1e-9):,.0f} images/s"

    def task(self, task: int, row: list[float | None]) -> None:
        """Move the task bar."""
        self.bars.update(self.tasks, completed=task + 1)
