"""What of a plan is left to train, and what waits for what: of runs with the same first task, one learns it first.

One graph for whoever places runs: one after the other here (`grid`), in processes of this machine (`parallel_runs`), as
jobs of a cluster (`engines`), or as commands that are printed (``--dry-run``).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dne_lab.core.config import Config
from dne_lab.training.run_folder import LAST, RECORD, record_in


@dataclass(frozen=True)
class Job:
    """A run to train: ``task`` is what its first task has in common with others (`sharing.first_task`)."""

    config: Config
    folder: Path
    task: str = ""

    @property
    def title(self) -> str:
        """What it is called while it runs."""
        return f"{self.config.method} s{self.config.seed}"

    @property
    def begun(self) -> bool:
        """Whether its folder holds a state to go on from."""
        return (self.folder / LAST).exists() or (self.folder / RECORD).exists()


@dataclass(frozen=True)
class Step:
    """A run that is left to train. ``first``: the run whose first task it begins with (None: it learns its own, or goes
    on); ``ready``: that task is finished, so that nothing has to be waited for."""

    job: Job
    first: Job | None = None
    ready: bool = True


@dataclass(frozen=True)
class Part:
    """What is placed as a whole where only the end of a job can be waited for.

    ``last``: the task after which it ends (None: the run's last one); ``first``: as in `Step`; ``after``: the number of
    the part that must have ended well before, in the list that it is in.
    """

    job: Job
    last: int | None = None
    first: Job | None = None
    after: int | None = None


def steps(jobs: Sequence[Job], failed: Collection[Path] = ()) -> list[Step]:
    """What is left of a plan, in its order.

    Of the runs that share a first task, those that have not begun wait for one that has finished it, else for one that
    has begun, else for the first of them.

    Args:
        failed: folders of runs that are given up: they are no steps, and none is waited for.
    """
    records = {job.folder: record_in(job.folder) for job in jobs}
    done = {folder for folder, record in records.items() if record is not None and record.finished}
    learned = {folder for folder, record in records.items() if record is not None and record.seen_accuracy}
    leaders: dict[str, Job] = {}
    for job in sorted(jobs, key=lambda job: (job.folder not in learned, not job.begun)):  # stable: in their order else
        if job.task and (job.folder in learned or job.folder not in failed):
            leaders.setdefault(job.task, job)
    found = []
    for job in jobs:
        if job.folder in done or job.folder in failed:
            continue
        first = None if job.begun else leaders.get(job.task)
        first = None if first == job else first
        found.append(Step(job, first, first is None or first.folder in learned))
    return found


def parts(left: Sequence[Step]) -> list[Part]:
    """The steps cut where others wait: a run whose first task is waited for is two parts, that task and the rest."""
    waited_for = {step.first.folder for step in left if step.first is not None and not step.ready}
    found: list[Part] = []
    numbers: dict[Path, int] = {}
    for step in left:
        if step.job.folder in waited_for:
            numbers[step.job.folder] = len(found)
            found.append(Part(step.job, last=1))
    for step in left:
        if step.first is None or step.ready:
            found.append(Part(step.job, first=step.first, after=numbers.get(step.job.folder)))
        else:
            found.append(Part(step.job, first=step.first, after=numbers[step.first.folder]))
    return found


def source(job: Job, jobs: Sequence[Job]) -> Job | None:
    """A run whose finished first task is that of ``job``, which has not begun."""
    return next((step.first for step in steps(jobs) if step.job == job and step.ready), None)
