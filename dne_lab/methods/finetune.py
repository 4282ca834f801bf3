"""One transformer that goes on training: fine-tuning (the lower bound), with exemplars (replay), and joint training on
all classes at once (the upper bound)."""

from typing import Any, ClassVar

from torch import Tensor

from dne_lab.core.config import LATER_HEADS
from dne_lab.data.stream import Batch, Task
from dne_lab.methods.base import Method, NoOptions, Stage
from dne_lab.methods.expansion import Expansion


class FineTuning(Expansion):
    """One transformer that goes on training on each new task alone, and forgets."""

    name = "finetune"
    title = "Finetune"
    uses_memory = False
    shares_first_task = False
    Options: ClassVar[type[Any]] = NoOptions
    ignores: ClassVar[tuple[str, ...]] = (LATER_HEADS,)

    def grow(self, task: Task) -> None:
        """The one expert in task 1, then the classifier alone; everything but a stem and a backbone trains."""
        if task.number == 1:
            super().grow(task)
        else:
            self.model.widen(len(task.new))
            self.model.teacher = None
            self.model.thaw()

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """Classification over all classes seen."""
        if stage.name == "stem":
            return self.stem_losses(batch)
        return {"classification": self.classification(self._logits(batch), batch.labels)}

    def task_state(self, task: Task) -> dict[str, Tensor]:
        """The whole network: it changes with every task."""
        return Method.task_state(self, task)


class Joint(Expansion):
    """Joint training on all classes: not incremental, the upper bound that D is measured against."""

    name = "joint"
    title = "Joint"
    uses_memory = False
    joint = True
    shares_first_task = False
    Options: ClassVar[type[Any]] = NoOptions
    ignores: ClassVar[tuple[str, ...]] = (LATER_HEADS,)


class Replay(FineTuning):
    """Fine-tuning with exemplars of old classes mixed in, and a balanced tuning of the classifier after each task."""

    name = "replay"
    title = "Replay"
    uses_memory = True
