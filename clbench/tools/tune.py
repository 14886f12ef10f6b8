"""tune(): hyper-parameters chosen on validation images, for one scenario or to be judged on others."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.space import Space, read_space
from clbench.data.scenario import Scenario
from clbench.data.spec import ScenarioSpec
from clbench.learning.strategy import Strategy
from clbench.many.compare import requests
from clbench.running.observer import Observer
from clbench.support.files import expanded
from clbench.support.surroundings import undisturbed
from clbench.tools.judge import Judged, judge
from clbench.tools.search import (
    PROTOCOLS,
    AnyScenario,
    AnyStrategy,
    Search,
    Trial,
    Tuned,
    held_out,
    plan_search,
    searchable,
)

__all__ = ["PROTOCOLS", "Judged", "Tuned", "held_out", "tune"]


@overload
def tune(
    scenario: AnyScenario,
    strategy: AnyStrategy,
    *,
    protocol: str | None = ...,
    first_tasks: int | None = ...,
    trials: int | None = ...,
    space: str | Mapping[str, Space] | None = ...,
    judge_on: None = None,
    out: str | os.PathLike[str] | None = ...,
    observer: Observer | None = ...,
    told: Callable[[Trial], None] = ...,
    quiet: bool = ...,
    **options: Any,
) -> Tuned: ...


@overload
def tune(
    scenario: AnyScenario,
    strategy: AnyStrategy | Sequence[AnyStrategy],
    *,
    judge_on: AnyScenario | Sequence[AnyScenario],
    beside: Sequence[str] = ...,
    seeds: int | Sequence[int] | None = ...,
    protocol: str | None = ...,
    first_tasks: int | None = ...,
    trials: int | None = ...,
    space: str | Mapping[str, Space] | None = ...,
    out: str | os.PathLike[str] | None = ...,
    observer: Observer | None = ...,
    told: Callable[[Trial], None] = ...,
    quiet: bool = ...,
    **options: Any,
) -> Judged: ...


@checked
@undisturbed()
def tune(
    scenario: str | os.PathLike[str] | Scenario | type[ScenarioSpec],
    strategy: str | type[Strategy] | Sequence[str | type[Strategy]],
    *,
    protocol: str | None = None,
    first_tasks: int | None = None,
    trials: int | None = None,
    space: str | Mapping[str, Space] | None = None,
    judge_on: str
    | os.PathLike[str]
    | Scenario
    | type[ScenarioSpec]
    | Sequence[str | os.PathLike[str] | Scenario | type[ScenarioSpec]]
    | None = None,
    beside: Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    out: str | os.PathLike[str] | None = None,
    observer: Observer | None = None,
    told: Callable[[Trial], None] = lambda trial: None,
    quiet: bool = False,
    **options: Any,
) -> Tuned | Judged:
    """Search for the hyper-parameters of a strategy on validation images, and write tune.json and best.toml.

    protocol "first-k-tasks" (default): the best average accuracy after the first `first_tasks` tasks (Chaudhry et al.
    2019, arXiv:1812.00420); later tasks are not in the trials' scenario. "oracle": that of the whole stream, on the
    validation images of all tasks. Both take `trials` trials of Optuna's TPE, the values in force being the first.
    "continual": in each task the learning rate with which naive fine-tuning learns it best, then the log ranges from
    their upper ends, halved until its accuracy is at least 80 % of that (De Lange et al. 2021, arXiv:1909.08383,
    algorithm 1), judged on the current task's validation images.

    space: what is searched, such as "strength=log:0.1:100,lr=0.01|0.1"; by default what the strategy declares, or the
    learning rate. options: as of run(); a Scenario brings its own validation split. told: called after each trial.
    quiet: show no progress on stderr. Finished trials are not repeated. Raises ConfigError before any training,
    RunError when every trial fails.

    judge_on: other scenarios, or one, of the same setting and number of tasks. One or several strategies are tuned on
    `scenario`, by default with the protocol "oracle", and run with the chosen values on each of these, whose data no
    search has seen (Cha & Cho 2024, arXiv:2403.09066). The result is a Judged: the ranking, and what the search cost.
    beside: protocols by which each judged scenario is tuned on itself too, for the ranking that they would give.
    seeds: of the judged runs, a number of them or a list (default: 5). out: the folder of all searches and runs.
    A strategy that fails in every trial is in the record with the reason, and the others are judged.
    """
    if judge_on is None:
        strategy = strategy[0] if not isinstance(strategy, str | type) and len(strategy) == 1 else strategy
        if not isinstance(strategy, str | type):
            raise ConfigError(f"{len(strategy)} strategies are given; one is accepted, or judge_on beside several")
        for name, value in (("beside", beside or None), ("seeds", seeds)):
            if value is not None:
                raise ConfigError(f"{name}={shown(value)} is for judge_on, which is not given")
        return plan_search(scenario, strategy, protocol or PROTOCOLS[0], first_tasks, trials, space, out, options).find(
            observer, told, quiet=quiet
        )
    protocols = [protocol or "oracle", *beside]
    if len(set(beside)) < len(beside):
        raise ConfigError(f"beside={','.join(beside)}; each protocol once is accepted")
    for name, value, takes in (
        ("first_tasks", first_tasks, {PROTOCOLS[0]}),
        ("trials", trials, {*PROTOCOLS} - {"continual"}),
    ):
        if value is not None and all(p in PROTOCOLS for p in protocols) and not takes & {*protocols}:
            raise ConfigError(f"{name}={value} is for protocol {' and '.join(sorted(takes))}, not {protocols[0]}")
    root = expanded(out or "tuning")

    def searches(of: AnyScenario, how: str) -> list[Search]:
        """Plan a search for each strategy."""
        found = []
        made: list[tuple[Any, Scenario]] = []
        asked = requests(of, strategy, seeds=[options.get("seed") or 0], references=False, **rest)
        known = {name for request in asked for name in searchable(request.strategy)}
        for name in {} if space is None else read_space(space):
            if name not in known:
                raise unknown("option of the strategies", name, known)
        for request in asked:
            # Each strategy takes what it has of a space for several; one that has nothing of it takes what it declares.
            own = searchable(request.strategy)
            mine = None if space is None else {n: part for n, part in read_space(space).items() if n in own} or None
            first = first_tasks if how == PROTOCOLS[0] else None
            n = None if how == "continual" else trials
            found.append(
                plan_search(of, request.strategy, how, first, n, mine, None, dict(request.options), root, made)
            )
        return found

    rest = {name: value for name, value in options.items() if name != "seed"}
    judged_on = [judge_on] if isinstance(judge_on, str | os.PathLike | Scenario | type) else judge_on
    return judge(
        searches,
        scenario,
        judged_on,
        protocols,
        seeds=5 if seeds is None else seeds,
        out=root,
        observer=observer,
        told=told,
        quiet=quiet,
    )
