"""Long: every strategy is killed at random instants and continued, and ends as if nothing had happened.

The figures go to tests/soak_results.csv, which is committed; CLBENCH_SOAK_KILLS sets the kills per strategy.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import clbench
from clbench.registry import entry_point_names
from clbench.resolve import strategy_class

KILLS = int(os.environ.get("CLBENCH_SOAK_KILLS", "3"))
RESULTS = Path(__file__).parent / "soak_results.csv"

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def results() -> Iterator[list[dict[str, object]]]:
    rows: list[dict[str, object]] = []
    yield rows
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["strategy", "setting", "kills", "kills_after_a_checkpoint", "seconds"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", entry_point_names("clbench.strategies"))
def test_killed_at_random_instants_and_continued_gives_the_same_bytes(
    name: str, tmp_path: Path, results: list[dict[str, object]]
) -> None:
    setting = strategy_class(name).settings[0]
    options = ["--setting", setting, "--limit", "60", "--epochs", "3", "--threads", "1", "--quiet"]
    options += ["--memory-size", "50"] if strategy_class(name).needs_memory else []
    command = [sys.executable, "-m", "clbench", "run", "split-mnist-5k", name, *options]

    started = time.monotonic()
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    duration = time.monotonic() - started
    chance = random.Random(name)
    kills = after_a_checkpoint = 0
    out = tmp_path / "killed"
    while kills < KILLS:
        process = subprocess.Popen(
            [*command, "--out", str(out), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            process.wait(timeout=chance.uniform(0.3, 1.0) * duration)
            break
        except subprocess.TimeoutExpired:
            after_a_checkpoint += (out / "checkpoint.pt").exists()
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run([*command, "--out", str(out), "--resume"], check=True, stdout=subprocess.DEVNULL)
    for file in ("accuracy.csv", "model.pt"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert (
        clbench.Result.load(out).record["classifiers"] == clbench.Result.load(tmp_path / "whole").record["classifiers"]
    )
    results.append(
        {
            "strategy": name,
            "setting": setting,
            "kills": kills,
            "kills_after_a_checkpoint": after_a_checkpoint,
            "seconds": round(time.monotonic() - started, 1),
        }
    )
