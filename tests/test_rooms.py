"""The rooms of the house: which may import which, what an import costs, and the packages that all of them import."""

import ast
import re
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# Rooms in order, the bottom first; a room may import itself and the rooms before it.
ROOMS = ("config", "support", "results", "data", "models", "learning", "running", "many", "tools", "avalanche", "cli")
# Folders at the root of the repository, and the highest room that they may import.
BESIDE = {"strategies": "learning", "scenarios": "data", "reports": "results"}
# Parts of strategies and scenarios for one published protocol lie beside its numbers, loaded by name only.
PROTOCOLS = ROOT / "reports" / "claims"


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir()


def imported(file: Path) -> Iterator[str]:
    """Yield every module of clbench that a file imports on any line, those under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("clbench."))
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "clbench":
                yield from (f"clbench.{alias.name}" for alias in node.names)
            elif node.module.startswith("clbench."):
                yield node.module
                yield from (name for alias in node.names if is_module(name := f"{node.module}.{alias.name}"))


def files_of(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, folder
    return found


def test_every_folder_of_the_core_is_a_room_with_a_docstring() -> None:
    folders = {path.name for path in (ROOT / "clbench").iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(ROOMS)
    for room in ROOMS:
        assert ast.get_docstring(ast.parse((ROOT / "clbench" / room / "__init__.py").read_text("utf-8"))), room


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_itself_and_the_rooms_below_it_alone(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *(["reports"] if room == "cli" else [])}
    wrong = {
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files_of(ROOT / "clbench" / room)
        for module in imported(file)
        if module.split(".")[1] not in allowed
    }
    assert wrong == set()


@pytest.mark.parametrize("folder", BESIDE)
def test_what_is_beside_the_core_imports_no_room_above_its_own(folder: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(BESIDE[folder]) + 1], folder}
    wrong = {
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files_of(ROOT / folder)
        if file.parent != PROTOCOLS
        for module in imported(file)
        if module.split(".")[1] not in allowed
    }
    assert wrong == set()


def test_the_protocols_of_claims_import_methods_scenarios_and_what_these_import() -> None:
    allowed = {*ROOMS[: ROOMS.index("learning") + 1], "strategies", "scenarios"}
    found = {module.split(".")[1] for file in files_of(PROTOCOLS) for module in imported(file)}
    assert found <= allowed


def test_no_file_imports_in_a_circle() -> None:
    """The files of the core can be ordered so that each imports only earlier ones, on any line."""
    modules = {}
    for file in files_of(ROOT / "clbench"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    needs = {name: {m for m in imported(file) if m in modules and m != name} for name, file in modules.items()}
    # A room's __init__ holds only a docstring, except in the command line's room.
    for name in needs:
        needs[name] -= {f"clbench.{room}" for room in ROOMS if name != "clbench.__main__"}
    # `import clbench` itself names every room, for type checkers; nobody imports it from inside.
    needs["clbench"] = set()
    while needs:
        free = {name for name, wanted in needs.items() if not wanted & needs.keys()}
        assert free, f"in a circle: {sorted(needs)}"
        needs = {name: wanted - free for name, wanted in needs.items() if name not in free}


def python(*arguments: str, cwd: Path) -> str:
    """Run a fresh Python in a folder and return its output."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=120).stdout


def loaded(statement: str, cwd: Path) -> set[str]:
    """Return the modules that a statement adds to those of a fresh interpreter."""
    return set(
        python(
            "-c", f"import sys\nhad = {{*sys.modules}}\n{statement}\nprint(*{{*sys.modules}} - had)", cwd=cwd
        ).split()
    )


def test_import_clbench_loads_no_module_of_another_package(tmp_path: Path) -> None:
    tops = {name.split(".")[0] for name in loaded("import clbench", tmp_path)}
    assert tops - sys.stdlib_module_names == {"clbench"}


@pytest.mark.parametrize("sweep", ["import clbench; clbench.sweep", "import clbench.many.sweeps"])
def test_a_sweep_from_python_loads_nothing_of_the_command_line(sweep: str, tmp_path: Path) -> None:
    found = loaded(sweep, tmp_path)
    assert "clbench.many.sweeps" in found
    assert not {"typer", "click", "clbench.cli"} & found


def test_the_reports_load_no_torch(tmp_path: Path) -> None:
    names = [f"clbench.reports.{file.stem}" for file in (ROOT / "reports").glob("*.py") if file.stem != "__init__"]
    found = loaded(f"import {', '.join(sorted(names))}", tmp_path)
    assert set(names) <= found
    assert not {"torch", "torchvision", "avalanche", "typer"} & found


@pytest.mark.alone
def test_the_help_is_shown_in_less_than_four_tenths_of_the_time_that_torch_takes_to_import(tmp_path: Path) -> None:
    """The two take turns, so that what else the machine does slows both."""
    seconds: dict[tuple[str, ...], list[float]] = {("-m", "clbench", "--help"): [], ("-c", "import torch"): []}
    for _ in range(5):
        for arguments, taken in seconds.items():
            started = time.perf_counter()
            python(*arguments, cwd=tmp_path)
            taken.append(time.perf_counter() - started)
    of_help, of_torch = map(statistics.median, seconds.values())
    assert of_help / of_torch < 0.4, seconds


# A module inside a declared package that imports another one.
BEHIND = {"torch.utils.tensorboard": "tensorboard"}
# Packages for the tests, the checks and the site; no part of the package imports them.
TOOLS = {"dev", "docs"}


def requirement(text: str) -> str:
    """Return the package that a requirement names, as `pip` compares names: pillow of "Pillow>=10"."""
    (name,) = re.findall(r"^[\w.-]+", text)
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def packages() -> set[str]:
    """The packages that the four folders import on any line, by the names under which they are installed."""
    installed, found = metadata.packages_distributions(), set()
    for file in (file for folder in ("clbench", *BESIDE) for file in files_of(ROOT / folder)):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top != "clbench":
                    # A package that is not installed here, such as wandb, goes by the name of its module.
                    found |= {requirement(BEHIND.get(name) or installed.get(top, [top])[0])}
    return found


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    declared: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return declared


def test_every_package_that_is_imported_is_declared_and_the_other_way_round(
    packages: set[str], project: dict[str, Any]
) -> None:
    assert {"torch", "pillow", "avalanche-lib"} <= packages
    features = [name for name in project["optional-dependencies"] if name not in TOOLS]
    declared = [*project["dependencies"], *(t for name in features for t in project["optional-dependencies"][name])]
    assert {requirement(text) for text in declared} == packages
