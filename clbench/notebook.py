"""The value of compare() and sweep() in Python: the runs as a list that a notebook shows as a table."""

import functools
import os
from collections.abc import Callable, Iterable
from html import escape
from typing import TYPE_CHECKING, ParamSpec

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, unknown
from clbench.many.compare import compare as _compare
from clbench.many.sweeps import sweep as _sweep
from clbench.results.result import Result, load_results, run_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from clbench.reports.comparison import Comparison

Parameters = ParamSpec("Parameters")


class Results(list[Result]):
    """Runs as a list, with a table of them, their figures, and the comparison as a table where a notebook shows it."""

    @classmethod
    @checked
    def load(cls, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> "Results":
        """Read the finished runs in and below folders; raises ConfigError where there is none."""
        return cls(load_results(paths))

    def table(self) -> "pd.DataFrame":
        """Return a row for each run: what it is, its metrics, seconds and hyper-parameters; see `run_table`."""
        return run_table(self)

    @checked
    def figure(self, name: str = "average_accuracy", scenario: str | None = None) -> "Figure":
        """Return a figure of the report as a figure of matplotlib, which a notebook shows.

        name: as `clbench report --figure` takes it.
        scenario: which one, where the runs are of several.
        Raises ConfigError for another name, and where the runs lack the data for it.
        """
        from clbench.reports.charts import CHARTS, chart_name
        from clbench.reports.figures import figure

        name = chart_name(name)
        if name not in CHARTS:
            raise unknown("figure", name, CHARTS)
        parts = self._parts([run for run in self if scenario in (None, run.scenario)])
        if len(parts) != 1:
            raise ConfigError(
                f"figure({name!r}): the runs are of {'; '.join(part.title for part in parts) or 'no such scenario'}; "
                "one comparison is accepted, such as figure(name, scenario='...') or Results([...]) of some of the runs"
            )
        drawing = CHARTS[name].drawn(parts[0])
        if drawing is None:
            raise ConfigError(f"figure {name!r} needs {CHARTS[name].needs}; these runs have none")
        return figure(drawing, parts[0].title)

    def _parts(self, runs: list[Result]) -> "list[Comparison]":
        from clbench.reports.comparison import compare

        return compare(runs) if runs else []

    def _repr_html_(self) -> str:
        from clbench.reports.columns import columns_of
        from clbench.reports.verdict import verdict

        shown = []
        for part in self._parts(self):
            columns = columns_of(part, "terminal")
            titles = ["strategy", *(column.titles["terminal"].strip() for column in columns), "n"]
            rows = [[row.label + row.mark, *(column.mean(row) for column in columns), row.count] for row in part.rows]
            lines = [_row("th", titles), *(_row("td", map(str, row)) for row in rows)]
            units = "Percent, mean ± standard deviation (n-1) over n runs; seconds and kB as named."
            notes = [units, f"verdict: {verdict(part)}", *part.unfinished.values(), *part.notes, *part.marks]
            shown += [f"<h4>{escape(part.title)}</h4>", f"<table>{''.join(lines)}</table>"]
            shown += [f"<p>{escape(note)}</p>" for note in notes]
        return "".join(shown) or "<p>no runs</p>"


def _row(cell: str, texts: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"


def _with_results(function: Callable[Parameters, list[Result]]) -> Callable[Parameters, Results]:
    @functools.wraps(function)
    def returning(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Results:
        return Results(function(*args, **kwargs))

    returning.__annotations__ = {**function.__annotations__, "return": Results}
    return returning


compare = _with_results(_compare)
sweep = _with_results(_sweep)
