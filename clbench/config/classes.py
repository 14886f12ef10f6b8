"""Classes of the user's own: handed over in Python, or named as path/to/file.py:Class. No torch."""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint
from types import CodeType, ModuleType
from typing import Any

from clbench.config.code import OF_FILE
from clbench.config.errors import ConfigError, unknown
from clbench.config.registry import PROTOCOLS, entry_points, load_entry_point, load_with_protocols, path_of
from clbench.config.run import file_digest

# Kinds of classes and functions, by the word for them in errors, and the entry points that they stand beside.
GROUPS = {
    "strategy": "clbench.strategies",
    "scenario": "clbench.scenarios",
    "model": "clbench.models",
    "metric": "clbench.metrics",
    "chart": "clbench.charts",
    "tracker": "clbench.trackers",
}

# Sources of classes under names of their own, as in avalanche:EWC and timm:resnet50: functions that take such a name.
SOURCES = {"strategy": "clbench.strategy_sources", "model": "clbench.model_sources"}

# Classes handed over in Python, by kind and name.
_given: dict[tuple[str, str], type] = {}
# The digest of each file as it was loaded last, by its path.
_files: dict[str, str] = {}


def give(kind: str, cls: type) -> str:
    """Make a class that was handed over in Python known under its name; return the name.

    Raises ConfigError where the name is that of another class that is registered.
    """
    name = cls.__name__
    for entry in _registered(kind, name):
        if entry.load() is not cls:
            raise ConfigError(
                f"{kind}={cls.__module__}.{name} given, and {name!r} is the registered {kind} {entry.value}; a class "
                "of another name is accepted"
            )
    _given[kind, name] = cls
    return name


def handed_over(names: Mapping[str, str]) -> dict[str, type]:
    """Return the classes that were handed over in Python among those that are named, by kind."""
    return {kind: _given[kind, name] for kind, name in names.items() if (kind, name) in _given}


def is_known(kind: str, name: str) -> bool:
    """Whether a name is that of a class handed over, or registered."""
    return (kind, name) in _given or bool(_registered(kind, name))


def is_elsewhere(kind: str, name: str) -> bool:
    """Whether a name is path/to/file.py:NAME, or that of an entry point."""
    return bool(path_of(name)) or bool(_registered(kind, name))


def load_class(kind: str, name: str, code: Mapping[str, str] | None = None) -> object:
    """Return what a name stands for: a class handed over, path/to/file.py:Class, SOURCE:NAME, or an entry point.

    code: `RunConfig.code` of a run that was planned; a file must be as it was then, or have been loaded then.
    Raises ConfigError.
    """
    if (kind, name) in _given:
        return _given[kind, name]
    if path_of(name):
        return _from_file(kind, name, code or {})
    if name.endswith(".py"):
        raise ConfigError(f"{kind} {name!r} names no class of the file; {name}:Class is accepted")
    source, colon, inner = name.partition(":")
    if colon and kind in SOURCES:
        made: Any = load_entry_point(SOURCES[kind], f"source of a {kind}", source)
        return made(inner)
    return load_with_protocols(GROUPS[kind], kind, name)


def digests_of_files(names: Iterable[str]) -> dict[str, str]:
    """Return the digest of each file that is named, as path/to/file.py:Class is, as load_class() found it last."""
    return {path: _files[path] for path in map(path_of, names) if path}


def _registered(kind: str, name: str) -> list[EntryPoint]:
    return [*entry_points(GROUPS[kind], name), *entry_points(PROTOCOLS, name)]


def _from_file(kind: str, name: str, code: Mapping[str, str]) -> object:
    attribute = name.removeprefix(path_of(name) + ":")
    path = os.path.expanduser(path_of(name))
    if not os.path.isfile(path):
        raise ConfigError(f"{kind} {name!r}: there is no file {path}; path/to/file.py:Class is accepted")
    digest = code.get(path) or file_digest(path, kind)
    module = sys.modules.get(f"{OF_FILE}{digest}") or _loaded(path, digest, f"{kind} {name!r}")
    _files[path] = digest
    if not hasattr(module, attribute):
        own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise unknown(f"class or function in {path}", attribute, own)
    return getattr(module, attribute)


class _Loader(SourceFileLoader):
    """Executes a file if it has the content that is wanted, and never what Python compiled of it before.

    Python takes that for the file's own if the file's size and the second of its last change are the same.
    """

    def __init__(self, path: str, digest: str) -> None:
        super().__init__(f"{OF_FILE}{digest}", path)

    def get_code(self, fullname: str) -> CodeType:
        """Compile the file; raises ConfigError where it has changed."""
        content = self.get_data(self.path)
        if f"{OF_FILE}{hashlib.sha256(content).hexdigest()}" != self.name:
            raise ConfigError(f"{self.path} has changed since the run was planned; the same request plans it anew")
        code: CodeType = compile(content, self.path, "exec")
        return code


def _loaded(path: str, digest: str, what: str) -> ModuleType:
    loader = _Loader(path, digest)
    module = ModuleType(loader.name)
    module.__file__, module.__package__, module.__loader__ = path, "", loader
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        # Last, so that it finds the files beside this one, as Python does for a script, and hides nothing.
        sys.path.append(folder)
    sys.modules[module.__name__] = module
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module.__name__]
        if isinstance(error, ConfigError) or not isinstance(error, Exception | SystemExit | GeneratorExit):
            raise
        raise ConfigError(f"{what}: {path} can't be imported ({type(error).__name__}: {error})") from error
    return module
