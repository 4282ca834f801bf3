"""What follows from a learned task: exemplars, predictions, numbers."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from dne_lab.data.memory import herd
from dne_lab.data.stream import Task
from dne_lab.measure import cost, learning_cost
from dne_lab.methods.base import Method
from dne_lab.training import batches, recording
from dne_lab.training.state import Cursor

if TYPE_CHECKING:
    from dne_lab.training.handle import Handle


@torch.no_grad()
def choose_exemplars(run: "Handle", task: Task) -> None:
    """Herds the new classes on clean images in float32, and reduces the old ones; once a task."""
    if run.state.chosen == task.number or not run.keeps_exemplars:
        return
    run.method.eval()
    quota = run.memory.quota(task.new.stop)
    chosen: dict[int, list[int]] = {}
    for rank in task.new:
        index = run.stream.index("train", range(rank, rank + 1))
        features = []
        for batch in batches.clean(run.stream, "train", index, run.device):
            run.check_signals()
            features.append(run.method.features(batch.images).float().cpu())
        positions = run.processes.same_numbers(herd(torch.cat(features), quota), run.device)
        chosen[rank] = index[positions].tolist()
    run.memory.reduce(task.new.stop)
    for rank, numbers in chosen.items():
        run.memory.add(rank, numbers)
    run.state.chosen = task.number
    run.clock.spend(run.state, "herding")


@torch.no_grad()
def predict_before_tuning(run: "Handle", task: Task) -> None:
    """Keeps what is predicted before stage 2, once a task from the second on: it says what stage 2 changes."""
    if run.state.untuned >= task.number or not task.old:
        return
    run.method.eval()
    _, reported, *_ = predictions = predict(run, range(task.new.stop))
    run.predictions[recording.key(task.number, recording.BEFORE)] = predictions[reported]
    run.state.untuned = task.number
    run.clock.spend(run.state, "evaluation")


@torch.no_grad()
def finish(run: "Handle", task: Task) -> None:
    """The end of a task: exemplars if no stage needed them, the method's own closing, predictions, the audit."""
    state, seen = run.state, range(task.new.stop)
    choose_exemplars(run, task)
    run.method.eval()
    if state.closed < task.number:
        exemplars = run.memory.index(seen) if run.keeps_exemplars else torch.empty(0, dtype=torch.int64)
        with run.changing():
            run.method.finish(task, batches.clean(run.stream, "train", exemplars, run.device))
            state.closed = task.number
    predictions = predict(run, seen)
    run.clock.spend(state, "evaluation")
    numbers = cost.of_tasks(run.config, run.stream) if state.cost is None else state.cost
    learned = learning(run) if task.number == len(run.stream) else None
    stored = [run.memory.audit(run.stream, len(seen))["stored"]] if run.keeps_exemplars else []
    run.clock.spend(state, "cost")
    # From here on nothing can fail: the task is finished as a whole.
    state.cost, state.params_total = numbers, total_parameters(run.method)
    state.flops_training = learned
    state.stored += stored
    early = recording.key(task.number, recording.BEFORE)
    if early in run.predictions:
        predictions[recording.BEFORE] = run.predictions.pop(early)  # behind the reported one, which comes first
    state.predicted.append([name for name in predictions if name != "labels"])
    run.predictions |= {recording.key(task.number, name): array for name, array in predictions.items()}
    run.optimisation, state.optimizer_of = None, None
    state.cursor, state.begun = Cursor(task.number + 1), False
    run.unwritten = task.number


def learning(run: "Handle") -> int | None:
    """FLOPs of learning all tasks; None behind another run, or where a method cannot be counted without its images."""
    if run.config.start is not None:
        return None
    try:
        with torch.enable_grad():
            return learning_cost.total(run.config, run.stream, run.device)
    except Exception as error:  # a method of the user's own, which has just been trained: nothing of that may be lost
        warnings.warn(f"what learning {run.config.method} cost was not counted: {error}", stacklevel=2)
        return None


def total_parameters(method: Method) -> int:
    """Parameters of the network that is kept."""
    return sum(cost.count(module) for module in method.network_to_keep())


def predict(run: "Handle", classes: range) -> dict[str, np.ndarray]:
    """True ranks ("labels") and predicted ranks by name, (n,) int16, over the test images of these classes.

    The reported prediction comes first behind the labels.
    """
    index = run.stream.index("test", classes)
    found: dict[str, list[torch.Tensor]] = {}
    for batch in batches.clean(run.stream, "test", index, run.device):
        run.check_signals()
        for name, scores in run.method.predict(batch.images).items():
            found.setdefault(name, []).append(scores.argmax(1).cpu())
    predicted = {name: torch.cat(parts).to(torch.int16).numpy() for name, parts in found.items()}
    return {"labels": run.stream.labels("test", index).to(torch.int16).numpy()} | predicted
