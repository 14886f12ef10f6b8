"""Networks that come with pre-trained weights: their preprocessing is their first layer, on the device."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.config.errors import ConfigError
from clbench.models.network import Network

# The types of the options of networks that say another preprocessing; one number stands for the three channels.
Side = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(gt=0, le=1)]
Interpolation = Literal["bicubic", "bilinear", "nearest"]
Mean = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Deviation = Annotated[list[Annotated[float, Field(gt=0, le=10)]], Field(min_length=3, max_length=3)]


class Asked(TypedDict, total=False):
    """Options of a network that ask for another preprocessing than that of its weights; see Preprocessing."""

    image_size: Side | None
    crop: Share | None
    interpolation: Interpolation | None
    mean: Mean | None
    std: Deviation | None


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

    def with_options(self, asked: Asked) -> "Preprocessing":
        """Return what the options of a network ask for; at another size the whole shorter side is kept."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in asked.items() if value is not None
        }
        if size := given.pop("image_size", None):
            given = {"crop": 1.0} | given | {"size": size}
        return replace(self, **given)

    def __str__(self) -> str:
        mean, std = (",".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.size}x{self.size} {self.interpolation}, crop {self.crop:g}, mean {mean}, deviation {std}"


def check_patches(name: str, size: int, patch: int) -> None:
    """Refuse a side of the image that is no whole number of patches; raises ConfigError with the nearest that are."""
    if size % patch:
        below = size - size % patch
        near = f"{below} and {below + patch}" if below else f"{patch}"
        raise ConfigError(
            f"{name} cuts an image into patches of {patch} pixels, and image_size={size} is no multiple of it; {near} "
            "are accepted"
        )


class Preprocess(nn.Module):
    """Does a Preprocessing to a batch, float [B, 1 or 3, H, W] in [0, 1] -> float [B, 3, size, size]."""

    mean: Tensor
    std: Tensor

    def __init__(self, asked: Preprocessing) -> None:
        super().__init__()
        self.asked = asked
        # Not saved with the weights: they are constants of the model's name and options.
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(asked, name)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Resize the shorter side, cut out the centre, and normalise."""
        size, (height, width) = self.asked.size, images.shape[-2:]
        # A crop such as 224/232 is not exact, and must not lose a pixel by it.
        shorter = math.floor(size / self.asked.crop + 1e-6)
        wanted = tuple(shorter * side // min(height, width) for side in (height, width))
        if wanted != (height, width):
            mode = self.asked.interpolation
            smooth: dict[str, Any] = {} if mode == "nearest" else {"antialias": True, "align_corners": False}
            images = F.interpolate(images, wanted, mode=mode, **smooth)
            if mode == "bicubic":
                images = images.clamp(0, 1)
        top, left = (round((side - size) / 2) for side in wanted)
        images = images[..., top : top + size, left : left + size]
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std


class Pretrained(Network):
    """A backbone with the preprocessing of its weights; its images are in [0, 1], at the size of the data set.

    backbone: maps preprocessed images, float [B, 3, size, size], to features, float [B, feature_dim]; its tensors keep
        the names that its weights are published under.
    """

    needs_images: ClassVar[bool] = True
    takes_pixels: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, feature_dim: int, preprocessing: Preprocessing) -> None:
        super().__init__([], feature_dim=feature_dim)
        self.preprocess = Preprocess(preprocessing)
        self.backbone = backbone  # type: ignore[assignment]

    @property
    def preprocessing(self) -> Preprocessing:
        """The treatment of an image before the backbone sees it."""
        return self.preprocess.asked

    def own_weights(self, offline: bool) -> Path:
        """Return the file of the weights that the model's name stands for, and fetch it where it is not there.

        Raises ConfigError where there are none, and, with the place to put the file, where they can't be fetched.
        """
        raise ConfigError("weights=pretrained given, and this model has no weights of its own; a file is accepted")

    def fitted(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return published tensors under the names that the backbone has for them, without those of the classifier."""
        return stored

    def features(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], float [B, C, H, W], to float [B, feature_dim]; features [B, feature_dim] stay."""
        if images.dim() == 2:
            return images
        features: Tensor = self.backbone(self.preprocess(images))
        return features

    def blocks(self) -> list[nn.Module]:
        """Return the residual blocks of the backbone, or the layers where it has none, first to last.

        What comes before them, and what stands in no layer, as a class token does, belongs to the first; what comes
        between or after them to the one before it.
        """
        found: list[list[nn.Module]] = []
        before: list[nn.Module] = [self.preprocess]
        for piece, begins in _pieces(self.backbone):
            if begins:
                found.append([*before, piece])
                before = []
            else:
                (found[-1] if found else before).append(piece)
        found = found or [before]
        held = {id(p) for pieces in found for piece in pieces for p in piece.parameters()}
        if loose := [p for p in self.backbone.parameters() if id(p) not in held]:
            found[0].append(nn.ParameterList(loose))
        return [nn.Sequential(*pieces) for pieces in found]


def _pieces(module: nn.Module, inside: bool = False) -> Iterator[tuple[nn.Module, bool]]:
    """Walk over the layers of a backbone, into its stages, each with whether it begins a block.

    inside: whether the module is a stage, in which a part with layers of its own is a block and no further stage.
    """
    for child in module.children():
        composed = any(list(part.children()) for part in child.children())
        holds = isinstance(getattr(child, "blocks", None), _SEQUENCES)
        holds = holds or (not inside and isinstance(getattr(child, "layers", None), _SEQUENCES))
        if holds or (composed and (isinstance(child, _SEQUENCES) or type(child).__name__.endswith("Stage"))):
            yield from _pieces(child, inside=True)
        elif isinstance(child, _SEQUENCES) and sum(isinstance(part, _LAYERS) for part in child) > 1:
            yield from ((part, isinstance(part, _LAYERS)) for part in child)
        else:
            # A layer by itself belongs to the block before it, and so does what holds none, such as batch norm.
            yield child, bool(list(child.children())) and any(isinstance(part, _LAYERS) for part in child.modules())


_SEQUENCES = (nn.Sequential, nn.ModuleList)
_LAYERS = (nn.Linear, nn.Conv2d)


def preprocessing_of(model: Network | None) -> str | None:
    """Return in words how a network treats an image before its backbone sees it; None where it does nothing to it."""
    return str(model.preprocessing) if isinstance(model, Pretrained) else None
