"""compare(): strategies x seeds on one scenario, with the same budget, in one process or several."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clbench.config import RunConfig
from clbench.errors import ConfigError, RunError
from clbench.resolve import give, prepare, resolve, strategy_class
from clbench.result import Result
from clbench.runner import Observer, check, execute
from clbench.scenario import Scenario
from clbench.store import RunFolder, default_folder, make_folder
from clbench.strategy import Strategy

REFERENCES = ("naive", "joint")
MEMORY_OPTIONS = ("memory_size", "memory_per_class", "memory_policy")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison, complete and checked, the folder it goes to, and the class where one was handed over."""

    config: RunConfig
    folder: Path
    given: type[Strategy] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a planned run: its result, or the sentence that says why it failed."""

    planned: PlannedRun
    result: Result | None
    error: str | None = None


def plan(
    scenario: str | Scenario,
    strategies: Sequence[str | type[Strategy]],
    *,
    seeds: int | Sequence[int] = 5,
    out: str | os.PathLike[str] = "runs",
    references: bool = True,
    **options: Any,
) -> list[PlannedRun]:
    """Return the runs of a comparison, all checked before any is started; raises ConfigError.

    seeds: a number of seeds (0, 1, ...) or the seeds. references: add naive and joint where they are not named.
    A memory option goes to the strategies that live on a memory; others take one in their brackets only.
    """
    if "seed" in options:
        raise ConfigError(f"seed={options['seed']!r}: a comparison takes seeds, a number of them or a list")
    if isinstance(seeds, int):
        if isinstance(seeds, bool) or seeds < 1:
            raise ConfigError(f"seeds={seeds}: a number of at least 1, or a list of seeds, is accepted")
        seeds = range(seeds)
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ConfigError(f"seeds={','.join(map(str, seeds))}: at least one seed, each once, is accepted")
    named = [s if isinstance(s, type) or ".py:" in s else s.replace(" ", "") for s in strategies]
    added = [name for name in REFERENCES if name not in named] if references else []
    options.setdefault("threads", 1)
    memory = {k: options.pop(k) for k in MEMORY_OPTIONS if options.get(k) is not None}
    if memory and not any(_lives_on_memory(s) for s in named):
        raise ConfigError(f"{next(iter(memory))} is given, but none of the strategies lives on a memory")
    planned: list[PlannedRun] = []
    owner: dict[str, str] = {}
    for strategy in [*named, *added]:
        extra = memory if _lives_on_memory(strategy) else {}
        # Hyper-parameters are for the strategies that were named, not for references that were added.
        extra = {**extra, "strategy_options": None, "per_task": None, "tuned_by": None} if strategy in added else extra
        for seed in seeds:
            config = resolve(scenario, strategy, {**options, **extra, "seed": seed}, shared=True)
            if isinstance(scenario, Scenario):
                tasks = scenario
            else:
                config, tasks = prepare(config)
            check(config, tasks, strategy_class(config.strategy)(**config.strategy_options))
            identity = config.identity()
            if identity in owner:
                raise ConfigError(f"{config.label} and {owner[identity]} are the same run; name it once")
            owner[identity] = config.label
            given = strategy if isinstance(strategy, type) else None
            planned.append(PlannedRun(config, default_folder(config, out), given))
    make_folder(out)
    return planned


def run_planned(
    planned: Sequence[PlannedRun],
    *,
    scenario: Scenario | None = None,
    jobs: int = 1,
    force: bool = False,
    observer: Observer | None = None,
) -> Iterator[Outcome]:
    """Do the planned runs, in any order, and yield each one's outcome as it ends; finished runs are not repeated.

    jobs: worker processes, which stay up between runs; the results do not depend on it.
    """
    left = []
    for item in planned:
        # What is done already costs neither a worker process nor its data.
        found = None if force else RunFolder(item.folder).existing(item.config)
        if found is not None and found.status == "done":
            yield _do(item, scenario, force, observer)
        else:
            left.append(item)
    if jobs == 1 or not left:
        for item in left:
            yield _do(item, scenario, force, observer)
        return
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered", pre_dispatch="all", batch_size=1)
    yield from parallel(delayed(_do)(item, scenario, force, None) for item in left)


def compare(
    scenario: str | Scenario,
    strategies: Sequence[str | type[Strategy]],
    *,
    seeds: int | Sequence[int] = 5,
    out: str | os.PathLike[str] = "runs",
    jobs: int = 1,
    references: bool = True,
    force: bool = False,
    **options: Any,
) -> list[Result]:
    """Run every strategy with every seed and return the results, strategy by strategy; see plan() and run().

    Unfinished runs are continued. Raises ConfigError before any training, RunError at the end if a run failed.
    """
    planned = plan(scenario, strategies, seeds=seeds, out=out, references=references, **options)
    given = scenario if isinstance(scenario, Scenario) else None
    outcomes = list(run_planned(planned, scenario=given, jobs=jobs, force=force))
    failed = [outcome for outcome in outcomes if outcome.result is None]
    if failed:
        first = failed[0]
        raise RunError(f"{len(failed)} of {len(outcomes)} runs failed; {first.planned.config.label}: {first.error}")
    found = {outcome.planned.folder: outcome.result for outcome in outcomes}
    return [result for item in planned if (result := found[item.folder]) is not None]


def _do(item: PlannedRun, scenario: Scenario | None, force: bool, observer: Observer | None) -> Outcome:
    try:
        if item.given is not None:
            give(item.given)  # to a worker process, which has not seen it
        tasks = scenario or prepare(item.config)[1]
        folder = RunFolder(item.folder)
        result = execute(item.config, tasks, folder, resume=not force, force=force, observer=observer)
        return Outcome(item, result)
    except (ConfigError, RunError) as error:
        return Outcome(item, None, str(error))
    except Exception as error:  # whatever a strategy raises: the other runs go on
        return Outcome(item, None, f"{type(error).__name__}: {error}")


def _lives_on_memory(strategy: str | type[Strategy]) -> bool:
    from clbench.registry import parse_spec

    cls = strategy if isinstance(strategy, type) else strategy_class(parse_spec(strategy)[0])
    return cls.needs_memory
