"""RanPAC."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.config.space import Choices
from clbench.data.batches import gathered
from clbench.data.scenario import ImageSet
from clbench.strategies._adapted import FirstSession
from clbench.strategies._frozen import solved

RIDGES = [10.0**power for power in range(-8, 9)]


class RanPAC(FirstSession):
    """RanPAC. McDonnell et al. 2023, arXiv:2307.02251.

    score = h(x)^T (G + ridge * I)^-1 C with h(x) = ReLU(W^T phi(x)), G = sum of h h^T, C = sum of h y^T (sec. 4.3); y
    are one-hot labels. The features come from given weights, or from the first task, on which the backbone trains
    before it is frozen.

    projections: the number of columns of W (the paper's M), drawn once from N(0, 1): 10,000, as in the paper, where
        weights are given. M^2 numbers of 8 bytes are kept (0.8 GB), and the time grows with the cube of M.
    ridge: None chooses, after each task, the power of 10 from -8 to 8 with the least squared error on a fifth of the
        task's samples, fitted on the others, as the authors' code does. Where none of that fifth is of a class among
        the others, it is the mean square of an entry of h, times the number of samples.
    adaptation: what is adapted to the first task before it is frozen, see aper; "adapter", "scale-shift" and "prompts"
        are the paper's, with which it is complete, for a vision transformer with given weights.
    size: the width of an adapter's bottleneck (None: 64), or the prompts of a block (None: 5).
    """

    traits = replace(
        FirstSession.traits, paper="McDonnell et al. 2023, arXiv:2307.02251", with_weights={"projections": 10_000}
    )
    second_moment = True

    projections: Annotated[int, Field(ge=1), Choices(500, 1000, 2000)] = 1000
    ridge: Annotated[float, Field(gt=0)] | None = None

    def begin_run(self) -> None:
        """Draw the projections."""
        shape = (self.model.feature_dim, self.projections)
        self.projection = torch.randn(shape, generator=self.rng("projection")).to(self.device)
        super().begin_run()

    def represent(self, features: Tensor) -> Tensor:
        """ReLU of the random projections."""
        return (features.to(self.projection) @ self.projection).relu()

    def observe(self, data: ImageSet) -> None:
        """Choose the ridge parameter, and add the samples to the sums."""
        if self.ridge is not None:
            self.chosen_ridge = self.ridge
            super().observe(data)
            return
        h, labels = gathered((h for h, _ in self.represented(data)), len(data)), data.labels
        self.add(h, labels)
        self.chosen_ridge = self._best_ridge(h, labels)

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Ridge regression onto the one-hot labels of all samples so far."""
        regularised = self.moment.clone()
        regularised.diagonal().add_(self.chosen_ridge)
        return solved(regularised, self.chosen_ridge, self.sums.T).T, torch.zeros_like(self.counts)

    def _best_ridge(self, h: Tensor, labels: Tensor) -> float:
        order = torch.randperm(len(h), generator=self.rng("ridge"))
        h, y = h[order], F.one_hot(labels).double()[order]
        n = len(h) * 4 // 5
        if not torch.isin(y[n:].argmax(1), y[:n].argmax(1)).any():
            # With an image or two of each class no error says anything; this ridge is to the scale of the features.
            return float(h.square().sum()) / self.projections or 1.0
        a, b = h[:n], h[n:]
        # a^T (a a^T + ridge)^-1 = (a^T a + ridge)^-1 a^T: the smaller one is decomposed, once for all candidates.
        gram, left, right = (a @ a.T, b @ a.T, y[:n]) if n < h.shape[1] else (a.T @ a, b, a.T @ y[:n])
        values, vectors = torch.linalg.eigh(gram)
        left, right = left @ vectors, vectors.T @ right
        errors = [float((left / (values.clamp(min=0) + r) @ right - y[n:]).square().mean()) for r in RIDGES]
        return RIDGES[errors.index(min(errors))]
