"""The LaTeX tables: best and second marked, every character of a name printed as itself."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from clbench.config.errors import ConfigError
from clbench.reports import latex
from clbench.reports.comparison import compare
from clbench.results.result import Result

Make = Callable[..., Result]


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    return {name: cells for name, *cells in lines}


def test_best_is_bold_and_second_underlined_among_competitors(make_result: Make) -> None:
    """Of .9 (joint, a reference), .7, .5, .5: .7 is best, both .5 are second; two seeds .1 apart have an sd of 7.1."""
    results = [
        make_result(name, seed, sizes=(2,), matrix=np.array([[level + 0.1 * seed]]))
        for name, level in (("joint", 0.85), ("er", 0.65), ("lwf", 0.45), ("ewc", 0.45), ("naive", 0.1))
        for seed in range(2)
    ]
    found = rows(latex.to_latex(compare(results)))
    assert found["joint$^\\dagger$"][0] == r"$90.0 \pm 7.1$"
    assert found["ER"][0] == r"$\mathbf{70.0} \pm 7.1$"
    assert found["LwF"][0] == found["EWC"][0] == r"$\underline{50.0} \pm 7.1$"
    assert found["naive"][0] == r"$15.0 \pm 7.1$"


def test_naive_is_a_line_to_compare_with_and_no_second_best(make_result: Make) -> None:
    results = [
        make_result(name, seed, sizes=(2,), matrix=np.array([[level + 0.1 * seed]]))
        for name, level in (("er", 0.65), ("naive", 0.1), ("lwf", 0.05))
        for seed in range(2)
    ]
    found = rows(latex.to_latex(compare(results)))
    assert found["naive"][0] == r"$15.0 \pm 7.1$"
    assert found["LwF"][0] == r"$\underline{10.0} \pm 7.1$"


def test_of_forgetting_the_least_is_best(seven: list[Result]) -> None:
    """The levels of the made-up runs: icarl loses 4 % with each task, er 8 %."""
    text = latex.to_latex(compare(seven))
    found = rows(text)
    column = found["Strategy"].index("Forgetting")
    assert found["iCaRL"][column].startswith(r"$\mathbf{")
    assert found["ER"][column].startswith(r"$\underline{")
    assert text.count(r"\begin{tabular}{lrrrrr}") == text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert {len(cells) for cells in found.values()} == {5}
    assert found[r"iCaRL {\footnotesize (linear)}"][1] == "--"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("er[memory_size=200]", r"er[memory\_size=200]"),
        (r"50% & $x^2$ #1 {a} \b~", r"50\% \& \$x\textasciicircum{}2\$ \#1 \{a\} \textbackslash{}b\textasciitilde{}"),
        ('<script>|"', r"\textless{}script\textgreater{}\textbar{}\textquotedbl{}"),
        ("a\x1b[31m\n\u202eb", "a[31mb"),
    ],
)
def test_text_is_escaped(make_result: Make, text: str, escaped: str) -> None:
    """The escapes are those of the LaTeX 2e manual (latexref.xyz, "Reserved characters")."""
    assert latex.escape(text) == escaped
    table = latex.to_latex(compare([make_result("lwf", label=text, scenario=text)]))
    # An invisible character is a question mark in every table.
    shown = latex.escape("".join(c if c.isprintable() else "?" for c in text))
    assert f"\n{shown} & " in table
    assert rf"\caption{{{escaped}, class-incremental" in table
    assert not re.search(r"(?<!\\)[%#]", table.split("\n", 1)[1])


def test_a_metric_that_some_runs_lack_says_so_and_no_results_are_refused(make_result: Make) -> None:
    whole = make_result("lwf", 0, sizes=(2, 2), matrix=np.array([[0.9, np.nan], [0.5, 0.7]]))
    part = make_result("lwf", 1, sizes=(2, 2), matrix=np.array([[0.9, np.nan], [np.nan, np.nan]]))
    assert "$40.0$ ($n=1$)" in latex.to_latex(compare([whole, part]))
    with pytest.raises(ConfigError, match="at least one run"):
        latex.to_latex(compare([]))
