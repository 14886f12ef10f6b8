"""The columns of a comparison, declared once for the terminal, Markdown, LaTeX, CSV and the page.

A metric of `clbench.metrics.METRICS` has a column in Markdown, CSV and on the page without a line here; `TITLES` gives
it another title, or a place in the terminal and in LaTeX.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clbench.reports.comparison import Comparison
from clbench.reports.strategy_runs import StrategyRuns
from clbench.results.metrics import METRICS, Metric
from clbench.results.record import MatrixName
from clbench.support.text import printable

Output = Literal["terminal", "markdown", "latex", "page", "runs", "storage"]
Unit = Literal["%", "points", "steps", "s", "items", "B", "kB"]

TITLES: dict[str, dict[Output, str]] = {
    "average_incremental_accuracy": {
        "terminal": "average\nincremental",
        "latex": r"Avg.\ incremental",
        "runs": "average incremental accuracy %",
    },
    "average_incremental_accuracy_without_first": {"page": "average incremental without first %"},
    "forgetting": {"terminal": "\nforgetting", "latex": "Forgetting", "runs": "forgetting %"},
    "learning_accuracy": {"terminal": "learning\naccuracy", "latex": "Learning acc.", "page": "learning accuracy %"},
    "seconds": {"terminal": "\nseconds", "page": "seconds", "runs": "seconds"},
    "extra_bytes": {"storage": "all but the model, bytes"},
}
UNITS: dict[str, Unit] = {"seconds": "s", "items": "items", "bytes": "B"}
# The page begins with these columns, whose order is not that of the metrics.
FIRST_ON_PAGE = (
    *("average_accuracy", "forgetting", "other", "average_incremental_accuracy", "learning_accuracy", "seconds"),
    "extra_bytes",
)


@dataclass(frozen=True)
class Column:
    """A number of the strategies as a column.

    number: its name among the numbers of a run. titles: what each output that has the column calls it; `runs` and
    `storage` are the page's tables of single runs and of what is stored. metric: the metric that it is; None for a
    cost. lead: its place on the page.
    """

    number: str
    titles: Mapping[Output, str]
    unit: Unit
    metric: Metric | None = None
    lead: int = len(FIRST_ON_PAGE)

    def text(self, value: float) -> str:
        """Return a value as it is printed: percent and times with a decimal place, counts and bytes without."""
        if self.metric:
            return percent(value)
        return f"{value / 1000:.1f}" if self.unit == "kB" else f"{value:.1f}" if self.unit == "s" else f"{value:.0f}"

    def mean(self, row: StrategyRuns) -> str:
        """Return mean and standard deviation of a row, and over how many runs where that is not all of them."""
        mean, sd, n = row.spread(self.number)
        if mean is None:
            return "-"
        text = self.text(mean)
        # A count that is the same in every run needs no deviation.
        if sd is not None and (sd > 0 or self.metric):
            text += f" ± {self.text(sd)}"
        return text if n == row.n else f"{text} (n={n})"

    @property
    def is_own(self) -> bool:
        """Whether the column is a metric of the user's own."""
        return self.metric is not None and self.metric.is_own

    @property
    def lower_is_better(self) -> bool:
        """Whether the column is a metric and a lower value of it is better."""
        return self.metric is not None and self.metric.better == "lower"

    def is_best(self, part: Comparison, row: StrategyRuns) -> bool:
        """Tell whether a row is the best competitor in a metric, as printed: equal texts are equally good.

        What has learned nothing is never the best, though it has nothing to forget either; nor is naive, beside which a
        single competitor is the best.
        """
        competing = {one.label: one for one in part.rows if not one.is_reference and one.spread(self.number).n}
        known = {
            label: one.spread(self.number).mean or 0.0
            for label, one in competing.items()
            if one.learns and not one.is_line
        }
        if self.metric is None or len(competing) < 2 or row.label not in known:
            return False
        best = min(known.values()) if self.lower_is_better else max(known.values())
        return percent(known[row.label]) == percent(best)


def columns(part: Comparison) -> list[Column]:
    """Return every column of a comparison in the order of all outputs but the page: metrics, then costs."""
    other = other_matrix(part)
    headline, beside = part.matrix(part.headline), part.matrix(other)
    accuracy = METRICS["average_accuracy"]
    titles: dict[str, dict[Output, str]] = {
        "average_accuracy": {
            "terminal": headline.replace("incremental", "incr.") + "\naccuracy",
            "markdown": f"**{headline} (headline)**",
            "latex": f"{headline} acc.".capitalize(),
            "page": f"{headline} accuracy %",
            "runs": "average accuracy %",
        },
        f"{other}_accuracy": {
            "terminal": beside.replace("incremental", "incr.") + "\naccuracy",
            "markdown": beside,
            "latex": f"{beside} acc.".capitalize(),
            "page": f"{beside} accuracy %",
        },
    }
    metrics = {"average_accuracy": accuracy, f"{other}_accuracy": accuracy} | METRICS
    found = [
        Column(
            name,
            titles.get(name) or _titles(name),
            metric.unit,
            metric,
            _lead("other" if name == f"{other}_accuracy" else name),
        )
        for name, metric in metrics.items()
    ]
    # The headline matrix has this number under two names; under this one it is in the CSV files alone.
    found.append(Column(f"{part.headline}_accuracy", {}, accuracy.unit, accuracy))
    for name in (
        "steps",
        "training_flops",
        "inference_flops_per_image",
        "unused_budget",
        *part.names("seconds"),
        *part.names("_items"),
        *part.names("_bytes"),
    ):
        kind, _, ending = name.rpartition("_")
        unit = UNITS.get(ending, "steps")
        titles_of: dict[Output, str] = {"markdown": words(name)}
        titles_of |= TITLES.get(name, {})
        if unit in ("items", "B"):
            titles_of.setdefault("storage", f"{words(kind)}, {ending}")
        found.append(Column(name, titles_of, unit, lead=_lead(name)))
    return [
        *found,
        Column("extra_bytes", {"terminal": "extra\nkB", "page": "kB stored"}, "kB", lead=_lead("extra_bytes")),
    ]


def columns_of(part: Comparison, output: Output) -> list[Column]:
    """Return the columns of an output in its order, without those that no row has a number for.

    The table of the terminal has the same columns always, and the user's own metrics beside them.
    """
    found = [column for column in columns(part) if output in column.titles]
    always = [column for column in found if output == "terminal" and not column.is_own]
    if output == "page":
        found.sort(key=lambda column: column.lead)
    return [c for c in found if c in always or any(row.spread(c.number).n for row in part.rows)]


def other_matrix(part: Comparison) -> MatrixName:
    """Return the matrix that is not the headline one."""
    return "task_aware" if part.headline == "class_incremental" else "class_incremental"


def words(name: str) -> str:
    """Return the name of a number as words that a Markdown table can hold."""
    return printable(name).replace("_", " ").replace("|", "/")


def percent(value: float | None) -> str:
    """Return a share as percent with one decimal place, and - where it is not known."""
    if value is None or math.isnan(value):
        return "-"
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(100 * value, 1) + 0.0:.1f}"


def signed(value: float | None) -> str:
    """Return a difference of shares in percentage points with its sign, and - where it is not known."""
    return "-" if value is None else f"{round(100 * value, 1) + 0.0:+.1f}"


def _lead(name: str) -> int:
    return FIRST_ON_PAGE.index(name) if name in FIRST_ON_PAGE else len(FIRST_ON_PAGE)


def _titles(metric: str) -> dict[Output, str]:
    found: dict[Output, str] = {"markdown": words(metric), "page": f"{words(metric)} %"}
    if METRICS[metric].is_own:
        found["terminal"] = words(metric)
    return found | TITLES.get(metric, {})
