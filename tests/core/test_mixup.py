"""Mixup: images in pairs, their losses by the same shares, and a refusal by whoever takes one label for an image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clbench
from clbench.config.errors import ConfigError
from clbench.data.batches import Batch, Pipeline
from clbench.learning.strategy import Context, Progress
from clbench.running.resolve import prepare, resolve, strategy_class
from clbench.scenarios import dataset_from_arrays, split

FAST: dict[str, Any] = {"limit": 8, "epochs": 2, "batch_size": 8, "model": "mlp:8", "threads": 1, "tasks": 2}


def pipeline(**fields: Any) -> Pipeline:
    """Return the pipeline of ten images, each of a class of its own, in two tasks."""
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 5, 5), dtype=np.uint8)
    labels = np.arange(10)
    scenario = split(dataset_from_arrays(images, labels, images, labels, name="ten"), tasks=2)
    return Pipeline(scenario, resolve(scenario, "naive", {"model": "mlp:4", **fields}), torch.device("cpu"))


IDS = torch.tensor([3, 8, 0, 5, 9, 1])


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_each_image_is_mixed_with_the_one_whose_label_it_gets(augment: str) -> None:
    """Every image has a label of its own, so a partner's label says which image it is."""
    mixing, plain = (pipeline(mixup=value, augment=augment) for value in (0.7, 0.0))
    for step in range(20):
        keys = (0, "train", 0, step)
        batch, alone = mixing.batch(IDS, slice(0, 10), keys), plain.batch(IDS, slice(0, 10), keys)
        assert alone.partners is None
        assert batch.partners is not None
        assert torch.equal(batch.labels, alone.labels)
        others = [alone.labels.tolist().index(label) for label in batch.partners.labels.tolist()]
        assert sorted(others) == [*range(6)]
        share = batch.partners.share
        torch.testing.assert_close(batch.images, share * alone.images + (1 - share) * alone.images[others])
        again = mixing.batch(IDS, slice(0, 10), keys)
        assert torch.equal(again.images, batch.images)
    # Images that are looked at without training on them stay as they are.
    assert mixing.batch(IDS, slice(0, 10), None).partners is None


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_those_of_the_beta_distribution(alpha: float) -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); the bounds are four standard errors."""
    made = pipeline(mixup=alpha)
    batches = [made.batch(IDS[:2], slice(0, 10), (0, "train", 0, step)) for step in range(1500)]
    shares = np.array([batch.partners.share for batch in batches if batch.partners is not None])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * (variance / 1500) ** 0.5
    spread = (shares - 0.5) ** 2
    assert abs(spread.mean() - variance) < 4 * spread.std() / 1500**0.5


def loss_of(batch: Batch, logits: Tensor, smoothing: float, outputs: slice | None = None) -> Tensor:
    config, scenario = prepare(resolve("split-mnist-5k", "naive", {"limit": 2, "label_smoothing": smoothing}))
    strategy: Any = strategy_class("naive")()
    strategy._context = Context(config, scenario, None, torch.device("cpu"), Progress())  # type: ignore[arg-type]
    found: Tensor = strategy.classification_loss(logits, batch, outputs)
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("active", [slice(0, 10), slice(0, 12)])
def test_the_loss_is_that_of_torch_on_mixed_targets(active: slice, smoothing: float) -> None:
    """torch's cross-entropy takes the mixed targets themselves, as torchvision's MixUp makes them."""
    batch = pipeline(mixup=1.0).batch(IDS, active, (0, "train", 0, 1))
    assert batch.partners is not None
    logits = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    share, n = batch.partners.share, active.stop
    targets = share * F.one_hot(batch.labels, n) + (1 - share) * F.one_hot(batch.partners.labels, n)
    expected = F.cross_entropy(logits[:, active], targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(batch, logits, smoothing), expected)


def test_each_label_competes_where_its_own_image_does() -> None:
    """Images of the two tasks compete among five outputs each."""
    active = torch.zeros(6, 10, dtype=torch.bool)
    for row, label in enumerate(IDS.tolist()):
        active[row, slice(0, 5) if label < 5 else slice(5, 10)] = True
    batch = pipeline(mixup=1.0).batch(IDS, active, (0, "train", 0, 2))
    assert batch.partners is not None
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    share, other = batch.partners.share, batch.partners.labels
    expected = torch.tensor(0.0)
    for row in range(6):
        for label, weight in ((int(batch.labels[row]), share), (int(other[row]), 1 - share)):
            first = label // 5 * 5
            expected += weight * -logits[row, first : first + 5].log_softmax(0)[label - first] / 6
    torch.testing.assert_close(loss_of(batch, logits, 0.0), expected)


MIXING = (
    *("naive", "l2", "ewc", "si", "mas", "rwalk", "er", "agem", "gem", "wa", "joint", "cumulative"),
    *("cbp", "shrink-perturb", "l2-init"),
)


@pytest.mark.parametrize("name", MIXING)
def test_strategies_train_on_mixed_images(name: str, tmp_path: Path) -> None:
    memory = {"memory_size": 10} if strategy_class(name).traits.needs_memory else {}
    results = [
        clbench.run("split-mnist-5k", name, **FAST, **memory, mixup=alpha, out=tmp_path / f"{alpha}", quiet=True)
        for alpha in (0.0, 0.4)
    ]
    losses = [[epoch["losses"]["classification"] for epoch in result.record["training"]] for result in results]
    assert all(a != b for a, b in zip(*losses, strict=True))
    assert results[0].record["identity"] != results[1].record["identity"]


def test_everyone_else_refuses_by_name() -> None:
    from clbench.config.registry import entry_points
    from clbench.running.check import check

    names = [entry.name for entry in entry_points("clbench.strategies")]
    refusing = [name for name in names if not strategy_class(name).traits.mixes]
    assert {"icarl", "der", "derpp", "er-ace", "mir", "lucir", "podnet", "hat", "dgr"} <= {*refusing}
    assert set(MIXING) == {*names} - {*refusing}
    assert {"naive", "ewc", "er", "joint"} <= set(MIXING)  # which the refusal names
    for name in ("icarl", "der", "mir", "er-ace"):
        memory = {"memory_size": 10} if strategy_class(name).traits.needs_memory else {}
        config, scenario = prepare(resolve("split-mnist-5k", name, {"limit": 2, "mixup": 0.2, **memory}))
        with pytest.raises(ConfigError, match=f"mixup=0.2 gives an image two labels, and {name} takes one; mixup=0 is"):
            check(config, scenario, strategy_class(name)())


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("lwf", {}, "mixup=0.2 gives an image two labels, and lwf takes one"),
        ("naive", {"batch_size": 1}, "batch_size=1 gives it one"),
        ("naive", {"mixup": -1}, "mixup"),
        ("naive", {"mixup": float("nan")}, "mixup"),
        ("naive", {"mixup": "much"}, "mixup"),
    ],
)
def test_what_can_not_be_mixed_is_refused(name: str, fields: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        clbench.run("split-mnist-5k", name, **(FAST | {"mixup": 0.2} | fields), out=tmp_path / "run")


def test_kept_features_are_not_used_for_mixed_images() -> None:
    strategy: Any = strategy_class("naive")()
    for alpha, kept in ((0.0, True), (0.2, False)):
        assert strategy.frozen_features(resolve("split-mnist-5k", "naive", {"train": "head", "mixup": alpha})) is kept
