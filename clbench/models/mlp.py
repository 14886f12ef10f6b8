"""The multi-layer perceptron."""

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from clbench.config.errors import ConfigError
from clbench.models.network import CReLU, Network

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "crelu": CReLU}


class MLP(Network):
    """Linear layers, each followed by batch norm (`batch_norm`) or layer norm (`norm=layer`), activation and dropout.

    With `crelu` a unit has two outputs, its positive and its negative part (Shang et al. 2016, arXiv:1603.05201; as a
    remedy: Abbas et al. 2023, arXiv:2303.07507): the features are twice as many as the last width.
    With its default widths it is the network of van de Ven et al. 2022 (doi:10.1038/s42256-022-00568-3).
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        *,
        widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [400, 400],  # noqa: B006
        activation: Literal["relu", "tanh", "crelu"] = "relu",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        batch_norm: bool = False,
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        if batch_norm and norm == "layer":
            raise ConfigError("mlp: batch_norm=true and norm=layer exclude each other; give one of them")
        blocks: list[nn.Module] = []
        inputs = math.prod(image_shape)
        for width in widths:
            layers: list[nn.Module] = [] if blocks else [nn.Flatten()]
            layers.append(nn.Linear(inputs, width))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            if norm == "layer":
                layers.append(nn.LayerNorm(width))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
            blocks.append(nn.Sequential(*layers))
            inputs = 2 * width if activation == "crelu" else width
        super().__init__(blocks, feature_dim=inputs)
