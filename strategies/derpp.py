"""Dark experience replay with labels."""

from typing import Annotated

from torch import Tensor

from clbench.config.space import Log
from clbench.data.batches import Batch
from clbench.learning.strategy import Strength
from clbench.strategies.der import DER


class DERpp(DER):
    """Dark experience replay with labels, DER++. Buzzega et al. 2020, arXiv:2004.07211, algorithm 2.

    L = CE(current batch) + alpha * mean (z - h(x'))^2 + beta * CE(x''), x' and x'' being two draws from the memory; z
    and h are those of DER.

    alpha: the weight of the distance from the stored logits.
    beta: the weight of the cross-entropy on replayed samples.
    """

    alpha: Annotated[Strength, Log(0.01, 2)] = 0.1
    beta: Annotated[Strength, Log(0.01, 2)] = 0.5

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """DER's loss, and the cross-entropy of a second replayed batch."""
        terms = super().loss(batch)
        replayed = self.replay(len(batch), "labelled replay") if self.beta else None
        if replayed is not None:
            terms["replay"] = self.beta * self.classification_loss(self.model(replayed.images), replayed)
        return terms
