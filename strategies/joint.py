"""Joint training: the upper reference line."""

from clbench.scenario import Task
from clbench.strategy import Stage, Strategy


class Joint(Strategy):
    """At each step, train a fresh model on the data of all tasks so far.

    Row k of its matrix gives a*_k of intransigence (Chaudhry et al. 2018, arXiv:1801.10112, eq. 4).
    """

    family = "reference"
    data_access = "all"
    memory_use = "none"

    def stages(self, task: Task) -> list[Stage]:
        """One stage on everything seen so far, from a fresh model."""
        return [Stage(self.seen_data(), before=self._restart)]

    def _restart(self) -> None:
        self.model = self.fresh_model()
