"""Measures runs of published claims beside the authors' own code: Split-MNIST of van de Ven et al. 2022.

Each method is run by both with the same protocol (five tasks of 2,000 iterations, batch 128, Adam) in processes of
their own, one after the other, with one thread. They are measured by the CPU seconds of the whole process, imports,
data and evaluation included, because a shared machine is noisy. The authors' code is not part of clbench; CHECKOUT is
a copy of https://github.com/GMvandeVen/continual-learning, whose commit the result names.

    python benchmarks/versus_vandeven.py CHECKOUT --data-root data [--methods NAME ...] [--repeats 1] [--out FILE.csv]
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ratios, where, write

# The claim, the authors' name for its setting, and their options.
METHODS: dict[str, tuple[str, str, list[str]]] = {
    "naive": ("split-mnist-class/naive", "class", []),
    "si": ("split-mnist-class/si", "class", ["--si"]),
    "lwf": ("split-mnist-class/lwf", "class", ["--lwf"]),
    "er": ("split-mnist-class/er", "class", ["--replay=buffer", "--budget=100", "--sample-selection=random"]),
    "agem": ("split-mnist-class/agem", "class", ["--agem", "--budget=100", "--sample-selection=random"]),
    "icarl": ("split-mnist-class-seen/icarl", "class", ["--icarl", "--budget=100"]),
    "ewc": ("split-mnist-task/ewc", "task", ["--ewc"]),
    "dgr": ("split-mnist-domain/dgr", "domain", ["--replay=generative"]),
}
AVERAGE = re.compile(r"average accuracy over all 5 contexts: ([\d.]+)")


def measured(command: list[str], folder: Path) -> tuple[float, str]:
    """Run a command with one thread; return the CPU seconds of all its processes, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def row(method: str, args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure both on one method."""
    claim, setting, options = METHODS[method]
    theirs = [sys.executable, "main.py", "--experiment=splitMNIST", f"--scenario={setting}", "--no-gpus", *options]
    theirs += ["--data-dir", str(folder / "data"), "--results-dir", str(folder / "results")]
    ours = [sys.executable, "-m", "clbench", "run", "--like", f"vandeven2022/{claim}", "--quiet", "--force"]
    ours += ["--data-root", str(args.data_root.resolve()), "--out"]
    seconds: list[tuple[float, float]] = []
    accuracies: list[tuple[float, float]] = []
    for seed in range(args.repeats):
        spent, said = measured([*theirs, f"--seed={seed}"], args.checkout)
        known = float(AVERAGE.findall(said)[-1])
        out = folder / f"{method}-{seed}"
        here, _ = measured([*ours, str(out), f"--seed={seed}"], folder)
        from clbench import Result

        found = Result.load(out).summary()["average_accuracy"]
        seconds.append((spent, here))
        accuracies.append((known, float(found or 0.0)))
    return {
        "method": method,
        "claim": f"vandeven2022/{claim}",
        "repeats": args.repeats,
        **ratios("ratio", [spent / here for spent, here in seconds]),
        "their_seconds": round(statistics.median(spent for spent, _ in seconds), 1),
        "clbench_seconds": round(statistics.median(here for _, here in seconds), 1),
        "their_accuracy": round(statistics.mean(known for known, _ in accuracies), 4),
        "clbench_accuracy": round(statistics.mean(found for _, found in accuracies), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of the authors' code")
    parser.add_argument("--commit", required=True, help="the commit of that folder, for the result")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder that holds MNIST/raw")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV file for the result")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data" / "MNIST").mkdir(parents=True)
        (folder / "data" / "MNIST" / "MNIST").symlink_to((args.data_root / "MNIST").resolve())
        for method in args.methods:
            load = os.getloadavg()[0]
            found = row(method, args, folder)
            print(found, flush=True)
            rows.append(found | {"commit": args.commit} | where(load, "cpu", "clbench", "torch"))
            write(rows, args.out)


if __name__ == "__main__":
    main()
