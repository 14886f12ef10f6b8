"""Interference-free low-rank adaptation."""

import math
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.data.scenario import ImageSet, Scenario, Task
from clbench.learning.strategy import Stage, Strategy, Traits
from clbench.models import inserted
from clbench.models.prompts import transformer


class InfLoRA(Strategy):
    """Interference-free low-rank adaptation. Liang & Li 2024, arXiv:2404.00228.

    Keys and values of each attention become (W + A_1 B_1 + ... + A_t B_t) x (eq. 3). Before task t the rows of B_t are
    set to the first left singular vectors of H, divided by sqrt(3), H being the mean of x x^T over the tokens of the
    task without what lies in the gradient space of earlier tasks (eq. 10); then A_t and the task's rows of the head are
    trained by the cross-entropy over the task's outputs. After it the gradient space grows by the directions that
    explain a share `threshold` of x x^T; once it has more than half of all directions, the rest is kept in its place
    (DualGPM, sec. 3.3). H of the paper is made of the inputs themselves, and here, as in the authors' code, of their
    second moment. That code stops where the first task has more than half of the directions; here the rest is kept.

    A backbone without given weights trains on the first task, before its A.

    rank: the rows of each B.
    threshold: in the first task; it grows towards 1 by an equal step with each task.
    """

    traits = Traits(
        family="pretrained",
        paper="Liang & Li 2024, arXiv:2404.00228",
        settings=("class",),
        memory="none",
        foresees=True,  # the threshold of the gradient spaces rises by the share of the tasks that are done
        needs_transformer=True,
        preset={"loss_outputs": "new", "model": "vit"},
    )

    rank: Annotated[int, Field(ge=1), Choices(4, 10, 16)] = 10
    threshold: Annotated[float, Field(gt=0, lt=1), Choices(0.9, 0.95, 0.98)] = 0.95

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """There are as many directions as a token has numbers."""
        width = transformer(config, scenario).embed_dim
        if self.rank > width:
            raise ConfigError(f"inflora[rank={self.rank}] given; 1 to {width}, the width of a token, are accepted")

    def begin_run(self) -> None:
        """One product beside each layer of queries, keys and values; the gradient space of each is empty."""
        with self.seeded("lora"):
            inserted.insert(self.model, inserted.LoRA(self.rank, alpha=self.rank, layers=("qkv",)))
        empty = torch.zeros(self.model.feature_dim, 0, dtype=torch.float64)
        # Directions, orthonormal columns [width, n], and whether they are the rest of the space.
        self.spaces = [(empty, False) for _ in self._slots()]

    def stages(self, task: Task) -> list[Stage]:
        """A and new rows of the head; in the first task the backbone before them, unless its weights were given."""
        learning = [*(slot.parts["0"].up.weight for slot in self._slots()), *self.model.head.parameters()]
        low_rank = Stage(task.train, "lora", learning, task.outputs, before=lambda: self._begin_product(task.train))
        if task.index or self.config.model.weights is not None:
            return [low_rank]
        put_in = {id(p) for p in inserted.parameters(self.model)}
        return [Stage(task.train, "backbone", [p for p in self.model.parameters() if id(p) not in put_in]), low_rank]

    def after_backward(self, batch: Batch) -> None:
        """Queries stay as they are; they are the first third of the rows."""
        for slot in self._slots():
            if (gradient := slot.parts["0"].up.weight.grad) is not None:
                gradient[: len(gradient) // 3] = 0

    def end_task(self, task: Task) -> None:
        """The gradient spaces take up the task."""
        threshold = self.threshold + (1 - self.threshold) * task.index / len(self._context.scenario.tasks)
        moments = self._moments(task.train)
        self.spaces = [grown_space(*space, h, threshold) for space, h in zip(self.spaces, moments, strict=True)]

    def _slots(self) -> list[Any]:
        return [module for module in self.model.backbone.modules() if isinstance(module, inserted.Slot)]

    @torch.no_grad()
    def _begin_product(self, data: ImageSet) -> None:
        """Join the last task's product with the weights, and begin one in directions that no earlier task needs."""
        for slot in self._slots():
            part = slot.parts["0"]
            slot.layer.weight += part.up.weight @ part.down.weight
            part.up.weight.zero_()
        for slot, (directions, rest), moment in zip(self._slots(), self.spaces, self._moments(data), strict=True):
            inside = directions @ (directions.T @ moment)
            vectors = torch.linalg.svd(inside if rest else moment - inside).U[:, : self.rank].T
            slot.parts["0"].down.weight.copy_(vectors / math.sqrt(3))

    @torch.no_grad()
    def _moments(self, data: ImageSet) -> list[Tensor]:
        """Return the mean of x x^T over all tokens, float64 [width, width] on the CPU, for each attention."""
        moments = [
            torch.zeros(self.model.feature_dim, self.model.feature_dim, dtype=torch.float64) for _ in self.spaces
        ]

        def add(moment: Tensor, _: object, given: tuple[Tensor]) -> None:
            tokens = given[0].flatten(0, 1).float()
            moment += (tokens.T @ tokens / tokens.shape[0] * len(given[0]) / len(data)).cpu()

        slots = self._slots()
        handles = [s.register_forward_pre_hook(partial(add, m)) for s, m in zip(slots, moments, strict=True)]
        self.model.eval()
        for batch in self.passes(data):
            self.model.features(batch.images)
        for handle in handles:
            handle.remove()
        return moments


def grown_space(directions: Tensor, rest: bool, moment: Tensor, threshold: float) -> tuple[Tensor, bool]:
    """Return a space with what explains a share `threshold` of a moment, [width, width], as well; see InfLoRA.

    directions: orthonormal columns, [width, n], of the space, or (`rest`) of what it leaves free.
    """
    inside = directions @ (directions.T @ moment)
    vectors, values, _ = torch.linalg.svd(inside if rest else moment - inside)
    power = values.square() / moment.square().sum()
    before = power.cumsum(0) - power
    if rest:
        taken = vectors[:, : int((power.sum() - before >= 1 - threshold).sum())]
        left = torch.linalg.svd(directions - taken @ (taken.T @ directions)).U
        return left[:, : max(0, directions.shape[1] - taken.shape[1])], True
    # As in the authors' code the first task, and it alone, stays below the threshold.
    explained = 1 - power.sum() + before + (0 if directions.shape[1] else power)
    n = int((explained < threshold).sum())
    directions = torch.cat([directions, vectors[:, : n if directions.shape[1] else max(n, 1)]], 1)[:, : len(moment)]
    if 2 * directions.shape[1] > len(moment):
        return torch.linalg.svd(directions).U[:, directions.shape[1] :], True
    return directions, False
