"""Independent models: the reference without any transfer."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.data.scenario import Task
from clbench.learning.strategy import Stage, Strategy, Traits


class Independent(Strategy):
    """Train a fresh model for each task on that task alone; the task given at test time chooses the model.

    It can't forget, and it can't use one task for another: what its diagonal lacks is transfer.
    The "separate networks" of van de Ven et al. 2022, doi:10.1038/s42256-022-00568-3.
    """

    traits = Traits(
        family="reference",
        paper="van de Ven et al. 2022, doi:10.1038/s42256-022-00568-3",
        settings=("task",),
        memory="none",
        needs_task_at_test=True,
    )

    def begin_task(self, task: Task) -> None:
        """Put the model of the task before aside."""
        if task.index == 0:
            self.finished = nn.ModuleList()
        else:
            self.finished.append(copy.deepcopy(self.model).requires_grad_(False))

    def stages(self, task: Task) -> list[Stage]:
        """One stage on the task, from a fresh model."""
        return [Stage(task.train, before=self._restart)]

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The outputs of the task's own model, of the latest one for a task that is yet to come."""
        assert task is not None
        model = self.finished[task] if task < len(self.finished) else self.model
        logits: Tensor = model(images)
        return F.pad(logits, (0, self.model.head.out_features - logits.shape[1]), value=-torch.inf)

    def _restart(self) -> None:
        self.model = self.fresh_model()
