"""Files of one's own by their bare names, what is told of them, and what is left aside."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clbench.cli import main
from clbench.running.resolve import prepare, resolve
from clbench.scenarios import load_dataset


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with vectors.npz and photos/{cat,dog}/*.png, which is where the test is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    labels = np.arange(40) % 4
    np.savez(
        "vectors.npz",
        x_train=draw.normal(size=(40, 16)),
        y_train=labels,
        x_test=draw.normal(size=(40, 16)),
        y_test=labels,
    )
    for kind in ("cat", "dog"):
        for index in range(5):
            file = Path("photos", kind, f"{index}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return tmp_path


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit code and output of a command."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    told = capsys.readouterr()
    return int(caught.value.code or 0), told.out, told.err


def test_a_packed_file_is_a_scenario_by_its_bare_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, "data", "pack", "photos", "--to", "photos-8.npy", "--test-share", "0.2")[0] == 0
    made = prepare(resolve("photos-8.npy", "naive", {"tasks": 2}))[1]
    assert [len(task.train) for task in made.tasks] == [4, 4]


@pytest.mark.parametrize("name", ["no.npy", "no.csv", "no.tar", "no.parquet", "NO.NPZ"])
def test_a_file_that_is_not_there_is_no_unknown_scenario(name: str, place: Path, refused: Any) -> None:
    with refused("there is no file or folder", name):
        prepare(resolve(name, "naive", {"tasks": 2}))


def test_vectors_are_told_by_their_shape(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ended(capsys, "data", "check", "vectors.npz", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["layout"] == "floats of the shape [16]"
    assert (told["images"]["train"], told["sizes"], told["broken"]) == (40, 0, {})


@pytest.mark.parametrize("text", ["Filename,Species\na/0.png,cat\n", "0.png,cat\n1.png,dog\n"])
def test_a_table_that_is_left_aside_is_named(text: str, place: Path) -> None:
    Path("photos/labels.csv").write_text(text)
    with pytest.warns(UserWarning, match="labels.csv is left aside, and folders are the classes; columns=image=NAME"):
        data = load_dataset("photos", "data", test_share=0.2)
    assert data.class_names == ("cat", "dog")


def test_square_floats_are_said_to_be_signals(place: Path) -> None:
    samples = np.random.default_rng(0).random((8, 6, 6))
    np.savez("square.npz", x_train=samples, y_train=np.arange(8) % 2, x_test=samples + 1, y_test=np.arange(8) % 2)
    with pytest.warns(
        UserWarning, match=r"taken as 6 channels of 6 numbers each; grey images have the shape \[1, 6, 6\]"
    ):
        load_dataset("square.npz", "data")


def test_one_folder_stands_in_a_stream_once(place: Path, refused: Any) -> None:
    with refused("photos", "more than once"):
        prepare(resolve("stream[photos[test_share=0.2],./photos[test_share=0.2]]", "naive", {}))


def test_a_domain_is_chosen_once(place: Path, refused: Any) -> None:
    Path("photos").rename("art")
    Path("all").mkdir()
    for domain in ("art", "sketch"):
        for kind in ("cat", "dog"):
            (Path("all") / domain / kind).mkdir(parents=True)
    with refused("domain sketch", "more than once"):
        prepare(resolve("domains[path=all,domains=[sketch,sketch]]", "naive", {}))
