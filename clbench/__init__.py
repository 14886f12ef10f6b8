"""clbench: which continual-learning strategy forgets least, by how much, and can the number be trusted?

Everything is imported on first use; `import clbench` itself needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from clbench.errors import ConfigError, RunError

if TYPE_CHECKING:
    from clbench import augment, importance, losses, memory, metrics, statistics
    from clbench.comparison import compare
    from clbench.observer import Observer
    from clbench.result import Result, load
    from clbench.runner import run
    from clbench.scenario import ImageSet, Scenario, Task
    from clbench.strategy import Stage, Strategy
    from clbench.sweeps import sweep
    from clbench.tuning import tune

_HOMES = {
    "compare": "comparison",
    "Result": "result",
    "load": "result",
    "Observer": "observer",
    "run": "runner",
    "ImageSet": "scenario",
    "Scenario": "scenario",
    "Task": "scenario",
    "Stage": "strategy",
    "Strategy": "strategy",
    "sweep": "sweeps",
    "tune": "tuning",
}
_MODULES = (
    "augment",
    "importance",
    "losses",
    "memory",
    "metrics",
    "models",
    "reports",
    "scenarios",
    "statistics",
)

__all__ = [
    "ConfigError",
    "ImageSet",
    "Observer",
    "Result",
    "RunError",
    "Scenario",
    "Stage",
    "Strategy",
    "Task",
    "augment",
    "compare",
    "importance",
    "load",
    "losses",
    "memory",
    "metrics",
    "run",
    "statistics",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"clbench.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"clbench.{name}")
    raise AttributeError(f"module 'clbench' has no attribute {name!r}")
