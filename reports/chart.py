"""One model of a chart. `charts` defines every chart once; `figures` draws it for paper and `svg` for the page."""

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from clbench.results.result import Floats

# The name of an option in a label, of at most 40 letters.
OPTION = re.compile(r"(?<=[\[,])[a-z]\w{0,39}(?==)")
LookKind = Literal["competitor", "upper", "lower", "task", "axis", "leader", "bar"]
ChartKind = Literal["lines", "points", "bars", "diagram"]
# Position, text, and the side of the text that is there.
Note = tuple[float, float, str, Literal["left", "center", "right"]]


@dataclass(frozen=True)
class Look:
    """The strategy, task or stroke that a mark stands for; each renderer chooses a colour, marker and dashes for it.

    kind: a competitor, the upper reference (joint), the lower one (naive), a task, or a stroke of a diagram.
    place: which competitor or task it is, from 0; of: how many tasks there are.
    """

    kind: LookKind
    place: int = 0
    of: int = 1


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` with its ticks as (value, text); on a logarithmic one 0 is drawn at `low`.

    whole: whether its values are counts, which are printed without decimal places.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]] = ()
    log: bool = False
    whole: bool = False

    @property
    def name(self) -> str:
        """The first part of the label: a comma or colon separates it from a remark."""
        return self.label.split(",")[0].split(":")[0]

    def text(self, value: float, deviation: float | None = None) -> str:
        """Return a value with its deviation as it is printed; an unknown value is printed as -."""
        if not math.isfinite(value):
            return "-"
        spread = "" if deviation is None or math.isnan(deviation) else f" ± {self.text(deviation)}"
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        return (f"{value:,.0f}" if self.whole else f"{round(value, 1) + 0.0:.1f}") + spread

    def share(self, value: float) -> float:
        """Return where a value lies, from 0 at the low end to 1 at the high one; beyond an end, that end."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return min(max((value - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Series:
    """The marks of one strategy or one task in a chart: the points of a line, a single point, or a bar.

    x, y: positions, NaN where nothing is known; a bar reaches from 0 to x at the height y. dx, dy: one standard
    deviation to both sides, NaN where there is none. row: place of the strategy in the comparison, -1 for none. steps:
    what the chart's `step` counts at each point. counts: over how many runs each point is, where that differs.
    """

    name: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    dx: Sequence[float] = ()
    dy: Sequence[float] = ()
    row: int = -1
    steps: Sequence[int] = ()
    counts: Sequence[int] = ()

    @property
    def known(self) -> list[int]:
        """The places of the points that have both coordinates."""
        return [i for i, (x, y) in enumerate(zip(self.x, self.y, strict=True)) if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class HeatMap:
    """A matrix of percentages [rows, columns], NaN where nothing is known, with the names of its rows and columns.

    label: what the values are; down, across: what rows and columns are; prefix: what the page puts before a row's name.
    """

    values: Floats
    rows: Sequence[str]
    columns: Sequence[str]
    label: str
    down: str
    across: str
    prefix: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, the number by which it is sorted, a second and smaller line, its CSS classes."""

    text: str | Markup
    value: float | None = None
    small: str = ""
    css: str = ""


@dataclass(frozen=True)
class Heading:
    """The head of a column of a table; a column of text is aligned left."""

    title: str
    text: bool = False
    note: str = ""


@dataclass(frozen=True)
class NumberTable:
    """A table of the page: its headings, and of each line its strategy's place (-1: none) and its cells."""

    headings: Sequence[Heading]
    lines: Sequence[tuple[int, Sequence[Cell]]]


@dataclass(frozen=True)
class Chart:
    """A chart with axes, and the numbers that the page shows with it.

    caption: what is said below it. runs: how many runs there are, and what a band or whisker is. own_numbers: shown
    in place of those of the points. unit: of y, where a line is read out; step: what stands for x there. rules: where
    on the x axis a task begins. references: values on the x axis at which a reference lies. front: points of the Pareto
    front, by x. texts: notes inside the axes. by_point: its table has a line for each point, and is as
    thin as the drawing. marked: whether the points of a line have markers.
    """

    title: str
    kind: ChartKind
    x: Axis
    y: Axis
    series: Sequence[Series]
    caption: str = ""
    runs: str = ""
    own_numbers: NumberTable | HeatMap | None = None
    unit: str = " %"
    step: str = ""
    rules: Sequence[float] = ()
    references: Sequence[tuple[Look, float]] = ()
    front: Sequence[tuple[float, float]] = ()
    texts: Sequence[Note] = ()
    by_point: bool = False
    marked: bool = True

    @property
    def is_empty(self) -> bool:
        """Whether no point of it is known."""
        return not any(one.known for one in self.series)

    @property
    def numbers(self) -> NumberTable | HeatMap:
        """The numbers behind the chart: a line for each point of lines `by_point`, otherwise for each strategy."""
        if self.own_numbers is not None:
            return self.own_numbers
        if self.by_point:
            headings = [Heading(self.step, text=True), *(Heading(one.name) for one in self.series)]
            return NumberTable(
                headings,
                [
                    (-1, [Cell(str(step)), *(Cell(self.y.text(one.y[k])) for one in self.series)])
                    for k, step in enumerate(self.series[0].steps)
                ],
            )
        if self.kind == "lines":
            titles = [f"{self.x.name} {x}" for x in self.series[0].x]
            lines = [
                [
                    f"{self.y.text(y, d)} (n={one.counts[k]})" if one.counts and one.counts[k] else self.y.text(y, d)
                    for k, (y, d) in enumerate(_pairs(one.y, one.dy))
                ]
                for one in self.series
            ]
        else:
            titles = [axis.name for axis, _ in self._values(self.series[0], 0)]
            lines = [[text for _, text in self._values(one, 0)] for one in self.series]
        return NumberTable(
            [Heading("strategy", text=True), *map(Heading, titles)],
            [(one.row, [Cell(one.name), *map(Cell, texts)]) for one, texts in zip(self.series, lines, strict=True)],
        )

    def told(self, one: Series, k: int) -> str:
        """Return the text that the page shows for a point or a bar under the pointer."""
        return f"{one.name}: " + ", ".join(f"{axis.name} {text}" for axis, text in self._values(one, k))

    def _values(self, one: Series, k: int) -> list[tuple[Axis, str]]:
        x = self.x, self.x.text(*_pairs(one.x, one.dx)[k])
        return [x] if self.kind == "bars" else [x, (self.y, self.y.text(*_pairs(one.y, one.dy)[k]))]

    def thinned(self, most: int) -> "Chart":
        """Return a chart `by_point` with about `most` points: of every so many the lowest, so that no dip is lost."""
        n = max((len(one.x) for one in self.series), default=0)
        if not self.by_point or n <= most:
            return self
        kept = lowest([one.y for one in self.series], math.ceil(n / most))

        def cut(values: Sequence[Any]) -> list[Any]:
            return [values[k] for k in kept] if values else []

        own = self.own_numbers
        return replace(
            self,
            series=[replace(one, x=cut(one.x), y=cut(one.y), steps=cut(one.steps)) for one in self.series],
            own_numbers=replace(own, lines=cut(own.lines)) if isinstance(own, NumberTable) else own,
            caption=f"of {n} points the lowest of every {math.ceil(n / most)}",
        )


@dataclass(frozen=True)
class Panel:
    """One strategy's part of a figure of panels: its name, look and row, a chart or a heat map, and a caption."""

    name: str
    look: Look
    row: int
    drawing: Chart | HeatMap
    caption: str = ""


@dataclass(frozen=True)
class Panels:
    """The same chart of each strategy, side by side, as a part of the page or one figure.

    short: the title in the page's contents. about: what the page says first; table: what it shows first.
    file: where the numbers are of those strategies that the page has no room for.
    """

    title: str
    short: str
    about: str
    panels: Sequence[Panel]
    table: NumberTable | None = None
    file: str = "run.json"


def lowest(curves: Sequence[Sequence[float]], every: int) -> list[int]:
    """Return the places to draw of curves over the same steps: of every so many the lowest on average, and the last."""
    stack = np.array(curves, dtype=np.float64)
    known = ~np.isnan(stack)
    counts = known.sum(axis=0)
    total = np.where(known, stack, 0.0).sum(axis=0)
    mean = np.divide(total, counts, out=np.full(len(total), np.inf), where=counts > 0)
    places = {start + int(np.argmin(mean[start : start + every])) for start in range(0, len(mean), every)}
    return sorted(places | {len(mean) - 1})


def text_width(text: str, letters: float = 1.0) -> float:
    """Return at least the width of text in a usual sans-serif typeface with letters of that size."""
    return letters * sum(map(_letter_width, text))


def _letter_width(letter: str) -> float:
    """Return the width of a letter in its size, no less than that of DejaVu Sans, which is wider than most."""
    if unicodedata.combining(letter):
        return 0.0
    if ord(letter) > 0x2FF:
        # Matplotlib draws a letter for which there is no typeface as a box that is as wide.
        return 1.2
    if letter in "WM@%mw±=+<>":
        return 1.05
    if letter in " .,:;|!'ijl":
        return 0.34
    if letter in "ftrIJ()[]/\\-":
        return 0.42
    return 0.8 if letter.isupper() else 0.64


def shortened(text: str, room: float, letters: float = 1.0) -> str:
    """Return text that fits into the room; of one that is too long, its two ends around an ellipsis.

    The options of a label that is too long go by the first letters of their words, or else by their values alone, so
    that what tells labels apart stays: `er[batch_size=8]` is er[bs=8] or er[8].
    """
    if text_width(text, letters) > room:
        text = OPTION.sub(
            lambda name: re.sub(r"_?([a-z])[a-z0-9]*", r"\1", name[0]) if "_" in name[0] else name[0], text
        )
    if text_width(text, letters) > room:
        text = OPTION.sub("", text).replace("[=", "[").replace(",=", ",")
    fitted, kept = text, len(text)
    while kept and text_width(fitted, letters) > room:
        kept -= 1
        fitted = f"{text[: kept - kept // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
    return fitted


def spaced(wanted: Sequence[float], gap: float, high: float) -> list[float]:
    """Return heights for names, none nearer to another than `gap` and none above `high`, near the heights wanted.

    In a chart with the most names that there is room for, the lowest ones end below.
    """
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    heights = list(wanted)
    for below, k in itertools.pairwise(order):
        heights[k] = max(heights[k], heights[below] + gap)
    for k in reversed(order):
        # A name that was pushed out at the top moves down again.
        heights[k] = min(heights[k], high)
        high = heights[k] - gap
    return heights


def axis(label: str, values: Iterable[float], *, zero: bool = False, margin: float = 0.06) -> Axis:
    """Return a linear axis that holds the values; zero: it begins at 0."""
    known = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = (0.0 if zero else min(known)), max(known)
    span = (high - low) or abs(high) or 1.0
    low, high = (low if zero else low - margin * span), high + margin * span
    return Axis(label, low, high, _ticks(low, high))


def percent_axis(label: str, values: Iterable[float] = (100,)) -> Axis:
    """Return an axis from 0 to 100 percent; to 20, 30, 40 or 50 where none of the values is larger."""
    most = max((v for v in values if math.isfinite(v)), default=100)
    high = next((v for v in (20, 30, 40, 50) if most <= v), 100)
    return Axis(label, 0, high, [(v, str(v)) for v in range(0, high + 1, {20: 5, 100: 25}.get(high, 10))])


def steps_axis(label: str, n: int, most: int = 10) -> Axis:
    """Return an axis of the tasks 0 to n - 1 with at most so many ticks."""
    every = math.ceil(n / most)
    return Axis(label, -0.3, max(n - 0.7, 0.7), [(i, str(i)) for i in range(0, n, every)])


def names_axis(names: Sequence[str]) -> Axis:
    """Return an axis of names, the first at the top."""
    return Axis("", len(names) - 0.5, -0.5, list(enumerate(names)))


def quantity_axis(label: str, values: Iterable[float], unit: str) -> Axis:
    """Return a linear axis of bytes (B) or seconds (s) that begins at 0."""
    linear = axis(label, values, zero=True)
    ticks = [(v, quantity(v, unit)) for v, _ in linear.ticks]
    return replace(linear, ticks=ticks, whole=unit == "B")


def cost_axis(label: str, values: Iterable[float], unit: str) -> Axis:
    """Return an axis of costs, in orders of magnitude where they differ by more than ten times."""
    known = [v for v in values if math.isfinite(v)] or [0.0]
    above = [v for v in known if v > 0]
    if not above or max(above) / min(above) <= 10:
        return quantity_axis(label, known, unit)
    low, high = math.log10(min(above)), math.log10(max(above)) + 0.1
    whole = range(math.ceil(low), math.floor(high) + 1)
    # Within two orders of magnitude the powers of ten alone would leave most of the axis without a tick.
    factors = (1, 2, 5) if high - low < 2 else (1,)
    places = [f * 10.0**k for k in (whole.start - 1, *whole) for f in factors]
    ticks = [(v, quantity(v, unit)) for v in places if low <= math.log10(v) <= high]
    while len(ticks) > 6:
        ticks = ticks[::2]
    first = 10.0 ** (low - 0.1 if min(known) > 0 else low - 0.5)
    zero = [] if min(known) > 0 else [(first, "0")]
    return Axis(label, first, 10.0**high, [*zero, *ticks], log=True, whole=unit == "B")


def quantity(value: float, unit: str) -> str:
    """Return bytes (B), operations (FLOP) or seconds (s) in a few characters: 1.9 MB, 20 GFLOP, 0.35 s, 1.5 h."""
    if unit == "FLOP":
        name, size = next(
            (n, s) for n, s in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("", 1)) if value >= s or s == 1
        )
        return f"{_short(value / size)} {name}FLOP"
    if unit == "B":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{_short(value / size)} {name}"
        return f"{_short(value)} B"
    for name, size in (("h", 3600.0), ("min", 60.0)):
        if value >= 2 * size:
            return f"{_short(value / size)} {name}"
    return f"{_short(value)} s"


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    rough = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(k * step, f"{k * step:.{digits}f}") for k in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _pairs(values: Sequence[float], deviations: Sequence[float]) -> list[tuple[float, float | None]]:
    known: Sequence[float | None] = deviations or [None] * len(values)
    return list(zip(values, known, strict=True))
