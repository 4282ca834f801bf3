"""FOSTER (Wang et al., ECCV 2022): a new network fits what the old one leaves, then both are compressed into one."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core.config import Config
from dne_lab.core.schema import OneOf, settings
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import Cached, Stage, changed, check_stage, frozen, soft_cross_entropy
from dne_lab.methods.resnet import ResNetMethod, ResNetOptions, several
from dne_lab.models.classifier import ExpandableClassifier
from dne_lab.models.resnet import Classified

TEMPERATURE = 2.0
WEIGHTS = ("divide", "multiply", "none")


@settings
class FOSTEROptions(ResNetOptions):
    """``boost_beta``, ``compress_beta``: the base b of the effective numbers in each stage. ``weights``: how they align
    logits in boosting: "divide" (by weights of mean 1, the authors' code), "multiply" (by effective numbers of mean 1:
    the same ratios on another scale) or "none". ``later``, ``compress``: fields of ``learn`` that differ from task 2 on
    in boosting and in compression."""

    boost_beta: Annotated[float, Field(gt=0, lt=1)] = 0.94
    compress_beta: Annotated[float, Field(gt=0, lt=1)] = 0.97
    weights: Annotated[str, OneOf(WEIGHTS)] = "divide"
    later: dict[str, Any] = field(default_factory=dict)
    compress: dict[str, Any] = field(default_factory=dict)


class Boosted(nn.Module):
    """The teacher: the frozen old network, and a branch that starts as its copy; one classifier reads both.

    That classifier starts as the old one, so that old logits stay. ``branch`` has a classifier over all classes too.
    """

    def __init__(self, old: Classified, new_classes: int) -> None:
        super().__init__()
        self.old = frozen(old)
        encoder = deepcopy(old.encoder).requires_grad_(True)
        self.classifier = deepcopy(old.classifier).requires_grad_(True)
        self.classifier.grow(new_classes, encoder.width)
        self.branch = Classified(encoder, ExpandableClassifier())
        self.branch.classifier.grow(self.classifier.classes, encoder.width)

    def old_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, d), of the old network."""
        return self.old.encoder(images).features

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) uint8 -> old and new features, each (B, d)."""
        return [self.old_features(images), self.branch.encoder(images).features]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, classes)."""
        return self.classifier(self.features(images))


class FOSTER(ResNetMethod):
    """Stage "boost": a new branch beside the frozen old network; "compress": one network learns what both say.

    ``model`` is the student, which is kept and reported. The teacher ("FOSTER B4" in the paper) predicts beside it
    until the next task, and chooses the exemplars.
    """

    name = "foster"
    title = "FOSTER"
    Options: ClassVar[type] = FOSTEROptions
    ignores: ClassVar[tuple[str, ...]] = (*ResNetMethod.ignores, "tune")  # no stage of that name
    training_only: ClassVar[tuple[str, ...]] = ("teacher.", "counts")
    counts: Tensor

    def __init__(self, config: Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.later = several(changed(config.learn, self.options.later, "options.later"), "options.later")
        self.compress = several(changed(config.learn, self.options.compress, "options.compress"), "options.compress")
        self.teacher: Boosted | None = None
        self.register_buffer("counts", torch.zeros(0))  # training images of each class, exemplars of old ones
        self._cached: Cached | None = None  # "boost": features of the old network; "compress": the teacher's logits

    def stages(self, task: Task) -> list[Stage]:
        """One for the first task, then two."""
        if not task.old:
            return [Stage("learn", self.config.learn)]
        return [Stage("boost", self.later), Stage("compress", self.compress)]

    def enter(self, task: Task, stage: Stage) -> None:
        """ "boost": a teacher from the student, which waits; "compress": the teacher is frozen, the student grows."""
        check_stage(self, stage, ["learn", "boost", "compress"])
        if stage.name == "boost":
            self.model.requires_grad_(False)
            self.teacher = Boosted(self.model, len(task.new))
            self.counts = self.counts.new_zeros(task.new.stop)
            return
        if self.teacher is not None:
            self.teacher.requires_grad_(False)
        self.model.requires_grad_(True)
        self.model.classifier.grow(len(task.new), None if task.old else self.model.encoder.width)

    def initialise(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """Counts the images of each class."""
        if stage.name == "boost":
            for batch in batches:
                self.counts += torch.bincount(batch.labels, minlength=task.new.stop)

    def prepare(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """Without augmentation, what the frozen network says is computed once."""
        self._cached = None
        if self.teacher is not None and not stage.recipe.augment:
            self._cached = Cached(batches, self.teacher.old_features if stage.name == "boost" else self.teacher)

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """The terms of the stage, each with weight 1."""
        if self.teacher is None:
            return {"classification": F.cross_entropy(self.model(batch.images).float(), batch.labels)}
        frozen_network = self.teacher.old_features if stage.name == "boost" else self.teacher
        with torch.no_grad():
            given = frozen_network(batch.images) if self._cached is None else self._cached(batch.index)
        if stage.name == "boost":
            return self.boosting(given, batch, len(task.old))
        student = self.model(batch.images).float()
        return {"compression": balanced_distillation(student, given.float(), self.weights(self.options.compress_beta))}

    def boosting(self, old: Tensor, batch: Batch, old_classes: int) -> dict[str, Tensor]:
        """Aligned classification of both networks, classification of the branch alone, distillation of old logits.

        Args:
            old: (B, d) features of the old network.
        """
        assert self.teacher is not None
        new = self.teacher.branch.encoder(batch.images).features
        logits = self.teacher.classifier([old, new]).float()
        branch = self.teacher.branch.classifier([new]).float()
        with torch.no_grad():
            wanted = self.teacher.old.classifier([old]).float()
        return {
            "classification": F.cross_entropy(logits * self.alignment(), batch.labels),
            "branch": F.cross_entropy(branch, batch.labels),
            "distillation": soft_cross_entropy(logits[:, :old_classes], wanted, TEMPERATURE),
        }

    def weights(self, beta: float) -> Tensor:
        """(classes seen,), larger for classes with fewer images, mean 1."""
        return class_weights(self.counts, beta)

    def alignment(self) -> Tensor:
        """(classes seen,): what the logits are multiplied by in boosting; smaller for classes with fewer images."""
        inverse = 1 / self.weights(self.options.boost_beta)
        if self.options.weights == "none":
            return torch.ones_like(inverse)
        return inverse if self.options.weights == "divide" else inverse / inverse.mean()

    def features(self, images: Tensor) -> Tensor:
        """The teacher's features where there is one, (B, d) or (B, 2 d)."""
        return super().features(images) if self.teacher is None else torch.cat(self.teacher.features(images), 1)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """The student's logits, and the teacher's where there is one."""
        student = {"student": self.model(images)}
        return student if self.teacher is None else student | {"teacher": self.teacher(images)}

    def compute(self, images: Tensor) -> Tensor:
        """The student's prediction, which is what the finished model costs."""
        return self.model(images)

    def load_task_states(self, states: list[dict[str, Tensor]]) -> None:
        """The last student; its teacher was not kept."""
        super().load_task_states(states)
        self.teacher = None


def class_weights(counts: Tensor, beta: float) -> Tensor:
    """(classes,) numbers of images -> (1 - b) / (1 - b^n) scaled to mean 1: the inverse of effective numbers."""
    inverse = (1 - beta) / -torch.expm1(counts * math.log(beta))  # 1 - b^n, with all its digits for b near 1 too
    return inverse / inverse.mean()


def balanced_distillation(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy of the student's softmax(. / T) against the teacher's, weighted by class and normalised again.

    Args:
        student, teacher: (B, classes) logits.
        weights: (classes,).
    """
    wanted = (teacher / TEMPERATURE).softmax(1) * weights
    return F.cross_entropy(student / TEMPERATURE, wanted / wanted.sum(1, keepdim=True))
