"""PackNet."""

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage, Strategy, Traits, given_task

FREE = -1


class PackNet(Strategy):
    """PackNet. Mallya & Lazebnik 2018, arXiv:1711.05769.

    All free weights train; then the smallest of them in each layer are pruned, and the rest are trained again and stay
    for good. Task k is scored with the weights of tasks 1 to k alone. Biases and batch norm are fixed after the first
    task; each task has its own rows of the head.

    prune: the share of a layer's free weights that are set to zero, and so left to later tasks (the paper: 0.5 and
        0.75).
    retrain: the share of the task's epochs that come after pruning (the paper: half as many as before it).
    """

    traits = Traits(
        family="isolation",
        paper="Mallya & Lazebnik 2018, arXiv:1711.05769",
        settings=("task",),
        memory="none",
        needs_task_at_test=True,
    )

    prune: Annotated[float, Field(ge=0, lt=1), Choices(0.5, 0.75)] = 0.75
    retrain: Annotated[float, Field(gt=0, lt=1)] = 1 / 3

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Refuse a budget of FLOPs, which does not say where the pruning is."""
        if config.training.budget_in("flops") is not None:
            raise ConfigError(
                f"packnet prunes after a share of the epochs, not budget={config.training.budget}; epochs is accepted"
            )

    def begin_run(self) -> None:
        """Before the first task every weight is free."""
        self.owner = {n: torch.full_like(weight, FREE, dtype=torch.int16) for n, weight in self._weights().items()}

    def stages(self, task: Task) -> list[Stage]:
        """Train, then prune and retrain."""
        moving = [*self._weights().values(), *self.model.head.parameters()] if task.index else None
        total = self.config.training.epochs or self.config.training.iterations or 1
        after = max(1, round(total * self.retrain))
        before = max(1, total - after)

        def stage(name: str, length: int, start: Callable[[], None]) -> Stage:
            epochs, iterations = (length, None) if self.config.training.epochs else (None, length)
            return Stage(task.train, name, moving, task.outputs, epochs, iterations, before=start)

        return [stage("train", before, self._hold_owned), stage("retrain", after, self._prune)]

    def _weights(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.dim() > 1 and not n.startswith("head.")}

    def _hold_owned(self) -> None:
        self._hold(FREE)

    @torch.no_grad()
    def _prune(self) -> None:
        for name, weight in self._weights().items():
            owner = self.owner[name]
            free = owner == FREE
            order = weight.abs().masked_fill(~free, torch.inf).flatten().argsort(stable=True)
            smallest = order[: round(self.prune * int(free.sum()))]
            pruned = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
            pruned[smallest] = True
            owner[free] = self.progress.task
            owner[pruned.view(owner.shape)] = FREE
            weight[pruned.view(weight.shape)] = 0.0
        self._hold(self.progress.task)

    def _hold(self, moving: int) -> None:
        self.held = {
            name: (self.owner[name] != moving, weight.detach().clone()) for name, weight in self._weights().items()
        }

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Put back what is not to move: momentum, Adam and weight decay move weights whose gradient is zero, too."""
        for name, weight in self._weights().items():
            fixed, value = self.held[name]
            torch.where(fixed, value, weight, out=weight)

    def end_task(self, task: Task) -> None:
        """The owners are all that is kept."""
        self.held = {}

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The weights of later tasks are zero; a task that is yet to come is scored by the model as it is."""
        task = given_task(task)
        earlier = self._weights() if task < self.progress.task else {}
        # A clone keeps the order of dimensions in memory, and with it the kernel and its rounding.
        unused = {n: (self.owner[n] == FREE) | (self.owner[n] > task) for n in earlier}
        used = {n: w.clone().masked_fill_(unused[n], 0.0) for n, w in earlier.items()}
        head, own = self.model.head, self.outputs_of(task)
        rows = {"head.weight": head.weight[own], "head.bias": head.bias[own]}
        logits = functional_call(self.model, used | rows, (images,))
        return F.pad(logits, (own.start, head.out_features - own.stop), value=-torch.inf)
