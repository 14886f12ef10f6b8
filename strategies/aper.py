"""APER."""

import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clbench.models import inserted
from clbench.strategies._adapted import FirstSession


class APER(FirstSession):
    """APER (ADAM), adapt and merge. Zhou et al. 2023, arXiv:2303.07338.

    argmax_c cos([phi(x), phi*(x)], p_c), p_c the mean over class c (eq. 7): phi is the network as it was given, phi*
    the one that was adapted to the first task by the cross-entropy of sigma * cos(phi*(x), w_c), sigma learnt, as in
    the authors' code. A backbone without given weights trains on the first task, too.

    adaptation: a scale and a shift behind each linear, convolutional and normalisation layer, for any network; all
        weights; or, for a vision transformer, adapters beside the perceptrons (times 0.1, as in the authors' code) or
        prompts for each block.
    size: the width of an adapter's bottleneck (None: 64), or the prompts of a block (None: 5).
    """

    traits = replace(FirstSession.traits, paper="Zhou et al. 2023, arXiv:2303.07338", on_features=False)

    adaptation: Literal["scale-shift", "fine-tuning", "adapter", "prompts"] = "scale-shift"

    def n_inputs(self) -> int:
        """Return the number of features of both networks."""
        return 2 * self.model.feature_dim

    def begin_run(self) -> None:
        """Keep the network as it was given, where all of it is adapted."""
        if self.adaptation == "fine-tuning":
            self.given = copy.deepcopy(self.model).eval().requires_grad_(False)
        super().begin_run()

    def inputs(self, images: Tensor) -> Tensor:
        """Return the features of both networks, side by side, float [B, 2 * feature_dim]."""
        if self.adaptation == "fine-tuning":
            given = self.given.features(images)
        else:
            with inserted.using(self.model, None):
                given = self.model.features(images)
        return torch.cat([given, self.model.features(images)], 1)

    def classifier(self) -> tuple[Tensor, Tensor]:
        """The prototypes, scaled to length 1, as weights."""
        return F.normalize(self.means()), torch.zeros_like(self.counts)
