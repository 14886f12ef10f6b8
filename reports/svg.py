"""Charts as inline SVG for the page: small, scalable, coloured by its style sheet, read out by its script.

The points of a line are written in the units of the data, under a transform, so that what the script reads out are the
drawn numbers themselves.
"""

import math
import textwrap
from collections.abc import Sequence

from markupsafe import Markup, escape

from clbench.reports.chart import (
    Axis,
    Cell,
    Chart,
    Heading,
    HeatMap,
    Look,
    NumberTable,
    Series,
    shortened,
    spaced,
    text_width,
)

WIDE, SMALL = (440, 280), (300, 180)
COLOURS, MARKERS, DASHES = 6, 8, 4
# Points of a line up to which each has a marker, and lines of tasks up to which each has its number at its end.
MOST_MARKED, MOST_NUMBERED = 30, 10
# Columns up to which a heat map has room beside others, and up to which its numbers are printed in its cells.
MOST_NARROW, MOST_PRINTED = 10, 40
# The largest letters that the style sheet gives a chart and a small one, in units of the drawing.
LETTERS, SMALL_LETTERS = 14.0, 11.0
# The room that names may take beside a chart, in units of the drawing.
MOST_ROOM = 120.0
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
        return f"c{look.place % COLOURS} d{dashes(look)}"
    if look.kind == "task":
        return f"t{round(7 * look.place / max(look.of - 1, 1))}"
    return {"upper": "cj dr", "lower": "cn dr"}.get(look.kind, look.kind)


def dashes(look: Look) -> int:
    """Return which dashes a competitor's line has: neighbours differ, and no two of the first 24 look the same."""
    return (look.place + look.place // COLOURS) % DASHES


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


def task_key(look: Look) -> Markup:
    """Return the stroke of a task's line for a line of text."""
    return Markup(
        f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true"><path class="ln {css(look)}" d="M0 7H14"/></svg>'
    )


def heat_table(heat: HeatMap) -> NumberTable:
    """Return a heat map as a table whose cells are coloured; with many columns its numbers are whole.

    Columns with long names are headed by their numbers, which then stand before the names of the rows, too.
    """
    digits = 1 if len(heat.columns) <= 6 else 0
    named = len(heat.rows) == len(heat.columns) and max(map(len, heat.columns), default=0) > 3
    titles = [str(k) for k in range(len(heat.columns))] if named else list(heat.columns)
    if len(titles) > MOST_PRINTED:
        titles = [title if k % 10 == 0 else "" for k, title in enumerate(titles)]
    lines = []
    for k, (name, values) in enumerate(zip(heat.rows, heat.values.tolist(), strict=True)):
        cells = [
            Cell("") if math.isnan(v) else Cell(f"{v:.{digits}f}", css=f"h{round(v / 100 * (len(SHADES) - 1))}")
            for v in values
        ]
        lines.append((-1, [Cell(f"{k} {name}" if named else heat.prefix + name), *cells]))
    return NumberTable([Heading("", text=True), *map(Heading, titles)], lines)


def draw(chart: Chart, *, small: bool = False) -> Markup:
    """Return a chart as an SVG element, to which the script adds the read-outs. No text leaves its box."""
    frame = _Frame(chart, small)
    marks = {"lines": _lines, "points": _points, "bars": _bars, "diagram": _strokes}[chart.kind](chart, frame, small)
    rules = [f'<path class="rule" d="M{_n(frame.x(at))} {_n(frame.top)}V{_n(frame.bottom)}"/>' for at in chart.rules]
    width, height = frame.size
    texts = []
    for x, y, text, side in chart.texts:
        at = frame.x(x)
        room = {"left": width - at, "right": at, "center": 2 * min(at, width - at)}[side]
        anchor = {"left": "s", "center": "m", "right": "e"}[side]
        texts.append(frame.text(text, at, frame.y(y), anchor, room))
    data = (
        f' data-x="{escape(chart.step or chart.x.label)}" data-u="{escape(chart.unit)}"'
        if chart.kind == "lines"
        else ""
    )
    axes = [] if chart.kind == "diagram" else frame.axes()
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {_n(height)}" tabindex="0" role="group" '
        f'aria-roledescription="chart" aria-label="{escape(chart.title)}"{data}>'
        f"{''.join([*axes, *rules, *marks, *texts])}</svg>"
    )


class _Frame:
    """The area of a chart inside its axes, and where a value lies on it."""

    def __init__(self, chart: Chart, small: bool) -> None:
        self.across, self.up = chart.x, chart.y
        self.letters = SMALL_LETTERS if small else LETTERS
        width, height = SMALL if small else WIDE
        if chart.kind == "diagram":
            self.size: tuple[int, float] = (width, 22 * abs(chart.y.high - chart.y.low))
            self.left, self.right, self.top, self.bottom = 0.0, float(width), 0.0, self.size[1]
            return
        ticks = max((text_width(text, self.letters) for _, text in chart.y.ticks), default=0.0)
        self.room = min(ticks, MOST_ROOM)
        self.left, self.right = self.room + 12.0, width - 12.0 - _label_room(chart, small, self.letters)
        self.x_label = self._lines(chart.x.label, width - 8.0)
        self.y_label = self._lines(chart.y.label, width - 8.0)
        line = 1.25 * self.letters
        self.top = 10.0 + line * len(self.y_label)
        below = line * (1 + len(self.x_label)) + 8.0
        if chart.kind == "bars":
            height = round(self.top + below + 10 + 22 * len(chart.series))
        self.size = width, height
        self.bottom = height - below

    def _lines(self, text: str, room: float) -> list[str]:
        """Return the label of an axis in as many lines as it needs."""
        if text_width(text, self.letters) <= room:
            return [text] if text else []
        return [shortened(line, room, self.letters) for line in textwrap.wrap(text, int(room / self.letters / 0.66))]

    def text(self, text: str, x: float, y: float, css: str, room: float) -> str:
        """Return text at a place, as much of it as there is room for; all of it is told under the pointer."""
        fitted = shortened(text, room, self.letters)
        more = "" if fitted == text else f"<title>{escape(text.strip())}</title>"
        return f'<text class="{css}" x="{_n(x)}" y="{_n(y)}" dy=".35em">{escape(fitted)}{more}</text>'

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
        """Return the grid, the ticks, and the labels: of y above the chart, of x below it at its right end."""
        parts, line = [], 1.25 * self.letters
        for value, text in self.up.ticks:
            at = self.y(value)
            parts.append(f'<path class="grid" d="M{_n(self.left)} {_n(at)}H{_n(self.right)}"/>')
            parts.append(self.text(text, self.left - 6, at, "e", self.room + 4))
        free = 0.0
        for value, text in self.across.ticks:
            at, half = self.x(value), text_width(text, self.letters) / 2
            at = min(max(at, half), self.size[0] - half)
            # A label that has no room beside the one before it is left out.
            if at - half >= free:
                parts.append(f'<text class="m" x="{_n(at)}" y="{_n(self.bottom + line)}">{escape(text)}</text>')
                free = at + half + 0.4 * self.letters
        for k, text in enumerate(self.x_label):
            end = max(self.right, text_width(text, self.letters) + 4)
            y = self.bottom + (2 + k) * line
            parts.append(f'<text class="e a" x="{_n(min(end, self.size[0] - 4))}" y="{_n(y)}">{escape(text)}</text>')
        for k, text in enumerate(self.y_label):
            parts.append(f'<text class="s a" x="2" y="{_n((1 + k) * line - 2)}">{escape(text)}</text>')
        parts.append(f'<path class="axis" d="M{_n(self.left)} {_n(self.bottom)}H{_n(self.right)}"/>')
        return parts


def _label_room(chart: Chart, small: bool, letters: float) -> float:
    """Return the width of the names at the ends of the lines, 0 where they have none."""
    named = _named(chart, small)
    if not named:
        return 0.0
    if small:
        return letters * 1.6
    return min(max(text_width(one.name, letters) for one in named), MOST_ROOM) + 16


def _named(chart: Chart, small: bool) -> list[Series]:
    """Return the lines whose names stand at their ends: as many as there is room for, of small charts their tasks."""
    if chart.kind != "lines":
        return []
    known = [one for one in chart.series if one.known]
    if small:
        tasks = all(one.look.kind == "task" for one in known)
        return known if 1 < len(chart.series) <= MOST_NUMBERED and tasks else []
    return known[: int((WIDE[1] - 70) / LETTERS)]


def _end_labels(chart: Chart, frame: _Frame, small: bool) -> list[str]:
    """Return the names at the ends of the lines, at heights where they do not cover each other."""
    parts: list[str] = []
    named = _named(chart, small)
    # Heights count upwards, y downwards.
    heights = spaced([-frame.y(one.y[one.known[-1]]) for one in named], frame.letters, frame.letters / 2 - frame.top)
    for one, height in zip(named, heights, strict=True):
        at = -height
        if small:
            parts.append(frame.text(str(one.look.place), frame.right + 3, at, "s lb", frame.size[0] - frame.right - 3))
            continue
        left = frame.right + 8
        parts.append(_mark(one, left, at))
        text = frame.text(one.name, left + 8, at, "s lb", frame.size[0] - left - 8)
        parts.append(text.replace("<text ", f'<text data-s="{one.row}" ', 1))
    return parts


def _lines(chart: Chart, frame: _Frame, small: bool) -> list[str]:
    """Return the lines with their bands under one transform, and the markers over them."""
    bands, drawn, marks = [], [], []
    # Lines with gaps lie above lines without, the references on top, so that lines that fall together all show.
    for one in sorted(chart.series, key=lambda one: dashes(one.look) if one.look.kind == "competitor" else DASHES):
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
    ends = _end_labels(chart, frame, small)
    return [f'<g transform="{frame.transform}">', *bands, *drawn, "</g>", *marks, *ends]


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
