"""Write tests/fixtures/VERSION: run folders as this version leaves them, which every later version must read.

Run it once for each version that is published, and never over the files of an earlier one.
"""

import contextlib
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np

FIXTURES = Path(__file__).with_name("fixtures")
OPTIONS: dict[str, Any] = {
    "model": "mlp:6",
    "epochs": 2,
    "batch_size": 4,
    "optimizer": "sgd",
    "lr": 0.1,
    "threads": 1,
    "memory_size": 4,
    "checkpoint_every": "1-steps",
}


def scenario() -> Any:
    """Return 2 tasks of 2 classes, 6 training and 2 test images of 3 x 3 pixels each, from a formula, not drawn."""
    from clbench.scenarios import dataset_from_arrays, split

    y_train, y_test = np.repeat(np.arange(4), 6), np.repeat(np.arange(4), 2)
    pixels = np.arange(9).reshape(1, 3, 3)
    x_train, x_test = (
        ((60 * y[:, None, None] + 7 * np.arange(len(y))[:, None, None] * pixels) % 256).astype(np.uint8)
        for y in (y_train, y_test)
    )
    return split(dataset_from_arrays(x_train, y_train, x_test, y_test, name="formula"), tasks=2)


class EnoughError(Exception):
    """Ends a run at its current point."""


def make(folder: Path) -> None:
    """Leave a finished run in FOLDER/finished and one within its second task in FOLDER/unfinished."""
    import clbench
    from clbench.running.observer import Observer

    class Stop(Observer):
        def step(self, progress: Any, loss: float | None) -> None:
            if progress.task == 1 and progress.step == 3:
                raise EnoughError

    with tempfile.TemporaryDirectory() as place:
        clbench.run(scenario(), "er", out=Path(place) / "finished", **OPTIONS)
        with contextlib.suppress(EnoughError):
            clbench.run(scenario(), "er", out=Path(place) / "unfinished", observer=Stop(), **OPTIONS)
        for name, files in (("finished", ["run.json", "accuracy.csv"]), ("unfinished", ["run.json", "checkpoint.pt"])):
            (folder / name).mkdir(parents=True)
            for file in files:
                copy(Path(place) / name / file, folder / name / file)


if __name__ == "__main__":
    make(FIXTURES / metadata.version("clbench"))
    print(f"{FIXTURES / metadata.version('clbench')}: written", file=sys.stderr)
