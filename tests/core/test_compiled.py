"""compile: the network compiled for training steps is the same network, and what can't be compiled is told."""

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clbench
from clbench.compiled import CompiledFeatures
from clbench.models import build_model
from clbench.strategy import Stage

with_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ here")
FIXED: dict[str, Any] = {"tasks": 2, "limit": 20, "threads": 1, "batch_size": 64, "lr": 0.01, "optimizer": "sgd"}


def compiled_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def test_features_are_the_compiled_ones_within_and_the_models_own_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, mode: lambda images: function(images) + 1)
    model, images = build_model("mlp:8", (1, 4, 4), 0), torch.rand(3, 1, 4, 4)
    features = CompiledFeatures("default")
    plain = model.features(images)
    with features.within(model):
        assert torch.equal(model.features(images), plain + 1)
    assert torch.equal(model.features(images), plain)
    assert torch.equal(copy.deepcopy(model).features(images), plain)
    assert pickle.loads(pickle.dumps(model)).state_dict().keys() == model.state_dict().keys()
    other = build_model("mlp:8", (1, 4, 4), 1)
    with features.within(other):
        assert torch.equal(other.features(images), other.backbone(images) + 1)
    assert features.calls == 2


@with_compiler
@pytest.mark.slow
def test_what_torch_does_not_compile_any_more_is_told() -> None:
    """torch gives up on a function after `recompile_limit` versions; each network is one of its own."""
    images = torch.rand(3, 1, 4, 4)
    with torch._dynamo.config.patch(recompile_limit=1):
        features = CompiledFeatures("default")
        for width in (4, 5, 6):
            before, model = compiled_graphs(), build_model(f"mlp:{width}", (1, 4, 4), 0)
            with features.within(model):
                model.features(images)
            assert compiled_graphs() == before + 1
        assert features.problem is None
        with features.within(model):
            again = model.features(images.double().float().requires_grad_())
        assert compiled_graphs() == before + 1
        assert torch.equal(again, model.features(images))
    assert features.problem is not None
    assert "recompile_limit" in features.problem


@with_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(("strategy", "model"), [("naive", "conv:4-8"), ("lwf", "mlp:20-10"), ("ewc", "mlp:20-10")])
def test_losses_are_those_of_the_network_as_it_is(strategy: str, model: str, tmp_path: Path) -> None:
    """In float64 to 1e-8 over 20 steps; batch normalisation, a teacher and Fisher information are among them."""
    before = compiled_graphs()
    plain, compiled = (
        clbench.run("split-mnist-5k", strategy, out=tmp_path / mode, compile=mode, model=model, epochs=10, **FIXED)
        for mode in ("none", "default")
    )
    assert compiled_graphs() > before
    assert compiled.record["warnings"] == plain.record["warnings"]
    steps = [[epoch["losses"] for epoch in result.record["training"]] for result in (plain, compiled)]
    assert len(steps[0]) == 20
    for one, other in zip(*steps, strict=True):
        assert other == pytest.approx(one, rel=1e-8)


def test_a_network_that_can_not_be_compiled_trains_as_it_is_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_nothing(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
        def fails(images: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand a page more")

        return fails

    plain = clbench.run("split-mnist-5k", "naive", out=tmp_path / "plain", model="mlp:8", epochs=1, **FIXED)
    monkeypatch.setattr(torch, "compile", compile_nothing)
    result = clbench.run(
        "split-mnist-5k", "naive", out=tmp_path / "c", model="mlp:8", epochs=1, compile="reduce-overhead", **FIXED
    )
    (told,) = [w["text"] for w in result.record["warnings"] if w["rule"] == "not-compiled"]
    assert told.endswith("compile=reduce-overhead, so it trained as it is: RuntimeError: no C++ compiler")
    assert [e["losses"] for e in result.record["training"]] == [e["losses"] for e in plain.record["training"]]


@pytest.mark.parametrize(
    ("strategy", "options", "words"),
    [
        ("agem", {"memory_size": 20}, ["gradients"]),  # after_backward
        ("si", {}, ["weights within a step"]),  # after_step
        ("avalanche:Naive", {"head": "full", "loss_outputs": "all"}, ["none"]),  # another's loop
        ("hat", {"setting": "task"}, ["compile=none"]),
    ],
)
def test_where_there_is_nothing_to_compile_it_is_refused(
    strategy: str, options: dict[str, Any], words: list[str], tmp_path: Path, refused: Callable[..., Any]
) -> None:
    given = {"model": "mlp:8", "epochs": 1, "compile": "default"} | FIXED | options
    with refused("compile=default", strategy, *words):
        clbench.run("split-mnist-5k", strategy, out=tmp_path, **given)


class Layerwise(clbench.Strategy):
    family = "reference"

    def loss(self, batch: Any) -> Any:
        return self.classification_loss(self.model.head(self.model.backbone(batch.images)), batch)


class OfItsOwn(clbench.Strategy):
    family = "reference"

    def stages(self, task: Any) -> list[Stage]:
        return [Stage(task.train, run=lambda watch: [])]


@pytest.mark.parametrize("kind", [Layerwise, OfItsOwn])
def test_a_strategy_that_goes_its_own_way_through_the_network_is_told(
    kind: type[clbench.Strategy], tmp_path: Path, refused: Callable[..., Any]
) -> None:
    with refused("compile=default", kind.__name__, "through the features", "compile=none"):
        clbench.run("split-mnist-5k", kind, out=tmp_path, model="mlp:8", epochs=1, compile="default", **FIXED)
