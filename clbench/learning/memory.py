"""Exemplar memories: which samples a strategy keeps of the tasks that are gone.

A memory holds sample ids and original classes (int64, on the CPU), never images. Its budget is hard at any
instant: `size` samples in total or `per_class` samples of each class. Of C classes under a total K each may
keep K // C, and the first K % C classes in order of appearance one more; slots that a class with fewer samples
can't use go to the others by the same rule.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.plain import plain
from clbench.support.surroundings import by_default

# Herding distances that differ by less are ties: rounding must not decide between equally good samples.
_TIE = 1e-12

# A sample's priority is its class index (order of appearance) times this, plus its key within the class.
_KEYS = 2**40


Rounding = Literal["spare", "floor", "ceil"]


def quotas(
    n_classes: int,
    size: int | None = None,
    per_class: int | None = None,
    rounding: Rounding = "spare",
    available: Sequence[int] | None = None,
) -> list[int]:
    """Return how many samples each of `n_classes` classes, in order of appearance, may keep under the budget.

    rounding: of a total that doesn't divide, the spare slots go to the first classes ("spare") or stay empty
    ("floor"; PyCIL); "ceil" gives every class one more and so exceeds the total (the iCaRL authors' code).
    available: how many samples there are of each class; with "spare" a total is then dealt out one slot at a time to
    each class in turn that has samples left, so that none stays empty while there are samples. Raises ConfigError
    unless exactly one of `size` (in total) and `per_class` is given, as an integer of 0 or more.
    """
    if (size is None) == (per_class is None):
        given = "neither" if size is None else f"both {shown(size)} in total and {shown(per_class)} per class"
        raise ConfigError(
            f"a memory got {given}; accepted: a size in total or a size per class, which exclude each other"
        )
    size, per_class, n_classes = plain(size), plain(per_class), _count(n_classes, "classes of a memory")
    if not isinstance(rounding, str) or rounding not in get_args(Rounding):
        raise unknown("rounding", shown(rounding), get_args(Rounding))
    for name, value in (("size", size), ("size per class", per_class)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63):
            raise ConfigError(f"memory {name} {shown(value)}; accepted: an integer of 0 or more")
    if per_class is not None:
        return [per_class] * n_classes
    total = size or 0
    if rounding != "spare":
        return [total // n_classes if rounding == "floor" else -(-total // n_classes)] * n_classes
    have = [total] * n_classes if available is None else available
    quota, sharing = [0] * n_classes, list(range(n_classes))
    # A class with no more samples than an equal share keeps them all, and leaves the rest to the others.
    while small := {c for c in sharing if have[c] <= total // len(sharing)}:
        for c in small:
            quota[c] = have[c]
        total -= sum(have[c] for c in small)
        sharing = [c for c in sharing if c not in small]
    for place, c in enumerate(sharing):
        quota[c] = total // len(sharing) + (place < total % len(sharing))
    return quota


@checked
@by_default()
def herding(features: Tensor | npt.ArrayLike, m: int) -> Tensor:
    """Return the indices of `m` rows of `features` [n, d] in herding order, int64 [min(m, n)].

    The rule: every row is divided by its L2 norm (zero rows stay zero); mu is the mean of these rows, not
    normalised again; step k picks, of the rows not picked yet, the one that brings the mean of the k picked
    rows nearest to mu in Euclidean distance; distances that differ by less than 1e-12 (as (k * distance)^2)
    are ties, which go to the lowest index. No row is picked twice, and the first k of m picks are the picks
    for k. Between rows of norm 1 the smallest distance and the largest dot product with k * mu - (sum of
    the picked rows) are the same rule; a zero row is nearer than a row of norm 1 whose dot product is below
    1/2.

    Computed in float64 on the CPU; `features` is left as it is. Raises ConfigError for m < 0, a shape other
    than [n, d] and values that are not finite. Rebuffi et al. 2017, arXiv:1611.07725, algorithm 4, which
    leaves repeats open.
    """
    x, m = _directions(features), _count(m, "samples asked of herding")
    squared_norms = (torch.linalg.vector_norm(x, dim=1) > 0.5).double()
    mean = x.mean(dim=0)
    missing = torch.zeros_like(mean)  # k * mean - (sum of the rows picked so far): what pick k should be
    taken = torch.zeros(len(x), dtype=torch.float64)  # infinite where picked
    picked = torch.empty(min(m, len(x)), dtype=torch.int64)
    for k in range(len(picked)):
        missing += mean
        # |missing - x|^2 without the part that all rows share
        distances = squared_norms - 2 * (x @ missing) + taken
        best = int((distances < distances.min() + _TIE).int().argmax())
        picked[k] = best
        missing -= x[best]
        taken[best] = torch.inf
    return picked


@checked
@by_default()
def argmax_herding(features: Tensor | npt.ArrayLike, m: int, steps: int = 1000) -> Tensor:
    """Return the indices of at most `m` rows of `features` [n, d], in the order in which a walk first meets them.

    The rule of the iCaRL authors' code: rows are divided by their L2 norm, mu is their mean, not normalised again, and
    w starts as mu. Each step takes the row with the largest dot product with w (ties: the first), which may be one that
    it has met before, and adds mu - row to w; it ends with m different rows or after `steps` steps. So there can be
    fewer than m. Computed in float64 on the CPU. Raises ConfigError as `herding` does. Rebuffi et al. 2017,
    arXiv:1611.07725.
    """
    x, m, steps = _directions(features), _count(m, "samples asked of herding"), _count(steps, "steps of herding")
    mean = x.mean(dim=0)
    w, met = mean.clone(), dict[int, None]()
    for _ in range(steps):
        if len(met) == min(m, len(x)):
            break
        best = int((x @ w).argmax())
        met[best] = None
        w += mean - x[best]
    return torch.tensor(list(met), dtype=torch.int64)


def _directions(features: object) -> Tensor:
    """Return features [n, d], each row divided by its norm, float64 on the CPU; raises ConfigError."""
    try:
        x = torch.as_tensor(features).detach().to(device="cpu", dtype=torch.float64)
        finite = bool(x.isfinite().all())
    except Exception:  # of any kind, as it may be any object
        raise ConfigError(f"herding got features={shown(features)}; accepted: numbers [samples, features]") from None
    if x.ndim != 2:
        raise ConfigError(f"herding got features of shape {tuple(x.shape)}; accepted: [samples, features]")
    if not finite:
        raise ConfigError("herding got features that are NaN or infinite; accepted: finite values")
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norms > 0, norms, 1.0)


def _count(given: object, what: str) -> int:
    """Return a number of samples or steps; raises ConfigError."""
    n = plain(given)
    if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n <= 10**7:
        raise ConfigError(f"{shown(given)} {what}; accepted: an integer of 0 or more, at most 10,000,000")
    return n


def _integers(name: str, given: object) -> Tensor:
    """Return ids or classes as a tensor on the CPU; raises ConfigError for what is none."""
    try:
        return torch.as_tensor(given).cpu()
    except Exception:  # of any kind, as it may be any object
        raise ConfigError(f"a memory got {name}={shown(given)}; accepted: int64 [n]") from None


class Memory(ABC):
    """Exemplar ids and original classes under a hard budget (but for rounding="ceil"); offer every sample once.

    `ids` and `classes` are int64 [n] on the CPU. `seen` counts the samples offered of each original class,
    in order of appearance. The state is integers, tensors and dicts of them, so the safe loader of torch
    reads it back.
    """

    # The samples that `expect` announced; a memory that 0.1.0 saved has no such attribute of its own.
    _expected: dict[int, int] | None = None

    streaming: ClassVar[bool]
    """Filled batch by batch as the stream goes; otherwise once at the end of a task, with all its samples."""
    needs_features: ClassVar[bool] = False
    """`update` wants the features of the samples."""

    def __init__(self, size: int | None = None, per_class: int | None = None, rounding: Rounding = "spare") -> None:
        """Raise ConfigError unless exactly one budget is given, as an integer of 0 or more."""
        quotas(1, size, per_class, rounding)
        self.size: int | None = plain(size)
        self.rounding = rounding
        self.per_class: int | None = plain(per_class)
        self.ids = torch.empty(0, dtype=torch.int64)
        self.classes = torch.empty(0, dtype=torch.int64)
        self.seen: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def counts(self) -> dict[int, int]:
        """Return the number of stored samples of each class offered so far, in order of appearance."""
        return {original: int((self.classes == original).sum()) for original in self.seen}

    def expect(self, classes: Tensor) -> None:
        """Tell what will be offered in parts, beside what was: the original classes of its samples, int64 [n].

        Of a class that is told the slots are kept free from its first sample on; of another, other classes use them
        until its samples come.
        """
        expected = dict(self._expected or {})
        for original, n in Counter(classes.tolist()).items():
            expected[original] = max(self.seen.get(original, 0) + n, expected.get(original, 0))
        self._expected = expected

    def update(self, ids: Tensor, classes: Tensor, generator: torch.Generator, features: Tensor | None = None) -> None:
        """Offer samples: `ids` and original `classes` int64 [n], `features` [n, d] for herding.

        `generator` is a CPU generator. Raises ConfigError, and leaves the memory as it was, for tensors
        that don't fit each other or are not int64, and for features that are missing or not finite.
        """
        ids, classes = _integers("ids", ids), _integers("classes", classes)
        if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
            raise ConfigError(f"a memory got generator={shown(generator)}; accepted: a torch.Generator on the CPU")
        if ids.shape != classes.shape or ids.ndim != 1 or {ids.dtype, classes.dtype} != {torch.int64}:
            raise ConfigError(
                f"a memory got ids {ids.dtype} {tuple(ids.shape)} and classes {classes.dtype} "
                f"{tuple(classes.shape)}; accepted: int64 [n] for both"
            )
        if len(ids) == 0:
            return
        seen = dict(self.seen)
        for original, n_new in Counter(listed := classes.tolist()).items():
            seen[original] = seen.get(original, 0) + n_new
        appearance = {original: index for index, original in enumerate(seen)}
        groups = torch.tensor([appearance[original] for original in listed])
        # No quota ever grows: so what a class gave up is never missed. Samples that are still to come count as there.
        expected = self._expected or {}
        available = [max(n, expected.get(original, 0)) for original, n in seen.items()]
        self._insert(ids, classes, groups, available, generator, features)
        self.seen = seen

    @abstractmethod
    def _insert(
        self,
        ids: Tensor,
        classes: Tensor,
        groups: Tensor,
        available: list[int],
        generator: torch.Generator,
        features: Tensor | None,
    ) -> None:
        """Choose what to keep, `groups` [n] being the samples' classes as indices in order of appearance.

        `available` holds how many samples of each class there are in all, in the same order.
        """

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return `n` stored ids in random order, int64 [n]: no repeats while n <= len(self), else evenly
        repeated.

        Each id then comes n // len(self) times or once more. Raises ConfigError where there is nothing to
        draw from.
        """
        n = _count(n, "samples asked of a memory")
        if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
            raise ConfigError(f"a memory got generator={shown(generator)}; accepted: a torch.Generator on the CPU")
        if n > 0 and len(self) == 0:
            raise ConfigError(f"{n} samples asked of a memory that is empty")
        rounds = [torch.randperm(len(self), generator=generator) for _ in range(-(-n // max(len(self), 1)))]
        return self.ids[torch.cat(rounds)[:n]] if rounds else self.ids[:0]


class ReservoirMemory(Memory):
    """A uniform sample of the stream: after N samples each is kept with probability size / N.

    Vitter 1985, "Random sampling with a reservoir", algorithm R, a batch at a time: the t-th sample of the
    stream (from 0) goes to slot t while the reservoir fills, later to a slot drawn from 0..t, and is
    dropped where there is no such slot. Raises ConfigError for `per_class`, which a reservoir can't
    promise.
    """

    streaming = True

    def __init__(self, size: int | None = None, per_class: int | None = None, rounding: Rounding = "spare") -> None:
        if not isinstance(rounding, str) or rounding != "spare":
            raise ConfigError(
                f"a reservoir memory knows no classes, so no rounding {shown(rounding)}; 'spare' is accepted"
            )
        if per_class is not None:
            raise ConfigError(
                f"a reservoir memory can't keep {shown(per_class)} samples per class; accepted: a size in "
                "total, or the memory 'balanced' for a size per class"
            )
        super().__init__(size)

    def _insert(
        self,
        ids: Tensor,
        classes: Tensor,
        groups: Tensor,
        available: list[int],
        generator: torch.Generator,
        features: Tensor | None,
    ) -> None:
        # The constructor refuses a size per class, so there is one in total.
        size = self.size or 0
        n_seen = sum(self.seen.values())
        position = np.arange(n_seen, n_seen + len(ids))
        draws = torch.rand(len(ids), dtype=torch.float64, generator=generator).numpy()
        slot = np.where(position < size, position, (draws * (position + 1)).astype(np.int64))
        kept = slot < size
        n = min(size, n_seen + len(ids))

        def put(old: Tensor, new: Tensor) -> Tensor:
            # The last of several samples that fall on one slot stays, as in a loop over them.
            slots = np.concatenate([old.numpy(), np.empty(n - len(old), dtype=np.int64)])
            slots[slot[kept]] = new.numpy()[kept]
            return torch.from_numpy(slots)

        self.ids, self.classes = put(self.ids, ids), put(self.classes, classes)


class _QuotaMemory(Memory):
    """Keeps of each class the samples with the lowest keys, up to its quota; ordered by class, then by key.

    A quota never grows when samples come, so the lowest keys kept are the lowest of all samples offered. fills: a
    quota that the samples chosen don't fill is filled with others.
    """

    fills: ClassVar[bool] = True

    def __init__(self, size: int | None = None, per_class: int | None = None, rounding: Rounding = "spare") -> None:
        super().__init__(size, per_class, rounding)
        self._priority = torch.empty(0, dtype=torch.int64)  # class index * _KEYS + key, ascending

    def _insert(
        self,
        ids: Tensor,
        classes: Tensor,
        groups: Tensor,
        available: list[int],
        generator: torch.Generator,
        features: Tensor | None,
    ) -> None:
        n_classes = len(available)
        quota = torch.tensor(quotas(n_classes, self.size, self.per_class, self.rounding, available))
        priority = groups * _KEYS + self._keys(groups, quota, generator, features)
        priority, order = torch.cat([self._priority, priority]).sort(stable=True)
        groups = priority // _KEYS
        counts = groups.bincount(minlength=n_classes)
        rank = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[groups]
        keep = rank < quota[groups]
        if not self.fills:
            keep &= priority % _KEYS < _KEYS - 1
        self._priority, order = priority[keep], order[keep]
        self.ids = torch.cat([self.ids, ids])[order]
        self.classes = torch.cat([self.classes, classes])[order]

    @abstractmethod
    def _keys(self, groups: Tensor, quota: Tensor, generator: torch.Generator, features: Tensor | None) -> Tensor:
        """Return the samples' keys within their class, int64 [n] in 0.._KEYS-1."""


class RandomMemory(_QuotaMemory):
    """A uniform sample of each class, drawn at the end of its task, equally many of each class."""

    streaming = False

    def _keys(self, groups: Tensor, quota: Tensor, generator: torch.Generator, features: Tensor | None) -> Tensor:
        return torch.randint(_KEYS, groups.shape, generator=generator)


class ClassBalancedMemory(RandomMemory):
    """A reservoir for each class seen so far, equally large: at any instant a uniform sample of each class.

    A sample draws a random key when it arrives and the lowest keys of a class stay (reservoir sampling by
    random sort), so what is left of a class when its quota shrinks is a uniform sample too.
    """

    streaming = True


class HerdingMemory(_QuotaMemory):
    """The first of each class in herding order, chosen at the end of its task (see `herding`), equally many
    of each.

    A class comes once, with all its samples. Rebuffi et al. 2017, arXiv:1611.07725, algorithms 4 and 5.
    """

    streaming = False
    needs_features = True

    def _keys(self, groups: Tensor, quota: Tensor, generator: torch.Generator, features: Tensor | None) -> Tensor:
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(groups):
            got = "none of features" if features is None else f"{shown(features)} in the place of features"
            if isinstance(features, Tensor) and features.ndim == 2:
                got = f"{len(features)} rows of features"
            raise ConfigError(f"a herded memory got {len(groups)} samples and {got}; accepted: a row each")
        if int(groups.min()) < len(self.seen):
            again = list(self.seen)[int(groups.min())]
            raise ConfigError(f"class {again} was offered to a herded memory before; accepted: each class once")
        keys = torch.full_like(groups, _KEYS - 1)
        for group in torch.unique(groups).tolist():
            members = (groups == group).nonzero()[:, 0]
            chosen = self._choose(features[members.to(features.device)], int(quota[group]))
            keys[members[chosen]] = torch.arange(len(chosen))
        return keys

    def _choose(self, features: Tensor, m: int) -> Tensor:
        return herding(features, m)


class ArgmaxHerdingMemory(HerdingMemory):
    """Keeps the images of each class that the iCaRL authors' walk meets (see `argmax_herding`), which may be fewer."""

    fills = False

    def _choose(self, features: Tensor, m: int) -> Tensor:
        return argmax_herding(features, m)


MEMORIES: dict[str, type[Memory]] = {
    "reservoir": ReservoirMemory,
    "balanced": ClassBalancedMemory,
    "herding": HerdingMemory,
    "herding-argmax": ArgmaxHerdingMemory,
    "random": RandomMemory,
}
"""The memories by the names under which a user asks for them."""
