"""Augmentations of photos against torchvision, which changes one image at a time; and what their draws depend on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from clbench.config.errors import ConfigError
from clbench.data.augment import (
    AUGMENTATIONS,
    CHANGES,
    MAGNITUDE,
    _enlarged,
    changed,
    colour_jitter,
    randaugment,
    resized_crop_flip,
)
from clbench.running.resolve import resolve

NEW = ("resized-crop-flip", "colour-jitter", "randaugment")


def photos(n: int = 6, channels: int = 3, size: tuple[int, int] = (17, 20)) -> Tensor:
    """Return smooth images with some noise, of all values."""
    generator = torch.Generator().manual_seed(n)
    coarse = torch.rand(n, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return ((smooth + 0.1 * torch.rand(smooth.shape, generator=generator)) * 240).to(torch.uint8)


@pytest.mark.parametrize("box", [(0, 0, 17, 20), (3, 4, 5, 6), (16, 19, 1, 1), (0, 7, 17, 2), (2, 0, 9, 13)])
@pytest.mark.parametrize("mirrored", [0, 1])
def test_a_part_is_enlarged_as_torchvision_does(box: tuple[int, int, int, int], mirrored: int) -> None:
    images = photos()
    ours = _enlarged(images, torch.tensor([[*box, mirrored]] * len(images), dtype=torch.float32).T)
    theirs = tv.resized_crop(images.float(), *box, [17, 20], InterpolationMode.BILINEAR, antialias=False)
    theirs = tv.horizontal_flip(theirs) if mirrored else theirs
    assert (ours.float() - theirs).abs().max() <= 0.51  # rounded


def test_parts_have_the_areas_and_ratios_of_the_paper() -> None:
    """Each pixel holds its place, so that corners tell the part; 8 % to 100 %, side ratios of 3/4 to 4/3."""
    size = 64
    place = torch.arange(size, dtype=torch.float32)
    rows, columns = place[:, None].expand(size, size), place.expand(size, size)
    shown = resized_crop_flip(torch.stack([rows, columns]).repeat(2000, 1, 1, 1), torch.Generator().manual_seed(0))
    h = shown[:, 0].amax((1, 2)) - shown[:, 0].amin((1, 2)) + 1
    w = shown[:, 1].amax((1, 2)) - shown[:, 1].amin((1, 2)) + 1
    area, ratio = h * w / size**2, w / h
    assert 0.07 < float(area.min()) < 0.12
    assert float(area.max()) > 0.97
    assert abs(float(area.mean()) - 0.54) < 0.03  # uniform, some cut at the border of the image
    assert 0.7 < float(ratio.min()) < 0.8 < 1.25 < float(ratio.max()) < 1.45
    mirrored = shown[:, 1, 0, 0] > shown[:, 1, 0, -1]
    assert 0.45 < float(mirrored.float().mean()) < 0.55


def sheared(image: Tensor, degrees: list[float]) -> Tensor:
    return tv.affine(image, 0.0, [0, 0], 1.0, degrees, InterpolationMode.NEAREST, None, center=[0, 0])


def by_torchvision(image: Tensor, kind: str, sign: int) -> Tensor:
    """Apply a change as torchvision's RandAugment does at magnitude 9 of 30."""
    factor, tilt = 1 + 0.27 * sign, torch.rad2deg(torch.atan(torch.tensor(0.09))).item()
    h, w = image.shape[1:]
    moves: dict[str, Callable[[], Tensor]] = {
        "identity": lambda: image,
        "shear-x": lambda: sheared(image, [sign * tilt, 0.0]),
        "shear-y": lambda: sheared(image, [0.0, sign * tilt]),
        "translate-x": lambda: tv.affine(image, 0.0, [sign * int(150 / 331 * w * 0.3), 0], 1.0, [0.0, 0.0]),
        "translate-y": lambda: tv.affine(image, 0.0, [0, sign * int(150 / 331 * h * 0.3)], 1.0, [0.0, 0.0]),
        "rotate": lambda: tv.rotate(image, 9.0 * sign, InterpolationMode.NEAREST),
        "brightness": lambda: tv.adjust_brightness(image, factor),
        "saturation": lambda: tv.adjust_saturation(image, factor),
        "contrast": lambda: tv.adjust_contrast(image, factor),
        "sharpness": lambda: tv.adjust_sharpness(image, factor),
        "posterize": lambda: tv.posterize(image, 8 - round(9 / (30 / 4))),
        "solarize": lambda: tv.solarize(image, 0.7 * 255),
        "autocontrast": lambda: tv.autocontrast(image),
        "equalize": lambda: tv.equalize(image),
    }
    return moves[kind]()


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [(17, 20), (32, 32)])
def test_each_change_is_that_of_torchvision(kind: str, sign: int, size: tuple[int, int]) -> None:
    """Values are rounded here and cut there, so they differ by at most 1; a pixel between two others may be either."""
    images = photos(size=size)
    n = len(images)
    ours = changed(images, torch.full((n,), CHANGES.index(kind)), torch.full((n,), sign))
    theirs = [torch.stack([by_torchvision(image, kind, s) for image in images]) for s in (sign, -sign)]
    close = [((ours.int() - other.int()).abs() <= 1).float().mean() for other in theirs]
    # The direction that a sign stands for is no matter, since both are drawn alike.
    moving = CHANGES.index(kind) in range(1, 6)
    assert max(close) > 0.97 if moving else close[0] == 1
    assert MAGNITUDE == 0.3


def test_each_image_has_its_own_change() -> None:
    images = photos(1).expand(14, -1, -1, -1)
    each = changed(images, torch.arange(14), torch.ones(14, dtype=torch.int64))
    alone = [changed(images[:1], torch.tensor([k]), torch.ones(1, dtype=torch.int64))[0] for k in range(14)]
    assert torch.equal(each, torch.stack(alone))
    assert torch.equal(each[0], images[0])


def test_colours_are_changed_as_torchvision_does() -> None:
    """The reference takes the factors of the same draws, in floats: brightness, contrast, saturation."""
    images = photos()
    ours = colour_jitter(images, torch.Generator().manual_seed(3))
    factors = 0.6 + 0.8 * torch.rand(3, len(images), 1, 1, 1, generator=torch.Generator().manual_seed(3))
    for image, shown, (b, c, s) in zip(images, ours, factors.flatten(1).T.tolist(), strict=True):
        expected = tv.adjust_brightness(image / 255, b)
        expected = tv.adjust_saturation(tv.adjust_contrast(expected, c), s)
        assert (shown - 255 * expected).abs().max() <= 0.6


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("shape", [(5, 3, 9, 12), (4, 1, 8, 8), (3, 3, 1, 1), (1, 3, 2, 5)])
def test_draws_are_functions_of_the_generator_and_the_input_stays(name: str, shape: tuple[int, ...]) -> None:
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, augment = images.clone(), AUGMENTATIONS[name]
    assert augment is not None
    one, same, other = (augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one.shape, one.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    assert min(shape[2:]) < 3 or not torch.equal(one, other)


def test_what_changes_colours_is_refused_on_floats() -> None:
    for augment in (colour_jitter, randaugment):
        with pytest.raises(ConfigError, match="uint8, and one on cpu, are accepted"):
            augment(photos().float(), torch.Generator())
    asked: dict[str, Any] = {"augment": "randaugment", "normalize": "pixel-mean"}
    with pytest.raises(ConfigError, match="augment='randaugment' changes colours"):
        resolve("split-mnist-5k", "naive", asked)
