"""Sources hand out samples by id: a tensor in memory is one, and so are images on disk, or changed by each task."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Change = Callable[[Tensor, Tensor], Tensor]
# Begins to read n samples, given what reads a part of them; returns what waits until all are read.
Start = Callable[[int, Callable[[slice], object]], Callable[[], object]]

# Samples in memory at a time, of a source that makes them when they are asked for, and bytes of them.
CHUNK, CHUNK_BYTES = 4096, 1 << 26


class Source(Protocol):
    """Samples [N, ...] by id; a tensor is a source, whose methods are those named here."""

    @property
    def shape(self) -> torch.Size:
        """[N, ...], as all samples together would have it."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The type of a sample's numbers."""
        ...

    @property
    def nbytes(self) -> int:
        """The bytes that are held."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, index: Any) -> Tensor:
        """Return samples as the index of a tensor does."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that samples are on when they are handed out."""
        ...

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the samples with these ids, int64 [B]; `dim` is 0."""
        ...

    def to(self, device: torch.device) -> Any:
        """Return the source on a device."""
        ...


class Changed:
    """The images of all tasks, made from those of one task when they are asked for, so that they need its memory alone.

    images: uint8 [N, C, H, W], which every task has. Row t * N + i is image i of task t; the last `last` images (a
        validation split) of all tasks are behind the others of all tasks, laid out in the same way.
    tables: what the change of a task reads, [T, ...]; row t is task t's.
    change: the function of images, uint8 [B, C, H, W], and of the rows of the tables for them, [B, ...], that returns
        the changed images, uint8 [B, C, H', W']; it waits for no device.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(self, images: Source, tables: Tensor, change: Change, *, last: int = 0) -> None:
        self.images, self.tables, self.change, self.last = images, tables, change, last
        self.shape = torch.Size((len(images) * len(tables), *change(images[:1], tables[:1]).shape[1:]))

    @property
    def nbytes(self) -> int:
        """The bytes of the images of one task and of the tables."""
        return self.images.nbytes + self.tables.nbytes

    @property
    def device(self) -> torch.device:
        """The device that holds the images and makes the changed ones."""
        return self.images.device

    def __len__(self) -> int:
        return self.shape[0]

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return changed images by id, int64 [B] -> uint8 [B, C, H', W']."""
        tasks, rows = self.places(index)
        return self.change(self.images.index_select(dim, rows), self.tables.index_select(0, tasks))

    def begin(self, ids: Tensor, start: Start) -> Callable[[], Tensor]:
        """Begin to read images on disk, as Mapped.begin does; what it returns makes the changed ones on the device."""
        if not on_disk(self.images):
            raise TypeError("images in memory are taken by index_select, and not read")
        tasks, rows = self.places(ids)
        read = self.images.begin(rows, start)
        return lambda: self.change(read(), self.tables.index_select(0, tasks.to(self.device, non_blocking=True)))

    def places(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tasks of changed images, and the rows of the images that they are made from; int64 [B]."""
        first = len(self.images) - self.last
        tasks, rows = index // max(first, 1), index % max(first, 1)
        if self.last:
            behind = index - len(self.tables) * first
            tasks = torch.where(behind < 0, tasks, behind // self.last)
            rows = torch.where(behind < 0, rows, first + behind % self.last)
        return tasks, rows

    def __getitem__(self, index: Any) -> Tensor:
        ids = torch.arange(len(self), device=self.device)[index]
        made = self.index_select(0, ids.flatten())
        return made.view(*ids.shape, *made.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all images of all tasks in one array."""
        made = np.empty(self.shape, np.uint8)
        start = 0
        for part in parts(self):
            made[start : start + len(part)] = part.cpu().numpy()
            start += len(part)
        return made if dtype is None else made.astype(dtype)

    def to(self, device: torch.device) -> "Changed":
        """Return the same images on a device, which makes the changed ones there."""
        return Changed(self.images.to(device), self.tables.to(device), self.change, last=self.last)


def is_mapped(array: object) -> bool:
    """Whether an array is a read-only view of a file that is mapped into memory, into which nothing can be written."""
    return isinstance(array, np.memmap) and array.mode == "r"


class Mapped:
    """A source of samples on disk: those that are asked for are copied into memory, and to the device.

    array: uint8 [N, C, H, W], for which is_mapped() holds. rows: its rows that are the samples, int64 [n]; None: all.
    device: where samples go; to a GPU from pinned memory, without waiting for it.
    """

    ndim = 4
    dtype = torch.uint8
    # No memory of the process: mapped pages are the system's, which takes them back where memory runs short.
    nbytes = 0

    def __init__(
        self, array: NDArray[np.uint8], rows: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.array, self.rows, self.device = array, rows, torch.device(device)
        self._plain = np.asarray(array)  # without the cost of a subclass in each step
        self.shape = torch.Size((len(array) if rows is None else len(rows), *array.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return samples by id, int64 [B] on the CPU -> uint8 [B, C, H, W] on the device; `dim` is 0."""
        return self.begin(index.cpu(), when_needed)()

    def begin(self, ids: Tensor, start: Start) -> Callable[[], Tensor]:
        """Begin to read samples by id, int64 [B] on the CPU; return what waits for them and sends them to the device.

        start: reads them, in parts and perhaps in other threads. Raises IndexError for an id that there is not.
        """
        rows = (ids if self.rows is None else self.rows[ids]).numpy()
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self._plain):
            raise IndexError(f"a sample out of range: there are {len(self._plain):,}")
        taken = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype, pin_memory=self.device.type == "cuda")
        into = taken.numpy()
        # "raise" would copy the samples once more.
        wait = start(len(rows), lambda part: self._plain.take(rows[part], 0, into[part], "clip"))

        def read() -> Tensor:
            wait()
            return taken.to(self.device, non_blocking=True)

        return read

    def __getitem__(self, index: Any) -> Tensor:
        ids = torch.arange(len(self))[index]
        taken = self.index_select(0, ids.flatten())
        return taken.view(*ids.shape, *taken.shape[1:])

    def at(self, ids: Tensor) -> "Mapped":
        """Return some of the samples as a source, int64 [n]; nothing is copied."""
        return Mapped(self.array, ids if self.rows is None else self.rows[ids], self.device)

    def to(self, device: torch.device | str) -> "Mapped":
        """Return the same source, whose samples go to a device."""
        return Mapped(self.array, self.rows, device)


def when_needed(n: int, read: Callable[[slice], object]) -> Callable[[], object]:
    """Read n samples when they are waited for; a Start."""
    return lambda: read(slice(0, n))


def on_disk(source: Source) -> "TypeGuard[Mapped | Changed]":
    """Whether samples are read from a disk when they are asked for."""
    return isinstance(source, Mapped) or (isinstance(source, Changed) and on_disk(source.images))


def source_of(array: "NDArray[Any] | Changed") -> Source:
    """Return an array as a source: a mapped one stays on disk, another one is copied only where it must be."""
    if isinstance(array, Changed):
        return array
    if is_mapped(array):
        return Mapped(array)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def some(source: Any, ids: Tensor) -> Any:
    """Return some samples of a source as a source, int64 [n]; those of mapped images stay where they are."""
    return source.at(ids) if isinstance(source, Mapped) else source[ids]


def parts(source: Source) -> Iterator[Tensor]:
    """Return all samples in order, in parts that fit into memory."""
    step = max(1, min(CHUNK, CHUNK_BYTES // max(source.shape[1:].numel(), 1)))
    return (source[start : start + step] for start in range(0, len(source), step))


def same_samples(one: Source, other: Source, ids: Tensor, other_ids: Tensor) -> bool:
    """Whether samples of two sources are the same to the byte, those with some ids, int64 [n], of each."""
    if isinstance(one, Changed) and isinstance(other, Changed):
        (tasks, rows), (other_tasks, other_rows) = one.places(ids), other.places(other_ids)
        tables = torch.equal(one.tables[tasks.unique()], other.tables[other_tasks.unique()])
        # One function makes the same of the same images and tables; two samples tell of other surroundings.
        code = getattr(one.change, "__code__", one.change) is getattr(other.change, "__code__", other.change)
        if code and tables and torch.equal(tasks, other_tasks):
            made = torch.equal(one[ids[:2]], other[other_ids[:2]])
            return made and same_samples(one.images, other.images, rows, other_rows)
    if len(ids) != len(other_ids) or one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
        return False
    if _memory_of(one) == _memory_of(other) is not None and torch.equal(ids, other_ids):
        return True
    step = max(1, min(CHUNK, CHUNK_BYTES // max(one.shape[1:].numel(), 1)))
    return all(
        torch.equal(one.index_select(0, part), other.index_select(0, other_part))
        for part, other_part in zip(ids.split(step), other_ids.split(step), strict=True)
    )


def _memory_of(source: Any) -> object:
    """Return what is the same for two sources of the same memory, None where it is not known."""
    if isinstance(source, Tensor):
        return source.data_ptr(), source.shape, source.stride()
    return None


def origin(source: Source, ids: Tensor) -> tuple[Source, Tensor]:
    """Return the source that samples are made from, int64 [n], and their rows in it; one that is not changed itself."""
    return origin(source.images, source.places(ids)[1]) if isinstance(source, Changed) else (source, ids)


def held(source: Any) -> list[NDArray[Any]]:
    """Return the arrays that a source, a tensor or an array consists of."""
    if isinstance(source, Changed):
        return [*held(source.images), source.tables.numpy()]
    if isinstance(source, Mapped):
        return [source.array, *([] if source.rows is None else [source.rows.numpy()])]
    return [source.numpy() if isinstance(source, Tensor) else source]
