"""Figures: readable at any size, in grey and with any name; and no figure can cost a result."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from clbench.config.errors import ConfigError
from clbench.reports import figures, markdown, write_figures, write_report
from clbench.reports.charts import CHARTS, critical_difference
from clbench.reports.comparison import Comparison, compare
from clbench.results.result import Result

Make = Callable[..., Result]
Compared = Callable[[list[Result]], Comparison]
WithMore = Callable[..., Result]
NAMES = ("naive", "joint", "feature-extraction", "lwf", "ewc", "er", "icarl", "si", "mas", "der", "bic", "gdumb")
TABLES = {"report.html", "report.md", "report.tex", "comparison.csv", "differences.csv", "runs.csv", "matrices.csv"}
HOSTILE = ("naive", "<script>$x_1$</script>", r"$\frac{1", "_hidden", "n" * 200)


def drawn(name: str, part: Comparison) -> Figure:
    return figures.render(CHARTS[name].make(part), part.title)


def luminance(colour: object) -> float:
    """Relative luminance by WCAG 2.1."""
    rgb = np.array(to_rgb(colour))  # type: ignore[arg-type]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(
    ("names", "sizes", "seeds"),
    [(NAMES[:7], (2,) * 5, 3), (NAMES[:2], (5, 5), 2), (NAMES, (1,) * 20, 1), (HOSTILE, (10,), 1)],
    ids=["seven strategies", "two tasks", "twelve strategies, twenty tasks", "hostile names, one task"],
)
@pytest.mark.parametrize("name", CHARTS)
def test_each_figure_is_drawn_as_png_and_svg(
    make_result: Make,
    name: str,
    names: tuple[str, ...],
    sizes: tuple[int, ...],
    seeds: int,
    compared: Compared,
    with_more: WithMore,
) -> None:
    within = tuple((task, 3, [0.5] * len(sizes)) for task in range(len(sizes)))
    n = sum(sizes)
    epochs = [{"task": 0, "stage": "train", "epoch": 0, "losses": {"new": 1.5}}]
    more: dict[str, Any] = {"confusion": [[3] * n] * n, "training": epochs}
    more["anytime"] = [{"samples": 10, "accuracy": 0.9}, {"samples": 20, "accuracy": 0.6}]
    measured = {"dead_units": 0.1, "effective_rank": 9.0, "weight_norm": 20.0}
    runs = [make_result(label, s, sizes=sizes, evaluations=within) for label in names for s in range(seeds)]
    tasks = [[task | {"online_accuracy": 0.5, "plasticity": measured} for task in run.record["tasks"]] for run in runs]
    part = compared([with_more(run, **more, tasks=of_run) for run, of_run in zip(runs, tasks, strict=True)])
    files = figures.draw(CHARTS[name].make(part), part.title)
    assert files["png"].startswith(b"\x89PNG")
    assert ET.fromstring(files["svg"]).tag.endswith("svg")


def test_an_svg_is_the_same_each_time(make_result: Make, compared: Compared) -> None:
    part = compared([make_result("naive", seed) for seed in range(2)])
    one, other = (figures.draw(CHARTS["average_accuracy"].make(part), part.title) for _ in range(2))
    assert one["svg"] == other["svg"]


def test_axes_name_their_units(seven: list[Result], compared: Compared) -> None:
    part = compared(seven)
    average = drawn("average_accuracy", part).axes[0]
    assert average.get_ylabel() == "average class-incremental accuracy (%)"
    assert average.get_xlabel().startswith("after task (band: ± sd")
    assert "percentage points" in drawn("forgetting", part).axes[0].get_xlabel()
    for figure in (drawn("task_accuracy", part), drawn("accuracy_matrices", part)):
        assert "after task" in {figure.get_supxlabel(), figure.get_supylabel()}
    assert "accuracy (%)" in drawn("task_accuracy", part).get_supylabel()
    assert "accuracy (%)" in drawn("accuracy_matrices", part).axes[-1].get_ylabel()


def test_the_band_is_one_sd_over_seeds(make_result: Make, compared: Compared) -> None:
    """One task, accuracies .5 and .7: by hand mean 60 %, sd (n-1) sqrt(2) * 10 %."""
    part = compared([make_result("lwf", seed, sizes=(2,), matrix=np.array([[v]])) for seed, v in enumerate((0.5, 0.7))])
    panel = drawn("average_accuracy", part).axes[0]
    assert panel.lines[0].get_ydata() == pytest.approx([60])
    heights = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((60 - 14.1421, 60 + 14.1421), abs=1e-3)


def test_the_references_are_dashed_and_named(seven: list[Result], compared: Compared) -> None:
    """Joint and naive are lines in the plots over steps and of forgetting; only they are dashed."""
    part = compared(seven)
    figure = drawn("average_accuracy", part)
    panel = figure.axes[0]
    assert {line.get_label() for line in panel.lines if line.get_linestyle() == "--"} == {"joint", "naive"}
    assert "dashed: references" in panel.get_xlabel()
    assert {text.get_text() for text in panel.texts} == {line.get_label() for line in panel.lines}
    scatter = drawn("forgetting_plasticity", part)
    assert {"joint (upper reference)", "naive (lower reference)"} <= {
        text.get_text() for text in scatter.legends[0].get_texts()
    }
    bars = drawn("forgetting", part).axes[0]
    lines = {line.get_xdata()[0] for line in bars.lines if line.get_linestyle() == "--"}
    expected = [100 * part_row.spread("forgetting").mean for part_row in (part.rows[0], part.rows[-1])]
    assert sorted(lines) == pytest.approx(expected)


def test_the_names_of_lines_stand_at_their_ends_apart(seven: list[Result], compared: Compared) -> None:
    """In the order of the ends, the distance between two names no less than a line of small letters."""
    part = compared(seven)
    panel = drawn("average_accuracy", part).axes[0]
    ends = {line.get_label(): line.get_ydata()[-1] for line in panel.lines}
    heights = {text.get_text(): text.get_position()[1] for text in panel.texts}
    by_end = sorted(ends, key=ends.__getitem__)
    assert sorted(heights, key=heights.__getitem__) == by_end
    step = 9 / 72 / panel.get_figure().get_figheight()
    assert min(np.diff([heights[name] for name in by_end])) > step


def test_the_references_lie_on_top_so_that_none_is_hidden(seven: list[Result], compared: Compared) -> None:
    """Ewc and lwf often fall on naive; its dashes and crosses must still show, and they between its dashes."""
    figure = drawn("average_accuracy", compared(seven))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    others = [line.get_zorder() for name, line in lines.items() if name not in ("naive", "joint")]
    for name in ("naive", "joint"):
        assert lines[name].get_zorder() > max(others)
        assert lines[name].get_marker() not in figures.MARKERS


def test_a_domain_incremental_accuracy_is_called_one(make_result: Make, compared: Compared) -> None:
    part = compared([make_result("naive", setting="domain", scenario="permuted-mnist-5k")])
    assert drawn("average_accuracy", part).axes[0].get_ylabel() == "average domain-incremental accuracy (%)"
    assert drawn("accuracy_matrices", part).axes[-1].get_ylabel() == "domain-incremental accuracy (%)"


def test_forgetting_stands_against_plasticity_at_the_means(make_result: Make, compared: Compared) -> None:
    """By hand: just learned .9 and .7, so 80 %; forgotten .9 - .5 = 40 points."""
    part = compared([make_result("lwf", sizes=(2, 2), matrix=np.array([[0.9, np.nan], [0.5, 0.7]]))])
    panel = drawn("forgetting_plasticity", part).axes[0]
    assert panel.containers[0][0].get_xydata() == pytest.approx(np.array([[80, 40]]))
    assert "plasticity" in panel.get_xlabel()


def test_the_pareto_front_leaves_out_the_reference_and_what_is_beaten(make_result: Make, compared: Compared) -> None:
    """Bytes by hand: er 1.91 MB, icarl 2.07, lwf 3.83; lwf is both dearer and worse, joint competes with none."""
    levels = {"joint": 0.9, "er": 0.5, "icarl": 0.7, "lwf": 0.6}
    part = compared([make_result(name, sizes=(2,), matrix=np.array([[level]])) for name, level in levels.items()])
    panel = drawn("accuracy_bytes", part).axes[0]
    front = next(line for line in panel.lines if line.get_drawstyle() == "steps-post")
    assert front.get_xydata() == pytest.approx(np.array([[1_913_640, 50], [2_070_440, 70]]))
    assert {text.get_text() for text in panel.get_xticklabels()} >= {"1 MB", "2 MB", "3 MB"}
    assert "seconds" in drawn("accuracy_seconds", part).axes[0].get_xlabel()


def test_on_a_logarithmic_axis_nothing_stored_stands_at_the_low_end(make_result: Make, compared: Compared) -> None:
    """By hand: er keeps nothing beside the model, lwf 1.9 MB, icarl 157 kB; 1.9 MB is more than ten times that."""
    levels = {"er": 0.5, "icarl": 0.7, "lwf": 0.6}
    part = compared([make_result(name, sizes=(2,), matrix=np.array([[level]])) for name, level in levels.items()])
    panel = drawn("accuracy_extra_bytes", part).axes[0]
    assert panel.get_xscale() == "log"
    assert panel.get_xticklabels()[0].get_text() == "0"
    first = panel.get_xticks()[0]
    points = {container[0].get_xydata()[0][1]: container[0].get_xydata()[0][0] for container in panel.containers}
    assert points == pytest.approx({50: first, 70: 156_800, 60: 1_913_640})
    front = next(line for line in panel.lines if line.get_drawstyle() == "steps-post")
    assert front.get_xydata() == pytest.approx(np.array([[first, 50], [156_800, 70]]))


def test_the_stability_gap_shows_evaluations_within_tasks(make_result: Make, compared: Compared) -> None:
    """Seven steps a task: at step 7 of 7 stands the end-of-task row, once; values by hand, the mean of two runs."""
    within = ((0, 7, [0.1, None]), (1, 3, [0.4, 0.5]), (1, 7, [0.9, 0.9]))
    results = [
        make_result("lwf", seed, sizes=(2, 2), matrix=np.array([[0.8, np.nan], [end, 0.7]]), evaluations=within)
        for seed, end in enumerate((0.4, 0.6))
    ]
    panel = drawn("stability_gap", compared([*results, make_result("naive", sizes=(2, 2))])).axes[0]
    first, second = [line.get_xydata() for line in panel.lines[:2]]
    assert first == pytest.approx(np.array([[1, 80], [1 + 3 / 7, 40], [2, 50]]))
    assert second == pytest.approx(np.array([[1 + 3 / 7, 50], [2, 70]]))


def test_accuracy_at_any_time_is_over_the_samples_of_the_stream(
    make_result: Make, compared: Compared, with_more: WithMore
) -> None:
    """The mean of two runs at each number of samples; one of them was not tested at the last."""
    points = [
        [{"samples": 10, "accuracy": 0.8}, {"samples": 20, "accuracy": 0.5}],
        [{"samples": 10, "accuracy": 0.6}],
    ]
    runs = [with_more(make_result("er", seed), anytime=found) for seed, found in enumerate(points)]
    part = compared([*runs, make_result("naive")])
    (line,) = drawn("anytime", part).axes[0].lines
    assert line.get_xydata() == pytest.approx(np.array([[10, 70], [20, 50]]))
    assert CHARTS["anytime"].drawn(compared([make_result("naive")])) is None


def test_a_critical_difference_diagram_needs_five_scenarios_and_joins_what_is_not_told_apart(
    make_result: Make, tmp_path: Path
) -> None:
    """Demsar's CD of 3 strategies on 5 scenarios: 2.343 sqrt(3 * 4 / 30) = 1.48, so that of ranks 1, 2, 3 two join."""
    results = [
        make_result(name, scenario=f"s{s}", sizes=(2,), matrix=np.array([[level]]))
        for s in range(5)
        for name, level in (("naive", 0.1), ("lwf", 0.3), ("er", 0.5), ("joint", 0.9))
    ]
    parts = compare(results)
    with pytest.raises(ConfigError, match="at least 5 scenarios"):
        critical_difference(parts[:4], "class")
    panel = figures.render(critical_difference(parts, "class")).axes[0]
    bars = [line.get_xdata() for line in panel.lines if line.get_linewidth() == 3]
    assert [list(bar) for bar in bars] == [pytest.approx([0.95, 2.05]), pytest.approx([1.95, 3.05])]
    texts = {text.get_text().strip() for text in panel.texts}
    assert {"ER (1.00)", "LwF (2.00)", "naive (3.00)", "CD = 1.48"} <= texts
    write_figures(results, tmp_path, ["critical_difference"], kind="svg")
    assert (tmp_path / "class-critical_difference.svg").stat().st_size
    section = markdown.rank_section(parts)
    assert "| `er` | 1.00 |" in section
    assert "`er`, `lwf`; `lwf`, `naive`" in section
    assert markdown.rank_section(parts[:4]) == ""


@pytest.mark.parametrize(("style", "width"), [("paper", 3.4), ("talk", 11.0)])
def test_figures_for_papers_embed_their_letters_and_fit_a_column(
    seven: list[Result], tmp_path: Path, style: str, width: float
) -> None:
    """TrueType (PDF 32000-1, 9.6 and 9.9: CIDFontType2 with a FontFile2), no Type 3; text in an SVG stays text."""
    (path,) = write_figures(seven, tmp_path, ["average_accuracy"], style=style)
    assert path == tmp_path / "split-mnist-5k-class-average_accuracy.pdf"
    pdf = path.read_bytes()
    assert b"CIDFontType2" in pdf
    assert b"FontFile2" in pdf
    assert b"Type3" not in pdf
    box = re.search(rb"MediaBox \[ *0 0 ([\d.]+)", pdf)
    assert box is not None
    assert float(box[1]) / 72 == pytest.approx(width)
    (path,) = write_figures(seven, tmp_path, ["average_accuracy"], kind="svg", style=style)
    svg = path.read_text()
    assert ">feature extraction</text>" in svg
    assert (">split-mnist-5k, class-incremental" in svg) == (style == "talk"), "a paper has its caption"
    write_figures(seven, tmp_path, ["average_accuracy"], style=style)
    assert (tmp_path / "split-mnist-5k-class-average_accuracy.pdf").read_bytes() == pdf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["forgeting"]}, "did you mean 'forgetting'"),
        ({"names": ["forgetting"], "kind": "jpg"}, "unknown format 'jpg'"),
        ({"names": ["forgetting"], "style": "poster"}, "unknown style 'poster'"),
        ({"names": ["stability_gap"]}, "evaluations within tasks"),
        ({"names": ["critical_difference"]}, "5 scenarios"),
    ],
)
def test_a_figure_that_can_not_be_drawn_is_refused(
    seven: list[Result], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_figures(seven, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_lines_and_bars_can_be_told_apart_in_grey(make_result: Make, compared: Compared) -> None:
    part = compared([make_result(name) for name in NAMES])
    lines = drawn("average_accuracy", part).axes[0].lines
    styles = {(line.get_marker(), str(line.get_linestyle()), line.get_color()) for line in lines}
    assert len(styles) == len(NAMES)
    competitors = [line for line in lines if line.get_linestyle() != "--"]
    assert len({line.get_marker() for line in competitors}) == len(NAMES) - 2


def test_tick_labels_thin_out_with_many_tasks(make_result: Make, compared: Compared) -> None:
    part = compared([make_result("naive", sizes=(1,) * 20)])
    for panel in (drawn("average_accuracy", part).axes[0], drawn("accuracy_matrices", part).axes[0]):
        assert 5 <= len(panel.get_xticks()) <= 10


def test_cells_show_their_numbers_legibly_and_nothing_where_nothing_was_tested(
    make_result: Make, compared: Compared
) -> None:
    """A contrast of 3 is what WCAG asks for of graphics; NaN cells have no text, not a 0."""
    values = np.linspace(0, 1, 10)
    matrix = np.full((10, 10), np.nan)
    matrix[np.tril_indices(10)] = np.resize(np.linspace(0, 1, 19), 55)
    matrix[9] = values
    panel = drawn("accuracy_matrices", compared([make_result("lwf", sizes=(1,) * 10, matrix=matrix)])).axes[0]
    assert len(panel.texts) == 55
    for text in panel.texts:
        value = float(text.get_text()) / 100
        pair = sorted((luminance(matplotlib.colormaps["cividis"](value)), luminance(text.get_color())))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 3


def test_matrices_show_the_mean_over_seeds(make_result: Make, compared: Compared) -> None:
    results = [make_result("lwf", seed, sizes=(2,), matrix=np.array([[v]])) for seed, v in enumerate((0.2, 0.6))]
    assert [text.get_text() for text in drawn("accuracy_matrices", compared(results)).axes[0].texts] == ["40"]


def test_long_names_keep_their_two_ends(make_result: Make, compared: Compared) -> None:
    part = compared([make_result("lwf", label="er[" + "x" * 100 + "memory_size=500]")])
    (text,) = drawn("average_accuracy", part).axes[0].texts
    assert text.get_text().startswith("er[")
    assert text.get_text().endswith("memory_size=500]"[-10:])
    assert len(text.get_text()) <= 30


def test_report_writes_tables_and_figures_that_it_refers_to(seven: list[Result], tmp_path: Path) -> None:
    paths = write_report(seven, tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in paths}
    stem = "figures/split-mnist-5k-class-"
    drawn = [name for name in CHARTS if CHARTS[name].in_markdown and name not in ("stability_gap", "anytime")]
    pictures = {f"{stem}{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    assert names == TABLES | pictures
    assert all(path.stat().st_size > 0 for path in paths)
    text = (tmp_path / "report.md").read_text()
    assert all(f"]({name})" in text for name in pictures if name.endswith("png"))


def test_scenarios_that_share_a_name_get_their_own_figures(make_result: Make, tmp_path: Path) -> None:
    """The second has a single task, and so no forgetting to draw against plasticity."""
    results = [make_result("naive", sizes=(2, 2)), make_result("naive", sizes=(4,))]
    paths = write_report(results, tmp_path)
    assert len(set(paths)) == len(paths) == len(TABLES) + 2 * 7 + 2 * 6


def test_a_figure_that_fails_loses_no_result(
    make_result: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> Figure:
        raise RuntimeError("no | ink")

    monkeypatch.setitem(CHARTS, "forgetting", replace(CHARTS["forgetting"], make=broken, on_page=False))
    paths = write_report([make_result("naive")], tmp_path)
    assert len(paths) == len(TABLES) + 2 * 6
    assert "'forgetting' could not be drawn: RuntimeError: no | ink" in capsys.readouterr().err
    text = (tmp_path / "report.md").read_text()
    assert "could not be drawn" in text
    assert "35.0" in text or "`naive`" in text


@pytest.mark.parametrize("backend", ["no such backend", "TkAgg"])
def test_reports_are_drawn_whatever_MPLBACKEND_says(make_result: Make, tmp_path: Path, backend: str) -> None:
    """Also: neither pyplot nor torch is imported, and matplotlib's settings and the variable stay as they were."""
    make_result("naive", sizes=(2, 2)).write(tmp_path / "run")
    code = """
import os, sys
from clbench.results.result import load_results
from clbench.reports import write_report
paths = write_report(load_results(sys.argv[1]), sys.argv[2])
import matplotlib
assert len(paths) == 7 + 2 * 7, paths
assert not {"torch", "matplotlib.pyplot", "tkinter"} & set(sys.modules)
assert os.environ["MPLBACKEND"] == sys.argv[3]
assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "report"), backend]
    done = subprocess.run(
        command, env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
