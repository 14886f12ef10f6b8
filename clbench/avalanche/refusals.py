"""Refusals of settings that Avalanche's strategies can't honour, and of options with which their code would fail."""

import importlib.util
from collections import Counter
from typing import Any

from clbench.avalanche.honoured import HONOURED
from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig, fields
from clbench.data.augment import ON_UINT8
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Strategy

# They copy the network, or its weights, before the first task, so its head can't grow.
FULL_HEAD = {"ICaRL", "GDumb", "CWRStar", "DER"}


def refuse(config: RunConfig, scenario: Scenario, name: str, kind: type[Strategy]) -> None:
    """Raise ConfigError for what Avalanche's `name`, as our strategy `kind`, has no place for."""
    if config.training.epochs is None and config.training.budget is None:
        raise ConfigError(f"{config.strategy} trains by epochs; give epochs, such as 1")
    for option, value in config.values().items():
        default = fields()[option].default
        if option not in HONOURED and value != default and (option, value) != ("checkpoint_every", "task"):
            raise ConfigError(f"{config.strategy} can't honour {option}={value}; leave it at {default}")
    if config.data.augment in ON_UINT8:
        raise ConfigError(
            f"{config.strategy} augments images that are normalised already, which augment={config.data.augment!r} "
            "can't; crop-flip, crop, flip and resized-crop-flip are accepted"
        )
    outputs = "all" if config.model.head == "full" and scenario.setting == "class" else "seen"
    if config.training.loss_outputs != outputs:
        raise ConfigError(
            f"{config.strategy} trains every output that the head has: loss_outputs={outputs!r} is accepted with "
            f"head={config.model.head!r}, and {config.training.loss_outputs!r} was given"
        )
    if name in FULL_HEAD and config.model.head != "full" and scenario.setting != "domain":
        more = ",loss_outputs=all" if scenario.setting == "class" else ""
        raise ConfigError(f"{config.strategy} can't work with a head that grows; head=full{more} is accepted")
    if name == "GEM" and importlib.util.find_spec("quadprog") is None:
        raise ConfigError(f"{config.strategy} needs the package quadprog; pip install quadprog brings it")
    if kind.traits.needs_memory and not config.memory.budget:
        raise ConfigError(f"{config.strategy} lives on a memory; give memory_size, such as 200")
    if config.memory.per_class and name != "ICaRL":
        raise ConfigError(f"{config.strategy} has no memory per class; memory_size is accepted")
    if config.memory.budget and config.memory.policy != kind.traits.memory_policy:
        raise ConfigError(f"{config.strategy} chooses its exemplars itself; leave out memory_policy")
    _refuse_options(config, scenario, name)
    if name == "ER_AML":
        _refuse_small_memory(config, scenario)


def _refuse_options(config: RunConfig, scenario: Scenario, name: str) -> None:
    """Raise ConfigError for options with which Avalanche's `name` would fail later, or leave out what it is for."""
    given: dict[str, Any] = config.strategy_options
    n, memory = len(scenario.tasks), config.memory.budget or 0
    lists = [option for option, value in given.items() if isinstance(value, list)]
    problems: list[tuple[str, bool, str]] = [
        # LwF's would end early; of SI's the last one goes on.
        *((o, len(given[o]) > n or (name == "LwF" and len(given[o]) < n), f"one for each of {n} tasks") for o in lists)
    ]
    if name == "EWC":
        online = given["mode"] == "online"
        accepted = f"{'a number' if online else 'none'} with mode={given['mode']}"
        problems.append(("decay_factor", online != (given["decay_factor"] is not None), accepted))
    if name == "AGEM":
        # The sample has equal parts of all tasks.
        problems.append(("sample_size", given["sample_size"] < n, f"at least {n}, the number of tasks,"))
    if name == "MIR":
        drawn = given["batch_size_mem"]
        problems.append(("subsample", given["subsample"] < drawn, f"at least {drawn}, batch_size_mem,"))
    if "batch_size_mem" in given:
        # With fewer images in the memory none of them is ever replayed.
        drawn, most = given["batch_size_mem"] or config.training.batch_size, memory - (name == "MIR")
        problems.append(("batch_size_mem", drawn > most, f"1 to {most} with memory_size={memory}"))
    for option, wrong, accepted in problems:
        if wrong:
            shown = "none" if given[option] is None else given[option]
            raise ConfigError(f"{config.strategy}: {option}={shown} given, {accepted} accepted")


def _refuse_small_memory(config: RunConfig, scenario: Scenario) -> None:
    """Raise ConfigError where a class has less than a batch in memory: ER_AML would look for a whole one for ever."""
    seen: Counter[int] = Counter()
    fewest = config.training.batch_size
    for task in scenario.tasks:
        seen.update(task.train.labels.tolist())
        if task.index > 0:
            fewest = min(fewest, config.memory.budget // len(seen), *seen.values())
    if fewest < config.training.batch_size:
        nearest = f"batch_size of at most {fewest}" if fewest else f"memory_size of at least {len(seen)}"
        raise ConfigError(
            f"{config.strategy} draws batch_size={config.training.batch_size} images of each class from its memory, "
            f"which comes to hold {fewest} of one; {nearest} is accepted"
        )
