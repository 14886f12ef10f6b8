"""The user's own code that a run is made of, as digests: its classes, and all that these use. No torch.

docs/identity.md says what a digest covers and what it can't see.
"""

import copyreg
import dis
import functools
import hashlib
import importlib.util
import itertools
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, TypeGuard

from clbench.config.errors import ConfigError

# Attributes that Python and its libraries put into every class, or that only readers of the code see.
_IGNORED = {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__"} | {
    "__annotate_func__",
    "__annotations_cache__",
    "__signature__",
    "__firstlineno__",
    "__static_attributes__",
    "__slotnames__",
    "__abstractmethods__",
    "_abc_impl",
    # clbench leaves this on a class when it is first used.
    "_checked_options",
}
_PLAIN = (type(None), bool, int, float, complex, str, type(...))
# Attributes that Python puts into every module.
_OF_MODULES = {f"__{name}__" for name in ("name", "doc", "package", "loader", "spec", "file", "cached", "path")} | {
    *("__builtins__", "__annotations__", "__annotate__", "__conditional_annotations__", "__warningregistry__"),
}
# Attributes that name what a decorator wraps, or that Python gives to each member of an enum.
_NAMES = {*functools.WRAPPER_ASSIGNMENTS, "__annotations__", "__wrapped__"} | {
    *("_value_", "_name_", "__objclass__", "_sort_order_"),
}
_FILLED = (dict, list, tuple, MappingProxyType)
# A module that is loaded from path/to/file.py:Class is named by the digest of its content.
OF_FILE = "clbench_file_"
# Values within values, and values in all, beyond which only types count.
_DEEPEST, _MOST = 40, 100_000

# The packages of clbench that decide numbers; the others plan, show and compare.
_DECIDE_NUMBERS = ("avalanche", "config", "data", "learning", "models", "running", "support", "strategies", "scenarios")

# Digests that runs of this process left behind: (piece, digest afterwards) -> digest before.
_left: dict[tuple[str, str], str] = {}
# The code that this process is known to have, and the same by the names that its pieces have here.
_known: dict[frozenset[tuple[str, str]], dict[str, str]] = {}


def digests(classes: Iterable[type], files: Mapping[str, str]) -> dict[str, str]:
    """Return a digest of each piece of the user's own code that classes are made of, by the name of the piece.

    A piece is a class, function or constant, such as `train.py:Mine` and `losses.py:TEMPERATURE`. A file that was
    named, as path/to/file.py:Class is, counts as a whole: `files` holds the digest of its content by its path. What a
    run changed while it went on counts as it was before. Nothing is returned where nothing is the user's own.
    """
    here = {p: _left.get((p, digest), digest) for p, digest in _Survey(classes, files.values()).code().items()}
    found = {**files, **{piece: digest for piece, digest in here.items() if digest}}
    _known[frozenset(found.items())] = found
    return found


def packages(classes: Iterable[type]) -> dict[str, str]:
    """Return the installed packages that the user's own code uses, with their versions."""
    survey = _Survey(classes)
    survey.code()
    of_module = functools.cache(metadata.packages_distributions)
    found = {}
    for module in survey.packages:
        for name in [module] if _version(module) else of_module().get(module, []):
            found[name] = _version(name) or ""
    return dict(sorted(found.items()))


@functools.cache
def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those of some packages that are installed; their metadata are read once in a process."""
    return {name: version for name in names if (version := _version(name)) is not None}


def other_versions(recorded: Mapping[str, str]) -> dict[str, str]:
    """Return the version that is installed here of each package that was recorded with another one."""
    return {name: here for name, there in recorded.items() if (here := _version(name) or "none") != there}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def own_source() -> str:
    """Return a digest of clbench's own modules that can change numbers, since an editable checkout can be edited."""
    digest = hashlib.sha256()
    for room in _DECIDE_NUMBERS:
        spec = importlib.util.find_spec(f"clbench.{room}")
        for folder in spec.submodule_search_locations or () if spec else ():
            for file in sorted(Path(folder).glob("*.py")):
                digest.update(f"{room}/{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of the pieces that are on one side alone; a piece that only goes by another name is on both."""
    return [
        piece
        for piece in dict.fromkeys([*now, *before])
        if (piece in now and now[piece] not in before.values())
        or (piece in before and before[piece] not in now.values())
    ]


def content(value: object) -> str:
    """Return a digest of a value by its content, which a copy of it has too."""
    return _Survey(())._of(value)


def confirm(code: Mapping[str, str], classes: Sequence[type]) -> dict[str, str]:
    """Return the code of a run that was planned as this process has it, where pieces may go by other names.

    Raises ConfigError where it is other code, as it may be in another process.
    """
    if (known := _known.get(frozenset(code.items()))) is not None:
        return known
    # A file that was named is the one that was planned, or load_class() refuses it.
    here = digests(classes, {piece: digest for piece, digest in code.items() if piece.endswith(".py")})
    if other := changed(code, here):
        raise ConfigError(
            f"{', '.join(other[:3])} is not in this process what the run was planned with; a value that is set when "
            "the module is imported is the same in every process"
        )
    _known[frozenset(code.items())] = here
    for cls in _Survey(classes).classes():
        # A class of a notebook came by itself; a checkpoint will look it up by its name.
        if "." not in cls.__qualname__ and cls.__module__ in sys.modules:
            setattr(sys.modules[cls.__module__], cls.__name__, cls)
    return here


def settle(before: Mapping[str, str], classes: Sequence[type]) -> list[str]:
    """Take what a run has left of its code's values for what it found, since its own hooks have changed them.

    Returns the pieces that are not as they were.
    """
    left = {p: d for p, d in _Survey(classes, before.values()).code().items() if before.get(p) != d}
    for piece, digest in left.items():
        _left[piece, digest] = before.get(piece, "")
    return list(left)


class _Survey:
    """One walk over all that classes are made of: bases, methods, and what these name in the modules they stand in.

    It reads the live objects and the compiled code, so it sees what will run: a notebook's latest definition, a value
    in a closure, a constant that was set from outside. Comments, docstrings and annotations are in neither.
    """

    def __init__(self, classes: Iterable[type], files: Iterable[str] = ()) -> None:
        # Modules that count as a whole, by the digests of their files.
        self._whole = {f"{OF_FILE}{digest}" for digest in files}
        self.packages: set[str] = set()
        # Pieces to describe, by name and identity; objects are kept, so that no other one gets their place in memory.
        self._queue: dict[tuple[str, int], tuple[str, object]] = {}
        self._seen: dict[int, tuple[object, str]] = {}
        self._depth = 0
        for cls in classes:
            self._of(cls)

    def code(self) -> dict[str, str]:
        """Return the digest of each piece by its name."""
        found: dict[str, list[str]] = {}
        done = 0
        while done < len(self._queue):
            (piece, _), (module, value) = list(self._queue.items())[done]
            parts = self._class(value) if _is_class(value) else self._parts(value)
            if module not in self._whole:
                found.setdefault(piece, []).append(_digest(parts))
            done += 1
        return {piece: d[0] if len(d) == 1 else _digest(d) for piece, d in sorted(found.items())}

    def classes(self) -> list[type]:
        """Return the user's own classes."""
        self.code()
        return [value for _, value in self._queue.values() if _is_class(value)]

    def _of(self, value: object) -> str:
        """Return a description of any value, short and the same in every process."""
        if type(value) is bytes:
            return f"bytes {hashlib.sha256(value).hexdigest()}"
        if type(value) in _PLAIN:
            return _plain(value)
        if _is_class(value):
            module = _module_of(value)
            if _is_own_class(value, module):
                self._enqueue(module, value.__qualname__, value)
                return f"class {value.__qualname__}"
            self._use(module)
            return f"class {module}.{value.__qualname__}"
        if id(value) not in self._seen:
            self._seen[id(value)] = value, f"itself {type(value).__qualname__}"
            self._depth += 1
            near = self._depth < _DEEPEST and len(self._seen) < _MOST
            parts = self._parts(value) if near else [type(value).__qualname__]
            self._depth -= 1
            self._seen[id(value)] = value, _digest(parts)
        return self._seen[id(value)][1]

    def _parts(self, value: Any) -> list[str]:
        """Describe a value by its parts, or by its type alone where its class raises whatever it is asked."""
        try:
            return self._by_kind(value)
        except Exception:  # of any kind
            return [type(value).__qualname__]

    def _by_kind(self, value: Any) -> list[str]:
        torch = sys.modules.get("torch")
        if isinstance(value, MethodType | BuiltinMethodType) and (name := self._name_in_library(value)):
            return [name]
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, MethodType):
            return ["method", self._of(value.__func__), self._of(value.__self__)]
        if isinstance(value, staticmethod | classmethod):
            return [type(value).__name__, self._of(value.__func__)]
        if isinstance(value, property):
            return ["property", *map(self._of, (value.fget, value.fset, value.fdel))]
        if type(value) in (tuple, list):
            return [type(value).__name__, *map(self._of, value)]
        if type(value) in (set, frozenset):
            return [type(value).__name__, *sorted(map(self._of, value))]
        if type(value) is memoryview:
            return ["memoryview", self._of(value.tobytes())]
        if type(value) in (dict, MappingProxyType):
            return ["dict", *(self._of(part) for pair in value.items() for part in pair)]
        if torch is not None and isinstance(value, torch.Tensor):
            return self._tensor(value, torch)
        return [self._of(type(value)), *self._reduced(value)]

    def _tensor(self, tensor: Any, torch: Any) -> list[str]:
        try:
            plain = tensor.detach().cpu()
            plain = plain.dequantize() if plain.is_quantized else plain.resolve_conj().resolve_neg()
            numbers = plain.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            described = ["tensor", str(tensor.dtype), str(tuple(tensor.shape)), hashlib.sha256(numbers).hexdigest()]
        except Exception:  # of a layout of its own, such as a sparse one, or without numbers, as on the device meta
            return [self._of(type(tensor)), *self._reduced(tensor)]
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            described.append(self._of(type(tensor)))
        return described + ([self._of(vars(tensor))] if vars(tensor) else [])

    def _name_in_library(self, value: Any) -> str:
        """Return the name of a library's function such as random.random, a method of an object that changes; or ""."""
        module, name = type(value.__self__).__module__, value.__name__
        for place in (module, module.rpartition(".")[0], str(value.__module__)):
            library = sys.modules.get(place)
            # Some libraries make such a method anew each time that it is read, so it is equal and not the same.
            if library is not None and not is_own(place) and vars(library).get(name) == value:
                self._use(place)
                return f"{place}.{name}"
        return ""

    def _reduced(self, value: Any) -> list[str]:
        """Describe an object by what pickle would keep of it, and by what it would leave out of one of the user's."""
        own = _is_own_class(type(value), _module_of(type(value)))
        attributes = {name: part for name, part in _attributes(value).items() if name not in _NAMES}
        try:
            if isinstance(wrapped := getattr(value, "__wrapped__", None), FunctionType):
                return [self._of(wrapped), *self._around(value, attributes, own)]
            known = copyreg.dispatch_table.get(type(value))
            reduced = value.__reduce_ex__(4) if known is None else known(value)
            if isinstance(reduced, str):
                self._use(_module_of(value))
                return [reduced, *([self._of(attributes)] if own and attributes else [])]
            made, arguments, state, *iterators = (*reduced, None)[:5]
            items = [list(iterator) for iterator in iterators if iterator is not None]
        except Exception:  # whatever a class raises
            return [self._of(_attributes(value))]
        kept = _pairs(state)
        left_out = {name: part for name, part in attributes.items() if own and (name, id(part)) not in kept}
        described = [self._of(made), self._of(arguments), self._of(state), *map(self._of, items)]
        return described + ([self._of(left_out)] if left_out else [])

    def _around(self, value: Any, attributes: dict[str, object], own: bool) -> list[str]:
        """Describe what a decorator's object holds besides the function that it wraps."""
        if isinstance(value, functools.partial | functools.partialmethod):
            return [self._of([value.func, value.args, value.keywords, attributes])]
        counting = attributes if own else _of_decorator(attributes)
        return [self._of(counting)] if counting else []

    def _class(self, cls: type) -> list[str]:
        own = [(name, value) for name, value in sorted(vars(cls).items()) if name not in _IGNORED]
        return [
            *map(self._of, (type(cls), *cls.__bases__)),
            *(text for name, value in own for text in (name, self._of(value))),
        ]

    def _function(self, function: FunctionType) -> list[str]:
        cells = [_content(cell) for cell in function.__closure__ or ()]
        module = function.__globals__.get("__name__")
        foreign = module is not None and not is_own(module)
        if foreign and isinstance(wrapped := vars(function).get("__wrapped__"), FunctionType):
            self._use(str(module))
            kept = [cell for cell in cells if type(cell) in (*_PLAIN, *_FILLED)]
            kept += _of_decorator(vars(function)).values()
            return [str(module), function.__qualname__, *map(self._of, (wrapped, *kept))]
        around = [self._of(part) for part in (*cells, *(part for item in vars(function).items() for part in item))]
        if foreign:
            self._use(str(module))
            return [str(module), function.__qualname__, *around]
        text, names, imports = _compiled(function.__code__)
        named = [f"{name[0]} {self._named(function.__globals__, name)}" for name in names]
        package = str(function.__globals__.get("__package__") or "")
        imported = [self._imported(name, package) for name in imports]
        return [text, self._of(function.__defaults__), self._of(function.__kwdefaults__), *around, *named, *imported]

    def _named(self, namespace: Mapping[str, Any], name: tuple[str, ...]) -> str:
        """Describe what code names, such as FACTOR or losses.FACTOR, as a piece of its own where it is the user's."""
        first, *rest = name
        if first not in namespace or first in _OF_MODULES:
            return ""
        value = namespace[first]
        kind = type(value)
        if issubclass(kind, ModuleType) and is_own(value.__name__) and rest and rest[0] in vars(value):
            return self._named(vars(value), tuple(rest))
        if issubclass(kind, type | ModuleType):
            return self._of(value)
        if issubclass(kind, FunctionType):
            module, called = value.__globals__.get("__name__", ""), value.__qualname__
            if module and not is_own(module):
                # A library's decorator left this; the closure holds the function that it wraps.
                return self._of(value)
            self._enqueue(module, first if "<" in called else called, value)
            return f"function {called}"
        self._enqueue(str(namespace.get("__name__", "")), first, value)
        return ""

    def _module(self, module: ModuleType) -> list[str]:
        if not is_own(module.__name__):
            self._use(module.__name__)
            return ["module", module.__name__]
        return ["module", *(f"{name} {self._named(vars(module), (name,))}" for name in sorted(vars(module)))]

    def _imported(self, name: str, package: str) -> str:
        """Describe a module that code imports when it is called; one of the user's own is imported for it now."""
        try:
            full = importlib.util.resolve_name(name, package)
            spec = importlib.util.find_spec(full)
            if spec is None:
                return ""
            if _is_own_file(full, spec.origin):
                return self._of(importlib.import_module(full))
        except Exception:  # whatever a module raises, and what is no module is an attribute of one
            return ""
        self._use(full)
        return f"module {full}"

    def _enqueue(self, module: str, name: str, value: object) -> None:
        self._queue.setdefault((":".join(filter(None, (_file(module), name))), id(value)), (module, value))

    def _use(self, module: str) -> None:
        top = module.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("clbench", "builtins"):
            self.packages.add(top)


@functools.lru_cache(maxsize=4096)
def _compiled(code: CodeType) -> tuple[str, tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Return a digest of compiled code, the names that it looks up in its module, and the modules that it imports.

    A name comes with the attributes that are read of it: ("losses", "FACTOR"). Positions in the file don't count.
    """
    within = [_compiled(const) for const in code.co_consts if isinstance(const, CodeType)]
    names = {name: None for _, found, _ in within for name in found}
    imports = {name: None for _, _, found in within for name in found}
    steps = list(dis.get_instructions(code.replace(co_consts=tuple(map(_written, code.co_consts)))))
    for place, step in enumerate(steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            read = itertools.takewhile(lambda after: after.opname in ("LOAD_ATTR", "LOAD_METHOD"), steps[place + 1 :])
            names[step.argval, *(after.argval for after in read)] = None
        elif step.opname == "IMPORT_NAME":
            module = "." * (steps[place - 2].argval or 0) + step.argval
            listed = [f"{module}{'' if module.endswith('.') else '.'}{name}" for name in steps[place - 1].argval or ()]
            imports |= dict.fromkeys([module, *listed] if module.strip(".") else listed)
    consts = list(code.co_consts)
    if consts and isinstance(consts[0], str) and not code.co_name.startswith("<"):
        consts[0] = None  # the docstring
    parts = [
        *(code.co_code.hex(), code.co_exceptiontable.hex(), f"{code.co_flags}", *map(_constant, consts)),
        *map(repr, (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)),
        *map(repr, (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)),
    ]
    return _digest(parts), tuple(names), tuple(imports)


def _constant(value: object) -> str:
    if isinstance(value, CodeType):
        return _compiled(value)[0]
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {list(map(_constant, value))}"
    return _plain(value)


def _plain(value: object) -> str:
    text = hex(value) if isinstance(value, int) and _written(value) is None else repr(value)
    return f"{type(value).__name__} {text}"


def _written(value: object) -> object:
    """Return a value, or None for a number of more than 4,300 decimal digits, which Python does not write."""
    try:
        repr(value)
    except ValueError:
        return None
    return value


def _attributes(value: object) -> dict[str, object]:
    """Return what stands on an object, in slots too."""
    found: dict[str, object] = {}
    with suppress(Exception):  # there are none, or a class raises
        found |= vars(value)
    for cls in type(value).__mro__:
        for name, slot in vars(cls).items():
            if isinstance(slot, MemberDescriptorType) and is_own(_module_of(cls)):
                with suppress(AttributeError):  # it holds nothing yet
                    found[name] = slot.__get__(value)
    return found


def _of_decorator(attributes: Mapping[str, object]) -> dict[str, object]:
    """Return what counts of the attributes that a library's decorator, or its user, has left on what it made.

    It may keep other things, such as a cache or an address in memory, which differ from process to process.
    """
    return {
        name: part
        for name, part in attributes.items()
        if type(part) in _FILLED or (type(part) in _PLAIN and not name.startswith("_"))
    }


def _pairs(state: object, depth: int = 3) -> set[tuple[object, int]]:
    """Return the names and values in the dicts that pickle would keep of an object."""
    if depth and type(state) is dict:
        own = {(name, id(value)) for name, value in state.items()}
        return own.union(*(_pairs(value, depth - 1) for value in state.values()))
    if depth and type(state) is tuple:
        return set().union(*(_pairs(value, depth - 1) for value in state))
    return set()


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return "nothing yet"


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _module_of(value: object) -> str:
    # Classes and objects of C extensions may have anything there, or nothing.
    module = getattr(value, "__module__", None)
    return module if isinstance(module, str) else "builtins"


def _is_class(value: object) -> TypeGuard[type]:
    # An object may lie about its class, or raise where it is asked for it.
    return issubclass(type(value), type)


def _is_own_class(cls: type, module: str) -> bool:
    # Code that is executed without a module's name counts as of builtins, which makes no classes at run time.
    made_here = module == "builtins" and bool(cls.__flags__ & 1 << 9)
    return made_here or is_own(module)


def is_own(module: str) -> bool:
    """Whether a module is the user's: not of clbench, of Python, or of an installed package."""
    if module in ("__main__", "__mp_main__"):
        return True
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", ())), None)
    if file is None and "." in module:
        return is_own(module.partition(".")[0])
    return _is_own_file(module, file)


def _is_own_file(module: str, file: str | None) -> bool:
    top = module.partition(".")[0]
    if top == "clbench" or file is None or file in ("built-in", "frozen"):
        return top != "clbench" and top not in sys.stdlib_module_names
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        return False
    return not os.path.abspath(file).startswith(_library())


@functools.cache
def _library() -> tuple[str, ...]:
    """Return the folders of Python's own modules."""
    paths = sysconfig.get_paths()
    return tuple(paths[name] + os.sep for name in ("stdlib", "platstdlib"))


def _file(module: str) -> str:
    """Return the file of a module for people, with the folders of its package; "" without one, as in a notebook."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if file is None:
        return ""
    depth = module.count(".") + hasattr(loaded, "__path__")
    return "/".join(Path(file).parts[-1 - depth :])
