"""Riemannian walk."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.importance import copied_weights, finite_importance, grown, zeros
from clbench.learning.strategy import Traits
from clbench.strategies._quadratic import PathAnchor


class RWalk(PathAnchor):
    """Riemannian walk. Chaudhry et al. 2018, arXiv:1801.10112.

    penalty = strength * sum_i (F_i + s_i) (w_i - w*_i)^2 (eq. 8), F and s each divided by its largest entry. Every
    `interval` steps s_i gains max(0, loss decrease owed to w_i / (F_i D_i^2 / 2 + epsilon)) (eq. 7), D_i how far the
    parameter moved in these steps; then F <- alpha * (mean of the squared gradients) + (1 - alpha) * F (eq. 6). After a
    task, s is the mean of the score before it and the one gained in it. The gradients are those of the data terms, of a
    whole batch as in the authors' code.

    strength: the weight of the penalty.
    alpha: the weight of the latest gradients in F, as in the authors' code.
    interval: the number of steps after which score and F are brought up to date, as in the authors' code.
    epsilon: what keeps the score finite, as in the authors' code.
    """

    traits = Traits(
        family="regularisation", paper="Chaudhry et al. 2018, arXiv:1801.10112", on_features=True, mixes=True
    )

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.9
    interval: Annotated[int, Field(ge=1)] = 10
    epsilon: Annotated[float, Field(gt=0)] = 1e-3

    def begin_run(self) -> None:
        """Before the first task nothing is important."""
        self.fisher: dict[str, Tensor] = {}
        self.score: dict[str, Tensor] = {}
        super().begin_run()

    def _begin_path(self) -> None:
        self.gained: dict[str, Tensor] = zeros(self.model)
        self._begin_interval()

    def _begin_interval(self) -> None:
        self.origin: dict[str, Tensor] = copied_weights(self.model)
        self.decrease: dict[str, Tensor] = zeros(self.model)
        self.squares: dict[str, Tensor] = zeros(self.model)
        self.steps: int = 0

    def after_step(self, batch: Batch) -> None:
        """Add the step to its interval."""
        for name, decrease in self.decreases().items():
            self.decrease[name] += decrease
            self.squares[name] += self.gradients[name] ** 2
        self.steps += 1
        if self.steps == self.interval:
            self._end_interval()

    def end_task(self, task: Task) -> None:
        """Average the scores, put Fisher and score on one scale, and move the anchor."""
        if self.steps:
            self._end_interval()
        for name, new in self.gained.items():
            self.score[name] = (grown(self.score[name], new) + new) / 2 if name in self.score else new
        fisher, score = _scaled(self.fisher), _scaled(self.score)
        self.importance = finite_importance({name: fisher[name] + score[name] for name in score})
        self.anchor = copied_weights(self.model)
        self.gained = self.decrease = self.squares = self.origin = self.gradients = self.before = {}

    def _end_interval(self) -> None:
        for name, weight in copied_weights(self.model).items():
            mean = self.squares[name] / self.steps
            fisher = grown(self.fisher[name], mean) if name in self.fisher else mean
            distance = fisher / 2 * (weight - self.origin[name]) ** 2
            self.gained[name] += (self.decrease[name] / (distance + self.epsilon)).clamp(min=0)
            self.fisher[name] = torch.lerp(fisher, mean, self.alpha)
        self._begin_interval()


def _scaled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    largest = max(float(value.max()) for value in values.values())
    return {name: value / largest for name, value in values.items()} if largest else values
