"""Comparisons: the runs of one scenario in one setting by strategy, with notes on what limits comparing them."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from clbench.config.errors import ConfigError, one_line
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
# Facts of the machine, which move the last bits of the numbers: such runs are pooled too, and a note says so.
MACHINE = {"device", "threads", "compile", "deterministic", "cache_features", "processes", "accumulate"}
# The rows and the title of a comparison show these fields already.
SHOWN = {"strategy", "strategy_options", "scenario"}
# The number of different reasons for unfinished runs of a strategy that are spelled out, and the letters of each.
MOST_NAMED, MOST_REASON = 3, 400
# A strategy without a memory has no budget, so that these fields count only where they are set.
MEMORY = {"memory_size", "memory_per_class"}


@dataclass(frozen=True)
class Comparison:
    """The runs of one scenario in one setting over tasks of the same sizes, with notes for the reader.

    unfinished: of each strategy with runs that are unfinished or failed a sentence: how many, how far they got and why.
    """

    scenario: str
    setting: str
    headline: MatrixName
    task_sizes: tuple[int, ...]
    rows: list[StrategyRuns]
    notes: list[str]
    unfinished: dict[str, str]

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
    """Group runs by scenario, its classes, setting and task sizes; raises ConfigError when there are none."""
    if not results:
        raise ConfigError("results=[]: at least one run is accepted")
    groups: dict[tuple[str, str, MatrixName, tuple[int, ...]], list[Result]] = {}
    for result in results:
        sizes = tuple(len(classes) for classes in result.task_classes)
        key = (_named(result), result.setting, result.recorded.headline.matrix, sizes)
        groups.setdefault(key, []).append(result)
    parts = [_comparison(key, group) for key, group in groups.items()]
    looks: dict[str, Look] = {}
    numbers = Counter[str]()
    for row in (row for part in parts for row in part.rows if row.label not in looks):
        kind = row.look.kind if row.is_line else "competitor"
        looks[row.label] = Look(kind, numbers[kind])
        numbers[kind] += 1
    for part in parts:
        part.rows[:] = [replace(row, look=looks[row.label]) for row in part.rows]
    return parts


def _named(result: Result) -> str:
    """Return the scenario of a run, with its classes where they are not all that there are: others are harder."""
    classes = sorted({c for classes in result.task_classes for c in classes})
    if len(classes) >= len(result.recorded.scenario.class_names):
        return result.scenario
    shown = ", ".join(map(str, classes)) if len(classes) <= 12 else f"{classes[0]}, {classes[1]}, ..., {classes[-1]}"
    digest = "" if len(classes) <= 12 else f" {hashlib.sha256(repr(classes).encode()).hexdigest()[:4]}"
    return f"{result.scenario} (classes {shown}{digest})"


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
    finished = [(label, done) for label, group in groups if (done := [run for run in group if run.status == "done"])]
    joints = {repetition(run): run for _, group in finished for run in group if run.recorded.strategy.name == "joint"}
    strategies = [
        [_row(label, classifier, group, joints) for classifier in group[0].classifiers] for label, group in groups
    ]
    strategies.sort(key=lambda rows: (not rows[0].is_reference, -(rows[0].spread("average_accuracy").mean or 0.0)))
    rows = [row for rows in strategies for row in rows]
    notes += _remarks(finished)
    if idle := [(row.label, *row.just_learned[:2]) for row in rows if row.just_learned and not row.learns]:
        told = ", ".join(
            f"{label} {100 * accuracy:.1f} % (chance: {100 * chance:.1f} %)" for label, accuracy, chance in idle
        )
        notes.append(f"No better than chance on a task just learned, so that nothing of it is marked as best: {told}.")
    unfinished = {label: text for label, group in groups if (text := _unfinished(label, group))}
    return Comparison(scenario, setting, headline, sizes, rows, notes, unfinished)


def _variants(results: list[Result]) -> list[tuple[str, list[Result]]]:
    """Part runs of one label that are no repetitions of each other, each part with the fields that differ."""
    fields = [protocol(result) | result.config.get("strategy_options", {}) for result in results]
    differing = [
        key
        for key in dict.fromkeys(key for of_run in fields for key in of_run)
        if key not in MACHINE and len({text_of(of_run.get(key)) for of_run in fields}) > 1
    ]
    variants: dict[str, list[Result]] = {}
    for result, of_run in zip(results, fields, strict=True):
        text = ", ".join(f"{key}={text_of(of_run.get(key))}" for key in differing)
        variants.setdefault(f" ({text})" if text else "", []).append(result)
    return list(variants.items())


def _latest(label: str, results: list[Result], notes: list[str]) -> list[Result]:
    """Keep the newest run of each seed and class order, in order of seeds, and note how many are left out.

    A finished run goes before one that is not, here and in the order.
    """
    newest = {repetition(run): run for run in sorted(results, key=lambda run: (_is_done(run), run.recorded.created))}
    if len(newest) < len(results):
        every = all(map(_is_done, results))
        what = "older run(s)" if every else "run(s) that are older, or not finished,"
        notes.append(f"{label}: {len(results) - len(newest)} {what} of the same seed are left out.")
    return sorted(newest.values(), key=lambda run: (not _is_done(run), run.seed, run.recorded.class_order))


def _is_done(run: Result) -> bool:
    return run.status == "done"


def _unfinished(label: str, runs: list[Result]) -> str:
    """Return a sentence on the runs of a strategy that have no numbers: how far each got, and why; "" without any."""
    left = [run for run in runs if not _is_done(run)]
    if not left:
        return ""
    seeds: dict[str, list[str]] = {}
    for run in left:
        text = f"got through {len(run.recorded.tasks)} of {len(run.task_classes)} tasks"
        if run.status == "failed":
            at = (run.recorded.failed_at or {}).items()
            where = ", ".join(f"{name} {value}" for name, value in at if value not in (None, ""))
            reason = one_line(run.recorded.error or "for a reason that was not recorded", MOST_REASON)
            text += f" and failed{f' in {where}' if where else ''}: {reason}"
        seeds.setdefault(text, []).append(str(run.seed))
    texts = [f"seed{'s' if len(of) > 1 else ''} {', '.join(of)} {text}" for text, of in seeds.items()]
    more = f"; and others, {len(texts) - MOST_NAMED} in number" if len(texts) > MOST_NAMED else ""
    failed = sum(run.status == "failed" for run in left)
    what = "failed" if failed == len(left) else f"are not finished ({failed} failed)" if failed else "are not finished"
    counted = " What they got through counts in the curves and the matrices alone."
    counted = counted if any(run.recorded.tasks for run in left) else ""
    return printable(
        f"{label}: {len(left)} of {len(runs)} runs {what}: {'; '.join(texts[:MOST_NAMED])}{more}.{counted}"
    )


def _row(label: str, classifier: str, runs: list[Result], joints: dict[Repetition, Result]) -> StrategyRuns:
    headline = classifier == runs[0].recorded.headline.classifier
    # A run that ended before it was first tested does not know its classifiers yet.
    known = [
        run
        for run in runs
        if (classifier in run.classifiers if _is_done(run) or run.recorded.classifiers else headline)
    ]
    numbers = [_numbers(run, classifier, joints.get(repetition(run))) if _is_done(run) else {} for run in known]
    shown = label if headline else f"{label} ({printable(classifier)})"
    look = Look("upper" if runs[0].is_reference else "lower")
    return StrategyRuns(shown, classifier, known, numbers, look)


def _numbers(run: Result, classifier: str, joint: Result | None) -> Numbers:
    # That joint falls short of itself by nothing is no finding.
    reference = None if run.recorded.strategy.name == "joint" else joint
    numbers: Numbers = dict(run.summary(reference, classifier=classifier))
    for name in MATRIX_NAMES:
        numbers[f"{name}_accuracy"] = run.summary(classifier=classifier, matrix=name)["average_accuracy"]
    # A number that was not recorded is unknown, and not 0.
    numbers["steps"] = run.steps if run.recorded.tasks else None
    numbers["seconds"] = sum(run.seconds.values()) if run.seconds else None
    numbers |= {f"{purpose}_seconds": value for purpose, value in run.seconds.items()}
    numbers |= {"training_flops": run.flops["training"]}
    numbers |= {"unused_budget": run.unused_budget}
    numbers |= {"inference_flops_per_image": run.flops["inference_per_image"]}
    numbers |= {f"{kind}_items": value for kind, value in run.stored_items.items()}
    numbers |= {f"{kind}_bytes": value for kind, value in run.stored_bytes.items()}
    kept = run.stored_bytes
    numbers["all_bytes"] = sum(kept.values()) if kept else None
    numbers["extra_bytes"] = sum(value for kind, value in kept.items() if kind != "model") if kept else None
    return numbers


def _remarks(groups: list[tuple[str, list[Result]]]) -> list[str]:
    """Return notes on what makes the rows hard to compare, and the warnings of the runs."""
    runs = [run for _, group in groups for run in group]
    notes = []
    protocols = {label: protocol(group[0]) for label, group in groups}
    for key in dict.fromkeys(key for protocol in protocols.values() for key in protocol):
        if key == "memory_policy" or key in MACHINE:
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
    sources = Counter(run.recorded.source for run in runs if run.recorded.source)
    if len(set(versions.values())) == 1 and len(sources) > 1:
        counts = ", ".join(f"{source} ({n} run{'s' if n > 1 else ''})" for source, n in sources.items())
        notes.append(f"Made by different code of clbench {runs[0].recorded.clbench}: {counts}.")
    if machines := _machines(runs):
        notes.append(f"Pooled although made differently, which moves only the last bits: {machines}.")
    if any(run.idle_share for run in runs):
        shares = (f"{100 * fmean(run.idle_share for run in group):.1f}% ({label})" for label, group in groups)
        notes.append(f"Share of the training time in which images on disk were waited for: {', '.join(shares)}.")
    if single := [label for label, group in groups if len(group) == 1]:
        notes.append(f"One run says little, there is no standard deviation: {', '.join(single)}.")
    for label, group in groups:
        for how in dict.fromkeys(run.config.get("tuned_by") for run in group):
            if how:
                notes.append(f"{label}: hyper-parameters chosen by {how}.")
    notes += [f"{text} ({rule})" for rule, text in broken_rules(groups)]
    names = {run.recorded.strategy.name for run in runs}
    if "joint" not in names:
        notes.append("No joint run is finished: there is no upper reference, and intransigence is undefined.")
    if "naive" not in names:
        notes.append("No naive run is finished: there is no lower reference.")
    for word, name in (("Features", "features"), ("Images are resized and normalised to", "preprocessing")):
        found: dict[str, list[str]] = {}
        for label, group in groups:
            if (said := getattr(group[0].recorded.strategy, name)) is not None:
                found.setdefault(said, []).append(label)
        notes += [f"{word} {said}: {', '.join(labels)}." for said, labels in found.items()]
    warned: dict[str, dict[str, list[int]]] = {}
    whole: dict[str, str] = {}
    for label, group in groups:
        for run in group:
            for text in run.warnings:
                # A warning may begin with the strategy, which is named behind it too.
                told = text.removeprefix(f"{run.strategy}: ")
                whole.setdefault(told, text)
                warned.setdefault(told, {}).setdefault(label, []).append(run.seed)
    for told, where in warned.items():
        text = whole[told] if len(where) == 1 else f"{told[0].upper()}{told[1:]}"
        who = "; ".join(f"{label}, seed {', '.join(map(str, seeds))}" for label, seeds in where.items())
        if len(groups) > 1 and sum(map(len, where.values())) == len(runs):
            who = "all runs"
        notes.append(f"{text} ({who})")
    return [printable(note) for note in notes]


def _machines(runs: list[Result]) -> str:
    """Return the facts of the machines that differ, as `threads 1 (2 runs), 2 (1 run)`; "" where none does."""
    facts: dict[str, list[object]] = {name: [run.config.get(name) for run in runs] for name in sorted(MACHINE)}
    facts |= {"processor": [run.environment.get("device") for run in runs]}
    facts |= {"torch": [run.environment.get("torch") for run in runs]}
    told = []
    for name, values in facts.items():
        # A run of an older version may not say it.
        counts = Counter(text_of(value) for value in values if value is not None)
        if len(counts) > 1:
            parts = [f"{value} ({n} run{'s' if n > 1 else ''})" for value, n in counts.items()]
            told.append(f"{name} {', '.join(parts)}")
    return "; ".join(told)


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
