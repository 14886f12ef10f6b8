"""Task, Scenario and ImageSet: what is learnt, in which order, from which images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, RunError, shown


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
    """A view of some samples, read-only; the training data of a task expires when the task ends."""

    def __init__(self, source: Images, ids: Tensor, parents: tuple["ImageSet", ...] = ()) -> None:
        self._source, self._ids, self._parents = source, ids, parents
        self._expired = False

    def _open(self) -> Images:
        # A part or a sum of expired data is expired too.
        for parent in self._parents:
            parent._open()
        if self._expired:
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

    mean, std: per channel, of images / 255. fingerprint: digest of the data, if the name does not identify them.
    augment: the default augmentation of its runs.
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
        # Another test set, so what identified the data does not identify these.
        return replace(
            self,
            fingerprint=None,
            tasks=[replace(task, test=ImageSet(self.train, task.train.ids)) for task in self.tasks],
            test=self.train,
        )

    def digest(self) -> str:
        """Return a digest of everything in the scenario, for data that have no public name."""
        state = hashlib.blake2b(digest_size=16)
        parts = [self.train, self.test]
        tensors = [t for part in parts for t in (part.images, part.labels, part.classes, part.tasks)]
        for tensor in tensors + [task.train.ids for task in self.tasks]:
            state.update(tensor.contiguous().numpy().data)
        return state.hexdigest()

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


def __getattr__(name: str) -> Any:
    if name == "ScenarioSpec":
        # A plug-in of 0.1.0 instantiated it; the loader of the plug-in shows this sentence.
        raise ImportError(
            "since 0.2 a scenario is a subclass of clbench.ScenarioSpec with its options as annotated attributes"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
