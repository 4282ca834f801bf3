"""What follows from a learned task: exemplars, predictions, numbers."""

import functools
import hashlib
import importlib.metadata
import json
import platform
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dne_lab.core.config import Config
from dne_lab.core.errors import LabError
from dne_lab.core.sealing import sha256
from dne_lab.data.identity import data_sha256, images_sha256
from dne_lab.data.memory import herd
from dne_lab.data.stream import Task
from dne_lab.measure import cost, learning_cost, metrics
from dne_lab.measure.record import Record
from dne_lab.methods.base import Method
from dne_lab.methods.expansion import Expansion
from dne_lab.training.distributed import Processes
from dne_lab.training.feed import clean
from dne_lab.training.position import Cursor, Position
from dne_lab.training.run_folder import curves_file, predictions_file
from dne_lab.training.state import RunState

Check = Callable[[], None]  # called between batches: raises what has arrived, such as Ctrl-C

# From a run to its record.

BEFORE = "before_tuning"  # the reported prediction as it was before stage 2


def key(task: int, name: str) -> str:
    """The name of an array of predictions.npz: "task_01/labels" (true ranks) or "task_01/classifier" (predicted)."""
    return f"task_{task:02d}/{name}"


def measured(position: Position, predictions: dict[str, np.ndarray], tasks: list[int]) -> dict[str, Any]:
    """All numbers that derive from predictions: those of `metrics.measure`, and the method's other predictions."""
    if not position.predicted:
        return {"accuracy": [], "seen_accuracy": [], "LA": None, "AA": None, "forgetting": None}
    early = [predictions.get(key(number, BEFORE)) for number in range(1, len(position.predicted) + 1)]
    labels = [predictions[key(number, "labels")] for number in range(1, len(position.predicted) + 1)]

    def of(name: str) -> dict[str, Any]:
        # A prediction that a task does not have (a teacher in task 1) is the reported one there.
        pairs = [
            (true, predictions[key(number, name if name in names else names[0])])
            for number, (true, names) in enumerate(zip(labels, position.predicted, strict=True), start=1)
        ]
        return metrics.measure(pairs, tasks)

    reported, *others = (name for name in position.predicted[-1] if name != BEFORE)
    short = {name: {k: v for k, v in of(name).items() if k in ("seen_accuracy", "LA", "AA")} for name in others}
    return of(reported) | {
        "other_predictions": short,
        "before_tuning": metrics.old_and_new(labels, early, tasks) if any(e is not None for e in early) else {},
    }


def record_of(state: RunState) -> Record:
    """The record of a run as it stands; of one that was finished before, what was written then."""
    if state.record is not None:
        return state.record
    config, stream, position = state.config, state.stream, state.position
    done = len(position.predicted)
    cost = position.cost[done - 1] if position.cost and done else {"flops_literal": None, "flops_spent": None}
    model = state.model
    memory: dict[str, Any] = {}
    if state.keeps_exemplars:
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
        | {"stored": (position.stored or [0])[-1], "scope": "run", "stored_by_task": list(position.stored)},
        seed=config.seed,
        epochs=config.learn.epochs,
        **measured(position, state.predictions, list(stream.tasks)),
        flops_literal=cost["flops_literal"],
        flops_spent=cost["flops_spent"],
        params={"total": position.params_total, "trainable_by_task": list(position.trainable)}
        | _backbone(state.method),
        device=device_name(state.device),
        torch=torch.__version__,
        code_version=code_version(),
        config_sha256=config.sha256,
        finished=state.finished,
        timing=json.loads(json.dumps(position.timing)) | {"command": command()},
        joint=type(state.method).joint,
        heads=list(getattr(model, "heads", [])),
        network=state.method.network_settings(),
        validation=config.data.validation,
        threads=torch.get_num_threads(),
        products=position.products,
        settings_sha256=settings_sha256(config),
        config=config.identity(),
        forked_from=dict(position.forked_from),
        flops_training=position.flops_training,
        data_sha256=data_sha256(stream),
        images_sha256=images_sha256(stream),
        data_changes=[dict(change) for change in position.data_changes],
        task_sha256=list(position.task_sha256),
        curves_sha256=sha256(curves_file(position.curves)),
        predictions_sha256=sha256(predictions_file(state.predictions)),
        python=platform.python_version(),
        numpy=np.__version__,
        platform=f"{platform.platform()}, {processor()}",
    )


def _backbone(method: Method) -> dict[str, int]:
    """How many of the total parameters are those of a pretrained backbone, if there is one."""
    own = method.parameters_of_backbone() if isinstance(method, Expansion) else 0
    return {"backbone": own} if own else {}


def settings_sha256(config: Config) -> str:
    """Identity of a configuration without its seed and what follows from it (a class order, the run that it started
    after): only runs that share it are averaged."""
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
def processor() -> str:
    """The processor's name, where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, named), platform.processor() or platform.machine())


LONGEST = 1000  # characters of a command in a record
UNTOLD = ("", "-c", "-m", "ipykernel_launcher.py")  # Python itself, or a notebook


def command() -> str:
    """The command line that this process was started with, without the folder of the program and with ``~`` for the
    home folder; "" in a notebook or an interactive Python. A process of ``--jobs`` has the command of its parent."""
    program = Path(sys.argv[0]).name
    if program in UNTOLD:
        return ""
    name = ["dne-lab"] if program == "__main__.py" else ["python", program] if program.endswith(".py") else [program]
    told = shlex.join([*name, *sys.argv[1:]]).replace(f"{Path.home()}/", "~/")
    return told if len(told) <= LONGEST else f"{told[: LONGEST - 4]} ..."


@functools.cache
def code_version() -> str:
    """The package's version and a hash of its source: two records with the same one come from the same code."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    try:
        version = importlib.metadata.version("dne-lab")
    except importlib.metadata.PackageNotFoundError:  # used from a checkout that is not installed
        version = "0"
    return f"{version}+{digest.hexdigest()[:10]}"


@torch.no_grad()
def choose_exemplars(state: RunState, task: Task, check: Check) -> None:
    """Herds the new classes on clean images in float32, and reduces the old ones; once per task."""
    if state.position.chosen == task.number or not state.keeps_exemplars:
        return
    state.method.eval()
    quota = state.memory.quota(task.new.stop)
    chosen: dict[int, list[int]] = {}
    for rank in task.new:
        index = state.stream.index("train", range(rank, rank + 1))
        features = []
        for batch in clean(state.stream, "train", index, state.device):
            check()
            features.append(state.method.features(batch.images).float().cpu())
        whole = torch.cat(features)
        if not bool(torch.isfinite(whole).all()):
            raise LabError(
                f"features of class {state.stream.class_names[rank]!r} hold NaN or Inf after task {task.number} was "
                "learned: training has diverged. The last good checkpoint, if there is one, is kept. Lower the "
                "learning rate (learn.lr) or set learn.clip, and give another folder (--out)."
            )
        positions = Processes().same_numbers(herd(whole, quota), state.device)
        chosen[rank] = index[positions].tolist()
    state.memory.reduce(task.new.stop)
    for rank, numbers in chosen.items():
        state.memory.add(rank, numbers)
    state.position.chosen = task.number
    state.spend("herding")


@torch.no_grad()
def predict_before_tuning(state: RunState, task: Task, check: Check) -> None:
    """Keeps what is predicted before stage 2, once per task from the second on: it says what stage 2 changes."""
    if state.position.untuned >= task.number or not task.old:
        return
    state.method.eval()
    _, reported, *_ = predictions = predict(state, range(task.new.stop), check)
    state.predictions[key(task.number, BEFORE)] = predictions[reported]
    state.position.untuned = task.number
    state.spend("evaluation")


@torch.no_grad()
def finish(state: RunState, task: Task, check: Check) -> None:
    """The end of a task: exemplars if no stage needed them, the method's own closing, predictions, the audit."""
    position, seen = state.position, range(task.new.stop)
    choose_exemplars(state, task, check)
    state.method.eval()
    if position.closed < task.number:
        exemplars = state.memory.index(seen) if state.keeps_exemplars else torch.empty(0, dtype=torch.int64)
        with state.changing():
            state.method.finish(task, clean(state.stream, "train", exemplars, state.device))
            position.closed = task.number
    predictions = predict(state, seen, check)
    state.spend("evaluation")
    numbers = cost.of_tasks(state.config, state.stream) if position.cost is None else position.cost
    learned = flops_of_learning(state) if task.number == len(state.stream) else None
    stored = [state.memory.audit(state.stream, len(seen))["stored"]] if state.keeps_exemplars else []
    state.spend("cost")
    # From here on nothing can fail: the task is finished as a whole.
    position.cost, position.params_total = numbers, total_parameters(state.method)
    position.flops_training = learned
    position.stored += stored
    early = key(task.number, BEFORE)
    if early in state.predictions:
        predictions[BEFORE] = state.predictions.pop(early)  # after the reported one, which comes first
    position.predicted.append([name for name in predictions if name != "labels"])
    state.predictions |= {key(task.number, name): array for name, array in predictions.items()}
    state.optimisation, position.optimizer_of = None, None
    position.cursor, position.begun = Cursor(task.number + 1), False
    state.unwritten = task.number


_counted: dict[tuple[Any, ...], int] = {}  # what learning cost, by all that it depends on: a run again counts nothing
_REMEMBERED = 1000  # runs


def flops_of_learning(state: RunState) -> int | None:
    """FLOPs of learning all tasks; None after another run, or where a method cannot be counted without its images."""
    if state.config.start is not None:
        return None
    stream = state.stream
    images = tuple(len(stream.index("train", range(rank, rank + 1))) for rank in range(stream.classes))
    known = (type(state.method), state.config.sha256, stream.shape, stream.tasks, images, str(state.device))
    if known in _counted:
        return _counted[known]
    try:
        with torch.enable_grad():
            found = learning_cost.total(state.config, stream, state.device)
        if len(_counted) >= _REMEMBERED:
            _counted.clear()
        _counted[known] = found
        return found
    except Exception as error:  # a method of the user's own, which has just been trained: nothing of that may be lost
        warnings.warn(f"what learning {state.config.method} cost was not counted: {error}", stacklevel=2)
        return None


def total_parameters(method: Method) -> int:
    """Parameters of the network that is kept."""
    return sum(cost.count(module) for module in method.network_to_keep())


def predict(state: RunState, classes: range, check: Check) -> dict[str, np.ndarray]:
    """True ranks ("labels") and predicted ranks by name, (n,) int16, over the test images of these classes.

    The reported prediction comes first after the labels.
    """
    index = state.stream.index("test", classes)
    found: dict[str, list[torch.Tensor]] = {}
    for batch in clean(state.stream, "test", index, state.device):
        check()
        for name, scores in state.method.predict(batch.images).items():
            found.setdefault(name, []).append(scores.argmax(1))
    predicted = {name: torch.cat(parts).cpu().to(torch.int16).numpy() for name, parts in found.items()}
    return {"labels": state.stream.labels("test", index).to(torch.int16).numpy()} | predicted
