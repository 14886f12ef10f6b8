"""FeCAM."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.learning.importance import grown
from clbench.strategies._frozen import FrozenBackbone
from clbench.strategies._gaussian import inverse_by_features, inverse_by_samples


class FeCAM(FrozenBackbone):
    """FeCAM. Goswami et al. 2023, arXiv:2309.14062.

    argmin_c d^T N_c^-1 d with d = t(x) / ||t(x)|| - t(mu_c) / ||t(mu_c)||. t(v) = v^tukey is Tukey's transformation
    (of a value below 0 that of its size, with its sign), and mu_c the mean of phi(x) over class c. N_c are the
    correlations in the covariance S of t(phi(x)) over class c, after S has been shrunk twice: S + alpha1 * V1 * I +
    alpha2 * V2 * (1 - I), V1 being the mean on the diagonal and V2 that of what is not 0 beside it (eq. 6 to 9). So it
    is in the authors' code (dipamgoswami/FeCAM), which is followed, as the paper's values are from it; for ViTs they
    take tukey=1 and alpha2=0 and shrink once. LAMDA-PILOT adds 100 * I instead. For a class without two different
    samples N_c is I. Of a class its t(phi(x)) are kept, or, where it has more samples than there are features, as many
    rows with the same sums of products; of N_c^-1 as many rows again. The features come from given weights, or from the
    first task, on which the backbone trains before it is frozen.

    tukey: the power; 1 leaves the features as they are.
    alpha1, alpha2: how much of the mean variance and of the mean covariance is added.
    """

    traits = replace(FrozenBackbone.traits, paper="Goswami et al. 2023, arXiv:2309.14062")

    tukey: Annotated[float, Field(gt=0, le=1)] = 0.5
    alpha1: Annotated[float, Field(gt=0)] = 1.0
    alpha2: Annotated[float, Field(ge=0)] = 1.0

    def begin_run(self) -> None:
        """Begin the sums of transformed features too, and for each class rows whose products are its own."""
        super().begin_run()
        self.transformed = torch.zeros(0, self.sums.shape[1], dtype=torch.float64)
        self.rows: list[list[Tensor]] = []
        self.inverses: list[tuple[Tensor, Tensor, Tensor]] = []
        self.solved = torch.zeros(0, dtype=torch.float64)

    def add(self, h: Tensor, labels: Tensor) -> None:
        """Add features to all sums."""
        super().add(h, labels)
        self.transformed = grown(self.transformed, self.sums)
        self.rows += [[] for _ in range(len(self.sums) - len(self.rows))]
        for c in labels.unique().tolist():
            t = self._transform(h[labels == c]).float()
            self.transformed[c] += t.sum(0, dtype=torch.float64)
            self.rows[c].append(t)
            if sum(map(len, self.rows[c])) > 2 * t.shape[1]:
                self._gather(c)

    def classifier(self) -> tuple[Tensor, Tensor]:
        """The transformed class means, and no bias; the inverses of the correlations stand beside them."""
        missing = len(self.counts) - len(self.solved)
        self.solved = F.pad(self.solved, (0, missing))
        none = torch.zeros(0, self.sums.shape[1], device=self.device)
        self.inverses += [(none.sum(0), none, none.sum(1))] * missing
        for c in torch.nonzero(self.counts != self.solved).flatten().tolist():
            scale, factor, signs = (part.float().to(self.device) for part in self._inverse(c, self.alpha2))
            self.inverses[c] = scale, factor, signs
        self.solved = self.counts.clone()
        return F.normalize(self._transform(self.means())), torch.zeros_like(self.counts)

    def classify(self, h: Tensor) -> Tensor:
        """Minus the distances."""
        t, distances = F.normalize(self._transform(h)), []
        for mean, (scale, factor, signs) in zip(self.weight, self.inverses, strict=True):
            d = t - mean
            distances.append(d.square() @ scale + (d @ factor.T).square() @ signs)
        return self.bias - torch.stack(distances, 1)

    def _transform(self, features: Tensor) -> Tensor:
        return features.sign() * features.abs() ** self.tukey

    def _gather(self, c: int) -> Tensor:
        """Keep the rows of a class as one tensor, at most [M, M], and return it, float64."""
        rows = torch.cat(self.rows[c])
        self.rows[c] = [rows if len(rows) <= rows.shape[1] else torch.linalg.qr(rows.double(), mode="r").R]
        return self.rows[c][0].double()

    def _inverse(self, c: int, alpha2: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return p [M], A [r, M] and s [r], float64, with N^-1 = diag(p) + A^T diag(s) A; I for equal samples."""
        rows, n, total = self._gather(c), float(self.counts[c]), self.transformed[c]
        products = rows.T @ rows
        covariance = torch.addr(products, total, total, alpha=-1 / n).div_(max(n - 1, 1))
        # A variance below this share of the squared features is the rounding of equal samples.
        if covariance.trace() <= 1e-10 * products.trace() / n:
            return torch.ones_like(total), rows[:0], rows[:0, 0]
        # An entry below this share of the squared features is 0, and beside it rounding.
        own, shared = self._shrinkage(covariance, alpha2, 1e-14 * float(products.diagonal().max()) / n)
        if n < len(total):
            found = inverse_by_samples((rows - total / n) / (n - 1) ** 0.5, own, shared)
        else:
            found = inverse_by_features(covariance, own, shared)
        if found is None:
            # A mean covariance below 0, beside features that are always 0, can leave no distance.
            return self._inverse(c, 0.0)
        scale, factor, signs = found
        deviation = (covariance.diagonal() + own + shared).sqrt()
        return scale * deviation.square(), factor * deviation, signs

    def _shrinkage(self, covariance: Tensor, alpha2: float, zero: float) -> tuple[float, float]:
        """Return a and b, where S, shrunk twice, is S + a * I + b, b being added to all entries."""
        diagonal, own, shared = covariance.diagonal(), 0.0, 0.0
        n_outside = covariance.numel() - len(covariance)
        for _ in range(2):
            n_used = int(((covariance + shared).abs() > zero).sum() - ((diagonal + shared).abs() > zero).sum())
            mean = (float(covariance.sum() - diagonal.sum()) + shared * n_outside) / max(n_used, 1)
            variance = float(diagonal.mean()) + own + shared
            own, shared = own + self.alpha1 * variance - alpha2 * mean, shared + alpha2 * mean
        # Rounding must not hide that S + a * I has an inverse.
        return (own if shared else max(own, len(diagonal) * 1e-15 * float(diagonal.sum()))), shared
