"""One batch for several processes, or in several slices: each part of its features is computed by itself.

The features are put together before a loss sees them, so every process has the outputs of the whole batch and any loss
is that of one process. A parameter's gradient is then the mean over the processes (`Processes.average_`): the part of
it that comes through the features is multiplied by their number on the way back, and every other part, as that of a
head or of a term in the weights alone, is computed by all of them alike.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import AlphaDropout, FeatureAlphaDropout, _DropoutNd
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.learning.strategy import Strategy
from clbench.models import build_model
from clbench.models.network import Network
from clbench.support.processes import Processes

# Layers that leave whole samples out, of torchvision and timm, by the name of their class.
_DROPPING_SAMPLES = ("StochasticDepth", "DropPath")


class Shared:
    """Stands in for `features` of a run's networks where several processes, or several slices, share a batch.

    processes: of the run.
    slices: the number in which each process computes its part where gradients are wanted: of each but the one under
        way the activations are let go, and computed again for the backward pass (Chen et al. 2016, arXiv:1604.06174).
    """

    def __init__(self, processes: Processes, slices: int = 1) -> None:
        self.processes, self.slices = processes, slices

    @contextmanager
    def within(self, kind: type[Network]) -> Iterator[None]:
        """Let networks of a class compute their features so."""
        if self.processes.size == self.slices == 1:
            yield
            return
        alone, own = kind.features, "features" in vars(kind)

        @wraps(alone)
        def features(network: Network, images: Tensor, compute: Callable[[Tensor], Tensor] | None = None) -> Tensor:
            return self.features(compute or partial(alone, network), network, images)

        changed: Any = kind
        changed.features = features
        try:
            yield
        finally:
            if own:
                changed.features = alone
            else:
                del changed.features

    def features(self, compute: Callable[[Tensor], Tensor], network: nn.Module, images: Tensor) -> Tensor:
        """Return the features of a whole batch, float [B, D], of which this process computes its part.

        Where hooks read the layers of the network, which have to see the whole batch, or the batch is too small, each
        process computes all of it.
        """
        n, size = len(images), self.processes.size
        if n < max(size, self.slices) or _is_observed(network):
            return compute(images)
        own = self.processes.part(n)

        def of(part: slice) -> Tensor:
            with _for_all(network, n, part, self.processes):
                return compute(images[part])

        if self.slices > 1 and torch.is_grad_enabled():
            drawn = _Drawn(network, images.device)
            ends = [own.start + (own.stop - own.start) * i // self.slices for i in range(self.slices + 1)]
            cuts = [slice(a, b) for a, b in itertools.pairwise(ends) if a < b]
            parts = []
            # A compiled network computes a slice again as a whole.
            with set_checkpoint_early_stop(False):
                for cut in cuts:
                    drawn.again()
                    parts.append(checkpoint(of, cut, use_reentrant=False))
            features = torch.cat(parts)
        else:
            features = of(own)
        if size == 1:
            return features
        whole: Tensor = _Together.apply(features, self.processes, n)
        return whole


class _Together(torch.autograd.Function):
    """Features of this process's part -> those of the whole batch."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, processes: Processes, n: int) -> Tensor:
        ctx.processes, ctx.part = processes, processes.part(n)
        whole = features.new_zeros(n, *features.shape[1:])
        whole[ctx.part] = features
        return processes.sum_(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient[ctx.part] * ctx.processes.size, None, None


class _Sum(torch.autograd.Function):
    """Sum over the processes, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.sum_(value.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.processes.sum_(gradient.clone(memory_format=torch.contiguous_format)), None


class _Drawn:
    """Lets each slice draw from the global stream what the whole batch draws."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self.state = self._read() if any(_draws(module) for module in network.modules()) else None

    def _read(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def again(self) -> None:
        """Go back to where the batch began to draw."""
        if self.state is None:
            return
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.state, self.device)
        else:
            torch.set_rng_state(self.state)


def _is_observed(network: nn.Module) -> bool:
    """Whether hooks read, or change, what goes through a layer."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in network.modules() for kind in kinds)


def _draws(module: nn.Module) -> bool:
    """Whether a layer multiplies what it is given by random numbers."""
    dropping = isinstance(module, _DropoutNd) or type(module).__name__ in _DROPPING_SAMPLES
    return module.training and dropping and not isinstance(module, AlphaDropout | FeatureAlphaDropout)


@contextmanager
def _for_all(network: nn.Module, n: int, part: slice, processes: Processes) -> Iterator[None]:
    """Let the layers that mix samples, or draw for them, treat a part of a batch of n as they treat the whole."""
    changed = []
    for module in network.modules():
        if _draws(module):
            vars(module)["forward"] = partial(_drawn_for_all, module, n, part)
        elif isinstance(module, _BatchNorm) and _takes_statistics(module) and processes.size > 1:
            vars(module)["forward"] = partial(_normalized_for_all, module, n, part, processes)
        else:
            continue
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


def _takes_statistics(module: _BatchNorm) -> bool:
    return module.training or module.running_mean is None


def _drawn_for_all(module: nn.Module, n: int, part: slice, x: Tensor) -> Tensor:
    """Multiply a part by its rows of what the layer draws for the whole batch, so that numbers stay."""
    times = len(x) // (part.stop - part.start)
    factors: Tensor = type(module).forward(module, torch.ones(n * times, *x.shape[1:], dtype=x.dtype, device=x.device))
    return x * factors[part.start * times : part.stop * times]


def _normalized_for_all(module: _BatchNorm, n: int, part: slice, processes: Processes, x: Tensor) -> Tensor:
    """Normalise a part by mean and variance of the whole batch. Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1.

    torch's SyncBatchNorm does the same, on CUDA alone.
    """
    others = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    count = x.numel() // x.shape[1] // (part.stop - part.start) * n
    mean = _Sum.apply(x.sum(others), processes) / count
    centred = x - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(others), processes) / count
    if module.training and module.running_mean is not None and module.running_var is not None:
        with torch.no_grad():
            if module.num_batches_tracked is not None:
                module.num_batches_tracked += 1
            known: Any = module.num_batches_tracked
            momentum = 1 / float(known) if module.momentum is None else module.momentum
            module.running_mean.lerp_(mean.detach().to(module.running_mean.dtype), momentum)
            module.running_var.lerp_((variance.detach() * count / (count - 1)).to(module.running_var.dtype), momentum)
    normalized: Tensor = centred * (variance + module.eps).rsqrt().view(shape)
    if module.weight is not None:
        normalized = normalized * module.weight.view(shape) + module.bias.view(shape)
    return normalized.to(x.dtype)


def refuse_shared(config: RunConfig, image_shape: tuple[int, ...]) -> None:
    """Raise ConfigError where a batch can't go through the network of a run in parts as it does as a whole."""
    engine = config.engine
    sizes = [f"{name}={n}" for name, n in (("processes", engine.processes), ("accumulate", engine.accumulate)) if n > 1]
    if not sizes:
        return
    what = f"{' and '.join(sizes)} given, by which a batch goes through the network in parts"
    if engine.compile == "reduce-overhead":
        # The graph of a part would write over what the backward pass of the part before it reads.
        raise ConfigError(f"{what}, and compile={engine.compile} keeps one graph; compile=default or none is accepted")
    with torch.device("meta"):
        model = build_model(config.model.name, image_shape, 0, config.code)
    for module in model.modules():
        if engine.compile != "none" and (_draws(module) or isinstance(module, _BatchNorm)):
            raise ConfigError(
                f"{what}, and compile={engine.compile} can't share {type(module).__name__} of "
                f"model={config.model.name!r} among the parts; compile=none, or a model without it, is accepted"
            )
        mixes = isinstance(module, _BatchNorm) and engine.accumulate > 1
        if mixes or isinstance(module, AlphaDropout | FeatureAlphaDropout):
            accepted = "accumulate=1" if mixes else "processes=1 with accumulate=1"
            raise ConfigError(
                f"{what}, and {type(module).__name__} of model={config.model.name!r} needs all of it at once; "
                f"{accepted}, or a model without it, is accepted"
            )


def digest(strategy: Strategy) -> int:
    """Return a checksum of all weights, statistics and exemplars of a strategy; waits for the device."""
    modules = [value for value in vars(strategy).values() if isinstance(value, nn.Module)]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    tensors += [value for value in vars(strategy).values() if isinstance(value, nn.Parameter)]
    if strategy.memory is not None:
        tensors.append(strategy.memory.ids)
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(), found)
    return found
