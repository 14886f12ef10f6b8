"""naive, joint, feature-extraction, lwf, ewc, er, icarl: what each promises, on a few real digits."""

import copy
import dataclasses
import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clbench
from clbench import Stage, Strategy, Traits
from clbench.config.run import fields
from clbench.models import build_model
from clbench.strategies.ewc import EWC
from clbench.strategies.feature_extraction import FeatureExtraction
from clbench.strategies.icarl import ICaRL
from clbench.strategies.joint import Joint
from clbench.strategies.lwf import LwF

SEVEN = ["naive", "joint", "feature-extraction", "lwf", "ewc", "er", "icarl"]
SIZES = {"5x2": [2] * 5, "4/3/3": [4, 3, 3], "10x1": [1] * 10, "1x10": [10]}
SHUFFLED = [7, 3, 9, 0, 5, 1, 8, 2, 6, 4]
# Batch norm, dropout, momentum and weight decay: what moves weights behind a strategy's back.
HARSH = {"model": "mlp:16-16[batch_norm=true,dropout=0.3]", "momentum": 0.9, "weight_decay": 0.01, "lr": 0.05}


def model_of(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "model.pt", weights_only=True)
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(module.state_dict()))


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def quotas(size: int, n_classes: int) -> list[int]:
    """Total K over C classes: K // C each, and one more for the first K % C."""
    return [size // n_classes + (index < size % n_classes) for index in range(n_classes)]


# Every strategy in every setting, with any sizes of tasks


def refusal(strategy: str, setting: str, sizes: list[int]) -> list[str] | None:
    """The design: task and domain refuse a task of one class, domain unequal sizes; iCaRL has no domain form."""
    if strategy == "icarl" and setting == "domain":
        return ["icarl", "domain"]
    if setting != "class" and 1 in sizes:
        return ["one class", setting]
    if setting == "domain" and len(set(sizes)) > 1:
        return ["4,3,3", "domain"]
    return None


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("setting", ["class", "task", "domain"])
@pytest.mark.parametrize("strategy", SEVEN)
def test_each_strategy_completes_or_is_refused_up_front(strategy, setting, sizes, run, refused, tmp_path):
    """Runs by name, as from the command line: 10 images a class, 1 epoch. Complete means: a number where one is due."""
    options = {"setting": setting, "task_sizes": SIZES[sizes], "limit": 10, "out": tmp_path / "run"}
    words = refusal(strategy, setting, SIZES[sizes])
    if words:
        with refused(*words):
            run(strategy, "split-mnist-5k", **options)
        assert not (tmp_path / "run").exists()
        return
    result = run(strategy, "split-mnist-5k", optimizer="adam", lr=0.005, **options)
    assert result.status == "done"
    own = [text for text in result.warnings if not text.startswith("The task of each test image is given")]
    assert own == [text for text in own if strategy == "ewc" and setting == "class"]
    assert (own != result.warnings) == (setting == "task")
    for matrices in result.classifiers.values():
        n = len(SIZES[sizes])
        for matrix in (matrices.class_incremental, matrices.task_aware):
            assert matrix.shape == (n, n)
            assert not np.isnan(matrix[np.tril_indices(n)]).any()
    for record in result.record["training"]:
        assert all(np.isfinite(value) for value in record["losses"].values())
    if sizes == "1x10" or strategy == "joint":
        assert result.metrics["average_accuracy"] > 0.25


@pytest.mark.parametrize("strategy", SEVEN)
def test_a_full_head_takes_part_in_the_loss_as_a_whole_if_asked_for(strategy, run):
    """With loss_outputs=all, outputs of tasks to come are pushed down from the first step, so the run differs."""
    options = {"head": "full", "optimizer": "adam", "lr": 0.005}
    seen, everything = (run(strategy, loss_outputs=which, **options) for which in ("seen", "all"))
    assert everything.status == "done"
    losses = [result.record["training"][0]["losses"] for result in (seen, everything)]
    name = next(iter(losses[0]))
    if not name.startswith("bce"):  # a mean over outputs may go either way
        # Softmax over 10 untrained outputs in place of 2: about log 10 in place of log 2 in the first steps.
        assert losses[1][name] > losses[0][name]
    assert losses[0] != losses[1]


# Neutral at zero

ZERO = [
    ("lwf[strength=0]", {}),
    ("ewc[strength=0]", {}),
    ("er[share=0]", {"memory_size": 20}),
    ("er", {"memory_size": 0}),
    ("naive", {"memory_size": 0}),
    ("lwf[strength=0]", {"memory_per_class": 0}),
    ("icarl[distillation=false,loss_form=softmax]", {"memory_size": 0}),
]


@pytest.mark.parametrize("model", ["mlp:32", HARSH["model"]])
@pytest.mark.parametrize(("strategy", "options"), ZERO, ids=str)
def test_neutral_at_zero_bit_for_bit(strategy, options, model, run, tmp_path):
    common = HARSH | {"model": model, "epochs": 2}
    run("naive", out=tmp_path / "naive", **common)
    run(strategy, out=tmp_path / "zero", **common, **options)
    csv = [(tmp_path / name / "accuracy.csv").read_bytes() for name in ("naive", "zero")]
    assert csv[0] == csv[1]
    assert same(model_of(tmp_path / "naive"), model_of(tmp_path / "zero"))


@pytest.mark.parametrize("memory", [{"memory_size": 20}, {"memory_per_class": 3}], ids=str)
@pytest.mark.parametrize("strategy", ["lwf[strength=0]", "ewc[strength=0]"])
def test_neutral_at_zero_with_a_memory_too(strategy, memory, run, tmp_path):
    """Exemplars and methods are orthogonal: with a memory, the neutral run is naive with that memory."""
    run("naive", out=tmp_path / "naive", **HARSH, **memory)
    run(strategy, out=tmp_path / "zero", **HARSH, **memory)
    assert same(model_of(tmp_path / "naive"), model_of(tmp_path / "zero"))


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("lwf[strength=10]", {}),
        ("ewc[strength=5]", {}),
        ("er[share=0.5]", {"memory_size": 20}),
        ("naive", {"memory_size": 20}),
        ("icarl[distillation=true,loss_form=softmax]", {"memory_size": 0}),
    ],
    ids=str,
)
def test_above_zero_the_run_differs(strategy, options, run, tmp_path):
    """In the first task there is nothing to keep, except that ER replays within it."""
    naive = run("naive", out=tmp_path / "naive", epochs=2)
    other = run(strategy, out=tmp_path / "other", epochs=2, **options)
    assert not same(model_of(tmp_path / "naive"), model_of(tmp_path / "other"))
    if not strategy.startswith("er"):
        assert other.record["training"][:2] != []
        first = [[r["losses"] for r in result.record["training"][:2]] for result in (naive, other)]
        assert first[0] == first[1]


def test_what_ewc_and_lwf_protect_moves_less_the_stronger_they_are(run):
    """After task 1: sum F (w - w*)^2 for EWC, and the divergence from the old model's outputs for LwF."""

    class WatchEWC(EWC):
        def end_task(self, task: Any) -> None:
            if task.index == 1:
                now = dict(self.model.named_parameters())
                rows = {n: now[n].detach()[: len(f)] - self.anchor[n] for n, f in self.importance.items()}
                drifts.append(sum(float((f * rows[n] ** 2).sum()) for n, f in self.importance.items()))
            super().end_task(task)

    class WatchLwF(LwF):
        def end_task(self, task: Any) -> None:
            if task.index == 1:
                (batch,) = self.passes(task.train)
                old, new = (m.eval()(batch.images)[:, :2].detach() for m in (self.teacher, self.model))
                drifts.append(float(F.kl_div(new.log_softmax(1), old.softmax(1), reduction="batchmean")))
            super().end_task(task)

    # Two digits are told apart almost surely after one task, so their Fisher information is about 1e-8.
    for kind, strengths in ((WatchEWC, [0.0, 1e7, 1e9]), (WatchLwF, [0.0, 0.5, 2.0])):
        drifts: list[float] = []
        for strength in strengths:
            run(kind, optimizer="adam", lr=0.005, strategy_options={"strength": strength}, epochs=3)
        assert drifts[0] > 1.2 * drifts[1] > 1.2 * 1.2 * drifts[2]


# Batch norm, and a last batch of one


@pytest.mark.parametrize("model", ["mlp:16[batch_norm=true]", "conv:4-4"])
@pytest.mark.parametrize("strategy", SEVEN)
def test_batch_norm_with_a_last_batch_of_one(strategy, model, run, cut):
    """18 images a task in batches of 17; with a memory of 17, 35 = 2 * 17 + 1. BatchNorm1d and BatchNorm2d."""
    memory = {"memory_size": 17} if strategy in ("er", "icarl") else {}
    options = {"strategy_options": {"strength": 1.0}} if strategy == "ewc" else {}
    result = run(strategy, cut(limit=9), model=model, batch_size=17, lr=0.01, **memory, **options)
    assert result.status == "done"
    assert len(result.record["tasks"]) == 5
    first = result.record["training"][0]
    assert (first["steps"], first["images"]) == (1, 18)
    if strategy == "icarl":
        assert [(r["steps"], r["images"]) for r in result.record["training"][1:]] == [(2, 35)] * 4


# LwF


@pytest.mark.parametrize("setting", ["class", "task"])
@pytest.mark.parametrize("sizes", [[1, 4, 2, 3], [4, 3, 3], [2, 6, 2]], ids=str)
def test_lwf_compares_only_the_outputs_of_the_teacher(sizes, setting, run, cut):
    """A growing head and any sizes; the term is sum over old outputs of p log(p / q), computed here by hand. With the
    task known there is one softmax for each old task, as in the paper."""
    if setting == "task" and 1 in sizes:
        sizes = [2, 4, 2, 2]
    widths: list[tuple[int, int]] = []

    class Watch(LwF):
        def loss(self, batch: Any) -> Any:
            terms = super().loss(batch)
            if self.teacher is None:
                return terms
            student = self.model(batch.images).detach()
            teacher = self.teacher(batch.images)
            widths.append((student.shape[1], teacher.shape[1]))
            ends = list(itertools.accumulate(sizes[: self.progress.task], initial=0))
            groups = list(itertools.pairwise(ends)) if setting == "task" else [(0, ends[-1])]
            by_hand = 0.0
            for a, b in groups:
                p, q = (torch.exp(z[:, a:b] / 2) for z in (teacher, student))
                p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
                by_hand += float((p * (p / q).log()).sum(1).mean())
            assert float(terms["distillation"].detach()) == pytest.approx(1.5 * by_hand, rel=1e-3, abs=1e-6)
            return terms

    run(Watch, cut(task_sizes=sizes, setting=setting), strategy_options={"strength": 1.5})
    ends = list(itertools.accumulate(sizes))
    assert set(widths) == set(zip(ends[1:], ends[:-1], strict=True))


def test_the_teacher_does_not_change(run):
    """Eval mode, no gradient, and no bit of its batch-norm statistics moves while the student trains."""
    kept: dict[int, dict[str, Tensor]] = {}

    class Watch(LwF):
        def begin_task(self, task: Any) -> None:
            super().begin_task(task)
            if self.teacher is not None:
                assert same(snapshot(self.teacher), snapshot(self.model))
                kept[task.index] = snapshot(self.teacher)

        def end_task(self, task: Any) -> None:
            if self.teacher is not None:
                assert same(kept[task.index], snapshot(self.teacher))
                assert not self.teacher.training
                assert all(p.grad is None for p in self.teacher.parameters())
            super().end_task(task)

    run(Watch, **HARSH)
    assert set(kept) == {1, 2, 3, 4}


def test_temperature_and_its_square_are_options_and_saved(run, tmp_path):
    """Both are in run.json's config, and each changes the result."""
    hot, squared = {"temperature": 4.0}, {"squared_temperature": True}
    configs: list[dict[str, Any]] = [{}, hot, squared, hot | squared]
    losses = []
    for index, options in enumerate(configs):
        run("lwf", out=tmp_path / str(index), strategy_options=options)
        record = json.loads((tmp_path / str(index) / "run.json").read_text())
        saved = record["config"]["strategy_options"]
        assert {k: saved[k] for k in ("temperature", "squared_temperature")} == {
            "temperature": 2.0,
            "squared_temperature": False,
        } | options
        losses.append(tuple(r["losses"]["distillation"] for r in record["training"][1:]))
    assert len(set(losses)) == 4


@pytest.mark.parametrize("strategy", ["naive", "lwf"])
def test_the_loss_is_over_new_or_all_seen_outputs(strategy, run):
    """An option with a documented default; over the new ones the first loss of a task starts near log 2."""
    field = fields()["loss_outputs"]
    assert field.default == "seen"
    assert field.description
    seen, new = run(strategy, iterations=1), run(strategy, iterations=1, loss_outputs="new")
    assert seen.config["loss_outputs"] == "seen"
    assert new.config["loss_outputs"] == "new"
    first = [[r["losses"]["classification"] for r in result.record["training"]] for result in (seen, new)]
    assert first[0][0] == first[1][0]  # in the first task the seen outputs are the new ones
    assert all(a > b for a, b in zip(first[0][1:], first[1][1:], strict=True))


def test_only_the_new_rows_train_in_the_warm_up(run):
    """Momentum, weight decay, batch norm and dropout notwithstanding; the stage after it trains everything."""
    kept: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]] = []

    class Watch(LwF):
        def stages(self, task: Any) -> list[Stage]:
            stages = super().stages(task)
            before = snapshot(self.model)
            if task.index:
                assert [stage.name for stage in stages] == ["warm-up", "train"]
            note = lambda: kept.append((task.index, before, snapshot(self.model)))  # noqa: E731
            return [*stages[:-1], dataclasses.replace(stages[-1], before=note)]

    result = run(Watch, strategy_options={"warmup_epochs": 2}, **HARSH)
    for task, before, after in kept[1:]:
        assert moved(before, after) == {"head.weight", "head.bias"}
        for name in ("head.weight", "head.bias"):
            assert torch.equal(before[name][: 2 * task], after[name][: 2 * task])
            assert not torch.equal(before[name][2 * task :], after[name][2 * task :])
    stages = [(r["task"], r["stage"], list(r["losses"])) for r in result.record["training"]]
    assert stages[:4] == [
        (0, "train", ["classification"]),
        (1, "warm-up", ["classification"]),
        (1, "warm-up", ["classification"]),
        (1, "train", ["classification", "distillation"]),
    ]


@pytest.mark.parametrize("memory", [{}, {"memory_size": 12}], ids=str)
def test_recorded_answers_equal_the_live_teacher(memory, run, tmp_path):
    """Without augmentation the images are the same, so training is, up to rounding in batches of other sizes."""
    for recorded in (False, True):
        options = {"recorded": recorded, "strength": 2.0}
        run("lwf", out=tmp_path / str(recorded), strategy_options=options, **HARSH, **memory)
    live, recorded_ = model_of(tmp_path / "False"), model_of(tmp_path / "True")
    assert all(torch.allclose(live[name].float(), recorded_[name].float(), atol=1e-4) for name in live)


# EWC


def test_the_labels_and_samples_of_the_fisher_are_options_and_saved(run, tmp_path):
    """The default is the true labels of all samples; the three kinds of labels give three importances."""
    options: list[dict[str, Any]] = [
        {},
        {"fisher_labels": "sampled"},
        {"fisher_labels": "exact"},
        {"fisher_samples": 5},
    ]
    penalties = []
    for index, chosen in enumerate(options):
        run("ewc", out=tmp_path / str(index), strategy_options={"strength": 1.0} | chosen)
        record = json.loads((tmp_path / str(index) / "run.json").read_text())
        saved = record["config"]["strategy_options"]
        assert {k: saved[k] for k in ("fisher_labels", "fisher_samples")} == {
            "fisher_labels": "empirical",
            "fisher_samples": None,
        } | chosen
        penalties.append(tuple(r["losses"].get("penalty") for r in record["training"]))
    assert len(set(penalties)) == 4


def test_the_fisher_is_the_mean_of_squared_gradients_one_image_at_a_time(run):
    """Of log p(true label | image) over the outputs seen so far, in eval mode, with dropout and batch norm."""
    checked: list[int] = []

    class Watch(EWC):
        def end_task(self, task: Any) -> None:
            before = snapshot(self.model)
            super().end_task(task)
            assert same(before, snapshot(self.model))
            if task.index > 0:
                return
            self.model.eval()
            expected = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
            (batch,) = self.passes(task.train)
            for image, label in zip(batch.images, batch.labels, strict=True):
                self.model.zero_grad()
                self.model(image[None]).log_softmax(1)[0, label].backward()
                for name, parameter in self.model.named_parameters():
                    expected[name] += parameter.grad**2 / len(task.train)
            self.model.zero_grad(set_to_none=True)
            for name, value in expected.items():
                assert torch.allclose(self.importance[name], value, rtol=1e-3, atol=1e-7)
            checked.append(len(expected))

    run(Watch, strategy_options={"strength": 1.0}, **HARSH)
    assert checked == [10]


class Given(EWC):
    """EWC whose Fisher information the test chooses."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.fishers: list[dict[str, Tensor]] = []

    def _fisher(self, task: Any) -> dict[str, Tensor]:
        return self.fishers[task.index]


def test_ewcs_merged_penalty_is_the_sum_of_the_separate_ones_with_its_constant():
    """strength / 2 * sum_k sum_i F_k (w - w_k)^2 of four tasks with a growing head, from copies of every F_k and w_k.
    Some F are zero, and what a task did not have yet has F = 0."""
    generator = torch.Generator().manual_seed(0)
    model = build_model("mlp:3", (1, 2, 2), seed=0)
    ewc = Given(strength=7.0)
    ewc.model = model
    ewc.begin_run()
    copies: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def by_hand() -> float:
        total = 0.0
        for fisher, anchor in copies:
            for name, value in model.named_parameters():
                for index in np.ndindex(*fisher[name].shape):
                    total += float(fisher[name][index] * (value[index].detach() - anchor[name][index]) ** 2)
        return 7.0 / 2 * total

    for k in range(4):
        model.head.grow(2 * (k + 1), generator)
        if k:
            assert ewc.penalty().item() == pytest.approx(by_hand(), rel=1e-4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        fisher = {n: torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}
        fisher = {n: f * (torch.rand(f.shape, generator=generator) > 0.3) for n, f in fisher.items()}
        ewc.fishers.append(fisher)
        copies.append((fisher, {n: p.detach().clone() for n, p in model.named_parameters()}))
        ewc.end_task(SimpleNamespace(index=k))
        # At the newest weights its own term is zero: the rest is the constant and the older terms.
        assert ewc.penalty().item() == pytest.approx(by_hand(), rel=1e-4, abs=1e-6)
    # The gradient too: strength * sum_k F_k (w - w_k).
    ewc.penalty().backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter)
        for fisher, anchor in copies:
            rows = len(fisher[name])
            expected[:rows] += 7.0 * fisher[name] * (parameter.detach()[:rows] - anchor[name])
        assert torch.allclose(parameter.grad, expected, rtol=1e-3, atol=1e-4)


def test_the_fisher_of_online_ewc_decays_by_hand():
    """F: 2, then 0.5 * 2 + 3 = 4, then 0.5 * 4 + 1 = 3; a row that came with the second task: 3, then 2.5. The anchor
    is the latest weights w, so 1 away from them the penalty is 10 / 2 * the sum of F."""
    model = build_model("mlp:1", (1, 1, 1), seed=0)
    ewc = Given(strength=10.0, mode="online", decay=0.5)
    ewc.model = model
    ewc.begin_run()
    sizes = [1, 2, 2]
    expected = [[2.0], [4.0, 3.0], [3.0, 2.5]]
    for k, value in enumerate([2.0, 3.0, 1.0]):
        model.head.grow(sizes[k], torch.Generator().manual_seed(k))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(k)
        ewc.fishers.append({n: torch.full_like(p, value) for n, p in model.named_parameters()})
        ewc.end_task(SimpleNamespace(index=k))
        assert ewc.importance["head.bias"].tolist() == expected[k]
        assert ewc.penalty().item() == 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    # Two parameters before the head with F = 3, and a weight and a bias for each of the two outputs.
    assert ewc.penalty().item() == pytest.approx(10 / 2 * (2 * 3.0 + 2 * (3.0 + 2.5)))


def test_separate_and_online_are_the_same_for_two_tasks(run, tmp_path):
    """Until a third task there is one importance, so decay and mode make no difference."""
    runs = {}
    for mode in ("separate", "online"):
        result = run("ewc", strategy_options={"strength": 2.0, "mode": mode, "decay": 0.5})
        runs[mode] = result.accuracy
    assert np.array_equal(runs["separate"][:2], runs["online"][:2], equal_nan=True)


@pytest.mark.parametrize(("setting", "expected"), [("class", True), ("task", False), ("domain", False)])
def test_a_note_says_not_to_expect_much_of_regularisation_in_class_incremental(setting, expected, run, cut):
    result = run("ewc", cut(setting=setting), strategy_options={"strength": 1.0})
    assert any("ewc" in text and "class-incremental" in text for text in result.warnings) == expected
    naive = run("naive", cut(setting=setting))
    assert not any("class-incremental scenarios" in text for text in naive.warnings)


# ER


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_the_share_of_the_memory_in_a_step_is_what_was_asked_for(share, run):
    """At every task: the images drawn from the memory, next to the share of all images of each step; within a sample a
    step. In the very first step there is no memory yet."""
    result = run("er", strategy_options={"share": share}, memory_size=15, batch_size=8)
    for record in result.record["training"]:
        # Batches of 8, 8 and 4.
        batches = [8, 8, 4] if record["task"] else [8, 4]
        expected = sum(n * share / (1 - share) for n in batches)
        assert record["images"] == 20
        assert abs(record["replayed"] - expected) <= len(batches)
    for record in result.record["training"][1:]:
        total = record["replayed"] + record["images"]
        assert abs(record["replayed"] - share * total) <= 3
    assert result.config["strategy_options"]["share"] == share


def test_the_share_is_per_step_and_weighs_in_proportion(run):
    """Of a step of 8 with share 0.75: 24 replayed; the loss is the mean over all 32, whatever task they are of."""
    checked: list[int] = []
    cls = clbench.running.resolve.strategy_class("er")

    class Watch(cls):
        def replay(self, n: int, *name: str) -> Any:
            self.drawn = super().replay(n, *name)
            return self.drawn

        def loss(self, batch: Any) -> Any:
            terms = super().loss(batch)
            if self.drawn is not None:
                assert len(self.drawn) == round(len(batch) * 3)
                logits = self.model(torch.cat([batch.images, self.drawn.images]))[:, : 2 * self.progress.task + 2]
                labels = torch.cat([batch.labels, self.drawn.labels])
                expected = F.cross_entropy(logits, labels).item()
                assert sum(terms.values()).item() == pytest.approx(expected, rel=1e-4)
                checked.append(len(labels))
            return terms

    run(Watch, strategy_options={"share": 0.75}, memory_size=15)
    assert checked == [32, 16] + [32, 32, 16] * 4


@pytest.mark.parametrize("policy", ["reservoir", "balanced", "herding", "random"])
def test_er_stays_within_its_budget_under_each_policy(policy, run):
    result = run("er", memory_size=13, memory_policy=policy)
    for index, task in enumerate(result.record["tasks"]):
        assert task["n_exemplars"] == 13 == sum(task["exemplars_per_class"].values())
        if policy != "reservoir":
            assert list(task["exemplars_per_class"].values()) == quotas(13, 2 * (index + 1))


# iCaRL, and memories


def test_both_classifiers_are_reported_by_name_and_the_headline_is_stated(run, tmp_path):
    results = {
        headline: run("icarl", memory_size=30, out=tmp_path / headline, strategy_options={"classifier": headline})
        for headline in ("nearest_mean", "linear")
    }
    for headline, result in results.items():
        assert set(result.classifiers) == {"nearest_mean", "linear"}
        assert result.recorded.headline.classifier == headline
        record = json.loads((tmp_path / headline / "run.json").read_text())
        assert record["headline"] == {"matrix": "class_incremental", "classifier": headline}
        rows = (tmp_path / headline / "accuracy.csv").read_text().splitlines()[1:]
        assert {row.split(",")[1] for row in rows} == {"nearest_mean", "linear"}
        assert np.array_equal(result.accuracy, result.classifiers[headline].class_incremental, equal_nan=True)
    for name in ("nearest_mean", "linear"):  # which is the headline changes nothing else
        matrices = [result.classifiers[name].class_incremental for result in results.values()]
        assert np.array_equal(*matrices, equal_nan=True)
    both = results["linear"].classifiers
    assert not np.array_equal(both["linear"].class_incremental, both["nearest_mean"].class_incremental, equal_nan=True)


def test_the_form_of_the_loss_is_an_option_and_saved(run, tmp_path):
    """The default is the published one; the saved config shows it; each form gives other numbers."""
    forms: list[dict[str, Any]] = [{}, {"loss_form": "softmax"}, {"reduction": "sum"}, {"distillation": False}]
    accuracies = []
    for index, options in enumerate(forms):
        result = run("icarl", memory_size=30, out=tmp_path / str(index), strategy_options=options, epochs=2)
        saved = json.loads((tmp_path / str(index) / "run.json").read_text())["config"]["strategy_options"]
        expected = {"loss_form": "sigmoid", "reduction": "mean", "distillation": True} | options
        assert {name: saved[name] for name in expected} == expected
        accuracies.append(json.dumps([r["losses"] for r in result.record["training"]]))
    assert len(set(accuracies)) == 4


def test_icarls_loss_is_the_mean_of_binary_cross_entropies_over_batch_and_seen_outputs(run):
    """Algorithm 3, term by term: targets of old outputs are the old model's sigmoids, of new ones 0 and 1."""
    checked: list[int] = []

    class Watch(ICaRL):
        def loss(self, batch: Any) -> Any:
            terms = super().loss(batch)
            n, old = 2 * (self.progress.task + 1), 2 * self.progress.task
            g = torch.sigmoid(self.model(batch.images).detach().double())
            q = torch.zeros(len(batch), n, dtype=torch.float64)
            q[torch.arange(len(batch)), batch.labels] = 1
            if old:
                q[:, :old] = torch.sigmoid(self.teacher(batch.images).double())
            by_hand = -(q * g.log() + (1 - q) * (1 - g).log()).mean()
            assert float(terms["bce"].detach()) == pytest.approx(float(by_hand), rel=1e-4)
            checked.append(n)
            return terms

    run(Watch, memory_size=30)
    assert set(checked) == {2, 4, 6, 8, 10}


def test_exemplars_are_ids_of_uint8_originals_and_their_bytes_are_reported(run, tiny):
    """784 bytes a digit at every task, though the memory holds numbers of images and classes alone, on the CPU."""
    found: list[Tensor] = []

    class Watch(ICaRL):
        def end_task(self, task: Any) -> None:
            super().end_task(task)
            found.extend(value for value in vars(self.memory).values() if isinstance(value, Tensor))

    result = run(Watch, memory_size=13)
    assert tiny.train.images.dtype == torch.uint8
    for task, entry in zip(result.record["tasks"], result.record["ledger"], strict=True):
        assert entry["items"]["exemplars"] == task["n_exemplars"] == 13
        assert entry["bytes"]["exemplars"] == 13 * 784
    assert found
    assert all(value.dtype == torch.int64 and value.device.type == "cpu" for value in found)
    assert all(value.shape == (13,) for value in found)


@pytest.mark.parametrize("strategy", ["icarl", "er[memory_policy=balanced]", "naive[memory_policy=random]"])
@pytest.mark.parametrize("size", [7, 20, 23])
def test_the_budget_is_shared_out_evenly_and_saved_at_every_task(strategy, size, run, cut):
    """Total K over C classes: K // C each, one more for the first K % C in order of appearance; of 10 images each."""
    spec = strategy.replace("]", f",memory_size={size}]") if "[" in strategy else f"{strategy}[memory_size={size}]"
    result = run(spec, cut(class_order=SHUFFLED, task_sizes=[1, 2, 3, 4]))
    seen = 0
    for task, n in zip(result.record["tasks"], [1, 2, 3, 4], strict=True):
        seen += n
        expected = [min(10, quota) for quota in quotas(size, seen)]
        assert list(task["exemplars_per_class"].values()) == expected
        # The stream that a balanced memory sees is shuffled within a task; others are filled at its end.
        appearance = sorted(SHUFFLED[seen - n : seen]) if "balanced" in strategy else SHUFFLED[seen - n : seen]
        newest = [int(c) for c in task["exemplars_per_class"]][-n:]
        assert (sorted(newest) if "balanced" in strategy else newest) == appearance
        assert task["n_exemplars"] == sum(expected) <= size


@pytest.mark.parametrize("strategy", ["icarl", "lwf", "er[memory_policy=balanced]"])
def test_a_budget_per_class_is_kept_at_every_task(strategy, run):
    result = run(strategy, memory_per_class=3)
    for index, task in enumerate(result.record["tasks"]):
        assert task["exemplars_per_class"] == {str(c): 3 for c in range(2 * index + 2)}
        assert task["n_exemplars"] == 6 * (index + 1)
    assert (result.config["memory_size"], result.config["memory_per_class"]) == (None, 3)


def test_a_memory_smaller_than_the_classes_is_noted_and_works(run):
    """Seven exemplars for ten classes: the last three have none, and are never the nearest mean."""
    result = run("icarl", memory_size=7)
    assert any("7" in text and "10" in text for text in result.warnings)
    assert list(result.record["tasks"][-1]["exemplars_per_class"].values()) == [1] * 7 + [0] * 3
    confusion = np.array(result.record["confusion"])
    assert confusion[:, 7:].sum() == 0
    assert confusion[:, :7].sum() == 200


def test_exemplars_and_means_of_icarl_against_a_slow_computation(run, cut, digits):
    """From the weights after the first task, in numpy: greedy herding image by image, and the nearest of the class
    means over exemplars; features of norm 1, means normalised again."""
    kept: dict[str, Any] = {}
    tested = np.flatnonzero(np.isin(digits.y_test, [7, 3, 9, 0]))

    class Watch(ICaRL):
        def end_task(self, task: Any) -> None:
            super().end_task(task)
            self.model.eval()
            images = self.normalize(torch.from_numpy(digits.x_test[tested]))
            kept["scores"] = self.scores(images)["nearest_mean"].detach()
            kept.update(state=snapshot(self.model), ids=self.memory.ids.tolist(), classes=self.memory.classes.tolist())

    result = run(Watch, cut(class_order=[7, 3, 9, 0], tasks=1), memory_size=11, epochs=3)
    w = {name: value.double().numpy() for name, value in kept["state"].items()}

    def features(images: Any) -> Any:
        x = (images.reshape(len(images), -1) / 255 - digits.mean[0]) / digits.std[0]
        hidden = np.maximum(x @ w["backbone.0.1.weight"].T + w["backbone.0.1.bias"], 0)
        return hidden / np.linalg.norm(hidden, axis=1, keepdims=True)

    means, chosen_all = [], []
    for c, m in zip([7, 3, 9, 0], [3, 3, 3, 2], strict=True):
        ids = np.flatnonzero(digits.y_train == c)[:10]
        rows = features(digits.x_train[ids])
        mean, chosen = rows.mean(0), []
        for _ in range(m):
            rest = [i for i in range(10) if i not in chosen]
            chosen.append(min(rest, key=lambda i: np.linalg.norm(mean - rows[[*chosen, i]].mean(0))))
        chosen_all += ids[chosen].tolist()
        mean_of_chosen = rows[chosen].mean(0)
        means.append(mean_of_chosen / np.linalg.norm(mean_of_chosen))
    assert kept["ids"] == chosen_all
    assert kept["classes"] == [7] * 3 + [3] * 3 + [9] * 3 + [0] * 2
    # Between vectors of norm 1 the largest dot product is the smallest distance.
    expected = features(digits.x_test[tested]) @ np.array(means).T
    np.testing.assert_allclose(kept["scores"], expected, atol=1e-5)
    distances = [[np.linalg.norm(row - mean) for mean in means] for row in features(digits.x_test[tested])]
    right = np.array([7, 3, 9, 0])[np.argmin(distances, axis=1)] == digits.y_test[tested]
    assert result.classifiers["nearest_mean"].class_incremental[0, 0] == pytest.approx(right.mean())


def test_icarl_with_one_class_a_task(run, cut):
    """The first task is never wrong; the budget holds at every task; later tasks are not all forgotten."""
    result = run("icarl", cut(task_sizes=[1] * 10), memory_size=25, epochs=5)
    for matrices in result.classifiers.values():
        assert matrices.class_incremental[0, 0] == 1.0
    assert [task["n_exemplars"] for task in result.record["tasks"]] == [10, 20, *[25] * 8]
    assert (result.accuracy[-1] > 0.2).sum() >= 5


def test_distinct_exemplars_of_each_class_are_logged(run):
    """Herding picks no image twice, so the counts are of distinct images."""
    seen: list[tuple[int, int]] = []

    class Watch(ICaRL):
        def end_task(self, task: Any) -> None:
            super().end_task(task)
            seen.append((len(set(self.memory.ids.tolist())), len(self.memory)))

    run(Watch, memory_size=30)
    assert all(distinct == stored for distinct, stored in seen)
    assert [stored for _, stored in seen] == [20, 30, 30, 30, 30]


@pytest.mark.parametrize("strategy", SEVEN)
def test_every_metric_is_there_with_default_options(strategy, run):
    """All names of the design; a number unless it is undefined or needs another run; never a crash."""
    names = [
        "average_accuracy", "sample_average_accuracy", "average_incremental_accuracy",
        "average_incremental_accuracy_without_first", "forgetting", "backward_transfer", "forward_transfer",
        "learning_accuracy", "intransigence", "min_accuracy", "worst_case_accuracy",
        "average_online_accuracy", "near_future_accuracy", "anytime_accuracy",
    ]  # fmt: skip
    result = run(strategy, optimizer="adam", lr=0.005)
    assert set(result.metrics) == set(names) == set(result.record["metrics_task_aware"])
    # Outputs of tasks to come are not there with a growing head; intransigence needs a joint run.
    undefined = {"forward_transfer", "intransigence"}
    found = {name for name, value in result.metrics.items() if value is not None}
    within = {"min_accuracy", "worst_case_accuracy"}
    asked = {"average_online_accuracy", "near_future_accuracy", "anytime_accuracy"}
    assert set(names) - undefined - within - asked <= found <= set(names) - undefined
    joint = run("joint")
    assert result.summary(joint)["intransigence"] == pytest.approx(joint.accuracy[4, 4] - result.accuracy[4, 4])


# Joint


def test_joint_logs_the_samples_it_trains_on_and_uses_each_once_an_epoch(run, cut):
    trained: list[list[int]] = [[] for _ in range(3)]

    class Watch(Joint):
        def loss(self, batch: Any) -> Any:
            trained[self.progress.task] += batch.ids.tolist()
            return super().loss(batch)

    scenario = cut(task_sizes=[4, 3, 3])
    result = run(Watch, scenario)
    assert [task["n_train"] for task in result.record["tasks"]] == [40, 70, 100]
    seen: set[int] = set()
    for ids, task in zip(trained, scenario.tasks, strict=True):
        seen |= set(task.train.ids.tolist())
        assert sorted(ids) == sorted(seen)


def test_each_step_of_joint_is_a_fresh_training(run, tmp_path):
    """A joint strategy that skips all tasks but the last ends with the same bits: nothing is left of earlier steps."""

    class LastOnly(Joint):
        def stages(self, task: Any) -> list[Stage]:
            return super().stages(task) if task.index == 4 else []

    run(Joint, out=tmp_path / "all", **HARSH)
    run(LastOnly, out=tmp_path / "last", **HARSH)
    assert same(model_of(tmp_path / "all"), model_of(tmp_path / "last"))


def test_the_first_step_of_joint_is_naive(run):
    """The same weights, the same order, the same data: the first rows are equal."""
    rows = [run(strategy, **HARSH).record["accuracy"]["class_incremental"][0] for strategy in ("naive", "joint")]
    assert rows[0] == rows[1]


def test_joint_is_marked_as_a_reference(run):
    result = run("joint")
    assert result.is_reference
    assert result.record["strategy"]["data_access"] == "all"
    assert not run("er").is_reference


# Feature extraction


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("trainable_from", "moving"),
    [("head", []), ("last-1", ["backbone.2"]), ("last-2", ["backbone.1", "backbone.2"])],
)
def test_what_feature_extraction_does_not_train_keeps_its_bits(trainable_from, moving, optimizer, run):
    """Of three blocks with batch norm and dropout, under momentum or Adam and weight decay, with statistics kept:
    rows of old classes and blocks below `trainable_from`, running statistics too, stay as they were after task 0."""
    kept: list[dict[str, Tensor]] = []

    class Watch(FeatureExtraction):
        def end_task(self, task: Any) -> None:
            kept.append(snapshot(self.model))

    momentum = {"momentum": 0.9} if optimizer == "sgd" else {"lr": 0.01}
    run(
        Watch,
        model="mlp:12-12-12[batch_norm=true,dropout=0.3]",
        optimizer=optimizer,
        weight_decay=0.1,
        optimizer_state="keep",
        strategy_options={"trainable_from": trainable_from},
        **momentum,
    )
    for task, (before, after) in enumerate(itertools.pairwise(kept), start=1):
        changed = moved(before, {n: v[: len(before[n])] if v.dim() else v for n, v in after.items()})
        assert {name.rsplit(".", 2)[0] for name in changed} == set(moving)
        for block in moving:
            assert {f"{block}.0.weight", f"{block}.1.running_mean"} <= changed
        assert after["head.weight"].shape[0] == 2 * (task + 1)


def test_the_new_rows_of_feature_extraction_learn(run):
    """A stage of 3 steps moves every new row; the first task is trained in full."""
    kept: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    class Watch(FeatureExtraction):
        def stages(self, task: Any) -> list[Stage]:
            self.first = snapshot(self.model)
            return super().stages(task)

        def end_task(self, task: Any) -> None:
            kept.append((self.first, snapshot(self.model)))

    result = run(Watch, head="full")
    assert moved(*kept[0]) == set(kept[0][0])
    for task, (before, after) in enumerate(kept[1:], start=1):
        rows = (before["head.weight"] != after["head.weight"]).any(1)
        assert rows.tolist() == [2 * task <= row < 2 * task + 2 for row in range(10)]
    assert result.task_aware_accuracy[-1].mean() > 0.6


def test_features_from_given_weights_never_move(run, cut, tmp_path):
    """From the first task on, only the head trains; the file's own head is not used."""
    run("naive", cut(class_order=[6, 7, 8, 9], tasks=1), out=tmp_path / "given", epochs=3)
    given = model_of(tmp_path / "given")
    run("feature-extraction", out=tmp_path / "run", weights=str(tmp_path / "given" / "model.pt"), momentum=0.9)
    final = model_of(tmp_path / "run")
    assert {name for name in given if not name.startswith("head")} == {"backbone.0.1.weight", "backbone.0.1.bias"}
    for name in ("backbone.0.1.weight", "backbone.0.1.bias"):
        assert torch.equal(given[name], final[name])
    assert final["head.weight"].shape == (10, 32)


def test_strategies_are_readable_in_a_checkpoint_without_their_classes(run, tmp_path):
    """The final weights of each are plain tensors under the model's own names."""
    for strategy in SEVEN:
        run(strategy, out=tmp_path / strategy, optimizer="adam", lr=0.005)
        state = torch.load(io.BytesIO((tmp_path / strategy / "model.pt").read_bytes()), weights_only=True)
        assert list(state) == ["backbone.0.1.weight", "backbone.0.1.bias", "head.weight", "head.bias"]


def test_a_naive_strategy_of_ones_own_is_naive(run, tmp_path):
    """A class that overrides nothing, handed over in Python, is the registered one bit for bit."""

    class Mine(Strategy):
        traits = Traits(family="reference")

    run(Mine, out=tmp_path / "mine", **HARSH)
    run("naive", out=tmp_path / "naive", **HARSH)
    assert same(model_of(tmp_path / "mine"), model_of(tmp_path / "naive"))
