"""Compare runs that are killed and continued with undisturbed runs: `crash.py KILLS SEED STRATEGY...`.

This process builds the scenario and never trains. It forks a process for each attempt, so an attempt costs no import.
Half of the kills come at a random moment. The others come while a file is written: half of it is there; or it is whole
but has no name yet; or the last checkpoint has moved aside and the new one has not taken its place. It prints a line of
JSON for each strategy: the figures, or the error.
"""

import dataclasses
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import timm.models  # noqa: F401 - so that this process can read a transformer in a checkpoint
import torch
import torch._dynamo  # which the first optimizer would import, in each process anew

import clbench.models.mlp
import clbench.support.files
from clbench.results.result import Result
from clbench.running.checkpoint import Checkpoint, newest
from clbench.running.folder import RunFolder
from clbench.running.packing import unpack
from clbench.running.resolve import prepare, resolve, strategy_class
from clbench.running.run import Run, execute
from clbench.tools.conformance import TRANSFORMER, _assert_equal

OPTIONS: dict[str, Any] = {
    "limit": 30,
    "epochs": 3,
    "batch_size": 8,
    "model": "mlp:24-24",
    "optimizer": "adam",
    "lr": 0.005,
    "threads": 1,
    "validation": 0.2,
    "patience": 2,
    "checkpoint_every": "3-steps",
}
MEMORY = 40


def kill_and_continue(name: str, kills_wanted: int, seed: int) -> dict[str, Any]:
    """Kill and continue runs until there were `kills_wanted` kills and the last run is done; return the figures."""
    cls = strategy_class(name)
    options = (
        OPTIONS | {"setting": cls.traits.settings[0]} | ({"memory_size": MEMORY} if cls.traits.needs_memory else {})
    )
    if cls.traits.needs_transformer:
        options["model"] = TRANSFORMER
    config, scenario = prepare(resolve("split-mnist-5k", name, options))
    chance = random.Random(f"{seed}/{name}")
    log: list[dict[str, Any]] = []
    started = time.monotonic()
    runs = 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        begun = time.monotonic()
        assert attempt(config, scenario, whole)[1] == 0
        duration = time.monotonic() - begun
        while len(log) < kills_wanted:
            out, runs = Path(place) / f"killed-{runs}", runs + 1
            for number in itertools.count():
                # Not for ever, because a run that is killed too early each time would never end.
                killed = len(log) < kills_wanted and number < 2 * kills_wanted
                in_a_write = chance.random() < 0.5
                fault = (chance.choice(FAULTS), chance.randint(2, 14)) if killed and in_a_write else None
                delay = chance.uniform(0, 0.5) * duration if killed and not in_a_write else None
                at, status = attempt(config, scenario, out, fault, delay)
                if log and log[-1]["run"] == runs and "resumed_at" not in log[-1]:
                    log[-1]["resumed_at"] = at
                if status == 0:
                    break
                assert status == signal.SIGKILL, f"{name} ended with {status}"
                log.append({"run": runs, "fault": fault and fault[0]})
            compare(cls, whole, out)
            shutil.rmtree(out)
    return {
        "strategy": name,
        "setting": cls.traits.settings[0],
        "kills": len(log),
        "kills_in_a_write": sum(kill["fault"] is not None for kill in log),
        "resumes_inside_a_task": sum(kill["resumed_at"] is not None for kill in log),
        "runs": runs,
        "identical_runs": runs,
        "seed": seed,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started, 1),
        "log": log,
    }


def attempt(
    config: Any, scenario: Any, out: Path, fault: tuple[str, int] | None = None, delay: float | None = None
) -> tuple[dict[str, Any] | None, int]:
    """Go on with a run in a process of its own; return where inside a task it began, if inside, and how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare_child(writer, fault)
            execute(config, scenario, RunFolder(out), resume=True)
            os._exit(0)
        except BaseException as error:
            print(f"{config.strategy}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        at = json.loads(pipe.readline() or "null")
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return at, os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


FAULTS = ("half a file", "no name yet", "moved aside")


def prepare_child(writer: int, fault: tuple[str, int] | None) -> None:
    """Report where the run begins, keep its final state, and let it be killed within a write."""
    warnings.simplefilter("ignore")
    go, drop = Run.go, RunFolder.drop_checkpoint

    def go_and_tell(self: Run, found: Any) -> Any:
        kept = self.store and newest(self.store, type(self.strategy))
        at = dataclasses.asdict(kept.within.progress) if kept and kept.within else None
        os.write(writer, f"{json.dumps(at)}\n".encode())
        return go(self, found)

    def keep_and_drop(folder: RunFolder) -> None:
        shutil.copy(folder.path / "checkpoint.pt", folder.path / "kept.pt")
        drop(folder)

    Run.go = go_and_tell  # type: ignore[method-assign]
    RunFolder.drop_checkpoint = keep_and_drop  # type: ignore[method-assign, assignment]
    kind, left = fault or ("", 0)
    replace = os.replace

    def count(what: str) -> bool:
        nonlocal left
        left -= what == kind
        return what == kind and left <= 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Torn(io.FileIO):
        def write(self, data: Any) -> int:
            if count("half a file"):
                super().write(data[: len(data) // 2])
                die()
            return super().write(data)

    def replaced(one: Path, other: Path) -> None:
        if count("no name yet"):
            die()
        replace(one, other)
        if str(other).endswith("-previous.pt") and count("moved aside"):
            die()

    clbench.support.files.open = Torn  # type: ignore[attr-defined]
    os.replace = replaced  # type: ignore[assignment]
    # A killed process loses nothing that it has written; only a power cut does.
    os.fsync = lambda fd: None


def compare(cls: Any, whole: Path, killed: Path) -> None:
    """Raise AssertionError unless matrices, losses, exemplars, weights and all learnt state are the same."""
    assert (whole / "accuracy.csv").read_bytes() == (killed / "accuracy.csv").read_bytes()
    records = [Result.load(folder).record for folder in (whole, killed)]
    for record in records:
        for key in ("created", "resumes"):
            del record[key]
        for entry in record["tasks"] + record["training"]:
            del entry["seconds"]
            entry.pop("peak_memory_bytes", None)
    assert records[0] == records[1]
    kept = [Checkpoint.from_bytes((folder / "kept.pt").read_bytes(), cls).start or b"" for folder in (whole, killed)]
    weights = [(folder / "model.pt").read_bytes() for folder in (whole, killed)]
    for name, contents in (("model.pt", weights), ("kept.pt", kept)):
        one, other = (unpack(content, cls) for content in contents)
        _assert_equal(one, other, name)
    assert not any(path.name.startswith("checkpoint") or path.suffix == ".tmp" for path in killed.iterdir())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for strategy in sys.argv[3:]:
        try:
            found = kill_and_continue(strategy, int(sys.argv[1]), int(sys.argv[2]))
        except AssertionError as error:
            traceback.print_exc()
            found = {"strategy": strategy, "error": str(error) or "the runs differ"}
        print(json.dumps(found), flush=True)
