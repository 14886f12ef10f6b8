"""L2 to the previous weights: the baseline of Kirkpatrick et al. 2017, arXiv:1612.00796, figure 2."""

from typing import Annotated

import torch
from torch import Tensor

from clbench.config.space import Log
from clbench.data.scenario import Task
from clbench.learning.importance import copied_weights, quadratic_penalty
from clbench.learning.strategy import Strategy, Strength, Traits


class L2(Strategy):
    """penalty = strength / 2 * sum_i (w_i - w*_i)^2, w* the weights after the task before; new outputs are free.

    EWC with every parameter equally important.
    """

    traits = Traits(
        family="regularisation", paper="Kirkpatrick et al. 2017, arXiv:1612.00796, figure 2", seeds_together=True
    )

    strength: Annotated[Strength, Log(1e-2, 1e6)] = 1.0

    def begin_task(self, task: Task) -> None:
        """Before the first task there is nothing to stay near to."""
        if task.index == 0:
            self.anchor: dict[str, Tensor] = {}

    def penalty(self) -> Tensor | None:
        """The squared distance to the weights after the task before."""
        if not self.anchor or not self.strength:
            return None
        ones = {name: torch.ones_like(weight) for name, weight in self.anchor.items()}
        return self.strength / 2 * quadratic_penalty(dict(self.model.named_parameters()), ones, self.anchor)

    def end_task(self, task: Task) -> None:
        """Move the anchor."""
        self.anchor = copied_weights(self.model)
