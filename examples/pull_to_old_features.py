"""A strategy of your own, in one file:

clbench run split-mnist-5k examples/pull_to_old_features.py:PullToOldFeatures -p strength=3
clbench check examples/pull_to_old_features.py:PullToOldFeatures
"""

import torch
from torch import Tensor

from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.strategy import Strategy, Strength, Traits


class PullToOldFeatures(Strategy):
    """L = CE + strength * mean squared distance between the features of the model and those of the model before.

    Less-forgetting learning: Jung et al. 2016, arXiv:1607.00122.
    """

    traits = Traits(family="distillation", paper="Jung et al. 2016, arXiv:1607.00122")

    strength: Strength = 1.0

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher."""
        self.teacher = self.frozen_copy()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, and the pull towards the old features."""
        features = self.model.features(batch.images)
        terms = {"classification": self.classification_loss(self.model.head(features), batch)}
        if self.teacher is not None:
            with torch.no_grad():
                old = self.teacher.features(batch.images)
            terms["pull"] = self.strength * (features - old).square().mean()
        return terms
