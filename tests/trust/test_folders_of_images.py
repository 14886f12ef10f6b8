"""Folders of images: each kind of picture is read right, noted or refused; layouts; the cache follows the content.

Expected pixels are written out by hand or come from numpy, never from the reader.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clbench
from clbench.config.errors import ConfigError
from clbench.running.resolve import prepare, resolve
from clbench.scenarios import files
from clbench.scenarios.datasets import Dataset, load_dataset

WIDE = np.arange(8, dtype=np.uint8).reshape(2, 4) * 36  # 0 to 252, two rows of four


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def grey(value: int = 0) -> bytes:
    """A plain grey picture of 4 x 2 pixels."""
    return encoded(Image.new("L", (4, 2), value))


def folder_with(root: Path, content: bytes, suffix: str = ".png") -> Path:
    """Classes a and b; the picture in question is the first training image of a."""
    for place in ("train/a/0", "train/b/1", "test/a/2", "test/b/3"):
        path = root / f"{place}{suffix if place == 'train/a/0' else '.png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if place == "train/a/0" else grey(10 * int(place[-1])))
    return root


def read(folder: Path, **options: Any) -> tuple[Dataset, list[str]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = load_dataset(folder, "nowhere", **options)
    return data, [str(warning.message) for warning in told]


def rgba(red: Any, green: Any, blue: Any, alpha: Any) -> Image.Image:
    return Image.fromarray(np.dstack([np.broadcast_to(c, (2, 4)).astype(np.uint8) for c in (red, green, blue, alpha)]))


def palette(**options: Any) -> bytes:
    """Indices 0 to 7 into the colours (16 i, 0, 255)."""
    image = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4), "P")
    image.putpalette([value for i in range(8) for value in (16 * i, 0, 255)])
    return encoded(image, **options)


def png(depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of 4 x 2 pixels, chunk by chunk as the specification says."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4, 2, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def three(*channels: Any) -> Any:
    return np.stack([np.broadcast_to(c, (2, 4)) for c in channels]).astype(np.uint8)


PLAIN = three(WIDE, 255 - WIDE, 7)
INDEX = np.arange(8).reshape(2, 4)
KEYED = np.where(WIDE == 36, 255, WIDE)

READ: dict[str, tuple[bytes, Any, bool]] = {
    # Black laid on white with opacity a / 255 is 255 - a.
    "all black, the picture in the alpha channel": (encoded(rgba(0, 0, 0, WIDE)), three(*[255 - WIDE] * 3), True),
    "grey and alpha": (
        encoded(Image.fromarray(np.dstack([0 * WIDE, WIDE]), "LA")),
        (255 - WIDE)[None],
        True,
    ),
    "opaque alpha": (encoded(rgba(*PLAIN, 255)), PLAIN, False),
    "half transparent": (encoded(rgba(WIDE, 0, 0, 0 * WIDE + np.array([255, 255, 0, 0]))), None, True),
    "empty": (encoded(rgba(0, 0, 0, 0)), three(255, 255, 255), True),
    "a palette": (palette(), three(16 * INDEX, 0, 255), False),
    "a palette with one transparent colour": (
        palette(transparency=3),
        three(np.where(INDEX == 3, 255, 16 * INDEX), np.where(INDEX == 3, 255, 0), 255),
        True,
    ),
    "a palette with an opacity for each colour": (
        palette(transparency=bytes([0, 0, 0, 255, 255, 255, 255, 255])),
        three(np.where(INDEX < 3, 255, 16 * INDEX), np.where(INDEX < 3, 255, 0), 255),
        True,
    ),
    "grey with a transparent value": (encoded(Image.fromarray(WIDE), transparency=36), KEYED[None], True),
    "colour with a transparent value": (
        encoded(Image.fromarray(np.moveaxis(PLAIN, 0, 2)), transparency=(36, 219, 7)),
        three(KEYED, np.where(WIDE == 36, 255, 255 - WIDE), np.where(WIDE == 36, 255, 7)),
        True,
    ),
    "black and white": (encoded(Image.fromarray(WIDE > 100)), (255 * (WIDE > 100))[None], False),
    # 4 bits: the value 15 is white, so v becomes 17 v.
    "4 bits": (png(4, 0, b"\0\x01\x23\0\xed\xcf"), np.array([[[0, 17, 34, 51], [238, 221, 204, 255]]]), False),
}


@pytest.mark.parametrize("kind", READ)
def test_each_kind_of_picture_is_read_as_a_person_would_see_it_on_white(kind: str, tmp_path: Path) -> None:
    content, expected, is_noted = READ[kind]
    data, told = read(folder_with(tmp_path / "own", content))
    if expected is not None:
        assert np.array_equal(data.x_train[0], expected)
    else:  # the left half as it is, the right half white
        assert np.array_equal(data.x_train[0, :, :, :2], three(WIDE, 0, 0)[:, :, :2])
        assert (data.x_train[0, :, :, 2:] == 255).all()
    assert [text for text in told if "transparent" in text] == told
    assert len(told) == is_noted
    if is_noted:
        assert "1 images (train/a/0.png) have transparent parts and are laid on white" in told[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photo_is_upright_whatever_its_exif_orientation_is(orientation: int, form: str, tmp_path: Path) -> None:
    """What is stored is turned so that undoing the orientation, as EXIF 2.3 defines it, gives one picture.

    1 as it is, 2 mirrored left to right, 3 turned by 180 degrees, 4 mirrored top to bottom, 5 transposed, 6 to be
    turned by 90 degrees clockwise, 7 transposed along the other diagonal, 8 to be turned counter-clockwise.
    """
    picture = np.kron(WIDE, np.ones((8, 8), np.uint8))  # squares of 8 pixels, which JPEG keeps
    undo: list[Callable[[Any], Any]] = [
        lambda x: x,
        np.fliplr,
        lambda x: np.rot90(x, 2),
        np.flipud,
        np.transpose,
        lambda x: np.rot90(x, 1),
        lambda x: np.rot90(np.transpose(x), 2),
        lambda x: np.rot90(x, -1),
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo[orientation - 1](picture))
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(form, {})
    content = encoded(Image.fromarray(stored).convert("RGB"), form, exif=exif, **options)
    folder = folder_with(tmp_path / "own", content, "." + form.lower())
    for path in folder.rglob("*.png"):
        if path.name != "0.png":
            Image.new("RGB", (32, 16), int(path.stem)).save(path)
    data, _ = read(folder)
    assert data.x_train.shape == (2, 3, 16, 32)
    assert np.abs(data.x_train[0].astype(int) - picture).max() <= 2


def frames(form: str, **options: Any) -> bytes:
    images = [Image.new("RGB", (4, 2), (80 * i, 0, 0)) for i in range(3)]
    return encoded(images[0], form, save_all=True, append_images=images[1:], **options)


def raw16(*channels: Any, low: int = 200) -> bytes:
    """The rows of a PNG of 16 bits a channel, whose upper bytes are the channels; each row begins with its filter."""
    upper = np.stack([np.broadcast_to(c, (2, 4)) for c in channels], -1).astype(np.uint16)
    return b"".join(b"\0" + (row * 256 + low).astype(">u2").tobytes() for row in upper)


def netpbm(header: str, *channels: Any) -> bytes:
    """A PGM or PPM of 16 bits a value, each 257 times one of 8 bits."""
    values = np.stack([np.broadcast_to(c, (2, 4)) for c in channels], -1).astype(np.uint16) * 257
    return f"{header} 4 2 65535\n".encode() + values.astype(">u2").tobytes()


TIMES_257 = Image.fromarray(WIDE.astype(np.uint16) * 257)
UPPER_FIRST = Image.frombytes("I;16B", (4, 2), (WIDE.astype(np.uint16) * 257).astype(">u2").tobytes())
# Refused until 0.2: photographers and microscopes write such files, and their upper 8 bits are the picture.
DEEP: dict[str, tuple[bytes, str, Any]] = {
    "grey": (png(16, 0, raw16(WIDE)), ".png", WIDE[None]),
    "grey, by Pillow": (encoded(TIMES_257), ".png", WIDE[None]),
    "colour": (png(16, 2, raw16(WIDE, 7, 255 - WIDE)), ".png", three(WIDE, 7, 255 - WIDE)),
    "colour and opaque": (png(16, 6, raw16(WIDE, 7, 255 - WIDE, 255)), ".png", three(WIDE, 7, 255 - WIDE)),
    "grey and opaque": (png(16, 4, raw16(WIDE, 255)), ".png", WIDE[None]),
    "PGM": (netpbm("P5", WIDE), ".pgm", WIDE[None]),
    "PPM": (netpbm("P6", WIDE, 7, 255 - WIDE), ".ppm", three(WIDE, 7, 255 - WIDE)),
    "TIFF": (encoded(TIMES_257, "TIFF"), ".tif", WIDE[None]),
    "TIFF, the upper byte first": (encoded(UPPER_FIRST, "TIFF"), ".tif", WIDE[None]),
}


@pytest.mark.parametrize("kind", DEEP)
def test_of_16_bits_a_channel_the_upper_8_are_kept_with_a_note(kind: str, tmp_path: Path) -> None:
    content, suffix, expected = DEEP[kind]
    data, told = read(folder_with(tmp_path / "own", content, suffix))
    assert np.array_equal(data.x_train[0], expected)
    assert len(told) == 1
    assert f"1 images (train/a/0{suffix}) have 16 bits a channel, of which the upper 8 are kept" in told[0]


def test_16_bits_with_half_transparent_parts_are_laid_on_white_with_both_notes(tmp_path: Path) -> None:
    """Black of opacity 100 / 255 on white is 155."""
    data, told = read(folder_with(tmp_path / "own", png(16, 6, raw16(0, 0, 0, 100, low=0))))
    assert (data.x_train[0] == 155).all()
    assert len(told) == 2


def lab() -> bytes:
    return encoded(Image.new("LAB", (4, 2), (50, 10, 10)), "TIFF")


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "white on nothing": (encoded(rgba(255, 255, 255, WIDE)), ".png", "shows nothing once its transparent parts"),
    "a picture that is wholly transparent": (encoded(rgba(WIDE, 0, 0, 0)), ".png", "shows nothing once"),
    "32 bits": (encoded(Image.fromarray(WIDE.astype(np.int32)), "TIFF"), ".tif", "more than 16 bits"),
    "floats": (encoded(Image.fromarray(WIDE.astype(np.float32)), "TIFF"), ".tif", "more than 16 bits"),
    "an animated GIF": (frames("GIF"), ".gif", "holds several pictures"),
    "an animated PNG": (frames("PNG"), ".png", "holds several pictures"),
    "an animated WebP": (frames("WEBP"), ".webp", "holds several pictures"),
    "a TIFF of three pages": (frames("TIFF"), ".tiff", "holds several pictures"),
    "a colour space that Pillow makes something else of": (lab(), ".tif", "has colours of the mode LAB"),
    "text": (b"no picture", ".png", "is not a readable image"),
    "nothing": (b"", ".jpg", "is not a readable image"),
    "half a file": (grey()[:44], ".png", "is not a readable image"),
    "another suffix": (grey(), ".txt", "is not an image file; accepted: .png"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_picture_that_would_be_changed_without_a_word_is_refused_by_its_name(
    kind: str, tmp_path: Path, refused: Any
) -> None:
    content, suffix, reason = REFUSED[kind]
    with refused(f"train/a/0{suffix}", reason):
        load_dataset(folder_with(tmp_path / "own", content, suffix), "nowhere")


def test_a_photo_with_its_preview_in_the_same_file_is_read(tmp_path: Path) -> None:
    """Telephones write JPEGs of the format MPO; the first of the pictures in it is the photo."""
    photo, preview = Image.new("RGB", (4, 2), (200, 0, 0)), Image.new("RGB", (2, 1), (0, 0, 200))
    content = encoded(photo, "MPO", save_all=True, append_images=[preview])
    data, _ = read(folder_with(tmp_path / "own", content, ".jpg"))
    assert (data.x_train[0, 0] > 190).all()
    assert (data.x_train[0, 2] < 10).all()


def test_cmyk_is_read_and_noted(tmp_path: Path) -> None:
    """Cyan is the absence of red; a profile of a press would make another cyan of it, so it is said."""
    content = encoded(Image.new("CMYK", (4, 2), (255, 0, 0, 0)), "JPEG", quality=100)
    data, told = read(folder_with(tmp_path / "own", content, ".jpg"))
    assert np.abs(data.x_train[0].astype(int) - three(0, 255, 255)).max() <= 3
    assert len(told) == 1
    assert "1 images (train/a/0.jpg) are CMYK and become RGB without a colour profile" in told[0]


def test_a_note_comes_with_each_reading_also_from_the_cache(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "own", READ["grey and alpha"][0])
    first, again = read(folder)[1], read(folder)[1]
    assert len(first) == 1
    assert again == first


def test_pictures_of_several_sizes_and_modes_become_one_array(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "own", encoded(rgba(0, 0, 0, WIDE).resize((40, 80))))
    (folder / "train/b/4.jpg").write_bytes(encoded(Image.new("L", (30, 90), 50), "JPEG"))
    (folder / "train/b/5.gif").write_bytes(encoded(Image.new("P", (33, 44)), "GIF"))
    with pytest.raises(ConfigError, match="--image-size S makes all S x S"):
        load_dataset(folder, "nowhere")
    data, _ = read(folder, image_size=4)
    assert data.x_train.shape == (4, 3, 4, 4)


# The cache


def bitmaps(root: Path, value: int) -> Path:
    """Four BMPs of one colour, so that other colours give files of the same size."""
    for i, place in enumerate(("train/a/0", "train/b/0", "test/a/0", "test/b/0")):
        path = root / f"{place}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 2), (value, i, 0)).save(path)
    return root


def rewrite(root: Path, value: int) -> None:
    """Write other pixels with the sizes and times of the old ones."""
    times = {path: path.stat() for path in root.rglob("*.bmp")}
    bitmaps(root, value)
    for path, stat in times.items():
        assert path.stat().st_size == stat.st_size
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_mtime_ns == stat.st_mtime_ns


@pytest.mark.parametrize("seconds", [None, 0])
def test_bmps_rewritten_with_their_sizes_and_times_put_back_give_the_new_pixels(
    seconds: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where files count as settled at once: the time of change, which can't be put back, is looked at."""
    if seconds is not None:
        monkeypatch.setattr(files, "SETTLED_NS", seconds)
    folder = bitmaps(tmp_path / "own", 10)
    assert (load_dataset(folder, "nowhere").x_train[:, 0] == 10).all()
    rewrite(folder, 20)
    assert (load_dataset(folder, "nowhere").x_train[:, 0] == 20).all()
    runs = [prepare(resolve(folder, "naive", {"tasks": 1}))[0].identity()]
    rewrite(folder, 30)
    runs.append(prepare(resolve(folder, "naive", {"tasks": 1}))[0].identity())
    assert runs[0] != runs[1]


def test_a_copy_of_a_folder_is_decoded_once(tmp_path: Path, cache: Path) -> None:
    for name in ("one", "two"):
        load_dataset(bitmaps(tmp_path / name, 10), "nowhere")
    assert len(list(cache.iterdir())) == 1


def test_each_byte_of_the_cache_counts(tmp_path: Path, cache: Path) -> None:
    """A byte that fell over on the disk gives the pixels of the files, not those of the cache."""
    folder = bitmaps(tmp_path / "own", 10)
    expected = load_dataset(folder, "nowhere").x_train.copy()
    (cached,) = cache.iterdir()
    whole = cached.read_bytes()
    for place in range(0, len(whole), 5):
        cached.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert np.array_equal(load_dataset(folder, "nowhere").x_train, expected), place


# Layouts


def laid_out(root: Path, *parts: str) -> Path:
    """Two classes with two pictures in each part, all different."""
    value = 0
    for part in parts:
        for name in ("a", "b"):
            for i in range(2):
                path = root / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(grey(value := value + 5))
    return root


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_with_train_val_and_test_the_second_is_the_validation_split(name: str, tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "own", "train", name, "test")
    config, scenario = prepare(resolve(folder, "naive", {"tasks": 2}))
    for task, c in zip(scenario.tasks, (0, 1), strict=True):
        values = [data.images[:, 0, 0, 0].tolist() for data in (task.train, task.validation, task.test)]
        # The pictures are 5, 10, 15, ...: the two of class a and the two of b, part after part.
        assert values == [[20 * part + 10 * c + 5, 20 * part + 10 * c + 10] for part in range(3)]
    assert config.data.validation == 0
    few = prepare(resolve(folder, "naive", {"tasks": 2, "limit": 1}))[1].tasks[1]
    assert (len(few.train), len(few.validation), len(few.test)) == (1, 2, 2)
    merged = laid_out(tmp_path / "other", "train", "test")
    assert prepare(resolve(merged, "naive", {"tasks": 2}))[0].identity() != config.identity()


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_without_a_third_folder_the_second_is_for_testing(name: str, tmp_path: Path) -> None:
    task = prepare(resolve(laid_out(tmp_path / "own", "train", name), "naive", {"tasks": 1}))[1].tasks[0]
    assert (len(task.train), len(task.validation), len(task.test)) == (4, 0, 4)


def test_the_validation_folder_serves_early_stopping_and_tuning(tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "own", "train", "val", "test")
    options = {"tasks": 1, "model": "mlp:2", "batch_size": 2, "epochs": 2, "threads": 1}
    result = clbench.run(folder, "naive", patience=1, out=tmp_path / "run", **options)
    assert result.record["training"][0]["validation_loss"] is not None
    assert result.record["scenario"]["tasks"][0]["n_validation"] == 4
    found = clbench.tune(folder, "naive", protocol="oracle", trials=1, out=tmp_path / "tuned", **options)
    assert found.record["validation"] == 0.5
    with pytest.raises(ConfigError, match=r"validation=0.5 and the 4 validation images of own itself exclude"):
        clbench.run(folder, "naive", validation=0.5, **options)


@pytest.mark.parametrize("watching", [{"patience": 1}, {"schedule": "plateau"}])
def test_what_watches_a_validation_split_needs_one(watching: dict[str, Any], tmp_path: Path, refused: Any) -> None:
    folder = laid_out(tmp_path / "own", "train", "test")
    with refused("watches a validation split, and task 0 has none; give validation, such as 0.1", min(watching)):
        clbench.run(folder, "naive", tasks=1, **watching)


def damage(folder: Path, how: str) -> None:
    if how == "a folder in a class":
        (folder / "train/a/sub").mkdir()
        (folder / "train/a/sub/1.png").write_bytes(grey())
    elif how == "two validation folders":
        laid_out(folder, "val", "valid")
    elif how == "no train":
        (folder / "train").rename(folder / "Training")
    elif how == "no test":
        (folder / "test").rename(folder / "tests")
    elif how == "no splits":
        for part in ("train", "test"):
            (folder / part).rename(folder / f"class-{part}")
    elif how == "an empty class":
        (folder / "train/c").mkdir()
        (folder / "train/c/.DS_Store").touch()
    elif how == "a class without test images":
        laid_out(folder / "new", "train")
        (folder / "new/train/a").rename(folder / "train/c")
    elif how == "a class for validation alone":
        laid_out(folder, "val")
        (folder / "val/b").rename(folder / "val/z")
    elif how == "a picture beside the classes":
        (folder / "train/1.png").write_bytes(grey())
    elif how == "a broken picture":
        (folder / "test/b/1.png").write_bytes(grey()[:40])
    elif how == "a link to nothing":
        (folder / "train/a/9.png").symlink_to(folder / "gone.png")
    elif how == "a link to itself":
        (folder / "train/a/9.png").symlink_to(folder / "train/a/9.png")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("a folder in a class", ["train/a/sub is a folder in the folder of a class", "train/CLASS/IMAGE and test"]),
        ("two validation folders", ["one folder 'test' or 'val'", "test, train, val, valid"]),
        ("no train", ["one folder 'train'", "its folders are Training, test"]),
        ("no test", ["one folder 'test' or 'val'", "its folders are tests, train"]),
        ("no splits", ["its folders are class-test, class-train"]),
        ("an empty class", ["train/c holds no images"]),
        ("a class without test images", ["test has no folder for the class 'c'"]),
        ("a class for validation alone", ["the class 'b'"]),
        ("a picture beside the classes", ["train/1.png is not a folder", "one folder for each class"]),
        ("a broken picture", ["test/b/1.png is not a readable image"]),
        ("a link to nothing", ["train/a/9.png is a link to a file that is not there"]),
        ("a link to itself", ["train/a/9.png is a link to a file that is not there"]),
    ],
)
def test_what_is_wrong_with_a_layout_is_said_in_words(how: str, words: list[str], tmp_path: Path, refused: Any) -> None:
    folder = laid_out(tmp_path / "own", "train", "test")
    damage(folder, how)
    with refused(*words):
        load_dataset(folder, "nowhere")


def test_litter_upper_case_suffixes_and_links_are_no_matter(tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "own", "train", "test")
    for name in (".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini", "._0.png"):
        for place in ("train/a", "train", "test", "."):
            (folder / place / name).write_bytes(b"litter")
    (folder / "__MACOSX").mkdir()
    (folder / "train/__MACOSX").mkdir()
    (folder / "notes.txt").touch()
    (folder / "train/a/0.png").rename(folder / "train/a/0.PNG")
    (folder / "train/b/1.png").rename(tmp_path / "elsewhere.png")
    (folder / "train/b/1.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "test/b").rename(tmp_path / "class")
    (folder / "test/b").symlink_to(tmp_path / "class")
    data, told = read(folder)
    assert data.x_train[:, 0, 0, 0].tolist() == [5, 10, 15, 20]
    assert data.x_test[:, 0, 0, 0].tolist() == [25, 30, 35, 40]
    assert told == []


def test_a_picture_that_is_in_train_and_test_is_noted_with_its_name(tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "own", "train", "val", "test")
    (folder / "test/b/leak.png").write_bytes((folder / "val/a/0.png").read_bytes())
    (folder / "test/b/zoo.png").write_bytes((folder / "train/a/0.png").read_bytes())
    told = read(folder)[1]
    assert told == [f"{folder}: 2 test images (test/b/leak.png) are training images too"]


def test_a_picture_of_the_same_pixels_in_another_file_is_noted(tmp_path: Path) -> None:
    """The bytes of a BMP and of a PNG differ, their pixels don't."""
    folder = laid_out(tmp_path / "own", "train", "test")
    with Image.open(folder / "train/a/0.png") as image:
        image.save(folder / "test/b/leak.bmp")
    assert read(folder)[1] == [f"{folder}: 1 test images (test/b/leak.bmp) are training images too"]


# The surroundings of the reading


def test_a_file_that_changes_while_it_is_read_spoils_nothing(cache: Path, tmp_path: Path, refused: Any) -> None:
    """Digested with one content and decoded with another: nothing is kept, and the old content is read as it is."""
    from clbench.scenarios.encoded import Encoded, cached, file_contents

    folder = folder_with(tmp_path / "own", grey(200))
    path = folder / "train/a/0.png"
    digest = files.content_digests([path])[0]
    path.write_bytes(grey(0))
    paths = [path, folder / "train/b/1.png", folder / "test/a/2.png", folder / "test/b/3.png"]
    digests = [digest, *files.content_digests(paths[1:])]
    names = [str(path.relative_to(folder)) for path in paths]
    labels, parts = np.array([0, 1, 0, 1]), np.array([0, 0, 2, 2])
    contents = partial(file_contents, paths, digests)
    encoded = Encoded(folder, names, labels, parts, ("a", "b"), contents, b"".join(digests))
    with refused("train/a/0.png was changed while it was read; begin again"):
        cached(encoded, encoded.order(), None)
    assert not list(cache.glob("images-*"))
    path.write_bytes(grey(200))
    assert (read(folder)[0].x_train[0] == 200).all()


PILLOW: list[tuple[str, str, Any]] = [
    ("ImageFile", "LOAD_TRUNCATED_IMAGES", True),
    ("Image", "MAX_IMAGE_PIXELS", 1),
    ("Image", "MAX_IMAGE_PIXELS", None),
    ("PngImagePlugin", "MAX_TEXT_CHUNK", 1),
    ("PngImagePlugin", "MAX_TEXT_MEMORY", 1),
    ("GifImagePlugin", "LOADING_STRATEGY", 2),
    ("TiffImagePlugin", "READ_LIBTIFF", True),
    ("BmpImagePlugin", "USE_RAW_ALPHA", True),
]


@pytest.mark.parametrize(("module", "name", "value"), PILLOW)
def test_what_is_set_in_pillow_reaches_no_picture_and_stays_set(
    module: str, name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    from PIL import PngImagePlugin

    owner = importlib.import_module(f"PIL.{module}")
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "some words", zip=True)
    contents = {
        "train/a/0.png": encoded(Image.fromarray(WIDE), pnginfo=text),
        "train/a/1.gif": encoded(Image.fromarray(WIDE), "GIF"),
        "train/a/2.tif": encoded(Image.fromarray(WIDE), "TIFF"),
        "train/b/0.bmp": encoded(Image.fromarray(WIDE), "BMP"),
        "test/a/0.png": grey(1),
        "test/b/0.png": grey(2),
    }
    for place, content in contents.items():
        (tmp_path / "own" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / place).write_bytes(content)
    monkeypatch.setattr(owner, name, value)
    data, _ = read(tmp_path / "own")
    assert data.x_train.shape == (4, 3, 2, 4)  # the palette of the GIF makes all of them colours
    assert (data.x_train == WIDE).all()
    assert getattr(owner, name) == value
    (tmp_path / "own/train/a/0.png").write_bytes(encoded(Image.effect_noise((64, 64), 50))[:900])
    with pytest.raises(ConfigError, match=r"0\.png is not a readable image"):
        load_dataset(tmp_path / "own", "nowhere")


def netpbm(kind: str, pixels: bytes, largest: str = "255\n") -> bytes:
    return f"{kind}\n4 2\n{largest}".encode() + pixels


def tiff_of_signed_numbers() -> bytes:
    """Tag 339, the format of a sample, is 2."""
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[339] = 2
    return encoded(Image.fromarray(WIDE), "TIFF", tiffinfo=tags)


CONTRADICTIONS: dict[str, tuple[bytes, str, str]] = {
    "two grey maps in one file": (2 * netpbm("P5", WIDE.tobytes()), ".pgm", "holds several pictures"),
    "two colour maps in one file": (2 * netpbm("P6", 3 * WIDE.tobytes()), ".ppm", "holds several pictures"),
    "values above the largest": (netpbm("P5", WIDE.tobytes(), "15\n"), ".pgm", "has the value 252 above 15"),
    "values of 16 bits above the largest": (
        netpbm("P5", np.full(8, 5000, ">u2").tobytes(), "4095\n"),
        ".pgm",
        "has the value 5000 above 4095",
    ),
    "signed numbers": (tiff_of_signed_numbers(), ".tif", "has signed numbers for pixels"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_picture_that_pillow_reads_as_something_else_is_refused(kind: str, tmp_path: Path, refused: Any) -> None:
    content, suffix, reason = CONTRADICTIONS[kind]
    with refused(f"train/a/0{suffix}", reason):
        load_dataset(folder_with(tmp_path / "own", content, suffix), "nowhere")


@pytest.mark.parametrize("behind", [b"", b"\n", b"\0\0"])
def test_one_grey_map_is_read_whatever_stands_behind_it(behind: bytes, tmp_path: Path) -> None:
    data, told = read(folder_with(tmp_path / "own", netpbm("P5", WIDE.tobytes()) + behind, ".pgm"))
    assert (data.x_train[0, 0] == WIDE).all()
    assert told == []


def test_a_bitmap_of_five_and_six_bits_is_no_deep_one(tmp_path: Path) -> None:
    """Pure red, green and blue in 5, 6 and 5 bits; all bits set is 255."""
    pixels = struct.pack("<4H", 0xF800, 0x07E0, 0x001F, 0xFFFF) * 2
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    content = b"BM" + struct.pack("<IHHI", 66 + len(pixels), 0, 0, 66) + header + masks + pixels
    data, told = read(folder_with(tmp_path / "own", content, ".bmp"))
    assert data.x_train[0, :, 0].T.tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    assert told == []


def test_a_strip_that_would_be_resized_to_gigabytes_is_refused(tmp_path: Path, refused: Any) -> None:
    folder = folder_with(tmp_path / "own", encoded(Image.new("L", (1, 300_000))))
    with refused("train/a/0.png becomes 64 x 19200000 pixels before its centre is cut out"):
        load_dataset(folder, "nowhere", image_size=64)


def test_names_that_look_the_same_are_told_apart(tmp_path: Path, refused: Any) -> None:
    """An e with an accent is one character, or an e and an accent, as Macs write it."""
    folder = folder_with(tmp_path / "own", grey())
    (folder / "train/a").rename(folder / "train/caf\u00e9")
    (folder / "test/a").rename(folder / "test/cafe\u0301")
    with refused("'caf\\xe9'", "'cafe\\u0301'", "of the same letters"):
        load_dataset(folder, "nowhere")
