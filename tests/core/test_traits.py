"""Declarations of a strategy: values that are not accepted are refused, and so are the declarations of 0.1.0."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import clbench
from clbench.running.resolve import resolve, strategy_class


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"family": "replays"}, ("family", "'replays'", "'replay'")),
        ({"data_access": "tasks"}, ("data_access", "'tasks'", "'task'")),
        ({"memory": "replay"}, ("memory", "'replay'", "'replayed'")),
        ({"memory_policy": "heding"}, ("memory_policy", "'heding'", "'herding'")),
        ({"settings": ("class", "tasks")}, ("settings", "'tasks'", "'task'")),
        ({"settings": ()}, ("settings=()", "class, task, domain")),
        ({"needs_memory": "yes"}, ("needs_memory='yes'", "True and False")),
    ],
)
def test_a_value_that_is_not_accepted_is_refused_with_the_nearest_one(given: Any, words: Any, refused: Any) -> None:
    with refused(*words):
        clbench.Traits(**({"family": "replay"} | given))


def test_a_subclass_inherits_its_traits_and_may_replace_some() -> None:
    class Parent(clbench.Strategy):
        traits = clbench.Traits(family="replay", needs_memory=True)

    class Same(Parent):
        pass

    class Other(Parent):
        traits = replace(Parent.traits, memory_policy="random")

    assert Same.traits is Parent.traits
    assert (Other.traits.family, Other.traits.needs_memory, Other.traits.memory_policy) == ("replay", True, "random")


OLD = """
import clbench
class Old(clbench.Strategy):
    family = "replay"
    memory_use = "replayed"
    needs_memory = True
class Younger(clbench.Strategy):
    traits = clbench.Traits(family="reference")
    settings = ("class",)
class Bare(clbench.Strategy):
    pass
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "Old",
            (
                "family, memory_use, needs_memory",
                "traits = Traits(family='replay', memory='replayed', needs_memory=True)",
            ),
        ),
        ("Younger", ("settings", "Traits(settings=('class',))")),
        ("Bare", ("declares no traits", "traits = Traits(family='replay')")),
    ],
)
def test_a_strategy_that_declares_as_for_0_1_is_told_the_new_spelling(
    name: str, words: Any, tmp_path: Path, refused: Any
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OLD, "utf-8")
    with refused(*words):
        strategy_class(f"{file}:{name}")


def test_a_class_without_traits_is_refused_where_it_is_handed_over(refused: Any) -> None:
    class Bare(clbench.Strategy):
        pass

    with refused("'Bare'", "declares no traits"):
        resolve("split-mnist-5k", Bare, {})
