"""Measures memory and time of a run over hundreds of tasks: Permuted MNIST from a few real digits.

    python benchmarks/many_tasks.py --tasks 10 800 --out benchmarks/results/many-tasks.csv

Each number of tasks runs in a process of its own: naive fine-tuning of a small MLP on 200 training images a task,
tested on 50 images of each task so far. `resident_mb` is the largest resident memory of the process; `first_s` and
`last_s` are the median seconds of training of the first and of the last ten tasks.
"""

import argparse
import csv
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

FIELDS = ("tasks", "images_mb_if_laid_out", "images_mb", "resident_mb", "first_s", "last_s", "torch")


def measure(tasks: int) -> dict[str, Any]:
    """Run one number of tasks and return its row."""
    import numpy as np
    import torch

    import clbench
    from clbench.scenarios import load_dataset, split
    from clbench.scenarios.domains import permuted

    digits = load_dataset("mnist-5k", "data")
    train = np.concatenate([np.flatnonzero(digits.y_train == c)[:20] for c in range(10)])
    test = np.concatenate([np.flatnonzero(digits.y_test == c)[:5] for c in range(10)])
    few = replace(
        digits,
        x_train=digits.x_train[train],
        y_train=digits.y_train[train],
        x_test=digits.x_test[test],
        y_test=digits.y_test[test],
    )
    data = permuted(few, tasks, pad=2)
    options: dict[str, Any] = {"model": "mlp:100", "epochs": 1, "batch_size": 10, "lr": 0.01, "evaluate": "seen"}
    with tempfile.TemporaryDirectory() as folder:
        scenario = split(data, tasks=tasks, setting="domain")
        result = clbench.run(scenario, "naive", out=Path(folder) / "run", threads=1, quiet=True, **options)
    seconds = [task["seconds"]["train"] for task in result.record["tasks"]]
    return {
        "tasks": tasks,
        "images_mb_if_laid_out": round((len(data.x_train) + len(data.x_test)) * 32 * 32 / 1e6, 1),
        "images_mb": round((data.x_train.nbytes + data.x_test.nbytes) / 1e6, 1),
        "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "first_s": round(statistics.median(seconds[:10]), 4),
        "last_s": round(statistics.median(seconds[-10:]), 4),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure each number of tasks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 100, 800])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", action="store_true", help="measure in this process, and print the row")
    given = parser.parse_args()
    writer = csv.DictWriter(sys.stdout, FIELDS)
    if given.alone:
        writer.writerow(measure(given.tasks[0]))
        return
    lines = [",".join(FIELDS)]
    for tasks in given.tasks:
        command = [sys.executable, __file__, "--alone", "--tasks", str(tasks)]
        lines.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        print(lines[-1], flush=True)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
