"""The guard of every door by which a number that is not finite could enter: one function finds it and says where."""

import cmath
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any, Literal

Kind = Literal["parameter", "buffer", "plain"]


def not_finite(value: Any, path: str, *, infinite: bool = False) -> str | None:
    """Return where a value holds a number that is not finite, such as "self.means[2] holds NaN"; None for nowhere.

    value: a tensor, array, number or module, or containers of them; anything else holds no numbers.
    path: what the value goes by, with which the answer begins.
    infinite: whether infinities are accepted, such as the lowest loss before there is one; never in a parameter. A
        buffer may hold -inf in any case, as the mask of an attention layer does.

    Waits once for each device on which there are tensors.
    """
    import torch

    tensors: dict[torch.device, list[tuple[str, torch.Tensor, Kind]]] = {}
    for where, leaf, kind in _leaves(value, path, set()):
        if not isinstance(leaf, torch.Tensor):
            if leaf != leaf or not (infinite or cmath.isfinite(leaf)):
                return f"{where} holds {'NaN' if leaf != leaf else 'infinity'}"
        elif (leaf.is_floating_point() or leaf.is_complex()) and not leaf.is_meta:
            dense = leaf.detach() if leaf.layout is torch.strided else leaf.detach().to_dense()
            # Numbers of eight bits can't be compared.
            dense = dense.float() if dense.element_size() == 1 else dense
            tensors.setdefault(leaf.device, []).append((where, dense, kind))
    for found in tensors.values():
        # A sum is soon made, and finite only if all of its terms are.
        sums = torch.stack([tensor.sum().isfinite() for _, tensor, _ in found]).tolist()
        for (where, tensor, kind), sound in zip(found, sums, strict=True):
            if not sound and not bool(_accepted(tensor, kind, infinite).all()):
                return f"{where} holds {'NaN' if bool(tensor.isnan().any()) else 'infinity'}"
    return None


def _accepted(tensor: Any, kind: Kind, infinite: bool) -> Any:
    """Return which entries of a tensor are accepted, bool of its shape."""
    if infinite and kind == "plain":
        return ~tensor.isnan()
    return tensor < cmath.inf if kind == "buffer" and not tensor.is_complex() else tensor.isfinite()


def _leaves(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any, Kind]]:
    """Walk over the tensors and numbers in a value, each with its path; arrays come as tensors."""
    import numpy as np
    import torch
    from torch import nn

    if isinstance(value, nn.Parameter):
        yield path, value, "parameter"
    elif isinstance(value, torch.Tensor | float | complex):
        yield path, value, "plain"
    elif isinstance(value, Decimal):
        yield path, math.nan if value.is_nan() else math.inf if value.is_infinite() else 0.0, "plain"
    elif isinstance(value, np.ndarray | np.generic):
        array: Any = value
        if array.dtype.names is not None:
            yield from (leaf for name in array.dtype.names for leaf in _leaves(array[name], f"{path}[{name!r}]", seen))
        elif array.dtype.kind in "mM" and np.isnat(array).any():
            # A time that is none, which differs from itself as NaN does.
            yield path, math.nan, "plain"
        elif array.dtype.kind in "fc":
            yield path, torch.from_numpy(np.array(array, np.float64 if array.dtype.kind == "f" else None)), "plain"
    elif isinstance(value, nn.Module):
        yield from ((f"{path}.{name}".lstrip("."), tensor, "parameter") for name, tensor in value.named_parameters())
        yield from ((f"{path}.{name}".lstrip("."), tensor, "buffer") for name, tensor in value.named_buffers())
    elif isinstance(value, str | bytes | bytearray | range) or id(value) in seen:
        return
    else:
        # A container may hold itself.
        seen.add(id(value))
        if isinstance(value, Mapping):
            yield from (leaf for key, item in value.items() for leaf in _leaves(item, f"{path}[{key!r}]", seen))
        elif isinstance(value, Sequence | Set):
            yield from (leaf for i, item in enumerate(value) for leaf in _leaves(item, f"{path}[{i}]", seen))
        elif is_dataclass(value) and not isinstance(value, type):
            held = {field.name: getattr(value, field.name, None) for field in fields(value)}
            yield from (leaf for key, item in held.items() for leaf in _leaves(item, f"{path}.{key}", seen))
