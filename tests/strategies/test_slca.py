"""SLCA against numbers of the authors' code, and what it does with few samples, at the ends of tasks and to presets.

published/slca.json says which code it was, and how the numbers were made.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formulas import COUNTS, TRAINING, fill, filled, images
from torch import Tensor

import clbench
from clbench.config.errors import ConfigError
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage, Traits
from clbench.running.resolve import resolve
from clbench.scenarios import dataset_from_arrays, split
from clbench.strategies.slca import SLCA, scaled

PUBLISHED = json.loads(Path(__file__).with_name("published").joinpath("slca.json").read_text("utf-8"))
VIT = "vit[image_size=8,width=16,depth=2,heads=2]"


def scenario(counts: list[int] = COUNTS, sizes: tuple[int, ...] = (2, 2, 2)) -> Scenario:
    x, y = (part.numpy() for part in images(counts, 0))
    return split(dataset_from_arrays(x, y, x, y, name="formulas"), task_sizes=list(sizes))


class Watched(SLCA):
    """SLCA on weights by formula and with the draws of the published numbers, which keeps what it sees."""

    def begin_run(self) -> None:
        super().begin_run()
        fill(self.model.backbone)
        Watched.found = []

    def stages(self, task: Task) -> list[Stage]:
        with torch.no_grad():
            self.model.head.weight[task.outputs] = filled((2, 16), 500 + task.index)
            self.model.head.bias[task.outputs] = filled((2,), 600 + task.index)
        Watched.found.append({"losses": [], "gradients": []})
        return super().stages(task)

    def _draws(self) -> tuple[Tensor, Tensor]:
        task, n = self.progress.task, 256 * len(self.gaussians)
        places = torch.arange(self.progress.step * 256, (self.progress.step + 1) * 256) * 257 % n
        labels, order = (places // 256).sort(stable=True)
        first = 1000 + {1: 1, 2: 5}[task]
        noise = torch.stack([filled((256, 16), first + output, 1.5) for output in range(len(self.gaussians))])
        return labels, noise[labels, places[order] % 256]

    def after_backward(self, batch: Batch) -> None:
        if self.progress.stage == "alignment":
            Watched.found[-1]["gradients"].append(self.model.head.weight.grad.clone())

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        head, x = self.model.head, images(COUNTS, 0)[0][::4].float() / 255
        with torch.no_grad():
            logits = self.model.eval()(x)
        Watched.found[-1] |= {n: p.detach().clone() for n, p in head.named_parameters()} | {"logits": logits}
        Watched.found[-1] |= {"unaligned": self.unaligned[0], "gaussians": dict(self.gaussians)}


Watched.__name__ = "SLCA"


@pytest.mark.parametrize("temperature", [0.1, None])
def test_slca_learns_what_the_published_code_learns(temperature: float | None, tmp_path: Path) -> None:
    published = PUBLISHED[f"temperature {temperature or 'none'}"]
    result = clbench.run(
        scenario(),
        Watched,
        out=tmp_path,
        strategy_options={"temperature": temperature, "alignment_epochs": 1},
        model=VIT,
        **TRAINING,
    )
    assert result.config["backbone_lr_factor"] == 0.01
    epochs = [[e for e in result.record["training"] if e["task"] == t] for t in range(3)]
    for task, (found, expected) in enumerate(zip(Watched.found, published["tasks"], strict=True)):
        losses = [next(iter(e["losses"].values())) for e in epochs[task] if e["stage"] == "train"]
        np.testing.assert_allclose(losses, expected["losses"][:3], rtol=1e-5)
        for name in ("weight", "bias", "logits", "unaligned"):
            if name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=f"{task} {name}")
        if task:
            aligned = [e["losses"]["loss"] for e in epochs[task] if e["stage"] == "alignment"]
            np.testing.assert_allclose(aligned, expected["losses"][3:], rtol=1e-5)
            np.testing.assert_allclose(found["gradients"][0], expected["gradient"], rtol=1e-5, atol=1e-5)
    if "means" in published:
        gaussians = Watched.found[-1]["gaussians"]
        np.testing.assert_allclose([gaussians[c][0] for c in range(6)], published["means"], rtol=1e-5, atol=1e-6)
        covariances = [gaussians[c][1] @ gaussians[c][1].T for c in range(6)]
        np.testing.assert_allclose(covariances, published["covariances"], rtol=1e-4, atol=1e-6)


def test_one_image_a_class_gives_a_gaussian_of_the_jitter_alone(tmp_path: Path) -> None:
    """Its covariance is 0 and 1e-4 on the diagonal, so the Cholesky factor is 0.01 times the identity."""

    class Kept(SLCA):
        def end_task(self, task: Task) -> None:
            super().end_task(task)
            Kept.factors = [factor for _, factor in self.gaussians.values()]

    result = clbench.run(scenario([1] * 4, (2, 1, 1)), Kept, out=tmp_path, model=VIT, epochs=1, threads=1)
    assert result.status == "done"
    torch.testing.assert_close(torch.stack(Kept.factors), (0.01 * torch.eye(16)).expand(4, 16, 16))


def test_logits_are_scaled_by_hand() -> None:
    """Norms of 5 and 10 in the two tasks have a mean of 7.5; 15 / 7.5 / 0.1 = 20."""
    logits = torch.tensor([[3.0, 4.0, 10.0], [30.0, -40.0, 0.0]])
    found = scaled(logits, [slice(0, 2), slice(2, 3)], 0.1)
    torch.testing.assert_close(found, torch.tensor([[4.0, 16 / 3, 40 / 3], [12.0, -16.0, 0.0]]))
    assert scaled(logits, [slice(0, 3)], None) is logits


class Slow(clbench.Strategy):
    """Naive fine-tuning with a default of its own."""

    traits = Traits(family="reference", preset={"lr": 0.25, "memory_size": 7})


@pytest.mark.parametrize(
    ("strategy", "given", "field", "expected"),
    [
        ("slca", {}, "backbone_lr_factor", 0.01),
        ("slca", {}, "loss_outputs", "new"),
        ("slca", {"loss_outputs": "seen"}, "loss_outputs", "seen"),
        ("slca", {"backbone_lr_factor": 1.0}, "backbone_lr_factor", 1.0),
        ("slca[backbone_lr_factor=0.1]", {}, "backbone_lr_factor", 0.1),
        # Nothing of the backbone trains, so its rate has no effect, and is refused where it is given.
        ("slca", {"train": "head"}, "backbone_lr_factor", 1.0),
        ("slca[train=head]", {}, "backbone_lr_factor", 1.0),
        ("slca", {"train": "last-1"}, "backbone_lr_factor", 0.01),
        (Slow, {}, "lr", 0.25),
        (Slow, {"lr": 0.5}, "lr", 0.5),
        # Only a strategy that lives on a memory has one by default, and one quota displaces the other.
        (Slow, {}, "memory_size", None),
        ("naive", {}, "backbone_lr_factor", 1.0),
    ],
)
def test_a_strategys_preset_is_over_the_scenarios_and_under_what_is_asked(
    strategy: Any, given: dict[str, Any], field: str, expected: object
) -> None:
    assert resolve("split-mnist-5k", strategy, given).values()[field] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"setting": "task"}, "slca can't work in a task-incremental scenario; supported: class"),
        ({"setting": "domain"}, "slca can't work in a domain-incremental scenario; supported: class"),
        ({"memory_size": 10}, "slca has no use for a memory"),
        ({"train": "head", "backbone_lr_factor": 0.5}, "backbone_lr_factor=0.5 has no effect here"),
        ({"strategy_options": {"temperature": 0.0}}, "temperature"),
        ({"strategy_options": {"alignment_epochs": 0}}, "alignment_epochs"),
    ],
)
def test_what_slca_can_not_do_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("split-mnist-5k", "slca", given)


def test_a_preset_of_no_field_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'backbone_lr_factr'.*did you mean 'backbone_lr_factor'"):
        Traits(family="reference", preset={"backbone_lr_factr": 0.1})


def test_blurry_tasks_are_refused(tmp_path: Path) -> None:
    x, y = (part.numpy() for part in images(COUNTS, 0))
    blurry = split(dataset_from_arrays(x, y, x, y, name="formulas"), tasks=3, blurry=0.5)
    with pytest.raises(ConfigError, match="slca needs each class in one task"):
        clbench.run(blurry, "slca", out=tmp_path, model="mlp:4", epochs=1, loss_outputs="all", head="full")
