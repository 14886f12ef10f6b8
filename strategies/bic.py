"""Bias correction."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.data.scenario import ImageSet, Scenario, Task
from clbench.learning.strategy import Stage, Traits
from clbench.learning.trainer import refuse_single_image
from clbench.strategies._teacher import Taught, in_proportion


class BiC(Taught):
    """Bias correction. Wu et al. 2019, arXiv:1905.13260.

    Stage 1: L = r * KL(old || new; temperature) + (1 - r) * CE, r = old classes / all classes (eq. 1-3). Stage 2: with
    the network frozen, q_k = alpha * o_k + beta for the new classes (eq. 4) is fitted by cross-entropy on samples held
    out of stage 1, equally many of each class. Each task keeps its alpha and beta, in the teacher too.

    temperature: what the logits of both models are divided by.
    held_out: the share of a class's exemplars that stage 2 trains on.
    bias_epochs: the length of stage 2, which has few samples.
    bias_lr: the learning rate of stage 2.
    """

    traits = Traits(
        family="replay",
        paper="Wu et al. 2019, arXiv:1905.13260",
        settings=("class",),
        needs_memory=True,
        on_features=True,
        not_applicable={"neutral_at_zero": "it distils the old model also without a memory"},
    )

    temperature: Annotated[float, Field(gt=0), Choices(1.0, 2.0, 4.0)] = 2.0
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    bias_epochs: Annotated[int, Field(ge=1)] = 200
    bias_lr: Annotated[float, Field(gt=0), Choices(0.01, 0.03, 0.1)] = 0.1

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """The bias shows only where old and new classes compete."""
        if config.training.loss_outputs == "new":
            raise ConfigError("bic needs old and new classes in one loss, not loss_outputs='new'; 'seen' is accepted")
        for task in scenario.tasks[1:] if config.memory.budget else []:
            # One image of each class, or more, is held out of stage 1.
            left = len(task.train) - len(task.classes)
            if left < 1:
                raise ConfigError(
                    f"bic holds out an image of each class, which leaves none of the {len(task.train)} of task "
                    f"{task.index} to train on; more than {len(task.classes)} are accepted"
                )
            if left == 1:
                refuse_single_image(config, scenario, f"bic holds out all but one image of task {task.index}")

    def begin_run(self) -> None:
        """Before the first task there is no class with a correction."""
        self.alpha = self.beta = torch.empty(0, device=self.device)

    def begin_task(self, task: Task) -> None:
        """Keep the old model and its corrections; the new classes start without one."""
        super().begin_task(task)
        self.correction: nn.Parameter
        if task.index > 0:
            alpha, beta = self.correction.detach()
            n_last = task.outputs.start - len(self.alpha)
            self.alpha = torch.cat([self.alpha, alpha.expand(n_last)])
            self.beta = torch.cat([self.beta, beta.expand(n_last)])
        self.correction = nn.Parameter(torch.tensor([1.0, 0.0], device=self.device))
        self.old_share = task.outputs.start / task.outputs.stop

    def stages(self, task: Task) -> list[Stage]:
        """The network, then the two parameters."""
        data, held = self._hold_out(task.train)
        network = Stage(data, parameters=list(self.model.parameters()))
        if not len(held):
            return [network]
        bias = Stage(
            held,
            "bias",
            [self.correction],
            epochs=self.bias_epochs,
            lr=self.bias_lr,
            loss=self._bias_loss,
            watched=False,  # the current task alone is best served by no correction
        )
        return [network, bias]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Stage 1: distillation and classification."""
        logits = self._corrected(self.model(batch.images))
        classification = self.classification_loss(logits, batch)
        if self.teacher is None:
            return {"classification": classification}
        old = self.teacher_logits(batch.images)[:, : len(self.alpha)] * self.alpha + self.beta
        return in_proportion(classification, logits, old, self.temperature, self.old_share)

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The corrected logits."""
        return self._corrected(self.model(images))

    def _bias_loss(self, batch: Batch) -> Tensor:
        return self.classification_loss(self._corrected(self.model(batch.images)), batch)

    def _corrected(self, logits: Tensor) -> Tensor:
        n_old = len(self.alpha)
        old = logits[:, :n_old] * self.alpha + self.beta
        return torch.cat([old, logits[:, n_old:] * self.correction[0] + self.correction[1]], 1)

    def _hold_out(self, data: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Split task and exemplars into what stage 1 and stage 2 train on."""
        exemplars = self.exemplars()
        both = data + exemplars
        if not len(exemplars):
            return both, both.subset(torch.empty(0, dtype=torch.int64))
        fewest = int(exemplars.classes.unique(return_counts=True)[1].min())
        n = max(1, round(self.held_out * fewest))
        order = torch.randperm(len(both), generator=self.rng("held out"))
        classes = both.classes[order]
        held = torch.cat([torch.nonzero(classes == c).flatten()[:n] for c in classes.unique()])
        kept = torch.ones(len(both), dtype=torch.bool)
        kept[held] = False
        return both.subset(order[kept]), both.subset(order[held])
