"""Which differences between strategies are real, and the verdict in a sentence or two."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from clbench.config.errors import ConfigError
from clbench.results.metrics import forgetting_by_task
from clbench.results.statistics import Paired, Ranks, holm, mean_ranks, paired, runs_needed, smallest_p

if TYPE_CHECKING:
    from clbench.reports.tables import Comparison, Row

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """One strategy minus another in average accuracy, over the runs of the same seed and class order.

    p: corrected by Holm, None where there is no test; runs_needed: pairs with which a difference of this size and
    spread would be found (power 0.8), None where fewer than two pairs leave it unknown or next to nothing differs.
    """

    ours: "Row"
    theirs: "Row"
    paired: Paired
    p: float | None
    runs_needed: int | None

    @property
    def is_real(self) -> bool:
        """Whether the corrected p is at most 0.05."""
        return self.p is not None and self.p <= LEVEL


@dataclass(frozen=True)
class Differences:
    """Every competitor against the best one, and against naive, unless that is the best one.

    The best is picked by the numbers that are tested, so that p is corrected for all `tests` pairs of competitors.
    smallest_p: the smallest corrected p that these runs can give. note: why nothing can come out as real, or None.
    """

    best: "Row | None"
    against_best: list[Difference]
    against_naive: list[Difference]
    tests: int
    smallest_p: float | None
    note: str | None


def competitors(part: "Comparison") -> list["Row"]:
    """Return the rows that compete, best first: headline classifiers of what is no reference, naive among them."""
    rows = [row for row in part.rows if row.is_headline and not row.is_reference]
    return sorted(
        (row for row in rows if row.spread("average_accuracy").n),
        key=lambda row: -(row.spread("average_accuracy").mean or 0.0),
    )


def differences(part: "Comparison") -> Differences:
    """Compare each competitor with the best one and with naive in the headline average accuracy."""
    rows = competitors(part)
    values = [row.by_repetition("average_accuracy") for row in rows]
    places = list(combinations(range(len(rows)), 2))
    pairs = [paired(values[i], values[j]) for i, j in places]
    corrected = dict(zip(places, holm([one.p for one in pairs]), strict=True))
    tests = len(places)

    def against(place: int) -> list[Difference]:
        made = []
        for i, row in enumerate(rows):
            if i != place:
                one = paired(values[i], values[place])
                p = corrected[min(i, place), max(i, place)]
                made.append(Difference(row, rows[place], one, p, _needed(one, tests)))
        return made

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
        best=rows[0] if rows else None,
        against_best=against(0) if rows else [],
        against_naive=against(naive) if naive else [],
        tests=tests,
        smallest_p=smallest,
        note=note,
    )


def ranks(parts: Sequence["Comparison"], setting: str) -> Ranks:
    """Return the mean ranks in average accuracy over the scenarios of a setting, of what competes in each of them.

    Raises ConfigError below five scenarios or two such strategies.
    """
    scenarios = [{row.label: row for row in competitors(part)} for part in parts if part.setting == setting]
    if not scenarios:
        raise ConfigError(f"mean ranks of no {setting}-incremental scenario; at least 5 are accepted")
    labels = [label for label in scenarios[0] if all(label in rows for rows in scenarios)]
    if len(labels) < 2:
        raise ConfigError(f"mean ranks need two strategies in each of the {len(scenarios)} scenarios; there are fewer")
    return mean_ranks({label: [rows[label].spread("average_accuracy").mean for rows in scenarios] for label in labels})


def all_ranks(parts: Sequence["Comparison"]) -> dict[str, Ranks]:
    """Return the mean ranks of each setting that has scenarios enough for them."""
    found = {}
    for setting in dict.fromkeys(part.setting for part in parts):
        with contextlib.suppress(ConfigError):
            found[setting] = ranks(parts, setting)
    return found


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the (cost, value) points that no other beats in one and equals in the other, by cost."""
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[place][1] > points[front[-1]][1] or points[place] == points[front[-1]]:
            front.append(place)
    return front


def verdict(part: "Comparison") -> str:
    """Return in two sentences which strategy wins, whether that is real, where it forgets most and what it costs."""
    found = part.differences
    best = found.best
    if best is None:
        return "Nothing competes here: there are references alone."
    mean, _, n = best.spread("average_accuracy")
    assert mean is not None
    interval = best.interval("average_accuracy")
    within = "" if interval is None else f", 95 % interval {_points(interval.low)} to {_points(interval.high)}"
    accuracy = f"{part.matrix(part.headline)} average accuracy"
    first = f"{best.label} has the highest {accuracy}, {_points(mean)} % (n = {n}{within})"
    if found.against_best:
        second = found.against_best[0]
        lead = -(second.paired.difference or 0.0)
        first += f", {_points(lead)} points above {second.ours.label}: {_reality(second, found)}"
        for other in found.against_best[1:]:
            if other.ours.is_naive and other.p is not None and not found.note:
                first += f"; its lead over naive is {'real' if other.is_real else 'not shown to be real'}"
    else:
        first += "; there is nothing to compare it with"
    return f"{first}. {_forgets(best)}, {_costs(best)}."


def _reality(one: Difference, found: Differences) -> str:
    more = f"; about {one.runs_needed} runs of each would tell" if one.runs_needed else ""
    if one.paired.difference is None:
        return "no seed and class order is common to both, so nothing can be said"
    if one.p is None or found.note:
        return f"too few runs to tell whether that is real{more}"
    if one.is_real:
        return f"a real difference (p = {one.p:.2g})"
    return f"not shown to be real (p = {one.p:.2g}){more}"


def _forgets(row: "Row") -> str:
    mean = row.spread("forgetting").mean
    by_task = np.array([forgetting_by_task(matrix) for matrix in row.matrices], dtype=np.float64)
    # A record may hold the metric without the rows that it is of.
    if mean is None or by_task.size == 0:
        return "Forgetting is undefined"
    known = ~np.isnan(by_task)
    of_task = np.where(known, by_task, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    worst = int(of_task.argmax())
    where = f", most of it on task {worst} ({_points(of_task[worst])})" if len(of_task) > 1 and mean > 0 else ""
    return f"It forgets {_points(mean)} points{where}"


def _costs(row: "Row") -> str:
    seconds, extra = row.spread("seconds").mean or 0.0, row.spread("extra_bytes").mean or 0.0
    kept = f"{extra / 1e6:.1f} MB" if extra >= 1e6 else f"{extra / 1e3:.1f} kB"
    return f"takes {seconds:.1f} seconds a run and keeps {kept if extra else 'nothing'} beside the model"


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}"


def _needed(one: Paired, tests: int) -> int | None:
    if not one.difference or one.effect_size is None or abs(one.effect_size) < 0.001:
        return None
    needed = runs_needed(one.difference, one.difference / one.effect_size, alpha=LEVEL / max(tests, 1))
    return max(needed, _fewest(tests))


def _fewest(tests: int) -> int:
    """Return the fewest pairs with which Holm's correction for so many tests leaves a p of 0.05 or less."""
    return next((n for n in range(6, 31) if smallest_p(n, tests) <= LEVEL), 30)
