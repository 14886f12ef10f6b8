"""A scenario or a data set that contradicts itself is refused at every door, by what is wrong in it.

Each row of the tables breaks one thing of a sound scenario of 4 classes in 2 tasks, 60 training and 60 test images.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clbench
from clbench import ImageSet
from clbench.data.scenario import Scenario
from clbench.scenarios import dataset_from_arrays, split
from clbench.scenarios.datasets import fingerprint
from clbench.scenarios.domains import permuted, rotated

FAST: dict[str, Any] = {"model": "mlp:4", "epochs": 1, "batch_size": 20, "threads": 1}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a folder of its own for runs."""
    monkeypatch.chdir(tmp_path)


def dataset() -> Any:
    """Images that tell their class by their brightness, no two of them alike."""
    labels = np.arange(4).repeat(30)
    images = (50 * labels[:, None, None] + np.random.default_rng(0).integers(0, 60, (120, 8, 8))).astype(np.uint8)
    return dataset_from_arrays(images[::2], labels[::2], images[1::2], labels[1::2], name="made")


def sound(**options: Any) -> Scenario:
    made: Scenario = split(dataset(), tasks=2, **options)
    return made


def task(s: Scenario, at: int, **changes: Any) -> Scenario:
    """The scenario with another task."""
    tasks = list(s.tasks)
    tasks[at] = replace(tasks[at], **changes)
    return replace(s, tasks=tasks)


def viewed(s: Scenario, part: str, **changes: Any) -> Scenario:
    """The scenario with other training or test images, of which its views are."""
    images = replace(getattr(s, part), **changes)
    views = ["train", "validation"] if part == "train" else ["test"]
    tasks = [replace(t, **{v: ImageSet(images, getattr(t, v).ids) for v in views}) for t in s.tasks]
    return replace(s, **{part: images}, tasks=tasks)


def ids(s: Scenario, part: str, *values: int) -> Scenario:
    """The scenario whose first task has a view of these rows."""
    source = s.test if part == "test" else s.train
    return task(s, 0, **{part: ImageSet(source, torch.tensor(values, dtype=torch.int64))})


def dark(s: Scenario) -> Any:
    return replace(s.train, images=s.train.images // 2)


def noise(s: Scenario) -> Any:
    return replace(s.test, images=255 - s.test.images)


WRONG: dict[str, tuple[Callable[[Scenario], Scenario], str]] = {
    # Views that are not what is read
    "tested on training views": (lambda s: task(s, 0, test=s.tasks[0].train), "scenario.tested_on_training()"),
    "a view of other test images": (lambda s: task(s, 1, test=ImageSet(noise(s), s.tasks[1].test.ids)), "the test"),
    "a view of other training images": (lambda s: task(s, 0, train=ImageSet(dark(s), s.tasks[0].train.ids)), "train"),
    "training images exchanged beside the views": (lambda s: replace(s, train=dark(s)), "no view of scenario.train"),
    "test images exchanged beside the views": (lambda s: replace(s, test=noise(s)), "no view of scenario.test"),
    "validation among the test images": (lambda s: task(s, 0, validation=s.tasks[0].test), "the validation images"),
    "ids in the place of a view": (lambda s: task(s, 0, test=s.tasks[0].test.ids), "the test images of task 0"),
    "None in the place of a view": (lambda s: task(s, 0, validation=None), "None, no view of scenario.train"),
    # Ids
    "ids beyond the images": (lambda s: ids(s, "test", 0, 9999), "ids from 0 to 9999; 0..59 are accepted"),
    "negative ids": (lambda s: ids(s, "train", -1), "ids from -1 to -1"),
    "no training image": (lambda s: ids(s, "train"), "task 0 has no training image"),
    "no test image": (lambda s: ids(s, "test"), "task 0 has no test image"),
    "ids as int32": (lambda s: task(s, 0, test=ImageSet(s.test, torch.tensor([0], dtype=torch.int32))), "the ids"),
    "test images of another task": (lambda s: task(s, 0, test=s.tasks[1].test), "gives to task 1"),
    "training images of another task": (lambda s: task(s, 1, train=s.tasks[0].train), "gives to task 0"),
    "validation that is trained on": (lambda s: task(s, 0, validation=s.tasks[0].train), "some of its validation"),
    # Labels, classes, tasks
    "labels that are all 0": (lambda s: viewed(s, "train", labels=s.train.labels * 0), "label 0 for an image of class"),
    "labels beyond the outputs": (lambda s: viewed(s, "test", labels=s.test.labels + 9), "label 9"),
    "labels of -1": (lambda s: viewed(s, "train", labels=s.train.labels * 0 - 1), "label -1"),
    "labels as floats": (lambda s: viewed(s, "train", labels=s.train.labels.float()), "train.labels are torch.float32"),
    "a label too few": (lambda s: viewed(s, "test", labels=s.test.labels[1:]), "test.labels are torch.int64 [59]"),
    "classes without a name": (lambda s: viewed(s, "train", classes=s.train.classes + 4), "classes beyond the 4"),
    "tasks that are all 0": (lambda s: viewed(s, "train", tasks=s.train.tasks * 0), "gives to task 0"),
    "labels as a list": (lambda s: viewed(s, "train", labels=s.train.labels.tolist()), "train.labels are [0"),
    # Images and their normalisation
    "floats": (lambda s: viewed(s, "train", images=s.train.images / 255), "torch.float32"),
    "images without channels": (lambda s: viewed(s, "train", images=s.train.images[:, 0]), "[60, 8, 8]"),
    "channels last": (lambda s: viewed(s, "train", images=s.train.images.movedim(1, 3)), "one shape is accepted"),
    "test images of another size": (lambda s: viewed(s, "test", images=s.test.images[:, :, :4]), "one shape"),
    "no test data": (lambda s: replace(s, test=None), "the scenario's test is None"),
    "a mean for two channels": (lambda s: replace(s, mean=(0.0, 0.0)), "a number for each of 1"),
    "a mean that is text": (lambda s: replace(s, mean="grey"), "mean='grey'"),
    "no deviation": (lambda s: replace(s, std=()), "a number for each of 1"),
    # Tasks
    "no tasks": (lambda s: replace(s, tasks=[]), "the scenario has no task"),
    "tasks that are none": (lambda s: replace(s, tasks=None), "tasks=None; a list of Task"),
    "tasks in reverse": (lambda s: replace(s, tasks=s.tasks[::-1]), "task 0 of the scenario has the index 1"),
    "an index twice": (lambda s: task(s, 1, index=0), "task 1 of the scenario has the index 0"),
    "outputs with a gap": (lambda s: task(s, 1, outputs=slice(3, 5)), "without a gap after the 2 of earlier tasks"),
    "outputs of another task": (lambda s: task(s, 1, outputs=slice(0, 2)), "two classes share an output"),
    "outputs too few": (lambda s: task(s, 1, outputs=slice(2, 3)), "one for each of its 2 classes"),
    "outputs without a beginning": (lambda s: task(s, 0, outputs=slice(None, 2)), "outputs=slice(None, 2"),
    "outputs as a list": (lambda s: task(s, 0, outputs=[0, 1]), "a slice"),
    "a class twice": (lambda s: task(s, 0, classes=(0, 0)), "task 0 has the classes"),
    "no class": (lambda s: task(s, 0, classes=()), "task 0 has the classes ()"),
    "a class in two tasks": (lambda s: task(s, 1, classes=(0, 3)), "class 0 has the outputs 0 and 2"),
    "classes exchanged": (lambda s: task(s, 0, classes=(1, 0)), "label 0 for an image of class 0"),
    "classes as text": (lambda s: task(s, 0, classes=("a", "b")), "task 0 has the classes ('a', 'b')"),
    # Names
    "names too few": (lambda s: replace(s, class_names=("a", "b")), "one or more of 0..1, which class_names names"),
    "names that are numbers": (lambda s: replace(s, class_names=(0, 1, 2, 3)), "a tuple of texts"),
    "a name with a zero byte": (lambda s: replace(s, name="a\0b"), "the scenario's name"),
    "no name": (lambda s: replace(s, name=""), "the scenario's name is ''"),
    "another setting": (lambda s: replace(s, setting="blurry"), "setting is 'blurry'; class, task, domain"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_scenario_that_contradicts_itself_is_refused_before_anything_is_written(what: str, refused: Any) -> None:
    change, words = WRONG[what]
    with refused(words):
        clbench.run(change(sound()), "naive", out="never", **FAST)
    assert not Path("never").exists()


class ByHand(clbench.ScenarioSpec):
    """A scenario whose build() gives another view."""

    def build(self, config: Any) -> Scenario:
        s = sound()
        return task(s, 0, test=s.tasks[0].train)


def test_every_door_refuses_it(refused: Any) -> None:
    s = sound(validation=0.2)
    wrong = task(s, 0, train=ImageSet(dark(s), s.tasks[0].train.ids))
    doors: dict[str, Callable[[], Any]] = {
        "run": lambda: clbench.run(wrong, "naive", **FAST),
        "compare": lambda: clbench.compare(wrong, ["naive", "joint"], seeds=1, **FAST),
        "tune": lambda: clbench.tune(wrong, "naive", protocol="oracle", trials=1, **FAST),
        "check": lambda: wrong.check(),
        "avalanche": lambda: __import__("clbench.avalanche.scenarios", fromlist=["_"]).to_benchmark(wrong),
    }
    for door in doors.values():
        with refused("the train images of task 0 are no view of scenario.train"):
            door()
    with refused("the test images of task 0 are no view of scenario.test"):
        clbench.run(ByHand, "naive", **FAST)
    with refused("task 1 has the classes (2, 3)"):
        replace(s, class_names=("a", "b")).describe()


def test_training_and_test_images_are_not_added(refused: Any) -> None:
    first = sound(validation=0.2).tasks[0]
    assert len(first.train + first.validation) == 30
    with refused("a view has images of one split"):
        first.train + first.test


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_what_is_made_by_hand_without_a_contradiction_runs(setting: str, tmp_path: Path) -> None:
    s = sound(setting=setting, validation=0.2)
    for made in (
        s,
        s.tested_on_training(),
        viewed(s, "test", images=255 - s.test.images),
        task(s, 0, train=s.tasks[0].train.subset(range(5)), validation=s.tasks[0].validation.subset([0])),
        task(s, 1, train=s.tasks[1].train + s.tasks[1].train, classes=list(s.tasks[1].classes)),
        replace(s, mean=[np.float32(0.5)], std=np.array([0.25]), tasks=tuple(s.tasks)),
        split(dataset(), tasks=2, class_order=[3, 1]),
    ):
        made.check()
    assert (
        clbench.run(viewed(s, "test", images=255 - s.test.images), "naive", out=tmp_path / "o", **FAST).status == "done"
    )


def test_a_fingerprint_that_is_asked_for_is_compared(refused: Any) -> None:
    s = sound()
    with refused("data_fingerprint='abc' given", s.digest()):
        clbench.run(s, "naive", data_fingerprint="abc", **FAST)
    assert clbench.run(s, "naive", data_fingerprint=s.digest(), **FAST).status == "done"


# Data sets

ARRAYS: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "test labels of -1": (lambda d: {"y_test": np.where(np.arange(60) < 9, -1, d.y_test)}, "labels from -1 to 3"),
    "training labels of -1": (lambda d: {"y_train": d.y_train - 1}, "y_train has labels from -1 to 2"),
    "labels beyond the names": (lambda d: {"y_train": d.y_train + 1}, "labels from 1 to 4; indices into the 4"),
    "labels too few": (lambda d: {"y_train": d.y_train[:50]}, "y_train is int64 [50]; int64 [60]"),
    "test labels too few": (lambda d: {"y_test": d.y_test[:50]}, "y_test is int64 [50]"),
    "labels as floats": (lambda d: {"y_train": d.y_train + 0.4}, "y_train is float64 [60]"),
    "labels as a list": (lambda d: {"y_train": d.y_train.tolist()}, "y_train is [0, 0"),
    "images as floats": (lambda d: {"x_train": d.x_train / 255}, "x_train is float64 [60, 1, 8, 8]"),
    "channels last": (
        lambda d: {part: getattr(d, part).transpose(0, 2, 3, 1) for part in ("x_train", "x_test")},
        "8x8x1",
    ),
    "no channels": (lambda d: {"x_test": d.x_test[:, 0]}, "x_test is uint8 [60, 8, 8]"),
    "no images": (lambda d: {"x_test": d.x_test[:0], "y_test": d.y_test[:0]}, "x_test is uint8 [0, 1, 8, 8]"),
    "other sizes": (lambda d: {"x_test": d.x_test[:, :, :4]}, "training images are 1x8x8, test images 1x4x8"),
    "all for validation": (lambda d: {"n_validation": 60}, "n_validation=60 of 60"),
    "more for validation": (lambda d: {"n_validation": 999}, "n_validation=999 of 60"),
    "fewer than none for validation": (lambda d: {"n_validation": -5}, "n_validation=-5 of 60"),
    "names too few": (lambda d: {"class_names": ("a", "b")}, "indices into the 2 class_names"),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_a_data_set_that_is_not_what_its_class_says_is_cut_by_nothing(what: str, refused: Any) -> None:
    change, words = ARRAYS[what]
    wrong = replace(d := dataset(), **change(d))
    for door in (
        lambda: split(wrong, tasks=2),
        lambda: rotated(wrong, 2),
        lambda: permuted(wrong, 2),
        lambda: fingerprint(wrong),
    ):
        with refused("made: ", words):
            door()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": 2, "task_sizes": [2, 2]}, "tasks=2 and task_sizes=[2, 2] exclude each other"),
        ({"tasks": 2, "class_order": [3, 2, 1, 0], "class_order_seed": 0}, "class_order and class_order_seed exclude"),
        ({"tasks": 2, "setting": "blurry"}, "unknown setting 'blurry'; accepted: class, task, domain"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], words: str, refused: Any) -> None:
    with refused(words):
        split(dataset(), **options)


def test_arrays_that_the_caller_changes_later_change_no_data_set() -> None:
    """The caller fills one buffer again and again."""
    d = dataset()
    buffers = [d.x_train.copy(), d.y_train.copy(), d.x_test.copy(), d.y_test.copy()]
    made, tensors = dataset_from_arrays(*buffers), dataset_from_arrays(*map(torch.from_numpy, buffers))
    before = made.fingerprint
    for buffer in buffers:
        buffer[:] = 0
    for each in (made, tensors):
        assert np.array_equal(each.x_train, d.x_train)
        assert np.array_equal(each.x_test, d.x_test)
        assert np.array_equal(each.y_train, d.y_train)
        assert each.fingerprint == before == d.fingerprint
    # A write into the data set itself gives it another digest.
    made.x_train[:] = made.x_train[:, :, ::-1].copy()
    assert made.fingerprint != before
    made.x_train[:] = d.x_train
    assert made.fingerprint == before


@pytest.mark.parametrize("change", [permuted, rotated])
def test_changed_pixels_leave_a_validation_split_out_of_the_training(change: Any) -> None:
    """60 images, the last 12 for validation: each of 2 tasks trains on its 48, and row t * 48 + i is image i."""
    d = dataset()
    order = np.random.default_rng(1).permutation(60)
    d = replace(d, x_train=d.x_train[order].copy(), y_train=d.y_train[order].copy())
    held, alone = replace(d, n_validation=12), replace(d, x_train=d.x_train[:48], y_train=d.y_train[:48])
    s, without = (split(change(each, 2), tasks=2, setting="domain") for each in (held, alone))
    for t, u in zip(s.tasks, without.tasks, strict=True):
        assert torch.equal(t.train.images, u.train.images)
        assert torch.equal(t.test.images, u.test.images)
        assert len(t.validation) == 12
    (of_task_0, of_task_1) = (sorted(t.validation.ids.tolist()) for t in s.tasks)
    assert of_task_0 == list(range(96, 108))
    assert of_task_1 == list(range(108, 120))
    first = {image.tobytes() for image in s.tasks[0].validation.images.numpy()}
    assert first == {image.tobytes() for image in d.x_train[48:]}


def test_other_names_of_the_classes_are_said_where_a_run_is_reused(tmp_path: Path) -> None:
    s = sound()
    clbench.run(s, "naive", out=tmp_path / "o", **FAST)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        clbench.run(replace(s, class_names=("0", "dog", "2", "3")), "naive", out=tmp_path / "o", **FAST)
    assert any("reused" in str(each.message) and "(1, not dog)" in str(each.message) for each in told)
