"""Checkpoint: what is saved of a run under way, packed (see `packing`). The only place that knows its form.

A store keeps checkpoints: the run's own folder by default, or any object with the methods of `Store`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from clbench.config.errors import ConfigError, shown
from clbench.learning.strategy import Progress, Stage, Strategy
from clbench.results.record import EpochRecord
from clbench.running.packing import pack, unpack

# The form that is written; that of 0.1.0, form 1, is read as well.
FORM = 2


@dataclass
class Within:
    """The position in a task under way: its stages, the one it is in, and what was learnt since the task began.

    All of it is one file, so that a parameter that stands in several places is one object when it is read.

    stages: the names of the task's stages.
    parameters: what trains in each of them.
    stage: the number of the stage under way.
    epochs: records of the task's epochs so far, those of earlier stages.
    strategy: Strategy.state().
    trainer: Trainer.state_dict().
    logged: numbers that the strategy logged in the task.
    seconds: of training and evaluation in the task so far.
    flops: floating-point operations in the task so far, where they are counted.
    """

    stages: list[str]
    parameters: list[list[nn.Parameter] | None]
    stage: int
    epochs: list[dict[str, Any]]
    strategy: dict[str, Any]
    trainer: dict[str, Any]
    logged: dict[str, float]
    seconds: tuple[float, float]
    flops: dict[str, int] | None = None

    @property
    def progress(self) -> Progress:
        """The position in the stage."""
        return Progress(**self.trainer["progress"])

    def epochs_so_far(self) -> list[EpochRecord]:
        """Return the records of the task's epochs, those of the stage under way among them."""
        return [EpochRecord(**epoch) for epoch in (*self.epochs, *self.trainer["fit"]["records"])]

    def stages_of(self, declared: Sequence[Stage]) -> bool:
        """Whether the strategy declares the stages that were saved."""
        return self.stages == [stage.name for stage in declared]


@dataclass
class Checkpoint:
    """The state of a run between two steps or two tasks.

    identity: of the run.
    record: RunRecord as plain values.
    task: the task to learn next, or the one under way.
    start: what was learnt before that task, packed for itself (see `learnt`); None before the first.
    within: where the task under way is; None between two tasks.
    """

    identity: str
    record: dict[str, Any]
    task: int
    start: bytes | None = None
    within: Within | None = None

    @property
    def position(self) -> str:
        """The position in words."""
        if self.within is None:
            return f"the beginning of task {self.task}"
        at = self.within.progress
        return f"task {self.task}, stage {at.stage!r}, epoch {at.epoch}, step {at.step}"

    def to_bytes(self) -> bytes:
        """Return the checkpoint as bytes, with a checksum of each tensor."""
        start = None if self.start is None else torch.frombuffer(bytearray(self.start), dtype=torch.uint8)
        within = None if self.within is None else dict(vars(self.within))
        return pack({"form": FORM, **vars(self), "start": start, "within": within})

    @classmethod
    def from_bytes(cls, content: bytes, kind: type[Strategy]) -> "Checkpoint":
        """Read a checkpoint of a strategy; raises an exception of some kind for what is none, ConfigError for its form.

        Only what `packing` knows is unpacked.
        """
        stored = unpack(content, kind)
        form = stored.pop("form", None)
        if form not in (1, FORM):
            raise ConfigError("its checkpoint is of another clbench; --force begins the run again")
        start, within = stored.pop("start"), stored.pop("within")
        if within is not None:
            within = Within(**(within | {"trainer": _trainer_of_form_1(within["trainer"])} if form == 1 else within))
        return cls(**stored, start=None if start is None else start.numpy().tobytes(), within=within)


class Store(Protocol):
    """Keeps the checkpoints of one run."""

    def save_checkpoint(self, content: bytes) -> None:
        """Keep a checkpoint in one step, so that a kill leaves the one before; raises RunError when it can't."""

    def checkpoints(self) -> list[tuple[str, bytes | Exception]]:
        """Return what is kept, the newest first: its name, and its content or why it can't be read."""

    def drop_checkpoint(self) -> None:
        """Drop what is kept; the run is done."""


def newest(store: Store, kind: type[Strategy]) -> Checkpoint | None:
    """Return the newest checkpoint of a store that is whole, None where there is none; warns where one is damaged.

    Raises ConfigError when no checkpoint is whole, or when it is of another clbench.
    """
    problems: list[str] = []
    kept = store.checkpoints()
    if not isinstance(kept, Sequence) or not all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], bytes | Exception) for pair in kept
    ):
        raise ConfigError(
            f"{type(store).__name__}.checkpoints() returned {shown(kept)}; pairs of a name and bytes are accepted"
        )
    for name, content in kept:
        try:
            if isinstance(content, Exception):
                raise content
            checkpoint = Checkpoint.from_bytes(content, kind)
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except ConfigError as error:
            raise ConfigError(f"{store}: {error}") from None
        except Exception as error:  # torch.load has no error of its own for what isn't a checkpoint
            problems.append(f"{name} is damaged ({(str(error) or type(error).__name__).splitlines()[0][:50]})")
        else:
            if problems:
                warnings.warn(f"{store}: {problems[0]}; going on from {name}, the one before", stacklevel=2)
            return checkpoint
    if kept:
        raise ConfigError(f"{store}: {' and '.join(problems)}; restore one, or --force to start the run again")
    return None


def learnt(strategy: Strategy, optimizer_state: Mapping[str, Any]) -> bytes:
    """Return what a run has learnt between two tasks: Checkpoint.start."""
    return pack({"strategy": strategy.state(), "optimizer_state": optimizer_state})


def _trainer_of_form_1(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what 0.1.0 saved of the trainer in the form of today."""
    sums, counts, steps, images, seconds = stored["epoch"]
    factor, *waiting = stored["plateau"]
    names = ("optimizer", "trained", "frozen", "best", "best_epoch", "records")
    tally = {"sums": sums, "counts": counts, "steps": steps, "images": images, "seconds": seconds}
    return {
        "progress": stored["progress"],
        "optimizer_state": stored["optimizer_state"],
        "fit": {
            **{name: stored[name] for name in names},
            "rows": stored["fixed_rows"],
            "plateau": {"factor": factor, "lowest": waiting[0], "count": waiting[1]},
            "waiting": dict(zip(("lowest", "count"), stored["waiting"], strict=True)),
            "tally": tally | {"skipped": stored["skipped"]},
        },
    }
