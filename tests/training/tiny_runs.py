"""A method and a stream small enough to train in a tenth of a second, with everything a run must keep.

Growing modules, frozen ones, batch statistics, chance for each image, values that need data, an optimiser carried over,
two predictions.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core import chance, config
from dne_lab.data.source import ArraySource
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import BALANCED, Method, Stage
from dne_lab.training.run import Run

TASKS, ORDER = (3, 2, 2), (4, 2, 6, 0, 1, 5, 3)


@dataclass(frozen=True)
class TinyOptions:
    """``poison``: the step (in all) whose loss is NaN; 0 = none."""

    batch_norm: bool = True
    poison: int = 0


class Tiny(Method):
    """A linear expert per task, then a growing classifier; "warm", "learn" with the same optimiser, then "tune"."""

    name = "tiny"
    Options: ClassVar[type] = TinyOptions
    shares_first_task = True
    gain = 1.0  # of the newest expert from task 2 on: where variants differ

    def __init__(self, config: config.Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.experts = nn.ModuleList()
        self.classifier = nn.Linear(1, 1)
        self.register_buffer("centre", torch.zeros(16))
        self.register_buffer("means", torch.zeros(0, 0))
        self.steps = 0

    def stages(self, task: Task) -> list[Stage]:
        stages = [
            Stage("warm", replace(self.config.learn, epochs=1)),
            Stage("learn", self.config.learn, keep_optimizer=True),
        ]
        return stages if task.number == 1 else [*stages, Stage("tune", self.config.tune, BALANCED)]

    def enter(self, task: Task, stage: Stage) -> None:
        if stage.name == "warm":
            self.requires_grad_(False)
            norm = nn.BatchNorm1d(5) if self.options.batch_norm else nn.LayerNorm(5)
            self.experts.append(nn.Sequential(nn.Linear(16, 5), norm, nn.ReLU()))
            old, self.classifier = self.classifier, nn.Linear(5 * len(self.experts), task.new.stop)
            with torch.no_grad():
                self.classifier.weight[: old.out_features, : old.in_features] = old.weight
            self.means = torch.zeros(task.new.stop, 5 * len(self.experts), device=self.means.device)
        if stage.name == "tune":
            self.requires_grad_(False)
            self.classifier.requires_grad_(True)

    def initialise(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        if stage.name == "warm":
            self.centre += torch.cat([self.flat(b.images) for b in batches]).mean(0) + 0.01 * torch.rand(16)

    def flat(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255

    def features(self, images: Tensor) -> Tensor:
        x = self.flat(images) - self.centre
        found = [expert(x) * (self.gain if number else 1) for number, expert in enumerate(self.experts)]
        if self.training:
            found[-1] = found[-1] * (0.5 + chance.for_batch("gate", found[-1], len(x)))[:, None]
        return torch.cat(found, 1)

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        self.steps += 1
        logits = self.classifier(self.features(batch.images))
        terms = {"classification": F.cross_entropy(logits, batch.labels)}
        if task.old:
            terms["size"] = 1e-3 * logits.square().mean()
        if self.steps == self.options.poison:
            terms["classification"] = terms["classification"] * torch.nan
        return terms

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {"classifier": self.classifier(features), "nme": -torch.cdist(features, self.means)}

    def finish(self, task: Task, exemplars: Iterator[Batch]) -> None:
        found = [(self.features(b.images), b.labels) for b in exemplars]
        features, labels = torch.cat([f for f, _ in found]), torch.cat([y for _, y in found])
        self.means.copy_(torch.stack([features[labels == rank].mean(0) for rank in range(task.new.stop)]))


class TinyOther(Tiny):
    """The same first task."""

    name = "tiny-other"
    gain = 2.0


class TinyAlone(Tiny):
    """Neither memory nor a shared first task."""

    name = "tiny-alone"
    uses_memory = False
    shares_first_task = False

    def stages(self, task: Task) -> list[Stage]:
        return super().stages(task)[:2]

    def finish(self, task: Task, exemplars: Iterator[Batch]) -> None:
        assert not list(exemplars)


class TinyJoint(TinyAlone):
    """All classes at once."""

    name = "tiny-joint"
    joint = True


@dataclass(frozen=True)
class Slowed:
    """A viewer (and what makes it) that lets an epoch of task 1 take two seconds as long as there is the file
    ``first``, of later tasks as long as there is ``later``."""

    first: Path
    later: Path

    def __call__(self, run: Run | None = None) -> Any:
        if run is None:
            return self
        file, end = self.later if run.state.position.predicted else self.first, time.monotonic() + 2
        while file.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return None


def stream(shift: int = 0) -> ClassStream:
    """Seven classes of 4 x 4 pixels."""
    draw = np.random.default_rng(shift)

    def images(labels: np.ndarray) -> np.ndarray:
        pattern = np.random.default_rng(7).integers(0, 76, (7, 4, 4))
        return (pattern[labels] + draw.integers(0, 110, (len(labels), 4, 4))).astype(np.uint8)

    train, test = np.arange(7).repeat(11 + shift), np.arange(7).repeat(6)
    return ClassStream(ArraySource(images(train), train, images(test), test), TASKS, ORDER)


def settings(method: str = "tiny", **changes: Any) -> config.Config:
    """The configuration of a run on `stream`."""
    tree = {
        "method": method,
        "seed": 3,
        "data": {"name": "arrays", "tasks": list(TASKS), "order": ",".join(map(str, ORDER))},
        "learn": {"epochs": 4, "batch": 8, "lr": 0.05, "warmup": 0.5, "augment": ["brightness"]},
        "tune": {"epochs": 2, "batch": 4, "lr": 0.1, "optimizer": "sgd", "clip": 0.1, "schedule": "constant"},
        "memory": {"budget": 20},
    }
    return config.from_dict(tree).with_changes(changes)


def content(folder: Path) -> dict[str, Any]:
    """Everything in a run folder that must not depend on the clock, comparable with ==.

    By which library the large products of a network would be computed is measured in each process, and on some CPUs
    comes out as the one or the other; these networks have none.
    """
    found: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.name == "record.json":
            record = json.loads(file.read_text())
            del record["timing"], record["products"], record["sha256"]  # the last: of all but the clock
            found[file.name] = record
        elif file.name == "last.safetensors":
            with safe_open(file, "pt") as opened:
                info = json.loads(opened.metadata()["dne-lab"])
                tensors = {name: opened.get_tensor(name).numpy().tobytes() for name in opened.keys()}  # noqa: SIM118
            del info["state"]["timing"], info["state"]["products"], info["sha256"]
            found[file.name] = (info, {name: hashlib.sha256(data).hexdigest() for name, data in tensors.items()})
        else:
            found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found
