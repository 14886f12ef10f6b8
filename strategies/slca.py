"""Slow learner with classifier alignment."""

from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Choices
from clbench.data.batches import Batch, gathered
from clbench.data.scenario import Scenario, Task
from clbench.learning.losses import cross_entropy
from clbench.learning.strategy import Stage, Strategy, Traits
from clbench.strategies._gaussian import gaussian

# Features in a step of the alignment, as in the authors' code.
ALIGNED = 256


class SLCA(Strategy):
    """Slow learner with classifier alignment. Zhang et al. 2023, arXiv:2303.05118.

    Stage 1: cross-entropy over the task's own outputs trains the backbone slowly (backbone_lr_factor=0.01) and the
    task's rows of the head. Stage 2, from the second task on: features drawn from N(mu_c, Sigma_c) of each class seen,
    as the backbone gave them in its task, train the whole head by CE(z / (temperature * mean_t |z_t|)), z_t being the
    logits of task t (sec. 3.3). The next task begins with the head as it was before stage 2. As in the authors' code,
    and not in the paper, mu_c of task t of T is multiplied by 0.9 + 0.1 t / T, and 1e-4 is added to the diagonal of
    Sigma_c.

    temperature: None leaves the logits of stage 2 as they are.
    alignment_epochs: the length of stage 2, in as many steps of 256 features as there are classes.
    """

    traits = Traits(
        family="pretrained",
        paper="Zhang et al. 2023, arXiv:2303.05118",
        settings=("class",),
        memory="none",
        through_features=False,
        preset={"backbone_lr_factor": 0.01, "loss_outputs": "new"},
    )

    temperature: Annotated[Annotated[float, Field(gt=0)] | None, Choices(0.05, 0.1, 0.2)] = 0.1
    alignment_epochs: Annotated[int, Field(ge=1)] = 5

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """A class has one Gaussian, from one task."""
        if scenario.blurred:
            raise ConfigError("slca needs each class in one task, and these tasks are blurry; tasks of own classes are")

    def begin_run(self) -> None:
        """Mean and Cholesky factor of the covariance, by the output of a class; the head before its alignment."""
        self.gaussians: dict[int, tuple[Tensor, Tensor]] = {}
        self.unaligned: tuple[Tensor, ...] = ()

    def stages(self, task: Task) -> list[Stage]:
        """Backbone and new rows of the head; then the head alone."""
        self.tasks = [*self.old_task_outputs, task.outputs]
        self.task_of = [t for t, outputs in enumerate(self.tasks) for _ in range(outputs.start, outputs.stop)]
        slow = Stage(
            task.train, parameters=list(self.model.parameters()), head_rows=task.outputs, before=self._put_back
        )
        # No image of this stage is looked at: its features are drawn.
        aligned = Stage(
            task.train,
            "alignment",
            list(self.model.head.parameters()),
            iterations=self.alignment_epochs * task.outputs.stop,
            loss=self._alignment_loss,
            before=partial(self._observe, task),
            watched=False,
        )
        return [slow, aligned] if task.index else [slow]

    def end_task(self, task: Task) -> None:
        """The first task is not aligned, and observed all the same."""
        if task.index == 0:
            self._observe(task)

    @torch.no_grad()
    def _put_back(self) -> None:
        """Put the rows of the head back that were aligned."""
        for parameter, rows in zip(self.model.head.parameters(), self.unaligned, strict=False):
            parameter[: len(rows)] = rows

    @torch.no_grad()
    def _observe(self, task: Task) -> None:
        """Keep the head as it is, and the Gaussian of each class of the task."""
        self.unaligned = tuple(p[: task.outputs.stop].clone() for p in self.model.head.parameters())
        self.model.eval()
        for output in task.train.labels.unique().tolist():
            data = task.train.subset(task.train.labels == output)
            parts = (self.model.features(batch.images).cpu().double() for batch in self.passes(data))
            features = gathered(parts, len(data))
            mean, factor = gaussian(features)
            self.gaussians[output] = mean.to(self.model.head.weight), factor.to(self.model.head.weight)

    def _draws(self) -> tuple[Tensor, Tensor]:
        """Draw the labels of a step of the alignment, sorted int64 [256], and N(0, 1) noise, [256, d], on the CPU."""
        generator = self.rng("alignment")
        outputs = torch.tensor(sorted(self.gaussians))
        labels = outputs[torch.randint(len(outputs), (ALIGNED,), generator=generator)].sort().values
        return labels, torch.randn(ALIGNED, self.model.feature_dim, generator=generator)

    def _alignment_loss(self, batch: Batch) -> Tensor:
        labels, noise = self._draws()
        outputs, counts = labels.unique_consecutive(return_counts=True)
        parts = []
        with torch.autocast(self.device.type, enabled=False):
            for output, part in zip(
                outputs.tolist(),
                noise.to(self.model.head.weight, non_blocking=True).split(counts.tolist()),
                strict=True,
            ):
                mean, factor = self.gaussians[output]
                share = 0.9 + 0.1 * (1 + self.task_of[output]) / len(self.tasks)
                parts.append(share * mean + part @ factor.T)
        logits = self.model.head(torch.cat(parts))[:, : self.tasks[-1].stop]
        return cross_entropy(scaled(logits, self.tasks, self.temperature), labels.to(self.device, non_blocking=True))


def scaled(logits: Tensor, tasks: list[slice], temperature: float | None) -> Tensor:
    """Return logits [B, outputs] by temperature times the mean norm of a task's logits; as they are for None."""
    if temperature is None:
        return logits
    norms = torch.stack([logits[:, outputs].norm(dim=1) + 1e-7 for outputs in tasks])
    return logits / norms.mean(0)[:, None] / temperature
