"""One run on many processes has the numbers of one process, and the death of one of them loses nothing.

The expected values are those of the same runs on one process, which know nothing of parts of a batch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import one_of_many
import pytest
import torch

import clbench
from clbench.running.packing import unpack

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "one_of_many.py"
# Name, strategy, network, options. Batches have 7 images, and the last one of a task fewer: parts are never equal.
Asked = tuple[str, str, str, dict[str, Any]]
FEW: list[Asked] = [
    ("er", "er[share=0.3]", "double", {"memory_size": 12}),
    ("gem", "gem", "double", {"memory_size": 12}),
    ("ewc", "ewc", "double", {}),
    ("norm", "naive", "norm", {"augment": "crop", "optimizer": "adam", "lr": 0.01, "momentum": 0.0}),
]
MANY: list[Asked] = [
    *((name, name, "double", {}) for name in ("naive", "lwf", "si", "mas", "rwalk", "ewc[fisher_labels=sampled]")),
    *((name, name, "double", {"memory_size": 12}) for name in ("icarl", "agem", "mir", "derpp", "bic", "lucir")),
    ("der", "der", "double", {"memory_size": 12, "head": "full", "augment": "crop-flip", "on_nan": "skip"}),
    ("packnet", "packnet", "double", {"setting": "task"}),
    ("hat", "hat", "double", {"setting": "task"}),
    ("lwf-late", "lwf", "norm", {"validation": 0.3, "patience": 1, "epochs": 3, "eval_every": 1}),
    ("one-by-one", "er", "double", {"memory_size": 12, "batch_size": 1, "optimizer_state": "keep"}),
]


def torchrun(folder: Path, asked: list[Asked], *options: str) -> subprocess.Popen[str]:
    """Start runs on the processes of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(SCRIPT), str(folder), json.dumps(asked)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return unpack((folder / "model.pt").read_bytes(), clbench.Strategy)


def assert_same(folder: Path, asked: list[Asked], ranks: int) -> None:
    """Compare each run with the same one on one process: losses and weights to 1e-10, accuracies to the last bit."""
    for name, strategy, network, options in asked:
        alone = one_of_many.run(folder / f"{name}-alone", strategy, network, options)
        together = clbench.Result.load(folder / name)
        assert together.config["processes"] == ranks
        assert alone.config["processes"] == 1
        losses = [[epoch["losses"] for epoch in result.record["training"]] for result in (alone, together)]
        assert len(losses[0]) == len(losses[1]) > 0
        for here, there in zip(*losses, strict=True):
            assert there == pytest.approx(here, rel=1e-10, abs=1e-10), name
        known = weights(folder / f"{name}-alone")
        found = weights(folder / name)
        assert known.keys() == found.keys()
        for key, value in known.items():
            assert float((found[key].double() - value.double()).abs().max()) < 1e-10, (name, key)
        assert together.record["accuracy"] == alone.record["accuracy"]
        # Every process has found the same, and not the first alone.
        each = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]
        assert all(one == each[0] for one in each), name


def done(started: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for a command; return what it has printed."""
    printed, _ = started.communicate(timeout=seconds)
    assert started.returncode == 0, printed
    return printed


def test_two_processes_have_the_numbers_of_one(tmp_path: Path) -> None:
    """Also where parts are unequal, the strategy reads gradients, and layers mix the samples of a batch."""
    done(torchrun(tmp_path, FEW, "--standalone", "--nproc-per-node", "2"))
    assert_same(tmp_path, FEW, 2)
