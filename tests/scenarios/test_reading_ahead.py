"""Images on disk are read in threads before they are needed: the same bytes, the same errors, nothing left behind."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import clbench
from clbench.config.errors import ConfigError, RunError
from clbench.data.ahead import AHEAD, Reader
from clbench.data.scenario import ImageSet
from clbench.data.sources import Changed, Mapped, Start, on_disk, source_of
from clbench.scenarios import dataset_from_arrays, split
from clbench.scenarios.domains import permuted, rotated
from clbench.scenarios.mapped import mapped_copy

THREADS = (0, 1, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (60, 3, 4, 5), dtype=np.uint8)


def mapped(images: np.ndarray) -> Mapped:
    made = source_of(mapped_copy(images, "images"))
    assert isinstance(made, Mapped)
    return made


def reading() -> list[str]:
    """Return the names of the threads that read."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clbench-reading")]


def changed(images: np.ndarray, change: Any, n_validation: int) -> tuple[Changed, Changed]:
    """Return the images of three tasks, made from those on disk, and the same ones made from those in memory."""
    made = []
    for array in (mapped(images).array, images):
        data = dataset_from_arrays(images, np.arange(60) % 2, images[:2], [0, 1], name="noise")
        made.append(change(replace(data, x_train=array, n_validation=n_validation), 3).x_train)
    return made[0], made[1]


@pytest.mark.parametrize("threads", THREADS)
def test_batches_are_those_that_are_read_when_they_are_needed(threads: int, images: np.ndarray) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randperm(60, generator=draw)[:40]
    pairs: list[tuple[Any, Any]] = [
        (mapped(images), torch.from_numpy(images)),
        (mapped(images).at(rows), torch.from_numpy(images)[rows]),
        *(changed(images, change, n) for change in (permuted, rotated) for n in (0, 7)),
    ]
    for source, expected in pairs:
        reader = Reader(threads)
        for sizes in ([40], [1] * 7, [13, 1, 3, 20, 2], [5, 0, 5], []):
            batches = [torch.randint(len(source), (n,), generator=draw) for n in sizes]
            found = [*reader.each(source, batches)]
            assert len(found) == len(batches)
            for read, ids in zip(found, batches, strict=True):
                assert read is not None
                assert torch.equal(read, expected.index_select(0, ids))
        assert reader.waited > 0
        reader.close()
        # A batch that is asked for later is read at once.
        (last,) = reader.each(source, [torch.tensor([0])])
        assert last is not None
        assert torch.equal(last, expected[:1])
    assert not reading()


def test_samples_in_memory_are_not_read(images: np.ndarray) -> None:
    reader = Reader(4)
    in_memory = torch.from_numpy(images)
    for source in (in_memory, changed(images, permuted, 0)[1]):
        assert not on_disk(source)
        assert [*reader.each(source, [torch.tensor([0]), torch.tensor([1])])] == [None, None]
    assert reader.waited == 0
    assert not reading()


class Disk:
    """An array that takes its time for each part that is read, and fails at a row."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.seconds, self.failing = array, 0.0, -1

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: np.ndarray, *how: Any) -> None:
        time.sleep(self.seconds)
        if self.failing in rows:
            raise OSError(5, "Input/output error", "images.npy")
        self.array.take(rows, *how)


class Watched(Mapped):
    """Counts the batches that are begun."""

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.begun, self.disk = 0, Disk(self._plain)
        self._plain = self.disk

    def begin(self, ids: Tensor, start: Start) -> Callable[[], Tensor]:
        self.begun += 1
        return super().begin(ids, start)

    def to(self, device: Any) -> Mapped:
        return self


def test_two_batches_are_read_while_another_one_is_in_use(images: np.ndarray) -> None:
    batches = [torch.tensor([n]) for n in range(10)]
    for threads, ahead in ((0, 0), (1, AHEAD), (4, AHEAD)):
        source, reader = Watched(mapped(images).array), Reader(threads)
        for used, read in enumerate(reader.each(source, batches), 1):
            assert read is not None
            assert source.begun == min(used + ahead, len(batches))
        reader.close()


def test_reading_hides_behind_training(images: np.ndarray) -> None:
    """Ten batches take 20 ms each to read and 30 ms to use; without threads all of the reading is waited for."""
    source, waited = Watched(mapped(images).array), {}
    source.disk.seconds = 0.02
    for threads in (0, 1):
        reader = Reader(threads)
        for _ in reader.each(source, [torch.tensor([n]) for n in range(10)]):
            time.sleep(0.03)
        waited[threads] = reader.waited
        reader.close()
    assert waited[0] >= 10 * 0.02
    assert waited[1] < waited[0] / 2


@pytest.mark.parametrize("wrong", [60, -1, 10**9])
def test_an_image_that_there_is_not_is_no_other_one(wrong: int, images: np.ndarray) -> None:
    source = mapped(images)
    with pytest.raises(IndexError, match="a sample out of range: there are 60"):
        source.index_select(0, torch.tensor([0, wrong]))


def scenario(images: np.ndarray) -> Any:
    """Return a scenario of two tasks whose training images are on disk, and watched."""
    labels = np.arange(60) % 4
    made = split(dataset_from_arrays(images, labels, images[:8], labels[:8], name="noise"), tasks=2)
    train = replace(made.train, images=Watched(mapped(images).array))

    def view(data: ImageSet) -> ImageSet:
        return ImageSet(train, data.ids)

    tasks = [replace(task, train=view(task.train), validation=view(task.validation)) for task in made.tasks]
    return replace(made, train=train, tasks=tasks)


class Failing(clbench.Observer):
    """Lets the reading of an image of the second task fail from the first step on."""

    def begin(self, config: Any, scenario: Any, first_task: int) -> None:
        self.source = scenario.train.images

    def step(self, progress: Any, loss: Any) -> None:
        self.source.disk.failing = 50


FIELDS: dict[str, Any] = {"model": "mlp:8", "epochs": 2, "batch_size": 4, "threads": 1, "quiet": True}


def test_what_goes_wrong_in_a_thread_is_said_as_without(images: np.ndarray, tmp_path: Path) -> None:
    said = set()
    for threads in THREADS:
        out = tmp_path / f"{threads}"
        with pytest.raises(RunError) as caught:
            clbench.run(scenario(images), "naive", observer=Failing(), reading_threads=threads, out=out, **FIELDS)
        assert isinstance(caught.value, OSError)
        assert not reading()
        said.add(str(caught.value))
    (text,) = said
    assert text.startswith("OSError: [Errno 5] Input/output error: 'images.npy' (task 1, ")


class Interrupted(clbench.Observer):
    """Interrupts a run in its first epoch."""

    def step(self, progress: Any, loss: Any) -> None:
        if progress.step == 3:
            assert reading()
            raise KeyboardInterrupt


@pytest.mark.parametrize("threads", [1, 4])
def test_an_interrupt_leaves_no_thread(threads: int, images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        clbench.run(
            scenario(images), "naive", reading_threads=threads, observer=Interrupted(), out=tmp_path / "run", **FIELDS
        )
    assert not reading()


@pytest.mark.parametrize("given", [-1, 65, 1.5, "many"])
def test_a_number_of_threads_is_asked_for(given: object) -> None:
    with pytest.raises(ConfigError, match="reading_threads"):
        clbench.run("split-mnist-5k", "naive", reading_threads=given)


def test_the_record_says_how_long_the_training_waited(images: np.ndarray, tmp_path: Path) -> None:
    """Reading takes 5 ms of each step, which is nearly all of it."""
    slow = scenario(images)
    slow.train.images.disk.seconds = 0.005
    result = clbench.run(slow, "er", memory_size=8, reading_threads=0, out=tmp_path / "slow", **FIELDS)
    for task in result.record["tasks"]:
        epochs = [epoch for epoch in result.record["training"] if epoch["task"] == task["task"]]
        waited, seconds = (sum(epoch[name] for epoch in epochs) for name in ("waited", "seconds"))
        assert task["idle_share"] == waited / seconds
        # Eight batches in an epoch, each with its exemplars from the second task on.
        assert waited >= 2 * 8 * 0.005 * (1 + (task["task"] > 0))
    assert 0.2 < result.idle_share < 1
    fast = clbench.run("split-mnist-5k", "naive", limit=5, out=tmp_path / "memory", **FIELDS)
    assert fast.idle_share == 0
    assert "idle_share" not in fast.record["tasks"][0]
    assert "waited" not in fast.record["training"][0]


def test_a_run_and_a_report_say_how_long_the_training_waited(
    images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from clbench.reports.comparison import compare
    from clbench.reports.run_tables import render_run

    result = clbench.run(scenario(images), "naive", out=tmp_path / "run", **FIELDS)
    Console(width=200).print(render_run(result))
    share = f"{100 * result.idle_share:.1f}%"
    assert f"waiting for images on disk: {share} of the training time" in capsys.readouterr().out
    (part,) = compare([result])
    assert f"Share of the training time in which images on disk were waited for: {share} (naive)." in part.notes


KILLER = """
    import os, signal
    import torch._dynamo  # which the first optimizer would import, in each process anew
    import clbench
    from clbench.running.run import run

    os.fsync = lambda file: None  # a killed process loses nothing that it has written; only a power cut does

    class Killer(clbench.Observer):
        def step(self, progress, loss):
            if (progress.task, progress.epoch, progress.step) == (1, 1, 13):
                os.kill(os.getpid(), signal.SIGKILL)

    for strategy, threads in {runs}:
        child = os.fork()
        if child == 0:
            out = f"{{strategy}}-{{threads}}"
            run("own.npz", strategy, observer=Killer(), out=out, reading_threads=threads, **{fields})
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_killed_run_goes_on_to_the_same_bytes_with_any_number_of_threads(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle of an epoch; it goes on from three steps before with another number of threads."""
    monkeypatch.chdir(tmp_path)
    labels = np.arange(60) % 4
    np.savez("own.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    fields = FIELDS | {"tasks": 2, "memory_size": 6, "memory_limit": "1KB", "checkpoint_every": "5-steps"}
    fields |= {"augment": "crop-flip", "optimizer": "adam", "lr": 0.01}
    runs = [(strategy, threads) for strategy in ("er", "icarl") for threads in THREADS]
    script = textwrap.dedent(KILLER).format(runs=runs, fields=fields)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for strategy in ("er", "icarl"):
        whole = clbench.run("own.npz", strategy, out=f"whole-{strategy}", **fields | {"memory_limit": None})
        weights = torch.load(f"whole-{strategy}/model.pt", weights_only=True)
        for threads, others in zip(THREADS, (4, 0, 1), strict=True):
            out = Path(f"{strategy}-{threads}")
            again = clbench.run("own.npz", strategy, out=out, resume=True, reading_threads=others, **fields)
            assert [entry["step"] for entry in again.record["resumes"]] == [10]
            assert np.array_equal(again.accuracy, whole.accuracy, equal_nan=True)
            found = torch.load(out / "model.pt", weights_only=True)
            torch.testing.assert_close(found, weights, rtol=0, atol=0)
            losses = [[epoch["losses"] for epoch in r.record["training"]] for r in (again, whole)]
            assert losses[0] == losses[1]
            assert again.record["identity"] == whole.record["identity"]
