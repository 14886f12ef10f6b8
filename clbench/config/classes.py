"""Classes of the user's own: handed over in Python, or named as path/to/file.py:Class. No torch."""

import hashlib
import os
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from types import ModuleType

from clbench.config.code import OF_FILE
from clbench.config.errors import ConfigError, unknown
from clbench.config.registry import PROTOCOLS, entry_points, load_with_protocols, path_of
from clbench.config.run import file_digest

# Kinds of classes, by the word for them in errors, and the entry points that they stand beside.
GROUPS = {"strategy": "clbench.strategies", "scenario": "clbench.scenarios", "model": "clbench.models"}

# Classes handed over in Python, by kind and name.
_given: dict[tuple[str, str], type] = {}


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


def is_known(kind: str, name: str) -> bool:
    """Whether a name is that of a class handed over, or registered."""
    return (kind, name) in _given or bool(_registered(kind, name))


def load_class(kind: str, name: str, code: Mapping[str, str] | None = None) -> object:
    """Return what a name stands for: a class handed over, path/to/file.py:Class, or an entry point.

    code: `RunConfig.code` of a run that was planned; a file must be as it was then, or have been loaded then.
    Raises ConfigError.
    """
    if (kind, name) in _given:
        return _given[kind, name]
    if path_of(name):
        return _from_file(kind, name, code or {})
    return load_with_protocols(GROUPS[kind], kind, name)


def _registered(kind: str, name: str) -> list[EntryPoint]:
    return [*entry_points(GROUPS[kind], name), *entry_points(PROTOCOLS, name)]


def _from_file(kind: str, name: str, code: Mapping[str, str]) -> object:
    path, attribute = path_of(name), name.removeprefix(path_of(name) + ":")
    if not os.path.isfile(path):
        raise ConfigError(f"{kind} {name!r}: there is no file {path}; path/to/file.py:Class is accepted")
    digest = code.get(path) or file_digest(path, kind)
    module = sys.modules.get(f"{OF_FILE}{digest}") or _loaded(path, digest, f"{kind} {name!r}")
    if not hasattr(module, attribute):
        classes = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise unknown(f"class in {path}", attribute, classes)
    return getattr(module, attribute)


def _loaded(path: str, digest: str, what: str) -> ModuleType:
    """Execute a file as the module that its digest names.

    Python's own import would take compiled code from a cache, which it believes to be of this file if the size and the
    second of the last change are the same.
    """
    module = ModuleType(f"{OF_FILE}{digest}")
    module.__file__, module.__package__ = path, ""
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        # Last, so that it finds the files beside this one, as Python does for a script, and hides nothing.
        sys.path.append(folder)
    sys.modules[module.__name__] = module
    try:
        with open(path, "rb") as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ConfigError(f"{path} has changed since the run was planned; the same request plans it anew")
        exec(compile(content, path, "exec"), vars(module))
    except BaseException as error:
        del sys.modules[module.__name__]
        if isinstance(error, ConfigError) or not isinstance(error, Exception | SystemExit):
            raise
        raise ConfigError(f"{what}: {path} can't be imported ({type(error).__name__}: {error})") from error
    return module
