"""What follows from a learned task: exemplars, predictions, numbers."""

import functools
import hashlib
import importlib.metadata
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import dne_lab
from dne_lab.core.config import Config
from dne_lab.data.memory import herd
from dne_lab.data.stream import Task
from dne_lab.measure import cost, learning_cost, metrics
from dne_lab.measure.record import Record
from dne_lab.methods.base import Method
from dne_lab.training import step
from dne_lab.training.state import Cursor, State

if TYPE_CHECKING:
    from dne_lab.training.run import Handle


# From a run to its record.

BEFORE = "before_tuning"  # the reported prediction as it was before stage 2


def key(task: int, name: str) -> str:
    """The name of an array of predictions.npz: "task_01/labels" (true ranks) or "task_01/classifier" (predicted)."""
    return f"task_{task:02d}/{name}"


def measured(state: State, predictions: dict[str, np.ndarray], tasks: list[int]) -> dict[str, Any]:
    """All numbers that derive from predictions: those of `metrics.measure`, and the method's other predictions."""
    if not state.predicted:
        return {"accuracy": [], "seen_accuracy": [], "LA": None, "AA": None, "forgetting": None}
    early = [predictions.get(key(number, BEFORE)) for number in range(1, len(state.predicted) + 1)]
    labels = [predictions[key(number, "labels")] for number in range(1, len(state.predicted) + 1)]

    def of(name: str) -> dict[str, Any]:
        # A prediction that a task does not have (a teacher in task 1) is the reported one there.
        pairs = [
            (true, predictions[key(number, name if name in names else names[0])])
            for number, (true, names) in enumerate(zip(labels, state.predicted, strict=True), start=1)
        ]
        return metrics.measure(pairs, tasks)

    reported, *others = (name for name in state.predicted[-1] if name != BEFORE)
    short = {name: {k: v for k, v in of(name).items() if k in ("seen_accuracy", "LA", "AA")} for name in others}
    return of(reported) | {
        "other_predictions": short,
        "before_tuning": metrics.old_and_new(labels, early, tasks) if any(e is not None for e in early) else {},
    }


def record_of(run: "Handle") -> Record:
    """The record of a run as it stands."""
    config, stream, state = run.config, run.stream, run.state
    done = len(state.predicted)
    cost = state.cost[done - 1] if state.cost and done else {"flops_literal": None, "flops_spent": None}
    model = run.model
    memory: dict[str, Any] = {}
    if run.keeps_exemplars:
        memory = {"budget": config.memory.budget, "policy": config.memory.policy}
        memory |= {"bytes": config.memory.bytes} if config.memory.bytes is not None else {}
    return Record(
        method=config.method,
        preset=config.preset,
        dataset=stream.name,
        tasks=list(stream.tasks),
        class_order=list(stream.order),
        memory={"budget": 0, "policy": "none"}
        | memory
        | {"stored": (state.stored or [0])[-1], "scope": "run", "stored_by_task": list(state.stored)},
        seed=config.seed,
        epochs=config.learn.epochs,
        **measured(state, run.predictions, list(stream.tasks)),
        flops_literal=cost["flops_literal"],
        flops_spent=cost["flops_spent"],
        params={"total": state.params_total, "trainable_by_task": list(state.trainable)},
        device=device_name(run.device),
        torch=torch.__version__,
        code_version=code_version(),
        config_sha256=config.sha256,
        finished=run.finished,
        timing=json.loads(json.dumps(state.timing)),
        joint=type(run.method).joint,
        heads=list(getattr(model, "heads", [])),
        network=run.method.network_settings(),
        validation=config.data.validation,
        threads=torch.get_num_threads(),
        products=state.products,
        settings_sha256=settings_sha256(config),
        config=config.identity(),
        forked_from=dict(state.forked_from),
        flops_training=state.flops_training,
    )


def settings_sha256(config: Config) -> str:
    """Identity of a configuration without its seed and what follows from it (a class order, the run that it started
    behind): only runs that share it are averaged."""
    tree = config.identity()
    del tree["seed"]
    if config.start is not None:
        tree["start"] = config.start.partition("@")[2]
    if config.data.order_rule is not None:
        del tree["data"]["order"]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def device_name(device: torch.device) -> str:
    """ "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def code_version() -> str:
    """The package's version and a hash of its source: two records with the same one come from the same code."""
    folder = Path(dne_lab.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    try:
        version = importlib.metadata.version("dne-lab")
    except importlib.metadata.PackageNotFoundError:  # used from a checkout that is not installed
        version = "0"
    return f"{version}+{digest.hexdigest()[:10]}"


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
        for batch in step.clean(run.stream, "train", index, run.device):
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
    run.predictions[key(task.number, BEFORE)] = predictions[reported]
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
            run.method.finish(task, step.clean(run.stream, "train", exemplars, run.device))
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
    early = key(task.number, BEFORE)
    if early in run.predictions:
        predictions[BEFORE] = run.predictions.pop(early)  # behind the reported one, which comes first
    state.predicted.append([name for name in predictions if name != "labels"])
    run.predictions |= {key(task.number, name): array for name, array in predictions.items()}
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
    for batch in step.clean(run.stream, "test", index, run.device):
        run.check_signals()
        for name, scores in run.method.predict(batch.images).items():
            found.setdefault(name, []).append(scores.argmax(1).cpu())
    predicted = {name: torch.cat(parts).to(torch.int16).numpy() for name, parts in found.items()}
    return {"labels": run.stream.labels("test", index).to(torch.int16).numpy()} | predicted
