"""The names that papers use: in figures and LaTeX, for every strategy, with options only where they tell rows apart."""

from collections.abc import Callable

import pytest

from clbench.config.registry import entry_point_names
from clbench.reports.charts import CHARTS, title
from clbench.reports.comparison import Comparison
from clbench.reports.names import PAPER_NAMES, paper_name
from clbench.results.result import Result

Make = Callable[..., Result]
Compared = Callable[[list[Result]], Comparison]


def test_every_strategy_has_the_name_of_its_paper() -> None:
    assert set(PAPER_NAMES) == set(entry_point_names("clbench.strategies"))


@pytest.mark.parametrize(
    ("strategy", "label", "shown"),
    [
        # The spellings of the papers: arXiv:1611.07725, 2004.07211, 1606.09282, 1812.00420, 1802.01569.
        ("icarl", "icarl", ("iCaRL", "")),
        ("derpp", "derpp", ("DER++", "")),
        ("lwf", "lwf", ("LwF", "")),
        ("agem", "agem", ("A-GEM", "")),
        ("xdg", "xdg", ("XdG", "")),
        ("er", "er[memory_size=200]", ("ER", "[memory_size=200]")),
        ("icarl", "icarl (linear)", ("iCaRL", " (linear)")),
        ("er", "er-ace", ("er-ace", "")),
        ("er", "my replay", ("my replay", "")),
        ("mine.py:Mine", "mine.py:Mine", ("mine.py:Mine", "")),
        ("avalanche:lwf", "avalanche:lwf", ("avalanche:lwf", "")),
    ],
)
def test_a_label_keeps_what_the_user_said(strategy: str, label: str, shown: tuple[str, str]) -> None:
    assert paper_name(strategy, label) == shown


def test_options_are_named_where_they_tell_rows_apart(make_result: Make, compared: Compared) -> None:
    part = compared(
        [make_result("er", label=f"er[memory_size={n}]") for n in (200, 500)]
        + [make_result("lwf", label="lwf[strength=2]")]
    )
    assert {title(part, row) for row in part.rows} == {"ER[memory_size=200]", "ER[memory_size=500]", "LwF"}
    drawn = CHARTS["average_accuracy"].make(part)
    assert [one.name for one in drawn.series] == [title(part, row) for row in part.rows]  # type: ignore[union-attr]
