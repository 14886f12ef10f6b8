"""The examples work as a user would run them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from clbench.cli import main
from clbench.tools.conformance import check_strategy

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_strategy_in_a_file_passes_the_conformance_kit() -> None:
    outcomes = check_strategy(f"{EXAMPLES / 'pull_to_old_features.py'}:PullToOldFeatures")
    assert [o for o in outcomes if o.status == "failed"] == []


def test_the_study_of_own_data_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "own_data.py"))
    assert "er" in (tmp_path / "runs/report/report.md").read_text()


@pytest.mark.slow
def test_a_class_in_a_notebook_runs_in_worker_processes_too_and_passes_the_kit(tmp_path: Path) -> None:
    """The code cells, one after the other, as a kernel has them: in __main__."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text("utf-8"))["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert sum(line.startswith("CautiousHead ") for line in lines) == 2
    assert lines[-1] == "[]"


@pytest.mark.slow
def test_a_package_brings_a_strategy_and_a_scenario_through_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "site"
    source = tmp_path / "plugin"
    source.mkdir()
    for file in (EXAMPLES / "plugin").iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, str(source)], check=True)
    monkeypatch.syspath_prepend(str(target))
    monkeypatch.chdir(tmp_path)

    def clbench(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        return capsys.readouterr().out

    listed = json.loads(clbench("list", "--json"))
    assert "naive-with-noise" in [row["name"] for row in listed["strategies"]]
    assert "split-letters" in [row["name"] for row in listed["scenarios"]]
    record = json.loads(clbench("run", "split-letters", "naive-with-noise", "-p", "strength=0.2", "--json"))
    assert record["status"] == "done"
    assert record["strategy"]["options"] == {"strength": 0.2}
    assert len(record["scenario"]["tasks"]) == 3
