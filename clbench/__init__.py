"""clbench: which continual-learning strategy forgets least, by how much, and can the number be trusted?

Everything is imported on first use; `import clbench` itself needs no torch.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from clbench.config.errors import ConfigError, RunError
from clbench.support.moved import PUBLIC, Finder

if TYPE_CHECKING:
    from clbench import models, reports, scenarios, strategies
    from clbench.config import errors
    from clbench.config.space import Choices, Log
    from clbench.data import augment
    from clbench.data.batches import Batch
    from clbench.data.scenario import ImageSet, Scenario, Task
    from clbench.data.spec import ScenarioSpec
    from clbench.learning import importance, losses, memory
    from clbench.learning.strategy import Stage, Strategy, Traits
    from clbench.notebook import Results, compare, sweep
    from clbench.results import metrics, statistics
    from clbench.results.result import Result, load
    from clbench.running.export import export
    from clbench.running.extend import extend
    from clbench.running.observer import Observer
    from clbench.running.run import run
    from clbench.running.tracking import Tracker
    from clbench.running.using import load_model
    from clbench.tools import conformance as testing
    from clbench.tools.tune import tune

sys.meta_path.append(Finder())

_HOMES = {
    "Batch": "data.batches",
    "Choices": "config.space",
    "ImageSet": "data.scenario",
    "Log": "config.space",
    "Observer": "running.observer",
    "Result": "results.result",
    "Results": "notebook",
    "Scenario": "data.scenario",
    "ScenarioSpec": "data.spec",
    "Stage": "learning.strategy",
    "Strategy": "learning.strategy",
    "Task": "data.scenario",
    "Tracker": "running.tracking",
    "Traits": "learning.strategy",
    "compare": "notebook",
    "export": "running.export",
    "extend": "running.extend",
    "load": "results.result",
    "load_model": "running.using",
    "run": "running.run",
    "sweep": "notebook",
    "tune": "tools.tune",
}
_MODULES = {name: home for name, home in PUBLIC.items() if "." not in name} | {
    name: name for name in ("models", "reports", "scenarios", "strategies")
}

__all__ = [
    "Batch",
    "Choices",
    "ConfigError",
    "ImageSet",
    "Log",
    "Observer",
    "Result",
    "Results",
    "RunError",
    "Scenario",
    "ScenarioSpec",
    "Stage",
    "Strategy",
    "Task",
    "Tracker",
    "Traits",
    "augment",
    "compare",
    "errors",
    "export",
    "extend",
    "importance",
    "load",
    "load_model",
    "losses",
    "memory",
    "metrics",
    "models",
    "reports",
    "run",
    "scenarios",
    "statistics",
    "strategies",
    "sweep",
    "testing",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"clbench.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"clbench.{_MODULES[name]}")
    if name == "__version__":
        from importlib import metadata

        return metadata.version("clbench")
    raise AttributeError(f"module 'clbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    # Modules that `import clbench` itself needs are no part of what it offers.
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
