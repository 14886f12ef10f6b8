"""compare(): strategies x seeds on one scenario, with the same budget, in one process or several."""

import os
from collections.abc import Sequence
from typing import Any

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError
from clbench.config.registry import entry_point_names
from clbench.data.scenario import Scenario
from clbench.data.spec import ScenarioSpec
from clbench.learning.strategy import Strategy
from clbench.many.execution import Request, lives_on_memory, plan_requests, raise_first_failure, run_shown, seed_list
from clbench.many.planned import PlannedRun
from clbench.models import model_class
from clbench.results.result import Result
from clbench.running.resolve import resolve, strategy_class

MEMORY_OPTIONS = ("memory_size", "memory_per_class", "memory_policy")


@checked
def plan(
    scenario: str | os.PathLike[str] | Scenario | type[ScenarioSpec],
    strategies: str | type[Strategy] | Sequence[str | type[Strategy]],
    *,
    out: str | os.PathLike[str] = "runs",
    **options: Any,
) -> list[PlannedRun]:
    """Return the runs of a comparison, all checked before any is started; see requests(). Raises ConfigError."""
    return plan_requests(requests(scenario, strategies, **options), out)


def requests(
    scenario: str | os.PathLike[str] | Scenario | type[ScenarioSpec],
    strategies: str | type[Strategy] | Sequence[str | type[Strategy]],
    *,
    seeds: int | Sequence[int] = 5,
    references: bool = True,
    **options: Any,
) -> list[Request]:
    """Return what the words of a comparison ask of each of its runs; raises ConfigError.

    strategies: those that are compared, or a single one.
    seeds: a number of seeds (0, 1, ...), or the seeds.
    references: add the registered references that are not named.
    A memory option goes to the strategies that need a memory; the others take one only in their brackets. Where no
    strategy trains the backbone of a pre-trained network, the references that are added train its head alone, too.
    """
    if "seed" in options:
        raise ConfigError(f"seed={options['seed']!r}: a comparison takes seeds, a number of them or a list")
    seeds = seed_list(seeds)
    strategies = [strategies] if isinstance(strategies, str | type) else strategies
    if not strategies:
        raise ConfigError("no strategy is given; one or more are accepted")
    named = [s if isinstance(s, type) or ".py:" in s else s.replace(" ", "") for s in strategies]
    added = [name for name in entry_point_names("clbench.references") if name not in named] if references else []
    # The lower reference goes first: the one that sees no more than the strategies do.
    added.sort(key=lambda name: strategy_class(name).traits.data_access == "all")
    options.setdefault("threads", 1)
    memory = {k: options.pop(k) for k in MEMORY_OPTIONS if options.get(k) is not None}
    if memory and not any(lives_on_memory(s) for s in named):
        raise ConfigError(f"{next(iter(memory))} is given, but none of the strategies needs a memory")
    asked = []
    for strategy in named:
        extra = memory if lives_on_memory(strategy) else {}
        asked += [Request(scenario, strategy, {**options, **extra, "seed": seed}) for seed in seeds]
    # All of a large network would take days, and is no reference for what leaves it as it is.
    alone = bool(added) and options.get("train") is None and all(map(_keeps_backbone, asked[:: len(seeds)]))
    head = "train=head" if options.get("augment") is not None else "train=head,augment=none"
    # Hyper-parameters are for the strategies that the caller named, not for the references added here.
    own = {**options, "strategy_options": None, "per_task": None, "tuned_by": None}
    for name in added:
        strategy = f"{name}[{head}]" if alone else name
        asked += [Request(scenario, strategy, {**own, "seed": seed}) for seed in seeds]
    return asked


def _keeps_backbone(request: Request) -> bool:
    """Whether a run leaves the backbone of a pre-trained network as it was given."""
    config = resolve(request.scenario, request.strategy, request.options, shared=True, elsewhere=True)
    if config.model.weights is None or not model_class(config.model.name, config.code).takes_pixels:
        return False
    strategy = strategy_class(config.strategy, config.code)(**config.strategy_options)
    return strategy.frozen_features(config.replace(augment="none"))


@checked
def compare(
    scenario: str | os.PathLike[str] | Scenario | type[ScenarioSpec],
    strategies: str | type[Strategy] | Sequence[str | type[Strategy]],
    *,
    seeds: int | Sequence[int] = 5,
    out: str | os.PathLike[str] = "runs",
    jobs: int = 1,
    references: bool = True,
    force: bool = False,
    track: str | None = None,
    seeds_together: bool = False,
    quiet: bool = False,
    **options: Any,
) -> list[Result]:
    """Run every strategy with every seed and return the results, strategy by strategy.

    scenario, strategies, options: as for `clbench.run`; one strategy or several.
    seeds: their number, or the seeds themselves.
    out: the folder that the runs' folders are in.
    jobs: how many processes work at the same time.
    references: whether `naive` and `joint` are run too.
    force: begin finished runs again; without it they are reused, and unfinished ones are continued.
    track: as for `clbench.run`.
    seeds_together: train all seeds of a strategy in one batched model.
    quiet: show no progress on stderr.

    Raises ConfigError before any training, and RunError at the end if a run failed.
    """
    planned = plan(scenario, strategies, seeds=seeds, out=out, references=references, **options)
    given = scenario if isinstance(scenario, Scenario) else None
    outcomes = run_shown(
        planned, quiet=quiet, scenario=given, jobs=jobs, force=force, track=track, seeds_together=seeds_together
    )
    raise_first_failure(list(outcomes))
    return [Result.load(item.folder) for item in planned]
