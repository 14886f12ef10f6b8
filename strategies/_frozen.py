"""Shared parts of the strategies on frozen features: the source of the features, and closed-form linear classifiers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clbench.config.errors import ConfigError, RunError
from clbench.config.run import RunConfig
from clbench.data.scenario import ImageSet, Scenario, Task
from clbench.learning.importance import grown
from clbench.learning.strategy import Stage, Strategy, Traits
from clbench.support.finite import not_finite

# The score of an output without samples: lower than any other, and equal among its like.
UNKNOWN = -1e30


class FrozenBackbone(Strategy, ABC):
    """A classifier that is linear in a representation h(x) of frozen features, solved for from sums over the samples.

    The backbone has given weights, or trains on the first task; from then on nothing trains, batch-norm statistics
    included. For each output the number of samples (`counts`) and the sum of their h (`sums`) are kept; with
    `second_moment` also the sum of h h^T (`moment`); all float64 on the CPU. So each sample is seen once, and their
    order does not matter.
    """

    traits = Traits(family="frozen", memory="none", on_features=True)
    second_moment: ClassVar[bool] = False

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """With given weights nothing trains, so nothing would be compiled."""
        if config.model.weights is not None and config.engine.compile != "none":
            raise ConfigError(
                f"compile={config.engine.compile} given, and {config.strategy} with weights trains nothing; "
                "compile=none is accepted"
            )
        if scenario.boundless and config.model.weights is None:
            raise ConfigError(
                f"{config.strategy} trains its network on the first task, and a stream without boundaries (disjoint) "
                "tells nobody where that ends; weights are accepted"
            )

    def begin_run(self) -> None:
        """Before the first task the sums are empty."""
        width = self.represent(torch.zeros(1, self.n_inputs(), device=self.device)).shape[1]
        size = width if self.second_moment else 0
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.sums = torch.zeros(0, width, dtype=torch.float64)
        self.moment = torch.zeros(size, size, dtype=torch.float64)
        self.weight = self.bias = torch.empty(0)

    def stages(self, task: Task) -> list[Stage]:
        """The first task trains the backbone, unless its weights were given."""
        return [Stage(task.train)] if task.index == 0 and self.config.model.weights is None else []

    def frozen_features(self, config: RunConfig) -> bool:
        """With given weights nothing trains; a strategy that trains something has stages of its own."""
        return type(self).stages is FrozenBackbone.stages

    def end_task(self, task: Task) -> None:
        """Add the task's samples to the sums and solve for the classifier."""
        self.observe(task.train)
        weight, bias = self.classifier()
        self.weight = weight.float().to(self.device)
        self.bias = torch.where(self.counts > 0, bias, UNKNOWN).float().to(self.device)

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The closed-form classifier's scores; until the first task is over, those of the linear head."""
        if not len(self.bias):
            logits: Tensor = self.model(images)
            return logits
        inputs = self.inputs(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.classify(self.represent(inputs.float()))

    def n_inputs(self) -> int:
        """Return the width of inputs()."""
        return self.model.feature_dim

    def inputs(self, images: Tensor) -> Tensor:
        """Map normalised images to what is represented, float [B, n_inputs]: the features of the backbone."""
        return self.model.features(images)

    def represent(self, features: Tensor) -> Tensor:
        """Map features, float [B, n_inputs], to what the classifier is linear in, float [B, M]."""
        return features

    def classify(self, h: Tensor) -> Tensor:
        """Map h, float32 [B, M], to scores, float32 [B, outputs]."""
        return F.linear(h, self.weight, self.bias)

    @abstractmethod
    def classifier(self) -> tuple[Tensor, Tensor]:
        """Return weight [outputs, M] and bias [outputs], float64, from the sums."""

    def means(self) -> Tensor:
        """Return the mean h of each output, float64 [outputs, M], 0 where there is no sample."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    @torch.no_grad()
    def represented(self, data: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk over h, float64 [B, M], and labels of samples, on the CPU; raises RunError where h is not finite."""
        self.model.eval()
        for batch in self.passes(data):
            h = self.represent(self.inputs(batch.images)).cpu().double()
            if not_finite(h, "features"):
                raise RunError(
                    f"features of task {self.progress.task} are not finite; a smaller learning rate, or other weights, "
                    "may help"
                )
            yield h, batch.labels.cpu()

    def observe(self, data: ImageSet) -> None:
        """Add samples to the sums."""
        for h, labels in self.represented(data):
            self.add(h, labels)

    def add(self, h: Tensor, labels: Tensor) -> None:
        """Add h, float64 [B, M], of samples with labels [B] to the sums."""
        targets = F.one_hot(labels, self.model.head.out_features).double()
        self.counts = grown(self.counts, targets[0]) + targets.sum(0)
        sums = targets.T @ h
        self.sums = grown(self.sums, sums) + sums
        if self.second_moment:
            self.moment += h.T @ h


def solved(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    """Return matrix^-1 right for a symmetric matrix, float64 [M, M], that is changed in place, and right [M, K].

    ridge: how much above 0 its eigenvalues are because of what was added to its diagonal before. Where rounding hides
        that, as beside very large or constant features, as much more is added as keeps its eigenvalues above 0.
    """
    diagonal = matrix.diagonal()
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps * float(diagonal.max())
    if ridge < rounding:
        diagonal += rounding
    root, info = torch.linalg.cholesky_ex(matrix)
    # The factor costs half of what an elimination does, which takes matrices with eigenvalues just below 0 too.
    return torch.linalg.solve(matrix, right) if info else torch.cholesky_solve(right, root)
