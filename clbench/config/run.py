"""RunConfig: one run, fully described and validated, with an identity hash. Knows nothing of torch."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clbench.config.errors import ConfigError, unknown
from clbench.config.registry import explain

Setting = Literal["class", "task", "domain"]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]

# Pairs of fields of which at most one is given; the one a user names displaces a preset's other one.
EXCLUSIVE = (
    ("tasks", "task_sizes"),
    ("class_order", "class_order_seed"),
    ("epochs", "iterations"),
    ("memory_size", "memory_per_class"),
)
# What a scenario is cut by; it is the same for all strategies of a comparison.
SCENARIO_FIELDS = (
    *("setting", "tasks", "task_sizes", "class_order", "class_order_seed", "limit", "validation"),
    *("blurry", "imbalance", "shots", "image_size", "padding"),
)
# Recorded with a run, but no part of its identity: they can't change its numbers (on_nan: but whether there are any).
NOT_IDENTITY = frozenset({"data_root", "offline", "label", "checkpoint_every", "on_nan", "tuned_by"})
# What reaches a loop that is not the engine's (Strategy.foreign), or is done outside of training.
FOREIGN_FIELDS = (
    *("scenario", "strategy", "strategy_options", "label", "data_fingerprint", "setting", "tasks", "task_sizes"),
    *("class_order", "class_order_seed", "limit", "validation", "blurry", "imbalance", "shots", "image_size"),
    *("padding", "normalize", "augment", "seed", "model", "weights", "head", "head_init", "loss_outputs", "epochs"),
    *("batch_size", "drop_last", "optimizer", "lr", "base_batch_size", "momentum", "nesterov", "weight_decay"),
    *("optimizer_state", "memory_size", "memory_per_class", "memory_policy", "evaluate", "evaluate_on", "device"),
    *("deterministic", "threads", "data_root", "offline", "tuned_by"),
)
# What a run holds, but no option of the command line asks for; memory_rounding is for the protocols of claims.
INTERNAL = {"scenario", "strategy", "strategy_options", "per_task", "label", "data_fingerprint", "memory_rounding"}
# Those of them that a file of options may hold.
IN_FILES = {"strategy_options", "per_task", "memory_rounding"}
# Weights that torchvision knows by name, such as ResNet18_Weights.IMAGENET1K_V1; anything else is a file.
NAMED_WEIGHTS = re.compile(r"\w+_Weights\.\w+")


class RunConfig(BaseModel):
    """One run: which scenario, which strategy, and every value that the training uses."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    scenario: str = Field(description="a registered scenario, an .npz file or a folder of images")
    strategy: str = Field(description="a registered strategy")
    strategy_options: dict[str, Any] = Field(default={}, description="the strategy's hyper-parameters")
    per_task: list[dict[str, Any]] | None = Field(
        default=None, description="for each task a table of lr and options of the strategy that hold in it"
    )
    label: str = Field(default="", description="the name in tables; the strategy with its bracketed options")
    data_fingerprint: str | None = Field(default=None, description="digest of data that has no public name")

    setting: Setting = Field(default="class", description="class-, task- or domain-incremental")
    tasks: Count | None = Field(default=None, description="number of tasks; spare classes go to the first")
    task_sizes: list[Count] | None = Field(default=None, description="classes per task, such as 4,3,3")
    class_order: list[int] | str | None = Field(
        default=None, description="classes in order of appearance, or a published order by name"
    )
    class_order_seed: int | Literal["per-seed"] | None = Field(
        default=None, description="draw the class order from this seed, or per-seed from each run's own"
    )
    limit: Count | None = Field(default=None, description="training images per class at most")
    validation: Share = Field(default=0.0, description="share of each class held out from training")
    blurry: Share = Field(default=0.0, description="share of each task's training images spread over the other tasks")
    imbalance: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="long-tailed classes: training images of the first class over those of the last"
    )
    shots: Count | None = Field(
        default=None, description="few-shot increments: training images per class after the first task"
    )
    image_size: Annotated[int, Field(ge=4)] | None = Field(
        default=None, description="for folders of photos: resize the shorter side, crop the centre"
    )
    padding: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None, description="zeros added on each side of permuted images (permuted-mnist: 2, to 32 x 32)"
    )
    normalize: Literal["channel", "pixel-mean", "none"] = Field(
        default="channel",
        description="subtract the mean and divide by the deviation per channel; subtract the mean image; or neither",
    )
    augment: Literal["none", "crop-flip", "crop", "flip"] = Field(
        default="none", description="random crop (padding 4) and flip of the training images, or one of them"
    )

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="seed of every random stream of the run")
    model: str = Field(default="mlp", description="network, such as mlp:400-400 or resnet32[shortcut=B]")
    weights: str | None = Field(
        default=None, description="pre-trained weights for the backbone: a file, or torchvision's name of some"
    )
    head: Literal["growing", "full"] = Field(
        default="growing", description="outputs are added with each task, or all exist from the start"
    )
    head_init: Literal["default", "zeros", "he"] = Field(
        default="default", description="new outputs: as torch draws them, all zeros, or N(0, 1/features) with bias 0"
    )
    loss_outputs: Literal["new", "seen", "all"] = Field(
        default="seen", description="outputs that compete in the loss (class-incremental)"
    )
    epochs: Count | None = Field(default=None, description="epochs per task")
    iterations: Count | None = Field(default=None, description="optimizer steps per task, instead of epochs")
    batch_size: Count = Field(default=128, description="images of the current task in a step")
    drop_last: bool = Field(default=False, description="leave out an incomplete last batch")
    optimizer: Literal["sgd", "adam", "adamw"] = Field(default="sgd", description="optimizer")
    lr: Annotated[float, Field(gt=0)] = Field(default=0.1, description="learning rate")
    base_batch_size: Count | None = Field(
        default=None, description="scale the learning rate linearly: lr * batch_size / base_batch_size"
    )
    momentum: Share = Field(default=0.0, description="momentum of sgd")
    nesterov: bool = Field(default=False, description="Nesterov momentum of sgd")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight decay")
    decay_head: bool = Field(default=True, description="weight decay also on the head, so on rows of old classes too")
    decay_norms: bool = Field(default=True, description="weight decay also on biases and normalisation layers")
    decay_biases: bool = Field(
        default=True, description="weight decay also on biases, those of normalisation layers included"
    )
    schedule: Literal["constant", "step", "multistep", "cosine", "plateau"] = Field(
        default="constant", description="course of the learning rate"
    )
    schedule_scope: Literal["task", "run"] = Field(
        default="task", description="the schedule begins again with each task, or stretches over the run"
    )
    milestones: list[Count] | None = Field(default=None, description="epochs at which multistep lowers the rate")
    step_epochs: Count | None = Field(default=None, description="step lowers the rate every so many epochs")
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="what step, multistep and plateau multiply the rate with"
    )
    lr_patience: Count = Field(default=5, description="plateau lowers the rate after so many epochs without progress")
    lr_warmup: Annotated[int, Field(ge=0)] = Field(default=0, description="epochs of linear warm-up")
    patience: Count | None = Field(
        default=None, description="early stopping: end a stage after so many epochs without progress"
    )
    min_delta: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="by how much the validation loss must fall to count as progress"
    )
    label_smoothing: Share = Field(default=0.0, description="share of the target that is uniform over active outputs")
    train: str = Field(default="all", description="what trains: all, head, or last-N blocks and the head")
    backbone_lr_factor: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="the backbone's learning rate, as a factor of the head's"
    )
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset", description="what becomes of momentum and Adam statistics between tasks"
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(default=None, description="largest norm of the gradient")

    memory_size: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=None, description="exemplars in all; 0 is no memory"
    )
    memory_per_class: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=None, description="exemplars of each class; 0 is no memory"
    )
    memory_policy: Literal["reservoir", "balanced", "herding", "herding-argmax", "random"] | None = Field(
        default=None, description="how exemplars are chosen; the default is the strategy's"
    )
    memory_rounding: Literal["spare", "floor", "ceil"] = Field(
        default="spare",
        description="what becomes of a total that doesn't divide by the classes: spare slots go to the first ones, "
        "stay empty, or (published claims alone) every class gets one, above the total",
    )

    evaluate: Literal["seen", "all"] = Field(
        default="all", description="test the tasks seen so far, or all tasks whose outputs exist"
    )
    evaluate_on: Literal["test", "train"] = Field(
        default="test", description="test images, or the training images themselves, as some papers did"
    )
    eval_every: Literal["task", "epoch"] | Count = Field(
        default="task", description="evaluate after each task, also after each epoch, or every N steps"
    )
    checkpoint_every: Annotated[float, Field(gt=0)] | Literal["epoch", "task"] | str = Field(
        default=10.0,
        description="save the state within a task every so many minutes, each epoch, or every N-steps; "
        "it is saved after each task in any case",
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="a loss or gradient that is not finite ends the run, which reads them every 50 steps; or the step "
        "is left out, counted and warned of, which waits for the device in each step",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32", description="fp32, TensorFloat-32 products of a CUDA GPU, or bf16 autocast"
    )
    compile: Literal["none", "default", "reduce-overhead"] = Field(
        default="none",
        description="a mode of torch.compile for the network in training steps; reduce-overhead: CUDA graphs on a GPU",
    )
    deterministic: bool = Field(default=False, description="on a GPU: refuse operations that can't be repeated")
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="CPU threads; part of what fixes the numbers"
    )
    data_root: str = Field(default="data", description="folder in which data sets are looked for")
    offline: bool = Field(default=False, description="never download a data set")
    tuned_by: str | None = Field(default=None, description="how the hyper-parameters were chosen, for the report")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for one, other in EXCLUSIVE:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} exclude each other; give one of them")
        if self.setting != "class" and self.loss_outputs != "seen":
            raise ValueError(
                f"loss_outputs={self.loss_outputs!r} is for setting=class; in a {self.setting}-incremental "
                "scenario the outputs of the sample's own task compete"
            )
        if self.loss_outputs == "all" and self.head != "full":
            raise ValueError("loss_outputs='all' needs head='full': a growing head has no outputs yet to come")
        if self.optimizer != "sgd" and self.momentum:
            raise ValueError(f"momentum={self.momentum:g} is for optimizer='sgd', not {self.optimizer!r}")
        if not re.fullmatch(r"all|head|last-[1-9]\d*", self.train):
            raise ValueError(f"train={self.train} given, all, head or last-N (such as last-1) accepted")
        every = self.checkpoint_every
        if isinstance(every, str) and not re.fullmatch(r"epoch|task|[1-9]\d{0,8}-steps", every):
            raise ValueError(
                f"checkpoint_every={every[:40]!r} given, minutes above 0, epoch, task or N-steps (such as 50-steps) "
                "accepted"
            )
        rated = self.schedule in ("step", "multistep", "plateau")
        for name, used, needs in (
            ("lr_factor", rated, "schedule step, multistep or plateau"),
            ("lr_patience", self.schedule == "plateau", "schedule='plateau'"),
            ("schedule_scope", self.schedule != "constant" or self.lr_warmup > 0, "a schedule or lr_warmup"),
            ("min_delta", self.watches_validation, "patience or schedule='plateau'"),
            ("decay_head", self.weight_decay > 0, "weight_decay above 0"),
            ("decay_norms", self.weight_decay > 0, "weight_decay above 0"),
            ("decay_biases", self.weight_decay > 0 and self.decay_norms, "weight_decay above 0 and decay_norms"),
            ("memory_rounding", bool(self.memory_size), "memory_size"),
            ("backbone_lr_factor", self.train != "head", "a backbone that trains, and train='head' freezes it"),
        ):
            value = getattr(self, name)
            if not used and value != type(self).model_fields[name].default:
                raise ValueError(f"{name}={value} has no effect here; it needs {needs}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs optimizer='sgd' with momentum above 0")
        for option, schedule in (("milestones", "multistep"), ("step_epochs", "step")):
            if (getattr(self, option) is not None) != (self.schedule == schedule):
                raise ValueError(f"schedule={schedule!r} and {option} go together; give both or neither")
        if self.schedule == "plateau" and self.schedule_scope == "run":
            raise ValueError("schedule='plateau' begins again with each task; schedule_scope='run' is for the others")
        watching = (
            "patience" if self.patience is not None else "schedule='plateau'" if self.schedule == "plateau" else ""
        )
        if watching and not self.validation:
            raise ValueError(f"{watching} watches a validation split; give validation, such as 0.1")
        if self.memory_policy is not None and not self.memory_budget:
            raise ValueError("memory_policy needs memory_size or memory_per_class")
        return self

    @property
    def memory_budget(self) -> int:
        """Exemplars in all or per class, whichever is set; 0 when there is no memory."""
        return self.memory_size or self.memory_per_class or 0

    @property
    def scaled_lr(self) -> float:
        """The learning rate in use: `lr`, scaled linearly with the batch size where a base is given."""
        return self.lr * self.batch_size / (self.base_batch_size or self.batch_size)

    @property
    def watches_validation(self) -> bool:
        """Whether training reads the validation split."""
        return self.patience is not None or self.schedule == "plateau"

    def identity_fields(self) -> dict[str, Any]:
        """Return the fields that can change the numbers of a run; a file counts by its content."""
        fields = {k: v for k, v in self.model_dump(mode="json").items() if k not in NOT_IDENTITY}
        if self.weights is not None and not NAMED_WEIGHTS.fullmatch(self.weights):
            fields["weights"] = file_digest(self.weights, "weights")
        if ".py:" in self.strategy:
            path, _, name = self.strategy.rpartition(":")
            fields["strategy"] = f"{file_digest(path, 'strategy')}:{name}"
        if self.data_fingerprint is not None:
            fields["scenario"] = Path(self.scenario).name
        if self.compile == "none":
            # It came later: without it, runs are what they were.
            del fields["compile"]
        return fields

    def identity(self, *, without_seed: bool = False) -> str:
        """Return a hash of `identity_fields`; without the seed it names the group of runs that are pooled."""
        fields = self.identity_fields()
        if without_seed:
            del fields["seed"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def excludes(one: str, other: str) -> bool:
    """Whether two fields exclude each other."""
    return (one, other) in EXCLUSIVE or (other, one) in EXCLUSIVE


def file_digest(path: str, option: str) -> str:
    """Return the sha256 of a file's content; raises ConfigError naming the option when it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # no path can hold a NUL
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{option}={path}: {why}; a readable file is accepted") from None


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Build a RunConfig; raises ConfigError with one sentence for the first thing that is wrong."""
    for name in values:
        if name not in RunConfig.model_fields:
            raise unknown("option", name, RunConfig.model_fields)
        if isinstance(values[name], str) and any("\ud800" <= c <= "\udfff" for c in values[name]):
            # What a terminal gives that isn't UTF-8; no record could hold it.
            raise ConfigError(f"{name}={values[name][:60]!r} given, text in UTF-8 accepted")
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, values)) from None
