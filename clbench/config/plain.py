"""The plain meaning of a Python caller's values: scalars and arrays of numpy and torch, ranges, generators, paths.

Every option and every argument goes through here before its type is checked, so a value means the same everywhere.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterator, KeysView, ValuesView
from typing import Any

from clbench.config.errors import ConfigError, shown

# An array with more entries is data, and a generator that gives more may never end.
MOST_ENTRIES = 1_000_000


def plain(value: Any) -> Any:
    """Return a scalar or an array of numpy, torch or pandas as Python's numbers or lists; everything else as it is.

    Raises ConfigError for an array that is too large to be an option.
    """
    if isinstance(value, str | int | float | bool) and type(value).__module__ == "builtins":
        return value
    if isinstance(value, type) or not callable(getattr(value, "tolist", None)):
        return value
    count = value.numel() if callable(getattr(value, "numel", None)) else getattr(value, "size", 1)
    if count > MOST_ENTRIES:
        raise ConfigError(f"an array of {count:,} entries is given where an option belongs; at most 1,000,000 accepted")
    try:
        return value.tolist()
    except Exception:  # of its own kind in each library
        raise ConfigError(
            "an array is given whose values can't be read, such as a sparse one; a list is accepted"
        ) from None


def listed(value: Any) -> Any:
    """Return what has an order, such as a tuple, a range, an array or a generator, as a list; else the value as it is.

    Raises ConfigError for a generator that goes on for too long.
    """
    value = plain(value)
    if isinstance(value, tuple | range | deque | KeysView | ValuesView | Iterator):
        entries = list(itertools.islice(value, MOST_ENTRIES + 1))
        if len(entries) > MOST_ENTRIES:
            raise ConfigError(f"{shown(value)} with more than 1,000,000 values is given where an option belongs")
        return entries
    return value


def as_text(value: Any) -> Any:
    """Return a path, or a device of torch, as text; everything else as it is."""
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return path if isinstance(path, str) else value
    if f"{type(value).__module__}.{type(value).__name__}" == "torch.device":
        return str(value)
    return value
