"""Named random streams: every draw is a function of (seed, name, keys), never of what was drawn before it."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, name: str, *keys: int | str) -> int:
    """Return the 63-bit seed of the stream `name` with `keys` (task, epoch, ...) under the run's seed."""
    text = "/".join(map(str, (seed, name, *keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def stream(seed: int, name: str, *keys: int | str) -> "torch.Generator":
    """Return a fresh CPU generator at the start of the stream `name` with `keys`."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, name, *keys))


def seed_other_streams(seed: int) -> None:
    """Seed the global streams of Python and NumPy."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def global_streams(seed: int) -> Iterator[None]:
    """Inside it, the global streams of torch's CPU, NumPy and Python begin at a seed; then they are as they were."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    # Seeds only the CPU generator, because torch.manual_seed would move the streams of accelerators too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        seed_other_streams(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
