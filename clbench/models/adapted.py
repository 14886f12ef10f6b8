"""Any module of torch as a network: what comes before its last layer makes the features, a head that grows the rest."""

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, Unpack, get_args, get_origin, get_type_hints

import pydantic
import torch
from torch import Tensor, nn

from clbench.config.errors import ConfigError, shown, unknown
from clbench.models.network import Network


class _EndError(Exception):
    """Raised where the features are complete and more would be made of them."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class End(nn.Module):
    """The layer in the place of the last one: it passes the features on.

    leaves: it ends the forward pass, because more comes behind it, such as a softmax.
    """

    leaves = False

    def forward(self, features: Tensor) -> Tensor:
        """Return the features."""
        if self.leaves:
            raise _EndError(features)
        return features


class Adapted(Network):
    """A module of torch whose layer `head`, named as in `named_modules()`, gives way to a head that grows.

    The features are what goes into that layer, flattened to [B, feature_dim]; an image of zeros tells their number.
    """

    def __init__(self, module: nn.Module, head: str, image_shape: tuple[int, ...]) -> None:
        names = [name for name, _ in module.named_modules() if name]
        if head not in names:
            raise unknown(f"layer of {type(module).__name__}", head, names)
        parent, _, name = head.rpartition(".")
        end = End()
        setattr(module.get_submodule(parent), name, end)
        found: list[Tensor] = []
        hook = end.register_forward_hook(lambda _layer, _inputs, output: found.append(output))
        was_training = module.training
        try:
            with torch.no_grad():
                answer = module.eval()(torch.zeros(2, *image_shape))
        except Exception as error:  # whatever torch, or the module's author, raises
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 100, placeholder=" ...")
            raise ConfigError(
                f"{type(module).__name__}: images of {list(image_shape)} don't fit it ({reason})"
            ) from error
        finally:
            hook.remove()
            module.train(was_training)
        if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].dim() < 2:
            raise ConfigError(
                f"{type(module).__name__}: its forward gives the layer {head} a tensor [B, ...] "
                f"{len(found)} times; the layer that makes its outputs, used once, is accepted"
            )
        end.leaves = answer is not found[0]
        super().__init__([], feature_dim=found[0].flatten(1).shape[1])
        self.backbone = module  # type: ignore[assignment]

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images, float [B, C, H, W], to float [B, feature_dim]."""
        try:
            features: Tensor = self.backbone(images)
        except _EndError as end:
            features = end.features
        return features.flatten(1)

    def blocks(self) -> list[nn.Module]:
        """Return the layers with parameters at the module's top, or those within the only one there."""
        layers = _with_parameters(self.backbone)
        while len(layers) == 1 and (inner := _with_parameters(layers[0])):
            layers = inner
        return layers


def _with_parameters(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.children() if next(layer.parameters(), None) is not None]


@functools.lru_cache(maxsize=64)
def network_of(made: Callable[..., object], head: str | None) -> type[Network]:
    """Return a class that stands for what a class of torch, or a function, makes; see `from_module`."""
    # A functools.partial has no name, but what it calls has.
    name = str(getattr(getattr(made, "func", made), "__name__", type(made).__name__))
    options, takes_shape, returned = _options(made, name)

    def new(cls: type, image_shape: tuple[int, ...], **given: Any) -> Network:
        module = made(image_shape, **given) if takes_shape else made(**given)
        if isinstance(module, Network) and head is None:
            return module
        if not isinstance(module, nn.Module) or isinstance(module, Network):
            wanted = "a torch.nn.Module" if head else "a subclass of clbench.models.Network, or a torch.nn.Module,"
            raise ConfigError(f"model {name!r} gives {shown(module, 80)}; {wanted} is accepted")
        if head is None:
            linear = [layer for layer, kind in module.named_modules() if isinstance(kind, nn.Linear)]
            raise ConfigError(
                f"model {name!r} gives a {type(module).__name__}, which has no features() and no head that grows; "
                f"{name}[head={linear[-1] if linear else 'LAYER'}] with its last layer, or a subclass of "
                "clbench.models.Network, is accepted"
            )
        return Adapted(module, head, image_shape)

    shape = inspect.Parameter("image_shape", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    contents = {
        # The instance is an Adapted, whose class every process can find; this one only says how it is made.
        "__new__": new,
        "__doc__": made.__doc__,
        "__module__": getattr(made, "__module__", None) or type(made).__module__,
        "__signature__": inspect.Signature([shape, *options]),
    }
    # A function may say which network it makes; what that class declares is known before one is built.
    declared = isinstance(returned, type) and issubclass(returned, Network)
    # No attribute of a module has a name with a dot, so nothing takes it for the class that it stands for.
    return type(f"{name}.{head or 'network'}", (returned if declared else Adapted,), contents)


def _options(made: Callable[..., object], name: str) -> tuple[list[inspect.Parameter], bool, Any]:
    """Return the parameters that are options, whether the first takes the shape of an image, and the type returned."""
    try:
        signature = inspect.signature(made, eval_str=True)
    except (TypeError, ValueError, NameError) as error:
        raise ConfigError(
            f"model {name!r} has no readable signature ({error}); a class or function is accepted"
        ) from None
    parameters = parameters_of(signature)
    takes_shape = bool(parameters) and parameters[0].name == "image_shape"
    found = []
    for parameter in parameters[takes_shape:]:
        kind, default = parameter.annotation, parameter.default
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if kind is parameter.empty and type(default) in (bool, int, float, str):
            kind = type(default)
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY or not _is_readable(kind):
            if default is parameter.empty:
                raise ConfigError(
                    f"model {name!r}: its parameter {parameter.name} has neither a default nor a type that can be "
                    f"read; one such as {parameter.name}: int = 8, or a subclass of clbench.models.Network, is accepted"
                )
            continue
        found.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))
    return found, takes_shape, signature.return_annotation


def parameters_of(signature: inspect.Signature) -> list[inspect.Parameter]:
    """Return the parameters of a signature; one for each key of a TypedDict that `**options: Unpack[...]` names.

    A key that is not given is None.
    """
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and get_origin(parameter.annotation) is Unpack:
            (table,) = get_args(parameter.annotation)
            for name, kind in get_type_hints(table, include_extras=True).items():
                found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=None))
        else:
            found.append(parameter)
    return found


def _is_readable(kind: Any) -> bool:
    """Whether text can be read as a type: it is no class of objects, such as a layer."""
    if kind is inspect.Parameter.empty:
        return False
    try:
        pydantic.TypeAdapter(kind)
    except Exception:  # pydantic has one of its own for each way in which a type is none
        return False
    return True
