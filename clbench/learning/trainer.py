"""Fits one stage. Owns every optimizer step: the loop, precision, clipping, what is frozen, the optimizer's state."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cached_property, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from clbench.config.errors import ConfigError, RunError
from clbench.config.groups import TrainingConfig
from clbench.config.run import RunConfig
from clbench.data.batches import Batch
from clbench.data.scenario import Scenario
from clbench.learning.compiled import PAST_FEATURES, CompiledFeatures
from clbench.learning.early_stopping import validation_loss
from clbench.learning.evaluation import online_answers
from clbench.learning.fit import Fit, Tally, are_finite
from clbench.learning.flops import Account
from clbench.learning.importance import grown, is_part
from clbench.learning.returned import decays, loss_of, loss_terms, penalty_term, require_gradient
from clbench.learning.shared import digest
from clbench.learning.strategy import Context, Stage, Strategy, call_hook, initial_model
from clbench.models import inserted
from clbench.models.network import NEEDS_TWO, Network, blocks_of, takes_one_image
from clbench.results.record import EpochRecord
from clbench.support.streams import seed_other_streams, stream, stream_seed

# Steps after which the losses are read, which waits for the device.
READ_EVERY = 50
# Modules whose code draws from no global stream but torch's.
OURS = ("clbench.", "torch.", "builtins", "abc")

AfterStep = Callable[[float | None], None]
AtRest = Callable[[bool], None]


class Trainer:
    """Fits the stages of a run one after the other and keeps the optimizer's state between them if asked to."""

    def __init__(self, context: Context, strategy: Strategy) -> None:
        self.context, self.strategy = context, strategy
        self.config = context.config
        # Momentum, Adam statistics: {parameter name: {statistic: tensor}}, for optimizer_state = "keep".
        self.optimizer_state: dict[str, dict[str, Tensor]] = {}
        # The place at which --resume would go on, in words, for the sentence that ends a run.
        self.saved = "the beginning"
        self._fit: Fit | None = None
        compiling = self.config.engine.compile
        self._compiled = CompiledFeatures(compiling) if compiling != "none" else None
        # Rule and sentence of what a reader should know about how it trains.
        self.remarks: list[tuple[str, str]] = []
        # The operations at which the stages of the task end where there is a budget, and how many share it yet.
        self.allowance, self.sharing = 0, 1

    def fit(
        self,
        stage: Stage,
        *,
        after_step: AfterStep = lambda loss: None,
        after_epoch: Callable[[EpochRecord], None] = lambda record: None,
        at_rest: AtRest = lambda epoch_is_over: None,
        stored: dict[str, Any] | None = None,
    ) -> list[EpochRecord]:
        """Fit one stage and return a record per epoch; with early stopping one of them says that it is the best.

        after_step: called after each step; its argument is the mean loss of the epoch so far, read every 50 steps.
        after_epoch: called after each epoch with its record.
        at_rest: called where state_dict() can be taken: after each step and, with True, each epoch.
        stored: a state_dict() of this stage to go on from; the strategy's own state was put back before.

        Raises RunError when the loss is no longer finite.
        """
        progress, training = self.context.progress, self.config.training
        progress.stage, progress.epoch, progress.step = stage.name, 0, 0
        if stored is None and stage.before is not None:
            self._prepare(stage.before)
        if len(stage.data) == 0:
            return []
        self._fit = fit = self._begin(stage) if stored is None else self._go_on(stage, stored)
        self.context.optimizer = fit.optimizer
        while not fit.is_over(progress, training.patience):
            record = self._epoch(fit, after_step, at_rest)
            fit.records.append(record)
            if training.watches_validation and stage.watched:
                self._validate(fit, record)
            after_epoch(record)
            progress.epoch += 1
            fit.tally = Tally()
            at_rest(True)
        self._end(fit)
        return fit.records

    def state_dict(self) -> dict[str, Any]:
        """Return where the stage under way is, to be saved in one file with the strategy, whose parameters it shares.

        Random streams are no part of it: each is a function of the position.
        """
        fit = self.fit_under_way
        fit.read_losses(self.context.progress, self.saved)
        return {
            "progress": asdict(self.context.progress),
            "optimizer_state": self.optimizer_state,
            "fit": fit.state_dict(),
        }

    @property
    def fit_under_way(self) -> Fit:
        """The stage under way; raises RuntimeError between two."""
        if self._fit is None:
            raise RuntimeError("no stage is under way")
        return self._fit

    def _prepare(self, before: Callable[[], None]) -> None:
        model = self.strategy.model
        progress = self.context.progress
        self.seed(stream_seed(self.config.seed, "hook/before", progress.task, progress.stage))
        before()
        if self.strategy.model is not model:
            # Statistics of another model's weights mean nothing to a fresh one.
            self.optimizer_state.clear()

    def _begin(self, stage: Stage) -> Fit:
        trained, frozen = self._freeze(stage)
        return self._new_fit(stage, trained, frozen)

    def _go_on(self, stage: Stage, stored: dict[str, Any]) -> Fit:
        self.context.progress.take_up(stored["progress"])
        fit = self._new_fit(stage, stored["fit"]["trained"], stored["fit"]["frozen"])
        fit.load_state_dict(stored["fit"])
        self.optimizer_state = stored["optimizer_state"]
        return fit

    def _new_fit(self, stage: Stage, trained: dict[str, nn.Parameter], frozen: list[nn.Parameter]) -> Fit:
        rate = self.config.training.scaled_lr if stage.lr is None else stage.lr
        fit = Fit(stage, trained, frozen, self.optimizer(trained, rate), self.strategy, self.config)
        if fit.epochs is None and fit.steps is None:
            now = self.context.flops.training
            fit.account = Account(now, now + (self.allowance - now) // self.sharing, now)
        return fit

    def _validate(self, fit: Fit, record: EpochRecord) -> None:
        """Judge the epoch by the validation split: lower the rate, count it as progress or not, keep the best state."""
        self.seed(stream_seed(self.config.seed, "hook/validation", *self._keys(fit)))
        record.validation_loss = loss = validation_loss(self.strategy, self.context)
        fit.plateau.update(loss)
        if self.config.training.patience is not None and fit.waiting.better(loss):
            fit.best.keep()
            fit.best_epoch = self.context.progress.epoch

    def _end(self, fit: Fit) -> None:
        """Put the best state back, keep the optimizer's if asked to, and let go of what the stage held."""
        if fit.best_epoch is not None:
            fit.best.restore()
            fit.records[fit.best_epoch].best = True
        if self.config.training.optimizer_state == "keep":
            for name, parameter in fit.trained.items():
                if parameter in fit.optimizer.state:
                    self.optimizer_state[name] = dict(fit.optimizer.state[parameter])
        for parameter in fit.frozen:
            parameter.requires_grad_(True)
        fit.optimizer.zero_grad(set_to_none=True)
        self._fit = self.context.optimizer = None

    def _epoch(self, fit: Fit, after_step: AfterStep, at_rest: AtRest) -> EpochRecord:
        progress = self.context.progress
        batches, pipeline = self.batches(fit), self.context.pipeline
        ahead = pipeline.ahead(batches[fit.tally.steps :])
        started, waited = time.perf_counter(), pipeline.reader.waited
        while fit.tally.steps < len(batches) and not fit.is_out_of_steps(progress):
            self._step(fit, batches, next(ahead))
            due = fit.tally.steps % READ_EVERY == 0
            loss = fit.read_losses(progress, self.saved) if due else None
            fit.tally.seconds += time.perf_counter() - started
            fit.tally.waited += pipeline.reader.waited - waited
            after_step(loss)
            at_rest(False)
            started, waited = time.perf_counter(), pipeline.reader.waited
        # A device may still be at work on the last steps, whose time is part of the epoch's.
        fit.read_losses(progress, self.saved)
        fit.tally.seconds += time.perf_counter() - started
        self._demand_agreement()
        return self.record(fit)

    def _step(self, fit: Fit, batches: list[Tensor], read: Tensor | None) -> None:
        """Take one optimizer step: loss, backward, after_backward, penalty, backward, clip, step, after_step.

        read: the samples, where they were read ahead.
        Nothing here waits for the device, but with on_nan="skip".
        """
        step, progress = fit.tally.steps, self.context.progress
        ids = batches[step]
        fit.set_rate(progress, self.config, len(self.context.scenario.tasks))
        batch = self.batch(fit, ids, read)
        answers = self._answers(batch, batches, step)
        self.seed((stream_seed(self.config.seed, "dropout", *self._keys(fit)) >> 1) + step)
        buffers = self._copied_buffers() if self.config.training.on_nan == "skip" else []
        terms = self._losses(fit, batch)
        taken = self._gradients(fit, batch, terms)
        if taken:
            if self.config.evaluation.plasticity:
                fit.tally.add_norm(fit.trained.values())
            self._clip(fit)
            fit.optimizer.step()
            if fit.rows is not None:
                fit.rows.restore()
            # A step that is left out offers nothing: what a strategy keeps for each exemplar is kept in after_step.
            self._fill_memory(ids, step)
            call_hook(self.strategy, "after_step", batch)
            fit.tally.add(progress.step, terms, answers)
        else:
            for buffer, before in buffers:
                buffer.copy_(before)
        # A run that is continued between two steps has no gradients either.
        fit.clear_gradients()
        fit.count(progress, len(ids), taken=taken)
        if fit.account is not None:
            where = f"stage {progress.stage!r} of task {progress.task}"
            fit.account.book(self.context.flops.training, progress.step, where)
            progress.steps = math.ceil(fit.account.steps(progress.step))

    def _answers(self, batch: Batch, batches: list[Tensor], step: int) -> Tensor | None:
        """Test new samples before they are learnt where that is asked for, in the first pass over a task's first stage.

        Those of the batch, and those that come `near_future` steps later; before the first step of a task also all
        that come sooner. Returns int64 [4], as Tally.add takes them.
        """
        progress, asked = self.context.progress, self.config.evaluation
        if not (asked.online_accuracy or asked.near_future is not None) or progress.stages_done or progress.epoch:
            return None
        self.seed(stream_seed(self.config.seed, "hook/online", progress.task, progress.step))
        none = torch.zeros(2, dtype=torch.int64, device=self.context.device)
        with self.context.flops.of("evaluation"):
            now = online_answers(self.strategy, self.context, batch) if asked.online_accuracy else none
            later = none
            if asked.near_future is not None:
                first = step + asked.near_future
                for ids in batches[first if step else 0 : first + 1]:
                    coming = self.context.pipeline.batch(ids, slice(0), None)
                    later = later + online_answers(self.strategy, self.context, coming)
        return torch.cat([now, later])

    @cached_property
    def _runs_code_of_others(self) -> bool:
        """Whether strategy or network are not ours; for those that are, two streams less are seeded in each step."""
        parts = [*type(self.strategy).__mro__, *(type(module) for module in self.strategy.model.modules())]
        return not all(part.__module__.startswith(OURS) for part in parts)

    def seed(self, seed: int) -> None:
        """Seed the global streams, which dropout and a user's code draw from: what drew before changes nothing.

        That is torch's, and those of Python and NumPy where code that is not ours may draw from them.
        """
        seed_global_stream(seed, self.context.device)
        if self._runs_code_of_others:
            seed_other_streams(seed)

    def _losses(self, fit: Fit, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss terms, through the compiled network where one is asked for."""
        loss, hook = loss_of(self.strategy, fit.stage)
        compiling: AbstractContextManager[None] = nullcontext()
        if self._compiled is not None:
            compiling = self._compiled.within(self.strategy.model)
        with self.context.autocast(), compiling:
            terms = loss_terms(loss(batch), hook)
        require_gradient(terms, hook)
        if self._compiled is not None:
            self._demand_compiled(self._compiled)
        return terms

    def _gradients(self, fit: Fit, batch: Batch, terms: dict[str, Tensor]) -> bool:
        """Compute the gradient of the terms and of the penalty, which joins them; return whether to take the step.

        It is not taken when a loss or gradient is not finite and on_nan="skip"; the hooks see none of those.
        """
        # A loss may have had a backward pass of its own.
        fit.clear_gradients()
        skips = self.config.training.on_nan == "skip"
        # torch compiles the backward pass when it is first asked for.
        with nullcontext() if self._compiled is None else self._compiled.unlogged():
            reduce(add, terms.values()).backward()
            self.context.processes.average_([p.grad for p in fit.trained.values() if p.grad is not None])
            if skips and not are_finite(terms, fit.trained):
                return False
            call_hook(self.strategy, "after_backward", batch)
            penalty = penalty_term(self.strategy, self.strategy.penalty())
            if penalty is None:
                return True
            terms["penalty"] = penalty
            if penalty.requires_grad:
                penalty.backward()
            return not skips or are_finite(terms, fit.trained)

    def _copied_buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Return every buffer with a copy: batch norm counts a batch when it goes by, the step taken or not."""
        modules = [m for m in vars(self.strategy).values() if isinstance(m, nn.Module)]
        return [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]

    def _clip(self, fit: Fit) -> None:
        if self.config.training.clip is not None:
            nn.utils.clip_grad_norm_(fit.trained.values(), self.config.training.clip)

    def _fill_memory(self, ids: Tensor, step: int) -> None:
        """Offer a step's samples to a memory that is replayed beside the stream, the first time that they go by."""
        memory, progress = self.strategy.memory, self.context.progress
        replayed = self.strategy.traits.memory == "replayed"
        if memory is not None and memory.streaming and replayed and progress.epoch == 0:
            classes = self.context.scenario.train.classes[ids]
            memory.update(ids, classes, stream(self.config.seed, "memory", progress.task, step))

    def batches(self, fit: Fit) -> list[Tensor]:
        """Return the sample ids of the epoch under way, int64, cut into batches in the order of its stream."""
        training, data = self.config.training, fit.stage.data
        order = torch.randperm(len(data), generator=stream(self.config.seed, "shuffle", *self._keys(fit)))
        batches = cut(data.ids[order], training.batch_size, drop_last=training.drop_last)
        if min(map(len, batches)) == 1 and not takes_one_image(self.strategy.model, self.context.scenario.image_shape):
            raise RunError(
                f"stage {fit.stage.name!r} of task {self.context.progress.task} has a batch of one image: {NEEDS_TWO}"
            )
        if fit.tally.steps == 0:
            progress = self.context.progress
            progress.steps_per_epoch, progress.replayed = len(batches), 0
            progress.steps = fit.steps or (fit.epochs or 0) * len(batches)
        return batches

    def batch(self, fit: Fit, ids: Tensor, read: Tensor | None = None) -> Batch:
        """Return the samples of the step to come; `read`: those that were read ahead."""
        active = self.strategy.active_outputs(ids)
        return self.context.pipeline.batch(ids, active, (*self._keys(fit), fit.tally.steps), read)

    def record(self, fit: Fit) -> EpochRecord:
        """Return the record of the epoch, whose steps are done."""
        progress, tally = self.context.progress, fit.tally
        fit.read_losses(progress, self.saved)
        record = EpochRecord(
            task=progress.task,
            stage=fit.stage.name,
            epoch=progress.epoch,
            steps=tally.steps - tally.skipped,
            lr=progress.learning_rate,
            lr_first=tally.lr_first,
            seconds=tally.seconds,
            images=tally.images,
            replayed=progress.replayed,
            losses=dict(tally.means()),
        )
        if self.config.training.on_nan == "skip":
            record.skipped = tally.skipped
        if self.config.evaluation.plasticity and record.steps:
            record.gradient_norm = tally.norms / record.steps
        if tally.tested:
            record.tested, record.correct = tally.tested, tally.correct
        if tally.near_tested:
            record.near_tested, record.near_correct = tally.near_tested, tally.near_correct
        if tally.waited:
            record.waited = tally.waited
        return record

    def _demand_agreement(self) -> None:
        """Raise RunError where the processes of the run have come to learn different things."""
        processes = self.context.processes
        if processes.size > 1 and not processes.agree(digest(self.strategy)):
            raise RunError(
                f"the {processes.size} processes of the run have come to differ in task {self.context.progress.task}, "
                f"as {self.config.strategy} or its network computes a gradient or a statistic from a part of the batch "
                "alone; self.gradient_of(loss, parameters), or processes=1, is accepted"
            )

    def _demand_compiled(self, compiled: CompiledFeatures) -> None:
        """Raise ConfigError where what is trained has nothing of the compiled network in it."""
        mode = self.config.engine.compile
        if not compiled.calls:
            raise ConfigError(
                f"compile={mode} given, and {self.config.strategy} {PAST_FEATURES}; compile=none is accepted"
            )
        if compiled.problem is not None:
            text = f"torch could not compile the network for compile={mode}, so it trained as it is: {compiled.problem}"
            self.remarks = [("not-compiled", text)]

    def _keys(self, fit: Fit) -> tuple[int, str, int]:
        """Return what names the streams of the epoch under way."""
        return self.context.progress.task, fit.stage.name, self.context.progress.epoch

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

    def optimizer(self, trained: dict[str, nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """Return a new optimizer of these parameters by name, with what is kept of earlier stages."""
        training, progress = self.config.training, self.context.progress
        if not trained:
            raise RunError(
                f"stage {progress.stage!r} of task {progress.task} trains no parameter; one or more is accepted"
            )
        head = {id(p) for p in self.strategy.model.head.parameters()}
        put_in = {id(p) for p in inserted.parameters(self.strategy.model)}
        backbone = {id(p) for p in self.strategy.model.parameters()} - head - put_in
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            spared = (
                (id(parameter) in head and not training.decay_head)
                or (parameter.dim() < 2 and not training.decay_norms)
                or not decays(self.strategy, name, parameter)
            )
            rate = lr * training.backbone_lr_factor if id(parameter) in backbone else lr
            groups.setdefault((rate, 0.0 if spared else training.weight_decay), []).append(parameter)
        listed = [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
        optimizer = new_optimizer(training, listed, lr, self.context.device)
        for name, parameter in trained.items():
            kept = self.optimizer_state.get(name, {})
            # A name may now stand for a parameter of another shape, which begins without statistics.
            if kept and all(key == "step" or is_part(value, parameter) for key, value in kept.items()):
                optimizer.state[parameter] = {
                    key: value if key == "step" else grown(value, parameter.detach()) for key, value in kept.items()
                }
        if training.optimizer == "sgd" and training.momentum and optimizer.state:
            # torch moves all parameters with momentum or none; one that is new begins with a momentum of 0.
            for parameter in trained.values():
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter.detach()))
        return optimizer


def new_optimizer(
    training: TrainingConfig, groups: list[dict[str, Any]], lr: float, device: torch.device
) -> torch.optim.Optimizer:
    """Return an optimizer of the run's kind for groups of parameters; what a group says itself comes before the run."""
    shared: dict[str, Any] = {"lr": lr, "fused": device.type != "mps"}
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=training.momentum, nesterov=training.nesterov, **shared)
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, **shared)


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


def backbone_below(model: Network, train: str) -> list[nn.Parameter]:
    """Return the parameters that `train` (RunConfig) keeps out of training: those of the blocks below.

    What a method has put into the blocks is not among them, as it is there to be trained. Raises ConfigError for more
    blocks than there are.
    """
    blocks = blocks_of(model, type(model).__name__)
    if train.startswith("last-") and int(train.removeprefix("last-")) > len(blocks):
        raise ConfigError(
            f"train={train}: the model has {len(blocks)} blocks; all, head, last-1 to last-{len(blocks)} are accepted"
        )
    moving = len(blocks) if train == "all" else 0 if train == "head" else int(train.removeprefix("last-"))
    put_in = {id(p) for p in inserted.parameters(model)}
    return [p for block in blocks[: len(blocks) - moving] for p in block.parameters() if id(p) not in put_in]


def refuse_single_image(config: RunConfig, scenario: Scenario, where: str) -> None:
    """Raise ConfigError where the network can't train on one image at a time; `where` says what leads to one."""
    model = initial_model(config, scenario.image_shape, 0)
    below = {id(p) for p in backbone_below(model, config.training.train)}
    train_mode(model, {id(p) for p in model.parameters()} - below)
    if not takes_one_image(model, scenario.image_shape):
        raise ConfigError(f"{where}, and {config.model.name!r} can't train on one image at a time: {NEEDS_TWO}")


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
