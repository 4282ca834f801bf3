"""Where a run stands, as data: everything of it that is neither a weight nor an exemplar."""

import dataclasses
import functools
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from dne_lab.core.schema import Like, check, plain
from dne_lab.measure.cost_records import CostRow
from dne_lab.measure.record import Name, Number, Timing, Whole


class Cursor(NamedTuple):
    """The next step: task (1, 2, ...), stage, epoch and step (0, 1, ...).

    ``stage`` equal to the number of the task's stages: only the task's end is left; ``task`` above the last: finished.
    """

    task: int = 1
    stage: int = 0
    epoch: int = 0
    step: int = 0


Two = Annotated[list[Whole], Field(min_length=2, max_length=2)]
Four = Annotated[list[Whole], Field(min_length=4, max_length=4)]


@dataclass
class Position:
    """The JSON part of a checkpoint; types are what a file may hold.

    ``begun``: the cursor's stage was entered. ``optimizer_of``: task and stage of the optimiser in the checkpoint.
    ``chosen`` / ``closed``: the last task whose exemplars were chosen / whose `finish` ran. ``sums``: of the losses of
    the running epoch, times images; ``images``: how many. ``predicted``: names of the predictions of each task.
    ``forked_from``, ``flops_training``: see `Record`.
    ``untuned``: the last task whose predictions before stage 2 were made.
    ``data_changes``: where the run went on with changed data, ``task_sha256``: digests of its tasks' files.
    ``threads``, ``processes``: how many it was last trained with (0: not known, or a GPU's threads).
    ``products``: how matrix products are computed (`products.CHOICES`, `products.ON_GPU`).
    """

    cursor: Annotated[Cursor, Like(Four)] = field(default_factory=Cursor)
    begun: bool = False
    optimizer_of: Annotated[tuple[int, int] | None, Like(Two | None)] = None
    chosen: Whole = 0
    closed: Whole = 0
    sums: dict[str, Number] = field(default_factory=dict)
    images: Whole = 0
    curves: Annotated[list[dict[str, Any]], Like(list[dict[str, Number | Name | None]])] = field(default_factory=list)
    stored: list[Whole] = field(default_factory=list)
    trainable: list[Whole] = field(default_factory=list)
    predicted: list[list[Name]] = field(default_factory=list)
    params_total: Whole = 0
    untuned: Whole = 0
    cost: Annotated[list[dict[str, Any]] | None, Like(list[CostRow] | None)] = None
    timing: Annotated[dict[str, Any], Like(Timing)] = field(default_factory=dict)
    forked_from: dict[str, Any] = field(default_factory=dict)
    products: Name = ""
    threads: Whole = 0
    processes: Whole = 0
    flops_training: Whole | None = None
    data_changes: list[dict[str, Any]] = field(default_factory=list)
    task_sha256: list[Name] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is the inverse."""
        return dataclasses.asdict(self) | {"cursor": list(self.cursor)}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "Position":
        """From the dictionary of `to_dict`, perhaps after JSON; a `LabError` names a field that is not right."""
        check(_stored(), plain(tree))
        position = cls(**tree)
        position.cursor = Cursor(*position.cursor)
        of = position.optimizer_of
        position.optimizer_of = None if of is None else (of[0], of[1])
        return position


@functools.cache
def _stored() -> type[BaseModel]:
    """`Position` as a checkpoint's JSON holds it: where a run stands is always there, the rest where it was known."""
    kinds = get_type_hints(Position, include_extras=True)
    fields: dict[str, Any] = {
        one.name: (kinds[one.name], ... if one.name == "cursor" else Field(None, validate_default=False))
        for one in dataclasses.fields(Position)
    }
    closed = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model("Stored", __config__=closed, **fields)


class Clock:
    """Adds wall-clock seconds to ``timing``: "seconds" in all, by task, and by what they were spent on.

    "last_epoch" holds, for each task and stage, the seconds of the last epoch that was learned without a break, with
    the checkpoints written in it: the first epoch of a process also pays for what is loaded and compiled once.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Time before this call is counted nowhere."""
        self.mark = time.perf_counter()
        self.epoch: float | None = None  # seconds of the running epoch, None where it began elsewhere

    def spend(self, position: Position, on: str, stage: str | None = None) -> None:
        """The time since the last call went to ``on`` ("learning", "herding", "evaluation", ...) in the cursor's task;
        ``stage``: and an epoch of this stage is over."""
        now = time.perf_counter()
        passed, self.mark = now - self.mark, now
        timing, task = position.timing, position.cursor.task
        timing["seconds"] = timing.get("seconds", 0.0) + passed
        spent = timing.setdefault("by_purpose", {})
        spent[on] = spent.get(on, 0.0) + passed
        tasks = timing.setdefault("by_task", [])
        tasks += [0.0] * (task - len(tasks))
        tasks[task - 1] += passed
        if self.epoch is not None and on == "learning":
            self.epoch += passed
        if stage is not None and self.epoch is not None:
            epochs = timing.setdefault("last_epoch", [])
            epochs += [{} for _ in range(task - len(epochs))]
            epochs[task - 1][stage] = self.epoch
        if stage is not None or on != "learning":
            self.epoch = 0.0

    def share(self, position: Position, what: str, seconds: float) -> None:
        """``seconds`` that another run spent on ``what``, and that are part of what this one costs."""
        timing, task = position.timing, position.cursor.task
        timing["seconds"] = timing.get("seconds", 0.0) + seconds
        timing.setdefault("by_purpose", {})[f"shared {what}"] = seconds
        tasks = timing.setdefault("by_task", [])
        tasks += [0.0] * (task - len(tasks))
        tasks[task - 1] += seconds
