"""Context-dependent gating."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.run import RunConfig
from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Strategy, Traits, given_task
from clbench.models.blocks import block_outputs, check_maps, widths
from clbench.support.streams import stream


class XdG(Strategy):
    """Context-dependent gating. Masse, Grant & Freedman 2018, arXiv:1802.01569.

    For each task a random share of the units of each hidden layer is switched off, in training and at test. The gates
    are a function of seed, task and layer alone.

    inactive: that share, rounded down to whole units (of convolutions: maps; of residual networks: those that a stage
        gives out).
    """

    traits = Traits(
        family="isolation",
        paper="Masse, Grant & Freedman 2018, arXiv:1802.01569",
        settings=("task",),
        memory="none",
        needs_task_at_test=True,
        through_features=False,
    )

    inactive: Annotated[float, Field(ge=0, lt=1), Choices(0.2, 0.4, 0.6, 0.8)] = 0.8

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """A gate multiplies what a block gives to the next."""
        check_maps(config, scenario)

    def gates(self, task: int) -> list[Tensor]:
        """Return the gates of a task for each block: float [units] of zeros and ones."""
        gates = []
        for block, width in enumerate(widths(self.model)):
            order = torch.randperm(width, generator=stream(self.config.seed, "xdg", task, block))
            gates.append((order >= int(self.inactive * width)).float().to(self.device, non_blocking=True))
        return gates

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the gated network."""
        return {"classification": self.classification_loss(self.scores(batch.images, self.progress.task), batch)}

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The network under the task's gates."""
        task = given_task(task)
        return self.task_logits(block_outputs(self.model, images, self.gates(task))[-1], task)
