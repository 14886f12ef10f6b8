"""From what a user asked for to a complete RunConfig: specs, presets, defaults; everything wrong is refused here."""

import functools
import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any, get_args

from clbench.config.errors import ConfigError, unknown
from clbench.config.registry import entry_point_names, entry_points, load_entry_point, parse_spec, read_text
from clbench.config.run import SCENARIO_FIELDS, RunConfig, Setting, excludes, file_digest, make_config
from clbench.data.scenario import Scenario, ScenarioSpec
from clbench.learning.strategy import LOOSE, Strategy, Traits

# Classes handed over in Python, by the name their runs carry.
_given: dict[str, type[Strategy]] = {}
# Fields that no strategy's brackets can set: they say what is compared, not how a strategy trains.
_SHARED = {
    *("scenario", "strategy", "strategy_options", "per_task", "label", "data_fingerprint"),
    *("seed", "data_root", "offline", "tuned_by"),
    *("evaluate_on", "memory_rounding"),
    *SCENARIO_FIELDS,
}


def strategy_class(name: str) -> type[Strategy]:
    """Return a strategy: a registered one, path/to/file.py:Class, SOURCE:NAME of other software, or one handed over.

    A class that was handed over in Python goes by its own name. What one published protocol alone needs is registered
    in the group `clbench.protocols`, which is looked at after `clbench.strategies`, and which no list shows. A source
    ("avalanche") is an entry point of the group `clbench.strategy_sources`: a function that returns the strategy of a
    name.
    """
    source, colon, inner = name.partition(":")
    if name in _given:
        loaded: Any = _given[name]
    elif ".py:" in name:
        loaded = _from_file(name)
    elif colon:
        made: Any = load_entry_point("clbench.strategy_sources", "source of strategies", source)
        loaded = made(inner)
    else:
        protocol = not entry_points("clbench.strategies", name) and entry_points("clbench.protocols", name)
        loaded = load_entry_point("clbench.protocols" if protocol else "clbench.strategies", "strategy", name)
    if not (isinstance(loaded, type) and issubclass(loaded, Strategy)):
        raise ConfigError(f"strategy {name!r} is {loaded!r}; a subclass of clbench.Strategy is accepted")
    loose = {n: v for cls in reversed(loaded.__mro__) for n, v in vars(cls).items() if n in LOOSE}
    if loose:
        spelled = ", ".join(f"{LOOSE[n]}={v!r}" for n, v in loose.items())
        raise ConfigError(
            f"strategy {name!r} declares {', '.join(loose)} as clbench 0.1 did; traits = Traits({spelled}) is accepted"
        )
    if not isinstance(getattr(loaded, "traits", None), Traits):
        raise ConfigError(
            f"strategy {name!r} declares no traits; traits = Traits(family='replay') or the like is accepted"
        )
    return loaded


def give(strategy: type[Strategy]) -> str:
    """Make a class that was handed over in Python known under its name; return the name."""
    _given[strategy.__name__] = strategy
    return strategy.__name__


@functools.cache
def _from_file(name: str) -> object:
    path, _, attribute = name.rpartition(":")
    if not os.path.isfile(path):
        raise ConfigError(f"strategy {name!r}: there is no file {path}; path/to/file.py:Class is accepted")
    spec = importlib.util.spec_from_file_location(f"clbench_file_{file_digest(path, 'strategy')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        raise ConfigError(f"strategy {name!r}: {path} can't be imported ({type(error).__name__}: {error})") from error
    if not hasattr(module, attribute):
        classes = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == spec.name]
        raise unknown(f"class in {path}", attribute, classes)
    return getattr(module, attribute)


def scenario_spec(name: str) -> ScenarioSpec:
    """Return a scenario by its registered name, or that of an .npz file or a folder of images."""
    own = name.endswith(".npz") or os.sep in name or os.path.isdir(name)
    registered = not own or name in entry_point_names("clbench.scenarios")
    loaded = load_entry_point("clbench.scenarios", "scenario", name if registered else "files")
    if not isinstance(loaded, ScenarioSpec):
        raise ConfigError(f"scenario {name!r} is registered as {loaded!r}; a clbench.ScenarioSpec is accepted")
    return loaded


def resolve(
    scenario: "str | Scenario",
    strategy: "str | type[Strategy]",
    options: Mapping[str, Any],
    *,
    shared: bool = False,
    elsewhere: bool = False,
) -> RunConfig:
    """Return the complete config of one run: what was asked for, over the scenario's preset, over the defaults.

    `strategy` may carry options in brackets, its own and training ones: `er[memory_size=500,share=0.25]`.
    `options["strategy_options"]` holds options of the strategy alone. shared: the options are those of a whole
    comparison, and brackets come before them. elsewhere: the run is for other machines, whose devices are not known
    here. Raises ConfigError.
    """
    if isinstance(strategy, type):
        name = label = give(strategy)
        bracket: dict[str, str] = {}
    else:
        name, bracket = parse_spec(strategy)
        label = strategy if ".py:" in strategy else strategy.replace(" ", "")
    cls = strategy_class(name)
    own: dict[str, Any] = dict(options.get("strategy_options") or {})
    asked = {k: v for k, v in options.items() if v is not None and k != "strategy_options"}
    special: dict[str, Any] = {}
    for key, value in bracket.items():
        if key in own or (key in asked and not shared):
            raise ConfigError(f"{key} is given twice, in the brackets of {name} and outside; once is accepted")
        if key in cls._options.model_fields or key in cls.run_options:
            own[key] = value
        elif key in RunConfig.model_fields and key not in _SHARED:
            special |= parse_fields({key: value})
        else:
            raise unknown(f"option of {name}", key, [*cls._options.model_fields, *_trainable_fields()])
    asked = {k: v for k, v in asked.items() if not any(excludes(k, key) for key in special)} | special
    preset = dict(scenario_spec("files" if isinstance(scenario, Scenario) else scenario).preset)
    if isinstance(scenario, Scenario):
        _refuse_scenario_fields(asked)
        preset["augment"] = scenario.augment
        asked |= {"setting": scenario.setting, "data_fingerprint": scenario.fingerprint or scenario.digest()}
        held = sum(len(task.validation) for task in scenario.tasks)
        asked["validation"] = held / max(held + sum(len(task.train) for task in scenario.tasks), 1)
    tuned: dict[str, Any] = dict(preset.pop("strategies", {}).get(name, {}))
    by_setting = {setting: tuned.pop(setting, {}) for setting in get_args(Setting)}
    # What is asked for may be anything, a list too.
    tuned |= by_setting.get(str(asked.get("setting", preset.get("setting", "class"))), {})
    own = {k: v for k, v in tuned.items() if k in cls._options.model_fields} | own
    preset |= {k: v for k, v in tuned.items() if k not in cls._options.model_fields}
    if not cls.traits.needs_memory:
        preset.pop("memory_size", None)
    preset = {k: v for k, v in preset.items() if not any(excludes(k, key) for key in asked)}
    values = preset | asked
    values |= {
        "scenario": scenario.name if isinstance(scenario, Scenario) else scenario,
        "strategy": name,
        "strategy_options": cls.validate(own, name),
        "label": values.get("label") or label,
    }
    if cls.traits.memory == "none" and (values.get("memory_size") or values.get("memory_per_class")):
        raise ConfigError(f"{name} has no use for a memory; leave out memory_size and memory_per_class")
    if values.get("memory_size") or values.get("memory_per_class"):
        # A reservoir knows no classes, so a quota for each is kept by a balanced memory.
        by_class = values.get("memory_per_class") and cls.traits.memory_policy == "reservoir"
        values.setdefault("memory_policy", "balanced" if by_class else cls.traits.memory_policy)
    values.setdefault(
        "threads", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    config = make_config(values)
    if config.per_task is not None:
        config = config.model_copy(update={"per_task": [_of_task(cls, config, v) for v in config.per_task]})
    if config.memory_policy == "reservoir" and config.memory_per_class:
        raise ConfigError("memory_policy='reservoir' has no quota per class; give memory_size, or another policy")
    if config.setting not in cls.traits.settings:
        raise ConfigError(
            f"{name} can't work in a {config.setting}-incremental scenario; supported: {', '.join(cls.traits.settings)}"
        )
    if elsewhere:
        return config
    config = config.model_copy(update={"device": find_device(config.device)})
    if config.precision == "tf32" and not config.device.startswith("cuda"):
        raise ConfigError(
            f"precision=tf32 given, and {config.device} has no TensorFloat-32; fp32 and bf16 are accepted"
        )
    return config


def prepare(config: RunConfig) -> tuple[RunConfig, Scenario]:
    """Build the scenario of a config; the config of a user's own files gets the digest of what is in them."""
    scenario = scenario_spec(config.scenario).build(config)
    return config.model_copy(update={"data_fingerprint": scenario.fingerprint}), scenario


def find_device(name: str) -> str:
    """Return the device that a name stands for; raises ConfigError when it is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = ["auto", "cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name not in available:
        raise ConfigError(f"device={name} is not there; accepted on this machine: {', '.join(available)}")
    return name


def parse_fields(texts: Mapping[str, str]) -> dict[str, Any]:
    """Read the texts of a command line as values of RunConfig's fields; what can't be read is left to be refused."""
    return {name: read_text(RunConfig.model_fields[name].annotation, text) for name, text in texts.items()}


def _of_task(cls: type[Strategy], config: RunConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the values that hold in one task: the learning rate, and options of the strategy."""
    own = {k: v for k, v in values.items() if k != "lr"}
    checked = cls.validate({**config.strategy_options, **own}, config.strategy)
    rate = {"lr": values["lr"]} if "lr" in values else {}
    make_config({**config.model_dump(), **rate})
    return rate | {name: checked[name] for name in own}


def _trainable_fields() -> list[str]:
    return [name for name in RunConfig.model_fields if name not in _SHARED]


def _refuse_scenario_fields(asked: Mapping[str, Any]) -> None:
    for name in SCENARIO_FIELDS:
        if name in asked:
            raise ConfigError(
                f"{name}={asked[name]!r} is part of the scenario that was handed over; give it to split()"
            )
