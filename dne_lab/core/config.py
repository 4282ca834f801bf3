"""What a run is, as data: frozen dataclasses whose fields check themselves.

Presets (`dne_lab.core.presets`) are partial
configurations; the resolved one is saved with the run, and its hash identifies it.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import field
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import Field

from dne_lab.core.errors import LabError, brief, unknown
from dne_lab.core.schema import OneOf, build, field_names, settings

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


CLASSES, TASKS = 1_000_000, 10_000  # at most in a stream

Count = Annotated[int, Field(ge=0, le=10**9)]
FromOne = Annotated[int, Field(ge=1, le=10**9)]
Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1, examples=[0.2])]


@settings
class Data:
    """Which images, in which tasks.

    ``name`` is digits, digits100, cifar100, hf:USER/NAME, folder, npz, arrays or dataset; ``tasks`` holds the number of
    classes of each task; ``order`` is a named class order, "identity", a seed, or a comma-separated permutation (of
    some of the classes for a slice of a stream); ``size`` is the side in pixels that images of a folder are brought to;
    ``validation`` > 0 replaces the test images by that share of the training images, for choosing hyper-parameters.

    ``order`` = podnet_seed is podnet_1, podnet_2 and podnet_3 for seeds 0, 1 and 2, and so on: a run's ``order`` is the
    one that it has, and its ``order_rule`` (not given by hand) says that it follows from the seed.
    """

    name: str = "digits"
    path: str | None = None
    size: Annotated[int, Field(ge=1, le=10_000)] | None = None
    tasks: Annotated[tuple[int, ...], Field(examples=["50,10,10"])] = (4, 2, 2, 2)
    order: str = "identity"
    validation: Share = 0.0
    order_rule: Annotated[str, OneOf(tuple(ORDER_RULES))] | None = None

    def __post_init__(self) -> None:
        if not self.tasks or min(self.tasks) < 1:
            raise LabError(f"data.tasks = {self.tasks}: needs at least one task of at least one class, e.g. 50,10,10.")
        if len(self.tasks) > TASKS:
            raise LabError(f"data.tasks = {brief(self.tasks)}: are {len(self.tasks):,} tasks, at most {TASKS:,}.")
        if sum(self.tasks) > CLASSES:
            raise LabError(f"data.tasks = {brief(self.tasks)}: are {sum(self.tasks):,} classes, at most {CLASSES:,}.")


@settings
class Network:
    """The transformer: ``heads`` are those of expert 1, 2, ... and the last number repeats (12, 1 = 12, 1, 1, ...).

    ``patch`` in pixels, ``head_width`` = D, ``ratio`` = gamma, ``drop_path`` = stochastic depth at the last block
    (linear in depth). See SPATIAL and READOUTS for the two choices; ``hidden_norm`` is the LN of eq. 14 and 17.
    ``stem``: what experts embed, pixels ("patch") or the maps of a small residual network that learns task 1 first and
    is then frozen and shared ("conv"; images of 32 to 64 pixels).

    ``backbone``: "timm:NAME", a pretrained vision transformer of timm, is expert 1, frozen; its sizes, and that it is
    plain ("mhsa", "cls_token", no ``hidden_norm``), follow from it. ``backbone_weights``: a .safetensors file in place
    of timm's own weights, or "random".
    """

    patch: FromOne = 4
    depth: Annotated[int, Field(ge=1, le=10_000)] = 6
    head_width: FromOne = 32
    heads: Annotated[tuple[Annotated[int, Field(le=10**6)], ...], Field(examples=["12,1"])] = (12, 1)
    ratio: FromOne = 4
    spatial: Annotated[str, OneOf(SPATIAL)] = "gpsa"
    readout: Annotated[str, OneOf(READOUTS)] = "class_attention"
    hidden_norm: bool = False
    drop_path: Share = 0.0
    stem: Annotated[str, OneOf(STEMS)] = "patch"
    backbone: str | None = None
    backbone_weights: str | None = None

    def __post_init__(self) -> None:
        if self.backbone is not None and not re.fullmatch(r"timm:[\w.-]+", self.backbone):
            raise LabError(
                f"network.backbone = {brief(self.backbone)}: give timm:NAME with the name of a vision transformer of "
                "timm, e.g. timm:vit_base_patch16_224.augreg_in21k."
            )
        if self.backbone is not None and self.stem != "patch":
            raise LabError(f"network.stem = {self.stem}: a backbone has its own first layer. Leave one of both out.")
        if self.backbone is None and self.backbone_weights is not None:
            raise LabError("network.backbone_weights is of a backbone: set network.backbone=timm:NAME too.")
        if not self.heads or min(self.heads) < 1:
            raise LabError(f"network.heads = {self.heads}: every expert needs at least one head, e.g. 12,1.")
        if self.readout == "class_attention" and self.depth < 2:
            raise LabError(
                f"network.depth = {self.depth}: must be at least 2, because class_attention needs a block for patches "
                "before its own."
            )

    def heads_of(self, task: int) -> int:
        """Heads of the expert of task ``task`` (1, 2, ...)."""
        return self.heads[min(task, len(self.heads)) - 1]


@settings
class Loss:
    """The terms of the training objective (CE or BCE, KL to the old logits, task expertise) and their weights."""

    classification: Annotated[str, OneOf(LOSSES)] = "bce"
    reduction: Annotated[str, OneOf(REDUCTIONS)] = "element"
    distillation: Rate = 1.0
    expertise: Rate = 0.1


@settings
class Recipe:
    """How one stage is optimised. Learning rates are absolute.

    ``schedule`` milestones multiplies the rate by ``factor`` at the epochs ``milestones``; ``clip`` clamps every
    element of the gradient; ``augment`` names augmentations in order.
    """

    epochs: Count = 10
    batch: FromOne = 64
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "adamw"
    lr: Rate = 1e-3
    weight_decay: Rate = 1e-6
    momentum: Rate = 0.9
    schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    min_lr: Rate = 0.0
    warmup: Rate = 0.0
    warmup_lr: Rate = 0.0
    milestones: tuple[Annotated[int, Field(ge=0)], ...] = ()
    factor: Rate = 0.1
    clip: Annotated[float, Field(gt=0)] | None = None
    augment: tuple[Annotated[str, OneOf(AUGMENTATIONS, "augmentation")], ...] = ()

    def steps(self, images: int) -> int:
        """Batches per epoch: a smaller last one is kept, unless it holds one image (no statistics of a batch)."""
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


@settings
class Memory:
    """Exemplars: ``budget`` training images are stored in all.

    ``policy``: a class gets budget // classes seen ("shared") or budget // all classes ("fixed"). ``bytes`` is what the
    finished model (4 a parameter) and its exemplars may take together: with it the budget follows from the method's
    size (`measure.budget.exemplars`), whatever ``budget`` says.
    """

    budget: Count = 2000
    policy: Annotated[str, OneOf(POLICIES)] = "shared"
    bytes: Annotated[int, Field(ge=1, le=10**15)] | None = None


@settings
class Config:
    """One run. ``learn`` and ``tune``: recipes of the stages of these names; ``options``: switches of the method's own.

    ``stem`` trains a convolutional stem, as the first stage of task 1 (``network.stem = conv``). ``precision``: "bf16"
    runs everything in bfloat16, "bf16-stem" the stem's convolutions alone, "float32" nothing; "auto" is float32 too,
    whose products a GPU computes in TF32 (10 bits of mantissa).

    ``start`` is set by `Run.fork` (after=T): the run goes on after task T of another one, whose tasks up to T were
    learned under that one's configuration; "0123456789ab@3" is the start of its hash, and T.
    """

    method: str = "dne"
    preset: str = ""
    seed: Annotated[int, Field(ge=-(10**18), le=10**18)] = 0
    precision: Annotated[str, OneOf(PRECISIONS)] = "auto"
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
        if self.start is not None and not re.fullmatch(r"[0-9a-f]{12}@[1-9]\d*", self.start):
            raise LabError(f"start = {brief(self.start)}: is not set by hand, but by --from RUN --after T.")
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
        if self.network.backbone_weights is not None:  # the file may move; which weights it holds is checked apart
            tree["network"]["backbone_weights"] = PurePath(self.network.backbone_weights).name
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
        if LATER_HEADS in changes and "network.heads" in changes:
            first = self.network.heads[0]
            raise LabError(
                f"k = {changes[LATER_HEADS]} beside network.heads = {changes['network.heads']}: both set the heads of "
                f"later experts. Give one of them, e.g. network.heads = {first},{changes[LATER_HEADS]}."
            )
        tree = self.to_dict()
        for name, value in changes.items():
            _set(tree, name, value)
        return from_dict(tree)


# Fields that are younger than committed records, each with the value under which a run is what it was without them.
# They are left out of a configuration's identity there, so that its hash stays what an older record says.
ADDED: dict[str, Any] = {
    "data.order_rule": None,
    "memory.bytes": None,
    "network.backbone": None,
    "network.backbone_weights": None,
    "network.stem": "patch",
    "start": None,
    "stem": Config().to_dict()["stem"],
}


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    if name == LATER_HEADS:
        if not re.fullmatch(r"\s*\d{1,18}\s*", str(value)) or int(value) < 1:
            raise LabError(
                f"k = {brief(value)}: must be a whole number from 1, the heads of every expert after the first."
            )
        name, value = "network.heads", int(value)
    *parents, leaf = name.split(".")
    node: Any = tree
    for part in parents:
        if parents[0] == "options" and isinstance(node, dict):
            node.setdefault(part, {})  # a group of the method's own, which it checks when it is created
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or (leaf not in node and parents[:1] != ["options"]):
        known = field_names(Config)
        raise unknown(
            "field", name, [n for n in known if n.split(".")[0] == name.split(".")[0]] or [LATER_HEADS, *known]
        )
    if isinstance(node.get(leaf), dict):  # a group of fields
        if not isinstance(value, dict):
            known = [n for n in field_names(Config) if n.startswith(f"{name}.")]
            raise unknown("field", name, known or [f"{name}.NAME"])
        for inner, wanted in value.items():
            _set(tree, f"{name}.{inner}", wanted)
        return
    if name == "data.order":
        node["order_rule"] = None  # an order given by hand no longer follows from the seed
    if name == "network.heads" and (
        isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", value))
    ):
        value = [node[leaf][0], int(value)]  # one number: heads of every later expert
    node[leaf] = _plain(value) if parents[:1] == ["options"] and isinstance(value, str) else value


def _plain(text: str) -> Any:
    """A number, true, false or null of JSON as such, other text as it is: 0.5 and "0.5" are the same option."""
    try:
        value = json.loads(text)
        number = isinstance(value, int | float) and math.isfinite(value)
    except (ValueError, OverflowError):  # no JSON; a whole number beyond what a fraction can hold
        return text
    return value if value is None or number else text


def from_dict(tree: dict[str, Any]) -> Config:
    """Builds and checks a configuration from a nested dictionary (missing fields take their defaults)."""
    if isinstance(tree, dict) and isinstance(tree.get("stem"), dict):
        tree = tree | {"stem": ADDED["stem"] | tree["stem"]}  # its defaults are not those of any recipe
    return build(Config, tree)


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of unlike entries of two nested dictionaries, each with its two values."""
    found = []
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        mine, other = ours.get(name, "nothing"), theirs.get(name, "nothing")
        if isinstance(mine, dict) and isinstance(other, dict):
            found += differences(mine, other, f"{prefix}{name}.")
        elif mine != other:
            found.append(f"{prefix}{name} ({other} there, {mine} here)")
    return found
