"""Streams: several data sets one after another, their sizes, classes and tasks; domains in folders."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clbench
from clbench import ConfigError
from clbench.running.resolve import parse_scenario, prepare, resolve
from clbench.scenarios import dataset_from_arrays, join

TWO = "stream[mnist-5k,digits]"


def constant(name: str, shape: tuple[int, ...], values: list[int]) -> Any:
    """Return a data set with one training and one test image for each value, which is the value of all its pixels."""
    images = np.stack([np.full(shape, value, np.uint8) for value in values])
    labels = np.arange(len(values))
    return dataset_from_arrays(images, labels, images, labels, name=name)


def scenario(spec: str, **options: Any) -> Any:
    """Return the scenario of a spec as a run has it."""
    return prepare(resolve(spec, "naive", {"threads": 1, **options}))[1]


# Joining


@pytest.mark.filterwarnings("ignore:.*training images too")
def test_data_sets_become_one_of_the_largest_size_and_number_of_channels() -> None:
    """Images of one value keep it whatever their size; mean and deviation are those of the six values, by hand."""
    grey, colour = constant("grey", (4, 4), [0, 30]), constant("colour", (6, 8, 3), [60, 90, 120, 150])
    made = join([grey, colour])
    assert made.x_train.shape == made.x_test.shape == (6, 3, 8, 8)
    assert (made.x_train == np.array([0, 30, 60, 90, 120, 150])[:, None, None, None]).all()
    assert made.y_train.tolist() == made.y_test.tolist() == [0, 1, 2, 3, 4, 5]
    assert made.class_names == ("grey: 0", "grey: 1", "colour: 0", "colour: 1", "colour: 2", "colour: 3")
    assert made.mean == pytest.approx([75 / 255] * 3)
    assert made.std == pytest.approx([(2625**0.5) / 255] * 3)  # of (75, 45, 15)^2, each twice
    made.check()


@pytest.mark.filterwarnings("ignore:.*training images too")
@pytest.mark.parametrize(("shape", "size"), [((28, 28), 32), ((8, 8), 20), ((40, 24), 16), ((17, 30), 24)])
def test_images_are_resized_as_pillow_does_it(shape: tuple[int, int], size: int) -> None:
    """Pillow's bilinear filter is antialiased, too; the centre is cut out as of a photo in a folder."""
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    made = join([dataset_from_arrays(images, [0, 1], images, [0, 1], name="noise")], image_size=size)
    for given, image in zip(images, made.x_train, strict=True):
        height, width = (size * side // min(shape) for side in shape)
        resized = np.asarray(Image.fromarray(given).resize((width, height), Image.Resampling.BILINEAR))
        top, left = round((height - size) / 2), round((width - size) / 2)
        expected = resized[top : top + size, left : left + size].astype(int)
        assert np.abs(image[0].astype(int) - expected).max() <= 1  # of 255, from rounding between the two passes


def test_validation_images_stay_at_the_end(tmp_path: Path) -> None:
    """One data set brings a validation split, the other none."""
    rng = np.random.default_rng(0)
    for part, c in itertools.product(("train", "val", "test"), "ab"):
        (tmp_path / "own" / part / c).mkdir(parents=True)
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "own" / part / c / "0.png")
    made = scenario(f"stream[{tmp_path / 'own'},digits]")
    counts = [(row["n_train"], row["n_validation"], row["n_test"]) for row in made.describe()]
    assert counts[0] == (2, 2, 2)
    assert counts[1][1] == 0
    assert made.image_shape == (3, 8, 8)
    assert made.class_names[:2] == ("own: a", "own: b")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sets": []}, "one or more"),
        ({"sets": ["a", "a"]}, "a name of its own"),
        ({"sets": ["a", "b"], "names": ["x"]}, "a name of its own"),
        ({"sets": ["a"], "image_size": 0}, "image_size=0"),
        ({"sets": ["a"], "image_size": 10_000_000}, "bytes of memory"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*training images too")
def test_joining_refuses(given: dict[str, Any], words: str) -> None:
    sets = [constant(name, (4, 4), [0, 30]) for name in given.pop("sets")]
    with pytest.raises(ConfigError, match=words):
        join(sets, **given)


@pytest.mark.filterwarnings("ignore:.*training images too")
def test_vectors_of_one_length_are_joined_as_they_are() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    first, second = (
        dataset_from_arrays(part, [0, 1], part + 100, [0, 1], name=name)
        for name, part in (("low", rows[:2]), ("high", rows[2:]))
    )
    made = join([first, second])
    assert np.array_equal(made.x_train, rows)
    assert made.y_train.tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="low holds float32"):
        join([first, second], image_size=8)
    with pytest.raises(ConfigError, match="can't be brought to the size of other data"):
        join([first, constant("grey", (4, 4), [0, 30])])


# Names of streams


@pytest.mark.parametrize(
    ("text", "of", "others"),
    [
        ("stream[a,b]", ["a", "b"], {}),
        ("stream[ a , b ]", ["a", "b"], {}),
        ("stream[a]", ["a"], {}),
        ("stream[a[tasks=5],b[task_sizes=[1,2]],limit=2]", ["a[tasks=5]", "b[task_sizes=[1,2]]"], {"limit": "2"}),
        ("stream[limit=3,a,b]", ["a", "b"], {"limit": "3"}),
        ("stream[of=[a,b]]", "[a,b]", {}),
        ("stream[/x/y=1/z.npz,b]", ["/x/y=1/z.npz", "b"], {}),
        ("stream", None, {}),
        ("stream[]", None, {}),
    ],
)  # fmt: skip
def test_what_stands_in_brackets_without_a_key_is_a_data_set(text: str, of: Any, others: dict[str, str]) -> None:
    name, options = parse_scenario(text)
    assert name == "stream"
    assert options == ({} if of is None else {"of": of}) | others


def test_both_spellings_and_a_list_of_python_are_one_run() -> None:
    given = [
        resolve(TWO, "naive", {}),
        resolve("stream[of=[mnist-5k,digits]]", "naive", {}),
        resolve("stream", "naive", {"of": "mnist-5k,digits"}),
        resolve("stream", "naive", {"scenario_options": {"of": ("mnist-5k", "digits")}}),
    ]
    assert {config.identity() for config in given} == {given[0].identity()}
    assert resolve("stream[digits,mnist-5k]", "naive", {}).identity() != given[0].identity()


REFUSED = {
    "stream": r"no data sets; stream\[split-mnist,split-kmnist\]",
    "stream[]": "no data sets",
    "stream[mnist-5k,,digits]": "'' is not key=value",
    "stream[mnist-5k,digits": "unbalanced brackets",
    "stream[mnist-5k,digits]]": "unbalanced brackets",
    "stream[mnist-5k,of=[digits]]": "of given twice",
    "stream[mnist-5k,mnist-5k]": "more than once",
    "stream[mnist-5k,split-mnist-5k]": "more than once",
    "stream[mnist-5k,digit]": "did you mean 'digits'",
    "stream[mnist-5k,/nowhere/x]": "no file or folder /nowhere/x",
    "stream[mnist-5k,nowhere.npz]": "no file or folder nowhere.npz",
    "stream[mnist-5k,permuted-mnist-5k]": "permuted-mnist-5k makes its tasks",
    "stream[mnist-5k,stream[mnist-5k,digits]]": "stream makes its tasks",
    "stream[mnist-5k,five-datasets]": "five-datasets makes its tasks",
    "stream[mnist-5k[limit=3],digits]": "limit stands in the brackets of mnist-5k",
    "stream[mnist-5k[taks=3],digits]": "taks stands in the brackets",
    "stream[mnist-5k[tasks=x],digits]": "tasks=x given",
    "stream[mnist-5k[tasks=11],digits]": r"mnist-5k\[tasks=11\]: tasks=11 of 10 classes",
    "stream[mnist-5k,digits,tasks=3]": "a multiple of 2",
    "stream[mnist-5k,digits,tasks=4,tasks_each=2]": "exclude each other",
    "stream[mnist-5k[tasks=2],digits,tasks=4]": r"mnist-5k\[tasks=2\] has its own",
    "stream[mnist-5k,digits,tasks_each=20]": "tasks=20 of 10 classes",
    "stream[mnist-5k,digits,task_sizes=[5,5]]": "unknown option of stream 'task_sizes'",
    "stream[mnist-5k,digits[test_share=0.2]]": "test_share stands in the brackets",
    "stream[mnist-5k[task_sizes=[4,6]],digits,setting=domain]": "domain-incremental scenario needs equal ones",
    "stream[mnist-5k,digits,image_size=2]": "greater than or equal to 4",
    "split-mnist-5k[digits]": "'digits' is not key=value",
    "domains": r"domains\[path/to/it\]",
    "domains[/nowhere]": "no folder /nowhere",
    "domains[a,b]": "path=",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_what_is_no_stream_is_refused_in_a_sentence(spec: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[spec]):
        scenario(spec)


def test_all_data_sets_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data for 'cifar10'.*; there is none for mnist and svhn either"):
        scenario("stream[cifar10,mnist,digits,svhn]", data_root=tmp_path, offline=True)


# Tasks


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
@pytest.mark.parametrize("each", [1, 2, 5])
def test_each_data_set_is_cut_into_as_many_tasks(setting: str, each: int) -> None:
    made = scenario(TWO, setting=setting, tasks_each=each, limit=3)
    size = 10 // each
    chunks = [list(range(first, first + size)) for first in range(0, 20, size)]
    assert [row["classes"] for row in made.describe()] == chunks
    assert [row["outputs"] for row in made.describe()] == [
        list(range(size)) if setting == "domain" else c for c in chunks
    ]
    assert [row["n_train"] for row in made.describe()] == [3 * size] * 2 * each
    assert scenario(TWO, setting=setting, tasks=2 * each, limit=3).digest() == made.digest()


def test_a_data_set_may_have_tasks_and_an_order_of_its_own() -> None:
    made = scenario("stream[mnist-5k[task_sizes=[2,1],class_order=[9,7,8]],digits[tasks=2],limit=2]")
    assert [row["classes"] for row in made.describe()] == [[9, 7], [8], [*range(10, 15)], [*range(15, 20)]]
    assert made.tasks[0].train.classes.tolist().count(9) == 2


def test_the_order_of_data_sets_is_drawn_by_a_seed_of_its_own() -> None:
    """Ten seeds give both orders; the seed of the run draws it only where that is asked for."""

    def first(**options: Any) -> int:
        return int(scenario(TWO, limit=2, **options).describe()[0]["classes"][0])

    drawn = [first(order_seed=seed) for seed in range(10)]
    assert {*drawn} == {0, 10}
    assert [first(order_seed="per-seed", seed=seed) for seed in range(10)] == drawn
    assert {first(seed=seed) for seed in range(4)} == {0}


def test_classes_are_drawn_within_each_data_set_and_alike() -> None:
    rows = scenario(TWO, class_order_seed=3, setting="domain", limit=2).describe()
    assert sorted(rows[0]["classes"]) == list(range(10))
    assert rows[0]["classes"] != list(range(10))
    assert rows[1]["classes"] == [c + 10 for c in rows[0]["classes"]]


def test_a_stream_is_known_by_the_content_of_its_data_and_stays_in_memory() -> None:
    config, made = prepare(resolve(TWO, "naive", {}))
    again, same = prepare(resolve(TWO, "er", {"seed": 3, "memory_size": 20}))
    assert config.data_fingerprint == again.data_fingerprint is not None
    assert made.train.images.data_ptr() == same.train.images.data_ptr()
    # Reports call it by its data, so that streams of others have tables of their own.
    assert made.name == TWO
    # Data that were published under the name need no digest.
    assert prepare(resolve("stream[mnist-5k]", "naive", {}))[0].data_fingerprint is None


def test_a_stream_runs_and_goes_on_to_the_same_numbers(tmp_path: Path, run: Any) -> None:
    class Interrupt(clbench.Observer):
        def task(self, task: int, row: list[float]) -> None:
            raise KeyboardInterrupt

    asked = {"scenario": TWO, "limit": 4, "strategy": "er", "memory_size": 20}
    whole = run(**asked)
    with pytest.raises(KeyboardInterrupt):
        run(**asked, out=tmp_path / "cut", observer=Interrupt())
    assert np.array_equal(run(**asked, out=tmp_path / "cut", resume=True).accuracy, whole.accuracy, equal_nan=True)
    assert whole.accuracy.shape == (2, 2)


# Domains


def photos(root: Path, domains: dict[str, tuple[int, ...]], classes: str = "ab", n: int = 4) -> None:
    """Write ROOT/DOMAIN/CLASS/*.png: n images of each class of the size and number of channels of the domain."""
    rng = np.random.default_rng(len(list(root.rglob("*.png"))))
    for (domain, shape), c in itertools.product(domains.items(), classes):
        (root / domain / c).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(root / domain / c / f"{i}.png")


def test_folders_of_one_class_set_are_domains(tmp_path: Path) -> None:
    """Every class has an output in common with its likes in the other domains; a quarter of each is the test."""
    photos(tmp_path, {"sketch10": (8, 8), "photo": (12, 16, 3), "sketch9": (8, 8)})
    (tmp_path / ".cache").mkdir()
    (tmp_path / "readme.txt").write_text("domains")
    made = scenario(f"domains[{tmp_path}]", image_size=8, test_share=0.25)
    assert (made.name, made.setting, made.image_shape) == (f"domains[{tmp_path.name}]", "domain", (3, 8, 8))
    rows = made.describe()
    assert [row["names"] for row in rows] == [[f"{d}: a", f"{d}: b"] for d in ("photo", "sketch9", "sketch10")]
    assert [(row["outputs"], row["n_train"], row["n_test"]) for row in rows] == [([0, 1], 6, 2)] * 3
    chosen = scenario(f"domains[path={tmp_path},domains=[sketch9,photo]]", image_size=8, test_share=0.25)
    assert [row["names"][0] for row in chosen.describe()] == ["sketch9: a", "photo: a"]
    by_class = scenario(f"domains[{tmp_path},setting=class,tasks_each=2]", image_size=8, test_share=0.25)
    assert [row["outputs"] for row in by_class.describe()] == [[i] for i in range(6)]


def test_domains_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    photos(tmp_path, {"photo": (8, 8), "sketch": (8, 8)})
    with pytest.raises(ConfigError, match="--test-share"):
        scenario(f"domains[{tmp_path}]")
    with pytest.raises(ConfigError, match="did you mean 'photo'"):
        scenario(f"domains[{tmp_path},domains=[photos]]", test_share=0.5)
    photos(tmp_path, {"art": (8, 8)}, classes="a")
    with pytest.raises(ConfigError, match="the domain art has no class 'b', which photo has"):
        scenario(f"domains[{tmp_path}]", test_share=0.5)
    photos(tmp_path, {"train": (8, 8)})
    with pytest.raises(ConfigError, match="its path alone is a scenario"):
        scenario(f"domains[{tmp_path}]", test_share=0.5)
    with pytest.raises(ConfigError, match="two or more folders"):
        scenario(f"domains[{tmp_path / 'art' / 'a'}]", test_share=0.5)


def test_a_domain_may_have_a_test_of_its_own(tmp_path: Path) -> None:
    for domain, part in itertools.product(("photo", "sketch"), ("train", "test")):
        photos(tmp_path / domain, {part: (8, 8)}, n=3 if part == "train" else 2)
    made = scenario(f"domains[{tmp_path}]")
    assert [(row["n_train"], row["n_test"]) for row in made.describe()] == [(6, 4), (6, 4)]
