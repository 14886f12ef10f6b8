"""Run: the tasks of a scenario in order, one strategy, two accuracy matrices, every number kept."""

import copy
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch

from clbench.config.arguments import checked
from clbench.config.code import confirm, settle
from clbench.config.contract import check_hooks
from clbench.config.errors import ConfigError, RunError, shown
from clbench.config.run import RunConfig
from clbench.data.batches import Pipeline, gathered
from clbench.data.scenario import ImageSet, Scenario, Task
from clbench.data.spec import ScenarioSpec
from clbench.learning.evaluation import Evaluation, accuracy_on_seen, evaluate, final_scores
from clbench.learning.flops import training_flops
from clbench.learning.memory import MEMORIES
from clbench.learning.plasticity import measure
from clbench.learning.returned import class_features, declared_stages, empty_memory, require_contract
from clbench.learning.shared import Shared
from clbench.learning.strategy import (
    Context,
    Progress,
    Stage,
    Strategy,
    call_hook,
    grow_head,
    is_lent,
    new_model,
    remedies,
    spoilt,
)
from clbench.learning.trainer import Trainer, backbone_below
from clbench.models.network import check_network
from clbench.results.record import EpochRecord, LedgerRecord
from clbench.results.result import Result
from clbench.running.blame import run_error
from clbench.running.budget import OneStep, sized
from clbench.running.check import check, first_images
from clbench.running.checkpoint import Checkpoint, Store, Within, learnt, newest
from clbench.running.display import Display, Named
from clbench.running.features import flops_of_feature, stand_in, use_kept_features
from clbench.running.final import Final
from clbench.running.folder import PREDICTIONS, RunFolder, default_folder, superseded
from clbench.running.group import Beginning, Group, device_of, follows, with_processes
from clbench.running.observer import Observer
from clbench.running.packing import holds_a_set, require_restorable, unpack
from clbench.running.process import process_settings
from clbench.running.progress import Pace
from clbench.running.recorder import Recorder, other_packages
from clbench.running.resolve import classes_of, prepare, resolve, strategy_class
from clbench.running.writer import FolderWriter
from clbench.support.finite import not_finite
from clbench.support.interruption import Interruption
from clbench.support.processes import ALONE, Processes
from clbench.support.streams import stream, stream_seed
from clbench.support.surroundings import undisturbed
from clbench.support.text import tell

# The record grows with the square of the number of tasks. It is written after each task of a stream of up to about so
# many, and so many times in all of a longer one; the checkpoint, from which a run goes on, is kept after each task.
RECORDS = 100


@checked
def run(
    scenario: str | os.PathLike[str] | Scenario | type[ScenarioSpec],
    strategy: str | type[Strategy],
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    observer: Observer | None = None,
    track: str | None = None,
    store: Store | None = None,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Run one strategy on one scenario and return its result, which is also in the run folder `out`.

    A finished run is not repeated; an unfinished one is continued with `resume` and begun again with `force`.

    scenario: a name, perhaps with options in brackets, a path, a Scenario, or a subclass of ScenarioSpec.
    strategy: a name, perhaps with options in brackets, or a class.
    out: the run's folder; by default runs/SCENARIO/STRATEGY/SEED-HASH.
    observer: is told how the run goes on.
    track: `tensorboard`, `wandb` or `mlflow`, where losses and accuracies go too.
    store: keeps the checkpoints; by default the folder.
    quiet: show no progress on stderr.
    options: fields of a run and options of the scenario; a strategy's own go into `strategy_options`.

    Raises ConfigError for a request that can't be met, before any training, and RunError when the training fails.
    """
    with undisturbed():
        config = resolve(scenario, strategy, options)
        if isinstance(scenario, Scenario):
            tasks = scenario
        else:
            config, tasks = prepare(config)
        place = folder_of(config, out)
        if resume and store is None:
            place.note_nothing_to_continue()
        with Display({place.path: Named(config.label, config.seed)}, quiet=quiet or follows()):
            return execute(
                config, tasks, place, resume=resume, force=force, observer=observer, track=track, store=store
            )


def folder_of(config: RunConfig, out: str | os.PathLike[str] | None = None) -> RunFolder:
    """Return a run's folder, by default that of its identity; tells where a run beside it has other code or data."""
    folder = RunFolder(out or default_folder(config))
    if other := superseded(config, folder.path):
        tell(f"{folder}: a new run, {other}")
    return folder


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
    store: Store | None = None,
    begun: Checkpoint | None = None,
) -> Result:
    """Run a complete config in a folder, or return what is there already; see run().

    trainer: makes what fits the stages.
    store: keeps the checkpoints; by default the folder.
    begun: the state from which a new run goes on, instead of nothing.
    """
    from clbench.running.tracking import require_tracker

    tracker = None if track is None else require_tracker(track)
    store = folder if store is None else store
    methods = ("save_checkpoint", "checkpoints", "drop_checkpoint")
    if isinstance(store, type) or not all(callable(getattr(store, method, None)) for method in methods):
        raise ConfigError(f"store={shown(store)} given; an object with the methods {', '.join(methods)} is accepted")
    check_hooks(type(store), Store)
    if observer is not None:
        check_hooks(type(observer), Observer)
    config = within_budget(with_processes(config), scenario)
    classes = classes_of(config)
    code = confirm(config.code, classes)
    strategy = strategy_class(config.strategy, config.code)(**config.strategy_options)
    check(config, scenario, strategy)
    with Group(config) as group:
        if group.rank > 0:
            with process_settings(config):
                return group.follow(_follow, scenario, strategy, trainer)
        if force and not folder.is_ours():
            raise ConfigError(f"{folder} holds files that no run of clbench left; name another folder")
        if not force and (found := folder.existing(config)) is not None and found.status == "done":
            # It may be where nothing can be written, not even a lock.
            return group.answer(_reused(found, folder, config, scenario))
        with folder.lock(), process_settings(config):
            if force:
                folder.clear()
                store.drop_checkpoint()
            found = folder.existing(config)
            if found is not None and found.status == "done":
                return group.answer(_reused(found, folder, config, scenario))
            kind = runner_of(type(strategy))
            if config.evaluation.keep_predictions and not kind.continues:
                raise ConfigError(
                    f"keep_predictions is for strategies of clbench; {config.strategy} trains by its own loop"
                )
            if found is not None:
                _refuse_to_go_on(found, folder, store, config, kind, resume=resume)
            elif begun is not None:
                store.save_checkpoint(begun.to_bytes())
                found = Result(begun.record)
            observers = [
                FolderWriter(folder),
                Pace(folder.path),
                *([observer] if observer else []),
                *([tracker(folder.path)] if tracker else []),
            ]
            try:
                beginning = Beginning(found, store.checkpoints() if config.engine.processes > 1 else [])
                processes = group.begin(beginning, _follow, scenario, strategy, trainer)
                made = kind(
                    config,
                    scenario,
                    strategy,
                    observers=observers,
                    store=store,
                    trainer=trainer,
                    processes=processes,
                )
                result = made.go(found)
                result.folder = folder.path
                if config.evaluation.keep_predictions:
                    folder.save_predictions(final_scores(strategy, made.context))
                return result
            except Exception as error:  # of a strategy, an observer or a store, before or after the tasks
                failure = run_error(error, -1)
                if failure is error:
                    raise
                raise failure from error
            finally:
                settle(code, classes)


def _follow(
    config: RunConfig,
    beginning: Beginning,
    processes: Processes,
    scenario: Scenario,
    strategy: Strategy,
    trainer: Callable[[Context, Strategy], Trainer],
) -> Result:
    """Do the part of a run that a process does which does not lead, and so neither writes nor answers."""
    kept = _Kept(beginning.checkpoints)
    with warnings.catch_warnings():
        # The leader says them.
        warnings.simplefilter("ignore")
        made = _Following(config, scenario, strategy, store=kept, trainer=trainer, processes=processes)
        return made.go(beginning.found)


class _Kept:
    """The checkpoints that a run goes on from, in a process that keeps none itself."""

    def __init__(self, kept: list[tuple[str, bytes | Exception]]) -> None:
        self._kept = kept

    def save_checkpoint(self, content: bytes) -> None:
        """Leave it to the leader."""

    def checkpoints(self) -> list[tuple[str, bytes | Exception]]:
        """Return what the run goes on from."""
        return self._kept

    def drop_checkpoint(self) -> None:
        """Leave it to the leader."""


def within_budget(config: RunConfig, scenario: Scenario) -> RunConfig:
    """Return the config with the memory that a budget of bytes pays for; see sized(). Raises ConfigError."""
    return sized(config, scenario, _rehearsed)


def _rehearsed(config: RunConfig, scenario: Scenario) -> list[LedgerRecord]:
    strategy = strategy_class(config.strategy, config.code)(**config.strategy_options)
    with process_settings(config), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Run(config, scenario, strategy, trainer=OneStep)
        stand_in(made.context, strategy, scenario)
        for task in scenario.tasks:
            made.learn(task)
    return made.recorder.record.ledger


def _reused(found: Result, folder: RunFolder, config: RunConfig, scenario: Scenario) -> Result:
    with_others = f", with {others}" if (others := other_packages(found.recorded)) else ""
    before = found.recorded.scenario.class_names
    if before and (renamed := [pair for pair in zip(before, scenario.class_names, strict=False) if pair[0] != pair[1]]):
        # They decide no number, so they are no part of the identity.
        with_others += f", with other names of classes ({renamed[0][0]}, not {renamed[0][1]})"
    lacks = config.evaluation.keep_predictions and not (folder.path / PREDICTIONS).exists()
    without = f" without {PREDICTIONS}" if lacks else ""
    without += " without FLOPs" if config.counts_flops and found.flops["training"] is None else ""
    finished = f"finished at {folder.finished_at()}{without}{with_others}"
    tell(f"{folder}: reused, {finished}; --force (force=True) begins it again")
    return found


def _refuse_to_go_on(
    found: Result, folder: RunFolder, store: Store, config: RunConfig, kind: "type[Run]", *, resume: bool
) -> None:
    """Raise ConfigError where an unfinished run can't be continued, or was not asked to be."""
    what = f"{folder} holds an unfinished run"
    if not kind.continues and not resume:
        raise ConfigError(f"{what}, which {config.strategy} can't continue; --force begins it again")
    if found.recorded.tasks and not store.checkpoints() and kind.continues:
        raise ConfigError(f"{what} without its checkpoint; --force begins it again")
    if not resume:
        raise ConfigError(f"{what}; --resume continues it, --force begins it again")


def runner_of(strategy: type[Strategy]) -> "type[Run]":
    """Return what runs a strategy: Run, or what a strategy that other software trains names as its `runner`."""
    runner: type[Run] = getattr(strategy, "runner", Run)
    return runner


class Run:
    """One run: it learns tasks, evaluates, saves where it is, and takes up what was saved.

    config: complete, as resolve() returns it.
    scenario, strategy: what the config names.
    observers: are told how the run goes on, in this order, after the recorder.
    store: keeps checkpoints; None: nothing is saved.
    trainer: makes what fits the stages.
    processes: those that do the run together, by default this one.
    """

    # Whether a run can be saved under way and continued.
    continues: ClassVar[bool] = True

    def __init__(
        self,
        config: RunConfig,
        scenario: Scenario,
        strategy: Strategy,
        *,
        observers: Sequence[Observer] = (),
        store: Store | None = None,
        trainer: Callable[[Context, Strategy], Trainer] = Trainer,
        processes: Processes = ALONE,
    ) -> None:
        self.config, self.scenario, self.strategy, self.store = config, scenario, strategy, store
        device = device_of(config, processes)
        pipeline = Pipeline(scenario, config, device)
        self.context = Context(config, scenario, pipeline, device, Progress(), processes=processes)
        self._shared = Shared(processes, config.engine.accumulate)
        self.trainer = trainer(self.context, strategy)
        strategy._context = self.context
        strategy.model = new_model(self.context, 0)
        check_network(copy.deepcopy(strategy.model), first_images(self.context.pipeline), config.model.name)
        backbone_below(strategy.model, config.training.train)
        if config.memory.policy is not None:
            kind = MEMORIES[config.memory.policy]
            made: Any = strategy.new_memory(kind, config.memory.size, config.memory.per_class)
            strategy.memory = empty_memory(strategy, made)
        self.recorder = Recorder(self.context, strategy)
        self.observers: list[Observer] = [self.recorder, *observers]
        # The task to learn next; what was learnt before it, packed; and where in it a checkpoint was taken.
        self.task = 0
        self._start: bytes | None = None
        self._within: Within | None = None
        # The attributes of the strategy when they were last looked at, and its views of the task's data.
        self._assigned: dict[str, type] = {}
        self._traits = strategy.traits
        self._views: dict[str, Any] = {}
        self._saved = time.monotonic()
        self._interruption = Interruption()
        # The operations of a feature that is kept.
        self._of_feature = 0

    @property
    def result(self) -> Result:
        """The result up to here."""
        return Result(self.recorder.record)

    def go(self, found: Result | None = None) -> Result:
        """Learn the tasks that are left, `found` being what the folder holds of the run; return the result."""
        with self._staying():
            return self._from(found)

    def _from(self, found: Result | None) -> Result:
        self._restore(found)
        self._tell("begin", self.config, self.scenario, self.task)
        try:
            kept = use_kept_features(self.context, self.strategy, partial(self._tell, "features_computed"))
            if kept is not None:
                self.recorder.record.cached_features = kept
                if self.config.counts_flops:
                    self._of_feature = flops_of_feature(self.context, self.strategy)
            record = self.recorder.record
            if record.resumes:
                under_way = [] if self._within is None else self._within.epochs_so_far()
                self._tell("resumed", [*record.training, *under_way])
            if found is None or len(found.recorded.tasks) <= len(record.tasks):
                self._tell("written", record)
            # A loop that can't be saved has nothing to wait for, and may not come to a step for long.
            waiting: AbstractContextManager[Any] = self._interruption if self.continues else nullcontext()
            with waiting:
                return self._go()
        finally:
            self.context.pipeline.reader.close()
            self._tell("close")

    def _go(self) -> Result:
        record = self.recorder.record
        try:
            for task in self.scenario.tasks[self.task :]:
                self.learn(task)
                if self._interruption.signal is not None:
                    self._interruption.pass_on()
        except Exception as error:  # whatever a strategy raises
            failure = run_error(error, self.context.progress.task)
            if record.tasks:
                self.recorder.sum_up()
            self.recorder.failed(str(failure), self.context.progress)
            self._tell("written", record)
            if failure is error:
                raise
            raise failure from error
        self._warn_of_state_outside()
        record.status = "done"
        self._tell("finished", self.strategy.model.state_dict())
        if self._start is not None and self.config.engine.keep_state:
            self._tell("kept", Final.of(self.context, self.strategy, self._start).to_bytes())
        self._tell("written", record)
        if self.store is not None:
            # Only now: a kill before this line leaves a run that can be continued.
            self.store.drop_checkpoint()
        return self.result

    def _warn_of_state_outside(self) -> None:
        classes = classes_of(self.config)
        if left := settle(confirm(self.config.code, classes), classes):
            text = (
                f"{', '.join(left[:3])} changed while the run went on; this is not saved with the run and stays for "
                "the next one of the process, so numbers that it decides depend on what ran before; keep it on self"
            )
            self.recorder.warn("state-outside-self", text)

    def learn(self, task: Task) -> None:
        """Learn one task, or what is left of it where a checkpoint within it was taken up."""
        counting: AbstractContextManager[Any] = self.context.flops if self.config.counts_flops else nullcontext()
        with self._staying(), self._shared.within(type(self.strategy.model)), counting:
            self._learn(task)

    def _learn(self, task: Task) -> None:
        strategy, scenario, progress = self.strategy, self.scenario, self.context.progress
        if self.context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.context.device)
        progress.take_up(Progress(task=task.index))
        self.context.logged.clear()
        if self.config.per_task is not None:
            self._put_in_force(self.config.per_task[task.index])
        view = self._view(task)
        self._evaluating, self._started = 0.0, time.perf_counter()
        flops = self.context.flops
        flops.begin()
        # A feature is computed once, in this run or in one before it.
        flops.add(self._of_feature * (len(view.train) + len(view.validation)))
        self.trainer.allowance = self._allowance()
        if task.index == 0:
            self._seed("begin_run")
            call_hook(strategy, "begin_run")
            self._require_restorable()
        if strategy.memory is not None and not scenario.boundless:
            strategy.memory.expect(view.train.classes)
        self._seed("begin_task")
        call_hook(strategy, "begin_task", view)
        self._views = self._lent_views()
        self._require_restorable()
        full = self.config.model.head == "full"
        grow_head(strategy.model, self.context, scenario.n_outputs if full else scenario.seen_outputs(task.index))
        if task.index == 0 and self._within is None:
            self.recorder.untrained(self.evaluate())
        n_train, epochs = self.train(view)
        trained = time.perf_counter()
        flops.kind = "memory"
        self._demand_finite(f"after its training; {remedies(strategy)}")
        with flops.of("evaluation"):
            measured = measure(strategy, self.context, view) if self.config.evaluation.plasticity else {}
        self._fill_memory(view)
        self._seed("end_task")
        call_hook(strategy, "end_task", view)
        self._require_restorable()
        remembered = time.perf_counter()
        before, tested_before = self._evaluating, flops.counts.get("evaluation", 0)
        evaluation = self.evaluate()
        self._demand_finite("at its end; a finite number is accepted")
        self.recorder.learnt(task.index, evaluation)
        seconds = {
            "train": trained - self._started - before,
            "evaluation": self._evaluating,
            "memory": remembered - trained,
        }
        for data in (view.train, view.validation, view.test):
            data.expire()
        self.recorder.task_done(n_train, epochs, seconds, measured)
        if self.config.counts_flops and flops.whole:
            flops.counts["per_image"] = (flops.counts["evaluation"] - tested_before) // max(evaluation.n_images, 1)
            self.recorder.record.tasks[-1].flops = dict(flops.counts)
            self._require_within_budget()
        for rule, text in self.trainer.remarks:
            self.recorder.warn(rule, text)
        self.task, self._within = task.index + 1, None
        written = self.task % max(1, len(scenario.tasks) // RECORDS) == 0 or self.task == len(scenario.tasks)
        if written:
            self.recorder.sum_up()
        if self.continues:
            self._start = learnt(strategy, self.trainer.optimizer_state)
            self.save()
        if written:
            self._tell("written", self.recorder.record)
        self._tell("task", task.index, self.recorder.row)

    def evaluate(self) -> Evaluation:
        """Test the strategy on the tasks that the config says; its time is counted apart from training."""
        started = time.perf_counter()
        self._seed("evaluation")
        with self.context.flops.of("evaluation"):
            evaluation = evaluate(self.strategy, self.context, self.context.progress.task)
            self.context.flops.add(self._of_feature * evaluation.n_images)
        self._evaluating += time.perf_counter() - started
        return evaluation

    def _is_open(self, stage: Stage) -> bool:
        """Whether a budget decides how long a stage lasts."""
        budget = self.config.training.budget_in("flops")
        return budget is not None and stage.epochs is None and stage.iterations is None

    def _allowance(self) -> int:
        """Return the operations of training that the task may spend up to the end of its stages.

        That is its share of the budget with all that tasks before it left over, or less what they spent too much,
        without what comes after the stages, which is taken to cost what it did in the task before.
        """
        budget, n = self.config.training.budget_in("flops"), len(self.scenario.tasks)
        before = [task.flops for task in self.recorder.record.tasks]
        if budget is None:
            return 0
        reserved = training_flops(before[-1]) - before[-1].get("open", 0) if before else 0
        return budget * (len(before) + 1) // n - sum(map(training_flops, before)) - reserved

    def _require_within_budget(self) -> None:
        """Raise RunError where a task that nothing can shorten has spent more than the whole budget."""
        budget = self.config.training.budget_in("flops")
        spent = sum(training_flops(task.flops) for task in self.recorder.record.tasks)
        if budget is not None and "open" not in self.context.flops.counts and spent > budget:
            raise RunError(
                f"{self.config.strategy} has spent {spent:,} FLOPs by the end of task {self.context.progress.task}, in "
                f"which no stage could be shorter, and the budget is {budget:,}; a larger one is accepted"
            )

    def checkpoint(self) -> Checkpoint:
        """Return the state between two tasks, or within one where a step has just been taken."""
        record = self.result.record
        return Checkpoint(record["identity"], record, self.task, self._start, self._within)

    def save(self) -> None:
        """Keep the present state in the store; raises RunError when it can't be kept."""
        checkpoint = self.checkpoint()
        if self.store is not None:
            self.store.save_checkpoint(checkpoint.to_bytes())
        self._saved = time.monotonic()
        self.trainer.saved = checkpoint.position

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run; raises ConfigError for one of another run, or one that is damaged."""
        if checkpoint.identity != self.config.identity():
            raise ConfigError("its checkpoint is of another run; --force begins this one again")
        with self._taking_up():
            self.task, self._within = checkpoint.task, checkpoint.within
            at = Progress(task=self.task) if self._within is None else replace(self._within.progress, task=self.task)
            self.recorder.go_on(checkpoint.record, at)
            if len(self.recorder.record.tasks) != self.task or (self.task > 0) != (checkpoint.start is not None):
                raise ValueError("it is of no task")
            if checkpoint.start is not None:
                self.begin_at(checkpoint.start)
            self.trainer.saved = checkpoint.position

    def begin_at(self, start: bytes) -> None:
        """Put what was learnt before a task, as Checkpoint.start holds it, in the place of the present state."""
        self._start = start
        before = unpack(start, type(self.strategy))
        self._put_back(before["strategy"])
        self.trainer.optimizer_state = before["optimizer_state"]

    def _put_back(self, state: dict[str, Any]) -> None:
        """Give the strategy the state that a checkpoint holds; raises ConfigError where it can't be what a run left."""
        self.strategy.load_state(state)
        if wrong := spoilt(self.strategy):
            raise ConfigError(f"in its checkpoint {wrong}; restore it, or --force begins the run again")
        if names := [f"self.{name}" for name, value in state.items() if holds_a_set(value)]:
            text = (
                f"{', '.join(names[:3])} held a set when the run was continued, and a set may be gone through in "
                "another order afterwards; where the order decides numbers, sort it or keep a dict in its place"
            )
            self.recorder.warn("order-of-a-set", text)

    def _demand_finite(self, when: str) -> None:
        """Raise RunError where an attribute of the strategy holds a number that is not finite; waits for the device."""
        if wrong := spoilt(self.strategy):
            raise RunError(f"{wrong} in task {self.context.progress.task}, {when}")

    def _view(self, task: Task) -> Task:
        """Return a task as the strategy sees it: without its test images, and closed when the task ends."""
        scenario = self.scenario
        return replace(
            task,
            train=ImageSet(scenario.train, task.train.ids.clone(), for_a_task=True),
            validation=ImageSet(scenario.train, task.validation.ids.clone(), for_a_task=True),
            test=ImageSet(scenario.test, task.test.ids[:0], for_a_task=True),
        )

    def train(self, task: Task) -> tuple[int, list[EpochRecord]]:
        """Fit a task's stages, or what is left of them; return the images of the largest, and a record per epoch.

        Where the task was interrupted, its stages have been declared again, by the strategy as it was when the task
        began. So data and losses are the same; what was learnt since is put in place now.
        """
        self._seed("stages")
        stages = declared_stages(self.strategy, self.strategy.stages(task))
        self._views = self._lent_views()
        self._require_restorable()
        first, epochs, stored = 0, list[EpochRecord](), None
        if (within := self._within) is not None:
            with self._taking_up():
                stages = self._go_back(within, stages)
                first, epochs = within.stage, [EpochRecord(**epoch) for epoch in within.epochs]
                stored, self._within = within.trainer, None
        for index, stage in enumerate(stages[first:], first):
            self._assigned = {}
            self.context.progress.stages_done, self.context.progress.n_stages = index, len(stages)
            self.trainer.sharing = sum(map(self._is_open, stages[index:]))
            epochs += self.trainer.fit(
                stage,
                after_step=self.after_step,
                after_epoch=self.after_epoch,
                at_rest=partial(self._at_rest, stages, index, epochs),
                stored=stored,
            )
            stored = None
            if self._is_open(stage):
                self.context.flops.counts["open"] = self.context.flops.training
        return max((len(stage.data) for stage in stages), default=0), epochs

    def _at_rest(self, stages: list[Stage], index: int, epochs: list[EpochRecord], epoch_is_over: bool) -> None:
        """Between two steps: save where the task is when it is time to, and end where an interruption waits."""
        due = self._is_due(epoch_is_over)
        # Looked at in full where a hook has assigned something new, which a step seldom does.
        if due or {name: type(value) for name, value in vars(self.strategy).items()} != self._assigned:
            self._require_restorable()
        if not due:
            return
        started = time.perf_counter()
        self._within = Within(
            stages=[stage.name for stage in stages],
            parameters=[stage.parameters for stage in stages],
            stage=index,
            epochs=[epoch.model_dump(exclude_unset=True) for epoch in epochs],
            strategy=self.strategy.state(),
            trainer=self.trainer.state_dict(),
            logged=dict(self.context.logged),
            seconds=(started - self._started, self._evaluating),
            flops=dict(self.context.flops.counts) if self.config.counts_flops else None,
        )
        try:
            self.save()
        except RunError as error:
            # The disk may have room again by the end of the task; what is there already can be continued.
            warnings.warn(f"{error}; the run goes on", stacklevel=2)
            self._saved = time.monotonic()
        finally:
            self._within = None
        if self._interruption.signal is not None:
            self._interruption.pass_on()
        self._started += time.perf_counter() - started

    def _seed(self, hook: str) -> None:
        """Let what a hook draws from the global streams be a function of where the run is."""
        p = self.context.progress
        self.trainer.seed(stream_seed(self.config.seed, f"hook/{hook}", p.task, p.stage, p.epoch, p.step))

    def _lent_views(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.strategy).items() if is_lent(value)}

    def _require_restorable(self) -> None:
        """Raise RunError, by the attribute's name, where a hook has assigned what can't be saved and restored."""
        require_contract(self.strategy, self._traits)
        if not self.continues:
            return
        for name, value in self._lent_views().items():
            if self._views.get(name) is not value:
                raise RunError(
                    f"{type(self.strategy).__name__}: self.{name} is a view of the task's data, which no checkpoint "
                    "holds; it is accepted where begin_task or stages assigns it, since they are called again"
                )
        require_restorable(self.strategy)
        self._assigned = {name: type(value) for name, value in vars(self.strategy).items()}

    def _is_due(self, epoch_is_over: bool) -> bool:
        every = self.config.engine.checkpoint_every
        if self._interruption.signal is not None:
            return True
        if isinstance(every, float):
            return time.monotonic() - self._saved >= 60 * every
        if every in ("epoch", "task"):
            return every == "epoch" and epoch_is_over
        return not epoch_is_over and self.context.progress.step % int(every.removesuffix("-steps")) == 0

    def _go_back(self, within: Within, stages: list[Stage]) -> list[Stage]:
        """Put the strategy back to where it was within the task; return its stages with the parameters it has now."""
        if not within.stages_of(stages):
            raise ConfigError(
                f"its checkpoint is within stages {', '.join(within.stages)}, and {self.config.strategy} has others "
                "now; --force begins the run again"
            )
        self._put_back(within.strategy)
        self.context.logged.update(within.logged)
        self.context.flops.begin(within.flops, whole=within.flops is not None)
        trained, self._evaluating = within.seconds
        self._started = time.perf_counter() - trained
        return [replace(stage, parameters=p) for stage, p in zip(stages, within.parameters, strict=True)]

    def _put_in_force(self, values: dict[str, Any]) -> None:
        """Put the values in force that hold in the task to come."""
        config = self.config.replace(**{k: v for k, v in values.items() if k == "lr"})
        self.context.config = self.trainer.config = config
        vars(self.strategy).update({k: v for k, v in values.items() if k != "lr"})

    def after_step(self, loss: float | None) -> None:
        """Tell that a step is done, and evaluate when it is time to."""
        every, progress = self.config.evaluation.eval_every, self.context.progress
        self._tell("step", progress, loss)
        if isinstance(every, int) and progress.step % every == 0:
            self._tell("evaluated", progress, self.evaluate())
        if self.config.evaluation.anytime is not None and self._traits.learns_as_it_comes:
            self._test_seen(self.config.evaluation.anytime)

    def _test_seen(self, every: int) -> None:
        """Test on the classes seen so far where another `every` samples of the stream have gone by."""
        record, fit, progress = self.recorder.record, self.trainer.fit_under_way, self.context.progress
        samples = sum(epoch.images or 0 for epoch in (*record.training, *fit.records)) + fit.tally.images
        before = record.anytime[-1].samples if record.anytime else 0
        if samples // every == before // every:
            return
        started = time.perf_counter()
        labels = self.scenario.train.labels
        seen = torch.zeros(self.scenario.n_outputs, dtype=torch.bool)
        # Samples that have gone by: those of earlier tasks, and of this stage all, or in its first epoch the first.
        come = [fit.stage.data.ids] if progress.epoch else self.trainer.batches(fit)[: fit.tally.steps]
        for ids in (*(task.train.ids for task in self.scenario.tasks[: progress.task]), *come):
            seen[labels[ids]] = True
        self._seed("anytime")
        with self.context.flops.of("evaluation"):
            self.recorder.seen_classes(samples, accuracy_on_seen(self.strategy, self.context, seen))
        self._evaluating += time.perf_counter() - started

    def after_epoch(self, record: EpochRecord) -> None:
        """Tell that an epoch is done, and evaluate when it is time to."""
        self._tell("epoch", record)
        if self.config.evaluation.eval_every == "epoch":
            self._tell("evaluated", self.context.progress, self.evaluate())

    def _tell(self, event: str, *what: Any) -> None:
        for observer in self.observers:
            call_hook(observer, event, *what)

    def _fill_memory(self, task: Task) -> None:
        """Offer the task's samples to the memory, unless it was filled while they went by."""
        strategy, memory, use = self.strategy, self.strategy.memory, self.strategy.traits.memory
        if memory is None or use == "own" or (memory.streaming and use == "replayed"):
            return
        ids, classes = task.train.ids, task.train.classes
        generator = stream(self.config.seed, "memory", task.index)
        features = None
        if memory.streaming:
            order = torch.randperm(len(ids), generator=generator)
            ids, classes = ids[order], classes[order]
        elif memory.needs_features:
            strategy.model.eval()
            self._seed("features")
            with torch.no_grad():
                parts = (class_features(strategy, batch.images).float() for batch in strategy.passes(task.train))
                features = gathered(parts, len(ids))
            if not_finite(features, "features"):
                raise RunError(
                    f"the features of task {task.index}, by which exemplars are chosen, are not finite; "
                    f"{remedies(strategy)}"
                )
        memory.update(ids, classes, generator, features)

    @contextmanager
    def _staying(self) -> Iterator[None]:
        """Make a failure of what would end the program, as if all were done, in the middle of the run."""
        try:
            yield
        except (SystemExit, GeneratorExit) as error:
            if self._interruption.passing_on:
                raise
            raise RunError(
                f"{type(error).__name__}({error}) was raised in task {self.context.progress.task}; a run ends when its "
                "tasks are learnt, or with an error"
            ) from error

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
                f"its checkpoint is not as a run of clbench left it ({wrong}); restore it, or --force begins the run "
                "again"
            ) from error

    def _restore(self, found: Result | None) -> None:
        """Take up the newest checkpoint that is whole, if there is one; `found` is what the folder holds of the run."""
        if self.store is None:
            return
        checkpoint = newest(self.store, type(self.strategy))
        if checkpoint is None:
            if found is not None:
                foreign = f"the state of {self.config.strategy} can't be saved"
                why = "nothing had been saved to continue from" if self.continues else foreign
                warnings.warn(f"{self.store}: {why}; the run begins again", stacklevel=2)
            return
        try:
            self.take_up(checkpoint)
        except ConfigError as error:
            raise ConfigError(f"{self.store}: {error}") from error.__cause__
        if self.recorder.elsewhere:
            text = f"begun with {self.recorder.elsewhere}: the last bits may differ from those of a run in one go"
            warnings.warn(f"{self.store}: {text}", stacklevel=2)


class _Following(Run):
    """The part of a run that another process leads, which saves and is interrupted for all."""

    continues: ClassVar[bool] = False

    def _is_due(self, epoch_is_over: bool) -> bool:
        return False
