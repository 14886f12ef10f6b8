"""Samples that are no images: vectors and arrays of floats, as sensors and embeddings give them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import clbench
from clbench.avalanche.scenarios import to_benchmark
from clbench.data.batches import Pipeline
from clbench.models import from_module
from clbench.running.resolve import resolve
from clbench.scenarios import dataset_from_arrays, split

FAST: dict[str, Any] = {"model": "mlp:32", "epochs": 5, "batch_size": 16, "lr": 0.01, "optimizer": "adam", "threads": 1}


def digits(shape: tuple[int, ...] = (64,), dtype: Any = np.float32) -> dict[str, Any]:
    """Return scikit-learn's digits, 8 x 8 numbers of 0 to 16 each, in an order of their own."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].reshape(-1, *shape).astype(dtype), labels[order]
    return {"x_train": images[:800], "y_train": labels[:800], "x_test": images[1400:], "y_test": labels[1400:]}


def scenario(shape: tuple[int, ...] = (64,), dtype: Any = np.float32) -> Any:
    return split(dataset_from_arrays(**digits(shape, dtype)), tasks=5)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (4, 4, 4), (2, 2, 4, 4)])
@pytest.mark.parametrize("normalize", ["channel", "none", "pixel-mean"])
def test_samples_are_normalised_by_their_first_axis(shape: tuple[int, ...], normalize: str) -> None:
    """The expected values come from NumPy, in double precision and from all training samples at once."""
    made = scenario(shape)
    config = resolve(made, "naive", FAST | {"normalize": normalize})
    ids = torch.tensor([5, 700, 31])
    batch = Pipeline(made, config, torch.device("cpu")).batch(ids, slice(0, 2), None)
    samples = digits(shape, np.float64)["x_train"]
    axes = (0, *range(2, samples.ndim))
    mean, std = samples.mean(axes, keepdims=True), samples.std(axes, keepdims=True)
    expected = {
        "channel": (samples - mean) / np.where(std == 0, 1, std),
        "none": samples,
        "pixel-mean": samples - samples.mean(0, keepdims=True),
    }[normalize]
    np.testing.assert_allclose(batch.images.numpy(), expected[ids], rtol=1e-5, atol=1e-5)
    assert torch.equal(batch.originals, torch.from_numpy(samples[ids]).float())


def test_digits_as_vectors_are_learnt_and_forgotten(tmp_path: Path) -> None:
    """A nearest-mean classifier of all ten classes has about 90 % on these digits; fine-tuning keeps the last two."""
    np.savez(path := tmp_path / "digits.npz", **digits(dtype=np.float64))
    options = FAST | {"tasks": 5, "threads": 1}
    naive, joint, replay = (
        clbench.run(str(path), name, out=tmp_path / name, **options, **({"memory_size": 100} if name == "er" else {}))
        for name in ("naive", "joint", "er")
    )
    assert naive.metrics["average_accuracy"] < 0.35
    assert joint.metrics["average_accuracy"] > 0.85
    assert naive.metrics["average_accuracy"] + 0.2 < replay.metrics["average_accuracy"]
    # An exemplar of 64 numbers of 4 bytes.
    assert replay.record["ledger"][-1]["bytes"]["exemplars"] == 100 * 64 * 4


class Waves(torch.nn.Module):
    """A network for signals of several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 8, 3)
        self.fc = torch.nn.Linear(8, 10)

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.fc(self.conv(signals).relu().mean(-1))
        return answers


def test_a_network_of_ones_own_takes_signals(tmp_path: Path) -> None:
    options = FAST | {"model": from_module(Waves, head="fc")}
    result = clbench.run(scenario((4, 16)), "naive", out=tmp_path / "run", **options)
    assert result.status == "done"
    assert np.diag(result.task_aware_accuracy).mean() > 0.8


@pytest.mark.parametrize(
    ("strategy", "options", "words"),
    [
        ("naive", {"model": "conv"}, ["'conv'", "[64]", "mlp"]),
        ("naive", {"model": "resnet32"}, ["'resnet32'", "[64]"]),
        ("naive", {"model": "efficientnet-lite0"}, ["'efficientnet-lite0'", "floats"]),
        ("naive", {"augment": "crop-flip"}, ["augment=crop-flip", "[64]", "none is accepted"]),
        ("dgr", {}, ["dgr", "floats"]),
        ("icarl[flip_means=true]", {"memory_size": 20}, ["flip_means", "floats"]),
    ],
)
def test_whatever_needs_images_refuses_other_samples(
    strategy: str, options: dict[str, Any], words: list[str], tmp_path: Path, refused: Any
) -> None:
    with refused(*words):
        clbench.run(scenario(), strategy, out=tmp_path / "run", **(FAST | options))


def test_what_is_for_bytes_refuses_floats_in_the_shape_of_images(tmp_path: Path, refused: Any) -> None:
    samples, labels = np.random.default_rng(0).random((20, 3, 8, 8)), np.arange(20) % 4
    made = split(dataset_from_arrays(samples, labels, samples + 1, labels), tasks=2)
    for options, word in (
        ({"model": "efficientnet-lite0"}, "efficientnet-lite0"),
        ({"augment": "randaugment"}, "augment"),
    ):
        with refused(word, "images of bytes", "floats"):
            clbench.run(made, "naive", out=tmp_path / "run", **(FAST | options))


def test_a_benchmark_of_avalanche_has_images(refused: Any) -> None:
    with refused("floats", "images of bytes"):
        to_benchmark(scenario())
