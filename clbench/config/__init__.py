"""The request for a run: specs `name[key=value]`, registered names, the fields of a run and its identity, errors.

It must not know torch, any method, any data set, or how a run is done.
"""

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    # A module of this name held these in 0.1.0.
    if name in ("RunConfig", "make_config"):
        text = f"clbench.config.{name} is clbench.config.run.{name} since 0.2; 0.3 removes the old name"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module("clbench.config.run"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
