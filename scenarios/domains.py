"""Permuted and rotated scenarios: each task has all classes, with a fixed change of the pixels of its own."""

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clbench.config.arguments import checked
from clbench.data.sources import Change, Changed, source_of
from clbench.scenarios.datasets import Compared, Dataset
from clbench.scenarios.files import require_memory
from clbench.support.streams import stream
from clbench.support.surroundings import by_default

N_BYTES = 24  # of a sample's label, class and task, which every task has of its own


@checked
@by_default()
def permuted(data: Dataset, tasks: int, *, seed: int = 0, pad: int = 0) -> Dataset:
    """Return the images of all tasks, each task's pixels in an order of its own; split(..., tasks=tasks) cuts them.

    For N images and K classes, row t * N + i is image i in task t, and class t * K + c is class c in task t, so ids and
    classes are unique to their task; a validation split of the data's own stays at the end, laid out in the same way.
    `seed` draws the orders, which are the same for training and test images and for all channels. Task 0 keeps the
    pixels in place, as in the code of Zenke et al. 2017, arXiv:1703.04200. Pixels are moved when a batch asks for them.
    pad: rows and columns of zeros added on each side. Raises ConfigError if the labels don't fit into memory.
    """
    data.check()
    h, w = data.x_train.shape[2:]
    size = (h + 2 * pad) * (w + 2 * pad)
    orders = [torch.randperm(size, generator=stream(seed, "permutation", t)) for t in range(tasks)]
    orders[:1] = [torch.arange(size)]

    def change(images: Tensor, orders: Tensor) -> Tensor:
        padded = F.pad(images, (pad,) * 4)
        order = orders[:, None].expand(-1, images.shape[1], -1)
        return padded.flatten(2).gather(2, order).view(padded.shape)

    # Zeros lower the mean of the pixels and the mean of their squares by the same factor.
    share = h * w / size
    mean = tuple(share * m for m in data.mean)
    std = tuple(math.sqrt(share * (m**2 + s**2) - (share * m) ** 2) for m, s in zip(data.mean, data.std, strict=True))
    names = [f"task {t}" for t in range(tasks)]
    return _shown(replace(data, mean=mean, std=std), "permuted", names, torch.stack(orders), change)


@checked
@by_default()
def rotated(data: Dataset, tasks: int, *, seed: int = 0) -> Dataset:
    """Return the images of all tasks, each task's turned by an angle of its own; split(..., tasks=tasks) cuts them.

    Rows and classes are those of permuted(). `seed` draws task t's angle, in degrees counterclockwise, from the t-th of
    `tasks` equal parts of 0..180, to a tenth (Lopez-Paz & Ranzato 2017, arXiv:1706.08840); task 0 is not turned.
    Rotation is bilinear, about the centre, with zeros around; mean and std stay those of the data set. Images are
    turned when a batch asks for them. Raises ConfigError if the labels don't fit into memory.
    """
    data.check()
    drawn = [float(torch.rand(1, dtype=torch.float32, generator=stream(seed, "rotation", t))) for t in range(tasks)]
    angles = [round(180 * (t + part) / tasks, 1) if t else 0.0 for t, part in enumerate(drawn)]
    h, w = data.x_train.shape[2:]
    grids = torch.stack([_grid(angle, h, w) for angle in angles])
    return _shown(data, "rotated", [f"{angle} degrees" for angle in angles], grids, _turned)


def as_known(made: Dataset, data: Dataset) -> Dataset:
    """Return images that were made of a data set's, which count as that data set as long as nothing is changed."""
    vars(made)["compared"] = Compared(data.fingerprint, {}, made.checksums())
    return made


def _grid(angle: float, h: int, w: int) -> Tensor:
    """Return the place that each pixel of an image comes from, turned by degrees: float32 [H, W, 2], as grid_sample."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float32) / torch.tensor(
        [w / 2, h / 2], dtype=torch.float32
    )
    y, x = torch.meshgrid(_centred(h), _centred(w), indexing="ij")
    return (torch.stack([x, y], -1).view(-1, 2) @ turn).view(h, w, 2)


def _centred(n: int) -> Tensor:
    return torch.linspace((1 - n) / 2, (n - 1) / 2, n, dtype=torch.float32)


def _turned(images: Tensor, grids: Tensor) -> Tensor:
    turned = F.grid_sample(images.float(), grids, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.round_().to(torch.uint8)


def _shown(data: Dataset, kind: str, names: list[str], tables: Tensor, change: Change) -> Dataset:
    name, n_tasks = f"{kind}-{data.name}", len(names)
    require_memory(N_BYTES * n_tasks * (len(data.x_train) + len(data.x_test)), f"{name} with {n_tasks} tasks")
    # A validation split is at the end, so that of all tasks is behind the training images of all tasks.
    n, last = len(data.x_train) - data.n_validation, data.n_validation

    def classes(*parts: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([of + t * len(data.class_names) for of in parts for t in range(n_tasks)])

    x_train, x_test = source_of(data.x_train), source_of(data.x_test)
    return replace(
        data,
        name=name,
        x_train=Changed(x_train, tables, change, last=last),
        y_train=classes(data.y_train[:n], data.y_train[n:]),
        x_test=Changed(x_test, tables, change),
        y_test=classes(data.y_test),
        class_names=tuple(f"{c} ({task})" for task in names for c in data.class_names),
        n_validation=n_tasks * last,
        published=None,
    )
