"""Problems of a first user: options without effect, folders that are not ours, strategies that crash."""

from pathlib import Path

import pytest

import clbench
from clbench.learning.strategy import Strategy, Traits
from clbench.many.compare import plan
from clbench.many.execution import run_planned
from clbench.running.resolve import resolve

DIGITS = "split-mnist-5k"
TINY = {"limit": 10, "epochs": 1, "threads": 1, "tasks": 2}


class Crash(Strategy):
    """Fails in its second task, as a strategy under construction does."""

    traits = Traits(family="replay")

    def begin_task(self, task: object) -> None:
        if self.progress.task == 1:
            raise ZeroDivisionError("oops")


@pytest.mark.parametrize(
    "options",
    [
        {"lr_factor": 0.5},
        {"lr_factor": 0.5, "schedule": "cosine"},
        {"lr_patience": 2},
        {"schedule_scope": "run"},
        {"min_delta": 0.5},
        {"decay_head": False},
        {"decay_norms": False},
        {"train": "head", "backbone_lr_factor": 0.1},
    ],
    ids=str,
)
def test_an_option_without_effect_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(clbench.ConfigError, match="has no effect here; it needs"):
        resolve(DIGITS, "naive", options)


@pytest.mark.parametrize("name", ["batch_size", "memory_size", "threads", "seed"])
def test_a_number_beyond_any_machine_is_refused(name: str) -> None:
    with pytest.raises(clbench.ConfigError, match=f"{name}=9+ given"):
        resolve(DIGITS, "er", {name: 99999999999999999999})


def test_an_option_in_brackets_and_outside_is_refused_for_one_run() -> None:
    with pytest.raises(clbench.ConfigError, match="strength is given twice"):
        resolve(DIGITS, "lwf[strength=1]", {"strategy_options": {"strength": 2.0}})
    with pytest.raises(clbench.ConfigError, match="memory_size is given twice"):
        resolve(DIGITS, "er[memory_size=5]", {"memory_size": 50})


def test_in_a_comparison_brackets_come_before_what_is_said_for_all(tmp_path: Path) -> None:
    options = {**TINY, "memory_size": 50}
    planned = plan(DIGITS, ["er", "er[memory_size=5]"], seeds=1, out=tmp_path, references=False, **options)
    assert [item.config.memory.size for item in planned] == [50, 5]


def test_a_crashing_strategy_leaves_the_other_runs_alone(tmp_path: Path) -> None:
    planned = plan(DIGITS, [Crash, "naive"], seeds=1, out=tmp_path, references=False, **TINY)
    crashed, naive = run_planned(planned)
    assert crashed.error is not None
    assert crashed.error.startswith(
        "ZeroDivisionError: oops (task 1, Crash.begin_task, test_nothing_lost_or_ignored.py "
    )
    assert naive.result is not None
    stored = clbench.Result.load(crashed.planned.folder)
    assert stored.status == "failed"
    # The task before the crash is still there.
    assert stored.record["accuracy"]["class_incremental"][0][0] is not None


def test_a_run_whose_checkpoint_is_gone_is_not_begun_again_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        clbench.run(DIGITS, Crash, out=tmp_path, **TINY)
    before = (tmp_path / "run.json").read_bytes()
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(clbench.ConfigError, match="without its checkpoint; --force"):
        clbench.run(DIGITS, Crash, out=tmp_path, resume=True, **TINY)
    assert (tmp_path / "run.json").read_bytes() == before


def test_force_overwrites_nothing_that_no_run_left(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"mine")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(clbench.ConfigError, match="holds files that no run of clbench left"):
        clbench.run(DIGITS, "naive", out=tmp_path, force=True, **TINY)
    assert (tmp_path / "model.pt").read_bytes() == b"mine"
