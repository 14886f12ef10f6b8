"""Turns a user's request into a complete RunConfig: specs, presets, defaults; everything wrong is refused here."""

import functools
import inspect
import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args

from clbench.config.classes import digests_of_files, give, is_known, load_class
from clbench.config.code import digests
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.plain import as_text, plain
from clbench.config.registry import DATA_FILES, Typed, entry_points, fits, parse_spec, read_text
from clbench.config.run import GROUPS, OWN_WEIGHTS, RunConfig, Setting, decided_by, excludes, fields, make_config
from clbench.data.scenario import Scenario
from clbench.data.spec import ScenarioSpec
from clbench.learning.strategy import LOOSE, Strategy, Traits
from clbench.models import as_network, model_class
from clbench.running.blame import place_of
from clbench.support.streams import global_streams, stream_seed
from clbench.support.surroundings import undisturbed
from clbench.support.text import tell


def strategy_class(name: str, code: Mapping[str, str] | None = None) -> type[Strategy]:
    """Return a strategy: a registered one, path/to/file.py:Class, SOURCE:NAME of other software, or one handed over.

    A class that was handed over in Python goes by its own name. What one published protocol alone needs is registered
    in the group `clbench.protocols`, which is looked at after `clbench.strategies`, and which no list shows. A source
    ("avalanche") is an entry point of the group `clbench.strategy_sources`: a function that returns the strategy of a
    name. code: see load_class().
    """
    loaded = load_class("strategy", name, code)
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


def scenario_class(name: str) -> type[ScenarioSpec]:
    """Return a scenario by its registered name, or that of a file or folder of the user's own data.

    A scenario of one published protocol is found as such a strategy is; see strategy_class().
    """
    own = name.lower().endswith(DATA_FILES) or os.sep in name or os.path.isdir(name)
    loaded = load_class("scenario", name if not own or is_known("scenario", name) else "files")
    if not (isinstance(loaded, type) and issubclass(loaded, ScenarioSpec)):
        raise ConfigError(f"scenario {name!r} is {loaded!r}; a subclass of clbench.ScenarioSpec is accepted since 0.2")
    if inspect.isabstract(loaded):
        raise ConfigError(f"scenario {name!r} has no build; def build(self, config), which makes a Scenario, is needed")
    if not isinstance(loaded.preset, Mapping):
        raise ConfigError(f"the preset of scenario {name!r} is {shown(loaded.preset)}; a mapping is accepted")
    return loaded


def as_name(scenario: Any) -> Any:
    """Return a path object as the text of a path that is no name; anything else as it is.

    Raises ConfigError for a path where nothing is.
    """
    if not isinstance(scenario, os.PathLike):
        return scenario
    path = os.fsdecode(scenario)
    if not os.path.exists(os.path.expanduser(path)):
        raise ConfigError(f"scenario: there is no file or folder {path}")
    return path if os.path.dirname(path) else os.path.join(os.curdir, path)


def scenario_given(scenario: Any) -> "str | Scenario":
    """Return a scenario as it is named, or a sound Scenario; raises ConfigError for anything else.

    A path is a name, and a class that is handed over gets one.
    """
    if isinstance(scenario, type) and issubclass(scenario, ScenarioSpec) and scenario is not ScenarioSpec:
        return give("scenario", scenario)
    found = as_name(scenario)
    if isinstance(found, Scenario):
        found.check()
    if isinstance(found, str | Scenario):
        return found
    raise ConfigError(
        f"scenario={shown(scenario)} given; a name, a path or a clbench.Scenario is accepted (scenarios.split() makes "
        "one of data), and so is a subclass of clbench.ScenarioSpec"
    )


def parse_scenario(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a scenario into its name and the options in its brackets; a path that exists may hold brackets itself."""
    if os.path.exists(spec):
        return spec, {}
    name = spec.partition("[")[0].strip()
    return parse_spec(spec, scenario_class(name).bare if is_known("scenario", name) else "")


def resolve(
    scenario: "str | os.PathLike[str] | Scenario | type[ScenarioSpec]",
    strategy: "str | type[Strategy]",
    options: Mapping[str, Any],
    *,
    shared: bool = False,
    elsewhere: bool = False,
) -> RunConfig:
    """Return the complete config of one run: what was asked for, over the scenario's preset, over the defaults.

    scenario: a name, which may carry options of its own in brackets, a path, or a Scenario.
    strategy: a name, which may carry options in brackets, its own and training ones, or a class.
    options: fields and options of the scenario by flat names; `strategy_options` holds those of the strategy alone.
    shared: the options are those of a whole comparison, and brackets come before them.
    elsewhere: the run is for other machines, whose devices are not known here.

    Raises ConfigError.
    """
    scenario = scenario_given(scenario)
    scenario = os.path.expanduser(scenario) if isinstance(scenario, str) else scenario
    if isinstance(model := options.get("model"), str):
        options = {**options, "model": os.path.expanduser(model)}
    elif model is not None:
        options = {**options, "model": give("model", as_network(model, "model is given as"))}
    name, label, bracket = _named(strategy)
    cls = strategy_class(name)
    asked = {
        k: v if isinstance(v, str) or k not in fields() else read_text(fields()[k].annotation, v)
        for k, v in options.items()
        if v is not None and k not in ("strategy_options", "scenario_options")
    }
    for key, value in _table(options, "scenario_options").items():
        if key in asked:
            raise ConfigError(f"{key} is given in scenario_options and outside; once is accepted")
        asked[key] = plain(value)
    own = _table(options, "strategy_options")
    for key, value in own.items():
        if key in _trainable_fields() and key not in cls._options.model_fields:
            raise ConfigError(
                f"strategy_options has {key}, a field of the run; {key}={shown(value)} beside it is accepted"
            )
    special = _bracketed(cls, name, bracket, own, {} if shared else asked)
    own |= {key: value for key, value in bracket.items() if key not in special}
    handed_over = isinstance(scenario, Scenario)
    if isinstance(scenario, Scenario):
        kind, cuts = scenario_class("files"), {"setting": scenario.setting}
        asked = _of_scenario(scenario, asked)
        preset = dict(kind.preset_of({**cuts, "disjoint": 1.0 if scenario.boundless else None}))
        preset["augment"] = scenario.augment
        scenario = scenario.name
    else:
        scenario, cuts = parse_scenario(scenario)
        kind = scenario_class(scenario)
        preset = dict(kind.preset_of({**asked, **cuts}))
        if strange := cuts.keys() - kind._options.model_fields.keys():
            raise unknown(f"option of {scenario}", min(strange), kind._options.model_fields)
        if twice := cuts.keys() & asked.keys():
            raise ConfigError(f"{min(twice)} is given in the brackets of {scenario} and outside; once is accepted")
    pairs = kind.pairs()
    asked = {k: v for k, v in asked.items() if not any(excludes(k, key, pairs) for key in special)} | special
    for key in asked:
        own_options = list(kind._options.model_fields)
        if key in cls._options.model_fields and key not in fields() and key not in own_options:
            shape = f"strategy_options={{{key!r}: {shown(asked[key], 30)}}}"
            raise ConfigError(f"{key} is an option of {name}, not of the run; {shape} is accepted")
        if key not in fields() and key not in own_options:
            if key in _scenario_options():
                # It is spelt right, so the nearest name would be a wrong one.
                raise ConfigError(f"unknown option of {scenario} {key!r}; accepted: {', '.join(own_options)}")
            # A field of the run may be meant; where none is near, the scenario's own options are named.
            near = get_close_matches(key, fields(), n=1, cutoff=0.6)
            of_strategy = get_close_matches(key, cls._options.model_fields, n=1, cutoff=0.6)
            if of_strategy and not near:
                shape = f"strategy_options={{{of_strategy[0]!r}: {shown(asked[key], 30)}}}"
                raise ConfigError(f"unknown option {key!r}; {of_strategy[0]} is one of {name}: {shape} is accepted")
            raise unknown(f"option of {scenario}", key, [*own_options, *near])
    tuned: dict[str, Any] = dict(preset.pop("strategies", {}).get(name, {}))
    by_setting = {setting: tuned.pop(setting, {}) for setting in get_args(Setting)}
    # A caller may pass any object here, a list too.
    setting = {**preset, **cuts, **asked}.get("setting", "class")
    tuned |= by_setting.get(setting, {}) if isinstance(setting, str) else {}
    model = {**preset, **asked}.get("model", fields()["model"].default)
    network = model_class(model)
    weights = {**preset, **asked}.get("weights", OWN_WEIGHTS if network.begins_trained else None)
    weights = None if weights == "random" else weights
    pretrained = cls.traits.with_weights if weights is not None else {}
    own = {**pretrained, **{k: v for k, v in tuned.items() if k in cls._options.model_fields}, **own}
    preset |= cls.traits.preset
    preset |= {k: v for k, v in tuned.items() if k not in cls._options.model_fields}
    if not cls.traits.needs_memory:
        preset.pop("memory_size", None)
    if (preset | asked).get("train") == "head":
        # No backbone trains that could have a rate of its own.
        preset.pop("backbone_lr_factor", None)
    preset = {k: v for k, v in preset.items() if not any(excludes(k, key, pairs) for key in (*asked, *cuts))}
    decided = decided_by(asked.get("budget"))
    preset = {k: v for k, v in preset.items() if k not in decided}
    if given := [f"{name}={shown(asked[name])}" for name in decided if asked.get(name) is not None]:
        raise ConfigError(f"budget={asked['budget']} decides {given[0].partition('=')[0]}; leave out {given[0]}")
    values = {k: v for k, v in (preset | asked).items() if k in fields()}
    cuts = {k: v for k, v in (preset | asked).items() if k not in fields()} | cuts
    values |= {
        "scenario": scenario,
        "scenario_options": cuts if handed_over else kind(scenario, cuts).options,
        "strategy": name,
        "strategy_options": cls.validate(own, name),
        "label": values.get("label") or label,
        "weights": weights,
    }
    if (setting := values["scenario_options"].get("setting", "class")) not in cls.traits.settings:
        raise ConfigError(
            f"{name} can't work in a {setting}-incremental scenario; supported: {', '.join(cls.traits.settings)}"
        )
    if cls.traits.memory == "none" and (values.get("memory_size") or values.get("memory_per_class")):
        raise ConfigError(f"{name} has no use for a memory; leave out memory_size and memory_per_class")
    if values.get("memory_size") or values.get("memory_per_class"):
        # A reservoir knows no classes, so a quota for each is kept by a balanced memory.
        by_class = values.get("memory_per_class") and cls.traits.memory_policy == "reservoir"
        values.setdefault("memory_policy", "balanced" if by_class else cls.traits.memory_policy)
    values.setdefault(
        "threads", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if network.takes_pixels:
        if asked.get("normalize", "none") != "none":
            raise ConfigError(
                f"normalize={shown(asked['normalize'])} given, and {model} normalises its images itself; none is "
                "accepted, or mean and std in the brackets of the model"
            )
        values["normalize"] = "none"
    config = make_config(values)
    if config.per_task is not None:
        config = config.replace(per_task=[_of_task(cls, config, v) for v in config.per_task])
    if config.memory.policy == "reservoir" and config.memory.per_class:
        raise ConfigError("memory_policy='reservoir' has no quota per class; give memory_size, or another policy")
    classes = classes_of(config)
    config = config.replace(code=digests(classes, digests_of_files([config.strategy, config.model.name])))
    if elsewhere:
        return config
    config = config.replace(device=find_device(config.engine.device))
    if config.engine.precision == "tf32" and not config.engine.device.startswith("cuda"):
        raise ConfigError(
            f"precision=tf32 given, and {config.engine.device} has no TensorFloat-32; fp32 and bf16 are accepted"
        )
    return config


def classes_of(config: RunConfig) -> list[type]:
    """Return the classes that a run is made of: strategy, model, and the scenario where it is registered."""
    found: list[type] = [strategy_class(config.strategy, config.code), model_class(config.model.name, config.code)]
    if is_known("scenario", config.scenario):
        found.append(scenario_class(config.scenario))
    return found


def _table(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options of a strategy or a scenario by themselves; raises ConfigError for what is no mapping."""
    given = options.get(name)
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"{name}={shown(given)} given; a mapping such as {{'strength': 2}} is accepted")
    return dict(given)


def _named(strategy: "str | type[Strategy]") -> tuple[str, str, dict[str, str]]:
    """Return a strategy's name, its label in tables, and the options in its brackets."""
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        name = give("strategy", strategy)
        return name, name, {}
    strategy = as_text(strategy)
    if not isinstance(strategy, str):
        hint = (
            f"the class {type(strategy).__name__} itself"
            if isinstance(strategy, Strategy)
            else "a subclass of Strategy"
        )
        raise ConfigError(f"strategy={shown(strategy)} given; a name or {hint} is accepted")
    name, bracket = parse_spec(os.path.expanduser(strategy))
    return name, strategy if ".py:" in strategy else strategy.replace(" ", ""), bracket


def _bracketed(
    cls: type[Strategy], name: str, bracket: Mapping[str, str], own: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of the run in a strategy's brackets; raises ConfigError for what may not stand there."""
    special: dict[str, Any] = {}
    for key, value in bracket.items():
        if key in own or key in asked:
            raise ConfigError(f"{key} is given twice, in the brackets of {name} and outside; once is accepted")
        if key in cls._options.model_fields:
            continue
        if key in _trainable_fields():
            special |= parse_fields({key: value})
        else:
            cls.validate({key: value}, name, beside=_trainable_fields())
    return special


def _of_scenario(scenario: Scenario, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked for, and what a Scenario that was handed over says itself, which can't be asked for."""
    for name in (*scenario_class("files")._options.model_fields, "validation"):
        if name in asked:
            raise ConfigError(
                f"{name}={asked[name]!r} is part of the scenario that was handed over; give it to split()"
            )
    held = sum(len(task.validation) for task in scenario.tasks)
    # Digested now: its tensors may have been changed since it was made.
    digest = scenario.digest()
    if asked.get("data_fingerprint", digest) != digest:
        raise ConfigError(
            f"data_fingerprint={shown(asked['data_fingerprint'])} given, and that of the scenario that was handed over "
            f"is {digest}; leave it out"
        )
    return {
        **asked,
        "data_fingerprint": digest,
        "validation": held / max(held + sum(len(task.train) for task in scenario.tasks), 1),
    }


@undisturbed()
def prepare(config: RunConfig) -> tuple[RunConfig, Scenario]:
    """Build the scenario of a config, which gets the digest of the data if they are not published under its name.

    Warns where the config has the digest of other data.
    """
    scenario = _built(config)
    if not scenario.claimed:
        # One seed gives the digest, so that all seeds count as of the same data though a scenario may draw images.
        scenario = scenario.of((scenario if config.seed == 0 else _built(config.replace(seed=0))).content())
    if config.data_fingerprint not in (None, scenario.fingerprint):
        have = f"have the digest {scenario.fingerprint}" if scenario.fingerprint else "are the published ones"
        tell(f"{config.scenario}: data of the digest {config.data_fingerprint} were asked for, and these {have}")
    return config.replace(data_fingerprint=scenario.fingerprint), scenario


def _built(config: RunConfig) -> Scenario:
    spec = scenario_class(config.scenario)
    try:
        # A scenario is the same for every seed, and so are its draws from global streams.
        with global_streams(stream_seed(0, "scenario", config.scenario)):
            scenario = spec(config.scenario, config.scenario_options).build(config)
    except ConfigError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:  # whatever a scenario of the user's own raises
        raise ConfigError(
            f"scenario {config.scenario!r} can't be built ({type(error).__name__}: {error}); see {place_of(error)}"
        ) from error
    if not isinstance(scenario, Scenario):
        raise ConfigError(f"{spec.__name__}.build() returned {shown(scenario)}; a clbench.Scenario is accepted")
    scenario.check()
    return scenario


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
    """Read the texts of a command line as values of fields; what can't be read is left to be refused.

    An option of the scenario stays text, for the scenario to read.
    """
    found: dict[str, Any] = dict(texts)
    for name in texts.keys() & fields().keys():
        kind = fields()[name].annotation
        value = read_text(kind, texts[name])
        found[name] = Typed(value) if isinstance(value, str) and not fits(kind, value) else value
    return found


def _of_task(cls: type[Strategy], config: RunConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the values that hold in one task: the learning rate, and options of the strategy."""
    own = {k: v for k, v in values.items() if k != "lr"}
    checked = cls.validate({**config.strategy_options, **own}, config.strategy)
    rate = {"lr": values["lr"]} if "lr" in values else {}
    make_config({"scenario": config.scenario, "strategy": config.strategy, **rate})
    return rate | {name: checked[name] for name in own}


def _scenario_options() -> set[str]:
    """Return the options of all scenarios that come with clbench."""
    built_in = (entry for entry in entry_points("clbench.scenarios") if entry.value.startswith("clbench."))
    return {name for entry in built_in for name in entry.load()._options.model_fields}


@functools.cache
def _trainable_fields() -> list[str]:
    """Return the fields that a strategy's brackets can set; the others say what is compared, not how it trains."""
    shared = {name for name in RunConfig.model_fields if name not in GROUPS}
    shared |= {"validation", "data_root", "offline"}
    return [name for name in fields() if name not in shared]
