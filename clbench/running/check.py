"""Checks that refuse a run before any training, once config, scenario and strategy are known together."""

from clbench.config.errors import ConfigError, shown
from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.compiled import refuse_compiled
from clbench.learning.strategy import Strategy, call_hook, initial_model
from clbench.learning.trainer import backbone_below
from clbench.running.blame import run_error


def check_model(config: RunConfig, scenario: Scenario) -> None:
    """Refuse a model that can't be built, given its weights or trained in part as asked; raises ConfigError."""
    backbone_below(initial_model(config, scenario.image_shape, 0), config.training.train)


def check(config: RunConfig, scenario: Scenario, strategy: Strategy) -> None:
    """Refuse, before any training, what only scenario and config together show; raises ConfigError."""
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
    refuse_compiled(config, type(strategy))
    if config.per_task is not None and len(config.per_task) != len(scenario.tasks):
        n = len(scenario.tasks)
        raise ConfigError(f"per_task has {len(config.per_task)} tables for {n} tasks; one for each task is accepted")
    if scenario.blurred:
        if scenario.setting == "class" and config.training.loss_outputs != "all":
            raise ConfigError(
                f"loss_outputs={config.training.loss_outputs!r}: classes of later tasks come early where tasks are "
                "blurry; loss_outputs='all' with head='full' is accepted"
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
        raise ConfigError(
            f"patience and schedule='plateau' watch validation splits, and task {unheld[0]} has none; give it one"
        )
    if config.training.drop_last and n < config.training.batch_size:
        raise ConfigError(
            f"batch_size={config.training.batch_size} with drop_last leaves no batch of the {n} training images of "
            f"task {smallest.index}; at most {n} is accepted"
        )
