"""Every strategy in every setting it declares, and a golden number for each.

The golden numbers were recorded from these very runs (python tests/strategies/test_grid.py): they say whether a later
change moves a strategy, not whether it is right; that is what the tests beside the papers are for.
"""

import csv
import tempfile
from pathlib import Path

import numpy as np
import pytest
from shared import network_of

import clbench
from clbench.config.registry import entry_point_names
from clbench.running.resolve import strategy_class
from clbench.tools.conformance import TRANSFORMER

GOLDEN = Path(__file__).with_name("golden.csv")
# Wide enough for the rounding of another CPU, narrow against what a wrong loss or a lost exemplar does.
BAND = 0.05
SIZES = {"5x2": [2] * 5, "4/3/3": [4, 3, 3], "10x1": [1] * 10}
POSSIBLE = {"class": ("5x2", "4/3/3", "10x1"), "task": ("5x2", "4/3/3"), "domain": ("5x2",)}
NAMES = entry_point_names("clbench.strategies")
SAMPLE = ("derpp", "hat", "ranpac", "rwalk")
GRID = [(n, s, z) for n in NAMES for s in strategy_class(n).traits.settings for z in POSSIBLE[s]]


def _marked(name: str) -> list[pytest.MarkDecorator]:
    return [] if name in SAMPLE else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "setting", "sizes"), [pytest.param(*cell, marks=_marked(cell[0]), id="-".join(cell)) for cell in GRID]
)
def test_every_strategy_learns_every_shape_of_tasks_it_declares(
    name: str, setting: str, sizes: str, tmp_path: Path
) -> None:
    options = {"memory_size": 20} if strategy_class(name).traits.needs_memory else {}
    result = clbench.run(
        "split-mnist-5k",
        name,
        out=tmp_path,
        setting=setting,
        task_sizes=SIZES[sizes],
        limit=10,
        epochs=2,
        threads=1,
        **options,
        **network_of(name),
    )
    assert result.status == "done"
    assert np.isfinite(result.accuracy[-1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_trains_a_convolutional_network_in_bf16(name: str, tmp_path: Path) -> None:
    """Its weights have their channels last in memory, which a view refuses."""
    options = {"memory_size": 20} if strategy_class(name).traits.needs_memory else {}
    setting = strategy_class(name).traits.settings[0]
    fixed = {"precision": "bf16", "limit": 6, "epochs": 1, "tasks": 2, "threads": 1} | network_of(name, "conv:4-4")
    assert clbench.run("split-mnist-5k", name, out=tmp_path, setting=setting, **fixed, **options).status == "done"


def short_run(name: str, folder: Path) -> float:
    """Return the average accuracy of a short run in the first setting that the strategy declares."""
    traits = strategy_class(name).traits
    setting = traits.settings[0]
    network = {"model": TRANSFORMER} if traits.needs_transformer else {}
    fixed = {"limit": 100, "epochs": 2, "threads": 1, "seed": 0} | network
    result = clbench.run("split-mnist-5k", name, out=folder, setting=setting, **fixed)
    average = result.metrics["average_accuracy"]
    assert average is not None
    return average


def recorded() -> dict[str, float]:
    with GOLDEN.open() as file:
        return {row["strategy"]: float(row["average_accuracy"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marked(name)) for name in NAMES])
def test_a_short_run_lands_in_the_recorded_band(name: str, tmp_path: Path) -> None:
    assert abs(short_run(name, tmp_path) - recorded()[name]) < BAND


if __name__ == "__main__":
    with GOLDEN.open("w", newline="") as file, tempfile.TemporaryDirectory() as folder:
        writer = csv.writer(file)
        writer.writerow(["strategy", "setting", "average_accuracy"])
        for name in NAMES:
            average = short_run(name, Path(folder) / name)
            writer.writerow([name, strategy_class(name).traits.settings[0], f"{average:.4f}"])
            print(name, f"{average:.4f}", flush=True)
