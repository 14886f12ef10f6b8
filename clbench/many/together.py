"""Several seeds of one configuration in one batched model: each step computes all of them at once."""

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from itertools import zip_longest
from operator import add
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

from clbench.config.code import content
from clbench.config.errors import ConfigError, RunError, one_line, shown
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import ImageSet, Task
from clbench.learning.fit import Fit
from clbench.learning.returned import loss_of, loss_terms, penalty_term, require_gradient
from clbench.learning.strategy import Context, Strategy
from clbench.learning.trainer import AfterStep, AtRest, Trainer, new_optimizer
from clbench.models import build_model
from clbench.results.record import EpochRecord

Tensors = dict[str, Tensor]
T = TypeVar("T")


def refuse_together(
    config: RunConfig, kind: type[Strategy], image_shape: tuple[int, ...], possible: Sequence[str]
) -> None:
    """Raise ConfigError unless a configuration's seeds can be trained together; `possible`: the strategies that can."""
    hooks = (kind.after_backward is Strategy.after_backward) and (kind.after_step is Strategy.after_step)
    if not kind.traits.seeds_together or not hooks:
        raise ConfigError(f"--seeds-together: {config.strategy} trains its seeds one by one; {', '.join(possible)} can")
    memory, training, evaluation, engine = config.memory, config.training, config.evaluation, config.engine
    for name, given, accepted in (
        ("memory_size", memory.size, None),
        ("memory_per_class", memory.per_class, None),
        ("clip", training.clip, None),
        ("plasticity", evaluation.plasticity, False),
        ("online_accuracy", evaluation.online_accuracy, False),
        ("near_future", evaluation.near_future, None),
        ("anytime", evaluation.anytime, None),
        ("eval_every", evaluation.eval_every if isinstance(evaluation.eval_every, int) else None, None),
        (
            "checkpoint_every",
            engine.checkpoint_every if str(engine.checkpoint_every).endswith("-steps") else None,
            None,
        ),
        ("on_nan", training.on_nan, "stop"),
        ("compile", engine.compile, "none"),
        ("processes", engine.processes, 1),
        ("accumulate", engine.accumulate, 1),
        ("count_flops", engine.count_flops, False),
        ("budget", training.budget if config.counts_flops else None, None),
        ("mixup", config.data.mixup, 0),
        # Rates, numbers of steps and sizes of tasks would differ from seed to seed.
        ("schedule", "plateau" if training.schedule == "plateau" else None, None),
        (
            "optimizer_state",
            training.optimizer_state if training.patience is not None else "reset",
            "reset",
        ),
        ("class_order_seed", "per-seed" if "per-seed" in config.scenario_options.values() else None, None),
    ):
        if given is not None and given != accepted:
            beside = " with patience" if name == "optimizer_state" else ""
            raise ConfigError(f"--seeds-together: {name}={given}{beside} needs runs one by one; leave out one of them")
    _refuse_model(config, image_shape)


def _refuse_model(config: RunConfig, image_shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless copies of a network can train in one batch; two of them try, on two images each."""
    name = config.model.name
    model = build_model(name, image_shape, 0, config.code)
    if any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules()):
        raise ConfigError(f"--seeds-together: {name} has dropout, which draws for each seed on its own")
    holder = _Holder([model])
    stacked = {n: torch.stack([value.detach()] * 2) for n, value in holder.tensors.items()}

    def features(own: Tensors, images: Tensor) -> Any:
        return functional_call(holder, own, (model.features, images))

    try:
        vmap(features)(stacked, torch.zeros(2, 2, *image_shape))
    except RuntimeError as error:
        reason = one_line(str(error), 120)
        raise ConfigError(f"--seeds-together: torch can't batch copies of {name} ({reason}); leave it out") from error


class Together:
    """The meeting point of a group of runs: an epoch is trained when all runs have reached one.

    Each run has a thread of its own, evaluation and saving included. Only one thread works at a time, because all share
    torch's global random stream, which builds a model. Of the waiting runs, those furthest behind are trained, so a run
    that is continued, or stops early, joins the others at the same epoch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._turn = threading.Condition()
        self._under_way = len(self.seeds)
        self._waiting: list[_Member] = []
        self.stopped = False

    def trainer(self, context: Context, strategy: Strategy) -> Trainer:
        """Return a trainer that trains its epochs with those of the other runs."""
        return _Member(self, context, strategy)

    def run(self, do: Callable[[], T]) -> T:
        """Do one of the runs, with a trainer of this group, in the calling thread."""
        with self._turn:
            try:
                return do()
            finally:
                self._under_way -= 1
                self._train_if_all_are_here()

    def stop(self) -> None:
        """End all runs after the current step."""
        self.stopped = True
        with self._turn:
            self._turn.notify_all()

    def epoch(self, member: "_Member") -> None:
        """Wait for the others, and return when the member's epoch is trained."""
        self._waiting.append(member)
        self._train_if_all_are_here()
        self._turn.wait_for(lambda: member not in self._waiting or self.stopped)
        if self.stopped:
            raise KeyboardInterrupt
        if member.error is not None:
            raise member.error

    def _train_if_all_are_here(self) -> None:
        if not self._waiting or len(self._waiting) < self._under_way:
            return
        position = min(member.position for member in self._waiting)
        ready = [member for member in self._waiting if member.position == position]
        try:
            _train_epoch(ready)
        except Exception as error:
            for member in ready:
                member.error = error
        self._waiting = [member for member in self._waiting if member not in ready]
        self._turn.notify_all()


class _Member(Trainer):
    """The trainer of one of the runs."""

    def __init__(self, group: Together, context: Context, strategy: Strategy) -> None:
        super().__init__(context, strategy)
        self.group = group
        self.error: Exception | None = None
        seeds = ", ".join(map(str, group.seeds))
        text = f"seeds {seeds} in one batched model, so the last bits may differ from those of a separate run"
        self.remarks = [("seeds-together", text)]

    @contextmanager
    def drawing_nothing(self, hook: str) -> Iterator[None]:
        """Raise ConfigError where a hook draws from a global random stream: there is one for all seeds."""
        if not self._runs_code_of_others:
            yield
            return
        before = _streams()
        yield
        if _streams() != before:
            raise ConfigError(
                f"--seeds-together: {type(self.strategy).__name__}.{hook} draws at random, and all seeds share one "
                "stream; draws in begin_task, stages and end_task are accepted, and runs one by one"
            )

    @property
    def position(self) -> tuple[int, int]:
        """Task and epoch."""
        return self.context.progress.task, self.context.progress.epoch

    def _epoch(self, fit: Fit, after_step: AfterStep, at_rest: AtRest) -> EpochRecord:
        if fit.tally.steps:
            # A run that was begun alone also finishes its epoch alone.
            return super()._epoch(fit, after_step, at_rest)
        self.group.epoch(self)
        return self.record(fit)


class _Holder(nn.Module):
    """The modules of a strategy, so that its methods can be called with other tensors in their place."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        for index, module in enumerate(modules):
            self.add_module(str(index), module)

    @property
    def tensors(self) -> Tensors:
        """Parameters and buffers by name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def forward(self, method: Callable[..., Any], *arguments: Any) -> Any:
        return method(*arguments)


class _Fact(NamedTuple):
    """A fact about what stands on `self`: `for_all` is the same for all seeds, and `now` before and after each step."""

    path: str
    value: Any
    for_all: Any
    now: Any


def _attributes(strategy: Strategy) -> dict[str, Any]:
    return {name: value for name, value in sorted(vars(strategy).items()) if name != "_context"}


def _facts(strategy: Strategy) -> Iterator[_Fact]:
    """Yield what decides a loss besides the values of tensors and floats, which each seed has for itself."""
    for name, attribute in _attributes(strategy).items():
        try:
            leaves, form = tree_flatten_with_path(attribute)
        except RecursionError:
            raise ConfigError(f"--seeds-together: self.{name} is nested too deeply, or holds itself") from None
        if not form.is_leaf():
            yield _Fact(f"self.{name}", attribute, form, form)
        for steps, value in leaves:
            path = f"self.{name}{keystr(steps)}"
            if isinstance(value, nn.Module):
                yield from _facts_of_layers(path, value)
            elif _is_stackable(value):
                version = 0 if value.is_inference() else value._version
                yield _Fact(path, value, _kind(value), (id(value), version))
            else:
                found = _content(value)
                yield _Fact(path, value, float if isinstance(value, float) else found, found)


def _facts_of_layers(path: str, module: nn.Module) -> Iterator[_Fact]:
    """Yield what decides the answer of a module besides the values of its parameters and buffers."""
    yield _Fact(path, module, type(module), id(module))
    for name, layer in module.named_modules(prefix=path):
        for attribute, value in vars(layer).items():
            if attribute in ("_parameters", "_buffers"):
                found: Any = {n: tensor if tensor is None else _kind(tensor) for n, tensor in value.items()}
            else:
                found = list(value) if attribute == "_modules" else _content(value)
            yield _Fact(f"{name}.{attribute}", value, found, found)


def _is_stackable(value: object) -> bool:
    """Whether a value is a tensor that is nothing but its numbers."""
    return type(value) is Tensor and value.layout is torch.strided and not vars(value)


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _content(value: Any) -> object:
    """Return a description of a value's content; of views of data the samples that they show."""
    # Most of what stands on layers is plain or empty, and there is much of it.
    if type(value) in (type(None), bool, int, float, str) or (type(value) in (dict, set, OrderedDict) and not value):
        return type(value), repr(value)
    if type(value) is tuple:
        return tuple(map(_content, value))
    if isinstance(value, ImageSet):
        return None if value.expired else content(value.ids)
    if isinstance(value, Task):
        return [_content(part) for part in (value.train, value.validation, value.test)]
    return content(value)


class _Kept:
    """All that the strategies of the seeds keep on `self`, within containers too; no step changes any of it.

    Each seed's parameters and buffers are put in their places by a holder. Tensors, and floats that are not the same
    for all seeds, are stacked. What is left has to be the same, as the first seed's serves all of them: ConfigError
    names the attribute where it is not.
    """

    def __init__(self, strategies: Sequence[Strategy]) -> None:
        self.strategies = strategies
        self._facts = [list(_facts(strategy)) for strategy in strategies]
        nothing = _Fact("", "nothing", None, None)
        for own in self._facts[1:]:
            for one, other in zip_longest(self._facts[0], own, fillvalue=nothing):
                if (one.path, one.for_all) != (other.path, other.for_all):
                    if one.path != other.path:
                        # The one that comes first in the order of paths is not there for the other seed.
                        one, other = (one, nothing) if one.path and one.path < other.path else (nothing, other)
                    raise ConfigError(
                        f"--seeds-together: {one.path or other.path} is {shown(one.value)} for one seed and "
                        f"{shown(other.value)} for another; a float or a tensor is accepted"
                    )
        flat = [tree_flatten(_attributes(strategy)) for strategy in strategies]
        self.leaves, self.form = flat[0]
        self.holders = [_Holder([leaf for leaf in own if isinstance(leaf, nn.Module)]) for own, _ in flat]
        self.stacked = {
            str(place): torch.stack([torch.as_tensor(value).detach() for value in values])
            for place, values in enumerate(zip(*(own for own, _ in flat), strict=True))
            if _is_stackable(values[0]) or (isinstance(values[0], float) and len(set(map(repr, values))) > 1)
        }
        for holder, own in zip(self.holders, self._facts, strict=True):
            weights = {_memory_of(tensor) for tensor in holder.tensors.values() if tensor.numel()}
            for fact in own:
                if _is_stackable(fact.value) and _memory_of(fact.value) in weights:
                    raise ConfigError(f"--seeds-together: {fact.path} shares memory with a module; a clone is accepted")

    def attributes(self, own: Tensors) -> dict[str, Any]:
        """Return the attributes for a step, with one seed's tensors in the place of the stacked ones."""
        leaves = [own.get(str(place), leaf) for place, leaf in enumerate(self.leaves)]
        attributes: dict[str, Any] = tree_unflatten(leaves, self.form)
        return attributes

    def require_unchanged_in_place(self) -> None:
        """Raise ConfigError for the first stacked attribute whose values a loss has changed."""
        for place, tensor in self.stacked.items():
            if tensor._version:
                steps: Any = tree_flatten_with_path(_attributes(self.strategies[0]))[0][int(place)][0]
                raise _changed(self.strategies[0], f"self.{steps[0].key}{keystr(steps[1:])}")

    def require_unchanged(self) -> None:
        """Raise ConfigError for the first attribute that a step has changed."""
        for strategy, before in zip(self.strategies, self._facts, strict=True):
            for one, other in zip_longest(before, _facts(strategy), fillvalue=_Fact("", None, None, None)):
                if (one.path, one.now) != (other.path, other.now):
                    raise _changed(strategy, one.path or other.path)


def _memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _changed(strategy: Strategy, path: str) -> ConfigError:
    return ConfigError(
        f"--seeds-together: {type(strategy).__name__} changes {path} in a step, which serves all seeds at once; what "
        "begin_task, stages and end_task change is accepted, and runs one by one"
    )


class _OfAllSeeds:
    """The config that a loss of all seeds sees: it has no seed."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        if name == "seed":
            raise ConfigError(
                "--seeds-together: the loss asks for the seed or for self.rng(...), and one loss serves all seeds; "
                "a float or a tensor on self that begin_task draws is accepted"
            )
        return getattr(self._config, name)


def _streams() -> tuple[object, ...]:
    """Return where the global random streams are."""
    numpy: Any = np.random.get_state()
    own = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]
    return random.getstate(), numpy[1].tobytes(), numpy[2:], [state.numpy().tobytes() for state in own]


# Pieces of torch's errors about a function of several seeds at once, and the same in a reader's words.
_REASONS = {
    "data-dependent control flow": "as it looks at the value of a tensor, in `if` or max(); torch.where is accepted",
    ".item()": "as it takes a number out of a tensor, as .item(), float() and int() do; tensors are accepted",
    "data pointer": "as it takes values out of a tensor, as .numpy() and .tolist() do; tensors are accepted",
    "random operation": "as it draws at random; draws in begin_task, stages and end_task are accepted",
    "dynamic shape": "as it picks a number of values that a seed decides; torch.where is accepted",
    "functorch": "",
    "vmap": "",
}


def _train_epoch(members: Sequence[_Member]) -> None:
    """Train an epoch of all members; weights, buffers and optimizers end as if each member had trained alone."""
    started = time.perf_counter()
    fits, kept = [member.fit_under_way for member in members], _Kept([member.strategy for member in members])
    holders = kept.holders
    _refuse(members, holders[0])
    tensors = [holder.tensors for holder in holders]
    stacked = {name: torch.stack([own[name].detach() for own in tensors]) for name in tensors[0]}
    names = {id(parameter): name for own in tensors for name, parameter in own.items()}
    optimizer = _stacked_optimizer(members, names, stacked)
    fixed = [
        (fit.rows, [stacked[names[id(parameter)]].detach()[index] for parameter in fit.rows.parameters])
        for index, fit in enumerate(fits)
        if fit.rows is not None
    ]
    batches = [member.batches(fit) for member, fit in zip(members, fits, strict=True)]
    if len({tuple(map(len, own)) for own in batches}) > 1:
        raise ConfigError("--seeds-together: the tasks of the seeds differ in size")
    for ids in zip(*batches, strict=True):
        if fits[0].is_out_of_steps(members[0].context.progress):
            break
        if members[0].group.stopped:
            return
        parts = []
        for member, fit, each in zip(members, fits, ids, strict=True):
            fit.set_rate(member.context.progress, member.config, len(member.context.scenario.tasks))
            parts.append(member.batch(fit, each))
        for joint, single in zip(optimizer.param_groups, fits[0].optimizer.param_groups, strict=True):
            joint["lr"] = single["lr"]
        optimizer.zero_grad()
        terms = _losses(members, kept, stacked, parts)
        require_gradient(terms, loss_of(members[0].strategy, fits[0].stage)[1])
        reduce(add, terms.values()).sum().backward()
        for index, (member, fit, holder) in enumerate(zip(members, fits, holders, strict=True)):
            own_terms = {name: term[index].detach() for name, term in terms.items()}
            own = {n: tensor[index] for n, tensor in stacked.items()}
            with member.drawing_nothing("penalty"):
                penalty = functional_call(holder, own, (member.strategy.penalty,))
            if penalty_term(member.strategy, penalty) is not None:
                own_terms["penalty"] = penalty.detach()
                if penalty.requires_grad:
                    penalty.backward()
            fit.tally.add(member.context.progress.step, own_terms)
        optimizer.step()
        for rows, heads in fixed:
            rows.restore(heads)
        for member, fit, part in zip(members, fits, parts, strict=True):
            fit.count(member.context.progress, len(part))
        if fits[0].tally.steps == 1:
            kept.require_unchanged()
    kept.require_unchanged()
    with torch.no_grad():
        for index, single in enumerate(tensors):
            for name, tensor in single.items():
                tensor.copy_(stacked[name][index])
    _unstack_optimizer(optimizer, fits)
    for fit in fits:
        fit.tally.seconds += (time.perf_counter() - started) / len(fits)


def _refuse(members: Sequence[_Member], holder: _Holder) -> None:
    known = {id(parameter) for parameter in holder.parameters()}
    strategy, fit = members[0].strategy, members[0].fit_under_way
    if fit.stage.loss is not None and getattr(fit.stage.loss, "__self__", None) is not strategy:
        # A function that holds something of one seed would serve all of them with it.
        raise ConfigError(f"--seeds-together: the loss of stage {fit.stage.name!r} is no method of the strategy")
    if any(id(parameter) not in known for parameter in fit.trained.values()):
        raise ConfigError("--seeds-together: some parameters are in no module of the strategy")


def _losses(members: Sequence[_Member], kept: _Kept, stacked: Tensors, parts: Sequence[Batch]) -> Tensors:
    """Return the loss terms of a step by name, float [seeds], from the first member's method and all tensors."""
    member, strategy = members[0], members[0].strategy
    own_loss, hook = loss_of(strategy, member.fit_under_way.stage)
    fields = ("images", "originals", "labels", "tasks", "ids")
    together = {name: torch.stack([getattr(part, name) for part in parts]) for name in fields}
    same = isinstance(parts[0].active, slice) and all(
        isinstance(part.active, slice) and part.active == parts[0].active for part in parts
    )
    if not same:
        together["active"] = _masks(parts, strategy.model.head.out_features)
    config: Any = _OfAllSeeds(member.config)
    context = replace(member.context, config=config, logged={})

    def loss(tensors: Tensors, given: Tensors, leaves: Tensors) -> Tensors:
        samples: dict[str, Any] = {name: given[name] for name in fields}
        batch = Batch(**samples, active=given.get("active", parts[0].active))
        attributes = kept.attributes(leaves)
        vars(strategy).update(attributes, _context=context)
        before = {name: tree_flatten(value) for name, value in attributes.items()}
        terms = loss_terms(functional_call(kept.holders[0], tensors, (own_loss, batch)), hook)
        after = {name: tree_flatten(value) for name, value in _attributes(strategy).items()}
        for name in {**before, **after}:
            (one, form), (other, now) = before.get(name, ([], None)), after.get(name, ([], None))
            if form != now or any(x is not y for x, y in zip(one, other, strict=True)):
                raise _changed(strategy, f"self.{name}")
        return terms

    own = dict(vars(strategy))
    try:
        with member.context.autocast(), member.drawing_nothing("loss"):
            terms: Tensors = vmap(loss)(stacked, together, kept.stacked)
    except RuntimeError as error:
        raise _in_words(error, hook) from error
    finally:
        vars(strategy).clear()
        vars(strategy).update(own)
    kept.require_unchanged_in_place()
    for each in members:
        each.context.logged.update(context.logged)
    return terms


def _in_words(error: RuntimeError, hook: str) -> Exception:
    """Return what is raised for an error of torch's that only a loss of several seeds has; other errors stay."""
    text = str(error)
    for sign, reason in _REASONS.items():
        if sign in text and not isinstance(error, RunError):
            shown = reason or f"({one_line(text.removeprefix('vmap: '), 100)})"
            return ConfigError(f"--seeds-together: {hook} can't be computed for all seeds at once {shown}")
    return error


def _masks(parts: Sequence[Batch], width: int) -> Tensor:
    """Return the outputs that compete for each sample, bool [seeds, B, width], if they are not one slice for all."""
    masks = []
    for part in parts:
        mask = part.active
        if isinstance(mask, slice):
            mask = torch.zeros(len(part), width, dtype=torch.bool, device=part.images.device)
            mask[:, part.active] = True
        masks.append(mask)
    return torch.stack(masks)


def _stacked_optimizer(members: Sequence[_Member], names: Mapping[int, str], stacked: Tensors) -> torch.optim.Optimizer:
    """Return an optimizer of the stacked parameters, with the groups and the statistics of the single ones."""
    singles = [member.fit_under_way.optimizer for member in members]
    groups = [
        {**group, "params": [stacked[names[id(p)]].requires_grad_() for p in group["params"]]}
        for group in singles[0].param_groups
    ]
    config, device = members[0].config, members[0].context.device
    optimizer = new_optimizer(config.training, groups, config.training.scaled_lr, device)
    for joint, *own in _parameters(optimizer, *singles):
        states = [single.state[p] for single, p in zip(singles, own, strict=True)]
        if states[0]:
            optimizer.state[joint] = {
                key: torch.stack([state[key] for state in states]) if value.dim() else value.clone()
                for key, value in states[0].items()
            }
    return optimizer


def _unstack_optimizer(optimizer: torch.optim.Optimizer, fits: Sequence[Fit]) -> None:
    singles = [fit.optimizer for fit in fits]
    for joint, *own in _parameters(optimizer, *singles):
        for index, (single, parameter) in enumerate(zip(singles, own, strict=True)):
            single.state[parameter] = {
                # Weights have their channels last, so their statistics must have them last too.
                key: torch.empty_like(parameter).copy_(value[index]) if value.dim() else value.clone()
                for key, value in optimizer.state[joint].items()
                if value is not None
            }


def _parameters(*optimizers: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter, ...]]:
    """Walk over the parameters of optimizers with the same groups, side by side."""
    for groups in zip(*(optimizer.param_groups for optimizer in optimizers), strict=True):
        yield from zip(*(group["params"] for group in groups), strict=True)
