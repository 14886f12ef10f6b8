"""Networks that come with pre-trained weights: their preprocessing is their first layer, on the device."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.models.network import Network

Interpolation = Literal["bicubic", "bilinear", "nearest"]


@dataclass(frozen=True)
class Preprocessing:
    """The treatment of an image that weights were trained with; it belongs to the weights, not to the data.

    size: height and width, in pixels, of the square that the network sees.
    crop: the share of the shorter side that the square keeps, above 0 and at most 1; the image is resized to size/crop
        first. The square is the centre.
    interpolation: how an image is resized; always with antialiasing, and bicubic values are cut to [0, 1].
    mean, std: subtracted from each channel of an image in [0, 1], and what it is then divided by.
    """

    size: int
    crop: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __str__(self) -> str:
        mean, std = (",".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.size}x{self.size} {self.interpolation}, crop {self.crop:g}, mean {mean}, deviation {std}"


class Preprocess(nn.Module):
    """Does a Preprocessing to a batch, float [B, 1 or 3, H, W] in [0, 1] -> float [B, 3, size, size]."""

    def __init__(self, asked: Preprocessing) -> None:
        super().__init__()
        self.asked = asked
        # Not saved with the weights: they are constants of the model's name and options.
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(asked, name)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Resize the shorter side, cut out the centre, and normalise."""
        size, (height, width) = self.asked.size, images.shape[-2:]
        scale = math.floor(size / self.asked.crop) / min(height, width)
        wanted = (max(size, round(height * scale)), max(size, round(width * scale)))
        if wanted != (height, width):
            mode = self.asked.interpolation
            smooth: dict[str, Any] = {} if mode == "nearest" else {"antialias": True, "align_corners": False}
            images = F.interpolate(images, wanted, mode=mode, **smooth)
            if mode == "bicubic":
                images = images.clamp(0, 1)
        top, left = ((side - size) // 2 for side in wanted)
        images = images[..., top : top + size, left : left + size]
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std


class Pretrained(Network):
    """A backbone with the preprocessing of its weights; its images are in [0, 1], at the size of the data set.

    backbone: maps preprocessed images, float [B, 3, size, size], to features, float [B, feature_dim]; its tensors keep
        the names that its weights are published under.
    """

    takes_pixels: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, feature_dim: int, preprocessing: Preprocessing) -> None:
        super().__init__([], feature_dim=feature_dim)
        self.preprocess = Preprocess(preprocessing)
        self.backbone = backbone  # type: ignore[assignment]

    @property
    def preprocessing(self) -> Preprocessing:
        """The treatment of an image before the backbone sees it."""
        return self.preprocess.asked

    def features(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], float [B, C, H, W], to float [B, feature_dim]; features [B, feature_dim] stay."""
        if images.dim() == 2:
            return images
        features: Tensor = self.backbone(self.preprocess(images))
        return features

    def blocks(self) -> list[nn.Module]:
        """Return the stages of the backbone; the first has all that comes before them, the last all that comes after.

        They are the parts of the backbone's sequences (`layer1` to `layer4`, the parts of `blocks`), in order.
        """
        stages: list[list[nn.Module]] = []
        before: list[nn.Module] = [self.preprocess]
        for child in self.backbone.children():
            parts = [part for part in child.children() if _learns(part)]
            if not isinstance(child, nn.Sequential | nn.ModuleList) or not parts:
                (stages[-1] if stages else before).append(child)
            elif len(parts) > 1 and any(isinstance(part, nn.Sequential) for part in parts):
                stages += [[part] for part in child.children()]
            else:
                stages.append([child])
        stages = stages or [[]]
        stages[0] = [*before, *stages[0]]
        return [nn.Sequential(*parts) for parts in stages]


def _learns(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
