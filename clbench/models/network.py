"""The base of all models: a backbone that makes features, and one linear head whose rows are the outputs."""

import copy
import math
import textwrap
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError
from clbench.support.finite import not_finite

# The end of a sentence about a batch of one image.
NEEDS_TWO = "batch norm needs two; more images, or a model without batch norm, are accepted"


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


class CReLU(nn.Module):
    """relu(x) and relu(-x) of each unit or channel beside each other, float [B, C, ...] -> [B, 2 C, ...].

    Shang et al. 2016, arXiv:1603.05201.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return both parts, those of one unit next to each other."""
        return torch.stack([x, -x], 2).flatten(1, 2).relu()


class Network(nn.Module):
    """Base of the models: `head(features(images))`; the head starts without outputs.

    A subclass passes its layers in order; a backbone that is no sequence overrides `features` and `blocks`.
    `check_network` refuses, before any training, what does not keep to this: features of another width than
    `feature_dim`, another head than `Head`, images or, in eval mode, tensors that are changed.
    """

    # Whether it takes images [C, H, W] alone, and no samples of another shape.
    needs_images: ClassVar[bool] = False
    # Whether the images that it is given are in [0, 1], since it normalises them itself.
    takes_pixels: ClassVar[bool] = False
    # Whether its name says which weights it begins with, where nothing else is asked for.
    begins_trained: ClassVar[bool] = False
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


def refuse_lazy(model: nn.Module, name: str) -> None:
    """Raise ConfigError for a layer that takes its shape from the first image, as no weights are drawn for it before.

    name: what the error calls the model.
    """
    lazy = [layer for layer, tensor in model.state_dict(keep_vars=True).items() if is_lazy(tensor)]
    if lazy:
        raise ConfigError(
            f"model {name!r}: {lazy[0]} has no shape before the first image; layers of a known size are accepted"
        )


def check_network(model: Network, images: Tensor, name: str) -> None:
    """Refuse a model whose features, head or blocks are not what Network promises; the model is used up.

    images: two training images, normalised float [2, C, H, W], on the model's device. name: what errors call the model.
    Raises ConfigError that says what the model gives and what is accepted.
    """

    def refused(what: str) -> ConfigError:
        return ConfigError(f"model {name!r}: {what}")

    def given(method: Callable[[Tensor], object], what: str, width: int, promise: str) -> Tensor:
        unchanged, shape = images.clone(), [len(images), width]
        try:
            returned = method(images)
        except (Exception, SystemExit, GeneratorExit) as error:  # whatever torch, or the model's author, raises
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 100, placeholder=" ...")
            raise refused(f"images of {list(images.shape[1:])} don't fit its {what} ({reason})") from error
        if not isinstance(returned, Tensor) or list(returned.shape) != shape or not returned.is_floating_point():
            kind = list(returned.shape) if isinstance(returned, Tensor) else f"a {type(returned).__name__}"
            raise refused(
                f"its {what} of {len(images)} images are {kind}; float {shape} is accepted, as {width} is its {promise}"
            )
        if not torch.equal(images, unchanged):
            raise refused("it changes the images that it is given; one that leaves them as they are is accepted")
        return returned

    dim, head = getattr(model, "feature_dim", None), getattr(model, "head", None)
    if not isinstance(dim, int) or dim < 1:
        raise refused(f"its feature_dim is {dim!r}; the number of its features, 1 or more, is accepted")
    if not isinstance(head, Head) or head.out_features:
        raise refused(f"its head is {head}; clbench.models.Head({dim}), to which tasks add their outputs, is accepted")
    if head.in_features != dim:
        raise refused(f"its feature_dim is {dim} and its head takes {head.in_features}; equal numbers are accepted")
    refuse_lazy(model, name)
    blocks_of(model, name)
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        before = _versions(model.eval())
        features = given(model.features, "features", dim, "feature_dim")
        if _versions(model) != before:
            raise refused("it changes its own tensors in eval mode; one that changes them in train mode is accepted")
        if float((given(model.features, "features", dim, "feature_dim") - features).abs().max()) > 0.01:
            raise refused("in eval mode it answers the same images twice in two ways; one answer is accepted")
        if wrong := not_finite(features, "a feature of the first training images"):
            raise refused(f"{wrong}; finite features are accepted")
        given(model.train().features, "features", dim, "feature_dim")
        head.grow(2, torch.Generator(), "zeros")
        given(model.eval(), "outputs", 2, "number of outputs")


def blocks_of(model: Network, name: str) -> list[nn.Module]:
    """Return the blocks of a model; raises ConfigError where it can't say them. name: what errors call the model."""
    why: str
    try:
        blocks: object = model.blocks()
        why = f"returned a {type(blocks).__name__}"
    except Exception as error:  # whatever the code of the model's author raises
        blocks, why = None, f"fails ({type(error).__name__}: {error})"
    if not isinstance(blocks, list) or not all(isinstance(block, nn.Module) for block in blocks):
        raise ConfigError(f"model {name!r}: blocks() {why}; a list of its layers is accepted")
    return blocks


def takes_one_image(model: Network, image_shape: tuple[int, ...]) -> bool:
    """Whether a model takes a single image in its present mode, which batch norm in train mode may not."""
    first = next(model.parameters())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            copy.deepcopy(model).features(torch.zeros(1, *image_shape, device=first.device, dtype=first.dtype))
        except Exception as error:
            # `check_network` has shown on two images that the network raises nothing else.
            return not isinstance(error, ValueError)
    return True


def _versions(model: nn.Module) -> list[tuple[int, int]]:
    """Return which tensors a model has, and how often each was changed."""
    return [(id(tensor), tensor._version) for tensor in (*model.parameters(), *model.buffers())]
