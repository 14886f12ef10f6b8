"""Write strategies/storage.csv, which `clbench list strategies` shows: each strategy's bytes beside the network.

The bytes are measured, not declared: they come from the ledger of a short run on split-mnist-5k with its preset (5
tasks, mlp:400-400, 200 exemplars if it has a memory), in the first setting that the strategy supports. Where a strategy
needs a transformer, the network is the small one of the conformance kit.
"""

import csv
import tempfile
from pathlib import Path

import clbench
from clbench.config.registry import entry_point_names
from clbench.running.resolve import strategy_class
from clbench.tools.conformance import TRANSFORMER

FILE = Path(__file__).parents[1] / "strategies" / "storage.csv"
# Enough images to fill the memory, few enough for a run of about a second.
SHORT = {"limit": 100, "epochs": 1, "threads": 1, "evaluate": "seen"}


def kept(name: str, asked: dict[str, str]) -> list[int]:
    """Return the bytes that a strategy keeps after each task, network included."""
    with tempfile.TemporaryDirectory() as folder:
        result = clbench.run("split-mnist-5k", name, out=folder, **asked, **SHORT)
    return [sum(entry["bytes"].values()) for entry in result.record["ledger"]]


def measured(name: str) -> dict[str, str | int]:
    """Return a strategy's row: bytes beyond naive's network after the last task, and what each further task adds."""
    traits = strategy_class(name).traits
    setting = traits.settings[0]
    asked = {"setting": setting} | ({"model": TRANSFORMER} if traits.needs_transformer else {})
    extra = [a - b for a, b in zip(kept(name, asked), kept("naive", asked), strict=True)]
    # In the first task there is neither a teacher nor a full memory yet.
    growth = (extra[-1] - extra[1]) // (len(extra) - 2)
    return {"strategy": name, "setting": setting, "extra_bytes": extra[-1], "extra_bytes_per_task": growth}


if __name__ == "__main__":
    rows = [measured(name) for name in entry_point_names("clbench.strategies")]
    with FILE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
