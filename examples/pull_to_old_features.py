"""A strategy of your own, in one file:

clbench run split-mnist-5k examples/pull_to_old_features.py:PullToOldFeatures -p strength=3
clbench check examples/pull_to_old_features.py:PullToOldFeatures
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clbench import Batch, Log, Strategy, Task, Traits


class PullToOldFeatures(Strategy):
    """Less-forgetting learning. Jung et al. 2016, arXiv:1607.00122.

    L = CE + strength * mean squared distance between the features of the model and those of the model before.

    strength: the weight of the distance.
    """

    traits = Traits(family="distillation", paper="Jung et al. 2016, arXiv:1607.00122")

    strength: Annotated[float, Field(ge=0), Log(0.1, 10)] = 1.0

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
