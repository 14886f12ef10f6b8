"""The tables of the HTML page: cells, what a number looks like in one, and what all parts of the page share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from clbench.reports.svg import Style
from clbench.reports.tables import METRICS, Row, percent
from clbench.results.result import Floats
from clbench.results.statistics import Spread


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
    """A table: its columns, and of each row its index among the strategies (-1: none) and its cells."""

    columns: Sequence[Column]
    rows: Sequence[tuple[int, Sequence[Cell]]]


@dataclass(frozen=True)
class Figure:
    """A chart or a heat map with what is said below it, and the numbers behind it."""

    title: str
    drawing: str = ""
    caption: str = ""
    table: Table | None = None
    row: int = -1
    style: Style | None = None


def named(row: Row, look: Style) -> Cell:
    """Return the name of a row with its mark from the charts, what it is below."""
    mark = '<svg class="key" viewBox="0 0 14 14" aria-hidden="true"><use class="{}" href="#{}" x="7" y="7"/></svg>'
    name = Markup(mark + " <bdi>{}</bdi>").format(look.css, look.marker, row.label)
    return Cell(name, small=role(row) or row.runs[0].family)


def metric(row: Row, name: str, *, best: bool = False) -> Cell:
    """Return a number of a row with its deviation, and the interval of its mean below."""
    mean, sd, n = row.spread(name)
    if mean is None:
        return Cell("-")
    if name not in METRICS:
        return Cell(f"{mean / 1000:,.1f}" if name.endswith("bytes") else f"{mean:.1f}", mean)
    ends = row.interval(name)
    small = "" if ends is None else f"{percent(ends.low)} to {percent(ends.high)}"
    if n < len(row.runs):
        small = f"{small} n={n}".strip()
    return Cell(plus(Spread(mean, sd, n)), mean, small, "best" if best else "")


def or_dash(value: float | None) -> str:
    """Return a share as percent; what is undefined is -."""
    return "-" if value is None or math.isnan(value) else percent(value)


def plus(value: Spread) -> str:
    """Return a mean that is known, as percent, with its deviation where there is one."""
    assert value.mean is not None
    return percent(value.mean) if value.sd is None else f"{percent(value.mean)} ± {percent(value.sd)}"


def spread_cell(value: Spread) -> Cell:
    """Return a mean with its deviation as a cell."""
    return Cell("-") if value.mean is None else Cell(plus(value), value.mean)


def is_line(row: Row) -> bool:
    """Tell whether the row is a reference line: the upper one (joint) or the lower one (naive)."""
    return row.is_reference or row.is_naive


def role(row: Row) -> str:
    """Return which reference the row is; nothing for a competitor."""
    return "reference: reads the data of all tasks" if row.is_reference else "lower reference" if is_line(row) else ""


def mean_over_runs(stack: Floats) -> Floats:
    """Return the mean over the first axis, NaN where nothing is known."""
    known = ~np.isnan(stack)
    counts = known.sum(axis=0)
    total = np.where(known, stack, 0.0).sum(axis=0)
    mean: Floats = np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
    return mean
