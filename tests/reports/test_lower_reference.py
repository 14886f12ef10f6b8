"""Naive is the lower reference in every sentence and table: compared with, and never the best."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from clbench.reports import latex, markdown, page
from clbench.reports.columns import columns
from clbench.reports.comparison import Comparison
from clbench.reports.verdict import verdict
from clbench.results.result import Result

Make = Callable[..., Result]
Compared = Callable[[list[Result]], Comparison]


def runs(make: Make, levels: dict[str, Sequence[float]]) -> list[Result]:
    """One task, so that the average accuracy of the run with seed i is the i-th level."""
    return [
        make(name, seed, sizes=(2,), matrix=np.array([[level]]), task_aware=False)
        for name, of in levels.items()
        for seed, level in enumerate(of)
    ]


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        # Naive between two competitors is not the second best.
        ({"er": [0.9, 0.8], "naive": [0.7, 0.7], "lwf": [0.6, 0.5]}, "30.0 points above lwf: too few runs to tell"),
        ({"er": [0.9, 0.8], "naive": [0.7, 0.7]}, "15.0 points above naive, the lower reference: too few runs to tell"),
        # Naive above all competitors is told, and is not the best.
        ({"naive": [0.9, 0.9], "er": [0.8, 0.7]}, "15.0 points below naive, the lower reference: too few runs to tell"),
        (
            {"naive": [0.9, 0.9], "er": [0.8, 0.7], "lwf": [0.6, 0.5]},
            "20.0 points above lwf: too few runs to tell whether that is real (it is ahead in both pairs), 15.0",
        ),
        ({"naive": [0.9], "joint": [0.95]}, "Nothing competes here: there are references alone."),
    ],
)
def test_naive_is_no_competitor_in_the_verdict(
    levels: dict[str, Sequence[float]], said: str, make_result: Make, compared: Compared
) -> None:
    part = compared(runs(make_result, levels))
    text = verdict(part)
    assert said in text
    assert text.startswith("er has the highest class-incremental average accuracy" if "er" in levels else "Nothing")
    best = {row.label for row in part.rows for column in columns(part) if column.is_best(part, row)}
    assert "naive" not in best
    (naive,) = [line for line in latex.to_latex([part]).splitlines() if line.startswith("naive")]
    assert "mathbf" not in naive
    assert "underline" not in naive


def test_naive_above_the_best_competitor_is_told_after_the_second_best(make_result: Make, compared: Compared) -> None:
    """Differences of -.1 and -.2 from naive: 15 points below."""
    text = verdict(compared(runs(make_result, {"naive": [0.9, 0.9], "er": [0.8, 0.7], "lwf": [0.6, 0.5]})))
    assert text.index("20.0 points above lwf") < text.index("15.0 points below naive, the lower reference")


def test_the_page_and_the_markdown_say_the_same_of_naive(make_result: Make, compared: Compared) -> None:
    part = compared(runs(make_result, {"naive": [0.9, 0.9], "er": [0.8, 0.7], "lwf": [0.6, 0.5]}))
    assert "Bold: the best competitor in a column." in page.render([part])
    bold = {line.split("`")[1] for line in markdown.section(part).splitlines() if line[:3] == "| `" and "**" in line}
    assert bold == {"er"}


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        # Four pairs in favour of each, so that the means are equal: p = 1.
        ([0.8, 0.9] * 4, [0.9, 0.8] * 4, ", the same as lwf: a difference is not shown to be real (p = 1)"),
        ([0.8, 0.9], [0.8, 0.9], ", the same as lwf: too few runs to tell whether they differ"),
        ([0.8], [0.8], ", the same as lwf: too few runs to tell whether they differ"),
        # Half of a tenth of a point is not printed as 0.0.
        ([0.8003, 0.9003], [0.8, 0.9], ", less than 0.1 points above lwf: too few runs to tell whether that is real"),
    ],
)
def test_strategies_with_equal_means_are_told_to_be_the_same(
    ours: list[float], theirs: list[float], said: str, make_result: Make, compared: Compared
) -> None:
    text = verdict(compared(runs(make_result, {"er": ours, "lwf": theirs})))
    assert said in text
    assert "0.0 points" not in text
