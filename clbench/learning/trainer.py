"""Fits one stage. Owns every optimizer step: the loop, precision, clipping, what is frozen, the optimizer's state."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from clbench.config.errors import ConfigError, RunError
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.learning.compiled import PAST_FEATURES, CompiledFeatures
from clbench.learning.early_stopping import Best, validation_loss
from clbench.learning.importance import grown
from clbench.learning.schedule import Plateau, Progressless, lr_multiplier
from clbench.learning.strategy import Context, Progress, Stage, Strategy, Terms, Watch
from clbench.models.network import Network
from clbench.support.streams import stream, stream_seed

Record = dict[str, Any]


class Trainer:
    """Fits the stages of a run one after the other and keeps the optimizer's state between them if asked to."""

    def __init__(self, context: Context, strategy: Strategy) -> None:
        self.context, self.strategy = context, strategy
        self.config = context.config
        # Momentum, Adam statistics: {parameter name: {statistic: tensor}}, for optimizer_state = "keep".
        self.optimizer_state: dict[str, dict[str, Tensor]] = {}
        # Where --resume would go on, in words, for the sentence that ends a run.
        self.saved = "the beginning"
        self._fit: Fit | None = None
        self._compiled = CompiledFeatures(self.config.engine.compile) if self.config.engine.compile != "none" else None
        # Rule and sentence of what a reader should know about how it trains.
        self.remarks: list[tuple[str, str]] = []

    def fit(
        self,
        stage: Stage,
        *,
        after_step: Callable[[float | None], None] = lambda loss: None,
        after_epoch: Callable[[Record], None] = lambda record: None,
        at_rest: Callable[[bool], None] = lambda epoch_is_over: None,
        stored: dict[str, Any] | None = None,
    ) -> list[Record]:
        """Fit one stage and return a record per epoch; raises RunError when the loss is no longer finite.

        With early stopping the record of the epoch whose state was kept says so ("best").
        after_step: called after each step; its argument is the mean loss of the epoch so far, read every 50 steps.
        at_rest: called where state() can be taken: after each step and, with True, each epoch. stored: a state() of
        this stage to go on from; the strategy's own was put back before.
        """
        progress, config = self.context.progress, self.config
        progress.stage, progress.epoch, progress.step = stage.name, 0, 0
        if stage.run is not None:
            self._demand_compiled()
            return stage.run(Watch(after_step, after_epoch, at_rest))
        if stored is None and stage.before is not None:
            model = self.strategy.model
            stage.before()
            if self.strategy.model is not model:
                # Statistics of another model's weights mean nothing to a fresh one.
                self.optimizer_state.clear()
        if len(stage.data) == 0:
            return []
        self._fit = fit = self._begin(stage) if stored is None else self._go_on(stage, stored)
        while not fit.is_over(progress, config.training.patience):
            record = self._epoch(fit, after_step, at_rest)
            fit.records.append(record)
            if config.training.watches_validation and stage.watched:
                record["validation_loss"] = loss = validation_loss(self.strategy, self.context)
                fit.plateau.update(loss)
                if config.training.patience is not None and fit.waiting.better(loss):
                    fit.best.keep()
                    fit.best_epoch = progress.epoch
            after_epoch(record)
            progress.epoch += 1
            fit.losses, fit.steps_done, fit.images, fit.seconds, fit.skipped = _Losses(), 0, 0, 0.0, 0
            at_rest(True)
        if fit.best_epoch is not None:
            fit.best.restore()
            fit.records[fit.best_epoch]["best"] = True
        if config.training.optimizer_state == "keep":
            self._keep(fit.optimizer, fit.trained)
        for parameter in fit.frozen:
            parameter.requires_grad_(True)
        fit.optimizer.zero_grad(set_to_none=True)
        self._fit = None
        return fit.records

    def state(self) -> dict[str, Any]:
        """Return where the stage under way is, to be saved in one file with the strategy, whose parameters it shares.

        Random streams are no part of it: each is a function of the position.
        """
        fit, progress = self._fit, self.context.progress
        assert fit is not None
        fit.losses.read(progress, fit.trained, self.saved)
        return {
            "progress": dict(vars(progress)),
            "optimizer": fit.optimizer.state_dict(),
            "optimizer_state": self.optimizer_state,
            "trained": fit.trained,
            "frozen": fit.frozen,
            "fixed_rows": fit.rows and fit.rows.saved,
            "plateau": (fit.plateau.factor, *fit.plateau.waiting.state()),
            "waiting": fit.waiting.state(),
            "best": fit.best.state,
            "best_epoch": fit.best_epoch,
            "records": fit.records,
            "epoch": (fit.losses.sums, fit.losses.counts, fit.steps_done, fit.images, fit.seconds),
            "skipped": fit.skipped,
        }

    def _begin(self, stage: Stage) -> "Fit":
        trained, frozen = self._freeze(stage)
        optimizer = self._optimizer(trained, self._rate(stage))
        return Fit(stage, trained, frozen, optimizer, self.strategy, self.config)

    def _go_on(self, stage: Stage, stored: dict[str, Any]) -> "Fit":
        vars(self.context.progress).update(stored["progress"])
        optimizer = self._optimizer(stored["trained"], self._rate(stage))
        fit = Fit(stage, stored["trained"], stored["frozen"], optimizer, self.strategy, self.config)
        optimizer.load_state_dict(stored["optimizer"])
        self.optimizer_state = stored["optimizer_state"]
        if fit.rows is not None:
            fit.rows.saved = stored["fixed_rows"]
        fit.plateau.factor, fit.plateau.waiting.lowest, fit.plateau.waiting.count = stored["plateau"]
        fit.waiting.lowest, fit.waiting.count = stored["waiting"]
        fit.best.state, fit.best_epoch, fit.records = stored["best"], stored["best_epoch"], stored["records"]
        fit.losses.sums, fit.losses.counts, fit.steps_done, fit.images, fit.seconds = stored["epoch"]
        fit.skipped = stored["skipped"]
        return fit

    def _rate(self, stage: Stage) -> float:
        return self.config.training.scaled_lr if stage.lr is None else stage.lr

    def _epoch(self, fit: "Fit", after_step: Callable[[float | None], None], at_rest: Callable[[bool], None]) -> Record:
        strategy, progress, config, context = self.strategy, self.context.progress, self.config, self.context
        loss_of = fit.stage.loss or strategy.loss
        batches = self.batches(fit)
        # Dropout draws from torch's global stream: a seed per step makes it independent of what else draws from it.
        dropout = stream_seed(config.seed, "dropout", *self._keys(fit)) >> 1
        fill = self._fills_memory(fit.stage)
        started = time.perf_counter()
        while fit.steps_done < len(batches) and not fit.is_out_of_steps(progress):
            step = fit.steps_done
            ids = batches[step]
            fit.set_rate(progress, config, len(context.scenario.tasks))
            batch = self.batch(fit, ids)
            seed_global_stream(dropout + step, context.device)
            with context.autocast(), self._compiling():
                terms = named(loss_of(batch))
            self._demand_compiled()
            for parameter in fit.trained.values():
                parameter.grad = None
            # torch compiles the backward pass when it is first asked for.
            with nullcontext() if self._compiled is None else self._compiled.unlogged():
                taken = self._backward(batch, terms, fit.trained)
            if taken:
                if config.training.clip is not None:
                    nn.utils.clip_grad_norm_(fit.trained.values(), config.training.clip)
                fit.optimizer.step()
                if fit.rows is not None:
                    fit.rows.restore()
            if fill:
                self._fill_memory(ids, step)
            if taken:
                strategy.after_step(batch)
                fit.losses.add(progress.step, terms)
            fit.skipped += not taken
            fit.count(progress, len(ids))
            # The only place where a step waits for the device, but with on_nan="skip".
            loss = fit.losses.read(progress, fit.trained, self.saved) if step % 50 == 49 else None
            fit.seconds += time.perf_counter() - started
            after_step(loss)
            at_rest(False)
            started = time.perf_counter()
        # A device may still be at work on the last steps, whose time is part of the epoch's.
        fit.losses.read(progress, fit.trained, self.saved)
        fit.seconds += time.perf_counter() - started
        return self.record(fit)

    def batches(self, fit: "Fit") -> list[Tensor]:
        """Return the sample ids of the epoch under way, int64, cut into batches in the order of its stream."""
        order = torch.randperm(len(fit.stage.data), generator=stream(self.config.seed, "shuffle", *self._keys(fit)))
        batches = cut(
            fit.stage.data.ids[order], self.config.training.batch_size, drop_last=self.config.training.drop_last
        )
        if fit.steps_done == 0:
            self.context.progress.steps_per_epoch, self.context.progress.replayed = len(batches), 0
        return batches

    def batch(self, fit: "Fit", ids: Tensor) -> Batch:
        """Return the samples of the step to come."""
        active = self.strategy.active_outputs(ids)
        return self.context.pipeline.batch(ids, active, (*self._keys(fit), fit.steps_done))

    def record(self, fit: "Fit") -> Record:
        """Return what is written of the epoch, whose steps are done."""
        progress = self.context.progress
        fit.losses.read(progress, fit.trained, self.saved)
        return {
            "task": progress.task,
            "stage": fit.stage.name,
            "epoch": progress.epoch,
            "steps": fit.steps_done - fit.skipped,
            **({"skipped": fit.skipped} if self.config.training.on_nan == "skip" else {}),
            "lr": progress.learning_rate,
            "seconds": fit.seconds,
            "images": fit.images,
            "replayed": progress.replayed,
            "losses": fit.losses.means(),
        }

    def _compiling(self) -> AbstractContextManager[None]:
        return nullcontext() if self._compiled is None else self._compiled.within(self.strategy.model)

    def _demand_compiled(self) -> None:
        """Raise ConfigError where what is trained has nothing of the compiled network in it."""
        compiled, mode = self._compiled, self.config.engine.compile
        if compiled is not None and not compiled.calls:
            raise ConfigError(
                f"compile={mode} given, and {self.config.strategy} {PAST_FEATURES}; compile=none is accepted"
            )
        if compiled is not None and compiled.problem is not None:
            text = f"torch could not compile the network for compile={mode}, so it trained as it is: {compiled.problem}"
            self.remarks = [("not-compiled", text)]

    def _keys(self, fit: "Fit") -> tuple[int, str, int]:
        """Return what names the streams of the epoch under way."""
        return self.context.progress.task, fit.stage.name, self.context.progress.epoch

    def _backward(self, batch: Batch, terms: dict[str, Tensor], trained: dict[str, nn.Parameter]) -> bool:
        """Compute the gradient of a step and add its penalty to the terms; return whether the step is to be taken.

        It is not when a loss or gradient is not finite and on_nan="skip"; the hooks see none of those.
        """
        strategy, skips = self.strategy, self.config.training.on_nan == "skip"
        reduce(add, terms.values()).backward()
        if skips and not _finite(terms, trained):
            return False
        strategy.after_backward(batch)
        penalty = strategy.penalty()
        if penalty is not None:
            terms["penalty"] = penalty
            if penalty.requires_grad:
                penalty.backward()
            return not skips or _finite(terms, trained)
        return True

    def _freeze(self, stage: Stage) -> tuple[dict[str, nn.Parameter], list[nn.Parameter]]:
        """Set what trains and what does not in this stage; return the first by name, and the second."""
        trained = self.strategy.trainable()
        modules = [m for m in vars(self.strategy).values() if isinstance(m, nn.Module)]
        learning = [m for m in modules if any(p.requires_grad for p in m.parameters())]
        kept_out = {id(p) for p in backbone_below(self.strategy.model, self.config.training.train)}
        chosen = {id(p) for p in (trained.values() if stage.parameters is None else stage.parameters)} - kept_out
        frozen = [trained.pop(name) for name in list(trained) if id(trained[name]) not in chosen]
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in learning:
            train_mode(module, {id(p) for p in trained.values()})
        return trained, frozen

    def _optimizer(self, trained: dict[str, nn.Parameter], lr: float) -> torch.optim.Optimizer:
        training = self.config.training
        head = {id(p) for p in self.strategy.model.head.parameters()}
        backbone = {id(p) for p in self.strategy.model.parameters()} - head
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            spared = (id(parameter) in head and not training.decay_head) or (
                parameter.dim() < 2
                and not (training.decay_norms and (training.decay_biases or not name.endswith("bias")))
            )
            rate = lr * training.backbone_lr_factor if id(parameter) in backbone else lr
            groups.setdefault((rate, 0.0 if spared else training.weight_decay), []).append(parameter)
        listed = [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
        shared: dict[str, Any] = {"lr": lr, "fused": self.context.device.type != "mps"}
        optimizer: torch.optim.Optimizer
        if training.optimizer == "sgd":
            optimizer = torch.optim.SGD(listed, momentum=training.momentum, nesterov=training.nesterov, **shared)
        else:
            kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
            optimizer = kind(listed, **shared)
        for name, parameter in trained.items():
            if name in self.optimizer_state:
                optimizer.state[parameter] = {
                    key: grown(value, parameter.detach()) if value.dim() else value
                    for key, value in self.optimizer_state[name].items()
                }
        return optimizer

    def _keep(self, optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter]) -> None:
        for name, parameter in trained.items():
            if parameter in optimizer.state:
                self.optimizer_state[name] = dict(optimizer.state[parameter])

    def _fills_memory(self, stage: Stage) -> bool:
        """A memory that is replayed beside the stream is filled as the stream goes by for the first time."""
        memory = self.strategy.memory
        first = self.context.progress.epoch == 0
        return memory is not None and memory.streaming and self.strategy.traits.memory == "replayed" and first

    def _fill_memory(self, ids: Tensor, step: int) -> None:
        assert self.strategy.memory is not None
        classes = self.context.scenario.train.classes[ids]
        generator = stream(self.config.seed, "memory", self.context.progress.task, step)
        self.strategy.memory.update(ids, classes, generator)


class Fit:
    """One stage under way: how far it is, and what it goes on with."""

    def __init__(
        self,
        stage: Stage,
        trained: dict[str, nn.Parameter],
        frozen: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        strategy: Strategy,
        config: RunConfig,
    ) -> None:
        self.stage, self.trained, self.frozen, self.optimizer = stage, trained, frozen, optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.rows = _Rows(strategy.model.head, stage.head_rows) if stage.head_rows is not None else None
        self.epochs = stage.epochs or (None if stage.iterations else config.training.epochs)
        self.steps = stage.iterations or (None if self.epochs else config.training.iterations)
        self.plateau, self.waiting, self.best = Plateau(config), Progressless(config.training.min_delta), Best(strategy)
        self.records: list[Record] = []
        self.best_epoch: int | None = None
        # Of the epoch under way.
        self.losses, self.steps_done, self.images, self.seconds, self.skipped = _Losses(), 0, 0, 0.0, 0

    def is_over(self, progress: Progress, patience: int | None) -> bool:
        """Whether the stage has had its epochs or steps, or has waited long enough for progress."""
        if self.steps_done:
            # An epoch is under way, if only its record is missing.
            return False
        if patience is not None and self.waiting.count >= patience:
            return True
        return (self.epochs is not None and progress.epoch >= self.epochs) or self.is_out_of_steps(progress)

    def is_out_of_steps(self, progress: Progress) -> bool:
        """Whether the stage has had the steps that it was given, where they were given."""
        return self.steps is not None and progress.step >= self.steps

    def count(self, progress: Progress, n_images: int) -> None:
        """Count a step."""
        self.images += n_images
        self.steps_done += 1
        progress.step += 1

    def set_rate(self, progress: Progress, config: RunConfig, n_tasks: int) -> None:
        """Set the learning rate of the step to come."""
        progress.learning_rate = self.optimizer.param_groups[-1]["lr"]
        if config.training.schedule == "constant" and not config.training.lr_warmup:
            return
        per_epoch = progress.steps_per_epoch
        total = float(self.epochs) if self.epochs is not None else (self.steps or 0) / per_epoch
        position = progress.step / per_epoch
        if config.training.schedule_scope == "run":
            position, total = position + progress.task * total, total * n_tasks
        factor = lr_multiplier(config, position, 1 / per_epoch, total) * self.plateau.factor
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        progress.learning_rate = self.optimizer.param_groups[-1]["lr"]


class _Losses:
    """The loss terms of an epoch: left on the device by each step, read from time to time, all at once."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        """Take up the terms of a step of the stage without reading them."""
        self._pending.append((step, {name: term.detach() for name, term in terms.items()}))

    def read(self, progress: Progress, weights: dict[str, nn.Parameter], saved: str) -> float:
        """Read what is pending and return the mean loss.

        Raises RunError for the first term that is not finite, and for weights that are not; it says where the run was
        `saved`.
        """
        if self._pending:
            norm = total_norm([weight.detach() for weight in weights.values()])
            terms = [(step, name, term) for step, of_step in self._pending for name, term in of_step.items()]
            # A penalty without a term is a constant, and on the CPU.
            found = torch.stack([*(term.float().to(norm.device) for *_, term in terms), norm])
            *values, size = found.tolist()
            for (step, name, _), value in zip(terms, values, strict=True):
                if not math.isfinite(value):
                    raise _diverged(f"the {name} loss is {value}", progress, step, saved)
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
            if not math.isfinite(size):
                # The norm of finite weights can overflow too.
                wrong = [name for name, weight in weights.items() if not weight.isfinite().all()]
                if wrong:
                    raise _diverged(f"{wrong[0]} holds weights that are not finite", progress, terms[-1][0], saved)
            self._pending.clear()
        return sum(self.means().values())

    def means(self) -> dict[str, float]:
        """Return the mean of each term over the steps that had it."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def _diverged(what: str, progress: Progress, step: int, saved: str) -> RunError:
    return RunError(
        f"{what} in task {progress.task}, stage {progress.stage!r}, epoch {progress.epoch}, step {step} at learning "
        f"rate {progress.learning_rate:g}; try a smaller learning rate, or --resume --on-nan skip, which goes on from "
        f"{saved} and leaves such steps out"
    )


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors together, float32, on their device; it is finite only if all of them are."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]).norm() if tensors else torch.zeros(())


def _finite(terms: dict[str, Tensor], trained: dict[str, nn.Parameter]) -> bool:
    """Whether the loss terms and the gradients are all finite; waits for the device."""
    norm = total_norm([p.grad for p in trained.values() if p.grad is not None])
    found = [norm, *(term.detach().float().to(norm.device) for term in terms.values())]
    return bool(torch.stack(found).isfinite().all())


class _Rows:
    """Keeps all rows of the head but some as they are, whatever momentum or weight decay would do to them."""

    def __init__(self, head: nn.Linear, moving: slice) -> None:
        self.parameters = [p for p in (head.weight, head.bias) if p is not None]
        # By number: for a mask an accelerator would be waited for, to count what it selects.
        rows = torch.arange(head.out_features)
        self.fixed = torch.cat([rows[: moving.start], rows[moving.stop :]]).to(head.weight.device)
        self.saved = [p.detach()[self.fixed] for p in self.parameters]

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, saved in zip(self.parameters, self.saved, strict=True):
            parameter.index_copy_(0, self.fixed, saved)


def cut(ids: Tensor, size: int, *, drop_last: bool) -> list[Tensor]:
    """Cut ids into batches; a last batch of one sample joins the batch before it, which batch norm needs."""
    batches = list(ids.split(size))
    if len(batches) > 1 and len(batches[-1]) < size:
        if drop_last:
            batches.pop()
        elif len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def seed_global_stream(seed: int, device: torch.device) -> None:
    """Seed the stream that dropout draws from on this device (torch.manual_seed walks over every kind of device)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def named(terms: Terms) -> dict[str, Tensor]:
    """Return the loss terms by name; a single one is called loss."""
    return dict(terms) if isinstance(terms, dict) else {"loss": terms}


def backbone_below(model: Network, train: str) -> list[nn.Parameter]:
    """Return the parameters that `train` (RunConfig) keeps out of training: those of the blocks below.

    Raises ConfigError for more blocks than there are.
    """
    blocks = model.blocks()
    if train.startswith("last-") and int(train.removeprefix("last-")) > len(blocks):
        raise ConfigError(
            f"train={train}: the model has {len(blocks)} blocks; all, head, last-1 to last-{len(blocks)} are accepted"
        )
    moving = len(blocks) if train == "all" else 0 if train == "head" else int(train.removeprefix("last-"))
    return [p for block in blocks[: len(blocks) - moving] for p in block.parameters()]


def train_mode(module: nn.Module, trained: set[int]) -> None:
    """Put what trains into train mode and what is frozen into eval mode.

    A layer with parameters follows them; one without (dropout, activation) follows the layer before it.
    """
    module.train()
    following = True
    for layer in module.modules():
        own = [id(p) for p in layer.parameters(recurse=False)]
        if own:
            following = any(p in trained for p in own)
        if own or not list(layer.children()):
            layer.training = following
