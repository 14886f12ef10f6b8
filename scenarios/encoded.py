"""Encoded images, wherever they lie, become one array that is mapped from the cache."""

import hashlib
import itertools
import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError
from clbench.config.registry import natural_sorted
from clbench.scenarios.decoding import DECODER, Decoded, decode, pillow_by_default
from clbench.scenarios.files import Found, Raw, atomic_file
from clbench.scenarios.mapped import open_images, remembered, write_behind, write_header
from clbench.support.cache import cache_folder
from clbench.support.cores import cores

BATCH = 32  # images that a thread decodes at a time
AHEAD = 8  # batches under way; with BATCH it bounds the memory in use
ANNOUNCE_FROM = 1000
# Named in an error; what is beyond that is counted.
NAMED = 40
PARTS = ("train", "validation", "test")
MAX_BYTES = 1 << 28  # of an encoded image
# Returns the bytes of an encoded image, or why there are none that can be used; it may be called in any thread.
Content = Callable[[], bytes | str]


@dataclass(frozen=True)
class Encoded:
    """The encoded images of a data set in the order in which they are stored.

    names: of each, below the origin, as errors call it.
    labels, parts: of each, the number of its class and of its part: 0 training, 1 validation, 2 test; int64 [N].
    classes: their names.
    contents: gives the content of each image, in this order.
    key: tells the contents from others.
    sorted_by: in the data set the images of a class are in this order, by default in that in which they are stored.
    """

    origin: Path
    names: Sequence[str]
    labels: NDArray[np.int64]
    parts: NDArray[np.int64]
    classes: tuple[str, ...]
    contents: Callable[[], Iterator[Content]]
    key: bytes
    sorted_by: Sequence[str] | None = None

    def order(self) -> NDArray[np.int64]:
        """Return the order of the data set: by part, then by class; for each row the place where it is stored."""
        if self.sorted_by is None:
            return np.lexsort((self.labels, self.parts))
        places = np.empty(len(self.names), np.int64)
        places[sorted(range(len(self.names)), key=self.sorted_by.__getitem__)] = np.arange(len(self.names))
        return np.lexsort((places, self.labels, self.parts))


class Listed(NamedTuple):
    """The encoded images of a data set, and why some of its files, by their names below the origin, are none."""

    encoded: Encoded
    problems: dict[str, str]


def found_images(
    origin: Path, layout: str, paths: Sequence[Path], listed: Callable[[], Listed], size: int | None, skip: bool | None
) -> Found:
    """Return a data set of encoded images; see Found, and read_encoded() for `size` and `skip`."""

    def read() -> Raw:
        encoded, problems = listed()
        return read_encoded(encoded, size, problems, skip)

    return Found(str(origin), paths, read, layout, listed)


def file_contents(paths: Sequence[Path], digests: Sequence[bytes]) -> Iterator[Content]:
    """Give the contents of files, which must be those that were digested: the digests name what is cached."""
    return map(partial, itertools.repeat(_content), paths, digests)


def too_large(n_bytes: int) -> str:
    """Return why an encoded image of so many bytes can't be used, "" where it can."""
    return f"has {n_bytes:,} bytes; at most {MAX_BYTES:,} are accepted" if n_bytes > MAX_BYTES else ""


def _content(path: Path, digest: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    if hashlib.sha256(content).digest() != digest:
        raise ConfigError(f"{path} was changed while it was read; begin again")
    return content


def read_encoded(encoded: Encoded, image_size: int | None, problems: dict[str, str], skip: bool | None) -> Raw:
    """Return the images of a data set, mapped from the cache, and what belongs to them.

    image_size: see decode(). problems: why some names, not among the encoded ones, are no images.
    skip: leave out what can't be used, and name it in Raw.left_out; None: nobody can ask for that.
    Raises ConfigError for all files together that can't be used, and for a class of which no image is left in a part.
    Warns of what was changed or left out, and of test images that are training images too.
    """
    origin, order = encoded.origin, encoded.order()
    images, remarks, broken = cached(encoded, order, image_size)
    problems = {**problems, **{encoded.names[index]: why for index, why in broken.items()}}
    if problems and not skip:
        hint = f"; --skip-unreadable (skip_unreadable=True) leaves {'them' if len(problems) > 1 else 'it'} out"
        raise _unusable(origin, problems, hint if skip is not None else "")
    used = order[~np.isin(order, list(broken))] if broken else order
    labels, parts = encoded.labels[used], encoded.parts[used]
    for number, part in enumerate(PARTS):
        before = encoded.labels[encoded.parts == number]
        if len(lost := np.setdiff1d(before, labels[parts == number])):
            raise ConfigError(
                f"{origin}: none of the {part} images of the class {encoded.classes[lost[0]]!r} can be used"
            )
    n = int((parts < 2).sum())
    if n < len(used):
        copies = remembered("copies", lambda: copied(images[:n], images[n:]), images[:n], images[n:])
        if copies:
            name = encoded.names[used[n + copies[0]]]
            remarks = [*remarks, f"{len(copies):,} test images ({name}) are training images too"]
    if problems:
        remarks = [*remarks, f"{len(problems):,} files can't be used and are left out: {in_words(problems, 3)}"]
    for remark in remarks:
        warnings.warn(f"{origin}: {remark}", stacklevel=2)
    return Raw(
        images[:n],
        labels[:n],
        images[n:],
        labels[n:],
        encoded.classes,
        n_validation=int((parts == 1).sum()),
        left_out=tuple(natural_sorted(problems)),
    )


def copied(known: Any, images: Any) -> list[int]:
    """Return the places of those images that are among the known ones."""
    hashes = {hash(image.tobytes()) for image in known}
    return [place for place, image in enumerate(images) if hash(image.tobytes()) in hashes]


def _unusable(origin: Path, problems: dict[str, str], hint: str) -> ConfigError:
    """Return one error for all files that can't be used."""
    if len(problems) == 1:
        ((name, why),) = problems.items()
        return ConfigError(f"{origin / name} {why}{hint}")
    # Longer than other errors, since whoever mends the files needs all their names.
    text = f"{len(problems):,} files of {origin} can't be used: {in_words(problems, NAMED)}{hint}"
    return ConfigError(text, longest=1400)


def in_words(problems: dict[str, str], most: int) -> str:
    """Return files by their names, the first so many, each with why it can't be used; and how many more there are."""
    by_reason: dict[str, list[str]] = {}
    for name in natural_sorted(problems)[:most]:
        by_reason.setdefault(problems[name], []).append(name)
    texts = [f"{', '.join(names)} ({why.partition('; ')[0]})" for why, names in by_reason.items()]
    return "; ".join(texts) + (f"; and {len(problems) - most:,} more" if len(problems) > most else "")


def cached(
    encoded: Encoded, order: NDArray[np.int64], size: int | None
) -> tuple[NDArray[np.uint8], list[str], dict[int, str]]:
    """Return the images [N, C, H, W] in an order, mapped from the cache; remarks; why some places have no image.

    Images that the cache lacks are decoded into it.
    """
    rows = b"" if np.array_equal(order, np.arange(len(order))) else order.tobytes()
    key = hashlib.sha256(f"{DECODER} {size} ".encode() + encoded.key + rows).hexdigest()
    path = cache_folder() / f"images-{key[:32]}.npy"
    found = _opened(path, len(order))
    if found is None:
        if (broken := decode_all(encoded, order, size, path)) is not None:
            return np.empty((0, 1, 1, 1), np.uint8), [], broken
        found = _opened(path, len(order))
        if found is None:
            raise ConfigError(f"{path} can't be read back; set CLBENCH_CACHE to a folder on a working disk")
    return found


def _opened(path: Path, n: int) -> tuple[NDArray[np.uint8], list[str], dict[int, str]] | None:
    """Return what cached() returns, or None if the cached array is missing or damaged.

    Behind the array the file holds its digest, the remarks, and the places of the images that were broken.
    """
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        images, behind = open_images(path)
        broken = {int(index): str(why) for index, why in behind.get("broken", {}).items()}
        if len(images) == n - len(broken):
            return images, list(behind["remarks"]), broken
    return None


class _ColourError(Exception):
    """Raised for the first image in colours behind grey ones."""


def decode_all(
    encoded: Encoded, order: NDArray[np.int64], size: int | None, target: Path, *, shown: bool = True
) -> dict[int, str] | None:
    """Decode images into a file, in an order; return why each is broken where all of them are.

    shown: print a line where there are many. Raises ConfigError where sizes differ or the disk is too small.
    """
    from PIL import Image

    n = len(order)
    if n >= ANNOUNCE_FROM and shown:
        print(f"clbench: reading {n:,} images in {encoded.origin} (once: kept in {target})", file=sys.stderr)
    with pillow_by_default(), warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        # decode() refuses the images that Pillow would only warn of.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            # Written to their places, not through a map, so that a full disk is an error, not a signal.
            with atomic_file(target) as file:
                try:
                    broken = _write(file, encoded, order, size, pool, colour=False)
                except _ColourError:
                    broken = _write(file, encoded, order, size, pool, colour=True)
        except OSError as error:
            raise ConfigError(
                f"{target.parent} can't keep the images ({error}); set CLBENCH_CACHE to a folder"
            ) from error
    return broken if len(broken) == n else None


def _write(
    file: IO[bytes],
    encoded: Encoded,
    order: NDArray[np.int64],
    size: int | None,
    pool: ThreadPoolExecutor,
    *,
    colour: bool,
) -> dict[int, str]:
    """Decode images into an open file; return why some are broken, by the places where they are stored.

    colour: there are images in colours, so grey ones become that too. Otherwise raises _ColourError if one comes later.
    """
    n, first, shape, start = len(order), 0, (0, 1, 1, 1), 0
    row_of = np.empty(n, np.int64)
    row_of[order] = np.arange(n)
    broken: dict[int, str] = {}
    changed: dict[str, list[int]] = {}
    for index, found in enumerate(decoded(encoded, size, pool)):
        if isinstance(found, str):
            broken[index] = found
            continue
        image = found.image
        if not start:
            first, colour = index, colour or len(image) > 1
            shape = (n, 3 if colour else 1, *image.shape[1:])
            needed, free = int(np.prod(shape, dtype=object)), shutil.disk_usage(Path(file.name).parent).free
            if needed > free:
                folder = Path(file.name).parent
                raise ConfigError(f"{encoded.origin} needs {needed:,} bytes in {folder}, and {free:,} are free")
            start = write_header(file, shape)
        if image.shape[1:] != shape[2:]:
            (h0, w0), (h, w) = shape[2:], image.shape[1:]
            one, other = (encoded.origin / encoded.names[place] for place in (first, index))
            raise ConfigError(f"{one} is {w0}x{h0} and {other} {w}x{h} pixels; --image-size S makes all S x S")
        if len(image) > 1 and not colour:
            raise _ColourError
        row = np.broadcast_to(image, shape[1:]).tobytes()
        file.seek(start + int(row_of[index]) * len(row))
        file.write(row)
        for change in found.changes:
            changed.setdefault(change, []).append(index)
    if broken:
        _close_gaps(file, start, [row for row in range(n) if order[row] not in broken], shape)
    remarks = [
        f"{len(those):,} images ({encoded.names[those[0]]}) {change}" for change, those in sorted(changed.items())
    ]
    behind: dict[str, Any] = {"remarks": remarks} | ({"broken": dict(sorted(broken.items()))} if broken else {})
    write_behind(file, (n - len(broken), *shape[1:]), behind)
    return broken


def _close_gaps(file: IO[bytes], start: int, rows: list[int], shape: tuple[int, ...]) -> None:
    """Move the rows that are there to the front."""
    length = int(np.prod(shape[1:]))
    for place, row in enumerate(rows):
        if place != row:
            file.seek(start + row * length)
            content = file.read(length)
            file.seek(start + place * length)
            file.write(content)


def _decode(content: Content, size: int | None) -> Decoded | str:
    found = content()
    return found if isinstance(found, str) else decode(found, size)


def decoded(encoded: Encoded, size: int | None, pool: ThreadPoolExecutor) -> Iterator[Decoded | str]:
    """Decode images in all threads of a pool, some batches ahead; give them in order."""
    contents, under_way = encoded.contents(), deque[Future[list[Decoded | str]]]()
    try:
        while True:
            while len(under_way) < AHEAD and (batch := list(itertools.islice(contents, BATCH))):
                under_way.append(pool.submit(lambda batch: [_decode(content, size) for content in batch], batch))
            if not under_way:
                return
            yield from under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()
