"""A number that is not finite never becomes a wrong answer: every door by which one can enter names it."""

import copy
import io
import json
import math
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clbench
from clbench import ConfigError, RunError, Stage, Strategy, Traits
from clbench.cli import main
from clbench.importance import fisher_diagonal, mas_importance
from clbench.learning.memory import argmax_herding, herding
from clbench.models import build_model
from clbench.results import statistics
from clbench.results.metrics import METRICS, metric, summarize
from clbench.results.result import Result
from clbench.running.checkpoint import Checkpoint, pack, unpack
from clbench.running.resolve import strategy_class
from clbench.support.finite import not_finite

NAN, INF = math.nan, math.inf
BN = "mlp:6[batch_norm=true]"


@pytest.fixture
def small(cut: Any) -> Any:
    """2 tasks of 2 classes, 4 training and 20 test images of each."""
    return cut(tasks=2, limit=4, class_order=[0, 1, 2, 3])


@dataclass
class Pair:
    left: Any
    right: Any


class Buffered(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, value]), persistent=False)


def parameter(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, value]))


def cycle() -> list[Any]:
    held: list[Any] = [1.0]
    held.append(held)
    return [held, NAN]


# The one function, on values that a strategy may keep


WRONG = [
    (torch.tensor([1.0, NAN]), "x holds NaN"),
    (torch.tensor([1.0, INF]), "x holds infinity"),
    (torch.tensor(-INF), "x holds infinity"),
    (torch.tensor([1.0, NAN], dtype=torch.float16), "x holds NaN"),
    (torch.tensor([1.0, INF], dtype=torch.bfloat16), "x holds infinity"),
    (torch.tensor([1.0, NAN]).to(torch.float8_e4m3fn), "x holds NaN"),
    (torch.tensor([complex(1, NAN)]), "x holds NaN"),
    (torch.tensor([0.0, NAN]).to_sparse(), "x holds NaN"),
    (np.array([1.0, NAN]), "x holds NaN"),
    (np.array([1.0, INF], np.float32), "x holds infinity"),
    (np.array([1 + 1j * NAN]), "x holds NaN"),
    (np.float32(NAN), "x holds NaN"),
    (NAN, "x holds NaN"),
    (-INF, "x holds infinity"),
    (complex(0, INF), "x holds infinity"),
    (Decimal("nan"), "x holds NaN"),
    (Decimal("snan"), "x holds NaN"),
    (Decimal("-inf"), "x holds infinity"),
    (np.datetime64("NaT"), "x holds NaN"),
    (np.array(["2026-01-01", "NaT"], "datetime64[D]"), "x holds NaN"),
    (np.timedelta64("NaT"), "x holds NaN"),
    (np.array([(1, NAN)], [("n", "i4"), ("mean", "f4")]), "x['mean'] holds NaN"),
    (np.array((1, INF), [("n", "i4"), ("mean", "f4")])[()], "x['mean'] holds infinity"),
    ([1.0, [2.0, NAN]], "x[1][1] holds NaN"),
    ({"a": {"b": torch.tensor(INF)}}, "x['a']['b'] holds infinity"),
    (deque([0.0, NAN]), "x[1] holds NaN"),
    (Pair(1.0, np.array(NAN)), "x.right holds NaN"),
    (cycle(), "x[1] holds NaN"),
    (parameter(INF), "x holds infinity"),
    (nn.ParameterDict({"a": parameter(NAN)}), "x.a holds NaN"),
    (nn.Sequential(nn.Linear(1, 1), Buffered(NAN)), "x.1.mask holds NaN"),
    (nn.Sequential(nn.Linear(1, 1), Buffered(INF)), "x.1.mask holds infinity"),
]
RIGHT = [
    torch.zeros(0),
    torch.tensor([1, 2]),
    torch.tensor([True]),
    torch.finfo(torch.float32).max * torch.ones(9),
    np.array(["nan"]),
    np.array([1, 2]),
    "nan",
    None,
    range(3),
    {1: [2.0, "inf"]},
    Decimal("1e999"),
    np.datetime64("2026-01-01"),
    np.array([(1, 2.0)], [("n", "i4"), ("mean", "f4")]),
    object(),
    Buffered(-INF),
    torch.empty(3, device="meta"),
]


@pytest.mark.parametrize(("value", "expected"), WRONG, ids=range(len(WRONG)))
def test_a_number_that_is_not_finite_is_found_wherever_it_is_kept(value: Any, expected: str) -> None:
    assert not_finite(value, "x") == expected


@pytest.mark.parametrize("value", RIGHT, ids=range(len(RIGHT)))
def test_what_is_finite_or_no_number_is_accepted(value: Any) -> None:
    assert not_finite(value, "x") is None


@pytest.mark.parametrize(("value", "expected"), WRONG, ids=range(len(WRONG)))
def test_where_infinities_are_accepted_nan_and_infinite_weights_are_not(value: Any, expected: str) -> None:
    kept = "infinity" in expected and not isinstance(value, nn.Module | nn.Parameter)
    assert not_finite(value, "x", infinite=True) == (None if kept else expected)


# Weights that are loaded


def spoilt_weights(path: Path, name: str, value: float, model: str = BN) -> Path:
    state = build_model(model, (1, 28, 28), 0).state_dict()
    state = {layer: tensor.clone() for layer, tensor in state.items() if not layer.startswith("head.")}
    state[name].view(-1)[-1] = value
    torch.save(state, path)
    return path


def test_a_nan_in_a_running_variance_of_weights_is_refused_by_the_layers_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = spoilt_weights(tmp_path / "w.pt", "backbone.0.2.running_var", NAN)
    arguments = f"run split-mnist-5k naive --limit 4 --model {BN} --weights {file} --out {tmp_path / 'run'}"
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert "backbone.0.2.running_var holds NaN" in error
    assert not (tmp_path / "run" / "run.json").exists()


def floats(model: str) -> list[str]:
    state = build_model(model, (1, 28, 28), 0).state_dict()
    return [name for name, tensor in state.items() if tensor.is_floating_point() and not name.startswith("head.")]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(("model", "name"), [(m, n) for m in (BN, "conv:2-2") for n in floats(m)])
def test_every_tensor_of_weights_is_looked_at(
    model: str, name: str, value: float, tmp_path: Path, small: Any, refused: Any
) -> None:
    """A mask may be -inf, so a running statistic that is shows by the features that it makes."""
    file = spoilt_weights(tmp_path / "w.pt", name, value, model)
    statistic = value == -INF and "running" in name
    with refused("feature" if statistic else name, "finite"):
        clbench.compare(small, ["naive"], out=tmp_path / "runs", model=model, weights=str(file), epochs=1, seeds=1)
    assert not list((tmp_path / "runs").rglob("run.json"))


def test_weights_that_are_finite_and_make_features_that_are_not_are_refused(
    tmp_path: Path, run: Any, small: Any, refused: Any
) -> None:
    file = spoilt_weights(tmp_path / "w.pt", "backbone.0.2.running_var", -1.0)
    with refused("NaN", "feature"):
        run("naive", small, model=BN, weights=str(file))


# Scores


class Scoring(Strategy):
    """Naive, with scores of one's own after task 1 has begun, or in all tasks."""

    traits = Traits(family="regularisation")
    since = 1

    def scores(self, images: Tensor, task: int | None = None) -> Any:
        logits = self.model(images)
        return self.answer(logits) if self.progress.task >= self.since else self.sound(logits)

    def sound(self, logits: Tensor) -> Any:
        return logits

    def answer(self, logits: Tensor) -> Any:
        raise NotImplementedError


def scoring(answer: Any, **members: Any) -> type[Strategy]:
    return type("Scoring", (Scoring,), {"answer": staticmethod(answer), "__module__": __name__, **members})


def spot(value: float, rows: Any = 3, columns: Any = 1) -> Any:
    def answer(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[rows, columns] = value
        return logits

    return answer


@pytest.mark.parametrize(
    "answer",
    [lambda logits: logits * NAN, spot(NAN), spot(INF), spot(-INF, 3, slice(None)), lambda logits: logits.exp() * INF],
    ids=["all NaN", "one NaN", "one +inf", "a row of -inf", "all +inf"],
)
def test_scores_by_which_nothing_can_be_chosen_end_the_run_naming_task_and_classifier(
    answer: Any, run: Any, small: Any, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"scores of the classifier 'linear' for test images of task 0, in task 1, are"):
        run(scoring(answer), small, out=tmp_path / "run")
    record = Result.load(tmp_path / "run").record
    assert record["status"] == "failed"
    assert record["accuracy"]["class_incremental"][1] == [None, None]


def test_a_classifier_behind_the_headline_is_looked_at_too(run: Any, small: Any) -> None:
    mine = scoring(
        lambda logits: {"linear": logits, "nearest": logits * NAN},
        sound=lambda self, logits: {"linear": logits, "nearest": logits},
    )
    with pytest.raises(RunError, match=r"classifier 'nearest' .* NaN"):
        run(mine, small)


def test_the_task_whose_images_are_lost_is_named(run: Any, small: Any) -> None:
    """20 test images a class, 40 a task, in one pass: row 50 is of task 1."""
    with pytest.raises(RunError, match="test images of task 1, in task 1,"):
        run(scoring(spot(NAN, 50)), small)


def test_scores_of_the_untrained_model_and_within_a_task_are_looked_at(run: Any, small: Any) -> None:
    with pytest.raises(RunError, match="in task 0"):
        run(scoring(spot(NAN), since=0), small)

    class Later(Scoring):
        def answer(self, logits: Tensor) -> Tensor:
            return logits * (NAN if self.progress.step else 1)

    with pytest.raises(RunError, match="in task 1"):
        run(Later, small, eval_every=1)


def test_a_strategy_that_is_told_the_task_is_looked_at(run: Any, cut: Any) -> None:
    class Told(Strategy):
        traits = Traits(family="isolation", settings=("task",), memory="none", needs_task_at_test=True)

        def scores(self, images: Tensor, task: int | None = None) -> Tensor:
            return self.model(images) * (NAN if task == 1 and self.progress.task == 1 else 1)

    with pytest.raises(RunError, match="test images of task 1, in task 1,"):
        run(Told, cut(tasks=2, limit=4, setting="task"))


def test_the_attribute_that_made_scores_nan_is_named(run: Any, small: Any) -> None:
    class Poisoned(Strategy):
        traits = Traits(family="regularisation")

        def begin_run(self) -> None:
            self.factor = torch.tensor(NAN)

        def scores(self, images: Tensor, task: int | None = None) -> Tensor:
            return self.model(images) * self.factor

    with pytest.raises(RunError, match=r"NaN, .*; self\.factor holds NaN"):
        run(Poisoned, small)


def test_an_output_may_be_masked_by_minus_infinity(run: Any, small: Any) -> None:
    """Worked out by hand: output 1 is never chosen, so its class is never right, and the others are as without it."""

    def answer(logits: Tensor) -> Tensor:
        return torch.full_like(logits, -INF).index_fill(1, torch.tensor([0]), 0.0)

    accuracy = run(scoring(answer, since=0), small).record["accuracy"]
    # The only output that has a score is 0: its class is half of task 0.
    assert accuracy["class_incremental"][1] == [0.5, 0.0]
    # Of task 1 no output has a score, and none is right.
    assert accuracy["task_aware"][1] == [0.5, 0.0]


def test_among_outputs_that_are_all_minus_infinity_the_first_is_not_chosen(run: Any, small: Any) -> None:
    """argmax names output 0 of such a row, which would make half of task 0 right where the task is given."""

    def answer(logits: Tensor) -> Tensor:
        return logits.index_fill(1, torch.tensor([0, 1]), -INF)

    assert run(scoring(answer), small).record["accuracy"]["task_aware"][1][0] == 0.0


# State of a strategy


KEPT: dict[str, tuple[Any, str]] = {
    "tensor": (torch.tensor([NAN]), "self.kept holds NaN"),
    "array": (np.array([0.0, NAN]), "self.kept holds NaN"),
    "number": (NAN, "self.kept holds NaN"),
    "nested": ({"a": [torch.ones(1), torch.tensor(NAN)]}, "self.kept['a'][1] holds NaN"),
    "parameter": (parameter(INF), "self.kept holds infinity"),
    "module": (nn.Sequential(nn.BatchNorm1d(2)), "self.kept.0.running_var holds infinity"),
    "half": (torch.tensor([NAN]).half(), "self.kept holds NaN"),
}
KEPT["module"][0][0].running_var.fill_(INF)


def keeping(value: Any) -> type[Strategy]:
    class Keeping(Strategy):
        traits = Traits(family="regularisation")

        def end_task(self, task: Any) -> None:
            self.kept = copy.deepcopy(value)

    return Keeping


@pytest.mark.parametrize(("value", "expected"), KEPT.values(), ids=KEPT)
def test_what_a_strategy_keeps_is_named_at_the_end_of_the_task(value: Any, expected: str, run: Any, small: Any) -> None:
    with pytest.raises(RunError) as caught:
        run(keeping(value), small)
    assert str(caught.value).startswith(f"{expected} in task 0, at its end")


@pytest.mark.parametrize(
    "value",
    [INF, torch.tensor([INF, -INF]), {"lowest": INF}, Buffered(-INF), torch.tensor([1]), "nan", None],
    ids=str,
)
def test_a_lowest_loss_or_a_mask_may_be_infinite(value: Any, run: Any, small: Any) -> None:
    class Keeping(Strategy):
        traits = Traits(family="regularisation")

        def begin_run(self) -> None:
            self.kept = value

    assert run(Keeping, small, checkpoint_every="task").status == "done"


def test_running_statistics_that_training_spoilt_are_named_before_anything_is_made_of_them(
    run: Any, small: Any
) -> None:
    """Batch norm in train mode does not read them, so every loss is finite."""

    class Spoils(strategy_class("icarl")):  # type: ignore[misc]
        def after_step(self, batch: Any) -> None:
            self.model.backbone[0][2].running_var[0] = NAN

    with pytest.raises(
        RunError, match=r"self\.model\.backbone\.0\.2\.running_var holds NaN in task 0, after its train"
    ):
        run(Spoils, small, model=BN, memory_size=4)


def test_scores_that_spoil_the_network_do_not_get_into_the_final_weights(run: Any, small: Any, tmp_path: Path) -> None:
    class Spoils(Strategy):
        traits = Traits(family="regularisation")

        def scores(self, images: Tensor, task: int | None = None) -> Tensor:
            logits = self.model(images)
            if self.progress.task == 1:
                self.model.head.bias.data[0] = NAN
            return logits

    with pytest.raises(RunError, match=r"self\.model\.head\.bias holds NaN in task 1, at its end"):
        run(Spoils, small, out=tmp_path / "run")
    assert not (tmp_path / "run" / "model.pt").exists()


def test_a_logged_number_is_finite(run: Any, small: Any) -> None:
    class Logs(Strategy):
        traits = Traits(family="regularisation")

        def end_task(self, task: Any) -> None:
            self.log("distance", NAN)

    with pytest.raises(RunError, match="'distance' holds NaN in task 0"):
        run(Logs, small)


# Results of methods


@pytest.mark.parametrize("importance", [fisher_diagonal, mas_importance])
def test_an_importance_that_overflows_is_named_by_its_parameter(importance: Any) -> None:
    """A gradient of 1e30 squared is beyond the largest float32, 3.4e38; so is an output of 1e30 squared."""
    model = nn.Linear(2, 3)
    images, labels = torch.full((4, 2), 1e30), torch.zeros(4, dtype=torch.int64)
    given = (images, labels) if importance is fisher_diagonal else ([images],)
    with pytest.raises(RunError, match=r"importance.'(weight|bias)'. holds (infinity|NaN)"):
        importance(model, *given)


@pytest.mark.parametrize(("name", "attribute"), [("si", "path"), ("rwalk", "gained")])
def test_an_importance_along_the_path_that_is_infinite_is_named(
    name: str, attribute: str, run: Any, small: Any
) -> None:
    class Far(strategy_class(name)):  # type: ignore[misc]
        def end_task(self, task: Any) -> None:
            getattr(self, attribute)["head.bias"][0] = INF
            super().end_task(task)

    with pytest.raises(RunError, match=r"importance\['head\.bias'\] holds (infinity|NaN)"):
        run(Far, small)


@pytest.mark.parametrize("name", ["slda", "ranpac", "frozen-ncm", "simplecil", "fecam", "fetril", "randumb"])
def test_features_that_a_closed_form_is_solved_from_are_finite(name: str, run: Any, small: Any) -> None:
    class Overflows(strategy_class(name)):  # type: ignore[misc]
        def represent(self, features: Tensor) -> Tensor:
            return super().represent(features) * (INF if hasattr(self, "weight") else 1)

    with pytest.raises(RunError, match="features of task 0 are not finite"):
        run(Overflows, small)


@pytest.mark.parametrize("choose", [herding, argmax_herding])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_exemplars_are_chosen_by_finite_features(choose: Any, value: float) -> None:
    features = np.ones((5, 3))
    features[2, 1] = value
    with pytest.raises(ConfigError, match="finite"):
        choose(features, 2)


def test_new_weight_vectors_that_are_all_zero_are_not_divided_by_their_length(run: Any, small: Any) -> None:
    class Clipped(strategy_class("wa")):  # type: ignore[misc]
        def after_step(self, batch: Any) -> None:
            self.model.head.weight.data.clamp_(max=0).clamp_(min=0)

    assert run(Clipped, small, memory_size=4).status == "done"


def test_gem_leaves_a_loss_that_is_not_finite_to_the_trainer(run: Any, small: Any) -> None:
    class Spoilt(strategy_class("gem")):  # type: ignore[misc]
        def loss(self, batch: Any) -> Any:
            terms = super().loss(batch)
            return {n: term * (NAN if self.progress.task else 1) for n, term in terms.items()}

    with pytest.raises(RunError, match="the classification loss is nan in task 1"):
        run(Spoilt, small, memory_size=4)


# Validation, rates, metrics


@pytest.mark.parametrize("value", [NAN, -INF])
def test_a_validation_loss_that_is_not_finite_ends_the_run(value: float, run: Any, cut: Any) -> None:
    """Where the score of the right output is -inf the cross-entropy is infinite."""

    class Unsure(Strategy):
        traits = Traits(family="regularisation")

        def scores(self, images: Tensor, task: int | None = None) -> Tensor:
            logits = self.model(images)
            return logits.index_fill(1, torch.tensor([0]), value) if self.progress.step else logits

    with pytest.raises(RunError, match=r"the validation loss is (nan|inf) in task 0, epoch 0"):
        run(Unsure, cut(tasks=2, limit=4, validation=0.5), patience=1)


def test_a_rate_that_overflows_when_it_is_scaled_is_refused(run: Any, small: Any, refused: Any) -> None:
    with refused("lr=1e+308", "finite"):
        run("naive", small, lr=1e308, base_batch_size=1)
    with refused("lr=1e+308", "finite"):
        run("naive", small, lr=1e308, backbone_lr_factor=1e5)


@pytest.mark.parametrize("rate", [NAN, INF, 0.0, -1.0])
def test_a_stage_has_a_finite_rate(rate: float, run: Any, small: Any) -> None:
    class Rated(Strategy):
        traits = Traits(family="regularisation")

        def stages(self, task: Any) -> list[Stage]:
            return [Stage(task.train, lr=rate)]

    with pytest.raises(ConfigError, match="Stage: lr="):
        run(Rated, small)


def test_a_metric_that_is_infinite_is_named(refused: Any) -> None:
    @metric("Infinite.")
    def endless(R: Any) -> float:  # noqa: N803
        return INF

    try:
        with refused("endless", "inf"):
            summarize([[1.0]])
    finally:
        del METRICS["endless"]


KEYS = [(seed, 0) for seed in range(8)]


@pytest.mark.parametrize("value", [INF, -INF])
@pytest.mark.parametrize(
    "statistic",
    [
        lambda values: statistics.spread(values),
        lambda values: statistics.interval(values),
        lambda values: statistics.paired(dict(zip(KEYS, values, strict=True)), dict(zip(KEYS, values, strict=True))),
        lambda values: statistics.mean_ranks({"a": values, "b": [0.0] * 8}),
        lambda values: statistics.variances({(i % 4, i // 4): v for i, v in enumerate(values)}),
        lambda values: statistics.runs_needed(values[0], 1.0),
    ],
    ids=["spread", "interval", "paired", "ranks", "variances", "runs needed"],
)
def test_of_an_infinite_value_no_statistic_follows(statistic: Any, value: float, refused: Any) -> None:
    with refused("inf"):
        statistic([value, *(0.5 + i / 16 for i in range(7))])


def test_a_record_with_an_infinite_number_is_refused(run: Any, small: Any) -> None:
    record = json.loads(json.dumps(run("naive", small).record))
    record["training"][0]["losses"]["classification"] = INF
    with pytest.raises(ValueError, match="finite number"):
        Result(record)


# A checkpoint, and steps that are left out


def test_a_checkpoint_that_holds_nan_is_refused(run: Any, small: Any, tmp_path: Path, refused: Any) -> None:
    """Written as clbench writes it, so that no checksum shows it."""

    class Stop(clbench.Observer):
        def task(self, task: int, row: Any) -> None:
            raise KeyboardInterrupt

    kept: dict[str, bytes] = {}

    class Store:
        def save_checkpoint(self, content: bytes) -> None:
            kept["latest"] = content

        def checkpoints(self) -> Any:
            return list(kept.items())

        def drop_checkpoint(self) -> None:
            kept.clear()

    asked = {"out": tmp_path / "run", "store": Store()}
    with pytest.raises(KeyboardInterrupt):
        run("ewc", small, observer=Stop(), **asked)
    checkpoint = Checkpoint.from_bytes(kept["latest"], strategy_class("ewc"))
    assert checkpoint.start is not None
    start = unpack(checkpoint.start, strategy_class("ewc"))
    start["strategy"]["importance"]["head.bias"][0] = NAN
    checkpoint.start = pack(start)
    kept["latest"] = checkpoint.to_bytes()
    with refused("self.importance['head.bias'] holds NaN", "--force"):
        run("ewc", small, resume=True, **asked)


def test_a_step_that_is_left_out_moves_no_running_statistic(run: Any, small: Any, tmp_path: Path) -> None:
    """Step 1 of task 1 once sends NaN through the network, once has a loss that is NaN without the network."""

    class Bad(Strategy):
        traits = Traits(family="regularisation")
        through = True

        def loss(self, batch: Any) -> Any:
            if self.progress.task == 1 and self.progress.step == 1:
                return self.model(batch.images * NAN).sum() if self.through else self.model.head.bias.sum() * NAN
            return super().loss(batch)

    class Outside(Bad):
        through = False

    states = []
    for kind in (Bad, Outside):
        out = tmp_path / kind.__name__
        assert run(kind, small, model=BN, batch_size=4, on_nan="skip", out=out).status == "done"
        states.append(torch.load(io.BytesIO((out / "model.pt").read_bytes()), weights_only=True))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["backbone.0.2.running_mean"].isfinite().all()


def test_no_record_holds_a_number_that_is_not_finite(run: Any, small: Any) -> None:
    json.dumps(run("icarl", small, memory_size=4, eval_every="epoch").record, allow_nan=False)
