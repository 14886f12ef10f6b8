"""A small convolutional network for images of about 28 to 64 pixels."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from clbench.models.network import CReLU, Network


class ConvNet(Network):
    """One 3x3 convolution, norm, activation and 2x2 max pooling per width; the last maps are the features.

    norm: batch norm, or layer norm over all maps of an image. activation: with `crelu` a map has a positive and a
    negative part, so that the next layer is given twice as many.

    Usual widths are a pyramid such as 64-128-256-128-64. Once the maps are one pixel high or wide, pooling is left out.
    """

    needs_images: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [32, 64, 64],  # noqa: B006
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        norm: Literal["batch", "layer"] = "batch",
        activation: Literal["relu", "crelu"] = "relu",
    ) -> None:
        inputs, height, width = image_shape
        blocks: list[nn.Module] = []
        for outputs in widths:
            layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
            # One group of all channels is layer norm (Wu & He 2018, arXiv:1803.08494).
            layers.append(nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(1, outputs))
            layers.append(nn.ReLU() if activation == "relu" else CReLU())
            if min(height, width) > 1:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            blocks.append(nn.Sequential(*layers))
            inputs = outputs if activation == "relu" else 2 * outputs
        end: list[nn.Module] = [nn.Flatten()]
        if dropout:
            end.append(nn.Dropout(dropout))
        blocks[-1] = nn.Sequential(blocks[-1], *end)
        super().__init__(blocks, feature_dim=inputs * height * width)
