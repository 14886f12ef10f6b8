"""One run for the terminal: its accuracy matrices, metrics and warnings."""

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clbench.reports.comparison import MATRIX_NAMES, matrix_label
from clbench.results.result import Floats, Result

# More columns than this do not fit on a terminal; the tasks' accuracies are then in accuracy.csv only.
WIDEST = 12


def render_run(result: Result) -> Group:
    """Return a run's accuracies after each task (percent, both matrices) and its metrics."""
    headline = matrix_label(result.recorded.headline.matrix, result.setting)
    title = f"{result.strategy} on {result.scenario}, {result.setting}-incremental, seed {result.seed}{_where(result)}"
    parts: list[Table | Text] = [Text(title, style="bold")]
    for name in MATRIX_NAMES:
        label = matrix_label(name, result.setting)
        for classifier, matrices in result.classifiers.items():
            matrix = matrices[name]
            if matrix is not None:
                several = len(result.classifiers) > 1
                caption = f"{label}, {classifier}" if several else label
                parts.append(Text(f"\n{caption}: accuracy (%) after task (row) on task (column)"))
                parts.append(_matrix_table(matrix))
    parts.append(Text(f"\nmetrics of the headline matrix ({headline}), percent"))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for metric, value in result.metrics.items():
        if value is not None:
            table.add_row(metric.replace("_", " "), f"{100 * value:.2f}")
    parts.append(table)
    last = result.record["tasks"][-1] if result.record["tasks"] else {}
    counts = list(last.get("exemplars_per_class", {}).values())
    if counts:
        each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        parts.append(Text(f"\nexemplars after the last task: {last['n_exemplars']}, {each} of a class"))
    if result.idle_share:
        parts.append(Text(f"waiting for images on disk: {100 * result.idle_share:.1f}% of the training time"))
    if how := result.config.get("tuned_by"):
        parts.append(Text(f"hyper-parameters chosen by {how}"))
    parts += [Text(f"note: {text}", style="yellow") for text in result.warnings]
    return Group(*parts)


def _where(result: Result) -> str:
    """Say with how many threads a run was done, on which the last bits of its numbers depend."""
    threads = result.config.get("threads")
    return "" if threads is None else f", {threads} thread{'' if threads == 1 else 's'}"


def _matrix_table(matrix: Floats) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    n = len(matrix)
    table.add_column("after", justify="right")
    columns = range(n) if n <= WIDEST else ()
    for task in columns:
        table.add_column(str(task), justify="right")
    table.add_column("mean of seen", justify="right")
    for after, row in enumerate(matrix):
        cells = ["" if np.isnan(row[task]) else f"{100 * row[task]:.1f}" for task in columns]
        seen = row[: after + 1]
        table.add_row(str(after), *cells, "" if np.isnan(seen).all() else f"{100 * np.nanmean(seen):.2f}")
    return table
