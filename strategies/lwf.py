"""Learning without Forgetting: Li & Hoiem 2016, arXiv:1606.09282."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Choices, Log
from clbench.data.batches import Batch
from clbench.data.scenario import ImageSet, Scenario, Task
from clbench.learning.losses import distillation
from clbench.learning.strategy import Stage, Strategy, Strength, Traits


class LwF(Strategy):
    """L = CE + strength * KL(teacher || student; temperature), over the outputs that the teacher has.

    The teacher is the model as it was before the task. softmax: one over all old outputs ("joint"), one for each old
    task ("per-task", as in the paper), or what the setting implies. squared_temperature: multiply KL by temperature^2
    (Hinton et al. 2015; off in the paper). warmup_epochs: the paper's first stage, in which only the new outputs
    train. recorded: the teacher's answers to the task's images are recorded once, before training, as in the paper's
    Algorithm 1.

    strength: one for all tasks, or a list with one for each. weighting, in the N-th task: CE + strength KL
    ("constant"); CE + (N-1) strength KL ("old-tasks"), KL being one softmax over all old outputs; or
    CE / N + (1 - 1/N) strength KL ("share"; van de Ven & Tolias 2019, arXiv:1904.07734). distilled: of a full head
    all outputs, or only those of earlier tasks ("old").
    """

    traits = Traits(family="distillation", paper="Li & Hoiem 2016, arXiv:1606.09282", seeds_together=True)

    strength: Annotated[Strength | list[Strength], Log(0.1, 10)] = 1.0
    weighting: Literal["constant", "old-tasks", "share"] = "constant"
    distilled: Literal["all", "old"] = "all"
    temperature: Annotated[float, Field(gt=0), Choices(1.0, 2.0, 4.0)] = 2.0
    squared_temperature: bool = False
    softmax: Literal["setting", "joint", "per-task"] = "setting"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    recorded: bool = False

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Answers that were recorded once fit images that stay the same."""
        if self.recorded and config.augment != "none":
            raise ConfigError(f"lwf[recorded=true] needs augment='none', not {config.augment!r}")
        if isinstance(self.strength, list) and len(self.strength) != (n := len(scenario.tasks)):
            raise ConfigError(f"lwf has {len(self.strength)} strengths, and there are {n} tasks; one each is accepted")
        if self.distilled == "old" and (config.head != "full" or self._per_task(scenario.setting)):
            raise ConfigError(
                "lwf[distilled=old] is for head='full' and one softmax; else no other outputs are compared"
            )

    def begin_task(self, task: Task) -> None:
        """Keep the old model as the teacher."""
        self.teacher: nn.Module | None = self.frozen_copy()
        self.groups = self.old_task_outputs if self._per_task(self.setting) else None
        if self.distilled == "old":
            self.groups = [slice(0, outputs.stop) for outputs in self.old_task_outputs[-1:]]

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
            n = self.progress.task + 1
            strength = self.strength[n - 1] if isinstance(self.strength, list) else self.strength
            if self.weighting == "share":
                terms["classification"] = terms["classification"] / n
                strength *= 1 - 1 / n
            elif self.weighting == "old-tasks":
                strength *= n - 1
            terms["distillation"] = strength * distillation(
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

    def _per_task(self, setting: str) -> bool:
        return self.softmax == "per-task" or (self.softmax == "setting" and setting == "task")

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
