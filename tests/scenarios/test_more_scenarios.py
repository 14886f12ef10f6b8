"""Permuted, rotated, blurry, long-tailed and few-shot scenarios."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import clbench
from clbench.running.resolve import prepare, resolve
from clbench.scenarios import dataset_from_arrays, load_dataset, split
from clbench.scenarios.domains import permuted, rotated

# Settings under which a few digits are learnt, and forgotten, in a second.
LEARN = {"model": "mlp:64", "epochs": 3, "batch_size": 10, "optimizer": "adam", "lr": 0.003}


@pytest.fixture(scope="module")
def few(digits: Any) -> Any:
    """The first 4 images of each class for training and 2 for testing, as they are."""

    def first(labels: Any, n: int) -> Any:
        return np.concatenate([np.flatnonzero(labels == c)[:n] for c in range(10)])

    train, test = first(digits.y_train, 4), first(digits.y_test, 2)
    return replace(
        digits,
        x_train=digits.x_train[train],
        y_train=digits.y_train[train],
        x_test=digits.x_test[test],
        y_test=digits.y_test[test],
    )


def positions(side: int = 28) -> Any:
    """Two images, one for each of two classes, that encode every pixel's place: row and column, each below 256."""
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    images = np.stack([rows, columns])[:, None]
    return dataset_from_arrays(images, [0, 1], images, [0, 1], name="positions")


def whole(data: Any) -> Any:
    """Return a data set whose images are arrays."""
    return replace(data, x_train=np.asarray(data.x_train), x_test=np.asarray(data.x_test))


def place(images: Any) -> Any:
    """Return for each pixel of the two images the place it came from."""
    return (images[0].astype(int) * images.shape[-1] + images[1]).ravel()


# Permuted and rotated


def test_a_permutation_is_a_bijection_and_the_same_for_training_and_test_images() -> None:
    """Images of row numbers and of column numbers are permuted alike, so together they tell where each pixel was."""
    made = whole(permuted(positions(), 4, seed=3))
    orders = [place(made.x_train[2 * t : 2 * t + 2]) for t in range(4)]
    for t, order in enumerate(orders):
        assert sorted(order) == list(range(28 * 28))
        assert np.array_equal(order, place(made.x_test[2 * t : 2 * t + 2]))
    assert np.array_equal(orders[0], np.arange(28 * 28))
    assert all(np.mean(a == b) < 0.02 for a, b in itertools.combinations(orders, 2))
    # Drawn by the seed alone, and a longer sequence begins like a shorter one.
    assert np.array_equal(whole(permuted(positions(), 2, seed=3)).x_train, made.x_train[:4])
    assert not np.array_equal(whole(permuted(positions(), 2, seed=4)).x_train, made.x_train[:4])


def test_channels_are_permuted_alike() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 6, 6), dtype=np.uint8)
    colour = np.concatenate([images, images, images], 1)
    made = whole(permuted(dataset_from_arrays(colour, [0, 1], colour, [0, 1]), 2))
    assert np.array_equal(made.x_train[:, 0], made.x_train[:, 1])
    assert np.array_equal(made.x_train[:, 0], made.x_train[:, 2])


def test_the_class_order_seed_draws_the_permutations_and_the_seed_does_not() -> None:
    def images(**options: Any) -> Any:
        config = resolve("permuted-mnist-5k", "naive", {"tasks": 2, "limit": 2, "offline": True, **options})
        scenario = prepare(config)[1]
        return scenario.tasks[1].train.images, scenario.tasks[1].test.images[:20]

    plain = images()
    for options, equal in (
        ({"seed": 1}, True),
        ({"class_order_seed": 0}, True),
        ({"class_order_seed": 1}, False),
        ({"class_order_seed": "per-seed", "seed": 1}, False),
    ):
        made = images(**options)
        assert [torch.equal(a, b) for a, b in zip(plain, made, strict=True)] == [equal, equal], options


def test_padding_adds_zeros_and_keeps_mean_and_deviation_right(few: Any) -> None:
    """The test measures mean and deviation of the padded images; the code derives them."""
    measured = replace(few, mean=(few.x_train.mean() / 255,), std=(few.x_train.std() / 255,))
    made = whole(permuted(measured, 2, pad=2))
    assert made.x_train.shape == (80, 1, 32, 32)
    assert np.array_equal(made.x_train[:40, :, 2:-2, 2:-2], few.x_train)
    assert made.x_train[:40].sum() == few.x_train.sum(dtype=np.int64) == made.x_train[40:].sum(dtype=np.int64)
    assert made.mean[0] == pytest.approx(made.x_train.mean() / 255)
    assert made.std[0] == pytest.approx(made.x_train.std() / 255)


def angles(made: Any) -> list[float]:
    return [float(name.partition("(")[2].removesuffix(" degrees)")) for name in made.class_names[::10]]


def test_rotations_agree_with_pillow(few: Any) -> None:
    """Pillow turns counterclockwise about the centre too; it rounds down, so it may differ by 1.

    It also treats ink on the outermost border differently, so the border is cleared.
    """
    from PIL import Image

    x_train, x_test = (np.pad(x[:, :, 1:-1, 1:-1], ((0, 0), (0, 0), (1, 1), (1, 1))) for x in (few.x_train, few.x_test))
    made = whole(rotated(replace(few, x_train=x_train, x_test=x_test), 4, seed=5))
    for part, source in ((made.x_train, x_train), (made.x_test, x_test)):
        for t, angle in enumerate(angles(made)):
            shown = part[t * len(source) : (t + 1) * len(source), 0].astype(int)
            expected = [
                np.asarray(Image.fromarray(image[0]).rotate(angle, Image.Resampling.BILINEAR), int) for image in source
            ]
            assert np.abs(shown - np.stack(expected)).max() <= 1, (t, angle)


def test_each_angle_lies_in_its_part_of_180_degrees(few: Any) -> None:
    drawn = [angles(rotated(few, 6, seed=seed)) for seed in range(3)]
    for of_seed in drawn:
        assert of_seed[0] == 0.0
        assert all(30 * t <= angle <= 30 * (t + 1) for t, angle in enumerate(of_seed))
    assert len({tuple(of_seed) for of_seed in drawn}) == 3
    assert np.array_equal(rotated(few, 2).x_train[:40], few.x_train)


@pytest.mark.parametrize("change", [permuted, rotated])
def test_ids_and_classes_are_unique_to_their_task(few: Any, change: Any) -> None:
    """Row t * N + i of the training images is image i in task t, and class 10 t + c is digit c there."""
    scenario = split(change(few, 3), tasks=3, setting="domain")
    assert scenario.n_outputs == 10
    for task in scenario.tasks:
        assert task.classes == tuple(range(10 * task.index, 10 * task.index + 10))
        assert task.train.ids.sort().values.tolist() == list(range(40 * task.index, 40 * task.index + 40))
        assert task.test.ids.tolist() == list(range(20 * task.index, 20 * task.index + 20))
        digit = torch.from_numpy(few.y_train)[task.train.ids - 40 * task.index]
        assert torch.equal(task.train.labels, digit)
        assert torch.equal(task.train.classes, digit + 10 * task.index)
        assert set(task.train.tasks.tolist()) == set(task.test.tasks.tolist()) == {task.index}
    assert scenario.describe()[2]["names"][3].startswith("3 (")
    # In the class-incremental setting each task has outputs of its own.
    assert split(change(few, 3), tasks=3).n_outputs == 30


@pytest.mark.parametrize("change", [permuted, rotated])
def test_naive_forgets_domains_and_joint_does_not(run: Any, digits: Any, change: Any) -> None:
    """Real runs on 200 test images a task, whose averages have standard errors of about 2 points."""
    scenario = split(change(digits, 4, seed=1), tasks=4, setting="domain", limit=30)
    naive, joint = (run(name, scenario, **LEARN | {"epochs": 5, "lr": 0.005}) for name in ("naive", "joint"))
    for result in (naive, joint):
        assert result.recorded.headline.matrix == "class_incremental"
        assert np.isfinite(result.accuracy).all()
        assert np.array_equal(result.accuracy, result.task_aware_accuracy)
    assert naive.accuracy[0, 0] > 0.5
    assert naive.metrics["forgetting"] > joint.metrics["forgetting"] + 0.05
    assert joint.metrics["average_accuracy"] > naive.metrics["average_accuracy"] + 0.04


@pytest.mark.parametrize("policy", ["reservoir", "balanced", "herding", "random"])
def test_memories_balance_over_task_and_class(run: Any, digits: Any, policy: str) -> None:
    """A budget of 60 is 2 exemplars for each of 30 pairs of task and class (a reservoir promises only the total)."""
    scenario = split(permuted(digits, 3), tasks=3, setting="domain", limit=5)
    strategy = "er" if policy in ("reservoir", "balanced") else "naive"
    result = run(strategy, scenario, memory_size=60, memory_policy=policy)
    record = result.record["tasks"][-1]
    assert record["n_exemplars"] == 60
    if policy != "reservoir":
        assert record["exemplars_per_class"] == {str(c): 2 for c in range(30)}


def test_what_a_permuted_scenario_refuses(refused: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(strategy: str = "naive", **options: Any) -> None:
        clbench.run("permuted-mnist-5k", strategy, out=tmp_path / "run", offline=True, **options)

    with refused("icarl", "domain", "class, task"):
        asked("icarl")
    with refused("permuted-mnist-5k", "task_sizes"):
        asked(task_sizes=[10, 10])
    with refused("permuted-mnist-5k", "class_order"):
        asked(class_order=[1, 0])
    # 7 tasks of 5,000 images, each with a label, a class and a task of 8 bytes.
    monkeypatch.setattr("clbench.scenarios.files.available_memory", lambda: 800_000)
    with refused("permuted-mnist-5k with 7 tasks", "840,000", "800,000"):
        asked(tasks=7)


def test_presets_are_domain_incremental_and_tuned_strengths_hold() -> None:
    for name in ("permuted-mnist", "permuted-mnist-5k", "rotated-mnist", "rotated-mnist-5k"):
        assert resolve(name, "naive", {}).setting == "domain"
    assert resolve("permuted-mnist", "si", {}).strategy_options["strength"] == 10.0


# Blurry boundaries


def test_blurry_shares_are_exact_and_each_image_is_used_once(digits: Any) -> None:
    """Of 100 images of each of 5 tasks 20 % are dealt out: 80 stay, and each other task gets 20 / 4 = 5."""
    scenario = split(digits, tasks=5, blurry=0.2)
    for task in scenario.tasks:
        home = torch.bincount(task.train.classes // 2, minlength=5)
        assert home.tolist() == [80 if t == task.index else 5 for t in range(5)]
        assert set(task.train.tasks.tolist()) == {task.index}
        assert set((task.test.classes // 2).tolist()) == {task.index}
    used = torch.cat([task.train.ids for task in scenario.tasks])
    assert used.sort().values.tolist() == list(range(500))
    assert [row["n_train_of_other_tasks"] for row in scenario.describe()] == [20] * 5
    assert [row["n_train_of_other_tasks"] for row in split(digits, tasks=5).describe()] == [0] * 5


def test_blurry_images_are_drawn_by_the_class_order_seed(digits: Any) -> None:
    def ids(**options: Any) -> list[int]:
        return split(digits, tasks=5, blurry=0.2, class_order=range(10), **options).tasks[0].train.ids.tolist()

    assert ids() == ids(seed=1) == ids(class_order_seed=0) != ids(class_order_seed=1)


def test_a_share_is_rounded_and_spread_as_evenly_as_it_goes(digits: Any) -> None:
    """2 classes of 7 images: 0.4 * 14 = 5.6 rounds to 6, dealt to 4 others in turn; validation images stay out."""
    scenario = split(digits, tasks=5, limit=7, blurry=0.4)
    for row, task in zip(scenario.describe(), scenario.tasks, strict=True):
        assert (row["n_train_of_other_tasks"], row["n_train"]) == (6, 14)
        home = torch.bincount(task.train.classes // 2, minlength=5)
        assert sorted(home.tolist()) == [1, 1, 2, 2, 8]
    scenario = split(digits, tasks=5, limit=10, blurry=0.25, validation=0.2)
    used = torch.cat([s.ids for task in scenario.tasks for s in (task.train, task.validation)])
    assert len(used) == len(used.unique()) == 100
    assert all(set(task.validation.classes.tolist()) == set(task.classes) for task in scenario.tasks)


@pytest.mark.parametrize("setting", ["class", "domain"])
def test_naive_and_joint_hold_with_blurry_tasks(run: Any, digits: Any, setting: str) -> None:
    scenario = split(digits, tasks=5, setting=setting, blurry=0.1, limit=30)
    outputs = {"head": "full", "loss_outputs": "all"} if setting == "class" else {}
    naive, joint = (run(name, scenario, **LEARN, **outputs) for name in ("naive", "joint"))
    # In the domain setting the two outputs are odd and even, which naive forgets less of.
    margin = 0.1 if setting == "class" else 0.02
    assert joint.metrics["average_accuracy"] > naive.metrics["average_accuracy"] + margin
    for result in (naive, joint):
        lower = np.tril_indices(5) if setting == "class" else np.indices((5, 5)).reshape(2, -1)
        assert np.isfinite(result.accuracy[tuple(lower)]).all()
        assert [task["n_train"] for task in result.record["tasks"]] == (
            [60] * 5 if result is naive else [60, 120, 180, 240, 300]
        )


def test_er_replays_in_blurry_tasks(run: Any, digits: Any) -> None:
    scenario = split(digits, tasks=5, blurry=0.1, limit=10)
    outputs = {"head": "full", "loss_outputs": "all"}
    result = run("er", scenario, memory_size=20, memory_policy="balanced", **outputs)
    assert set(result.record["tasks"][-1]["exemplars_per_class"].values()) == {2}


def test_what_blurry_tasks_refuse(run: Any, refused: Any, digits: Any) -> None:
    scenario = split(digits, tasks=5, blurry=0.1, limit=10)
    with refused("loss_outputs='seen'", "'all'", "head='full'"):
        run("naive", scenario)
    with refused("herding", "icarl", "balanced"):
        run("icarl", scenario, memory_size=20, head="full", loss_outputs="all")
    with refused("blurry=0.1", "task-incremental", "setting=class"):
        split(digits, tasks=5, setting="task", blurry=0.1)
    with refused("blurry=0.1", "one"):
        split(digits, tasks=1, blurry=0.1)


# Long-tailed classes and few-shot increments


def counts(scenario: Any) -> dict[int, int]:
    classes = torch.cat([task.train.classes for task in scenario.tasks])
    return dict(enumerate(classes.bincount(minlength=10).tolist()))


def test_long_tailed_numbers_follow_the_formula() -> None:
    """400 images a class and a factor of 100: 400 * 100^(-i/9) = 400 * 0.59948^i, worked out by hand, rounded down."""
    data = load_dataset("mnist-5k", "data", offline=True)
    expected = [400, 239, 143, 86, 51, 30, 18, 11, 6, 4]
    ordered = split(data, tasks=5, imbalance=100)
    assert list(counts(ordered).values()) == expected
    assert [row["n_train"] for row in ordered.describe()] == [639, 229, 81, 29, 10]
    assert [row["n_test"] for row in ordered.describe()] == [200] * 5
    # The tail belongs to the classes: another order of the classes shuffles the sizes of the tasks.
    shuffled = split(data, tasks=5, imbalance=100, class_order=[9, 0, 1, 8, 2, 3, 4, 5, 6, 7])
    assert list(counts(shuffled).values()) == expected
    assert [row["n_train"] for row in shuffled.describe()] == [404, 245, 229, 81, 29]
    assert list(counts(split(data, tasks=5, imbalance=1)).values()) == [400] * 10


def test_few_shot_increments_have_exactly_their_shots(digits: Any) -> None:
    """6-way base task, then 2-way 5-shot: the base keeps its 50 images a class, later classes have their first 5."""
    scenario = split(digits, task_sizes=[6, 2, 2], shots=5)
    assert list(counts(scenario).values()) == [50] * 6 + [5] * 4
    assert scenario.tasks[1].train.ids.tolist() == [*range(300, 305), *range(350, 355)]
    assert [row["n_train"] for row in scenario.describe()] == [300, 10, 10]
    assert [row["n_test"] for row in scenario.describe()] == [120, 40, 40]


@pytest.mark.parametrize(
    "options", [{"imbalance": 10.0}, {"shots": 5, "task_sizes": [4, 2, 2, 2]}], ids=["long-tailed", "few-shot"]
)
def test_naive_and_joint_hold_with_few_images(run: Any, digits: Any, options: dict[str, Any]) -> None:
    scenario = split(digits, **({"tasks": 5} | options if "shots" not in options else options))
    naive, joint = (run(name, scenario, **LEARN | {"epochs": 5}) for name in ("naive", "joint"))
    n = len(scenario.tasks)
    for result in (naive, joint):
        assert np.isfinite(result.accuracy[np.tril_indices(n)]).all()
    assert joint.metrics["average_accuracy"] > naive.metrics["average_accuracy"] + 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": 5, "validation": 0.1}, ["shots=5", "validation=0.1", "exclude"]),
        ({"shots": 5, "blurry": 0.1}, ["shots=5", "blurry=0.1", "exclude"]),
        ({"shots": 5, "imbalance": 2.0}, ["shots=5", "imbalance=2", "exclude"]),
        ({"shots": 500}, ["shots=500", "class 2", "400"]),
        ({"shots": 5, "limit": 3}, ["shots=5", "class 2", "3"]),
        ({"shots": 5, "tasks": 1}, ["shots=5", "one task"]),
        ({"shots": 0}, ["shots", "0"]),
        ({"imbalance": 500.0}, ["imbalance=500", "400"]),
        ({"imbalance": 0.5}, ["imbalance", "0.5"]),
        ({"blurry": 1.0}, ["blurry", "1.0", "less than 1"]),
    ],
)
def test_conflicts_are_refused_before_training(
    refused: Any, tmp_path: Any, options: dict[str, Any], words: list[str]
) -> None:
    with refused(*words):
        clbench.run("split-mnist-5k", "naive", out=tmp_path / "run", offline=True, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"blurry": 1.0}, {"blurry": -0.1}, {"imbalance": 0.5}, {"shots": 0}])
def test_split_refuses_what_is_out_of_range(refused: Any, digits: Any, options: dict[str, Any]) -> None:
    with refused(*map(str, options), "accepted"):
        split(digits, tasks=5, **options)


def test_a_scenario_that_was_handed_over_takes_no_new_shares(run: Any, refused: Any) -> None:
    for name, value in {"blurry": 0.1, "imbalance": 2.0, "shots": 3}.items():
        with refused(name, str(value), "split()"):
            run("naive", **{name: value})


def test_describe_shows_blurry_long_tailed_and_few_shot_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    from clbench.cli import main

    def described(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["describe", *arguments, "--offline"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert described("split-mnist-5k", "--blurry", "0.1").count("800 (80 of other tasks)") == 5
    rows = json.loads(described("split-mnist-5k", "--imbalance", "100", "--json"))["tasks"]
    assert [row["n_train"] for row in rows] == [639, 229, 81, 29, 10]
    rows = json.loads(described("split-mnist-5k", "--task-sizes", "6,2,2", "--shots", "5", "--json"))["tasks"]
    assert [row["n_train"] for row in rows] == [2400, 10, 10]
    described_permuted = json.loads(described("permuted-mnist-5k", "--tasks", "2", "--json"))
    assert described_permuted["setting"] == "domain"
    assert described_permuted["tasks"][1]["names"][3] == "3 (task 1)"
    assert math.prod(len(row["outputs"]) for row in described_permuted["tasks"]) == 100
