"""The trainer: the order of a step, frozen layers, the optimizer's content; and a run is a function of its config."""

import copy
import itertools
import json
import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shared import optimizer_steps
from torch import Tensor, nn

import clbench
from clbench import RunError, Stage, Strategy, Traits
from clbench.learning.trainer import cut as cut_batches

HARSH = {"model": "mlp:16-16[batch_norm=true,dropout=0.5]", "momentum": 0.9, "weight_decay": 0.1}
OPTIMIZERS = [
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def accuracy_of(result: Any) -> str:
    return json.dumps(result.record["accuracy"])


# The order of the hooks


def test_hooks_come_in_the_order_of_the_contract(run, cut):
    """Two tasks of 4 images of 2 classes, batches of 2: two steps a task. The head grows after begin_task."""
    events: list[Any] = []

    class Recorder(Strategy):
        traits = Traits(family="regularisation")

        def note(self, name: str) -> None:
            events.append((name, self.model.head.out_features))

        def begin_task(self, task: Any) -> None:
            self.note("begin_task")

        def stages(self, task: Any) -> list[Stage]:
            self.note("stages")
            return [Stage(task.train, before=lambda: self.note("before"))]

        def loss(self, batch: Any) -> Any:
            self.note("loss")
            return super().loss(batch)

        def after_backward(self, batch: Any) -> None:
            self.note("after_backward")

        def penalty(self) -> None:
            self.note("penalty")

        def after_step(self, batch: Any) -> None:
            self.note("after_step")

        def end_task(self, task: Any) -> None:
            self.note("end_task")

        def scores(self, images: Tensor, task: int | None = None) -> Tensor:
            self.note("scores")
            return super().scores(images)

    def step(optimizer: Any) -> None:
        events.append("step")

    with optimizer_steps(before=step):
        run(Recorder, cut(class_order=[0, 1, 2, 3], tasks=2, limit=2), batch_size=2)

    def a_step(n: int) -> list[Any]:
        return [("loss", n), ("after_backward", n), ("penalty", n), "step", ("after_step", n)]

    assert events == [
        ("begin_task", 0),
        ("scores", 2),  # the untrained model, under the head of the first task
        ("stages", 2),
        ("before", 2),
        *a_step(2),
        *a_step(2),
        ("end_task", 2),
        ("scores", 2),
        ("begin_task", 2),
        ("stages", 4),
        ("before", 4),
        *a_step(4),
        *a_step(4),
        ("end_task", 4),
        ("scores", 4),
    ]


def test_several_stages_are_fitted_in_turn_with_their_own_loss_and_length(run, tiny):
    class TwoStages(Strategy):
        traits = Traits(family="isolation")

        def stages(self, task: Any) -> list[Stage]:
            return [
                Stage(task.train, "one", iterations=4, loss=self.other),
                Stage(task.train.subset(torch.arange(5)), "two", epochs=3),
            ]

        def other(self, batch: Any) -> Tensor:
            return self.model(batch.images).square().mean()

    result = run(TwoStages, batch_size=8)
    seen = [(r["task"], r["stage"], r["epoch"], r["steps"], r["images"]) for r in result.record["training"]]
    # 20 images in batches of 8, 8, 4: one epoch of 3 steps, and the fourth step in the second epoch.
    one_task = [("one", 0, 3, 20), ("one", 1, 1, 8), ("two", 0, 1, 5), ("two", 1, 1, 5), ("two", 2, 1, 5)]
    assert seen == [(t, *rest) for t in range(5) for rest in one_task]
    names = [list(r["losses"]) for r in result.record["training"][:5]]
    assert names == [["loss"], ["loss"], ["classification"], ["classification"], ["classification"]]


def test_no_stage_trains_nothing(run):
    class Untrained(Strategy):
        traits = Traits(family="isolation")

        def stages(self, task: Any) -> list[Stage]:
            return []

    result = run(Untrained)
    assert [task["steps"] for task in result.record["tasks"]] == [0] * 5
    assert result.accuracy[0, 0] == result.untrained[0]


# Gradients


class Pulled(Strategy):
    """The gradient of loss() recomputed by autograd in after_backward, and a penalty of 0.3 / 2 * |w|^2 after it."""

    traits = Traits(family="regularisation")
    checked: ClassVar[list[float]] = []

    def after_backward(self, batch: Any) -> None:
        parameters = dict(self.model.named_parameters())
        outputs = self.model(batch.images)[:, : 2 * self.progress.task + 2]
        expected = torch.autograd.grad(F.cross_entropy(outputs, batch.labels), list(parameters.values()))
        self.before = {}
        for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-6)
            self.before[name] = (parameter.detach().clone(), parameter.grad.clone())
        if self.progress.task == 1:
            for parameter in parameters.values():
                parameter.grad.zero_()

    def penalty(self) -> Tensor:
        return 0.15 * sum(p.square().sum() for p in self.model.parameters())

    def after_step(self, batch: Any) -> None:
        kept = 0.0 if self.progress.task == 1 else 1.0
        for name, parameter in self.model.named_parameters():
            weight, gradient = self.before[name]
            expected = weight - 0.1 * (kept * gradient + 0.3 * weight)
            assert torch.allclose(parameter, expected, atol=1e-6)
            self.checked.append(float((parameter - weight).detach().abs().sum()))


def test_after_backward_sees_the_gradient_of_the_loss_alone_and_the_penalty_comes_after(run):
    """Plain SGD at 0.1: w - 0.1 (g + 0.3 w). In task 1 the hook sets g to zero; the penalty's gradient stays."""
    Pulled.checked.clear()
    run(Pulled)
    assert len(Pulled.checked) == 5 * 3 * 4
    assert min(Pulled.checked) > 0


def test_the_penalty_is_reported_beside_the_loss(run):
    Pulled.checked.clear()
    result = run(Pulled, iterations=1)
    assert all(list(record["losses"]) == ["classification", "penalty"] for record in result.record["training"])


def test_clipping_is_of_loss_and_penalty_together(run):
    """SGD moves the weights by the learning rate times the gradient, whose norm is cut to 0.01."""
    lengths: list[float] = []

    class Steep(Strategy):
        traits = Traits(family="regularisation")

        def after_backward(self, batch: Any) -> None:
            self.before = nn.utils.parameters_to_vector(self.model.parameters()).detach()

        def penalty(self) -> Tensor:
            return 100 * sum(p.square().sum() for p in self.model.parameters())

        def after_step(self, batch: Any) -> None:
            moved = nn.utils.parameters_to_vector(self.model.parameters()).detach() - self.before
            lengths.append(float(moved.norm()))

    run(Steep, clip=0.01, lr=0.5)
    assert len(lengths) == 15
    assert lengths == pytest.approx([0.005] * 15, rel=1e-3)


# Frozen parameters


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["optimizer"])
@pytest.mark.parametrize("state", ["reset", "keep"])
def test_what_a_stage_does_not_train_keeps_its_bits(optimizer, state, run):
    """Weights, biases, batch-norm statistics and dropout of the backbone, under momentum, Adam and weight decay."""
    noted: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
    noise: dict[int, float] = {}

    class HeadOnly(Strategy):
        traits = Traits(family="isolation")

        def stages(self, task: Any) -> list[Stage]:
            self.first = weights(self.model)
            chosen = list(self.model.head.parameters()) if task.index == 1 else None
            return [Stage(task.train, parameters=chosen)]

        def loss(self, batch: Any) -> Any:
            if self.progress.step == 1:
                with torch.no_grad():
                    two = [self.model.features(batch.images) for _ in range(2)]
                noise[self.progress.task] = float((two[0] - two[1]).abs().sum())
            return super().loss(batch)

        def end_task(self, task: Any) -> None:
            noted[task.index] = (self.first, weights(self.model))
            assert all(parameter.requires_grad for parameter in self.model.parameters())

    run(HeadOnly, optimizer_state=state, model=HARSH["model"], **optimizer)
    for task, (before, after) in noted.items():
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        if task == 1:
            assert moved == {"head.weight", "head.bias"}
            assert noise[task] == 0
        else:
            assert moved == set(before)
            assert noise[task] > 0


def test_a_frozen_first_block_leaves_the_others_in_train_mode(run):
    noted: list[set[str]] = []

    class LastBlock(Strategy):
        traits = Traits(family="isolation")

        def stages(self, task: Any) -> list[Stage]:
            self.first = weights(self.model)
            layers = [self.model.blocks()[1], self.model.head]
            return [Stage(task.train, parameters=[p for layer in layers for p in layer.parameters()])]

        def end_task(self, task: Any) -> None:
            now = weights(self.model)
            noted.append({name for name in now if not torch.equal(self.first[name], now[name])})

    run(LastBlock, **HARSH)
    for moved in noted:
        assert {name for name in moved if name.startswith("backbone.0")} == set()
        assert {"backbone.1.0.weight", "backbone.1.1.weight", "backbone.1.1.running_mean", "head.bias"} <= moved


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["optimizer"])
def test_head_rows_are_the_only_rows_of_the_head_that_move(optimizer, run):
    noted: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    class NewRows(Strategy):
        traits = Traits(family="isolation")

        def stages(self, task: Any) -> list[Stage]:
            self.first = weights(self.model.head)
            return [Stage(task.train, head_rows=task.outputs)]

        def end_task(self, task: Any) -> None:
            noted[task.index] = (self.first, weights(self.model.head))

    run(NewRows, optimizer_state="keep", **optimizer)
    for task, (before, after) in noted.items():
        for name in ("weight", "bias"):
            assert torch.equal(before[name][: 2 * task], after[name][: 2 * task])
            assert not torch.equal(before[name][2 * task :], after[name][2 * task :])


# Batches


@pytest.mark.parametrize(
    ("n", "size", "drop_last", "expected"),
    [
        (8, 4, False, [4, 4]),
        (9, 4, False, [4, 5]),
        (10, 4, False, [4, 4, 2]),
        (5, 4, False, [5]),
        (3, 4, False, [3]),
        (1, 4, False, [1]),
        (3, 1, False, [1, 1, 1]),
        (9, 4, True, [4, 4]),
        (10, 4, True, [4, 4]),
        (8, 4, True, [4, 4]),
    ],
)
def test_a_last_batch_of_one_joins_the_one_before(n, size, drop_last, expected):
    batches = cut_batches(torch.arange(n), size, drop_last=drop_last)
    assert [len(batch) for batch in batches] == expected
    assert torch.cat(batches).tolist() == list(range(sum(expected)))


@pytest.mark.parametrize(("drop_last", "expected"), [(False, [9, 9]), (True, [8, 8])])
def test_each_image_is_seen_once_an_epoch(drop_last, expected, run, cut):
    """9 images a task in batches of 8: one batch of 9, or 8 of them."""
    seen: list[tuple[int, ...]] = []

    class Watch(Strategy):
        traits = Traits(family="reference")

        def loss(self, batch: Any) -> Any:
            seen.append(tuple(batch.ids.tolist()))
            return super().loss(batch)

    scenario = cut(class_order=[0, 1, 2, 3, 4, 5], tasks=2, limit=3)
    run(Watch, scenario, batch_size=8, drop_last=drop_last, epochs=2)
    assert [len(ids) for ids in seen] == [expected[0]] * 4
    for task, batches in zip(scenario.tasks, (seen[:2], seen[2:]), strict=True):
        assert all(len(set(ids)) == len(ids) and set(ids) <= set(task.train.ids.tolist()) for ids in batches)
        assert batches[0] != batches[1]  # shuffled anew


def test_iterations_count_steps_and_epochs_count_passes(run):
    """20 images in batches of 8: 3 steps an epoch; 7 steps are two epochs and a step."""

    def seen(**options: Any) -> list[tuple[int, int, int]]:
        records = run(**options).record["training"]
        return [(r["epoch"], r["steps"], r["images"]) for r in records if r["task"] == 0]

    assert seen(epochs=2) == [(0, 3, 20), (1, 3, 20)]
    assert seen(iterations=7) == [(0, 3, 20), (1, 3, 20), (2, 1, 8)]
    assert seen(iterations=3) == [(0, 3, 20)]
    tasks = run(iterations=7).record["tasks"]
    assert [(task["steps"], task["epochs"]) for task in tasks] == [(7, 3)] * 5


def test_six_iterations_are_two_epochs(run):
    assert accuracy_of(run(iterations=6)) == accuracy_of(run(epochs=2))


def test_progress_tells_where_the_run_is(run):
    seen: list[tuple[Any, ...]] = []

    class Watch(Strategy):
        traits = Traits(family="reference")

        def loss(self, batch: Any) -> Any:
            p = self.progress
            seen.append((p.task, p.stage, p.epoch, p.step, p.steps_per_epoch, p.learning_rate))
            return super().loss(batch)

    run(Watch, epochs=2, lr=0.05)
    # 3 steps an epoch; the step counts through the stage.
    assert seen == [(t, "train", s // 3, s, 3, 0.05) for t in range(5) for s in range(6)]


# Content of the optimizer


def test_the_optimizer_holds_exactly_what_trains(run):
    """At every step: the model's parameters, the grown head's among them, what was assigned to self; nothing stale."""
    checked: list[int] = []

    class Extra(Strategy):
        traits = Traits(family="regularisation")

        def begin_task(self, task: Any) -> None:
            if task.index == 1:
                self.scale = nn.Parameter(torch.ones(3))
                self.layer = nn.Linear(2, 2)
                self.teacher = nn.Linear(2, 2).requires_grad_(False)
                self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)
                self.table = torch.ones(3)

        def loss(self, batch: Any) -> Any:
            expected = {id(p) for p in self.model.parameters()}
            if self.progress.task >= 1:
                expected |= {id(self.scale), *(id(p) for p in self.layer.parameters())}
            self.expected = sorted(expected)
            return super().loss(batch)

        def after_backward(self, batch: Any) -> None:
            running.append(self)

    running: list[Extra] = []

    def before(optimizer: Any) -> None:
        held = sorted(id(p) for group in optimizer.param_groups for p in group["params"])
        assert held == running[-1].expected
        checked.append(len(held))

    with optimizer_steps(before):
        run(Extra)
    assert checked == [4] * 3 + [7] * 12


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["optimizer"])
@pytest.mark.parametrize("state", ["reset", "keep"])
def test_one_step_changes_the_new_rows(optimizer, state, run):
    moved: list[bool] = []

    class Watch(Strategy):
        traits = Traits(family="reference")

        def stages(self, task: Any) -> list[Stage]:
            self.first = self.model.head.weight.detach().clone()
            return super().stages(task)

        def after_step(self, batch: Any) -> None:
            rows = slice(2 * self.progress.task, None)
            moved.append(bool((self.model.head.weight[rows] != self.first[rows]).any(1).all()))

    run(Watch, iterations=1, optimizer_state=state, **optimizer)
    assert moved == [True] * 5


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["optimizer"])
@pytest.mark.parametrize("state", ["reset", "keep"])
def test_statistics_are_reset_or_kept_through_the_growth_of_the_head(optimizer, state, run):
    """Before the first step of a task: none, or the old rows' bits with zeros for the new rows."""
    at_end: list[list[dict[str, Tensor]]] = []
    at_start: list[list[dict[str, Tensor]]] = []

    def snapshot(optimizer: Any) -> list[dict[str, Tensor]]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return [copy.deepcopy(dict(optimizer.state.get(p, {}))) for p in parameters]

    with optimizer_steps(lambda o: at_start.append(snapshot(o)), lambda o: at_end.append(snapshot(o))):
        run(iterations=3, optimizer_state=state, **optimizer)
    assert len(at_start) == 15
    assert not any(at_start[0])
    for task in range(1, 5):
        first, last = at_start[3 * task], at_end[3 * task - 1]
        if state == "reset":
            assert not any(first)
            continue
        for now, then in zip(first, last, strict=True):
            assert now.keys() == then.keys() != set()
            for key in now:
                old = now[key][: len(then[key])] if then[key].dim() else now[key]
                assert torch.equal(old, then[key])
                if now[key].shape != then[key].shape:
                    assert not now[key][len(then[key]) :].any()
        assert len(first[-1][next(iter(set(first[-1]) - {"step"}))]) == 2 * (task + 1)  # the bias of the head has grown


def test_weight_decay_reaches_old_rows_unless_the_head_is_left_out(run):
    """The loss is over the new outputs, so the gradient of old rows is zero: SGD multiplies them by 1 - lr * decay."""

    def ratios(**options: Any) -> list[Tensor]:
        found: list[Tensor] = []

        class Watch(Strategy):
            traits = Traits(family="reference")

            def after_backward(self, batch: Any) -> None:
                self.before = self.model.head.weight.detach().clone()

            def after_step(self, batch: Any) -> None:
                old = 2 * self.progress.task
                found.append((self.model.head.weight.detach() / self.before)[:old])

        run(Watch, loss_outputs="new", lr=0.1, weight_decay=0.5, momentum=0.0, **options)
        return [ratio for ratio in found if len(ratio)]

    for ratio in ratios():
        assert torch.allclose(ratio, torch.full_like(ratio, 0.95), atol=1e-5)
    for ratio in ratios(decay_head=False):
        assert torch.equal(ratio, torch.ones_like(ratio))


@pytest.mark.parametrize("decay_head", [True, False])
def test_decay_head_off_still_decays_the_backbone(decay_head, run):
    """A gradient of zero and one step: 1 - 0.1 * 0.5 of each weight is left, or all of it in the head."""
    ratios: list[dict[str, Tensor]] = []

    class Still(Strategy):
        traits = Traits(family="reference")

        def loss(self, batch: Any) -> Tensor:
            return 0.0 * self.model(batch.images).sum()

        def stages(self, task: Any) -> list[Stage]:
            self.first = weights(self.model)
            return super().stages(task)

        def end_task(self, task: Any) -> None:
            ratios.append({name: value / self.first[name] for name, value in self.model.state_dict().items()})

    run(Still, iterations=1, weight_decay=0.5, lr=0.1, decay_head=decay_head)
    for ratio in ratios:
        assert torch.allclose(ratio["backbone.0.1.weight"], torch.tensor(0.95))
        assert torch.allclose(ratio["head.weight"], torch.tensor(0.95 if decay_head else 1.0))


# Attributes assigned to self


def test_a_parameter_and_a_module_assigned_to_self_train_unless_frozen(run):
    noted: list[dict[str, Tensor]] = []

    class Gated(Strategy):
        traits = Traits(family="isolation")

        def begin_task(self, task: Any) -> None:
            if task.index == 0:
                self.gate = nn.Parameter(torch.ones(32))
                self.adapter = nn.Linear(32, 32)
                self.frozen = nn.Linear(32, 32).requires_grad_(False)

        def loss(self, batch: Any) -> Tensor:
            features = self.gate * self.model.features(batch.images)
            features = features + self.adapter(features) + self.frozen(features)
            return self.classification_loss(self.model.head(features), batch)

        def end_task(self, task: Any) -> None:
            values = {"gate": self.gate, "adapter": self.adapter.weight, "frozen": self.frozen.weight}
            noted.append({name: value.detach().clone() for name, value in values.items()})

    run(Gated)
    assert not torch.equal(noted[0]["gate"], torch.ones(32))
    for before, after in itertools.pairwise(noted):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {"gate", "adapter"}


# A loss that is no number


@pytest.mark.parametrize("term", ["classification", "mine", "penalty"])
@pytest.mark.parametrize("step", [5, 4])
def test_a_loss_that_is_not_finite_ends_the_run_naming_where(term, step, run, tmp_path):
    """In task 1 at step 4 or 5, both in epoch 1; after step 4 the weights are NaN, and so is every term of step 5."""

    class Diverging(Strategy):
        traits = Traits(family="regularisation")

        def bad(self) -> Tensor:
            at = self.progress.task == 1 and self.progress.step == step
            return self.model.head.weight.sum() * (float("nan") if at else 0.0)

        def loss(self, batch: Any) -> dict[str, Tensor]:
            terms = {**super().loss(batch), "mine": self.model.head.weight.sum() * 0}
            if term in terms:
                terms[term] = terms[term] + self.bad()
            return terms

        def penalty(self) -> Tensor | None:
            return self.bad() if term == "penalty" else None

    with pytest.raises(RunError) as caught:
        run(Diverging, epochs=3, lr=0.05, out=tmp_path / "run")
    message = str(caught.value)
    assert "\n" not in message
    for word in (term, "task 1", "epoch 1", "0.05"):
        assert word in message, message
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", message)
    assert [task["task"] for task in record["tasks"]] == [0]


def test_a_learning_rate_that_is_too_large_is_what_the_message_says(run):
    with pytest.raises(RunError, match=r"classification.*learning rate 1e\+30.*smaller learning rate"):
        run(lr=1e30, epochs=3)


# A run is a function of its config

DROPOUT = {"model": "mlp:16[dropout=0.5,batch_norm=true]", "epochs": 2, "augment": "crop-flip"}


@pytest.mark.parametrize("strategy", ["er", "icarl", "lwf"])
@pytest.mark.parametrize("how", [{"eval_every": "epoch"}, {"eval_every": 1}, {"eval_every": 2}], ids=str)
def test_evaluation_never_changes_training(strategy, how, run, tmp_path):
    """Dropout, batch norm, augmentation and replay in training; an evaluation after each epoch or step, or none."""
    plain = run(strategy, out=tmp_path / "plain", **DROPOUT)
    often = run(strategy, out=tmp_path / "often", **DROPOUT, **how)
    assert often.record["evaluations"]
    assert not plain.record["evaluations"]
    assert accuracy_of(plain) == accuracy_of(often)
    models = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("plain", "often")]
    assert same(*models)
    losses = [[r["losses"] for r in result.record["training"]] for result in (plain, often)]
    assert losses[0] == losses[1]


def test_which_tasks_are_evaluated_never_changes_training(run, tmp_path):
    for evaluate in ("seen", "all"):
        run("er", out=tmp_path / evaluate, evaluate=evaluate, head="full", **DROPOUT)
    assert same(*(torch.load(tmp_path / e / "model.pt", weights_only=True) for e in ("seen", "all")))


def test_a_strategy_that_draws_at_test_time_does_not_change_training(run):
    """Dropout is seeded at each step, so what anything else draws from torch's global stream does not matter."""

    class Quiet(Strategy):
        traits = Traits(family="reference")

    class Noisy(Quiet):
        def scores(self, images: Tensor, task: int | None = None) -> Tensor:
            torch.rand(7)
            return super().scores(images)

        def end_task(self, task: Any) -> None:
            torch.rand(7)

    assert accuracy_of(run(Quiet, **DROPOUT)) == accuracy_of(run(Noisy, eval_every=1, **DROPOUT))


@pytest.mark.parametrize("strategy", ["naive", "joint", "feature-extraction", "lwf", "ewc[strength=1]", "er", "icarl"])
def test_two_runs_of_one_config_are_byte_identical(strategy, run, tmp_path):
    """Draws from the global streams of torch, numpy and Python in between change nothing."""
    run(strategy, out=tmp_path / "one", **DROPOUT)
    torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(123)
    run(strategy, out=tmp_path / "two", **DROPOUT)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    for key in ("accuracy", "classifiers", "correct", "metrics", "identity"):
        assert json.dumps(records[0][key]) == json.dumps(records[1][key])
    csv = [(tmp_path / name / "accuracy.csv").read_bytes() for name in ("one", "two")]
    assert csv[0] == csv[1]
    assert same(*(torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("one", "two")))


def test_a_run_leaves_the_streams_and_settings_of_the_process_alone(run, cut):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = (np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads())
    run("er", cut(tasks=1), threads=2, iterations=2)
    assert torch.equal(torch.rand(3), expected)
    assert (np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads()) == before


def test_seeds_change_the_results(run):
    """Initialisation, shuffling and memory: three seeds, three runs; and the untrained models differ."""
    results = [run("er", seed=seed) for seed in range(3)]
    assert len({accuracy_of(result) for result in results}) == 3
    assert len({tuple(result.record["training"][0]["losses"].items()) for result in results}) == 3


def test_strategies_start_from_the_same_weights_and_see_the_same_order(run):
    """Streams are functions of (seed, name, task, epoch): what a strategy draws moves no other stream."""
    started: dict[str, tuple[dict[str, Tensor], list[list[int]]]] = {}

    class Plain(Strategy):
        traits = Traits(family="reference")

        def stages(self, task: Any) -> list[Stage]:
            if task.index == 0:
                self.first, self.order = weights(self.model), []
            return super().stages(task)

        def loss(self, batch: Any) -> Any:
            self.order.append(batch.ids.tolist())
            return super().loss(batch)

        def end_task(self, task: Any) -> None:
            started[type(self).__name__] = (self.first, self.order)

    class Drawing(Plain):
        def loss(self, batch: Any) -> Any:
            torch.rand(5, generator=self.rng("mine"))
            return super().loss(batch)

    for kind in (Plain, Drawing):
        run(kind)
    assert same(started["Plain"][0], started["Drawing"][0])
    assert started["Plain"][1] == started["Drawing"][1]
    assert len(started["Plain"][1]) == 15


def test_a_stream_is_a_function_of_its_name_and_the_step(run):
    drawn: dict[tuple[Any, ...], float] = {}

    class Draws(Strategy):
        traits = Traits(family="reference")

        def loss(self, batch: Any) -> Any:
            for name in ("a", "b"):
                values = [float(torch.rand((), generator=self.rng(name))) for _ in range(2)]
                assert values[0] == values[1]
                drawn[(name, self.progress.task, self.progress.step)] = values[0]
            return super().loss(batch)

    run(Draws)
    assert len(set(drawn.values())) == len(drawn) == 2 * 15


def test_results_do_not_depend_on_the_number_of_jobs(tmp_path):
    """The same comparison in this process and in two workers, byte for byte."""
    files: list[dict[str, bytes]] = []
    for jobs in (1, 2):
        out = tmp_path / f"jobs-{jobs}"
        results = clbench.compare(
            "split-mnist-5k",
            ["naive", "er[memory_size=20]"],
            seeds=2,
            out=out,
            jobs=jobs,
            references=False,
            limit=10,
            model="mlp:16[dropout=0.5]",
            epochs=1,
        )
        assert [(r.strategy, r.seed) for r in results] == [
            *(("naive", seed) for seed in range(2)),
            *(("er[memory_size=20]", seed) for seed in range(2)),
        ]
        files.append({str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("accuracy.csv"))})
    assert len(files[0]) == 4
    assert files[0] == files[1]


def test_references_are_in_every_comparison_unless_declined(tiny, tmp_path):
    options: dict[str, Any] = {"seeds": 1, "epochs": 1, "model": "mlp:8"}
    named = [r.strategy for r in clbench.compare(tiny, ["lwf"], out=tmp_path / "a", **options)]
    assert named == ["lwf", "naive", "joint"]
    alone = [r.strategy for r in clbench.compare(tiny, ["lwf"], out=tmp_path / "a", references=False, **options)]
    assert alone == ["lwf"]


def test_a_finished_run_of_a_comparison_is_not_repeated(tiny, tmp_path):
    options: dict[str, Any] = {"out": tmp_path, "references": False, "epochs": 1, "model": "mlp:8"}
    clbench.compare(tiny, ["naive"], seeds=1, **options)
    (file,) = Path(tmp_path).rglob("run.json")
    before = file.stat().st_mtime_ns
    both = clbench.compare(tiny, ["naive", "lwf"], seeds=1, **options)
    assert [r.strategy for r in both] == ["naive", "lwf"]
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "hook"), [("after_backwards", "after_backward"), ("end_tasks", "end_task"), ("penality", "penalty")]
)
def test_a_misspelt_hook_is_named(name, hook):
    with pytest.warns(UserWarning, match=f"Mine.{name} is no hook; did you mean {hook}\\?"):
        type("Mine", (Strategy,), {name: lambda self: None})


def test_other_methods_of_a_strategy_are_its_own_business(recwarn):
    type("Mine", (Strategy,), {"loss_of_teacher": lambda self: None, "_loss": lambda self: 0})
    assert len(recwarn) == 0
