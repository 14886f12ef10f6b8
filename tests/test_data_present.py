"""If CI says that the data sets are there, no test may be skipped because a file is missing."""

import os
from pathlib import Path

import pytest

FILES = (
    "MNIST/raw/train-images-idx3-ubyte",
    "MNIST/raw/train-labels-idx1-ubyte",
    "MNIST/raw/t10k-images-idx3-ubyte",
    "MNIST/raw/t10k-labels-idx1-ubyte",
    "cifar10.npz",
    "cifar100.npz",
)


@pytest.mark.skipif(
    os.environ.get("CLBENCH_REQUIRE_DATA") != "1", reason="CLBENCH_REQUIRE_DATA=1 is what makes the data compulsory"
)
def test_the_data_that_tests_need_is_there() -> None:
    folder = os.environ.get("CLBENCH_TEST_DATA")
    assert folder, "CLBENCH_TEST_DATA names no folder"
    assert [name for name in FILES if not (Path(folder) / name).is_file()] == []
