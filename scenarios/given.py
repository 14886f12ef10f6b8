"""Images that a finished run is given to classify: read as data sets are, and brought to the run's shape as its own."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench.config.errors import ConfigError
from clbench.config.registry import natural_sorted
from clbench.scenarios.decoding import EXTENSIONS, decode, pillow_by_default
from clbench.scenarios.encoded import in_words, too_large
from clbench.scenarios.files import read_images, require_memory, to_samples
from clbench.scenarios.images import visible
from clbench.scenarios.streams import fitted

NAMED = 10


def of_run(samples: Any, what: str, shape: tuple[int, ...], *, of_images: bool) -> NDArray[Any]:
    """Return samples [N, ...] of a run's shape, uint8 or float32; grey images serve a run of colour ones.

    Raises ConfigError for those of another kind or shape.
    """
    found = to_samples(samples, what)
    if (found.dtype == np.uint8) != of_images:
        kind = "uint8 images of 0..255" if of_images else "floats"
        raise ConfigError(f"{what} is {found.dtype}, and the run was trained on {kind}; the same are accepted")
    if of_images and found.shape[1] == 1 and shape[0] == 3:
        found = np.broadcast_to(found, (len(found), 3, *found.shape[2:]))
    if found.shape[1:] != shape:
        raise ConfigError(f"{what} has samples of {list(found.shape[1:])}; those of the run are {list(shape)}")
    return found


def images_in(
    places: Sequence[str],
    shape: tuple[int, ...],
    *,
    of_images: bool,
    image_size: int | None = None,
    fits: bool = False,
    skip: bool = False,
) -> tuple[list[str], NDArray[Any]]:
    """Return the samples in files, folders of images and arrays, .npy or .npz, each with a name; see of_run().

    image_size: the shorter side of an image is resized to it, and the centre cut out, as the run's own files were.
    fits: images of another size are resized to the run's, as a stream does; otherwise they are refused.
    skip: leave out image files that can't be used, with a warning. Raises ConfigError for all of them together.
    """
    names: list[str] = []
    found: list[NDArray[Any]] = []
    problems: dict[str, str] = {}
    for place in places:
        if Path(place).suffix.lower() in (".npy", ".npz") and not os.path.isdir(place):
            for name, array in read_images(Path(place)).items():
                what = f"{place}: {name}" if name else place
                samples = to_samples(array, what)
                found.append(of_run(_brought(samples, shape, fits and of_images), what, shape, of_images=of_images))
                names += [f"{what}[{index}]" for index in range(len(samples))]
            continue
        if not of_images:
            raise ConfigError(f"{place} is no array, and the run was trained on floats; .npy and .npz are accepted")
        for path in _listed(Path(place)):
            image = _read(path, image_size, shape, fits)
            if isinstance(image, str):
                problems[str(path)] = image
            else:
                names.append(str(path))
                found.append(image[None])
        require_memory(0 if not found else found[-1].nbytes, place)
    if problems and not (skip and found):
        hint = "; --skip-unreadable (skip_unreadable=True) leaves them out" if found else ""
        if len(problems) == 1:
            ((name, why),) = problems.items()
            raise ConfigError(f"{name} {why}{hint}")
        text = f"{len(problems):,} files can't be used: {in_words(problems, NAMED)}{hint}"
        raise ConfigError(text, longest=1400)
    if problems:
        warnings.warn(f"{len(problems):,} files are left out: {in_words(problems, NAMED)}", stacklevel=2)
    return names, np.concatenate(found)


def _brought(samples: NDArray[Any], shape: tuple[int, ...], fits: bool) -> NDArray[Any]:
    """Return images [N, C, H, W] at the size of a run, where it is one that brings images to its size."""
    if not fits or samples.dtype != np.uint8 or samples.shape[2:] == shape[1:]:
        return samples
    return np.concatenate(list(fitted(samples, (samples.shape[1], *shape[1:]))))


def _listed(place: Path) -> list[Path]:
    """Return a file, or the image files below a folder in natural order; raises ConfigError where there are none."""
    if not place.is_dir():
        return [place]
    below = [Path(root) for root, _, _ in os.walk(place)]
    paths = [path for folder in below for path in visible(folder) if path.suffix.lower() in EXTENSIONS]
    if not paths:
        raise ConfigError(f"{place} holds no images; files of the kinds {', '.join(EXTENSIONS)} are accepted")
    by_name = {str(path): path for path in paths if path.is_file()}
    return [by_name[name] for name in natural_sorted(by_name)]


def _read(path: Path, image_size: int | None, shape: tuple[int, ...], fits: bool) -> NDArray[np.uint8] | str:
    """Return the image in a file, uint8 [C, H, W] of a run's shape, or why it can't be used."""
    if path.is_dir():
        return "is a folder in the place of a file"
    try:
        if why := too_large(path.stat().st_size):
            return why
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # no path can hold a NUL
        return f"can't be read: {getattr(error, 'strerror', None) or error}"
    with pillow_by_default(), warnings.catch_warnings():
        # decode() refuses the images that Pillow would only warn of.
        warnings.simplefilter("ignore")
        decoded = decode(content, image_size)
    if isinstance(decoded, str):
        return decoded
    image = _brought(decoded.image[None], shape, fits)[0]
    if image.shape[1:] != shape[1:]:
        (h, w), (height, width) = image.shape[1:], shape[1:]
        return f"is {w}x{h} pixels, and the images of the run are {width}x{height}"
    if len(image) > shape[0]:
        return "is in colours, and the images of the run are grey"
    return np.broadcast_to(image, shape)
