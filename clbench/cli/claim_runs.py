"""Finds the runs that published claims need, their cost, and those that this machine can do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clbench.config.errors import ConfigError, MissingDataError
from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.compiled import refuse_compiled
from clbench.many.execution import seed_list
from clbench.many.planned import PlannedRun
from clbench.reports.published import Claim
from clbench.reports.reproduction import Measured, Role, taken_over
from clbench.running.check import check, check_model
from clbench.running.folder import RunFolder, default_folder
from clbench.running.resolve import prepare, resolve, strategy_class


@dataclass(frozen=True)
class Needed:
    """A run that claims need: for each, in which role it serves; how long it takes, 0 where it is done.

    measured: what a table of results holds of it already, for each claim that it serves; empty where it does not.
    """

    planned: PlannedRun
    serves: tuple[tuple[Claim, Role], ...]
    seconds: float
    measured: tuple[Measured, ...] = ()


def needed(
    wanted: Sequence[Claim],
    *,
    out: str | Path,
    seeds: int | Sequence[int] | None = None,
    written: Sequence[Measured] = (),
    **options: Any,
) -> tuple[list[Needed], dict[str, ConfigError]]:
    """Return the runs that claims need, each once, and why some claims can't run here, by id.

    seeds: a number of them, or the seeds, instead of each claim's own number.
    written: runs in a table of results, which are not done again.
    options: fields of the machine, such as device and data_root.
    The data of claims have public names, so none are read for this; startable() does.
    """

    runs: dict[Path, tuple[PlannedRun, list[tuple[Claim, Role]], float]] = {}
    refused: dict[str, ConfigError] = {}
    for claim in wanted:
        roles: list[tuple[Role, str, dict[str, Any], dict[str, Any], float]] = [
            ("claim", claim.strategy, claim.run_fields(), claim.options, claim.seconds)
        ]
        if claim.strategy != "naive":
            fields_of_naive, options_of_naive = claim.naive_fields(), claim.naive.options
            roles.append(("naive", claim.naive.strategy, fields_of_naive, options_of_naive, claim.naive_seconds))
        try:
            of_claim = []
            for role, strategy, given, own, seconds in roles:
                first = resolve(claim.scenario, strategy, {**given, **options, "strategy_options": own})
                refuse_compiled(first, strategy_class(strategy))
                for seed in seed_list(claim.seeds if seeds is None else seeds):
                    config = first.replace(seed=seed)
                    of_claim.append((role, PlannedRun(config, default_folder(config, out)), seconds))
        except ConfigError as error:
            refused[claim.id] = error
            continue
        for role, planned, seconds in of_claim:
            if planned.folder not in runs:
                found = RunFolder(planned.folder).existing(planned.config)
                runs[planned.folder] = (planned, [], 0.0 if found and found.status == "done" else seconds)
            runs[planned.folder][1].append((claim, role))
    by_identity: dict[str, list[Measured]] = {}
    for row in written:
        by_identity.setdefault(row.identity, []).append(row)
    found_runs = []
    for planned, serves, seconds in runs.values():
        identity = planned.config.identity()
        rows = by_identity.get(identity, [])
        taken = [taken_over(claim, role, identity, rows) for claim, role in serves] if seconds else [None]
        measured = tuple(row for row in taken if row is not None)
        whole = len(measured) == len(serves)
        found_runs.append(Needed(planned, tuple(serves), 0.0 if whole else seconds, measured if whole else ()))
    return found_runs, refused


def within(runs: Sequence[Needed], budget: float, jobs: int = 1) -> list[Needed]:
    """Return the runs that fit into so many seconds: whole claims with all their seeds first, the quickest first.

    Where not even one claim fits with all of its seeds, as many seeds of the quickest claim as do.
    """
    by_claim: dict[str, list[Needed]] = {}
    for run in runs:
        for claim, _ in run.serves:
            by_claim.setdefault(claim.id, []).append(run)
    taken: dict[Path, Needed] = {}

    def cost(of: Iterable[Needed]) -> float:
        return sum(run.seconds for run in of if run.planned.folder not in taken) / jobs

    left = budget
    for _ in by_claim:
        rest = [of for of in by_claim.values() if any(run.planned.folder not in taken for run in of)]
        if not rest or cost(quickest := min(rest, key=cost)) > left:
            break
        left -= cost(quickest)
        taken |= {run.planned.folder: run for run in quickest}
    if not taken and by_claim:
        quickest = min(by_claim.values(), key=cost)
        for seed in sorted({run.planned.config.seed for run in quickest}):
            of_seed = [run for run in quickest if run.planned.config.seed == seed]
            if cost(of_seed) > left:
                break
            left -= cost(of_seed)
            taken |= {run.planned.folder: run for run in of_seed}
    return [run for run in runs if run.planned.folder in taken]


def startable(
    runs: Sequence[Needed], budget: float | None = None, jobs: int = 1
) -> tuple[list[Needed], list[Needed], dict[str, ConfigError]]:
    """Return the runs that are done or can be, those of them that fit into the budget, and why claims can't run, by id.

    Only the data of what would be started is read, or downloaded; another claim takes the place of one that can't run.
    """
    left, refused, here = list(runs), dict[str, ConfigError](), _Here()
    while True:
        todo = left if budget is None else within(left, budget, jobs)
        coming = sorted((run for run in todo if run.seconds), key=lambda run: repr(_cut(run.planned.config)))
        found = {c.id: why for run in coming if (why := here.problem(run.planned.config)) for c, _ in run.serves}
        if not found:
            return left, todo, refused
        refused |= found
        served = [replace(run, serves=tuple(s for s in run.serves if s[0].id not in refused)) for run in left]
        left = [run if not run.seconds else other for run, other in zip(left, served, strict=True)]
        left = [run for run in left if run.serves]


class _Here:
    """Whether configs can run on this machine: each is looked at once for all seeds, absent data once for all."""

    def __init__(self) -> None:
        self._problems: dict[str, ConfigError | None] = {}
        self._missing: dict[str, ConfigError] = {}
        self._made: tuple[tuple[Any, ...], Scenario] | None = None

    def problem(self, config: RunConfig) -> ConfigError | None:
        kind = config.identity(without_seed=True)
        if kind not in self._problems:
            self._problems[kind] = self._missing.get(config.scenario) or self._look(config)
        return self._problems[kind]

    def _look(self, config: RunConfig) -> ConfigError | None:
        try:
            # Seeds and strategies share the tasks that serve to check them.
            if self._made is None or self._made[0] != _cut(config):
                self._made = None  # not two at a time
                self._made = _cut(config), prepare(config)[1]
            if self._made[1].fingerprint is not None:
                raise ConfigError(
                    f"{config.scenario}: the claim is of the published data, and those in {config.data.root} are others"
                )
            check(config, self._made[1], strategy_class(config.strategy)(**config.strategy_options))
            if config.model.weights is not None:
                # They may have to be fetched, and the run would not begin without them.
                check_model(config, self._made[1])
        except ConfigError as error:
            if isinstance(error, MissingDataError):
                self._missing[config.scenario] = error
            return error
        return None


def _cut(config: RunConfig) -> tuple[Any, ...]:
    """Return what the tasks of a claim depend on, but for the seed."""
    return config.scenario, config.scenario_options, config.data.validation
