"""Labels of every kind, and classes by their names wherever their numbers are accepted.

Expected classes are the numbers that the labels were made from.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clbench.cli import main
from clbench.running.resolve import prepare, resolve
from clbench.scenarios import dataset_from_arrays, load_dataset, split

X = np.random.default_rng(0).integers(0, 256, (24, 4, 4), dtype=np.uint8)
Y = np.arange(24) % 3
NAMES = np.array(["ant", "bee", "cat"])

KINDS: dict[str, Any] = {
    "int8": Y.astype(np.int8),
    "uint64": Y.astype(np.uint64),
    "[N, 1]": Y[:, None],
    "[N, 1] of text": NAMES[Y][:, None],
    "whole floats": Y.astype(np.float32),
    "whole floats [N, 1]": Y.astype(float)[:, None],
    "one-hot": np.eye(3, dtype=np.uint8)[Y],
    "one-hot floats": np.eye(3)[Y],
    "one-hot bool": np.eye(3, dtype=bool)[Y],
    "one-hot with a column too many": np.eye(5)[Y],
    "text": NAMES[Y],
    "bytes": NAMES[Y].astype("S"),
    "negative": Y - 2,
}
IN_PYTHON: dict[str, Any] = {
    "a list": Y.tolist(),
    "a list of text": NAMES[Y].tolist(),
    "objects that are text": NAMES[Y].astype(object),
    "objects that are numbers": Y.astype(object),
}


@pytest.mark.parametrize("kind", [*KINDS, *IN_PYTHON])
def test_labels_of_every_kind_become_the_classes_they_stand_for(kind: str, tmp_path: Path) -> None:
    labels = {**KINDS, **IN_PYTHON}[kind]
    test = labels[:12]
    read = [dataset_from_arrays(X, labels, X[::-1][:12], test)]
    if kind in KINDS:
        np.savez(tmp_path / "own.npz", x_train=X, y_train=labels, x_test=X[::-1][:12], y_test=test)
        read.append(load_dataset(tmp_path / "own.npz", "nowhere"))
    for data in read:
        assert data.y_train.tolist() == Y.tolist()
        assert data.y_test.tolist() == Y[:12].tolist()
        if "text" in kind or kind == "bytes":
            assert data.class_names == tuple(NAMES)


def test_two_classes_as_bool_are_0_and_1() -> None:
    data = dataset_from_arrays(X, Y > 0, X, Y > 0)
    assert data.y_train.tolist() == (Y > 0).astype(int).tolist()


def test_text_is_in_natural_order_or_in_that_of_class_names(tmp_path: Path, refused: Any) -> None:
    text = np.array(["c10", "c2", "c1"])[Y]
    assert dataset_from_arrays(X, text, X, text).class_names == ("c1", "c2", "c10")
    data = dataset_from_arrays(X, text, X, text, class_names=["c10", "c2", "c1"])
    assert (data.class_names, data.y_train.tolist()) == (("c10", "c2", "c1"), Y.tolist())
    table = {"c1": "one", "c10": "ten", "c2": "two"}
    assert dataset_from_arrays(X, text, X, text, class_names=table).class_names == ("one", "two", "ten")
    np.savez(tmp_path / "own.npz", x_train=X, y_train=text, x_test=X, y_test=text, class_names=["c2", "c1", "c10"])
    assert load_dataset(tmp_path / "own.npz", "nowhere").class_names == ("c2", "c1", "c10")
    with refused("the labels are text, and class_names has one, two, ten", "the same names in any order"):
        dataset_from_arrays(X, text, X, text, class_names=["one", "two", "ten"])
    with refused("only one of y_train and y_test has c10"):
        dataset_from_arrays(X, text, X[:2], text[1:3])


def test_what_a_mac_adds_to_an_archive_is_no_matter(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    with zipfile.ZipFile(tmp_path / "own.npz", "a") as archive:
        archive.writestr("__MACOSX/._x_train.npy", b"a fork")
    assert load_dataset(tmp_path / "own.npz", "nowhere").y_train.tolist() == Y.tolist()


# Classes by name


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Data of the classes ant, bee, cat and 7."""
    y = np.arange(24) % 4
    text = np.array(["ant", "bee", "cat", "7"])[y]
    names = ["ant", "bee", "cat", "7"]
    np.savez(tmp_path / "own.npz", x_train=X, y_train=text, x_test=X, y_test=text, class_names=names)
    return tmp_path / "own.npz"


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ("cat,ant,7,bee", [2, 0, 3, 1]),
        ("cat, ant ,7, bee", [2, 0, 3, 1]),
        (["cat", "ant", "7", "bee"], [2, 0, 3, 1]),
        (("cat", "ant"), [2, 0]),
        ("cat,1", [2, 1]),
        (["cat", 1], [2, 1]),
        ("cat", [2]),
        ([3, 0], [3, 0]),
        ("3,0", [3, 0]),
    ],
    ids=str,
)
def test_classes_in_order_by_their_names(given: Any, order: list[int], own: Path) -> None:
    assert split(load_dataset(own, "nowhere"), tasks=1, class_order=given).class_order == order
    config = resolve(own, "naive", {"tasks": 1, "class_order": given})
    assert prepare(config)[1].class_order == order


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("cat,bee,antt", ("unknown class of own 'antt'", "did you mean 'ant'")),
        (["cat", "dog"], ("unknown class of own 'dog'", "ant, bee, cat")),
        ("catt", ("unknown class order 'catt'", "did you mean 'cat'")),
        ("cat,cat", ("class_order names a class twice",)),
        ("cat,2", ("class_order names a class twice",)),
        ("cat,9", ("class_order names class 9; distinct classes of 0..3",)),
        ("cat,", ("unknown class of own ''",)),
    ],
    ids=str,
)
def test_a_class_that_is_not_there_is_named(given: Any, words: tuple[str, ...], own: Path, refused: Any) -> None:
    with refused(*words):
        split(load_dataset(own, "nowhere"), tasks=1, class_order=given)


def test_the_command_line_takes_names_and_shows_them(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["describe", str(own), "--class-order", "cat,ant,bee,7", "--tasks", "2", "--json"])
    assert ended.value.code == 0
    assert [task["names"] for task in json.loads(capsys.readouterr().out)["tasks"]] == [["cat", "ant"], ["bee", "7"]]
