# ruff: noqa: N803 - R is the symbol that the papers use
"""Continual-learning metrics as pure functions of the accuracy matrix R.

R is float [T, T]: R[i, j] is the test accuracy, in [0, 1], on task j after learning task i (both 0-based).
NaN (or None) means that it was not evaluated, and every mean skips it. A metric that is not defined is
None: transfer and forgetting of a single task, say. Of a run that is still under way (the last rows are
NaN) everything is computed up to its last complete row, the last one with a value for every task learned so
far.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction, isfunction, isgeneratorfunction, signature
from statistics import fmean
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from clbench.config.arguments import checked
from clbench.config.classes import load_class
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.plain import plain

Floats = npt.NDArray[np.float64]

Direction = Literal["higher", "lower"]
Unit = Literal["%", "points"]


@dataclass(frozen=True)
class Metric:
    """A metric of every run: its formula, and what tables and reports say about it.

    sentence: its definition for a reader. better: the direction in which a value is better. unit: percent for a share,
    percentage points for a difference of shares. inputs: names of the arguments, as `summarize` has them.
    """

    function: Callable[..., float | None]
    sentence: str
    better: Direction
    unit: Unit
    inputs: tuple[str, ...]

    @property
    def is_own(self) -> bool:
        """Whether it is no metric of clbench, but one of the user's own."""
        return self.function.__module__ != __name__


METRICS: dict[str, Metric] = {}
"""The metrics of `summarize` by name, in its order. `metric` adds one; tables and reports take them from here."""


def load_metric(name: str) -> None:
    """Register a metric of the user's own, path/to/file.py:NAME or an entry point of `clbench.metrics`.

    Raises ConfigError for what `metric` has not registered.
    """
    loaded = load_class("metric", name)
    if not any(known.function is loaded for known in METRICS.values()):
        raise ConfigError(
            f"metric {name}: {shown(loaded)}; a function under @clbench.metrics.metric('a sentence') is accepted"
        )


Formula = TypeVar("Formula", bound=Callable[..., float | None])


def metric(sentence: str, *, better: Direction = "higher", unit: Unit = "%") -> Callable[[Formula], Formula]:
    """Add the decorated function to `METRICS` under its name.

    Its parameters are among those of `summarize`, and it gets copies of them; raises ConfigError for another one, and
    for the name of one of clbench's own metrics.
    """

    if not isinstance(sentence, str) or not sentence.strip():
        raise ConfigError(f"metric({shown(sentence)}) given; @metric('A sentence that defines it.') is accepted")
    for what, given, accepted in (("better", better, get_args(Direction)), ("unit", unit, get_args(Unit))):
        if not isinstance(given, str) or given not in accepted:
            raise unknown(what, shown(given), accepted)

    def register(function: Formula) -> Formula:
        if not isfunction(function) or iscoroutinefunction(function) or isgeneratorfunction(function):
            raise ConfigError(f"metric: {shown(function)} given; a function of R that returns a number is accepted")
        name, parameters = function.__name__, signature(function).parameters
        accepted = list(signature(summarize).parameters)
        for parameter in parameters.values():
            if parameter.name not in accepted:
                raise unknown(f"parameter of the metric {name}", parameter.name, accepted)
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise ConfigError(f"the metric {name} has the parameter {parameter}; {parameter.name} is accepted")
        if not name.isidentifier():
            raise ConfigError(f"metric: a function named {shown(name)} given; a name such as 'forgetting' is accepted")
        if name in METRICS and not METRICS[name].is_own and function.__module__ != __name__:
            raise ConfigError(f"metric: {name} is a metric of clbench; another name is accepted")
        METRICS[name] = Metric(function, sentence, better, unit, tuple(parameters))
        return function

    return register


def summarize(
    R: npt.ArrayLike,
    baseline: npt.ArrayLike | None = None,
    test_sizes: npt.ArrayLike | None = None,
    joint: npt.ArrayLike | None = None,
    minima: npt.ArrayLike | None = None,
    online: npt.ArrayLike | None = None,
    near: npt.ArrayLike | None = None,
    anytime: npt.ArrayLike | None = None,
) -> dict[str, float | None]:
    """Return every metric of `METRICS` by its name; None where it is undefined or its input is not given.

    `baseline` [T] holds the untrained model's accuracies, `test_sizes` [T] the number of test samples of each
    task, `joint` [T] the accuracy on task k of a model trained jointly on tasks 0..k, `minima` [T-1] the
    lowest accuracy on each task at any iteration since it was learned, `online` [2] how many samples were right just
    before they were learned, and how many were tested so, `near` [2] the same some steps before, `anytime` [N] the
    accuracies on the classes seen so far. Raises ConfigError for a matrix that
    is not square, a value outside [0, 1] or a length that does not fit, and for a metric that is infinite or fails.
    """
    completed(R)  # refuse a bad matrix before anything that goes with it
    matrix = _numbers("the accuracy matrix", R)
    cut = None if minima is None else _minima(R, minima)
    given = {"R": R, "baseline": baseline, "test_sizes": test_sizes, "joint": joint, "minima": cut, "online": online}
    given |= {"near": near, "anytime": anytime}
    return {
        # Our own metrics take R as an array at once, since a list of many tasks takes long to read.
        name: None
        if any(given[key] is None for key in found.inputs)
        else _value(name, found, given if found.is_own else given | {"R": matrix})
        for name, found in METRICS.items()
    }


def _value(name: str, metric: Metric, given: Mapping[str, Any]) -> float | None:
    inputs = {key: given[key] for key in metric.inputs}
    if not metric.is_own:
        return metric.function(**inputs)
    try:
        # A metric may edit its inputs; these copies are neither the run's record nor another metric's.
        value = plain(metric.function(**copy.deepcopy(inputs)))
    except (Exception, SystemExit, GeneratorExit) as error:  # whatever its author raises
        raise ConfigError(f"the metric {name} raised {type(error).__name__}: {error}".removesuffix(": ")) from error
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)):
        return value
    raise ConfigError(f"the metric {name} returned {shown(value)}; a finite number or None is accepted")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def completed(R: npt.ArrayLike) -> Floats:
    """Return R [T, T] as float64, cut to [k, k] where row k-1 is the last without NaN up to its diagonal.

    Where each task was tested in its own row alone (evaluate=current), no row is complete. Raises ConfigError where R
    is not a square matrix of values in [0, 1], NaN or None.
    """
    matrix = _numbers("the accuracy matrix", R)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ConfigError(f"the accuracy matrix has shape {matrix.shape}; accepted: [T, T] with at least one task")
    _check_range("the accuracy matrix", matrix)
    tested = np.tril(~np.isnan(matrix))
    complete = np.flatnonzero(tested.sum(1) == np.arange(1, len(matrix) + 1))
    steps = int(complete[-1]) + 1 if len(complete) else 0
    if steps == 1 and tested.sum() > 1 and tested.sum() == np.diag(tested).sum():
        steps = 0
    return matrix[:steps, :steps]


def average_accuracies(R: npt.ArrayLike, test_sizes: npt.ArrayLike | None = None) -> list[float | None]:
    """Return A_k for each completed step k: the mean accuracy over the tasks 0..k after learning task k.

    Tasks weigh the same (GEM, arXiv:1706.08840, eq. 2), or by `test_sizes` [T] where given: the share of all
    test samples of the tasks so far that are classified correctly (iCaRL, arXiv:1611.07725, sec. 4).
    """
    matrix = completed(R)
    sizes = None if test_sizes is None else _sizes(test_sizes, np.shape(R)[0])
    return [_mean(row[: k + 1], None if sizes is None else sizes[: k + 1]) for k, row in enumerate(matrix)]


@metric("Mean accuracy over all tasks after the last one; every task weighs the same.")
def average_accuracy(R: npt.ArrayLike) -> float | None:
    """Return the mean accuracy over the tasks after the last completed step. GEM, arXiv:1706.08840, eq. 2."""
    return _last(average_accuracies(R))


@metric("Share of all test samples classified correctly after the last task; every sample weighs the same.")
def sample_average_accuracy(R: npt.ArrayLike, test_sizes: npt.ArrayLike) -> float | None:
    """Return the share of test samples classified correctly after the last completed step."""
    return _last(average_accuracies(R, test_sizes))


@metric("Average accuracy on the tasks learned so far; mean over all steps, the first included.")
def average_incremental_accuracy(R: npt.ArrayLike) -> float | None:
    """Return the mean of A_k over all steps, the first included. iCaRL, arXiv:1611.07725, sec. 4."""
    return _mean(average_accuracies(R))


@metric("Average accuracy on the tasks learned so far; mean over the steps from the second on.")
def average_incremental_accuracy_without_first(R: npt.ArrayLike) -> float | None:
    """Return the mean of A_k over the steps from the second on. WA, arXiv:1911.07053, table 4."""
    return _mean(average_accuracies(R)[1:])


def forgetting_by_task(R: npt.ArrayLike) -> list[float | None]:
    """Return for each task j but the last the largest R[l, j], l in j..T-2, minus R[T-1, j].

    In [-1, 1]: not clamped, so negative where a task has improved. Chaudhry et al. 2018, arXiv:1801.10112,
    eq. 3.
    """
    matrix = completed(R)
    last = len(matrix) - 1
    return [_defined(np.fmax.reduce(matrix[j:last, j]) - matrix[last, j]) for j in range(last)]


@metric(
    "Highest accuracy on a task from when it was learned to the step before the last, minus its final "
    "accuracy; mean over all tasks but the last; not clamped, so negative when old tasks improve.",
    better="lower",
    unit="points",
)
def forgetting(R: npt.ArrayLike) -> float | None:
    """Return the mean of `forgetting_by_task`. Chaudhry et al. 2018, arXiv:1801.10112, eq. 3."""
    return _mean(forgetting_by_task(R))


def clipped_forgetting(R: npt.ArrayLike) -> float | None:
    """Return forgetting with the final row in the maximum: no task counts below 0 (mammoth, PyCIL)."""
    return _mean(value if value is None else max(value, 0.0) for value in forgetting_by_task(R))


def first_minus_last_forgetting(R: npt.ArrayLike) -> float | None:
    """Return the mean of R[j, j] - R[T-1, j] over all tasks but the last, as Avalanche defines forgetting."""
    matrix = completed(R)
    return _mean((np.diag(matrix) - matrix[-1:])[:, :-1].ravel())


@metric(
    "Final accuracy on a task minus its accuracy when just learned; mean over all tasks but the last; "
    "negative when the strategy forgets.",
    unit="points",
)
def backward_transfer(R: npt.ArrayLike) -> float | None:
    """Return the mean of R[T-1, j] - R[j, j] over all tasks but the last. GEM, arXiv:1706.08840, eq. 3."""
    matrix = completed(R)
    return _mean((matrix[-1:] - np.diag(matrix))[:, :-1].ravel())


def gem_code_backward_transfer(R: npt.ArrayLike) -> float | None:
    """Return backward transfer as GEM's code has it: the mean over all T tasks, the last term being 0."""
    matrix = completed(R)
    return _mean((matrix[-1:] - np.diag(matrix)).ravel()) if len(matrix) > 1 else None


@metric(
    "Accuracy on a task just before it is learned minus that of the untrained model; mean over all tasks but "
    "the first.",
    unit="points",
)
def forward_transfer(R: npt.ArrayLike, baseline: npt.ArrayLike) -> float | None:
    """Return the mean of R[i-1, i] - baseline[i] over all tasks but the first. GEM, arXiv:1706.08840, eq. 4.

    `baseline` [T] holds the untrained model's accuracies, NaN where the task had no active outputs.
    """
    return _mean(_forward_terms(R, baseline))


def gem_code_forward_transfer(R: npt.ArrayLike, baseline: npt.ArrayLike) -> float | None:
    """Return forward transfer as GEM's code has it: the mean over all T tasks, the first term being 0."""
    terms = _forward_terms(R, baseline)
    return _mean([0.0, *terms]) if _mean(terms) is not None else None


def forward_transfer_without_baseline(R: npt.ArrayLike) -> float | None:
    """Return the mean of R[i-1, i] over all tasks but the first: the accuracy on the task that comes next."""
    return _mean(np.diag(completed(R), k=1))


def forward_transfer_from_independent(R: npt.ArrayLike, independent: npt.ArrayLike) -> float | None:
    """Return the mean of R[i, i] - independent[i] over all tasks but the first.

    clarena calls this forward transfer. `independent` [T] holds the accuracy on each task of the same model
    trained on that task alone.
    """
    diagonal = np.diag(completed(R))
    return _mean((diagonal - _accuracies("independent", independent, np.shape(R)[0])[: len(diagonal)])[1:])


def diaz_rodriguez_accuracy(R: npt.ArrayLike) -> float | None:
    """Return the mean of R[i, j] over all i >= j. Diaz-Rodriguez et al. 2018, arXiv:1810.13166."""
    matrix = completed(R)
    return _mean(matrix[np.tril_indices(len(matrix))])


def diaz_rodriguez_backward_transfer(R: npt.ArrayLike) -> float | None:
    """Return the mean of R[i, j] - R[j, j] over all i > j. Diaz-Rodriguez et al. 2018, arXiv:1810.13166."""
    matrix = completed(R)
    return _mean((matrix - np.diag(matrix))[np.tril_indices(len(matrix), k=-1)])


def remembering(R: npt.ArrayLike) -> float | None:
    """Return REM = 1 - |min(BWT, 0)|, BWT as of `diaz_rodriguez_backward_transfer`. arXiv:1810.13166."""
    transfer = diaz_rodriguez_backward_transfer(R)
    return None if transfer is None else 1.0 + min(transfer, 0.0)


def positive_backward_transfer(R: npt.ArrayLike) -> float | None:
    """Return BWT+ = max(BWT, 0), BWT as of `diaz_rodriguez_backward_transfer`. arXiv:1810.13166."""
    transfer = diaz_rodriguez_backward_transfer(R)
    return None if transfer is None else max(transfer, 0.0)


def diaz_rodriguez_forward_transfer(R: npt.ArrayLike) -> float | None:
    """Return the mean of R[i, j] over all i < j. Diaz-Rodriguez et al. 2018, arXiv:1810.13166."""
    matrix = completed(R)
    return _mean(matrix[np.triu_indices(len(matrix), k=1)])


@metric("Accuracy on a task when just learned; mean over all tasks.")
def learning_accuracy(R: npt.ArrayLike) -> float | None:
    """Return the mean of R[i, i] over all tasks (MER, arXiv:1810.11910); it needs no other entry of R."""
    completed(R)
    return _mean(np.diag(_numbers("the accuracy matrix", R)))


@metric("Share of all samples of the run that were classified correctly just before they were learned.")
def average_online_accuracy(online: npt.ArrayLike) -> float | None:
    """Return correct / tested of `online` [2], the samples that were right just before they were learned, and all.

    None where none was tested. It is the average online accuracy of streams that are seen once (Cai et al. 2021,
    arXiv:2108.09020), and the online accuracy over all tasks of Dohare et al. 2024,
    doi:10.1038/s41586-024-07711-7.
    """
    return _share("online", online)


@metric("Share of all samples of the run that the model of some steps before classified correctly.")
def near_future_accuracy(near: npt.ArrayLike) -> float | None:
    """Return correct / tested of `near` [2], the samples that were right some steps before they came, and all.

    None where none was tested. Hammoud et al. 2023, arXiv:2305.09275, who call it near-future accuracy: a sample that
    comes later is no copy of the ones just learned.
    """
    return _share("near", near)


@metric("Accuracy on the classes seen so far, mean over the stream at equal numbers of samples.")
def anytime_accuracy(anytime: npt.ArrayLike) -> float | None:
    """Return the mean of accuracies [N] on the classes seen so far, the area under the curve of accuracy (A_auc).

    Koh et al. 2022, arXiv:2110.10031, section 3.3. None of an empty list.
    """
    values = _numbers("anytime", anytime)
    _check_range("anytime", values)
    return _mean(values.ravel())


def intransigence_by_task(R: npt.ArrayLike, joint: npt.ArrayLike) -> list[float | None]:
    """Return joint[k] - R[k, k] for each task k; in [-1, 1], lower is better. RWalk, arXiv:1801.10112, eq. 4.

    `joint` [T] holds the accuracy on task k of a model trained jointly on the tasks 0..k.
    """
    diagonal = np.diag(completed(R))
    return [_defined(v) for v in _accuracies("joint", joint, np.shape(R)[0])[: len(diagonal)] - diagonal]


@metric(
    "Accuracy of the joint reference on the last task minus that of the strategy when it has just learned it;"
    " lower is better.",
    better="lower",
    unit="points",
)
def intransigence(R: npt.ArrayLike, joint: npt.ArrayLike) -> float | None:
    """Return the intransigence of the last task, as published. RWalk, arXiv:1801.10112, eq. 4."""
    return _last(intransigence_by_task(R, joint))


@checked
def minima(R: npt.ArrayLike, evaluations: Iterable[tuple[int, Sequence[float | None]]]) -> Floats | None:
    """Return for each task but the last [T-1] its lowest accuracy since it was learned; None without evaluations.

    `evaluations` are (task under way, accuracies [T]) from within tasks; beside them the rows of R count, that of the
    task itself not. A task that no evaluation within a later task saw has NaN. De Lange et al. 2023, arXiv:2205.13452.
    """
    within = list(evaluations)
    if not within:
        return None
    completed(R)
    matrix = _numbers("the accuracy matrix", R)
    if not all(isinstance(row, Sequence) and len(row) == len(matrix) for _, row in within):
        raise ConfigError("an evaluation has another number of accuracies than the matrix has tasks")
    lowest = np.full(len(matrix) - 1, np.nan)
    for j in range(len(lowest)):
        seen = [value for task, row in within if task > j and (value := row[j]) is not None]
        if seen:
            lowest[j] = np.fmin.reduce([*seen, *matrix[j + 1 :, j]])
    return lowest


@metric("Lowest accuracy on a task at any evaluated iteration since it was learned; mean over all tasks but the last.")
def min_accuracy(minima: npt.ArrayLike) -> float | None:
    """Return the mean of `minima` [T-1], the lowest accuracy on each task but the last since it was learned.

    The minimum is over all evaluated iterations. De Lange et al. 2023, arXiv:2205.13452.
    """
    values = _numbers("minima", minima)
    _check_range("minima", values)
    return _mean(values.ravel())


@metric(
    "Final accuracy on the last task and the lowest accuracies of the tasks before it, every task weighing the same."
)
def worst_case_accuracy(R: npt.ArrayLike, minima: npt.ArrayLike) -> float | None:
    """Return R[T-1, T-1] / T + (1 - 1/T) * min_accuracy(minima), where `minima` is [T-1].

    Of a single task it is the accuracy on that task. De Lange et al. 2023, arXiv:2205.13452.
    """
    matrix = completed(R)
    steps, lowest = len(matrix), min_accuracy(_minima(R, minima))
    if steps == 1:
        return float(matrix[0, 0])
    return None if lowest is None else float(matrix[-1, -1]) / steps + (1 - 1 / steps) * lowest


@checked
def confusion_matrix(targets: npt.ArrayLike, predictions: npt.ArrayLike, n_classes: int) -> npt.NDArray[np.int64]:
    """Return int64 [n_classes, n_classes]: how many samples of class (row) were predicted as class (column).

    Raises ConfigError where the two differ in length or hold anything but integers in 0..n_classes-1.
    """
    if not 1 <= n_classes <= 30_000:
        raise ConfigError(f"n_classes={n_classes}; accepted: 1 to 30,000")
    try:
        rows, columns = np.asarray(plain(targets)), np.asarray(plain(predictions))
    except (TypeError, ValueError, MemoryError):
        raise ConfigError(
            f"targets={shown(targets)} and predictions={shown(predictions)} given; integers [n] are accepted"
        ) from None
    if rows.shape != columns.shape or rows.ndim != 1:
        raise ConfigError(f"targets of shape {rows.shape} and predictions of shape {columns.shape}; accepted: both [n]")
    for name, values in (("targets", rows), ("predictions", columns)):
        if values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= n_classes):
            raise ConfigError(f"{name} hold values other than the classes 0..{n_classes - 1}")
    cells = rows.astype(np.int64) * n_classes + columns.astype(np.int64)
    return np.bincount(cells, minlength=n_classes**2).astype(np.int64).reshape(n_classes, n_classes)


def _share(name: str, counts: npt.ArrayLike) -> float | None:
    values = _numbers(name, counts)
    if values.shape != (2,) or not 0 <= values[0] <= values[1]:
        raise ConfigError(f"{name} is {values.tolist()}; accepted: numbers of correct and of tested samples")
    return float(values[0] / values[1]) if values[1] else None


def _forward_terms(R: npt.ArrayLike, baseline: npt.ArrayLike) -> list[float]:
    ahead = np.diag(completed(R), k=1)
    untrained = _accuracies("baseline", baseline, np.shape(R)[0])
    return [float(v) for v in ahead - untrained[1 : len(ahead) + 1]]


def _minima(R: npt.ArrayLike, minima: npt.ArrayLike) -> Floats:
    """Return the minima [T-1] with NaN for the tasks that are not completed, and for the last one completed."""
    values = _accuracies("minima", minima, np.shape(R)[0] - 1).copy()
    values[max(len(completed(R)) - 1, 0) :] = np.nan
    return values


def _numbers(name: str, values: npt.ArrayLike) -> Floats:
    """Return numbers as float64, None as NaN; raises ConfigError for whatever else an object may hold."""
    if isinstance(values, np.ndarray) and values.dtype == np.float64:
        return values
    try:
        found = np.asarray(plain(values))
        if found.dtype.kind in "iuf" or (found.dtype.kind == "O" and not any(isinstance(v, str) for v in found.flat)):
            return np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, MemoryError):
        pass
    raise ConfigError(f"{name} has rows of different lengths or entries that are no numbers")


def _accuracies(name: str, values: npt.ArrayLike, length: int) -> Floats:
    vector = _numbers(name, values)
    if vector.shape != (length,):
        raise ConfigError(f"{name} has shape {vector.shape}; accepted: [{length}] beside this accuracy matrix")
    _check_range(name, vector)
    return vector


def _sizes(values: npt.ArrayLike, length: int) -> Floats:
    vector = _numbers("test_sizes", values)
    if vector.shape != (length,) or not (np.isfinite(vector) & (vector > 0)).all():
        raise ConfigError(f"test_sizes is {vector.tolist()}; accepted: {length} numbers above 0, one a task")
    return vector


def _check_range(name: str, values: Floats) -> None:
    outside = values[(values < 0) | (values > 1)]
    if outside.size:
        raise ConfigError(f"{name} holds {outside[0]:g}; accepted: accuracies in [0, 1], NaN where not evaluated")


def _mean(values: Iterable[float | None], weights: Iterable[float] | None = None) -> float | None:
    """Mean of the values that are defined, rounded once so that their order can't change it."""
    pairs = list(zip(values, weights, strict=True)) if weights is not None else [(v, 1.0) for v in values]
    defined = [(v, w) for v, w in pairs if v is not None and v == v]
    # fmean of Python 3.12 returns a number of numpy for numbers from an array.
    return float(fmean([v for v, _ in defined], [w for _, w in defined])) if defined else None


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _last(values: list[float | None]) -> float | None:
    return values[-1] if values else None
