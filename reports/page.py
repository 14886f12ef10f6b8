"""report.html: one file without a network, rebuilt from finished runs alone, in which a person looks for the answer."""

import math
import shlex
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from clbench.config import NOT_IDENTITY, RunConfig
from clbench.errors import ConfigError
from clbench.metrics import DEFINITIONS, average_accuracies
from clbench.registry import entry_point_names, parse_spec
from clbench.reports import charts
from clbench.reports.charts import Line, Point, Style
from clbench.reports.tables import MATRICES, Comparison, Row
from clbench.reports.tables import _is_best as is_best
from clbench.reports.tables import _printable as printable
from clbench.reports.tables import _words as words
from clbench.result import Evaluation, Floats, MatrixName, Result
from clbench.statistics import Spread, interval, spread

if TYPE_CHECKING:
    from jinja2 import Environment

# Cells that the matrices of a section, and its confusion matrices, may have in all: beyond them the page gets too big.
MOST_CELLS = 40_000
# Classes up to which a confusion matrix shows each; beyond, it shows tasks.
MOST_CLASSES = 20
# Points of a curve of the training, or of evaluations within tasks.
MOST_POINTS = 120
# Strategies up to which all are drawn at first; the legend switches the others on.
MOST_DRAWN = 12
SHADES = (
    *("#00224e", "#002b62", "#083370", "#243c6e", "#35456c", "#434e6c", "#4f576c", "#5b606e", "#666970", "#727274"),
    *("#7d7c78", "#888578", "#948e77", "#a19975", "#aea371", "#bcae6c", "#c8b866", "#d6c35d", "#e5cf52", "#f3db42"),
    "#fee838",
)
"""The colours of a heat map from 0 to 100 percent: cividis (Nunez et al. 2018, doi:10.1371/journal.pone.0199239)."""
# The first of SHADES on which black reads better than white.
BLACK_FROM = 11


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it says, the number it is sorted by, a second and smaller line, CSS classes."""

    text: str | Markup
    value: float | None = None
    small: str = ""
    css: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table; `text` is aligned left."""

    title: str
    text: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table: its columns, and of each row its index among the strategies (-1: none), its classes and cells."""

    columns: Sequence[Column]
    rows: Sequence[tuple[int, str, Sequence[Cell]]]


@dataclass(frozen=True)
class Figure:
    """A chart or a heat map with what is said below it, and the numbers behind it."""

    title: str
    drawing: Markup = Markup("")
    caption: str = ""
    table: Table | None = None
    row: int = -1
    style: Style | None = None


@dataclass(frozen=True)
class Entry:
    """A strategy in the legend."""

    row: int
    label: str
    style: Style
    role: str
    drawn: bool


@dataclass
class Section:
    """What the page shows of one comparison."""

    anchor: str
    title: str
    verdict: str
    about: str
    notes: Sequence[str]
    legend: Sequence[Entry]
    table: Table
    references: Table
    main: Sequence[Figure]
    tasks: Sequence[Figure]
    confusion: Sequence[Figure]
    within: Sequence[Figure]
    within_table: Table | None
    training: Sequence[Figure]
    ledger: Table
    runs: Table
    orders: Sequence[tuple[str, str]]
    differing: Table | None
    common: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]
    environment: Sequence[tuple[str, Sequence[str]]]
    omitted: Sequence[str] = field(default_factory=list)


def render(parts: Sequence[Comparison]) -> str:
    """Return the page of these comparisons as HTML; text from runs stands in it as text, whatever it holds."""
    labels = list(dict.fromkeys(row.label for part in parts for row in part.rows if not _is_line(row)))
    styles = {label: charts.style(i) for i, label in enumerate(labels)}
    sections = [_section(part, f"s{i + 1}", styles) for i, part in enumerate(parts)]
    shades = "".join(
        f".h{i}{{background:{colour};color:{'#000' if i >= BLACK_FROM else '#fff'}}}" for i, colour in enumerate(SHADES)
    )
    runs = [run for part in parts for row in part.rows if row.is_headline for run in row.runs]
    return _environment().get_template("page.html").render(
        sections=sections,
        shades=Markup(shades),
        definitions=[(words(name), text) for name, text in DEFINITIONS.items()],
        n_runs=len(runs),
        versions=sorted({run.version for run in runs}),
    )


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = resources.files("clbench.reports")

    def source(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["style_sheet"] = Markup(source("page.css"))
    environment.globals["script"] = Markup(source("page.js"))
    return environment


def _section(part: Comparison, anchor: str, styles: Mapping[str, Style]) -> Section:
    looks = [
        charts.UPPER if row.is_reference else charts.LOWER if _is_line(row) else styles[row.label] for row in part.rows
    ]
    omitted: list[str] = []
    competitors, references = _comparison_tables(part, looks)
    differing, common = _configs(part)
    runs, orders = _runs(part)
    within, within_table = _within_tasks(part, looks)
    legend = [
        Entry(i, row.label, look, _role(row), _is_line(row) or i - sum(map(_is_line, part.rows[:i])) < MOST_DRAWN)
        for i, (row, look) in enumerate(zip(part.rows, looks, strict=True))
    ]
    rule = "the outputs of all tasks seen so far compete"
    if part.headline == "task_aware":
        rule = "the task is known and only its own outputs compete"
    return Section(
        anchor=anchor,
        title=part.title,
        verdict=_verdict(part),
        about=f"The headline is the {MATRICES[part.headline]} average accuracy: {rule}.",
        notes=part.notes,
        legend=legend,
        table=competitors,
        references=references,
        main=[
            _average_accuracy(part, looks),
            _plasticity(part, looks),
            _cost(part, looks, "extra_bytes", "bytes stored beside the model", "B"),
            _cost(part, looks, "seconds", "seconds for the whole run", "s"),
            _stored(part, looks),
        ],
        tasks=_matrices(part, looks, omitted),
        confusion=_confusions(part, looks, omitted),
        within=within,
        within_table=within_table,
        training=_training(part, looks),
        ledger=_ledger(part),
        runs=runs,
        orders=orders,
        differing=differing,
        common=common,
        commands=[(row.label, _command(row)) for row in part.rows if row.is_headline],
        environment=_machines(part),
        omitted=omitted,
    )


def _verdict(part: Comparison) -> str:
    ranked = [row for row in part.rows if not row.is_reference]
    best = max(ranked, key=lambda row: row.spread("average_accuracy").mean or 0.0, default=None)
    if best is None:
        return "There are references alone, nothing to compare."
    return f"{best.label} has the highest mean accuracy."


# --- the comparison ---------------------------------------------------------------------------------------------------


def _comparison_tables(part: Comparison, looks: Sequence[Style]) -> tuple[Table, Table]:
    """Return the table of the competitors and that of the references, with the same columns."""
    other: MatrixName = "task_aware" if part.headline == "class_incremental" else "class_incremental"
    names = ["average_accuracy", f"{other}_accuracy", "average_incremental_accuracy", "forgetting"]
    names += [name for name in DEFINITIONS if name not in names]
    names = [name for name in names if any(row.spread(name).n for row in part.rows)]
    titles = {"average_accuracy": f"{MATRICES[part.headline]} accuracy", f"{other}_accuracy": f"{MATRICES[other]} acc."}
    bounds = [b for row in part.rows for b in _bounds(row, "average_accuracy") if b is not None]
    scale = charts.axis("", [100 * b for b in bounds])
    columns = [Column("strategy", text=True), Column("n", note="runs")]
    for name in names:
        columns.append(Column(titles.get(name, words(name)) + " %", note=DEFINITIONS.get(name, "")))
        if name == "average_accuracy":
            columns.append(Column(f"{scale.low:.0f} to {scale.high:.0f} %", text=True, note="95 % interval"))
    columns += [Column("seconds"), Column("kB stored", note="kept from task to task beside the model")]
    tables: tuple[list[tuple[int, str, list[Cell]]], ...] = ([], [])
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        cells = [_named(row, look), Cell(str(len(row.runs)), len(row.runs))]
        for name in names:
            cells.append(_metric(row, name, best=is_best(part, row, name)))
            if name == "average_accuracy":
                low, high = _bounds(row, name)
                mean = row.spread(name).mean
                drawn = [100 * (mean or 0.0) if v is None else 100 * v for v in (low, mean, high)]
                cells.append(Cell(charts.interval(look, drawn[0], drawn[1], drawn[2], scale), mean))
        seconds, stored = row.spread("seconds").mean or 0.0, (row.spread("extra_bytes").mean or 0.0) / 1000
        cells += [Cell(f"{seconds:.1f}", seconds), Cell(f"{stored:.1f}", stored)]
        tables[_is_line(row)].append((i, "", cells))
    return Table(columns, tables[0]), Table(columns, tables[1])


def _named(row: Row, look: Style) -> Cell:
    mark = Markup('<svg class="key" viewBox="0 0 14 14" aria-hidden="true"><use class="{}" href="#{}" x="7" y="7"/></svg>')
    name = Markup("{} <bdi>{}</bdi>").format(mark.format(look.css, look.marker), row.label)
    return Cell(name, small=_role(row) or row.runs[0].family)


def _metric(row: Row, name: str, *, best: bool = False) -> Cell:
    mean, sd, n = row.spread(name)
    if mean is None:
        return Cell("–")
    text = percent(mean) if sd is None else f"{percent(mean)} ± {percent(sd)}"
    low, high = _bounds(row, name)
    small = "" if low is None or high is None else f"{percent(low)} to {percent(high)}"
    if n < len(row.runs):
        small = f"{small} n={n}".strip()
    return Cell(text, mean, small, "best" if best else "")


def _bounds(row: Row, name: str) -> tuple[float | None, float | None]:
    found = interval(numbers.get(name) for numbers in row.numbers)
    return (None, None) if found is None else (found.low, found.high)


# --- charts over strategies -------------------------------------------------------------------------------------------


def _average_accuracy(part: Comparison, looks: Sequence[Style]) -> Figure:
    n_tasks = len(part.task_sizes)
    series, rows = [], []
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        curves = [average_accuracies(matrix) for matrix in row.matrices]
        at = [spread(curve[k] if k < len(curve) else None for curve in curves) for k in range(n_tasks)]
        points = [(k, math.nan if s.mean is None else 100 * s.mean) for k, s in enumerate(at)]
        deviations = [100 * (s.sd or 0.0) for s in at] if len(row.runs) > 1 else []
        series.append(Line(i, row.label, look, points, deviations))
        rows.append((i, "", [Cell(row.label), *(_spread_cell(s) for s in at)]))
    chart = charts.lines(
        series,
        charts.steps_axis("after task", n_tasks),
        charts.percent_axis("average accuracy (%)"),
        title="Average accuracy on the tasks learned so far, after each task",
    )
    columns = [Column("strategy", text=True), *(Column(f"after task {k}") for k in range(n_tasks))]
    caption = f"Mean {MATRICES[part.headline]} accuracy on the tasks learned so far; band: ± one sd over the runs."
    return Figure("Average accuracy after each task", chart, caption, Table(columns, rows))


def _plasticity(part: Comparison, looks: Sequence[Style]) -> Figure:
    points, rows = [], []
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        learned, forgotten = row.spread("learning_accuracy"), row.spread("forgetting")
        rows.append((i, "", [Cell(row.label), _spread_cell(learned), _spread_cell(forgotten)]))
        if learned.mean is None or forgotten.mean is None:
            continue
        text = f"{row.label}: learning accuracy {_plus(learned)} %, forgetting {_plus(forgotten)}"
        deviations = 100 * (learned.sd or 0.0), 100 * (forgotten.sd or 0.0)
        points.append(Point(i, look, 100 * learned.mean, 100 * forgotten.mean, text, *deviations))
    caption = (
        "Right: learns new tasks well. Low: keeps the old ones. The best place is at the bottom right. Whiskers: ± one sd."
    )
    table = Table([Column("strategy", text=True), Column("learning accuracy %"), Column("forgetting %")], rows)
    if not points:
        return Figure("Forgetting against plasticity", caption="Not defined for a single task.", table=table)
    x = charts.axis("learning accuracy: each task when just learned (%)", [p.x for p in points])
    y = charts.axis("forgetting (points)", [0.0, *(p.y for p in points)])
    chart = charts.scatter(points, x, y, title="Forgetting against learning accuracy")
    return Figure("Forgetting against plasticity", chart, caption, table)


def _cost(part: Comparison, looks: Sequence[Style], name: str, label: str, unit: str) -> Figure:
    points, rows = [], []
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        cost, accuracy = row.spread(name), row.spread("average_accuracy")
        if cost.mean is None or accuracy.mean is None:
            continue
        shown = charts.quantity(cost.mean, unit)
        text = f"{row.label}: {_plus(accuracy)} %, {shown}"
        points.append(Point(i, look, cost.mean, 100 * accuracy.mean, text, dy=100 * (accuracy.sd or 0.0)))
        rows.append((i, "", [Cell(row.label), Cell(shown, cost.mean), _spread_cell(accuracy)]))
    front: list[tuple[float, float]] = []
    for point in sorted((p for p in points if not _is_line(part.rows[p.row])), key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1][1]:
            front.append((point.x, point.y))
    title = f"Accuracy against {label.split()[0]}"
    x = charts.cost_axis(label, [p.x for p in points] or [0.0], unit)
    y = charts.axis("average accuracy (%)", [p.y for p in points] or [0.0])
    caption = "The line is the Pareto front of the competitors: for that price nothing here is better."
    columns = [Column("strategy", text=True), Column(label), Column("average accuracy %")]
    return Figure(title, charts.scatter(points, x, y, title=title, front=front), caption, Table(columns, rows))


def _stored(part: Comparison, looks: Sequence[Style]) -> Figure:
    """Draw what each strategy keeps beside the model after each task."""
    n_tasks = len(part.task_sizes)
    kept: dict[int, list[Spread]] = {}
    for i, row in enumerate(part.rows):
        if row.is_headline:
            found = [[sum(n for kind, n in entry.items() if kind != "model") for entry in r.ledger] for r in row.runs]
            kept[i] = [spread(of_run[k] if k < len(of_run) else None for of_run in found) for k in range(n_tasks)]
    most = max((s.mean for of_row in kept.values() for s in of_row if s.mean is not None), default=0.0)
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if most >= s), ("B", 1.0))
    series = [
        Line(
            i,
            part.rows[i].label,
            looks[i],
            [(k, math.nan if s.mean is None else s.mean / size) for k, s in enumerate(of_row)],
        )
        for i, of_row in kept.items()
    ]
    rows = [
        (i, "", [Cell(part.rows[i].label), *(Cell("–" if s.mean is None else f"{s.mean:.0f}") for s in of_row)])
        for i, of_row in kept.items()
    ]
    title = "Bytes stored beside the model"
    chart = charts.lines(
        series,
        charts.steps_axis("after task", n_tasks),
        charts.axis(f"stored ({unit})", [y for line in series for _, y in line.points], zero=True),
        title=title,
        unit=f" {unit}",
    )
    columns = [Column("strategy", text=True), *(Column(f"bytes after task {k}") for k in range(n_tasks))]
    return Figure(title, chart, "Exemplars count as if their images were stored.", Table(columns, rows))


# --- one panel a strategy ---------------------------------------------------------------------------------------------


def _matrices(part: Comparison, looks: Sequence[Style], omitted: list[str]) -> list[Figure]:
    n_tasks = len(part.task_sizes)
    figures = []
    x, y = charts.steps_axis("after task", n_tasks), charts.percent_axis("accuracy (%)")
    shown = part.rows[: max(1, MOST_CELLS // n_tasks**2)]
    if len(shown) < len(part.rows):
        omitted.append(f"The matrices of {len(part.rows) - len(shown)} strategies are left to matrices.csv.")
    for i, (row, look) in enumerate(zip(shown, looks, strict=False)):
        mean = 100 * _mean(row.matrices)
        series = [
            Line(
                i,
                f"task {task}",
                Style(f"t{round(7 * task / max(n_tasks - 1, 1))}", ""),
                [(after, mean[after, task]) for after in range(task, n_tasks)],
            )
            for task in range(n_tasks)
        ]
        title = f"Accuracy on each task, {row.label}"
        chart = charts.lines(series, x, y, title=title, size=charts.SMALL)
        names = [f"task {k}" for k in range(n_tasks)]
        figures.append(Figure(row.label, chart, table=_heat_map(mean, names, names), row=i, style=look))
    return figures


def _confusions(part: Comparison, looks: Sequence[Style], omitted: list[str]) -> list[Figure]:
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
        names = [f"output {k}" for k in range(size)]
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
    return total, names, f"{about}; {len(known)} run{'s' if len(known) > 1 else ''} added up"


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


def _within_tasks(part: Comparison, looks: Sequence[Style]) -> tuple[list[Figure], Table | None]:
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
        mean = 100 * _mean(np.array([[values for _, values in curve] for curve in used]))
        kept = _thin(np.array([np.nanmean(values) if not np.isnan(values).all() else math.nan for values in mean]))
        starts = _task_starts(row.runs[0])
        series = [
            Line(
                i,
                f"task {task}",
                Style(f"t{round(7 * task / max(n_tasks - 1, 1))}", ""),
                [(steps[k], mean[k, task]) for k in kept if steps[k] > starts[task]],
            )
            for task in range(n_tasks)
        ]
        x = charts.axis("optimizer step", [0.0, steps[-1]], zero=True, margin=0.02)
        title = f"Accuracy within tasks, {row.label}"
        chart = charts.lines(
            series,
            x,
            charts.percent_axis("accuracy (%)"),
            title=title,
            size=charts.SMALL,
            boundaries=starts[1:],
        )
        cells = [
            (-1, "", [Cell(str(steps[k])), *(Cell(_or_dash(mean[k, t] / 100)) for t in range(n_tasks))]) for k in kept
        ]
        columns = [Column("step", text=True), *(Column(f"task {t}") for t in range(n_tasks))]
        caption = f"mean of {len(used)} runs" if together else f"seed {row.runs[0].seed} alone: the others' steps differ"
        if len(kept) < len(steps):
            caption += f"; of {len(steps)} evaluations the lowest of every {math.ceil(len(steps) / MOST_POINTS)}"
        figures.append(Figure(row.label, chart, caption, Table(columns, cells), i, look))
        falls = [_falls(run) for run in row.runs]
        values = [row.spread("min_accuracy"), row.spread("worst_case_accuracy")]
        values += [spread(fall for fall, _ in falls), spread(regained for _, regained in falls)]
        rows.append((i, "", [_named(row, look), *(_spread_cell(v) for v in values)]))
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
        before.get((evaluation.task, evaluation.stage), starts[evaluation.task]) + evaluation.step: values
        for evaluation in run.evaluations
        if (values := _within(run, evaluation)) is not None
    }
    found |= dict(zip(starts, run.accuracy, strict=True))
    return sorted(found.items())


def _within(run: Result, evaluation: Evaluation) -> Floats | None:
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


def _training(part: Comparison, looks: Sequence[Style]) -> list[Figure]:
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
                "",
                [
                    Cell(str(keys[k][0])),
                    Cell(printable(keys[k][1])),
                    Cell("–" if keys[k][2] is None else str(keys[k][2])),
                    *(Cell("–" if (v := means[k].get(name)) is None else f"{v:.4g}") for name in names),
                ],
            )
            for k in kept
        ]
        starts = [k for k in range(1, len(keys)) if keys[k][0] != keys[k - 1][0]]
        chart = charts.lines(
            [Line(i, row.label, look, [(k, totals[k]) for k in kept])],
            charts.axis("epoch of the run", [0, len(keys) - 1], margin=0.03),
            charts.axis("loss", [totals[k] for k in kept], zero=min(totals) >= 0),
            title=f"Training loss, {row.label}",
            unit="",
            size=charts.SMALL,
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
        body.append((-1, "", [Cell(name), *cells]))
    return Table([Column("", text=True), *(Column(name) for name in columns)], body)


# --- what was kept, each run, configurations --------------------------------------------------------------------------


def _ledger(part: Comparison) -> Table:
    """Return items and bytes of what each strategy keeps from task to task, the most after any task."""
    kinds = [name.removesuffix("_bytes") for name in part.names("_bytes")]
    kinds = [*(k for k in kinds if k != "extra"), "extra"]
    items = [name.removesuffix("_items") for name in part.names("_items")]
    columns = [Column("strategy", text=True)]
    for kind in kinds:
        if kind in items:
            columns.append(Column(f"{words(kind)}, items"))
        columns.append(Column("all but the model, bytes" if kind == "extra" else f"{words(kind)}, bytes"))
    rows = []
    for i, row in enumerate(part.rows):
        if not row.is_headline:
            continue
        cells = [Cell(row.label)]
        for kind in kinds:
            for name in ([f"{kind}_items"] if kind in items else []) + [f"{kind}_bytes"]:
                mean = row.spread(name).mean
                cells.append(Cell("–" if mean is None else f"{mean:,.0f}", mean))
        rows.append((i, "", cells))
    return Table(columns, rows)


def _runs(part: Comparison) -> tuple[Table, list[tuple[str, str]]]:
    """Return the table of the single runs, and the class orders by the letters that it calls them."""
    orders: dict[tuple[int, ...], str] = {}
    rows = []
    shown = ("average_accuracy", "average_incremental_accuracy", "forgetting")
    for i, row in enumerate(part.rows):
        for run, numbers in zip(row.runs, row.numbers, strict=True):
            order = tuple(run.class_order)
            letter = orders.setdefault(order, _letter(len(orders)))
            seconds = numbers.get("seconds") or 0.0
            values = [numbers.get(name) for name in shown]
            cells = [
                Cell(row.label),
                Cell(str(run.seed), run.seed),
                Cell(letter),
                *(Cell(_or_dash(value), value) for value in values),
                Cell(f"{seconds:.1f}", seconds),
                Cell(printable(run.created)[:19]),
                Cell(printable(run.identity)[:16]),
            ]
            rows.append((i, "", cells))
    columns = [
        Column("strategy", text=True),
        Column("seed"),
        Column("class order", text=True),
        *(Column(words(name) + " %") for name in shown),
        Column("seconds"),
        Column("started", text=True),
        Column("identity", text=True),
    ]
    named = [(letter, ", ".join(map(str, order))) for order, letter in orders.items()]
    return Table(columns, rows), named


def _configs(part: Comparison) -> tuple[Table | None, list[tuple[str, str]]]:
    """Return the fields of the configurations that differ between strategies as a table, and those that do not."""
    rows = [(i, row) for i, row in enumerate(part.rows) if row.is_headline]
    fields = [key for key in _fields(row.runs for _, row in rows) if key not in ("strategy", "label", "seed")]
    values = {key: [_values(row.runs, key) for _, row in rows] for key in fields}
    differing = [key for key in fields if len(set(values[key])) > 1]
    common = [(key, values[key][0]) for key in fields if key not in differing]
    if not differing:
        return None, common
    body = []
    for place, (i, row) in enumerate(rows):
        cells = [Cell(row.label), Cell(", ".join(str(run.seed) for run in row.runs))]
        for key in differing:
            usual = max(dict.fromkeys(values[key]), key=values[key].count)
            value = values[key][place]
            cells.append(Cell(value, css="" if value == usual else "differs"))
        body.append((i, "", cells))
    columns = [Column("strategy", text=True), Column("seeds", text=True)]
    return Table([*columns, *(Column(printable(key), text=True) for key in differing)], body), common


def _fields(runs: Iterable[Sequence[Result]]) -> list[str]:
    return list(dict.fromkeys(key for group in runs for run in group for key in run.config))


def _values(runs: Sequence[Result], key: str) -> str:
    """Return the value of a field, or all its values where repetitions of a run differ in it."""
    found = list(dict.fromkeys(_shown(run.config.get(key)) for run in runs))
    return found[0] if len(found) == 1 else f"{len(found)} values: {'; '.join(found)}"[:400]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{printable(str(k))}={_shown(v)}" for k, v in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    return "none" if value is None else printable(str(value))


def _command(row: Row) -> str:
    """Return the command that makes the row's runs again, every option spelled out; a comment where there is none.

    With everything given, no preset and no other version's default can change it.
    """
    run = row.runs[0]
    config = run.config
    strategy = run.strategy_name
    if ".py:" not in strategy and strategy not in entry_point_names("clbench.strategies"):
        return f"# {printable(strategy)} was handed over as a class in Python: clbench.run(SCENARIO, CLASS, **options)"
    if config.get("data_fingerprint") and not _is_path(run.scenario, config):
        return f"# {printable(run.scenario)} was handed over as a Scenario in Python: clbench.run(SCENARIO, NAME, **options)"
    try:
        in_brackets = parse_spec(run.strategy)[1] if run.strategy.startswith(f"{strategy}[") else {}
    except ConfigError:
        in_brackets = {}
    spec = run.strategy if in_brackets else strategy
    words_ = ["clbench", "run", str(config.get("scenario")), spec]
    for key, value in (config.get("strategy_options") or {}).items():
        if key not in in_brackets:
            words_ += ["-p", f"{key}={_typed(value)}"]
    skipped = {"scenario", "strategy", "strategy_options", "data_fingerprint", "seed", *NOT_IDENTITY, *in_brackets}
    for key in RunConfig.model_fields:
        value = config.get(key)
        if key in skipped or value is None:
            continue
        option = key.replace("_", "-")
        words_ += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", _typed(value)]
    command = " ".join(shlex.quote(printable(word)) for word in words_)
    seeds = list(dict.fromkeys(str(run.seed) for run in row.runs))
    if len(seeds) == 1:
        return f"{command} --seed {seeds[0]}"
    return f'for seed in {" ".join(seeds)}; do {command} --seed "$seed"; done'


def _is_path(name: str, config: Mapping[str, Any]) -> bool:
    return str(config.get("scenario", "")) != name or str(config.get("scenario", "")).endswith(".npz")


def _typed(value: object) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(_typed, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value)


def _machines(part: Comparison) -> list[tuple[str, Sequence[str]]]:
    """Return each fact of the environments with the values it has, the number of runs beside them where they differ."""
    runs = [run for row in part.rows if row.is_headline for run in row.runs]
    facts: dict[str, dict[str, int]] = {"clbench": {}}
    for run in runs:
        for name, value in ({"clbench": run.version} | run.environment).items():
            counts = facts.setdefault(printable(name), {})
            counts[printable(value)] = counts.get(printable(value), 0) + 1
    return [
        (name, [v if n == len(runs) else f"{v} ({n} of {len(runs)} runs)" for v, n in counts.items()])
        for name, counts in facts.items()
    ]


# --- small things -----------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """Return a share as percent with one digit."""
    return f"{round(100 * value, 1) + 0.0:.1f}"


def _or_dash(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else percent(value)


def _plus(value: Spread) -> str:
    assert value.mean is not None
    return percent(value.mean) if value.sd is None else f"{percent(value.mean)} ± {percent(value.sd)}"


def _spread_cell(value: Spread) -> Cell:
    return Cell("–") if value.mean is None else Cell(_plus(value), value.mean)


def _is_line(row: Row) -> bool:
    """Tell whether the row is a reference line: the upper one (joint) or the lower one (naive)."""
    return row.is_reference or row.runs[0].strategy_name == "naive"


def _role(row: Row) -> str:
    return "reference: reads the data of all tasks" if row.is_reference else "lower reference" if _is_line(row) else ""


def _mean(stack: Floats) -> Floats:
    """Return the mean over the first axis, NaN where nothing is known."""
    known = ~np.isnan(stack)
    counts = known.sum(axis=0)
    total = np.where(known, stack, 0.0).sum(axis=0)
    mean: Floats = np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
    return mean


def _thin(values: Floats) -> list[int]:
    """Return the places to draw: of every so many the lowest, so that no dip is lost, and the last."""
    every = math.ceil(len(values) / MOST_POINTS)
    if every == 1:
        return list(range(len(values)))
    known = np.where(np.isnan(values), np.inf, values)
    places = {start + int(np.argmin(known[start : start + every])) for start in range(0, len(values), every)}
    return sorted(places | {len(values) - 1})


def _letter(index: int) -> str:
    """Return A, B, ..., Z, AA, AB, ... for 0, 1, ..."""
    letters = ""
    while True:
        letters = string.ascii_uppercase[index % 26] + letters
        index = index // 26 - 1
        if index < 0:
            return letters
