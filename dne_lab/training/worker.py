"""One run of many: how it is begun and trained, in this process or in one of its own that reports to its parent."""

import importlib
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from dne_lab.core.errors import LabError
from dne_lab.core.folder_lock import alone_in
from dne_lab.data.stream import ClassStream, from_config
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.training import distributed, gpus
from dne_lab.training.graph import Job
from dne_lab.training.progress import Terminated
from dne_lab.training.run import Run

Viewer = Callable[[Run], None]  # shown a run after every epoch and task


def learn(
    job: Job,
    stream: ClassStream,
    behind: Job | None = None,
    seconds: float | None = None,
    viewers: Sequence[Callable[[], Viewer]] = (),
    last: int | None = None,
    patience: float = 0.0,
    **settings: Any,
) -> Record:
    """Trains what is left of a run, as its folder has it, else after the task 1 of ``behind``, else from its start.

    The folder is held from the first look at it to the end, so that no other process can train the same run;
    ``patience``: seconds to wait for one that does. ``viewers`` make what is `watching` it; ``last``: as for
    `Run.train`.

    Raises:
        LabError: the folder is in use by another process; what `Run` raises.
    """
    distributed.start()
    from_first = distributed.Processes().from_first
    with ExitStack() as held:
        from_first(lambda: held.enter_context(alone_in(job.folder, patience)))
        if behind is None or from_first(lambda: job.begun):
            run = Run(job.config, stream, job.folder, **settings)
        else:
            theirs = stream if behind.config.data == job.config.data else None
            run = Run(behind.config, theirs, behind.folder, **settings).fork_as(job.config, job.folder)
        with watching(run, viewers):
            run.train(seconds, lock=False, last=last)
        return run.record


@contextmanager
def watching(run: Run, viewers: Sequence[Callable[[], Viewer]]) -> Iterator[None]:
    """Inside, a viewer from each of ``viewers`` follows a run: it is shown what there is at first. One with a ``close``
    is closed at the end, also after an error or a signal."""
    with ExitStack() as ends:
        for make in viewers:
            viewer = make()
            if hasattr(viewer, "close"):
                ends.callback(viewer.close)
            viewer(run)
            run.viewers.append(viewer)
            ends.callback(run.viewers.remove, viewer)
        yield


# In a process of its own ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """What such a process is told. ``until``: when to stop with a checkpoint, in seconds of `time.time`.

    ``modules`` are those that define the methods of both runs; ``stream`` is pickled, None: what the configuration
    describes. ``viewers``, ``last``, ``patience``: as `learn` takes them. ``gpu``: the only one that it is to see.
    """

    job: Job
    modules: tuple[str, ...]
    behind: Job | None
    stream: bytes | None
    until: float
    threads: int
    viewers: Sequence[Callable[[], Viewer]] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    last: int | None = None
    patience: float = 0.0
    gpu: str | None = None


def fulfil(order: Order, viewers: Sequence[Callable[[], Viewer]] = ()) -> None:
    """Trains one run as it was told, in this process; ``viewers``: in front of those of the order.

    Raises:
        LabError: what `learn` raises; a method that no module defines.
    """
    if order.gpu is not None:  # before this process asks CUDA for the first time
        os.environ["CUDA_VISIBLE_DEVICES"] = order.gpu
    torch.set_num_threads(order.threads)
    for module in order.modules:  # __main__ is here already: a script's, but not a notebook's
        importlib.import_module(module)
    if order.job.config.method not in base.Method.registry:
        raise LabError(
            f"method {order.job.config.method} is defined in a notebook or script, which other processes do not "
            "see. Put it into a module of its own and import that, or run with jobs=1."
        )
    stream = from_config(order.job.config.data) if order.stream is None else pickle.loads(order.stream)
    seconds = None if order.until == math.inf else max(0.0, order.until - time.time())
    behind = order.behind
    if behind is not None and behind.config.method not in base.Method.registry:
        behind = None  # of a method in a notebook, which this process cannot open: task 1 is learned here
    followed = [*viewers, *order.viewers]
    learn(order.job, stream, behind, seconds, followed, order.last, order.patience, **order.settings)


def work(order: Order, pipe: Connection) -> None:
    """Trains one run, and tells the parent: ("step", epochs done, of), ("task", sentence), ("end", how, message).

    Ctrl-C is the parent's: it sends SIGTERM to its children. A child whose parent has died stops in the same way.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(*message: object) -> None:
        with suppress(OSError):  # the parent is gone, and this process about to stop
            pipe.send(message)

    try:
        fulfil(order, [lambda: _Reporter(tell)])
        tell("end", "done", "")
    except Terminated:
        tell("end", "stopped", "stopped by a signal, with a checkpoint. The same again goes on from there.")
    except Exception as error:
        tell("end", "failed", failure_text(error))


def failure_text(error: Exception) -> str:
    """What is said of a run that has failed: the sentence of a `LabError`; of another error also where it came from."""
    if isinstance(error, LabError):
        return str(error)
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"


def _end_with_parent() -> None:
    """Waits for the end of the parent, then asks this process to stop with a checkpoint."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class _Reporter:
    """A viewer of a run that tells how far it is: first of all what was learned before, then every epoch and task."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self.tell = tell
        self.tasks: int | None = None

    def __call__(self, run: Run) -> None:
        done = len(run.state.position.predicted)
        if done > (self.tasks or 0):  # at first: learned by another run, or before a stop
            accuracy, earlier = run.record.seen_accuracy[-1], "" if self.tasks is not None else " (learned before)"
            self.tell("task", f"task {done}/{len(run.stream)}: accuracy {accuracy:.1f}%{earlier}")
        self.tasks = done
        epochs = {
            (task.number, number): stage.recipe.epochs
            for task in run.stream
            for number, stage in enumerate(run.method.stages(task))
        }
        before = sum(count for place, count in epochs.items() if place < run.cursor[:2])
        if torch.cuda.is_initialized():
            self.tell("gpu", torch.cuda.max_memory_reserved() + gpus.CONTEXT)
        self.tell("step", before + run.cursor.epoch, sum(epochs.values()))
