"""Synaptic intelligence: Zenke, Poole & Ganguli 2017, arXiv:1703.04200."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from clbench.config.space import Log
from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.importance import copied_gradients, copied_weights, grown, loss_decrease, quadratic_penalty, zeros
from clbench.learning.strategy import Stage, Strategy, Strength, Traits


class SI(Strategy):
    """penalty = strength * sum_i Omega_i (w_i - w*_i)^2 (eq. 4), w* the weights after the task before.

    Omega_i = sum over the tasks of omega_i / (D_i^2 + xi) (eq. 5), D_i how far the parameter moved in the task;
    omega_i = -sum over its steps of g_i dw_i (eq. 3), g the gradient of the data terms alone and dw the step that was
    really made, so it holds for any optimizer. relu: no sum falls below 0, as in the authors' code; the paper has no
    such rule, and where Omega is negative the penalty rewards moving away. gradient: "total" takes g as the gradient
    of the data terms and the penalty, as the code of van de Ven et al. 2022 (doi:10.1038/s42256-022-00568-3) does.
    """

    traits = Traits(family="regularisation", paper="Zenke et al. 2017, arXiv:1703.04200")

    strength: Annotated[Strength, Log(1e-2, 1e6)] = 1.0
    xi: Annotated[float, Field(gt=0)] = 0.1
    relu: bool = True
    gradient: Literal["data", "total"] = "data"

    def begin_task(self, task: Task) -> None:
        """Before the first task nothing is important."""
        if task.index == 0:
            self.importance: dict[str, Tensor] = {}
            self.anchor: dict[str, Tensor] = {}

    def stages(self, task: Task) -> list[Stage]:
        """One stage, with the path integral begun anew."""
        return [Stage(self.with_exemplars(task.train), before=self._begin_path)]

    def _begin_path(self) -> None:
        self.start: dict[str, Tensor] = copied_weights(self.model)
        self.path: dict[str, Tensor] = zeros(self.model)

    def after_backward(self, batch: Batch) -> None:
        """Keep the gradient of the data terms, and the weights before the step."""
        self.gradients, self.before = copied_gradients(self.model), copied_weights(self.model)

    def penalty(self) -> Tensor | None:
        """The quadratic penalty around the weights after the task before."""
        if not self.importance or not self.strength:
            return None
        parameters = dict(self.model.named_parameters())
        return self.strength * quadratic_penalty(parameters, self.importance, self.anchor)

    def after_step(self, batch: Batch) -> None:
        """Add the step to the path integral."""
        if self.gradient == "total":
            self.gradients = copied_gradients(self.model)
        for name, decrease in loss_decrease(self.gradients, self.before, self.model).items():
            self.path[name] += decrease

    def end_task(self, task: Task) -> None:
        """Add the task's importance and move the anchor."""
        self.anchor = copied_weights(self.model)
        for name, omega in self.path.items():
            new = omega / ((self.anchor[name] - self.start[name]) ** 2 + self.xi)
            total = grown(self.importance[name], new) + new if name in self.importance else new
            self.importance[name] = total.clamp(min=0) if self.relu else total
        self.path = self.start = self.gradients = self.before = {}
