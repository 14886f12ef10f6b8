"""Crop and flip against an independent reference: pad, slice and mirror one image at a time in numpy.

All pixels of the test images differ and none is 0, so an output tells which offset and mirroring made it.
"""

import numpy as np
import pytest
import torch

from clbench.data.augment import AUGMENTATIONS, crop, crop_flip, flip


def distinct_images(batch, channels, height, width, dtype=torch.float32):
    pixels = torch.arange(1, channels * height * width + 1).view(1, channels, height, width)
    return pixels.expand(batch, -1, -1, -1).to(dtype).contiguous()


def variants(image, padding):
    """Return {bytes of the result: (top, left, mirrored)} for all that may come out of one image."""
    channels, height, width = image.shape
    canvas = np.zeros((channels, height + 2 * padding, width + 2 * padding), image.dtype)
    canvas[:, padding : padding + height, padding : padding + width] = image
    results = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = canvas[:, top : top + height, left : left + width]
            results[window.tobytes()] = (top, left, False)
            results[np.ascontiguousarray(np.flip(window, axis=2)).tobytes()] = (top, left, True)
    assert len(results) == 2 * (2 * padding + 1) ** 2
    return results


def draws(images, outputs, padding):
    """Return (top, left, mirrored) of each image, all by the slow reference; a KeyError is a wrong output."""
    known = variants(images[0].contiguous().numpy(), padding)
    return [known[output.numpy().tobytes()] for output in outputs]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_output_is_a_padded_crop_mirrored_or_not(dtype, layout):
    images = distinct_images(200, 3, 6, 7, dtype).contiguous(memory_format=layout)
    before = images.clone()
    outputs = crop_flip(images, torch.Generator().manual_seed(0), padding=2)
    assert outputs.shape == images.shape
    assert outputs.dtype == dtype
    assert len(set(draws(images, outputs, padding=2))) > 40  # of 50: each image has its own draw
    assert torch.equal(images, before)


def test_images_are_not_mixed_up():
    """Image i is filled with i + 1, so any crop may show only that value and zeros."""
    values = torch.arange(1, 101, dtype=torch.uint8).view(-1, 1, 1, 1)
    outputs = crop_flip(values.expand(-1, 3, 9, 9), torch.Generator().manual_seed(0))
    assert torch.equal(outputs.amax((1, 2, 3)), values.flatten())
    assert ((outputs == 0) | (outputs == values)).all()


def test_all_offsets_are_equally_likely_and_half_are_mirrored():
    n, padding = 8100, 4  # the default padding: 9 * 9 offsets, 100 images expected at each
    images = distinct_images(n, 1, 8, 8)
    found = draws(images, crop_flip(images, torch.Generator().manual_seed(0)), padding)
    counts = np.zeros((9, 9))
    for top, left, _ in found:
        counts[top, left] += 1
    assert counts.min() > 0
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert chi_square < 80 + 4 * np.sqrt(2 * 80)  # 80 degrees of freedom: mean 80, variance 160
    mirrored = np.array([m for _, _, m in found])
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(n)
    top = np.array([t for t, _, _ in found])
    assert abs(np.corrcoef(top, mirrored)[0, 1]) < 4 / np.sqrt(n)


def test_crop_never_mirrors_and_flip_never_moves():
    images = distinct_images(500, 1, 8, 8)
    assert not any(m for _, _, m in draws(images, crop(images, torch.Generator().manual_seed(0)), padding=4))
    mirrored = [m for _, _, m in draws(images, flip(images, torch.Generator().manual_seed(0)), padding=0)]
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(500)


@pytest.mark.parametrize("name", ["crop-flip", "crop", "flip"])
def test_draws_are_a_function_of_the_generator_alone(name):
    augment = AUGMENTATIONS[name]
    images = distinct_images(50, 3, 8, 8)
    generator = torch.Generator().manual_seed(7)
    state = torch.get_rng_state()
    first, second = augment(images, generator), augment(images, generator)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(augment(images, torch.Generator().manual_seed(7)), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [(0, 3, 8, 8), (1, 1, 1, 1)])
def test_empty_batches_and_single_pixels_pass(size):
    assert crop_flip(torch.zeros(size), torch.Generator()).shape == size


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu_without_waiting_for_the_device():
    images = distinct_images(128, 3, 8, 8)
    expected = crop_flip(images, torch.Generator().manual_seed(0))
    on_device = images.cuda()
    crop_flip(on_device, torch.Generator())  # the first call may load kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = crop_flip(on_device, torch.Generator().manual_seed(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(outputs.cpu(), expected)
