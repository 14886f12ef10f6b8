"""Scenarios: which classes are in which task, what their labels become, and whose data may be read when."""

from typing import Any

import numpy as np
import pytest
import torch

import clbench
from clbench import Strategy, Traits
from clbench.cli import main
from clbench.data.batches import Pipeline
from clbench.learning.memory import Memory
from clbench.running.resolve import prepare, resolve
from clbench.scenarios import dataset_from_arrays, split
from clbench.scenarios.class_orders import CLASS_ORDERS

SHUFFLED = [7, 3, 9, 0, 5, 1, 8, 2, 6, 4]
CUTS = [
    {"tasks": 5},
    {"task_sizes": [4, 3, 3]},
    {"task_sizes": [1] * 10},
    {"tasks": 1},
    {"tasks": 5, "class_order": SHUFFLED},
    {"task_sizes": [4, 3, 3], "class_order": SHUFFLED, "setting": "task"},
    {"tasks": 5, "class_order_seed": 3, "setting": "domain"},
    {"tasks": 2, "class_order": [8, 1, 5]},
    {"tasks": 5, "validation": 0.2, "class_order": SHUFFLED},
]


def classes_of(scenario: Any) -> list[list[int]]:
    return [list(task.classes) for task in scenario.tasks]


# Classes of each task


def test_classes_come_in_order_unless_told_otherwise(cut):
    assert classes_of(cut(tasks=5)) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert cut(tasks=5).class_order == list(range(10))


def test_sizes_may_differ_and_spare_classes_go_to_the_first_tasks(cut):
    assert classes_of(cut(task_sizes=[1, 6, 3])) == [[0], [1, 2, 3, 4, 5, 6], [7, 8, 9]]
    assert classes_of(cut(tasks=3)) == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert classes_of(cut(tasks=10)) == [[c] for c in range(10)]
    assert classes_of(cut(tasks=1)) == [list(range(10))]


def test_a_part_of_the_classes_leaves_the_others_out(cut):
    scenario = cut(class_order=[8, 1, 5], tasks=2)
    assert classes_of(scenario) == [[8, 1], [5]]
    assert scenario.n_outputs == 3
    for task in scenario.tasks:
        assert set(task.train.classes.tolist()) == set(task.classes) == set(task.test.classes.tolist())


def test_the_published_orders_are_those_of_their_recipes():
    """LUCIR, FACIL, PyCIL: numpy's seed 1993, then permutation(100). The iCaRL authors' code shuffles an array of 500
    for each of the 100 classes before it draws the order of its first run."""
    plain = np.random.RandomState(1993).permutation(100)
    assert CLASS_ORDERS["cifar100-1993"] == plain.tolist()
    generator = np.random.RandomState(1993)
    for _ in range(100):
        generator.shuffle(np.arange(500))
    first_run = np.arange(100)
    generator.shuffle(first_run)
    assert CLASS_ORDERS["cifar100-icarl"] == first_run.tolist()


@pytest.fixture(scope="module")
def hundred() -> dict[str, Any]:
    """A training and a test image of each of 100 classes."""
    images = np.arange(100, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    return {"x_train": images, "y_train": np.arange(100), "x_test": images, "y_test": np.arange(100)}


def test_a_published_order_is_asked_for_by_name(hundred):
    data = dataset_from_arrays(**hundred)
    scenario = split(data, tasks=10, class_order="cifar100-1993")
    assert classes_of(scenario)[0] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert split(data, tasks=10, class_order="cifar100-icarl").class_order[:5] == [87, 0, 52, 58, 44]


@pytest.mark.parametrize("name", ["cifar100-1993", "cifar100-icarl"])
def test_a_published_order_is_asked_for_by_name_on_the_command_line(name, hundred, tmp_path, capsys):
    np.savez(tmp_path / "hundred.npz", **hundred)
    with pytest.raises(SystemExit) as ended:
        main(["describe", str(tmp_path / "hundred.npz"), "--tasks", "100", "--class-order", name, "--json"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert f'"classes": [{CLASS_ORDERS[name][0]}]' in printed.out


def test_the_seed_of_a_run_never_changes_which_classes_are_in_which_task():
    def order(**options: Any) -> list[int]:
        return prepare(resolve("split-mnist-5k", "naive", options))[1].class_order

    assert order(seed=0) == order(seed=1) == order(seed=2) == list(range(10))
    drawn = order(class_order_seed=5)
    assert drawn == order(class_order_seed=5, seed=9)
    assert sorted(drawn) == list(range(10))
    assert drawn != order(class_order_seed=6)


def test_per_seed_draws_a_new_order_with_each_seed():
    def order(**options: Any) -> list[int]:
        return prepare(resolve("split-mnist-5k", "naive", options))[1].class_order

    orders = [order(class_order_seed="per-seed", seed=seed) for seed in range(4)]
    assert len({tuple(o) for o in orders}) == 4
    assert orders == [order(class_order_seed=seed) for seed in range(4)]


# Labels


@pytest.mark.parametrize("order", [None, SHUFFLED, [9, 0, 4, 2]])
@pytest.mark.parametrize("setting", ["class", "task"])
def test_labels_become_outputs_in_order_of_appearance(setting, order, cut):
    """The k-th class to appear has output k, and the original label is the k-th of the class order."""
    scenario = cut(tasks=2, class_order=order, setting=setting)
    appearance = order or list(range(10))
    assert scenario.class_order == appearance
    for task in scenario.tasks:
        for data in (task.train, task.test):
            expected = [appearance.index(c) for c in data.classes.tolist()]
            assert data.labels.tolist() == expected
            assert [scenario.class_order[label] for label in data.labels.tolist()] == data.classes.tolist()
    assert [(t.outputs.start, t.outputs.stop) for t in scenario.tasks] == [
        (0, len(appearance) // 2),
        (len(appearance) // 2, len(appearance)),
    ]


def test_the_image_of_a_label_is_that_of_its_class(cut, digits):
    """Ids are rows of the data set's own arrays."""
    for task in cut(class_order=SHUFFLED, limit=7).tasks:
        assert torch.equal(task.train.images, torch.from_numpy(digits.x_train)[task.train.ids])
        assert task.train.classes.tolist() == digits.y_train[task.train.ids].tolist()
        assert torch.equal(task.test.images, torch.from_numpy(digits.x_test)[task.test.ids])
        assert task.test.classes.tolist() == digits.y_test[task.test.ids].tolist()


def test_domains_share_their_labels(cut):
    scenario = cut(tasks=5, setting="domain", class_order=SHUFFLED)
    assert scenario.n_outputs == 2
    for index, task in enumerate(scenario.tasks):
        first, second = SHUFFLED[2 * index : 2 * index + 2]
        assert task.outputs == slice(0, 2)
        assert task.train.labels.tolist() == [{first: 0, second: 1}[c] for c in task.train.classes.tolist()]
        assert scenario.seen_outputs(index) == 2


@pytest.mark.parametrize("options", CUTS, ids=str)
def test_training_and_test_have_the_same_labels_in_each_task(options, cut):
    for task in cut(**options).tasks:
        assert set(task.train.labels.tolist()) == set(task.test.labels.tolist())
        assert set(task.train.classes.tolist()) == set(task.test.classes.tolist()) == set(task.classes)


# Numbers of images


def test_limit_takes_the_first_of_each_class(cut, digits):
    scenario = cut(limit=3)
    for c in range(10):
        ids = scenario.tasks[c // 2].train
        assert ids.ids[ids.classes == c].tolist() == np.flatnonzero(digits.y_train == c)[:3].tolist()
    assert [len(task.train) for task in cut(limit=10**6).tasks] == [100] * 5
    assert [len(task.test) for task in scenario.tasks] == [40] * 5


def test_validation_is_stratified_and_apart_from_training(cut):
    """30 images a class, of which 20 % are held out: 24 and 6."""
    whole, scenario = cut(limit=30), cut(limit=30, validation=0.2)
    for full, task in zip(whole.tasks, scenario.tasks, strict=True):
        train, held = set(task.train.ids.tolist()), set(task.validation.ids.tolist())
        assert not train & held
        assert train | held == set(full.train.ids.tolist())
        for c in task.classes:
            assert int((task.train.classes == c).sum()) == 24
            assert int((task.validation.classes == c).sum()) == 6
        assert set(task.validation.labels.tolist()) == set(task.train.labels.tolist())


def test_validation_is_drawn_by_the_seed_whatever_the_order_of_classes(cut):
    def held(**options: Any) -> list[int]:
        tasks = cut(limit=30, validation=0.2, **options).tasks
        return sorted(i for task in tasks for i in task.validation.ids.tolist())

    assert held(seed=0) == held(seed=0) == held(seed=0, class_order=SHUFFLED)
    assert held(seed=0) != held(seed=1)


@pytest.mark.parametrize("strategy", ["naive[memory_size=13]", "joint", "er", "icarl", "lwf[memory_size=13]"])
def test_validation_enters_neither_training_nor_memory(strategy, cut, run, monkeypatch):
    """At every step and every task: the ids that are cut to batches, and the ids in the memory."""
    scenario = cut(validation=0.3, class_order=SHUFFLED)
    held = {i for task in scenario.tasks for i in task.validation.ids.tolist()}
    trained: set[int] = set()
    stored: list[set[int]] = []
    make, update = Pipeline.batch, Memory.update

    def batch(self: Pipeline, ids: torch.Tensor, *rest: Any) -> Any:
        trained.update(ids.tolist())
        return make(self, ids, *rest)

    def updated(self: Memory, *offered: Any) -> None:
        update(self, *offered)
        stored.append(set(self.ids.tolist()))

    monkeypatch.setattr(Pipeline, "batch", batch)
    monkeypatch.setattr(Memory, "update", updated)
    result = run(strategy, scenario, **({"memory_size": 13} if strategy in ("er", "icarl") else {}))
    assert (len(held), len(trained)) == (30, 70)
    assert not trained & held
    if strategy != "joint":
        assert not set.union(*stored) & held
        assert [task["n_exemplars"] for task in result.record["tasks"]] == [13] * 5


# Output of describe


@pytest.mark.parametrize("options", CUTS, ids=str)
def test_describe_counts_what_is_in_each_task(options, cut, digits):
    scenario = cut(**options)
    rows = scenario.describe()
    held = 2 if options.get("validation") else 0
    first = 0
    for index, row in enumerate(rows):
        n = len(row["classes"])
        first = 0 if options.get("setting") == "domain" else first
        assert row == {
            "task": index,
            "classes": scenario.class_order[sum(len(r["classes"]) for r in rows[:index]) :][:n],
            "names": [str(c) for c in row["classes"]],
            "outputs": list(range(first, first + n)),
            "n_train": (10 - held) * n,
            "n_train_of_other_tasks": 0,
            "n_validation": held * n,
            "n_test": 20 * n,
        }
        first += n
    assert [c for row in rows for c in row["classes"]] == scenario.class_order


def test_describe_prints_tasks_classes_outputs_and_counts(capsys):
    """400 training and 100 test images a class; tasks 4,3,3 of a given order, 10 % held out."""
    order = ",".join(map(str, SHUFFLED))
    arguments = ["--task-sizes", "4,3,3", "--class-order", order, "--validation", "0.1"]
    with pytest.raises(SystemExit) as ended:
        main(["describe", "split-mnist-5k", *arguments])
    assert ended.value.code == 0
    rows = [
        [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if "│" in line or "┃" in line
    ]
    assert rows == [
        ["task", "original classes", "head outputs", "train", "validation", "test"],
        ["0", "7, 3, 9, 0", "0-3", "1440", "160", "400"],
        ["1", "5, 1, 8", "4-6", "1080", "120", "300"],
        ["2", "2, 6, 4", "7-9", "1080", "120", "300"],
    ]


def test_run_json_holds_the_same_rows(run, cut):
    scenario = cut(task_sizes=[4, 3, 3], class_order=SHUFFLED)
    record = run(scenario=scenario).record
    assert record["scenario"]["tasks"] == scenario.describe()
    assert record["class_order"] == SHUFFLED


# Whose data may be read when


def test_the_data_of_a_task_expires_when_the_task_ends(run):
    class Hoarder(Strategy):
        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            if task.index == 0:
                kept.append(task)
            else:
                kept[0].train.images  # noqa: B018

    kept: list[Any] = []
    with pytest.raises(clbench.RunError, match="after that task had ended") as caught:
        run(Hoarder)
    assert "\n" not in str(caught.value)
    for name in ("ids", "images", "labels", "classes", "tasks"):
        with pytest.raises(clbench.RunError):
            getattr(kept[0].train, name)
        with pytest.raises(clbench.RunError):
            getattr(kept[0].validation, name)


def test_a_part_or_a_sum_of_the_data_is_no_way_around(run):
    """subset() and + give views of the same data, which expire with it."""

    class Hoarder(Strategy):
        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            if task.index == 0:
                parts.extend([task.train.subset(torch.arange(3)), task.train + task.train])
            else:
                for part in parts:
                    with pytest.raises(clbench.RunError):
                        part.images  # noqa: B018

    parts: list[Any] = []
    run(Hoarder)


def test_all_data_is_for_strategies_that_declare_it(run):
    class Undeclared(Strategy):
        traits = Traits(family="reference")

        def stages(self, task: Any) -> Any:
            return [clbench.Stage(self.seen_data())]

    with pytest.raises(clbench.RunError, match="data_access"):
        run(Undeclared)


def test_a_strategy_gets_no_test_images(run):
    class Curious(Strategy):
        traits = Traits(family="reference")

        def end_task(self, task: Any) -> None:
            seen.append(len(task.test))

    seen: list[int] = []
    run(Curious)
    assert seen == [0] * 5


def test_views_are_copies(cut):
    scenario = cut()
    task = scenario.tasks[0]
    task.train.images.zero_()
    task.train.labels.fill_(9)
    assert task.train.images.any()
    assert set(task.train.labels.tolist()) == {0, 1}


def test_the_digest_is_of_everything_that_can_change_a_run(cut, digits):
    cuts = [cut(), cut(), cut(limit=9), cut(class_order=SHUFFLED), cut(validation=0.2), cut(validation=0.2, seed=1)]
    digests = [scenario.digest() for scenario in cuts]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5
