"""What learning costs: the FLOPs of every training step, counted once per stage and multiplied by how often it is made.

Counted: forward and backward of what trains, forward of what is frozen and of teachers, what a stage prepares or
initialises from its images, herding, and what a method computes at the end of a task. Not counted, as they multiply no
matrices: augmentation, norms, activations, the optimiser; nor evaluation on test images, which is no part of learning.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dne_lab.core import chance
from dne_lab.core.config import Config, from_dict
from dne_lab.core.errors import LabError
from dne_lab.data.datasets import NAMED
from dne_lab.data.memory import ExemplarMemory
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.measure import budget, cost
from dne_lab.measure.record import Record, is_record, trees
from dne_lab.methods import base
from dne_lab.methods.base import BALANCED, BASE, Method, Stage

FEW = 2  # images of a counted step, and twice as many: batch norm needs two


class Linear(NamedTuple):
    """FLOPs of a computation on n images: fixed + each x n."""

    fixed: int
    each: int

    def of(self, images: int, times: int = 1) -> int:
        """FLOPs for ``images`` in all, in ``times`` computations."""
        return self.fixed * times + self.each * images


NOTHING = Linear(0, 0)


def of_tasks(config: Config, stream: ClassStream, device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """FLOPs (2 x multiply-accumulate) of learning every task of a stream; nothing is learned, no image is read.

    Returns:
        One dictionary per task: task, stages {name: all its steps}, preparation (from images at the start of stages),
        herding, finish, total.
    """
    config = budget.resolved(config, stream)
    cls = base.find(config.method)
    stream = stream.joint() if cls.joint else stream
    method = base.create(config, stream)
    keeps = cls.uses_memory and not cls.joint
    memory = ExemplarMemory(config.memory.budget, config.memory.policy, stream.classes)
    rows: list[dict[str, Any]] = []
    for task in stream:
        row: dict[str, Any] = {"task": task.number, "stages": {}, "preparation": 0, "herding": 0, "finish": 0}
        for stage in method.stages(task):
            if stage.data == BALANCED and keeps and not row["herding"]:
                row["herding"] = _herd(method, stream, task, memory)
            index = _index(config, stream, task, stage, memory if keeps else None)
            with chance.seeded(0, "cost"):
                method.to("cpu").enter(task, stage)
            method.to(device)
            row["preparation"] += _prepare(method, stream, task, stage, index)
            steps = stage.recipe.epochs * stage.recipe.steps(len(index))
            images = stage.recipe.epochs * _shown(stage, len(index))
            once, each = step(method, task, stage, index) if steps else (0, NOTHING)
            row["stages"][stage.name] = once + each.of(images, steps)
        if keeps:
            row["herding"] = row["herding"] or _herd(method, stream, task, memory)
            row["finish"] = _finish(method, stream, task, memory)
        row["total"] = sum(row["stages"].values()) + row["preparation"] + row["herding"] + row["finish"]
        rows.append(row)
    return rows


def total(config: Config, stream: ClassStream, device: torch.device | str = "cpu") -> int:
    """FLOPs of learning all tasks; chance is as before."""
    with chance.seeded(0, "cost"):
        return sum(row["total"] for row in of_tasks(config, stream, device))


def step(method: Method, task: Task, stage: Stage, index: Tensor) -> tuple[int, Linear]:
    """FLOPs of a training step of a stage that was entered, losses and their gradients: what its first step does once
    (products of frozen weights), and what every step does."""
    few, more = (_batch(method, index, FEW * times) for times in (1, 2))
    with torch.no_grad():
        method.eval().prepare(task, stage, iter([more]))
    method.train()

    def learn(batch: Batch) -> None:
        with chance.batch((0, "cost"), batch.index):
            torch.stack(list(method.losses(batch, task, stage).values())).sum().backward()
        method.zero_grad(set_to_none=True)

    first = cost.counted(lambda: learn(few))
    found = _linear(learn, few, more)
    method.eval()
    return first - found.of(FEW, 1), found


def of_record(record: Record) -> int | None:
    """FLOPs of learning a record's run, from its configuration; None where it does not hold one, where another run has
    learned a part, or where the number of training images is not known without them."""
    if not record.config or record.forked_from:
        return None
    config = from_dict(record.config)
    try:
        stream = _stream(config)
    except LabError:
        return None
    return None if stream is None else total(config, stream)


def _stream(config: Config) -> ClassStream | None:
    """Classes and numbers of training images, with the images if they come with the package."""
    from dne_lab.data.stream import from_config

    known = NAMED.get(config.data.name)
    if known is None:
        return None
    if not known.files:
        return from_config(config.data)
    trained = known.each - round(known.each * config.data.validation)
    return cost.blank_stream(config.data.tasks, known.shape, trained)


# Parts ---------------------------------------------------------------------------------------------------------------


def _index(config: Config, stream: ClassStream, task: Task, stage: Stage, memory: ExemplarMemory | None) -> Tensor:
    """The training images of a stage, as the loop takes them."""
    if stage.data == BASE:
        return stream.index("train", range(config.data.tasks[0]))
    if stage.data == BALANCED and memory is not None:
        return memory.balanced(task.new.stop)
    new = stream.index("train", task.new)
    return new if memory is None else torch.cat([new, memory.index(task.old)])


def _shown(stage: Stage, images: int) -> int:
    """Images of an epoch: a last batch of one image is left out."""
    return images - (images > 1 and images % stage.recipe.batch == 1)


def _herd(method: Method, stream: ClassStream, task: Task, memory: ExemplarMemory) -> int:
    """Features of the new classes' images; stores as many exemplars as herding would."""
    memory.reduce(task.new.stop)
    quota = memory.quota(task.new.stop)
    for rank in task.new:
        memory.add(rank, stream.index("train", range(rank, rank + 1))[:quota])
    images = len(stream.index("train", task.new))
    return images * cost.flops(method.eval().features, stream.shape, _device(method))


def _prepare(method: Method, stream: ClassStream, task: Task, stage: Stage, index: Tensor) -> int:
    """What a stage computes from its images before its first step: `initialise` and `prepare`."""
    done = 0
    method.eval()
    with torch.no_grad():
        if type(method).initialise is not Method.initialise:
            few, more = (_of_each_class(method, stream.labels("train", index), index, times) for times in (1, 2))
            with chance.seeded(0, "cost"):
                done += _linear(lambda b: method.initialise(task, stage, iter([b])), few, more).of(len(index))
        if type(method).prepare is not Method.prepare:
            few, more = (_batch(method, index, FEW * times) for times in (1, 2))
            done += _linear(lambda b: method.prepare(task, stage, iter([b])), few, more).of(len(index))
    return done


def _finish(method: Method, stream: ClassStream, task: Task, memory: ExemplarMemory) -> int:
    """What the method computes from its exemplars at the end of a task."""
    if type(method).finish is Method.finish:
        return 0
    index = memory.index(range(task.new.stop))
    labels = stream.labels("train", index)
    few, more = (_of_each_class(method, labels, index, times) for times in (1, 2))
    method.eval()
    with torch.no_grad():
        return _linear(lambda batch: method.finish(task, iter([batch])), few, more).of(len(index))


def _linear(action: Callable[[Batch], object], few: Batch, more: Batch) -> Linear:
    counts = [cost.counted(lambda batch=batch: action(batch)) for batch in (few, more)]  # type: ignore[misc]
    images = len(more.images) - len(few.images)
    each = (counts[1] - counts[0]) // images if images else 0
    return Linear(counts[0] - each * len(few.images), each)


def _batch(method: Method, index: Tensor, count: int) -> Batch:
    """Blank images in the place of the first ``count`` of ``index`` (repeated where there are fewer)."""
    return _blank(method, index[torch.arange(count) % len(index)])


def _of_each_class(method: Method, labels: Tensor, index: Tensor, count: int) -> Batch:
    """Blank images in the place of ``count`` of every class."""
    by_class = [index[labels == rank] for rank in labels.unique()]
    return _blank(method, torch.cat([own[torch.arange(count) % len(own)] for own in by_class]))


def _blank(method: Method, index: Tensor) -> Batch:
    images = torch.zeros((len(index), *method.stream.shape), dtype=torch.uint8)
    return Batch(*(t.to(_device(method)) for t in (images, method.stream.labels("train", index), index)))


def _device(method: Method) -> torch.device:
    return next(method.parameters()).device


def complete(paths: Iterable[str | Path]) -> list[Path]:
    """Adds ``flops_training`` to the finished records below these folders that lack it and hold their configuration."""
    known: dict[str, int | None] = {}
    written = []
    for file, tree in trees(paths):
        if not (is_record(tree) and tree.get("finished")):
            continue
        record = Record.from_tree(tree, file)
        if record.flops_training is None and record.config:
            if record.settings_sha256 not in known:
                known[record.settings_sha256] = of_record(record)
            if (found := known[record.settings_sha256]) is not None:
                dataclasses.replace(record, flops_training=found).write(file)
                written.append(file)
    return written


if __name__ == "__main__":
    for path in complete(sys.argv[1:]):
        print(path)
