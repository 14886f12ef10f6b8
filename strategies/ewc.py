"""Elastic weight consolidation."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench.data.scenario import Task
from clbench.learning.importance import fisher_diagonal_of_batches, grown
from clbench.learning.strategy import Traits
from clbench.strategies._quadratic import MeasuredAnchor


class EWC(MeasuredAnchor):
    """Elastic weight consolidation. Kirkpatrick et al. 2017, arXiv:1612.00796.

    penalty = strength / 2 * sum_k sum_i F_k,i (w_i - w*_k,i)^2, F_k the diagonal Fisher information after task k.

    strength: the weight of the penalty.
    mode: "separate" keeps a penalty for every task; "online" keeps one, around the latest weights, with
        F <- decay * F + F_k (Schwarz et al. 2018, arXiv:1805.06370).
    decay: how much of the earlier Fisher information the online mode keeps.
    fisher_labels: the labels are the true ones ("empirical"), drawn from the model ("sampled"), or F is the expectation
        over all labels ("exact").
    fisher_samples: the largest number of the task's images that F is a mean over; None takes all.
    importance_max: the largest entry of a task's F, which greater ones are taken for; None is no limit.
    """

    traits = Traits(
        family="regularisation",
        paper="Kirkpatrick et al. 2017, arXiv:1612.00796",
        seeds_together=True,
        on_features=True,
        mixes=True,
    )
    factor = 0.5

    strength = 100.0
    mode: Literal["separate", "online"] = "separate"
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    fisher_labels: Literal["empirical", "sampled", "exact"] = "empirical"
    fisher_samples: Annotated[int, Field(ge=1)] | None = None

    def begin_run(self) -> None:
        """Before the first task nothing is important, and no penalty remains at its minimum."""
        super().begin_run()
        self.offset = 0.0

    def distance(self) -> Tensor:
        """The merged penalties, and what is left of them at their common minimum."""
        return super().distance() + self.offset

    def end_task(self, task: Task) -> None:
        """Add the task's Fisher information, and move the anchor.

        Separate penalties merge without loss: A (w - a)^2 + F (w - v)^2 = (A + F) (w - m)^2 + A F / (A + F) (a - v)^2,
        with m = (A a + F v) / (A + F). So a step costs the same after any number of tasks.
        """
        fisher = self._fisher(task)
        for name, value in self.model.named_parameters():
            now, new = value.detach().clone(), fisher[name]
            if self.mode == "online" or name not in self.importance:
                old = grown(self.importance[name], new) if name in self.importance else torch.zeros_like(new)
                self.importance[name], self.anchor[name] = self.decay * old + new, now
                continue
            old, anchor = grown(self.importance[name], new), grown(self.anchor[name], now)
            total = old + new
            weight = torch.where(total > 0, new / total, 0.5)
            self.offset += float((old * weight * (anchor - now) ** 2).sum())
            self.importance[name], self.anchor[name] = total, torch.lerp(anchor, now, weight)

    def _fisher(self, task: Task) -> dict[str, Tensor]:
        data = task.train
        if self.fisher_samples is not None:
            data = data.subset(torch.randperm(len(data), generator=self.rng("samples"))[: self.fisher_samples])
        self.log("fisher_samples", len(data))
        fisher = fisher_diagonal_of_batches(
            self.model,
            ((batch.images, batch.labels) for batch in self.passes(data)),
            label_mode=self.fisher_labels,
            active=self.competing(data),
            generator=self.rng("labels"),
        )
        return self.limited(fisher)
