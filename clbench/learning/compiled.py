"""The network's features compiled for the steps of training, by torch.compile."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clbench.config.errors import ConfigError
from clbench.config.run import RunConfig
from clbench.learning.strategy import Strategy
from clbench.models.network import Network

PAST_FEATURES = "does not train through the features of the model as a whole"


class CompiledFeatures:
    """Stands in for `features` of a network while a loss is computed, and nowhere else.

    Everything else, evaluation, teachers, hooks of importances, herding, reads the network as it is. Each part of a
    batch that is shared (see `shared`) goes through the compiled network. Where torch can't compile, as without a C++
    compiler, the network trains as it is, and `problem` says why.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.problem: str | None = None
        self.calls = 0
        self._model: Network | None = None
        loggers = [x for name, x in logging.root.manager.loggerDict.items() if name.partition(".")[0] == "torch"]
        self._handlers = [handler for x in loggers if isinstance(x, logging.Logger) for handler in x.handlers]

    @contextmanager
    def within(self, model: Network) -> Iterator[None]:
        """Let the model's `features` be the compiled ones."""
        if self.problem is not None:
            yield
            return
        if model is not self._model:
            self._model = model
            # Torch counts networks compiled before against its limit of recompilations.
            torch.compiler.reset()
            self._own = partial(inspect.unwrap(type(model).features), model)
            self._compiled = torch.compile(self._own, mode=self.mode)
        torch.compiler.cudagraph_mark_step_begin()
        # An attribute of the object goes before the method of its class.
        whole: Any = model.features
        shares = hasattr(type(model).features, "__wrapped__")
        vars(model)["features"] = partial(whole, compute=self._call) if shares else self._call
        try:
            yield
        finally:
            del vars(model)["features"]

    @contextmanager
    def unlogged(self) -> Iterator[None]:
        """Keep back the warnings that torch logs while it compiles: what really fails is raised.

        What torch was asked to log, as by TORCH_LOGS, is no warning, and is shown.
        """
        for handler in self._handlers:
            handler.addFilter(_no_warning)
        try:
            yield
        finally:
            for handler in self._handlers:
                handler.removeFilter(_no_warning)

    def _call(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self._model is None:
            raise RuntimeError("the compiled network was called outside of within()")
        if self.problem is None:
            try:
                # Above the limit torch would go on uncompiled without raising anything.
                from torch._dynamo import config

                with config.patch(fail_on_recompile_limit_hit=True), self.unlogged():
                    features: Tensor = self._compiled(images)
                return features
            except Exception as error:  # whatever compilers raise; what the network itself can't do is raised again
                first, *_ = str(error).strip().splitlines() or [""]
                self.problem = f"{type(error).__name__}: {first}"
        own: Tensor = self._own(images)
        return own


def _no_warning(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING


def refuse_compiled(config: RunConfig, kind: type[Strategy]) -> None:
    """Raise ConfigError where a step of the strategy has no place for the compiled network."""
    if config.engine.compile != "none" and (why := never_compiled(kind)):
        raise ConfigError(
            f"compile={config.engine.compile} given, and {config.strategy} {why}; compile=none is accepted"
        )


def never_compiled(kind: type[Strategy]) -> str:
    """Return what a strategy does that has no place for the compiled network; "" for nothing."""
    if any(getattr(kind, hook) is not getattr(Strategy, hook) for hook in ("after_backward", "after_step")):
        return "reads gradients or weights within a step"
    return "" if kind.traits.through_features else PAST_FEATURES
