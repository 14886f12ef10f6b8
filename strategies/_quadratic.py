"""The quadratic penalty around earlier weights, which EWC, SI, MAS, RWalk and L2 share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from clbench.config.errors import RunError
from clbench.config.space import Log
from clbench.data.batches import Batch
from clbench.data.scenario import ImageSet, Task
from clbench.learning.importance import (
    copied_gradients,
    copied_weights,
    finite_importance,
    grown,
    loss_decrease,
    quadratic_penalty,
)
from clbench.learning.strategy import Stage, Strategy, Strength


class QuadraticAnchor(Strategy):
    """penalty = factor * strength * sum_i Omega_i (w_i - w*_i)^2, w* the weights after the task before.

    A strategy says in `end_task` how important each parameter was to the task. Rows that the head gains later are free.
    """

    factor: ClassVar[float] = 1.0

    strength: Annotated[Strength, Log(1e-2, 1e6)] = 1.0

    def begin_run(self) -> None:
        """Before the first task nothing is important."""
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def penalty(self) -> Tensor | None:
        """The quadratic penalty around the weights of earlier tasks."""
        if not self.anchor or not self.strength:
            return None
        return self.factor * self.strength * self.distance()

    def distance(self) -> Tensor:
        """Return sum_i Omega_i (w_i - w*_i)^2."""
        return quadratic_penalty(dict(self.model.named_parameters()), self.importance, self.anchor)

    def add_importance(self, gained: Mapping[str, Tensor]) -> None:
        """Add a task's importance to that of earlier tasks, and move the anchor to the present weights."""
        for name, new in finite_importance(dict(gained)).items():
            self.importance[name] = grown(self.importance[name], new) + new if name in self.importance else new
        self.anchor = copied_weights(self.model)

    def competing(self, data: ImageSet) -> slice:
        """Return the outputs that compete in the loss for samples of one task."""
        active = self.active_outputs(data.ids)
        if not isinstance(active, slice):
            raise RunError("these samples are of several tasks, and compete among different outputs")
        return active


class MeasuredAnchor(QuadraticAnchor):
    """A quadratic penalty whose importance is measured on a task's samples when they are learnt.

    A step of gradient descent on the penalty of one parameter overshoots, and soon diverges, where its importance times
    the strength is large against 1 / learning rate; a limit on the importance rules that out.
    """

    importance_max: Annotated[float, Field(gt=0)] | None = None

    def limited(self, measured: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what was measured, larger entries as the limit."""
        if self.importance_max is None:
            return measured
        return {name: values.clamp(max=self.importance_max) for name, values in measured.items()}


class PathAnchor(QuadraticAnchor, ABC):
    """A quadratic penalty whose importance is gathered along the steps of training."""

    def stages(self, task: Task) -> list[Stage]:
        """One stage, along whose steps the importance is gathered."""
        return [Stage(self.with_exemplars(task.train), before=self._begin_path)]

    @abstractmethod
    def _begin_path(self) -> None:
        """Begin what is gathered anew."""

    def after_backward(self, batch: Batch) -> None:
        """Keep the gradient of the data terms, and the weights before the step."""
        self.gradients, self.before = copied_gradients(self.model), copied_weights(self.model)

    def decreases(self) -> dict[str, Tensor]:
        """Return -g_i dw_i of the step that was made: how much the loss fell because parameter i has moved."""
        return loss_decrease(self.gradients, self.before, self.model)
