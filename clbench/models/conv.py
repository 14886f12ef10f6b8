"""A small convolutional network for images of about 28 to 64 pixels."""

from typing import Annotated

from pydantic import Field
from torch import nn

from clbench.errors import ConfigError
from clbench.models.network import Network


class ConvNet(Network):
    """One 3x3 convolution, batch norm, ReLU and 2x2 max pooling per width; the last maps are the features.

    Raises ConfigError where the widths would halve an image to nothing.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [32, 64, 64],  # noqa: B006
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        inputs, height, width = image_shape
        if min(height, width) < 2 ** len(widths):
            most = min(height, width).bit_length() - 1
            raise ConfigError(
                f"conv: {len(widths)} widths given, at most {most} accepted for images of {height} x {width}"
            )
        blocks: list[nn.Module] = []
        for outputs in widths:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)))
            inputs, height, width = outputs, height // 2, width // 2
        end: list[nn.Module] = [nn.Flatten()]
        if dropout:
            end.append(nn.Dropout(dropout))
        blocks[-1] = nn.Sequential(blocks[-1], *end)
        super().__init__(blocks, feature_dim=inputs * height * width)
