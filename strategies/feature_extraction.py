"""Feature extraction."""

from typing import Literal

from clbench.config.run import RunConfig
from clbench.data.scenario import Task
from clbench.learning.strategy import Stage, Strategy, Traits


class FeatureExtraction(Strategy):
    """Feature extraction. Li & Hoiem 2016, arXiv:1606.09282, section 3 (as a baseline).

    Only the output rows of the new task train; old rows, batch-norm statistics and dropout stay as they were. The
    features come from given weights, or from the first task, on which everything trains.

    trainable_from: the first layer that moves later on: the head, or the last one or two blocks before it.
    """

    traits = Traits(family="frozen", paper="Li & Hoiem 2016, arXiv:1606.09282, section 3", on_features=True)

    trainable_from: Literal["head", "last-1", "last-2"] = "head"

    def frozen_features(self, config: RunConfig) -> bool:
        """With given weights the head alone trains, unless blocks before it are to move."""
        return self.trainable_from == "head" and config.data.augment == "none"

    def stages(self, task: Task) -> list[Stage]:
        """Everything in the first task, the top only in later ones."""
        data = self.with_exemplars(task.train)
        if task.index == 0 and self.config.model.weights is None:
            return [Stage(data)]
        blocks = self.model.blocks()
        moving = {"head": 0, "last-1": 1, "last-2": 2}[self.trainable_from]
        layers = [*blocks[len(blocks) - moving :], self.model.head]
        return [Stage(data, parameters=[p for m in layers for p in m.parameters()], head_rows=task.outputs)]
