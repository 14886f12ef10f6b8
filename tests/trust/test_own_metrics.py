"""A metric of the user's own: it has a name of its own, edits only copies, and fails in one sentence."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

import clbench


def test_a_metric_that_fails_is_named_with_what_it_raised(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setattr(clbench.metrics, "METRICS", dict(clbench.metrics.METRICS))
    for error in (KeyError("x"), RuntimeError("gone"), SystemExit(0), MemoryError(), ZeroDivisionError("by 0")):

        @clbench.metrics.metric("A sentence.")
        def of_mine(R: Any) -> Any:  # noqa: N803
            raise error  # noqa: B023

        with refused("the metric of_mine raised", type(error).__name__):
            clbench.metrics.summarize([[1.0]])


def test_a_metric_has_a_name_and_parameters_of_its_own(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    before = dict(clbench.metrics.METRICS)
    monkeypatch.setattr(clbench.metrics, "METRICS", dict(before))

    def of_mine(R: Any) -> float:  # noqa: N803
        return 1.0

    for name in (*before, "", " ", "bad name", "bad\n", "a.b", "3rd", "<lambda>", "a-b"):
        of_mine.__name__ = name
        with refused(repr(name) if name not in before else name):
            clbench.metrics.metric("A sentence.")(of_mine)
    for wrong in (lambda *R: 1.0, lambda R, /: 1.0, lambda **R: 1.0, lambda R, *joint: 1.0):  # noqa: N803
        wrong.__name__ = "of_mine"
        with refused("the metric of_mine has the parameter"):
            clbench.metrics.metric("A sentence.")(wrong)
    assert before == clbench.metrics.METRICS


def _emptied(R: Any) -> float:  # noqa: N803
    for row in R:
        row[0] = 0.0
        if isinstance(row, list):
            row.append(1.0)
    return 1.0


def _zeroed(R: Any, test_sizes: Any) -> float:  # noqa: N803
    for values in (*R, test_sizes):
        for place in range(len(values)):
            values[place] = 0
    return 1.0


def _spoilt(R: Any, test_sizes: Any, baseline: Any, joint: Any, minima: Any) -> float:  # noqa: N803
    for values in (*R, test_sizes, baseline, joint, minima):
        values[0] = 99
    return 1.0


@pytest.mark.parametrize("edits", [_emptied, _zeroed, _spoilt])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_metric_that_edits_what_it_gets_edits_a_copy(
    edits: Any, kind: Any, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    """All other metrics, what the caller has, and the matrix of a run are those without it."""
    given: Any = {
        "R": kind([[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.4, 0.6, 0.7]]),
        "baseline": kind([0.3, 0.2, 0.1]),
        "test_sizes": kind([10, 20, 30]),
        "joint": kind([0.9, 0.85, 0.8]),
        "minima": kind([0.4, 0.6]),
    }
    unedited = copy.deepcopy(given)
    alone = clbench.metrics.summarize(**given)
    matrix = run().record["accuracy"]
    monkeypatch.setattr(clbench.metrics, "METRICS", dict(clbench.metrics.METRICS))
    others = dict(clbench.metrics.METRICS)
    clbench.metrics.METRICS.clear()
    clbench.metrics.metric("The first of all.")(edits)
    clbench.metrics.METRICS.update(others)
    with_it = clbench.metrics.summarize(**given)
    assert with_it == {edits.__name__: 1.0} | alone
    assert str(given) == str(unedited)
    result = run()
    assert result.record["accuracy"] == matrix
    assert result.metrics[edits.__name__] in (1.0, None)
