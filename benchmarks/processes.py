"""Measures what one run gains by being shared between two processes of one thread.

The rivals are the same run on one process with one thread and with two. They take turns, because a shared machine is
noisy. The seconds are those of training and of evaluation; the start of the second process, a few seconds once a run,
is counted by itself.

    python benchmarks/processes.py --data-root data [--scenario split-mnist] [--repeats 3] [--smoke] [--out FILE.csv]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ratios, where, write

import clbench

# Rival: processes, and threads of all of them together.
RIVALS = {"two_processes": (2, 2), "one_thread": (1, 1), "two_threads": (1, 2)}
# Network and batch size. The last one has batch norm, whose statistics are exchanged as well.
CASES = (("mlp:400-400", 128), ("mlp:400-400", 512), ("conv", 512))


def train(options: dict[str, Any], processes: int, threads: int) -> dict[str, float]:
    """Do a run; return its seconds of training, of testing and in all, and its average accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = clbench.run(**options, strategy="naive", out=folder, quiet=True, processes=processes, threads=threads)
        whole = time.perf_counter() - started
    tasks = [task["seconds"] for task in result.record["tasks"]]
    return {
        "training": sum(seconds["train"] for seconds in tasks),
        "testing": sum(seconds["evaluation"] for seconds in tasks),
        "whole": whole,
        "accuracy": float(result.metrics["average_accuracy"] or 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--scenario", default="split-mnist")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one short run of each, once, on the embedded digits")
    parser.add_argument("--out", type=Path, help="CSV file for the results")
    args = parser.parse_args()
    load, rows = os.getloadavg()[0], []
    for model, batch_size in CASES[:1] if args.smoke else CASES:
        options: dict[str, Any] = {"model": model, "batch_size": batch_size, "epochs": 1}
        options |= {"scenario": args.scenario, "data_root": args.data_root}
        if args.smoke:
            options |= {"scenario": "split-mnist-5k", "limit": 20}
        found: dict[str, list[dict[str, float]]] = {rival: [] for rival in RIVALS}
        for _ in range(1 if args.smoke else args.repeats):
            for rival, (processes, threads) in RIVALS.items():
                found[rival].append(train(options, processes, threads))
        row: dict[str, object] = {"scenario": options["scenario"], "model": model, "batch_size": batch_size}
        shared = found["two_processes"]
        for what in ("training", "testing"):
            for rival in ("one_thread", "two_threads"):
                pairs = zip(found[rival], shared, strict=True)
                row |= ratios(f"{what}_over_{rival}", [alone[what] / one[what] for alone, one in pairs])
        for rival, each in found.items():
            row[f"{rival}_seconds"] = round(statistics.median(one["training"] for one in each), 2)
            row[f"{rival}_accuracy"] = round(statistics.median(one["accuracy"] for one in each), 4)
        starts = [one["whole"] - one["training"] - one["testing"] for one in shared]
        row["start_seconds"] = round(statistics.median(starts), 1)
        rows.append(row | where(load, "cpu", "clbench", "torch"))
        for key, value in rows[-1].items():
            print(f"{key}: {value}")
        # The order of sums differs, and nothing else.
        accuracies = [one["accuracy"] for each in found.values() for one in each]
        assert max(accuracies) - min(accuracies) < 0.02
    write(rows, args.out)


if __name__ == "__main__":
    main()
