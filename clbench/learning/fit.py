"""One stage under way: what trains, how far it is, and the losses of its epoch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clbench.config.errors import RunError
from clbench.config.run import RunConfig
from clbench.learning.early_stopping import Best
from clbench.learning.flops import Account
from clbench.learning.schedule import Plateau, Progressless, lr_multiplier
from clbench.learning.strategy import Progress, Stage, Strategy, remedies
from clbench.results.record import EpochRecord


class Fit:
    """One stage under way.

    stage: what is fitted.
    trained: the parameters that train, by name.
    frozen: those that could train, and don't in this stage.
    optimizer: of the first.
    rows: what keeps the other rows of the head where only some of them move.
    """

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
        self.strategy = strategy
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.rows = FixedRows(strategy.model.head, stage.head_rows) if stage.head_rows is not None else None
        self.epochs = stage.epochs or (None if stage.iterations else config.training.epochs)
        self.steps = stage.iterations or (None if self.epochs else config.training.iterations)
        self.plateau, self.waiting = Plateau(config.training), Progressless(config.training.min_delta)
        self.best = Best(strategy)
        self.best_epoch: int | None = None
        self.records: list[EpochRecord] = []
        self.tally = Tally()
        self.account: Account | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that a stage goes on with; parameters are those of the strategy, saved in one file with it."""
        return {
            "trained": self.trained,
            "frozen": self.frozen,
            "optimizer": self.optimizer.state_dict(),
            "rows": self.rows and self.rows.saved,
            "plateau": self.plateau.state_dict(),
            "waiting": self.waiting.state_dict(),
            "best": self.best.state,
            "best_epoch": self.best_epoch,
            "records": [record.model_dump(exclude_unset=True) for record in self.records],
            "tally": self.tally.state_dict(),
            "account": self.account and vars(self.account),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a state_dict(), whose parameters the optimizer was made for."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rows is not None:
            self.rows.saved = state["rows"]
        self.plateau.load_state_dict(state["plateau"])
        self.waiting.load_state_dict(state["waiting"])
        self.best.state, self.best_epoch = state["best"], state["best_epoch"]
        self.records = [EpochRecord(**record) for record in state["records"]]
        self.tally = Tally(**state["tally"])
        # Checkpoints of before there were budgets have none.
        self.account = Account(**account) if (account := state.get("account")) else None

    def is_over(self, progress: Progress, patience: int | None) -> bool:
        """Whether the stage has had its epochs or steps, or has waited long enough for progress."""
        if self.tally.steps:
            # An epoch is under way, if only its record is missing.
            return False
        if patience is not None and self.waiting.count >= patience:
            return True
        return (self.epochs is not None and progress.epoch >= self.epochs) or self.is_out_of_steps(progress)

    def is_out_of_steps(self, progress: Progress) -> bool:
        """Whether the stage has had the steps, or has spent the operations, that it was given."""
        if self.account is not None:
            return self.account.is_spent
        return self.steps is not None and progress.step >= self.steps

    def count(self, progress: Progress, n_images: int, *, taken: bool = True) -> None:
        """Count a step, or one that was left out."""
        self.tally.images += n_images
        self.tally.steps += 1
        self.tally.skipped += not taken
        progress.step += 1

    def clear_gradients(self) -> None:
        """Let go of the gradients of what trains."""
        for parameter in self.trained.values():
            parameter.grad = None

    def set_rate(self, progress: Progress, config: RunConfig, n_tasks: int) -> None:
        """Set the learning rate of the step to come."""
        training = config.training
        if training.schedule != "constant" or training.lr_warmup:
            per_epoch = progress.steps_per_epoch
            steps = (self.steps or 0) if self.account is None else self.account.steps(progress.step)
            total = float(self.epochs) if self.epochs is not None else steps / per_epoch
            position = progress.step / per_epoch
            if training.schedule_scope == "run":
                position, total = position + progress.task * total, total * n_tasks
            factor = lr_multiplier(training, position, 1 / per_epoch, total) * self.plateau.factor
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
        progress.learning_rate = self.optimizer.param_groups[-1]["lr"]
        if not self.tally.steps:
            self.tally.lr_first = progress.learning_rate

    def read_losses(self, progress: Progress, saved: str) -> float:
        """Read the losses that steps left on the device; return the mean of the epoch so far. See Tally.read."""
        return self.tally.read(progress, self.trained, saved, self.strategy)


@dataclass
class Tally:
    """The epoch under way: its steps, images, seconds and losses, and the learning rate of its first step.

    `waited` are those of the seconds in which images on disk were waited for. `tested` samples were tested just before
    they were learnt, and `correct` of them were right; `near_tested` and `near_correct` some steps before. `norms` is
    the sum of the norms of the steps' gradients, where they are measured.

    Each step leaves its loss terms and counts on the device; they are read from time to time, all at once.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    skipped: int = 0
    tested: int = 0
    correct: int = 0
    near_tested: int = 0
    near_correct: int = 0
    norms: float = 0.0
    lr_first: float | None = None
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with nothing to read."""
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._answers: list[Tensor] = []
        self._norms: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and what was read of the losses."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def add(self, step: int, terms: dict[str, Tensor], answers: Tensor | None = None) -> None:
        """Take up the terms of a step of the stage without reading them; answers: counts of samples, int64 [4].

        They are how many were right just before they were learnt, how many were tested so, and the same some steps
        before.
        """
        self._pending.append((step, {name: term.detach() for name, term in terms.items()}))
        if answers is not None:
            self._answers.append(answers)

    def add_norm(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take up the norm of a step's gradient without reading it."""
        self._norms.append(total_norm([p.grad for p in parameters if p.grad is not None]))

    def read(self, progress: Progress, weights: dict[str, nn.Parameter], saved: str, strategy: Strategy) -> float:
        """Read what is pending and return the mean loss.

        Raises RunError for the first term that is not finite, and for weights that are not; it says where the run was
        `saved`, and which options of the run and the `strategy` may help.
        """
        if self._pending:
            norm = total_norm([weight.detach() for weight in weights.values()])
            terms = [(step, name, term) for step, of_step in self._pending for name, term in of_step.items()]
            # A penalty without a term is a constant, and on the CPU.
            stacked = torch.stack([*(term.float().to(norm.device) for *_, term in terms), norm])
            # Counts of a batch are exact as float32, whose whole numbers reach to 2^24.
            counts = torch.stack(self._answers).T.flatten().float() if self._answers else stacked[:0]
            *values, size = (read := torch.cat([counts, stacked]).tolist())[len(counts) :]
            n = len(self._answers)
            for place, name in enumerate(("correct", "tested", "near_correct", "near_tested") if n else ()):
                setattr(self, name, getattr(self, name) + int(sum(read[place * n : (place + 1) * n])))
            for (step, name, _), value in zip(terms, values, strict=True):
                if not math.isfinite(value):
                    raise _diverged(f"the {name} loss is {value}", progress, step, saved, strategy)
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
            if not math.isfinite(size):
                # The norm of finite weights can overflow too.
                wrong = [name for name, weight in weights.items() if not weight.isfinite().all()]
                if wrong:
                    what = f"{wrong[0]} holds weights that are not finite"
                    raise _diverged(what, progress, terms[-1][0], saved, strategy)
            self._pending.clear()
            self._answers.clear()
            if self._norms:
                self.norms += float(torch.stack(self._norms).sum())
                self._norms.clear()
        return sum(self.means().values())

    def means(self) -> dict[str, float]:
        """Return the mean of each term over the steps that had it."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def _diverged(what: str, progress: Progress, step: int, saved: str, strategy: Strategy) -> RunError:
    return RunError(
        f"{what} in task {progress.task}, stage {progress.stage!r}, epoch {progress.epoch}, step {step} at learning "
        f"rate {progress.learning_rate:g}; {remedies(strategy)}, or --on-nan skip (run: --resume, too), which goes on "
        f"from {saved} and leaves such steps out"
    )


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors together, float32, on their device; it is finite only if all of them are."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]).norm() if tensors else torch.zeros(())


def are_finite(terms: dict[str, Tensor], trained: dict[str, nn.Parameter]) -> bool:
    """Whether the loss terms and the gradients are all finite; waits for the device."""
    norm = total_norm([p.grad for p in trained.values() if p.grad is not None])
    values = [norm, *(term.detach().float().to(norm.device) for term in terms.values())]
    return bool(torch.stack(values).isfinite().all())


class FixedRows:
    """Keeps all rows of the head but some as they are, whatever momentum or weight decay would do to them."""

    def __init__(self, head: nn.Linear, moving: slice) -> None:
        self.parameters = [p for p in (head.weight, head.bias) if p is not None]
        # An index of numbers, since the host would wait for an accelerator to count what a mask selects.
        rows = torch.arange(head.out_features)
        self.fixed = torch.cat([rows[: moving.start], rows[moving.stop :]]).to(head.weight.device)
        self.saved = [p.detach()[self.fixed] for p in self.parameters]

    @torch.no_grad()
    def restore(self, into: Sequence[Tensor] | None = None) -> None:
        """Put the rows back, after a step: those of the head, or of tensors that stand for its parameters."""
        for parameter, saved in zip(self.parameters if into is None else into, self.saved, strict=True):
            parameter.index_copy_(0, self.fixed, saved)
