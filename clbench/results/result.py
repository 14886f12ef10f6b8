"""Result: one run as `run.json` holds it, the bundle that every table and plot is rebuilt from. No torch."""

import csv
import functools
import io
import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.groups import MemoryConfig, ModelConfig, TrainingConfig
from clbench.results import metrics
from clbench.results.record import (
    MATRICES,
    SCHEMA_VERSION,
    AccuracyRecord,
    MatrixName,
    Rows,
    RunRecord,
    idle_share,
    on_the_way,
)
from clbench.support.files import expanded, write_atomically

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
# Tasks of a run whose run.json has a line for each number.
MOST_LINES = 100
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


# Attributes of a Result of 0.1.0, by where they are in its record.
RECORDED = {
    **{name: name for name in ("class_order", "created", "evaluations", "identity", "training")},
    "strategy_name": "strategy.name",
    "family": "strategy.family",
    "features": "strategy.features",
    "version": "clbench",
    "headline": "headline.matrix",
    "headline_classifier": "headline.classifier",
}


@dataclass(frozen=True)
class Matrices:
    """The accuracies of one classifier: float arrays [T, T] (NaN: not evaluated), None where undefined."""

    class_incremental: Floats | None
    task_aware: Floats | None
    untrained: Mapping[MatrixName, Floats | None]

    def __getitem__(self, name: MatrixName) -> Floats | None:
        return self.class_incremental if name == "class_incremental" else self.task_aware


class Result:
    """One run: its configuration, accuracies, costs and metrics; `recorded` is its record, of which all else is made.

    `folder` is the run's folder, None for a record that was read from none.

    A mapping, as run.json holds one, is checked here; raises ConfigError when it is none.
    """

    def __init__(self, record: Mapping[str, Any] | RunRecord) -> None:
        if not isinstance(record, Mapping | RunRecord):
            raise ConfigError(
                f"Result({shown(record)}): a mapping as run.json holds it is accepted; Result.load(path) reads one"
            )
        self.folder: Path | None = None
        try:
            self.recorded = record if isinstance(record, RunRecord) else RunRecord.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "run"
            wrong = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"not a run of clbench: {where}: {wrong}") from None

    if not TYPE_CHECKING:  # a type checker would take every attribute for one

        def __getattr__(self, name: str) -> Any:
            """Say where an attribute is that 0.1.0 had here."""
            if name in RECORDED:
                raise AttributeError(f"result.{name} is result.recorded.{RECORDED[name]} since 0.2")
            raise AttributeError(f"a Result has no attribute {name!r}")

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """The content of run.json as plain values."""
        return self.recorded.model_dump(mode="json", exclude_unset=True)

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> "Result":
        """Read a run folder or a run.json; raises ConfigError, naming the file, for whatever is not one."""
        file = expanded(path)
        # os.path takes any text; Path raises for one that is too long for a name.
        if os.path.isdir(file):
            file = file / "run.json"
        if not os.path.isfile(file):
            raise ConfigError(f"{file}: no such file; the folder of a run or its run.json is accepted")
        try:
            text = file.read_text(encoding="utf-8-sig")
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
            result = cls(record)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
        result.folder = file.parent
        return result

    @property
    def status(self) -> str:
        """`running`, `done` or `failed`."""
        return self.recorded.status

    @property
    def strategy(self) -> str:
        """The strategy's label in tables, such as `er[memory_size=200]`."""
        return self.recorded.strategy.label or self.recorded.strategy.name

    @property
    def scenario(self) -> str:
        """Name of the scenario."""
        return self.recorded.scenario.name

    @property
    def setting(self) -> str:
        """`class`, `task` or `domain`."""
        return self.recorded.scenario.setting

    @property
    def seed(self) -> int:
        """Seed of every random stream of the run."""
        return self.recorded.config.seed

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the run's RunConfig."""
        return self.recorded.config.model_dump()

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """The options of the strategy, and the fields of network, training and memory, by name."""
        groups = (ModelConfig, TrainingConfig, MemoryConfig)
        names = [field.alias or name for group in groups for name, field in group.model_fields.items()]
        config = self.config
        return {name: config[name] for name in names if name in config} | self.recorded.config.strategy_options

    @property
    def is_reference(self) -> bool:
        """Whether the strategy is an upper reference, which reads the data of all tasks."""
        return self.recorded.strategy.reference or self.recorded.strategy.data_access == "all"

    @property
    def accuracy(self) -> Floats:
        """The headline matrix [T, T]: row i after task i, column j accuracy on task j, NaN: not tested."""
        matrix = self.classifiers[self.recorded.headline.classifier][self.recorded.headline.matrix]
        if matrix is None:
            raise ConfigError(
                f"run.json has no matrix {self.recorded.headline.matrix!r}, which it names as the headline"
            )
        return matrix

    @property
    def class_incremental_accuracy(self) -> Floats | None:
        """Accuracies [T, T] when all seen outputs compete; None where the setting has no such matrix."""
        return self.classifiers[self.recorded.headline.classifier].class_incremental

    @property
    def task_aware_accuracy(self) -> Floats | None:
        """Accuracies [T, T] when only the task's own outputs compete; None where there is no such matrix."""
        return self.classifiers[self.recorded.headline.classifier].task_aware

    @property
    def untrained(self) -> Floats | None:
        """Accuracies [T] of the model before any training, under the headline matrix's rule."""
        return self.classifiers[self.recorded.headline.classifier].untrained[self.recorded.headline.matrix]

    @property
    def classifiers(self) -> dict[str, Matrices]:
        """The accuracies of each classifier of the strategy by its name, the headline one first."""
        named = {self.recorded.headline.classifier: self.recorded.accuracy} | {
            name: accuracies
            for name, accuracies in self.recorded.classifiers.items()
            if name != self.recorded.headline.classifier
        }
        return {name: self._matrices(accuracies) for name, accuracies in named.items()}

    @property
    def metrics(self) -> dict[str, float | None]:
        """The metrics of the headline matrix by name, as recorded; None is undefined.

        Metrics of the user's own are computed anew, since their functions may have changed since the run.
        """
        own = [name for name, known in metrics.METRICS.items() if not known.function.__module__.startswith("clbench.")]
        now = self.summary() if own and self.recorded.metrics else {}
        return self.recorded.metrics | {name: now[name] for name in own if name in now}

    @property
    def task_classes(self) -> list[list[int]]:
        """Original classes of each task."""
        return [list(task.classes) for task in self.recorded.scenario.tasks]

    @property
    def warnings(self) -> list[str]:
        """The warnings to a reader of the numbers, one sentence each."""
        return [warning.text for warning in self.recorded.warnings]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in the whole run by purpose: `train`, `evaluation`, `memory`."""
        return _sums(task.seconds for task in self.recorded.tasks)

    @property
    def flops(self) -> dict[str, int | None]:
        """Floating-point operations of `training`, of the whole run, and `inference_per_image`; None: not counted."""
        counted = [task.flops for task in self.recorded.tasks if task.flops]
        if not counted or len(counted) < len(self.recorded.tasks):
            return {"training": None, "inference_per_image": None}
        training = sum(counts.get("train", 0) + counts.get("memory", 0) for counts in counted)
        return {"training": training, "inference_per_image": counted[-1].get("per_image", 0)}

    @property
    def unused_budget(self) -> int | None:
        """The rest of the run's budget, FLOPs or bytes, below 0 where more was used; None where there is none."""
        kind, _, amount = str(self.config.get("budget") or "").partition("=")
        kept = max((sum(entry.bytes.values()) for entry in self.recorded.ledger), default=None)
        used = {"flops": self.flops["training"], "bytes": kept}.get(kind)
        return None if used is None else int(amount) - used

    @property
    def idle_share(self) -> float:
        """The share of the training time in which images on disk were waited for; 0 for those in memory."""
        return idle_share(self.recorded.training)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(task.steps for task in self.recorded.tasks)

    def steps_of(self, task: int) -> int:
        """Return the optimizer steps of one task, 0 where it is not done."""
        return sum(entry.steps for entry in self.recorded.tasks if entry.task == task)

    @property
    def steps_of_tasks(self) -> list[int]:
        """Optimizer steps of each task that was trained on, in order."""
        return [task.steps for task in self.recorded.tasks]

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """Test images of a head output (row) that the final model took for another (column); None: not known."""
        return None if self.recorded.confusion is None else np.array(self.recorded.confusion, dtype=np.int64)

    @property
    def task_outputs(self) -> list[list[int]]:
        """Head outputs of each task, in the order of its classes; empty where they were not recorded."""
        return [list(task.outputs) for task in self.recorded.scenario.tasks]

    @property
    def class_names(self) -> dict[int, str]:
        """Name of each original class; its number where none was recorded."""
        names = dict(enumerate(self.recorded.scenario.class_names))
        return {c: names.get(c, str(c)) for classes in self.task_classes for c in classes}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the run, by name: Python, platform, device, the packages' versions."""
        flat: dict[str, str] = {}
        for key, value in self.recorded.environment.items():
            flat |= {k: str(v) for k, v in value.items()} if isinstance(value, dict) else {key: str(value)}
        return flat

    @property
    def ledger(self) -> list[dict[str, int]]:
        """Bytes kept after each task, by what is kept."""
        return [dict(entry.bytes) for entry in self.recorded.ledger]

    @property
    def stored_bytes(self) -> dict[str, int]:
        """Most bytes kept after any task, by what is kept: `model`, `exemplars`, `teacher`, ..."""
        return _largest(entry.bytes for entry in self.recorded.ledger)

    @property
    def stored_items(self) -> dict[str, int]:
        """Most items kept after any task, by what is kept: `exemplars`, ..."""
        return _largest(entry.items for entry in self.recorded.ledger)

    @checked
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
        name = classifier or self.recorded.headline.classifier
        if name not in self.classifiers:
            raise unknown(f"classifier of {self.strategy}", name, self.classifiers)
        which = matrix or self.recorded.headline.matrix
        # Evaluations before a sample is learnt are of the headline classifier, by the headline matrix's rule.
        is_headline = (name, which) == (self.recorded.headline.classifier, self.recorded.headline.matrix)
        accuracy = self.classifiers[name][which]
        if accuracy is None:
            return dict.fromkeys(metrics.METRICS)
        best: Floats | None = None
        if joint is not None:
            if joint.task_classes != self.task_classes:
                raise ConfigError(f"joint={joint!r}: a joint run over the same tasks as {self!r} is accepted")
            reference = joint.classifiers[joint.recorded.headline.classifier][which]
            best = None if reference is None else np.diagonal(reference).copy()
        computed = metrics.summarize(
            accuracy,
            baseline=self.classifiers[name].untrained[which],
            test_sizes=[task.n_test for task in self.recorded.scenario.tasks],
            joint=best,
            minima=self._minima(name, which, accuracy),
            **(on_the_way(self.recorded) if is_headline else {}),
        )
        if not is_headline:
            return computed
        # A record without its evaluations knows the minima within tasks by their metrics alone.
        return {key: self.recorded.metrics.get(key) if v is None else v for key, v in computed.items()}

    def _minima(self, classifier: str, matrix: MatrixName, accuracy: Floats) -> Floats | None:
        if classifier != self.recorded.headline.classifier:
            return None  # evaluations within tasks are of the headline classifier
        return metrics.minima(
            accuracy, ((e.task, row) for e in self.recorded.evaluations if (row := e[matrix]) is not None)
        )

    @checked
    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write accuracy.csv, training.csv and run.json, each in one step; raises OSError when it can't."""
        folder = expanded(folder)
        write_atomically(folder / "accuracy.csv", self._accuracy_csv())
        write_atomically(folder / "training.csv", self._training_csv())
        # Last, so that the tables beside a finished run.json are complete.
        # Lines for people, but for a matrix that no person reads, and that would be written for seconds.
        indent = 1 if len(self.recorded.scenario.tasks) <= MOST_LINES else None
        try:
            text = json.dumps(self.record, indent=indent, ensure_ascii=False, allow_nan=False)
        except ValueError:  # an option that is infinite, say
            text = json.dumps(_finite(self.record), indent=indent, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / "run.json", text + "\n")

    def __repr__(self) -> str:
        average = self.summary()["average_accuracy"]
        number = "no" if average is None else f"{100 * average:.1f} %"
        return (
            f"Result({self.scenario}, {self.setting}, {self.strategy}, seed {self.seed}: "
            f"{number} average accuracy, {self.status})"
        )

    def accuracy_rows(self) -> list[tuple[str, str, int, int, float | None]]:
        """Return every number of the matrices as (matrix, classifier, after, task, accuracy).

        With evaluate=current they are those of the diagonal.
        """
        alone = self.config.get("evaluate") == "current"
        return [
            (name, classifier, after, task, None if np.isnan(value) else float(value))
            for classifier, matrices in self.classifiers.items()
            for name in MATRICES
            if (matrix := matrices[name]) is not None
            for (after, task), value in (
                (((i, i), v) for i, v in enumerate(np.diag(matrix))) if alone else np.ndenumerate(matrix)
            )
        ]

    def _accuracy_csv(self) -> str:
        return _csv(("matrix", "classifier", "after", "task", "accuracy"), self.accuracy_rows())

    def _training_csv(self) -> str:
        entries = self.recorded.training
        terms = list(dict.fromkeys(term for entry in entries for term in entry.losses))
        # The column that 0.1.0 called lr holds the rate of the last step, and stays for its readers.
        columns = {name: name for name in ("task", "stage", "epoch", "steps", "lr", "lr_first")}
        columns |= {"lr_last": "lr", "seconds": "seconds", "images": "images"}
        if any(entry.validation_loss is not None for entry in entries):
            columns["validation_loss"] = "validation_loss"
        return _csv(
            (*columns, *(f"loss_{term}" for term in terms)),
            (
                (*(getattr(entry, name) for name in columns.values()), *(entry.losses.get(t) for t in terms))
                for entry in entries
            ),
        )

    def _matrices(self, accuracies: AccuracyRecord) -> Matrices:
        n_tasks = len(self.recorded.scenario.tasks)
        untrained = accuracies.untrained
        return Matrices(
            matrix_of(accuracies.class_incremental, n_tasks),
            matrix_of(accuracies.task_aware, n_tasks),
            {
                "class_incremental": _vector(untrained.class_incremental),
                "task_aware": _vector(untrained.task_aware),
            },
        )


@checked
def load_results(paths: Paths) -> list[Result]:
    """Read the finished runs in and below the folders, in natural order of their paths.

    An unfinished or damaged run is left out with a UserWarning. Raises ConfigError for a path that is not there, and
    when no finished run is left.
    """
    done = []
    for file, result in _read(paths):
        if result.status == "done":
            done.append(result)
        else:
            warnings.warn(f"{file}: left out, the run is not finished ({result.status})", stacklevel=2)
    return done


def load_all(paths: Paths) -> list[Result]:
    """Read the runs in and below the folders as load_results() does, and those that are unfinished or failed too."""
    return [result for _, result in _read(paths)]


def _read(paths: Paths) -> list[tuple[Path, Result]]:
    """Return all runs with their files; raises ConfigError where none of them is finished."""
    given = [expanded(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    results: dict[Path, tuple[Path, Result]] = {}
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
            results[file.resolve()] = file, result
    if not any(result.status == "done" for _, result in results.values()):
        where = ", ".join(map(str, given)) or "no folder"
        accepted = "a folder with a run.json in or below it is accepted"
        if results:
            counted = Counter(result.status for _, result in results.values())
            states = ", ".join(f"{n} {status}" for status, n in counted.items())
            accepted = f"its runs are not done ({states}), and one that is done is accepted"
        raise (damage or [ConfigError(f"{where}: no finished run; {accepted}")])[0]
    for damaged in damage:
        warnings.warn(f"left out: {damaged}", stacklevel=3)
    return list(results.values())


@checked
def load(paths: Paths) -> "pd.DataFrame":
    """Return the finished runs in and below the folders as one tidy table, a row for each (run, after, task).

    Columns: scenario, setting, strategy, family, reference, seed, class_order, identity say which run; classifier (the
    headline one), after and task which cell; class_incremental, task_aware and accuracy (the setting's headline matrix
    again) hold accuracies in [0, 1], NaN where a task was not tested. Behind them come the metrics, seconds and
    hyper-parameters of the run, the same in each of its rows, as `run_table` has them. Warns and raises as
    `load_results` does.
    """
    import pandas as pd

    results = load_results(paths)
    parts = []
    for result in results:
        n = len(result.task_classes)
        after, task = np.divmod(np.arange(n * n), n)
        name = result.recorded.headline.classifier
        found = result.classifiers[name]
        cells = {name: np.nan if (matrix := found[name]) is None else matrix.ravel() for name in MATRICES}
        values = (name, after, task, *cells.values(), result.accuracy.ravel())
        parts.append(pd.DataFrame(dict(zip(_CELLS, values, strict=True))))
    runs = run_table(results).drop(columns="status")
    repeated = runs.loc[np.repeat(np.arange(len(parts)), [len(part) for part in parts])].reset_index(drop=True)
    frame = pd.concat([repeated, pd.concat(parts, ignore_index=True)], axis=1)
    first = [name for name in _WHICH if name != "status"]
    return frame[[*first, *parts[0].columns, *(name for name in runs.columns if name not in first)]]


# The columns of `load` that say which cell of the matrix it is, and what stands there.
_CELLS = ("classifier", "after", "task", *MATRICES, "accuracy")
# The columns that say which run it is.
_WHICH = ("scenario", "setting", "strategy", "family", "reference", "seed", "class_order", "identity", "status")


def run_table(results: Iterable[Result]) -> "pd.DataFrame":
    """Return a row for each run, for pandas: what it is, its metrics, its seconds and its hyper-parameters.

    Columns: scenario, setting, strategy, family, reference, seed, class_order, identity, status; each metric by its
    name, NaN where it is undefined; seconds_train, seconds_evaluation, seconds_memory; each hyper-parameter by its
    name, with `option_` before the name of one that is a column already, here or in `load`. A list stands as text:
    5,10.
    """
    import pandas as pd

    rows = []
    for result in results:
        recorded = result.recorded
        which = (
            *(result.scenario, result.setting, result.strategy, recorded.strategy.family, result.is_reference),
            *(result.seed, " ".join(map(str, recorded.class_order)), recorded.identity, result.status),
        )
        row: dict[str, Any] = dict(zip(_WHICH, which, strict=True))
        row |= {name: math.nan if value is None else value for name, value in result.metrics.items()}
        row |= {f"seconds_{name}": value for name, value in result.seconds.items()}
        taken = {*row, *_CELLS}
        for name, value in result.hyper_parameters.items():
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            row[f"option_{name}" if name in taken else name] = text
        rows.append(row)
    return pd.DataFrame(rows)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", str(path))]


def _vector(values: list[float | None] | None) -> Floats | None:
    return None if values is None else np.array(values, dtype=np.float64)


def matrix_of(rows: Rows | None, n_tasks: int) -> Floats | None:
    """Return the rows of a record as float64 [T, T], NaN where nothing was tested; None for no rows."""
    if rows is None:
        return None
    matrix = np.full((n_tasks, n_tasks), np.nan)
    for after, row in enumerate(rows):
        matrix[after, slice(None) if len(row) == n_tasks else slice(after, after + 1)] = np.array(row, dtype=np.float64)
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
