"""Write docs/reproduction.md, its figure and a line of the README from the claims and the results that are kept."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clbench.reports import published_table, reproduction
from clbench.reports.figures import draw
from clbench.reports.published import chosen, claims_of_table

PAGE = Path(__file__).with_name("reproduction.md")
README = PAGE.parents[1] / "README.md"
FIGURE = PAGE.parent / "figures" / "reproduction-split-mnist.svg"
TABLE = "vandeven2022/split-mnist"
# The line of the README that says how many numbers came out.
LINE = "| published numbers come out |"

HOW = """
`clbench list claims` lists the claims, and `clbench reproduce` shows the results that are kept with the code. `clbench
reproduce --tier A` runs the claims that take minutes each on a CPU, `--tier B` those that take hours, and `--tier C`
those for a GPU; a name, or the beginning of one, runs these claims. `--budget 10m` takes the claims that fit into that
time, of every tier unless `--tier` names one. `--dry-run` only says what would run; it neither reads nor downloads
data. With a GPU, `--device cuda --compile reduce-overhead` turns those hours into minutes. Finished runs are not
repeated and don't need their data; unfinished runs go on where they stopped. A claim that can't run here is left out
with the reason. If no claim can run because data are missing, the results that are kept with the code are shown, with
exit code 0, or 2 if you named claims; any other reason that stops all of them, such as a missing device, is refused
with exit code 2. A claim is also a preset: `clbench run --like vandeven2022/split-mnist-class/lwf` trains under its
protocol, and options given on the line override it. The claims are data, one file for each paper, in `reports/claims/`.
The results behind this page are in `reports/results/`; `clbench reproduce --results reports/results` writes them, and
nobody edits them by hand. A run that stands in the table of results is not done again, for whichever claim it was
measured.

`clbench reproduce --table vandeven2022/split-mnist` runs every claim of a published table, prints it cell by cell and
draws its figure. Runs that were made on another machine are added by `clbench reproduce --submit FOLDER --results
reports/results`. Each is checked first: it is finished, it is the run of a claim, of no later version than this one,
and what its record says twice agrees: strategy and options, the order of classes, accuracies, counts of right answers,
metrics, steps and `accuracy.csv`. Device and compiler are left open. A run with another class order than one of its
claim with its seed is refused, and one that the results hold already keeps the numbers that it has there; the others
are added all the same. A claim has a verdict once the runs of `naive` are there too: `clbench run --like CLAIM naive`
makes one.
These checks find a mistake or an edited number; they can't find a record that somebody made up as a whole.
"""

READING = """
- **Two orders are called "1993".** `numpy.random.permutation(100)` after seed 1993 begins 68, 56, 78 (`cifar100-1993`:
  LUCIR, FACIL, PyCIL). The iCaRL authors' code draws other numbers first, so its first run begins 87, 0, 52
  (`cifar100-icarl`).
- **Final or average.** The published 64.1 for iCaRL on ten steps of ten classes is the mean over all steps, the first
  included; the curve ends near 50. Other papers leave out the first step, or begin with 50 classes. Each claim
  therefore names its metric.
- **Standard error or deviation.** van de Ven et al. print the standard error of the mean, which over 20 runs is the
  standard deviation divided by 4.5. DER prints standard deviations, and iCaRL prints neither. The column says which.
- **LwF is weighted in at least three ways**: one weight for all tasks; (N-1) on the distillation of the N-th task; 1/N
  on the new task and 1 - 1/N on the old ones. On class-incremental Split-MNIST the last one gives 2 points more
  (`vandeven2019-lwf`; 23.9 and 24.2 in the preprints, 21.9 in the later paper).
- **EWC's strength has no scale of its own.** It depends on which labels the Fisher information uses, whether it is a
  mean or a sum, and on a factor of 1/2. Published values go from 1 to 1e10. The same authors report 85.5 and 99.1 % for
  task-incremental Split-MNIST, with different strengths.
- **Regularisation in the class-incremental setting** (EWC, SI) ends where `naive` does, in the papers and here. Such a
  claim can't be told from doing nothing, so it does not count; its task-incremental value and its paired difference
  from naive do.
- **SI differs between code bases**: xi is 0.001 or 0.1, importances are cut off at 0 or not, the gradient includes the
  penalty's or not, and the authors' notebook tests on training images.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    return "\n".join(_lines())


def line() -> str:
    """Return the line of the README that says how many numbers came out."""
    judgements = [j for j in reproduction.judge_all(_rows()) if j.n]
    counts = Counter(j.verdict for j in judgements)
    return (
        f"{LINE} of {len(judgements)} measured, {counts['reproduced']} are reproduced, {counts['consistent']} agree in "
        f"one run, {counts['differs']} differ, and {counts['not discriminating']} can't be told from fine-tuning: "
        "[reproduction](docs/reproduction.md) |"
    )


def figure() -> bytes:
    """Return the figure of the page: by how much each cell of a published table differs."""
    drawing = published_table.chart(published_table.published_table(TABLE, _of_table()))
    return draw(drawing, drawing.title, ["svg"])["svg"]


def _rows() -> list[reproduction.Measured]:
    return reproduction.known_claims(reproduction.committed())


def _of_table() -> list[reproduction.Judgement]:
    return reproduction.judge_all(_rows(), claims_of_table(TABLE))


def _lines() -> Iterator[str]:
    rows = _rows()
    judgements = reproduction.judge_all(rows, chosen([]))
    yield "# Published numbers"
    yield ""
    yield f"**{reproduction.summary(judgements)}**"
    yield ""
    yield "Generated by `make readme`; a test compares this page with the code and the results."
    yield from HOW.splitlines()
    yield ""
    yield f"## A table cell by cell: {TABLE}"
    yield ""
    yield "Each cell: the published mean, ours with half its 95 % interval, and the verdict."
    yield ""
    yield from published_table.to_markdown(published_table.published_table(TABLE, _of_table())).splitlines()
    yield ""
    yield f"![By how much each cell differs](figures/{FIGURE.name})"
    yield ""
    text = reproduction.to_markdown(judgements, rows)
    yield (
        text.replace("# Published numbers and ours\n", "## Beside ours\n")
        .replace("\n## Why", "\n### Why")
        .replace("\n## Notes on protocols", "\n### Notes on protocols")
        .rstrip()
    )
    yield ""
    yield "## Papers"
    yield ""
    yield from (f"- `{paper}`: {citation}" for paper, citation in {c.paper: c.citation for c in chosen([])}.items())
    yield ""
    yield "## Where papers disagree"
    yield from READING.splitlines()


if __name__ == "__main__":
    PAGE.write_text(page() + "\n")
    FIGURE.write_bytes(figure())
    lines = README.read_text(encoding="utf-8").splitlines()
    README.write_text("\n".join(line() if old.startswith(LINE) else old for old in lines) + "\n", encoding="utf-8")
