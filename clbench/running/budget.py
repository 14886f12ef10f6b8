"""A budget of bytes: the memory of exemplars gets what network and extras leave of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import torch

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.scenario import ImageSet, Scenario
from clbench.learning.strategy import Stage
from clbench.learning.trainer import Trainer
from clbench.results.record import EpochRecord, LedgerRecord
from clbench.running.resolve import strategy_class

# Training images of each class in a rehearsal, so that a memory of two exemplars for each class is filled.
FEW = 4


class OneStep(Trainer):
    """Fits each stage by a single step, after which a strategy keeps what it keeps."""

    def fit(self, stage: Stage, **named: Any) -> list[EpochRecord]:
        """Take one step."""
        return super().fit(replace(stage, epochs=None, iterations=1, watched=False), **named)


def sized(
    config: RunConfig, scenario: Scenario, rehearse: Callable[[RunConfig, Scenario], Sequence[LedgerRecord]]
) -> RunConfig:
    """Return the config with the number of exemplars that its budget of bytes pays for; as it is without such a budget.

    The bytes are those of the ledger after the task in which they are most: network, exemplars as uint8 images, and
    all else that the strategy keeps (model, exemplars and extras of Zhou et al. 2023, arXiv:2205.13218). The ledger is
    that of two rehearsals on a few images of each class, with a small memory and with one twice as large.

    rehearse: does a run, a step in each stage, and returns its ledger.

    Raises ConfigError where more is kept without exemplars, or with a single one where the strategy lives on them.
    """
    budget, kind = config.training.budget_in("bytes"), strategy_class(config.strategy, config.code)
    if budget is None or config.memory.size is not None:
        return config
    few = _few(scenario)
    policy = kind.traits.memory_policy if kind.traits.needs_memory else None
    still = {"lr": 1e-12, "patience": None, "eval_every": "task", "device": "cpu"}
    short = config.replace(budget=None, **still)
    sizes = [n * len(scenario.class_order) for n in (1, 2)] if policy else [0]
    ledgers = [rehearse(short.replace(memory_size=n or None, memory_policy=policy), few) for n in sizes]
    held = [[entry.items.get("exemplars", 0) for entry in ledger] for ledger in ledgers]
    others = [
        [sum(n for name, n in entry.bytes.items() if name != "exemplars") for entry in ledger] for ledger in ledgers
    ]
    more = held[-1][-1] - held[0][-1]
    beside_each = ceil((others[-1][-1] - others[0][-1]) / more) if more else 0
    fixed = max(n - beside_each * m for n, m in zip(others[0], held[0], strict=True))
    each = scenario.train.images[0].nbytes + beside_each
    needed = fixed + (each if policy else 0)
    if needed > budget:
        with_one = f", of which one exemplar takes {each:,}" if policy else " without exemplars"
        raise ConfigError(
            f"budget=bytes={budget} given, and {config.strategy} keeps {needed:,} bytes{with_one}; "
            f"bytes={needed} or more is accepted"
        )
    if policy is None:
        return config
    n_images = sum(len(task.train) for task in scenario.tasks)
    return config.replace(memory_size=min((budget - fixed) // each, n_images), memory_policy=policy)


def _few(scenario: Scenario) -> Scenario:
    """Return a scenario whose tasks have a few images of each of their classes."""
    tasks = [
        replace(task, train=_some(task.train, FEW), validation=_some(task.validation, 2), test=_some(task.test, 1))
        for task in scenario.tasks
    ]
    return replace(scenario, tasks=tasks)


def _some(data: ImageSet, n: int) -> ImageSet:
    """Return the first n samples of each class."""
    classes = data.classes
    places = [torch.nonzero(classes == c).flatten()[:n] for c in classes.unique().tolist()]
    return data.subset(torch.cat(places)) if places else data
