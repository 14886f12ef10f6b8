"""predict: what a finished run has learnt, at the terminal."""

import csv
import io
import json
from pathlib import Path
from typing import Annotated

import typer

from clbench.cli.console import plain, screen
from clbench.cli.options import Json
from clbench.config.errors import ConfigError, one_line

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
