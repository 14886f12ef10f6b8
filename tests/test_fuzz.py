"""Whatever is given, the command line and the readers of files end well or refuse it in one line, in seconds.

`make soak` does thousands of cases and writes tests/fuzz_results.csv, which is committed; tests/fuzz.py makes the
cases. CLBENCH_FUZZ_CASES sets how many there are of each option and kind of file, CLBENCH_FUZZ_SEED which.
"""

import csv
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

CASES = int(os.environ.get("CLBENCH_FUZZ_CASES", "0"))
SEED = int(os.environ.get("CLBENCH_FUZZ_SEED", "0"))
RESULTS = Path(__file__).parent / "fuzz_results.csv"
COLUMNS = ["kind", "target", "cases", "accepted", "refused", "faults", "megabytes", "seed", "clbench", "torch"]
COLUMNS.append("seconds")


def fuzzed(kind: str, cases: int, seed: int, only: str = "") -> list[dict[str, Any]]:
    """Do so many cases of each target whose name holds `only`; return the figures; fails for a case that ends badly."""
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), kind, str(cases), str(seed), only]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert ended.returncode == 0
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [fault for row in found for fault in row["faults"]] == []
    assert found
    return found


def record(rows: list[dict[str, Any]]) -> None:
    """Put the figures of one kind in the place of the committed ones."""
    kept = list(csv.DictReader(RESULTS.open(newline="", encoding="utf-8"))) if RESULTS.exists() else []
    versions = {"clbench": metadata.version("clbench"), "torch": metadata.version("torch")}
    new = [{**row, "faults": len(row["faults"]), **versions} for row in rows]
    table = sorted(
        [row for row in kept if row["kind"] != rows[0]["kind"]] + new,
        key=lambda row: ["options", "files", "load"].index(row["kind"]),
    )
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def figures(kind: str) -> list[dict[str, str]]:
    """Return the committed figures of one kind."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind]


@pytest.mark.soak
def test_thousands_of_bad_options_end_in_success_or_one_line() -> None:
    record(fuzzed("options", CASES or 60, SEED))


@pytest.mark.soak
def test_thousands_of_bad_files_are_read_or_refused_in_one_line() -> None:
    record(fuzzed("files", CASES or 200, SEED))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["options", "files"])
def test_some_bad_options_and_files_of_each_kind_are_refused_in_one_line(kind: str) -> None:
    fuzzed(kind, 3, 1)


@pytest.mark.parametrize(("kind", "only"), [("options", "--me"), ("files", "NPZ")])
def test_a_few_bad_options_and_files_are_refused_in_one_line(kind: str, only: str) -> None:
    fuzzed(kind, 20, 2, only)


def test_the_committed_figures_are_of_enough_cases_and_none_ended_badly() -> None:
    """At least 5,000 options and 2,000 files; of every option and kind of file at least one was refused."""
    for kind, fewest in (("options", 5000), ("files", 2000)):
        rows = figures(kind)
        assert sum(int(row["cases"]) for row in rows) >= fewest
        assert all(int(row["accepted"]) + int(row["refused"]) == int(row["cases"]) for row in rows)
        assert all(row["faults"] == "0" and int(row["megabytes"]) < 1000 for row in rows)
        assert sum(int(row["refused"]) for row in rows) > fewest / 2
