"""Charts as inline SVG for the page: small, scalable, coloured by its style sheet, read out by its script.

The points of a line are written in the units of the data, under a transform, so that what the script reads out are the
drawn numbers themselves.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from clbench.reports.chart import Axis, Cell, Chart, Heading, HeatMap, Look, NumberTable, Series

WIDE, SMALL = (440, 280), (300, 180)
COLOURS, MARKERS, DASHES = 6, 8, 3
# Points of a line up to which each has a marker, and letters of a name beside a bar.
MOST_MARKED, MOST_LETTERS = 30, 20
SHADES = (
    *("#00224e", "#002b62", "#083370", "#243c6e", "#35456c", "#434e6c", "#4f576c", "#5b606e", "#666970", "#727274"),
    *("#7d7c78", "#888578", "#948e77", "#a19975", "#aea371", "#bcae6c", "#c8b866", "#d6c35d", "#e5cf52", "#f3db42"),
    "#fee838",
)
"""The colours of a heat map from 0 to 100 percent: cividis (Nunez et al. 2018, doi:10.1371/journal.pone.0199239)."""
# The first of SHADES on which black reads better than white.
BLACK_FROM = 11


def css(look: Look) -> str:
    """Return the CSS classes that give a mark its colour and dashes."""
    if look.kind == "competitor":
        return f"c{look.place % COLOURS} d{look.place // COLOURS % DASHES}"
    if look.kind == "task":
        return f"t{round(7 * look.place / max(look.of - 1, 1))}"
    return {"upper": "cj dr", "lower": "cn dr"}.get(look.kind, look.kind)


def marker(look: Look) -> str:
    """Return the id of a strategy's marker."""
    return {"upper": "mj", "lower": "mn"}.get(look.kind, f"m{look.place % MARKERS}")


def key(look: Look) -> Markup:
    """Return a strategy's marker for a line of text."""
    return Markup(
        f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true">'
        f'<use class="{css(look)}" href="#{marker(look)}" x="7" y="7"/></svg>'
    )


def interval(look: Look, low: float, mean: float, high: float, x: Axis) -> Markup:
    """Return a mark with its interval on one line, for a cell of a table."""
    at = [4 + 132 * x.share(value) for value in (low, mean, high)]
    whisker = f'<path class="err {css(look)}" d="M{_n(at[0])} 9H{_n(at[2])}"/>' if high > low else ""
    return Markup(
        f'<svg class="forest" viewBox="0 0 140 18" width="140" height="18" aria-hidden="true">{whisker}'
        f'<use class="{css(look)}" href="#{marker(look)}" x="{_n(at[1])}" y="9"/></svg>'
    )


def heat_table(heat: HeatMap) -> NumberTable:
    """Return a heat map as a table whose cells are coloured; with many columns its numbers are whole."""
    digits = 1 if len(heat.columns) <= 6 else 0
    lines = []
    for name, values in zip(heat.rows, heat.values.tolist(), strict=True):
        cells = [
            Cell("") if math.isnan(v) else Cell(f"{v:.{digits}f}", css=f"h{round(v / 100 * (len(SHADES) - 1))}")
            for v in values
        ]
        lines.append((-1, [Cell(heat.prefix + name), *cells]))
    return NumberTable([Heading("", text=True), *map(Heading, heat.columns)], lines)


def draw(chart: Chart, *, small: bool = False) -> Markup:
    """Return a chart as an SVG element, to which the script adds the read-outs."""
    frame = _Frame(chart, SMALL if small else WIDE)
    marks = {"lines": _lines, "points": _points, "bars": _bars, "diagram": _strokes}[chart.kind](chart, frame, small)
    rules = [f'<path class="rule" d="M{_n(frame.x(at))} {_n(frame.top)}V{_n(frame.bottom)}"/>' for at in chart.rules]
    texts = [
        f'<text class="{ {"left": "s", "center": "m", "right": "e"}[side] }" x="{_n(frame.x(x))}" y="{_n(frame.y(y))}" '
        f'dy=".35em">{escape(text)}</text>'
        for x, y, text, side in chart.texts
    ]
    data = (
        f' data-x="{escape(chart.step or chart.x.label)}" data-u="{escape(chart.unit)}"'
        if chart.kind == "lines"
        else ""
    )
    width, height = frame.size
    axes = [] if chart.kind == "diagram" else frame.axes()
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" tabindex="0" role="group" aria-roledescription="chart" '
        f'aria-label="{escape(chart.title)}"{data}>{"".join([*axes, *rules, *marks, *texts])}</svg>'
    )


class _Frame:
    """The area of a chart inside its axes, and where a value lies on it."""

    def __init__(self, chart: Chart, size: tuple[int, int]) -> None:
        self.across, self.up = chart.x, chart.y
        longest = max((len(text) for _, text in chart.y.ticks), default=0)
        self.left, self.right, self.top = max(46.0, 20.0 + 6 * min(longest, MOST_LETTERS)), size[0] - 12.0, 10.0
        if chart.kind == "bars":
            size = size[0], 60 + 22 * len(chart.series)
        elif chart.kind == "diagram":
            size = size[0], round(22 * abs(chart.y.high - chart.y.low))
            self.left, self.right, self.top = 0.0, float(size[0]), 0.0
        self.size = size
        self.bottom = size[1] - (0.0 if chart.kind == "diagram" else 38.0)

    def x(self, value: float) -> float:
        return self.left + self.across.share(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - self.up.share(value) * (self.bottom - self.top)

    @property
    def transform(self) -> str:
        """The matrix from the data's units to those of the drawing; both axes linear."""
        wide = (self.right - self.left) / (self.across.high - self.across.low)
        high = (self.bottom - self.top) / (self.up.high - self.up.low)
        numbers = (wide, 0, 0, -high, self.left - wide * self.across.low, self.bottom + high * self.up.low)
        return f"matrix({' '.join(f'{n:.6g}' for n in numbers)})"

    def axes(self) -> list[str]:
        parts = []
        for value, text in self.up.ticks:
            at = _n(self.y(value))
            short = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
            parts.append(f'<path class="grid" d="M{_n(self.left)} {at}H{_n(self.right)}"/>')
            parts.append(f'<text class="e" x="{_n(self.left - 6)}" y="{at}" dy=".35em">{escape(short)}</text>')
        for value, text in self.across.ticks:
            parts.append(f'<text class="m" x="{_n(self.x(value))}" y="{_n(self.bottom + 15)}">{escape(text)}</text>')
        middle = _n((self.left + self.right) / 2)
        parts.append(f'<text class="m a" x="{middle}" y="{self.size[1] - 5}">{escape(self.across.label)}</text>')
        turned = f"translate(11 {_n((self.top + self.bottom) / 2)}) rotate(-90)"
        parts.append(f'<text class="m a" transform="{turned}">{escape(self.up.label)}</text>')
        parts.append(f'<path class="axis" d="M{_n(self.left)} {_n(self.bottom)}H{_n(self.right)}"/>')
        return parts


def _lines(chart: Chart, frame: _Frame, small: bool) -> list[str]:
    """Return the lines with their bands under one transform, and the markers over them."""
    bands, drawn, marks = [], [], []
    for one in chart.series:
        if not (places := one.known):
            continue
        known = [(one.x[k], one.y[k], one.dy[k] if one.dy and math.isfinite(one.dy[k]) else 0.0) for k in places]
        look = css(one.look)
        # A line of one point is drawn as a dot, since its ends are round.
        dot = " dot" if len(known) == 1 else ""
        data = f' data-e="{" ".join(_n(d) for *_, d in known)}"' if one.dy else ""
        data += f' data-p="{" ".join(str(one.steps[k]) for k in places)}"' if one.steps else ""
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y, _ in (known * 2 if dot else known))
        about = f'class="ln {look}{dot}" data-s="{one.row}" data-n="{escape(one.name)}"{data}'
        drawn.append(f'<polyline {about} points="{points}"/>')
        if any(d > 0 for *_, d in known):
            edge = [(x, y + d) for x, y, d in known] + [(x, y - d) for x, y, d in reversed(known)]
            corners = " ".join(f"{_n(x)},{_n(min(max(y, chart.y.low), chart.y.high))}" for x, y in edge)
            bands.append(f'<polygon class="band {look}" data-s="{one.row}" points="{corners}"/>')
        if chart.marked and not small and len(known) <= MOST_MARKED:
            marks += [_mark(one, frame.x(x), frame.y(y)) for x, y, _ in known]
    return [f'<g transform="{frame.transform}">', *bands, *drawn, "</g>", *marks]


def _points(chart: Chart, frame: _Frame, _: bool) -> list[str]:
    """Return the Pareto front as steps, the whiskers, and the markers over them."""
    parts = []
    if chart.front:
        (x, y), *others = chart.front
        path = f"M{_n(frame.x(x))} {_n(frame.bottom)}V{_n(frame.y(y))}"
        path += "".join(f"H{_n(frame.x(x))}V{_n(frame.y(y))}" for x, y in others) + f"H{_n(frame.right)}"
        parts.append(f'<path class="front" d="{path}"/>')
    for one in chart.series:
        for k in one.known:
            parts += [_whisker(one, frame, k, along_x=True), _whisker(one, frame, k, along_x=False)]
    for one in chart.series:
        parts += [_mark(one, frame.x(one.x[k]), frame.y(one.y[k]), chart.told(one, k)) for k in one.known]
    return parts


def _bars(chart: Chart, frame: _Frame, _: bool) -> list[str]:
    """Return the bars from 0, their whiskers, a marker at the end of each, and the lines of the references."""
    parts = [
        f'<path class="ln {css(look)}" d="M{_n(frame.x(at))} {_n(frame.top)}V{_n(frame.bottom)}"/>'
        for look, at in chart.references
        if math.isfinite(at)
    ]
    zero = frame.x(0.0)
    parts.append(f'<path class="axis" d="M{_n(zero)} {_n(frame.top)}V{_n(frame.bottom)}"/>')
    for one in chart.series:
        for k in one.known:
            x, y = frame.x(one.x[k]), frame.y(one.y[k])
            path = f"M{_n(zero)} {_n(y - 7)}H{_n(x)}v14H{_n(zero)}z"
            parts += [
                f'<path class="band column {css(one.look)}" data-s="{one.row}" d="{path}"/>',
                _whisker(one, frame, k, along_x=True),
                _mark(one, x, y, chart.told(one, k)),
            ]
    return parts


def _strokes(chart: Chart, frame: _Frame, _: bool) -> list[str]:
    return [
        f'<path class="{css(one.look)}" d="M'
        + "L".join(f"{_n(frame.x(x))} {_n(frame.y(y))}" for x, y in zip(one.x, one.y, strict=True))
        + '"/>'
        for one in chart.series
    ]


def _whisker(one: Series, frame: _Frame, k: int, *, along_x: bool) -> str:
    spread: Sequence[float] = one.dx if along_x else one.dy
    if not spread or not spread[k]:
        return ""
    dx, dy = (spread[k], 0.0) if along_x else (0.0, spread[k])
    x, y = one.x[k], one.y[k]
    path = f"M{_n(frame.x(x - dx))} {_n(frame.y(y - dy))}L{_n(frame.x(x + dx))} {_n(frame.y(y + dy))}"
    return f'<path class="err {css(one.look)}" data-s="{one.row}" d="{path}"/>'


def _mark(one: Series, x: float, y: float, text: str = "") -> str:
    told = f' data-t="{escape(text)}"' if text else ""
    return f'<use class="{css(one.look)}" data-s="{one.row}"{told} href="#{marker(one.look)}" x="{_n(x)}" y="{_n(y)}"/>'


def _n(value: float) -> str:
    """Return a coordinate with two digits after the point, none of them a trailing 0."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
