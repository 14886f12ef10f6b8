"""Experience replay."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.learning.strategy import Strategy, Traits


class ER(Strategy):
    """Experience replay. Chaudhry et al. 2019, arXiv:1902.10486.

    L = n / (n + m) CE(n current samples) + m / (n + m) CE(m samples from the memory).

    share: the part of a step's images that comes from the memory: m is share / (1 - share) times n.
    """

    traits = Traits(
        family="replay",
        paper="Chaudhry et al. 2019, arXiv:1902.10486",
        memory="replayed",
        needs_memory=True,
        memory_policy="reservoir",
        on_features=True,
        mixes=True,
        needs_boundaries=False,
    )

    share: Annotated[float, Field(ge=0, lt=1), Choices(0.25, 0.5, 0.75)] = 0.5

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy over current and replayed samples."""
        n = len(batch)
        replayed = self.chosen(batch, round(n * self.share / (1 - self.share)))
        if replayed is None:
            return {"classification": self.classification_loss(self.model(batch.images), batch)}
        current, past = self.weights(n, len(replayed))
        # One forward pass, so that batch norm sees both.
        logits = self.model(torch.cat([batch.images, replayed.images]))
        return {
            "classification": self.classification_loss(logits[:n], batch) * current,
            "replay": self.classification_loss(logits[n:], replayed) * past,
        }

    def chosen(self, batch: Batch, m: int) -> Batch | None:
        """Return m samples from the memory to learn beside the batch; None while it is empty."""
        return self.replay(m)

    def weights(self, n: int, m: int) -> tuple[float, float]:
        """Return the weights of the losses on n current and m replayed samples."""
        return n / (n + m), m / (n + m)
