"""Gradient-based self-adaptive loss."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from clbench.config.space import Log
from clbench.data.batches import Batch
from clbench.data.scenario import ImageSet
from clbench.learning.losses import cross_entropy
from clbench.learning.strategy import Strategy, Strength, Traits

# In the first steps of a task its classes have no rates that mean anything, and all weigh the same.
UNWEIGHTED_STEPS = 5


class GSA(Strategy):
    """Gradient-based self-adaptive loss. Guo, Liu & Zhao 2023, CVPR, arXiv:2305.14657.

    L = CE(current; outputs of the task) + strength * mean of -w_y log q_y over a balanced batch, in which each class
    seen has the same share. w_c = 2 / (1 + exp(1 - r_c)), r_c being the sum of 1 - q_c over the samples of class c by
    the sum of q_c over all others, so far in the run: a class that is pushed up more than down weighs more. Current are
    the batch and exemplars of the present task; the balanced batch has exemplars of earlier tasks beside them. Weights
    and sizes are those of the authors' code; its flips and crops are the run's `augment`.

    strength: the weight of the second term (2 in the authors' code).
    current: the exemplars of the present task that are learnt beside each batch (22).
    replayed: the size of the balanced batch (64).
    """

    traits = Traits(
        family="replay",
        paper="Guo, Liu & Zhao 2023, CVPR, arXiv:2305.14657",
        settings=("class",),
        memory="replayed",
        needs_memory=True,
        memory_policy="reservoir",
        on_features=True,
        not_applicable={"neutral_at_zero": "current samples compete among the outputs of their task alone"},
    )

    strength: Annotated[Strength, Log(0.5, 4)] = 2.0
    current: Annotated[int, Field(ge=0)] = 22
    replayed: Annotated[int, Field(ge=1)] = 64

    def begin_run(self) -> None:
        """No class has been pushed yet: rows of samples, of their q_y, and of other samples' q, by output."""
        self.pushed = self.coming = torch.zeros(3, 0, device=self.device)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of the task's own outputs, and the weighted one of a balanced batch."""
        task, outputs, kept = self.progress.task, self.outputs_of(self.progress.task), self.exemplars()
        share = (outputs.stop - outputs.start) / outputs.stop
        own = self.drawn(kept, kept.tasks == task, self.current, "current")
        past = self.drawn(kept, kept.tasks < task, int(self.replayed * (1 - share)), "past")
        images, labels, new = batch.images, batch.labels, len(batch) + len(own)
        if len(own) + len(past):
            beside = self.batch_of(torch.cat([own, past]), "beside")
            images, labels = torch.cat([images, beside.images]), torch.cat([labels, beside.labels])
        self.progress.replayed += len(own) + len(past)
        # One forward pass, so that batch norm sees all of them.
        logits = self.model(images)
        smoothing = self.config.training.label_smoothing
        current = cross_entropy(logits[:new], labels[:new], outputs, label_smoothing=smoothing)
        few = min(new, int(self.replayed * share))
        balanced = torch.cat([logits[:few], logits[new:]])[:, : outputs.stop]
        weighted = self.weighted(balanced, torch.cat([labels[:few], labels[new:]]))
        return {"current": current, "balanced": self.strength * weighted}

    def drawn(self, kept: ImageSet, wanted: Tensor, n: int, name: str) -> Tensor:
        """Return the ids of at most n of the wanted exemplars, drawn by the stream `name`."""
        ids = kept.ids[wanted]
        return ids[torch.randperm(len(ids), generator=self.rng(name))[:n]]

    def weighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of -w_y log q_y over samples, logits [B, outputs seen], and count how they are pushed."""
        log_q = logits.float().log_softmax(1)
        own = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
        q = log_q.detach().exp()
        now = torch.stack([own.sum(0), (q * own).sum(0), (q * ~own).sum(0)])
        self.coming = now + F.pad(self.pushed, (0, now.shape[1] - self.pushed.shape[1]))
        n, up, down = self.coming
        weights = 2 / (1 + torch.exp(1 - (n - up) / down.clamp(min=1e-12)))
        if self.progress.step < UNWEIGHTED_STEPS:
            weights = torch.ones_like(weights)
        return -(weights[labels] * log_q.gather(1, labels[:, None])[:, 0]).mean()

    def after_step(self, batch: Batch) -> None:
        """The samples of the step count."""
        self.pushed = self.coming
