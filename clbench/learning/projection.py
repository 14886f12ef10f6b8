"""Gradient projection of the episodic-memory methods: pure functions of flat gradients, float [P]."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """Return the vector nearest to `gradient` [P] whose dot product with `reference` [P] is not negative.

    z = g - min(g.r, 0) / (r.r) r: nothing changes unless g.r < 0. Chaudhry et al. 2019, arXiv:1812.00420, eq. 11.
    """
    square = reference.dot(reference).clamp(min=torch.finfo(reference.dtype).tiny)
    return gradient - gradient.dot(reference).clamp(max=0) / square * reference


def project_on_cone(gradient: Tensor, references: Tensor, margin: float = 0.0) -> Tensor:
    """Return the vector nearest to `gradient` [P] whose dot products with all `references` [t, P] are not negative.

    z = G'v + g, v = argmin 1/2 |G'v + g|^2 over v >= margin, G's rows being the references; nothing changes where no
    dot product is negative. A margin above 0 leans towards the references. Lopez-Paz & Ranzato 2017,
    arXiv:1706.08840, eq. 11, the margin as in the authors' code. Exact: non-negative least squares on the triangular
    factor of [G', g], which has the same norms.
    """
    from scipy.optimize import nnls

    if bool((references @ gradient >= 0).all()):
        return gradient
    factor = torch.linalg.qr(torch.cat([references, gradient[None]]).T, mode="r").R.double().cpu().numpy()
    if not np.isfinite(factor).all():
        return gradient  # the trainer, which reads losses and weights, says what is wrong
    directions, target = factor[:, :-1], factor[:, -1]
    above, _ = nnls(directions, -(target + margin * directions.sum(1)))
    weights = torch.from_numpy(above + margin).to(references)
    return gradient + weights @ references


def gradient_of(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient of a loss as one vector [P], zero where it does not depend on a parameter; `.grad` stays."""
    return _vector(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


def gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the parameters' `.grad` as one vector [P]."""
    return _vector(p.grad for p in parameters if p.grad is not None)


def replace_gradients(parameters: Iterable[nn.Parameter], gradient: Tensor) -> None:
    """Put a vector [P] in the place of the parameters' `.grad`."""
    own = [p.grad for p in parameters if p.grad is not None]
    for part, now in zip(gradient.split([g.numel() for g in own]), own, strict=True):
        now.copy_(part.view(now.shape))


def _vector(tensors: Iterable[Tensor]) -> Tensor:
    # Not torch's parameters_to_vector, which refuses weights whose channels come last.
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
