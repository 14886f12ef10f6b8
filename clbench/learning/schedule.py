"""The course of the learning rate, as a function of the position alone, so that a resumed run goes on where it was."""

import math
from typing import Any

from clbench.config.groups import TrainingConfig


def lr_multiplier(training: TrainingConfig, position: float, step: float, total: float) -> float:
    """Return the factor on the learning rate of the step that goes from `position` to `position + step` of `total`.

    All are in epochs. Warm-up rises linearly to 1 over its epochs and counts the step as done: one at rate 0 would be
    lost. Then: "step" multiplies by lr_factor every step_epochs epochs,
    "multistep" at each milestone, "cosine" falls to 0 as (1 + cos(pi * t)) / 2 (Loshchilov & Hutter 2017,
    arXiv:1608.03983, eq. 5, one cycle); "plateau" is decided by the validation loss, see Plateau.
    """
    if position < training.lr_warmup:
        return min((position + step) / training.lr_warmup, 1.0)
    if training.schedule == "step" and training.step_epochs is not None:
        return training.lr_factor ** (int(position) // training.step_epochs)
    if training.schedule == "multistep":
        return training.lr_factor ** sum(position >= milestone for milestone in training.milestones or ())
    if training.schedule == "cosine":
        done = (position - training.lr_warmup) / max(total - training.lr_warmup, 1e-9)
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return 1.0


class Progressless:
    """Counts epochs in a row whose loss is not below the lowest so far by more than min_delta."""

    def __init__(self, min_delta: float) -> None:
        self.min_delta = min_delta
        self.lowest, self.count = math.inf, 0

    def better(self, loss: float) -> bool:
        """Take up the loss of an epoch; return whether it is progress."""
        if loss < self.lowest - self.min_delta:
            self.lowest, self.count = loss, 0
            return True
        self.count += 1
        return False

    def state_dict(self) -> dict[str, float]:
        """Return the lowest loss and the count."""
        return {"lowest": self.lowest, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state_dict()."""
        self.lowest, self.count = state["lowest"], state["count"]


class Plateau:
    """Lowers the rate by lr_factor after lr_patience epochs in a row without progress of the validation loss."""

    def __init__(self, training: TrainingConfig) -> None:
        self.factor, self._training, self.waiting = 1.0, training, Progressless(training.min_delta)

    def update(self, loss: float) -> None:
        """Take up the validation loss of an epoch."""
        if not self.waiting.better(loss) and self.waiting.count >= self._training.lr_patience:
            self.factor *= self._training.lr_factor
            self.waiting.count = 0

    def state_dict(self) -> dict[str, float]:
        """Return the factor on the rate, and the state of the waiting."""
        return {"factor": self.factor, **self.waiting.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state_dict()."""
        self.factor = state["factor"]
        self.waiting.load_state_dict(state)
