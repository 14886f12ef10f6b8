"""Comparisons: the runs of one scenario in one setting by strategy, with notes on what limits comparing them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from clbench.config.errors import ConfigError
from clbench.config.run import NOT_IDENTITY
from clbench.reports.chart import Look
from clbench.reports.differences import Differences, differences
from clbench.reports.protocol import broken_rules
from clbench.reports.strategy_runs import Numbers, Repetition, StrategyRuns, repetition
from clbench.results.record import MatrixName
from clbench.results.result import Result
from clbench.support.text import printable

SETTING_NAMES = {"class": "class-incremental", "task": "task-incremental", "domain": "domain-incremental"}
MATRIX_NAMES: dict[MatrixName, str] = {"class_incremental": "class-incremental", "task_aware": "task-aware"}

# Runs that differ in these fields alone repeat each other: mean and standard deviation are taken over them.
REPETITION = {"seed", "class_order", "class_order_seed"}
# The rows and the title of a comparison show these fields already.
SHOWN = {"strategy", "strategy_options", "scenario"}
# A strategy without a memory has no budget, so that these fields count only where they are set.
MEMORY = {"memory_size", "memory_per_class"}


@dataclass(frozen=True)
class Comparison:
    """The runs of one scenario in one setting over tasks of the same sizes, with notes for the reader."""

    scenario: str
    setting: str
    headline: MatrixName
    task_sizes: tuple[int, ...]
    rows: list[StrategyRuns]
    notes: list[str]

    @property
    def title(self) -> str:
        """Scenario, setting and tasks in a few words."""
        n, sizes = len(self.task_sizes), sorted(set(self.task_sizes))
        each = f"{sizes[0]}" if len(sizes) == 1 else "+".join(map(str, self.task_sizes))
        tasks, classes = "task" if n == 1 else "tasks", "class" if each == "1" else "classes"
        return f"{self.scenario}, {SETTING_NAMES[self.setting]}, {n} {tasks} of {each} {classes}"

    @cached_property
    def differences(self) -> Differences:
        """The tested differences between the strategies, computed once for all tables."""
        return differences(self.rows)

    @property
    def rule(self) -> str:
        """A sentence that says which outputs compete in the headline matrix."""
        if self.headline == "task_aware":
            return "the task is known and only its own outputs compete."
        if self.setting == "domain":
            return "all tasks have the same outputs, and which task an image is from is not known."
        return "the outputs of all tasks seen so far compete."

    @property
    def marks(self) -> list[str]:
        """The meaning of each mark that its rows have, as sentences."""
        meanings = {
            " †": "† a reference, not a competitor: it reads the data of all tasks.",
            " ‡": "‡ the lower reference: training goes on with nothing against forgetting.",
        }
        return [text for mark, text in meanings.items() if any(row.mark == mark for row in self.rows)]

    def matrix(self, name: MatrixName) -> str:
        """Return the name of a matrix in this setting."""
        return matrix_label(name, self.setting)

    def names(self, ending: str) -> list[str]:
        """Return the names of the numbers that end so, in order of first appearance."""
        every = (name for row in self.rows for numbers in row.numbers for name in numbers)
        return list(dict.fromkeys(name for name in every if name.endswith(ending)))


def matrix_label(name: MatrixName, setting: str) -> str:
    """Return the name of a matrix in a setting; where all tasks share their outputs, it is domain-incremental."""
    return SETTING_NAMES["domain"] if setting == "domain" and name == "class_incremental" else MATRIX_NAMES[name]


def compare(results: Sequence[Result]) -> list[Comparison]:
    """Group runs by scenario, setting and task sizes; raises ConfigError when there are none."""
    if not results:
        raise ConfigError("results=[]: at least one run is accepted")
    groups: dict[tuple[str, str, MatrixName, tuple[int, ...]], list[Result]] = {}
    for result in results:
        sizes = tuple(len(classes) for classes in result.task_classes)
        groups.setdefault((result.scenario, result.setting, result.recorded.headline.matrix, sizes), []).append(result)
    parts = [_comparison(key, group) for key, group in groups.items()]
    labels = dict.fromkeys(row.label for part in parts for row in part.rows if not row.is_line)
    looks = {label: Look("competitor", place) for place, label in enumerate(labels)}
    for part in parts:
        part.rows[:] = [replace(row, look=looks.get(row.label, row.look)) for row in part.rows]
    return parts


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
    joints = {repetition(run): run for _, group in groups for run in group if run.recorded.strategy.name == "joint"}
    strategies = [
        [_row(label, classifier, group, joints) for classifier in group[0].classifiers] for label, group in groups
    ]
    strategies.sort(key=lambda rows: (not rows[0].is_reference, -(rows[0].spread("average_accuracy").mean or 0.0)))
    rows = [row for rows in strategies for row in rows]
    notes += _remarks(groups)
    return Comparison(scenario, setting, headline, sizes, rows, notes)


def _variants(results: list[Result]) -> list[tuple[str, list[Result]]]:
    """Part runs of one label that are no repetitions of each other, each part with the fields that differ."""
    fields = [protocol(result) | result.config.get("strategy_options", {}) for result in results]
    differing = [
        key
        for key in dict.fromkeys(key for of_run in fields for key in of_run)
        if len({text_of(of_run.get(key)) for of_run in fields}) > 1
    ]
    variants: dict[str, list[Result]] = {}
    for result, of_run in zip(results, fields, strict=True):
        text = ", ".join(f"{key}={text_of(of_run.get(key))}" for key in differing)
        variants.setdefault(f" ({text})" if text else "", []).append(result)
    return list(variants.items())


def _latest(label: str, results: list[Result], notes: list[str]) -> list[Result]:
    """Keep the newest run of each seed and class order, in order of seeds, and note how many are left out."""
    newest = {repetition(run): run for run in sorted(results, key=lambda run: run.recorded.created)}
    if len(newest) < len(results):
        notes.append(f"{label}: {len(results) - len(newest)} older run(s) of the same seed are left out.")
    return sorted(newest.values(), key=lambda run: (run.seed, run.recorded.class_order))


def _row(label: str, classifier: str, runs: list[Result], joints: dict[Repetition, Result]) -> StrategyRuns:
    known = [run for run in runs if classifier in run.classifiers]
    numbers = [_numbers(run, classifier, joints.get(repetition(run))) for run in known]
    headline = classifier == runs[0].recorded.headline.classifier
    shown = label if headline else f"{label} ({printable(classifier)})"
    look = Look("upper" if runs[0].is_reference else "lower")
    return StrategyRuns(shown, classifier, known, numbers, look)


def _numbers(run: Result, classifier: str, joint: Result | None) -> Numbers:
    # That joint falls short of itself by nothing is no finding.
    reference = None if run.recorded.strategy.name == "joint" else joint
    numbers: Numbers = dict(run.summary(reference, classifier=classifier))
    for name in MATRIX_NAMES:
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
    """Return notes on what makes the rows hard to compare, and the warnings of the runs."""
    runs = [run for _, group in groups for run in group]
    notes = []
    protocols = {label: protocol(group[0]) for label, group in groups}
    for key in dict.fromkeys(key for protocol in protocols.values() for key in protocol):
        if key == "memory_policy":
            continue  # how exemplars are chosen is part of a method
        values = {label: text_of(protocol.get(key)) for label, protocol in protocols.items()}
        if key in MEMORY:
            values = {label: value for label, value in values.items() if value != "none"}
        if len(set(values.values())) > 1:
            notes.append(f"Not the same for all strategies: {key} is {_by_value(values)}.")
    seeds = {label: ", ".join(str(run.seed) for run in group) for label, group in groups}
    if len(set(seeds.values())) > 1:
        notes.append(f"Not the same seeds for all strategies: {_by_value(seeds)}.")
    orders: dict[int, set[tuple[tuple[int, ...], str]]] = {}
    for run in runs:
        orders.setdefault(run.seed, set()).add(repetition(run)[1])
    if len(groups) > 1 and any(len(of_seed) > 1 for of_seed in orders.values()):
        notes.append("Runs of the same seed have different class orders.")
    versions = {f"{label} seed {run.seed}": run.recorded.clbench for label, group in groups for run in group}
    if len(set(versions.values())) > 1:
        notes.append(f"Made by different versions of clbench: {', '.join(sorted(set(versions.values())))}.")
    if single := [label for label, group in groups if len(group) == 1]:
        notes.append(f"One run says little, there is no standard deviation: {', '.join(single)}.")
    for label, group in groups:
        for how in dict.fromkeys(run.config.get("tuned_by") for run in group):
            if how:
                notes.append(f"{label}: hyper-parameters chosen by {how}.")
    notes += [f"{text} ({rule})" for rule, text in broken_rules(groups)]
    names = {run.recorded.strategy.name for run in runs}
    if "joint" not in names:
        notes.append("No joint run: there is no upper reference, and intransigence is undefined.")
    if "naive" not in names:
        notes.append("No naive run: there is no lower reference.")
    sources: dict[str, list[str]] = {}
    for label, group in groups:
        if group[0].recorded.strategy.features is not None:
            sources.setdefault(group[0].recorded.strategy.features, []).append(label)
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


def protocol(run: Result) -> dict[str, Any]:
    """Return the configuration fields beside the strategy that can change the numbers; code as one digest."""
    found = {k: v for k, v in run.config.items() if k not in NOT_IDENTITY | REPETITION | SHOWN | {"code"}}
    code = sorted((run.config.get("code") or {}).values())
    return found | ({"code": hashlib.sha256(repr(code).encode()).hexdigest()[:8]} if code else {})


def _by_value(values: dict[str, str]) -> str:
    """Return a text such as `5 (lwf), 1 (the others)`, in which the others have the most frequent value."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    *few, most = sorted(labels, key=lambda value: len(labels[value]))
    parts = [f"{value} ({', '.join(labels[value])})" for value in few]
    return ", ".join([*parts, f"{most} ({'the others' if len(labels[most]) > 1 else labels[most][0]})"])


def text_of(value: object) -> str:
    """Return the value of a field of a configuration as text."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
