"""Published numbers as data: what was run, what was printed, and how near a reproduction must come."""

import functools
import tomllib
from importlib import resources
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clbench.config.errors import ConfigError, unknown
from clbench.config.registry import explain, load_with_protocols
from clbench.config.run import fields as run_fields
from clbench.results.metrics import METRICS

Tier = Literal["A", "B", "C"]
# Fields that belong to a machine or to one run, not to a protocol.
_NOT_PROTOCOL = {
    *("scenario", "scenario_options", "strategy", "strategy_options", "label", "data_fingerprint", "seed"),
    *("device", "compile", "deterministic", "data_root", "offline"),
}
_MEMORY = ("memory_size", "memory_per_class", "memory_policy")


class Baseline(BaseModel):
    """The stand-in for naive under a protocol whose loss naive lacks: the strategy without its remedies."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    strategy: str = "naive"
    options: dict[str, Any] = {}
    fields: dict[str, Any] = {}


class Claim(BaseModel):
    """One published number. Values, errors and tolerances are in accuracy points (percent).

    error: the published standard error of the mean ("sem") or standard deviation ("std") over error_runs runs.
    tolerance: how far the mean of a reproduction may be away if both means are exact.
    seconds, naive_seconds: how long one run takes; on one thread of a CPU where the cost is on CPU.
    provenance: who read the number; one that nobody could verify is uncertain, and is marked so.
    note: how the protocol here differs from the published one.
    tried: what was looked at where the number is not met.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    paper: str
    citation: str
    protocol: str
    strategy: str
    name: str
    tier: Tier
    scenario: str
    fields: dict[str, Any]
    options: dict[str, Any] = {}
    metric: str
    classifier: str | None = None
    value: Annotated[float, Field(ge=0, le=100)]
    error: Annotated[float, Field(ge=0)] = 0.0
    error_kind: Literal["sem", "std", "none"]
    error_runs: Annotated[int, Field(ge=1)] = 1
    tolerance: Annotated[float, Field(gt=0)]
    seeds: Annotated[int, Field(ge=1)]
    cost: Literal["minutes on CPU", "hours on CPU", "GPU"]
    seconds: Annotated[float, Field(gt=0)]
    naive_seconds: Annotated[float, Field(gt=0)]
    naive: Baseline = Baseline()
    provenance: Literal["primary", "transcription", "two transcriptions", "re-implementation", "uncertain"]
    source: str
    note: str = ""
    tried: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> "Claim":
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric} is unknown; accepted: {', '.join(METRICS)}")
        if (self.error_kind == "none") != (self.error == 0):
            raise ValueError(f"error={self.error:g} with error_kind={self.error_kind!r}; give both or neither")
        for field in (*self.fields, *self.naive.fields):
            if field in _NOT_PROTOCOL or field not in {**_scenario_options(self.scenario), **run_fields()}:
                raise ValueError(f"{field} is no field of a protocol")
        return self

    @property
    def id(self) -> str:
        """PAPER/PROTOCOL/NAME."""
        return f"{self.paper}/{self.protocol}/{self.name}"

    @property
    def sem(self) -> float:
        """The standard error of the published mean; 0 where none was published."""
        return self.error / self.error_runs**0.5 if self.error_kind == "std" else self.error

    def run_fields(self) -> dict[str, Any]:
        """Return every field of the protocol, defaults written out, so that no preset can change it."""
        defaults = {
            name: field.default
            for name, field in {**_scenario_options(self.scenario), **run_fields()}.items()
            if name not in _NOT_PROTOCOL and field.default is not None
        }
        return defaults | self.fields

    def naive_fields(self) -> dict[str, Any]:
        """Return the protocol without a memory, under which naive trains."""
        return {k: v for k, v in self.run_fields().items() if k not in _MEMORY} | self.naive.fields


@functools.cache
def claims() -> dict[str, Claim]:
    """Return every claim by its id; raises ConfigError that names the file and the mistake in it."""
    found: dict[str, Claim] = {}
    folder = resources.files("clbench.reports").joinpath("claims")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            for claim in read_claims(file.read_text("utf-8"), file.name.removesuffix(".toml")):
                if claim.id in found:
                    raise ConfigError(f"{file.name}: claim {claim.id} is there twice; name one of them")
                found[claim.id] = claim
    return found


def read_claims(text: str, paper: str) -> list[Claim]:
    """Read the claims of one paper from the text of its TOML file; raises ConfigError that names the mistake in it.

    A protocol holds fields of a run and options of its scenario; `like` names an earlier protocol that it begins with.
    The table `defaults` holds for every claim.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{paper}.toml: {error}") from None
    protocols: dict[str, dict[str, Any]] = {}
    for name, given in table.get("protocols", {}).items():
        base = given.pop("like", None)
        if base is not None and base not in protocols:
            raise unknown(f"protocol in {paper}.toml", base, protocols)
        protocols[name] = protocols.get(base, {}) | given
    found = []
    for given in table.get("claims", []):
        values = table.get("defaults", {}) | given
        name = values.get("protocol")
        if name not in protocols:
            raise unknown(f"protocol in {paper}.toml", str(name), protocols)
        protocol = dict(protocols[name])
        values = {
            "paper": paper,
            "citation": table.get("citation"),
            "name": values.get("strategy"),
            "naive_seconds": protocol.pop("naive_seconds", None),
            "naive": Baseline(**protocol.pop("naive", {})),
            "scenario": protocol.pop("scenario", None),
            **values,
            "fields": protocol | values.get("fields", {}),
        }
        try:
            found.append(Claim(**values))
        except ValidationError as error:
            raise ConfigError(f"{paper}.toml: {values.get('strategy')}: {explain(error, values)}") from None
    return found


def claim(name: str) -> Claim:
    """Return a claim by its id; raises ConfigError that names the nearest ids."""
    known = claims()
    if name not in known:
        raise unknown("claim", name, known)
    return known[name]


def chosen(names: list[str], tier: str | None = None) -> list[Claim]:
    """Return the claims of a tier whose ids are among the names or begin with one, in order of tier and id.

    Without names or without a tier, all of them count. Raises ConfigError for a name or a tier that fits no claim, and
    where no claim is left.
    """
    known = claims()
    if tier is not None and tier not in get_args(Tier):
        raise unknown("tier", tier, get_args(Tier))
    for name in names:
        if not any(_fits(name, c) for c in known.values()):
            raise unknown("claim", name, [*dict.fromkeys(c.paper for c in known.values()), *known])
    found = [
        c for c in known.values() if (not names or any(_fits(name, c) for name in names)) and tier in (None, c.tier)
    ]
    if not found:
        raise ConfigError(f"tier={tier} holds none of {', '.join(names)}; clbench list claims shows them")
    return sorted(found, key=lambda c: (c.tier, c.id))


def tables() -> dict[str, list[Claim]]:
    """Return the published tables, PAPER/SCENARIO, each with its claims: those of a paper on one scenario."""
    found: dict[str, list[Claim]] = {}
    for c in chosen([]):
        found.setdefault(f"{c.paper}/{c.scenario}", []).append(c)
    return found


def claims_of_table(name: str) -> list[Claim]:
    """Return the claims of a published table; raises ConfigError that names the nearest tables."""
    known = tables()
    if name not in known:
        raise unknown("table", name, known)
    return known[name]


def _scenario_options(scenario: str) -> dict[str, Any]:
    """Return the options of a scenario by name; raises ConfigError for an unknown one."""
    kind: Any = load_with_protocols("clbench.scenarios", "scenario", scenario)
    return dict(kind._options.model_fields)


def _fits(name: str, claim: Claim) -> bool:
    return name == claim.id or claim.id.startswith(name.rstrip("/") + "/")
