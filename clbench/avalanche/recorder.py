"""A recorder of Avalanche's loop: its steps and losses, its errors, and the exemplars it keeps."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clbench.avalanche.imports import AvalancheDataset, SupervisedPlugin, SupervisedTemplate
from clbench.config.errors import RunError
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Strategy
from clbench.results.record import EpochRecord
from clbench.tools.explain import is_device_error


class Recorder(SupervisedPlugin):  # type: ignore[misc]
    """Tells the run what Avalanche's loop does: steps, epochs, the loss."""

    def __init__(
        self,
        strategy: Strategy,
        after_step: Callable[[float | None], None],
        after_epoch: Callable[[EpochRecord], None],
    ) -> None:
        super().__init__()
        self.strategy, self.after_step, self.after_epoch = strategy, after_step, after_epoch
        self.records: list[EpochRecord] = []

    def before_training_epoch(self, learner: Any, *_: Any, **__: Any) -> None:
        """Begin to count the epoch."""
        progress = self.strategy.progress
        progress.epoch, progress.steps_per_epoch = len(self.records), len(learner.dataloader)
        progress.steps = learner.train_epochs * progress.steps_per_epoch
        progress.learning_rate = learner.optimizer.param_groups[-1]["lr"]
        self.images, self.steps, self.loss, self.started = 0, 0, 0.0, time.perf_counter()

    def after_training_iteration(self, learner: Any, *_: Any, **__: Any) -> None:
        """Count a step; the mean loss is read every 50."""
        progress = self.strategy.progress
        self.images += len(learner.mb_y)
        self.steps += 1
        progress.step += 1
        self.loss += learner.loss.detach()
        self.after_step(self._mean_loss() if self.steps % 50 == 0 else None)

    def after_training_epoch(self, learner: Any, *_: Any, **__: Any) -> None:
        """Record the epoch."""
        progress = self.strategy.progress
        record = EpochRecord(
            task=progress.task,
            stage=progress.stage,
            epoch=progress.epoch,
            steps=self.steps,
            lr=progress.learning_rate,
            lr_first=progress.learning_rate,
            seconds=time.perf_counter() - self.started,
            images=self.images,
            replayed=0,
            losses={"loss": self._mean_loss()},
        )
        self.records.append(record)
        self.after_epoch(record)

    def _mean_loss(self) -> float:
        loss, progress = float(self.loss) / max(self.steps, 1), self.strategy.progress
        if not math.isfinite(loss):
            remedy = "lower lr or other options" if self.strategy.config.strategy_options else "lower lr"
            raise RunError(
                f"the loss is {loss} in task {progress.task}, epoch {progress.epoch} of {options(self.strategy)}; a "
                f"{remedy} may help"
            )
        return loss


def options(strategy: Strategy) -> str:
    """Return the name of a strategy with all its options, as text."""
    values = strategy.config.strategy_options.items()
    return f"{strategy.config.strategy}[{','.join(f'{name}={value}' for name, value in values)}]".removesuffix("[]")


@contextmanager
def told(strategy: Strategy) -> Iterator[None]:
    """Turn what Avalanche's code raises into a RunError that names the options."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:  # of any kind
        if is_device_error(error):
            raise
        first, *_ = str(error).strip().splitlines() or [""]
        wrong = f"{type(error).__name__}: {first}".removesuffix(": ")
        raise RunError(f"Avalanche's own code fails with {options(strategy)}: {wrong}") from error


def kept_exemplars(learner: Any, scenario: Scenario) -> tuple[list[int], list[int]]:
    """Return ids and classes of the samples that Avalanche keeps; ids are -1 where it keeps copies of images."""
    kept: list[int] = []
    classes: list[int] = []
    of_output = dict(enumerate(scenario.class_order))
    for owner in (*learner.plugins, learner):
        buffer = getattr(getattr(owner, "storage_policy", None), "buffer", None)
        if buffer is not None and hasattr(buffer, "sample_ids"):
            kept = list(buffer.sample_ids)
            classes = scenario.train.classes[kept].tolist()
            break
        if hasattr(owner, "y_memory"):
            # iCaRL keeps copies of images, without their ids.
            classes = [of_output[int(y)] for of_class in owner.y_memory for y in of_class]
            kept = [-1] * len(classes)
            break
    return kept, classes


def held(value: Any, seen: set[int]) -> Iterable[Tensor]:
    """Walk over the tensors that Avalanche's objects hold, each once; samples of data sets count as uint8 images."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from (t for t in value.state_dict(keep_vars=True).values() if isinstance(t, Tensor))
    elif isinstance(value, AvalancheDataset):
        if len(value):
            yield torch.empty(len(value), *value[0][0].shape, dtype=torch.uint8, device="meta")
    elif isinstance(value, dict):
        for item in value.values():
            yield from held(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from held(item, seen)
    elif type(value).__module__.startswith("avalanche.") and not isinstance(value, SupervisedTemplate):
        yield from held(vars(value), seen)
