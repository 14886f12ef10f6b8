"""The interface of all that follows a run under way: the recorder, the folder writer, trackers, progress bars."""

from torch import Tensor

from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.evaluation import Evaluation
from clbench.learning.strategy import Progress
from clbench.results.record import EpochRecord, RunRecord


class Observer:
    """Hears what a run tells while it goes on; a subclass overrides what it wants to hear.

    Several observers are told one after the other, always in the same order.
    """

    def begin(self, config: RunConfig, scenario: Scenario, first_task: int) -> None:
        """The run starts, or goes on at `first_task`."""

    def resumed(self, training: list[EpochRecord]) -> None:
        """The run goes on behind these epochs; called after `begin`."""

    def features_computed(self, done: int | None, total: int) -> None:
        """Of the features of a frozen network so many are computed; None: another run computes them."""

    def step(self, progress: Progress, loss: float | None) -> None:
        """A step is done; `loss`, the mean of the epoch so far, is known every 50 steps."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""

    def evaluated(self, progress: Progress, evaluation: Evaluation) -> None:
        """The tasks were tested in the middle of a task."""

    def task(self, task: int, row: list[float | None]) -> None:
        """A task is done: its row of the headline matrix."""

    def written(self, record: RunRecord) -> None:
        """The record is complete up to here: at the beginning, after each task, at the end."""

    def finished(self, weights: dict[str, Tensor]) -> None:
        """The last task is learnt: the final weights of the network; the record follows."""

    def kept(self, state: bytes) -> None:
        """All that was learnt, packed (see clbench.running.final); called after `finished`, where it is to be kept."""

    def close(self) -> None:
        """The run has ended, whether done, failed or interrupted."""
