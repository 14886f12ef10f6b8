"""Readers of IDX (MNIST) and NPZ files; a damaged file raises a ConfigError that names it.

They compare a header's claims with the file before they allocate memory, and they unpickle nothing. They read files
and don't map them, because writing over a mapped file kills the process that reads it (SIGBUS).
"""

import contextlib
import functools
import gzip
import hashlib
import math
import os
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError, unknown
from clbench.config.groups import bytes_of
from clbench.support.cache import cache_folder

if TYPE_CHECKING:
    from clbench.scenarios.encoded import Listed

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MEDMNIST = tuple(f"{part}_{kind}" for part in ("train", "val", "test") for kind in ("images", "labels"))
# The array of an NPZ file that holds images to be classified, the first that there is.
IMAGES = ("images", "x", "x_test", "test_images")
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IDX_UBYTE = 0x08
DEFLATE_MAX_RATIO = 1032  # one deflate symbol emits at most 258 bytes from 2 bits


CHUNK = 64  # images hashed or counted at a time; it bounds the memory that photos need

# The clock of a file system may tick as seldom as every two seconds, and differ a little from this machine's.
SETTLED_NS = 10 * 10**9
# Bytes of files from which on their digests are kept in the cache: reading fewer takes less than a second.
KEPT_FROM = 1 << 28


class Raw(NamedTuple):
    """The content of files: images uint8 [N, C, H, W] or float32 [N, ...], labels [N] as in the files, perhaps names.

    y_train, y_test: numbers, int64, or text.
    n_validation: the number of images at the end of x_train that are a validation split.
    left_out: the files that can't be used and are left out.
    """

    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    class_names: tuple[str, ...] | None = None
    n_validation: int = 0
    left_out: tuple[str, ...] = ()


class Found(NamedTuple):
    """A data set that was found: the path or package it is from, the files that reading it reads, and their reader.

    layout: how its files are laid out, in words. listed: gives its encoded images, where it has them.
    """

    origin: str
    paths: Sequence[Path]
    read: Callable[[], Raw]
    layout: str = ""
    listed: "Callable[[], Listed] | None" = None


def digest(*arrays: Any) -> str:
    """Return 32 hexadecimal digits that identify shapes and values of arrays, whatever their layout (BLAKE2b)."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(str(tuple(array.shape)).encode())
        for chunk in chunks(array):
            chunk = np.asarray(chunk)
            state.update(chunk.astype(chunk.dtype.newbyteorder("<"), order="C", copy=False).data)
    return state.hexdigest()


def part_digests(images: NDArray[np.uint8], labels: NDArray[Any]) -> tuple[str, str]:
    """Return 32 hexadecimal digits for images [N, C, H, W] with their labels in any order, and 32 for this order."""
    n = images[0].size
    pixels = np.ascontiguousarray(images).data.cast("B")
    names = np.asarray(labels, "<i8").tobytes()
    each = [hashlib.sha256(pixels[i * n : i * n + n]).digest() + names[8 * i : 8 * i + 8] for i in range(len(images))]
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()[:32], hashlib.sha256(b"".join(each)).hexdigest()[:32]


def chunks(array: Any) -> Iterator[Any]:
    """Cut an array into parts that fit into a processor's cache."""
    return (array[start : start + CHUNK] for start in range(0, len(array), CHUNK))


def content_digests(paths: Sequence[Path]) -> list[bytes]:
    """Return the SHA-256 of each file's bytes; raises ConfigError for a file that can't be read.

    A file is read once in a process, as long as the system says that nothing was done to it: its time of change, which
    no program can put back, is the same and lies some seconds before the reading. The digests of many files, or of
    large ones, are kept in the cache with these times, for other processes. Elsewhere than on POSIX systems there is no
    such time, and every file is read each time.
    """
    with ThreadPoolExecutor() as pool:
        states = [state for part in pool.map(_states, _parted(paths)) for state in part]
        if sum(state[0] for state in states) >= KEPT_FROM:
            return _kept_digests(paths, states, pool)
        found = pool.map(
            lambda part: list(map(_content_digest, *zip(*part, strict=True))), _parted(zip(paths, states, strict=True))
        )
        return [one for part in found for one in part]


def _parted(values: Iterable[Any]) -> list[list[Any]]:
    everything = list(values)
    return [everything[start : start + CHUNK] for start in range(0, len(everything), CHUNK)]


def state_of(path: str | os.PathLike[str]) -> list[int]:
    """Return what the system knows of a file: its size, its times of modification and change, and its place."""
    stat = os.stat(path)
    # A device's number may have 64 bits without a sign.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino & (2**63 - 1), stat.st_dev & (2**63 - 1)]


def settled(state: Sequence[int]) -> bool:
    """Whether a file of this state was changed so long ago that a later change would show in its state."""
    return os.name == "posix" and time.time_ns() - state[2] > SETTLED_NS


def _states(paths: Sequence[Path]) -> list[list[int]]:
    return [_readable(state_of, path) for path in paths]


def _content_digest(path: Path, state: Sequence[int]) -> bytes:
    read = _read_digest if settled(state) else _read_digest.__wrapped__
    found: bytes = _readable(read, path, *state)
    return found


def _readable(read: Callable[..., Any], path: Path, *rest: Any) -> Any:
    try:
        return read(os.fspath(path), *rest)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error


@functools.lru_cache(maxsize=1 << 18)
def _read_digest(path: str, *state: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _kept_digests(paths: Sequence[Path], states: list[list[int]], pool: ThreadPoolExecutor) -> list[bytes]:
    """Return digests from the cache for the files that are in the state in which they were read; read the others."""
    names = "\0".join(os.path.abspath(path) for path in paths)
    kept = cache_folder() / f"digests-{hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()[:32]}.npy"
    table = np.zeros((len(paths), 9), np.int64)  # five numbers of the state, and 32 bytes
    now = np.array(states, np.int64)
    try:
        there = np.load(kept, allow_pickle=False)
        if there.shape == table.shape and there.dtype == table.dtype:
            table = there
    except Exception:  # numpy raises almost anything on a damaged file
        pass
    lacking = np.flatnonzero((table[:, :5] != now).any(1)).tolist()
    for part, found in zip(
        _parted(lacking), pool.map(lambda part: [_read_anew(paths[i]) for i in part], _parted(lacking)), strict=True
    ):
        table[part, 5:] = np.frombuffer(b"".join(found), np.int64).reshape(-1, 4)
    digests = [row.tobytes() for row in table[:, 5:]]
    if lacking:
        # One that may still change without a sign is read again the next time.
        table[:, :5] = [state if settled(state) else [0] * 5 for state in states]
        try:
            with atomic_file(kept) as file:
                np.save(file, table)
        except OSError:
            pass  # without a cache only the next reading is slower
    return digests


def _read_anew(path: Path) -> bytes:
    found: bytes = _readable(_read_digest.__wrapped__, path)
    return found


def available_memory() -> int:
    """Return the bytes of memory that can be used without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def memory_allowed(limit: int | str | None) -> int:
    """Return how many bytes of pixels may be held in memory: what is asked for, or half of what is free."""
    return available_memory() // 2 if limit is None else bytes_of(limit)


def require_memory(n_bytes: int, what: object) -> None:
    """Raise ConfigError if `what` needs more bytes than there is memory."""
    if n_bytes > (free := available_memory()):
        raise ConfigError(f"{what} needs {n_bytes:,} bytes of memory, and {free:,} are available")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing and reading that appears at `path` only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("x+b") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the uint8 array of an IDX file, gzipped or not.

    Raises ConfigError for a wrong magic number or number of dimensions, an empty set, missing or extra bytes.
    Format: https://yann.lecun.com/exdb/mnist, "THE IDX FILE FORMAT".
    """
    header_bytes = 4 + 4 * dimensions
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            header = file.read(header_bytes)
            if len(header) < header_bytes or header[:4] != bytes((0, 0, IDX_UBYTE, dimensions)):
                raise ConfigError(
                    f"{path} is not an IDX file of unsigned bytes with {dimensions} dimension(s):"
                    f" it starts with {header[:4].hex(' ') or 'nothing'},"
                    f" expected 00 00 {IDX_UBYTE:02x} {dimensions:02x} and {dimensions} sizes"
                )
            shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, header_bytes, 4))
            needed = math.prod(shape)
            if needed == 0:
                raise ConfigError(f"{path} is empty: its header gives the shape {shape}")
            if not zipped:
                _same_size(path, shape, needed, size - header_bytes)
            elif needed > size * DEFLATE_MAX_RATIO:
                raise ConfigError(f"{path} claims the shape {shape}: {needed:,} bytes, which {size:,} can't hold")
            require_memory(needed, path)
            if not zipped:
                return np.fromfile(path, np.uint8, needed, offset=header_bytes).reshape(shape)
            # One byte more than needed, so that gzip reaches the end of the stream and compares its checksum.
            data = file.read(needed + 1)
            _same_size(path, shape, needed, len(data))
            return np.frombuffer(data, np.uint8).reshape(shape)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error


def _same_size(path: Path, shape: tuple[int, ...], needed: int, actual: int) -> None:
    if actual != needed:
        problem = "is truncated" if actual < needed else "has bytes left over"
        raise ConfigError(f"{path} {problem}: the shape {shape} needs {needed:,} bytes of data, it has {actual:,}")


def find_idx(folder: Path) -> list[Path | None]:
    """Return the path in a folder of each of IDX_FILES, plain or gzipped, or None if it is missing."""
    candidates = [(folder / name, folder / f"{name}.gz") for name in IDX_FILES]
    return [next((path for path in pair if path.is_file()), None) for pair in candidates]


def read_idx_files(paths: Sequence[Path]) -> Raw:
    """Return the data set in MNIST's four IDX files, in the order of IDX_FILES; raises what read_idx raises."""
    x_train, y_train, x_test, y_test = (
        read_idx(path, dimensions) for path, dimensions in zip(paths, (3, 1, 3, 1), strict=True)
    )
    for images, labels, first in ((x_train, y_train, 0), (x_test, y_test, 2)):
        if len(images) != len(labels):
            raise ConfigError(
                f"{paths[first]} has {len(images)} images but {paths[first + 1]} has {len(labels)} labels"
            )
    return Raw(x_train[:, None], y_train, x_test[:, None], y_test)


def find_npz(path: Path, *, held_out: bool = False) -> Found:
    """Return the data set in an NPZ file; reading it raises what read_npz raises."""
    return Found(str(path), [path], functools.partial(read_npz, path, held_out=held_out))


def read_npz(path: Path, *, held_out: bool = False) -> Raw:
    """Return the data set in an NPZ file: x_train, y_train, x_test, y_test, perhaps class_names; or MedMNIST's names.

    Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]; other samples are floats [N, ...]; labels are what
    check_labels() reads. Shapes and types are
    checked from the headers before the data are read. held_out: there are no x_test and y_test yet. Raises ConfigError
    for a wrong or damaged file.
    """
    needed: Sequence[str] = ARRAYS[:2] if held_out else ARRAYS
    try:
        with zipfile.ZipFile(path) as archive:
            # An archive that a Mac has packed anew holds a second file for each.
            infos = [info for info in archive.infolist() if not info.filename.startswith("__MACOSX/")]
            members = {info.filename.removesuffix(".npy"): info for info in infos}
            if len(members) < len(infos):
                names_there = [info.filename.removesuffix(".npy") for info in infos]
                twice = next(name for name in names_there if names_there.count(name) > 1)
                raise ConfigError(f"{path} has the array {twice!r} twice; each once is accepted")
            if "train_images" in members:
                return _read_medmnist(archive, path, members, held_out)
            for name in members:
                if name not in (*ARRAYS, "class_names"):
                    raise ConfigError(f"{path}: {unknown('array', name, (*ARRAYS, 'class_names'))}")
            if held_out and "x_test" in members:
                raise ConfigError(f"{path} has test images of its own; leave test_share out")
            for name in needed:
                if name not in members:
                    raise ConfigError(
                        f"{path} has no array {name!r}; it needs {', '.join(ARRAYS)}, or x_train and y_train with "
                        "test_share"
                    )
            arrays = {name: _read_member(archive, path, name, info) for name, info in members.items()}
        names = arrays["class_names"].astype(str).tolist() if "class_names" in arrays else None
    except ConfigError:
        raise
    except Exception as error:  # zipfile and numpy raise almost anything on a damaged archive
        raise ConfigError(f"{path} is not a readable NPZ file: {error or type(error).__name__}") from error
    images = [to_samples(arrays[name], f"{path}: {name}") for name in needed[::2]]
    labels = [check_labels(arrays[name], f"{path}: {name}") for name in needed[1::2]]
    if held_out:
        images, labels = [images[0], images[0][:0]], [labels[0], labels[0][:0]]
    return Raw(images[0], labels[0], images[1], labels[1], None if names is None else tuple(names))


def _read_medmnist(archive: zipfile.ZipFile, path: Path, members: Mapping[str, zipfile.ZipInfo], held_out: bool) -> Raw:
    """Return the data set in an NPZ file with the names of MedMNIST (Yang et al. 2023, arXiv:2110.14795)."""
    for name in members:
        if name not in MEDMNIST:
            raise ConfigError(f"{path}: {unknown('array', name, MEDMNIST)}")
    if held_out and "test_images" in members:
        raise ConfigError(f"{path} has test images of its own; leave test_share out")
    parts = {}
    for part in ("train", "val", "test"):
        pair = f"{part}_images", f"{part}_labels"
        there = [name for name in pair if name in members]
        if len(there) == 1 or (not there and part != "val" and not (held_out and part == "test")):
            lacking = next(name for name in pair if name not in members)
            raise ConfigError(f"{path} has no array {lacking!r}; MedMNIST's names are {', '.join(MEDMNIST)}")
        if there:
            images, labels = (_read_member(archive, path, name, members[name]) for name in pair)
            images, labels = to_samples(images, f"{path}: {pair[0]}"), check_labels(labels, f"{path}: {pair[1]}")
            if len(images) != len(labels):
                raise ConfigError(f"{path}: {pair[0]} has {len(images)} images, {pair[1]} {len(labels)} labels")
            parts[part] = images, labels
    (x_train, y_train), held = parts["train"], parts.get("val")
    if held is not None:
        if held[0].shape[1:] != x_train.shape[1:] or held[1].dtype.kind != y_train.dtype.kind:
            raise ConfigError(f"{path}: val_images are unlike train_images, {held[0].shape} and {x_train.shape}")
        x_train, y_train = np.concatenate([x_train, held[0]]), np.concatenate([y_train, held[1]])
    x_test, y_test = parts.get("test", (x_train[:0], y_train[:0]))
    return Raw(x_train, y_train, x_test, y_test, n_validation=0 if held is None else len(held[0]))


def read_images(path: Path) -> dict[str, NDArray[Any]]:
    """Return the images in an NPY file, under "", or in an NPZ file, by the name of their array.

    Of several arrays x_test, or images, is taken. Raises ConfigError for a wrong or damaged file.
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return {"": _read_npy(file, str(path), "x", path.stat().st_size)}
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            named = [name for name in IMAGES if name in members] or (list(members) if len(members) == 1 else [])
            if not named:
                raise ConfigError(f"{path} has the arrays {', '.join(members) or 'none'}; x_test or images is accepted")
            with archive.open(members[named[0]]) as file:
                what = f"{path}: {named[0]}"
                return {named[0]: _read_npy(file, what, "x", members[named[0]].file_size)}
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile and numpy raise almost anything on a damaged file
        kind = path.suffix[1:].upper()
        raise ConfigError(f"{path} is not a readable {kind} file: {error or type(error).__name__}") from error


def _read_member(archive: zipfile.ZipFile, path: Path, name: str, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as member:
        return _read_npy(member, f"{path}: {name}", name, info.file_size)


def _read_npy(file: IO[bytes], what: str, name: str, n_bytes: int) -> NDArray[Any]:
    """Return the array in an open NPY file of so many bytes; its name says what it may hold."""
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read_header:
        raise ConfigError(f"{what} has the NPY format {version}; expected (1, 0) or (2, 0)")
    shape, fortran_order, dtype = read_header[version](file)
    header_bytes = file.tell()
    _check_header(what, name, shape, dtype)
    needed = math.prod(shape) * dtype.itemsize
    actual = n_bytes - header_bytes
    if needed != actual:
        raise ConfigError(f"{what} claims the shape {shape}: {needed:,} bytes, but has {actual:,}")
    require_memory(needed, what)
    data = np.frombuffer(file.read(), dtype)  # at its end, zipfile compares the checksum
    return data.reshape(shape, order="F" if fortran_order else "C")


def _check_header(what: str, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if name == "class_names":
        if dtype.kind not in "US" or len(shape) != 1 or dtype.itemsize == 0:
            raise ConfigError(f"{what} is {dtype} with the shape {shape}; expected one string for each class")
    elif name.startswith("x") or name.endswith("images"):
        _check_images(what, shape, dtype)
    else:
        _check_label_type(what, shape, dtype)


def _check_images(what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Return whether the channels come last."""
    if dtype.kind == "f":
        if len(shape) < 2 or 0 in shape:
            raise ConfigError(f"{what} is {dtype} with the shape {shape}; expected numbers [N, D] or [N, ...]")
        if len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3):
            raise ConfigError(
                f"{what} is {dtype} with the shape {shape}, whose channels come last; of floats, channels first are "
                "accepted, as transpose(0, 3, 1, 2) gives them"
            )
        return False
    if dtype != np.uint8:
        hint = "; convert images of 0..255 with astype('uint8')" if dtype.kind in "iu" else ""
        raise ConfigError(f"{what} is {dtype}; expected uint8 images, or floats of any fixed shape{hint}")
    if len(shape) not in (3, 4):
        raise ConfigError(f"{what} has the shape {shape}; expected [N, H, W], [N, H, W, C] or [N, C, H, W]")
    if 0 in shape:
        raise ConfigError(f"{what} is empty: its shape is {shape}")
    if len(shape) == 3:
        return False
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        problem = "both axis 1 and axis 3 could be the channels" if first else "neither axis 1 nor axis 3 has 1 or 3"
        if 4 in (shape[1], shape[3]):
            problem += " (4 channels are often RGB and transparency; lay such images on a background first)"
        raise ConfigError(f"{what} has the shape {shape}: {problem}; expected 1 or 3 channels, first or last")
    return last


def _array(value: Any, what: str) -> NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray):
        raise ConfigError(f"{what} is a masked array, whose mask would be lost; fill it first")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU
        raise ConfigError(f"{what} is not an array ({error})") from error


def to_samples(samples: Any, what: str) -> NDArray[Any]:
    """Return images [N, H, W], [N, H, W, C] or [N, C, H, W] as a view [N, C, H, W], or floats [N, ...] as float32.

    Raises ConfigError for others, and for floats that are not finite.
    """
    array = _array(samples, what)
    channels_last = _check_images(what, array.shape, array.dtype)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            numbers = np.asarray(array, np.float32)
        for start, chunk in enumerate(chunks(numbers)):
            if len(odd := np.flatnonzero(~np.isfinite(chunk).reshape(len(chunk), -1).all(1))):
                raise ConfigError(f"{what}[{start * CHUNK + odd[0]}] holds a number that is not finite in float32")
        return numbers
    if array.ndim == 3:
        return array[:, None]
    return array.transpose(0, 3, 1, 2) if channels_last else array


def _check_label_type(what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iubfUS":
        hint = "; text is saved without pickling by astype(str)" if dtype.kind == "O" else ""
        raise ConfigError(f"{what} is {dtype}; numbers or text are accepted as labels{hint}")
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1 and dtype.kind in "US"):
        raise ConfigError(f"{what} has the shape {shape}; one label for each image, [N], or one-hot rows are accepted")


def check_labels(labels: Any, what: str) -> NDArray[Any]:
    """Return one label for each image, as int64 [N] or text [N].

    labels: whole numbers of any type, or text, [N] or [N, 1]; or one-hot rows [N, K]. Raises ConfigError for others.
    """
    array = _array(labels, what)
    if array.dtype.kind == "O":
        kinds = {type(value) for value in array.flat}
        if kinds <= {str} or all(issubclass(kind, int | float | np.number) for kind in kinds):
            array = np.array(array.tolist())
    _check_label_type(what, array.shape, array.dtype)
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{what} is no text in UTF-8 ({error})") from None
    if array.ndim == 2:
        array = array[:, 0] if array.shape[1] == 1 else _of_one_hot(array, what)
    if array.dtype.kind == "U":
        if not all(array.tolist()):
            raise ConfigError(f"{what} holds an empty text; a name of a class is accepted")
        return array
    if array.dtype.kind == "f":
        odd = np.flatnonzero(~(np.isfinite(array) & (np.floor(array) == array) & (np.abs(array) <= 2.0**53)))
        if len(odd):
            raise ConfigError(f"{what}[{odd[0]}] is {array[odd[0]]}; whole numbers are accepted as labels")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ConfigError(f"{what} holds {array.max()}; labels up to {np.iinfo(np.int64).max} are accepted")
    return array.astype(np.int64)


def _of_one_hot(rows: NDArray[Any], what: str) -> NDArray[np.int64]:
    odd = np.flatnonzero(((rows == 1).sum(1) != 1) | ((rows != 0).sum(1) != 1))
    if len(odd):
        raise ConfigError(
            f"{what} has the shape {rows.shape}, and its row {odd[0]} is no one-hot row; one 1 and zeros, or one label "
            "for each image, [N], are accepted"
        )
    return np.asarray(rows.argmax(1), np.int64)
