"""A planned run that is refused before it begins leaves no folder, and no row that looks like one still to be done."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

import clbench
from clbench.config.errors import ConfigError
from clbench.many.compare import plan
from clbench.many.execution import run_planned
from clbench.many.watching import Watch
from clbench.running.folder import MARK, RunFolder, withdraw

SMALL = {"model": "mlp:4", "epochs": 1, "tasks": 2, "references": False}


def write(file: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 255, (16, 4, 4), dtype=np.uint8), np.arange(16) % 4
    np.savez(file, x_train=images, y_train=labels, x_test=images[:8, ::-1], y_test=labels[:8])


def folders(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_dir()]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_runs_whose_data_changed_after_they_were_planned_leave_nothing(tmp_path: Path, jobs: int) -> None:
    write(tmp_path / "mine.npz", 0)
    out = tmp_path / "runs"
    planned = plan(tmp_path / "mine.npz", ["naive", "er"], seeds=2, out=out, **SMALL)
    write(tmp_path / "mine.npz", 1)
    outcomes = list(run_planned(planned, jobs=jobs))
    assert ["were changed" in str(outcome.error) for outcome in outcomes] == [True] * 4
    assert folders(out) == []
    assert Watch(out).look() == []


def test_a_run_that_is_refused_leaves_what_another_run_beside_it_wrote(tmp_path: Path) -> None:
    """The first run is done; the second one finds a file where its folder should be."""
    planned = plan("split-mnist-5k", ["naive"], seeds=2, out=tmp_path, limit=2, **SMALL | {"tasks": 5})
    planned[1].folder.parent.mkdir(parents=True)
    planned[1].folder.write_text("in the way")
    first, second = list(run_planned(planned))
    assert first.error is None
    assert "in the way" not in str(second.error)
    assert str(planned[1].folder) in str(second.error)
    assert [run.status for run in Watch(tmp_path).look()] == ["done"]
    assert planned[1].folder.read_text() == "in the way"


def test_a_comparison_that_is_refused_as_a_whole_leaves_nothing(tmp_path: Path) -> None:
    """A worker process can't import a class from a module that is not in a file."""
    planned = plan("split-mnist-5k", [_of_no_file()], seeds=2, out=tmp_path, limit=2, **SMALL | {"tasks": 5})
    with pytest.raises(ConfigError, match="can't be sent to worker processes"):
        list(run_planned(planned, jobs=2))
    assert folders(tmp_path) == []


def _of_no_file() -> type[clbench.Strategy]:
    module = types.ModuleType("of_no_file")
    sys.modules["of_no_file"] = module
    traits = clbench.Traits(family="replay")
    cls = type("Own", (clbench.Strategy,), {"__module__": "of_no_file", "__doc__": "Nothing.", "traits": traits})
    module.Own = cls
    return cls


def test_an_interrupted_comparison_keeps_its_planned_runs_to_go_on_with(tmp_path: Path) -> None:
    planned = plan("split-mnist-5k", ["naive"], seeds=2, out=tmp_path, limit=2, **SMALL | {"tasks": 5})
    going = run_planned(planned)
    next(going)
    going.close()
    assert [run.status for run in Watch(tmp_path).look()] == ["left", "done"]


def test_a_refused_run_takes_the_folders_that_it_made_with_it_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with RunFolder(tmp_path / "mine" / "a" / "b").lock():
        assert (tmp_path / "mine" / "a" / "b" / MARK).exists()
    assert folders(tmp_path) == [tmp_path / "mine"]


@pytest.mark.parametrize("name", ["run.json", "notes.txt", ".lease", "checkpoint.pt"])
def test_a_folder_in_which_there_is_anything_stays(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for file in (MARK, name):
        (folder / file).touch()
    withdraw([folder, tmp_path])
    assert sorted(path.name for path in folder.iterdir()) == sorted([MARK, name])
