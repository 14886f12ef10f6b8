"""The scenarios by name, with their options. It imports no torch; a scenario imports what cuts its tasks when built."""

import functools
import inspect
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from clbench.config.errors import ConfigError, unknown
from clbench.config.groups import Count, Share, TrainingConfig
from clbench.config.registry import read_text, text_of
from clbench.config.run import RunConfig
from clbench.data.spec import ScenarioSpec

if TYPE_CHECKING:
    from pathlib import Path

    from clbench.data.scenario import Scenario
    from clbench.scenarios.datasets import Dataset
    from clbench.scenarios.streams import Part, Source


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the training that is each scenario's default, from presets.toml."""
    import tomllib
    from importlib import resources

    return tomllib.loads(resources.files("clbench.scenarios").joinpath("presets.toml").read_text("utf-8"))


class Preset(Mapping[str, Any]):
    """One scenario's part of presets.toml, read on first use, with other values of some fields."""

    def __init__(self, name: str, **changed: Any) -> None:
        self.name, self.changed = name, changed

    def __getitem__(self, key: str) -> Any:
        return self._values()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def _values(self) -> dict[str, Any]:
        return presets()[self.name] | self.changed


class _Cut(ScenarioSpec):
    """The options of every scenario here: a number of tasks, and a part of the training images."""

    dataset: ClassVar[str]

    tasks: Annotated[Count | None, Field(description="number of tasks; spare classes go to the first")] = None
    class_order_seed: Annotated[
        int | Literal["per-seed"] | None,
        Field(description="draw the class order from this seed, or per-seed from each run's own"),
    ] = None
    limit: Annotated[Count | None, Field(description="training images per class at most")] = None
    blurry: Annotated[Share, Field(description="share of each task's training images spread over the other tasks")] = (
        0.0
    )
    online: Annotated[
        bool, Field(description="train as is usual where a stream is seen once: one pass in batches of ten")
    ] = False
    disjoint: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        Field(
            description="a stream whose boundaries no strategy is told (Si-Blurry): the share of classes that come in "
            "one task alone; of the others' images blurry is spread"
        ),
    ] = None
    imbalance: Annotated[
        Annotated[float, Field(ge=1)] | None,
        Field(description="long-tailed classes: training images of the first class over those of the last"),
    ] = None
    shots: Annotated[
        Count | None, Field(description="few-shot increments: training images per class after the first task")
    ] = None
    image_size: Annotated[
        Annotated[int, Field(ge=4)] | None,
        Field(description="for folders of photos and streams: resize the shorter side, crop the centre"),
    ] = None

    @classmethod
    def preset_of(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the usual training of a stream that is seen once, on the scenario's network."""
        boundless = given.get("disjoint") is not None
        if not boundless and read_text(bool, given.get("online", False)) is not True:
            return cls.preset
        own = {k: v for k, v in cls.preset.items() if k not in TrainingConfig.model_fields and k != "strategies"}
        tuned = presets().get(f"online-{getattr(cls.preset, 'name', '')}", {})
        preset = own | presets()["online"] | tuned | ({"optimizer_state": "keep"} if boundless else {})
        if boundless and {**own, **given}.get("setting", "class") == "class":
            # Outputs of all classes exist from the beginning, as classes come at any time.
            preset |= {"head": "full", "loss_outputs": "all"}
        return preset

    def drawn_by(self, config: RunConfig) -> int | None:
        """Return the seed that draws the scenario: the class-order seed, the run's seed under `per-seed`, or None."""
        return config.seed if self.class_order_seed == "per-seed" else self.class_order_seed

    def source(self, config: RunConfig) -> "Dataset":
        """Return the data set; the latest one stays in memory for the next run of the same process."""
        from clbench.scenarios.splits import load_once

        return load_once(
            self.dataset, config.data.root, config.data.offline, self.image_size, memory_limit=config.data.memory_limit
        )

    def cut(self, data: "Dataset", config: RunConfig, **given: Any) -> "Scenario":
        """Cut tasks from a data set as the options say; `given` are arguments of split() that override them."""
        from clbench.scenarios.splits import split

        # The others say how the data are read.
        asked = {name: self.options[name] for name in inspect.signature(split).parameters if name in self.options}
        asked |= {"class_order_seed": self.drawn_by(config), "validation": config.data.validation}
        return split(data, **{**asked, "seed": config.seed, "name": config.scenario, **given})


def _in_brackets(value: object) -> str:
    """Return the value of an option as one would type it in the brackets of a scenario."""
    text = text_of(value)
    return f"[{text}]" if isinstance(value, list) else text


def _statistics(normalised: bool) -> dict[str, Any]:
    return {"statistics": "first"} if normalised else {}


def _joined(order: object) -> object:
    """Return a list of classes that holds names as a text with commas, as it is typed."""
    return ",".join(map(str, order)) if isinstance(order, list) and any(isinstance(c, str) for c in order) else order


class Split(_Cut):
    """The classes of one data set, shared out over tasks."""

    exclusive = (("tasks", "task_sizes"), ("class_order", "class_order_seed"))

    task_sizes: Annotated[list[Count] | None, Field(description="classes per task, such as 4,3,3")] = None
    class_order: Annotated[
        list[int] | str | None,
        BeforeValidator(_joined),
        Field(description="classes in order of appearance, by number or name, or a published order by name"),
    ] = None

    def followed_by(self, name: str, other: str, normalised: bool) -> tuple[str, dict[str, Any]]:
        """Return the stream of this data set, cut as here, and of another."""
        kind = type(self)
        if (kind.build, kind.source) not in ((Split.build, Split.source), (Files.build, Files.source)):
            return super().followed_by(name, other, normalised)
        given = {key: value for key, value in self.options.items() if value != kind._options.model_fields[key].default}
        own = {key: value for key, value in given.items() if key in _OF_SOURCE}
        if not self.task_sizes:
            own["tasks"] = self.tasks or 1
        texts = [f"{key}={_in_brackets(value)}" for key, value in own.items()]
        shared = {key: value for key, value in given.items() if key not in own}
        if odd := shared.keys() - Stream._options.model_fields.keys():
            raise ConfigError(f"{name} has {min(odd)}={shared[min(odd)]}, which no data set of a stream can have")
        return "stream", {**shared, "of": [f"{name}[{','.join(texts)}]", other], **_statistics(normalised)}

    def build(self, config: RunConfig) -> "Scenario":
        """Read the data set and cut the tasks."""
        data = self.source(config)
        return self.cut(data, config).of(data.compared.fingerprint, data.compared.content)


class SplitMNIST(Split):
    """MNIST, 60,000 digits, by default 5 tasks of 2."""

    dataset = "mnist"
    preset = Preset("split-mnist")


class SplitMNIST5K(Split):
    """5,000 real MNIST digits that need no download, by default 5 tasks of 2."""

    dataset = "mnist-5k"
    preset = Preset("split-mnist-5k")


class SplitFashionMNIST(Split):
    """Fashion-MNIST, by default 5 tasks of 2."""

    dataset = "fashion-mnist"
    preset = Preset("split-fashion-mnist")


class SplitKMNIST(Split):
    """Kuzushiji-MNIST, by default 5 tasks of 2."""

    dataset = "kmnist"
    preset = Preset("split-kmnist")


class SplitCIFAR10(Split):
    """CIFAR-10, by default 5 tasks of 2."""

    dataset = "cifar10"
    preset = Preset("split-cifar10")


class SplitCIFAR100(Split):
    """CIFAR-100, by default 10 tasks of 10."""

    dataset = "cifar100"
    preset = Preset("split-cifar100")


TestShare = Annotated[
    Annotated[float, Field(gt=0, lt=1)] | None,
    Field(description="share of each class that becomes the test, of files without one: FOLDER/CLASS/IMAGE"),
]
SkipUnreadable = Annotated[bool, Field(description="leave out image files that can't be used")]


class SplitDigits(Split):
    """1,797 digits of 8 x 8 pixels that come with scikit-learn, by default 5 tasks of 2."""

    dataset = "digits"
    preset = Preset("files", tasks=5)


@functools.cache
def split_of(dataset: str) -> type[Split]:
    """Return `split-NAME` of a data set that has no class of its own here."""
    from clbench.config.registry import load_entry_point
    from clbench.scenarios.catalogue import Listed

    preset = Preset("files")
    try:
        listed = load_entry_point("clbench.datasets", "dataset", dataset)
    except ConfigError as error:
        # Whoever lists scenarios still sees the others; whoever builds this one meets the error.
        return type(f"Split_{dataset}", (Split,), {"__doc__": str(error), "dataset": dataset, "preset": preset})
    if isinstance(listed, Listed):
        preset = Preset(listed.like, **listed.fields, tasks=listed.tasks)
        what = f"{listed.title}, by default {listed.tasks} tasks."
    else:
        text = (inspect.getdoc(listed) or dataset).partition("\n")[0].removeprefix("Return ")
        what = text[:1].upper() + text[1:]
    return type(f"Split_{dataset}", (Split,), {"__doc__": what, "dataset": dataset, "preset": preset})


class Files(Split):
    """Your own data: the path of an .npz file or a folder of images."""

    preset = Preset("files")

    test_share: TestShare = None
    skip_unreadable: SkipUnreadable = False
    columns: Annotated[
        str | None,
        Field(description="of a table (CSV, Parquet, Arrow), such as image=file,label=kind,split=part"),
    ] = None

    def build(self, config: RunConfig) -> "Scenario":
        """Read the files and cut the tasks; their content, not their name, identifies them."""
        from pathlib import Path

        from clbench.scenarios.splits import load_once

        data = load_once(
            config.scenario,
            config.data.root,
            config.data.offline,
            self.image_size,
            test_share=self.test_share,
            skip_unreadable=self.skip_unreadable,
            columns=self.columns,
            memory_limit=config.data.memory_limit,
        )
        made = self.cut(data, config, name=Path(config.scenario).resolve().stem)
        return made.of(data.compared.fingerprint, data.compared.content)

    @staticmethod
    def examined(place: str, data_root: str, *, test_share: float | None, columns: str | None) -> dict[str, Any]:
        """Return what examine() finds in files, as JSON holds it; raises ConfigError."""
        from dataclasses import asdict

        from clbench.scenarios.datasets import Dataset, find_dataset
        from clbench.scenarios.examined import examine

        found = find_dataset(place, data_root, True, None, test_share=test_share, columns=columns)
        if isinstance(found, Dataset):
            raise ConfigError(f"{place} is made by a package; files of your own are accepted")
        return asdict(examine(found))

    @staticmethod
    def of_run(samples: Any, what: str, shape: tuple[int, ...], *, of_images: bool) -> Any:
        """Return samples of a run's shape; see scenarios/given.py. Raises ConfigError."""
        from clbench.scenarios.given import of_run

        return of_run(samples, what, shape, of_images=of_images)

    @staticmethod
    def images_in(places: "Sequence[str]", shape: tuple[int, ...], **asked: Any) -> tuple[list[str], Any]:
        """Return the samples in files, folders and arrays, with names; see scenarios/given.py. Raises ConfigError."""
        from clbench.scenarios.given import images_in

        return images_in(places, shape, **asked)

    @staticmethod
    def packed(place: str, to: "Path", data_root: str, **asked: Any) -> dict[str, Any]:
        """Write a data set into a file, see write_packed() and load_dataset(); return what was written, as JSON."""
        from clbench.scenarios.datasets import load_dataset
        from clbench.scenarios.packed import write_packed

        data = load_dataset(place, data_root, **asked)
        if data.x_train.dtype != "uint8":
            raise ConfigError(f"{place} holds {data.x_train.dtype}; images are accepted")
        try:
            n_bytes = write_packed(data, to)
        except OSError as error:
            raise ConfigError(f"--to {to} can't be written: {error.strerror or error}") from error
        numbers = {"bytes": n_bytes, "train": len(data.x_train), "test": len(data.x_test)}
        return {"file": str(to), **numbers, "shape": [*data.x_train.shape[1:]], "classes": len(data.class_names)}


class _Several(_Cut):
    """Several data sets after one another, each a task or cut into tasks of its own."""

    exclusive = (("tasks", "tasks_each"),)
    fits_sizes = True

    tasks_each: Annotated[Count | None, Field(description="for streams: tasks that each data set is cut into")] = None
    order_seed: Annotated[
        int | Literal["per-seed"] | None,
        Field(
            description="for streams: draw the order of the data sets from this seed, or per-seed from each run's own"
        ),
    ] = None

    statistics: Annotated[
        Literal["all", "first"],
        Field(description="for streams: mean and deviation of all data sets, or of the first, as others come later"),
    ] = "all"

    @abstractmethod
    def sources(self) -> "list[tuple[Split, Source]]":
        """Return the data sets in order, each with the options that are its own; raises ConfigError."""

    def build(self, config: RunConfig) -> "Scenario":
        """Read the data sets, bring them to one shape, and cut tasks from one after another."""
        import torch

        from clbench.scenarios.splits import class_order_of, task_sizes_of
        from clbench.scenarios.streams import join_once
        from clbench.support.streams import stream

        named = self.sources()
        each = self._tasks_each(named)
        sources, group = [s for _, s in named], config.data
        data, parts = join_once(
            sources, group.root, group.offline, self.image_size, group.memory_limit, statistics=self.statistics
        )
        self.check_parts(parts)
        orders, sizes, first = [], [], 0
        for (own, source), part in zip(named, parts, strict=True):
            seed = self.drawn_by(config) if own.class_order_seed is None else own.drawn_by(config)
            order = class_order_of(part, own.class_order, None if own.class_order is not None else seed)
            try:
                sizes.append(task_sizes_of(order, None if own.task_sizes else own.tasks or each, own.task_sizes))
            except ConfigError as error:
                raise ConfigError(f"{source.given}: {error}") from None
            orders.append([first + c for c in order])
            first += len(part.class_names)
        seed = config.seed if self.order_seed == "per-seed" else self.order_seed
        drawn = list(range(len(parts)))
        if seed is not None:
            drawn = torch.randperm(len(parts), generator=stream(seed, "order of data sets")).tolist()
        made = self.cut(
            data,
            config,
            name=self.title(config.scenario, parts),
            tasks=None,
            task_sizes=[size for i in drawn for size in sizes[i]],
            class_order=[c for i in drawn for c in orders[i]],
            class_order_seed=self.drawn_by(config) if self.blurry else None,
        )
        return made.of(data.compared.fingerprint, data.compared.content)

    def title(self, name: str, parts: "Sequence[Part]") -> str:
        """Return what reports call the scenario; those of other data have tables of their own."""
        return f"{name}[{','.join(part.name for part in parts)}]"

    def check_parts(self, parts: "Sequence[Part]") -> None:
        """Refuse data sets whose classes do not go together; any do in a stream."""

    def _tasks_each(self, named: "list[tuple[Split, Source]]") -> int:
        if self.tasks is None:
            return self.tasks_each or 1
        if own := [source.given for spec, source in named if spec.tasks or spec.task_sizes]:
            raise ConfigError(f"tasks={self.tasks} is given for all data sets, and {own[0]} has its own; give one")
        if self.tasks % len(named):
            raise ConfigError(
                f"tasks={self.tasks} of {len(named)} data sets; a multiple of {len(named)} is accepted, and so is "
                "tasks_each=2"
            )
        return self.tasks // len(named)


class Stream(_Several):
    """Several data sets one after another: stream[split-mnist,split-kmnist], by default a task for each."""

    preset = Preset("files")
    bare = "of"

    of: Annotated[
        list[str] | None, Field(description="for streams: data sets, scenarios split-NAME, or paths, in order")
    ] = None

    def followed_by(self, name: str, other: str, normalised: bool) -> tuple[str, dict[str, Any]]:
        """Return the stream with another data set at its end."""
        given = {k: v for k, v in self.options.items() if v != Stream._options.model_fields[k].default}
        if (tasks := given.pop("tasks", None)) is not None:
            given["tasks_each"] = tasks // len(self.of or ())
        several = {} if self.statistics == "first" or len(self.of or ()) > 1 else _statistics(normalised)
        return "stream", {**given, "of": [*(self.of or ()), other], **several}

    def sources(self) -> "list[tuple[Split, Source]]":
        """Return the data sets that `of` names, in order."""
        if not self.of:
            raise ConfigError("stream has no data sets; stream[split-mnist,split-kmnist] is accepted")
        named = [_source(text, self.image_size) for text in self.of]
        places = [source.dataset for _, source in named]
        given = [os.path.realpath(place) if os.path.exists(place) else place for place in places]
        if twice := next((text for text in given if given.count(text) > 1), None):
            raise ConfigError(f"{twice} stands in the stream more than once; each data set once is accepted")
        return named


# The options that one data set of a stream may have; the others hold for the whole stream.
_OF_SOURCE = ("tasks", "task_sizes", "class_order", "class_order_seed", "image_size", "test_share", "skip_unreadable")


def _source(text: str, image_size: int | None) -> "tuple[Split, Source]":
    """Return a data set of a stream: by its name, as split-NAME, or a path, perhaps with options in brackets."""
    from clbench.config.classes import is_known, load_class
    from clbench.config.registry import DATA_FILES, parse_spec
    from clbench.scenarios.datasets import known_names, takes_size
    from clbench.scenarios.streams import Source

    text = os.path.expanduser(text)
    name = text if os.path.exists(text) else text.partition("[")[0].strip()
    kind: Any = Split
    dataset = name
    if name not in known_names() and is_known("scenario", name):
        kind = load_class("scenario", name)
        dataset = getattr(kind, "dataset", "")
        if not dataset or (kind.build, kind.source) != (Split.build, Split.source):
            raise ConfigError(
                f"{name} makes its tasks in a way of its own, which no stream can join; names of data sets, split-NAME "
                "and paths are accepted"
            )
    elif name not in known_names():
        kind = Files
        if not os.path.exists(name):
            if os.sep in name or name.lower().endswith(DATA_FILES):
                raise ConfigError(f"there is no file or folder {name}, which the stream names")
            raise unknown("data set of a stream", name, [*known_names(), *map("split-{}".format, known_names())])
    options = {} if name == text else parse_spec(text)[1]
    accepted = [key for key in _OF_SOURCE if key in kind._options.model_fields]
    if wrong := [key for key in options if key not in accepted]:
        raise ConfigError(
            f"{wrong[0]} stands in the brackets of {name} in a stream; {', '.join(accepted)} are accepted there"
        )
    own = kind(name, options)
    size = own.image_size or (image_size if takes_size(dataset) else None)
    share, skip = getattr(own, "test_share", None), getattr(own, "skip_unreadable", False)
    return own, Source(text, dataset, size, share, skip)


# The order in the code of Saha et al. 2021, arXiv:2103.09762; Ebrahimi et al. 2020 draw one for each seed.
FIVE_DATASETS = ["cifar10", "mnist", "svhn", "fashion-mnist", "notmnist"]


class FiveDatasets(Stream):
    """Five data sets of ten classes (Ebrahimi et al. 2020, arXiv:2003.09553), each a task, task-incremental."""

    # Saha et al. 2021, arXiv:2103.09762, but that they stop sooner by a validation loss, and pad MNIST with zeros.
    preset = Preset(
        "split-cifar10",
        tasks=None,
        setting="task",
        image_size=32,
        model="resnet18[width=20]",
        batch_size=64,
        epochs=100,
        augment="none",
    )

    of: Annotated[list[str] | None, Field(description="for streams: data sets, in order")] = FIVE_DATASETS


class Domains(_Several):
    """Your own photos in several domains: domains[ROOT] of ROOT/DOMAIN/CLASS/IMAGE, by default a task for each."""

    preset = Preset("files", setting="domain")
    bare = "path"

    path: Annotated[
        str | None,
        BeforeValidator(lambda given: given[0] if isinstance(given, list) and len(given) == 1 else given),
        Field(description="for domains: the folder that holds one folder for each domain"),
    ] = None
    domains: Annotated[
        list[str] | None, Field(description="domains in order of appearance (default: all in natural order)")
    ] = None
    test_share: TestShare = None
    skip_unreadable: SkipUnreadable = False

    def sources(self) -> "list[tuple[Split, Source]]":
        """Return a folder of images for each domain."""
        from pathlib import Path

        from clbench.scenarios.streams import Source, domain_folders

        if not self.path:
            raise ConfigError("domains needs a folder that holds one folder for each domain; domains[path/to/it]")
        folders = domain_folders(Path(self.path).expanduser(), self.domains)
        own = Files(self.path, {})
        share, skip = self.test_share, self.skip_unreadable
        return [(own, Source(str(folder), str(folder), self.image_size, share, skip)) for folder in folders]

    def title(self, name: str, parts: "Sequence[Part]") -> str:
        """Return what reports call the scenario: the name of its folder, wherever that is."""
        return f"{name}[{os.path.basename(os.path.abspath(os.path.expanduser(self.path or '')))}]"

    def check_parts(self, parts: "Sequence[Part]") -> None:
        """Refuse domains that have not the same classes."""
        for part in parts[1:]:
            if odd := sorted({*parts[0].class_names} ^ {*part.class_names}):
                has, lacks = (parts[0], part) if odd[0] in parts[0].class_names else (part, parts[0])
                raise ConfigError(
                    f"the domain {lacks.name} has no class {odd[0]!r}, which {has.name} has; each domain needs all "
                    "classes"
                )


class Rotated(_Cut):
    """All classes in each task, turned by another angle."""

    def build(self, config: RunConfig) -> "Scenario":
        """Draw the change of each task's pixels, then cut the tasks; the classes stay grouped by task."""
        if self.tasks is None:
            raise ConfigError(f"{config.scenario} has all classes in each task; give a number of tasks, such as 10")
        seed = self.drawn_by(config) or 0
        data = self.changed(self.source(config), self.tasks, seed)
        order = list(range(len(data.class_names)))
        made = self.cut(data, config, class_order=order, class_order_seed=seed if self.blurry else None)
        return made.of(data.compared.fingerprint, data.compared.content)

    def changed(self, data: "Dataset", tasks: int, seed: int) -> "Dataset":
        """Return the images of all tasks."""
        from clbench.scenarios.domains import as_known, rotated

        return as_known(rotated(data, tasks, seed=seed), data)


class RotatedMNIST(Rotated):
    """MNIST turned by another angle in each task, by default 20 tasks, domain-incremental."""

    dataset = "mnist"
    preset = Preset("rotated-mnist")


class RotatedMNIST5K(Rotated):
    """5,000 real MNIST digits turned by another angle in each task, by default 10 tasks, domain-incremental."""

    dataset = "mnist-5k"
    preset = Preset("rotated-mnist-5k")


class Permuted(Rotated):
    """All classes in each task, with another order of the pixels."""

    padding: Annotated[
        Annotated[int, Field(ge=0, le=64)] | None,
        Field(description="zeros added on each side of permuted images (default: 2, to 32 x 32)"),
    ] = None

    def changed(self, data: "Dataset", tasks: int, seed: int) -> "Dataset":
        """Return the images of all tasks; padded to 32 x 32 by default, as van de Ven et al. do."""
        from clbench.scenarios.domains import as_known, permuted

        return as_known(permuted(data, tasks, seed=seed, pad=2 if self.padding is None else self.padding), data)


class PermutedMNIST(Permuted):
    """MNIST with another order of the pixels in each task, by default 10 tasks, domain-incremental."""

    dataset = "mnist"
    preset = Preset("permuted-mnist")


class PermutedMNIST5K(Permuted):
    """5,000 real MNIST digits, their pixels in another order in each task, by default 10 tasks, domain-incremental."""

    dataset = "mnist-5k"
    preset = Preset("permuted-mnist-5k")
