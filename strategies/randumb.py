"""RanDumb."""

import math
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Choices
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage
from clbench.strategies.slda import SLDA


class RanDumb(SLDA):
    """RanDumb. Prabhu et al. 2024, arXiv:2402.08823.

    Streaming discriminant analysis (slda) on random Fourier features of the pixels; the network is neither trained nor
    asked. h(x) = sqrt(2 / M) * cos(sqrt(2 * gamma) * W^T x + b), with W from N(0, 1) and b uniform in [0, 2 pi),
    approximates a Gaussian kernel exp(-gamma * ||x - x'||^2). Sigma is first shrunk by the estimator OAS (Chen et al.
    2010, arXiv:0907.4698), then as in slda. Of the authors' two codes this follows src/legacy_model.py, from which the
    paper's numbers are: one Sigma, no class priors. Their mirrored images are left out.

    projections: the number M of random features (the paper: 10,000, or 25,000 beside other methods; the time grows
        with its cube).
    gamma: None: 1 / (number of pixels * variance of the pixels of the first task), as they are normalised (the authors:
        of all tasks).
    shrinkage: how far Sigma is drawn towards the identity after OAS.
    """

    traits = replace(
        SLDA.traits,
        paper="Prabhu et al. 2024, arXiv:2402.08823",
        with_weights={},
        through_features=False,
        on_features=False,
        needs_boundaries=True,
    )

    projections: Annotated[int, Field(ge=1), Choices(500, 1000, 2000)] = 1000
    gamma: Annotated[float, Field(gt=0)] | None = None
    shrinkage: Annotated[float, Field(gt=0, le=1), Choices(1e-4, 1e-3, 1e-2, 1e-1)] = 1e-4

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Nothing of the network is used, so neither are its weights."""
        if config.model.weights is not None:
            raise ConfigError(
                f"weights={config.model.weights} given, and {config.strategy} reads pixels without a network; "
                "leave out weights"
            )

    def begin_run(self) -> None:
        """Draw the random features."""
        generator = self.rng("projection")
        self.projection = torch.randn(self.n_inputs(), self.projections, generator=generator).to(self.device)
        self.offset = (2 * math.pi * torch.rand(self.projections, generator=generator)).to(self.device)
        self.width = self.gamma or 1.0
        super().begin_run()

    def stages(self, task: Task) -> list[Stage]:
        """Nothing trains."""
        return []

    def end_task(self, task: Task) -> None:
        """With the first task the width of the kernel is known."""
        if task.index == 0 and self.gamma is None:
            n_values = len(task.train) * self.n_inputs()
            total = square = 0.0
            for batch in self.passes(task.train):
                total += float(batch.images.double().sum())
                square += float(batch.images.double().square().sum())
            variance = square / n_values - (total / n_values) ** 2
            self.width = 1 / (self.n_inputs() * variance) if variance > 1e-12 * square / n_values else 1.0
        super().end_task(task)

    def n_inputs(self) -> int:
        """The number of values in an image."""
        return math.prod(self._context.scenario.image_shape)

    def inputs(self, images: Tensor) -> Tensor:
        """The pixels."""
        return images.flatten(1)

    def represent(self, features: Tensor) -> Tensor:
        """The random Fourier features."""
        angles = math.sqrt(2 * self.width) * (features @ self.projection) + self.offset
        return math.sqrt(2 / self.projections) * angles.cos()

    def covariance(self, means: Tensor) -> Tensor:
        """Shrink the covariance to its mean variance as OAS does, from its size and the number of samples."""
        empirical = super().covariance(means)
        mean, square = empirical.trace() / len(empirical), empirical.square().mean()
        spread = (self.counts.sum() + 1) * (square - mean**2 / len(empirical))
        share = float(((square + mean**2) / spread).clamp(max=1)) if spread > 0 else 1.0
        return torch.lerp(empirical, mean * torch.eye(len(empirical), dtype=torch.float64), share)
