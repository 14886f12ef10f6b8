"""Streaming linear discriminant analysis."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.space import Choices
from clbench.strategies._frozen import FrozenBackbone


class SLDA(FrozenBackbone):
    """Streaming linear discriminant analysis. Hayes & Kanan 2020, arXiv:1909.01520.

    score_c = w_c . phi(x) - w_c . mu_c / 2 with w_c = ((1 - shrinkage) * Sigma + shrinkage * I)^-1 mu_c. mu_c is the
    mean of all features of class c; Sigma is their covariance around the class means, one for all classes. There are no
    class priors, as published. Sigma is exact, where the paper's recursion depends on the order of the samples. The
    features come from given weights, or from the first task, on which the backbone trains before it is frozen.

    shrinkage: how far Sigma is drawn towards the identity.
    """

    traits = replace(FrozenBackbone.traits, paper="Hayes & Kanan 2020, arXiv:1909.01520")
    second_moment = True

    shrinkage: Annotated[float, Field(gt=0, le=1), Choices(1e-4, 1e-3, 1e-2, 1e-1)] = 1e-4

    def classifier(self) -> tuple[Tensor, Tensor]:
        """The discriminants of all classes."""
        means = self.means()
        covariance = (self.moment - self.sums.T @ means) / self.counts.sum()
        shrunk = torch.lerp(covariance, torch.eye(len(covariance), dtype=torch.float64), self.shrinkage)
        weight = torch.linalg.solve(shrunk, means.T).T
        return weight, -(weight * means).sum(1) / 2
