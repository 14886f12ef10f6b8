"""The space of a search for hyper-parameters, declared in an option's annotation or given as text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError

ACCEPTED = "NAME=log:LOW:HIGH or NAME=A|B|C, separated by commas, is accepted"


@checked
@dataclass(frozen=True)
class Log:
    """Values from low to high, both above 0, uniform in the logarithm: `Annotated[float, Field(ge=0), Log(0.1, 10)]`.

    A strategy declares so the weights that buy stability with plasticity; `continual` tuning halves them from high on.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < float("inf"):
            raise ConfigError(f"space {self}: numbers above 0 are accepted, the lower one first")

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"log:{self.low:g}:{self.high:g}"

    def ends(self) -> tuple[Any, ...]:
        """The values whose validity is that of all."""
        return self.low, self.high

    def grid(self, n: int) -> list[float]:
        """Return n values from high to low with equal ratios."""
        ratio = self.low / self.high
        return [self.rounded(self.high * ratio ** (i / (n - 1))) for i in range(n)]

    def rounded(self, value: float) -> float:
        """Return the value to three digits, within the range."""
        return min(max(float(f"{value:.3g}"), self.low), self.high)


@dataclass(frozen=True, init=False)
class Choices:
    """One of some values: `Annotated[float, Choices(1.0, 2.0, 4.0)]`."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return "|".join(f"{v:g}" if type(v) is float else str(v) for v in self.values)

    def ends(self) -> tuple[Any, ...]:
        """The values whose validity is that of all."""
        return self.values


Space = Log | Choices


def declared(options: type[pydantic.BaseModel]) -> dict[str, Space]:
    """Return the spaces that options of a strategy declare, by the option's name; an inner annotation gives way."""
    return {
        name: space
        for name, field in options.model_fields.items()
        for space in field.metadata
        if isinstance(space, Space)
    }


def read_space(space: str | Mapping[str, Space]) -> dict[str, Space]:
    """Read `strength=log:0.1:1000,temperature=1|2|4`; raises ConfigError."""
    if not isinstance(space, str):
        return dict(space)
    found: dict[str, Space] = {}
    for part in space.split(","):
        name, _, text = (piece.strip() for piece in part.partition("="))
        if not name or not text:
            raise ConfigError(f"--space {part.strip()!r}: {ACCEPTED}")
        if name in found:
            raise ConfigError(f"--space names {name} twice; once is accepted")
        found[name] = _read_one(part.strip(), text)
    return found


def _read_one(part: str, text: str) -> Space:
    if not text.startswith("log:"):
        return Choices(*dict.fromkeys(choice.strip() for choice in text.split("|")))
    try:
        _, low, high = text.split(":")
        return Log(float(low), float(high))
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"--space {part!r}: {ACCEPTED}") from None
