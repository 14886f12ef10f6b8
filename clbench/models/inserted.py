"""Parameters that a method puts into a backbone, and takes out again: adapters, LoRA, scale and shift, prompts.

`insert(network, kind)` puts a *slot* in the place of each layer that the kind is for. A slot holds the layer and, for
each insertion, a part that goes with it. One insertion, or none, is in use at a time: `use` and `using` choose it, and
with None the network is the bare one, bit for bit. `remove` puts the layers back. All of it is in the network: it is
copied, saved, restored and moved with it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.models.network import Network


class Kind(Protocol):
    """A kind of parameters that can be put into a backbone.

    described: what errors call it.
    accepted: the networks that it is for, in words.
    """

    described: ClassVar[str]
    accepted: ClassVar[str]

    def fits(self, name: str, layer: nn.Module) -> bool:
        """Whether a part goes with this layer, `name` as in named_modules()."""

    def part(self, layer: nn.Module) -> nn.Module:
        """Return the part of a layer, drawn from torch's global stream; it is called with the layer and its input."""


class Slot(nn.Module):
    """A layer of a backbone with the parts of all insertions, of which one or none is in use."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.parts = nn.ModuleDict()
        self.used: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Give the layer and its input to the part in use; without one it is the layer."""
        part = None if self.used is None else self.parts[str(self.used)]
        out: Tensor = self.layer(x) if part is None else part(self.layer, x)
        return out


def insert(network: Network, kind: Kind) -> list[nn.Parameter]:
    """Put parameters of a kind into a network, beside those of earlier insertions, and use them; return them.

    They are drawn from torch's global stream, on the CPU. Insertions are numbered from 0. Raises ConfigError where the
    network has no layer for them.
    """
    index = count(network)
    places = [(name, layer) for name, layer in _own_layers(network.backbone) if kind.fits(name, layer)]
    if not places:
        raise ConfigError(f"{kind.described} can't be put into a {_name(network)}; {kind.accepted} is accepted")
    for name, layer in places:
        slot = network.backbone.get_submodule(name)
        if not isinstance(slot, Slot):
            slot = Slot(layer)
            slot.training = layer.training
            network.backbone.set_submodule(name, slot)
        like = next(layer.parameters())
        slot.parts[str(index)] = kind.part(layer).to(like.device, like.dtype).train(layer.training)
    use(network, index)
    return parameters(network, index)


def remove(network: Network) -> None:
    """Take all that was inserted out of a network, which is then the one that it was before."""
    while (name := next(iter(_slots(network)), None)) is not None:
        slot: Any = network.backbone.get_submodule(name)
        network.backbone.set_submodule(name, slot.layer)


def count(network: Network) -> int:
    """Return the number of insertions."""
    return max((int(index) + 1 for slot in _slots(network).values() for index in slot.parts), default=0)


def parameters(network: Network, index: int | None = None) -> list[nn.Parameter]:
    """Return the inserted parameters, all of them or those of one insertion."""
    parts = (
        part for slot in _slots(network).values() for number, part in slot.parts.items() if index in (None, int(number))
    )
    return [parameter for part in parts for parameter in part.parameters()]


def use(network: Network, index: int | None) -> None:
    """Use one insertion from now on, or none."""
    for slot in _slots(network).values():
        slot.used = index if index is not None and str(index) in slot.parts else None


@contextmanager
def using(network: Network, index: int | None) -> Iterator[None]:
    """Inside it one insertion is used, or none."""
    slots = list(_slots(network).values())
    before = [slot.used for slot in slots]
    use(network, index)
    try:
        yield
    finally:
        for slot, used in zip(slots, before, strict=True):
            slot.used = used


def check_insertion(network: Network, kind: Kind, image_shape: tuple[int, ...]) -> None:
    """Raise ConfigError where a kind can't be put into a network on torch's present device; the network is used up.

    A network may read a layer's weights without calling it; then a part beside the layer would do nothing.
    """
    insert(network, kind)
    called: set[str] = set()
    slots = _slots(network)
    for name, slot in slots.items():
        slot.register_forward_hook(lambda *_, name=name: called.add(name))
    try:
        with torch.no_grad():
            network.eval().features(torch.zeros(2, *image_shape))
        passed_over = next((name for name in slots if name not in called), None)
        why = passed_over and f"its layer {passed_over} is not called"
    except Exception as error:  # whatever a network raises whose layer is another one
        why = f"{type(error).__name__}: {error}".splitlines()[0]
    if why:
        raise ConfigError(
            f"{kind.described} can't be put into this {_name(network)} ({why}); {kind.accepted} is accepted"
        )


def _slots(network: Network) -> dict[str, Slot]:
    """Return the slots by name, the outer before the inner."""
    return {name: module for name, module in network.backbone.named_modules() if isinstance(module, Slot)}


def _own_layers(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk over the backbone's own layers, each with the name of the place that it or its slot is in."""
    slots = {name for name, module in backbone.named_modules() if isinstance(module, Slot)}
    for name, module in list(backbone.named_modules()):
        held, _, last = name.rpartition(".")
        if any(name.startswith(f"{slot}.parts") for slot in slots) or (held in slots and last == "layer"):
            continue
        yield name, module.layer if isinstance(module, Slot) else module


def _name(network: Network) -> str:
    return f"network of the class {type(network.backbone).__name__}"


def _is_block(layer: nn.Module) -> bool:
    """Whether a layer is a block of timm's vision transformers, whose two halves are known."""
    # Without timm there is no such block.
    return f"{type(layer).__module__}.{type(layer).__name__}" == "timm.models.vision_transformer.Block"


TRANSFORMERS = "a vision transformer, such as vit or timm:vit_base_patch16_224,"


class Bottleneck(nn.Module):
    """scale * up(dropout(relu(down(x)))), 0 at the start: `up` begins with zeros, `down` as torch draws it."""

    def __init__(self, width: int, bottleneck: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.down, self.dropout, self.up = (
            nn.Linear(width, bottleneck),
            nn.Dropout(dropout),
            nn.Linear(bottleneck, width),
        )
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def adapt(self, x: Tensor) -> Tensor:
        """Map tokens, float [..., width], to what is added to them."""
        adapted: Tensor = self.up(self.dropout(self.down(x).relu())) * self.scale
        return adapted


class Parallel(Bottleneck):
    """An adapter beside the perceptron of a transformer block."""

    def forward(self, block: Any, x: Tensor) -> Tensor:
        """Run the block with the adapter, tokens float [B, N, width]."""
        x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
        out: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))) + self.adapt(x)
        return out


class Behind(Bottleneck):
    """An adapter behind the perceptron of a transformer block."""

    def forward(self, perceptron: nn.Module, x: Tensor) -> Tensor:
        """Run the perceptron, then the adapter with a connection around it, tokens float [B, N, width]."""
        x = perceptron(x)
        return x + self.adapt(x)


@dataclass(frozen=True)
class ParallelAdapters:
    """Bottleneck adapters beside the perceptrons of a transformer. Chen et al. 2022, arXiv:2205.13535, eq. 3-5.

    x = x + attention(norm(x)), then x = x + perceptron(norm(x)) + scale * up(relu(down(x))).

    bottleneck: the width of what is between `down` and `up`.
    dropout: before `up`.
    """

    described: ClassVar[str] = "adapters"
    accepted: ClassVar[str] = TRANSFORMERS
    bottleneck: int = 64
    scale: float = 0.1
    dropout: float = 0.1

    def fits(self, name: str, layer: nn.Module) -> bool:
        """Whether it is a block."""
        return _is_block(layer)

    def part(self, layer: nn.Module) -> nn.Module:
        """Return the adapter of a block."""
        width: Any = layer.norm1.normalized_shape[0]  # type: ignore[union-attr, index]
        return Parallel(width, self.bottleneck, self.scale, self.dropout)


@dataclass(frozen=True)
class SequentialAdapters(ParallelAdapters):
    """Bottleneck adapters behind the perceptrons of a transformer, h + scale * up(relu(down(h))).

    Houlsby et al. 2019, arXiv:1902.00751, section 2, with the one adapter of a block that later work kept.
    """

    scale: float = 1.0

    def fits(self, name: str, layer: nn.Module) -> bool:
        """Whether it is the perceptron of a block."""
        kind = f"{type(layer).__module__}.{type(layer).__name__}"
        return kind == "timm.layers.mlp.Mlp" and isinstance(layer.fc2, nn.Linear)

    def part(self, layer: nn.Module) -> nn.Module:
        """Return the adapter of a perceptron."""
        width: Any = layer.fc2.out_features  # type: ignore[union-attr]
        return Behind(width, self.bottleneck, self.scale, self.dropout)


class LowRank(nn.Module):
    """layer(x) + scale * up(down(x)); `up` begins with zeros, `down` as torch draws it."""

    def __init__(self, down: nn.Module, up: nn.Module, scale: float) -> None:
        super().__init__()
        self.down, self.up, self.scale = down, up, scale
        nn.init.zeros_(up.weight)  # type: ignore[arg-type]

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Map what the layer maps."""
        out: Tensor = layer(x) + self.scale * self.up(self.down(x))
        return out


@dataclass(frozen=True)
class LoRA:
    """Low-rank additions to linear and convolutional layers. Hu et al. 2022, arXiv:2106.09685, eq. 3.

    W x + alpha / rank * B A x. Beside a convolution A is one of the same size, stride and padding, to `rank` maps, and
    B is 1 x 1.

    layers: the last part of the names of the layers that get one, such as `qkv`; all where there is none.
    """

    described: ClassVar[str] = "LoRA"
    accepted: ClassVar[str] = "a network with linear or convolutional layers of the names asked for"
    rank: int = 4
    alpha: float = 4.0
    layers: tuple[str, ...] = ("qkv",)

    def fits(self, name: str, layer: nn.Module) -> bool:
        """Whether it is a layer with one of the names."""
        named = not self.layers or name.rpartition(".")[2] in self.layers
        return named and type(layer) in (nn.Linear, nn.Conv2d)

    def part(self, layer: nn.Module) -> nn.Module:
        """Return the addition to a layer."""
        down: nn.Module
        if isinstance(layer, nn.Conv2d):
            names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            like: dict[str, Any] = {name: getattr(layer, name) for name in names}
            down = nn.Conv2d(layer.in_channels, self.rank, bias=False, **like)
            up: nn.Module = nn.Conv2d(self.rank, layer.out_channels, 1, bias=False)
        else:
            down = nn.Linear(layer.in_features, self.rank, bias=False)  # type: ignore[arg-type]
            up = nn.Linear(self.rank, layer.out_features, bias=False)  # type: ignore[arg-type]
        return LowRank(down, up, self.alpha / self.rank)


class Scaled(nn.Module):
    """layer(x) * scale + shift, for each feature or map; they begin as 1 and 0."""

    def __init__(self, width: int, maps: bool) -> None:
        super().__init__()
        self.scale, self.shift, self.maps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), maps

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Map what the layer maps."""
        scale, shift = ((p[:, None, None] if self.maps else p) for p in (self.scale, self.shift))
        out: Tensor = layer(x) * scale + shift
        return out


@dataclass(frozen=True)
class ScaleShift:
    """A scale and a shift behind linear, convolutional and normalisation layers. Lian et al. 2022, arXiv:2210.08823.

    They begin as 1 and 0, so that the network begins as it was; the authors draw them with a deviation of 0.02 around
    these.
    """

    described: ClassVar[str] = "scale and shift"
    accepted: ClassVar[str] = "a network with linear, convolutional or normalisation layers"

    def fits(self, name: str, layer: nn.Module) -> bool:
        """Whether it is such a layer."""
        return isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm | nn.Linear | nn.LayerNorm | nn.BatchNorm1d)

    def part(self, layer: nn.Module) -> nn.Module:
        """Return scale and shift of a layer's outputs."""
        width: Any = next(
            getattr(layer, name)
            for name in ("out_channels", "out_features", "num_features", "num_channels", "normalized_shape")
            if hasattr(layer, name)
        )
        # A normalisation of maps may be a subclass of one of tokens, as timm's LayerNorm2d is.
        maps = isinstance(layer, nn.Conv2d | nn.GroupNorm) or type(layer).__name__.endswith("2d")
        return Scaled(width if isinstance(width, int) else width[-1], maps)


class Tokens(nn.Module):
    """Prompts of one block: they join its tokens and leave again behind it."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        bound = math.sqrt(3 / width)
        self.prompts = nn.Parameter(torch.empty(n, width).uniform_(-bound, bound))

    def forward(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run the block on tokens, float [B, N, width], and prompts."""
        out: Tensor = block(torch.cat([x, self.prompts.expand(len(x), -1, -1)], 1))
        return out[:, : x.shape[1]]


@dataclass(frozen=True)
class DeepPrompts:
    """Tokens of their own for each block of a transformer. Jia et al. 2022, arXiv:2203.12119, section 3.2 (deep).

    n: tokens for each block. They are uniform in +- sqrt(3 / width), the paper's bound for a patch of `width` values.
    """

    described: ClassVar[str] = "prompts"
    accepted: ClassVar[str] = TRANSFORMERS
    n: int = 5

    def fits(self, name: str, layer: nn.Module) -> bool:
        """Whether it is a block."""
        return _is_block(layer)

    def part(self, layer: nn.Module) -> nn.Module:
        """Return the prompts of a block."""
        width: Any = layer.norm1.normalized_shape[0]  # type: ignore[union-attr, index]
        return Tokens(self.n, width)
