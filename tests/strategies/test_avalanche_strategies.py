"""Avalanche's own strategies in our runs: the same matrix, repeatable, marked, and honest about what they can't do."""

import contextlib
import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clbench import ConfigError, RunError

Refused = Callable[..., AbstractContextManager[None]]

# Importing Avalanche takes seconds.
pytestmark = pytest.mark.slow

SPECS = [
    ("avalanche:Naive", {}),
    ("avalanche:LwF[alpha=1,temperature=2]", {}),
    ("avalanche:EWC[ewc_lambda=1]", {}),
    ("avalanche:SynapticIntelligence[si_lambda=1]", {}),
    ("avalanche:MAS", {}),
    ("avalanche:Replay", {"memory_size": 20}),
    ("avalanche:AGEM[patterns_per_exp=10]", {}),
    ("avalanche:Cumulative", {}),
]
FULL = {"head": "full", "loss_outputs": "all"}


@pytest.mark.parametrize("setting", ["class", "task", "domain"])
@pytest.mark.parametrize(("spec", "options"), SPECS)
def test_each_setting_fills_the_matrix(
    run: Callable[..., Any], cut: Callable[..., Any], spec: str, options: dict[str, Any], setting: str
) -> None:
    result = run(spec, cut(setting=setting), **options)
    assert result.record["strategy"]["label"] == spec
    headline = result.accuracy if setting != "task" else result.task_aware_accuracy
    lower = headline[np.tril_indices(5)]
    assert not np.isnan(lower).any()
    # Guessing gives 0.23 where all classes seen so far compete.
    assert np.diag(headline).mean() > 0.4
    assert [task["epochs"] for task in result.record["tasks"]] == [1] * 5
    assert [epoch["images"] > 0 for epoch in result.record["training"]] == [True] * 5


@pytest.mark.parametrize("name", ["ICaRL", "GDumb", "DER"])
def test_a_full_head_where_avalanche_needs_one(run: Callable[..., Any], refused: Refused, name: str) -> None:
    with refused(f"avalanche:{name}", "head=full"):
        run(f"avalanche:{name}", memory_size=20)
    result = run(f"avalanche:{name}", memory_size=20, **FULL)
    assert np.diag(result.accuracy).mean() > 0.4
    assert list(result.record["classifiers"]) == (["nearest_mean", "linear"] if name == "ICaRL" else ["linear"])
    last = result.record["tasks"][-1]
    assert last["n_exemplars"] == sum(last["exemplars_per_class"].values()) == 20


@pytest.mark.parametrize("batch_size", [2, 7, 64])
@pytest.mark.parametrize("memory_size", [1, 9, 100])
@pytest.mark.parametrize(
    "spec",
    [
        *("ER_AML", "ER_ACE", "DER", "MIR[subsample=3,batch_size_mem=2]", "Replay", "GDumb", "ICaRL"),
        *("AGEM[patterns_per_exp=1,sample_size=9]", "AGEM[patterns_per_exp=3,sample_size=99]"),
    ],
)
def test_small_memories_and_batches_of_any_size_come_to_an_end(
    run: Callable[..., Any], refused: Refused, spec: str, memory_size: int, batch_size: int
) -> None:
    """Loaders that leave out a last batch that is not full are drawn from again and again, and may have no other."""

    def stop(*_: object) -> None:
        pytest.fail("no end after 60 seconds")

    memory = {} if spec.startswith("AGEM") else {"memory_size": memory_size}
    # What it replays is more than the memory holds, or more of a class than it comes to hold.
    replayed = {"ER_AML": 10, "ER_ACE": 10, "DER": batch_size, "MIR": 3}.get(spec.partition("[")[0], 0)
    small = replayed > memory_size or (spec == "ER_AML" and min(memory_size // 10, 10) < batch_size)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    try:
        with refused("batch_size") if small else contextlib.nullcontext():
            run(f"avalanche:{spec}", batch_size=batch_size, **memory, **FULL)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.filterwarnings("always")
def test_avalanches_notes_on_its_own_code_are_not_the_users(run: Callable[..., Any]) -> None:
    """Its replay calls a function of its own that it calls deprecated, and says so whatever the filters are."""
    with warnings.catch_warnings(record=True) as told:
        run("avalanche:Replay", memory_size=20)
    assert [str(warning.message) for warning in told] == []


def test_runs_repeat_to_the_bit_and_seeds_differ(run: Callable[..., Any]) -> None:
    """Whatever torch's, numpy's and Python's own streams are at; those stay where they were."""
    import random

    one = run("avalanche:Replay", memory_size=20, augment="crop-flip", seed=1)
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    before = (torch.initial_seed(), np.random.get_state()[1].tolist(), random.getstate())
    two = run("avalanche:Replay", memory_size=20, augment="crop-flip", seed=1)
    assert (torch.initial_seed(), np.random.get_state()[1].tolist(), random.getstate()) == before
    other = run("avalanche:Replay", memory_size=20, augment="crop-flip", seed=2)
    assert one.record["accuracy"] == two.record["accuracy"]
    assert one.record["accuracy"] != other.record["accuracy"]


@pytest.mark.parametrize("setting", ["class", "task"])
def test_naive_in_one_batch_takes_the_steps_of_our_naive(
    run: Callable[..., Any], cut: Callable[..., Any], tmp_path: Path, setting: str
) -> None:
    """With the whole task in a batch the order does not matter: weights equal those of our engine up to rounding."""
    weights = []
    for index, spec in enumerate(("naive", "avalanche:Naive")):
        out = tmp_path / str(index)
        run(spec, cut(setting=setting), out=out, batch_size=100, epochs=3, lr=0.05, momentum=0.5, weight_decay=0.01)
        weights.append(torch.load(out / "model.pt", weights_only=True))
    assert list(weights[0]) == list(weights[1])
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-5), name


def test_lwf_in_one_batch_minimises_ours(run: Callable[..., Any], tmp_path: Path) -> None:
    """Both distil all old outputs under one softmax; so with whole tasks as batches the weights agree."""
    weights = []
    for index, spec in enumerate(("lwf[strength=1,temperature=2]", "avalanche:LwF[alpha=1,temperature=2]")):
        out = tmp_path / str(index)
        run(spec, out=out, batch_size=100, epochs=3, lr=0.05)
        weights.append(torch.load(out / "model.pt", weights_only=True))
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-4), name


def test_augmented_images_are_crops_of_ours(tiny: Any) -> None:
    """Avalanche's loader yields one of the 81 x 2 crops of the normalised image, padded with black by hand."""
    from clbench.avalanche.learner import experience
    from clbench.data.batches import Pipeline
    from clbench.learning.strategy import Context, Progress
    from clbench.running.resolve import resolve, strategy_class

    config = resolve(tiny, "avalanche:Naive", {"augment": "crop-flip", "epochs": 1})
    strategy = strategy_class("avalanche:Naive")()
    pipeline = Pipeline(tiny, config, torch.device("cpu"))
    strategy._context = Context(config, tiny, pipeline, torch.device("cpu"), Progress(task=0))
    task = tiny.tasks[0]
    seen = experience(strategy, task)
    image, label = seen.dataset[3][:2]
    padded = F.pad(task.train.images[3], (4, 4, 4, 4))
    size = image.shape[-1]
    crops = [padded[:, y : y + size, x : x + size] for y in range(9) for x in range(9)]
    crops = torch.stack([*crops, *(crop.flip(-1) for crop in crops)])
    assert (pipeline.normalize(crops) - image).abs().amax((1, 2, 3)).min() < 1e-5
    assert int(label) == int(task.train.labels[3])
    plain = seen.dataset.eval()[3][0]
    assert torch.allclose(plain, pipeline.normalize(task.train.images[3:4])[0])


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("avalanche:Lwf", {}, ["avalanche:LwF"]),
        ("avalanche:ewcc", {}, ["did you mean 'avalanche:EWC'?"]),
        ("avalanche:", {}, ["unknown strategy 'avalanche:'; accepted: avalanche:AGEM, "]),
        ("avalanche:SupervisedTemplate", {}, ["'avalanche:SupervisedTemplate'; accepted: avalanche:AGEM, "]),
        ("avalanche:Naive[train_epochs=3]", {}, ["train_epochs=3", "'epochs'"]),
        ("avalanche:Naive", {"strategy_options": {"train_mb_size": 3}}, ["train_mb_size=3", "'batch_size'"]),
        ("avalanche:Replay[mem_size=3]", {}, ["mem_size=3", "'memory_size'"]),
        ("avalanch:LwF", {}, ["avalanch", "avalanche"]),
        ("avalanche:LwF", {}, ["avalanche:LwF", "alpha", "required"]),
        ("avalanche:LwF[alpha=x,temperature=2]", {}, ["alpha=x"]),
        ("avalanche:LwF[alfa=1]", {}, ["alfa", "alpha"]),
        ("avalanche:PackNet", {}, ["PackNet", "model"]),
        ("avalanche:StreamingLDA", {}, ["StreamingLDA", "model"]),
        ("avalanche:Naive", {"clip": 1.0}, ["avalanche:Naive", "clip=1.0"]),
        ("avalanche:Naive", {"precision": "bf16"}, ["precision=bf16", "fp32"]),
        ("avalanche:Naive", {"loss_outputs": "new"}, ["loss_outputs", "'new'", "'seen'"]),
        ("avalanche:Naive", {"iterations": 5}, ["epochs"]),
        ("avalanche:Naive", {"schedule": "cosine"}, ["schedule=cosine", "constant"]),
        ("avalanche:Naive", {"patience": 1, "validation": 0.2}, ["patience=1"]),
        ("avalanche:Naive", {"memory_size": 10}, ["memory"]),
        ("avalanche:Replay", {"memory_size": 10, "memory_policy": "herding"}, ["memory_policy"]),
        ("avalanche:Replay", {"memory_per_class": 10}, ["per class", "memory_size"]),
        ("avalanche:ICaRL", {"setting": "task", "memory_size": 10}, ["avalanche:ICaRL", "task"]),
        ("avalanche:ER_AML", {"memory_size": 200}, ["batch_size=", "each class", "batch_size of at most 5"]),
        ("avalanche:ER_AML", {"memory_size": 49, "batch_size": 5}, ["batch_size=5", "batch_size of at most 4"]),
        ("avalanche:ER_AML[batch_size_mem=9]", {"memory_size": 9, "batch_size": 1}, ["batch_size=1", "at least 10"]),
    ],
)
def test_what_cant_be_honoured_is_refused(
    tmp_path: Path, refused: Refused, spec: str, options: dict[str, Any], words: list[str]
) -> None:
    import clbench

    given = {"limit": 5, "threads": 1} | options
    with refused(*words):
        clbench.run("split-mnist-5k", spec, out=tmp_path / "run", **given)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("EWC[ewc_lambda=1,mode=foo]", {}, ["mode=foo", "'separate' or 'online'"]),
        ("EWC[ewc_lambda=1,mode=online]", {}, ["decay_factor=none", "a number with mode=online"]),
        ("EWC[ewc_lambda=1,decay_factor=0.5]", {}, ["decay_factor=0.5", "none with mode=separate"]),
        ("EWC[ewc_lambda=-1]", {}, ["ewc_lambda=-1", "greater than or equal to 0"]),
        ("CWRStar[cwr_layer_name=zzz]", FULL, ["cwr_layer_name=zzz", "'head'"]),
        ("AGEM[patterns_per_exp=0]", {}, ["patterns_per_exp=0", "greater than or equal to 1"]),
        ("AGEM[patterns_per_exp=9,sample_size=0]", {}, ["sample_size=0", "greater than or equal to 1"]),
        ("AGEM[patterns_per_exp=9,sample_size=4]", {}, ["sample_size=4", "at least 5, the number of tasks"]),
        ("GEM[patterns_per_exp=9,memory_strength=-1]", {}, ["memory_strength=-1"]),
        ("MIR", {"memory_size": 20}, ["subsample is required"]),
        ("MIR[subsample=0]", {"memory_size": 20}, ["subsample=0", "greater than or equal to 1"]),
        ("MIR[subsample=5,batch_size_mem=6]", {"memory_size": 20}, ["subsample=5", "at least 6, batch_size_mem"]),
        (
            "MIR[subsample=50,batch_size_mem=20]",
            {"memory_size": 20},
            ["batch_size_mem=20", "1 to 19", "memory_size=20"],
        ),
        ("LwF", {}, ["alpha and temperature are required"]),
        ("LwF[alpha=-1,temperature=2]", {}, ["alpha=-1"]),
        ("LwF[alpha=[1,-1],temperature=2]", {}, ["alpha=[1,-1]"]),
        ("LwF[alpha=[1,2],temperature=2]", {}, ["alpha=[1.0, 2.0]", "one for each of 5 tasks"]),
        ("LwF[alpha=1,temperature=0]", {}, ["temperature=0", "greater than 0"]),
        ("SynapticIntelligence[si_lambda=1,eps=0]", {}, ["eps=0", "greater than 0"]),
        ("SynapticIntelligence[si_lambda=[1,2,3,4,5,6]]", {}, ["si_lambda=", "one for each of 5 tasks"]),
        ("SynapticIntelligence[si_lambda=[]]", {}, ["si_lambda=[]", "at least 1 item"]),
        ("MAS[alpha=2]", {}, ["alpha=2", "less than or equal to 1"]),
        ("DER[batch_size_mem=21]", FULL | {"memory_size": 20}, ["batch_size_mem=21", "1 to 20", "memory_size=20"]),
        ("DER", FULL | {"memory_size": 7}, ["batch_size_mem=none", "1 to 7", "memory_size=7"]),
        ("ER_ACE", {"memory_size": 9}, ["batch_size_mem=10", "1 to 9"]),
        ("ER_AML[temp=0]", {"memory_size": 80}, ["temp=0", "greater than 0"]),
        # Its loop would wait for ever for a batch of a class that has fewer images.
        ("ER_AML", {"memory_size": 79}, ["batch_size=8", "at most 7"]),
        ("ER_AML", {"memory_size": 200, "batch_size": 11}, ["batch_size=11", "at most 10"]),
        ("ExpertGateStrategy", {}, ["a model of its own"]),
    ],
)
def test_values_with_which_avalanches_code_fails_are_refused_before_training(
    run: Callable[..., Any], tmp_path: Path, refused: Refused, spec: str, options: dict[str, Any], words: list[str]
) -> None:
    with refused(f"avalanche:{spec.partition('[')[0]}", *words):
        run(f"avalanche:{spec}", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# The least and the most that are accepted, so that no refusal takes away what works.
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("EWC[ewc_lambda=0,mode=online,decay_factor=0]", {}),
    ("CWRStar[cwr_layer_name=head]", FULL),
    ("AGEM[patterns_per_exp=1,sample_size=5]", {}),
    ("MIR[subsample=1]", {"memory_size": 2}),
    ("MIR[subsample=19,batch_size_mem=19]", {"memory_size": 20}),
    ("LwF[alpha=[0,1,2,3,4],temperature=0.001]", {}),
    ("SynapticIntelligence[si_lambda=[0,1]]", {}),
    ("MAS[lambda_reg=0,alpha=1]", {}),
    ("DER[alpha=0,beta=0]", FULL | {"memory_size": 8}),
    ("ER_ACE", {"memory_size": 10}),
    ("ER_AML", {"memory_size": 80}),
    ("FromScratchTraining[reset_optimizer=false]", {}),
]


@pytest.mark.parametrize(("spec", "options"), ACCEPTED)
def test_what_is_accepted_is_trained(run: Callable[..., Any], spec: str, options: dict[str, Any]) -> None:
    assert run(f"avalanche:{spec}", **options).record["status"] == "done"


@pytest.mark.parametrize("place", ["__init__", "before_backward"])
def test_what_avalanches_code_raises_is_one_sentence_that_names_the_options(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    from avalanche.training.plugins import EWCPlugin

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("Wrong EWC mode.\nand a page more")

    monkeypatch.setattr(EWCPlugin, place, fails)
    with pytest.raises(
        RunError, match=r"^Avalanche's own code fails with avalanche:EWC\[ewc_lambda=3.0,.*Wrong EWC mode.$"
    ):
        run("avalanche:EWC[ewc_lambda=3]", out=tmp_path / "run")
    assert "ewc_lambda=3.0" in json.loads((tmp_path / "run" / "run.json").read_text())["error"]


def test_a_loss_that_is_not_finite_names_the_options_beside_the_learning_rate(run: Callable[..., Any]) -> None:
    with pytest.raises(
        RunError, match=r"the loss is nan in task 1.*\[si_lambda=1.0,eps=1e-300\]; a lower lr or other options"
    ):
        run("avalanche:SynapticIntelligence[si_lambda=1,eps=1e-300]")


def test_a_reference_that_reads_all_data_keeps_no_copies_of_images(run: Callable[..., Any]) -> None:
    """The data of all tasks are its to read; of AGEM, which has none of them, the ledger counts what it keeps."""
    cumulative = run("avalanche:Cumulative").record
    assert [w for w in cumulative["warnings"] if w["rule"] == "memory-above-budget"] == []
    assert "images" not in cumulative["ledger"][-1]["items"]
    assert run("avalanche:AGEM[patterns_per_exp=10]").record["ledger"][-1]["items"] == {"images": 50}


def test_plan_and_check_refuse_a_loop_that_is_not_ours(refused: Refused) -> None:
    from clbench.running.resolve import prepare, resolve
    from clbench.tools.conformance import check_strategy
    from clbench.tools.plan import plan_run

    with refused("avalanche:Naive", "loop"):
        plan_run(*prepare(resolve("split-mnist-5k", "avalanche:Naive", {"limit": 5})))
    with refused("avalanche:Naive", "loop"):
        check_strategy("avalanche:Naive")


def test_an_interrupted_run_begins_again_and_says_so(run: Callable[..., Any], tmp_path: Path) -> None:
    import clbench

    class Stop(clbench.running.observer.Observer):  # type: ignore[name-defined,misc]
        def task(self, task: int, row: list[float | None]) -> None:
            if task == 2:
                raise KeyboardInterrupt

    options = {"out": tmp_path / "run", "memory_size": 20}
    with pytest.raises(KeyboardInterrupt):
        run("avalanche:Replay", observer=Stop(), **options)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    with pytest.raises(ConfigError, match=r"avalanche:Replay can't continue; --force"):
        run("avalanche:Replay", **options)
    with pytest.warns(UserWarning, match="state of avalanche:Replay can't be saved; the run begins again"):
        again = run("avalanche:Replay", resume=True, **options)
    assert again.record["accuracy"] == run("avalanche:Replay", memory_size=20).record["accuracy"]


def test_what_it_keeps_is_in_the_ledger(run: Callable[..., Any]) -> None:
    """EWC keeps weights and importances of each task, LwF one copy of the network; both plus a number of the loss."""
    sizes = {}
    for spec in ("avalanche:Naive", "avalanche:LwF[alpha=1,temperature=2]", "avalanche:EWC[ewc_lambda=1]"):
        sizes[spec[10:13]] = run(spec, **FULL).record["ledger"][-1]["bytes"]
    model = sizes["Nai"]["model"]
    assert sizes["Nai"].get("avalanche", 0) < 100
    assert 0 <= sizes["LwF"]["avalanche"] - model < 100
    assert 0 <= sizes["EWC"]["avalanche"] - 10 * model < 100


def test_crosscheck_tables_ours_beside_avalanches(tmp_path: Path) -> None:
    """The difference and interval of the table are scipy's t interval of the differences of the runs themselves."""
    from scipy import special, stats

    import clbench

    command = [sys.executable, "-m", "clbench", "crosscheck", "naive", "er", "--seeds", "3", "--limit", "20"]
    options = ["--epochs", "1", "--model", "mlp:32", "--out", "runs", "--json", "--quiet"]
    ended = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True)
    table = json.loads(ended.stdout)
    assert [row["method"] for row in table] == ["naive", "er"]
    assert "reservoir" in table[1]["differs"]
    found: dict[str, dict[int, float]] = {}
    for path in (tmp_path / "runs").rglob("run.json"):
        result = clbench.Result.load(path.parent)
        found.setdefault(result.record["config"]["strategy"], {})[result.record["config"]["seed"]] = result.metrics[
            "average_accuracy"
        ]
    differences = [found["naive"][seed] - found["avalanche:Naive"][seed] for seed in range(3)]
    assert table[0]["difference"] == pytest.approx(np.mean(differences))
    # A difference of accuracies lies between -1 and 1: t on the logit scale, where the error is sem / (m (1 - m)).
    share, error = (1 + np.mean(differences)) / 2, stats.sem(differences) / 2
    ends = stats.t.interval(0.95, 2, special.logit(share), error / (share * (1 - share)))
    assert (table[0]["low"], table[0]["high"]) == pytest.approx([2 * special.expit(end) - 1 for end in ends])


def test_crosscheck_refuses_what_it_has_no_pair_for(refused: Refused) -> None:
    from clbench.avalanche.crosscheck import plan_crosscheck

    with refused("icarrl", "'icarl'"):
        plan_crosscheck(["icarrl"])


def test_options_of_a_cross_check_are_honoured_by_both(refused: Refused) -> None:
    import inspect

    from clbench.avalanche.honoured import HONOURED
    from clbench.cli import VERBS
    from clbench.config.run import fields as run_fields

    fields = {p.name for p in inspect.signature(VERBS["crosscheck"]).parameters.values()} & set(run_fields())
    assert {"epochs", "lr"} < fields <= {*HONOURED, "checkpoint_every"}
