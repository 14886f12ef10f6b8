"""The parts of a run that Avalanche's loop is given: the task, the network, the optimizer, the random streams."""

import random
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clbench.avalanche.constructors import parameters_of
from clbench.avalanche.imports import (
    DataAttribute,
    DatasetExperience,
    EvaluationPlugin,
    MultiTaskModule,
    SynapticIntelligencePlugin,
    TaskAwareSupervisedClassificationDataset,
    TransformGroups,
    _make_taskaware_tensor_classification_dataset,
)
from clbench.data.augment import AUGMENTATIONS
from clbench.data.scenario import Scenario, Task
from clbench.learning.strategy import Strategy
from clbench.learning.trainer import seed_global_stream
from clbench.models.network import Network


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
    augment = AUGMENTATIONS[strategy.config.data.augment]
    if augment is None:
        return None
    black = strategy.normalize(torch.zeros(1, *strategy._context.scenario.image_shape, device=strategy.device)).cpu()
    if strategy.config.data.normalize == "pixel-mean":
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
        """Map images to logits, float [B, outputs], masked by the samples' tasks; without labels for every task."""
        if task_labels is None:
            return self.forward_all_tasks(images)
        logits = self.network(images)
        return logits.masked_fill(~self.own[task_labels, : logits.shape[1]], -1000.0)

    def forward_single_task(self, images: Tensor, task_label: int) -> Any:
        """Map images to logits, float [B, outputs], masked by one task."""
        return self.forward(images, task_label)


class Features(nn.Module):
    """The network up to its head, as iCaRL wants it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float [B, C, H, W], to float [B, feature_dim]."""
        return self.network.features(images)


def learner_of(strategy: Strategy, template: Any) -> Any:
    """Return Avalanche's own object for the strategy, filled from the run."""
    config, setting = strategy.config, strategy.setting
    scenario = strategy._context.scenario
    network = TaskOutputs(strategy.model, scenario).to(strategy.device) if setting == "task" else strategy.model
    given = {
        "model": network,
        "feature_extractor": Features(strategy.model),
        "classifier": strategy.model.head,
        "optimizer": optimizer_of(strategy),
        "criterion": nn.CrossEntropyLoss(),
        "buffer_transform": augmentation(strategy),
        "train_mb_size": config.training.batch_size,
        "train_epochs": config.training.epochs,
        "eval_mb_size": config.training.batch_size,
        "device": strategy.device,
        "plugins": [],
        "evaluator": EvaluationPlugin(),
        "eval_every": -1,
        "mem_size": config.memory.size,
        "memory_size": config.memory.budget,
        "fixed_memory": config.memory.size is not None,
    }
    own = {name: getattr(strategy, name) for name in strategy._options.model_fields}
    accepted = parameters_of(template)
    return template(**{name: value for name, value in (given | own).items() if name in accepted})


def optimizer_of(strategy: Strategy) -> torch.optim.Optimizer:
    """Return a fresh optimizer of the run's kind for the network."""
    config, parameters = strategy.config, strategy.model.parameters()
    if config.training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.training.scaled_lr,
            momentum=config.training.momentum,
            nesterov=config.training.nesterov,
            weight_decay=config.training.weight_decay,
        )
    kind = torch.optim.Adam if config.training.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.training.scaled_lr, weight_decay=config.training.weight_decay)


def unprotected(strategy: Any) -> str:
    """Return a sentence about the weights that Avalanche's synaptic intelligence can't protect; "" where it can.

    In Avalanche 0.6.0 the plugin keeps `param.detach().cpu().flatten()`. On a CPU that is a view of every weight whose
    memory is in order, so the weights before a step equal those after it, and the path integral and the distance from
    the old weights are both 0. The installed plugin is asked, since another version may copy.
    """
    plugin = next((p for p in strategy.learner.plugins if isinstance(p, SynapticIntelligencePlugin)), None)
    if plugin is None:
        return ""
    kept: dict[str, Any] = defaultdict(types.SimpleNamespace)
    plugin.extract_weights(strategy.model, kept, plugin.excluded_parameters)
    weights = dict(strategy.model.named_parameters())
    views = [name for name, copy in kept.items() if copy.data.data_ptr() == weights[name].data_ptr()]
    if not views:
        return ""
    what = "this run is fine-tuning" if len(views) == len(kept) else f"nothing protects {', '.join(views)}"
    return (
        f"{what}: on a CPU Avalanche keeps a view of the weights where it means a copy, so their path integral is "
        "always 0; a CUDA device, or si, does what the method says"
    )


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
