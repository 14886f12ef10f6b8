"""Compares reading a folder of photos with a hand-written DataLoader of the same number of workers.

Both rivals bring every training photo to S x S pixels (shorter side, centre) as uint8. clbench decodes once, into a
file that is mapped into memory; digests of the files are part of its time. The DataLoader decodes in each epoch. The
result is images in a second: of the first epoch, of a later one in random order, and the DataLoader's.

    python benchmarks/photos.py FOLDER --data-root data
    python benchmarks/decode.py FOLDER [--size 64] [--repeats 3] [--out FILE.csv]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import where, write
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from clbench.scenarios import load_dataset, split

BATCH = 128


class Photos(Dataset[Any]):
    """The photos of a folder, decoded when they are asked for."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = paths
        self.shown = transforms.Compose(
            [transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as image:
            return self.shown(image.convert("RGB"))


def by_loader(folder: Path, size: int, workers: int) -> tuple[float, int]:
    """Return images in a second, and the sum of all pixels of the training photos."""
    paths = sorted((folder / "train").rglob("*.jpg"))
    loader = DataLoader(Photos(paths, size), batch_size=BATCH, shuffle=True, num_workers=workers)
    started = time.perf_counter()
    total = sum(int(batch.sum()) for batch in loader)
    return len(paths) / (time.perf_counter() - started), total


def by_clbench(folder: Path, size: int) -> tuple[float, float, int]:
    """Return images in a second of the first epoch and of a later one, and the sum of all pixels."""
    started = time.perf_counter()
    data = load_dataset(folder, "nowhere", image_size=size, memory_limit=1)
    source = split(data, tasks=1).train.images
    read = (len(data.x_train) + len(data.x_test)) / (time.perf_counter() - started)
    started = time.perf_counter()
    ids = torch.randperm(len(data.x_train))
    total = sum(int(source.index_select(0, part).sum()) for part in ids.split(BATCH))
    return read, len(ids) / (time.perf_counter() - started), total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    load, workers = os.getloadavg()[0], len(os.sched_getaffinity(0))
    ours, later, theirs = [], [], []
    for _ in range(asked.repeats):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["CLBENCH_CACHE"] = cache
            first, again, total = by_clbench(asked.folder, asked.size)
        by_hand, expected = by_loader(asked.folder, asked.size, workers)
        assert total == expected, "the rivals saw other pixels"
        ours.append(first), later.append(again), theirs.append(by_hand)
        print(f"clbench {first:,.0f} images/s, in later epochs {again:,.0f}; DataLoader {by_hand:,.0f}")
    medians = {"first_epoch": ours, "later_epoch": later, "data_loader": theirs}
    row: dict[str, object] = {"images_size": asked.size, "workers": workers}
    row |= {name: round(statistics.median(values)) for name, values in medians.items()}
    row |= {"ratio": round(float(np.median(np.array(ours) / np.array(theirs))), 2)}
    write([row | where(load, "cpu", "torch", "torchvision", "pillow")], asked.out)


if __name__ == "__main__":
    main()
