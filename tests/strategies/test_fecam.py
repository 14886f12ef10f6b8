"""FeCAM's distances, in either form that its inverses are kept in, against those by numpy's inverse of N_c itself.

The expected values follow the formulas of the class, with the covariance by numpy.cov of all samples of a class.
"""

import numpy as np
import pytest
import torch
from torch import nn

import clbench
from clbench.scenarios import dataset_from_arrays, split
from clbench.strategies.fecam import FeCAM

WIDTH = 24


class Pixels(clbench.models.Network):
    """The pixels are the features."""

    def __init__(self, image_shape):
        super().__init__([nn.Flatten()], int(np.prod(image_shape)))


def pictures(counts, noise=40, together=20, dark=0, seed=0):
    """Images of 4 x 6 pixels, `counts` of each class around a picture of its own; the first `dark` pixels are black."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (len(counts), WIDTH))
    y = np.repeat(np.arange(len(counts)), counts)
    # Pixels of an image become darker or lighter together, or, below 0, one at the cost of others.
    spread = rng.normal(0, noise, (len(y), WIDTH))
    spread += rng.normal(0, together, (len(y), 1)) if together >= 0 else -spread.mean(1, keepdims=True)
    x = np.clip(centres[y] + spread, 0, 255).astype(np.uint8)
    x[:, :dark] = 0
    return x.reshape(-1, 1, 4, 6), y


def distances(x, y, test, tukey=0.5, alpha1=1.0, alpha2=1.0):
    """Distances [images, classes] by the formula, features float64 [N, M]; the bool is whether alpha2 had to be 0."""

    def transformed(v):
        return np.sign(v) * np.abs(v) ** tukey

    def shrunk(covariance, alpha2):
        outside = covariance[~np.eye(len(covariance), dtype=bool)]
        mean = outside.sum() / max(np.count_nonzero(outside), 1)
        added = np.full_like(covariance, alpha2 * mean)
        np.fill_diagonal(added, alpha1 * covariance.diagonal().mean())
        return covariance + added

    def unit(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    found, fallen_back = [], False
    for c in np.unique(y):
        of_class = x[y == c]
        covariance, correlations = np.cov(transformed(of_class).T, ddof=min(1, len(of_class) - 1)), np.eye(x.shape[1])
        if covariance.trace() > 1e-9:
            twice = shrunk(shrunk(covariance, alpha2), alpha2)
            if np.linalg.eigvalsh(twice)[0] <= 1e-12 * np.linalg.eigvalsh(twice)[-1]:
                twice, fallen_back = shrunk(shrunk(covariance, 0), 0), True
            deviation = np.sqrt(twice.diagonal())
            correlations = twice / np.outer(deviation, deviation)
        d = unit(transformed(test)) - unit(transformed(of_class.mean(0)))
        found.append(np.einsum("id,de,ie->i", d, np.linalg.inv(correlations), d))
    return np.stack(found, 1), fallen_back


KINDS = {
    "far fewer samples than features": (pictures([2, 5, 9, 1]), {}),
    "one sample fewer than features, as many, one more": (pictures([23, 24, 25, 3]), {}),
    "samples that are gathered in parts": (pictures([49, 120, 300, 12]), {}),
    "features that are always 0": (pictures([6, 60, 130, 23], dark=12), {}),
    "all options": (pictures([6, 60, 23, 24]), {"tukey": 0.8, "alpha1": 0.3, "alpha2": 0.2}),
    "a shrinkage that is small": (pictures([6, 60, 23, 24]), {"alpha1": 1e-3, "alpha2": 1e-3}),
    "no shared shrinkage": (pictures([6, 60, 23, 24]), {"alpha2": 0.0}),
    "features of either sign": (pictures([6, 60, 23, 24]), {"normalize": "channel"}),
    "no distance with few samples, one with many": (pictures([6, 300, 23, 24]), {"alpha1": 0.05, "alpha2": 0.6}),
    "covariances below 0 in the mean": (pictures([6, 60, 23, 24], together=-1), {}),
    "equal samples": (pictures([6, 60, 1, 24], noise=0, together=0), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_those_of_the_inverse(kind, tmp_path):
    """In one task and in an output for each class; `gathered in parts` needs more than twice as many as features."""
    (images, y), options = KINDS[kind]
    normalize = options.get("normalize", "none")
    options = {name: value for name, value in options.items() if name != "normalize"}
    test, labels = pictures([5] * 4, seed=1)

    class Kept(FeCAM):
        def end_task(self, task):
            super().end_task(task)
            Kept.last = self

    tasks = split(dataset_from_arrays(images, y, test, labels), tasks=2)
    clbench.run(
        tasks, Kept, model=Pixels, out=tmp_path, threads=1, epochs=1, normalize=normalize, strategy_options=options
    )
    x, given = (Kept.last.normalize(torch.as_tensor(i)) for i in (images, test))
    with torch.no_grad():
        found = -Kept.last.scores(given).double().numpy()
    features = x.flatten(1).double().numpy(), y, given.flatten(1).double().numpy()
    expected, fallen_back = distances(*features, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * expected.max())
    assert fallen_back == kind.startswith("no distance")


def test_the_inverses_of_few_samples_are_kept_as_few_numbers(tmp_path):
    """A class of n samples keeps n rows of features, and n + 1 rows of its inverse; at most as many as features."""

    class Kept(FeCAM):
        def end_task(self, task):
            super().end_task(task)
            Kept.last = self

    tasks = split(dataset_from_arrays(*pictures([3, 100]), *pictures([5, 5], seed=1)), tasks=1)
    clbench.run(tasks, Kept, model=Pixels, out=tmp_path, threads=1, epochs=1, normalize="none")
    assert [len(rows) for (rows,) in Kept.last.rows] == [3, WIDTH]
    assert [len(factor) for _, factor, _ in Kept.last.inverses] == [4, WIDTH]
