"""One configuration of a sweep with its finished runs."""

from dataclasses import dataclass, field

from clbench.results.result import Result
from clbench.results.statistics import Spread, spread


@dataclass(frozen=True)
class Point:
    """One configuration of a sweep: where it lies, and its finished runs."""

    scenario: str
    strategy: str
    values: dict[str, str]
    runs: list[Result] = field(default_factory=list)

    def spread(self, metric: str) -> Spread:
        """Mean and standard deviation (n-1) of a metric over the runs."""
        return spread(run.metrics.get(metric) for run in self.runs)

    @property
    def label(self) -> str:
        """The strategy with its values in brackets."""
        values = ",".join(f"{name}={value}" for name, value in self.values.items())
        return f"{self.strategy}[{values}]" if values else self.strategy
