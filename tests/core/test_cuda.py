"""On a GPU a run learns as on a CPU, no step waits for the device, and a repeated run gives the same numbers."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import network_of

import clbench
from clbench.config.registry import entry_point_names
from clbench.data.batches import Pipeline
from clbench.learning.evaluation import MATRICES
from clbench.learning.fit import FixedRows
from clbench.running.resolve import prepare, resolve, strategy_class

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

NAMES = entry_point_names("clbench.strategies")
# Long enough to learn, and short enough that the rounding of two devices does not grow.
SMALL: dict[str, Any] = {"model": "mlp:24-24", "tasks": 3, "limit": 12, "epochs": 2, "batch_size": 8, "threads": 1}
ADAM: dict[str, Any] = {"optimizer": "adam", "lr": 0.005}


def small(name: str, out: Path, **options: Any) -> clbench.Result:
    """Do a small run of a strategy on the given device."""
    kind = strategy_class(name)
    memory = {"memory_size": 20} if kind.traits.needs_memory else {}
    small = SMALL | ADAM | memory | network_of(name)
    return clbench.run("split-mnist-5k", name, out=out, setting=kind.traits.settings[0], **small, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_learns_on_cuda_what_it_learns_on_the_cpu(name: str, tmp_path: Path) -> None:
    on_cpu, on_cuda = (small(name, tmp_path / device, device=device) for device in ("cpu", "cuda"))
    for classifier in on_cpu.classifiers:
        for matrix in MATRICES:
            expected, found = (
                np.array(result.record["classifiers"][classifier][matrix], dtype=float) for result in (on_cpu, on_cuda)
            )
            np.testing.assert_allclose(found, expected, atol=0.03)


def asynchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make it an error of torch that the function waits for the device."""

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched


# gem solves a quadratic programme in a step, mir looks up the samples that it drew.
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"gem", "mir"}))
def test_no_step_waits_for_the_device(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = strategy_class(name)
    parts = [(kind, hook) for hook in ("loss", "after_backward", "penalty", "after_step")]
    for owner, method in [*parts, (Pipeline, "batch"), (FixedRows, "restore")]:
        monkeypatch.setattr(owner, method, asynchronous(getattr(owner, method)))
    assert small(name, tmp_path, device="cuda", augment="crop").status == "done"


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("name", ["split-mnist-5k", "permuted-mnist-5k", "rotated-mnist-5k"])
def test_images_on_disk_come_to_the_device_without_waiting_for_it(
    name: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path))
    given = {"limit": 20, "memory_limit": "100KB", "reading_threads": threads, "mixup": 0.2}
    config, scenario = prepare(resolve(name, "naive", given))
    batches = torch.randperm(len(scenario.train.images))[:64].split(8)

    def originals(pipeline: Pipeline) -> list[torch.Tensor]:
        ahead = zip(batches, pipeline.ahead(batches), strict=True)
        found = [pipeline.batch(ids, slice(0, 10), ("step", n), read) for n, (ids, read) in enumerate(ahead)]
        pipeline.reader.close()
        return [batch.originals for batch in found]

    on_cpu, on_cuda = (Pipeline(scenario, config, torch.device(device)) for device in ("cpu", "cuda"))
    # The rotation of an image rounds otherwise on another device.
    most = 1 if name.startswith("rotated") else 0
    for found, expected in zip(asynchronous(originals)(on_cuda), originals(on_cpu), strict=True):
        assert found.device.type == "cuda"
        assert (found.cpu().int() - expected.int()).abs().max() <= most


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_deterministic_run_repeats_to_the_byte(precision: str, tmp_path: Path) -> None:
    options = {"model": "conv:8-8", "precision": precision, "deterministic": True, "augment": "crop"}
    given = SMALL | ADAM | options | {"device": "cuda", "memory_size": 20}
    one, other = (clbench.run("split-mnist-5k", "icarl", out=tmp_path / str(turn), **given) for turn in (0, 1))
    assert one.record["classifiers"] == other.record["classifiers"]
    losses = [[epoch["losses"] for epoch in result.record["training"]] for result in (one, other)]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("strategy", ["naive", "lwf", "icarl"])
def test_graphs_of_compiled_steps_compute_the_same_losses(strategy: str, tmp_path: Path) -> None:
    """In float64 to 1e-8 over 20 steps: the second mode records CUDA graphs."""
    given: dict[str, Any] = {"tasks": 2, "limit": 20, "threads": 1, "batch_size": 64, "lr": 0.01, "optimizer": "sgd"}
    given |= {"device": "cuda", "model": "conv:4-8", "epochs": 10} | (
        {"memory_size": 20} if strategy == "icarl" else {}
    )
    plain, compiled = (
        clbench.run("split-mnist-5k", strategy, out=tmp_path / mode, compile=mode, **given)
        for mode in ("none", "reduce-overhead")
    )
    assert compiled.record["warnings"] == plain.record["warnings"]
    for one, other in zip(plain.record["training"], compiled.record["training"], strict=True):
        assert one["losses"] == pytest.approx(other["losses"], abs=1e-8)
