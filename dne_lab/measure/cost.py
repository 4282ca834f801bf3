"""What a model costs, without training it: FLOPs of one image by counting the operations that run, and parameters."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from dne_lab.core import chance
from dne_lab.core.config import Config, Data
from dne_lab.core.errors import LabError
from dne_lab.data.datasets import NAMED
from dne_lab.data.source import Source
from dne_lab.data.stream import ClassStream
from dne_lab.measure import cost_formula
from dne_lab.methods import base
from dne_lab.methods.expansion import Expansion
from dne_lab.methods.finetune import FineTuning
from dne_lab.models import products
from dne_lab.models.backbone import trunk
from dne_lab.models.stem import ConvStem
from dne_lab.models.variants import Variant


class _Blank(Source):
    """Classes, a size, perhaps a number of training images per class, without the images: enough to build a model."""

    def __init__(self, names: Sequence[str], shape: tuple[int, int, int], each: int) -> None:
        self.each = each
        self.name, self.classes, self.shape = "blank", tuple(names), shape
        self.mean = self.std = (0.5,) * shape[0]

    def labels(self, split: str) -> np.ndarray:
        """Those of training images, of which there may be none."""
        return np.arange(len(self.classes), dtype=np.int64).repeat(self.each if split == "train" else 0)

    def images(self, split: str, index: Tensor) -> Tensor:
        """Nothing to see."""
        return torch.zeros((len(index), *self.shape), dtype=torch.uint8)


def blank_stream(
    tasks: Sequence[int], shape: tuple[int, int, int] = (3, 32, 32), each: int = 0, names: Sequence[str] = ()
) -> ClassStream:
    """A stream of tasks without images (default: CIFAR's geometry), for models that are only counted or timed.

    ``each``: how many training images each class is said to have; ``names``: of the classes, by default their numbers.
    """
    return ClassStream(_Blank(names or [str(number) for number in range(sum(tasks))], shape, each), tasks)


def shape_of(data: Data, backbone: str | None = None) -> tuple[int, int, int]:
    """(C, H, W) of the images that a configuration names, or that its backbone takes, without opening them."""
    if data.name in NAMED and data.size is not None:
        raise LabError(
            f"data.size = {data.size}: {data.name} has images of one size. Add --set data.name=folder for other images."
        )
    if backbone is not None and (data.name in NAMED or data.size is None):
        return trunk(backbone).shape
    if data.name in NAMED:
        return NAMED[data.name].shape
    if data.size is None:
        raise LabError(f"data.name = {data.name} has images of unknown size: add --set data.size=PIXELS.")
    return (3, data.size, data.size)


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: object, **named: object) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


# Torch before 2.15 has no formula for the fused attention of a CPU and would silently count it as nothing.
FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention, **flop_registry}


# What a method's cost depends on: one that leaves them as they are costs what the formula says, whatever its variant.
COSTS = ("__init__", "stages", "enter", "grow", "tune", "compute", "compute_literally", "network_to_keep")

# Matrix products, and where in their arguments the two matrices begin.
PRODUCTS = {torch.ops.aten.mm: 0, torch.ops.aten.bmm: 0, torch.ops.aten.addmm: 1, torch.ops.aten.baddbmm: 1}


class _Counter(TorchDispatchMode):
    """Adds up torch's own FLOP formulas: what FlopCounterMode counts (a test), without its bookkeeping by module.

    A literal DNE of 26 experts runs two million operations here, so each may take little beside itself: products, most
    of them, are counted from their own shapes, not through torch's search of nested arguments for tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard against it costs as much as the counting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = func._overloadpacket
        if operator in PRODUCTS:
            first, second = args[PRODUCTS[operator] :][:2]
            self.total += 2 * first.numel() * second.shape[-1]
        elif operator in FORMULAS:
            self.total += FORMULAS[operator](*args, **(kwargs or {}), out_val=out)
        return out


def flops(function: Callable[[Tensor], object], shape: Sequence[int], device: torch.device | str = "cpu") -> int:
    """FLOPs of one image, 2 x multiply-accumulate: the count for two images minus that for one.

    So products of weights alone, which do not grow with the batch, are not counted. Norms and activations count 0.

    Args:
        function: takes (B, C, H, W) uint8 images.
        shape: (C, H, W).
        device: where the weights are; on "meta" nothing is computed, only counted.
    """
    counts = []
    with torch.no_grad(), products.by(products.MKL):  # torch has no formula for oneDNN's
        # Products that are prepared once are prepared by the first call.
        function(torch.zeros((1, *shape), dtype=torch.uint8, device=device))
        for batch in (1, 2):
            with _Counter() as counter:
                function(torch.zeros((batch, *shape), dtype=torch.uint8, device=device))
            counts.append(counter.total)
    return counts[1] - counts[0]


def counted(action: Callable[[], object]) -> int:
    """FLOPs of everything that ``action`` computes, its backward pass too; with gradients as it asks for them."""
    with products.by(products.MKL), _Counter() as counter:
        action()
    return counter.total


def count(module: nn.Module, trainable: bool = False) -> int:
    """Number of parameters, or of those that train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def of_task(method: base.Method) -> dict[str, Any]:
    """Cost of a method as it stands: literal and spent FLOPs of one image, parameters."""
    trainable = count(method, trainable=True)
    method.eval()
    shape, device = method.stream.shape, next(method.parameters()).device
    spent = flops(method.compute, shape, device)
    as_it_runs = type(method).compute_literally is base.Method.compute_literally  # the same function
    literal = spent if as_it_runs else flops(method.compute_literally, shape, device)
    return {
        "flops_literal": literal,
        "flops_spent": spent,
        "macs_spent": spent // 2,
        "params_total": sum(count(part) for part in method.network_to_keep()),
        "params_trainable": trainable,
    }


def of_tasks(config: Config, stream: ClassStream) -> list[dict[str, Any]]:
    """Cost after every task of a stream: by formula where there is one, else each model is built and counted.

    Returns:
        One dictionary per task: task, classes, flops_literal, flops_spent, macs_spent, params_total (of the model that
        is kept: without what only training needs), params_added, params_trainable (in the task's first stage).
    """
    return _with_formula(config, stream) or count_tasks(config, stream)


def of_last_task(config: Config, stream: ClassStream) -> dict[str, Any]:
    """The last row of `of_tasks`, without what only the others need."""
    return (_with_formula(config, stream, len(stream)) or count_tasks(config, stream, len(stream)))[-1]


def _with_formula(config: Config, stream: ClassStream, since: int = 1) -> list[dict[str, Any]]:
    """`of_tasks`, from a task on, of a method whose cost has a formula; nothing for others."""
    cls = base.find(config.method)
    for known, grows in ((Expansion, True), (FineTuning, False)):
        if issubclass(cls, known) and all(getattr(cls, name) is getattr(known, name) for name in COSTS):
            return _by_formula(config, stream, cls.variant_of(config), grows, since)
    return []


def refuse_too_large(config: Config, stream: ClassStream, memory: int) -> None:
    """Raises a `LabError` if a network will not fit into ``memory`` bytes at some task: 4 a parameter, and 12 more
    (gradient, two moments) for each that trains. Of methods without a formula the network of task 1 is looked at, and
    those of a user's own are not checked."""
    heads = ",".join(map(str, config.network.heads))
    what = f"network.heads = {heads}, network.head_width = {config.network.head_width}"
    advice = "Take fewer heads or narrower ones."
    rows = _with_formula(config, stream)
    if not rows and _ours(config.method):
        rows = [_without_memory(config, stream)]
        if "width" in config.options:
            what, advice = f"options.width = {config.options['width']}", "Take a smaller width."
    for row in rows:
        needed = 4 * row["params_total"] + 12 * row["params_trainable"]
        if needed > memory:
            raise LabError(
                f"{what}: the network of task {row['task']} needs {needed / 1e9:,.0f} GB to train and the machine has "
                f"{memory / 1e9:,.0f} GB. {advice}"
            )


def _ours(method: str) -> bool:
    return base.find(method).__module__.startswith("dne_lab.")


def _unfilled(method: str) -> AbstractContextManager[object]:
    """Within it, networks of our methods are made without memory for their values, however large they are."""
    return torch.device("meta") if _ours(method) else nullcontext()


def _without_memory(config: Config, stream: ClassStream) -> dict[str, int]:
    """Parameters of the network that learns task 1."""
    with _unfilled(config.method), chance.seeded(0, "cost"):
        method = base.create(config, stream)
        task = stream.task(1)
        method.enter(task, method.stages(task)[0])
    return {"task": 1, "params_total": count(method), "params_trainable": count(method, trainable=True)}


MOST_COUNTED = 100  # tasks, whose networks are built and run one after the other


def refuse_uncountable(config: Config, stream: ClassStream) -> None:
    """Raises a `LabError` where counting a method without a formula would take minutes, or more memory than there is.

    Learning it is another matter: there, each task costs far more than counting it.
    """
    if len(stream) > MOST_COUNTED and not _with_formula(config, stream):
        raise LabError(
            f"{config.method} is counted by building the network of every task: for up to {MOST_COUNTED} tasks, not "
            f"{len(stream):,}. Give the first ones, or fewer and larger ones."
        )
    if not _with_formula(config, stream):
        refuse_too_large(config, stream, machine_memory())


def machine_memory() -> int:
    """Bytes of memory here; where the system does not say, more than any has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return 2**63


@functools.lru_cache(maxsize=16)
def _stem_flops(shape: tuple[int, int, int], patch: int) -> int:
    """FLOPs of a convolutional stem for one image."""
    return flops(ConvStem(shape, patch).eval(), shape)


def _by_formula(config: Config, stream: ClassStream, variant: Variant, grows: bool, since: int) -> list[dict[str, Any]]:
    network, shape = config.network, stream.shape
    seen, stem = cost_formula.pixels(network, shape), None
    if network.stem == "conv":
        stem = ConvStem(shape, network.patch)
        seen = seen._replace(values=stem.patch_values, before=_stem_flops(shape, network.patch))
    rows = cost_formula.rows(network, variant, stream.tasks, seen, grows, since)
    if stem is not None:
        permanent = count(stem)
        if rows[0]["task"] == 1:
            stem.begin(config.data.tasks[0])
            rows[0]["params_trainable"] = count(stem, trainable=True)
            rows[0]["params_added"] += permanent
        for row in rows:
            row["params_total"] += permanent
    return rows


def count_tasks(config: Config, stream: ClassStream, since: int = 1) -> list[dict[str, Any]]:
    """`of_tasks`, from a task on, with the model of every task built, run on two images and counted: what the formula
    must equal. With a backbone nothing is computed, only counted: its weights need not be there."""
    with _unfilled(config.method) if config.network.backbone is not None else nullcontext():
        return _counted_tasks(config, stream, since)


def _counted_tasks(config: Config, stream: ClassStream, since: int) -> list[dict[str, Any]]:
    method = base.create(config, stream)
    rows: list[dict[str, Any]] = []
    before = 0  # parameters of the model that was kept
    for task in method.stream:
        trainable = []
        for stage in method.stages(task):  # a later stage may change the structure (compression)
            with chance.seeded(0, "cost"):
                method.enter(task, stage)
            trainable.append(count(method, trainable=True))
        kept = sum(count(part) for part in method.network_to_keep())
        if task.number >= since:
            row = {"task": task.number, "classes": task.new.stop, **of_task(method), "params_added": kept - before}
            rows.append(row | {"params_trainable": trainable[0]})
        before = kept
    return rows


def final_parameters(config: Config, stream: ClassStream) -> int:
    """Parameters of the finished model that is kept, built without training."""
    memory = dataclasses.replace(config.memory, budget=max(config.memory.budget, stream.classes))
    with _unfilled(config.method), chance.seeded(0, "cost"):
        method = base.create(dataclasses.replace(config, memory=memory), stream)
        for task in method.stream:
            for stage in method.stages(task):
                method.enter(task, stage)
    return sum(count(part) for part in method.network_to_keep())


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `of_tasks` as a table for the terminal."""
    head = f"{'task':>4} {'classes':>7} {'F literal':>11} {'F spent':>11}"
    lines = [f"{head} {'parameters':>12} {'added':>11} {'trained':>11}"]
    for row in rows:
        literal, spent = row["flops_literal"] / 1e9, row["flops_spent"] / 1e9
        lines.append(
            f"{row['task']:>4} {row['classes']:>7} {literal:>9.3f} G {spent:>9.3f} G"
            f" {row['params_total']:>12,} {row['params_added']:>11,} {row['params_trainable']:>11,}"
        )
    return "\n".join(lines)
