"""The console of the verbs: tables on stdout, progress and messages on stderr."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clbench.config.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from clbench.results.result import Result


def megabytes(n: int) -> str:
    """Return bytes as megabytes."""
    return f"{n / 1e6:,.1f} MB"


def plain(text: str) -> str:
    """Return text that rich prints as it is."""
    from rich.markup import escape

    return escape(text)


def messages(quiet: bool) -> "Console":
    """Return the console for progress and notes, on stderr."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet)


def screen() -> "Console":
    """Return the console for tables, on stdout."""
    from rich.console import Console

    console = Console()
    # A file or a pipe has no width of its own, unless COLUMNS gives it one.
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=max(console.width, 120))


def print_notes(warnings: Sequence[Mapping[str, str]]) -> None:
    """Print what a reader of the numbers should know about how they came about."""
    for warning in warnings:
        screen().print(f"note: {warning['text']}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def print_report(results: "list[Result]", folder: Path, as_json: bool, runs: Path | None = None) -> None:
    """Write the report of some results into a folder, and print its table.

    runs: the folder of the runs, where the report there is to keep its comparisons of other scenarios.
    """
    from clbench.reports import earlier_results, left_out, tables, write_comparisons
    from clbench.reports.comparison import compare

    earlier = [] if runs is None else earlier_results(folder, results, runs)
    replaced = 0 if runs is None else left_out(folder, results)
    write_comparisons(compare([*results, *earlier]), folder)
    parts = compare(results)
    if as_json:
        print(tables.comparison(parts).to_json(orient="records"))
        return
    stdout = screen()
    stdout.print(tables.render(parts))
    others = ", ".join(dict.fromkeys(part.scenario for part in compare(earlier))) if earlier else ""
    beside = f" (beside the earlier comparison of {others})" if others else ""
    if replaced:
        beside += f"; it replaces one with {replaced} other runs, and `clbench report {runs}` shows all"
    stdout.print(f"report: {folder / 'report.html'}{beside}", soft_wrap=True, highlight=False, markup=False)


def print_judged(record: Mapping[str, Any], folder: Path, *, quiet: bool) -> None:
    """Write the tables and figures of judged strategies into a folder, and print them unless quiet."""
    from clbench.reports import write_judged
    from clbench.reports.judged_tables import render_judged

    write_judged(record, folder)
    if not quiet:
        stdout = screen()
        stdout.print(render_judged(record))
        stdout.print(f"written: {folder}", soft_wrap=True, highlight=False, markup=False)


def end(message: str, code: int) -> NoReturn:
    """Say in one line why the command ends, and end it."""
    print(f"clbench: {one_line(message, 1500)}", file=sys.stderr)
    sys.exit(code)
