"""No method is fine-tuning under another name, at a large strength, and the cross-check says where one is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clbench.config.registry import entry_point_names
from clbench.running.resolve import strategy_class

# Importing Avalanche takes seconds.
pytestmark = pytest.mark.slow

# Options under which a method does most, beside the strength.
OURS = {
    name: f"{name}[strength=1000]"
    for name in entry_point_names("clbench.strategies")
    if strategy_class(name).traits.family in ("regularisation", "distillation")
    and "strength" in strategy_class(name)._options.model_fields
}
THEIRS = {
    "LwF": "avalanche:LwF[alpha=1000,temperature=2]",
    "EWC": "avalanche:EWC[ewc_lambda=1000]",
    "EWC-online": "avalanche:EWC[ewc_lambda=1000,mode=online,decay_factor=0.5]",
    "MAS": "avalanche:MAS[lambda_reg=1000]",
    "CWRStar": "avalanche:CWRStar[cwr_layer_name=head]",
    "Replay": "avalanche:Replay",
    "AGEM": "avalanche:AGEM[patterns_per_exp=10]",
    "Cumulative": "avalanche:Cumulative",
}
WITH_MEMORY = {"Replay": {"memory_size": 20}}
# Steps small enough that a strength of 1000 does not blow the weights up.
SMALL: dict[str, Any] = {"lr": 0.001, "epochs": 2}
FULL = {"head": "full", "loss_outputs": "all"}
SI = "avalanche:SynapticIntelligence[si_lambda=1000,eps=0.1]"


@pytest.fixture
def weights(run: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Train a strategy and return its final weights and the texts of its warnings."""

    def trained(spec: str, *given: Any, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        result = run(spec, *given, out=out, **{**SMALL, **options})
        told = {warning["rule"]: warning["text"] for warning in result.record["warnings"]}
        return torch.load(out / "model.pt", weights_only=True), told

    return trained


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_strategies_with_a_strength_are_found() -> None:
    assert {"ewc", "si", "mas", "rwalk", "l2", "lwf"} <= OURS.keys()


@pytest.mark.parametrize("spec", OURS.values(), ids=OURS)
def test_ours_at_a_large_strength_is_not_fine_tuning(spec: str, weights: Callable[..., Any]) -> None:
    with_naive, _ = weights("naive")
    with_method, told = weights(spec)
    assert not equal(with_naive, with_method)
    assert "is-fine-tuning" not in told


@pytest.mark.parametrize("name", THEIRS)
def test_avalanches_at_a_large_strength_is_not_fine_tuning(name: str, weights: Callable[..., Any]) -> None:
    options = WITH_MEMORY.get(name, {}) | (FULL if name == "CWRStar" else {})
    with_naive, _ = weights("avalanche:Naive", **(FULL if name == "CWRStar" else {}))
    with_method, told = weights(THEIRS[name], **options)
    assert not equal(with_naive, with_method)
    assert "is-fine-tuning" not in told


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_avalanches_synaptic_intelligence_says_that_it_is_fine_tuning_on_a_cpu(
    setting: str, weights: Callable[..., Any], cut: Callable[..., Any]
) -> None:
    """Its weights of an mlp are those of fine-tuning to the bit, whatever the strength, and the run says why."""
    with_naive, _ = weights("avalanche:Naive", cut(setting=setting))
    with_method, told = weights(SI, cut(setting=setting))
    assert equal(with_naive, with_method)
    text = told["is-fine-tuning"]
    assert "this run is fine-tuning: on a CPU Avalanche keeps a view of the weights" in text
    assert "\n" not in text


def test_of_a_convolution_the_warning_names_the_weights_that_nothing_protects(weights: Callable[..., Any]) -> None:
    """Kernels lie channels last, where to flatten is to copy: so these alone are protected."""
    with_naive, _ = weights("avalanche:Naive", model="conv:4-4")
    with_method, told = weights(SI, model="conv:4-4")
    assert not equal(with_naive, with_method)
    text = told["is-fine-tuning"]
    assert "nothing protects" in text
    assert "head.weight" in text
    kernels = [name for name, value in with_naive.items() if value.dim() == 4 and value.shape[1] > 1]
    assert kernels
    assert not any(kernel in text for kernel in kernels)


def crosschecked(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "clbench", "crosscheck", *arguments, "--seeds", "2", "--limit", "20"]
    options = ["--epochs", "1", "--model", "mlp:32", "--out", "runs", "--json", "--quiet"]
    ended = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, check=True)
    table: list[dict[str, Any]] = json.loads(ended.stdout)
    return table


def test_the_cross_check_says_that_avalanches_si_is_fine_tuning(tmp_path: Path) -> None:
    """And of no other method; the gap is not explained by clipped importances, which are all 0."""
    table = {row["method"]: row for row in crosschecked(tmp_path, "naive", "lwf", "ewc", "er", "icarl", "si")}
    assert {method: row["fine_tuning"] for method, row in table.items()} == {
        "naive": [],
        "lwf": [],
        "ewc": [],
        "er": [],
        "icarl": [],
        "si": ["avalanche"],
    }
    assert "Avalanche's ends with the weights of fine-tuning, to the bit (seed 0)" in table["si"]["differs"]
    assert "clipped" not in table["si"]["differs"]


def test_the_cross_check_notices_any_method_that_is_fine_tuning(tmp_path: Path) -> None:
    """With one task there is nothing to protect yet, so that both methods are fine-tuning, and the row says so."""
    (row,) = crosschecked(tmp_path, "ewc", "--scenario", "split-mnist-5k[tasks=1]")
    assert row["fine_tuning"] == ["ours", "avalanche"]
    assert row["differs"].startswith("ours and Avalanche's end with the weights of fine-tuning")
