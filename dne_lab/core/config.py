"""What a run is, as data: frozen dataclasses whose fields check themselves.

This is the bottom layer: it imports no other part of the package. Presets (`dne_lab.core.presets`) are partial
configurations; the resolved one is saved with the run, and its hash identifies it.
"""

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dne_lab.core.errors import LabError, unknown

# From plain data to checked dataclasses: nested dictionaries and command-line text in, errors that name the field.


def field_names(cls: type, prefix: str = "") -> list[str]:
    """All dotted names of the simple fields of a nested dataclass; "options.NAME" for a dictionary called options."""
    found: list[str] = []
    for f in dataclasses.fields(cls):
        kind = typing.get_type_hints(cls)[f.name]
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        name = f"{prefix}{f.name}.NAME" if typing.get_origin(kind) is dict else prefix + f.name
        found += field_names(kind, f"{prefix}{f.name}.") if nested else [name]
    return found


def build(cls: type, tree: dict[str, Any], prefix: str = "") -> Any:
    """Builds a dataclass from a nested dictionary; missing fields take their defaults.

    Raises:
        LabError: an unknown field, a value of the wrong type, or what the dataclass itself refuses.
    """
    if not isinstance(tree, dict):
        allowed = ", ".join(field_names(cls, prefix))
        raise LabError(f"{prefix.rstrip('.') or 'configuration'} = {tree!r}: is a group of fields: {allowed}.")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for name, value in tree.items():
        if not known:
            raise LabError(f"unknown field {prefix + name!r}: {prefix.rstrip('.')} has no fields here. Leave it out.")
        if name not in known:
            raise unknown("field", prefix + name, [prefix + n for n in known])
        kind = hints[name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            values[name] = build(kind, value, f"{prefix}{name}.")
        else:
            values[name] = _convert(prefix + name, value, kind)
    try:
        return cls(**values)
    except LabError as error:
        if prefix and prefix not in str(error):
            raise LabError(f"{prefix.rstrip('.')}: {error}") from None
        raise


_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LISTS = {int: "a list of whole numbers, e.g. 50,10,10", str: "a list of names, e.g. crop,flip"}


def _convert(name: str, value: Any, kind: Any) -> Any:
    """``value`` (perhaps text from the command line) as ``kind``, or an error that names the field."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "")):
            return None
        return _convert(name, value, next(a for a in args if a is not type(None)))
    try:
        if origin is tuple:
            parts = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else value
            parts = parts if isinstance(parts, (list, tuple)) else [parts]
            return tuple(_convert(name, p, args[0]) for p in parts)
        if origin is dict or kind is dict:
            if not isinstance(value, dict):
                raise ValueError
            return dict(value)
        if kind is bool:
            table = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            return value if isinstance(value, bool) else table[str(value).strip().lower()]
        if kind is int:
            if isinstance(value, float) and not value.is_integer():
                raise ValueError
            return int(value) if not isinstance(value, bool) else int("not a number")
        if kind is float:
            return float(value) if not isinstance(value, bool) else float("not a number")
        if kind is str:
            return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).strip()
    except (ValueError, KeyError, TypeError) as error:
        wanted = _LISTS.get(args[0], "a list of numbers") if origin is tuple else _WANTED.get(kind, "a dictionary")
        raise LabError(f"{name} = {value!r}: must be {wanted}.") from error
    raise TypeError(f"{name}: a field of type {kind} cannot be configured")


SPATIAL = ("mhsa", "gpsa")
READOUTS = ("cls_token", "class_attention")
STEMS = ("patch", "conv")
LOSSES = ("ce", "bce")
REDUCTIONS = ("batch", "element")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine", "milestones")
AUGMENTATIONS = ("crop", "flip", "affine", "randaugment", "autoaugment", "cutout", "brightness")
POLICIES = ("shared", "fixed")
PRECISIONS = ("float32", "bf16", "bf16-stem", "auto")

# What tables call the heads of every expert after the first; the field is network.heads.
LATER_HEADS = "k"

# Class orders that follow from the seed, so that the seeds of a protocol also vary the order.
ORDER_RULES: dict[str, Callable[[int], str]] = {"podnet_seed": lambda seed: f"podnet_{seed % 3 + 1}"}


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise unknown(name, value, allowed)


def _at_least(name: str, value: float, low: float) -> None:
    if not low <= value < math.inf:  # also false for NaN
        raise LabError(f"{name} = {value}: must be at least {low}{', and finite' if value == math.inf else ''}.")


@dataclass(frozen=True)
class Data:
    """Which images, in which tasks.

    ``name`` is digits, digits100, cifar100, folder, npz or arrays; ``tasks`` holds the number of classes of each task;
    ``order`` is a named class order, "identity", a seed, or a comma-separated permutation (of some of the classes for a
    slice of a stream); ``size`` is the side in pixels that images of a folder are brought to; ``validation`` > 0
    replaces the test images by that share of the training images, for choosing hyper-parameters.

    ``order`` = podnet_seed is podnet_1, podnet_2 and podnet_3 for seeds 0, 1 and 2, and so on: a run's ``order`` is the
    one that it has, and its ``order_rule`` (not given by hand) says that it follows from the seed.
    """

    name: str = "digits"
    path: str | None = None
    size: int | None = None
    tasks: tuple[int, ...] = (4, 2, 2, 2)
    order: str = "identity"
    validation: float = 0.0
    order_rule: str | None = None

    def __post_init__(self) -> None:
        if self.order_rule is not None:
            _choice("data.order_rule", self.order_rule, tuple(ORDER_RULES))
        if not self.tasks or min(self.tasks) < 1:
            raise LabError(f"data.tasks = {self.tasks}: needs at least one task of at least one class, e.g. 50,10,10.")
        if not 0 <= self.validation < 1:
            raise LabError(f"data.validation = {self.validation}: must be in [0, 1), e.g. 0.2.")
        if self.size is not None:
            _at_least("data.size", self.size, 1)


@dataclass(frozen=True)
class Network:
    """The transformer: ``heads`` are those of expert 1, 2, ... and the last number repeats (12, 1 = 12, 1, 1, ...).

    ``patch`` in pixels, ``head_width`` = D, ``ratio`` = gamma, ``drop_path`` = stochastic depth at the last block
    (linear in depth). See SPATIAL and READOUTS for the two choices; ``hidden_norm`` is the LN of eq. 14 and 17.
    ``stem``: what experts embed, pixels ("patch") or the maps of a small residual network that learns task 1 first and
    is then frozen and shared ("conv"; images of 32 to 64 pixels).
    """

    patch: int = 4
    depth: int = 6
    head_width: int = 32
    heads: tuple[int, ...] = (12, 1)
    ratio: int = 4
    spatial: str = "gpsa"
    readout: str = "class_attention"
    hidden_norm: bool = False
    drop_path: float = 0.0
    stem: str = "patch"

    def __post_init__(self) -> None:
        for name in ("patch", "depth", "head_width", "ratio"):
            _at_least(f"network.{name}", getattr(self, name), 1)
        if not self.heads or min(self.heads) < 1:
            raise LabError(f"network.heads = {self.heads}: every expert needs at least one head, e.g. 12,1.")
        _choice("network.spatial", self.spatial, SPATIAL)
        _choice("network.readout", self.readout, READOUTS)
        _choice("network.stem", self.stem, STEMS)
        if self.readout == "class_attention":
            _at_least("network.depth (class_attention needs a block for patches before its own)", self.depth, 2)
        if not 0 <= self.drop_path < 1:
            raise LabError(f"network.drop_path = {self.drop_path}: must be in [0, 1).")

    def heads_of(self, task: int) -> int:
        """Heads of the expert of task ``task`` (1, 2, ...)."""
        return self.heads[min(task, len(self.heads)) - 1]


@dataclass(frozen=True)
class Loss:
    """The terms of the training objective (CE or BCE, KL to the old logits, task expertise) and their weights."""

    classification: str = "bce"
    reduction: str = "element"
    distillation: float = 1.0
    expertise: float = 0.1

    def __post_init__(self) -> None:
        _choice("loss.classification", self.classification, LOSSES)
        _choice("loss.reduction", self.reduction, REDUCTIONS)
        _at_least("loss.distillation", self.distillation, 0)
        _at_least("loss.expertise", self.expertise, 0)


@dataclass(frozen=True)
class Recipe:
    """How one stage is optimised. Learning rates are absolute.

    ``schedule`` milestones multiplies the rate by ``factor`` at the epochs ``milestones``; ``clip`` clamps every
    element of the gradient; ``augment`` names augmentations in order.
    """

    epochs: int = 10
    batch: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-6
    momentum: float = 0.9
    schedule: str = "cosine"
    min_lr: float = 0.0
    warmup: float = 0.0
    warmup_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    clip: float | None = None
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 0)
        _at_least("batch", self.batch, 1)
        _choice("optimizer", self.optimizer, OPTIMIZERS)
        _choice("schedule", self.schedule, SCHEDULES)
        for name in ("lr", "weight_decay", "momentum", "min_lr", "warmup", "warmup_lr", "factor"):
            _at_least(name, getattr(self, name), 0)
        if any(epoch < 0 for epoch in self.milestones):
            raise LabError(f"milestones = {self.milestones}: are epochs of the stage, from 0 on.")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise LabError(f"clip = {self.clip}: must be above 0, or none.")
        for name in self.augment:
            _choice("augmentation", name, AUGMENTATIONS)

    def steps(self, images: int) -> int:
        """Batches an epoch: a smaller last one is kept, unless it holds one image (no statistics of a batch)."""
        full, rest = divmod(images, self.batch)
        return full + (rest > 1 or (rest == 1 and full == 0))

    def rate(self, epoch: float) -> float:
        """The learning rate at a moment, in epochs since the stage began (fractions count)."""
        if epoch < self.warmup:
            return self.warmup_lr + (self.lr - self.warmup_lr) * epoch / self.warmup
        if self.schedule == "milestones":
            return self.lr * self.factor ** sum(epoch >= at for at in self.milestones)
        if self.schedule == "cosine" and self.epochs:
            return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / self.epochs)))
        return self.lr


@dataclass(frozen=True)
class Memory:
    """Exemplars: ``budget`` training images are stored in all.

    ``policy``: a class gets budget // classes seen ("shared") or budget // all classes ("fixed"). ``bytes`` is what the
    finished model (4 a parameter) and its exemplars may take together: with it the budget follows from the method's
    size (`measure.budget.exemplars`), whatever ``budget`` says.
    """

    budget: int = 2000
    policy: str = "shared"
    bytes: int | None = None

    def __post_init__(self) -> None:
        _at_least("memory.budget", self.budget, 0)
        if self.bytes is not None:
            _at_least("memory.bytes", self.bytes, 1)
        _choice("memory.policy", self.policy, POLICIES)


@dataclass(frozen=True)
class Config:
    """One run. ``learn`` is stage 1, ``tune`` stage 2, ``options`` the switches of the method's own.

    ``stem`` trains a convolutional stem before task 1 (``network.stem = conv``). ``precision``: "bf16" runs everything
    in bfloat16, "bf16-stem" the stem's convolutions alone, "auto" everything on a GPU and nothing on a CPU.

    ``start`` is set by `Run.fork` (after=T): the run goes on behind task T of another one, whose tasks up to T were
    learned under that one's configuration; "0123456789ab@3" is the start of its hash, and T.
    """

    method: str = "dne"
    preset: str = ""
    seed: int = 0
    precision: str = "auto"
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    loss: Loss = field(default_factory=Loss)
    learn: Recipe = field(default_factory=Recipe)
    tune: Recipe = field(default_factory=Recipe)
    memory: Memory = field(default_factory=Memory)
    options: dict[str, Any] = field(default_factory=dict)
    stem: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=15, batch=128, optimizer="sgd", lr=0.2, weight_decay=5e-4, warmup=1.0, augment=("crop", "flip")
        )
    )
    start: str | None = None

    def __post_init__(self) -> None:
        _choice("precision", self.precision, PRECISIONS)
        if self.start is not None and not re.fullmatch(r"[0-9a-f]{12}@[1-9]\d*", self.start):
            raise LabError(f"start = {self.start}: is not set by hand, but by --from RUN --after T.")
        rule = self.data.order if self.data.order in ORDER_RULES else self.data.order_rule
        if rule is not None:
            data = dataclasses.replace(self.data, order=ORDER_RULES[rule](self.seed), order_rule=rule)
            object.__setattr__(self, "data", data)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able nested dictionary; `from_dict` is its inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def identity(self) -> dict[str, Any]:
        """What has to be equal for two runs to be the same: `to_dict` without the place of the data, which may move,
        and without younger fields that change nothing (`ADDED`)."""
        tree = self.to_dict()
        del tree["data"]["path"]
        if self.memory.bytes is not None:
            del tree["memory"]["budget"]  # follows from it
        for name, before in ADDED.items():
            *parents, leaf = name.split(".")
            group = tree[parents[0]] if parents else tree
            if group.get(leaf) == before:
                del group[leaf]
        return tree

    @property
    def sha256(self) -> str:
        """Hash of the configuration's identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def with_changes(self, changes: dict[str, Any]) -> "Config":
        """A copy with dotted fields set, e.g. ``{"learn.epochs": 5, "network.heads": "12,2"}``; strings are parsed.

        ``k`` is the number of heads of every expert after the first, as is a single number for ``network.heads``.
        ``{"learn": {"epochs": 5}}`` works too.

        Raises:
            LabError: an unknown field, a wrong value.
        """
        tree = self.to_dict()
        for name, value in changes.items():
            _set(tree, name, value)
        return from_dict(tree)


# Fields that are younger than committed records, each with the value under which a run is what it was without them.
# They are left out of a configuration's identity there, so that its hash stays what an older record says.
ADDED: dict[str, Any] = {
    "data.order_rule": None,
    "memory.bytes": None,
    "network.stem": "patch",
    "start": None,
    "stem": Config().to_dict()["stem"],
}


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    if name == LATER_HEADS:
        if not re.fullmatch(r"\s*\d+\s*", str(value)) or int(value) < 1:
            raise LabError(f"k = {value!r}: must be a whole number from 1, the heads of every expert after the first.")
        name, value = "network.heads", int(value)
    *parents, leaf = name.split(".")
    node: Any = tree
    for part in parents:
        if parents[0] == "options" and isinstance(node, dict):
            node.setdefault(part, {})  # a group of the method's own, which it checks when it is created
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or (leaf not in node and parents[:1] != ["options"]):
        known = field_names(Config)
        raise unknown("field", name, [n for n in known if n.split(".")[0] == name.split(".")[0]] or known)
    if isinstance(node.get(leaf), dict):  # a group of fields
        if not isinstance(value, dict):
            known = [n for n in field_names(Config) if n.startswith(f"{name}.")]
            raise unknown("field", name, known or [f"{name}.NAME"])
        for inner, wanted in value.items():
            _set(tree, f"{name}.{inner}", wanted)
        return
    if name == "data.order":
        node["order_rule"] = None  # an order given by hand no longer follows from the seed
    if name == "network.heads" and (isinstance(value, int) or (isinstance(value, str) and value.strip().isdigit())):
        value = [node[leaf][0], int(value)]  # one number: heads of every later expert
    node[leaf] = _plain(value) if parents[:1] == ["options"] and isinstance(value, str) else value


def _plain(text: str) -> Any:
    """A number, true, false or null of JSON as such, other text as it is: 0.5 and "0.5" are the same option."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or (isinstance(value, int | float) and math.isfinite(value)) else text


def from_dict(tree: dict[str, Any]) -> Config:
    """Builds and checks a configuration from a nested dictionary (missing fields take their defaults)."""
    built = build(Config, tree)
    assert isinstance(built, Config)
    return built
