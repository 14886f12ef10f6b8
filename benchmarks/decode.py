"""Compares reading a folder of photos with a hand-written DataLoader and with Avalanche, of as many workers.

All rivals bring every training photo to S x S pixels (shorter side, centre) as uint8, and the sums of their pixels are
compared. clbench decodes once, into a file that is mapped into memory; digests of the files are part of its time. The
others decode in each epoch, and are not charged for listing the files. Avalanche reads its own benchmark of paths with
the loader that its strategies use. The result is images in a second: of clbench's first epoch, of a later one in random
order, and of an epoch of the rivals, who take turns.

    python benchmarks/photos.py FOLDER --data-root data
    python benchmarks/decode.py FOLDER [--size 64] [--repeats 3] [--out FILE.csv]
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import ratios, where, write
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from clbench.data.ahead import Reader
from clbench.scenarios import load_dataset, split

BATCH = 128


def shown(size: int) -> transforms.Compose:
    """Return what brings a photo to size x size pixels."""
    return transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])


def photos(folder: Path) -> list[Path]:
    """Return the training photos of a folder."""
    return sorted((folder / "train").rglob("*.jpg"))


class Photos(Dataset[Any]):
    """The photos of a folder, decoded when they are asked for."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.shown = paths, shown(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as image:
            return self.shown(image.convert("RGB"))


def by_loader(folder: Path, size: int, workers: int) -> tuple[float, int]:
    """Return images in a second, and the sum of all pixels of the training photos."""
    paths = photos(folder)
    loader = DataLoader(Photos(paths, size), batch_size=BATCH, shuffle=True, num_workers=workers)
    started = time.perf_counter()
    total = sum(int(batch.sum()) for batch in loader)
    return len(paths) / (time.perf_counter() - started), total


def by_avalanche(folder: Path, size: int, workers: int) -> tuple[float, int]:
    """Return images in a second, and the sum of all pixels of the training photos."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from avalanche.benchmarks import paths_benchmark
        from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader

    paths = photos(folder)
    number = {kind: place for place, kind in enumerate(sorted({path.parent.name for path in paths}))}
    listed = [[(str(path), number[path.parent.name]) for path in paths]]
    made = paths_benchmark(
        listed, [listed[0][:1]], task_labels=[0], complete_test_set_only=True, train_transform=shown(size)
    )
    loader = TaskBalancedDataLoader(
        made.train_stream[0].dataset.train(),
        batch_size=BATCH,
        oversample_small_groups=True,
        num_workers=workers,
        shuffle=True,
    )
    started = time.perf_counter()
    total = sum(int(batch[0].sum()) for batch in loader)
    return len(paths) / (time.perf_counter() - started), total


def by_clbench(folder: Path, size: int, workers: int) -> tuple[float, float, int]:
    """Return images in a second of the first epoch and of a later one, and the sum of all pixels."""
    started = time.perf_counter()
    data = load_dataset(folder, "nowhere", image_size=size, memory_limit=1)
    source = split(data, tasks=1).train.images
    read = (len(data.x_train) + len(data.x_test)) / (time.perf_counter() - started)
    reader, ids = Reader(workers), torch.randperm(len(data.x_train))
    started = time.perf_counter()
    total = sum(int(batch.sum()) for batch in reader.each(source, ids.split(BATCH)) if batch is not None)
    later = len(ids) / (time.perf_counter() - started)
    reader.close()
    return read, later, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    load, workers = os.getloadavg()[0], len(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {name: [] for name in ("first_epoch", "later_epoch", "data_loader", "avalanche")}
    for _ in range(asked.repeats):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["CLBENCH_CACHE"] = cache
            first, later, total = by_clbench(asked.folder, asked.size, workers)
        by_hand, expected = by_loader(asked.folder, asked.size, workers)
        avalanche, as_well = by_avalanche(asked.folder, asked.size, workers)
        assert total == expected == as_well, "the rivals saw other pixels"
        for values, speed in zip(found.values(), (first, later, by_hand, avalanche), strict=True):
            values.append(speed)
        print(
            f"clbench {first:,.0f} images/s, in later epochs {later:,.0f}; DataLoader {by_hand:,.0f}; "
            f"Avalanche {avalanche:,.0f}"
        )
    row: dict[str, object] = {"images": len(photos(asked.folder)), "size": asked.size, "workers": workers}
    row |= {"repeats": asked.repeats}
    row |= {f"{name}_images_per_second": round(statistics.median(values)) for name, values in found.items()}
    for epoch in ("first_epoch", "later_epoch"):
        for rival in ("data_loader", "avalanche"):
            turns = zip(found[epoch], found[rival], strict=True)
            row |= ratios(f"{epoch}_over_{rival}", [ours / theirs for ours, theirs in turns], 2)
    packages = ("clbench", "avalanche-lib", "torch", "torchvision", "pillow")
    write([row | where(load, "cpu", *packages)], asked.out)


if __name__ == "__main__":
    main()
