"""A note about the data, or about several strategies, is said once and not once for each strategy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import clbench
from clbench.reports.comparison import Comparison
from clbench.results.result import Result

Make = Callable[..., Result]
Compared = Callable[[list[Result]], Comparison]


@pytest.mark.parametrize(
    ("warnings", "notes"),
    [
        ({"er": "Data are few", "lwf": "Data are few"}, ["Data are few (all runs)"]),
        ({"er": "er: the memory is small", "lwf": "lwf: the memory is small"}, ["The memory is small (all runs)"]),
        ({"er": "er: the memory is small"}, ["er: the memory is small (er, seed 0)"]),
        (
            {"er": "er: it is late", "lwf": "lwf: it is late", "naive": "naive: it is early"},
            ["It is late (er, seed 0; lwf, seed 0)", "naive: it is early (naive, seed 0)"],
        ),
        # The name of another strategy is part of the sentence.
        ({"er": "lwf: is better"}, ["lwf: is better (er, seed 0)"]),
    ],
)
def test_a_warning_of_several_strategies_is_one_note(
    warnings: dict[str, str], notes: list[str], make_result: Make, compared: Compared
) -> None:
    names = ("er", "lwf", "naive") if "naive" in warnings else ("er", "lwf")
    part = compared([make_result(name, warnings=(warnings[name],) if name in warnings else ()) for name in names])
    said = [note for note in part.notes if any(text.lower()[-8:] in note.lower() for text in warnings.values())]
    assert said == notes


@pytest.mark.slow
def test_worker_processes_do_not_repeat_what_was_said_of_the_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command line says it when the runs are planned."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (16, 4, 4), dtype=np.uint8), np.arange(16) % 4
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.warns(UserWarning, match="16 of 16 test images are training images too"):
        clbench.compare(
            tmp_path / "mine.npz",
            ["naive", "er"],
            seeds=2,
            jobs=2,
            tasks=2,
            epochs=1,
            model="mlp:4",
            out=tmp_path / "runs",
            references=False,
            quiet=True,
        )
    assert "training images too" not in capfd.readouterr().err
