"""ScenarioSpec: a scenario by its name, with options of its own. Imports no torch: the command line lists options."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from clbench.config.contract import Declared
from clbench.config.errors import ConfigError
from clbench.config.registry import validate_options
from clbench.config.run import EXCLUSIVE, RunConfig, Setting

if TYPE_CHECKING:
    from clbench.data.scenario import Scenario


class ScenarioSpec(ABC):
    """Base of registered scenarios: annotated attributes are its options, typed, checked, with defaults.

    The first line of a subclass's docstring describes it where scenarios are listed. preset: the training that is its
    default, by flat names; `preset["strategies"]` maps a strategy's name to options that were tuned for this scenario,
    those of one setting under the setting's name. exclusive: pairs of options of which at most one is given. bare: the
    option that is a list of what stands in brackets without a key, as in `stream[split-mnist,split-kmnist]`.
    fits_sizes: whether images of other sizes are resized to those of the scenario, as a stream's data sets are.
    """

    preset: ClassVar[Mapping[str, Any]] = {}
    exclusive: ClassVar[tuple[tuple[str, str], ...]] = ()
    bare: ClassVar[str] = ""
    fits_sizes: ClassVar[bool] = False
    _options: ClassVar[Any] = Declared(own=True)

    setting: Annotated[Setting, Field(description="class-, task- or domain-incremental")] = "class"

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        """Store the options of the scenario that goes by `name`; raises ConfigError for what is not accepted."""
        given = validate_options(self._options, options, owner=name)
        for one, other in self.exclusive:
            if given[one] is not None and given[other] is not None:
                raise ConfigError(f"{one} and {other} exclude each other; give one of them")
        self.__dict__.update(given)

    @classmethod
    def pairs(cls) -> tuple[tuple[str, str], ...]:
        """Return the pairs of names, options of the scenario and fields of a run, of which at most one is given."""
        return (*EXCLUSIVE, *cls.exclusive)

    @classmethod
    def preset_of(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the training that is the default under options as they are given, which nobody has checked yet."""
        return cls.preset

    @property
    def options(self) -> dict[str, Any]:
        """All options with their values."""
        return {name: getattr(self, name) for name in self._options.model_fields}

    def followed_by(self, name: str, other: str, normalised: bool) -> tuple[str, dict[str, Any]]:
        """Return name and options of the scenario in which the data of another one come after this one's tasks.

        name: of this scenario; other: that of more data, perhaps with options in brackets, or a path.
        normalised: whether a run normalises images by mean and deviation, which must stay this one's.
        Raises ConfigError where there is no such scenario.
        """
        raise ConfigError(
            f"{name} makes its tasks in a way of its own, which no other data can follow; its own options are "
            "accepted, such as a larger number of tasks"
        )

    @abstractmethod
    def build(self, config: RunConfig) -> "Scenario":
        """Make the tasks; of the config it may read `data`, `seed` and `scenario`. Raises ConfigError.

        The images, as they are made for seed 0, belong to the identity of the scenario's runs, whatever the seed is.
        """
