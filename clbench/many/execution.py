"""Planned runs: all are checked first, then done in one process, in several or on a cluster; none twice, none lost."""

import functools
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from clbench.config.classes import give
from clbench.config.code import own_source
from clbench.config.errors import ConfigError, RunError, shown
from clbench.config.groups import MemoryConfig
from clbench.config.plain import listed
from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.data.spec import ScenarioSpec
from clbench.learning.strategy import Context, Strategy
from clbench.learning.trainer import Trainer
from clbench.many.cluster import Cluster, on_ray
from clbench.many.planned import Outcome, PlannedRun
from clbench.models import as_network
from clbench.results.result import Result
from clbench.running.check import check, check_model
from clbench.running.display import Display, Named
from clbench.running.folder import RunFolder, announce, default_folder, make_folder, superseded, withdraw
from clbench.running.group import refuse_many
from clbench.running.observer import Observer
from clbench.running.process import process_settings
from clbench.running.recorder import new_record, other_packages
from clbench.running.resolve import prepare, resolve, strategy_class
from clbench.running.run import execute, within_budget
from clbench.support.locks import InUseError, Watched, is_held
from clbench.support.surroundings import undisturbed
from clbench.support.text import tell

# The beginning of a run.json, which identifies a finished run without parsing the file.
_HEAD = re.compile(
    rb'\{\s*"schema_version": 1,\s*"clbench": "([^"]*)",\s*(?:"source": "(\w*)",\s*)?'
    rb'"status": "(\w+)",\s*"identity": "(\w+)"'
)
# Seconds between checks of the runs that other processes hold.
_LOOK_EVERY = 1.0

# More runs are a typing error, and would fill the memory before a run begins.
MOST_RUNS = 100_000


@dataclass(frozen=True)
class Request:
    """One requested run, and the words that name it in an error."""

    scenario: str | os.PathLike[str] | Scenario | type[ScenarioSpec]
    strategy: str | type[Strategy]
    options: Mapping[str, Any]
    place: str = ""


@undisturbed()
def plan_requests(
    requests: Sequence[Request],
    out: str | os.PathLike[str],
    *,
    elsewhere: bool = False,
    made: list[tuple[Any, Scenario]] | None = None,
) -> list[PlannedRun]:
    """Return the requested runs, all checked before any is started; raises ConfigError for the first wrong request.

    elsewhere: other machines do the runs, so the devices of this one don't matter.
    made: keeps the scenario that was built last, and what from, for the next call.
    """
    planned: list[PlannedRun] = []
    owner: dict[str, str] = {}
    checked: set[str] = set()
    budgets: dict[str, MemoryConfig] = {}
    models: set[tuple[Any, ...]] = set()
    made = [] if made is None else made
    for request in requests:
        try:
            config = resolve(request.scenario, request.strategy, request.options, shared=True, elsewhere=elsewhere)
            if isinstance(request.scenario, Scenario):
                tasks = request.scenario
            else:
                # Seeds decide which images are held out, not how many, so the same tasks serve to check all of them.
                drawn = config.seed if "per-seed" in config.scenario_options.values() else None
                key = (config.scenario, config.scenario_options, config.data, drawn)
                if not made or made[0][0] != key:
                    made[:] = [(key, prepare(config)[1])]
                tasks = made[0][1]
                config = config.replace(data_fingerprint=tasks.fingerprint)
            kind = config.identity(without_seed=True)
            if kind not in budgets:
                budgets[kind] = within_budget(config, tasks).memory
            config = config.replace(memory_size=budgets[kind].size, memory_policy=budgets[kind].policy)
            if kind not in checked:
                check(config, tasks, strategy_class(config.strategy, config.code)(**config.strategy_options))
                checked.add(kind)
                model = (config.model.name, config.model.weights, config.training.train, tasks.image_shape)
                if model not in models:
                    check_model(config, tasks)
                    models.add(model)
            identity = config.identity()
            if identity in owner:
                raise ConfigError(f"{config.label} and {owner[identity]} are the same run; name it once")
            owner[identity] = config.label
        except ConfigError as error:
            raise ConfigError(f"{request.place}: {error}" if request.place else str(error)) from None
        asked = request.options.get("model")
        network = None if asked is None or isinstance(asked, str) else as_network(asked, "model is given as")
        named = {"scenario": request.scenario, "strategy": request.strategy, "model": network}
        given = {kind: cls for kind, cls in named.items() if isinstance(cls, type)}
        planned.append(PlannedRun(config, default_folder(config, out), given))
    make_folder(out)
    return planned


def seed_list(seeds: Any) -> Sequence[int]:
    """Return the given seeds, or 0, 1, ... for a number of seeds; raises ConfigError."""
    seeds = listed(seeds)
    if isinstance(seeds, int):
        if isinstance(seeds, bool) or not 1 <= seeds <= MOST_RUNS:
            raise ConfigError(f"seeds={seeds}: a number from 1 to {MOST_RUNS:,}, or a list of seeds, is accepted")
        return range(seeds)
    if not isinstance(seeds, list) or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise ConfigError(f"seeds={shown(seeds)}: a number of seeds, or a list of them, is accepted")
    if len(set(seeds)) != len(seeds) or not seeds:
        listing = ",".join(map(str, seeds)) or "[]"
        raise ConfigError(f"seeds={listing}: at least one seed, each once, is accepted")
    return seeds


def lives_on_memory(strategy: str | type[Strategy]) -> bool:
    """Whether the strategy needs a memory, so that a memory option for all strategies applies to it."""
    from clbench.config.registry import parse_spec

    cls = strategy if isinstance(strategy, type) else strategy_class(parse_spec(strategy)[0])
    return cls.traits.needs_memory


def run_planned(
    planned: Sequence[PlannedRun],
    *,
    scenario: Scenario | None = None,
    jobs: int = 1,
    force: bool = False,
    observer: Observer | None = None,
    track: str | None = None,
    cluster: Cluster | None = None,
    seeds_together: bool = False,
) -> Iterator[Outcome]:
    """Do the planned runs, in any order, and yield each one's outcome as it ends; finished runs are not repeated.

    jobs: the number of worker processes, which stay up between runs; results do not depend on it.
    track: see `clbench.run`; each run has a tracker of its own, made in the process that does the run.
    seeds_together: train the runs that differ only in the seed in one batched model, or raise ConfigError.
    A run that another process is doing is waited for at the end, and taken over if that process is gone.
    """
    if jobs < 1:
        raise ConfigError(f"jobs={jobs} given, 1 or more accepted")
    refuse_many("several runs")
    if track is not None:
        from clbench.running.tracking import require_tracker

        require_tracker(track)
    if seeds_together and any(item.config.evaluation.keep_predictions for item in planned):
        raise ConfigError("keep_predictions is for runs that train alone; leave out it or --seeds-together")
    if seeds_together:
        _refuse_together(planned, scenario, jobs, cluster)
    left: list[PlannedRun] = []
    reused: list[tuple[PlannedRun, tuple[str, str]]] = []
    for place, item in enumerate(planned):
        # A finished run needs neither a worker process nor its data.
        if force or (by := _finished(item)) is None:
            left.append(item)
            announce(item.config, item.folder, place)
        else:
            reused.append((item, by))
            yield Outcome(item, source="before")
    _tell_of_reuse(reused, len(planned))
    _tell_of_changes(left)
    waiting: dict[Path, tuple[PlannedRun, Watched]] = {}
    seen = {item.folder: _stamp(item.folder) for item in left}
    try:
        while left or waiting:
            if not left:
                warnings.warn(f"{len(waiting)} runs are being done by other processes; waiting for them", stacklevel=2)
                left = [waiting.pop(folder)[0] for folder in _wait_for_any(waiting)]
            work = [functools.partial(_do, item, scenario, force, track, seen[item.folder]) for item in left]
            if cluster is not None:
                outcomes = on_ray(left, work, cluster)
            elif jobs > 1:
                from clbench.many.workers import in_processes

                outcomes = in_processes(left, work, jobs)
            elif seeds_together:
                outcomes = _together(left, work)
            else:
                outcomes = (do(observer) for do in work)
            for outcome in outcomes:
                if outcome.source == "held":
                    waiting[outcome.planned.folder] = outcome.planned, Watched(outcome.planned.folder)
                    continue
                if outcome.error is not None:
                    _withdraw(outcome.planned)
                yield outcome
            left = []
    except ConfigError:  # all that is left was refused
        for item in planned:
            _withdraw(item)
        raise


def _withdraw(item: PlannedRun) -> None:
    """Remove what was announced of a run that failed before it wrote anything."""
    withdraw([item.folder, *item.folder.parents[:2]])


def run_shown(planned: Sequence[PlannedRun], *, quiet: bool = False, **how: Any) -> Iterator[Outcome]:
    """Do the planned runs as `run_planned` does, with progress on stderr unless `quiet`."""
    to_do = {item.folder: Named(item.config.label, item.config.seed) for item in planned}
    with Display(to_do, total=len(planned), quiet=quiet) as display:
        for outcome in run_planned(planned, **how):
            folder, result = outcome.planned.folder, outcome.result
            if outcome.source == "before":
                display.finished(folder)
            elif result is None:
                display.finished(folder, str(outcome.error), failed=True)
            else:
                average = result.metrics.get("average_accuracy")
                text = "done, " + ("no accuracy" if average is None else f"{100 * average:.1f} %")
                here = outcome.source == "here"
                seconds = sum(result.seconds.values()) if here else None
                display.finished(folder, text if here else f"{text}, by another process", seconds=seconds)
            yield outcome


def run_status(item: PlannedRun) -> str:
    """Return the state of the run's folder: `done`, `failed`, `running` (held, or unfinished) or `missing`."""
    if _finished(item) is not None:
        return "done"
    try:
        stored = RunFolder(item.folder).existing(item.config)
    except ConfigError:
        return "failed"
    return "missing" if stored is None else stored.status


def recorded(item: PlannedRun, error: str | None = None) -> Result | None:
    """Return what the run's folder holds of it, finished or not; None where it holds nothing of this run.

    error: the sentence with which the run ended. It stands in the result even where the run could not write it down, as
    when its process was killed, or when it failed before it began.
    """
    try:
        stored = RunFolder(item.folder).existing(item.config)
    except ConfigError:
        stored = None
    if error is None or (stored is not None and stored.status != "running"):
        return stored
    if stored is not None:
        return Result(stored.record | {"status": "failed", "error": error})
    try:
        strategy = strategy_class(item.config.strategy, item.config.code)(**item.config.strategy_options)
        record = new_record(item.config, prepare(item.config)[1], strategy)
    except ConfigError:
        return None
    return Result(record.model_copy(update={"status": "failed", "error": error}))


def raise_first_failure(outcomes: Sequence[Outcome]) -> None:
    """Raise RunError, which names the first failed run, if any run failed."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        first = failed[0].planned.config
        raise RunError(
            f"{len(failed)} of {len(outcomes)} runs failed; {first.label}, seed {first.seed}: {failed[0].error}"
        )


def _tell_of_reuse(reused: Sequence[tuple[PlannedRun, tuple[str, str]]], planned: int) -> None:
    """Say in one line how many of the planned runs are reused, from when, and what is of another version than here.

    reused: each with the version of clbench that finished it and the digest of its source.
    """
    if not reused:
        return
    others: dict[str, int] = {}
    ours = metadata.version("clbench"), own_source()
    for item, by in reused:
        # A record is only read where more than its head can matter.
        if item.config.code or by != ours:
            named = other_packages(Result.load(item.folder).recorded)
            others[named] = others.get(named, 0) + 1
    versions = "".join(f", {n} with {named}" for named, n in others.items() if named)
    times = sorted({RunFolder(item.folder).finished_at() for item, _ in reused})
    when = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
    counted = f"{len(reused)} of {planned} runs"
    tell(f"{counted} reused, finished at {when}{versions}; --force (force=True) begins them again")


def _tell_of_changes(left: Sequence[PlannedRun]) -> None:
    """Say of how many new runs another one lies beside them that has other code or data, and what has changed."""
    told = [text for item in left if (text := superseded(item.config, item.folder))]
    if told:
        tell(f"{len(told)} of {len(left)} runs are new, {told[0]}")


@undisturbed()
def _do(
    item: PlannedRun,
    scenario: Scenario | None,
    force: bool,
    track: str | None,
    seen: tuple[int, int] | None,
    observer: Observer | None = None,
    make: Callable[[Context, Strategy], Trainer] = Trainer,
) -> Outcome:
    """Do one run; `seen` is the stamp that its run.json had before the first of all runs began."""
    try:
        for kind, cls in item.given.items():
            give(kind, cls)  # to a worker process, which has not seen it
        if not force and seen != _stamp(item.folder):
            if _finished(item) is not None:
                return Outcome(item, source="elsewhere")
            stored = RunFolder(item.folder).existing(item.config)
            if stored is not None and stored.status == "failed":
                return Outcome(item, str(stored.record.get("error")), source="elsewhere")
        if is_held(item.folder) and not Watched(item.folder).is_free():
            return Outcome(item, source="held")  # asked before its data are loaded for nothing
        tasks = scenario or _planned_data(item.config)
        begun: list[Trainer] = []

        def trainer(context: Context, strategy: Strategy) -> Trainer:
            begun.append(make(context, strategy))
            return begun[0]

        folder = RunFolder(item.folder)
        execute(
            item.config,
            tasks,
            folder,
            resume=not force,
            force=force,
            observer=observer,
            trainer=trainer,
            track=track,
        )
        # Another process may have finished it since the check above.
        return Outcome(item, source="here" if begun else "elsewhere")
    except InUseError:
        return Outcome(item, source="held")
    except (ConfigError, RunError) as error:
        return Outcome(item, str(error))
    except Exception as error:  # a strategy may raise anything, and the other runs go on
        return Outcome(item, f"{type(error).__name__}: {error}")


def _planned_data(config: RunConfig) -> Scenario:
    """Build the scenario of a planned run; raises ConfigError where its data were changed since it was planned."""
    now, tasks = prepare(config)
    if now.data_fingerprint != config.data_fingerprint:
        raise ConfigError(f"the data of {config.scenario} were changed since the runs were planned; begin again")
    return tasks


def _refuse_together(
    planned: Sequence[PlannedRun], scenario: Scenario | None, jobs: int, cluster: Cluster | None
) -> None:
    from clbench.config.registry import entry_point_names
    from clbench.many.together import refuse_together

    if jobs > 1 or cluster is not None:
        raise ConfigError("--seeds-together trains in this process; leave it out, or --jobs and --backend ray")
    possible = [name for name in entry_point_names("clbench.strategies") if strategy_class(name).traits.seeds_together]
    # Once for all seeds.
    for item in {item.config.identity(without_seed=True): item for item in planned}.values():
        tasks = scenario or prepare(item.config)[1]
        strategy = strategy_class(item.config.strategy, item.config.code)
        refuse_together(item.config, strategy, tasks.image_shape, possible)


def _together(items: Sequence[PlannedRun], work: Sequence[Callable[..., Outcome]]) -> Iterator[Outcome]:
    """Do the runs group by group, each run of a group in a thread that waits for the others at each epoch."""
    from clbench.many.together import Together

    groups: dict[str, list[tuple[PlannedRun, Callable[..., Outcome]]]] = {}
    for item, do in zip(items, work, strict=True):
        groups.setdefault(item.config.identity(without_seed=True), []).append((item, do))
    for group in groups.values():
        if len(group) == 1:
            yield group[0][1]()
            continue
        together = Together([item.config.seed for item, _ in group])
        # torch's settings per process are set for the whole group, so a run that ends early restores only these.
        with process_settings(group[0][0].config), ThreadPoolExecutor(len(group)) as threads:
            # A copy of the context for each thread: it belongs to what is under way here.
            begun = [
                threads.submit(copy_context().run, together.run, functools.partial(do, None, together.trainer))
                for _, do in group
            ]
            try:
                for ended in as_completed(begun):
                    yield ended.result()
            finally:
                together.stop()


def _finished(item: PlannedRun) -> tuple[str, str] | None:
    """Return the version of clbench that finished the run and the digest of its source, or None if none has."""
    try:
        with open(item.folder / "run.json", "rb") as file:
            head = _HEAD.match(file.read(400))
            file.seek(-2, os.SEEK_END)
            whole = file.read() == b"}\n"
    except OSError:
        return None
    if head is None or not whole or head[3] != b"done" or head[4].decode() != item.config.identity():
        return None
    # Version 0.1.0 left no digest of its source.
    return head[1].decode(), own_source() if head[2] is None else head[2].decode()


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(folder / "run.json")
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _wait_for_any(waiting: Mapping[Path, tuple[PlannedRun, Watched]]) -> list[Path]:
    """Wait until some folders are free, and return these."""
    while True:
        free = []
        for folder, (_, watched) in waiting.items():
            try:
                if watched.is_free():
                    free.append(folder)
            except OSError:  # the run itself will report what is wrong with its folder
                free.append(folder)
        if free:
            return free
        time.sleep(_LOOK_EVERY)
