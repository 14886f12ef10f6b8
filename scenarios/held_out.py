"""Draws a test out of data that have none."""

import hashlib

import numpy as np

from clbench.config.errors import ConfigError
from clbench.data.sources import is_mapped
from clbench.scenarios.files import Raw
from clbench.scenarios.mapped import REMEMBERED_FROM, mapped_copy, remembered


def hold_out(raw: Raw, share: float, what: str) -> Raw:
    """Make a share of each class's training images the test images, at least one; raises ConfigError.

    They are those whose digests come first in order, so they are the same ones in any order of the images and whatever
    the files are called, and an image more seldom changes the part of another one.
    """
    n = len(raw.y_train) - raw.n_validation
    images, labels = raw.x_train[:n], raw.y_train[:n]

    def drawn() -> list[int]:
        each = [hashlib.sha256(b"test share" + image.tobytes()).digest() for image in images]
        ids = []
        for label in np.unique(labels):
            of_class = sorted(np.flatnonzero(labels == label).tolist(), key=each.__getitem__)
            held = max(1, round(share * len(of_class)))
            if held >= len(of_class):
                name = label if raw.class_names is None or isinstance(label, str) else raw.class_names[label]
                raise ConfigError(
                    f"{what}: test_share={share:g} of the {len(of_class)} images of the class {name} leaves none to "
                    "train on"
                )
            ids += of_class[:held]
        return sorted(ids)

    test = np.array(remembered(f"test share {share!r}", drawn, images, labels))
    train = np.setdiff1d(np.arange(len(raw.y_train)), test)
    if is_mapped(images) and raw.x_train.nbytes >= REMEMBERED_FROM:
        moved = mapped_copy(raw.x_train, what, np.concatenate([train, test]))
        x_train, x_test = moved[: len(train)], moved[len(train) :]
    else:
        x_train, x_test = raw.x_train[train], raw.x_train[test]
    return raw._replace(x_train=x_train, y_train=raw.y_train[train], x_test=x_test, y_test=raw.y_train[test])
