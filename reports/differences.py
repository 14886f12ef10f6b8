"""Tests of the differences between strategies, and the Pareto front of accuracy over cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from clbench.reports.strategy_runs import DIFFERENCE, StrategyRuns
from clbench.results.statistics import FEWEST_IN_BOUNDS, Paired, half_width, holm, paired, runs_needed, smallest_p

LEVEL = 0.05

Standing = Literal["real", "clear", "not shown", "too few runs"]


@dataclass(frozen=True)
class Difference:
    """One strategy minus another in average accuracy, over the runs of the same seed and class order.

    p: corrected by Holm, None where there is no test. tests: the pairs of strategies that it is corrected for.
    runs_needed: pairs with which a difference of this size and spread would be found (power 0.8), None where fewer than
    two pairs leave it unknown or next to nothing differs.
    """

    ours: StrategyRuns
    theirs: StrategyRuns
    paired: Paired
    p: float | None
    tests: int
    runs_needed: int | None

    @property
    def standing(self) -> Standing:
        """The conclusion: `real` (corrected p at most 0.05) or `not shown`, where the test can come out as real.

        Where it can't, `clear` if Student's t interval leaves out 0 even when it is widened for all pairs of
        strategies (Bonferroni), which takes three pairs and, other than the test, values like normal ones; otherwise
        `too few runs`.
        """
        if self.p is not None and self.p <= LEVEL:
            return "real"
        if self.p is not None and smallest_p(self.paired.n, self.tests) <= LEVEL:
            return "not shown"
        one = self.paired
        if one.n < FEWEST_IN_BOUNDS or not one.difference:
            return "too few runs"
        # Without an effect size the differences are all the same.
        sd = one.difference / one.effect_size if one.effect_size else 0.0
        return "clear" if abs(one.difference) > half_width(sd, one.n, 1 - LEVEL / self.tests) else "too few runs"

    @property
    def effect_size(self) -> float | None:
        """Mean over standard deviation of the differences, where there is a test."""
        return None if self.p is None else self.paired.effect_size

    @property
    def is_real(self) -> bool:
        """Whether the corrected p is at most 0.05."""
        return self.standing == "real"


@dataclass(frozen=True)
class Differences:
    """Every competitor, and naive, against the best competitor; and every competitor against naive.

    best: the highest average accuracy of the competitors that learn anything; None where there are none.
    The best is picked by the numbers that are tested, so that p is corrected for all `tests` pairs of competitors and
    naive.
    smallest_p: the smallest corrected p that these runs can give. note: why nothing can come out as real, or None.
    """

    best: StrategyRuns | None
    against_best: list[Difference]
    against_naive: list[Difference]
    tests: int
    smallest_p: float | None
    note: str | None

    @property
    def all(self) -> list[Difference]:
        """The differences from the best competitor, then those from naive."""
        return [*self.against_best, *self.against_naive]


def competitors(rows: Sequence[StrategyRuns]) -> list[StrategyRuns]:
    """Return the competing rows, best first: the headline classifiers of all strategies but the references.

    Those that have learned nothing are the last.
    """
    return [row for row in tested_rows(rows) if not row.is_line]


def tested_rows(rows: Sequence[StrategyRuns]) -> list[StrategyRuns]:
    """Return the competing rows and naive, which they are tested against, in the order of competitors()."""
    competing = (row for row in rows if row.is_headline and not row.is_reference)
    return sorted(
        (row for row in competing if row.spread("average_accuracy").n),
        key=lambda row: (not row.learns, -(row.spread("average_accuracy").mean or 0.0)),
    )


def differences(strategies: Sequence[StrategyRuns]) -> Differences:
    """Compare each competitor with the best one and with naive in the headline average accuracy."""
    rows = tested_rows(strategies)
    values = [row.by_repetition("average_accuracy") for row in rows]
    places = list(combinations(range(len(rows)), 2))
    pairs = [paired(values[i], values[j], bounds=DIFFERENCE) for i, j in places]
    corrected = dict(zip(places, holm([one.p for one in pairs]), strict=True))
    tests = len(places)

    def against(place: int) -> list[Difference]:
        made = []
        for i, row in enumerate(rows):
            if i != place:
                one = paired(values[i], values[place], bounds=DIFFERENCE)
                p = corrected[min(i, place), max(i, place)]
                made.append(Difference(row, rows[place], one, p, tests, _needed(one, tests)))
        return made

    best = next((place for place, row in enumerate(rows) if row.learns and not row.is_naive), None)
    naive = next((place for place, row in enumerate(rows) if row.is_naive), None)
    tested = [one.n for one in pairs if one.reason is None]
    smallest = min((smallest_p(n, tests) for n in tested), default=None)
    note = None
    if pairs and smallest is None:
        note = f"No test stands here: {max(pairs, key=lambda one: one.n).reason}."
    elif smallest is not None and smallest > LEVEL:
        note = (
            f"No difference can come out as real here: with {max(tested)} pairs of runs and {tests} tests the smallest "
            f"p is {smallest:.2g}; it takes {_fewest(tests)} pairs."
        )
    return Differences(
        best=None if best is None else rows[best],
        against_best=[] if best is None else against(best),
        against_naive=[] if naive is None else against(naive),
        tests=tests,
        smallest_p=smallest,
        note=note,
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the (cost, value) points on the Pareto front, in order of cost."""
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[place][1] > points[front[-1]][1] or points[place] == points[front[-1]]:
            front.append(place)
    return front


def _needed(one: Paired, tests: int) -> int | None:
    if not one.difference or one.effect_size is None or abs(one.effect_size) < 0.001:
        return None
    needed = runs_needed(one.difference, one.difference / one.effect_size, alpha=LEVEL / max(tests, 1))
    return max(needed, _fewest(tests))


def _fewest(tests: int) -> int:
    """Return the fewest pairs with which Holm's correction for so many tests leaves a p of 0.05 or less."""
    return next((n for n in range(6, 31) if smallest_p(n, tests) <= LEVEL), 30)
