"""How much faster the engine is than Avalanche, used as its tutorials do, on the same arithmetic.

Naive, LwF, EWC and replay on Split-MNIST (MLP 784-400-400, batch 128, Adam, one epoch), each rival in a process of its
own, alternating, since a shared machine is noisy: training images/s, seconds to test all tasks once, seconds of the
whole process. Then ResNet-32 on Split-CIFAR-100 (10 tasks, few images), Avalanche in fp32, clbench in fp32 and bf16.

    python benchmarks/versus_avalanche.py --data-root data [--repeats 3] [--threads 2] [--limit N] [--tasks N]
        [--only mnist|cifar] [--strategies NAME ...] [--smoke] [--out FILE.csv]
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

# Ours, Avalanche's class, and the options of both; twice the strength makes the penalties equal.
STRATEGIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "naive": ("naive", {}, "Naive", {}),
    "lwf": ("lwf", {"strength": 1.0, "temperature": 2.0, "distilled": "old"}, "LwF", {"alpha": 1.0, "temperature": 2.0}),
    "ewc": ("ewc", {"strength": 2.0}, "EWC", {"ewc_lambda": 1.0}),
    "replay": ("er", {}, "Replay", {"mem_size": 200}),
}
CASES: dict[str, dict[str, Any]] = {
    "mnist": {"scenario": "split-mnist", "tasks": 5, "model": "mlp:400-400", "optimizer": "adam", "lr": 1e-3},
    "cifar": {"scenario": "split-cifar100", "tasks": 10, "model": "resnet32", "optimizer": "sgd", "lr": 0.1},
}
SMOKE = CASES["mnist"] | {"scenario": "split-mnist-5k"}


def ours(case: dict[str, Any], name: str, seed: int, threads: int, root: str, precision: str) -> dict[str, float]:
    """Train and test with clbench; return images trained a second, seconds of one test pass, accuracy."""
    import clbench

    strategy, own, _, _ = STRATEGIES[name]
    # Avalanche keeps the optimizer's state from task to task.
    options: dict[str, Any] = {"optimizer_state": "keep"} | {k: v for k, v in case.items() if k != "scenario"}
    if name == "replay":
        options |= {"memory_size": 200, "memory_policy": "balanced"}
    with tempfile.TemporaryDirectory() as folder:
        result = clbench.run(
            case["scenario"], strategy, out=folder, seed=seed, threads=threads, data_root=root, precision=precision,
            strategy_options=own, epochs=1, batch_size=128, head="full", loss_outputs="all", normalize="none",
            augment="none", momentum=0.0, weight_decay=0.0, schedule="constant", milestones=None, **options,
        )  # fmt: skip
    record = result.record
    # What a method does at the end of a task, such as EWC's Fisher information, is part of its training.
    seconds = sum(task["seconds"]["train"] + task["seconds"]["memory"] for task in record["tasks"])
    # The first task is tested twice, before and after; all other cells once for each task.
    tests = len(record["tasks"]) + 1
    return {
        "images_per_second": sum(epoch["images"] for epoch in record["training"]) / seconds,
        "evaluation_seconds": sum(task["seconds"]["evaluation"] for task in record["tasks"]) / tests,
        "accuracy": result.summary(matrix="task_aware")["average_accuracy"] or 0.0,
    }


def theirs(case: dict[str, Any], name: str, seed: int, threads: int, root: str) -> dict[str, float]:
    """Train and test with Avalanche as its documentation does; return the same numbers."""
    import avalanche.training
    import torch
    from avalanche.benchmarks import nc_benchmark
    from avalanche.training.plugins import EvaluationPlugin
    from torchvision import transforms

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    train, test, shape = _datasets(case, root)
    to_tensor = transforms.ToTensor()
    benchmark = nc_benchmark(
        train, test, n_experiences=case["tasks"], task_labels=False, shuffle=False,
        train_transform=to_tensor, eval_transform=to_tensor,
    )  # fmt: skip
    model = _network(case["model"], shape, benchmark.n_classes)
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    _, _, kind, own = STRATEGIES[name]
    learner = getattr(avalanche.training, kind)(
        model=model, optimizer=kinds[case["optimizer"]](model.parameters(), lr=case["lr"]),
        criterion=torch.nn.CrossEntropyLoss(), train_mb_size=128, train_epochs=1, eval_mb_size=512,
        evaluator=EvaluationPlugin(), **own,
    )  # fmt: skip
    trained, tested, images = 0.0, 0.0, 0
    for experience in benchmark.train_stream:
        started = time.perf_counter()
        learner.train(experience, eval_streams=[])
        trained += time.perf_counter() - started
        images += len(experience.dataset)
        # A matrix of accuracies needs all tasks tested after each, as clbench does.
        started = time.perf_counter()
        learner.eval(benchmark.test_stream)
        tested += time.perf_counter() - started
    return {
        "images_per_second": images / trained,
        "evaluation_seconds": tested / case["tasks"],
        "accuracy": _task_aware(model, benchmark),
    }


def _datasets(case: dict[str, Any], root: str) -> tuple[Any, Any, tuple[int, ...]]:
    """Return data sets that give PIL-like arrays, as torchvision's do, of the images that clbench trains on."""
    import torch
    from torch.utils.data import Dataset

    from clbench.resolve import prepare, resolve

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
    job = {"rival": rival, "case": case, "name": name, "seed": seed, "threads": args.threads, "root": args.data_root}
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--job", json.dumps(job)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found | {"process_seconds": time.perf_counter() - started}


def _job(text: str) -> None:
    job = json.loads(text)
    given = (job["case"], job["name"], job["seed"], job["threads"], job["root"])
    rival = job["rival"]
    print(json.dumps(theirs(*given) if rival == "avalanche" else ours(*given, rival.removeprefix("clbench-"))))


def compare(case: dict[str, Any], name: str, precision: str, args: argparse.Namespace) -> dict[str, object]:
    """Alternate the rivals and return the ratios, clbench over Avalanche; above 1 clbench is faster."""
    repeats = 1 if args.smoke else args.repeats
    load = os.getloadavg()[0]
    pairs = []
    for seed in range(repeats):
        # By turns one and the other first: what else runs on the machine comes and goes.
        both = {}
        for rival in ("avalanche", f"clbench-{precision}")[:: 1 if seed % 2 == 0 else -1]:
            both["avalanche" if rival == "avalanche" else "clbench"] = measure(rival, case, name, seed, args)
        pairs.append(both)
    row: dict[str, object] = {
        "scenario": case["scenario"], "model": case["model"], "strategy": name, "precision": precision,
        "tasks": case["tasks"],
        "limit": case.get("limit", "all"),
        "repeats": repeats, "threads": args.threads,
    }  # fmt: skip
    for what in ("images_per_second", "evaluation_seconds", "process_seconds"):
        of = [(pair["clbench"][what], pair["avalanche"][what]) for pair in pairs]
        ratios = [a / b if what == "images_per_second" else b / a for a, b in of]
        row |= {
            f"{what}_ratio": round(statistics.median(ratios), 2),
            f"{what}_ratio_min": round(min(ratios), 2),
            f"{what}_ratio_max": round(max(ratios), 2),
            f"clbench_{what}": float(f"{statistics.median(a for a, _ in of):.4g}"),
            f"avalanche_{what}": float(f"{statistics.median(b for _, b in of):.4g}"),
        }
    for rival in ("clbench", "avalanche"):
        row[f"{rival}_accuracy"] = round(statistics.mean(pair[rival]["accuracy"] for pair in pairs), 4)
    versions = {package: metadata.version(package) for package in ("clbench", "avalanche-lib", "torch")}
    return row | {"load": round(load, 1)} | versions | {"machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="training images a class (default: MNIST all, CIFAR-100 20)")
    parser.add_argument("--tasks", type=int, help="tasks (default: MNIST 5, CIFAR-100 10)")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--only", choices=("mnist", "cifar"))
    parser.add_argument("--smoke", action="store_true", help="naive alone, once, on the embedded digits: does it work?")
    parser.add_argument("--out", type=Path, help="CSV file for the result")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        _job(args.job)
        return
    asked = {k: v for k, v in (("limit", args.limit), ("tasks", args.tasks)) if v is not None}
    mnist, cifar = CASES["mnist"] | asked, CASES["cifar"] | {"limit": 20} | asked
    wanted = [(mnist, name, "fp32") for name in STRATEGIES] + [
        (cifar, name, precision) for precision in ("fp32", "bf16") for name in ("naive", "lwf")
    ]
    if args.smoke:
        wanted = [(SMOKE | {"limit": 100}, "naive", "fp32")]
    rows = []
    for case, name, precision in wanted:
        if name not in args.strategies or (args.only and not case["scenario"].startswith(f"split-{args.only}")):
            continue
        rows.append(compare(case, name, precision, args))
        print(
            {k: v for k, v in rows[-1].items() if "ratio" in k or k in ("scenario", "strategy", "precision")},
            flush=True,
        )
        # One draw of weights and order against another.
        assert abs(float(str(rows[-1]["clbench_accuracy"])) - float(str(rows[-1]["avalanche_accuracy"]))) < 0.15
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
