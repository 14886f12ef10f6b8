"""Significant differences: the pairs compared, the size of the correction, and the words of the verdict."""

import io
import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest

from clbench.reports import differences, markdown, tables
from clbench.reports.comparison import Comparison, compare
from clbench.reports.verdict import verdict
from clbench.results.result import Result

Make = Callable[..., Result]
Compared = Callable[[list[Result]], Comparison]
NOISE = (0.0, 0.01, 0.02, 0.01, -0.01, -0.02, 0.0, 0.02, -0.01, 0.01)


def runs(make: Make, strategy: str, levels: Sequence[float], **kwargs: object) -> list[Result]:
    """One task, so that the average accuracy of the run with seed i is levels[i]."""
    return [make(strategy, seed, sizes=(2,), matrix=np.array([[v]]), **kwargs) for seed, v in enumerate(levels)]


def around(level: float, n: int, shift: int = 0) -> list[float]:
    return [level + NOISE[(seed + shift) % len(NOISE)] for seed in range(n)]


def planted(make: Make, n: int) -> list[Result]:
    """er is far above lwf, lwf above naive; joint, a reference, is above all."""
    levels = {"naive": 0.2, "lwf": 0.4, "er": 0.6, "joint": 0.9}
    return [run for i, (name, level) in enumerate(levels.items()) for run in runs(make, name, around(level, n, i))]


def test_every_competitor_is_compared_with_the_best_and_with_naive(make_result: Make, compared: Compared) -> None:
    """n = 10, every pair in favour: p = 2 / 1024, and Holm over three pairs of competitors makes it 6 / 1024."""
    found = differences.differences(compared(planted(make_result, 10)).rows)
    assert found.best is not None
    assert found.best.label == "er"
    assert [(d.ours.label, d.theirs.label) for d in found.against_best] == [("lwf", "er"), ("naive", "er")]
    assert [(d.ours.label, d.theirs.label) for d in found.against_naive] == [("er", "naive"), ("lwf", "naive")]
    assert (found.tests, found.note) == (3, None)
    assert found.smallest_p == pytest.approx(6 / 1024)
    for one in (*found.against_best, *found.against_naive):
        assert one.paired.p == pytest.approx(2 / 1024)
        assert one.p == pytest.approx(6 / 1024)
        assert one.is_real
    lead = found.against_naive[0].paired
    assert lead.difference == pytest.approx(0.4)
    assert lead.probability_of_improvement == 1
    assert found.against_best[1].paired.difference == pytest.approx(-0.4)


def test_references_and_further_classifiers_do_not_compete(make_result: Make, compared: Compared) -> None:
    """Nobody is called worse than joint; icarl's linear head is no strategy of its own."""
    linear = np.array([[0.95]])
    results = [*runs(make_result, "joint", [0.9] * 6), *runs(make_result, "icarl", [0.5] * 6, linear=linear)]
    found = differences.differences(compared([*results, *runs(make_result, "naive", [0.1] * 6)]).rows)
    assert found.best is not None
    assert found.best.label == "icarl"
    assert [one.ours.label for one in found.against_best] == ["naive"]


def test_below_six_runs_a_note_stands_instead_of_a_test(make_result: Make, compared: Compared) -> None:
    part = compared(planted(make_result, 5))
    found = differences.differences(part.rows)
    assert all(one.p is None and not one.is_real for one in found.against_best)
    assert found.note is not None
    assert "0.0625" in found.note
    text = markdown.section(part)
    assert "### Which differences are real?" in text
    assert "No test stands here: 5 pairs are too few for a test" in text
    assert "a clear difference" in verdict(part)
    assert "real" not in verdict(part)


def test_what_holm_leaves_unattainable_is_said(make_result: Make, compared: Compared) -> None:
    """Six pairs, three tests: 3 * 2 / 64 = 0.094; seven give 0.047."""
    found = differences.differences(compared(planted(make_result, 6)).rows)
    assert found.smallest_p == pytest.approx(0.09375)
    assert found.note == (
        "No difference can come out as real here: with 6 pairs of runs and 3 tests the smallest p is 0.094; "
        "it takes 7 pairs."
    )
    assert "a clear difference" in verdict(compared(planted(make_result, 6)))
    assert differences.differences(compared(planted(make_result, 7)).rows).note is None


def test_runs_needed_are_those_of_the_corrected_level(make_result: Make, compared: Compared) -> None:
    """Differences 0, .2, 0, .2: mean .1, sd .2 / sqrt(3), d = .866; one test at .05, power .8: 13 (G*Power)."""
    results = [*runs(make_result, "er", [0.5, 0.7] * 2), *runs(make_result, "lwf", [0.5, 0.5] * 2)]
    (one,) = differences.differences(compared(results).rows).against_best
    assert one.paired.effect_size == pytest.approx(-0.866, abs=5e-4)
    assert one.runs_needed == 13
    # Three tests at .05 / 3: more pairs for the same difference.
    more = differences.differences(compared([*results, *runs(make_result, "naive", [0.1] * 4)]).rows).against_best
    assert more[0].runs_needed > 13


def test_runs_without_a_common_seed_are_not_compared(make_result: Make, compared: Compared) -> None:
    results = [*runs(make_result, "er", [0.5, 0.6]), make_result("lwf", 7, sizes=(2,), matrix=np.array([[0.4]]))]
    part = compared(results)
    (one,) = differences.differences(part.rows).against_best
    assert (one.paired.n, one.paired.difference, one.runs_needed) == (0, None, None)
    assert "no seed and class order is common" in verdict(part)
    assert "| `lwf` | `er` | 0 | - | too few runs | - | - | - | - | - |" in markdown.section(part)


def test_the_verdict_says_who_wins_whether_it_is_real_where_it_forgets_and_what_it_costs(
    make_result: Make, compared: Compared
) -> None:
    """Two tasks; er falls from .9 to .6 on task 0 (30 points) and learns task 1 to .8: average 70 %."""
    results = []
    for name, end in (("er", 0.6), ("lwf", 0.3), ("naive", 0.1)):
        for seed in range(8):
            matrix = np.array([[0.9, np.nan], [end + 0.01 * (seed % 3), 0.8]])
            results.append(make_result(name, seed, sizes=(2, 2), matrix=matrix))
    text = verdict(compared(results))
    assert text.startswith("er has the highest class-incremental average accuracy, 70.4 % (n = 8, 95 % interval ")
    assert "15.0 points above lwf: a real difference (p = 0.023)" in text, "3 * 2 / 256"
    assert "its lead over naive is real" in text
    assert "It forgets 29.1 points; it takes 0.3 seconds a run and keeps nothing beside the model." in text
    assert text in re.sub(r"\\(.)", r"\1", markdown.to_markdown(compare(results)))


def test_the_verdict_names_the_task_that_is_forgotten_most(make_result: Make, compared: Compared) -> None:
    """Task 0 falls by 50 points, task 1 by 10: 30 on average."""
    matrix = np.array([[0.9, np.nan, np.nan], [0.7, 0.8, np.nan], [0.4, 0.7, 0.9]])
    text = verdict(compared([make_result("lwf", sizes=(2, 2, 2), matrix=matrix)]))
    assert "It forgets 30.0 points, most of it on task 0 (50.0)" in text
    assert "nothing to compare it with" in text


def test_a_verdict_on_references_alone(make_result: Make, compared: Compared) -> None:
    assert "references alone" in verdict(compared([make_result("joint")]))


def test_equal_strategies_are_not_called_different(make_result: Make, compared: Compared) -> None:
    """Differences of both signs in equal number and size: no sign pattern is less extreme."""
    results = [*runs(make_result, "er", [0.5, 0.6] * 4), *runs(make_result, "lwf", [0.6, 0.5] * 4)]
    (one,) = differences.differences(compared(results).rows).against_best
    assert (one.p, one.is_real, one.runs_needed) == (1, False, None)
    assert "not shown to be real" in verdict(compared(results))


def test_intervals_stand_beside_the_standard_deviations(make_result: Make) -> None:
    """Averages .2, .4, .6: mean .4, sd .2; t of two degrees of freedom is 4.3027: half width .49683.

    logit(.4) = -.40547 and .49683 / (.4 * .6) = 2.07013 give 1 / (1 + exp(2.47559)) and 1 / (1 + exp(-1.66466)).
    """
    three = runs(make_result, "lwf", [0.2, 0.4, 0.6])
    frame = tables.comparison(compare(three))
    assert frame["average_accuracy_low"][0] == pytest.approx(0.07759, abs=1e-5)
    assert frame["average_accuracy_high"][0] == pytest.approx(0.84086, abs=1e-5)
    assert pd.isna(frame["forgetting_low"][0])
    assert "40.0 ± 20.0 [7.8, 84.1]" in markdown.to_markdown(compare(three))
    two = runs(make_result, "lwf", [0.3, 0.5])
    assert pd.isna(tables.comparison(compare(two))["average_accuracy_low"][0]), "two runs have none"
    assert "| 40.0 ± 14.1 |" in markdown.to_markdown(compare(two))
    alone = tables.comparison(compare(runs(make_result, "lwf", [0.3])))
    assert pd.isna(alone["average_accuracy_low"][0])


def test_every_difference_is_in_a_file(make_result: Make) -> None:
    results = planted(make_result, 10)
    frame = pd.read_csv(io.StringIO(tables.to_csv(tables.differences_frame(compare(results)))))
    assert frame[["strategy", "minus"]].to_numpy().tolist() == [
        ["lwf", "er"],
        ["naive", "er"],
        ["er", "naive"],
        ["lwf", "naive"],
    ]
    assert frame["difference"][2] == pytest.approx(0.4)
    assert frame["p_holm"].tolist() == pytest.approx([6 / 1024] * 4)
    assert (frame["low"] < frame["difference"]).all()
    assert len(tables.differences_frame(compare([make_result("lwf")]))) == 0


def test_class_order_and_initialisation_are_told_apart_in_a_crossed_design(
    make_result: Make, compared: Compared
) -> None:
    """Orders by seeds [[.1, .2], [.4, .7]]: by hand sd .274 (order), .122 (seed), .1 (rest)."""
    results = []
    for order, row in enumerate(((0.1, 0.2), (0.4, 0.7))):
        results += runs(make_result, "icarl", row, config={"class_order_seed": order})
    text = markdown.section(compared(results))
    assert "### Class order or initialisation?" in text
    assert "| `icarl` | 2 | 2 | 27.4 | 12.2 | 10.0 |" in text
    assert "Class order or" not in markdown.section(compared(runs(make_result, "icarl", [0.1, 0.2])))


def test_a_domain_incremental_headline_is_called_one(make_result: Make, compared: Compared) -> None:
    results = runs(make_result, "lwf", [0.3, 0.5], setting="domain")
    text = markdown.to_markdown(compare(results))
    assert "The headline is the domain-incremental average accuracy: all tasks have the same outputs" in text
    assert "class-incremental" not in text.split("## Definitions")[0]
    assert "domain-incremental" in verdict(compared(results))


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 0.5), (2, 0.7), (3, 0.6)], [0, 1]),
        ([(3, 0.9), (1, 0.2), (2, 0.2)], [1, 0]),
        ([(1, 0.5), (1, 0.6)], [1]),
        ([(1, 0.5), (1, 0.5)], [0, 1]),
        ([], []),
    ],
)
def test_the_pareto_front_by_hand(points: list[tuple[float, float]], front: list[int]) -> None:
    assert differences.pareto(points) == front
