"""The multi-layer perceptron."""

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from clbench.models.network import Network


class MLP(Network):
    """Linear layers, each followed by batch norm (if `batch_norm`), activation and dropout.

    With its default widths it is the network of van de Ven et al. 2022 (doi:10.1038/s42256-022-00568-3).
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        *,
        widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [400, 400],  # noqa: B006
        activation: Literal["relu", "tanh"] = "relu",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        batch_norm: bool = False,
    ) -> None:
        blocks: list[nn.Module] = []
        inputs = math.prod(image_shape)
        for width in widths:
            layers: list[nn.Module] = [] if blocks else [nn.Flatten()]
            layers.append(nn.Linear(inputs, width))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU() if activation == "relu" else nn.Tanh())
            if dropout:
                layers.append(nn.Dropout(dropout))
            blocks.append(nn.Sequential(*layers))
            inputs = width
        super().__init__(blocks, feature_dim=inputs)
