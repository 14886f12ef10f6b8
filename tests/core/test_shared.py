"""A batch that goes through the network in parts has the loss and the gradient of the whole batch.

The expected values are those of the same runs with whole batches.
"""

import shutil
from pathlib import Path
from typing import Any

import one_of_many
import pytest
import torch
from torch import Tensor, nn

import clbench
from clbench.config.run import make_config
from clbench.learning.shared import Shared
from clbench.models.network import Network
from clbench.running.packing import unpack
from clbench.support.processes import Processes

with_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ here")


class Dropping(one_of_many.Double):
    """With dropout before and behind the second layer."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.backbone.insert(1, nn.Dropout(0.4))
        self.backbone.append(nn.Dropout1d(0.2))

    def blocks(self) -> list[nn.Module]:
        return [self.backbone[0], self.backbone[2]]


class Pairs(clbench.Strategy):
    """A loss that is no mean over samples: every pair of the batch counts, and the number of its classes."""

    traits = clbench.Traits(family="reference")

    def loss(self, batch: clbench.Batch) -> Tensor:
        features = self.model.features(batch.images)
        pairs = torch.pdist(features).square().mean() / len(batch.labels.unique())
        return self.classification_loss(self.model.head(features), batch) - 0.01 * pairs


def trained(out: Path, strategy: Any, model: Any, **options: Any) -> tuple[clbench.Result, dict[str, Tensor]]:
    asked: dict[str, Any] = {**one_of_many.OPTIONS, "tasks": 2, "epochs": 2, **options}
    result = clbench.run("split-mnist-5k", strategy, model=model, out=out, **asked)
    return result, unpack((out / "model.pt").read_bytes(), clbench.Strategy)


@pytest.mark.parametrize(
    ("strategy", "model", "options"),
    [
        ("naive", Dropping, {"batch_size": 11}),
        (Pairs, one_of_many.Double, {}),
        ("lwf", Dropping, {"augment": "crop-flip", "on_nan": "skip"}),
        ("agem", one_of_many.Double, {"memory_size": 12}),
        ("mir", one_of_many.Double, {"memory_size": 30}),
        ("ewc", one_of_many.Double, {"train": "last-1"}),
        pytest.param("lwf", one_of_many.Double, {"compile": "default"}, marks=[with_compiler, pytest.mark.slow]),
        ("er-aml", one_of_many.Double, {"memory_size": 12}),
        ("gsa", one_of_many.Double, {"memory_size": 12}),
    ],
    ids=str,
)
def test_slices_have_the_numbers_of_whole_batches(
    strategy: Any, model: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """Losses and weights to 1e-10 in double precision, in slices of unequal sizes, dropout included."""
    (whole, known), (sliced, found) = (
        trained(tmp_path / str(n), strategy, model, accumulate=n, **options) for n in (1, 3)
    )
    assert not {"not-compiled"} & {warning["rule"] for warning in sliced.record["warnings"]}
    for here, there in zip(whole.record["training"], sliced.record["training"], strict=True):
        assert there["losses"] == pytest.approx(here["losses"], rel=1e-10, abs=1e-10)
    for name, value in known.items():
        assert float((found[name] - value).abs().max()) < 1e-10
    assert sliced.record["accuracy"] == whole.record["accuracy"]


def test_slices_hold_the_activations_of_one_at_a_time() -> None:
    """Of 12 images in 4 slices the largest batch that a layer sees has 3, forwards and once more backwards."""
    network, seen = one_of_many.Double((1, 28, 28)), []
    network.backbone[1].insert(0, Spy(seen))
    with Shared(Processes(), 4).within(one_of_many.Double):
        network.features(torch.rand(12, 1, 28, 28)).sum().backward()
    assert seen == [3] * 8
    seen.clear()
    with Shared(Processes(), 4).within(one_of_many.Double), torch.no_grad():
        network.features(torch.rand(12, 1, 28, 28))
    assert seen == [12]


class Spy(nn.Module):
    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x


def test_a_hook_sees_the_whole_batch_and_the_class_is_as_before_at_the_end() -> None:
    network, seen = one_of_many.Double((1, 28, 28)), []
    network.backbone[0].register_forward_hook(lambda _module, _given, output: seen.append(len(output)))
    assert "features" not in vars(one_of_many.Double)
    with Shared(Processes(), 4).within(one_of_many.Double):
        assert "features" in vars(one_of_many.Double)
        network.features(torch.rand(12, 1, 28, 28))
    assert seen == [12]
    assert "features" not in vars(one_of_many.Double)
    own = Network.features
    with Shared(Processes(), 2).within(Network):
        assert Network.features is not own
    assert Network.features is own


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 6, 7, 8, 128])
def test_the_parts_of_a_batch_are_contiguous_and_alike(n: int, size: int) -> None:
    parts = [range(n)[Processes(rank, size).part(n)] for rank in range(size)]
    assert [index for part in parts for index in part] == list(range(n))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_processes_are_no_part_of_an_identity_and_one_slice_is_none() -> None:
    asked = {"scenario": "split-mnist-5k", "strategy": "naive"}
    identity = make_config(asked).identity()
    assert make_config({**asked, "processes": 4, "accumulate": 1}).identity() == identity
    assert make_config({**asked, "accumulate": 2}).identity() != identity


class Alpha(one_of_many.Double):
    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.backbone.append(nn.AlphaDropout(0.5))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"processes": 2, "model": Alpha}, ("processes=2", "AlphaDropout", "Alpha")),
        ({"accumulate": 2, "model": "conv"}, ("accumulate=2", "BatchNorm2d", "conv")),
        ({"accumulate": 2, "model": "resnet32"}, ("accumulate=2", "BatchNorm2d", "resnet32")),
        ({"processes": 2, "compile": "reduce-overhead"}, ("processes=2", "reduce-overhead", "compile=default or none")),
        ({"processes": 2, "compile": "default", "model": "conv"}, ("processes=2", "BatchNorm2d", "compile=none")),
        ({"accumulate": 3, "compile": "default", "model": Dropping}, ("accumulate=3", "Dropout", "compile=none")),
        ({"processes": 0}, ("processes", "0")),
        ({"processes": 3000}, ("processes=3000", "cores", "at most")),
        ({"accumulate": 1.5}, ("accumulate", "1.5")),
        pytest.param(
            {"strategy": "avalanche:Naive", "processes": 2},
            ("avalanche:Naive", "processes=2"),
            marks=pytest.mark.slow,  # Avalanche takes seconds to import
        ),
    ],
    ids=str,
)
def test_what_does_not_go_in_parts_is_refused_by_name(
    asked: dict[str, Any], words: tuple[str, ...], refused: Any, tmp_path: Path
) -> None:
    if "avalanche" in str(asked):
        pytest.importorskip("avalanche")
    with refused(*words):
        clbench.run("split-mnist-5k", asked.pop("strategy", "naive"), out=tmp_path / "run", limit=5, epochs=1, **asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "asked", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, {}, ("RANK=2", "WORLD_SIZE=2")),
        ({"RANK": "one", "WORLD_SIZE": "2"}, {}, ("RANK=one",)),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"processes": 3}, ("processes=3", "2")),
    ],
    ids=str,
)
def test_a_group_that_can_not_be_is_refused(
    environment: dict[str, str],
    asked: dict[str, Any],
    words: tuple[str, ...],
    refused: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", **environment}.items():
        monkeypatch.setenv(name, value)
    with refused(*words):
        clbench.run("split-mnist-5k", "naive", out=tmp_path / "run", limit=5, epochs=1, **asked)


def test_a_group_for_one_run_is_not_asked_for_many(
    refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with refused("2 processes", "clbench run"):
        clbench.compare("split-mnist-5k", ["naive"], seeds=2, out=tmp_path / "runs", limit=5, epochs=1)


def test_seeds_that_train_together_are_not_shared(refused: Any, tmp_path: Path) -> None:
    for name in ("processes", "accumulate"):
        with refused("seeds-together", f"{name}=2"):
            options: dict[str, Any] = {name: 2, "seeds": 2, "limit": 5, "epochs": 1, "seeds_together": True}
            clbench.compare("split-mnist-5k", ["naive"], references=False, out=tmp_path / "runs", **options)
