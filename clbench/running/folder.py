"""Run folders: what is already there, locks, checkpoints. No file of a run folder can run code."""

import functools
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from clbench.config.code import changed
from clbench.config.errors import ConfigError, RunError
from clbench.config.registry import path_of
from clbench.config.run import NAMED_WEIGHTS, NOT_IDENTITY, RunConfig, config_of_record, former_names
from clbench.results.result import Result
from clbench.support.endings import BEGUN
from clbench.support.files import expanded, remove_unfinished, write_atomically
from clbench.support.locks import held

# Left in every run folder, so that a damaged run is known as one of ours.
MARK = ".clbench"
# The final scores of the test images, where they are kept.
PREDICTIONS = "predictions.npz"
# All that was learnt, by which a finished run is used and goes on; see final.py.
STATE = "state.pt"
# The ids by which the services of --track know the run.
TRACKED = "track.json"


def default_folder(config: RunConfig, root: str | os.PathLike[str] = "runs") -> Path:
    """Return root/SCENARIO/STRATEGY/SEED-HASH; the hash is of everything that can change the numbers.

    What has another name since the first version keeps its folder, so that its finished runs are found.
    """
    scenario, strategy = former_names(config)
    if config.data_fingerprint:
        scenario = Path(scenario).resolve().stem
    return expanded(root) / scenario / strategy.rpartition(":")[2] / f"{config.seed}-{config.identity()[:8]}"


def superseded(config: RunConfig, folder: Path) -> str:
    """Say which run beside a new one differs from it in nothing but the user's code or the data; "" where none does.

    The latest of them is named, and what has changed.
    """
    if (folder / "run.json").exists() or folder.name != default_folder(config).name:
        return ""
    asked = config.without_content().identity()
    beside = {
        file: stat.st_mtime_ns for file in folder.parent.glob(f"{config.seed}-*/run.json") if (stat := _stat(file))
    }
    for file, stamp in sorted(beside.items(), key=lambda item: item[1], reverse=True):
        if _asked_of(file, stamp) == asked:
            there = Result.load(file)
            unfinished = "" if there.status == "done" else "unfinished "
            return f"as the {unfinished}run in {file.parent} is of other content: {_differences(there.config, config)}"
    return ""


@functools.lru_cache(maxsize=4096)
def _asked_of(file: Path, stamp: int) -> str | None:
    """Return what the run of a run.json was asked for, as an identity without content; None for what can't be read."""
    try:
        return config_of_record(Result.load(file).config).without_content().identity()
    except ConfigError:
        return None


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def announce(config: RunConfig, folder: Path, place: int) -> None:
    """Leave the mark of a planned run, with its name and its place among the planned ones, for those who look on.

    A folder that can't be made is told later.
    """
    BEGUN.set()
    with suppress(OSError):
        named = {"scenario": Path(config.scenario).name, "strategy": config.label, "seed": config.seed, "place": place}
        folder.mkdir(parents=True, exist_ok=True)
        # Not atomically: that waits for the disk, for each of a thousand runs, and nothing is lost with it.
        (folder / MARK).write_text(json.dumps(named), encoding="utf-8")


def withdraw(folders: Sequence[Path]) -> None:
    """Remove a run's folder, the first of these, if it holds nothing but the mark, and then the others that are empty.

    A run that was refused leaves nothing behind that looks like one that is still to be done.
    """
    with suppress(OSError):
        if os.listdir(folders[0]) == [MARK]:
            (folders[0] / MARK).unlink()
            for folder in folders:
                folder.rmdir()


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder where there is none; raises ConfigError when it can't be made."""
    path = expanded(path)
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:  # a ValueError too, such as that another process holds the folder
        raise
    except (OSError, ValueError) as error:  # no path can hold a NUL
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: {why}; a folder that can be written is accepted") from None


class RunFolder:
    """The folder of one run: run.json, accuracy.csv, training.csv, model.pt, state.pt.

    While the run is unfinished there are two checkpoints.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._named = expanded(path)
        # A hook may change the working folder while the run goes on.
        self.path = self._named.absolute()
        with _writing(self.path):
            self.path.exists()  # of a name that is too long it can't be said
        self._checkpoints = (self.path / "checkpoint.pt", self.path / "checkpoint-previous.pt")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, also against other hosts; raises ConfigError, locks.InUseError when another process does.

        A folder that is made here and in which nothing is left, as by a run that was refused, is removed again.
        """
        BEGUN.set()
        with ExitStack() as stack:
            with _writing(self._named):
                made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
                if made:
                    stack.callback(withdraw, made)
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / MARK).touch()
                stack.enter_context(held(self.path))
            remove_unfinished(self.path)
            yield

    def existing(self, config: RunConfig) -> Result | None:
        """Return the run that is there, None for a new folder; raises ConfigError when it is another one's."""
        if not os.path.exists(self.path / "run.json"):
            return None
        result = Result.load(self.path)
        if result.recorded.identity != config.identity():
            differing = _differences(result.config, config)
            raise ConfigError(f"{self} holds another run: {differing}; name another folder, or --force to overwrite it")
        return result

    def finished_at(self) -> str:
        """Return when the run here was written last, in local time to the minute."""
        return datetime.fromtimestamp((self.path / "run.json").stat().st_mtime).strftime("%Y-%m-%d %H:%M")

    def note_nothing_to_continue(self) -> None:
        """Warn where a run is asked to go on and there is none."""
        if not (self.path / "run.json").exists() and not self.has_checkpoint():
            warnings.warn(f"{self}: there is no run to continue, so one begins", stacklevel=4)

    def clear(self) -> None:
        """Remove what a run left here, and nothing else."""
        for name in ("run.json", "accuracy.csv", "training.csv", "model.pt", STATE, PREDICTIONS, TRACKED):
            (self.path / name).unlink(missing_ok=True)
        for events in self.path.glob("tensorboard/events.out.tfevents.*"):
            events.unlink(missing_ok=True)
        self.drop_checkpoint()

    def save_checkpoint(self, content: bytes) -> None:
        """Write a state to continue from in one step, and keep the one before; raises RunError when it can't."""
        self._write(self._checkpoints[0], content, previous=self._checkpoints[1])

    def checkpoints(self) -> list[tuple[str, bytes | Exception]]:
        """Return the checkpoints, the newest first, by the names of their files; nothing where there is none.

        Raises ConfigError for a folder in the place of one.
        """
        if not self.has_checkpoint():
            return []
        kept: list[tuple[str, bytes | Exception]] = []
        for path in self._checkpoints:
            if path.exists() and not path.is_file():
                raise ConfigError(f"{path} is no file, and a checkpoint is one; remove it")
            try:
                kept.append((path.name, path.read_bytes()))
            except OSError as error:
                kept.append((path.name, error))
        return kept

    def is_ours(self) -> bool:
        """Whether nothing is here, or what a run of clbench left; anything else is not ours to overwrite."""
        if not any((self.path / name).exists() for name in ("run.json", "model.pt", "accuracy.csv", "training.csv")):
            return True
        return (self.path / MARK).exists() or self.has_checkpoint() or _is_run(self.path)

    def has_checkpoint(self) -> bool:
        """Whether there is a state to continue from."""
        return any(path.exists() for path in self._checkpoints)

    def drop_checkpoint(self) -> None:
        """Drop the checkpoints, which a finished run no longer needs."""
        for path in self._checkpoints:
            path.unlink(missing_ok=True)

    def save_model(self, content: bytes) -> None:
        """Write the final weights; raises RunError when it can't."""
        self._write(self.path / "model.pt", content)

    def save_state(self, content: bytes) -> None:
        """Write the final state in one step; raises RunError when it can't."""
        self._write(self.path / STATE, content)

    def save_predictions(self, arrays: Mapping[str, Any]) -> None:
        """Write tensors by name as predictions.npz; raises RunError when it can't."""
        content = io.BytesIO()
        np.savez_compressed(content, **{name: tensor.numpy() for name, tensor in arrays.items()})
        self._write(self.path / PREDICTIONS, content.getvalue())

    def __str__(self) -> str:
        return str(self._named)

    def _write(self, path: Path, content: bytes, previous: Path | None = None) -> None:
        try:
            write_atomically(path, content, previous=previous)
        except OSError as error:
            raise RunError(f"{path}: {error.strerror or error}; what was saved before is kept") from None


def _is_run(path: Path) -> bool:
    try:
        Result.load(path)
    except ConfigError:
        return False
    return True


def _differences(stored: dict[str, Any], config: RunConfig) -> str:
    """Return in which fields a stored run differs, options of one strategy each by itself, at most four."""
    ours = config.flat()
    read, told = ours.pop("data_fingerprint"), stored.get("data_fingerprint")
    beside = {*NOT_IDENTITY, "strategy_options", "code"}
    named = {k: (stored.get(k), ours[k]) for k in ours if k not in beside}
    if stored.get("strategy") == config.strategy:
        options = stored.get("strategy_options") or {}
        named |= {k: (options.get(k), v) for k, v in config.strategy_options.items()}
    differing = [f"{k} is {there!r} there and {here!r} here" for k, (there, here) in named.items() if there != here]
    if code := changed(stored.get("code") or {}, config.code):
        more = f" and {len(code) - 3} more" if len(code) > 3 else ""
        differing.insert(
            0, f"{', '.join(code[:3])}{more} {'is' if len(code) == 1 else 'are'} not what it was made with"
        )
    if read != told:
        there, here = (f"have the digest {value}" if value else "count as the published ones" for value in (told, read))
        differing.insert(0, f"its data {there} there and {here} here")
    weights = config.model.weights
    files = [f"the file {weights}"] if weights and not NAMED_WEIGHTS.fullmatch(weights) else []
    files += [f"the file {path}" for path in (path_of(config.strategy), path_of(config.model.name)) if path]
    return "; ".join(differing[:4]) or f"the content of {' or '.join(files) or 'what it was made of'} differs"
