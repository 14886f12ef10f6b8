"""list: what is installed."""

import inspect
import json
import re
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clbench.cli.console import screen
from clbench.cli.options import (
    Json,
)
from clbench.config.errors import ConfigError, unknown
from clbench.config.registry import Derived, entry_points, text_of

if TYPE_CHECKING:
    from clbench.support.fitted import Column

# The beginning of a line about a parameter, or several of one meaning, in a docstring.
PARAMETER = r"[a-z_]\w*(, [a-z_]\w*)*: "
# The longest name of a method that a list shows.
MOST = 48


KINDS = ("strategies", "scenarios", "models", "claims")


def list_verb(
    what: Annotated[
        str | None,
        typer.Argument(
            help="strategies, scenarios, models or claims (default: all but claims); or a name, such as lwf, for "
            "everything about it."
        ),
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only strategies of this family.")] = None,
    setting: Annotated[
        str | None, typer.Option(help="Only strategies for this setting: class, task or domain.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what is installed, a line for each; clbench list NAME tells everything about one."""
    if (family is not None or setting is not None) and what != "strategies":
        raise ConfigError("--family and --setting are for strategies; clbench list strategies is accepted")
    if what is not None and what not in KINDS:
        _tell_of(what, as_json)
        return
    found = {kind: LISTINGS[kind]() for kind in KINDS if what == kind or (what is None and kind != "claims")}
    if family is not None:
        families = list(dict.fromkeys(row["family"] for row in found["strategies"]))
        if family not in families:
            raise unknown("family", family, families)
        found["strategies"] = [row for row in found["strategies"] if row["family"] == family]
    if setting is not None:
        if setting not in ("class", "task", "domain"):
            raise unknown("setting", setting, ("class", "task", "domain"))
        found["strategies"] = [row for row in found["strategies"] if setting in row["settings"]]
    if as_json:
        print(json.dumps(found))
        return
    from clbench.support.fitted import Fitted

    for kind, rows in found.items():
        for title, part in _parts(kind, rows):
            screen().print(Fitted(_columns(kind, part), title=title))
        screen().print(NOTES[kind] + "\n", markup=False, highlight=False)


NOTES = {
    "strategies": "clbench list NAME: equation, options and source of one. Strategies too: avalanche:NAME, Avalanche's "
    "own, such as avalanche:LwF[alpha=1,temperature=2], and path/to/file.py:Class, one of yours",
    "scenarios": "clbench list NAME: the options of one; an .npz file or a folder of images is a scenario too, and "
    "so are several: stream[split-mnist,photos]",
    "models": "clbench list NAME: the options of one; path/to/net.py:Net is a network of your own",
    "claims": "clbench list CLAIM: the protocol of one; clbench reproduce CLAIM runs it",
}


def _parts(kind: str, rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the tables of a list by title; scenarios that differ in their data alone have one of their own."""
    if kind != "scenarios":
        return [(kind, rows)]
    derived = {entry.name for entry in entry_points("clbench.scenarios") if isinstance(entry, Derived)}
    alike = [row for row in rows if row["name"] in derived]
    return [
        (kind, [row for row in rows if row["name"] not in derived]),
        ("scenarios of further data sets, each with the options of split-mnist", alike),
    ]


def _columns(kind: str, rows: list[dict[str, Any]]) -> "list[Column]":
    """Return the columns of a list, of which the names stay longest."""
    from clbench.support.fitted import Column

    def column(title: str, of: Callable[[dict[str, Any]], Any], keep: int, **look: Any) -> "Column":
        return Column(title, [str(of(row)) for row in rows], keep, **look)

    if kind == "claims":
        return [
            column("claim", lambda row: row["claim"], 9),
            column("published", lambda row: row["published"], 8, align="right"),
            column("within", lambda row: row["tolerance"], 6, align="right"),
            column("tier", lambda row: row["tier"], 7),
            column("cost", lambda row: row["cost"], 5),
            column("metric", lambda row: row["metric"].replace("_", " "), 4, wraps=True),
        ]
    name = column("name", lambda row: row["name"], 9)
    if kind != "strategies":
        return [name, column("what it is", lambda row: row["summary"], 8, wraps=True)]
    return [
        name,
        column("method", lambda row: _short(row["summary"]), 8),
        column("family", lambda row: row["family"], 3),
        column("settings", lambda row: "all" if len(row["settings"]) == 3 else ", ".join(row["settings"]), 4),
        column("memory", lambda row: row["memory"], 2),
        column("extra kB", lambda row: _kilobytes(row["extra_bytes"]), 1, align="right"),
    ]


def _short(summary: str) -> str:
    """Return the name of a method, which its summary begins with."""
    name = re.split(r"(?<! al)[.:;](?: |$)", summary)[0]
    return name if len(name) <= MOST else name[:MOST].rpartition(",")[0] or name


def _kilobytes(n: int | None) -> str:
    return "" if n is None else f"{n / 1000:,.1f}"


def _tell_of(name: str, as_json: bool) -> None:
    """Print everything about a strategy, scenario, model or claim; raises ConfigError for an unknown name."""
    from clbench.config.registry import entry_point_names
    from clbench.support.fitted import Column, Fitted

    names = {kind: entry_point_names(f"clbench.{kind}") for kind in KINDS[:3]}
    kind = next((kind for kind, known in names.items() if name in known), "claims")
    row = next((row for row in LISTINGS[kind]() if row.get("name", row.get("claim")) == name), None)
    if row is None:
        raise unknown("list", name, [*KINDS, *(one for known in names.values() for one in known)])
    if as_json:
        print(json.dumps(row))
        return
    told = {key: value for key, value in row.items() if key not in ("name", "claim", "summary", "text", "options")}
    for key in ("extra_bytes", "extra_bytes_per_task"):
        if key in told:
            told[key.replace("bytes", "kB")] = _kilobytes(told.pop(key))
    console = screen()
    console.print(f"{name} ({kind.removesuffix('s').replace('strategie', 'strategy')})", style="bold", markup=False)
    console.print(_wrapped(row.get("text", ""), console.width) + "\n", markup=False, highlight=False)
    cells = [", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in told.values()]
    titles = [key.replace("_", " ") for key in told]
    options = row.get("options", [])
    if options:
        titles, cells = [*titles, "options"], [*cells, ", ".join(options)]
    shown = [pair for pair in zip(titles, cells, strict=True) if pair[1]]
    heads = Column("", [title for title, _ in shown], 1)
    console.print(Fitted([heads, Column("", [cell for _, cell in shown], wraps=True)], head=False))
    if kind == "strategies":
        for row in _list_claims():
            if row["strategy"] == name:
                console.print(f"measured in {row['claim']}", markup=False, highlight=False)


def _wrapped(text: str, width: int) -> str:
    """Return a docstring in lines of at most that width, parameters with what follows indented.

    Lines of the source that are nearly as long as its longest one are taken for broken where there was no room.
    """
    lines: list[str] = []
    full = 0.85 * max(map(len, text.splitlines()), default=0)
    before = 0
    for line in text.splitlines():
        if line.strip() and before > full and not re.match(PARAMETER, line):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.rstrip())
        before = len(line)
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent="    " if re.match(PARAMETER, line) else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    )


def _list_strategies() -> list[dict[str, Any]]:
    import csv
    from importlib import resources

    from clbench.config.registry import entry_point_names
    from clbench.running.resolve import strategy_class

    measured = resources.files("clbench.strategies").joinpath("storage.csv").read_text("utf-8").splitlines()
    storage = {row["strategy"]: row for row in csv.DictReader(measured)}
    rows = []
    for name in entry_point_names("clbench.strategies"):
        cls = strategy_class(name)
        text = inspect.getdoc(cls) or ""
        # Nothing was measured of a strategy from elsewhere.
        kept = storage.get(name)
        rows.append(
            {
                "name": name,
                "summary": text.partition("\n")[0],
                "family": cls.traits.family,
                "settings": list(cls.traits.settings),
                "memory": {"none": "no", "joined": "optional", "replayed": "yes"}[cls.traits.memory]
                if not cls.traits.needs_memory
                else "yes",
                "data": cls.traits.data_access,
                "extra_bytes": None if kept is None else int(kept["extra_bytes"]),
                "extra_bytes_per_task": None if kept is None else int(kept["extra_bytes_per_task"]),
                "options": [f"{k}={text_of(v.default)}" for k, v in cls._options.model_fields.items()],
                "paper": cls.traits.paper,
                "text": text,
            }
        )
    return rows


def _list_scenarios() -> list[dict[str, Any]]:
    from clbench.config.registry import entry_point_names
    from clbench.running.resolve import scenario_class

    names = entry_point_names("clbench.scenarios")
    rows = []
    for name in names:
        kind = scenario_class(name)
        text = inspect.getdoc(kind) or ""
        values = {k: kind.preset.get(k, v.default) for k, v in kind._options.model_fields.items()}
        options = [k if v is None else f"{k}={text_of(v)}" for k, v in values.items()]
        rows.append({"name": name, "options": options, "summary": text.partition("\n")[0], "text": text})
    return rows


def _list_models() -> list[dict[str, Any]]:
    from clbench.config.classes import load_class
    from clbench.config.registry import entry_point_names
    from clbench.models import as_network, model_options

    rows = []
    for name in entry_point_names("clbench.models"):
        model = as_network(load_class("model", name), f"model {name!r} is")
        text = inspect.getdoc(model) or ""
        rows.append(
            {
                "name": name,
                "options": [
                    option if default is ... else f"{option}={text_of(default)}"
                    for option, (_, default) in model_options(model).items()
                ],
                "summary": text.partition("\n")[0],
                "text": text,
            }
        )
    return rows


def _list_claims() -> list[dict[str, Any]]:
    from clbench.reports.published import chosen

    return [
        {
            "claim": c.id,
            "strategy": c.name,
            "tier": c.tier,
            "metric": c.metric,
            "published": c.value,
            "error": f"{c.error:g} {c.error_kind}" if c.error else "",
            "tolerance": c.tolerance,
            "seeds": c.seeds,
            "cost": c.cost,
            "citation": c.citation,
            "source": c.source,
            "note": c.note,
            "tried": c.tried,
        }
        for c in chosen([])
    ]


LISTINGS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "strategies": _list_strategies,
    "scenarios": _list_scenarios,
    "models": _list_models,
    "claims": _list_claims,
}
