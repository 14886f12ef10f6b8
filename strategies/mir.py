"""Maximally interfered retrieval: Aljundi et al. 2019, arXiv:1908.04742."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.learning.losses import cross_entropy
from clbench.learning.strategy import Strategy, Traits


class MIR(Strategy):
    """Experience replay of those candidates whose loss the current batch alone would raise most.

    s(x) = l(x; w - lr * grad L(current batch)) - l(x; w) (criterion MI-1, section 3.1), lr being the run's. candidates:
    drawn from the memory at each step, 50 in the paper. share: part of the images of a step that come from the memory.
    """

    traits = Traits(
        family="replay",
        paper="Aljundi et al. 2019, arXiv:1908.04742",
        memory="replayed",
        needs_memory=True,
        memory_policy="reservoir",
    )

    candidates: Annotated[int, Field(ge=1)] = 50
    share: Annotated[float, Field(ge=0, lt=1), Choices(0.25, 0.5, 0.75)] = 0.5

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy over the current and the chosen samples, as in experience replay."""
        n = len(batch)
        replayed = self._most_interfered(batch, round(n * self.share / (1 - self.share)))
        if replayed is None:
            return {"classification": self.classification_loss(self.model(batch.images), batch)}
        m = len(replayed)
        # One forward pass, so that batch norm sees both.
        logits = self.model(torch.cat([batch.images, replayed.images]))
        return {
            "classification": self.classification_loss(logits[:n], batch) * (n / (n + m)),
            "replay": self.classification_loss(logits[n:], replayed) * (m / (n + m)),
        }

    def _most_interfered(self, batch: Batch, n: int) -> Batch | None:
        if n == 0 or self.memory is None or min(self.candidates, len(self.memory)) <= n:
            return self.replay(n)
        drawn = self.replay(min(self.candidates, len(self.memory)))
        assert drawn is not None
        weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        gradient = torch.autograd.grad(self._losses(weights, batch).mean(), list(weights.values()))
        with torch.no_grad():
            before = self._losses(weights, drawn)
            moved = torch._foreach_sub(list(weights.values()), gradient, alpha=self.progress.learning_rate)
            after = self._losses(dict(zip(weights, moved, strict=True)), drawn)
        top = (after - before).topk(n).indices
        active = drawn.active if isinstance(drawn.active, slice) else drawn.active[top]
        return Batch(
            drawn.images[top], drawn.originals[top], drawn.labels[top], drawn.tasks[top], drawn.ids[top.cpu()], active
        )

    def _losses(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Each sample's loss at other weights; the model's batch-norm statistics stay as they are."""
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        logits = functional_call(self.model, {**weights, **buffers}, batch.images)
        return cross_entropy(logits, batch.labels, batch.active, reduction="none")
