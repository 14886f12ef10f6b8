"""Experience replay with asymmetric metric learning."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from clbench.config.space import Log
from clbench.data.batches import Batch
from clbench.data.scenario import ImageSet
from clbench.learning.losses import supervised_contrastive
from clbench.learning.strategy import Strategy, Traits

# The authors' code multiplies the contrastive loss by temperature / 0.07, as that of Khosla et al. 2020 does.
BASE_TEMPERATURE = 0.07


class ERAML(Strategy):
    """Experience replay with asymmetric metric learning. Caccia et al. 2022, arXiv:2104.05025, section 4.

    L = temperature / 0.07 * SupCon(current batch; one positive and one negative each) + CE(replayed batch; all classes
    seen), equally large batches. Positives are of the sample's class, negatives of the other classes in the batch, and
    both are drawn from the memory and the batch; so new classes push nothing away from the old ones, as in er-ace. A
    sample with no positive or no negative is left out, and the first batch learns by cross-entropy. The factor is that
    of the authors' code, whose cosine classifier is left out.

    temperature: what similarities of the normalised features are divided by (0.2 in the authors' code).
    """

    traits = Traits(
        family="replay",
        paper="Caccia et al. 2022, arXiv:2104.05025",
        memory="replayed",
        needs_memory=True,
        memory_policy="reservoir",
        on_features=True,
        needs_boundaries=False,
        not_applicable={"neutral_at_zero": "with a memory or without, current samples learn by comparison"},
    )

    temperature: Annotated[float, Field(gt=0), Log(0.05, 1)] = 0.2

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The contrast of the current samples, and the cross-entropy of the replayed ones."""
        replayed = self.replay(len(batch))
        if replayed is None:
            return {"classification": self.classification_loss(self.model(batch.images), batch)}
        own, positives, negatives = self.pairs(batch)
        others = self.batch_of(torch.cat([positives, negatives]), "pairs")
        # One forward pass, so that batch norm sees all of them.
        features = self.model.features(torch.cat([batch.images, others.images, replayed.images]))
        current, pairs, past = features.split([len(batch), len(others), len(replayed)])
        terms = {"replay": self.classification_loss(self.model.head(past), replayed)}
        if len(own):
            place = own.to(self.device, non_blocking=True)
            contrast = supervised_contrastive(
                F.normalize(current[place].float()),
                batch.labels[place],
                self.temperature,
                others=F.normalize(pairs.float()),
                other_labels=others.labels,
            )
            terms["metric"] = self.temperature / BASE_TEMPERATURE * contrast
        return terms

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the places in the batch that have pairs, and the ids of a positive and of a negative of each."""
        current = ImageSet(self._context.scenario.train, batch.ids)
        pool = self.exemplars() + current
        same = current.labels[:, None] == pool.labels
        itself = torch.arange(len(batch))[:, None] == torch.arange(len(pool)) - len(pool) + len(batch)
        positive, negative = same & ~itself, ~same & torch.isin(pool.labels, current.labels)
        own = (positive.any(1) & negative.any(1)).nonzero().flatten()
        if not len(own):
            return own, own, own
        draws = self.rng("pairs")
        drawn = [torch.multinomial(valid[own].float(), 1, generator=draws)[:, 0] for valid in (positive, negative)]
        self.progress.replayed += sum(int((places < len(pool) - len(batch)).sum()) for places in drawn)
        return own, pool.ids[drawn[0]], pool.ids[drawn[1]]
