"""Simulations check the promises of docs/statistics.md: false positives of a whole table, and the page itself."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/update_statistics.py"))


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["normal", "skewed"])
@pytest.mark.parametrize("n", [10, 20])
def test_a_table_of_equal_strategies_calls_one_different_in_at_most_5_percent(
    script: dict[str, Any], n: int, draw: str
) -> None:
    """Of 400 tables a share of 5 % has a standard error of 1.09 points; three are allowed. Seeds: not the page's."""
    share, _ = script["found_real"](n, 400, 0.0, script["DRAWS"][draw], seed=99)
    assert share <= 0.05 + 3 * 0.0109


@pytest.mark.slow
def test_more_runs_and_larger_differences_are_found_more_often(script: dict[str, Any]) -> None:
    normal = script["normal"]
    power = {(n, d): script["found_real"](n, 200, d, normal, seed=99)[1] for n, d in ((10, 1.0), (20, 1.0), (10, 2.5))}
    assert power[10, 1.0] < power[20, 1.0]
    assert power[10, 1.0] < power[10, 2.5]
    assert power[10, 2.5] > 0.8


def test_the_page_holds_what_the_script_measures(script: dict[str, Any]) -> None:
    """Recomputes the cheapest cells, ten runs of equal normal values and the t intervals; the others are plausible."""
    text = (ROOT / "docs/statistics.md").read_text().split(script["BEGIN"])[1].split(script["END"])[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    cells = {(row[0], row[1]): row for row in rows if row[1] in ("10", "20")}
    assert cells.keys() == {(name, n) for name in script["DRAWS"] for n in ("10", "20")}
    null, _ = script["found_real"](10, 2000, 0.0, script["normal"])
    assert cells["normal", "10"][2] == f"{100 * null:.1f} %"
    for row in cells.values():
        false, beside = (float(cell.removesuffix(" %")) for cell in row[2:4])
        assert max(false, beside) <= 5 + 3 * 0.5
    covered = {
        row[0]: row[1:] for row in rows if len(row) == 1 + len(script["SIZES"]) + len(script["LARGE"]) and "%" in row[1]
    }
    assert covered["normal"][0] == f"{100 * script['coverage'](3, 2000, script['normal']):.1f} %"
    assert covered["skewed"][-1] == f"{100 * script['coverage_of_t'](40, 2000, script['skewed']):.1f} %"
    assert all(re.fullmatch(r"\d\d\.\d %", cell) for row in covered.values() for cell in row)
    assert "(t)" in text
    assert "(BCa)" in text
