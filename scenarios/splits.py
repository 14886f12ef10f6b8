"""Split scenarios: they share the classes of one data set out over tasks."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, unknown
from clbench.config.run import Setting
from clbench.data.scenario import Images, ImageSet, Scenario, Task
from clbench.data.sources import Changed, is_mapped, source_of
from clbench.scenarios.class_orders import CLASS_ORDERS
from clbench.scenarios.datasets import Dataset, find_dataset, read_dataset
from clbench.scenarios.files import content_digests
from clbench.support.streams import stream
from clbench.support.surroundings import by_default


@checked
@by_default()
def split(
    data: Dataset,
    *,
    tasks: int | None = None,
    task_sizes: Sequence[int] | None = None,
    class_order: Sequence[int | str] | str | None = None,
    class_order_seed: int | None = None,
    setting: str = "class",
    limit: int | None = None,
    validation: float = 0.0,
    blurry: float = 0.0,
    disjoint: float | None = None,
    imbalance: float | None = None,
    shots: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Scenario:
    """Share the classes of a data set out over tasks; labels become head outputs in order of appearance.

    tasks: the number of tasks; spare classes go to the first ones.
    task_sizes: the number of classes of each task, in place of `tasks`.
    class_order: original classes, by number or name, in order of appearance (a part of them is accepted), as a list or
        as text with commas; or the name of a published order.
    class_order_seed: draws the order if `class_order` is not given.
    limit: training images per class at most, the first in the files.
    validation: share of each class held out, drawn by `seed`; data may bring a validation split of their own instead.
    blurry: share of each task's training images, drawn by the class-order seed (0 without one), that is dealt out
        evenly over the other tasks (blurry boundaries: Bang et al. 2021, arXiv:2103.17230).
    disjoint: makes a stream whose boundaries no strategy is told (Si-Blurry: Moon et al. 2023, arXiv:2308.09303; Koh et
        al. 2022, arXiv:2110.10031). This share of each task's classes, rounded down over all of them, comes in that
        task alone; of the others the share `blurry` of their images is dealt out at random over all tasks, by the same
        seed. 1 is a stream of tasks of their own classes.
    imbalance: long-tailed classes; the i-th of C original classes keeps n / imbalance^(i / (C - 1)) images, rounded
        down, where n is the size of the smallest class (Cui et al. 2019, arXiv:1901.05555). Tasks are then long-tailed
        too: ordered by size in the usual class order, shuffled in another one (Liu et al. 2022, arXiv:2210.00266).
    shots: training images of each class after the first task, the first in the files (few-shot increments: Tao et al.
        2020, arXiv:2004.10956).

    Test images are always those of the task's own classes. Raises ConfigError for a value that doesn't fit the data or
    the setting.
    """
    data.check()
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} training images of each class; 1 or more are accepted")
    order = class_order_of(data, class_order, class_order_seed)
    if tasks is not None and task_sizes is not None:
        raise ConfigError(f"tasks={tasks} and task_sizes={list(task_sizes)} exclude each other; give one of them")
    if class_order is not None and class_order_seed is not None and not blurry:
        raise ConfigError("class_order and class_order_seed exclude each other, where no blurry tasks are drawn by it")
    sizes = task_sizes_of(order, tasks, task_sizes)
    _check_setting(setting, sizes)
    _check_training_images(setting, sizes, validation, blurry, imbalance, shots)
    _check_disjoint(setting, len(order), blurry, disjoint)
    if data.n_validation and validation:
        raise ConfigError(
            f"validation={validation:g} and the {data.n_validation:,} validation images of {data.name} itself exclude "
            "each other; leave validation out"
        )
    starts = np.cumsum([0, *sizes])
    chunks = [order[a:b] for a, b in itertools.pairwise(starts)]
    first_outputs = [0] * len(sizes) if setting == "domain" else starts[:-1].tolist()

    output = np.full(len(data.class_names), -1)
    task_of = np.full(len(data.class_names), -1)
    for index, (classes, first) in enumerate(zip(chunks, first_outputs, strict=True)):
        output[classes] = np.arange(first, first + len(classes))
        task_of[classes] = index
    train = _images(data.x_train, data.y_train, output, task_of)
    test = _images(data.x_test, data.y_test, output, task_of)

    numbers = _training_images(data, chunks, limit, imbalance, shots)
    n = len(data.x_train) - data.n_validation
    of_class, tested = _places(train.classes, len(data.class_names)), _places(test.tasks, len(sizes))
    parts = [[_hold_out(of_class[c], n, c, numbers[c], validation, seed) for c in classes] for classes in chunks]
    kept = [torch.cat([ids for ids, _ in of_task]) for of_task in parts]
    if blurry:
        seed_of_order = class_order_seed or 0
        if disjoint is None:
            kept = _blur(kept, blurry, seed_of_order)
        else:
            spread = torch.tensor([c for classes in _blurry_classes(chunks, disjoint) for c in classes])
            kept = _spread(kept, train.classes, spread, blurry, seed_of_order)
        for index, ids in enumerate(kept):
            train.tasks[ids] = index
    made = [
        Task(
            index,
            tuple(classes),
            slice(first, first + len(classes)),
            ImageSet(train, kept[index]),
            ImageSet(train, torch.cat([held for _, held in parts[index]])),
            ImageSet(test, tested[index]),
        )
        for index, (classes, first) in enumerate(zip(chunks, first_outputs, strict=True))
    ]
    return Scenario(
        name or f"split-{data.name}",
        setting,
        made,
        data.class_names,
        train,
        test,
        data.mean,
        data.std,
        left_out=data.left_out,
        boundless=disjoint is not None,
    )


class Classes(Protocol):
    """Anything with a name and names of classes, such as a Dataset."""

    @property
    def name(self) -> str:
        """The name of the data set."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class."""


def class_order_of(data: Classes, given: Sequence[int | str] | str | None, seed: int | None) -> list[int]:
    """Return classes in order of appearance, as given, drawn by a seed or as they are numbered; raises ConfigError."""
    n = len(data.class_names)
    if given is None:
        return list(range(n)) if seed is None else torch.randperm(n, generator=stream(seed, "class order")).tolist()
    if isinstance(given, str) and given in CLASS_ORDERS:
        given = CLASS_ORDERS[given]
        if len(given) != n:
            raise ConfigError(f"this published class order is for {len(given)} classes; {data.name} has {n}")
    elif isinstance(given, str):
        given = [given] if given in data.class_names else [name.strip() for name in given.split(",")]
        if len(given) == 1 and given[0] not in data.class_names:
            raise unknown("class order", str(given[0]), [*CLASS_ORDERS, *data.class_names])
    order = [c if isinstance(c, int) else _class_of(data, c) for c in given]
    wrong = [c for c in order if not 0 <= c < n]
    if wrong or len(set(order)) != len(order) or not order:
        what = f"class {wrong[0]}" if wrong else "a class twice" if order else "no class"
        raise ConfigError(f"class_order names {what}; distinct classes of 0..{n - 1} are accepted")
    return order


def _class_of(data: Classes, name: str) -> int:
    """Return the number of a class that is given by its name, or by its number as text beside names."""
    if name in data.class_names:
        return data.class_names.index(name)
    if name.isascii() and name.isdecimal():
        return int(name)
    raise unknown(f"class of {data.name}", name, data.class_names)


def task_sizes_of(order: list[int], tasks: int | None, sizes: Sequence[int] | None) -> list[int]:
    """Return the number of classes of each task, from the number of tasks or as given; raises ConfigError."""
    n = len(order)
    if sizes is not None:
        if min(sizes, default=0) < 1 or sum(sizes) != n:
            text = ",".join(map(str, sizes))
            raise ConfigError(f"task_sizes={text} sums to {sum(sizes)}; the sizes of all tasks sum to {n} classes")
        return list(sizes)
    if tasks is None:
        raise ConfigError(f"how many tasks? give tasks (1 to {n}) or task_sizes, such as {n - n // 2},{n // 2}")
    if not 1 <= tasks <= n:
        raise ConfigError(f"tasks={tasks} of {n} classes: 1 to {n} are accepted, at least one class a task")
    return [n // tasks + (i < n % tasks) for i in range(tasks)]


def _check_setting(setting: str, sizes: list[int]) -> None:
    if setting not in get_args(Setting):
        raise unknown("setting", setting, get_args(Setting))
    text = ",".join(map(str, sizes))
    if setting in ("task", "domain") and min(sizes) < 2:
        raise ConfigError(
            f"task sizes {text} hold a task of one class, which a {setting}-incremental scenario can't tell apart; "
            "use at least two classes a task, or setting=class"
        )
    if setting == "domain" and len(set(sizes)) > 1:
        raise ConfigError(f"task sizes {text} differ; a domain-incremental scenario needs equal ones")


def _check_training_images(
    setting: str, sizes: list[int], validation: float, blurry: float, imbalance: float | None, shots: int | None
) -> None:
    if not 0 <= validation < 1:
        raise ConfigError(f"validation={validation:g} is a share; 0 up to below 1 is accepted")
    if not 0 <= blurry < 1:
        raise ConfigError(f"blurry={blurry:g} is a share; 0 up to below 1 is accepted")
    if (imbalance is not None and not imbalance >= 1) or (shots is not None and shots < 1):
        raise ConfigError(f"imbalance={imbalance} and shots={shots} were given; 1 or more is accepted")
    if blurry and len(sizes) == 1:
        raise ConfigError(f"blurry={blurry:g} deals images out over several tasks, and there is one; two are accepted")
    if blurry and setting == "task":
        raise ConfigError(
            f"blurry={blurry:g}: a task-incremental scenario tells each image's task, so its boundaries are sharp; "
            "setting=class and setting=domain are accepted"
        )
    if shots is None:
        return
    if len(sizes) == 1:
        raise ConfigError(f"shots={shots} is for the tasks after the first, and there is one task; two are accepted")
    others = {"validation": validation, "blurry": blurry, "imbalance": imbalance}
    if clash := next((name for name, value in others.items() if value), None):
        raise ConfigError(f"shots={shots} and {clash}={others[clash]:g} exclude each other; give one of them")


def _training_images(
    data: Dataset, chunks: list[list[int]], limit: int | None, imbalance: float | None, shots: int | None
) -> dict[int, int]:
    """Return how many training images each class of the tasks has."""
    y_train = data.y_train[: len(data.y_train) - data.n_validation]
    available = np.bincount(y_train, minlength=len(data.class_names)).tolist()
    ranked = sorted(c for classes in chunks for c in classes)
    numbers = {c: min(available[c], limit or available[c]) for c in ranked}
    if imbalance is not None:
        smallest = min(numbers.values())
        numbers = {c: int(smallest / imbalance ** (i / max(len(ranked) - 1, 1))) for i, c in enumerate(ranked)}
        if not all(numbers.values()):
            raise ConfigError(f"imbalance={imbalance:g} leaves a class without images; at most {smallest} is accepted")
    for c in (c for classes in chunks[1:] for c in classes if shots is not None):
        if numbers[c] < shots:
            raise ConfigError(
                f"shots={shots}, but class {c} has {numbers[c]} training images; at most that is accepted"
            )
        numbers[c] = shots
    return numbers


def _blur(kept: list[Tensor], share: float, seed: int) -> list[Tensor]:
    """Deal a share of each task's ids out to the other tasks in turn."""
    dealt: list[list[Tensor]] = [[] for _ in kept]
    for index, ids in enumerate(kept):
        mixed = ids[torch.randperm(len(ids), generator=stream(seed, "blurry", index))]
        n = round(share * len(ids))
        dealt[index].append(mixed[n:])
        # Begins with the next task, so that the remainder does not always go to the first tasks.
        for turn in range(1, len(kept)):
            dealt[(index + turn) % len(kept)].append(mixed[:n][turn - 1 :: len(kept) - 1])
    return [torch.cat(parts).sort().values for parts in dealt]


def _check_disjoint(setting: str, n_classes: int, blurry: float, disjoint: float | None) -> None:
    if disjoint is None:
        return
    if not 0 <= disjoint <= 1:
        raise ConfigError(f"disjoint={disjoint:g} is a share of the classes; 0 to 1 is accepted")
    if setting == "task":
        raise ConfigError(
            f"disjoint={disjoint:g}: a task-incremental scenario tells each image's task, so its boundaries are known; "
            "setting=class and setting=domain are accepted"
        )
    if (int(disjoint * n_classes) < n_classes) != (blurry > 0):
        raise ConfigError(
            f"disjoint={disjoint:g} and blurry={blurry:g}: blurry is the share of the images of classes that are not "
            "disjoint; a share above 0 where there are such classes, and 0 with disjoint=1, is accepted"
        )


def _blurry_classes(chunks: list[list[int]], disjoint: float) -> list[list[int]]:
    """Return each task's classes that are not its own alone: the last ones of it, as many as the share leaves."""
    found, before = [], 0
    for classes in chunks:
        own = int(disjoint * (before + len(classes))) - int(disjoint * before)
        found.append(classes[own:])
        before += len(classes)
    return found


def _spread(kept: list[Tensor], classes: Tensor, blurry: Tensor, share: float, seed: int) -> list[Tensor]:
    """Deal a share of each task's ids of blurry classes out over all tasks at random, in parts of equal size."""
    stay, pool = [], []
    for index, ids in enumerate(kept):
        own = torch.isin(classes[ids], blurry)
        mixed = ids[own][torch.randperm(int(own.sum()), generator=stream(seed, "blurry", index))]
        n = round(share * len(mixed))
        stay.append(torch.cat([ids[~own], mixed[n:]]))
        pool.append(mixed[:n])
    together = torch.cat(pool)
    dealt = together[torch.randperm(len(together), generator=stream(seed, "dealt"))].tensor_split(len(kept))
    return [torch.cat(parts).sort().values for parts in zip(stay, dealt, strict=True)]


def _images(
    images: "np.ndarray[Any, Any] | Changed", classes: "np.ndarray[Any, Any]", output: Any, task_of: Any
) -> Images:
    return Images(
        images if isinstance(images, Changed) else source_of(images),
        torch.from_numpy(output[classes]),
        torch.from_numpy(np.require(classes, np.int64, ["C", "W"])),
        torch.from_numpy(task_of[classes]),
    )


def _places(values: Tensor, n: int) -> list[Tensor]:
    """Return where each of the values 0 to n-1 stands, in order: sorted once, as there may be thousands of them."""
    counts = torch.bincount(values + 1, minlength=n + 1)
    return [places.clone() for places in values.argsort(stable=True).split(counts.tolist())[1:]]


def _hold_out(of_class: Tensor, end: int, c: int, n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the ids of one class for training, n of those before `end`, and those held out for validation."""
    ids = of_class[of_class < end][:n]
    if not share:
        return ids, of_class[of_class >= end]
    held = max(1, round(share * len(ids)))
    if held >= len(ids):
        raise ConfigError(
            f"validation={share:g} of the {len(ids)} training images of class {c} leaves none to train on"
        )
    mixed = ids[torch.randperm(len(ids), generator=stream(seed, "validation", c))]
    return mixed[held:].sort().values, mixed[:held].sort().values


# Worker processes stay up between runs; each reads a data set, and lays it out for torch, once.
_latest: dict[str, tuple[object, Dataset]] = {}


def load_once(
    dataset: str,
    data_root: str,
    offline: bool,
    image_size: int | None,
    *,
    memory_limit: int | str | None = None,
    **own: Any,
) -> Dataset:
    """Return load_dataset's data set; the latest one comes from memory while the content of its files is the same.

    own: test_share and skip_unreadable, for files of the user's own.

    It is read again, too, where a scenario of somebody's own has written into its arrays. What a package brings is
    asked for each time, since nobody knows what it reads.
    """
    found = find_dataset(dataset, data_root, offline, image_size, **own)
    if isinstance(found, Dataset):
        return found
    digests = content_digests(found.paths)
    # The folder of an image is its class.
    key = dataset, image_size, own, memory_limit, found.origin, list(map(str, found.paths)), digests
    latest = _latest.get("data")
    if latest is None or latest[0] != key or latest[1].compared.content != latest[1].checksums():
        data = read_dataset(dataset, found, image_size, own.get("test_share"), memory_limit)
        if content_digests(found.paths) != digests:
            raise ConfigError(f"files of {found.origin} were changed while they were read; begin again")
        laid_out = replace(data, x_train=_writable(data.x_train), x_test=_writable(data.x_test))
        vars(laid_out)["compared"] = data.compared  # of the same values, so they are not digested again
        _latest["data"] = latest = key, laid_out
    return latest[1]


def _writable(array: Any) -> "np.ndarray[Any, Any]":
    return array if is_mapped(array) else np.require(array, requirements=["C", "W"])
