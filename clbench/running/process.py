"""State that torch keeps per process, and facts about the machine."""

import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from clbench.config.run import RunConfig
from clbench.support.surroundings import undisturbed


@contextmanager
def process_settings(config: RunConfig) -> Iterator[None]:
    """Set what torch keeps per process for the time of a run, and put it back; see `undisturbed`."""
    engine = config.engine
    devices = [torch.device(engine.device)] if engine.device.startswith("cuda") else []
    if devices and torch.are_deterministic_algorithms_enabled() and not engine.deterministic:
        warnings.warn(
            "torch.use_deterministic_algorithms(True) is set, and a run follows its configuration; deterministic=True "
            "makes it repeatable to the bit",
            stacklevel=3,
        )
    with undisturbed(), torch.random.fork_rng(devices=devices):
        if engine.threads is not None:
            torch.set_num_threads(engine.threads)
        torch.use_deterministic_algorithms(engine.deterministic)
        # Torch rounds by default what a GPU convolves, and not what it multiplies, to 10 bits. Under bf16 as well, what
        # is left in float32 (losses, importances, class means) is left so on purpose.
        products: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
        for backend in products:
            backend.allow_tf32 = engine.precision == "tf32"
        if engine.deterministic:
            # cuBLAS repeats its sums only with a workspace of fixed size.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        yield


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
