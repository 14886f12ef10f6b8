"""Measures how much faster the engine is than Avalanche, used as in its tutorials, with the same arithmetic.

Naive, LwF, EWC and replay on Split-MNIST (MLP 784-400-400, batch 128, Adam, one epoch), then naive, LwF and iCaRL on
Split-CIFAR-100 (ResNet-32, 10 tasks, 50 training and 20 test images a class; clbench in fp32 and bf16). Rivals run
in processes of their own and take turns, because a shared machine is noisy. They are measured by new images trained a
second, images tested a second, and seconds of the whole process, imports and data included. The last measurement is of
five strategies over five seeds of Split-MNIST: `clbench compare --jobs 2` against a shell loop over Avalanche's runs.

    python benchmarks/versus_avalanche.py --data-root data [--repeats 3] [--device cuda] [--threads 2]
        [--limit N] [--tasks N] [--only mnist|cifar|compare] [--strategies NAME ...] [--smoke] [--out FILE.csv]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ratios, where, write

# Our strategy, Avalanche's class, and the options of both; twice the strength makes the penalties equal.
STRATEGIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "naive": ("naive", {}, "Naive", {}),
    "lwf": (
        "lwf-of-old-outputs", {"strength": 1.0, "temperature": 2.0},
        "LwF", {"alpha": 1.0, "temperature": 2.0},
    ),
    "ewc": ("ewc", {"strength": 2.0}, "EWC", {"ewc_lambda": 1.0}),
    "replay": ("er", {}, "Replay", {"mem_size": 500}),
    "si": (
        "si", {"strength": 1.0, "gradient": "total", "relu": False},
        "SynapticIntelligence", {"si_lambda": 2.0, "eps": 0.1},
    ),
    "icarl": ("icarl", {}, "ICaRL", {"memory_size": 500, "buffer_transform": None, "fixed_memory": True}),
}  # fmt: skip
MEMORY: dict[str, dict[str, Any]] = {
    "replay": {"memory_size": 500, "memory_policy": "balanced"},
    "icarl": {"memory_size": 500},
}
CASES: dict[str, dict[str, Any]] = {
    "mnist": {
        "scenario": "split-mnist", "tasks": 5, "model": "mlp:400-400", "optimizer": "adam", "lr": 1e-3,
        "evaluate": "all", "test_batch": 512,
    },
    "cifar": {
        "scenario": "split-cifar100", "tasks": 10, "model": "resnet32", "optimizer": "sgd", "lr": 0.1,
        "evaluate": "seen", "test_batch": 128,
    },
}  # fmt: skip
# Options with which clbench trains as Avalanche does, which keeps the optimizer's state from task to task.
SAME: dict[str, Any] = {
    "epochs": 1, "batch_size": 128, "head": "full", "loss_outputs": "all", "normalize": "none", "augment": "none",
    "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "optimizer_state": "keep",
}  # fmt: skip
# Images of each class of CIFAR-100 for training and testing; they are few because a ResNet is slow.
FEW = (50, 20)
IN_CASE = {"mnist": ("naive", "lwf", "ewc", "replay"), "cifar": ("naive", "lwf", "icarl")}
COMPARED = ("naive", "lwf", "ewc", "replay", "si")
PRECISIONS = {"mnist": ("fp32",), "cifar": ("fp32", "bf16")}
SMOKE = CASES["mnist"] | {"scenario": "split-mnist-5k"}


def ours(
    case: dict[str, Any], name: str, seed: int, device: str, threads: int, root: str, precision: str
) -> dict[str, float]:
    """Train and test with clbench; return new images trained and images tested a second, and the accuracy."""
    import clbench

    strategy, own, _, _ = STRATEGIES[name]
    fields = {k: v for k, v in case.items() if k not in ("scenario", "test_batch")}
    options: dict[str, Any] = fields | MEMORY.get(name, {})
    with tempfile.TemporaryDirectory() as folder:
        result = clbench.run(
            case["scenario"], strategy, out=folder, seed=seed, device=device, threads=threads, data_root=root,
            precision=precision, strategy_options=own, **SAME, **options,
        )  # fmt: skip
    record = result.record
    # A method's work at the end of a task, such as EWC's Fisher information, is part of its training.
    seconds = sum(task["seconds"]["train"] + task["seconds"]["memory"] for task in record["tasks"])
    tasks = record["scenario"]["tasks"]
    # The untrained network is tested too, for forward transfer.
    tested = sum(sum(task["n_test"] for task in tasks[:upto]) for upto in [_tested(case, 0), *_each(case)])
    return {
        "images_per_second": sum(task["n_train"] for task in tasks) / seconds,
        "tests_per_second": tested / sum(task["seconds"]["evaluation"] for task in record["tasks"]),
        "accuracy": result.summary(matrix="task_aware")["average_accuracy"] or 0.0,
    }


def _tested(case: dict[str, Any], task: int) -> int:
    """Return how many tasks are tested after a task."""
    return int(case["tasks"]) if case["evaluate"] == "all" else task + 1


def _each(case: dict[str, Any]) -> list[int]:
    return [_tested(case, task) for task in range(case["tasks"])]


def theirs(case: dict[str, Any], name: str, seed: int, device: str, threads: int, root: str) -> dict[str, float]:
    """Train and test with Avalanche, used as in its documentation; return the same numbers."""
    import avalanche.training
    import torch
    from avalanche.benchmarks import nc_benchmark
    from avalanche.training.plugins import EvaluationPlugin
    from torchvision import transforms

    torch.set_num_threads(threads)
    # clbench convolves in float32 on a GPU, too.
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(seed)
    train, test, shape = _datasets(case, root)
    to_tensor = transforms.ToTensor()
    benchmark = nc_benchmark(
        train, test, n_experiences=case["tasks"], task_labels=False, shuffle=False,
        train_transform=to_tensor, eval_transform=to_tensor,
    )  # fmt: skip
    network = _network(case["model"], shape, benchmark.n_classes).to(device)
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    _, _, kind, own = STRATEGIES[name]
    if kind == "ICaRL":
        parts = {"feature_extractor": _features(network), "classifier": network.head}
    else:
        parts = {"model": network, "criterion": torch.nn.CrossEntropyLoss()}
    learner = getattr(avalanche.training, kind)(
        optimizer=kinds[case["optimizer"]](network.parameters(), lr=case["lr"]),
        train_mb_size=128, train_epochs=1, eval_mb_size=case["test_batch"], evaluator=EvaluationPlugin(), device=device,
        **parts, **own,
    )  # fmt: skip
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    trained, testing, images, tested = 0.0, 0.0, 0, 0
    for experience, upto in zip(benchmark.train_stream, _each(case), strict=True):
        started = time.perf_counter()
        learner.train(experience, eval_streams=[])
        finish()
        trained += time.perf_counter() - started
        images += len(experience.dataset)
        # A matrix of accuracies needs a test of the tasks after each task, as clbench does it.
        started = time.perf_counter()
        learner.eval(benchmark.test_stream[:upto])
        finish()
        testing += time.perf_counter() - started
        tested += sum(len(seen.dataset) for seen in benchmark.test_stream[:upto])
    return {
        "images_per_second": images / trained,
        "tests_per_second": tested / testing,
        "accuracy": _task_aware(learner.model.cpu(), benchmark),
    }


def _datasets(case: dict[str, Any], root: str) -> tuple[Any, Any, tuple[int, ...]]:
    """Return data sets of the images that clbench trains on, as arrays like those of torchvision's data sets."""
    import torch
    from torch.utils.data import Dataset

    from clbench.running.resolve import prepare, resolve

    options = {k: v for k, v in case.items() if k in ("tasks", "limit")}
    scenario = prepare(resolve(case["scenario"], "naive", options | {"data_root": root}))[1]

    class Pictures(Dataset[Any]):
        def __init__(self, sets: list[Any]) -> None:
            self.images = torch.cat([s.images for s in sets]).permute(0, 2, 3, 1).contiguous().numpy()
            self.targets = torch.cat([s.classes for s in sets]).tolist()

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.images[index], self.targets[index]

    return (
        Pictures([task.train for task in scenario.tasks]),
        Pictures([task.test for task in scenario.tasks]),
        scenario.image_shape,
    )


def _features(network: Any) -> Any:
    """Return the network up to its head, which Avalanche's iCaRL needs."""
    import torch

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(network.blocks())

        def forward(self, images: Any) -> Any:
            for block in self.blocks:
                images = block(images)
            return images

    return Features()


def _network(model: str, shape: tuple[int, ...], n_classes: int) -> Any:
    import torch

    from clbench.models import build_model

    network = build_model(model, (shape[0], shape[1], shape[2]), 0)
    network.head.grow(n_classes, torch.Generator().manual_seed(0))
    return network


def _task_aware(model: Any, benchmark: Any) -> float:
    import torch

    model.eval()
    accuracies = []
    with torch.inference_mode():
        for experience in benchmark.test_stream:
            data = experience.dataset.eval()
            classes = sorted(experience.classes_in_this_experience)
            images, labels = (torch.stack([data[i][0] for i in range(len(data))]), torch.tensor(list(data.targets)))
            guess = torch.tensor(classes)[torch.cat([model(part)[:, classes] for part in images.split(512)]).argmax(1)]
            accuracies.append(float((guess == labels).float().mean()))
    return statistics.mean(accuracies)


def measure(rival: str, case: dict[str, Any], name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Run one rival in a process of its own; `process_seconds` is the whole of it, imports and data included."""
    job = {"rival": rival, "case": case, "name": name, "seed": seed}
    job |= {"device": args.device, "threads": args.threads, "root": args.data_root}
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--job", json.dumps(job)], check=True, capture_output=True, text=True
    )
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures | {"process_seconds": time.perf_counter() - started}


def _job(text: str) -> None:
    job = json.loads(text)
    given = (job["case"], job["name"], job["seed"], job["device"], job["threads"], job["root"])
    rival = job["rival"]
    print(json.dumps(theirs(*given) if rival == "avalanche" else ours(*given, rival.removeprefix("clbench-"))))


def few_images(root: str, folder: str) -> str:
    """Write the first few training and test images of each class of CIFAR-100 into a file, and return its path."""
    import numpy as np
    import torch

    from clbench.running.resolve import prepare, resolve

    scenario = prepare(resolve("split-cifar100", "naive", {"data_root": root}))[1]
    arrays = {}
    for part, images, n in (("train", scenario.train, FEW[0]), ("test", scenario.test, FEW[1])):
        index = torch.cat([torch.nonzero(images.classes == c).flatten()[:n] for c in images.classes.unique()])
        arrays[f"x_{part}"] = images.images[index].permute(0, 2, 3, 1).numpy()
        arrays[f"y_{part}"] = images.classes[index].numpy()
    path = f"{folder}/cifar100-few.npz"
    np.savez(path, **arrays)
    return path


def compare(case: dict[str, Any], name: str, precisions: tuple[str, ...], args: argparse.Namespace) -> list[Any]:
    """Let the rivals take turns; return for each precision the ratios, clbench over Avalanche: above 1 it is faster."""
    load = os.getloadavg()[0]
    rivals = ["avalanche", *(f"clbench-{precision}" for precision in precisions)]
    turns = []
    for seed in range(1 if args.smoke else args.repeats):
        # Rivals take turns in being first, because the other load of the machine comes and goes.
        turns.append({rival: measure(rival, case, name, seed, args) for rival in rivals[:: 1 if seed % 2 == 0 else -1]})
    rows = []
    for precision in precisions:
        row: dict[str, object] = {
            "scenario": Path(case["scenario"]).name, "model": case["model"], "strategy": name, "precision": precision,
            "tasks": case["tasks"], "limit": case.get("limit", "all"), "repeats": len(turns), "threads": args.threads,
        }  # fmt: skip
        for what in ("images_per_second", "tests_per_second", "process_seconds"):
            of = [(turn[f"clbench-{precision}"][what], turn["avalanche"][what]) for turn in turns]
            row |= ratios(f"{what}_ratio", [a / b if what != "process_seconds" else b / a for a, b in of], 2)
            row[f"clbench_{what}"] = float(f"{statistics.median(a for a, _ in of):.4g}")
            row[f"avalanche_{what}"] = float(f"{statistics.median(b for _, b in of):.4g}")
        for label, rival in (("clbench", f"clbench-{precision}"), ("avalanche", "avalanche")):
            row[f"{label}_accuracy"] = round(statistics.mean(turn[rival]["accuracy"] for turn in turns), 4)
        print({k: v for k, v in row.items() if "ratio" in k or "accuracy" in k or k in ("strategy", "precision")})
        sys.stdout.flush()
        # The rivals draw different weights and orders.
        assert abs(float(str(row["clbench_accuracy"])) - float(str(row["avalanche_accuracy"]))) < 0.15
        rows.append(row | where(load, args.device, "clbench", "avalanche-lib", "torch"))
    return rows


def compare_all(args: argparse.Namespace) -> dict[str, object]:
    """Time a comparison of five strategies over five seeds on the command line, and Avalanche's runs one by one."""
    load, case, seeds = os.getloadavg()[0], CASES["mnist"], 1 if args.smoke else 5
    scenario = SMOKE["scenario"] if args.smoke else case["scenario"]
    case = case | {"scenario": scenario} | ({"limit": 100} if args.smoke else {})
    specs = []
    for name in COMPARED:
        strategy, own, _, _ = STRATEGIES[name]
        given = ",".join(f"{k}={str(v).lower()}" for k, v in (own | MEMORY.get(name, {})).items())
        specs.append(f"{strategy}[{given}]" if given else strategy)
    fields = SAME | {k: v for k, v in case.items() if k not in ("scenario", "test_batch")}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in fields.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "clbench", "compare", scenario, *specs, f"--seeds={seeds}", "--jobs=2", "--threads=1",
            "--no-references", f"--device={args.device}", f"--data-root={args.data_root}", f"--out={folder}", *options,
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, text=True)
        ours_seconds = time.perf_counter() - started
    runs = [(name, seed) for name in COMPARED for seed in range(seeds)]
    theirs_seconds = sum(measure("avalanche", case, name, seed, args)["process_seconds"] for name, seed in runs)
    row: dict[str, object] = {
        "scenario": scenario, "strategies": len(COMPARED), "seeds": seeds, "jobs": 2, "threads": args.threads,
        "seconds_ratio": round(theirs_seconds / ours_seconds, 2),
        "clbench_seconds": round(ours_seconds, 1), "avalanche_seconds": round(theirs_seconds, 1),
    }  # fmt: skip
    print(row, flush=True)
    return row | where(load, args.device, "clbench", "avalanche-lib", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="training images a class (default: all of MNIST, 50 of CIFAR-100)")
    parser.add_argument("--tasks", type=int, help="tasks (default: MNIST 5, CIFAR-100 10)")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES))
    parser.add_argument("--only", choices=("mnist", "cifar", "compare"))
    parser.add_argument("--smoke", action="store_true", help="naive alone, once, on the embedded digits: does it work?")
    parser.add_argument("--out", type=Path, help="CSV file for the result")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.only, args.strategies = args.only or "mnist", ["naive"]
    if args.job:
        _job(args.job)
        return
    asked = {k: v for k, v in (("limit", args.limit), ("tasks", args.tasks)) if v is not None}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, case in CASES.items():
            if args.only not in (None, kind):
                continue
            if args.smoke:
                case = SMOKE | {"limit": 100}
            elif kind == "cifar":
                case = case | {"scenario": few_images(args.data_root, folder)}
            for name in IN_CASE[kind]:
                if name in (args.strategies or IN_CASE[kind]):
                    rows += compare(case | asked, name, PRECISIONS[kind], args)
    if args.only in (None, "compare"):
        compared = compare_all(args)
        write([compared], args.out and args.out.with_stem(f"{args.out.stem}-compare"))
    if rows:
        write(rows, args.out)


if __name__ == "__main__":
    main()
