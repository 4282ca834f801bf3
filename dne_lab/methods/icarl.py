"""iCaRL (Rebuffi et al., CVPR 2017): one network, distillation of its old logits, and the nearest mean of exemplars."""

from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dne_lab.core.config import Config
from dne_lab.core.schema import OneOf, settings
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import Stage, changed, check_stage, frozen, soft_cross_entropy
from dne_lab.methods.resnet import ResNetMethod, ResNetOptions, several
from dne_lab.models.resnet import Classified

LOSSES = ("softmax", "bce")
TEMPERATURE = 2.0


@settings
class ICaRLOptions(ResNetOptions):
    """``loss``: "softmax" (cross entropy and soft cross entropy to the old logits) or "bce" (the original: sigmoids of
    old outputs and one-hot new classes as targets); ``later``: fields of ``learn`` that differ from task 2 on."""

    loss: Annotated[str, OneOf(LOSSES)] = "softmax"
    later: dict[str, Any] = field(default_factory=dict)


class ICaRL(ResNetMethod):
    """Learns all classes seen with the old network as teacher; predicts by the nearest mean of exemplars (NME)."""

    name = "icarl"
    title = "iCaRL"
    Options: ClassVar[type] = ICaRLOptions
    ignores: ClassVar[tuple[str, ...]] = (*ResNetMethod.ignores, "tune")  # no stage of that name
    means: Tensor

    def __init__(self, config: Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.later = several(changed(config.learn, self.options.later, "options.later"), "options.later")
        self.teacher: Classified | None = None
        self.register_buffer("means", torch.zeros(0, self.model.encoder.width))

    def stages(self, task: Task) -> list[Stage]:
        """One: with exemplars as they come, never balanced."""
        return [Stage("learn", self.later if task.old else self.config.learn)]

    def enter(self, task: Task, stage: Stage) -> None:
        """The network as it is becomes the teacher; then the classifier grows."""
        check_stage(self, stage, ["learn"])
        self.teacher = frozen(self.model) if task.old else None
        self.model.classifier.grow(len(task.new), None if task.old else self.model.encoder.width)
        self.means = F.pad(self.means, (0, 0, 0, len(task.new)))

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """Classification over all classes seen, and distillation of the old ones."""
        logits = self.model(batch.images).float()
        old = None if self.teacher is None else self.teacher(batch.images).float()
        if self.options.loss == "bce":
            return {"classification": original(logits, batch.labels, old)}
        terms = {"classification": F.cross_entropy(logits, batch.labels)}
        if old is not None:
            terms["distillation"] = soft_cross_entropy(logits[:, : old.shape[1]], old, TEMPERATURE)
        return terms

    def finish(self, task: Task, exemplars: Iterator[Batch]) -> None:
        """The mean of each class's exemplars; where images are mirrored in training, their mirror images count too."""
        mirrored = "flip" in self.config.learn.augment
        units, labels = [], []
        for batch in exemplars:
            for images in (batch.images, batch.images.flip(3))[: 1 + mirrored]:
                units.append(F.normalize(self.features(images).float()))
                labels.append(batch.labels)
        self.means.copy_(class_means(torch.cat(units), torch.cat(labels), task.new.stop))

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """The nearest mean of exemplars, and the classifier's logits."""
        features = self.features(images)
        return {"nme": nearness(features.float(), self.means), "classifier": self.model.classifier([features])}


def original(logits: Tensor, labels: Tensor, old: Tensor | None) -> Tensor:
    """iCaRL's own loss: binary cross entropy, mean over all elements, to [sigmoid of old logits, one-hot new classes].

    Without old logits, to the one-hot classes.
    """
    wanted = F.one_hot(labels, logits.shape[1]).to(logits)
    if old is not None:
        wanted[:, : old.shape[1]] = old.sigmoid()
    return F.binary_cross_entropy_with_logits(logits, wanted)


def class_means(units: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(n, d) features of length 1 and (n,) ranks -> (classes, d), the mean of each class brought to length 1."""
    sums = torch.zeros(classes, units.shape[1]).to(units).index_add_(0, labels, units)
    return F.normalize(sums)  # sum and mean have the same direction


def nearness(features: Tensor, means: Tensor) -> Tensor:
    """(B, d) and (classes, d) of length 1 -> (B, classes): minus half the squared distance of unit vectors, plus 1."""
    return F.normalize(features) @ means.T
