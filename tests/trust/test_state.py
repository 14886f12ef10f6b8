"""Attributes of a strategy come back to the same bits, or are refused by name within the task."""

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import io
import itertools
import os
import pathlib
import random
import socket
import tempfile
import threading
import types
import typing
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import StopAt, StoppedError
from torch import nn

import clbench
from clbench import RunError, Strategy, Traits
from clbench.models import build_model
from clbench.running import packing
from clbench.running.packing import pack, unpack
from clbench.tools.conformance import check_strategy

SMALL: dict[str, Any] = {"model": "mlp:8", "batch_size": 8, "checkpoint_every": "1-steps"}


def same_weights(one: Path, other: Path) -> bool:
    states = [torch.load(folder / "model.pt", weights_only=True) for folder in (one, other)]
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def interrupted(run: Any, strategy: type[Strategy], folder: Path, task: int, step: int | None, **options: Any) -> None:
    """Do a run in one go in folder/whole, and in folder/resumed with an interruption after which it is continued."""
    run(strategy, out=folder / "whole", **SMALL | options)
    with pytest.raises(StoppedError):
        run(strategy, out=folder / "resumed", observer=StopAt(task, step), **SMALL | options)
    run(strategy, out=folder / "resumed", resume=True, **SMALL | options)
    assert same_weights(folder / "whole", folder / "resumed")


# Accepted kinds: each is used and changed in every step, and its number is part of the loss.


class Colour(enum.Enum):
    """Two members, with values of two types."""

    RED = 1
    BLUE = "b"


class Rights(enum.Flag):
    """Members that can be joined."""

    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Point:
    """A number and a tensor."""

    x: float
    t: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    """A dataclass without a __dict__."""

    x: float


class Pair(typing.NamedTuple):
    """A named tuple."""

    count: int
    items: list[float]


class Plain:
    """A class of the user's own."""

    def __init__(self) -> None:
        self.values = [0.5]


class Layer(nn.Module):
    """A layer that holds what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.history = [np.zeros(2)]
        self.shape = collections.deque([1.0], maxlen=3)


class Memory(clbench.memory.ReservoirMemory):
    """A memory of the user's own."""


def array_step(array: Any) -> float:
    array += 0.25
    return float(array.sum())


def drawn(draw: Callable[[Any], Any]) -> Callable[[Any], float]:
    return lambda generator: float(draw(generator))


def fit_step(held: Any) -> float:
    """Let an optimizer and its schedule move a tensor of the strategy's own."""
    weight, optimizer, schedule = held
    optimizer.zero_grad()
    (weight - 3).square().sum().backward()
    optimizer.step()
    schedule.step()
    return float(weight.detach().sum()) + float(optimizer.param_groups[0]["lr"])


def fitted(kind: Any, **options: Any) -> Callable[[], Any]:
    def made() -> Any:
        weight = torch.zeros(2, requires_grad=True)
        optimizer = kind([weight], lr=0.1, **options)
        return weight, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)

    return made


def put(container: Any, key: Any, value: Any) -> None:
    container[key] = value


def two_names() -> Any:
    tensor = torch.zeros(2)
    return {"one": tensor, "other": tensor, "part": tensor[1:]}


def two_arrays() -> Any:
    array = np.zeros((3, 4))
    return {"one": array, "row": array[1], "back": array[::-1, ::2], "turned": array.T}


def step_of_two(held: Any) -> float:
    """Write through one name and read through the others."""
    held["one"] += 1
    first = next(iter(held["one"].shape))
    return float(sum(float(part.sum()) for part in held.values())) + first


def counted(held: Any) -> float:
    held["ab"[len(held) % 2]] += 1
    return float(sum(held.values()))


def listed(held: Any) -> float:
    held["x"].append(len(held["x"]))
    return float(sum(held["x"]))


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "array": (lambda: np.zeros(10), array_step),
    "array of float32": (lambda: np.full((2, 3), 1 / 3, dtype=np.float32), array_step),
    "array in Fortran's order": (lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)), array_step),
    "array of no dimension": (lambda: np.array(2.5), lambda a: float(a) + a.ndim),
    "empty array": (lambda: np.empty((0, 3), dtype=np.int8), lambda a: a.shape[1] + a.itemsize),
    "array of complex": (lambda: np.array([1 + 2j]), lambda a: float(array_step(a.real)) + float(a.imag[0])),
    "array of records": (lambda: np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]), lambda a: array_step(a["a"])),
    "array of texts": (lambda: np.array(["ab", "c"]), lambda a: float(len(a[0]))),
    "array of dates": (lambda: np.array(["2020-01-02"], dtype="M8[D]"), lambda a: float(a.astype(int)[0] % 97)),
    "arrays that share memory": (two_arrays, step_of_two),
    "array over a tensor": (
        lambda: (lambda t: {"one": t, "array": t.numpy()})(torch.zeros(3)),
        step_of_two,
    ),
    "NumPy scalar": (lambda: [np.float32(1 / 3)], lambda h: (put(h, 0, h[0] * np.float32(1.1)), float(h[0]))[1]),
    "NumPy integer": (lambda: [np.int64(2)], lambda h: (put(h, 0, h[0] + 1), float(h[0]))[1]),
    "NumPy type": (lambda: np.dtype("f4"), lambda d: float(d.itemsize)),
    "NumPy generator": (lambda: np.random.default_rng(3), drawn(lambda g: g.normal())),
    "NumPy Philox": (lambda: np.random.Generator(np.random.Philox(3)), drawn(lambda g: g.spawn(1)[0].normal())),
    "NumPy MT19937": (lambda: np.random.Generator(np.random.MT19937(3)), drawn(lambda g: g.integers(100))),
    "NumPy RandomState": (lambda: np.random.RandomState(3), drawn(lambda g: g.normal())),
    "seed sequence": (lambda: np.random.SeedSequence(5), drawn(lambda s: s.spawn(1)[0].generate_state(1)[0] % 97)),
    "Python generator": (lambda: random.Random(3), drawn(lambda g: g.gauss(0, 1))),
    "torch generator": (lambda: torch.Generator().manual_seed(3), drawn(lambda g: torch.randn((), generator=g))),
    "deque": (lambda: collections.deque([1.0], maxlen=3), lambda d: (d.append(d[-1] / 3), sum(d))[1]),
    "ordered dict": (
        lambda: collections.OrderedDict(a=1, b=2),
        lambda d: (d.move_to_end(next(iter(d))), float(next(iter(d.values()))))[1],
    ),
    "default dict": (lambda: collections.defaultdict(int), counted),
    "default dict of lists": (lambda: collections.defaultdict(list), listed),
    "counter": (lambda: collections.Counter("aab"), counted),
    "set": (lambda: {1, 2}, lambda s: (s.add(len(s) + 1), float(sum(s)))[1]),
    "frozenset": (lambda: [frozenset([1])], lambda h: (put(h, 0, h[0] | {len(h[0]) + 1}), float(sum(h[0])))[1]),
    "enum": (
        lambda: [Colour.RED],
        lambda h: (put(h, 0, Colour.BLUE if h[0] is Colour.RED else Colour.RED), float(h[0] is Colour.RED))[1],
    ),
    "flag": (lambda: Rights.READ | Rights.WRITE, lambda f: float(f.value)),
    "dataclass": (lambda: Point(1.0, torch.zeros(2)), lambda p: (p.t.add_(1), float(p.t.sum()) + p.x)[1]),
    "dataclass with slots": (lambda: [Frozen(0.5)], lambda h: (put(h, 0, Frozen(h[0].x * 1.1)), h[0].x)[1]),
    "named tuple": (lambda: Pair(1, [0.5]), lambda p: (p.items.append(0.5), sum(p.items) + p.count)[1]),
    "own class": (Plain, lambda p: (p.values.append(0.25), sum(p.values))[1]),
    "namespace": (lambda: types.SimpleNamespace(x=1.0), lambda n: (setattr(n, "x", n.x * 1.1), n.x)[1]),
    "path": (lambda: [pathlib.Path("a")], lambda h: (put(h, 0, h[0] / "b"), float(len(h[0].parts)))[1]),
    "date": (
        lambda: [datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)],
        lambda h: (put(h, 0, h[0] + datetime.timedelta(days=1)), float(h[0].day))[1],
    ),
    "complex": (lambda: [1 + 2j], lambda h: (put(h, 0, h[0] * 1j), h[0].real)[1]),
    "bytes": (lambda: [b"\x00\xff"], lambda h: (put(h, 0, h[0] + b"\x80"), float(sum(h[0]) % 97))[1]),
    "bytearray": (lambda: bytearray(b"a"), lambda b: (b.append(len(b)), float(sum(b) % 97))[1]),
    "range and slice": (lambda: (range(1, 9, 3), slice(1, 2)), lambda p: float(sum(p[0]) + p[1].stop)),
    "decimal": (lambda: [decimal.Decimal("0.1")], lambda h: (put(h, 0, h[0] * 3), float(h[0]))[1]),
    "UUID": (lambda: uuid.UUID(int=3), lambda u: float(u.int)),
    "large integer": (lambda: [3**100], lambda h: (put(h, 0, h[0] * 7), float(h[0] % 97))[1]),
    "SGD": (fitted(torch.optim.SGD, momentum=0.9), fit_step),
    "Adam": (fitted(torch.optim.Adam), fit_step),
    "AdamW": (fitted(torch.optim.AdamW, amsgrad=True), fit_step),
    "RMSprop": (fitted(torch.optim.RMSprop), fit_step),
    "tensors that share memory": (two_names, step_of_two),
    "tensor of bfloat16": (lambda: torch.ones(2, dtype=torch.bfloat16), lambda t: float(t.mul_(0.9).sum())),
    "nested containers": (
        lambda: {"a": [({"b": np.zeros(3)}, collections.deque([1.0]))]},
        lambda n: array_step(n["a"][0][0]["b"]) + (n["a"][0][1].append(1.0) or len(n["a"][0][1])),
    ),
    "layer with things in it": (
        Layer,
        lambda m: array_step(m.history[0]) + (m.shape.append(m.shape[-1] / 2) or sum(m.shape)),
    ),
    "function of torch": (lambda: nn.functional.gelu, lambda f: float(f(torch.ones(1)))),
    "type and device": (lambda: (torch.float16, torch.device("cpu"), int, Plain), lambda t: float(t[0].itemsize)),
    "memory of one's own": (
        lambda: Memory(size=3),
        lambda m: (
            m.update(*[torch.tensor([len(m)])] * 2, torch.Generator().manual_seed(1)) or float(m.ids.sum() + len(m))
        ),
    ),
}


class Keeps(Strategy):
    """Holds one of every kind; each gives a number to the loss, and is changed by that."""

    traits = Traits(family="replay")
    trace: typing.ClassVar[dict[str, dict[tuple[int, int], float]]] = {}

    def begin_run(self) -> None:
        self.kept = {name: made() for name, (made, _) in KINDS.items()}
        self.array = np.zeros(10)
        self.alias = self.kept["array"]

    def loss(self, batch: Any) -> Any:
        total = 0.0
        for name, (_, used) in KINDS.items():
            value = used(self.kept[name])
            self.trace.setdefault(name, {})[self.progress.task, self.progress.step] = value
            total += value % 7
        self.array += self.alias.sum()
        factor = 1 + (total + float(self.array[0])) % 5 / 50
        return factor * self.classification_loss(self.model(batch.images), batch)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> tuple[Any, Any]:
    """The numbers that each kind gave, in a run in one go and in one that was interrupted in its second task."""
    folder = tmp_path_factory.mktemp("kept")
    options = SMALL | {"optimizer": "sgd", "lr": 0.1, "epochs": 1, "threads": 1}
    found = []
    for name in ("whole", "resumed"):
        Keeps.trace = {}
        observer = StopAt(1, 2) if name == "resumed" else None
        try:
            clbench.run(tiny, Keeps, out=folder / name, observer=observer, **options)
        except StoppedError:
            clbench.run(tiny, Keeps, out=folder / name, resume=True, **options)
        found.append(Keeps.trace)
    assert same_weights(folder / "whole", folder / "resumed")
    return found[0], found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_goes_on_where_it_was(kind: str, traces: tuple[Any, Any]) -> None:
    """Interrupted in task 2 and resumed, it gives the very numbers of an undisturbed run, to the last bit."""
    whole, resumed = traces
    assert len(whole[kind]) == 15  # 5 tasks of 20 images, 8 a step
    assert resumed[kind] == whole[kind]


def test_an_array_assigned_in_a_hook_is_restored(run: Any, tmp_path: Path) -> None:
    """The report: `self.kept = np.zeros(10)` in a hook, interrupted in task 2, `resume=True`."""

    class Mine(Strategy):
        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            if task.index == 0:
                self.kept = np.zeros(10)

        def loss(self, batch: Any) -> Any:
            self.kept[self.progress.task] += 0.5
            return self.classification_loss(self.model(batch.images), batch) * float(1 + self.kept.sum())

    interrupted(run, Mine, tmp_path, 1, 2)


def test_an_optimizer_of_ones_own_moves_the_parameters_of_the_restored_model(run: Any, tmp_path: Path) -> None:
    class OwnOptimizer(Strategy):
        traits = Traits(family="replay")

        def begin_run(self) -> None:
            self.mine = torch.optim.Adam(self.model.backbone.parameters(), lr=0.01)
            self.schedule = torch.optim.lr_scheduler.StepLR(self.mine, 2, 0.5)

        def after_step(self, batch: Any) -> None:
            self.mine.step()
            self.schedule.step()

    interrupted(run, OwnOptimizer, tmp_path, 1, 1)


def test_gradients_that_ones_own_tensors_gather_over_several_steps_are_kept(run: Any, tmp_path: Path) -> None:
    class Gathers(Strategy):
        traits = Traits(family="replay")

        def begin_run(self) -> None:
            self.own = [torch.zeros(2, requires_grad=True)]
            self.mine = torch.optim.SGD(self.own, lr=0.1)

        def loss(self, batch: Any) -> Any:
            (self.own[0] - self.progress.step - 1).square().sum().backward()
            if self.progress.step == 2:
                self.mine.step()
                self.mine.zero_grad()
            factor = 1 + float(self.own[0].detach().sum()) / 10
            return factor * self.classification_loss(self.model(batch.images), batch)

    interrupted(run, Gathers, tmp_path, 1, 2)


def test_the_gradient_of_a_step_is_gone_in_the_next(run: Any) -> None:
    """So it makes no difference whether a run was continued between the two."""

    class Looks(Strategy):
        traits = Traits(family="replay")

        def loss(self, batch: Any) -> Any:
            assert all(p.grad is None for p in self.model.parameters())
            return super().loss(batch)

        def after_step(self, batch: Any) -> None:
            assert all(p.grad is not None for p in self.model.parameters())

    assert run(Looks, model="mlp:8").status == "done"


def test_the_last_batch_can_be_kept(run: Any, tmp_path: Path) -> None:
    class Looks(Strategy):
        traits = Traits(family="replay")

        def loss(self, batch: Any) -> Any:
            factor = float(self.last.images.mean() + len(self.last)) if "last" in vars(self) else 1.0
            self.last = batch
            return factor / 10 * self.classification_loss(self.model(batch.images), batch)

    interrupted(run, Looks, tmp_path, 1, 2)


def test_a_hyper_parameter_that_a_hook_changes_stays_changed(run: Any, tmp_path: Path) -> None:
    """It is annotated, so it was taken for what the config says."""

    class Decays(Strategy):
        traits = Traits(family="replay")
        factor: float = 1.0

        def loss(self, batch: Any) -> Any:
            self.factor *= 0.9
            return self.factor * self.classification_loss(self.model(batch.images), batch)

    interrupted(run, Decays, tmp_path / "within", 1, 2)
    interrupted(run, Decays, tmp_path / "between", 1, None)


@pytest.mark.slow
def test_the_conformance_kit_passes_a_strategy_that_holds_every_kind() -> None:
    checks = ["state_in_the_middle_of_a_stage", "resume_at_task_boundaries", "resume_within_a_task"]
    assert [(o.status, o.reason) for o in check_strategy(Keeps, checks=checks)] == [("passed", "")] * 3


def test_networks_of_torchvision_are_restored() -> None:
    model = build_model("torchvision", (3, 32, 32), 0)
    again = unpack(pack({"model": model}), Strategy)["model"]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


# Refused kinds


def own_function() -> None:
    """A function of the user's own."""


class Dict(dict[str, int]):
    """A dict of another kind."""


class Reduces:
    """Says itself how it is built again: by a function."""

    def __reduce__(self) -> Any:
        return own_function, ()


def local_class() -> Any:
    class Local:
        pass

    return Local()


def local_layer() -> Any:
    class LocalLayer(nn.Module):
        pass

    return LocalLayer()


def hooked() -> Any:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def parametrized() -> Any:
    return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))


def pruned() -> Any:
    from torch.nn.utils import prune

    return prune.l1_unstructured(nn.Linear(3, 3), "weight", amount=2)


def hooked_tensor() -> Any:
    tensor = torch.zeros(2, requires_grad=True)
    tensor.register_hook(lambda gradient: gradient)
    return tensor


def counting() -> Any:
    yield 1


def with_schedule() -> Any:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


REFUSED: dict[str, tuple[Callable[[Strategy], Any], str]] = {
    "lambda": (lambda s: lambda x: x, "a lambda"),
    "function": (lambda s: own_function, "the function own_function"),
    "method": (lambda s: s.loss, "the function loss"),
    "lock": (lambda s: threading.Lock(), "lock"),
    "thread": (lambda s: threading.Thread(), "Thread"),
    "event": (lambda s: threading.Event(), "Event"),
    "open file": (lambda s: tempfile.TemporaryFile(), "Buffered"),  # noqa: SIM115
    "text in memory": (lambda s: io.StringIO("a"), "StringIO"),
    "socket": (lambda s: socket.socket(), "socket"),
    "generator": (lambda s: counting(), "generator"),
    "iterator": (lambda s: iter([1]), "iterator"),
    "count": (lambda s: itertools.count(), "count"),
    "module": (lambda s: np, "the module numpy"),
    "local class": (lambda s: local_class(), "Local"),
    "local layer": (lambda s: local_layer(), "LocalLayer"),
    "hooked layer": (lambda s: hooked(), "a lambda"),
    "parametrized layer": (lambda s: parametrized(), "Parametrized"),
    "pruned layer": (lambda s: pruned(), ""),
    "tensor with its graph": (lambda s: torch.zeros(2, requires_grad=True) * 2, "detach"),
    "tensor with a hook": (lambda s: hooked_tensor(), "a tensor with a hook"),
    "array of objects": (lambda s: np.array([None, 1], dtype=object), "object"),
    "record array": (lambda s: np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]), "numpy.rec"),
    "array under a tensor": (lambda s: (lambda a: [a, torch.from_numpy(a)[1:]])(np.zeros(3)), "the same memory"),
    "masked array": (lambda s: np.ma.masked_array([1], [True]), "MaskedArray"),
    "default dict of a lambda": (lambda s: collections.defaultdict(lambda: 0), "a lambda"),
    "dict of another kind": (lambda s: Dict(a=1), "Dict"),
    "object with a reducer": (lambda s: Reduces(), "own_function"),
    "schedule of a lambda": (lambda s: with_schedule(), "a lambda"),
    "secure generator": (lambda s: random.SystemRandom(), "SystemRandom"),
    "config": (lambda s: s.config, "RunConfig"),
    "itself": (lambda s: s, "Holds"),
    "view of data in a list": (lambda s: [s.exemplars()], "a view of data"),
    "view of data in a set": (lambda s: {s.exemplars()}, "a view of data"),
    "view of data in a layer": (lambda s: s.model.__setattr__("view", s.exemplars()) or 1, "a view of data"),
    "weak dictionary": (lambda s: __import__("weakref").WeakValueDictionary(), "WeakValueDictionary"),
    "context": (lambda s: s._context, "Context"),
}


class Holds(Strategy):
    """Assigns something in a hook."""

    traits = Traits(family="replay")
    hook: typing.ClassVar[str] = "begin_run"
    task: typing.ClassVar[int] = 0
    made: typing.ClassVar[Any] = None
    reached: typing.ClassVar[list[tuple[int, int]]] = []

    def hold(self, hook: str) -> None:
        if hook == self.hook and self.progress.task == self.task:
            self.held = self.made(self)

    def begin_run(self) -> None:
        self.hold("begin_run")

    def begin_task(self, task: Any) -> None:
        self.hold("begin_task")

    def stages(self, task: Any) -> Any:
        self.hold("stages")
        return super().stages(task)

    def loss(self, batch: Any) -> Any:
        self.reached.append((self.progress.task, self.progress.step))
        self.hold("loss")
        return super().loss(batch)

    def after_step(self, batch: Any) -> None:
        self.hold("after_step")

    def end_task(self, task: Any) -> None:
        self.hold("end_task")


def holding(made: Any, hook: str = "begin_run", task: int = 0) -> Any:
    return type("Holds", (Holds,), {"made": staticmethod(made), "hook": hook, "task": task, "reached": []})


def refusal(run: Any, strategy: Any) -> str:
    with pytest.raises(clbench.RunError) as caught:
        run(strategy, **{k: v for k, v in SMALL.items() if k != "checkpoint_every"})
    text = str(caught.value)
    assert len(text) < 300
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_checkpoint_can_hold_is_refused_by_name_before_any_step(kind: str, run: Any) -> None:
    made, words = REFUSED[kind]
    strategy = holding(made)
    text = refusal(run, strategy)
    where = "self.model.view" if kind.endswith("in a layer") else "self.held"
    assert text.startswith(f"Holds: {where}")
    assert words in text
    assert "accepted" in text
    assert strategy.reached == []


@pytest.mark.parametrize(
    ("hook", "task", "reached"),
    [
        ("begin_run", 0, []),
        ("begin_task", 0, []),
        ("stages", 0, []),
        ("loss", 0, [(0, 0)]),
        ("after_step", 0, [(0, 0)]),
        ("end_task", 0, [(0, 0), (0, 1), (0, 2)]),
        ("loss", 1, [(0, 0), (0, 1), (0, 2), (1, 0)]),
    ],
)
def test_a_function_is_refused_at_the_end_of_the_step_or_hook_that_assigns_it(
    hook: str, task: int, reached: Any, run: Any
) -> None:
    """The report: `self.f = lambda x: x`, a pickle error after the whole first task, the attribute not named."""
    strategy = holding(lambda s: {"a": 1, "b": [0, 1, 2, lambda x: x]}, hook, task)
    assert refusal(run, strategy).startswith("Holds: self.held['b'][3] holds a lambda, which no checkpoint can give")
    assert strategy.reached == reached


def test_an_array_whose_memory_another_attribute_shares_is_named(run: Any) -> None:
    class Shares(Strategy):
        traits = Traits(family="replay")

        def begin_run(self) -> None:
            self.other = torch.zeros(3)
            self.array = np.zeros(3)
            self.tensor = torch.from_numpy(self.array)

    text = refusal(run, Shares)
    assert text.startswith("Shares: self.array holds an array and a tensor over the same memory")


def test_what_is_put_into_a_container_later_is_named_at_the_next_hook(run: Any) -> None:
    class Later(Strategy):
        traits = Traits(family="replay")

        def begin_run(self) -> None:
            self.held: dict[str, Any] = {}

        def after_step(self, batch: Any) -> None:
            if self.progress.step == 2:
                self.held["late"] = threading.Lock()

    assert refusal(run, Later).startswith("Later: self.held['late'] holds an object of the class _thread.lock")


def random_value(chance: random.Random, depth: int) -> Any:
    if depth == 0 or chance.random() < 0.2:
        return copy.deepcopy(
            chance.choice(
                [
                    *(1, 2.5, "a", None, True, b"\xff", 1j, Colour.BLUE, Frozen(2.0), range(3), np.float32(1 / 3)),
                    *(torch.arange(3), np.arange(4)[::2], pathlib.Path("a/b"), frozenset([1]), decimal.Decimal(2)),
                ]
            )
        )
    items = [random_value(chance, depth - 1) for _ in range(chance.randint(1, 3))]
    kind = chance.choice(["list", "tuple", "dict", "deque", "ordered", "default", "point", "pair", "own", "layer"])
    names = [chance.choice(["a", "key", 3, ("x", 1)]) for _ in items]
    match kind:
        case "list":
            return items
        case "tuple":
            return tuple(items)
        case "deque":
            return collections.deque(items, 5)
        case "dict" | "ordered" | "default":
            pairs = dict(zip(names, items, strict=True))
            wrap: Any = {"dict": dict, "ordered": collections.OrderedDict}.get(kind)
            return wrap(pairs) if wrap else collections.defaultdict(list, pairs)
        case "point":
            return Point(items[0], items[-1])
        case "pair":
            return Pair(1, items)
        case "own":
            made = Plain()
            made.values = items
            return made
    layer = Layer()
    layer.history = items
    return layer


def canonical(value: Any) -> Any:
    """Describe a value by plain ones, independently of how it is saved."""
    kind = type(value).__qualname__
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        array = np.asarray(value)
        return kind, array.dtype.str, array.shape, array.tobytes()
    if isinstance(value, collections.deque):
        return kind, value.maxlen, [canonical(v) for v in value]
    if isinstance(value, dict):
        factory = getattr(value, "default_factory", None)
        return kind, factory, [(canonical(k), canonical(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return kind, [canonical(v) for v in value]
    if isinstance(value, Point | Plain):
        return kind, canonical(vars(value))
    if isinstance(value, nn.Module):
        return kind, canonical({k: v for k, v in vars(value).items() if k in ("history", "shape", "training")})
    return kind, repr(value)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_nested_values_come_back_equal(seed: int) -> None:
    """60 values for each seed, each nested up to four levels deep."""
    chance = random.Random(seed)
    for _ in range(60):
        value = random_value(chance, 4)
        again = unpack(pack({"value": value}), Keeps)["value"]
        assert canonical(again) == canonical(value)


def places(value: Any) -> list[Any]:
    """Return the lists, dicts and deques in a value that an item can be put into."""
    found = [value] if isinstance(value, list | dict | collections.deque) else []
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple | collections.deque):
        inner = value
    elif isinstance(value, Point | Plain):
        inner = vars(value).values()
    elif isinstance(value, Layer):
        inner = [value.history]
    return found + [place for part in inner for place in places(part)]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_path_in_a_refusal_leads_to_what_is_refused(seed: int) -> None:
    """30 nested values for each seed, with a lambda somewhere: Python itself evaluates the path."""
    chance = random.Random(seed)
    tried = 0
    while tried < 30:
        value = [random_value(chance, 3)]
        place = chance.choice(places(value))
        wrong = lambda: None  # noqa: E731
        place.update({"wrong": wrong}) if isinstance(place, dict) else place.append(wrong)
        strategy = Holds()
        strategy._context = typing.cast(Any, types.SimpleNamespace(options_in_force=dict))
        strategy.held = value
        with pytest.raises(clbench.RunError) as caught:
            packing.require_restorable(strategy)
        path = str(caught.value).removeprefix("Holds: ").partition(" holds ")[0]
        if "..." in path:
            continue  # it is cut, as it is longer than a line has room for
        assert eval(path, {"self": strategy}) is wrong
        tried += 1


def test_a_strategy_with_slots_is_refused_where_it_is_defined(refused: Any) -> None:
    with refused("Hidden has __slots__", "plain attributes are accepted"):

        class Hidden(Strategy):
            __slots__ = ("hidden",)


# Views of data


def test_views_of_the_tasks_data_are_accepted_where_they_are_assigned_again(run: Any, tmp_path: Path) -> None:
    class Looks(Strategy):
        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            self.task, self.part = task, task.train.subset(torch.arange(5))

        def loss(self, batch: Any) -> Any:
            factor = float(self.part.labels.float().mean()) + len(self.task.train) / 20
            return factor * self.classification_loss(self.model(batch.images), batch)

    interrupted(run, Looks, tmp_path / "within", 1, 2)
    interrupted(run, Looks, tmp_path / "between", 1, None)


def test_a_view_that_only_a_step_assigns_is_refused(run: Any) -> None:
    class Late(Strategy):
        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            self.task = task

        def loss(self, batch: Any) -> Any:
            self.part = self.task.train.subset(torch.arange(5))
            return super().loss(batch)

    text = refusal(run, Late)
    assert text.startswith("Late: self.part is a view of the task's data")
    assert "begin_task" in text


def test_a_task_that_is_over_comes_back_as_what_can_still_be_read_of_it(run: Any, tmp_path: Path) -> None:
    class Remembers(Strategy):
        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            last = getattr(self, "last", None)
            self.factor = 1.0 if last is None else 1 + len(last.train) / 40 + last.index + last.outputs.stop / 10
            if last is not None:
                with pytest.raises(clbench.RunError, match="after that task had ended"):
                    last.train.images  # noqa: B018
            self.last = task

        def loss(self, batch: Any) -> Any:
            return self.factor * self.classification_loss(self.model(batch.images), batch)

    interrupted(run, Remembers, tmp_path, 1, None)


def test_a_view_of_exemplars_is_kept_from_task_to_task(run: Any, tmp_path: Path) -> None:
    class KeepsExemplars(Strategy):
        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            kept = getattr(self, "kept", None)
            self.factor = 1.0 if kept is None else 1 + float(kept.images.float().mean()) / 255

        def loss(self, batch: Any) -> Any:
            return self.factor * self.classification_loss(self.model(batch.images), batch)

        def end_task(self, task: Any) -> None:
            self.kept = self.exemplars()

    interrupted(run, KeepsExemplars, tmp_path, 1, None, memory_size=6, memory_policy="random")


# Reading executes nothing


class Makes:
    """Pickles as a call that makes a folder."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


class NamesOne:
    """Pickles as a function of torch that a checkpoint names, in the place of what is called."""

    def __call__(self) -> None:
        """Be callable, as pickle demands."""

    def __reduce__(self) -> Any:
        return packing._function, ("torch", "zeros")


@pytest.mark.parametrize("what", ["os.mkdir", "eval", "own function", "function of torch", "array of addresses"])
def test_a_file_from_a_stranger_runs_nothing(what: str, tmp_path: Path) -> None:
    calls = {
        "os.mkdir": (os.mkdir, (str(tmp_path / "made"),)),
        "eval": (eval, (f"__import__('os').mkdir({str(tmp_path / 'made')!r})",)),
        "own function": (own_function, ()),
        "function of torch": (NamesOne(), (3,)),
        "array of addresses": (packing._array, (torch.zeros(8, dtype=torch.uint8), "|O", (1,), "C")),
    }
    buffer = io.BytesIO()
    torch.save({"value": Makes(calls[what])}, buffer)
    with pytest.raises(Exception, match=r"(?s)."):
        unpack(buffer.getvalue(), Keeps)
    assert not (tmp_path / "made").exists()


def test_a_set_that_has_shrunk_is_warned_of_when_a_run_is_continued(run: Any, tmp_path: Path) -> None:
    """Its members come back, and in which order they are gone through depends on what was in it before."""

    class Pool(Strategy):
        traits = Traits(family="replay")

        def begin_run(self) -> None:
            self.pools = {"open": set(range(1000))}

        def after_step(self, batch: Any) -> None:
            self.pools["open"] -= set(range(990))

    interrupted(run, Pool, tmp_path, 1, 1)
    (warned,) = clbench.Result.load(tmp_path / "resumed").warnings
    assert "self.pools held a set when the run was continued" in warned
    assert clbench.Result.load(tmp_path / "whole").warnings == []


def test_an_attribute_on_progress_is_refused(run: Any) -> None:
    """Progress belongs to the engine, and nothing would save what a hook puts there."""

    class Counts(Strategy):
        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            self.progress.custom = 1  # type: ignore[attr-defined]

    with pytest.raises(RunError, match=r"^AttributeError: 'Progress' object has no attribute 'custom'"):
        run(Counts)


@pytest.mark.parametrize("kind", ["list", "dict", "of one another"])
def test_a_container_that_holds_itself_is_restored(kind: str, run: Any, tmp_path: Path) -> None:
    class Cyclic(Strategy):
        traits = Traits(family="replay")

        def begin_run(self) -> None:
            self.held: Any = {"me": []} if kind == "of one another" else {} if kind == "dict" else []
            if kind == "dict":
                self.held["me"] = self.held
            else:
                (self.held["me"] if kind == "of one another" else self.held).append(self.held)

        def end_task(self, task: Any) -> None:
            inner = self.held["me"] if isinstance(self.held, dict) else self.held
            assert (inner[0] if isinstance(inner, list) else inner) is self.held

    interrupted(run, Cyclic, tmp_path, 1, 1)


def test_containers_too_deep_for_a_checkpoint_are_named(run: Any) -> None:
    class Deep(Strategy):
        traits = Traits(family="replay")

        def begin_run(self) -> None:
            self.deep: Any = []
            for _ in range(5000):
                self.deep = [self.deep]

    with pytest.raises(RunError, match=r"^Deep: self\.deep holds containers within containers, more than "):
        run(Deep)
