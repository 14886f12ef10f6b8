"""The scenarios by name, with their options. It imports no torch; a scenario imports what cuts its tasks when built."""

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from clbench.config.errors import ConfigError
from clbench.config.groups import Count, Share
from clbench.config.run import RunConfig
from clbench.data.spec import ScenarioSpec

if TYPE_CHECKING:
    from clbench.data.scenario import Scenario
    from clbench.scenarios.datasets import Dataset


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the training that is each scenario's default, from presets.toml."""
    import tomllib
    from importlib import resources

    return tomllib.loads(resources.files("clbench.scenarios").joinpath("presets.toml").read_text("utf-8"))


class Preset(Mapping[str, Any]):
    """One scenario's part of presets.toml, read on first use."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, key: str) -> Any:
        return presets()[self._name][key]

    def __iter__(self) -> Iterator[str]:
        return iter(presets()[self._name])

    def __len__(self) -> int:
        return len(presets()[self._name])


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
    imbalance: Annotated[
        Annotated[float, Field(ge=1)] | None,
        Field(description="long-tailed classes: training images of the first class over those of the last"),
    ] = None
    shots: Annotated[
        Count | None, Field(description="few-shot increments: training images per class after the first task")
    ] = None
    image_size: Annotated[
        Annotated[int, Field(ge=4)] | None,
        Field(description="for folders of photos: resize the shorter side, crop the centre"),
    ] = None

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
        read = ("image_size", "padding", "test_share", "skip_unreadable", "columns")
        asked = {name: value for name, value in self.options.items() if name not in read}
        asked |= {"class_order_seed": self.drawn_by(config), "validation": config.data.validation}
        return split(data, **{**asked, "seed": config.seed, "name": config.scenario, **given})


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


class Files(Split):
    """Your own data: the path of an .npz file or a folder of images."""

    preset = Preset("files")

    test_share: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | None,
        Field(description="share of each class that becomes the test, of files without one: FOLDER/CLASS/IMAGE"),
    ] = None
    skip_unreadable: Annotated[bool, Field(description="leave out image files that can't be used")] = False
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


class Rotated(_Cut):
    """All classes in each task, turned by another angle."""

    def build(self, config: RunConfig) -> "Scenario":
        """Draw the change of each task's pixels, then cut the tasks; the classes stay grouped by task."""
        if self.tasks is None:
            raise ConfigError(f"{config.scenario} has all classes in each task; give a number of tasks, such as 10")
        seed = self.drawn_by(config) or 0
        source = self.source(config)
        data = self.changed(source, self.tasks, seed)
        order = list(range(len(data.class_names)))
        made = self.cut(data, config, class_order=order, class_order_seed=seed if self.blurry else None)
        # The changed images count as the data that they are made of.
        return made.of(source.compared.fingerprint, data.checksums())

    def changed(self, data: "Dataset", tasks: int, seed: int) -> "Dataset":
        """Return the images of all tasks."""
        from clbench.scenarios.domains import rotated

        return rotated(data, tasks, seed=seed)


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
        from clbench.scenarios.domains import permuted

        return permuted(data, tasks, seed=seed, pad=2 if self.padding is None else self.padding)


class PermutedMNIST(Permuted):
    """MNIST with another order of the pixels in each task, by default 10 tasks, domain-incremental."""

    dataset = "mnist"
    preset = Preset("permuted-mnist")


class PermutedMNIST5K(Permuted):
    """5,000 real MNIST digits, their pixels in another order in each task, by default 10 tasks, domain-incremental."""

    dataset = "mnist-5k"
    preset = Preset("permuted-mnist-5k")
