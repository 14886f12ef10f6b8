"""torchvision's residual networks, so that runs can start from its pre-trained weights."""

import itertools
from collections import OrderedDict
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from clbench.models.network import Network

# The names of the torchvision builders that make a torchvision ResNet.
Architecture = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


class TorchvisionResNet(Network):
    """A ResNet of torchvision for photos (7x7 stem, max pooling), its layers under torchvision's names.

    It fits `--weights ResNet18_Weights.IMAGENET1K_V1` and similar weights. A grey image goes to all three channels.
    `dropout` comes before the head.
    """

    needs_images: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        name: Architecture = "resnet18",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        from torchvision import models

        made = cast(nn.Module, getattr(models, name)(weights=None))
        layers = OrderedDict(made.named_children())
        width = cast(nn.Linear, layers.pop("fc")).in_features
        layers["flatten"] = nn.Flatten()
        if dropout:
            layers["dropout"] = nn.Dropout(dropout)
        super().__init__([], feature_dim=width)
        self.backbone = nn.Sequential(layers)
        self.channels = image_shape[0]

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images, float [B, C, H, W], to float [B, feature_dim]."""
        features: Tensor = self.backbone(images.expand(-1, 3, -1, -1) if self.channels == 1 else images)
        return features

    def blocks(self) -> list[nn.Module]:
        """Return the stem and the four stages; pooling belongs to the last."""
        layers = dict(self.backbone.named_children())
        names = list(layers)
        stages = [names.index(f"layer{i}") for i in (1, 2, 3, 4)]
        cuts = [0, *stages, len(names)]
        return [nn.Sequential(*(layers[n] for n in names[a:b])) for a, b in itertools.pairwise(cuts)]
