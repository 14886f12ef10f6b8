"""The console of the verbs: tables on stdout, progress and messages on stderr."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clbench.config.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from clbench.many.planned import Outcome, PlannedRun
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
    # A file or a pipe has no width of its own; tables must not be cut to 80 columns there.
    return console if console.is_terminal else Console(width=max(console.width, 120))


class RunProgress:
    """Progress on stderr: what became of the runs, and task, epoch, loss, images/s of one in this process.

    Off a terminal there is a line for each run that ends, and no bar.
    """

    def __init__(self, console: "Console", planned: "Sequence[PlannedRun]" = ()) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from clbench.cli.progress import RunCount, TimeLeft

        self.console = console
        self.count = RunCount(planned)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self.runs = self.bars.add_task("runs", total=len(planned), count=self.count) if len(planned) > 1 else None

    def __enter__(self) -> "RunProgress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def observer(self) -> Any:
        """Return what follows a run in this process; None off a terminal."""
        from clbench.cli.progress import BarObserver

        return None if self.bars.disable else BarObserver(self.bars)

    def finished(self, outcome: "Outcome") -> None:
        """Say what became of a run."""
        self.count.finished(outcome)
        if self.runs is not None:
            self.bars.advance(self.runs)
        if outcome.source == "before":
            return
        config, result = outcome.planned.config, outcome.result
        average = None if result is None else result.metrics.get("average_accuracy")
        text = outcome.error if result is None else "no accuracy" if average is None else f"{100 * average:.1f} %"
        where = ", by another process" if outcome.source == "elsewhere" else ""
        self.console.print(
            f"{config.label}, seed {config.seed}: {text}{where} ({self.count})",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def print_notes(warnings: Sequence[Mapping[str, str]]) -> None:
    """Print what a reader of the numbers should know about how they came about."""
    for warning in warnings:
        screen().print(f"note: {warning['text']}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def print_report(results: "list[Result]", folder: Path, as_json: bool, runs: Path | None = None) -> None:
    """Write the report of some results into a folder, and print its table.

    runs: the folder of the runs, where the report there is to keep its comparisons of other scenarios.
    """
    from clbench.reports import earlier_results, tables, write_comparisons
    from clbench.reports.comparison import compare

    earlier = [] if runs is None else earlier_results(folder, results, runs)
    write_comparisons(compare([*results, *earlier]), folder)
    parts = compare(results)
    if as_json:
        print(tables.comparison(parts).to_json(orient="records"))
        return
    stdout = screen()
    stdout.print(tables.render(parts))
    others = ", ".join(dict.fromkeys(part.scenario for part in compare(earlier))) if earlier else ""
    beside = f" (beside the earlier comparison of {others})" if others else ""
    stdout.print(f"report: {folder / 'report.html'}{beside}", soft_wrap=True, highlight=False, markup=False)


def end(message: str, code: int) -> NoReturn:
    """Say in one line why the command ends, and end it."""
    print(f"clbench: {one_line(message, 1500)}", file=sys.stderr)
    sys.exit(code)
