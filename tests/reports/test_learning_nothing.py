"""A method that learns nothing is never the best, and differences are clear where they are far from 0."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clbench.reports import latex, markdown, page, tables
from clbench.reports.columns import columns
from clbench.reports.comparison import Comparison
from clbench.reports.differences import Difference
from clbench.reports.verdict import verdict
from clbench.results.result import Result

Make = Callable[..., Result]
Compared = Callable[[list[Result]], Comparison]


@pytest.fixture
def learned(make_result: Make) -> Callable[..., Result]:
    """Make a run of two tasks of five classes, 500 test images each, by its task-aware accuracies when just learned."""

    def made(strategy: str, seed: int, aware: float, final: float, untrained: float = 0.2) -> Result:
        matrix = np.array([[aware, np.nan], [final, aware]])
        record = make_result(strategy, seed, sizes=(5, 5), matrix=matrix).record
        record["accuracy"]["task_aware"] = [[aware, None], [aware, aware]]
        record["accuracy"]["untrained"] = {"class_incremental": [0.1, None], "task_aware": [untrained] * 2}
        return Result(record)

    return made


def best(part: Comparison) -> dict[str, list[str]]:
    """Return the labels of the best of each metric."""
    found = {
        column.number: [row.label for row in part.rows if column.is_best(part, row)]
        for column in columns(part)
        if column.metric
    }
    return {number: labels for number, labels in found.items() if labels}


# Chance is 20 %, with a standard error of sqrt(.2 * .8 / 1000) = 1.26 points over both tasks.
@pytest.mark.parametrize(
    ("aware", "untrained", "learns"),
    [
        (0.20, 0.2, False),
        (0.22, 0.2, False),
        (0.23, 0.2, True),
        (0.10, 0.2, False),
        (0.30, 0.29, False),
        (0.9, 0.3, True),
    ],
)
def test_learning_is_more_than_two_standard_errors_above_chance_and_the_untrained_network(
    aware: float, untrained: float, learns: bool, learned: Any, compared: Compared
) -> None:
    (row,) = compared([learned("lwf", seed, aware, 0.1, untrained) for seed in range(4)]).rows
    assert row.learns is learns


def test_what_learns_nothing_is_the_best_in_no_column_though_it_forgets_nothing(
    learned: Any, compared: Compared
) -> None:
    """lwf is at chance and loses nothing; er and ewc learn and forget."""
    values = {"lwf": (0.2, 0.2), "er": (0.9, 0.6), "ewc": (0.8, 0.1), "naive": (0.9, 0.1)}
    part = compared([learned(name, seed, *of) for name, of in values.items() for seed in range(3)])
    found = best(part)
    assert found["forgetting"] == ["er"]
    assert "lwf" not in {label for labels in found.values() for label in labels}
    note = "No better than chance on a task just learned, so that nothing of it is marked as best: lwf 20.0 %"
    assert any(text.startswith(note) for text in part.notes)
    for text in (markdown.section(part), page.render([part])):
        assert "No better than chance on a task just learned" in text
    assert "LwF" in latex.to_latex([part])
    row = next(line for line in latex.to_latex([part]).splitlines() if line.startswith("LwF"))
    assert "mathbf" not in row
    assert "underline" not in row


def test_the_verdict_names_the_best_of_those_that_learn(learned: Any, compared: Compared) -> None:
    """lwf, at chance, is ahead of ewc after the last task by 20 to 15 %."""
    values = {"lwf": (0.2, 0.2), "ewc": (0.3, 0.0)}
    part = compared([learned(name, seed, *of) for name, of in values.items() for seed in range(3)])
    assert verdict(part).startswith(
        "ewc has the highest class-incremental average accuracy of those that learn anything"
    )
    nothing = compared([learned(name, seed, 0.2, 0.2) for name in ("lwf", "ewc") for seed in range(3)])
    assert verdict(nothing).startswith("No competitor has learned anything")
    assert best(nothing) == {}
    assert "No competitor has learned anything" in markdown.to_markdown([nothing])
    assert "No competitor has learned anything" in page.render([nothing])


def test_without_a_task_aware_matrix_chance_is_a_draw_among_all_classes_seen(
    make_result: Make, compared: Compared
) -> None:
    """12 of 100 after five, then ten classes: chance is 20 and 10 %, 15 on average, and the error 1.1 points."""
    matrix = np.array([[0.22, np.nan], [0.0, 0.12]])
    (row,) = compared([make_result("lwf", 0, sizes=(5, 5), matrix=matrix, task_aware=False)]).rows
    assert row.just_learned is not None
    accuracy, chance, excess = row.just_learned
    assert (accuracy, chance) == pytest.approx((0.17, 0.15))
    assert excess == pytest.approx(2 * ((0.2 * 0.8 + 0.1 * 0.9) / 500 / 2 / 2) ** 0.5)


# Standing


def pairs(make_result: Make, compared: Compared, gaps: list[float], others: int = 0) -> Difference:
    """Return the difference of er, at 0.3 plus a gap for each seed, from lwf, at 0.3, beside further strategies."""
    results = []
    for seed, gap in enumerate(gaps):
        for name, level in (("er", 0.3 + gap), ("lwf", 0.3), *((f"other-{i}", 0.1) for i in range(others))):
            results.append(make_result(name, seed, sizes=(2,), matrix=np.array([[level]])))
    return next(one for one in compared(results).differences.against_best if one.ours.label == "lwf")


@pytest.mark.parametrize(
    ("gaps", "others", "standing"),
    [
        ([0.656, 0.656], 0, "too few runs"),
        ([0.65, 0.66, 0.658], 0, "clear"),
        ([0.65, 0.66, 0.658], 5, "clear"),
        ([0.05, 0.09, 0.01], 0, "too few runs"),
        # Mean 5, sd 1 point: t = 8.66, above 4.30 for a pair of strategies, and below 10.89 for 6 of them (1 - .05/6).
        ([0.04, 0.05, 0.06], 0, "clear"),
        ([0.04, 0.05, 0.06], 2, "too few runs"),
        ([0.04, 0.05, 0.06, 0.05, 0.05], 5, "clear"),
        ([0.04, 0.05, 0.06] * 3, 0, "real"),
        ([0.04, -0.05, 0.06] * 3, 0, "not shown"),
    ],
)
def test_the_standing_of_a_difference(
    gaps: list[float], others: int, standing: str, make_result: Make, compared: Compared
) -> None:
    assert pairs(make_result, compared, gaps, others).standing == standing


def test_a_difference_far_from_0_is_no_longer_too_few_runs_to_tell(make_result: Make, compared: Compared) -> None:
    levels = {"er": [0.905, 0.91, 0.92], "lwf": [0.25, 0.26, 0.27]}
    results = [
        make_result(name, seed, sizes=(2,), matrix=np.array([[level]]))
        for name, of in levels.items()
        for seed, level in enumerate(of)
    ]
    part = compared(results)
    assert (
        "65.2 points above lwf: a clear difference, whose interval leaves out 0, though 3 pairs are too few"
        in verdict(part)
    )
    assert "| clear |" in markdown.section(part)
    assert ">clear<" in page.render([part])
    frame = tables.differences_frame([part])
    assert frame["verdict"].tolist() == ["clear"]
    assert frame["effect_size"].isna().all(), "there is no test"


def test_two_runs_have_no_interval_and_the_pairs_are_counted(make_result: Make, compared: Compared) -> None:
    results = [
        make_result(name, seed, sizes=(2,), matrix=np.array([[level + 0.01 * seed * (name == "er")]]))
        for name, level in (("er", 0.9), ("lwf", 0.25))
        for seed in range(2)
    ]
    said = verdict(compared(results))
    assert (
        "(n = 2), 65.5 points above lwf: too few runs to tell whether that is real (it is ahead in both pairs)" in said
    )
    assert "interval" not in said


def test_no_interval_of_an_accuracy_is_outside_of_0_and_100(seven: list[Result], compared: Compared) -> None:
    part = compared(seven)
    frame = tables.comparison([part])
    for name in [name for name in frame.columns if name.endswith(("_low", "_high"))]:
        values = frame[name].dropna()
        least = -1 if name.startswith(("forgetting", "backward", "forward", "intransigence")) else 0
        assert ((values >= least) & (values <= 1)).all(), name
