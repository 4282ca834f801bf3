"""DER, dynamically expandable representation (Yan, Xie and He, CVPR 2021), without its pruning: a network per task."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core.errors import LabError
from dne_lab.core.schema import settings
from dne_lab.data.stream import Batch, Task
from dne_lab.methods.base import Cached, Stage, check_stage
from dne_lab.methods.resnet import ResNetMethod, ResNetOptions
from dne_lab.models.resnet import ResNet


@settings
class DEROptions(ResNetOptions):
    """``reset``: whether both classifiers start again after the warm-up epochs, as in the authors' code;
    ``temperature``: what logits are divided by in "tune" (5; 1 on ImageNet)."""

    reset: bool = True
    temperature: Annotated[float, Field(gt=0)] = 5.0


class Concatenated(nn.Module):
    """An encoder per task, and one linear classifier without bias over all their features side by side.

    ``auxiliary`` classifies by the newest encoder alone: class 0 = all old classes, then the new ones. It trains with
    the encoder and predicts nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList()
        self.classifier: nn.Linear | None = None
        self.auxiliary: nn.Linear | None = None

    def expand(self, encoder: ResNet, classes: int, new: int) -> None:
        """A further encoder and new classifiers, for ``classes`` in all of which ``new`` are new; the rest freezes."""
        self.requires_grad_(False)
        self.encoders.append(encoder.requires_grad_(True))
        self.classifier = nn.Linear(encoder.width * len(self.encoders), classes, bias=False)
        self.auxiliary = nn.Linear(encoder.width, new + 1, bias=False) if new < classes else None

    def old_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, d (T - 1)), of the frozen encoders."""
        return torch.cat([encoder(images).features for encoder in self.encoders[:-1]], 1)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, d T)."""
        return torch.cat([encoder(images).features for encoder in self.encoders], 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, classes)."""
        assert self.classifier is not None
        return self.classifier(self.features(images))


class DER(ResNetMethod):
    """Freezes the networks of old tasks, adds a copy of the newest that learns the new one, and concatenates features.

    Stage "warm-up": the learning rate rises; "learn": both classifiers again from the start, the optimiser goes on;
    "tune" (task 2 and later): the classifier again from the start and alone, on balanced exemplars.
    """

    name = "der"
    title = "DER"
    Options: ClassVar[type] = DEROptions
    training_only: ClassVar[tuple[str, ...]] = ("model.auxiliary",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._cached: Cached | None = None  # features of the frozen encoders, in "tune" of all
        learn = self.config.learn
        if self.options.reset and (learn.warmup % 1 or learn.warmup >= max(1, learn.epochs)):
            raise LabError(
                f"learn.warmup = {learn.warmup}: der resets its classifiers after the warm-up, which is a whole number "
                f"of epochs below learn.epochs = {learn.epochs}. Set it, or options.reset=false."
            )

    def new_model(self) -> nn.Module:
        """No encoder yet."""
        return Concatenated()

    def stages(self, task: Task) -> list[Stage]:
        """The epochs of ``learn`` are those of warm-up and "learn" together; milestones count from the first.

        A cosine begins anew after the warm-up, from the full rate.
        """
        _, *tune = super().stages(task)
        recipe, warm = self.config.learn, int(self.config.learn.warmup)
        if not self.options.reset or warm == 0:
            return [Stage("learn", recipe), *tune]
        later = tuple(epoch - warm for epoch in recipe.milestones)
        rest = replace(recipe, epochs=recipe.epochs - warm, warmup=0.0, milestones=later)
        return [Stage("warm-up", replace(recipe, epochs=warm)), Stage("learn", rest, keep_optimizer=True), *tune]

    def enter(self, task: Task, stage: Stage) -> None:
        """The first stage expands; the next ones start the classifiers again."""
        check_stage(self, stage, ["warm-up", "learn", "tune"])
        if stage.name == self.stages(task)[0].name:
            encoders = self.model.encoders
            encoder = copy.deepcopy(encoders[-1]) if task.old else self.new_encoder()
            self.model.expand(encoder, task.new.stop, len(task.new))
            return
        self.model.classifier.reset_parameters()
        if self.model.auxiliary is not None:
            self.model.auxiliary.reset_parameters()
        if stage.name == "tune":
            self.model.requires_grad_(False)
            self.model.classifier.requires_grad_(True)

    def prepare(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """Without augmentation, the features of frozen encoders are computed once."""
        frozen = self.model.features if stage.name == "tune" else self.model.old_features if task.old else None
        self._cached = Cached(batches, frozen) if frozen and not stage.recipe.augment else None

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """Cross entropy over all classes seen and, from task 2 on in training, of the newest encoder alone."""
        model = self.model
        if stage.name == "tune":
            features = model.features(batch.images) if self._cached is None else self._cached(batch.index)
            return {"classification": F.cross_entropy(self._logits(features) / self.options.temperature, batch.labels)}
        features = model.encoders[-1](batch.images).features
        if not task.old:
            return {"classification": F.cross_entropy(self._logits(features), batch.labels)}
        with torch.no_grad():
            old = model.old_features(batch.images) if self._cached is None else self._cached(batch.index)
        newest = (batch.labels - (len(task.old) - 1)).clamp_min(0)  # class 0 = any old class
        return {
            "classification": F.cross_entropy(self._logits(torch.cat([old, features], 1)), batch.labels),
            "auxiliary": F.cross_entropy(model.auxiliary(features).float(), newest),
        }

    def _logits(self, features: Tensor) -> Tensor:
        return self.model.classifier(features).float()

    def features(self, images: Tensor) -> Tensor:
        """The concatenated features, (B, d T)."""
        return self.model.features(images)

    def network_to_keep(self) -> list[nn.Module]:
        """What predicts: without the auxiliary classifier."""
        return [self.model.encoders, self.model.classifier]

    def task_state(self, task: Task) -> dict[str, Tensor]:
        """The task's encoder and the classifier as they are now."""
        prefixes = (f"model.encoders.{task.number - 1}.", "model.classifier.")
        return {name: value for name, value in self.state_dict().items() if name.startswith(prefixes)}
