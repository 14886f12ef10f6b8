"""MOS."""

from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.config.space import Log
from clbench.data.batches import Batch, gathered
from clbench.data.scenario import Task
from clbench.learning.losses import cross_entropy
from clbench.learning.strategy import Stage, Strength
from clbench.models import inserted
from clbench.strategies._adapted import AdaptersForTasks, Size, cosines
from clbench.strategies._frozen import UNKNOWN
from clbench.strategies._gaussian import gaussian


class MOS(AdaptersForTasks):
    """MOS, model surgery. Sun et al. 2025, arXiv:2412.09441.

    Each task has adapters of its own, which begin as those of the task before. L = CE over the task's outputs + reg *
    CE(M M^T / 0.8, identity), M the means of earlier classes and the features of the batch. After each step the
    adapters are (1 - merging) * themselves + merging * the mean of those before (eq. 6); the authors' code does so
    again in every block of every forward pass, also in tests, which the paper does not. From the second task on the
    head is then aligned on features drawn from N(mu_c, Sigma_c + 1e-4 I) of each class, mu and Sigma as its own
    adapters gave them. A test image begins with the task of the nearest prototype (cosine, adapters of the first task),
    and takes up to four times the task of the class that the head finds in the features of the task before (sec. 4.2).
    score = softmax(head) + softmax(tasks * cosine).

    size: the width of an adapter's bottleneck.
    merging: the share of the earlier adapters in each step.
    reg: the weight of the second term.
    alignment_epochs, alignment_lr: the length of the alignment, an epoch being as many steps as there are classes, of
        five batches each, and its rate.
    """

    traits = replace(AdaptersForTasks.traits, paper="Sun et al. 2025, arXiv:2412.09441", through_features=False)

    size: Size = 16
    merging: Annotated[float, Field(ge=0, lt=1)] = 0.1
    reg: Annotated[Strength, Log(0.01, 1)] = 0.1
    alignment_epochs: Annotated[int, Field(ge=1)] = 30
    alignment_lr: Annotated[float, Field(gt=0)] = 0.005

    def begin_run(self) -> None:
        """Before the first task there is no class: its means, the factors of its covariance, prototypes, its task."""
        d = self.model.feature_dim
        self.mean, self.prototypes = (torch.zeros(0, d, device=self.device) for _ in range(2))
        self.factor = torch.zeros(0, d, d, device=self.device)
        self.task_of = torch.zeros(0, dtype=torch.int64, device=self.device)

    def begin_task(self, task: Task) -> None:
        """The new adapters begin as the last ones."""
        super().begin_task(task)
        if task.index:
            for new, old in zip(*(inserted.parameters(self.model, task.index - k) for k in (0, 1)), strict=True):
                new.data.copy_(old)

    def stages(self, task: Task) -> list[Stage]:
        """Train the adapters and the task's rows of the head; then align the head."""
        if task.index == 0:
            return super().stages(task)
        aligned = Stage(
            task.train,
            "alignment",
            list(self.model.head.parameters()),
            iterations=self.alignment_epochs * task.outputs.stop,
            lr=self.alignment_lr,
            loss=self._alignment_loss,
            before=partial(self._observe, task),
            watched=False,
        )
        return [*super().stages(task), aligned]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, and the term that keeps features apart."""
        features = self.model.features(batch.images).float()
        apart = self.reg * orthogonality(torch.cat([self.mean, features]))
        return {"classification": self.own_loss(self.model.head(features), batch), "orthogonality": apart}

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Merge the adapters with those before."""
        t = self.progress.task
        if t and self.progress.stage == "train":
            before = zip(*(inserted.parameters(self.model, k) for k in range(t)), strict=True)
            for new, old in zip(inserted.parameters(self.model, t), before, strict=True):
                new.lerp_(torch.stack(old).mean(0), self.merging)

    def end_task(self, task: Task) -> None:
        """The first task is not aligned, and observed all the same."""
        if task.index == 0:
            self._observe(task)

    @torch.no_grad()
    def _observe(self, task: Task) -> None:
        """Keep the Gaussian of each class of the task, and its prototype in the features of the first adapters."""
        self.model.eval()
        self.prototypes = torch.cat([self.prototypes, self.means(task, 0)])
        self.task_of = F.pad(self.task_of, (0, len(task.classes)), value=task.index)
        for output in range(task.outputs.start, task.outputs.stop):
            data = task.train.subset(task.train.labels == output)
            parts = (self.features_of(batch.images, task.index).cpu().double() for batch in self.passes(data))
            features = gathered(parts, len(data))
            mean, factor = gaussian(features)
            self.mean = torch.cat([self.mean, mean[None].float().to(self.device)])
            self.factor = torch.cat([self.factor, factor[None].float().to(self.device)])

    def _alignment_loss(self, batch: Batch) -> Tensor:
        n, classes, generator = 5 * self.config.training.batch_size, len(self.mean), self.rng("alignment")
        labels = torch.randint(classes, (n,), generator=generator).sort().values
        noise = torch.randn(n, self.mean.shape[1], generator=generator).to(self.device, non_blocking=True)
        parts = noise.split(labels.bincount(minlength=classes).tolist())
        drawn = torch.cat([m + part @ f.T for m, f, part in zip(self.mean, self.factor, parts, strict=True)])
        return cross_entropy(self.model.head(drawn), labels.to(self.device, non_blocking=True), slice(0, classes))

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """Self-refined retrieval of the task, and the mean of two opinions; before the first task is over, the head."""
        if not len(self.mean):
            logits: Tensor = self.model(images)
            return logits
        features = [self.features_of(images, t) for t in range(int(self.task_of[-1]) + 1)]
        known, stacked = cosines(features[0], self.prototypes), torch.stack(features, 1)
        of_task = self.task_of[known.argmax(1)]
        for _ in range(4):
            found = self.model.head(stacked[torch.arange(len(images), device=self.device), of_task])[
                :, : len(self.mean)
            ]
            of_task = self.task_of[found.argmax(1)]
        scores = found.float().softmax(1) + (known * len(features)).softmax(1)
        return F.pad(scores, (0, self.model.head.out_features - scores.shape[1]), value=UNKNOWN)


def orthogonality(vectors: Tensor) -> Tensor:
    """Return the mean cross-entropy of each vector's products with all, by 0.8, with itself as the target."""
    return F.cross_entropy(vectors @ vectors.T / 0.8, torch.arange(len(vectors), device=vectors.device))
