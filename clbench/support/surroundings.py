"""The caller's world: what torch, NumPy and Python keep for a process or a thread, set aside while clbench computes.

What a function computes depends on its arguments alone. `by_default` is for functions that compute with tensors; it
touches only what belongs to the calling thread. `undisturbed` is for everything that trains or builds what is trained;
it sets what belongs to the process too, so that one thread at a time can be inside.
"""

import gc
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils import _device
from torch.utils._python_dispatch import _get_current_dispatch_mode

from clbench.config.errors import ConfigError

_DEVICES = ("cpu", "cuda", "mps")


class _Setting(NamedTuple):
    """A setting of the process: its reader, its writer, and its value for clbench; without one it is only put back."""

    read: Callable[[], Any]
    write: Callable[[Any], Any]
    value: Any = None


def _flag(owner: Any, name: str, value: object) -> _Setting:
    return _Setting(lambda: getattr(owner, name), lambda it: setattr(owner, name, it), value)


def _emptied(owner: Any, name: str) -> _Setting:
    """Return the setting of a table that is kept for all modules or optimizers, empty inside."""
    table: dict[Any, Any] = getattr(owner, name)

    def write(held: dict[Any, Any]) -> None:
        table.clear()
        table.update(held)

    return _Setting(lambda: dict(table), write, {})


def _flushes_denormals() -> bool:
    return float(torch.tensor(1e-39, dtype=torch.float32) * 1) == 0


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_determinism(it: tuple[bool, bool]) -> None:
    if _determinism() != it:  # Torch loads its compiler to be told, which takes seconds.
        torch.use_deterministic_algorithms(it[0], warn_only=it[1])


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _move(folder: str | None) -> None:
    if folder is not None and _folder() != folder:
        with suppress(OSError):
            os.chdir(folder)


def _put_back_environment(before: dict[str, str]) -> None:
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


_BACKENDS = torch.backends
# Hooks that torch calls for every module and every optimizer of the process.
_HOOKS = [
    (owner, name)
    for owner in (sys.modules[torch.nn.Module.__module__], sys.modules[torch.optim.Optimizer.__module__])
    for name, table in vars(owner).items()
    if name.startswith("_global_") and isinstance(table, dict)
]
_SETTINGS: list[_Setting] = [
    _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    _Setting(_determinism, _set_determinism, (False, False)),
    _flag(torch.utils.deterministic, "fill_uninitialized_memory", True),
    # Moments of a dead pixel decay into denormal numbers, with which a CPU takes many times as long.
    _Setting(_flushes_denormals, torch.set_flush_denormal, True),
    _Setting(torch.get_num_threads, torch.set_num_threads),
    _flag(_BACKENDS.mkldnn, "enabled", True),
    _flag(_BACKENDS.mkldnn, "deterministic", False),
    _Setting(lambda: _BACKENDS.nnpack.set_flags(True)[0], _BACKENDS.nnpack.set_flags, True),
    _flag(_BACKENDS.opt_einsum, "enabled", _BACKENDS.opt_einsum.is_available()),
    _flag(_BACKENDS.cudnn, "enabled", True),
    _flag(_BACKENDS.cudnn, "benchmark", False),
    _flag(_BACKENDS.cudnn, "deterministic", False),
    _flag(_BACKENDS.cuda.matmul, "allow_fp16_reduced_precision_reduction", True),
    _flag(_BACKENDS.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
    _Setting(_BACKENDS.mha.get_fastpath_enabled, _BACKENDS.mha.set_fastpath_enabled, True),
    _Setting(_BACKENDS.cuda.flash_sdp_enabled, _BACKENDS.cuda.enable_flash_sdp, True),
    _Setting(_BACKENDS.cuda.mem_efficient_sdp_enabled, _BACKENDS.cuda.enable_mem_efficient_sdp, True),
    _Setting(_BACKENDS.cuda.math_sdp_enabled, _BACKENDS.cuda.enable_math_sdp, True),
    # Anomaly detection changes no number, and who turned it on wants it.
    _Setting(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda it: torch.autograd.set_detect_anomaly(*it),
    ),
    _Setting(torch.get_rng_state, torch.set_rng_state),
    _Setting(np.random.get_state, np.random.set_state),
    _Setting(random.getstate, random.setstate),
    _Setting(gc.isenabled, lambda it: gc.enable() if it else gc.disable()),
    _Setting(sys.getrecursionlimit, sys.setrecursionlimit),
    *(_emptied(owner, name) for owner, name in _HOOKS),
    _Setting(lambda: dict(os.environ), _put_back_environment),
    _Setting(_folder, _move),
]


@contextmanager
def by_default() -> Iterator[None]:
    """Compute in this thread as a fresh Python does, whatever surrounds the call; also usable as a decorator.

    Gradients are on, autocast and inference mode off, tensors are made on the CPU, and NumPy's errors warn. Raises
    ConfigError inside a transform of torch.func, such as vmap, and inside a mode of torch's that stands between a
    call and its result, such as FakeTensorMode.
    """
    _refuse_transforms()
    with ExitStack() as stack:
        stack.enter_context(_no_default_device())
        # A guard of torch's own, which turns gradients on as well and puts back both.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(_no_autocast())
        stack.enter_context(_no_hooks_on_saved_tensors())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Set aside what the caller has set for process and thread, and put it back; also usable as a decorator.

    Inside, all of it has the value that a fresh Python has. Afterwards, after a failure and Ctrl-C too, it is as it
    was, also what the code inside changed: dtype, device, modes and backends of torch, threads, random states of torch
    (CPU), NumPy and `random`, filters of warnings, NumPy's errors, environment variables, the working folder. A warning
    that the caller turned into an error is raised at the end, not in the middle of the work. Raises ConfigError where
    another thread is inside, and as by_default() does.
    """
    with ExitStack() as stack:
        stack.enter_context(_alone())
        stack.enter_context(by_default())
        stack.enter_context(_late_errors())
        stack.enter_context(_exact_products())
        for setting in _SETTINGS:
            stack.callback(setting.write, setting.read())
            if setting.value is not None:
                setting.write(setting.value)
        yield


# The thread that is inside, and whether the code under way belongs to it; threads that it starts with a copy of its
# context, as for seeds that train together, do.
_turn = threading.Lock()
_inside: ContextVar[bool] = ContextVar("inside", default=False)


@contextmanager
def _alone() -> Iterator[None]:
    if _inside.get():
        yield
        return
    if not _turn.acquire(blocking=False):
        raise ConfigError(
            "clbench is at work in another thread of this process, and torch has its settings and random streams once "
            "for all threads; one call at a time is accepted, and jobs=2 for runs side by side"
        )
    _inside.set(True)
    try:
        yield
    finally:
        _inside.set(False)
        _turn.release()


def _refuse_transforms() -> None:
    active = _get_current_dispatch_mode() or next(
        (mode for mode in _get_current_function_mode_stack() if not isinstance(mode, _device.DeviceContext)), None
    )
    c: Any = torch._C
    transform = c._functorch.peek_interpreter_stack()
    if transform is None and (active is None or getattr(active, "only_counts", False)):
        return
    named = type(active).__name__ if active is not None else f"torch.func.{transform.key().name.lower()}"
    raise ConfigError(
        f"clbench is called inside {named}, which changes what torch computes; a call outside is accepted"
    )


@contextmanager
def _no_default_device() -> Iterator[None]:
    """Take off what set_default_device and `with torch.device(...)` have put on, in this thread."""
    kept: Any = torch._GLOBAL_DEVICE_CONTEXT
    default, current = getattr(kept, "device_context", None), _device.CURRENT_DEVICE
    modes = _take_off()
    kept.device_context = _device.CURRENT_DEVICE = None
    try:
        yield
    finally:
        _take_off()
        for mode in modes:
            _push_mode(mode)
        kept.device_context, _device.CURRENT_DEVICE = default, current


def _take_off() -> list[Any]:
    """Take all modes off torch's stack of functions; return them from the bottom up."""
    return [_pop_mode() for _ in _get_current_function_mode_stack()][::-1]


@contextmanager
def _no_autocast() -> Iterator[None]:
    kept = [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _DEVICES]
    # While it is above 0, weights that were cast once are not cast again after a step has changed them.
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    for device, _, _ in kept:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for device, enabled, dtype in kept:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        for _ in range(depth):
            torch.autocast_increment_nesting()


@contextmanager
def _no_hooks_on_saved_tensors() -> Iterator[None]:
    """Take off the hooks by which torch would keep other tensors for a backward pass than those it was given."""
    kept: list[Any] = []
    c: Any = torch._C._autograd
    while (hooks := c._top_saved_tensors_default_hooks(True)) is not None:
        kept.append(hooks)
        c._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(kept):
            c._push_saved_tensors_default_hooks(pack, unpack)


# Whole libraries first: what is read of an operation is its own value only where its library has none.
_PRODUCTS = [
    *(("generic", "all"), ("mkldnn", "all"), ("cuda", "all")),
    *((backend, operation) for backend in ("mkldnn", "cuda") for operation in ("matmul", "conv", "rnn")),
]


@contextmanager
def _exact_products() -> Iterator[None]:
    """Have products and convolutions of float32 computed in float32, by torch's older names and by those since 2.9."""
    c: Any = torch._C
    cudnn: Any = torch.backends.cudnn
    named = _PRODUCTS if hasattr(c, "_get_fp32_precision_getter") else []
    convolutions = None
    with suppress(RuntimeError):  # raised where the caller has used both kinds of names
        convolutions = cudnn.allow_tf32
    kept = []
    for place in named:
        kept.append((*place, c._get_fp32_precision_getter(*place)))
        c._set_fp32_precision_setter(*place, "none")
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        for backend, operation, precision in reversed(kept):
            c._set_fp32_precision_setter(backend, operation, precision)


@contextmanager
def _late_errors() -> Iterator[None]:
    """Keep the filters of warnings; where they make errors of all warnings, let these wait for the end."""
    strict = any(action == "error" and kind.__module__ == "builtins" for action, _, kind, _, _ in warnings.filters)
    with warnings.catch_warnings(record=strict) as caught:
        if strict:
            warnings.simplefilter("always")
        yield
    for each in caught or ():
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
