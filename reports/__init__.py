"""What a person looks at: tables and figures, rebuilt from finished runs alone."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from clbench.files import write_atomically
from clbench.reports import figures, page, tables
from clbench.result import Result

__all__ = ["write_report"]


def write_report(results: Sequence[Result], folder: str | Path) -> list[Path]:
    """Write report.html, report.md, comparison.csv, runs.csv, matrices.csv and the figures; return their paths.

    A figure that fails is left out and named in report.md and on stderr. Raises ConfigError for no results.
    """
    folder = Path(folder)
    written: list[Path] = []

    def write(name: str, data: bytes | str) -> None:
        write_atomically(folder / name, data)
        written.append(folder / name)

    write("comparison.csv", tables.to_csv(tables.comparison(results)))
    write("runs.csv", tables.to_csv(tables.runs(results)))
    write("matrices.csv", tables.to_csv(tables.matrices(results)))
    report = ["# Comparison of continual-learning strategies", ""]
    stems: list[str] = []
    parts = tables.compare(results)
    write("report.html", page.render(parts))
    for part in parts:
        stems.append(_stem(part, stems))
        pictures = []
        for name in figures.FIGURES:
            title = name.replace("_", " ")
            try:
                for kind, data in figures.draw(name, part).items():
                    write(f"figures/{stems[-1]}-{name}.{kind}", data)
                pictures += [f"![{title}](figures/{stems[-1]}-{name}.png)", ""]
            # Whatever goes wrong in a drawing must not cost the numbers.
            except Exception as error:
                failure = f"The figure '{title}' could not be drawn: {type(error).__name__}: {error}"
                print(f"warning: {failure}", file=sys.stderr)
                pictures += [f"> Warning: {tables.escape(failure)}", ""]
        report += [tables.section(part), *pictures]
    report.append(tables.definitions())
    write("report.md", "\n".join(report))
    return written


def _stem(part: tables.Comparison, taken: list[str]) -> str:
    """Return a file name for the comparison that is none of `taken`."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{part.scenario}-{part.setting}").strip("-.")[:60]
    return name if name not in taken else f"{name}-{len(taken) + 1}"
