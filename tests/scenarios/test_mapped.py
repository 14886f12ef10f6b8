"""Images above the limit stay on disk: the same numbers, little memory, and nothing that was changed is believed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clbench
from clbench.config.errors import ConfigError
from clbench.config.groups import bytes_of
from clbench.data.batches import gathered
from clbench.data.sources import Mapped, held, parts, some, source_of
from clbench.running.resolve import prepare, resolve
from clbench.scenarios import encoded, files, mapped
from clbench.scenarios.datasets import fingerprint, load_dataset
from clbench.scenarios.mapped import mapped_copy, open_images, remembered

SMALL = {"tasks": 2, "epochs": 2, "batch_size": 4, "model": "mlp:8", "memory_size": 4, "image_size": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four classes with six training and two test images of 10 x 8 pixels."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 6), ("test", 2)):
        for kind in "abcd":
            for i in range(n):
                path = tmp_path / "own" / part / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(path)
    return tmp_path / "own"


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remember what is large also of small files, and take a file for settled at once."""
    monkeypatch.setattr(mapped, "REMEMBERED_FROM", 1)
    monkeypatch.setattr(files, "KEPT_FROM", 1)
    monkeypatch.setattr(files, "SETTLED_NS", 0)


def source(tmp_path: Path, n: int = 20) -> tuple[Mapped, torch.Tensor]:
    """Return mapped images and the same ones in memory."""
    images = np.random.default_rng(1).integers(0, 256, (n, 3, 4, 5), dtype=np.uint8)
    made = source_of(mapped_copy(images, "images"))
    assert isinstance(made, Mapped)
    return made, torch.from_numpy(images)


def test_a_mapped_source_hands_out_what_a_tensor_does(tmp_path: Path) -> None:
    made, images = source(tmp_path)
    assert (made.shape, made.dtype, len(made), made.ndim) == (images.shape, images.dtype, 20, 4)
    ids = torch.tensor([3, 3, 19, 0])
    for index in (ids, 4, -1, slice(2, 9, 3), slice(0, 0), torch.arange(20) > 15, ids.view(2, 2)):
        assert torch.equal(made[index], images[index])
    assert torch.equal(made.index_select(0, ids), images[ids])
    few = some(made, torch.tensor([5, 1, 7]))
    assert isinstance(few, Mapped)
    assert torch.equal(some(few, torch.tensor([2, 0]))[:], images[[7, 5]])
    assert torch.equal(torch.cat(list(parts(made))), images)
    assert made.to(torch.device("cpu"))[0].equal(images[0])


def test_nothing_can_be_written_into_mapped_images(tmp_path: Path) -> None:
    made, images = source(tmp_path)
    made[3].zero_()
    made.index_select(0, torch.arange(20)).zero_()
    assert torch.equal(made[:], images)
    (array,) = held(made)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


@pytest.mark.parametrize("strategy", ["naive", "er", "icarl"])
def test_a_run_on_mapped_images_gives_the_bytes_of_one_in_memory(
    strategy: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = SMALL if strategy != "naive" else {k: v for k, v in SMALL.items() if k != "memory_size"}
    fields = fields | {"augment": "crop-flip"}
    one = clbench.run(folder, strategy, **fields, out=tmp_path / "memory")
    weights = torch.load(tmp_path / "memory/model.pt", weights_only=True)
    for threads in (0, 1, 4):
        out = tmp_path / f"{threads}"
        other = clbench.run(folder, strategy, **fields, memory_limit="1KB", reading_threads=threads, out=out)
        assert np.array_equal(one.accuracy, other.accuracy, equal_nan=True)
        assert one.record["config"]["data_fingerprint"] == other.record["config"]["data_fingerprint"]
        torch.testing.assert_close(torch.load(out / "model.pt", weights_only=True), weights, rtol=0, atol=0)
    assert "above the limit of 1KB" in capsys.readouterr().err


@pytest.mark.parametrize("fields", [{"normalize": "pixel-mean"}, {"test_share": 0.25}, {"validation": 0.2}])
def test_options_that_read_all_images_agree_too(fields: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    place = folder / "train" if "test_share" in fields else folder
    runs = [
        clbench.run(
            place,
            "naive",
            **{k: v for k, v in SMALL.items() if k != "memory_size"},
            **fields,
            memory_limit=limit,
            out=tmp_path / f"{limit}",
        )
        for limit in (None, "1KB")
    ]
    assert np.array_equal(runs[0].accuracy, runs[1].accuracy, equal_nan=True)


def test_a_named_data_set_goes_to_the_disk_above_the_limit(tmp_path: Path) -> None:
    """The limit is no part of the identity, and permuted images are made from those on disk."""
    for name in ("split-mnist-5k", "permuted-mnist-5k"):
        plain = prepare(resolve(name, "naive", {"limit": 5}))
        bound = prepare(resolve(name, "naive", {"limit": 5, "memory_limit": "100KB"}))
        assert plain[0].identity() == bound[0].identity()
        ids = bound[1].tasks[1].train.ids
        assert torch.equal(bound[1].train.images[ids], plain[1].train.images[ids])
    assert isinstance(prepare(resolve("split-mnist-5k", "naive", {"memory_limit": "100KB"}))[1].train.images, Mapped)


def test_a_stream_goes_to_the_disk_above_the_limit_and_keeps_its_digest(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("other"))
    of = [str(folder), str(folder.with_name("other"))]
    runs = [
        prepare(resolve("stream", "naive", {"of": of, "memory_limit": limit, "image_size": 8, "model": "mlp:8"}))
        for limit in (None, "1KB")
    ]
    assert isinstance(runs[1][1].train.images, Mapped)
    assert runs[0][0].identity() == runs[1][0].identity()
    ids = torch.arange(20)
    assert torch.equal(runs[0][1].train.images[ids], runs[1][1].train.images[ids])


def test_floats_above_the_limit_are_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    labels = np.arange(40) % 4
    np.savez(tmp_path / "v.npz", x_train=values, y_train=labels, x_test=values, y_test=labels)
    with pytest.raises(ConfigError, match="of floats, above the limit of 1KB; images alone can stay on disk"):
        load_dataset(tmp_path / "v.npz", "nowhere", memory_limit="1KB")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4 * 10**9),
        ("4 gb", 4 * 10**9),
        ("1.5MB", 1_500_000),
        ("2GiB", 2**31),
        ("123", 123),
        (123, 123),
        ("1KB", 1000),
    ],
)
def test_sizes_are_read(text: str | int, expected: int) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", 0, -5, "1e9", "4 XB", "nan", "inf", "9" * 30, "٣GB", "4GB GB"])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigError, match=r"memory_limit=.* given, a size such as 4GB or 500MB accepted"):
        resolve("split-mnist-5k", "naive", {"memory_limit": text})


# Remembered values


def test_what_was_computed_is_remembered_and_files_are_read_once(
    folder: Path, remembering: None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_dataset(folder, "nowhere", memory_limit=1)
    expected = fingerprint(first), first.mean
    load_dataset(folder, "nowhere", memory_limit=1)  # only now is the state of the new file known

    def never(*given: Any) -> Any:
        raise AssertionError("computed or read again")

    for module, name in ((encoded, "decode"), (encoded, "copied"), (files, "_read_anew")):
        monkeypatch.setattr(module, name, never)
    again = load_dataset(folder, "nowhere", memory_limit=1)
    assert (fingerprint(again), again.mean) == expected
    assert len(list(cache.glob("mapped-*.json"))) == len(list(cache.glob("digests-*.npy"))) == 1


def test_a_file_that_is_changed_is_read_again_though_its_size_and_time_are_put_back(
    folder: Path, remembering: None
) -> None:
    path = folder / "train/a/0.png"
    bitmap = path.with_suffix(".bmp")
    path.unlink()
    for value in (10, 20, 30):
        Image.new("RGB", (10, 8), (value, 0, 0)).save(bitmap)
        os.utime(bitmap, ns=(1, 1))
        data = load_dataset(folder, "nowhere", memory_limit=1)
        assert int(data.x_train[0, 0, 0, 0]) == value
        assert fingerprint(data) == files.digest(data.x_train, data.y_train, data.x_test, data.y_test)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-30], lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:], lambda b: b""]
)
def test_a_damaged_cache_is_made_anew_also_where_its_state_was_known(
    damage: Callable[[bytes], bytes], folder: Path, remembering: None, cache: Path
) -> None:
    expected = load_dataset(folder, "nowhere", memory_limit=1).x_train.copy()
    load_dataset(folder, "nowhere", memory_limit=1)
    (images,) = cache.glob("images-*.npy")
    content = images.read_bytes()
    images.unlink()  # the old one stays mapped
    images.write_bytes(damage(content))
    assert np.array_equal(load_dataset(folder, "nowhere", memory_limit=1).x_train, expected)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"states": 1, "facts": 2}', b"\xff"])
def test_damaged_notes_are_made_anew(content: bytes, folder: Path, remembering: None, cache: Path) -> None:
    expected = load_dataset(folder, "nowhere", memory_limit=1)
    for path in [*cache.glob("mapped-*.json"), *cache.glob("digests-*.npy")]:
        path.write_bytes(content)
    again = load_dataset(folder, "nowhere", memory_limit=1)
    assert (again.mean, fingerprint(again)) == (expected.mean, fingerprint(expected))


def test_parts_of_a_file_and_labels_are_told_apart(remembering: None) -> None:
    images = mapped_copy(np.arange(48, dtype=np.uint8).reshape(4, 3, 2, 2), "images")
    sums = {
        start: remembered("sum", lambda start=start: int(images[start:].sum()), images[start:]) for start in range(4)
    }
    assert sums == {start: int(np.asarray(images)[start:].sum()) for start in range(4)}
    for labels in (np.arange(4), np.arange(4) + 1):
        assert remembered("labels", labels.tolist, images, labels) == labels.tolist()


@pytest.mark.parametrize("start", [0, 12, 100])
def test_a_file_of_images_that_is_none_is_refused(start: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4, 4), np.float32))
    (tmp_path / "y.npy").write_bytes((tmp_path / "x.npy").read_bytes()[start:])
    for name in ("x.npy", "y.npy", "nowhere.npy"):
        with pytest.raises(ValueError, match=r"."):
            open_images(tmp_path / name)


MEASURED = """
import resource, sys
import numpy as np, torch
from clbench.data.sources import Mapped, parts
from clbench.scenarios.datasets import load_dataset, fingerprint
from clbench.running.resolve import prepare, resolve

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

before = anonymous()
asked = {"tasks": 2, "memory_limit": "10MB", "normalize": "pixel-mean"}
config, scenario = prepare(resolve(sys.argv[1], "naive", asked))
from clbench.data.batches import Pipeline
pipeline = Pipeline(scenario, config, torch.device("cpu"))
for ids in torch.randperm(len(scenario.train.images)).split(64):
    pipeline.batch(ids, slice(0), None)
print(len(scenario.train.images), scenario.train.images.array.nbytes, anonymous() - before)
"""


GATHERED = """
import torch
from clbench.data.batches import gathered

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def features():
    global most
    for _ in range(24):
        images = pixels.clone().to(torch.float32).mul_(0.5)
        features = images.flatten(1)[:, :64].clone()
        most = max(most, anonymous())
        yield features

pixels = torch.zeros(512, 3, 64, 64, dtype=torch.uint8)
before = most = anonymous()
print(len(gathered(features(), 24 * 512)), most - before)
"""


def packed_zeros(packed: Path, shape: tuple[int, int, int, int], n_train: int) -> int:
    """Pack by hand images whose pixels are zeros, which take no room on the disk; return the bytes of one."""
    import hashlib
    import json

    n_bytes = int(np.prod(shape))
    with packed.open("wb") as file:
        start = mapped.write_header(file, shape)
        file.truncate(start + n_bytes)
        file.seek(start + n_bytes)
        digest = hashlib.blake2b(digest_size=16)
        for _ in range(shape[0]):
            digest.update(bytes(n_bytes // shape[0]))
        labels = [i % 4 for i in range(shape[0])]
        about = {"form": 1, "labels": labels, "n_train": n_train, "n_validation": 0, "classes": [*"abcd"]}
        file.write(json.dumps({"digest": digest.hexdigest(), **about, "left_out": []}).encode())
    return n_bytes // shape[0]


def measured(code: str, *given: str) -> list[int]:
    """Return the last numbers that a program prints."""
    said = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, timeout=240)
    assert said.returncode == 0, said.stderr
    return [*map(int, said.stdout.splitlines()[-1].split())]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process's memory")
def test_an_epoch_over_half_a_gigabyte_of_images_takes_little_memory(tmp_path: Path) -> None:
    of_one = packed_zeros(tmp_path / "large.npy", (5600, 3, 180, 180), 5500)  # 544 MB
    n, mapped_bytes, taken = measured(MEASURED, str(tmp_path / "large.npy"))
    assert (n, mapped_bytes) == (5500, 5500 * of_one)
    assert taken < 300_000_000, f"{taken:,} bytes"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process's memory")
def test_the_features_of_many_passes_are_kept_in_little_memory() -> None:
    """Passes take blocks of 6 and 25 MB; glibc took 365 MB where the features of each were kept between them."""
    n, taken = measured(GATHERED)
    assert n == 24 * 512
    assert taken < 250_000_000, f"{taken:,} bytes"


@pytest.mark.parametrize("sizes", [[3], [1, 4, 2], [5, 5], []])
def test_parts_are_gathered_as_torch_joins_them(sizes: list[int]) -> None:
    for kept in (torch.arange(40, dtype=torch.float64).view(10, 4), torch.arange(10)):
        of = kept[: sum(sizes)].split(sizes) if sizes else ()
        found = gathered(iter(of), sum(sizes))
        assert torch.equal(found, torch.cat(of) if sizes else torch.empty(0))
        assert not sizes or found.dtype == kept.dtype
