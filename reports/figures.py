"""The comparison of strategies in pictures; drawn without a display, in colours that also read in grey."""

import contextlib
import io
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from clbench.metrics import average_accuracies
from clbench.reports.tables import MATRICES, Comparison, Row
from clbench.result import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours for all kinds of colour vision, without yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP*X<>ph"
HATCHES = ("", "///", "...", "\\\\\\", "xx", "--", "oo", "++")
# Dashes are for the references alone.
LINES = ("-", "-.", ":")
LONGEST_NAME = 28
# Up to so many tasks, the cells of a matrix have room for their numbers.
NUMBERED = 10

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # Without a salt of its own, an SVG holds ids that change from one drawing to the next.
    "svg.hashsalt": "clbench",
}


def accuracy_matrices(part: Comparison) -> "Figure":
    """Draw the headline accuracy matrix of each strategy, its mean over the runs, as a heat map."""
    n_tasks = len(part.task_sizes)
    size = max(0.3 * n_tasks, 1.7) if n_tasks <= NUMBERED else 2.6
    figure, axes = _panels(part, width=size + 0.35, height=size + 0.55)
    _title(figure, part)
    image = None
    for row, name, panel in zip(part.rows, _names(part), axes, strict=True):
        mean = 100 * _mean_matrix(row)
        # Hatched is what shows through where there is no number.
        panel.set_facecolor("white")
        panel.patch.set(hatch="////", edgecolor="0.8")
        image = panel.imshow(mean, cmap="cividis", vmin=0, vmax=100, aspect="equal")
        panel.spines[:].set_visible(False)
        panel.set_title(name, fontsize=8)
        _task_ticks(panel.xaxis, n_tasks)
        _task_ticks(panel.yaxis, n_tasks)
        panel.tick_params(length=2, labelsize=7)
        if n_tasks <= NUMBERED:
            for (after, task), value in np.ndenumerate(mean):
                if not np.isnan(value):
                    ink = "white" if value < 55 else "black"
                    panel.text(task, after, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=7)
    figure.supxlabel("test set of task", fontsize=9)
    figure.supylabel("after task", fontsize=9)
    if image is not None:
        figure.colorbar(
            image, ax=axes, label=f"{MATRICES[part.headline]} accuracy (%)", shrink=0.8, aspect=30, pad=0.02
        )
    return figure


def task_accuracy(part: Comparison) -> "Figure":
    """Draw for each strategy the accuracy on each task from when it was learned, its mean over the runs."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    n_tasks = len(part.task_sizes)
    figure, axes = _panels(part, width=2.3, height=1.9, share=True)
    _title(figure, part)
    # From dark to light with the task's age, which a grey print keeps; the lightest would be lost on white.
    colours = colormaps["viridis"](np.linspace(0, 0.85, n_tasks))
    styles = [
        {"color": colours[task], "marker": MARKERS[task % len(MARKERS)], "markersize": 4, "linewidth": 1.3}
        for task in range(n_tasks)
    ]
    if n_tasks > len(MARKERS):
        styles = [style | {"marker": "", "linewidth": 1.0} for style in styles]
    for row, name, panel in zip(part.rows, _names(part), axes, strict=True):
        mean = 100 * _mean_matrix(row)
        for task, style in enumerate(styles):
            panel.plot(np.arange(task, n_tasks), mean[task:, task], **style, clip_on=False)
        panel.set_title(name, fontsize=8)
        _accuracy_axis(panel)
        _task_axis(panel, n_tasks)
    figure.supxlabel("after task", fontsize=9)
    figure.supylabel("test accuracy (%)", fontsize=9)
    shown = sorted({round(task) for task in np.linspace(0, n_tasks - 1, min(n_tasks, 10))})
    figure.legend(
        [Line2D([], [], **styles[task]) for task in shown],
        [f"task {task}" for task in shown],
        loc="outside right center",
    )
    return figure


def average_accuracy(part: Comparison) -> "Figure":
    """Draw the average accuracy on the tasks learned so far, with a band of one sd over the runs (n-1)."""
    n_tasks = len(part.task_sizes)
    figure, panel = _single(part, height=max(3.4, 0.19 * len(part.rows) + 1.2))
    handles = []
    for row, (style, _) in zip(part.rows, _styles(part), strict=True):
        curves = np.array([_curve(matrix) for matrix in row.matrices])
        steps = np.flatnonzero(~np.isnan(curves).all(axis=0))
        mean = np.nanmean(curves[:, steps], axis=0)
        handles += panel.plot(steps, mean, **style, markersize=5, linewidth=1.6, clip_on=False)
        if len(curves) > 1:
            sd = np.nanstd(curves[:, steps], axis=0, ddof=1)
            panel.fill_between(steps, mean - sd, mean + sd, color=style["color"], alpha=0.18, linewidth=0)
    _accuracy_axis(panel)
    _task_axis(panel, n_tasks)
    panel.set(xlabel="after task", ylabel=f"average {MATRICES[part.headline]} accuracy (%)")
    _title(figure, part)
    figure.legend(handles, _names(part), loc="outside right center", title=_runs(part, "band"))
    return figure


def forgetting(part: Comparison) -> "Figure":
    """Draw the forgetting of each strategy as a bar with a whisker of one sd over the runs (n-1)."""
    figure, panel = _single(part, height=0.28 * len(part.rows) + 1.5)
    names = _names(part)
    for place, (row, (style, hatch)) in enumerate(zip(part.rows, _styles(part), strict=True)):
        mean, sd, _ = row.spread("forgetting")
        if mean is None:
            panel.text(0, place, " not defined: needs two tasks", va="center", fontsize=8)
            continue
        colour = style["color"]
        panel.barh(
            place,
            100 * mean,
            height=0.7,
            xerr=None if sd is None else 100 * sd,
            color="white" if hatch else colour,
            edgecolor=colour,
            hatch=hatch,
            error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "black"},
        )
        if _is_line(row):
            panel.axvline(100 * mean, color=colour, linestyle="--", linewidth=1.2, zorder=0)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xlabel(f"forgetting (percentage points; less is better; {_runs(part, 'whisker')})")
    _title(figure, part)
    return figure


FIGURES: dict[str, Callable[[Comparison], "Figure"]] = {
    "average_accuracy": average_accuracy,
    "forgetting": forgetting,
    "accuracy_matrices": accuracy_matrices,
    "task_accuracy": task_accuracy,
}
"""The figures of a report by name, in its order."""


def draw(name: str, part: Comparison) -> dict[str, bytes]:
    """Return a figure of `FIGURES` as PNG and SVG, the same bytes each time; leaves matplotlib as it was."""
    with _style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = FIGURES[name](part)
        FigureCanvasAgg(figure)
        files = {}
        for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            files[kind] = buffer.getvalue()
        return files


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Draw in matplotlib's own defaults and `STYLE`, whatever a matplotlibrc or MPLBACKEND says."""
    # An MPLBACKEND that matplotlib doesn't know fails its import, for good; so it gets to see it afterwards.
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
    with matplotlib.style.context(["default", STYLE]):
        yield


def _panels(part: Comparison, *, width: float, height: float, share: bool = False) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    n = len(part.rows)
    columns = min(n, 4)
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(max(columns * width + 1.2, 5.0), rows * height + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel().tolist()
    for spare in axes[n:]:
        spare.remove()
    if share:
        for panel in axes[n - columns : n]:
            panel.tick_params(labelbottom=True)
    return figure, axes[:n]


def _single(part: Comparison, *, height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    return figure, figure.subplots()


def _is_line(row: Row) -> bool:
    """Tell whether the row is drawn as a reference line: the upper one (joint) or the lower one (naive)."""
    return row.is_reference or row.runs[0].strategy_name == "naive"


def _styles(part: Comparison) -> list[tuple[dict[str, Any], str]]:
    """Return line style and hatch of each row: competitors in colours, references dashed, black and grey."""
    styles: list[tuple[dict[str, Any], str]] = []
    n = 0
    for row in part.rows:
        if _is_line(row):
            colour = "black" if row.is_reference else "0.45"
            styles.append(({"color": colour, "marker": ".", "linestyle": "--"}, ""))
            continue
        line = {
            "color": COLOURS[n % len(COLOURS)],
            "marker": MARKERS[n % len(MARKERS)],
            "linestyle": LINES[n // len(COLOURS) % len(LINES)],
        }
        styles.append((line, HATCHES[n % len(HATCHES)]))
        n += 1
    return styles


def _names(part: Comparison) -> list[str]:
    """Return what each row is called in a figure."""
    names = []
    for row in part.rows:
        role = " (upper reference)" if row.is_reference else " (lower reference)" if _is_line(row) else ""
        names.append(_label(row.label) + role)
    return names


def _title(figure: "Figure", part: Comparison) -> None:
    # At this size of letters, some 11 of them take an inch.
    text = _label(part.title, int(11 * figure.get_figwidth()))
    figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=10)


def _label(text: str, longest: int = LONGEST_NAME) -> str:
    """Return text as matplotlib shows it literally: no formula, not too long, not hidden by an underscore."""
    if len(text) > longest:
        text = text[: longest // 2] + "…" + text[-(longest // 2) :]
    text = text.replace("$", r"\$")
    # A legend leaves out what begins with an underscore.
    return "\u200a" + text if text.startswith("_") else text


def _runs(part: Comparison, mark: str) -> str:
    """Return how many runs there are, and what the mark stands for where it is drawn."""
    counts = sorted({len(row.runs) for row in part.rows})
    number = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return number if counts[-1] == 1 else f"{mark}: ± sd, {number}"


def _mean_matrix(row: Row) -> Floats:
    """Return the mean over the runs [T, T], NaN where no run has a number."""
    matrices = row.matrices
    known = ~np.isnan(matrices)
    counts = known.sum(axis=0)
    total = np.where(known, matrices, 0.0).sum(axis=0)
    mean: Floats = np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
    return mean


def _curve(matrix: Floats) -> list[float]:
    values = [math.nan if value is None else 100 * value for value in average_accuracies(matrix)]
    return values + [math.nan] * (len(matrix) - len(values))


def _accuracy_axis(panel: "Axes") -> None:
    panel.set_ylim(0, 100)
    panel.set_yticks(range(0, 101, 25))
    panel.grid(axis="y", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)


def _task_axis(panel: "Axes", n_tasks: int) -> None:
    panel.set_xlim(-0.3, n_tasks - 0.7)
    _task_ticks(panel.xaxis, n_tasks)


def _task_ticks(axis: Any, n_tasks: int) -> None:
    axis.set_ticks(range(0, n_tasks, math.ceil(n_tasks / 10)))
