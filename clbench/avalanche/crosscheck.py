"""Our strategies beside Avalanche's: the same scenario, network, seeds and budget, and where definitions differ."""

import functools
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from clbench.config.errors import ConfigError, RunError, unknown
from clbench.many.execution import Request, plan_requests, seed_list
from clbench.many.planned import PlannedRun
from clbench.results.result import Result
from clbench.results.statistics import Paired, paired


@dataclass(frozen=True)
class Pair:
    """Two implementations of one method: specs of strategies, a `{memory}` among them, and how they differ.

    shared: options that both need, as Avalanche's allows nothing else. task: what differs in the task-incremental
    setting besides.
    """

    ours: str
    theirs: str
    differs: str
    shared: dict[str, Any] = field(default_factory=dict)
    task: str = ""


@functools.cache
def pairs() -> dict[str, Pair]:
    """Return the pairs of pairs.toml by the name of the method."""
    text = resources.files("clbench.avalanche").joinpath("pairs.toml").read_text("utf-8")
    return {name: Pair(**values) for name, values in tomllib.loads(text).items()}


@dataclass(frozen=True)
class CrossCheck:
    """One method: average accuracies of both by seed, and their paired difference, ours minus Avalanche's."""

    method: str
    ours: dict[int, float]
    theirs: dict[int, float]
    paired: Paired
    differs: str


def plan_crosscheck(
    methods: Sequence[str],
    scenario: str = "split-mnist-5k",
    *,
    seeds: int | Sequence[int] = 5,
    out: str | os.PathLike[str] = "runs",
    **options: Any,
) -> dict[str, tuple[list[PlannedRun], list[PlannedRun]]]:
    """Return for each method the runs of ours and of Avalanche's, all checked; raises ConfigError."""
    for method in methods:
        if method not in pairs():
            raise unknown("method to cross-check", method, pairs())
    if len(set(methods)) < len(methods):
        raise ConfigError("a method was given twice; once is accepted")
    if "seed" in options:
        raise ConfigError(f"seed={options['seed']!r}: a cross-check takes seeds, a number of them or a list")
    memory = options.pop("memory_size", None) or _usual_memory(scenario)
    found = {}
    for method in methods:
        pair = pairs()[method]
        both = []
        for spec in (pair.ours, pair.theirs):
            asked = {"threads": 1} | pair.shared | options
            requests = [
                Request(scenario, spec.format(memory=memory), {**asked, "seed": seed}) for seed in seed_list(seeds)
            ]
            both.append(plan_requests(requests, out))
        found[method] = (both[0], both[1])
    return found


def rows(planned: dict[str, tuple[list[PlannedRun], list[PlannedRun]]]) -> list[CrossCheck]:
    """Return a row per method from its finished runs."""
    made = []
    for method, (ours, theirs) in planned.items():
        own, other = ({run.config.seed: _accuracy(run) for run in runs} for runs in (ours, theirs))
        keys = [{(seed, None): value for seed, value in of.items()} for of in (own, other)]
        pair, config = pairs()[method], ours[0].config
        differs = f"{pair.differs}; {pair.task}" if pair.task and config.setting == "task" else pair.differs
        made.append(CrossCheck(method, own, other, paired(keys[0], keys[1]), differs))
    return made


def as_dict(row: CrossCheck) -> dict[str, Any]:
    """Return a row as plain values, accuracies in [0, 1]."""
    found = row.paired
    return {
        "method": row.method,
        "n": found.n,
        "ours": sum(row.ours.values()) / len(row.ours),
        "avalanche": sum(row.theirs.values()) / len(row.theirs),
        "difference": found.difference,
        "low": None if found.interval is None else found.interval.low,
        "high": None if found.interval is None else found.interval.high,
        "differs": row.differs,
    }


def _accuracy(run: PlannedRun) -> float:
    value = Result.load(run.folder).metrics["average_accuracy"]
    if value is None:
        raise RunError(f"{run.folder}: the run has no average accuracy, so there is nothing to compare")
    return value


def _usual_memory(scenario: str) -> int:
    from clbench.running.resolve import parse_scenario, scenario_class

    memory: int = scenario_class(parse_scenario(scenario)[0]).preset.get("memory_size", 200)
    return memory
