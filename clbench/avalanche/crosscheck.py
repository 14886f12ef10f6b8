"""Our strategies beside Avalanche's: the same scenario, network, seeds and budget, and where definitions differ."""

import functools
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
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
class Planned:
    """The runs of one method: ours and Avalanche's with every seed, and fine-tuning by each with the first seed.

    fine_tuning is empty where the method is fine-tuning itself.
    """

    ours: list[PlannedRun]
    theirs: list[PlannedRun]
    fine_tuning: list[PlannedRun]

    @property
    def runs(self) -> list[PlannedRun]:
        """All of them."""
        return [*self.ours, *self.theirs, *self.fine_tuning]


@dataclass(frozen=True)
class CrossCheck:
    """One method: average accuracies of both by seed, and their paired difference, ours minus Avalanche's.

    fine_tuning: those of "ours" and "avalanche" whose weights end as those of fine-tuning, to the bit.
    """

    method: str
    ours: dict[int, float]
    theirs: dict[int, float]
    paired: Paired
    differs: str
    fine_tuning: list[str]


def plan_crosscheck(
    methods: Sequence[str],
    scenario: str = "split-mnist-5k",
    *,
    seeds: int | Sequence[int] = 5,
    out: str | os.PathLike[str] = "runs",
    **options: Any,
) -> dict[str, Planned]:
    """Return the runs of each method, all checked; raises ConfigError."""
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
        pair, naive = pairs()[method], pairs()["naive"]
        asked = {"threads": 1} | pair.shared | options
        ours, theirs = (
            plan_requests(
                [Request(scenario, spec.format(memory=memory), {**asked, "seed": seed}) for seed in seed_list(seeds)],
                out,
            )
            for spec in (pair.ours, pair.theirs)
        )
        specs = [] if pair is naive else [naive.ours, naive.theirs]
        first = {**asked, "seed": seed_list(seeds)[0]}
        found[method] = Planned(ours, theirs, plan_requests([Request(scenario, spec, first) for spec in specs], out))
    return found


def rows(planned: dict[str, Planned]) -> list[CrossCheck]:
    """Return a row per method from its finished runs."""
    made = []
    for method, of_method in planned.items():
        ours, theirs = of_method.ours, of_method.theirs
        own, other = ({run.config.seed: _accuracy(run) for run in runs} for runs in (ours, theirs))
        keys = [{(seed, None): value for seed, value in of.items()} for of in (own, other)]
        pair, config = pairs()[method], ours[0].config
        differs = f"{pair.differs}; {pair.task}" if pair.task and config.setting == "task" else pair.differs
        firsts = zip(("ours", "avalanche"), (ours[0], theirs[0]), of_method.fine_tuning, strict=False)
        same = [side for side, run, naive in firsts if same_weights(run.folder, naive.folder)]
        if same:
            who = " and ".join({"ours": "ours", "avalanche": "Avalanche's"}[side] for side in same)
            end = "end" if len(same) > 1 else "ends"
            differs = (
                f"{who} {end} with the weights of fine-tuning, to the bit (seed {config.seed}): nothing was done "
                "against forgetting, so the difference is no matter of definitions"
            )
        made.append(CrossCheck(method, own, other, paired(keys[0], keys[1], bounds=(-1, 1)), differs, same))
    return made


def same_weights(one: Path, other: Path) -> bool:
    """Whether two finished runs, given by their folders, end with the same weights, to the bit."""
    import torch

    weights = [torch.load(folder / "model.pt", map_location="cpu", weights_only=True) for folder in (one, other)]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(value, weights[1][name]) for name, value in weights[0].items()
    )


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
        "fine_tuning": row.fine_tuning,
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
