"""Readers of IDX, NPZ and CIFAR files: damaged and hostile ones are refused with their path."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clbench.config.errors import ConfigError
from clbench.scenarios import files
from clbench.scenarios.cifar import CIFAR_BATCHES, read_cifar_batch
from clbench.scenarios.datasets import load_dataset
from clbench.scenarios.files import read_idx, read_npz

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
# As the format specifies: 0, 0, type 8 (unsigned byte), 3 dimensions, three big-endian sizes, the pixels.
IDX = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + bytes(range(24))


def test_idx_by_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "images"
    for content in (IDX, gzip.compress(IDX)):  # recognised by content, because a browser may have unpacked it
        path.write_bytes(content)
        assert np.array_equal(read_idx(path, 3), IMAGES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (IDX[:10], "is not an IDX file"),
        (b"<!DOCTYPE html><html>", "starts with 3c 21 44 4f"),
        (IDX[:2] + b"\x0d" + IDX[3:], r"starts with 00 00 0d 03, expected 00 00 08 03"),
        (IDX[:3] + b"\x01" + IDX[4:], "starts with 00 00 08 01"),
        (IDX[:-1], r"is truncated: the shape \(2, 3, 4\) needs 24 bytes of data, it has 23"),
        (IDX + b"\0", r"has bytes left over: the shape \(2, 3, 4\) needs 24 bytes of data, it has 25"),
        (IDX[:4] + bytes(4) + IDX[8:16], r"is empty: its header gives the shape \(0, 3, 4\)"),
        (IDX[:4] + b"\xff" * 12 + IDX[16:], "is truncated"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_idx_is_refused_with_its_path(tmp_path: Path, content: bytes, message: str, zipped: bool) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(content) if zipped else content)
    if zipped and message == "is truncated":
        message = "claims the shape"  # of 4294967295**3 bytes: seen from the header
    with pytest.raises(ConfigError, match=message) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)


def test_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(IDX)[:-12])
    with pytest.raises(ConfigError, match=r"images\.gz can't be read"):
        read_idx(path, 3)


def test_different_counts_of_images_and_labels_are_refused(tmp_path: Path) -> None:
    for stem in files.IDX_FILES:
        labels = bytes([0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 2])
        (tmp_path / stem).write_bytes(IDX if "images" in stem else labels)
    with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte has 2 images but .*labels-idx1-ubyte has 3"):
        load_dataset("mnist", tmp_path, offline=True)


damage = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 10_000), st.just(0)),
    st.tuples(st.just("flip"), st.integers(0, 10_000), st.integers(0, 7)),
    st.tuples(st.just("append"), st.integers(1, 40), st.integers(0, 255)),
)


def damaged(content: bytes, how: tuple[str, int, int]) -> bytes:
    kind, where, what = how
    if kind == "append":
        return content + bytes([what]) * where
    where %= len(content)
    if kind == "cut":
        return content[:where]
    return content[:where] + bytes([content[where] ^ 1 << what]) + content[where + 1 :]


def read_or_refuse(read: Callable[[], Any], path: Path) -> Any:
    """Return the data read, or None for a ConfigError that names the path, the only error allowed."""
    try:
        return read()
    except ConfigError as error:
        if str(path) not in str(error):
            raise
        return None


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(damage)
def test_fuzzed_idx_is_read_or_refused(tmp_path: Path, how: tuple[str, int, int]) -> None:
    """There is no checksum, so the data read must have the bytes of the file."""
    path = tmp_path / "images"
    path.write_bytes(content := damaged(IDX, how))
    images = read_or_refuse(lambda: read_idx(path, 3), path)
    assert images is None or images.tobytes() == content[16:]


@fuzz
@given(damage)
def test_fuzzed_gzip_is_read_whole_or_refused(tmp_path: Path, how: tuple[str, int, int]) -> None:
    path = tmp_path / "images"
    path.write_bytes(damaged(gzip.compress(IDX), how))
    images = read_or_refuse(lambda: read_idx(path, 3), path)
    assert images is None or np.array_equal(images, IMAGES)


def npz_bytes(compressed: bool, **change: Any) -> bytes:
    content: dict[str, Any] = {
        "x_train": IMAGES,
        "y_train": np.array([0, 1]),
        "x_test": IMAGES,
        "y_test": np.array([1, 0]),
        "class_names": np.array(["a", "b"]),
    }
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **content | change)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@fuzz
@given(how=damage)
def test_fuzzed_npz_is_read_whole_or_refused(tmp_path: Path, compressed: bool, how: tuple[str, int, int]) -> None:
    """A damaged archive gives the arrays that went in (the damage hit a date, say) or a ConfigError."""
    path = tmp_path / "own.npz"
    path.write_bytes(damaged(npz_bytes(compressed), how))
    raw = read_or_refuse(lambda: read_npz(path), path)
    if raw is None:
        return
    assert np.array_equal(raw.x_train[:, 0], IMAGES)
    assert np.array_equal(raw.x_test[:, 0], IMAGES)
    assert (raw.y_train.tolist(), raw.y_test.tolist()) == ([0, 1], [1, 0])


def npy_header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    """Write a version 1.0 header as NEP 1 specifies it."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_claims_too_much_is_refused_from_its_header(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "huge.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x_train.npy", npy_header((10**6, 1000, 1000)) + bytes(100))
        for name in ("y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", b"")
    with pytest.raises(ConfigError, match=r"x_train claims the shape .* 1,000,000,000,000 bytes, but has 100"):
        read_npz(path)


def test_a_compressed_array_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.npz"
    path.write_bytes(npz_bytes(True, x_train=np.zeros((50_000, 10, 10), np.uint8)))
    monkeypatch.setattr(files, "available_memory", lambda: 1_000_000)
    with pytest.raises(ConfigError, match="x_train needs 5,000,000 bytes of memory, and 1,000,000 are"):
        read_npz(path)


class Unpickled:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": IMAGES / 255}, "x_train is float32 and x_test uint8"),
        ({"x_train": np.array([Unpickled()] * 2)}, "x_train is object; expected uint8"),
        ({"y_train": np.array(["cat", "dog"])}, "one of y_train and y_test is text, the other numbers"),
        ({"y_train": np.array([Unpickled()] * 2)}, "y_train is object; numbers or text are accepted as labels"),
        ({"class_names": np.array([Unpickled()] * 2)}, "class_names is object"),
        ({"y_tset": np.array([0])}, "unknown array 'y_tset'; did you mean 'y_test'"),
    ],
)
def test_wrong_npz_is_refused_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.npz"
    path.write_bytes(npz_bytes(False, **change))
    with pytest.raises(ConfigError, match=message) as error:
        load_dataset(str(path), "nowhere")
    assert str(path) in str(error.value)
    assert not (tmp_path / "unpickled").exists()


def test_npz_without_an_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x_train=IMAGES, y_train=np.array([0, 1]), x_test=IMAGES)
    with pytest.raises(ConfigError, match="has no array 'y_test'"):
        load_dataset(str(tmp_path / "own.npz"), "nowhere")


def test_npz_in_fortran_order(tmp_path: Path) -> None:
    for compressed in (False, True):
        (tmp_path / "own.npz").write_bytes(npz_bytes(compressed, x_train=np.asfortranarray(IMAGES)))
        assert np.array_equal(read_npz(tmp_path / "own.npz").x_train[:, 0], IMAGES)


# CIFAR


def cifar_batch(n: int, key: bytes = b"labels", numpy_1: bool = True) -> bytes:
    rng = np.random.default_rng(n)
    batch = {b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), key: [i % 10 for i in range(n)]}
    content = pickle.dumps(batch, protocol=2)
    # The published files were written with numpy 1, whose functions had other addresses.
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray") if numpy_1 else content


@pytest.mark.parametrize("numpy_1", [False, True])
def test_cifar_from_torchvisions_folder(tmp_path: Path, numpy_1: bool) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
    for size, name in enumerate(names, start=10):
        (folder / name).write_bytes(cifar_batch(size, numpy_1=numpy_1))
    data = load_dataset("cifar10", tmp_path, offline=True)
    assert (len(data.x_train), len(data.x_test)) == (10 + 11 + 12 + 13 + 14, 15)
    second = np.random.default_rng(11).integers(0, 256, (11, 3072), dtype=np.uint8)
    assert np.array_equal(data.x_train[10:21].reshape(11, 3072), second)
    # Row 0 of a batch: 1024 red, then 1024 green, then 1024 blue values, each row by row.
    assert data.x_train[10, 2, 1, 5] == second[0, 2 * 1024 + 32 + 5]
    assert data.y_train[10:21].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": Unpickled(), b"labels": []}, protocol=2))
    with pytest.raises(ConfigError, match=r"data_batch_1 is not a readable CIFAR batch .*posix\.mkdir|nt\.mkdir"):
        read_cifar_batch(path, b"labels")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (cifar_batch(2)[:-40], "is not a readable CIFAR batch"),
        (b"<html>", "is not a readable CIFAR batch"),
        (pickle.dumps([1], 2), "is not a readable CIFAR batch"),
        (cifar_batch(2, key=b"coarse_labels"), "KeyError: b'labels'"),
        (pickle.dumps({b"data": np.zeros((2, 3)), b"labels": [0, 1]}, 2), r"float64 \(2, 3\); expected uint8"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, 2), "for 2 images"),
    ],
)
def test_damaged_cifar_batch_is_refused_with_its_path(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_cifar_batch(path, b"labels")
    assert str(path) in str(error.value)


def cifar_archive(path: Path, extra: list[tarfile.TarInfo], without: str = "") -> None:
    with tarfile.open(path, "w:gz") as tar:
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        for name in CIFAR_BATCHES["cifar-100-python"].files:
            if name != without:
                member = tarfile.TarInfo(f"cifar-100-python/{name}")
                content = cifar_batch(10, key=b"fine_labels")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_a_cifar_archive_placed_by_hand_is_unpacked_and_nothing_leaves_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    evil = [tarfile.TarInfo("../evil"), tarfile.TarInfo(str(tmp_path / "evil")), tarfile.TarInfo("cifar-100-python/x")]
    cifar_archive(root / "cifar-100-python.tar.gz", evil)
    with pytest.raises(ConfigError, match="training labels are 0, 1, 2, 3, 4 and 5 more"):  # 10 classes, not 100
        load_dataset("cifar100", root, offline=True)
    assert sorted(path.name for path in (root / "cifar-100-python").iterdir()) == ["test", "train"]
    assert sorted(path.name for path in tmp_path.rglob("*evil*")) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"<html>"), "can't be unpacked"),
        (lambda path: cifar_archive(path, [], without="test"), "'cifar-100-python/test' not found"),
        (lambda path: cifar_archive(path, [link()], without="test"), "test is not a regular file"),
    ],
)
def test_a_damaged_cifar_archive_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "cifar-100-python.tar.gz")
    with pytest.raises(ConfigError, match=message):
        load_dataset("cifar100", tmp_path, offline=True)


def link() -> tarfile.TarInfo:
    member = tarfile.TarInfo("cifar-100-python/test")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
    return member
