"""Fits one stage. Owns every optimizer step: the loop, precision, clipping, what is frozen, the optimizer's state."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from clbench.config import RunConfig
from clbench.early_stopping import Best, validation_loss
from clbench.errors import ConfigError, RunError
from clbench.importance import grown
from clbench.models.network import Network
from clbench.schedule import Plateau, Progressless, lr_multiplier
from clbench.strategy import Context, Progress, Stage, Strategy, Terms
from clbench.streams import stream, stream_seed

Record = dict[str, Any]


class Trainer:
    """Fits the stages of a run one after the other and keeps the optimizer's state between them if asked to."""

    def __init__(self, context: Context, strategy: Strategy) -> None:
        self.context, self.strategy = context, strategy
        self.config = context.config
        # Momentum, Adam statistics: {parameter name: {statistic: tensor}}, for optimizer_state = "keep".
        self.optimizer_state: dict[str, dict[str, Tensor]] = {}

    def fit(
        self,
        stage: Stage,
        *,
        after_step: Callable[[float | None], None] = lambda loss: None,
        after_epoch: Callable[[Record], None] = lambda record: None,
    ) -> list[Record]:
        """Fit one stage and return a record per epoch; raises RunError when the loss is no longer finite.

        With early stopping the record of the epoch whose state was kept says so ("best").
        after_step: called after each step; its argument is the mean loss of the epoch so far, read every 50 steps.
        """
        strategy, progress, config = self.strategy, self.context.progress, self.config
        progress.stage, progress.epoch, progress.step = stage.name, 0, 0
        if stage.before is not None:
            model = strategy.model
            stage.before()
            if strategy.model is not model:
                # Statistics of another model's weights mean nothing to a fresh one.
                self.optimizer_state.clear()
        if len(stage.data) == 0:
            return []
        trained, frozen = self._freeze(stage)
        optimizer = self._optimizer(trained, config.scaled_lr if stage.lr is None else stage.lr)
        rows = _Rows(strategy.model.head, stage.head_rows) if stage.head_rows is not None else None
        epochs = stage.epochs or (None if stage.iterations else config.epochs)
        steps = stage.iterations or (None if epochs else config.iterations)
        fit = _Fit(stage, trained, optimizer, [group["lr"] for group in optimizer.param_groups], rows, epochs, steps)
        plateau, waiting, best = Plateau(config), Progressless(config.min_delta), Best(strategy)
        records: list[Record] = []
        best_record: Record | None = None
        while (epochs is None or progress.epoch < epochs) and (steps is None or progress.step < steps):
            records.append(self._epoch(fit, plateau.factor, after_step))
            if config.watches_validation:
                records[-1]["validation_loss"] = loss = validation_loss(strategy, self.context)
                plateau.update(loss)
                if config.patience is not None and waiting.better(loss):
                    best.keep()
                    best_record = records[-1]
            after_epoch(records[-1])
            progress.epoch += 1
            if config.patience is not None and waiting.count >= config.patience:
                break
        if best_record is not None:
            best.restore()
            best_record["best"] = True
        if config.optimizer_state == "keep":
            self._keep(optimizer, trained)
        for parameter in frozen:
            parameter.requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        return records

    def _epoch(self, fit: "_Fit", plateau: float, after_step: Callable[[float | None], None]) -> Record:
        strategy, progress, config, context = self.strategy, self.context.progress, self.config, self.context
        stage, optimizer = fit.stage, fit.optimizer
        loss_of = stage.loss or strategy.loss
        keys = (progress.task, stage.name, progress.epoch)
        order = torch.randperm(len(stage.data), generator=stream(config.seed, "shuffle", *keys))
        batches = cut(stage.data.ids[order], config.batch_size, drop_last=config.drop_last)
        progress.steps_per_epoch, progress.replayed = len(batches), 0
        # Dropout draws from torch's global stream: a seed per step makes it independent of what else draws from it.
        dropout = stream_seed(config.seed, "dropout", *keys) >> 1
        fill = self._fills_memory(stage)
        losses = _Losses()
        images, paused = 0, 0.0
        started = time.perf_counter()
        for step, ids in enumerate(batches):
            fit.set_rate(progress, config, len(context.scenario.tasks), plateau)
            batch = context.pipeline.batch(ids, strategy.active_outputs(ids), (*keys, step))
            seed_global_stream(dropout + step, context.device)
            with context.autocast():
                terms = named(loss_of(batch))
            optimizer.zero_grad(set_to_none=True)
            reduce(add, terms.values()).backward()
            strategy.after_backward(batch)
            penalty = strategy.penalty()
            if penalty is not None:
                terms["penalty"] = penalty
                if penalty.requires_grad:
                    penalty.backward()
            if config.clip is not None:
                nn.utils.clip_grad_norm_(fit.trained.values(), config.clip)
            optimizer.step()
            if fit.rows is not None:
                fit.rows.restore()
            if fill:
                self._fill_memory(ids, step)
            strategy.after_step(batch)
            losses.add(terms)
            images += len(ids)
            progress.step += 1
            # The only place where a step waits for the device.
            loss = losses.read(progress) if step % 50 == 49 else None
            before = time.perf_counter()
            after_step(loss)
            paused += time.perf_counter() - before
            if fit.steps is not None and progress.step >= fit.steps:
                break
        losses.read(progress)
        seconds = time.perf_counter() - started - paused
        return {
            "task": progress.task,
            "stage": stage.name,
            "epoch": progress.epoch,
            "steps": step + 1,
            "lr": progress.learning_rate,
            "seconds": seconds,
            "images": images,
            "replayed": progress.replayed,
            "losses": losses.means(),
        }

    def _freeze(self, stage: Stage) -> tuple[dict[str, nn.Parameter], list[nn.Parameter]]:
        """Set what trains and what does not in this stage; return the first by name, and the second."""
        trained = self.strategy.trainable()
        modules = [m for m in vars(self.strategy).values() if isinstance(m, nn.Module)]
        learning = [m for m in modules if any(p.requires_grad for p in m.parameters())]
        kept_out = {id(p) for p in backbone_below(self.strategy.model, self.config.train)}
        chosen = {id(p) for p in (trained.values() if stage.parameters is None else stage.parameters)} - kept_out
        frozen = [trained.pop(name) for name in list(trained) if id(trained[name]) not in chosen]
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in learning:
            train_mode(module, {id(p) for p in trained.values()})
        return trained, frozen

    def _optimizer(self, trained: dict[str, nn.Parameter], lr: float) -> torch.optim.Optimizer:
        config = self.config
        head = {id(p) for p in self.strategy.model.head.parameters()}
        backbone = {id(p) for p in self.strategy.model.parameters()} - head
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            spared = (id(parameter) in head and not config.decay_head) or (
                parameter.dim() < 2 and not (config.decay_norms and (config.decay_biases or not name.endswith("bias")))
            )
            rate = lr * config.backbone_lr_factor if id(parameter) in backbone else lr
            groups.setdefault((rate, 0.0 if spared else config.weight_decay), []).append(parameter)
        listed = [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
        shared: dict[str, Any] = {"lr": lr, "fused": self.context.device.type != "mps"}
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(listed, momentum=config.momentum, nesterov=config.nesterov, **shared)
        else:
            kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
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
        return memory is not None and memory.streaming and self.strategy.memory_use == "replayed" and first

    def _fill_memory(self, ids: Tensor, step: int) -> None:
        assert self.strategy.memory is not None
        classes = self.context.scenario.train.classes[ids]
        generator = stream(self.config.seed, "memory", self.context.progress.task, step)
        self.strategy.memory.update(ids, classes, generator)


@dataclass
class _Fit:
    """One stage under way."""

    stage: Stage
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    rates: list[float]
    rows: "_Rows | None"
    epochs: int | None
    steps: int | None

    def set_rate(self, progress: Progress, config: RunConfig, n_tasks: int, plateau: float) -> None:
        """Set the learning rate of the step to come."""
        progress.learning_rate = self.optimizer.param_groups[-1]["lr"]
        if config.schedule == "constant" and not config.lr_warmup:
            return
        per_epoch = progress.steps_per_epoch
        total = float(self.epochs) if self.epochs is not None else (self.steps or 0) / per_epoch
        position = progress.step / per_epoch
        if config.schedule_scope == "run":
            position, total = position + progress.task * total, total * n_tasks
        factor = lr_multiplier(config, position, 1 / per_epoch, total) * plateau
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        progress.learning_rate = self.optimizer.param_groups[-1]["lr"]


class _Losses:
    """The loss terms of an epoch: left on the device by each step, read from time to time, all at once."""

    def __init__(self) -> None:
        self._pending: list[dict[str, Tensor]] = []
        self._sums: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take up the terms of a step without reading them."""
        self._pending.append({name: term.detach() for name, term in terms.items()})

    def read(self, progress: Progress) -> float:
        """Read what is pending and return the mean loss; raises RunError for the first term that is not finite."""
        if self._pending:
            flat = torch.stack([t.float() for terms in self._pending for t in terms.values()]).tolist()
            first = progress.step - len(self._pending)
            places = [(step, name) for step, terms in enumerate(self._pending, first) for name in terms]
            for (step, name), value in zip(places, flat, strict=True):
                if not math.isfinite(value):
                    raise RunError(
                        f"the {name} loss is {value} in task {progress.task}, stage {progress.stage!r}, epoch "
                        f"{progress.epoch}, step {step} at learning rate {progress.learning_rate:g}; "
                        "try a smaller learning rate"
                    )
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] += 1
            self._pending.clear()
        return sum(self.means().values())

    def means(self) -> dict[str, float]:
        """Return the mean of each term over the steps that had it."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}


class _Rows:
    """Keeps all rows of the head but some as they are, whatever momentum or weight decay would do to them."""

    def __init__(self, head: nn.Linear, moving: slice) -> None:
        self.parameters = [p for p in (head.weight, head.bias) if p is not None]
        self.fixed = torch.ones(head.out_features, dtype=torch.bool, device=head.weight.device)
        self.fixed[moving] = False
        self.saved = [p.detach()[self.fixed].clone() for p in self.parameters]

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, saved in zip(self.parameters, self.saved, strict=True):
            parameter[self.fixed] = saved


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
