"""Finds modules by their names of 0.1.0, and the packages of a checkout that is not the installed copy."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

# Documented names, which stay wherever the code lives.
PUBLIC = {
    "augment": "data.augment",
    "errors": "config.errors",
    "importance": "learning.importance",
    "losses": "learning.losses",
    "memory": "learning.memory",
    "metrics": "results.metrics",
    "statistics": "results.statistics",
    "testing": "tools.conformance",
    "scenarios.avalanche": "avalanche.scenarios",
}
# Other names that a plug-in or script of 0.1.0 may import; 0.3 removes them.
MOVED = {
    "batches": "data.batches",
    "comparison": "many.compare",
    "execution": "many.execution",
    "observer": "running.observer",
    "registry": "config.registry",
    "resolve": "running.resolve",
    "result": "results.result",
    "runner": "running.run",
    "scenario": "data.scenario",
    "space": "config.space",
    "store": "running.folder",
    "strategy": "learning.strategy",
    "streams": "support.streams",
    "sweeps": "many.sweeps",
    "trainer": "learning.trainer",
    "tuning": "tools.tune",
}
# Folders beside clbench/ in a checkout; an installed copy holds them inside the package.
BESIDE = ("strategies", "scenarios", "reports")


class Finder(MetaPathFinder, Loader):
    """Finds what Python's own finders do not: modules by old names, and the checkout's folders beside clbench/."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load a module of clbench that lives elsewhere; None for every other module."""
        package, _, name = fullname.partition(".")
        if package != "clbench":
            return None
        if name in PUBLIC or name in MOVED:
            return ModuleSpec(fullname, self)
        folder = Path(__file__).parents[2] / name
        if name in BESIDE and (folder / "__init__.py").is_file():
            return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Register the module at its new place under its old name."""
        name = module.__name__.removeprefix("clbench.")
        if name in MOVED:
            warnings.warn(
                f"{module.__name__} is clbench.{MOVED[name]} since 0.2; 0.3 removes the old name",
                DeprecationWarning,
                stacklevel=2,
            )
        sys.modules[module.__name__] = importlib.import_module(f"clbench.{(PUBLIC | MOVED)[name]}")


def former_name(cls: type) -> str:
    """Return the full name by which 0.1.0 wrote a class into checkpoints; the present name if it did not move."""
    module = cls.__module__.removeprefix("clbench.")
    former = {new: old for old, new in (PUBLIC | MOVED).items()}.get(module, module)
    return f"clbench.{former}.{cls.__qualname__}" if cls.__module__.startswith("clbench.") else full_name(cls)


def full_name(cls: type) -> str:
    """Return module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
