"""The groups in which a run is described: model, data, training, memory, evaluation, engine."""

import os
import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from clbench.config.registry import read_text

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
# A shell leaves `~` as it is in quotes, and a file of options knows no shell.
Place = Annotated[str, AfterValidator(os.path.expanduser)]
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def bytes_of(size: int | str) -> int:
    """Return the bytes of a size such as 4GB, 500MB or 2GiB; raises ValueError."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]I?B|)", str(size).strip().upper(), re.ASCII)
    number = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if not 0 < number < 2**63:
        raise ValueError(f"memory_limit={str(size)[:40]} given, a size such as 4GB or 500MB accepted")
    return number


# The kinds of what a run may spend, the units that each knows, and the fields that it decides in their place.
BUDGETS = {"flops": {"": 1} | {u: 1000**n for n, u in enumerate("KMGTP", 1)}, "bytes": UNITS}
DECIDED = {
    "flops": ("epochs", "iterations", "patience"),
    "bytes": ("memory_size", "memory_per_class"),
}


def budget_of(text: str) -> tuple[str, int]:
    """Return what a budget such as flops=1e12 or bytes=2MB is of, and how much it is; raises ValueError."""
    kind, _, amount = (part.strip() for part in text.partition("="))
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?(?:E\+?\d{1,2})?) ?([KMGTP]?I?B?)", amount.upper(), re.ASCII)
    unit = BUDGETS.get(kind, {}).get(found[2]) if found else None
    number = 0 if found is None or unit is None else int(Decimal(found[1]) * unit)
    if kind == "seconds":
        raise ValueError("which no two runs would spend on the same steps; flops=1e12 or bytes=2MB")
    if not 0 < number < 2**63:
        raise ValueError("flops=1e12, or bytes=2MB, from 1 to 9e18,")
    return kind, number


def _budget(text: str) -> str:
    """Return a budget as it is recorded, so that two spellings are one run."""
    return "=".join(map(str, budget_of(text)))


class Group(BaseModel):
    """Base of the groups: frozen, strict, and without unknown names; a field's alias is its flat name."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_by_name=True, validate_by_alias=True
    )

    @model_validator(mode="before")
    @classmethod
    def _plainly(cls, given: Any) -> Any:
        """Take what a Python caller plainly means: numbers and arrays of numpy and torch, tuples, paths."""
        if not isinstance(given, dict):
            return given
        named = {alias: f.annotation for name, f in cls.model_fields.items() for alias in (name, f.alias or name)}
        # Text stays text: it is read where the command line is, which knows no types.
        return {k: v if isinstance(v, str) else read_text(named.get(k), v) for k, v in given.items()}


def _refuse_without_effect(group: Group, *rules: tuple[str, bool, str]) -> None:
    for name, used, needs in rules:
        field = type(group).model_fields[name]
        if not used and (value := getattr(group, name)) != field.default:
            raise ValueError(f"{field.alias or name}={value} has no effect here; it needs {needs}")


class ModelConfig(Group):
    """The network, where its weights come from, and its head."""

    name: str = Field(default="mlp", alias="model", description="network, such as mlp:400-400 or resnet32[shortcut=B]")
    weights: Place | None = Field(
        default=None,
        description="pre-trained weights for the backbone: a file, `pretrained` for those of the model's own name, or "
        "torchvision's name of some; `random` for none",
    )
    head: Literal["growing", "full"] = Field(
        default="growing", description="outputs are added with each task, or all exist from the start"
    )
    head_init: Literal["default", "zeros", "he"] = Field(
        default="default", description="new outputs: as torch draws them, all zeros, or N(0, 1/features) with bias 0"
    )


class DataConfig(Group):
    """The data: their place, the part held out, and what is done to an image before the network sees it."""

    validation: Share = Field(default=0.0, description="share of each class held out from training")
    normalize: Literal["channel", "pixel-mean", "none"] = Field(
        default="channel",
        description="subtract the mean and divide by the deviation per channel; subtract the mean image; or neither",
    )
    augment: Literal["none", "crop-flip", "crop", "flip", "resized-crop-flip", "colour-jitter", "randaugment"] = Field(
        default="none",
        description="random crop (padding 4) and flip of the training images, or one of them; an enlarged part and "
        "flip; brightness, contrast and saturation; or RandAugment",
    )
    mixup: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="mix the training images of a batch in pairs, and their losses with them, by a share from "
        "Beta(mixup, mixup); 0: none",
    )
    root: Place = Field(default="data", alias="data_root", description="folder in which data sets are looked for")
    offline: bool = Field(default=False, description="never download data or weights")
    memory_limit: int | str | None = Field(
        default=None,
        description="pixels held in memory at most, such as 4GB; more stay on disk (folders: half of what is free)",
    )
    reading_threads: Annotated[int, Field(ge=0, le=64)] = Field(
        default=1, description="threads that read images on disk two batches ahead; 0: each batch when it is needed"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.memory_limit is not None:
            bytes_of(self.memory_limit)
        if self.augment in ("colour-jitter", "randaugment") and self.normalize == "pixel-mean":
            raise ValueError(
                f"augment={self.augment!r} changes colours, and normalize='pixel-mean' leaves none to an augmentation; "
                "normalize='channel' is accepted"
            )
        return self


class TrainingConfig(Group):
    """The training of a task, whatever the strategy: its length, optimizer and schedule."""

    loss_outputs: Literal["new", "seen", "all"] = Field(
        default="seen", description="outputs that compete in the loss (class-incremental)"
    )
    epochs: Count | None = Field(default=None, description="epochs per task")
    iterations: Count | None = Field(default=None, description="optimizer steps per task, instead of epochs")
    budget: Annotated[str, AfterValidator(_budget)] | None = Field(
        default=None,
        description="what the run may spend: flops=1e12 of training in all, shared equally by the tasks, instead of "
        "epochs; or bytes=2MB of model, exemplars and extras, which decides memory_size",
    )
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
    on_nan: Literal["stop", "skip"] = Field(
        default="stop",
        description="a loss or gradient that is not finite ends the run, which reads them every 50 steps; or the step "
        "is left out, counted and warned of, which waits for the device in each step",
    )

    @property
    def scaled_lr(self) -> float:
        """The learning rate in use: `lr`, scaled linearly with the batch size where a base is given."""
        return self.lr * self.batch_size / (self.base_batch_size or self.batch_size)

    def budget_in(self, kind: str) -> int | None:
        """The budget of a kind, flops or bytes; None where there is none."""
        given = None if self.budget is None else budget_of(self.budget)
        return given[1] if given is not None and given[0] == kind else None

    @property
    def watches_validation(self) -> bool:
        """Whether training reads the validation split."""
        return self.patience is not None or self.schedule == "plateau"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.optimizer != "sgd" and self.momentum:
            raise ValueError(f"momentum={self.momentum:g} is for optimizer='sgd', not {self.optimizer!r}")
        if not re.fullmatch(r"all|head|last-[1-9]\d*", self.train):
            raise ValueError(f"train={self.train} given, all, head or last-N (such as last-1) accepted")
        if self.budget_in("flops") is not None:
            for name in (*DECIDED["flops"], "schedule_scope"):
                if (value := getattr(self, name)) != type(self).model_fields[name].default:
                    raise ValueError(f"budget={self.budget} decides how long training lasts; leave out {name}={value}")
        rated = self.schedule in ("step", "multistep", "plateau")
        _refuse_without_effect(
            self,
            ("lr_factor", rated, "schedule step, multistep or plateau"),
            ("lr_patience", self.schedule == "plateau", "schedule='plateau'"),
            ("schedule_scope", self.schedule != "constant" or self.lr_warmup > 0, "a schedule or lr_warmup"),
            ("min_delta", self.watches_validation, "patience or schedule='plateau'"),
            ("decay_head", self.weight_decay > 0, "weight_decay above 0"),
            ("decay_norms", self.weight_decay > 0, "weight_decay above 0"),
            ("backbone_lr_factor", self.train != "head", "a backbone that trains, and train='head' freezes it"),
        )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs optimizer='sgd' with momentum above 0")
        for option, schedule in (("milestones", "multistep"), ("step_epochs", "step")):
            if (getattr(self, option) is not None) != (self.schedule == schedule):
                raise ValueError(f"schedule={schedule!r} and {option} go together; give both or neither")
        if self.schedule == "plateau" and self.schedule_scope == "run":
            raise ValueError("schedule='plateau' begins again with each task; schedule_scope='run' is for the others")
        return self


class MemoryConfig(Group):
    """The memory of exemplars: its size and the rule that chooses them."""

    size: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=None, alias="memory_size", description="exemplars in all; 0 is no memory"
    )
    per_class: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=None, alias="memory_per_class", description="exemplars of each class; 0 is no memory"
    )
    policy: Literal["reservoir", "balanced", "herding", "herding-argmax", "random"] | None = Field(
        default=None, alias="memory_policy", description="how exemplars are chosen; the default is the strategy's"
    )

    @property
    def budget(self) -> int:
        """Exemplars in all or per class, whichever is set; 0 when there is no memory."""
        return self.size or self.per_class or 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.policy is not None and not self.budget:
            raise ValueError("memory_policy needs memory_size or memory_per_class")
        return self


class EvaluationConfig(Group):
    """The evaluation: the tasks that are tested, and when."""

    evaluate: Literal["current", "seen", "all"] = Field(
        default="all",
        description="test the present task alone, the tasks seen so far, or all tasks whose outputs exist; `current` "
        "costs the same in task 10 as in task 800, and leaves forgetting undefined",
    )
    eval_every: Literal["task", "epoch"] | Count = Field(
        default="task", description="evaluate after each task, also after each epoch, or every N steps"
    )
    online_accuracy: bool = Field(
        default=False,
        description="test each new sample just before it is learnt, in the first pass over its task; the share that is "
        "right is the average online accuracy",
    )
    near_future: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        default=None,
        description="test each new sample by the model as it was so many steps before the sample's own; the share that "
        "is right is the near-future accuracy",
    )
    anytime: Count | None = Field(
        default=None,
        description="test on the classes seen so far each time that so many samples of the stream have gone by; the "
        "mean is the anytime accuracy",
    )
    plasticity: bool = Field(
        default=False,
        description="measure after each task whether the network can still learn: share of dead units, effective rank "
        "of the features, norms of weights and gradients",
    )
    keep_predictions: bool = Field(
        default=False, description="keep the final scores of every test image in predictions.npz beside run.json"
    )


class EngineConfig(Group):
    """The machine's part: device, precision, threads, and how often the state is saved."""

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32", description="fp32, TensorFloat-32 products of a CUDA GPU, or bf16 autocast"
    )
    compile: Literal["none", "default", "reduce-overhead"] = Field(
        default="none",
        description="a mode of torch.compile for the network in training steps; reduce-overhead: CUDA graphs on a GPU",
    )
    deterministic: bool = Field(default=False, description="on a GPU: refuse operations that can't be repeated")
    cache_features: bool = Field(
        default=True,
        description="compute the features of a frozen pre-trained network once, and keep them in the cache on disk",
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="CPU threads, by default 1 in compare and sweep and else torch's number; part of what fixes "
        "the numbers",
    )
    processes: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=1,
        description="processes that share the work of one run on this machine, each with its part of the threads, or a "
        "GPU of its own",
    )
    accumulate: Annotated[int, Field(ge=1, le=10**6)] = Field(
        default=1,
        description="slices in which a batch goes through the network, so that the activations of one fit into memory",
    )
    keep_state: bool = Field(
        default=True,
        description="keep all that was learnt in state.pt beside run.json, by which predict, export and extend use it",
    )
    count_flops: bool = Field(
        default=False,
        description="count the floating-point operations of training and evaluation; a budget of flops counts them",
    )
    checkpoint_every: Annotated[float, Field(gt=0)] | Literal["epoch", "task"] | str = Field(
        default=10.0,
        description="save the state within a task every so many minutes, each epoch, or every N-steps; "
        "it is saved after each task in any case",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        every = self.checkpoint_every
        if isinstance(every, str) and not re.fullmatch(r"epoch|task|[1-9]\d{0,8}-steps", every):
            raise ValueError(
                f"checkpoint_every={every[:40]!r} given, minutes above 0, epoch, task or N-steps (such as 50-steps) "
                "accepted"
            )
        return self
