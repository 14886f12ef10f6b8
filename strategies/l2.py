"""L2 to the weights after the task before."""

import torch
from torch import Tensor

from clbench.data.scenario import Task
from clbench.learning.importance import copied_weights, quadratic_penalty
from clbench.learning.strategy import Traits
from clbench.strategies._quadratic import QuadraticAnchor


class L2(QuadraticAnchor):
    """L2 to the weights after the task before. Kirkpatrick et al. 2017, arXiv:1612.00796, figure 2.

    penalty = strength / 2 * sum_i (w_i - w*_i)^2, w* the weights after the task before: EWC with every parameter
    equally important. New outputs are free.

    strength: the weight of the penalty.
    """

    traits = Traits(
        family="regularisation",
        paper="Kirkpatrick et al. 2017, arXiv:1612.00796, figure 2",
        seeds_together=True,
        on_features=True,
        mixes=True,
    )
    factor = 0.5

    def distance(self) -> Tensor:
        """The squared distance; the ones are made anew, since keeping them would take as much memory as the model."""
        ones = {name: torch.ones_like(weight) for name, weight in self.anchor.items()}
        return quadratic_penalty(dict(self.model.named_parameters()), ones, self.anchor)

    def end_task(self, task: Task) -> None:
        """Move the anchor."""
        self.anchor = copied_weights(self.model)
