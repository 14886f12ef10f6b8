"""A run spends what its budget says: steps by their FLOPs, exemplars by their bytes; everything else is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
from shared import StopAt, StoppedError

import clbench
from clbench import ConfigError, Result, RunError
from clbench.config.groups import budget_of
from clbench.running.resolve import prepare, resolve
from clbench.tools.plan import plan_run

FAST: dict[str, Any] = {"limit": 10, "model": "mlp:16", "batch_size": 8, "threads": 1, "quiet": True}
PLAIN: dict[str, Any] = {"limit": 8, "model": "mlp:16", "batch_size": 8, "threads": 1}
BUDGET = 20_000_000
# Bytes of mlp:16 with all ten outputs: weights and biases, float32; and of an image.
MODEL, IMAGE = 4 * (784 * 16 + 16 + 16 * 10 + 10), 784


def run(tmp_path: Path, strategy: str, **fields: Any) -> Result:
    return clbench.run("split-mnist-5k", strategy, out=tmp_path / "run", **{**FAST, **fields})


@pytest.mark.parametrize(("text", "expected"), [
    ("flops=1e12", ("flops", 10**12)), ("flops=1.5T", ("flops", 1_500_000_000_000)), (" flops = 3 ", ("flops", 3)),
    ("flops=2.5e3", ("flops", 2500)), ("bytes=2000000", ("bytes", 2_000_000)), ("bytes=2MB", ("bytes", 2_000_000)),
    ("bytes=1.5 MiB", ("bytes", 1_572_864)), ("bytes=2e6", ("bytes", 2_000_000)), ("flops=7k", ("flops", 7000)),
])  # fmt: skip
def test_a_budget_is_read(text: str, expected: tuple[str, int]) -> None:
    assert budget_of(text) == expected


@pytest.mark.parametrize("text", [
    *("flops=0", "flops=-1", "flops=nan", "flops=inf", "flops=1e30", "flops=0.1", "flops=1e-3", "flops=", "flops"),
    *("flops=1MB", "bytes=1T", "bytes=2QB", "bytes=0", "=1", "", "1e12", "FLOPS=1", "joules=3", "flops=1,2"),
    *("flops=1_0", "flops=1e99", "bytes=9EB", "flops=\u0661", "flops=1e12 bytes=2MB"),
])  # fmt: skip
def test_what_is_no_budget_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"flops=1e12, or bytes=2MB, from 1 to 9e18, accepted"):
        run(tmp_path, "naive", budget=text)


@pytest.mark.parametrize(("fields", "message"), [
    ({"budget": "seconds=10"}, "no two runs would spend on the same steps"),
    ({"budget": "flops=1e8", "epochs": 1}, "budget=flops=1e8 decides epochs; leave out epochs=1"),
    ({"budget": "flops=1e8", "iterations": 3}, "leave out iterations=3"),
    ({"budget": "flops=1e8", "patience": 3, "validation": 0.2}, "leave out patience=3"),
    ({"budget": "flops=1e8", "schedule": "cosine", "schedule_scope": "run"}, "leave out schedule_scope=run"),
    ({"budget": "bytes=1MB", "epochs": 1, "memory_size": 10}, "leave out memory_size=10"),
    ({"budget": "bytes=1MB", "epochs": 1, "memory_per_class": 1}, "leave out memory_per_class=1"),
])  # fmt: skip
def test_what_a_budget_decides_is_not_given_beside_it(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, "er", **fields)


def test_what_stands_in_brackets_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out memory_size=10"):
        run(tmp_path, "er[memory_size=10,budget=bytes=1MB]", epochs=1)
    with pytest.raises(ConfigError, match="packnet prunes after a share of the epochs"):
        run(tmp_path, "packnet", budget="flops=1e8", setting="task")


@pytest.mark.slow
def test_a_foreign_loop_has_no_budget(tmp_path: Path) -> None:
    """It is not clbench that takes its steps."""
    with pytest.raises(ConfigError, match="avalanche:Replay can't honour budget=flops="):
        run(tmp_path, "avalanche:Replay", budget="flops=1e8")


@pytest.mark.parametrize("strategy", ["naive", "lwf", "er[memory_size=20]", "ewc", "icarl[memory_size=20]", "joint"])
def test_a_run_spends_its_flops_to_less_than_a_step(tmp_path: Path, strategy: str) -> None:
    """The dearest step costs what a batch of 16 costs forward, backward and through a teacher."""
    result = run(tmp_path, strategy, budget=f"flops={BUDGET}")
    step = 2 * 16 * (784 * 16 + 16 * 10) * 3
    assert abs(result.unused_budget or math.inf) < step
    assert result.unused_budget == BUDGET - (result.flops["training"] or 0)
    spent = 0
    for task, entry in enumerate(result.record["tasks"]):
        spent += entry["flops"]["train"] + entry["flops"].get("memory", 0)
        # The first task does not know yet what comes after its training.
        after = result.record["tasks"][0]["flops"].get("memory", 0) if task == 0 else 0
        assert abs(spent - BUDGET * (task + 1) / 5) < step + after


def test_steps_are_those_that_the_flops_pay_for_and_the_schedule_knows_them(tmp_path: Path) -> None:
    """By hand for one task of ten outputs: of 8 images a step costs 8 * (4 * 784 * 16 + 6 * 16 * 10); n of them fit.

    Cosine falls to (1 + cos(pi (n - 1) / n)) / 2 of the rate in the last of n steps.
    """
    step = 8 * (4 * 784 * 16 + 6 * 16 * 10)
    result = run(tmp_path, "naive", tasks=1, limit=8, budget=f"flops={25 * step + 100}", schedule="cosine", lr=0.1)
    assert result.steps == 25
    last = result.record["training"][-1]["lr"]
    assert last == pytest.approx(0.1 * (1 + math.cos(math.pi * 24 * step / (25 * step + 100))) / 2)


def test_a_budget_goes_on_after_an_interruption(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"budget": f"flops={BUDGET}", "checkpoint_every": "1-steps", "schedule": "cosine"}
    whole = clbench.run("split-mnist-5k", "ewc", out=tmp_path / "whole", **asked, **FAST)
    with pytest.raises(StoppedError):
        clbench.run("split-mnist-5k", "ewc", out=tmp_path / "cut", observer=StopAt(task=2, step=3), **asked, **FAST)
    resumed = clbench.run("split-mnist-5k", "ewc", out=tmp_path / "cut", resume=True, **asked, **FAST)
    assert resumed.record["resumes"]
    assert resumed.record["classifiers"] == whole.record["classifiers"]
    assert [t["flops"] for t in resumed.record["tasks"]] == [t["flops"] for t in whole.record["tasks"]]


def test_a_budget_below_a_step_or_a_fixed_cost_ends_the_run_with_the_number(tmp_path: Path) -> None:
    """A step of 8 images by hand, as above with two outputs; slda passes a task's images through the network.

    One step of the first task is all that the budget pays for, so these passes are too much in one of the last tasks.
    """
    step = 8 * (4 * 784 * 16 + 6 * 16 * 2)
    with pytest.raises(RunError, match=f"leaves 200 FLOPs for stage 'train' of task 0, and a step takes {step:,};"):
        run(tmp_path, "naive", budget="flops=1000")
    with pytest.raises(RunError, match=r"slda has spent .* by the end of task \d, in which no stage could be shorter"):
        run(tmp_path / "slda", "slda", budget=f"flops={5 * step}")


@pytest.mark.parametrize(("strategy", "beside"), [
    ("er", 0),
    ("gdumb", 0),
    # Each exemplar has its id, int64, and ten logits.
    ("der", 8 + 4 * 10),
])  # fmt: skip
def test_exemplars_get_the_bytes_that_are_left(tmp_path: Path, strategy: str, beside: int) -> None:
    budget = MODEL + 30 * (IMAGE + beside) + 500
    result = run(tmp_path, strategy, epochs=1, budget=f"bytes={budget}")
    assert result.config["memory_size"] == 30
    assert result.ledger[-1]["exemplars"] == 30 * IMAGE
    assert result.unused_budget == 500
    assert not [text for text in result.warnings if "budget" in text]


def test_a_teacher_and_means_are_paid_for_before_exemplars(tmp_path: Path) -> None:
    """icarl keeps the old network, with eight outputs in the last task, and a mean of 16 floats for each class."""
    teacher = MODEL - 4 * (16 * 2 + 2)
    budget = MODEL + teacher + 4 * 16 * 10 + 40 * IMAGE
    result = run(tmp_path, "icarl", epochs=1, budget=f"bytes={budget}")
    assert (result.config["memory_size"], result.unused_budget) == (40, 0)


def test_a_memory_is_no_larger_than_the_data(tmp_path: Path) -> None:
    result = run(tmp_path, "er", epochs=1, budget="bytes=1GB")
    assert result.config["memory_size"] == 100
    assert result.unused_budget == 10**9 - MODEL - 100 * IMAGE


def test_what_keeps_more_than_the_budget_is_refused_with_the_number(tmp_path: Path) -> None:
    """ewc keeps importance and anchor of each weight; er is nothing without an exemplar."""
    with pytest.raises(
        ConfigError, match=f"ewc keeps {3 * MODEL:,} bytes without exemplars; bytes={3 * MODEL} or more"
    ):
        run(tmp_path, "ewc", epochs=1, budget=f"bytes={3 * MODEL - 1}")
    with pytest.raises(ConfigError, match=f"er keeps {MODEL + IMAGE:,} bytes, of which one exemplar takes {IMAGE};"):
        run(tmp_path, "er", epochs=1, budget=f"bytes={MODEL + IMAGE - 1}")
    exact = run(tmp_path, "ewc", epochs=1, budget=f"bytes={3 * MODEL}")
    assert exact.unused_budget == 0


def test_a_plan_tells_the_steps_that_are_paid_for(tmp_path: Path) -> None:
    """The run takes as many; a step costs the same with every task of ten outputs."""
    config, scenario = prepare(
        resolve("split-mnist-5k", "naive", {**PLAIN, "head": "full", "budget": f"flops={BUDGET}"})
    )
    planned = plan_run(config, scenario)
    ran = run(tmp_path, "naive", head="full", budget=f"flops={BUDGET}", limit=8)
    assert abs(planned["updates"] - ran.steps) <= 5
    assert planned["training_flops"] <= BUDGET


def test_spellings_of_a_budget_are_one_run_and_a_comparison_takes_it(tmp_path: Path) -> None:
    budget = MODEL + 20 * IMAGE
    names = ["er", "naive"]
    asked: dict[str, Any] = {"out": tmp_path, "references": False, "epochs": 1, **FAST}
    first = clbench.compare("split-mnist-5k", names, seeds=1, budget=f"bytes={budget}", **asked)
    again = clbench.compare("split-mnist-5k", names, seeds=1, budget=f"bytes={budget / 1000}KB", **asked)
    assert [run.config["memory_size"] for run in first] == [20, None]
    assert [run.record["identity"] for run in first] == [run.record["identity"] for run in again]
    assert [run.record["created"] for run in first] == [run.record["created"] for run in again]
