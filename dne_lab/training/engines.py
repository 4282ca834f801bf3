"""Runs that an engine places on other machines: SLURM (`on_slurm`) or Ray (`on_ray`).

The plan is the same graph as here (`graph`), cut where one run waits for the first task of another. An engine is told
to start a part after another one, asked how a part ended, and told to stop. What a run has learned, and how far it is,
is read from its folder alone, so that a finished grid needs no engine, and one that was interrupted anywhere goes on
from what is there. The folders lie on a file system that all machines share.
"""

import math
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dne_lab.core import folder_lock
from dne_lab.core.errors import LabError
from dne_lab.data.stream import ClassStream
from dne_lab.measure.record import Record
from dne_lab.training import graph
from dne_lab.training.graph import Job, Part
from dne_lab.training.parallel_runs import failure, modules_of, records_of
from dne_lab.training.progress import Board, Signals
from dne_lab.training.run_folder import RECORD, finished, record_in
from dne_lab.training.worker import Order, Viewer, failure_text, fulfil

LOOK = 1.0  # seconds between two looks at the engine and at the folders
PATIENCE = folder_lock.DEAD + 2 * folder_lock.BEAT  # of a part whose predecessor died with its machine


@dataclass(frozen=True)
class Needs:
    """What each run is given: ``cpus`` cores, which is also its number of threads; ``gpus``; ``minutes``, after which
    its job has to begin anew (None: no such limit); ``more``: what the engine itself knows by name."""

    cpus: int = 1
    gpus: float = 0.0
    minutes: int | None = None
    more: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise LabError(f"--cpus {self.cpus}: give the cores of each run, from 1.")
        if not 0 <= self.gpus < math.inf:
            raise LabError(f"--gpus {self.gpus}: give the GPUs of each run, from 0; with Ray also a part of one: 0.25.")
        if self.minutes is not None and self.minutes < 5:
            raise LabError(f"--minutes {self.minutes}: give at least 5, or the run is mostly begun and stopped.")


class Engine(Protocol):
    """What places parts of a plan. The handle of a part is the engine's own."""

    needs: Needs

    def submit(self, part: Part, work: "Work", after: Any | None) -> Any:
        """A handle of the part, which begins when that of ``after`` has ended well."""

    def outcome(self, handle: Any) -> str | None:
        """None: not ended; "": ended well; else why not."""

    def describe(self, handles: Sequence[Any]) -> str:
        """Where the parts are, in a sentence."""

    def stop(self, handles: Sequence[Any]) -> str:
        """What becomes of parts that have not ended when this process goes, in a sentence; it sees to that."""


class RunFailed(RuntimeError):
    """A run failed in another process; the message is all that is said of it."""


@dataclass(frozen=True)
class Work:
    """A part of a plan as another machine does it: a function without arguments that can be pickled.

    ``order`` is a pickled `worker.Order`; ``place`` the working directory, ``path`` that of Python, ``words`` the
    command line that the record names.
    """

    order: bytes
    place: str
    path: tuple[str, ...]
    words: tuple[str, ...]

    def __call__(self) -> None:
        """Trains the part.

        Raises:
            RunFailed: it failed; whether it has finished says its folder.
            KeyboardInterrupt: a signal, after a checkpoint.
        """
        try:
            os.chdir(self.place)
        except OSError as error:
            raise RunFailed(
                f"{self.place} is not there on {socket.gethostname()} ({error.strerror}). All machines must see the "
                "same folders: work on a file system that they share."
            ) from None
        sys.path += [folder for folder in self.path if folder not in sys.path]
        sys.argv = list(self.words)
        try:
            fulfil(pickle.loads(self.order))
        except Exception as error:
            raise RunFailed(failure_text(error)) from None


def said(trace: str) -> str:
    """What a traceback says of a run, without the way to it."""
    return trace.rpartition(f"{RunFailed.__name__}: ")[2].strip()


def missing(package: str, extra: str) -> LabError:
    """What is said where the package of an engine is not installed."""
    return LabError(f'--on {extra} needs {package}, which is not installed here: pip install "dne-lab[{extra}]".')


def execute(
    jobs: Sequence[Job],
    engine: Engine,
    stream: ClassStream | None = None,
    progress: bool = True,
    viewers: Sequence[Callable[[], Viewer]] = (),
    **settings: Any,
) -> list[Record]:
    """`grid.execute` of what is left of a plan on other machines; the records of all runs that have one.

    Raises:
        RunsFailed: after all others have ended.
        KeyboardInterrupt: Ctrl-C, or another signal; what becomes of the runs is said (`Engine.stop`).
    """
    parts = graph.parts(graph.steps(jobs))
    board, seen = Board(progress), _Seen(jobs)
    data = None if stream is None else pickle.dumps(stream)

    def work(part: Part) -> Work:
        modules = modules_of(part.job, part.first)
        order = Order(
            part.job, modules, part.first, data, math.inf, engine.needs.cpus, viewers, settings, part.last, PATIENCE
        )
        path = tuple(str(Path(folder).absolute()) for folder in sys.path)
        return Work(pickle.dumps(order), str(Path.cwd()), path, tuple(sys.argv))

    outcomes: dict[int, str] = {}
    handles: list[Any] = []
    with Signals() as signals:
        try:
            for part in parts:
                handles.append(engine.submit(part, work(part), None if part.after is None else handles[part.after]))
                signals.check()
            board.say(
                f"{len(parts)} jobs for {len({part.job.folder for part in parts})} runs: {engine.describe(handles)}"
            )
            while len(outcomes) < len(parts):
                for number, part in enumerate(parts):
                    if number in outcomes:
                        continue
                    blocked = part.after is not None and outcomes.get(part.after)
                    found = _BLOCKED.format(parts[part.after].job.title) if blocked else engine.outcome(handles[number])  # type: ignore[index]
                    if found is not None:
                        outcomes[number] = found
                        if found and not blocked:
                            board.say(f"{part.job.title} failed: {found.splitlines()[0]}")
                for line in seen.news():
                    board.say(line)
                if len(outcomes) < len(parts):
                    signals.check()
                    time.sleep(LOOK)
        except KeyboardInterrupt:
            board.say(engine.stop([handle for number, handle in enumerate(handles) if number not in outcomes]))
            raise
        finally:
            board.close()
    failed: dict[Path, tuple[Job, str]] = {}
    for number, text in outcomes.items():
        if text:  # the first that was known: what failed, before what waited for it
            failed.setdefault(parts[number].job.folder, (parts[number].job, text))
    for number, part in enumerate(parts):
        if not outcomes[number] and part.last is None and finished(part.job.folder) is None:
            failed[part.job.folder] = (part.job, _UNSEEN)
    if failed:
        raise failure(jobs, list(failed.values()))
    return records_of(jobs)


_BLOCKED = "its first task was to be learned by {}, which failed. The same again goes on from there."
_UNSEEN = (
    "its job has ended, but its folder here does not say that it has finished. All machines must see the same folders: "
    "work on a file system that they share."
)


class _Seen:
    """How far the runs are, by their records."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = [job for job in jobs if finished(job.folder) is None]
        self.stamps: dict[Path, int] = {}
        self.tasks = {job.folder: self._tasks(job) for job in self.jobs}

    def _tasks(self, job: Job) -> int:
        record = record_in(job.folder)
        return 0 if record is None else len(record.seen_accuracy)

    def news(self) -> list[str]:
        """A line for every run that has finished a task since the last look."""
        lines = []
        for job in self.jobs:
            try:
                stamp = (job.folder / RECORD).stat().st_mtime_ns
            except OSError:
                continue
            if self.stamps.get(job.folder) == stamp:
                continue
            self.stamps[job.folder] = stamp
            record = record_in(job.folder)
            if record is not None and len(record.seen_accuracy) > self.tasks[job.folder]:
                self.tasks[job.folder] = done = len(record.seen_accuracy)
                lines.append(f"{job.title} task {done}/{len(record.tasks)}: accuracy {record.seen_accuracy[-1]:.1f}%")
        return lines
