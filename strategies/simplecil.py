"""SimpleCIL."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clbench.strategies._frozen import FrozenBackbone


class SimpleCIL(FrozenBackbone):
    """SimpleCIL. Zhou et al. 2023, arXiv:2303.07338.

    argmax_c cos(phi(x), p_c), the prototype p_c being the mean of all features of class c. The scores are ||phi(x)||
    times the cosine, which orders the classes alike. The features come from given weights, or from the first task, on
    which the backbone trains before it is frozen (the paper's adaptation to it).
    """

    traits = replace(FrozenBackbone.traits, paper="Zhou et al. 2023, arXiv:2303.07338")

    def classifier(self) -> tuple[Tensor, Tensor]:
        """The prototypes, scaled to length 1, as weights."""
        return F.normalize(self.means()), torch.zeros_like(self.counts)
