"""Images in folders, one folder for each class; decoded once, then kept in the cache as one memory-mapped array."""

import hashlib
import io
import json
import os
import shutil
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError
from clbench.config.registry import natural_sorted
from clbench.scenarios.files import Found, Raw, atomic_file, content_digests, require_memory
from clbench.support.cache import cache_folder

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
TIFF_SAMPLE_FORMAT, SIGNED = 339, 2
MAX_PIXELS = 1 << 26  # a file of a few kB can claim any number, and each core decodes an image at a time
BATCH = 256  # images decoded between two writes; it bounds the memory in use
ANNOUNCE_FROM = 1000
VALIDATION = ("val", "valid", "validation")
# Files that systems and programs leave in folders; names that begin with a dot are left out too.
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin")
# Named in an error; what is beyond that is counted.
NAMED = 40
# Part of the name of what is cached: another way of decoding is another number.
DECODER = 3
TRANSPARENT, CMYK = "have transparent parts and are laid on white", "are CMYK and become RGB without a colour profile"
DEEP = "have 16 bits a channel, of which the upper 8 are kept"


class _Header(NamedTuple):
    size: tuple[int, int]  # width, height, upright
    grey: bool


class _Parts(NamedTuple):
    """The folders of a data set, the images in them by class, or their numbers."""

    train: Any
    validation: Any
    test: Any


def find_image_folder(
    folder: Path,
    image_size: int | None,
    class_order: tuple[str, ...] = (),
    *,
    held_out: bool = False,
    skip: bool | None = None,
) -> Found:
    """Return the data set in FOLDER/{train,test}/CLASS/*; reading it gives RGB images, or grey ones if all are grey.

    A folder val, valid or validation beside them is a validation split; without a folder test it is the test data.

    image_size: S resizes the shorter side to S (bilinear, antialiased) and cuts out the centre S x S; without it all
        sizes must agree.
    class_order: the order of the classes, if these are their names; otherwise they are in natural order.
    held_out: there is no test yet: the images are in FOLDER/CLASS/*, or in FOLDER/train/CLASS/* with or without a
        validation split.
    skip: leave out files that can't be used, and name them in Raw.left_out; None: nobody can ask for that.
    Transparent parts become white. Raises ConfigError for training and test classes that differ; reading does so for
    all files together that are damaged or no images, and for images that don't fit into memory or the cache's disk.
    """
    folders = _parts(folder, held_out)
    problems: dict[Path, str] = {}
    parts = _Parts(*({} if part is None else _scan(part, problems, flat=part == folder) for part in folders))
    for part, found in zip(folders, parts, strict=True):
        if part is not None and found.keys() != parts.train.keys():
            odd = sorted(found.keys() ^ parts.train.keys())[0]
            missing = part if odd in parts.train else folders.train
            there = found if odd in parts.train else parts.train
            alike = [name for name in there if _composed(name) == _composed(odd)]
            # They look the same on a screen; file systems of other machines write them in the other way.
            hint = f", and {alike[0]!a}, of the same letters, is {odd!a} there" if alike else ""
            raise ConfigError(
                f"{missing} has no folder for the class {odd!r}; each class needs training and test images{hint}"
            )
    names = class_order if set(class_order) == parts.train.keys() else tuple(natural_sorted(parts.train))
    paths = [path for part in parts for name in names for path in part.get(name, ())]
    numbers = _Parts(*([len(part.get(name, ())) for name in names] for part in parts))
    return Found(str(folder), paths, partial(_read, folder, paths, names, numbers, image_size, problems, skip))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _read(
    folder: Path,
    paths: list[Path],
    names: tuple[str, ...],
    numbers: _Parts,
    image_size: int | None,
    problems: dict[Path, str],
    skip: bool | None,
) -> Raw:
    digests = content_digests(paths)
    images, remarks, broken = _cached(folder, paths, digests, image_size)
    problems = {**problems, **{paths[index]: why for index, why in broken.items()}}
    if problems and not skip:
        hint = f"; --skip-unreadable (skip_unreadable=True) leaves {'them' if len(problems) > 1 else 'it'} out"
        raise _unusable(folder, problems, hint if skip is not None else "")
    labels = _Parts(*(np.repeat(np.arange(len(names)), of_part) for of_part in numbers))
    used = np.delete(np.arange(len(paths)), list(broken))
    part_of = np.repeat(np.arange(3), [len(of_part) for of_part in labels])[used]
    found = _Parts(*(np.concatenate(labels)[used][part_of == part] for part in range(3)))
    for part, before, after in zip(_Parts._fields, labels, found, strict=True):
        if len(lost := np.setdiff1d(before, after)):
            raise ConfigError(f"{folder}: none of the {part} images of the class {names[lost[0]]!r} can be used")
    n_test = len(found.test)
    n = len(used) - n_test
    trained = {hash(image.tobytes()) for image in images[:n]} if n_test else set()
    tested = zip(used[n:], images[n:], strict=True)
    if copies := [paths[index] for index, image in tested if hash(image.tobytes()) in trained]:
        remarks = [*remarks, f"{len(copies):,} test images ({copies[0].relative_to(folder)}) are training images too"]
    if problems:
        remarks = [*remarks, f"{len(problems):,} files can't be used and are left out: {_listed(folder, problems, 3)}"]
    for remark in remarks:
        warnings.warn(f"{folder}: {remark}", stacklevel=2)
    return Raw(
        images[:n],
        np.concatenate([found.train, found.validation]),
        images[n:],
        found.test,
        names,
        n_validation=len(found.validation),
        left_out=tuple(natural_sorted(str(path.relative_to(folder)) for path in problems)),
    )


def _unusable(folder: Path, problems: dict[Path, str], hint: str) -> ConfigError:
    """Return one error for all files that can't be used."""
    if len(problems) == 1:
        ((path, why),) = problems.items()
        return ConfigError(f"{path} {why}{hint}")
    # Longer than other errors, since whoever mends the files needs all their names.
    text = f"{len(problems):,} files of {folder} can't be used: {_listed(folder, problems, NAMED)}{hint}"
    return ConfigError(text, longest=1400)


def _listed(folder: Path, problems: dict[Path, str], most: int) -> str:
    by_reason: dict[str, list[str]] = {}
    named = natural_sorted(str(path.relative_to(folder)) for path in problems)[:most]
    for name in named:
        by_reason.setdefault(problems[folder / name], []).append(name)
    texts = [f"{', '.join(names)} ({why.partition('; ')[0]})" for why, names in by_reason.items()]
    return "; ".join(texts) + (f"; and {len(problems) - most:,} more" if len(problems) > most else "")


def _parts(folder: Path, held_out: bool) -> _Parts:
    there = {path.name: path for path in _visible(folder) if path.is_dir()}
    held = [name for name in VALIDATION if name in there]
    # A class may be called train, too: its folder holds images, and no folders.
    by_class = not any(path.is_dir() for path in _visible(there["train"])) if "train" in there else True
    if held_out and by_class:
        return _Parts(folder, None, None)
    if held_out and "test" in there:
        raise ConfigError(f"{folder} has test images of its own; leave test_share out")
    if "train" not in there or len(held) > 1 or not (held_out or "test" in there or held):
        hint = ""
        if by_class and any(path.suffix.lower() in EXTENSIONS for sub in there.values() for path in _visible(sub)):
            hint = "; if these are the classes, --test-share 0.2 (test_share=0.2) makes a fifth of each class the test"
        raise ConfigError(
            f"{folder} must hold one folder 'train' and one folder 'test' or 'val', each CLASS/IMAGES, or all three; "
            f"its folders are {', '.join(list(there)[:6]) or 'none'}{hint}"
        )
    validation = there[held[0]] if held else None
    if held_out:
        return _Parts(there["train"], validation, None)
    return _Parts(there["train"], validation if "test" in there else None, there.get("test", validation))


def _scan(folder: Path, problems: dict[Path, str], *, flat: bool) -> dict[str, list[Path]]:
    """Return the image files of each class; what is none is added to the problems.

    flat: the folder is the whole data set, which may hold other files beside the classes.
    """
    classes = {}
    for class_folder in _visible(folder):
        if not class_folder.is_dir():
            if flat and class_folder.suffix.lower() not in EXTENSIONS:
                continue
            raise ConfigError(f"{class_folder} is not a folder; expected one folder for each class")
        files = {path: _no_image(path) for path in _visible(class_folder)}
        problems |= {path: why for path, why in files.items() if why}
        classes[class_folder.name] = [path for path, why in files.items() if not why]
        if not files:
            raise ConfigError(f"{class_folder} holds no images")
    if not classes:
        raise ConfigError(f"{folder} holds no folders of images, one for each class")
    return classes


def _no_image(path: Path) -> str:
    """Return why a path in the folder of a class is no image file, "" where it may be one; refuses a folder."""
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder in the folder of a class; train/CLASS/IMAGE and test/CLASS/IMAGE are read, "
            "val/CLASS/IMAGE for validation, and CLASS/IMAGE with test_share"
        )
    if not path.exists():
        return "is a link to a file that is not there"
    if path.suffix.lower() not in EXTENSIONS or not path.is_file():
        return f"is not an image file; accepted: {', '.join(EXTENSIONS)}"
    return "" if os.access(path, os.R_OK) else "can't be read: permission denied"


def _visible(folder: Path) -> list[Path]:
    try:
        names = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"{folder} can't be read: {error}") from error
    return sorted(path for path in names if path.name.lower() not in LITTER)


def _cached(
    folder: Path, paths: list[Path], digests: Sequence[bytes], size: int | None
) -> tuple[NDArray[np.uint8], list[str], dict[int, str]]:
    """Return the images [N, C, H, W] of the paths, mapped from the cache, remarks, and why some paths have no image.

    The digests of the files are their key. Images that the cache lacks are decoded into it.
    """
    key = hashlib.sha256(f"{DECODER} {size} ".encode() + b"".join(digests)).hexdigest()
    cached = cache_folder() / f"images-{key[:32]}.npy"
    found = _map(cached, len(paths))
    if found is None:
        if (broken := _decode_all(folder, paths, digests, size, cached)) is not None:
            return np.empty((0, 1, 1, 1), np.uint8), [], broken
        found = _map(cached, len(paths))
        if found is None:
            raise ConfigError(f"{cached} can't be read back; set CLBENCH_CACHE to a folder on a working disk")
    require_memory(found[0].nbytes, folder)
    return found


def _map(cached: Path, n: int) -> tuple[NDArray[np.uint8], list[str], dict[int, str]] | None:
    """Return what _cached() returns, or None if the cached array is missing or damaged.

    Behind the array the file holds, as JSON, its digest, the remarks, and the numbers of the files that were broken.
    """
    try:
        images = np.lib.format.open_memmap(cached, mode="r")
        with cached.open("rb") as file:
            file.seek(images.offset + images.nbytes)
            behind = json.loads(file.read())
        broken = {int(index): str(why) for index, why in behind.get("broken", {}).items()}
        fits = images.dtype == np.uint8 and images.ndim == 4 and len(images) == n - len(broken)
        if not fits or hashlib.blake2b(images.data, digest_size=16).hexdigest() != behind["digest"]:
            return None
        return np.asarray(images), list(behind["remarks"]), broken
    except Exception:  # numpy raises almost anything on a damaged header
        return None


def _decode_all(
    folder: Path, paths: list[Path], digests: Sequence[bytes], size: int | None, target: Path
) -> dict[int, str] | None:
    """Decode the files into the cache; return why each is broken where all of them are.

    Raises ConfigError for a file whose content has another digest by now.
    """
    from PIL import Image

    if len(paths) >= ANNOUNCE_FROM:
        print(f"clbench: reading {len(paths):,} images in {folder} (once: kept in {target})", file=sys.stderr)
    with ThreadPoolExecutor() as pool, _pillow_by_default(), warnings.catch_warnings():
        # _read_header refuses the images that Pillow would only warn of.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        tried = list(pool.map(_read_header, paths, digests))
        broken = {index: found for index, found in enumerate(tried) if isinstance(found, str)}
        headers = {paths[index]: found for index, found in enumerate(tried) if isinstance(found, _Header)}
        if not headers:
            return broken
        first = next(iter(headers))
        if size is None:
            for path, header in headers.items():
                if header.size != headers[first].size:
                    (w0, h0), (w, h) = headers[first].size, header.size
                    raise ConfigError(f"{first} is {w0}x{h0} and {path} {w}x{h} pixels; --image-size S makes all S x S")
        grey = all(header.grey for header in headers.values())
        width, height = (size, size) if size else headers[first].size
        shape = (len(headers), 1 if grey else 3, height, width)
        n_bytes = int(np.prod(shape, dtype=object))
        require_memory(n_bytes, folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(target.parent).free
            if n_bytes > free:
                raise ConfigError(f"{folder} needs {n_bytes:,} bytes in {target.parent}, and {free:,} are free")
            # Written front to back, not through a map, so that a full disk is an error, not a signal.
            with atomic_file(target) as file:
                _write_header(file, shape)
                pixels = hashlib.blake2b(digest_size=16)
                changed: dict[str, list[Path]] = {}
                sound = [index for index in range(len(paths)) if index not in broken]
                for start in range(0, len(sound), BATCH):
                    batch = sound[start : start + BATCH]
                    decoded = pool.map(lambda index: _decode(paths[index], digests[index], grey, size), batch)
                    for index, found in zip(batch, decoded, strict=True):
                        if isinstance(found, str):
                            broken[index] = found
                            continue
                        image, changes = found
                        pixels.update(image.tobytes())
                        file.write(image.tobytes())
                        for change in changes:
                            changed.setdefault(change, []).append(paths[index])
                remarks = [
                    f"{len(those):,} images ({those[0].relative_to(folder)}) {change}"
                    for change, those in sorted(changed.items())
                ]
                behind: dict[str, Any] = {"digest": pixels.hexdigest(), "remarks": remarks}
                if broken:
                    behind["broken"] = dict(sorted(broken.items()))
                file.write(json.dumps(behind).encode())
                # numpy leaves room for any number of images, so a smaller one is as long.
                file.seek(0)
                _write_header(file, (len(paths) - len(broken), *shape[1:]))
        except OSError as error:
            raise ConfigError(
                f"{target.parent} can't keep the images ({error}); set CLBENCH_CACHE to a folder"
            ) from error
    return broken if len(broken) == len(paths) else None


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


@contextmanager
def _pillow_by_default() -> Iterator[None]:
    """Decode as a fresh Pillow does, whatever its user has set: what is decoded is kept for everybody."""
    from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin

    settings: list[tuple[Any, str, object]] = [
        (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
        (ImageFile, "MAXBLOCK", 1 << 16),
        (Image, "MAX_IMAGE_PIXELS", (1 << 30) // 12),
        (PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 20),
        (PngImagePlugin, "MAX_TEXT_MEMORY", 1 << 26),
        (GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_AFTER_FIRST),
        (TiffImagePlugin, "READ_LIBTIFF", False),
        (BmpImagePlugin, "USE_RAW_ALPHA", False),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings if hasattr(owner, name)]
    for owner, name, value in settings:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _content(path: Path, digest: bytes) -> bytes:
    """Return the bytes of a file, which must be those that were digested: the digests name what is cached."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    if hashlib.sha256(content).digest() != digest:
        raise ConfigError(f"{path} was changed while it was read; begin again")
    return content


def _read_header(path: Path, digest: bytes) -> _Header | str:
    """Return what the header of an image file says, or why the file can't be used."""
    from PIL import Image

    content = _content(path, digest)
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode, (width, height) = image.mode, image.size
            if width * height > MAX_PIXELS:
                return f"claims {width} x {height} pixels; at most {MAX_PIXELS:,} are accepted"
            deep = _is_deep(image)
            if mode.startswith(("I", "F")) and not deep:
                return f"has more than 16 bits a channel (mode {mode}); images of 8 or 16 bits are accepted"
            if mode not in (*GREY_MODES, *COLOUR_MODES) and not deep:
                return f"has colours of the mode {mode}; grey, RGB, a palette or CMYK is accepted"
            if deep and "transparency" in image.info:
                return "has 16 bits a channel and a transparent colour; save it with an alpha channel"
            # Pillow opens grey of 16 bits with opacity as colour.
            is_grey = mode in GREY_MODES or mode.startswith("I") or (deep and _raw_mode(image).startswith("LA"))
            if why := _contradiction(image, content, deep):
                return why
            # A photo in the format MPO carries previews of itself.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                return "holds several pictures, as an animation does; files of one are accepted"
            # This decodes the image if its format stores EXIF data behind the pixels.
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in TURNED
            if turned and image.format == "TIFF":
                # Pillow turns these itself, in some versions before they are loaded.
                image.load()
                width, height = image.size
                turned = image.getexif().get(EXIF_ORIENTATION, 1) in TURNED
    except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
        return _damaged(error)
    return _Header((height, width) if turned else (width, height), is_grey)


def _contradiction(image: Any, content: bytes, deep: bool) -> str:
    """Return what of an image that was opened Pillow would read as something else without a word; "" for nothing."""
    kinds = image.tag_v2.get(TIFF_SAMPLE_FORMAT, ()) if image.format == "TIFF" else ()
    if SIGNED in (kinds if isinstance(kinds, tuple) else (kinds,)):
        return "has signed numbers for pixels; unsigned ones are accepted"
    if image.format != "PPM" or image.tile[0][0] not in ("raw", "ppm"):
        return ""
    (width, height), (decoder, _, start, args) = image.size, image.tile[0]
    row = -(-width // 8) if image.mode == "1" else width * len(image.getbands()) * (2 if deep else 1)
    pixels = np.frombuffer(content[start : start + height * row], ">u2" if deep else "u1")
    if content[start + height * row :].lstrip()[:1] == b"P":
        return "holds several pictures; files of one are accepted"
    if decoder == "ppm" and len(pixels) and pixels.max() > int(args[-1]):
        return f"has the value {pixels.max()} above {int(args[-1])}, which its header names as the largest"
    return ""


def _damaged(error: Exception) -> str:
    """Return what is wrong with a damaged file."""
    from PIL import UnidentifiedImageError

    unknown = isinstance(error, UnidentifiedImageError)
    return f"is not a readable image: {'no known format' if unknown else str(error) or type(error).__name__}"


def _is_deep(image: Any) -> bool:
    """Whether an image that was opened has 16 bits a channel, of which Pillow may keep 8 without a word."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return True
    # BGR;16 is a pixel of 16 bits, of which a channel has 5 or 6.
    return (";16" in _raw_mode(image) and _raw_mode(image) != "BGR;16") or any(
        tile[0].startswith("ppm") and int(tile[3][-1]) > 255 for tile in image.tile
    )


def _raw_mode(image: Any) -> str:
    """Return how the pixels stand in the file, in Pillow's words."""
    return " ".join(str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in image.tile[:1])


def _decode(path: Path, digest: bytes, grey: bool, size: int | None) -> tuple[NDArray[np.uint8], list[str]] | str:
    """Return one upright image [C, H, W] and how it was changed, or why it can't be used.

    Rounds as torchvision's Resize and CenterCrop do.
    """
    from PIL import Image, ImageOps

    changes, content = [], _content(path, digest)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            deep = _is_deep(opened)
            image: Any = ImageOps.exif_transpose(opened)
        if deep:
            changes.append(DEEP)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image, change = _on_white(image)
            changes += [change] if change else []
        elif image.mode == "CMYK":
            changes.append(CMYK)
        image = image.convert("L" if grey else "RGB")
        if size is not None:
            shorter = min(image.size)
            resized = tuple(size * side // shorter for side in image.size)
            if resized[0] * resized[1] > MAX_PIXELS:
                longer = f"{resized[0]} x {resized[1]} pixels before its centre is cut out"
                return f"becomes {longer}; at most {MAX_PIXELS:,} are accepted"
            image = image.resize(resized, Image.Resampling.BILINEAR)
            left, top = (round((side - size) / 2) for side in image.size)
            image = image.crop((left, top, left + size, top + size))
    except _NothingShownError:
        return "shows nothing once its transparent parts are white; save it without transparency"
    except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
        return _damaged(error)
    array = np.asarray(image)
    return (array[None] if grey else array.transpose(2, 0, 1)), changes


class _NothingShownError(Exception):
    """Raised for an image of which nothing is left on white."""


def _on_white(image: Any) -> tuple[Any, str]:
    """Lay an image on white, and say whether that changed it."""
    from PIL import Image

    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), ""
    shown: Any = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if all(low == high for low, high in shown.getextrema()) and any(low < high for low, high in image.getextrema()):
        raise _NothingShownError
    return shown, TRANSPARENT
