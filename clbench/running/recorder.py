"""The recorder: the first observer of a run. It builds the record that run.json holds."""

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from clbench.config.code import other_versions, own_source, packages, versions
from clbench.config.run import OWN_WEIGHTS, RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.evaluation import Evaluation
from clbench.learning.returned import same_classifiers
from clbench.learning.strategy import Context, Progress, Strategy
from clbench.models.pretrained import preprocessing_of
from clbench.results import metrics
from clbench.results.record import (
    MATRICES,
    SCHEMA_VERSION,
    AccuracyRecord,
    AnytimeRecord,
    ConfigRecord,
    EpochRecord,
    EvaluationRecord,
    Headline,
    LedgerRecord,
    Rows,
    RunRecord,
    ScenarioRecord,
    StrategyRecord,
    TaskRecord,
    UntrainedRecord,
    idle_share,
    on_the_way,
    online_counts,
    whole_row,
)
from clbench.results.result import matrix_of
from clbench.running.ledger import above_budget, measure
from clbench.running.observer import Observer
from clbench.running.process import device_name, peak_memory
from clbench.running.resolve import classes_of
from clbench.running.warned import run_warnings, warning

PACKAGES = ("torch", "torchvision", "numpy", "avalanche-lib")


class Recorder(Observer):
    """Builds the record of one run while it goes on."""

    def __init__(self, context: Context, strategy: Strategy) -> None:
        self.context, self.strategy = context, strategy
        self.record = new_record(context.config, context.scenario, strategy)
        # Whether each row has the accuracy on its own task alone.
        self.alone = context.config.evaluation.evaluate == "current"
        # In what of clbench and the machine a run that was continued began elsewhere, in words.
        self.elsewhere = ""

    def go_on(self, stored: dict[str, Any], at: Progress) -> None:
        """Go on with a record that was saved at some place; raises ValueError for what is none."""
        here, self.record = self.record, RunRecord.model_validate(stored)
        if self.record.classifiers:
            # One object again: the headline classifier's rows are those of `accuracy`.
            self.record.accuracy = self.record.classifiers[self.record.headline.classifier]
        place = {"task": at.task, "stage": at.stage, "epoch": at.epoch, "step": at.step}
        self.record.resumes.append(place)
        self.elsewhere = differences(self.record, here)
        now = {"on_nan": self.context.config.training.on_nan, "processes": self.context.config.engine.processes}
        self.record.config = self.record.config.model_copy(update=now)
        if self.elsewhere:
            text = f"begun with {self.elsewhere}: the last bits may differ from those of a run in one go"
            self.record.warnings.append(warning(self.context.config, "continued-elsewhere", text))

    def evaluated(self, progress: Progress, evaluation: Evaluation) -> None:
        """Record an evaluation within a task, of the headline classifier."""
        self._name_classifiers(evaluation)
        headline = next(iter(evaluation.classifiers))
        rows = {matrix: evaluation.row(headline, matrix) for matrix in MATRICES}
        at = {"task": progress.task, "stage": progress.stage, "epoch": progress.epoch, "step": progress.step}
        self.record.evaluations.append(EvaluationRecord.model_validate({**at, **rows}))

    def seen_classes(self, samples: int, accuracy: float) -> None:
        """Record the accuracy on the classes seen so far, once so many samples have gone by."""
        # Assigned, as records without it stay as they were.
        self.record.anytime = [*self.record.anytime, AnytimeRecord(samples=samples, accuracy=accuracy)]

    def untrained(self, evaluation: Evaluation) -> None:
        """Record the accuracies before any training."""
        self._name_classifiers(evaluation)
        for name, accuracies in self.record.classifiers.items():
            rows = {matrix: evaluation.row(name, matrix) for matrix in MATRICES}
            accuracies.untrained = UntrainedRecord(**rows)

    def _name_classifiers(self, evaluation: Evaluation) -> None:
        """Record which classifiers there are, the headline one first, when they are first seen."""
        record, n = self.record, len(self.context.scenario.tasks)
        if record.classifiers:
            same_classifiers(self.strategy, evaluation.classifiers, record.classifiers)
            return
        hidden = self.strategy.traits.needs_task_at_test
        for name in evaluation.classifiers:
            record.classifiers[name] = AccuracyRecord(
                class_incremental=None if hidden else _empty(n, self.alone),
                task_aware=_empty(n, self.alone),
                untrained=UntrainedRecord(class_incremental=None, task_aware=None),
            )
        record.headline.classifier = next(iter(evaluation.classifiers))
        record.accuracy = record.classifiers[record.headline.classifier]

    def learnt(self, task: int, evaluation: Evaluation) -> None:
        """Record the accuracies after a task."""
        self._name_classifiers(evaluation)
        record, headline = self.record, self.record.headline.classifier
        for name in evaluation.classifiers:
            for matrix in MATRICES:
                if (rows := record.classifiers[name][matrix]) is not None:
                    row = evaluation.row(name, matrix)
                    rows[task] = [row[task]] if self.alone else row
        for matrix in MATRICES:
            correct = evaluation.correct(headline, matrix)
            record.correct[matrix].append([correct[task]] if self.alone else correct)
        confusion = evaluation.classifiers[headline].confusion
        record.confusion = None if confusion is None else confusion.tolist()

    def sum_up(self) -> None:
        """Record averages and metrics up to the present task, which takes longer the more tasks there are."""
        record = self.record
        record.averages = {
            name: {m: metrics.average_accuracies(R) for m in MATRICES if (R := self._matrix(rows[m])) is not None}
            for name, rows in record.classifiers.items()
        }
        record.metrics = self._metrics(record.headline.matrix)
        record.metrics_task_aware = self._metrics("task_aware")

    def _matrix(self, rows: Rows | None) -> Any:
        return matrix_of(rows, len(self.record.scenario.tasks))

    def _metrics(self, matrix: Any) -> dict[str, float | None]:
        record, rows = self.record, self._matrix(self.record.accuracy[matrix])
        if rows is None:
            return {}
        within = [(evaluation.task, evaluation[matrix]) for evaluation in record.evaluations]
        sizes = [task.n_test for task in record.scenario.tasks]
        return metrics.summarize(
            rows,
            baseline=record.accuracy.untrained[matrix],
            test_sizes=sizes if all(sizes) else None,
            minima=metrics.minima(rows, within),
            **(on_the_way(record) if matrix == record.headline.matrix else {}),
        )

    def task_done(
        self, n_train: int, epochs: list[EpochRecord], seconds: dict[str, float], measured: dict[str, float]
    ) -> None:
        """Record what learning the present task took, what is kept after it, and what was `measured` of the network."""
        record, memory, context = self.record, self.strategy.memory, self.context
        counts = memory.counts() if memory is not None else {}
        task = context.progress.task
        record.training += epochs
        record.tasks.append(
            TaskRecord(
                task=task,
                n_train=n_train,
                n_exemplars=0 if memory is None else len(memory),
                exemplars_per_class={str(c): n for c, n in counts.items()},
                steps=sum(epoch.steps or 0 for epoch in epochs),
                epochs=len(epochs),
                best_epochs={epoch.stage: epoch.epoch or 0 for epoch in epochs if epoch.best},
                learning_rates=sorted({epoch.lr for epoch in epochs if epoch.lr is not None}, reverse=True),
                seconds=dict(seconds),
                peak_memory_bytes=peak_memory(context.device),
                logged=dict(context.logged),
            )
        )
        if share := idle_share(epochs):
            record.tasks[-1].idle_share = share
        if measured:
            norms = [(epoch.gradient_norm, epoch.steps or 0) for epoch in epochs if epoch.gradient_norm is not None]
            steps = sum(n for _, n in norms)
            mean = {"gradient_norm": sum(norm * n for norm, n in norms) / steps} if steps else {}
            record.tasks[-1].plasticity = {**measured, **mean}
        if context.config.evaluation.online_accuracy:
            self._online(record.tasks[-1], epochs)
        asked = context.config.evaluation
        if asked.online_accuracy or asked.near_future is not None or asked.anytime is not None:
            self._warn_of_tasks_without_steps()
        if skipped := sum(epoch.skipped for epoch in record.training):
            self.warn("steps-skipped", f"{skipped} optimizer steps were left out, as a loss or gradient was not finite")
        record.ledger.append(LedgerRecord(task=task, **measure(self.strategy, context.scenario)))
        budget, kept = context.config.training.budget_in("bytes"), sum(record.ledger[-1].bytes.values())
        if budget is not None and kept > budget:
            self.warn(
                "bytes-above-budget", f"{kept:,} bytes are kept, and the budget is of {budget:,} after task {task}"
            )
        if above := above_budget(context.config, counts, record.ledger[-1].items):
            self.warn("memory-above-budget", f"{above} after task {task}")

    def _online(self, task: TaskRecord, epochs: list[EpochRecord]) -> None:
        """Record the share of a task's samples that were right just before they were learnt."""
        if (counts := online_counts(epochs)) is not None:
            task.online_accuracy = counts[0] / counts[1]

    def _warn_of_tasks_without_steps(self) -> None:
        """Say which tasks are learnt in no step, so that nothing is tested while their samples come."""
        stepped = {epoch.task for epoch in self.record.training if epoch.images}
        without = [task.task for task in self.record.tasks if task.task not in stepped]
        if without:
            named = f"task {without[0]} is" if len(without) == 1 else f"tasks {without[0]} to {without[-1]} are"
            text = f"{named} learnt in no step, so that nothing was tested while the samples came"
            self.warn("not-tested-on-the-way", f"{text}, and no average over the stream is given")

    def warn(self, rule: str, text: str) -> None:
        """Put a warning into the record, in the place of an earlier one of the same rule."""
        others = [other for other in self.record.warnings if other.rule != rule]
        self.record.warnings = [*others, warning(self.context.config, rule, text)]

    def failed(self, error: str, progress: Progress) -> None:
        """Record why and where the run failed."""
        self.record.status, self.record.error = "failed", error
        at = {name: getattr(progress, name) for name in ("task", "stage", "epoch", "step")}
        self.record.failed_at = at

    @property
    def row(self) -> list[float | None]:
        """The last row of the headline matrix."""
        return whole_row(self.record.accuracy[self.record.headline.matrix], len(self.record.tasks) - 1)


def differences(begun: RunRecord, here: RunRecord) -> str:
    """Return in what of clbench and the machine two records differ, as "torch 2.6, here 2.7"; "" for nothing."""
    named = {
        "clbench": [r.clbench for r in (begun, here)],
        "clbench's source": [r.source or here.source for r in (begun, here)],
        "torch": [r.environment["packages"]["torch"] for r in (begun, here)],
        "processor": [r.environment["device"] for r in (begun, here)],
        # Runs of 0.1.0 recorded none.
        "number of processes": [getattr(r.config, "processes", 1) for r in (begun, here)],
    }
    return "; ".join(f"{name} {then}, here {now}" for name, (then, now) in named.items() if then != now)


def other_packages(found: RunRecord) -> str:
    """Return in what of clbench and the packages that the user's own code uses a run is of another version than here.

    As "clbench 0.1.0 (here 0.2.0)" or "clbench's own code of then, which has changed"; "" where there is nothing.
    """
    named = {"clbench": found.clbench, **found.environment.get("packages", {})}
    recorded = {name: version for name, version in named.items() if name not in PACKAGES}
    others = [f"{name} {recorded[name]} (here {here})" for name, here in other_versions(recorded).items()]
    if found.source and found.source != own_source() and found.clbench == metadata.version("clbench"):
        others.append("clbench's own code of then, which has changed")
    return ", ".join(others)


def new_record(config: RunConfig, scenario: Scenario, strategy: Strategy) -> RunRecord:
    """Return the record of a run that has not learnt anything yet."""
    traits, n, alone = strategy.traits, len(scenario.tasks), config.evaluation.evaluate == "current"
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        clbench=metadata.version("clbench"),
        source=own_source(),
        status="running",
        identity=config.identity(),
        group=config.identity(without_seed=True),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=ConfigRecord(**config.flat()),
        strategy=StrategyRecord(
            name=config.strategy,
            label=config.label,
            family=traits.family,
            reference=traits.data_access == "all",
            data_access=traits.data_access,
            features=_features(config, strategy),
            options=config.strategy_options,
            paper=traits.paper,
            # Only where there is some: records without it stay as they were. A run that never began has no network.
            **({"preprocessing": said} if (said := preprocessing_of(getattr(strategy, "model", None))) else {}),
        ),
        environment={
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": device_name(config.engine.device),
            "threads": config.engine.threads,
            "packages": packages(classes_of(config)) | versions(PACKAGES),
        },
        scenario=ScenarioRecord.model_validate(
            {
                "name": scenario.name,
                "setting": scenario.setting,
                "class_names": list(scenario.class_names),
                "tasks": scenario.describe(),
                # Only where there are some: records without it stay as they were.
                **({"left_out": len(scenario.left_out)} if scenario.left_out else {}),
            }
        ),
        class_order=scenario.class_order,
        learning_rate=config.training.scaled_lr,
        headline=Headline(
            matrix="task_aware" if scenario.setting == "task" else "class_incremental", classifier="linear"
        ),
        accuracy=AccuracyRecord(
            class_incremental=_empty(n, alone),
            task_aware=_empty(n, alone),
            untrained=UntrainedRecord(class_incremental=None, task_aware=None),
        ),
        classifiers={},
        correct={matrix: [] for matrix in MATRICES},
        confusion=None,
        tasks=[],
        training=[],
        evaluations=[],
        ledger=[],
        resumes=[],
        metrics={},
        metrics_task_aware={},
        warnings=run_warnings(config, scenario, strategy),
    )


def _empty(n: int, alone: bool) -> list[list[float | None]]:
    """Return the rows of n tasks before any is learnt; `alone`: each has a place for its own task alone."""
    return [[None] * (1 if alone else n) for _ in range(n)]


def _features(config: RunConfig, strategy: Strategy) -> str | None:
    """Say where features come from that are not learnt from all tasks; None where they are."""
    if config.model.weights is not None:
        own = config.model.weights == OWN_WEIGHTS
        return f"start from {f'the weights of {config.model.name}' if own else config.model.weights}"
    traits = strategy.traits
    return "come from the first task" if traits.family == "frozen" and traits.through_features else None
