"""Planned runs on a Ray cluster whose nodes see the same files; if a node is lost, another one does its run again."""

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

from clbench.config.errors import ConfigError
from clbench.many.planned import Outcome, PlannedRun
from clbench.support.endings import SIGNALS, is_ignored

# A run is begun again this often because its node or its process was lost.
RETRIES = 5


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster: its address (None: RAY_ADDRESS, or one on this machine) and the GPUs, or part of one, of a run."""

    address: str | None = None
    gpus_per_run: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError for a number of GPUs that Ray can't give."""
        if self.gpus_per_run < 0 or not (self.gpus_per_run <= 1 or float(self.gpus_per_run).is_integer()):
            raise ConfigError(f"--gpus-per-run {self.gpus_per_run:g}: 0 to 1, or a whole number, is accepted")


def require_ray() -> None:
    """Raise ConfigError if Ray is not installed."""
    if find_spec("ray") is None:
        raise ConfigError("--backend ray needs the package ray; pip install 'clbench[ray]' is accepted")


def on_ray(items: Sequence[PlannedRun], work: Sequence[Callable[[], Outcome]], cluster: Cluster) -> Iterator[Outcome]:
    """Do the work on the cluster and yield outcomes as they come; each run gets the CPUs of its threads."""
    require_ray()
    import ray

    if not ray.is_initialized():
        _refuse_unreachable(cluster.address or os.environ.get("RAY_ADDRESS", ""))
    # Ray's processes end with the thread that started them.
    with ThreadPoolExecutor(1) as beside, _kept_signals() as (keep, deliver):
        started = not ray.is_initialized()
        try:
            if started:
                # In the main thread Ray would handle SIGTERM itself, and the exit that it raises would be lost.
                init = beside.submit(ray.init, cluster.address, log_to_driver=False, logging_level=logging.ERROR)
                while wait([init], timeout=0.02).not_done:
                    keep()
                init.result()
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(cluster.address or "RAY_ADDRESS", error) from None
        deliver()
        _warn_of_waiting(items, cluster)
        place = os.getcwd()
        remote = ray.remote(_in_folder)
        pending = {}
        try:
            for item, do in zip(items, work, strict=True):
                options = remote.options(
                    num_cpus=_cpus(item),
                    num_gpus=cluster.gpus_per_run,
                    max_retries=RETRIES,
                    name=item.config.label,
                )
                pending[options.remote(place, do)] = item
            while pending:
                done, _ = ray.wait(list(pending), timeout=0.5)
                deliver()
                for reference in done:
                    item = pending.pop(reference)
                    try:
                        outcome: Outcome = ray.get(reference).of(item)
                    except ray.exceptions.RayError as error:
                        reason = (str(error) or type(error).__name__).splitlines()[0]
                        outcome = Outcome(item, f"lost on the cluster, {RETRIES + 1} times: {reason}")
                    yield outcome
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            if started:
                ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Raise ConfigError if nothing answers at HOST:PORT or ray://HOST:PORT; Ray itself would try for a minute."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.scheme in ("", "ray") and parts.hostname is not None and parts.port is not None:
            socket.create_connection((parts.hostname, parts.port), timeout=5).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> ConfigError:
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:120]
    return ConfigError(f"no Ray cluster at {address} ({reason}); HOST:PORT or auto is accepted")


@contextmanager
def _kept_signals() -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Keep signals until they are delivered, because Ray drops what a handler raises inside Ray's calls.

    Yields two functions: one keeps signals again after Ray has installed handlers of its own, one delivers them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield (lambda: None), (lambda: None)
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS if not is_ignored(number)}
    kept: list[int] = []

    def install() -> None:
        for number in handlers:
            signal.signal(number, lambda number, _: kept.append(number))

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def deliver() -> None:
        if kept:
            restore()
            signal.raise_signal(kept.pop())
        install()

    install()
    try:
        yield install, deliver
    finally:
        restore()


def _in_folder(place: str, do: Callable[[], Outcome]) -> Outcome:
    """Do a run in the folder where the sweep was started, because its paths are relative to that."""
    os.chdir(place)
    return do().without_classes()


def _cpus(item: PlannedRun) -> int:
    """Return the CPUs of a run: one for each thread, and for each process at least."""
    return max(item.config.engine.threads or 1, item.config.engine.processes)


def _warn_of_waiting(items: Sequence[PlannedRun], cluster: Cluster) -> None:
    import ray

    cpus = max(map(_cpus, items))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= cluster.gpus_per_run for node in nodes):
        warnings.warn(
            f"no node of the Ray cluster has {cpus} CPUs and {cluster.gpus_per_run:g} GPUs; waiting for one",
            stacklevel=2,
        )
