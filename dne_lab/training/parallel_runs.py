"""Several runs at a time, each in a process of its own, within the cores and the memory of the machine."""

import math
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from dne_lab.core.errors import LabError
from dne_lab.data.stream import ClassStream
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.training import distributed, gpus, graph
from dne_lab.training.graph import Job
from dne_lab.training.machine import available_memory, cores, memory_of
from dne_lab.training.progress import Board, Signals
from dne_lab.training.run_folder import finished, record_in
from dne_lab.training.worker import Order, Viewer, work

LOOK = 0.2  # seconds between two looks at signals, memory and what may start
ASK = 2.0  # seconds between two questions for the free memory of GPUs, where a run waits for it
PLACED = "cuda"  # what a run is told that sees one GPU alone
# What the children share: imported once by the process that they are forked from. torch._dynamo is what the first
# optimiser of a process imports.
SHARED = ["dne_lab.training.worker", "dne_lab.methods", "torch._dynamo"]
OF_DATA = "sklearn.datasets"  # shared as well when the data set has made this process import it


class RunsFailed(LabError):
    """Some of several runs failed: those in ``folders``. ``records`` are those of all runs that have one."""

    def __init__(self, message: str, records: list[Record], folders: tuple[Path, ...] = ()) -> None:
        super().__init__(message)
        self.records, self.folders = records, folders


def number(jobs: int | str, runs: int, device: str | torch.device | None) -> int:
    """How many of ``runs`` runs are trained at a time: ``jobs``, or for "auto" one run per core, and one on each GPU.

    It depends on the whole plan, not on what is left of it, so that a resumed grid computes with as many threads.

    Raises:
        LabError: no such number; several in each of several processes.
    """
    if jobs != "auto" and (not isinstance(jobs, int) or jobs < 1):
        raise LabError(f"jobs = {jobs!r}: give a number of runs at a time, from 1, or auto.")
    distributed.start()
    together = distributed.Processes().world > 1
    each = max(1, len(gpus_of(device))) if _kind(device).type != "cpu" else cores()
    wanted = (1 if together else each) if jobs == "auto" else int(jobs)
    count = min(wanted, max(1, runs))
    if count > 1 and together:
        raise LabError(f"jobs = {jobs}: under torchrun all processes train one run together. Leave jobs at 1.")
    return count


def _kind(device: str | torch.device | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def gpus_of(device: str | torch.device | None) -> list[gpus.Gpu]:
    """The GPUs among which runs are placed; none on a CPU, or where free memory is not known."""
    kind = _kind(device)
    return gpus.visible(kind.index) if kind.type == "cuda" else []


def execute(
    jobs: Sequence[Job],
    count: int,
    stream: ClassStream | None = None,
    seconds: float | None = None,
    progress: bool = True,
    viewers: Sequence[Callable[[], Viewer]] = (),
    **settings: Any,
) -> list[Record]:
    """`grid.execute` of unfinished and finished runs, ``count`` at a time; the records of all that have one.

    It starts the process that the others are forked from, so it is not for runs of which none is left to train.

    Raises:
        RunsFailed: after all others have ended.
        KeyboardInterrupt: Ctrl-C, or another signal (`progress.Terminated`), after every run has written a checkpoint;
            a second Ctrl-C ends them at once.
    """
    pool = _Pool(jobs, count, stream, seconds, progress, viewers, settings)
    pool.work()
    if pool.failed:
        raise failure(jobs, pool.failed)
    return records_of(jobs)


def records_of(jobs: Sequence[Job]) -> list[Record]:
    """The records of all runs that have one."""
    return [record for job in jobs if (record := record_in(job.folder)) is not None]


def failure(jobs: Sequence[Job], failed: Sequence[tuple[Job, str]]) -> RunsFailed:
    """The error after all other runs have ended; ``failed``: which ones did, and the message of each."""
    lines = [f"\n{job.title} ({job.folder}): {message}" for job, message in failed]
    folders = tuple(job.folder for job, _ in failed)
    return RunsFailed(f"{len(lines)} of {len(jobs)} runs failed:{''.join(lines)}", records_of(jobs), folders)


@dataclass
class _Child:
    """A run in its own process."""

    job: Job
    process: BaseProcess
    pipe: Connection
    gpu: str | None = None  # that it alone sees
    on_gpu: int = 0  # bytes of it at its peak
    reported: bool = False  # where it began
    ended: tuple[str, str] | None = None  # how, and the message


class _Pool:
    """The runs that wait, that run, and that failed."""

    def __init__(
        self,
        jobs: Sequence[Job],
        count: int,
        stream: ClassStream | None,
        seconds: float | None,
        progress: bool,
        viewers: Sequence[Callable[[], Viewer]],
        settings: dict[str, Any],
    ) -> None:
        self.jobs, self.count, self.settings = jobs, count, settings | {"progress": False}
        self.viewers = viewers
        self.stream = None if stream is None else pickle.dumps(stream)
        self.until = math.inf if seconds is None else time.monotonic() + seconds
        self.threads = max(1, min(torch.get_num_threads(), cores() // count))
        self.waiting = [job for job in jobs if finished(job.folder) is None]
        self.running: list[_Child] = []
        self.failed: list[tuple[Job, str]] = []
        self.known = False  # what a run takes, for one has learned an epoch
        self.largest = self.largest_on_gpu = 0
        self.waits_for_memory = False
        self.gpus, self.asked = gpus_of(settings.get("device")), -ASK
        self.begun = False
        self.board = Board(progress)
        self.context = _context()

    def _name(self, job: Job) -> str:
        """What a run is called on the screen: with its folder where another one has the same method and seed."""
        alike = sum(other.title == job.title for other in self.jobs) > 1
        return f"{job.title} ({job.folder})" if alike else job.title

    def work(self) -> None:
        """Trains until nothing is left to do, or a signal or the end of the time stops it."""
        each = f"{self.threads} thread{'s' * (self.threads > 1)} each"
        with Signals() as signals:
            self.board.say(f"{len(self.waiting)} runs, at most {self.count} at a time, {each}.")
            stopping = False
            try:
                while True:
                    if signals.received is not None and not stopping:
                        stopping = True
                        self.board.say("stopping: every run writes a checkpoint.")
                        for child in self.running:
                            child.process.terminate()
                    late = self.begun and time.monotonic() >= self.until
                    if not (stopping or late):
                        self._start()
                    if not self.running:
                        break
                    for pipe in wait([child.pipe for child in self.running], LOOK):
                        self._read(next(child for child in self.running if child.pipe is pipe), stopping)
                    self._measure()
            finally:  # on an error or a second Ctrl-C there are some left
                for child in self.running:
                    child.process.kill()
                    child.process.join()
                self.board.close()
            if stopping:
                done = sum(finished(job.folder) is not None for job in self.jobs)
                self.board.say(f"{done} of {len(self.jobs)} runs are finished.")

    # Starting ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Starts as many of the waiting runs as may run now, in their order."""
        if len(self.running) >= self.count or not self.waiting:
            return
        for step in graph.steps(self.jobs, {job.folder for job, _ in self.failed}):
            if step.job not in self.waiting or not step.ready:
                continue
            if len(self.running) >= self.count or not self._fits():
                return
            gpu, settings = None, self.settings
            if self.gpus:
                gpu = self._place()
                if gpu is None:
                    return
                settings = settings | {"device": PLACED}
            job = step.job
            self.waiting.remove(job)
            modules = modules_of(job, step.first)
            until = time.time() + self.until - time.monotonic()  # a clock that is set meanwhile moves nothing here
            order = Order(job, modules, step.first, self.stream, until, self.threads, self.viewers, settings, gpu=gpu)
            receiver, sender = self.context.Pipe(duplex=False)
            process = self.context.Process(target=work, args=(order, sender), name=self._name(job))  # type: ignore[attr-defined]
            process.start()
            sender.close()  # the child's end: when the child has none, the pipe is at its end
            self.running.append(_Child(job, process, receiver, gpu))
            self.begun = True

    def _fits(self) -> bool:
        """Whether the free memory holds one more run like the largest, after the running ones have grown to that.

        So the first one runs alone until it has learned an epoch.
        """
        free = available_memory()
        if free is None or not self.running:
            return True
        if not self.known:
            return False
        held = [taken.now for child in self.running if (taken := memory_of(child.process.pid or 0)) is not None]
        needed = gpus.MARGIN * self.largest + sum(max(0, self.largest - now) for now in held)
        if free < needed and not self.waits_for_memory:
            self.board.say(
                f"waiting for memory: {free / 2**30:.1f} GB are free, and a run takes up to {self.largest / 2**30:.1f} "
                f"GB; {len(self.running)} of {self.count} run."
            )
        self.waits_for_memory = free < needed
        return not self.waits_for_memory

    def _place(self) -> str | None:
        """The GPU of the next run; None: it waits until one has room."""
        if time.monotonic() - self.asked < ASK:
            return None
        there, self.asked = gpus_of(self.settings.get("device")) or self.gpus, time.monotonic()
        placed = [gpus.Placed(child.gpu, child.on_gpu) for child in self.running if child.gpu is not None]
        found = gpus.best(there, placed, self.largest_on_gpu)
        if found is None and self.largest_on_gpu and not self.waits_for_memory:
            free = ", ".join(f"{gpu.free / 2**30:.1f}" for gpu in there)
            self.board.say(
                f"waiting for memory of a GPU: {free} GB are free, and a run takes up to "
                f"{self.largest_on_gpu / 2**30:.1f} GB; {len(self.running)} of {self.count} run."
            )
        self.waits_for_memory = found is None and self.largest_on_gpu > 0
        if found is None:
            return None
        self.asked = -ASK  # what the next run finds is another state
        return found.uuid

    def _measure(self) -> None:
        for child in self.running:
            taken = memory_of(child.process.pid or 0)
            self.largest = max(self.largest, 0 if taken is None else taken.peak)

    # Listening -----------------------------------------------------------------------------------------------------

    def _read(self, child: _Child, stopping: bool) -> None:
        """One message of a child, or its end."""
        try:
            kind, *rest = child.pipe.recv()
        except (EOFError, OSError):
            child.process.join()
            child.pipe.close()
            self.running.remove(child)
            self.board.end(self._name(child.job))
            how, message = child.ended or ("died", _cause(child.process.exitcode))
            if how == "done" or (stopping and how != "failed"):
                return
            self.failed.append((child.job, message))
            self.board.say(f"{self._name(child.job)} failed: {message.splitlines()[0]}")
            return
        if kind == "step":
            self.known |= child.reported
            child.reported = True
            self.board.step(self._name(child.job), *rest)
        elif kind == "gpu":
            child.on_gpu = rest[0]
            self.largest_on_gpu = max(self.largest_on_gpu, child.on_gpu)
        elif kind == "task":
            self.board.say(f"{self._name(child.job)} {rest[0]}")
        elif kind == "end":
            child.ended = (rest[0], rest[1])


def modules_of(*jobs: Job | None) -> tuple[str, ...]:
    """The modules that define the methods of these runs."""
    return tuple(sorted({base.find(job.config.method).__module__ for job in jobs if job is not None}))


def _cause(code: int | None) -> str:
    """Why a process ended that told nothing."""
    if code is not None and code < 0:
        return (
            f"its process was killed by signal {-code}. The same again goes on from its last checkpoint; if the memory "
            "was not enough, with fewer runs at a time."
        )
    return f"its process ended with status {code}. The same again goes on from its last checkpoint."


def _context() -> BaseContext:
    """Processes forked from one that has imported everything and computed nothing; where there is no fork, new ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*SHARED, *([OF_DATA] if OF_DATA in sys.modules else [])])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # it must find the package that is running here
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
