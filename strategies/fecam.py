"""FeCAM."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.learning.importance import grown
from clbench.strategies._frozen import FrozenBackbone


class FeCAM(FrozenBackbone):
    """FeCAM. Goswami et al. 2023, arXiv:2309.14062.

    argmin_c d^T N_c^-1 d with d = t(x) / ||t(x)|| - t(mu_c) / ||t(mu_c)||. t(v) = v^tukey is Tukey's transformation
    (of a value below 0 that of its size, with its sign), and mu_c the mean of phi(x) over class c. N_c are the
    correlations in the covariance S of t(phi(x)) over class c, after S has been shrunk twice: S + alpha1 * V1 * I +
    alpha2 * V2 * (1 - I), V1 being the mean on the diagonal and V2 that of what is not 0 beside it (eq. 6 to 9). So it
    is in the authors' code (dipamgoswami/FeCAM), which is followed, as the paper's values are from it; for ViTs they
    take tukey=1 and alpha2=0 and shrink once. LAMDA-PILOT adds 100 * I instead. For a class without two different
    samples N_c is I. The features come from given weights, or from the first task, on which the
    backbone trains before it is frozen.

    tukey: the power; 1 leaves the features as they are.
    alpha1, alpha2: how much of the mean variance and of the mean covariance is added.
    """

    traits = replace(FrozenBackbone.traits, paper="Goswami et al. 2023, arXiv:2309.14062")

    tukey: Annotated[float, Field(gt=0, le=1)] = 0.5
    alpha1: Annotated[float, Field(gt=0)] = 1.0
    alpha2: Annotated[float, Field(ge=0)] = 1.0

    def begin_run(self) -> None:
        """Beside the sums of features begin those of transformed ones, and of their products, for each class."""
        super().begin_run()
        width = self.sums.shape[1]
        self.transformed = torch.zeros(0, width, dtype=torch.float64)
        self.products = torch.zeros(0, width, width, dtype=torch.float64)
        self.inverses = torch.zeros(0, width, width, device=self.device)
        self.solved = torch.zeros(0, dtype=torch.float64)

    def add(self, h: Tensor, labels: Tensor) -> None:
        """Add features to all sums."""
        super().add(h, labels)
        if missing := len(self.sums) - len(self.transformed):
            self.transformed = grown(self.transformed, self.sums)
            self.products = F.pad(self.products, (0, 0, 0, 0, 0, missing))
        for c in labels.unique().tolist():
            t = self._transform(h[labels == c])
            self.transformed[c] += t.sum(0)
            self.products[c] += t.T @ t

    def classifier(self) -> tuple[Tensor, Tensor]:
        """The transformed class means, and no bias; the inverses of the correlations stand beside them."""
        missing = len(self.counts) - len(self.solved)
        self.inverses = F.pad(self.inverses, (0, 0, 0, 0, 0, missing))
        for c in torch.nonzero(self.counts != F.pad(self.solved, (0, missing))).flatten().tolist():
            self.inverses[c] = torch.linalg.inv(self._correlations(c)).to(self.inverses)
        self.solved = self.counts.clone()
        return F.normalize(self._transform(self.means())), torch.zeros_like(self.counts)

    def classify(self, h: Tensor) -> Tensor:
        """Minus the distances."""
        t = F.normalize(self._transform(h))
        distances = [
            ((t - m) @ inverse * (t - m)).sum(1) for m, inverse in zip(self.weight, self.inverses, strict=True)
        ]
        return self.bias - torch.stack(distances, 1)

    def _transform(self, features: Tensor) -> Tensor:
        return features.sign() * features.abs() ** self.tukey

    def _correlations(self, c: int) -> Tensor:
        """Return N of a class, float64 [M, M]; I where its samples are all alike."""
        n, total = float(self.counts[c]), self.transformed[c]
        covariance = (self.products[c] - torch.outer(total, total) / n) / max(n - 1, 1)
        # A variance below this share of the squared features is the rounding of equal samples.
        if covariance.trace() <= 1e-10 * self.products[c].trace() / n:
            return torch.eye(len(covariance), dtype=torch.float64)
        for alpha2 in (self.alpha2, 0.0):
            shrunk = self._shrunk(self._shrunk(covariance, alpha2), alpha2)
            # A mean covariance below 0, beside features that are always 0, can leave no distance.
            if not torch.linalg.cholesky_ex(shrunk).info:
                break
        deviation = shrunk.diagonal().sqrt()
        return shrunk / torch.outer(deviation, deviation)

    def _shrunk(self, covariance: Tensor, alpha2: float) -> Tensor:
        diagonal = torch.diag(covariance.diagonal())
        outside = covariance - diagonal
        mean = outside.sum() / (outside != 0).sum().clamp(min=1)
        added = torch.full_like(covariance, alpha2 * float(mean)).fill_diagonal_(
            self.alpha1 * float(covariance.diagonal().mean())
        )
        return covariance + added
