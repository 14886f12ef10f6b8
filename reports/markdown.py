"""The comparison as Markdown; the template report.md.jinja has its words."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from clbench.reports.columns import Column, columns_of, percent, signed, words
from clbench.reports.comparison import SETTING_NAMES, Comparison, protocol, text_of
from clbench.reports.strategy_runs import StrategyRuns, repetition
from clbench.reports.templates import environment
from clbench.reports.verdict import all_ranks, verdict
from clbench.results.metrics import METRICS
from clbench.results.statistics import Interval, Ranks, variances
from clbench.support.text import printable

# The tables have room for the intervals of these; comparison.csv has those of every metric.
WITH_INTERVAL = {"average_accuracy", "forgetting"}


def to_markdown(parts: Sequence[Comparison]) -> str:
    """Return the whole comparison: tables, each run, notes, the definitions of the metrics."""
    return "\n".join([*(section(part) for part in parts), definitions()])


def section(part: Comparison) -> str:
    """Return the tables and notes of one scenario and setting."""
    shown = columns_of(part, "markdown")
    tables = [
        [column for column in shown if column.unit in units]
        for units in (("%",), ("points",), ("steps", "s"), ("items", "B"))
    ]
    lower = " and ".join(words(name) for name, metric in METRICS.items() if metric.better == "lower")
    repetitions = list(dict.fromkeys(repetition(run) for row in part.rows for run in row.runs))
    # Class order and initialisation are told apart where a strategy has every seed with every order.
    found = [(row, variances(row.by_repetition("average_accuracy"))) for row in part.rows]
    sources = [(row, sources) for row, sources in found if sources is not None]
    return _macro("section")(part, *tables, lower, repetitions, sources, *_options(part))


def rank_section(parts: Sequence[Comparison]) -> str:
    """Return the mean ranks over the scenarios of each setting; nothing below five scenarios."""
    found = [
        (f"Mean ranks over {one.n} scenarios, {SETTING_NAMES[setting]}", rank_sentence(one, code), one.mean)
        for setting, one in all_ranks(parts).items()
    ]
    return _macro("ranks")(found)


def rank_sentence(found: Ranks, shown: Callable[[str], str] = str) -> str:
    """Return a sentence on the mean ranks that are not told apart; `shown` formats a label for the output."""
    groups = "; ".join(", ".join(map(shown, group)) for group in found.groups) or "none"
    friedman = "" if found.p is None else f" Friedman's test that all are equal: p = {found.p:.2g}."
    return (
        f"By average accuracy, 1 is best. Ranks nearer than {found.critical_difference:.2f} (Nemenyi, 0.05; Demsar "
        f"2006) are not told apart: {groups}.{friedman}"
    )


def definitions() -> str:
    """Return the definition of every metric."""
    return _macro("definitions")(METRICS)


def code(text: str) -> str:
    """Return a name as code: in a table only the bar and the backtick could break out of it."""
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>|$#" else c for c in printable(text))


@cache
def _macro(name: str) -> Callable[..., str]:
    shared = {
        "code": code,
        "text": escape,
        "words": words,
        "percent": percent,
        "signed": signed,
        "verdict": verdict,
        "cell": _cell,
        "bracket": _bracket,
        "digits": digits,
        "pairs": _pairs,
    }
    template = environment(escaped=False).get_template("report.md.jinja", globals=shared)
    # A text ends with one line break, as the lines of a joined list do.
    return lambda *given: str(getattr(template.module, name)(*given)).removesuffix("\n")


def digits(value: float | None, form: str = ".2g") -> str:
    """Return a number in a format, and - for none."""
    return "-" if value is None else format(value, form)


def _cell(part: Comparison, row: StrategyRuns, column: Column) -> str:
    text = column.mean(row)
    text = f"**{text}**" if column.is_best(part, row) else text
    return text + _bracket(row.interval(column.number) if column.number in WITH_INTERVAL else None)


def _bracket(ends: Interval | None) -> str:
    return "" if ends is None else f" [{percent(ends.low)}, {percent(ends.high)}]"


def _pairs(values: dict[str, str]) -> str:
    return printable(", ".join(f"{key}={value}" for key, value in values.items()))


def _options(part: Comparison) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the options and other fields that each strategy was run with, and the fields that all have in common."""
    runs = {row.label: row.runs[0] for row in part.rows if row.is_headline}
    protocols = {label: {k: text_of(v) for k, v in protocol(run).items()} for label, run in runs.items()}
    first = next(iter(protocols.values()))
    same = {k: v for k, v in first.items() if all(fields.get(k) == v for fields in protocols.values())}

    def own(label: str, options: dict[str, Any]) -> dict[str, str]:
        return {k: text_of(v) for k, v in options.items()} | {
            k: v for k, v in protocols[label].items() if k not in same
        }

    listed = {label: own(label, run.config.get("strategy_options", {})) for label, run in runs.items()}
    return listed, {k: v for k, v in same.items() if v != "none"}
