"""Which of Avalanche's strategies a run can fill, which parameters are options, and what of a run they honour."""

import functools
import importlib.util
import inspect
import operator
import types
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field

from clbench.config import FOREIGN_FIELDS, RunConfig
from clbench.errors import ConfigError
from clbench.scenario import Scenario
from clbench.strategy import Strategy

# What the run gives a constructor; every other parameter is an option of the strategy.
GIVEN = {
    *("self", "model", "feature_extractor", "classifier", "optimizer", "criterion", "buffer_transform"),
    *("train_mb_size", "train_epochs", "eval_mb_size", "device", "plugins", "evaluator", "eval_every", "peval_mode"),
    *("mem_size", "memory_size", "fixed_memory"),
}
# Of these, the ones that go by another name as options of the run.
RENAMED = {
    "train_mb_size": "batch_size",
    "eval_mb_size": "batch_size",
    "train_epochs": "epochs",
    "mem_size": "memory_size",
    "buffer_transform": "augment",
    "feature_extractor": "model",
}
# Constructors that the run can fill, but whose models, losses or data are of a kind that no run has.
UNUSABLE = {
    "CoPE": "a loss and a model with normalised outputs of its own",
    "FeatureReplay": "a model whose last layer it takes apart",
    "GenerativeReplay": "a generator for one image format",
    "BiC": "a torch below 2.7: it hands verbose to MultiStepLR, which later ones refuse",
    "GSS_greedy": "a memory that whole batches fill from the first step",
    "LFL": "a model with get_features()",
    "ExpertGateStrategy": "a model of its own",
    "JointTraining": "the data of all tasks at once; 'joint' is the same reference",
    "PNNStrategy": "a model of its own",
    "PackNet": "a model of its own",
    "SCR": "a model with a projection head of its own",
    "VAETraining": "a model that makes images",
    "AETraining": "a model that makes images",
}
# Numbers are 1 or more where they count something and 0 or more otherwise; what Avalanche's code needs beyond that.
Number = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ACCEPTED: dict[str, dict[str, Any]] = {
    "CWRStar": {"cwr_layer_name": Literal["head"]},
    "ER_AML": {"temp": Positive, "base_temp": Positive},
    "EWC": {"mode": Literal["separate", "online"]},
    "LwF": {"temperature": Positive},
    "MAS": {"alpha": Share},
    "SynapticIntelligence": {"eps": Positive},
}
FAMILIES: dict[str, Any] = {
    "Naive": "reference",
    "Cumulative": "reference",
    "FromScratchTraining": "reference",
    "LwF": "distillation",
    "CWRStar": "isolation",
}
# They copy the network, or its weights, before the first task, so its head can't grow.
FULL_HEAD = {"ICaRL", "GDumb", "CWRStar", "DER"}
# Their code reads no task labels, or needs classes that come once.
SETTINGS = {"ICaRL": ("class",), "DER": ("class", "domain"), "CWRStar": ("class", "domain")}


def parameters_of(template: Any) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a constructor, with their types where Avalanche's annotations can be read."""
    try:
        found = inspect.signature(template.__init__, eval_str=True).parameters
    except NameError:
        found = inspect.signature(template.__init__).parameters
    return {n: p for n, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def options_of(template: Any) -> dict[str, Any]:
    """Return the parameters that are options of the strategy, with their types."""
    found = {n: _option_type(p) for n, p in parameters_of(template).items() if n not in GIVEN}
    accepted = ACCEPTED.get(template.__name__, {})
    return {name: accepted.get(name, kind) for name, kind in found.items() if kind is not None}


def missing_in(name: str, template: Any) -> str:
    """Return what a constructor needs that a run can't give; "" where it can be filled."""
    if name in UNUSABLE:
        return UNUSABLE[name]
    parameters = parameters_of(template)
    if not {"model", "feature_extractor"} & set(parameters):
        return "a model of its own"
    other = [n for n, p in parameters.items() if p.default is p.empty and n not in GIVEN and _option_type(p) is None]
    return f"its {other[0]} from Python" if other else ""


def refuse(config: RunConfig, scenario: Scenario, name: str, kind: type[Strategy]) -> None:
    """Raise ConfigError for what Avalanche's `name`, as our strategy `kind`, has no place for."""
    if config.epochs is None:
        raise ConfigError(f"{config.strategy} trains by epochs; give epochs, such as 1")
    for option, field in RunConfig.model_fields.items():
        value = getattr(config, option)
        if option not in FOREIGN_FIELDS and value != field.default and (option, value) != ("checkpoint_every", "task"):
            raise ConfigError(f"{config.strategy} can't honour {option}={value}; leave it at {field.default}")
    outputs = "all" if config.head == "full" and scenario.setting == "class" else "seen"
    if config.loss_outputs != outputs:
        raise ConfigError(
            f"{config.strategy} trains every output that the head has: loss_outputs={outputs!r} is accepted with "
            f"head={config.head!r}, and {config.loss_outputs!r} was given"
        )
    if name in FULL_HEAD and config.head != "full" and scenario.setting != "domain":
        more = ",loss_outputs=all" if scenario.setting == "class" else ""
        raise ConfigError(f"{config.strategy} can't work with a head that grows; head=full{more} is accepted")
    if name == "GEM" and importlib.util.find_spec("quadprog") is None:
        raise ConfigError(f"{config.strategy} needs the package quadprog; pip install quadprog brings it")
    if kind.needs_memory and not config.memory_budget:
        raise ConfigError(f"{config.strategy} lives on a memory; give memory_size, such as 200")
    if config.memory_per_class and name != "ICaRL":
        raise ConfigError(f"{config.strategy} has no memory per class; memory_size is accepted")
    if config.memory_budget and config.memory_policy != kind.memory_policy:
        raise ConfigError(f"{config.strategy} chooses its exemplars itself; leave out memory_policy")
    _refuse_options(config, scenario, name)
    if name == "ER_AML":
        _refuse_small_memory(config, scenario)


def _refuse_options(config: RunConfig, scenario: Scenario, name: str) -> None:
    """Raise ConfigError for options with which Avalanche's `name` would fail later, or leave out what it is for."""
    given: dict[str, Any] = config.strategy_options
    n, memory = len(scenario.tasks), config.memory_budget or 0
    lists = [option for option, value in given.items() if isinstance(value, list)]
    problems: list[tuple[str, bool, str]] = [
        # LwF's would end early; of SI's the last one goes on.
        *((o, len(given[o]) > n or (name == "LwF" and len(given[o]) < n), f"one for each of {n} tasks") for o in lists)
    ]
    if name == "EWC":
        online = given["mode"] == "online"
        accepted = f"{'a number' if online else 'none'} with mode={given['mode']}"
        problems.append(("decay_factor", online != (given["decay_factor"] is not None), accepted))
    if name == "AGEM":
        # The sample has equal parts of all tasks.
        problems.append(("sample_size", given["sample_size"] < n, f"at least {n}, the number of tasks,"))
    if name == "MIR":
        drawn = given["batch_size_mem"]
        problems.append(("subsample", given["subsample"] < drawn, f"at least {drawn}, batch_size_mem,"))
    if "batch_size_mem" in given:
        # With fewer images in the memory none of them is ever replayed.
        drawn, most = given["batch_size_mem"] or config.batch_size, memory - (name == "MIR")
        problems.append(("batch_size_mem", drawn > most, f"1 to {most} with memory_size={memory}"))
    for option, wrong, accepted in problems:
        if wrong:
            shown = "none" if given[option] is None else given[option]
            raise ConfigError(f"{config.strategy}: {option}={shown} given, {accepted} accepted")


def _refuse_small_memory(config: RunConfig, scenario: Scenario) -> None:
    """Raise ConfigError where a class has less than a batch in memory: ER_AML would look for a whole one for ever."""
    seen: Counter[int] = Counter()
    fewest = config.batch_size
    for task in scenario.tasks:
        seen.update(task.train.labels.tolist())
        if task.index > 0:
            fewest = min(fewest, config.memory_budget // len(seen), *seen.values())
    if fewest < config.batch_size:
        nearest = f"batch_size of at most {fewest}" if fewest else f"memory_size of at least {len(seen)}"
        raise ConfigError(
            f"{config.strategy} draws batch_size={config.batch_size} images of each class from its memory, which "
            f"comes to hold {fewest} of one; {nearest} is accepted"
        )


def _option_type(parameter: inspect.Parameter) -> Any:
    """Return the type of a parameter that can be given as text, None for one that can't (a module, a function)."""
    annotation, default = parameter.annotation, parameter.default
    if annotation is parameter.empty or (annotation is int and isinstance(default, float)):
        annotation = type(default)
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    kinds = []
    for part in parts:
        if get_origin(part) in (list, Sequence) and get_args(part)[0] is float:
            part = Annotated[list[Number], Field(min_length=1)]
        elif part not in (bool, int, float, str, types.NoneType):
            return None
        kinds.append({int: Count, float: Number}.get(part, part))
    # None alone is the type of a default that says nothing.
    return None if kinds == [types.NoneType] else functools.reduce(operator.or_, kinds)
