"""Fixtures of the tests of engine and strategies: a few real digits, and runs that take a tenth of a second."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clbench import ConfigError

# Training that is fast and still learns: 10 images a class are enough for half of the digits to be right.
FAST = {"model": "mlp:32", "epochs": 1, "batch_size": 8, "optimizer": "sgd", "lr": 0.1, "threads": 1}


# Tests that take longer than two seconds; list_slow.py writes the list.
SLOW = frozenset(Path(__file__).with_name("slow.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that are listed as slow, before any are chosen by their marks."""
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync: a run of a tenth of a second would wait half a second for the disk, and no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(autouse=True)
def _no_width_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables have the width of a pipe, whatever the terminal that the tests are started from exports."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU a test trains on it only by name, because byte-for-byte comparisons are of CPU runs."""
    import clbench.running.resolve

    find = clbench.running.resolve.find_device
    monkeypatch.setattr(clbench.running.resolve, "find_device", lambda name: find("cpu" if name == "auto" else name))


@pytest.fixture(scope="session")
def digits() -> Any:
    """The first 50 training and the first 20 test images of each class of the real digits, as a Dataset."""
    from clbench.scenarios import dataset_from_arrays, load_dataset

    def first(labels: Any, n: int) -> Any:
        return np.concatenate([np.flatnonzero(labels == c)[:n] for c in range(10)])

    data = load_dataset("mnist-5k", "data", offline=True)
    train, test = first(data.y_train, 50), first(data.y_test, 20)
    return dataset_from_arrays(
        data.x_train[train], data.y_train[train], data.x_test[test], data.y_test[test], name="digits"
    )


@pytest.fixture(scope="session")
def cut(digits: Any) -> Callable[..., Any]:
    """Cut a scenario from the real digits: by default 5 tasks of 2 classes, 10 training images a class."""
    from clbench.scenarios import split

    def made(**options: Any) -> Any:
        sizes = {} if "task_sizes" in options else {"tasks": 5}
        return split(digits, **({"limit": 10} | sizes | options))

    return made


@pytest.fixture(scope="session")
def tiny(cut: Callable[..., Any]) -> Any:
    """5 tasks of 2 classes, 10 training and 20 test images a class, class-incremental."""
    return cut()


@pytest.fixture
def run(tmp_path: Path, tiny: Any) -> Callable[..., Any]:
    """Run a strategy on `tiny` (or a given scenario) with fast training, in a new folder unless one is named."""
    import clbench

    numbers = itertools.count()

    def done(strategy: Any = "naive", scenario: Any = None, **options: Any) -> Any:
        options.setdefault("out", tmp_path / f"run-{next(numbers)}")
        fast = {k: v for k, v in FAST.items() if not (k == "epochs" and options.get("iterations"))}
        return clbench.run(tiny if scenario is None else scenario, strategy, **(fast | options))

    return done


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks and images in double precision, so that rounding can't be taken for a difference."""
    import clbench.learning.strategy
    import clbench.running.check
    import clbench.running.run
    from clbench.data.batches import Pipeline

    new_model, normalize = clbench.running.run.new_model, Pipeline.normalize
    initial_model = clbench.running.check.initial_model
    monkeypatch.setattr(clbench.running.check, "initial_model", lambda *given: initial_model(*given).double())
    for module in (clbench.running.run, clbench.learning.strategy):
        monkeypatch.setattr(module, "new_model", lambda *given: new_model(*given).double())
    monkeypatch.setattr(Pipeline, "normalize", lambda self, originals: normalize(self, originals).double())


@pytest.fixture
def refused() -> Callable[..., AbstractContextManager[None]]:
    """Expect a ConfigError of one short sentence that holds each of the words."""

    @contextmanager
    def expected(*words: str) -> Iterator[None]:
        with pytest.raises(ConfigError) as caught:
            yield
        message = str(caught.value)
        assert isinstance(caught.value, ValueError)
        assert "\n" not in message
        assert len(message) < 300, message
        assert "Traceback" not in message
        missing = [word for word in words if word not in message]
        assert not missing, f"{missing} not in {message!r}"

    return expected
