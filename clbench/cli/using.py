"""predict, export, extend: a finished run is used, and goes on."""

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clbench.cli.console import megabytes, plain, screen
from clbench.cli.options import Force, Json, Quiet, Track, config_options, scenario_options
from clbench.cli.requests import check_tracker
from clbench.config.errors import ConfigError, one_line
from clbench.config.run import INTERNAL, NOT_IDENTITY

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
COLUMNS = ("image", "class", "name", "probability", "task", "output")


def predict_verb(
    run: RunPath,
    images: Annotated[list[str], typer.Argument(help="Files of images, folders of them, .npy or .npz arrays.")],
    task: Annotated[
        int | None, typer.Option(min=0, help="The task of the images, 0-based, whose classes alone compete.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out image files that can't be used.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    as_json: Json = False,
) -> None:
    """Classify images with what a finished run has learnt: for each its class, probability and task."""
    if as_csv and as_json:
        raise ConfigError("--csv and --json exclude each other; give one of them")
    from clbench.running.using import load_model

    model = load_model(run, device=device)
    names, samples = model.read_files(images, skip_unreadable=skip_unreadable)
    found = model.predict(samples, task)
    rows = [
        dict(zip(COLUMNS, (image, c if c >= 0 else None, name, p, t if t >= 0 else None, output), strict=True))
        for image, c, name, p, t, output in zip(
            names,
            found.classes.tolist(),
            found.names,
            found.probabilities.tolist(),
            found.tasks.tolist(),
            found.outputs.tolist(),
            strict=True,
        )
    ]
    if as_json:
        print(json.dumps(rows))
        return
    if as_csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        print(text.getvalue(), end="")
        return
    from rich.table import Table

    table = Table(title=f"{plain(one_line(str(run), 100))}, classifier {model.classifier}")
    for column in ("image", "class", "probability", "task"):
        table.add_column(column, justify="left" if column in ("image", "class") else "right", overflow="fold")
    for row in rows:
        named = (
            row["name"]
            if row["class"] is None or str(row["class"]) == row["name"]
            else f"{row['class']} ({row['name']})"
        )
        shown = "" if row["task"] is None else str(row["task"])
        # A name may hold what moves the cursor of a terminal.
        table.add_row(
            plain(one_line(row["image"], 300)), plain(one_line(named, 200)), f"{row['probability']:.3f}", shown
        )
    screen().print(table)


def export_verb(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="The file (default: model.FORMAT in the run's folder).")] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="safetensors|pt2", help="The network's weights, or a program of torch.export."),
    ] = None,
    task: Annotated[
        int | None,
        typer.Option(min=0, help="pt2: the task of the images, for a strategy that answers for a given one."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write what a finished run has learnt into a file that needs no clbench, with class names and preprocessing.

    A pt2 file takes images as they are, uint8 of the run's size, and returns the scores of all outputs.
    """
    from clbench.running.export import export

    asked: Any = format  # export() refuses what is no format
    file = export(run, out, format=asked, task=task, force=force)
    if as_json:
        print(json.dumps({"file": str(file), "bytes": file.stat().st_size}))
    else:
        print(f"{file}: {megabytes(file.stat().st_size)}")


# The fields that may be others where a run goes on: the options of its scenario, and fields that change no number.
GOING_ON = [name for name in (*scenario_options(), *sorted(NOT_IDENTITY)) if name not in (*INTERNAL, "tuned_by")]


@config_options(*GOING_ON)
def extend_verb(
    fields: dict[str, Any],
    run: RunPath,
    scenario: Annotated[
        str | None, typer.Argument(help="The data that come next: a scenario, an .npz file or a folder of images.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the new run (default: runs/SCENARIO/STRATEGY/SEED-HASH).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished extension.")] = False,
    force: Force = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Continue a finished run with further tasks (--tasks 20) or new data, as one run over all of them; RUN stays."""
    if resume and force:
        raise ConfigError("--resume and --force exclude each other; give one of them")
    check_tracker(track)
    from clbench.running.extend import extend

    result = extend(run, scenario, out=out, resume=resume, force=force, track=track, quiet=quiet or as_json, **fields)
    if as_json:
        print(json.dumps(result.record))
        return
    from clbench.reports.run_tables import render_run

    stdout = screen()
    stdout.print(render_run(result))
    stdout.print(f"run folder: {result.folder}", soft_wrap=True, highlight=False, markup=False)
