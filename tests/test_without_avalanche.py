"""clbench without Avalanche, in an installation as docs/avalanche.md gives it: all packages of this one but that."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import clbench
from clbench.cli import main

given = {"limit": 20, "epochs": 1, "model": "mlp:8", "memory_size": 20, "threads": 1}
result = clbench.run("split-mnist-5k", "er", out=sys.argv[1] + "/run", **given)
assert "avalanche-lib" not in result.record["environment"]["packages"]
clbench.reports.write_report([result], sys.argv[1] + "/report")
main(["list"])
"""


def asked(arguments: str) -> str:
    return f"import sys; sys.path.insert(0, sys.argv[1]); from clbench.cli import main; main({arguments})"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to all installed packages but Avalanche, and with a copy of clbench as it is installed."""
    folder = tmp_path_factory.mktemp("packages")
    installed = [file for path in sys.path if path.endswith("-packages") for file in Path(path).iterdir()]
    for package in installed:
        if not re.match(r"avalanche|clbench-|__editable__", package.name) and not (folder / package.name).exists():
            (folder / package.name).symlink_to(package)
    shutil.copytree(ROOT / "clbench", folder / "clbench")
    for name in ("strategies", "scenarios", "reports"):
        shutil.copytree(ROOT / name, folder / "clbench" / name)
    (facts,) = Path(sysconfig.get_path("purelib")).glob("clbench-*.dist-info")
    shutil.copytree(facts, folder / facts.name)
    return folder


def python(program: str, packages: Path) -> "subprocess.CompletedProcess[str]":
    # -S leaves out this environment's own packages, and -I the folder that the tests run in.
    command = [sys.executable, "-S", "-I", "-c", program, str(packages)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=packages, check=False)


@pytest.mark.slow
def test_runs_reports_and_lists_work_without_avalanche(packages: Path) -> None:
    ended = python(PROGRAM, packages)
    assert ended.returncode == 0, ended.stderr
    assert (packages / "report" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ['["run", "split-mnist-5k", "avalanche:Naive"]', '["crosscheck", "naive"]'])
def test_what_needs_avalanche_is_refused_in_one_line(arguments: str, packages: Path) -> None:
    ended = python(asked(arguments), packages)
    assert ended.returncode == 2
    assert re.fullmatch(r"clbench: .*No module named 'avalanche.*\n", ended.stderr), ended.stderr


def test_the_page_names_every_other_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", package)[0] for package in project["dependencies"]} - {"avalanche-lib"}
    page = (ROOT / "docs/avalanche.md").read_text()
    commands = re.findall(r"^pip install ([a-z].*)$", page, re.MULTILINE)
    assert {name for command in commands for name in command.split()} == needed
