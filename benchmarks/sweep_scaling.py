"""Measures how much faster a sweep is with two processes than with one process of one or two threads.

The same runs (er on Split-MNIST, MLP 784-400-400, one epoch) are done in three ways, which take turns in one
invocation, because a shared machine is noisy. The worker processes start before the clock does, because their start, a
few seconds, counts only once in a sweep of any length.

    python benchmarks/sweep_scaling.py --data-root data [--scenario split-mnist] [--runs 4] [--repeats 5] [--smoke]
        [--out FILE.csv]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ratios, where, write

from clbench.many.execution import run_planned
from clbench.many.sweeps import plan_sweep

# Rival: worker processes, threads of each run.
RIVALS = {"two_processes": (2, 1), "one_thread": (1, 1), "two_threads": (1, 2)}


def sweep(grid: dict[str, Any], jobs: int, threads: int) -> tuple[float, float]:
    """Do the runs of a grid; return seconds and the mean average accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        planned = plan_sweep(grid | {"threads": threads}, out=folder)
        started = time.perf_counter()
        outcomes = list(run_planned(planned, jobs=jobs))
        seconds = time.perf_counter() - started
        assert all(outcome.error is None for outcome in outcomes), [outcome.error for outcome in outcomes]
        results = [outcome.result for outcome in outcomes]
        accuracies = [r.metrics["average_accuracy"] for r in results if r is not None]
    return seconds, statistics.mean(a for a in accuracies if a is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--scenario", default="split-mnist")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="two short runs, once, on the embedded digits")
    parser.add_argument("--out", type=Path, help="CSV file for the result")
    args = parser.parse_args()
    scenario = "split-mnist-5k" if args.smoke else args.scenario
    runs, repeats = (2, 1) if args.smoke else (args.runs, args.repeats)
    grid: dict[str, Any] = {"scenario": scenario, "strategy": "er", "data_root": args.data_root, "epochs": 1}
    # First both workers read the data and import everything that is loaded lazily.
    for jobs, threads in RIVALS.values():
        sweep(grid | {"seeds": 2, "limit": 5}, jobs, threads)
    load = os.getloadavg()[0]
    grid |= {"seeds": runs} | ({"limit": 20} if args.smoke else {})
    times: dict[str, list[float]] = {rival: [] for rival in RIVALS}
    accuracies: dict[str, list[float]] = {rival: [] for rival in RIVALS}
    for _ in range(repeats):
        for rival, (jobs, threads) in RIVALS.items():
            seconds, accuracy = sweep(grid, jobs, threads)
            times[rival].append(seconds)
            accuracies[rival].append(accuracy)
    result: dict[str, object] = {"scenario": scenario, "runs": runs, "repeats": repeats}
    for rival in ("one_thread", "two_threads"):
        times_each = zip(times[rival], times["two_processes"], strict=True)
        result |= ratios(f"over_{rival}", [slow / fast for slow, fast in times_each])
    for rival in RIVALS:
        result[f"{rival}_seconds"] = round(statistics.median(times[rival]), 2)
        result[f"{rival}_accuracy"] = round(statistics.mean(accuracies[rival]), 4)
    result |= where(load, "cpu", "clbench", "torch")
    for key, value in result.items():
        print(f"{key}: {value}")
    # Threads change the order of a run's sums, and so its last digits; processes change nothing.
    assert accuracies["two_processes"] == accuracies["one_thread"]
    assert max(abs(a - b) for a, b in zip(accuracies["two_threads"], accuracies["one_thread"], strict=True)) < 0.02
    write([result], args.out)


if __name__ == "__main__":
    main()
