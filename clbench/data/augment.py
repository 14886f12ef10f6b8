"""Random changes of a whole batch at once, on the device where the images are.

No Python loop over images, no waiting for an accelerator: the draws, of a CPU generator, reach it in one transfer. For
crops and flips one gather with an index for each image does the work, for the others one grid or one table of values.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from clbench.config.arguments import check_shapes, checked
from clbench.config.errors import ConfigError


@checked
def crop_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Crop as `crop` does, then mirror each image with probability 1/2 (arXiv:1512.03385, section 4.2)."""
    return _resampled(images, generator, padding, mirror=True)


@checked
def crop(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Zero-pad images [B, C, H, W] of any dtype on all sides and cut H x W back out, uniformly at random.

    The offsets, one pair per image, come from a CPU generator. The input stays as it is.
    """
    return _resampled(images, generator, padding, mirror=False)


@checked
def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image of [B, C, H, W], any dtype, left to right with probability 1/2 (CPU generator)."""
    return _resampled(images, generator, padding=0, mirror=True)


def _resampled(images: Tensor, generator: torch.Generator, padding: int, *, mirror: bool) -> Tensor:
    check_shapes("augment", images=(images, "B C H W"))
    if padding < 0 or generator.device.type != "cpu":
        where = generator.device
        raise ConfigError(
            f"padding={padding} and a generator on {where} given; 0 or more, and one on cpu, are accepted"
        )
    batch, channels, height, width = images.shape
    spans = (2 * padding + 1, 2 * padding + 1, 2 if mirror else 1)
    # Stacked, so that they reach an accelerator in one transfer.
    draws = torch.stack([torch.randint(span, (batch, 1), generator=generator) for span in spans])
    top, left, mirrored = draws.to(images.device, non_blocking=True)
    y, x = (torch.arange(size, device=images.device) for size in (height, width))
    rows = top + y
    columns = left + torch.where(mirrored.bool(), width - 1 - x, x)
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1)).view(images.shape)


@checked
def resized_crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a random part of each image out, enlarge it to the whole, and mirror it with probability 1/2.

    The part has 8 % to 100 % of the area and a side ratio of 3/4 to 4/3 (Szegedy et al. 2015, arXiv:1409.4842, section
    6), log-uniform as in torchvision's RandomResizedCrop. It is enlarged bilinearly, without antialiasing. Images
    [B, C, H, W], uint8 or float.
    """
    _check(images, generator)
    (height, width), device = images.shape[2:], images.device
    area, ratio, top, left, mirrored = torch.rand(5, len(images), generator=generator, dtype=torch.float64)
    area = height * width * (0.08 + 0.92 * area)
    ratio = torch.exp((2 * ratio - 1) * math.log(4 / 3))
    w = (area * ratio).sqrt().round().clamp(1, width)
    h = (area / ratio).sqrt().round().clamp(1, height)
    top, left = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()
    boxes = torch.stack([top, left, h, w, (mirrored < 0.5).double()]).float()
    return _enlarged(images, boxes.to(device, non_blocking=True))


def _enlarged(images: Tensor, boxes: Tensor) -> Tensor:
    """Return parts of images enlarged to the whole; boxes: top, left, height, width, whether mirrored, float [5, B]."""
    height, width = images.shape[2:]
    top, left, h, w, mirrored = boxes[:, :, None]
    y, x = (torch.arange(size, device=images.device) + 0.5 for size in (height, width))
    # Never beyond the part's own outermost pixels, as if it had been cut out first.
    rows = top + ((y * h / height - 0.5).clamp(min=0)).minimum(h - 1)
    columns = left + (torch.where(mirrored > 0, width - x, x) * w / width - 0.5).clamp(min=0).minimum(w - 1)
    grid = torch.stack(
        torch.broadcast_tensors((2 * columns[:, None] + 1) / width - 1, (2 * rows[:, :, None] + 1) / height - 1), -1
    )
    shown = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return _as(shown, images)


@checked
def colour_jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation of images, uint8 [B, C, H, W], each by a factor of 0.6 to 1.4.

    They are changed in this order, with a factor for each image (Krizhevsky et al. 2012 and later ImageNet training;
    torchvision's ColorJitter without the hue).
    """
    _check(images, generator, torch.uint8)
    factors = 0.6 + 0.8 * torch.rand(3, len(images), 1, 1, 1, generator=generator)
    brightness, contrast, saturation = factors.to(images.device, non_blocking=True)
    shown = (images.float() * brightness).clamp_(0, 255)
    shown = _blended(shown, _grey(shown).mean((1, 2, 3), keepdim=True), contrast)
    return _as(_blended(shown, _grey(shown), saturation), images)


#: The changes of randaugment(), of which the first six move pixels.
CHANGES = (
    *("identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate"),
    *("brightness", "saturation", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
MAGNITUDE = 9 / 30  # the share of each change's largest strength


@checked
def randaugment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply two random ones of 14 changes to each image, uint8 [B, C, H, W], in turn.

    RandAugment with N=2 and M=9 (Cubuk et al. 2020, arXiv:1909.13719), with the changes and strengths of torchvision's
    RandAugment. What is moved in from outside is black.
    """
    _check(images, generator, torch.uint8)
    n = len(images)
    draws = torch.stack([torch.randint(span, (2, n), generator=generator) for span in (len(CHANGES), 2)])
    for kinds, signs in draws.to(images.device, non_blocking=True).unbind(1):
        images = changed(images, kinds, 2 * signs - 1)
    return images


def changed(images: Tensor, kinds: Tensor, signs: Tensor) -> Tensor:
    """Return images, uint8 [B, C, H, W], after a change each; kinds: places in CHANGES; signs: 1 or -1; int64 [B]."""
    moved = _moved(images, kinds, signs)
    shown, each = moved.float(), kinds[:, None, None, None]
    factor = 1 + 0.9 * MAGNITUDE * signs[:, None, None, None]
    grey = _grey(shown)
    results = {
        "brightness": (shown * factor).clamp(0, 255),
        "saturation": _blended(shown, grey, factor),
        "contrast": _blended(shown, grey.mean((1, 2, 3), keepdim=True), factor),
        "sharpness": _blended(shown, _smooth(shown), factor),
        # Of 8 bits, four fewer at the largest strength.
        "posterize": (moved & (256 - 2 ** round(4 * MAGNITUDE))).float(),
        "solarize": torch.where(shown >= 255 * (1 - MAGNITUDE), 255 - shown, shown),
        "autocontrast": _stretched(shown),
        "equalize": _equalized(moved),
    }
    for name, result in results.items():
        shown = torch.where(each == CHANGES.index(name), result, shown)
    return _as(shown, images)


def _moved(images: Tensor, kinds: Tensor, signs: Tensor) -> Tensor:
    """Return images after the changes that move pixels: sheared about the upper left corner, moved, or turned."""
    (height, width), device = images.shape[2:], images.device
    strength = MAGNITUDE * signs
    angle = strength * math.radians(30)
    here = [kinds == place for place in range(6)]
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    cos, sin = torch.where(here[5], angle.cos(), one), torch.where(here[5], angle.sin(), zero)
    across = torch.where(here[1], 0.3 * strength, sin)
    down = torch.where(here[2], 0.3 * strength, -sin)
    # Whole pixels, as torchvision moves them.
    right = torch.where(here[3], (150 / 331 * width * MAGNITUDE * one).trunc() * signs, zero)
    below = torch.where(here[4], (150 / 331 * height * MAGNITUDE * one).trunc() * signs, zero)
    y, x = (torch.arange(size, device=device) + 0.5 for size in (height, width))
    middle = [torch.where(here[5], size / 2 * one, zero)[:, None, None] for size in (height, width)]
    rows, columns = y[:, None] - middle[0], x - middle[1]
    cos, across, down, right, below = (v[:, None, None] for v in (cos, across, down, right, below))
    from_x = cos * columns + across * rows + middle[1] - right
    from_y = down * columns + cos * rows + middle[0] - below
    grid = torch.stack(torch.broadcast_tensors(2 * from_x / width - 1, 2 * from_y / height - 1), -1)
    shown = F.grid_sample(images.float(), grid.float(), mode="nearest", padding_mode="zeros", align_corners=False)
    return shown.to(images.dtype)


def _grey(images: Tensor) -> Tensor:
    """Return the brightness of images, float [B, C, H, W] -> [B, 1, H, W] (ITU-R BT.601)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _blended(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * other).clamp(0, 255)


def _smooth(images: Tensor) -> Tensor:
    """Return images whose inner pixels are means of 3 x 3, the middle weighing 5; the border stays."""
    if min(images.shape[2:]) < 3:
        return images
    kernel = torch.ones(1, 1, 3, 3, device=images.device)
    kernel[..., 1, 1] = 5
    inner = F.conv2d(images.flatten(0, 1)[:, None], kernel / 13).view(
        *images.shape[:2], *(s - 2 for s in images.shape[2:])
    )
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = inner.round()
    return smoothed


def _stretched(images: Tensor) -> Tensor:
    """Return images in which each channel reaches from 0 to 255; one of a single value stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high == low
    return torch.where(flat, images, (images - low) * 255 / torch.where(flat, torch.ones_like(high), high - low))


def _equalized(images: Tensor) -> Tensor:
    """Return images, uint8, whose values are spread evenly in each channel, as float (PIL's ImageOps.equalize)."""
    values = images.flatten(2).flatten(0, 1).long()
    counts = torch.zeros(len(values), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, values, torch.ones_like(values))
    last = values.amax(1, keepdim=True)
    step = (values.shape[1] - counts.gather(1, last)) // 255
    table = (counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)
    same = torch.arange(256, device=images.device).expand_as(table)
    table = torch.where(step > 0, table.clamp(0, 255), same)
    return table.gather(1, values).view(images.shape).float()


def _as(shown: Tensor, images: Tensor) -> Tensor:
    return shown.to(images.dtype) if images.is_floating_point() else shown.round_().clamp_(0, 255).to(images.dtype)


def _check(images: Tensor, generator: torch.Generator, *kinds: torch.dtype) -> None:
    check_shapes("augment", images=(images, "B C H W"))
    fits = images.dtype in kinds if kinds else images.dtype == torch.uint8 or images.is_floating_point()
    if not fits or generator.device.type != "cpu":
        raise ConfigError(
            f"images of {images.dtype} and a generator on {generator.device} given; "
            f"{'uint8' if kinds else 'uint8 or floats'}, and one on cpu, are accepted"
        )


#: Those that change colours, and so need the pixels themselves.
ON_UINT8 = ("colour-jitter", "randaugment")
#: The names that a run's `augment` accepts.
AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "none": None,
    "crop-flip": crop_flip,
    "crop": crop,
    "flip": flip,
    "resized-crop-flip": resized_crop_flip,
    "colour-jitter": colour_jitter,
    "randaugment": randaugment,
}
