"""Names, `NAME[key=value,...]` and options: expected values are written by hand from the documented rules."""

from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Annotated, Literal

import pytest
from pydantic import Field

from clbench.config import registry
from clbench.config.errors import ConfigError

MODEL = registry.options_model(
    "Example",
    {
        "strength": (Annotated[float, Field(ge=0)], 1),
        "steps": (Annotated[int, Field(ge=1, le=100)], 5),
        "decay": (Annotated[float, Field(gt=0, lt=1)] | None, None),
        "online": (bool, False),
        "herding": (Literal["mean", "random"], "mean"),
        "rank": (Literal[1, 2], 1),
        "label": (str | None, None),
        "widths": (Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)], [400, 400]),
        "rates": (list[float], []),
        "betas": (tuple[float, float], (0.9, 0.999)),
        "size": (int | Literal["auto"], "auto"),
    },
)
DEFAULTS = {
    "strength": 1.0,
    "steps": 5,
    "decay": None,
    "online": False,
    "herding": "mean",
    "rank": 1,
    "label": None,
    "widths": [400, 400],
    "rates": [],
    "betas": (0.9, 0.999),
    "size": "auto",
}


def test_digit_runs_sort_as_numbers():
    names = ["task10", "task2", "task02", "10", "9", "task", "a1b10", "a1b9"]
    assert registry.natural_sorted(names) == ["9", "10", "a1b9", "a1b10", "task", "task02", "task2", "task10"]


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("er", "er", {}),
        ("  er [ memory_size = 200 , batch=4 ] ", "er", {"memory_size": "200", "batch": "4"}),
        ("er[]", "er", {}),
        ("mlp:400-400[dropout=0.1]", "mlp:400-400", {"dropout": "0.1"}),
        ("mlp[widths=[400,400],activation=tanh]", "mlp", {"widths": "[400,400]", "activation": "tanh"}),
        ("x[grid=[[1,2],[3,4]],rule=a=b]", "x", {"grid": "[[1,2],[3,4]]", "rule": "a=b"}),
        ("path/to/file.py:Mine[a=1]", "path/to/file.py:Mine", {"a": "1"}),
    ],
)
def test_spec_is_split_into_name_and_options(text, name, options):
    assert registry.parse_spec(text) == (name, options)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[a=1]",
        "er[",
        "er]",
        "er[a=1",
        "er[a=1]]",
        "er[a=[1]",
        "er[a=]1[]",
        "er[a=1]b",
        "er[a]",
        "er[a=]",
        "er[=1]",
        "er[a=1,]",
        "er[,a=1]",
        "er[a=1,a=2]",
        "er][a=1]",
    ],
)
def test_malformed_spec_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"accepted") as caught:
        registry.parse_spec(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_values_give_the_defaults_with_their_types():
    options = registry.validate_options(MODEL, {}, owner="lwf")
    assert options == DEFAULTS
    assert type(options["strength"]) is float


def test_a_default_list_is_not_shared_between_calls():
    registry.validate_options(MODEL, {}, owner="lwf")["widths"].append(1)
    assert registry.validate_options(MODEL, {}, owner="lwf")["widths"] == [400, 400]


@pytest.mark.parametrize(
    ("option", "given", "expected"),
    [
        ("strength", "0.5", 0.5),
        ("strength", "1e-3", 0.001),
        ("strength", 2, 2.0),
        ("steps", "7", 7),
        ("decay", "none", None),
        ("decay", "None", None),
        ("decay", "0.25", 0.25),
        ("online", "true", True),
        ("online", "False", False),
        ("herding", "random", "random"),
        ("rank", "2", 2),
        ("label", "none", None),
        ("label", "12", "12"),
        ("widths", "400-300", [400, 300]),
        ("widths", "4,3,3", [4, 3, 3]),
        ("widths", "[4, 3]", [4, 3]),
        ("widths", "7", [7]),
        ("widths", (4, 3), [4, 3]),
        ("rates", "1e-3,0.1", [0.001, 0.1]),
        ("rates", "[]", []),
        ("betas", "0.5,0.9", (0.5, 0.9)),
        ("betas", [0.5, 0.9], (0.5, 0.9)),
        ("size", "auto", "auto"),
        ("size", "12", 12),
    ],
)
def test_a_value_is_read(option, given, expected):
    value = registry.validate_options(MODEL, {option: given}, owner="lwf")[option]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("option", "given", "sentence"),
    [
        ("strength", -1, "lwf: strength=-1 given, greater than or equal to 0 accepted"),
        ("strength", "-1", "lwf: strength=-1 given, greater than or equal to 0 accepted"),
        ("strength", "much", "lwf: strength=much given, a valid number accepted"),
        ("strength", True, "lwf: strength=True given, a valid number accepted"),
        ("strength", None, "lwf: strength=None given, a valid number accepted"),
        ("strength", "none", "lwf: strength=none given, a valid number accepted"),
        ("strength", float("nan"), "lwf: strength=nan given, a finite number accepted"),
        ("strength", "inf", "lwf: strength=inf given, a finite number accepted"),
        ("steps", True, "lwf: steps=True given, a valid integer accepted"),
        ("steps", 2.0, "lwf: steps=2.0 given, a valid integer accepted"),
        ("steps", "2.5", "lwf: steps=2.5 given, a valid integer accepted"),
        ("steps", 101, "lwf: steps=101 given, less than or equal to 100 accepted"),
        ("decay", 1, "lwf: decay=1 given, less than 1 accepted"),
        ("online", 1, "lwf: online=1 given, a valid boolean accepted"),
        ("online", "maybe", "lwf: online=maybe given, a valid boolean accepted"),
        ("herding", "best", "lwf: herding=best given, 'mean' or 'random' accepted"),
        ("widths", "400-0", "lwf: widths=400-0 given, greater than or equal to 1 for each entry accepted"),
        ("widths", "4,x", "lwf: widths=4,x given, a valid integer for each entry accepted"),
        ("widths", ["4"], "lwf: widths=['4'] given, a valid integer for each entry accepted"),
        ("widths", "[]", "lwf: widths=[] given, at least 1 item accepted"),
        ("widths", 4, "lwf: widths=4 given, a valid list accepted"),
        ("size", "big", "lwf: size=big given, a valid integer or 'auto' accepted"),
        ("strength", "1\n2", r"lwf: strength='1\n2' given, a valid number accepted"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(option, given, sentence):
    with pytest.raises(ConfigError) as caught:
        registry.validate_options(MODEL, {option: given}, owner="lwf")
    assert str(caught.value) == sentence


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown option of lwf 'strenght'; did you mean 'strength'\?"):
        registry.validate_options(MODEL, {"strenght": 1}, owner="lwf")


def test_an_option_without_default_is_required():
    model = registry.options_model("Required", {"path": (str, ...)})
    with pytest.raises(ConfigError, match=r"^mine: path is required$"):
        registry.validate_options(model, {}, owner="mine")


def declare(monkeypatch, *declared):
    """Make `(name, value, package)` triples look like what installed packages declare."""
    entries = [EntryPoint(n, v, "group")._for(SimpleNamespace(name=p)) for n, v, p in declared]

    def find(*, group, name=None):
        return [e for e in entries if group == "group" and name in (None, e.name)]

    monkeypatch.setattr(registry, "entry_points", find)


def test_an_entry_point_is_loaded_by_name(monkeypatch):
    declare(monkeypatch, ("task10", "math:pi", "one"), ("task2", "math:tau", "two"))
    assert registry.entry_point_names("group") == ["task2", "task10"]
    assert registry.load_entry_point("group", "model", "task10") == pytest.approx(3.14159265)
    with pytest.raises(ConfigError, match=r"unknown model 'tusk2'; did you mean 'task2'\?"):
        registry.load_entry_point("group", "model", "tusk2")


def test_a_name_of_two_packages_is_refused_naming_both(monkeypatch):
    declare(monkeypatch, ("mine", "math:pi", "zeta"), ("mine", "math:tau", "alpha"))
    assert registry.entry_point_names("group") == ["mine"]
    with pytest.raises(ConfigError, match="'mine' is declared by alpha and zeta"):
        registry.load_entry_point("group", "model", "mine")


@pytest.mark.parametrize("value", ["no_such_module_anywhere:X", "math:no_such_name"])
def test_an_import_that_fails_names_its_package(monkeypatch, value):
    declare(monkeypatch, ("mine", value, "alpha"))
    with pytest.raises(ConfigError, match=r"^model 'mine' of alpha can't be imported \(.*no_such"):
        registry.load_entry_point("group", "model", "mine")


def test_the_models_are_declared():
    assert {"conv", "mlp", "resnet18", "resnet32"} <= set(registry.entry_point_names("clbench.models"))
