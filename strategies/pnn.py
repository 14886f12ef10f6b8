"""Progressive neural networks."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage, Strategy, Traits, given_task
from clbench.models.blocks import Layer, check_chain
from clbench.models.network import Network


class Adapter(nn.Module):
    """U relu(V alpha h), h what all earlier columns give out, side by side; V is 1x1 beside a convolution."""

    def __init__(self, layer: Layer, earlier: int) -> None:
        super().__init__()
        n = layer.weight.shape[1]
        self.alpha = nn.Parameter(torch.empty(()).uniform_(0, 0.1))
        v = nn.Conv2d(earlier * n, n, 1) if isinstance(layer, nn.Conv2d) else nn.Linear(earlier * n, n)
        self.v = v.to(layer.weight.dtype)
        self.u = copy.deepcopy(layer)
        self.u.bias = None
        self.u.reset_parameters()

    def forward(self, earlier: Tensor) -> Tensor:
        """Map [B, earlier * n, ...] to what the layer beside it gives out."""
        adapted: Tensor = self.u(F.relu(self.v(self.alpha * earlier)))
        return adapted


class Lateral(nn.Module):
    """A column's layer on the column's own units, which come first, plus the adapter on those of earlier columns."""

    def __init__(self, layer: Layer, earlier: int) -> None:
        super().__init__()
        self.layer, self.adapter = layer, Adapter(layer, earlier)

    def forward(self, joined: Tensor) -> Tensor:
        """Map [B, (1 + earlier) * n, ...] to what the layer gives out."""
        n = self.layer.weight.shape[1]
        mapped: Tensor = self.layer(joined[:, :n]) + self.adapter(joined[:, n:])
        return mapped


class Column(nn.Module):
    """The blocks of a model with lateral connections from the columns before it, and the adapter of its head."""

    def __init__(self, model: Network, outputs: int, earlier: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(block) for block in model.blocks())
        for block in self.blocks[1:]:
            name, layer = next((n, m) for n, m in block.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
            block.set_submodule(name, Lateral(layer, earlier))
        self.adapter = Adapter(nn.Linear(model.feature_dim, outputs).to(model.head.weight.dtype), earlier)

    def forward(self, units: list[Tensor], index: int) -> Tensor:
        """Map what the columns up to this one give to block `index`, this one's last, to what this one gives out."""
        own: Tensor = self.blocks[index](torch.cat([units[-1], *units[:-1]], 1) if index else units[-1])
        return own


class PNN(Strategy):
    """Progressive neural networks. Rusu et al. 2016, arXiv:1606.04671.

    h_i of column k = f(W h_{i-1} + U relu(V alpha h_{i-1} of all columns before k)) (eq. 2), in the blocks from the
    second on and in the task's rows of the head: each task has a new network, a column, which also hears the frozen
    columns of earlier tasks. The size grows with the square of the number of tasks.
    """

    traits = Traits(
        family="isolation",
        paper="Rusu et al. 2016, arXiv:1606.04671",
        settings=("task",),
        memory="none",
        needs_task_at_test=True,
        through_features=False,
    )

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """A lateral connection joins one layer of each block."""
        check_chain(config, scenario)

    def begin_run(self) -> None:
        """Before the first task there is no column but the model itself."""
        self.columns = nn.ModuleList()

    def begin_task(self, task: Task) -> None:
        """The model is the first column; every later task adds one, fresh."""
        if task.index > 0:
            with self.seeded("column"):
                # Drawn on the CPU, so that it is the same on every device.
                column = Column(self.fresh_model().cpu(), len(task.classes), task.index)
                self.columns.append(column.to(self.device))

    def stages(self, task: Task) -> list[Stage]:
        """Train the new column alone, and the task's rows of the head."""
        later = [*self.columns[-1].parameters(), *self.model.head.parameters()] if task.index else None
        return [Stage(task.train, parameters=later, head_rows=task.outputs)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the new column."""
        return {"classification": self.classification_loss(self.scores(batch.images, self.progress.task), batch)}

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The task's column; a task that is yet to come is scored by the latest one."""
        task = given_task(task)
        columns = [column for column in self.columns if isinstance(column, Column)][:task]
        units = [images] * (len(columns) + 1)
        for index, block in enumerate(self.model.blocks()):
            below = units
            units = [block(below[0])]
            units += [column(below[: k + 1], index) for k, column in enumerate(columns, start=1)]
        logits = self.task_logits(units[-1], task)
        if columns:
            own, lateral = self.outputs_of(len(columns)), columns[-1].adapter(torch.cat(units[:-1], 1))
            logits = logits + F.pad(lateral, (own.start, logits.shape[1] - own.stop))
        return logits
