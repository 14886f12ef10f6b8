"""Result: run.json and the CSV files beside it. The matrix is the worked example with hand-computed metrics."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clbench
from clbench.config.errors import ConfigError
from clbench.results.result import RECORDED, Result, load_results
from clbench.support.files import write_atomically

NAN = float("nan")
# R[0, 2] was not evaluated, so that a hole is in every round trip.
R = [[0.80, 0.30, NAN], [0.85, 0.80, 0.20], [0.50, 0.60, 0.90]]


def record(**changes: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "clbench": "0.1.0",
        "status": "done",
        "identity": "abc",
        "created": "2026-01-01T00:00:00+00:00",
        "config": {"scenario": "toy", "setting": "class", "strategy": "lwf", "seed": 3},
        "strategy": {"name": "lwf", "label": "lwf[strength=2.0]", "family": "distillation"},
        "scenario": {
            "name": "toy",
            "setting": "class",
            "tasks": [{"classes": [2 * t, 2 * t + 1], "n_test": 10} for t in range(3)],
        },
        "class_order": [0, 1, 2, 3, 4, 5],
        "headline": {"matrix": "class_incremental", "classifier": "linear"},
        "accuracy": {
            "class_incremental": [list(row) for row in R],
            "task_aware": None,
            "untrained": {"class_incremental": [0.10, 0.10, 0.10], "task_aware": None},
        },
        "training": [
            {"task": 0, "stage": "train", "epoch": 0, "steps": 7, "lr": 0.5, "losses": {"classification": 0.25}},
            {"task": 1, "stage": "train", "epoch": 0, "losses": {"classification": 0.5, "distillation": NAN}},
        ],
        "metrics": {"average_accuracy": 2 / 3, "min_accuracy": 0.4},
    } | changes


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    Result(record()).write(tmp_path)
    for path in (tmp_path, tmp_path / "run.json"):
        result = Result.load(path)
        np.testing.assert_array_equal(result.accuracy, np.array(R))
        assert (result.strategy, result.scenario, result.seed) == ("lwf[strength=2.0]", "toy", 3)
        assert result.task_aware_accuracy is None
        assert result.untrained is not None
        assert result.untrained.tolist() == [0.1, 0.1, 0.1]
        assert list(result.classifiers) == ["linear"]
    assert "NaN" not in (tmp_path / "run.json").read_text()
    assert "\n" not in repr(result)


def test_accuracy_csv_holds_each_entry_once_in_full(tmp_path: Path) -> None:
    """The whole T x T matrix is a plain CSV; what was not evaluated is empty."""
    Result(record()).write(tmp_path)
    rows = read_csv(tmp_path / "accuracy.csv")
    assert list(rows[0]) == ["matrix", "classifier", "after", "task", "accuracy"]
    assert {(int(r["after"]), int(r["task"])): r["accuracy"] for r in rows} == {
        (i, j): "" if np.isnan(R[i][j]) else repr(R[i][j]) for i in range(3) for j in range(3)
    }
    assert len(rows) == 9


def test_evaluations_during_training_stay_out_of_the_matrix(tmp_path: Path) -> None:
    """Periodic evaluations have records of their own, with their step; rows of the matrix come once."""
    midway = [{"task": 2, "stage": "train", "epoch": 0, "step": 5, "class_incremental": [0.11, 0.12, 0.13]}]
    Result(record(evaluations=midway)).write(tmp_path)
    rows = read_csv(tmp_path / "accuracy.csv")
    assert [r["accuracy"] for r in rows if r["after"] == "2"] == ["0.5", "0.6", "0.9"]
    assert json.loads((tmp_path / "run.json").read_text())["evaluations"] == midway


def test_training_csv_has_a_column_for_each_loss_term(tmp_path: Path) -> None:
    Result(record()).write(tmp_path)
    first, second = read_csv(tmp_path / "training.csv")
    assert first["loss_classification"] == "0.25"
    assert (first["lr"], first["steps"], first["loss_distillation"]) == ("0.5", "7", "")
    assert (second["loss_classification"], second["loss_distillation"]) == ("0.5", "")


def test_further_classifiers_are_read_and_written_under_their_names(tmp_path: Path) -> None:
    """A run holds the accuracies of both classifiers, and which of them is the headline one."""
    accuracy = record()["accuracy"]
    other = {"class_incremental": [[0.5] * 3] * 3, "task_aware": [[0.75] * 3] * 3}
    result = Result(
        record(
            headline={"matrix": "class_incremental", "classifier": "nearest_mean"},
            classifiers={"linear": other, "nearest_mean": accuracy},
        )
    )
    assert list(result.classifiers) == ["nearest_mean", "linear"]
    np.testing.assert_array_equal(result.accuracy, np.array(R))
    assert result.summary(classifier="linear")["average_accuracy"] == pytest.approx(0.5)
    assert result.summary(classifier="linear", matrix="task_aware")["average_accuracy"] == pytest.approx(0.75)
    result.write(tmp_path)
    assert {row["classifier"] for row in read_csv(tmp_path / "accuracy.csv")} == {"nearest_mean", "linear"}
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        result.summary(classifier="linea")


def test_summary_takes_intransigence_from_a_joint_run() -> None:
    """The worked example: a* = [.92, .85, .95] on joint's diagonal, R[2, 2] = .90, so I_3 = .05; ACC = .666667."""
    best = [[0.92, NAN, NAN], [0.1, 0.85, NAN], [0.1, 0.1, 0.95]]
    joint = Result(record(accuracy={"class_incremental": best}))
    result = Result(record())
    assert result.summary()["intransigence"] is None
    summary = result.summary(joint)
    assert summary["intransigence"] == pytest.approx(0.05)
    assert summary["average_accuracy"] == pytest.approx(0.666667, abs=1e-6)
    # Minima between the ends of tasks can't be had from the matrix: the recorded one stays.
    assert summary["min_accuracy"] == 0.4
    other = record()
    other["scenario"]["tasks"][0]["classes"] = [8, 9]
    with pytest.raises(ConfigError, match="over the same tasks"):
        result.summary(Result(other))


def test_rows_still_to_come_are_nan() -> None:
    unfinished = Result(record(status="running", accuracy={"class_incremental": [R[0]]}))
    assert unfinished.accuracy.shape == (3, 3)
    assert np.isnan(unfinished.accuracy[1:]).all()
    assert unfinished.summary()["average_accuracy"] == pytest.approx(0.80)


def with_accuracy(matrix: object) -> bytes:
    return json.dumps(record(training=[], accuracy={"class_incremental": matrix})).encode()


HOSTILE = {
    "empty": b"",
    "truncated": json.dumps(record(training=[], accuracy={})).encode()[:-40],
    "not UTF-8": b'{"schema_version": 1, "a": "\xff"}',
    "deeply nested": b"[" * 100_000,
    "a list": b"[1, 2]",
    "another program's": b'{"id": "run", "loss": 0.1}',
    "a newer schema": b'{"schema_version": 2}',
    "a huge number": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "a lone surrogate": json.dumps(record(training=[], accuracy={}, identity="\ud800")).encode(),
    "nothing but the version": b'{"schema_version": 1}',
    "a ragged matrix": with_accuracy([[0.1, 0.2, 0.3], [0.1]]),
    "too many rows": with_accuracy([[0.1, 0.2, 0.3]] * 4),
    "percent": with_accuracy([[80.0, 30.0, 10.0]] * 3),
    "text for a number": with_accuracy([["0.8", "0.1", "0.2"]] * 3),
    "no headline matrix": with_accuracy(None),
    "untrained of other tasks": json.dumps(
        record(training=[], accuracy={"class_incremental": [], "untrained": {"class_incremental": [0.1]}})
    ).encode(),
    "an evaluation of other tasks": json.dumps(
        record(
            training=[],
            accuracy={"class_incremental": []},
            evaluations=[{"task": 0, "class_incremental": [0.1]}],
        )
    ).encode(),
    "no tasks": json.dumps(
        record(training=[], accuracy={}, scenario={"name": "toy", "setting": "class", "tasks": []})
    ).encode(),
    "options that are a list": json.dumps(
        record(training=[], accuracy={"class_incremental": []}, config={"seed": 0, "strategy_options": [1]})
    ).encode(),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        Result.load(tmp_path)
    message = str(refusal.value)
    assert str(tmp_path / "run.json") in message
    assert "\n" not in message
    assert len(message) < 400


def test_a_missing_run_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such file"):
        Result.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"run\.json: no such file"):
        Result.load(tmp_path)


def test_load_results_finds_finished_runs_in_natural_order(tmp_path: Path) -> None:
    for seed in (10, 2, 1):
        Result(record(config={"seed": seed})).write(tmp_path / f"seed-{seed}")
    Result(record(status="running")).write(tmp_path / "seed-3")
    with pytest.warns(UserWarning, match=r"seed-3.*not finished \(running\)"):
        results = load_results([tmp_path, tmp_path / "seed-2"])
    assert [result.seed for result in results] == [1, 2, 10]
    assert [result.seed for result in load_results(tmp_path / "seed-2")] == [2]


def test_load_results_refuses_folders_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run"):
        load_results(tmp_path)
    with pytest.raises(ConfigError, match="absent"):
        load_results([tmp_path / "absent"])


def test_load_results_goes_on_without_a_damaged_run_and_says_so(tmp_path: Path) -> None:
    """Named itself or found in a folder; only where nothing is left is it an error."""
    Result(record()).write(tmp_path / "whole")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_bytes(HOSTILE["truncated"])
    for paths in (tmp_path, [tmp_path / "torn" / "run.json", tmp_path / "whole"]):
        with pytest.warns(UserWarning, match=r"left out: .*torn.*damaged"):
            assert [result.seed for result in load_results(paths)] == [3]
    with pytest.raises(ConfigError, match=r"torn.*damaged"):
        load_results(tmp_path / "torn")


def evaluations(*rows: tuple[int, list[float | None]]) -> list[dict[str, object]]:
    return [
        {"task": task, "stage": "train", "epoch": 0, "step": step, "class_incremental": row, "task_aware": None}
        for step, (task, row) in enumerate(rows)
    ]


def test_evaluations_within_tasks_give_the_minimal_accuracies() -> None:
    """De Lange et al. 2023, the worked example: task 0 falls to .40 in task 1 and to .35 in task 2, task 1 to .45.

    min-ACC (.35 + .45) / 2 = .40, WC-ACC .90 / 3 + 2/3 * .40 = .566667; what came before a task was learned, and the
    value when just learned, do not count.
    """
    within = evaluations(
        (0, [0.01, None, None]), (1, [0.40, 0.02, None]), (1, [0.70, 0.5, None]), (2, [0.35, 0.45, 0.1])
    )
    result = Result(record(evaluations=within))
    assert [(e.task, e.step) for e in result.recorded.evaluations] == [(0, 0), (1, 1), (1, 2), (2, 3)]
    assert result.summary()["min_accuracy"] == pytest.approx(0.40)
    assert result.summary()["worst_case_accuracy"] == pytest.approx(0.566667, abs=1e-6)
    # After two tasks: the lowest of task 0 is .40, and .80 / 2 + .40 / 2 = .60.
    half = Result(record(status="running", accuracy={"class_incremental": R[:2]}, evaluations=within[:3]))
    assert half.summary()["min_accuracy"] == pytest.approx(0.40)
    assert half.summary()["worst_case_accuracy"] == pytest.approx(0.60)


def test_the_end_of_a_task_counts_as_an_evaluation_too() -> None:
    """Within tasks nothing is below R[2, 0] = .50 and R[2, 1] = .60: min-ACC .55 by hand."""
    within = evaluations((1, [0.9, 0.1, None]), (2, [0.9, 0.9, 0.1]))
    assert Result(record(evaluations=within)).summary()["min_accuracy"] == pytest.approx(0.55)


def test_without_evaluations_within_tasks_there_are_no_minimal_accuracies() -> None:
    summary = Result(record(metrics={})).summary()
    assert (summary["min_accuracy"], summary["worst_case_accuracy"]) == (None, None)


def test_load_gives_one_tidy_table_with_both_matrices(tmp_path: Path) -> None:
    """Rows by run, after and task; 2 runs of 3 tasks are 18, and a matrix that a run lacks is NaN."""
    aware = [[0.9, NAN, NAN], [0.8, 0.7, NAN], [0.6, 0.5, 0.4]]
    Result(record()).write(tmp_path / "a")
    both = {"class_incremental": [list(row) for row in R], "task_aware": aware}
    Result(record(accuracy=both, config={"seed": 4}, headline={"matrix": "task_aware", "classifier": "linear"})).write(
        tmp_path / "b"
    )
    frame = clbench.load(tmp_path)
    assert len(frame) == 18
    assert frame.groupby("seed")["strategy"].unique().explode().to_dict() == dict.fromkeys((3, 4), "lwf[strength=2.0]")
    first, second = frame[frame["seed"] == 3], frame[frame["seed"] == 4]
    assert first["task_aware"].isna().all()
    for rows, name, matrix in ((first, "accuracy", R), (second, "accuracy", aware), (second, "class_incremental", R)):
        np.testing.assert_array_equal(rows.pivot(index="after", columns="task", values=name), np.array(matrix))
    assert set(frame["scenario"]) == {"toy"}
    assert set(frame["class_order"]) == {"0 1 2 3 4 5"}


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "new" / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "new" / "a.txt", "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "old"


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_results_and_reports_need_no_torch() -> None:
    code = "import sys, clbench.result, clbench.reports; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", RECORDED)
def test_what_0_1_0_had_on_a_result_answers_with_its_place_in_the_record(name: str) -> None:
    result = Result(record())
    with pytest.raises(AttributeError, match=rf"result\.{name} is result\.recorded\."):
        getattr(result, name)
    place: Any = result.recorded
    for step in RECORDED[name].split("."):
        place = getattr(place, step)
