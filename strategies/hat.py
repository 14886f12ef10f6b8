"""Hard attention to the task."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from clbench.config.run import RunConfig
from clbench.config.space import Choices
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Stage, Strategy, Traits, given_task
from clbench.models.blocks import block_outputs, chain, check_chain, widths


class HAT(Strategy):
    """Hard attention to the task. Serra, Suris, Miron & Karatzoglou 2018, arXiv:1801.01423.

    L = CE + sparsity * sum a (1 - a_earlier) / sum (1 - a_earlier). Each task learns a gate a = sigmoid(s e) for every
    unit; weights between units that earlier tasks use stay: the step of a weight is multiplied by 1 - min(a_i, a_j), a
    the largest gates of earlier tasks at its two ends. In each epoch of B batches s rises: s = 1/smax + (smax - 1/smax)
    (b - 1)/(B - 1); at test it is smax. The gradient of e is multiplied by smax/s (cosh(s e) + 1)/(cosh(e) + 1), with
    |s e| at most 50 and |e| at most 6. Batch norm is fixed after the first task.

    smax: the largest s, at which a gate is nearly 0 or 1.
    sparsity: the weight of the term by which a task takes few of the units that are free.
    """

    traits = Traits(
        family="isolation",
        paper="Serra et al. 2018, arXiv:1801.01423",
        settings=("task",),
        memory="none",
        needs_task_at_test=True,
    )

    smax: Annotated[float, Field(ge=1), Choices(100.0, 200.0, 400.0, 800.0)] = 400.0
    sparsity: Annotated[float, Field(ge=0), Choices(0.25, 0.75, 1.5, 2.5)] = 0.75

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Every layer needs gates at both ends."""
        check_chain(config, scenario)

    def begin_run(self) -> None:
        """Before the first task no unit is used."""
        self.gates: list[list[Tensor]] = []
        self.used = [self.model.head.weight.new_zeros(width) for width in widths(self.model)]

    def begin_task(self, task: Task) -> None:
        """Draw the embedding e of the task from N(0, 1)."""
        generator = self.rng("embedding")
        self.embedding = nn.ParameterDict(
            {
                f"{task.index}-{block}": torch.randn(len(used), generator=generator).to(self.device)
                for block, used in enumerate(self.used)
            }
        )
        self.shares = self._shares()

    def stages(self, task: Task) -> list[Stage]:
        """All parameters in the first task; later on no batch norm, and the task's own rows of the head."""
        later = [*self._limited(), *self.model.head.parameters(), *self.embedding.values()]
        return [Stage(task.train, parameters=later if task.index else None, head_rows=task.outputs)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the gated network, and the share of the units still free that the task takes."""
        gates = self._gates(self._scale())
        logits = self.task_logits(block_outputs(self.model, batch.images, gates)[-1], self.progress.task)
        free = [1 - used for used in self.used]
        taken = torch.stack([(gate * left).sum() for gate, left in zip(gates, free, strict=True)]).sum()
        total = torch.cat(free).sum().clamp(min=1e-12)
        return {"classification": self.classification_loss(logits, batch), "sparsity": self.sparsity * taken / total}

    @torch.no_grad()
    def after_backward(self, batch: Batch) -> None:
        """Compensate the gradient of e for the schedule of s; keep the weights, of whose step a part will stay."""
        s = self._scale()
        for e in self.embedding.values():
            e.grad *= self.smax / s * (torch.cosh((s * e).clamp(-50, 50)) + 1) / (torch.cosh(e) + 1)
        self.before = [parameter.detach().clone() for parameter in self._limited()]

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        """Take back the part of the step that is masked: masking the gradient alone would be undone by Adam."""
        for parameter, before, share in zip(self._limited(), self.before, self.shares, strict=True):
            parameter.copy_(torch.lerp(before, parameter, share))
        for e in self.embedding.values():
            e.clamp_(-6, 6)

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Keep the gates; the embedding has served."""
        self.gates.append(self._gates(self.smax))
        self.used = [torch.maximum(used, gate) for used, gate in zip(self.used, self.gates[-1], strict=True)]
        self.embedding, self.before, self.shares = nn.ParameterDict(), [], []

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        """The network under the task's gates; a task that is yet to come is scored under the latest ones."""
        task = given_task(task)
        known = [*self.gates, self._gates(self.smax)] if self.embedding else self.gates
        return self.task_logits(block_outputs(self.model, images, known[min(task, len(known) - 1)])[-1], task)

    def _scale(self) -> float:
        b, n = self.progress.step % self.progress.steps_per_epoch, self.progress.steps_per_epoch
        return 1 / self.smax + (self.smax - 1 / self.smax) * (b / (n - 1) if n > 1 else 1.0)

    def _gates(self, s: float) -> list[Tensor]:
        return [torch.sigmoid(s * e) for e in self.embedding.values()]

    def _limited(self) -> list[nn.Parameter]:
        return [parameter for layer in chain(self.model) for parameter in layer.parameters()]

    def _shares(self) -> list[Tensor]:
        """Return 1 - min(a_i, a_j) for each weight and 1 - a_i for each bias, in the order of `_limited`."""
        shares = []
        below: Tensor | None = None
        for layer, used in zip(chain(self.model), self.used, strict=True):
            taken = used.view(-1, *[1] * (layer.weight.dim() - 1))
            if below is not None:
                # Each map of a convolution has several inputs to a linear layer.
                ends = below.repeat_interleave(layer.weight.shape[1] // len(below))
                taken = torch.minimum(taken, ends.view(1, -1, *[1] * (layer.weight.dim() - 2)))
            shares.append((1 - taken).expand_as(layer.weight))
            if layer.bias is not None:
                shares.append(1 - used)
            below = used
        return shares
