"""Streaming linear discriminant analysis."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.space import Choices
from clbench.strategies._frozen import FrozenBackbone, solved


class SLDA(FrozenBackbone):
    """Streaming linear discriminant analysis. Hayes & Kanan 2020, arXiv:1909.01520.

    score_c = w_c . phi(x) - w_c . mu_c / 2 with w_c = ((1 - shrinkage) * Sigma + shrinkage * I)^-1 mu_c. mu_c is the
    mean of all features of class c; Sigma is their covariance around the class means, one for all classes. There are no
    class priors, as published. Sigma is exact, where the paper's recursion depends on the order of the samples. The
    features come from given weights, or from the first task, on which the backbone trains before it is frozen.

    shrinkage: how far Sigma is drawn towards the identity. None: tr(Sigma) / (tr(Sigma) + n - K), of n samples in K
        classes, which draws it as far as if the prior were d samples of its mean variance, d the number of features;
        1, which compares with class means alone, where no class has two different samples. The paper's 1e-4 suits many
        samples and the few directions that a network has learnt in a first task; where weights are given, None does.
    """

    traits = replace(
        FrozenBackbone.traits,
        paper="Hayes & Kanan 2020, arXiv:1909.01520",
        with_weights={"shrinkage": None},
        needs_boundaries=False,
    )
    second_moment = True

    shrinkage: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Choices(1e-4, 1e-3, 1e-2, 1e-1)] = 1e-4

    def classifier(self) -> tuple[Tensor, Tensor]:
        """The discriminants of all classes."""
        means = self.means()
        covariance = self.covariance(means)
        shrinkage = self._supported(covariance) if self.shrinkage is None else self.shrinkage
        shrunk = torch.lerp(covariance, torch.eye(len(covariance), dtype=torch.float64), shrinkage)
        weight = solved(shrunk, shrinkage, means.T).T
        return weight, -(weight * means).sum(1) / 2

    def covariance(self, means: Tensor) -> Tensor:
        """Return the covariance of the samples around the means of their classes, float64 [M, M]."""
        return (self.moment - self.sums.T @ means) / self.counts.sum()

    def _supported(self, covariance: Tensor) -> float:
        """Return the shrinkage that the number of samples supports."""
        trace, samples = float(covariance.trace()), float(self.counts.sum())
        # A variance below this share of the squared features is the rounding of equal samples.
        if trace <= 1e-10 * float(self.moment.trace()) / samples:
            return 1.0
        return trace / (trace + samples - float((self.counts > 0).sum()))
