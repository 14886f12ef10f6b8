"""Permuted and rotated scenarios: each task has all classes, with a fixed change of the pixels of its own."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from clbench.config.arguments import checked
from clbench.scenarios.datasets import Compared, Dataset
from clbench.scenarios.files import require_memory
from clbench.support.streams import stream
from clbench.support.surroundings import by_default

Images = NDArray[np.uint8]

CHUNK = 4096  # images rotated at a time; it bounds the memory for their floats


@checked
@by_default()
def permuted(data: Dataset, tasks: int, *, seed: int = 0, pad: int = 0) -> Dataset:
    """Return the images of all tasks, each task's pixels in an order of its own; split(..., tasks=tasks) cuts them.

    For N images and K classes, row t * N + i is image i in task t, and class t * K + c is class c in task t, so ids and
    classes are unique to their task; a validation split of the data's own stays at the end, laid out in the same way.
    `seed` draws the orders, which are the same for training and test images and for all channels. Task 0 keeps the
    pixels in place, as in the code of Zenke et al. 2017, arXiv:1703.04200.
    pad: rows and columns of zeros added on each side. Raises ConfigError if the images don't fit into memory.
    """
    c, h, w = data.x_train.shape[1:]
    size = (h + 2 * pad) * (w + 2 * pad)
    orders = [torch.randperm(size, generator=stream(seed, "permutation", t)).numpy() for t in range(tasks)]
    orders[:1] = [np.arange(size)]

    def show(images: Images, t: int) -> Iterator[Images]:
        flat = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad))).reshape(len(images), c, size)
        yield flat[:, :, orders[t]].reshape(len(images), c, h + 2 * pad, w + 2 * pad)

    # Zeros lower the mean of the pixels and the mean of their squares by the same factor.
    share = h * w / size
    mean = tuple(share * m for m in data.mean)
    std = tuple(math.sqrt(share * (m**2 + s**2) - (share * m) ** 2) for m, s in zip(data.mean, data.std, strict=True))
    names = [f"task {t}" for t in range(tasks)]
    return _shown(replace(data, mean=mean, std=std), "permuted", names, (c, h + 2 * pad, w + 2 * pad), show)


@checked
@by_default()
def rotated(data: Dataset, tasks: int, *, seed: int = 0) -> Dataset:
    """Return the images of all tasks, each task's turned by an angle of its own; split(..., tasks=tasks) cuts them.

    Rows and classes are those of permuted(). `seed` draws task t's angle, in degrees counterclockwise, from the t-th of
    `tasks` equal parts of 0..180, to a tenth (Lopez-Paz & Ranzato 2017, arXiv:1706.08840); task 0 is not turned.
    Rotation is bilinear, about the centre, with zeros around; mean and std stay those of the data set.
    Raises ConfigError if the images don't fit into memory.
    """
    drawn = [float(torch.rand(1, dtype=torch.float32, generator=stream(seed, "rotation", t))) for t in range(tasks)]
    angles = [round(180 * (t + part) / tasks, 1) if t else 0.0 for t, part in enumerate(drawn)]

    def show(images: Images, t: int) -> Iterator[Images]:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2.functional import rotate

        for start in range(0, len(images), CHUNK):
            part = torch.from_numpy(np.array(images[start : start + CHUNK]))  # torch needs a writable array
            yield (rotate(part, angles[t], InterpolationMode.BILINEAR) if angles[t] else part).numpy()

    names = [f"{angle} degrees" for angle in angles]
    return _shown(data, "rotated", names, data.x_train.shape[1:], show)


def _shown(
    data: Dataset,
    kind: str,
    names: list[str],
    shape: tuple[int, ...],
    show: Callable[[Images, int], Iterator[Images]],
) -> Dataset:
    data.check()
    name = f"{kind}-{data.name}"
    n_images = len(names) * (len(data.x_train) + len(data.x_test))
    require_memory(n_images * math.prod(shape), f"{name} with {len(names)} tasks")

    # A validation split is at the end, so that of all tasks is behind the training images of all tasks.
    n = len(data.x_train) - data.n_validation

    def images(*parts: Images) -> Images:
        made = np.empty((len(names) * sum(map(len, parts)), *shape), np.uint8)
        start = 0
        for of in parts:
            for t in range(len(names) if len(of) else 0):
                for part in show(of, t):
                    made[start : start + len(part)] = part
                    start += len(part)
        return made

    def classes(*parts: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([of + t * len(data.class_names) for of in parts for t in range(len(names))])

    return replace(
        data,
        name=name,
        x_train=images(data.x_train[:n], data.x_train[n:]),
        y_train=classes(data.y_train[:n], data.y_train[n:]),
        x_test=images(data.x_test),
        y_test=classes(data.y_test),
        class_names=tuple(f"{c} ({task})" for task in names for c in data.class_names),
        n_validation=len(names) * data.n_validation,
    )


# A worker process makes the images once for all its runs, as it loads the data sets themselves once.
_latest: dict[str, tuple[tuple[object, ...], Dataset, Dataset]] = {}


def permuted_once(data: Dataset, tasks: int, seed: int, pad: int) -> Dataset:
    """Return permuted(); the latest one comes from memory, and counts as the data that it is made of."""
    return _once(data, ("permuted", tasks, seed, pad), lambda: permuted(data, tasks, seed=seed, pad=pad))


def rotated_once(data: Dataset, tasks: int, seed: int) -> Dataset:
    """Return rotated(); the latest one comes from memory, and counts as the data that it is made of."""
    return _once(data, ("rotated", tasks, seed), lambda: rotated(data, tasks, seed=seed))


def _once(data: Dataset, how: tuple[object, ...], make: Callable[[], Dataset]) -> Dataset:
    key = *how, data.fingerprint
    latest = _latest.get("data")
    if (
        latest is None
        or latest[0] != key
        or latest[1] is not data
        or latest[2].compared.content != latest[2].checksums()
    ):
        made = make()
        vars(made)["compared"] = Compared(data.fingerprint, {}, made.checksums())
        _latest["data"] = latest = key, data, made
    return latest[2]
