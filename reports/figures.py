"""Charts drawn by matplotlib as png, svg or pdf, without a display, in colours that can be told apart in grey too."""

import contextlib
import io
import math
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from clbench.reports.chart import Axis, Chart, HeatMap, Look, Panels, Series, shortened, spaced, text_width
from clbench.results.result import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours for all kinds of colour vision, without yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P", "*", "X", "<", ">", "p", "h")
# Colour and markers of the references, of which a sweep may have several.
REFERENCES = {"upper": ("black", "+1|"), "lower": ("0.45", "x2_3")}
HATCHES = ("", "///", "...", "\\\\\\", "xx", "--", "oo", "++")
# Only references are dashed. What has gaps is drawn later, so that lines that fall together show.
LINES = ("-", "-.", ":")
STROKES: dict[str, dict[str, Any]] = {
    "axis": {"color": "black", "linewidth": 0.9},
    "leader": {"color": "0.4", "linewidth": 0.9, "zorder": 1},
    "bar": {"color": "black", "linewidth": 3, "solid_capstyle": "round"},
}
# The room of a name, in sizes of its letters.
LONGEST_NAME = 16.0
# Up to so many inches, there is no room for a legend at the side.
NARROW = 5.0
# Up to so many lines, the names stand at their ends; of more there is a legend.
MOST_NAMED = 14
# Up to so many columns, the cells of a heat map have room for their numbers.
NUMBERED = 10

MATPLOTLIB_SETTINGS: dict[str, Any] = {
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": "small",
    # TrueType, which journals ask for, and text that can still be edited.
    "pdf.fonttype": 42,
    # Without a salt of its own, an SVG holds ids that change from one drawing to the next.
    "svg.hashsalt": "clbench",
}


@dataclass(frozen=True)
class FigureStyle:
    """The look of figures for one use: size of letters (points), widths (inches), settings of matplotlib.

    column: width of a figure of one panel; page: width of one of several, None: what the panels need.
    """

    letters: float
    column: float
    page: float | None
    titled: bool
    dpi: int
    settings: dict[str, Any] = field(default_factory=dict)


SCREEN = FigureStyle(9, 7.2, None, True, 150, {"lines.linewidth": 1.5, "lines.markersize": 4.5})
STYLES = {
    "screen": SCREEN,
    # A column and the text width of two-column papers; what the title says belongs into the caption.
    "paper": FigureStyle(
        8, 3.4, 7.0, False, 300, {"lines.linewidth": 1.2, "lines.markersize": 3.5, "svg.fonttype": "none"}
    ),
    # A slide of 16 : 9.
    "talk": FigureStyle(
        15,
        11.0,
        13.3,
        True,
        150,
        {"lines.linewidth": 2.5, "lines.markersize": 8, "lines.markeredgewidth": 2, "svg.fonttype": "none"},
    ),
}
"""The styles of `draw` by name."""


KINDS = ("pdf", "svg", "png")


def draw(
    drawing: Chart | Panels, title: str, kinds: Sequence[str] = ("png", "svg"), style: str = "screen"
) -> dict[str, bytes]:
    """Return a chart as a file of each kind, the same bytes each time; leaves matplotlib as it was.

    title: what stands above it, where the style has a title.
    """
    # Without a date, the same runs give the same file.
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with in_style(style) as medium:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = render(drawing, title, medium)
        FigureCanvasAgg(figure)
        files = {}
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=medium.dpi, metadata=undated.get(kind))
            files[kind] = buffer.getvalue()
            # The layout takes longest, and that of the first kind holds for all.
            figure.set_layout_engine("none")
        return files


def figure(drawing: Chart | Panels, title: str) -> "Figure":
    """Return a chart as a figure of matplotlib that a notebook shows, whether or not matplotlib is set up for one."""
    with in_style("screen") as medium:
        made = render(drawing, title, medium)
    # A notebook asks every object for this.
    setattr(made, "_repr_png_", lambda: draw(drawing, title, ["png"])["png"])  # noqa: B010 - a type checker knows Figure
    return made


def render(drawing: Chart | Panels, title: str = "", medium: FigureStyle = SCREEN) -> "Figure":
    """Return a chart as a figure of matplotlib."""
    figure = _grid(drawing, medium) if isinstance(drawing, Panels) else _single(drawing, medium)
    if medium.titled:
        # Its letters are larger by a fifth.
        text = label(title, 0.98 * 72 * figure.get_figwidth() / (1.2 * medium.letters))
        figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize="large")
    return figure


def label(text: str, room: float = LONGEST_NAME) -> str:
    """Return text as matplotlib shows it literally: no formula, not too long, not hidden by an underscore.

    room: its width at most, in sizes of its letters.
    """
    text = shortened(text, room).replace("$", r"\$")
    # A legend leaves out names that begin with an underscore.
    return "\u200a" + text if text.startswith("_") else text


def _wrapped(text: str, room: float) -> str:
    """Return text in lines of that width, in sizes of its letters, of which 0.57 is the mean width."""
    return "\n".join(textwrap.wrap(text, max(int(room / 0.57), 8)))


@contextlib.contextmanager
def in_style(style: str) -> Iterator[FigureStyle]:
    """Draw with matplotlib's own defaults and the style's settings, not with those of a matplotlibrc or MPLBACKEND."""
    medium = STYLES[style]
    # An MPLBACKEND that matplotlib doesn't know would make its import fail, so it is hidden until then.
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        import matplotlib.style
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    with matplotlib.style.context(["default", {"font.size": medium.letters, **MATPLOTLIB_SETTINGS, **medium.settings}]):
        yield medium


def _single(chart: Chart, medium: FigureStyle) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    n = len(chart.series)
    height = {
        "lines": max(3.4, 0.19 * n + 1.2),
        "points": max(3.6, 0.19 * n + 1.2, 0.22 * len(chart.y.ticks) + 1),
        "bars": 0.28 * n + 1.5,
        "diagram": 0.24 * abs(chart.y.high - chart.y.low) + 0.8,
    }[chart.kind]
    figure = Figure(figsize=(medium.column, height * medium.letters / SCREEN.letters), layout="constrained")
    panel = figure.subplots()
    _draw(chart, panel, figure)
    directly = chart.kind == "lines" and n <= MOST_NAMED
    remarks = [chart.runs]
    if directly and any(one.look.kind in ("upper", "lower") for one in chart.series):
        remarks.append("dashed: references")
    told = "; ".join(filter(None, remarks))
    across = f"{chart.x.label} ({told})" if told and (directly or chart.kind == "bars") else chart.x.label
    # Widths and heights in sizes of the letters; names at the side are smaller by a sixth, and have markers.
    wide, high = (72 * inches / medium.letters for inches in figure.get_size_inches())
    room = min(0.35 * wide, LONGEST_NAME)
    names = [label(one.name, room) if directly else _name(one.name, one.look) for one in chart.series]
    beside = directly or (chart.kind == "points" and medium.column > NARROW)
    taken = max(map(text_width, names)) / 1.2 + 3 if beside else 0
    # At its right end, a label has the room of the names at the left, too.
    panel.set_xlabel(_wrapped(across, 0.95 * wide - taken), loc="right")
    panel.set_ylabel(_wrapped(chart.y.label, 0.95 * high))
    if directly:
        _name_ends(chart, panel, figure, names, medium)
    elif chart.kind in ("lines", "points"):
        handles = [Line2D([], [], **_line(one.look, joined=chart.kind == "lines")) for one in chart.series]
        if chart.front:
            handles.append(Line2D([], [], color="0.3", linewidth=0.9))
            names.append("Pareto front")
        _legend(figure, handles, names, chart.runs)
    return figure


def _grid(drawing: Panels, medium: FigureStyle) -> "Figure":
    from matplotlib.figure import Figure

    panels = drawing.panels
    first = panels[0].drawing
    width, height = 2.5, 1.9
    if isinstance(first, HeatMap):
        n = len(first.columns)
        size = max(0.3 * n, 1.7) if n <= NUMBERED else 2.6
        width, height = size + 0.35, size + 0.55
    across = min(len(panels), 4)
    down = math.ceil(len(panels) / across)
    natural = max(across * width + 1.2, 5.0)
    wide = natural if medium.page is None else min(medium.page, natural * medium.letters / SCREEN.letters)
    figure = Figure(
        figsize=(wide, down * (height * wide / natural + 0.03 * medium.letters) + 0.7), layout="constrained"
    )
    charts = [one.drawing for one in panels if isinstance(one.drawing, Chart)]
    share = bool(charts) and all((one.x, one.y) == (charts[0].x, charts[0].y) for one in charts)
    axes = figure.subplots(down, across, squeeze=False, sharex=share, sharey=share).ravel().tolist()
    for spare in axes[len(panels) :]:
        spare.remove()
    image = None
    for one, panel in zip(panels, axes, strict=False):
        if isinstance(one.drawing, HeatMap):
            image = _heat_map(one.drawing, panel)
        else:
            _draw(one.drawing, panel, figure)
        # The letters of a title are smaller by a sixth.
        room = 72 * (wide / across - 0.4) / (medium.letters / 1.2)
        lines = [_wrapped(text, room) for text in (_role(one.look), one.caption) if text]
        panel.set_title("\n".join([label(one.name, min(room, LONGEST_NAME)), *lines]), fontsize="small")
    for panel in axes[len(panels) - across : len(panels)]:
        panel.tick_params(labelbottom=True)
    x, y = (first.across, first.down) if isinstance(first, HeatMap) else (first.x.label, first.y.label)
    if len(panels) == 1 and isinstance(first, HeatMap):
        # Its squares leave room at their sides, at whose far end a label of the figure would be.
        axes[0].set_xlabel(x, fontsize="medium")
        axes[0].set_ylabel(y, fontsize="medium")
    else:
        figure.supxlabel(x, fontsize="medium")
        figure.supylabel(y, fontsize="medium")
    if isinstance(first, HeatMap) and image is not None:
        figure.colorbar(image, ax=axes[: len(panels)], label=first.label, shrink=0.8, aspect=30, pad=0.02)
    named = {one.name: (one.look, chart.marked) for chart in charts for one in chart.series}
    if any(len(chart.series) > 1 for chart in charts):
        _task_legend(figure, named)
    return figure


def _draw(chart: Chart, panel: "Axes", figure: "Figure") -> None:
    """Draw the marks of a chart, its axes, and the lines that help to read them, in a panel of the figure."""
    import matplotlib

    _scale(panel, "x", chart.x)
    _scale(panel, "y", chart.y)
    panel.set_axisbelow(True)
    for one in chart.series:
        known = one.known
        xs, ys = np.array(one.x, dtype=float)[known], np.array(one.y, dtype=float)[known]
        if chart.x.log:
            xs = np.maximum(xs, chart.x.low)
        dx, dy = (np.array(d, dtype=float)[known] if d else None for d in (one.dx, one.dy))
        if chart.kind == "diagram":
            panel.plot(xs, ys, **STROKES[one.look.kind])
        elif chart.kind == "bars":
            _bar(one, panel)
        elif chart.kind == "points":
            style = _line(one.look, joined=False)
            dx, dy = _within(chart.x, xs, dx), _within(chart.y, ys, dy)
            panel.errorbar(xs, ys, yerr=dy, xerr=dx, **style, elinewidth=0.8, capsize=2, clip_on=False)
        elif known:
            # Markers of no point would stretch the panel to the figure's corner.
            line = _line(one.look) | ({} if chart.marked else {"marker": ""})
            above, wider = _layer(one.look)
            line["linewidth"] = wider * matplotlib.rcParams["lines.linewidth"]
            line["markersize"] = wider * matplotlib.rcParams["lines.markersize"]
            panel.plot(xs, ys, **line, label=label(one.name), zorder=above, clip_on=False)
            if dy is not None:
                panel.fill_between(xs, ys - dy, ys + dy, color=line["color"], alpha=0.18, linewidth=0)
    for at in chart.rules:
        panel.axvline(at, color="0.85", linewidth=0.8, zorder=0)
    for look, at in chart.references:
        if math.isfinite(at):
            panel.axvline(at, color=_line(look)["color"], linestyle="--", linewidth=1.2, zorder=0)
    if chart.front:
        front = np.array(chart.front, dtype=float).T
        xs = np.maximum(front[0], chart.x.low) if chart.x.log else front[0]
        panel.plot(xs, front[1], color="0.3", linewidth=0.9, drawstyle="steps-post", zorder=1)
    for x, y, text, side in chart.texts:
        panel.text(x, y, label(text), ha=side, va="center", fontsize="small" if chart.kind == "bars" else "medium")
    if chart.kind == "diagram":
        panel.axis("off")
    elif chart.kind == "bars":
        panel.axvline(0, color="black", linewidth=0.8)
        room = min(0.3 * 72 * figure.get_figwidth() / matplotlib.rcParams["font.size"], LONGEST_NAME)
        panel.set_yticks(range(len(chart.series)), [_name(one.name, one.look, room) for one in chart.series])
    else:
        panel.grid(axis="both" if chart.kind == "points" else "y", color="0.9", linewidth=0.6)
        if chart.kind == "points" and chart.y.low < 0 < chart.y.high:
            panel.axhline(0, color="black", linewidth=0.8, zorder=0)


def _within(axis: Axis, at: Floats, spread: Floats | None) -> Floats | None:
    """Return the lengths [2, n] of whiskers to both sides, which end where the axis ends."""
    return None if spread is None else np.clip(np.stack([at - axis.low, axis.high - at]), 0, spread)


def _bar(one: Series, panel: "Axes") -> None:
    if not one.known:
        return
    colour, hatch = _line(one.look)["color"], _hatch(one.look)
    panel.barh(
        one.y[0],
        one.x[0],
        height=0.7,
        xerr=one.dx[0] if one.dx else None,
        color="white" if hatch else colour,
        edgecolor=colour,
        hatch=hatch,
        error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "black"},
    )


def _heat_map(heat: HeatMap, panel: "Axes") -> Any:
    # The hatching shows through where there is no number.
    panel.set_facecolor("white")
    panel.patch.set(hatch="////", edgecolor="0.8")
    image = panel.imshow(heat.values, cmap="cividis", vmin=0, vmax=100, aspect="equal")
    panel.spines[:].set_visible(False)
    for axis, names in ((panel.xaxis, heat.columns), (panel.yaxis, heat.rows)):
        shown = range(0, len(names), math.ceil(len(names) / (10 if len(names) <= NUMBERED else 7)))
        axis.set_ticks(shown, [label(names[k], 9) for k in shown])
    longest = max(map(len, heat.columns))
    panel.tick_params(length=2, labelsize="small")
    panel.tick_params(axis="x", labelrotation=90 if longest > 2 else 0)
    if len(heat.columns) <= NUMBERED:
        for (row, column), value in np.ndenumerate(heat.values):
            if not np.isnan(value):
                ink = "white" if value < 55 else "black"
                panel.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize="small")
    return image


def _scale(panel: "Axes", which: str, axis: Axis) -> None:
    if axis.log:
        panel.set(**{f"{which}scale": "log"})
    panel.set(**{f"{which}lim": (axis.low, axis.high)})
    side = panel.xaxis if which == "x" else panel.yaxis
    side.set_ticks([value for value, _ in axis.ticks], [text for _, text in axis.ticks])
    side.set_ticks([], minor=True)


def _legend(figure: "Figure", handles: Sequence[Any], names: Sequence[str], title: str) -> None:
    """Put the legend beside the panel, or below it where a column has no room at its side."""
    if figure.get_figwidth() > NARROW:
        figure.legend(handles, names, loc="outside right center", title=title)
        return
    columns = 1 if max(map(len, names)) > 25 else 2
    figure.set_figheight(figure.get_figheight() + 0.13 * math.ceil(len(names) / columns))
    figure.legend(handles, names, loc="outside lower center", title=title, ncols=columns, columnspacing=1.0)


def _name_ends(chart: Chart, panel: "Axes", figure: "Figure", names: Sequence[str], medium: FigureStyle) -> None:
    """Put the name and the marker of each line at its end, where they do not cover each other."""
    from matplotlib.lines import Line2D

    ends = [(one, name, one.y[one.known[-1]]) for one, name in zip(chart.series, names, strict=True) if one.known]
    # The panel takes about two thirds of the figure's height, and small letters are 0.83 of the size.
    gap = 1.2 * 0.83 * medium.letters / (0.62 * 72 * figure.get_figheight())
    heights = spaced([chart.y.share(end) for *_, end in ends], gap, 1.0)
    for (one, name, _), height in zip(ends, heights, strict=True):
        mark = Line2D([1.04], [height], transform=panel.transAxes, **_line(one.look, joined=False))
        figure.add_artist(mark)
        panel.text(1.08, height, name, transform=panel.transAxes, va="center", fontsize="small")


def _task_legend(figure: "Figure", named: dict[str, tuple[Look, bool]]) -> None:
    from matplotlib.lines import Line2D

    names = list(named)
    shown = sorted({round(k) for k in np.linspace(0, len(names) - 1, min(len(names), 10))})
    styles = [_line(look) | ({} if marked else {"marker": ""}) for look, marked in named.values()]
    lines = [Line2D([], [], **styles[k]) for k in shown]
    figure.legend(lines, [label(names[k]) for k in shown], loc="outside right center")


def _line(look: Look, *, joined: bool = True) -> dict[str, Any]:
    """Return colour, marker and dashes: competitors in colours, references dashed in black and grey, tasks by age."""
    place = look.place
    if look.kind == "task":
        from matplotlib import colormaps

        # Dark to light, which a grey print keeps; the lightest would be lost on white.
        colour = colormaps["viridis"](np.linspace(0, 0.85, look.of)[place])
        line = {"color": colour, "marker": MARKERS[place] if look.of <= len(MARKERS) else "", "linestyle": "-"}
    elif look.kind == "competitor":
        line = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": LINES[_gaps(look)],
        }
    else:
        colour, markers = REFERENCES["upper" if look.kind == "upper" else "lower"]
        line = {"color": colour, "marker": markers[place % len(markers)], "linestyle": "--"}
    return line if joined else line | {"linestyle": "none"}


def _gaps(look: Look) -> int:
    """Return which of LINES a competitor has: neighbours differ, and no two of the first 18 look the same."""
    return (look.place + look.place // len(COLOURS)) % len(LINES) if look.kind == "competitor" else 0


def _layer(look: Look) -> tuple[float, float]:
    """Return on which layer a line lies, and how many times as wide as others it is, with its markers.

    What lies below is wider, so that lines that fall together all show; the references lie on top.
    """
    if look.kind == "competitor":
        return 2 + 0.1 * _gaps(look), 1.6 - 0.3 * _gaps(look)
    return (2.0, 1.0) if look.kind == "task" else (3.0, 0.8)


def _hatch(look: Look) -> str:
    return HATCHES[look.place % len(HATCHES)] if look.kind == "competitor" else ""


def _role(look: Look) -> str:
    return {"upper": "(upper reference)", "lower": "(lower reference)"}.get(look.kind, "")


def _name(text: str, look: Look, room: float = LONGEST_NAME) -> str:
    return f"{label(text, room)} {_role(look)}".rstrip()
