"""Arguments of public functions: what is plainly meant is accepted, all else is refused in one sentence.

`checked` reads the annotations of a function, so the kinds that it takes are declared once, for readers, for mypy and
for the check. It must not import what the annotations name.
"""

import collections.abc
import functools
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.plain import listed, plain

Checked = TypeVar("Checked", bound=Callable[..., Any])
Accept = Callable[[Any], Any]


class _UnfitError(Exception):
    """A value is of no accepted kind; the text says which are accepted."""


class _UnknownError(_UnfitError):
    """A name is none of some choices."""

    def __init__(self, name: str, choices: tuple[Any, ...]) -> None:
        super().__init__(" or ".join(map(repr, choices)))
        self.name, self.choices = name, [str(choice) for choice in choices]


def checked(function: Checked) -> Checked:
    """Check the arguments of a function, or of a class's constructor, against its annotations when it is called.

    Numbers of numpy and torch serve as Python's, and what has an order as a list; text and sets never do. None of
    several numbers is infinite. Raises ConfigError that names function, argument, value and what is accepted, also for
    an argument that is missing or unknown.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function
    owner = function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # The names that may stand beside so many arguments; looking them up costs less than binding.
    beside = [frozenset(signature.parameters) - {*positional[:n]} for n in range(len(positional) + 1)]
    required = sum(p.default is p.empty for p in parameters if p.name in positional)
    needs_names = any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    acceptors: dict[str, Accept] = {}
    read = False

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal read
        if not read:
            acceptors.update(_acceptors(function))
            read = True
        n = len(args)
        if needs_names or not required <= n <= len(positional) or not kwargs.keys() <= beside[n]:
            _bind(signature, owner, args, kwargs)
        name, value = "", None
        try:
            fit = list(args)
            for place, (name, value) in enumerate(zip(positional, args, strict=False)):
                if name in acceptors:
                    fit[place] = acceptors[name](value)
            for name, value in kwargs.items():
                if name in acceptors:
                    kwargs[name] = acceptors[name](value)
        except _UnknownError as nameless:
            hint = unknown(name.replace("_", " "), nameless.name, nameless.choices)
            raise ConfigError(f"{hint} ({name} of {owner})") from None
        except _UnfitError as unfit:
            raise ConfigError(f"{owner}: {name}={shown(value)} given, {unfit} accepted") from None
        return function(*fit, **kwargs)

    return typing.cast(Checked, call)


def check_shapes(owner: str, **given: tuple[Any, str]) -> None:
    """Refuse arrays whose shapes do not fit: `check_shapes("loss", logits=(x, "B outputs"), labels=(y, "B"))`.

    An axis has one size wherever its name comes again; "..." at the end stands for any number of axes. Raises
    ConfigError.
    """
    sizes: dict[str, int] = {}
    for name, (array, form) in given.items():
        axes = form.removesuffix(" ...").split()
        fits = array.ndim >= len(axes) if form.endswith("...") else array.ndim == len(axes)
        if not fits or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, array.shape, strict=False)):
            known = ", ".join(f"{axis} = {sizes[axis]}" for axis in axes if axis in sizes) if fits else ""
            raise ConfigError(
                f"{owner}: {name} has shape {tuple(array.shape)}; [{', '.join(form.split())}] is accepted"
                + (f", where {known}" if known else "")
            )


def _bind(signature: inspect.Signature, owner: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments that are missing, unknown or too many."""
    names = [name for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for name in kwargs:
            if name not in names:
                raise unknown(f"argument of {owner}", name, names)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{owner}: {error}; its arguments are {', '.join(names) or 'none'}") from None


def _acceptors(function: Callable[..., Any]) -> dict[str, Accept]:
    """Return for each parameter what checks its values; nothing for one whose annotation says nothing."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = parameter.annotation
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or annotation is parameter.empty:
            continue
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, getattr(function, "__globals__", {}))
            except NameError:  # imported for type checkers alone
                continue
        accept = _acceptor(annotation)
        if accept is not None:
            found[name] = accept
    return found


def _acceptor(annotation: Any, *, inside: bool = False) -> Accept | None:
    """Return what gives a value of the annotated kind, or raises _UnfitError; None where every value may do.

    inside: the value is one of several.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _any_of(annotation, inside=inside)
    if origin is Literal:
        return functools.partial(_one_of, parts)
    if annotation is Any:
        return None
    if annotation is None or annotation is types.NoneType:
        return _none
    if annotation is bool:
        return _flag
    if annotation is int:
        return _integer
    if annotation is float:
        return functools.partial(_number, inside)
    if annotation is str:
        return _text
    if origin is type:
        return functools.partial(_class, parts[0])
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection):
        fixed = origin is tuple and parts[-1] is not ...
        same = not fixed or len(set(parts)) == 1
        entry = _acceptor(parts[0], inside=True) if same else None
        if origin is collections.abc.Iterable:
            return functools.partial(_some, entry, _says(parts[0]), _is_scalar(parts[0]))
        return functools.partial(_entries, entry, _says(parts[0]), origin is tuple, len(parts) if fixed else None)
    if origin in (dict, collections.abc.Mapping):
        return functools.partial(_mapping, _acceptor(parts[0], inside=True), _acceptor(parts[1], inside=True))
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return _callable
    kind = origin or annotation
    if kind is os.PathLike:
        return _path
    if isinstance(kind, type) and kind is not object and not getattr(kind, "_is_protocol", False):
        return functools.partial(_instance, kind)
    return None


def _says(annotation: Any) -> str:
    """Return an annotated kind in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    words = {int: "an integer", float: "a number", bool: "True and False", str: "text", types.NoneType: "None"}
    if annotation in words:
        return words[annotation]
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_says, parts)))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is type:
        return f"a subclass of {_says(parts[0]).removeprefix('a ').removeprefix('an ')}"
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        return f"a list of which each entry is {_says(parts[0])}"
    if origin in (dict, collections.abc.Mapping):
        return "a mapping"
    if origin is collections.abc.Callable:
        return "a function"
    name = "path" if origin is os.PathLike else getattr(origin or annotation, "__name__", str(annotation))
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def _is_scalar(annotation: Any) -> bool:
    parts = get_args(annotation)
    return annotation in (int, float, bool) or bool(parts and any(_is_scalar(part) for part in parts))


def _any_of(annotation: Any, *, inside: bool) -> Accept | None:
    parts = get_args(annotation)
    if any(get_origin(part) is os.PathLike for part in parts):
        parts = tuple(part for part in parts if part is not str)  # a path may be given as text, but not an empty one
    wanted = [found for part in parts if (found := _acceptor(part, inside=inside)) is not None]
    if len(wanted) < len(parts):
        return None

    def accept(value: Any) -> Any:
        problems: dict[str, None] = {}
        for one in wanted:
            try:
                return one(value)
            except _UnfitError as unfit:
                problems[str(unfit)] = None
        raise _UnfitError(" or ".join(problems))

    return accept


def _one_of(choices: tuple[Any, ...], value: Any) -> Any:
    value = plain(value)
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return value
    if isinstance(value, str):
        raise _UnknownError(value, choices)
    raise _UnfitError(" or ".join(map(repr, choices)))


def _none(value: Any) -> None:
    if value is not None:
        raise _UnfitError("None")


def _flag(value: Any) -> bool:
    value = plain(value)
    if value is True or value is False:
        return bool(value)
    raise _UnfitError("True and False")


def _integer(value: Any) -> int:
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _UnfitError("an integer")
    if not -(2**63) <= value < 2**63:
        raise _UnfitError("an integer of 64 bits")
    return int(value)


def _number(inside: bool, value: Any) -> float:
    if type(value) is not float:
        value = plain(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _UnfitError("a number")
        try:
            float(value)
        except OverflowError:
            raise _UnfitError("a number below 1e308") from None
    if inside and math.isinf(value):
        raise _UnfitError("a finite number")
    return typing.cast(float, value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    raise _UnfitError("text")


def _path(value: Any) -> Any:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(path, str) and path and "\0" not in path:
        return value
    raise _UnfitError("a path")


def _class(base: Any, value: Any) -> Any:
    kind = get_origin(base) or base
    if isinstance(kind, type) and isinstance(value, kind):
        raise _UnfitError(f"the class {type(value).__name__} itself")
    if isinstance(value, type) and (not isinstance(kind, type) or issubclass(value, kind)):
        return value
    raise _UnfitError(f"a subclass of {getattr(kind, '__name__', kind)}")


def _callable(value: Any) -> Any:
    if callable(value):
        return value
    raise _UnfitError("a function")


def _instance(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    raise _UnfitError(_says(kind) if not isinstance(value, type) else f"an object of the class {kind.__name__}")


def _each(accept: Accept | None, said: str, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        try:
            yield value if accept is None else accept(value)
        except _UnknownError:
            raise
        except _UnfitError as unfit:
            raise _UnfitError(f"{unfit or said} for each entry") from None


def _entries(accept: Accept | None, said: str, as_tuple: bool, length: int | None, value: Any) -> Any:
    entries = listed(value)
    if not isinstance(entries, collections.abc.Sequence) or isinstance(entries, str | bytes | bytearray):
        raise _UnfitError(f"a list of which each entry is {said}")
    if length is not None and len(entries) != length:
        raise _UnfitError(f"{length} values")
    made = list(_each(accept, said, entries))
    return tuple(made) if as_tuple else made


def _some(accept: Accept | None, said: str, scalars: bool, value: Any) -> Any:
    """Accept what is read once from front to back, piece by piece, since it may hold more than the memory."""
    if scalars:
        value = listed(value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable) or hasattr(value, "tolist"):
        raise _UnfitError(f"a list of which each entry is {said}")
    if isinstance(value, list | tuple):
        return list(_each(accept, said, value))
    return _lazily(_each(accept, said, value))


def _lazily(values: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from values
    except _UnfitError as unfit:
        raise ConfigError(f"a generator gave something else; {unfit} accepted") from None


def _mapping(key: Accept | None, entry: Accept | None, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _UnfitError("a mapping")
    if key is None and entry is None:
        return value
    keys = _each(key, "text", value)
    return dict(zip(keys, _each(entry, "", value.values()), strict=True))
