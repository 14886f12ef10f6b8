"""Shared parts of the strategies that distil the model as it was before the task."""

from typing import Literal

import torch
from torch import Tensor

from clbench.config.errors import RunError
from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.losses import binary_cross_entropy, distillation
from clbench.learning.strategy import Strategy
from clbench.models.network import Network


class Taught(Strategy):
    """A strategy with a teacher: the model as it was before the task, None in the first task."""

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher."""
        self.teacher: Network | None = self.frozen_copy()

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """Return the teacher's logits, float [B, outputs that it has]; there has to be one."""
        if self.teacher is None:
            raise RunError("there is no teacher before the first task is over")
        logits: Tensor = self.teacher(images)
        return logits

    def old_logits(self, batch: Batch) -> Tensor | None:
        """Return the teacher's logits of earlier tasks' outputs, float [B, old]; None in the first task."""
        # A full head has outputs that are not old, too.
        return None if self.teacher is None else self.teacher_logits(batch.images)[:, : self.old_task_outputs[-1].stop]

    def sigmoid_loss(self, logits: Tensor, batch: Batch, reduction: Literal["mean", "sum"]) -> dict[str, Tensor]:
        """Return the loss of iCaRL's algorithm 3: sigmoid outputs, the teacher's answers being the targets of old ones.

        Rebuffi et al. 2017, arXiv:1611.07725.
        """
        # A full head has outputs yet to come, too, and no target for them.
        outputs = batch.active if self.setting == "class" else slice(0, self.outputs_of(self.progress.task).stop)
        old = self.old_logits(batch)
        return {"bce": binary_cross_entropy(logits[:, outputs], batch.labels, old, reduction=reduction)}


def in_proportion(
    classification: Tensor, logits: Tensor, old: Tensor, temperature: float, share: float
) -> dict[str, Tensor]:
    """Return share * KD + (1 - share) * CE, where BiC and WA give old classes / all classes as the share.

    classification: CE, a scalar. logits, old: float [B, outputs] of the student and [B, old classes] of the teacher.
    Wu et al. 2019, arXiv:1905.13260, eq. 1-3; Zhao et al. 2020, arXiv:1911.07053, eq. 1-2.
    """
    return {
        "classification": (1 - share) * classification,
        "distillation": share * distillation(logits, old, temperature),
    }
