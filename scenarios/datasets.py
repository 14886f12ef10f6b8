"""The data sets that scenarios are cut from: a known one by its name, or the user's own files or arrays.

A package brings a data set by name with an entry point of the group `clbench.datasets`: a function of `data_root`, a
Path, and `offline`, which forbids downloads. It returns a Dataset and raises ConfigError for data that are missing.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.registry import entry_point_names, load_entry_point
from clbench.scenarios.files import Raw, check_labels, read_npz, require_memory, to_nchw
from clbench.scenarios.images import read_image_folder
from clbench.scenarios.known import KNOWN, Known, load_known

__all__ = ["KNOWN", "Dataset", "dataset_from_arrays", "fingerprint", "load_dataset"]

CHUNK = 64  # images converted at a time; it bounds the memory that photos need


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, split into training and test.

    x_train, x_test: images, uint8 [N, C, H, W], perhaps read-only or not contiguous; folders are memory-mapped.
    y_train, y_test: labels, int64 [N] in 0..K-1, indices into `class_names`.
    mean, std: of x_train / 255, for each channel.
    origin: the path or package that the data came from.
    """

    name: str
    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str


@checked
def load_dataset(
    name_or_path: str, data_root: str | Path, *, offline: bool = False, image_size: int | None = None
) -> Dataset:
    """Return a dataset: one by its name, or the user's NAME.npz or DIR/{train,test}/CLASS/*.

    data_root: where a known set is looked for first (torchvision's layout; NAME.npz; IDX files;
        NAME/{train,test}/CLASS/*); then come Debian's folder of Fashion-MNIST and torchvision's sources.
    offline: leave out torchvision's sources.
    image_size: S makes images in folders S x S pixels.
    Raises ConfigError for data that are missing, damaged, inconsistent or too large.
    """
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image-size {image_size} is not a size in pixels; expected at least 1")
    if name_or_path in KNOWN:
        raw, origin = load_known(name_or_path, Path(data_root).expanduser(), offline, image_size)
        return _build(raw, name_or_path, origin, KNOWN[name_or_path], image_size)
    if name_or_path in (own := entry_point_names("clbench.datasets")):
        return _of_package(name_or_path, Path(data_root).expanduser(), offline, image_size)
    path = Path(name_or_path).expanduser()
    if os.path.isdir(path):
        return _build(read_image_folder(path, image_size), path.resolve().name, str(path))
    if os.path.isfile(path) and path.suffix.lower() == ".npz":
        return _build(read_npz(path), path.stem, str(path), image_size=image_size)
    if os.path.exists(path):
        raise ConfigError(f"{path} is neither a .npz file nor a folder with train/CLASS and test/CLASS")
    if len(path.parts) > 1 or path.suffix:
        raise ConfigError(f"there is no file or folder {path}")
    raise unknown("dataset", name_or_path, [*KNOWN, *own])


def _of_package(name: str, data_root: Path, offline: bool, image_size: int | None) -> Dataset:
    """Return a data set that another package brings."""
    read: Any = load_entry_point("clbench.datasets", "dataset", name)
    if not callable(read):
        raise ConfigError(f"dataset {name!r} is {shown(read)}; a function of data_root and offline is accepted")
    try:
        data = read(data_root, offline)
    except ConfigError:
        raise
    except Exception as error:  # whatever a package raises
        raise ConfigError(f"dataset {name!r} can't be read ({type(error).__name__}: {error})") from error
    if not isinstance(data, Dataset):
        raise ConfigError(f"dataset {name!r} is {shown(data)}; a Dataset, as of dataset_from_arrays(), is accepted")
    if image_size is not None and (size := data.x_train.shape[2:]) != (image_size, image_size):
        raise ConfigError(
            f"{name}: --image-size {image_size} is for folders of images; these images are {_sizes(size)}"
        )
    return data


@checked
def dataset_from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    *,
    name: str = "custom",
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Return a dataset of arrays or CPU tensors.

    Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]; labels are any integers [N], mapped to 0..K-1 in
    sorted order. Raises ConfigError for anything else.
    """
    raw = Raw(
        to_nchw(x_train, f"{name}: x_train"),
        check_labels(y_train, f"{name}: y_train"),
        to_nchw(x_test, f"{name}: x_test"),
        check_labels(y_test, f"{name}: y_test"),
        None if class_names is None else tuple(map(str, class_names)),
    )
    return _build(raw, name, name)


@checked
def fingerprint(dataset: Dataset) -> str:
    """Return 32 hexadecimal digits that identify a dataset's images and labels (BLAKE2b)."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test):
        digest.update(str(array.shape).encode())
        for chunk in _chunks(array):
            digest.update(chunk.astype(chunk.dtype.newbyteorder("<"), order="C", copy=False).data)
    return digest.hexdigest()


def _chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (array[start : start + CHUNK] for start in range(0, len(array), CHUNK))


def _build(raw: Raw, name: str, origin: str, known: Known | None = None, image_size: int | None = None) -> Dataset:
    shape = raw.x_train.shape[1:]
    for part, images, labels in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
        if len(images) != len(labels):
            raise ConfigError(f"{origin}: x_{part} has {len(images)} images, y_{part} {len(labels)} labels")
        if images.shape[1:] != shape:
            raise ConfigError(f"{origin}: training images are {_sizes(shape)}, test images {_sizes(images.shape[1:])}")
    if known is not None and shape != known.shape:
        raise ConfigError(f"{origin}: the images are {_sizes(shape)}; those of {name} are {_sizes(known.shape)}")
    if image_size is not None and shape[1:] != (image_size, image_size):
        raise ConfigError(
            f"{origin}: --image-size {image_size} is for folders of images; these images are {_sizes(shape)}"
        )
    require_memory(raw.x_train.nbytes + raw.x_test.nbytes, origin)
    classes = np.unique(raw.y_train)
    class_names = _class_names(raw, classes, origin, known)
    mean, std = (known.mean, known.std) if known and known.mean and known.std else _mean_and_std(raw.x_train)
    return Dataset(
        name,
        raw.x_train,
        np.searchsorted(classes, raw.y_train).astype(np.int64),
        raw.x_test,
        np.searchsorted(classes, raw.y_test).astype(np.int64),
        class_names,
        mean,
        std,
        origin,
    )


def _class_names(raw: Raw, classes: NDArray[Any], origin: str, known: Known | None) -> tuple[str, ...]:
    """Return a name for each class; raise ConfigError if training, test and known classes do not agree."""
    if known is not None and not np.array_equal(classes, np.arange(len(known.class_names))):
        expected = f"all of 0..{len(known.class_names) - 1}"
        raise ConfigError(f"{origin}: the training labels are {_some(classes)}; expected {expected}")
    odd = np.setxor1d(classes, np.unique(raw.y_test))
    if len(odd):
        raise ConfigError(f"{origin}: only one of y_train and y_test has {_some(odd)}; each class needs both")
    originals = tuple(str(label) for label in classes.tolist())
    names = raw.class_names or originals
    if known is not None and names == originals:
        return known.class_names
    if len(names) != len(classes):
        raise ConfigError(f"{origin}: {len(names)} class names for {len(classes)} classes")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"{origin}: class names occur more than once: {_some(twice)}")
    return names


def _mean_and_std(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation (n) of images / 255 for each channel; a deviation of 0 becomes 1."""
    values = np.arange(256)
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for chunk in _chunks(images):
        for channel, of_channel in enumerate(counts):
            of_channel += np.bincount(chunk[:, channel].ravel(), minlength=256)
    n = images.size // images.shape[1]
    mean = counts @ values / n
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / n)
    return tuple((mean / 255).tolist()), tuple(value or 1.0 for value in (std / 255).tolist())


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _some(values: Sequence[Any] | NDArray[Any]) -> str:
    rest = len(values) - 5
    return ", ".join(map(str, values[:5])) + (f" and {rest} more" if rest > 0 else "")
