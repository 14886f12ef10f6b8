"""Checks runs that were made elsewhere before they are added to the results of published claims."""

import csv
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import get_args

import numpy as np

from clbench.cli.claim_runs import Needed, needed
from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig, config_of_record
from clbench.reports.published import chosen
from clbench.reports.reproduction import Measured, Role, measure, taken_over
from clbench.results.record import whole_row
from clbench.results.result import Result
from clbench.support.files import expanded

VERSION = re.compile(r"\d+(\.\d+)+[\w.+-]*", re.ASCII)
# Counts of right answers are whole, and so is an accuracy times the number of images but for rounding.
ROUNDING = 1e-6


def submitted(source: Path, written: Sequence[Measured]) -> tuple[list[Measured], list[tuple[Path, str]]]:
    """Return the runs in a folder as claims see them, and the files of those that are refused, each with the reason.

    written: the results to which they are to be added; a run that is there keeps its numbers.
    Raises ConfigError for a folder without runs.
    """
    source = expanded(source)
    files = sorted(source.rglob("run.json")) if source.is_dir() else []
    if not files:
        state = "holds no run" if source.is_dir() else "is no folder" if source.exists() else "does not exist"
        raise ConfigError(f"{source} {state}; a folder with a run.json in or below it is accepted")
    found: list[tuple[Path, Result]] = []
    refused: list[tuple[Path, str]] = []
    for file in files:
        try:
            found.append((file, Result.load(file)))
        except ConfigError as error:
            refused.append((file, str(error).removeprefix(f"{file}: ")))
    seeds = sorted({result.seed for _, result in found})
    asked, _ = needed(chosen([]), out=source, seeds=seeds) if seeds else ([], {})
    by_protocol = {_on_any_machine(run.planned.config): run for run in asked}
    there = {(row.claim, row.role, row.seed): row for row in written}
    rows: dict[str, list[Measured]] = {}
    for file, result in found:
        why = _problem(file, result, by_protocol)
        if why is None:
            protocol, identity = _on_any_machine(config_of_record(result.config)), result.recorded.identity
            # The results keep what they hold of a run: machines round differently, and a seed has one number.
            kept = [row for row in written if row.identity == identity]
            of_run = [
                there.get((claim.id, role, result.seed))
                or taken_over(claim, role, identity, kept)
                or measure(claim, role, result)
                for claim, role in by_protocol[protocol].serves
            ]
            others = [*written, *(row for of_other in rows.values() for row in of_other)]
            why = "the folder holds this run twice" if protocol in rows else _other_order(of_run, others)
            if why is None:
                rows[protocol] = of_run
        if why is not None:
            refused.append((file, why))
    return [row for of_run in rows.values() for row in of_run], refused


def _on_any_machine(config: RunConfig) -> str:
    """Return the identity that a run would have on a CPU, uncompiled: claims leave device and compiler open."""
    return config.replace(device="cpu", compile="none", deterministic=False).identity()


def _problem(file: Path, result: Result, by_protocol: dict[str, Needed]) -> str | None:
    """Return why a run can't be trusted or used; None where it can."""
    recorded = result.recorded
    if result.status != "done":
        unfinished = "unfinished" if result.status == "running" else result.status
        return f"the run is {unfinished}, and one that is done is accepted"
    try:
        config = config_of_record(result.config)
    except ConfigError as error:
        return str(error)
    if config.identity() != recorded.identity:
        return f"its config is not that of the run {recorded.identity}: it was changed afterwards"
    if _on_any_machine(config) not in by_protocol:
        return "no claim needs it: protocol, strategy or options differ from those of every claim"
    torch = recorded.environment.get("packages", {}).get("torch")
    if not isinstance(torch, str) or not VERSION.fullmatch(torch):
        return f"it was made with torch {torch}, and a version such as 2.6.0 is accepted"
    if not VERSION.fullmatch(recorded.clbench) or _release(recorded.clbench) > _release(metadata.version("clbench")):
        return f"it is of clbench {recorded.clbench}; a version up to {metadata.version('clbench')} is accepted"
    return _incomplete(result) or _inconsistent(file, result, config)


def _incomplete(result: Result) -> str | None:
    n = len(result.recorded.scenario.tasks)
    if len(result.recorded.tasks) != n:
        return f"it was trained on {len(result.recorded.tasks)} of {n} tasks"
    if np.isnan(result.accuracy[np.tril_indices(n)]).any():
        return "its accuracy matrix has gaps"
    return None


def _inconsistent(file: Path, result: Result, config: RunConfig) -> str | None:
    """Compare what a record says twice: names, dates, classes, accuracies, counts, metrics, accuracy.csv and steps."""
    recorded = result.recorded
    twice: dict[str, tuple[object, object]] = {
        "strategy": (recorded.strategy.name, config.strategy),
        "options": (recorded.strategy.options, config.strategy_options),
        "class order": ([c for task in result.task_classes for c in task], recorded.class_order),
        "confusion matrix": _right_answers(result),
    }
    # Tasks that share their classes, such as permutations, name them once for each task.
    if len(result.task_classes[0]) == len(recorded.class_order):
        del twice["class order"]
    for name, (one, other) in twice.items():
        if one != other:
            return f"its {name} is there twice, and differs: {one} and {other}"
    try:
        if datetime.fromisoformat(recorded.created) > datetime.now(UTC):
            return f"it was made in the future, {recorded.created}"
    except (TypeError, ValueError):
        return f"it was made at {recorded.created}, which is no date and time"
    sizes = np.array([task.n_test for task in recorded.scenario.tasks])
    for matrices in result.classifiers.values():
        for matrix in (matrices.class_incremental, matrices.task_aware):
            right = np.zeros((0, len(sizes))) if matrix is None else np.nan_to_num(matrix) * sizes
            if (right < 0).any() or (right > sizes).any() or (np.abs(right - right.round()) > ROUNDING * sizes).any():
                return "an accuracy is no whole number of right answers"
    counted = recorded.correct.get(recorded.headline.matrix, [])
    for after in range(len(counted)):
        for task, of_class in enumerate(whole_row(counted, after)):
            if of_class is not None and sum(of_class.values()) != round(result.accuracy[after, task] * sizes[task]):
                return f"after task {after} the right answers on task {task} are not those of its accuracy"
    for name, value in result.summary().items():
        told = recorded.metrics.get(name)
        if (value is None) != (told is None) or (value is not None and abs(value - (told or 0.0)) > ROUNDING):
            return f"its {name} is not that of its matrix"
    if _table(file.with_name("accuracy.csv")) != result.accuracy_rows():
        return "its accuracy.csv does not hold the accuracies of run.json"
    if recorded.classifiers.get(recorded.headline.classifier, recorded.accuracy) != recorded.accuracy:
        return "the accuracies of its headline are there twice, and differ"
    if (steps := sum(epoch.steps or 0 for epoch in recorded.training)) != result.steps:
        return f"its tasks took {result.steps} steps, and its epochs {steps}"
    iterations = config.training.iterations
    if iterations is not None and result.steps % iterations:
        return f"{result.steps} steps were taken, which is no multiple of {iterations}"
    return None


def _right_answers(result: Result) -> tuple[object, object]:
    """Return the final right answers by class, of the confusion matrix and of the counts; equal where one is absent."""
    counts, confusion = result.recorded.correct.get("class_incremental", []), result.confusion
    last = [of_class for of_class in (counts[-1] if counts else []) if of_class is not None]
    if confusion is None or not last or len(confusion) != len(result.recorded.class_order):
        return None, None
    told = {str(c): int(n) for c, n in zip(result.recorded.class_order, confusion.diagonal(), strict=True)}
    return told, {c: n for of_class in last for c, n in of_class.items()}


def _table(file: Path) -> list[tuple[str, str, int, int, float | None]] | None:
    """Return the rows of an accuracy.csv as Result.accuracy_rows() does; None for what is none."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        numbers = [float(row["accuracy"]) if row["accuracy"] else None for row in rows]
        places = [(row["matrix"], row["classifier"], int(row["after"]), int(row["task"])) for row in rows]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return [(*place, number) for place, number in zip(places, numbers, strict=True)]


def _other_order(rows: Sequence[Measured], others: Sequence[Measured]) -> str | None:
    """Return how the class order differs from that of a claim's other run with the seed; None where it does not."""
    there = {(row.claim, row.role, row.seed): row for row in others}
    for row in rows:
        beside = next((other for role in get_args(Role) if (other := there.get((row.claim, role, row.seed)))), row)
        if beside.class_order != row.class_order:
            return f"its class order is not that of the {beside.role} run with seed {row.seed}, {beside.class_order}"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
