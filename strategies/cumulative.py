"""Cumulative training."""

from clbench.data.scenario import Task
from clbench.learning.strategy import Stage, Strategy, Traits


class Cumulative(Strategy):
    """Cumulative training: at each step, go on training the same model on the data of all tasks so far.

    It is a reference as `joint` is, but the weights of the step before are where the next one begins.
    """

    traits = Traits(
        family="reference",
        seeds_together=True,
        data_access="all",
        memory="none",
        on_features=True,
        mixes=True,
        needs_boundaries=False,
    )

    def stages(self, task: Task) -> list[Stage]:
        """One stage on everything seen so far."""
        return [Stage(self.seen_data())]
