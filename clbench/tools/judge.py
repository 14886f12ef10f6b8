"""Strategies whose hyper-parameters were chosen on one scenario, judged on others that no search has seen.

Cha & Cho 2024, arXiv:2403.09066: a phase of tuning and a phase of evaluation, on scenarios that have the same number of
tasks and are made from different data.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clbench.config.errors import ConfigError, RunError, one_line
from clbench.data.scenario import Images, Scenario
from clbench.data.sources import CHUNK, Mapped, origin
from clbench.many.execution import Request, plan_requests, run_shown, seed_list
from clbench.many.planned import PlannedRun
from clbench.results.result import Result
from clbench.results.statistics import agreement, interval, places, spread
from clbench.running.folder import make_folder
from clbench.running.observer import Observer
from clbench.running.resolve import prepare, resolve
from clbench.support.files import write_atomically
from clbench.tools.search import AnyScenario, Search, Trial, Tuned

# A judged scenario with this share of images that were tuned on is refused; with fewer of them, a warning says so.
MOST_SEEN = 0.5


@dataclass(frozen=True)
class Judged:
    """Strategies judged on scenarios that no search has seen.

    record: the content of judged.json: of each judged scenario and each way of tuning the ranking with its scores,
        the values that were chosen and the cost of the search, and how far the rankings agree.
    results: the runs behind it. folder: that of judged.json.
    """

    record: dict[str, Any]
    results: list[Result]
    folder: Path

    @property
    def failures(self) -> list[str]:
        """A sentence for each strategy that could not be tuned or judged."""
        return [
            f"{row['strategy']} ({way['name']}) on {part['scenario']}: {row['error']}"
            for part in self.record["judged"]
            for way in part["ways"]
            for row in way["ranking"]
            if "error" in row
        ]


@dataclass(frozen=True)
class Way:
    """A way of tuning the strategies of a judged scenario; elsewhere: on another scenario."""

    searches: Sequence[Search]
    scenario: str
    elsewhere: bool

    @property
    def name(self) -> str:
        """The scenario that is tuned on, and what is read of it, in words."""
        one = self.searches[0]
        oracle = "all tasks" if self.elsewhere else "all tasks (oracle)"
        read = {"oracle": oracle, "continual": "task by task"}.get(one.protocol, f"first {len(one.tasks.tasks)} tasks")
        return f"{self.scenario if self.elsewhere else 'itself'}, {read}"


def judge(
    searches: Callable[[AnyScenario, str], Sequence[Search]],
    scenario: AnyScenario,
    judged_on: Sequence[AnyScenario],
    protocols: Sequence[str],
    *,
    seeds: int | Sequence[int],
    out: Path,
    observer: Observer | None,
    told: Callable[[Trial], None],
    quiet: bool,
) -> Judged:
    """Tune on `scenario` by the first protocol, and on each judged scenario by the others; judge all by test images.

    searches: plans the searches of all strategies on a scenario by a protocol. Raises ConfigError before any training.
    """
    numbers = list(seed_list(seeds))
    if not judged_on:
        raise ConfigError("judge_on=[]: one or more scenarios are accepted")
    tuned = searches(scenario, protocols[0])
    name = _name(scenario)
    plans: list[tuple[AnyScenario, list[str], list[Way]]] = []
    runs: list[str] = []
    for one in judged_on:
        checks = [Request(one, s.strategy, _plain(s) | {"seed": n}) for s in tuned for n in numbers]
        planned = plan_requests(checks, ".")
        if planned[0].config.identity() in runs:
            raise ConfigError(f"judge_on names {_name(one)} twice; once is accepted")
        runs.append(planned[0].config.identity())
        warnings = _compared(name, tuned[0].given, _name(one), _built(one, planned[0]))
        ways = [Way(tuned, name, elsewhere=True)]
        ways += [Way(searches(one, protocol), _name(one), elsewhere=False) for protocol in protocols[1:]]
        for search in (search for way in ways for search in way.searches):
            for options in search.ends():
                resolve(one, search.strategy, options)
        plans.append((one, warnings, ways))
    make_folder(out / "runs")
    found: dict[str, Tuned | str] = {}
    for _, _, ways in plans:
        for search in (search for way in ways for search in way.searches):
            if search.key not in found:
                found[search.key] = _found(search, observer, told, quiet=quiet)
    key = hashlib.sha256(json.dumps([*found, *runs, numbers]).encode()).hexdigest()[:8]
    record: dict[str, Any] = {
        "tuned_on": name,
        "setting": tuned[0].given.setting,
        "tasks": len(tuned[0].given.tasks),
        "protocol": protocols[0],
        "beside": list(protocols[1:]),
        "seeds": numbers,
        "judged": [],
    }
    results: dict[Path, Result] = {}
    for one, warnings, ways in plans:
        done = _judged_runs(one, ways, found, numbers, out, observer=observer, quiet=quiet)
        rankings = [
            {"name": way.name, "scenario": way.scenario, "protocol": way.searches[0].protocol}
            | {"tasks_read": len(way.searches[0].tasks.tasks), "ranking": _ranking(way, found, done)}
            for way in ways
        ]
        results |= {run.folder: r for of in done.values() for run, r in of if isinstance(r, Result)}
        record["judged"].append(
            {"scenario": _name(one), "warnings": warnings, "ways": rankings, "agreement": _agreements(rankings)}
        )
    folder = out / "judged" / f"{tuned[0].given.name}-{key}"
    try:
        write_atomically(folder / "judged.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}; the runs themselves are kept") from None
    return Judged(record, list(results.values()), folder)


def seen_images(tuned: Scenario, judged: Scenario) -> tuple[dict[str, tuple[int, int]], bool]:
    """Return how many of the training and test images of the judged scenario are tuned on, and if the data are one.

    The test images of the tuned scenario are not read. The data are one where images that no task has are in both.
    """
    read = torch.cat([data.ids for task in tuned.tasks for data in (task.train, task.validation)])
    theirs = _marks(tuned.train, read)
    train = torch.cat([data.ids for task in judged.tasks for data in (task.train, task.validation)])
    test = torch.cat([task.test.ids for task in judged.tasks])
    parts = {"training": _marks(judged.train, train), "test": _marks(judged.test, test)}
    seen = {what: (len(ours & theirs), len(ours)) for what, ours in parts.items()}
    one_set = any(both for both, _ in seen.values()) or bool(_marks(judged.train) & _marks(tuned.train))
    return seen, one_set


def _marks(images: Images, ids: torch.Tensor | None = None) -> set[Any]:
    """Return what tells images apart: the digest of one in memory, the file and the row of one on disk."""
    source, rows = origin(images.images, torch.arange(len(images.images)) if ids is None else ids)
    rows = rows.unique()
    if isinstance(source, Mapped):
        held = rows if source.rows is None else source.rows[rows]
        return {(str(getattr(source.array, "filename", "")), row) for row in held.tolist()}
    return {
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for part in rows.split(CHUNK)
        for image in source[part].numpy()
    }


def _compared(name: str, tuned: Scenario, other: str, judged: Scenario) -> list[str]:
    """Return what a reader should know of the two scenarios; raises ConfigError where nothing can be judged so."""
    if judged.setting != tuned.setting:
        raise ConfigError(
            f"judge_on={other} is {judged.setting}-incremental and {name} {tuned.setting}-incremental; one setting is "
            f"accepted, such as setting={tuned.setting}"
        )
    if len(judged.tasks) != len(tuned.tasks):
        raise ConfigError(
            f"judge_on={other} has {len(judged.tasks)} tasks and {name} {len(tuned.tasks)}; the same number is "
            f"accepted, such as tasks={len(tuned.tasks)}"
        )
    seen, one_set = seen_images(tuned, judged)
    told = [f"{both:,} of the {n:,} {what} images" for what, (both, n) in seen.items() if both]
    if any(both >= MOST_SEEN * n for both, n in seen.values()):
        raise ConfigError(
            f"judge_on={other}: {' and '.join(told)} are among those that {name} is tuned on; a scenario of other data "
            "is accepted, and beside=oracle tunes each judged scenario on itself"
        )
    if told:
        return [f"{' and '.join(told)} of {other} are among those that {name} is tuned on."]
    if one_set:
        return [f"{other} and {name} are cut from one data set, of which each has other images."]
    return []


def _found(search: Search, observer: Observer | None, told: Callable[[Trial], None], *, quiet: bool) -> Tuned | str:
    """Return what a search finds, or a sentence on why it finds nothing."""
    of = {"of": f"{_name(search.strategy)} on {search.given.name}"}
    try:
        return search.find(observer, lambda trial: told(of | trial), quiet=quiet)
    except RunError as error:
        return one_line(str(error), 400)


def _judged_runs(
    scenario: AnyScenario,
    ways: Sequence[Way],
    found: Mapping[str, Tuned | str],
    seeds: Sequence[int],
    out: Path,
    *,
    observer: Observer | None,
    quiet: bool,
) -> dict[str, list[tuple[PlannedRun, Result | str]]]:
    """Do the runs of a judged scenario; return those of each search with their results, or a sentence on a failure.

    Values that two searches chose make the same runs, which are done once.
    """
    planned: dict[str, list[PlannedRun]] = {}
    made: list[tuple[Any, Scenario]] = []
    for way in ways:
        for search in way.searches:
            choice = found[search.key]
            planned[search.key] = []
            if not isinstance(choice, str):
                options = dict(choice.options)
                if way.elsewhere:
                    options["tuned_by"] = f"another scenario, {way.scenario}: {options['tuned_by']}"
                asked = [Request(scenario, search.strategy, options | {"seed": seed}) for seed in seeds]
                planned[search.key] = plan_requests(asked, out / "runs", made=made)
    once = {run.folder: run for of in planned.values() for run in of}
    given = scenario if isinstance(scenario, Scenario) else None
    ended: dict[Path, Result | str] = {}
    for outcome in run_shown(list(once.values()), quiet=quiet, scenario=given, observer=observer):
        ended[outcome.planned.folder] = outcome.error or Result.load(outcome.planned.folder)
    return {key: [(run, ended[run.folder]) for run in runs] for key, runs in planned.items()}


def _ranking(
    way: Way, found: Mapping[str, Tuned | str], done: Mapping[str, Sequence[tuple[PlannedRun, Result | str]]]
) -> list[dict[str, Any]]:
    """Return a row for each strategy, the best first, those without a score last."""
    rows = []
    for search in way.searches:
        choice, runs = found[search.key], [result for _, result in done[search.key]]
        scores = [None if isinstance(run, str) else run.metrics["average_accuracy"] for run in runs]
        mean, sd, n = spread(scores)
        within = interval(scores, bounds=(0, 1))
        row: dict[str, Any] = {"strategy": _name(search.strategy), "rank": None, "mean": mean, "sd": sd, "n": n}
        row |= {"low": within and within.low, "high": within and within.high, "scores": scores}
        if isinstance(choice, str):
            row["error"] = choice
        else:
            best = choice.record["best"]
            row["values"] = [one["values"] for one in best] if isinstance(best, list) else best["values"]
            row |= {name: choice.record[name] for name in ("runs", "seconds", "images")}
            if failed := [run for run in runs if isinstance(run, str)]:
                row["error"] = one_line(failed[0], 400)
        rows.append(row)
    for row, place in zip(rows, places([row["mean"] for row in rows]), strict=True):
        row["rank"] = place
    return sorted(rows, key=lambda row: (row["rank"] is None, row["rank"]))


def _agreements(ways: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how far each two rankings agree, over the strategies that both have."""
    means = [{row["strategy"]: row["mean"] for row in way["ranking"]} for way in ways]
    found = []
    for i, one in enumerate(ways):
        for j in range(i + 1, len(ways)):
            labels = [label for label, mean in means[i].items() if mean is not None and means[j].get(label) is not None]
            tau = agreement([means[i][label] for label in labels], [means[j][label] for label in labels])
            found.append({"ways": [one["name"], ways[j]["name"]], "tau": tau, "n": len(labels)})
    return found


def _plain(search: Search) -> dict[str, Any]:
    return {name: value for name, value in search.asked.items() if name not in ("validation", "seed")}


def _built(scenario: AnyScenario, planned: PlannedRun) -> Scenario:
    return scenario if isinstance(scenario, Scenario) else prepare(planned.config)[1]


def _name(of: Any) -> str:
    return of.name if isinstance(of, Scenario) else of.__name__ if isinstance(of, type) else os.fspath(of)
