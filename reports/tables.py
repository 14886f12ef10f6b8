"""The comparison as a table for the terminal, and as CSV with every digit."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from clbench.reports.columns import columns, columns_of
from clbench.reports.comparison import Comparison
from clbench.reports.differences import Difference, Differences
from clbench.reports.strategy_runs import StrategyRuns
from clbench.reports.verdict import verdict
from clbench.results.result import Result
from clbench.support import fitted
from clbench.support.fitted import Fitted

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    *("Comparison", "compare", "comparison", "definitions", "differences_frame", "escape", "matrices", "rank_section"),
    *("render", "runs", "section", "to_csv", "to_markdown"),
]


def comparison(parts: Sequence[Comparison]) -> "DataFrame":
    """Return one row a strategy and classifier: the mean of each number under its name, `_sd` (n-1), `_n`.

    `_low` and `_high`, the 95 % confidence interval of the mean, are there for metrics, not for costs. Where some runs
    are not finished, two more columns say how many and why.
    """
    import pandas as pd

    lines = []
    for part in parts:
        metrics = {column.number for column in columns(part) if column.metric}
        for row in part.rows:
            line = _where(part, row) | {
                "family": row.runs[0].recorded.strategy.family,
                "reference": row.is_reference,
                "n": row.n,
                "seeds": " ".join(str(run.seed) for run in row.finished),
            }
            if any(one.unfinished for one in parts):
                line |= {"n_unfinished": len(row.runs) - row.n, "unfinished": part.unfinished.get(row.label)}
            for name in dict.fromkeys(name for numbers in row.numbers for name in numbers):
                line |= dict(zip((name, f"{name}_sd", f"{name}_n"), row.spread(name), strict=True))
                if name in metrics:
                    ends = row.interval(name)
                    line |= {f"{name}_low": ends and ends.low, f"{name}_high": ends and ends.high}
            lines.append(line)
    return pd.DataFrame(lines)


def runs(parts: Sequence[Comparison]) -> "DataFrame":
    """Return one row a run and classifier, with its seed, class order and every number.

    Where some runs are not finished, there are more columns: the status, how many tasks are done, and where and why a
    run failed.
    """
    import pandas as pd

    some_are_not_done = any(part.unfinished for part in parts)
    return pd.DataFrame(
        [
            _where(part, row)
            | {
                "seed": run.seed,
                "class_order": " ".join(map(str, run.recorded.class_order)),
                "identity": run.recorded.identity,
                "created": run.recorded.created,
            }
            | (_state(run) if some_are_not_done else {})
            | numbers
            for part in parts
            for row in part.rows
            for run, numbers in zip(row.runs, row.numbers, strict=True)
        ]
    )


def _state(run: Result) -> dict[str, Any]:
    at = run.recorded.failed_at or {}
    return {
        "status": run.status,
        "tasks_done": len(run.recorded.tasks),
        **{f"failed_at_{name}": at.get(name) for name in ("task", "epoch", "step")},
        "error": run.recorded.error,
    }


def _where(part: Comparison, row: StrategyRuns) -> dict[str, Any]:
    return {
        "scenario": part.scenario,
        "setting": part.setting,
        "headline": part.headline,
        "task_sizes": " ".join(map(str, part.task_sizes)),
        "strategy": row.label,
        "classifier": row.classifier,
    }


def matrices(parts: Sequence[Comparison]) -> "DataFrame":
    """Return every entry of every accuracy matrix, one a row; empty where a task was not tested."""
    import pandas as pd

    return pd.DataFrame(
        [
            (part.scenario, part.setting, row.label, run.seed, run.recorded.identity, *entry)
            for part in parts
            for row in part.rows
            if row.is_headline
            for run in row.runs
            for entry in run.accuracy_rows()
        ],
        columns=[
            *("scenario", "setting", "strategy", "seed", "identity"),
            *("matrix", "classifier", "after", "task", "accuracy"),
        ],
    )


# The columns of differences.csv that are about a pair of strategies, with their values.
DIFFERENCE_COLUMNS: dict[str, Callable[[Differences, Difference], object]] = {
    "strategy": lambda _, one: one.ours.label,
    "minus": lambda _, one: one.theirs.label,
    "n": lambda _, one: one.paired.n,
    "difference": lambda _, one: one.paired.difference,
    "low": lambda _, one: one.paired.interval and one.paired.interval.low,
    "high": lambda _, one: one.paired.interval and one.paired.interval.high,
    "verdict": lambda _, one: one.standing,
    "p": lambda _, one: one.paired.p,
    "p_holm": lambda _, one: one.p,
    "tests": lambda found, _: found.tests,
    "smallest_p_holm": lambda found, _: found.smallest_p,
    "wilcoxon_p": lambda _, one: one.paired.wilcoxon_p,
    "effect_size": lambda _, one: one.effect_size,
    "probability_of_improvement": lambda _, one: one.paired.probability_of_improvement,
    "runs_needed": lambda _, one: one.runs_needed,
}


def differences_frame(parts: Sequence[Comparison]) -> "DataFrame":
    """Return every competitor minus the best one and minus naive, one a row: `differences.Difference` in full."""
    import pandas as pd

    return pd.DataFrame(
        [
            [
                *(part.scenario, part.setting, " ".join(map(str, part.task_sizes))),
                *(value(part.differences, one) for value in DIFFERENCE_COLUMNS.values()),
            ]
            for part in parts
            for one in part.differences.all
        ],
        columns=["scenario", "setting", "task_sizes", *DIFFERENCE_COLUMNS],
    )


def to_csv(frame: "DataFrame") -> str:
    """Return a table as CSV: unrounded, undefined numbers empty."""
    return frame.to_csv(index=False, lineterminator="\n")


def render(parts: Sequence[Comparison]) -> Group:
    """Return the comparison for a terminal: a table for each scenario and setting, then the notes."""
    shown: list[Fitted | Text] = []
    for part in parts:
        shown.extend(Text(f"note: {text}", style="yellow") for text in part.unfinished.values())
        shown.append(_terminal_table(part))
        shown.append(Text(f"verdict: {verdict(part)}", style="bold"))
        shown.extend(Text(f"note: {note}", style="yellow") for note in part.notes)
    return Group(*shown)


# The columns of the terminal that stay longest where it is narrow, the last of them the longest.
STAYING = ("extra_bytes", "seconds", "learning_accuracy", "task_aware_accuracy", "forgetting", "average_accuracy")


def _terminal_table(part: Comparison) -> Fitted:
    found = []
    for column in columns_of(part, "terminal"):
        cells = []
        for row in part.rows:
            # Without the spaces, and with the means alone of costs, the columns fit on 100 characters.
            cost = row.spread(column.number).mean
            text = column.mean(row).replace(" ± ", "±") if column.metric or cost is None else column.text(cost)
            cells.append(Text(text, style="bold" if column.is_best(part, row) else ""))
        # A metric that the user added stays as long as forgetting.
        number = "forgetting" if column.is_own else column.number
        keep = STAYING.index(number) if number in STAYING else -1
        found.append(fitted.Column(column.titles["terminal"], cells, keep, "right"))
    names = [Text(row.label + row.mark, style="dim" if row.is_reference else "") for row in part.rows]
    return Fitted(
        [
            fitted.Column("\nstrategy", names, len(STAYING) + 1, wraps=True),
            *found,
            fitted.Column("\nn", [row.count for row in part.rows], len(STAYING), "right"),
        ],
        title=part.title,
        caption="Percent, mean ± standard deviation (n-1) over n runs; the headline is the first column. "
        + "  ".join(part.marks),
        more="the report has them",
    )
