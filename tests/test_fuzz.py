"""For any input, the command line, the Python functions and the readers of files succeed or refuse it in one line.

`make soak` does thousands of cases and writes tests/fuzz_results.csv, which is committed; tests/fuzz.py makes the
cases. CLBENCH_FUZZ_CASES sets the number of cases for each option and kind of file, CLBENCH_FUZZ_SEED draws them. A
sweep of CLBENCH_LOAD_RUNS tiny runs, with a second one over the same folder meanwhile, loses no run and repeats none.
"""

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pytest

CASES = int(os.environ.get("CLBENCH_FUZZ_CASES", "0"))
SEED = int(os.environ.get("CLBENCH_FUZZ_SEED", "0"))
RUNS = int(os.environ.get("CLBENCH_LOAD_RUNS", "2000"))
RESULTS = Path(__file__).parent / "fuzz_results.csv"
COLUMNS = ["kind", "target", "cases", "accepted", "refused", "faults", "megabytes", "seed", "clbench", "torch"]
COLUMNS.append("seconds")
# Seconds between checks of the processes of a sweep.
LOOK_EVERY = 0.25


def fuzzed(kind: str, cases: int, seed: int, only: str = "") -> list[dict[str, Any]]:
    """Do `cases` cases of each target whose name contains `only`; return the figures; fail if a case ends badly."""
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), kind, str(cases), str(seed), only]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert ended.returncode == 0
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [fault for row in found for fault in row["faults"]] == []
    assert found
    return found


def record(rows: list[dict[str, Any]]) -> None:
    """Replace the committed figures of one kind."""
    kept = list(csv.DictReader(RESULTS.open(newline="", encoding="utf-8"))) if RESULTS.exists() else []
    versions = {"clbench": metadata.version("clbench"), "torch": metadata.version("torch")}
    new = [{**row, "faults": len(row["faults"]), **versions} for row in rows]
    table = sorted(
        [row for row in kept if row["kind"] != rows[0]["kind"]] + new,
        key=lambda row: ["options", "files", "calls", "classes", "load"].index(row["kind"]),
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
    record(fuzzed("options", CASES or 50, SEED))


@pytest.mark.soak
def test_thousands_of_bad_files_are_read_or_refused_in_one_line() -> None:
    record(fuzzed("files", CASES or 150, SEED))


@pytest.mark.soak
def test_thousands_of_wrong_arguments_in_python_are_taken_or_refused() -> None:
    record(fuzzed("calls", CASES or 50, SEED))


@pytest.mark.soak
def test_hundreds_of_random_strategies_end_done_or_refused_and_done_ones_repeat() -> None:
    record(fuzzed("classes", CASES or 60, SEED))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["options", "files", "calls", "classes"])
def test_some_bad_inputs_of_each_kind_are_refused_in_one_line(kind: str) -> None:
    fuzzed(kind, 3, 1)


@pytest.mark.parametrize(("kind", "only"), [("options", "--me"), ("files", "NPZ")])
def test_a_few_bad_options_and_files_are_refused_in_one_line(kind: str, only: str) -> None:
    fuzzed(kind, 20, 2, only)


def test_the_committed_figures_are_of_enough_cases_and_none_ended_badly() -> None:
    """At least 5,000 options, 2,000 files, 2,000 calls and 300 strategies, of which many were refused."""
    for kind, fewest, share in (("options", 5000, 2), ("files", 2000, 2), ("calls", 2000, 2), ("classes", 300, 3)):
        rows = figures(kind)
        assert sum(int(row["cases"]) for row in rows) >= fewest
        assert all(int(row["accepted"]) + int(row["refused"]) == int(row["cases"]) for row in rows)
        assert all(row["faults"] == "0" and int(row["megabytes"]) < 1000 for row in rows)
        assert sum(int(row["refused"]) for row in rows) > fewest / share


# Load


def write_grid(folder: Path, runs: int) -> Path:
    """Write a grid of `runs` runs on 24 random images of 4 x 4 pixels, 4 classes in 2 tasks."""
    noise = np.random.default_rng(0)
    y = {"y_train": np.repeat(np.arange(4), 6), "y_test": np.repeat(np.arange(4), 2)}
    x = {name.replace("y", "x"): noise.integers(0, 256, (len(v), 4, 4), dtype=np.uint8) for name, v in y.items()}
    np.savez(folder / "tiny.npz", **x, **y)
    grid = folder / "grid.toml"
    grid.write_text(
        f'scenario = "{folder}/tiny.npz"\nstrategy = "naive"\nseeds = {runs}\ntasks = 2\nepochs = 1\n'
        'model = "mlp:4"\noffline = true\n',
        "utf-8",
    )
    return grid


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return a process and its descendants, as far as they still exist."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def is_worker(pid: int) -> bool:
    """Whether a worker process runs; a zombie, which has ended but was not waited for, does not."""
    try:
        return "loky" in " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return False


def done_in(out: Path) -> int:
    """Return how many runs in a folder are finished."""
    return sum(b'"status": "done"' in file.read_bytes()[:200] for file in out.glob("*/*/*/run.json"))


def growth(samples: list[tuple[int, float]], runs: int) -> tuple[float, float]:
    """Return the megabytes when a quarter to a half of the runs were done, and in the last quarter of them.

    Counted by runs and not by time, because on a busy machine a worker's imports take longer than its first dozens of
    runs.
    """
    before = [megabytes for done, megabytes in samples if runs / 4 <= done < runs / 2]
    after = [megabytes for done, megabytes in samples if done >= 3 * runs / 4]
    return median(before), median(after)


def swept(folder: Path, runs: int) -> dict[str, Any]:
    """Sweep over 2 processes, and meanwhile once more in 1; fail if a run is lost, done twice or leaks memory."""
    grid, out = write_grid(folder, runs), folder / "runs"
    command = [sys.executable, "-m", "clbench", "sweep", str(grid), "--out", str(out), "--json"]
    started = time.monotonic()
    samples: list[tuple[int, float]] = []
    dead: Counter[int] = Counter()
    seen: set[int] = set()
    with (folder / "one.json").open("wb") as one, (folder / "other.json").open("wb") as other:
        first = subprocess.Popen([*command, "--jobs", "2"], stdout=one, stderr=subprocess.DEVNULL)
        second: subprocess.Popen[bytes] | None = None
        while first.poll() is None:
            alive, largest, done = family(first), 0.0, done_in(out)
            for process in alive[1:]:
                try:
                    # A process that has just ended is a zombie until its parent waits for it.
                    dead[process.pid] += process.status() == psutil.STATUS_ZOMBIE
                    # Only its own memory, because pages of a shared library come and go with other readers.
                    largest = max(largest, process.memory_full_info().uss / 1e6)
                    seen.add(process.pid)
                except psutil.Error:
                    continue
            if second is None and done > runs / 2:
                second = subprocess.Popen(command, stdout=other, stderr=subprocess.DEVNULL)
            samples.append((done, largest))
            time.sleep(LOOK_EVERY)
        assert first.returncode == 0
        assert second is not None
        assert second.wait() == 0
    # None is lost: each is there and finished. None is repeated: each was done by one of the two sweeps.
    records = [json.loads(file.read_text("utf-8")) for file in out.glob("*/*/*/run.json")]
    assert Counter(r["config"]["seed"] for r in records) == Counter(range(runs))
    assert {r["status"] for r in records} == {"done"}
    assert all(len(r["tasks"]) == 2 and not r["resumes"] for r in records)
    told = [json.loads((folder / name).read_text("utf-8")) for name in ("one.json", "other.json")]
    here = Counter(row["seed"] for rows in told for row in rows if row["source"] == "here")
    assert here == Counter(range(runs))
    assert not [path for path in out.rglob("*") if re.search(r"\.tmp$|\.lease$|checkpoint", path.name)]
    assert max(dead.values()) * LOOK_EVERY < 10, "seconds for which a process was a zombie"
    assert not [pid for pid in seen if is_worker(pid)]
    before, after = growth(samples, runs)
    assert after < 1.1 * before, f"a worker grew from {before:.0f} to {after:.0f} MB"
    return {
        "kind": "load",
        "target": "sweep over 2 processes, a second sweep from the middle on",
        "cases": runs,
        "accepted": len(records),
        "refused": 0,
        "faults": [],
        "megabytes": round(after - before),
        "seed": 0,
        "seconds": round(time.monotonic() - started, 1),
    }


def test_growth_is_that_of_runs_and_not_of_imports() -> None:
    """A worker that imports for two thirds of the time has not grown; one that keeps a megabyte of each run has."""
    start = [(0, 20.0 * second) for second in range(20)]
    assert growth([*start, *((runs, 389.0) for runs in range(0, 101, 10)), (100, 389.0), (100, 0.0)], 100) == (389, 389)
    before, after = growth([*start, *((runs, 389.0 + runs) for runs in range(0, 101, 10))], 100)
    assert after > 1.1 * before


@pytest.mark.soak
def test_two_thousand_runs_are_done_once_each_without_a_leak(tmp_path: Path) -> None:
    record([swept(tmp_path, RUNS)])


@pytest.mark.alone
@pytest.mark.slow
def test_two_sweeps_of_a_hundred_runs_do_each_once(tmp_path: Path) -> None:
    swept(tmp_path, 100)


def test_the_committed_figures_are_of_a_whole_sweep() -> None:
    (row,) = figures("load")
    assert int(row["cases"]) >= 2000
    assert row["cases"] == row["accepted"]
    assert int(row["megabytes"]) < 50
