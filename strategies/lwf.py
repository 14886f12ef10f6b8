"""Learning without Forgetting."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Choices, Log
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.losses import distillation
from clbench.learning.strategy import Stage, Strength, Traits
from clbench.strategies._teacher import Taught


class LwF(Taught):
    """Learning without Forgetting. Li & Hoiem 2016, arXiv:1606.09282.

    L = CE + strength * KL(teacher || student; temperature), over the outputs that the teacher has. The teacher is the
    model as it was before the task.

    strength: the weight of the distillation.
    temperature: what the logits of both are divided by.
    squared_temperature: whether KL is multiplied by temperature^2 (Hinton et al. 2015; the paper does not).
    softmax: one over all old outputs ("joint"), one for each old task ("per-task", as in the paper), or "setting":
        per-task in the task-incremental setting and joint in the others.
    warmup_epochs: the length of the paper's first stage, in which the new outputs alone train.
    recorded: whether the teacher's answers to the task's images are recorded once, before training, as in the paper's
        Algorithm 1.
    """

    traits = Traits(
        family="distillation", paper="Li & Hoiem 2016, arXiv:1606.09282", seeds_together=True, on_features=True
    )

    strength: Annotated[Strength, Log(0.1, 10)] = 1.0
    temperature: Annotated[float, Field(gt=0), Choices(1.0, 2.0, 4.0)] = 2.0
    squared_temperature: bool = False
    softmax: Literal["setting", "joint", "per-task"] = "setting"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    recorded: bool = False

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Answers that were recorded once fit images that stay the same."""
        if self.recorded and config.data.augment != "none":
            raise ConfigError(f"lwf[recorded=true] needs augment='none', not {config.data.augment!r}")

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher."""
        super().begin_task(task)
        per_task = self.softmax == "per-task" or (self.softmax == "setting" and self.setting == "task")
        self.groups = self.old_task_outputs if per_task else None

    def stages(self, task: Task) -> list[Stage]:
        """The paper's warm-up of the new outputs, if asked for, then all parameters."""
        data = self.with_exemplars(task.train)
        if self.recorded and self.teacher is not None:
            self.record_ids, order = data.ids.to(self.device).sort()
            self.answers = torch.cat([self.teacher_logits(batch.images) for batch in self.passes(data)])[order]
        if not self.warmup_epochs or self.teacher is None:
            return [Stage(data)]
        head = list(self.model.head.parameters())
        return [Stage(data, "warm-up", head, task.outputs, self.warmup_epochs, loss=super().loss), Stage(data)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the batch, and distillation from the old model."""
        logits = self.model(batch.images)
        terms = {"classification": self.classification_loss(logits, batch)}
        if self.teacher is not None:
            places = torch.searchsorted(self.record_ids, batch.ids.to(self.device)) if self.recorded else None
            old = self.teacher_logits(batch.images) if places is None else self.answers[places]
            terms["distillation"] = self.strength * distillation(
                logits, old, self.temperature, groups=self.groups, squared_temperature=self.squared_temperature
            )
        return terms

    def end_task(self, task: Task) -> None:
        """Recorded answers serve one task only."""
        self.record_ids = self.answers = torch.empty(0)
