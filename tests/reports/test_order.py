"""The order in which a page is read, and what it says of the runs before and behind the numbers."""

import re
from collections.abc import Callable

import numpy as np

from clbench.reports import page, provenance
from clbench.reports.chart import spaced
from clbench.reports.comparison import compare
from clbench.results.result import Result

Make = Callable[..., Result]
WithMore = Callable[..., Result]


def test_the_verdict_the_curve_and_the_table_come_first_and_the_rest_is_folded(seven: list[Result]) -> None:
    text = page.render(compare(seven)).split("<main>")[1]
    assert text.index('class="verdict"' if 'class="verdict"' in text else "<h2>") < text.index('<svg class="chart"')
    places = [
        text.index(part) for part in ('aria-label="Average accuracy after', 'class="sortable main"', 'class="fold')
    ]
    assert places == sorted(places)
    # Behind the table nothing stands open: each heading is the summary of a part that is folded at first.
    rest = text[places[1] :]
    headings = re.findall(r"(<summary>)?<h3>([^<]*)</h3>", rest)
    assert len(headings) > 8
    assert all(folded for folded, _ in headings)
    assert "<details open" not in text


def test_what_only_repeats_the_headline_is_left_out(make_result: Make) -> None:
    """With tasks of one size the average over samples is that over tasks; with others, by hand, (3 x .9 + .5) / 4."""
    matrix = np.array([[0.9, np.nan], [0.9, 0.5]])
    for sizes, shown in (((2, 2), False), ((3, 1), True)):
        (section,) = page.sections(compare([make_result("lwf", sizes=sizes, matrix=matrix)]))
        tables = [table for table in (section.table, section.more) if table]
        titles = [heading.title for table in tables for heading in table.headings]
        assert ("sample average accuracy %" in titles) == shown
        assert len(titles) == len(set(titles)) + len(tables) - 1, "only the strategy is in both"


def test_the_page_says_when_where_and_by_what_the_runs_were_made(make_result: Make, with_more: WithMore) -> None:
    runs = [
        with_more(
            make_result("lwf", seed, created=f"2026-01-0{seed + 1}T10:00:00+00:00"),
            environment={"device": "NVIDIA H200"},
            source="8889ade00659d1c9",
        )
        for seed in range(2)
    ]
    assert provenance.made(runs) == (
        "2 runs of 2026-01-01 to 2026-01-02 on NVIDIA H200, made by clbench 0.1.0, source 8889ade00659d1c9."
    )
    assert provenance.made(runs) in page.render(compare(runs))


def test_each_task_is_listed_with_the_names_of_its_classes(make_result: Make, with_more: WithMore) -> None:
    base = make_result("lwf", sizes=(2, 1))
    named = with_more(base, scenario=base.record["scenario"] | {"class_names": ["cat", "dog", "ship"]})
    (part,) = compare([named])
    assert provenance.tasks(part) == ([(0, "cat, dog"), (1, "ship")], "")
    (part,) = compare([named, with_more(make_result("lwf", 1, sizes=(2, 1)), class_order=[2, 1, 0])])
    assert provenance.tasks(part)[1] == "The runs have 2 class orders; this is that of seed 0."


def test_options_are_marked_where_runs_of_one_strategy_differ(make_result: Make) -> None:
    results = [
        make_result(name, label=label, config={"strategy_options": options})
        for name, label, options in (
            ("er", "er[share=0.5]", {"share": 0.5, "policy": "ring"}),
            ("er", "er[share=0.2]", {"share": 0.2, "policy": "ring"}),
            ("lwf", "lwf", {"strength": 1.0}),
        )
    ]
    (part,) = compare(results)
    table, _ = provenance.configs(part)
    assert table is not None
    place = [heading.title for heading in table.headings].index("strategy_options")
    shown = {str(cells[0].text): str(cells[place].text) for _, cells in table.lines}
    assert shown == {
        "ER[share=0.5]": "<mark>share=0.5</mark>, policy=ring",
        "ER[share=0.2]": "<mark>share=0.2</mark>, policy=ring",
        "LwF": "strength=1.0",
    }


def test_heights_of_names_are_apart_and_below_the_top() -> None:
    """By hand: 0.95 and 1.0 stand too near, so that the lower one moves down; two at 0 are 0.1 apart."""
    assert np.allclose(spaced([1.0, 0.0, 0.95, 0.0], 0.1, 1.0), [1.0, 0.0, 0.9, 0.1])
    assert np.allclose(spaced([0.5], 0.1, 1.0), [0.5])
    heights = spaced([0.3] * 8, 0.1, 1.0)
    assert np.allclose(np.diff(sorted(heights)), 0.1)
    assert max(heights) <= 1.0
