"""A simulated device error: a strategy raises CUDA's message once, and a clear one in the replay."""

import json
from pathlib import Path

import pytest
import torch

from clbench.cli import main
from clbench.tools.explain import is_device_error

FAILING = """
import os
import pathlib
import sys

import clbench


class Failing(clbench.Strategy):
    traits = clbench.Traits(family="reference")

    def loss(self, batch):
        if (self.progress.task, self.progress.step) == (1, 2):
            if "clbench.tools.explain" not in " ".join(sys.orig_argv):
                raise RuntimeError("CUDA error: device-side assert triggered\\nCompile with TORCH_USE_CUDA_DSA")
            assert self.config.engine.device == "cpu"
            pathlib.Path("weights.txt").write_text(str(float(self.model.head.weight.detach().sum())))
            {clear}
        if (self.progress.task, self.progress.step) == (1, 1):
            pathlib.Path("before.txt").open("a").write(str(float(self.model.head.weight.detach().sum())) + "\\n")
        return super().loss(batch)
"""
RUN = ["split-mnist-5k", "failing.py:Failing", "--limit", "10", "--epochs", "3", "--batch-size", "8", "--threads", "1"]


def failed(capsys: pytest.CaptureFixture[str], clear: str, *options: str) -> str:
    Path("failing.py").write_text(FAILING.format(clear=clear))
    with pytest.raises(SystemExit) as ended:
        main(["run", *RUN, "--out", "out", "--quiet", *options])
    assert ended.value.code == 1
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert "Traceback" not in message
    return message


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_clear_error_of_the_cpu_stands_beside_that_of_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    """The replay begins at the last checkpoint, the end of task 0, and meets the same weights in task 1."""
    clear = 'raise IndexError("Target 9 is out of bounds.")'
    message = failed(capsys, clear, "--explain-on-cpu")
    assert message == (
        "clbench: RuntimeError: CUDA error: device-side assert triggered Compile with TORCH_USE_CUDA_DSA (task 1, "
        "Failing.loss, failing.py line 15), stage 'train', epoch 0, step 2; on the CPU: IndexError: Target 9 is out of "
        "bounds. (task 1, Failing.loss, failing.py line 18)"
    )
    before, again = Path("before.txt").read_text().split()
    assert before == again
    record = json.loads(Path("out/run.json").read_text())
    assert record["status"] == "failed"
    assert record["failed_at"] == {"task": 1, "stage": "train", "epoch": 0, "step": 2}
    assert len(record["tasks"]) == 1  # the run itself is as it was


def test_where_the_cpu_finds_nothing_the_device_is_to_blame(capsys: pytest.CaptureFixture[str]) -> None:
    assert failed(capsys, "pass", "--explain-on-cpu").endswith(
        "on the CPU: no error up to there, so it is the device, not the data or the strategy"
    )


def test_without_the_option_the_message_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--explain-on-cpu" in failed(capsys, "pass")
    assert not Path("weights.txt").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (IndexError("Target 9 is out of bounds."), False),
    ],
)
def test_what_a_device_error_is(error: Exception, expected: bool) -> None:
    assert is_device_error(error) == expected
