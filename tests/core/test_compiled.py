"""compile: the network compiled for training steps is the same network, and a warning says if nothing compiled."""

import copy
import inspect
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shared import network_of

import clbench
from clbench import ConfigError
from clbench.cli import VERBS, main
from clbench.config.registry import entry_point_names
from clbench.learning.compiled import CompiledFeatures
from clbench.models import build_model
from clbench.models.weights import save_backbone
from clbench.running.resolve import strategy_class

with_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ here")
FIXED: dict[str, Any] = {"tasks": 2, "limit": 20, "threads": 1, "batch_size": 64, "lr": 0.01, "optimizer": "sgd"}


@pytest.fixture
def nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
        def fails(images: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand a page more")

        return fails

    monkeypatch.setattr(torch, "compile", compile_nothing)


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
    """torch gives up on a function after `recompile_limit` versions, and each network is a version."""
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


def test_what_torch_logs_while_it_compiles_is_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages of forward and backward passes are hidden; requested logs, and messages before and after, are not."""
    log = logging.getLogger("torch.utils.cpp_extension")
    before = {name: list(logger.filters) for name, logger in _torch_handlers().items()}

    def logs(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
        def compiled(images: Any) -> Any:
            features = function(images)
            for told in (log.warning, log.error):
                told("forwards")
                features.register_hook(lambda _, told=told: told("backwards"))
            log.log(logging.INFO, "asked for")
            return features

        return compiled

    monkeypatch.setattr(torch, "compile", logs)
    monkeypatch.setattr(log, "level", logging.INFO)
    clbench.run("split-mnist-5k", "naive", out=tmp_path, model="mlp:8", epochs=1, compile="default", **FIXED)
    err = capsys.readouterr().err
    assert "asked for" in err
    assert "wards" not in err
    assert {name: handler.filters for name, handler in _torch_handlers().items()} == before
    log.warning("afterwards")
    assert "afterwards" in capsys.readouterr().err


def _torch_handlers() -> dict[str, logging.Handler]:
    return {
        f"{name} {i}": handler
        for name in logging.root.manager.loggerDict
        if name.startswith("torch")
        for i, handler in enumerate(logging.getLogger(name).handlers)
    }


@pytest.mark.usefixtures("nothing_compiles")
def test_a_network_that_can_not_be_compiled_trains_as_it_is_and_says_so(tmp_path: Path) -> None:
    plain = clbench.run("split-mnist-5k", "naive", out=tmp_path / "plain", model="mlp:8", epochs=1, **FIXED)
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
        ("avalanche:Naive", {"head": "full", "loss_outputs": "all"}, ["none"]),  # a loop of its own
        ("hat", {"setting": "task"}, ["compile=none"]),
        ("pnn", {"setting": "task"}, ["through the features", "compile=none"]),
    ],
)
def test_where_there_is_nothing_to_compile_it_is_refused(
    strategy: str, options: dict[str, Any], words: list[str], tmp_path: Path, refused: Callable[..., Any]
) -> None:
    given = {"model": "mlp:8", "epochs": 1, "compile": "default"} | FIXED | options
    with refused("compile=default", strategy, *words):
        clbench.run("split-mnist-5k", strategy, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    clbench.run("split-mnist-5k", "naive", out=folder / "run", model="mlp:8", epochs=1, **FIXED)
    save_backbone(folder / "run" / "model.pt", folder / "w.pt")
    return folder / "w.pt"


def page_on_training() -> str:
    return " ".join((Path(__file__).parents[2] / "docs" / "training.md").read_text().split())


@pytest.mark.parametrize("strategy", sorted(entry_point_names("clbench.strategies")))
@pytest.mark.usefixtures("nothing_compiles")
def test_every_strategy_compiles_or_is_refused_before_training(strategy: str, backbone: Path, tmp_path: Path) -> None:
    """With and without given weights; the page on training names exactly those that are refused."""
    kind = strategy_class(strategy)
    options: dict[str, Any] = {
        "setting": kind.traits.settings[0],
        "tasks": 2,
        "limit": 5,
        "threads": 1,
        "batch_size": 5,
    }
    options |= {"epochs": 1, "lr": 0.01, "optimizer": "sgd", "compile": "default"} | network_of(strategy, "mlp:8")
    refused = {}
    # The weights given are those of mlp:8; RanDumb reads pixels and refuses weights.
    given = [] if kind.traits.needs_transformer or strategy == "randumb" else [("given", str(backbone))]
    for name, weights in [("plain", None), *given]:
        try:
            result = clbench.run("split-mnist-5k", strategy, out=tmp_path / name, weights=weights, **options)
        except ConfigError as error:
            refused[name] = str(error)
        else:
            assert [w["rule"] for w in result.record["warnings"]].count("not-compiled") == 1
    assert all("compile=default" in words and not (tmp_path / name).exists() for name, words in refused.items())
    page = page_on_training()
    listed = page[page.index("`--compile` refuses strategies") : page.index("On two CPU cores compiling")]
    assert ("plain" in refused) == (f"`{strategy}`" in listed[: listed.index("--weights")])
    assert bool(refused) == (f"`{strategy}`" in listed)


@pytest.mark.usefixtures("nothing_compiles")
@pytest.mark.parametrize(
    "line",
    [
        "run split-mnist-5k naive --out run",
        "run split-mnist-5k naive --overfit 5",
        "plan split-mnist-5k naive",
        "pretrain split-mnist-5k --classes 0,1 --out w.pt",
        "tune split-mnist-5k ewc --trials 1 --first-tasks 2",
        "tune split-mnist-5k ewc --protocol continual --space strength=log:1:2",
    ],
)
def test_every_verb_that_trains_tells_that_nothing_was_compiled(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fixed = "--model mlp:8 --limit 10 --threads 1 --epochs 1 --batch-size 10 --lr 0.1 --compile default"
    for more in ("", " --json"):
        with pytest.raises(SystemExit) as ended:
            main(f"{line} {fixed}{more}".split())
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        assert out.count("could not compile the network") == 1
        if more:
            assert '"not-compiled"' in out


def test_a_cross_check_lists_no_option_that_it_always_refuses() -> None:
    listed = {p.name for p in inspect.signature(VERBS["crosscheck"]).parameters.values()}
    assert "epochs" in listed
    assert not {"compile", "clip", "schedule", "precision", "iterations"} & listed


class Layerwise(clbench.Strategy):
    traits = clbench.Traits(family="reference")

    def loss(self, batch: Any) -> Any:
        return self.classification_loss(self.model.head(self.model.backbone(batch.images)), batch)


class Declared(Layerwise):
    traits = clbench.Traits(family="reference", through_features=False)


@pytest.mark.parametrize("kind", [Layerwise, Declared])
def test_a_strategy_that_goes_its_own_way_through_the_network_is_told(
    kind: type[clbench.Strategy], tmp_path: Path, refused: Callable[..., Any]
) -> None:
    with refused("compile=default", kind.__name__, "through the features", "compile=none"):
        clbench.run("split-mnist-5k", kind, out=tmp_path, model="mlp:8", epochs=1, compile="default", **FIXED)
