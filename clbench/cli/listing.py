"""list: what is installed."""

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from clbench.cli.console import plain, screen
from clbench.cli.options import (
    Json,
)
from clbench.config.errors import ConfigError, unknown
from clbench.config.registry import text_of


def list_verb(
    what: Annotated[
        str | None, typer.Argument(help="strategies, scenarios, models or claims; all but claims by default.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only strategies of this family.")] = None,
    setting: Annotated[
        str | None, typer.Option(help="Only strategies for this setting: class, task or domain.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what is installed: strategies, scenarios, models; and published claims."""
    kinds = ("strategies", "scenarios", "models", "claims")
    if what is not None and what not in kinds:
        raise unknown("list", what, kinds)
    if (family is not None or setting is not None) and what != "strategies":
        raise ConfigError("--family and --setting are for strategies; clbench list strategies is accepted")
    found = {kind: LISTINGS[kind]() for kind in kinds if what == kind or (what is None and kind != "claims")}
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
    from rich.table import Table

    for kind, rows in found.items():
        table = Table(title=kind)
        for column in rows[0] if rows else ():
            table.add_column(
                column.replace("_bytes", " kB").replace("_", " "), overflow="fold", no_wrap=column == "name"
            )
        for row in rows:
            table.add_row(*(plain(_listed(name, value)) for name, value in row.items()))
        screen().print(table)
        if kind == "strategies":
            screen().print(
                "extra kB: kept beside the network after 5 tasks of split-mnist-5k (mlp:400-400, 200 exemplars); "
                "per task: what each further task adds; both measured\n"
                "avalanche:NAME is Avalanche's own strategy, such as avalanche:LwF\\[alpha=1,temperature=2]",
                highlight=False,
            )
        if kind == "models":
            screen().print("path/to/net.py:Net is a network of your own, with options in brackets too", highlight=False)


def _listed(name: str, value: Any) -> str:
    if name.startswith("extra_bytes"):
        return "" if value is None else f"{value / 1000:,.1f}"
    return ", ".join(value) if isinstance(value, list) else str(value)


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
        # Nothing was measured of a strategy from elsewhere.
        kept = storage.get(name)
        rows.append(
            {
                "name": name,
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
        summary = (inspect.getdoc(kind) or "").split("\n")[0]
        values = {k: kind.preset.get(k, v.default) for k, v in kind._options.model_fields.items()}
        options = [k if v is None else f"{k}={text_of(v)}" for k, v in values.items()]
        rows.append({"name": name, "options": options, "summary": summary})
    return rows


def _list_models() -> list[dict[str, Any]]:
    from clbench.config.classes import load_class
    from clbench.config.registry import entry_point_names
    from clbench.models import as_network, model_options

    rows = []
    for name in entry_point_names("clbench.models"):
        model = as_network(load_class("model", name), f"model {name!r} is")
        rows.append(
            {
                "name": name,
                "options": [
                    option if default is ... else f"{option}={text_of(default)}"
                    for option, (_, default) in model_options(model).items()
                ],
                "summary": (inspect.getdoc(model) or "").split("\n")[0],
            }
        )
    return rows


def _list_claims() -> list[dict[str, Any]]:
    from clbench.reports.published import chosen

    return [
        {
            "claim": c.id,
            "tier": c.tier,
            "metric": c.metric,
            "published": c.value,
            "error": f"{c.error:g} {c.error_kind}" if c.error else "",
            "tolerance": c.tolerance,
            "seeds": c.seeds,
            "cost": c.cost,
            "citation": c.citation,
        }
        for c in chosen([])
    ]


LISTINGS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "strategies": _list_strategies,
    "scenarios": _list_scenarios,
    "models": _list_models,
    "claims": _list_claims,
}
