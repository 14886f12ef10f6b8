"""Checkpoints within a task: when they are written, what they hold, and runs whose disk, clock or user fails them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import clbench
import clbench.support.files
from clbench import ConfigError, Observer, Result, Strategy
from clbench.config.run import make_config
from clbench.learning.strategy import Stage, Traits
from clbench.running.checkpoint import Checkpoint, Within, newest
from clbench.running.folder import RunFolder, default_folder
from clbench.running.resolve import strategy_class

# Eight steps a task: 10 images of each of 2 classes, 2 epochs.
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 5}


class StoppedError(Exception):
    """Raised in the middle of a run by the test."""


class At(Observer):
    """Does something at a step of a task."""

    def __init__(self, task: int, step: int, act: Any) -> None:
        self.at, self.act = (task, step), act

    def step(self, progress: Any, loss: float | None) -> None:
        if (progress.task, progress.step) == self.at:
            self.act()


def stop() -> None:
    raise StoppedError


def learnt(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Everything a run measured, without times and resumptions, and its weights."""
    record = json.loads((folder / "run.json").read_text())
    for entry in record["tasks"] + record["training"]:
        del entry["seconds"]
        entry.pop("peak_memory_bytes", None)
    kept = {k: v for k, v in record.items() if k not in ("created", "resumes", "warnings", "status", "error", "config")}
    return kept, torch.load(folder / "model.pt", weights_only=True)


def assert_same(one: Path, other: Path) -> None:
    (record, model), (record_, model_) = learnt(one), learnt(other)
    assert record == record_
    assert model.keys() == model_.keys()
    assert all(torch.equal(value, model_[name]) for name, value in model.items())


def within(folder: Path) -> Within:
    """Return where in its task a run of er was saved."""
    found = read(folder).within
    assert found is not None
    return found


def read(folder: Path, strategy: str = "er") -> Checkpoint:
    checkpoint = newest(RunFolder(folder), strategy_class(strategy))
    assert checkpoint is not None
    return checkpoint


@pytest.fixture
def whole(run: Any, tmp_path: Path) -> Path:
    """An undisturbed run of er."""
    run("er", out=tmp_path / "whole", memory_size=12, **OPTIONS)
    return tmp_path / "whole"


@pytest.fixture
def er(run: Any, tmp_path: Path) -> Any:
    """Run er in one folder, with a checkpoint every 3 steps."""

    def done(**options: Any) -> Any:
        values = {"out": tmp_path / "run", "memory_size": 12, "resume": True, "checkpoint_every": "3-steps"}
        return run("er", **(values | OPTIONS | options))

    return done


# When


@pytest.mark.parametrize(
    ("every", "saves"),
    [
        ("task", 5),
        (10.0, 5),  # the default: a run of a second writes none
        (1e-9, 5 * (8 + 2) + 5),  # each step and each end of an epoch is later than that
        ("epoch", 5 * 2 + 5),
        ("3-steps", 5 * 2 + 5),  # steps 3 and 6 of 8
        ("100-steps", 5),
    ],
)
def test_a_checkpoint_is_written_when_it_was_asked_for_and_after_each_task(every, saves, run, monkeypatch):
    count = []
    monkeypatch.setattr(
        RunFolder,
        "save_checkpoint",
        lambda self, content: count.append(Checkpoint.from_bytes(content, Strategy).within),
    )
    run(checkpoint_every=every, **OPTIONS)
    assert len(count) == saves
    assert sum(within is None for within in count) == 5


@pytest.mark.parametrize(
    "value", [0, -1.0, float("nan"), "0-steps", "steps", "-3-steps", "batch", "", "3-steps\n", True]
)
def test_a_checkpoint_interval_that_is_none_is_refused(value, refused):
    with refused("checkpoint_every"):
        make_config({"scenario": "split-mnist-5k", "strategy": "naive", "checkpoint_every": value})


@pytest.mark.parametrize(("text", "value"), [("5", 5.0), ("0.5", 0.5), ("epoch", "epoch"), ("20-steps", "20-steps")])
def test_the_interval_is_read_from_text_and_is_no_part_of_the_identity(text, value):
    from clbench.running.resolve import parse_fields, resolve

    config = resolve("split-mnist-5k", "naive", parse_fields({"checkpoint_every": text}))
    assert config.engine.checkpoint_every == value
    assert default_folder(config) == default_folder(resolve("split-mnist-5k", "naive", {}))


# What


@pytest.mark.parametrize("at", [(0, 4), (2, 7), (4, 8)])
def test_a_run_stopped_within_a_task_goes_on_from_its_last_checkpoint_there(at, er, whole, tmp_path):
    """Step 4, 7 or 8 of 8: the checkpoint is that of step 3 or 6, and the steps before it are not taken again."""
    with pytest.raises(StoppedError):
        er(observer=At(*at, stop))
    taken = []
    er(observer=At(at[0], at[1] // 3 * 3 + 1, lambda: taken.append(True)))
    epoch, step = (0, 3) if at[1] == 4 else (1, 6)
    record = Result.load(tmp_path / "run").record
    assert record["resumes"] == [{"task": at[0], "stage": "train", "epoch": epoch, "step": step}]
    assert taken == [True]
    assert_same(whole, tmp_path / "run")


def test_a_stage_that_is_over_does_not_begin_again_nor_does_what_came_before_one(run, tmp_path):
    calls = []

    class Staged(Strategy):
        """Begins its second stage with a change that must not be made twice."""

        traits = Traits(family="replay")

        def stages(self, task: Any) -> list[Stage]:
            head = list(self.model.head.parameters())
            later = Stage(task.train, "second", head, before=self.halve)
            return [Stage(task.train, "first", before=lambda: calls.append("first")), later]

        @torch.no_grad()
        def halve(self) -> None:
            calls.append("second")
            self.model.head.weight *= 0.5

    run(Staged, out=tmp_path / "whole", **OPTIONS)
    expected, calls[:] = calls[:], []

    class StopAtStep(Observer):
        """Stops at a step of the second task, counted over its two stages of 8 steps."""

        def __init__(self, left: int) -> None:
            self.left = left

        def step(self, progress: Any, loss: float | None) -> None:
            self.left -= progress.task == 1
            if not self.left:
                raise StoppedError

    for left in (10, 4):  # in the second stage, and once more there
        with pytest.raises(StoppedError):
            run(
                Staged,
                out=tmp_path / "run",
                resume=True,
                checkpoint_every="1-steps",
                observer=StopAtStep(left),
                **OPTIONS,
            )
    assert within(tmp_path / "run").stage == 1
    run(Staged, out=tmp_path / "run", resume=True, **OPTIONS)
    assert calls == expected
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_checkpoint_holds_ids_of_exemplars_and_no_images(er, cut, tmp_path):
    """Its size does not depend on the number of images; the memory's ids are of training images, on the CPU."""
    sizes = []
    for limit in (10, 40):
        scenario = cut(limit=limit, validation=0.2)
        with pytest.raises(StoppedError):
            er(out=tmp_path / str(limit), scenario=scenario, observer=At(2, 4, stop))
        sizes.append((tmp_path / str(limit) / "checkpoint.pt").stat().st_size)
        memory = within(tmp_path / str(limit)).strategy["memory"]
        assert (memory.ids.dtype, memory.ids.device.type, len(memory)) == (torch.int64, "cpu", 12)
        assert not set(memory.ids.tolist()) & {i for task in scenario.tasks for i in task.validation.ids.tolist()}
        er(out=tmp_path / str(limit), scenario=scenario)
        assert Result.load(tmp_path / str(limit)).record["ledger"][-1]["bytes"]["exemplars"] == 12 * 28 * 28
    assert abs(sizes[1] - sizes[0]) < 2000  # a thousandth of what the images would add


def test_a_view_of_the_data_that_a_strategy_keeps_is_made_again_not_saved(run, tmp_path):
    class Keeps(Strategy):
        """Replays from the task's own view."""

        traits = Traits(family="replay")

        def begin_task(self, task: Any) -> None:
            self.view, self.task = task.train, task

        def loss(self, batch: Any) -> Any:
            again = self._context.pipeline.batch(self.view.ids[:2], batch.active, None)
            return self.classification_loss(self.model(batch.images), batch) + self.classification_loss(
                self.model(again.images), again
            )

    run(Keeps, out=tmp_path / "whole", **OPTIONS)
    with pytest.raises(StoppedError):
        run(Keeps, out=tmp_path / "run", checkpoint_every="3-steps", observer=At(1, 4, stop), **OPTIONS)
    assert set(within(tmp_path / "run").strategy) == {"model"}
    run(Keeps, out=tmp_path / "run", resume=True, **OPTIONS)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_what_was_stopped_early_or_waits_for_progress_goes_on_waiting(run, cut, tmp_path):
    """A checkpoint after an epoch has the best weights so far, the epochs without progress, and the lowered rate."""
    scenario = cut(limit=20, validation=0.3)
    options = {"scenario": scenario, "epochs": 8, "patience": 3, "schedule": "plateau", "lr_patience": 1, "lr": 0.3}
    run(out=tmp_path / "whole", **options)

    class EachEpoch(Observer):
        def __init__(self) -> None:
            self.epochs = 0

        def epoch(self, record: Any) -> None:
            self.epochs += 1
            if self.epochs == 2:
                raise StoppedError

    stopped = 0
    while True:
        try:
            run(out=tmp_path / "run", resume=True, checkpoint_every="epoch", observer=EachEpoch(), **options)
            break
        except StoppedError:
            stopped += 1
    training = Result.load(tmp_path / "whole").record["training"]
    assert stopped >= len(training) - 5
    # The run did what the test is about: a stage ended early, after an epoch that was not the best, at a lower rate.
    assert len(training) < 5 * 8
    assert len({entry["lr"] for entry in training}) > 1
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("length", [{"epochs": 2}, {"epochs": None, "iterations": 6}], ids=str)
def test_an_epoch_whose_last_step_was_saved_is_still_recorded(length, run, cut, tmp_path):
    """Stopped between the last step of a task and the record of its epoch, which may be cut short by `iterations`."""
    options = {"scenario": cut(validation=0.2), "patience": 2, "batch_size": 5} | length
    run(out=tmp_path / "whole", **options)
    last = Result.load(tmp_path / "whole").record["training"][-1]["epoch"]

    class AtTheEnd(Observer):
        def epoch(self, record: Any) -> None:
            if (record.task, record.epoch) == (3, last):
                raise StoppedError

    with pytest.raises(StoppedError):
        run(out=tmp_path / "run", checkpoint_every="1-steps", observer=AtTheEnd(), **options)
    run(out=tmp_path / "run", resume=True, **options)
    assert_same(tmp_path / "whole", tmp_path / "run")


# Damage


def test_whatever_bit_is_flipped_a_checkpoint_is_whole_or_known_to_be_damaged(er, tmp_path):
    with pytest.raises(StoppedError):
        er(observer=At(1, 4, stop))
    content = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    folder = RunFolder(tmp_path / "run")
    weights = within(tmp_path / "run").strategy["model"].state_dict()
    chance, damaged = random.Random(0), 0
    places = [chance.randrange(len(content)) for _ in range(60)] + [len(content) - 1 - n for n in range(0, 400, 7)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        (tmp_path / "run" / "checkpoint.pt").write_bytes(flipped)
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            stored = newest(folder, strategy_class("er"))
        assert stored is not None
        if noted:
            damaged += 1
            assert "going on from checkpoint-previous.pt" in str(noted[0].message)
        else:
            assert stored.within is not None
            model = stored.within.strategy["model"].state_dict()
            assert all(torch.equal(value, model[name]) for name, value in weights.items())
            assert stored.within.progress.step == 3
    assert damaged > len(places) / 2


def test_a_process_killed_while_it_wrote_leaves_nothing_behind_for_long(er, whole, tmp_path):
    with pytest.raises(StoppedError):
        er(observer=At(1, 4, stop))
    run_folder = tmp_path / "run"
    (run_folder / f".{'0a' * 16}.tmp").write_bytes(b"half of a checkpoint")
    (run_folder / ".mine.tmp").write_bytes(b"not ours")
    (run_folder / "checkpoint.pt").replace(run_folder / "checkpoint-previous.pt")  # moved aside, and then killed
    with pytest.warns(UserWarning, match="checkpoint.pt is missing; going on from checkpoint-previous.pt"):
        er()
    assert sorted(path.name for path in run_folder.iterdir() if path.suffix in (".tmp", ".pt")) == [
        ".mine.tmp",
        "model.pt",
        "state.pt",
    ]
    assert_same(whole, run_folder)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let no file grow beyond 2 KiB, as a full disk does; call with False for room again."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(full: bool = True) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]) if full else before)

    yield limit
    limit(False)


def test_a_full_disk_stops_nothing_within_a_task_and_the_run_at_its_end(er, whole, no_room, tmp_path, refused):
    """Earlier files are intact, the message names the file, and the run goes on when there is room."""
    with (
        pytest.warns(
            UserWarning, match=r"checkpoint\.pt: File too large; what was saved before is kept; the run goes on"
        ),
        pytest.raises(clbench.RunError, match=r"/run.*File too large; .* kept"),
    ):
        er(observer=At(2, 2, no_room))
    no_room(False)
    kept = Result.load(tmp_path / "run").record
    assert (kept["status"], [task["task"] for task in kept["tasks"]]) == ("running", [0, 1])
    assert read(tmp_path / "run").task == 2
    with refused("unfinished", "--resume", "--force"):
        er(resume=False)
    er()
    assert Result.load(tmp_path / "run").record["resumes"] == [{"task": 2, "stage": "", "epoch": 0, "step": 0}]
    assert_same(whole, tmp_path / "run")


def test_a_full_disk_that_has_room_again_costs_nothing(er, whole, no_room, tmp_path):
    class Passing(Observer):
        def step(self, progress: Any, loss: float | None) -> None:
            if progress.task == 2:
                no_room(progress.step in (3, 4))

    with pytest.warns(UserWarning, match="the run goes on"):
        er(observer=Passing())
    assert_same(whole, tmp_path / "run")


def test_permission_lost_on_the_way_ends_the_run_in_a_sentence(er, whole, tmp_path, monkeypatch):
    def denied(path: Any, mode: str) -> Any:
        raise PermissionError(13, "Permission denied")

    def lose() -> None:
        monkeypatch.setattr(clbench.support.files, "open", denied, raising=False)

    with (
        pytest.warns(UserWarning, match="Permission denied; what was saved before is kept; the run goes on"),
        pytest.raises(clbench.RunError, match=r"Permission denied; .* kept"),
    ):
        er(observer=At(1, 2, lose))
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda file: None)
    assert [task["task"] for task in Result.load(tmp_path / "run").record["tasks"]] == [0]
    er()
    assert_same(whole, tmp_path / "run")


LOSES_THE_RIGHT_TO_WRITE = """
    import os, sys
    import clbench
    from clbench.running.folder import RunFolder

    folder = sys.argv[1]

    class Lock(clbench.Observer):
        def step(self, progress, loss):
            if (progress.task, progress.step) == (1, 1):
                os.chmod(folder, 0o555)
                if os.getuid() == 0:  # who may write all the same
                    os.setresuid(65534, 65534, 65534)

    options = dict(limit=5, epochs=1, threads=1, batch_size=5, model="mlp:8", checkpoint_every="1-steps")
    try:
        clbench.run("split-mnist-5k", "naive", out=folder, observer=Lock(), **options)
    except clbench.RunError as error:
        print(error)
    try:
        with RunFolder(folder).lock():
            pass
    except clbench.ConfigError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="needs users")
def test_a_folder_made_read_only_under_a_run_keeps_what_it_has(run):
    """A process really can't write into a folder; when it may again, the run goes on."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        folder = Path(place) / "run"
        command = [sys.executable, "-c", textwrap.dedent(LOSES_THE_RIGHT_TO_WRITE), str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        failed, refused = ended.stdout.splitlines()
        assert "Permission denied" in failed
        assert "kept" in failed
        assert "a folder that can be written is accepted" in refused
        assert [task["task"] for task in Result.load(folder).record["tasks"]] == [0]
        os.chmod(folder, 0o755)
        options = {"limit": 5, "epochs": 1, "threads": 1, "batch_size": 5, "model": "mlp:8"}
        assert clbench.run("split-mnist-5k", "naive", out=folder, resume=True, **options).status == "done"


# Other surroundings


def test_a_clock_that_goes_backwards_changes_nothing(er, whole, tmp_path, monkeypatch):
    """Neither the time of day nor the files' times decide anything."""
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    with pytest.raises(StoppedError):
        er(observer=At(2, 7, stop))
    os.utime(tmp_path / "run" / "checkpoint.pt", (1, 1))
    er()
    record = Result.load(tmp_path / "run").record
    assert record["resumes"][0]["step"] == 6
    assert all(value >= 0 for task in record["tasks"] for value in task["seconds"].values())
    assert_same(whole, tmp_path / "run")


def test_a_run_folder_from_elsewhere_goes_on_and_the_record_says_what_differs(er, whole, tmp_path):
    with pytest.raises(StoppedError):
        er(observer=At(2, 4, stop))
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "run", moved)
    stored = read(moved)
    stored.record["clbench"] = "0.0.1"
    stored.record["environment"]["packages"]["torch"] = "2.6.0"
    RunFolder(moved).save_checkpoint(stored.to_bytes())
    with pytest.warns(
        UserWarning, match=r"begun with clbench 0\.0\.1, here .*; torch 2\.6\.0, here .*: the last bits may"
    ):
        er(out=moved)
    told = [warning["text"] for warning in Result.load(moved).record["warnings"]]
    assert any("torch 2.6.0" in text and "clbench 0.0.1" in text for text in told)
    assert (whole / "accuracy.csv").read_bytes() == (moved / "accuracy.csv").read_bytes()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo])
def test_what_is_no_file_in_a_checkpoints_place_is_refused_and_not_waited_for(put, er, refused, tmp_path):
    with pytest.raises(StoppedError):
        er(observer=At(1, 3, stop))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.unlink()
    put(checkpoint)
    with refused("checkpoint.pt", "no file"):
        er(resume=True)


def test_a_finished_run_is_read_where_nothing_can_be_written(er, whole, tmp_path, monkeypatch):
    done = er()

    def read_only(*_, **__):
        raise ConfigError("Read-only file system")

    monkeypatch.setattr(RunFolder, "lock", read_only)
    assert er().record == done.record


def test_a_checkpoint_of_another_form_is_refused(er, refused, tmp_path, monkeypatch):
    with pytest.raises(StoppedError):
        er(observer=At(1, 4, stop))
    checkpoint = read(tmp_path / "run")
    monkeypatch.setattr("clbench.running.checkpoint.FORM", 99)
    content = checkpoint.to_bytes()
    monkeypatch.undo()
    RunFolder(tmp_path / "run").save_checkpoint(content)
    with refused("checkpoint", "--force"):
        er()


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_saves_the_step_it_comes_at(number, er, whole, tmp_path):
    """This holds for any interval. Ctrl-C is a KeyboardInterrupt; SIGTERM has the program's own handler."""
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        with pytest.raises(KeyboardInterrupt if number is signal.SIGINT else StoppedError):
            er(checkpoint_every="task", observer=At(1, 5, lambda: signal.raise_signal(number)))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert within(tmp_path / "run").progress.step == 5
        er()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Result.load(tmp_path / "run").record["resumes"][0]["step"] == 5
    assert_same(whole, tmp_path / "run")


def test_an_interruption_between_the_steps_waits_for_the_task_to_end_and_a_second_ctrl_c_does_not(run, tmp_path):
    class Interrupts(Strategy):
        """Is interrupted in the hook at the end of a task."""

        traits = Traits(family="replay")

        def end_task(self, task: Any) -> None:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)

    for Interrupts.times, tasks in ((1, 1), (2, 0)):
        with pytest.raises(KeyboardInterrupt):
            run(Interrupts, out=tmp_path / str(tasks))
        record = Result.load(tmp_path / str(tasks)).record
        assert (record["status"], len(record["tasks"])) == ("running", tasks)


def test_a_second_ctrl_c_does_not_wait_after_sigterm_either(run, tmp_path):
    class Interrupts(Strategy):
        traits = Traits(family="replay")

        def end_task(self, task: Any) -> None:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
                signal.raise_signal(number)

    class Ended(BaseException):
        pass

    def end(*_: Any) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended):
            run(Interrupts, out=tmp_path / "run")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Result.load(tmp_path / "run").record["tasks"] == []


def test_an_interruption_in_the_last_moment_ends_the_program_and_the_run_is_done(er, tmp_path):
    class Last(Observer):
        def task(self, task: int, row: Any) -> None:
            if task == 4:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        er(observer=Last())
    assert er().status == "done"


def test_a_signal_that_the_program_takes_no_notice_of_ends_nothing(er, whole, tmp_path):
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        er(observer=At(1, 5, lambda: signal.raise_signal(signal.SIGTERM)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert_same(whole, tmp_path / "run")


def test_a_run_in_another_thread_is_left_alone_by_signals(er, tmp_path):
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.append(er().status))
    thread.start()
    thread.join()
    assert done == ["done"]


@pytest.mark.parametrize("store", ["db", object(), RunFolder])
def test_what_is_no_store_is_refused_before_any_training(store, run, refused):
    with refused("store=", "save_checkpoint, checkpoints, drop_checkpoint"):
        run("naive", store=store)
