"""The comparison of strategies as tables: for the terminal, as Markdown, and as CSV with every digit."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clbench.reports.columns import Column, columns, columns_of, percent, signed, words
from clbench.reports.comparison import SETTING_NAMES, Comparison, protocol, text_of
from clbench.reports.differences import Difference, Differences
from clbench.reports.strategy_runs import Repetition, StrategyRuns, repetition
from clbench.reports.verdict import all_ranks, verdict
from clbench.results.metrics import METRICS
from clbench.results.statistics import Interval, Ranks, variances
from clbench.support.text import printable

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    *("Comparison", "compare", "comparison", "definitions", "differences_frame", "escape", "matrices", "rank_section"),
    *("render", "runs", "section", "to_csv", "to_markdown"),
]

# The Markdown tables have room for the intervals of these; comparison.csv has those of every metric.
WITH_INTERVAL = {"average_accuracy", "forgetting"}


def comparison(parts: Sequence[Comparison]) -> "DataFrame":
    """Return one row a strategy and classifier: the mean of each number under its name, `_sd` (n-1), `_n`.

    `_low` and `_high`, the 95 % confidence interval of the mean, are there for metrics, not for costs.
    """
    import pandas as pd

    lines = []
    for part in parts:
        metrics = {column.number for column in columns(part) if column.metric}
        for row in part.rows:
            line = _where(part, row) | {
                "family": row.runs[0].family,
                "reference": row.is_reference,
                "n": len(row.runs),
                "seeds": " ".join(str(run.seed) for run in row.runs),
            }
            for name in dict.fromkeys(name for numbers in row.numbers for name in numbers):
                line |= dict(zip((name, f"{name}_sd", f"{name}_n"), row.spread(name), strict=True))
                if name in metrics:
                    ends = row.interval(name)
                    line |= {f"{name}_low": ends and ends.low, f"{name}_high": ends and ends.high}
            lines.append(line)
    return pd.DataFrame(lines)


def runs(parts: Sequence[Comparison]) -> "DataFrame":
    """Return one row a run and classifier, with its seed, class order and every number."""
    import pandas as pd

    return pd.DataFrame(
        [
            _where(part, row)
            | {
                "seed": run.seed,
                "class_order": " ".join(map(str, run.class_order)),
                "identity": run.identity,
                "created": run.created,
            }
            | numbers
            for part in parts
            for row in part.rows
            for run, numbers in zip(row.runs, row.numbers, strict=True)
        ]
    )


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
            (part.scenario, part.setting, row.label, run.seed, run.identity, *entry)
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
    "p": lambda _, one: one.paired.p,
    "p_holm": lambda _, one: one.p,
    "tests": lambda found, _: found.tests,
    "smallest_p_holm": lambda found, _: found.smallest_p,
    "wilcoxon_p": lambda _, one: one.paired.wilcoxon_p,
    "effect_size": lambda _, one: one.paired.effect_size,
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


def rank_section(parts: Sequence[Comparison]) -> str:
    """Return the mean ranks over the scenarios of each setting as Markdown; nothing below five scenarios."""
    lines: list[str] = []
    for setting, found in all_ranks(parts).items():
        lines += [
            f"## Mean ranks over {found.n} scenarios, {SETTING_NAMES[setting]}",
            "",
            rank_sentence(found, _code),
            "",
            "| strategy | mean rank |",
            "|---|---:|",
            *(f"| {_code(label)} | {rank:.2f} |" for label, rank in found.mean.items()),
            "",
        ]
    return "\n".join(lines)


def rank_sentence(found: Ranks, shown: Callable[[str], str] = str) -> str:
    """Return which mean ranks are not told apart; `shown` makes a label what it is in the output."""
    groups = "; ".join(", ".join(map(shown, group)) for group in found.groups) or "none"
    friedman = "" if found.p is None else f" Friedman's test that all are equal: p = {found.p:.2g}."
    return (
        f"By average accuracy, 1 is best. Ranks nearer than {found.critical_difference:.2f} (Nemenyi, 0.05; Demsar "
        f"2006) are not told apart: {groups}.{friedman}"
    )


def to_csv(frame: "DataFrame") -> str:
    """Return a table as CSV: unrounded, undefined numbers empty."""
    return frame.to_csv(index=False, lineterminator="\n")


def render(parts: Sequence[Comparison]) -> Group:
    """Return the comparison for a terminal: a table for each scenario and setting, then the notes."""
    shown: list[Table | Text] = []
    for part in parts:
        shown.append(_terminal_table(part))
        shown.append(Text(f"verdict: {verdict(part)}", style="bold"))
        shown.extend(Text(f"note: {note}", style="yellow") for note in part.notes)
    return Group(*shown)


def to_markdown(parts: Sequence[Comparison]) -> str:
    """Return the whole comparison as Markdown: tables, each run, notes, the definitions of the metrics."""
    return "\n".join([*(section(part) for part in parts), definitions()])


def section(part: Comparison) -> str:
    """Return the tables and notes of one scenario and setting as Markdown."""
    shown = columns_of(part, "markdown")
    accuracy, transfer, cost, storage = (
        [column for column in shown if column.unit in units]
        for units in (("%",), ("points",), ("steps", "s"), ("items", "B"))
    )
    lower = " and ".join(words(name) for name, metric in METRICS.items() if metric.better == "lower")
    seeds = list(dict.fromkeys(repetition(run) for row in part.rows for run in row.runs))
    return "\n".join(
        [
            f"## {escape(part.title)}",
            "",
            f"**{escape(verdict(part))}**",
            "",
            f"The headline is the {part.matrix(part.headline)} average accuracy: {rule(part)} "
            "A row such as `icarl (linear)` is a further classifier of the same runs. "
            "Mean ± standard deviation (n-1) over n runs, in brackets the 95 % confidence interval of the mean "
            "(Student's t; BCa bootstrap from n = 20); one run has neither. "
            "The best competitor is bold. What is undefined is -, and for all rows left out.",
            "",
            "### Accuracy (%)",
            "",
            *_markdown_table(part, accuracy),
            "",
            *_marks(part),
            *_differences(part),
            *_sources(part),
            f"### Forgetting and transfer (percentage points; of {lower} less is better)",
            "",
            *_markdown_table(part, transfer),
            "",
            "### Cost",
            "",
            *_markdown_table(part, cost),
            "",
            "### Storage kept from task to task (the most after any task; extra: all but the model)",
            "",
            *_markdown_table(part, storage),
            "",
            f"### Each run: {part.matrix(part.headline)} average accuracy (%)",
            "",
            "| strategy | " + " | ".join(f"seed {seed}" for seed, _ in seeds) + " |",
            "|---|" + "---:|" * len(seeds),
            *(_runs_line(row, seeds) for row in part.rows),
            "",
            *_hyper_parameters(part),
            *(["### Notes", "", *(f"- {escape(note)}" for note in part.notes), ""] if part.notes else []),
        ]
    )


def _hyper_parameters(part: Comparison) -> list[str]:
    """Return the lines that say with which values each strategy, and the training of all of them, was run."""
    runs = {row.label: row.runs[0] for row in part.rows if row.is_headline}
    protocols = {label: {k: text_of(v) for k, v in protocol(run).items()} for label, run in runs.items()}
    first = next(iter(protocols.values()))
    same = {k: v for k, v in first.items() if all(protocol.get(k) == v for protocol in protocols.values())}
    listed = {
        label: {k: text_of(v) for k, v in run.config.get("strategy_options", {}).items()}
        | {k: v for k, v in protocols[label].items() if k not in same}
        for label, run in runs.items()
    }
    lines = [f"- {_code(label)}: {_code(_pairs(values)) if values else 'none'}" for label, values in listed.items()]
    shared = _pairs({k: v for k, v in same.items() if v != "none"})
    return ["### Hyper-parameters", "", *lines, f"- the same for all: {_code(shared)}", ""]


def definitions() -> str:
    """Return the definition of every metric as Markdown."""
    lines = [f"- **{words(name)}**: {escape(metric.sentence)}" for name, metric in METRICS.items()]
    return "\n".join(
        [
            "## Definitions",
            "",
            "Tasks are counted from 0. What was not tested has no number, and means leave it out. "
            "Standard deviations use n-1.",
            "",
            *lines,
            "",
        ]
    )


def rule(part: Comparison) -> str:
    """Return what competes in the headline matrix, as a sentence."""
    if part.headline == "task_aware":
        return "the task is known and only its own outputs compete."
    if part.setting == "domain":
        return "all tasks have the same outputs, and which task an image is from is not known."
    return "the outputs of all tasks seen so far compete."


def _differences(part: Comparison) -> list[str]:
    """Return the lines on which differences are real; none where there is nothing to compare."""
    found = part.differences
    lines = [
        f"| {_code(one.ours.label)}{_mark(one.ours)} | {_code(one.theirs.label)} | {one.paired.n} | "
        f"{signed(one.paired.difference)}{_bracket(one.paired.interval)} | {_digits(one.p)} | "
        f"{_digits(one.paired.wilcoxon_p)} | {_digits(one.paired.effect_size, '.1f')} | "
        f"{_share(one.paired.probability_of_improvement)} | {_digits(one.runs_needed, 'd')} |"
        for one in found.all
    ]
    if not lines:
        return []
    smallest = (
        "" if found.smallest_p is None else f" The smallest p that these runs can give is {found.smallest_p:.2g}."
    )
    return [
        "### Which differences are real?",
        "",
        "Average accuracy of a strategy minus that of the best one, then that of naive, in percentage points, over "
        "the runs of the same seed and class order, with the 95 % confidence interval. p: two-sided sign-flip "
        f"permutation test of the pairs; as the best is picked by the same numbers, Holm's correction counts all "
        f"{found.tests} pairs of competitors. At most 0.05 is called real.{smallest} "
        "Wilcoxon: signed-rank p, not corrected, for comparison. d: mean / standard deviation of the differences. "
        "Better: the share of pairs in which the strategy is ahead. Runs: how many pairs would find a difference of "
        "this size (power 0.8); from few pairs a rough figure.",
        "",
        *([f"**{escape(found.note)}**", ""] if found.note else []),
        "| strategy | minus | n | difference | p | Wilcoxon | d | better | runs |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *lines,
        "",
    ]


def _sources(part: Comparison) -> list[str]:
    """Return the lines on class order and initialisation, of the strategies that have every seed with every order."""
    lines = []
    for row in part.rows:
        found = variances(row.by_repetition("average_accuracy"))
        if found is not None:
            sds = " | ".join(percent(np.sqrt(v)) for v in (found.class_order, found.initialisation, found.rest))
            lines.append(f"| {_code(row.label)} | {found.n_orders} | {found.n_initialisations} | {sds} |")
    if not lines:
        return []
    return [
        "### Class order or initialisation?",
        "",
        "Standard deviations of the average accuracy (percentage points) by their source, from every seed with every "
        "class order: two-way random effects, method of moments; what would be negative is 0.",
        "",
        "| strategy | orders | seeds | class order | seed | rest |",
        "|---|---:|---:|---:|---:|---:|",
        *lines,
        "",
    ]


def _bracket(ends: Interval | None) -> str:
    return "" if ends is None else f" [{percent(ends.low)}, {percent(ends.high)}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _digits(value: float | None, form: str = ".2g") -> str:
    return "-" if value is None else format(value, form)


def _pairs(values: dict[str, str]) -> str:
    return printable(", ".join(f"{key}={value}" for key, value in values.items()))


def _mean(column: Column, row: StrategyRuns) -> str:
    """Return mean and standard deviation of a number, and over how many runs where that is not all of them."""
    mean, sd, n = row.spread(column.number)
    if mean is None:
        return "-"
    text = column.text(mean)
    # A count that is the same in every run needs no deviation.
    if sd is not None and (sd > 0 or column.metric):
        text += f" ± {column.text(sd)}"
    return text if n == len(row.runs) else f"{text} (n={n})"


def _mark(row: StrategyRuns) -> str:
    return " †" if row.is_reference else " ‡" if row.is_naive else ""


def _marks(part: Comparison) -> list[str]:
    lines = []
    if any(row.is_reference for row in part.rows):
        lines += ["† a reference, not a competitor: it reads the data of all tasks.", ""]
    if any(_mark(row) == " ‡" for row in part.rows):
        lines += ["‡ the lower reference: training goes on with nothing against forgetting.", ""]
    return lines


def _markdown_table(part: Comparison, shown: Sequence[Column]) -> list[str]:
    """Return the lines of a table of these columns."""
    lines = [
        "| strategy | family | n | " + " | ".join(column.titles["markdown"] for column in shown) + " |",
        "|---|---|---:|" + "---:|" * len(shown),
    ]
    for row in part.rows:
        cells = []
        for column in shown:
            cell = _mean(column, row)
            cell = f"**{cell}**" if column.is_best(part, row) else cell
            cells.append(cell + _bracket(row.interval(column.number) if column.number in WITH_INTERVAL else None))
        head = f"| {_code(row.label)}{_mark(row)} | {escape(row.runs[0].family)} | {len(row.runs)} | "
        lines.append(head + " | ".join(cells) + " |")
    return lines


def _runs_line(row: StrategyRuns, repetitions: list[Repetition]) -> str:
    values = row.by_repetition("average_accuracy")
    cells = ["-" if (value := values.get(key)) is None else percent(value) for key in repetitions]
    return f"| {_code(row.label)}{_mark(row)} | " + " | ".join(cells) + " |"


def _code(text: str) -> str:
    """Return a name as Markdown code: in a table only the bar and the backtick could break out of it."""
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|$#" else c for c in printable(text))


def _terminal_table(part: Comparison) -> Table:
    shown = columns_of(part, "terminal")
    marks = " ".join(_marks(part)).strip()
    table = Table(
        title=Text(part.title),
        caption=Text(
            f"Percent, mean ± standard deviation (n-1) over n runs; the headline is the first column. {marks}"
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("\nstrategy", overflow="fold", min_width=18, max_width=28)
    for column in shown:
        table.add_column(column.titles["terminal"], justify="right")
    table.add_column("\nn", justify="right")
    for row in part.rows:
        cells = []
        for column in shown:
            # Without the spaces, and with the means alone of costs, the columns fit on 100 characters.
            text = (
                _mean(column, row).replace(" ± ", "±")
                if column.metric
                else column.text(row.spread(column.number).mean or 0)
            )
            cells.append(Text(text, style="bold" if column.is_best(part, row) else ""))
        name = Text(row.label + _mark(row), style="dim" if row.is_reference else "")
        table.add_row(name, *cells, str(len(row.runs)))
    return table
