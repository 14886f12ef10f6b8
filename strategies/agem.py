"""Averaged gradient episodic memory."""

from typing import Annotated

from pydantic import Field

from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario
from clbench.learning.projection import gradients, project, replace_gradients
from clbench.learning.strategy import Strategy, Traits
from clbench.learning.trainer import refuse_single_image


class AGEM(Strategy):
    """Averaged gradient episodic memory. Chaudhry et al. 2019, arXiv:1812.00420.

    Where the gradient g would raise the loss on exemplars of earlier tasks, z = g - (g.r / r.r) r takes its place, r
    being the gradient of the exemplars' mean loss; g stays as it is where g.r >= 0 (eq. 11). The memory is filled when
    a task ends.

    reference_size: the number of exemplars drawn at each step (256 in the paper).
    """

    traits = Traits(
        family="replay",
        paper="Chaudhry et al. 2019, arXiv:1812.00420",
        memory="replayed",
        needs_memory=True,
        memory_policy="random",
        on_features=True,
        mixes=True,
        needs_boundaries=False,
    )

    reference_size: Annotated[int, Field(ge=1)] = 256

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """The drawn exemplars have a forward pass of their own."""
        if self.reference_size == 1 and config.memory.budget:
            refuse_single_image(config, scenario, "agem[reference_size=1] draws one exemplar at a step")

    def after_backward(self, batch: Batch) -> None:
        """Project the gradient."""
        replayed = self.replay(self.reference_size)
        if replayed is None:
            return
        parameters = [p for p in self.trainable().values() if p.grad is not None]
        loss = self.classification_loss(self.model(replayed.images), replayed)
        reference = self.gradient_of(loss, parameters)
        replace_gradients(parameters, project(gradients(parameters), reference))
