"""Strategies that walk over the blocks of a network: they work on transformers and CNNs, or refuse them by name."""

from typing import Any

import pytest

pytest.importorskip("timm")

SMALL_VIT = "vit[width=16,depth=3,heads=2,patch_size=7]"
SWIN = "timm:swin_tiny_patch4_window7_224[image_size=32]"
RESNET, CONVNEXT = "timm:test_resnet[image_size=32]", "timm:test_convnext[image_size=32]"
EFFICIENTNET = "timm:test_efficientnet[image_size=32]"
MOBILENET = "torchvision:mobilenet_v3_small[image_size=32]"


@pytest.mark.parametrize(
    ("strategy", "model", "setting", "options"),
    [
        ("lucir", SMALL_VIT, "class", {"memory_size": 8}),
        ("lucir", EFFICIENTNET, "class", {"memory_size": 8}),
        ("podnet", RESNET, "class", {"memory_size": 8}),
        ("podnet", CONVNEXT, "class", {"memory_size": 8}),
        ("podnet", EFFICIENTNET, "class", {"memory_size": 8}),
        ("podnet", MOBILENET, "class", {"memory_size": 8}),
        ("xdg", RESNET, "task", {}),
        ("xdg", EFFICIENTNET, "task", {}),
        ("packnet", SMALL_VIT, "task", {}),
        ("packnet", CONVNEXT, "task", {}),
        ("feature-extraction", SMALL_VIT, "class", {"strategy_options": {"trainable_from": "last-2"}}),
        ("independent", SMALL_VIT, "task", {}),
    ],
)
def test_it_works(strategy: str, model: str, setting: str, options: dict[str, Any], run: Any, cut: Any) -> None:
    result = run(strategy, cut(tasks=2, setting=setting, limit=4), model=model, lr=0.01, **options)
    assert result.metrics["average_accuracy"] is not None


@pytest.mark.parametrize(
    ("strategy", "model", "setting", "words"),
    [
        ("podnet", SMALL_VIT, "class", ["channels come first", "[17, 16]"]),
        ("podnet", "timm:test_vit[image_size=32]", "class", ["channels come first"]),
        ("podnet", "torchvision:mobilenet_v2[image_size=32]", "class", ["do not give its features"]),
        ("xdg", SMALL_VIT, "task", ["channels come first"]),
        ("xdg", "timm:mixer_s32_224[image_size=32]", "task", ["do not give its features"]),
        ("hat", SMALL_VIT, "task", ["layers in a block"]),
        ("hat", CONVNEXT, "task", ["layers in a block"]),
        ("pnn", RESNET, "task", ["layers in a block"]),
    ],
)
def test_it_is_refused_by_name(
    strategy: str, model: str, setting: str, words: list[str], run: Any, cut: Any, refused: Any
) -> None:
    options = {"memory_size": 8} if strategy == "podnet" else {}
    with refused(strategy, model, "accepted", *words):
        run(strategy, cut(tasks=2, setting=setting, limit=2), model=model, **options)


@pytest.mark.slow
def test_maps_with_their_channels_last_are_refused(run: Any, cut: Any, refused: Any) -> None:
    with refused("podnet", "channels come first in maps"):
        run("podnet", cut(tasks=2, limit=2), model=SWIN, memory_size=8)
