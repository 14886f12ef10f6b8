"""PackNet, HAT, PNN and XdG: old tasks keep their scores to the bit; masks, gates and columns against plain numpy."""

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clbench.models import build_model
from clbench.models.blocks import block_outputs, widths
from clbench.strategies.hat import HAT
from clbench.strategies.packnet import FREE, PackNet
from clbench.strategies.pnn import PNN
from clbench.strategies.xdg import XdG

ADAM = {"optimizer": "adam", "lr": 0.01}
SGD = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
# Everything that moves a weight behind a strategy's back: momentum, decay, running statistics, kept optimizer state.
HARSH = {
    "adam": {"model": "mlp:24-16", **ADAM},
    "adamw-keep": {
        "model": "mlp:24-16",
        "optimizer": "adamw",
        "lr": 0.01,
        "weight_decay": 0.1,
        "optimizer_state": "keep",
    },
    "sgd-batch-norm": {"model": "mlp:24-16[batch_norm=true,dropout=0.2]", **SGD},
    "sgd-full-head": {"model": "mlp:24-16[batch_norm=true]", "head": "full", **SGD},
    "conv": {"model": "conv:6-6", **SGD},
}


@pytest.fixture
def watched(run, cut):
    """Run a strategy in the task setting; return what `look(strategy, task)` gave after each task, and the result."""

    def done(strategy, look, sizes=(4, 3, 3), limit=20, **options):
        seen = []

        class Watched(strategy):
            def end_task(self, task):
                super().end_task(task)
                for module in (self.model, *vars(self).values()):
                    if isinstance(module, torch.nn.Module):
                        module.eval()
                with torch.no_grad():
                    seen.append(look(self, task.index))

        Watched.__name__ = strategy.__name__
        options = {"epochs": 3} | ADAM | options
        result = run(Watched, cut(task_sizes=list(sizes), setting="task", limit=limit), **options)
        return seen, result

    return done


def old_scores(strategy, after):
    """The scores of every test image under each task so far, at the outputs of that task."""
    tasks = strategy._context.scenario.tasks[: after + 1]
    images = strategy.normalize(strategy._context.scenario.test.images)
    return [strategy.scores(images, t.index)[:, t.outputs].clone() for t in tasks]


def state(strategy, after):
    return copy.deepcopy(strategy.model.state_dict())


@pytest.mark.parametrize("training", HARSH)
@pytest.mark.parametrize("strategy", [PackNet, PNN])
def test_scores_of_old_tasks_stay_to_the_bit(strategy, training, watched):
    """The promise of both papers: nothing that an earlier task uses ever changes."""
    seen, result = watched(strategy, old_scores, **HARSH[training])
    for first in range(3):
        for later in range(first + 1, 3):
            assert torch.equal(seen[first][first], seen[later][first]), f"task {first} after task {later}"
    assert result.record["metrics"]["forgetting"] == 0
    # The frozen weights have to have learnt something: chance is 1/4, 1/3 and 1/3.
    assert min(result.record["accuracy"]["task_aware"][i][i] for i in range(3)) > 0.45


def test_the_test_above_can_fail(watched):
    """XdG protects nothing: with no unit switched off, all tasks share all weights, and old scores move."""
    seen, _ = watched(XdG, old_scores, strategy_options={"inactive": 0.0}, **HARSH["adam"])
    assert not torch.allclose(seen[0][0], seen[2][0], atol=0.1)


@pytest.mark.parametrize("strategy", [HAT, PNN])
def test_networks_that_are_no_chain_are_refused_by_name(strategy, run, cut, refused):
    with refused(strategy.__name__, "resnet32", "mlp and conv"):
        run(strategy, cut(setting="task"), model="resnet32")


@pytest.mark.parametrize("strategy", [PackNet, HAT, PNN, XdG])
def test_only_the_task_setting_and_no_memory(strategy, run, cut, refused):
    with refused(strategy.__name__, "class-incremental"):
        run(strategy, cut())
    with refused(strategy.__name__, "memory"):
        run(strategy, cut(setting="task"), memory_size=20)


# PackNet


def test_packnet_prunes_the_declared_share_by_magnitude_in_each_layer(run, cut):
    """numpy's argsort on the weights just before pruning picks the same, round(share * n) of n free entries."""
    checked = []

    class Watched(PackNet):
        def _prune(self):
            before = {n: (w.detach().numpy().copy(), self.owner[n].numpy().copy()) for n, w in self._weights().items()}
            super()._prune()
            for name, (weight, owner) in before.items():
                free = np.flatnonzero(owner == FREE)
                n = round(0.6 * len(free))
                pruned = free[np.argsort(np.abs(weight.ravel()[free]), kind="stable")[:n]]
                expected = owner.copy().ravel()
                expected[free] = self.progress.task
                expected[pruned] = FREE
                assert np.array_equal(self.owner[name].numpy().ravel(), expected), name
                now = self._weights()[name].detach().numpy().ravel()
                assert not now[pruned].any()
                kept = np.setdiff1d(np.arange(now.size), pruned)
                assert np.array_equal(now[kept], weight.ravel()[kept])
                checked.append((self.progress.task, name, len(free), n))

    run(Watched, cut(task_sizes=[4, 3, 3], setting="task"), model="conv:4-6", strategy_options={"prune": 0.6}, **ADAM)
    # By hand: 4*1*9 = 36 and 6*4*9 = 216 weights, of which 0.6 are free again after each task, rounded.
    assert [(free, n) for _, _, free, n in checked] == [(36, 22), (216, 130), (22, 13), (130, 78), (13, 8), (78, 47)]


def test_packnet_freezes_biases_and_batch_norm_after_the_first_task_and_pruned_weights_while_retraining(watched):
    def look(strategy, after):
        free = {n: w[strategy.owner[n] == FREE].clone() for n, w in strategy._weights().items()}
        return copy.deepcopy(strategy.model.state_dict()), free

    seen, _ = watched(PackNet, look, **HARSH["sgd-batch-norm"])
    states, free = zip(*seen, strict=True)
    shared = [n for n in states[0] if not n.startswith("head.") and states[0][n].dim() < 2]
    assert any("running_mean" in n for n in shared)
    assert any("bias" in n for n in shared)
    for later in (1, 2):
        assert all(torch.equal(states[0][n], states[later][n]) for n in shared)
    assert all(len(values) and not values.any() for values in (v for f in free for v in f.values()))
    # Momentum and decay would have moved the weights of the first task; a third of all weights is new in each task.
    assert all(not torch.equal(states[0][n], states[2][n]) for n in states[0] if states[0][n].dim() > 1)


def test_packnet_keeps_to_the_budget_of_the_other_strategies(run, cut):
    """retrain = 1/3: of 9 epochs 6 before the pruning and 3 after it; of 9 iterations likewise."""
    result = run(PackNet, cut(setting="task"), epochs=9)
    stages = [e["stage"] for e in result.record["training"] if e["task"] == 1]
    assert stages == ["train"] * 6 + ["retrain"] * 3
    result = run(PackNet, cut(setting="task"), epochs=None, iterations=9)
    assert [t["steps"] for t in result.record["tasks"]] == [9] * 5


# HAT


class Observed(HAT):
    """Notes of each step: the schedule, the weights around it, and what autograd says of the same network by hand."""

    def loss(self, batch):
        task = self.progress.task
        terms = super().loss(batch)
        names = dict(self.model.named_parameters())
        leaves = {n: p.detach().clone().requires_grad_() for n, p in names.items()}
        s = self._scale()
        gates = [torch.sigmoid(s * e.detach()).requires_grad_() for e in self.embedding.values()]
        x = batch.images.flatten(1)
        for i, gate in enumerate(gates):
            x = (
                torch.relu(
                    x @ leaves[f"backbone.{i}.{int(i == 0)}.weight"].T + leaves[f"backbone.{i}.{int(i == 0)}.bias"]
                )
                * gate
            )
        logits = (x @ leaves["head.weight"].T + leaves["head.bias"])[:, batch.active]
        free = [1 - u for u in self.used]
        reg = sum((a * f).sum() for a, f in zip(gates, free, strict=True)) / sum(f.sum() for f in free)
        total = F.cross_entropy(logits, batch.labels - batch.active.start) + self.sparsity * reg
        wanted = torch.autograd.grad(total, [*leaves.values(), *gates])
        self._note = {
            "task": task, "s": s, "loss": float(sum(terms.values()).detach()), "reference": float(total.detach()),
            "before": {n: p.detach().clone() for n, p in names.items()},
            "gradients": dict(zip(leaves, wanted, strict=False)), "by_gate": wanted[len(leaves):],
            "e": [e.detach().clone() for e in self.embedding.values()], "used": [u.clone() for u in self.used],
        }  # fmt: skip
        return terms

    def after_backward(self, batch):
        super().after_backward(batch)
        self._note["e_gradient"] = [e.grad.clone() for e in self.embedding.values()]

    def after_step(self, batch):
        super().after_step(batch)
        self._note["after"] = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self._note["rate"] = self.progress.learning_rate
        self.notes.append(self._note)
        self._note = None


@pytest.fixture
def observed(run, cut):
    def done(**options):
        class HAT(Observed):
            """A run goes by the class's name."""

            notes: ClassVar[list[dict[str, object]]] = []

        options = {"model": "mlp:10-8", "epochs": 2, "strategy_options": {"smax": 8.0}} | options
        result = run(HAT, cut(task_sizes=[4, 3, 3], setting="task"), **options)
        return HAT.notes, result

    return done


def test_hat_raises_s_in_each_epoch_from_one_over_smax_to_smax(observed):
    """4 classes of 10 images in batches of 8: 5 steps, s linear over them, and the same in the next epoch."""
    notes, _ = observed(strategy_options={"smax": 400.0})
    s = [note["s"] for note in notes if note["task"] == 0]
    assert s == pytest.approx([*np.linspace(1 / 400, 400, 5), *np.linspace(1 / 400, 400, 5)])


def test_hat_takes_the_largest_s_where_an_epoch_is_one_batch(observed):
    notes, _ = observed(batch_size=64)
    assert {note["s"] for note in notes} == {8.0}


def test_hat_loss_is_cross_entropy_plus_the_share_of_free_units_taken(observed):
    """Against the network and the paper's regulariser written out by hand, with autograd's gradients."""
    notes, _ = observed()
    for note in notes:
        assert note["loss"] == pytest.approx(note["reference"], rel=1e-5)


def test_hat_masks_the_step_of_weights_between_used_units(observed):
    """Plain SGD: step = -rate * (1 - min(a_i, a_j)) * gradient, the mask by a double loop; images have a_j = 1."""
    notes, _ = observed(optimizer="sgd", lr=0.1)
    masked = 0
    for note in notes[::3]:
        a1, a2 = (u.numpy() for u in note["used"])
        masks = {
            "backbone.0.1.weight": np.repeat(a1[:, None], 784, 1),
            "backbone.1.0.weight": np.array([[min(i, j) for j in a1] for i in a2]),
            "backbone.0.1.bias": a1,
            "backbone.1.0.bias": a2,
        }
        for name, mask in masks.items():
            step = (note["after"][name] - note["before"][name]).numpy()
            wanted = -note["rate"] * (1 - mask) * note["gradients"][name].numpy()
            np.testing.assert_allclose(step, wanted, atol=1e-6)
            masked += int((mask > 0.1).sum())
    assert masked > 100


def test_hat_compensates_the_gradient_of_the_embedding(observed):
    """d sigmoid(s e)/de = s sigmoid'(s e), so the compensated gradient is smax sigmoid'(e) dL/da: no cosh in it."""
    notes, _ = observed(strategy_options={"smax": 4.0, "sparsity": 0.5})
    compared = 0
    for note in notes:
        for e, gradient, by_gate in zip(note["e"], note["e_gradient"], note["by_gate"], strict=True):
            wanted = 4.0 * torch.sigmoid(e) * torch.sigmoid(-e) * by_gate
            # Where s e is large, sigmoid(s e) is rounded to 0 or 1 and autograd has no gradient to compensate.
            clear = (note["s"] * e).abs() < 5
            torch.testing.assert_close(gradient[clear], wanted[clear], rtol=0.02, atol=1e-7)
            compared += int(clear.sum())
    assert compared > 300


def test_hat_keeps_embeddings_within_six(watched):
    def look(strategy, after):
        return None

    class Wild(HAT):
        def after_backward(self, batch):
            super().after_backward(batch)
            for e in self.embedding.values():
                e.grad.fill_(-1e6)

        def after_step(self, batch):
            super().after_step(batch)
            assert all(torch.equal(e, torch.full_like(e, 6.0)) for e in self.embedding.values())

    watched(Wild, look, **HARSH["sgd-batch-norm"])


@pytest.mark.parametrize("training", ["adam", "adamw-keep", "sgd-batch-norm", "conv"])
def test_hat_weights_between_used_units_do_not_move(training, watched):
    """smax = 400 makes nearly all gates 0 or 1; between units of gate 1 no optimizer moves a weight, nor batch norm."""

    def look(strategy, after):
        used = [u.clone() for u in strategy.used]
        return copy.deepcopy(strategy.model.state_dict()), used, old_scores(strategy, after)

    seen, _ = watched(HAT, look, **HARSH[training])
    first, used, scores = seen[0]
    last = seen[2][0]
    weights = [n for n in first if first[n].dim() > 1 and not n.startswith("head.")]
    below = None
    for name, gate in zip(weights, used, strict=True):
        fixed = (gate == 1).view(-1, *[1] * (first[name].dim() - 1)).expand_as(first[name])
        if below is not None:
            fixed = fixed & (below == 1).view(1, -1, *[1] * (first[name].dim() - 2))
        assert fixed.any()
        assert torch.equal(first[name][fixed], last[name][fixed]), name
        assert not torch.equal(first[name][~fixed], last[name][~fixed])
        below = gate
    normed = [n for n in first if "running" in n]
    assert all(torch.equal(first[n], last[n]) for n in normed)
    # The gates that are neither 0 nor 1 let scores move a little.
    spread = scores[0].std()
    assert (seen[2][2][0] - scores[0]).abs().max() < 0.2 * spread


# XdG


def test_xdg_switches_off_the_share_in_each_layer_the_same_at_any_time(watched):
    """int(0.7 * 24) = 16 of 24 units and int(0.7 * 16) = 11 of 16, other ones for each task and seed."""

    def look(strategy, after):
        return [torch.stack([strategy.gates(t)[layer] for t in range(3)]) for layer in (0, 1)]

    options = {"strategy_options": {"inactive": 0.7}, **HARSH["adam"]}
    seen, _ = watched(XdG, look, **options)
    other, _ = watched(XdG, look, seed=1, **options)
    for layer, off in enumerate([16, 11]):
        gates = seen[0][layer]
        assert set(gates.unique().tolist()) == {0.0, 1.0}
        assert (gates == 0).sum(1).tolist() == [off] * 3
        assert all(torch.equal(gates, later[layer]) for later in seen)
        assert len({tuple(g.tolist()) for g in gates}) == 3
        assert not torch.equal(gates, other[0][layer])


def test_xdg_units_that_are_off_neither_speak_nor_learn(watched):
    def look(strategy, after):
        images = strategy.normalize(strategy._context.scenario.test.images[:50])
        gates = strategy.gates(after)
        return gates, block_outputs(strategy.model, images, gates), state(strategy, after)

    seen, _ = watched(XdG, look, **HARSH["adam"])
    (_, _, before), (gates, outputs, after) = seen[:2]
    for index, name in enumerate(["backbone.0.1.weight", "backbone.1.0.weight"]):
        off = gates[index] == 0
        assert not outputs[index][:, off].any()
        assert outputs[index][:, ~off].any()
        assert torch.equal(before[name][off], after[name][off])
        assert not torch.equal(before[name][~off], after[name][~off])


def test_xdg_with_no_unit_switched_off_is_naive_fine_tuning(run, cut):
    tasks = cut(setting="task")
    plain = run("naive", tasks, **ADAM).record["accuracy"]["task_aware"]
    assert run(XdG, tasks, strategy_options={"inactive": 0.0}, **ADAM).record["accuracy"]["task_aware"] == plain
    assert run(XdG, tasks, **ADAM).record["accuracy"]["task_aware"] != plain


def test_gates_of_flattened_maps_go_by_the_map():
    """conv flattens its last maps, [2, 6, 7, 7] to [2, 294]; each of the 6 gates counts for 49 of them."""
    model = build_model("conv:4-6", (1, 28, 28), 0).eval()
    images = torch.rand(2, 1, 28, 28)
    gates = [torch.tensor([1.0, 0, 2, 1]), torch.tensor([1.0, 0, 0.5, 1, 1, 1])]
    first, last = block_outputs(model, images, gates)
    plain = model.blocks()[0](images)
    torch.testing.assert_close(first, plain * gates[0].view(1, 4, 1, 1))
    wanted = model.blocks()[1](first).view(2, 6, 49) * gates[1].view(1, 6, 1)
    torch.testing.assert_close(last, wanted.flatten(1))
    assert widths(model) == [4, 6]
    assert widths(build_model("resnet32", (3, 32, 32), 0)) == [16, 16, 32, 64]


# PNN


def test_pnn_scores_are_those_of_the_paper_written_out(watched):
    """Equation 2 of the paper, column by column, with the strategy's own matrices: two hidden layers, three columns."""

    def look(strategy, after):
        x = strategy.normalize(strategy._context.scenario.test.images[:20]).flatten(1)
        m = {n: p.numpy() for n, p in strategy.model.state_dict().items()}
        c = [{n: p.numpy() for n, p in column.state_dict().items()} for column in strategy.columns]
        h1 = [relu(x.numpy() @ m["backbone.0.1.weight"].T + m["backbone.0.1.bias"])]
        h1 += [relu(x.numpy() @ k["blocks.0.0.1.weight"].T + k["blocks.0.0.1.bias"]) for k in c]
        h2 = [relu(h1[0] @ m["backbone.1.0.weight"].T + m["backbone.1.0.bias"])]
        for k, p in enumerate(c, start=1):
            own = h1[k] @ p["blocks.1.0.0.layer.weight"].T + p["blocks.1.0.0.layer.bias"]
            h2.append(relu(own + lateral(p, "blocks.1.0.0.adapter.", h1[:k])))
        scores = []
        for task in range(after + 1):
            rows = strategy.outputs_of(task)
            logits = h2[task] @ m["head.weight"][rows].T + m["head.bias"][rows]
            scores.append(logits + (lateral(c[task - 1], "adapter.", h2[:task]) if task else 0))
        return scores, [s[:20].numpy() for s in old_scores(strategy, after)], c

    def relu(x):
        return np.maximum(x, 0)

    def lateral(p, name, earlier):
        joined = p[name + "alpha"] * np.concatenate(earlier, 1)
        return relu(joined @ p[name + "v.weight"].T + p[name + "v.bias"]) @ p[name + "u.weight"].T

    seen, _ = watched(PNN, look, **HARSH["adam"])
    wanted, found, columns = seen[2]
    for task in range(3):
        np.testing.assert_allclose(found[task], wanted[task], rtol=1e-4, atol=1e-4)
    # By hand, for hidden layers of 24 and 16 and 3 classes: a column's own, then V, U, alpha of both adapters.
    own = 784 * 24 + 24 + 24 * 16 + 16
    for k, column in enumerate(columns, start=1):
        adapters = (24 * k * 24 + 24 + 24 * 16 + 1) + (16 * k * 16 + 16 + 16 * 3 + 1)
        assert sum(p.size for p in column.values()) == own + adapters


def test_pnn_columns_hear_the_earlier_ones(watched):
    """Without what comes from the side the scores of the second task are others."""

    def look(strategy, after):
        scores = old_scores(strategy, after)[-1]
        for column in strategy.columns:
            column.adapter.alpha.zero_()
        return scores, old_scores(strategy, after)[-1]

    (_, _), (whole, alone) = watched(PNN, look, sizes=(5, 5), **HARSH["conv"])[0]
    assert not torch.allclose(whole, alone, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "forgetting"), [(PackNet, 0.0), (PNN, 0.0), (HAT, 0.005)])
def test_on_5000_digits_tasks_are_learnt_and_kept(strategy, forgetting, tmp_path):
    """With the preset, task-incremental: above 95 %, forgetting nothing (HAT: under half a point)."""
    import clbench

    result = clbench.run("split-mnist-5k", strategy, setting="task", threads=1, out=tmp_path)
    assert result.record["metrics"]["average_accuracy"] > 0.95
    assert abs(result.record["metrics"]["forgetting"]) <= forgetting
