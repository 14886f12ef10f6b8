"""Split scenarios: the classes of one data set, shared out over tasks."""

import functools
import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clbench.config import RunConfig
from clbench.errors import ConfigError, unknown
from clbench.scenario import Images, ImageSet, Scenario, ScenarioSpec, Task
from clbench.scenarios.class_orders import CLASS_ORDERS
from clbench.scenarios.datasets import Dataset, fingerprint, load_dataset
from clbench.streams import stream


def split(
    data: Dataset,
    *,
    tasks: int | None = None,
    task_sizes: Sequence[int] | None = None,
    class_order: Sequence[int] | str | None = None,
    class_order_seed: int | None = None,
    setting: str = "class",
    limit: int | None = None,
    validation: float = 0.0,
    seed: int = 0,
    name: str | None = None,
) -> Scenario:
    """Share the classes of a data set out over tasks; labels become head outputs in order of appearance.

    tasks or task_sizes: how many classes per task (with `tasks`, spare classes go to the first ones). class_order:
    original classes in order of appearance (a part of them is accepted), or the name of a published order;
    class_order_seed draws it. limit: training images per class at most, the first in the files. validation: share of
    each class held out, drawn by `seed`. Raises ConfigError for what doesn't fit the data or the setting.
    """
    order = _class_order(data, class_order, class_order_seed)
    sizes = _task_sizes(order, tasks, task_sizes)
    _check_setting(setting, sizes)
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

    made = []
    for index, (classes, first) in enumerate(zip(chunks, first_outputs, strict=True)):
        parts = [_hold_out(train, c, limit, validation, seed) for c in classes]
        made.append(
            Task(
                index,
                tuple(classes),
                slice(first, first + len(classes)),
                ImageSet(train, torch.cat([kept for kept, _ in parts])),
                ImageSet(train, torch.cat([held for _, held in parts])),
                ImageSet(test, torch.nonzero(test.tasks == index).flatten()),
            )
        )
    return Scenario(name or f"split-{data.name}", setting, made, data.class_names, train, test, data.mean, data.std)


def _class_order(data: Dataset, given: Sequence[int] | str | None, seed: int | None) -> list[int]:
    n = len(data.class_names)
    if seed is not None:
        return torch.randperm(n, generator=stream(seed, "class order")).tolist()
    if given is None:
        return list(range(n))
    if isinstance(given, str):
        if given not in CLASS_ORDERS:
            raise unknown("class order", given, CLASS_ORDERS)
        given = CLASS_ORDERS[given]
        if len(given) != n:
            raise ConfigError(f"this published class order is for {len(given)} classes; {data.name} has {n}")
    order = list(given)
    wrong = [c for c in order if not 0 <= c < n]
    if wrong or len(set(order)) != len(order) or not order:
        what = f"class {wrong[0]}" if wrong else "a class twice" if order else "no class"
        raise ConfigError(f"class_order names {what}; distinct classes of 0..{n - 1} are accepted")
    return order


def _task_sizes(order: list[int], tasks: int | None, sizes: Sequence[int] | None) -> list[int]:
    n = len(order)
    if sizes is not None:
        if min(sizes, default=0) < 1 or sum(sizes) != n:
            text = ",".join(map(str, sizes))
            raise ConfigError(f"task_sizes={text} sums to {sum(sizes)}; the sizes of all tasks sum to {n} classes")
        return list(sizes)
    if tasks is None:
        raise ConfigError(f"how many tasks? give tasks (1 to {n}) or task_sizes, such as {n - n // 2},{n // 2}")
    if not 1 <= tasks <= n:
        raise ConfigError(f"tasks={tasks}: 1 to {n} are accepted, at least one class a task")
    return [n // tasks + (i < n % tasks) for i in range(tasks)]


def _check_setting(setting: str, sizes: list[int]) -> None:
    text = ",".join(map(str, sizes))
    if setting in ("task", "domain") and min(sizes) < 2:
        raise ConfigError(
            f"task sizes {text} hold a task of one class, which a {setting}-incremental scenario can't tell apart; "
            "use at least two classes a task, or setting=class"
        )
    if setting == "domain" and len(set(sizes)) > 1:
        raise ConfigError(f"task sizes {text} differ; a domain-incremental scenario needs equal ones")


def _images(images: "np.ndarray[Any, Any]", classes: "np.ndarray[Any, Any]", output: Any, task_of: Any) -> Images:
    return Images(
        torch.from_numpy(_writable(images)),
        torch.from_numpy(output[classes]),
        torch.from_numpy(np.require(classes, np.int64, ["C", "W"])),
        torch.from_numpy(task_of[classes]),
    )


def _hold_out(train: Images, c: int, limit: int | None, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the ids of one class that are trained on, and those held out for validation."""
    ids = torch.nonzero(train.classes == c).flatten()[:limit]
    if not share:
        return ids, ids[:0]
    held = max(1, round(share * len(ids)))
    if held >= len(ids):
        raise ConfigError(
            f"validation={share:g} of the {len(ids)} training images of class {c} leaves none to train on"
        )
    mixed = ids[torch.randperm(len(ids), generator=stream(seed, "validation", c))]
    return mixed[held:].sort().values, mixed[:held].sort().values


# Worker processes stay up between runs; the data set is read, and laid out for torch, once in each.
@functools.lru_cache(maxsize=1)
def _load(dataset: str, data_root: str, offline: bool, image_size: int | None) -> Dataset:
    data = load_dataset(dataset, data_root, offline=offline, image_size=image_size)
    return replace(data, x_train=_writable(data.x_train), x_test=_writable(data.x_test))


def _writable(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    return np.require(array, requirements=["C", "W"])


def _build(dataset: str | None, config: RunConfig) -> Scenario:
    data = _load(dataset or config.scenario, config.data_root, config.offline, config.image_size)
    seed = config.class_order_seed
    scenario = split(
        data,
        tasks=config.tasks,
        task_sizes=config.task_sizes,
        class_order=config.class_order,
        class_order_seed=config.seed if seed == "per-seed" else seed,
        setting=config.setting,
        limit=config.limit,
        validation=config.validation,
        seed=config.seed,
        name=config.scenario if dataset else Path(config.scenario).stem,
    )
    if dataset:
        return scenario
    # Content, not name, says what a user's own data are.
    return replace(scenario, fingerprint=fingerprint(data))


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the training that is each scenario's default, from presets.toml."""
    return tomllib.loads(resources.files("clbench.scenarios").joinpath("presets.toml").read_text("utf-8"))


def _spec(dataset: str, summary: str) -> ScenarioSpec:
    return ScenarioSpec(functools.partial(_build, dataset), summary, presets().get(f"split-{dataset}", {}))


SPLIT_MNIST = _spec("mnist", "MNIST, 60,000 digits, by default 5 tasks of 2")
SPLIT_MNIST_5K = _spec("mnist-5k", "5,000 real MNIST digits that need no download, by default 5 tasks of 2")
SPLIT_FASHION_MNIST = _spec("fashion-mnist", "Fashion-MNIST, by default 5 tasks of 2")
SPLIT_KMNIST = _spec("kmnist", "Kuzushiji-MNIST, by default 5 tasks of 2")
SPLIT_CIFAR10 = _spec("cifar10", "CIFAR-10, by default 5 tasks of 2")
SPLIT_CIFAR100 = _spec("cifar100", "CIFAR-100, by default 10 tasks of 10")
FILES = ScenarioSpec(
    functools.partial(_build, None), "your own data: the path of an .npz file or a folder of images", presets()["files"]
)
