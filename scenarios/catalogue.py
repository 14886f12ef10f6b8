"""The catalogue of further data sets: those with labels that torchvision reads, and published ones in folders.

Each is an entry point of the group `clbench.datasets`, and `split-NAME` cuts tasks from it. One reader serves all.
"""

import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError, MissingDataError
from clbench.scenarios.encoded import found_images
from clbench.scenarios.files import Found, Raw, find_npz, to_samples
from clbench.scenarios.held_out import hold_out
from clbench.scenarios.images import Parts, find_image_folder, listed_files

if TYPE_CHECKING:
    from clbench.scenarios.datasets import Dataset

# The share of each class that becomes the test of a data set that has none.
TEST_SHARE = 0.2
STALL_SECONDS = 10.0  # the longest pause within an answer to a download
Arguments = Mapping[str, object]


@dataclass(frozen=True)
class Listed:
    """A data set by name: what it is, and how it is read.

    title: what it is, for lists.
    tasks: how many tasks `split-NAME` has by default.
    n: how many training and test images were published; where there is no test, how many images; None if unknown.
    torchvision: the name of its class in torchvision.datasets, or in OWN; "" for a folder of images.
    holds: the files and folders that are read, in torchvision's own layout below the data root; or that folder.
    train, test: the arguments of the data sets that make up training and test; no test: TEST_SHARE of each class.
    size: photos become S x S pixels by default; None where all images have one size, and are no files.
    like: the scenario whose preset it has.
    fields: what is different in its preset.
    """

    title: str
    tasks: int
    n: tuple[int, int] | None
    torchvision: str = ""
    holds: tuple[str, ...] = ()
    train: tuple[Arguments, ...] = ({},)
    test: tuple[Arguments, ...] = ()
    size: int | None = None
    like: str = "files"
    fields: Mapping[str, Any] = field(default_factory=dict)

    def difference(self, n_train: int, n_test: int) -> str:
        """Say how the numbers of images differ from those that were published; nothing if they don't."""
        if self.n is None or self.n in ((n_train, n_test), (n_train + n_test, 0)):
            return ""
        published = f"{self.n[0]:,} training and {self.n[1]:,} test images" if self.n[1] else f"{self.n[0]:,} images"
        return f"its data are {n_train:,} training and {n_test:,} test images, not the {published} that were published"

    def find(self, name: str, root: Path, offline: bool, image_size: int | None) -> Found:
        """Return where the data set is; torchvision downloads it if it is nowhere and `offline` is false.

        Raises ConfigError that says which files are expected where.
        """
        size = image_size or self.size
        if (found := self._there(name, root, size)) is not None:
            return found
        why = self._download(name, root, offline)
        if (found := self._there(name, root, size)) is not None:
            return found
        layout = f"put {', '.join(self.holds)} into {root}, or " if self.torchvision else "put "
        raise MissingDataError(
            f"there is no data for {name!r} in {root}; {layout}{name}.npz into {root}, or images into "
            f"{root / name}/train/CLASS and {root / name}/test/CLASS ({why})",
            longest=1000,  # it names every file
        )

    def _there(self, name: str, root: Path, size: int | None) -> Found | None:
        if self.torchvision and all((root / place).exists() for place in self.holds):
            if size is None or self.size is None:
                files = [root / place for place in self.holds]
                return Found(str(root), files, partial(self._read_arrays, root))
            return self._photos(root, size)
        if (npz := root / f"{name}.npz").is_file():
            return find_npz(npz)
        folders = [root / place for place in (name, *(() if self.torchvision else self.holds))]
        folder = next((folder for folder in folders if (folder / "train").is_dir()), None)
        return None if folder is None else find_image_folder(folder, size)

    def _download(self, name: str, root: Path, offline: bool) -> str:
        """Let torchvision download the data set; return why it could not."""
        if not self.torchvision or self.torchvision in OWN:
            return "clbench does not download it"
        if offline:
            return "offline: downloads are off"
        from torchvision import datasets

        print(f"clbench: torchvision downloads {name} to {root}", file=sys.stderr, flush=True)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(STALL_SECONDS)
        try:
            for arguments in (*self.train, *self.test):
                getattr(datasets, self.torchvision)(str(root), **arguments, download=True)
        except Exception as error:  # each of its classes raises its own
            return f"torchvision's download failed: {type(error).__name__}: {error}"
        finally:
            socket.setdefaulttimeout(before)
        return "torchvision put it elsewhere"

    def _opened(self, root: Path) -> tuple[list[Any], list[Any]]:
        """Return torchvision's data sets of training and test."""
        from torchvision import datasets

        kind = OWN.get(self.torchvision) or getattr(datasets, self.torchvision)
        # Other content than was published is known by its digest, so checksums of archives need not fit.
        kind = type(kind.__name__, (kind,), {"_check_integrity": lambda *_, **__: True})
        try:
            return [kind(str(root), **a) for a in self.train], [kind(str(root), **a) for a in self.test]
        except Exception as error:  # its readers raise almost anything on damaged files
            detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ConfigError(f"{self.torchvision} in {root} can't be read ({detail})") from error

    def _read_arrays(self, root: Path) -> Raw:
        train, test = self._opened(root)
        x_train, y_train = _arrays(train, f"{self.torchvision} in {root}")
        if test:
            x_test, y_test = _arrays(test, f"{self.torchvision} in {root}")
        else:
            x_test, y_test = x_train[:0], y_train[:0]
        names = _class_names(train[0])
        labels = np.unique(y_train)
        fits = names and len(labels) and labels[0] >= 0 and labels[-1] < len(names)
        raw = Raw(x_train, y_train, x_test, y_test, tuple(names[i] for i in labels) if fits else None)
        return raw if test else hold_out(raw, TEST_SHARE, str(root))

    def _photos(self, root: Path, size: int) -> Found:
        train, test = self._opened(root)
        files, names = _files(train)
        of_test, _ = _files(test) if test else ([], [])
        used = sorted({label for _, label in (*files, *of_test)})
        place = {label: index for index, label in enumerate(used)}
        parts = []
        for part in (files, of_test):
            by_class: list[list[Path]] = [[] for _ in used]
            for path, label in part:
                by_class[place[label]].append(path)
            parts.append([sorted(paths) for paths in by_class])
        paths = [path for part in parts for of_class in part for path in of_class]
        counts = Parts(list(map(len, parts[0])), [0] * len(used), list(map(len, parts[1])))
        called = tuple(names[label] if label < len(names) else str(label) for label in used)
        notes = [root / place for place in self.holds if (root / place).is_file()]  # the labels stand in them
        listed = partial(listed_files, root, paths, called, counts, {})
        found = found_images(root, "files of torchvision", [*notes, *paths], listed, size, None)
        return found if test else found._replace(read=lambda: hold_out(found.read(), TEST_SHARE, str(root)))


class CUB200:
    """CUB-200-2011 in the layout of its authors, as torchvision's classes are: http://www.vision.caltech.edu/datasets."""

    def __init__(self, root: str, *, train: bool) -> None:
        base = Path(root, "CUB_200_2011")

        def table(name: str) -> dict[str, str]:
            lines = (base / name).read_text("utf-8").splitlines()
            return dict(line.split(maxsplit=1) for line in lines if line.strip())

        files, labels, trained = map(table, ("images.txt", "image_class_labels.txt", "train_test_split.txt"))
        # Classes are numbered from 1, and called 001.Black_footed_Albatross.
        self.classes = [name.partition(".")[2] or name for name in table("classes.txt").values()]
        of_part = [i for i in files if trained[i].strip() == str(int(train))]
        self._samples = [(base / "images" / files[i].strip(), int(labels[i]) - 1) for i in of_part]


OWN: dict[str, Any] = {"CUB200": CUB200}


def _arrays(sets: Sequence[Any], what: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images uint8 [N, C, H, W] and labels int64 [N] of data sets that torchvision holds in memory."""
    images = [to_samples(np.asarray(data.data), what) for data in sets]
    labels = [np.asarray(getattr(data, "targets", getattr(data, "labels", None))) for data in sets]
    # QMNIST has more than the class in a row, and the class first.
    return np.concatenate(images), np.concatenate([of.reshape(len(of), -1)[:, 0] for of in labels]).astype(np.int64)


def _files(sets: Sequence[Any]) -> tuple[list[tuple[Path, int]], list[str]]:
    """Return the path and the class of each image of data sets that torchvision reads from files, and class names.

    The two parts of Omniglot have classes of their own; those of the second come after those of the first.
    """
    found: list[tuple[Path, int]] = []
    names: list[str] = []
    for data in sets:
        first = 0
        if hasattr(data, "_flat_character_images"):
            # torchvision numbers the folders in the order in which the file system lists them.
            first, own = len(names), sorted(data._characters)
            place = {character: index for index, character in enumerate(own)}
            found_here = [(data._characters[label], image) for image, label in data._flat_character_images]
            pairs: Any = [(Path(data.target_folder, of, image), place[of]) for of, image in found_here]
            names = [*names, *own]
        else:
            pairs = next((getattr(data, name) for name in ("_samples", "samples", "imgs") if hasattr(data, name)), None)
            if pairs is None:
                pairs = zip(getattr(data, "_image_files", None) or data._images, data._labels, strict=True)
            names = _class_names(data)
        found += [(Path(path), int(label) + first) for path, label in pairs]
    return found, names


def _class_names(data: Any) -> list[str]:
    """Return torchvision's names of the classes, of several for one the first; [] where it has none."""
    return [name[0] if isinstance(name, tuple) else str(name) for name in getattr(data, "classes", [])]


def digits(data_root: Path, offline: bool) -> "Dataset":
    """Return 1,797 digits of 8 x 8 pixels that come with scikit-learn; every fifth of a class is a test image."""
    from sklearn.datasets import load_digits

    from clbench.scenarios.datasets import dataset_from_arrays

    images, labels = load_digits(return_X_y=True)
    # 16 shades of grey, of which 16 itself is the brightest.
    pixels = np.minimum(images.reshape(-1, 8, 8) * 16, 255).astype(np.uint8)
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange(np.count_nonzero(labels == label))
    test = rank % 5 == 4
    return dataset_from_arrays(pixels[~test], labels[~test], pixels[test], labels[test], name="digits")


def _splits(*names: str) -> tuple[Arguments, ...]:
    return tuple({"split": name} for name in names)


def _emnist(title: str, split: str, tasks: int, n: tuple[int, int]) -> Listed:
    parts = [f"EMNIST/raw/emnist-{split}-{part}" for part in ("train", "test")]
    holds = tuple(f"{part}-{kind}-ubyte" for part in parts for kind in ("images-idx3", "labels-idx1"))
    arguments = {"split": split}
    return Listed(
        f"EMNIST, {title}",
        tasks,
        n,
        "EMNIST",
        holds,
        ({**arguments, "train": True},),
        ({**arguments, "train": False},),
        like="split-mnist",
    )


# Numbers of images are those of the data sets' own pages or papers.
svhn = Listed(
    "SVHN, house numbers in colour",
    5,
    (73_257, 26_032),
    "SVHN",
    ("train_32x32.mat", "test_32x32.mat"),
    _splits("train"),
    _splits("test"),
    like="split-cifar10",
)
emnist = _emnist("digits and letters, 47 classes of equal size", "balanced", 5, (112_800, 18_800))
emnist_letters = _emnist("26 letters, small and large ones together", "letters", 13, (124_800, 20_800))
emnist_digits = _emnist("280,000 digits", "digits", 5, (240_000, 40_000))
emnist_byclass = _emnist("62 digits, small and large letters", "byclass", 10, (697_932, 116_323))
emnist_bymerge = _emnist("47 digits and letters of any number", "bymerge", 5, (697_932, 116_323))
qmnist = Listed(
    "QMNIST, MNIST with all 60,000 test digits",
    5,
    (60_000, 60_000),
    "QMNIST",
    tuple(
        f"QMNIST/raw/qmnist-{part}-{kind}"
        for part in ("train", "test")
        for kind in ("images-idx3-ubyte", "labels-idx2-int")
    ),
    ({"what": "train"},),
    ({"what": "test"},),
    like="split-mnist",
)
usps = Listed(
    "USPS, digits of 16 x 16 pixels from envelopes",
    5,
    (7_291, 2_007),
    "USPS",
    ("usps.bz2", "usps.t.bz2"),
    ({"train": True},),
    ({"train": False},),
    like="split-mnist",
)
semeion = Listed(
    "SEMEION, digits of 16 x 16 pixels; a fifth of each class is the test",
    5,
    (1_593, 0),
    "SEMEION",
    ("semeion.data",),
    ({"download": False},),
    like="split-mnist",
)
omniglot = Listed(
    "Omniglot, 1,623 characters of 50 alphabets, 20 drawings each; a fifth of each class is the test",
    10,
    (32_460, 0),
    "Omniglot",
    ("omniglot-py/images_background", "omniglot-py/images_evaluation"),
    ({"background": True}, {"background": False}),
    size=28,
)
stl10 = Listed(
    "STL-10, photos of 96 x 96 pixels",
    5,
    (5_000, 8_000),
    "STL10",
    tuple(f"stl10_binary/{part}_{kind}.bin" for part in ("train", "test") for kind in "Xy"),
    _splits("train"),
    _splits("test"),
)
gtsrb = Listed(
    "GTSRB, 43 German traffic signs",
    5,
    (26_640, 12_630),
    "GTSRB",
    ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
    _splits("train"),
    _splits("test"),
    size=32,
)
eurosat = Listed(
    "EuroSAT, 10 kinds of land from a satellite; a fifth of each class is the test",
    5,
    (27_000, 0),
    "EuroSAT",
    ("eurosat/2750",),
    size=64,
)
flowers102 = Listed(
    "Flowers-102, 102 flowers; its validation images are training images too",
    6,
    (2_040, 6_149),
    "Flowers102",
    ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
    _splits("train", "val"),
    _splits("test"),
    size=64,
)
dtd = Listed(
    "DTD, 47 textures; its validation images are training images too",
    5,
    (3_760, 1_880),
    "DTD",
    ("dtd/dtd/images", *(f"dtd/dtd/labels/{part}1.txt" for part in ("train", "val", "test"))),
    _splits("train", "val"),
    _splits("test"),
    size=64,
)
food101 = Listed(
    "Food-101, 101 dishes",
    10,
    (75_750, 25_250),
    "Food101",
    ("food-101/images", "food-101/meta/train.json", "food-101/meta/test.json"),
    _splits("train"),
    _splits("test"),
    size=64,
)
oxford_pets = Listed(
    "Oxford-IIIT Pet, 37 breeds of cats and dogs",
    5,
    (3_680, 3_669),
    "OxfordIIITPet",
    ("oxford-iiit-pet/images", *(f"oxford-iiit-pet/annotations/{part}.txt" for part in ("trainval", "test"))),
    _splits("trainval"),
    _splits("test"),
    size=64,
)
stanford_cars = Listed(
    "Stanford Cars, 196 models",
    10,
    (8_144, 8_041),
    "StanfordCars",
    (
        *("stanford_cars/cars_train", "stanford_cars/cars_test", "stanford_cars/devkit/cars_meta.mat"),
        *("stanford_cars/devkit/cars_train_annos.mat", "stanford_cars/cars_test_annos_withlabels.mat"),
    ),
    _splits("train"),
    _splits("test"),
    size=64,
)
fgvc_aircraft = Listed(
    "FGVC-Aircraft, 100 variants",
    10,
    (6_667, 3_333),
    "FGVCAircraft",
    (
        "fgvc-aircraft-2013b/data/images",
        *(f"fgvc-aircraft-2013b/data/{part}.txt" for part in ("variants", "images_variant_trainval")),
        "fgvc-aircraft-2013b/data/images_variant_test.txt",
    ),
    _splits("trainval"),
    _splits("test"),
    size=64,
)
country211 = Listed(
    "Country211, photos from 211 countries; its validation images are left out",
    10,
    (31_650, 21_100),
    "Country211",
    ("country211/train", "country211/test"),
    _splits("train"),
    _splits("test"),
    size=64,
)
imagenette = Listed(
    "Imagenette, 10 classes of ImageNet at 160 pixels",
    5,
    (9_469, 3_925),
    "Imagenette",
    ("imagenette2-160/train", "imagenette2-160/val"),
    ({"split": "train", "size": "160px"},),
    ({"split": "val", "size": "160px"},),
    size=64,
)
sun397 = Listed(
    "SUN397, 397 scenes; a fifth of each class is the test",
    10,
    (108_754, 0),
    "SUN397",
    ("SUN397", "SUN397/ClassName.txt"),
    size=64,
)
places365 = Listed(
    "Places365, 365 scenes, tested on its validation images",
    10,
    (1_803_460, 36_500),
    "Places365",
    (
        *("data_256_standard", "val_256", "categories_places365.txt"),
        *("places365_train_standard.txt", "places365_val.txt"),
    ),
    ({"split": "train-standard", "small": True},),
    ({"split": "val", "small": True},),
    size=64,
)
notmnist = Listed("notMNIST, letters A to J in many fonts", 5, None, holds=("notMNIST",), size=28, like="split-mnist")
# Buzzega et al. 2020, arXiv:2004.07211: trained as CIFAR-10 is, for 100 epochs.
tiny_imagenet = Listed(
    "Tiny-ImageNet, 200 classes of 64 x 64 pixels, tested on its validation images",
    10,
    (100_000, 10_000),
    holds=("tiny-imagenet-200",),
    size=64,
    like="split-cifar10",
    fields={"epochs": 100},
)
# Hou et al. 2019 (LUCIR, CVPR), section 4.1: ResNet-18, 90 epochs, SGD at 0.1 with momentum 0.9, divided by 10 after 30
# and 60 epochs, decay 1e-4, batches of 128. Ten tasks and 20 exemplars a class are those of Rebuffi et al. 2017.
_LUCIR: Mapping[str, Any] = {
    "model": "torchvision",
    "epochs": 90,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0001,
    "batch_size": 128,
    "schedule": "multistep",
    "milestones": [30, 60],
    "lr_factor": 0.1,
}
imagenet100 = Listed(
    "ImageNet-100, 100 classes of ImageNet, tested on their validation images",
    10,
    None,
    holds=("imagenet-100",),
    size=224,
    fields={**_LUCIR, "memory_size": 2_000},
)
imagenet1k = Listed(
    "ImageNet-1k (ILSVRC 2012), tested on its validation images",
    10,
    (1_281_167, 50_000),
    holds=("imagenet", "ILSVRC2012"),
    size=224,
    fields={**_LUCIR, "memory_size": 20_000},
)
cub200 = Listed(
    "CUB-200-2011, 200 birds",
    10,
    (5_994, 5_794),
    "CUB200",
    (
        "CUB_200_2011/images",
        *(f"CUB_200_2011/{name}.txt" for name in ("images", "image_class_labels", "train_test_split", "classes")),
    ),
    ({"train": True},),
    ({"train": False},),
    size=224,
)
# Wang et al. 2022 (DualPrompt), arXiv:2204.04799, who cut the test images from the 30,000.
imagenet_r = Listed(
    "ImageNet-R, 200 classes of ImageNet as art and toys",
    10,
    (24_000, 6_000),
    holds=("imagenet-r",),
    size=224,
)
