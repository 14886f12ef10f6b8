"""Sources hand out samples by id: a tensor in memory is one, and so are images that every task sees in another way."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Change = Callable[[Tensor, Tensor], Tensor]

CHUNK = 4096  # samples in memory at a time, of a source that makes them when they are asked for


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

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the samples with these ids, int64 [B] on the source's device; `dim` is 0."""
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

    def __init__(self, images: Tensor, tables: Tensor, change: Change, *, last: int = 0) -> None:
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
        first = len(self.images) - self.last
        tasks, rows = index // max(first, 1), index % max(first, 1)
        if self.last:
            behind = index - len(self.tables) * first
            tasks = torch.where(behind < 0, tasks, behind // self.last)
            rows = torch.where(behind < 0, rows, first + behind % self.last)
        return self.change(self.images.index_select(dim, rows), self.tables.index_select(0, tasks))

    def __getitem__(self, index: Any) -> Tensor:
        ids = torch.arange(len(self), device=self.device)[index]
        made = self.index_select(0, ids.flatten())
        return made.view(*ids.shape, *made.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all images of all tasks in one array."""
        made = np.empty(self.shape, np.uint8)
        for start, part in enumerate(parts(self)):
            made[start * CHUNK : start * CHUNK + len(part)] = part.cpu().numpy()
        return made if dtype is None else made.astype(dtype)

    def to(self, device: torch.device) -> "Changed":
        """Return the same images on a device, which makes the changed ones there."""
        return Changed(self.images.to(device), self.tables.to(device), self.change, last=self.last)


def parts(source: Source) -> Iterator[Tensor]:
    """Return all samples in order, in parts that fit into memory."""
    return (source[start : start + CHUNK] for start in range(0, len(source), CHUNK))


def held(source: Any) -> list[NDArray[Any]]:
    """Return the arrays that a source, a tensor or an array consists of."""
    if isinstance(source, Changed):
        return [source.images.numpy(), source.tables.numpy()]
    return [source.numpy() if isinstance(source, Tensor) else source]
