"""Memory aware synapses: Aljundi et al. 2018, arXiv:1711.09601."""

from typing import Annotated

from torch import Tensor

from clbench.config.space import Log
from clbench.data.scenario import Task
from clbench.learning.importance import copied_weights, grown, mas_importance, quadratic_penalty
from clbench.learning.strategy import Strategy, Strength, Traits


class MAS(Strategy):
    """penalty = strength * sum_i Omega_i (w_i - w*_i)^2 (eq. 3), w* the weights after the task before.

    Omega_i: the mean over a task's samples of |d ||f(x)||^2 / d w_i| (eq. 2), summed over the tasks; f are the outputs
    that compete in the loss, before the softmax. No label is used.
    """

    traits = Traits(family="regularisation", paper="Aljundi et al. 2018, arXiv:1711.09601", seeds_together=True)

    strength: Annotated[Strength, Log(1e-2, 1e6)] = 1.0

    def begin_task(self, task: Task) -> None:
        """Before the first task nothing is important."""
        if task.index == 0:
            self.importance: dict[str, Tensor] = {}
            self.anchor: dict[str, Tensor] = {}

    def penalty(self) -> Tensor | None:
        """The quadratic penalty around the weights after the task before."""
        if not self.importance or not self.strength:
            return None
        parameters = dict(self.model.named_parameters())
        return self.strength * quadratic_penalty(parameters, self.importance, self.anchor)

    def end_task(self, task: Task) -> None:
        """Add the task's importance and move the anchor."""
        active = self.active_outputs(task.train.ids)
        assert isinstance(active, slice)  # the task's own samples compete among the same outputs
        images = (batch.images for batch in self.passes(task.train))
        for name, new in mas_importance(self.model, images, active=active).items():
            self.importance[name] = grown(self.importance[name], new) + new if name in self.importance else new
        self.anchor = copied_weights(self.model)
