"""The Gaussian of a class in the space of features, to draw features of classes that are gone, or for distances."""

import math

import torch
from torch import Tensor

# Added to the diagonal of each covariance, as in the authors' code of SLCA and of MOS.
JITTER = 1e-4

Inverse = tuple[float, Tensor, Tensor]


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of features of a class, float64 [N, d] -> [d], and a factor F of their covariance, [d, d].

    F F^T = covariance + 1e-4 I, F being lower triangular (Cholesky). One sample has a covariance of 0.
    """
    covariance = features.T.cov(correction=min(1, len(features) - 1))
    factor: Tensor = torch.linalg.cholesky(covariance + JITTER * torch.eye(features.shape[1], dtype=features.dtype))
    return features.mean(0), factor


def inverse_by_features(covariance: Tensor, own: float, shared: float) -> Inverse | None:
    """Return p, A [M, M] and s [M] with p * I + A^T diag(s) A = (S + own * I + shared)^-1 for a covariance S [M, M].

    `shared` is added to all entries. All are float64. None where the sum has an eigenvalue that is not above 0.
    """
    root, info = torch.linalg.cholesky_ex((covariance + shared).diagonal_scatter(covariance.diagonal() + own + shared))
    if info:
        return None
    identity = torch.eye(len(root), dtype=root.dtype)
    return 0.0, torch.linalg.solve_triangular(root, identity, upper=False), torch.ones_like(root[0])


def inverse_by_samples(samples: Tensor, own: float, shared: float) -> Inverse | None:
    """Return the same for S = X^T X of samples X [n, M]; A is [n + 1, M], far fewer numbers where n is far below M.

    (X^T X + own * I)^-1 by the formula of Woodbury, then `shared` by that of Sherman and Morrison. Beside so few
    samples there are directions in which `own` alone is left, so that it has to be above 0.
    """
    kernel = samples @ samples.T
    root, info = torch.linalg.cholesky_ex(kernel.diagonal_scatter(kernel.diagonal() + own))
    if own <= 1e-12 * abs(shared) or info:
        return None
    factor = torch.linalg.solve_triangular(root, samples, upper=False) / own**0.5
    total = 1 / own - factor.sum(1) @ factor
    beside = 1 + shared * float(total.sum())
    if beside <= 0:
        return None
    share = shared / beside
    signs = -torch.ones(len(samples) + 1, dtype=samples.dtype)
    signs[-1] = -math.copysign(1, share)
    return 1 / own, torch.cat([factor, abs(share) ** 0.5 * total[None]]), signs
