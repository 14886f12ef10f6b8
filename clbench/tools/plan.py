"""Before training: tasks, updates, exemplars, time and bytes of a run, from a rehearsal of a few steps a stage."""

import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.data.scenario import ImageSet, Scenario
from clbench.learning.memory import Memory
from clbench.learning.strategy import Context, Stage, Strategy
from clbench.learning.trainer import Trainer, cut
from clbench.results.record import EpochRecord
from clbench.running.check import check
from clbench.running.folder import RunFolder
from clbench.running.resolve import strategy_class
from clbench.running.run import execute, runner_of
from clbench.running.warned import run_warnings, warning
from clbench.support.streams import stream
from clbench.support.surroundings import undisturbed

# Steps that are rehearsed in each stage; the first one, which warms up caches, is not timed.
REHEARSED = 4
# Test images of each task that are scored in the rehearsal.
TESTED = 200


@undisturbed()
def plan_run(config: RunConfig, scenario: Scenario) -> dict[str, Any]:
    """Return what a run will do and need, as plain values; goes through all tasks, training a few steps in each stage.

    Images, updates and exemplars are those of the run; what a strategy does at the end of a task is done in full. Time
    and bytes are estimates: steps are timed on this machine; bytes are of what is held through training (weights,
    gradients, optimizer, what the strategy keeps, all images), without the activations of a step. With early stopping
    updates and time are upper limits. Raises ConfigError as run() does.
    """
    check_plan(config, scenario)
    rehearsals: list[_Rehearsal] = []

    def trainer(context: Context, strategy: Strategy) -> Trainer:
        rehearsals.append(_Rehearsal(context, strategy))
        return rehearsals[-1]

    short = replace(scenario, tasks=[replace(task, test=_first(task.test)) for task in scenario.tasks])
    quick = config.replace(patience=None, eval_every="task")
    with tempfile.TemporaryDirectory() as folder:
        record = execute(quick, short, RunFolder(folder), trainer=trainer).record
    rehearsal = rehearsals[0]
    tests = _tested(scenario) / max(_tested(short), 1)
    tasks = []
    for task, done in zip(scenario.tasks, record["tasks"], strict=True):
        stages = rehearsal.stages.get(task.index, [])
        counts = rehearsal.streamed.get(task.index) or {int(c): n for c, n in done["exemplars_per_class"].items()}
        training = sum(stage.updates * stage.step_seconds for stage in stages)
        tasks.append(
            {
                "task": task.index,
                "classes": list(task.classes),
                "images": len(task.train),
                "stages": [{"name": s.name, "images": s.images, "updates": s.updates} for s in stages],
                "updates": sum(stage.updates for stage in stages),
                "exemplars": sum(counts.values()),
                "exemplars_per_class": [min(counts.values(), default=0), max(counts.values(), default=0)],
                "seconds": training + done["seconds"]["memory"] + done["seconds"]["evaluation"] * tests,
            }
        )
    ledgers: list[dict[str, int]] = [
        {k: n for k, n in entry["bytes"].items() if k != "exemplars"} for entry in record["ledger"]
    ]
    most = max(ledgers, key=lambda kept: sum(kept.values()))
    held = {
        **most,
        "gradients": rehearsal.gradient_bytes,
        "optimizer": rehearsal.optimizer_bytes,
        "exemplars": max(task["exemplars"] for task in tasks) * scenario.train.images[0].numel(),
        "images": scenario.train.images.numel() + scenario.test.images.numel(),
    }
    return {
        "scenario": scenario.name,
        "strategy": config.label,
        "setting": scenario.setting,
        "device": config.engine.device,
        "tasks": tasks,
        "updates": sum(task["updates"] for task in tasks),
        "seconds": sum(task["seconds"] for task in tasks),
        "bytes": held,
        "peak_bytes": sum(held.values()),
        "warnings": [
            *(each.model_dump() for each in run_warnings(config, scenario, rehearsal.strategy)),
            *(warning(config, rule, text).model_dump() for rule, text in rehearsal.remarks),
        ],
    }


@undisturbed()
def check_plan(config: RunConfig, scenario: Scenario) -> None:
    """Raise ConfigError, before any training, for what plan_run() can't do."""
    kind = strategy_class(config.strategy)
    if not runner_of(kind).continues:
        raise ConfigError(f"{config.strategy} trains by its own loop, which can't be rehearsed; other strategies can")
    check(config, scenario, kind(**config.strategy_options))


@dataclass
class _Rehearsed:
    """A stage: its name, images and updates, and how long a step takes."""

    name: str
    images: int
    updates: int
    step_seconds: float


class _Rehearsal(Trainer):
    """Notes what each stage would be, and trains and times only its first steps."""

    def __init__(self, context: Context, strategy: Strategy) -> None:
        super().__init__(context, strategy)
        self.stages: dict[int, list[_Rehearsed]] = {}
        self.gradient_bytes = self.optimizer_bytes = 0
        # A memory that fills as the samples go by is filled apart, by all the samples that would.
        self.streamed: dict[int, dict[int, int]] = {}
        self.apart: Memory | None = None

    def fit(self, stage: Stage, **_: Any) -> list[EpochRecord]:
        config, task = self.config, self.context.progress.task
        ticks: list[float] = []

        def tick(_: float | None) -> None:
            if self.context.device.type == "cuda":
                torch.cuda.synchronize(self.context.device)
            ticks.append(time.perf_counter())

        records = super().fit(replace(stage, epochs=None, iterations=REHEARSED), after_step=tick)
        if not records:
            return records
        batches = self._first_epoch(stage)
        epochs = stage.epochs or (None if stage.iterations else config.training.epochs)
        updates = stage.iterations or (epochs * len(batches) if epochs else config.training.iterations or 0)
        each = statistics.median(b - a for a, b in itertools.pairwise(ticks)) if len(ticks) > 1 else 0.0
        self.stages.setdefault(task, []).append(_Rehearsed(stage.name, len(stage.data), updates, each))
        memory = self.strategy.memory
        if memory is not None and memory.streaming and self.strategy.traits.memory == "replayed":
            if self.apart is None:
                self.apart = self.strategy.new_memory(type(memory), memory.size, memory.per_class)
            self.apart.expect(self.context.scenario.tasks[task].train.classes)
            for step, ids in enumerate(batches[:updates]):
                classes = self.context.scenario.train.classes[ids]
                self.apart.update(ids, classes, stream(config.seed, "memory", task, step))
            self.streamed[task] = self.apart.counts()
        trained = [p for group in self.made.param_groups for p in group["params"]]
        state = [v for kept in self.made.state.values() for v in kept.values() if isinstance(v, Tensor)]
        self.gradient_bytes = max(self.gradient_bytes, _size(trained))
        self.optimizer_bytes = max(self.optimizer_bytes, _size(state))
        return records

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


def _tested(scenario: Scenario) -> int:
    return sum(len(task.test) for task in scenario.tasks)


def _first(data: ImageSet) -> ImageSet:
    return data.subset(torch.arange(min(TESTED, len(data))))
