"""Lists Avalanche's strategies that a run can fill, and the parameters that are options, with the values accepted."""

import functools
import inspect
import operator
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field

# The run gives a constructor these parameters; every other one is an option of the strategy.
GIVEN = {
    *("self", "model", "feature_extractor", "classifier", "optimizer", "criterion", "buffer_transform"),
    *("train_mb_size", "train_epochs", "eval_mb_size", "device", "plugins", "evaluator", "eval_every", "peval_mode"),
    *("mem_size", "memory_size", "fixed_memory"),
}
# The run has some of these under another name.
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
# Their code reads no task labels, or needs classes that come once.
SETTINGS: dict[str, Any] = {"ICaRL": ("class",), "DER": ("class", "domain"), "CWRStar": ("class", "domain")}


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
