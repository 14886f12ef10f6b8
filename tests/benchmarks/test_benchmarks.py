"""The benchmark scripts work; speed itself is measured by running them on a quiet machine."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def measured(script: str, folder: Path, *given: str) -> list[dict[str, str]]:
    """Run a script and return the rows of the table that it writes."""
    out = folder / "result.csv"
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *given, "--out", str(out)]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    with out.open() as file:
        return list(csv.DictReader(file))


def test_versus_bare_loop_trains_both_rivals_to_the_same_accuracy(tmp_path: Path) -> None:
    """Both rivals do the same arithmetic, so their accuracies agree within seed noise (one short run each)."""
    rows = measured("versus_bare_loop", tmp_path, "--smoke")
    assert [row["strategy"] for row in rows] == ["naive", "lwf", "ewc", "er"]
    for row in rows:
        assert float(row["ratio"]) > 0
        assert abs(float(row["bare_accuracy"]) - float(row["clbench_accuracy"])) < 0.15
        assert float(row["clbench_accuracy"]) > 0.6


def test_sweep_scaling_does_the_same_runs_in_one_process_and_in_two(tmp_path: Path) -> None:
    row = measured("sweep_scaling", tmp_path, "--smoke")[0]
    assert float(row["over_one_thread"]) > 0
    assert row["two_processes_accuracy"] == row["one_thread_accuracy"]
    assert float(row["one_thread_accuracy"]) > 0.2


@pytest.mark.slow
def test_versus_avalanche_trains_both_rivals_to_the_same_accuracy(tmp_path: Path) -> None:
    """One epoch on 1,000 digits with the same network and optimizer: task-aware accuracies agree within seed noise."""
    row = measured("versus_avalanche", tmp_path, "--smoke")[0]
    assert abs(float(row["clbench_accuracy"]) - float(row["avalanche_accuracy"])) < 0.15
    assert float(row["clbench_accuracy"]) > 0.7
    for what in ("images_per_second", "tests_per_second", "process_seconds"):
        assert float(row[f"{what}_ratio"]) > 0


@pytest.mark.slow
def test_versus_timm_keeps_for_the_backward_pass_what_timm_keeps(tmp_path: Path) -> None:
    given = ["--model", "vit_tiny_patch16_224", "--batch", "2", "--turns", "1", "--strategies", "naive"]
    rows = measured("versus_timm", tmp_path, *given)
    assert [row["precision"] for row in rows] == ["fp32", "bf16"]
    for row in rows:
        assert float(row["forward"]) > 0
        assert float(row["step"]) > 0
        assert row["kept_mb"] == row["timm_kept_mb"]


@pytest.mark.slow
def test_processes_does_the_same_run_on_one_process_and_on_two(tmp_path: Path) -> None:
    row = measured("processes", tmp_path, "--smoke")[0]
    assert float(row["training_over_one_thread"]) > 0
    assert row["two_processes_accuracy"] == row["one_thread_accuracy"]


@pytest.mark.slow
def test_decode_reads_the_same_pixels_in_all_three_ways(tmp_path: Path) -> None:
    """The script itself compares the sums of the pixels; the photos have no two sides of one length."""
    for part, n in (("train", 10), ("test", 2)):
        for kind in ("a", "b"):
            (tmp_path / "photos" / part / kind).mkdir(parents=True)
            for place in range(n):
                noise = np.random.default_rng(place).integers(0, 256, (70 + place, 90, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / "photos" / part / kind / f"{place}.jpg")
    (row,) = measured("decode", tmp_path, "photos", "--repeats", "1", "--size", "32")
    assert (row["images"], row["size"]) == ("20", "32")
    assert all(float(row[name]) > 0 for name in row if name.endswith("_per_second") or "_over_" in name)


@pytest.mark.slow
def test_fair_tuning_ranks_each_scenario_under_each_way(tmp_path: Path) -> None:
    """Two scenarios: tuned on the other one, on the first tasks of itself and on all of them."""
    command = [sys.executable, str(BENCHMARKS / "fair_tuning.py"), "--scenarios", "split-mnist-5k", "split-digits"]
    command += ["--trials", "1", "--seeds", "1", "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    with (tmp_path / "fair-tuning.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 6
    assert {row["tuned"] for row in rows if row["judged"] == "split-digits"} == {
        *("split-mnist-5k, all tasks", "itself, first 3 tasks", "itself, all tasks (oracle)")
    }
    with (tmp_path / "fair-tuning-agreement.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 3
