"""A loss, gradient or weight that is not finite: the run ends and says where, or leaves the step out and says so."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import clbench
from clbench import Strategy, Traits
from clbench.results.result import Result


class Spoilt(Strategy):
    """Naive, with a fault in step 3 of task 1; a class attribute says which."""

    traits = Traits(family="regularisation")
    wrong = ""

    def strikes(self) -> bool:
        return self.progress.task == 1 and self.progress.step == 3

    def loss(self, batch: Any) -> Any:
        terms = {"classification": self.classification_loss(self.model(batch.images), batch)}
        if self.wrong in ("nan", "inf"):
            factor = float(self.wrong) if self.strikes() else 1.0
            terms["distillation"] = terms["classification"] * factor
        return terms

    def after_backward(self, batch: Any) -> None:
        if self.wrong == "gradient" and self.strikes():
            next(self.model.parameters()).grad[0, 0] = torch.nan

    def penalty(self) -> Any:
        if self.wrong != "penalty":
            return None
        return next(self.model.parameters()).square().sum() * (torch.inf if self.strikes() else 0.0)

    def after_step(self, batch: Any) -> None:
        if self.wrong == "last weight" and self.progress.task == 4:
            # In an output's bias that no loss reads: with head="full", loss_outputs="seen", the last task's own.
            next(self.model.parameters()).data[0, 0] = torch.nan


def spoilt(what: str) -> type[Strategy]:
    return type("Spoilt", (Spoilt,), {"wrong": what, "__module__": __name__})


@pytest.mark.parametrize(
    ("what", "begins"),
    [
        ("nan", "the distillation loss is nan in task 1, stage 'train', epoch 0, step 3 at learning rate 0.1;"),
        ("inf", "the distillation loss is inf in task 1, stage 'train', epoch 0, step 3 at learning rate 0.1;"),
        ("penalty", "the penalty loss is inf in task 1, stage 'train', epoch 0, step 3 at learning rate 0.1;"),
        # It is the next step whose loss shows it.
        ("gradient", "the classification loss is nan in task 1, stage 'train', epoch 0, step 4 at learning rate 0.1;"),
    ],
)
def test_the_sentence_names_term_step_rate_and_last_checkpoint(
    what: str, begins: str, run: Any, tmp_path: Path
) -> None:
    with pytest.raises(clbench.RunError) as caught:
        run(spoilt(what), out=tmp_path / "run", batch_size=4)
    text = str(caught.value)
    assert text.startswith(begins)
    assert "--on-nan skip (run: --resume, too), which goes on from the beginning of task 1 and" in text
    assert len(text) < 300
    assert "\n" not in text
    assert Result.load(tmp_path / "run").status == "failed"


def test_a_checkpoint_within_the_task_is_named(run: Any) -> None:
    with pytest.raises(clbench.RunError, match=r"goes on from task 1, stage 'train', epoch 0, step 2 and"):
        run(spoilt("nan"), batch_size=4, checkpoint_every="2-steps")


def test_features_that_exemplars_cant_be_chosen_by_end_the_run_with_advice(run: Any) -> None:
    class Overflows(Strategy):
        traits = Traits(family="replay")

        def features(self, images: Any) -> Any:
            return self.model.features(images) * torch.inf

    with pytest.raises(clbench.RunError, match=r"features of task 0, .* not finite; try a smaller learning rate"):
        run(Overflows, memory_size=10, memory_policy="herding", on_nan="skip")


def test_weights_that_no_later_loss_shows_are_found(run: Any) -> None:
    """They are spoilt after the last step of the run, so that every loss is finite: 5 steps a task, of 4 images."""

    class Late(Spoilt):
        def after_step(self, batch: Any) -> None:
            if self.progress.task == 4 and self.progress.step == 4:
                self.model.head.bias.data[0] = torch.nan

    with pytest.raises(clbench.RunError, match=r"model\.head\.bias holds weights that are not finite in task 4"):
        run(Late, batch_size=4)


@pytest.mark.parametrize("what", ["nan", "inf", "penalty"])
def test_skip_leaves_the_step_out_and_counts_it(what: str, run: Any) -> None:
    """4 images a step, 20 a task: 5 steps in each of 5 tasks, of which one is left out."""
    result = run(spoilt(what), batch_size=4, on_nan="skip")
    assert result.status == "done"
    assert [epoch["skipped"] for epoch in result.record["training"]] == [0, 1, 0, 0, 0]
    assert result.steps_of_tasks == [5, 4, 5, 5, 5]
    assert [text for text in result.warnings if "1 optimizer steps were left out" in text]
    assert "steps-skipped" in [warning["rule"] for warning in result.record["warnings"]]
    json.dumps(result.record, allow_nan=False)


def test_a_step_left_out_is_as_if_its_batch_had_not_been(run: Any, tmp_path: Path) -> None:
    """Independently: a strategy whose step 3 of task 1 has no gradient at all, under sgd without momentum."""

    class Idle(Strategy):
        traits = Traits(family="regularisation")

        def loss(self, batch: Any) -> Any:
            term = self.classification_loss(self.model(batch.images), batch)
            return term * 0.0 if self.progress.task == 1 and self.progress.step == 3 else term

    class Bad(Idle):
        def loss(self, batch: Any) -> Any:
            term = self.classification_loss(self.model(batch.images), batch)
            return term * torch.nan if self.progress.task == 1 and self.progress.step == 3 else term

    run(Idle, batch_size=4, out=tmp_path / "idle")
    run(Bad, batch_size=4, out=tmp_path / "bad", on_nan="skip")
    one, other = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("idle", "bad"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_skip_changes_nothing_where_all_is_finite(run: Any) -> None:
    one, other = run("ewc", lr=0.01), run("ewc", lr=0.01, on_nan="skip")
    assert one.record["accuracy"] == other.record["accuracy"]
    assert one.recorded.identity == other.recorded.identity
    assert not [text for text in other.warnings if "left out" in text]


def test_a_stopped_run_goes_on_with_skip(run: Any, tmp_path: Path) -> None:
    strategy, out = spoilt("nan"), tmp_path / "run"
    with pytest.raises(clbench.RunError):
        run(strategy, out=out, batch_size=4, checkpoint_every="2-steps")
    result = run(strategy, out=out, batch_size=4, checkpoint_every="2-steps", on_nan="skip", resume=True)
    assert result.status == "done"
    assert result.config["on_nan"] == "skip"
    whole = run(strategy, batch_size=4, on_nan="skip")
    assert result.record["accuracy"] == whole.record["accuracy"]


def test_the_help_says_what_skip_costs() -> None:
    from clbench.config.run import fields

    assert re.search(r"waits for the device in each step", fields()["on_nan"].description or "")


# Kept bytes against the memory's budget


class Cheat(Strategy):
    """Keeps copies of all images it has seen, in a list, beside a memory whose size it respects."""

    traits = Traits(family="replay")

    def end_task(self, task: Any) -> None:
        self.hidden = [*getattr(self, "hidden", []), task.train.images.clone()]


def above(result: Result) -> list[str]:
    return [w["text"] for w in result.record["warnings"] if w["rule"] == "memory-above-budget"]


def test_copies_of_images_beside_the_memory_are_told_in_the_run_and_in_reports(run: Any) -> None:
    """20 images a task: 100 after the fifth, beside 10 exemplars in a memory of 10."""
    from clbench.reports.comparison import compare

    result = run(Cheat, memory_size=10)
    expected = "Cheat: 100 copies of images are kept beside 10 exemplars, and the memory is of 10 after task 4"
    assert above(result) == [expected]
    assert expected in " ".join(compare([result])[0].notes)
    assert result.stored_items["images"] == 100


def test_without_a_memory_every_copy_is_above(run: Any) -> None:
    assert above(run(Cheat)) == [
        "Cheat: 100 copies of images are kept beside 0 exemplars, and the memory is of 0 after task 4"
    ]


def test_flat_copies_and_single_images_count_too(run: Any) -> None:
    class Flat(Cheat):
        def end_task(self, task: Any) -> None:
            self.hidden = {"flat": task.train.images.flatten(1).clone(), "one": task.train.images[0].clone()}

    assert "21 copies of images" in above(run(Flat))[0]


def test_more_exemplars_than_the_memory_is_of_are_told(run: Any) -> None:
    class Greedy(Strategy):
        traits = Traits(family="replay")

        def end_task(self, task: Any) -> None:
            self.memory.ids = torch.cat([self.memory.ids, task.train.ids])
            self.memory.classes = torch.cat([self.memory.classes, task.train.classes])

    text = above(run(Greedy, memory_size=10, memory_policy="random", epochs=1))[0]
    assert re.search(r"\d+ exemplars are kept, and the memory is of 10 after task", text)


@pytest.mark.parametrize("strategy", ["er", "icarl", "derpp", "dgr", "gem", "ewc", "slda"])
def test_honest_strategies_keep_to_their_budget(strategy: str, run: Any) -> None:
    memory = {"memory_size": 20} if strategy in ("er", "icarl", "derpp", "gem") else {}
    assert above(run(strategy, lr=0.01, **memory)) == []
