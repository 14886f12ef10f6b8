"""Memories use their whole budget: slots that a small class can't use go to the others, and nothing else changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import dealt

from clbench.learning.memory import MEMORIES, Memory, herding, quotas

BY_CLASS = ["balanced", "random", "herding"]


def offer(memory: Memory, ids: list[int], classes: list[int], rng: torch.Generator, features: Any = None) -> None:
    memory.update(torch.tensor(ids), torch.tensor(classes), rng, features)


def features_of(memory: Memory, n: int, rng: torch.Generator) -> Any:
    return torch.randn(n, 3, generator=rng) if memory.needs_features else None


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("name", BY_CLASS)
def test_a_memory_of_200_keeps_200_of_50_and_500_and_500(name: str, in_parts: bool) -> None:
    """By hand: 50 of the small class, and the other 150 slots are 75 for each of the two large ones."""
    memory, rng = MEMORIES[name](200), torch.Generator().manual_seed(0)
    classes = [0] * 50 + [1] * 500 + [2] * 500
    parts = [range(50), range(50, 550), range(550, 1050)] if in_parts else [range(1050)]
    for part in parts:
        offer(memory, list(part), [classes[i] for i in part], rng, features_of(memory, len(part), rng))
    assert list(memory.counts().values()) == [50, 75, 75]


@pytest.mark.parametrize(
    ("available", "size", "expected"),
    [
        ([50, 500, 500], 200, [50, 75, 75]),
        ([500, 50, 500], 200, [75, 50, 75]),
        ([1, 9, 9, 2], 12, [1, 5, 4, 2]),  # 9 are left for two: 5 and 4, the spare one to the first of them
        ([3, 3, 3], 8, [3, 3, 2]),
        ([0, 5], 4, [0, 4]),
        ([2, 1], 9, [2, 1]),
        ([4], 0, [0]),
        ([], 7, []),
    ],
)
def test_shares_by_hand(available: list[int], size: int, expected: list[int]) -> None:
    assert quotas(len(available), size, available=available) == expected


@given(st.lists(st.integers(0, 60), max_size=12), st.integers(0, 300))
def test_shares_are_those_of_dealing_slots_out_in_turn(available: list[int], size: int) -> None:
    assert quotas(len(available), size, available=available) == dealt(available, size)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 100), st.data())
def test_no_share_of_another_class_grows_when_samples_come(available: list[int], size: int, data: Any) -> None:
    """So what a class once gave up is never missed: a new class, or more of an old one, takes from the others."""
    now = quotas(len(available), size, available=available)
    gaining = data.draw(st.integers(0, len(available)))
    more = [*available, 0]
    more[gaining] += data.draw(st.integers(1, 30))
    later = quotas(len(more), size, available=more)
    assert all(later[c] <= now[c] for c in range(len(available)) if c != gaining)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(BY_CLASS),
    size=st.integers(0, 60),
    tasks=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
)
def test_no_slot_stays_empty_while_there_are_samples(name: str, size: int, tasks: list[list[int]], seed: int) -> None:
    """Classes of any size, offered task by task: the counts, and which samples stay, are those of all kept in order.

    The independent rule keeps every sample that was ever offered, in the order in which its class would give it up:
    by its random key, or in herding order of the class's own features.
    """
    memory, rng = MEMORIES[name](size), torch.Generator().manual_seed(seed)
    order: dict[int, list[int]] = {}
    n_seen = 0
    for task in tasks:
        classes = [len(order) + k for k, n in enumerate(task) for _ in range(n)]
        ids, first = list(range(n_seen, n_seen + len(classes))), len(order)
        features = features_of(memory, len(ids), rng)
        state = rng.get_state()
        offer(memory, ids, classes, rng, features)
        if features is None:
            rng.set_state(state)
            keys = torch.randint(2**40, (len(ids),), generator=rng)
        for c in range(first, first + len(task)):
            own = [i for i, k in enumerate(classes) if k == c]
            places = herding(features[own], len(own)) if features is not None else keys[own].argsort(stable=True)
            order[c] = [ids[own[place]] for place in places.tolist()]
        n_seen += len(ids)
        kept = dealt([len(found) for found in order.values()], size)
        assert len(memory) == min(size, n_seen)
        assert {c: memory.ids[memory.classes == c].tolist() for c in order} == {
            c: order[c][:n] for c, n in zip(order, kept, strict=True)
        }


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(0, 30),
    batches=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=12),
    told=st.booleans(),
)
def test_a_stream_in_batches_fills_the_memory(size: int, batches: list[list[int]], told: bool) -> None:
    """At its end the counts are those of all samples at once; a memory that was told keeps slots free till then."""
    memory, rng = MEMORIES["balanced"](size), torch.Generator().manual_seed(0)
    stream = [c for batch in batches for c in batch]
    if told:
        memory.expect(torch.tensor(stream))
    n_seen = 0
    for batch in batches:
        offer(memory, list(range(n_seen, n_seen + len(batch))), batch, rng)
        n_seen += len(batch)
        assert len(memory) <= size
        assert told or len(memory) == min(size, n_seen)
    samples = [stream.count(c) for c in dict.fromkeys(stream)]
    assert list(memory.counts().values()) == dealt(samples, size)


def test_classes_with_enough_samples_have_the_memory_of_before_at_each_step() -> None:
    """A memory that is told what comes: K // C of each class from its first sample on, as in 0.1.0.

    The rule of 0.1.0 is written out here: of each class the lowest keys, up to K // C and one more for the first.
    """
    memory, rng, twin = MEMORIES["balanced"](23), torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    offered: dict[int, list[tuple[int, int]]] = {}
    n_seen = 0
    order = np.random.default_rng(0)
    for task in range(4):
        classes = order.permutation(np.repeat([2 * task, 2 * task + 1], 25))
        memory.expect(torch.from_numpy(classes))
        for batch in np.split(classes, 10):
            offer(memory, list(range(n_seen, n_seen + 5)), batch.tolist(), rng)
            for c, key in zip(batch.tolist(), torch.randint(2**40, (5,), generator=twin).tolist(), strict=True):
                offered.setdefault(c, []).append((key, n_seen))
                n_seen += 1
            n = len(offered)
            expected = [i for k, own in enumerate(offered.values()) for _, i in sorted(own)[: 23 // n + (k < 23 % n)]]
            assert memory.ids.tolist() == expected


@pytest.mark.parametrize("strategy", ["er[memory_policy=balanced]", "naive[memory_policy=random]", "icarl", "gdumb"])
def test_a_run_whose_classes_differ_in_size_fills_its_memory(
    strategy: str, run: Callable[..., Any], digits: Any
) -> None:
    """Of ten classes the even ones have 4 images and the odd ones 40; 60 slots are dealt out after each task."""
    from clbench.scenarios import dataset_from_arrays, split

    few = np.concatenate([np.flatnonzero(digits.y_train == c)[: 4 if c % 2 == 0 else 40] for c in range(10)])
    data = dataset_from_arrays(digits.x_train[few], digits.y_train[few], digits.x_test, digits.y_test, name="uneven")
    result = run(strategy, split(data, tasks=5), memory_size=60)
    for task, entry in enumerate(result.record["tasks"]):
        samples = [4 if int(c) % 2 == 0 else 40 for c in entry["exemplars_per_class"]]
        assert list(entry["exemplars_per_class"].values()) == dealt(samples, 60)
        assert entry["n_exemplars"] == min(60, 44 * (task + 1))
