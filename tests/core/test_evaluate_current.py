"""evaluate=current tests the present task alone: the diagonal of the whole matrix, at a cost that does not grow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared import StopAt, StoppedError

import clbench
from clbench.running import run as running
from clbench.scenarios.splits import _places

FAST: dict[str, Any] = {"limit": 8, "epochs": 1, "batch_size": 4, "threads": 1, "model": "mlp:8", "quiet": True}


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("naive", {"setting": "class"}),
        ("naive", {"setting": "domain"}),
        ("naive", {"setting": "task"}),
        ("packnet", {"setting": "task"}),
        ("icarl", {"memory_size": 10}),
    ],
    ids=str,
)
def test_it_is_the_diagonal_of_the_whole_matrix(strategy: str, options: dict[str, Any], tmp_path: Path) -> None:
    asked = {"out": tmp_path / "whole", **FAST, **options}
    whole = clbench.run("split-mnist-5k", strategy, evaluate="seen", **asked)
    current = clbench.run("split-mnist-5k", strategy, evaluate="current", **{**asked, "out": tmp_path / "current"})
    for result in (current, clbench.Result.load(tmp_path / "current")):
        for name, matrices in result.classifiers.items():
            for matrix in ("class_incremental", "task_aware"):
                found, expected = matrices[matrix], whole.classifiers[name][matrix]
                assert (found is None) == (expected is None)
                if found is not None and expected is not None:
                    assert np.array_equal(np.diag(found), np.diag(expected), equal_nan=True)
                    assert np.isfinite(found).sum() == len(found)
        assert result.metrics["learning_accuracy"] == pytest.approx(whole.metrics["learning_accuracy"])
        undefined = {name for name, value in whole.metrics.items() if value is not None} - {"learning_accuracy"}
        assert all(result.metrics[name] is None for name in undefined)
    assert (tmp_path / "whole" / "model.pt").read_bytes() == (tmp_path / "current" / "model.pt").read_bytes()
    record = json.loads((tmp_path / "current" / "run.json").read_text())
    matrix = record["headline"]["matrix"]
    assert [len(row) for row in record["accuracy"][matrix]] == [1] * 5
    counted = [[sum(of_class.values()) for of_class in row] for row in record["correct"][matrix]]
    sizes = [task["n_test"] for task in record["scenario"]["tasks"]]
    assert [[n / size] for (n,), size in zip(counted, sizes, strict=True)] == record["accuracy"][matrix]
    rows = (tmp_path / "current" / "accuracy.csv").read_text().splitlines()[1:]
    assert {tuple(row.split(",")[2:4]) for row in rows} == {(str(t), str(t)) for t in range(5)}


def test_a_long_stream_is_written_now_and_then_and_goes_on_to_the_same_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tasks are a long stream where two records are usual: they are written after tasks 2, 4 and 5."""
    written: list[int] = []

    class Counting(StopAt):
        def written(self, record: Any) -> None:
            written.append(len(record.tasks))

    asked: dict[str, Any] = {"evaluate": "current", "online_accuracy": True, "plasticity": True, **FAST}
    whole = clbench.run("split-mnist-5k", "naive", out=tmp_path / "whole", **asked)
    monkeypatch.setattr(running, "RECORDS", 2)
    with pytest.raises(StoppedError):
        clbench.run("split-mnist-5k", "naive", out=tmp_path / "stopped", observer=Counting(2), **asked)
    assert written == [0, 2, 3]  # the last one says that the run failed
    written.clear()
    again = clbench.run("split-mnist-5k", "naive", out=tmp_path / "stopped", observer=Counting(9), resume=True, **asked)
    assert written == [3, 4, 5, 5]
    assert again.metrics == whole.metrics
    assert again.record["accuracy"] == whole.record["accuracy"]
    assert [task["plasticity"] for task in again.record["tasks"]] == [t["plasticity"] for t in whole.record["tasks"]]


def test_a_comparison_of_such_runs_has_a_report(tmp_path: Path) -> None:
    results = clbench.compare(
        "split-mnist-5k", ["naive", "cbp"], seeds=2, out=tmp_path, evaluate="current", references=False, **FAST
    )
    clbench.reports.write_report(results, tmp_path / "report")
    assert "learning accuracy" in (tmp_path / "report" / "report.md").read_text()


def test_places_are_those_that_a_search_for_each_value_finds() -> None:
    import torch

    values = torch.tensor([2, -1, 0, 2, 2, 4, -1, 0])
    found = _places(values, 6)
    assert [each.tolist() for each in found] == [torch.nonzero(values == v).flatten().tolist() for v in range(6)]
