"""The conclusions of comparisons: the verdict in two sentences, and mean ranks over several scenarios."""

import contextlib
from collections.abc import Sequence

import numpy as np

from clbench.config.errors import ConfigError
from clbench.reports.columns import percent
from clbench.reports.comparison import Comparison
from clbench.reports.differences import Difference, competitors, tested_rows
from clbench.reports.strategy_runs import StrategyRuns, mean_over_runs
from clbench.results.metrics import forgetting_by_task
from clbench.results.statistics import Ranks, mean_ranks

# Means of shares that are nearer than this are equal but for rounding.
EQUAL = 1e-9


def ranks(parts: Sequence[Comparison], setting: str) -> Ranks:
    """Return the mean ranks in average accuracy over the scenarios of a setting, of what is tested in each of them.

    Raises ConfigError below five scenarios or two such strategies.
    """
    scenarios = [{row.label: row for row in tested_rows(part.rows)} for part in parts if part.setting == setting]
    if not scenarios:
        raise ConfigError(f"mean ranks of no {setting}-incremental scenario; at least 5 are accepted")
    labels = [label for label in scenarios[0] if all(label in rows for rows in scenarios)]
    if len(labels) < 2:
        raise ConfigError(f"mean ranks need two strategies in each of the {len(scenarios)} scenarios; there are fewer")
    return mean_ranks({label: [rows[label].spread("average_accuracy").mean for rows in scenarios] for label in labels})


def all_ranks(parts: Sequence[Comparison]) -> dict[str, Ranks]:
    """Return the mean ranks of each setting that has scenarios enough for them."""
    found = {}
    for setting in dict.fromkeys(part.setting for part in parts):
        with contextlib.suppress(ConfigError):
            found[setting] = ranks(parts, setting)
    return found


def verdict(part: Comparison, *, as_typed: bool = True) -> str:
    """Return in two sentences which strategy wins, whether that is real, where it forgets most and what it costs.

    as_typed: strategies go by what one types (er), as in the table of a terminal; else as papers write them (ER).
    """
    found = part.differences
    best = found.best
    if best is None:
        if competitors(part.rows):
            return "No competitor has learned anything: none is better than chance on a task just learned."
        if any(not row.is_line for row in part.rows):
            return "Nothing can be said yet: no competitor has a number."
        return "Nothing competes here: there are references alone."
    mean, _, n = best.spread("average_accuracy")
    name = best.label if as_typed else best.title
    if mean is None:
        return f"{name} has no average accuracy."
    interval = best.interval("average_accuracy")
    within = "" if interval is None else f", 95 % interval {percent(interval.low)} to {percent(interval.high)}"
    accuracy = f"{part.matrix(part.headline)} average accuracy"
    higher = any((row.spread("average_accuracy").mean or 0.0) > mean for row in competitors(part.rows))
    which = f"{accuracy} of those that learn anything" if higher else accuracy
    first = f"{name} has the highest {which}, {percent(mean)} % (n = {n}{within})"
    rivals = [one for one in found.against_best if not one.ours.is_naive]
    naive = next((one for one in found.against_best if one.ours.is_naive), None)
    if rivals:
        first += _lead(rivals[0], rivals[0].ours.label if as_typed else rivals[0].ours.title)
    if naive is not None:
        label = naive.ours.label
        if not rivals or (naive.paired.difference or 0.0) > 0:
            first += _lead(naive, f"{label}, the lower reference")
        elif naive.standing != "too few runs":
            real = {"real": "real", "clear": "clear", "not shown": "not shown to be real"}
            first += f"; its lead over {label} is {real[naive.standing]}"
    if not found.against_best:
        first += "; there is nothing to compare it with"
    return f"{first}. {_forgets(best)}; {_costs(best)}."


def _lead(one: Difference, other: str) -> str:
    """Say by how much the best is above another strategy, whether that is real, and where it is not above it at all."""
    difference = one.paired.difference
    if difference is None:
        return f"; nothing can be said of its lead over {other}: {one.paired.reason}"
    if abs(difference) < EQUAL:
        real = _reality(one).replace("whether that is real", "whether they differ")
        return f", the same as {other}: {f'a difference is {real}' if one.standing == 'not shown' else real}"
    points = percent(abs(difference))
    points = "less than 0.1" if points == "0.0" else points
    return f", {points} points {'above' if difference < 0 else 'below'} {other}: {_reality(one)}"


def _reality(one: Difference) -> str:
    more = f"; about {one.runs_needed} runs of each would tell" if one.runs_needed else ""
    if one.standing == "real":
        return f"a real difference (p = {one.p:.2g})"
    if one.standing == "not shown":
        return f"not shown to be real (p = {one.p:.2g}){more}"
    n = one.paired.n
    if one.standing == "clear":
        widened = "" if one.tests == 1 else f", widened for all {one.tests} pairs of strategies,"
        return f"a clear difference, whose interval{widened} leaves out 0, though {n} pairs are too few for the test"
    always = n > 1 and one.paired.probability_of_improvement == 0
    ahead = f" (it is ahead in {'both' if n == 2 else f'all {n}'} pairs)" if always else ""
    return f"too few runs to tell whether that is real{ahead}{more}"


def _forgets(row: StrategyRuns) -> str:
    mean = row.spread("forgetting").mean
    of_runs = [forgetting_by_task(matrix) for matrix in row.finished_matrices]
    # A record may hold the metric without the rows of the matrix, and a matrix may end before the last task.
    n_tasks = max(map(len, of_runs), default=0)
    if mean is None or not n_tasks:
        return "Forgetting is undefined"
    by_task = np.array([[*of_run, *[None] * (n_tasks - len(of_run))] for of_run in of_runs], dtype=np.float64)
    of_task = mean_over_runs(by_task)
    if np.isnan(of_task).all():
        return f"It forgets {percent(mean)} points"
    worst = int(np.nanargmax(of_task))
    where = f", most of it on task {worst} ({percent(of_task[worst])})" if len(of_task) > 1 and mean > 0 else ""
    return f"It forgets {percent(mean)} points{where}"


def _costs(row: StrategyRuns) -> str:
    seconds, extra = row.spread("seconds").mean, row.spread("extra_bytes").mean
    if seconds is None or extra is None:
        return "what it costs was not recorded"
    kept = f"{extra / 1e6:.1f} MB" if extra >= 1e6 else f"{extra / 1e3:.1f} kB"
    return f"it takes {seconds:.1f} seconds a run and keeps {kept if extra else 'nothing'} beside the model"
