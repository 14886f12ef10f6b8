"""The options of the command line, made from RunConfig's fields so that each is declared once."""

import functools
import inspect
import json
import tomllib
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.markup import escape

from clbench.cli.help import FEW, HelpAll
from clbench.config.errors import ConfigError, unknown
from clbench.config.registry import Derived, entry_points, text_of
from clbench.config.run import EXCLUSIVE, IN_FILES, INTERNAL, decided_by, excludes, without_removed
from clbench.config.run import fields as run_fields

# Each of these names begins a panel of the help; the options are in the order of the groups of a run.
PANELS = {
    "setting": "Scenario",
    "seed": "Run",
    "model": "Model",
    "validation": "Data",
    "loss_outputs": "Training",
    "memory_size": "Memory",
    "evaluate": "Evaluation",
    "device": "Engine",
}

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
Params = Annotated[
    list[str] | None,
    typer.Option("-p", metavar="KEY=VALUE", help="A hyper-parameter of the strategy; may be repeated."),
]
ScenarioName = Annotated[
    str | None, typer.Argument(help="A scenario, an .npz file or a folder of images; not with --like.")
]
StrategyNames = Annotated[list[str] | None, typer.Argument(help="Strategies, such as lwf er\\[memory_size=500].")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML or JSON file of options (a run.json too); options given here come first."),
]
Like = Annotated[
    str | None,
    typer.Option(metavar="CLAIM", help="Begin with the protocol of a published claim; options given here come first."),
]
Track = Annotated[
    str | None,
    typer.Option(
        metavar="tensorboard|wandb|mlflow",
        help="Send losses and accuracies there, or to path/to/file.py:NAME, while a run goes on.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Begin again; what a run left in its folder is overwritten.")]


def _scenarios() -> list[Any]:
    """Return the scenarios that come with clbench; they import no torch, which one of another package may.

    Those that are derived from a data set have the options of the others.
    """
    declared = (entry for entry in entry_points("clbench.scenarios") if not isinstance(entry, Derived))
    return [entry.load() for entry in declared if entry.value.startswith("clbench.")]


@functools.cache
def scenario_options() -> dict[str, Any]:
    """Return the options of the scenarios that come with clbench, by name; those of others go into brackets."""
    return {name: field for kind in _scenarios() for name, field in kind._options.model_fields.items()}


# The options that make a scenario, and the model, which may see its images in a size of its own.
DESCRIBED = (*scenario_options(), "validation", "seed", "data_root", "offline", "memory_limit", "model")


def config_options(*fields: str, without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb an option for each field of a run (or those named); it gets what was given as `fields`.

    The options of scenarios are among them: `--tasks 10` is `split-mnist[tasks=10]`.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(verb).parameters.values() if p.name != "fields"]
        panel, added = "", []
        for name, field in {**scenario_options(), **run_fields()}.items():
            panel = PANELS.get(name, panel)
            if name in INTERNAL or name in without or (fields and name not in fields):
                continue
            default = "" if field.default is None else f" (default: {text_of(field.default)})"
            flag = field.annotation is bool
            dashed = name.replace("_", "-")
            option = typer.Option(
                f"--{dashed}/--no-{dashed}" if flag else f"--{dashed}",
                help=escape(f"{field.description}{default}"),
                metavar=None if flag else metavar(field.annotation),
                rich_help_panel=panel,
            )
            kind: Any = Annotated[bool | None, option] if flag else Annotated[str | None, option]
            added.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

        def wrapped(config: Path | None = None, help_all: bool = False, **given: Any) -> None:
            from clbench.running.resolve import parse_fields

            texts = {p.name: value for p in added if (value := given.pop(p.name)) is not None}
            flags = {name: value for name, value in texts.items() if isinstance(value, bool)}
            asked = parse_fields({k: v for k, v in texts.items() if k not in flags}) | flags
            kept = {} if config is None else read_config(config)
            _name_from_file(given, kept)
            verb(**given, fields=over(kept, asked))

        if not fields:
            own.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile))
        if len(own) + len(added) > FEW:
            own.append(inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=HelpAll))
        hint = "" if fields else "\n\nA default holds where the scenario's preset (docs/defaults.md) says nothing else."
        wrapped.__name__, wrapped.__doc__ = verb.__name__, f"{verb.__doc__}{hint}"
        wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + added
        )
        wrapped.__annotations__ = {p.name: p.annotation for p in own + added}
        return wrapped

    return decorate


def _name_from_file(given: dict[str, Any], kept: dict[str, Any]) -> None:
    """Take scenario and strategy out of what a run.json holds, and into the arguments that were left out."""
    named = {name: kept.pop(name) for name in ("scenario", "strategy") if name in kept}
    if given.get("like") is not None:
        return
    for name, value in named.items():
        several = name == "strategy" and "strategies" in given
        argument = "strategies" if several else name
        if argument in given and not given[argument]:
            given[argument] = [value] if several else value


def over(kept: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Return fields with what is asked over them; a field that excludes another displaces it."""
    pairs = {pair for kind in _scenarios() for pair in (*EXCLUSIVE, *kind.exclusive)}
    decided = decided_by((kept | asked).get("budget"))
    kept = {k: v for k, v in kept.items() if k not in decided}
    return {k: v for k, v in kept.items() if not any(excludes(k, key, pairs) for key in asked)} | asked


def seconds(text: str) -> float:
    """Read a time such as 90s, 10m or 2h; raises ConfigError."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        number = float(text[:-1])
    except ValueError:
        number = -1.0
    if unit is None or not 0 < number < 1e6:
        raise ConfigError(f"--budget {text}: a time such as 90s, 10m or 2h is accepted")
    return number * unit


def pairs(texts: list[str] | None) -> dict[str, str]:
    """Read `key=value` texts; raises ConfigError."""
    found: dict[str, str] = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ConfigError(f"-p {text!r}: key=value is accepted")
        if key.strip() in found:
            raise ConfigError(f"-p {key.strip()} is given twice; once is accepted")
        found[key.strip()] = value.strip()
    return found


def seeds(text: str) -> int | list[int]:
    """Read a number of seeds, or the seeds; raises ConfigError."""
    try:
        numbers = [int(part) for part in text.split(",")] if text.isascii() and "_" not in text else [-1]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise ConfigError(f"--seeds {text}: a number of seeds such as 5, or the seeds such as 0,1,2, is accepted")
    return numbers if "," in text else numbers[0]


def metavar(annotation: Any) -> str:
    """Return what an option's value looks like, from its type."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return metavar(parts[0])
    if origin is Literal:
        return "|".join(map(str, parts))
    if origin is list:
        return "{0},{0},...".format(metavar(parts[0]))
    if parts:
        return "|".join(dict.fromkeys(metavar(part) for part in parts if part is not types.NoneType))
    return {int: "N", float: "X"}.get(annotation, "TEXT")


def read_config(path: Path) -> dict[str, Any]:
    """Read options from a TOML or JSON file, or from a run.json, which names scenario and strategy too.

    Raises ConfigError naming what is wrong in it.
    """
    from clbench.support.files import read_small

    try:
        text = read_small(path)
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}; a TOML or JSON file is accepted") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: {error}; a TOML or JSON file is accepted") from None
    if isinstance(found, dict) and isinstance(found.get("config"), dict):
        found = without_removed(found["config"])
        named = {k: found[k] for k in ("scenario", "strategy") if isinstance(found.get(k), str)}
        return named | {k: v for k, v in found.items() if k not in INTERNAL or k in IN_FILES}
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path}: a table of options is accepted")
    if not isinstance(found.get("strategy_options", {}), dict):
        raise ConfigError(f"--config {path}: strategy_options={found['strategy_options']!r}; a table is accepted")
    for name in found:
        if name in INTERNAL - IN_FILES:
            known = [
                known for known in (*scenario_options(), *run_fields()) if known not in INTERNAL or known in IN_FILES
            ]
            raise unknown(f"option in {path}", name, known)
    return found
