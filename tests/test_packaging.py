"""The distribution as a user installs it, and which package imports which."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("strategies", "scenarios", "reports")
TINY = ["--epochs", "1", "--limit", "5", "--threads", "1", "--quiet"]


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Run Python in a folder, without the checkout on the path, and return its output."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout, so that the build leaves nothing behind here."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("clbench", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    python(*build, "--wheel-dir", str(folder), str(copy), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    python(*install, str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_the_four_rooms_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith("METADATA"))
        requires = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", archive.read(metadata).decode(), re.MULTILINE)
        entry_points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"clbench"}
    for room in ROOMS:
        ours = {f"clbench/{file.relative_to(ROOT)}" for file in (ROOT / room).glob("*.py")}
        assert ours <= names
    assert {"clbench/py.typed", "clbench/scenarios/presets.toml", "clbench/models/mlp.py"} <= names
    assert {f"clbench/reports/page.{kind}" for kind in ("html", "css", "js")} <= names
    assert {"torch", "torchvision", "avalanche-lib", "mlxtend"} <= set(requires)
    assert not {"pytest", "ruff", "mypy"} & set(requires)
    assert "clbench = clbench.__main__:main" in entry_points


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    where = (
        "import clbench, clbench.strategies as s, clbench.reports as r; print(clbench.__file__, s.__file__, r.__file__)"
    )
    for file in python("-c", where, cwd=empty, path=site).split():
        assert Path(file).is_relative_to(site)
    listed = json.loads(python("-m", "clbench", "list", "strategies", "--json", cwd=empty, path=site))
    assert {"naive", "joint", "feature-extraction", "lwf", "ewc", "er", "icarl"} <= {
        row["name"] for row in listed["strategies"]
    }
    run = ["run", "split-mnist-5k", "naive", *TINY, "--out", "out", "--json"]
    record = json.loads(python("-m", "clbench", *run, cwd=empty, path=site))
    assert record["status"] == "done"
    assert (empty / "out" / "run.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("here", ["checkout", "elsewhere"])
def test_the_checkout_answers_as_a_whole_where_one_stands_in_it_and_the_installed_copy_elsewhere(
    here: str, site: Path, tmp_path: Path
) -> None:
    """Without `site` (-S) no editable install answers; what clbench needs is on the path as plain folders."""
    program = (
        "import clbench; clbench.scenarios.split; clbench.models; import clbench.strategies, clbench.reports\n"
        "from importlib import metadata\n"
        "(er,) = metadata.entry_points(group='clbench.strategies', name='er')\n"
        "import sys; er = sys.modules[er.load().__module__]\n"
        "for m in (clbench, clbench.scenarios, clbench.models, clbench.strategies, clbench.reports, er):\n"
        "    print(m.__file__)\n"
    )
    needed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *needed])}
    cwd = ROOT if here == "checkout" else tmp_path
    command = [sys.executable, "-S", "-c", program]
    ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    answered = [Path(line) for line in ended.stdout.splitlines()]
    assert len(answered) == 6
    assert all(file.is_relative_to(ROOT if here == "checkout" else site) for file in answered), answered


def test_import_clbench_is_light(tmp_path: Path) -> None:
    """Metrics, losses and the rest come on first use; a name that isn't there is an AttributeError."""
    program = (
        "import sys, clbench\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)\n"
        "assert clbench.metrics.average_accuracy([[0.25]]) == 0.25\n"
        "print('torch' in sys.modules)\n"
        "assert clbench.memory.herding and 'torch' in sys.modules\n"
        "print(hasattr(clbench, 'nothing'))\n"
    )
    assert python("-c", program, cwd=tmp_path).split() == ["False", "False", "False", "False"]


def modules_named(file: Path) -> Iterator[str]:
    """Yield every module that a file imports, on any line, and every one that it could import by its name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_nobody_imports_a_room_by_its_folder_name() -> None:
    """`import strategies` works in the checkout alone, where the folder happens to lie in the current one."""
    files = [file for name in ("clbench", *ROOMS, "tests", "examples", "benchmarks", "docs") for file in _python(name)]
    assert len(files) > 40
    found = {f"{f.name}: {m}" for f in files for m in modules_named(f) if m.split(".")[0] in (*ROOMS, "tests")}
    assert found == set()


def _python(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")
