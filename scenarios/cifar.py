"""Reader of CIFAR's pickled batches that can't run code: only arrays and plain containers are unpickled."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError
from clbench.scenarios.files import Found, Raw

CIFAR_10 = "cifar-10-batches-py"
CIFAR_100 = "cifar-100-python"


class Batches(NamedTuple):
    """The files of a CIFAR folder: its archive, training and test batches, and the key of the labels."""

    archive: str
    train: tuple[str, ...]
    test: str
    label_key: bytes

    @property
    def files(self) -> tuple[str, ...]:
        """All batches."""
        return (*self.train, self.test)


CIFAR_BATCHES = {
    CIFAR_10: Batches("cifar-10-python.tar.gz", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", b"labels"),
    CIFAR_100: Batches("cifar-100-python.tar.gz", ("train",), "test", b"fine_labels"),
}


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode(encoding if encoding == "latin1" else "ascii")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers; any other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        # Python 2 wrote bytes as they are; Python 3 writes them as a call of _codecs.encode(text, "latin1").
        reconstruct: Any = np.empty(0).__reduce__()[0]  # numpy's own function, wherever this version keeps it
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,  # its name since numpy 2
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of a numpy array")
        return allowed[module, name]


def read_cifar_batch(path: Path, label_key: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images uint8 [N, 3, 32, 32] and labels int64 [N] of one of CIFAR's pickled batches.

    Raises ConfigError for anything else. Layout: https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        images, labels = batch[b"data"], np.asarray(batch[label_key])
    except Exception as error:  # a damaged pickle raises almost anything
        detail = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} is not a readable CIFAR batch ({detail})") from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072:
        given = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ConfigError(f"{path}: the images are {given}; expected uint8 [N, 3072]")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ConfigError(f"{path}: the labels are {labels.dtype} {labels.shape} for {len(images)} images")
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def find_cifar(folder: Path) -> Found | None:
    """Return the data set in a folder of CIFAR_BATCHES, or None if a batch is missing."""
    paths = [folder / name for name in CIFAR_BATCHES[folder.name].files]
    if not all(path.is_file() for path in paths):
        return None
    return Found(str(folder), paths, lambda: _read_cifar(paths, CIFAR_BATCHES[folder.name].label_key))


def _read_cifar(paths: Sequence[Path], label_key: bytes) -> Raw:
    parts = [read_cifar_batch(path, label_key) for path in paths]
    images, labels = zip(*parts[:-1], strict=True)
    x_train = images[0] if len(images) == 1 else np.concatenate(images)
    return Raw(x_train, np.concatenate(labels), *parts[-1])
