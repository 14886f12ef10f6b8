"""The differences of Avalanche's baselines from the methods: github.com/ContinualAI/continual-learning-baselines."""

from dataclasses import replace

from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.strategies.lwf import LwF


class LwFOfOldOutputs(LwF):
    """LwF as Avalanche computes it: one softmax distils the outputs of earlier tasks, though the head is full.

    The options are those of LwF.
    """

    traits = replace(LwF.traits, settings=("class",))

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Raise ConfigError for a head that grows, which has no other outputs, and for a softmax per task."""
        super().check(config, scenario)
        if config.model.head != "full" or self.softmax == "per-task":
            raise ConfigError(f"{config.strategy} is for head='full' and one softmax, not softmax='per-task'")

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher of those outputs that it has learnt."""
        super().begin_task(task)
        self.groups = [slice(0, outputs.stop) for outputs in self.old_task_outputs[-1:]]


class LwFOfBaselines(LwFOfOldOutputs):
    """LwF with the baseline's weights: L = CE / N + (N - 1) (1 - 1/N) strength KL in the N-th task.

    The options are those of LwF. The weights of KL, 0.5, 1.33, 2.25 and 3.2, are `alpha` of the baseline.
    """

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return LwF's terms with these weights."""
        terms, n = super().loss(batch), self.progress.task + 1
        if self.teacher is not None:
            terms = {
                "classification": terms["classification"] / n,
                "distillation": (n - 1) * (1 - 1 / n) * terms["distillation"],
            }
        return terms
