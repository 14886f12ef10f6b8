"""Tables and figures, made from finished runs alone."""

import contextlib
import csv
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, RunError, unknown
from clbench.reports import figures, judged_tables, latex, markdown, page, tables
from clbench.reports.chart import Chart, Panels
from clbench.reports.charts import CHARTS, chart_name, critical_difference
from clbench.reports.comparison import Comparison, compare
from clbench.reports.verdict import all_ranks
from clbench.results.result import Result
from clbench.support.files import expanded, write_atomically

__all__ = ["earlier_results", "left_out", "write_comparisons", "write_figures", "write_judged", "write_report"]

# The one figure of several comparisons.
OVERVIEW = "critical_difference"


@checked
def write_report(results: Sequence[Result], folder: str | os.PathLike[str]) -> list[Path]:
    """Write the report of these runs; see `write_comparisons`. Raises ConfigError for no results."""
    return write_comparisons(compare(results), folder)


@checked
def write_comparisons(parts: Sequence[Comparison], folder: str | os.PathLike[str]) -> list[Path]:
    """Write report.html, report.md, report.tex, the tables as CSV and the figures; return their paths.

    Figures that a report.md in the folder shows, and this one does not, are removed. Raises RunError where the files
    can't be written. A figure that fails is left out and named in report.md and on stderr.
    """
    folder = expanded(folder)
    written: list[Path] = []
    shown_before = _shown(folder)

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
    for stem in shown_before - _shown(folder):
        for kind in figures.KINDS:
            (folder / f"figures/{stem}.{kind}").unlink(missing_ok=True)
    return written


def earlier_results(
    folder: str | os.PathLike[str], results: Sequence[Result], runs: str | os.PathLike[str]
) -> list[Result]:
    """Return the runs of the report in a folder that are of other comparisons than these results are.

    So one report can hold both. A comparison is of a scenario, a setting and sizes of tasks. The runs are looked for in
    the folder `runs`, where `compare` put them; what is no longer there, or can't be read, is left out.
    """
    renewed = _comparisons(results)
    found: dict[str, Result] = {}
    with contextlib.suppress(ValueError, KeyError):
        for row in _reported(folder):
            if (row["scenario"], row["setting"], row["task_sizes"]) in renewed or row["identity"] in found:
                continue
            for path in expanded(runs).glob(f"*/*/{int(row['seed'])}-{row['identity'][:8]}/run.json"):
                with contextlib.suppress(ConfigError):
                    result = Result.load(path)
                    if result.recorded.identity == row["identity"]:
                        found[row["identity"]] = result
    return list(found.values())


def left_out(folder: str | os.PathLike[str], results: Sequence[Result]) -> int:
    """Return how many runs of the report in a folder are of the comparisons of these results, and not among them."""
    renewed, ours = _comparisons(results), {result.recorded.identity for result in results}
    before = {
        row.get("identity")
        for row in _reported(folder)
        if (row.get("scenario"), row.get("setting"), row.get("task_sizes")) in renewed
    }
    return len(before - ours)


def _comparisons(results: Sequence[Result]) -> set[tuple[str | None, ...]]:
    """Return the scenario, setting and sizes of tasks of each comparison, as runs.csv has them."""
    return {(part.scenario, part.setting, " ".join(map(str, part.task_sizes))) for part in compare(results)}


def _reported(folder: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Return the rows of the runs of the report in a folder; none where there is no report yet, or no such file."""
    # Another program may have left a file of this name.
    try:
        with open(expanded(folder) / "runs.csv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []


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


@checked
def write_judged(record: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Write judged.csv, judged.md and a chart of the rankings of each judged scenario; return their paths.

    record: as of `clbench.tune(..., judge_on=...)`. Raises RunError where the files can't be written.
    """
    files: dict[str, bytes | str] = {
        "judged.csv": judged_tables.to_csv(record),
        "judged.md": judged_tables.to_markdown(record),
    }
    for place, part in enumerate(record["judged"]):
        if len(part["ways"]) > 1:
            drawing = judged_tables.rank_slopes(part)
            files |= {f"ranks-{place}.{kind}": data for kind, data in figures.draw(drawing, drawing.title).items()}
    for name, data in files.items():
        _write(expanded(folder) / name, data)
    return [expanded(folder) / name for name in files]


def _write(path: Path, data: bytes | str) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise RunError(f"{path.parent}: {error.strerror or error}; the runs themselves are kept") from None


def _shown(folder: Path) -> set[str]:
    """Return the names, without ending, of the figures that the report.md in a folder shows."""
    try:
        return set(re.findall(r"\(figures/([^/()\s]+)\.png\)", (folder / "report.md").read_text("utf-8")))
    except (OSError, UnicodeError):
        return set()


def _stems(parts: Sequence[Comparison]) -> list[str]:
    """Return a different file name for each comparison."""
    stems: list[str] = []
    for part in parts:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{part.scenario}-{part.setting}").strip("-.")[:60]
        stems.append(name if name not in stems else f"{name}-{len(stems) + 1}")
    return stems
