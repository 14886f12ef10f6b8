"""Images in folders, one folder for each class; decoded once, then kept in the cache as one memory-mapped array."""

import hashlib
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError
from clbench.config.registry import natural_sorted
from clbench.scenarios.files import Raw, atomic_file, cache_folder, require_memory

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
GREY_MODES = ("1", "L", "LA")
EXIF_ORIENTATION = 0x0112
MAX_PIXELS = 1 << 26  # a file of a few kB can claim any number, and each core decodes an image at a time
BATCH = 256  # images decoded between two writes; it bounds the memory in use
ANNOUNCE_FROM = 1000


class _Header(NamedTuple):
    size: tuple[int, int]  # width, height, upright
    grey: bool


def read_image_folder(folder: Path, image_size: int | None, class_order: tuple[str, ...] = ()) -> Raw:
    """Return the data set in FOLDER/{train,test}/CLASS/* (val is accepted for test): RGB, or grey if all are grey.

    image_size: S resizes the shorter side to S (bilinear, antialiased) and cuts out the centre S x S; without it all
        sizes must agree.
    class_order: the order of the classes, if these are their names; otherwise they are in natural order.
    Transparency is dropped. Raises ConfigError for a file that is damaged or no image, for training and test classes
    that differ, and for images that do not fit into memory or the cache's disk.
    """
    train_folder, test_folder = _parts(folder)
    train, test = _scan(train_folder), _scan(test_folder)
    if train.keys() != test.keys():
        odd = sorted(train.keys() ^ test.keys())[0]
        missing = test_folder if odd in train else train_folder
        raise ConfigError(f"{missing} has no folder for the class {odd!r}; each class needs training and test images")
    names = class_order if set(class_order) == train.keys() else tuple(natural_sorted(train))
    paths = [path for part in (train, test) for name in names for path in part[name]]
    images = _cached(folder, paths, image_size)
    n_train = sum(map(len, train.values()))
    labels = [np.repeat(np.arange(len(names)), [len(part[name]) for name in names]) for part in (train, test)]
    return Raw(images[:n_train], labels[0], images[n_train:], labels[1], names)


def _parts(folder: Path) -> tuple[Path, Path]:
    train = folder / "train"
    tests = [folder / name for name in ("test", "val") if (folder / name).is_dir()]
    if not train.is_dir() or len(tests) != 1:
        raise ConfigError(f"{folder} must hold one folder 'train' and one folder 'test' or 'val', each CLASS/IMAGES")
    return train, tests[0]


def _scan(folder: Path) -> dict[str, list[Path]]:
    classes = {}
    for class_folder in _visible(folder):
        if not class_folder.is_dir():
            raise ConfigError(f"{class_folder} is not a folder; expected one folder for each class")
        classes[class_folder.name] = _visible(class_folder)
        for path in classes[class_folder.name]:
            if path.suffix.lower() not in EXTENSIONS or not path.is_file():
                raise ConfigError(f"{path} is not an image file; accepted: {', '.join(EXTENSIONS)}")
        if not classes[class_folder.name]:
            raise ConfigError(f"{class_folder} holds no images")
    if not classes:
        raise ConfigError(f"{folder} holds no folders of images, one for each class")
    return classes


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{folder} can't be read: {error}") from error


def _cached(folder: Path, paths: list[Path], size: int | None) -> NDArray[np.uint8]:
    """Return the images [N, C, H, W] of the paths, mapped from the cache; decode them into it if it lacks them."""
    key = hashlib.sha256(f"{folder.resolve()} {size}".encode())
    for path in paths:
        stat = path.stat()
        key.update(f"\0{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    cached = cache_folder() / f"images-{key.hexdigest()[:32]}.npy"
    images = _map(cached, len(paths))
    if images is None:
        _decode_all(folder, paths, size, cached)
        images = _map(cached, len(paths))
        if images is None:
            raise ConfigError(f"{cached} can't be read back; set CLBENCH_CACHE to a folder on a working disk")
    require_memory(images.nbytes, folder)
    return images


def _map(cached: Path, n: int) -> NDArray[np.uint8] | None:
    """Return the cached array, or None if it is missing or damaged."""
    try:
        images = np.lib.format.open_memmap(cached, mode="r")
    except Exception:  # numpy raises almost anything on a damaged header
        return None
    whole = cached.stat().st_size == images.offset + images.nbytes
    valid = images.dtype == np.uint8 and images.ndim == 4 and len(images) == n and whole
    return np.asarray(images) if valid else None


def _decode_all(folder: Path, paths: list[Path], size: int | None, target: Path) -> None:
    from PIL import Image

    if len(paths) >= ANNOUNCE_FROM:
        print(f"clbench: reading {len(paths):,} images in {folder} (once: kept in {target})", file=sys.stderr)
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        # _read_header refuses the images that Pillow would only warn of.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        headers = list(pool.map(_read_header, paths))
        if size is None:
            for path, header in zip(paths, headers, strict=True):
                if header.size != headers[0].size:
                    (w0, h0), (w, h) = headers[0].size, header.size
                    raise ConfigError(
                        f"{paths[0]} is {w0}x{h0} and {path} {w}x{h} pixels; --image-size S makes all S x S"
                    )
        grey = all(header.grey for header in headers)
        width, height = (size, size) if size else headers[0].size
        shape = (len(paths), 1 if grey else 3, height, width)
        n_bytes = int(np.prod(shape, dtype=object))
        require_memory(n_bytes, folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(target.parent).free
            if n_bytes > free:
                raise ConfigError(f"{folder} needs {n_bytes:,} bytes in {target.parent}, and {free:,} are free")
            # Written front to back, not through a map, so that a full disk is an error, not a signal.
            with atomic_file(target) as file:
                fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, fields)
                for start in range(0, len(paths), BATCH):
                    batch = paths[start : start + BATCH]
                    for image in pool.map(lambda path: _decode(path, grey, size), batch):
                        file.write(image.tobytes())
        except OSError as error:
            raise ConfigError(
                f"{target.parent} can't keep the images ({error}); set CLBENCH_CACHE to a folder"
            ) from error


def _read_header(path: Path) -> _Header:
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
            if width * height > MAX_PIXELS:
                raise ConfigError(f"{path} claims {width} x {height} pixels; at most {MAX_PIXELS:,} are accepted")
            # This decodes the image if its format stores EXIF data behind the pixels.
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except ConfigError:
        raise
    except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
        raise ConfigError(f"{path} is not a readable image: {error or type(error).__name__}") from error
    if mode.startswith(("I", "F")):
        raise ConfigError(f"{path} has more than 8 bits a channel (mode {mode}); expected 8-bit images")
    return _Header((height, width) if turned else (width, height), mode in GREY_MODES)


def _decode(path: Path, grey: bool, size: int | None) -> NDArray[np.uint8]:
    """Return one upright image [C, H, W]; sizes and offsets round as in torchvision's Resize and CenterCrop."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image: Any = ImageOps.exif_transpose(opened).convert("L" if grey else "RGB")
        if size is not None:
            shorter = min(image.size)
            resized = tuple(size * side // shorter for side in image.size)
            image = image.resize(resized, Image.Resampling.BILINEAR)
            left, top = (round((side - size) / 2) for side in image.size)
            image = image.crop((left, top, left + size, top + size))
    except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
        raise ConfigError(f"{path} is not a readable image: {error or type(error).__name__}") from error
    array = np.asarray(image)
    return array[None] if grey else array.transpose(2, 0, 1)
