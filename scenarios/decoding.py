"""Decodes one image file: what it shows, upright, on white, in 8 bits a channel; or why it can't be used."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
TIFF_SAMPLE_FORMAT, SIGNED = 339, 2
MAX_PIXELS = 1 << 26  # a file of a few kB can claim any number, and each core decodes an image at a time
# Part of the name of what is cached: another way of decoding is another number.
DECODER = 3
TRANSPARENT, CMYK = "have transparent parts and are laid on white", "are CMYK and become RGB without a colour profile"
DEEP = "have 16 bits a channel, of which the upper 8 are kept"


class Decoded(NamedTuple):
    """An image, uint8 [C, H, W], with 1 channel where its file is grey and else 3, and how it was changed, in words."""

    image: NDArray[np.uint8]
    changes: list[str]


def decode(content: bytes, size: int | None) -> Decoded | str:
    """Return the upright image in the content of a file, or why it can't be used.

    size: S resizes the shorter side to S and cuts out the centre; it rounds as torchvision's Resize and CenterCrop do.
    """
    from PIL import Image, ImageOps

    changes: list[str] = []
    try:
        with Image.open(io.BytesIO(content)) as opened:
            mode, (width, height), deep = opened.mode, opened.size, _is_deep(opened)
            if why := _refused(opened, content, deep):
                return why
            # Pillow opens grey of 16 bits with opacity as colour.
            grey = mode in GREY_MODES or mode.startswith("I") or (deep and _raw_mode(opened).startswith("LA"))
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
            width, height = (size * side // shorter for side in image.size)
            if width * height > MAX_PIXELS:
                longer = f"{width} x {height} pixels before its centre is cut out"
                return f"becomes {longer}; at most {MAX_PIXELS:,} are accepted"
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = round((width - size) / 2), round((height - size) / 2)
            image = image.crop((left, top, left + size, top + size))
    except _NothingShownError:
        return "shows nothing once its transparent parts are white; save it without transparency"
    except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
        return _damaged(error)
    array = np.asarray(image)
    return Decoded(array[None] if grey else array.transpose(2, 0, 1), changes)


def _refused(image: Any, content: bytes, deep: bool) -> str:
    """Return why an image that was opened is refused by what its header says; "" where it is not."""
    mode, (width, height) = image.mode, image.size
    if width * height > MAX_PIXELS:
        return f"claims {width} x {height} pixels; at most {MAX_PIXELS:,} are accepted"
    if mode.startswith(("I", "F")) and not deep:
        return f"has more than 16 bits a channel (mode {mode}); images of 8 or 16 bits are accepted"
    if mode not in (*GREY_MODES, *COLOUR_MODES) and not deep:
        return f"has colours of the mode {mode}; grey, RGB, a palette or CMYK is accepted"
    if deep and "transparency" in image.info:
        return "has 16 bits a channel and a transparent colour; save it with an alpha channel"
    if why := _contradiction(image, content, deep):
        return why
    # A photo in the format MPO carries previews of itself.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "holds several pictures, as an animation does; files of one are accepted"
    return ""


@contextmanager
def pillow_by_default() -> Iterator[None]:
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
