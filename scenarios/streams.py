"""Several data sets as one: brought to one size and number of channels, each with classes of its own."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clbench.config.arguments import checked
from clbench.config.errors import ConfigError, MissingDataError, shown, unknown
from clbench.config.registry import natural_sorted
from clbench.scenarios.datasets import Compared, Dataset, _mean_and_std, find_dataset, in_place, read_dataset
from clbench.scenarios.files import Found, content_digests, require_memory
from clbench.support.surroundings import by_default

CHUNK = 1024  # images resized at a time; it bounds the memory for their copies


class Source(NamedTuple):
    """A data set of a stream: the text that names it there, its name or path, and how it is read."""

    given: str
    dataset: str
    image_size: int | None = None
    test_share: float | None = None
    skip_unreadable: bool = False


class Part(NamedTuple):
    """The classes of one data set of a stream."""

    name: str
    class_names: tuple[str, ...]


@checked
@by_default()
def join(
    sets: Sequence[Dataset],
    *,
    names: Sequence[str] | None = None,
    image_size: int | None = None,
    statistics: Literal["all", "first"] = "all",
) -> Dataset:
    """Return several data sets as one, whose classes are those of the first, then those of the second, and so on.

    names: one for each set, which stands before the names of its classes ("mnist: 3"); by default its own name.
    image_size: images become S x S pixels; by default the longest side that there is, where their sizes differ.
    statistics: mean and deviation are those of all training images, or of the first data set.

    Images of other sizes are resized, the shorter side to S (bilinear, antialiased), and the centre S x S is cut out;
    grey ones become colour where one set has colour. Data of any other kind are joined where their shapes agree. Raises
    ConfigError for those that can't be brought to one shape.
    """
    for data in sets:
        data.check()
    names = [data.name for data in sets] if names is None else names
    if len(sets) < 1 or len(names) != len(sets) or len(set(names)) < len(names):
        raise ConfigError(
            f"{len(sets)} data sets are called {shown([*names])}; one or more, each by a name of its own (names=...), "
            "are accepted"
        )
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size={image_size} is not a size in pixels; 1 or more is accepted")
    shape = _common_shape(sets, names, image_size)
    kinds = {data.x_train.dtype for data in sets}
    if len(kinds) > 1:
        raise ConfigError(f"a stream of {', '.join(names)} mixes {', '.join(map(str, kinds))}; one of them is accepted")
    arrays = [np.asarray(data.x_train) for data in sets]
    n_values = sum(len(data.x_train) + len(data.x_test) for data in sets) * int(np.prod(shape, dtype=object))
    require_memory(n_values * arrays[0].itemsize, f"a stream of {', '.join(names)}")
    firsts = np.cumsum([0, *(len(data.class_names) for data in sets)])
    held = [len(data.x_train) - data.n_validation for data in sets]
    # A validation split is at the end, so that of all sets is behind the training images of all sets.
    train = [(x[:n], data.y_train[:n]) for x, data, n in zip(arrays, sets, held, strict=True)]
    train += [(x[n:], data.y_train[n:]) for x, data, n in zip(arrays, sets, held, strict=True)]
    x_train = _all([images for images, _ in train], shape)
    mean, std = (sets[0].mean, sets[0].std) if statistics == "first" else _mean_and_std(x_train[: sum(held)])
    if len(mean) < shape[0]:
        mean, std = mean * shape[0], std * shape[0]  # grey images that become colour
    return Dataset(
        "stream",
        x_train,
        np.concatenate([labels + firsts[i % len(sets)] for i, (_, labels) in enumerate(train)]),
        _all([np.asarray(data.x_test) for data in sets], shape),
        np.concatenate([data.y_test + first for data, first in zip(sets, firsts, strict=False)]),
        tuple(f"{name}: {c}" for name, data in zip(names, sets, strict=True) for c in data.class_names),
        mean,
        std,
        ", ".join(data.origin for data in sets),
        sum(data.n_validation for data in sets),
        left_out=tuple(f"{name}/{file}" for name, data in zip(names, sets, strict=True) for file in data.left_out),
    )


def _common_shape(sets: Sequence[Dataset], names: Sequence[str], image_size: int | None) -> tuple[int, ...]:
    shapes = [data.x_train.shape[1:] for data in sets]
    if len(set(shapes)) == 1 and image_size is None:
        return shapes[0]
    for name, data in zip(names, sets, strict=True):
        if data.x_train.dtype != np.uint8 or data.x_train.ndim != 4:
            raise ConfigError(
                f"{name} holds {data.x_train.dtype} {list(data.x_train.shape[1:])}, which can't be brought to the size "
                "of other data; images, or data of one shape without image_size, are accepted"
            )
    size = image_size or max(max(shape[1:]) for shape in shapes)
    return max(shape[0] for shape in shapes), size, size


def _all(parts: Sequence[NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return all images of the parts in one array, each of the shape [C, H, W]."""
    made = np.empty((sum(map(len, parts)), *shape), parts[0].dtype)
    start = 0
    for images in parts:
        for chunk in fitted(images, shape):
            made[start : start + len(chunk)] = chunk
            start += len(chunk)
    return made


def fitted(images: NDArray[Any], shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield images [N, C, H', W'] in parts, resized to the S x S of a shape, (C, S, S); see join()."""
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        if part.shape[2:] != shape[1:]:
            from torchvision.transforms import InterpolationMode
            from torchvision.transforms.v2.functional import center_crop, resize

            pixels = torch.from_numpy(np.array(part))  # torch needs a writable array
            pixels = resize(pixels, [shape[-1]], InterpolationMode.BILINEAR, antialias=True)
            part = center_crop(pixels, [*shape[1:]]).numpy()
        yield part  # written into the larger array, one channel serves for three


# A worker process joins the data sets once for all its runs, as it loads a single one once.
_latest: dict[str, tuple[object, Dataset, list[Part]]] = {}


def join_once(
    sources: Sequence[Source],
    data_root: str,
    offline: bool,
    image_size: int | None,
    memory_limit: int | str | None = None,
    *,
    statistics: Literal["all", "first"] = "all",
) -> tuple[Dataset, list[Part]]:
    """Return join() of data sets, and the classes of each; the latest one comes from memory while they are the same.

    Each source is found as load_dataset() finds it. The digest of the whole follows from those of the parts; it is None
    where each of them is as it was published. Raises ConfigError.
    """
    found: list[Found | Dataset] = []
    missing: dict[str, MissingDataError] = {}
    for source in sources:
        share, skip = source.test_share, source.skip_unreadable
        try:
            found.append(
                find_dataset(
                    source.dataset, data_root, offline, source.image_size, test_share=share, skip_unreadable=skip
                )
            )
        except MissingDataError as error:
            missing[source.dataset] = error
    if missing:
        first, *others = missing
        rest = f"; there is none for {' and '.join(others)} either" if others else ""
        raise MissingDataError(f"{missing[first]}{rest}", longest=1000)
    digests = [f.fingerprint if isinstance(f, Dataset) else content_digests(f.paths) for f in found]
    # The folder of an image is its class.
    paths = [None if isinstance(f, Dataset) else (f.origin, [*map(str, f.paths)]) for f in found]
    key = image_size, memory_limit, statistics, list(sources), paths, digests
    latest = _latest.get("data")
    if latest is None or latest[0] != key or latest[1].compared.content != latest[1].checksums():
        _latest.clear()  # before others come, since each may fill the memory
        sets = [
            f if isinstance(f, Dataset) else read_dataset(source.dataset, f, source.image_size, source.test_share)
            for source, f in zip(sources, found, strict=True)
        ]
        for f, digest in zip(found, digests, strict=True):
            if not isinstance(f, Dataset) and content_digests(f.paths) != digest:
                raise ConfigError(f"files of {f.origin} were changed while they were read; begin again")
        names = _names(sources, sets)
        made = join(sets, names=names, image_size=image_size, statistics=statistics)
        if memory_limit is not None:
            x_train, x_test = in_place((made.x_train, made.x_test), made.name, memory_limit)
            made = replace(made, x_train=x_train, x_test=x_test)
        of_sets = [data.fingerprint for data in sets]
        whole = hashlib.blake2b(repr(of_sets).encode(), digest_size=16).hexdigest() if any(of_sets) else None
        vars(made)["compared"] = Compared(whole, {}, made.checksums())
        parts = [Part(name, data.class_names) for name, data in zip(names, sets, strict=True)]
        _latest["data"] = latest = key, made, parts
    return latest[1], latest[2]


def _names(sources: Sequence[Source], sets: Sequence[Dataset]) -> list[str]:
    """Return the name of each data set; folders of one name in several places are named by their paths."""
    several = Counter(data.name for data in sets)
    return [
        data.name if several[data.name] == 1 else str(Path(source.dataset))
        for source, data in zip(sources, sets, strict=True)
    ]


def domain_folders(root: Path, chosen: Sequence[str] | None) -> list[Path]:
    """Return the folders of ROOT/DOMAIN/..., all in natural order or those chosen; raises ConfigError."""
    from clbench.scenarios.images import visible

    if not root.is_dir():
        raise ConfigError(f"there is no folder {root}; a folder with one folder for each domain is accepted")
    there = {path.name: path for path in visible(root) if path.is_dir()}
    if "train" in there or len(there) < 2:
        raise ConfigError(
            f"{root} must hold two or more folders, one for each domain, each CLASS/IMAGES; its folders are "
            f"{', '.join(list(there)[:6]) or 'none'}" + ("; its path alone is a scenario" if "train" in there else "")
        )
    for name in chosen or ():
        if list(chosen or ()).count(name) > 1:
            raise ConfigError(f"the domain {name} of {root} is given more than once; each once is accepted")
        if name not in there:
            raise unknown(f"domain of {root}", name, natural_sorted(there))
    return [there[name] for name in chosen or natural_sorted(there)]
