"""Named random streams: every draw is a function of (seed, name, keys), never of what was drawn before it."""

import hashlib
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
