"""Helpers of the benchmarks: ratios of rivals that took turns, and result files that name versions and machine."""

import csv
import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path


def ratios(name: str, values: Sequence[float], digits: int = 3) -> dict[str, object]:
    """Return the median, the smallest and the largest of the ratios, one for each turn."""
    summary = {"": statistics.median(values), "_min": min(values), "_max": max(values)}
    return {f"{name}{suffix}": round(value, digits) for suffix, value in summary.items()}


def where(load: float, device: str, *packages: str) -> dict[str, object]:
    """Return the load, the versions of packages and the machine.

    load: the machine's load average before the first turn; above 1 the ratios are those of a shared machine.
    device: the device of the training, "cpu" or "cuda".
    """
    versions: dict[str, object] = {package: metadata.version(package) for package in packages}
    trained_on = "CPU"
    if device != "cpu":
        from clbench.running.process import device_name

        trained_on = device_name(device)
    return {"load": round(load, 1)} | versions | {"machine": f"{_processor()}, {os.cpu_count()} cores, {trained_on}"}


def write(rows: Sequence[dict[str, object]], out: Path | None) -> None:
    """Write the rows as CSV, if `out` names a file."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
