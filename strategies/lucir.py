"""Learning a unified classifier incrementally via rebalancing."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from clbench.config.space import Choices, Log
from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.strategy import Stage, Strategy, Strength, Traits
from clbench.models.network import Network


class LUCIR(Strategy):
    """Learning a unified classifier via rebalancing. Hou et al. 2019, CVPR, doi:10.1109/CVPR.2019.00092.

    L = CE(scale * c) + l * (1 - cos(f, f_old)) + sum over the top_k new classes k of max(0, margin - c_y + c_k). c are
    the cosines of the feature f and the classes' weight vectors; scale is learnt; l = less_forget * sqrt(old classes /
    new classes); the ranking term is a mean over exemplars. Old weight vectors are fixed, new ones begin as their
    class's mean feature direction, at the mean norm of the old (sections 3.2-3.4 and the authors' code).

    less_forget: the weight of the term that holds the features.
    margin: how much nearer an exemplar's own class has to be than a new one.
    top_k: the number of new classes that are ranked.
    initial_scale: what scale starts from.
    """

    traits = Traits(
        family="replay",
        paper="Hou et al. 2019, CVPR, doi:10.1109/CVPR.2019.00092",
        settings=("class",),
        needs_memory=True,
        on_features=True,
        not_applicable={"neutral_at_zero": "its classifier is a cosine one, also without a memory"},
    )

    less_forget: Annotated[Strength, Log(0.5, 50)] = 5.0
    margin: Strength = 0.5
    top_k: Annotated[int, Field(ge=1)] = 2
    initial_scale: Annotated[float, Field(gt=0), Choices(1.0, 5.0, 10.0)] = 1.0

    def begin_run(self) -> None:
        """The scale is learnt through all tasks."""
        self.scale = nn.Parameter(torch.tensor(self.initial_scale, device=self.device))

    def begin_task(self, task: Task) -> None:
        """Keep the old model, whose features are to be kept."""
        self.teacher: Network | None = self.frozen_copy()
        self.old, self.new = slice(0, task.outputs.start), task.outputs
        self.strength = self.less_forget * math.sqrt(task.outputs.start / len(task.classes))

    def stages(self, task: Task) -> list[Stage]:
        """All weights but those of the old classes."""
        data = self.with_exemplars(task.train)
        if task.index == 0:
            return [Stage(data)]
        return [Stage(data, head_rows=task.outputs, before=lambda: self._imprint(task))]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Classification, less-forget and margin ranking."""
        features = self.model.features(batch.images)
        cosines = self._cosines(features)
        terms = {"classification": self.classification_loss(self.scale * cosines, batch)}
        if self.teacher is not None:
            with torch.no_grad():
                old_features = self.teacher.features(batch.images)
            terms["less-forget"] = self.strength * (1 - F.cosine_similarity(features, old_features)).mean()
            own = cosines.gather(1, batch.labels[:, None])
            new = cosines[:, self.new]
            hardest = new.topk(min(self.top_k, new.shape[1])).values
            ranking = (self.margin - own + hardest).clamp(min=0).sum(1)
            is_old = batch.labels < self.old.stop
            terms["ranking"] = (ranking * is_old).sum() / is_old.sum().clamp(min=1)
        return terms

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """Scaled cosines."""
        return self.scale * self._cosines(self.model.features(images))

    def _cosines(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features), F.normalize(self.model.head.weight))

    @torch.no_grad()
    def _imprint(self, task: Task) -> None:
        self.model.eval()
        weight = self.model.head.weight
        sums = torch.zeros_like(weight)
        for batch in self.passes(task.train):
            sums.index_add_(0, batch.labels, F.normalize(self.model.features(batch.images)))
        weight[self.new] = F.normalize(sums[self.new]) * weight[self.old].norm(dim=1).mean()
