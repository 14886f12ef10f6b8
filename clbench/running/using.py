"""The use of a finished run: its strategy as it was after the last task, which classifies images without any data."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clbench.config.arguments import checked
from clbench.config.classes import is_known
from clbench.config.errors import ConfigError, RunError, shown
from clbench.config.run import RunConfig, config_of_record
from clbench.data.batches import Pipeline, gathered
from clbench.data.scenario import Images, ImageSet, Scenario, Task
from clbench.learning.returned import class_scores
from clbench.learning.strategy import Context, Progress, Strategy, eval_mode, fit_passes, spoilt
from clbench.models import build_model
from clbench.models.network import Network
from clbench.results.record import RunRecord
from clbench.results.result import Result
from clbench.running.blame import run_error
from clbench.running.final import Final
from clbench.running.folder import STATE
from clbench.running.packing import unpack
from clbench.running.process import process_settings
from clbench.running.resolve import find_device, scenario_class, strategy_class
from clbench.running.run import runner_of

Ints = NDArray[np.int64]
# The task of all images, or that of each.
Tasks = int | Sequence[int] | Ints | Tensor
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Finished:
    """A finished run as its folder holds it: where it is, its result, its config, and all that it has learnt."""

    folder: Path
    result: Result
    config: RunConfig
    kind: type[Strategy]
    final: Final

    @property
    def record(self) -> RunRecord:
        """The record of the run."""
        return self.result.recorded

    def damaged(self, error: Exception) -> ConfigError:
        """Return the refusal of a state that is whole, and yet not what a run left."""
        why = (str(error) or type(error).__name__).splitlines()[0][:60]
        return ConfigError(
            f"{self.folder / STATE} is not as a run of clbench left it ({why}); restore it, or make the run again with "
            "--force"
        )


def finished_run(run: str | os.PathLike[str] | Result) -> Finished:
    """Return a finished run with its state; raises ConfigError for what is none, and says what to do."""
    result = run if isinstance(run, Result) else Result.load(run)
    if result.folder is None:
        raise ConfigError("this Result was read from no folder; the folder of the run is accepted")
    folder = result.folder
    if result.status != "done":
        what = "a run that failed" if result.status == "failed" else "an unfinished run"
        raise ConfigError(f"{folder} holds {what}; a finished one is accepted, and --resume continues this one")
    config = config_of_record(result.config)
    kind = strategy_class(config.strategy, config.code)
    if not runner_of(kind).continues:
        raise ConfigError(
            f"{folder}: {config.strategy} trains by its own loop, whose state can't be kept; runs of the strategies of "
            "clbench are accepted"
        )
    place = folder / STATE
    again = "the run made again with --force keeps it"
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {STATE}, which holds all that was learnt; {again}, without --no-keep-state"
        ) from None
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror or error}; a readable file is accepted") from None
    try:
        final = Final.from_bytes(content)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    except Exception as error:  # torch.load has no error of its own for what isn't a file of tensors
        why = (str(error) or type(error).__name__).splitlines()[0][:60]
        raise ConfigError(f"{place} is damaged ({why}); restore it: {again}") from None
    if final.identity != result.recorded.identity or final.tasks != len(result.recorded.scenario.tasks):
        raise ConfigError(f"{place} is of another run; restore the run's own: {again}")
    return Finished(folder, result, config, kind, final)


@dataclass(frozen=True)
class Predictions:
    """The answers for N images.

    outputs: the head's output with the largest score among those that compete, int64 [N].
    classes: the original class that the output stands for, int64 [N]; -1 where it stands for several, as the shared
        outputs of a domain-incremental scenario do while the task is not known.
    names: the names of the classes; of several classes all names, joined by "|".
    tasks: the task that was given, or that first brought the class, int64 [N]; -1 where it is not known.
    probabilities: softmax of the scores of the outputs that compete, at the chosen one, float32 [N]. It is the
        network's probability where the scores are its logits. Where they are cosines, distances to class means or
        closed-form scores, it ranks the classes as these do and is no more than a measure of how far ahead one is.
    """

    outputs: Ints
    classes: Ints
    names: list[str]
    tasks: Ints
    probabilities: Floats

    def __len__(self) -> int:
        return len(self.names)


class Learnt:
    """All that a finished run has learnt, which classifies images; load_model() makes it.

    record: of the run.
    image_shape: (C, H, W) of its images, or the shape of its other samples.
    of_images: whether they are images of bytes, uint8; others are floats.
    class_names: of the original classes.
    classifier: the one that answers, such as "linear" or "nearest_mean", of those that the run reports.
    folder, config: of the run.
    """

    def __init__(self, finished: Finished, device: str = "auto") -> None:
        self.folder = finished.folder
        self.record, final = finished.record, finished.final
        self.image_shape, self.of_images = final.image_shape, final.of_images
        self.class_names = tuple(self.record.scenario.class_names)
        self.classifier = self.record.headline.classifier
        self.config = finished.config.replace(device=find_device(device))
        self._strategy = finished.kind(**self.config.strategy_options)
        try:
            self._context = _context(self.config, final, self.record)
            # The state may hold layers of packages that building the network imports.
            build_model(self.config.model.name, self.image_shape, 0, self.config.code)
            learnt = unpack(final.learnt, finished.kind, self._context.device)
            self._strategy._context = self._context
            self._strategy.load_state(learnt["strategy"])
            model = self._strategy.model
            if not isinstance(model, Network) or model.head.out_features < self._context.scenario.n_outputs:
                raise ValueError("its network has not the outputs of the run")
            if wrong := spoilt(self._strategy):
                raise ValueError(wrong)
        except Exception as error:  # of any kind, as what it holds may be anything
            raise finished.damaged(error) from error
        fit_passes(self._context, model)

    @property
    def told_task(self) -> bool:
        """Whether the strategy is told the task of an image, by which its scores differ."""
        return self._strategy.traits.needs_task_at_test

    @property
    def needs_task(self) -> bool:
        """Whether the task of each image must be given: in task-incremental runs, and where the strategy is told it."""
        return self.told_task or self._context.scenario.setting == "task"

    @property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, float32 [1, ...]: the network is given x * scale + shift."""
        return self._context.pipeline.scale, self._context.pipeline.shift

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules of the strategy by name, the network as `model`."""
        return {name: value for name, value in vars(self._strategy).items() if isinstance(value, nn.Module)}

    def answer(self, images: Tensor, task: int | None) -> Tensor:
        """Return the scores of normalised images on the device, float [N, outputs], unchecked, for a tracer.

        task: that of all images, for a strategy that is told it.
        """
        found = self._strategy.scores(images) if task is None else self._strategy.scores(images, task)
        return (found[self.classifier] if isinstance(found, dict) else found).float()

    def scores(self, images: Any, task: Tasks | None = None) -> Floats:
        """Return the scores of all outputs, float32 [N, outputs], as the run's own evaluation computes them.

        images: uint8 [N, C, H, W], [N, H, W, C] or [N, H, W], floats of a run of floats, or paths: files of images,
            folders of them, .npy and .npz files, brought to the run's size as its own data were.
        task: 0-based, of all images or of each; a strategy that is told the task needs it, and then the scores of
            other tasks' outputs mean nothing.

        Raises ConfigError for images or tasks that the run can't take.
        """
        samples = self.read(images)
        return self._scores(samples, self._tasks(task, len(samples)))

    def predict(self, images: Any, task: Tasks | None = None) -> Predictions:
        """Return the class of each image, its name, its probability and its task; see Predictions.

        images, task: see scores(). A task that is given leaves its classes alone to compete; a task-incremental run
        needs it.

        Raises ConfigError for images or tasks that the run can't take.
        """
        samples = self.read(images)
        tasks = self._tasks(task, len(samples))
        return self.answers(self._scores(samples, tasks), None if task is None else tasks)

    def read(self, images: Any) -> NDArray[Any]:
        """Return images, or those in files, as an array [N, ...] of the run's shape; see scores()."""
        paths = images if isinstance(images, list | tuple) and images else [images]
        if all(isinstance(path, str | os.PathLike) for path in paths):
            return self.read_files(paths)[1]
        given = images.cpu().numpy() if isinstance(images, Tensor) else images
        samples: NDArray[Any] = _files().of_run(given, "images", self.image_shape, of_images=self.of_images)
        return samples

    def read_files(
        self, paths: Sequence[str | os.PathLike[str]], *, skip_unreadable: bool = False
    ) -> tuple[list[str], NDArray[Any]]:
        """Return the images in files, folders and arrays, brought to the run's size as its own data were.

        skip_unreadable: leave out files that can't be used, with a warning.
        Returns a name for each image, and the images, uint8 or float32 [N, ...]. Raises ConfigError, for all files
        together that can't be used.
        """
        options, scenario = self.config.scenario_options, self.config.scenario
        names, images = _files().images_in(
            [os.fspath(path) for path in paths],
            self.image_shape,
            of_images=self.of_images,
            image_size=options.get("image_size"),
            fits=is_known("scenario", scenario) and scenario_class(scenario).fits_sizes,
            skip=skip_unreadable,
        )
        return names, images

    def answers(self, scores: Floats, tasks: Ints | None = None) -> Predictions:
        """Return what scores say, float [N, outputs]; tasks: those that are given, int64 [N]."""
        scenario, table = (
            self._context.scenario,
            torch.from_numpy(np.array(scores))[:, : self._context.scenario.n_outputs],
        )
        if tasks is not None and scenario.setting != "domain":
            own = torch.zeros(len(scenario.tasks), table.shape[1], dtype=torch.bool)
            for of in scenario.tasks:
                own[of.index, of.outputs] = True
            table = table.masked_fill(~own[torch.from_numpy(tasks)], -torch.inf)
        found = table.argmax(1)
        probabilities = table.softmax(1).gather(1, found[:, None])[:, 0]
        outputs: Ints = found.numpy()
        given = [None] * len(outputs) if tasks is None else tasks.tolist()
        meant = [self._meant(output, task) for output, task in zip(outputs.tolist(), given, strict=True)]
        return Predictions(
            outputs,
            np.array([classes[0] if len(classes) == 1 else -1 for classes, _ in meant], np.int64),
            ["|".join(self.class_names[c] for c in classes) for classes, _ in meant],
            np.array([task for _, task in meant], np.int64),
            probabilities.numpy(),
        )

    def _meant(self, output: int, task: int | None) -> tuple[list[int], int]:
        """Return the classes that an output stands for, and the task, -1 for an unknown one."""
        tasks = self._context.scenario.tasks
        having = [t for t in tasks if t.outputs.start <= output < t.outputs.stop and task in (None, t.index)]
        classes = list(dict.fromkeys(t.classes[output - t.outputs.start] for t in having))
        return classes, having[0].index if len(classes) == 1 else -1

    def _tasks(self, task: Tasks | None, n: int) -> Ints:
        """Return the task of each image, int64 [N], the last one where none is given; raises ConfigError."""
        n_tasks = len(self._context.scenario.tasks)
        if task is None:
            if self.needs_task:
                name, setting = self.record.strategy.name, self._context.scenario.setting
                why = "the run is task-incremental" if setting == "task" else f"{name} answers for a given task"
                raise ConfigError(
                    f"{why}, and no task is given; task=0 to {n_tasks - 1}, of all or of each, is accepted"
                )
            return np.full(n, n_tasks - 1, np.int64)
        try:
            given = np.asarray(task.cpu() if isinstance(task, Tensor) else task)
        except (ValueError, TypeError):
            given = np.empty(0, object)
        fits = given.dtype.kind in "iu" and given.shape in ((), (n,))
        if not fits or (given.size and not (given.min() >= 0 and given.max() < n_tasks)):
            raise ConfigError(f"task={shown(task)} of {n} images; 0 to {n_tasks - 1}, of all or of each, is accepted")
        return np.broadcast_to(given.astype(np.int64), (n,)).copy()

    def _scores(self, samples: NDArray[Any], tasks: Ints) -> Floats:
        strategy, context = self._strategy, self._context
        n_outputs = strategy.model.head.out_features
        found = torch.empty(len(samples), n_outputs)
        told = self.told_task
        groups = np.unique(tasks).tolist() if told else [len(context.scenario.tasks) - 1]
        with process_settings(self.config), torch.inference_mode(), eval_mode(strategy), context.autocast():
            for task in groups:
                rows = torch.from_numpy(np.flatnonzero(tasks == task) if told else np.arange(len(samples)))
                found[rows] = gathered(self._passes(samples, rows, task), len(rows))
        if bool((~found.amax(1).isfinite()).any()):
            raise RunError(f"the scores of image {int((~found.amax(1).isfinite()).nonzero()[0])} are not finite")
        scores: Floats = found.numpy()
        return scores

    def _passes(self, samples: NDArray[Any], rows: Tensor, task: int) -> Iterator[Tensor]:
        pipeline = self._context.pipeline
        for part in pipeline.cut(rows):
            originals = torch.from_numpy(np.ascontiguousarray(samples[part.numpy()])).to(self._context.device)
            try:
                scores = class_scores(self._strategy, pipeline.normalize(originals), task)[self.classifier]
            except Exception as error:  # whatever a strategy raises
                raise run_error(error, -1) from error
            yield scores.float()


@checked
def load_model(run: str | os.PathLike[str] | Result, *, device: str = "auto") -> Learnt:
    """Return what a finished run has learnt, as an object that predicts; it needs none of the run's data.

    run: the run's folder, or its Result.
    device: auto, cpu, cuda, cuda:N or mps; where it computes.

    Raises ConfigError for what is no finished run, and for one without the state that runs since 0.2 keep.
    """
    return Learnt(finished_run(run), device)


def _files() -> Any:
    """Return what reads files of images; a data set of files is a scenario, and comes as one."""
    return scenario_class("files")


def _context(config: RunConfig, final: Final, record: RunRecord) -> Context:
    """Return what the engine lends the strategy, of a scenario that has tasks and no images."""
    kind, n_tasks = torch.uint8 if final.of_images else torch.float32, len(record.scenario.tasks)
    ids, *known = final.exemplars
    n = int(ids.max()) + 1 if len(ids) else 1
    facts = [torch.full((n,), -1).index_copy(0, ids, values) for values in known]
    images = Images(torch.zeros(1, *final.image_shape, dtype=kind), *facts)
    none = ImageSet(images, ids[:0])
    tasks = [
        Task(index, tuple(t.classes), slice(t.outputs[0], t.outputs[-1] + 1), none, none, none)
        for index, t in enumerate(record.scenario.tasks)
    ]
    channels = final.image_shape[0]
    named, setting = record.scenario.name, record.scenario.setting
    names = tuple(record.scenario.class_names)
    scenario = Scenario(named, setting, tasks, names, images, images, (0.0,) * channels, (1.0,) * channels)
    device = torch.device(config.engine.device)
    pipeline = Pipeline(scenario, config, device)
    pipeline.scale, pipeline.shift = final.scale.to(device), final.shift.to(device)
    return Context(config, scenario, pipeline, device, Progress(task=n_tasks - 1))
