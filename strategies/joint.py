"""Joint training: the upper reference line."""

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage, Strategy, Traits


class Joint(Strategy):
    """At each step, train a fresh model on the data of all tasks so far.

    Row k of its matrix gives a*_k of intransigence (Chaudhry et al. 2018, arXiv:1801.10112, eq. 4).
    iterations_per_task: with a budget in iterations, take it once for each task so far, as a budget in epochs does.
    """

    traits = Traits(family="reference", seeds_together=True, data_access="all", memory="none")

    iterations_per_task: bool = False

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Epochs grow with the data by themselves."""
        if self.iterations_per_task and config.iterations is None:
            raise ConfigError("joint[iterations_per_task=true] needs a budget in iterations; give iterations")

    def stages(self, task: Task) -> list[Stage]:
        """One stage on everything seen so far, from a fresh model."""
        asked = self.config.iterations if self.iterations_per_task else None
        iterations = None if asked is None else asked * (task.index + 1)
        return [Stage(self.seen_data(), iterations=iterations, before=self._restart)]

    def _restart(self) -> None:
        self.model = self.fresh_model()
