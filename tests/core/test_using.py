"""The state that a finished run keeps, and what is predicted from it without any of the run's data."""

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shared import StopAt, StoppedError, call

import clbench

SMALL: dict[str, Any] = {"limit": 8, "epochs": 1, "batch_size": 8, "threads": 1, "tasks": 2, "model": "mlp:8"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of iCaRL on the digits, whose answer is not that of the network."""
    out = tmp_path_factory.mktemp("runs") / "icarl"
    clbench.run("split-mnist-5k", "icarl", memory_size=20, out=out, quiet=True, **SMALL)
    return out


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def tested() -> Any:
    return clbench.scenarios.load_dataset("mnist-5k", "data", offline=True)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("naive", {"normalize": "channel"}),
        ("naive", {"normalize": "pixel-mean", "setting": "task"}),
        ("lwf", {"normalize": "none"}),
        ("icarl", {"memory_size": 20}),
        ("slda", {}),
        ("hat", {"setting": "task"}),
        ("packnet", {"setting": "task"}),
    ],
)
def test_predictions_are_those_of_the_run_s_own_evaluation(
    strategy: str, options: Any, tested: Any, tmp_path: Path
) -> None:
    """The last row of the matrix is the share of images that are given their class, task by task."""
    result = clbench.run(
        "split-mnist-5k", strategy, out=tmp_path, keep_predictions=True, quiet=True, **{**SMALL, **options}
    )
    kept = np.load(tmp_path / "predictions.npz")
    model = clbench.load_model(result, device="cpu")
    images, tasks = tested.x_test[kept["ids"]], kept["tasks"] if options.get("setting") == "task" else None
    assert np.array_equal(model.scores(images, tasks), kept["scores"])
    found = model.predict(images, tasks)
    right = found.classes == kept["classes"]
    assert [right[kept["tasks"] == task].mean() for task in (0, 1)] == result.accuracy[-1].tolist()
    assert found.names == [str(c) for c in found.classes]
    assert np.array_equal(found.tasks, found.classes // 5 if tasks is None else tasks)
    assert ((found.probabilities > 0) & (found.probabilities <= 1)).all()


def test_scores_and_probabilities_follow_from_the_weights_by_hand(tested: Any, tmp_path: Path) -> None:
    """Pixels minus mean over deviation, two layers, softmax; once over all outputs, once over those of a task."""
    clbench.run("split-mnist-5k", "naive", normalize="channel", out=tmp_path, quiet=True, **SMALL)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    first, first_bias, head, bias = (tensor.double().numpy() for tensor in weights.values())
    images = tested.x_test[:7]
    x = (images.reshape(7, -1) / 255 - tested.mean[0]) / tested.std[0]
    logits = np.maximum(x @ first.T + first_bias, 0) @ head.T + bias
    model = clbench.load_model(tmp_path, device="cpu")
    assert np.abs(model.scores(images) - logits).max() < 1e-5
    for task, outputs in ((None, range(10)), (1, range(5, 10))):
        own = np.exp(logits[:, outputs])
        found = model.predict(images, task)
        assert np.array_equal(found.outputs, np.array(outputs)[own.argmax(1)])
        assert np.abs(found.probabilities - own.max(1) / own.sum(1)).max() < 1e-5


def test_shared_outputs_stand_for_the_classes_of_all_tasks_until_the_task_is_given(tmp_path: Path) -> None:
    options = {name: value for name, value in SMALL.items() if name != "tasks"}
    clbench.run("permuted-mnist-5k", "naive", tasks=2, out=tmp_path, quiet=True, **options)
    model = clbench.load_model(tmp_path, device="cpu")
    images = np.zeros((1, 32, 32), np.uint8)
    known, unknown = model.predict(images, 1), model.predict(images)
    digit = int(known.outputs[0])
    assert (known.names, known.tasks.tolist()) == ([f"{digit} (task 1)"], [1])
    assert known.classes.tolist() == [10 + digit]
    assert (unknown.names, unknown.classes.tolist()) == ([f"{digit} (task 0)|{digit} (task 1)"], [-1])
    assert unknown.tasks.tolist() == [-1]


def photos(folder: Path, size: tuple[int, int], n: int = 4) -> None:
    random = np.random.default_rng(0)
    for c in ("cats", "dogs", "owls", "rats"):
        (folder / c).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
                folder / c / f"{i}.png"
            )


def test_photos_are_brought_to_the_size_of_the_run_as_its_own_were_and_the_data_may_be_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training files themselves, classified one by one, get the scores of the arrays that the run decoded."""
    photos(tmp_path / "photos", (20, 12))
    options = {"epochs": 1, "model": "mlp:8", "threads": 1, "batch_size": 4, "tasks": 2}
    clbench.run(
        tmp_path / "photos", "naive", image_size=8, test_share=0.5, out=tmp_path / "run", keep_predictions=True,
        quiet=True, **options
    )  # fmt: skip
    data = clbench.scenarios.load_dataset(tmp_path / "photos", "data", image_size=8, test_share=0.5)
    model = clbench.load_model(tmp_path / "run", device="cpu")
    names, images = model.read_files([tmp_path / "photos"])
    assert names == [str(path) for path in sorted((tmp_path / "photos").glob("*/*.png"))]
    decoded = {image.tobytes() for part in (data.x_train, data.x_test) for image in np.asarray(part)}
    assert {image.tobytes() for image in images} == decoded
    Image.fromarray(np.full((9, 30), 7, np.uint8)).save(tmp_path / "grey.png")
    shutil.copytree(tmp_path / "photos" / "owls", tmp_path / "asked")
    shutil.rmtree(tmp_path / "photos")
    code, out, _ = call(capsys, "predict", str(tmp_path / "run"), f"{tmp_path}/grey.png", f"{tmp_path}/asked", "--csv")
    rows = out.splitlines()
    assert (code, rows[0], len(rows)) == (0, "image,class,name,probability,task,output", 6)
    assert rows[1].split(",")[2] in ("cats", "dogs", "owls", "rats")
    (tmp_path / "asked" / "bad.png").write_text("no image")
    code, _, err = call(capsys, "predict", str(tmp_path / "run"), f"{tmp_path}/asked")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "bad.png is not a readable image" in err
    with pytest.warns(UserWarning, match="1 files are left out"):
        assert len(model.read_files([tmp_path / "asked"], skip_unreadable=True)[0]) == 4


ARRAYS: dict[str, tuple[Callable[[], Any], str]] = {
    "floats": (lambda: np.zeros((2, 28, 28), np.float32), "uint8 images of 0..255"),
    "not finite": (lambda: np.full((2, 28, 28), np.nan), "not finite"),
    "larger integers": (lambda: np.zeros((2, 28, 28), np.int64), "convert images of 0..255 with astype('uint8')"),
    "another size": (lambda: np.zeros((2, 9, 9), np.uint8), "samples of [1, 9, 9]; those of the run are [1, 28, 28]"),
    "colours": (lambda: np.zeros((2, 28, 28, 3), np.uint8), "samples of [3, 28, 28]"),
    "one image": (lambda: np.zeros((28, 28), np.uint8), "expected [N, H, W]"),
    "none": (lambda: np.zeros((0, 28, 28), np.uint8), "is empty"),
    "objects": (lambda: np.array([{}]), "expected uint8 images"),
    "a number": (lambda: 5, "expected uint8 images"),
    "an empty list": (list, "expected numbers [N, D]"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_no_images_of_the_run_are_refused(case: str, run: Path, tmp_path: Path, refused: Any) -> None:
    made, words = ARRAYS[case]
    model = clbench.load_model(run, device="cpu")
    with refused(words):
        model.predict(made())
    if case in ("a number", "an empty list"):
        return
    np.save(tmp_path / "x.npy", made(), allow_pickle=True)
    np.savez(tmp_path / "x.npz", images=made(), other=np.zeros(3))
    for name in ("x.npy", "x.npz"):
        with refused(name, words):
            model.predict(tmp_path / name)


def test_files_and_tasks_that_can_not_be_taken_are_refused(run: Path, tmp_path: Path, refused: Any) -> None:
    model = clbench.load_model(run, device="cpu")
    (tmp_path / "empty").mkdir()
    Image.new("L", (9, 7)).save(tmp_path / "small.png")
    Image.new("RGB", (28, 28), (1, 2, 3)).save(tmp_path / "colours.png")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    for name, words in {
        "empty": "holds no images",
        "small.png": "is 9x7 pixels, and the images of the run are 28x28",
        "colours.png": "is in colours",
        "cut.npy": "is not a readable NPY file",
        "two.npz": "has the arrays a, b; x_test or images is accepted",
        "gone.png": "can't be read: No such file",
        "gone.npy": "can't be read: No such file",
    }.items():
        with refused(name, words):
            model.predict(str(tmp_path / name))
    images = np.zeros((2, 28, 28), np.uint8)
    for task in (2, -1, 0.5, "0", [0], [0, 1, 1], [0, 5], np.zeros((2, 2), int)):
        with refused("0 to 1, of all or of each, is accepted"):
            model.predict(images, task)  # type: ignore[arg-type]
    assert len(model.predict(images, [0, 1])) == len(model.predict(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))) == 2


def test_a_run_of_floats_takes_floats(tmp_path: Path, refused: Any) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 4
    data = clbench.scenarios.dataset_from_arrays(x, y, x, y, name="numbers")
    scenario = clbench.scenarios.split(data, tasks=2)
    result = clbench.run(scenario, "naive", model="mlp:8", epochs=1, threads=1, out=tmp_path / "run", quiet=True,
                         keep_predictions=True)  # fmt: skip
    model, kept = clbench.load_model(result, device="cpu"), np.load(tmp_path / "run" / "predictions.npz")
    assert np.array_equal(model.scores(x[kept["ids"]]), kept["scores"])
    for given, words in ((np.full((2, 6), np.inf), "not finite"), (np.zeros((2, 5)), "those of the run are [6]")):
        with refused(words):
            model.predict(given)
    Image.new("L", (6, 6)).save(tmp_path / "x.png")
    with refused("x.png is no array"):
        model.predict(tmp_path / "x.png")


class Payload:
    """Would leave a file behind if reading a state executed what is in it."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def rewritten(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return a file of torch with another pickle in it, and sound checksums."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a byte changed": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "text": lambda content: b"not a state",
    "a pickle that executes": lambda content: pickle.dumps(Payload()),
    "a pickle that executes inside": lambda content: rewritten(content, lambda old: pickle.dumps(Payload(), 2)),
    "another object": lambda content: rewritten(content, lambda old: pickle.dumps({"form": 1, "learnt": 3}, 2)),
    "another form": lambda content: rewritten(content, lambda old: pickle.dumps({"form": 99}, 2)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_nothing_in_it_is_executed(
    damage: str, copied: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parent)
    state = copied / "state.pt"
    state.write_bytes(DAMAGES[damage](state.read_bytes()))
    with refused("state.pt", "--force"):
        clbench.load_model(copied)
    assert not Path("executed").exists()


def test_what_is_no_finished_run_with_its_state_is_refused_with_what_to_do(
    run: Path, copied: Path, tmp_path: Path, refused: Any
) -> None:
    for folder, words in ((tmp_path / "nothing", "no such file"), (copied.parent, "no such file")):
        with refused(words):
            clbench.load_model(folder)
    clbench.run("split-mnist-5k", "naive", out=tmp_path / "other", quiet=True, **SMALL)
    (copied / "state.pt").write_bytes((tmp_path / "other" / "state.pt").read_bytes())
    with refused("is of another run"):
        clbench.load_model(copied)
    (copied / "state.pt").unlink()
    with refused("has no state.pt, which holds all that was learnt", "--force"):
        clbench.load_model(copied)
    without = clbench.run("split-mnist-5k", "naive", keep_state=False, out=tmp_path / "without", quiet=True, **SMALL)
    assert sorted(os.listdir(tmp_path / "without")) == [
        ".clbench",
        "accuracy.csv",
        "model.pt",
        "run.json",
        "training.csv",
    ]
    with refused("without --no-keep-state"):
        clbench.load_model(without)
    with refused("was read from no folder"):
        clbench.load_model(clbench.Result(without.record))
    with pytest.raises(StoppedError):
        clbench.run("split-mnist-5k", "naive", out=tmp_path / "stopped", observer=StopAt(1, 1), quiet=True, **SMALL)
    with refused("stopped holds", "--resume"):
        clbench.load_model(tmp_path / "stopped")


def test_a_run_that_was_continued_and_seeds_that_trained_together_keep_it_too(tmp_path: Path, tested: Any) -> None:
    options = {**SMALL, "checkpoint_every": "1-steps", "quiet": True}
    whole = clbench.run("split-mnist-5k", "lwf", out=tmp_path / "whole", **options)
    with pytest.raises(StoppedError):
        clbench.run("split-mnist-5k", "lwf", out=tmp_path / "parts", observer=StopAt(1, 2), **options)
    clbench.run("split-mnist-5k", "lwf", out=tmp_path / "parts", resume=True, **options)
    images = tested.x_test[:9]
    scores = [clbench.load_model(tmp_path / name, device="cpu").scores(images) for name in ("whole", "parts")]
    assert np.array_equal(*scores)
    assert whole.folder == tmp_path / "whole"
    results = clbench.compare(
        "split-mnist-5k", "naive", seeds=2, references=False, seeds_together=True, out=tmp_path / "both", **SMALL
    )
    for result in results:
        assert clbench.load_model(result, device="cpu").scores(images).shape == (9, 10)


def test_a_run_of_avalanche_s_own_loop_is_refused(tmp_path: Path, refused: Any) -> None:
    clbench.run("split-mnist-5k", "avalanche:Naive", out=tmp_path, quiet=True, **SMALL)
    with refused("avalanche:Naive trains by its own loop, whose state can't be kept"):
        clbench.load_model(tmp_path)
