"""The conformance kit: separate, named checks that any strategy must pass, built-in or your own."""

import copy
import functools
import importlib.util
import inspect
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from clbench.config.arguments import checked
from clbench.config.classes import give, is_known, load_class
from clbench.config.errors import ConfigError, unknown
from clbench.config.registry import parse_spec, path_of
from clbench.config.run import RunConfig, Setting
from clbench.data.scenario import Scenario, Task
from clbench.learning.memory import Memory
from clbench.learning.strategy import Strategy
from clbench.learning.trainer import Trainer
from clbench.models import build_model, inserted
from clbench.models.network import Network
from clbench.results.result import Result
from clbench.running.check import check as check_request
from clbench.running.folder import PREDICTIONS, RunFolder
from clbench.running.packing import pack, unpack
from clbench.running.resolve import prepare, resolve, strategy_class
from clbench.running.run import Run, execute, runner_of
from clbench.support.surroundings import undisturbed
from clbench.tools.model_conformance import check_model
from clbench.tools.outcomes import CheckResult, NotApplicableError, checks_of, demand, found_by

__all__ = ["CHECKS", "CheckResult", "NotApplicableError", "check_model", "check_named", "check_strategy"]

SETTINGS = get_args(Setting)
# Small enough that a strategy is checked in seconds: real digits, 12 of a class, a narrow network.
BASE: dict[str, Any] = {
    "model": "mlp:24-24",
    "epochs": 2,
    "batch_size": 8,
    "limit": 12,
    "lr": 0.005,
    "optimizer": "adam",
    "threads": 1,
    "tasks": 3,
}
MEMORY = 20
# The network of a strategy that works inside a vision transformer: 2 x 2 patches of an image, whatever its size.
TRANSFORMER = "vit[image_size=28,patch_size=14,width=100,depth=5]"


class Bench:
    """Runs one strategy in small, and remembers runs that several checks look at."""

    def __init__(self, strategy: type[Strategy], folder: Path) -> None:
        self.strategy, self.folder = strategy, folder
        self.name = give("strategy", strategy)
        self.setting = strategy.traits.settings[0]
        self._count = 0

    @property
    def base(self) -> dict[str, Any]:
        """The options of a small run, on a network that the strategy works on."""
        network = {"model": TRANSFORMER} if self.strategy.traits.needs_transformer else {}
        return BASE | network | {"setting": self.setting}

    def config(self, strategy: str | None = None, **options: Any) -> RunConfig:
        """Return the config of a small run."""
        values = self.base | options
        if "task_sizes" in options:
            del values["tasks"]
        name = strategy or self.name
        if strategy_class(name).traits.needs_memory:
            values.setdefault("memory_size", MEMORY)
        return resolve("split-mnist-5k", name, values)

    def new(self, config: RunConfig) -> tuple[Run, Scenario]:
        """Return a run that has not begun and keeps nothing."""
        config, scenario = prepare(config)
        return Run(config, scenario, strategy_class(config.strategy)(**config.strategy_options)), scenario

    def run(self, strategy: str | None = None, **options: Any) -> Result:
        """Do a small run and return its result."""
        config, scenario = prepare(self.config(strategy, **options))
        self._count += 1
        return execute(config, scenario, RunFolder(self.folder / str(self._count)))

    @cached_property
    def plain(self) -> Result:
        """The run that most checks compare with."""
        return self.run()

    @contextmanager
    def patched(self, **hooks: Callable[..., Any]) -> Iterator[None]:
        """Replace hooks of the strategy for a while; each replacement gets the original as its first argument."""
        with ExitStack() as stack:
            for name, hook in hooks.items():
                replacement = functools.partialmethod(_call, hook, getattr(self.strategy, name))
                stack.enter_context(mock.patch.object(self.strategy, name, replacement))
            yield


def _call(self: Strategy, hook: Callable[..., Any], original: Callable[..., Any], *args: Any) -> Any:
    return hook(original, self, *args)


def same(one: Result, other: Result) -> bool:
    """Whether two runs have the same matrices, to the byte."""
    return bool(one.record["classifiers"] == other.record["classifiers"])


# The checks. Each has one sentence that says what it holds a strategy to; an AssertionError says what is wrong.


def check_declarations(bench: Bench) -> None:
    """The class has a docstring, and each check that it declares not applicable is one of the kit, with a reason."""
    cls = bench.strategy
    for name, reason in cls.traits.not_applicable.items():
        demand(name in CHECKS, f"not_applicable names {name!r}; the checks are {', '.join(CHECKS)}")
        demand(reason, f"not_applicable gives no reason for {name!r}")
    # `python -OO` drops docstrings.
    demand(cls.__doc__ or sys.flags.optimize > 1, "the class needs a docstring that says what the method is")


def check_hyper_parameters(bench: Bench) -> None:
    """Defaults validate, unknown and mistyped options are refused, and the constructor only stores."""
    cls = bench.strategy
    made = cls()
    extra = set(vars(made)) - set(cls._options.model_fields)
    demand(not extra, f"the constructor made {', '.join(sorted(extra))}; it may only store hyper-parameters")
    wrong: list[dict[str, object]] = [{"no_such_option": 1}, *({name: object()} for name in cls._options.model_fields)]
    for options in wrong:
        try:
            cls(**options)
        except ConfigError:
            continue
        raise AssertionError(f"{options!r} was accepted")


def check_picklable(bench: Bench) -> None:
    """An instance survives pickling with its hyper-parameters."""
    made = bench.strategy()
    again = pickle.loads(pickle.dumps(made))
    demand(vars(again) == vars(made), "an instance is another one after pickling")


def check_settings(bench: Bench) -> None:
    """Every declared setting runs, and every other one is refused before training."""
    for setting in SETTINGS:
        sizes = [2, 2, 2, 2, 2]
        if setting in bench.strategy.traits.settings:
            result = bench.run(setting=setting, task_sizes=sizes)
            demand(result.status == "done", f"setting {setting!r} did not finish")
        else:
            try:
                bench.config(setting=setting, task_sizes=sizes)
            except ConfigError:
                continue
            raise AssertionError(f"setting {setting!r} is not declared, and was not refused")


def check_determinism(bench: Bench) -> None:
    """Two runs of one config give the same matrices to the byte, and another seed gives others."""
    demand(same(bench.plain, bench.run()), "the same config gave another matrix")
    demand(not same(bench.plain, bench.run(seed=1)), "another seed gave the same matrix: the seed is not used")


def check_neutral_at_zero(bench: Bench) -> None:
    """With strength 0, or a memory of budget 0, the run is the naive one; with a large strength it is not."""
    cls = bench.strategy
    naive = bench.run("naive")
    applies = False
    if "strength" in cls._options.model_fields and not cls.traits.needs_memory:
        applies = True
        demand(same(naive, bench.run(strategy_options={"strength": 0.0})), "strength 0 differs from naive")
        large = bench.run(strategy_options={"strength": 1e4})
        demand(not same(naive, large), "strength 10000 is the naive run: the term has no effect")
    if cls.traits.needs_memory:
        applies = True
        off = {"strength": 0.0} if "strength" in cls._options.model_fields else {}
        demand(same(naive, bench.run(memory_size=0, strategy_options=off)), "a memory of budget 0 differs from naive")
    if not applies:
        raise NotApplicableError("it has neither an additive term with a strength nor a memory it lives on")


def check_resume_at_task_boundaries(bench: Bench) -> None:
    """Stopped after any task and continued, a run gives the matrix of the uninterrupted one."""

    class StopHereError(Exception):
        pass

    for stop in range(1, len(bench.plain.task_classes)):

        def begin(original: Any, self: Strategy, task: Task, stop: int = stop) -> None:
            if task.index == stop:
                raise StopHereError
            original(self, task)

        config, scenario = prepare(bench.config())
        bench._count += 1
        folder = RunFolder(bench.folder / str(bench._count))
        try:
            with bench.patched(begin_task=begin):
                execute(config, scenario, folder)
        except StopHereError:
            pass
        resumed = execute(config, scenario, folder, resume=True)
        demand(same(bench.plain, resumed), f"stopped before task {stop} and continued, the matrix is another one")


def check_resume_within_a_task(bench: Bench) -> None:
    """Stopped every few steps and continued from a checkpoint within the task, a run gives the same matrix."""

    class StopHereError(Exception):
        pass

    whole = bench.plain
    n_steps = sum(task["steps"] for task in whole.record["tasks"])
    # Each stop takes as long as dozens of steps, so that a run of many steps is stopped some 20 times.
    every = max(8, n_steps // 20)
    steps = 0

    def after_step(original: Any, self: Strategy, batch: Any) -> None:
        nonlocal steps
        original(self, batch)
        steps += 1
        if steps % every == 0:
            raise StopHereError

    config, scenario = prepare(bench.config(checkpoint_every="2-steps"))
    bench._count += 1
    folder = RunFolder(bench.folder / str(bench._count))
    with bench.patched(after_step=after_step):
        for _ in range(n_steps + 1):
            try:
                resumed = execute(config, scenario, folder, resume=True)
                break
            except StopHereError:
                # A killed process leaves this; a failure would be recorded.
                continue
        else:
            raise AssertionError(f"stopped after every {every} steps, the run does not come to an end")
    if steps < every:
        raise NotApplicableError(f"it takes fewer than {every} steps")
    demand(same(whole, resumed), "stopped within tasks and continued, the matrix is another one")


def check_state_in_the_middle_of_a_stage(bench: Bench) -> None:
    """In the middle of a stage, the state is saved without executable content and read back equal."""
    tried: list[bool] = []

    def after_step(original: Any, self: Strategy, batch: Any) -> None:
        original(self, batch)
        if self.progress.task == 1 and self.progress.step == 2 and not tried:
            tried.append(True)
            again = unpack(pack(self.state()), type(self))
            _assert_equal(self.state(), again, "state")

    with bench.patched(after_step=after_step):
        bench.run(epochs=3)
    if not tried:
        raise NotApplicableError("it takes no optimizer step in later tasks")


def check_steps_left_out(bench: Bench) -> None:
    """Where on_nan="skip" leaves steps out, the run ends well, and nothing of such a step reaches a later one."""

    def spoilt(calls: bool) -> Callable[..., Any]:
        def loss(original: Any, self: Strategy, batch: Any) -> Any:
            if self.progress.step not in (1, 2):
                return original(self, batch)
            if calls:
                original(self, batch)
            return torch.full((), torch.nan, device=self.device, requires_grad=True)

        return loss

    results = []
    for calls in (True, False):
        with bench.patched(loss=spoilt(calls)):
            results.append(bench.run(on_nan="skip"))
    if not any(epoch.get("skipped") for epoch in results[0].record["training"]):
        raise NotApplicableError("it takes no optimizer step by its own loss")
    demand(same(*results), "the loss of a step that is left out leaves something behind that changes later steps")


def check_another_process(bench: Bench) -> None:
    """Another process, in which sets of texts have another order, gives the same matrices to the byte."""
    cls = bench.strategy
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__":
        raise NotApplicableError("its class stands in a function or script, from which no other process can import it")
    options = bench.base
    if cls.traits.needs_memory:
        options["memory_size"] = MEMORY
    code = "import json, sys, clbench; clbench.run('split-mnist-5k', sys.argv[1], **json.loads(sys.argv[2]))"
    options |= {"strategy_options": cls.validate({}), "out": str(bench.folder / "elsewhere"), "quiet": True}
    given = [f"{inspect.getfile(cls)}:{cls.__name__}", json.dumps(options)]
    # 0 turns the random order of sets off, which this process has unless it was started in the same way.
    surroundings = os.environ | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *given],
        env=surroundings,
        capture_output=True,
        encoding="utf-8",
    )
    demand(done.returncode == 0, f"another process ends with {(done.stderr.splitlines() or ['no word'])[-1]}")
    demand(same(bench.plain, Result.load(bench.folder / "elsewhere")), "another process gave another matrix")


def check_unequal_tasks(bench: Bench) -> None:
    """A growing head and tasks of 4, 3 and 3 classes work; so does one task of all classes."""
    if bench.strategy.traits.settings == ("domain",):
        raise NotApplicableError("a domain-incremental scenario has tasks of one size")
    setting = next(s for s in bench.strategy.traits.settings if s != "domain")
    for sizes in ([4, 3, 3], [10]):
        result = bench.run(setting=setting, task_sizes=sizes)
        demand(result.status == "done", f"tasks of {sizes} classes did not finish")
        demand(
            np.isfinite(result.accuracy[-1]).all(), f"tasks of {sizes} classes leave cells of the last row undefined"
        )


def check_one_class_a_task(bench: Bench) -> None:
    """Ten tasks of one class work in the class-incremental setting."""
    if "class" not in bench.strategy.traits.settings:
        raise NotApplicableError("only a class-incremental scenario can have tasks of one class")
    result = bench.run(setting="class", task_sizes=[1] * 10)
    demand(np.isfinite(result.accuracy[-1]).all(), "the last row has undefined cells")


def check_batch_norm(bench: Bench) -> None:
    """A network with batch norm trains although the last batch would hold one sample."""
    try:
        config = bench.config(model="mlp:24-24[batch_norm=true]", task_sizes=[4, 3, 3], batch_size=7, limit=5, epochs=1)
        config, scenario = prepare(config)
        check_request(config, scenario, strategy_class(config.strategy)(**config.strategy_options))
    except ConfigError as error:
        if bench.setting == "domain":
            raise NotApplicableError("a domain-incremental scenario has tasks of one size") from None
        raise NotApplicableError(str(error)) from None
    bench._count += 1
    result = execute(config, scenario, RunFolder(bench.folder / str(bench._count)))
    demand(result.status == "done", "the run did not finish")


def check_evaluation_has_no_effect(bench: Bench) -> None:
    """Evaluating after every epoch changes neither the matrices nor a bit of the state."""
    demand(same(bench.plain, bench.run(eval_every="epoch")), "evaluating after each epoch changed the matrix")


def check_evaluation_before_training(bench: Bench) -> None:
    """The untrained strategy can be tested: its accuracies are there before anything is learnt."""
    untrained = bench.plain.untrained
    if untrained is None:
        raise AssertionError("the untrained model's accuracies are missing")
    demand(math.isfinite(untrained[0]), "the untrained model's accuracy on the first task is undefined")


def check_no_leak_at_test(bench: Bench) -> None:
    """A test image is scored alike whatever stands beside it in the batch: scores know no labels, tasks or batch."""
    run, scenario = bench.new(bench.config())
    for task in scenario.tasks:
        run.learn(task)
    strategy, pipeline = run.strategy, run.context.pipeline
    ids = scenario.test.tasks.ge(0).nonzero().flatten()
    mixed = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]

    def guesses(order: Tensor, size: int) -> Tensor:
        found = torch.zeros(len(scenario.test.labels), dtype=torch.int64)
        for chunk in order.split(size):
            images = torch.cat([x for x, _, _ in pipeline.test_passes(chunk)])
            scores = strategy.scores(images, 0) if strategy.traits.needs_task_at_test else strategy.scores(images)
            first = next(iter(scores.values())) if isinstance(scores, dict) else scores
            found[chunk] = first.argmax(1).cpu()
        return found

    for value in vars(strategy).values():
        if isinstance(value, nn.Module):
            value.eval()
    with torch.inference_mode():
        per_task, shuffled = guesses(ids, 100), guesses(mixed, 37)
    agreement = float((per_task == shuffled)[ids].float().mean())
    # A tie between two outputs can break either way by rounding, which depends on the shape of a product.
    demand(agreement > 0.995, f"only {agreement:.1%} of the predictions stay the same in another order of the images")


def check_memory_budget(bench: Bench) -> None:
    """The memory never exceeds its budget, at any step, and holds training samples of tasks seen so far only."""
    cls = bench.strategy
    if cls.traits.memory == "none":
        raise NotApplicableError("it has no use for a memory")

    def after_step(original: Any, self: Strategy, batch: Any) -> None:
        original(self, batch)
        _check_memory(self)

    def end_task(original: Any, self: Strategy, task: Task) -> None:
        original(self, task)
        _check_memory(self)

    def _check_memory(self: Strategy) -> None:
        if self.memory is None:
            raise AssertionError("there is no memory, although one of 7 exemplars was asked for")
        demand(len(self.memory) <= 7, f"{len(self.memory)} exemplars in a memory of 7")
        tasks = self._context.scenario.train.tasks[self.memory.ids]
        demand(bool(((tasks >= 0) & (tasks <= self.progress.task)).all()), "the memory holds samples of no seen task")
        kept = torch.cat([t.train.ids for t in self._context.scenario.tasks])
        demand(bool(torch.isin(self.memory.ids, kept).all()), "the memory holds validation samples")

    with bench.patched(after_step=after_step, end_task=end_task):
        result = bench.run(memory_size=7, validation=0.2)
    demand(all(task["n_exemplars"] <= 7 for task in result.record["tasks"]), "the record shows more than the budget")


def check_no_images_kept(bench: Bench) -> None:
    """No task's images are kept outside the memory, and no view of an expired task's data either."""
    if bench.strategy.traits.data_access == "all":
        raise NotApplicableError("it declares that it reads all data")
    run, scenario = bench.new(bench.config())
    shape = scenario.train.images.shape[1:]
    for task in scenario.tasks:
        run.learn(task)
        for path, tensor in _tensors(run.strategy.state(), ""):
            same_shape = tensor.dim() >= 3 and tensor.shape[-3:] == shape and len(tensor) > 1
            demand(not same_shape, f"{path} keeps {tensor.shape[:1].numel()} images outside the memory")


def check_losses_are_finite(bench: Bench) -> None:
    """Every loss term of every epoch, and every tensor of the state, is finite."""
    run, scenario = bench.new(bench.config())
    for task in scenario.tasks:
        run.learn(task)
    for epoch in run.recorder.record.training:
        for name, value in epoch.losses.items():
            demand(math.isfinite(math.nan if value is None else value), f"the {name} loss is {value}")
    for path, tensor in _tensors(run.strategy.state(), ""):
        if tensor.is_floating_point():
            demand(not bool(tensor.isnan().any()), f"{path} holds NaN")


def check_model_untouched_by_task_ends(bench: Bench) -> None:
    """begin_run, begin_task and end_task (teachers, importances, herding) leave every bit of the model as it was.

    What they put into it (clbench.models.inserted) is no part of it.
    """
    changed: list[str] = []

    def bare(model: Network) -> dict[str, Tensor]:
        copied = copy.deepcopy(model)
        inserted.remove(copied)
        return copied.state_dict()

    def watch(original: Any, self: Strategy, *task: Task) -> None:
        before = bare(self.model)
        flags = {id(p): p.requires_grad for p in self.model.parameters()}
        original(self, *task)
        after = bare(self.model)
        changed.extend(n for n in before if n not in after or not torch.equal(before[n], after[n]))
        if any(p.requires_grad != flags.get(id(p), p.requires_grad) for p in self.model.parameters()):
            changed.append("requires_grad")

    with bench.patched(begin_run=watch, begin_task=watch, end_task=watch):
        bench.run()
    demand(not changed, f"changed outside training: {', '.join(sorted(set(changed)))}")


def check_optimizer(bench: Bench) -> None:
    """During a stage the optimizer holds every parameter that can train, and no stale one."""
    problems: list[str] = []
    held: list[set[int]] = []
    original_optimizer = Trainer.optimizer

    def optimizer(self: Trainer, *args: Any) -> torch.optim.Optimizer:
        made = original_optimizer(self, *args)
        held.append({id(p) for group in made.param_groups for p in group["params"]})
        return made

    def after_step(original: Any, self: Strategy, batch: Any) -> None:
        original(self, batch)
        now = {id(p) for p in self.trainable().values()}
        if now != held[-1]:
            problems.append(f"{len(now - held[-1])} parameters missing, {len(held[-1] - now)} stale")

    with mock.patch.object(Trainer, "optimizer", optimizer), bench.patched(after_step=after_step):
        bench.run()
    demand(not problems, f"in the optimizer: {'; '.join(problems[:1])}")


def check_features_once(bench: Bench) -> None:
    """On features that are computed once, a run with a frozen network gives the scores that it gives on images."""
    if not bench.strategy.traits.on_features:
        raise NotApplicableError("it does not declare that it works on features")
    if importlib.util.find_spec("timm") is None:
        raise NotApplicableError("timm, which makes the network of this check, is not installed")
    network, weights, scores = "vit[patch_size=14,width=16,depth=1,heads=2]", bench.folder / "weights.pt", []
    torch.save(build_model(network, (1, 28, 28), 0).state_dict(), weights)
    frozen: dict[str, Any] = {"model": network, "weights": str(weights), "train": "head", "keep_predictions": True}
    with mock.patch.dict(os.environ, {"CLBENCH_CACHE": str(bench.folder / "cache")}):
        for once in (True, False):
            result = bench.run(cache_features=once, **frozen)
            with np.load(bench.folder / str(bench._count) / PREDICTIONS) as predictions:
                scores.append(predictions["scores"])
            if once and "cached_features" not in result.record:
                raise NotApplicableError("with its default options it works on images")
    known = np.isfinite(scores[1])
    agree = (known == np.isfinite(scores[0])).all() and np.allclose(scores[0][known], scores[1][known], 1e-3, 1e-4)
    demand(agree, "on features that are computed once it ends with other scores than on images")


CHECKS = checks_of(globals())


@checked
@undisturbed()
def check_strategy(strategy: type[Strategy] | str, *, checks: list[str] | None = None) -> list[CheckResult]:
    """Run the checks on a strategy (a class, a registered name, or path.py:Class) and return what each found.

    A name may carry options of the strategy in brackets. checks: those that are done, by name; by default all.
    A strategy may declare a check not applicable: `Traits(..., not_applicable={"neutral_at_zero": "the reason"})`.
    """
    name, bracket = parse_spec(strategy) if isinstance(strategy, str) else (give("strategy", strategy), {})
    cls = strategy_class(name)
    if bracket:
        values = cls.validate(bracket, name)
        named = {"__doc__": cls.__doc__, "__module__": cls.__module__}
        cls = type(cls.__name__, (cls,), named | {option: values[option] for option in bracket})
    for check in checks or ():
        if check not in CHECKS:
            raise unknown("check", check, CHECKS)
    if not runner_of(cls).continues:
        raise ConfigError(f"{strategy} trains by its own loop; the kit checks strategies that the engine trains")
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(cls, Path(folder))
        for name in CHECKS if checks is None else checks:
            if name in cls.traits.not_applicable:
                outcomes.append(CheckResult(name, "not applicable", cls.traits.not_applicable[name]))
            else:
                outcomes.append(found_by(name, functools.partial(CHECKS[name], bench)))
            # Some strategies keep a gigabyte in each run, and no check looks into a folder of another one.
            for left in Path(folder).iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return outcomes


def check_named(name: str) -> list[CheckResult]:
    """Run the checks on a strategy or a network by its name, which may be path.py:Class; raises ConfigError."""
    base = parse_spec(name)[0]
    if path_of(base):
        loaded = load_class("strategy", base)
        is_strategy = isinstance(loaded, type) and issubclass(loaded, Strategy)
    else:
        is_strategy = is_known("strategy", base) or not is_known("model", base.partition(":")[0])
    return check_strategy(name) if is_strategy else check_model(name)


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Memory):
        return
    elif isinstance(value, nn.Module):
        yield from ((f"{path}.{name}", tensor) for name, tensor in value.state_dict().items())
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{path}[{index}]")


def _assert_equal(one: Any, other: Any, path: str) -> None:
    if isinstance(one, Tensor):
        demand(torch.equal(one, other), f"{path} is another tensor after saving")
    elif isinstance(one, nn.Module | Memory):
        left = one.state_dict() if isinstance(one, nn.Module) else vars(one)
        right = other.state_dict() if isinstance(other, nn.Module) else vars(other)
        _assert_equal(dict(left), dict(right), path)
    elif isinstance(one, dict):
        demand(list(one) == list(other), f"{path} has other keys after saving")
        for key in one:
            _assert_equal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        demand(len(one) == len(other), f"{path} has another length after saving")
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_equal(a, b, f"{path}[{index}]")
    else:
        kept = pack({"value": one}) == pack({"value": other})
        demand(kept or one == other, f"{path} is another value after saving")
