"""Runs under way in TensorBoard, Weights & Biases or MLflow: off by default, extras, and no part of what a run is."""

import inspect
import json
import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from clbench.config.classes import is_elsewhere, load_class
from clbench.config.errors import ConfigError, shown, unknown
from clbench.config.run import RunConfig, identity_fields
from clbench.data.scenario import Scenario
from clbench.results.record import MATRICES, EpochRecord, RunRecord, whole_row
from clbench.running.folder import TRACKED
from clbench.running.observer import Observer
from clbench.support.files import write_atomically

PROJECT = "clbench"

# Epochs stand over optimizer steps of the run, what is known after a task over tasks.
Axis = Literal["optimizer_step", "task"]


class Tracker(Observer, ABC):
    """Sends losses and rate of each epoch, accuracies and metrics after each task; a subclass says where to.

    Of the configuration it sends what can change the numbers, files by their names or digests: no path, no environment,
    no command line, no host. What goes wrong under way ends the tracking with a warning, never the run.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Name a tracker that has no name after its class."""
        if not hasattr(cls, "name"):
            cls.name = cls.__name__

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._steps, self._tasks = 0, 0
        self._status = "running"
        self._given_up = False

    @abstractmethod
    def start(self, title: str, group: str, fields: dict[str, str], known: str | None) -> str | None:
        """Begin, or go on with the run that was `known` by an id; return the id."""

    @abstractmethod
    def log(self, values: dict[str, float], axis: Axis, at: int) -> None:
        """Send numbers by name, all of them known at one point of an axis."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """End; status: `done`, `failed`, or `running` for what was interrupted."""

    def begin(self, config: RunConfig, scenario: Scenario, first_task: int) -> None:
        """Open the run at the service; raises ConfigError where that can't be done."""
        self._tasks = first_task
        label = config.label.replace(config.strategy, Path(config.strategy).name)
        title = f"{scenario.name}, {label}, seed {config.seed}"
        ids = self._ids()
        try:
            known = self.start(title, f"{scenario.name}, {label}", _fields(config), ids.get(self.name))
        except Exception as error:  # whatever a service raises
            raise ConfigError(f"track={self.name}: {_reason(error)}; it is off without the option") from None
        if known is not None:
            write_atomically(self.folder / TRACKED, json.dumps({**ids, self.name: known}))

    def resumed(self, training: list[EpochRecord]) -> None:
        """Go on behind these epochs."""
        self._steps = sum(epoch.steps or 0 for epoch in training)

    def epoch(self, record: EpochRecord) -> None:
        """Send losses and learning rate."""
        self._steps += record.steps or 0
        values = {f"loss/{term}": value for term, value in record.losses.items()}
        values |= {"learning_rate": record.lr, "validation_loss": record.validation_loss}
        self._send(values, "optimizer_step", self._steps)

    def written(self, record: RunRecord) -> None:
        """Send the accuracies and metrics after the tasks that are new."""
        self._status = record.status
        for task in range(self._tasks, len(record.tasks)):
            values = {
                f"{matrix}_accuracy/task {j}": value
                for matrix in MATRICES
                if (rows := record.accuracy[matrix])
                for j, value in enumerate(whole_row(rows, task))
            }
            values |= {f"metrics/{name}": value for name, value in record.metrics.items()}
            self._send(values, "task", task)
            self._tasks = task + 1

    def close(self) -> None:
        """Tell the service how the run ended."""
        self._safely(lambda: self.finish(self._status))

    def _send(self, values: Mapping[str, float | None], axis: Axis, at: int) -> None:
        known = {
            re.sub(r"[^\w./ -]", "_", name): float(value)
            for name, value in values.items()
            if value is not None and math.isfinite(value)
        }
        self._safely(lambda: self.log(known, axis, at))

    def _safely(self, do: Callable[[], None]) -> None:
        if self._given_up:
            return
        try:
            do()
        except Exception as error:  # whatever a service raises: the run is worth more
            self._given_up = True
            warnings.warn(f"{self.folder}: {self.name} is given up ({_reason(error)}); the run goes on", stacklevel=2)

    def _ids(self) -> dict[str, str]:
        try:
            found = json.loads((self.folder / TRACKED).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class TensorBoard(Tracker):
    """Event files in the run's folder, under `tensorboard`."""

    name = "tensorboard"

    def start(self, title: str, group: str, fields: dict[str, str], known: str | None) -> str | None:
        """Open an event file; one that is there already stays, and TensorBoard shows both as one run."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder / self.name))
        rows = "\n".join(f"| {key} | {value} |" for key, value in fields.items())
        self._writer.add_text("config", f"{title}\n\n| field | value |\n|---|---|\n{rows}")
        return None

    def log(self, values: dict[str, float], axis: Axis, at: int) -> None:
        """Write the numbers through to the file: a run that is killed leaves them."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, at)
        self._writer.flush()

    def finish(self, status: str) -> None:
        """Close the file."""
        self._writer.close()


class WandB(Tracker):
    """A run of Weights & Biases, in the project of WANDB_PROJECT or `clbench`."""

    name = "wandb"

    def start(self, title: str, group: str, fields: dict[str, str], known: str | None) -> str | None:
        """Open the run, without what wandb would collect by itself: code, git, command line, host, output."""
        import os

        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=title[:128],
            group=group[:128],
            config=fields,
            dir=str(self.folder),
            id=known,
            resume=None if known is None else "allow",
            settings=wandb.Settings(
                console="off", save_code=False, disable_git=True, x_disable_meta=True, x_disable_stats=True, silent=True
            ),
        )
        self._run.define_metric("*", step_metric="optimizer_step")
        for names in ("class_incremental_accuracy/*", "task_aware_accuracy/*", "metrics/*"):
            self._run.define_metric(names, step_metric="task")
        return str(self._run.id)

    def log(self, values: dict[str, float], axis: Axis, at: int) -> None:
        """Send the numbers with their point of the axis."""
        self._run.log({**values, axis: at})

    def finish(self, status: str) -> None:
        """End the run; exit code 1 for one that failed or was interrupted."""
        self._run.finish(exit_code=0 if status == "done" else 1)


class MLflow(Tracker):
    """A run of MLflow, in the experiment `clbench`, at MLFLOW_TRACKING_URI or where MLflow keeps runs by default."""

    name = "mlflow"

    def start(self, title: str, group: str, fields: dict[str, str], known: str | None) -> str | None:
        """Create the run, or open the known one again; the client sends no user, source or commit by itself."""
        from mlflow import MlflowClient

        self._client = MlflowClient()
        if known is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return known
        experiment = self._client.get_experiment_by_name(PROJECT)
        where = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        self._id = str(self._client.create_run(where, run_name=title, tags={"group": group}).info.run_id)
        for key, value in fields.items():
            self._client.log_param(self._id, key, value[:500])
        return self._id

    def log(self, values: dict[str, float], axis: Axis, at: int) -> None:
        """Send the numbers one by one."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=at)

    def finish(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self._id, {"done": "FINISHED", "failed": "FAILED"}.get(status, "KILLED"))


TRACKERS: dict[str, type[Tracker]] = {cls.name: cls for cls in (TensorBoard, WandB, MLflow)}
"""The trackers by the name of their package, which is that of the extra too."""


def require_tracker(name: str) -> type[Tracker]:
    """Return a tracker whose package is installed, or one of the user's own by its file or entry point.

    Raises ConfigError.
    """
    if name not in TRACKERS and is_elsewhere("tracker", name):
        own = load_class("tracker", name)
        if not (isinstance(own, type) and issubclass(own, Tracker)) or inspect.isabstract(own):
            missing = ", ".join(sorted(getattr(own, "__abstractmethods__", ()))) or "start, log, finish"
            raise ConfigError(f"track={name}: {shown(own)}; a subclass of clbench.Tracker with {missing} is accepted")
        return own
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    spec = find_spec(name)
    # A folder called `wandb`, which wandb itself leaves in the working folder, is not the package.
    if spec is None or spec.origin is None:
        raise ConfigError(f"--track {name} needs the package {name}; pip install 'clbench[{name}]' is accepted")
    return TRACKERS[name]


def _fields(config: RunConfig) -> dict[str, str]:
    fields = identity_fields(config)
    options = fields.pop("strategy_options")
    fields |= {f"strategy_options.{key}": value for key, value in options.items()}
    return {key: str(value) for key, value in fields.items() if value is not None}


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:150]
