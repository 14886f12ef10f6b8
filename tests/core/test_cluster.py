"""Sweeps on Ray: a cluster of two nodes on this machine, one of which is lost during the sweep."""

import math
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import clbench
from clbench import ConfigError
from clbench.many.cluster import Cluster
from clbench.many.execution import run_planned
from clbench.many.sweeps import plan_sweep
from clbench.support import locks

GRID = """
scenario = "split-mnist-5k"
strategy = ["naive", "lwf"]
seeds = 4
limit = 20
epochs = 3
tasks = 2
"""


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head node that runs nothing, and two others with one processor each."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'clbench[ray]'")
    import ray
    from ray.cluster_utils import Cluster as RayCluster

    monkeypatch.chdir(tmp_path)
    memory = 80 * 2**20
    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    try:
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_a_lost_node_costs_no_result(two_nodes: Any) -> None:
    """The accuracies are those of the same runs in one process; the paths are relative to where the sweep began."""
    cluster, nodes = two_nodes
    planned = plan_sweep(tomllib.loads(GRID), cluster=Cluster(cluster.address))
    outcomes = []
    for outcome in run_planned(planned, cluster=Cluster(cluster.address)):
        outcomes.append(outcome)
        if len(outcomes) == 1:
            wait_for_a_run_on_the_way()
            cluster.remove_node(nodes[1], allow_graceful=False)
    assert [outcome.error for outcome in outcomes] == [None] * 8
    assert {outcome.planned.folder for outcome in outcomes} == {item.folder for item in planned}
    assert not list(Path("runs").rglob(".lease*"))
    here = clbench.sweep(tomllib.loads(GRID), out="here")
    for item, result in zip(planned, here, strict=True):
        assert clbench.Result.load(item.folder).record["accuracy"] == result.record["accuracy"]
    again = list(run_planned(planned, cluster=Cluster(cluster.address)))
    assert [outcome.source for outcome in again] == ["before"] * 8


def wait_for_a_run_on_the_way() -> None:
    deadline = time.monotonic() + 120
    while not list(Path("runs").rglob(locks.NAME)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_no_cluster_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'clbench[ray]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "1")
    cluster = Cluster("auto")
    with pytest.raises(ConfigError, match="no Ray cluster at auto"):
        list(run_planned(plan_sweep(tomllib.loads(GRID), cluster=cluster), cluster=cluster))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "localhost:{port}", "127.0.0.1:port"])
@pytest.mark.parametrize("by_variable", [False, True])
def test_an_address_that_nothing_answers_at_is_refused_at_once(
    form: str, by_variable: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Any
) -> None:
    """Ray itself would try for a minute, and log it."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'clbench[ray]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray tries"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(port=free.getsockname()[1])
        if by_variable:
            monkeypatch.setenv("RAY_ADDRESS", address)
        cluster = Cluster(None if by_variable else address)
        with refused(f"no Ray cluster at {address}", "HOST:PORT or auto"):
            list(run_planned(plan_sweep(tomllib.loads(GRID), cluster=cluster), cluster=cluster))


@pytest.mark.parametrize("gpus", [1.5, 2.0001, -1, math.nan, math.inf])
def test_parts_of_several_gpus_are_refused(gpus: float, refused: Any) -> None:
    """Ray gives a run a part of one, or whole ones."""
    with refused(f"--gpus-per-run {gpus:g}", "0 to 1, or a whole number"):
        Cluster(gpus_per_run=gpus)
    assert [Cluster(gpus_per_run=n).gpus_per_run for n in (0, 0.25, 1, 2, 3.0)] == [0, 0.25, 1, 2, 3.0]


@pytest.mark.parametrize(
    ("device", "gpus", "found"), [(None, 0, "cpu"), (None, 0.25, "cuda"), ("auto", 1, "cuda"), ("cuda", 1, "cuda")]
)
def test_a_run_uses_the_device_that_it_is_given(device: str | None, gpus: float, found: str, tmp_path: Path) -> None:
    """The devices of the machine that starts the sweep don't matter; it may have no GPU, or other ones."""
    grid = tomllib.loads(GRID) | ({} if device is None else {"device": device})
    planned = plan_sweep(grid, out=tmp_path, cluster=Cluster(gpus_per_run=gpus))
    assert {item.config.engine.device for item in planned} == {found}


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cpu", 1), ("cuda:1", 1)])
def test_a_device_that_it_is_not_given_is_refused(device: str, gpus: float, tmp_path: Path, refused: Any) -> None:
    with refused(f"device={device}", "--gpus-per-run", "auto or"):
        plan_sweep(tomllib.loads(GRID) | {"device": device}, out=tmp_path, cluster=Cluster(gpus_per_run=gpus))


def endless_sweep(monkeypatch: Any, folder: Path) -> subprocess.Popen[str]:
    """Start a sweep of runs without an end on a Ray of its own."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'clbench[ray]'")
    monkeypatch.chdir(folder)
    Path("grid.toml").write_text(GRID.replace("epochs = 3", "epochs = 100000"))
    command = [str(Path(sys.executable).parent / "clbench"), "sweep", "grid.toml", "--backend", "ray"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def assert_terminates(process: subprocess.Popen[str]) -> None:
    """SIGTERM ends the command with its own code and sentence."""
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    ended = "clbench: terminated; what was saved is kept and can be continued: clbench sweep "
    assert err.splitlines()[-1].startswith(ended)


@pytest.mark.slow
def test_an_interrupted_sweep_on_ray_leaves_no_process_behind(monkeypatch: Any, tmp_path: Path) -> None:
    """Ray started for the sweep alone: its processes end with it."""
    process = endless_sweep(monkeypatch, tmp_path)
    wait_for_a_run_on_the_way()
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    assert_terminates(process)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


@pytest.mark.slow
def test_a_signal_while_ray_starts_ends_the_sweep_as_any_other(monkeypatch: Any, tmp_path: Path) -> None:
    """Ray has a handler of its own, which would end the command with 15, or not at all."""
    process = endless_sweep(monkeypatch, tmp_path)
    deadline = time.monotonic() + 120
    while not any("gcs_server" in child.name() for child in psutil.Process(process.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert_terminates(process)
