"""The comparison of strategies as tables: for the terminal, as Markdown, and as CSV with every digit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clbench.config.errors import ConfigError
from clbench.config.run import NOT_IDENTITY
from clbench.reports import differences
from clbench.reports.protocol import broken_rules
from clbench.results.metrics import DEFINITIONS
from clbench.results.record import MatrixName
from clbench.results.result import Floats, Result
from clbench.results.statistics import Interval, Spread, interval, spread, variances
from clbench.support.text import printable

if TYPE_CHECKING:
    from pandas import DataFrame

SETTINGS = {"class": "class-incremental", "task": "task-incremental", "domain": "domain-incremental"}
MATRICES: dict[MatrixName, str] = {"class_incremental": "class-incremental", "task_aware": "task-aware"}
METRICS = {*DEFINITIONS, *(f"{name}_accuracy" for name in MATRICES)}
LOWER_IS_BETTER = {"forgetting", "intransigence"}

# Runs that differ in these alone are repetitions of one another: what the mean and the sd are taken over.
REPETITION = {"seed", "class_order", "class_order_seed"}
# What the rows and the title of a comparison say already.
SHOWN = {"strategy", "strategy_options", "scenario"}
# These count only where they are set: a strategy without a memory has no budget to differ in.
MEMORY = {"memory_size", "memory_per_class"}

# Where the Markdown tables have room for an interval; comparison.csv has those of every metric.
WITH_INTERVAL = {"average_accuracy", "forgetting"}

Numbers = dict[str, float | None]
# Seed, and class order with the seed it was drawn from.
Repetition = tuple[int, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Row:
    """One line of a comparison: a strategy under one of its classifiers, over its repetitions."""

    label: str
    classifier: str
    runs: list[Result]
    numbers: list[Numbers]

    @property
    def is_reference(self) -> bool:
        """Whether the strategy reads the data of all tasks, and so is no competitor."""
        return self.runs[0].is_reference

    @property
    def is_naive(self) -> bool:
        """Whether the strategy is the lower reference: training goes on with nothing against forgetting."""
        return self.runs[0].strategy_name == "naive"

    @property
    def is_headline(self) -> bool:
        """Whether this is the strategy's headline classifier."""
        return self.classifier == self.runs[0].headline_classifier

    @property
    def matrices(self) -> Floats:
        """Headline matrices of the runs, float [n, T, T]."""
        found = [run.classifiers[self.classifier][run.headline] for run in self.runs]
        return np.stack([matrix for matrix in found if matrix is not None])

    def spread(self, name: str) -> Spread:
        """Return mean, sd and n of a number over the runs that define it."""
        return self._spreads.get(name, Spread(None, None, 0))

    @cached_property
    def _spreads(self) -> dict[str, Spread]:
        # Made once: a report asks for the same ones again and again.
        names = dict.fromkeys(name for numbers in self.numbers for name in numbers)
        return {name: spread(numbers.get(name) for numbers in self.numbers) for name in names}

    def interval(self, name: str) -> Interval | None:
        """Return the 95 % confidence interval of the mean of a number; None below two runs that define it."""
        return interval(numbers.get(name) for numbers in self.numbers)

    def by_repetition(self, name: str) -> dict[Repetition, float | None]:
        """Return a number of each run by (seed, class order), as `clbench.statistics.paired` takes it."""
        return {_repetition(run): n.get(name) for run, n in zip(self.runs, self.numbers, strict=True)}


@dataclass(frozen=True)
class Comparison:
    """The runs of one scenario in one setting over tasks of the same sizes, and what to know about them."""

    scenario: str
    setting: str
    headline: MatrixName
    task_sizes: tuple[int, ...]
    rows: list[Row]
    notes: list[str]

    @property
    def title(self) -> str:
        """Scenario, setting and tasks in a few words."""
        n, sizes = len(self.task_sizes), sorted(set(self.task_sizes))
        each = f"{sizes[0]}" if len(sizes) == 1 else "+".join(map(str, self.task_sizes))
        tasks, classes = "task" if n == 1 else "tasks", "class" if each == "1" else "classes"
        return f"{self.scenario}, {SETTINGS[self.setting]}, {n} {tasks} of {each} {classes}"

    @cached_property
    def differences(self) -> differences.Differences:
        """Which strategies differ: tested once, however many tables say so."""
        return differences.differences(self)

    def matrix(self, name: MatrixName) -> str:
        """Return what a matrix is called in this setting."""
        return matrix_label(name, self.setting)

    def names(self, ending: str) -> list[str]:
        """Return the names of the numbers that end so, in order of first appearance."""
        every = (name for row in self.rows for numbers in row.numbers for name in numbers)
        return list(dict.fromkeys(name for name in every if name.endswith(ending)))


def matrix_label(name: MatrixName, setting: str) -> str:
    """Return what a matrix is called in a setting: where all tasks have the same outputs, no classes are told apart."""
    return SETTINGS["domain"] if setting == "domain" and name == "class_incremental" else MATRICES[name]


def compare(results: Sequence[Result]) -> list[Comparison]:
    """Group runs by scenario, setting and task sizes; raises ConfigError when there are none."""
    if not results:
        raise ConfigError("results=[]: at least one run is accepted")
    groups: dict[tuple[str, str, MatrixName, tuple[int, ...]], list[Result]] = {}
    for result in results:
        sizes = tuple(len(classes) for classes in result.task_classes)
        groups.setdefault((result.scenario, result.setting, result.headline, sizes), []).append(result)
    return [_comparison(key, group) for key, group in groups.items()]


def comparison(parts: Sequence[Comparison]) -> "DataFrame":
    """Return one row a strategy and classifier: the mean of each number under its name, `_sd` (n-1), `_n`.

    `_low` and `_high`, the 95 % confidence interval of the mean, are there for metrics, not for costs.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "scenario": part.scenario,
                "setting": part.setting,
                "headline": part.headline,
                "task_sizes": " ".join(map(str, part.task_sizes)),
                "strategy": row.label,
                "classifier": row.classifier,
                "family": row.runs[0].family,
                "reference": row.is_reference,
                "n": len(row.runs),
                "seeds": " ".join(str(run.seed) for run in row.runs),
            }
            | {
                name + ending: value
                for name in dict.fromkeys(name for numbers in row.numbers for name in numbers)
                for ending, value in _columns(row, name).items()
            }
            for part in parts
            for row in part.rows
        ]
    )


def _columns(row: Row, name: str) -> Numbers:
    columns = dict(zip(("", "_sd", "_n"), row.spread(name), strict=True))
    if name in METRICS:
        ends = row.interval(name)
        columns |= {"_low": ends and ends.low, "_high": ends and ends.high}
    return columns


def runs(parts: Sequence[Comparison]) -> "DataFrame":
    """Return one row a run and classifier, with its seed, class order and every number."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "scenario": part.scenario,
                "setting": part.setting,
                "headline": part.headline,
                "task_sizes": " ".join(map(str, part.task_sizes)),
                "strategy": row.label,
                "classifier": row.classifier,
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


def differences_frame(parts: Sequence[Comparison]) -> "DataFrame":
    """Return every competitor minus the best one and minus naive, one a row: `differences.Difference` in full."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "scenario": part.scenario,
                "setting": part.setting,
                "task_sizes": " ".join(map(str, part.task_sizes)),
                "strategy": one.ours.label,
                "minus": one.theirs.label,
                "n": one.paired.n,
                "difference": one.paired.difference,
                "low": one.paired.interval and one.paired.interval.low,
                "high": one.paired.interval and one.paired.interval.high,
                "p": one.paired.p,
                "p_holm": one.p,
                "tests": found.tests,
                "smallest_p_holm": found.smallest_p,
                "wilcoxon_p": one.paired.wilcoxon_p,
                "effect_size": one.paired.effect_size,
                "probability_of_improvement": one.paired.probability_of_improvement,
                "runs_needed": one.runs_needed,
            }
            for part in parts
            for found in [part.differences]
            for one in (*found.against_best, *found.against_naive)
        ],
        columns=[
            *(
                "scenario",
                "setting",
                "task_sizes",
                "strategy",
                "minus",
                "n",
                "difference",
                "low",
                "high",
                "p",
                "p_holm",
            ),
            *("tests", "smallest_p_holm", "wilcoxon_p", "effect_size", "probability_of_improvement", "runs_needed"),
        ],
    )


def rank_section(parts: Sequence[Comparison]) -> str:
    """Return the mean ranks over the scenarios of each setting as Markdown; nothing below five scenarios."""
    lines: list[str] = []
    for setting, found in differences.all_ranks(parts).items():
        groups = "; ".join(", ".join(map(_code, group)) for group in found.groups) or "none"
        friedman = "" if found.p is None else f" Friedman's test that all are equal: p = {found.p:.2g}."
        lines += [
            f"## Mean ranks over {found.n} scenarios, {SETTINGS[setting]}",
            "",
            f"By average accuracy, 1 is best. Ranks nearer than {found.critical_difference:.2f} (Nemenyi, 0.05; Demsar "
            f"2006) are not told apart: {groups}.{friedman}",
            "",
            "| strategy | mean rank |",
            "|---|---:|",
            *(f"| {_code(label)} | {rank:.2f} |" for label, rank in found.mean.items()),
            "",
        ]
    return "\n".join(lines)


def to_csv(frame: "DataFrame") -> str:
    """Return a table as CSV: unrounded, undefined numbers empty."""
    return frame.to_csv(index=False, lineterminator="\n")


def render(parts: Sequence[Comparison]) -> Group:
    """Return the comparison for a terminal: a table for each scenario and setting, then the notes."""
    shown: list[Table | Text] = []
    for part in parts:
        shown.append(_terminal_table(part))
        shown.append(Text(f"verdict: {differences.verdict(part)}", style="bold"))
        shown.extend(Text(f"note: {note}", style="yellow") for note in part.notes)
    return Group(*shown)


def to_markdown(parts: Sequence[Comparison]) -> str:
    """Return the whole comparison as Markdown: tables, each run, notes, the definitions of the metrics."""
    return "\n".join([*(section(part) for part in parts), definitions()])


def section(part: Comparison) -> str:
    """Return the tables and notes of one scenario and setting as Markdown."""
    other: MatrixName = "task_aware" if part.headline == "class_incremental" else "class_incremental"
    accuracies = [
        ("average_accuracy", f"**{part.matrix(part.headline)} (headline)**"),
        (f"{other}_accuracy", part.matrix(other)),
    ]
    of_accuracy = [name for name in DEFINITIONS if name.endswith(("accuracy", "without_first"))]
    rest = [name for name in DEFINITIONS if name not in of_accuracy]
    columns = [*accuracies, *((name, words(name)) for name in of_accuracy if name != "average_accuracy")]
    seeds = list(dict.fromkeys(_repetition(run) for row in part.rows for run in row.runs))
    return "\n".join(
        [
            f"## {escape(part.title)}",
            "",
            f"**{escape(differences.verdict(part))}**",
            "",
            f"The headline is the {part.matrix(part.headline)} average accuracy: {rule(part)} "
            "A row such as `icarl (linear)` is a further classifier of the same runs. "
            "Mean ± standard deviation (n-1) over n runs, in brackets the 95 % confidence interval of the mean "
            "(Student's t; BCa bootstrap from n = 20); one run has neither. "
            "The best competitor is bold. What is undefined is -, and for all rows left out.",
            "",
            "### Accuracy (%)",
            "",
            *_markdown_table(part, columns),
            "",
            *_marks(part),
            *_differences(part),
            *_sources(part),
            "### Forgetting and transfer (percentage points; of forgetting and intransigence less is better)",
            "",
            *_markdown_table(part, [(name, words(name)) for name in rest]),
            "",
            "### Cost",
            "",
            *_markdown_table(part, [(n, words(n)) for n in ("steps", *part.names("seconds"))]),
            "",
            "### Storage kept from task to task (the most after any task; extra: all but the model)",
            "",
            *_markdown_table(part, [(name, words(name)) for name in (*part.names("_items"), *part.names("_bytes"))]),
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
    protocols = {label: {k: _text(v) for k, v in _protocol(run).items()} for label, run in runs.items()}
    first = next(iter(protocols.values()))
    same = {k: v for k, v in first.items() if all(protocol.get(k) == v for protocol in protocols.values())}
    listed = {
        label: {k: _text(v) for k, v in run.config.get("strategy_options", {}).items()}
        | {k: v for k, v in protocols[label].items() if k not in same}
        for label, run in runs.items()
    }
    lines = [f"- {_code(label)}: {_code(_pairs(values)) if values else 'none'}" for label, values in listed.items()]
    shared = _pairs({k: v for k, v in same.items() if v != "none"})
    return ["### Hyper-parameters", "", *lines, f"- the same for all: {_code(shared)}", ""]


def definitions() -> str:
    """Return the definition of every metric as Markdown."""
    lines = [f"- **{words(name)}**: {escape(text)}" for name, text in DEFINITIONS.items()]
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
        f"{_signed(one.paired.difference)}{_bracket(one.paired.interval)} | {_digits(one.p)} | "
        f"{_digits(one.paired.wilcoxon_p)} | {_digits(one.paired.effect_size, '.1f')} | "
        f"{_share(one.paired.probability_of_improvement)} | {_digits(one.runs_needed, 'd')} |"
        for one in (*found.against_best, *found.against_naive)
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


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{round(100 * value, 1) + 0.0:+.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _digits(value: float | None, form: str = ".2g") -> str:
    return "-" if value is None else format(value, form)


def _comparison(key: tuple[str, str, MatrixName, tuple[int, ...]], results: list[Result]) -> Comparison:
    scenario, setting, headline, sizes = key
    labels: dict[str, list[Result]] = {}
    for result in results:
        labels.setdefault(printable(result.strategy), []).append(result)
    notes: list[str] = []
    groups: list[tuple[str, list[Result]]] = []
    for label, of_label in labels.items():
        for variant, group in _variants(of_label):
            groups.append((label + variant, _latest(label + variant, group, notes)))
    joints = {_repetition(run): run for _, group in groups for run in group if run.strategy_name == "joint"}
    strategies = [
        [_row(label, classifier, group, joints) for classifier in group[0].classifiers] for label, group in groups
    ]
    strategies.sort(key=lambda rows: (not rows[0].is_reference, -(rows[0].spread("average_accuracy").mean or 0.0)))
    rows = [row for rows in strategies for row in rows]
    notes += _remarks(groups)
    return Comparison(scenario, setting, headline, sizes, rows, notes)


def _variants(results: list[Result]) -> list[tuple[str, list[Result]]]:
    """Part runs of one label that are no repetitions of each other, each part with the fields that differ."""
    fields = [_protocol(result) | result.config.get("strategy_options", {}) for result in results]
    differing = [
        key
        for key in dict.fromkeys(key for of_run in fields for key in of_run)
        if len({_text(of_run.get(key)) for of_run in fields}) > 1
    ]
    variants: dict[str, list[Result]] = {}
    for result, of_run in zip(results, fields, strict=True):
        text = ", ".join(f"{key}={_text(of_run.get(key))}" for key in differing)
        variants.setdefault(f" ({text})" if text else "", []).append(result)
    return list(variants.items())


def _latest(label: str, results: list[Result], notes: list[str]) -> list[Result]:
    """Keep the newest run of each seed and class order, in order of seeds, and note what is left out."""
    newest = {_repetition(run): run for run in sorted(results, key=lambda run: run.created)}
    if len(newest) < len(results):
        notes.append(f"{label}: {len(results) - len(newest)} older run(s) of the same seed are left out.")
    return sorted(newest.values(), key=lambda run: (run.seed, run.class_order))


def _row(label: str, classifier: str, runs: list[Result], joints: dict[Repetition, Result]) -> Row:
    known = [run for run in runs if classifier in run.classifiers]
    numbers = [_numbers(run, classifier, joints.get(_repetition(run))) for run in known]
    headline = classifier == runs[0].headline_classifier
    shown = label if headline else f"{label} ({printable(classifier)})"
    return Row(shown, classifier, known, numbers)


def _numbers(run: Result, classifier: str, joint: Result | None) -> Numbers:
    # That joint falls short of itself by nothing is no finding.
    reference = None if run.strategy_name == "joint" else joint
    numbers: Numbers = dict(run.summary(reference, classifier=classifier))
    for name in MATRICES:
        numbers[f"{name}_accuracy"] = run.summary(classifier=classifier, matrix=name)["average_accuracy"]
    numbers["steps"] = run.steps
    numbers["seconds"] = sum(run.seconds.values())
    numbers |= {f"{purpose}_seconds": value for purpose, value in run.seconds.items()}
    numbers |= {f"{kind}_items": value for kind, value in run.stored_items.items()}
    numbers |= {f"{kind}_bytes": value for kind, value in run.stored_bytes.items()}
    numbers["all_bytes"] = sum(run.stored_bytes.values())
    numbers["extra_bytes"] = sum(value for kind, value in run.stored_bytes.items() if kind != "model")
    return numbers


def _remarks(groups: list[tuple[str, list[Result]]]) -> list[str]:
    """Say what keeps the rows of a comparison from being comparable, and what the runs warned of."""
    runs = [run for _, group in groups for run in group]
    notes = []
    protocols = {label: _protocol(group[0]) for label, group in groups}
    for key in dict.fromkeys(key for protocol in protocols.values() for key in protocol):
        if key == "memory_policy":
            continue  # how exemplars are chosen is part of a method
        values = {label: _text(protocol.get(key)) for label, protocol in protocols.items()}
        if key in MEMORY:
            values = {label: value for label, value in values.items() if value != "none"}
        if len(set(values.values())) > 1:
            notes.append(f"Not the same for all strategies: {key} is {_by_value(values)}.")
    seeds = {label: ", ".join(str(run.seed) for run in group) for label, group in groups}
    if len(set(seeds.values())) > 1:
        notes.append(f"Not the same seeds for all strategies: {_by_value(seeds)}.")
    orders: dict[int, set[tuple[tuple[int, ...], str]]] = {}
    for run in runs:
        orders.setdefault(run.seed, set()).add(_repetition(run)[1])
    if len(groups) > 1 and any(len(of_seed) > 1 for of_seed in orders.values()):
        notes.append("Runs of the same seed have different class orders.")
    versions = {f"{label} seed {run.seed}": run.version for label, group in groups for run in group}
    if len(set(versions.values())) > 1:
        notes.append(f"Made by different versions of clbench: {', '.join(sorted(set(versions.values())))}.")
    if single := [label for label, group in groups if len(group) == 1]:
        notes.append(f"One run says little, there is no standard deviation: {', '.join(single)}.")
    for label, group in groups:
        for how in dict.fromkeys(run.config.get("tuned_by") for run in group):
            if how:
                notes.append(f"{label}: hyper-parameters chosen by {how}.")
    notes += [f"{text} ({rule})" for rule, text in broken_rules(groups)]
    names = {run.strategy_name for run in runs}
    if "joint" not in names:
        notes.append("No joint run: there is no upper reference, and intransigence is undefined.")
    if "naive" not in names:
        notes.append("No naive run: there is no lower reference.")
    sources: dict[str, list[str]] = {}
    for label, group in groups:
        if group[0].features is not None:
            sources.setdefault(group[0].features, []).append(label)
    notes += [f"Features {source}: {', '.join(labels)}." for source, labels in sources.items()]
    warned: dict[str, dict[str, list[int]]] = {}
    for label, group in groups:
        for run in group:
            for text in run.warnings:
                warned.setdefault(text, {}).setdefault(label, []).append(run.seed)
    for text, where in warned.items():
        who = "; ".join(f"{label}, seed {', '.join(map(str, seeds))}" for label, seeds in where.items())
        if len(groups) > 1 and sum(map(len, where.values())) == len(runs):
            who = "all runs"
        notes.append(f"{text} ({who})")
    return [printable(note) for note in notes]


def _protocol(run: Result) -> dict[str, Any]:
    """Return the configuration fields beside the strategy that can change the numbers."""
    return {k: v for k, v in run.config.items() if k not in NOT_IDENTITY | REPETITION | SHOWN}


def _by_value(values: dict[str, str]) -> str:
    """Return `5 (lwf), 1 (the others)`: the most frequent value is that of the others."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    *few, most = sorted(labels, key=lambda value: len(labels[value]))
    parts = [f"{value} ({', '.join(labels[value])})" for value in few]
    return ", ".join([*parts, f"{most} ({'the others' if len(labels[most]) > 1 else labels[most][0]})"])


def _repetition(run: Result) -> Repetition:
    # Where tasks differ in more than their classes (permutations, say), the seed of the order is all that tells them.
    return run.seed, (tuple(run.class_order), str(run.config.get("class_order_seed")))


def _pairs(values: dict[str, str]) -> str:
    return printable(", ".join(f"{key}={value}" for key, value in values.items()))


def _text(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def words(name: str) -> str:
    """Return a name of a number as words that a Markdown table can hold."""
    return printable(name).replace("_", " ").replace("|", "/")


def percent(value: float) -> str:
    """Return a share as percent, with one decimal place."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return f"{round(100 * value, 1) + 0.0:.1f}"


def _number(name: str, value: float) -> str:
    if name in METRICS:
        return percent(value)
    return f"{value:.1f}" if name.endswith("seconds") else f"{value:.0f}"


def _cell(row: Row, name: str) -> str:
    mean, sd, n = row.spread(name)
    if mean is None:
        return "-"
    text = _number(name, mean)
    # That a count is the same in every run needs no saying.
    if sd is not None and (sd > 0 or name in METRICS):
        text += f" ± {_number(name, sd)}"
    return text if n == len(row.runs) else f"{text} (n={n})"


def is_best(part: Comparison, row: Row, name: str) -> bool:
    """Tell whether the row is the best competitor in a metric, as printed: equal numbers are equally bold."""
    if name not in METRICS or row.is_reference:
        return False
    means = {other.label: other.spread(name).mean for other in part.rows if not other.is_reference}
    known = {label: mean for label, mean in means.items() if mean is not None}
    if len(known) < 2 or row.label not in known:
        return False
    best = min(known.values()) if name in LOWER_IS_BETTER else max(known.values())
    return percent(known[row.label]) == percent(best)


def _mark(row: Row) -> str:
    return " †" if row.is_reference else " ‡" if row.is_naive else ""


def _marks(part: Comparison) -> list[str]:
    lines = []
    if any(row.is_reference for row in part.rows):
        lines += ["† a reference, not a competitor: it reads the data of all tasks.", ""]
    if any(_mark(row) == " ‡" for row in part.rows):
        lines += ["‡ the lower reference: training goes on with nothing against forgetting.", ""]
    return lines


def _markdown_table(part: Comparison, columns: list[tuple[str, str]]) -> list[str]:
    """Return the lines of a table of those columns that any row has a number for."""
    columns = [column for column in columns if any(row.spread(column[0]).n for row in part.rows)]
    lines = [
        "| strategy | family | n | " + " | ".join(title for _, title in columns) + " |",
        "|---|---|---:|" + "---:|" * len(columns),
    ]
    for row in part.rows:
        cells = []
        for name, _ in columns:
            cell = _cell(row, name)
            cell = f"**{cell}**" if is_best(part, row, name) else cell
            cells.append(cell + _bracket(row.interval(name) if name in WITH_INTERVAL else None))
        head = f"| {_code(row.label)}{_mark(row)} | {escape(row.runs[0].family)} | {len(row.runs)} | "
        lines.append(head + " | ".join(cells) + " |")
    return lines


def _runs_line(row: Row, repetitions: list[Repetition]) -> str:
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
    other: MatrixName = "task_aware" if part.headline == "class_incremental" else "class_incremental"
    columns = [
        ("average_accuracy", part.matrix(part.headline).replace("incremental", "incr.") + "\naccuracy"),
        (f"{other}_accuracy", part.matrix(other).replace("incremental", "incr.") + "\naccuracy"),
        ("average_incremental_accuracy", "average\nincremental"),
        ("forgetting", "\nforgetting"),
        ("learning_accuracy", "learning\naccuracy"),
    ]
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
    for _, title in columns:
        table.add_column(title, justify="right")
    for title in ("\nseconds", "extra\nkB", "\nn"):
        table.add_column(title, justify="right")
    for row in part.rows:
        cells = [
            # Without the spaces, seven columns fit on 100 characters.
            Text(_cell(row, name).replace(" ± ", "±"), style="bold" if is_best(part, row, name) else "")
            for name, _ in columns
        ]
        table.add_row(
            Text(row.label + _mark(row), style="dim" if row.is_reference else ""),
            *cells,
            f"{row.spread('seconds').mean or 0:.1f}",
            f"{(row.spread('extra_bytes').mean or 0) / 1000:.1f}",
            str(len(row.runs)),
        )
    return table
