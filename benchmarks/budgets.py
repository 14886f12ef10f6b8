"""Compares ten methods at equal epochs, at equal FLOPs of training and at equal bytes, on two scenarios.

    python benchmarks/budgets.py --data-root data --runs budget-runs --out benchmarks/results/budgets.csv

The FLOPs are those that er spends at equal epochs. Runs are kept in the folder `--runs`, so a second call goes on with
what is left; `--table` makes the table of the finished ones alone. The features of Split-CIFAR-100 are computed once.
"""

import argparse
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import where, write

import clbench
from clbench.results.result import Result
from clbench.results.statistics import spread

SEEDS = (0, 1, 2)
SCENARIOS: dict[str, dict[str, Any]] = {
    "split-mnist-5k": {
        "strategies": ["er", "naive", "lwf", "ewc", "si", "der", "mir", "icarl", "lucir", "gdumb"],
        "fields": {"model": "mlp:100", "limit": 200, "evaluate": "seen"},
        "epochs": 5,
        "bytes": "bytes=1MB",
    },
    "split-cifar100": {
        "strategies": ["er", "naive", "lwf", "l2", "si", "der", "icarl", "wa", "gdumb", "slda"],
        "fields": {
            "model": "efficientnet-lite0[image_size=96]",
            "train": "head",
            "augment": "none",
            "evaluate": "seen",
        },
        "epochs": 2,
        "bytes": "bytes=32MB",
    },
}
EQUAL = ("epochs", "flops", "bytes")


def asked(scenario: str, equal: str, runs: Path, **fields: Any) -> dict[str, Any]:
    """Return the fields of the runs of a scenario that have the same epochs, FLOPs or bytes."""
    given = SCENARIOS[scenario]
    common = {**given["fields"], **fields, "count_flops": True, "threads": 1}
    if equal == "flops":
        er = next(iter(finished(runs / scenario / "epochs", "er")))
        return {**common, "budget": f"flops={er.flops['training']}"}
    budget = {"budget": given["bytes"]} if equal == "bytes" else {}
    return {**common, "epochs": given["epochs"], **budget}


def finished(folder: Path, strategy: str) -> Iterator[Result]:
    """Return the finished runs of a strategy in a folder."""
    for path in sorted(folder.rglob("run.json")):
        result = Result.load(path.parent)
        if result.strategy == strategy and result.status == "done":
            yield result


def run(runs: Path, data_root: str) -> None:
    """Do what is not done yet, one seed after the other."""
    for scenario, seed, equal in itertools.product(SCENARIOS, SEEDS, EQUAL):
        fields = asked(scenario, equal, runs, data_root=data_root, offline=True)
        names = SCENARIOS[scenario]["strategies"]
        clbench.compare(
            scenario, names, seeds=[seed], out=runs / scenario / equal, references=False, quiet=True, **fields
        )


def table(runs: Path) -> list[dict[str, object]]:
    """Return a row for each scenario, strategy and kind of equality, with its place in the ranking."""
    load, rows = os.getloadavg()[0], []
    for scenario, equal in itertools.product(SCENARIOS, EQUAL):
        part: list[dict[str, object]] = []
        done = {name: list(finished(runs / scenario / equal, name)) for name in SCENARIOS[scenario]["strategies"]}
        # A ranking is of all methods, over the seeds that all of them have.
        common = set(SEEDS).intersection(*({run.seed for run in of_one} for of_one in done.values()))
        for name, of_one in done.items():
            found = [run for run in of_one if run.seed in common]
            accuracy = spread(run.metrics["average_accuracy"] for run in found)
            if not found or accuracy.mean is None:
                continue
            first = found[0]
            part.append(
                {
                    "scenario": scenario,
                    "equal": equal,
                    "rank": 0,
                    "strategy": name,
                    "accuracy": round(100 * accuracy.mean, 2),
                    "sd": None if accuracy.sd is None else round(100 * accuracy.sd, 2),
                    "seeds": " ".join(str(run.seed) for run in found),
                    "training_flops": first.flops["training"],
                    "inference_flops_per_image": first.flops["inference_per_image"],
                    "bytes": max(sum(entry.values()) for entry in first.ledger),
                    "exemplars": first.stored_items.get("exemplars", 0),
                    "steps": first.steps,
                    "budget": first.config.get("budget") or f"epochs={SCENARIOS[scenario]['epochs']}",
                }
            )
        part.sort(key=lambda row: -float(str(row["accuracy"])))
        rows += [{**row, "rank": place} for place, row in enumerate(part, 1)]
    return [row | where(load, "cpu", "clbench", "torch") for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--runs", type=Path, default=Path("budget-runs"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        run(given.runs, given.data_root)
    made = table(given.runs)
    for row in made:
        print(*(row[name] for name in ("scenario", "equal", "rank", "strategy", "accuracy", "sd", "seeds")))
    write(made, given.out)
