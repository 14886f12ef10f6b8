"""Images in tar files, tables, CSV files and other folders: the data set of the folder they came from; what is refused.

Every layout is written by an independent means (tarfile, pyarrow, csv) from the same ten pictures, and must give the
digest of the plain folder. Hostile input is refused in one line, quickly, and nothing is written or run.
"""

import csv
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clbench.cli.datasets import data_verb
from clbench.config.errors import ConfigError, RunError
from clbench.scenarios.datasets import fingerprint, load_dataset

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


# Part, class, name, content: three training and two test images of each class.
ITEMS = [
    (part, kind, f"{10 * place + i:03}.png", png(10 * place + i))
    for place, (part, kind, n) in enumerate([(p, c, n) for p, n in (("train", 3), ("test", 2)) for c in CLASSES])
    for i in range(n)
]


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_folder(root: Path) -> Path:
    for part, kind, name, content in ITEMS:
        put(root / part / kind / name, content)
    return root


def as_csv(root: Path) -> Path:
    for *_, name, content in ITEMS:
        put(root / name, content)
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "split"), *((n, k, p) for p, k, n, _ in ITEMS[::-1])])
    return root


def as_several_csvs(root: Path) -> Path:
    for part in ("train", "test"):
        rows = [(f"pictures/{name[:-4]}", kind) for p, kind, name, _ in ITEMS if p == part]
        put(root / f"{part}.csv", "image;kind\n" + "".join(f"{name};{kind}\n" for name, kind in rows))
    for *_, name, content in ITEMS:
        put(root / "pictures" / name, content)
    return root


def as_tiny_imagenet(root: Path) -> Path:
    lines = []
    for part, kind, name, content in ITEMS:
        put(root / (f"train/{kind}/images" if part == "train" else "val/images") / name, content)
        put(root / f"train/{kind}/{kind}_boxes.txt", "000.png\t0\t0\t1\t1\n")
        lines += [f"{name}\t{kind}\t0\t0\t62\t62\n"] if part == "test" else []
    put(root / "val/val_annotations.txt", "".join(lines))
    put(root / "test/images/x.png", png(99))
    return root


def members(file: Path, *contents: tuple[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in contents:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def as_tars(root: Path) -> Path:
    for part in ("train", "test"):
        for shard in (0, 1):
            there = [item for item in ITEMS[shard::2] if item[0] == part]
            pairs = [(n, c) for _, kind, name, content in there for n, c in ((name, content), cls(name, kind))]
            members(root / f"{part}-{shard:05}.tar", *pairs)
    return root


def cls(name: str, kind: str) -> tuple[str, bytes]:
    return f"{name.partition('.')[0]}.cls", kind.encode()


def table(part: str | None = None, **columns: Any) -> Any:
    pa = pytest.importorskip("pyarrow")
    chosen = [item for item in ITEMS if part in (None, item[0])]
    images = pa.array([{"bytes": content, "path": name} for *_, name, content in chosen])
    made = pa.table({"image": images, "label": [CLASSES.index(kind) for _, kind, *_ in chosen]} | columns)
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def as_parquet(root: Path) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    (root / "data").mkdir(parents=True)
    for part in ("train", "test"):
        parquet.write_table(table(part), root / "data" / f"{part}-00000-of-00001.parquet", row_group_size=2)
    return root


def as_one_parquet(root: Path) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    root.mkdir()
    parquet.write_table(table(split=[part for part, *_ in ITEMS]), root / "all.parquet")
    return root / "all.parquet"


def as_arrow(root: Path) -> Path:
    """As `datasets.DatasetDict.save_to_disk` writes it."""
    for part in ("train", "test"):
        to_disk(root / part, table(part))
    put(root / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    return root


def to_disk(folder: Path, content: Any, name: str = "data-00000-of-00001.arrow") -> Path:
    pa = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=2)
    put(folder / "state.json", json.dumps({"_data_files": [{"filename": name}]}))
    return folder


def as_packed(root: Path) -> Path:
    as_folder(root)
    data_verb("pack", str(root), to=root / "packed.npy")
    return root / "packed.npy"


def as_medmnist(root: Path) -> Path:
    root.mkdir()
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        chosen = [(kind, content) for p, kind, _, content in ITEMS if p == part]
        arrays[f"{part}_images"] = np.stack([np.asarray(Image.open(io.BytesIO(content))) for _, content in chosen])
        arrays[f"{part}_labels"] = np.array([[CLASSES.index(kind)] for kind, _ in chosen], np.uint8)
    np.savez(root / "med.npz", **arrays)
    return root / "med.npz"


LAYOUTS = (as_csv, as_several_csvs, as_tiny_imagenet, as_tars, as_parquet, as_one_parquet, as_arrow, as_packed)


@pytest.mark.parametrize("layout", [*LAYOUTS, as_medmnist])
def test_every_layout_gives_the_data_set_of_the_folder(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    columns = "label=kind" if layout is as_several_csvs else None
    data = load_dataset(layout(tmp_path / "other"), "nowhere", columns=columns)
    plain = load_dataset(as_folder(tmp_path / "plain"), "nowhere")
    assert fingerprint(data) == fingerprint(plain)
    assert data.class_names == (("0", "1") if layout is as_medmnist else CLASSES)
    assert data.mean == plain.mean


@pytest.mark.parametrize("layout", [as_csv, as_tars, as_one_parquet, as_arrow])
def test_each_layout_is_kept_mapped_above_a_limit_and_keeps_its_digest(
    layout: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = layout(tmp_path / "other")
    held = load_dataset(place, "nowhere")
    data = load_dataset(place, "nowhere", memory_limit="1KB")
    assert (type(data.x_train).__name__, fingerprint(data)) == ("MappedImages", fingerprint(held))
    assert capsys.readouterr().err.endswith(
        "train 1.15e-06 GB and test 7.68e-07 GB mapped from disk, above the limit of 1KB\n"
    )


def test_medmnist_brings_its_validation_split(tmp_path: Path) -> None:
    with np.load(as_medmnist(tmp_path / "own")) as file:
        arrays = dict(file)
    np.savez(tmp_path / "own/med.npz", **arrays, val_images=arrays["train_images"][:2], val_labels=[[0], [1]])
    data = load_dataset(tmp_path / "own/med.npz", "nowhere")
    assert (len(data.x_train), data.n_validation, data.y_train[-2:].tolist()) == (8, 2, [0, 1])


@pytest.mark.parametrize("layout", [as_csv, as_tars, as_one_parquet])
def test_data_without_a_test_get_one_by_its_share(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    """The part of each class that is drawn is a function of the pixels, so every layout draws the same."""
    plain = tmp_path / "plain"
    for _, kind, name, content in ITEMS:
        put(plain / kind / name, content)
    place = layout(tmp_path / "other")
    if layout is as_csv:
        put(place / "labels.csv", "file,label\n" + "".join(f"{name},{kind}\n" for _, kind, name, _ in ITEMS))
    elif layout is as_tars:
        for path in list(place.iterdir()):
            path.rename(place / path.name.replace("test", "a").replace("train", "b"))
    else:
        pytest.importorskip("pyarrow.parquet").write_table(table(), place)
    with pytest.raises(ConfigError, match="has no test images; --test-share"):
        load_dataset(place, "nowhere")
    drawn = load_dataset(place, "nowhere", test_share=0.4)
    expected = load_dataset(plain, "nowhere", test_share=0.4)
    assert sorted(image.tobytes() for image in drawn.x_test) == sorted(image.tobytes() for image in expected.x_test)


# Refusals


def with_csv(rows: str) -> Callable[[Path], Path]:
    def made(root: Path) -> Path:
        as_csv(root)
        put(root / "labels.csv", rows)
        return root

    return made


def with_member(name: str = "a.png", content: bytes = b"", **fields: Any) -> Callable[[Path], Path]:
    def made(root: Path) -> Path:
        as_tars(root)
        with tarfile.open(root / "train-00009.tar", "w") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
        return root

    return made


def with_shard(content: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def made(root: Path) -> Path:
        as_tars(root)
        path = root / "train-00000.tar"
        path.write_bytes(content(path.read_bytes()))
        return root

    return made


def with_table(**columns: Any) -> Callable[[Path], Path]:
    def made(root: Path) -> Path:
        parquet = pytest.importorskip("pyarrow.parquet")
        content = table(split=[part for part, *_ in ITEMS])
        for name, values in columns.items():
            content = (
                content.drop_columns([name])
                if values is None
                else content.drop_columns(name).append_column(name, values())
            )
        root.mkdir()
        parquet.write_table(content, root / "all.parquet")
        return root

    return made


def cut(layout: Callable[[Path], Path], pattern: str, keep: float) -> Callable[[Path], Path]:
    def made(root: Path) -> Path:
        place = layout(root)
        for path in root.rglob(pattern):
            content = path.read_bytes()
            path.write_bytes(content[: int(len(content) * keep)])
        return place

    return made


def arrow_with(name: str) -> Callable[[Path], Path]:
    def made(root: Path) -> Path:
        as_arrow(root)
        to_disk(root / "train", table("train"), name)
        return root

    return made


def nested(depth: int) -> Any:
    pa = pytest.importorskip("pyarrow")
    kind = pa.int64()
    for _ in range(depth):
        kind = pa.list_(kind)
    return pa.array([None] * len(ITEMS), kind)


def pa_array(values: list[Any], **options: Any) -> Any:
    return pytest.importorskip("pyarrow").array(values, **options)


def cyclic_links(root: Path) -> Path:
    as_folder(root)
    (root / "train/cat/again").symlink_to(root / "train", target_is_directory=True)
    (root / "train/loop").symlink_to(root / "train/loop")
    return root


def link_to_itself(root: Path) -> Path:
    as_folder(root)
    (root / "train/cat/loop.png").symlink_to(root / "train/cat/loop.png")
    return root


def huge(root: Path) -> Path:
    """A file of a terabyte that takes no room on the disk."""
    as_folder(root)
    with (root / "train/cat/huge.jpg").open("wb") as file:
        file.truncate(1 << 40)
    return root


def bomb(root: Path) -> Path:
    """A JPEG whose header claims 65,500 x 65,500 pixels."""
    as_folder(root)
    written = io.BytesIO()
    Image.new("RGB", (8, 8)).save(written, "JPEG")
    content = written.getvalue()
    at = content.index(b"\xff\xc0") + 5
    put(root / "train/cat/bomb.jpg", content[:at] + (65500).to_bytes(2, "big") * 2 + content[at + 4 :])
    return root


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "csv absolute": (
        with_csv("file,label,split\n/etc/passwd,cat,train\n"),
        "line 2, names '/etc/passwd'; a file below",
    ),
    "csv above": (with_csv("file,label,split\n../a.png,cat,train\n"), "line 2, names '../a.png'"),
    "csv backslash": (with_csv("file,label,split\n..\\a.png,cat,train\n"), "line 2, names"),
    "csv twice": (
        with_csv("file,label\n000.png,cat\n001.png,cat\n000.png,dog\n"),
        "000.png twice, in line 2 and line 4",
    ),
    "csv no label": (with_csv("file,label\n000.png,\n"), "line 2, has no label"),
    "csv short row": (with_csv("file,label\n000.png\n"), "line 2, has no label"),
    "csv long row": (with_csv("file,label\n000.png,cat,dog\n"), "line 2, has more values than there are columns"),
    "csv no column": (with_csv("file,kind\n000.png,cat\n"), "no column that is known as label; columns=label=NAME"),
    "csv two columns": (
        with_csv("file,label,class\n000.png,cat,1\n"),
        "has the columns label and class; columns=label=",
    ),
    "csv column twice": (with_csv("file,label,label\n000.png,cat,1\n"), "has a column twice"),
    "csv split": (with_csv("file,label,split\n000.png,cat,oops\n"), "line 2, has the split 'oops'"),
    "csv file not there": (
        with_csv("file,label,split\nx.png,cat,train\n000.png,cat,train\n020.png,cat,test\n"),
        "x.png is named",
    ),
    "csv no text": (lambda root: put(as_csv(root) / "labels.csv", b"file,label\n\xff,cat\n").parent, "can't be read"),
    "csv empty": (with_csv(""), "no column that is known as image"),
    "csv no rows": (with_csv("file,label,split\n"), "has no training images"),
    "csv a class without a test": (
        with_csv("file,label,split\n000.png,cat,train\n020.png,dog,test\n"),
        "images of the class",
    ),
    "tar above": (with_member("../a.png", b"x"), "'../a.png', which leads out of it"),
    "tar absolute": (with_member("/tmp/a.png", b"x"), "'/tmp/a.png', which leads out"),
    "tar link": (with_member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link, a device or sparse"),
    "tar hard link": (with_member(type=tarfile.LNKTYPE, linkname="000.png"), "is a link, a device or sparse"),
    "tar device": (with_member(type=tarfile.CHRTYPE), "is a link, a device or sparse"),
    "tar pipe": (with_member(type=tarfile.FIFOTYPE), "is a link, a device or sparse"),
    "tar no class": (with_member(content=b"x"), "has 'a.png' and no class for it"),
    "tar cut": (with_shard(lambda content: content[:1500]), "is cut|end is not there|not a readable tar"),
    "tar cut between members": (with_shard(lambda content: content[:2048]), "its end is not there|no class for it"),
    "tar damaged": (
        with_shard(lambda content: content[:1024] + b"\xff" * 512 + content[1536:]),
        "damaged|not a readable",
    ),
    "tar compressed": (with_shard(lambda content: __import__("gzip").compress(content)), "without compression"),
    "tar empty": (with_shard(lambda content: b""), "not a readable tar file"),
    "parquet cut": (cut(as_parquet, "*.parquet", 0.8), "is not a readable table"),
    "parquet no image": (with_table(image=None), "no column that is known as image"),
    "parquet numbers": (with_table(image=lambda: pa_array([[1]] * 10)), "the column image is list"),
    "parquet nested": (with_table(image=lambda: nested(200)), "too deeply nested"),
    "parquet labels of floats": (with_table(label=lambda: pa_array([0.5] * 10)), "the column label is double"),
    "parquet label beyond": (
        with_table(label=lambda: pa_array([7] * 10)),
        "labels from 7 to 7, and names for 2 classes",
    ),
    "parquet no label": (with_table(label=lambda: pa_array([None] * 10, type="int64")), "no label in row 0"),
    "parquet no bytes": (
        with_table(image=lambda: pa_array([{"bytes": None, "path": "/etc/passwd"}] * 10, type=struct())),
        r"10 files of .* all.parquet:9 \(holds no image, or only its path\)",
    ),
    "arrow above": (arrow_with("../../x.arrow"), "names '../../x.arrow'; files in its own folder"),
    "arrow absolute": (arrow_with("/etc/passwd"), "names '/etc/passwd'"),
    "arrow not there": (arrow_with("other.arrow"), "other.arrow is named in"),
    "arrow cut": (cut(as_arrow, "*.arrow", 0.7), "is not a readable table"),
    "arrow state": (cut(as_arrow, "state.json", 0.5), "state.json can't be read"),
    "packed cut": (cut(as_packed, "packed.npy", 0.9), "packed.npy is not readable as packed images"),
    "cyclic folders": (cyclic_links, "train/cat/again is a folder in the folder of a class"),
    "link to itself": (link_to_itself, "loop.png is a link to a file that is not there"),
    "terabyte": (huge, "huge.jpg has 1,099,511,627,776 bytes; at most"),
    "bomb": (bomb, "bomb.jpg is not a readable image: Image size"),
}


def struct() -> Any:
    pa = pytest.importorskip("pyarrow")
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("how", REFUSED)
def test_hostile_input_is_refused_in_one_line_and_quickly(how: str, tmp_path: Path) -> None:
    make, words = REFUSED[how]
    place = make(tmp_path / "other")
    before, started = set(tmp_path.rglob("*")), time.perf_counter()
    with pytest.raises(ConfigError, match=words) as error:
        load_dataset(place, "nowhere")
    assert time.perf_counter() - started < 5
    assert "\n" not in str(error.value)
    new = {
        path for path in tmp_path.rglob("*") if path not in before and tmp_path / "cache" not in (path, *path.parents)
    }
    assert new == set()


def test_many_empty_folders_are_refused_quickly(tmp_path: Path) -> None:
    """Ten thousand of them here, in a second where the machine is quiet: making more would take longer than reading."""
    root = as_folder(tmp_path / "own")
    for number in range(10_000):
        os.mkdir(root / "train" / f"empty{number}")
    started = time.perf_counter()
    with pytest.raises(ConfigError, match="holds no images"):
        load_dataset(root, "nowhere")
    assert time.perf_counter() - started < 10


def test_columns_are_refused_where_there_are_none(tmp_path: Path) -> None:
    for layout in (as_folder, as_tars, as_medmnist):
        with pytest.raises(ConfigError, match="columns are of CSV"):
            load_dataset(layout(tmp_path / layout.__name__), "nowhere", columns="label=x")
    with pytest.raises(ConfigError, match="columns=lable=x: image=NAME,label=NAME,split=NAME"):
        load_dataset(as_csv(tmp_path / "csv"), "nowhere", columns="lable=x")


# The verb


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def said(*arguments: Any, **options: Any) -> list[str]:
        capsys.readouterr()
        data_verb(*arguments, **options)
        return capsys.readouterr().out.splitlines()

    return said


def test_check_tells_layout_classes_and_sizes(tmp_path: Path, shown: Callable[..., list[str]]) -> None:
    put(as_folder(tmp_path / "own") / "train/cat/large.png", png(5, (20, 12)))
    assert shown("check", str(tmp_path / "own")) == [
        f"{tmp_path / 'own'}: train/CLASS/IMAGE and test/CLASS/IMAGE",
        "2 classes: cat, dog",
        "images: 7 for train, 4 for test",
        "sizes: 2, widths 8 to 12, heights 8 to 20; --image-size S makes all S x S",
    ]
    assert json.loads(shown("check", str(as_tars(tmp_path / "tars")), as_json=True)[0])["layout"].startswith("4 tar")


def test_check_lists_broken_files_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(as_folder(tmp_path / "own") / "train/cat/cut.png", ITEMS[0][3][:60])
    put(tmp_path / "own/test/dog/notes.txt", "x")
    with pytest.raises(RunError, match=r"2 files of .* can't be used"):
        data_verb("check", str(tmp_path / "own"))
    broken = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken: ")]
    assert [line.split()[1] for line in broken] == ["test/dog/notes.txt", "train/cat/cut.png"]


def test_pack_writes_a_mapped_copy_at_a_size(tmp_path: Path, shown: Callable[..., list[str]]) -> None:
    folder, packed = as_folder(tmp_path / "own"), tmp_path / "small.npy"
    (line,) = shown("pack", str(folder), size=4, to=packed)
    assert line.startswith(f"{packed}: 6 training and 4 test images of 3x4x4, 2 classes")
    expected = load_dataset(folder, "nowhere", image_size=4)
    assert fingerprint(load_dataset(packed, "nowhere")) == fingerprint(expected)
    assert np.array_equal(np.load(packed)[:6], expected.x_train)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("look", "x"), {}, "check and pack are accepted"),
        (("check", "x"), {"size": 4}, "--size is for pack"),
        (("pack", "x"), {}, "--to NAME.npy is accepted"),
        (("pack", "x"), {"to": Path("x.npz")}, "--to NAME.npy is accepted"),
        (("check", "nowhere/at/all"), {}, "there is no file or folder"),
    ],
)
def test_what_the_verb_refuses(arguments: tuple[str, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        data_verb(*arguments, **options)
