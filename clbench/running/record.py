"""What a run writes down: its record, its warnings, and what its strategy keeps."""

import math
import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import nn

from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.evaluation import MATRICES
from clbench.learning.memory import Memory, quotas
from clbench.learning.strategy import Strategy
from clbench.results.result import SCHEMA_VERSION
from clbench.running.process import device_name

PACKAGES = ("torch", "torchvision", "numpy", "avalanche-lib")


def differences(begun: dict[str, Any], here: dict[str, Any]) -> str:
    """Return in what of clbench, torch and processor two records differ, as "torch 2.6, here 2.7"; "" for nothing."""
    named = {
        "clbench": [r["clbench"] for r in (begun, here)],
        "torch": [r["environment"]["packages"]["torch"] for r in (begun, here)],
        "processor": [r["environment"]["device"] for r in (begun, here)],
    }
    return "; ".join(f"{name} {then}, here {now}" for name, (then, now) in named.items() if then != now)


def new_record(config: RunConfig, scenario: Scenario, strategy: Strategy) -> dict[str, Any]:
    """Return the record of a run that has not learnt anything yet."""
    kind = type(strategy)
    n = len(scenario.tasks)
    empty: dict[str, Any] = {
        "class_incremental": [[None] * n for _ in range(n)],
        "task_aware": [[None] * n for _ in range(n)],
        "untrained": {"class_incremental": None, "task_aware": None},
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "clbench": metadata.version("clbench"),
        "status": "running",
        "identity": config.identity(),
        "group": config.identity(without_seed=True),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.flat(),
        "strategy": {
            "name": config.strategy,
            "label": config.label,
            "family": kind.traits.family,
            "reference": kind.traits.data_access == "all",
            "data_access": kind.traits.data_access,
            "features": _features(config, kind),
            "options": config.strategy_options,
            "paper": kind.traits.paper,
        },
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": device_name(config.engine.device),
            "threads": config.engine.threads,
            "packages": {name: metadata.version(name) for name in PACKAGES},
        },
        "scenario": {
            "name": scenario.name,
            "setting": scenario.setting,
            "class_names": list(scenario.class_names),
            "tasks": scenario.describe(),
        },
        "class_order": scenario.class_order,
        "learning_rate": config.training.scaled_lr,
        "headline": {
            "matrix": "task_aware" if scenario.setting == "task" else "class_incremental",
            "classifier": "linear",
        },
        "accuracy": empty,
        "classifiers": {},
        "correct": {matrix: [] for matrix in MATRICES},
        "confusion": None,
        "tasks": [],
        "training": [],
        "evaluations": [],
        "ledger": [],
        "resumes": [],
        "metrics": {},
        "metrics_task_aware": {},
        "warnings": run_warnings(config, scenario, strategy),
    }


def _features(config: RunConfig, kind: type[Strategy]) -> str | None:
    """Say where features come from that are not learnt from all tasks; None where they are."""
    if config.model.weights is not None:
        return f"start from {config.model.weights}"
    return "come from the first task" if kind.traits.family == "frozen" else None


def warning(config: RunConfig, rule: str, text: str) -> dict[str, str]:
    """Return a warning about a run, as run.json holds it."""
    return {"rule": rule, "text": f"{config.label}: {text}"}


def run_warnings(config: RunConfig, scenario: Scenario, strategy: Strategy) -> list[dict[str, str]]:
    """Return what a reader of the numbers should know about how they came about."""
    found = []
    if strategy.traits.family == "regularisation" and scenario.setting == "class" and not config.memory.budget:
        found.append(
            {
                "rule": "regularisation-in-class-incremental",
                "text": f"{config.label}: methods that only regularise weights are not expected to help in "
                "class-incremental scenarios; their strengths are tuned for task-incremental ones",
            }
        )
    if (config.tuned_by or "").startswith("oracle"):
        found.append(
            {
                "rule": "tuned-by-oracle",
                "text": f"{config.label}: hyper-parameters chosen by an oracle, on the validation data of all tasks, "
                "which no learner of the stream has at once",
            }
        )
    if scenario.setting == "task" or strategy.traits.needs_task_at_test:
        found.append(
            {
                "rule": "task-given-at-test",
                "text": "The task of each test image is given, so its classes alone compete; such accuracies don't "
                "compare with class-incremental ones",
            }
        )
    if strategy.traits.data_access == "all" and strategy.traits.family != "reference":
        found.append(
            {
                "rule": "all-past-data",
                "text": f"{config.label} reads the data of all tasks so far, as for class means: a reference, no "
                "competitor",
            }
        )
    if config.memory.size and config.memory.rounding == "ceil":
        n_classes = np.cumsum([len(task.classes) for task in scenario.tasks]).tolist()
        most = max(sum(quotas(n, config.memory.size, rounding="ceil")) for n in n_classes)
        if most > config.memory.size:
            found.append(
                {
                    "rule": "memory-above-budget",
                    "text": f"{config.label}: rounding up lets the memory hold up to {most} exemplars, above its "
                    f"{config.memory.size}",
                }
            )
    if config.evaluation.evaluate_on == "train":
        found.append(
            {
                "rule": "evaluated-on-training-data",
                "text": f"{config.label}: accuracies are on training images, as evaluate_on='train' asks; "
                "they say nothing about new ones",
            }
        )
    training = config.training
    if drops := training.milestones or ([training.step_epochs] if training.step_epochs else []):
        # With a number of iterations the smallest task sees most epochs.
        smallest = min(len(task.train) for task in scenario.tasks)
        epochs = training.epochs or math.ceil((training.iterations or 1) / math.ceil(smallest / training.batch_size))
        length = epochs * (len(scenario.tasks) if training.schedule_scope == "run" else 1)
        if late := [str(epoch) for epoch in drops if epoch >= length]:
            found.append(
                {
                    "rule": "milestones-not-reached",
                    "text": f"{config.label}: the learning rate is not lowered at epoch {', '.join(late)}, since "
                    f"training ends after {length}",
                }
            )
    n_classes = len(scenario.class_order)
    if config.memory.size and config.memory.size < n_classes:
        found.append(
            {
                "rule": "memory-smaller-than-classes",
                "text": f"{config.label}: a memory of {config.memory.size} can't hold one exemplar of each of "
                f"{n_classes} classes",
            }
        )
    return found


def measure(strategy: Strategy, scenario: Scenario) -> dict[str, dict[str, int]]:
    """Return the bytes and items that the strategy keeps from one task to the next, by the name of what is kept.

    Exemplars count as their images would, uint8, though only their ids are held.
    """
    size = scenario.train.images[0].numel()
    kept: dict[str, int] = {}
    items: dict[str, int] = {}
    for name, value in strategy.state().items():
        if isinstance(value, Memory):
            items["exemplars"], kept["exemplars"] = len(value), len(value) * size
        elif (n := _bytes(value)) or name == "model":
            kept[name] = n
        # Copies of images, wherever they are kept, are exemplars under another name.
        if copies := _images(value, scenario.image_shape):
            items["images"] = items.get("images", 0) + copies
    return {"bytes": kept, "items": items}


def above_budget(config: RunConfig, counts: dict[int, int], items: dict[str, int]) -> str | None:
    """Say in which way what was measured is more than the memory that a run was given; None where it is not.

    counts: exemplars of each class; items: what `measure` counted.
    """
    copies, held = items.get("images", 0), items.get("exemplars", 0)
    size, per_class = config.memory.size, config.memory.per_class
    budget = size or (per_class or 0) * len(counts)
    # Of what rounding up adds another sentence tells.
    most = budget if config.memory.rounding != "ceil" else max(budget, held)
    if copies and held + copies > budget:
        return f"{copies} copies of images are kept beside {held} exemplars, and the memory is of {budget}"
    if held > most or (per_class is not None and max(counts.values(), default=0) > per_class):
        return f"{held} exemplars are kept, and the memory is of {budget}"
    return None


def _images(value: Any, shape: tuple[int, int, int]) -> int:
    """Return how many images of a shape are in tensors outside of modules: [n, C, H, W], or uint8 [n, C * H * W]."""
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        flat = value.dtype == torch.uint8 and value.dim() == 2 and value.shape[1] == math.prod(shape)
        return len(value) if flat or (value.dim() == 4 and value.shape[1:] == shape) else 0
    if isinstance(value, dict):
        value = list(value.values())
    # One image of [C, H, W] is kept as soon as there are several of them.
    if isinstance(value, list | tuple):
        single = sum(isinstance(v, torch.Tensor) and v.shape == shape for v in value)
        return single + sum(_images(v, shape) for v in value)
    return 0


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, nn.Module):
        return sum(_bytes(v) for v in value.state_dict().values())
    if isinstance(value, dict):
        return sum(_bytes(v) for v in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes(v) for v in value)
    return 0
