"""A chart or a metric of one's own is declared in one place and then stands in every output; nothing needs torch."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from clbench.reports import charts, figures, latex, markdown, page, provenance, tables, write_figures, write_report
from clbench.reports.chart import Cell, Chart, Heading, HeatMap, NumberTable, Panel, Panels, Series, axis, names_axis
from clbench.reports.columns import TITLES, columns
from clbench.reports.comparison import Comparison, compare
from clbench.results import metrics
from clbench.results.result import Result

Make = Callable[..., Result]


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Takes back what a test registers."""
    kept = [(registry, dict(registry)) for registry in (charts.CHARTS, metrics.METRICS)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


def test_an_own_chart_is_on_the_page_in_the_report_and_a_figure(seven: list[Result], tmp_path: Path) -> None:
    @charts.chart()
    def longest_run(part: Comparison) -> Chart:
        """Draw the number of optimizer steps of each strategy as a bar."""
        series = [
            Series(row.label, row.look, [row.spread("steps").mean or 0.0], [i], row=i)
            for i, row in enumerate(part.rows)
        ]
        numbers = NumberTable([Heading("strategy")], [(i, [Cell(row.label)]) for i, row in enumerate(part.rows)])
        names = names_axis([row.label for row in part.rows])
        return Chart("Steps of a run", "bars", axis("steps", [40.0], zero=True), names, series, numbers)

    write_report(seven, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "<h4>Steps of a run</h4>" in html
    # One bar for each of the eight rows.
    chart = html.split("<h4>Steps of a run</h4>")[1].split("</figure>")[0]
    assert chart.count('class="band column') == 8
    assert 'data-t="icarl (linear): steps 35.0"' in chart
    stem = "split-mnist-5k-class-longest_run"
    assert f"![longest run](figures/{stem}.png)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / f"figures/{stem}.svg").stat().st_size > 0
    assert write_figures(seven, tmp_path, ["longest_run"], kind="png") == [tmp_path / f"{stem}.png"]


def test_an_own_metric_is_in_every_table_that_has_room_for_it(make_result: Make) -> None:
    """By hand: 1 - R[T-1, 0] is 0.5 and 0.3; the lower one is better, and bold."""

    @metrics.metric("How much of the first task is lost.", better="lower", unit="points")
    def first_task_loss(R: np.ndarray) -> float:  # noqa: N803
        return 1.0 - float(np.asarray(R)[-1, 0])

    parts = compare(
        [
            make_result(name, sizes=(2, 2), matrix=np.array([[0.9, np.nan], [end, 0.8]]))
            for name, end in (("er", 0.5), ("lwf", 0.7))
        ]
    )
    frame = tables.comparison(parts).set_index("strategy")
    assert frame["first_task_loss"].to_dict() == pytest.approx({"er": 0.5, "lwf": 0.3})
    assert "first_task_loss_low" in frame
    text = markdown.to_markdown(parts)
    assert "of forgetting and intransigence and first task loss less is better" in text
    assert "- **first task loss**: How much of the first task is lost." in text
    header = next(line for line in text.splitlines() if "| first task loss |" in line).split("|")
    line = next(line for line in text.split("### Forgetting")[1].splitlines() if line.startswith("| `lwf`")).split("|")
    assert line[header.index(" first task loss ")].strip() == "**30.0**"
    assert "first task loss %" in page.render(parts)


def test_a_metric_names_only_inputs_that_there_are() -> None:
    with pytest.raises(metrics.ConfigError, match="did you mean 'joint'"):
        metrics.metric("No such input.")(lambda joints: None)


def test_each_output_takes_its_columns_from_the_one_list(seven: list[Result]) -> None:
    (part,) = compare(seven)
    found = columns(part)
    titles = {output: [c.titles[output] for c in found if output in c.titles] for output in ("latex", "page", "runs")}
    header = next(line for line in latex.to_latex([part]).splitlines() if line.startswith("Strategy"))
    assert header.removesuffix(r" \\").split(" & ")[1:] == titles["latex"]
    (section,) = page.sections([part])
    shown = [heading.title for heading in section.table.headings]
    assert set(shown) - {"strategy", "n", "30 to 98 %"} <= set(titles["page"])
    assert [heading.title for heading in provenance.runs(part)[0].headings][3:-2] == titles["runs"]
    assert set(TITLES) <= {column.number for column in found}


def test_a_heat_map_can_be_an_own_figure_of_panels(seven: list[Result]) -> None:
    (part,) = compare(seven)
    heat = HeatMap(np.array([[10.0, 90.0]]), ["row"], ["one", "two"], "share (%)", "down", "across")
    panels = Panels("Own", "own", "", [Panel("er", part.rows[0].look, 0, heat)])
    panel = figures.render(panels).axes[0]
    assert [text.get_text() for text in panel.texts] == ["10", "90"]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["one", "two"]


def test_reports_are_made_where_there_is_no_torch(make_result: Make, tmp_path: Path) -> None:
    for name in ("naive", "er"):
        make_result(name, sizes=(2, 2)).write(tmp_path / "runs" / name)
    code = """
import importlib, pkgutil, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("there is no torch here")
sys.meta_path.insert(0, NoTorch())
import clbench.reports
for module in pkgutil.iter_modules(clbench.reports.__path__):
    importlib.import_module(f"clbench.reports.{module.name}")
from clbench.results.result import load_results
written = clbench.reports.write_report(load_results(sys.argv[1]), sys.argv[2])
assert {"report.html", "report.md", "report.tex"} <= {path.name for path in written}
"""
    command = [sys.executable, "-c", code, str(tmp_path / "runs"), str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be drawn" not in done.stderr
