"""What Avalanche's loop is given of a run, and what it tells: the task, the network, the streams, steps and losses."""

import math
import random
import time
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clbench.augment import AUGMENTATIONS
from clbench.avalanche import (
    AvalancheDataset,
    DataAttribute,
    DatasetExperience,
    MultiTaskModule,
    SupervisedPlugin,
    SupervisedTemplate,
    TaskAwareSupervisedClassificationDataset,
    TransformGroups,
    _make_taskaware_tensor_classification_dataset,
)
from clbench.errors import RunError
from clbench.explain import is_device_error
from clbench.models.network import Network
from clbench.scenario import Scenario, Task
from clbench.strategy import Strategy, Watch
from clbench.trainer import seed_global_stream


class Experience(DatasetExperience):  # type: ignore[misc]
    """One task, with what Avalanche's strategies read of a benchmark: head outputs in order of appearance."""

    def __init__(self, data: Any, task: Task, label: int, strategy: Strategy) -> None:
        super().__init__(dataset=data, current_experience=task.index)
        tasks = strategy._context.scenario.tasks
        self.task_label, self.task_labels = label, [label]
        self.classes_in_this_experience = data.targets.uniques
        self.benchmark = types.SimpleNamespace(
            n_classes_per_exp=[len(t.classes) for t in tasks],
            classes_order=[output for t in tasks for output in range(t.outputs.start, t.outputs.stop)],
        )


def experience(strategy: Strategy, task: Task) -> Experience:
    """Return the task as Avalanche sees it: normalised images, head outputs as targets, augmented in training."""
    images = torch.cat([batch.images.cpu() for batch in strategy.passes(task.train)])
    labels = task.train.labels
    label = task.index if strategy.setting == "task" else 0
    data = _make_taskaware_tensor_classification_dataset(images, labels, targets=labels.tolist(), task_labels=label)
    groups = TransformGroups({"train": augmentation(strategy), "eval": None})
    ids = DataAttribute(task.train.ids.tolist(), "sample_ids")
    seen = TaskAwareSupervisedClassificationDataset([data], data_attributes=[ids], transform_groups=groups)
    return Experience(seen, task, label, strategy)


def augmentation(strategy: Strategy) -> Callable[[Tensor], Tensor] | None:
    """Return the run's augmentation for one normalised image, drawing from torch's global stream."""
    augment = AUGMENTATIONS[strategy.config.augment]
    if augment is None:
        return None
    black = strategy.normalize(torch.zeros(1, *strategy._context.scenario.image_shape, device=strategy.device)).cpu()
    if strategy.config.normalize == "pixel-mean":
        black = torch.zeros_like(black)

    def augmented(image: Tensor) -> Tensor:
        # What a crop adds at the border is a pixel of 0 before normalisation.
        return (augment(image[None] - black, torch.default_generator) + black)[0]

    return augmented


class TaskOutputs(MultiTaskModule):  # type: ignore[misc]
    """The network in the task-incremental setting: the outputs of a sample's own task compete.

    The others get -1000, as in Avalanche's own multi-head classifier: some strategies square them.
    """

    def __init__(self, network: Network, scenario: Scenario) -> None:
        super().__init__()
        self.network = network
        own = torch.zeros(len(scenario.tasks), scenario.n_outputs, dtype=torch.bool)
        for task in scenario.tasks:
            own[task.index, task.outputs] = True
        self.register_buffer("own", own, persistent=False)

    def forward(self, images: Tensor, task_labels: Tensor | int | None) -> Any:
        if task_labels is None:
            return self.forward_all_tasks(images)
        logits = self.network(images)
        return logits.masked_fill(~self.own[task_labels, : logits.shape[1]], -1000.0)

    def forward_single_task(self, images: Tensor, task_label: int) -> Any:
        return self.forward(images, task_label)


class Features(nn.Module):
    """The network up to its head, as iCaRL wants it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


class Recorder(SupervisedPlugin):  # type: ignore[misc]
    """Tells the run what Avalanche's loop does: steps, epochs, the loss."""

    def __init__(self, strategy: Strategy, watch: Watch) -> None:
        super().__init__()
        self.strategy, self.watch = strategy, watch
        self.records: list[dict[str, Any]] = []

    def before_training_epoch(self, learner: Any, *_: Any, **__: Any) -> None:
        progress = self.strategy.progress
        progress.epoch, progress.steps_per_epoch = len(self.records), len(learner.dataloader)
        progress.learning_rate = learner.optimizer.param_groups[-1]["lr"]
        self.images, self.steps, self.loss, self.started = 0, 0, 0.0, time.perf_counter()

    def after_training_iteration(self, learner: Any, *_: Any, **__: Any) -> None:
        progress = self.strategy.progress
        self.images += len(learner.mb_y)
        self.steps += 1
        progress.step += 1
        self.loss += learner.loss.detach()
        self.watch.after_step(self._mean_loss() if self.steps % 50 == 0 else None)
        self.watch.at_rest(False)

    def after_training_epoch(self, learner: Any, *_: Any, **__: Any) -> None:
        progress = self.strategy.progress
        record = {
            "task": progress.task,
            "stage": progress.stage,
            "epoch": progress.epoch,
            "steps": self.steps,
            "lr": progress.learning_rate,
            "seconds": time.perf_counter() - self.started,
            "images": self.images,
            "replayed": 0,
            "losses": {"loss": self._mean_loss()},
        }
        self.records.append(record)
        self.watch.after_epoch(record)

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


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every stream that Avalanche draws from; Python's and numpy's are put back (torch's the run puts back)."""
    python, numpy = random.getstate(), np.random.get_state()
    seed_global_stream(seed, device)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


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
