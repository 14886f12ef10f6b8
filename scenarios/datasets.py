"""The data sets that scenarios are cut from: a known one by its name, or the user's own files or arrays.

A package brings a data set by name with an entry point of the group `clbench.datasets`: a function of `data_root`, a
Path, and `offline`, which forbids downloads. It returns a Dataset and raises ConfigError for data that are missing.
"""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.plain import listed, plain
from clbench.config.registry import entry_point_names, load_entry_point, natural_sorted
from clbench.data.scenario import checksums
from clbench.data.sources import Changed, is_mapped
from clbench.scenarios.catalogue import Listed
from clbench.scenarios.encoded import copied
from clbench.scenarios.files import (
    Found,
    Raw,
    check_labels,
    chunks,
    digest,
    find_npz,
    memory_allowed,
    require_memory,
    to_samples,
)
from clbench.scenarios.held_out import hold_out
from clbench.scenarios.images import find_image_folder
from clbench.scenarios.known import KNOWN, Known, Published, find_known
from clbench.scenarios.layouts import Asked, columns_of, find_own, refuse_columns
from clbench.scenarios.mapped import mapped_copy, remembered
from clbench.scenarios.packed import read_packed

__all__ = ["KNOWN", "Dataset", "dataset_from_arrays", "fingerprint", "load_dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, split into training and test.

    x_train, x_test: images, uint8 [N, C, H, W], or other samples, float32 [N, ...]; contiguous, perhaps read-only.
        Folders are memory-mapped, and of the type np.memmap where they stay on disk (see load_dataset); images that
        each task sees in another way are made when they are asked for (np.asarray makes them all).
    y_train, y_test: labels, int64 [N] in 0..K-1, indices into `class_names`.
    mean, std: of images / 255 or of other samples, for each channel, which is the first axis of a sample.
    origin: the path or package that the data came from.
    n_validation: the number of images at the end of x_train that are a validation split of the data's own.
    published: what was published under this name.
    left_out: the files that can't be used and are left out.
    """

    name: str
    x_train: NDArray[Any] | Changed
    y_train: NDArray[np.int64]
    x_test: NDArray[Any] | Changed
    y_test: NDArray[np.int64]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str
    n_validation: int = 0
    published: Published | None = None
    left_out: tuple[str, ...] = ()

    @cached_property
    def compared(self) -> "Compared":
        """The data's digest and their differences from the published ones, when either was first asked for."""
        content, found = self.checksums(), {}
        if self.published is not None:
            found["training"] = self.published.train.difference(np.asarray(self.x_train), self.y_train)
            found["test"] = self.published.test.difference(np.asarray(self.x_test), self.y_test)
        differences = {part: text for part, text in found.items() if text}
        return Compared(fingerprint(self) if differences or not found else None, differences, content)

    @property
    def differences(self) -> dict[str, str]:
        """The differences of the training and the test data from the published ones, in words."""
        return self._compared_now().differences

    @property
    def fingerprint(self) -> str | None:
        """The digest of images and labels; None where they are those that were published under the data set's name."""
        return self._compared_now().fingerprint

    def _compared_now(self) -> "Compared":
        # `compared` stays of the first content: load_once() finds by it that an array was written into.
        return (self if self.compared.content == self.checksums() else replace(self)).compared

    def checksums(self) -> tuple[int, ...]:
        """Return what tells whether images, labels or their normalisation have been changed since; see checksums()."""
        return checksums(self.x_train, self.y_train, self.x_test, self.y_test, scale=(self.mean, self.std))

    def check(self) -> None:
        """Refuse arrays that are not as this class says, which split() would cut wrongly; raises ConfigError."""
        parts = (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test))
        for part, x, y in parts:
            usual = isinstance(x, np.ndarray) and x.ndim >= 2 and x.size > 0
            if not isinstance(x, Changed) and not (
                usual and (x.dtype == np.float32 or (x.dtype == np.uint8 and x.ndim == 4))
            ):
                raise ConfigError(
                    f"{self.name}: x_{part} is {_described(x)}; uint8 [N, C, H, W] and float32 [N, ...] are accepted, "
                    "and dataset_from_arrays() takes other layouts"
                )
            if not isinstance(y, np.ndarray) or y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
                raise ConfigError(
                    f"{self.name}: y_{part} is {_described(y)}; int64 [{len(x)}], a label for each image, is accepted"
                )
            if int(y.min()) < 0 or int(y.max()) >= len(self.class_names):
                raise ConfigError(
                    f"{self.name}: y_{part} has labels from {int(y.min())} to {int(y.max())}; indices into the "
                    f"{len(self.class_names)} class_names are accepted, as dataset_from_arrays() makes them"
                )
        if (shape := self.x_train.shape[1:]) != self.x_test.shape[1:]:
            raise ConfigError(
                f"{self.name}: training images are {_sizes(shape)}, test images {_sizes(self.x_test.shape[1:])}"
            )
        of_train, of_test = (str(x.dtype).removeprefix("torch.") for x in (self.x_train, self.x_test))
        if of_train != of_test:
            raise ConfigError(f"{self.name}: x_train is {of_train} and x_test {of_test}; one type is accepted")
        if of_train == "uint8" and shape[0] not in (1, 3):
            raise ConfigError(
                f"{self.name}: the images are {_sizes(shape)}; 1 or 3 channels, which come first, are accepted"
            )
        if not 0 <= self.n_validation < len(self.x_train):
            raise ConfigError(
                f"{self.name}: n_validation={self.n_validation} of {len(self.x_train)} training images; 0 up to "
                f"{len(self.x_train) - 1} is accepted"
            )


class Compared(NamedTuple):
    """The fingerprint of data, their differences from what was published, and checksums of the data it is true of."""

    fingerprint: str | None
    differences: dict[str, str]
    content: tuple[int, ...]


def _described(array: object) -> str:
    return f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else shown(array)


@checked
def load_dataset(
    name_or_path: str | os.PathLike[str],
    data_root: str | os.PathLike[str],
    *,
    offline: bool = False,
    image_size: int | None = None,
    test_share: float | None = None,
    skip_unreadable: bool = False,
    memory_limit: int | str | None = None,
    columns: str | None = None,
) -> Dataset:
    """Return a dataset: one by its name, or the user's NAME.npz or DIR/{train,test}/CLASS/*, with or without DIR/val.

    The user's images may also be Tiny-ImageNet's folders, files that a CSV file names, tar files of WebDataset, Parquet
    files, a folder of save_to_disk (Arrow), or a file that `clbench data pack` wrote.

    data_root: where a known set is looked for first (torchvision's layout; NAME.npz; IDX files;
        NAME/{train,test}/CLASS/*); then come Debian's folder of Fashion-MNIST and torchvision's sources.
    offline: leave out torchvision's sources.
    image_size: S makes images in folders S x S pixels.
    test_share: the share of each class that becomes the test, of the user's data that have none: DIR/CLASS/*,
        DIR/train/CLASS/*, or an NPZ file with x_train and y_train alone.
    skip_unreadable: leave out the user's image files that can't be used.
    columns: the names of the columns of a table that are not known by themselves: image=file,label=kind,split=part.
    memory_limit: the bytes of pixels that may be held in memory, or a size such as 4GB; more stay on disk, mapped.
        By default half of the free memory for decoded images, and no limit for what is in memory in any case.
    Raises ConfigError for data that are missing, damaged, inconsistent or too large. Warns of data that are not those
    that were published under the name.
    """
    found = find_dataset(
        name_or_path,
        data_root,
        offline,
        image_size,
        test_share=test_share,
        skip_unreadable=skip_unreadable,
        columns=columns,
    )
    if isinstance(found, Dataset):
        return found
    return read_dataset(name_or_path, found, image_size, test_share, memory_limit)


def known_names() -> list[str]:
    """Return the names of the data sets that clbench and other packages bring."""
    return [*KNOWN, *entry_point_names("clbench.datasets")]


def listed_data(name: str) -> Listed | None:
    """Return a data set's entry in the catalogue, or None for one that is not there; raises ConfigError."""
    found = name in entry_point_names("clbench.datasets") and load_entry_point("clbench.datasets", "dataset", name)
    return found if isinstance(found, Listed) else None


def takes_size(name_or_path: str) -> bool:
    """Whether image_size changes how a data set is read: a folder of images of any size, or one of the catalogue."""
    if name_or_path in known_names():
        listed = listed_data(name_or_path)
        return listed is not None and listed.size is not None
    return os.path.isdir(name_or_path)


def find_dataset(
    name_or_path: str | os.PathLike[str],
    data_root: str | os.PathLike[str],
    offline: bool,
    image_size: int | None,
    *,
    test_share: float | None = None,
    skip_unreadable: bool = False,
    columns: str | None = None,
) -> Found | Dataset:
    """Return where a data set is, or what a package made of it; see load_dataset()."""
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image-size {image_size} is not a size in pixels; expected at least 1")
    if test_share is not None and not 0 < test_share < 1:
        raise ConfigError(f"test_share={test_share:g} is a share; more than 0 and less than 1 is accepted")
    root = Path(data_root).expanduser()
    own = entry_point_names("clbench.datasets")
    if (test_share or skip_unreadable or columns) and name_or_path in (*KNOWN, *own):
        raise ConfigError(
            f"test_share, skip_unreadable and columns are for files of your own; {name_or_path} has its own test"
        )
    if name_or_path in KNOWN:
        return find_known(str(name_or_path), root, offline, image_size)
    if name_or_path in own:
        listed = listed_data(str(name_or_path))
        if listed is not None:
            return listed.find(str(name_or_path), root, offline, image_size)
        return _of_package(str(name_or_path), root, offline, image_size)
    path = Path(name_or_path).expanduser()
    asked = Asked(image_size, test_share is not None, skip_unreadable, columns_of(columns))
    if os.path.exists(path) and (other := find_own(path, asked)) is not None:
        return other
    refuse_columns(columns, path)
    if os.path.isdir(path):
        return find_image_folder(path, image_size, held_out=test_share is not None, skip=skip_unreadable)
    if os.path.isfile(path) and path.suffix.lower() == ".npz":
        if skip_unreadable:
            raise ConfigError(f"skip_unreadable is for folders of images; {path} is one file")
        return find_npz(path, held_out=test_share is not None)
    if os.path.isfile(path) and path.suffix.lower() == ".npy":
        if skip_unreadable or test_share is not None:
            raise ConfigError(f"skip_unreadable and test_share are for clbench data pack; {path} is packed")
        return Found(str(path), [path], partial(read_packed, path), "packed images")
    if os.path.exists(path):
        raise ConfigError(
            f"{path} is neither a .npz file nor a folder with train/CLASS and test/CLASS, nor a .csv, .tar, .parquet "
            "or packed .npy file"
        )
    if len(path.parts) > 1 or path.suffix or os.sep in str(name_or_path):
        raise ConfigError(f"there is no file or folder {path}")
    raise unknown("dataset", str(name_or_path), [*KNOWN, *own])


def read_dataset(
    name_or_path: str | os.PathLike[str],
    found: Found,
    image_size: int | None,
    test_share: float | None = None,
    memory_limit: int | str | None = None,
) -> Dataset:
    """Read a data set that was found; see load_dataset()."""
    if name_or_path not in KNOWN:
        path = Path(name_or_path).expanduser()
        raw = found.read() if test_share is None else hold_out(found.read(), test_share, found.origin)
        short = path.resolve().name if path.is_dir() else path.stem
        data = _build(raw, short, found.origin, None, image_size, memory_limit)
        if path.is_file() or test_share is not None:
            _note_shared(data)
        listed = listed_data(str(name_or_path))
        if listed is not None and (told := listed.difference(len(data.x_train), len(data.x_test))):
            warnings.warn(f"{name_or_path} in {data.origin}: {told}", stacklevel=2)
        return data
    name = str(name_or_path)
    data = _build(found.read(), name, found.origin, KNOWN[name], image_size, memory_limit)
    told = "; ".join(f"its {part} data are {text}" for part, text in data.compared.differences.items())
    if (expected := KNOWN[name].n) and (found_n := (len(data.x_train), len(data.x_test))) != expected:
        numbers = [f"{n:,} training and {n_test:,} test images" for n, n_test in (found_n, expected)]
        told = f"its data are {numbers[0]}, not the {numbers[1]} that were published"
    if told:
        warnings.warn(f"{name} in {data.origin}: {told}", stacklevel=2)
    return data


def _note_shared(data: Dataset) -> None:
    """Warn of test images that are training images too."""
    if n := len(remembered("copies", lambda: copied(data.x_train, data.x_test), data.x_train, data.x_test)):
        warnings.warn(
            f"{data.origin}: {n:,} of {len(data.x_test):,} test images are training images too; "
            "accuracies on them say little about new images",
            stacklevel=3,
        )


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
    data.check()
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
    class_names: Any = None,
) -> Dataset:
    """Return a dataset of arrays or CPU tensors, which are copied.

    Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]; other samples are floats of any fixed shape, [N, D] or
    [N, ...], whose first axis is what they are normalised for. Labels are whole numbers or text, [N] or [N, 1], or
    one-hot rows [N, K], mapped to 0..K-1 in sorted order.

    class_names: a name for each label in sorted order, or a table from labels to names; where the labels are text, a
        list holds the same names in the order that is wanted.
    Raises ConfigError for anything else. Warns of test images that are training images too.
    """
    # Copied, because what the caller writes into the arrays later is not what was measured here.
    raw = Raw(
        np.array(to_samples(x_train, f"{name}: x_train"), order="C"),
        check_labels(y_train, f"{name}: y_train"),
        np.array(to_samples(x_test, f"{name}: x_test"), order="C"),
        check_labels(y_test, f"{name}: y_test"),
    )
    if isinstance(class_names, Mapping):
        raw = _numbered(raw, name)
    labels = list(raw.class_names or np.unique(raw.y_train).tolist())
    if class_names is not None:
        raw = raw._replace(class_names=_given_names(class_names, labels, name))
    data = _build(raw, name, name)
    _note_shared(data)
    return data


def _given_names(names: object, labels: list[Any], what: str) -> tuple[str, ...]:
    """Return the names of the classes in order of their labels; raises ConfigError."""
    if isinstance(names, Mapping):
        if set(names) != set(labels):
            raise ConfigError(
                f"{what}: class_names has the keys {_some([repr(key) for key in names])}; the labels of y_train are "
                f"accepted: {_some(labels)}"
            )
        names = [names[label] for label in labels]
    names = listed(names)
    names = [plain(name) for name in names] if isinstance(names, list) else names
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise ConfigError(
            f"{what}: class_names={shown(names)} given; a list with a name for each class, or a table from labels to "
            "names, is accepted"
        )
    return tuple(map(str, names))


@checked
def fingerprint(dataset: Dataset) -> str:
    """Return 32 hexadecimal digits that identify a dataset's images and labels; raises what Dataset.check() raises."""
    dataset.check()
    held = [np.array([dataset.n_validation])] if dataset.n_validation else []
    parts = (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test, *held)
    return str(remembered("fingerprint", lambda: digest(*parts), *parts))


def in_place(parts: tuple[Any, Any], origin: str, limit: int | str | None) -> tuple[Any, Any]:
    """Return training and test images where they are held: in memory, or mapped from disk above the limit.

    Raises ConfigError for floats above it.
    """
    mapped, total = all(map(is_mapped, parts)), sum(part.nbytes for part in parts)
    # Images that are in memory in any case go to the disk only where a limit asks for it.
    if limit is None and not mapped:
        require_memory(total, origin)
    elif total > (allowed := memory_allowed(limit)):
        sizes = " and ".join(
            f"{name} {part.nbytes / 1e9:.3g} GB" for name, part in zip(("train", "test"), parts, strict=True)
        )
        above = f"half of the free memory, {allowed / 1e9:.3g} GB" if limit is None else f"the limit of {limit}"
        if parts[0].dtype != np.uint8:
            raise ConfigError(f"{origin}: {sizes} of floats, above {above}; images alone can stay on disk")
        print(f"clbench: {origin}: {sizes} mapped from disk, above {above}", file=sys.stderr)
        return parts if mapped else (mapped_copy(parts[0], origin), mapped_copy(parts[1], origin))
    return np.ascontiguousarray(parts[0]), np.ascontiguousarray(parts[1])


def _build(
    raw: Raw,
    name: str,
    origin: str,
    known: Known | None = None,
    image_size: int | None = None,
    memory_limit: int | str | None = None,
) -> Dataset:
    raw, shape = _numbered(raw, origin), raw.x_train.shape[1:]
    if raw.x_train.dtype != raw.x_test.dtype:
        raise ConfigError(
            f"{origin}: x_train is {raw.x_train.dtype} and x_test {raw.x_test.dtype}; uint8 images, or floats, in both "
            "are accepted"
        )
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
    x_train, x_test = in_place((raw.x_train, raw.x_test), origin, memory_limit)
    if raw.x_train.dtype != np.uint8 and len(shape) == 2 and shape[0] == shape[1]:
        warnings.warn(
            f"{origin}: floats of the shape {[*shape]} are taken as {shape[0]} channels of {shape[1]} numbers each; "
            f"grey images have the shape [1, {shape[0]}, {shape[1]}]",
            stacklevel=4,
        )
    classes = np.unique(raw.y_train)
    class_names = _class_names(raw, classes, origin, known)
    n = len(raw.x_train) - raw.n_validation
    if known and known.mean and known.std:
        mean, std = known.mean, known.std
    else:
        mean, std = map(tuple, remembered("scale", lambda: _mean_and_std(x_train[:n]), x_train[:n]))
    return Dataset(
        name,
        x_train,
        np.searchsorted(classes, raw.y_train).astype(np.int64),
        x_test,
        np.searchsorted(classes, raw.y_test).astype(np.int64),
        class_names,
        mean,
        std,
        origin,
        raw.n_validation,
        None if known is None else known.published,
        raw.left_out,
    )


def _numbered(raw: Raw, origin: str) -> Raw:
    """Return labels that are text as numbers, in the order of the class names, or else in natural order."""
    texts = [labels.dtype.kind == "U" for labels in (raw.y_train, raw.y_test)]
    if not any(texts):
        return raw
    if not all(texts):
        raise ConfigError(
            f"{origin}: one of y_train and y_test is text, the other numbers; labels of one kind are accepted"
        )
    known, tested = set(raw.y_train.tolist()), set(raw.y_test.tolist())
    if known != tested:
        odd = natural_sorted(known ^ tested)
        raise ConfigError(f"{origin}: only one of y_train and y_test has {_some(odd)}; each class needs both")
    names = tuple(natural_sorted(known))
    if raw.class_names is not None:
        if sorted(raw.class_names) != sorted(known):
            raise ConfigError(
                f"{origin}: the labels are text, and class_names has {_some(raw.class_names)}; the same names in any "
                f"order are accepted: {_some(names)}"
            )
        names = raw.class_names
    number = {name: index for index, name in enumerate(names)}
    y_train, y_test = (np.array([number[v] for v in y.tolist()], np.int64) for y in (raw.y_train, raw.y_test))
    return raw._replace(y_train=y_train, y_test=y_test, class_names=names)


def _class_names(raw: Raw, classes: NDArray[Any], origin: str, known: Known | None) -> tuple[str, ...]:
    """Return a name for each class; raise ConfigError if training, test and known classes do not agree."""
    if known is not None and not np.array_equal(classes, np.arange(len(known.class_names))):
        expected = f"all of 0..{len(known.class_names) - 1}"
        raise ConfigError(f"{origin}: the training labels are {_some(classes)}; expected {expected}")
    odd = np.setxor1d(classes, np.unique(raw.y_test))
    if len(odd):
        raise ConfigError(f"{origin}: only one of y_train and y_test has {_some(odd)}; each class needs both")
    originals = tuple(str(label) for label in classes.tolist())
    names = originals if raw.class_names is None else raw.class_names
    if known is not None and names == originals:
        return known.class_names
    if len(names) != len(classes):
        raise ConfigError(f"{origin}: {len(names)} class names for {len(classes)} classes")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"{origin}: class names occur more than once: {_some(twice)}")
    return names


def _mean_and_std(images: NDArray[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation (n) of images / 255, or of floats, for each channel; 0 becomes 1."""
    if images.dtype != np.uint8:
        return _mean_and_std_of_floats(images)
    values = np.arange(256)
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for chunk in chunks(images):
        for channel, of_channel in enumerate(counts):
            of_channel += np.bincount(chunk[:, channel].ravel(), minlength=256)
    n = images.size // images.shape[1]
    mean = counts @ values / n
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / n)
    return tuple((mean / 255).tolist()), tuple(value or 1.0 for value in (std / 255).tolist())


def _mean_and_std_of_floats(samples: NDArray[np.float32]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    axes = (0, *range(2, samples.ndim))
    n = samples.size / samples.shape[1]
    mean = sum(chunk.sum(axes, np.float64) for chunk in chunks(samples)) / n
    centred = (chunk - mean.reshape(-1, *[1] * (samples.ndim - 2)) for chunk in chunks(samples))
    std = np.sqrt(sum((chunk**2).sum(axes) for chunk in centred) / n)
    return tuple(mean.tolist()), tuple(value or 1.0 for value in std.tolist())


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _some(values: Sequence[Any] | NDArray[Any]) -> str:
    rest = len(values) - 5
    return ", ".join(map(str, values[:5])) + (f" and {rest} more" if rest > 0 else "")
