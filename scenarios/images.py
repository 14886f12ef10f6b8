"""Images in folders, one folder for each class; decoded once, then kept in the cache as one memory-mapped array."""

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError
from clbench.config.registry import natural_sorted
from clbench.scenarios.files import Found, Raw, atomic_file, cache_folder, content_digests, require_memory

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
MAX_PIXELS = 1 << 26  # a file of a few kB can claim any number, and each core decodes an image at a time
BATCH = 256  # images decoded between two writes; it bounds the memory in use
ANNOUNCE_FROM = 1000
VALIDATION = ("val", "valid", "validation")
# Files that systems and programs leave in folders; names that begin with a dot are left out too.
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")
# Part of the name of what is cached: another way of decoding is another number.
DECODER = 2
TRANSPARENT, CMYK = "have transparent parts and are laid on white", "are CMYK and become RGB without a colour profile"


class _Header(NamedTuple):
    size: tuple[int, int]  # width, height, upright
    grey: bool


class _Parts(NamedTuple):
    """The folders of a data set, or the images in them by class."""

    train: Any
    validation: Any
    test: Any


def find_image_folder(folder: Path, image_size: int | None, class_order: tuple[str, ...] = ()) -> Found:
    """Return the data set in FOLDER/{train,test}/CLASS/*; reading it gives RGB images, or grey ones if all are grey.

    A folder val, valid or validation beside them is a validation split; without a folder test it is the test data.

    image_size: S resizes the shorter side to S (bilinear, antialiased) and cuts out the centre S x S; without it all
        sizes must agree.
    class_order: the order of the classes, if these are their names; otherwise they are in natural order.
    Transparent parts become white. Raises ConfigError for a file that is no image, and for training and test classes
    that differ; reading does so for a damaged file, and for images that don't fit into memory or the cache's disk.
    """
    folders = _parts(folder)
    parts = _Parts(*({} if part is None else _scan(part) for part in folders))
    for part, found in zip(folders, parts, strict=True):
        if part is not None and found.keys() != parts.train.keys():
            odd = sorted(found.keys() ^ parts.train.keys())[0]
            missing = part if odd in parts.train else folders.train
            raise ConfigError(
                f"{missing} has no folder for the class {odd!r}; each class needs training and test images"
            )
    names = class_order if set(class_order) == parts.train.keys() else tuple(natural_sorted(parts.train))
    paths = [path for part in parts for name in names for path in part.get(name, ())]
    numbers = _Parts(*([len(part.get(name, ())) for name in names] for part in parts))
    return Found(str(folder), paths, partial(_read, folder, paths, names, numbers, image_size))


def _read(folder: Path, paths: list[Path], names: tuple[str, ...], numbers: _Parts, image_size: int | None) -> Raw:
    digests = content_digests(paths)
    images, remarks = _cached(folder, paths, digests, image_size)
    n_test = sum(numbers.test)
    trained = set(digests[:-n_test])
    if copies := [path for path, of_file in zip(paths[-n_test:], digests[-n_test:], strict=True) if of_file in trained]:
        remarks = [*remarks, f"{len(copies):,} test images ({copies[0].relative_to(folder)}) are training images too"]
    for remark in remarks:
        warnings.warn(f"{folder}: {remark}", stacklevel=2)
    labels = _Parts(*(np.repeat(np.arange(len(names)), of_part) for of_part in numbers))
    y_train = np.concatenate([labels.train, labels.validation])
    return Raw(images[:-n_test], y_train, images[-n_test:], labels.test, names, n_validation=sum(numbers.validation))


def _parts(folder: Path) -> _Parts:
    there = {path.name: path for path in _visible(folder) if path.is_dir()}
    held = [name for name in VALIDATION if name in there]
    if "train" not in there or len(held) > 1 or not ("test" in there or held):
        raise ConfigError(
            f"{folder} must hold one folder 'train' and one folder 'test' or 'val', each CLASS/IMAGES, or all three; "
            f"its folders are {', '.join(list(there)[:6]) or 'none'}"
        )
    validation = there[held[0]] if held else None
    return _Parts(there["train"], validation if "test" in there else None, there.get("test", validation))


def _scan(folder: Path) -> dict[str, list[Path]]:
    classes = {}
    for class_folder in _visible(folder):
        if not class_folder.is_dir():
            raise ConfigError(f"{class_folder} is not a folder; expected one folder for each class")
        classes[class_folder.name] = _visible(class_folder)
        for path in classes[class_folder.name]:
            if path.suffix.lower() not in EXTENSIONS or not path.is_file():
                raise _no_image(path)
        if not classes[class_folder.name]:
            raise ConfigError(f"{class_folder} holds no images")
    if not classes:
        raise ConfigError(f"{folder} holds no folders of images, one for each class")
    return classes


def _no_image(path: Path) -> ConfigError:
    """Return why a path in the folder of a class is no image file."""
    if path.is_dir():
        return ConfigError(
            f"{path} is a folder in the folder of a class; train/CLASS/IMAGE and test/CLASS/IMAGE are read, and "
            "val/CLASS/IMAGE for validation"
        )
    if not path.exists():
        return ConfigError(f"{path} is a link to a file that is not there")
    return ConfigError(f"{path} is not an image file; accepted: {', '.join(EXTENSIONS)}")


def _visible(folder: Path) -> list[Path]:
    try:
        names = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"{folder} can't be read: {error}") from error
    return sorted(path for path in names if path.name.lower() not in LITTER)


def _cached(
    folder: Path, paths: list[Path], digests: Sequence[bytes], size: int | None
) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the images [N, C, H, W] of the paths, mapped from the cache, and remarks on how they were decoded.

    The digests of the files are their key. Images that the cache lacks are decoded into it.
    """
    key = hashlib.sha256(f"{DECODER} {size} ".encode() + b"".join(digests)).hexdigest()
    cached = cache_folder() / f"images-{key[:32]}.npy"
    found = _map(cached, len(paths))
    if found is None:
        _decode_all(folder, paths, size, cached)
        found = _map(cached, len(paths))
        if found is None:
            raise ConfigError(f"{cached} can't be read back; set CLBENCH_CACHE to a folder on a working disk")
    require_memory(found[0].nbytes, folder)
    return found


def _map(cached: Path, n: int) -> tuple[NDArray[np.uint8], list[str]] | None:
    """Return the cached array and remarks, or None if they are missing or damaged.

    Behind the array the file holds its digest and the remarks as JSON.
    """
    try:
        images = np.lib.format.open_memmap(cached, mode="r")
        with cached.open("rb") as file:
            file.seek(images.offset + images.nbytes)
            behind = json.loads(file.read())
        fits = images.dtype == np.uint8 and images.ndim == 4 and len(images) == n
        if not fits or hashlib.blake2b(images.data, digest_size=16).hexdigest() != behind["digest"]:
            return None
        return np.asarray(images), list(behind["remarks"])
    except Exception:  # numpy raises almost anything on a damaged header
        return None


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
                pixels = hashlib.blake2b(digest_size=16)
                changed: dict[str, list[Path]] = {}
                for start in range(0, len(paths), BATCH):
                    batch = paths[start : start + BATCH]
                    decoded = pool.map(lambda path: _decode(path, grey, size), batch)
                    for path, (image, change) in zip(batch, decoded, strict=True):
                        pixels.update(image.tobytes())
                        file.write(image.tobytes())
                        if change:
                            changed.setdefault(change, []).append(path)
                remarks = [
                    f"{len(those):,} images ({those[0].relative_to(folder)}) {change}"
                    for change, those in sorted(changed.items())
                ]
                file.write(json.dumps({"digest": pixels.hexdigest(), "remarks": remarks}).encode())
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
            if mode.startswith(("I", "F")) or _is_deep(image):
                raise ConfigError(f"{path} has more than 8 bits a channel (mode {mode}); expected 8-bit images")
            if mode not in (*GREY_MODES, *COLOUR_MODES):
                raise ConfigError(f"{path} has colours of the mode {mode}; grey, RGB, a palette or CMYK is accepted")
            # A photo in the format MPO carries previews of itself.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise ConfigError(f"{path} holds several pictures, as an animation does; files of one are accepted")
            # This decodes the image if its format stores EXIF data behind the pixels.
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in TURNED
            if turned and image.format == "TIFF":
                # Pillow turns these itself, in some versions before they are loaded.
                image.load()
                width, height = image.size
                turned = image.getexif().get(EXIF_ORIENTATION, 1) in TURNED
    except ConfigError:
        raise
    except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
        raise ConfigError(f"{path} is not a readable image: {error or type(error).__name__}") from error
    return _Header((height, width) if turned else (width, height), mode in GREY_MODES)


def _is_deep(image: Any) -> bool:
    """Whether Pillow would cut the file's 16 bits a channel down to 8 without a word."""
    for tile in image.tile:
        args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if ";16" in str(args[0]) or (tile[0].startswith("ppm") and int(args[-1]) > 255):
            return True
    return False


def _decode(path: Path, grey: bool, size: int | None) -> tuple[NDArray[np.uint8], str]:
    """Return one upright image [C, H, W], and how it was changed; rounds as torchvision's Resize and CenterCrop do."""
    from PIL import Image, ImageOps

    change = ""
    try:
        with Image.open(path) as opened:
            image: Any = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image, change = _on_white(path, image)
        elif image.mode == "CMYK":
            change = CMYK
        image = image.convert("L" if grey else "RGB")
        if size is not None:
            shorter = min(image.size)
            resized = tuple(size * side // shorter for side in image.size)
            image = image.resize(resized, Image.Resampling.BILINEAR)
            left, top = (round((side - size) / 2) for side in image.size)
            image = image.crop((left, top, left + size, top + size))
    except ConfigError:
        raise
    except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
        raise ConfigError(f"{path} is not a readable image: {error or type(error).__name__}") from error
    array = np.asarray(image)
    return (array[None] if grey else array.transpose(2, 0, 1)), change


def _on_white(path: Path, image: Any) -> tuple[Any, str]:
    """Lay an image on white, and say whether that changed it; raises ConfigError if nothing of a picture is left."""
    from PIL import Image

    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), ""
    shown: Any = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if all(low == high for low, high in shown.getextrema()) and any(low < high for low, high in image.getextrema()):
        raise ConfigError(f"{path} shows nothing once its transparent parts are white; save it without transparency")
    return shown, TRANSPARENT
