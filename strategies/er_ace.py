"""Experience replay with asymmetric cross-entropy."""

import torch
from torch import Tensor

from clbench.data.batches import Batch
from clbench.learning.losses import cross_entropy
from clbench.learning.strategy import Strategy, Traits


class ERACE(Strategy):
    """Experience replay with asymmetric cross-entropy. Caccia et al. 2022, arXiv:2104.05025, section 4.

    L = CE(current batch; classes present in it) + CE(replayed batch; all classes seen), equally large batches. New
    classes push nothing away from the old ones: only the replayed batch compares old with new.
    """

    traits = Traits(
        family="replay",
        paper="Caccia et al. 2022, arXiv:2104.05025",
        memory="replayed",
        needs_memory=True,
        memory_policy="reservoir",
        on_features=True,
        needs_boundaries=False,
        not_applicable={"neutral_at_zero": "without a memory only the classes present in a batch compete"},
    )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The asymmetric cross-entropy."""
        n, replayed = len(batch), self.replay(len(batch))
        # One forward pass, so that batch norm sees both.
        logits = self.model(batch.images if replayed is None else torch.cat([batch.images, replayed.images]))
        present = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        present = present.index_fill(0, batch.labels, True).expand(n, -1)
        smoothing = self.config.training.label_smoothing
        terms = {"classification": cross_entropy(logits[:n], batch.labels, present, label_smoothing=smoothing)}
        if replayed is not None:
            terms["replay"] = self.classification_loss(logits[n:], replayed)
        return terms
