"""The rules for a class of the user's: its options and its hooks, checked when the class is first used.

Not when it is defined, so that a faulty class stops nothing but itself, and never the module that it is in.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, get_origin, get_type_hints

import pydantic

from clbench.config.errors import ConfigError, shown
from clbench.config.registry import accepted, options_model


class Declared:
    """The attribute of a base class that holds what a subclass declares: a pydantic model of its options.

    own: whether the annotated attributes of the base itself are options too.
    Reading it raises ConfigError for options and hooks that the base can't work with.
    """

    def __init__(self, *, own: bool = False) -> None:
        self.own = own

    def __set_name__(self, base: type, name: str) -> None:
        self.base = base

    def __get__(self, instance: object, cls: type) -> type[pydantic.BaseModel]:
        model, defaults = vars(cls).get("_checked_options", (None, {}))
        # A default may have been set from outside since.
        if model is None or any(getattr(cls, name, None) is not value for name, value in defaults.items()):
            check_hooks(cls, self.base)
            model = declared_options(cls, self.base, own=self.own)
            _check_constructor(cls, self.base, model)
            defaults = {name: getattr(cls, name, None) for name in model.model_fields}
            cls._checked_options = model, defaults  # type: ignore[attr-defined]
        found: type[pydantic.BaseModel] = model
        return found


def declared_options(cls: type, base: type, *, own: bool = False) -> type[pydantic.BaseModel]:
    """Return the options that a class declares: its annotated attributes, and those of `base` where they are `own`.

    Raises ConfigError for an annotation that can't be read, a name that is taken and a default of another type.
    """
    known = {} if own else get_type_hints(base, include_extras=True)
    hints = {
        name: hint
        for name, hint in _hints(cls).items()
        if name not in known and not name.startswith("_") and get_origin(hint) is not ClassVar
    }
    _refuse_taken_names(cls, base, hints, known)
    defaults = {name: getattr(cls, name) for name in hints if hasattr(cls, name)}
    model = options_model(cls.__name__, {name: (hint, defaults.get(name, ...)) for name, hint in hints.items()})
    try:
        model.model_validate({})
    except pydantic.ValidationError as error:
        for problem in error.errors():
            if problem["type"] != "missing":
                name = str(problem["loc"][0])
                raise ConfigError(
                    f"{cls.__name__}.{name} has the default {shown(defaults[name])}; {accepted(problem)} is accepted"
                ) from None
    return model


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception as error:  # an annotation is any text
        raise ConfigError(
            f"an annotation of {cls.__name__} can't be read ({type(error).__name__}: {error}); a type that its module "
            "knows is accepted"
        ) from None


def _refuse_taken_names(cls: type, base: type, hints: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse an option that would set something else: a field of the run, or what the base keeps under that name."""
    from clbench.config.run import INTERNAL, fields

    kept = {n for n, hint in known.items() if not n.startswith("_") and get_origin(hint) is not ClassVar}
    hidden = [n for n in kept if getattr(cls, n, None) is not getattr(base, n, None)]
    methods = {n for n in hints if hasattr(base, n) and n not in get_type_hints(base)}
    for name in (*hints, *hidden):
        if name in methods or name in hidden:
            raise ConfigError(
                f"{cls.__name__}.{name}: every {base.__name__} has a {name} that is no option; rename yours"
            )
        # The others are never typed beside an option.
        if name in fields().keys() - INTERNAL:
            raise ConfigError(
                f"{cls.__name__}.{name} is declared as an option, and {name} is a field of every run; rename yours"
            )


def check_hooks(cls: type, base: type) -> None:
    """Refuse a class that overrides a method or attribute of `base` by what can't serve in its place.

    Raises ConfigError that names what is there and the definition that is accepted.
    """
    for name, expected in vars(base).items():
        given = inspect.getattr_static(cls, name, expected)
        if name.startswith("_") or given is expected:
            continue
        if isinstance(expected, property):
            if not isinstance(given, property | functools.cached_property):
                raise ConfigError(
                    f"{cls.__name__}.{name} hides what {base.__name__}.{name} says; another name is accepted"
                )
        elif isinstance(expected, classmethod):
            _check_method(cls, name, given, expected.__func__, classmethod)
        elif inspect.isfunction(expected):
            _check_method(cls, name, given, expected, None)


def _check_method(cls: type, name: str, given: Any, expected: Callable[..., Any], kind: type | None) -> None:
    wanted = inspect.signature(expected).parameters.values()
    spelt = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in wanted)
    definition = f"def {name}({spelt})"

    def refused(what: str) -> ConfigError:
        return ConfigError(f"{cls.__name__}.{name} {what}; {definition} is accepted")

    function = given.__func__ if isinstance(given, classmethod | staticmethod) else given
    if isinstance(given, functools.partialmethod) and kind is None:
        return
    if isinstance(given, staticmethod | property | functools.cached_property) or (
        isinstance(given, classmethod) != (kind is classmethod)
    ):
        words = {staticmethod: "a static method", classmethod: "a class method", property: "a property"}
        raise refused(f"is {words.get(type(given), 'no method of the class' if kind else 'no method')}")
    if not inspect.isfunction(function):
        raise refused(f"is {shown(given, 40)} and no method")
    inner, meant = inspect.unwrap(function), inspect.unwrap(expected)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        raise refused("is async, and nothing awaits it")
    if inspect.isgeneratorfunction(inner) and not inspect.isgeneratorfunction(meant):
        raise refused("yields, and what it returns is used")
    needed = [p.name for p in wanted if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    try:
        inspect.signature(function).bind(*needed)
    except TypeError as error:
        raise refused(f"can't be called as it will be ({error})") from None


def _check_constructor(cls: type, base: type, options: type[pydantic.BaseModel]) -> None:
    """Refuse a constructor that can't be called as that of the base is."""
    expected = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
    takes_options = any(p.kind is p.VAR_KEYWORD for p in expected)
    try:
        inspect.signature(cls.__init__).bind(  # type: ignore[misc]
            *(p.name for p in expected if p.kind is p.POSITIONAL_OR_KEYWORD),
            **(dict.fromkeys(options.model_fields) if takes_options else {}),
        )
    except TypeError as error:
        spelt = ", ".join(str(p).partition(":")[0] for p in expected)
        raise ConfigError(
            f"{cls.__name__}.__init__ can't be called as it will be ({error}); def __init__({spelt}) is accepted, and "
            "annotated attributes need none"
        ) from None
