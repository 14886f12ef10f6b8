"""Models by name: a backbone with one growing head."""

import inspect
import textwrap
from collections.abc import Callable

import torch

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, shown
from clbench.config.registry import load_entry_point, options_model, parse_spec, validate_options
from clbench.models.network import Head, Network

__all__ = ["Head", "Network", "build_model"]


@checked
def build_model(spec: str, image_shape: tuple[int, int, int], seed: int) -> Network:
    """Build a model for images of shape [C, H, W]; its weights are a function of the arguments alone.

    `spec` is `NAME`, `NAME:400-400` (the widths of an mlp or conv), `NAME[key=value,...]`, or the last two
    together; names come from the entry-point group `clbench.models`. The random streams of torch do not move.
    Raises ConfigError for an unknown name or option and for a value out of range.
    """
    if min(image_shape) < 1:
        raise ConfigError(f"image_shape={shown(image_shape)} given; [C, H, W] of 1 or more each is accepted")
    text, values = parse_spec(spec)
    name, colon, widths = (part.strip() for part in text.partition(":"))
    model = load_entry_point("clbench.models", "model", name)
    if not (isinstance(model, type) and issubclass(model, Network)):
        raise ConfigError(f"model {name!r} is {model!r}; a subclass of clbench.models.Network is accepted")
    options = {
        option: (parameter.annotation, parameter.default)
        for option, parameter in inspect.signature(model, eval_str=True).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    if colon:
        if "widths" not in options:
            accepted = ", ".join(options) or "none"
            raise ConfigError(f"{name}:{widths} given, but {name} has no widths; options accepted: {accepted}")
        if "widths" in values:
            raise ConfigError(f"{spec} gives widths twice; they are accepted once, after the colon or in the brackets")
        values["widths"] = widths
    resolved = validate_options(options_model(name, options), values, owner=name)
    build: Callable[..., Network] = model
    # Seeds only the CPU generator, because torch.manual_seed would move the streams of accelerators too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            return build(image_shape, **resolved)
        except RuntimeError as error:  # torch raises it if there is too little memory
            reason = textwrap.shorten(str(error).rpartition("] ")[2], 120)
            raise ConfigError(f"model {spec!r} can't be built ({reason}); a smaller one is accepted") from None
