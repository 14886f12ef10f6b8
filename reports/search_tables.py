"""A search for hyper-parameters on the terminal: its trials, their cost, and the choice."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text


def render_search(record: Mapping[str, Any]) -> Group:
    """Return the table of a search, as tune.json holds it, with the chosen trials in bold."""
    continual = record["protocol"] == "continual"
    best = record["best"] if continual else [record["best"]]
    chosen = {trial["trial"] for trial in best}
    title = f"{record['strategy']} on {record['scenario']}, {record['setting']}-incremental: {record['protocol']}"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title=Text(title), title_justify="left")
    of = ("task", "phase") if continual else ()
    for column in ("trial", *of, *record["space"], "validation accuracy", "seconds"):
        table.add_column(column, justify="right")
    for trial in record["trials"]:
        cells = [str(trial["trial"]), *(str(trial[name]) for name in of)]
        cells += [_text(trial["values"].get(name, "")) for name in record["space"]]
        score = trial["score"]
        cells += ["failed" if score is None else f"{100 * score:.1f}", f"{trial['seconds']:.1f}"]
        table.add_row(*map(Text, cells), style="bold" if trial["trial"] in chosen else "")
    runs = f"{len(record['trials'])} trials in {record['runs']} runs"
    cost = f"{runs}, {record['seconds']:.0f} s of training and evaluation, {record['images']:,} training images"
    return Group(table, Text(f"\nchosen by {record['tuned_by']}"), Text(cost))


def trial_line(trial: Mapping[str, Any]) -> str:
    """Return a trial in one line."""
    values = ", ".join(f"{name}={_text(value)}" for name, value in trial["values"].items())
    where = f", task {trial['task']} ({trial['phase']})" if "task" in trial else ""
    found = trial["error"] if trial["score"] is None else f"{100 * trial['score']:.1f} % of the validation images"
    of = f"{trial['of']}: " if "of" in trial else ""
    return f"{of}trial {trial['trial']}{where}: {values}: {found}"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
