"""After a device error: a fresh process replays the run on the CPU, where an error comes when it is made, in words.

On an accelerator an error surfaces some steps late and as a code, and after it the process can't use the device.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clbench.config.errors import RunError
from clbench.config.run import config_of_record
from clbench.learning.strategy import Progress
from clbench.results.result import Result
from clbench.running.checkpoint import newest
from clbench.running.folder import RunFolder
from clbench.running.observer import Observer
from clbench.running.resolve import prepare, strategy_class
from clbench.running.run import execute

SIGNS = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS", "HIP error", "MPS backend")


def is_device_error(error: BaseException) -> bool:
    """Whether an error says of the device that it failed; running out of memory is none."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )


def explain(folder: Path) -> str:
    """Replay a failed run on the CPU, from its last checkpoint to where it failed; return both errors as a sentence.

    The run's own folder stays as it is.
    """
    record = Result.load(folder).record
    at = record["failed_at"]
    where = f"stage {at['stage']!r}, epoch {at['epoch']}, step {at['step']}"
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, Path(copy) / "run", ignore=shutil.ignore_patterns(".lease*"))
        command = [sys.executable, "-X", "utf8", "-m", "clbench.tools.explain", str(Path(copy) / "run")]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
    lines = done.stdout.splitlines()
    found = lines[-1] if done.returncode == 0 and lines else f"the replay failed ({done.stderr.strip()[-200:]})"
    return f"{record['error'].splitlines()[0]}, {where}; on the CPU: {found}"


class _PassedError(Exception):
    """The replay is beyond the place where the run failed."""


class _Until(Observer):
    def __init__(self, at: dict[str, Any]) -> None:
        self.at = at

    def step(self, progress: Progress, loss: float | None) -> None:
        if (progress.task, progress.stage) == (self.at["task"], self.at["stage"]) and progress.step > self.at["step"]:
            raise _PassedError

    def task(self, task: int, row: list[float | None]) -> None:
        if task >= self.at["task"]:
            raise _PassedError


def replay(path: Path) -> str:
    """Run a copy of a failed run on the CPU until it fails or is beyond that place; return what happened."""
    record = Result.load(path).record
    config, scenario = prepare(config_of_record(record["config"] | {"device": "cpu", "deterministic": False}))
    if record["config"].get("data_fingerprint") not in (None, config.data_fingerprint):
        return "the data are no longer those of the run, so nothing can be said"
    folder = RunFolder(path)
    checkpoint = newest(folder, strategy_class(config.strategy))
    if checkpoint is not None:
        # The same run but for its device, which is part of what a run is.
        folder.save_checkpoint(replace(checkpoint, identity=config.identity()).to_bytes())
    (path / "run.json").unlink()
    try:
        execute(config, scenario, folder, observer=_Until(record["failed_at"]))
    except _PassedError:
        pass
    except RunError as error:
        return " ".join(str(error).split())
    except Exception as error:  # whatever a strategy raises before its first task
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "no error up to there, so it is the device, not the data or the strategy"


if __name__ == "__main__":
    print(replay(Path(sys.argv[1])))
