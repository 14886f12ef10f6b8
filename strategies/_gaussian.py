"""The Gaussian of a class in the space of features, from which strategies draw features of classes that are gone."""

import torch
from torch import Tensor

# Added to the diagonal of each covariance, as in the authors' code of SLCA and of MOS.
JITTER = 1e-4


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of features of a class, float64 [N, d] -> [d], and a factor F of their covariance, [d, d].

    F F^T = covariance + 1e-4 I, F being lower triangular (Cholesky). One sample has a covariance of 0.
    """
    covariance = features.T.cov(correction=min(1, len(features) - 1))
    factor: Tensor = torch.linalg.cholesky(covariance + JITTER * torch.eye(features.shape[1], dtype=features.dtype))
    return features.mean(0), factor
