"""State that torch keeps per process, and facts about the machine."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from clbench.config.run import RunConfig


@contextmanager
def process_settings(config: RunConfig) -> Iterator[None]:
    """Set what torch keeps per process for the time of a run, and put it back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    devices = [torch.device(config.engine.device)] if config.engine.device.startswith("cuda") else []
    assert config.engine.threads is not None
    torch.set_num_threads(config.engine.threads)
    # Moments of a dead pixel decay into denormal numbers, with which a CPU takes many times as long.
    flushed = _flushes_denormals()
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(config.engine.deterministic or deterministic)
    # Torch rounds by default what a GPU convolves, and not what it multiplies, to 10 bits. Under bf16 as well, what is
    # left in float32 (losses, importances, class means) is left so on purpose.
    products: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    rounded = [backend.allow_tf32 for backend in products]
    for backend in products:
        backend.allow_tf32 = config.engine.precision == "tf32"
    if config.engine.deterministic:
        # cuBLAS repeats its sums only with a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)
        torch.use_deterministic_algorithms(deterministic)
        for backend, before in zip(products, rounded, strict=True):
            backend.allow_tf32 = before


def _flushes_denormals() -> bool:
    return float(torch.tensor(1e-39) * 1) == 0


def device_name(device: str) -> str:
    """Return the name of a GPU, or of the processor as far as the system tells it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return device if device == "mps" else platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of the task on a GPU, of the process so far on the CPU (0 where the system doesn't tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
