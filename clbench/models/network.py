"""The base of all models: a backbone that makes features, and one linear head whose rows are the outputs."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError


class Head(nn.Linear):
    """A linear classifier, float [B, in_features] -> [B, out_features], that gains rows as classes arrive."""

    @checked
    def __init__(self, in_features: int, out_features: int = 0) -> None:
        if in_features < 1 or out_features < 0 or in_features * (out_features or 1) > 10**10:
            raise ConfigError(f"a head of {in_features} features and {out_features} outputs; 1 and 0 or more accepted")
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Draw all rows from torch's global stream, as nn.Linear does; draw nothing if there are no rows."""
        if self.out_features:
            super().reset_parameters()

    @checked
    def grow(
        self, n_outputs: int, generator: torch.Generator, init: Literal["default", "zeros", "he"] = "default"
    ) -> None:
        """Add rows until there are `n_outputs` in all; the old rows keep their bits.

        New rows, bias included, are U(-1/sqrt(d), 1/sqrt(d)), nn.Linear's own initialisation, drawn row by
        row from a CPU generator; or zeros; or ("he") weights from N(0, 1/d) and a bias of 0 (He et al. 2015,
        arXiv:1502.01852, with the gain of a layer that no ReLU follows). `weight` and `bias` become new Parameters
        of the same dtype, device and `requires_grad`. Raises ConfigError for fewer outputs than there are.
        """
        if n_outputs < self.out_features:
            raise ConfigError(f"n_outputs={n_outputs} given; at least the existing {self.out_features} are accepted")
        bound = 1 / math.sqrt(self.in_features)
        rows = torch.empty(n_outputs - self.out_features, self.in_features + 1)
        if init == "default":
            rows.uniform_(-bound, bound, generator=generator)
        else:
            rows.zero_()
        if init == "he":
            rows[:, :-1].normal_(0, bound, generator=generator)
        self.weight = _extended(self.weight, rows[:, :-1])
        self.bias = _extended(self.bias, rows[:, -1])
        self.out_features = n_outputs


def _extended(parameter: Tensor, rows: Tensor) -> nn.Parameter:
    rows = rows.to(parameter.device, parameter.dtype)
    return nn.Parameter(torch.cat([parameter.detach(), rows]), requires_grad=parameter.requires_grad)


class Network(nn.Module):
    """Base of the models: `head(features(images))`; the head starts without outputs.

    A subclass passes its layers in order; a backbone that is no sequence overrides `features` and `blocks`.
    """

    feature_dim: int
    head: Head

    @checked
    def __init__(self, blocks: list[nn.Module], feature_dim: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*blocks)
        self.feature_dim = feature_dim
        self.head = Head(feature_dim)

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images, float [B, C, H, W], to float [B, feature_dim]."""
        features: Tensor = self.backbone(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float [B, C, H, W], to logits, float [B, n_outputs]."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def blocks(self) -> list[nn.Module]:
        """Return the backbone's layers, first to last and without the head.

        Each layer holds parameters (a linear layer with its activation, a residual stage), so that the last ones can
        be trained alone.
        """
        return list(self.backbone)
