"""Makes a folder of real JPEGs: CIFAR-100, enlarged; the mirrored images follow where more are asked for.

python benchmarks/photos.py FOLDER --data-root data --images 100000 --size 160
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from clbench.scenarios import load_dataset


def make(folder: Path, data_root: str, n: int, size: int) -> None:
    """Write n images as FOLDER/{train,test}/CLASS/NUMBER.jpg, four fifths of them for training."""
    data = load_dataset("cifar100", data_root, offline=True)
    if n > 100_000:
        raise SystemExit(f"{n} images are more than CIFAR-100 and its mirrored images have in these shares: 100,000")
    classes = len(data.class_names)
    parts = {"train": (data.x_train, data.y_train, n * 4 // 5), "test": (data.x_test, data.y_test, n // 5)}
    with ThreadPoolExecutor() as pool:
        for part, (images, labels, wanted) in parts.items():
            for label, name in enumerate(data.class_names):
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                ids = np.flatnonzero(labels == label)
                todo = [
                    (images[ids[place % len(ids)]], place >= len(ids), folder / part / name / f"{place:05}.jpg")
                    for place in range(wanted // classes)
                ]
                list(pool.map(lambda each: _save(*each, size), todo))


def _save(image: np.ndarray, mirrored: bool, path: Path, size: int) -> None:
    shown = image[:, :, ::-1] if mirrored else image
    picture = Image.fromarray(np.ascontiguousarray(shown.transpose(1, 2, 0)))
    picture.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=160)
    asked = parser.parse_args()
    make(asked.folder, asked.data_root, asked.images, asked.size)


if __name__ == "__main__":
    main()
