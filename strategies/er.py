"""Experience replay: Chaudhry et al. 2019, arXiv:1902.10486."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.learning.strategy import Strategy, Traits


class ER(Strategy):
    """Beside each batch of the task, draw a second one from the memory; both count in proportion to their size.

    share: part of the images of a step that come from the memory, so share / (1 - share) images per current one.
    weighting: "tasks" weighs the current batch 1/N and the replayed one 1 - 1/N in the N-th task instead (van de Ven
    & Tolias 2018, arXiv:1809.10635).
    """

    traits = Traits(
        family="replay",
        paper="Chaudhry et al. 2019, arXiv:1902.10486",
        memory="replayed",
        needs_memory=True,
        memory_policy="reservoir",
    )

    share: Annotated[float, Field(ge=0, lt=1), Choices(0.25, 0.5, 0.75)] = 0.5
    weighting: Literal["size", "tasks"] = "size"

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy over current and replayed samples."""
        replayed = self.replay(round(len(batch) * self.share / (1 - self.share)))
        if replayed is None:
            return {"classification": self.classification_loss(self.model(batch.images), batch)}
        n, m = len(batch), len(replayed)
        current, past = n / (n + m), m / (n + m)
        if self.weighting == "tasks":
            current = 1 / (self.progress.task + 1)
            past = 1 - current
        # One forward pass, so that batch norm sees both.
        logits = self.model(torch.cat([batch.images, replayed.images]))
        return {
            "classification": self.classification_loss(logits[:n], batch) * current,
            "replay": self.classification_loss(logits[n:], replayed) * past,
        }
