"""The contract of a strategy: what is different about a method, and nothing else."""

import copy
import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from types import FunctionType
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from clbench.config.arguments import checked
from clbench.config.contract import Declared
from clbench.config.errors import ConfigError, RunError, shown, unknown
from clbench.config.registry import validate_options
from clbench.config.run import RunConfig, Setting, fields
from clbench.config.space import Log, declared
from clbench.data.batches import CONVOLVING_PASS_SIZE, Batch, Pipeline
from clbench.data.scenario import ImageSet, Scenario, Task
from clbench.learning import projection
from clbench.learning.flops import Flops
from clbench.learning.losses import cross_entropy
from clbench.learning.memory import MEMORIES, Memory
from clbench.models import build_model
from clbench.models.network import Network
from clbench.models.weights import load_backbone
from clbench.support.finite import not_finite
from clbench.support.processes import ALONE, Processes
from clbench.support.streams import global_streams, stream, stream_seed

Terms = Tensor | dict[str, Tensor]
Strength = Annotated[float, Field(ge=0)]

HOOKS = (
    *("check", "begin_run", "begin_task", "stages", "loss", "after_backward", "penalty", "after_step", "end_task"),
    "scores",
)
# The attributes that declared in 0.1.0 what `traits` declares now, each with its name there.
LOOSE = {
    **{name: name for name in ("family", "paper", "settings", "data_access", "needs_memory", "memory_policy")},
    **{name: name for name in ("needs_task_at_test", "seeds_together", "through_features", "not_applicable")},
    "memory_use": "memory",
}


@checked
@dataclass(frozen=True, kw_only=True)
class Traits:
    """The declarations of a strategy about itself; raises ConfigError for a value that is not accepted.

    family: the kind of method, which reports and `clbench list` group by.
    paper: author, year and arXiv number or DOI.
    settings: those that it works in.
    data_access: the data it reads, the current task's or those of all tasks so far; the latter makes it a reference.
    memory: what becomes of exemplars. "joined": they are added to the task's data; "replayed": drawn beside each batch;
        "own": the strategy fills and uses the memory itself; "none": a memory is refused.
    needs_memory: whether it lives on a memory, and gets the scenario's usual one.
    memory_policy: how the memory chooses where the user does not say.
    needs_task_at_test: whether `scores` is given the task, so that there is no class-incremental matrix.
    seeds_together: whether seeds can be trained together in one batched model. A step is nothing but `loss` and
        `penalty` then, the loss draws nothing at random, and modules, tensors and floats hold all that a seed decides.
    through_features: whether the loss goes through `model.features` as a whole, which is what --compile compiles.
    foresees: whether what it learns in a task depends on how many tasks there will be, so that no run of it can be
        continued with further tasks.
    on_features: whether it works on the features of a frozen network as it does on images: it hands images to the
        network's `features`, `forward` or `scores` and does nothing else with them. See Strategy.frozen_features.
    mixes: whether its loss reads the labels of a batch through `classification_loss` alone, and keeps nothing that was
        computed of its images, so that images can be mixed in pairs (--mixup).
    needs_boundaries: whether it does something where a task begins or ends, other than to be tested; a stream without
        boundaries, which tells nobody where that is, is refused. A reference that reads all data has them anyway.
    needs_transformer: whether it works inside a vision transformer; any other network is refused.
    preset: fields of the run, by flat names, that default to other values for it, whatever the scenario.
    with_weights: defaults of hyper-parameters that hold where the weights of the backbone are given; those of a
        scenario's preset go before them.
    not_applicable: checks of the conformance kit (clbench.testing) that make no sense for it, each with the reason.
    """

    family: Literal[
        "reference", "regularisation", "distillation", "replay", "isolation", "plasticity", "frozen", "pretrained"
    ]
    paper: str = ""
    settings: tuple[Setting, ...] = get_args(Setting)
    data_access: Literal["task", "all"] = "task"
    memory: Literal["joined", "replayed", "own", "none"] = "joined"
    needs_memory: bool = False
    memory_policy: str = "herding"
    needs_task_at_test: bool = False
    seeds_together: bool = False
    through_features: bool = True
    foresees: bool = False
    on_features: bool = False
    mixes: bool = False
    needs_boundaries: bool = True
    needs_transformer: bool = False
    preset: Mapping[str, Any] = field(default_factory=dict)
    with_weights: Mapping[str, Any] = field(default_factory=dict)
    not_applicable: Mapping[str, str] = field(default_factory=dict)

    @property
    def learns_as_it_comes(self) -> bool:
        """Whether its steps are on the samples of the stream in their order, with exemplars beside them at most."""
        return self.data_access == "task" and self.memory != "own"

    def __post_init__(self) -> None:
        if not self.settings:
            raise ConfigError(f"settings=() given; one or more of {', '.join(get_args(Setting))} are accepted")
        if self.memory_policy not in MEMORIES:
            raise unknown("memory_policy", self.memory_policy, MEMORIES)
        for name in self.preset:
            if name not in fields():
                raise unknown("field of the run in preset", name, fields())


@checked
@dataclass(frozen=True)
class Stage:
    """One fit on one set of samples: a declaration, so it can be repeated after an interruption.

    parameters: what trains; everything else is frozen, batch-norm statistics and dropout included (default: all).
    head_rows: the only rows of the head that move.
    epochs, iterations, lr: the config's where None.
    loss: replaces the strategy's.
    before: run once at the start, before the optimizer is made.
    watched: early stopping and plateau schedules apply, which judge by the current task alone; not so where old tasks
        count as much.

    `loss` and `before` reach modules through the strategy, and keep what they count on it: after an interruption the
    stages are declared again, so these are other objects, and a variable of the surrounding function begins anew.
    """

    data: ImageSet
    name: str = "train"
    parameters: list[nn.Parameter] | None = None
    head_rows: slice | None = None
    epochs: int | None = None
    iterations: int | None = None
    lr: float | None = None
    loss: Callable[[Batch], Terms] | None = None
    before: Callable[[], None] | None = None
    watched: bool = True

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("iterations", self.iterations)):
            if value is not None and value < 1:
                raise ConfigError(f"Stage: {name}={value} given; a number of 1 or more, or None, is accepted")
        if not (self.lr is None or 0 < self.lr < float("inf")):
            raise ConfigError(f"Stage: lr={self.lr} given; a finite rate above 0, or None, is accepted")


@dataclass(slots=True)
class Progress:
    """The position of the run: 0-based task, epoch and step of the stage; steps per epoch; current learning rate.

    It takes no other attributes, which nothing would save; `self` of the strategy does.
    replayed: samples drawn from the memory in this epoch.
    steps: of the stage, at most.
    stages_done, n_stages: of the task.
    """

    task: int = -1
    stage: str = ""
    epoch: int = 0
    step: int = 0
    steps_per_epoch: int = 0
    learning_rate: float = 0.0
    replayed: int = 0
    steps: int = 0
    stages_done: int = 0
    n_stages: int = 1

    def take_up(self, stored: "Mapping[str, Any] | Progress") -> None:
        """Go to another position."""
        for name, value in (asdict(stored) if isinstance(stored, Progress) else stored).items():
            setattr(self, name, value)


@dataclass
class Context:
    """The things that the engine lends a strategy for one run."""

    config: RunConfig
    scenario: Scenario
    pipeline: Pipeline
    device: torch.device
    progress: Progress
    logged: dict[str, float] = field(default_factory=dict)
    processes: Processes = ALONE
    flops: Flops = field(default_factory=Flops)
    # That of the stage under way.
    optimizer: torch.optim.Optimizer | None = None

    def options_in_force(self) -> dict[str, Any]:
        """Return the hyper-parameters of the strategy that the config gives for the task under way."""
        of_task = self.config.per_task[self.progress.task] if self.config.per_task and self.progress.task >= 0 else {}
        return {**self.config.strategy_options, **{name: v for name, v in of_task.items() if name != "lr"}}

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run: bf16 autocast, or nothing."""
        if self.config.engine.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


class Strategy:
    """Base of all strategies; as it stands it is naive fine-tuning (on the task and its exemplars, if any).

    Annotated attributes of a subclass are its hyper-parameters: typed, validated, with defaults. Whatever a hook
    assigns to `self` is learnt state: saved, restored, and trained too where it is a module or parameter that requires
    a gradient.
    """

    traits: ClassVar[Traits]

    model: Network
    memory: Memory | None = None
    _context: Context
    _options: ClassVar[Any] = Declared()
    _lent: ClassVar[frozenset[str]] = frozenset({"_context"})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if vars(cls).get("__slots__"):
            raise ConfigError(f"{cls.__name__} has __slots__, which no checkpoint holds; plain attributes are accepted")
        own = (n for n, v in vars(cls).items() if isinstance(v, FunctionType) and n not in vars(Strategy))
        for name in (n for n in own if not n.startswith("_")):
            # A hook under a wrong name would never be called, and nobody would know.
            if near := difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.85):
                warnings.warn(f"{cls.__name__}.{name} is no hook; did you mean {near[0]}?", stacklevel=2)

    def __init__(self, **options: object) -> None:
        """Store the hyper-parameters; raises ConfigError for an unknown name or a value out of range."""
        self.__dict__.update(self.validate(options))

    @classmethod
    def validate(
        cls, options: Mapping[str, object], name: str | None = None, *, beside: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Return all hyper-parameters with defaults filled in; raises ConfigError for what isn't accepted.

        name: what the strategy goes by, for errors.
        beside: names that would be accepted in the same place, for the hint at an unknown one.
        """
        return validate_options(cls._options, options, owner=name or cls.__name__, beside=beside)

    # The hooks, in the order in which the engine calls them.

    def check(self, config: RunConfig, scenario: Scenario) -> None:
        """Before anything is trained: raise ConfigError for what the strategy can't work with."""

    def begin_run(self) -> None:
        """Before the first task: what the run learns begins here, and a run that is continued keeps it."""

    def begin_task(self, task: Task) -> None:
        """Before the head grows: a teacher copied here has the old outputs only."""

    def stages(self, task: Task) -> list[Stage]:
        """Return the stages that are fitted in this task, after the head has grown; [] trains nothing."""
        return [Stage(self.with_exemplars(task.train))]

    def loss(self, batch: Batch) -> Terms:
        """The data terms of the loss, named when there are several."""
        return {"classification": self.classification_loss(self.model(batch.images), batch)}

    def after_backward(self, batch: Batch) -> None:
        """`.grad` holds the gradient of loss() alone: read it, project it or mask it."""

    def penalty(self) -> Tensor | None:
        """A term in the parameters only; it has its own backward pass, after after_backward."""
        return None

    def after_step(self, batch: Batch) -> None:
        """The weights have moved: restore frozen entries, and count what is counted for each step or exemplar.

        A step that is left out (on_nan="skip") offers nothing to the memory and does not come here, though `loss` and
        perhaps `after_backward` have been called for it. So what these two assign is for the same step alone.
        """

    def end_task(self, task: Task) -> None:
        """The task's data is still readable and the memory is up to date: Fisher, class means."""

    def scores(self, images: Tensor, task: int | None = None) -> Tensor | dict[str, Tensor]:
        """Test scores [B, outputs], or several classifiers' by name, the headline one first.

        `task` is given only where `needs_task_at_test` is declared.
        """
        logits: Tensor = self.model(images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """The representation that herding works on, float [B, feature_dim]."""
        return self.model.features(images)

    # Hooks and settings that a strategy may override.

    def new_memory(self, kind: type[Memory], size: int | None, per_class: int | None) -> Memory:
        """Return the empty memory that the run asks for: of this kind, with a size in all or for each class."""
        return kind(size, per_class)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Tell whether weight decay acts on a parameter, `name` as in trainable(), where the run does not spare it."""
        return True

    def frozen_features(self, config: RunConfig) -> bool:
        """Whether an image has the same features all through a run with given weights, those that they make.

        They are computed once then, and `images` of batches and of `scores` are features, float [B, feature_dim], which
        the network's `features` passes on.
        """
        as_they_are = config.data.augment == "none" and not config.data.mixup
        return self.traits.on_features and config.training.train == "head" and as_they_are

    # Tools that a strategy may use.

    @property
    def progress(self) -> Progress:
        """The position of the run."""
        return self._context.progress

    @property
    def setting(self) -> str:
        """ "class", "task" or "domain"."""
        return self._context.scenario.setting

    @property
    def config(self) -> RunConfig:
        """The run's config."""
        return self._context.config

    @property
    def device(self) -> torch.device:
        """The device that model and batches are on."""
        return self._context.device

    @property
    def old_task_outputs(self) -> list[slice]:
        """The head outputs of each earlier task, each range once."""
        tasks = self._context.scenario.tasks[: self.progress.task]
        return [slice(*ends) for ends in dict.fromkeys((t.outputs.start, t.outputs.stop) for t in tasks)]

    def outputs_of(self, task: int) -> slice:
        """Return the head outputs of a task, earlier or later."""
        return self._context.scenario.tasks[task].outputs

    def task_logits(self, features: Tensor, task: int) -> Tensor:
        """Return the logits [B, outputs] of a task's own outputs, -inf elsewhere.

        Their rows of the head are multiplied alone: in a product with more rows they could be rounded otherwise.
        """
        head, outputs = self.model.head, self.outputs_of(task)
        own = F.linear(features, head.weight[outputs], head.bias[outputs])
        return F.pad(own, (outputs.start, head.out_features - outputs.stop), value=-torch.inf)

    def log(self, name: str, value: float) -> None:
        """Record a finite number about this task in run.json, under tasks[].logged; raises RunError for another."""
        if wrong := not_finite(value, f"the logged value {name!r}"):
            raise RunError(f"{wrong} in task {self.progress.task}; a finite number is accepted")
        self._context.logged[name] = value

    def rng(self, name: str) -> torch.Generator:
        """Return the CPU generator of the stream `name` at this step, always at its start."""
        p = self.progress
        return stream(self._context.config.seed, f"strategy/{name}", p.task, p.stage, p.epoch, p.step)

    @contextmanager
    def seeded(self, name: str) -> Iterator[None]:
        """Inside it, what draws from a global CPU stream, as a new layer does, draws from the stream `name`."""
        with global_streams(self.rng(name).initial_seed()):
            yield

    def normalize(self, originals: Tensor) -> Tensor:
        """Turn pixels of 0 to 255, [B, C, H, W] of any dtype, into what a model is given, float of the same shape."""
        return self._context.pipeline.normalize(originals)

    def active_outputs(self, ids: Tensor) -> slice | Tensor:
        """Return the outputs that compete in the loss for these training samples, as Batch.active."""
        # To a reference that is trained afresh on everything, every class is new.
        mode = self._context.config.training.loss_outputs
        if self.traits.data_access == "all" and mode == "new":
            mode = "seen"
        return self._context.pipeline.active_outputs(ids, self.progress.task, mode)

    def classification_loss(self, logits: Tensor, batch: Batch, outputs: slice | None = None) -> Tensor:
        """Cross-entropy over the outputs that compete for each sample of the batch, mean over the batch.

        The loss of mixed images is that of their and their partners' labels, by the shares of the two (mixup).

        outputs: those that compete where it is not for the run to say, as the outputs of the present task.
        """
        smoothing, partners = self.config.training.label_smoothing, batch.partners

        def loss(labels: Tensor, active: slice | Tensor) -> Tensor:
            return cross_entropy(logits, labels, active if outputs is None else outputs, label_smoothing=smoothing)

        own = loss(batch.labels, batch.active)
        if partners is None:
            return own
        return partners.share * own + (1 - partners.share) * loss(partners.labels, partners.active)

    def with_exemplars(self, data: ImageSet) -> ImageSet:
        """Return the samples and the exemplars of earlier tasks as one set."""
        if self.memory is None or self.traits.memory != "joined" or len(self.memory) == 0:
            return data
        return data + self.exemplars()

    def exemplars(self) -> ImageSet:
        """Return the samples in the memory."""
        ids = self.memory.ids if self.memory is not None else torch.empty(0, dtype=torch.int64)
        return ImageSet(self._context.scenario.train, ids)

    def replay(self, n: int, name: str = "replay") -> Batch | None:
        """Draw n samples from the memory (None while it is empty), without repeats as far as it reaches.

        Draws of one step under different names are independent of each other, augmentation included.
        """
        if self.memory is None or len(self.memory) == 0 or n == 0:
            return None
        ids = self.memory.sample(n, self.rng(name))
        self.progress.replayed += n
        return self.batch_of(ids, name)

    def batch_of(self, ids: Tensor, name: str) -> Batch:
        """Return samples of the memory or of the step, by their ids, augmented by the stream `name` of the step."""
        p = self.progress
        return self._context.pipeline.batch(ids, self.active_outputs(ids), (name, p.task, p.stage, p.epoch, p.step))

    def gradient_of(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the gradient of a loss as one vector [P], zero where it does not depend on a parameter; `.grad` stays.

        It is that of the whole batch, which torch.autograd.grad is not where several processes share it.
        """
        gradient = projection.gradient_of(loss, parameters)
        self._context.processes.average_([gradient])
        return gradient

    def passes(self, data: ImageSet) -> Iterator[Batch]:
        """Walk over samples in order, in large batches without augmentation."""
        return self._context.pipeline.passes(data, self.active_outputs)

    def seen_data(self) -> ImageSet:
        """Return the training data of all tasks so far; for strategies that declare data_access = "all"."""
        if self.traits.data_access != "all":
            raise RunError(f"{type(self).__name__} read earlier tasks' data without data_access = 'all'")
        tasks = self._context.scenario.tasks[: self.progress.task + 1]
        return ImageSet(self._context.scenario.train, torch.cat([task.train.ids for task in tasks]))

    def frozen_copy(self) -> Network | None:
        """Return the model as it is, in eval mode and without gradients; None before the first task."""
        if self.progress.task == 0:
            return None
        return copy.deepcopy(self.model).eval().requires_grad_(False)

    def fresh_model(self) -> Network:
        """Return an untrained model with the present outputs, drawn from this task's own stream."""
        model = new_model(self._context, self.progress.task)
        return grow_head(model, self._context, self.model.head.out_features)

    def restart(self) -> None:
        """Put an untrained model in the place of the present one; for the beginning of a stage."""
        self.model = self.fresh_model()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return every parameter that trains, by name: the model's, and those assigned to self."""
        found: dict[str, nn.Parameter] = {}
        for name, value in vars(self).items():
            if isinstance(value, nn.Module):
                found |= {f"{name}.{n}": p for n, p in value.named_parameters() if p.requires_grad}
            elif isinstance(value, nn.Parameter) and value.requires_grad:
                found[name] = value
        return found

    def statistics(self, parameter: Tensor) -> list[Tensor]:
        """Return what the optimizer keeps for each entry of a parameter, such as momentum: tensors of its shape."""
        optimizer = self._context.optimizer
        kept = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        return [value for value in kept.values() if isinstance(value, Tensor) and value.shape == parameter.shape]

    def state(self) -> dict[str, Any]:
        """Return the learnt state: what was assigned to self, model, memory and changed hyper-parameters among it.

        The data of the task under way are no part of it.
        """
        lent = vars(self).get("_context")
        given = {n: vars(self)[n] for n in self._options.model_fields} if lent is None else lent.options_in_force()
        return {
            name: value
            for name, value in vars(self).items()
            if name not in self._lent
            and not is_lent(value)
            and not (name in given and type(value) is type(given[name]) and value == given[name])
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put a state() in the place of the present one, in its order, which is that of the optimizer's parameters."""
        for name in self.state():
            del vars(self)[name]
        vars(self).update({**self._context.options_in_force(), **state})
        for value in state.values():
            if isinstance(value, ImageSet):
                # A checkpoint holds the ids of a view, and not its images.
                value._source = self._context.scenario.train


def is_lent(value: object) -> bool:
    """Whether a value is data of the task under way."""
    data = value.train if isinstance(value, Task) else value
    return isinstance(data, ImageSet) and data.lent


def spoilt(strategy: Strategy) -> str | None:
    """Return which attribute holds a number that is not finite, such as "self.means holds NaN"; None for none.

    Infinities are accepted but in parameters, as in a mask or in the lowest loss so far.
    """
    # Another library's state is no attribute, and its loss names the options that it comes from.
    kept = {name: value for name, value in strategy.state().items() if name in vars(strategy)}
    return next(filter(None, (not_finite(value, f"self.{name}", infinite=True) for name, value in kept.items())), None)


def remedies(strategy: Strategy) -> str:
    """Return what may keep the numbers of a run finite: a smaller rate, smaller weights of its terms, or clipping."""
    weights = [name for name, space in declared(strategy._options).items() if isinstance(space, Log)]
    now = [f"a smaller {name} (now {value:g})" for name in weights if (value := getattr(strategy, name))]
    clip = strategy.config.training.clip
    clipping = "--clip 1" if clip is None else f"a smaller --clip (now {clip:g})"
    return f"try {', '.join(['a smaller learning rate', *now])} or {clipping} (see clbench tune)"


def given_task(task: int | None) -> int:
    """Return the task of test images, for strategies that need it; raises RunError where `scores` was not given it."""
    if task is None:
        raise RunError("scores(images) needs the task of the images here; scores(images, task) is accepted")
    return task


def call_hook(who: object, hook: str, *given: object) -> None:
    """Call a hook whose result has no use; raises RunError for one that returns something."""
    returned = getattr(who, hook)(*given)
    if returned is not None:
        raise RunError(
            f"{type(who).__name__}.{hook} returned {shown(returned)}, which has no effect; it returns nothing"
        )


@contextmanager
def eval_mode(strategy: Strategy) -> Iterator[None]:
    """Put every module of a strategy into eval mode, and each layer's own mode back at the end."""
    modules = [m for m in vars(strategy).values() if isinstance(m, nn.Module)]
    flags = [(layer, layer.training) for module in modules for layer in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for layer, training in flags:
            layer.training = training


def initial_model(config: RunConfig, image_shape: tuple[int, ...], task: int) -> Network:
    """Return a model as initialised by the stream of `task` or by given weights, without outputs."""
    seed = stream_seed(config.seed, "initialisation", task)
    model = build_model(config.model.name, image_shape, seed, config.code)
    if config.model.weights is not None:
        load_backbone(model, config.model.weights, config.model.name, offline=config.data.offline)
    return model


def new_model(context: Context, task: int) -> Network:
    """Return the initial model on the device."""
    config = context.config
    model = initial_model(config, context.scenario.image_shape, task)
    # oneDNN's convolutions want the channels last, and cuDNN's in bf16; the weights decide for the images.
    if context.device.type == "cpu" or config.engine.precision == "bf16":
        model = model.to(memory_format=torch.channels_last)
    fit_passes(context, model)
    return model.to(context.device)


def fit_passes(context: Context, model: Network) -> None:
    """Let passes without gradients be of the size that suits a model and the device."""
    if context.device.type == "cpu" and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        context.pipeline.pass_size = CONVOLVING_PASS_SIZE


def grow_head(model: Network, context: Context, n_outputs: int) -> Network:
    """Grow the head to `n_outputs`, drawing each new row from the stream of the present task; return the model."""
    if n_outputs > model.head.out_features:
        generator = stream(context.config.seed, "head", context.progress.task)
        model.head.grow(n_outputs, generator, context.config.model.head_init)
    return model
