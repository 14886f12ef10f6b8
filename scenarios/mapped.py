"""Files of images that are mapped into memory: written once, compared with their digest when opened, never changed.

Such a file is an NPY file, uint8 [N, C, H, W], with a JSON object behind the array. What was computed of the images of
a large one is remembered in the cache under their digest, so that a run reads the pixels that it trains on and no more.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError
from clbench.data.sources import is_mapped
from clbench.scenarios.files import atomic_file, digest, settled, state_of
from clbench.support.cache import cache_folder
from clbench.support.files import write_atomically

# Below, everything is computed again, which takes less than a second.
REMEMBERED_FROM = 1 << 28
PART = 1 << 22
MOST_BEHIND = 1 << 28  # of the JSON behind an array; labels of some ten million images


class MappedImages(np.memmap[Any, np.dtype[np.uint8]]):
    """A file of images, mapped read-only, that knows the digest of all its pixels."""

    digest = ""

    def __array_finalize__(self, obj: Any) -> None:
        super().__array_finalize__(obj)
        self.digest = getattr(obj, "digest", "")


def write_header(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """Write the header of a file of images and return its length, which is the same for any number of images."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


def write_behind(file: IO[bytes], shape: tuple[int, ...], behind: dict[str, Any]) -> None:
    """Complete a file of images, which is open for reading too: its header, and the JSON with the pixels' digest."""
    start = write_header(file, shape)
    pixels, left = hashlib.blake2b(digest_size=16), int(np.prod(shape, dtype=object))
    file.seek(start)
    while left and (part := file.read(min(PART, left))):
        pixels.update(part)
        left -= len(part)
    file.truncate()
    file.write(json.dumps({"digest": pixels.hexdigest(), **behind}).encode())


def open_images(path: Path) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Map a file of images; return them and the JSON behind them. Raises ValueError for a damaged file."""
    try:
        state = state_of(path)
        images = np.lib.format.open_memmap(path, mode="r")
        if images.dtype != np.uint8 or images.ndim != 4 or not images.flags.c_contiguous:
            raise ValueError(f"it holds {images.dtype} {list(images.shape)}; uint8 [N, C, H, W] is accepted")
        with path.open("rb") as file:
            file.seek(images.offset + images.nbytes)
            behind = json.loads(file.read(MOST_BEHIND))
        named = str(behind["digest"])
        notes = _Notes(named) if images.nbytes >= REMEMBERED_FROM else None
        if notes is None or notes.states.get(str(path)) != state:
            if hashlib.blake2b(images.data, digest_size=16).hexdigest() != named:
                raise ValueError("its pixels are not those that were written")
            if notes is not None and settled(state):
                notes.states[str(path)] = state
                notes.write()
    except Exception as error:  # numpy and json raise almost anything on a damaged file
        raise ValueError(str(error) or type(error).__name__) from error
    found = images.view(MappedImages)
    found.digest = named
    return found, behind


def remembered(what: str, compute: Callable[[], Any], *arrays: Any) -> Any:
    """Return what `compute` returns, as JSON holds it; of large mapped images it is computed once for all processes.

    what: names it. arrays: all that it is a function of.
    """
    large = [a for a in arrays if isinstance(a, MappedImages) and is_mapped(a)]
    if sum(a.nbytes for a in large) < REMEMBERED_FROM or len({a.digest for a in large}) != 1:
        return compute()
    # Parts of the file are told apart by their places in it, other arrays by their content.
    parts = [_place(a) if any(a is one for one in large) else digest(a) for a in arrays]
    notes, key = _Notes(large[0].digest), f"{what} {' '.join(parts)}"
    if key not in notes.facts:
        notes.facts[key] = compute()
        notes.write()
    return notes.facts[key]


def _place(array: NDArray[Any]) -> str:
    """Return where a part of a mapped file begins in it, and its shape."""
    root: Any = array
    while isinstance(root.base, np.memmap):
        root = root.base
    return f"{array.ctypes.data - root.ctypes.data} {array.shape} {array.strides}"


class _Notes:
    """The values remembered of pixels with a digest, and the states in which files were found to hold them."""

    def __init__(self, named: str) -> None:
        self.path = cache_folder() / f"mapped-{hashlib.sha256(named.encode()).hexdigest()[:32]}.json"
        self.states: dict[str, list[int]] = {}
        self.facts: dict[str, Any] = {}
        with suppress(OSError, ValueError, LookupError, TypeError):
            found = json.loads(self.path.read_bytes())
            self.states, self.facts = dict(found["states"]), dict(found["facts"])

    def write(self) -> None:
        """Write the notes down; without a cache they are only made again."""
        with suppress(OSError):
            write_atomically(self.path, json.dumps({"states": self.states, "facts": self.facts}))


def mapped_copy(images: NDArray[np.uint8], what: str, rows: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
    """Return images, or these rows of them, from a file in the cache, into which they are copied if they are not there.

    Raises ConfigError where the cache can't keep them.
    """
    rows = np.arange(len(images)) if rows is None else rows
    whole = f"{images.digest} {_place(images)}" if isinstance(images, MappedImages) else digest(images)
    key = hashlib.sha256(whole.encode() + rows.tobytes()).hexdigest()
    path = cache_folder() / f"images-{key[:32]}.npy"
    with suppress(ValueError, OSError):
        return open_images(path)[0]
    try:
        with atomic_file(path) as file:
            write_header(file, (len(rows), *images.shape[1:]))
            for start in range(0, len(rows), 64):
                file.write(images[rows[start : start + 64]].tobytes())
            write_behind(file, (len(rows), *images.shape[1:]), {})
        return open_images(path)[0]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path.parent} can't keep the images of {what} ({error}); set CLBENCH_CACHE to a folder"
        ) from error
