"""From a run to its record."""

import functools
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import dne_lab
from dne_lab.config import Config
from dne_lab.measure import metrics
from dne_lab.measure.record import Record
from dne_lab.training.state import State

if TYPE_CHECKING:
    from dne_lab.training.handle import Handle


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
