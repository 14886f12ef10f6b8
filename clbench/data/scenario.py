"""Task, Scenario and ImageSet: what is learnt, in which order, from which images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, RunError, shown
from clbench.support.surroundings import by_default


@dataclass
class Images:
    """All images of one split, each once; a sample's id is its row here.

    images: uint8 [N, C, H, W]; labels: head outputs, classes: original classes, tasks: all int64 [N] on the CPU.
    A sample whose class is in no task has label and task -1.
    """

    images: Tensor
    labels: Tensor
    classes: Tensor
    tasks: Tensor


class ImageSet:
    """A view of some samples, read-only; the data of a task are lent for the task, and expire when it ends."""

    def __init__(
        self, source: Images, ids: Tensor, parents: tuple["ImageSet", ...] = (), *, for_a_task: bool = False
    ) -> None:
        self._source, self._ids, self._parents = source, ids, parents
        self._expired, self._for_a_task = False, for_a_task

    @property
    def expired(self) -> bool:
        """Whether its task is over; a part or a sum of expired data is expired too."""
        return self._expired or any(parent.expired for parent in self._parents)

    @property
    def lent(self) -> bool:
        """Whether it holds data of the task under way, which will expire."""
        return not self.expired and (self._for_a_task or any(parent.lent for parent in self._parents))

    def _open(self) -> Images:
        if self.expired:
            raise RunError(
                "the data of an earlier task was read after that task had ended; "
                "keep exemplars in the memory, or declare data_access = 'all'"
            )
        return self._source

    def expire(self) -> None:
        """Close the view: reading images, labels or ids raises RunError from now on."""
        self._expired = True

    @property
    def ids(self) -> Tensor:
        """Sample ids, int64 [n]: rows of the whole training (or test) split."""
        self._open()
        return self._ids

    @property
    def images(self) -> Tensor:
        """The original images, uint8 [n, C, H, W]."""
        return self._open().images[self._ids]

    @property
    def labels(self) -> Tensor:
        """Head outputs, int64 [n]."""
        return self._open().labels[self._ids]

    @property
    def classes(self) -> Tensor:
        """Original classes, int64 [n]."""
        return self._open().classes[self._ids]

    @property
    def tasks(self) -> Tensor:
        """The task that each sample belongs to, int64 [n]."""
        return self._open().tasks[self._ids]

    @checked
    def subset(self, index: Tensor | Sequence[int]) -> "ImageSet":
        """Return the samples at these positions of the set, int64 [m], or bool [n]; raises ConfigError for others."""
        n, places = len(self), torch.as_tensor(index, dtype=None if isinstance(index, Tensor) else torch.int64)
        if places.dtype == torch.bool and places.shape == (n,):
            places = places.nonzero().flatten()
        if places.ndim != 1 or places.dtype != torch.int64 or bool(((places < -n) | (places >= n)).any()):
            raise ConfigError(f"positions={shown(index)} of {n} samples; int64 [m] below {n} are accepted")
        return ImageSet(self._open(), self.ids[places], (self,))

    def __len__(self) -> int:
        return len(self._ids)

    def __add__(self, other: "ImageSet") -> "ImageSet":
        return ImageSet(self._open(), torch.cat([self.ids, other.ids]), (self, other))


@dataclass(frozen=True)
class Task:
    """One task: its original classes, its head outputs [start, stop), and its data."""

    index: int
    classes: tuple[int, ...]
    outputs: slice
    train: ImageSet
    validation: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Scenario:
    """An ordered list of tasks cut from one data set.

    mean, std: per channel, of images / 255.
    fingerprint: digest of the data that it was cut from, if its name does not identify them.
    augment: the default augmentation of its runs.
    published: whether its name identifies the data, because they are those that were published under it.
    left_out: the files of the data that can't be used and are left out.
    """

    name: str
    setting: str
    tasks: list[Task]
    class_names: tuple[str, ...]
    train: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str | None = None
    augment: str = "none"
    published: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def class_order(self) -> list[int]:
        """Original classes in order of appearance; the position is the head output (class and task setting)."""
        return [c for task in self.tasks for c in task.classes]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    @property
    def n_outputs(self) -> int:
        """Outputs of the head after the last task."""
        return self.seen_outputs(len(self.tasks) - 1)

    @property
    def blurred(self) -> bool:
        """Whether a task trains on samples of another task's classes."""
        return any(row["n_train_of_other_tasks"] for row in self.describe())

    def seen_outputs(self, task: int) -> int:
        """Outputs seen once `task` has begun; 0 before the first."""
        return max((int(t.outputs.stop) for t in self.tasks[: task + 1]), default=0)

    def tested_on_training(self) -> "Scenario":
        """Return the same scenario with each task's training images as its test; its runs carry a warning."""
        return replace(
            self,
            tasks=[replace(task, test=ImageSet(self.train, task.train.ids)) for task in self.tasks],
            test=self.train,
        )

    def of(self, fingerprint: str | None) -> "Scenario":
        """Return the scenario as one of data with this digest; None: of the data that were published under its name."""
        return replace(self, fingerprint=fingerprint, published=fingerprint is None)

    @by_default()
    def digest(self) -> str:
        """Return a digest of everything in the scenario that can change a run's numbers."""
        tensors = [t for part in (self.train, self.test) for t in (part.labels, part.tasks)]
        tensors += [data.ids for task in self.tasks for data in (task.train, task.validation, task.test)]
        cut = [(list(map(int, task.classes)), task.outputs.start, task.outputs.stop) for task in self.tasks]
        return _digest(repr(cut), self.content(), *tensors)

    def content(self) -> str:
        """Return a digest of the images, their original classes and their normalisation, however they are cut."""
        scale = [list(map(float, values)) for values in (self.mean, self.std)]
        parts = (self.train, self.test)
        return _digest(repr(scale), *(tensor for part in parts for tensor in (part.images, part.classes)))

    @by_default()
    def describe(self) -> list[dict[str, Any]]:
        """Return a row per task: original classes, their names, head outputs, numbers of images.

        n_train_of_other_tasks: how many of n_train belong to other tasks' classes; only blurry tasks have such images.
        """
        return [
            {
                "task": task.index,
                "classes": list(task.classes),
                "names": [self.class_names[c] for c in task.classes],
                "outputs": list(range(task.outputs.start, task.outputs.stop)),
                "n_train": len(task.train),
                "n_train_of_other_tasks": int((~torch.isin(task.train.classes, torch.tensor(task.classes))).sum()),
                "n_validation": len(task.validation),
                "n_test": len(task.test),
            }
            for task in self.tasks
        ]


def _digest(*parts: str | Tensor) -> str:
    """Return 32 hexadecimal digits that identify texts and tensors (BLAKE2b)."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str):
            state.update(part.encode())
        else:
            state.update(f"{part.dtype} {tuple(part.shape)}".encode())
            state.update(part.contiguous().numpy().data)
    return state.hexdigest()


def __getattr__(name: str) -> Any:
    if name == "ScenarioSpec":
        # A plug-in of 0.1.0 instantiated it; the loader of the plug-in shows this sentence.
        raise ImportError(
            "since 0.2 a scenario is a subclass of clbench.ScenarioSpec with its options as annotated attributes"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
