"""Gradient episodic memory."""

from typing import Annotated

import torch
from torch import Tensor, nn

from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.data.scenario import ImageSet
from clbench.learning.projection import gradients, project_on_cone, replace_gradients
from clbench.learning.strategy import Strategy, Strength, Traits


class GEM(Strategy):
    """Gradient episodic memory. Lopez-Paz & Ranzato 2017, arXiv:1706.08840.

    The gradient g is replaced by the nearest z that raises the loss on no earlier task's exemplars: min 1/2 |z - g|^2
    with z.g_k >= 0 for all k. It is solved in its dual v, with one unknown a task (eq. 8-11); z = G'v + g. The memory
    is filled when a task ends.

    margin: the least v, which favours backward transfer (0.5 in the authors' experiments).
    """

    traits = Traits(
        family="replay",
        paper="Lopez-Paz & Ranzato 2017, arXiv:1706.08840",
        memory="replayed",
        needs_memory=True,
        memory_policy="random",
        on_features=True,
        mixes=True,
    )

    margin: Annotated[Strength, Choices(0.0, 0.5, 1.0)] = 0.5

    def after_backward(self, batch: Batch) -> None:
        """Project the gradient."""
        parameters = [p for p in self.trainable().values() if p.grad is not None]
        data = self.exemplars()
        parts = [data.subset(torch.nonzero(data.tasks == k).flatten()) for k in range(self.progress.task)]
        references = [self._gradient(part, parameters) for part in parts if len(part)]
        if references:
            projected = project_on_cone(gradients(parameters), torch.stack(references), self.margin)
            replace_gradients(parameters, projected)

    def _gradient(self, data: ImageSet, parameters: list[nn.Parameter]) -> Tensor:
        """The gradient of the mean loss on one task's exemplars."""
        # Batch norm needs two samples: a single one counts twice, and parts are equally large.
        index = torch.arange(len(data)) if len(data) > 1 else torch.zeros(2, dtype=torch.int64)
        total = torch.zeros((), device=self.device)
        for batch in self.passes(data.subset(index)):
            loss = self.classification_loss(self.model(batch.images), batch)
            total = total + len(batch) / len(index) * self.gradient_of(loss, parameters)
        return total
