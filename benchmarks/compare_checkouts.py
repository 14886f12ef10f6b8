"""Compare two checkouts of clbench: does each strategy give the same matrices, to the byte?

    python benchmarks/compare_checkouts.py record CHECKOUT FILE.json    train every strategy with the code of CHECKOUT
    python benchmarks/compare_checkouts.py compare OLD.json NEW.json    list the runs that differ; exit code 1 if any do

`record` installs CHECKOUT without its dependencies into a temporary folder, so they must be installed for the
interpreter that runs this script. Each strategy trains on the demo's scenario, once in each setting that it supports,
with one seed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Runs with the code of the checkout that is tried, so it may use only public names.
TRAIN = """
import contextlib, io, json, sys, tempfile, warnings
import clbench
from importlib.metadata import entry_points
warnings.simplefilter("ignore")
seed, *settings = json.loads(sys.argv[1])
runs = {}
for name in sorted(e.name for e in entry_points(group="clbench.strategies")):
    for setting in settings:
        with tempfile.TemporaryDirectory() as out:
            try:
                result = clbench.run(
                    "split-mnist-5k", name, out=out + "/run", setting=setting, seed=seed, threads=1, device="cpu"
                )
            except clbench.ConfigError as error:
                runs[f"{name} {setting}"] = f"refused: {error}"
                continue
        kept = ("accuracy", "classifiers", "correct", "confusion", "metrics", "metrics_task_aware")
        runs[f"{name} {setting}"] = {key: result.record[key] for key in kept}
        print(f"{name} {setting}", file=sys.stderr, flush=True)
print(json.dumps({"version": clbench.__version__ if hasattr(clbench, "__version__") else "?", "runs": runs}))
"""
SETTINGS = ("class", "task", "domain")


def record(checkout: Path, seed: int) -> str:
    """Return the results of a checkout's code, as JSON."""
    with tempfile.TemporaryDirectory() as place:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place, str(checkout)]
        subprocess.run(install, check=True)
        path = os.pathsep.join([place, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        command = [sys.executable, "-c", TRAIN, json.dumps([seed, *SETTINGS])]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=place, env={**os.environ, "PYTHONPATH": path}
        )
    return done.stdout


def compare(old: Path, new: Path) -> int:
    """Print how many runs are the same and which are not; return how many are not."""
    one, other = (json.loads(file.read_text("utf-8"))["runs"] for file in (old, new))
    names = sorted(one.keys() | other.keys())
    differing = [name for name in names if one.get(name) != other.get(name)]
    refused = sum(isinstance(one.get(name), str) for name in names)
    print(f"{len(names)} pairs of a strategy and a setting, {refused} of them refused; {len(differing)} differ")
    for name in differing:
        print(f"  {name}")
    return len(differing)


def main() -> None:
    """Run the verb on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("checkout", type=Path)
    recording.add_argument("file", type=Path)
    recording.add_argument("--seed", type=int, default=0)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    given = parser.parse_args()
    if given.verb == "record":
        given.file.write_text(record(given.checkout, given.seed), "utf-8")
    elif compare(given.old, given.new):
        sys.exit(1)


if __name__ == "__main__":
    main()
