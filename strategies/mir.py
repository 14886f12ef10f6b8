"""Maximally interfered retrieval."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from clbench.data.batches import Batch
from clbench.learning.losses import cross_entropy
from clbench.strategies.er import ER


class MIR(ER):
    """Maximally interfered retrieval. Aljundi et al. 2019, arXiv:1908.04742.

    L is that of experience replay (see ER), on those candidates x whose loss the current batch alone would raise most:
    s(x) = l(x; w - lr * grad L(current batch)) - l(x; w) (criterion MI-1, section 3.1), lr being the run's.

    candidates: the number of samples drawn from the memory at each step (50 in the paper).
    share: the part of a step's images that comes from the memory.
    """

    traits = replace(ER.traits, paper="Aljundi et al. 2019, arXiv:1908.04742", mixes=False)

    candidates: Annotated[int, Field(ge=1)] = 50

    def chosen(self, batch: Batch, m: int) -> Batch | None:
        """The most interfered of the candidates; all of them where there are no more than asked for."""
        if m == 0 or self.memory is None or min(self.candidates, len(self.memory)) <= m:
            return self.replay(m)
        drawn = self.replay(min(self.candidates, len(self.memory)))
        if drawn is None:
            return None
        weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        flat = self.gradient_of(self._losses(weights, batch).mean(), list(weights.values()))
        parts = flat.split([w.numel() for w in weights.values()])
        gradient = [part.view(w.shape) for part, w in zip(parts, weights.values(), strict=True)]
        with torch.no_grad():
            before = self._losses(weights, drawn)
            moved = torch._foreach_sub(list(weights.values()), gradient, alpha=self.progress.learning_rate)
            after = self._losses(dict(zip(weights, moved, strict=True)), drawn)
        top = (after - before).topk(m).indices
        active = drawn.active if isinstance(drawn.active, slice) else drawn.active[top]
        return Batch(
            drawn.images[top], drawn.originals[top], drawn.labels[top], drawn.tasks[top], drawn.ids[top.cpu()], active
        )

    def _losses(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Each sample's loss at other weights; the model's batch-norm statistics stay as they are."""
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        logits = functional_call(self.model, {**weights, **buffers}, batch.images)
        return cross_entropy(logits, batch.labels, batch.active, reduction="none")
