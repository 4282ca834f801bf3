"""A run's state as data: what it learns, from what, and how far it is. Files are written from it and read into it."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from dne_lab.core import chance
from dne_lab.core.config import Config
from dne_lab.core.errors import LabError
from dne_lab.data.memory import ExemplarMemory
from dne_lab.data.stream import ClassStream, Task
from dne_lab.measure import cost
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.methods.base import BALANCED, BASE, Method, Stage
from dne_lab.models import products
from dne_lab.training.distributed import Processes
from dne_lab.training.position import Clock, Cursor, Position
from dne_lab.training.run_folder import Arrays
from dne_lab.training.step import Optimisation


@dataclass
class RunState:
    """All that a run knows at a moment. `storage.load` makes one from a folder, `storage.save` writes it there.

    ``stream`` is what is learned (of a method with ``joint``: all classes at once). ``optimisation``: of the stage that
    the position is in. ``predictions`` maps task_NN/labels and task_NN/NAME to ranks. ``record``: what was written of a
    run that was finished before. ``unwritten``: a finished task whose files have not been written, or 0.
    ``half_changed``: an exception came in the middle of a change, so that this state is not gone on from.
    ``model_file``: what a finished model came from, without the rest of its run; ``task_states``: the weights in it, as
    each task left them, or those of the last task alone. ``accepted``: changed data were accepted, and that is not
    written yet.
    """

    config: Config
    stream: ClassStream
    device: torch.device
    method: Method
    memory: ExemplarMemory
    position: Position = field(default_factory=Position)
    optimisation: Optimisation | None = None
    predictions: Arrays = field(default_factory=dict)
    record: Record | None = None
    clock: Clock = field(default_factory=Clock)
    unwritten: int = 0
    half_changed: bool = False
    accepted: bool = False
    model_file: Path | None = None
    task_states: list[dict[str, Tensor]] = field(default_factory=list)

    @classmethod
    def fresh(cls, config: Config, stream: ClassStream, device: torch.device) -> Self:
        """The state before the first step; the method is on the CPU."""
        cost.refuse_too_large(config, stream, _memory(device))
        memory = ExemplarMemory(config.memory.budget, config.memory.policy, stream.classes)
        return cls(config, stream, device, base.create(config, stream), memory)

    @property
    def cursor(self) -> Cursor:
        """The next step."""
        return self.position.cursor

    @property
    def finished(self) -> bool:
        """Whether all tasks have been learned."""
        return self.cursor.task > len(self.stream)

    @property
    def model(self) -> Any:
        """The method's network (the method itself, if it has no ``model``)."""
        return getattr(self.method, "model", self.method)

    @property
    def keeps_exemplars(self) -> bool:
        """Whether there is an exemplar memory: the method uses one, and does not see all classes at once."""
        return self.method.uses_memory and not self.method.joint

    def place(self) -> str:
        """The cursor in words."""
        task, stage, epoch, step = self.cursor
        stages = self.method.stages(self.stream.task(task)) if not self.finished else []
        name = stages[stage].name if stage < len(stages) else "end"
        return f"task {task}, stage {name}, epoch {epoch + 1}, step {step + 1}"

    def spend(self, on: str, stage: str | None = None) -> None:
        """The time since the last call went to ``on``; see `Clock.spend`."""
        self.clock.spend(self.position, on, stage)

    def check_weights(self) -> None:
        """Raises a `LabError` if a trained weight is NaN or Inf: the loss that would show it comes a step later."""
        if self.optimisation is not None and not self.optimisation.finite():
            raise LabError(
                f"weights hold NaN or Inf at {self.place()}. The last good checkpoint, if there is one, is kept. Lower "
                "the learning rate (learn.lr) or set learn.clip, and give another folder (--out)."
            )

    def index(self, task: Task, stage: Stage) -> Tensor:
        """The numbers of the training images of a stage, (n,) int64."""
        if stage.data == BALANCED:
            return self.memory.balanced(task.new.stop)
        if stage.data == BASE:
            return self.stream.index("train", range(self.config.data.tasks[0]))
        new = self.stream.index("train", task.new)
        return torch.cat([new, self.memory.index(task.old)]) if self.keeps_exemplars else new

    def size(self, task: Task, stage: Stage) -> int:
        """How many images a stage will have, also before its exemplars are chosen (for the progress bar)."""
        if stage.data == BALANCED and self.position.chosen < task.number:
            return min(self.memory.quota(task.new.stop) * task.new.stop, self.memory.budget)
        return len(self.index(task, stage))

    # Changing it -----------------------------------------------------------------------------------------------------

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A change that is whole only at its end; a state left half changed by an exception is loaded again."""
        self.half_changed = True
        yield
        self.half_changed = False

    def enter(self, method: Method, task: Task, stage: Stage) -> None:
        """A change of structure: on the CPU and with chance of its own, so that it can be replayed anywhere."""
        with chance.seeded(self.config.seed, "enter", task.number, stage.name):
            method.to("cpu").enter(task, stage)
        method.to(self.device)

    def replay(self, method: Method, cursor: Cursor, begun: bool) -> None:
        """Calls `enter` of a new method for every stage up to a cursor (the cursor's own if it was begun)."""
        for task in self.stream:
            for number, stage in enumerate(method.stages(task)):
                if (task.number, number) < cursor[:2] or (begun and (task.number, number) == cursor[:2]):
                    self.enter(method, task, stage)

    @contextmanager
    def multiplying(self, where: str) -> Iterator[None]:
        """Matrix products by what is fastest here, but by what the run (``where``: its folder) began with if it has."""
        before, begun = self.position.products, self.position.begun or self.cursor != Cursor()
        self._compare_workers(where)
        context: AbstractContextManager[None]
        if self.device.type == "cuda":
            self.position.products = products.resumed_on_gpu(before, begun, self.config.precision)
            context = products.tf32(self.multiplies_by == products.TF32)
        elif self.device.type == "cpu":
            self.position.products = products.resumed(before, begun)
            context = products.by(self.multiplies_by)
        else:
            context = nullcontext()
        if before and self.position.products != before:
            text = f"{where} began with matrix products by {before}, which this machine does not offer: from here on "
            warnings.warn(text + f"by {self.multiplies_by}, and the last digits may differ.", stacklevel=3)
        with context:
            yield

    def _compare_workers(self, where: str) -> None:
        """Names another number of threads or processes than before: sums are rounded otherwise."""
        position = self.position
        now = {"threads": torch.get_num_threads() if self.device.type == "cpu" else 0, "processes": Processes().world}
        for name, count in now.items():
            before = getattr(position, name)
            if before and count and before != count:
                text = f"{where} was trained with {before} {name} so far and goes on with {count}: sums are rounded "
                warnings.warn(
                    f"{text}otherwise, so its last digits will differ from a run with {before}.", stacklevel=4
                )
            setattr(position, name, count)

    @property
    def multiplies_by(self) -> str:
        """How products are computed now: what stands last in the position."""
        return self.position.products.split("+")[-1]

    def autocast(self) -> torch.autocast:
        """The bfloat16 of ``precision=bf16``."""
        wanted = self.config.precision == "bf16" or self.multiplies_by == products.BF16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)


def _memory(device: torch.device) -> int:
    """Bytes that the device has in all; of a kind that does not say, more than any has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return cost.machine_memory()
