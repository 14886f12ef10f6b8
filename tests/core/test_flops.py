"""Floating-point operations are counted as by hand on an MLP, and as by torch's own counter on larger networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shared import StopAt, StoppedError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import clbench
from clbench import Result
from clbench.learning.flops import Flops
from clbench.models.resnet import ResNet32

INPUTS, WIDTH = 784, 16
FAST: dict[str, Any] = {"limit": 10, "model": f"mlp:{WIDTH}", "batch_size": 8, "threads": 1, "quiet": True}
# Images of a task of split-mnist-5k with so few of each class.
N = 20


def forward(n: int, outputs: int) -> int:
    """Return the operations of a pass of n images: 2 for each weight of both layers and image."""
    return 2 * n * (INPUTS * WIDTH + WIDTH * outputs)


def backward(n: int, outputs: int) -> int:
    """Return those of a backward pass: as many for the weights, and those for the input of the head."""
    return forward(n, outputs) + 2 * n * WIDTH * outputs


def test_naive_is_counted_as_by_hand(tmp_path: Path) -> None:
    """Two epochs; evaluation is that of the untrained network, and of the tasks so far within and after a task."""
    result = clbench.run(
        "split-mnist-5k", "naive", out=tmp_path, epochs=2, count_flops=True, evaluate="seen", eval_every="epoch", **FAST
    )
    for task, entry in enumerate(result.record["tasks"]):
        outputs = 2 * (task + 1)
        assert entry["n_train"] == N
        assert entry["flops"]["train"] == 2 * (forward(N, outputs) + backward(N, outputs))
        tested = sum(part["n_test"] for part in result.record["scenario"]["tasks"][: task + 1])
        # After each of two epochs and at the end; the first task also before any training.
        assert entry["flops"]["evaluation"] == forward(tested, outputs) * (3 + (task == 0))
        assert entry["flops"]["per_image"] == forward(1, outputs)
    assert result.flops == {
        "training": sum(entry["flops"]["train"] for entry in result.record["tasks"]),
        "inference_per_image": forward(1, 10),
    }


@pytest.mark.parametrize(
    "fields", [{"online_accuracy": True}, {"near_future": 2}, {"anytime": 10}, {"plasticity": True}], ids=str
)
def test_tests_on_the_way_count_as_evaluation_and_leave_a_budget_alone(fields: dict[str, Any], tmp_path: Path) -> None:
    """The expected values are those of the same run without them, within a budget of 10 steps of the largest task."""
    budget = f"flops={5 * 10 * (forward(8, 10) + backward(8, 10))}"
    plain, tested = (
        clbench.run("split-mnist-5k", "naive", out=tmp_path / name, budget=budget, evaluate="seen", **FAST, **more)
        for name, more in (("plain", {}), ("tested", fields))
    )
    for one, other in zip(plain.record["tasks"], tested.record["tasks"], strict=True):
        assert other["steps"] == one["steps"] > 0
        assert other["flops"]["train"] == one["flops"]["train"]
        assert other["flops"].get("memory", 0) == one["flops"].get("memory", 0)
        assert other["flops"]["evaluation"] > one["flops"]["evaluation"]
    assert tested.record["accuracy"] == plain.record["accuracy"]


@pytest.mark.parametrize("evaluate", ["current", "seen", "all"])
def test_the_test_of_an_image_costs_the_same_whichever_tasks_are_tested(evaluate: Any, tmp_path: Path) -> None:
    """Inference is a forward pass of one image, with the outputs that there are."""
    result = clbench.run("split-mnist-5k", "naive", out=tmp_path, epochs=1, count_flops=True, evaluate=evaluate, **FAST)
    for task, entry in enumerate(result.record["tasks"]):
        assert entry["flops"]["per_image"] == forward(1, 2 * (task + 1))


def test_teacher_replay_fisher_and_herding_are_counted(tmp_path: Path) -> None:
    """Counts by hand; Fisher takes a forward pass of one image more, which shows how many outputs there are."""

    def tasks(strategy: str, **fields: Any) -> list[dict[str, Any]]:
        result = clbench.run(
            "split-mnist-5k", strategy, out=tmp_path / strategy, epochs=1, count_flops=True, **FAST, **fields
        )
        epochs = result.record["training"]
        return [{**t, "replayed": e["replayed"]} for t, e in zip(result.record["tasks"], epochs, strict=True)]

    for task, entry in enumerate(tasks("lwf")):
        outputs = 2 * (task + 1)
        teacher = forward(N, outputs - 2) if task else 0
        assert entry["flops"]["train"] == forward(N, outputs) + backward(N, outputs) + teacher
    for task, entry in enumerate(tasks("er", memory_size=20)):
        n, outputs = N + entry["replayed"], 2 * (task + 1)
        assert entry["replayed"] >= 8
        assert entry["flops"]["train"] == forward(n, outputs) + backward(n, outputs)
    for task, entry in enumerate(tasks("ewc")):
        outputs = 2 * (task + 1)
        assert entry["flops"]["memory"] == forward(N + 1, outputs) + backward(N, outputs)
    for entry in tasks("icarl", memory_size=20):
        # Herding looks at each image of the task, and the class means at each exemplar; features need no head.
        assert entry["flops"]["memory"] == 2 * (N + entry["n_exemplars"]) * INPUTS * WIDTH


class Attending(nn.Module):
    """Attention of four tokens, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = images.flatten()[: len(images) * 32].view(len(images), 1, 4, 8)
        attended: torch.Tensor = self.last(F.scaled_dot_product_attention(tokens, tokens, tokens).mean((1, 2)))
        return attended


@pytest.mark.parametrize("inference", [False, True])
def test_convolutions_are_counted_as_by_torch(inference: bool) -> None:
    """ResNet-32, forward and backward, and in inference mode, where torch hands over whole layers."""
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])

    def count(counter: Any) -> None:
        torch.manual_seed(0)
        model = ResNet32((3, 32, 32))
        model.head.grow(10, torch.Generator().manual_seed(0), "default")
        with torch.inference_mode(inference), counter:
            loss = F.cross_entropy(model(images), labels)
            if not inference:
                loss.backward()

    ours, theirs = Flops(), FlopCounterMode(display=False)
    count(ours)
    count(theirs)
    assert ours.training == theirs.get_total_flops() > 10**8


def test_attention_on_a_cpu_is_counted() -> None:
    """By hand: for each head two products of 4 x 8 with 8 x 4, 2 operations each; then the linear layer."""
    with torch.no_grad(), Flops() as flops:
        Attending()(torch.randn(5, 32))
    assert flops.training == 5 * 2 * 2 * 4 * 4 * 8 + 5 * 2 * 8 * 3


def test_counting_changes_no_bit_and_survives_an_interruption(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"epochs": 2, "memory_size": 20, "checkpoint_every": "1-steps", **FAST}
    plain = clbench.run("split-mnist-5k", "icarl", out=tmp_path / "plain", **asked)
    counted = clbench.run("split-mnist-5k", "icarl", out=tmp_path / "counted", count_flops=True, **asked)
    assert plain.record["classifiers"] == counted.record["classifiers"]
    assert "flops" not in plain.record["tasks"][0]
    assert plain.record["identity"] == counted.record["identity"]
    stop = StopAt(task=1, step=5)
    with pytest.raises(StoppedError):
        clbench.run("split-mnist-5k", "icarl", out=tmp_path / "killed", count_flops=True, observer=stop, **asked)
    resumed = clbench.run("split-mnist-5k", "icarl", out=tmp_path / "killed", count_flops=True, resume=True, **asked)
    assert resumed.record["resumes"]
    assert [t["flops"] for t in resumed.record["tasks"]] == [t["flops"] for t in counted.record["tasks"]]
    assert Result.load(tmp_path / "killed").flops == counted.flops


@pytest.mark.parametrize(("fields", "message"), [
    ({"processes": 2}, "processes=2 given, and FLOPs are counted in one process"),
    ({"compile": "default"}, "compile=default given, and FLOPs are counted in one process"),
])  # fmt: skip
def test_the_counter_needs_one_process_without_compiling(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(clbench.ConfigError, match=message):
        clbench.run("split-mnist-5k", "naive", out=tmp_path, epochs=1, count_flops=True, **FAST, **fields)
