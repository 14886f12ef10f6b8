"""Hooks that can't serve are refused by name when their class is used, or end the run in one sentence."""

import datetime
import decimal
import enum
import functools
import inspect
import textwrap
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import clbench
from clbench import ConfigError, RunError
from clbench.config.contract import check_hooks
from clbench.learning.strategy import Strategy
from clbench.running.checkpoint import Store
from clbench.running.resolve import prepare, resolve, scenario_class, strategy_class

TRAITS = clbench.Traits(family="reference")


async def asynchronous(self: Any, *given: Any) -> None: ...


def generating(self: Any, *given: Any) -> Any:
    yield given


def strategy(**parts: Any) -> type[Strategy]:
    """Return a strategy called Mine with these parts."""
    return type("Mine", (Strategy,), {"traits": TRAITS, "__module__": __name__, **parts})


def refusal(cls: type[Strategy]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve("split-mnist-5k", cls, {})
    text = str(caught.value)
    assert text.isprintable(), text
    assert len(text) < 300, text
    return text


HOOKS = {
    **dict.fromkeys(("begin_run", "penalty"), "self"),
    **dict.fromkeys(("begin_task", "stages", "end_task"), "self, task"),
    **dict.fromkeys(("loss", "after_backward", "after_step"), "self, batch"),
    "check": "self, config, scenario",
    "scores": "self, images, task=None",
    "features": "self, images",
    "new_memory": "self, kind, size, per_class",
    "decays": "self, name, parameter",
}
WRONG: dict[str, Any] = {
    "no self": lambda: None,
    "one more": lambda self, a, b, c, d, e: None,
    "a name that is needed": lambda self, *given, needed: None,
    "a static method": staticmethod(lambda *given: None),
    "a class method": classmethod(lambda cls, *given: None),
    "a property": property(lambda self: None),
    "async": asynchronous,
    "a generator": generating,
    "a number": 5,
    "None": None,
    "a class": int,
    "a module": torch.nn.CrossEntropyLoss(),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_hook_that_can_not_be_called_is_refused_with_its_definition(hook: str, wrong: str) -> None:
    """13 hooks, each replaced in 12 ways; the definition that is accepted is written above."""
    text = refusal(strategy(**{hook: WRONG[wrong]}))
    assert f"Mine.{hook} " in text
    assert f"def {hook}({HOOKS[hook]}) is accepted" in text


@pytest.mark.parametrize("hook", [h for h, definition in HOOKS.items() if definition != "self"])
def test_a_hook_without_its_parameter_is_refused(hook: str) -> None:
    assert f"def {hook}(" in refusal(strategy(**{hook: lambda self: None}))


def test_the_table_of_hooks_is_that_of_the_contract() -> None:
    """The definitions above, in the order and with the defaults of the base class."""
    for hook, definition in HOOKS.items():
        found = inspect.signature(getattr(Strategy, hook)).parameters.values()
        spelt = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in found)
        assert spelt == definition


def test_hooks_of_other_forms_that_can_be_called_are_accepted() -> None:
    @torch.no_grad()
    def end_task(self: Any, task: Any, more: int = 3) -> None: ...

    cls = strategy(
        end_task=end_task,
        loss=lambda self, *given, **named: None,
        after_step=functools.partialmethod(lambda self, n, batch: None, 2),
        scores=lambda self, images: None,
        features=lambda self, x: None,
    )
    assert strategy_class(resolve("split-mnist-5k", cls, {}).strategy) is cls


def test_a_hook_of_a_parent_class_is_looked_at_too() -> None:
    parent = strategy(loss=staticmethod(lambda batch: None))
    assert "loss is a static method" in refusal(type("Child", (parent,), {"__module__": __name__}))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        # Names of something else.
        ("lr: float = 0.1", ("Mine.lr", "field of every run")),
        ("seed: int = 0", ("Mine.seed", "field of every run")),
        ("epochs: int = 1", ("Mine.epochs", "field of every run")),
        ("device: str = 'cpu'", ("Mine.device",)),
        ("state: int = 0", ("Mine.state",)),
        ("loss: float = 0.0", ("Mine.loss",)),
        ("memory: int = 5", ("Mine.memory", "no option")),
        ("model: str = 'mlp'", ("Mine.model",)),
        ("progress: int = 5", ("Mine.progress",)),
        ("log: bool = True", ("Mine.log",)),
        ("config = {}", ("Mine.config", "another name")),
        # Defaults and annotations.
        ("strength: float = 'high'", ("Mine.strength", "'high'", "valid number")),
        ("strength: float = None", ("Mine.strength", "None")),
        ("n: int = 2.5", ("Mine.n", "2.5", "valid integer")),
        ("n: Annotated[int, Field(ge=1)] = 0", ("Mine.n", "greater than or equal to 1")),
        ("needed: int\n    n: int = 'a'", ("Mine.n", "'a'")),
        ("strength: 'Strenght' = 1.0", ("Mine", "Strenght")),
        ("strength: 'float[' = 1.0", ("Mine", "annotation")),
        ("layer: torch.nn.Module = None", ("Mine", "hyper-parameter")),
        # Constructors.
        ("strength: float = 1.0\n    def __init__(self): pass", ("Mine.__init__", "**options")),
        ("strength: float = 1.0\n    def __init__(self, depth, **options): pass", ("Mine.__init__", "depth")),
    ],
)
def test_a_faulty_declaration_is_refused_and_stops_only_its_own_class(
    source: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    """The other class of the same file works."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from typing import Annotated\nimport torch\nfrom pydantic import Field\nimport clbench\n"
        'class Mine(clbench.Strategy):\n    traits = clbench.Traits(family="reference")\n'
        f"    {source}\n"
        'class Good(clbench.Strategy):\n    traits = clbench.Traits(family="reference")\n'
    )
    with pytest.raises(ConfigError) as caught:
        resolve("split-mnist-5k", f"{file}:Mine", {})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value)) < 300
    resolve("split-mnist-5k", f"{file}:Good", {})


def test_a_constructor_that_drops_its_options_is_refused(run: Any, refused: Any) -> None:
    class Dropping(Strategy):
        traits = TRAITS
        strength: float = 1.0

        def __init__(self, **options: Any) -> None:
            pass

    with refused("Dropping.__init__ does not keep strength=2.0"):
        run(Dropping, strategy_options={"strength": 2})


def test_mutable_defaults_are_not_shared() -> None:
    class Mine(Strategy):
        traits = TRAITS
        layers: list[int] = [1, 2]  # noqa: RUF012

    one, other = Mine(), Mine()
    one.layers.append(3)
    assert other.layers == [1, 2] == Mine.layers


SCENARIO_FAULTS = {
    "build = None": "Faulty.build is None",
    "@staticmethod\n    def build(config): pass": "Faulty.build is a static method",
    "def build(self): pass": "def build(self, config) is accepted",
    "async def build(self, config): pass": "is async",
    "def build(self, config): yield 1": "yields",
    "n: int = 'a'\n    def build(self, config): pass": "the default 'a'",
    "lr: float = 0.1\n    def build(self, config): pass": "field of every run",
    "options: int = 1\n    def build(self, config): pass": "options",
    "n: 'Nothing' = 1\n    def build(self, config): pass": "Nothing",
    "preset = [1]\n    def build(self, config): pass": "a mapping is accepted",
    "pass": "has no build",
    "def __init__(self): pass\n    def build(self, config): pass": "Faulty.__init__",
}


@pytest.mark.parametrize("source", SCENARIO_FAULTS)
def test_a_faulty_scenario_is_refused_and_stops_only_its_own_class(source: str) -> None:
    made: dict[str, Any] = {"__name__": __name__}
    code = f"""
import clbench
class Faulty(clbench.ScenarioSpec):
    {source}
class Good(clbench.ScenarioSpec):
    def build(self, config): ...
"""
    exec(textwrap.dedent(code), made)
    with pytest.raises(ConfigError) as caught:
        resolve(made["Faulty"], "naive", {"epochs": 1})
    assert SCENARIO_FAULTS[source] in str(caught.value)
    assert resolve(made["Good"], "naive", {"epochs": 1}).scenario == "Good"
    assert scenario_class("Good") is made["Good"]


@pytest.mark.parametrize("returned", [None, 5, "split", [], object()])
def test_what_build_returns_is_a_scenario(returned: Any, refused: Any) -> None:
    class Odd(clbench.ScenarioSpec):
        def build(self, config: Any) -> Any:
            return returned

    with refused("Odd.build() returned"):
        prepare(resolve(Odd, "naive", {"epochs": 1}))


def test_a_scenario_that_raises_is_named_with_its_line(refused: Any) -> None:
    class Broken(clbench.ScenarioSpec):
        def build(self, config: Any) -> Any:
            return {}["missing"]

    with refused("KeyError", "Broken.build, test_hooks.py line"):
        prepare(resolve(Broken, "naive", {"epochs": 1}))


@pytest.mark.parametrize("hook", ["begin_run", "begin_task", "end_task", "after_step", "after_backward"])
@pytest.mark.parametrize("returned", [1, "done", False, torch.zeros(2)])
def test_what_a_hook_returns_in_vain_is_refused(hook: str, returned: Any, run: Any) -> None:
    cls = strategy(**{hook: lambda self, *given: returned})
    with pytest.raises(RunError, match=rf"^Mine\.{hook} returned .*, which has no effect; it returns nothing"):
        run(cls)


def test_what_check_returns_in_vain_is_refused_before_training(run: Any, refused: Any) -> None:
    with refused("Mine.check returned True, which has no effect"):
        run(strategy(check=lambda self, config, scenario: True))


@pytest.mark.parametrize(
    ("hook", "returned", "words"),
    [
        ("stages", None, "Mine.stages returned None; a list of Stage"),
        ("stages", 5, "Mine.stages returned 5"),
        ("stages", [1], "Mine.stages returned 1 among the stages"),
        ("stages", "train", "Mine.stages returned 'train'"),
        ("penalty", 1.0, "Mine.penalty returned 1.0; None or a scalar tensor"),
        ("penalty", "a", "Mine.penalty returned 'a'"),
        ("penalty", torch.zeros(3), "Mine.penalty returned float32 [3]"),
        ("new_memory", None, "Mine.new_memory returned None; an empty clbench.memory.Memory"),
        ("new_memory", [], "Mine.new_memory returned a list"),
    ],
)
def test_what_a_hook_returns_wrongly_is_refused_by_name(hook: str, returned: Any, words: str, run: Any) -> None:
    with pytest.raises((RunError, ConfigError)) as caught:
        run(strategy(**{hook: lambda self, *given: returned}), memory_size=10)
    assert words in str(caught.value)


class StopError(Exception):
    """Something of the user's own, with a part of its own."""

    def __init__(self, place: str) -> None:
        super().__init__(f"stopped in {place}")
        self.place = place


RAISED = {
    "ZeroDivisionError": lambda: 1 / 0,
    "KeyError": lambda: {}["missing"],
    "IndexError": lambda: [][1],
    "AttributeError": lambda: None.missing,  # type: ignore[attr-defined]
    "RuntimeError": lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
    "StopIteration": lambda: next(iter(())),
    "OSError": lambda: Path("/no/such/file").read_bytes(),
    "UnicodeDecodeError": lambda: b"\xff".decode(),
    "AssertionError": lambda: (_ for _ in ()).throw(AssertionError),
}


@pytest.mark.parametrize("hook", [h for h in HOOKS if h not in ("check", "features", "new_memory", "decays")])
def test_whatever_a_hook_raises_ends_the_run_in_one_sentence(hook: str, run: Any, tmp_path: Path) -> None:
    """9 kinds of exception in each hook; the line is that of the function below that raises."""

    def raising(self: Any, *given: Any) -> Any:
        self.kind()

    raising.__qualname__ = f"Mine.{hook}"
    # The code object's name is what a frame has.
    raising.__code__ = raising.__code__.replace(co_name=hook, co_qualname=f"Mine.{hook}")
    for number, (kind, raise_it) in enumerate(RAISED.items()):
        cls = strategy(**{hook: raising, "kind": lambda self, r=raise_it: r()})
        folder = tmp_path / str(number)
        with pytest.raises(RunError) as caught:
            run(cls, out=folder)
        text = str(caught.value)
        expected = "FileNotFoundError" if kind == "OSError" else kind
        assert text.startswith(expected), text
        assert f"(task 0, Mine.{hook}, test_hooks.py line " in text, text
        assert text.isprintable(), text
        assert type(caught.value.__cause__).__name__ == expected
        stored = clbench.Result.load(folder)
        assert stored.status == "failed"
        assert stored.record["error"] == text


def test_who_raises_something_to_end_a_run_can_catch_it(run: Any) -> None:
    """It is a RunError, too, and has what was put on it."""

    class Stopping(clbench.Observer):
        def task(self, task: int, row: Any) -> None:
            raise StopError("an observer")

    with pytest.raises(StopError) as caught:
        run(observer=Stopping())
    assert isinstance(caught.value, RunError)
    assert caught.value.place == "an observer"
    assert "StopError: stopped in an observer (task 0, " in str(caught.value)
    assert "Stopping.task, test_hooks.py" in str(caught.value)


def test_a_check_that_raises_is_a_refusal_with_its_line(run: Any, refused: Any) -> None:
    class Mine(Strategy):
        traits = TRAITS

        def check(self, config: Any, scenario: Any) -> None:
            raise IndexError("no such task")

    with refused("IndexError: no such task", "Mine.check, test_hooks.py line"):
        run(Mine)


@pytest.mark.parametrize("wrong", ["no self", "one more", "async", "a generator", "a static method", "a number"])
@pytest.mark.parametrize("hook", ["begin", "step", "epoch", "task", "written", "finished", "kept", "close"])
def test_an_observer_whose_hooks_can_not_be_called_is_refused_before_training(
    hook: str, wrong: str, run: Any, refused: Any
) -> None:
    cls = type("Watching", (clbench.Observer,), {hook: WRONG[wrong]})
    with refused(f"Watching.{hook} ", f"def {hook}(self"):
        run(observer=cls())


def test_what_an_observer_returns_in_vain_is_refused(run: Any) -> None:
    class Watching(clbench.Observer):
        def task(self, task: int, row: Any) -> Any:
            return "stop"

    with pytest.raises(RunError, match=r"Watching\.task returned 'stop'"):
        run(observer=Watching())


class Kept:
    """A store in a dictionary that survives the object."""

    content: ClassVar[list[bytes]] = []

    def save_checkpoint(self, content: bytes) -> None:
        self.content[:] = [content]

    def checkpoints(self) -> Any:
        return [("latest", content) for content in self.content]

    def drop_checkpoint(self) -> None:
        self.content.clear()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"save_checkpoint": lambda self: None}, ("save_checkpoint", "def save_checkpoint(self, content)")),
        ({"checkpoints": asynchronous}, ("checkpoints is async",)),
        ({"checkpoints": generating}, ("checkpoints yields",)),
        ({"drop_checkpoint": staticmethod(lambda: None)}, ("drop_checkpoint is a static method",)),
        ({"checkpoints": lambda self: None}, ("checkpoints() returned None", "a name and bytes")),
        ({"checkpoints": lambda self: [b"x"]}, ("checkpoints() returned",)),
        ({"checkpoints": lambda self: [("latest", "text")]}, ("checkpoints() returned",)),
        ({"checkpoints": lambda self: [("latest", b"x", 3)]}, ("checkpoints() returned",)),
        ({"checkpoints": lambda self: {"latest": b"x"}}, ("checkpoints() returned",)),
    ],
)
def test_a_store_of_wrong_things_is_refused(parts: Any, words: Any, run: Any, refused: Any) -> None:
    with refused(*words):
        run(store=type("Wrong", (Kept,), parts)())


def test_a_store_that_fails_ends_the_run_in_one_sentence(run: Any) -> None:
    class Full(Kept):
        def save_checkpoint(self, content: bytes) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"No space left .*\(task 0, Full\.save_checkpoint, test_hooks\.py line"):
        run(store=Full())
    check_hooks(Full, Store)


def test_the_metrics_of_a_user(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clbench.metrics, "METRICS", dict(clbench.metrics.METRICS))

    async def later(R: Any) -> float:  # noqa: N803
        return 1.0

    def yields(R: Any) -> Any:  # noqa: N803
        yield 1.0

    for wrong in (5, "forgetting", later, yields, int):
        with refused("metric: "):
            clbench.metrics.metric("A sentence.")(wrong)
    for returned in ("high", float("nan"), [1.0], True, 10**400, -(10**5000), 1j, float("inf"), {}):

        @clbench.metrics.metric("A sentence.")
        def of_mine(R: Any) -> Any:  # noqa: N803
            return returned  # noqa: B023

        with refused("the metric of_mine returned"):
            clbench.metrics.summarize([[1.0]])


def test_a_data_set_of_a_package_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    from clbench.scenarios import datasets

    def broken(data_root: Path, offline: bool) -> Any:
        raise KeyError("no files")

    monkeypatch.setattr(datasets, "entry_point_names", lambda group: ["theirs"])
    for read, words in (
        (broken, ("KeyError", "no files")),
        (lambda: None, ("TypeError", "positional")),
        (lambda data_root, offline: {}, ("a Dataset",)),
        (5, ("'theirs'", "a function")),
    ):
        monkeypatch.setattr(datasets, "load_entry_point", lambda *given, read=read: read)
        with refused("dataset 'theirs'", *words):
            datasets.load_dataset("theirs", "data", offline=True)


def test_a_strategy_file_that_can_not_be_imported_is_named(tmp_path: Path, refused: Any) -> None:
    for number, (source, words) in enumerate(
        (
            (
                "import clbench\nclass Mine(clbench.Strategy):\n    traits = clbench.Traits(family='repaly')",
                ("'replay'",),
            ),
            ("1 / 0", ("can't be imported", "ZeroDivisionError")),
            ("class Mine: pass", ("a subclass of clbench.Strategy",)),
            ("def Mine(): pass", ("a subclass of clbench.Strategy",)),
            ("this is no Python", ("can't be imported", "SyntaxError")),
        )
    ):
        file = tmp_path / f"mine{number}.py"
        file.write_text(source)
        with refused(*words):
            resolve("split-mnist-5k", f"{file}:Mine", {})


INSTEAD: dict[str, tuple[Any, str]] = {
    "state": ({}, "self.state hides a method of every strategy"),
    "loss": (0.0, "self.loss hides a method of every strategy"),
    "penalty": (None, "self.penalty hides"),
    "scores": ([1], "self.scores hides"),
    "rng": (1, "self.rng hides"),
    "log": ([], "self.log hides"),
    "features": (None, "self.features hides"),
    "trainable": (True, "self.trainable hides"),
    "model": (None, "self.model is None; a clbench.models.Network is accepted"),
    "memory": (5, "self.memory is 5; a clbench.memory.Memory is accepted"),
}


@pytest.mark.parametrize("hook", ["begin_run", "begin_task", "end_task"])
@pytest.mark.parametrize("name", INSTEAD)
def test_what_stands_in_the_place_of_a_method_or_the_model_is_named(name: str, hook: str, run: Any) -> None:
    value, words = INSTEAD[name]
    cls = strategy(**{hook: lambda self, *given: setattr(self, name, value)})
    with pytest.raises(RunError, match=rf"^Mine: {words}"):
        run(cls)


def test_another_head_than_clbenchs_is_named(run: Any) -> None:
    def begin_task(self: Any, task: Any) -> None:
        self.model.head = torch.nn.Linear(self.model.feature_dim, 2)

    with pytest.raises(RunError, match=r"^Mine: self\.model\.head is a Linear; a clbench\.models\.Head is accepted"):
        run(strategy(begin_task=begin_task))


def test_traits_that_change_under_way_are_refused(run: Any) -> None:
    def begin_task(self: Any, task: Any) -> None:
        type(self).traits = clbench.Traits(family="reference", needs_task_at_test=True)

    with pytest.raises(RunError, match="Mine: its traits were changed while the run was under way"):
        run(strategy(begin_task=begin_task))


def test_a_change_of_the_config_is_told_in_one_sentence(run: Any) -> None:
    def begin_task(self: Any, task: Any) -> None:
        self.config.training.lr = 5

    with pytest.raises(RunError) as caught:
        run(strategy(begin_task=begin_task))
    assert str(caught.value).startswith("ValidationError: Instance is frozen (task 0, ")


def test_an_edit_of_the_tasks_ids_stays_within_the_run(run: Any, tiny: Any) -> None:
    """The ids that a hook sees are a copy, or every later run on the scenario would train on other images."""

    def begin_task(self: Any, task: Any) -> None:
        task.train.ids[:5] = task.train.ids[5:10]

    def losses(result: Any) -> Any:
        return [epoch["losses"] for epoch in result.record["training"]]

    before, digest = losses(run("naive")), tiny.digest()
    assert losses(run(strategy(begin_task=begin_task))) != before
    assert tiny.digest() == digest
    assert losses(run("naive")) == before


class Colour(enum.Enum):
    RED = 1


UNRECORDED: dict[str, tuple[Any, Any]] = {
    "an enum": (Colour, Colour.RED),
    "a path": (Path, Path("x")),
    "a set": (set[int], {1}),
    "bytes": (bytes, b"x"),
    "a complex number": (complex, 1j),
    "a decimal": (decimal.Decimal, decimal.Decimal(1)),
    "a date": (datetime.date, datetime.date(2026, 1, 1)),
    "a function": (Any, len),
    "a class": (type, int),
    "a tensor": (Any, torch.ones(2)),
    "a number too long to be written": (int, 10**5000),
    "half a character": (str, "\ud800"),
}


@pytest.mark.parametrize("kind", UNRECORDED)
def test_an_option_that_a_record_cannot_hold_is_refused(kind: str, refused: Any) -> None:
    annotation, value = UNRECORDED[kind]
    cls = strategy(__annotations__={"option": annotation}, option=value)
    with refused("Mine: option=", "what run.json can hold is accepted"):
        resolve("split-mnist-5k", cls, {})


def test_a_default_that_is_set_from_outside_later_counts(run: Any) -> None:
    base = strategy(__annotations__={"factor": float}, factor=1.0)
    cls = type("Below", (base,), {"__module__": __name__})
    assert run(cls).config["strategy_options"] == {"factor": 1.0}
    base.factor = 5.0  # type: ignore[attr-defined]
    assert run(cls).config["strategy_options"] == {"factor": 5.0}


@pytest.mark.parametrize("given", [False, True], ids=["default", "given"])
def test_a_list_that_a_hook_fills_is_the_runs_own(given: bool, run: Any) -> None:
    default: list[Any] = [1.0]
    options: dict[str, Any] = {"sizes": [1.0]}
    cls = strategy(
        __annotations__={"sizes": Any}, sizes=default, end_task=lambda self, task: self.sizes.append(len(self.sizes))
    )
    for _ in range(2):
        result = run(cls, **({"strategy_options": options} if given else {}))
        assert result.config["strategy_options"] == {"sizes": [1.0]}
    assert (default, options) == ([1.0], {"sizes": [1.0]})
