"""Methods on a residual network: what they share, and the simplest three (fine-tuning, replay, joint training)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core.config import Config, Recipe
from dne_lab.core.errors import LabError, brief
from dne_lab.core.schema import OneOf, settings
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import Method, Stage, check_stage
from dne_lab.models.classifier import ExpandableClassifier
from dne_lab.models.resnet import PLANS, Classified, ResNet


@settings
class ResNetOptions:
    """``network``: resnet18 to resnet152, resnet32 or resnet18-224; ``width``: channels of its first stage (none: as
    published)."""

    network: Annotated[str, OneOf(tuple(PLANS))] = "resnet18"
    width: Annotated[int, Field(ge=1, le=10**6)] | None = None


class ResNetMethod(Method):
    """One residual network whose classifier grows; a subclass says how it remembers."""

    Options: ClassVar[type] = ResNetOptions
    training_only: ClassVar[tuple[str, ...]] = ("teacher.",)
    ignores: ClassVar[tuple[str, ...]] = ("network", "loss", "stem")  # the transformer's; each has a loss of its own
    final_relu: ClassVar[bool] = True

    def __init__(self, config: Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        if stream.tasks[0] < 2:
            raise LabError(
                f"data.tasks = {brief(stream.tasks)}: {self.name} tells classes from each other, so the first task "
                "needs at least 2."
            )
        several(config.learn, "learn")
        several(config.tune, "tune")
        self.model: Any = self.new_model()

    def new_model(self) -> nn.Module:
        """The network before its first class: one encoder and its classifier."""
        return Classified(self.new_encoder(), self.new_classifier())

    def new_encoder(self) -> ResNet:
        """A residual network of the options, without a classifier."""
        name, width, stream = self.options.network, self.options.width, self.stream
        return ResNet(name, stream.shape, width, stream.mean, stream.std, self.final_relu)

    def new_classifier(self) -> nn.Module:
        """The classifier before its first class."""
        return ExpandableClassifier()

    def features(self, images: Tensor) -> Tensor:
        """The pooled features, (B, d)."""
        return self.model.encoder(images).features

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """The classifier's logits."""
        return {"classifier": self.model(images)}

    def network_to_keep(self) -> list[nn.Module]:
        """What predicts: without a teacher."""
        return [self.model]

    def network_settings(self) -> dict[str, Any]:
        """Name and width of the residual network."""
        name, width = self.options.network, self.options.width
        return {"name": name, "width": PLANS[name].width if width is None else width}


def several(recipe: Recipe, name: str) -> Recipe:
    """``recipe``, whose batches must hold several images: batch norm takes its statistics from them.

    Raises:
        LabError: batches of one image.
    """
    if recipe.batch < 2:
        raise LabError(f"{name}.batch = {recipe.batch}: batch norm needs at least 2 images in a batch.")
    return recipe


class FineTuningResNet(ResNetMethod):
    """The lower bound: a residual network that goes on training on each new task alone, and forgets."""

    name = "finetune-resnet"
    title = "Finetune (ResNet)"
    recipe = "resnet"
    uses_memory = False

    def enter(self, task: Task, stage: Stage) -> None:
        """The classifier grows and everything trains; in "tune" the classifier alone."""
        check_stage(self, stage, ["learn", "tune"])
        if stage.name == "learn":
            self.model.requires_grad_(True)
            self.model.classifier.grow(len(task.new), None if task.old else self.model.encoder.width)
        else:
            self.model.encoder.requires_grad_(False)

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """Cross entropy over all classes seen."""
        return {"classification": F.cross_entropy(self.model(batch.images).float(), batch.labels)}


class ReplayResNet(FineTuningResNet):
    """Fine-tuning with exemplars mixed in, and a balanced tuning of the classifier after each task."""

    name = "replay-resnet"
    title = "Replay (ResNet)"
    uses_memory = True


class JointResNet(FineTuningResNet):
    """All classes at once: the upper bound that D of a method on this network is measured against."""

    name = "joint-resnet"
    title = "Joint (ResNet)"
    joint = True
