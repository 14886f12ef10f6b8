"""Looks at the files of a data set before anything is trained: which are broken, and what the others are."""

import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from clbench.config.errors import ConfigError
from clbench.scenarios.decoding import pillow_by_default
from clbench.scenarios.encoded import PARTS, decoded
from clbench.scenarios.files import Found
from clbench.support.cores import cores


@dataclass(frozen=True)
class Examined:
    """The findings in a data set.

    images: their numbers by part. sizes: the smallest and the largest width and height, and how many sizes there are.
    remarks: what is changed in how many images. broken: why files can't be used, by their names.
    """

    origin: str
    layout: str
    classes: list[str]
    images: dict[str, int]
    smallest: list[int]
    largest: list[int]
    sizes: int
    grey: int
    remarks: dict[str, int]
    broken: dict[str, str]


def examine(found: Found) -> Examined:
    """Decode every image of a data set once, and keep none; raises ConfigError for files that are no data set.

    Data without encoded images, such as an NPZ file, are read as they are for a run.
    """
    if found.listed is None:
        raw = found.read()
        shape, of_test = raw.x_train.shape[1:], raw.x_test.shape[1:]
        if shape != of_test:
            raise ConfigError(f"{found.origin}: training samples are {[*shape]} and test samples {[*of_test]}")
        is_image = raw.x_train.dtype == np.uint8
        n, n_test = len(raw.x_train) - raw.n_validation, len(raw.x_test)
        numbers = {"train": n, "validation": raw.n_validation, "test": n_test}
        names = raw.class_names or tuple(map(str, np.unique(raw.y_train).tolist()))
        grey = (len(raw.x_train) + n_test) * (shape[0] == 1 and is_image)
        size = [shape[2], shape[1]] if is_image else []
        layout = found.layout or ("arrays" if is_image else f"floats of the shape {[*shape]}")
        return Examined(found.origin, layout, list(names), numbers, size, size, len(size) // 2, grey, {}, {})
    from PIL import Image

    encoded, problems = found.listed()
    broken, sizes, remarks = dict(problems), Counter[tuple[int, int]](), Counter[str]()
    grey, numbers = 0, dict.fromkeys(PARTS, 0)
    with pillow_by_default(), warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for index, one in enumerate(decoded(encoded, None, pool)):
            if isinstance(one, str):
                broken[encoded.names[index]] = one
                continue
            _, height, width = one.image.shape
            sizes[width, height] += 1
            grey += len(one.image) == 1
            remarks.update(one.changes)
            numbers[PARTS[encoded.parts[index]]] += 1
    low, high = ([f(size[axis] for size in sizes) for axis in (0, 1)] if sizes else [] for f in (min, max))
    return Examined(
        found.origin, found.layout, list(encoded.classes), numbers, low, high, len(sizes), grey, dict(remarks), broken
    )
