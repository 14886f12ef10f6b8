"""Avalanche's benchmarks as scenarios and back: the same images, labels and tasks; refusals name the transform."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clbench.data.scenario import Scenario

Refused = Callable[..., AbstractContextManager[None]]


def test_a_run_of_ours_imports_nothing_of_avalanche(tmp_path: Path) -> None:
    script = (
        "import clbench, sys; clbench.run('split-mnist-5k', 'naive', limit=5, epochs=1, threads=1, out='run');"
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'avalanche'))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.slow
def test_importing_it_prints_nothing(tmp_path: Path) -> None:
    """Avalanche's own imports warn of optional packages."""
    script = "from clbench.avalanche.scenarios import from_benchmark, to_benchmark"
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout + ended.stderr == ""


@pytest.mark.slow
def test_what_is_no_benchmark_or_scenario_is_refused(tiny: Scenario, refused: Refused) -> None:
    from clbench.avalanche.scenarios import from_benchmark, to_benchmark

    for given, word in ((None, "None"), ("x" * 500, "'xxx"), (tiny, "Scenario")):
        with refused("from_benchmark", word, "benchmark of Avalanche"):
            from_benchmark(given)
    wrong: list[tuple[Any, str]] = [("split-mnist-5k", "'split-mnist-5k'"), (None, "None")]
    for given, word in (*wrong, (_benchmark()[0], "a Scenario accepted")):
        with refused("to_benchmark", word, "a Scenario"):
            to_benchmark(given)


def _benchmark(**options: Any) -> Any:
    """Avalanche's own nc_benchmark of 60 + 24 random images of 8 x 8 in 6 classes."""
    from avalanche.benchmarks import nc_benchmark
    from torch.utils.data import Dataset
    from torchvision import transforms

    class Pictures(Dataset[Any]):
        def __init__(self, n: int, seed: int) -> None:
            self.images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
            self.targets = [i % 6 for i in range(n)]

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.images[index], self.targets[index]

    train, test = Pictures(60, 0), Pictures(24, 1)
    given = {"n_experiences": 3, "task_labels": False, "seed": 3} | options
    given.setdefault("train_transform", transforms.ToTensor())
    given.setdefault("eval_transform", transforms.ToTensor())
    return nc_benchmark(train, test, **given), train, test


@pytest.mark.slow
def test_nc_benchmark_becomes_a_class_incremental_scenario() -> None:
    """Pixels and labels are those of the arrays that the benchmark was made from, picked by numpy."""
    from torchvision import transforms

    from clbench.avalanche.scenarios import from_benchmark

    plain = [transforms.ToTensor(), transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))]
    augmented = [transforms.RandomCrop(8, padding=4), transforms.RandomHorizontalFlip()]
    benchmark, train, test = _benchmark(
        train_transform=transforms.Compose([plain[0], *augmented, plain[1]]), eval_transform=transforms.Compose(plain)
    )
    scenario = from_benchmark(benchmark)
    assert (scenario.setting, scenario.augment) == ("class", "crop-flip")
    assert (scenario.mean, scenario.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert scenario.class_order == benchmark.classes_order
    for data, split in ((train, "train"), (test, "test")):
        targets = np.array(data.targets)
        for t, task in enumerate(scenario.tasks):
            wanted = np.flatnonzero(np.isin(targets, benchmark.classes_order[2 * t : 2 * t + 2]))
            got = getattr(task, split)
            # The benchmark has an order of its own within an experience.
            pairs = zip(targets[wanted].tolist(), data.images[wanted].transpose(0, 3, 1, 2), strict=True)
            found = zip(got.classes.tolist(), got.images.numpy(), strict=True)
            assert sorted((c, x.tobytes()) for c, x in found) == sorted((c, x.tobytes()) for c, x in pairs)
            assert got.labels.tolist() == [benchmark.classes_order.index(c) for c in got.classes.tolist()]


@pytest.mark.slow
def test_task_labels_make_a_task_incremental_scenario() -> None:
    from clbench.avalanche.scenarios import from_benchmark

    benchmark, _, _ = _benchmark(task_labels=True, class_ids_from_zero_in_each_exp=True)
    scenario = from_benchmark(benchmark)
    assert scenario.setting == "task"
    assert [(task.outputs.start, task.outputs.stop) for task in scenario.tasks] == [(0, 2), (2, 4), (4, 6)]
    assert scenario.class_names == ("0 (task 0)", "1 (task 0)", "0 (task 1)", "1 (task 1)", "0 (task 2)", "1 (task 2)")


def _data(images: Any, labels: Any) -> Any:
    from avalanche.benchmarks.utils.classification_dataset import _make_taskaware_tensor_classification_dataset

    return _make_taskaware_tensor_classification_dataset(
        torch.from_numpy(np.array(images)), torch.from_numpy(labels), targets=labels.tolist()
    )


@pytest.mark.slow
def test_the_same_classes_in_each_experience_make_a_domain_incremental_scenario(digits: Any) -> None:
    """Every second image of ten classes goes to the second of two experiences, in training and in test."""
    from avalanche.benchmarks import benchmark_from_datasets

    from clbench.avalanche.scenarios import from_benchmark

    streams = {
        name: [_data(images[half::2], labels[half::2]) for half in (0, 1)]
        for name, images, labels in (
            ("train", digits.x_train, digits.y_train),
            ("test", digits.x_test, digits.y_test),
        )
    }
    scenario = from_benchmark(benchmark_from_datasets(**streams))
    assert scenario.setting == "domain"
    assert [(task.outputs.start, task.outputs.stop) for task in scenario.tasks] == [(0, 10), (0, 10)]
    for half, task in enumerate(scenario.tasks):
        assert torch.equal(task.train.labels, torch.from_numpy(digits.y_train[half::2]))


@pytest.mark.slow
def test_new_instances_that_share_one_test_experience_are_refused(digits: Any, refused: Any) -> None:
    """As ni_benchmark of Avalanche makes them: two experiences for training, one for testing."""
    from avalanche.benchmarks import ni_benchmark

    from clbench.avalanche.scenarios import from_benchmark

    train, test = _data(digits.x_train, digits.y_train), _data(digits.x_test, digits.y_test)
    with refused("test stream has 1 experiences", "2 are accepted"):
        from_benchmark(ni_benchmark(train, test, n_experiences=2, balance_experiences=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "evaluation", "words"),
    [
        ("ColorJitter()", "ToTensor()", ["ColorJitter", "RandomCrop"]),
        ("RandomCrop(8, padding=2)", "ToTensor()", ["RandomCrop", "padding=2", "padding=4"]),
        ("RandomHorizontalFlip(p=0.2)", "ToTensor()", ["RandomHorizontalFlip", "p=0.2", "0.5"]),
        ("ToTensor()", "Compose([ToTensor(), RandomInvert()])", ["RandomInvert", "evaluation"]),
        ("ToTensor()", "Compose([ToTensor(), Lambda(lambda x: x * 0.7)])", ["8 bits", "Normalize"]),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(
    train: str, evaluation: str, words: list[str], refused: Refused
) -> None:
    from torchvision import transforms

    from clbench.avalanche.scenarios import from_benchmark

    first, last = (eval(text, vars(transforms)) for text in (train, evaluation))
    if "ToTensor" not in train:
        first = transforms.Compose([transforms.ToTensor(), first])
    elif "Lambda" in evaluation:
        first = last
    benchmark, _, _ = _benchmark(train_transform=first, eval_transform=last)
    with refused(*words):
        from_benchmark(benchmark)


def _assert_same(one: Scenario, other: Scenario, *, classes: bool = True) -> None:
    assert (one.setting, one.augment, len(one.tasks)) == (other.setting, other.augment, len(other.tasks))
    assert np.allclose((one.mean, one.std), (other.mean, other.std))
    for a, b in zip(one.tasks, other.tasks, strict=True):
        assert a.outputs == b.outputs
        for split in ("train", "validation", "test"):
            left, right = getattr(a, split), getattr(b, split)
            assert torch.equal(left.images, right.images)
            assert torch.equal(left.labels, right.labels)
            assert torch.equal(left.tasks, right.tasks)
            assert not classes or torch.equal(left.classes, right.classes)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["class", "task", "domain"])
def test_a_scenario_of_real_digits_survives_the_round_trip(cut: Callable[..., Scenario], setting: str) -> None:
    """Also in another class order and with images held out; original classes of shared outputs are Avalanche's."""
    from clbench.avalanche.scenarios import from_benchmark, to_benchmark

    scenario = cut(setting=setting, class_order_seed=4, validation=0.2)
    again = from_benchmark(to_benchmark(scenario))
    _assert_same(scenario, again, classes=setting != "domain")
    if setting != "domain":
        assert again.class_order == scenario.class_order


@pytest.mark.slow
def test_the_round_trip_of_all_5000_digits_trains_to_the_same_bits(tmp_path: Path) -> None:
    import clbench
    from clbench.avalanche.scenarios import from_benchmark, to_benchmark
    from clbench.running.resolve import prepare, resolve

    scenario = prepare(resolve("split-mnist-5k", "naive", {}))[1]
    again = from_benchmark(to_benchmark(scenario))
    _assert_same(scenario, again)
    options = {"epochs": 1, "threads": 1, "model": "mlp:32", "normalize": "none"}
    one, two = (clbench.run(s, "naive", out=tmp_path / name, **options) for s, name in ((scenario, "a"), (again, "b")))
    assert np.array_equal(one.accuracy, two.accuracy, equal_nan=True)


@pytest.mark.slow
def test_avalanches_classic_split_mnist_equals_ours() -> None:
    """Two programs read the same files."""
    root = os.environ.get("CLBENCH_TEST_DATA")
    if not root:
        pytest.skip("CLBENCH_TEST_DATA names no folder with MNIST")
    from avalanche.benchmarks.classic import SplitMNIST

    from clbench.avalanche.scenarios import from_benchmark
    from clbench.running.resolve import prepare, resolve

    benchmark = SplitMNIST(5, dataset_root=root, fixed_class_order=list(range(10)))
    theirs = from_benchmark(benchmark)
    ours = prepare(resolve("split-mnist", "naive", {"data_root": root}))[1]
    for a, b in zip(ours.tasks, theirs.tasks, strict=True):
        for split in ("train", "test"):
            # One keeps the images class by class, the other in the order of the files.
            one, other = (getattr(task, split) for task in (a, b))
            order, other_order = (torch.argsort(data.classes, stable=True) for data in (one, other))
            assert torch.equal(one.images[order], other.images[other_order])
            assert torch.equal(one.labels[order], other.labels[other_order])
