"""The conformance kit for networks: ours pass, and a network that breaks a promise fails the check of that promise."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clbench
from clbench.cli import main
from clbench.models import Network, from_module
from clbench.tools.model_conformance import CHECKS

QUICK = ["features", "blocks", "gradients", "head", "state", "seed", "learning"]


class Sound(Network):
    """Two linear layers."""

    def __init__(self, image_shape: tuple[int, int, int], *, width: int = 8) -> None:
        first = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), width), nn.ReLU())
        super().__init__([first, nn.Sequential(nn.Linear(width, width), nn.ReLU())], feature_dim=width)


def statuses(model: Any, **options: Any) -> dict[str, str]:
    return {found.check: found.status for found in clbench.testing.check_model(model, **options)}


def test_a_sound_network_passes_every_check() -> None:
    assert statuses(Sound) == dict.fromkeys(CHECKS, "passed")


@pytest.mark.parametrize("model", ["conv:8-16", "mlp:16[batch_norm=true,dropout=0.2]", "resnet32", "mlp:16-8"])
def test_networks_of_clbench_pass(model: str) -> None:
    assert statuses(model, checks=QUICK) == dict.fromkeys(QUICK, "passed")


def test_a_plain_module_passes_for_the_first_shape_that_it_takes() -> None:
    def colour() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15 * 15, 10))

    found = statuses(from_module(colour, head="3"))
    assert found == dict.fromkeys(CHECKS, "passed") | dict.fromkeys(("determinism", "resuming"), "not applicable")


class Beside(Sound):
    def features(self, images: Tensor) -> Tensor:
        found = super().features(images)
        return found - found.mean(0)


class Drawing(Sound):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images) + torch.rand(1)


class Constant(Sound):
    def features(self, images: Tensor) -> Tensor:
        return super().features(0 * images)


class Wide(Sound):
    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.feature_dim = 9


class Forgotten(Sound):
    def blocks(self) -> list[nn.Module]:
        return list(self.backbone)[:1]


class WithHead(Sound):
    def blocks(self) -> list[nn.Module]:
        return [*self.backbone, self.head]


class Twice(Sound):
    def blocks(self) -> list[nn.Module]:
        return [*self.backbone, self.backbone[0]]


class Idle(Sound):
    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.idle = nn.Parameter(torch.zeros(3))


class Detached(Sound):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images).detach()


class OwnOutputs(Sound):
    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


class Counting(Sound):
    """A number beside its parameters decides its features."""

    scale = 1.0

    def features(self, images: Tensor) -> Tensor:
        self.scale += 0.5 * self.training
        return super().features(images) * self.scale


class Seeded(Sound):
    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        torch.manual_seed(7)
        super().__init__(image_shape)


@pytest.mark.parametrize(
    ("model", "check", "words"),
    [
        (Beside, "features", "an image alone has other features than in a batch"),
        (Drawing, "features", "answers the same images twice in two ways"),
        (Constant, "features", "all images have the same features"),
        (Wide, "features", "feature_dim is 9"),
        (Forgotten, "blocks", "no block holds backbone.1.0.weight"),
        (WithHead, "blocks", "a block"),
        (Twice, "blocks", "backbone.0.1.bias, backbone.0.1.weight is in several blocks"),
        (Idle, "gradients", "the loss does not depend on idle"),
        (Idle, "blocks", "no block holds idle"),
        (Detached, "gradients", "the loss does not depend on backbone.0.1.weight"),
        (OwnOutputs, "head", "the outputs are not head(features(images))"),
        (Counting, "state", "what was saved and loaded gives other features"),
        (Seeded, "seed", "another seed gives the same weights"),
        (Detached, "learning", "after 30 steps on six images the loss is"),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)[:12]),
)
def test_a_promise_that_is_broken_is_found_by_its_check(model: type[Network], check: str, words: str) -> None:
    (found,) = clbench.testing.check_model(model, checks=[check])
    assert (found.status, words in found.reason) == ("failed", True), found.reason


def test_the_command_line_takes_networks_beside_strategies(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self, width: int = 8):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 2))\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["check", "net.py:Net[head=3]", "mlp:8"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name, found in zip(
        ("net.py:Net[head=3]", "mlp:8"), (lines[: len(lines) // 2], lines[len(lines) // 2 :]), strict=True
    ):
        assert found == [*(f"{name}: {check}: passed" for check in CHECKS), f"{name}: 9 checks: 9 passed"]
    with pytest.raises(SystemExit) as ended:
        main(["check", "net.py:Net"])
    assert ended.value.code == 2
    assert "Net[head=LAYER]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("mlpp", {}, ("unknown model 'mlpp'",)),
        (Sound, {"checks": ["feature"]}, ("unknown check 'feature'", "did you mean 'features'")),
        (5, {}, ("model=5",)),
        (Sound, {"image_shape": (0, 28, 28)}, ("image_shape",)),
    ],
)
def test_what_can_not_be_checked_is_refused(model: Any, options: Any, words: tuple[str, ...], refused: Any) -> None:
    with refused(*words):
        clbench.testing.check_model(model, **options)
