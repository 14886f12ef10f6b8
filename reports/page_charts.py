"""The charts of the HTML page in which all strategies of a comparison stand together."""

import math
from collections.abc import Sequence

from clbench.reports import svg
from clbench.reports.cells import Cell, Column, Figure, Table, is_line, plus, spread_cell
from clbench.reports.differences import pareto
from clbench.reports.svg import Line, Point, Style
from clbench.reports.tables import Comparison
from clbench.results.metrics import average_accuracies
from clbench.results.statistics import Spread, spread


def average_accuracy(part: Comparison, looks: Sequence[Style]) -> Figure:
    """Draw the average accuracy on the tasks learned so far, a band of one sd over the runs (n-1) around it."""
    n_tasks = len(part.task_sizes)
    series, rows = [], []
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        curves = [average_accuracies(matrix) for matrix in row.matrices]
        at = [spread(curve[k] if k < len(curve) else None for curve in curves) for k in range(n_tasks)]
        points = [(k, math.nan if s.mean is None else 100 * s.mean) for k, s in enumerate(at)]
        deviations = [100 * (s.sd or 0.0) for s in at] if len(row.runs) > 1 else []
        series.append(Line(i, row.label, look, points, deviations))
        rows.append((i, [Cell(row.label), *(spread_cell(s) for s in at)]))
    chart = svg.lines(
        series,
        svg.steps_axis("after task", n_tasks),
        svg.percent_axis("average accuracy (%)"),
        title="Average accuracy on the tasks learned so far, after each task",
    )
    columns = [Column("strategy", text=True), *(Column(f"after task {k}") for k in range(n_tasks))]
    caption = f"Mean {part.matrix(part.headline)} accuracy on the tasks learned so far; band: ± one sd over the runs."
    return Figure("Average accuracy after each task", chart, caption, Table(columns, rows))


def plasticity(part: Comparison, looks: Sequence[Style]) -> Figure:
    """Draw the forgetting over the learning accuracy."""
    points, rows = [], []
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        learned, forgotten = row.spread("learning_accuracy"), row.spread("forgetting")
        rows.append((i, [Cell(row.label), spread_cell(learned), spread_cell(forgotten)]))
        if learned.mean is None or forgotten.mean is None:
            continue
        text = f"{row.label}: learning accuracy {plus(learned)} %, forgetting {plus(forgotten)}"
        deviations = 100 * (learned.sd or 0.0), 100 * (forgotten.sd or 0.0)
        points.append(Point(i, look, 100 * learned.mean, 100 * forgotten.mean, text, *deviations))
    caption = "Right: learns new tasks well. Low: keeps the old ones. Best is the bottom right. Whiskers: ± one sd."
    table = Table([Column("strategy", text=True), Column("learning accuracy %"), Column("forgetting %")], rows)
    if not points:
        return Figure("Forgetting against plasticity", caption="Not defined for a single task.", table=table)
    x = svg.axis("learning accuracy: each task when just learned (%)", [p.x + d for p in points for d in (-p.dx, p.dx)])
    y = svg.axis("forgetting (points)", [0.0, *(p.y + d for p in points for d in (-p.dy, p.dy))])
    chart = svg.scatter(points, x, y, title="Forgetting against learning accuracy")
    return Figure("Forgetting against plasticity", chart, caption, table)


def cost(part: Comparison, looks: Sequence[Style], name: str, label: str, unit: str) -> Figure:
    """Draw the average accuracy over a cost, with the Pareto front of the competitors."""
    points, rows = [], []
    for i, (row, look) in enumerate(zip(part.rows, looks, strict=True)):
        cost, accuracy = row.spread(name), row.spread("average_accuracy")
        if cost.mean is None or accuracy.mean is None:
            continue
        shown = svg.quantity(cost.mean, unit)
        text = f"{row.label}: {plus(accuracy)} %, {shown}"
        points.append(Point(i, look, cost.mean, 100 * accuracy.mean, text, dy=100 * (accuracy.sd or 0.0)))
        rows.append((i, [Cell(row.label), Cell(shown, cost.mean), spread_cell(accuracy)]))
    competing = [(p.x, p.y) for p in points if not is_line(part.rows[p.row])]
    front = [competing[place] for place in pareto(competing)]
    title = f"Accuracy against {label.split()[0]}"
    x = svg.cost_axis(label, [p.x for p in points] or [0.0], unit)
    y = svg.axis("average accuracy (%)", [p.y + d for p in points for d in (-p.dy, p.dy)])
    caption = "The line is the Pareto front of the competitors: for that price nothing here is better."
    columns = [Column("strategy", text=True), Column(label), Column("average accuracy %")]
    return Figure(title, svg.scatter(points, x, y, title=title, front=front), caption, Table(columns, rows))


def stored(part: Comparison, looks: Sequence[Style]) -> Figure:
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
        (i, [Cell(part.rows[i].label), *(Cell("-" if s.mean is None else f"{s.mean:.0f}") for s in of_row)])
        for i, of_row in kept.items()
    ]
    title = "Bytes stored beside the model"
    chart = svg.lines(
        series,
        svg.steps_axis("after task", n_tasks),
        svg.axis(f"stored ({unit})", [y for line in series for _, y in line.points], zero=True),
        title=title,
        unit=f" {unit}",
    )
    columns = [Column("strategy", text=True), *(Column(f"bytes after task {k}") for k in range(n_tasks))]
    return Figure(title, chart, "Exemplars count as if their images were stored.", Table(columns, rows))
