"""Charts as inline SVG: small, scalable, coloured by the page's style sheet, read out by its script.

A line's points are written in the units of the data, under a transform, so that what the script shows on hover are the
drawn numbers themselves.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 280
SMALL = (300, 180)
COLOURS, MARKERS, DASHES = 6, 8, 3


@dataclass(frozen=True)
class Style:
    """How a strategy looks in every chart: CSS class of its colour and dashes, id of its marker."""

    css: str
    marker: str


@dataclass(frozen=True)
class Line:
    """A line of a chart: whose it is, what it is called, its points, and one deviation a point where there is one."""

    row: int
    name: str
    style: Style
    points: Sequence[tuple[float, float]]
    deviations: Sequence[float] = ()


@dataclass(frozen=True)
class Point:
    """A point of a scatter: position, deviations to both sides (0: none), and the text that is read out."""

    row: int
    style: Style
    x: float
    y: float
    text: str
    dx: float = 0.0
    dy: float = 0.0


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, from where to where, and its ticks as (value, text); logarithmic beyond `zero`.

    zero: on a logarithmic axis, the value at which 0 is drawn, to the left of everything else.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    zero: float | None = None

    def share(self, value: float) -> float:
        """Return where a value lies, from 0 at the low end to 1 at the high one."""
        if self.zero is not None:
            value = math.log10(max(value, self.zero))
        return (value - self.low) / (self.high - self.low)


def style(index: int) -> Style:
    """Return the look of the competitor of that number."""
    return Style(f"c{index % COLOURS} d{index // COLOURS % DASHES}", f"m{index % MARKERS}")


UPPER, LOWER = Style("cj dr", "mj"), Style("cn dr", "mn")


def steps_axis(label: str, n: int) -> Axis:
    """Return an axis of the integers 0 to n - 1."""
    every = math.ceil(n / 10)
    return Axis(label, -0.3, max(n - 0.7, 0.7), [(i, str(i)) for i in range(0, n, every)])


def axis(label: str, values: Iterable[float], *, zero: bool = False, margin: float = 0.06) -> Axis:
    """Return a linear axis that holds the values; zero: it begins at 0."""
    known = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = (0.0 if zero else min(known)), max(known)
    span = (high - low) or abs(high) or 1.0
    low, high = (low if zero else low - margin * span), high + margin * span
    return Axis(label, low, high, _ticks(low, high))


def percent_axis(label: str) -> Axis:
    """Return an axis from 0 to 100 percent."""
    return Axis(label, 0, 100, [(v, str(v)) for v in (0, 25, 50, 75, 100)])


def cost_axis(label: str, values: Sequence[float], unit: str) -> Axis:
    """Return an axis of costs, in orders of magnitude where they differ by more than twenty times."""
    above = [v for v in values if v > 0]
    if not above or max(above) / min(above) <= 20:
        linear = axis(label, values, zero=True)
        return Axis(label, linear.low, linear.high, [(v, quantity(v, unit)) for v, _ in linear.ticks])
    low, high = math.floor(math.log10(min(above))), math.log10(max(above)) + 0.1
    ticks = [(10.0**k, quantity(10.0**k, unit)) for k in range(low, math.floor(high) + 1)]
    while len(ticks) > 6:
        ticks = ticks[::2]
    if min(values) > 0:
        return Axis(label, math.log10(min(above)) - 0.1, high, [t for t in ticks if t[0] >= min(above)], 1e-300)
    zero = 10.0 ** (low - 0.5)
    return Axis(label, low - 0.6, high, [(zero, "0"), *ticks], zero)


def quantity(value: float, unit: str) -> str:
    """Return a cost in a few characters: 1.9 MB, 350 ms, 12 s, 1.5 h."""
    if unit == "B":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{_short(value / size)} {name}"
        return f"{_short(value)} B"
    for name, size in (("h", 3600.0), ("min", 60.0)):
        if value >= 2 * size:
            return f"{_short(value / size)} {name}"
    return f"{_short(value)} s"


def lines(
    series: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    title: str,
    unit: str = " %",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    boundaries: Sequence[float] = (),
) -> Markup:
    """Return a line chart; a deviation is drawn as a band. boundaries: x of vertical rules, where a task begins."""
    frame = _Frame(x, y, size)
    marks, drawn, bands = [], [], []
    for line in series:
        known = [(a, b, d) for (a, b), d in _with_deviations(line) if math.isfinite(b)]
        if not known:
            continue
        # A line of one point is drawn as a dot: its ends are round.
        dot = " dot" if len(known) == 1 else ""
        about = f'class="ln {line.style.css}{dot}" data-s="{line.row}" data-n="{escape(line.name)}"'
        spread = f' data-e="{" ".join(_n(d) for *_, d in known)}"' if line.deviations else ""
        points = " ".join(f"{_n(a)},{_n(b)}" for a, b, _ in (known * 2 if dot else known))
        drawn.append(f'<polyline {about}{spread} points="{points}"/>')
        if any(d > 0 for *_, d in known):
            edge = [(a, b + d) for a, b, d in known] + [(a, b - d) for a, b, d in reversed(known)]
            corners = " ".join(f"{_n(a)},{_n(min(max(b, y.low), y.high))}" for a, b in edge)
            bands.append(f'<polygon class="band {line.style.css}" data-s="{line.row}" points="{corners}"/>')
        if size[0] == WIDTH and len(known) <= 30:
            marks += [_mark(line.style, line.row, frame.x(a), frame.y(b)) for a, b, _ in known]
    rules = "".join(
        f'<path class="rule" d="M{_n(frame.x(at))} {_n(frame.top)}V{_n(frame.bottom)}"/>' for at in boundaries
    )
    inside = f'{rules}<g transform="{frame.transform}">{"".join(bands)}{"".join(drawn)}</g>{"".join(marks)}'
    return frame.svg(inside, title, f' data-x="{escape(x.label)}" data-u="{escape(unit)}"')


def scatter(
    points: Sequence[Point], x: Axis, y: Axis, *, title: str, front: Sequence[tuple[float, float]] = ()
) -> Markup:
    """Return a scatter; `front` is drawn as steps: nothing known lies to the left of it and above."""
    frame = _Frame(x, y, (WIDTH, HEIGHT))
    parts = []
    if front:
        path = f"M{_n(frame.x(front[0][0]))} {_n(frame.bottom)}"
        path += "".join(f"{'V' + _n(frame.y(b)) if i == 0 else ''}" for i, (_, b) in enumerate(front))
        path += "".join(f"H{_n(frame.x(a))}V{_n(frame.y(b))}" for a, b in front[1:]) + f"H{_n(frame.right)}"
        parts.append(f'<path class="front" d="{path}"/>')
    for point in points:
        for dx, dy in ((point.dx, 0.0), (0.0, point.dy)):
            if dx or dy:
                a, b = (frame.x(point.x - dx), frame.x(point.x + dx)), (frame.y(point.y - dy), frame.y(point.y + dy))
                path = f"M{_n(a[0])} {_n(b[0])}L{_n(a[1])} {_n(b[1])}"
                parts.append(f'<path class="err {point.style.css}" data-s="{point.row}" d="{path}"/>')
    parts += [_mark(p.style, p.row, frame.x(p.x), frame.y(p.y), p.text) for p in points]
    return frame.svg("".join(parts), title)


def interval(style: Style, low: float, mean: float, high: float, x: Axis) -> Markup:
    """Return a mark with its interval on one line, for a cell of a table."""
    at = [4 + 132 * x.share(min(max(v, x.low), x.high)) for v in (low, mean, high)]
    whisker = f'<path class="err {style.css}" d="M{_n(at[0])} 9H{_n(at[2])}"/>' if high > low else ""
    return Markup(
        f'<svg class="forest" viewBox="0 0 140 18" width="140" height="18" aria-hidden="true">{whisker}'
        f'<use class="{style.css}" href="#{style.marker}" x="{_n(at[1])}" y="9"/></svg>'
    )


class _Frame:
    """The area of a chart inside its axes, and where a value lies on it."""

    def __init__(self, x: Axis, y: Axis, size: tuple[int, int]) -> None:
        self.axes, self.size = (x, y), size
        self.left, self.right = 46.0, size[0] - 12.0
        self.top, self.bottom = 10.0, size[1] - 38.0

    def x(self, value: float) -> float:
        share = min(max(self.axes[0].share(value), 0.0), 1.0)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        share = min(max(self.axes[1].share(value), 0.0), 1.0)
        return self.bottom - share * (self.bottom - self.top)

    @property
    def transform(self) -> str:
        """The matrix from the data's units to those of the drawing; both axes linear."""
        x, y = self.axes
        wide = (self.right - self.left) / (x.high - x.low)
        high = (self.bottom - self.top) / (y.high - y.low)
        numbers = (wide, 0, 0, -high, self.left - wide * x.low, self.bottom + high * y.low)
        return f"matrix({' '.join(f'{n:.6g}' for n in numbers)})"

    def svg(self, inside: str, title: str, data: str = "") -> Markup:
        x, y = self.axes
        width, height = self.size
        parts = []
        for value, text in y.ticks:
            at = _n(self.y(value))
            parts.append(f'<path class="grid" d="M{_n(self.left)} {at}H{_n(self.right)}"/>')
            parts.append(f'<text class="e" x="{_n(self.left - 6)}" y="{at}" dy=".35em">{escape(text)}</text>')
        for value, text in x.ticks:
            parts.append(f'<text class="m" x="{_n(self.x(value))}" y="{_n(self.bottom + 15)}">{escape(text)}</text>')
        middle = _n((self.left + self.right) / 2)
        parts.append(f'<text class="m a" x="{middle}" y="{height - 5}">{escape(x.label)}</text>')
        turned = f"translate(11 {_n((self.top + self.bottom) / 2)}) rotate(-90)"
        parts.append(f'<text class="m a" transform="{turned}">{escape(y.label)}</text>')
        parts.append(f'<path class="axis" d="M{_n(self.left)} {_n(self.bottom)}H{_n(self.right)}"/>')
        return Markup(
            f'<svg class="chart" viewBox="0 0 {width} {height}" tabindex="0" role="group" '
            f'aria-roledescription="chart" aria-label="{escape(title)}"{data}>{"".join(parts)}{inside}</svg>'
        )


def _mark(style: Style, row: int, x: float, y: float, text: str = "") -> str:
    told = f' data-t="{escape(text)}"' if text else ""
    return f'<use class="{style.css}" data-s="{row}"{told} href="#{style.marker}" x="{_n(x)}" y="{_n(y)}"/>'


def _with_deviations(line: Line) -> Iterable[tuple[tuple[float, float], float]]:
    return zip(line.points, line.deviations or [0.0] * len(line.points), strict=True)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    rough = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(k * step, f"{k * step:.{digits}f}") for k in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _n(value: float) -> str:
    """Return a coordinate with two digits after the point, none of them a trailing 0."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
