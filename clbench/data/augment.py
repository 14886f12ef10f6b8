"""Random crop and flip of a whole batch at once, on the device where the images are.

One gather with an index for each image does the work: no Python loop over images, no waiting for an accelerator.
"""

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


#: The names that a run's `augment` accepts.
AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "none": None,
    "crop-flip": crop_flip,
    "crop": crop,
    "flip": flip,
}
