"""Export: what a finished run has learnt as a file that other software reads without clbench."""

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError
from clbench.results.result import Result
from clbench.running.using import Learnt, load_model
from clbench.support.files import expanded, write_atomically

Format = Literal["safetensors", "pt2"]
# The name under which the facts stand in a file, as JSON.
FACTS = "clbench"


class Program(nn.Module):
    """The answer of a run to images as they are: normalised, through its network, and by its classifier.

    Images, uint8 [N, C, H, W] of the run's shape, or other samples, float32 [N, ...] -> scores, float32 [N, outputs].
    task: that of the images, for a strategy that is told it.
    """

    def __init__(self, learnt: Learnt, task: int | None) -> None:
        super().__init__()
        self.learnt, self.task = learnt, task
        for name, module in learnt.modules().items():
            self.add_module(f"of_{name}", module)
        self.scale, self.shift = (nn.Buffer(tensor) for tensor in learnt.normalisation)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return self.learnt.answer(images.to(torch.float32) * self.scale + self.shift, self.task)


@checked
def export(
    run: str | os.PathLike[str] | Result,
    out: str | os.PathLike[str] | None = None,
    *,
    format: Format | None = None,
    task: int | None = None,
    force: bool = False,
) -> Path:
    """Write what a finished run has learnt into a file for other software, with its facts, and return the file.

    run: the run's folder, or its Result.
    out: the file; by default model.FORMAT in the run's folder.
    format: by default that of the file's name, or safetensors. `safetensors`: the network's weights, and scale and
        shift of the normalisation. `pt2`: a program of torch.export that takes images and returns scores.
    task: of a strategy that answers for a given task, the one that the program answers for.
    force: write over a file that is there.

    The facts, as JSON: class names, classes and tasks of the outputs, image shape, and how images are normalised.

    Raises ConfigError for a run or file that can't be, and for a method whose answer torch.export can't trace.
    """
    if format is None:
        suffix = Path(out).suffix[1:] if out is not None else "safetensors"
        if suffix not in get_args(Format):
            raise ConfigError(
                f"out={out}: a name that ends with .safetensors or .pt2 is accepted, or a format beside it"
            )
        format = suffix  # type: ignore[assignment]
    learnt = load_model(run, device="cpu")
    place = learnt.folder / f"model.{format}" if out is None else expanded(out)
    if place.is_dir() or (place.exists() and not force):
        hint = "another name" if place.is_dir() else "--force, which writes over it,"
        raise ConfigError(f"{place} is there; {hint} is accepted")
    content = _safetensors(learnt, task) if format == "safetensors" else _program(learnt, task)
    try:
        write_atomically(place, content)
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror or error}; a file that can be written is accepted") from None
    return place


def facts(learnt: Learnt) -> dict[str, Any]:
    """Return what a reader of the weights must know, as JSON holds it."""
    record = learnt.record
    return {
        "clbench": metadata.version("clbench"),
        "identity": record.identity,
        "scenario": record.scenario.name,
        "setting": record.scenario.setting,
        "strategy": record.strategy.label or record.strategy.name,
        "model": learnt.config.model.name,
        "classifier": learnt.classifier,
        "class_names": list(learnt.class_names),
        "tasks": [{"classes": t.classes, "outputs": t.outputs} for t in record.scenario.tasks],
        "image_shape": list(learnt.image_shape),
        "samples": "uint8" if learnt.of_images else "float32",
        "normalisation": "x * scale + shift",
        "preprocessing": record.strategy.preprocessing,
    }


def _safetensors(learnt: Learnt, task: int | None) -> bytes:
    if task is not None:
        raise ConfigError(f"task={task} is for format=pt2; weights are of no task, so leave it out")
    try:
        from safetensors.torch import save
    except ImportError:
        raise ConfigError(
            "format=safetensors needs the package safetensors; pip install 'clbench[pretrained]' brings it, and pt2 "
            "needs none"
        ) from None
    scale, shift = learnt.normalisation
    tensors = {"normalisation.scale": scale, "normalisation.shift": shift} | learnt.modules()["model"].state_dict()
    # Tensors that share memory, as tied weights do, are written twice.
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    content: bytes = save(own, {FACTS: json.dumps(facts(learnt))})
    return content


def _program(learnt: Learnt, task: int | None) -> bytes:
    name, n_tasks = learnt.record.strategy.name, len(learnt.record.scenario.tasks)
    if learnt.told_task and not (task is not None and 0 <= task < n_tasks):
        given = "none is given" if task is None else f"task={task} given"
        raise ConfigError(f"{name} answers for a given task, and {given}; 0 to {n_tasks - 1} is accepted")
    if task is not None and not learnt.told_task:
        raise ConfigError(f"task={task} given, and {name} answers for all tasks at once; leave it out")
    kind = torch.uint8 if learnt.of_images else torch.float32
    images = torch.zeros(3, *learnt.image_shape, dtype=kind)
    program, content = Program(learnt, task).eval(), io.BytesIO()
    try:
        with _quietly(), torch.no_grad():
            traced = torch.export.export(
                program, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}}, strict=False
            )
            facts_of_task = facts(learnt) | ({} if task is None else {"task": task})
            torch.export.save(traced, content, extra_files={FACTS: json.dumps(facts_of_task)})
            _confirm(content.getvalue(), program, kind, learnt.image_shape)
    except Exception as error:  # torch.export raises almost anything
        why = (str(error) or type(error).__name__).strip().splitlines()[0][:80]
        raise ConfigError(f"torch.export can't trace the answer of {name} ({why}); safetensors is accepted") from error
    return content.getvalue()


def _confirm(content: bytes, program: Program, kind: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a written program gives a run's scores, for several numbers of images and each time."""
    read = torch.export.load(io.BytesIO(content)).module()
    draws = torch.Generator().manual_seed(0)
    for n in (5, 1, 2):
        images = torch.randint(256, (n, *shape), generator=draws, dtype=torch.uint8).to(kind)
        # A draw at random is written into a program as a draw, so that it answers otherwise each time.
        for _ in range(2):
            if not torch.allclose(read(images), program(images), rtol=1e-4, atol=1e-5):
                raise ValueError("the program gives other scores")


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep from the terminal what torch writes about a program that it can't trace."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
