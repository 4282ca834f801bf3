"""``--on slurm``: parts of a plan as jobs of a SLURM cluster, by submitit.

Before its time is over SLURM sends a job SIGUSR2: the run writes a checkpoint at the next step, and submitit puts the
same job into the queue again, under the same number. A job outlives the command that has submitted it; the numbers are
kept beside the run folders, so that the same command follows what is there instead of submitting it once more. How a
job ended it says in a file of JSON under a name that no one knows before; the pickle that submitit writes is not read.
"""

import json
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dne_lab.core.errors import LabError, brief
from dne_lab.core.files import file_name, make_folder, write_text
from dne_lab.core.schema import DamagedError, read_json
from dne_lab.training import progress, run_list
from dne_lab.training.engines import Needs, RunFailed, Work, missing
from dne_lab.training.graph import Part
from dne_lab.training.progress import Terminated

FOLDER = run_list.JOBS  # logs, what was submitted, and the numbers of the jobs
MINUTES = 240  # of a job, unless asked for otherwise; a longer run is several turns in the queue
WARNED = 120  # seconds before the end at which a run is told to write its checkpoint
ASK = 10.0  # seconds between two questions to the queue
SLOW = 30.0  # seconds in which what a job has written is seen here at the latest
# Options of sbatch that follow from the plan, or have an option of their own here.
OWN = {
    **dict.fromkeys(("dependency", "array", "signal", "output", "error", "job-name", "ntasks"), "the plan says it"),
    "time": "use --minutes",
    "cpus-per-task": "use --cpus",
    "gpus": "use --gpus",
    "gpus-per-node": "use --gpus",
}


@dataclass(frozen=True)
class Turn:
    """A part as a job that submitit can put into the queue again; at its end it writes into ``says`` how that was."""

    work: Work
    says: Path

    def __call__(self) -> None:
        """Trains the part; on SIGUSR2 writes a checkpoint, then lets submitit's own handler put the job back.

        Raises:
            RunFailed: it failed, or was stopped by another signal (after a checkpoint).
        """
        try:
            self._train()
        except RunFailed as error:
            self._say(str(error))
            raise
        self._say("")

    def _say(self, failed: str) -> None:
        write_text(self.says, f"{json.dumps({'failed': failed})}\n")

    def _train(self) -> None:
        requeue = signal.getsignal(signal.SIGUSR2)
        progress.YIELDING.append(requeue)  # it would act in the middle of a step
        try:
            self.work()
        except KeyboardInterrupt as stop:
            if isinstance(stop, Terminated) and stop.status == 128 + signal.SIGUSR2 and callable(requeue):
                requeue(signal.SIGUSR2, None)  # does not come back
            raise RunFailed("stopped by a signal, with a checkpoint. The same again goes on from there.") from None

    def checkpoint(self) -> Any:
        """What the job is when it is its turn again: the same, for its run folder says how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Ticket:
    """A job in the queue, the file that it says its end in, and when it was last known to be there
    (`time.monotonic`)."""

    number: str
    says: Path
    since: float


class Slurm:
    """The engine; ``runs``: the folder that the run folders are in."""

    def __init__(self, runs: Path, needs: Needs) -> None:
        try:
            import submitit
        except ModuleNotFoundError:
            raise missing("submitit", "slurm") from None
        self.submitit = submitit
        self.more = _more(needs)
        if not (shutil.which("sbatch") and shutil.which("squeue") and shutil.which("srun")):
            raise LabError(
                "--on slurm needs sbatch, srun and squeue, which are not here: give the command on a machine from "
                "which jobs of the cluster are submitted. On this machine alone: --jobs auto."
            )
        self.needs, self.folder = needs, runs / FOLDER
        self.asked, self.queue = -ASK, frozenset[str]()
        self.gone: dict[str, float] = {}  # when a job was first missing from the queue

    def submit(self, part: Part, work: Work, after: Ticket | None) -> Ticket:
        """The job of the part: the one that is in the queue already, else a new one."""
        there = self._known(part).get(_name(part))
        if there is not None and there[0] in self._queue():
            return Ticket(there[0], self._says(there[1]), time.monotonic())
        make_folder(self.folder)
        token = secrets.token_hex(8)
        executor = self.submitit.SlurmExecutor(folder=self.folder, max_num_timeout=10**6)
        depends = {} if after is None else {"dependency": f"afterok:{after.number}", "kill-on-invalid-dep": "yes"}
        executor.update_parameters(
            job_name=job_name(part),
            time=self.needs.minutes or MINUTES, signal_delay_s=WARNED, stderr_to_stdout=True,
            cpus_per_task=self.needs.cpus, srun_args=[f"--cpus-per-task={self.needs.cpus}"],
            setup=[f"export OMP_NUM_THREADS={self.needs.cpus}"],
            **({"gpus_per_node": int(self.needs.gpus)} if self.needs.gpus else {}),
            additional_parameters={"requeue": True} | depends | self.more,
        )  # fmt: skip
        try:
            number = str(executor.submit(Turn(work, self._says(token))).job_id)
        except (RuntimeError, OSError) as error:  # submitit's errors, with what sbatch has said
            said = (str(error).strip().splitlines() or [""])[-1] or "sbatch failed without a word."
            raise LabError(f"SLURM does not take the job of {part.job.title}: {said}") from error
        known = self._known(part) | {_name(part): (number, token)}
        write_text(self._file(part), f"{json.dumps(known)}\n")
        return Ticket(number, self._says(token), time.monotonic())

    def outcome(self, ticket: Ticket) -> str | None:
        """See `engines.Engine`."""
        try:
            return str(read_json(ticket.says)["failed"])
        except FileNotFoundError:
            log = self.folder / f"{ticket.number}_0_log.out"
        except (LabError, KeyError, TypeError) as error:
            return f"{ticket.says}, in which job {ticket.number} says how it ended, is damaged ({brief(str(error))})."
        if ticket.number in self._queue() or ticket.since > self.asked:
            self.gone.pop(ticket.number, None)
            return None
        if time.monotonic() - self.gone.setdefault(ticket.number, time.monotonic()) < SLOW:
            return None
        return (
            f"job {ticket.number} is not in the queue any more and has said nothing: cancelled, out of memory, or its "
            f"machine died ({log} may say more). The same again goes on from its last checkpoint."
        )

    def describe(self, tickets: Sequence[Ticket]) -> str:
        """See `engines.Engine`."""
        return f"SLURM {', '.join(ticket.number for ticket in tickets)}; what they say is in {self.folder}."

    def stop(self, tickets: Sequence[Ticket]) -> str:
        """See `engines.Engine`. The jobs stay."""
        numbers = " ".join(ticket.number for ticket in tickets)
        return (
            f"the jobs go on; the same command follows them again. To stop them, with a checkpoint: scancel {numbers}"
        )

    def _file(self, part: Part) -> Path:
        return self.folder / f"{part.job.folder.name}.jobs"

    def _says(self, token: str) -> Path:
        return (self.folder / f"{file_name(token)}.ended").absolute()

    def _known(self, part: Part) -> dict[str, tuple[str, str]]:
        """The numbers and tokens of the jobs that this run's parts were last submitted as."""
        try:
            found = read_json(self._file(part))
            return {str(name): (str(number), str(token)) for name, (number, token) in found.items()}
        except (FileNotFoundError, DamagedError, AttributeError, TypeError, ValueError):
            return {}

    def _queue(self) -> frozenset[str]:
        """The numbers of this user's jobs that wait or run; what was last known where SLURM does not answer."""
        if time.monotonic() - self.asked >= ASK:
            asked = time.monotonic()
            told = subprocess.run(["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True)
            if told.returncode == 0:
                self.queue, self.asked = frozenset(told.stdout.split()), asked
        return self.queue


def job_name(part: Part) -> str:
    """What the queue calls the job of a part."""
    return f"{part.job.folder.name}{'-task1' if part.last else ''}"


def options(needs: Needs) -> dict[str, str]:
    """What submitit asks sbatch for, for each job alike, by the names of sbatch's options ("": one without a value).

    Raises:
        LabError: what SLURM does not give.
    """
    found = {"time": str(needs.minutes or MINUTES), "cpus-per-task": str(needs.cpus)}
    found |= {"gpus-per-node": str(int(needs.gpus))} if needs.gpus else {}
    more = {name: "" if value is True else str(value) for name, value in _more(needs).items()}
    return found | {"signal": f"USR2@{WARNED}", "requeue": ""} | more


def _more(needs: Needs) -> dict[str, str | bool]:
    """Further options of sbatch, by name (True: one without a value)."""
    if needs.gpus != int(needs.gpus):
        raise LabError(
            f"--gpus {needs.gpus:g}: SLURM gives whole GPUs. Take --gpus 1, or where the cluster shares them what "
            "its manual says, such as --resource gres=shard:1."
        )
    more = {name.lstrip("-").replace("_", "-"): value or True for name, value in needs.more}
    for name in more:
        if name in OWN:
            raise LabError(f"--resource {name}: {OWN[name]}.")
    return more


def _name(part: Part) -> str:
    return "whole" if part.last is None else f"task {part.last}"
