"""The benchmark scripts work; speed itself is measured by running them on a quiet machine."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_versus_bare_loop_trains_both_rivals_to_the_same_accuracy(tmp_path: Path) -> None:
    """Both rivals do the same arithmetic, so their accuracies agree within seed noise (one short run each)."""
    out = tmp_path / "result.csv"
    command = [sys.executable, str(BENCHMARKS / "versus_bare_loop.py"), "--smoke", "--out", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    rows = list(csv.DictReader(out.open()))
    assert [row["strategy"] for row in rows] == ["naive", "lwf", "ewc", "er"]
    for row in rows:
        assert float(row["ratio"]) > 0
        assert abs(float(row["bare_accuracy"]) - float(row["clbench_accuracy"])) < 0.15
        assert float(row["clbench_accuracy"]) > 0.6


def test_sweep_scaling_does_the_same_runs_in_one_process_and_in_two(tmp_path: Path) -> None:
    out = tmp_path / "result.csv"
    command = [sys.executable, str(BENCHMARKS / "sweep_scaling.py"), "--smoke", "--out", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    row = next(csv.DictReader(out.open()))
    assert float(row["over_one_thread"]) > 0
    assert row["two_processes_accuracy"] == row["one_thread_accuracy"]
    assert float(row["one_thread_accuracy"]) > 0.2


@pytest.mark.slow
def test_versus_avalanche_trains_both_rivals_to_the_same_accuracy(tmp_path: Path) -> None:
    """One epoch on 1,000 digits with the same network and optimizer: task-aware accuracies agree within seed noise."""
    out = tmp_path / "result.csv"
    command = [sys.executable, str(BENCHMARKS / "versus_avalanche.py"), "--smoke", "--out", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    row = next(csv.DictReader(out.open()))
    assert abs(float(row["clbench_accuracy"]) - float(row["avalanche_accuracy"])) < 0.15
    assert float(row["clbench_accuracy"]) > 0.7
    for what in ("images_per_second", "tests_per_second", "process_seconds"):
        assert float(row[f"{what}_ratio"]) > 0


@pytest.mark.slow
def test_versus_timm_keeps_for_the_backward_pass_what_timm_keeps(tmp_path: Path) -> None:
    out = tmp_path / "result.csv"
    given = ["--model", "vit_tiny_patch16_224", "--batch", "2", "--turns", "1", "--strategies", "naive"]
    command = [sys.executable, str(BENCHMARKS / "versus_timm.py"), *given, "--out", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    rows = list(csv.DictReader(out.open()))
    assert [row["precision"] for row in rows] == ["fp32", "bf16"]
    for row in rows:
        assert float(row["forward"]) > 0
        assert float(row["step"]) > 0
        assert row["kept_mb"] == row["timm_kept_mb"]


@pytest.mark.slow
def test_processes_does_the_same_run_on_one_process_and_on_two(tmp_path: Path) -> None:
    out = tmp_path / "result.csv"
    command = [sys.executable, str(BENCHMARKS / "processes.py"), "--smoke", "--out", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    row = next(csv.DictReader(out.open()))
    assert float(row["training_over_one_thread"]) > 0
    assert row["two_processes_accuracy"] == row["one_thread_accuracy"]
