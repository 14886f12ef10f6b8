"""A sweep over budgets has a curve for each strategy, and the area below it."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

import clbench
from clbench.reports import budgets
from clbench.reports import sweep as report

GRID: dict[str, Any] = {
    "scenario": "split-mnist-5k", "strategy": ["er", "naive"], "seeds": 1, "limit": 10, "model": "mlp:8",
    "batch_size": 4, "memory_size": 20, "budget": ["flops=16e6", "flops=2e6", "flops=4e6"],
}  # fmt: skip


def test_areas_are_those_of_trapezoids_over_the_logarithm(tmp_path: Path) -> None:
    """By hand: from 2 to 4 and from 4 to 16 million are one and two doublings, so the second trapezoid counts twice."""
    results = clbench.sweep(GRID, out=tmp_path / "runs", quiet=True)
    drawn = budgets.curves(report.points(results))
    assert [(one.label, one.kind, list(one.points)) for one in drawn] == [
        (name, "flops", [2 * 10**6, 4 * 10**6, 16 * 10**6]) for name in ("er", "naive")
    ]

    def area(strategy: str, metric: str) -> float:
        a, b, c = (
            next(
                run.metrics[metric]
                for run in results
                if run.config["strategy"] == strategy and run.config["budget"] == budget
            )
            for budget in ("flops=2000000", "flops=4000000", "flops=16000000")
        )
        return float(100 * ((a + b) / 2 + 2 * (b + c) / 2) / 3)

    paths = report.write_sweep(results, tmp_path / "report")
    assert {"budgets.csv", "budgets-1.png", "budgets-1.svg"} <= {path.name for path in paths}
    rows = {row["strategy"]: row for row in csv.DictReader((tmp_path / "report" / "budgets.csv").open(newline=""))}
    for name in ("er", "naive"):
        assert math.isclose(float(rows[name]["auc_l"]), area(name, "average_accuracy"), abs_tol=0.006)
        assert math.isclose(float(rows[name]["auc_a"]), area(name, "average_incremental_accuracy"), abs_tol=0.006)
        above = area(name, "average_accuracy") - area("er", "average_accuracy")
        assert float(rows[name]["auc_l_above_er"]) == pytest.approx(above, abs=0.011)
    (chart,) = budgets.charts(drawn).values()
    assert [(one.name, list(one.x)) for one in chart.series] == [
        (name, [2e6, 4e6, 16e6]) for name in ("er", "naive")
    ]  # fmt: skip
    assert "uniform replay" in chart.caption
