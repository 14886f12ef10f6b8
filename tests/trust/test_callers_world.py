"""The caller's settings of process and thread change no bit of a run, and are as they were when it has ended."""

import contextlib
import functools
import gc
import locale
import os
import random
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import clbench
from clbench import ConfigError, Observer, RunError, Strategy, Traits
from clbench.avalanche.scenarios import from_benchmark, to_benchmark
from clbench.models import build_model
from clbench.results import metrics, statistics
from clbench.running.resolve import prepare, resolve
from clbench.scenarios.domains import rotated
from clbench.support.surroundings import by_default, undisturbed
from clbench.tools.conformance import check_strategy
from clbench.tools.overfit import learn_by_heart
from clbench.tools.plan import plan_run

OPTIONS: dict[str, Any] = {
    "tasks": 2,
    "limit": 12,
    "model": "mlp:16",
    "epochs": 2,
    "batch_size": 8,
    "lr": 0.1,
    "optimizer": "sgd",
    "threads": 1,
}


@contextmanager
def put(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def flag(owner: Any, name: str, value: Any) -> Callable[[], AbstractContextManager[None]]:
    return lambda: put(lambda: getattr(owner, name), lambda it: setattr(owner, name, it), value)


def setting(read: Any, write: Any, value: Any) -> Callable[[], AbstractContextManager[None]]:
    return lambda: put(read, write, value)


def filtered(action: Any) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def made() -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            yield

    return made


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def draws() -> Iterator[None]:
    """The three global streams somewhere in their middle."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    torch.rand(3), np.random.rand(3), random.random()
    try:
        yield
    finally:
        torch.set_rng_state(states[0]), np.random.set_state(states[1]), random.setstate(states[2])


@contextmanager
def in_folder(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def hooked(register: Callable[[Any], Any], hook: Callable[..., Any]) -> Iterator[None]:
    """torch calls such a hook for every module or optimizer of the process."""
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


def spoil(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data.mul_(0.5)


def deterministic(warn_only: bool) -> Callable[[], AbstractContextManager[None]]:
    return lambda: put(
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda it: torch.use_deterministic_algorithms(it[0], warn_only=it[1]),
        (True, warn_only),
    )


BACKENDS: Any = torch.backends
WORLDS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64 by default": setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16 by default": setting(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "set_default_device('meta')": lambda: default_device("meta"),
    "set_default_device('cpu')": lambda: default_device("cpu"),
    "with torch.device('meta')": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "set_grad_enabled(False)": lambda: torch.set_grad_enabled(False),
    "inference_mode": torch.inference_mode,
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "deterministic": deterministic(False),
    "deterministic, warn only": deterministic(True),
    "memory not filled": flag(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "cudnn.benchmark": flag(BACKENDS.cudnn, "benchmark", True),
    "cudnn.deterministic": flag(BACKENDS.cudnn, "deterministic", True),
    "cudnn off": flag(BACKENDS.cudnn, "enabled", False),
    "mkldnn off": flag(BACKENDS.mkldnn, "enabled", False),
    "mkldnn deterministic": flag(BACKENDS.mkldnn, "deterministic", True),
    "opt_einsum off": flag(BACKENDS.opt_einsum, "enabled", False),
    "matmul precision medium": setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "matmul precision high": setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"),
    "tf32 products": flag(BACKENDS.cuda.matmul, "allow_tf32", True),
    "no tf32 convolutions": flag(BACKENDS.cudnn, "allow_tf32", False),
    "reduced sums": flag(BACKENDS.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    "three threads": setting(torch.get_num_threads, torch.set_num_threads, 3),
    "denormals flushed": setting(lambda: False, torch.set_flush_denormal, True),
    "random states": draws,
    "warnings are errors": filtered("error"),
    "warnings are ignored": filtered("ignore"),
    "NumPy raises": lambda: np.errstate(all="raise"),
    "NumPy ignores": lambda: np.errstate(all="ignore"),
    "anomalies detected": lambda: put(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, True),
    "gc off": lambda: put(gc.isenabled, lambda it: gc.enable() if it else gc.disable(), False),
    "recursion limit": setting(sys.getrecursionlimit, sys.setrecursionlimit, 5000),
    "another folder": lambda: in_folder("elsewhere"),
    "environment variables": lambda: environment(CUBLAS_WORKSPACE_CONFIG=":16:8", OMP_NUM_THREADS="2", A_NAME="x"),
    "locale": setting(lambda: locale.setlocale(locale.LC_ALL), lambda it: locale.setlocale(locale.LC_ALL, it), "C"),
    "print options": lambda: put(lambda: None, lambda _: torch.set_printoptions(precision=2), None),
    "saved tensors on the CPU": lambda: torch.autograd.graph.save_on_cpu(),
    "tensors that are lost before the backward pass": lambda: torch.autograd.graph.saved_tensors_hooks(
        torch.zeros_like, lambda saved: saved
    ),
    "a hook on every forward pass": lambda: hooked(
        torch.nn.modules.module.register_module_forward_hook, lambda module, given, output: output * 2
    ),
    "a hook before every forward pass": lambda: hooked(
        torch.nn.modules.module.register_module_forward_pre_hook, lambda module, given: tuple(g * 2 for g in given)
    ),
    "a hook on every backward pass": lambda: hooked(
        torch.nn.modules.module.register_module_full_backward_hook,
        lambda module, inner, outer: tuple(None if g is None else g * 2 for g in inner),
    ),
    "a hook on every new parameter": lambda: hooked(
        torch.nn.modules.module.register_module_parameter_registration_hook,
        lambda module, name, parameter: torch.nn.Parameter(parameter.detach() * 2),
    ),
    "a hook after every step": lambda: hooked(
        register_optimizer_step_post_hook, lambda optimizer, given, named: spoil(optimizer)
    ),
    "one-threaded autograd": lambda: torch.autograd.set_multithreading_enabled(False),
}
# By the names of torch since 2.9.
if hasattr(BACKENDS, "fp32_precision"):
    WORLDS |= {
        "products in bf16 by the newer names": flag(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
        "everything in tf32 by the newer names": flag(BACKENDS, "fp32_precision", "tf32"),
        "products on CUDA in tf32 by the newer names": flag(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    }


def _or_none(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # torch refuses to tell where both kinds of names were used
        return "mixed"


def world() -> dict[str, Any]:
    """Everything that the table sets, as it is now."""
    with torch._C.DisableTorchFunctionSubclass():
        state: dict[str, Any] = {
            "device": str(torch.empty(0).device),
            "modes": [type(mode).__name__ for mode in torch.overrides._get_current_function_mode_stack()],
            "current": torch.utils._device.CURRENT_DEVICE,
        }
    return state | {
        "dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "deterministic": torch.get_deterministic_debug_mode(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": [BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic, BACKENDS.cudnn.enabled],
        "tf32": [_or_none(lambda: BACKENDS.cuda.matmul.allow_tf32), _or_none(lambda: BACKENDS.cudnn.allow_tf32)],
        "reduced": BACKENDS.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "mkldnn": [BACKENDS.mkldnn.enabled, BACKENDS.mkldnn.deterministic],
        "einsum": BACKENDS.opt_einsum.enabled,
        "precision": _or_none(torch.get_float32_matmul_precision),
        "newer names": [
            getattr(owner, "fp32_precision", None)
            for owner in (BACKENDS, BACKENDS.cuda.matmul, *(getattr(BACKENDS.mkldnn, n, None) for n in ("matmul",)))
        ],
        "threads": torch.get_num_threads(),
        "denormals": bool(np.float32(torch.tensor(1e-39, dtype=torch.float32, device="cpu").mul(1)) == 0),
        "torch draws": torch.get_rng_state().tolist(),
        "numpy draws": [str(part) for part in np.random.get_state()],
        "draws": random.getstate(),
        "filters": list(warnings.filters),
        "shows": warnings.showwarning,
        "numpy errors": np.geterr(),
        "anomalies": [torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()],
        "gc": gc.isenabled(),
        "recursion": sys.getrecursionlimit(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "hooks": [
            list(table)
            for owner in (sys.modules["torch.nn.modules.module"], sys.modules["torch.optim.optimizer"])
            for name, table in vars(owner).items()
            if name.startswith("_global") and isinstance(table, dict)
        ],
        "hooks on saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(True),
        "locale": locale.setlocale(locale.LC_ALL),
    }


class Counts(Strategy):
    """Draws dropout, convolves nothing, and fails in the task that it is told to fail in."""

    traits = Traits(family="regularisation")
    fails_in: int = -1
    interrupts: bool = False

    def end_task(self, task: Any) -> None:
        # All that a forgetful hook may leave behind.
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        BACKENDS.mkldnn.enabled = False
        np.seterr(all="raise")
        warnings.simplefilter("error")
        os.environ["LEFT_BEHIND"] = "1"
        gc.disable()
        os.chdir("/")
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        handle = torch.nn.modules.module.register_module_forward_hook(lambda module, given, output: None)
        if task.index == self.fails_in:
            raise KeyboardInterrupt if self.interrupts else ZeroDivisionError("as asked")
        # The rest of the run is done in the usual world.
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
        BACKENDS.mkldnn.enabled = True
        warnings.resetwarnings()
        handle.remove()


def learnt(folder: Path) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    result = clbench.Result.load(folder)
    weights = torch.load(folder / "model.pt", weights_only=True)
    losses = [epoch["losses"] for epoch in result.record["training"]]
    return result.record["classifiers"] or result.record["accuracy"], losses, weights


def equal(one: tuple[Any, Any, dict[str, torch.Tensor]], other: tuple[Any, Any, dict[str, torch.Tensor]]) -> bool:
    weights = zip(one[2].values(), other[2].values(), strict=True)
    return one[:2] == other[:2] and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in weights)


def a_run(folder: Path, **options: Any) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    clbench.run("split-mnist-5k", "er", out=folder, memory_size=20, **(OPTIONS | options))
    return learnt(folder)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    return a_run(tmp_path_factory.mktemp("usual") / "run")


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", WORLDS)
def test_a_run_gives_the_same_bits_inside_and_leaves_all_as_it_was(name: str, usual: Any, tmp_path: Path) -> None:
    with WORLDS[name]():
        before = world()
        inside = a_run(tmp_path / "run")
        assert world() == before
    assert equal(usual, inside)


@pytest.mark.parametrize("interrupts", [False, True], ids=["after a failure", "after Ctrl-C"])
@pytest.mark.parametrize("name", WORLDS)
def test_all_is_as_it_was_although_a_hook_changed_it_and(name: str, interrupts: bool, tmp_path: Path) -> None:
    options = {"fails_in": 0, "interrupts": interrupts}
    with WORLDS[name]():
        before = world()
        with pytest.raises(KeyboardInterrupt if interrupts else ZeroDivisionError):
            clbench.run(
                "split-mnist-5k", Counts, out=tmp_path / "run", **(OPTIONS | {"epochs": 1}), strategy_options=options
            )
        assert world() == before


def test_all_is_as_it_was_when_a_hook_changed_it_and_the_run_ended_well(tmp_path: Path) -> None:
    before = world()
    result = clbench.run("split-mnist-5k", Counts, out="runs/here", **OPTIONS)
    assert world() == before
    assert result.status == "done"
    # The hooks moved the process to another folder; the run went on in its own.
    assert (tmp_path / "runs/here/model.pt").is_file()


def test_bf16_inside_the_callers_autocast_casts_the_weights_anew_in_every_step(tmp_path: Path) -> None:
    """Autocast keeps weights that it has cast until the outermost autocast ends, which here is the caller's."""
    outside = a_run(tmp_path / "outside", precision="bf16")
    with torch.autocast("cpu", torch.bfloat16):
        inside = a_run(tmp_path / "inside", precision="bf16")
        assert torch.is_autocast_enabled("cpu")
    assert equal(outside, inside)


SEVERAL = ("float64 by default", "set_default_device('meta')", "inference_mode", "autocast to bfloat16")


@contextmanager
def several() -> Iterator[None]:
    """The worst of the table at once."""
    with contextlib.ExitStack() as stack:
        for name in (*SEVERAL, "no_grad", "warnings are errors", "NumPy raises", "random states"):
            stack.enter_context(WORLDS[name]())
        yield


def test_comparisons_and_convolutions_and_a_resumed_run_give_the_same_bits(tmp_path: Path) -> None:
    def compared(place: Path) -> list[Any]:
        options = OPTIONS | {"model": "conv:4", "epochs": 1, "limit": 4}
        clbench.compare("split-mnist-5k", ["ewc"], seeds=1, out=place, references=False, **options)
        return [learnt(file.parent) for file in sorted(place.rglob("run.json"))]

    outside = compared(tmp_path / "outside")
    with several():
        before = world()
        inside = compared(tmp_path / "inside")
        assert world() == before
    assert len(outside) == 1
    assert all(equal(a, b) for a, b in zip(outside, inside, strict=True))

    class Stop(Observer):
        def task(self, task: int, row: Any) -> None:
            if task == 0:
                raise KeyboardInterrupt

    whole = a_run(tmp_path / "whole")
    with several(), pytest.raises(KeyboardInterrupt):
        a_run(tmp_path / "resumed", observer=Stop())
    with several():
        assert equal(whole, a_run(tmp_path / "resumed", resume=True))


def dataset() -> Any:
    return clbench.scenarios.load_dataset("mnist-5k", "data", offline=True)


def flat(value: Any) -> Any:
    """A value as bytes and plain values, to be compared to the bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.shape, value.detach().clone().cpu().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flat(item) for item in value]
    return value


def _features() -> torch.Tensor:
    return torch.rand(40, 8, dtype=torch.float32, device="cpu", generator=torch.Generator("cpu").manual_seed(1))


@functools.cache
def _model() -> Any:
    """A network of the caller's, made in the usual world."""
    model = build_model("mlp:8", (1, 28, 28), 3)
    model.head.grow(2, torch.Generator("cpu").manual_seed(0))
    return model


def _fisher() -> Any:
    images = _features()[:4, :1].reshape(4, 1, 1, 1).expand(4, 1, 28, 28)
    return clbench.importance.fisher_diagonal(_model(), images, torch.zeros(4, dtype=torch.int64, device="cpu"))


def _mas() -> Any:
    images = torch.ones(2, 1, 28, 28, dtype=torch.float32, device="cpu")
    return clbench.importance.mas_importance(_model(), [images])


def _config() -> Any:
    return resolve("split-mnist-5k", "naive", OPTIONS)


def _planned() -> Any:
    config, tasks = prepare(_config())
    plan = plan_run(config, tasks)
    return [plan["updates"], plan["bytes"]]


FUNCTIONS: dict[str, Callable[[], Any]] = {
    "herding": lambda: clbench.memory.herding(_features(), 7),
    "fisher_diagonal": _fisher,
    "mas_importance": _mas,
    "build_model": lambda: build_model("mlp:8", (1, 28, 28), 3).state_dict(),
    "split": lambda: [t.train.ids for t in clbench.scenarios.split(dataset(), tasks=5, class_order_seed=1).tasks],
    "split, blurry": lambda: [t.train.ids for t in clbench.scenarios.split(dataset(), tasks=5, blurry=0.3).tasks],
    "rotated": lambda: rotated(dataset(), 2, seed=1).x_test[1000:1040],
    "prepare": lambda: prepare(resolve("permuted-mnist-5k", "naive", OPTIONS))[1].test.images[1000:1040],
    "digest": lambda: clbench.scenarios.split(dataset(), tasks=5).digest(),
    "describe": lambda: clbench.scenarios.split(dataset(), tasks=5).describe(),
    "avalanche": lambda: from_benchmark(to_benchmark(clbench.scenarios.split(dataset(), tasks=5, limit=3))).digest(),
    "plan": _planned,
    "overfit": lambda: learn_by_heart(*prepare(_config()), 4),
    "check": lambda: [(o.check, o.status) for o in check_strategy("naive", checks=["determinism", "unequal_tasks"])],
    "summarize": lambda: metrics.summarize([[0.9, float("nan")], [0.5, 0.8]]),
    "summarize nothing": lambda: metrics.summarize([[float("nan")] * 2] * 2),
    "interval": lambda: statistics.interval([0.1, 0.2, 0.4]),
    "interval of many": lambda: statistics.interval([i / 30 for i in range(25)]),
    "interval of equals": lambda: statistics.interval([0.5] * 25),
    "paired": lambda: statistics.paired({(0, "a"): 0.1, (1, "a"): 0.4}, {(0, "a"): 0.1, (1, "a"): 0.4}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_the_same_inside(name: str) -> None:
    outside = FUNCTIONS[name]()
    with several():
        before = world()
        inside = FUNCTIONS[name]()
        assert world() == before
    assert repr(flat(outside)) == repr(flat(inside))


def test_a_search_gives_the_same_inside(tmp_path: Path) -> None:
    options = OPTIONS | {"epochs": 1, "tasks": 3}

    def search(place: str) -> Any:
        found = clbench.tune("split-mnist-5k", "lwf", trials=2, first_tasks=2, out=tmp_path / place, **options)
        return [(trial["values"], trial["score"]) for trial in found.record["trials"]]

    outside = search("outside")
    with several():
        before = world()
        assert search("inside") == outside
        assert world() == before


def test_a_warning_that_the_caller_made_an_error_waits_until_the_run_is_done(tmp_path: Path) -> None:
    class Warns(Observer):
        def task(self, task: int, row: Any) -> None:
            if task == 0:
                warnings.warn("in the middle", stacklevel=2)

    with pytest.raises(UserWarning, match="in the middle"), filtered("error")():
        a_run(tmp_path / "run", observer=Warns())
    assert clbench.Result.load(tmp_path / "run").status == "done"
    with pytest.warns(UserWarning, match="in the middle"):
        a_run(tmp_path / "another", observer=Warns())


def test_a_call_inside_a_transform_or_a_mode_is_refused_by_its_name(tmp_path: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def run(x: torch.Tensor) -> torch.Tensor:
        a_run(tmp_path / "run")
        return x

    for transform in (torch.func.vmap, torch.func.grad):
        with pytest.raises(ConfigError, match=rf"inside torch\.func\.{transform.__name__}.*outside is accepted"):
            transform(run)(torch.ones(3))
    with FakeTensorMode(), pytest.raises(ConfigError, match="inside FakeTensorMode"):
        a_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_thread_at_a_time_and_the_other_is_told_why(tmp_path: Path) -> None:
    """torch has one random stream and one default dtype for all threads, so two runs would change each other."""
    told: list[Exception] = []

    def other() -> None:
        try:
            a_run(tmp_path / "other")
        except ConfigError as error:
            told.append(error)

    class Starts(Observer):
        def task(self, task: int, row: Any) -> None:
            if task == 0:
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()

    whole = a_run(tmp_path / "whole")
    assert equal(whole, a_run(tmp_path / "run", observer=Starts()))
    assert "another thread" in str(*told)
    # Afterwards the other one may, and herding may always: it touches nothing that belongs to the process.
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert equal(whole, learnt(tmp_path / "other"))


def test_herding_in_two_threads_during_a_run(tmp_path: Path) -> None:
    chosen: list[Any] = []

    class Herds(Observer):
        def task(self, task: int, row: Any) -> None:
            thread = threading.Thread(target=lambda: chosen.append(clbench.memory.herding(_features(), 7).tolist()))
            thread.start()
            thread.join()

    a_run(tmp_path / "run", observer=Herds())
    assert chosen == [clbench.memory.herding(_features(), 7).tolist()] * 2


def test_a_run_inside_a_run_is_done_and_disturbs_nothing(tmp_path: Path) -> None:
    class Runs(Observer):
        def task(self, task: int, row: Any) -> None:
            if task == 0:
                a_run(tmp_path / "inner")

    whole = a_run(tmp_path / "whole")
    assert equal(whole, a_run(tmp_path / "outer", observer=Runs()))
    assert equal(whole, learnt(tmp_path / "inner"))


def test_the_contexts_serve_as_decorators_and_pass_errors_on() -> None:
    @undisturbed()
    def inside() -> Any:
        assert torch.get_default_dtype() == torch.float32
        raise RunError("told")

    with WORLDS["float64 by default"]():
        for _ in range(2):
            with pytest.raises(RunError, match="told"):
                inside()
            assert torch.get_default_dtype() == torch.float64
    with torch.no_grad(), by_default():
        assert torch.is_grad_enabled()


def test_deterministic_of_the_callers_is_set_aside_with_a_warning_where_it_would_matter() -> None:
    """On the CPU a run repeats itself in any case, and nothing is said."""
    with deterministic(False)(), warnings.catch_warnings():
        warnings.simplefilter("error")
        FUNCTIONS["plan"]()


@pytest.mark.parametrize(
    "first",
    [
        "torch.set_default_dtype(torch.float64)",
        pytest.param("torch.set_default_device('meta')", marks=pytest.mark.slow),
    ],
)
def test_a_fresh_process_whose_script_begins_so(first: str, usual: Any, tmp_path: Path) -> None:
    """The inputs as they were reported."""
    script = f"""
        import torch
        {first}
        import clbench
        clbench.run("split-mnist-5k", "er", out="run", memory_size=20, **{OPTIONS!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, check=True, timeout=120)
    assert equal(usual, learnt(tmp_path / "run"))
