"""Before training: tasks, updates, exemplars, time and bytes of a run, from a rehearsal of a few steps a stage."""

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.scenario import ImageSet, Scenario, Task
from clbench.learning.evaluation import evaluate
from clbench.learning.flops import Flops
from clbench.learning.memory import Memory
from clbench.learning.returned import class_features
from clbench.learning.strategy import Context, Progress, Stage, Strategy, call_hook, grow_head
from clbench.learning.trainer import Trainer, cut
from clbench.models.pretrained import preprocessing_of
from clbench.results.record import EpochRecord
from clbench.running.blame import run_error
from clbench.running.check import check
from clbench.running.features import stand_in
from clbench.running.ledger import measure
from clbench.running.process import process_settings
from clbench.running.resolve import strategy_class
from clbench.running.run import Run, runner_of, within_budget
from clbench.running.warned import run_warnings, warning
from clbench.support.streams import stream
from clbench.support.surroundings import undisturbed

# Seconds that a rehearsal may take, and the part of what is left of them that is spent at once.
BUDGET = 9.0
PART = 4
# Steps that are rehearsed in each stage; the first one, which warms up caches, is not timed.
REHEARSED = 4
# Images of the first steps, by which is judged how many there is time for.
FEW = 8
# Images that are tested, and images of a task that a strategy remembers it by, where all take too long.
TESTED = 200
REMEMBERED = 64
# A learning rate with which nothing moves, so that nothing diverges.
STILL = 1e-12


@undisturbed()
def plan_run(
    config: RunConfig,
    scenario: Scenario,
    *,
    seconds: float = BUDGET,
    told: Callable[[int], None] = lambda task: None,
) -> dict[str, Any]:
    """Return what a run will do and need, as plain values; goes through all tasks, training a few steps in each stage.

    Images, updates and exemplars are those of the run. Time and bytes are estimates: steps of a kind, tests and what a
    strategy does at the end of a task are timed on this machine, on as many images as the time allows, and equal work
    is given equal time; bytes are of what is held through training (weights, gradients, optimizer, what the strategy
    keeps, all images), without the activations of a step. With early stopping updates and time are upper limits. The
    weights hardly move, so nothing that would diverge in the run does so here.

    seconds: how long the rehearsal may take, as far as single steps allow.
    told: is called with each task before it is rehearsed.

    Raises ConfigError as run() does, and RunError where the strategy fails.
    """
    check_plan(config, scenario)
    config = within_budget(config, scenario)
    # The tasks that are tested after the first one have as many images together as are tested at once.
    tested = TESTED // (len(scenario.tasks) if config.evaluation.evaluate == "all" else 1)
    tasks = [replace(task, test=_spaced(task.test, max(tested, 1))) for task in scenario.tasks]
    still = config.replace(patience=None, eval_every="task", lr=STILL)
    strategy = strategy_class(config.strategy, config.code)(**config.strategy_options)
    with process_settings(still):
        run = _Rehearsal(still, replace(scenario, tasks=tasks), strategy, trainer=_Steps)
        run.deadline = run.trainer.deadline = time.monotonic() + seconds
        run.features = stand_in(run.context, strategy, scenario)
        for task in run.scenario.tasks:
            told(task.index)
            try:
                run.learn(task)
            except Exception as error:  # whatever a strategy raises
                failure = run_error(error, task.index)
                if failure is error:
                    raise
                raise failure from error
    return _told(config, scenario, run)


def _told(config: RunConfig, scenario: Scenario, run: "_Rehearsal") -> dict[str, Any]:
    """Return the plan, with what was measured given to all work of its kind."""
    steps: _Steps = run.trainer
    tests, which = [len(task.test) for task in scenario.tasks], config.evaluation.evaluate
    every = [one for measured in steps.measured.values() for one in measured]
    tasks: list[dict[str, Any]] = []
    for task, counts in zip(scenario.tasks, run.counts, strict=True):
        stages = steps.stages.get(task.index, [])
        training = sum(stage.updates * _usual(steps.measured.get(stage.kind) or every) for stage in stages)
        first = {"current": task.index}.get(which, 0)
        n_tests = sum(tests if which == "all" else tests[first : task.index + 1])
        remembering = len(task.train) * _usual(run.remembered)
        tasks.append(
            {
                "task": task.index,
                "classes": list(task.classes),
                "images": len(task.train),
                "stages": [{"name": s.name, "images": s.images, "updates": s.updates} for s in stages],
                "updates": sum(stage.updates for stage in stages),
                "exemplars": sum(counts.values()),
                "exemplars_per_class": [min(counts.values(), default=0), max(counts.values(), default=0)],
                "seconds": training + remembering + n_tests * _usual(run.tested),
            }
        )
    most = max(run.kept, key=lambda kept: sum(kept.values()))
    flops = sum(s.updates * steps.flops.get(s.kind, 0) for stages in steps.stages.values() for s in stages)
    held = {
        **most,
        "gradients": steps.gradient_bytes,
        "optimizer": steps.optimizer_bytes,
        "exemplars": max(task["exemplars"] for task in tasks) * scenario.train.images[0].nbytes,
        "images": scenario.train.images.nbytes + scenario.test.images.nbytes,
    }
    return {
        "scenario": scenario.name,
        "strategy": config.label,
        "setting": scenario.setting,
        "device": config.engine.device,
        **({"preprocessing": preprocessing} if (preprocessing := preprocessing_of(run.strategy.model)) else {}),
        "tasks": tasks,
        "updates": sum(task["updates"] for task in tasks),
        **({"training_flops": flops} if config.counts_flops else {}),
        "features": {"images": run.features[0], "seconds": run.features[1]},
        "seconds": sum(task["seconds"] for task in tasks) + run.features[1],
        "bytes": held,
        "peak_bytes": sum(held.values()),
        "warnings": [
            *(each.model_dump() for each in run_warnings(config, scenario, run.strategy)),
            *(warning(config, rule, text).model_dump() for rule, text in steps.remarks),
        ],
    }


@undisturbed()
def check_plan(config: RunConfig, scenario: Scenario) -> None:
    """Raise ConfigError, before any training, for what plan_run() can't do."""
    kind = strategy_class(config.strategy)
    if not runner_of(kind).continues:
        raise ConfigError(f"{config.strategy} trains by its own loop, which can't be rehearsed; other strategies can")
    check(config, scenario, kind(**config.strategy_options))


# Seconds, and on how many images they were measured.
Measured = list[tuple[float, int]]
# The name of a stage, and whether it is of a later task than the first.
Kind = tuple[str, bool]


def _usual(measured: Measured) -> float:
    """Return the median of what was measured on the most images; 0 where nothing was."""
    most = max((n for _, n in measured), default=0)
    return statistics.median([seconds for seconds, n in measured if n == most] or [0.0])


@dataclass
class _Stage:
    """A stage: its name, images and updates, and the kind of its steps."""

    name: str
    images: int
    updates: int
    kind: Kind


class _Rehearsal(Run):
    """Goes through the tasks of a run with as much of the work as there is time for."""

    trainer: "_Steps"
    deadline: float

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # After each task: exemplars by class, and the bytes of what the strategy keeps.
        self.counts: list[dict[int, int]] = []
        self.kept: list[dict[str, int]] = []
        # Seconds for an image of a task that is remembered, and for one that is tested.
        self.remembered: Measured = []
        self.tested: Measured = []
        # Features of a frozen network that are not kept yet, and the seconds that they take.
        self.features = (0, 0.0)
        # Seconds of the task that took longest.
        self.longest = 0.0

    def learn(self, task: Task) -> None:
        """Do what a run does in a task, briefly; where there is no time left, only what its counts need."""
        began, strategy, scenario = time.monotonic(), self.strategy, self.scenario
        self.context.progress.take_up(Progress(task=task.index))
        if self.config.per_task is not None:
            values = self.config.per_task[task.index]
            vars(strategy).update({name: value for name, value in values.items() if name != "lr"})
        # A later task is like the second one.
        self.trainer.counts_only = task.index > 1 and began + self.longest > self.deadline
        view = self._view(task)
        if task.index == 0:
            self._seed("begin_run")
            call_hook(strategy, "begin_run")
        if strategy.memory is not None:
            strategy.memory.expect(view.train.classes)
        self._seed("begin_task")
        call_hook(strategy, "begin_task", view)
        full = self.config.model.head == "full"
        grow_head(strategy.model, self.context, scenario.n_outputs if full else scenario.seen_outputs(task.index))
        self.train(view)
        self._remember(view)
        self._test(task)
        kept = measure(strategy, scenario)["bytes"]
        self.kept.append({name: n for name, n in kept.items() if name != "exemplars"})
        memory = strategy.memory
        self.counts.append(self.trainer.streamed.get(task.index) or ({} if memory is None else memory.counts()))
        for data in (view.train, view.validation, view.test):
            data.expire()
        self.longest = max(self.longest, time.monotonic() - began)

    def _test(self, task: Task) -> None:
        """Time the test of the tasks so far: after the first, and later where there is time for it."""
        n = sum(len(t.test) for t in self.scenario.tasks[: task.index + 1])
        if self.tested and (self.trainer.counts_only or not self._affords(n)):
            return
        started = time.perf_counter()
        self._seed("evaluation")
        n = int(evaluate(self.strategy, self.context, task.index).totals.sum())
        self.tested.append(((time.perf_counter() - started) / max(n, 1), n))

    def _remember(self, view: Task) -> None:
        """Fill the memory, and end the task: with all of its images, or with some where that takes too long."""
        strategy, n = self.strategy, len(view.train)
        fully = strategy.traits.memory == "own" or (self._affords(n) and not self.trainer.counts_only)
        some = view if fully else replace(view, train=_spaced(view.train, REMEMBERED))
        started = time.perf_counter()
        if fully or strategy.memory is None or not strategy.memory.needs_features:
            self._fill_memory(view)
        else:
            if not self.trainer.counts_only:
                with torch.no_grad():
                    for batch in strategy.passes(some.train):
                        class_features(strategy, batch.images)
            generator = stream(self.config.seed, "memory", view.index)
            noise = torch.randn(n, strategy.model.feature_dim, generator=generator)
            strategy.memory.update(view.train.ids, view.train.classes, generator, noise)
        if self.trainer.counts_only and not fully:
            return
        self._seed("end_task")
        call_hook(strategy, "end_task", some)
        self.remembered.append(((time.perf_counter() - started) / max(len(some.train), 1), len(some.train)))

    def _affords(self, n: int) -> bool:
        """Whether so many images go through the network in a small part of the time that is left."""
        return n * self.trainer.seconds_an_image < (self.deadline - time.monotonic()) / PART


class _Steps(Trainer):
    """Notes what each stage would be, and trains and times only its first steps."""

    deadline: float
    # Whether stages are only noted: there is no time to train.
    counts_only = False

    def __init__(self, context: Context, strategy: Strategy) -> None:
        super().__init__(context, strategy)
        self.stages: dict[int, list[_Stage]] = {}
        # Seconds of a step, and, by the clock that the deadline is on, of an image in the last one.
        self.measured: dict[Kind, Measured] = {}
        # Floating-point operations of a step with a whole batch, where they are counted.
        self.flops: dict[Kind, int] = {}
        self.seconds_an_image = 0.0
        self.gradient_bytes = self.optimizer_bytes = 0
        # A memory that fills as the samples go by is filled apart, by all the samples that would.
        self.streamed: dict[int, dict[int, int]] = {}
        self.apart: Memory | None = None

    def fit(self, stage: Stage, **_: Any) -> list[EpochRecord]:
        config, task = self.config, self.context.progress.task
        if not len(stage.data):
            return super().fit(stage)
        kind = (stage.name, task > 0)
        records = [] if self.counts_only else self._measured(stage, kind)
        batches = self._first_epoch(stage)
        epochs = stage.epochs or (None if stage.iterations else config.training.epochs)
        updates = stage.iterations or (epochs * len(batches) if epochs else config.training.iterations)
        updates = self._paid(kind) if updates is None else updates
        self.stages.setdefault(task, []).append(_Stage(stage.name, len(stage.data), updates, kind))
        memory = self.strategy.memory
        if memory is not None and memory.streaming and self.strategy.traits.memory == "replayed":
            if self.apart is None:
                self.apart = self.strategy.new_memory(type(memory), memory.size, memory.per_class)
            self.apart.expect(self.context.scenario.tasks[task].train.classes)
            for step, ids in enumerate(batches[:updates]):
                classes = self.context.scenario.train.classes[ids]
                self.apart.update(ids, classes, stream(config.seed, "memory", task, step))
            self.streamed[task] = self.apart.counts()
        return records

    def _measured(self, stage: Stage, kind: Kind) -> list[EpochRecord]:
        """Time a step: of a few images, and then of as many as there is time for, at most a whole batch."""
        batch = min(self.config.training.batch_size, len(stage.data))
        n = min(FEW, batch)
        records, each = self._timed(stage, n, 2)
        room = (self.deadline - time.monotonic()) / PART
        more = min(batch, int(room / max(2 * self.seconds_an_image, 1e-9)))
        if more > n:
            n, steps = more, REHEARSED if REHEARSED * self.seconds_an_image * more < room else 2
            records, each = self._timed(replace(stage, before=None), n, steps)
        self.measured.setdefault(kind, []).append((each * batch / n, n))
        trained = [p for group in self.made.param_groups for p in group["params"]]
        state = [v for kept in self.made.state.values() for v in kept.values() if isinstance(v, Tensor)]
        self.gradient_bytes = max(self.gradient_bytes, _size(trained))
        self.optimizer_bytes = max(self.optimizer_bytes, _size(state))
        return records

    def _timed(self, stage: Stage, n: int, steps: int) -> tuple[list[EpochRecord], float]:
        """Take some steps of n images; return their records, and the seconds of a step without the first, cold one."""
        ticks: list[float] = []
        taken: list[float] = []

        def tick(_: float | None) -> None:
            if self.context.device.type == "cuda":
                torch.cuda.synchronize(self.context.device)
            ticks.append(time.perf_counter())
            taken.append(time.monotonic())

        config, flops = self.config, Flops()
        short = replace(
            stage,
            # All steps within one epoch, where there are so many images.
            data=_spaced(stage.data, n * steps),
            epochs=None,
            iterations=steps,
            lr=None if stage.lr is None else STILL,
            watched=False,
        )
        self.config = config.replace(batch_size=n, drop_last=False)
        try:
            with flops if config.counts_flops else nullcontext():
                records = super().fit(short, after_step=tick)
        finally:
            self.config = config
        whole = min(config.training.batch_size, len(stage.data))
        self.flops[stage.name, self.context.progress.task > 0] = flops.training * whole // (n * steps)
        self.seconds_an_image = (taken[-1] - taken[-2]) / n
        return records, statistics.median(b - a for a, b in itertools.pairwise(ticks))

    def _paid(self, kind: Kind) -> int:
        """Return about how many steps of a stage the task's share of a budget of FLOPs pays for."""
        share = (self.config.training.budget_in("flops") or 0) // len(self.context.scenario.tasks)
        return share // max(self.sharing, 1) // max(self.flops.get(kind, share), 1)

    def optimizer(self, trained: dict[str, nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Return the stage's optimizer, and keep it to measure."""
        self.made = super().optimizer(trained, lr)
        return self.made

    def _first_epoch(self, stage: Stage) -> list[Tensor]:
        order = torch.randperm(
            len(stage.data), generator=stream(self.config.seed, "shuffle", self.context.progress.task, stage.name, 0)
        )
        return cut(stage.data.ids[order], self.config.training.batch_size, drop_last=self.config.training.drop_last)


def _size(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _spaced(data: ImageSet, n: int) -> ImageSet:
    """Return n samples of a set, evenly spaced, so that classes that follow each other are all there."""
    return data.subset(torch.arange(min(n, len(data))) * len(data) // max(min(n, len(data)), 1))
