"""The names and marks of several configurations of one strategy in charts: they differ by what differs."""

from collections.abc import Callable

import pytest

from clbench.reports import figures
from clbench.reports.chart import shortened, text_width
from clbench.reports.charts import title
from clbench.reports.comparison import Comparison
from clbench.results.result import Result

Make = Callable[..., Result]
Compared = Callable[[list[Result]], Comparison]


@pytest.mark.parametrize(
    ("strategy", "besides", "names"),
    [
        ("er", ["[memory_size=20]"], ["ER"]),
        ("er", ["[memory_size=20]", "[memory_size=50]"], ["ER[memory_size=20]", "ER[memory_size=50]"]),
        (
            "er",
            ["[memory_size=20,lr=0.1,batch_size=8]", "[memory_size=20,lr=0.1,batch_size=16]"],
            ["ER[batch_size=8]", "ER[batch_size=16]"],
        ),
        ("naive", ["[lr=0.1]", "[lr=0.01]"], ["naive[lr=0.1]", "naive[lr=0.01]"]),
        ("naive", ["", "[lr=0.01]"], ["naive", "naive[lr=0.01]"]),
        ("lwf", ["[lr=0.1] (epochs=1)", "[lr=0.1] (epochs=2)"], ["LwF (epochs=1)", "LwF (epochs=2)"]),
        ("lwf", ["[a=1,b=1]", "[a=1,b=2]", "[a=2,b=1]"], ["LwF[a=1,b=1]", "LwF[a=1,b=2]", "LwF[a=2,b=1]"]),
    ],
)
def test_a_chart_names_what_differs_between_the_configurations_of_a_strategy(
    strategy: str, besides: list[str], names: list[str], make_result: Make, compared: Compared
) -> None:
    part = compared([make_result(strategy, label=f"{strategy}{beside}") for beside in besides])
    assert sorted(title(part, row) for row in part.rows) == sorted(names)


def test_further_classifiers_keep_their_names(seven: list[Result], compared: Compared) -> None:
    part = compared(seven)
    assert {"iCaRL", "iCaRL (linear)"} <= {title(part, row) for row in part.rows}


def test_the_lower_reference_at_three_settings_has_three_marks(make_result: Make, compared: Compared) -> None:
    part = compared([make_result("naive", label=f"naive[lr={lr}]") for lr in ("0.1", "0.2", "0.3")])
    lines = [figures._line(row.look) for row in part.rows]
    assert len({line["marker"] for line in lines}) == 3
    assert {line["linestyle"] for line in lines} == {"--"}


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [
        ("naive[lr=0.001,batch_size=8]", 16.0, "naive[lr=0.001,bs=8]"),
        ("naive[lr=0.001,batch_size=8]", 40.0, "naive[lr=0.001,batch_size=8]"),
        ("naive[lr=0.001,batch_size=8]", 9.5, "naive[0.001,8]"),
        ("a_name_that_is_no_option", 40.0, "a_name_that_is_no_option"),
    ],
)
def test_a_label_without_room_gives_up_the_names_of_its_options_first(text: str, room: float, shown: str) -> None:
    assert shortened(text, room) == shown
    assert text_width(shown, 1.0) <= room
