"""Photos of one's own: folders without a test, files that are broken, and what systems leave between them."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clbench
from clbench.cli import main
from clbench.config.errors import ConfigError
from clbench.running.resolve import prepare, resolve
from clbench.scenarios.datasets import Dataset, load_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))


def picture(value: int) -> bytes:
    """A picture of 8 x 8 pixels; every value below 10,000 gives another one."""
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def photos(root: Path, **numbers: int) -> Path:
    """A folder for each class, with so many pictures."""
    for place, (name, n) in enumerate(numbers.items()):
        (root / name).mkdir(parents=True)
        for i in range(n):
            (root / name / f"{i}.png").write_bytes(picture(1000 * place + i))
    return root


def keys(images: Any) -> set[bytes]:
    return {image.tobytes() for image in images}


def parts(data: Dataset) -> tuple[list[int], list[int]]:
    """Return how many training and test images each class has."""
    n = len(data.class_names)
    return np.bincount(data.y_train, minlength=n).tolist(), np.bincount(data.y_test, minlength=n).tolist()


@pytest.mark.parametrize(
    ("share", "train", "test"),
    # round(share x n) of each class by hand, at least one: of 20, 10, 3 and 2 pictures.
    [(0.2, [16, 8, 2, 1], [4, 2, 1, 1]), (0.5, [10, 5, 1, 1], [10, 5, 2, 1]), (0.01, [19, 9, 2, 1], [1, 1, 1, 1])],
)
def test_a_share_of_each_class_becomes_the_test(
    share: float, train: list[int], test: list[int], tmp_path: Path
) -> None:
    folder = photos(tmp_path / "own", owl=20, cat=10, dog=3, eel=2)
    data = load_dataset(folder, "nowhere", test_share=share)
    assert data.class_names == ("cat", "dog", "eel", "owl")
    order = [1, 2, 3, 0]
    assert parts(data) == ([train[i] for i in order], [test[i] for i in order])
    assert len(keys(data.x_train) | keys(data.x_test)) == 35
    assert not keys(data.x_train) & keys(data.x_test)


def test_the_draw_depends_on_the_pictures_alone(tmp_path: Path) -> None:
    """Other names of files and folders give the same test; a picture more moves at most one of the others."""
    first = load_dataset(photos(tmp_path / "one", cat=20, dog=10), "nowhere", test_share=0.2)
    folder = photos(tmp_path / "two", cat=20, dog=10)
    for path in list(folder.rglob("*.png")):
        path.rename(path.with_name(f"{99 - int(path.stem)}.png"))
    again = load_dataset(folder, "nowhere", test_share=0.2)
    assert keys(again.x_test) == keys(first.x_test)
    assert again.fingerprint != load_dataset(folder, "nowhere", test_share=0.3).fingerprint
    (folder / "cat/new.png").write_bytes(picture(999))
    more = load_dataset(folder, "nowhere", test_share=0.2)
    assert len(keys(first.x_test) - keys(more.x_test)) <= 1


def test_seeds_share_the_test_and_the_share_is_recorded_and_counts(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "own", cat=8, dog=8)
    small = {"tasks": 2, "model": "mlp:8", "epochs": 1, "threads": 1}
    results = [clbench.run("./own", "naive", test_share=0.25, seed=s, **small) for s in (0, 1)]
    assert [task.n_test for result in results for task in result.recorded.scenario.tasks] == [2] * 4
    assert results[0].config["test_share"] == 0.25
    assert results[0].recorded.group == results[1].recorded.group
    configs = [resolve("./own", "naive", {**small, "test_share": share}) for share in (0.25, 0.5)]
    assert configs[0].identity() != configs[1].identity()


def test_where_it_is_not_given_it_is_no_part_of_the_identity(tmp_path: Path) -> None:
    """The identity is that of a config that lacks both options, as every run of 0.1.0 does."""
    folder = photos(tmp_path / "own/train", cat=3, dog=3).parent
    (folder / "train").rename(folder / "test")
    photos(folder / "train", cat=4, dog=4)
    config, scenario = prepare(resolve(folder, "naive", {"tasks": 2, "threads": 1}))
    assert scenario.left_out == ()
    options = dict(config.scenario_options)
    assert (options.pop("test_share"), options.pop("skip_unreadable")) == (None, False)
    assert config.replace(scenario_options=options).identity() == config.identity()


def test_training_images_alone_and_a_validation_split_of_its_own(tmp_path: Path) -> None:
    folder = photos(tmp_path / "own/train", cat=10, dog=10).parent
    assert parts(load_dataset(folder, "nowhere", test_share=0.2)) == ([8, 8], [2, 2])
    for name in ("cat", "dog"):
        (folder / "val" / name).mkdir(parents=True)
        for i in range(3):
            (folder / "val" / name / f"{i}.png").write_bytes(picture(5000 + 10 * i + len(name) + ord(name[0])))
    data = load_dataset(folder, "nowhere", test_share=0.2)
    assert (parts(data), data.n_validation) == (([11, 11], [2, 2]), 6)
    assert not keys(data.x_train[-6:]) & keys(data.x_test)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = load_dataset(photos(tmp_path / "own", train=5, val=5, bus=5), "nowhere", test_share=0.2)
    assert data.class_names == ("bus", "train", "val")
    assert parts(data) == ([4, 4, 4], [1, 1, 1])


def test_files_beside_the_classes_and_what_systems_leave_are_no_matter(tmp_path: Path) -> None:
    folder = photos(tmp_path / "own", cat=5, dog=5)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "Icon\r", "._0.png", "ehthumbs.db"):
        for place in (folder, folder / "cat"):
            (place / name).write_bytes(b"litter")
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN"):
        for place in (folder, folder / "dog"):
            (place / name).mkdir()
            (place / name / "0.png").write_bytes(picture(7))
    (folder / "README.txt").write_text("photos")
    (folder / "labels.csv").write_text("0.png,cat")
    (folder / "copy.tar").write_bytes(b"of all")
    (folder / "sizes.parquet").write_bytes(b"no table")
    assert parts(load_dataset(folder, "nowhere", test_share=0.2)) == ([4, 4], [1, 1])


@pytest.mark.parametrize(
    ("numbers", "options", "words"),
    [
        (
            {"cat": 1, "dog": 5},
            {"test_share": 0.2},
            ("test_share=0.2 of the 1 images of the class cat", "none to train"),
        ),
        ({"cat": 5, "dog": 5}, {"test_share": 0.95}, ("test_share=0.95 of the 5 images", "none to train on")),
        ({"cat": 5, "dog": 5}, {}, ("if these are the classes", "--test-share 0.2", "its folders are cat, dog")),
        ({"cat": 5, "dog": 5}, {"test_share": 0.0}, ("test_share=0", "more than 0 and less than 1")),
        ({"cat": 5, "dog": 5}, {"test_share": 1.0}, ("test_share=1", "more than 0 and less than 1")),
        ({"cat": 5, "dog": 5}, {"test_share": float("nan")}, ("test_share",)),
    ],
)
def test_what_can_not_be_shared_out_is_said(
    numbers: dict[str, int], options: dict[str, Any], words: tuple[str, ...], tmp_path: Path, refused: Any
) -> None:
    with refused(*words):
        load_dataset(photos(tmp_path / "own", **numbers), "nowhere", **options)


def test_data_with_a_test_of_their_own_have_no_share(tmp_path: Path, refused: Any) -> None:
    folder = photos(tmp_path / "own/train", cat=3, dog=3).parent
    photos(folder / "test", cat=3, dog=3)
    x, y = np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8), np.arange(8) % 2
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    for path in (folder, tmp_path / "own.npz"):
        with refused("has test images of its own; leave test_share out"):
            load_dataset(path, "nowhere", test_share=0.2)
    with refused("unknown option of split-mnist-5k 'test_share'"):
        resolve("split-mnist-5k", "naive", {"test_share": 0.2})


def test_an_npz_file_of_training_images_alone_is_shared_out_too(tmp_path: Path, refused: Any) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=np.array(["cat", "dog"])[np.arange(20) % 2])
    with refused("no array 'x_test'", "x_train and y_train with test_share"):
        load_dataset(tmp_path / "own.npz", "nowhere")
    data = load_dataset(tmp_path / "own.npz", "nowhere", test_share=0.2)
    assert (data.class_names, parts(data)) == (("cat", "dog"), ([8, 8], [2, 2]))


# Broken files


DOG = ("empty.jpg", "text.png", "notes.txt", "gone.png")


def broken(folder: Path) -> list[str]:
    """Put files that can't be used between the others; return their names."""
    (folder / "cat/half.png").write_bytes(picture(1)[:60])
    (folder / "cat/cut.png").write_bytes(picture(2)[:-40])  # its header is whole
    (folder / "dog/empty.jpg").touch()
    (folder / "dog/text.png").write_text("no picture")
    (folder / "dog/notes.txt").write_text("notes")
    (folder / "dog/gone.png").symlink_to(folder / "nowhere.png")
    return ["cat/half.png", "cat/cut.png", *(f"dog/{name}" for name in DOG)]


def test_all_broken_files_are_named_at_once(tmp_path: Path) -> None:
    folder = photos(tmp_path / "own", cat=5, dog=5)
    names = broken(folder)
    for _ in range(2):  # the second time by what is cached
        with pytest.raises(ConfigError) as caught:
            load_dataset(folder, "nowhere", test_share=0.2)
        words = ["6 files of", *names, "--skip-unreadable (skip_unreadable=True) leaves them out"]
        assert [word for word in words if word not in str(caught.value)] == []


def test_of_very_many_broken_files_the_first_are_named_and_all_counted(tmp_path: Path) -> None:
    folder = photos(tmp_path / "own", cat=5, dog=5)
    for i in range(70):
        (folder / "cat" / f"x{i:02}.png").touch()
    with pytest.raises(ConfigError, match=r"70 files of .*cat/x00\.png, .*, cat/x39\.png \(.*\); and 30 more"):
        load_dataset(folder, "nowhere", test_share=0.2)


def test_broken_files_are_left_out_when_asked_with_their_number_in_the_record(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = load_dataset(photos(tmp_path / "whole", cat=5, dog=5), "nowhere", test_share=0.2)
    folder = photos(tmp_path / "own", cat=5, dog=5)
    broken(folder)
    data = load_dataset(folder, "nowhere", test_share=0.2, skip_unreadable=True)
    assert data.fingerprint == whole.fingerprint
    assert data.left_out == tuple(sorted(["cat/half.png", "cat/cut.png", *(f"dog/{n}" for n in DOG)]))
    words = "run own naive --tasks 2 --test-share 0.2 --skip-unreadable --model mlp:8 --epochs 1 --threads 1 --out run"
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 0
    assert "6 files can't be used and are left out" in capsys.readouterr().err
    result = clbench.Result.load("run")
    assert result.recorded.scenario.left_out == 6
    assert [text for text in result.warnings if "6 image files can't be used and were left out" in text]
    assert result.config["skip_unreadable"] is True


def test_a_class_that_would_be_left_without_images_is_named(tmp_path: Path, refused: Any) -> None:
    folder = photos(tmp_path / "own", cat=5, dog=1)
    (folder / "dog/0.png").write_bytes(b"")
    with refused("none of the train images of the class 'dog' can be used"):
        load_dataset(folder, "nowhere", test_share=0.2, skip_unreadable=True)
    with refused("dog/0.png is not a readable image", "leaves it out"):
        load_dataset(folder, "nowhere", test_share=0.2)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="6 files of"):
        load_dataset(folder, "nowhere", test_share=0.2)
    with refused("none of the train images of the class 'cat' can be used"):
        load_dataset(folder, "nowhere", test_share=0.2, skip_unreadable=True)


def test_a_file_that_is_repaired_is_read(tmp_path: Path) -> None:
    folder = photos(tmp_path / "own", cat=5, dog=5)
    (folder / "cat/0.png").write_bytes(b"")
    assert len(load_dataset(folder, "nowhere", test_share=0.2, skip_unreadable=True).y_train) == 7
    (folder / "cat/0.png").write_bytes(picture(0))
    assert len(load_dataset(folder, "nowhere", test_share=0.2, skip_unreadable=True).y_train) == 8


def test_a_picture_that_moves_to_another_class_is_of_that_class_in_the_same_process(tmp_path: Path) -> None:
    """The files, in order of their classes, have the same content before and after."""
    folder = photos(tmp_path / "own", cat=5, dog=5)
    options = {"tasks": 1, "test_share": 0.2}
    before = prepare(resolve(folder, "naive", options))[0].data_fingerprint
    os.rename(folder / "cat/4.png", folder / "dog/-1.png")
    assert prepare(resolve(folder, "naive", options))[0].data_fingerprint != before
