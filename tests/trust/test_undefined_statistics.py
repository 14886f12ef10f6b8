"""Undefined statistics are no numbers: over nothing, one value, NaN alone, equal values, runs that share nothing."""

import inspect
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench.config.errors import ConfigError
from clbench.reports import latex, markdown, page, tables
from clbench.reports.comparison import Comparison, compare
from clbench.reports.verdict import verdict
from clbench.results import metrics, statistics
from clbench.results.result import Result
from clbench.results.statistics import interval, paired, spread, variances

NAN = math.nan
UNDEFINED = [[], [None], [NAN], [None, NAN, NAN]]


def keyed(values: list[Any], first_seed: int = 0, order: str = "one") -> dict[tuple[int, str], Any]:
    return {(first_seed + i, order): value for i, value in enumerate(values)}


# Statistics


@pytest.mark.parametrize("values", UNDEFINED)
def test_spread_and_interval_of_nothing_are_no_number(values: list[Any]) -> None:
    assert tuple(spread(values)) == (None, None, 0)
    assert interval(values) is None


def test_one_value_has_a_mean_alone_and_equal_values_a_deviation_of_exactly_0() -> None:
    """A deviation of equal values is 0 by its definition, and no undefined one."""
    assert tuple(spread([0.4, NAN])) == (0.4, None, 1)
    assert interval([0.4, None]) is None
    assert tuple(spread([0.5] * 3)) == (0.5, 0.0, 3)


PAIRS: dict[str, tuple[dict[Any, Any], dict[Any, Any], str]] = {
    "no runs at all": ({}, {}, "one side has no value"),
    "one side empty": (keyed([0.1] * 7), {}, "one side has no value"),
    "one side NaN": (keyed([0.1] * 7), keyed([NAN] * 7), "one side has no value"),
    "other seeds": (keyed([0.1] * 7), keyed([0.2] * 7, first_seed=7), "the seeds differ"),
    "other class orders": (keyed([0.1] * 7), keyed([0.2] * 7, order="two"), "the class orders differ"),
    "other tasks of the same seed": (
        {(seed, f"a{seed}"): 0.5 for seed in range(7)},
        {(seed, f"b{seed}"): 0.6 for seed in range(7)},
        "the class orders differ",
    ),
    "never both": (keyed([0.1, None] * 4), keyed([None, 0.1] * 4), "the seeds differ"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_runs_that_share_no_seed_or_no_class_order_have_no_paired_number(case: str) -> None:
    ours, theirs, missing = PAIRS[case]
    for one, other in ((ours, theirs), (theirs, ours)):
        found = paired(one, other)
        assert found.n == 0
        numbers = found._asdict()
        assert {name: numbers[name] for name in numbers if name not in ("n", "reason")} == dict.fromkeys(
            ("difference", "interval", "p", "wilcoxon_p", "effect_size", "probability_of_improvement")
        )
        assert missing in str(found.reason)


def test_pairs_that_do_not_vary_have_no_effect_size() -> None:
    """The difference is 0.1 in each of seven pairs; the mean over a deviation of 0 is undefined."""
    found = paired(keyed([0.5] * 7), keyed([0.4] * 7))
    assert found.difference == pytest.approx(0.1)
    assert found.effect_size is None


@given(
    st.dictionaries(st.tuples(st.integers(0, 4), st.sampled_from("ab")), st.sampled_from([None, NAN, 0.0, 0.5, 1.0])),
    st.dictionaries(st.tuples(st.integers(0, 4), st.sampled_from("ab")), st.sampled_from([None, NAN, 0.0, 0.5, 1.0])),
)
def test_there_is_a_paired_number_exactly_where_a_pair_is_defined(ours: Any, theirs: Any) -> None:
    """Counted by hand: the keys that have a number on both sides."""
    both = [key for key in ours.keys() & theirs.keys() if not {ours[key], theirs[key]} & {None}]
    both = [key for key in both if not (math.isnan(ours[key]) or math.isnan(theirs[key]))]
    found = paired(ours, theirs)
    assert (found.difference is None) == (not both)
    assert (found.probability_of_improvement is None) == (not both)
    assert (found.n == 0) == (not both)
    if not both:
        assert "no seed and class order is common" in found.reason or "no value" in found.reason


@pytest.mark.parametrize(
    "values",
    [{}, keyed([0.1] * 5), {**keyed([NAN] * 3), **keyed([NAN] * 3, order="two")}, {(0, "one"): 0.1, (1, "two"): 0.2}],
)
def test_variances_of_what_no_two_seeds_and_orders_share_are_no_number(values: Any) -> None:
    assert variances(values) is None


@pytest.mark.parametrize("scores", [{}, {"a": [], "b": []}, {"a": [NAN] * 6, "b": [0.1] * 6}])
def test_ranks_of_nothing_are_refused(scores: Any) -> None:
    with pytest.raises(ConfigError, match="accepted"):
        statistics.mean_ranks(scores)


# Metrics

FUNCTIONS = {
    name: function
    for name, function in vars(metrics).items()
    if inspect.isfunction(function)
    and function.__module__ == metrics.__name__
    and set(inspect.signature(function).parameters) <= {"R", "baseline", "test_sizes", "joint", "minima", "independent"}
    and "R" in inspect.signature(function).parameters
    and name not in ("summarize", "completed")
    and not name.startswith("_")
}


def matrix(*rows: list[float]) -> Any:
    return np.array(rows)


# Matrices of which nothing is defined, and those of a single task.
NOTHING = [matrix([NAN]), np.full((3, 3), NAN), matrix([NAN, NAN], [0.5, NAN])]
SINGLE = [matrix([0.7]), matrix([0.7, NAN], [NAN, NAN])]
BETWEEN_TASKS = {
    *("forgetting", "clipped_forgetting", "first_minus_last_forgetting", "backward_transfer"),
    *("gem_code_backward_transfer", "forward_transfer", "gem_code_forward_transfer"),
    *("forward_transfer_without_baseline", "forward_transfer_from_independent", "remembering"),
    *("diaz_rodriguez_backward_transfer", "positive_backward_transfer", "diaz_rodriguez_forward_transfer"),
    "average_incremental_accuracy_without_first",
}


def arguments(function: Callable[..., Any], n: int) -> dict[str, Any]:
    given = {"baseline": [0.1] * n, "test_sizes": [10] * n, "joint": [0.9] * n, "independent": [0.9] * n}
    given["minima"] = [0.2] * (n - 1)
    return {name: value for name, value in given.items() if name in inspect.signature(function).parameters}


def numbers_in(value: Any) -> list[float]:
    listed = value if isinstance(value, list) else [value]
    return [v for v in listed if v is not None]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_metric_of_nothing_is_no_number(name: str) -> None:
    """No entry up to the diagonal of a row is known, so that there is no completed step."""
    for accuracy in NOTHING:
        assert numbers_in(FUNCTIONS[name](accuracy, **arguments(FUNCTIONS[name], len(accuracy)))) == []


def test_what_compares_tasks_is_listed() -> None:
    assert FUNCTIONS.keys() >= BETWEEN_TASKS


@pytest.mark.parametrize("name", sorted(BETWEEN_TASKS))
def test_a_metric_between_tasks_is_no_number_of_a_single_task(name: str) -> None:
    for accuracy in SINGLE:
        assert FUNCTIONS[name](accuracy, **arguments(FUNCTIONS[name], len(accuracy))) is None


def test_summarize_says_none_for_every_undefined_metric() -> None:
    for accuracy, one in itertools.product(NOTHING, (None, 0.5)):
        n = len(accuracy)
        given = {} if one is None else {"baseline": [one] * n, "joint": [one] * n, "test_sizes": [5] * n}
        assert set(metrics.summarize(accuracy, **given).values()) == {None}
    single = metrics.summarize([[0.7]], baseline=[0.1], test_sizes=[5])
    assert {name for name, value in single.items() if value is not None} == {
        *("average_accuracy", "sample_average_accuracy", "average_incremental_accuracy", "learning_accuracy")
    }


# Reports


@pytest.fixture
def make() -> Callable[..., Result]:
    """Make a run of two tasks by its final accuracies; parts of its record can be replaced."""

    def made(strategy: str, seed: int, final: float, *, order: tuple[int, ...] = (0, 1, 2, 3), **parts: Any) -> Result:
        rows = [[0.9, None], [final, final]]
        record = {
            "schema_version": 1,
            "clbench": "0.2.0",
            "status": "done",
            "identity": f"{strategy}-{seed}",
            "created": "2026-01-01T00:00:00+00:00",
            "config": {"scenario": "s", "strategy": strategy, "seed": seed, "epochs": 1},
            "strategy": {"name": strategy, "label": strategy, "family": "replay"},
            "scenario": {
                "name": "s",
                "setting": "class",
                "tasks": [{"classes": list(order[k : k + 2]), "n_test": 10} for k in (0, 2)],
            },
            "class_order": list(order),
            "headline": {"matrix": "class_incremental", "classifier": "linear"},
            "accuracy": {"class_incremental": rows, "task_aware": rows},
            "tasks": [{"task": t, "steps": 7, "seconds": {"train": 2.0}} for t in range(2)],
            "ledger": [{"task": t, "bytes": {"model": 1000}} for t in range(2)],
        }
        return Result(json.loads(json.dumps(record | parts)))

    return made


def everything(part: Comparison) -> dict[str, str]:
    """Return what each output says of a comparison, as text."""
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=200)
    console.print(tables.render([part]))
    return {
        "terminal": console.file.getvalue(),  # type: ignore[attr-defined]
        "markdown": markdown.to_markdown([part]),
        "csv": tables.to_csv(tables.differences_frame([part])),
        "latex": latex.to_latex([part]),
        "page": page.render([part]),
    }


@pytest.mark.parametrize(
    ("other", "missing"),
    [
        ({"seeds": range(3, 6)}, "the seeds differ"),
        ({"seeds": range(3), "order": (2, 3, 0, 1)}, "with the same seed the class orders differ"),
    ],
)
def test_a_report_of_runs_that_share_nothing_has_no_difference_and_says_what_is_missing(
    other: dict[str, Any], missing: str, make: Callable[..., Result]
) -> None:
    seeds = other.pop("seeds")
    results = [make("er", seed, 0.8) for seed in range(3)] + [make("lwf", seed, 0.5, **other) for seed in seeds]
    (part,) = compare(results)
    (one,) = part.differences.against_best
    assert (one.paired.difference, one.p, one.runs_needed) == (None, None, None)
    assert "points above" not in verdict(part)
    assert "nothing can be said of its lead over lwf" in verdict(part)
    assert missing in verdict(part)
    said = everything(part)
    for name in ("terminal", "markdown", "page"):
        assert missing in said[name].replace("\n", " "), name
    line = next(line for line in said["csv"].splitlines() if ",lwf,er," in line)
    values = dict(zip(said["csv"].splitlines()[0].split(","), line.split(","), strict=True))
    assert values["n"] == "0"
    undefined = ("difference", "low", "high", "p", "p_holm", "wilcoxon_p", "effect_size", "probability_of_improvement")
    assert {values[name] for name in undefined} == {""}


def test_costs_that_were_not_recorded_are_unknown_and_not_0(make: Callable[..., Result]) -> None:
    results = [make("er", seed, 0.8, tasks=[], ledger=[]) for seed in range(2)]
    (part,) = compare(results)
    for name in ("steps", "seconds", "all_bytes", "extra_bytes"):
        assert part.rows[0].spread(name).mean is None
    assert "what it costs was not recorded" in verdict(part)
    frame = tables.comparison([part])
    assert frame[["steps", "seconds", "all_bytes", "extra_bytes"]].isna().all(axis=None)
    line = next(line for line in everything(part)["terminal"].splitlines() if line.lstrip().startswith("er"))
    assert line.split()[-3:] == ["-", "-", "2"]


def test_a_run_whose_numbers_are_all_undefined_is_printed_without_a_0(make: Callable[..., Result]) -> None:
    nothing = {"class_incremental": [[None] * 2] * 2, "task_aware": None}
    results = [make("er", 0, 0.8), make("er", 1, 0.8), make("lwf", 0, 0.0, accuracy=nothing)]
    (part,) = compare(results)
    row = next(row for row in part.rows if row.label == "lwf")
    assert row.spread("average_accuracy") == (None, None, 0)
    said = everything(part)
    line = next(line for line in said["markdown"].splitlines() if line.startswith("| `lwf`"))
    assert set(line.replace("|", " ").split()[3:]) == {"-"}
    assert next(line for line in said["latex"].splitlines() if line.startswith("LwF")).count("--") == 5
