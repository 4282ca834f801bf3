"""What every method is: stages as data, and verbs that read like its pseudocode.

Four have no default: `enter`, `losses`, `features` and `predict`; `stages` has one that many methods replace.

The loop (`dne_lab.training.run`) owns devices, epochs, batches, logging, checkpoints and the exemplar memory.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core import chance, presets
from dne_lab.core.config import LATER_HEADS, Config, Recipe
from dne_lab.core.errors import LabError, unknown
from dne_lab.core.schema import build, settings
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.models import backbone

TASK_AND_MEMORY, BALANCED, BASE = "task+memory", "balanced", "base"
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Stage:
    """One optimisation.

    ``data`` is "task+memory" (the task's images and the exemplars of old classes), "balanced" (the class-balanced
    memory, chosen just before) or "base" (the classes of the stream's first task, also where all arrive at once).
    ``keep_optimizer`` carries the optimiser over from the stage before. Without ``shuffle`` every epoch shows the
    images in the same order, class by class. ``shares``: how the names of the weights begin that a stage on the base
    classes learns, if all runs with the same images, recipe and seed learn the same: the first one learns them for all.
    """

    name: str
    recipe: Recipe
    data: str = TASK_AND_MEMORY
    keep_optimizer: bool = False
    shuffle: bool = True
    shares: str = ""


@settings
class NoOptions:
    """A method without switches of its own."""


class Method(nn.Module):
    """A way of learning a stream of classes. Subclassing with a ``name`` registers it, also from a notebook cell.

    ``title``: what it is called in tables and figures; default: its name, also of a subclass of one that has a title.
    ``uses_memory``: exemplars are kept and mixed in. ``joint``: all classes arrive as one task (an upper bound).
    ``shares_first_task``: task 1 is the same as that of every other such method, so comparisons train it once per seed.
    ``Options``: a frozen dataclass of the method's own switches, set by ``--set options.NAME=VALUE``.
    ``recipe``: whose presets ``<recipe>-small`` and ``<recipe>-published`` are its own; default: those of its name.
    ``training_only``: how the names of weights begin that a finished task no longer needs (a teacher).
    ``ignores``: groups and fields of the configuration that change nothing for it, "k" for the heads of later experts:
    who sets one of them for it is told so. Default: none.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    uses_memory: ClassVar[bool] = True
    joint: ClassVar[bool] = False
    shares_first_task: ClassVar[bool] = False
    Options: ClassVar[type] = NoOptions
    recipe: ClassVar[str] = ""
    training_only: ClassVar[tuple[str, ...]] = ()
    ignores: ClassVar[tuple[str, ...]] = ()
    registry: ClassVar[dict[str, type["Method"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__ or not cls.name:
            return
        there = Method.registry.get(cls.name)
        if there is not None and there.__module__.startswith("dne_lab.") and cls.__module__ != there.__module__:
            raise LabError(
                f"{cls.__name__}.name = {cls.name!r} is the name of a method of dne_lab: give it another one."
            )
        if "title" not in cls.__dict__:
            cls.title = cls.name
        Method.registry[cls.name] = cls

    def __init__(self, config: Config, stream: ClassStream) -> None:
        super().__init__()
        self.config = config
        self.stream = stream
        self.options: Any = build(self.Options, config.options, "options.")

    # What a method says ------------------------------------------------------------------------------------------

    def stages(self, task: Task) -> list[Stage]:
        """The optimisations of a task, in order; default: `learn`, and from task 2 on `tune` on balanced exemplars."""
        learn = Stage("learn", self.config.learn)
        if task.number == 1 or not self.uses_memory or self.config.tune.epochs == 0:
            return [learn]
        return [learn, Stage("tune", self.config.tune, BALANCED)]

    def enter(self, task: Task, stage: Stage) -> None:
        """Changes structure and what trains; never sees data. A resumed run calls it again for every stage passed."""
        raise NotImplementedError(f"{type(self).__name__} must define enter(task, stage)")

    def initialise(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """Sets values that need data (not structure), once at the start of a stage, under no_grad. Default: nothing."""

    def prepare(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """Computes once what stays the same through a stage, under no_grad, from its clean images in a fixed order.

        Called before the stage's first step and again when a stopped run goes on; what it keeps is no state of the run
        and must follow from it. Default: nothing.
        """

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """The weighted terms of the objective by name; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} must define losses(batch, task, stage)")

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, d) features for herding."""
        raise NotImplementedError(f"{type(self).__name__} must define features(images)")

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) uint8 -> scores (B, classes seen) by name, the reported one first."""
        raise NotImplementedError(f"{type(self).__name__} must define predict(images)")

    def compute(self, images: Tensor) -> object:
        """One prediction as it runs, for counting spent FLOPs. Default: `predict`."""
        return self.predict(images)

    def compute_literally(self, images: Tensor) -> object:
        """One prediction as the method's equations are written, for counting literal FLOPs. Default: as it runs."""
        return self.compute(images)

    def network_to_keep(self) -> list[nn.Module]:
        """The modules whose parameters the finished model needs. Default: all of it."""
        return [self]

    def finish(self, task: Task, exemplars: Iterator[Batch]) -> None:
        """Called after a task's last stage with clean exemplars of all classes, under no_grad. Default: nothing."""

    @classmethod
    def options_of_task_1(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Those of a run's ``options`` that change what task 1 learns. Default: all."""
        return options

    def network_settings(self) -> dict[str, Any]:
        """What names the network in records, JSON-able: runs with equal ones share a joint model. Default: nothing."""
        return {}

    # What the loop relies on ---------------------------------------------------------------------------------------

    def task_state(self, task: Task) -> dict[str, Tensor]:
        """What `task_NN.safetensors` keeps of this task, so that `load_task_states` can rebuild any prefix.

        It is what the reported prediction needs; one that needs what only training needs (a teacher's) is gone.
        """
        return {name: value for name, value in self.state_dict().items() if not name.startswith(self.training_only)}

    def load_task_states(self, states: list[dict[str, Tensor]]) -> None:
        """Sets the weights from the states of tasks 1..t (after `enter` was replayed for them).

        A weight comes from the last state that has it: an expert from its own task's, the classifier from the last.
        """
        merged: dict[str, Tensor] = {}
        for state in states:
            merged |= state
        self.load_state(merged)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Loads a state in which nothing may be missing but what only training needs; a KeyError names what is."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        wanted = [name for name in missing if not name.startswith(self.training_only)]
        unexpected = [name for name in unexpected if not name.startswith(self.training_only)]
        if wanted or unexpected:
            raise KeyError(f"missing: {wanted}; unexpected: {unexpected}")

    def train(self, mode: bool = True) -> "Method":
        """Training mode for modules that hold a trainable parameter; all others stay in evaluation mode."""
        super().train(False)
        if mode:
            for module in self.modules():
                module.training = any(p.requires_grad for p in module.parameters())
        return self

    def parameters_to_train(self) -> dict[str, nn.Parameter]:
        """Named parameters that the optimiser gets."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def rates(self) -> dict[str, float]:
        """What the learning rate is multiplied by, of `parameters_to_train` with one of their own. Default: none."""
        return {}


def check_stage(method: Method, stage: Stage, known: Sequence[str]) -> None:
    """Raises a `LabError` for a stage whose name an `enter` does not know: it would take it for another one."""
    if stage.name not in known:
        error = unknown("stage", stage.name, known)
        raise LabError(f"{method.config.method}: {error} One of another name needs an enter(task, stage) of its own.")


def frozen(module: M) -> M:
    """A copy that does not train, such as a teacher."""
    return copy.deepcopy(module).requires_grad_(False)


def changed(recipe: Recipe, changes: dict[str, Any], name: str) -> Recipe:
    """A recipe with other values of some fields; ``name`` is where the user sets them, for errors."""
    return build(Recipe, asdict(recipe) | changes, f"{name}.")


def soft_cross_entropy(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Cross entropy of (B, classes) against softmax(wanted / T), both divided by T; without the factor T^2."""
    return F.cross_entropy(logits / temperature, (wanted / temperature).softmax(1))


def title_of(method: str) -> str:
    """What a method is called in tables and figures: its ``title``; its name, where the class is not known here."""
    return Method.registry[method].title if method in Method.registry else method


def find(name: str) -> type[Method]:
    """The method class called ``name``."""
    if name not in Method.registry:
        raise unknown("method", name, Method.registry)
    return Method.registry[name]


def configure(method: str, names: str, changes: dict[str, Any] | None = None, **fields: Any) -> Config:
    """`presets.resolve` for a method: "small" and "published" stand for its own preset of that kind, if it has one.

    A method without one takes that of the method it derives from; one without any is left as the others say. What a
    user sets for a method goes through `refuse_ignored` first. An option that is named stays in the configuration at
    its default too: so the runs beside controls are told from those of older code.
    """
    family = [cls.recipe or cls.name for cls in find(method).__mro__ if issubclass(cls, Method) and cls.name]
    config = presets.resolve(presets.of_method(names, family), changes, method=method, **fields)
    return backbone.completed(config, list(_leaves(changes or {})))


def with_changes(config: Config, changes: dict[str, Any]) -> Config:
    """``config.with_changes(changes)``, and what follows from a backbone that they name."""
    return backbone.completed(config.with_changes(changes), list(_leaves(changes)))


def ignored(method: str, changes: dict[str, Any]) -> list[str]:
    """Those of the dotted ``changes`` that change nothing for the method, as they were written."""
    groups = find(method).ignores
    named = [(name, "network.k" if name == LATER_HEADS else name) for name in _leaves(changes)]
    return [name for name, place in named if name in groups or place.startswith(tuple(f"{one}." for one in groups))]


def used(method: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes without those that the method ignores: among several methods each takes what it uses."""
    return {name: value for name, value in changes.items() if not ignored(method, {name: value})}


def refuse_ignored(method: str, changes: dict[str, Any]) -> None:
    """Raises a `LabError` that says what the method reads, where it ignores one of the dotted ``changes``."""
    found = ignored(method, changes)
    if not found:
        return
    cls = find(method)
    groups = [name for name, value in Config().to_dict().items() if isinstance(value, dict) and name != "options"]
    read = [f"{name}.*" for name in groups if name not in cls.ignores]
    read += [f"options.{field.name}" for field in dataclasses.fields(cls.Options)]
    first = ": it has no later experts; network.heads = N,1 is for the first" if found == [LATER_HEADS] else ""
    first *= "network" not in cls.ignores
    raise LabError(f"{method} does not use {', '.join(found)}{first}. Leave it out: {method} reads {', '.join(read)}.")


def _leaves(changes: dict[str, Any]) -> Iterator[str]:
    """The dotted fields of changes, in which groups may be dictionaries; one number of heads is k."""
    for name, value in changes.items():
        if isinstance(value, dict) and value:
            yield from (leaf if leaf == LATER_HEADS else f"{name}.{leaf}" for leaf in _leaves(value))
        elif name == "network.heads" and re.fullmatch(r"\s*\d+\s*", str(value)):
            yield LATER_HEADS
        else:
            yield name


def create(config: Config, stream: ClassStream) -> Method:
    """The untrained method of a configuration, on the CPU.

    Raises:
        LabError: an unknown method, what it refuses, a network that does not fit into memory.
    """
    cls = find(config.method)
    if cls.uses_memory and not cls.joint and config.memory.budget < stream.classes:
        raise LabError(
            f"memory.budget = {config.memory.budget} is smaller than the number of classes ({stream.classes}): "
            "every class needs at least one exemplar. Raise it, or take one without memory (finetune, ncm, ranpac)."
        )
    try:
        with chance.seeded(config.seed, "create"):
            return cls(config, stream)
    except RuntimeError as error:  # how torch says that there is no such memory
        if not any(word in str(error) for word in ("alloc", "overflow")):
            raise
        raise LabError(f"the network of {config.method} does not fit into memory: take a smaller one.") from error


# What stays the same through a stage, computed once: outputs of frozen modules for images that are not augmented.


class Cached:
    """Rows for each image, found again by its number.

    Args:
        batches: the images of a stage, plain.
        function: (B, C, H, W) uint8 -> (B, d), or several tensors (B, ...), of what does not change in the stage.
        limit: bytes.

    Raises:
        MemoryError: the rows take more than ``limit``.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        function: Callable[[Tensor], Tensor | Sequence[Tensor]],
        limit: int | None = None,
    ) -> None:
        numbers, rows, taken = [], [], 0
        for batch in batches:
            found = function(batch.images)
            parts = [found] if isinstance(found, Tensor) else list(found)
            taken += sum(part.numel() * part.element_size() for part in parts)
            if limit is not None and taken > limit:
                raise MemoryError(f"more than {limit} bytes")
            numbers.append(batch.index)
            rows.append(parts)
        together = torch.cat(numbers)
        order = together.argsort()
        self.numbers = together[order]
        self._parts = [torch.cat(column)[order] for column in zip(*rows, strict=True)]

    @classmethod
    def within(
        cls, limit: int, batches: Iterator[Batch], function: Callable[[Tensor], Tensor | Sequence[Tensor]]
    ) -> Self | None:
        """What is kept, or None where it takes more than ``limit`` bytes."""
        try:
            return cls(batches, function, limit)
        except MemoryError:
            return None

    def __call__(self, index: Tensor) -> Tensor:
        """(B,) image numbers -> their rows (B, d), of the first tensor if there are several."""
        return self.parts(index)[0]

    def parts(self, index: Tensor) -> list[Tensor]:
        """(B,) image numbers -> their rows of every tensor, (B, ...) each."""
        places = torch.searchsorted(self.numbers, index)
        return [part[places] for part in self._parts]
