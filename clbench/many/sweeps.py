"""sweep(): any grid of runs from one file, checked as a whole, then done here or on a cluster."""

import itertools
import math
import os
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.plain import as_text, listed
from clbench.config.registry import parse_spec, text_of
from clbench.config.run import EXCLUSIVE, INTERNAL, excludes
from clbench.config.run import fields as run_fields
from clbench.data.spec import ScenarioSpec
from clbench.learning.strategy import Strategy
from clbench.many.cluster import Cluster
from clbench.many.compare import MEMORY_OPTIONS
from clbench.many.execution import (
    MOST_RUNS,
    Request,
    lives_on_memory,
    plan_requests,
    raise_first_failure,
    run_shown,
    seed_list,
)
from clbench.many.planned import PlannedRun
from clbench.results.result import Result
from clbench.running.resolve import as_name, parse_scenario, scenario_class, scenario_given, strategy_class
from clbench.support.files import expanded, read_small

_FIELDS = [name for name in run_fields() if name not in INTERNAL and name != "seed"]
_NAMED = ("scenario", "strategy", "seeds")
_TABLES = ("strategy_options", "strategies")

Grid = Mapping[str, Any]


@checked
def sweep(
    grid: str | os.PathLike[str] | Grid,
    *,
    out: str | os.PathLike[str] = "runs",
    jobs: int = 1,
    shard: tuple[int, int] | None = None,
    force: bool = False,
    track: str | None = None,
    cluster: Cluster | None = None,
    quiet: bool = False,
) -> list[Result]:
    """Do the runs of a grid and return their results in its order.

    Finished runs are not repeated, unfinished ones are continued, and failed ones are tried again.

    grid: a TOML file, or a mapping of the same shape.
    out: the folder that the runs' folders are in.
    jobs: how many processes work at the same time.
    shard: (K, N) does the K-th of N parts.
    force: begin finished runs again.
    track, quiet: as for `clbench.run`.
    cluster: a Ray cluster that does the runs.

    Raises ConfigError before any training, and RunError if a run failed.
    """
    planned = plan_sweep(grid, out=out, shard=shard, cluster=cluster)
    raise_first_failure(list(run_shown(planned, jobs=jobs, force=force, track=track, cluster=cluster, quiet=quiet)))
    return [Result.load(item.folder) for item in planned]


@checked
def plan_sweep(
    grid: str | os.PathLike[str] | Grid,
    *,
    out: str | os.PathLike[str] = "runs",
    shard: tuple[int, int] | None = None,
    cluster: Cluster | None = None,
) -> list[PlannedRun]:
    """Check a whole grid and return its runs, or those of one shard; raises ConfigError."""
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"shard={shard[0]}/{shard[1]}: K/N with K from 1 to N is accepted")
    if isinstance(grid, Mapping):
        read, name = grid, "grid"
    else:
        read, name = read_grid(expanded(grid)), str(grid)
    requests = [_placed(request, cluster) for request in _labelled(expand(read, name))]
    planned = plan_requests(requests, out, elsewhere=cluster is not None)
    return planned if shard is None else planned[shard[0] - 1 :: shard[1]]


def read_grid(path: Path) -> Grid:
    """Read the TOML file of a grid; raises ConfigError."""
    try:
        return tomllib.loads(read_small(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; the TOML file of a sweep is accepted") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}; a TOML file is accepted") from None


def expand(grid: Grid, name: str) -> list[Request]:
    """Return the runs of a grid in its order: those that are not excluded, then the included ones."""
    further = _tables(grid, "include", name)
    excluded = _tables(grid, "exclude", name)
    top = {key: value for key, value in grid.items() if key not in ("include", "exclude")}
    _check_keys(top, top, name)
    requests = list(_block(top, top, name)) if "strategy" in top or not further else []
    for number, rule in enumerate(excluded, 1):
        place = f"{name}, [[exclude]] {number}"
        known = {key for request in requests for key in _facts(request)}
        for key in rule:
            if key not in known:
                raise unknown(f"key in {place}:", key, sorted(known))
        kept = [request for request in requests if not _matches(rule, request)]
        if len(kept) == len(requests):
            raise ConfigError(f"{place}: no run of the grid matches it; leave it out or correct it")
        requests = kept
    for number, block in enumerate(further, 1):
        place = f"{name}, [[include]] {number}"
        _check_keys(block, _over(top, block), place)
        requests += _block(_over(top, block), block, place)
    named = {_spec(request.strategy)[0] for request in requests}
    for key in top.get("strategies", {}):
        if key not in named:
            raise unknown(f"strategy of {name}, [strategies]", key, sorted(named))
    if not requests:
        raise ConfigError(f"{name}: no run is left, because all are excluded; leave at least one")
    return requests


def _tables(grid: Grid, key: str, name: str) -> list[Grid]:
    tables = grid.get(key, [])
    if not isinstance(tables, Sequence) or not all(isinstance(table, Mapping) and table for table in tables):
        raise ConfigError(f"{name}: {key} is given as {tables!r}"[:200] + f"; tables [[{key}]] are accepted")
    return list(tables)


def _scenarios(block: Grid) -> list[type[ScenarioSpec]]:
    """Return the scenarios that a block names; raises ConfigError for an unknown one."""
    given = block.get("scenario", [])
    entries = given if isinstance(given, list | tuple) else [given]
    names = [scenario_given(e) for e in entries if isinstance(e, str | type | os.PathLike)]
    return [scenario_class(parse_scenario(name)[0]) for name in names if isinstance(name, str)]


def _cuts(block: Grid) -> dict[str, Any]:
    """Return the fields that a scenario is made by: the options of those that a block names, and validation."""
    options = {name: field for kind in _scenarios(block) for name, field in kind._options.model_fields.items()}
    return {**options, "validation": run_fields()["validation"]}


def _pairs(block: Grid) -> list[tuple[str, str]]:
    return [*EXCLUSIVE, *(pair for kind in _scenarios(block) for pair in kind.exclusive)]


def _check_keys(block: Grid, whole: Grid, place: str) -> None:
    cuts = _cuts(whole)
    for key, value in block.items():
        if key == "seed":
            raise ConfigError(f"{place}: seed={value!r}; a sweep takes seeds, a number of them or a list")
        if key not in (*_NAMED, *_TABLES, *_FIELDS, *cuts):
            raise unknown(f"option in {place}:", key, (*_NAMED, *_TABLES, "include", "exclude", *cuts, *_FIELDS))
        if key in _TABLES and not isinstance(value, Mapping):
            raise ConfigError(f"{place}: {key}={value!r}; a table [{key}] is accepted")
    for key, value in block.get("strategies", {}).items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"{place}: strategies.{key}={value!r}; a table [strategies.{key}] is accepted")


def _over(top: Grid, block: Grid) -> Grid:
    """Return a further grid, merged over the keys that it takes from the top of the file."""
    pairs = _pairs({**top, **block})
    kept = {key: value for key, value in top.items() if not any(excludes(key, other, pairs) for other in block)}
    merged = kept | dict(block)
    for table in _TABLES:
        if table in block and table in top:
            merged[table] = dict(top[table]) | dict(block[table])
    return merged


def _block(block: Grid, said: Grid, place: str) -> Iterator[Request]:
    """Yield the runs of one grid: scenarios and their fields outermost, seeds innermost; `said`: its own keys."""
    for key in ("scenario", "strategy"):
        if key not in block:
            raise ConfigError(f"{place}: no {key}; give one, or a list of them")
    try:
        seeds = seed_list(block.get("seeds", 5))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    cutting = _cuts(block)
    fields = {key: value for key, value in block.items() if key in _FIELDS or key in cutting}
    strategies = _entries(block, "strategy", place)
    memory = [key for key in MEMORY_OPTIONS if key in said]
    try:
        if memory and not any(lives_on_memory(strategy) for strategy in strategies):
            raise ConfigError(f"{memory[0]} is given, but none of the strategies needs a memory")
        axes = [
            _axes(strategy, {k: v for k, v in fields.items() if k not in cutting}, block) for strategy in strategies
        ]
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    names = [key for key in fields if key in cutting]
    cuts = [_values(key, fields[key], place, cutting) for key in names]
    scenarios = _entries(block, "scenario", place)
    points = [
        [
            *(_values(key, value, place, run_fields()) for key, value in training.items()),
            *(_values(key, value, place, _own_options(strategy)) for key, value in own.items()),
        ]
        for strategy, (training, own) in zip(strategies, axes, strict=True)
    ]
    n = len(scenarios) * math.prod(map(len, cuts)) * len(seeds) * sum(math.prod(map(len, p)) for p in points)
    if n > MOST_RUNS:
        raise ConfigError(f"{place}: {n:,} runs are requested; at most {MOST_RUNS:,} are accepted")
    for scenario, *cut_values in itertools.product(scenarios, *cuts):
        common = dict(zip(names, cut_values, strict=True))
        for strategy, (training, own), values in zip(strategies, axes, points, strict=True):
            for chosen in itertools.product(*values):
                point = dict(zip([*training, *own], chosen, strict=True))
                options = {"threads": 1} | common | {key: point[key] for key in training}
                options["strategy_options"] = {key: point[key] for key in own}
                for seed in seeds:
                    yield Request(scenario, strategy, options | {"seed": seed}, place)


def _axes(strategy: str | type[Strategy], fields: Grid, block: Grid) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the training fields and the strategy's own options for its runs, each with its values."""
    name, bracket = _spec(strategy)
    known = _own_options(strategy)
    special = dict(block.get("strategies", {}).get(name, {}))
    for key in special:
        if key in bracket:
            raise ConfigError(f"{key} is given twice, in the brackets of {name} and in [strategies.{name}]")
        trainable = [field for field in _FIELDS if field != "validation"]
        if key not in known and key not in trainable:
            raise unknown(f"option in [strategies.{name}]:", key, [*known, *trainable])
    closer = [*special, *bracket]
    training = {
        key: value
        for key, value in fields.items()
        if not any(key == other or excludes(key, other) for other in closer)
        and (key not in MEMORY_OPTIONS or lives_on_memory(strategy))
    }
    own = {key: value for key, value in block.get("strategy_options", {}).items() if key not in closer}
    return (
        training | {key: value for key, value in special.items() if key not in known},
        own | {key: value for key, value in special.items() if key in known},
    )


def _entries(block: Grid, key: str, place: str) -> list[Any]:
    """Return the scenarios or strategies of a block, one or several of them."""
    given = block[key]
    entries = [given] if isinstance(given, str | type | os.PathLike) else listed(given)
    if isinstance(entries, list):
        entries = [as_name(entry) if key == "scenario" else as_text(entry) for entry in entries]
    base = Strategy if key == "strategy" else ScenarioSpec
    right = isinstance(entries, list) and all(
        isinstance(e, str) or (isinstance(e, type) and issubclass(e, base)) for e in entries
    )
    if not right or not entries:
        raise ConfigError(f"{place}: {key}={shown(given, 150)}; a name, or a list of names, is accepted")
    return [e.replace(" ", "") if key == "strategy" and isinstance(e, str) and ".py:" not in e else e for e in entries]


def _values(key: str, value: Any, place: str, fields: Mapping[str, Any]) -> list[Any]:
    """Return the values of an axis: a list, or a single value; if a value is a list itself, a list of lists."""
    annotation = fields[key].annotation if key in fields else None
    value = listed(value)
    # If a single number is accepted too, a list of numbers is an axis, like any other list.
    lists = _takes_list(annotation) and not _takes_number(annotation)
    if not isinstance(value, list | tuple) or (lists and all(isinstance(entry, int) for entry in value)):
        return [value]
    if not value:
        raise ConfigError(f"{place}: {key}=[]; a value, or a list of values, is accepted")
    return list(value)


def _takes_list(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple) or any(_takes_list(part) for part in get_args(annotation))


def _takes_number(annotation: Any) -> bool:
    if get_origin(annotation) in (list, tuple):
        return False
    return annotation in (int, float) or any(_takes_number(part) for part in get_args(annotation))


def _own_options(strategy: str | type[Strategy]) -> Mapping[str, Any]:
    cls = strategy if isinstance(strategy, type) else strategy_class(_spec(strategy)[0])
    options: Mapping[str, Any] = cls._options.model_fields
    return options


def _spec(strategy: str | type[Strategy]) -> tuple[str, dict[str, str]]:
    return (strategy.__name__, {}) if isinstance(strategy, type) else parse_spec(strategy)


def _asked(request: Request) -> dict[str, Any]:
    """Return the options that the grid gives a run, without scenario, strategy and seed."""
    options = {k: v for k, v in request.options.items() if k not in ("seed", "strategy_options")}
    own: dict[str, Any] = request.options["strategy_options"]
    return options | own


def _facts(request: Request) -> dict[str, Any]:
    name, bracket = _spec(request.strategy)
    named = {"scenario": request.scenario, "strategy": name, "seed": request.options["seed"]}
    return bracket | _asked(request) | named


def _matches(rule: Grid, request: Request) -> bool:
    facts = _facts(request)
    for key, value in rule.items():
        there = [facts[key]] if key in facts else []
        if key == "strategy":
            there.append(request.strategy)  # as it is spelt, with its brackets
        wanted = _values(key, value, "", {**_cuts({"scenario": request.scenario}), **run_fields()})
        if not any(one == other or _text(one) == _text(other) for one in wanted for other in there):
            return False
    return True


def _text(value: Any) -> str:
    return f"[{text_of(value)}]" if isinstance(value, list) else text_of(value)


def _labelled(requests: Sequence[Request]) -> list[Request]:
    """Give each run a label that tells it from the others of its strategy by what varies among them, in brackets."""
    values: dict[Any, dict[str, set[str]]] = {}
    numbers = Counter(request.strategy for request in requests)
    given: Counter[tuple[Any, str]] = Counter()
    for request in requests:
        for key, value in _asked(request).items():
            values.setdefault(request.strategy, {}).setdefault(key, set()).add(_text(value))
            given[request.strategy, key] += 1
    labelled = []
    for request in requests:
        name, shown = _spec(request.strategy)
        shown = shown | {
            key: _text(value)
            for key, value in _asked(request).items()
            if len(values[request.strategy][key]) > 1 or given[request.strategy, key] < numbers[request.strategy]
        }
        label = f"{name}[{','.join(f'{k}={v}' for k, v in shown.items())}]" if shown else name
        place = f"{request.place}: {label}, seed {request.options['seed']}"
        labelled.append(Request(request.scenario, request.strategy, {**request.options, "label": label}, place))
    return labelled


def _placed(request: Request, cluster: Cluster | None) -> Request:
    """Set the device of a run on a cluster, because Ray shows a run only the GPUs that were requested."""
    if cluster is None:
        return request
    device = request.options.get("device", "auto")
    kind = "cuda" if cluster.gpus_per_run else "cpu"
    if device not in ("auto", kind):
        raise ConfigError(
            f"{request.place}: device={device} on a cluster with --gpus-per-run {cluster.gpus_per_run:g}; "
            f"auto or {kind} is accepted"
        )
    return Request(request.scenario, request.strategy, {**request.options, "device": kind}, request.place)
