"""Checks that refuse a run before any training, once config, scenario and strategy are known together."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from clbench.config.errors import ConfigError, shown
from clbench.config.run import RunConfig
from clbench.data.augment import ON_UINT8
from clbench.data.batches import Pipeline
from clbench.data.scenario import Images, Scenario
from clbench.learning.compiled import refuse_compiled
from clbench.learning.memory import MEMORIES
from clbench.learning.shared import refuse_shared
from clbench.learning.strategy import Strategy, call_hook, initial_model
from clbench.learning.trainer import backbone_below, refuse_single_image
from clbench.models import model_class
from clbench.models.network import check_network
from clbench.models.prompts import transformer
from clbench.running.blame import run_error
from clbench.running.group import refuse_devices


def check_model(config: RunConfig, scenario: Scenario) -> None:
    """Refuse a model that can't be built, given its weights or trained as asked, or lies about itself: ConfigError."""
    model = initial_model(config, scenario.image_shape, 0)
    few = Images(
        *(getattr(scenario.train, name)[_first(scenario)] for name in ("images", "labels", "classes", "tasks"))
    )
    pipeline = Pipeline(replace(scenario, train=few, test=few), config, torch.device("cpu"))
    check_network(model, pipeline.normalize(few.images[:]), config.model.name)
    backbone_below(model, config.training.train)


def first_images(pipeline: Pipeline) -> Tensor:
    """Return two training images as the network is given them, normalised float [2, C, H, W], on the device."""
    return pipeline.batch(_first(pipeline.scenario), slice(0), None).images


def _first(scenario: Scenario) -> Tensor:
    """Return the ids of the first and the last training image of the first task."""
    ids = scenario.tasks[0].train.ids
    return ids[[0, -1]]


def check(config: RunConfig, scenario: Scenario, strategy: Strategy) -> None:
    """Refuse, before any training, what only scenario and config together show; raises ConfigError."""
    if not scenario.of_images and model_class(config.model.name, config.code).takes_pixels:
        raise ConfigError(
            f"model={config.model.name!r} prepares images of bytes as its weights ask for, and the samples are floats; "
            "mlp and a network of your own are accepted"
        )
    if config.data.augment != "none" and len(scenario.image_shape) != 3:
        raise ConfigError(
            f"augment={config.data.augment} is for images [C, H, W], and the samples are {list(scenario.image_shape)}; "
            "none is accepted"
        )
    if config.data.augment in ON_UINT8 and not scenario.of_images:
        raise ConfigError(
            f"augment={config.data.augment} changes the colours of images of bytes, and the samples are floats; others "
            "and none are accepted"
        )
    if config.data.mixup and not strategy.traits.mixes:
        raise ConfigError(
            f"mixup={config.data.mixup:g} gives an image two labels, and {config.strategy} takes one; mixup=0 is "
            "accepted, and other strategies, such as naive, ewc, er and joint"
        )
    if config.data.mixup and config.training.batch_size == 1:
        raise ConfigError(
            f"mixup={config.data.mixup:g} mixes images of a batch, and batch_size=1 gives it one; 2 or more is accepted"
        )
    if strategy.traits.needs_transformer:
        transformer(config, scenario)
    try:
        call_hook(strategy, "check", config, scenario)
    except ConfigError:
        raise
    except Exception as error:  # whatever a strategy raises
        raise ConfigError(str(run_error(error, -1))) from error
    for name, value in config.strategy_options.items():
        if getattr(strategy, name, None) != value:
            raise ConfigError(
                f"{type(strategy).__name__}.__init__ does not keep {name}={shown(value)}; super().__init__(**options) "
                "does, and what is learnt begins in begin_run"
            )
    _refuse_single_images(config, scenario, strategy)
    rate = config.training.scaled_lr * max(1.0, config.training.backbone_lr_factor)
    if not math.isfinite(rate):
        raise ConfigError(
            f"lr={config.training.lr:g} scaled to the batch is {rate}; a finite learning rate is accepted"
        )
    refuse_compiled(config, type(strategy))
    if config.counts_flops and (config.engine.processes > 1 or config.engine.compile != "none"):
        name = "processes" if config.engine.processes > 1 else "compile"
        raise ConfigError(
            f"{name}={getattr(config.engine, name)} given, and FLOPs are counted in one process that compiles nothing; "
            f"{name}={type(config.engine).model_fields[name].default} is accepted"
        )
    refuse_devices(config)
    refuse_shared(config, scenario.image_shape)
    if config.per_task is not None and len(config.per_task) != len(scenario.tasks):
        n = len(scenario.tasks)
        raise ConfigError(f"per_task has {len(config.per_task)} tables for {n} tasks; one for each task is accepted")
    traits = strategy.traits
    if config.evaluation.anytime is not None and (scenario.setting == "task" or traits.needs_task_at_test):
        raise ConfigError(
            f"anytime={config.evaluation.anytime} tests among the classes seen so far, and {config.strategy} in a "
            f"{scenario.setting}-incremental scenario is told the task; leave it out"
        )
    if scenario.boundless:
        _refuse_boundaries(config, strategy)
    if scenario.blurred or scenario.boundless:
        if scenario.setting == "class" and config.training.loss_outputs != "all":
            raise ConfigError(
                f"loss_outputs={config.training.loss_outputs!r}: classes of later tasks come early where tasks are "
                "blurry, and at any time in a stream without boundaries; loss_outputs='all' with head='full' is "
                "accepted"
            )
        if config.memory.policy in ("herding", "herding-argmax"):
            raise ConfigError(
                f"memory_policy={config.memory.policy!r} of {config.label} needs each class in one task, and these "
                "tasks are blurry; 'balanced', 'random' and 'reservoir' are accepted"
            )
    smallest = min(scenario.tasks, key=lambda task: len(task.train))
    n = len(smallest.train)
    unheld = [task.index for task in scenario.tasks if not len(task.validation)]
    if config.training.watches_validation and unheld:
        watching = "patience" if config.training.patience is not None else "schedule='plateau'"
        raise ConfigError(
            f"{watching} watches a validation split, and task {unheld[0]} has none; give validation, such as 0.1"
        )
    if config.training.drop_last and n < config.training.batch_size:
        raise ConfigError(
            f"batch_size={config.training.batch_size} with drop_last leaves no batch of the {n} training images of "
            f"task {smallest.index}; at most {n} is accepted"
        )


def _refuse_boundaries(config: RunConfig, strategy: Strategy) -> None:
    """Refuse what would tell a strategy where a task begins or ends, in a stream that has no boundaries."""
    traits, training, memory = strategy.traits, config.training, config.memory
    stream = "a stream without boundaries (disjoint)"
    if traits.needs_boundaries:
        raise ConfigError(
            f"{config.strategy} acts where tasks begin or end, and {stream} does not tell it; strategies such as er, "
            "er-ace, derpp, scr and naive are accepted"
        )
    if memory.policy is not None and traits.memory != "own":
        if traits.memory != "replayed":
            raise ConfigError(
                f"{config.strategy} learns its exemplars with the next task, and {stream} has none; leave out "
                "memory_size and memory_per_class"
            )
        if not MEMORIES[memory.policy].streaming:
            raise ConfigError(
                f"memory_policy={memory.policy!r} chooses when a task ends, and {stream} does not tell it; 'reservoir' "
                "and 'balanced' are accepted"
            )
    restarts = training.schedule != "constant" and training.schedule_scope == "task"
    for wrong, given, accepted in (
        (training.budget_in("flops") is not None, f"budget={training.budget}", "a budget of bytes"),
        (training.epochs != 1, f"epochs={training.epochs}", "epochs=1"),
        (training.optimizer_state != "keep", "optimizer_state=reset", "optimizer_state=keep"),
        (restarts or training.lr_warmup > 0, "a schedule that begins again with each task", "schedule=constant"),
        (training.patience is not None, f"patience={training.patience}", "no early stopping"),
        (config.per_task is not None, "per_task", "one rate for all"),
    ):
        if wrong:
            raise ConfigError(f"{given} given, and {stream} is seen once, as one; {accepted} is accepted")


def _refuse_single_images(config: RunConfig, scenario: Scenario, strategy: Strategy) -> None:
    """Refuse a batch of one image where the network can't train on it."""
    traits, sizes = strategy.traits, [len(task.train) for task in scenario.tasks]
    # Later tasks have exemplars beside their image, or all earlier images.
    joined = traits.data_access == "all" or (traits.memory == "joined" and config.memory.budget)
    single = [task for task, n in enumerate(sizes) if n == 1 and not (task and joined)]
    if config.training.batch_size > 1 and not single:
        return
    if traits.family == "frozen" and config.model.weights is not None:
        return  # given features are not trained
    where = f"task {single[0]} has one training image" if single else "batch_size=1 given"
    refuse_single_image(config, scenario, where)
