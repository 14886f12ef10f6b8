"""Measures the loss of plasticity on 800 tasks of online Permuted MNIST (Dohare et al. 2024).

    python benchmarks/plasticity.py --data-root data --runs plasticity-runs --out benchmarks/results/plasticity

Each task is seen once: the same real digits with their pixels in another order, ten outputs that all tasks share, and
plain SGD. The network (3 x 100 units) and the images of a task are fewer than in the paper (3 x 2000 units and 60,000
images), so the step size is larger. All strategies have the same network, images, steps and step size. Runs are kept:
a second call goes on where the first one ended, and writes the tables from all runs that are done.
"""

import argparse
import os
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import where, write

STRATEGIES = ["naive", "cbp[replacement_rate=0.001]", "shrink-perturb[shrink=0.001,noise=0.002]"]
MEASURED = ("dead_units", "effective_rank", "weight_norm", "gradient_norm")
# The curves are means over so many tasks.
TASKS_OF_A_POINT = 20


def scenario(data_root: str, tasks: int, images: int, seed: int) -> Any:
    """Return the stream of a seed, whose first `images` digits of MNIST every task has."""
    from clbench.scenarios import load_dataset, split
    from clbench.scenarios.domains import permuted

    digits = load_dataset("mnist", data_root, offline=True)
    few = replace(
        digits,
        x_train=digits.x_train[:images],
        y_train=digits.y_train[:images],
        x_test=digits.x_test[:100],
        y_test=digits.y_test[:100],
    )
    return split(permuted(few, tasks, seed=seed), tasks=tasks, setting="domain", name="online-permuted-mnist")


def rows_of(result: Any, seed: int) -> list[dict[str, Any]]:
    """Return a row for each point of a run's curves: means over the tasks since the point before."""
    tasks, rows = result.recorded.tasks, []
    for start in range(0, len(tasks), TASKS_OF_A_POINT):
        part = tasks[start : start + TASKS_OF_A_POINT]
        row = {"strategy": result.strategy, "seed": seed, "task": start + len(part)}
        row["online_accuracy"] = round(statistics.fmean(task.online_accuracy for task in part), 4)
        row |= {name: round(statistics.fmean(task.plasticity[name] for task in part), 4) for name in MEASURED}
        row["seconds_a_task"] = round(statistics.median(sum(task.seconds.values()) for task in part), 4)
        rows.append(row)
    return rows


def main() -> None:
    """Do the runs that are left, and write both tables."""
    import clbench

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--tasks", type=int, default=800)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--runs", type=Path, default=Path("plasticity-runs"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    options: dict[str, Any] = {
        "model": "mlp:100-100-100",
        "normalize": "none",
        "epochs": 1,
        "threads": 1,
        "quiet": True,
        "plasticity": True,
    }
    options |= {
        "optimizer": "sgd",
        "batch_size": given.batch_size,
        "lr": given.lr,
        "evaluate": "current",
        "online_accuracy": True,
    }
    curves, summary = list[dict[str, Any]](), list[dict[str, Any]]()
    for seed in range(given.seeds):
        tasks = scenario(given.data_root, given.tasks, given.images, seed)
        for strategy in given.strategies:
            out, started = given.runs / f"{strategy}-{seed}", time.perf_counter()
            result = clbench.run(tasks, strategy, seed=seed, out=out, resume=True, **options)
            rows = rows_of(result, seed)
            curves += rows
            ends = {f"online_{end}": rows[place]["online_accuracy"] for end, place in (("second", 1), ("last", -1))}
            summary.append(
                {"strategy": result.strategy, "seed": seed, "tasks": given.tasks, "images": given.images}
                | {"average_online_accuracy": round(result.metrics["average_online_accuracy"], 4), **ends}
                | {f"{name}_last": rows[-1][name] for name in MEASURED}
                | {"resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
                | {"batch_size": given.batch_size, "lr": given.lr}
                | where(load, "cpu", "clbench", "torch", "numpy")
            )
            print(
                strategy,
                seed,
                [row["online_accuracy"] for row in rows],
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
            if given.out:
                write(curves, given.out.with_name(given.out.name + "-curves.csv"))
                write(summary, given.out.with_suffix(".csv"))


if __name__ == "__main__":
    main()
