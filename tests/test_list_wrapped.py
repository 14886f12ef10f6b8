"""`clbench list NAME` breaks lines for the terminal, and not where the source breaks them too."""

import inspect
import itertools

import pytest

from clbench.cli.listing import _wrapped
from clbench.config.registry import entry_point_names
from clbench.running.resolve import strategy_class

TEXT = """\
A method. Somebody 2020.

The loss is one thing and another thing, and it is said in a sentence that
goes on here. Short.

first: what it is, in a line of the source that ends where there is no more
    room.
second, third: two of one meaning.
"""


def test_paragraphs_are_wrapped_and_parameters_indented() -> None:
    assert _wrapped(TEXT, 40) == (
        "A method. Somebody 2020.\n"
        "\n"
        "The loss is one thing and another thing,\n"
        "and it is said in a sentence that goes\n"
        "on here. Short.\n"
        "\n"
        "first: what it is, in a line of the\n"
        "    source that ends where there is no\n"
        "    more room.\n"
        "second, third: two of one meaning."
    )


def test_lines_that_are_short_in_the_source_stay_apart() -> None:
    text = f"{'x ' * 20}\na = 1\nb = 2"
    assert _wrapped(text, 60) == f"{('x ' * 20).strip()} a = 1\nb = 2"


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_no_line_of_a_strategy_is_too_long_or_broken_where_there_is_room(width: int) -> None:
    for name in entry_point_names("clbench.strategies"):
        text = inspect.getdoc(strategy_class(name)) or ""
        wrapped = _wrapped(text, width)
        assert wrapped.split() == text.split()
        lines = wrapped.splitlines()
        assert all(len(line) <= width for line in lines if " " in line.strip()), name
        for line, following in itertools.pairwise(lines):
            # A line in small letters that is no parameter goes on with the one before it.
            if line and following[:4] == "    ":
                assert len(line) + 1 + len(following.split()[0]) > width, (name, following)
