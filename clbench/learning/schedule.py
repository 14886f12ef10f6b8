"""The course of the learning rate, as a function of the position alone, so that a resumed run goes on where it was."""

import math

from clbench.config.run import RunConfig


def lr_multiplier(config: RunConfig, position: float, step: float, total: float) -> float:
    """Return the factor on the learning rate of the step that goes from `position` to `position + step` of `total`.

    All are in epochs. Warm-up rises linearly to 1 over its epochs and counts the step as done: one at rate 0 would be
    lost. Then: "step" multiplies by lr_factor every step_epochs epochs,
    "multistep" at each milestone, "cosine" falls to 0 as (1 + cos(pi * t)) / 2 (Loshchilov & Hutter 2017,
    arXiv:1608.03983, eq. 5, one cycle); "plateau" is decided by the validation loss, see Plateau.
    """
    if position < config.training.lr_warmup:
        return min((position + step) / config.training.lr_warmup, 1.0)
    if config.training.schedule == "step":
        assert config.training.step_epochs is not None
        return config.training.lr_factor ** (int(position) // config.training.step_epochs)
    if config.training.schedule == "multistep":
        return config.training.lr_factor ** sum(position >= milestone for milestone in config.training.milestones or ())
    if config.training.schedule == "cosine":
        done = (position - config.training.lr_warmup) / max(total - config.training.lr_warmup, 1e-9)
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

    def state(self) -> tuple[float, int]:
        """Return the lowest loss and the count."""
        return self.lowest, self.count


class Plateau:
    """Lowers the rate by lr_factor after lr_patience epochs in a row without progress of the validation loss."""

    def __init__(self, config: RunConfig) -> None:
        self.factor, self._config, self.waiting = 1.0, config, Progressless(config.training.min_delta)

    def update(self, loss: float) -> None:
        """Take up the validation loss of an epoch."""
        if not self.waiting.better(loss) and self.waiting.count >= self._config.training.lr_patience:
            self.factor *= self._config.training.lr_factor
            self.waiting.count = 0
