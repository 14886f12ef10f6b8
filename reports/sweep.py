"""A sweep as a table with a column for each parameter that varies, the best of each strategy, and heat maps."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.text import Text

from clbench.config.registry import parse_spec
from clbench.reports import budgets, figures
from clbench.reports.chart import HeatMap, Look, Panel, Panels
from clbench.reports.columns import percent
from clbench.reports.markdown import escape
from clbench.reports.points import Point
from clbench.results.result import Result
from clbench.support.files import expanded, write_atomically
from clbench.support.fitted import Column, Fitted

METRICS = ("average_accuracy", "forgetting")


def points(results: Sequence[Result]) -> list[Point]:
    """Return the configurations of finished runs in the order given; what varies is in the brackets of their labels."""
    found: dict[tuple[str, str, str], Point] = {}
    for run in results:
        label = run.recorded.strategy.label
        name, values = parse_spec(label)
        key = (run.scenario, run.setting, label)
        found.setdefault(key, Point(f"{run.scenario}, {run.setting}", name, values)).runs.append(run)
    return list(found.values())


def parameters(found: Sequence[Point]) -> list[str]:
    """Return the parameters that vary, in the order in which they come."""
    return list(dict.fromkeys(name for point in found for name in point.values))


def best(found: Sequence[Point]) -> list[Point]:
    """Return for each scenario and strategy the configuration of the highest mean accuracy; the first of equal ones."""
    leading: dict[tuple[str, str], Point] = {}
    for point in found:
        key, mean = (point.scenario, point.strategy), point.spread("average_accuracy").mean
        held = leading.get(key)
        if mean is not None and (held is None or mean > (held.spread("average_accuracy").mean or 0.0)):
            leading[key] = point
    return list(leading.values())


# The best of many is too good on the images that it was chosen by.
ON_TEST = "the best is that on test images, so its accuracy is too high to publish; clbench tune chooses without them"


def render(found: Sequence[Point]) -> Fitted:
    """Return the table for a terminal: a column for each parameter; the best of each strategy is bold and marked."""
    leading = best(found)
    styles = ["bold" if point in leading else "" for point in found]

    def column(title: str, cells: Sequence[str], keep: int, *, right: bool = False, wraps: bool = False) -> Column:
        texts = [Text(cell, style=style) for cell, style in zip(cells, styles, strict=True)]
        return Column(title, texts, keep, "right" if right else "left", wraps)

    columns = [column("strategy", [point.strategy for point in found], 9)]
    if len({point.scenario for point in found}) > 1:
        columns.insert(0, column("scenario", [point.scenario for point in found], 8, wraps=True))
    columns += [
        column(name, [point.values.get(name, "") for point in found], 7, right=True) for name in parameters(found)
    ]
    columns += [
        column("average accuracy %", [_shown(point, "average_accuracy") for point in found], 8, right=True),
        column("forgetting", [_shown(point, "forgetting") for point in found], 5, right=True),
        column("n", [str(len(point.runs)) for point in found], 6, right=True),
        column("best", ["*" if point in leading else "" for point in found], 4),
    ]
    caption = f"mean ± standard deviation (n-1) over n runs; {ON_TEST}"
    return Fitted(columns, caption=caption, more="sweep.csv has them")


def heat_maps(found: Sequence[Point]) -> dict[str, Panels]:
    """Return a heat map of the mean accuracy for each strategy of which two parameters vary, by a name for its file."""
    drawn: dict[str, Panels] = {}
    for scenario, strategy in dict.fromkeys((point.scenario, point.strategy) for point in found):
        own = [point for point in found if (point.scenario, point.strategy) == (scenario, strategy)]
        axes = {
            name: list(dict.fromkeys(point.values[name] for point in own if name in point.values))
            for name in parameters(own)
        }
        axes = {name: values for name, values in axes.items() if len(values) > 1}
        if len(axes) != 2:
            continue
        (down, rows), (across, columns) = axes.items()
        values = np.full((len(rows), len(columns)), np.nan)
        for point in own:
            mean = point.spread("average_accuracy").mean
            if down in point.values and across in point.values and mean is not None:
                values[rows.index(point.values[down]), columns.index(point.values[across])] = 100 * mean
        heat = HeatMap(values, rows, columns, "average accuracy (%)", down, across)
        title = f"{strategy} on {scenario}-incremental"
        drawn[f"sweep-{len(drawn) + 1}"] = Panels(title, title, "", [Panel(strategy, Look("competitor"), 0, heat)])
    return drawn


def write_sweep(results: Sequence[Result], folder: str | os.PathLike[str]) -> list[Path]:
    """Write sweep.csv, sweep.md, heat maps, and curves where budgets vary; return their paths.

    Raises OSError where they can't be written.
    """
    folder, found = expanded(folder), points(results)
    names = parameters(found)
    rows = [
        [point.scenario, point.strategy, *(point.values.get(name, "") for name in names), str(len(point.runs))]
        + [_number(value) for metric in METRICS for value in (point.spread(metric).mean, point.spread(metric).sd)]
        for point in found
    ]
    heads = ["scenario", "strategy", *names, "n", *(f"{m}{end}" for m in METRICS for end in ("", "_sd"))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *rows])
    files: dict[str, bytes | str] = {"sweep.csv": text.getvalue()}
    shown = [
        [*row[: 2 + len(names)], *(_shown(point, metric) for metric in METRICS), str(len(point.runs))]
        for row, point in zip(rows, found, strict=True)
    ]
    lines = ["# Sweep", "", "Best of each strategy, by mean average accuracy in percent:", ""]
    lines += [
        f"- {escape(point.label)} on {escape(point.scenario)}: {_shown(point, METRICS[0])}" for point in best(found)
    ]
    lines += ["", f"{ON_TEST[0].upper()}{ON_TEST[1:]}."]
    lines += ["", _row(["scenario", "strategy", *names, "average accuracy %", "forgetting", "n"])]
    lines += [_row(["---"] * (5 + len(names))), *(_row(cells) for cells in shown), ""]
    for name, panels in heat_maps(found).items():
        files |= {f"figures/{name}.{kind}": data for kind, data in figures.draw(panels, panels.title).items()}
        lines += [f"![{escape(panels.title)}](figures/{name}.png)", ""]
    if drawn := budgets.curves(found):
        heads, *areas = budgets.table(drawn)
        lines += ["## Budgets", "", "Mean accuracy over the logarithm of the budget, percent:", "", _row(heads)]
        lines += [_row(["---"] * len(heads)), *map(_row, areas), ""]
        files["budgets.csv"] = budgets.as_csv(drawn)
        for name, chart in budgets.charts(drawn).items():
            files |= {f"figures/{name}.{kind}": data for kind, data in figures.draw(chart, chart.title).items()}
            lines += [f"![{escape(chart.title)}](figures/{name}.png)", ""]
    files["sweep.md"] = "\n".join(lines)
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in files]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escape(cell) if cell != '---' else cell for cell in cells)} |"


def _shown(point: Point, metric: str) -> str:
    mean, sd, _ = point.spread(metric)
    return percent(mean) if sd is None else f"{percent(mean)} ± {percent(sd)}"


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)
