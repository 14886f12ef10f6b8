"""Learning without Forgetting: Li & Hoiem 2016, arXiv:1606.09282."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clbench.batches import Batch
from clbench.config import RunConfig
from clbench.errors import ConfigError
from clbench.losses import distillation
from clbench.scenario import ImageSet, Scenario, Task
from clbench.space import Choices, Log
from clbench.strategy import Stage, Strategy, Strength


class LwF(Strategy):
    """L = CE + strength * KL(teacher || student; temperature), over the outputs that the teacher has.

    The teacher is the model as it was before the task. softmax: one over all old outputs ("joint"), one for each old
    task ("per-task", as in the paper), or what the setting implies. squared_temperature: multiply KL by temperature^2
    (Hinton et al. 2015; off in the paper). warmup_epochs: the paper's first stage, in which only the new outputs
    train. recorded: the teacher's answers to the task's images are recorded once, before training, as in the paper's
    Algorithm 1.
    """

    family = "distillation"
    paper = "Li & Hoiem 2016, arXiv:1606.09282"

    strength: Annotated[Strength, Log(0.1, 10)] = 1.0
    temperature: Annotated[float, Field(gt=0), Choices(1.0, 2.0, 4.0)] = 2.0
    squared_temperature: bool = False
    softmax: Literal["setting", "joint", "per-task"] = "setting"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    recorded: bool = False

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Answers that were recorded once fit images that stay the same."""
        if self.recorded and config.augment != "none":
            raise ConfigError(f"lwf[recorded=true] needs augment='none', not {config.augment!r}")

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher."""
        self.teacher: nn.Module | None = self.frozen_copy()
        per_task = self.softmax == "per-task" or (self.softmax == "setting" and self.setting == "task")
        self.groups = self.old_task_outputs if per_task else None

    def stages(self, task: Task) -> list[Stage]:
        """The paper's warm-up of the new outputs, if asked for, then all parameters."""
        data = self.with_exemplars(task.train)
        if self.recorded and self.teacher is not None:
            self.record_ids, self.answers = self._record(self.teacher, data)
        if not self.warmup_epochs or self.teacher is None:
            return [Stage(data)]
        head = list(self.model.head.parameters())
        warmup = Stage(data, "warm-up", head, task.outputs, epochs=self.warmup_epochs, loss=super().loss)
        return [warmup, Stage(data)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the batch, and distillation from the old model."""
        logits = self.model(batch.images)
        terms = {"classification": self.classification_loss(logits, batch)}
        if self.teacher is not None:
            terms["distillation"] = self.strength * distillation(
                logits,
                self._teacher_logits(self.teacher, batch),
                self.temperature,
                groups=self.groups,
                squared_temperature=self.squared_temperature,
            )
        return terms

    def end_task(self, task: Task) -> None:
        """Recorded answers serve one task only."""
        self.record_ids = self.answers = torch.empty(0)

    def _teacher_logits(self, teacher: nn.Module, batch: Batch) -> Tensor:
        if self.recorded:
            return self.answers[torch.searchsorted(self.record_ids, batch.ids.to(self.record_ids.device))]
        with torch.no_grad():
            answer: Tensor = teacher(batch.images)
        return answer

    def _record(self, teacher: nn.Module, data: ImageSet) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            answers = torch.cat([teacher(batch.images) for batch in self.passes(data)])
        ids, order = data.ids.to(answers.device).sort()
        return ids, answers[order]
