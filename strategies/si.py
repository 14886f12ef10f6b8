"""Synaptic intelligence."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from clbench.data.batches import Batch
from clbench.data.scenario import Task
from clbench.learning.importance import copied_gradients, copied_weights, zeros
from clbench.learning.strategy import Traits
from clbench.strategies._quadratic import PathAnchor


class SI(PathAnchor):
    """Synaptic intelligence. Zenke, Poole & Ganguli 2017, arXiv:1703.04200.

    penalty = strength * sum_i Omega_i (w_i - w*_i)^2 (eq. 4), w* the weights after the task before. Omega_i = sum over
    the tasks of omega_i / (D_i^2 + xi) (eq. 5), D_i how far the parameter moved in the task; omega_i = -sum over its
    steps of g_i dw_i (eq. 3), g the gradient of the data terms alone and dw the step that was really made, so it holds
    for any optimizer.

    strength: the weight of the penalty.
    xi: what keeps Omega finite where a parameter hardly moved.
    relu: whether no sum falls below 0, as in the authors' code. The paper has no such rule; where Omega is negative the
        penalty rewards moving away.
    gradient: "total" takes g as the gradient of the data terms and the penalty, as the code of van de Ven et al. 2022
        (doi:10.1038/s42256-022-00568-3) does.
    """

    traits = Traits(family="regularisation", paper="Zenke et al. 2017, arXiv:1703.04200", on_features=True, mixes=True)

    xi: Annotated[float, Field(gt=0)] = 0.1
    relu: bool = True
    gradient: Literal["data", "total"] = "data"

    def _begin_path(self) -> None:
        self.start: dict[str, Tensor] = copied_weights(self.model)
        self.path: dict[str, Tensor] = zeros(self.model)

    def after_step(self, batch: Batch) -> None:
        """Add the step to the path integral."""
        if self.gradient == "total":
            self.gradients = copied_gradients(self.model)
        for name, decrease in self.decreases().items():
            self.path[name] += decrease

    def end_task(self, task: Task) -> None:
        """Add the task's importance and move the anchor."""
        moved = {name: weight - self.start[name] for name, weight in copied_weights(self.model).items()}
        self.add_importance({name: omega / (moved[name] ** 2 + self.xi) for name, omega in self.path.items()})
        if self.relu:
            self.importance = {name: total.clamp(min=0) for name, total in self.importance.items()}
        self.path = self.start = self.gradients = self.before = {}
