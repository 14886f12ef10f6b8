"""Shared parts of the strategies that compare with the means of the exemplars of each class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.learning.strategy import Strategy


@torch.no_grad()
def exemplar_means(strategy: Strategy, *, flip: bool = False) -> Tensor | None:
    """Return the mean of each class's exemplars, in normalised features, normalised again: float [outputs, D].

    flip: whether mirror images count too. None without an exemplar. Rebuffi et al. 2017, arXiv:1611.07725, section 3.1.
    """
    data = strategy.exemplars()
    sums = torch.zeros(strategy.model.head.out_features, strategy.model.feature_dim, device=strategy.device)
    for batch in strategy.passes(data):
        features = F.normalize(strategy.features(batch.images).float())
        if flip:
            features = features + F.normalize(strategy.features(batch.images.flip(-1)).float())
        sums.index_add_(0, batch.labels, features)
    return F.normalize(sums) if len(data) else None


def nearest_mean(strategy: Strategy, means: Tensor, features: Tensor) -> Tensor:
    """Return scores by the nearest mean, float [B, outputs], -inf for a class without an exemplar.

    The dot product of unit vectors orders classes as the distance does.
    """
    # A class without an exemplar is never the nearest; one whose features are all zero may be.
    held = torch.zeros(len(means), dtype=torch.bool).index_fill(0, strategy.exemplars().labels, True)
    known = F.normalize(features.float()) @ means.T
    known = known.masked_fill(~held.to(strategy.device, non_blocking=True), -torch.inf)
    return F.pad(known, (0, strategy.model.head.out_features - known.shape[1]), value=-torch.inf)
