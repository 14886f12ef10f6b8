"""Features of a frozen network that are computed once: their numbers, what shares them, and their file."""

import json
import re
import resource
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import clbench
from clbench import ConfigError
from clbench.cli import main
from clbench.learning.strategy import Strategy
from clbench.many.compare import requests
from clbench.models import build_model
from clbench.models.features import CHUNK, FEATURES, FrozenFeatures
from clbench.models.pretrained import Pretrained
from clbench.running.display import Display, Named
from clbench.running.features import use_kept_features
from clbench.running.position import position
from clbench.running.progress import Pace
from clbench.running.resolve import prepare, resolve, strategy_class
from clbench.running.run import Run
from clbench.support.cache import ABOUT, cache_folder, entries
from clbench.support.locks import held
from clbench.tools.plan import plan_run

VIT = "vit[patch_size=14,width=16,depth=1,heads=2]"
SHAPE = (1, 28, 28)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.save(build_model(VIT, SHAPE, 1).state_dict(), tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


def network(seed: int = 1, spec: str = VIT) -> Pretrained:
    made = build_model(spec, SHAPE, seed)
    assert isinstance(made, Pretrained)
    return made


def pictures(n: int = 2 * CHUNK + 40) -> Tensor:
    return torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pixels(images: Tensor) -> Tensor:
    return images / 255


class Told:
    """The text about the numbers of features that are done."""

    def __init__(self, then: Callable[[int | None], None] = lambda done: None) -> None:
        self.done: list[int | None] = []
        self.then = then

    def __call__(self, done: int | None, total: int) -> None:
        self.done.append(done)
        self.then(done)


def features(images: Tensor, told: Told, model: Pretrained | None = None, **settings: str) -> Tensor:
    return FrozenFeatures(model or network(), pixels, settings, nullcontext, told).of(images, "pictures")[0]


def folders() -> list[Path]:
    return sorted(cache_folder().glob("features-*"))


def run(strategy: str, weights: str, out: str, **options: Any) -> clbench.Result:
    small: dict[str, Any] = {"tasks": 5, "limit": 6, "epochs": 1, "batch_size": 8, "threads": 1, "quiet": True}
    return clbench.run("split-mnist-5k", strategy, model=VIT, weights=weights, out=out, **(small | options))


# The numbers


def test_features_are_those_of_the_network_in_eval_mode_and_are_read_the_second_time() -> None:
    """Expected: the forward pass of a network of the same weights, and the rows that numpy reads from the file."""
    told, again = Told(), Told()
    found = features(pictures(), told)
    with torch.no_grad():
        expected = network().eval().features(pictures() / 255)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert told.done == [0, CHUNK, 2 * CHUNK, 2 * CHUNK + 40]
    (folder,) = folders()
    assert np.array_equal(np.fromfile(folder / FEATURES, np.float32).reshape(-1, 16), found.numpy())
    assert torch.equal(features(pictures(), again), found)
    assert again.done == []


def test_the_number_of_threads_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / f"{threads}"))
        torch.set_num_threads(threads)
        try:
            found.append(features(pictures(), Told()))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("slda", {}),
        ("naive", {"train": "head"}),
        ("icarl", {"train": "head", "memory_size": 20}),
        ("feature-extraction", {}),
    ],
)
def test_a_run_has_the_accuracies_of_one_without_the_cache(strategy: str, options: Any, weights: str) -> None:
    once = run(strategy, weights, "once", **options)
    each = run(strategy, weights, "each", cache_features=False, **options)
    assert set(once.record["cached_features"]) == {"train", "test"}
    assert "cached_features" not in each.record
    # 1,000 test images: a single one that is judged otherwise, by rounding, is a thousandth.
    np.testing.assert_allclose(once.accuracy, each.accuracy, atol=0.011)
    assert abs(once.metrics["average_accuracy"] - each.metrics["average_accuracy"]) <= 0.002


# Those who share them


def test_strategies_seeds_and_ways_of_cutting_tasks_share_one_entry_for_each_split(weights: str) -> None:
    first = run("slda", weights, "0")
    written = {folder: (folder / FEATURES).stat().st_mtime_ns for folder in folders()}
    assert len(written) == 2
    others = [
        run("simplecil", weights, "1", seed=1),
        run("naive", weights, "2", train="head", threads=2, tasks=2),
        run("slda", weights, "3", class_order_seed=1, validation=0.5),
    ]
    assert {folder: (folder / FEATURES).stat().st_mtime_ns for folder in folders()} == written
    for other in others:
        assert other.record["cached_features"] == first.record["cached_features"]


def test_whatever_changes_a_feature_has_an_entry_of_its_own() -> None:
    images = pictures(40)
    changed = images.clone()
    changed[3, 0, 0, 0] += 1
    wider = network(spec="vit[patch_size=14,width=16,depth=1,heads=4]")
    one_weight = network()
    with torch.no_grad():
        next(one_weight.backbone.parameters()).view(-1)[0] += 1e-6
    other_mean = network()
    other_mean.preprocess.mean += 0.1
    cases: list[tuple[Any, ...]] = [
        (images, network(), {}),
        (images, network(2), {}),
        (images, one_weight, {}),
        (images, other_mean, {}),
        (images, wider, {"network": "wider"}),
        (images, network(), {"precision": "bf16"}),
        (changed, network(), {}),
        (images[:39], network(), {}),
    ]
    for n, (given, model, settings) in enumerate(cases, 1):
        told = Told()
        features(given, told, model, **settings)
        assert told.done == [0, len(given)], n
        assert len(folders()) == n
    # The head is no part of the backbone.
    grown = network()
    grown.head.grow(3, torch.Generator())
    told = Told()
    features(images, told, grown)
    assert told.done == []


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("slda", {"cache_features": False}),
        ("slda", {"weights": None}),
        ("naive", {}),
        ("naive", {"train": "last-1"}),
        ("naive", {"train": "head", "augment": "flip"}),
        ("feature-extraction[trainable_from=last-1]", {}),
        ("feature-extraction", {"augment": "crop"}),
        ("icarl[flip_means=true]", {"train": "head", "memory_size": 20}),
        ("xdg", {"train": "head", "setting": "task"}),
    ],
)
def test_a_run_that_sees_more_of_an_image_than_frozen_features_has_none_kept(
    strategy: str, options: Any, weights: str
) -> None:
    given = {"weights": weights} | options
    config, scenario = prepare(resolve("split-mnist-5k", strategy, {"model": VIT, "limit": 6, "threads": 1} | given))
    made = Run(config, scenario, strategy_class(config.strategy)(**config.strategy_options))
    assert use_kept_features(made.context, made.strategy, lambda done, total: None) is None
    assert folders() == []
    rules = [warned.rule for warned in made.recorder.record.warnings]
    assert ("augmented-features" in rules) == (options.get("augment") is not None)


def test_augmentation_that_no_step_uses_does_not_matter(weights: str) -> None:
    assert "cached_features" in run("slda", weights, "augmented", augment="crop-flip").record


def test_a_network_that_normalises_no_images_itself_is_left_as_it_was() -> None:
    torch.save(build_model("mlp:8", SHAPE, 1).state_dict(), "mlp.pt")
    result = clbench.run("split-mnist-5k", "slda", model="mlp:8", weights="mlp.pt", limit=6, out="plain", quiet=True)
    assert "cached_features" not in result.record
    assert entries() == [] or all(not entry.name.startswith("features") for entry in entries())


# The file


def cut(folder: Path) -> None:
    with (folder / FEATURES).open("r+b") as file:
        file.truncate(CHUNK * 16 * 4 + 100)


def flip_a_bit(folder: Path) -> None:
    with (folder / FEATURES).open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def empty(folder: Path) -> None:
    (folder / FEATURES).write_bytes(b"")


def lose_the_features(folder: Path) -> None:
    (folder / FEATURES).unlink()


def lose_the_description(folder: Path) -> None:
    (folder / ABOUT).unlink()


def spoil_the_description(folder: Path) -> None:
    (folder / ABOUT).write_text('{"key": ')


def be_of_others(folder: Path) -> None:
    """Put the files of other weights in the place of these."""
    features(pictures(), Told(), network(2))
    (other,) = (one for one in folders() if one != folder)
    for name in (FEATURES, ABOUT):
        (folder / name).write_bytes((other / name).read_bytes())


@pytest.mark.parametrize(
    ("damage", "computed", "words"),
    [
        (cut, CHUNK + 40, "was cut or damaged; 168 of its 296 features"),
        (flip_a_bit, CHUNK, "was cut or damaged; 128 of its 296 features"),
        (empty, 2 * CHUNK + 40, "was cut or damaged; 296 of its 296 features"),
        (lose_the_features, 2 * CHUNK + 40, "was cut or damaged; 296 of its 296 features"),
        (lose_the_description, 2 * CHUNK + 40, "does not say what it holds"),
        (spoil_the_description, 2 * CHUNK + 40, "does not say what it holds"),
        (be_of_others, 2 * CHUNK + 40, "belongs to other weights, images or settings"),
    ],
)
def test_a_damaged_entry_is_made_anew_where_it_is_damaged_with_one_line(damage: Any, computed: int, words: str) -> None:
    before = features(pictures(), Told()).clone()
    (folder,) = folders()
    damage(folder)
    told = Told()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        after = features(pictures(), told)
    assert torch.equal(after, before)
    assert told.done[0] == len(before) - computed
    (line,) = [str(one.message) for one in caught]
    assert words in line
    assert "\n" not in line
    told = Told()
    features(pictures(), told)
    assert told.done == []


def test_an_interrupted_pass_goes_on_where_it_was() -> None:
    def interrupt(done: int | None) -> None:
        if done == 2 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features(pictures(), Told(interrupt))
    (entry,) = entries()
    assert entry.what == "features of 296 images, 256 of them done: pictures"
    told = Told()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = features(pictures(), told)
    assert told.done == [2 * CHUNK, 2 * CHUNK + 40]
    with torch.no_grad():
        torch.testing.assert_close(found, network().eval().features(pictures() / 255), rtol=1e-5, atol=1e-6)


def test_of_two_that_want_the_same_features_one_computes_and_the_other_waits() -> None:
    waiting, found = threading.Event(), {}

    def until_the_other_waits(done: int | None) -> None:
        if done == CHUNK:
            assert waiting.wait(30)

    first, second = Told(until_the_other_waits), Told(lambda done: waiting.set() if done is None else None)
    one = threading.Thread(target=lambda: found.update(one=features(pictures(), first)))
    one.start()
    while CHUNK not in first.done:
        assert one.is_alive()
    found["other"] = features(pictures(), second)
    one.join()
    assert set(second.done) == {None}
    assert torch.equal(found["one"], found["other"])


@pytest.mark.slow
def test_worker_processes_compute_them_once(weights: str) -> None:
    shared = {"tasks": 5, "limit": 6, "epochs": 1, "threads": 1, "quiet": True, "references": False}
    results = clbench.compare(
        "split-mnist-5k", ["slda", "simplecil"], seeds=1, jobs=2, model=VIT, weights=weights, out="many", **shared
    )
    assert len({json.dumps(result.record["cached_features"]) for result in results}) == 1
    assert len(folders()) == 2


def test_a_full_disk_is_said_and_what_was_computed_is_kept() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK * 16 * 4 + 1000, limits[1]))
    try:
        with pytest.raises(
            ConfigError, match=re.escape("can't keep 18,944 bytes of features (File too large); CLBENCH_CACHE=")
        ):
            features(pictures(), Told())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = Told()
    features(pictures(), told)
    assert told.done[0] == CHUNK


def test_a_cache_that_is_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=re.escape("can't keep 18,944 bytes of features (Not a directory)")):
        features(pictures(), Told())


# The list, and what is shown


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["cache", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_cache_is_listed_and_cleared_and_leaves_what_is_not_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert called(capsys) == (0, f"0 entries, 0.0 MB, in {cache_folder()}\n", "")
    features(pictures(), Told())
    features(pictures(50), Told())
    (cache_folder() / "notes.txt").write_text("mine")
    (cache_folder() / "images-0.npy").write_bytes(bytes(2_000_000))
    code, out, _ = called(capsys)
    assert code == 0
    assert "features of 296 images: pictures" in out
    assert "3 entries, 2.0 MB" in out
    listed = json.loads(called(capsys, "list", "--json")[1])["entries"]
    assert {entry["name"] for entry in listed} == {*(folder.name for folder in folders()), "images-0.npy"}
    sizes = {entry["name"]: entry["bytes"] for entry in listed}
    assert sizes["images-0.npy"] == 2_000_000
    assert sizes[folders()[0].name] == sum(file.stat().st_size for file in folders()[0].iterdir())
    code, out, _ = called(capsys, "clear", "images-0.npy")
    assert (code, out) == (0, f"cleared 1 entries, 2.0 MB, of {cache_folder()}\n")
    with held(folders()[0]):
        out = called(capsys, "clear")[1]
    assert "is being made by another process, and stays" in out
    assert len(folders()) == 1
    called(capsys, "clear")
    assert [path.name for path in cache_folder().iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lst"], "clbench cache lst: list and clear are accepted"),
        (["list", "x"], "names are for clear"),
        (["clear", "features-0"], "unknown entry of the cache 'features-0'"),
    ],
)
def test_wrong_words_are_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = called(capsys, *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_progress_is_shown_while_features_are_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pace = Pace(tmp_path)
    pace.begin(*prepare(resolve("split-mnist-5k", "naive", {"limit": 6})), 0)
    pace.features_computed(0, 1200)
    at = position(tmp_path)
    assert at is not None
    assert str(at) == "features of 0 of 1,200 images"
    # As if 10 seconds had gone by: 300 images, so 900 more take 30 seconds.
    assert pace.computing is not None
    pace.computing = (pace.computing[0] - 10.0, 0)
    pace.wrote = 0.0
    pace.features_computed(300, 1200)
    assert str(position(tmp_path)) == "features of 300 of 1,200 images, 0:30 left, 30 images/s"
    with held(tmp_path), Display({tmp_path: Named("slda", 0)}):
        pass
    assert "slda, seed 0: features of 300 of 1,200 images, 0:30 left, 30 images/s" in capsys.readouterr().err
    pace.wrote = 0.0
    pace.features_computed(None, 1200)
    assert str(position(tmp_path)) == "waiting for features that another run computes"
    pace.features_computed(1200, 1200)
    assert str(position(tmp_path)) == "task 0 (1 of 5)"


def test_a_plan_counts_the_features_that_are_not_kept_yet_once(weights: str) -> None:
    """300 training images (5 tasks, 2 classes, 30 a class) and the 1,000 test images of split-mnist-5k."""
    options = {"model": VIT, "weights": weights, "limit": 30, "threads": 1, "augment": "none"}
    for strategy in ("slda", "naive[train=head,epochs=1]"):
        config, scenario = prepare(resolve("split-mnist-5k", strategy, options))
        planned = plan_run(config, scenario, seconds=1.0)
        assert planned["features"]["images"] == 1300
        assert planned["seconds"] == pytest.approx(
            planned["features"]["seconds"] + sum(task["seconds"] for task in planned["tasks"])
        )
    assert folders() == []
    run("slda", weights, "run", limit=30)
    assert plan_run(config, scenario, seconds=1.0)["features"] == {"images": 0, "seconds": 0.0}


class Mirrored(Strategy):
    """Says that it works on features, and mirrors images."""

    traits = clbench.Traits(family="reference", on_features=True)

    def scores(self, images: Tensor, task: int | None = None) -> Tensor:
        logits: Tensor = self.model(images.flip(-1))
        return logits


def test_the_kit_finds_a_strategy_that_does_more_with_images_than_it_says() -> None:
    (found,) = clbench.testing.check_strategy(Mirrored, checks=["features_once"])
    assert found.status == "failed"
    assert "other scores than on images" in found.reason


@pytest.mark.parametrize(
    ("strategies", "options", "references"),
    [
        (["simplecil", "slda"], {}, ["naive[train=head,augment=none]", "joint[train=head,augment=none]"]),
        (["simplecil", "er[train=head]"], {"augment": "none"}, ["naive[train=head]", "joint[train=head]"]),
        (["er[train=head]"], {"augment": "flip"}, ["naive[train=head]", "joint[train=head]"]),
        (["simplecil"], {"train": "all"}, ["naive", "joint"]),
        (["simplecil"], {"weights": "random"}, ["naive", "joint"]),
        (["simplecil", "lwf"], {}, ["naive", "joint"]),
        (["simplecil"], {"model": "mlp:4"}, ["naive", "joint"]),
    ],
)
def test_references_beside_a_backbone_that_nothing_trains_train_the_head_alone(
    strategies: list[str], options: dict[str, Any], references: list[str]
) -> None:
    given = {"model": "efficientnet-lite0[image_size=32]", "seeds": 2} | options
    asked = requests("split-mnist-5k", strategies, **given)
    assert [request.strategy for request in asked[2 * len(strategies) :: 2]] == references
