"""Result: one run as `run.json` holds it, the bundle that every table and plot is rebuilt from. No torch."""

import csv
import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from clbench.config.errors import ConfigError, unknown
from clbench.results import metrics
from clbench.support.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1

Floats = NDArray[np.float64]
MatrixName = Literal["class_incremental", "task_aware"]
MATRICES: tuple[MatrixName, ...] = ("class_incremental", "task_aware")


def _none_for_nan(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


Number = Annotated[float | None, BeforeValidator(_none_for_nan)]
Accuracy = Annotated[
    Annotated[float, Field(ge=0, le=1)] | None,
    BeforeValidator(_none_for_nan),
]
Rows = list[list[Accuracy]]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    """What is read of a part of the record; keys beside these are kept and not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Untrained(_Part):
    class_incremental: list[Accuracy] | None = None
    task_aware: list[Accuracy] | None = None


class _Accuracies(_Part):
    class_incremental: Rows | None = None
    task_aware: Rows | None = None
    untrained: _Untrained = _Untrained()


class _Strategy(_Part):
    name: str
    label: str = ""
    family: str = ""
    reference: bool = False
    data_access: str = "task"
    features: str | None = None


class _Task(_Part):
    classes: list[int]
    outputs: list[int] = []
    n_test: Count


class _Scenario(_Part):
    name: str
    setting: Literal["class", "task", "domain"]
    class_names: list[str] = []
    tasks: Annotated[list[_Task], Field(min_length=1)]


class _Headline(_Part):
    matrix: MatrixName
    classifier: str


class _TaskRecord(_Part):
    task: Count
    steps: Count = 0
    seconds: dict[str, Number] = {}


class Epoch(_Part):
    """One epoch of training: task, stage, its number within the stage, and the mean of each loss term by name."""

    task: Count
    stage: str
    epoch: int | None = None
    steps: int | None = None
    lr: Number = None
    seconds: Number = None
    images: int | None = None
    losses: dict[str, Number] = {}
    validation_loss: Number = None


class Evaluation(_Part):
    """Accuracies [T] in the middle of a task, under both rules: after `step` optimizer steps of it, in `epoch`."""

    task: Count
    stage: str = ""
    epoch: int = 0
    step: int = 0
    class_incremental: list[Accuracy] | None = None
    task_aware: list[Accuracy] | None = None

    def __getitem__(self, name: MatrixName) -> list[Accuracy] | None:
        return self.class_incremental if name == "class_incremental" else self.task_aware


class _Ledger(_Part):
    task: Count
    bytes: dict[str, Count] = {}
    items: dict[str, Count] = {}


class _Warning(_Part):
    rule: str
    text: str


class _Config(_Part):
    seed: Count
    tuned_by: str | None = None
    strategy_options: dict[str, Any] = {}


class _Run(_Part):
    clbench: str
    status: Literal["running", "done", "failed"]
    identity: str
    created: str
    config: _Config
    strategy: _Strategy
    scenario: _Scenario
    class_order: list[int]
    headline: _Headline
    accuracy: _Accuracies
    classifiers: dict[str, _Accuracies] = {}
    tasks: list[_TaskRecord] = []
    training: list[Epoch] = []
    evaluations: list[Evaluation] = []
    confusion: list[list[Count]] | None = None
    environment: dict[str, Any] = {}
    ledger: list[_Ledger] = []
    metrics: dict[str, Number] = {}
    warnings: list[_Warning] = []

    @model_validator(mode="after")
    def _shapes(self) -> "_Run":
        n_tasks = len(self.scenario.tasks)
        for accuracies in (self.accuracy, *self.classifiers.values()):
            for rows in (accuracies.class_incremental, accuracies.task_aware):
                if rows is not None and (len(rows) > n_tasks or any(len(row) != n_tasks for row in rows)):
                    raise ValueError(f"an accuracy matrix of {n_tasks} columns and as many rows is accepted")
            for vector in (accuracies.untrained.class_incremental, accuracies.untrained.task_aware):
                if vector is not None and len(vector) != n_tasks:
                    raise ValueError(f"untrained accuracies of {n_tasks} tasks are accepted")
            if getattr(accuracies, self.headline.matrix) is None:
                raise ValueError(f"the headline matrix accuracy.{self.headline.matrix} is missing")
        for evaluation in self.evaluations:
            if any(row is not None and len(row) != n_tasks for row in (evaluation[m] for m in MATRICES)):
                raise ValueError(f"evaluations of {n_tasks} tasks are accepted")
        if self.confusion is not None and any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("a confusion matrix of as many columns as rows is accepted")
        return self


@dataclass(frozen=True)
class Matrices:
    """The accuracies of one classifier: float arrays [T, T] (NaN: not evaluated), None where undefined."""

    class_incremental: Floats | None
    task_aware: Floats | None
    untrained: Mapping[MatrixName, Floats | None]

    def __getitem__(self, name: MatrixName) -> Floats | None:
        return self.class_incremental if name == "class_incremental" else self.task_aware


class Result:
    """One run: its configuration, accuracies, costs and metrics; `record` is the content of its run.json.

    The record is read once, here; raises pydantic's ValidationError (a ValueError) when it is none.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self._run = _Run.model_validate(record)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Result":
        """Read a run folder or a run.json; raises ConfigError, naming the file, for whatever is not one."""
        file = Path(path)
        # os.path takes any text; Path raises for one that is too long for a name.
        if os.path.isdir(file):
            file = file / "run.json"
        if not os.path.isfile(file):
            raise ConfigError(f"{file}: no such file; the folder of a run or its run.json is accepted")
        try:
            text = file.read_text(encoding="utf-8")
            record = json.loads(text)
            # A lone surrogate is valid in JSON, but can be neither printed nor written again.
            json.dumps(record, ensure_ascii=False).encode()
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror or error}; a readable run.json is accepted") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: damaged or not JSON ({error}); a run.json is accepted") from None
        version = record.get("schema_version") if isinstance(record, dict) else None
        if not isinstance(version, int):
            raise ConfigError(f"{file}: not a run of clbench: a run.json with a schema_version is accepted")
        if version != SCHEMA_VERSION:
            raise ConfigError(f"{file}: schema_version={version} is of another clbench; {SCHEMA_VERSION} is accepted")
        try:
            return cls(record)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "run"
            wrong = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{file}: not a run of clbench: {where}: {wrong}") from None

    @property
    def status(self) -> str:
        """`running`, `done` or `failed`."""
        return self._run.status

    @property
    def strategy(self) -> str:
        """The strategy's label in tables, such as `er[memory_size=200]`."""
        return self._run.strategy.label or self._run.strategy.name

    @property
    def strategy_name(self) -> str:
        """The strategy's registered name, without its options."""
        return self._run.strategy.name

    @property
    def family(self) -> str:
        """The strategy's family, such as `regularisation`."""
        return self._run.strategy.family

    @property
    def features(self) -> str | None:
        """Where the features come from, as the end of a sentence; None where they are learnt from all tasks."""
        return self._run.strategy.features

    @property
    def scenario(self) -> str:
        """Name of the scenario."""
        return self._run.scenario.name

    @property
    def setting(self) -> str:
        """`class`, `task` or `domain`."""
        return self._run.scenario.setting

    @property
    def seed(self) -> int:
        """Seed of every random stream of the run."""
        return self._run.config.seed

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the run's RunConfig."""
        return dict(self.record["config"])

    @property
    def identity(self) -> str:
        """Hash of the configuration fields that can change the numbers."""
        return self._run.identity

    @property
    def created(self) -> str:
        """When the run was started, as ISO 8601."""
        return self._run.created

    @property
    def version(self) -> str:
        """Version of clbench that made the run."""
        return self._run.clbench

    @property
    def is_reference(self) -> bool:
        """Whether the strategy reads the data of all tasks, and so is no competitor."""
        return self._run.strategy.reference or self._run.strategy.data_access == "all"

    @property
    def headline(self) -> MatrixName:
        """Which of the two matrices the setting reports: `class_incremental` or `task_aware`."""
        return self._run.headline.matrix

    @property
    def headline_classifier(self) -> str:
        """Name of the classifier whose accuracies are the headline ones."""
        return self._run.headline.classifier

    @property
    def accuracy(self) -> Floats:
        """The headline matrix [T, T]: row i after task i, column j accuracy on task j, NaN: not tested."""
        matrix = self.classifiers[self.headline_classifier][self.headline]
        assert matrix is not None  # checked when the record was read
        return matrix

    @property
    def class_incremental_accuracy(self) -> Floats | None:
        """Accuracies [T, T] when all seen outputs compete; None where the setting has no such matrix."""
        return self.classifiers[self.headline_classifier].class_incremental

    @property
    def task_aware_accuracy(self) -> Floats | None:
        """Accuracies [T, T] when only the task's own outputs compete; None where there is no such matrix."""
        return self.classifiers[self.headline_classifier].task_aware

    @property
    def untrained(self) -> Floats | None:
        """Accuracies [T] of the model before any training, under the headline matrix's rule."""
        return self.classifiers[self.headline_classifier].untrained[self.headline]

    @property
    def classifiers(self) -> dict[str, Matrices]:
        """The accuracies of each classifier of the strategy by its name, the headline one first."""
        named = {self.headline_classifier: self._run.accuracy} | {
            name: accuracies for name, accuracies in self._run.classifiers.items() if name != self.headline_classifier
        }
        return {name: self._matrices(accuracies) for name, accuracies in named.items()}

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations within tasks, of the headline classifier, in order; none without `eval_every`."""
        return list(self._run.evaluations)

    @property
    def metrics(self) -> dict[str, float | None]:
        """The metrics of the headline matrix by name, as recorded; None is undefined."""
        return dict(self._run.metrics)

    @property
    def task_classes(self) -> list[list[int]]:
        """Original classes of each task."""
        return [list(task.classes) for task in self._run.scenario.tasks]

    @property
    def class_order(self) -> list[int]:
        """Original classes in their order of appearance."""
        return list(self._run.class_order)

    @property
    def warnings(self) -> list[str]:
        """What a reader of the numbers should know about the run, one sentence each."""
        return [warning.text for warning in self._run.warnings]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in the whole run by purpose: `train`, `evaluation`, `memory`."""
        return _sums(task.seconds for task in self._run.tasks)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(task.steps for task in self._run.tasks)

    def steps_of(self, task: int) -> int:
        """Return the optimizer steps of one task, 0 where it is not done."""
        return sum(entry.steps for entry in self._run.tasks if entry.task == task)

    @property
    def steps_of_tasks(self) -> list[int]:
        """Optimizer steps of each task that was trained on, in order."""
        return [task.steps for task in self._run.tasks]

    @property
    def training(self) -> list[Epoch]:
        """The epochs of training in their order."""
        return list(self._run.training)

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """Test images of a head output (row) that the final model took for another (column); None: not known."""
        return None if self._run.confusion is None else np.array(self._run.confusion, dtype=np.int64)

    @property
    def task_outputs(self) -> list[list[int]]:
        """Head outputs of each task, in the order of its classes; empty where they were not recorded."""
        return [list(task.outputs) for task in self._run.scenario.tasks]

    @property
    def class_names(self) -> dict[int, str]:
        """Name of each original class; its number where none was recorded."""
        names = dict(enumerate(self._run.scenario.class_names))
        return {c: names.get(c, str(c)) for classes in self.task_classes for c in classes}

    @property
    def environment(self) -> dict[str, str]:
        """Where the run was made, by name: Python, platform, device, the packages' versions."""
        flat: dict[str, str] = {}
        for key, value in self._run.environment.items():
            flat |= {k: str(v) for k, v in value.items()} if isinstance(value, dict) else {key: str(value)}
        return flat

    @property
    def ledger(self) -> list[dict[str, int]]:
        """Bytes kept after each task, by what is kept."""
        return [dict(entry.bytes) for entry in self._run.ledger]

    @property
    def stored_bytes(self) -> dict[str, int]:
        """Most bytes kept after any task, by what is kept: `model`, `exemplars`, `teacher`, ..."""
        return _largest(entry.bytes for entry in self._run.ledger)

    @property
    def stored_items(self) -> dict[str, int]:
        """Most items kept after any task, by what is kept: `exemplars`, ..."""
        return _largest(entry.items for entry in self._run.ledger)

    def summary(
        self,
        joint: "Result | None" = None,
        *,
        classifier: str | None = None,
        matrix: MatrixName | None = None,
    ) -> dict[str, float | None]:
        """Compute the metrics from the matrices; `joint`, a run of that strategy, defines the intransigence.

        The headline classifier and matrix unless named. Raises ConfigError when the strategy has no such
        classifier, or for a joint run over other tasks.
        """
        name = classifier or self.headline_classifier
        if name not in self.classifiers:
            raise unknown(f"classifier of {self.strategy}", name, self.classifiers)
        which = matrix or self.headline
        accuracy = self.classifiers[name][which]
        if accuracy is None:
            return dict.fromkeys(metrics.METRICS)
        best: Floats | None = None
        if joint is not None:
            if joint.task_classes != self.task_classes:
                raise ConfigError(f"joint={joint!r}: a joint run over the same tasks as {self!r} is accepted")
            reference = joint.classifiers[joint.headline_classifier][which]
            best = None if reference is None else np.diagonal(reference).copy()
        computed = metrics.summarize(
            accuracy,
            baseline=self.classifiers[name].untrained[which],
            test_sizes=[task.n_test for task in self._run.scenario.tasks],
            joint=best,
            minima=self._minima(name, which, accuracy),
        )
        if name != self.headline_classifier or which != self.headline:
            return computed
        # Of a record without its evaluations the minima within tasks are known by their metrics alone.
        return {key: self._run.metrics.get(key) if v is None else v for key, v in computed.items()}

    def _minima(self, classifier: str, matrix: MatrixName, accuracy: Floats) -> Floats | None:
        if classifier != self.headline_classifier:
            return None  # evaluations within tasks are of the headline classifier
        return metrics.minima(accuracy, ((e.task, row) for e in self.evaluations if (row := e[matrix]) is not None))

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write accuracy.csv, training.csv and run.json, each in one step; raises OSError when it can't."""
        folder = Path(folder)
        write_atomically(folder / "accuracy.csv", self._accuracy_csv())
        write_atomically(folder / "training.csv", self._training_csv())
        # Last, so that the tables beside a finished run.json are complete.
        text = json.dumps(_finite(self.record), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / "run.json", text + "\n")

    def __repr__(self) -> str:
        average = self.summary()["average_accuracy"]
        number = "no" if average is None else f"{100 * average:.1f} %"
        return (
            f"Result({self.scenario}, {self.setting}, {self.strategy}, seed {self.seed}: "
            f"{number} average accuracy, {self.status})"
        )

    def accuracy_rows(self) -> list[tuple[str, str, int, int, float | None]]:
        """Return every number of the matrices as (matrix, classifier, after, task, accuracy)."""
        return [
            (name, classifier, after, task, None if np.isnan(value) else float(value))
            for classifier, matrices in self.classifiers.items()
            for name in MATRICES
            if (matrix := matrices[name]) is not None
            for (after, task), value in np.ndenumerate(matrix)
        ]

    def _accuracy_csv(self) -> str:
        return _csv(("matrix", "classifier", "after", "task", "accuracy"), self.accuracy_rows())

    def _training_csv(self) -> str:
        entries = self._run.training
        terms = list(dict.fromkeys(term for entry in entries for term in entry.losses))
        columns: tuple[str, ...] = ("task", "stage", "epoch", "steps", "lr", "seconds", "images")
        if any(entry.validation_loss is not None for entry in entries):
            columns = (*columns, "validation_loss")
        return _csv(
            (*columns, *(f"loss_{term}" for term in terms)),
            ((*(getattr(entry, c) for c in columns), *(entry.losses.get(t) for t in terms)) for entry in entries),
        )

    def _matrices(self, accuracies: _Accuracies) -> Matrices:
        n_tasks = len(self._run.scenario.tasks)
        untrained = accuracies.untrained
        return Matrices(
            _matrix(accuracies.class_incremental, n_tasks),
            _matrix(accuracies.task_aware, n_tasks),
            {
                "class_incremental": _vector(untrained.class_incremental),
                "task_aware": _vector(untrained.task_aware),
            },
        )


def load_results(paths: str | Path | Iterable[str | Path]) -> list[Result]:
    """Read the finished runs in and below the folders, in natural order of their paths.

    An unfinished or damaged run is left out with a UserWarning. Raises ConfigError for a path that is not there, and
    when no finished run is left.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    results = {}
    damage: list[ConfigError] = []
    for path in given:
        files = sorted(path.rglob("run.json"), key=_natural) if os.path.isdir(path) else [path]
        for file in files:
            try:
                result = Result.load(file)
            except ConfigError as error:
                if not os.path.exists(file):
                    raise
                damage.append(error)
                continue
            if result.status == "done":
                results[file.resolve()] = result
            else:
                warnings.warn(f"{file}: left out, the run is not finished ({result.status})", stacklevel=2)
    if not results:
        where = ", ".join(map(str, given)) or "no folder"
        raise (
            damage or [ConfigError(f"{where}: no finished run; a folder with a run.json in or below it is accepted")]
        )[0]
    for damaged in damage:
        warnings.warn(f"left out: {damaged}", stacklevel=2)
    return list(results.values())


def load(paths: str | Path | Iterable[str | Path]) -> "pd.DataFrame":
    """Return the finished runs in and below the folders as one tidy table, a row for each (run, after, task).

    Columns: scenario, setting, strategy, family, reference, seed, class_order, identity say which run; classifier (the
    headline one), after and task which cell; class_incremental, task_aware and accuracy (the setting's headline matrix
    again) hold accuracies in [0, 1], NaN where a task was not tested. Warns and raises as `load_results` does.
    """
    import pandas as pd

    parts = []
    for result in load_results(paths):
        n = len(result.task_classes)
        after, task = np.divmod(np.arange(n * n), n)
        found = result.classifiers[result.headline_classifier]
        run = {
            "scenario": result.scenario,
            "setting": result.setting,
            "strategy": result.strategy,
            "family": result.family,
            "reference": result.is_reference,
            "seed": result.seed,
            "class_order": " ".join(map(str, result.class_order)),
            "identity": result.identity,
            "classifier": result.headline_classifier,
        }
        cells = {name: np.nan if (matrix := found[name]) is None else matrix.ravel() for name in MATRICES}
        columns = run | {"after": after, "task": task} | cells | {"accuracy": result.accuracy.ravel()}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", str(path))]


def _vector(values: list[float | None] | None) -> Floats | None:
    return None if values is None else np.array(values, dtype=np.float64)


def _matrix(rows: Rows | None, n_tasks: int) -> Floats | None:
    if rows is None:
        return None
    matrix = np.full((n_tasks, n_tasks), np.nan)
    if rows:
        matrix[: len(rows)] = np.array(rows, dtype=np.float64)
    return matrix


def _sums(entries: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for entry in entries:
        for key, value in entry.items():
            total[key] = total.get(key, 0.0) + (value or 0.0)
    return total


def _largest(entries: Iterable[Mapping[str, int]]) -> dict[str, int]:
    largest: dict[str, int] = {}
    for entry in entries:
        for key, value in entry.items():
            largest[key] = max(largest.get(key, 0), value)
    return largest


def _finite(value: Any) -> Any:
    """Return the value with None for every number that JSON can't hold (NaN, infinity)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
