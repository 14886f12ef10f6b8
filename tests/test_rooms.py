"""The rooms of the house: which may import which, what an import costs, and a checkout beside an installed copy."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up; a room may import itself and the rooms before it.
ROOMS = ("config", "support", "results", "data", "models", "learning", "running", "many", "tools", "avalanche", "cli")
# Folders at the root of the repository, and the highest room that they may import.
BESIDE = {"strategies": "learning", "scenarios": "data", "reports": "results"}
# What one published protocol alone needs of a strategy or a scenario lies beside its numbers, loaded by its name only.
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
