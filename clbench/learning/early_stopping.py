"""Early stopping: the loss on the current task's validation split, and the state to go back to."""

import copy
import math
from typing import Any

import torch
from torch import nn

from clbench.config.errors import RunError
from clbench.learning.losses import cross_entropy
from clbench.learning.memory import Memory
from clbench.learning.returned import class_scores
from clbench.learning.strategy import Context, Strategy, eval_mode, remedies, spoilt


def validation_loss(strategy: Strategy, context: Context) -> float:
    """Return the mean cross-entropy of the strategy's scores on the current task's validation split.

    Unsmoothed, over the outputs that compete in training, without penalty, distillation or replay. Raises RunError
    where it is not finite.
    """
    task = context.scenario.tasks[context.progress.task]
    total = torch.zeros((), device=context.device)
    with torch.inference_mode(), eval_mode(strategy), context.autocast():
        for batch in strategy.passes(task.validation):
            classifiers = class_scores(strategy, batch.images, task.index)
            scores = classifiers.get("linear", next(iter(classifiers.values())))
            total += cross_entropy(scores, batch.labels, batch.active) * len(batch)
    loss = float(total) / len(task.validation)
    if not math.isfinite(loss):
        cause = spoilt(strategy) or remedies(strategy)
        raise RunError(f"the validation loss is {loss} in task {task.index}, epoch {context.progress.epoch}; {cause}")
    return loss


class Best:
    """The learnt state at the lowest validation loss: weights and what the strategy learnt, never the memory."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.state: dict[str, Any] = {}

    def keep(self) -> None:
        """Copy the present state."""
        self.state = {
            name: copy.deepcopy(value.state_dict() if isinstance(value, nn.Module) else value)
            for name, value in self._strategy.state().items()
            if not isinstance(value, Memory)
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept state back; modules and parameters stay the same objects."""
        for name, value in self.state.items():
            current = getattr(self._strategy, name)
            if isinstance(current, nn.Module):
                current.load_state_dict(value)
            elif isinstance(current, nn.Parameter):
                current.copy_(value)
            else:
                setattr(self._strategy, name, value)
