"""L2 to the initial weights."""

from typing import Annotated

import torch

from clbench.config.space import Log
from clbench.data.scenario import Task
from clbench.learning.importance import copied_weights
from clbench.learning.strategy import Stage, Strength, Traits
from clbench.strategies.l2 import L2


class L2Init(L2):
    """L2 to the initial weights (regenerative regularisation). Kumar et al. 2023, arXiv:2308.11958.

    penalty = strength * sum_i (w_i - w^0_i)^2, w^0 the weights as they were drawn (eq. 1): weights that a task no
    longer needs go back to where a network learns well. Outputs that the head gains go back to their own beginning.

    strength: the weight of the penalty.
    """

    traits = Traits(
        family="plasticity",
        paper="Kumar et al. 2023, arXiv:2308.11958",
        seeds_together=True,
        on_features=True,
        mixes=True,
        needs_boundaries=False,
    )
    factor = 1.0

    strength: Annotated[Strength, Log(1e-6, 1e-1)] = 1e-3

    def stages(self, task: Task) -> list[Stage]:
        """Keep the weights that are new as they begin: all of them at first, then those of outputs that were added."""
        for name, weight in copied_weights(self.model).items():
            known = self.anchor.get(name, weight[:0])
            self.anchor[name] = torch.cat([known, weight[len(known) :]])
        return super().stages(task)

    def end_task(self, task: Task) -> None:
        """The anchor stays where it is."""
