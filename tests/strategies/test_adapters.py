"""Adapters, scale and shift, prompts, aper and ease against numbers that the authors' published code gave.

adapters.npz was made once, outside of this project, on a vision transformer of 2 blocks, 16-wide tokens, 2 heads and
patches of 4 on images of 8 x 8, whose weights, images and inserted parameters come from `numpy.random.RandomState` as
`normals` and `pixels` draw them. For each insertion: features, logits sigma * cos(phi(x), w), cross-entropy, and its
gradients by the inserted parameters, w and sigma, in eval mode (no dropout).

sun-hailong/LAMDA-PILOT at 264745534fc2233f5a50b020e50a3472c47eb756: `parallel` and `sequential` by
backbone/vit_adapter.py, `scaled` by backbone/vit_ssf.py, `prompts` by backbone/vpt.py (deep), `aper` by replace_fc of
models/aper_adapter.py on both networks and the cosine classifier of backbone/linears.py.
sun-hailong/CVPR24-Ease at 6d67508ed8b7c4d23350ed4eb28c123914b40ae3: `ease` by replace_fc of models/ease.py, which
completes the prototypes, and forward_reweight of backbone/linears.py after each of three tasks of 3, 2 and 2 classes.
sun-hailong/AAAI25-MOS at 8d5e07c1535176ca2fa0c36881f6fd630418ccbc: `mos_merged` by adapter_merge of
backbone/vit_mos.py, the third set of adapters with the two before it; `mos_scores` by _eval_cnn of models/mos.py,
without the merging in tests, on the prototypes that its replace_fc gave; `mos_orthogonality` by its orth_loss on 3
means and 5 features.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clbench
from clbench.config.errors import ConfigError
from clbench.learning.strategy import Progress
from clbench.models import build_model, inserted
from clbench.models.inserted import DeepPrompts, ParallelAdapters, ScaleShift, SequentialAdapters
from clbench.scenarios import dataset_from_arrays, split
from clbench.strategies._adapted import cosines
from clbench.strategies.aper import APER
from clbench.strategies.ease import EASE
from clbench.strategies.mos import MOS, orthogonality
from clbench.strategies.ranpac import RanPAC
from clbench.strategies.simplecil import SimpleCIL

VIT = "vit[width=16,depth=2,heads=2,patch_size=4]"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def theirs():
    return {name: torch.from_numpy(value) for name, value in np.load(Path(__file__).with_name("adapters.npz")).items()}


def normals(rng, parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.from_numpy(rng.normal(0, 0.3, tuple(parameter.shape)).astype("float32")))


def pixels(rng, n):
    return torch.from_numpy(rng.randint(0, 256, (n, 3, 8, 8)).astype("uint8"))


@pytest.fixture
def network():
    made = build_model(VIT, (3, 8, 8), 0).eval()
    state = made.backbone.state_dict()
    normals(np.random.RandomState(0), [state[name] for name in sorted(state)])
    for name, value in state.items():
        if "norm" in name and name.endswith("weight"):
            value += 1
    return made


@pytest.fixture
def weights(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    return str(tmp_path / "vit.pt")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("parallel", ParallelAdapters(4, scale=0.1)),
        ("sequential", SequentialAdapters(4, scale=0.5)),
        ("scaled", ScaleShift()),
        ("prompts", DeepPrompts(3)),
    ],
)
def test_features_loss_and_gradients_are_those_of_the_authors_code(network, theirs, name, kind):
    rng = np.random.RandomState(1)
    images, labels = pixels(rng, 6) / 255, torch.tensor([0, 1, 2, 0, 1, 2])
    rows, sigma = nn.Parameter(torch.empty(3, 16)), nn.Parameter(torch.tensor([1.5]))
    normals(rng, [rows])
    torch.testing.assert_close(network.features(images), theirs["bare_features"], **CLOSE)
    put_in = inserted.insert(network, kind)
    normals(np.random.RandomState(2), put_in)
    if name == "prompts":
        stacked = torch.empty(2, 3, 16)
        normals(np.random.RandomState(2), [stacked])
        for parameter, value in zip(put_in, stacked, strict=True):
            parameter.data.copy_(value)
    if name == "scaled":
        for scale in put_in[::2]:
            scale.data += 1
    features = network.features(images)
    logits = sigma * cosines(features, rows)
    loss = F.cross_entropy(logits, labels)
    gradients = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*put_in, rows, sigma])])
    for what, value in (("features", features), ("logits", logits), ("loss", loss), ("gradients", gradients)):
        torch.testing.assert_close(value, theirs[f"{name}_{what}"], **CLOSE)


def untrained(strategy, seeds):
    """The strategy with the inserted numbers of the authors' run in the place of training."""

    class Untrained(strategy):
        def stages(self, task):
            super().stages(task)
            if task.index < len(seeds):
                normals(np.random.RandomState(seeds[task.index]), inserted.parameters(self.model, task.index))
            return []

        def end_task(self, task):
            super().end_task(task)
            with torch.no_grad():
                self.all_scores = [
                    *getattr(self, "all_scores", []),
                    self.scores(pixels(np.random.RandomState(3), 6) / 255),
                ]
            Untrained.last = self

    Untrained.__name__ = strategy.__name__
    return Untrained


def scenario_of(parts, task_sizes):
    images = torch.cat([images for images, _ in parts]).numpy()
    labels = torch.cat([labels for _, labels in parts]).numpy()
    test = pixels(np.random.RandomState(99), sum(task_sizes)).numpy()
    return split(dataset_from_arrays(images, labels, test, np.arange(sum(task_sizes))), task_sizes=task_sizes)


def test_aper_classifies_as_the_authors_code_does(theirs, weights, tmp_path):
    """Their scores are cosines; ours are times the length of the features, which orders the classes alike."""
    tasks = scenario_of([(pixels(np.random.RandomState(1), 6), torch.tensor([0, 1, 2, 0, 1, 2]))], [3])
    kept = untrained(APER, [2])
    options = {"model": VIT, "weights": weights, "strategy_options": {"adaptation": "adapter", "size": 4}}
    clbench.run(tasks, kept, out=tmp_path / "run", threads=1, **options)
    torch.testing.assert_close(kept.last.means().float(), theirs["aper_prototypes"], **CLOSE)
    with torch.no_grad():
        length = kept.last.inputs(pixels(np.random.RandomState(3), 6) / 255).norm(dim=1, keepdim=True)
    torch.testing.assert_close(kept.last.all_scores[0] / length, theirs["aper_scores"], **CLOSE)


def test_ease_completes_prototypes_and_weights_subspaces_as_the_authors_code_does(theirs, weights, tmp_path):
    parts, known = [], 0
    for t, n in enumerate([3, 2, 2]):
        parts.append((pixels(np.random.RandomState(20 + t), 4 * n), torch.arange(known, known + n).repeat(4)))
        known += n
    kept = untrained(EASE, [10, 11, 12])
    clbench.run(
        scenario_of(parts, [3, 2, 2]),
        kept,
        out=tmp_path / "run",
        model=VIT,
        weights=weights,
        threads=1,
        strategy_options={"size": 4},
    )
    for t in range(3):
        torch.testing.assert_close(kept.last.all_scores[t], theirs[f"ease_scores_{t}"], **CLOSE)
    directions = torch.cat([F.normalize(part, dim=1) for part in theirs["ease_prototypes_2"].split(16, dim=1)], 1)
    ours = torch.cat([F.normalize(part, dim=1) for part in kept.last.weight], 1)
    torch.testing.assert_close(ours, directions, **CLOSE)


def test_the_loss_of_ease_is_that_of_the_authors_code(theirs, weights, tmp_path):
    """Their second task: cross-entropy of the scaled cosines over the task's two classes alone."""
    images, labels = pixels(np.random.RandomState(21), 8), torch.tensor([3, 4]).repeat(4)
    first = (pixels(np.random.RandomState(20), 12), torch.arange(3).repeat(4))

    class Measured(EASE):
        def stages(self, task):
            super().stages(task)
            if task.index == 1:
                put_in = inserted.parameters(self.model, 1)
                normals(np.random.RandomState(11), put_in)
                rng = np.random.RandomState(1)
                pixels(rng, 6)
                rows = torch.empty(3, 16)
                normals(rng, [rows])
                head = self.model.head.weight
                head.data[3:] = rows[:2]
                self.sigma.data.fill_(1.5)
                self.model.eval()
                (batch,) = self.passes(task.train)
                loss = self.loss(batch)["classification"]
                gradients = torch.autograd.grad(loss, [*put_in, head, self.sigma])
                Measured.found = loss.detach(), [*gradients[:-2], gradients[-2][3:], gradients[-1]], gradients[-2][:3]
            return []

    tasks = scenario_of([first, (images, labels)], [3, 2])
    clbench.run(
        tasks, Measured, out=tmp_path / "run", model=VIT, weights=weights, threads=1, strategy_options={"size": 4}
    )
    loss, gradients, of_old = Measured.found
    torch.testing.assert_close(loss, theirs["ease_loss"], **CLOSE)
    torch.testing.assert_close(torch.cat([g.flatten() for g in gradients]), theirs["ease_gradients"], **CLOSE)
    assert not of_old.any()


def mos_in_third_task(network):
    """The strategy with the adapters of three tasks, as the authors' were drawn."""
    strategy = MOS(size=4)
    strategy.model = network
    strategy._context = SimpleNamespace(progress=Progress(task=2, stage="train"))
    for seed in (30, 31, 32):
        normals(np.random.RandomState(seed), inserted.insert(network, ParallelAdapters(4)))
    return strategy


def test_mos_merges_adapters_as_the_authors_code_does(network, theirs):
    strategy = mos_in_third_task(network)
    earlier = [p.clone() for k in (0, 1) for p in inserted.parameters(network, k)]
    strategy.after_step(None)
    merged = torch.cat([p.detach().flatten() for p in inserted.parameters(network, 2)])
    torch.testing.assert_close(merged, theirs["mos_merged"], **CLOSE)
    assert all(map(torch.equal, earlier, [p for k in (0, 1) for p in inserted.parameters(network, k)]))


def test_mos_keeps_features_apart_as_the_authors_code_does(theirs):
    vectors = [torch.empty(3, 16), torch.empty(5, 16)]
    rng = np.random.RandomState(42)
    for rows in vectors:
        rows.copy_(torch.from_numpy(rng.normal(0, 1, tuple(rows.shape)).astype("float32")))
    vectors[1].requires_grad_()
    loss = 0.1 * orthogonality(torch.cat(vectors))
    torch.testing.assert_close(loss, theirs["mos_orthogonality"], **CLOSE)
    (gradient,) = torch.autograd.grad(loss, vectors[1])
    torch.testing.assert_close(gradient, theirs["mos_orthogonality_gradient"], **CLOSE)


def test_mos_retrieves_adapters_as_the_authors_code_does(theirs, weights, tmp_path):
    """Forty images, of which some change their task more than once."""
    parts, known = [], 0
    for t, n in enumerate([3, 2, 2]):
        parts.append((pixels(np.random.RandomState(20 + t), 4 * n), torch.arange(known, known + n).repeat(4)))
        known += n

    class Untrained(MOS):
        def stages(self, task):
            normals(np.random.RandomState(30 + task.index), inserted.parameters(self.model, task.index))
            return []

        def end_task(self, task):
            self._observe(task)
            if task.index == 2:
                rng = np.random.RandomState(40)
                normals(rng, self.model.head.parameters())
                with torch.no_grad():
                    Untrained.found = self.scores(pixels(np.random.RandomState(41), 40) / 255)

    options = {"model": VIT, "weights": weights, "threads": 1, "strategy_options": {"size": 4}}
    clbench.run(scenario_of(parts, [3, 2, 2]), Untrained, out=tmp_path / "run", **options)
    torch.testing.assert_close(Untrained.found, theirs["mos_scores"], **CLOSE)


SMALL = {"model": "vit[width=16,depth=2,heads=2,patch_size=14]", "limit": 10, "epochs": 2, "threads": 1, "tasks": 2}
SMALL |= {"optimizer": "adam", "lr": 0.01}


@pytest.mark.parametrize("strategy", [APER, RanPAC])
@pytest.mark.parametrize("adaptation", ["fine-tuning", "adapter", "scale-shift", "prompts"])
def test_the_first_session_trains_what_it_adapts_and_nothing_after_it(strategy, adaptation, tmp_path):
    """With given weights; the untrained network stands for them."""
    given = build_model(SMALL["model"], (1, 28, 28), 5)
    torch.save(given.state_dict(), tmp_path / "vit.pt")
    states = []

    class Kept(strategy):
        def end_task(self, task):
            super().end_task(task)
            states.append({name: value.clone() for name, value in self.model.backbone.state_dict().items()})

    Kept.__name__ = strategy.__name__
    # The paper's 10,000 projections take half a minute.
    few = {"projections": 50} if strategy is RanPAC else {}
    options = {"strategy_options": {"adaptation": adaptation, **few}, "weights": str(tmp_path / "vit.pt")}
    clbench.run("split-mnist-5k", Kept, out=tmp_path / "run", **SMALL, **options)
    own = {f"backbone.{name.replace('.layer', '')}": v for name, v in states[0].items() if ".parts." not in name}
    moved = {name for name, value in own.items() if not torch.equal(given.state_dict()[name], value)}
    assert len(moved) == (len(own) if adaptation == "fine-tuning" else 0)
    assert any(".parts." in name for name in states[0]) == (adaptation != "fine-tuning")
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_aper_without_adaptation_decides_as_simplecil(weights, tmp_path):
    """The two halves are the same features where nothing was trained, and so is the cosine."""
    rng = np.random.RandomState(7)
    tasks = scenario_of([(pixels(rng, 24), torch.arange(4).repeat(6))], [2, 2])
    adapted = untrained(APER, [])
    options = {"model": VIT, "weights": weights, "threads": 1}
    one = clbench.run(tasks, adapted, out=tmp_path / "aper", **options)
    other = clbench.run(tasks, SimpleCIL, out=tmp_path / "simplecil", **options)
    np.testing.assert_array_equal(one.accuracy, other.accuracy)


@pytest.mark.parametrize(
    ("strategy", "options", "said"),
    [
        (
            "aper[adaptation=adapter]",
            {"model": "mlp:8"},
            "adapters can't be put into a network of the class Sequential",
        ),
        ("aper[adaptation=prompts]", {"model": "conv:4-4"}, "prompts can't be put into"),
        ("ranpac[adaptation=adapter]", {"model": "mlp:8"}, "adapters can't be put into"),
        ("aper[adaptation=scale-shift,size=3]", {}, "size=3 given, and adaptation=scale-shift has none"),
        ("ranpac[size=3]", {}, "size=3 given, and adaptation=none has none"),
        ("aper[adaptation=fine-tuning]", {"train": "head"}, "train=all and train=last-N are accepted"),
        ("ease", {"model": "conv:4-4"}, "ease works on vision transformers of timm"),
        ("ease", {"loss_outputs": "all", "head": "full", "model": "vit"}, "'seen' and 'new' are accepted"),
        ("ease", {"setting": "domain"}, "ease can't work in a domain-incremental scenario"),
    ],
)
def test_what_can_not_work_is_refused_before_training(strategy, options, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        clbench.run("split-mnist-5k", strategy, out=tmp_path / "run", limit=5, epochs=1, **options)
