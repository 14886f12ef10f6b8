"""Strategies that keep a network able to learn, and the measures of it, against small cases derived by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clbench
from clbench import ConfigError
from clbench.learning.plasticity import effective_rank
from clbench.models import build_model
from clbench.strategies.cbp import CBP
from clbench.strategies.l2_init import L2Init
from clbench.strategies.shrink_perturb import ShrinkPerturb

FAST: dict[str, Any] = {
    "limit": 8,
    "epochs": 1,
    "optimizer": "sgd",
    "batch_size": 4,
    "threads": 1,
    "lr": 0.05,
    "quiet": True,
}


def run(strategy: Any, tmp_path: Any, **options: Any) -> clbench.Result:
    return clbench.run("split-mnist-5k", strategy, out=tmp_path / "run", **{**FAST, **options})


def watched(kind: type, hook: str, seen: list[Any]) -> type:
    """A subclass that keeps the weights before and after a hook, and what the strategy keeps itself."""

    def look(strategy: Any) -> dict[str, Any]:
        copied = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}
        return copied | {n: [t.clone() for t in vars(strategy).get(n, [])] for n in ("utility", "age", "answers")}

    def called(self: Any, *given: Any) -> None:
        before = look(self)
        getattr(super(made, self), hook)(*given)
        seen.append((before, look(self), [p.detach().clone() for p in self.statistics(self.model.head.weight)]))

    made = type(f"Watched{kind.__name__}", (kind,), {hook: called, "__module__": __name__})
    return made


def test_cbp_replaces_as_many_units_as_the_algorithm_says(tmp_path: Any) -> None:
    """4 units, mature after 2 steps; 0.3 times the mature ones are due, and as soon as it is a whole unit it is drawn.

    Steps 1 and 2: none is mature. 3: 4 are, so 1.2 are due, and one is drawn. 4: 3 are: 0.2 + 0.9, one is drawn. 5: 2
    are: 0.1 + 0.6. 6: the unit of step 3 is 3 steps old, so 3 are: 0.7 + 0.9, one is drawn; 0.6 are left. 7: 3 are, the
    unit of step 4 among them: 1.5, one is drawn. 8: 2 are: 0.5 + 0.6, one is drawn.
    """
    seen: list[Any] = []
    run(watched(CBP, "after_step", seen), tmp_path, model="mlp:4", strategy_options=OFTEN, tasks=2, limit=7)
    drawn = [int((after["age"][0] == 0).sum()) for _, after, _ in seen[:8]]
    assert drawn == [0, 0, 1, 1, 0, 1, 1, 1]


OFTEN = {"maturity": 2, "replacement_rate": 0.3, "decay": 0.75}


@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {"optimizer": "adam", "lr": 0.01}], ids=str)
def test_cbp_draws_the_unit_of_the_smallest_utility_anew(optimizer: dict[str, Any], tmp_path: Any) -> None:
    """The utility is computed here unit by unit: 0.75 u + 0.25 mean |h| sum |w|."""
    seen: list[Any] = []
    options = {**OFTEN, "replacement_rate": 0.15}
    run(watched(CBP, "after_step", seen), tmp_path, model="mlp:6", strategy_options=options, **optimizer)
    incoming, bias, outgoing = "backbone.0.1.weight", "backbone.0.1.bias", "head.weight"
    n_drawn = 0
    for before, after, statistics in seen:
        expected = []
        for unit in range(6):
            contribution = float(before["answers"][0][unit]) * float(before[outgoing][:, unit].abs().sum())
            expected.append(0.75 * float(before["utility"][0][unit]) + 0.25 * contribution)
        old = [unit for unit in range(6) if int(before["age"][0][unit]) + 1 > 2]
        drawn = (after["age"][0] == 0).nonzero().flatten().tolist()
        n_drawn += len(drawn)
        assert len(drawn) <= 1
        for unit in range(6):
            same = torch.equal(after[incoming][unit], before[incoming][unit])
            if unit in drawn:
                assert unit == min(old, key=lambda each: expected[each])
                assert not same
                assert float(after[incoming][unit].abs().max()) <= 1 / math.sqrt(784)
                # The largest of 784 uniform draws is beyond nine tenths of the bound but once in 10^35.
                assert float(after[incoming][unit].abs().max()) > 0.9 / math.sqrt(784)
                zeros = [after[bias][unit], after[outgoing][:, unit], after["utility"][0][unit]]
                assert not any(bool(value.any()) for value in [*zeros, *(s[:, unit] for s in statistics)])
            else:
                assert same
                assert torch.equal(after[outgoing][:, unit], before[outgoing][:, unit])
                assert float(after["utility"][0][unit]) == pytest.approx(expected[unit], rel=1e-5)
    assert n_drawn > 5


@pytest.mark.parametrize("model", ["mlp:6-5[norm=layer]", "mlp:6[activation=crelu]", "conv:4-4", "conv:4[norm=layer]"])
def test_cbp_draws_channels_and_their_norms_anew(model: str, tmp_path: Any) -> None:
    """An outgoing weight of a unit that was drawn is 0, and nothing else that is learnt is moved by it."""
    seen: list[Any] = []
    run(watched(CBP, "after_step", seen), tmp_path, model=model, strategy_options=OFTEN, momentum=0.9)
    for before, after, _ in seen:
        drawn = after["age"][-1] == 0
        shape = (len(after["head.weight"]), len(drawn), -1)
        moved = (after["head.weight"] != before["head.weight"]).view(shape).any(2).any(0)
        # A unit that never answers has still outgoing weights of 0 when it is drawn once more.
        assert not bool((moved & ~drawn).any())
        assert not bool(after["head.weight"].view(shape)[:, drawn].any())
    assert any(bool((after["age"][0] == 0).any()) for _, after, _ in seen[2:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "resnet32"}, "cbp can't work on model='resnet32', which has 10 layers in a block"),
        ({"model": "conv:4-4[activation=crelu]"}, "block 0 gives"),
        ({"model": "mlp:4", "train": "head"}, "cbp draws units of all layers anew; train=all is accepted"),
    ],
    ids=str,
)
def test_cbp_refuses_what_it_can_not_draw_units_of(options: Any, words: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        run("cbp", tmp_path, **options)
    assert words in str(refused.value)


def test_shrink_and_perturb_halves_weights_and_adds_noise_of_the_size_given(tmp_path: Any) -> None:
    seen: list[Any] = []
    run(
        watched(ShrinkPerturb, "after_step", seen),
        tmp_path,
        model="mlp:16",
        strategy_options={"shrink": 0.5, "noise": 0},
    )
    for before, after, _ in seen:
        assert all(torch.equal(after[name], before[name] / 2) for name in before if "." in name)
    seen.clear()
    options = {"shrink": 0.0, "noise": 0.01}
    run(watched(ShrinkPerturb, "after_step", seen), tmp_path, model="mlp:16", strategy_options=options, force=True)
    added = [torch.cat([(after[n] - before[n]).flatten() for n in before if "." in n]) for before, after, _ in seen]
    # The standard error of the deviation of n draws is 0.01 / sqrt(2 n); five of them.
    for noise in added:
        assert float(noise.std()) == pytest.approx(0.01, abs=5 * 0.01 / math.sqrt(2 * len(noise)))
    n = min(map(len, added))
    assert abs(float(torch.corrcoef(torch.stack([noise[:n] for noise in added]))[0, 1:].abs().max())) < 5 / math.sqrt(n)


def test_shrink_and_perturb_once_a_task(tmp_path: Any) -> None:
    """The weights that the second task begins with are half of those that the first one ended with."""
    kept: dict[int, list[Tensor]] = {}

    class Watched(ShrinkPerturb):
        def stages(self, task: Any) -> Any:
            kept[task.index] = [self.model.backbone[0][1].weight.detach().clone()]
            return super().stages(task)

        def end_task(self, task: Any) -> None:
            kept[task.index].append(self.model.backbone[0][1].weight.detach().clone())

    run(Watched, tmp_path, model="mlp:8", strategy_options={"shrink": 0.5, "noise": 0, "when": "task"})
    for task in range(1, 5):
        assert torch.equal(kept[task][0], kept[task - 1][1] / 2)


def test_l2_init_pulls_each_weight_to_where_it_began(tmp_path: Any) -> None:
    """The penalty is 0.3 times the squared distance, computed here; rows of the head begin when they are added."""
    checked: list[float] = []

    class Watched(L2Init):
        def penalty(self) -> Tensor | None:
            weights = dict(self.model.named_parameters())
            if not checked:
                self.first = {n: w.detach().clone() for n, w in weights.items()}
            for name in ("head.weight", "head.bias"):
                known = self.first[name]
                self.first[name] = torch.cat([known, weights[name].detach()[len(known) :]])
            distance = sum(float((w.detach() - self.first[n]).square().sum()) for n, w in weights.items())
            found = super().penalty()
            assert found is not None
            checked.append(distance)
            assert float(found) == pytest.approx(0.3 * distance, rel=1e-5, abs=1e-9)
            return found

    run(Watched, tmp_path, model="mlp:8", strategy_options={"strength": 0.3})
    assert checked[0] == 0
    assert min(checked[1:]) > 0
    assert len(checked) == 5 * 4


# The measures


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.eye(4), 4.0),
        (torch.ones(5, 3), 1.0),
        (torch.zeros(5, 3), 0.0),
        # Shares of 3/4 and 1/4: exp(0.75 ln(4/3) + 0.25 ln 4).
        (torch.diag(torch.tensor([3.0, 1.0])), math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))),
    ],
)
def test_effective_rank_of_matrices_whose_singular_values_are_known(matrix: Tensor, rank: float) -> None:
    assert effective_rank(matrix) == pytest.approx(rank, abs=1e-6)


def test_what_is_measured_is_that_of_the_network(tmp_path: Any) -> None:
    """Two of the six units have a bias that silences them; all numbers are computed here from the weights."""

    class Silenced(clbench.Strategy):
        traits = clbench.Traits(family="reference")

        def end_task(self, task: Any) -> None:
            norm = torch.cat([p.detach().flatten() for p in self.model.parameters()]).norm()
            self.log("norm", float(norm))
            layer = self.model.backbone[0][1]
            answers = [b.images.flatten(1) @ layer.weight.T + layer.bias for b in self.passes(task.train)]
            self.log("dead", float((torch.cat(answers) <= 0).all(0).float().mean()))

        def begin_run(self) -> None:
            self.norms = [0.0]

        def after_backward(self, batch: Any) -> None:
            gradients = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
            self.norms = [*self.norms, float(torch.cat(gradients).norm())]

        @torch.no_grad()
        def after_step(self, batch: Any) -> None:
            self.model.backbone[0][1].bias[:2] = -100.0
            if self.progress.step == self.progress.steps - 1:
                self.log("gradient", sum(self.norms[-4:]) / 4)

    result = run(Silenced, tmp_path, model="mlp:6", plasticity=True, online_accuracy=True)
    for task in result.recorded.tasks:
        assert task.plasticity["dead_units"] == pytest.approx(task.logged["dead"])
        assert (task.plasticity["dead_units"] or 0) > 1 / 3 - 1e-6
        assert task.plasticity["weight_norm"] == pytest.approx(task.logged["norm"], rel=1e-5)
        assert task.plasticity["gradient_norm"] == pytest.approx(task.logged["gradient"], rel=1e-5)
        assert 1 <= (task.plasticity["effective_rank"] or 0) <= 4


def test_measuring_changes_no_bit_of_the_training(tmp_path: Any) -> None:
    model = "mlp:16-16[batch_norm=true,dropout=0.5]"
    files = []
    for on in (False, True):
        result = clbench.run("split-mnist-5k", "naive", out=tmp_path / str(on), model=model, plasticity=on, **FAST)
        files.append((tmp_path / str(on) / "model.pt").read_bytes())
        assert all(("plasticity" in task) == on for task in result.record["tasks"])
    assert files[0] == files[1]


# The options of the models


def test_crelu_gives_both_parts_of_a_unit_side_by_side() -> None:
    made: Any = build_model("mlp:2[activation=crelu]", (1, 1, 2), 0)
    layer = made.backbone[0][1]
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.zero_()
    assert made.features(torch.tensor([[[[1.0, -2.0]]]])).tolist() == [[1.0, 0.0, 0.0, 2.0]]
    assert made.feature_dim == 4


def test_layer_norm_comes_before_the_activation() -> None:
    """The mean of 1, 3 and 5 is 3 and the deviation sqrt(8/3), so the features are 0, 0 and 2 / sqrt(8/3)."""
    made: Any = build_model("mlp:3[norm=layer]", (1, 1, 1), 0)
    layer = made.backbone[0][1]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([1.0, 3.0, 5.0]))
    assert made.features(torch.zeros(1, 1, 1, 1)).tolist()[0] == pytest.approx([0, 0, 2 / math.sqrt(8 / 3)], abs=1e-5)
    conv: Any = build_model("conv:4-4[norm=layer,activation=crelu]", (1, 8, 8), 0)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in conv.modules())
    assert conv.features(torch.zeros(1, 1, 8, 8)).shape == (1, conv.feature_dim) == (1, 32)
    with pytest.raises(ConfigError, match="batch_norm=true and norm=layer exclude each other"):
        build_model("mlp:3[norm=layer,batch_norm=true]", (1, 1, 1), 0)
