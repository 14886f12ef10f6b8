"""The architectures of timm by name, without their classifiers (the extra `pretrained`)."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, cast

from pydantic import Field
from torch import Tensor, nn

from clbench.config.errors import ConfigError, unknown
from clbench.models.pretrained import Interpolation, Preprocess, Preprocessing, Pretrained

Side = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(gt=0, le=1)]


class Timm(Pretrained):
    """A network of timm."""

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of a transformer, or the stages of another network, as a chain from pixels to features."""
        if not hasattr(self.backbone, "patch_embed") or not hasattr(self.backbone, "_pos_embed"):
            return super().blocks()
        inner = list(cast(nn.Sequential, self.backbone.blocks))
        return [Embedding(self.preprocess, self.backbone), *inner[:-1], Last(inner[-1], self.backbone)]


class Embedding(nn.Module):
    """The part of a vision transformer before its blocks: images to tokens, float [B, N, D]."""

    def __init__(self, preprocess: Preprocess, vit: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        last = {"blocks", "norm", "fc_norm", "head_drop", "head", "attn_pool"}
        for name, child in vit.named_children():
            if name not in last:
                self.add_module(name, child)
        for name, parameter in vit.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        # In a tuple, so that the rest of the transformer is no part of this one.
        self._whole = (vit,)

    def forward(self, images: Tensor) -> Tensor:
        """Cut preprocessed images into patches, and add class token and positions."""
        return embedded(self.preprocess, self._whole[0], images)


def embedded(preprocess: nn.Module, vit: Any, images: Tensor) -> Tensor:
    """Map images to the tokens that the first block of a vision transformer is given, float [B, N, D]."""
    tokens: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(preprocess(images)))))
    return tokens


class Last(nn.Module):
    """The last block of a vision transformer with what comes behind it: tokens to features, float [B, D]."""

    def __init__(self, block: nn.Module, vit: nn.Module) -> None:
        super().__init__()
        self.block, self.norm, self.fc_norm = block, vit.norm, vit.fc_norm
        self._whole = (vit,)

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the block, then normalise and pool as the transformer does."""
        vit: Any = self._whole[0]
        features: Tensor = vit.forward_head(self.norm(self.block(tokens)), pre_logits=True)
        return features


@functools.cache
def network(name: str) -> Callable[..., Timm]:
    """Return the function that builds the architecture of this name; raises ConfigError for one that timm lacks."""
    timm = _timm()
    if not timm.is_model(name.partition(".")[0]):
        raise unknown("model of timm", name, timm.list_models())
    return functools.partial(build, name)


def build(
    name: str,
    image_shape: tuple[int, int, int],
    *,
    image_size: Side | None = None,
    crop: Share | None = None,
    interpolation: Interpolation | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Timm:
    """Build a network of timm; what is not given is as its weights were trained.

    image_size, crop, interpolation, mean, std: see Preprocessing.
    """
    timm = _timm()
    try:
        sized = {"img_size": image_size} if _sized(name, image_size) else {}
        backbone = timm.create_model(name, num_classes=0, **sized)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"timm:{name} can't be built ({str(error).splitlines()[0]})") from None
    asked = backbone.pretrained_cfg
    preprocessing = Preprocessing(
        image_size or asked["input_size"][-1],
        crop or (1.0 if image_size else asked["crop_pct"]),
        interpolation or asked["interpolation"],
        tuple(mean or asked["mean"]),  # type: ignore[arg-type]
        tuple(std or asked["std"]),  # type: ignore[arg-type]
    )
    return Timm(backbone, backbone.num_features, preprocessing)


def vit(
    image_shape: tuple[int, int, int],
    *,
    image_size: Side | None = None,
    patch_size: Annotated[int, Field(ge=1)] = 4,
    width: Annotated[int, Field(ge=1)] = 64,
    depth: Annotated[int, Field(ge=1)] = 4,
    heads: Annotated[int, Field(ge=1)] = 4,
) -> Timm:
    """A small vision transformer, for weights of one's own. Dosovitskiy et al. 2021, arXiv:2010.11929.

    image_size: the side that an image is resized to; by default that of the data.
    patch_size: the side of a patch, in pixels.
    width: the length of a token, a multiple of `heads`, the number of attention heads of each of `depth` blocks.
    """
    size = image_size or min(image_shape[1:])
    if size % patch_size or width % heads:
        raise ConfigError(
            f"vit: image_size={size}, patch_size={patch_size}, width={width}, heads={heads} given; an image of whole "
            "patches and a width of whole heads are accepted"
        )
    models: Any = _timm().models
    backbone = models.VisionTransformer(
        img_size=size, patch_size=patch_size, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
    )
    return Timm(backbone, width, Preprocessing(size, mean=(0.5,) * 3, std=(0.5,) * 3))


def _sized(name: str, image_size: int | None) -> bool:
    """Whether an architecture is built for the size of its images, as a transformer is, and one was asked for."""
    return image_size is not None and bool(_timm().get_pretrained_cfg(name).fixed_input_size)


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            "this model needs timm, which is not installed; pip install 'clbench[pretrained]' is accepted"
        ) from None
    return timm
