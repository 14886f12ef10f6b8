"""Models by name: a backbone with one growing head."""

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from torch import nn

from clbench.config.arguments import checked
from clbench.config.classes import SOURCES, load_class
from clbench.config.errors import ConfigError, shown
from clbench.config.registry import entry_point_names, options_model, parse_spec, path_of, validate_options
from clbench.models.adapted import network_of, parameters_of
from clbench.models.network import Head, Network, refuse_lazy
from clbench.support.streams import global_streams
from clbench.support.surroundings import undisturbed

__all__ = ["Head", "Network", "build_model", "from_module"]


@checked
@undisturbed()
def build_model(spec: str, image_shape: tuple[int, ...], seed: int, code: Mapping[str, str] | None = None) -> Network:
    """Build a model for images of shape [C, H, W]; its weights are a function of the arguments alone.

    spec: `NAME`, `NAME:400-400` (the widths of an mlp or conv), `NAME[key=value,...]`, or the last two together; names
        come from the entry-point group `clbench.models`. Or `SOURCE:NAME` of other software (`timm:resnet50`), options
        in brackets too; sources come from the group `clbench.model_sources`. Or `path/to/net.py:Net`, options in
        brackets too; of a plain torch.nn.Module one option is `head`, see from_module().
    code: `RunConfig.code` of the run.

    The random streams of torch do not move. Raises ConfigError for an unknown name or option, for a value out of range
    and for what can't be built.
    """
    if not image_shape or min(image_shape) < 1:
        raise ConfigError(f"image_shape={shown(image_shape)} given; [C, H, W] of 1 or more each is accepted")
    model, resolved = _asked(spec, code)
    if model.needs_images and len(image_shape) != 3:
        raise ConfigError(
            f"model={spec!r} takes images [C, H, W], and the samples are {list(image_shape)}; mlp and a network of "
            "your own are accepted"
        )
    build: Callable[..., Network] = model
    with global_streams(seed):
        try:
            made = build(image_shape, **resolved)
            refuse_lazy(made, spec)
            return made
        except ConfigError:
            raise
        except RuntimeError as error:  # torch raises it if there is too little memory
            reason = textwrap.shorten(str(error).rpartition("] ")[2], 120)
            raise ConfigError(f"model {spec!r} can't be built ({reason}); a smaller one is accepted") from None
        except Exception as error:  # whatever a user's class raises
            raise ConfigError(
                f"model {spec!r} can't be built for images of {list(image_shape)} ({type(error).__name__}: {error}); "
                f"it is called as {model.__name__}(image_shape, *, options)"
            ) from error


def model_class(spec: str, code: Mapping[str, str] | None = None) -> type[Network]:
    """Return the class that a spec names, see build_model(); raises ConfigError for what it would refuse."""
    return _asked(spec, code)[0]


@checked
def from_module(made: Callable[..., object], head: str | None = None) -> type[Network]:
    """Return the class of a network for a plain torch.nn.Module, to be given as `model=`.

    made: a class of torch.nn.Module, or a function that returns a module or a Network. It is called with the shape of
        an image, [C, H, W], if its first parameter is `image_shape`; its other parameters are options, as far as their
        types or defaults are numbers or text.
    head: the name of the layer that makes the outputs, such as `fc`. What goes into it are the features; a head that
        grows takes its place, and what would come behind it (a softmax) is left out.
    Raises ConfigError for what is neither.
    """
    return as_network(made, "model is given as", head)


def as_network(model: object, said: str, head: str | None = None) -> type[Network]:
    """Return the class of a network for what is given; see from_module().

    Raises ConfigError, which begins with what is `said`, for what is none.
    """
    accepted = "a subclass of clbench.models.Network is accepted"
    if isinstance(model, type) and issubclass(model, Network):
        if head is None:
            return model
        accepted = f"it has a head that grows already; without head={head} it is accepted"
    elif isinstance(model, Network):
        accepted = f"the class {type(model).__name__} itself is accepted, since each run builds a network of its own"
    elif isinstance(model, nn.Module):
        accepted = (
            "each run builds a network of its own, and it has no features() and no head that grows; its class, as in "
            f"clbench.models.from_module({type(model).__name__}, head='fc'), or {accepted}"
        )
    elif isinstance(model, type) and issubclass(model, nn.Module):
        if head is not None:
            return network_of(model, head)  # type: ignore[arg-type]
        accepted = (
            f"it has no features() and no head that grows; {model.__name__}[head=LAYER] with its last layer (in Python "
            f"models.from_module({model.__name__}, head='LAYER')), or {accepted}"
        )
    elif callable(model) and not isinstance(model, type):
        return network_of(model, head)
    given = f"the class {model.__name__}" if isinstance(model, type) else shown(model, 80)
    raise ConfigError(f"{said} {given}; {accepted}")


def model_options(model: type[Network]) -> dict[str, tuple[Any, Any]]:
    """Return the options of a network, `{name: (type, default)}`: the keyword-only parameters of its constructor.

    Raises ConfigError for one without a type.
    """
    found = {}
    for parameter in parameters_of(inspect.signature(model, eval_str=True)):
        name = parameter.name
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            if parameter.annotation is inspect.Parameter.empty:
                raise ConfigError(
                    f"{model.__name__}: option {name} has no type; one such as {name}: int = 8 is accepted"
                )
            found[name] = (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
    return found


def _asked(spec: str, code: Mapping[str, str] | None) -> tuple[type[Network], dict[str, Any]]:
    """Return the class that a spec names, and all its options."""
    name, widths, values = _parsed(spec)
    loaded = load_class("model", name, code)
    own = isinstance(loaded, type) and issubclass(loaded, Network)
    model = as_network(loaded, f"model {name!r} is", None if own else values.pop("head", None))
    asked = _options_of(model)  # type: ignore[arg-type]
    if widths is not None:
        options = asked.model_fields
        if "widths" not in options:
            accepted = ", ".join(options) or "none"
            raise ConfigError(f"{name}:{widths} given, but {name} has no widths; options accepted: {accepted}")
        if "widths" in values:
            raise ConfigError(f"{spec} gives widths twice; they are accepted once, after the colon or in the brackets")
        values["widths"] = widths
    return model, validate_options(asked, values, owner=name)


@functools.lru_cache(maxsize=64)
def _options_of(model: type[Network]) -> type[BaseModel]:
    """Return the options of a network as they are validated; making them takes a millisecond, and each run asks."""
    return options_model(model.__name__, model_options(model))


def _parsed(spec: str) -> tuple[str, str | None, dict[str, str]]:
    """Split a spec into the model's name, the widths after a colon if there is one, and the options in brackets."""
    text, values = parse_spec(spec)
    if path_of(text) or text.partition(":")[0] in entry_point_names(SOURCES["model"]):
        return text, None, values
    name, colon, widths = (part.strip() for part in text.partition(":"))
    return name, widths if colon else None, values
