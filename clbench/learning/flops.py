"""Floating-point operations: counted while a run goes on, and shared out over its tasks where they are its budget."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from clbench.config.errors import RunError

_Formula = Callable[..., int]


def _attention(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


# torch has no formula for attention on a CPU, which counts as on a GPU.
_FORMULAS: Mapping[Any, _Formula] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    **flop_registry,
}


class Flops(TorchDispatchMode):
    """Counts the floating-point operations within it by torch's formulas: matrix products, convolutions, attention.

    A product of a multiplication and an addition counts 2. Elementwise operations, such as activations, losses and
    the optimizer's arithmetic, count nothing, and neither do solvers and decompositions of matrices.

    kind: the work that is under way: train, memory (herding and end_task) or evaluation.
    counts: the operations of each kind since begin(); under "open" those of training at the end of the last stage that
        a budget makes as long as it pays for.
    """

    # Tells clbench's own check of its surroundings that what is computed stays the same.
    only_counts = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.begin()

    def begin(self, counts: Mapping[str, int] | None = None, *, whole: bool = True) -> None:
        """Begin a task with nothing, or with what was counted of it; `whole`: whether that is all of it."""
        self.kind, self.whole = "train", whole
        self.counts: dict[str, int] = dict(counts or {})

    def add(self, n: int) -> None:
        """Add operations to the work under way."""
        self.counts[self.kind] = self.counts.get(self.kind, 0) + n

    @property
    def training(self) -> int:
        """All operations but those of evaluation."""
        return training_flops(self.counts)

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Count what is within as work of a kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do an operation and count it."""
        kwargs, packet = kwargs or {}, getattr(func, "_overloadpacket", None)
        formula = _FORMULAS.get(packet)
        if formula is None and _is_composed(func):
            # Inference mode hands over a linear layer or a convolution in one piece.
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if formula is not None:
            self.add(formula(*args, **kwargs, out_val=out))
        return out


_COMPOSED: dict[Any, bool] = {}


def _is_composed(func: Any) -> bool:
    """Whether an operation is made of others."""
    if (known := _COMPOSED.get(func)) is None:
        known = isinstance(func, torch._ops.OpOverload) and func._can_decompose()
        _COMPOSED[func] = known
    return known


def training_flops(counts: Mapping[str, int]) -> int:
    """Return the operations of training among those of each kind."""
    return sum(n for kind, n in counts.items() if kind in ("train", "memory"))


@dataclass
class Account:
    """The operations of training that a stage may spend: it ends where another step would cost more than is left.

    start, limit: the operations of the task at which it begins, and at which it has to end.
    now: those of the present; cost: of the last step.
    """

    start: int
    limit: int
    now: int
    cost: int = 0

    @property
    def is_spent(self) -> bool:
        """Whether a step like the last one costs more than is left; a first step is always taken."""
        return self.cost > 0 and self.now + self.cost > self.limit

    def steps(self, taken: int) -> float:
        """Return how many steps the stage has in all, by the mean cost of those that are taken; 0 before the first."""
        return taken * (self.limit - self.start) / (self.now - self.start) if self.now > self.start else 0.0

    def book(self, now: int, taken: int, where: str) -> None:
        """Enter a step, of which `taken` are taken; `where` names the stage, for errors.

        Raises RunError where the first one costs more than there was, and where it costs nothing.
        """
        self.cost, self.now = now - self.now, now
        if not self.cost:
            raise RunError(
                f"a step of {where} holds no product that torch counts, so no budget of flops ends "
                "it; epochs or iterations are accepted"
            )
        if taken == 1 and now > self.limit:
            raise RunError(
                f"the budget leaves {max(self.limit - self.start, 0):,} FLOPs for {where}, and a step "
                f"takes {self.cost:,}; a larger budget or a smaller batch_size is accepted"
            )
