"""Files for other software: another process, in which clbench can't be imported, gets the run's scores from them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import call

import clbench

SMALL: dict[str, Any] = {
    "limit": 8,
    "epochs": 1,
    "batch_size": 8,
    "threads": 1,
    "tasks": 2,
    "model": "mlp:8",
    "quiet": True,
}

# Reads programs of torch.export, and from the weights computes the two layers by hand.
READER = """
import json, sys
sys.modules["clbench"] = None
import numpy as np, torch
from safetensors import safe_open
images = torch.from_numpy(np.load("images.npy"))
found = {}
for name in ("naive", "icarl", "hat"):
    facts = {"clbench": ""}
    program = torch.export.load(name + ".pt2", extra_files=facts).module()
    found[name] = program(images).detach().numpy()
    assert np.allclose(program(images[:1]).detach().numpy(), found[name][:1], atol=1e-5)
    found[name + " facts"] = np.array(json.loads(facts["clbench"])["class_names"])
with safe_open("naive.safetensors", "pt") as file:
    facts = json.loads(file.metadata()["clbench"])
    w = {key: file.get_tensor(key) for key in file.keys()}
assert facts["image_shape"] == [1, 28, 28] and facts["tasks"][1]["classes"] == [5, 6, 7, 8, 9]
x = (images.float() * w["normalisation.scale"] + w["normalisation.shift"]).flatten(1)
hidden = (x @ w["backbone.0.1.weight"].T + w["backbone.0.1.bias"]).relu()
found["by hand"] = (hidden @ w["head.weight"].T + w["head.bias"]).numpy()
np.savez("found.npz", **found)
assert not [name for name, module in sys.modules.items() if name.startswith("clbench") and module is not None]
"""


def test_another_process_without_clbench_gets_the_same_scores(tmp_path: Path) -> None:
    images = clbench.scenarios.load_dataset("mnist-5k", "data", offline=True).x_test[:9]
    np.save(tmp_path / "images.npy", images)
    expected = {}
    for name, options, task in (
        ("naive", {"normalize": "channel"}, None),
        ("icarl", {"memory_size": 20}, None),
        ("hat", {"setting": "task"}, 1),
    ):
        clbench.run("split-mnist-5k", name, out=tmp_path / name, **SMALL, **options)
        clbench.export(tmp_path / name, tmp_path / f"{name}.pt2", task=task)
        expected[name] = clbench.load_model(tmp_path / name, device="cpu").scores(images, task)
    clbench.export(tmp_path / "naive", tmp_path / "naive.safetensors")
    expected["by hand"] = expected["naive"]
    (tmp_path / "reader.py").write_text(READER)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "reader.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for name, scores in expected.items():
        finite = np.isfinite(scores)
        assert np.array_equal(np.isfinite(found[name]), finite)
        assert np.abs(found[name][finite] - scores[finite]).max() < 1e-5, name
    assert found["naive facts"].tolist() == [str(digit) for digit in range(10)]


def test_what_can_not_be_exported_is_refused_and_nothing_is_written_over(
    tmp_path: Path, refused: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    clbench.run("split-mnist-5k", "naive", out=tmp_path / "naive", **SMALL)
    clbench.run("split-mnist-5k", "xdg", setting="task", out=tmp_path / "xdg", **SMALL)
    written = clbench.export(tmp_path / "naive")
    assert written == tmp_path / "naive" / "model.safetensors"
    before = written.read_bytes()
    with refused("model.safetensors is there; --force"):
        clbench.export(tmp_path / "naive")
    assert clbench.export(tmp_path / "naive", force=True).read_bytes() == before
    for out, options, words in (
        ("x.onnx", {}, ".safetensors or .pt2 is accepted"),
        ("naive", {"format": "pt2"}, "is there; another name"),
        ("x", {"format": "onnx"}, "'safetensors' or 'pt2'"),
        ("x.pt2", {"task": 1}, "answers for all tasks at once"),
        ("x.safetensors", {"task": 1}, "task=1 is for format=pt2"),
    ):
        with refused(words):
            clbench.export(tmp_path / "naive", tmp_path / out, **options)  # type: ignore[arg-type]
    for task, words in ((None, "and none is given; 0 to 1 is accepted"), (2, "task=2 given; 0 to 1 is accepted")):
        with refused("xdg answers for a given task", words):
            clbench.export(tmp_path / "xdg", tmp_path / "x.pt2", task=task)
    # The gates are drawn anew with each image, which a program would write down as draws that never repeat.
    with refused("torch.export can't trace the answer of xdg"):
        clbench.export(tmp_path / "xdg", tmp_path / "x.pt2", task=1)
    code, out, _ = call(capsys, "export", str(tmp_path / "naive"), "--out", str(tmp_path / "y.safetensors"), "--json")
    assert (code, json.loads(out)["bytes"]) == (0, len(before))
    code, _, err = call(capsys, "export", str(tmp_path))
    assert (code, len(err.splitlines())) == (2, 1)
    assert torch.load(tmp_path / "naive" / "model.pt", weights_only=True).keys()
