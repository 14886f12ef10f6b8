"""A metric, a chart and a tracker of the user's own, named by the file that they stand in."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clbench
from clbench.cli import main
from clbench.config.errors import ConfigError
from clbench.reports.charts import CHARTS, chart_name
from clbench.results.metrics import METRICS, load_metric
from clbench.running.tracking import require_tracker

OWN = """
import clbench
from clbench.reports.chart import Chart, Series, names_axis, percent_axis
from clbench.reports.charts import chart


@clbench.metrics.metric("Accuracy on the first task that is lost at the end.", better="lower", unit="points")
def first_task_loss(R):
    done = clbench.metrics.completed(R)
    return float(done[0, 0] - done[-1, 0]) if len(done) > 1 else None


@chart()
def first_task(part):
    bars = [Series(row.label, row.look, [50.0], [i], row=i) for i, row in enumerate(part.rows)]
    return Chart("First", "bars", percent_axis("accuracy (%)"), names_axis([row.label for row in part.rows]), bars)


def nothing():
    return 5
"""
TRACKER = """
import clbench


class Lines(clbench.Tracker):
    def start(self, title, group, fields, known):
        self.file = (self.folder / "tracked.txt").open("a")

    def log(self, values, axis, at):
        for name, value in values.items():
            print(axis, at, name, value, file=self.file)

    def finish(self, status):
        print("ended", status, file=self.file)
        self.file.close()


class Half(clbench.Tracker):
    def start(self, title, group, fields, known):
        return None
"""
SMALL: dict[str, Any] = {"limit": 8, "epochs": 1, "batch_size": 8, "threads": 1, "tasks": 2, "model": "mlp:8"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "trackers.py").write_text(TRACKER)
    known = (dict(METRICS), dict(CHARTS))
    yield tmp_path
    registered: Any
    for registered, before in zip((METRICS, CHARTS), known, strict=True):
        registered.clear()
        registered.update(before)


def test_a_report_takes_a_metric_and_a_chart_by_their_file(place: Path) -> None:
    """In a process of its own, since both stay registered; the lost accuracy is R[0, 0] - R[1, 0] by hand."""
    result = clbench.run("split-mnist-5k", "naive", out="runs/one", **SMALL)
    code = "from clbench.cli import main; import sys; main(sys.argv[1:])"
    for more in (["--metric", "own.py:first_task_loss"], ["--figure", "own.py:first_task", "--format", "png"]):
        command = [sys.executable, "-c", code, "report", "runs", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    table = (place / "report/comparison.csv").read_text().splitlines()
    row = dict(zip(table[0].split(","), table[1].split(","), strict=True))
    assert float(row["first_task_loss"]) == pytest.approx(result.accuracy[0, 0] - result.accuracy[1, 0])
    assert "Accuracy on the first task that is lost" in (place / "report/report.md").read_text()
    assert [path.name for path in (place / "report").glob("*.png")] == ["split-mnist-5k-class-first_task.png"]


def test_a_tracker_by_its_file_hears_epochs_and_tasks(place: Path) -> None:
    result = clbench.run("split-mnist-5k", "naive", out="run", track="trackers.py:Lines", **SMALL)
    lines = (place / "run/tracked.txt").read_text().splitlines()
    assert lines[-1] == "ended done"
    assert [line.split()[2] for line in lines if line.startswith("optimizer_step")].count("loss/classification") == 2
    assert f"task 1 metrics/average_accuracy {result.metrics['average_accuracy']}" in lines
    other = clbench.run("split-mnist-5k", "naive", out="other", **SMALL)
    assert other.recorded.identity == result.recorded.identity


@pytest.mark.parametrize(
    ("load", "name", "words"),
    [
        (load_metric, "own.py:nothing", "a function under @clbench.metrics.metric"),
        (load_metric, "own.py:first_task_los", "did you mean 'first_task_loss'|accepted"),
        (load_metric, "gone.py:x", "there is no file gone.py"),
        (load_metric, "no-such", "unknown metric 'no-such'"),
        (chart_name, "own.py:nothing", "a function under @clbench.reports.charts.chart"),
        (require_tracker, "trackers.py:Half", "a subclass of clbench.Tracker with finish, log is accepted"),
        (require_tracker, "own.py:nothing", "a subclass of clbench.Tracker with start, log, finish"),
        (require_tracker, "tensorbord", "unknown tracker 'tensorbord'"),
    ],
)
def test_what_is_none_is_refused_by_its_name(load: Any, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(name)


def test_the_command_line_refuses_a_tracker_before_any_training(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "split-mnist-5k", "naive", "--track", "trackers.py:Half"])
    assert ended.value.code == 2
    assert "with finish, log is accepted" in capsys.readouterr().err
