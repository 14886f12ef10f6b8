"""A long test: every strategy is killed at random instants and continued, and ends as if nothing had happened.

The figures of `make soak` go to tests/soak_results.csv, which is committed. CLBENCH_SOAK_KILLS sets the kills per
strategy, CLBENCH_SOAK_SEED draws their instants. tests/crash.py does the killing.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from clbench.config.registry import entry_point_names

KILLS = int(os.environ.get("CLBENCH_SOAK_KILLS", "7"))
SEED = int(os.environ.get("CLBENCH_SOAK_SEED", "0"))
RESULTS = Path(__file__).parent / "soak_results.csv"
STRATEGIES = entry_point_names("clbench.strategies")
COLUMNS = (
    *("strategy", "setting", "kills", "kills_in_a_write", "resumes_inside_a_task", "runs", "identical_runs"),
    *("seed", "clbench", "torch", "seconds"),
)


def killed(names: Sequence[str], kills: int, seed: int) -> list[dict[str, Any]]:
    """Kill and continue runs of strategies, and return the figures; fail unless all end as undisturbed runs do."""
    command = [sys.executable, str(Path(__file__).with_name("crash.py")), str(kills), str(seed), *names]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert ended.returncode == 0
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row for row in found if "error" in row] == []
    return found


@pytest.mark.soak
def test_every_strategy_killed_at_random_instants_and_continued_gives_the_same_bytes() -> None:
    rows = killed(STRATEGIES, KILLS, SEED)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "clbench": metadata.version("clbench")} for row in rows)


@pytest.mark.slow
def test_some_strategies_killed_at_random_instants_and_continued_give_the_same_bytes() -> None:
    """Stages that depend on each other, fresh models, a stage that prunes, a memory that fills on the way, steps."""
    for found in killed(["bic", "joint", "packnet", "er", "gdumb"], 4, 1):
        assert found["kills"] == 4
        assert found["resumes_inside_a_task"] >= 1


def test_the_committed_figures_are_of_every_strategy_and_of_enough_kills_within_tasks() -> None:
    """At least 200 kills, at least half of them continued from a step inside a task, and every run the same."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["strategy"] for row in rows] == list(STRATEGIES), "make soak brings the figures up to date"
    kills = sum(int(row["kills"]) for row in rows)
    assert kills >= 200
    assert sum(int(row["resumes_inside_a_task"]) for row in rows) >= kills / 2
    assert sum(int(row["kills_in_a_write"]) for row in rows) >= kills / 4
    assert all(int(row["kills"]) >= 5 and row["identical_runs"] == row["runs"] for row in rows)
