"""run(): the tasks of a scenario in order, one strategy, two accuracy matrices, every number kept."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import nn

from clbench.config.errors import ConfigError, RunError
from clbench.config.run import RunConfig
from clbench.data.batches import Pipeline
from clbench.data.scenario import ImageSet, Scenario, Task
from clbench.learning.compiled import refuse_compiled
from clbench.learning.evaluation import MATRICES, Evaluation, evaluate
from clbench.learning.memory import MEMORIES
from clbench.learning.strategy import Context, Progress, Stage, Strategy, grow_head, initial_model, new_model
from clbench.learning.trainer import Trainer, backbone_below
from clbench.results import metrics
from clbench.results.result import Result
from clbench.running.folder import RunFolder, default_folder, pack, unpack
from clbench.running.observer import Observer, both
from clbench.running.process import peak_memory, process_settings
from clbench.running.record import above_budget, differences, measure, new_record, warning
from clbench.running.resolve import prepare, resolve, strategy_class
from clbench.support.interruption import Interruption
from clbench.support.streams import stream

# The form of a checkpoint; one of another form is refused.
FORM = 1


def run(
    scenario: str | Scenario,
    strategy: str | type[Strategy],
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    observer: Observer | None = None,
    track: str | None = None,
    **options: Any,
) -> Result:
    """Run one strategy on one scenario and return its result, which is also in the run folder `out`.

    options: fields of RunConfig; a strategy's own go into `strategy_options`. A finished run is not repeated; an
    unfinished one is continued with `resume` and begun again with `force`. track: `tensorboard`, `wandb` or `mlflow`,
    where losses and accuracies go too. Raises ConfigError for a request that can't be met, before any training, and
    RunError when the training fails.
    """
    config = resolve(scenario, strategy, options)
    if isinstance(scenario, str):
        config, scenario = prepare(config)
    folder = RunFolder(out or default_folder(config))
    return execute(config, scenario, folder, resume=resume, force=force, observer=observer, track=track)


def execute(
    config: RunConfig,
    scenario: Scenario,
    folder: RunFolder,
    *,
    resume: bool = False,
    force: bool = False,
    observer: Observer | None = None,
    track: str | None = None,
    trainer: Callable[[Context, Strategy], Trainer] = Trainer,
) -> Result:
    """Run a complete config in a folder, or return what is there already; see run(). `trainer` fits the stages."""
    from clbench.running.tracking import require_tracker

    tracker = None if track is None else require_tracker(track)
    if config.evaluation.evaluate_on == "train":
        scenario = scenario.tested_on_training()
    strategy = strategy_class(config.strategy)(**config.strategy_options)
    check(config, scenario, strategy)
    if force and not folder.is_ours():
        raise ConfigError(f"{folder.path} holds files that no run of clbench left; name another folder")
    if not force and (found := folder.existing(config)) is not None and found.status == "done":
        # It may be where nothing can be written, not even a lock.
        return _reused(found, folder)
    with folder.lock(), process_settings(config):
        if force:
            folder.clear()
        found = folder.existing(config)
        if found is not None and found.status == "done":
            return _reused(found, folder)
        if found is not None and strategy.foreign and not resume:
            raise ConfigError(
                f"{folder.path} holds an unfinished run, which {config.strategy} can't continue; "
                "--force begins it again"
            )
        if found is not None and found.record["tasks"] and not folder.has_checkpoint() and not strategy.foreign:
            raise ConfigError(f"{folder.path} holds an unfinished run without its checkpoint; --force begins it again")
        if found is not None and not resume:
            raise ConfigError(f"{folder.path} holds an unfinished run; --resume continues it, --force begins it again")
        observer = observer or Observer()
        if tracker is not None:
            observer = both(observer, tracker(folder.path))
        return _Run(config, scenario, strategy, folder, observer, trainer).go(found)


def _reused(found: Result, folder: RunFolder) -> Result:
    if (made_by := found.record["clbench"]) != metadata.version("clbench"):
        warnings.warn(f"{folder.path}: reused, a run of clbench {made_by}", stacklevel=3)
    return found


class _Run:
    """One run under way."""

    def __init__(
        self,
        config: RunConfig,
        scenario: Scenario,
        strategy: Strategy,
        folder: RunFolder,
        observer: Observer,
        trainer: Callable[[Context, Strategy], Trainer] = Trainer,
    ) -> None:
        self.config, self.scenario, self.strategy = config, scenario, strategy
        self.folder, self.observer = folder, observer
        device = torch.device(config.engine.device)
        pipeline = Pipeline(scenario, config, device)
        self.context = Context(config, scenario, pipeline, device, Progress())
        self.trainer = trainer(self.context, strategy)
        strategy._context = self.context
        strategy.model = new_model(self.context, 0)
        backbone_below(strategy.model, config.training.train)
        if config.memory.budget:
            assert config.memory.policy is not None
            strategy.memory = MEMORIES[config.memory.policy](
                size=config.memory.size, per_class=config.memory.per_class, rounding=config.memory.rounding
            )
        self.record = new_record(config, scenario, strategy)
        # What was learnt before the task under way, packed: a checkpoint within a task begins the task again with it.
        self._start: bytes | None = None
        self._saved = time.monotonic()
        self._interruption = Interruption()

    def go(self, found: Result | None) -> Result:
        """Learn the tasks that are left of the run that was found, if any; return the result."""
        first, within = self._restore(found)
        self.observer.begin(self.config, self.scenario, first)
        try:
            if self.record["resumes"]:
                under_way = [] if within is None else [*within["epochs"], *within["trainer"]["records"]]
                self.observer.resumed([*self.record["training"], *under_way])
            if found is None or len(found.record["tasks"]) <= len(self.record["tasks"]):
                self._write()
            # A loop that can't be saved has nothing to wait for, and may not come to a step for long.
            with nullcontext() if self.strategy.foreign else self._interruption:
                return self._go(first, within)
        finally:
            self.observer.close()

    def _go(self, first: int, within: dict[str, Any] | None) -> Result:
        try:
            for task in self.scenario.tasks[first:]:
                self._learn(task, within)
                within = None
                if self._interruption.signal is not None:
                    self._interruption.pass_on()
        except Exception as error:  # whatever a strategy raises
            kind = "" if isinstance(error, RunError | ConfigError) else f"{type(error).__name__}: "
            progress = self.context.progress
            at = {name: getattr(progress, name) for name in ("task", "stage", "epoch", "step")}
            self.record |= {"status": "failed", "error": f"{kind}{error}", "failed_at": at}
            self._write()
            raise
        self.folder.save_model(self.strategy.model.state_dict())
        self.record["status"] = "done"
        result = self._write()
        # Only now: a kill before this line leaves a run that can be continued.
        self.folder.drop_checkpoint()
        return result

    def _learn(self, task: Task, within: dict[str, Any] | None = None) -> None:
        """Learn one task, or what is left of it: `within` is what _at_rest() saved."""
        strategy, scenario, progress = self.strategy, self.scenario, self.context.progress
        if self.context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.context.device)
        vars(progress).update(vars(Progress(task=task.index)))
        self.context.logged.clear()
        if self.config.per_task is not None:
            self._take(self.config.per_task[task.index])
        # The strategy's view of the data ends with the task.
        view = Task(
            task.index,
            task.classes,
            task.outputs,
            ImageSet(scenario.train, task.train.ids),
            ImageSet(scenario.train, task.validation.ids),
            ImageSet(scenario.test, task.test.ids[:0]),
        )
        self.evaluating, self._started = 0.0, time.perf_counter()
        if task.index == 0:
            strategy.begin_run()
        strategy.begin_task(view)
        full = self.config.model.head == "full"
        grow_head(strategy.model, self.context, scenario.n_outputs if full else scenario.seen_outputs(task.index))
        if task.index == 0 and within is None:
            self._untrained()
        stages = strategy.stages(view)
        epochs = self._fit(stages, within)
        trained = time.perf_counter()
        self._fill_memory(view)
        strategy.end_task(view)
        remembered = time.perf_counter()
        before = self.evaluating
        self._evaluate(task.index)
        seconds = {
            "train": trained - self._started - before,
            "evaluation": self.evaluating,
            "memory": remembered - trained,
        }
        for data in (view.train, view.validation):
            data.expire()
        self._log_task(task.index, max((len(stage.data) for stage in stages), default=0), epochs, seconds)
        if not strategy.foreign:
            self._start = pack({"strategy": strategy.state(), "optimizer_state": self.trainer.optimizer_state})
            self._save(task.index + 1, None)
        self._write()
        self.observer.task(task.index, self.record["accuracy"][self.record["headline"]["matrix"]][task.index])

    def _fit(self, stages: list[Stage], within: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Fit a task's stages, or what is left of them, and return a record per epoch.

        Where the task was interrupted, its stages have been declared again, by the strategy as it was when the task
        began. So data and losses are the same; what was learnt since is put in place now.
        """
        first, epochs, stored = 0, list[dict[str, Any]](), None
        if within is not None:
            with self._taking_up():
                stages = self._go_back(within, stages)
                first, epochs, stored = within["stage"], within["epochs"], within["trainer"]
        for index, stage in enumerate(stages[first:], first):
            epochs += self.trainer.fit(
                stage,
                after_step=self._after_step,
                after_epoch=self._after_epoch,
                at_rest=partial(self._at_rest, stages, index, epochs),
                stored=stored,
            )
            stored = None
        return epochs

    def _at_rest(self, stages: list[Stage], index: int, epochs: list[dict[str, Any]], epoch_is_over: bool) -> None:
        """Between two steps: save where the task is when it is time to, and end where an interruption waits."""
        if not self._is_due(epoch_is_over):
            return
        started = time.perf_counter()
        # One file, so that parameters in several places are one object each when it is read.
        within = {
            "stages": [stage.name for stage in stages],
            "parameters": [stage.parameters for stage in stages],
            "stage": index,
            "epochs": epochs,
            "strategy": self.strategy.state(),
            "trainer": self.trainer.state(),
            "logged": dict(self.context.logged),
            "seconds": (started - self._started, self.evaluating),
        }
        try:
            self._save(self.context.progress.task, within)
        except RunError as error:
            # The disk may have room again by the end of the task; what is there already can be continued.
            warnings.warn(f"{error}; the run goes on", stacklevel=2)
            self._saved = time.monotonic()
        if self._interruption.signal is not None:
            self._interruption.pass_on()
        self._started += time.perf_counter() - started

    def _is_due(self, epoch_is_over: bool) -> bool:
        every = self.config.engine.checkpoint_every
        if self.strategy.foreign:
            return False
        if self._interruption.signal is not None:
            return True
        if isinstance(every, float):
            return time.monotonic() - self._saved >= 60 * every
        if every in ("epoch", "task"):
            return every == "epoch" and epoch_is_over
        return not epoch_is_over and self.context.progress.step % int(every.removesuffix("-steps")) == 0

    def _save(self, task: int, within: dict[str, Any] | None) -> None:
        start = None if self._start is None else torch.frombuffer(bytearray(self._start), dtype=torch.uint8)
        payload = {"form": FORM, "identity": self.record["identity"], "record": self.record, "task": task}
        self.folder.save_checkpoint(payload | {"start": start, "within": within})
        self._saved = time.monotonic()
        self.trainer.saved = _position(task, within)

    def _go_back(self, within: dict[str, Any], stages: list[Stage]) -> list[Stage]:
        """Put the strategy back to where it was within the task; return its stages with the parameters it has now."""
        if within["stages"] != [stage.name for stage in stages]:
            raise ConfigError(
                f"{self.folder.path}: its checkpoint is within stages {', '.join(within['stages'])}, and "
                f"{self.config.strategy} has others now; --force begins the run again"
            )
        self.strategy.load_state(within["strategy"])
        self.context.logged.update(within["logged"])
        trained, self.evaluating = within["seconds"]
        self._started = time.perf_counter() - trained
        return [replace(stage, parameters=p) for stage, p in zip(stages, within["parameters"], strict=True)]

    def _take(self, values: dict[str, Any]) -> None:
        """Put the values in force that hold in the task to come."""
        config = self.config.replace(**{k: v for k, v in values.items() if k == "lr"})
        self.context.config = self.trainer.config = config
        vars(self.strategy).update({k: v for k, v in values.items() if k != "lr"})

    def _after_step(self, loss: float | None) -> None:
        every, progress = self.config.evaluation.eval_every, self.context.progress
        self.observer.step(progress, loss)
        if isinstance(every, int) and progress.step % every == 0:
            self._evaluate_midway()

    def _after_epoch(self, record: dict[str, Any]) -> None:
        self.observer.epoch(record)
        if self.config.evaluation.eval_every == "epoch":
            self._evaluate_midway()

    def _evaluate_midway(self) -> None:
        progress = self.context.progress
        evaluation = self._timed_evaluation()
        headline = next(iter(evaluation.classifiers))
        self.record["evaluations"].append(
            {"task": progress.task, "stage": progress.stage, "epoch": progress.epoch, "step": progress.step}
            | {matrix: evaluation.row(headline, matrix) for matrix in MATRICES}
        )

    def _timed_evaluation(self) -> Evaluation:
        started = time.perf_counter()
        evaluation = evaluate(self.strategy, self.context, self.context.progress.task)
        self.evaluating += time.perf_counter() - started
        return evaluation

    def _untrained(self) -> None:
        evaluation = self._timed_evaluation()
        names = list(evaluation.classifiers)
        self.record["headline"]["classifier"] = names[0]
        n = len(self.scenario.tasks)
        for name in names:
            hidden = self.strategy.traits.needs_task_at_test
            self.record["classifiers"][name] = {
                "class_incremental": None if hidden else [[None] * n for _ in range(n)],
                "task_aware": [[None] * n for _ in range(n)],
                "untrained": {matrix: evaluation.row(name, matrix) for matrix in MATRICES},
            }
        self.record["accuracy"] = self.record["classifiers"][names[0]]

    def _evaluate(self, task: int) -> None:
        evaluation = self._timed_evaluation()
        record, headline = self.record, self.record["headline"]["classifier"]
        for name in evaluation.classifiers:
            for matrix in MATRICES:
                if record["classifiers"][name][matrix] is not None:
                    record["classifiers"][name][matrix][task] = evaluation.row(name, matrix)
        record["averages"] = {
            name: {
                matrix: metrics.average_accuracies(found[matrix]) for matrix in MATRICES if found[matrix] is not None
            }
            for name, found in record["classifiers"].items()
        }
        for matrix in MATRICES:
            record["correct"][matrix].append(evaluation.correct(headline, matrix))
        confusion = evaluation.classifiers[headline].confusion
        record["confusion"] = None if confusion is None else confusion.tolist()
        sizes = [len(t.test) for t in self.scenario.tasks]
        for key, matrix in (("metrics", record["headline"]["matrix"]), ("metrics_task_aware", "task_aware")):
            rows = record["accuracy"][matrix]
            untrained = record["accuracy"]["untrained"][matrix]
            within = [(evaluation["task"], evaluation[matrix]) for evaluation in record["evaluations"]]
            record[key] = (
                {}
                if rows is None
                else metrics.summarize(rows, baseline=untrained, test_sizes=sizes, minima=metrics.minima(rows, within))
            )

    def _fill_memory(self, task: Task) -> None:
        """Offer the task's samples to the memory, unless it was filled while they went by."""
        strategy, memory = self.strategy, self.strategy.memory
        filled = strategy.traits.memory == "own" or (
            memory is not None and memory.streaming and strategy.traits.memory == "replayed"
        )
        if memory is None or filled:
            return
        ids, classes = task.train.ids, task.train.classes
        generator = stream(self.config.seed, "memory", task.index)
        features = None
        if memory.streaming:
            order = torch.randperm(len(ids), generator=generator)
            ids, classes = ids[order], classes[order]
        elif memory.needs_features:
            strategy.model.eval()
            with torch.no_grad():
                features = torch.cat([strategy.features(b.images).float().cpu() for b in strategy.passes(task.train)])
            if not features.isfinite().all():
                raise RunError(
                    f"the features of task {task.index}, by which exemplars are chosen, are not finite; try a smaller "
                    "learning rate"
                )
        memory.update(ids, classes, generator, features)

    def _log_task(self, task: int, n_train: int, epochs: list[dict[str, Any]], seconds: dict[str, float]) -> None:
        record, memory = self.record, self.strategy.memory
        counts = memory.counts() if memory is not None else {}
        record["training"] += epochs
        record["tasks"].append(
            {
                "task": task,
                "n_train": n_train,
                "n_exemplars": 0 if memory is None else len(memory),
                "exemplars_per_class": {str(c): n for c, n in counts.items()},
                "steps": sum(epoch["steps"] for epoch in epochs),
                "epochs": len(epochs),
                "best_epochs": {epoch["stage"]: epoch["epoch"] for epoch in epochs if "best" in epoch},
                "learning_rates": sorted({epoch["lr"] for epoch in epochs}, reverse=True),
                "seconds": seconds,
                "peak_memory_bytes": peak_memory(self.context.device),
                "logged": dict(self.context.logged),
            }
        )
        if skipped := sum(epoch.get("skipped", 0) for epoch in record["training"]):
            text = f"{skipped} optimizer steps were left out, as a loss or gradient was not finite"
            self._warn("steps-skipped", text)
        for rule, text in self.trainer.remarks:
            self._warn(rule, text)
        record["ledger"].append({"task": task, **measure(self.strategy, self.scenario)})
        if above := above_budget(self.config, counts, record["ledger"][-1]["items"]):
            self._warn("memory-above-budget", f"{above} after task {task}")

    def _warn(self, rule: str, text: str) -> None:
        """Put a warning into the record, in the place of an earlier one of the same rule."""
        others = [other for other in self.record["warnings"] if other["rule"] != rule]
        self.record["warnings"] = [*others, warning(self.config, rule, text)]

    def _begin_at(self, start: bytes) -> None:
        """Take up what was learnt before a task, as a checkpoint holds it."""
        self._start = start
        learnt = unpack(start, safe_classes(self.strategy))
        self.strategy.load_state(learnt["strategy"])
        self.trainer.optimizer_state = learnt["optimizer_state"]

    @contextmanager
    def _taking_up(self) -> Iterator[None]:
        """Refuse a checkpoint that is whole, and yet does not hold what the run left."""
        try:
            yield
        except (ConfigError, RunError):
            raise
        except Exception as error:  # of any kind, as what it holds may be anything
            wrong = (str(error) or type(error).__name__).splitlines()[0][:60]
            raise ConfigError(
                f"{self.folder.path}: its checkpoint is not as a run of clbench left it ({wrong}); restore it, or "
                "--force begins the run again"
            ) from error

    def _restore(self, found: Result | None) -> tuple[int, dict[str, Any] | None]:
        """Take up the run at its last checkpoint; return the first task that is left, and where it is within it."""
        path, classes = self.folder.path, safe_classes(self.strategy)
        stored = self.folder.load_checkpoint(classes)
        if stored is None:
            if found is not None:
                foreign = f"the state of {self.config.strategy} can't be saved"
                why = foreign if self.strategy.foreign else "nothing had been saved to continue from"
                warnings.warn(f"{path}: {why}; the run begins again", stacklevel=2)
            return 0, None
        if stored.get("identity") != self.config.identity():
            raise ConfigError(f"{path}: its checkpoint is of another run; --force begins this one again")
        if stored.get("form") != FORM:
            raise ConfigError(f"{path}: its checkpoint is of another clbench; --force begins the run again")
        with self._taking_up():
            here, self.record = self.record, stored["record"]
            task, within = stored["task"], stored["within"]
            if len(self.record["tasks"]) != task or (task > 0) != (stored["start"] is not None):
                raise ValueError("it is of no task")
            if stored["start"] is not None:
                self._begin_at(stored["start"].numpy().tobytes())
            at = {"stage": "", "epoch": 0, "step": 0} if within is None else within["trainer"]["progress"]
            self.record["resumes"].append({"task": task, **{name: at[name] for name in ("stage", "epoch", "step")}})
            self.record["config"]["on_nan"] = self.config.training.on_nan
            Result(self.record)
            self.trainer.saved = _position(task, within)
            elsewhere = differences(self.record, here)
        if elsewhere:
            text = f"begun with {elsewhere}: the last bits may differ from those of a run in one go"
            self.record["warnings"].append(warning(self.config, "continued-elsewhere", text))
            warnings.warn(f"{path}: {text}", stacklevel=2)
        return task, within

    def _write(self) -> Result:
        result = Result(self.record)
        try:
            result.write(self.folder.path)
        except OSError as error:
            raise RunError(f"{self.folder.path}: {error.strerror or error}; the results so far are kept") from None
        self.observer.written(self.record)
        return result


def _position(task: int, within: dict[str, Any] | None) -> str:
    """Say where a checkpoint is."""
    if within is None:
        return f"the beginning of task {task}"
    at = within["trainer"]["progress"]
    return f"task {task}, stage {at['stage']!r}, epoch {at['epoch']}, step {at['step']}"


def safe_classes(strategy: Strategy) -> list[type]:
    """Return the classes that a checkpoint may hold: torch's layers, ours, and those of the strategy's own file."""
    modules = {type(strategy).__module__, *(c.__module__ for c in type(strategy).__mro__)} - {"builtins"}
    known: list[type] = [set, slice, *MEMORIES.values()]
    queue: list[type] = [nn.Module]
    while queue:
        cls = queue.pop()
        queue += cls.__subclasses__()
        if cls.__module__.startswith(("torch.nn.modules.", "clbench.")) or cls.__module__ in modules:
            known.append(cls)
    return known


def check_model(config: RunConfig, scenario: Scenario) -> None:
    """Refuse a model that can't be built, given its weights or trained in part as asked; raises ConfigError."""
    backbone_below(initial_model(config, scenario.image_shape, 0), config.training.train)


def check(config: RunConfig, scenario: Scenario, strategy: Strategy) -> None:
    """Refuse, before any training, what only scenario and config together show; raises ConfigError."""
    strategy.check(config, scenario)
    refuse_compiled(config, type(strategy))
    if config.per_task is not None and len(config.per_task) != len(scenario.tasks):
        n = len(scenario.tasks)
        raise ConfigError(f"per_task has {len(config.per_task)} tables for {n} tasks; one for each task is accepted")
    if scenario.blurred:
        if scenario.setting == "class" and config.training.loss_outputs != "all":
            raise ConfigError(
                f"loss_outputs={config.training.loss_outputs!r}: classes of later tasks come early where tasks are "
                "blurry; loss_outputs='all' with head='full' is accepted"
            )
        if config.memory.policy in ("herding", "herding-argmax"):
            raise ConfigError(
                f"memory_policy={config.memory.policy!r} of {config.label} needs each class in one task, and these "
                "tasks are blurry; 'balanced', 'random' and 'reservoir' are accepted"
            )
    smallest = min(scenario.tasks, key=lambda task: len(task.train))
    n = len(smallest.train)
    unheld = [task.index for task in scenario.tasks if not len(task.validation)]
    if config.training.watches_validation and unheld:
        raise ConfigError(
            f"patience and schedule='plateau' watch validation splits, and task {unheld[0]} has none; give it one"
        )
    if config.training.drop_last and n < config.training.batch_size:
        raise ConfigError(
            f"batch_size={config.training.batch_size} with drop_last leaves no batch of the {n} training images of "
            f"task {smallest.index}; at most {n} is accepted"
        )
