"""Several seeds of one configuration in one batched model: each step computes all of them at once."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten, tree_unflatten

from clbench.config.errors import ConfigError, one_line, shown
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.learning.fit import Fit
from clbench.learning.returned import loss_of, loss_terms, penalty_term, require_gradient
from clbench.learning.strategy import Context, Strategy
from clbench.learning.trainer import AfterStep, AtRest, Trainer, new_optimizer
from clbench.models import build_model
from clbench.results.record import EpochRecord

Tensors = dict[str, Tensor]
T = TypeVar("T")


def refuse_together(
    config: RunConfig, kind: type[Strategy], image_shape: tuple[int, int, int], possible: Sequence[str]
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
        ("eval_every", evaluation.eval_every if isinstance(evaluation.eval_every, int) else None, None),
        (
            "checkpoint_every",
            engine.checkpoint_every if str(engine.checkpoint_every).endswith("-steps") else None,
            None,
        ),
        ("on_nan", training.on_nan, "stop"),
        ("compile", engine.compile, "none"),
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


def _refuse_model(config: RunConfig, image_shape: tuple[int, int, int]) -> None:
    """Raise ConfigError unless copies of a network can train in one batch; two of them try, on two images each."""
    name = config.model.name
    model = build_model(name, image_shape, 0, config.code)
    if any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules()):
        raise ConfigError(f"--seeds-together: {name} has dropout, which draws for each seed on its own")
    holder = _Holder(SimpleNamespace(model=model))
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

    def __init__(self, strategy: Strategy | SimpleNamespace) -> None:
        super().__init__()
        for name, module in vars(strategy).items():
            if isinstance(module, nn.Module):
                self.add_module(name, module)

    @property
    def tensors(self) -> Tensors:
        """Parameters and buffers by name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def forward(self, method: Callable[..., Any], *arguments: Any) -> Any:
        return method(*arguments)


def _train_epoch(members: Sequence[_Member]) -> None:
    """Train an epoch of all members; weights, buffers and optimizers end as if each member had trained alone."""
    started = time.perf_counter()
    fits, holders = [member.fit_under_way for member in members], [_Holder(member.strategy) for member in members]
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
    # No hook of a step changes this state, so stacking it once an epoch is enough.
    state = _states([member.strategy for member in members])
    batches = [member.batches(fit) for member, fit in zip(members, fits, strict=True)]
    if len({tuple(map(len, own)) for own in batches}) > 1:
        raise ConfigError("--seeds-together: the tasks of the seeds differ in size")
    for ids in zip(*batches, strict=True):
        if fits[0].is_out_of_steps(members[0].context.progress):
            break
        if members[0].group.stopped:
            return
        parts = []
        for member, fit, own in zip(members, fits, ids, strict=True):
            fit.set_rate(member.context.progress, member.config, len(member.context.scenario.tasks))
            parts.append(member.batch(fit, own))
        for joint, single in zip(optimizer.param_groups, fits[0].optimizer.param_groups, strict=True):
            joint["lr"] = single["lr"]
        optimizer.zero_grad()
        terms = _losses(members[0], holders[0], stacked, state, parts)
        require_gradient(terms, loss_of(members[0].strategy, fits[0].stage)[1])
        reduce(add, terms.values()).sum().backward()
        for index, (member, fit, holder) in enumerate(zip(members, fits, holders, strict=True)):
            own_terms = {name: term[index].detach() for name, term in terms.items()}
            penalty = functional_call(holder, {n: t[index] for n, t in stacked.items()}, (member.strategy.penalty,))
            if penalty_term(member.strategy, penalty) is not None:
                own_terms["penalty"] = penalty.detach()
                if penalty.requires_grad:
                    penalty.backward()
            fit.tally.add(member.context.progress.step, own_terms)
        optimizer.step()
        for rows, heads in fixed:
            rows.restore(heads)
        for member, fit, own in zip(members, fits, ids, strict=True):
            fit.count(member.context.progress, len(own))
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


def _losses(
    member: _Member, holder: _Holder, stacked: Tensors, state: tuple[Any, list[Tensor]], parts: Sequence[Batch]
) -> Tensors:
    """Return the loss terms of a step by name, float [seeds], from one member's method and all members' tensors."""
    strategy, (form, leaves) = member.strategy, state
    own_loss, hook = loss_of(strategy, member.fit_under_way.stage)
    fields = ("images", "originals", "labels", "tasks", "ids")
    together = {name: torch.stack([getattr(part, name) for part in parts]) for name in fields}
    same = isinstance(parts[0].active, slice) and all(
        isinstance(part.active, slice) and part.active == parts[0].active for part in parts
    )
    if not same:
        together["active"] = _masks(parts, strategy.model.head.out_features)

    def loss(tensors: Tensors, given: Tensors, own_leaves: list[Tensor]) -> Tensors:
        batch = Batch(**{name: given[name] for name in fields}, active=given.get("active", parts[0].active))
        vars(strategy).update(tree_unflatten(own_leaves, form))
        return loss_terms(functional_call(holder, tensors, (own_loss, batch)), hook)

    own = dict(vars(strategy))
    try:
        with member.context.autocast():
            terms: Tensors = vmap(loss)(stacked, together, leaves)
    finally:
        vars(strategy).update(own)
    return terms


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


def _states(strategies: Sequence[Strategy]) -> tuple[Any, list[Tensor]]:
    """Return the form and the stacked leaves of the strategies' state outside modules, with numbers as tensors.

    Raises ConfigError for a whole number or text that is not the same for all seeds, because the first one's would
    serve all of them.
    """
    kept = [
        {name: value for name, value in strategy.state().items() if not isinstance(value, nn.Module)}
        for strategy in strategies
    ]
    for name, value in kept[0].items():
        whole = all(isinstance(leaf, int | str) for leaf in tree_flatten(value)[0])
        if whole and (other := next((own for own in kept[1:] if own.get(name) != value), None)):
            raise ConfigError(
                f"--seeds-together: self.{name} is {shown(value)} for one seed and {shown(other.get(name))} for "
                "another; a float or a tensor is accepted"
            )
    kept = [{name: value for name, value in own.items() if _is_numeric(value)} for own in kept]
    leaves = [tree_flatten(own)[0] for own in kept]
    form = tree_flatten(kept[0])[1]
    return form, [torch.stack([torch.as_tensor(leaf) for leaf in each]) for each in zip(*leaves, strict=True)]


def _is_numeric(value: Any) -> bool:
    """Whether all leaves are tensors or floats, at least one of them."""
    leaves = tree_flatten(value)[0]
    return bool(leaves) and all(isinstance(leaf, Tensor | float) for leaf in leaves)


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
