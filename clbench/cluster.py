"""Planned runs on a Ray cluster, whose nodes see the same files; a run of a lost node is done again on another."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

from clbench.errors import ConfigError
from clbench.execution import Cluster, Outcome, PlannedRun

# How often a run is begun again because its node or its process was lost.
RETRIES = 5


def require_ray() -> None:
    """Raise ConfigError where Ray is not installed."""
    if find_spec("ray") is None:
        raise ConfigError("--backend ray needs the package ray; pip install 'clbench[ray]' is accepted")


def on_ray(items: Sequence[PlannedRun], work: Sequence[Callable[[], Outcome]], cluster: Cluster) -> Iterator[Outcome]:
    """Do the work on the cluster and yield outcomes as they come; each run gets the CPUs of its `threads`."""
    require_ray()
    import ray

    started = not ray.is_initialized()
    if started:
        # Ray takes over the signals of its driver; how a command of ours ends is for the command line to say.
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            raise ConfigError(
                f"no Ray cluster at {cluster.address or 'RAY_ADDRESS'} ({reason}); HOST:PORT or auto is accepted"
            ) from None
        for number, handler in handlers.items():
            signal.signal(number, handler)
    _warn_of_waiting(items, cluster)
    place = os.getcwd()
    remote = ray.remote(_in_folder)
    pending = {}
    try:
        for item, do in zip(items, work, strict=True):
            options = remote.options(
                num_cpus=item.config.threads, num_gpus=cluster.gpus_per_run, max_retries=RETRIES, name=item.config.label
            )
            pending[options.remote(place, do)] = item
        while pending:
            for reference in ray.wait(list(pending))[0]:
                item = pending.pop(reference)
                try:
                    outcome: Outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = (str(error) or type(error).__name__).splitlines()[0]
                    outcome = Outcome(item, f"lost on the cluster, {RETRIES + 1} times: {reason}")
                yield outcome
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _in_folder(place: str, do: Callable[[], Outcome]) -> Outcome:
    """Do a run in the folder where the sweep was started: its paths are relative to that."""
    os.chdir(place)
    return do()


def _warn_of_waiting(items: Sequence[PlannedRun], cluster: Cluster) -> None:
    import ray

    cpus = max(item.config.threads or 1 for item in items)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= cluster.gpus_per_run for node in nodes):
        warnings.warn(
            f"no node of the Ray cluster has {cpus} CPUs and {cluster.gpus_per_run:g} GPUs; waiting for one",
            stacklevel=2,
        )
