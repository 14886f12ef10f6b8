"""Names and options: entry points by name, `NAME[key=value,...]`, and options checked against their types."""

import copy
import functools
import json
import re
import sys
import types
from collections.abc import Iterable, Mapping
from importlib import metadata
from importlib.metadata import EntryPoint, EntryPoints
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pydantic

from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.plain import as_text, listed, plain

# The entry-point group of what one published protocol alone needs.
PROTOCOLS = "clbench.protocols"


# A name that ends so is a file of the user's own data.
DATA_FILES = (".npz", ".npy", ".csv", ".tar", ".parquet")


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sort names with their digit runs compared as numbers: `task2` comes before `task10`."""
    return sorted(names, key=lambda name: ([int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)], name))


class Derived(EntryPoint):
    """`split-NAME` of a data set for which no package declares a scenario of that name."""

    def load(self) -> Any:
        """Return the scenario."""
        return super().load()(self.name.removeprefix("split-"))


# Reading what all installed packages declare takes 10 to 40 ms, and every config of a sweep asks.
@functools.lru_cache(maxsize=8)
def _declared(group: str, path: tuple[str, ...]) -> EntryPoints:
    found = metadata.entry_points(group=group)
    if group != "clbench.scenarios":
        return found
    cut = [f"split-{entry.name}" for entry in metadata.entry_points(group="clbench.datasets")]
    value = "clbench.scenarios.registered:split_of"
    return EntryPoints([*found, *(Derived(name, value, group) for name in cut if name not in found.names)])


@functools.lru_cache(maxsize=512)
def _named(group: str, name: str, path: tuple[str, ...]) -> EntryPoints:
    return _declared(group, path).select(name=name)


def entry_points(group: str, name: str | None = None) -> EntryPoints:
    """Return what installed packages declare in a group, read once for each sys.path."""
    path = tuple(sys.path)
    return _declared(group, path) if name is None else _named(group, name, path)


def entry_point_names(group: str) -> list[str]:
    """Return the names that installed packages declare in an entry-point group, in natural order."""
    return natural_sorted({entry.name for entry in entry_points(group=group)})


def load_entry_point(group: str, kind: str, name: str) -> object:
    """Import what an installed package declares under a name; `kind` ("model") is the word used in errors.

    Raises ConfigError for an unknown name, for one that two packages declare, and where the import fails.
    """
    found = list(entry_points(group=group, name=name))
    if not found:
        raise unknown(kind, name, entry_point_names(group))
    if len(found) > 1:
        owners = " and ".join(natural_sorted(_owner(entry) for entry in found))
        raise ConfigError(f"{kind} {name!r} is declared by {owners}; one package per name is accepted")
    try:
        return found[0].load()
    except Exception as error:  # whatever a third party's module raises while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{kind} {name!r} of {_owner(found[0])} can't be imported ({reason})") from error


def load_with_protocols(group: str, kind: str, name: str) -> object:
    """Import what is declared in a group, or else in `clbench.protocols`, which no list shows.

    Raises ConfigError as load_entry_point does.
    """
    hidden = not entry_points(group, name) and entry_points(PROTOCOLS, name)
    return load_entry_point(PROTOCOLS if hidden else group, kind, name)


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def parse_spec(text: str, bare: str = "") -> tuple[str, dict[str, Any]]:
    """Split `NAME` or `NAME[key=value,...]` into the name and its options, spaces around each part dropped.

    A value may hold commas inside its own brackets: `mlp[widths=[400,400]]`.
    bare: the option that is a list of the parts without a key, as in `stream[split-mnist,split-kmnist]`, where there is
        one.
    Raises ConfigError for malformed text and for a key that is given twice.
    """

    def malformed(reason: str) -> ConfigError:
        form = "NAME[A,B,...] or NAME[A,B,...,key=value]" if bare else "NAME or NAME[key=value,...]"
        return ConfigError(f"{text!r} given ({reason}), {form} accepted")

    name, bracket, rest = (part.strip() for part in text.partition("["))
    if not name:
        raise malformed("no name")
    parts = None if "]" in name or (bracket and not rest.endswith("]")) else _parts(rest[:-1])
    if parts is None:
        raise malformed("unbalanced brackets")
    options: dict[str, Any] = {}
    for part in parts:
        key, _, value = (piece.strip() for piece in part.partition("="))
        # The brackets of a part without a key may hold keys of their own.
        if bare and part and not ("=" in part and key.isidentifier()):
            if isinstance(options.setdefault(bare, []), str):
                raise malformed(f"{bare} given twice")
            options[bare].append(part)
            continue
        if not key or not value:
            raise malformed(f"{part!r} is not key=value")
        if key in options:
            raise malformed(f"{key} given twice")
        options[key] = value
    return name, options


def comma_parts(text: str) -> list[str]:
    """Split a list of names, which may have brackets, at its commas; raises ConfigError for an empty one."""
    parts = _parts(text)
    if parts is None or not all(parts):
        reason = "unbalanced brackets" if parts is None else "an empty name"
        raise ConfigError(f"{text!r} given ({reason}), names separated by commas are accepted")
    return parts


def _parts(text: str) -> list[str] | None:
    """Split a text at its commas outside of brackets, spaces dropped; None for brackets that do not match."""
    depth, parts = 0, [""]
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth < 0:
            return None
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        return None
    return [part.strip() for part in parts] if text.strip() else []


def path_of(name: str) -> str:
    """Return the file of path/to/file.py:Class, "" for any other name."""
    before, colon, _ = name.partition(".py:")
    return f"{before}.py" if colon else ""


def options_model(name: str, fields: Mapping[str, tuple[Any, Any]]) -> type[pydantic.BaseModel]:
    """Return a strict pydantic model of options from `{option: (annotation, default)}`.

    Bounds are annotations: `Annotated[float, pydantic.Field(ge=0)]`.
    """
    config = pydantic.ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )
    # The overloads of create_model can't express fields that are only known at run time.
    try:
        model: type[pydantic.BaseModel] = pydantic.create_model(name, __config__=config, **dict(fields))  # type: ignore[call-overload]
    except Exception as error:  # pydantic has one of its own for each way in which an annotation is none
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{name}: {reason}; an annotated attribute is a hyper-parameter, state needs none") from None
    return model


def validate_options(
    model: type[pydantic.BaseModel], values: Mapping[str, object], *, owner: str, beside: Iterable[str] = ()
) -> dict[str, object]:
    """Return all options of a model, the defaults filled in; `owner` ("lwf") begins each error.

    beside: names that are accepted in the same place, for the hint at an unknown one.

    Text is read as from a command line ("0.5", "true", "none", "4,3,3" or "400-400" for a list of int);
    other values must have the type itself (an int also serves as a float). Raises ConfigError, one sentence.
    """
    for key in values:
        if key not in model.model_fields:
            raise unknown(f"option of {owner}", key, [*model.model_fields, *beside])
    given = {key: read_text(model.model_fields[key].annotation, value) for key, value in values.items()}
    try:
        options = dict(model.model_validate(given))
    except pydantic.ValidationError as error:
        typed = {key: Typed(value) if isinstance(value, str) else value for key, value in values.items()}
        raise ConfigError(f"{owner}: {explain(error, typed)}") from None
    for key, value in options.items():
        if not _can_be_recorded(value):
            raise ConfigError(
                f"{owner}: {key}={shown(value)} given; what run.json can hold is accepted: numbers, text, true, false, "
                "none, and lists and dicts of these"
            )
    # A default or a caller's list that a run changes would be another one in the next run.
    return copy.deepcopy(options)


def _can_be_recorded(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):  # ValueError: half a character, or a number too long to be written
        return False
    return True


class Typed(str):
    """Text from a command line or from brackets, where everything is text, so that an error shows it without quotes."""

    __slots__ = ()


# Types of pydantic's problems with text that has the right type, and another value than is accepted.
_OF_TEXT = ("literal_error", "string_", "value_error")


def explain(error: pydantic.ValidationError, values: Mapping[str, object]) -> str:
    """Return the first problem of a validation as a sentence: the option, the value given, what is accepted."""
    problems = error.errors(include_url=False)
    if not problems[0]["loc"]:
        return problems[0]["msg"].removeprefix("Value error, ")
    option = str(problems[0]["loc"][0])
    if missing := [str(p["loc"][0]) for p in problems if p["type"] == "missing"]:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} required"
    of_option = [p for p in problems if p["loc"][0] == option]
    wanted = " or ".join(dict.fromkeys(map(accepted, of_option)))
    value = values.get(option, problems[0]["input"])
    # Text in the place of a number looks like one without its quotes.
    quoted = not isinstance(value, Typed) and any(not p["type"].startswith(_OF_TEXT) for p in of_option)
    text = value if isinstance(value, str) and value.isprintable() and not quoted else shown(value)
    return f"{option}={text if len(text) <= 60 else text[:57] + '...'} given, {wanted} accepted"


def accepted(problem: Any) -> str:
    """Return what is accepted out of pydantic's message ("Input should be a valid number, unable ...")."""
    message: str = problem["msg"]
    if found := re.search(r"should have (.+?)(?: after validation.*)?$", message):
        message = found[1]
    message = message.removeprefix("Input should be ").removeprefix("Value error, ").split(", unable to")[0]
    return message + (" for each entry" if any(isinstance(place, int) for place in problem["loc"]) else "")


# Making one takes longer than reading with it, and a thousand planned runs read their options one by one.
_TYPED: dict[Any, pydantic.TypeAdapter[Any]] = {kind: pydantic.TypeAdapter(kind) for kind in (bool, int, float)}


def read_text(annotation: Any, value: object) -> object:
    """Read text as the annotated type where it can be, and plain values from what a Python caller has.

    Everything else is left for the strict validation.
    """
    value = plain(value)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return read_text(arguments[0], value)
    if origin in (Union, types.UnionType):
        if isinstance(value, str) and value.lower() == "none" and types.NoneType in arguments:
            return None
        converted = [(argument, read_text(argument, value)) for argument in arguments]
        if isinstance(value, str) and str in arguments:
            # Text that reads as nothing else is a name.
            converted = [(argument, result) for argument, result in converted if fits(argument, result)]
        return next((result for _, result in converted if result is not value), value)
    if origin in (list, tuple):
        # JSON and TOML know lists only, and a Python caller may have a tuple: both say the same.
        entries = _split(arguments, value) if isinstance(value, str) else listed(value)
        if isinstance(entries, (list, tuple)):
            return origin(read_text(arguments[0], e) if isinstance(value, str) else plain(e) for e in entries)
        return value
    if not isinstance(value, str):
        return as_text(value) if annotation is str else value
    if origin is Literal:
        return next((choice for choice in arguments if str(choice) == value), value)
    # Python reads digits of every script, and 1_0 as 10; who types them means something else.
    if annotation in _TYPED and value.isascii() and "_" not in value:
        try:
            return _TYPED[annotation].validate_python(value, strict=False)
        except pydantic.ValidationError:
            return value
    return value


def text_of(value: object) -> str:
    """Return a default as one would type it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, type):
        return value.__name__
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def fits(annotation: Any, value: object) -> bool:
    """Whether a value has an annotated type already."""
    try:
        pydantic.TypeAdapter(annotation).validate_python(value, strict=True)
    except pydantic.ValidationError:
        return False
    return True


def _split(arguments: tuple[Any, ...], text: str) -> list[str]:
    text = text.strip()
    # Brackets around the whole list, not those of its only entry.
    text = text[1:-1].strip() if text[:1] == "[" and text[-1:] == "]" else text
    entry = get_args(arguments[0])[0] if get_origin(arguments[0]) is Annotated else arguments[0]
    if entry is int and re.fullmatch(r"\d+(-\d+)+", text):
        return text.split("-")
    return [text] if (parts := _parts(text)) is None else parts
