"""Joint training."""

from clbench.data.scenario import Task
from clbench.learning.strategy import Stage, Strategy, Traits


class Joint(Strategy):
    """Joint training: at each step, train a fresh model on the data of all tasks so far.

    It is the upper reference line. Row k of its matrix gives a*_k of intransigence (Chaudhry et al. 2018,
    arXiv:1801.10112, eq. 4).
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
        """One stage on everything seen so far, from a fresh model."""
        return [Stage(self.seen_data(), before=self.restart)]
