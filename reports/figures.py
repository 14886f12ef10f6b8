"""The comparison of strategies in pictures; drawn without a display, in colours that also read in grey."""

import contextlib
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from clbench.reports import differences, tables
from clbench.reports.cells import is_line, mean_over_runs
from clbench.reports.tables import Comparison, Row
from clbench.results.metrics import average_accuracies
from clbench.results.result import Floats

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

SETTINGS: dict[str, Any] = {
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
class Style:
    """What a figure is for: size of letters (points), widths (inches), and matplotlib's settings beside `SETTINGS`.

    column: width of a figure of one panel; page: width of one of several, None: what the panels need.
    """

    letters: float
    column: float
    page: float | None
    titled: bool
    dpi: int
    settings: dict[str, Any] = field(default_factory=dict)


SCREEN = Style(9, 7.2, None, True, 150, {"lines.linewidth": 1.5, "lines.markersize": 4.5})
STYLES = {
    "screen": SCREEN,
    # A column and the text width of two-column papers; what the title says belongs into the caption.
    "paper": Style(8, 3.4, 7.0, False, 300, {"lines.linewidth": 1.2, "lines.markersize": 3.5, "svg.fonttype": "none"}),
    # A slide of 16 : 9.
    "talk": Style(
        15,
        11.0,
        13.3,
        True,
        150,
        {"lines.linewidth": 2.5, "lines.markersize": 8, "lines.markeredgewidth": 2, "svg.fonttype": "none"},
    ),
}
"""The styles of `draw` by name."""


def accuracy_matrices(part: Comparison, style: Style = SCREEN) -> "Figure":
    """Draw the headline accuracy matrix of each strategy, its mean over the runs, as a heat map."""
    n_tasks = len(part.task_sizes)
    size = max(0.3 * n_tasks, 1.7) if n_tasks <= NUMBERED else 2.6
    figure, axes = _panels(part, style, width=size + 0.35, height=size + 0.55)
    _title(figure, part.title, style)
    image = None
    for row, name, panel in zip(part.rows, _names(part), axes, strict=True):
        mean = 100 * mean_over_runs(row.matrices)
        # Hatched is what shows through where there is no number.
        panel.set_facecolor("white")
        panel.patch.set(hatch="////", edgecolor="0.8")
        image = panel.imshow(mean, cmap="cividis", vmin=0, vmax=100, aspect="equal")
        panel.spines[:].set_visible(False)
        panel.set_title(name, fontsize="small")
        _task_ticks(panel.xaxis, n_tasks)
        _task_ticks(panel.yaxis, n_tasks)
        panel.tick_params(length=2, labelsize="small")
        if n_tasks <= NUMBERED:
            for (after, task), value in np.ndenumerate(mean):
                if not np.isnan(value):
                    ink = "white" if value < 55 else "black"
                    panel.text(task, after, f"{value:.0f}", ha="center", va="center", color=ink, fontsize="small")
    figure.supxlabel("test set of task", fontsize="medium")
    figure.supylabel("after task", fontsize="medium")
    if image is not None:
        figure.colorbar(
            image, ax=axes, label=f"{part.matrix(part.headline)} accuracy (%)", shrink=0.8, aspect=30, pad=0.02
        )
    return figure


def task_accuracy(part: Comparison, style: Style = SCREEN) -> "Figure":
    """Draw for each strategy the accuracy on each task from when it was learned, its mean over the runs."""
    n_tasks = len(part.task_sizes)
    figure, axes = _panels(part, style, width=2.3, height=1.9, share=True)
    _title(figure, part.title, style)
    styles = _task_styles(n_tasks)
    for row, name, panel in zip(part.rows, _names(part), axes, strict=True):
        mean = 100 * mean_over_runs(row.matrices)
        for task, line in enumerate(styles):
            panel.plot(np.arange(task, n_tasks), mean[task:, task], **line, clip_on=False)
        panel.set_title(name, fontsize="small")
        _accuracy_axis(panel)
        _task_axis(panel, n_tasks)
    figure.supxlabel("after task", fontsize="medium")
    figure.supylabel("test accuracy (%)", fontsize="medium")
    _task_legend(figure, styles)
    return figure


def average_accuracy(part: Comparison, style: Style = SCREEN) -> "Figure":
    """Draw the average accuracy on the tasks learned so far, with a band of one sd over the runs (n-1)."""
    n_tasks = len(part.task_sizes)
    figure, panel = _single(style, height=max(3.4, 0.19 * len(part.rows) + 1.2))
    handles = []
    for row, (line, _) in zip(part.rows, _styles(part), strict=True):
        curves = np.array([_curve(matrix) for matrix in row.matrices])
        steps = np.flatnonzero(~np.isnan(curves).all(axis=0))
        mean = np.nanmean(curves[:, steps], axis=0)
        # The references lie on top: their dashes show what they cover.
        handles += panel.plot(steps, mean, **line, zorder=3 if is_line(row) else 2, clip_on=False)
        if len(curves) > 1:
            sd = np.nanstd(curves[:, steps], axis=0, ddof=1)
            panel.fill_between(steps, mean - sd, mean + sd, color=line["color"], alpha=0.18, linewidth=0)
    _accuracy_axis(panel)
    _task_axis(panel, n_tasks)
    panel.set(xlabel="after task", ylabel=f"average {part.matrix(part.headline)} accuracy (%)")
    _title(figure, part.title, style)
    _legend(figure, handles, _names(part), _runs(part, "band"))
    return figure


def forgetting(part: Comparison, style: Style = SCREEN) -> "Figure":
    """Draw the forgetting of each strategy as a bar with a whisker of one sd over the runs (n-1)."""
    figure, panel = _single(style, height=0.28 * len(part.rows) + 1.5)
    names = _names(part)
    for place, (row, (line, hatch)) in enumerate(zip(part.rows, _styles(part), strict=True)):
        mean, sd, _ = row.spread("forgetting")
        if mean is None:
            panel.text(0, place, " not defined: needs two tasks", va="center", fontsize="small")
            continue
        colour = line["color"]
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
        if is_line(row):
            panel.axvline(100 * mean, color=colour, linestyle="--", linewidth=1.2, zorder=0)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xlabel(f"forgetting (percentage points; less is better; {_runs(part, 'whisker')})")
    _title(figure, part.title, style)
    return figure


def forgetting_plasticity(part: Comparison, style: Style = SCREEN) -> "Figure":
    """Draw forgetting against learning accuracy, with whiskers of one sd over the runs: lower right is best."""
    figure, panel = _single(style, height=max(3.6, 0.19 * len(part.rows) + 1.2))
    _, handles = _scatter(part, panel, "learning_accuracy", "forgetting")
    panel.axhline(0, color="black", linewidth=0.8, zorder=0)
    panel.set(
        xlabel="learning accuracy (%): plasticity, more is better",
        ylabel="forgetting (percentage points), less is better",
    )
    _title(figure, part.title, style)
    _legend(figure, handles, _names(part), _runs(part, "whisker"))
    return figure


def accuracy_bytes(part: Comparison, style: Style = SCREEN) -> "Figure":
    """Draw average accuracy against the bytes that are kept from task to task, with the Pareto front."""
    return _against(part, style, "all_bytes", 1e-6, "kept from task to task, model and all (MB), less is better")


def accuracy_seconds(part: Comparison, style: Style = SCREEN) -> "Figure":
    """Draw average accuracy against the seconds of a run, with the Pareto front."""
    return _against(part, style, "seconds", 1.0, "seconds a run, less is better")


def stability_gap(part: Comparison, style: Style = SCREEN) -> "Figure":
    """Draw the accuracy on each task over all evaluations, those within tasks among them, its mean over the runs.

    De Lange et al. 2023, arXiv:2205.13452. Strategies without evaluations within tasks are left out.
    """
    n_tasks = len(part.task_sizes)
    shown = [row for row in part.rows if row.is_headline and any(run.evaluations for run in row.runs)]
    part = replace(part, rows=shown)
    figure, axes = _panels(part, style, width=2.8, height=1.9, share=True)
    _title(figure, part.title, style)
    styles = [line | {"marker": ""} for line in _task_styles(n_tasks)]
    for row, name, panel in zip(part.rows, _names(part), axes, strict=True):
        for task, line in enumerate(styles):
            at, mean = _over_steps(row, task)
            panel.plot(at, 100 * mean, **line)
        for end in range(1, n_tasks):
            panel.axvline(end, color="0.85", linewidth=0.8, zorder=0)
        panel.set_title(name, fontsize="small")
        _accuracy_axis(panel)
        panel.set_xlim(0, n_tasks)
        _task_ticks(panel.xaxis, n_tasks)
    figure.supxlabel("task under way", fontsize="medium")
    figure.supylabel("test accuracy (%)", fontsize="medium")
    _task_legend(figure, styles)
    return figure


def critical_difference(parts: Sequence[Comparison], setting: str, style: Style = SCREEN) -> "Figure":
    """Draw the mean ranks over scenarios as a critical-difference diagram (Demsar 2006, fig. 1).

    Bars join what is not told apart. Raises ConfigError below five scenarios.
    """
    found = differences.ranks(parts, setting)
    names, k = list(found.mean), len(found.mean)
    half = math.ceil(k / 2)
    figure, panel = _single(style, height=0.24 * (half + len(found.groups)) + 1.3)
    depth = 0.6 + 0.45 * len(found.groups)
    panel.set(xlim=(1 - 0.9 * (k - 1) / 2, k + 0.9 * (k - 1) / 2), ylim=(depth + half + 0.3, -1.9))
    panel.axis("off")
    panel.hlines(0, 1, k, color="black")
    for rank in range(1, k + 1):
        panel.vlines(rank, -0.25, 0, color="black", linewidth=0.8)
        panel.text(rank, -0.35, str(rank), ha="center", va="bottom", fontsize="small")
    panel.hlines(-1.3, 1, 1 + found.critical_difference, color="black")
    panel.vlines([1, 1 + found.critical_difference], -1.45, -1.15, color="black", linewidth=0.8)
    panel.text(1 + found.critical_difference, -1.3, f"  CD = {found.critical_difference:.2f}", va="center")
    for place, name in enumerate(names):
        left = place < half
        at = found.mean[name]
        low = depth + (place if left else k - 1 - place) + 0.5
        end = 1 - 0.1 if left else k + 0.1
        panel.plot([at, at, end], [0, low, low], color="0.4", linewidth=0.9, zorder=1)
        text = f"{_label(name)} ({at:.2f})"
        panel.text(end, low, f"{text} " if left else f" {text}", ha="right" if left else "left", va="center")
    for level, group in enumerate(found.groups):
        y = 0.4 + 0.45 * level
        panel.plot(
            [found.mean[group[0]] - 0.05, found.mean[group[-1]] + 0.05],
            [y, y],
            color="black",
            linewidth=3,
            solid_capstyle="round",
        )
    _title(figure, f"mean ranks over {found.n} {tables.SETTINGS[setting]} scenarios, 1 is best", style)
    return figure


FIGURES: dict[str, Callable[[Comparison, Style], "Figure"]] = {
    "average_accuracy": average_accuracy,
    "forgetting": forgetting,
    "forgetting_plasticity": forgetting_plasticity,
    "accuracy_bytes": accuracy_bytes,
    "accuracy_seconds": accuracy_seconds,
    "accuracy_matrices": accuracy_matrices,
    "task_accuracy": task_accuracy,
    "stability_gap": stability_gap,
}
"""The figures of a comparison by name, in a report's order; not every comparison has what each of them shows."""

KINDS = ("pdf", "svg", "png")


def lacks(name: str, part: Comparison) -> str | None:
    """Return what a comparison lacks for a figure of `FIGURES`, None where it can be drawn."""
    if name == "stability_gap" and not any(run.evaluations for row in part.rows for run in row.runs):
        return "evaluations within tasks (--eval-every)"
    if name == "forgetting_plasticity" and not any(row.spread("forgetting").n for row in part.rows):
        return "a second task"
    if name == "accuracy_bytes" and not any(row.spread("all_bytes").mean for row in part.rows):
        return "a record of the bytes kept"
    if name == "accuracy_seconds" and not any(row.spread("seconds").mean for row in part.rows):
        return "a record of the seconds"
    return None


def draw(name: str, part: Comparison, kinds: Sequence[str] = ("png", "svg"), style: str = "screen") -> dict[str, bytes]:
    """Return a figure of `FIGURES` by kind, the same bytes each time; leaves matplotlib as it was."""
    return _drawn(lambda: FIGURES[name](part, STYLES[style]), kinds, STYLES[style])


def draw_critical_difference(
    parts: Sequence[Comparison], setting: str, kinds: Sequence[str] = ("png", "svg"), style: str = "screen"
) -> dict[str, bytes]:
    """Return `critical_difference` by kind, as `draw` does; raises ConfigError below five scenarios."""
    return _drawn(lambda: critical_difference(parts, setting, STYLES[style]), kinds, STYLES[style])


def _drawn(make: Callable[[], "Figure"], kinds: Sequence[str], style: Style) -> dict[str, bytes]:
    # No date, so that the same runs give the same file.
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with _settings(style):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = make()
        FigureCanvasAgg(figure)
        files = {}
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=style.dpi, metadata=undated.get(kind))
            files[kind] = buffer.getvalue()
            # Laid out once is enough for all kinds, and what takes longest.
            figure.set_layout_engine("none")
        return files


@contextlib.contextmanager
def _settings(style: Style) -> Iterator[None]:
    """Draw in matplotlib's own defaults and the style's, whatever a matplotlibrc or MPLBACKEND says."""
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
    with matplotlib.style.context(["default", {"font.size": style.letters, **SETTINGS, **style.settings}]):
        yield


def _panels(
    part: Comparison, style: Style, *, width: float, height: float, share: bool = False
) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    n = len(part.rows)
    columns = min(n, 4)
    rows = math.ceil(n / columns)
    natural = max(columns * width + 1.2, 5.0)
    wide = natural if style.page is None else min(style.page, natural * style.letters / SCREEN.letters)
    figure = Figure(figsize=(wide, rows * height * wide / natural + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel().tolist()
    for spare in axes[n:]:
        spare.remove()
    if share:
        for panel in axes[n - columns : n]:
            panel.tick_params(labelbottom=True)
    return figure, axes[:n]


def _single(style: Style, *, height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(style.column, height * style.letters / SCREEN.letters), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: "Figure", handles: Sequence[Any], names: Sequence[str], title: str) -> None:
    """Put the legend beside the panel, or below it where a column has no room at its side."""
    if figure.get_figwidth() > 5:
        figure.legend(handles, names, loc="outside right center", title=title)
        return
    columns = 1 if max(map(len, names)) > 25 else 2
    figure.set_figheight(figure.get_figheight() + 0.13 * math.ceil(len(names) / columns))
    figure.legend(handles, names, loc="outside lower center", title=title, ncols=columns, columnspacing=1.0)


def _task_styles(n_tasks: int) -> list[dict[str, Any]]:
    """Return a line style for each task, from dark to light with its age, which a grey print keeps."""
    from matplotlib import colormaps

    # The lightest would be lost on white.
    colours = colormaps["viridis"](np.linspace(0, 0.85, n_tasks))
    marked = n_tasks <= len(MARKERS)
    return [{"color": colours[task], "marker": MARKERS[task] if marked else ""} for task in range(n_tasks)]


def _task_legend(figure: "Figure", styles: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    shown = sorted({round(task) for task in np.linspace(0, len(styles) - 1, min(len(styles), 10))})
    lines = [Line2D([], [], **styles[task]) for task in shown]
    figure.legend(lines, [f"task {task}" for task in shown], loc="outside right center")


def _scatter(
    part: Comparison, panel: "Axes", across: str, up: str, scale: float = 100.0
) -> tuple[list[tuple[float, float]], list[Any]]:
    """Draw a point for each row at the means of two numbers, `up` a metric.

    Return the points (NaN: not defined) and what stands for them in a legend.
    """
    points, handles = [], []
    for row, (line, _) in zip(part.rows, _styles(part), strict=True):
        (x, x_sd, _), (y, y_sd, _) = row.spread(across), row.spread(up)
        at = (math.nan if x is None else scale * x, math.nan if y is None else 100 * y)
        drawn = panel.errorbar(
            at[0],
            at[1],
            xerr=scale * (x_sd or 0.0),
            yerr=100 * (y_sd or 0.0),
            color=line["color"],
            marker=line["marker"],
            linestyle="none",
            elinewidth=0.8,
            capsize=2,
        )
        handles.append(drawn[0])
        points.append(at)
    panel.grid(color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    return points, handles


def _against(part: Comparison, style: Style, cost: str, scale: float, label: str) -> "Figure":
    figure, panel = _single(style, height=max(3.6, 0.19 * len(part.rows) + 1.2))
    points, handles = _scatter(part, panel, cost, "average_accuracy", scale)
    competing = [
        at
        for row, at in zip(part.rows, points, strict=True)
        if not row.is_reference and not math.isnan(at[0]) and not math.isnan(at[1])
    ]
    front = [competing[place] for place in differences.pareto(competing)]
    if front:
        xs, ys = zip(*front, strict=True)
        handles += panel.plot(xs, ys, color="0.3", marker="", linewidth=0.9, drawstyle="steps-post", zorder=1)
    known = [x for x, _ in points if x > 0]
    if known and max(known) > 10 * min(known):
        panel.set_xscale("log")
    panel.set_ylim(0, 102)
    panel.set(xlabel=label, ylabel=f"{part.matrix(part.headline)} average accuracy (%)")
    _title(figure, part.title, style)
    _legend(figure, handles, [*_names(part), *(["Pareto front"] if front else [])], _runs(part, "whisker"))
    return figure


def _over_steps(row: Row, task: int) -> tuple[Floats, Floats]:
    """Return when a task was evaluated from when it was learned, in tasks, and its mean accuracy over the runs."""
    found: dict[float, list[float]] = {}
    for run in row.runs:
        for after in range(task, len(run.task_classes)):
            found.setdefault(after + 1.0, []).append(float(run.accuracy[after, task]))
        longest = {e.task: max(o.step for o in run.evaluations if o.task == e.task) for e in run.evaluations}
        for evaluation in run.evaluations:
            values = evaluation[run.headline]
            value = None if values is None else values[task]
            # The last evaluation within a task may be before its end, so that it must not stand at the end.
            steps = max(run.steps_of(evaluation.task), longest[evaluation.task], 1)
            if value is not None and evaluation.task >= task and evaluation.step < steps:
                found.setdefault(evaluation.task + evaluation.step / steps, []).append(value)
    at = sorted(found)
    return np.array(at), np.array([np.nanmean(found[step]) for step in at])


def _styles(part: Comparison) -> list[tuple[dict[str, Any], str]]:
    """Return line style and hatch of each row: competitors in colours, references dashed, black and grey."""
    styles: list[tuple[dict[str, Any], str]] = []
    n = 0
    for row in part.rows:
        if is_line(row):
            colour = "black" if row.is_reference else "0.45"
            marker = "+" if row.is_reference else "x"
            styles.append(({"color": colour, "marker": marker, "linestyle": "--"}, ""))
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
        role = " (upper reference)" if row.is_reference else " (lower reference)" if is_line(row) else ""
        names.append(_label(row.label) + role)
    return names


def _title(figure: "Figure", text: str, style: Style) -> None:
    if style.titled:
        # Of letters of ten points, some 11 take an inch.
        text = _label(text, int(99 / style.letters * figure.get_figwidth()))
        figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize="large")


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
