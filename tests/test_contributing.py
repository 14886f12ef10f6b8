"""Statements of CONTRIBUTING.md and CHANGELOG.md: examples run as they stand, and the names in them exist."""

import dataclasses
import json
import operator
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clbench
from clbench.cli import main
from clbench.config.errors import ConfigError
from clbench.learning.strategy import LOOSE
from clbench.results.result import Result
from clbench.running.resolve import prepare, resolve, scenario_class, strategy_class
from clbench.support.moved import MOVED, PUBLIC
from clbench.tools.conformance import check_strategy

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
SMALL: dict[str, Any] = {"epochs": 1, "limit": 20, "threads": 1}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def block(heading: str, language: str = "python") -> str:
    """Return the one block of a language in a section."""
    section = re.split(r"^## ", TEXT.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(found)


def title_of(code: str) -> str:
    return str(re.findall(r"^(?:class|def) (\w+)", code, re.MULTILINE)[0])


# The output of each example, and the content of the files that it writes.
CLAIMED: dict[str, tuple[str, dict[str, str]]] = {
    "Anchor": (r"-?\d\.\d+\n", {}),
    "SplitStripes": ("", {}),
    "Narrowing": (r"\d\.\d+\n", {}),
    "shades": ("", {}),
    "Database": (r"interrupted after task 2\n\[\[.*", {}),
    # 0.9 - 0.6 in float64.
    "first_task_loss": (r"0\.30000000000000004\n-?\d\.\d+\n", {}),
    "first_task": (
        r".*'figures/split-mnist-5k-class-first_task\.pdf'.*",
        {"report/report.html": "<h4>Accuracy on the first task</h4>", "report/report.md": "![first task]"},
    ),
}


# Metrics and charts stay registered, so these run in processes of their own; each takes seconds to start.
REGISTERED = ("first_task_loss", "first_task")


@pytest.mark.parametrize("code", blocks("python"), ids=title_of)
def test_each_example_runs_as_it_stands(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed, files = CLAIMED[title_of(code)]
    if title_of(code) in REGISTERED:
        command = [sys.executable, "-c", code]
        out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    else:
        Path("example.py").write_text(code)
        runpy.run_path("example.py", run_name="example")
        out = capsys.readouterr().out
    assert re.fullmatch(printed, out, re.DOTALL), out
    for file, part in files.items():
        assert part in (tmp_path / file).read_text("utf-8")


def test_the_files_and_folders_that_it_names_are_there() -> None:
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0].isalpha())
    named = set(re.findall(rf"`((?:{folders})/[\w./-]*)`", TEXT))
    examples = {"strategies/anchor.py"}
    assert len(named) > 30
    assert examples < named
    assert {name for name in named - examples if not (ROOT / name.split("PAPER")[0]).exists()} == set()


def test_the_rooms_are_listed_from_the_bottom_up() -> None:
    """The order is that of tests/test_rooms.py, which holds every import against it."""
    order = re.findall(r'"(\w+)"', (ROOT / "tests" / "test_rooms.py").read_text().split("ROOMS = (")[1].split(")")[0])
    assert re.findall(r"^\| `clbench/(\w+)/` \|", TEXT, re.MULTILINE) == order


def test_every_link_to_a_section_leads_to_one() -> None:
    headings = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", TEXT, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= headings


def test_the_strategy_runs_from_its_file_and_passes_the_conformance_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The run at the end of the example is not part of the strategy.
    Path("anchor.py").write_text(block("A strategy").split("\n\n\nresult = ")[0])
    outcomes = check_strategy("anchor.py:Anchor")
    assert len(outcomes) > 10
    assert [outcome for outcome in outcomes if outcome.status == "failed"] == []
    plain = clbench.run("split-mnist-5k", "naive", out="naive", **SMALL)
    zero = clbench.run("split-mnist-5k", "anchor.py:Anchor", out="zero", strategy_options={"strength": 0.0}, **SMALL)
    np.testing.assert_array_equal(zero.accuracy, plain.accuracy)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path with a package of the three examples, and its entry points as an installed one has them."""
    site = tmp_path_factory.mktemp("site")
    for folder in ("my_package", "my_package-1.dist-info"):
        (site / folder).mkdir()
    (site / "my_package-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    (site / "my_package" / "__init__.py").touch()
    declared: dict[str, dict[str, str]] = {}
    for heading in ("A strategy", "A scenario", "A data set"):
        for group, names in tomllib.loads(block(heading, "toml"))["project"]["entry-points"].items():
            declared.setdefault(group, {}).update(names)
            for target in names.values():
                module = target.partition(":")[0].rpartition(".")[2]
                (site / "my_package" / f"{module}.py").write_text(block(heading).split("\n\n\nresult = ")[0])
    # A data set that is none, to be refused.
    declared["clbench.datasets"]["nothing"] = "builtins:print"
    lines = [f"[{group}]\n" + "".join(f"{n} = {t}\n" for n, t in names.items()) for group, names in declared.items()]
    (site / "my_package-1.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    return site


@pytest.fixture
def command(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """The command line where the package is installed: arguments in; exit code, output and messages out."""
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return (ended.value.code, *capsys.readouterr())

    return called


def test_a_package_brings_strategy_scenario_and_data_set_by_name(command: Callable[..., tuple[Any, str, str]]) -> None:
    listed = json.loads(command("list", "--json")[1])
    assert "anchor" in [row["name"] for row in listed["strategies"]]
    assert {"split-stripes", "split-shades"} <= {row["name"] for row in listed["scenarios"]}
    record = json.loads(command("run", "split-stripes[noise=10]", "anchor", "--setting", "task", "--json")[1])
    assert record["status"] == "done"
    assert (record["config"]["noise"], record["config"]["setting"], record["config"]["epochs"]) == (10, "task", 5)
    code, _, said = command("run", "split-stripes[nois=10]", "naive")
    assert code == 2
    assert "noise" in said


def test_the_option_of_the_scenario_changes_its_images(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes are 150 bright, and noise adds at most its own value: 150 + 10 at the brightest pixel."""
    monkeypatch.syspath_prepend(str(package))
    brightest = {
        noise: int(prepare(resolve(f"split-stripes[noise={noise}]", "naive", {"threads": 1}))[1].train.images.max())
        for noise in (0, 10)
    }
    assert brightest == {0: 150, 10: 160}


def test_tasks_are_cut_from_the_data_set_with_the_options_of_every_split(
    command: Callable[..., tuple[Any, str, str]],
) -> None:
    shown = command("describe", "split-shades", "--class-order", "3,0,2,1", "--json")[1]
    tasks = json.loads(shown)["tasks"]
    assert [task["classes"] for task in tasks] == [[3, 0], [2, 1]]
    ran = command("run", "split-shades", "naive", "--limit", "5", "--json")[1]
    assert [task["n_train"] for task in json.loads(ran)["scenario"]["tasks"]] == [10, 10]


def test_a_data_set_of_a_package_is_checked(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(package))
    load = clbench.scenarios.load_dataset
    assert load("shades", tmp_path).class_names == ("black", "dark", "light", "white")
    with pytest.raises(ConfigError, match=r"--image-size 9 .* these images are 8x8"):
        load("shades", tmp_path, image_size=9)
    with pytest.raises(ConfigError, match="'nothing' is None; a Dataset"):
        load("nothing", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'shades'"):
        load("shade", tmp_path)


class Shelf(list[tuple[str, bytes | Exception]]):
    """A store in memory, which is empty, and so false, until something is saved."""

    def save_checkpoint(self, content: bytes) -> None:
        self[:] = [("latest", content)]

    def checkpoints(self) -> list[tuple[str, bytes | Exception]]:
        return list(self)

    def drop_checkpoint(self) -> None:
        self.clear()


class Interrupt(clbench.Observer):
    def task(self, task: int, row: list[float | None]) -> None:
        if task == 1:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(tmp_path: Path) -> Shelf:
    """The remains of a run that was interrupted after its second task; its folder is tmp_path/run."""
    store = Shelf()
    with pytest.raises(KeyboardInterrupt):
        clbench.run("split-mnist-5k", "naive", out=tmp_path / "run", store=store, observer=Interrupt(), **SMALL)
    assert len(store) == 1
    assert list(tmp_path.rglob("checkpoint*")) == []
    return store


def resumes(result: Result) -> list[int]:
    return [resume["task"] for resume in result.record["resumes"]]


def test_a_run_goes_on_from_a_store_of_ones_own_to_the_same_matrix(interrupted: Shelf, tmp_path: Path) -> None:
    whole = clbench.run("split-mnist-5k", "naive", out=tmp_path / "whole", **SMALL)
    result = clbench.run("split-mnist-5k", "naive", out=tmp_path / "run", store=interrupted, resume=True, **SMALL)
    assert resumes(result) == [2]
    np.testing.assert_array_equal(result.accuracy, whole.accuracy)
    assert interrupted == []


def test_force_begins_again_whatever_a_store_of_ones_own_holds(interrupted: Shelf, tmp_path: Path) -> None:
    result = clbench.run("split-mnist-5k", "naive", out=tmp_path / "run", store=interrupted, force=True, **SMALL)
    assert (result.status, resumes(result)) == ("done", [])


# The table of what moved since 0.1.0, in CHANGELOG.md


def moved() -> list[tuple[str, str, str]]:
    section = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    assert rows[0] == ("where", "in 0.1.0", "in 0.2.0")
    return [(str(where), str(was), str(now)) for where, was, now in rows[1:]]


def code(text: str, pattern: str) -> list[str]:
    """Return what stands between backquotes and begins with a pattern, up to the first bracket or space."""
    return [found for span in re.findall(r"`([^`]*)`", text) for found in re.findall(rf"^{pattern}", span)]


def test_the_changelog_names_every_module_that_moved_and_where_it_is() -> None:
    imports = [(was, now) for where, was, now in moved() if where == "any import"]
    assert code(imports[0][0], r"clbench\.(.*)") == list(PUBLIC)
    pairs = {was: now.split("`")[1] for was, now in imports[1:] if was.count("`") == 2 and "import" not in was}
    assert pairs == {f"`clbench.{was}`": f"clbench.{now}" for was, now in MOVED.items()}
    statements = [statement for _, now in imports for statement in code(now, r"from .*")]
    assert len(statements) == 2
    exec("\n".join(statements), {})


def test_the_changelog_names_every_field_by_its_group() -> None:
    """Names of a config of 0.1.0 on the left, and their places in groups on the right, in the same order."""
    config = resolve("split-mnist-5k", "naive", {"threads": 1})
    pairs = [
        pair
        for _, was, now in moved()
        if was.startswith("`config.") and "scenario_options" not in now
        for pair in zip(code(was, r"config\.(\w+)$"), code(now, r"config\.(\w+\.\w+)$"), strict=True)
    ]
    assert len(pairs) > 20
    for was, now in pairs:
        value = operator.attrgetter(now)(config)
        assert value == config.flat().get(was, value), was
        assert was in config.flat() or was == now.split(".")[1] or now == "memory.budget"


def test_the_changelog_names_the_attributes_that_strategies_declared_and_results_had() -> None:
    rows = {was: now for _, was, now in moved()}
    declared = [name for was in rows if "family = ..." in was or "memory_use" in was for name in code(was, r"(\w+)")]
    assert sorted(declared) == sorted(LOOSE)
    assert {LOOSE[name] for name in declared} <= {field.name for field in dataclasses.fields(clbench.Traits)}
    result = Result.load(ROOT / "tests" / "fixtures" / "0.1.0" / "finished")
    for was, now in rows.items():
        if was.startswith("`result."):
            assert not any(hasattr(result, name.removeprefix("result.")) for name in code(was, r"(?:result\.)?(\w+)"))
            paths = code(now, r"result\.([\w.]+)")
            assert paths
            for path in paths:
                assert operator.attrgetter(path)(result) is not None


def test_what_the_changelog_says_of_options_can_be_asked_for() -> None:
    """The left side is refused now, and a name on the right side is known."""
    rows = [(was, now) for where, was, now in moved() if where == "a script or config file"]
    asked = {strategy for was, _ in rows for strategy in code(was, r"\w+\[\w+=[^.]*\]$")}
    assert len(asked) == 6
    for strategy in asked:
        with pytest.raises(ConfigError, match="unknown option"):
            resolve("split-mnist-5k", strategy, {"threads": 1, "memory_size": 10, "iterations": 1})
    for was, _ in rows:
        for name, value in re.findall(r"`(\w+) = (\S+)`", was):
            with pytest.raises(ConfigError, match=f"unknown option .*{name}"):
                resolve("split-mnist-5k", "naive", {name: json.loads(value)})
    named = {name for _, now in rows for name in code(now, r"[a-z]+(?:\d{4}|-\w+)-[\w-]+$")}
    assert len(named) > 8
    for name in named:
        load = scenario_class if "split" in name else strategy_class
        assert load(name).__module__.startswith("clbench.reports.claims.")
