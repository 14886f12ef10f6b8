"""The panels of the HTML page, one a strategy: matrices, confusion, evaluations within tasks, training."""

import math
from collections.abc import Sequence

import numpy as np

from clbench.reports import svg
from clbench.reports.cells import Cell, Column, Figure, Table, mean_over_runs, named, or_dash, spread_cell
from clbench.reports.svg import Line, Style
from clbench.reports.tables import Comparison, Row
from clbench.results.metrics import DEFINITIONS
from clbench.results.record import EvaluationRecord
from clbench.results.result import Floats, Result
from clbench.results.statistics import spread
from clbench.support.text import printable

# Cells that the matrices of a section, and its confusion matrices, may have in all: beyond, the page gets too big.
MOST_CELLS = 40_000
# Classes up to which a confusion matrix shows each; beyond, it shows tasks.
MOST_CLASSES = 20
# Points of a curve of the training, or of evaluations within tasks.
MOST_POINTS = 80
SHADES = (
    *("#00224e", "#002b62", "#083370", "#243c6e", "#35456c", "#434e6c", "#4f576c", "#5b606e", "#666970", "#727274"),
    *("#7d7c78", "#888578", "#948e77", "#a19975", "#aea371", "#bcae6c", "#c8b866", "#d6c35d", "#e5cf52", "#f3db42"),
    "#fee838",
)
"""The colours of a heat map from 0 to 100 percent: cividis (Nunez et al. 2018, doi:10.1371/journal.pone.0199239)."""
# The first of SHADES on which black reads better than white.
BLACK_FROM = 11


def matrices(part: Comparison, looks: Sequence[Style], omitted: list[str]) -> list[Figure]:
    """Draw the accuracy on each task, curves and matrix; add to `omitted` what there is no room for."""
    n_tasks = len(part.task_sizes)
    figures = []
    x, y = svg.steps_axis("after task", n_tasks), svg.percent_axis("accuracy (%)")
    shown = part.rows[: max(1, MOST_CELLS // n_tasks**2)]
    if len(shown) < len(part.rows):
        omitted.append(f"The matrices of {len(part.rows) - len(shown)} strategies are left to matrices.csv.")
    for i, (row, look) in enumerate(zip(shown, looks, strict=False)):
        means = 100 * mean_over_runs(row.matrices)
        series = [
            Line(
                i,
                f"task {task}",
                Style(f"t{round(7 * task / max(n_tasks - 1, 1))}", ""),
                [(after, means[after, task]) for after in range(task, n_tasks)],
            )
            for task in range(n_tasks)
        ]
        title = f"Accuracy on each task, {row.label}"
        chart = svg.lines(series, x, y, title=title, size=svg.SMALL)
        columns = list(map(str, range(n_tasks)))
        heat_map = _heat_map(means, [f"after {k}" for k in columns], columns)
        figures.append(Figure(row.label, chart, table=heat_map, row=i, style=look))
    return figures


def confusions(part: Comparison, looks: Sequence[Style], omitted: list[str]) -> list[Figure]:
    """Draw the confusion matrix of the final model; add to `omitted` what there is no room for."""
    figures = []
    cells = 0
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        if not row.is_headline:
            continue
        found = _confusion(part, row)
        if found is None:
            continue
        counts, names, about = found
        cells += counts.size
        if cells > MOST_CELLS:
            omitted.append(f"The confusion matrix of {row.label} and those below it are left to run.json.")
            break
        total = counts.sum(axis=1, keepdims=True)
        share = np.divide(100.0 * counts, total, out=np.full(counts.shape, math.nan), where=total > 0)
        figures.append(Figure(row.label, caption=about, table=_heat_map(share, names, names), row=i, style=look))
    return figures


def _confusion(part: Comparison, row: Row) -> tuple[Floats, list[str], str] | None:
    """Add up the confusion matrices of a row's runs, by class or, where there are many, by task."""
    known = [(run, counts) for run in row.runs if (counts := run.confusion) is not None and len(counts)]
    if not known:
        return None
    size = len(known[0][1])
    if any(len(counts) != size for _, counts in known):
        return None
    if part.setting == "domain":
        names = [str(k) for k in range(size)]
        maps = [list(range(size))] * len(known)
        about = "by head output, which all tasks share"
    elif size <= MOST_CLASSES:
        first = known[0][0]
        of_class = {c: k for k, c in enumerate(c for classes in first.task_classes for c in classes)}
        names = [printable(first.class_names[c]) for c in of_class]
        maps = [[of_class.get(c, -1) for c in _class_of_output(run, size)] for run, _ in known]
        about = "by class"
    else:
        names = [f"task {k}" for k in range(len(part.task_sizes))]
        maps = [_task_of_output(run, size) for run, _ in known]
        about = "by the task of the class"
    n = len(names)
    total = np.zeros((n, n))
    for (_, counts), target in zip(known, maps, strict=True):
        if len(target) != size or min(target) < 0 or max(target) >= n:
            return None
        np.add.at(total, (np.array(target)[:, None], np.array(target)[None, :]), counts)
    return total, names, f"{about}; {len(known)} runs added up" if len(known) > 1 else about


def _class_of_output(run: Result, size: int) -> list[int]:
    found = [-1] * size
    for classes, outputs in zip(run.task_classes, run.task_outputs, strict=True):
        for original, output in zip(classes, outputs, strict=False):
            if output < size:
                found[output] = original
    return found


def _task_of_output(run: Result, size: int) -> list[int]:
    found = [-1] * size
    for task, outputs in enumerate(run.task_outputs):
        for output in outputs:
            if output < size:
                found[output] = task
    return found


def within_tasks(part: Comparison, looks: Sequence[Style]) -> tuple[list[Figure], Table | None]:
    """Draw the accuracies at every evaluation, those within tasks too, and how deep they fall there."""
    figures, rows = [], []
    n_tasks = len(part.task_sizes)
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        if not row.is_headline or not any(run.evaluations for run in row.runs):
            continue
        curves = [_course(run) for run in row.runs]
        steps = [at for at, _ in curves[0]]
        together = all([at for at, _ in curve] == steps for curve in curves)
        used = curves if together else curves[:1]
        means = 100 * mean_over_runs(np.array([[values for _, values in curve] for curve in used]))
        kept = _thin(np.array([np.nanmean(values) if not np.isnan(values).all() else math.nan for values in means]))
        starts = _task_starts(row.runs[0])
        series = [
            Line(
                i,
                f"task {task}",
                Style(f"t{round(7 * task / max(n_tasks - 1, 1))}", ""),
                [(steps[k], means[k, task]) for k in kept if steps[k] > starts[task]],
            )
            for task in range(n_tasks)
        ]
        x = svg.axis("optimizer step", [0.0, steps[-1]], zero=True, margin=0.02)
        title = f"Accuracy within tasks, {row.label}"
        chart = svg.lines(
            series,
            x,
            svg.percent_axis("accuracy (%)"),
            title=title,
            size=svg.SMALL,
            boundaries=starts[1:],
        )
        cells = [(-1, [Cell(str(steps[k])), *(Cell(or_dash(means[k, t] / 100)) for t in range(n_tasks))]) for k in kept]
        columns = [Column("step", text=True), *(Column(f"task {t}") for t in range(n_tasks))]
        caption = (
            f"mean of {len(used)} runs" if together else f"seed {row.runs[0].seed} alone: the others' steps differ"
        )
        if len(kept) < len(steps):
            caption += f"; of {len(steps)} evaluations the lowest of every {math.ceil(len(steps) / MOST_POINTS)}"
        figures.append(Figure(row.label, chart, caption, Table(columns, cells), i, look))
        falls = [_falls(run) for run in row.runs]
        values = [row.spread("min_accuracy"), row.spread("worst_case_accuracy")]
        values += [spread(fall for fall, _ in falls), spread(regained for _, regained in falls)]
        rows.append((i, [named(row, look), *(spread_cell(v) for v in values)]))
    if not figures:
        return [], None
    columns = [
        Column("strategy", text=True),
        Column("min accuracy %", note=DEFINITIONS["min_accuracy"]),
        Column("worst-case accuracy %", note=DEFINITIONS["worst_case_accuracy"]),
        Column("fall within a task", note="points from the end of the task before to the lowest evaluation within"),
        Column("regained by its end", note="points from the lowest evaluation within a task to its end"),
    ]
    return figures, Table(columns, rows)


def _course(run: Result) -> list[tuple[int, Floats]]:
    """Return every evaluation of a run as (step, accuracies [T]), the ends of tasks included."""
    starts = [*_task_starts(run)[1:], run.steps]
    # A recorded step counts from the beginning of its stage.
    before: dict[tuple[int, str], int] = {}
    total = 0
    for epoch in run.training:
        before.setdefault((epoch.task, epoch.stage), total)
        total += epoch.steps or 0
    found = {
        before.get((evaluation.task, evaluation.stage), 0) + evaluation.step: values
        for evaluation in run.evaluations
        if (values := _within(run, evaluation)) is not None
    }
    found |= dict(zip(starts, run.accuracy, strict=True))
    return sorted(found.items())


def _within(run: Result, evaluation: EvaluationRecord) -> Floats | None:
    """Return the headline accuracies [T] of an evaluation within a task."""
    row = evaluation[run.headline]
    return None if row is None else np.array(row, dtype=np.float64)


def _task_starts(run: Result) -> list[int]:
    """Return after how many optimizer steps of the run each task begins."""
    steps = [*run.steps_of_tasks, *[0] * len(run.task_classes)]
    return [sum(steps[:task]) for task in range(len(run.task_classes))]


def _falls(run: Result) -> tuple[float | None, float | None]:
    """Return how far old tasks fall within a task, and how much of it they have regained at its end; means."""
    accuracy = run.accuracy
    falls, regained = [], []
    for task in range(1, len(accuracy)):
        rows = [_within(run, evaluation) for evaluation in run.evaluations if evaluation.task == task]
        within = [row for row in rows if row is not None]
        if not within:
            continue
        lowest = np.fmin.reduce([*within, accuracy[task]])[:task]
        falls += list(accuracy[task - 1, :task] - lowest)
        regained += list(accuracy[task, :task] - lowest)
    return spread(falls).mean, spread(regained).mean


def training(part: Comparison, looks: Sequence[Style]) -> list[Figure]:
    """Draw the sum of the loss terms of each epoch."""
    figures = []
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        if not row.is_headline:
            continue
        losses: dict[tuple[int, str, int | None], dict[str, list[float | None]]] = {}
        for run in row.runs:
            for epoch in run.training:
                terms = losses.setdefault((epoch.task, epoch.stage, epoch.epoch), {})
                for term, value in epoch.losses.items():
                    terms.setdefault(term, []).append(value)
        keys = [key for key, terms in losses.items() if terms]
        if not keys:
            continue
        means = [{term: spread(values).mean for term, values in losses[key].items()} for key in keys]
        totals = [math.fsum(v for v in terms.values() if v is not None) for terms in means]
        every = math.ceil(len(keys) / MOST_POINTS)
        kept = range(0, len(keys), every)
        names = list(dict.fromkeys(term for terms in means for term in terms))
        columns = [Column("task", text=True), Column("stage", text=True), Column("epoch")]
        columns += [Column(printable(name)) for name in names]
        rows = [
            (
                -1,
                [
                    Cell(str(keys[k][0])),
                    Cell(printable(keys[k][1])),
                    Cell("-" if keys[k][2] is None else str(keys[k][2])),
                    *(Cell("-" if (v := means[k].get(name)) is None else f"{v:.4g}") for name in names),
                ],
            )
            for k in kept
        ]
        starts = [k for k in range(1, len(keys)) if keys[k][0] != keys[k - 1][0]]
        chart = svg.lines(
            [Line(i, row.label, look, [(k, totals[k]) for k in kept])],
            svg.axis("epoch of the run", [0, len(keys) - 1], margin=0.03),
            svg.axis("loss", [totals[k] for k in kept], zero=min(totals) >= 0),
            title=f"Training loss, {row.label}",
            unit="",
            size=svg.SMALL,
            boundaries=[k - 0.5 for k in starts],
        )
        caption = f"every {every}th epoch" if every > 1 else ""
        figures.append(Figure(row.label, chart, caption, Table(columns, rows), i, look))
    return figures


def _heat_map(values: Floats, rows: Sequence[str], columns: Sequence[str]) -> Table:
    """Return a matrix of percentages as a table whose cells are coloured; whole numbers where there are many."""
    digits = 1 if len(columns) <= 6 else 0
    body = []
    for name, line in zip(rows, values.tolist(), strict=True):
        cells = [
            Cell("") if math.isnan(v) else Cell(f"{v:.{digits}f}", css=f"h{round(v / 100 * (len(SHADES) - 1))}")
            for v in line
        ]
        body.append((-1, [Cell(name), *cells]))
    return Table([Column("", text=True), *(Column(name) for name in columns)], body)


def _thin(values: Floats) -> list[int]:
    """Return the places to draw: of every so many the lowest, so that no dip is lost, and the last."""
    every = math.ceil(len(values) / MOST_POINTS)
    if every == 1:
        return list(range(len(values)))
    known = np.where(np.isnan(values), np.inf, values)
    places = {start + int(np.argmin(known[start : start + every])) for start in range(0, len(values), every)}
    return sorted(places | {len(values) - 1})
