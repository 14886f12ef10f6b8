"""The differences of van de Ven et al. 2022's protocols from the methods: doi:10.1038/s42256-022-00568-3."""

from dataclasses import replace
from typing import cast

from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage
from clbench.strategies.er import ER
from clbench.strategies.joint import Joint
from clbench.strategies.lwf import LwF


class ReplayByTasks(ER):
    """Experience replay, weighted by tasks. van de Ven & Tolias 2018, arXiv:1809.10635.

    L = 1/N CE(current batch) + (1 - 1/N) CE(replayed batch) in the N-th task.

    share: the part of a step's images that comes from the memory.
    """

    traits = replace(ER.traits, needs_boundaries=True)

    def weights(self, n: int, m: int) -> tuple[float, float]:
        """Return the share of the present task and that of the earlier ones."""
        current = 1 / (self.progress.task + 1)
        return current, 1 - current


class LwFByOldTasks(LwF):
    """LwF, weighted by old tasks: L = CE + (N - 1) strength KL in the N-th task. The options are those of LwF."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return LwF's terms, the distillation multiplied by the number of old tasks."""
        terms = super().loss(batch)
        if self.teacher is not None:
            terms["distillation"] = self.progress.task * terms["distillation"]
        return terms


class JointByTasks(Joint):
    """Joint training that takes the iterations once for each task so far, as a budget in epochs does by itself."""

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Raise ConfigError for a budget in epochs, which grows with the data by itself."""
        if config.training.iterations is None:
            raise ConfigError(f"{config.strategy} needs a budget in iterations; give iterations")

    def stages(self, task: Task) -> list[Stage]:
        """Return one stage on everything seen so far, N times as long in the N-th task."""
        # check() has refused a budget in epochs.
        iterations = cast("int", self.config.training.iterations)
        return [replace(stage, iterations=iterations * (task.index + 1)) for stage in super().stages(task)]
