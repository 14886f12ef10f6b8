"""Every option of training beside --seeds-together: refused before any training, or equal to the separate runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

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
    ("naive", {"checkpoint_every": "epoch"}),
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
    ("naive[memory_size=10]", {}),
    ("naive[memory_per_class=2]", {}),
    ("naive[memory_per_class=2,memory_policy=random]", {}),
    ("naive", {"model": "mlp:8[dropout=0.5]"}),
    ("naive", {"class_order_seed": "per-seed"}),
    ("er", {"memory_size": 10}),
    ("si", {}),
]
# bf16 rounds to three digits, so that a step of the batched model differs from one of the single model by design.
ROUNDED: list[tuple[str, dict[str, Any]]] = [("naive", {"precision": "bf16"}), ("lwf", {"precision": "bf16"})]
# Neither trains, or is read from outside of the fields of a run.
ELSEWHERE = {"data_root", "offline", "device", "threads", "weights"}


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
