"""Accuracy against a budget, where a sweep varies it: a curve for each strategy, the area below it, and a figure."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from clbench.config.groups import budget_of
from clbench.reports.chart import Chart, Look, Series, cost_axis, percent_axis
from clbench.reports.points import Point

# Uniform replay, which few methods beat at the same compute (Prabhu et al. 2023, arXiv:2303.11165).
LINE_TO_BEAT = "er"
# The area below the average incremental accuracy, and below the last one, as Zhou et al. 2023 (arXiv:2205.13218) name
# them; their axis is the memory itself, this one its logarithm, so that each doubling counts the same.
AREAS = {"auc_a": "average_incremental_accuracy", "auc_l": "average_accuracy"}
UNITS = {"flops": ("FLOPs of training", "FLOP"), "bytes": ("bytes of model, exemplars and extras", "B")}


@dataclass(frozen=True)
class Curve:
    """A strategy at several budgets of one kind, flops or bytes, the smallest first."""

    scenario: str
    kind: str
    label: str
    points: dict[int, Point] = field(default_factory=dict)

    def means(self, metric: str) -> list[float]:
        """Return the mean of a metric over the runs at each budget, NaN where it is not known."""
        found = (point.spread(metric).mean for point in self.points.values())
        return [math.nan if mean is None else mean for mean in found]

    def area(self, metric: str) -> float | None:
        """Return the mean height of the curve over the logarithm of the budget; None below two budgets."""
        places, heights = [math.log(budget) for budget in self.points], self.means(metric)
        if len(places) < 2 or not all(map(math.isfinite, heights)):
            return None
        parts = zip(pairwise(places), pairwise(heights), strict=True)
        return sum((b - a) * (low + high) / 2 for (a, b), (low, high) in parts) / (places[-1] - places[0])


def curves(found: Sequence[Point]) -> list[Curve]:
    """Return the curves of a sweep in the order of its strategies; what else varies tells them apart."""
    made: dict[tuple[str, str, str], Curve] = {}
    for point in found:
        if "budget" not in point.values:
            continue
        kind, budget = budget_of(point.values["budget"])
        others = ",".join(f"{name}={value}" for name, value in point.values.items() if name != "budget")
        label = f"{point.strategy}[{others}]" if others else point.strategy
        curve = made.setdefault((point.scenario, kind, label), Curve(point.scenario, kind, label))
        curve.points[budget] = point
    return [
        Curve(one.scenario, one.kind, one.label, dict(sorted(one.points.items())))
        for one in made.values()
        if len(one.points) > 1
    ]


def charts(drawn: Sequence[Curve]) -> dict[str, Chart]:
    """Return a chart for each scenario and kind of budget, by a name for its file."""
    made: dict[str, Chart] = {}
    for scenario, kind in dict.fromkeys((one.scenario, one.kind) for one in drawn):
        own = [one for one in drawn if (one.scenario, one.kind) == (scenario, kind)]
        series = [
            Series(
                one.label,
                Look("competitor", place),
                list(one.points),
                [100 * mean for mean in one.means("average_accuracy")],
                dy=[100 * (point.spread("average_accuracy").sd or 0.0) for point in one.points.values()],
                row=place,
            )
            for place, one in enumerate(own)
        ]
        label, unit = UNITS[kind]
        made[f"budgets-{len(made) + 1}"] = Chart(
            f"Accuracy against {kind} on {scenario}-incremental",
            "lines",
            cost_axis(label, [x for one in series for x in one.x], unit),
            percent_axis("average accuracy (%)", [y for one in series for y in one.y]),
            series,
            f"{LINE_TO_BEAT}, uniform replay, is the line to beat." if any(_is_line(one) for one in own) else "",
        )
    return made


def table(drawn: Sequence[Curve]) -> list[list[str]]:
    """Return heads and rows of the areas in percent, and by how much each is above that of uniform replay."""
    rows = [["scenario", "budget", "strategy", "budgets", *AREAS, f"auc_l_above_{LINE_TO_BEAT}"]]
    for one in drawn:
        areas = [one.area(metric) for metric in AREAS.values()]
        line = next((o for o in drawn if (o.scenario, o.kind) == (one.scenario, one.kind) and _is_line(o)), None)
        beaten = None if line is None else line.area(AREAS["auc_l"])
        above = None if areas[-1] is None or beaten is None else areas[-1] - beaten
        cells = [*areas, above]
        rows.append(
            [one.scenario, one.kind, one.label, " ".join(map(str, one.points))]
            + ["" if value is None else f"{100 * value:.2f}" for value in cells]
        )
    return rows


def as_csv(drawn: Sequence[Curve]) -> str:
    """Return the table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table(drawn))
    return text.getvalue()


def _is_line(curve: Curve) -> bool:
    return curve.label == LINE_TO_BEAT
