"""Runs that are unfinished or failed: named in every output with how far they got; what they finished counts."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.reports import latex, markdown, page, tables, write_report
from clbench.reports.charts import CHARTS
from clbench.reports.comparison import Comparison, compare
from clbench.reports.verdict import verdict
from clbench.results.result import Result, load_all

TASKS = 4
FAILED_AT = {"task": 1, "stage": "train", "epoch": 0, "step": 7}


def made(
    strategy: str,
    seed: int,
    done: int = TASKS,
    status: str = "done",
    error: str | None = None,
    created: str = "2026-01-01",
) -> Result:
    """A run of four tasks whose accuracy on task j after task i is 0.9 - 0.1 (i - j), plus a hundredth of the seed."""
    rows: list[list[float | None]] = [[None] * TASKS for _ in range(TASKS)]
    for after in range(done):
        for task in range(after + 1):
            rows[after][task] = 0.9 - 0.1 * (after - task) + 0.01 * seed
    order = list(range(2 * TASKS))
    record = {
        "schema_version": 1,
        "clbench": "0.2.0",
        "status": status,
        "identity": f"{strategy}-{seed}-{status}",
        "created": created,
        "config": {"scenario": "s", "strategy": strategy, "seed": seed, "epochs": 1},
        "strategy": {
            "name": strategy,
            "label": strategy,
            "family": "replay",
            "reference": strategy == "joint",
            "data_access": "all" if strategy == "joint" else "task",
        },
        "scenario": {
            "name": "s",
            "setting": "class",
            "tasks": [{"classes": order[2 * t : 2 * t + 2], "n_test": 10} for t in range(TASKS)],
        },
        "class_order": order,
        "headline": {"matrix": "class_incremental", "classifier": "linear"},
        "accuracy": {"class_incremental": rows, "task_aware": rows},
        "tasks": [{"task": t, "steps": 7, "seconds": {"train": 2.0}} for t in range(done)],
        "ledger": [{"task": t, "bytes": {"model": 1000}} for t in range(done)],
    }
    if status == "failed":
        record |= {"error": error or "the loss is nan", "failed_at": FAILED_AT | {"task": done}}
    return Result(json.loads(json.dumps(record)))


def only(results: list[Result]) -> Comparison:
    (part,) = compare(results)
    return part


def everything(part: Comparison) -> dict[str, str]:
    """Return what each output says of a comparison, without line breaks."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    console.print(tables.render([part]))
    found = {
        "terminal": console.file.getvalue(),  # type: ignore[attr-defined]
        "markdown": markdown.to_markdown([part]),
        "latex": latex.to_latex([part]),
        "page": page.render([part]),
        "csv": tables.to_csv(tables.comparison([part])),
        "json": tables.comparison([part]).to_json(orient="records"),
    }
    return {name: " ".join(text.replace("&#39;", "'").split()) for name, text in found.items()}


MIXED = [
    *(made("naive", seed) for seed in range(3)),
    *(made("joint", seed) for seed in range(3)),
    *(made("lwf", seed) for seed in range(2)),
    made("lwf", 2, 3, "running"),
    *(made("er", seed, 1, "failed", "the loss is nan in task 1") for seed in range(3)),
]


@pytest.mark.parametrize("output", ["terminal", "markdown", "page", "csv", "json"])
def test_each_output_says_how_many_runs_are_not_finished_how_far_they_got_and_why(output: str) -> None:
    said = everything(only(MIXED))[output]
    assert "lwf: 1 of 3 runs are not finished: seed 2 got through 3 of 4 tasks." in said
    assert "er: 3 of 3 runs failed: seeds 0, 1, 2 got through 1 of 4 tasks and failed in task 1, stage train" in said
    assert "the loss is nan in task 1." in said


def test_the_latex_table_has_the_row_of_a_strategy_without_a_finished_run_and_counts_the_finished_ones() -> None:
    said = everything(only(MIXED))["latex"]
    assert "Finished runs: LwF 2 of 3; ER 0 of 3." in said
    assert "ER & -- & -- & -- & -- & -- \\\\" in said


def test_what_is_at_the_top_of_report_and_page_is_before_the_first_table() -> None:
    part = only(MIXED)
    text, html = markdown.to_markdown([part]), page.render([part])
    assert text.index("3 of 3 runs failed") < text.index("### Accuracy")
    assert html.index("3 of 3 runs failed") < html.index('<table class="sortable main">')
    assert "3 of 3 runs failed" not in text[text.index("### Accuracy") :], "said once"


def test_final_numbers_are_those_of_finished_runs_and_no_partial_mean() -> None:
    """lwf's unfinished run has 0.9 on its last task; the finished ones have 0.75 and 0.76 on average after the last."""
    part = only(MIXED)
    rows = {row.label: row for row in part.rows}
    assert rows["lwf"].count == "2 of 3"
    assert rows["lwf"].spread("average_accuracy").mean == pytest.approx((0.75 + 0.76) / 2)
    assert rows["lwf"].spread("average_accuracy").n == 2
    assert rows["lwf"].spread("seconds").mean == pytest.approx(8.0)
    assert rows["er"].count == "0 of 3"
    assert rows["er"].spread("average_accuracy") == (None, None, 0)
    assert part.rows[-1].label == "er", "without a number it is the last"
    assert "er" not in verdict(part).split()
    line = next(line for line in markdown.to_markdown([part]).splitlines() if line.startswith("| `er`"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2] == "0 of 3"
    assert set(cells[3:]) == {"-"}


def test_finished_tasks_count_in_the_curve_with_the_number_of_runs_of_each_point() -> None:
    """After task 2 three runs of lwf have 0.8, 0.81 and 0.82 on average; after task 3 only two have a value."""
    part = only(MIXED)
    chart = CHARTS["average_accuracy"].make(part)
    numbers: Any = chart.numbers  # type: ignore[union-attr]
    lines = {str(cells[0].text): [str(cell.text) for cell in cells[1:]] for _, cells in numbers.lines}
    assert lines["LwF"] == ["91.0 ± 1.0 (n=3)", "86.0 ± 1.0 (n=3)", "81.0 ± 1.0 (n=3)", "75.5 ± 0.7 (n=2)"]
    assert lines["ER"] == ["91.0 ± 1.0 (n=3)", "-", "-", "-"]
    assert lines["naive"] == ["91.0 ± 1.0", "86.0 ± 1.0", "81.0 ± 1.0", "76.0 ± 1.0"]
    one = only([*MIXED[:7], made("lwf", 1, 1, "running")])
    numbers = CHARTS["average_accuracy"].make(one).numbers  # type: ignore[union-attr]
    lines = {str(cells[0].text): [str(cell.text) for cell in cells[1:]] for _, cells in numbers.lines}
    assert lines["LwF"][1:] == ["85.0 (n=1)", "80.0 (n=1)", "75.0 (n=1)"], "one value has no deviation"


def test_each_run_is_in_the_csv_with_its_state_and_its_finished_rows() -> None:
    part = only(MIXED)
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(tables.runs([part])))))
    states = [(row["strategy"], row["seed"], row["status"], row["tasks_done"]) for row in rows]
    assert ("lwf", "2", "running", "3") in states
    assert ("er", "1", "failed", "1") in states
    assert [row["average_accuracy"] for row in rows if row["status"] != "done"] == [""] * 4
    cells = [
        row for row in csv.DictReader(io.StringIO(tables.to_csv(tables.matrices([part])))) if row["strategy"] == "lwf"
    ]
    known = [row for row in cells if row["seed"] == "2" and row["accuracy"] and row["matrix"] == "class_incremental"]
    assert [(row["after"], row["task"]) for row in known] == [(str(i), str(j)) for i in range(3) for j in range(i + 1)]
    lwf = next(
        row for row in csv.DictReader(io.StringIO(tables.to_csv(tables.comparison([part])))) if row["strategy"] == "lwf"
    )
    assert (lwf["n"], lwf["n_unfinished"], lwf["seeds"]) == ("2", "1", "0 1")


def test_a_complete_set_says_nothing_of_it_and_has_no_further_column() -> None:
    part = only([run for run in MIXED if run.status == "done"])
    assert part.unfinished == {}
    for text in everything(part).values():
        assert "not finished" not in text
        assert " of 3" not in text
    for frame in (tables.comparison([part]), tables.runs([part])):
        assert not {"status", "tasks_done", "unfinished", "n_unfinished"} & set(frame.columns)


def test_a_finished_run_of_the_same_seed_comes_before_one_that_is_not() -> None:
    """The failed one is newer; the older one that was finished has the numbers, and the other is left out aloud."""
    part = only([made("er", 0), made("er", 0, 1, "failed", created="2026-02-02")])
    assert part.rows[0].count == "1"
    assert any("1 run(s) that are older, or not finished, of the same seed are left out" in note for note in part.notes)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["naive", "joint", "er", "lwf"]), st.integers(0, TASKS), st.sampled_from("drf")),
        min_size=1,
        max_size=8,
    )
)
def test_any_mixture_of_states_makes_a_report(drawn: list[tuple[str, int, str]]) -> None:
    """Of each strategy every run is counted, as finished or not, in each output, and no output has a NaN."""
    state = {"d": "done", "r": "running", "f": "failed"}
    results = [
        made(name, seed, TASKS if kind == "d" else done, state[kind]) for seed, (name, done, kind) in enumerate(drawn)
    ]
    part = only(results)
    for name in {name for name, *_ in drawn}:
        kinds = [kind for other, _, kind in drawn if other == name]
        row = next(row for row in part.rows if row.label == name)
        finished = kinds.count("d")
        assert row.count == (str(finished) if finished == len(kinds) else f"{finished} of {len(kinds)}")
        assert (name in part.unfinished) == (finished < len(kinds))
    for output, text in everything(part).items():
        assert ">nan" not in text.lower(), output
        assert "$nan" not in text, output


def test_all_figures_are_drawn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = tmp_path / "report"
    write_report([run for run in MIXED if run.recorded.strategy.name != "naive"], folder)
    assert "could not be drawn" not in (folder / "report.md").read_text()
    assert not [str(warning.message) for warning in recwarn if "layout" in str(warning.message)]
    assert (folder / "figures" / "s-class-task_accuracy.png").exists()


FAILS = '''
import clbench


class Fails(clbench.Strategy):
    """Naive, until its second task."""

    traits = clbench.Traits(family="regularisation")

    def begin_task(self, task):
        if task.index == 1:
            raise ValueError("no second task for me")


class Stops(clbench.Strategy):
    """Naive; it is interrupted in the third task of seed 1."""

    traits = clbench.Traits(family="regularisation")

    def begin_task(self, task):
        if task.index == 2 and self.config.seed == 1:
            raise KeyboardInterrupt
'''
FAST = ["--limit", "5", "--epochs", "1", "--model", "mlp:8", "--quiet", "--no-references"]


def clbench_verb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clbench", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_compare_and_report_have_the_row_of_a_competitor_that_failed_in_all_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILS)
    ended = clbench_verb(tmp_path, "compare", "split-mnist-5k", "naive", "mine.py:Fails", "--seeds", "2", *FAST)
    assert ended.returncode == 1
    told = " ".join(ended.stdout.split())
    assert "mine.py:Fails: 2 of 2 runs failed: seeds 0, 1 got through 1 of 5 tasks and failed in task 1" in told
    assert "ValueError: no second task for me" in told
    assert any("mine.py:Fails" in line and "0 of 2" in line for line in ended.stdout.splitlines())
    for name in ("report.md", "report.html", "comparison.csv"):
        assert "no second task for me" in (tmp_path / "runs" / "report" / name).read_text(), name
    again = clbench_verb(tmp_path, "report", "runs")
    assert again.returncode == 0
    assert "2 of 2 runs failed" in " ".join(again.stdout.split())
    assert "left out" not in again.stderr
    table = json.loads(clbench_verb(tmp_path, "report", "runs", "--json").stdout)
    failed = next(row for row in table if row["strategy"] == "mine.py:Fails")
    assert (failed["n"], failed["n_unfinished"], failed["average_accuracy"]) == (0, 2, None)


@pytest.mark.slow
def test_report_names_a_run_that_was_interrupted_and_counts_its_finished_tasks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILS)
    ended = clbench_verb(tmp_path, "compare", "split-mnist-5k", "mine.py:Stops", "--seeds", "2", *FAST)
    assert ended.returncode == 130
    told = clbench_verb(tmp_path, "report", "runs")
    assert told.returncode == 0
    expected = "mine.py:Stops: 1 of 2 runs are not finished: seed 1 got through 2 of 5 tasks."
    assert expected in " ".join(told.stdout.split())
    part = only(load_all(tmp_path / "runs"))
    assert part.rows[0].count == "1 of 2"
    known = ~np.isnan(part.rows[0].matrices[:, :, 0])
    assert known.tolist() == [[True] * 5, [True, True, False, False, False]]


def test_no_finished_run_at_all_is_refused_as_before(tmp_path: Path, refused: Callable[..., Any]) -> None:
    made("er", 0, 2, "running").write(tmp_path / "er")
    with refused("no finished run"):
        load_all(tmp_path)
