"""Searches for hyper-parameters on validation images; no test image is in the scenario that the trials are given."""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clbench.config.errors import ConfigError, RunError, unknown
from clbench.config.registry import parse_spec
from clbench.config.run import RunConfig, make_config
from clbench.config.space import Choices, Log, Space, declared, read_space
from clbench.data.scenario import Images, ImageSet, Scenario
from clbench.data.sources import some
from clbench.data.spec import ScenarioSpec
from clbench.learning.strategy import Strategy
from clbench.results.record import whole_row
from clbench.results.result import Result
from clbench.running.check import check
from clbench.running.checkpoint import newest
from clbench.running.display import Display, Named
from clbench.running.folder import RunFolder
from clbench.running.observer import Observer
from clbench.running.packing import pack, unpack
from clbench.running.process import process_settings
from clbench.running.progress import Pace
from clbench.running.resolve import _trainable_fields, parse_fields, prepare, resolve, strategy_class
from clbench.running.run import Run, execute, runner_of
from clbench.support.files import expanded, write_atomically
from clbench.support.streams import stream_seed
from clbench.support.text import tell

PROTOCOLS = ("first-k-tasks", "continual", "oracle")
VALIDATION, TRIALS, FIRST_TASKS = 0.1, 20, 3
# Learning rates that the plasticity search tries, of a log range.
GRID = 5
# De Lange et al. 2021, arXiv:1909.08383, algorithm 1: the accuracy margin p and the decaying factor alpha.
MARGIN, DECAY = 0.2, 0.5

AnyScenario = str | os.PathLike[str] | Scenario | type[ScenarioSpec]
AnyStrategy = str | type[Strategy]
Trial = dict[str, Any]
Values = dict[str, Any]
# Accuracy, seconds, training images, and the sentence that says why there is no accuracy.
Found = tuple[float | None, float, int, str | None]


@dataclass(frozen=True)
class Tuned:
    """The choice of a search: `options` for run() and compare(); `record`, the content of tune.json, says how."""

    options: dict[str, Any]
    record: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Search:
    """A search that was checked: what is tuned, on which tasks, and what is searched.

    given: the scenario as it was asked for. tasks: that of the trials. asked: the options.
    n: the number of trials; None of continual.
    """

    base: RunConfig
    strategy: str | type[Strategy]
    given: Scenario
    tasks: Scenario
    spaces: dict[str, Space]
    protocol: str
    n: int | None
    key: str
    folder: Path
    asked: dict[str, Any]

    def find(self, observer: Observer | None, told: Callable[[Trial], None], *, quiet: bool) -> Tuned:
        """Search, or find what was searched; raises RunError when every trial fails."""
        base, folder = self.base, self.folder
        record: dict[str, Any] = {
            "key": self.key,
            "scenario": self.given.name,
            "setting": self.given.setting,
            "strategy": base.label,
            "protocol": self.protocol,
            "tasks": len(self.given.tasks),
            "tasks_read": len(self.tasks.tasks),
            "validation": base.data.validation or _share_held_out(self.tasks),
            "seed": base.seed,
            "space": _texts(self.spaces),
        }
        kept = _stored(folder, self.key)
        if kept is None or kept["status"] != "done" or "runs" not in kept or self.n not in (None, len(kept["trials"])):
            write_record(folder, record | {"status": "running"})
            display = Display({}, quiet=quiet)
            search = _Trials(base, self.tasks, self.spaces, folder, observer, told, display)
            with display:
                record |= search.continual() if self.n is None else search.by_trials(self.n)
            record["warnings"] = list(search.warnings.values())
            record["tuned_by"] = _tuned_by(record)
            record["status"] = "done"
            write_record(folder, record)
            if search.reused:
                tell(f"{folder}: {search.reused} of {len(search.trials)} trials reused; another folder begins one anew")
        else:
            record = kept
            tell(f"{folder}: reused, a search that is done; another folder begins one anew")
        chosen = self.chosen(record)
        write_atomically(folder / "best.toml", f"# {record['tuned_by']}\n" + _toml(chosen))
        if self.protocol == "continual":
            # Each holds a whole state, and all that is left to know of them is in tune.json.
            shutil.rmtree(folder / "trials", ignore_errors=True)
        return Tuned(chosen, record, folder)

    def chosen(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was asked for with the values that were chosen, and how: options of run(), or a --config file."""
        best = record["best"]
        values = [trial["values"] for trial in best] if self.protocol == "continual" else best["values"]
        chosen = self.with_values(values) | {"tuned_by": record["tuned_by"]}
        own = chosen.pop("strategy_options")
        return chosen | ({"strategy_options": own} if own else {})

    def with_values(self, values: Values | list[Values]) -> dict[str, Any]:
        """Return what was asked for with some values, or with those of each task."""
        found = {k: v for k, v in self.asked.items() if v is not None and k not in ("validation", "seed")}
        found["strategy_options"] = dict(found.get("strategy_options") or {})
        if isinstance(values, list):
            # The same training images, so the run of the same seed is the one that the search went through.
            return found | {k: self.asked[k] for k in ("validation",) if k in self.asked} | {"per_task": values}
        own = {k: v for k, v in values.items() if k in self.base.strategy_options}
        return (
            found
            | {k: v for k, v in values.items() if k not in own}
            | {"strategy_options": found["strategy_options"] | own}
        )

    def ends(self) -> list[dict[str, Any]]:
        """Return the options with each value at an end of what is searched, which are valid if all are."""
        return [self.with_values({name: value}) for name, space in self.spaces.items() for value in space.ends()]


def plan_search(
    scenario: AnyScenario,
    strategy: AnyStrategy,
    protocol: str,
    first_tasks: int | None,
    trials: int | None,
    space: str | Mapping[str, Space] | None,
    out: str | os.PathLike[str] | None,
    options: dict[str, Any],
    root: str | os.PathLike[str] = "tuning",
    made: list[tuple[Any, Scenario]] | None = None,
) -> Search:
    """Return the search that tune() is asked for, checked; raises ConfigError.

    root: the folder below which it has a folder of its own where `out` names none. made: keeps the scenarios that were
    built, and what from, for further searches.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if protocol != "first-k-tasks" and first_tasks is not None:
        raise ConfigError(f"first_tasks={first_tasks} is for protocol first-k-tasks, not {protocol}")
    if protocol == "continual" and trials is not None:
        raise ConfigError(f"trials={trials} is for protocols first-k-tasks and oracle; continual tries what it needs")
    if trials is not None and trials < 1:
        raise ConfigError(f"trials={trials}: 1 or more is accepted")
    _refuse(options)
    if isinstance(scenario, Scenario):
        given = scenario
    else:
        given = _built(resolve(scenario, strategy, options), made)
        if not any(len(task.validation) for task in given.tasks):
            if options.get("validation") is not None:
                raise ConfigError("validation=0 holds nothing out to choose by; a share such as 0.1 is accepted")
            options["validation"] = VALIDATION
            given = _built(resolve(scenario, strategy, options), made)
    first = None
    if protocol == "first-k-tasks":
        first = _first_tasks(FIRST_TASKS if first_tasks is None else first_tasks, given)
    tasks = held_out(given, first)
    if isinstance(scenario, Scenario):
        base = resolve(tasks, strategy, options)
    else:
        base = resolve(scenario, strategy, options).replace(data_fingerprint=tasks.fingerprint)
    if protocol != "continual" and base.evaluation.evaluate == "current":
        raise ConfigError(
            f"evaluate=current leaves the average accuracy undefined, by which {protocol} chooses; evaluate=seen, "
            "evaluate=all or the protocol continual is accepted"
        )
    if not runner_of(strategy_class(base.strategy)).continues:
        raise ConfigError(f"{base.strategy} trains by its own loop, from which tuning can't go on; others can be tuned")
    check(base, tasks, strategy_class(base.strategy)(**base.strategy_options))
    own = _own_options(strategy, options)
    fixed = {name for name, value in options.items() if value is not None} | own
    spaces = _spaces(base, protocol, space, fixed)
    if protocol != "continual":
        _need_optuna()
    key = hashlib.sha256(json.dumps([base.identity(), protocol, first, _texts(spaces)]).encode()).hexdigest()[:8]
    name = base.strategy.rpartition(":")[2]
    folder = expanded(out or Path(root, given.name, name, f"{protocol}-{key}"))
    n = None if protocol == "continual" else TRIALS if trials is None else trials
    return Search(base, strategy, given, tasks, spaces, protocol, n, key, folder, options)


def _built(config: RunConfig, made: list[tuple[Any, Scenario]] | None) -> Scenario:
    """Return the scenario of a config, built here or for an earlier search."""
    made = [] if made is None else made
    key = (config.scenario, config.scenario_options, config.data, config.seed)
    if (found := next((one for known, one in made if known == key), None)) is None:
        found = prepare(config)[1]
        made.append((key, found))
    return found


def images_of(result: Result) -> int:
    """Return how many training images a run went through, those of its memory included, each as often as it was."""
    return sum((epoch.images or 0) + epoch.replayed for epoch in result.recorded.training)


def held_out(scenario: Scenario, first: int | None = None) -> Scenario:
    """Return the first tasks (default: all), to be tested on their validation images.

    Only the training and validation images of these tasks are in it; raises ConfigError for a task without the latter.
    """
    tasks = scenario.tasks[:first]
    for task in tasks:
        if not len(task.validation):
            raise ConfigError(f"task {task.index} has no validation images to choose by; give validation, such as 0.1")
    if scenario.blurred and first is not None and scenario.setting == "class":
        raise ConfigError("first-k-tasks needs tasks without classes of later ones, and these are blurry; try oracle")
    # The test data are not looked at: the check is of a scenario that is tested on its validation images.
    tested = [replace(task, test=task.validation) for task in tasks]
    replace(scenario, tasks=tested, test=scenario.train).check()
    held = torch.cat([task.validation.ids for task in tasks])
    known = torch.cat([held, *(task.train.ids for task in tasks)]).unique()
    train, test = _rows(scenario.train, known), _rows(scenario.train, held)
    starts = [0, *torch.tensor([len(task.validation) for task in tasks]).cumsum(0).tolist()]
    made = [
        replace(
            task,
            train=ImageSet(train, torch.searchsorted(known, task.train.ids)),
            validation=ImageSet(train, torch.searchsorted(known, task.validation.ids)),
            test=ImageSet(test, torch.arange(starts[i], starts[i + 1])),
        )
        for i, task in enumerate(tasks)
    ]
    # The name keeps these runs apart from those that were tested on test images.
    found = replace(scenario, name=f"{scenario.name} (validation)", tasks=made, train=train, test=test)
    return found.of(found.digest())


def _share_held_out(scenario: Scenario) -> float:
    """Return the share of the training images that is held out, where the data themselves say which."""
    held = sum(len(task.validation) for task in scenario.tasks)
    return held / (held + sum(len(task.train) for task in scenario.tasks))


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write tune.json; raises ConfigError when it can't."""
    try:
        write_atomically(folder / "tune.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}; a folder that can be written is accepted") from None


class _Trials:
    """The trials of a search under way."""

    def __init__(
        self,
        base: RunConfig,
        scenario: Scenario,
        spaces: dict[str, Space],
        folder: Path,
        observer: Observer | None,
        told: Callable[[Trial], None],
        display: Display,
    ) -> None:
        self.base, self.scenario, self.spaces = base, scenario, spaces
        self.kind = strategy_class(base.strategy)
        self.folder, self.observer, self.told = folder / "trials", observer, told
        self.display = display
        self.trials: list[Trial] = []
        self.reused = 0
        self.done: set[Path] = set()
        # The first warning of each rule, for a reader of the trials.
        self.warnings: dict[str, dict[str, str]] = {}

    def by_trials(self, n: int) -> dict[str, Any]:
        """Let Optuna propose n trials; the sampler is seeded, so a search that goes on proposes the same ones again."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=stream_seed(self.base.seed, "tune") % 2**32)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        now = {name: _value(self.base, name) for name in self.spaces}
        if all(now[name] in space for name, space in self.spaces.items()):
            study.enqueue_trial(now)
        for _ in range(n):
            proposed = study.ask()
            values = {name: _suggest(proposed, name, space) for name, space in self.spaces.items()}
            config = _with_values(self.base, values)
            trial = self._note(values, self._run(config))
            if trial["score"] is None:
                study.tell(proposed, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(proposed, trial["score"])
        best = self._best(self.trials)
        return {"trials": self.trials, "best": best} | self._cost()

    def continual(self) -> dict[str, Any]:
        """Choose for each task in turn; the chosen state of a task is where all candidates of the next one begin."""
        rates = self.spaces["lr"]
        grid = rates.grid(GRID) if isinstance(rates, Log) else list(rates.values)
        weights = {name: space for name, space in self.spaces.items() if name != "lr" and isinstance(space, Log)}
        state: dict[str, Any] | None = None
        best: list[Trial] = []
        plain: Values = {"strategy": "naive", "strategy_options": {}, "label": "naive"}
        plain |= dict.fromkeys(("memory_size", "memory_per_class", "memory_policy"))
        for task in range(len(self.scenario.tasks)):
            before = None if state is None else state | {"strategy": {"model": state["strategy"]["model"]}}
            tried = []
            for rate in grid:
                config = self.base.replace(**plain, lr=rate)
                _, found = self._one_task(config, task, f"naive-lr={rate:g}", before)
                tried.append(self._note({"lr": rate}, found, task=task, phase="plasticity"))
            fastest = self._best(tried)
            values: Values = {"lr": fastest["values"]["lr"]} | {name: space.high for name, space in weights.items()}
            while True:
                shown = ",".join(f"{name}={value:g}" for name, value in values.items())
                config = _with_values(self.base, values)
                reached, found = self._one_task(config, task, shown, state)
                trial = self._note(dict(values), found, task=task, phase="stability")
                if trial["score"] is not None and trial["score"] >= (1 - MARGIN) * fastest["score"]:
                    break
                if all(values[name] == space.low for name, space in weights.items()):
                    break
                values |= {name: max(DECAY * values[name], space.low) for name, space in weights.items()}
            if reached is None:
                raise RunError(f"task {task} can't be learnt with any weight: {trial['error']}")
            state = reached
            best.append(trial | {"plasticity": fastest["score"]})
        return {"trials": self.trials, "best": best} | self._cost()

    def _run(self, config: RunConfig) -> Found:
        """Do an ordinary run, or find it done; return what it found."""
        folder = RunFolder(self.folder / config.identity()[:8])
        started = time.perf_counter()
        try:
            result = folder.existing(config)
            if result is not None and result.status == "done":
                # Values that are proposed again within a search are no reuse of an earlier one.
                self.reused += folder.path not in self.done
            else:
                with self._shown(config, folder):
                    result = execute(config, self.scenario, folder, resume=True, observer=self.observer)
        except ConfigError:
            raise
        except Exception as error:  # whatever a strategy raises: other values may do
            return None, time.perf_counter() - started, 0, _sentence(error)
        self.done.add(folder.path)
        self._hear(result.record["warnings"])
        return result.metrics["average_accuracy"], sum(result.seconds.values()), images_of(result), None

    def _one_task(
        self, config: RunConfig, task: int, name: str, before: dict[str, Any] | None
    ) -> tuple[dict[str, Any] | None, Found]:
        """Learn one task from a state on, or find it learnt; return the state and how good it is on that task."""
        tasks = [
            replace(t, test=t.test if t.index == task else t.test.subset(torch.arange(0))) for t in self.scenario.tasks
        ]
        scenario = replace(self.scenario, tasks=tasks)
        strategy = strategy_class(config.strategy)(**config.strategy_options)
        check(config, scenario, strategy)
        folder = RunFolder(self.folder / f"task-{task}" / name)
        with folder.lock(), process_settings(config):
            # It is judged on this task alone; its checkpoint is all that it leaves.
            pace = Pace(folder.path)
            candidate = Run(config, scenario, strategy, observers=[self.observer or Observer(), pace], store=folder)
            learnt = newest(folder, type(strategy))
            if learnt is None or learnt.task <= task:
                if before is not None:
                    candidate.begin_at(pack(before))
                try:
                    with self._shown(config, folder), closing(pace):
                        pace.begin(config, scenario, task)
                        candidate.learn(scenario.tasks[task])
                except Exception as error:  # as above
                    return None, (None, 0.0, 0, _sentence(error))
                learnt = newest(folder, type(strategy))
            if learnt is None or learnt.start is None:
                raise RunError(f"{folder}: what was learnt of task {task} is gone")
            done = Result(learnt.record)
            self._hear(learnt.record["warnings"])
            score = whole_row(done.recorded.accuracy[done.recorded.headline.matrix], task)[task]
            return unpack(learnt.start, self.kind), (score, sum(done.seconds.values()), images_of(done), None)

    @contextmanager
    def _shown(self, config: RunConfig, folder: RunFolder) -> Iterator[None]:
        """Show a trial while it goes on."""
        label = f"trial {len(self.trials)} of {config.label}"
        self.display.begins(folder.path, Named(label, config.seed))
        try:
            yield
        finally:
            self.display.finished(folder.path)

    def _hear(self, warnings: list[dict[str, str]]) -> None:
        self.warnings = {warning["rule"]: warning for warning in warnings} | self.warnings

    def _note(self, values: Values, found: Found, **more: Any) -> Trial:
        score, seconds, images, error = found
        trial = {"trial": len(self.trials), **more, "values": values, "score": score, "seconds": seconds}
        trial["images"] = images
        if error is not None:
            trial["error"] = error
        self.trials.append(trial)
        self.told(trial)
        return trial

    def _best(self, trials: list[Trial]) -> Trial:
        done = [trial for trial in trials if trial["score"] is not None]
        if not done:
            raise RunError(f"none of {len(trials)} trials could be judged; the last one: {trials[-1].get('error')}")
        return max(done, key=lambda trial: trial["score"])

    def _cost(self) -> dict[str, Any]:
        """Return what the trials cost; one with the values of an earlier one is that run again, and costs nothing."""
        once = {json.dumps([t.get("task"), t.get("phase"), t["values"]]): t for t in reversed(self.trials)}.values()
        sums = {name: math.fsum(trial[name] for trial in once) for name in ("seconds", "images")}
        return {"runs": len(once), "seconds": sums["seconds"], "images": int(sums["images"])}


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"


def _refuse(options: Mapping[str, Any]) -> None:
    for name in ("per_task", "tuned_by"):
        if options.get(name) is not None:
            raise ConfigError(f"{name} is what a search finds; leave it out of the options that it is given")


def _first_tasks(first: int, scenario: Scenario) -> int:
    n = len(scenario.tasks)
    if not 2 <= first < n:
        accepted = f"2 to {n - 1} are accepted" if n > 2 else "continual and oracle are accepted"
        raise ConfigError(f"first_tasks={first} of {n} tasks: first-k-tasks needs 2 or more, and not all; {accepted}")
    return first


def searchable(strategy: AnyStrategy) -> set[str]:
    """Return what can be searched for a strategy: its own options and the fields of the training."""
    name = strategy if isinstance(strategy, type) else parse_spec(strategy)[0]
    cls = name if isinstance(name, type) else strategy_class(name)
    return {*cls._options.model_fields, *_trainable_fields()}


def _own_options(strategy: str | type[Strategy], options: Mapping[str, Any]) -> set[str]:
    bracket = parse_spec(strategy)[1] if isinstance(strategy, str) else {}
    return {*bracket, *(options.get("strategy_options") or {})}


def _spaces(
    base: RunConfig, protocol: str, asked: str | Mapping[str, Space] | None, fixed: set[str]
) -> dict[str, Space]:
    """Return what is searched, each value checked; raises ConfigError before anything is tried."""
    options, lr = strategy_class(base.strategy)._options, base.training.lr
    rate: Space = Choices(lr) if "lr" in fixed else Log(lr / 10, lr * 10)
    if asked is not None:
        found = {name: _typed(base, name, space) for name, space in read_space(asked).items()}
        if clash := next((name for name in found if name in fixed), None):
            raise ConfigError(f"{clash} is given and searched for; leave it out of the options or of the space")
    else:
        found = {name: space for name, space in declared(options).items() if name not in fixed}
        if protocol == "continual":
            found = {name: space for name, space in found.items() if isinstance(space, Log)}
        elif not found and "lr" not in fixed:
            found = {"lr": rate}
    if protocol == "continual":
        found = {"lr": rate} | found
        odd = [n for n, s in found.items() if n != "lr" and (n not in options.model_fields or isinstance(s, Choices))]
        if odd or len(found) == 1:
            what = f"{odd[0]}={found[odd[0]]} is none" if odd else f"{base.label} declares none"
            raise ConfigError(
                f"continual lowers weights of the strategy from the upper end of a log range, and {what}; "
                "--space NAME=log:LOW:HIGH or another protocol is accepted"
            )
    if not found:
        raise ConfigError(f"nothing is left to search for {base.label}; --space NAME=log:LOW:HIGH is accepted")
    for name, space in found.items():
        for value in space.ends():
            _with_values(base, {name: value})
    return found


def _typed(base: RunConfig, name: str, space: Space) -> Space:
    """Return a space whose choices, perhaps given as text, have the option's type; raises ConfigError for no option."""
    cls, training = strategy_class(base.strategy), _trainable_fields()
    if name not in cls._options.model_fields and name not in training:
        raise unknown(f"option of {base.strategy}", name, [*cls._options.model_fields, *training])
    if isinstance(space, Log):
        return space
    if name in cls._options.model_fields:
        return Choices(*(cls.validate({**base.strategy_options, name: v}, base.strategy)[name] for v in space.values))
    return Choices(*(parse_fields({name: v})[name] for v in space.values))


def _with_values(base: RunConfig, values: Values) -> RunConfig:
    """Return the config with other values, the strategy's own and those of the training; raises ConfigError."""
    cls = strategy_class(base.strategy)
    own = {name: value for name, value in values.items() if name in cls._options.model_fields}
    training = {name: value for name, value in values.items() if name not in own}
    options = cls.validate({**base.strategy_options, **own}, base.strategy)
    return make_config({**base.values(), **training, "strategy_options": options})


def _value(base: RunConfig, name: str) -> Any:
    return base.strategy_options[name] if name in base.strategy_options else base.values()[name]


def _suggest(trial: Any, name: str, space: Space) -> Any:
    if isinstance(space, Log):
        return space.rounded(trial.suggest_float(name, space.low, space.high, log=True))
    return trial.suggest_categorical(name, list(space.values))


def _stored(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the search that a folder holds, None for a new one; raises ConfigError when it is another one."""
    try:
        found: dict[str, Any] = json.loads((folder / "tune.json").read_text("utf-8"))
        if found["key"] == key:
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"{folder} holds another search; name another folder with --out")


def _tuned_by(record: Mapping[str, Any]) -> str:
    """Return how the values were chosen, in one line; one of an oracle begins so."""
    n, of = record["tasks"], record["tasks_read"]
    if record["protocol"] == "continual":
        how = f"continual, {len(record['trials'])} trainings, in each task on its validation images"
        return f"{how} ({record['validation']:.3g} of the training images)"
    how = {
        "first-k-tasks": f"first-k-tasks, {len(record['trials'])} trials on the first {of} of {n} tasks",
        "oracle": f"oracle, {len(record['trials'])} trials that know all {n} tasks",
    }[record["protocol"]]
    values = ", ".join(f"{name}={value}" for name, value in record["best"]["values"].items())
    return f"{how}, by validation images ({record['validation']:.3g} of the training images): {values}"


def _toml(options: Mapping[str, Any]) -> str:
    """Return options as TOML, whose scalars, lists and strings are those of JSON; tables come last."""
    tables = ("strategy_options", "per_task")
    lines = [*_lines({k: v for k, v in options.items() if k not in tables})]
    if options.get("strategy_options"):
        lines += ["", "[strategy_options]", *_lines(options["strategy_options"])]
    for values in options.get("per_task") or ():
        lines += ["", "[[per_task]]", *_lines(values)]
    return "\n".join(lines) + "\n"


def _lines(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"{name} = {json.dumps('none' if value is None else value, ensure_ascii=False)}"


def _rows(images: Images, ids: Tensor) -> Images:
    return Images(some(images.images, ids), images.labels[ids], images.classes[ids], images.tasks[ids])


def _texts(spaces: Mapping[str, Space]) -> dict[str, str]:
    return {name: str(space) for name, space in spaces.items()}


def _need_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("clbench tune needs Optuna; pip install 'clbench[tune]' brings it") from None
