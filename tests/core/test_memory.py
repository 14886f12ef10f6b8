"""Exemplar memories: the rule of herding, fairness, uniformity and hard budgets."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import dealt

from clbench.config.errors import ConfigError
from clbench.learning.memory import (
    MEMORIES,
    ClassBalancedMemory,
    HerdingMemory,
    Memory,
    RandomMemory,
    ReservoirMemory,
    herding,
    quotas,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def offer(memory: Memory, ids: list[int], classes: list[int], rng: torch.Generator) -> None:
    """Update the memory, with random features where it needs them."""
    features = torch.randn(len(ids), 3, generator=rng) if memory.needs_features else None
    memory.update(torch.tensor(ids, dtype=torch.int64), torch.tensor(classes, dtype=torch.int64), rng, features)


def assert_uniform(inclusions: np.ndarray, kept: int, limit: float) -> None:
    """Compare how often each of N samples was kept over many runs with `kept` of N.

    Given that exactly `kept` samples stay, sum (O - E)^2 / (E (1 - kept / N)) * (N - 1) / N is chi-square
    with N - 1 degrees of freedom; `limit` is its 99.9 % quantile, from a table.
    """
    n, runs = len(inclusions), inclusions.sum() / kept
    expected = runs * kept / n
    chi_square = ((inclusions - expected) ** 2).sum() / (expected * (1 - kept / n)) * (n - 1) / n
    assert chi_square < limit


# Herding


def test_herding_by_hand():
    """Rows of norm 1: (1, 0), (0, 1), (.6, .8), (.8, .6); their mean is (.6, .6).

    Pick 1: squared distances .52, .52, .04, .04: a tie, row 2. Pick 2: means with row 2 are (.8, .4), (.3,
    .9) and (.7, .7), at .08, .18, .02: row 3. Pick 3: rows 0 and 1 are mirror images: a tie, row 0. The
    scales don't count.
    """
    features = np.array([[1.0, 0.0], [0.0, 3.0], [1.2, 1.6], [4.0, 3.0]])
    assert herding(features, 4).tolist() == [2, 3, 0, 1]


def test_herding_is_greedy_on_the_mean_of_the_picked():
    """(1, 0) twice and (0, 1): mean (2/3, 1/3). Row 0 first; with it row 1 gives (1, 0), row 2 gives (.5, .5), nearer.

    Ranking by dot product with the mean (2/3, 2/3, 1/3) would take row 1.
    """
    assert herding(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 2).tolist() == [0, 2]


def test_herding_takes_the_nearest_not_the_largest_dot_product():
    """(1, 0), (-1, 0) and a zero row: the mean is the zero row, so it is nearest; all dot products are 0, a tie.

    Then the mean of the picked is (.5, 0) or (-.5, 0), a tie. The largest dot product would have picked row
    0 first.
    """
    assert herding(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), 3).tolist() == [2, 0, 1]


def test_herding_does_not_normalise_the_mean_again():
    """(1, 0), (0, 1) and a zero row: the mean is (1/3, 1/3), at 1/9 + 1/9 from the zero row, at 4/9 +
    1/9 from the others.

    A mean of norm 1, (.707, .707), would be nearer to row 0 (.586) than to the zero row (1).
    """
    assert herding(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), 1).tolist() == [2]


def brute_force_herding(features: np.ndarray, m: int) -> list[int]:
    """Try every remaining row at every step, the definition taken literally."""
    norms = np.sqrt((features**2).sum(axis=1))
    rows = np.array([row / norm if norm else row for row, norm in zip(features, norms, strict=True)])
    picked: list[int] = []
    while len(picked) < min(m, len(rows)):
        distances = {
            i: np.linalg.norm(rows.mean(axis=0) - rows[[*picked, i]].mean(axis=0))
            for i in range(len(rows))
            if i not in picked
        }
        picked.append(min(i for i, d in distances.items() if d < min(distances.values()) + 1e-9))
    return picked


@pytest.mark.parametrize("seed", range(30))
def test_herding_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(0.5, 1, size=(rng.integers(1, 25), rng.integers(1, 6)))
    features[rng.random(len(features)) < 0.2] = 0
    assert herding(features, len(features)).tolist() == brute_force_herding(features, len(features))


@given(st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=1, max_size=12), st.integers(0, 12))
def test_herding_agrees_with_brute_force_where_many_rows_tie(rows, m):
    features = np.array(rows, dtype=float)
    assert herding(features, m).tolist() == brute_force_herding(features, m)


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(0, 50), st.integers(0, 50))
def test_herding_prefix_no_repeats_and_untouched_input(seed, n, m, k):
    features = torch.randn(n, 4, generator=generator(seed))
    before = features.clone()
    picks = herding(features, m)
    assert picks.dtype == torch.int64
    assert len(set(picks.tolist())) == len(picks) == min(m, n)
    assert herding(features, k)[:m].tolist() == picks[:k].tolist()
    assert torch.equal(features, before)


def test_herding_gives_duplicates_in_order_and_takes_numpy_half_and_gradients():
    """Equal rows are ties whatever their place in memory, so each group of copies comes lowest index first."""
    rows = torch.randn(7, 33, generator=generator(3))
    order = herding(rows.repeat(5, 1), 35).tolist()
    for row in range(7):
        copies = [index for index in order if index % 7 == row]
        assert copies == sorted(copies)
    exact = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    for features in (exact.numpy(), exact.half(), exact.bfloat16(), exact.clone().requires_grad_()):
        assert herding(features, 2).tolist() == herding(exact, 2).tolist()


@pytest.mark.parametrize(
    ("features", "m"),
    [
        (torch.tensor([[1.0, float("nan")]]), 1),
        (torch.tensor([[float("inf"), 0.0]]), 1),
        (torch.ones(3), 1),
        (torch.ones(3, 2), -1),
    ],
)
def test_herding_refuses(features, m):
    with pytest.raises(ConfigError, match="herding"):
        herding(features, m)


# Budgets


def test_quotas_by_hand():
    assert quotas(3, size=11) == [4, 4, 3]
    assert quotas(4, size=2) == [1, 1, 0, 0]
    assert quotas(3, per_class=5) == [5, 5, 5]
    assert quotas(0, size=10) == []


@given(st.integers(0, 300), st.integers(1, 40))
def test_quotas_use_the_whole_budget_fairly_and_only_shrink(size, n_classes):
    now = quotas(n_classes, size=size)
    assert sum(now) == size
    assert max(now) - min(now) <= 1
    assert now == sorted(now, reverse=True)
    assert all(later <= q for later, q in zip(quotas(n_classes + 1, size=size), now, strict=False))


@pytest.mark.parametrize("memory", [ClassBalancedMemory, HerdingMemory, RandomMemory, quotas])
def test_total_and_per_class_budget_exclude_each_other(memory):
    first = [5] if memory is quotas else []
    with pytest.raises(ConfigError, match="both 100 in total and 10 per class"):
        memory(*first, size=100, per_class=10)
    with pytest.raises(ConfigError, match="neither"):
        memory(*first)


def test_reservoir_refuses_a_budget_per_class():
    with pytest.raises(ConfigError, match="can't keep 10 samples per class"):
        ReservoirMemory(per_class=10)
    with pytest.raises(ConfigError, match="neither"):
        ReservoirMemory()


@pytest.mark.parametrize("value", [-1, 2.5, True, "10"])
@pytest.mark.parametrize("name", ["size", "per_class"])
def test_budget_must_be_a_count(name, value):
    with pytest.raises(ConfigError, match="accepted: an integer of 0 or more"):
        ClassBalancedMemory(**{name: value})


def test_memories_say_how_they_are_filled():
    assert {name: (m.streaming, m.needs_features) for name, m in MEMORIES.items()} == {
        "reservoir": (True, False),
        "balanced": (True, False),
        "herding": (False, True),
        "herding-argmax": (False, True),
        "random": (False, False),
    }


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["reservoir", "balanced", "random"]),
    budget=st.one_of(
        st.fixed_dictionaries({"size": st.integers(0, 40)}),
        st.fixed_dictionaries({"per_class": st.integers(0, 8)}),
    ),
    batches=st.lists(st.lists(st.integers(10, 17), max_size=15), max_size=12),
)
def test_budget_holds_at_any_instant_and_classes_are_served_fairly(name, budget, batches):
    """Over any sequence of classes; the slots are dealt out in turn, or are a number for each class."""
    if name == "reservoir" and "per_class" in budget:
        budget = {"size": budget["per_class"]}
    memory, rng, n_seen, seen = MEMORIES[name](**budget), generator(), 0, {}
    original = {}
    for batch in batches:
        ids = range(n_seen, n_seen + len(batch))
        offer(memory, list(ids), batch, rng)
        original.update(zip(ids, batch, strict=True))
        n_seen += len(batch)
        for c in batch:
            seen[c] = seen.get(c, 0) + 1

        counts = memory.counts()
        assert list(counts) == list(seen)
        assert sum(counts.values()) == len(memory) == len(memory.ids) == len(set(memory.ids.tolist()))
        assert [original[i] for i in memory.ids.tolist()] == memory.classes.tolist()
        if name == "reservoir":
            assert len(memory) == min(budget["size"], n_seen)
        else:
            samples = list(seen.values())
            fair = (
                dealt(samples, budget["size"]) if "size" in budget else [min(n, budget["per_class"]) for n in samples]
            )
            assert list(counts.values()) == fair
        assert len(memory) <= budget.get("size", budget.get("per_class", 0) * len(seen))


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["herding", "random"]),
    size=st.integers(0, 60),
    tasks=st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_memories_filled_at_task_ends_keep_a_prefix_of_each_class(name, size, tasks):
    """Each task brings new classes of the given sizes; what a class loses is the end of its order."""
    memory, rng, n_seen, n_classes = MEMORIES[name](size), generator(), 0, 0
    before: dict[int, list[int]] = {}
    sizes: list[int] = []
    for task in tasks:
        classes = [n_classes + k for k, n in enumerate(task) for _ in range(n)]
        offer(memory, list(range(n_seen, n_seen + len(classes))), classes, rng)
        n_seen, n_classes, sizes = n_seen + len(classes), n_classes + len(task), sizes + task
        now = {c: memory.ids[memory.classes == c].tolist() for c in range(n_classes)}
        for c, ids in before.items():
            assert now[c] == ids[: len(now[c])]
        assert [len(ids) for ids in now.values()] == dealt(sizes, size)
        before = now


def test_herded_memory_keeps_the_herding_order_of_each_class():
    """Samples of two classes mixed: each class's exemplars are `herding` of its own features, by id."""
    features = torch.randn(40, 5, generator=generator(1))
    classes = torch.arange(40) % 2 + 7
    memory = HerdingMemory(size=9)
    memory.update(torch.arange(100, 140), classes, generator(), features)
    for original, n in ((7, 5), (8, 4)):
        members = (classes == original).nonzero()[:, 0]
        expected = (members[herding(features[members], n)] + 100).tolist()
        assert memory.ids[memory.classes == original].tolist() == expected
    assert memory.counts() == {7: 5, 8: 4}


def test_classes_are_counted_in_order_of_appearance_with_spare_slots_first():
    memory = ClassBalancedMemory(size=8)
    offer(memory, list(range(30)), [9] * 10 + [2] * 10 + [5] * 10, generator())
    assert list(memory.counts().items()) == [(9, 3), (2, 3), (5, 2)]


# Uniformity


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 12), st.lists(st.integers(0, 20), max_size=8), st.integers(0, 10**6))
def test_reservoir_is_algorithm_r(size, batches, seed):
    """The published loop, one sample at a time, on the same random numbers."""
    memory, rng, twin = ReservoirMemory(size), generator(seed), generator(seed)
    slots: list[int] = []
    t = 0
    for n in batches:
        offer(memory, list(range(t, t + n)), [0] * n, rng)
        for u in torch.rand(n, dtype=torch.float64, generator=twin).tolist():
            if t < size:
                slots.append(t)
            elif int(u * (t + 1)) < size:
                slots[int(u * (t + 1))] = t
            t += 1
        assert memory.ids.tolist() == slots


@pytest.mark.parametrize("batch", [7, 30])
def test_reservoir_keeps_every_sample_equally_often(batch):
    kept = np.zeros(30)
    for seed in range(1500):
        memory, rng = ReservoirMemory(6), generator(seed)
        for start in range(0, 30, batch):
            ids = list(range(start, min(start + batch, 30)))
            offer(memory, ids, [i % 3 for i in ids], rng)
        kept[memory.ids.numpy()] += 1
    assert_uniform(kept, 6, limit=58.3)


@pytest.mark.parametrize("name", ["balanced", "random"])
def test_what_is_left_of_a_class_is_a_uniform_sample_of_it(name):
    """Class 0 fills the memory alone and is cut back twice, class 1 comes in parts, class 2 at the end."""
    kept = np.zeros(60)
    for seed in range(1200):
        memory, rng = MEMORIES[name](12), generator(seed)
        offer(memory, list(range(13)), [0] * 13, rng)
        offer(memory, [*range(13, 20), *range(20, 25)], [0] * 7 + [1] * 5, rng)
        offer(memory, list(range(25, 40)), [1] * 15, rng)
        offer(memory, list(range(40, 60)), [2] * 20, rng)
        kept[memory.ids.numpy()] += 1
    for group in kept.reshape(3, 20):
        assert_uniform(group, 4, limit=43.8)


# Sampling


def test_sample_has_no_repeats_until_the_memory_is_used_up():
    memory, rng = ReservoirMemory(10), generator()
    offer(memory, list(range(50, 60)), [0] * 10, rng)
    assert len(set(memory.sample(10, rng).tolist())) == 10
    assert len(set(memory.sample(4, rng).tolist())) == 4
    counts = torch.bincount(memory.sample(37, rng) - 50)
    assert sorted(counts.tolist()) == [3] * 3 + [4] * 7
    assert memory.sample(0, rng).tolist() == []
    assert memory.sample(4, rng).dtype == torch.int64


def test_sample_draws_every_exemplar_equally_often():
    memory, rng = ReservoirMemory(20), generator()
    offer(memory, list(range(20)), [0] * 20, rng)
    drawn = torch.stack([memory.sample(5, rng) for _ in range(1000)]).flatten().bincount(minlength=20)
    assert_uniform(drawn.numpy(), 5, limit=43.8)


@pytest.mark.parametrize("name", list(MEMORIES))
def test_memory_without_budget_stays_empty(name):
    memory, rng = MEMORIES[name](0), generator()
    offer(memory, [3, 4], [0, 1], rng)
    assert len(memory) == 0
    assert memory.counts() == {0: 0, 1: 0}
    assert memory.sample(0, rng).tolist() == []
    with pytest.raises(ConfigError, match="empty"):
        memory.sample(1, rng)


# State


@pytest.mark.parametrize("name", list(MEMORIES))
def test_state_passes_the_safe_loader_and_goes_on_as_before(name):
    memory, rng = MEMORIES[name](7), generator()
    offer(memory, list(range(20)), [4] * 10 + [1] * 10, rng)
    file = io.BytesIO()
    torch.save(memory, file)
    file.seek(0)
    with torch.serialization.safe_globals(list(MEMORIES.values())):
        loaded = torch.load(file, weights_only=True)
    assert type(loaded) is type(memory)
    for each in (memory, loaded):
        offer(each, list(range(20, 40)), [2] * 10 + [8] * 10, generator(5))
    assert loaded.ids.tolist() == memory.ids.tolist()
    assert loaded.counts() == memory.counts()


@pytest.mark.parametrize("name", list(MEMORIES))
def test_same_generator_gives_the_same_memory(name):
    first, second, other = (MEMORIES[name](5) for _ in range(3))
    for memory, seed in ((first, 0), (second, 0), (other, 1)):
        offer(memory, list(range(100)), [0] * 100, generator(seed))
    assert first.ids.tolist() == second.ids.tolist() != other.ids.tolist()


@pytest.mark.parametrize(
    ("ids", "classes", "features", "message"),
    [
        (torch.arange(2), torch.arange(3), torch.ones(2, 2), "int64"),
        (torch.ones(2), torch.arange(2), torch.ones(2, 2), "int64"),
        (torch.ones(1, 2).long(), torch.ones(1, 2).long(), torch.ones(1, 2), "int64"),
        (torch.arange(2), torch.tensor([1, 2]), None, "none of features"),
        (torch.arange(2), torch.tensor([1, 2]), torch.ones(3, 2), "3 rows of features"),
        (torch.arange(2), torch.tensor([1, 2]), torch.tensor([[1.0], [float("nan")]]), "NaN"),
        (torch.arange(2), torch.tensor([1, 0]), torch.ones(2, 2), "class 0 was offered"),
    ],
)
def test_refused_update_leaves_the_memory_as_it_was(ids, classes, features, message):
    memory, rng = HerdingMemory(4), generator()
    offer(memory, list(range(10, 20)), [0] * 10, rng)
    before = memory.ids.tolist()
    with pytest.raises(ConfigError, match=message):
        memory.update(ids, classes, rng, features)
    assert memory.ids.tolist() == before
    assert memory.seen == {0: 10}
