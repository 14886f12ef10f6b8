"""The runs of one strategy as a row of a comparison: their numbers, and mean, deviation and interval of each."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from clbench.reports.chart import Look
from clbench.reports.names import paper_name
from clbench.results.metrics import METRICS
from clbench.results.result import Floats, Result
from clbench.results.statistics import Interval, Spread, interval, spread

Numbers = dict[str, float | None]
# The seed, and the class order with the seed that it was drawn from.
Repetition = tuple[int, tuple[tuple[int, ...], str]]
# The least and the largest value of a share, and of a difference of two.
SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)


@dataclass(frozen=True)
class StrategyRuns:
    """A row of a comparison: the repeated runs of a strategy, by one of its classifiers, and their numbers by name.

    runs: the finished ones, then those that are unfinished or failed, which have no numbers, but rows of the matrix.
    look: how the strategy is drawn, the same in every chart of all comparisons that are made together.
    """

    label: str
    classifier: str
    runs: list[Result]
    numbers: list[Numbers]
    look: Look

    @property
    def name(self) -> tuple[str, str]:
        """The strategy as papers write it, and what the label says beside it: ER and [memory_size=200]."""
        return paper_name(self.runs[0].recorded.strategy.name, self.label)

    @property
    def title(self) -> str:
        """The label with the strategy as papers write it: ER[memory_size=200]."""
        return "".join(self.name)

    @property
    def finished(self) -> list[Result]:
        """The runs that have numbers."""
        return [run for run in self.runs if run.status == "done"]

    @property
    def n(self) -> int:
        """Number of finished runs, over which the numbers are."""
        return len(self.finished)

    @property
    def count(self) -> str:
        """The number of runs as text; where some are not finished, that of the finished ones among all."""
        return str(self.n) if self.n == len(self.runs) else f"{self.n} of {len(self.runs)}"

    @property
    def is_reference(self) -> bool:
        """Whether the strategy is an upper reference, which reads the data of all tasks."""
        return self.runs[0].is_reference

    @property
    def is_naive(self) -> bool:
        """Whether the strategy is the lower reference, which does nothing against forgetting."""
        return self.runs[0].recorded.strategy.name == "naive"

    @property
    def is_line(self) -> bool:
        """Whether the strategy is a reference to compare with, such as joint or naive, and so no competitor."""
        return self.is_reference or self.is_naive

    @property
    def mark(self) -> str:
        """The sign of a reference in tables, which `Comparison.marks` explains."""
        return " †" if self.is_reference else " ‡" if self.is_naive else ""

    @property
    def is_headline(self) -> bool:
        """Whether this is the strategy's headline classifier."""
        return self.classifier == self.runs[0].recorded.headline.classifier

    @property
    def matrices(self) -> Floats:
        """Headline matrices of the runs, float [n, T, T]; rows that a run has not come to are NaN."""
        return self._matrices(self.runs)

    @property
    def finished_matrices(self) -> Floats:
        """Headline matrices of the finished runs, float [n, T, T]."""
        return self._matrices(self.finished)

    def _matrices(self, runs: list[Result]) -> Floats:
        found = [(run.classifiers.get(self.classifier), run.recorded.headline.matrix) for run in runs]
        return np.stack([matrix for of, name in found if of is not None and (matrix := of[name]) is not None])

    def spread(self, name: str) -> Spread:
        """Return mean, sd and n of a number over the runs that define it."""
        return self._spreads.get(name, Spread(None, None, 0))

    @cached_property
    def _spreads(self) -> dict[str, Spread]:
        # A report asks for the same ones again and again.
        names = dict.fromkeys(name for numbers in self.numbers for name in numbers)
        return {name: spread(numbers.get(name) for numbers in self.numbers) for name in names}

    def interval(self, name: str) -> Interval | None:
        """Return the 95 % confidence interval of the mean of a number; None below three runs that define it.

        That of a metric holds nothing that the metric can't be. One of the user's own may be no share.
        """
        values = [value for numbers in self.numbers if (value := numbers.get(name)) is not None]
        known = METRICS.get(name)
        low, high = DIFFERENCE if known and known.unit == "points" else SHARE
        return interval(values, bounds=(low, high) if all(low <= value <= high for value in values) else None)

    @cached_property
    def just_learned(self) -> tuple[float, float, float] | None:
        """The mean accuracy on a task just learned, that of chance, and by how much it must exceed it; None: unknown.

        A task's own outputs compete where that was recorded, so that neither forgetting nor other tasks count. Chance
        is a draw among the outputs, or the untrained network where that is better. The excess is two standard errors,
        which the number of test images gives.
        """
        excesses, levels, variances = [], [], []
        for run in self.finished:
            found = run.classifiers[self.classifier]
            name = run.recorded.headline.matrix if found.task_aware is None else "task_aware"
            matrix, untrained, n_seen = found[name], found.untrained[name], 0
            for i, task in enumerate(run.recorded.scenario.tasks):
                n_seen += len(task.classes)
                competing = n_seen if name == "class_incremental" and run.setting == "class" else len(task.classes)
                if matrix is None or np.isnan(matrix[i, i]):
                    continue
                before = np.nan if untrained is None else untrained[i]
                levels.append(max(1 / competing, 0.0 if np.isnan(before) else before))
                excesses.append(matrix[i, i] - levels[-1])
                variances.append(levels[-1] * (1 - levels[-1]) / max(task.n_test, 1))
        if not excesses:
            return None
        # The runs have the same test images, so that more of them make the error no smaller.
        n_independent = len(excesses) / self.n
        level = float(np.mean(levels))
        return level + float(np.mean(excesses)), level, 2 * float(np.sqrt(np.mean(variances) / n_independent))

    @property
    def learns(self) -> bool:
        """Whether it is better than chance on a task just learned; True where nothing is known of that."""
        if self.just_learned is None:
            return True
        accuracy, chance, excess = self.just_learned
        return accuracy - chance > excess

    def by_repetition(self, name: str) -> dict[Repetition, float | None]:
        """Return a number of each run by (seed, class order), as `clbench.statistics.paired` takes it."""
        return {repetition(run): n.get(name) for run, n in zip(self.runs, self.numbers, strict=True)}


def repetition(run: Result) -> Repetition:
    """Return the seed and class order, which tell a run from its repetitions."""
    # Tasks that differ in more than their classes, such as permutations, are told apart by the seed of the order alone.
    return run.seed, (tuple(run.recorded.class_order), str(run.config.get("class_order_seed")))


def mean_over_runs(stack: Floats) -> Floats:
    """Return the mean over the first axis, NaN where nothing is known."""
    known = ~np.isnan(stack)
    counts = known.sum(axis=0)
    total = np.where(known, stack, 0.0).sum(axis=0)
    mean: Floats = np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
    return mean
