"""InfLoRA against numbers of the authors' code, and what its spaces promise.

published/inflora.npz says which code it was, and how the numbers were made.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formulas import TRAINING, fill, filled, images

import clbench
from clbench.config.errors import ConfigError
from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.strategy import Stage
from clbench.scenarios import dataset_from_arrays, split
from clbench.strategies.inflora import InfLoRA, grown_space

PUBLISHED = np.load(Path(__file__).with_name("published") / "inflora.npz")
COUNTS = [5, 6, 7, 4, 6, 5, 4, 6, 5, 5]
VIT = "vit[image_size=8,width=16,depth=2,heads=2]"


class Watched(InfLoRA):
    """InfLoRA on weights by formula, as if they had been given, which keeps what it sees."""

    def begin_run(self) -> None:
        fill(self.model.backbone)
        super().begin_run()
        self.first = [slot.layer.weight.detach().clone() for slot in self._slots()]
        Watched.found = []

    def stages(self, task: Task) -> list[Stage]:
        with torch.no_grad():
            self.model.head.weight[task.outputs] = filled((2, 16), 500 + task.index)
            self.model.head.bias[task.outputs] = filled((2,), 600 + task.index)
        Watched.found.append({"gradients": []})
        return super().stages(task)[-1:]

    def after_backward(self, batch: Batch) -> None:
        super().after_backward(batch)
        if not self.progress.step:
            parts = [slot.parts["0"] for slot in self._slots()]
            found = Watched.found[-1]
            found["gradients"] = [(p.up.weight.grad @ p.down.weight).detach()[16:] for p in parts]
            found["designed"] = [(p.down.weight.T @ p.down.weight).detach() for p in parts]

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        with torch.no_grad():
            now = [s.layer.weight + s.parts["0"].up.weight @ s.parts["0"].down.weight for s in self._slots()]
            added = [w - first for w, first in zip(now, self.first, strict=True)]
            logits = self.model.eval()(images(COUNTS, 0)[0][::4].float() / 255)
        assert all(not part[:16].any() for part in added), "queries moved"
        Watched.found[-1] |= {"added": [part[16:] for part in added], "logits": logits}
        Watched.found[-1] |= {"weight": self.model.head.weight.detach().clone()}
        Watched.found[-1] |= {"spaces": [d @ d.T for d, _ in self.spaces], "rest": [rest for _, rest in self.spaces]}


Watched.__name__ = "InfLoRA"


def stacked(values: Any) -> Any:
    return torch.stack(list(values)).numpy() if isinstance(values[0], torch.Tensor) else values


def test_inflora_learns_what_the_published_code_learns(tmp_path: Path) -> None:
    """The sign of a singular vector is free, so what is compared are products that it leaves as they are."""
    x, y = (part.numpy() for part in images(COUNTS, 0))
    result = clbench.run(
        split(dataset_from_arrays(x, y, x, y, name="formulas"), tasks=5),
        Watched,
        out=tmp_path,
        strategy_options={"rank": 3, "threshold": 0.93},
        model=VIT,
        **TRAINING,
    )
    for task, found in enumerate(Watched.found):
        losses = [next(iter(e["losses"].values())) for e in result.record["training"] if e["task"] == task]
        np.testing.assert_allclose(losses, PUBLISHED[f"{task}.losses"], rtol=1e-5)
        for name, values in found.items():
            expected = PUBLISHED[f"{task}.{name}"]
            np.testing.assert_allclose(stacked(values), expected, rtol=1e-5, atol=1e-5, err_msg=f"{task}.{name}")
    assert PUBLISHED["3.rest"].tolist() == [True, False], "both kinds of spaces were tried"


@pytest.mark.parametrize("seed", range(8))
def test_a_grown_space_is_orthonormal_and_explains_its_share(seed: int) -> None:
    """Over five tasks; a space that is kept as what it leaves free is completed for the check."""
    generator = torch.Generator().manual_seed(seed)
    directions, rest, share = torch.zeros(8, 0, dtype=torch.float64), False, 0.6 + 0.05 * seed
    for task in range(5):
        tokens = torch.randn(20, 3, generator=generator).double() @ torch.randn(3, 8, generator=generator).double()
        moment = tokens.T @ tokens / 20
        directions, rest = grown_space(directions, rest, moment, share)
        assert 2 * directions.shape[1] <= 8
        torch.testing.assert_close(directions.T @ directions, torch.eye(directions.shape[1], dtype=torch.float64))
        projection = directions @ directions.T
        space = torch.eye(8, dtype=torch.float64) - projection if rest else projection
        if task:
            assert (space @ moment).square().sum() >= (share - 1e-9) * moment.square().sum()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("mlp:8", {}, "inflora works on vision transformers of timm, not on model='mlp:8'"),
        ("vit[width=8,depth=1,heads=1]", {"rank": 9}, r"inflora\[rank=9\] given; 1 to 8, the width of a token"),
    ],
)
def test_what_inflora_can_not_adapt_is_refused(
    model: str, options: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        clbench.run("split-mnist-5k", "inflora", out=tmp_path, model=model, strategy_options=options, limit=4)
