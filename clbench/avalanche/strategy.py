"""Avalanche's own strategies in our runs, by the names avalanche:LwF, avalanche:EWC, ...: Carta et al. 2023, JMLR 24.

Avalanche (arXiv:2302.01766) trains by its own loop, on the images, network and optimizer of the run; what comes out is
tested as every strategy is. Importing it takes seconds, so this module is loaded only when such a name is asked for.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from clbench.avalanche.constructors import FAMILIES, RENAMED, SETTINGS, missing_in, options_of, parameters_of
from clbench.avalanche.imports import SupervisedTemplate, training
from clbench.avalanche.recorder import held
from clbench.avalanche.refusals import refuse
from clbench.avalanche.run import AvalancheRun
from clbench.config.errors import ConfigError, unknown
from clbench.config.run import RunConfig
from clbench.data.scenario import Scenario
from clbench.learning.strategy import Strategy, Traits


@functools.cache
def strategy_class(name: str) -> type[Strategy]:
    """Return the strategy that runs Avalanche's `name`; raises ConfigError for one that a run can't fill."""
    found = vars(training)
    templates = {n: c for n, c in found.items() if isinstance(c, type) and issubclass(c, SupervisedTemplate)}
    missing = {n: missing_in(n, c) for n, c in templates.items()}
    usable = sorted(n for n, what in missing.items() if not what)
    if name not in templates:
        raise unknown("strategy", name, usable, prefix="avalanche:")
    if missing[name]:
        raise ConfigError(f"avalanche:{name} needs {missing[name]}; accepted of Avalanche: {', '.join(usable)}")
    template = templates[name]
    parameters = parameters_of(template)
    options = options_of(template)
    memory = "mem_size" in parameters or "memory_size" in parameters
    members = {
        "__doc__": f"Avalanche's {name}, by its own loop.",
        "__annotations__": options,
        "traits": Traits(
            family=FAMILIES.get(name, "replay" if memory or "patterns_per_exp" in parameters else "regularisation"),
            paper="Carta et al. 2023, arXiv:2302.01766 (the implementation)",
            settings=SETTINGS.get(name, ("class", "task", "domain")),
            data_access="all" if name == "Cumulative" else "task",
            memory="own" if memory else "none",
            needs_memory=memory,
            memory_policy="herding" if name == "ICaRL" else "reservoir",
        ),
        "renamed": {n: option for n, option in RENAMED.items() if n in parameters},
        "template": template,
    }
    members |= {n: p.default for n, p in parameters.items() if n in options and p.default is not p.empty}
    return type(f"avalanche:{name}", (AvalancheStrategy,), members)


class AvalancheStrategy(Strategy):
    """Base of the strategies that Avalanche trains; `learner` is Avalanche's own object."""

    runner = AvalancheRun
    template: ClassVar[Any]
    # Names that Avalanche has for options of the run, each with the run's own.
    renamed: ClassVar[Mapping[str, str]] = {}
    _lent = Strategy._lent | {"learner"}

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Refuse what Avalanche's loop has no place for."""
        refuse(config, scenario, self.template.__name__, type(self))

    @classmethod
    def validate(
        cls, options: Mapping[str, object], name: str | None = None, *, beside: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Return all options of Avalanche's constructor; what the run says itself is refused by its name there."""
        for key, value in options.items():
            if key in cls.renamed:
                right = cls.renamed[key]
                raise ConfigError(f"{key}={value}: {name} takes it from the run, whose option {right!r} is accepted")
        return super().validate(options, name, beside=beside)

    def scores(self, images: Tensor, task: int | None = None) -> Tensor | dict[str, Tensor]:
        """The network's outputs, and for iCaRL the nearest class mean before them."""
        features = self.model.features(images)
        linear: Tensor = self.model.head(features)
        if self.template.__name__ != "ICaRL":
            return linear
        learner = getattr(self, "learner", None)
        nearest = linear if learner is None else learner.model.eval_classifier(features)
        return {"nearest_mean": nearest, "linear": linear}

    def state(self) -> dict[str, Any]:
        """The network and what Avalanche keeps beside it, for the ledger; none of it can be restored."""
        kept = {"model": self.model} | ({} if self.memory is None else {"memory": self.memory})
        learner = getattr(self, "learner", None)
        if learner is None:
            return kept
        own = {id(tensor) for tensor in self.model.state_dict(keep_vars=True).values()}
        found = [t for t in held([learner.plugins, vars(learner)], set()) if id(t) not in own]
        if self.memory is not None or self.traits.data_access == "all":
            # Exemplars are counted as such, and the data of all tasks are the run's.
            found = [t for t in found if t.shape[1:] != self._context.scenario.image_shape]
        return kept | {"avalanche": found}
