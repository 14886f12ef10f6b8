"""What a person looks at: tables and figures, rebuilt from finished runs alone."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clbench.config.errors import ConfigError, unknown
from clbench.reports import differences, figures, latex, page, tables
from clbench.results.result import Result
from clbench.support.files import write_atomically

__all__ = ["write_comparisons", "write_figures", "write_report"]

OVERVIEW = "critical_difference"


def write_report(results: Sequence[Result], folder: str | Path) -> list[Path]:
    """Write the report of these runs; see `write_comparisons`. Raises ConfigError for no results."""
    return write_comparisons(tables.compare(results), folder)


def write_comparisons(parts: Sequence[tables.Comparison], folder: str | Path) -> list[Path]:
    """Write report.html, report.md, report.tex, the tables as CSV and the figures; return their paths.

    A figure that fails is left out and named in report.md and on stderr.
    """
    folder = Path(folder)
    written: list[Path] = []

    def write(name: str, data: bytes | str) -> None:
        write_atomically(folder / name, data)
        written.append(folder / name)

    def pictures(stem: str, name: str, draw: Callable[[], dict[str, bytes]]) -> list[str]:
        title = name.replace("_", " ")
        try:
            for kind, data in draw().items():
                write(f"figures/{stem}-{name}.{kind}", data)
        # Whatever goes wrong in a drawing must not cost the numbers.
        except Exception as error:
            failure = f"The figure '{title}' could not be drawn: {type(error).__name__}: {error}"
            print(f"warning: {failure}", file=sys.stderr)
            return [f"> Warning: {tables.escape(failure)}", ""]
        return [f"![{title}](figures/{stem}-{name}.png)", ""]

    write("comparison.csv", tables.to_csv(tables.comparison(parts)))
    write("differences.csv", tables.to_csv(tables.differences_frame(parts)))
    write("runs.csv", tables.to_csv(tables.runs(parts)))
    write("matrices.csv", tables.to_csv(tables.matrices(parts)))
    write("report.tex", latex.to_latex(parts))
    report = ["# Comparison of continual-learning strategies", ""]
    write("report.html", page.render(parts))
    for stem, part in zip(_stems(parts), parts, strict=True):
        report.append(tables.section(part))
        for name in figures.FIGURES:
            if figures.lacks(name, part) is None:
                report += pictures(stem, name, lambda name=name, part=part: figures.draw(name, part))  # type: ignore[misc]
    if ranks := tables.rank_section(parts):
        report.append(ranks)
        for setting in differences.all_ranks(parts):
            report += pictures(
                setting,
                OVERVIEW,
                lambda setting=setting: figures.draw_critical_difference(parts, setting),  # type: ignore[misc]
            )
    report.append(tables.definitions())
    write("report.md", "\n".join(report))
    return written


def write_figures(
    results: Sequence[Result], folder: str | Path, names: Sequence[str], *, kind: str = "pdf", style: str = "paper"
) -> list[Path]:
    """Write the named figures of every comparison as pdf, svg or png, for a paper or a talk; return their paths.

    Raises ConfigError for an unknown name, kind or style, and for a figure that no comparison has what it shows for.
    """
    for what, given, accepted in (
        *(("figure", name, [*figures.FIGURES, OVERVIEW]) for name in names),
        ("format", kind, list(figures.KINDS)),
        ("style", style, list(figures.STYLES)),
    ):
        if given not in accepted:
            raise unknown(what, given, accepted)
    parts = tables.compare(results)
    drawn: dict[str, bytes] = {}
    for name in names:
        if name == OVERVIEW:
            settings = list(differences.all_ranks(parts)) or [parts[0].setting]
            for setting in settings:
                found = figures.draw_critical_difference(parts, setting, [kind], style)
                drawn[f"{setting}-{name}.{kind}"] = found[kind]
            continue
        lacking = [figures.lacks(name, part) for part in parts]
        if all(lacking):
            raise ConfigError(f"figure {name!r} needs {lacking[0]}; these runs have none")
        for stem, part, lack in zip(_stems(parts), parts, lacking, strict=True):
            if lack is None:
                drawn[f"{stem}-{name}.{kind}"] = figures.draw(name, part, [kind], style)[kind]
    for file, data in drawn.items():
        write_atomically(Path(folder) / file, data)
    return [Path(folder) / file for file in drawn]


def _stems(parts: Sequence[tables.Comparison]) -> list[str]:
    """Return a file name for each comparison, no two the same."""
    stems: list[str] = []
    for part in parts:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{part.scenario}-{part.setting}").strip("-.")[:60]
        stems.append(name if name not in stems else f"{name}-{len(stems) + 1}")
    return stems
