"""Final accuracies of closed-form methods on a pre-trained network, recomputed from its features by other software."""

from typing import Any

import numpy as np
import pytest
import torch

import clbench
from clbench.learning.strategy import initial_model
from clbench.running.resolve import prepare, resolve
from clbench.scenarios import load_dataset

NETWORK = "efficientnet-lite0[image_size=32]"
OPTIONS: dict[str, Any] = {"model": NETWORK, "limit": 20, "threads": 1, "tasks": 5}


@pytest.fixture(scope="module")
def features() -> dict[str, Any]:
    """Features and labels of the digits that the runs see, straight from the network and in the order of the file."""
    config, scenario = prepare(resolve("split-mnist-5k", "simplecil", OPTIONS))
    network = initial_model(config, scenario.image_shape, 0).eval()
    kept = torch.cat([task.train.ids for task in scenario.tasks])
    tested = torch.cat([task.test.ids for task in scenario.tasks])
    digits = load_dataset("mnist-5k", "data", offline=True)
    found: dict[str, Any] = {}
    for name, images, ids in (("train", scenario.train, kept), ("test", scenario.test, tested)):
        with torch.no_grad():
            parts = [network.features(part / 255) for part in images.images[ids].split(100)]
        found[name] = torch.cat(parts).double().numpy(), images.classes[ids].numpy()
    # The images are those of the data set, not of a scenario that could have changed them.
    assert set(map(bytes, scenario.test.images[tested].numpy())) <= set(map(bytes, digits.x_test))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["frozen-ncm", "simplecil", "slda[shrinkage=0.1]"])
def test_the_final_accuracy_is_that_of_other_software_on_the_same_features(
    strategy: str, features: dict[str, Any], tmp_path: Any
) -> None:
    """Nearest centroids by scikit-learn (of vectors of length 1 for cosines), and discriminants solved by numpy."""
    from sklearn.neighbors import NearestCentroid

    (x, y), (x_test, y_test) = features["train"], features["test"]
    classes = np.unique(y)
    if strategy == "frozen-ncm":
        guess = NearestCentroid().fit(x, y).predict(x_test)
    elif strategy == "simplecil":
        # The cosine to a mean is largest where the distance between both, scaled to length 1, is least.
        means = np.stack([x[y == c].mean(0) for c in classes])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        unit = x_test / np.linalg.norm(x_test, axis=1, keepdims=True)
        guess = NearestCentroid().fit(means, classes).predict(unit)
    else:
        means = np.stack([x[y == c].mean(0) for c in classes])
        within = x - means[np.searchsorted(classes, y)]
        shrunk = 0.9 * within.T @ within / len(x) + 0.1 * np.eye(x.shape[1])
        weight = np.linalg.solve(shrunk, means.T)
        guess = classes[(x_test @ weight - (means.T * weight).sum(0) / 2).argmax(1)]
    result = clbench.run("split-mnist-5k", strategy, out=tmp_path, quiet=True, **OPTIONS)
    per_task = [(guess == y_test)[np.isin(y_test, pair)].mean() for pair in result.task_classes]
    # One digit may be nearly as near to another mean, and the features are rounded to float32.
    assert np.abs(np.array(per_task) - result.accuracy[-1]).max() <= 1 / min(map(len, np.split(y_test, 5))) + 1e-9
    assert np.mean(guess == y_test) > 0.5
