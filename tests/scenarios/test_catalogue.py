"""The catalogue of data sets: files in torchvision's own layout, written here; what is refused; plug-ins."""

import bz2
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clbench import ConfigError
from clbench.config.errors import MissingDataError
from clbench.config.registry import entry_point_names, load_entry_point
from clbench.running.resolve import prepare, resolve, scenario_class
from clbench.scenarios import load_dataset
from clbench.scenarios.catalogue import Listed
from clbench.scenarios.registered import Split

pytestmark = pytest.mark.filterwarnings("ignore:.*that were published", "ignore:.*training images too")

NAMES = entry_point_names("clbench.datasets")
LISTED = {
    name: row for name in NAMES if isinstance(row := load_entry_point("clbench.datasets", "dataset", name), Listed)
}
OF_TORCHVISION = [name for name, row in LISTED.items() if row.torchvision]


def pixels(*shape: int) -> Any:
    """Return the same random pixels for one shape."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def photo(path: Path, value: int, size: int = 8) -> None:
    """Write a colour image of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def matlab(path: Path, **arrays: Any) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, arrays)


# Each writes a data set, and returns the values of its training pixels, training and test labels, and class names.


def svhn(root: Path) -> Any:
    """The class 10 of the files is the digit 0: http://ufldl.stanford.edu/housenumbers/."""
    images, labels = pixels(12, 3, 32, 32), [*range(1, 11), 10, 1]
    for part, n in (("train", 12), ("test", 10)):
        x = images[:n].transpose(2, 3, 1, 0)
        matlab(root / f"{part}_32x32.mat", X=x, y=np.array(labels[:n])[:, None].astype(np.uint8))
    return images, [*range(1, 10), 0, 0, 1], [*range(1, 10), 0], tuple("0123456789")


def emnist_letters(root: Path) -> Any:
    """Labels are 1 to 26: Cohen et al. 2017, arXiv:1702.05373."""
    images, labels = pixels(26, 28, 28), np.arange(1, 27, dtype=np.uint8)
    for part in ("train", "test"):
        stem = root / "EMNIST" / "raw" / f"emnist-letters-{part}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            stem.with_name(f"{stem.name}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return images[:, None], list(range(26)), list(range(26)), tuple("abcdefghijklmnopqrstuvwxyz")


def usps(root: Path) -> Any:
    """LIBSVM's text: a label of 1 to 10, then index:value with values from -1 to 1."""
    for name, values in (("usps.bz2", (-1, 1)), ("usps.t.bz2", (1,))):
        lines = [f"{c} " + " ".join(f"{i}:{v}" for i in range(1, 257)) for v in values for c in range(1, 11)]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode() + b"\n"))
    values = np.repeat([0, 255], 10)[:, None, None, None] * np.ones((1, 1, 16, 16), int)
    return values, [*range(10)] * 2, list(range(10)), tuple("0123456789")


def stl10(root: Path) -> Any:
    """Columns first, labels from 1: https://cs.stanford.edu/~acoates/stl10."""
    images = pixels(10, 3, 96, 96)
    (root / "stl10_binary").mkdir()
    for part in ("train", "test"):
        (root / "stl10_binary" / f"{part}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        (root / "stl10_binary" / f"{part}_y.bin").write_bytes(np.arange(1, 11, dtype=np.uint8).tobytes())
    names = [f"thing {i}" for i in range(10)]
    (root / "stl10_binary" / "class_names.txt").write_text("\n".join(names))
    return images, list(range(10)), list(range(10)), tuple(names)


def semeion(root: Path) -> Any:
    """Pixels 0 or 1 and ten flags a line; there is no test, and a fifth of each class becomes it."""
    labels = np.arange(10).repeat(5)
    rows = np.concatenate([pixels(50, 256) % 2, np.eye(10, dtype=int)[labels]], 1)
    text(root / "semeion.data", *(" ".join(f"{v:.4f}" for v in row) for row in rows))
    return None, list(np.arange(10).repeat(4)), list(range(10)), tuple("0123456789")


def gtsrb(root: Path) -> Any:
    base = root / "gtsrb"
    for c in range(2):
        photo(base / "GTSRB" / "Training" / f"{c:05d}" / "0.ppm", 100 * c)
        photo(base / "GTSRB" / "Final_Test" / "Images" / f"{c}.ppm", 100 * c + 50)
    text(base / "GT-final_test.csv", "Filename;ClassId", "1.ppm;1", "0.ppm;0")
    return np.array([0, 100]), [0, 1], [0, 1], ("0", "1")


def eurosat(root: Path) -> Any:
    for name, first in (("Forest", 0), ("River", 100)):
        for i in range(5):
            photo(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg", first + i)
    return None, [0] * 4 + [1] * 4, [0, 1], ("Forest", "River")


def omniglot(root: Path) -> Any:
    """The characters of the second part have classes of their own."""
    base = root / "omniglot-py"
    for part, alphabet in (("images_background", "Greek"), ("images_evaluation", "Angelic")):
        for c in ("character01", "character02"):
            for i in range(5):
                photo(base / part / alphabet / c / f"{i}.png", 20 * i)
    names = [f"{a}/character0{i}" for a in ("Greek", "Angelic") for i in (1, 2)]
    return None, list(np.arange(4).repeat(4)), list(range(4)), tuple(names)


def food101(root: Path) -> Any:
    base = root / "food-101"
    for part, value in (("train", 10), ("test", 20)):
        for dish in ("pie", "soup"):
            photo(base / "images" / dish / f"{part}.jpg", value)
        text(base / "meta" / f"{part}.json", json.dumps({dish: [f"{dish}/{part}"] for dish in ("pie", "soup")}))
    return np.array([10, 10]), [0, 1], [0, 1], ("pie", "soup")


def dtd(root: Path) -> Any:
    """Training and validation images of partition 1 are the training images."""
    base = root / "dtd" / "dtd"
    for index, part in enumerate(("train", "val", "test")):
        files = [f"{c}/{c}_{index}.jpg" for c in ("banded", "dotted")]
        for file in files:
            photo(base / "images" / file, 10 * index)
        text(base / "labels" / f"{part}1.txt", *files)
    return np.array([0, 10, 0, 10]), [0, 0, 1, 1], [0, 1], ("banded", "dotted")


def oxford_pets(root: Path) -> Any:
    """Classes are numbered from 1; names are those of the files."""
    base = root / "oxford-iiit-pet"
    for part, value in (("trainval", 10), ("test", 20)):
        for breed in ("Abyssinian", "shiba_inu"):
            photo(base / "images" / f"{breed}_{value}.jpg", value)
        text(base / "annotations" / f"{part}.txt", f"Abyssinian_{value} 1 1 1", f"shiba_inu_{value} 2 2 1")
    return np.array([10, 10]), [0, 1], [0, 1], ("Abyssinian", "Shiba Inu")


def flowers102(root: Path) -> Any:
    """Labels are 1 to 102, and files are named by their number from 1."""
    base = root / "flowers-102"
    for i in range(1, 7):
        photo(base / "jpg" / f"image_{i:05d}.jpg", i)
    matlab(base / "imagelabels.mat", labels=np.array([1, 2, 1, 2, 1, 2]))
    matlab(base / "setid.mat", trnid=np.array([1, 2]), valid=np.array([3, 4]), tstid=np.array([5, 6]))
    return np.array([1, 3, 2, 4]), [0, 0, 1, 1], [0, 1], ("pink primrose", "hard-leaved pocket orchid")


def cub200(root: Path) -> Any:
    """Images and classes are numbered from 1; 1 stands for training: the authors' README."""
    base = root / "CUB_200_2011"
    files = [f"00{c}.{name}/{name}_{i}.jpg" for c, name in ((1, "Albatross"), (2, "Auklet")) for i in (1, 2)]
    for index, file in enumerate(files):
        photo(base / "images" / file, 10 * index)
    text(base / "images.txt", *(f"{i} {file}" for i, file in enumerate(files, 1)))
    text(base / "image_class_labels.txt", "1 1", "2 1", "3 2", "4 2")
    text(base / "train_test_split.txt", "1 0", "2 1", "3 1", "4 0")
    text(base / "classes.txt", "1 001.Albatross", "2 002.Auklet")
    return np.array([10, 20]), [0, 1], [0, 1], ("Albatross", "Auklet")


WRITERS: dict[str, Callable[[Path], Any]] = {
    write.__name__.replace("_", "-"): write
    for write in (
        *(svhn, emnist_letters, usps, stl10, semeion, gtsrb, eurosat),
        *(omniglot, food101, dtd, oxford_pets, flowers102, cub200),
    )
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_data_set_is_read_from_the_layout_of_torchvision(name: str, tmp_path: Path) -> None:
    values, train, test, names = WRITERS[name](tmp_path)
    data = load_dataset(name, tmp_path, offline=True)
    data.check()
    assert data.y_train.tolist() == train
    assert data.y_test.tolist() == test
    assert data.class_names == names
    if values is not None and values.ndim == 1:
        # JPEG may change one value by rounding to its colour space.
        assert np.abs(data.x_train.astype(int) - values[:, None, None, None]).max() <= 1
        assert data.x_train.shape[1:] == (3, LISTED[name].size, LISTED[name].size)
    elif values is not None:
        assert np.array_equal(data.x_train, values)
    config, scenario = prepare(resolve(f"split-{name}[tasks=2]", "naive", {"data_root": tmp_path, "offline": True}))
    assert len(scenario.tasks) == 2
    assert config.data_fingerprint == data.fingerprint


def test_labels_that_change_in_a_file_beside_the_images_are_seen(tmp_path: Path) -> None:
    gtsrb(tmp_path)
    options = {"data_root": tmp_path, "offline": True}
    before = prepare(resolve("split-gtsrb[tasks=2]", "naive", options))[0].data_fingerprint
    text(tmp_path / "gtsrb" / "GT-final_test.csv", "Filename;ClassId", "1.ppm;0", "0.ppm;1")
    assert prepare(resolve("split-gtsrb[tasks=2]", "naive", options))[0].data_fingerprint != before


def test_photos_take_the_size_that_is_asked_for(tmp_path: Path) -> None:
    food101(tmp_path)
    assert load_dataset("food101", tmp_path, offline=True, image_size=12).x_train.shape == (2, 3, 12, 12)
    stl10(tmp_path)
    with pytest.raises(ConfigError, match="for folders of images"):
        load_dataset("stl10", tmp_path, offline=True, image_size=32)


def test_other_numbers_than_were_published_are_said(tmp_path: Path) -> None:
    food101(tmp_path)
    with pytest.warns(
        UserWarning, match="2 training and 2 test images, not the 75,750 training and 25,250 test images"
    ):
        load_dataset("food101", tmp_path, offline=True)


@pytest.mark.parametrize("name", LISTED)
def test_a_data_set_that_is_not_there_is_refused_with_its_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=f"there is no data for '{name}'") as caught:
        load_dataset(name, tmp_path, offline=True)
    for place in LISTED[name].holds if LISTED[name].torchvision else ():
        assert place in str(caught.value)
    assert f"{name}.npz" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_torchvision_takes_the_arguments_and_misses_the_files(name: str, tmp_path: Path) -> None:
    """An argument that a class does not know raises TypeError, a value that it does not know ValueError."""
    with pytest.raises(ConfigError, match="can't be read") as caught:
        LISTED[name]._opened(tmp_path)
    assert not isinstance(caught.value.__cause__, TypeError | ValueError), caught.value


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("file", ["train_32x32.mat", "stl10_binary/train_X.bin", "usps.bz2", "semeion.data"])
def test_a_damaged_file_is_refused_in_a_sentence(file: str, tmp_path: Path) -> None:
    for write in (svhn, stl10, usps, semeion):
        write(tmp_path)
    name = {"train_32x32.mat": "svhn", "usps.bz2": "usps", "semeion.data": "semeion"}.get(file, "stl10")
    content = (tmp_path / file).read_bytes()
    for damaged in (b"", content[: len(content) // 2 + 7], b"\x00" * 300):
        (tmp_path / file).write_bytes(damaged)
        with pytest.raises(ConfigError):
            load_dataset(name, tmp_path, offline=True)


def test_every_data_set_has_a_scenario_with_the_options_of_all() -> None:
    scenarios = entry_point_names("clbench.scenarios")
    for name in NAMES:
        assert scenarios.count(f"split-{name}") == 1
        kind = scenario_class(f"split-{name}")
        assert issubclass(kind, Split)
        assert kind._options.model_fields.keys() == Split._options.model_fields.keys()
        config = resolve(f"split-{name}", "naive", {})
        assert config.scenario_options["tasks"] == kind.preset.get("tasks")
        assert (inspect.getdoc(kind) or "").endswith(".")


def test_a_package_that_brings_a_data_set_brings_its_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brought-1.dist-info").mkdir()
    text(tmp_path / "brought-1.dist-info" / "METADATA", "Metadata-Version: 2.1", "Name: brought", "Version: 1")
    text(
        tmp_path / "brought-1.dist-info" / "entry_points.txt",
        "[clbench.datasets]",
        "shades = brought:shades",
        "a = b:c",
    )
    code = """
    import numpy as np
    from clbench.scenarios import dataset_from_arrays
    def shades(data_root, offline):
        '''Return four shades of grey.'''
        images = np.arange(40, dtype=np.uint8).reshape(-1, 1, 1) * np.ones((1, 8, 8), np.uint8)
        return dataset_from_arrays(images[::2], np.arange(20) // 5, images[1::2], np.arange(20) // 5, name="shades")
    """
    (tmp_path / "brought.py").write_text(inspect.cleandoc(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (inspect.getdoc(scenario_class("split-shades")) or "") == "Four shades of grey."
    assert [len(task.classes) for task in prepare(resolve("split-shades[tasks=2]", "naive", {}))[1].tasks] == [2, 2]
    made = prepare(resolve("stream[shades,split-digits]", "naive", {}))[1]
    assert made.class_names[:5] == ("shades: 0", "shades: 1", "shades: 2", "shades: 3", "digits: 0")
    # One that can't be imported stops nothing but itself.
    assert "can't be imported" in (inspect.getdoc(scenario_class("split-a")) or "")
    with pytest.raises(ConfigError, match="dataset 'a' of brought can't be imported"):
        prepare(resolve("split-a[tasks=2]", "naive", {}))
