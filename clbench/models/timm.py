"""The architectures of timm by name, without their classifiers (the extra `pretrained`)."""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Unpack, cast, get_args

from pydantic import Field
from torch import Tensor, nn

from clbench.config.errors import ConfigError, unknown
from clbench.models.pretrained import Asked, Interpolation, Preprocess, Preprocessing, Pretrained, Side, check_patches
from clbench.models.weights import fetched, in_hub

# The files in which the Hugging Face hub keeps the tensors of a network of timm.
FILES = ("model.safetensors", "pytorch_model.bin")


class Timm(Pretrained):
    """A network of timm."""

    def own_weights(self, offline: bool) -> Path:
        """Return the file of the weights of this name from the cache of Hugging Face or torch, or fetch it."""
        asked = self._published
        if not asked.get("hf_hub_id"):
            return super().own_weights(offline)
        from huggingface_hub import hf_hub_url, try_to_load_from_cache

        name, repository = f"{asked['architecture']}.{asked['tag']}", asked["hf_hub_id"]
        files = [asked["hf_hub_filename"]] if asked.get("hf_hub_filename") else FILES
        for file in files:
            if isinstance(cached := try_to_load_from_cache(repository, file), str):
                return Path(cached)
        kept = in_hub(f"{name}{Path(files[0]).suffix}")
        return fetched(hf_hub_url(repository, files[0]), kept, f"weights of timm:{name}", offline=offline)

    def fitted(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors without the classifier's, as timm's own filter renames and resizes them where it has to."""
        own = self.backbone.state_dict()
        classifier = self._published.get("classifier") or "head"
        dropped = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))

        def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: v for name, v in tensors.items() if name in own or not name.startswith(dropped)}

        def shapes(tensors: dict[str, Tensor]) -> dict[str, Any]:
            return {name: v.shape for name, v in tensors.items() if not name.endswith(".num_batches_tracked")}

        module = sys.modules[type(self.backbone).__module__]
        rename = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
        if rename is None or shapes(without(stored)) == shapes(own):
            return without(stored)
        takes_model = len(inspect.signature(rename).parameters) > 1
        return without(rename(stored, self.backbone) if takes_model else rename(stored))

    @property
    def _published(self) -> dict[str, Any]:
        """The facts that timm has of the weights of this name; none of a network that is put together here."""
        found: dict[str, Any] = getattr(self.backbone, "pretrained_cfg", {})
        return found

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of a transformer as a chain from pixels to features; of another network see Pretrained."""
        if not isinstance(self.backbone, _timm().models.VisionTransformer):
            return super().blocks()
        inner = list(cast(nn.Sequential, self.backbone.blocks))
        return [Embedding(self.preprocess, self.backbone), *inner[:-1], Last(inner[-1], self.backbone)]


class TimmWithWeights(Timm):
    """A network of timm whose name says its weights, as `resnet18.a1_in1k` does."""

    begins_trained: ClassVar[bool] = True


# The parts of a vision transformer that come behind its blocks.
BEHIND = ("norm", "fc_norm", "attn_pool", "head_drop", "head", "head_dist")


class Embedding(nn.Module):
    """The part of a vision transformer before its blocks: images to tokens, float [B, N, D]."""

    def __init__(self, preprocess: Preprocess, vit: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        for name, child in vit.named_children():
            if name not in ("blocks", *BEHIND):
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
        self.block = block
        for name, child in vit.named_children():
            if name in BEHIND:
                self.add_module(name, child)
        self._whole = (vit,)

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the block, then normalise and pool as the transformer does."""
        vit: Any = self._whole[0]
        features: Tensor = vit.forward_head(vit.norm(self.block(tokens)), pre_logits=True)
        return features


@functools.cache
def network(name: str) -> Callable[..., Timm]:
    """Return the function that builds the architecture of this name; raises ConfigError for one that timm lacks."""
    timm = _timm()
    architecture, _, tag = name.partition(".")
    # Not is_model(), which knows names that timm has given up, such as vit_base_patch16_224_in21k.
    if architecture not in (known := timm.list_models()):
        raise unknown("model of timm", name, known)
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown(f"weights of timm:{architecture}", tag, tags)
    made = functools.partial(build, name)
    if tag:
        signature = inspect.signature(made, eval_str=True).replace(return_annotation=TimmWithWeights)
        made.__signature__ = signature  # type: ignore[attr-defined]
    return made


def build(
    name: str,
    image_shape: tuple[int, int, int],
    **asked: Unpack[Asked],
) -> Timm:
    """Build a network of timm; what is not given is as its weights were trained.

    asked: see Preprocessing; with another size, crop is 1 unless it is given.
    """
    timm = _timm()
    known = timm.get_pretrained_cfg(name, allow_unregistered=False)
    size = asked.get("image_size")
    sized = {"img_size": size} if size and known.fixed_input_size else {}
    try:
        backbone = timm.create_model(name, num_classes=0, **sized)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"timm:{name} can't be built ({str(error).splitlines()[0]})") from None
    if sized and (patch := getattr(getattr(backbone, "patch_embed", None), "patch_size", None)):
        check_patches(f"timm:{name}", sized["img_size"], patch[0])
    own = backbone.pretrained_cfg
    resized: Any = own["interpolation"] if own["interpolation"] in get_args(Interpolation) else "bicubic"
    published = Preprocessing(own["input_size"][-1], own["crop_pct"], resized, tuple(own["mean"]), tuple(own["std"]))
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return Timm(backbone, width, published.with_options(asked))


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
    check_patches("vit", size, patch_size)
    if width % heads:
        raise ConfigError(f"vit: width={width} and heads={heads} given; a width that is a multiple of heads accepted")
    models: Any = _timm().models
    backbone = models.VisionTransformer(
        img_size=size, patch_size=patch_size, embed_dim=width, depth=depth, num_heads=heads, num_classes=0
    )
    return Timm(backbone, width, Preprocessing(size, mean=(0.5,) * 3, std=(0.5,) * 3))


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            "this model needs timm, which is not installed; pip install 'clbench[pretrained]' is accepted"
        ) from None
    return timm
