"""Returns of the hooks of a strategy and of a network: the wrong kind or shape is refused in one sentence."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import clbench
from clbench import ConfigError, RunError, Stage, Strategy, Traits
from clbench.models.network import Head, Network, check_network


@pytest.fixture
def small(cut: Any) -> Any:
    """2 tasks of 2 classes, 4 training and 20 test images of each: 80 images are tested at once, 8 trained on."""
    return cut(tasks=2, limit=4, class_order=[0, 1, 2, 3])


def returning(hook: str, value: Any, **traits: Any) -> type[Strategy]:
    """Return naive with a hook that returns something else; a function is given the strategy and the arguments."""

    def replaced(self: Strategy, *given: Any) -> Any:
        return value(self, *given) if callable(value) else value

    members = {hook: replaced, "traits": Traits(**({"family": "replay"} | traits)), "__module__": __name__}
    return type("Mine", (Strategy,), members)


def refusal(kind: type[Strategy], run: Any, scenario: Any, **options: Any) -> str:
    with pytest.raises((RunError, ConfigError)) as caught:
        run(kind, scenario, **options)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 300
    return text


def logits(self: Strategy, images: Tensor, *_: Any) -> Tensor:
    made: Tensor = self.model(images)
    return made


SCORES: dict[str, tuple[Any, str]] = {
    "one number an image": (lambda s, x: logits(s, x).amax(1), "float32 [40]"),
    "the chosen class": (lambda s, x: logits(s, x).argmax(1), "int64 [40]"),
    "too many outputs": (lambda s, x: logits(s, x).repeat(1, 2), "float32 [40, 4]"),
    "too few outputs": (lambda s, x: logits(s, x)[:, :1], "float32 [40, 1]"),
    "too few rows": (lambda s, x: logits(s, x)[:-1], "float32 [39, 2]"),
    "one row": (lambda s, x: logits(s, x)[:1], "float32 [1, 2]"),
    "a further axis": (lambda s, x: logits(s, x)[..., None], "float32 [40, 2, 1]"),
    "turned round": (lambda s, x: logits(s, x).T, "float32 [2, 40]"),
    "whole numbers": (lambda s, x: logits(s, x).long(), "int64 [40, 2]"),
    "truth values": (lambda s, x: logits(s, x) > 0, "bool [40, 2]"),
    "complex": (lambda s, x: logits(s, x) * 1j, "complex64 [40, 2]"),
    "a list": (lambda s, x: logits(s, x).tolist(), "a list"),
    "an array": (lambda s, x: logits(s, x).numpy(), "a ndarray"),
    "a tuple": (lambda s, x: (logits(s, x), None), "a tuple"),
    "nothing": (None, "None"),
    "a number": (0.5, "0.5"),
    "elsewhere": (lambda s, x: torch.empty(len(x), 2, device="meta"), "float32 [40, 2]"),
    "an empty dict": ({}, "no classifier"),
    "a dict of lists": (lambda s, x: {"linear": [1.0]}, "a list under the name 'linear'"),
    "a wrong further one": (lambda s, x: {"a": logits(s, x), "b": logits(s, x)[0]}, "float32 [2] under the name 'b'"),
    "a name that is none": (lambda s, x: {0: logits(s, x)}, "float32 [40, 2] under the name 0"),
    "a long text": ("long " * 500, "'long long"),
    "a long name": (lambda s, x: {"long " * 500: None}, "None under the name 'long long"),
    "None beside it": (lambda s, x: {"linear": logits(s, x), "other": None}, "None under the name 'other'"),
}


@pytest.mark.parametrize(("value", "returned"), SCORES.values(), ids=SCORES)
def test_scores_are_one_float_for_each_image_and_output(value: Any, returned: str, run: Any, small: Any) -> None:
    """The untrained model is tested first, on the 40 images of task 0, whose 2 outputs exist."""
    text = refusal(returning("scores", value), run, small)
    assert text.startswith(f"Mine.scores returned {returned}")
    assert "; float [40, 2], [images, outputs]," in text


@pytest.mark.parametrize("validation", [0.0, 0.5])
def test_scores_that_go_wrong_later_are_refused_then(validation: float, run: Any, cut: Any) -> None:
    def scores(self: Strategy, images: Tensor) -> Tensor:
        return logits(self, images)[:, : 2 if self.progress.task else None]

    watched = {"patience": 1} if validation else {}
    scenario = cut(tasks=2, limit=4, class_order=[0, 1, 2, 3], validation=validation)
    text = refusal(returning("scores", scores), run, scenario, **watched)
    n = 4 if validation else 80
    assert text.startswith(f"Mine.scores returned float32 [{n}, 2]; float [{n}, 4], [images, outputs],")


@pytest.mark.parametrize("later", [{"a"}, {"a", "b", "c"}, {"a", "c"}])
def test_classifiers_stay_the_same(later: set[str], run: Any, small: Any) -> None:
    def scores(self: Strategy, images: Tensor) -> Any:
        return {name: logits(self, images) for name in (sorted(later) if self.progress.task else ("a", "b"))}

    text = refusal(returning("scores", scores), run, small)
    assert text.startswith(f"Mine.scores returned the classifiers {', '.join(sorted(later))}, and a, b before;")


def test_classifiers_stay_the_same_within_a_task(run: Any, small: Any) -> None:
    """Only the headline one is recorded there, so another order would record another classifier."""

    def scores(self: Strategy, images: Tensor) -> Any:
        return {name: logits(self, images) for name in ("ba" if self.progress.step else "ab")}

    assert "the classifiers b, a, and a, b before" in refusal(returning("scores", scores), run, small, eval_every=1)


def test_classifiers_are_the_same_for_all_images_of_an_evaluation(run: Any, cut: Any) -> None:
    """The task is told, so that each task's images come in a pass of their own."""

    def scores(self: Strategy, images: Tensor, task: int) -> Any:
        return {f"of {task if self.progress.task else 0}": logits(self, images)}

    mine = returning("scores", scores, settings=("task",), memory="none", needs_task_at_test=True)
    assert "the classifiers of 1, and of 0 before" in refusal(mine, run, cut(tasks=2, limit=4, setting="task"))


def loss(self: Strategy, batch: Any) -> Tensor:
    return self.classification_loss(self.model(batch.images), batch)


LOSSES: dict[str, tuple[Any, str]] = {
    "a value for each image": (lambda s, b: s.model(b.images).logsumexp(1), "float32 [8]; a scalar"),
    "one value in a list": (lambda s, b: loss(s, b)[None], "float32 [1]; a scalar"),
    "nothing": (None, "None; a scalar"),
    "a number": (1.5, "1.5; a scalar"),
    "a number of NumPy": (lambda s, b: np.float32(1.5), "a float32; a scalar"),
    "a list": (lambda s, b: [loss(s, b)], "a list; a scalar"),
    "a tuple": (lambda s, b: (loss(s, b), {}), "a tuple; a scalar"),
    "whole numbers": (lambda s, b: torch.tensor(1), "int64 []; a scalar"),
    "complex": (lambda s, b: loss(s, b) * 1j, "complex64 []; a scalar"),
    "an empty dict": ({}, "no term; a scalar"),
    "a dict of numbers": (lambda s, b: {"a": loss(s, b), "b": 0.0}, "0.0 under the name 'b'; a scalar"),
    "a dict with None": (lambda s, b: {"a": loss(s, b), "b": None}, "None under the name 'b'; a scalar"),
    "a dict of rows": (lambda s, b: {"a": s.model(b.images)[:, 0]}, "float32 [8] under the name 'a'; a scalar"),
    "a name that is none": (lambda s, b: {1: loss(s, b)}, "float32 [] under the name 1; a scalar"),
    "detached": (lambda s, b: loss(s, b).detach(), "a loss without a gradient; one that depends on"),
    "detached terms": (lambda s, b: {"a": loss(s, b).detach()}, "a loss without a gradient; one that depends on"),
    "a constant": (lambda s, b: torch.zeros(()), "a loss without a gradient; one that depends on"),
}


@pytest.mark.parametrize(("value", "returned"), LOSSES.values(), ids=LOSSES)
def test_a_loss_is_a_scalar_with_a_gradient_or_several_by_name(value: Any, returned: str, run: Any, small: Any) -> None:
    assert refusal(returning("loss", value), run, small).startswith(f"Mine.loss returned {returned}")


def test_the_loss_of_a_stage_is_named_by_its_stage(run: Any, small: Any) -> None:
    mine = returning("stages", lambda self, task: [Stage(task.train, "second", loss=lambda batch: None)])
    assert refusal(mine, run, small).startswith("the loss of stage 'second' returned None; a scalar")


def test_a_term_may_be_a_constant_beside_one_that_is_not(run: Any, small: Any) -> None:
    mine = returning("loss", lambda s, b: {"a": loss(s, b), "b": torch.tensor(2.0)})
    assert run(mine, small).record["training"][0]["losses"]["b"] == 2.0


@pytest.mark.parametrize(
    ("value", "returned"),
    [(0.0, "0.0"), (torch.zeros(2), "float32 [2]"), (torch.tensor(1), "int64 []"), ({}, "a dict"), ([], "a list")],
)
def test_a_penalty_is_a_scalar_or_none(value: Any, returned: str, run: Any, small: Any) -> None:
    text = refusal(returning("penalty", value), run, small)
    assert text == f"Mine.penalty returned {returned}; None or a scalar tensor of floats is accepted"


@pytest.mark.parametrize(
    ("value", "returned"),
    [
        (lambda s, x: s.model.features(x)[:, :8], "float32 [8, 8]"),
        (lambda s, x: s.model.features(x)[:, :, None, None], "float32 [8, 32, 1, 1]"),
        (lambda s, x: s.model.features(x)[1:], "float32 [7, 32]"),
        (lambda s, x: s.model.features(x).mean(1), "float32 [8]"),
        (lambda s, x: s.model.features(x).long(), "int64 [8, 32]"),
        (lambda s, x: s.model.features(x).numpy(), "a ndarray"),
        (None, "None"),
    ],
)
def test_features_are_one_row_for_each_image(value: Any, returned: str, run: Any, small: Any) -> None:
    """mlp:32 has 32 features, and task 0 has 8 training images."""
    text = refusal(returning("features", value), run, small, memory_size=4, memory_policy="herding")
    assert text == f"Mine.features returned {returned}; float [8, 32], [images, feature_dim], is accepted"


STAGES: dict[str, tuple[Any, str]] = {
    "nothing": (None, "Mine.stages returned None; a list of Stage is accepted"),
    "a stage alone": (lambda s, t: Stage(t.train), "Mine.stages returned a Stage; a list of Stage is accepted"),
    "data": (lambda s, t: [t.train], "Mine.stages returned an ImageSet among the stages; a list"),
    "a number": (3, "Mine.stages returned 3; a list"),
    "text": ("train", "Mine.stages returned 'train'; a list"),
    "a tensor": (torch.tensor(0.0), "Mine.stages returned float32 []; a list"),
    "a dict": ({}, "Mine.stages returned a dict; a list"),
    "no data": (lambda s, t: [Stage(None)], "Stage: data=None given, an ImageSet accepted"),
    "a task": (lambda s, t: [Stage(t)], "Stage: data=Task("),
    "no epochs": (lambda s, t: [Stage(t.train, epochs=0)], "Stage: epochs=0 given; a number of 1"),
    "epochs as text": (lambda s, t: [Stage(t.train, epochs="2")], "Stage: epochs='2' given, an integer"),
    "half an epoch": (lambda s, t: [Stage(t.train, epochs=0.5)], "Stage: epochs=0.5 given, an integer"),
    "no iterations": (lambda s, t: [Stage(t.train, iterations=0)], "Stage: iterations=0 given; a number of 1"),
    "iterations below 0": (
        lambda s, t: [Stage(t.train, iterations=-1)],
        "Stage: iterations=-1 given; a number of 1",
    ),
    "rows as a list": (
        lambda s, t: [Stage(t.train, head_rows=[0])],
        "Stage: head_rows=[0] given, a slice",
    ),
    "names": (lambda s, t: [Stage(t.train, parameters=["a"])], "Stage: parameters=['a'] given, a Parameter"),
    "a loss that is none": (lambda s, t: [Stage(t.train, loss=1.0)], "Stage: loss=1.0 given, a function"),
    "a name that is none": (
        lambda s, t: [Stage(t.train, name=None)],
        "Stage: name=None given, text",
    ),
    "nothing trains": (lambda s, t: [Stage(t.train, parameters=[])], "stage 'train' of task 0 trains no parameter"),
}


@pytest.mark.parametrize(("value", "begins"), STAGES.values(), ids=STAGES)
def test_stages_are_a_list_of_stages_that_can_be_fitted(value: Any, begins: str, run: Any, small: Any) -> None:
    assert refusal(returning("stages", value), run, small).startswith(begins)


@pytest.mark.parametrize("value", [lambda s, t: (Stage(t.train),), lambda s, t: iter([Stage(t.train)])])
def test_stages_may_come_in_any_order_of_things(value: Any, run: Any, small: Any) -> None:
    assert run(returning("stages", value), small).record["accuracy"] == run("naive", small).record["accuracy"]


@pytest.mark.parametrize(
    ("value", "returned"),
    [(None, "None"), ([], "a list"), (lambda s, kind, size, per_class: kind, "an ABCMeta")],
)
def test_a_new_memory_is_a_memory(value: Any, returned: str, run: Any, small: Any) -> None:
    text = refusal(returning("new_memory", value), run, small, memory_size=4)
    assert text == f"Mine.new_memory returned {returned}; an empty clbench.memory.Memory is accepted"


@pytest.mark.parametrize(("value", "returned"), [(None, "None"), (1, "1"), (torch.tensor(True), "bool []")])
def test_whether_weight_decay_acts_is_yes_or_no(value: Any, returned: str, run: Any, small: Any) -> None:
    text = refusal(returning("decays", value), run, small, weight_decay=0.1)
    assert text == f"Mine.decays returned {returned}; True or False is accepted"


ODD: list[Any] = [
    *(None, 0, 1.5, math.nan, math.inf, "x", b"x", True, [], {}, (), set(), object(), range(3), np.zeros(3)),
    *(torch.zeros(()), torch.zeros(3), torch.tensor(math.nan), torch.zeros(8, 2), torch.zeros(8, 8).long()),
    *(torch.full((8, 4), math.nan), torch.zeros(0), {"a": 1.0}, {"a": torch.zeros(())}, {1: 2}, [torch.zeros(2)]),
    *(np.float32(2), nn.Linear(2, 2), lambda *given: 1),
]


@pytest.mark.slow
def test_whatever_a_hook_returns_at_some_place_the_run_is_done_or_ends_in_a_sentence(run: Any, small: Any) -> None:
    """200 strategies: a hook that returns something odd from some task and step on."""
    draw = random.Random(0)
    for _ in range(200):
        hook, value = draw.choice(["loss", "penalty", "scores", "features", "stages", "decays"]), draw.choice(ODD)
        task, step = draw.choice([0, 1]), draw.choice([0, 1])

        def replaced(self: Strategy, *given: Any, hook: str = hook, value: Any = value, at: Any = (task, step)) -> Any:
            now = self.progress.task == at[0] and self.progress.step >= (hook in ("loss", "penalty", "scores")) * at[1]
            return value if now else getattr(Strategy, hook)(self, *given)

        members = {hook: replaced, "traits": Traits(family="replay"), "__module__": __name__}
        options = {"model": draw.choice(["mlp:4", "mlp:4[batch_norm=true]"]), "on_nan": draw.choice(["stop", "skip"])}
        try:
            run(type("Mine", (Strategy,), members), small, memory_size=4, batch_size=4, weight_decay=0.1, **options)
        except (RunError, ConfigError) as error:
            sentence = str(error)
            assert len(sentence) < 300, sentence
            assert sentence.isprintable()


# Networks that are not what they say


class Honest(Network):
    """Two layers on 1 x 6 x 6 images, 5 features."""

    def __init__(self, image_shape: Any = (1, 6, 6)) -> None:
        super().__init__([nn.Flatten(), nn.Linear(math.prod(image_shape), 5), nn.BatchNorm1d(5)], feature_dim=5)


class WrongDim(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = 64


class WrongHead(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.head = Head(8)


class LinearHead(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 10)  # type: ignore[assignment]


class FullHead(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.head = Head(5, 10)


class NoHead(Honest):
    def __init__(self) -> None:
        super().__init__()
        del self.head


class TooWide(Network):
    def __init__(self) -> None:
        super().__init__([nn.Flatten(), nn.Linear(36, 5)], feature_dim=7)


class Maps(Network):
    def __init__(self) -> None:
        super().__init__([nn.Conv2d(1, 5, 3)], feature_dim=5)


class Pair(Honest):
    def features(self, images: Tensor) -> Any:
        return super().features(images), None


class PairInTraining(Honest):
    def features(self, images: Tensor) -> Any:
        features = super().features(images)
        return (features, features) if self.training else features


class AlwaysDropping(Honest):
    def features(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(super().features(images) + 1, 0.5)  # in eval mode too


class Ints(Honest):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images).long()


class InPlace(Network):
    def __init__(self) -> None:
        super().__init__([nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 5)], feature_dim=5)


class InPlaceInTraining(Honest):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images.add_(1) if self.training else images)


class Counting(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def features(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().features(images)


class Replacing(Counting):
    def features(self, images: Tensor) -> Tensor:
        self.seen = self.seen + len(images)
        return Honest.features(self, images)


class NotFinite(Honest):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images) / 0.0


class Unhelped(Network):
    """A backbone that is no sequence, without blocks of its own."""

    def __init__(self) -> None:
        super().__init__([], feature_dim=5)
        self.backbone = nn.Linear(36, 5)  # type: ignore[assignment]

    def features(self, images: Tensor) -> Tensor:
        made: Tensor = self.backbone(images.flatten(1))
        return made


class TupleOfBlocks(Honest):
    def blocks(self) -> Any:
        return tuple(super().blocks())


class OwnOutputs(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(5, 10)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.own(self.features(images))
        return made


class Deep(Network):
    def __init__(self) -> None:
        layers = [nn.Conv2d(1, 5, 3), nn.MaxPool2d(4), nn.Conv2d(5, 5, 3), nn.Flatten()]
        super().__init__(layers, feature_dim=5)


class Lazy(Network):
    def __init__(self) -> None:
        super().__init__([nn.Flatten(), nn.LazyLinear(5)], feature_dim=5)


class Nothing(Honest):
    def features(self, images: Tensor) -> Any:
        super().features(images)


LIARS: dict[type[Network], list[str]] = {
    WrongDim: ["feature_dim is 64", "head takes 5"],
    WrongHead: ["feature_dim is 5", "head takes 8"],
    LinearHead: ["head is Linear(in_features=5, out_features=10", "clbench.models.Head(5)"],
    FullHead: ["head is Head(in_features=5, out_features=10", "clbench.models.Head(5)"],
    NoHead: ["head is None", "clbench.models.Head(5)"],
    TooWide: ["[2, 5]", "[2, 7]", "feature_dim"],
    Maps: ["[2, 5, 4, 4]", "[2, 5]", "feature_dim"],
    Pair: ["features", "a tuple", "[2, 5]"],
    PairInTraining: ["features", "a tuple", "[2, 5]"],
    AlwaysDropping: ["eval mode", "two ways"],
    Ints: ["features", "[2, 5]", "float"],
    InPlace: ["changes the images"],
    InPlaceInTraining: ["changes the images"],
    Counting: ["eval mode"],
    Replacing: ["eval mode"],
    NotFinite: ["feature", "infinity", "finite"],
    Unhelped: ["blocks()"],
    TupleOfBlocks: ["blocks()", "tuple"],
    OwnOutputs: ["outputs", "[2, 10]", "[2, 2]"],
    Deep: ["[1, 6, 6]", "features", "Kernel size"],
    Lazy: ["backbone.1.weight", "shape"],
    Nothing: ["features", "NoneType"],
}


@pytest.mark.parametrize("kind", LIARS, ids=lambda kind: kind.__name__)
def test_a_network_that_is_not_what_it_says_is_refused_with_both_numbers(kind: Any, refused: Any) -> None:
    images = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with refused("model 'mine': ", *LIARS[kind]):
        check_network(kind(), images, "mine")


@pytest.mark.parametrize("dim", [0, -1, 5.0, None, "5"])
def test_a_number_of_features_is_a_whole_number_above_0(dim: Any, refused: Any) -> None:
    model = Honest()
    model.feature_dim = dim
    with refused("feature_dim", repr(dim)):
        check_network(model, torch.zeros(2, 1, 6, 6), "mine")


def test_an_honest_network_is_accepted_and_torchs_stream_stays_where_it_is() -> None:
    class Dropping(Network):
        def __init__(self) -> None:
            super().__init__([nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Dropout(0.5))], feature_dim=5)

    for kind in (Honest, Dropping):
        model = kind()
        state = torch.random.get_rng_state()
        check_network(model, torch.zeros(2, 1, 6, 6), "mine")
        assert torch.equal(torch.random.get_rng_state(), state)


OWN = {"linear-head": "LinearHead", "maps": "Maps", "unhelped": "Unhelped"}


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Declare some of the networks as an installed package does."""
    made = tmp_path / "site" / "liars-1.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: liars\nVersion: 1\n")
    (made / "entry_points.txt").write_text(
        "[clbench.models]\n" + "".join(f"{name} = liars:{kind}\n" for name, kind in OWN.items())
    )
    (tmp_path / "site" / "liars.py").write_text(
        "from torch import nn\n"
        "from clbench.models import Network\n\n"
        "class Maps(Network):\n"
        "    def __init__(self, image_shape):\n"
        "        super().__init__([nn.Conv2d(1, 5, 3)], feature_dim=5)\n\n"
        "class LinearHead(Network):\n"
        "    def __init__(self, image_shape):\n"
        "        super().__init__([nn.Flatten(), nn.Linear(784, 8)], feature_dim=8)\n"
        "        self.head = nn.Linear(8, 10)\n\n"
        "class Unhelped(Network):\n"
        "    def __init__(self, image_shape):\n"
        "        super().__init__([], feature_dim=5)\n"
        "        self.backbone = nn.Linear(784, 5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize("strategy", ["hat", "pnn"])
def test_a_method_that_walks_over_the_blocks_says_what_is_wrong_with_them(
    strategy: str, run: Any, cut: Any, refused: Any
) -> None:
    with refused("model 'unhelped': blocks() fails", "a list of its layers"):
        run(strategy, cut(tasks=2, limit=4, setting="task"), model="unhelped")


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize(("model", "words"), [("maps", ["[2, 5, 26, 26]", "[2, 5]"]), ("linear-head", ["Head(8)"])])
def test_a_run_and_a_comparison_refuse_such_a_network_before_any_training(
    model: str, words: list[str], run: Any, small: Any, tmp_path: Path, refused: Any
) -> None:
    with refused(*words):
        run("naive", small, model=model, out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    with refused(*words):
        clbench.compare(small, ["naive", "lwf"], out=tmp_path / "runs", seeds=1, model=model)
    assert not list((tmp_path / "runs").rglob("run.json"))


@pytest.mark.parametrize("name", ["mlp:8[batch_norm=true]", "conv:4-4", "resnet32", "resnet18[width=2]"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_the_networks_here_are_what_they_say_and_stay_as_they_are(name: str, shape: Any) -> None:
    from clbench.models import build_model

    check_network(build_model(name, shape, 0), torch.randn(2, *shape), name)
