"""Packing: what a run has learnt as bytes, and back to the same bits; what can't come back is named.

torch's safe loader reads tensors, plain values and classes of a list, and calls nothing else. Values that it knows
nothing of (NumPy arrays, random generators, optimizers, ...) are written as a call of one of the functions below, which
build such a value from plain ones and do nothing besides. So reading a file executes nothing.
"""

import copyreg
import datetime
import decimal
import enum
import fractions
import functools
import io
import pathlib
import pickle
import random
import sys
import types
import uuid
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from clbench.config.code import is_own
from clbench.config.errors import RunError, one_line
from clbench.data.batches import Batch
from clbench.data.scenario import Images, ImageSet, Task
from clbench.learning.memory import MEMORIES
from clbench.learning.strategy import Strategy
from clbench.models.network import Network
from clbench.models.pretrained import Preprocessing
from clbench.support.moved import former_name

ACCEPTED = (
    "tensors, layers, optimizers, numbers, text, containers, NumPy arrays, random generators and objects of your own "
    "classes are accepted"
)
# Values whose constructors do nothing but hold what they are given; a defaultdict makes its items of some of them.
PLAIN: tuple[type, ...] = (
    *(bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice),
    *(OrderedDict, Counter, defaultdict, deque, decimal.Decimal, fractions.Fraction, uuid.UUID),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *(pathlib.PurePosixPath, pathlib.PureWindowsPath, type(pathlib.Path())),
    *(torch.Size, torch.device, Batch, Task, Preprocessing, types.SimpleNamespace),
)
BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
# Installed packages whose layers a network of clbench can be made of.
LAYERS = ("torch.nn.modules.", "torch.optim.", "clbench.", "torchvision.", "timm.")

# Modules whose functions may be named.
FUNCTIONS: dict[str, types.ModuleType] = {"torch.nn.functional": torch.nn.functional, "torch": torch}

Call = tuple[Any, ...]


def pack(payload: Mapping[str, Any]) -> bytes:
    """Return tensors, plain values and known classes as bytes, with a checksum of each tensor."""
    buffer = io.BytesIO()
    # torch makes a subclass of this module's `Pickler`.
    torch.save(dict(payload), buffer, pickle_module=sys.modules[__name__])
    return buffer.getvalue()


def unpack(content: bytes, kind: type[Strategy], device: torch.device | None = None) -> dict[str, Any]:
    """Return what was packed; raises an exception of some kind for anything else, and executes nothing.

    device: puts all tensors there; None: each where it was.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} does not match its checksum")
    classes = safe_classes(kind)
    former = [(cls, former_name(cls)) for cls in classes if cls.__module__.startswith("clbench.")]
    known: list[Any] = [*classes, *former, *REBUILDING]
    with torch.serialization.safe_globals(known):
        payload = torch.load(io.BytesIO(content), map_location=device or _on_own_gpu, weights_only=True)
    if not isinstance(payload, dict):
        raise ValueError("not a checkpoint of clbench")
    return payload


def _on_own_gpu(storage: Any, location: str) -> Any:
    """Put what was on a GPU on that of this process, where several share the run; None: where it was."""
    shared = location.startswith("cuda") and dist.is_available() and dist.is_initialized()
    return storage.cuda() if shared else None


def safe_classes(kind: type[Strategy]) -> list[type]:
    """Return the classes that a checkpoint may hold: plain ones, torch's layers and optimizers, ours, and the user's.

    The user's are those of every loaded module that is not installed, and of the modules of the strategy and of every
    network, which may come with a package.
    """
    networks = [Network]
    for network in networks:
        networks += network.__subclasses__()
    modules = {c.__module__ for c in (*kind.__mro__, *networks)} - sys.stdlib_module_names
    own = {name for name in modules if not name.startswith("clbench.")} | set(filter(is_own, list(sys.modules)))
    known: list[type] = [*PLAIN, *MEMORIES.values()]
    for name in own:
        listed = vars(sys.modules[name]).values() if name in sys.modules else ()
        known += [c for c in listed if isinstance(c, type) and c.__module__ == name and not issubclass(c, Strategy)]
    # A layer may keep an option of its own as a member of an enumeration.
    queue: list[type] = [nn.Module, Optimizer, LRScheduler, enum.Enum]
    while queue:
        cls = queue.pop()
        queue += cls.__subclasses__()
        if cls.__module__.startswith(LAYERS) or cls.__module__ in own:
            known.append(cls)
    return known


@functools.lru_cache(maxsize=4)
def _known(kind: Any) -> set[Any]:
    """Return the classes and functions that reading knows; finding them takes as long as many small steps."""
    return {*safe_classes(kind), *REBUILDING}


def require_restorable(strategy: Strategy) -> None:
    """Raise RunError for the first attribute of a strategy that a checkpoint could not give back, by its name."""
    state = {name: value for name, value in strategy.state().items() if not isinstance(value, ImageSet)}
    kind: Any = type(strategy)
    if _problem(state, _known(kind)) is None:
        return
    # A class may have been defined since.
    _known.cache_clear()
    known = _known(kind)
    if (whole := _problem(state, known)) is None:
        return
    path, value = "self", types.SimpleNamespace(**state)
    passed: list[Any] = []
    # The parts of an object of an unknown class are no concern of the user's, nor is the depth at which it ends.
    while type(value) in known and not (isinstance(whole, RecursionError) and path != "self"):
        passed.append(value)
        wrong = (p for p in _parts(value) if not any(p[1] is v for v in passed) and _problem(p[1], known) is not None)
        step, inner = next(wrong, ("", value))
        if inner is value:
            break
        path, value = path + step, inner
    reason = _problem(value, known)
    if path == "self":
        # Each attribute can be restored, and not both of two that share something.
        alone = ({n: v for n, v in state.items() if n != name} for name in state)
        shared = (f".{name}" for name, rest in zip(state, alone, strict=True) if _problem(rest, known) is None)
        path += next(shared, "")
    what = str(reason) if isinstance(reason, _RefusedError) else _described(value)
    if isinstance(reason, RecursionError):
        what = "containers within containers, more than can be counted"
    # A name in the message is the user's own, and may be long.
    raise RunError(
        f"{type(strategy).__name__}: {one_line(path, 60)} holds {one_line(what, 120)}, which no checkpoint can give "
        f"back; {ACCEPTED}"
    )


def holds_a_set(value: Any) -> bool:
    """Whether a value is a set or a container with one, whose order depends on more than on what is in it."""
    held, seen = [value], set[int]()
    # A container may hold itself.
    for part in held:
        if isinstance(part, set | frozenset) and len(part) > 1:
            return True
        if isinstance(part, dict | list | tuple | deque) and id(part) not in seen:
            seen.add(id(part))
            held += part.values() if isinstance(part, dict) else part
    return False


class _RefusedError(Exception):
    """A description, in words, of a value that can't be written."""


class Pickler(pickle.Pickler):
    """Writes what torch's safe loader does not know as a call of one of the functions of this file."""

    def reducer_override(self, value: Any) -> Any:
        """Return the call that builds a value again; NotImplemented leaves it to Python."""
        if isinstance(value, Tensor) and value.is_leaf and value.grad is not None:
            return _with_gradient, (_Bare(value), value.grad)
        for kind, described in REDUCED.items():
            if isinstance(value, kind):
                return described(value)
        return NotImplemented


class _Rehearsal(Pickler):
    """Writes nothing but finds what could not be read back; it looks at no tensor's values, so no device is waited for.

    known: the classes and functions that reading knows.
    """

    def __init__(self, known: set[Any]) -> None:
        super().__init__(io.BytesIO(), protocol=2)
        self.known = known
        # The addresses of tensors, and those at which the memory of arrays begins and ends.
        self._tensors: set[int] = set()
        self._arrays: list[tuple[int, int]] = []

    def reducer_override(self, value: Any) -> Any:
        """Return the call that builds a value again; raises _RefusedError for what reading does not know."""
        if isinstance(value, Tensor):
            if value.device.type == "cpu" and value.layout is torch.strided:
                self._tensors.add(value.untyped_storage().data_ptr())
            return _rehearsed(value)
        if isinstance(value, np.ndarray) and value.base is None:
            begin = value.__array_interface__["data"][0]
            self._arrays.append((begin, begin + value.nbytes))
        if isinstance(value, ImageSet) and not value.expired:
            raise _RefusedError("a view of data inside another object (keep its ids)")
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            if value not in self.known and getattr(value, "__module__", "") != "_codecs":
                return self._named(value)
        elif (call := super().reducer_override(value)) is not NotImplemented:
            return call
        elif type(value) not in self.known and not isinstance(value, torch.dtype):
            raise _RefusedError(_described(value))
        elif isinstance(value, dict) and type(value) not in (dict, OrderedDict, Counter):
            raise _RefusedError(f"{_described(value)}, a dict of another kind")
        return NotImplemented

    def rehearse(self, value: Any) -> None:
        """Raise an exception of some kind for a value that could not be read back."""
        self.dump(value)
        if any(begin <= address < end for begin, end in self._arrays for address in self._tensors):
            raise _RefusedError("an array and a tensor over the same memory (copy it)")

    def _named(self, value: Any) -> Any:
        if (call := super().reducer_override(value)) is NotImplemented:
            raise _RefusedError(_described(value))
        return call


def _problem(value: Any, known: set[Any]) -> Exception | None:
    """Return why a value could not be read back, or None."""
    try:
        _Rehearsal(known).rehearse(value)
    except Exception as error:  # whatever an object raises that is asked for its state
        return error
    return None


def _rehearsed(tensor: Tensor) -> Call:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise _RefusedError(_described(tensor))
    if tensor.grad_fn is not None:
        raise _RefusedError("a tensor with the graph of its gradient (detach it)")
    if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise _RefusedError("a tensor with a hook")
    # Any call would do, as nobody reads it; attributes of the tensor are looked at like all else.
    return list, ([vars(tensor), tensor.grad if tensor.is_leaf else None],)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object is made of, each with the step that leads there."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
        yield from ((f" (key {key!r})", key) for key in value)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((f".{name}", getattr(value, name)) for name in value._fields)
    elif isinstance(value, list | tuple | deque):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((f" (element {item!r})", item) for item in value)
    if isinstance(value, type | Tensor | types.FunctionType | types.ModuleType | ImageSet):
        return
    for name, item in getattr(value, "__dict__", {}).items():
        if isinstance(value, nn.Module) and name in ("_modules", "_parameters", "_buffers"):
            yield from ((f".{inner}", held) for inner, held in item.items())
        else:
            yield f".{name}", item
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name != "__dict__" and hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _described(value: Any) -> str:
    """Return what an object is, in words."""
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        return "a lambda" if value.__name__ == "<lambda>" else f"the function {value.__name__}"
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    if isinstance(value, types.ModuleType):
        return f"the module {value.__name__}"
    kind = type(value)
    where = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"an object of the class {where}{kind.__qualname__}"


# The description of each kind of value, and the function that builds it again.


class _Bare:
    """A tensor without its gradient, which torch does not save."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.tensor.__reduce_ex__(protocol)


def _with_gradient(tensor: Tensor, gradient: Tensor) -> Tensor:
    tensor.grad = gradient
    return tensor


def _of_array(array: np.ndarray[Any, Any]) -> Call:
    """A part of another array stays one; what owns its values is written in the order that they have in memory."""
    if type(array) is not np.ndarray or not _is_restorable(array.dtype):
        raise _RefusedError(f"{_described(array)} of {array.dtype}")
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if owner is not array:
        if not (owner.flags.c_contiguous or owner.flags.f_contiguous):
            raise _RefusedError("a part of an array with gaps")
        offset = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        return _part, (owner, _descr(array.dtype), array.shape, array.strides, offset)
    if isinstance(array.base, Tensor):
        return _array_of_tensor, (array.base.detach(),)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return _array, (_bytes(array.tobytes(order)), _descr(array.dtype), array.shape, order)


def _array(values: Tensor, descr: Any, shape: tuple[int, ...], order: Any) -> np.ndarray[Any, Any]:
    held = np.ndarray(shape, _dtype(descr), values.numpy().tobytes(), order=order)
    return held.copy("K")


def _array_of_tensor(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.numpy()


def _part(
    owner: np.ndarray[Any, Any], descr: Any, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> np.ndarray[Any, Any]:
    return np.ndarray(shape, _dtype(descr), owner.ravel("K"), offset, strides)


def _of_scalar(value: np.generic) -> Call:
    return _scalar, (np.array(value),)


def _scalar(held: np.ndarray[Any, Any]) -> Any:
    return held[()]


def _of_dtype(dtype: np.dtype[Any]) -> Call:
    if not _is_restorable(dtype):
        raise _RefusedError(f"the NumPy type {dtype}")
    return _dtype, (_descr(dtype),)


def _dtype(descr: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(descr)
    if dtype.hasobject:
        # Its values would be addresses in memory.
        raise ValueError("an array of objects")
    return dtype


def _descr(dtype: np.dtype[Any]) -> Any:
    return np.lib.format.dtype_to_descr(dtype)


def _is_restorable(dtype: np.dtype[Any]) -> bool:
    return not dtype.hasobject and dtype.kind in "biufcmMSUV" and bool(_dtype(_descr(dtype)) == dtype)


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _of_bit_generator(generator: Any) -> Call:
    if type(generator).__name__ not in BIT_GENERATORS:
        raise _RefusedError(_described(generator))
    return _bit_generator, (type(generator).__name__, generator.state, generator.seed_seq)


def _bit_generator(name: str, state: Any, seeds: Any) -> Any:
    # One that was seeded as NumPy did before 1.17 has no seeds that could be spawned from.
    made: Any = np.random.RandomState(0)._bit_generator if seeds is None else BIT_GENERATORS[name](seeds)
    made.state = state
    return made


def _of_seeds(seeds: np.random.SeedSequence) -> Call:
    return _seeds, (seeds.state,)


def _seeds(state: dict[str, Any]) -> np.random.SeedSequence:
    return np.random.SeedSequence(**state)


def _of_generator(generator: np.random.Generator) -> Call:
    return _generator, (generator.bit_generator,)


def _generator(bits: Any) -> np.random.Generator:
    return np.random.Generator(bits)


def _of_random_state(generator: np.random.RandomState) -> Call:
    state: Any = generator.get_state(legacy=False)
    return _random_state, (generator._bit_generator, state["has_gauss"], state["gauss"])


def _random_state(bits: Any, has_gauss: int, gauss: float) -> np.random.RandomState:
    made = np.random.RandomState(bits)
    state: Any = made.get_state(legacy=False)
    made.set_state({**state, "has_gauss": has_gauss, "gauss": gauss})
    return made


def _of_random(generator: random.Random) -> Call:
    if type(generator) is not random.Random:
        raise _RefusedError(_described(generator))
    return _random, (generator.getstate(),)


def _random(state: Any) -> random.Random:
    made = random.Random()
    made.setstate(state)
    return made


def _of_torch_generator(generator: torch.Generator) -> Call:
    return _torch_generator, (str(generator.device), generator.get_state())


def _torch_generator(device: str, state: Tensor) -> torch.Generator:
    made = torch.Generator(device)
    made.set_state(state)
    return made


def _of_deque(items: deque[Any]) -> Call:
    if type(items) is not deque:
        raise _RefusedError(_described(items))
    return _deque, (list(items), items.maxlen)


def _deque(items: list[Any], longest: int | None) -> deque[Any]:
    return deque(items, longest)


def _of_defaultdict(items: defaultdict[Any, Any]) -> Call:
    if type(items) is not defaultdict:
        raise _RefusedError(_described(items))
    return _defaultdict, (items.default_factory, dict(items))


def _defaultdict(factory: Any, items: dict[Any, Any]) -> defaultdict[Any, Any]:
    return defaultdict(factory, items)


def _of_view(data: ImageSet) -> Call:
    return _view, (data._ids, data.expired)


def _view(ids: Tensor, expired: bool) -> ImageSet:
    """Return a view without its source, which Strategy.load_state() puts back."""
    made = ImageSet(Images(*[torch.empty(0)] * 4), ids)
    if expired:
        made.expire()
    return made


def _of_optimizer(optimizer: Optimizer) -> Call:
    # Its own __getstate__ leaves out what a subclass keeps besides. A scheduler's wrapper of `step` is made anew.
    attributes = {name: value for name, value in vars(optimizer).items() if name != "step"}
    return copyreg.__newobj__, (type(optimizer),), attributes  # type: ignore[attr-defined]


def _of_scheduler(scheduler: LRScheduler) -> Call:
    return _scheduler, (type(scheduler), dict(vars(scheduler)))


def _scheduler(kind: type[LRScheduler], attributes: dict[str, Any]) -> LRScheduler:
    made = kind.__new__(kind)
    vars(made).update(attributes)
    optimizer = attributes.get("optimizer")
    if isinstance(optimizer, Optimizer):
        # A scheduler marks the `step` of its optimizer, by which it finds that the two are called in the wrong order.
        marked: Any = functools.partial(type(optimizer).step, optimizer)
        marked._wrapped_by_lr_sched = True
        optimizer.step = marked  # type: ignore[method-assign]
    return made


def _of_function(function: Any) -> Any:
    """Describe a function of torch by its name; every other is left to Python."""
    name = function.__name__
    homes = [home for home, module in FUNCTIONS.items() if vars(module).get(name) is function]
    return (_function, (homes[0], name)) if homes else NotImplemented


def _function(module: str, name: str) -> Any:
    """Return a function of torch, which reading does not call."""
    return vars(FUNCTIONS[module])[name]


REDUCED: dict[type, Callable[[Any], Any]] = {
    np.ndarray: _of_array,
    np.generic: _of_scalar,
    np.dtype: _of_dtype,
    np.random.BitGenerator: _of_bit_generator,
    np.random.SeedSequence: _of_seeds,
    np.random.Generator: _of_generator,
    np.random.RandomState: _of_random_state,
    random.Random: _of_random,
    torch.Generator: _of_torch_generator,
    deque: _of_deque,
    defaultdict: _of_defaultdict,
    ImageSet: _of_view,
    Optimizer: _of_optimizer,
    LRScheduler: _of_scheduler,
    types.FunctionType: _of_function,
    types.BuiltinFunctionType: _of_function,
}
REBUILDING: tuple[Callable[..., Any], ...] = (
    *(_array, _array_of_tensor, _part, _scalar, _dtype, _bit_generator, _seeds, _generator, _random_state, _random),
    *(_with_gradient, _torch_generator, _deque, _defaultdict, _view, _scheduler, _function),
)
