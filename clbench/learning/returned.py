"""The values that hooks of a strategy return or leave on it, checked: hook, value and what is accepted are named."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from clbench.config.errors import ConfigError, RunError, one_line
from clbench.data.batches import Batch
from clbench.learning.memory import Memory
from clbench.learning.strategy import Stage, Strategy, Traits
from clbench.models.network import Head, Network


def described(value: object) -> str:
    """Say what a value is, in a few words: "float32 [8, 10]" for a tensor."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return one_line(repr(value), 60)
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def loss_of(strategy: Strategy, stage: Stage) -> tuple[Callable[[Batch], Any], str]:
    """Return the function that computes the loss in a stage, and its name for errors."""
    if stage.loss is None:
        return strategy.loss, hook_of(strategy, "loss")
    return stage.loss, f"the loss of stage {stage.name!r}"


def loss_terms(returned: Any, hook: str) -> dict[str, Tensor]:
    """Return the terms of a loss by name, float scalars; a single one is called loss. Raises RunError for others."""
    terms = returned if isinstance(returned, dict) else {"loss": returned}
    for name, term in terms.items():
        if not (isinstance(name, str) and _is_scalar(term)):
            raise _refused(hook, _of(term, name, returned), "a scalar tensor of floats, or a dict of such by name,")
    if not terms:
        raise _refused(hook, "no term", "a scalar tensor of floats, or a dict of such by name,")
    return dict(terms)


def require_gradient(terms: dict[str, Tensor], hook: str) -> None:
    """Raise RunError for loss terms none of which depends on a parameter that trains."""
    if not any(term.requires_grad for term in terms.values()):
        raise _refused(hook, "a loss without a gradient", "one that depends on parameters that train")


def penalty_term(strategy: Strategy, returned: Tensor | None) -> Tensor | None:
    """Return what `penalty` returned, a float scalar or None; raises RunError for anything else."""
    if returned is None or _is_scalar(returned):
        return returned
    raise _refused(hook_of(strategy, "penalty"), described(returned), "None or a scalar tensor of floats")


def class_scores(strategy: Strategy, images: Tensor, task: int) -> dict[str, Tensor]:
    """Return the scores of images, float [B, outputs], by classifier, the headline one first.

    task: that of the images, for a strategy that is told. Raises RunError for scores of another kind or shape.
    """
    given = (images, task) if strategy.traits.needs_task_at_test else (images,)
    returned: Any = strategy.scores(*given)
    classifiers = returned if isinstance(returned, dict) else {"linear": returned}
    hook, shape = hook_of(strategy, "scores"), [len(images), strategy.model.head.out_features]
    accepted = f"float {shape}, [images, outputs], or a dict of such by the classifier's name,"
    for name, scores in classifiers.items():
        fits = isinstance(scores, Tensor) and scores.is_floating_point() and list(scores.shape) == shape
        if not (isinstance(name, str) and fits and scores.device == images.device):
            raise _refused(hook, _of(scores, name, returned), accepted)
    if not classifiers:
        raise _refused(hook, "no classifier", accepted)
    return classifiers


def same_classifiers(strategy: Strategy, now: Iterable[str], before: Iterable[str]) -> None:
    """Raise RunError where scores have other classifiers, or in another order, than they had before."""
    if list(now) != list(before):
        names = [one_line(", ".join(classifiers), 80) for classifiers in (now, before)]
        what = f"the classifiers {names[0]}, and {names[1]} before"
        raise _refused(hook_of(strategy, "scores"), what, "the same ones in the same order")


def class_features(strategy: Strategy, images: Tensor) -> Tensor:
    """Return the representation of images that herding works on, float [B, feature_dim]; raises RunError for others."""
    returned: Any = strategy.features(images)
    shape = [len(images), strategy.model.feature_dim]
    if isinstance(returned, Tensor) and returned.is_floating_point() and list(returned.shape) == shape:
        return returned
    raise _refused(hook_of(strategy, "features"), described(returned), f"float {shape}, [images, feature_dim],")


def declared_stages(strategy: Strategy, returned: Any) -> list[Stage]:
    """Return what `stages` returned as a list; raises RunError for anything but stages that can be fitted."""
    hook = hook_of(strategy, "stages")
    if not isinstance(returned, list | tuple | Iterator):
        raise _refused(hook, described(returned), "a list of Stage")
    stages = list(returned)
    for stage in stages:
        if not isinstance(stage, Stage):
            raise _refused(hook, f"{described(stage)} among the stages", "a list of Stage")
    return stages


def empty_memory(strategy: Strategy, returned: Any) -> Memory:
    """Return what `new_memory` returned; raises ConfigError for anything but a memory in which nothing is."""
    if isinstance(returned, Memory) and not len(returned):
        return returned
    what = f"a memory of {len(returned)} samples" if isinstance(returned, Memory) else described(returned)
    raise ConfigError(f"{hook_of(strategy, 'new_memory')} returned {what}; an empty clbench.memory.Memory is accepted")


def decays(strategy: Strategy, name: str, parameter: nn.Parameter) -> bool:
    """Return what `decays` says about a parameter; raises RunError where it says neither yes nor no."""
    returned: Any = strategy.decays(name, parameter)
    if isinstance(returned, bool):
        return returned
    raise _refused(hook_of(strategy, "decays"), described(returned), "True or False")


def require_contract(strategy: Strategy, traits: Traits) -> None:
    """Raise RunError where a hook has put something in the place of what every strategy has, or changed its traits.

    traits: those that the run began with.
    """
    kind, model, memory = type(strategy).__name__, strategy.model, strategy.memory
    if hidden := [name for name in vars(strategy) if inspect.isfunction(vars(Strategy).get(name))]:
        raise RunError(f"{kind}: self.{hidden[0]} hides a method of every strategy; another name is accepted")
    if not isinstance(model, Network):
        raise RunError(f"{kind}: self.model is {described(model)}; a clbench.models.Network is accepted")
    if not isinstance(model.head, Head):
        raise RunError(f"{kind}: self.model.head is {described(model.head)}; a clbench.models.Head is accepted")
    if not isinstance(memory, Memory | None):
        raise RunError(f"{kind}: self.memory is {described(memory)}; a clbench.memory.Memory is accepted")
    if strategy.traits is not traits:
        raise RunError(f"{kind}: its traits were changed while the run was under way; those of the class are accepted")


def hook_of(strategy: Strategy, name: str) -> str:
    """Return a hook as its author knows it: "Mine.loss"."""
    return f"{type(strategy).__name__}.{name}"


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()


def _of(value: object, name: object, returned: object) -> str:
    """Say what a value is, with its name where it stands in a dict."""
    named = f" under the name {one_line(repr(name), 60)}" if isinstance(returned, dict) else ""
    return described(value) + named


def _refused(hook: str, returned: str, accepted: str) -> RunError:
    return RunError(f"{hook} returned {returned}; {accepted} is accepted")
