"""Seeds of one configuration trained in one batched model: the losses of each seed are those of its run alone."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clbench
import clbench.running.observer
from clbench.many.compare import plan
from clbench.many.execution import run_planned, run_status
from clbench.many.together import Together
from clbench.results.result import Result
from clbench.running.resolve import strategy_class

Refused = Callable[..., Any]
FIXED: dict[str, Any] = {"references": False, "seeds": 3, "tasks": 2, "limit": 20, "threads": 1}


def both(strategy: Any, folder: Path, **options: Any) -> list[tuple[Result, Result]]:
    alone = clbench.compare("split-mnist-5k", [strategy], out=folder / "alone", **FIXED | options)
    together = clbench.compare(
        "split-mnist-5k", [strategy], out=folder / "together", seeds_together=True, **FIXED | options
    )
    return list(zip(alone, together, strict=True))


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("strategy", ["naive", "lwf", "lwf[recorded=true]", "ewc", "mas", "l2"])
def test_losses_are_those_of_the_separate_runs(strategy: str, optimizer: str, tmp_path: Path) -> None:
    """In float64 to 1e-8 over 20 steps, ten in each of two tasks; an epoch of 40 images in batches of 64 is one."""
    options = {"epochs": 10, "batch_size": 64, "model": "mlp:20-10", "optimizer": optimizer, "lr": 0.01}
    if optimizer == "sgd":
        options |= {"momentum": 0.9, "optimizer_state": "keep", "weight_decay": 0.01}
    for alone, together in both(strategy, tmp_path, **options):
        steps = [[epoch["losses"] for epoch in result.record["training"]] for result in (alone, together)]
        assert len(steps[0]) == 20
        for one, other in zip(*steps, strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                assert other[name] == pytest.approx(value, rel=1e-8, abs=1e-12)
        assert alone.accuracy == pytest.approx(together.accuracy, nan_ok=True)


@pytest.mark.usefixtures("in_float64")
def test_batch_norm_and_convolutions_keep_their_statistics_apart(tmp_path: Path) -> None:
    options = {"epochs": 3, "batch_size": 16, "model": "conv:4-4", "optimizer": "sgd", "lr": 0.05, "momentum": 0.0}
    for alone, together in both("naive", tmp_path, **options):
        losses = [[epoch["losses"]["classification"] for epoch in r.record["training"]] for r in (alone, together)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-7)
        assert alone.accuracy == pytest.approx(together.accuracy, nan_ok=True)


def test_accuracies_differ_by_less_than_seeds_do_and_the_record_says_how_it_was(tmp_path: Path) -> None:
    pairs = both("naive", tmp_path, epochs=3, limit=200)
    finals = np.array([[r.metrics["average_accuracy"] for r in pair] for pair in pairs])
    assert abs(finals[:, 0].mean() - finals[:, 1].mean()) <= finals[:, 0].std(ddof=1)
    for _, together in pairs:
        (told,) = [w["text"] for w in together.record["warnings"] if w["rule"] == "seeds-together"]
        assert "seeds 0, 1, 2 in one batched model" in told


def test_the_same_seeds_together_repeat_to_the_byte(tmp_path: Path) -> None:
    """Any thread may come first; interleaved threads would draw from each other's random streams."""
    first, second = (
        clbench.compare("split-mnist-5k", ["joint"], out=tmp_path / name, epochs=1, seeds_together=True, **FIXED)
        for name in ("first", "second")
    )
    for one, other in zip(first, second, strict=True):
        assert [e["losses"] for e in one.record["training"]] == [e["losses"] for e in other.record["training"]]
        assert one.record["correct"] == other.record["correct"]


def test_early_stopping_lets_each_seed_end_where_it_would_alone(tmp_path: Path) -> None:
    options = {"epochs": 12, "patience": 1, "validation": 0.3, "lr": 0.02}
    epochs = [[len(r.record["training"]) for r in pair] for pair in both("naive", tmp_path, **options)]
    assert all(alone == together for alone, together in epochs)
    assert len({alone for alone, _ in epochs}) > 1


class Interrupts(clbench.running.observer.Observer):  # type: ignore[name-defined,misc]
    def task(self, task: int, row: list[float | None]) -> None:
        raise KeyboardInterrupt


def test_an_unfinished_run_goes_on_with_the_others(tmp_path: Path) -> None:
    """Seed 1 has learnt its first task by itself; the others are trained up to there without it."""
    fixed = FIXED | {"epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        list(
            run_planned(
                plan("split-mnist-5k", ["naive"], out=tmp_path, **fixed | {"seeds": [1]}), observer=Interrupts()
            )
        )
    results = clbench.compare("split-mnist-5k", ["naive"], out=tmp_path, seeds_together=True, **fixed)
    assert [len(r.record["resumes"]) for r in results] == [0, 1, 0]
    for result in results:
        assert [epoch["task"] for epoch in result.record["training"]] == [0, 0, 1, 1]
        assert [w["rule"] for w in result.record["warnings"]] == ["seeds-together"]


def test_finished_runs_are_left_alone(tmp_path: Path) -> None:
    first = clbench.compare("split-mnist-5k", ["naive"], out=tmp_path, epochs=2, **FIXED | {"seeds": [1]})
    created = first[0].record["created"]
    results = clbench.compare("split-mnist-5k", ["naive"], out=tmp_path, epochs=2, seeds_together=True, **FIXED)
    assert [r.seed for r in results] == [0, 1, 2]
    assert results[1].record["created"] == created
    assert [any(w["rule"] == "seeds-together" for w in r.record["warnings"]) for r in results] == [True, False, True]


class Fails(clbench.Strategy):
    """Naive; the penalty of seed 1 is not a number."""

    traits = clbench.Traits(family="reference", seeds_together=True)

    def penalty(self) -> Any:
        weight = next(self.model.parameters())
        return weight.sum() * float("nan") if self.config.seed == 1 else None


def test_a_seed_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    planned = plan("split-mnist-5k", [Fails], out=tmp_path, epochs=1, **FIXED)
    outcomes = {o.planned.config.seed: o.error for o in run_planned(planned, seeds_together=True)}
    assert outcomes[0] is None
    assert outcomes[2] is None
    assert "the penalty loss is nan" in str(outcomes[1])


class Stops(clbench.Strategy):
    """Naive; its observer raises an interruption in the third epoch of the second task."""

    traits = clbench.Traits(family="reference", seeds_together=True)
    interrupt: Any = None

    def penalty(self) -> Any:
        if (self.progress.task, self.progress.epoch) == (1, 2) and type(self).interrupt is not None:
            type(self).interrupt()
        return None


def test_who_stops_looking_ends_the_runs_and_each_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption no thread stays, no run has failed, and all go on after their last epoch."""
    before = threading.active_count()
    fixed = FIXED | {"epochs": 5, "checkpoint_every": "epoch"}
    planned = plan("split-mnist-5k", [Stops], out=tmp_path / "stopped", **fixed)
    stop = Together.stop
    groups: list[Together] = []
    monkeypatch.setattr(Together, "run", lambda self, do, run=Together.run: (groups.append(self), run(self, do))[1])
    monkeypatch.setattr(Stops, "interrupt", lambda: stop(groups[0]))
    with pytest.raises(KeyboardInterrupt):
        list(run_planned(planned, seeds_together=True))
    assert threading.active_count() == before
    assert [run_status(item) for item in planned] == ["running"] * 3
    monkeypatch.setattr(Stops, "interrupt", None)
    results = clbench.compare("split-mnist-5k", [Stops], out=tmp_path / "stopped", seeds_together=True, **fixed)
    assert [(r.record["resumes"][0]["task"], r.record["resumes"][0]["epoch"]) for r in results] == [(1, 2)] * 3
    whole = clbench.compare("split-mnist-5k", [Stops], out=tmp_path / "whole", seeds_together=True, **fixed)
    for one, other in zip(results, whole, strict=True):
        assert one.record["correct"] == other.record["correct"]


def test_an_epoch_that_was_begun_alone_is_ended_alone(tmp_path: Path) -> None:
    """Seed 1 is saved after three of five steps of its first epoch; in the next one it trains with the others."""

    class Leaves(clbench.running.observer.Observer):  # type: ignore[name-defined,misc]
        def step(self, progress: Any, loss: float | None) -> None:
            if progress.step == 3:
                raise KeyboardInterrupt

    fixed = FIXED | {"epochs": 2, "batch_size": 8, "checkpoint_every": 1e-9}
    one = plan("split-mnist-5k", ["naive"], out=tmp_path / "parts", **fixed | {"seeds": [1]})
    with pytest.raises(KeyboardInterrupt):
        list(run_planned(one, observer=Leaves()))
    parts = clbench.compare("split-mnist-5k", ["naive"], out=tmp_path / "parts", seeds_together=True, **fixed)
    whole = clbench.compare("split-mnist-5k", ["naive"], out=tmp_path / "whole", **fixed)
    assert parts[1].record["resumes"][0]["step"] > 0
    for one, other in zip(parts, whole, strict=True):
        losses = [[e["losses"]["classification"] for e in r.record["training"]] for r in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


class Pulls(clbench.Strategy):
    """An anchor and a number of its own in the loss of each seed, outside of modules."""

    traits = clbench.Traits(family="regularisation", seeds_together=True)

    def begin_task(self, task: Any) -> None:
        if task.index == 0:
            self.anchor = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
            self.share = 0.01 * (1 + self.config.seed)

    def loss(self, batch: Any) -> Any:
        away = sum(
            (p[: len(self.anchor[name])] - self.anchor[name]).square().sum()
            for name, p in self.model.named_parameters()
        )
        logits = self.model(batch.images)
        return {"classification": self.classification_loss(logits, batch), "pull": self.share * away}

    def end_task(self, task: Any) -> None:
        self.anchor = {name: p.detach().clone() for name, p in self.model.named_parameters()}


@pytest.mark.usefixtures("in_float64")
def test_what_a_loss_reads_of_the_strategy_is_that_of_its_seed(tmp_path: Path) -> None:
    for alone, together in both(Pulls, tmp_path, epochs=3, model="mlp:10"):
        steps = [[epoch["losses"] for epoch in result.record["training"]] for result in (alone, together)]
        for one, other in zip(*steps, strict=True):
            assert other == pytest.approx(one, rel=1e-7)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("strategy", ["joint", "cumulative", "lwf", "lwf-mc", "ewc"])
def test_each_setting_trains_together_as_alone(strategy: str, tmp_path: Path) -> None:
    """In the task setting samples of several tasks compete among different outputs."""
    for setting in ("task", "domain", "class"):
        if setting not in strategy_class(strategy).traits.settings:
            continue
        options = {"epochs": 2, "model": "mlp:10", "setting": setting, "optimizer": "sgd", "lr": 0.1}
        for alone, together in both(strategy, tmp_path / setting, **options):
            steps = [[epoch["losses"] for epoch in result.record["training"]] for result in (alone, together)]
            for one, other in zip(*steps, strict=True):
                assert other == pytest.approx(one, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    ("strategy", "options", "words"),
    [
        ("er", {}, ["er trains its seeds one by one", "naive"]),
        ("si", {}, ["si trains its seeds one by one"]),
        ("naive[memory_size=20]", {}, ["memory_size=20"]),
        ("naive", {"clip": 1.0}, ["clip=1.0"]),
        ("naive", {"on_nan": "skip"}, ["on_nan=skip"]),
        ("naive", {"eval_every": 3}, ["eval_every=3"]),
        ("naive", {"jobs": 2}, ["--jobs"]),
        ("naive", {"schedule": "plateau", "validation": 0.2}, ["schedule=plateau"]),
        (
            "naive",
            {"patience": 1, "validation": 0.2, "optimizer_state": "keep"},
            ["optimizer_state=keep with patience"],
        ),
        ("naive", {"class_order_seed": "per-seed"}, ["class_order_seed=per-seed"]),
        ("naive", {"checkpoint_every": "1-steps"}, ["checkpoint_every=1-steps"]),
        ("naive", {"model": "mlp:8[dropout=0.5]"}, ["mlp:8[dropout=0.5] has dropout"]),
    ],
)
def test_what_needs_runs_one_by_one_is_refused(
    strategy: str, options: dict[str, Any], words: list[str], refused: Refused, tmp_path: Path
) -> None:
    with refused("--seeds-together", *words):
        clbench.compare("split-mnist-5k", [strategy], out=tmp_path, seeds_together=True, **FIXED | options)
    assert not list(tmp_path.rglob("run.json"))
