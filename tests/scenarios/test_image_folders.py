"""Folders of images, one folder a class: sizes, modes, the cache, and what is refused."""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from clbench.config.errors import ConfigError
from clbench.data.sources import is_mapped
from clbench.scenarios import encoded, files
from clbench.scenarios.datasets import load_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", seed: int = 0, **options: Any) -> Any:
    """Write a random image of (width, height) and return its pixels."""
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode).save(path, **options)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, "2" and "10", with two training images and one test image each."""
    root = tmp_path / "own"
    for i, name in enumerate(("2", "10")):
        save(root / "train" / name / "a.png", seed=i)
        save(root / "train" / name / "b.png", seed=i + 2)
        save(root / "test" / name / "a.png", seed=i + 4)
    return root


def pixels_of(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8).transpose(2, 0, 1)


def test_own_folder_of_images(folder: Path) -> None:
    """Natural order: class "2" before "10"; files in order of their names; pixels as they were written."""
    (folder / ".DS_Store").touch()
    (folder / "train" / ".hidden").mkdir()
    (folder / "train" / "2" / ".thumbs").touch()
    data = load_dataset(str(folder), "nowhere")
    assert (data.name, data.class_names, data.x_train.shape) == ("own", ("2", "10"), (4, 3, 4, 6))
    assert data.y_train.tolist() == [0, 0, 1, 1]
    assert data.y_test.tolist() == [0, 1]
    for image, seed in zip((*data.x_train, *data.x_test), (0, 2, 1, 3, 4, 5), strict=True):
        assert np.array_equal(image, pixels_of(seed))


def test_val_is_accepted_for_test(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert len(load_dataset(str(folder), "nowhere").x_test) == 2


def test_grey_only_if_all_are_grey(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert load_dataset(str(folder), "nowhere").x_train.shape == (4, 1, 4, 6)
    save(folder / "test" / "2" / "colour.png")
    assert load_dataset(str(folder), "nowhere").x_train.shape == (4, 3, 4, 6)


@pytest.mark.parametrize("size", [(50, 31), (31, 50), (20, 20), (9, 17), (16, 16), (5, 40)])
def test_image_size_resizes_and_crops_like_torchvision(folder: Path, size: tuple[int, int]) -> None:
    """The independent method is torchvision's own Resize (antialiased on PIL images) and CenterCrop."""
    transforms = pytest.importorskip("torchvision.transforms")
    save(folder / "train" / "2" / "a.png", size)
    data = load_dataset(str(folder), "nowhere", image_size=16)
    expected = transforms.CenterCrop(16)(transforms.Resize(16)(Image.open(folder / "train" / "2" / "a.png")))
    assert data.x_train.shape == (4, 3, 16, 16)
    assert np.array_equal(data.x_train[0], np.asarray(expected).transpose(2, 0, 1))


def test_photos_are_turned_upright(folder: Path) -> None:
    """EXIF orientation 6: the picture is shown turned by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in folder.rglob("*.png"):
        stored = np.rot90(np.asarray(Image.open(path)))  # counter-clockwise
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(load_dataset(str(folder), "nowhere").x_train[0], pixels_of(0))


def test_different_sizes_are_refused_with_both_files_and_the_option(folder: Path) -> None:
    save(folder / "test" / "10" / "b.png", (7, 4))
    with pytest.raises(ConfigError) as error:
        load_dataset(str(folder), "nowhere")
    for part in ("train/2/a.png is 6x4", "test/10/b.png 7x4", "--image-size"):
        assert part in str(error.value)


def test_cache_is_used_until_a_file_changes(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*args: Any) -> Any:
        raise AssertionError("decoded again")

    first = load_dataset(str(folder), "nowhere").x_train.copy()
    with monkeypatch.context() as patch:
        patch.setattr(encoded, "decode", decode)
        assert np.array_equal(load_dataset(str(folder), "nowhere").x_train, first)
        with pytest.raises(AssertionError, match="decoded again"):
            load_dataset(str(folder), "nowhere", image_size=3)
    save(folder / "train" / "2" / "a.png", seed=9)
    os.utime(folder / "train" / "2" / "a.png", ns=(1, 1))
    assert np.array_equal(load_dataset(str(folder), "nowhere").x_train[0], pixels_of(9))
    assert {path.suffix for path in cache.iterdir()} == {".npy"}  # nothing unfinished is left


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"PK" + b[2:], lambda b: b + b"\0"])
def test_a_damaged_cache_is_made_anew(folder: Path, cache: Path, damage: Any) -> None:
    load_dataset(str(folder), "nowhere")
    (cached,) = cache.iterdir()
    cached.write_bytes(damage(cached.read_bytes()))
    assert np.array_equal(load_dataset(str(folder), "nowhere").x_train[0], pixels_of(0))


def test_photos_larger_than_half_of_the_free_memory_stay_on_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """6 images of 3 x 1000 x 1000 bytes."""
    monkeypatch.setattr(files, "available_memory", lambda: 36_000_000)
    assert not is_mapped(load_dataset(str(folder), "nowhere", image_size=1000).x_train)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(files, "available_memory", lambda: 35_000_000)
    data = load_dataset(str(folder), "nowhere", image_size=1000)
    assert is_mapped(data.x_train)
    assert is_mapped(data.x_test)
    assert capsys.readouterr().err == (
        f"clbench: {folder}: train 0.012 GB and test 0.006 GB mapped from disk, above half of the free memory, "
        "0.0175 GB\n"
    )


def test_photos_larger_than_the_disk_are_refused_with_their_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 images of 3 x 1000 x 1000 bytes."""

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1_000_000))
    with pytest.raises(ConfigError, match=r"needs 18,000,000 bytes in .*cache, and 1,000,000 are free"):
        load_dataset(str(folder), "nowhere", image_size=1000)


def test_a_cache_that_can_not_be_written_is_named(folder: Path, cache: Path) -> None:
    cache.touch()
    with pytest.raises(ConfigError, match=r"cache can't keep the images .*CLBENCH_CACHE"):
        load_dataset(str(folder), "nowhere")


def break_with(folder: Path, what: str) -> None:
    target = folder / "train" / "2"
    if what == "text":
        (target / "notes.txt").write_text("x")
    elif what == "corrupt":
        (target / "b.png").write_bytes((target / "b.png").read_bytes()[:60])
    elif what == "not an image":
        (target / "c.jpg").write_text("<html>")
    elif what == "nested":
        (target / "more").mkdir()
    elif what == "loose":
        save(folder / "train" / "a.png")
    elif what == "empty class":
        shutil.rmtree(folder / "test" / "2")
        (folder / "test" / "2").mkdir()
    elif what == "32 bits":
        Image.fromarray(np.zeros((4, 6), np.int32)).save(target / "deep.tif")
    elif what == "both":
        for name in ("val", "valid"):
            shutil.copytree(folder / "test", folder / name)
    elif what == "no test":
        shutil.rmtree(folder / "test")
    elif what == "no classes":
        shutil.rmtree(target)
        shutil.rmtree(folder / "train" / "10")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", r"notes\.txt is not an image file; accepted: \.png"),
        ("corrupt", r"train/2/b\.png is not a readable image"),
        ("not an image", r"train/2/c\.jpg is not a readable image"),
        ("nested", r"train/2/more is a folder in the folder of a class; train/CLASS/IMAGE and"),
        ("loose", r"train/a\.png is not a folder"),
        ("empty class", "test/2 holds no images"),
        ("32 bits", r"deep\.tif has more than 16 bits a channel"),
        ("both", "one folder 'test' or 'val'"),
        ("no test", "one folder 'test' or 'val'"),
        ("no classes", "train holds no folders of images"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folder: Path, what: str, message: str) -> None:
    break_with(folder, what)
    with pytest.raises(ConfigError, match=message):
        load_dataset(str(folder), "nowhere")


@pytest.mark.parametrize(("part", "other"), [("train", "test"), ("test", "train")])
def test_a_class_without_train_or_test_images_is_refused(folder: Path, part: str, other: str) -> None:
    save(folder / part / "odd" / "a.png")
    with pytest.raises(ConfigError, match=f"{other} has no folder for the class 'odd'"):
        load_dataset(str(folder), "nowhere")
