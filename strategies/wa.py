"""Weight aligning."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.strategy import Traits
from clbench.strategies._teacher import Taught, in_proportion


class WA(Taught):
    """Weight aligning. Zhao et al. 2020, arXiv:1911.07053.

    L = r * KL(old || new; temperature) + (1 - r) * CE, r = old classes / all classes (eq. 1-2). When the task has ended
    the new classes' weight vectors are scaled by mean norm of the old ones / mean norm of the new ones (eq. 7-8);
    biases stay.

    temperature: what the logits of both models are divided by.
    clip_weights: whether the head's negative weights become 0 after each step, as in the paper, so that a class with a
        larger norm does have larger logits.
    """

    traits = Traits(
        family="replay",
        paper="Zhao et al. 2020, arXiv:1911.07053",
        settings=("class",),
        needs_memory=True,
        on_features=True,
        mixes=True,
        not_applicable={
            "neutral_at_zero": "it distils the old model also without a memory",
            "model_untouched_by_task_ends": "rescaling the new rows of the head is the method",
        },
    )

    temperature: Annotated[float, Field(gt=0), Choices(1.0, 2.0, 4.0)] = 2.0
    clip_weights: bool = True

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher."""
        super().begin_task(task)
        self.n_old, self.n_seen = task.outputs.start, task.outputs.stop

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Distillation and classification, in proportion to the classes."""
        logits = self.model(batch.images)
        classification = self.classification_loss(logits, batch)
        if self.teacher is None:
            return {"classification": classification}
        old = self.teacher_logits(batch.images)[:, : self.n_old]
        return in_proportion(classification, logits, old, self.temperature, self.n_old / self.n_seen)

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Keep the head's weights from becoming negative."""
        if self.clip_weights:
            self.model.head.weight.clamp_(min=0)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Align the new weight vectors with the old."""
        if task.index > 0:
            weight = self.model.head.weight
            norms = weight.norm(dim=1)
            old, new = norms[: self.n_old].mean(), norms[task.outputs].mean()
            # Vectors that are all zero have no direction to be scaled in.
            weight[task.outputs] *= torch.where(new > 0, old / new, 1.0)
