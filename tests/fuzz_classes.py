"""Strategies written at random: the targets of `fuzz.py classes`.

A case writes a file with a strategy that assigns things to self, returns things from its hooks, draws random numbers,
changes global settings or raises, and runs it. The run must end done or be refused in one sentence. What says "done"
is run again, interrupted at a random step and continued, and must give the same matrices to the bit. Afterwards the
caller's world must be as it was.
"""

import contextlib
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clbench
from clbench.config.errors import ConfigError, RunError
from clbench.learning.strategy import Progress

BASES = ("Strategy", "ER", "EWC", "LwF", "ICaRL", "DER", "AGEM")
HEAD = """\
import collections, enum, functools, io, pathlib, random, threading, warnings
from typing import Any
import numpy as np
import torch
from clbench import Strategy, Traits
from clbench.strategies.agem import AGEM
from clbench.strategies.der import DER
from clbench.strategies.er import ER
from clbench.strategies.ewc import EWC
from clbench.strategies.icarl import ICaRL
from clbench.strategies.lwf import LwF

class Colour(enum.Enum):
    RED = 1

Point = collections.namedtuple("Point", "x y")

"""
# Values for attributes; `a` and `b` in the text are small numbers that the case draws.
VALUES = (
    *("np.arange({a})", "np.float32({b})", "np.int64({a})", "np.zeros((2, {a}), dtype='f2')", "np.array(['x', 'y'])"),
    *("collections.deque([1, 2], maxlen={a} + 1)", "collections.Counter('aab')", "collections.OrderedDict(x={a})"),
    *("collections.defaultdict(list)", "Colour.RED", "Point({a}, {b})", "pathlib.Path('x')", "frozenset([1, {a}])"),
    *("torch.arange({a}).float()", "torch.zeros(2, {a}).t()", "torch.nn.Linear(2, {a})", "torch.Generator()"),
    *("torch.nn.Parameter(torch.ones({a}))", "torch.optim.SGD(self.model.parameters(), lr=0.1)", "self.model"),
    *("random.Random({a})", "np.random.default_rng({a})", "np.random.RandomState({a})", "range({a})", "slice(1, {a})"),
    *("[1, (2, [{b}, None])]", "{{'a': [torch.ones(2)], 3: 'x'}}", "{{1: {{2: np.ones({a})}}}}", "complex(1, {b})"),
    *("b'abc'", "bytearray(b'abc')", "'text'", "True", "None", "{a}", "10 ** 30", "float('inf')", "float('nan')"),
    *("lambda x: x", "threading.Lock()", "io.StringIO('x')", "(i for i in range(3))", "open(__file__)", "Strategy"),
    *("functools.partial(max, 1)", "torch.float64", "torch.device('cpu')", "torch.nn.ReLU()", "memoryview(b'abc')"),
    *("[self.model]", "{{'head': self.model.head}}", "self.model.head.weight", "torch.ones(2, requires_grad=True) * 2"),
)
# Values that a hook may return.
RETURNED = (
    *("None", "1", "0.5", "'x'", "[]", "{{}}", "True", "torch.tensor(1.0)", "torch.zeros(3)", "np.float32(1)"),
    *("torch.tensor(float('nan'))", "{{'a': torch.tensor(1.0)}}", "{{'a': 1.0}}", "{{1: torch.tensor(1.0)}}", "self"),
    *("torch.tensor(1)", "torch.zeros(())", "(i for i in range(2))", "lambda: 1", "torch.tensor([[1.0]])", "object()"),
    *("torch.zeros(1, requires_grad=True).sum()", "-torch.tensor(float('inf'))", "Exception", "[1.0, 2.0]"),
)
RAISED = (
    *("ValueError('x')", "RuntimeError()", "KeyError('k')", "AttributeError('a')", "StopIteration()", "MemoryError()"),
    *("AssertionError()", "OSError(28, 'No space left on device')", "TypeError('é' * 400)", "Exception('a\\nb')"),
    *("SystemExit(0)", "SystemExit(3)", "GeneratorExit()", "RecursionError()", "UnicodeError('\\udc80')", "1 / 0"),
)
DRAWS = ("torch.rand(()).item()", "np.random.rand()", "random.random()", "float(torch.randn(3).sum())")
# Global settings that a hook may change.
SETTINGS = (
    *("torch.set_default_dtype(torch.float64)", "torch.set_grad_enabled(False)", "torch.manual_seed(3)"),
    *("np.random.seed(3)", "random.seed(3)", "torch.set_num_threads(2)", "warnings.simplefilter('error')"),
    *("np.seterr(all='raise')", "torch.set_default_device('meta')", "torch.use_deterministic_algorithms(True)"),
    *("torch.autograd.set_detect_anomaly(True)", "torch.set_flush_denormal(False)"),
)
HOOKS = {
    "begin_run": "self",
    "begin_task": "self, task",
    "stages": "self, task",
    "loss": "self, batch",
    "after_backward": "self, batch",
    "penalty": "self",
    "after_step": "self, batch",
    "end_task": "self, task",
    "scores": "self, images, task=None",
    "features": "self, images",
}
PLAIN = {
    "begin_run": "super().begin_run()",
    "begin_task": "super().begin_task(task)",
    "stages": "return super().stages(task)",
    "loss": "return super().loss(batch)",
    "after_backward": "super().after_backward(batch)",
    "penalty": "return super().penalty()",
    "after_step": "super().after_step(batch)",
    "end_task": "super().end_task(task)",
    "scores": "return super().scores(images, task)",
    "features": "return super().features(images)",
}


def filled(chance: random.Random, text: str) -> str:
    """Return a text of VALUES or RETURNED with its numbers."""
    return text.format(a=chance.randint(1, 4), b=round(chance.uniform(-2, 2), 3))


def written(chance: random.Random, kind: str) -> str:
    """Return the file of a random strategy with one to three oddities of a kind."""
    base = chance.choice(BASES)
    body: dict[str, list[str]] = {}
    # Without these the value below would decide nothing.
    counted = chance.choice(("0", "np.int64(0)", "torch.zeros(())", "np.zeros(2)"))
    body["begin_run"] = [f"self.count = {counted}"]
    body["after_step"] = ["self.count = self.count + 1"]
    factor = "(1 + 0.01 * float(np.sum(np.asarray(self.count))))"
    for number in range(chance.randint(1, 3)):
        hook = chance.choice(list(HOOKS))
        when = chance.choice(("", "", "if self.progress.task == 1: ", "if self.progress.step == 2: "))
        if kind == "state":
            statement = f"self.a{number} = {filled(chance, chance.choice(VALUES))}"
        elif kind == "returns":
            statement = f"return {filled(chance, chance.choice(RETURNED))}"
        elif kind == "raises":
            raised = chance.choice(RAISED)
            statement = raised if "/" in raised else f"raise {raised}"
        elif kind == "draws":
            statement = f"self.drawn = {chance.choice(DRAWS)}"
            factor += f" * (1 + 0.1 * {chance.choice(DRAWS)})"
        else:
            statement = chance.choice(SETTINGS)
        body.setdefault(hook, []).append(when + statement)
    lines = [f"class Mine({base}):", "    traits = " + ("Traits(family='replay')" if base == "Strategy" else "X")]
    lines[1] = lines[1].replace("X", f"{base}.traits")
    for hook, statements in body.items():
        lines += [
            "",
            f"    def {hook}({HOOKS[hook]}):",
            *(f"        {s}" for s in statements),
            f"        {PLAIN[hook]}",
        ]
    if "loss" not in body:
        lines += [
            "",
            "    def loss(self, batch):",
            "        terms = super().loss(batch)",
            "        terms = terms if isinstance(terms, dict) else {'loss': terms}",
            f"        return {{name: term * {factor} for name, term in terms.items()}}",
        ]
    return HEAD + "\n".join(lines) + "\n"


class EnoughError(BaseException):
    """The observer has seen enough of the run."""


class Stop(clbench.Observer):
    """Interrupts a run at a step."""

    def __init__(self, task: int, step: int) -> None:
        self.at = (task, step)

    def step(self, progress: Progress, loss: float | None) -> None:
        """Raise EnoughError at the step."""
        if (progress.task, progress.step) == self.at:
            raise EnoughError


def world() -> dict[str, Any]:
    """Return the settings of this process that a run must leave as they are."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "torch's stream": torch.get_rng_state().tolist(),
        "numpy's stream": repr(np.random.get_state()),
        "Python's stream": random.getstate(),
        "numpy's errors": np.geterr(),
        "warning filters": list(warnings.filters),
    }


def case_of(place: Path, kind: str) -> Callable[[random.Random], tuple[int, str]]:
    """Return how a case of a kind is made and done."""
    options = {"tasks": 2, "epochs": 1, "model": "mlp:4", "threads": 1, "batch_size": 4, "offline": True, "lr": 0.1}
    options |= {"checkpoint_every": "1-steps", "memory_size": 4}

    def case(chance: random.Random) -> tuple[int, str]:
        file = place / "mine.py"
        file.write_text(written(chance, kind), "utf-8")
        needs = {k: v for k, v in options.items() if k != "memory_size" or "(EWC)" not in file.read_text("utf-8")}
        task, step = chance.choice((0, 1)), chance.randint(1, 3)
        before = world()

        def run(out: str, **given: Any) -> clbench.Result:
            return clbench.run(str(place / "tiny.npz"), f"{file}:Mine", out=place / out, **needs, **given)

        for out in ("whole", "halved"):
            shutil.rmtree(place / out, ignore_errors=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    whole = run("whole")
                finally:
                    changed = [name for name, value in world().items() if value != before[name]]
                    changed.remove("warning filters") if "warning filters" in changed else None
                    if changed:
                        raise AssertionError(f"the run changed {', '.join(changed)}\n{file.read_text('utf-8')}")
                with contextlib.suppress(EnoughError):
                    run("halved", observer=Stop(task, step))
                try:
                    halved = run("halved", resume=True)
                except ConfigError as error:
                    raise AssertionError(f"not continued: {error}\n{file.read_text('utf-8')}") from error
        except (ConfigError, RunError) as error:
            return 2, f"clbench: {error}\n"
        for name in ("accuracy", "task_aware_accuracy"):
            one, other = getattr(whole, name), getattr(halved, name)
            if not np.array_equal(one, other, equal_nan=True):
                raise AssertionError(f"{name} differs after a resume:\n{one}\n{other}\n{file.read_text('utf-8')}")
        return 0, ""

    return case


def class_targets(place: Path) -> dict[str, Callable[[random.Random], tuple[int, str]]]:
    """Return for each kind of strategy how a case of it is made and done."""
    return {f"strategies: {kind}": case_of(place, kind) for kind in ("state", "returns", "raises", "draws", "settings")}
