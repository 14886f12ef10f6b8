"""Classifiers on frozen features against numpy and scikit-learn on the same features; the reference strategies."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional as F

import clbench
from clbench.config.errors import ConfigError
from clbench.running.resolve import resolve
from clbench.scenarios import dataset_from_arrays, split
from clbench.strategies._frozen import solved
from clbench.strategies.cumulative import Cumulative
from clbench.strategies.fecam import FeCAM
from clbench.strategies.fetril import FeTrIL
from clbench.strategies.frozen_ncm import FrozenNCM
from clbench.strategies.independent import Independent
from clbench.strategies.joint import Joint
from clbench.strategies.naive import Naive
from clbench.strategies.randumb import RanDumb
from clbench.strategies.ranpac import RIDGES, RanPAC
from clbench.strategies.simplecil import SimpleCIL
from clbench.strategies.slda import SLDA

FROZEN = [FrozenNCM, SimpleCIL, SLDA, RanPAC, FeCAM, FeTrIL]
BATCH_NORM = "mlp[widths=[16],batch_norm=true]"


def dataset(counts, noise=90):
    """Noisy copies of one random 6 x 6 picture for each class; `counts` training images of each."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (len(counts), 6, 6))

    def draw(counts):
        y = np.repeat(np.arange(len(counts)), counts)
        return np.clip(pictures[y] + rng.normal(0, noise, (len(y), 6, 6)), 0, 255).astype(np.uint8), y

    return dataset_from_arrays(*draw(counts), *draw([8] * len(counts)))


def scenario(sizes, setting="class", counts=None, **options):
    return split(dataset(counts or [20] * sum(sizes)), task_sizes=sizes, setting=setting, **options)


def run(strategy, tasks, out, **options):
    """Run a strategy; return the result and the strategy as the run left it."""

    class Kept(strategy):
        def end_task(self, task):
            super().end_task(task)
            Kept.last = self

    options = {"model": BATCH_NORM, "epochs": 2, "batch_size": 8, "optimizer": "adam", "lr": 0.01} | options
    Kept.__name__ = strategy.__name__
    result = clbench.run(tasks, Kept, out=out, threads=1, normalize="none", **options)
    return result, Kept.last


@torch.no_grad()
def features(strategy, split_of_images):
    """Features [N, d] in float64, and head outputs, of one split of the scenario."""
    strategy.model.eval()
    images = split_of_images.images.float() / 255
    return strategy.model.features(images).double().numpy(), split_of_images.labels.numpy()


@torch.no_grad()
def scores(strategy, tasks):
    return strategy.scores(tasks.test.images.float() / 255).double().numpy()


# Classifiers by numpy and scikit-learn; unequal classes in unequal tasks.

COUNTS = [30, 12, 25, 9, 18, 22]


@pytest.fixture
def tasks():
    return scenario([3, 2, 1], counts=COUNTS)


def test_ncm_against_numpy(tasks, tmp_path):
    """The class whose mean is nearest in Euclidean distance, by explicit distances."""
    result, strategy = run(FrozenNCM, tasks, tmp_path)
    x, y = features(strategy, tasks.train)
    test, labels = features(strategy, tasks.test)
    means = np.stack([x[y == c].mean(0) for c in range(6)])
    distances = np.linalg.norm(test[:, None] - means, axis=2)
    np.testing.assert_array_equal(scores(strategy, tasks).argmax(1), distances.argmin(1))
    right = distances.argmin(1) == labels
    expected = [right[np.isin(labels, group)].mean() for group in ([0, 1, 2], [3, 4], [5])]
    np.testing.assert_allclose(result.accuracy[-1], expected)


def test_simplecil_against_numpy(tasks, tmp_path):
    """The largest cosine between a feature and the mean of a class's features; the scores are |phi| times it."""
    _, strategy = run(SimpleCIL, tasks, tmp_path)
    x, y = features(strategy, tasks.train)
    test, _ = features(strategy, tasks.test)
    prototypes = np.stack([x[y == c].mean(0) for c in range(6)])
    cosines = test @ prototypes.T / np.linalg.norm(prototypes, axis=1) / np.linalg.norm(test, axis=1)[:, None]
    found = scores(strategy, tasks)
    np.testing.assert_allclose(found / np.linalg.norm(test, axis=1)[:, None], cosines, rtol=1e-4, atol=1e-6)


class Shrunk(BaseEstimator):
    """The covariance estimator of scikit-learn's protocol with the paper's target, the identity."""

    def __init__(self, shrinkage):
        self.shrinkage = shrinkage

    def fit(self, x):
        covariance = np.cov(x.T, bias=True)
        self.covariance_ = (1 - self.shrinkage) * covariance + self.shrinkage * np.eye(len(covariance))
        return self


@pytest.mark.parametrize("shrinkage", [1e-4, 0.1])
def test_slda_against_scikit_learn(tasks, shrinkage, tmp_path):
    """With the class priors, which SLDA does not have, taken out of scikit-learn's decision function."""
    _, strategy = run(SLDA, tasks, tmp_path, strategy_options={"shrinkage": shrinkage})
    x, y = features(strategy, tasks.train)
    test, _ = features(strategy, tasks.test)
    found = scores(strategy, tasks)
    lsqr = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Shrunk(shrinkage)).fit(x, y)
    expected = lsqr.decision_function(test) - np.log(lsqr.priors_)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    eigen = LinearDiscriminantAnalysis(solver="eigen", covariance_estimator=Shrunk(shrinkage)).fit(x, y)
    decision = eigen.decision_function(test) - np.log(eigen.priors_)
    np.testing.assert_array_equal(found.argmax(1), decision.argmax(1))


def test_slda_decides_as_scikit_learn_does_where_classes_are_equally_frequent(tmp_path):
    """No priors to take out: predict() itself, in both solvers."""
    tasks = scenario([2, 2, 2])
    _, strategy = run(SLDA, tasks, tmp_path)
    x, y = features(strategy, tasks.train)
    test, _ = features(strategy, tasks.test)
    for solver in ("lsqr", "eigen"):
        reference = LinearDiscriminantAnalysis(solver=solver, covariance_estimator=Shrunk(1e-4)).fit(x, y)
        np.testing.assert_array_equal(scores(strategy, tasks).argmax(1), reference.predict(test))


def test_ranpac_against_a_ridge_regression_on_all_data_at_once(tasks, tmp_path):
    """W = (H^T H + ridge I)^-1 H^T Y over the samples of all tasks, in numpy."""
    _, strategy = run(RanPAC, tasks, tmp_path, strategy_options={"projections": 50, "ridge": 3.0})
    projection = strategy.projection.double().numpy()
    x, y = features(strategy, tasks.train)
    test, _ = features(strategy, tasks.test)
    h = np.maximum(x @ projection, 0)
    weight = np.linalg.inv(h.T @ h + 3.0 * np.eye(50)) @ h.T @ np.eye(6)[y]
    np.testing.assert_allclose(scores(strategy, tasks), np.maximum(test @ projection, 0) @ weight, atol=1e-3)
    assert abs(projection.mean()) < 4 / np.sqrt(projection.size)
    assert projection.std() == pytest.approx(1, abs=4 / np.sqrt(2 * projection.size))


@pytest.mark.parametrize(("noise", "projections"), [(30, 40), (120, 40), (120, 60)])
def test_ranpac_chooses_the_ridge_by_a_fifth_of_the_task(noise, projections, tmp_path):
    """Against one np.linalg.solve for each candidate, on the same division of the samples: 48 to fit, 12 to choose."""
    chosen = []

    class Watched(RanPAC):
        def rng(self, name):
            return torch.Generator().manual_seed(7) if name == "ridge" else super().rng(name)

        def end_task(self, task):
            super().end_task(task)
            chosen.append((self.chosen_ridge, task.train.ids))

    tasks = split(dataset([20] * 6, noise), task_sizes=[3, 3])
    _, strategy = run(Watched, tasks, tmp_path, strategy_options={"projections": projections})
    x, y = features(strategy, tasks.train)
    h = np.maximum(x @ strategy.projection.double().numpy(), 0)
    for ridge, ids in chosen:
        order = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(7))].numpy()
        a, b, targets = h[order[:48]], h[order[48:]], np.eye(6)[y]
        errors = []
        for candidate in RIDGES:
            weight = np.linalg.solve(a.T @ a + candidate * np.eye(projections), a.T @ targets[order[:48]])
            errors.append(((b @ weight - targets[order[48:]]) ** 2).mean())
        assert errors[RIDGES.index(ridge)] <= min(errors) * (1 + 1e-6)


def resolved(name, scenario="split-mnist", **options):
    return resolve(scenario, name, {"device": "cpu", "threads": 1} | options)


def test_defaults_beside_given_weights_come_after_presets_and_change_no_other_run(tmp_path):
    """10,000 projections are those of the paper of RanPAC; split-mnist-5k has presets of its own for both."""
    (tmp_path / "w.pt").write_bytes(b"weights")
    weights = {"weights": str(tmp_path / "w.pt")}
    for name, option, usual, pretrained, preset in (
        ("ranpac", "projections", 1000, 10_000, 2000),
        ("slda", "shrinkage", 1e-4, None, 1e-4),
    ):
        assert resolved(name).strategy_options[option] == usual
        assert resolved(name).identity() == resolved(f"{name}[{option}={usual}]").identity()
        assert resolved(name, **weights).strategy_options[option] == pretrained
        assert resolved(f"{name}[{option}={usual}]", **weights).strategy_options[option] == usual
        assert resolved(name, **weights).identity() != resolved(f"{name}[{option}={usual}]", **weights).identity()
        for given in ({}, weights):
            assert resolved(name, "split-mnist-5k", **given).strategy_options[option] == preset


def test_slda_shrinks_by_the_number_of_samples(tasks, tmp_path):
    """The mean of the posterior under an inverse Wishart prior worth d samples of the mean variance, up to a factor."""
    _, strategy = run(SLDA, tasks, tmp_path, strategy_options={"shrinkage": None})
    x, y = features(strategy, tasks.train)
    test, _ = features(strategy, tasks.test)
    means = np.stack([x[y == c].mean(0) for c in range(6)])
    within, (n, d) = x - means[y], x.shape
    scatter = within.T @ within
    # (prior scatter + scatter) is, up to a factor, Sigma * (n - K) + d * mean variance * I.
    posterior = scatter / n * (n - 6) + d * np.trace(scatter / n) / d * np.eye(d)
    weight = np.linalg.solve(posterior, means.T).T
    expected = test @ weight.T - (weight * means).sum(1) / 2
    found = scores(strategy, tasks)
    scale = np.linalg.lstsq(expected.reshape(-1, 1), found.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(found, expected * scale, rtol=1e-3, atol=1e-4 * np.abs(found).max())


def test_randumb_asks_no_network(tmp_path):
    """Other networks, seeds of which draw other weights, change nothing; weights have no use."""
    tasks = scenario([2, 2])
    found = [
        run(RanDumb, tasks, tmp_path / model, model=model, strategy_options={"projections": 30})
        for model in ("mlp:4", "mlp:9-3")
    ]
    assert [task["steps"] for task in found[0][0].record["tasks"]] == [0, 0]
    assert found[0][0].record["strategy"]["features"] is None
    np.testing.assert_array_equal(scores(found[0][1], tasks), scores(found[1][1], tasks))
    (tmp_path / "w.pt").write_bytes(b"weights")
    for options in ({"weights": str(tmp_path / "w.pt")}, {"compile": "default"}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}=.* given"):
            run(RanDumb, tasks, tmp_path / "refused", **options)


@pytest.mark.parametrize(("eigenvalues", "ridge"), [([3.0, 2, 1], 1.0), ([1e9, 1, 1e-3], 1e-3), ([3.0, 2, -1], 1.0)])
def test_a_symmetric_system_is_solved_also_where_an_eigenvalue_is_below_0(eigenvalues, ridge):
    """Against the inverse by the eigenvectors that the matrix was made of; the last one has no Cholesky factor."""
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    matrix, right = vectors * eigenvalues @ vectors.T, np.arange(6.0).reshape(3, 2)
    found = solved(torch.tensor(matrix), ridge, torch.tensor(right)).numpy()
    np.testing.assert_allclose(found, vectors / eigenvalues @ vectors.T @ right, rtol=1e-3)


# Shared behaviour


def backbone(strategy):
    return {name: value.clone() for name, value in strategy.model.state_dict().items() if not name.startswith("head.")}


@pytest.mark.parametrize("strategy", FROZEN)
def test_the_backbone_trains_on_the_first_task_only(strategy, tasks, tmp_path):
    """Batch-norm statistics included; without weights the first task is a naive run."""
    after = []

    class Watched(strategy):
        def end_task(self, task):
            super().end_task(task)
            after.append(backbone(self))

    options = {"projections": 30} if strategy is RanPAC else {}
    result, _ = run(Watched, tasks, tmp_path / "frozen", strategy_options=options)
    assert [task["steps"] for task in result.record["tasks"]] == [18, 0, 0]
    first = split(dataset(COUNTS), class_order=[0, 1, 2], tasks=1)
    _, naive = run(Naive, first, tmp_path / "naive")
    for state in after:
        assert all(torch.equal(value, state[name]) for name, value in backbone(naive).items())


@pytest.mark.parametrize("strategy", [s for s in FROZEN if s is not FeTrIL])
def test_given_weights_are_never_trained_and_the_order_of_the_classes_is_nothing(strategy, tmp_path):
    """On the same frozen features, sums do not care which class or task came first (FeTrIL makes up the earlier)."""
    source = scenario([6])
    _, naive = run(Naive, source, tmp_path / "naive")
    torch.save(naive.model.state_dict(), tmp_path / "weights.pt")
    order, found = [3, 5, 0, 1, 4, 2], []
    for name, tasks in (("one", source), ("six", scenario([1] * 6, class_order=order))):
        options = {"ridge": 1.0, "projections": 30} if strategy is RanPAC else {}
        result, kept = run(
            strategy, tasks, tmp_path / name, weights=str(tmp_path / "weights.pt"), strategy_options=options
        )
        assert not result.record["training"]
        assert all(torch.equal(value, backbone(naive)[name]) for name, value in backbone(kept).items())
        found.append(scores(kept, tasks))
    np.testing.assert_allclose(found[0][:, order], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "setting"), [([4, 3, 3], "class"), ([4, 3, 3], "task"), ([1, 1, 1], "class"), ([2, 2, 2], "domain")]
)
@pytest.mark.parametrize("strategy", FROZEN)
def test_unequal_tasks_single_classes_and_domains(strategy, sizes, setting, tmp_path):
    """As many scores as outputs; in a domain-incremental scenario an output collects the samples of all tasks."""
    tasks = scenario(sizes, setting)
    options = {"projections": 30} if strategy is RanPAC else {}
    result, kept = run(strategy, tasks, tmp_path, strategy_options=options)
    assert np.isfinite(result.accuracy[np.tril_indices(3)]).all()
    assert scores(kept, tasks).shape == (8 * sum(sizes), tasks.n_outputs)
    assert kept.counts.tolist() == [20.0 * sum(sizes) / tasks.n_outputs] * tasks.n_outputs


@pytest.mark.parametrize("strategy", FROZEN)
def test_outputs_without_samples_never_win_and_guess_among_themselves(strategy, tmp_path):
    """With a full head: a task of two classes that is yet to come has an accuracy of one half, not of 0."""
    options = {"projections": 30} if strategy is RanPAC else {}
    result, _ = run(strategy, scenario([2, 2]), tmp_path, head="full", loss_outputs="all", strategy_options=options)
    assert result.task_aware_accuracy[0, 1] == 0.5
    assert result.accuracy[0, 0] > 0.5


@pytest.mark.parametrize("strategy", [*FROZEN, Cumulative, Independent])
def test_a_memory_is_refused(strategy, tmp_path):
    with pytest.raises(ConfigError, match="no use for a memory"):
        clbench.run(scenario([2, 2], "task"), strategy, out=tmp_path, memory_size=10)


# References


def watched(strategy):
    """A subclass that notes each task's first and last weights and the ids of the samples that it trained on."""

    class Watched(strategy):
        def loss(self, batch):
            if self.progress.step == 0:
                Watched.begun.append(backbone(self))
                Watched.ids.append(set())
            Watched.ids[-1] |= set(batch.ids.tolist())
            return super().loss(batch)

        def end_task(self, task):
            Watched.ended.append(backbone(self))

    Watched.begun, Watched.ended, Watched.ids = [], [], []
    return Watched


def test_cumulative_is_joint_warm_started(tmp_path):
    """Both train on all samples so far: joint from fresh weights, cumulative from those that the step before left."""
    seen = {}
    for strategy in (Joint, Cumulative):
        notes = watched(strategy)
        run(notes, scenario([2, 2, 2]), tmp_path / strategy.__name__)
        assert notes.ids == [set(range(40)), set(range(80)), set(range(120))]
        seen[strategy] = notes.begun, notes.ended

    def same(one, other):
        return all(torch.equal(value, other[name]) for name, value in one.items())

    (fresh, joint), (warm, cumulative) = seen[Joint], seen[Cumulative]
    assert same(joint[0], cumulative[0])
    assert same(warm[1], cumulative[0])
    assert same(warm[2], cumulative[1])
    assert not same(fresh[1], joint[0])
    assert not same(fresh[1], fresh[0])
    assert Cumulative.traits.data_access == "all"


def test_independent_models_are_naive_runs_on_one_task_alone(tmp_path):
    """Bit for bit for the first task; later ones, with another initialisation, within noise of such a run."""
    data, settings = dataset([60] * 6, noise=120), {"setting": "task"}
    result, strategy = run(Independent, split(data, tasks=3, **settings), tmp_path / "all", epochs=5)
    alone = []
    for task in range(3):
        part = split(data, class_order=[2 * task, 2 * task + 1], tasks=1, **settings)
        single, naive = run(Naive, part, tmp_path / str(task), epochs=5)
        alone.append(single.accuracy[0, 0])
        if task == 0:
            first = {name: value.clone() for name, value in naive.model.state_dict().items()}
    assert all(torch.equal(value, first[name]) for name, value in strategy.finished[0].state_dict().items())
    assert result.accuracy[0, 0] == alone[0]
    # 16 test images: two of them are 1/8.
    np.testing.assert_allclose(result.accuracy.diagonal(), alone, atol=0.126)


def test_independent_models_know_nothing_of_other_tasks_and_forget_nothing(tmp_path):
    """Task 2 ends with the same bits whatever came before it, and a column of the matrix never changes."""
    data, models = dataset([20] * 6), []
    for name, order in (("one", [0, 1, 2, 3, 4, 5]), ("other", [3, 2, 1, 0, 4, 5])):
        tasks = split(data, class_order=order, tasks=3, setting="task")
        result, strategy = run(Independent, tasks, tmp_path / name)
        models.append(copy.deepcopy(strategy.model.state_dict()))
        for j in range(3):
            assert len(set(result.accuracy[j:, j])) == 1
        assert result.metrics["forgetting"] == 0
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_independent_asks_for_the_task_at_test_time(tmp_path):
    """So it is for task-incremental scenarios and has no class-incremental matrix; a task gets its own model."""
    with pytest.raises(ConfigError, match="can't work in a class-incremental scenario; supported: task"):
        clbench.run(scenario([2, 2]), Independent, out=tmp_path / "class")
    tasks = scenario([2, 3], "task")
    result, strategy = run(Independent, tasks, tmp_path / "task")
    assert result.record["accuracy"]["class_incremental"] is None
    images = torch.randn(4, 1, 6, 6)
    with torch.no_grad():
        strategy.finished.eval()
        strategy.model.eval()
        expected = F.pad(strategy.finished[0](images), (0, 3), value=-torch.inf)
        assert torch.equal(strategy.scores(images, 0), expected)
        assert torch.equal(strategy.scores(images, 1), strategy.model(images))
