"""The ledger of a strategy: the bytes and items that it keeps from one task to the next."""

import math
from typing import Any

import torch
from torch import nn

from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.memory import Memory
from clbench.learning.strategy import Strategy
from clbench.models import inserted


def measure(strategy: Strategy, scenario: Scenario) -> dict[str, dict[str, int]]:
    """Return the bytes and items that the strategy keeps from one task to the next, by the name of what is kept.

    Exemplars count as their images would, uint8, though only their ids are held.
    """
    size = scenario.train.images[0].nbytes
    kept: dict[str, int] = {}
    items: dict[str, int] = {}
    for name, value in strategy.state().items():
        if isinstance(value, Memory):
            items["exemplars"], kept["exemplars"] = len(value), len(value) * size
        elif (n := _bytes(value, set())) or name == "model":
            kept[name] = n
        if name == "model" and (put_in := sum(map(_size, inserted.parameters(strategy.model)))):
            kept["model"], kept["inserted"] = kept["model"] - put_in, put_in
        # Copies of images, wherever they are kept, are exemplars under another name.
        if copies := _images(value, scenario.image_shape, set()):
            items["images"] = items.get("images", 0) + copies
    return {"bytes": kept, "items": items}


def above_budget(config: RunConfig, counts: dict[int, int], items: dict[str, int]) -> str | None:
    """Say in which way what was measured is more than the memory that a run was given; None where it is not.

    counts: exemplars of each class; items: what `measure` counted.
    """
    copies, held = items.get("images", 0), items.get("exemplars", 0)
    size, per_class = config.memory.size, config.memory.per_class
    budget = size or (per_class or 0) * len(counts)
    if copies and held + copies > budget:
        return f"{copies} copies of images are kept beside {held} exemplars, and the memory is of {budget}"
    if held > budget or (per_class is not None and max(counts.values(), default=0) > per_class):
        return f"{held} exemplars are kept, and the memory is of {budget}"
    return None


def _images(value: Any, shape: tuple[int, ...], around: set[int]) -> int:
    """Return how many images of a shape are in tensors outside of modules: [n, C, H, W], or uint8 [n, C * H * W].

    around: the containers that this one is in, since one may hold itself.
    """
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        flat = value.dtype == torch.uint8 and value.dim() == 2 and value.shape[1] == math.prod(shape)
        return len(value) if flat or (value.dim() == 4 and value.shape[1:] == shape) else 0
    if id(value) in around or not isinstance(value, dict | list | tuple):
        return 0
    held, around = list(value.values()) if isinstance(value, dict) else value, around | {id(value)}
    # One image of [C, H, W] is kept as soon as there are several of them.
    single = sum(isinstance(v, torch.Tensor) and v.shape == shape for v in held)
    return single + sum(_images(v, shape, around) for v in held)


def _bytes(value: Any, around: set[int]) -> int:
    if isinstance(value, torch.Tensor):
        return _size(value)
    if id(value) in around or not isinstance(value, nn.Module | dict | list | tuple):
        return 0
    held: Any = value.state_dict() if isinstance(value, nn.Module) else value
    return sum(_bytes(v, around | {id(value)}) for v in (held.values() if isinstance(held, dict) else held))


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
