"""Avalanche's strategy constructors: which a run can fill, and which of their parameters are options."""

import functools
import inspect
import operator
import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

# What the run gives a constructor; every other parameter is an option of the strategy.
GIVEN = {
    *("self", "model", "feature_extractor", "classifier", "optimizer", "criterion", "buffer_transform"),
    *("train_mb_size", "train_epochs", "eval_mb_size", "device", "plugins", "evaluator", "eval_every", "peval_mode"),
    *("mem_size", "memory_size", "fixed_memory"),
}
# Constructors that the run can fill, but whose models, losses or data are of a kind that no run has.
UNUSABLE = {
    "CoPE": "a loss and a model with normalised outputs of its own",
    "FeatureReplay": "a model whose last layer it takes apart",
    "GenerativeReplay": "a generator for one image format",
    "BiC": "a torch below 2.7: it hands verbose to MultiStepLR, which later ones refuse",
    "GSS_greedy": "a memory that whole batches fill from the first step",
    "LFL": "a model with get_features()",
    "JointTraining": "the data of all tasks at once; 'joint' is the same reference",
    "PNNStrategy": "a model of its own",
    "PackNet": "a model of its own",
    "SCR": "a model with a projection head of its own",
    "VAETraining": "a model that makes images",
    "AETraining": "a model that makes images",
}


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
    return {name: kind for name, kind in found.items() if kind is not None}


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
        if get_origin(part) in (list, Sequence) and get_args(part)[0] in (int, float):
            part = list[get_args(part)[0]]  # type: ignore[misc]
        elif part not in (bool, int, float, str, types.NoneType):
            return None
        kinds.append(part)
    # None alone is the type of a default that says nothing.
    return None if kinds == [types.NoneType] else functools.reduce(operator.or_, kinds)
