"""Pure functions for the importance of each parameter to what was learnt, and for the cost of moving it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from clbench.config.arguments import check_shapes, checked
from clbench.config.errors import ConfigError, RunError
from clbench.support.finite import not_finite
from clbench.support.surroundings import by_default

LabelMode = Literal["empirical", "sampled", "exact"]


@checked
@by_default()
def fisher_diagonal(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    label_mode: LabelMode = "empirical",
    active: slice | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Return F_i = mean over the samples of (d log p(y|x) / d w_i)^2, under the names of the parameters.

    Of every parameter that requires a gradient. `images` [N, ...] are what the model takes, `labels` int64
    [N] indices into its outputs. y is the label given ("empirical"), one drawn from the model's own p(y|x)
    ("sampled", needs a CPU `generator`), or the expectation over p(y|x) ("exact", as many passes as
    outputs). `active` is the slice of outputs that the softmax is over; None is all.

    Per-sample gradients, so batch norm is in eval mode and the result does not depend on `chunk_size`, the
    number of samples at once (None: 16 on the CPU, where that stays in the cache, else 128; all where every
    weight is a linear layer's). Nothing of the model changes. Raises ConfigError for no samples, an unknown mode
    and labels outside `active`, and RunError for a result that is not finite.
    Kirkpatrick et al. 2017, arXiv:1612.00796.
    """
    return fisher_diagonal_of_batches(
        model,
        # Autograd takes no tensor that was made in inference mode.
        [(images.clone() if images.is_inference() else images, labels)],
        label_mode=label_mode,
        active=active,
        generator=generator,
        chunk_size=chunk_size,
    )


@checked
def fisher_diagonal_of_batches(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    label_mode: LabelMode = "empirical",
    active: slice | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Return `fisher_diagonal` of all samples in the batches (images, labels), read one after another."""
    if label_mode == "sampled" and generator is None:
        raise ConfigError("label mode 'sampled' without a generator; accepted: a torch.Generator on the CPU")
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(f"chunk size {chunk_size}; accepted: 1 or more")
    outputs = active or slice(None)
    weights, constants = _tensors(model)
    layers = _linear_layers(model, weights)

    def log_likelihood(weights: dict[str, Tensor], image: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, (weights, constants), (image[None],))[0, outputs]
        return weight * logits.log_softmax(dim=0).gather(0, label[None])[0]

    gradients = vmap(grad(log_likelihood), in_dims=(None, 0, 0, 0))
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    n_samples = 0
    with _undisturbed(model):
        for images, labels in batches:
            check_shapes("fisher_diagonal", images=(images, "N ..."), labels=(labels, "N"))
            if labels.dtype != torch.int64:
                raise ConfigError(f"fisher_diagonal: labels are {labels.dtype}; int64 is accepted")
            if len(images) == 0:
                continue
            step = chunk_size or (len(images) if layers else _chunk_size(images))
            with torch.autocast(images.device.type, enabled=False):
                for chunk, given in zip(torch.split(images, step), torch.split(labels, step), strict=True):
                    drawn = list(_labels(model, chunk, given, label_mode, outputs, generator))
                    if layers and _add_linear_squares(model, layers, chunk, drawn, outputs, total):
                        continue
                    for label, weight in drawn:
                        for name, g in gradients(weights, chunk, label, weight).items():
                            # Not in place: where a parameter has no part in the output, all samples share one zero.
                            total[name] += g.square().sum(dim=0)
            n_samples += len(images)
    if n_samples == 0:
        raise ConfigError("the Fisher diagonal was asked of no samples; accepted: one or more")
    return finite_importance({name: squares / n_samples for name, squares in total.items()})


def _linear_layers(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Linear]:
    """Return the linear layers by name where all `weights` are theirs and samples don't mix; else nothing."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    theirs = {f"{name}.{own}".lstrip("."): p for name, m in layers.items() for own, p in m.named_parameters()}
    shared = len({id(p) for p in theirs.values()}) < len(theirs)
    mixing = any(isinstance(m, _BatchNorm) and m.running_mean is None for m in model.modules())
    return {} if shared or mixing or not set(theirs) >= set(weights) else layers


def _add_linear_squares(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    images: Tensor,
    drawn: list[tuple[Tensor, Tensor]],
    outputs: slice,
    total: dict[str, Tensor],
) -> bool:
    """Add the sums of squared per-sample gradients to `total`; return False, adding nothing, where that is no product.

    A sample's gradient in a linear layer that is used once is the outer product of g, that of its output, and a, its
    input; so the sum of squares over samples is (g^2)^T a^2, one product for the whole batch.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen[name].append((inputs[0].detach(), output))
            return output.clone()  # what follows may work in place

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        with torch.enable_grad():
            log_p = model(images)[:, outputs].log_softmax(dim=1)
    finally:
        for handle in handles:
            handle.remove()
    if not all(len(uses) == 1 and uses[0][0].dim() == 2 and uses[0][1].requires_grad for uses in seen.values()):
        return False
    inputs = {name: uses[0][0].square() for name, uses in seen.items()}
    for label, weight in drawn:
        with torch.enable_grad():
            likelihood = (weight * log_p.gather(1, label[:, None])[:, 0]).sum()
        gradients = torch.autograd.grad(likelihood, [uses[0][1] for uses in seen.values()], retain_graph=True)
        for name, gradient in zip(seen, gradients, strict=True):
            squares, prefix = gradient.square(), f"{name}." if name else ""
            if f"{prefix}weight" in total:
                total[f"{prefix}weight"] += squares.T @ inputs[name]
            if f"{prefix}bias" in total:
                total[f"{prefix}bias"] += squares.sum(dim=0)
    return True


def _labels(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    mode: LabelMode,
    outputs: slice,
    generator: torch.Generator | None,
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield labels to differentiate at, counted from the first active output, and the sqrt of their
    weights."""
    ones = torch.ones(len(images), device=images.device)
    if mode == "empirical":
        n_outputs = model(images[:1])[:, outputs].shape[1]
        local = labels - (outputs.start or 0)
        if local.min() < 0 or local.max() >= n_outputs:
            raise ConfigError(
                f"labels {int(labels.min())}..{int(labels.max())} are not all among the {n_outputs} active "
                f"outputs from {outputs.start or 0} on"
            )
        yield local, ones
        return
    probabilities = model(images)[:, outputs].softmax(dim=1)
    n_outputs = probabilities.shape[1]
    if mode == "exact":
        for label in range(n_outputs):
            yield torch.full_like(labels, label), probabilities[:, label].sqrt()
    else:
        cumulative = probabilities.cpu().double().cumsum(dim=1)
        # One number a sample, from the CPU: the draws depend neither on the chunks nor on the device.
        drawn = torch.rand(len(images), 1, dtype=torch.float64, generator=generator) * cumulative[:, -1:]
        yield (cumulative <= drawn).sum(dim=1).clamp(max=n_outputs - 1).to(labels.device), ones


@checked
@by_default()
def mas_importance(
    model: nn.Module, batches: Iterable[Tensor], *, active: slice | None = None, chunk_size: int | None = None
) -> dict[str, Tensor]:
    """Return Omega_i = mean over the samples of |d ||f(x)||^2 / d w_i|, under the names of the parameters.

    f are the `active` outputs of the model (None: all), without softmax; the batches hold images [N, ...] and no
    labels. Per-sample gradients in eval mode, as in `fisher_diagonal`. Raises ConfigError for no samples, and RunError
    for a result that is not finite.
    Aljundi et al. 2018, arXiv:1711.09601, eq. 2.
    """
    outputs = active or slice(None)
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(f"chunk size {chunk_size}; accepted: 1 or more")
    weights, constants = _tensors(model)

    def squared_norm(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        values: Tensor = functional_call(model, (weights, constants), (image[None],))[0, outputs]
        return values.square().sum()

    gradients = vmap(grad(squared_norm), in_dims=(None, 0))
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    n_samples = 0
    with _undisturbed(model):
        for images in batches:
            check_shapes("mas_importance", images=(images, "N ..."))
            n_samples += len(images)
            with torch.autocast(images.device.type, enabled=False):
                for chunk in torch.split(images, chunk_size or _chunk_size(images)):
                    for name, g in gradients(weights, chunk).items():
                        total[name] += g.abs().sum(dim=0)
    if n_samples == 0:
        raise ConfigError("the MAS importance was asked of no samples; accepted: one or more")
    return finite_importance({name: sums / n_samples for name, sums in total.items()})


def finite_importance(importance: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return importances by parameter as they are; raises RunError where one is not finite."""
    if wrong := not_finite(importance, "importance"):
        raise RunError(
            f"{wrong}, as gradients are not finite; a smaller learning rate or strength, or --clip 1, may help"
        )
    return importance


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what is differentiated, the parameters that require a gradient, and a model's other tensors."""
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    constants = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return weights, constants | {name: b.detach() for name, b in model.named_buffers()}


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode without gradients; put each module's own mode back afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError) as error:
        if isinstance(error, RunError | torch.AcceleratorError | torch.OutOfMemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"the model can't work on these samples ({type(error).__name__}: {reason})") from error
    finally:
        for module, mode in training.items():
            module.training = mode


def _chunk_size(images: Tensor) -> int:
    return 16 if images.device.type == "cpu" else 128


@checked
def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter by name, without gradients."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@checked
def zeros(model: nn.Module) -> dict[str, Tensor]:
    """Return zeros in the shape of every parameter, by name."""
    return {name: torch.zeros_like(p, requires_grad=False) for name, p in model.named_parameters()}


@checked
def copied_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of `.grad` of every parameter that has one, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@checked
def loss_decrease(gradients: Mapping[str, Tensor], before: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return -g_i (w_i - w_i before): how much the loss fell, to first order, because parameter i has moved.

    The step is the one that was really made, so the sum over steps is the path integral under any optimizer.
    Zenke et al. 2017, arXiv:1703.04200, eq. 3; Chaudhry et al. 2018, arXiv:1801.10112, eq. 7.
    """
    weights = dict(model.named_parameters())
    for name in gradients:
        if name not in before or name not in weights:
            raise ConfigError(f"gradients name {name!r}, which is not among the parameters and their earlier values")
    return {name: -g * (weights[name].detach() - before[name]) for name, g in gradients.items()}


@checked
def quadratic_penalty(
    parameters: Mapping[str, Tensor], importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
) -> Tensor:
    """Return sum over i of F_i (w_i - w*_i)^2, over the parameters named in `importance`; a scalar.

    `anchor` holds w* under the same names. A parameter that has grown since is compared on its first rows.
    EWC's penalty is strength / 2 times this (Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3). Raises
    ConfigError where the shapes don't fit or a name is missing.
    """
    weights = []
    for name, weight in importance.items():
        if name not in parameters or name not in anchor:
            raise ConfigError(f"importance names {name!r}, which is not among the parameters and the anchor")
        current = parameters[name]
        if current.shape != weight.shape and current.ndim:
            current = current[: len(weight)]
        if not current.shape == weight.shape == anchor[name].shape:
            shapes = [tuple(tensors[name].shape) for tensors in (parameters, importance, anchor)]
            raise ConfigError(
                f"parameter {name!r} has shape {shapes[0]}, its importance {shapes[1]} and its anchor "
                f"{shapes[2]}; accepted: equal shapes, or more rows in the parameter"
            )
        weights.append(current)
    if not weights:
        return torch.zeros(())
    anchors = [anchor[name] for name in importance]
    penalty: Tensor = _QuadraticPenalty.apply(list(importance.values()), anchors, *weights)
    return penalty


class _QuadraticPenalty(torch.autograd.Function):
    """The penalty with its gradient 2 F (w - w*) by hand: fewer kernels and passes than autograd needs."""

    @staticmethod
    def forward(ctx: Any, importance: list[Tensor], anchor: list[Tensor], *weights: Tensor) -> Tensor:
        moved = torch._foreach_sub(weights, anchor)
        ctx.pull = torch._foreach_mul(importance, moved)
        return torch.stack(
            [torch.dot(p.reshape(-1), m.reshape(-1)) for p, m in zip(ctx.pull, moved, strict=True)]
        ).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.pull, 2 * gradient)


def is_part(value: Tensor, whole: Tensor) -> bool:
    """Whether a tensor has the shape of another, or of its first rows."""
    rows = value.dim() == whole.dim() > 0 and value.shape[1:] == whole.shape[1:] and len(value) <= len(whole)
    return rows or value.shape == whole.shape


def grown(value: Tensor, like: Tensor) -> Tensor:
    """Pad what is known of a parameter with zeros for the rows that it has gained since; `like` has the new shape."""
    if value.shape == like.shape:
        return value
    padded = torch.zeros_like(like)
    padded[: len(value)] = value
    return padded
