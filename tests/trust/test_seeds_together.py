"""Every option of training beside --seeds-together: refused before any training, or equal to the separate runs."""

import collections
import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import clbench
from clbench import ConfigError, RunError
from clbench.config.groups import DataConfig, EngineConfig, EvaluationConfig, MemoryConfig, ModelConfig, TrainingConfig
from clbench.many.compare import plan
from clbench.many.execution import run_planned

FIXED: dict[str, Any] = {"references": False, "seeds": 2, "tasks": 2, "limit": 12, "threads": 1}
FIXED |= {"model": "mlp:12-8", "epochs": 2, "batch_size": 8, "optimizer": "sgd", "lr": 0.05}
HELD = {"validation": 0.25}
# Values of each field of a run and each strategy with the trait: first those that failed, in every run or once it ran.
TABLE: list[tuple[str, dict[str, Any]]] = [
    ("naive", {"optimizer": "adamw", "lr": 0.01}),
    ("lwf[warmup_epochs=1]", {}),
    ("lwf[warmup_epochs=2]", {"momentum": 0.9, "weight_decay": 0.1}),
    ("ewc", {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}),
    ("lwf", {"optimizer": "adamw", "lr": 0.01, "optimizer_state": "keep"}),
    ("naive", {"momentum": 0.9, "nesterov": True, "optimizer_state": "keep"}),
    ("lwf", {"lr_warmup": 1, "schedule": "cosine", "optimizer": "adamw", "lr": 0.01}),
    ("naive", {"train": "last-1", "weight_decay": 0.1}),
    ("naive", {"optimizer": "adam", "lr": 0.01}),
    ("naive", {"optimizer": "adam", "lr": 0.01, "optimizer_state": "keep", "weight_decay": 0.01}),
    ("naive", {"momentum": 0.9}),
    ("naive", {"momentum": 0.9, "nesterov": True}),
    ("naive", {"weight_decay": 0.1, "decay_head": False}),
    ("naive", {"weight_decay": 0.1, "decay_norms": False, "model": "mlp:12[batch_norm=true]"}),
    ("naive", {"weight_decay": 0.1, "decay_head": False, "decay_norms": False, "optimizer": "adamw", "lr": 0.01}),
    ("naive", {"schedule": "cosine"}),
    ("naive", {"schedule": "cosine", "schedule_scope": "run"}),
    ("naive", {"schedule": "step", "step_epochs": 1, "lr_factor": 0.5}),
    ("naive", {"schedule": "multistep", "milestones": [1]}),
    ("naive", {"lr_warmup": 1}),
    ("naive", {"backbone_lr_factor": 0.1}),
    ("naive", {"base_batch_size": 4}),
    ("naive", {"label_smoothing": 0.1}),
    ("naive", {"drop_last": True}),
    ("naive", {"batch_size": 5}),
    ("naive", {"epochs": None, "iterations": 4}),
    ("lwf", {"epochs": None, "iterations": 4, "schedule": "cosine"}),
    ("naive", {"train": "head"}),
    ("naive", {"train": "head", "cache_features": False}),
    ("naive", {"patience": 1, "min_delta": 0.01, "epochs": 6, **HELD}),
    ("naive", HELD),
    ("naive", {"head": "full"}),
    ("naive", {"head": "full", "loss_outputs": "all"}),
    ("lwf", {"loss_outputs": "new"}),
    ("naive", {"head_init": "he"}),
    ("naive", {"head_init": "zeros"}),
    ("naive", {"normalize": "pixel-mean"}),
    ("naive", {"normalize": "none", "augment": "crop"}),
    ("naive", {"augment": "crop-flip"}),
    ("naive", {"evaluate": "seen"}),
    ("naive", {"eval_every": "epoch"}),
    ("naive", {"checkpoint_every": "epoch", "keep_state": False}),
    ("naive", {"deterministic": True}),
    ("naive", {"model": "conv:4-4", "optimizer": "adamw", "lr": 0.01}),
    ("naive", {"per_task": [{"lr": 0.05}, {"lr": 0.01}]}),
    ("lwf", {"per_task": [{"strength": 1.0}, {"strength": 3.0}]}),
    ("lwf[warmup_epochs=1]", {"optimizer": "adamw", "lr": 0.01, "setting": "task"}),
    ("lwf[warmup_epochs=1,recorded=true,softmax=per-task]", {"schedule": "cosine"}),
    ("lwf[squared_temperature=true]", {}),
    ("lwf-mc[reduction=sum]", {"lr": 0.01}),
    ("ewc[mode=online,decay=0.5]", {}),
    ("ewc[fisher_labels=sampled,fisher_samples=5]", {"optimizer": "adam", "lr": 0.01}),
    ("mas", {"momentum": 0.5}),
    ("l2", {"optimizer": "adamw", "lr": 0.01}),
    ("cumulative", {"optimizer": "adamw", "lr": 0.01}),
    ("joint", {"optimizer": "adamw", "lr": 0.01}),
]
FAST = 8
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("naive", {"clip": 1.0}),
    ("naive", {"on_nan": "skip"}),
    ("naive", {"schedule": "plateau", **HELD}),
    ("naive", {"patience": 1, "optimizer_state": "keep", **HELD}),
    ("naive", {"eval_every": 3}),
    ("naive", {"checkpoint_every": "2-steps"}),
    ("naive", {"compile": "default"}),
    ("naive", {"processes": 2}),
    ("naive", {"accumulate": 2}),
    ("naive", {"mixup": 0.2}),
    ("naive[memory_size=10]", {}),
    ("naive[memory_per_class=2]", {}),
    ("naive[memory_per_class=2,memory_policy=random]", {}),
    ("naive", {"model": "mlp:8[dropout=0.5]"}),
    ("naive", {"class_order_seed": "per-seed"}),
    ("naive", {"keep_predictions": True}),
    ("naive", {"online_accuracy": True}),
    ("naive", {"plasticity": True}),
    ("naive", {"near_future": 2}),
    ("naive", {"anytime": 20}),
    ("naive", {"count_flops": True}),
    ("naive", {"budget": "flops=1e9", "epochs": None}),
    ("er", {"memory_size": 10}),
    ("si", {}),
]
# bf16 rounds to three digits, so that a step of the batched model differs from one of the single model by design.
ROUNDED: list[tuple[str, dict[str, Any]]] = [("naive", {"precision": "bf16"}), ("lwf", {"precision": "bf16"})]
# Neither trains, or is read from outside of the fields of a run.
ELSEWHERE = {"data_root", "offline", "memory_limit", "device", "threads", "weights", "reading_threads"}


def test_the_table_has_every_field_of_a_run() -> None:
    groups = (ModelConfig, DataConfig, TrainingConfig, MemoryConfig, EvaluationConfig, EngineConfig)
    fields = {field.alias or name for group in groups for name, field in group.model_fields.items()}
    tried = {key for _, options in (*TABLE, *REFUSED, *ROUNDED) for key in options}
    tried |= {"memory_per_class", "memory_policy"} | {*FIXED}
    # Options that only the schedule "plateau" has are refused with it.
    assert fields - tried - ELSEWHERE == {"lr_patience"}


def both(strategy: Any, folder: Path, **options: Any) -> list[tuple[clbench.Result, clbench.Result]]:
    alone, together = (
        clbench.compare("split-mnist-5k", [strategy], out=folder / name, seeds_together=name == "together", **options)
        for name in ("alone", "together")
    )
    return list(zip(alone, together, strict=True))


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        pytest.param(*row, marks=[pytest.mark.slow] * (i >= FAST), id=f"{row[0]}-{row[1]}")
        for i, row in enumerate(TABLE)
    ],
)
def test_seeds_together_equal_the_separate_runs(strategy: str, options: dict[str, Any], tmp_path: Path) -> None:
    """In float64: the losses to 1e-7, the rates exactly, the final weights to 1e-7, the matrices to the sample."""
    for alone, together in both(strategy, tmp_path, **FIXED | options):
        assert any(warning["rule"] == "seeds-together" for warning in together.record["warnings"])
        epochs = [result.record["training"] for result in (alone, together)]
        assert len(epochs[0]) == len(epochs[1]) > 0
        for one, other in zip(*epochs, strict=True):
            same = ("task", "stage", "epoch", "steps", "images", "lr", "lr_first")
            assert {key: one[key] for key in same} == {key: other[key] for key in same}
            assert other["losses"] == pytest.approx(one["losses"], rel=1e-7, abs=1e-10)
        assert together.accuracy == pytest.approx(alone.accuracy, nan_ok=True)
    for path in (tmp_path / "alone").rglob("model.pt"):
        own = torch.load(path, weights_only=True)
        joint = torch.load(tmp_path / "together" / path.relative_to(tmp_path / "alone"), weights_only=True)
        assert own.keys() == joint.keys()
        for name, value in own.items():
            assert torch.allclose(value, joint[name], rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize(("strategy", "options"), ROUNDED)
def test_seeds_together_in_bf16_differ_by_rounding_alone(
    strategy: str, options: dict[str, Any], tmp_path: Path
) -> None:
    for alone, together in both(strategy, tmp_path, **FIXED | options):
        losses = [[sum(epoch["losses"].values()) for epoch in r.record["training"]] for r in (alone, together)]
        assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize(("strategy", "options"), REFUSED, ids=[f"{s}-{o}" for s, o in REFUSED])
def test_what_needs_runs_one_by_one_is_refused_before_training(
    strategy: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="seeds-together"):
        clbench.compare("split-mnist-5k", [strategy], out=tmp_path, seeds_together=True, **FIXED | options)
    assert not list(tmp_path.rglob("run.json"))


class Watches(clbench.Strategy):
    """Declares that seeds can be trained together, and reads gradients, which one batched model has no moment for."""

    traits = clbench.Traits(family="regularisation", seeds_together=True)

    def after_backward(self, batch: Any) -> None:
        self.norm = sum(float(p.grad.norm()) for p in self.model.parameters() if p.grad is not None)


def test_a_strategy_with_a_hook_within_the_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Watches trains its seeds one by one"):
        clbench.compare("split-mnist-5k", [Watches], out=tmp_path, seeds_together=True, **FIXED)


class BySeed(clbench.Strategy):
    """A whole number on self decides the loss, and each seed has another one."""

    traits = clbench.Traits(family="regularisation", seeds_together=True)

    def begin_run(self) -> None:
        self.factor = 4 * self.config.seed + 1

    def loss(self, batch: Any) -> Any:
        return {"loss": self.factor * super().loss(batch)["classification"]}


def test_a_whole_number_that_each_seed_has_for_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"self\.factor is 1 for one seed and 5 for another; a float or a tensor"):
        both(BySeed, tmp_path, **FIXED)


class Keeps(clbench.Strategy):
    """Keeps something after each task, drawn from its seed, by which the loss of the next one is weighted."""

    traits = clbench.Traits(family="regularisation", seeds_together=True)

    def begin_run(self) -> None:
        self.kept: Any = None

    def end_task(self, task: Any) -> None:
        self.kept = self.keep(self.model.head.weight.detach().clone(), task)

    def loss(self, batch: Any) -> Any:
        loss = self.classification_loss(self.model(batch.images), batch)
        return loss if self.kept is None else loss * (1 + self.read(self.kept, batch))


class Holds:
    def __init__(self, weight: Any) -> None:
        self.weight = weight


def frozen(strategy: Any) -> Any:
    return copy.deepcopy(strategy.model).requires_grad_(False).eval()


def answer(teacher: Any, batch: Any) -> Any:
    return teacher(batch.images).square().mean()


def noted(strategy: Any, weight: Any) -> Any:
    strategy.model.temperature = float(weight.norm())


def noted_deep(strategy: Any, weight: Any) -> Any:
    strategy.model.backbone[1].mask = weight


# Values kept of a task, and how the loss of the next one reads them, as each seed trained alone has it.
TOGETHER: dict[str, tuple[Any, Any]] = {
    "a list of copies": (lambda s, w, t: [frozen(s)], lambda k, b: answer(k[0], b)),
    "a whole number beside a tensor": (lambda s, w, t: {"w": w, "task": t.index}, lambda k, b: k["w"].norm()),
    "a tuple": (lambda s, w, t: (t.index, w), lambda k, b: k[1].norm() + k[0]),
    "a copy twice": (lambda s, w, t: (c := frozen(s), [c]), lambda k, b: answer(k[0], b) + answer(k[1][0], b)),
    "keys that are written alike": (lambda s, w, t: {Same(1): w, Same(2): 2 * w}, lambda k, b: sum(k.values()).norm()),
    "a tensor": (lambda s, w, t: w, lambda k, b: k.norm()),
    "a float": (lambda s, w, t: float(w.norm()), lambda k, b: k),
    "a double of NumPy": (lambda s, w, t: np.float64(w.norm().item()), lambda k, b: k),
    "a float that is the same for all seeds": (lambda s, w, t: 0.5, lambda k, b: k if k > 0 else 3.0),
    "a list of dicts": (lambda s, w, t: [{"a": [w]}, {"b": None}], lambda k, b: k[0]["a"][0].norm()),
    "a deque": (lambda s, w, t: collections.deque([w, "w"], 2), lambda k, b: k[0].norm()),
    "an ordered dict": (lambda s, w, t: collections.OrderedDict(w=w, a=1), lambda k, b: k["w"].norm()),
    "a copy of the model": (lambda s, w, t: frozen(s), answer),
    "a dict of copies": (lambda s, w, t: {"old.one": frozen(s), "task": t.index}, lambda k, b: answer(k["old.one"], b)),
    "layers in a list": (lambda s, w, t: nn.ModuleList([frozen(s)]), lambda k, b: answer(k[0], b)),
    "an array that is the same for all seeds": (lambda s, w, t: np.ones(3), lambda k, b: k.sum()),
    "the task that is under way": (lambda s, w, t: t.classes, lambda k, b: float(k[0])),
}
APART: dict[str, tuple[Any, Any]] = {
    "an array": (lambda s, w, t: w.numpy().copy(), lambda k, b: torch.from_numpy(k).norm()),
    "an object of a class": (lambda s, w, t: Holds(w), lambda k, b: k.weight.norm()),
    "nothing for one seed": (lambda s, w, t: w if s.config.seed else None, lambda k, b: k.norm()),
    "a number on the model": (lambda s, w, t: noted(s, w), lambda k, b: 0.0),
    "the weights themselves": (lambda s, w, t: next(s.model.parameters()).detach(), lambda k, b: k.norm()),
    "an empty list or dict": (lambda s, w, t: [] if s.config.seed else {}, lambda k, b: len(k)),
    "an array in a list": (lambda s, w, t: [w.numpy().copy()], lambda k, b: torch.from_numpy(k[0]).norm()),
    "a number of NumPy": (lambda s, w, t: np.float32(w.norm().item()), lambda k, b: float(k)),
    "an object in a dict": (lambda s, w, t: {"a": Holds(w)}, lambda k, b: k["a"].weight.norm()),
    "an object that holds a copy": (lambda s, w, t: Holds(frozen(s)), lambda k, b: answer(k.weight, b)),
    "a tensor with an attribute": (lambda s, w, t: vars(w).update(k=1) or w, lambda k, b: k.norm()),
    "a sparse tensor": (lambda s, w, t: w.to_sparse(), lambda k, b: k.to_dense().norm()),
    "a tensor that is no other's size": (lambda s, w, t: w.new_ones(1 + s.config.seed), lambda k, b: k.norm()),
    "a tensor of another type": (
        lambda s, w, t: w if s.config.seed else w.half(),
        lambda k, b: k.float().norm(),
    ),
    "nothing for the other seed": (lambda s, w, t: None if s.config.seed else w, lambda k, b: k.norm()),
    "another length": (lambda s, w, t: [w] * (1 + s.config.seed), lambda k, b: k[0].norm()),
    "another container": (lambda s, w, t: [w, w] if s.config.seed else (w, w), lambda k, b: k[0].norm()),
    "another key": (lambda s, w, t: {s.config.seed: w}, lambda k, b: next(iter(k.values())).norm()),
    "a whole number in a tuple": (lambda s, w, t: (s.config.seed, w), lambda k, b: k[0]),
    "a text": (lambda s, w, t: f"{s.config.seed}", lambda k, b: float(k)),
    "True or False": (lambda s, w, t: [w, s.config.seed == 0], lambda k, b: 1.0 if k[1] else 2.0),
    "a set": (lambda s, w, t: {s.config.seed}, lambda k, b: float(next(iter(k)))),
    "a tensor on a layer": (lambda s, w, t: noted_deep(s, w), lambda k, b: 0.0),
    "a part of the weights": (lambda s, w, t: [next(s.model.parameters()).detach()[:3]], lambda k, b: k[0].norm()),
    "a parameter of the model": (lambda s, w, t: [next(s.model.parameters())], lambda k, b: k[0].norm()),
}


class Same:
    """A key that is written as others are."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.number == self.number

    def __repr__(self) -> str:
        return "key"


def keeping(name: str, table: dict[str, tuple[Any, Any]]) -> type[clbench.Strategy]:
    keep, read = table[name]
    parts = {"keep": keep, "read": lambda self, kept, batch: read(kept, batch), "__module__": __name__}
    return type("Mine", (Keeps,), parts)


def first(names: Any, n: int = 4) -> list[Any]:
    """Return all names as parameters, of which the fast tests take the first ones."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (i >= n)) for i, name in enumerate(names)]


SHORT = FIXED | {"epochs": 1, "tasks": 2, "limit": 8}


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", first(TOGETHER))
def test_what_each_seed_keeps_serves_it_alone(name: str, tmp_path: Path) -> None:
    for alone, together in both(keeping(name, TOGETHER), tmp_path, **SHORT):
        for one, other in zip(alone.record["training"], together.record["training"], strict=True):
            assert other["losses"] == pytest.approx(one["losses"], rel=1e-7)


@pytest.mark.parametrize("name", first(APART))
def test_what_seeds_keep_apart_and_can_not_be_stacked_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"--seeds-together: self\.(kept|model)\S* (is|shares)") as caught:
        clbench.compare("split-mnist-5k", [keeping(name, APART)], out=tmp_path, seeds_together=True, **SHORT)
    assert len(str(caught.value)) < 400
    assert "another" in str(caught.value) or "shares memory with a module" in str(caught.value)


# Changes that a step makes on self, beside a loss that does not depend on them.
CHANGES: dict[str, Any] = {
    "a tensor anew": lambda s, x: setattr(s, "tensor", s.tensor * 2),
    "a float": lambda s, x: setattr(s, "number", s.number + 1.0),
    "a tensor in place": lambda s, x: s.tensor.mul_(2),
    "a list that grows": lambda s, x: s.nested["a"].append(1),
    "an array": lambda s, x: s.array.__iadd__(1),
    "an attribute of a layer": lambda s, x: setattr(s.model.head, "last", x),
    "a new attribute": lambda s, x: setattr(s, "last", x),
    "a new number": lambda s, x: setattr(s, "last", 1),
    "an attribute gone": lambda s, x: delattr(s, "whole"),
    "a whole number": lambda s, x: setattr(s, "whole", s.whole + 1),
    "a float of each seed": lambda s, x: setattr(s, "by_seed", s.by_seed * 2),
    "an element of a tensor": lambda s, x: s.tensor.__setitem__(0, 7.0),
    "a tensor within": lambda s, x: s.nested["a"][0].add_(1),
    "an item of a dict": lambda s, x: s.nested.update(b=2),
    "an item of a dict anew": lambda s, x: s.nested.update(n=s.nested["n"] + 1),
    "an object": lambda s, x: setattr(s.object, "weight", s.object.weight + 1),
    "a set": lambda s, x: s.chosen.add(len(s.chosen)),
    "a generator": lambda s, x: s.generator.random(),
    "an attribute of the model": lambda s, x: setattr(s.model, "calls", getattr(s.model, "calls", 0) + 1),
    "the mode of the model": lambda s, x: s.model.eval(),
    "an option": lambda s, x: setattr(s, "strength", s.strength + 1),
}


@pytest.mark.parametrize("hook", ["loss", pytest.param("penalty", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", first(CHANGES))
def test_what_a_step_changes_on_self_is_refused_by_name(name: str, hook: str, tmp_path: Path) -> None:

    class Changes(clbench.Strategy):
        traits = clbench.Traits(family="regularisation", seeds_together=True)
        strength: float = 1.0

        def begin_run(self) -> None:
            self.whole, self.number, self.by_seed = 0, 0.0, float(self.config.seed)
            self.tensor, self.array, self.object = torch.zeros(3), np.zeros(3), Holds(1)
            self.nested, self.chosen = {"a": [torch.zeros(3)], "n": 1}, {0}
            self.generator = np.random.default_rng(0)

        def loss(self, batch: Any) -> Any:
            if hook == "loss":
                CHANGES[name](self, batch.images)
            return super().loss(batch)

        def penalty(self) -> Any:
            if hook == "penalty":
                CHANGES[name](self, self.model.head.weight)
            return self.model.head.weight.square().sum()

    with pytest.raises(RunError, match=r"--seeds-together: Changes changes self\.\S+ in a step"):
        clbench.compare("split-mnist-5k", [Changes], out=tmp_path, seeds_together=True, **SHORT)


# Values that can't weigh one loss of all seeds, and a word of the sentence that says so.
UNKNOWN: dict[str, tuple[Any, str]] = {
    "the seed": (lambda s, b: s.config.seed, "asks for the seed"),
    "a draw of NumPy": (lambda s, b: np.random.rand(), "draws at random"),
    "a condition": (lambda s, b: 1.0 if b.images.mean() > 0 else 2.0, "looks at the value of a tensor"),
    "a number of a tensor": (lambda s, b: b.images.mean().item(), "takes a number out of a tensor"),
    "a draw of torch": (lambda s, b: torch.rand(()), "draws at random"),
    "an array of a tensor": (lambda s, b: b.ids.numpy().sum(), "takes values out of a tensor"),
    "a stream of the seed's": (lambda s, b: torch.rand((), generator=s.rng("a")), "asks for the seed"),
    "the first number of a stream": (lambda s, b: s.rng("a").initial_seed() % 7, "asks for the seed"),
    "a draw of torch in place": (lambda s, b: torch.zeros(()).normal_(), "draws at random"),
    "dropout": (lambda s, b: torch.dropout(b.images, 0.5, True).mean(), "draws at random"),
    "a draw of Python": (lambda s, b: random.random(), "draws at random"),
    "a choice of Python": (lambda s, b: random.choice([1.0, 2.0]), "draws at random"),
    "a float of a tensor": (lambda s, b: float(b.images.mean()), "takes a number out of a tensor"),
    "an id": (lambda s, b: int(b.ids[0]), "takes a number out of a tensor"),
    "a list of a tensor": (lambda s, b: sum(b.ids.tolist()), "takes values out of a tensor"),
    "some samples": (lambda s, b: b.images[b.labels > 0].mean(), "picks a number of values"),
    "the places of some": (lambda s, b: torch.nonzero(b.labels).sum(), "picks a number of values"),
}


@pytest.mark.parametrize("name", first(UNKNOWN))
def test_what_one_loss_of_all_seeds_can_not_know_is_refused_in_plain_words(name: str, tmp_path: Path) -> None:
    factor, words = UNKNOWN[name]

    class Asks(clbench.Strategy):
        traits = clbench.Traits(family="regularisation", seeds_together=True)

        def loss(self, batch: Any) -> Any:
            return {"loss": (1 + factor(self, batch)) * super().loss(batch)["classification"]}

    with pytest.raises(RunError, match="--seeds-together: ") as caught:
        clbench.compare("split-mnist-5k", [Asks], out=tmp_path, seeds_together=True, **SHORT)
    assert words in str(caught.value)
    assert "github" not in str(caught.value)
    assert "vmap" not in str(caught.value)


def test_a_penalty_that_draws_is_refused(tmp_path: Path) -> None:
    for number, draw in enumerate((lambda: torch.rand(()), np.random.rand, random.random)):

        class Draws(clbench.Strategy):
            traits = clbench.Traits(family="regularisation", seeds_together=True)

            def penalty(self) -> Any:
                return draw() * self.model.head.weight.square().sum()  # noqa: B023

        out = tmp_path / str(number)
        with pytest.raises(RunError, match=r"Draws\.penalty draws at random"):
            clbench.compare("split-mnist-5k", [Draws], out=out, seeds_together=True, **SHORT)


def test_an_error_of_the_loss_itself_is_told_as_in_a_run_alone(tmp_path: Path) -> None:
    class Fails(clbench.Strategy):
        traits = clbench.Traits(family="regularisation", seeds_together=True)

        def loss(self, batch: Any) -> Any:
            return super().loss(batch)["classification"] + torch.ones(3) @ torch.ones(4)

    with pytest.raises(RunError, match=r"inconsistent tensor size.*Fails\.loss, test_seeds_together\.py line"):
        clbench.compare("split-mnist-5k", [Fails], out=tmp_path, seeds_together=True, **SHORT)


def test_what_a_loss_logs_is_in_the_record_of_each_seed(tmp_path: Path) -> None:
    class Logs(clbench.Strategy):
        traits = clbench.Traits(family="regularisation", seeds_together=True)

        def loss(self, batch: Any) -> Any:
            self.log("images", len(batch))
            return super().loss(batch)

    for alone, together in both(Logs, tmp_path, **SHORT):
        logged = [[task["logged"] for task in result.record["tasks"]] for result in (alone, together)]
        assert logged[0] == logged[1] != [{}, {}]


class TwoStages(clbench.Strategy):
    """A first stage with a loss of its own, which is a method and reads what each seed has."""

    traits = clbench.Traits(family="regularisation", seeds_together=True)

    def begin_task(self, task: Any) -> None:
        self.weight = 1.0 + self.config.seed

    def stages(self, task: Any) -> list[clbench.Stage]:
        last = slice(task.outputs.stop - 1, task.outputs.stop)
        return [clbench.Stage(task.train, "own", head_rows=last, loss=self.weighted), clbench.Stage(task.train)]

    def weighted(self, batch: Any) -> Any:
        return self.weight * self.classification_loss(self.model(batch.images), batch)


@pytest.mark.usefixtures("in_float64")
def test_a_stage_with_a_loss_and_rows_of_its_own_trains_together_as_alone(tmp_path: Path) -> None:
    for alone, together in both(TwoStages, tmp_path, **FIXED | {"momentum": 0.9, "weight_decay": 0.1}):
        for one, other in zip(alone.record["training"], together.record["training"], strict=True):
            assert other["losses"] == pytest.approx(one["losses"], rel=1e-7)


class Closes(TwoStages):
    """The loss of its first stage is a function that holds a number of one seed."""

    def stages(self, task: Any) -> list[clbench.Stage]:
        weight = 1.0 + self.config.seed
        return [
            clbench.Stage(task.train, "own", loss=lambda batch: weight * self.weighted(batch)),
            clbench.Stage(task.train),
        ]


def test_a_function_that_holds_what_one_seed_has_does_not_serve_the_others(tmp_path: Path) -> None:
    planned = plan("split-mnist-5k", [Closes], out=tmp_path, **FIXED)
    errors = [outcome.error for outcome in run_planned(planned, seeds_together=True)]
    assert len(errors) == 2
    assert all("the loss of stage 'own' is no method of the strategy" in str(error) for error in errors)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp:8[batch_norm=true]", "mlp:8[activation=tanh]", "conv:4-8", "resnet18[width=4]"])
def test_models_train_together(model: str, tmp_path: Path) -> None:
    options = FIXED | {"model": model, "epochs": 1, "limit": 4, "batch_size": 4}
    results = clbench.compare("split-mnist-5k", ["naive"], out=tmp_path, seeds_together=True, **options)
    assert [result.status for result in results] == ["done", "done"]
