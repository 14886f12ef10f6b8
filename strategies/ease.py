"""EASE."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.strategies._adapted import AdaptersForTasks, cosines
from clbench.strategies._frozen import UNKNOWN


class EASE(AdaptersForTasks):
    """EASE, expandable subspace ensemble. Zhou et al. 2024, arXiv:2403.12030.

    Each task has adapters of its own, trained by the cross-entropy of sigma * cos(phi_t(x), w_c) over its classes (eq.
    3); phi_t are the features with the adapters of task t. score_c = sum over t of weight_ct * cos(phi_t(x), p_ct) (eq.
    9), the weight being 1 for the task of class c and alpha / (tasks - 1) for the others, as in the authors' code. p_ct
    is the mean of phi_t of class c. Of a class that was gone when task t came, it is a mean of the p_kt that are known,
    weighted by the softmax over k of cos(p_cs, p_ks), s the task of class c (eq. 6-8); the classes k are those of task
    t and, as in the authors' code, of later ones.

    size: the width of an adapter's bottleneck.
    alpha: the weight of the subspaces of other tasks.
    """

    traits = replace(AdaptersForTasks.traits, paper="Zhou et al. 2024, arXiv:2403.12030")

    alpha: Annotated[float, Field(ge=0), Choices(0.05, 0.1, 0.5)] = 0.1

    def begin_run(self) -> None:
        """Before the first task there is no prototype: p_ct at [t, c], of the classes that were there at task t."""
        self.prototypes = self.weight = torch.zeros(0, 0, self.model.feature_dim, device=self.device)

    def begin_task(self, task: Task) -> None:
        """New adapters, and a new scale of the cosines."""
        super().begin_task(task)
        self.sigma = nn.Parameter(torch.ones(1, device=self.device))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the scaled cosines over the task's own outputs (eq. 3)."""
        logits = self.sigma * cosines(self.model.features(batch.images), self.model.head.weight)
        return {"classification": self.own_loss(logits, batch)}

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """The means of the task's classes in every subspace, then those of earlier classes in the new one."""
        known = F.pad(self.prototypes, (0, 0, 0, len(task.classes), 0, 1))
        for t in range(task.index + 1):
            known[t, task.outputs] = self.means(task, t)
        self.prototypes = known
        self.weight = self._weights(task.index)

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The sum of the weighted cosines in all subspaces; until the first task is over, the cosines it trains by."""
        if not len(self.weight):
            return cosines(self.model.features(images), self.model.head.weight)
        scores = torch.zeros(images.shape[0], self.weight.shape[1], device=self.device)
        for t, weight in enumerate(self.weight):
            scores += F.normalize(self.features_of(images, t)) @ weight.T
        return F.pad(scores, (0, self.model.head.out_features - scores.shape[1]), value=UNKNOWN)

    def _weights(self, last: int) -> Tensor:
        """Return what is multiplied with the features of each subspace, float [tasks, outputs, d]."""
        completed, weights = self.prototypes.clone(), torch.full(self.prototypes.shape[:2], self.alpha / max(last, 1))
        for s in range(last + 1):
            old = self.outputs_of(s)
            weights[s, old] = 1.0
            for t in range(s + 1, last + 1):
                since = slice(self.outputs_of(t).start, None)
                similarity = cosines(self.prototypes[s, old], self.prototypes[s, since]).softmax(1)
                completed[t, old] = similarity @ self.prototypes[t, since]
        return F.normalize(completed, dim=2) * weights[:, :, None].to(self.device)
