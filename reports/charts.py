"""Every chart of a comparison, each defined once, for figures on disk and for the page.

To add one, write a function from a `Comparison` to a `Chart` or to `Panels` here and decorate it with `chart`. It is
then on the page, in report.md and a name for `clbench report --figure`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise

import numpy as np

from clbench.config.classes import is_elsewhere, load_class
from clbench.config.errors import ConfigError, shown
from clbench.reports.chart import (
    Axis,
    Cell,
    Chart,
    Heading,
    HeatMap,
    Look,
    LookKind,
    Note,
    NumberTable,
    Panel,
    Panels,
    Series,
    axis,
    cost_axis,
    names_axis,
    percent_axis,
    quantity_axis,
    steps_axis,
)
from clbench.reports.columns import percent
from clbench.reports.comparison import SETTING_NAMES, Comparison
from clbench.reports.differences import pareto
from clbench.reports.strategy_runs import StrategyRuns, mean_over_runs
from clbench.reports.verdict import ranks
from clbench.results.metrics import METRICS, average_accuracies
from clbench.results.result import Floats, Result
from clbench.results.statistics import Spread, spread
from clbench.support.text import printable

# Classes up to which a confusion matrix shows each of them; with more it shows tasks.
MOST_CLASSES = 20

Make = Callable[[Comparison], Chart | Panels]


@dataclass(frozen=True)
class Definition:
    """A chart and where it is drawn by default; `clbench report --figure` draws any.

    needs: the data without which nothing is drawn, as an error names them; empty where the chart is always drawn.
    """

    make: Make
    needs: str
    on_page: bool
    in_markdown: bool

    def drawn(self, part: Comparison) -> Chart | Panels | None:
        """Return the chart of a comparison; None where the comparison lacks the data for it."""
        drawing = self.make(part)
        nothing = drawing.is_empty if isinstance(drawing, Chart) else not drawing.panels
        return None if nothing and self.needs else drawing


CHARTS: dict[str, Definition] = {}
"""The charts by name, in the order of the page and of report.md."""


def chart(*, needs: str = "", on_page: bool = True, in_markdown: bool = True) -> Callable[[Make], Make]:
    """Add the decorated function to `CHARTS` under its name."""

    def register(make: Make) -> Make:
        CHARTS[make.__name__] = Definition(make, needs, on_page, in_markdown)
        return make

    return register


def chart_name(name: str) -> str:
    """Return the name of a chart; one that path/to/file.py:NAME or an entry point names is registered by that.

    Raises ConfigError for one that `chart` has not registered.
    """
    if name in CHARTS or not is_elsewhere("chart", name):
        return name
    loaded = load_class("chart", name)
    known = next((known for known, definition in CHARTS.items() if definition.make is loaded), None)
    if known is None:
        raise ConfigError(
            f"figure {name}: {shown(loaded)}; a function under @clbench.reports.charts.chart() is accepted"
        )
    return known


@chart()
def average_accuracy(part: Comparison) -> Chart:
    """Draw the average accuracy on the tasks learned so far, with a band of one sd over the runs (n-1)."""
    n_tasks = len(part.task_sizes)
    series = []
    for i, row in enumerate(part.rows):
        curves = [average_accuracies(matrix) for matrix in row.matrices]
        at = [spread(curve[k] if k < len(curve) else None for curve in curves) for k in range(n_tasks)]
        band = [_points(s.sd) for s in at] if len(row.runs) > 1 else []
        means, counts = [_points(s.mean) for s in at], [s.n for s in at] if row.n < len(row.runs) else []
        series.append(Series(title(part, row), row.look, range(n_tasks), means, dy=band, row=i, counts=counts))
    name = part.matrix(part.headline)
    return Chart(
        "Average accuracy after each task",
        "lines",
        steps_axis("after task", n_tasks),
        percent_axis(f"average {name} accuracy (%)", _ends(series, "y")),
        series,
        f"Mean {name} accuracy on the tasks learned so far; band: ± one sd over the runs.",
        _runs(part, "band"),
    )


@chart()
def forgetting(part: Comparison) -> Chart:
    """Draw the forgetting of each strategy as a bar with a whisker of one sd over the runs (n-1)."""
    series = [_point(part, i, row.spread("forgetting"), Spread(i / 100, None, 1)) for i, row in enumerate(part.rows)]
    label = "forgetting (percentage points), less is better"
    ends = _ends(series, "x")
    return Chart(
        "Forgetting",
        "bars",
        axis(label, [0.0, *ends], zero=not any(x < 0 for x in ends)),
        names_axis([title(part, row) for row in part.rows]),
        series,
        "Mean over all tasks but the last; whiskers: ± one sd over the runs; dashed: the references.",
        _runs(part, "whisker"),
        references=[(one.look, one.x[0]) for one, row in zip(series, part.rows, strict=True) if row.is_line],
        texts=[
            (0.0, one.y[0], " not defined: needs two tasks" if row.n else " no run is finished", "left")
            for one, row in zip(series, part.rows, strict=True)
            if not one.known
        ],
    )


@chart(needs="a second task")
def forgetting_plasticity(part: Comparison) -> Chart:
    """Draw forgetting against learning accuracy, with whiskers of one sd over the runs: lower right is best."""
    series = [
        _point(part, i, row.spread("learning_accuracy"), row.spread("forgetting")) for i, row in enumerate(part.rows)
    ]
    undefined = not any(one.known for one in series)
    return Chart(
        "Forgetting against plasticity",
        "points",
        axis("learning accuracy (%): plasticity, more is better", _ends(series, "x")),
        axis("forgetting (points), less is better", [0.0, *_ends(series, "y")]),
        series,
        "Not defined for a single task."
        if undefined
        else "Right: learns new tasks well. Low: keeps the old ones. Best is the bottom right. Whiskers: ± one sd.",
        _runs(part, "whisker"),
    )


@chart(needs="a record of the bytes kept", on_page=False)
def accuracy_bytes(part: Comparison) -> Chart:
    """Draw average accuracy against the bytes that are kept from task to task, with the Pareto front."""
    return _accuracy_against(part, "all_bytes", "all_bytes", "bytes kept, with those of the model", "B")


@chart(needs="a record of the bytes kept", in_markdown=False)
def accuracy_extra_bytes(part: Comparison) -> Chart:
    """Draw average accuracy against the bytes that are kept beside the model, with the Pareto front."""
    return _accuracy_against(part, "extra_bytes", "all_bytes", "bytes stored beside the model", "B")


@chart(needs="a record of the seconds")
def accuracy_seconds(part: Comparison) -> Chart:
    """Draw average accuracy against the seconds of a run, with the Pareto front."""
    return _accuracy_against(part, "seconds", "seconds", "seconds for the whole run", "s")


@chart(needs="a record of the bytes kept", in_markdown=False)
def stored_bytes(part: Comparison) -> Chart:
    """Draw the bytes that each strategy keeps beside the model after each task."""
    n_tasks = len(part.task_sizes)
    series = []
    for i, row in enumerate(part.rows):
        if row.is_headline:
            kept = [[sum(n for kind, n in entry.items() if kind != "model") for entry in r.ledger] for r in row.runs]
            means = [spread(of_run[k] if k < len(of_run) else None for of_run in kept).mean for k in range(n_tasks)]
            series.append(
                Series(title(part, row), row.look, range(n_tasks), [math.nan if m is None else m for m in means], row=i)
            )
    return Chart(
        "Bytes stored beside the model",
        "lines",
        steps_axis("after task", n_tasks),
        quantity_axis("bytes stored, less is better", [y for one in series for y in one.y], "B"),
        series,
        "Exemplars count as if their images were stored.",
        unit=" B",
    )


@chart(on_page=False)
def accuracy_matrices(part: Comparison) -> Panels:
    """Draw the headline accuracy matrix of each strategy, its mean over the runs, as a heat map."""
    return Panels(
        "Accuracy matrices",
        "matrices",
        "Mean over the runs, percent.",
        [
            Panel(title(part, row), row.look, i, _accuracy_map(part, row), _rows_of(row))
            for i, row in enumerate(part.rows)
        ],
        file="matrices.csv",
    )


@chart()
def task_accuracy(part: Comparison) -> Panels:
    """Draw for each strategy the accuracy on each task from when it was learned, its mean over the runs."""
    n_tasks = len(part.task_sizes)
    panels = []
    maps = [_accuracy_map(part, row) for row in part.rows]
    x = steps_axis("after task", n_tasks)
    y = percent_axis("test accuracy (%)", [value for heat in maps for value in heat.values.ravel().tolist()])
    for i, (row, heat) in enumerate(zip(part.rows, maps, strict=True)):
        series = [
            Series(f"task {task}", look, range(task, n_tasks), heat.values[task:, task].tolist(), row=i)
            for task, look in enumerate(_task_looks(n_tasks))
        ]
        drawing = Chart(f"Accuracy on each task, {title(part, row)}", "lines", x, y, series, own_numbers=heat)
        panels.append(Panel(title(part, row), row.look, i, drawing, _rows_of(row)))
    about = (
        "Mean over the runs, percent. Curves: from when a task was learned, dark (the first task) to bright. Table: "
        "the accuracy matrix, row after which task, column on which task."
    )
    return Panels("Accuracy on each task", "each task", about, panels, file="matrices.csv")


@chart(in_markdown=False, needs="a record of the confusions")
def confusion(part: Comparison) -> Panels:
    """Draw the confusion matrix of the final model of each strategy, added up over its runs."""
    found = [(i, row, _confusion(part, row)) for i, row in enumerate(part.rows) if row.is_headline]
    return Panels(
        "Confusion of the final model",
        "confusion",
        "Percent of the test images of a row's class that were taken for the column's.",
        [Panel(title(part, row), row.look, i, *known) for i, row, known in found if known],
    )


@chart(needs="evaluations within tasks (--eval-every)")
def stability_gap(part: Comparison) -> Panels:
    """Draw the accuracy on each task over all evaluations, those within tasks among them, its mean over the runs.

    De Lange et al. 2023, arXiv:2205.13452. Strategies without evaluations within tasks are left out.
    """
    n_tasks = len(part.task_sizes)
    panels, lines = [], []
    for i, row in enumerate(part.rows):
        if not row.is_headline or not any(run.recorded.evaluations for run in row.finished):
            continue
        curves = [_course(run) for run in row.finished]
        steps = [step for step, _ in curves[0]]
        together = all([step for step, _ in curve] == steps for curve in curves)
        used = curves if together else curves[:1]
        means = 100 * mean_over_runs(np.array([[values for _, values in curve] for curve in used]))
        starts = _task_starts(row.runs[0])
        places = [_place(step, starts) for step in steps]
        seen = np.array(steps)[:, None] > np.array(starts[:-1])
        series = [
            Series(f"task {task}", look, places, column.tolist(), row=i, steps=steps)
            for task, (look, column) in enumerate(
                zip(_task_looks(n_tasks), np.where(seen, means, np.nan).T, strict=True)
            )
        ]
        drawing = Chart(
            f"Accuracy within tasks, {title(part, row)}",
            "lines",
            Axis("task under way", 0, n_tasks, steps_axis("", n_tasks).ticks),
            percent_axis("test accuracy (%)"),
            series,
            step="step",
            rules=range(1, n_tasks),
            by_point=True,
            marked=False,
        )
        single = f"seed {row.runs[0].seed} alone: the others' steps differ"
        panels.append(
            Panel(
                title(part, row),
                row.look,
                i,
                drawing,
                single if not together else "one run" if len(used) == 1 else f"mean of {len(used)} runs",
            )
        )
        falls = [_falls(run) for run in row.finished]
        values = [row.spread("min_accuracy"), row.spread("worst_case_accuracy")]
        values += [spread(fall for fall, _ in falls), spread(regained for _, regained in falls)]
        lines.append((i, [Cell(title(part, row)), *(spread_cell(v) for v in values)]))
    headings = [
        Heading("strategy", text=True),
        Heading("min accuracy %", note=METRICS["min_accuracy"].sentence),
        Heading("worst-case accuracy %", note=METRICS["worst_case_accuracy"].sentence),
        Heading("fall within a task", note="points from the end of the task before to the lowest evaluation within"),
        Heading("regained by its end", note="points from the lowest evaluation within a task to its end"),
    ]
    about = (
        "Every recorded evaluation; the rules are where a task begins. They are kept apart from the accuracies at the "
        "ends of tasks, which all other numbers here come from. Fall: how far below its accuracy at the end of the "
        "task before an old task drops at the lowest evaluation (the stability gap, De Lange et al. 2023, "
        "arXiv:2205.13452), mean over old tasks and tasks."
    )
    return Panels("Evaluations within tasks", "within tasks", about, panels, NumberTable(headings, lines))


@chart(needs="tests on the classes seen so far (--anytime)")
def anytime(part: Comparison) -> Chart | Panels:
    """Draw the accuracy on the classes seen so far over the samples of the stream, its mean over the runs.

    Koh et al. 2022, arXiv:2110.10031. Strategies that were not tested so are left out.
    """
    series = []
    for i, row in enumerate(part.rows):
        curves = [{p.samples: p.accuracy for p in run.recorded.anytime} for run in row.finished]
        places = sorted({samples for curve in curves for samples in curve})
        if row.is_headline and places:
            at = [spread(curve.get(n) for curve in curves) for n in places]
            band = [_points(s.sd) for s in at] if len(curves) > 1 else []
            series.append(Series(title(part, row), row.look, places, [_points(s.mean) for s in at], dy=band, row=i))
    if not series:
        # The page shows a chart that is empty, and no panels.
        return Panels("Accuracy at any time", "any time", "", [])
    return Chart(
        "Accuracy at any time",
        "lines",
        axis("samples of the stream", [0.0, *(x for one in series for x in one.x)], zero=True, margin=0.03),
        percent_axis("accuracy on the classes seen so far (%)", _ends(series, "y")),
        series,
        "Mean over the runs; bands: ± one sd. Tested among the outputs of the classes seen so far; the mean over the "
        "stream is the anytime accuracy (A_auc, Koh et al. 2022, arXiv:2110.10031).",
        _runs(part, "band"),
        by_point=True,
        marked=False,
    )


# The measures of plasticity as panels: the key in TaskRecord.plasticity, and what the axis calls it.
MEASURES = {
    "online_accuracy": "online accuracy (%)",
    "dead_units": "dead units (%)",
    "effective_rank": "effective rank",
    "weight_norm": "weight norm",
}
# Points of a curve over a long stream; each is the mean of as many tasks as it takes.
MOST_POINTS = 50


@chart(in_markdown=False, needs="measures of plasticity (--plasticity)")
def plasticity(part: Comparison) -> Panels:
    """Draw for each measure of plasticity a line for each strategy over the tasks, with a band of one sd over the runs.

    A point is the mean of several tasks where there are more than 50.
    """
    n_tasks = len(part.task_sizes)
    every = math.ceil(n_tasks / MOST_POINTS)
    starts = range(0, n_tasks, every)
    panels = []
    for number, (name, label) in enumerate(MEASURES.items()):
        percentage, series = label.endswith("(%)"), []
        for i, row in enumerate(part.rows):
            curves = [[_measure(run, task, name) for task in range(n_tasks)] for run in row.runs if row.is_headline]
            points = [[spread(curve[start : start + every]).mean for start in starts] for curve in curves]
            at = [spread(curve[k] for curve in points) for k in range(len(starts))]
            scale = 100 if percentage else 1
            means, deviations = ([math.nan if v is None else scale * v for v in vs] for vs in _means_and_sds(at))
            one = Series(title(part, row), row.look, [start + (every - 1) / 2 for start in starts], means, row=i)
            if one.known:
                series.append(replace(one, dy=deviations) if len(row.runs) > 1 else one)
        if series:
            values = _ends(series, "y")
            # The panel's name says what is drawn; the axes of a figure share one label.
            y = percent_axis("", values) if percentage else axis("", values, zero=True)
            # A panel is narrow, and a long stream has tasks of three digits.
            x = steps_axis("after task", n_tasks, most=5)
            drawn = Chart(label, "lines", x, y, series, unit="%" if percentage else "")
            panels.append(Panel(label, series[0].look, number, replace(drawn, marked=False)))
    about = "Means over the runs, the band one sd; effective rank of the features. "
    about += f"Each point is the mean of {every} tasks." if every > 1 else "Measured after each task."
    return Panels("Plasticity over the tasks", "plasticity", about, panels)


def _measure(run: Result, task: int, name: str) -> float | None:
    """Return what was measured in a task of a run; None for nothing."""
    if task >= len(run.recorded.tasks):
        return None
    recorded = run.recorded.tasks[task]
    # The online accuracy alone would be a figure of another question.
    return recorded.plasticity.get(name, recorded.online_accuracy if name == "online_accuracy" else None)


def _means_and_sds(at: Sequence[Spread]) -> tuple[list[float | None], list[float | None]]:
    return [each.mean for each in at], [each.sd for each in at]


@chart(in_markdown=False, needs="a record of the training losses")
def training_loss(part: Comparison) -> Panels:
    """Draw the sum of the loss terms of each epoch, its mean over the runs."""
    panels = []
    for i, row in enumerate(part.rows):
        losses: dict[tuple[int, str, int | None], dict[str, list[float | None]]] = {}
        for run in row.runs:
            for epoch in run.recorded.training:
                terms = losses.setdefault((epoch.task, epoch.stage, epoch.epoch), {})
                for term, value in epoch.losses.items():
                    terms.setdefault(term, []).append(value)
        means = {
            key: {term: spread(values).mean for term, values in terms.items()} for key, terms in losses.items() if terms
        }
        if not row.is_headline or not means:
            continue
        totals = [math.fsum(v for v in terms.values() if v is not None) for terms in means.values()]
        names = list(dict.fromkeys(term for terms in means.values() for term in terms))
        headings = [Heading("task", text=True), Heading("stage", text=True), Heading("epoch")]
        lines = [
            (
                -1,
                [
                    Cell(str(task)),
                    Cell(printable(stage)),
                    Cell("-" if epoch is None else str(epoch)),
                    *(Cell("-" if (v := terms.get(name)) is None else f"{v:.4g}") for name in names),
                ],
            )
            for (task, stage, epoch), terms in means.items()
        ]
        drawing = Chart(
            f"Training loss, {title(part, row)}",
            "lines",
            axis("epoch of the run", [0, len(means) - 1], margin=0.03),
            axis("loss", totals, zero=min(totals) >= 0),
            [Series(title(part, row), row.look, range(len(means)), totals, row=i)],
            own_numbers=NumberTable([*headings, *(Heading(printable(name)) for name in names)], lines),
            unit="",
            rules=[k + 0.5 for k, (one, next_one) in enumerate(pairwise(means)) if one[0] != next_one[0]],
            by_point=True,
            marked=False,
        )
        panels.append(Panel(title(part, row), row.look, i, drawing))
    about = (
        "Sum of the loss terms, mean of each epoch over the runs. Each strategy has its own loss: the levels can't be "
        "compared."
    )
    return Panels("Training loss", "training loss", about, panels)


def critical_difference(parts: Sequence[Comparison], setting: str) -> Chart:
    """Draw the mean ranks over scenarios as a critical-difference diagram (Demsar 2006, fig. 1).

    Thick bars join the strategies whose ranks are not told apart. Raises ConfigError below five scenarios.
    """
    found = ranks(parts, setting)
    titles = {row.label: row.title for part in parts for row in part.rows}
    k = len(found.mean)
    half = math.ceil(k / 2)
    depth = 0.6 + 0.45 * len(found.groups)
    distance = found.critical_difference

    def stroke(kind: LookKind, *points: tuple[float, float]) -> Series:
        xs, ys = zip(*points, strict=True)
        return Series("", Look(kind), xs, ys)

    series = [stroke("axis", (1, 0), (k, 0)), stroke("axis", (1, -1.3), (1 + distance, -1.3))]
    series += [stroke("axis", (rank, -0.25), (rank, 0)) for rank in range(1, k + 1)]
    series += [stroke("axis", (x, -1.45), (x, -1.15)) for x in (1, 1 + distance)]
    texts: list[Note] = [(rank, -0.6, str(rank), "center") for rank in range(1, k + 1)]
    texts.append((1 + distance, -1.3, f"  CD = {distance:.2f}", "left"))
    for place, (label, at) in enumerate(found.mean.items()):
        left = place < half
        low = depth + (place if left else k - 1 - place) + 0.5
        end = 0.9 if left else k + 0.1
        series.append(stroke("leader", (at, 0), (at, low), (end, low)))
        name = titles[label]
        texts.append((end, low, f"{name} ({at:.2f}) " if left else f" {name} ({at:.2f})", "right" if left else "left"))
    for level, group in enumerate(found.groups):
        y = 0.4 + 0.45 * level
        series.append(stroke("bar", (found.mean[group[0]] - 0.05, y), (found.mean[group[-1]] + 0.05, y)))
    lines = [(-1, [Cell(titles[label]), Cell(f"{at:.2f}", at)]) for label, at in found.mean.items()]
    side = 0.9 * (k - 1) / 2
    return Chart(
        f"mean ranks over {found.n} {SETTING_NAMES[setting]} scenarios, 1 is best",
        "diagram",
        Axis("", 1 - side, k + side),
        Axis("", depth + half + 0.3, -1.9),
        series,
        own_numbers=NumberTable([Heading("strategy", text=True), Heading("mean rank")], lines),
        texts=texts,
    )


def title(part: Comparison, row: StrategyRuns) -> str:
    """Return the name of a row in charts: as papers write it, and of the rest of its label what others lack."""
    name, beside = row.name
    options, rest = _options(beside)
    others = [_options(other.name[1])[0] for other in part.rows if other.name[0] == name and other is not row]
    if not others:
        return name
    own = [option for option in options if not all(option in of for of in others)]
    return f"{name}[{','.join(own)}]{rest}" if own else f"{name}{rest}"


def _options(beside: str) -> tuple[list[str], str]:
    """Return the options in the brackets that a label has beside the name, each as text, and what is behind them."""
    if not beside.startswith("["):
        return [], beside
    inside, _, rest = beside[1:].partition("]")
    return inside.split(","), rest


def spread_text(value: Spread) -> str:
    """Return a mean as percent with its deviation where there is one."""
    return percent(value.mean) if value.sd is None else f"{percent(value.mean)} ± {percent(value.sd)}"


def spread_cell(value: Spread) -> Cell:
    """Return a mean with its deviation as a cell."""
    return Cell(spread_text(value), value.mean)


def _accuracy_against(part: Comparison, name: str, recorded: str, label: str, unit: str) -> Chart:
    """Draw the average accuracy over a cost, with the Pareto front; where `recorded` is 0, the cost is not known."""
    series = []
    for i, row in enumerate(part.rows):
        cost = row.spread(name) if row.spread(recorded).mean else Spread(None, None, 0)
        series.append(_point(part, i, cost, row.spread("average_accuracy"), scale=1.0))
    competing = [
        (one.x[0], one.y[0]) for one, row in zip(series, part.rows, strict=True) if one.known and not row.is_line
    ]
    return Chart(
        f"Accuracy against {label.split()[0]}",
        "points",
        cost_axis(f"{label}, less is better", [one.x[0] + sd for one in series for sd in (0.0, *one.dx)], unit),
        percent_axis(f"{part.matrix(part.headline)} average accuracy (%)", _ends(series, "y")),
        series,
        "The line is the Pareto front of the competitors: for that price nothing here is better.",
        _runs(part, "whisker"),
        front=[competing[place] for place in pareto(competing)],
    )


def _point(part: Comparison, i: int, x: Spread, y: Spread, *, scale: float = 100.0) -> Series:
    """Return the means of two numbers as a point, with their deviations where there are any; y is a share."""
    row = part.rows[i]
    at = [math.nan if x.mean is None else scale * x.mean], [_points(y.mean)]
    dx = [] if x.sd is None else [scale * x.sd]
    return Series(title(part, row), row.look, *at, dx, [] if y.sd is None else [100 * y.sd], i)


def _ends(series: Sequence[Series], which: str) -> list[float]:
    """Return where the whiskers of the known points end on one axis."""
    found = []
    for one in series:
        values, spread_of = (one.x, one.dx) if which == "x" else (one.y, one.dy)
        found += [values[k] + sign * (spread_of[k] if spread_of else 0.0) for k in one.known for sign in (-1, 1)]
    return found


def _points(value: float | None) -> float:
    return math.nan if value is None else 100 * value


def _runs(part: Comparison, mark: str) -> str:
    """Return the number of runs, with the meaning of the mark (band or whisker) where there are several runs."""
    counts = sorted({row.n for row in part.rows})
    number = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return number if counts[-1] == 1 else f"{mark}: ± sd, {number}"


def _task_looks(n_tasks: int) -> list[Look]:
    return [Look("task", task, n_tasks) for task in range(n_tasks)]


def _rows_of(row: StrategyRuns) -> str:
    """Return over how many runs the rows of the matrix are, as "n = 3 (0-2), 2 (3-4)"; "" where all are finished."""
    if row.n == len(row.runs):
        return ""
    counts = (~np.isnan(row.matrices)).any(axis=2).sum(axis=0).tolist()
    groups = [(n, [k for k, _ in group]) for n, group in groupby(enumerate(counts), key=lambda pair: pair[1])]
    if len(groups) > 3:
        return f"n = {max(counts)} to {min(counts)}"
    return "n = " + ", ".join(f"{n} ({rows[0]}-{rows[-1]})" for n, rows in groups)


def _accuracy_map(part: Comparison, row: StrategyRuns) -> HeatMap:
    names = [str(k) for k in range(len(part.task_sizes))]
    label = f"{part.matrix(part.headline)} accuracy (%)"
    values = 100 * mean_over_runs(row.matrices)
    return HeatMap(values, names, names, label, "after task", "test set of task", prefix="after ")


def _confusion(part: Comparison, row: StrategyRuns) -> tuple[HeatMap, str] | None:
    """Add up the confusion matrices of a row's runs, by class or, where there are many, by task; say which."""
    known = [(run, counts) for run in row.finished if (counts := run.confusion) is not None and len(counts)]
    if not known:
        return None
    size = len(known[0][1])
    first = known[0][0]
    # For each run, the row of the matrix to which each head output belongs.
    maps: list[list[int]]
    columns: list[str] = []
    if part.setting == "domain":
        names = [str(k) for k in range(size)]
        maps = [list(range(size))] * len(known)
        about = "by head output, which all tasks share"
    elif size <= MOST_CLASSES:
        order = [c for classes in first.task_classes for c in classes]
        names = [printable(first.class_names[c]) for c in order]
        maps = [[order.index(c) if c in order else -1 for _, c in _outputs(run, size)] for run, _ in known]
        about = "by class"
    else:
        names = [f"task {k}" for k in range(len(part.task_sizes))]
        columns = [str(k) for k in range(len(part.task_sizes))]
        maps = [[task for task, _ in _outputs(run, size)] for run, _ in known]
        about = "by the task of the class"
    total = np.zeros((len(names), len(names)))
    for (_, counts), target in zip(known, maps, strict=True):
        if len(counts) != size or len(target) != size or min(target) < 0:
            return None
        np.add.at(total, (np.array(target)[:, None], np.array(target)[None, :]), counts)
    of_row = total.sum(axis=1, keepdims=True)
    share = np.divide(100.0 * total, of_row, out=np.full(total.shape, math.nan), where=of_row > 0)
    heat = HeatMap(share, names, columns or names, "share of the row's test images (%)", "of", "taken for")
    return heat, f"{about}; {len(known)} runs added up" if len(known) > 1 else about


def _outputs(run: Result, size: int) -> list[tuple[int, int]]:
    """Return task and original class of each head output below `size` that was recorded, in order of the outputs."""
    found = {
        output: (task, original)
        for task, (classes, outputs) in enumerate(zip(run.task_classes, run.task_outputs, strict=True))
        for original, output in zip(classes, outputs, strict=False)
        if output < size
    }
    return [found[output] for output in sorted(found)]


def _course(run: Result) -> list[tuple[int, Floats]]:
    """Return every evaluation of a run as (step, headline accuracies [T]), the ends of tasks included."""
    starts = _task_starts(run)
    # A recorded step counts from the beginning of its stage.
    before: dict[tuple[int, str], int] = {}
    total = 0
    for epoch in run.recorded.training:
        before.setdefault((epoch.task, epoch.stage), total)
        total += epoch.steps or 0
    found = {
        before.get((one.task, one.stage), starts[one.task]) + one.step: np.array(values, dtype=np.float64)
        for one in run.recorded.evaluations
        if (values := one[run.recorded.headline.matrix]) is not None
    }
    found |= dict(zip(starts[1 : len(run.steps_of_tasks) + 1], run.accuracy, strict=False))
    return sorted(found.items())


def _task_starts(run: Result) -> list[int]:
    """Return after how many optimizer steps of the run each task begins, and at last how many there are."""
    steps = run.steps_of_tasks
    return list(accumulate([*steps, *[0] * (len(run.task_classes) - len(steps))], initial=0))


def _place(step: int, starts: Sequence[int]) -> float:
    """Return where a step lies in units of tasks: 1.5 is the middle of the second one."""
    task = next((k for k in range(len(starts) - 1) if step <= starts[k + 1]), len(starts) - 2)
    return task + (step - starts[task]) / max(starts[task + 1] - starts[task], 1)


def _falls(run: Result) -> tuple[float | None, float | None]:
    """Return how far old tasks fall within a task, and how much of it they have regained at its end; means."""
    accuracy = run.accuracy
    falls, regained = [], []
    for task in range(1, len(accuracy)):
        values = [one[run.recorded.headline.matrix] for one in run.recorded.evaluations if one.task == task]
        within = [np.array(row, dtype=np.float64) for row in values if row is not None]
        if not within:
            continue
        lowest = np.fmin.reduce([*within, accuracy[task]])[:task]
        falls += list(accuracy[task - 1, :task] - lowest)
        regained += list(accuracy[task, :task] - lowest)
    return spread(falls).mean, spread(regained).mean
