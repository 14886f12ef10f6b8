"""RunRecord: what run.json holds. A run builds it, `Result` reads it, and nothing else knows its form. No torch."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1

MatrixName = Literal["class_incremental", "task_aware"]
MATRICES: tuple[MatrixName, ...] = ("class_incremental", "task_aware")


def _none_for_nan(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


Number = Annotated[float | None, BeforeValidator(_none_for_nan)]
Accuracy = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_none_for_nan)]
Rows = list[list[Accuracy]]
Count = Annotated[int, Field(ge=0)]
Value = TypeVar("Value")


class Part(BaseModel):
    """Base of the parts of a record; keys that another version wrote are kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class ByMatrix(Part):
    """Something for each of the two matrices; None where the strategy or the setting can't define it."""

    def __getitem__(self, name: MatrixName) -> Any:
        return getattr(self, name)


class UntrainedRecord(ByMatrix):
    """Accuracies [T] of the model before any training."""

    class_incremental: list[Accuracy] | None = None
    task_aware: list[Accuracy] | None = None


class AccuracyRecord(ByMatrix):
    """Both matrices [T, T] of one classifier, and its accuracies before training.

    A row has a value for each task, or one value alone, that of its own task (evaluate=current).
    """

    class_incremental: Rows | None = None
    task_aware: Rows | None = None
    untrained: UntrainedRecord = UntrainedRecord()


def whole_row(rows: Sequence[list[Value | None]], after: int) -> list[Value | None]:
    """Return row `after` of a matrix with a value for each task, None for those that were not tested."""
    row, n = rows[after], len(rows)
    return row if len(row) == n else [*[None] * after, *row, *[None] * (n - 1 - after)]


class StrategyRecord(Part):
    """The strategy: its name, its label in tables, what a report says of it, and how its network treats an image."""

    name: str
    label: str = ""
    family: str = ""
    reference: bool = False
    data_access: str = "task"
    features: str | None = None
    options: dict[str, Any] = {}
    paper: str = ""
    preprocessing: str | None = None


class ScenarioTask(Part):
    """One task of the scenario: original classes, head outputs, number of test images."""

    classes: list[int]
    outputs: list[int] = []
    n_test: Count


class ScenarioRecord(Part):
    """The scenario, its tasks, and how many files of its data can't be used and were left out."""

    name: str
    setting: Literal["class", "task", "domain"]
    class_names: list[str] = []
    tasks: Annotated[list[ScenarioTask], Field(min_length=1)]
    left_out: Count = 0


class Headline(Part):
    """The matrix and the classifier that the setting reports."""

    matrix: MatrixName
    classifier: str


class TaskRecord(Part):
    """One task that was learnt: images, exemplars, steps, learning rates, seconds, peak memory, logged numbers.

    online_accuracy: the share of its samples that were classified correctly just before they were learnt, where asked.
    plasticity: what was measured of the network after the task, by name (clbench.learning.plasticity), where asked.
    idle_share: the share of the seconds of its epochs in which images on disk were waited for; 0 for those in memory.
    flops: floating-point operations, where they were counted: of `train`, `memory` and `evaluation`, as the seconds are
        named; `per_image`, of testing one; `open`, of training up to the end of the last stage that a budget bounds.
    """

    task: Count
    n_train: Count = 0
    n_exemplars: Count = 0
    exemplars_per_class: dict[str, Count] = {}
    steps: Count = 0
    epochs: Count = 0
    best_epochs: dict[str, int] = {}
    learning_rates: list[float] = []
    seconds: dict[str, Number] = {}
    flops: dict[str, Count] = {}
    idle_share: Number = 0.0
    peak_memory_bytes: Count = 0
    logged: dict[str, Number] = {}
    online_accuracy: Accuracy = None
    plasticity: dict[str, Number] = {}


class EpochRecord(Part):
    """One epoch of training: task, stage, its number within the stage, and the mean of each loss term by name.

    lr_first, lr: the learning rates of its first and of its last step; 0.1.0 kept the last one alone.
    waited: those of its seconds in which images on disk were waited for.
    gradient_norm: the mean over its steps of the norm of the gradient, where that is measured.
    tested, correct: samples that were tested just before they were learnt, and how many of them were right.
    near_tested, near_correct: the same of samples that were tested some steps before they were learnt.
    """

    task: Count
    stage: str
    epoch: int | None = None
    steps: int | None = None
    skipped: int = 0
    lr: Number = None
    lr_first: Number = None
    seconds: Number = None
    waited: Number = 0.0
    images: int | None = None
    replayed: int = 0
    losses: dict[str, Number] = {}
    validation_loss: Number = None
    best: bool = False
    gradient_norm: Number = None
    tested: Count = 0
    correct: Count = 0
    near_tested: Count = 0
    near_correct: Count = 0


def idle_share(epochs: Sequence[EpochRecord]) -> float:
    """Return the share of the seconds of epochs in which images on disk were waited for."""
    waited = sum(epoch.waited or 0.0 for epoch in epochs)
    return waited / sum(epoch.seconds or 0.0 for epoch in epochs) if waited else 0.0


def online_counts(epochs: Sequence[EpochRecord]) -> tuple[int, int] | None:
    """Return how many samples were right just before they were learnt, and how many were tested; None for none."""
    tested = sum(epoch.tested for epoch in epochs)
    return (sum(epoch.correct for epoch in epochs), tested) if tested else None


def near_counts(epochs: Sequence[EpochRecord]) -> tuple[int, int] | None:
    """Return how many samples were right some steps before they were learnt, and how many were tested so, or None."""
    tested = sum(epoch.near_tested for epoch in epochs)
    return (sum(epoch.near_correct for epoch in epochs), tested) if tested else None


def on_the_way(record: "RunRecord") -> dict[str, Any]:
    """Return what was tested while the stream went by, as metrics.summarize() takes it; {} where a task is missing.

    A task that is learnt in no step has no samples that go by, and a mean over the others is one of another stream.
    """
    if {epoch.task for epoch in record.training if epoch.images} < set(range(len(record.tasks))):
        return {}
    return {
        "online": online_counts(record.training),
        "near": near_counts(record.training),
        "anytime": [point.accuracy for point in record.anytime],
    }


class AnytimeRecord(Part):
    """The accuracy on the classes seen so far, among their outputs, once so many samples of the stream have gone by."""

    samples: Count
    accuracy: Annotated[float, Field(ge=0, le=1)]


class EvaluationRecord(ByMatrix):
    """Accuracies [T] in the middle of a task, under both rules: after `step` optimizer steps of it, in `epoch`."""

    task: Count
    stage: str = ""
    epoch: int = 0
    step: int = 0
    class_incremental: list[Accuracy] | None = None
    task_aware: list[Accuracy] | None = None


class LedgerRecord(Part):
    """Bytes and items that are kept after a task, by the name of what is kept."""

    task: Count
    bytes: dict[str, Count] = {}
    items: dict[str, Count] = {}


class Warned(Part):
    """A warning to the reader of the numbers: a rule and a sentence."""

    rule: str
    text: str


class ConfigRecord(Part):
    """The fields of the run, and the options of its scenario, by flat names; the readers need these."""

    seed: Count
    tuned_by: str | None = None
    strategy_options: dict[str, Any] = {}


class RunRecord(Part):
    """Everything that is known of one run."""

    schema_version: int = SCHEMA_VERSION
    clbench: str
    source: str = ""
    status: Literal["running", "done", "failed"]
    identity: str
    group: str = ""
    created: str
    config: ConfigRecord
    strategy: StrategyRecord
    environment: dict[str, Any] = {}
    scenario: ScenarioRecord
    class_order: list[int]
    learning_rate: Number = None
    headline: Headline
    accuracy: AccuracyRecord
    classifiers: dict[str, AccuracyRecord] = {}
    correct: dict[str, list[Any]] = {}
    confusion: list[list[Count]] | None = None
    tasks: list[TaskRecord] = []
    training: list[EpochRecord] = []
    evaluations: list[EvaluationRecord] = []
    anytime: list[AnytimeRecord] = []
    ledger: list[LedgerRecord] = []
    resumes: list[dict[str, Any]] = []
    extends: dict[str, Any] | None = None
    cached_features: dict[str, str] | None = None
    averages: dict[str, dict[str, list[Number]]] = {}
    metrics: dict[str, Number] = {}
    metrics_task_aware: dict[str, Number] = {}
    warnings: list[Warned] = []
    error: str | None = None
    failed_at: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _shapes(self) -> "RunRecord":
        n_tasks = len(self.scenario.tasks)
        for accuracies in (self.accuracy, *self.classifiers.values()):
            for rows in (accuracies.class_incremental, accuracies.task_aware):
                widths = {len(row) for row in rows or ()}
                if rows is not None and (len(rows) > n_tasks or widths not in (set(), {1}, {n_tasks})):
                    raise ValueError(f"an accuracy matrix of {n_tasks} columns and as many rows is accepted")
            for vector in (accuracies.untrained.class_incremental, accuracies.untrained.task_aware):
                if vector is not None and len(vector) != n_tasks:
                    raise ValueError(f"untrained accuracies of {n_tasks} tasks are accepted")
            if accuracies[self.headline.matrix] is None:
                raise ValueError(f"the headline matrix accuracy.{self.headline.matrix} is missing")
        for evaluation in self.evaluations:
            if any(row is not None and len(row) != n_tasks for row in (evaluation[m] for m in MATRICES)):
                raise ValueError(f"evaluations of {n_tasks} tasks are accepted")
        if self.confusion is not None and any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("a confusion matrix of as many columns as rows is accepted")
        return self
