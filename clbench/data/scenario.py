"""Task, Scenario and ImageSet: what is learnt, in which order, from which images."""

import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, RunError, shown
from clbench.config.plain import listed
from clbench.config.run import Setting
from clbench.data.sources import Changed, Mapped, Source, held, is_mapped, parts
from clbench.support.surroundings import by_default


@dataclass
class Images:
    """All images of one split, each once; a sample's id is its row here.

    images: uint8 [N, C, H, W], or other samples, float32 [N, ...]: a tensor or another source.
    labels: head outputs, classes: original classes, tasks: all int64 [N] on the CPU. A sample whose class is in no task
        has label and task -1.
    """

    images: Source
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
        """The original images, uint8 [n, C, H, W], or other samples, float32 [n, ...]."""
        return self._open().images.index_select(0, self._ids)

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
        if other._open() is not self._open():
            raise ConfigError("training images were added to test images or others; a view has images of one split")
        return ImageSet(self._open(), torch.cat([self.ids, other.ids]), (self, other))


@dataclass(frozen=True)
class Task:
    """One task: its original classes, its head outputs [start, stop), and its data.

    train, validation: views of the scenario's `train`; test: a view of its `test`. See Scenario.check().
    """

    index: int
    classes: tuple[int, ...]
    outputs: slice
    train: ImageSet
    validation: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Scenario:
    """An ordered list of tasks cut from one data set.

    mean, std: per channel, of images / 255; of other samples as they are, per index of their first axis.
    fingerprint: digest of the data that it was cut from, if its name does not identify them.
    augment: the default augmentation of its runs.
    published: whether its name identifies the data, because they are those that were published under it.
    left_out: the files of the data that can't be used and are left out.
    boundless: whether it is one stream, and its tasks say only when it is tested; no strategy is told where they begin.
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
    boundless: bool = False
    _claimed: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def class_order(self) -> list[int]:
        """Original classes in order of appearance; the position is the head output (class and task setting)."""
        return [c for task in self.tasks for c in task.classes]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image, or the shape of another sample."""
        return tuple(self.train.images.shape[1:])

    @property
    def of_images(self) -> bool:
        """Whether the samples are images of bytes; others are floats of any shape."""
        return self.train.images.dtype == torch.uint8

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
        made = replace(
            self,
            tasks=[replace(task, test=ImageSet(self.train, task.train.ids)) for task in self.tasks],
            test=self.train,
        )
        return made.of(self.fingerprint) if self.claimed else made

    def of(self, fingerprint: str | None, content: tuple[int, ...] | None = None) -> "Scenario":
        """Return the scenario as one of data with this digest; None: of the data that were published under its name.

        content: checksums() of the data that were digested; by default those of the scenario's own images as they are.
        What is changed later, in place or by dataclasses.replace(), is no longer covered; see `claimed`.
        """
        content = self._checksums() if content is None else content
        return replace(self, fingerprint=fingerprint, published=fingerprint is None, _claimed=content)

    @property
    def claimed(self) -> bool:
        """Whether of() was told the digest of the images, classes and normalisation that the scenario still has."""
        return self._claimed is not None and self._claimed == self._checksums()

    def _checksums(self) -> tuple[int, ...]:
        sources = [part for images in (self.train, self.test) for part in (images.images, images.classes)]
        return checksums(*sources, scale=(self.mean, self.std))

    @by_default()
    def check(self) -> None:
        """Refuse a scenario that contradicts itself, which would train or test on other images than it seems to.

        Raises ConfigError unless all views are of `train` and `test`, an image's label is the output of its class, and
        its task is the one that has it; outputs begin where earlier ones end at the latest.
        """
        if not isinstance(self.name, str) or not self.name or "\0" in self.name:
            raise ConfigError(f"the scenario's name is {self.name!r}; a text is accepted")
        if self.setting not in get_args(Setting):
            raise ConfigError(
                f"the scenario's setting is {self.setting!r}; {', '.join(get_args(Setting))} are accepted"
            )
        for name, kind in (("tasks", Task), ("class_names", str), ("mean", Real), ("std", Real)):
            values = listed(getattr(self, name))
            if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
                accepted = {Task: "a list of Task", str: "a tuple of texts", Real: "a tuple of numbers"}[kind]
                raise ConfigError(f"the scenario's {name}={shown(getattr(self, name))}; {accepted} is accepted")
        if not self.tasks:
            raise ConfigError("the scenario has no task; one or more is accepted")
        for part, images in (("train", self.train), ("test", self.test)):
            _check_images(part, images)
        if self.test.images.dtype != self.train.images.dtype:
            raise ConfigError(
                f"the scenario's training images are {self.train.images.dtype} and its test images "
                f"{self.test.images.dtype}; one type is accepted"
            )
        if (shape := self.test.images.shape[1:]) != self.train.images.shape[1:]:
            raise ConfigError(
                f"the scenario's training images are {list(self.image_shape)} and its test images {list(shape)}; "
                "one shape is accepted"
            )
        _check_scale(self.mean, self.std, self.image_shape[0])
        outputs = self._outputs()
        for task in self.tasks:
            for part, source in (("train", "train"), ("validation", "train"), ("test", "test")):
                self._check_view(task, part, source, outputs)
            if bool(torch.isin(task.validation._ids, task.train._ids).any()):
                raise ConfigError(f"task {task.index} trains on some of its validation images; others are accepted")

    def _outputs(self) -> Tensor:
        """Return the head output of each original class, -1 for one in no task; refuses tasks that disagree."""
        outputs: dict[int, int] = {}
        n_outputs, n = 0, len(self.class_names)
        for place, task in enumerate(self.tasks):
            if task.index != place:
                raise ConfigError(f"task {place} of the scenario has the index {task.index}; {place} is accepted")
            classes = listed(task.classes)
            if not isinstance(classes, list) or not isinstance(task.outputs, slice):
                raise ConfigError(
                    f"task {place} has classes={shown(task.classes)} and outputs={shown(task.outputs)}; a tuple of "
                    "numbers and a slice are accepted"
                )
            first, stop = task.outputs.start, task.outputs.stop
            if (
                not classes
                or not all(isinstance(c, Integral) for c in classes)
                or len(set(classes)) < len(classes)
                or not all(0 <= c < n for c in classes)
            ):
                raise ConfigError(
                    f"task {place} has the classes {shown(task.classes)}; one or more of 0..{n - 1}, which class_names "
                    "names, are accepted"
                )
            if not isinstance(first, int) or not 0 <= first <= n_outputs or stop != first + len(classes):
                raise ConfigError(
                    f"task {place} has outputs={task.outputs}; one for each of its {len(classes)} classes, without a "
                    f"gap after the {n_outputs} of earlier tasks, is accepted"
                )
            n_outputs = max(n_outputs, stop)
            for c, output in zip(classes, range(first, stop), strict=True):
                if outputs.setdefault(c, output) != output:
                    raise ConfigError(f"class {c} has the outputs {outputs[c]} and {output}; one is accepted")
        if self.setting != "domain" and len(set(outputs.values())) < len(outputs):
            raise ConfigError(f"two classes share an output, which setting='domain' has, not {self.setting!r}")
        found = torch.full((n,), -1)
        found[list(outputs)] = torch.tensor(list(outputs.values()))
        return found

    def _check_view(self, task: Task, part: str, source: str, outputs: Tensor) -> None:
        what, view, images = f"the {part} images of task {task.index}", getattr(task, part), getattr(self, source)
        if not isinstance(view, ImageSet) or view._source is not images:
            hint = "tested_on_training()" if isinstance(view, ImageSet) and view._source is self.train else ""
            raise ConfigError(
                f"{what} are {'no view' if hint or isinstance(view, ImageSet) else shown(view) + ', no view'} of "
                f"scenario.{source}, from which they are read; ImageSet(scenario.{source}, ids) is accepted"
                + (f", and scenario.{hint} tests on training images" if hint else "")
            )
        ids, n = view._ids, len(images.labels)
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1 or ids.device.type != "cpu":
            raise ConfigError(f"{what} have the ids {shown(ids)}; int64 [n] on the CPU are accepted")
        if not len(ids):
            if part == "validation":
                return
            raise ConfigError(
                f"task {task.index} has no {'training' if part == 'train' else 'test'} image; one or more is accepted"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= n:
            raise ConfigError(f"{what} have ids from {int(ids.min())} to {int(ids.max())}; 0..{n - 1} are accepted")
        classes, labels, tasks = images.classes[ids], images.labels[ids], images.tasks[ids]
        if int(classes.min()) < 0 or int(classes.max()) >= len(outputs):
            raise ConfigError(f"{what} have classes beyond the {len(outputs)} that class_names names")
        wrong = (labels != outputs[classes]) | (labels < 0)
        if self.setting == "task":
            wrong |= (labels < task.outputs.start) | (labels >= task.outputs.stop)
        if (at := wrong.nonzero()).numel():
            i = int(at[0])
            raise ConfigError(
                f"{what} have the label {int(labels[i])} for an image of class {int(classes[i])} (id {int(ids[i])}); "
                f"the output of that class is accepted, {int(outputs[classes[i]])}, where the task has it"
            )
        if (at := (tasks != task.index).nonzero()).numel():
            i = int(at[0])
            raise ConfigError(
                f"{what} have one (id {int(ids[i])}) that scenario.{source}.tasks gives to task {int(tasks[i])}; "
                "images of the task are accepted"
            )

    @by_default()
    def digest(self) -> str:
        """Return a digest of everything in the scenario that can change a run's numbers."""
        tensors = [t for part in (self.train, self.test) for t in (part.labels, part.tasks)]
        tensors += [data.ids for task in self.tasks for data in (task.train, task.validation, task.test)]
        cut = [(list(map(int, task.classes)), task.outputs.start, task.outputs.stop) for task in self.tasks]
        # Added for a boundless one alone: the digests of others stay as they were.
        return _digest(repr(cut), self.content(), *tensors, *(["boundless"] if self.boundless else []))

    def content(self) -> str:
        """Return a digest of the images, their original classes and their normalisation, however they are cut."""
        scale = [list(map(float, values)) for values in (self.mean, self.std)]
        return _digest(repr(scale), *(p for part in (self.train, self.test) for p in (part.images, part.classes)))

    @by_default()
    def describe(self) -> list[dict[str, Any]]:
        """Return a row per task: original classes, their names, head outputs, numbers of images.

        n_train_of_other_tasks: how many of n_train belong to other tasks' classes; only blurry tasks have such images.
        Raises ConfigError where class_names lacks a class.
        """
        self._outputs()
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


def checksums(*sources: Any, scale: object) -> tuple[int, ...]:
    """Return checksums (CRC-32) of sources or arrays and of their normalisation, which tell quickly of a change.

    Digests identify data; these only notice what is written into arrays whose digest is known.
    """
    arrays = [array for source in sources for array in held(source)]
    return tuple(map(zlib.crc32, [*map(_checked_part, arrays), repr(scale).encode()]))


def _checked_part(array: Any) -> Any:
    if is_mapped(array):
        # Nothing can be written into it, and to read it takes as long as the disk takes.
        return f"{array.filename} {array.ctypes.data} {array.shape}".encode()
    return array.data if array.flags.c_contiguous else array.tobytes()


def _check_images(part: str, images: object) -> None:
    """Refuse what does not hold uint8 [N, C, H, W], or float32 [N, ...], and int64 [N] on the CPU."""
    if not isinstance(images, Images):
        raise ConfigError(f"the scenario's {part} is {shown(images)}; an Images is accepted")
    for name in ("images", "labels", "classes", "tasks"):
        tensor, of_images = getattr(images, name), name == "images"
        if of_images and isinstance(tensor, Changed | Mapped) and len(tensor):
            continue
        if isinstance(tensor, Tensor):
            given = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            usual = tensor.device.type == "cpu" and tensor.layout == torch.strided
            if not of_images:
                fits = tensor.shape == images.images.shape[:1] and tensor.dtype == torch.int64
            elif tensor.dtype == torch.float32:
                fits = tensor.ndim >= 2 and tensor.numel() > 0
            else:
                fits = tensor.ndim == 4 and tensor.numel() > 0 and tensor.dtype == torch.uint8
            if fits and usual:
                continue
        else:
            given = shown(tensor)
        accepted = "uint8 [N, C, H, W] or float32 [N, ...]" if of_images else "int64 [N], one for each image,"
        raise ConfigError(f"the scenario's {part}.{name} are {given}; {accepted} on the CPU is accepted")


def _check_scale(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    if (len(mean), len(std)) != (channels, channels):
        raise ConfigError(f"the scenario has mean={mean} and std={std}; a number for each of {channels} is accepted")
    if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise ConfigError(f"the scenario has mean={mean} and std={std}; finite numbers, std above 0, are accepted")


def _digest(*of: str | Source) -> str:
    """Return 32 hexadecimal digits that identify texts and samples (BLAKE2b)."""
    state = hashlib.blake2b(digest_size=16)
    for item in of:
        if isinstance(item, str):
            state.update(item.encode())
        else:
            state.update(f"{item.dtype} {tuple(item.shape)}".encode())
            for part in parts(item):
                state.update(part.contiguous().numpy().data)
    return state.hexdigest()


def __getattr__(name: str) -> Any:
    if name == "ScenarioSpec":
        # A plug-in of 0.1.0 instantiated it; the loader of the plug-in shows this sentence.
        raise ImportError(
            "since 0.2 a scenario is a subclass of clbench.ScenarioSpec with its options as annotated attributes"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
