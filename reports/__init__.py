"""Tables and figures, made from finished runs alone."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, RunError, unknown
from clbench.reports import figures, latex, markdown, page, tables
from clbench.reports.chart import Chart, Panels
from clbench.reports.charts import CHARTS, chart_name, critical_difference
from clbench.reports.comparison import Comparison, compare
from clbench.reports.verdict import all_ranks
from clbench.results.result import Result
from clbench.support.files import expanded, write_atomically

__all__ = ["write_comparisons", "write_figures", "write_report"]

# The one figure of several comparisons.
OVERVIEW = "critical_difference"


@checked
def write_report(results: Sequence[Result], folder: str | os.PathLike[str]) -> list[Path]:
    """Write the report of these runs; see `write_comparisons`. Raises ConfigError for no results."""
    return write_comparisons(compare(results), folder)


@checked
def write_comparisons(parts: Sequence[Comparison], folder: str | os.PathLike[str]) -> list[Path]:
    """Write report.html, report.md, report.tex, the tables as CSV and the figures; return their paths.

    Raises RunError where they can't be written. A figure that fails is left out and named in report.md and on stderr.
    """
    folder = expanded(folder)
    written: list[Path] = []

    def write(name: str, data: bytes | str) -> None:
        _write(folder / name, data)
        written.append(folder / name)

    def pictures(stem: str, name: str, make: Callable[[], Chart | Panels | None], above: str = "") -> list[str]:
        title = name.replace("_", " ")
        try:
            drawing = make()
            for kind, data in (figures.draw(drawing, above or drawing.title) if drawing else {}).items():
                write(f"figures/{stem}-{name}.{kind}", data)
        # The numbers must be written whatever goes wrong in a drawing.
        except Exception as error:
            failure = f"The figure '{title}' could not be drawn: {type(error).__name__}: {error}"
            print(f"warning: {failure}", file=sys.stderr)
            return [f"> Warning: {markdown.escape(failure)}", ""]
        return [f"![{title}](figures/{stem}-{name}.png)", ""] if drawing else []

    write("comparison.csv", tables.to_csv(tables.comparison(parts)))
    write("differences.csv", tables.to_csv(tables.differences_frame(parts)))
    write("runs.csv", tables.to_csv(tables.runs(parts)))
    write("matrices.csv", tables.to_csv(tables.matrices(parts)))
    write("report.tex", latex.to_latex(parts))
    report = ["# Comparison of continual-learning strategies", ""]
    write("report.html", page.render(parts))
    for stem, part in zip(_stems(parts), parts, strict=True):
        report.append(markdown.section(part))
        for name, definition in CHARTS.items():
            if definition.in_markdown:
                report += pictures(stem, name, partial(definition.drawn, part), part.title)
    if ranks := markdown.rank_section(parts):
        report.append(ranks)
        for setting in all_ranks(parts):
            report += pictures(setting, OVERVIEW, partial(critical_difference, parts, setting))
    report.append(markdown.definitions())
    write("report.md", "\n".join(report))
    return written


@checked
def write_figures(
    results: Sequence[Result],
    folder: str | os.PathLike[str],
    names: Sequence[str],
    *,
    kind: str = "pdf",
    style: str = "paper",
) -> list[Path]:
    """Write the named figures of every comparison as pdf, svg or png, for a paper or a talk; return their paths.

    Raises ConfigError for an unknown name, kind or style, and for a figure for which every comparison lacks the data,
    and RunError where they can't be written.
    """
    names = [chart_name(name) for name in names]
    for what, given, accepted in (
        *(("figure", name, [*CHARTS, OVERVIEW]) for name in names),
        ("format", kind, list(figures.KINDS)),
        ("style", style, list(figures.STYLES)),
    ):
        if given not in accepted:
            raise unknown(what, given, accepted)
    parts = compare(results)
    files: dict[str, tuple[Chart | Panels, str]] = {}
    for name in names:
        if name == OVERVIEW:
            for setting in list(all_ranks(parts)) or [parts[0].setting]:
                overview = critical_difference(parts, setting)
                files[f"{setting}-{name}.{kind}"] = overview, overview.title
            continue
        drawn = {(stem, part.title): CHARTS[name].drawn(part) for stem, part in zip(_stems(parts), parts, strict=True)}
        if not any(drawn.values()):
            raise ConfigError(f"figure {name!r} needs {CHARTS[name].needs}; these runs have none")
        files |= {f"{stem}-{name}.{kind}": (drawing, title) for (stem, title), drawing in drawn.items() if drawing}
    for file, (drawing, title) in files.items():
        _write(expanded(folder) / file, figures.draw(drawing, title, [kind], style)[kind])
    return [expanded(folder) / file for file in files]


def _write(path: Path, data: bytes | str) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise RunError(f"{path.parent}: {error.strerror or error}; the runs themselves are kept") from None


def _stems(parts: Sequence[Comparison]) -> list[str]:
    """Return a different file name for each comparison."""
    stems: list[str] = []
    for part in parts:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{part.scenario}-{part.setting}").strip("-.")[:60]
        stems.append(name if name not in stems else f"{name}-{len(stems) + 1}")
    return stems
