"""A metric of the user's own is in the table of the terminal, or named below it where there is no room."""

import io
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from clbench.notebook import Results
from clbench.reports import tables
from clbench.reports.comparison import compare
from clbench.results.metrics import METRICS, metric
from clbench.results.result import Result

Make = Callable[..., Result]


@pytest.fixture
def own() -> Iterator[None]:
    """A metric that is 12.5 % of every run."""

    @metric("Always the same.")
    def always_the_same(R: object) -> float:  # noqa: N803 - as summarize() calls it
        return 0.125

    yield
    del METRICS["always_the_same"]


def shown(results: list[Result], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(tables.render(compare(results)))
    return console.export_text()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120])
def test_a_metric_of_the_users_own_is_shown_or_named(width: int, own: None, make_result: Make) -> None:
    results = [make_result(name, seed) for name in ("er", "lwf") for seed in (0, 1)]
    text = shown(results, width)
    if width >= 60:
        head = text.split("─")[0]
        assert all(word in head for word in ("always", "the", "same"))
        assert text.count("12.5±0.0") == 2
    else:
        assert "too narrow for:" in text
        assert "always the same" in " ".join(text.split())


def test_without_one_the_table_is_as_it_was(make_result: Make) -> None:
    assert "always" not in shown([make_result("er"), make_result("lwf")], 120)


def test_a_notebook_shows_it_with_its_unit(own: None, make_result: Make) -> None:
    html = Results([make_result("er"), make_result("lwf")])._repr_html_()
    assert "<th>always the same</th>" in html
    assert "12.5" in html
    assert "Percent, mean ± standard deviation (n-1) over n runs; seconds and kB as named." in html
