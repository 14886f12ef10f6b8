"""The scores of the test images that a run keeps on request, from which its last row can be computed again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clbench

SMALL: dict[str, Any] = {"limit": 8, "epochs": 1, "batch_size": 8, "threads": 1, "tasks": 2, "model": "mlp:8"}


@pytest.mark.parametrize("setting", ["class", "task"])
def test_the_last_row_of_the_matrices_follows_from_them(setting: str, tmp_path: Path) -> None:
    """Accuracy on a task by hand: the share of its images whose largest score is at their label."""
    result = clbench.run(
        "split-mnist-5k", "er", memory_size=8, setting=setting, keep_predictions=True, out=tmp_path, **SMALL
    )
    kept = np.load(tmp_path / "predictions.npz")
    assert kept["scores"].shape == (len(kept["labels"]), 10)
    assert kept["scores"].dtype == np.float32
    assert sorted(kept["ids"].tolist()) == list(range(len(kept["ids"])))
    for task, outputs in enumerate(result.task_outputs):
        of_task = kept["tasks"] == task
        right = kept["prediction"][of_task] == kept["labels"][of_task]
        assert result.class_incremental_accuracy is not None
        assert result.task_aware_accuracy is not None
        assert right.mean() == result.class_incremental_accuracy[-1, task]
        masked = kept["scores"][of_task][:, outputs].argmax(1) + outputs[0]
        assert (masked == kept["labels"][of_task]).mean() == result.task_aware_accuracy[-1, task]
    assert result.config["keep_predictions"] is True


def test_it_is_no_part_of_the_identity_and_a_run_without_it_is_told(tmp_path: Path, refused: Any) -> None:
    first = clbench.run("split-mnist-5k", "naive", out=tmp_path, **SMALL)
    with pytest.warns(UserWarning, match="without predictions.npz"):
        again = clbench.run("split-mnist-5k", "naive", out=tmp_path, keep_predictions=True, **SMALL)
    assert again.recorded.identity == first.recorded.identity
    with refused("keep_predictions is for runs that train alone"):
        clbench.compare(
            "split-mnist-5k", "naive", seeds=2, out=tmp_path / "b", seeds_together=True, keep_predictions=True, **SMALL
        )
