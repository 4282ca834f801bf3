"""Presets: partial configurations, composed left to right; a later one wins, and ``--set`` wins over all.

There are four kinds: the images, sizes and schedule of an experiment (digits, cifar100-b50-10, ...), the switches of
the network and its loss (paper-text, authors-code; the latter are also the defaults), a schedule (paper-schedule), and
what one method brings (icarl-published: its own recipe; icarl-small: width and learning rate for small runs). Of the
last, "published" and "small" stand for each method's own (`of_method`).
"""

import copy
import functools
import textwrap
from collections.abc import Sequence
from typing import Any

from dne_lab.core.config import Config, from_dict
from dne_lab.core.errors import LabError, unknown

Tree = dict[str, Any]

# The switches in which the paper's text and the released code differ.
PAPER_TEXT: Tree = {
    "network": {"spatial": "mhsa", "readout": "cls_token", "hidden_norm": True},
    "loss": {"classification": "ce", "reduction": "batch"},
}
AUTHORS_CODE: Tree = {
    "network": {"spatial": "gpsa", "readout": "class_attention", "hidden_norm": False},
    "loss": {"classification": "bce", "reduction": "element"},
}
# 500 epochs at batch 256: lr 5e-4 x batch / 512 = 2.5e-4.
PAPER_SCHEDULE: Tree = {
    "network": {"drop_path": 0.1},
    "learn": {
        "epochs": 500,
        "batch": 256,
        "optimizer": "adamw",
        "lr": 2.5e-4,
        "weight_decay": 1e-6,
        "schedule": "cosine",
        "min_lr": 1e-5,
        "warmup": 5,
        "warmup_lr": 1e-6,
        "augment": ["crop", "flip", "randaugment"],
    },
    "tune": {
        "epochs": 20,
        "batch": 256,
        "optimizer": "adamw",
        "lr": 2.5e-5,
        "weight_decay": 1e-6,
        "schedule": "constant",
        "augment": ["crop", "flip", "randaugment"],
    },
}
PAPER_MEMORY: Tree = {"memory": {"budget": 2000, "policy": "shared"}}
PAPER_SIZES: Tree = {"network": {"patch": 4, "depth": 6, "head_width": 32, "heads": [12, 1], "ratio": 4}}


def _merge(*trees: Tree) -> Tree:
    """Nested dictionaries merged left to right."""
    out: Tree = {}
    for tree in trees:
        for name, value in tree.items():
            both = isinstance(value, dict) and isinstance(out.get(name), dict)
            out[name] = _merge(out[name], value) if both else copy.deepcopy(value)
    return out


def _steps(base: int, step: int, classes: int = 100) -> list[int]:
    return [base] + [step] * ((classes - base) // step)


def _paper(name: str, step: int, extra: Tree) -> Tree:
    data: Tree = {"data": {"name": name, "tasks": _steps(50, step), "order": "podnet_1"}}
    return _merge(PAPER_SIZES, PAPER_SCHEDULE, PAPER_MEMORY, data, extra)


DIGITS: Tree = {
    "data": {"name": "digits", "tasks": [4, 2, 2, 2]},
    "network": {"patch": 2, "depth": 3, "head_width": 32, "heads": [3, 1], "ratio": 4},
    "learn": {"epochs": 30, "batch": 32, "lr": 1e-3, "warmup": 3},
    "tune": {"epochs": 30, "batch": 32, "lr": 3e-3, "schedule": "constant"},
    "memory": {"budget": 100},
}

# Cross entropy: under the binary one, a mean over 100 classes, a joint model of this size still predicted the class
# prior after 10 epochs (loss 0.055; figures/records/digits100_bce_joint_curves.csv).
DIGITS100: Tree = {
    "data": {"name": "digits100", "tasks": _steps(50, 10)},
    "network": {"patch": 4, "depth": 3, "head_width": 32, "heads": [3, 1], "ratio": 4},
    "loss": PAPER_TEXT["loss"],
    "learn": {"epochs": 15, "batch": 64, "lr": 2e-3, "warmup": 2},
    "tune": {"epochs": 10, "batch": 64, "lr": 1e-3, "schedule": "constant"},
    "memory": {"budget": 500},
}

# The paper's CIFAR-100 protocol with a network and a schedule that a CPU core finishes in about 20 minutes a variant.
# Head width 16 keeps a finished DNE below 1.5 MB in half precision.
CIFAR100_SMALL: Tree = _merge(
    PAPER_MEMORY,
    AUTHORS_CODE,
    {
        "data": {"name": "cifar100", "tasks": _steps(50, 10), "order": "podnet_1"},
        "network": {"patch": 4, "depth": 4, "head_width": 16, "heads": [4, 1], "ratio": 4},
        "learn": {"epochs": 12, "batch": 128, "lr": 2e-3, "warmup": 1, "augment": ["crop", "flip"]},
        "tune": {"epochs": 10, "batch": 128, "lr": 1e-3, "schedule": "constant"},
    },
)

# The paper's CIFAR-100 protocol with a convolutional stem, so that a network which a CPU core trains in an hour has
# learned something: cross entropy, 30 epochs for the stem, 12 per task in small batches (1,300 steps for a later
# expert), a class order for each of three seeds.
CIFAR100_MEDIUM: Tree = _merge(
    PAPER_MEMORY,
    AUTHORS_CODE,
    {
        "precision": "bf16-stem",
        "data": {"name": "cifar100", "tasks": _steps(50, 10), "order": "podnet_seed"},
        "network": {"stem": "conv", "patch": 4, "depth": 4, "head_width": 16, "heads": [4, 1], "ratio": 4},
        "loss": PAPER_TEXT["loss"],
        "stem": {"epochs": 30},
        "learn": {"epochs": 12, "batch": 64, "lr": 2e-3, "warmup": 1, "augment": ["crop", "flip"]},
        "tune": {"epochs": 10, "batch": 64, "lr": 1e-3, "schedule": "constant"},
    },
)

# The recipes that iCaRL, PODNet, DyTox, DER and FOSTER were published with, and that of DER without its reset for joint
# training, fine-tuning and replay on a residual network. Every field is given: they are laid over any experiment.
PLAIN: Tree = {"momentum": 0.9, "min_lr": 0.0, "warmup": 0, "warmup_lr": 0.0, "milestones": [], "factor": 0.1}
SGD: Tree = PLAIN | {"optimizer": "sgd", "batch": 128, "clip": None, "augment": ["crop", "flip", "brightness"]}


def _sgd(epochs: int, lr: float, weight_decay: float, schedule: str = "milestones", **fields: Any) -> Tree:
    return SGD | {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "schedule": schedule} | fields


PUBLISHED: dict[str, Tree] = {
    "icarl": {
        "learn": _sgd(200, 0.1, 5e-4, milestones=[60, 120, 170]),
        "options": {"later": {"epochs": 170, "weight_decay": 2e-4, "milestones": [80, 120]}},
    },
    "icarl-bce": {
        "learn": _sgd(70, 2.0, 5e-5, milestones=[49, 63], factor=0.2),
        "options": {"loss": "bce"},
    },
    "podnet": {
        "learn": _sgd(160, 0.1, 5e-4, "cosine", clip=5.0),
        "tune": _sgd(20, 0.05, 5e-4, "constant", clip=5.0),
        "memory": {"budget": 2000, "policy": "fixed"},
        "options": {"loss": "code"},
    },
    "der": {
        "learn": _sgd(170, 0.1, 5e-4, warmup=10, milestones=[110, 130]),
        "tune": _sgd(30, 0.1, 5e-4, milestones=[15]),
        "memory": {"budget": 2000, "policy": "fixed"},
    },
    "foster": {
        "learn": _sgd(200, 0.1, 5e-4, "cosine", augment=["crop", "flip", "brightness", "autoaugment", "cutout"]),
        "memory": {"budget": 2000, "policy": "fixed"},
        "options": {"later": {"epochs": 170}, "compress": {"epochs": 130, "weight_decay": 0.0}},
    },
    "dytox": _merge(AUTHORS_CODE, PAPER_SCHEDULE, PAPER_MEMORY, {"options": {"shuffle_tune": False}}),
    "resnet": {
        "learn": _sgd(170, 0.1, 5e-4, warmup=10, milestones=[110, 130]),
        "tune": _sgd(30, 0.1, 5e-4, milestones=[15]),
    },
}

LARGE: Tree = {"options": {"network": "resnet18-224"}}  # the stem and pooling for images of 224 pixels

# For digits100 and cifar100-small: residual networks that start at 16 channels.
SMALL_SGD: Tree = {"optimizer": "sgd", "weight_decay": 5e-4}
SMALL: dict[str, Tree] = {
    "icarl": {"options": {"width": 16}, "learn": SMALL_SGD | {"lr": 0.2}},
    "podnet": {
        "options": {"width": 16},
        "learn": SMALL_SGD | {"lr": 0.2, "clip": 5.0},
        "tune": SMALL_SGD | {"lr": 0.05, "clip": 5.0},
    },
    "dytox": {"learn": {"lr": 4e-3}, "tune": {"lr": 3e-3}},
    "der": {
        "options": {"width": 16},
        "learn": SMALL_SGD | {"lr": 0.2},
        "tune": SMALL_SGD | {"lr": 0.5},
    },
    "foster": {
        # 0.5: nearly even weights; with the published 0.97 5 to 10 exemplars of a class outweighed 60 new images
        "options": {"width": 16, "compress_beta": 0.5, "compress": {"weight_decay": 0.0}},
        "learn": SMALL_SGD | {"lr": 0.2},
    },
    "resnet": {"options": {"width": 16}, "learn": SMALL_SGD | {"lr": 0.2}, "tune": SMALL_SGD | {"lr": 0.05}},
}

PRESETS: dict[str, Tree] = {
    "paper-text": PAPER_TEXT,
    "authors-code": AUTHORS_CODE,
    "paper-schedule": PAPER_SCHEDULE,
    "digits": DIGITS,
    "digits100": DIGITS100,
    **{f"digits100-b50-{step}": _merge(DIGITS100, {"data": {"tasks": _steps(50, step)}}) for step in (2, 5, 10, 25)},
    "cifar100-small": CIFAR100_SMALL,
    "cifar100-medium": CIFAR100_MEDIUM,
    **{f"cifar100-b50-{step}": _paper("cifar100", step, {}) for step in (2, 5, 10, 25)},
    "imagenet100-b50-10": _paper("folder", 10, {"data": {"size": 224}, "network": {"patch": 16}}),
    "imagenet100-b50-10-patch32": _paper("folder", 10, {"data": {"size": 224}, "network": {"patch": 32}}),
    **{f"{name}-published": tree for name, tree in PUBLISHED.items()},
    # FOSTER's value for steps of 2 classes, and what differs on ImageNet-100, to be laid over a published recipe
    "foster-ns2": {"options": {"boost_beta": 0.95}},
    "resnet-imagenet": LARGE,
    "der-imagenet": _merge(LARGE, {"options": {"temperature": 1.0}}),
    "foster-imagenet": _merge(LARGE, {"options": {"boost_beta": 0.97}, "learn": {"batch": 256}}),
    **{f"{method}-small": tree for method, tree in SMALL.items()},
}

KINDS = ("published", "small")
ABOUT = {
    "experiment": "Experiments (images, tasks, sizes, schedule, memory); the others are laid over one of them:",
    "switches": "Where the paper's text and the authors' code differ (authors-code if none is named):",
    "schedule": "The paper's schedule:",
    "method": "Of one method ('small', 'published': each method's own, or nothing where it has none):",
}


def kind_of(name: str) -> str:
    """Which of the four kinds a preset is: a key of ABOUT."""
    if name in ("paper-text", "authors-code"):
        return "switches"
    if name == "paper-schedule":
        return "schedule"
    return "experiment" if "data" in PRESETS[name] else "method"


def of_method(presets: str, recipes: Sequence[str]) -> str:
    """``presets`` with the name of a method in place of "published" and "small": ``digits100,icarl-small``.

    Args:
        recipes: of the method, then of those it derives from: the first one that has such a preset is taken, and where
            none has, nothing takes its place.
    """
    found = []
    for name in (part.strip() for part in presets.split(",")):
        own = [f"{recipe}-{name}" for recipe in recipes if f"{recipe}-{name}" in PRESETS]
        found += own[:1] if name in KINDS else [name]
    return ",".join(found)


def resolve(presets: str | Sequence[str], changes: Tree | None = None, **fields: Any) -> Config:
    """The configuration of presets composed left to right, then ``fields`` (method, seed), then dotted ``changes``.

    Args:
        presets: names, as a list or separated by commas.
        changes: e.g. ``{"learn.epochs": 5, "network.heads": "12,2"}``.

    Raises:
        LabError: an unknown preset or field, a wrong value.
    """
    names = [n.strip() for n in presets.split(",")] if isinstance(presets, str) else list(presets)
    names = [n for n in names if n]
    for name in names:
        if name in KINDS:
            raise LabError(f"preset {name!r} stands for a method's own, such as icarl-{name}: name that one here.")
        if name not in PRESETS:
            raise unknown("preset", name, [*PRESETS, *KINDS])
    tree = _merge(*(PRESETS[name] for name in names), {"preset": ",".join(names)}, fields)
    return from_dict(tree).with_changes(changes or {})


def text(chosen: dict[str, Tree]) -> str:
    """Presets with the fields that each sets, as written after ``--set``; above all of them, what kinds there are."""

    def settings_of(tree: Tree, prefix: str) -> list[str]:
        lines = []
        for name, value in tree.items():
            if isinstance(value, dict):
                lines += settings_of(value, f"{prefix}{name}.")
            else:
                shown = ",".join(map(str, value)) if isinstance(value, list) else str(value).lower()
                lines.append(f"{prefix}{name}={shown or 'none'}")
        return lines

    parts = []
    for name, tree in chosen.items():
        words = textwrap.wrap(" ".join(settings_of(tree, "")), 96, break_on_hyphens=False, break_long_words=False)
        parts.append("\n".join([name, *(f"    {line}" for line in words)]))
    if len(chosen) < len(PRESETS):
        return "\n".join(parts)
    overview = []
    for about in ABOUT.values():
        names = ", ".join(name for name in chosen if ABOUT[kind_of(name)] == about)
        overview += [about, textwrap.indent(textwrap.fill(names, 96, break_on_hyphens=False), "    ")] if names else []
    return "\n".join([*overview, "", *parts])


def names_dataset(presets: str) -> str | None:
    """The data set that the last of these presets with one names, or None if they are switches only."""
    found = [PRESETS[n]["data"]["name"] for n in presets.split(",") if "data" in PRESETS.get(n, {})]
    return found[-1] if found else None


@functools.cache
def schedule(presets: str) -> Tree:
    """How long and at what rates the presets of an experiment train: not what one method brings. Not to be changed."""
    names = [name for name in presets.split(",") if "data" in PRESETS.get(name, {}) or name == "paper-schedule"]
    tree = _merge(*(PRESETS[name] for name in names))
    return {stage: tree.get(stage) for stage in ("learn", "tune")}


@functools.cache
def epochs_of(presets: str) -> int | None:
    """The epochs of a task's first stage that the presets ask for; None where one of them is unknown."""
    names = presets.split(",")
    return resolve(names).learn.epochs if all(name in PRESETS for name in names) else None


def for_stream(config: Config, data: Any) -> Config:
    """``config`` with the stream's own description of its data.

    Raises:
        LabError: a preset that names another data set than the stream.
    """
    named = names_dataset(config.preset)
    if named is not None and named != data.name:
        raise LabError(
            f"preset {config.preset!r} is for {named!r}, but the stream is {data.name!r}. Take a preset for that data, "
            "or one of the switches alone: authors-code, paper-text, paper-schedule."
        )
    tree = config.to_dict()
    tree["data"] = data.__dict__ if not isinstance(data, dict) else data
    return from_dict(tree)
