"""RunConfig: one run, described in groups, and what makes two runs the same. Knows nothing of torch.

A flat name, such as `lr`, belongs to one group. A run's identity is a hash over the first version's defaults and what
differs from them. `defaults-1.json` holds every field and every option of a built-in strategy as 0.1.0 had them. A
field that came later counts only where it differs from its default, so a new option with a neutral default changes no
run's identity, and run folders of every version keep theirs. A value that differs from the file counts, whatever its
default is today.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from clbench.config.errors import ConfigError, unknown
from clbench.config.groups import (
    DECIDED,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    Group,
    MemoryConfig,
    ModelConfig,
    TrainingConfig,
    budget_of,
)
from clbench.config.registry import PROTOCOLS, entry_points, explain, path_of

Setting = Literal["class", "task", "domain"]

# Pairs of fields of which at most one is given; the one that a user names displaces a preset's other one.
EXCLUSIVE = (("epochs", "iterations"), ("memory_size", "memory_per_class"))
# Recorded with a run, but no part of its identity: they can't change its numbers (on_nan: but whether there are any).
NOT_IDENTITY = frozenset(
    {"data_root", "offline", "memory_limit", "label", "checkpoint_every", "on_nan", "tuned_by", "keep_predictions"}
    | {"processes", "reading_threads", "keep_state", "count_flops"}
)
# Fields of a run that no option of the command line sets.
INTERNAL = {"scenario", "scenario_options", "strategy", "strategy_options", "per_task", "label"} | {
    "data_fingerprint",
    "code",
}
# Those of them that a file of options may hold.
IN_FILES = {"scenario_options", "strategy_options", "per_task"}
# The weights that the model's own name stands for.
OWN_WEIGHTS = "pretrained"
# Weights by name: those, and what torchvision knows, such as ResNet18_Weights.IMAGENET1K_V1; anything else is a file.
NAMED_WEIGHTS = re.compile(rf"{OWN_WEIGHTS}|\w+_Weights\.\w+")
# The files of tensors in a snapshot folder of Hugging Face, the first of which is taken.
IN_SNAPSHOT = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


GROUPS: dict[str, type[Group]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "memory": MemoryConfig,
    "evaluation": EvaluationConfig,
    "engine": EngineConfig,
}


class RunConfig(Group):
    """One run: scenario and strategy with options of their own, and every value that the training uses, in groups."""

    scenario: str = Field(description="a registered scenario, an .npz file or a folder of images")
    scenario_options: dict[str, Any] = Field(default={}, description="the scenario's options")
    strategy: str = Field(description="a registered strategy")
    strategy_options: dict[str, Any] = Field(default={}, description="the strategy's hyper-parameters")
    per_task: list[dict[str, Any]] | None = Field(
        default=None, description="for each task a table of lr and options of the strategy that hold in it"
    )
    label: str = Field(default="", description="the name in tables; the strategy with its bracketed options")
    data_fingerprint: str | None = Field(
        default=None, description="digest of data that the scenario's name does not identify"
    )
    code: dict[str, str] = Field(default={}, description="digests of the user's own code, by the name of each piece")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="seed of every random stream of the run")
    tuned_by: str | None = Field(default=None, description="how the hyper-parameters were chosen, for the report")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    memory: MemoryConfig = MemoryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()

    if not TYPE_CHECKING:  # a type checker would take every attribute for one

        def __getattr__(self, name: str) -> Any:
            """Say where a field is that 0.1.0 had at the top."""
            group, attribute = _PLACES.get(name, ("", ""))
            if group:
                raise AttributeError(f"config.{name} is config.{group}.{attribute} since 0.2")
            raise AttributeError(f"a RunConfig has no attribute {name!r}")

    @property
    def setting(self) -> str:
        """class, task or domain: the option that every scenario has."""
        return str(self.scenario_options.get("setting", "class"))

    @property
    def counts_flops(self) -> bool:
        """Whether floating-point operations are counted, for the record or for a budget."""
        return self.engine.count_flops or self.training.budget_in("flops") is not None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        training = self.training
        if self.setting != "class" and training.loss_outputs != "seen":
            raise ValueError(
                f"loss_outputs={training.loss_outputs!r} is for setting=class; in a {self.setting}-incremental "
                "scenario the outputs of the sample's own task compete"
            )
        if training.loss_outputs == "all" and self.model.head != "full":
            raise ValueError("loss_outputs='all' needs head='full': a growing head has no outputs yet to come")
        return self

    def values(self) -> dict[str, Any]:
        """Return every field by its flat name, as make_config takes them."""
        return {
            name: getattr(getattr(self, group) if group else self, attribute)
            for name, (group, attribute) in _PLACES.items()
        }

    def flat(self) -> dict[str, Any]:
        """Return every field by its flat name as run.json holds it, the scenario's options among them."""
        return {**self.scenario_options, **{k: v for k, v in self.values().items() if k != "scenario_options"}}

    def replace(self, **fields: Any) -> Self:
        """Return the config with other values, by flat names; they are not checked again."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in fields.items():
            group, attribute = _PLACES[name]
            groups.setdefault(group, {})[attribute] = value
        own = groups.pop("", {})
        changed = {group: getattr(self, group).model_copy(update=values) for group, values in groups.items()}
        return self.model_copy(update={**own, **changed})

    def without_content(self) -> Self:
        """Return the config as it would be with other code of the user's and other data."""
        files = [path for path in (path_of(self.strategy), path_of(self.model.name)) if path]
        return self.replace(code=dict.fromkeys(files, "any"), data_fingerprint=None)

    def identity(self, *, without_seed: bool = False) -> str:
        """Return a hash of what can change the numbers; without the seed it names the group of runs that are pooled."""
        found = identity_fields(self)
        if without_seed:
            del found["seed"]
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def fields() -> dict[str, FieldInfo]:
    """Return every field by its flat name; the options of a scenario are with the scenario."""
    return {name: (GROUPS[group] if group else RunConfig).model_fields[at] for name, (group, at) in _PLACES.items()}


# Group ("" for none) and attribute of every flat name.
_PLACES = {name: ("", name) for name in RunConfig.model_fields if name not in GROUPS} | {
    field.alias or name: (group, name) for group, kind in GROUPS.items() for name, field in kind.model_fields.items()
}


def excludes(one: str, other: str, pairs: Iterable[tuple[str, str]] = EXCLUSIVE) -> bool:
    """Whether two fields exclude each other."""
    return any((one, other) == pair or (other, one) == pair for pair in pairs)


def decided_by(budget: object) -> tuple[str, ...]:
    """Return the fields that a budget decides, which are not given beside it; none for what is no budget."""
    try:
        return DECIDED[budget_of(str(budget))[0]]
    except ValueError:
        return ()


def file_digest(path: str, option: str) -> str:
    """Return the sha256 of a file's content; raises ConfigError naming the option when it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # no path can hold a NUL
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{option}={path}: {why}; a readable file is accepted") from None


def weights_file(place: str) -> str:
    """Return the file of tensors in a snapshot folder of Hugging Face, or the place itself where it is no folder.

    Raises ConfigError for a folder without one.
    """
    if not os.path.isdir(place):
        return place
    for name in IN_SNAPSHOT:
        if os.path.isfile(file := os.path.join(place, name)):
            return file
    raise ConfigError(f"weights={place}: this is a folder without {' or '.join(IN_SNAPSHOT[::2])}; a file is accepted")


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Build a RunConfig from flat names; raises ConfigError with one sentence for the first thing that is wrong."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in fields():
            raise unknown("option", name, fields())
        if isinstance(value, os.PathLike):
            value = os.fsdecode(value)
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            # A terminal can pass text that isn't UTF-8; no record could hold it.
            raise ConfigError(f"{name}={value[:60]!r} given, text in UTF-8 accepted")
        groups.setdefault(_PLACES[name][0], {})[name] = value
    for one, other in EXCLUSIVE:
        if values.get(one) is not None and values.get(other) is not None:
            raise ConfigError(f"{one} and {other} exclude each other; give one of them")
    try:
        own = groups.pop("", {})
        made = {group: GROUPS[group].model_validate(given) for group, given in groups.items()}
        return RunConfig.model_validate(own | made)
    except ValidationError as error:
        raise ConfigError(explain(error, values)) from None


def identity_fields(config: RunConfig) -> dict[str, Any]:
    """Return what can change the numbers of a run, by flat names; a file counts by its content."""
    first = _first_version()
    given = {name: value for name, value in config.flat().items() if name not in NOT_IDENTITY}
    found: dict[str, Any] = first["fields"] | {
        name: value for name, value in given.items() if name in first["fields"] or value != _default(config, name)
    }
    if config.training.budget_in("bytes") is not None:
        # The budget decides them.
        found |= {name: first["fields"][name] for name in (*DECIDED["bytes"], "memory_policy")}
    scenario, strategy = _former(config)
    options = config.strategy_options
    if strategy["strategy"] in first["strategies"]:
        known = first["strategies"][strategy["strategy"]]
        # Options of a strategy that is not ours all count: its package may change a default with any version.
        options = known | {k: v for k, v in options.items() if k in known or v != _strategy_default(config.strategy, k)}
    found |= {"scenario": scenario["scenario"], **scenario["fields"]}
    found |= {"strategy": strategy["strategy"], "strategy_options": options | strategy["options"], **strategy["fields"]}
    if config.model.weights is not None and not NAMED_WEIGHTS.fullmatch(config.model.weights):
        found["weights"] = file_digest(weights_file(config.model.weights), "weights")
    code = dict(config.code)
    for option, name in (("strategy", config.strategy), ("model", config.model.name)):
        if path := path_of(name):
            # Runs of 0.1.0 recorded no code.
            digest = config.code.get(path) or file_digest(path, option)
            found[option] = f"{digest}{name.removeprefix(path)}"
            code.pop(path, None)
    if code:
        # The names are left out, since a file may get another one.
        found["code"] = sorted(code.values())
    else:
        found.pop("code", None)
    if config.data_fingerprint is not None:
        found["scenario"] = Path(config.scenario).name
    return found


def former_names(config: RunConfig) -> tuple[str, str]:
    """Return scenario and strategy as the first version named them, which are the present names of most runs."""
    scenario, strategy = _former(config)
    return scenario["scenario"], strategy["strategy"]


def _former(config: RunConfig) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return how the first version spelled scenario and strategy: names, and the fields and options beside them."""
    first = _first_version()
    scenario = {"scenario": config.scenario, "fields": {}}
    if config.data_fingerprint is None:
        scenario = first["renamed_scenarios"].get(config.scenario, scenario)
    strategy = {"strategy": config.strategy, "fields": {}, "options": {}}
    return scenario, first["renamed"].get(config.strategy, strategy)


def config_of_record(recorded: Mapping[str, Any]) -> RunConfig:
    """Return the config that a run.json of any version holds; raises ConfigError for what is none."""
    present = without_removed(recorded)
    options = {k: v for k, v in present.items() if k not in fields()}
    values = {k: v for k, v in present.items() if k in fields()}
    return make_config(values | {"scenario_options": options})


def without_removed(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config in a run.json without the fields and options that 0.1.0 had and that have been removed since.

    Only those at the first version's defaults, at which they did nothing, are left out; another value stays, to be
    refused by its name. 0.1.0 also wrote the options of every scenario into every run.
    """
    first = _first_version()
    known = {"setting", *fields(), *_options("clbench.scenarios", str(recorded.get("scenario")))}
    present = {k: v for k, v in recorded.items() if k in known or v != first["fields"].get(k)}
    strategy, options = str(recorded.get("strategy")), present.get("strategy_options")
    # Listed by name: a report reads this, and a strategy's class would import torch.
    removed = first["removed_options"].get(strategy, [])
    if removed and isinstance(options, dict):
        former = first["strategies"][strategy]
        present["strategy_options"] = {k: v for k, v in options.items() if k not in removed or v != former[k]}
    return present


@functools.cache
def _first_version() -> Mapping[str, Any]:
    from importlib import resources

    text = resources.files("clbench.config").joinpath("defaults-1.json").read_text("utf-8")
    loaded: Mapping[str, Any] = json.loads(text)
    return loaded


def _default(config: RunConfig, name: str) -> object:
    """Return the default of a field, or of an option of a built-in scenario; an object that equals nothing without."""
    if name in fields():
        return fields()[name].default
    known = entry_points("clbench.scenarios", config.scenario) or entry_points(PROTOCOLS, config.scenario)
    # A scenario without a name is a file or a folder of the user's.
    return _option_default("clbench.scenarios", config.scenario if known else "files", name)


def _strategy_default(strategy: str, name: str) -> object:
    group = "clbench.protocols" if strategy in _first_version()["renamed"] else "clbench.strategies"
    return _option_default(group, strategy, name)


def _option_default(group: str, owner: str, name: str) -> object:
    return _options(group, owner)[name].default if name in _options(group, owner) else object()


def _options(group: str, owner: str) -> Mapping[str, FieldInfo]:
    """Return the options of a built-in scenario or strategy; none of what another package or the user brings."""
    for entry in (*entry_points(group, owner), *entry_points(PROTOCOLS, owner)):
        if entry.value.startswith("clbench."):
            options: Mapping[str, FieldInfo] = entry.load()._options.model_fields
            return options
    return {}
