"""Runs that failed before they could say so, comparisons in which all failed, and a second report in a folder."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import clbench
from clbench.cli import main
from clbench.many.compare import plan
from clbench.many.execution import recorded
from clbench.reports import earlier_results, latex, left_out, tables, write_report
from clbench.reports.comparison import compare
from clbench.reports.verdict import verdict
from clbench.results.result import Result
from clbench.running.folder import RunFolder

SMALL = {"limit": 5, "epochs": 1, "model": "mlp:8", "threads": 1}
WORDS = ["--limit", "5", "--epochs", "1", "--model", "mlp:8", "--threads", "1", "--quiet", "--no-references"]
FAILS = '''
import clbench


class Fails(clbench.Strategy):
    """Naive, until its first task."""

    traits = clbench.Traits(family="regularisation")

    def begin_task(self, task):
        raise ValueError("no task for me")
'''


@pytest.fixture
def failed() -> Callable[..., Result]:
    """Make a run of two tasks that failed in the first or the second."""

    def made(strategy: str, seed: int, done: int = 0, error: str = "the loss is nan") -> Result:
        rows = [[0.9, None] if i < done else [None, None] for i in range(2)]
        record = {
            "schema_version": 1,
            "clbench": "0.2.0",
            "status": "failed",
            "identity": f"{strategy}-{seed}",
            "created": "2026-01-01",
            "config": {"scenario": "s", "strategy": strategy, "seed": seed, "epochs": 1},
            "strategy": {"name": strategy, "label": strategy, "family": "replay"},
            "scenario": {
                "name": "s",
                "setting": "class",
                "tasks": [{"classes": [2 * t, 2 * t + 1], "n_test": 10} for t in range(2)],
            },
            "class_order": [0, 1, 2, 3],
            "headline": {"matrix": "class_incremental", "classifier": "linear"},
            "accuracy": {"class_incremental": rows, "task_aware": rows},
            "tasks": [{"task": t, "steps": 7, "seconds": {"train": 2.0}} for t in range(done)],
            "ledger": [{"task": t, "bytes": {"model": 1000}} for t in range(done)],
            "error": error,
            "failed_at": {"task": done, "stage": "train", "epoch": 3, "step": 7},
        }
        return Result(json.loads(json.dumps(record)))

    return made


# All failed


def test_a_report_in_which_all_runs_failed_is_written_and_says_why(
    failed: Callable[..., Result], tmp_path: Path
) -> None:
    write_report([failed(name, seed, done) for done, name in enumerate(("er", "lwf")) for seed in range(2)], tmp_path)
    for name in ("report.md", "report.html", "report.tex", "comparison.csv"):
        text = " ".join((tmp_path / name).read_text().split())
        for done, strategy in enumerate(("er", "lwf")):
            told = f"2 of 2 runs failed: seeds 0, 1 got through {done} of 2 tasks and failed in task {done}"
            assert f"{strategy}: {told}" in text, name
        assert "epoch 3, step 7: the loss is nan" in text, name
    assert "could not be drawn" not in (tmp_path / "report.md").read_text()
    nothing = compare([failed("er", 0)])[0]
    assert verdict(nothing) == "Nothing can be said yet: no competitor has a number."


def test_each_run_that_failed_says_where_and_why_in_the_csv(failed: Callable[..., Result]) -> None:
    frame = tables.to_csv(tables.runs(compare([failed("er", 0, 1, "one, two\nthree")])))
    (row,) = csv.DictReader(io.StringIO(frame))
    assert (row["status"], row["tasks_done"]) == ("failed", "1")
    assert (row["failed_at_task"], row["failed_at_epoch"], row["failed_at_step"]) == ("1", "3", "7")
    assert row["error"] == "one, two\nthree"


def test_a_reason_of_several_lines_stays_a_comment_in_latex(failed: Callable[..., Result]) -> None:
    text = latex.to_latex(compare([failed("er", 0, 1, "one\n\\end{document}")]))
    (line,) = [line for line in text.splitlines() if "end{document}" in line]
    assert line.startswith("% er: 1 of 1 runs failed")


# Failed before, or without, a word in the folder


def test_a_run_that_could_not_write_down_its_failure_has_it_in_the_result(tmp_path: Path) -> None:
    """Nothing in the folder, a run under way, one that failed itself, and one that is done."""
    item, *_ = plan("split-mnist-5k", ["naive"], seeds=1, references=False, out=tmp_path, **SMALL)
    assert recorded(item) is None
    never = recorded(item, "its process was killed")
    assert never is not None
    assert (never.status, never.recorded.error, never.recorded.tasks) == ("failed", "its process was killed", [])
    part = compare([never])[0]
    assert part.rows[0].count == "0 of 1"
    assert "seed 0 got through 0 of 5 tasks and failed: its process was killed" in part.unfinished["naive"]

    class Stop(clbench.Observer):
        def task(self, task: int, row: list[float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clbench.running.run.execute(
            item.config, clbench.running.resolve.prepare(item.config)[1], RunFolder(item.folder), observer=Stop()
        )
    under_way = recorded(item)
    assert under_way is not None
    assert under_way.status == "running"
    killed = recorded(item, "its process was killed")
    assert killed is not None
    assert (killed.status, len(killed.recorded.tasks)) == ("failed", 1)
    assert Result.load(item.folder).status == "running", "it can still be continued"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_compare_shows_its_rows_where_every_run_failed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FAILS)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "split-mnist-5k", "mine.py:Fails", "--seeds", "2", *WORDS, *words])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "2 of 2 runs failed" in " ".join(said.out.split())
    assert "no task for me" in said.out
    assert "2 of 2 runs failed" in said.err
    if words:
        (row,) = json.loads(said.out)
        assert (row["n"], row["n_unfinished"]) == (0, 2)
    else:
        assert any("mine.py:Fails" in line and "0 of 2" in line for line in said.out.splitlines())
    assert "no task for me" in (tmp_path / "runs/report/report.md").read_text()


# A second report in the same folder


def shown(folder: Path) -> set[str]:
    """Return the figures that a report shows."""
    return set(re.findall(r"\(figures/([^)]+)\.png\)", (folder / "report.md").read_text()))


def drawn(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "figures").iterdir()}


@pytest.mark.slow
def test_a_second_comparison_in_the_same_folder_is_held_beside_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "runs/report"
    asked = (
        ["split-mnist-5k", "icarl"],
        ["split-mnist-5k", "er", "--setting", "task"],
        ["permuted-mnist-5k", "er", "--tasks", "2"],
        ["split-mnist-5k", "naive"],
    )
    titles: dict[str, str] = {}
    for words in asked:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *words, "--seeds", "1", *WORDS])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        found = re.findall(r"^## (.*)$", (report / "report.md").read_text(), re.MULTILINE)[:-1]
        titles = dict.fromkeys(found[:1], words[1]) | {title: titles[title] for title in found[1:]}
        assert ("beside the earlier comparison" in said) == (len(found) > 1)
        assert drawn(report) == shown(report)
    # The fourth is of the scenario of the first, and takes its place.
    assert sorted(titles.values()) == ["er", "er", "naive"]
    page = (report / "report.html").read_text()
    for title in titles:
        assert title in page


def test_only_figures_that_the_report_before_showed_are_removed(
    failed: Callable[..., Result], seven_finished: list[Result], tmp_path: Path
) -> None:
    write_report(seven_finished, tmp_path)
    before = drawn(tmp_path)
    (tmp_path / "figures/mine.png").write_bytes(b"mine")
    write_report([failed("er", 0)], tmp_path)
    assert len(shown(tmp_path)) < len(before)
    assert drawn(tmp_path) == shown(tmp_path) | {"mine"}


@pytest.fixture
def seven_finished(failed: Callable[..., Result]) -> list[Result]:
    """Runs of another scenario that are done."""
    rows = [[0.9, None], [0.4, 0.8]]
    made = []
    for run in (failed("er", seed, 2) for seed in range(2)):
        record = run.record | {"status": "done", "identity": f"{run.seed:08x}aa", "error": None, "failed_at": None}
        record["scenario"] = record["scenario"] | {"name": "other"}
        record["accuracy"] = {"class_incremental": rows, "task_aware": rows}
        made.append(Result(record))
    return made


def test_what_is_no_longer_there_or_of_the_same_comparison_is_not_held(
    failed: Callable[..., Result], seven_finished: list[Result], tmp_path: Path
) -> None:
    runs, report = tmp_path / "runs", tmp_path / "runs/report"
    now = [failed("er", 0)]
    assert earlier_results(report, now, runs) == [], "no report yet"
    assert left_out(report, now) == 0
    for run in seven_finished:
        run.write(runs / "other" / "er" / f"{run.seed}-{run.recorded.identity[:8]}")
    report.mkdir()
    (report / "runs.csv").write_text(tables.to_csv(tables.runs(compare(seven_finished))))
    assert [run.seed for run in earlier_results(report, now, runs)] == [0, 1]
    assert left_out(report, now) == 0, "those are of another comparison"
    assert earlier_results(report, seven_finished[:1], runs) == [], "it is made anew"
    assert left_out(report, seven_finished[:1]) == 1
    (runs / "other/er/1-00000001/run.json").unlink()
    assert [run.seed for run in earlier_results(report, now, runs)] == [0]
    (runs / "other/er/0-00000000/run.json").write_text("{")
    assert earlier_results(report, now, runs) == []


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"a,b\n1,2\n", b"scenario,setting,task_sizes,identity,seed\n1,2,3,4,x"]
)
def test_a_file_of_another_program_is_left_alone(content: bytes, failed: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_bytes(content)
    assert earlier_results(tmp_path, [failed("er", 0)], tmp_path) == []
