"""Figures: readable at any size, in grey and with any name; and no figure can cost a result."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from clbench.reports import figures, tables, write_report
from clbench.result import Result

Make = Callable[..., Result]
NAMES = ("naive", "joint", "feature-extraction", "lwf", "ewc", "er", "icarl", "si", "mas", "der", "bic", "gdumb")
HOSTILE = ("naive", "<script>$x_1$</script>", r"$\frac{1", "_hidden", "n" * 200)


def of(results: list[Result]) -> tables.Comparison:
    (part,) = tables.compare(results)
    return part


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
@pytest.mark.parametrize("name", figures.FIGURES)
def test_each_figure_is_drawn_as_png_and_svg(
    make_result: Make, name: str, names: tuple[str, ...], sizes: tuple[int, ...], seeds: int
) -> None:
    part = of([make_result(label, seed, sizes=sizes) for label in names for seed in range(seeds)])
    files = figures.draw(name, part)
    assert files["png"].startswith(b"\x89PNG")
    assert ET.fromstring(files["svg"]).tag.endswith("svg")


def test_an_svg_is_the_same_each_time(make_result: Make) -> None:
    part = of([make_result("naive", seed) for seed in range(2)])
    assert figures.draw("average_accuracy", part)["svg"] == figures.draw("average_accuracy", part)["svg"]


def test_axes_name_their_units(seven: list[Result]) -> None:
    part = of(seven)
    average = figures.average_accuracy(part).axes[0]
    assert average.get_ylabel() == "average class-incremental accuracy (%)"
    assert average.get_xlabel() == "after task"
    assert "percentage points" in figures.forgetting(part).axes[0].get_xlabel()
    for figure in (figures.task_accuracy(part), figures.accuracy_matrices(part)):
        assert "after task" in {figure.get_supxlabel(), figure.get_supylabel()}
    assert "accuracy (%)" in figures.task_accuracy(part).get_supylabel()
    assert "accuracy (%)" in figures.accuracy_matrices(part).axes[-1].get_ylabel()


def test_the_band_is_one_sd_over_seeds(make_result: Make) -> None:
    """One task, accuracies .5 and .7: by hand mean 60 %, sd (n-1) sqrt(2) * 10 %."""
    part = of([make_result("lwf", seed, sizes=(2,), matrix=np.array([[v]])) for seed, v in enumerate((0.5, 0.7))])
    panel = figures.average_accuracy(part).axes[0]
    assert panel.lines[0].get_ydata() == pytest.approx([60])
    heights = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((60 - 14.1421, 60 + 14.1421), abs=1e-3)


def test_the_references_are_dashed_and_named(seven: list[Result]) -> None:
    """PR12: joint and naive are lines in the plots over steps and of forgetting; only they are dashed."""
    part = of(seven)
    figure = figures.average_accuracy(part)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    dashed = {n for n, line in zip(names, figure.axes[0].lines, strict=True) if line.get_linestyle() == "--"}
    assert dashed == {"joint (upper reference)", "naive (lower reference)"}
    bars = figures.forgetting(part).axes[0]
    lines = {line.get_xdata()[0] for line in bars.lines if line.get_linestyle() == "--"}
    expected = [100 * part_row.spread("forgetting").mean for part_row in (part.rows[0], part.rows[-1])]
    assert sorted(lines) == pytest.approx(expected)


def test_lines_and_bars_can_be_told_apart_in_grey(make_result: Make) -> None:
    part = of([make_result(name) for name in NAMES])
    lines = figures.average_accuracy(part).axes[0].lines
    styles = {(line.get_marker(), str(line.get_linestyle()), line.get_color()) for line in lines}
    assert len(styles) == len(NAMES)
    competitors = [line for line in lines if line.get_linestyle() != "--"]
    assert len({line.get_marker() for line in competitors}) == len(NAMES) - 2


def test_tick_labels_thin_out_with_many_tasks(make_result: Make) -> None:
    part = of([make_result("naive", sizes=(1,) * 20)])
    for panel in (figures.average_accuracy(part).axes[0], figures.accuracy_matrices(part).axes[0]):
        assert 5 <= len(panel.get_xticks()) <= 10


def test_cells_show_their_numbers_legibly_and_nothing_where_nothing_was_tested(make_result: Make) -> None:
    """A contrast of 3 is what WCAG asks for of graphics; NaN cells have no text, not a 0."""
    values = np.linspace(0, 1, 10)
    matrix = np.full((10, 10), np.nan)
    matrix[np.tril_indices(10)] = np.resize(np.linspace(0, 1, 19), 55)
    matrix[9] = values
    panel = figures.accuracy_matrices(of([make_result("lwf", sizes=(1,) * 10, matrix=matrix)])).axes[0]
    assert len(panel.texts) == 55
    for text in panel.texts:
        value = float(text.get_text()) / 100
        pair = sorted((luminance(matplotlib.colormaps["cividis"](value)), luminance(text.get_color())))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) > 3


def test_matrices_show_the_mean_over_seeds(make_result: Make) -> None:
    results = [make_result("lwf", seed, sizes=(2,), matrix=np.array([[v]])) for seed, v in enumerate((0.2, 0.6))]
    assert [text.get_text() for text in figures.accuracy_matrices(of(results)).axes[0].texts] == ["40"]


def test_long_names_keep_their_two_ends(make_result: Make) -> None:
    part = of([make_result("er", label="er[" + "x" * 100 + "memory_size=500]")])
    (text,) = figures.average_accuracy(part).legends[0].get_texts()
    assert text.get_text().startswith("er[")
    assert text.get_text().endswith("memory_size=500]"[-10:])
    assert len(text.get_text()) <= 30


def test_report_writes_tables_and_figures_that_it_refers_to(seven: list[Result], tmp_path: Path) -> None:
    paths = write_report(seven, tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in paths}
    stem = "figures/split-mnist-5k-class-"
    pictures = {f"{stem}{name}.{kind}" for name in figures.FIGURES for kind in ("png", "svg")}
    assert names == {"report.html", "report.md", "comparison.csv", "runs.csv", "matrices.csv"} | pictures
    assert all(path.stat().st_size > 0 for path in paths)
    text = (tmp_path / "report.md").read_text()
    assert all(f"]({name})" in text for name in pictures if name.endswith("png"))


def test_scenarios_that_share_a_name_get_their_own_figures(make_result: Make, tmp_path: Path) -> None:
    results = [make_result("naive", sizes=(2, 2)), make_result("naive", sizes=(4,))]
    paths = write_report(results, tmp_path)
    assert len(set(paths)) == len(paths) == 5 + 2 * 8


def test_a_figure_that_fails_loses_no_result(
    make_result: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: tables.Comparison) -> Figure:
        raise RuntimeError("no | ink")

    monkeypatch.setitem(figures.FIGURES, "forgetting", broken)
    paths = write_report([make_result("naive")], tmp_path)
    assert len(paths) == 5 + 6
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
from clbench.result import load_results
from clbench.reports import write_report
paths = write_report(load_results(sys.argv[1]), sys.argv[2])
import matplotlib
assert len(paths) == 13, paths
assert not {"torch", "matplotlib.pyplot", "tkinter"} & set(sys.modules)
assert os.environ["MPLBACKEND"] == sys.argv[3]
assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "report"), backend]
    done = subprocess.run(
        command, env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
