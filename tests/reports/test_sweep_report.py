"""The report of a sweep: parameter columns, the best of each strategy, a heat map for two parameters."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import clbench
from clbench.cli import main
from clbench.reports import sweep as report

GRID: dict[str, Any] = {
    "scenario": "split-mnist-5k", "strategy": ["lwf", "naive"], "seeds": 2, "limit": 5, "epochs": 1, "model": "mlp:8",
    "lr": [0.01, 0.1, 0.5], "strategies": {"lwf": {"strength": [0.5, 2.0]}},
}  # fmt: skip


def test_the_report_holds_what_the_runs_hold(tmp_path: Path) -> None:
    """Means and standard deviations by NumPy from the runs themselves, which are found by their configuration."""
    results = clbench.sweep(GRID, out=tmp_path / "runs", quiet=True)
    found = report.points(results)
    lwf = [("lwf", {"lr": lr, "strength": s}) for lr in ("0.01", "0.1", "0.5") for s in ("0.5", "2.0")]
    naive = [("naive", {"lr": lr}) for lr in ("0.01", "0.1", "0.5")]
    assert [(point.strategy, point.values) for point in found] == [*lwf, *naive]
    assert report.parameters(found) == ["lr", "strength"]

    def accuracies(lr: float, strength: float | None) -> list[float]:
        return [
            run.metrics["average_accuracy"]
            for run in results
            if run.config["lr"] == lr and run.config["strategy_options"].get("strength") == strength
        ]

    paths = report.write_sweep(results, tmp_path / "report")
    assert {path.name for path in paths} == {"sweep.csv", "sweep.md", "sweep-1.png", "sweep-1.svg"}
    rows = list(csv.DictReader((tmp_path / "report" / "sweep.csv").open(newline="")))
    assert len(rows) == 9
    for row in rows:
        values = accuracies(float(row["lr"]), float(row["strength"]) if row["strength"] else None)
        assert row["n"] == "2"
        assert math.isclose(float(row["average_accuracy"]), np.mean(values))
        assert math.isclose(float(row["average_accuracy_sd"]), np.std(values, ddof=1), abs_tol=1e-12)
    (panels,) = report.heat_maps(found).values()
    heat: Any = panels.panels[0].drawing
    assert (heat.down, heat.across, list(heat.rows), list(heat.columns)) == (
        "lr", "strength", ["0.01", "0.1", "0.5"], ["0.5", "2.0"],
    )  # fmt: skip
    expected = [[100 * np.mean(accuracies(lr, s)) for s in (0.5, 2.0)] for lr in (0.01, 0.1, 0.5)]
    assert np.allclose(heat.values, expected)
    best = {point.strategy: point.spread("average_accuracy").mean for point in report.best(found)}
    assert best == {
        name: max(p.spread("average_accuracy").mean for p in found if p.strategy == name) for name in ("lwf", "naive")
    }
    for width in (80, 120):
        text = io.StringIO()
        Console(file=text, width=width).print(report.render(found))
        lines = text.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert sum(line.rstrip().endswith("*") for line in lines) == 2
        for word in ("strategy", "lr", "strength", "average accuracy %", "n"):
            assert word in lines[0]


def test_the_command_ends_with_it_and_a_dry_run_is_in_grid_order(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("grid.toml").write_text(
        'scenario = "split-mnist-5k"\nstrategy = "er"\nseeds = 1\nlimit = 5\nepochs = 1\nmodel = "mlp:8"\n'
        "memory_size = [20, 10]\nlr = [0.1, 0.01]\n"
    )

    def called(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["sweep", "grid.toml", *arguments])
        assert not ended.value.code
        return str(capsys.readouterr().out)

    labels = [f"er[memory_size={m},lr={lr}]" for m in (20, 10) for lr in (0.1, 0.01)]
    shown = called("--dry-run")
    assert max(map(len, shown.splitlines())) <= 80
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("er[")] == labels
    assert "split-mnist-5k" in shown.splitlines()[0]
    shown = called()
    assert "best" in shown
    assert "runs/report/sweep.md" in shown
    assert Path("runs/report/report.html").is_file()
    assert Path("runs/report/figures/sweep-1.png").is_file()
