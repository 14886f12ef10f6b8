"""Ranks six strategies on three scenarios under each way of choosing their hyper-parameters.

    python benchmarks/fair_tuning.py --data-root data --work fair --seeds 5 --out benchmarks/results

Each scenario is tuned on, and the two others are judged with the values that were chosen; beside that each judged
scenario is tuned on itself, by its first tasks and by all of them. fair-tuning.csv has a row for each judged scenario,
way and strategy, its score in percent with a 95 % interval, and what the search cost; fair-tuning-agreement.csv has
Kendall's tau of the rankings of each two ways, and fair-tuning.png shows those on the first scenario. Searches and runs
are kept in the folder `--work`, so that a second call goes on.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import common

import clbench
from clbench.reports import figures
from clbench.reports.judged_tables import rank_lines
from clbench.results.statistics import agreement

SCENARIOS = ("split-mnist", "split-digits", "split-cifar10")
STRATEGIES = ("ewc", "si", "lwf", "er", "der", "derpp")
OPTIONS: dict[str, Any] = {
    "setting": "class",
    "tasks": 5,
    "limit": 100,
    "model": "mlp:64",
    "optimizer": "adam",
    "lr": 0.001,
    "batch_size": 16,
    "epochs": 3,
    "augment": "none",
    "normalize": "none",
    "memory_size": 50,
    "threads": 1,
}


def main() -> None:
    """Do all searches and runs, or find them done, and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--work", type=Path, default=Path("fair"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    versions = {k: v for k, v in common.where(0, "cpu", "clbench", "torch", "optuna").items() if k != "load"}
    ways: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in asked.scenarios}
    for tuned_on in asked.scenarios:
        judged = clbench.tune(
            tuned_on,
            STRATEGIES,
            judge_on=[name for name in asked.scenarios if name != tuned_on],
            beside=["first-k-tasks", "oracle"],
            trials=asked.trials,
            seeds=asked.seeds,
            out=asked.work,
            quiet=True,
            data_root=asked.data_root,
            **OPTIONS,
        )
        for part in judged.record["judged"]:
            ways[part["scenario"]] |= {way["name"]: way["ranking"] for way in part["ways"]}
    rows: list[dict[str, object]] = []
    pairs: list[dict[str, object]] = []
    for scenario, by_way in ways.items():
        for way, ranking in by_way.items():
            for row in ranking:
                # One seed has no interval.
                found = {n: "" if row[n] is None else f"{100 * row[n]:.2f}" for n in ("mean", "low", "high")}
                cost = {"runs": row["runs"], "seconds": round(row["seconds"], 1), "images": row["images"]}
                rows.append(
                    {"judged": scenario, "tuned": way, "strategy": row["strategy"], "rank": row["rank"], **found}
                    | {"seeds": row["n"], "values": json.dumps(row["values"]), **cost, **versions}
                )
        for one, other in itertools.combinations(by_way, 2):
            means = [{row["strategy"]: row["mean"] for row in by_way[way]} for way in (one, other)]
            tau = agreement([means[0][name] for name in STRATEGIES], [means[1][name] for name in STRATEGIES])
            shown = "" if tau is None else f"{tau:.2f}"
            pairs.append({"judged": scenario, "one": one, "other": other, "tau": shown, "strategies": len(STRATEGIES)})
    first = ways[asked.scenarios[0]]
    ranks = {
        name: [row["rank"] for of in first.values() for row in of if row["strategy"] == name] for name in STRATEGIES
    }
    drawing = rank_lines(asked.scenarios[0], list(first), ranks)
    (asked.out / "fair-tuning.png").write_bytes(figures.draw(drawing, drawing.title, ["png"])["png"])
    common.write(rows, asked.out / "fair-tuning.csv")
    common.write(pairs, asked.out / "fair-tuning-agreement.csv")


if __name__ == "__main__":
    main()
