"""A finished run goes on with further tasks or data, to the bytes of one run over all tasks from nothing."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared import StopAt, StoppedError, call

import clbench
from clbench.config.run import config_of_record
from clbench.running.folder import RunFolder
from clbench.running.resolve import prepare
from clbench.running.run import execute

SMALL: dict[str, Any] = {"limit": 8, "epochs": 1, "batch_size": 8, "threads": 1, "model": "mlp:8", "quiet": True}
# The keys of a record that say when and how it came about, which differs from run to run.
MEASURED = ("created", "resumes", "extends", "environment")


def numbers(folder: Path) -> dict[str, Any]:
    """Return all that a run's folder says of its numbers, to the byte; no times."""
    record = json.loads((folder / "run.json").read_text())
    found = {name: value for name, value in record.items() if name not in MEASURED}
    for name in ("tasks", "training"):
        times = ("seconds", "peak_memory_bytes")
        found[name] = [{k: v for k, v in entry.items() if k not in times} for entry in record[name]]
    return found | {name: (folder / name).read_bytes() for name in ("model.pt", "accuracy.csv")}


def in_one_go(extended: clbench.Result, out: Path) -> dict[str, Any]:
    """Do the run of an extended run's own config from nothing."""
    execute(*prepare(config_of_record(extended.config)), RunFolder(out))
    return numbers(out)


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A file of three classes of stripes, as large as the digits."""
    random = np.random.default_rng(0)

    def draw(n: int) -> tuple[Any, Any]:
        labels = np.arange(3).repeat(n)
        return (random.integers(0, 60, (len(labels), 28, 28)) + 60 * labels[:, None, None]).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = draw(8), draw(5)
    np.savez(tmp_path / "more.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return tmp_path / "more.npz"


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("er", {"memory_size": 10}),
        ("ewc", {"optimizer_state": "keep"}),
        ("icarl", {"memory_size": 20, "setting": "class"}),
        ("hat", {"setting": "task"}),
        ("cbp", {"evaluate": "current", "online_accuracy": True, "plasticity": True}),
        ("er-ace", {"memory_size": 10, "anytime": 20, "near_future": 1, "count_flops": True}),
    ],
)
def test_more_tasks_give_the_bytes_of_one_run_and_the_run_stays(strategy: str, options: Any, tmp_path: Path) -> None:
    options = {**SMALL, "evaluate": "seen", **options}
    clbench.run("permuted-mnist-5k", strategy, tasks=2, out=tmp_path / "two", **options)
    before = content(tmp_path / "two")
    extended = clbench.extend(tmp_path / "two", tasks=4, out=tmp_path / "four", quiet=True)
    assert numbers(tmp_path / "four") == in_one_go(extended, tmp_path / "once")
    assert content(tmp_path / "two") == before
    assert extended.recorded.extends == {
        "run": str(tmp_path / "two"),
        "identity": clbench.Result.load(tmp_path / "two").recorded.identity,
        "tasks": 2,
    }


@pytest.mark.parametrize(("strategy", "options"), [("lwf", {}), ("slda", {}), ("derpp", {"memory_size": 10})])
def test_new_data_give_the_bytes_of_the_stream_and_their_classes_are_predicted(
    strategy: str, options: Any, more: Path, tmp_path: Path
) -> None:
    """Mean and deviation stay those of the first data; the classes of new data come behind."""
    clbench.run("split-mnist-5k", strategy, tasks=2, normalize="channel", out=tmp_path / "old", **SMALL, **options)
    extended = clbench.extend(tmp_path / "old", more, out=tmp_path / "new", quiet=True)
    assert numbers(tmp_path / "new") == in_one_go(extended, tmp_path / "once")
    assert extended.config["statistics"] == "first"
    assert extended.recorded.scenario.class_names[-3:] == ["more: 0", "more: 1", "more: 2"]
    model = clbench.load_model(extended, device="cpu")
    assert model.predict(np.zeros((1, 28, 28), np.uint8), 2).classes[0] >= 10


def test_cells_that_only_one_run_from_nothing_could_have_are_left_out_and_said(tmp_path: Path) -> None:
    """In domain-incremental runs with evaluate=all a later task is tested before it comes."""
    clbench.run("permuted-mnist-5k", "naive", tasks=2, out=tmp_path / "a", **SMALL)
    extended = clbench.extend(tmp_path / "a", tasks=3, out=tmp_path / "b", quiet=True)
    once = in_one_go(extended, tmp_path / "once")
    here, there = extended.accuracy, np.array(once["accuracy"]["class_incremental"], float)
    assert np.isnan(here[:2, 2]).all()
    assert np.isfinite(there[:2, 2]).all()
    assert np.array_equal(here[:, :2], there[:, :2])
    assert np.array_equal(here[2], there[2])
    assert (tmp_path / "b" / "model.pt").read_bytes() == once["model.pt"]
    assert [told.rule for told in extended.recorded.warnings if told.rule == "extended"] == ["extended"]


def test_an_extension_that_was_interrupted_is_resumed_to_the_same_bytes(tmp_path: Path, refused: Any) -> None:
    clbench.run("permuted-mnist-5k", "er", tasks=2, memory_size=10, evaluate="seen", out=tmp_path / "a", **SMALL)
    whole = clbench.extend(tmp_path / "a", tasks=4, out=tmp_path / "b", quiet=True)
    with pytest.raises(StoppedError):
        clbench.extend(
            tmp_path / "a", tasks=4, out=tmp_path / "c", quiet=True, checkpoint_every="1-steps", observer=StopAt(3, 2)
        )
    with refused("unfinished run", "--resume"):
        clbench.extend(tmp_path / "a", tasks=4, out=tmp_path / "c", quiet=True)
    resumed = clbench.extend(tmp_path / "a", tasks=4, out=tmp_path / "c", quiet=True, resume=True)
    assert np.array_equal(resumed.accuracy, whole.accuracy, equal_nan=True)
    assert (tmp_path / "c" / "model.pt").read_bytes() == (tmp_path / "b" / "model.pt").read_bytes()
    longer = clbench.extend(tmp_path / "c", tasks=5, out=tmp_path / "d", quiet=True)
    in_one_go(longer, tmp_path / "once")
    assert (tmp_path / "d" / "model.pt").read_bytes() == (tmp_path / "once" / "model.pt").read_bytes()


REFUSED: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "other angles": ("rotated-mnist-5k", "naive", {"tasks": 2}, {"tasks": 3}, ("task 1 has other train images",)),
    "other classes": (
        "split-mnist-5k",
        "naive",
        {"tasks": 2},
        {"tasks": 5},
        ("task 0 has the classes [0, 1, 2, 3, 4]",),
    ),
    "fewer tasks": ("permuted-mnist-5k", "naive", {"tasks": 3}, {"tasks": 2}, ("has learnt 3 tasks; more are",)),
    "other images": (
        *("permuted-mnist-5k", "naive", {"tasks": 2}),
        *({"tasks": 3, "limit": 9}, ("task 0 has other training images",)),
    ),
    "another setting": (
        *("permuted-mnist-5k", "naive", {"tasks": 2}),
        *({"tasks": 3, "setting": "class"}, ("setting is domain there and class here",)),
    ),
    "a schedule over the run": (
        *("permuted-mnist-5k", "naive", {"tasks": 2, "schedule": "cosine", "schedule_scope": "run"}),
        *({"tasks": 3}, ("a schedule over all tasks",)),
    ),
    "a budget": (
        *("permuted-mnist-5k", "naive", {"tasks": 2, "epochs": None, "budget": "flops=1e9"}),
        *({"tasks": 3}, ("budget of flops is shared over all tasks",)),
    ),
    "a full head": (
        *("permuted-mnist-5k", "naive", {"tasks": 2, "setting": "class", "head": "full"}),
        *({"tasks": 3}, ("had 20 outputs from the start (head=full), not 30",)),
    ),
    "nothing": ("permuted-mnist-5k", "naive", {"tasks": 2}, {}, ("nothing new", "such as tasks=3")),
    "a field that changes numbers": (
        *("permuted-mnist-5k", "naive", {"tasks": 2}),
        *({"tasks": 3, "lr": 0.5}, ("with which a run can go on", "'lr'")),
    ),
    "data behind permuted ones": (
        *("permuted-mnist-5k", "naive", {"tasks": 2}),
        *({"scenario": "split-digits"}, ("no other data can follow",)),
    ),
    "data of another size": (
        *("split-digits", "naive", {"tasks": 2}),
        *({"scenario": "split-mnist-5k"}, ("the shape of its images is [1, 8, 8] there and [1, 28, 28] here",)),
    ),
    "its own data": (
        *("split-digits", "naive", {"tasks": 2}),
        *({"scenario": "split-digits"}, ("stands in the stream more than once",)),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_one_run_is_refused_with_the_difference(case: str, tmp_path: Path, refused: Any) -> None:
    scenario, strategy, options, extended, words = REFUSED[case]
    clbench.run(scenario, strategy, out=tmp_path / "run", **{**SMALL, **options})
    with refused(*words):
        clbench.extend(tmp_path / "run", out=tmp_path / "new", quiet=True, **extended)
    assert not (tmp_path / "new").exists()


def test_a_method_that_foresees_the_tasks_and_data_that_changed_are_refused(
    more: Path, tmp_path: Path, refused: Any
) -> None:
    class Foreseeing(clbench.Strategy):
        traits = clbench.Traits(family="regularisation", foresees=True)

    clbench.run(str(more), Foreseeing, tasks=3, out=tmp_path / "a", **SMALL)
    with refused("what Foreseeing learns in a task depends on how many tasks there are"):
        clbench.extend(tmp_path / "a", "split-mnist-5k", out=tmp_path / "b")
    clbench.run(str(more), "naive", tasks=3, out=tmp_path / "c", **SMALL)
    with refused("is the folder of the run that is continued"):
        clbench.extend(tmp_path / "c", "split-mnist-5k", out=tmp_path / "c", force=True)
    arrays = dict(np.load(more))
    arrays["x_train"][0] += 1
    np.savez(more, **arrays)
    with refused("are not those that it was trained on"):
        clbench.extend(tmp_path / "c", "split-mnist-5k", out=tmp_path / "d")


def test_a_scenario_that_was_handed_over_can_not_be_found_again(tiny: Any, tmp_path: Path, refused: Any) -> None:
    clbench.run(tiny, "naive", out=tmp_path / "run", **{k: v for k, v in SMALL.items() if k != "limit"})
    with refused("was handed over as an object"):
        clbench.extend(tmp_path / "run", tasks=6)


def test_the_verb_does_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {**SMALL, "evaluate": "seen"}
    clbench.run("permuted-mnist-5k", "naive", tasks=2, out=tmp_path / "a", **options)
    given = ("--tasks", "3", "--out", str(tmp_path / "b"), "--json")
    code, out, _ = call(capsys, "extend", str(tmp_path / "a"), *given)
    result = clbench.extend(tmp_path / "a", tasks=3, out=tmp_path / "c", quiet=True)
    assert (code, json.loads(out)["accuracy"]) == (0, result.record["accuracy"])
    code, _, err = call(capsys, "extend", str(tmp_path / "a"), "--tasks", "2")
    assert (code, len(err.splitlines())) == (2, 1)
