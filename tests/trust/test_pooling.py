"""Runs that a machine's facts alone tell apart are repetitions of each other; runs with other numbers are not."""

import copy
from pathlib import Path
from typing import Any

import pytest

import clbench
from clbench.config.run import fields
from clbench.reports.comparison import MACHINE, Comparison, compare
from clbench.reports.provenance import command
from clbench.results.result import Result

OPTIONS: dict[str, Any] = {"tasks": 2, "limit": 6, "model": "mlp:8", "epochs": 1, "batch_size": 8, "lr": 0.1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Three seeds with 1, 2 and 1 threads: the input as it was reported."""
    out = tmp_path_factory.mktemp("runs")
    return [
        clbench.run("split-mnist-5k", "lwf", seed=seed, threads=threads, device="cpu", out=out / str(seed), **OPTIONS)
        for seed, threads in enumerate((1, 2, 1))
    ]


def changed(run: Result, *, environment: dict[str, Any] | None = None, **config: Any) -> Result:
    record = copy.deepcopy(run.record)
    record["config"] |= config
    for name, value in (environment or {}).items():
        record["environment"]["packages" if name == "torch" else name] = {"torch": value} if name == "torch" else value
    return Result(record)


def only(results: list[Result]) -> Comparison:
    (part,) = compare(results)
    return part


def machine_notes(part: Comparison) -> list[str]:
    return [note for note in part.notes if "last bits" in note]


def test_three_seeds_with_one_two_and_one_threads_are_one_competitor(runs: list[Result]) -> None:
    part = only(runs)
    assert [(row.label, len(row.runs)) for row in part.rows] == [("lwf", 3)]
    assert machine_notes(part) == [
        "Pooled although made differently, which moves only the last bits: threads 1 (2 runs), 2 (1 run)."
    ]
    assert not any("Not the same" in note for note in part.notes)
    # Mean and deviation are those of three runs, by hand.
    values = [run.metrics["average_accuracy"] for run in runs]
    mean = sum(values) / 3
    spread = part.rows[0].spread("average_accuracy")
    assert (spread.n, spread.mean) == (3, pytest.approx(mean))
    assert spread.sd == pytest.approx((sum((value - mean) ** 2 for value in values) / 2) ** 0.5)
    # The command that repeats the runs names the threads of each.
    assert sorted(line.split("--threads ")[1][0] for line in command(part.rows[0]).splitlines()) == ["1", "2"]


def test_the_report_has_one_row_and_the_note(runs: list[Result], tmp_path: Path) -> None:
    clbench.reports.write_report(runs, tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "threads=2" not in text
    assert text.count("moves only the last bits: threads 1 (2 runs), 2 (1 run)") == 1
    rows = (tmp_path / "comparison.csv").read_text("utf-8").splitlines()
    assert len(rows) == 2


# Fields that only move the last bits, and fields that make a run of its own.
POOLED: list[tuple[str, dict[str, Any], str]] = [
    ("threads", {"threads": 7}, "threads 1 (1 run), 7 (1 run)"),
    ("device", {"device": "cuda:1"}, "device cpu (1 run), cuda:1 (1 run)"),
    ("compile", {"compile": "default"}, "compile none (1 run), default (1 run)"),
    ("deterministic", {"deterministic": True}, "deterministic false (1 run), true (1 run)"),
    ("processes", {"processes": 4}, "processes 1 (1 run), 4 (1 run)"),
    ("accumulate", {"accumulate": 2}, "accumulate 1 (1 run), 2 (1 run)"),
    ("torch", {"environment": {"torch": "2.99.1"}}, "2.99.1 (1 run)"),
    ("processor", {"environment": {"device": "another"}}, "another (1 run)"),
]
APART: list[dict[str, Any]] = [
    {"precision": "bf16"},
    {"precision": "tf32"},
    {"batch_size": 16},
    {"epochs": 2},
    {"lr": 0.2},
    {"optimizer": "adamw"},
    {"model": "mlp:9"},
    {"limit": 7},
    {"validation": 0.1},
    {"normalize": "pixel-mean"},
    {"label_smoothing": 0.1},
    {"strategy_options": {"strength": 3.0}},
    {"data_fingerprint": "0123"},
]


@pytest.mark.parametrize(("name", "change", "told"), POOLED, ids=[name for name, _, _ in POOLED])
def test_a_fact_of_the_machine_pools_and_is_named(
    name: str, change: dict[str, Any], told: str, runs: list[Result]
) -> None:
    part = only([runs[0], changed(runs[2], **change)])
    assert [(row.label, len(row.runs)) for row in part.rows] == [("lwf", 2)]
    (note,) = machine_notes(part)
    assert told in note
    assert f": {name} " in note


@pytest.mark.parametrize("change", APART, ids=str)
def test_what_moves_numbers_does_not_pool(change: dict[str, Any], runs: list[Result]) -> None:
    part = only([runs[0], changed(runs[2], **change)])
    assert sorted(len(row.runs) for row in part.rows) == [1, 1]
    (name,) = change
    named = "strength" if name == "strategy_options" else name
    assert all(f"{named}=" in row.label for row in part.rows)
    assert machine_notes(part) == []


def test_every_field_of_the_engine_is_of_one_kind() -> None:
    """A new field of the machine's part has to be put into one of the two."""
    from clbench.config.groups import EngineConfig

    engine = {field.alias or name for name, field in EngineConfig.model_fields.items()}
    assert engine - MACHINE == {"precision", "checkpoint_every", "keep_state", "count_flops"}
    assert set(fields()) >= MACHINE


def test_runs_alike_have_no_note_and_the_newest_of_a_seed_counts(runs: list[Result]) -> None:
    assert machine_notes(only([runs[0], runs[2]])) == []
    newer = changed(runs[0], threads=4)
    newer.record["created"] = "2999-01-01T00:00:00+00:00"
    part = only([runs[0], Result(newer.record)])
    assert [[run.config["threads"] for run in row.runs] for row in part.rows] == [[4]]
    assert "lwf: 1 older run(s) of the same seed are left out." in part.notes


def test_the_identity_of_a_run_still_counts_its_threads(runs: list[Result]) -> None:
    """A run is a function of its configuration to the bit, and pooling is the report's affair."""
    groups = {run.record["group"] for run in runs}
    assert len(groups) == 2


def test_runs_over_other_classes_are_comparisons_of_their_own(tmp_path: Path) -> None:
    """Two classes of the digits are another problem than two others; another order of the same ones is not."""
    small = {"tasks": 1, "limit": 5, "epochs": 1, "model": "mlp:8", "threads": 1, "quiet": True}
    orders = {0: [0, 1], 1: [2, 3], 2: [1, 0], 3: [3, 2]}
    results = [
        clbench.run("split-mnist-5k", "naive", seed=seed, class_order=order, out=tmp_path / str(seed), **small)
        for seed, order in orders.items()
    ]
    parts = compare(results)
    assert [part.scenario for part in parts] == ["split-mnist-5k (classes 0, 1)", "split-mnist-5k (classes 2, 3)"]
    assert [[run.seed for row in part.rows for run in row.runs] for part in parts] == [[0, 2], [1, 3]]
    whole = clbench.run("split-mnist-5k", "naive", out=tmp_path / "whole", **{**small, "tasks": 5})
    assert compare([whole])[0].scenario == "split-mnist-5k"
