"""Shrink and perturb."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.space import Choices, Log
from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.strategy import Strategy, Traits


class ShrinkPerturb(Strategy):
    """Shrink and perturb. Ash & Adams 2020, arXiv:1910.08475.

    w <- (1 - shrink) w + N(0, noise^2), for all weights and biases that train: after each step, as Dohare et al. 2024
    (doi:10.1038/s41586-024-07711-7) do, or when a task begins, as in the paper. Weights stay small, and units that no
    longer answer come back.

    shrink: the share of a weight that is taken away.
    noise: the standard deviation of what is added.
    when: `step` for after each step, `task` for the beginning of each task but the first.
    """

    traits = Traits(family="plasticity", paper="Ash & Adams 2020, arXiv:1910.08475", on_features=True, mixes=True)

    shrink: Annotated[float, Field(ge=0, lt=1), Log(1e-6, 1e-2)] = 1e-4
    noise: Annotated[float, Field(ge=0), Choices(1e-5, 1e-4, 1e-3, 1e-2)] = 1e-4
    when: Literal["step", "task"] = "step"

    def begin_task(self, task: Task) -> None:
        """Shrink and perturb what was learnt, where it is done once a task."""
        if self.when == "task" and task.index > 0:
            self._change()

    def after_step(self, batch: Batch) -> None:
        """Shrink and perturb what was learnt, where it is done in each step."""
        if self.when == "step":
            self._change()

    @torch.no_grad()
    def _change(self) -> None:
        weights: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        if self.shrink:
            torch._foreach_mul_(weights, 1 - self.shrink)
        if self.noise:
            drawn = torch.randn(sum(w.numel() for w in weights), generator=self.rng("noise")).mul_(self.noise)
            parts = drawn.to(self.device, non_blocking=True).split([w.numel() for w in weights])
            torch._foreach_add_(weights, [part.view_as(w).to(w.dtype) for part, w in zip(parts, weights, strict=True)])
