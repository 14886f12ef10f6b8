"""Packed data sets: one file of images at one size, with labels and names behind them, that is mapped and not read."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clbench.config.errors import ConfigError
from clbench.scenarios.files import Raw, atomic_file
from clbench.scenarios.mapped import open_images, write_behind, write_header

if TYPE_CHECKING:
    from clbench.scenarios.datasets import Dataset

FORM = 1  # of what stands behind the images


def write_packed(data: "Dataset", path: Path) -> int:
    """Write a data set into a file that read_packed() reads, and return its bytes; raises OSError.

    The file is an NPY file, training images first, which numpy.load() reads too; labels and names are JSON behind it.
    """
    parts = data.x_train, data.x_test
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    with atomic_file(path) as file:
        write_header(file, shape)
        for part in parts:
            for start in range(0, len(part), 64):
                file.write(np.ascontiguousarray(part[start : start + 64]).data)
        about = {
            "form": FORM,
            "labels": [*data.y_train.tolist(), *data.y_test.tolist()],
            "n_train": len(data.x_train),
            "n_validation": data.n_validation,
            "classes": list(data.class_names),
            "left_out": list(data.left_out),
        }
        write_behind(file, shape, about)
    return path.stat().st_size


def read_packed(path: Path) -> Raw:
    """Return the data set in a packed file, its images mapped; raises ConfigError for a damaged or another file."""
    try:
        images, about = open_images(path)
        if about.get("form") != FORM:
            raise ValueError("it is no file of clbench data pack, or one of a later version")
        n, held, classes = about["n_train"], about["n_validation"], about["classes"]
        labels = np.array(about["labels"], np.int64)
        texts = [*classes, *about["left_out"]]
        if labels.shape != (len(images),) or not all(isinstance(text, str) for text in texts):
            raise ValueError("its labels and names are not those of its images")
        if not all(isinstance(number, int) for number in (n, held)) or not 0 <= held < n < len(images):
            raise ValueError(f"it claims {n} training images, {held} of them for validation, of {len(images)}")
        if images.shape[1] not in (1, 3) or labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(f"it has images {list(images.shape)} and labels from {labels.min()} to {labels.max()}")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{path} is not readable as packed images: {error or type(error).__name__}") from error
    names, left_out = tuple(classes), tuple(about["left_out"])
    return Raw(images[:n], labels[:n], images[n:], labels[n:], names, n_validation=held, left_out=left_out)
