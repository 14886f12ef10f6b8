"""Independent models."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.data.scenario import Task
from clbench.learning.strategy import Stage, Strategy, Traits, given_task


class Independent(Strategy):
    """Independent models, the "separate networks" of van de Ven et al. 2022, doi:10.1038/s42256-022-00568-3.

    A fresh model is trained for each task on that task alone, and the task given at test time chooses the model. It is
    a reference that can't forget, and that can't use one task for another: what its diagonal lacks is transfer.
    """

    traits = Traits(
        family="reference",
        paper="van de Ven et al. 2022, doi:10.1038/s42256-022-00568-3",
        settings=("task",),
        memory="none",
        needs_task_at_test=True,
        on_features=True,
    )

    def begin_run(self) -> None:
        """Before the first task no model is finished."""
        self.finished = nn.ModuleList()

    def begin_task(self, task: Task) -> None:
        """Put the model of the task before aside."""
        if task.index > 0:
            self.finished.append(copy.deepcopy(self.model).requires_grad_(False))

    def stages(self, task: Task) -> list[Stage]:
        """One stage on the task, from a fresh model."""
        return [Stage(task.train, before=self.restart)]

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The outputs of the task's own model, of the latest one for a task that is yet to come."""
        task = given_task(task)
        model = self.finished[task] if task < len(self.finished) else self.model
        logits: Tensor = model(images)
        return F.pad(logits, (0, self.model.head.out_features - logits.shape[1]), value=-torch.inf)
