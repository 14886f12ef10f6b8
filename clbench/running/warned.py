"""Warnings for the reader of a run's numbers about how they came about: a rule and a sentence each."""

import math
from collections.abc import Iterator

from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Strategy
from clbench.models import model_class
from clbench.results.record import Warned


def warning(config: RunConfig, rule: str, text: str) -> Warned:
    """Return a warning about a run."""
    return Warned(rule=rule, text=f"{config.label}: {text}")


def run_warnings(config: RunConfig, scenario: Scenario, strategy: Strategy) -> list[Warned]:
    """Return what a reader of the numbers should know about how they came about."""
    found = [warning(config, rule, text) for rule, text in _about_this_run(config, scenario, strategy)]
    # Words that are the same for all strategies, so that a comparison says them once.
    if n := len(scenario.left_out):
        more = ", ..." if n > 3 else ""
        text = f"{n} image files can't be used and were left out: {', '.join(scenario.left_out[:3])}{more}"
        found.append(Warned(rule="files-left-out", text=text))
    if scenario.test is scenario.train:
        text = "Accuracies are on training images; they say nothing about new ones"
        found.append(Warned(rule="evaluated-on-training-data", text=text))
    if scenario.setting == "task" or strategy.traits.needs_task_at_test:
        text = (
            "The task of each test image is given, so its classes alone compete; such accuracies don't compare with "
            "class-incremental ones"
        )
        found.append(Warned(rule="task-given-at-test", text=text))
    return found


def _about_this_run(config: RunConfig, scenario: Scenario, strategy: Strategy) -> Iterator[tuple[str, str]]:
    traits, memory, training = strategy.traits, config.memory, config.training
    if traits.family == "regularisation" and scenario.setting == "class" and not memory.budget:
        yield (
            "regularisation-in-class-incremental",
            "methods that only regularise weights are not expected to help in class-incremental scenarios; judge them "
            "in task-incremental ones",
        )
    if traits.needs_memory and not memory.budget:
        yield "no-memory", "lives on a memory, and its memory has no room: --memory-size or --memory-per-class gives it"
    if config.evaluation.anytime is not None and not traits.learns_as_it_comes:
        text = "does not learn the samples as they come, so it is tested after each task alone, and not at any time"
        yield "no-anytime-accuracy", text
    if (config.tuned_by or "").startswith("oracle"):
        yield (
            "tuned-by-oracle",
            "hyper-parameters chosen by an oracle, on the validation data of all tasks, which no learner of the stream "
            "has at once",
        )
    if traits.data_access == "all" and traits.family != "reference":
        yield "all-past-data", "reads the data of all tasks so far, as for class means: a reference, no competitor"
    if _only_augmentation_keeps_features_from_the_cache(config, strategy):
        text = f"augment={config.data.augment} lets the frozen network see each image anew in every step"
        yield "augmented-features", f"{text}; with augment=none its features are computed once"
    drops = training.milestones or ([training.step_epochs] if training.step_epochs else [])
    # A budget of FLOPs is not known in epochs.
    if drops and training.budget_in("flops") is None:
        # With a number of iterations the smallest task sees most epochs.
        smallest = min(len(task.train) for task in scenario.tasks)
        epochs = training.epochs or math.ceil((training.iterations or 1) / math.ceil(smallest / training.batch_size))
        length = epochs * (len(scenario.tasks) if training.schedule_scope == "run" else 1)
        if late := [str(epoch) for epoch in drops if epoch >= length]:
            text = f"the learning rate is not lowered at epoch {', '.join(late)}, since training ends after {length}"
            yield "milestones-not-reached", text
    n = len(scenario.class_order)
    if memory.size and memory.size < n:
        yield (
            "memory-smaller-than-classes",
            f"a memory of {memory.size} can't hold one exemplar of each of {n} classes",
        )


def _only_augmentation_keeps_features_from_the_cache(config: RunConfig, strategy: Strategy) -> bool:
    if not config.engine.cache_features or config.model.weights is None or strategy.frozen_features(config):
        return False
    without = strategy.frozen_features(config.replace(augment="none"))
    return without and model_class(config.model.name, config.code).takes_pixels
