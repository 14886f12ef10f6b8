"""Datasets: known ones by name, the user's own by path or as arrays. Expected values are written by hand."""

import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from clbench.errors import ConfigError
from clbench.scenarios import files, known
from clbench.scenarios.datasets import KNOWN, dataset_from_arrays, fingerprint, load_dataset

IDX_STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
