"""PODNet."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Log
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Strategy, Traits, eval_mode
from clbench.models.blocks import block_outputs, check_maps


def pooled(maps: Tensor) -> Tensor:
    """Return squared maps [B, C, H, W], summed over width and over height, side by side, L2-normalised: [B, C H + C W].

    Units without a place, [B, C], are maps of one pixel.
    """
    squares = maps.view(*maps.shape[:2], *(maps.shape[2:] or (1, 1))) ** 2
    return F.normalize(torch.cat([squares.sum(3).flatten(1), squares.sum(2).flatten(1)], 1))


def spatial_distillation(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Return the distance of the pooled maps, mean over batch and blocks; 0 where there is no block."""
    distances = [(pooled(a) - pooled(b)).norm(dim=1).mean() for a, b in zip(student, teacher, strict=True)]
    return torch.stack(distances).mean() if distances else torch.zeros(())


def hinge_nca(similarities: Tensor, labels: Tensor, eta: Tensor, margin: float) -> Tensor:
    """Return the mean of [-log(exp(eta (s_y - margin)) / sum over i != y of exp(eta s_i))]_+."""
    own = similarities.gather(1, labels[:, None])
    others = (eta * similarities).scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return F.relu(others - eta * (own[:, 0] - margin)).mean()


class PODNet(Strategy):
    """PODNet. Douillard, Cord, Ollion, Robert & Valle 2020, arXiv:2004.13513.

    L = NCA + sqrt(seen / new) (spatial * POD-spatial + flat * POD-flat), where seen and new are numbers of classes.
    POD-spatial compares what all blocks but the last give out with the old model's, pooled in one direction at a time;
    POD-flat compares the features, by their cosine. The similarity to a class is sum_k softmax_k(c) c_k over the
    cosines c of its proxies. New proxies start as the features of random images of their class (in the paper: k-means
    centroids). The paper's fine-tuning on balanced exemplars is left out.

    spatial: the weight of POD-spatial.
    flat: the weight of POD-flat.
    proxies_per_class: the number of proxies of each class.
    margin: what the own class's similarity is reduced by in NCA.
    scale: what the learnt factor eta of the similarities starts from (the paper: 1, with 160 epochs at a learning rate
        of 0.1 to grow in).
    """

    traits = Traits(
        family="distillation",
        paper="Douillard et al. 2020, arXiv:2004.13513",
        settings=("class",),
        needs_memory=True,
        through_features=False,
        not_applicable={
            "neutral_at_zero": "it classifies by similarity to proxies, with a loss of its own, also without a memory"
        },
    )

    spatial: Annotated[float, Field(ge=0), Log(0.1, 10)] = 3.0
    flat: Annotated[float, Field(ge=0), Log(0.1, 10)] = 1.0
    proxies_per_class: Annotated[int, Field(ge=1)] = 10
    margin: Annotated[float, Field(ge=0)] = 0.6
    scale: Annotated[float, Field(gt=0)] = 20.0

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """The margin is taken against every class seen so far, and maps are compared between all blocks."""
        if config.training.loss_outputs != "seen":
            raise ConfigError(
                f"podnet can't work with loss_outputs={config.training.loss_outputs!r}; 'seen' is accepted"
            )
        check_maps(config, scenario)

    def begin_run(self) -> None:
        """Before the first task there are no proxies; eta is learnt through all tasks."""
        self.eta = nn.Parameter(torch.full((), self.scale, device=self.device))
        self.proxies = nn.Parameter(torch.empty(0, self.proxies_per_class, self.model.feature_dim).to(self.device))

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher, and add proxies for the new classes."""
        self.teacher = self.frozen_copy()
        self.proxies = nn.Parameter(torch.cat([self.proxies.detach(), self._imprinted(task)]))
        self.factor = math.sqrt(task.outputs.stop / len(task.classes))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """NCA of the similarities, and both distillations."""
        *maps, features = block_outputs(self.model, batch.images)
        terms = {"nca": hinge_nca(self._similarities(features), batch.labels, self.eta, self.margin)}
        if self.teacher is not None:
            with torch.no_grad():
                *old_maps, old_features = block_outputs(self.teacher, batch.images)
            distance = 1 - F.cosine_similarity(features, old_features)
            terms["spatial"] = self.factor * self.spatial * spatial_distillation(maps, old_maps)
            terms["flat"] = self.factor * self.flat * distance.mean()
        return terms

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The similarity to each class; outputs yet to come are never chosen."""
        similarities = self._similarities(self.model.features(images))
        return F.pad(similarities, (0, self.model.head.out_features - len(self.proxies)), value=-torch.inf)

    def _similarities(self, features: Tensor) -> Tensor:
        cosines = torch.einsum("bd,ckd->bck", F.normalize(features), F.normalize(self.proxies, dim=2))
        return (cosines.softmax(2) * cosines).sum(2)

    @torch.no_grad()
    def _imprinted(self, task: Task) -> Tensor:
        rows = []
        for output in range(task.outputs.start, task.outputs.stop):
            data = task.train.subset((task.train.labels == output).nonzero()[:, 0])
            chosen = torch.randint(len(data), (self.proxies_per_class,), generator=self.rng(f"proxies/{output}"))
            with eval_mode(self):
                rows.append(
                    torch.cat([self.model.features(batch.images) for batch in self.passes(data.subset(chosen))])
                )
        return torch.stack(rows)
