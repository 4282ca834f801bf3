"""DyTox (Douillard et al., CVPR 2022): a token a task on one transformer that goes on training."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dne_lab.config import Config
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import Method, Stage, frozen
from dne_lab.methods.expansion import Expansion
from dne_lab.models.dytox import DyToxViT


@dataclass(frozen=True)
class DyToxOptions:
    """``shuffle_tune``: whether stage 2 shuffles its images (the authors' code shows them class by class)."""

    shuffle_tune: bool = True


class DyTox(Expansion):
    """Learns all tasks with one encoder, and each with a token of its own, under the objective of `Expansion`.

    The expertise classifier is DyTox's divergence classifier. The old logits are those of a copy of the network,
    because its encoder trains on. Stage 2 freezes the encoder: embedding and spatial attention.
    """

    name = "dytox"
    title = "DyTox"
    shares_first_task = False
    Options: ClassVar[type] = DyToxOptions
    training_only: ClassVar[tuple[str, ...]] = ("teacher.", "model.expertise")

    def __init__(self, config: Config, stream: ClassStream) -> None:
        Method.__init__(self, config, stream)  # another network than that of Expansion
        self.model: DyToxViT = DyToxViT(config.network, stream.shape, stream.mean, stream.std)
        self.set_precision()
        self.teacher: DyToxViT | None = None

    def stages(self, task: Task) -> list[Stage]:
        """Those of every method with memory; "tune" perhaps without shuffling."""
        shuffle = self.options.shuffle_tune
        return [replace(s, shuffle=shuffle) if s.name == "tune" else s for s in super().stages(task)]

    def enter(self, task: Task, stage: Stage) -> None:
        """ "learn": a token and a classifier, old ones frozen, the network as it is as teacher; "tune": see there."""
        self.teacher = None
        if stage.name == "tune":
            self.model.tune_readouts()
        elif stage.name == "stem":
            super().enter(task, stage)
        elif task.number == 1:
            self.model.expand(self.config.network.heads_of(1), len(task.new))
        else:
            self.teacher = frozen(self.model)
            self.model.add_task(len(task.new))

    def prepare(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """Nothing stays the same in stage 2: the block of class attention trains."""

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """The weighted terms by name."""
        if stage.name == "stem":
            return self.stem_losses(batch)
        output = self.model(batch.images)
        if stage.name == "tune":
            return {"classification": self.classification(output.logits, batch.labels)}
        if self.teacher is not None:
            with torch.no_grad():
                output = output._replace(old_logits=self.teacher(batch.images).logits)
        return self.objective(output, batch.labels, task)

    def compute_literally(self, images: Tensor) -> Tensor:
        """One prediction as the equations are written."""
        return self.model.classifier(self.model.readouts_literally(images))

    def network_to_keep(self) -> list[nn.Module]:
        """What predicts: without teacher and divergence classifier."""
        return [*self._stem, self.model.experts, self.model.later, self.model.classifier]

    def network_settings(self) -> dict[str, Any]:
        """The transformer's sizes and choices; it has the heads of the first expert alone."""
        return super().network_settings() | {"heads": [self.config.network.heads_of(1)]}

    def task_state(self, task: Task) -> dict[str, Tensor]:
        """The whole network: it changes with every task."""
        return Method.task_state(self, task)
