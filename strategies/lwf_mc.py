"""LwF.MC, the baseline of the iCaRL paper: Rebuffi et al. 2017, arXiv:1611.07725, section 4.1."""

from typing import Literal

import torch
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.losses import binary_cross_entropy
from clbench.learning.strategy import Strategy, Traits


class LwFMC(Strategy):
    """Sigmoid outputs that keep the old network's answers and learn the new classes; no exemplars.

    L = mean over batch and outputs of BCE(sigmoid(z), target): the target is the old network's sigmoid for the
    outputs of earlier tasks and one-hot for the others (algorithm 3); reduction="sum" adds over the outputs instead.
    The class is that of the largest output.
    """

    traits = Traits(
        family="distillation",
        paper="Rebuffi et al. 2017, arXiv:1611.07725, section 4.1",
        seeds_together=True,
        settings=("class", "task"),
        memory="none",
    )

    reduction: Literal["mean", "sum"] = "mean"

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Sigmoid outputs do not compete, so there is no loss over the new ones alone, and nothing to smooth."""
        if config.label_smoothing:
            raise ConfigError(
                f"label_smoothing={config.label_smoothing:g} has no meaning for lwf-mc's sigmoid loss; 0 is accepted"
            )
        if config.loss_outputs == "new":
            raise ConfigError("lwf-mc has no use for loss_outputs='new'; 'seen' and 'all' are accepted")

    def begin_task(self, task: Task) -> None:
        """Keep the old network as the teacher."""
        self.teacher: nn.Module | None = self.frozen_copy()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Algorithm 3 without exemplars."""
        # A full head has outputs yet to come, too, and no target for them.
        outputs = batch.active if self.setting == "class" else slice(0, self.outputs_of(self.progress.task).stop)
        logits, old = self.model(batch.images)[:, outputs], None
        if self.teacher is not None:
            with torch.no_grad():
                old = self.teacher(batch.images)[:, : self.old_task_outputs[-1].stop]
        return {"bce": binary_cross_entropy(logits, batch.labels, old, reduction=self.reduction)}
