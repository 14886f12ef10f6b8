"""Images that each task sees in another way: made when asked for, and equal to those that are laid out in memory."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import rotate

from clbench.data.sources import Changed
from clbench.scenarios import dataset_from_arrays, split
from clbench.scenarios.domains import permuted, rotated


def data(channels: int = 3, *, n_validation: int = 0) -> Any:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (12, channels, 9, 9), dtype=np.uint8)
    made = dataset_from_arrays(images[:8], np.arange(8) % 2, images[8:], np.arange(4) % 2, name="noise")
    return replace(made, n_validation=n_validation)


@pytest.mark.parametrize("n_validation", [0, 3])
@pytest.mark.parametrize("change", [permuted, rotated])
def test_any_rows_are_those_of_all_images(change: Any, n_validation: int) -> None:
    source = change(data(n_validation=n_validation), 5).x_train
    images = torch.from_numpy(np.asarray(source))
    assert images.shape == source.shape
    rows = torch.tensor([39, 0, 17, 17, 8, 31, 25])
    assert torch.equal(source.index_select(0, rows), images[rows])
    for index in (3, -1, slice(5, 30, 7), rows, images[:, 0, 0, 0] > 100):
        assert torch.equal(source[index], images[index])
    assert torch.equal(source.to(torch.device("cpu"))[rows], images[rows])


@pytest.mark.parametrize("shape", [(28, 28), (9, 14), (32, 32)])
def test_images_are_turned_as_torchvision_turns_them(shape: tuple[int, int]) -> None:
    """torchvision turns all images of a task by one angle; here each image of a batch has its own."""
    images = np.random.default_rng(1).integers(0, 256, (20, 1, *shape), dtype=np.uint8)
    made = rotated(dataset_from_arrays(images, np.arange(20) % 2, images[:2], [0, 1]), 7, seed=2)
    for task in range(7):
        angle = float(made.class_names[2 * task].partition("(")[2].removesuffix(" degrees)"))
        turned = rotate(torch.from_numpy(images), angle, InterpolationMode.BILINEAR)
        assert torch.equal(made.x_train[20 * task : 20 * (task + 1)], turned)


def test_eight_hundred_tasks_hold_the_images_of_one() -> None:
    source = permuted(data(), 800).x_train
    assert len(source) == 800 * 8
    # 8 images of 3 x 9 x 9 bytes, and for each task the places of 81 pixels, of 8 bytes each.
    assert source.nbytes == 8 * 243 + 800 * 81 * 8


def test_a_change_of_a_table_is_noticed() -> None:
    made = permuted(data(), 3)
    scenario = split(made, tasks=3, setting="domain")
    claimed = scenario.of(None)
    assert claimed.claimed
    assert isinstance(made.x_train, Changed)
    made.x_train.tables[1] = made.x_train.tables[1].flip(0)
    assert not claimed.claimed
