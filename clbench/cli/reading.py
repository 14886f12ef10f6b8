"""report, watch, describe, check: the verbs that train nothing, or nothing that is kept."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from clbench.cli.console import end, plain, print_judged, print_report, screen
from clbench.cli.options import (
    DESCRIBED,
    Json,
    config_options,
)
from clbench.config.errors import ConfigError, RunError, one_line


def report_verb(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    figure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Write this figure alone, such as average_accuracy or path/to/file.py:NAME; repeatable.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.py:NAME", help="Add a metric of your own to every table; repeatable."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--format", metavar="pdf|svg|png", help="Format of --figure (default: pdf).")
    ] = None,
    style: Annotated[
        str | None, typer.Option(metavar="paper|talk|screen", help="Size and letters of --figure (default: paper).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make tables and plots from finished runs, without torch; those that are not finished are named."""
    from clbench.reports.judged_tables import load_judged
    from clbench.results.result import load_all

    if not figure and (kind or style):
        raise ConfigError("--format and --style are for --figure NAME; give it too")
    if figure and as_json:
        raise ConfigError("--json prints the table, which --figure leaves out; give one of them")

    for name in metric or []:
        from clbench.results.metrics import load_metric

        load_metric(name)
    judged = {} if figure else load_judged(folders)
    runs_too = not judged or any(next(folder.rglob("run.json"), None) for folder in folders)
    results = load_all(folders) if runs_too else []
    if runs_too and not results:
        raise ConfigError(
            f"{', '.join(map(str, folders))}: no finished run there; folders with a run.json are accepted"
        )
    if figure:
        from clbench.reports import write_figures

        paths = write_figures(results, out, figure, kind=kind or "pdf", style=style or "paper")
        print(*paths, sep="\n")
        return
    if results:
        print_report(results, out, as_json)
    elif as_json:
        print(json.dumps(list(judged.values())))
    for file, record in judged.items():
        print_judged(record, out / "judged" / file.parent.name, quiet=as_json)


def watch_verb(
    folder: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("runs"),
    once: Annotated[bool, typer.Option("--once", help="Print the runs as they are now, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Show runs under way, here or on other machines that see the folder; Ctrl-C ends the looking, not the runs."""
    from dataclasses import asdict

    from clbench.many.watching import Watch, counts, follow, render

    watch = Watch(folder)
    runs = watch.look()
    if as_json:
        print(json.dumps({**counts(runs), "runs": [_plain_row(asdict(run)) for run in runs]}))
        return
    stdout = screen()
    if once or not stdout.is_terminal:
        stdout.print(render(runs, folder))
        return
    try:
        follow(watch, stdout)
    except KeyboardInterrupt:
        end("no longer watching; the runs go on", 130)


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a run as JSON can hold it."""
    return row | {"place": row["place"] if math.isfinite(row["place"]) else None}


@config_options(*DESCRIBED)
def describe_verb(
    scenario: Annotated[str, typer.Argument(help="A scenario, an .npz file or a folder of images.")],
    fields: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Show the tasks of a scenario: original classes, head outputs, numbers of images."""
    from clbench.running.resolve import prepare, resolve

    config, made = prepare(resolve(scenario, "naive", fields))
    rows, seen = made.describe(), {}
    if "model" in fields:
        from clbench.models import build_model
        from clbench.models.pretrained import preprocessing_of

        words = preprocessing_of(build_model(config.model.name, made.image_shape, 0, config.code))
        seen = {"model": config.model.name, "preprocessing": words or "none"}
    if as_json:
        print(json.dumps({"scenario": made.name, "setting": made.setting, "tasks": rows} | seen))
        return
    from rich.table import Table

    title = plain(one_line(made.name, 200))
    kind = "images" if made.of_images else "samples"
    table = Table(title=f"{title}, {made.setting}-incremental, {kind} {'x'.join(map(str, made.image_shape))}")
    for column in ("task", "original classes", "head outputs", "train", "validation", "test"):
        table.add_column(column, justify="left" if "s" in column[-1:] else "right")
    for row in rows:
        # A name in a file may hold what moves the cursor of a terminal.
        named = [
            c if str(c) == n else f"{c} ({one_line(n, 200)})" for c, n in zip(row["classes"], row["names"], strict=True)
        ]
        outputs = f"{row['outputs'][0]}-{row['outputs'][-1]}" if len(row["outputs"]) > 1 else str(row["outputs"][0])
        others = f" ({n} of other tasks)" if (n := row["n_train_of_other_tasks"]) else ""
        counts = (f"{row['n_train']}{others}", row["n_validation"], row["n_test"])
        table.add_row(str(row["task"]), plain(", ".join(map(str, named))), outputs, *map(str, counts))
    screen().print(table)
    if seen:
        print(f"preprocessing of {seen['model']}: {seen['preprocessing']}")


def check_verb(
    names: Annotated[list[str], typer.Argument(help="Strategies or networks by name, or path/to/file.py:Class.")],
    as_json: Json = False,
) -> None:
    """Check a strategy or a network, built-in or your own, against the conformance kit."""
    from dataclasses import asdict

    from clbench.tools.conformance import check_named

    found = {name: check_named(name) for name in names}
    if as_json:
        print(json.dumps({name: [asdict(outcome) for outcome in outcomes] for name, outcomes in found.items()}))
    else:
        for name, outcomes in found.items():
            for outcome in outcomes:
                reason = f": {outcome.reason}" if outcome.reason else ""
                print(f"{name}: {outcome.check.replace('_', ' ')}: {outcome.status}{reason}")
            number = Counter(outcome.status for outcome in outcomes)
            told = [f"{number[status]} {status}" for status in ("passed", "failed", "not applicable") if number[status]]
            print(f"{name}: {len(outcomes)} checks: {', '.join(told)}")
    failed = [f"{name}: {o.check}" for name, outcomes in found.items() for o in outcomes if o.status == "failed"]
    if failed:
        raise RunError(f"{len(failed)} checks failed: {', '.join(failed)}")
