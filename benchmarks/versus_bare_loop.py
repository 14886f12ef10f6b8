"""How much the engine adds to a hand-written PyTorch loop with the same arithmetic.

Naive fine-tuning on Split-MNIST (MLP 784-400-400, batch 128, Adam, one epoch): the two rivals alternate in one process,
and the ratio of their training times is what counts, since a shared machine is noisy.

    python benchmarks/versus_bare_loop.py --data-root data [--repeats 7] [--threads 1] [--smoke] [--out FILE.csv]
"""

import argparse
import csv
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import clbench
from clbench.resolve import prepare, resolve
from clbench.scenario import Scenario


def bare_loop(scenario: Scenario, seed: int) -> tuple[float, float]:
    """Train with a plain loop; return seconds of training and the average task-aware accuracy at the end."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)
    )
    images, labels = scenario.train.images, scenario.train.labels
    seconds = 0.0
    for task in scenario.tasks:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        seen = task.outputs.stop
        started = time.perf_counter()
        order = task.train.ids[torch.randperm(len(task.train))]
        for index in order.split(128):
            loss = F.cross_entropy(model(images[index].float() / 255)[:, :seen], labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - started
    accuracies = []
    with torch.inference_mode():
        for task in scenario.tasks:
            scores = model(task.test.images.float() / 255)[:, task.outputs]
            accuracies.append(float((scores.argmax(1) + task.outputs.start == task.test.labels).float().mean()))
    return seconds, statistics.mean(accuracies)


def engine(scenario: Scenario, seed: int, threads: int) -> tuple[float, float]:
    """Train with clbench; return the same two numbers."""
    options = dict(model="mlp:400-400", optimizer="adam", lr=1e-3, batch_size=128, epochs=1, normalize="none")
    with tempfile.TemporaryDirectory() as folder:
        result = clbench.run(scenario, "naive", out=folder, seed=seed, threads=threads, **options)
    aware = result.summary(matrix="task_aware")["average_accuracy"]
    assert aware is not None
    return sum(epoch["seconds"] for epoch in result.record["training"]), aware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="once, on the embedded digits: does it work?")
    parser.add_argument("--out", type=Path, help="CSV file for the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name = "split-mnist-5k" if args.smoke else "split-mnist"
    scenario = prepare(resolve(name, "naive", {"data_root": args.data_root}))[1]
    repeats = 1 if args.smoke else args.repeats
    engine(scenario, 0, args.threads), bare_loop(scenario, 0)  # the first run pays for what is loaded lazily
    rows = [(bare_loop(scenario, seed), engine(scenario, seed, args.threads)) for seed in range(repeats)]
    ratios = [ours[0] / bare[0] for bare, ours in rows]
    n = sum(len(task.train) for task in scenario.tasks)
    result = {
        "scenario": name,
        "repeats": repeats,
        "threads": args.threads,
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "bare_images_per_second": round(n / statistics.median(bare[0] for bare, _ in rows)),
        "clbench_images_per_second": round(n / statistics.median(ours[0] for _, ours in rows)),
        "bare_accuracy": round(statistics.mean(bare[1] for bare, _ in rows), 4),
        "clbench_accuracy": round(statistics.mean(ours[1] for _, ours in rows), 4),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, CPU",
    }
    for key, value in result.items():
        print(f"{key}: {value}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, result)
            writer.writeheader()
            writer.writerow(result)


if __name__ == "__main__":
    main()
