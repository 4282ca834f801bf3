"""A stream of classes: which classes arrive in which task, and where their images are."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dne_lab.core import chance, config
from dne_lab.core.config import CLASSES, TASKS
from dne_lab.core.errors import LabError, brief, unknown
from dne_lab.data.datasets import NAMED, open_source
from dne_lab.data.source import SPLITS, Source, check_labels, check_split

# How many classes each task brings: task sizes, or a base and a step.


def sizes(tasks: Sequence[int] | str) -> tuple[int, ...]:
    """Task sizes from a sequence or from text such as "50,10,10"; a `LabError` for anything else."""
    try:
        parts = [int(part) for part in tasks.split(",")] if isinstance(tasks, str) else list(map(operator.index, tasks))
    except (TypeError, ValueError) as error:
        raise LabError(f"tasks = {brief(tasks)}: give the number of classes of each task, e.g. 50,10,10.") from error
    if not parts or min(parts) < 1:
        raise LabError(f"tasks = {brief(tasks)}: needs at least one task, each of at least one class, e.g. 50,10,10.")
    if len(parts) > TASKS:
        raise LabError(f"tasks = {brief(tasks)}: are {len(parts):,} tasks; up to {TASKS:,} are taken.")
    if sum(parts) > CLASSES:
        raise LabError(f"tasks = {brief(tasks)}: are {sum(parts):,} classes; up to {CLASSES:,} are taken.")
    return tuple(parts)


def check_sum(tasks: Sequence[int], classes: int, name: str) -> None:
    """Tasks add up to the classes of the source called ``name``, or a `LabError` that says both sums."""
    if sum(tasks) != classes:
        raise LabError(
            f"tasks {'+'.join(map(str, tasks))} = {sum(tasks)} classes, but {name} has {classes}. "
            f"Give task sizes that add up to {classes}."
        )


def from_base_and_step(base: int | None, step: int | None, classes: int, name: str) -> tuple[int, ...]:
    """``base`` classes first (default: ``step``), then ``step`` in each task, e.g. 50 and 10 -> 50+10+10+10+10+10."""
    for what, given in (("base", base), ("step", step)):
        if given is not None and (isinstance(given, bool) or not hasattr(given, "__index__")):
            raise LabError(f"{what} = {brief(given)}: must be a whole number of classes, at least 1.")
    first = step if base is None else base
    if first is None:
        if name in NAMED:
            return NAMED[name].tasks
        raise LabError(
            f"{name} with {classes} classes has no default tasks. Give tasks that add up to {classes}, such as "
            f"tasks=({classes - 1}, 1), or base and step, such as base={classes - 1}, step=1 (--set data.tasks=...)."
        )
    if first < 1 or (step is not None and step < 1):
        raise LabError(f"base = {base}, step = {step}: both must be at least 1.")
    later = classes - first
    if later == 0:
        return (first,)
    if step is None:
        raise LabError(f"base = {first} is not all {classes} classes of {name}. Give a step for the other {later} too.")
    if later < 0 or later % step:
        count = max(0, later // step)
        raise LabError(
            f"base and step do not add up to the {classes} classes of {name}: {first} + {count} x {step} = "
            f"{first + count * step}. Give a step that divides {classes} - base, or the tasks one by one."
        )
    return (first, *[step] * (later // step))


# In which order classes arrive: the named orders of the literature, a seed, or any permutation.


@functools.cache
def named_orders() -> dict[str, tuple[int, ...]]:
    """The class orders in use for 100 classes: podnet_1..3 (PODNet, DER, DyTox), seed_1993 (iCaRL, FOSTER, PyCIL)."""
    text = resources.files("dne_lab.data").joinpath("class_orders.json").read_text()
    return {name: tuple(order) for name, order in json.loads(text).items()}


def class_order(order: str | int | Sequence[int], classes: int) -> tuple[int, ...]:
    """The class numbers in the order in which they arrive: entry r is the class of rank r.

    Args:
        order: "identity", a name of `named_orders`, a seed (also as text), or a permutation of 0..classes-1 (also
            comma-separated).
        classes: how many classes the source has.

    Raises:
        LabError: an unknown name, a named order for another number of classes, not a permutation.
    """
    if isinstance(order, str):
        order = order.strip()
        if order == "identity":
            return tuple(range(classes))
        if order in named_orders():
            if len(named_orders()[order]) != classes:
                raise LabError(
                    f"order {order!r} is for {len(named_orders()[order])} classes, the source has {classes}. "
                    "Give 'identity', a seed such as '0', or a permutation."
                )
            return named_orders()[order]
        try:
            numbers = [int(part) for part in order.split(",") if part.strip()]
        except ValueError:
            numbers = []
        if not numbers:
            allowed = [*named_orders(), "identity", "a seed", "a permutation such as 2,0,1"]
            raise unknown("class order", order, allowed)
        order = numbers if "," in order else numbers[0]
    if isinstance(order, int | np.integer):
        return _drawn(int(order), classes)
    try:
        permutation = tuple(operator.index(number) for number in order)
    except TypeError as error:
        message = f"order = {order!r}: give a name, a whole number (a seed) or a list of class numbers."
        raise LabError(message) from error
    if sorted(permutation) != list(range(classes)):
        missing = sorted(set(range(classes)) - set(permutation))
        raise LabError(
            f"order with {len(permutation)} entries is not a permutation of the class numbers 0..{classes - 1}"
            + (f": missing {missing[:5]}{' ...' if len(missing) > 5 else ''}." if missing else ".")
        )
    return permutation


def _drawn(seed: int, classes: int) -> tuple[int, ...]:
    if seed < 0:
        raise LabError(f"order = {seed}: a seed must be 0 or more.")
    return tuple(chance.permutation(classes, seed, "class order").tolist())


class Task(NamedTuple):
    """One step of the stream: its number (1, 2, ...) and the ranks of the classes seen before and arriving now."""

    number: int
    old: range
    new: range


class Batch(NamedTuple):
    """Images (B, C, H, W) uint8, labels (B,) int64 = ranks in the class order, numbers in the split (B,) int64."""

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class ClassStream:
    """The classes of a source in an order, cut into tasks. A label is the *rank* of a class in the order.

    Args:
        source: where the images are.
        tasks: number of classes of each task; they add up to the number of classes.
        order: see `dne_lab.data.stream.class_order`.
        validation: above 0, this share of each class's training images (at least one, drawn by chance from the class
            number alone) takes the place of the test split, and the training split is without them. Image numbers of
            both splits then count the source's training images.

    Raises:
        LabError: tasks that do not add up, a bad order, a class with too few images to split, labels of the source
            that are no class numbers.
    """

    _order_given: str | None

    def __init__(
        self,
        source: Source,
        tasks: Sequence[int] | str,
        order: str | int | Sequence[int] = "identity",
        validation: float = 0.0,
    ) -> None:
        check_labels({split: source.labels(split) for split in SPLITS}, source.classes, every_class=False)
        self._set(source, sizes(tasks), class_order(order, len(source.classes)), validation)
        check_sum(self.tasks, len(source.classes), source.name)
        self._order_given = str(order) if isinstance(order, str | int | np.integer) else None

    def _set(self, source: Source, tasks: tuple[int, ...], order: tuple[int, ...], validation: float) -> None:
        if not 0 <= validation < 1:
            raise LabError(f"validation = {validation}: must be in [0, 1), e.g. 0.2.")
        self.source, self.tasks, self.order, self.validation = source, tasks, order, float(validation)
        self.name, self.shape, self.mean, self.std = source.name, source.shape, source.mean, source.std
        self.classes = len(order)
        self.class_names = tuple(source.classes[number] for number in order)
        self._order_given = None
        rank_of = np.full(len(source.classes), -1, dtype=np.int64)
        rank_of[list(order)] = np.arange(len(order))
        # (n,) the rank of every image of the source's split; -1 where the image is not in ours
        self._ranks = {split: torch.from_numpy(rank_of[source.labels(self.split_behind(split))]) for split in SPLITS}
        if validation:
            held = _held_out(source.labels("train"), validation)
            self._ranks["train"][held] = -1
            self._ranks["test"][~held] = -1

    def split_behind(self, split: str) -> str:
        """The source's split behind ours."""
        return "train" if self.validation else check_split(split)

    # Tasks ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, number: int) -> Task:
        """Task 1, 2, ..., M."""
        if not 1 <= number <= len(self):
            raise LabError(f"task {number}: this stream has tasks 1 to {len(self)}.")
        start = sum(self.tasks[: number - 1])
        return Task(number, range(start), range(start, start + self.tasks[number - 1]))

    def __iter__(self) -> Iterator[Task]:
        return (self.task(number) for number in range(1, len(self) + 1))

    def __getitem__(self, part: slice) -> ClassStream:
        """``stream[a:b]``: the tasks at positions a..b-1 as a stream of their own, whose ranks start at 0 again."""
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError("a stream is sliced with stream[a:b]; one task is stream.task(number)")
        start, stop, _ = part.indices(len(self))
        if start >= stop:
            raise LabError(f"stream[{part.start}:{part.stop}] holds no task: this stream has {len(self)}.")
        first, last = sum(self.tasks[:start]), sum(self.tasks[:stop])
        return self._derived(self.tasks[start:stop], self.order[first:last])

    def joint(self) -> ClassStream:
        """All classes as one task, in the same order."""
        stream = self._derived((self.classes,), self.order)
        stream._order_given = self._order_given
        return stream

    def _derived(self, tasks: tuple[int, ...], order: tuple[int, ...]) -> ClassStream:
        stream = ClassStream.__new__(ClassStream)
        stream._set(self.source, tasks, order, self.validation)
        return stream

    def config(self) -> config.Data:
        """The configuration that describes this stream; `from_config` is the inverse but for arrays in memory.

        That of a slice has the classes it is left with as its order.
        """
        order = self._order_given
        if order is None:
            whole = self.order == tuple(range(len(self.source.classes)))
            order = "identity" if whole else ",".join(map(str, self.order)) + "," * (self.classes == 1)
        return config.Data(self.name, self.source.path, self.source.size, self.tasks, order, self.validation)

    # Images --------------------------------------------------------------------------------------------------------

    def index(self, split: str, classes: range) -> Tensor:
        """Image numbers of these ranks in a split ("train" or "test"), sorted: (n,) int64."""
        ranks = self._ranks[check_split(split)]
        if classes.step == 1:
            mask = (ranks >= classes.start) & (ranks < classes.stop) & (ranks >= 0)
        else:
            mask = torch.isin(ranks, torch.tensor([*classes], dtype=torch.int64)) & (ranks >= 0)
        return mask.nonzero()[:, 0]

    def labels(self, split: str, index: Tensor) -> Tensor:
        """Ranks of images by number: (B,) int64 -> (B,) int64; -1 for an image that is not in this stream's split."""
        return self._ranks[check_split(split)][index.cpu()]

    def images(self, split: str, index: Tensor) -> Tensor:
        """Images by number: (B,) int64 -> (B, C, H, W) uint8 on the CPU."""
        check_split(split)
        return self.source.images(self.split_behind(split), index)

    def batch(self, split: str, index: Tensor) -> Batch:
        """Images, labels and numbers together."""
        return Batch(self.images(split, index), self.labels(split, index), index)

    def test_images(self, count: int) -> Batch:
        """``count`` test images (or all, when there are fewer) spread evenly over the classes, sorted by class."""
        if count < 1:
            raise LabError(f"test_images({count}): ask for at least one image.")
        waiting = [self.index("test", range(rank, rank + 1)).tolist() for rank in range(self.classes)]
        chosen: list[list[int]] = [[] for _ in waiting]
        while count and (ranks := [rank for rank, numbers in enumerate(waiting) if numbers]):
            if count < len(ranks):  # the last round: classes at equal distances
                ranks = [ranks[i * len(ranks) // count] for i in range(count)]
            for rank in ranks:
                chosen[rank].append(waiting[rank].pop(0))
            count -= len(ranks)
        return self.batch("test", torch.tensor([number for numbers in chosen for number in numbers], dtype=torch.int64))

    def __deepcopy__(self, memo: dict[int, Any]) -> ClassStream:
        return self  # never changes

    def __repr__(self) -> str:
        return f"ClassStream({self.name}, tasks {'+'.join(map(str, self.tasks))}, {self.classes} classes)"


def _held_out(labels: np.ndarray, share: float) -> Tensor:
    """(n,) bool: which training images validate."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for number in np.unique(labels).tolist():
        members = torch.from_numpy(np.flatnonzero(labels == number))
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise LabError(
                f"validation = {share} leaves class {number} ({len(members)} images) none to train on. Lower it."
            )
        held[members[chance.permutation(len(members), "validation", number)[:count]]] = True
    return held


def stream(
    data: Any = "digits",
    *second: Sequence[int] | str | Dataset[Any] | None,
    tasks: Sequence[int] | str | None = None,
    base: int | None = None,
    step: int | None = None,
    order: str | int | Sequence[int] = "identity",
    validation: float = 0.0,
    path: str | None = None,
    size: int | None = None,
    download: bool = False,
) -> ClassStream:
    """Opens images and cuts their classes into tasks.

    Args:
        data, path, size, download: see `dne_lab.data.datasets.open_source`.
        second: without a name the tasks, ``stream("digits", (4, 2, 2, 2))``, or the test images of two data sets of
            PyTorch, ``stream(train, test, base=50, step=10)``.
        tasks: classes of each task; or ``base`` (default: ``step``) classes first and ``step`` in each later task.
            digits, digits100 and cifar100 have defaults: 4+2+2+2, 50 + 10 x 5.
        order, validation: see `ClassStream`.

    Raises:
        LabError: missing data, tasks that do not add up, anything else the user can set right.
    """
    if isinstance(validation, bool) or not isinstance(validation, int | float):
        raise LabError(f"validation = {brief(validation)}: must be a number in [0, 1), e.g. 0.2.")
    for given in second:
        if isinstance(given, Dataset) and isinstance(data, Dataset):
            data = (data, given)
        elif tasks is None:
            tasks = cast("Sequence[int] | str | None", given)
        elif given is not None:
            raise LabError(
                f"after the data come the tasks, named or not: {brief(given)} is too much. (Two data sets of PyTorch "
                "are two torch.utils.data.Dataset with items (image, label), training images first.)"
            )
    source = open_source(data, path=path, size=size, download=download)
    if tasks is None:
        tasks = from_base_and_step(base, step, len(source.classes), source.name)
    elif base is not None or step is not None:
        raise LabError("give either tasks, or base and step, not both.")
    return ClassStream(source, tasks, order, validation)


def from_config(data: config.Data) -> ClassStream:
    """The stream that a configuration describes; an order that lists some classes only is a slice. Never downloads."""
    source = open_source(data.name, path=data.path, size=data.size)
    listed = [part.strip() for part in data.order.split(",") if part.strip()] if "," in data.order else []
    others = [str(number) for number in range(len(source.classes)) if str(number) not in listed]
    if others and len(listed) == sum(data.tasks) == len(source.classes) - len(others):
        whole = ClassStream(source, (*data.tasks, len(others)), ",".join(listed + others), data.validation)
        return whole[: len(data.tasks)]
    return ClassStream(source, data.tasks, data.order, data.validation)
