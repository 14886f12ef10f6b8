"""Classifiers on frozen features against numbers that their authors' codes gave for the same features.

`authors_closed_form.npz` holds 126 training and 24 test vectors of 8 numbers (uint8; the features are these / 255), 6
classes in tasks of two, and what each code gave after the third task. Each code was run once, on a CPU, on these
features in the place of a network's:

- SimpleCIL: sun-hailong/LAMDA-PILOT 264745534fc2, `Learner.replace_fc` of models/simplecil.py, then its `CosineLinear`.
- RanPAC: RanPAC/RanPAC 012927f86e8d, `Learner.replace_fc` of RanPAC.py with the given projection; the samples of each
  task in the order of torch.randperm, seed 7, in the place of its loader's.
- FeCAM: dipamgoswami/FeCAM d2479b7bc9c3, `_build_protos`, `compute_new_cov`, `shrink_cov`, `normalize_cov` and
  `_maha_dist`, with the options of exps/FeCAM_cifar100.json, and with beta 0.8, alpha1 0.3, alpha2 0.2.
- FeTrIL: GregoirePetit/FeTrIL e3b139ce84a7, codes/compute_distances.py and codes/train_classifiers.py, which scaled the
  first 512 features too and wrote numbers in full.
- RanDumb: drimpossible/RanDumb 14a51ee0c045, `SLDA` of src/legacy_model.py on scikit-learn's RBFSampler, fitted to the
  first task's vectors (gamma is then that of the first task).
- SLDA: tyler-hayes/Deep_SLDA bc1579799b59, SLDA_Model.py in float64: every sample given to `fit`; then `predict`, with
  Sigma replaced by the covariance around the class means (numpy), and, for the first class alone, as the recursion left
  it, where it is exact.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import clbench
from clbench.scenarios import dataset_from_arrays, split
from clbench.strategies.fecam import FeCAM
from clbench.strategies.fetril import FeTrIL
from clbench.strategies.randumb import RanDumb
from clbench.strategies.ranpac import RanPAC
from clbench.strategies.simplecil import SimpleCIL
from clbench.strategies.slda import SLDA

GIVEN = dict(np.load(Path(__file__).with_name("authors_closed_form.npz")))


class Pixels(clbench.models.Network):
    """The pixels are the features."""

    def __init__(self, image_shape):
        super().__init__([nn.Flatten()], int(np.prod(image_shape)))


def scores(strategy, out, n_classes=6, tasks=3, **options):
    """Test scores, float64 [24, outputs], of a strategy after the last task, and the strategy."""

    class Kept(strategy):
        def end_task(self, task):
            super().end_task(task)
            Kept.last = self

    x, y, test = (GIVEN[name] for name in ("train", "labels", "test"))
    own = y < n_classes
    data = dataset_from_arrays(x[own][:, None], y[own], test[:, None], np.arange(24) // 4 % n_classes)
    clbench.run(split(data, tasks=tasks), Kept, model=Pixels, out=out, threads=1, epochs=1, normalize="none", **options)
    with torch.no_grad():
        return Kept.last.scores(torch.tensor(test)[:, None, None] / 255).double().numpy(), Kept.last


def close(found, given):
    """To 1e-5 of the largest score."""
    np.testing.assert_allclose(found, given, rtol=1e-5, atol=1e-5 * np.abs(given).max())


def test_simplecil(tmp_path):
    found, _ = scores(SimpleCIL, tmp_path)
    close(found / np.linalg.norm(GIVEN["test"] / 255, axis=1)[:, None], GIVEN["simplecil_cosines"])


def test_ranpac(tmp_path):
    """The ridges that it chooses are theirs as well."""
    chosen = []

    class Given(RanPAC):
        def begin_run(self):
            super().begin_run()
            self.projection = torch.tensor(GIVEN["ranpac_projection"])

        def rng(self, name):
            return torch.Generator().manual_seed(7) if name == "ridge" else super().rng(name)

        def end_task(self, task):
            super().end_task(task)
            chosen.append(self.chosen_ridge)

    found, _ = scores(Given, tmp_path, strategy_options={"projections": 20})
    assert chosen == GIVEN["ranpac_ridges"].tolist()
    close(found, GIVEN["ranpac_logits"])


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, "fecam_distances"),
        ({"tukey": 0.8, "alpha1": 0.3, "alpha2": 0.2}, "fecam_distances_of_other_options"),
    ],
)
def test_fecam(options, numbers, tmp_path):
    found, _ = scores(FeCAM, tmp_path, strategy_options=options)
    close(-found, GIVEN[numbers])


def test_fetril(tmp_path):
    found, _ = scores(FeTrIL, tmp_path)
    close(found, GIVEN["fetril_scores"])


def test_randumb(tmp_path):
    class Given(RanDumb):
        def begin_run(self):
            super().begin_run()
            self.projection = torch.tensor(GIVEN["randumb_projection"]).float()
            self.offset = torch.tensor(GIVEN["randumb_offset"]).float()

    found, strategy = scores(Given, tmp_path, strategy_options={"projections": 12})
    assert strategy.width == pytest.approx(float(GIVEN["randumb_gamma"]), rel=1e-6)
    close(found, GIVEN["randumb_scores"])


def test_slda(tmp_path):
    close(scores(SLDA, tmp_path / "all")[0], GIVEN["slda_scores"])
    close(scores(SLDA, tmp_path / "one", n_classes=1, tasks=1)[0], GIVEN["slda_scores_of_one_class"])
