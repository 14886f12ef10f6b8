"""Avalanche's benchmarks as scenarios, and scenarios as benchmarks: Lomonaco et al. 2021, arXiv:2104.00405.

Importing Avalanche takes seconds, so nothing imports this module but who asks for it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import transforms

from clbench.avalanche.imports import (
    TaskAwareSupervisedClassificationDataset,
    TransformGroups,
    _make_taskaware_tensor_classification_dataset,
    benchmark_from_datasets,
    flat_transforms_recursive,
    with_classes_timeline,
    with_task_labels,
)
from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, one_line
from clbench.data.scenario import Images, ImageSet, Scenario, Task
from clbench.support.surroundings import undisturbed

# Images that pass the evaluation transforms at a time.
CHUNK = 1024


@undisturbed()
def from_benchmark(benchmark: Any, *, name: str | None = None) -> Scenario:
    """Return an Avalanche classification benchmark as a scenario; its validation stream, if any, is held out.

    The evaluation transforms are applied once, and a Normalize among them becomes mean and std of the scenario; what
    comes out has to be pixels of 8 bits, which is what a scenario holds. In training, RandomCrop with a padding of 4
    and RandomHorizontalFlip become the scenario's `augment`. One task label and new classes in each experience make a
    class-incremental scenario, the same classes a domain-incremental one, a task label for each experience a
    task-incremental one. Raises ConfigError, naming the transform or experience, for anything else.
    """
    if isinstance(benchmark, Scenario):
        raise ConfigError(
            "from_benchmark was given a Scenario; a benchmark of Avalanche is accepted (to_benchmark makes one)"
        )
    if not (hasattr(benchmark, "train_stream") and hasattr(benchmark, "test_stream")):
        raise ConfigError(
            f"from_benchmark was given {_kind(benchmark)}; a benchmark of Avalanche with train_stream and test_stream, "
            "such as SplitMNIST(5), is accepted"
        )
    streams = {"train": list(benchmark.train_stream), "test": list(benchmark.test_stream)}
    if getattr(benchmark, "valid_stream", None):
        streams["validation"] = list(benchmark.valid_stream)
    for stream, experiences in streams.items():
        if len(experiences) != len(streams["train"]):
            n = len(streams["train"])
            raise ConfigError(f"the benchmark's {stream} stream has {len(experiences)} experiences; {n} are accepted")
    normalization, augment = _transforms(streams)
    setting, classes = _setting(benchmark, streams["train"])
    numbers, names = _original_classes(setting, classes)
    starts = [0] * len(classes) if setting == "domain" else [sum(map(len, classes[:t])) for t in range(len(classes))]

    def read(stream: str, t: int) -> tuple[Tensor, Tensor, Tensor]:
        data = streams[stream][t].dataset.eval()
        targets = [int(y) for y in data.targets]
        if not set(targets) <= set(classes[t]):
            strange = min(set(targets) - set(classes[t]))
            raise ConfigError(f"class {strange} of {stream} experience {t} is not among those it trains on")
        outputs = torch.tensor([starts[t] + classes[t].index(y) for y in targets], dtype=torch.int64)
        original = torch.tensor([numbers[t][classes[t].index(y)] for y in targets], dtype=torch.int64)
        return _pixels(data, normalization), outputs, original

    tasks = range(len(classes))
    train, (of_train, of_validation) = _images([s for s in ("train", "validation") if s in streams], tasks, read)
    test, (of_test, _) = _images(["test"], tasks, read)
    made = [
        Task(
            t,
            tuple(numbers[t]),
            slice(starts[t], starts[t] + len(classes[t])),
            ImageSet(train, of_train[t]),
            ImageSet(train, of_validation[t]),
            ImageSet(test, of_test[t]),
        )
        for t in tasks
    ]
    channels = train.images.shape[1]
    mean, std = (0.0,) * channels, (1.0,) * channels
    if normalization is not None:
        mean, std = tuple(map(float, normalization.mean)), tuple(map(float, normalization.std))
    scenario = Scenario(name or "avalanche", setting, made, names, train, test, mean, std, augment=augment)
    return scenario


@checked
def to_benchmark(scenario: Scenario) -> Any:
    """Return a scenario as an Avalanche benchmark with the streams train, test and, if any is held out, valid.

    Targets are original classes, in the domain-incremental setting head outputs; task labels tell the tasks apart in
    the task-incremental setting and are 0 otherwise. Images are float [C, H, W], normalised by the scenario's mean and
    std, in training augmented as its `augment` says.
    """
    if not isinstance(scenario, Scenario):
        raise ConfigError(
            f"to_benchmark was given {_kind(scenario)}; a Scenario, such as split(load_dataset('mnist-5k', 'data'), "
            "tasks=5), is accepted"
        )
    scenario.check()
    if not scenario.of_images:
        raise ConfigError("the scenario's samples are floats; Avalanche's benchmarks are made of images of bytes")
    plain = [transforms.ConvertImageDtype(torch.float32), transforms.Normalize(scenario.mean, scenario.std)]
    random = [make(scenario.image_shape[1:]) for kind, make in _RANDOM.items() if kind in scenario.augment.split("-")]
    groups = TransformGroups({"train": transforms.Compose([*random, *plain]), "eval": transforms.Compose(plain)})

    def dataset(data: ImageSet, task: int) -> Any:
        targets = data.labels if scenario.setting == "domain" else data.classes
        label = task if scenario.setting == "task" else 0
        tensors = _make_taskaware_tensor_classification_dataset(
            data.images, targets, targets=targets.tolist(), task_labels=label
        )
        return TaskAwareSupervisedClassificationDataset([tensors], transform_groups=groups)

    streams = {
        "train": [dataset(task.train, task.index) for task in scenario.tasks],
        "test": [dataset(task.test, task.index) for task in scenario.tasks],
    }
    if all(len(task.validation) for task in scenario.tasks):
        streams["valid"] = [dataset(task.validation, task.index) for task in scenario.tasks]
    benchmark = with_task_labels(with_classes_timeline(benchmark_from_datasets(**streams)))
    if scenario.setting != "domain":
        benchmark.classes_order = scenario.class_order
    return benchmark


def _kind(given: Any) -> str:
    """Return a value for an error: plain ones as they are, others by their class."""
    plain = given is None or isinstance(given, str | int | float)
    return one_line(repr(given), 60) if plain else f"a value of type {type(given).__name__}"


_RANDOM: dict[str, Callable[[Any], Any]] = {
    "crop": lambda size: transforms.RandomCrop(size, padding=4),
    "flip": lambda _: transforms.RandomHorizontalFlip(),
}


def _transforms(streams: dict[str, list[Any]]) -> tuple[Any, str]:
    """Return the Normalize that all evaluation transforms share, if any, and what the training ones augment by."""
    normalizations: dict[str, Any] = {}
    augments: set[str] = set()
    for stream, experiences in streams.items():
        for experience in experiences:
            for chain in _chains(experience.dataset, "eval"):
                if strange := next((t for t in chain if type(t).__name__.startswith("Random")), None):
                    raise ConfigError(f"{_named(strange)} is random, and evaluation transforms are applied once")
                found = [t for t in chain if isinstance(t, transforms.Normalize)]
                if len(found) > 1 or any(t is not chain[-1] for t in found):
                    raise ConfigError(f"{_named(found[0])} is not the last evaluation transform, as is accepted")
                normalizations[repr(found)] = found[0] if found else None
            if stream != "train":
                continue
            plain = [[repr(t) for t in chain] for chain in _chains(experience.dataset, "eval")]
            for chain, expected in zip(_chains(experience.dataset, "train"), plain, strict=True):
                augment, rest = _augment(chain)
                if strange := next((t for t in rest if repr(t) not in expected), None):
                    raise ConfigError(
                        f"training transform {_named(strange)} has no counterpart here; RandomCrop with padding=4, "
                        "RandomHorizontalFlip and the evaluation transforms are accepted"
                    )
                augments.add(augment)
    if len(normalizations) > 1 or len(augments) > 1:
        raise ConfigError(
            "the experiences differ in their Normalize, RandomCrop or RandomHorizontalFlip; equal ones fit"
        )
    return next(iter(normalizations.values())), augments.pop()


def _augment(chain: list[Any]) -> tuple[str, list[Any]]:
    """Split training transforms into what `augment` is called, and the others."""
    crops = [t for t in chain if isinstance(t, transforms.RandomCrop)]
    flips = [t for t in chain if isinstance(t, transforms.RandomHorizontalFlip)]
    for crop in crops:
        if crop.padding != 4 or crop.padding_mode != "constant" or crop.fill != 0:
            raise ConfigError(f"{_named(crop)} pads otherwise; RandomCrop with padding=4 and zeros is accepted")
    for flip in flips:
        if flip.p != 0.5:
            raise ConfigError(f"{_named(flip)} has another probability; 0.5 is accepted")
    known = "-".join(["crop"] * bool(crops) + ["flip"] * bool(flips))
    return known or "none", [t for t in chain if t not in crops and t not in flips]


def _chains(data: Any, group: str) -> list[list[Any]]:
    """Return the transforms of a data set in the order in which they are applied, for each of its different sources."""
    if hasattr(data, "_flat_data"):
        return _chains(data._flat_data, group)
    own: list[Any] = []
    for name in ("_frozen_transform_groups", "_transform_groups"):
        groups = getattr(getattr(data, name, None), "transform_groups", {})
        if groups.get(group) is not None:
            own += [t for t in flat_transforms_recursive([groups[group]], 0) if t is not None]
    inner = getattr(data, "_datasets", None)
    if inner is None:
        bottom = getattr(data, "transform", None)
        return [flat_transforms_recursive([bottom], 0) if bottom is not None else []]
    found = [chain + own for part in inner for chain in _chains(part, group)]
    return list({repr(chain): chain for chain in found}.values()) or [own]


def _named(transform: Any) -> str:
    return " ".join(repr(transform).split())[:80]


def _setting(benchmark: Any, experiences: list[Any]) -> tuple[str, list[list[int]]]:
    """Return the setting, and each experience's classes in order."""
    labels = [sorted(set(map(int, e.dataset.targets_task_labels.uniques))) for e in experiences]
    order = {int(c): i for i, c in enumerate(getattr(benchmark, "classes_order", ()))}
    classes = [sorted({int(c) for c in e.dataset.targets.uniques}, key=lambda c: order.get(c, c)) for e in experiences]
    mixed = [t for t, found in enumerate(labels) if len(found) > 1]
    if mixed:
        raise ConfigError(f"experience {mixed[0]} mixes the task labels {labels[mixed[0]]}; one is accepted")
    different = len({found[0] for found in labels})
    if different == len(labels) and len(labels) > 1:
        if small := next((t for t, found in enumerate(classes) if len(found) < 2), None):
            raise ConfigError(f"experience {small} of a task-incremental benchmark has one class; two are accepted")
        return "task", classes
    if different > 1:
        raise ConfigError("some experiences share a task label and others don't; one label or one each is accepted")
    if sum(map(len, classes)) == len(set().union(*classes)):
        return "class", classes
    if all(found == classes[0] for found in classes):
        return "domain", classes
    raise ConfigError("the experiences share some of their classes; all of them or none are accepted")


def _original_classes(setting: str, classes: list[list[int]]) -> tuple[list[list[int]], tuple[str, ...]]:
    """Return a number for each class of each task, its own where it is in one task only, and the names of all."""
    if sum(map(len, classes)) == len(set().union(*classes)):
        return classes, tuple(str(c) for c in range(max(max(found) for found in classes) + 1))
    starts = [sum(map(len, classes[:t])) for t in range(len(classes))]
    names = tuple(f"{c} (task {t})" for t, found in enumerate(classes) for c in found)
    return [[start + i for i in range(len(found))] for start, found in zip(starts, classes, strict=True)], names


def _pixels(data: Any, normalization: Any) -> Tensor:
    """Apply the evaluation transforms to every image and undo the Normalize: uint8 [N, C, H, W]."""
    parts = []
    for start in range(0, len(data), CHUNK):
        images = [data[i][0] for i in range(start, min(start + CHUNK, len(data)))]
        if not isinstance(images[0], Tensor):
            raise ConfigError(f"the evaluation transforms end in {type(images[0]).__name__}; they must end in a tensor")
        part = torch.stack(images)
        if part.dtype == torch.uint8:
            parts.append(part)
            continue
        if normalization is not None:
            mean, std = (torch.as_tensor(v).view(1, -1, 1, 1) for v in (normalization.mean, normalization.std))
            part = part * std + mean
        pixels = (part * 255).round()
        if (part * 255 - pixels).abs().max() > 0.02 or pixels.min() < 0 or pixels.max() > 255:
            raise ConfigError(
                "images after the evaluation transforms are not pixels of 8 bits; ToTensor, Normalize and what keeps "
                "pixels whole (crops, permutations, resizing before ToTensor) are accepted"
            )
        parts.append(pixels.to(torch.uint8))
    images_ = torch.cat(parts)
    if images_.ndim != 4:
        raise ConfigError(f"images of shape {tuple(images_.shape[1:])} after the evaluation transforms; [C, H, W] fits")
    return images_


def _images(
    streams: list[str], tasks: range, read: Callable[[str, int], tuple[Tensor, Tensor, Tensor]]
) -> tuple[Images, tuple[list[Tensor], list[Tensor]]]:
    """Read streams into one set of images; return it with each task's ids in the first and in the second stream."""
    read_all = [(stream, t, *read(stream, t)) for t in tasks for stream in streams]
    ids: dict[str, list[Tensor]] = {stream: [] for stream in streams}
    start = 0
    for stream, _, images, _, _ in read_all:
        ids[stream].append(torch.arange(start, start + len(images)))
        start += len(images)
    of_task = [torch.full((len(images),), t, dtype=torch.int64) for _, t, images, _, _ in read_all]
    shapes = {tuple(images.shape[1:]) for _, _, images, _, _ in read_all}
    if len(shapes) > 1:
        raise ConfigError(f"images of different shapes {sorted(shapes)}; equal ones are accepted")
    made = Images(
        torch.cat([images for _, _, images, _, _ in read_all]),
        torch.cat([outputs for _, _, _, outputs, _ in read_all]),
        torch.cat([original for *_, original in read_all]),
        torch.cat(of_task),
    )
    empty = [torch.empty(0, dtype=torch.int64) for _ in tasks]
    return made, (ids[streams[0]], ids[streams[1]] if len(streams) > 1 else empty)
