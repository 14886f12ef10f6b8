"""Memory aware synapses."""

from clbench.data.scenario import Task
from clbench.learning.importance import mas_importance
from clbench.learning.strategy import Traits
from clbench.strategies._quadratic import MeasuredAnchor


class MAS(MeasuredAnchor):
    """Memory aware synapses. Aljundi et al. 2018, arXiv:1711.09601.

    penalty = strength * sum_i Omega_i (w_i - w*_i)^2 (eq. 3), w* the weights after the task before. Omega_i is the mean
    over a task's samples of |d ||f(x)||^2 / d w_i| (eq. 2), summed over the tasks; f are the outputs that compete in
    the loss, before the softmax. No label is used.

    strength: the weight of the penalty.
    importance_max: the largest entry of a task's Omega, which greater ones are taken for; None is no limit.
    """

    traits = Traits(
        family="regularisation",
        paper="Aljundi et al. 2018, arXiv:1711.09601",
        seeds_together=True,
        on_features=True,
        mixes=True,
    )

    def end_task(self, task: Task) -> None:
        """Add the task's importance and move the anchor."""
        images = (batch.images for batch in self.passes(task.train))
        measured = mas_importance(self.model, images, active=self.competing(task.train))
        self.add_importance(self.limited(measured))
