"""Many runs from one description: planned, shown as commands, executed, task 1 trained once per seed."""

import dataclasses
import math
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dne_lab.core.config import Config, Data
from dne_lab.core.errors import LabError, visible
from dne_lab.core.files import refuse_file
from dne_lab.data.stream import ClassStream, from_config
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.training import distributed, engines, folder_names, parallel_runs, run_data, sharing
from dne_lab.training.distributed import Processes
from dne_lab.training.evaluation import settings_sha256
from dne_lab.training.graph import Job, Part, parts, source, steps
from dne_lab.training.run import Run
from dne_lab.training.run_folder import RunFolder, finished, read_config
from dne_lab.training.worker import Viewer, failure_text, learn

Plan = list[tuple[Config, Path]]


def plan(
    methods: Iterable[str], config: Config | Callable[[str], Config], seeds: Iterable[int], out: str | Path = "runs"
) -> Plan:
    """Every method with every seed, seed by seed: (configuration, folder).

    ``config`` is the common configuration, or gives that of each method.
    """
    seeds, methods = list(seeds), list(methods)
    bases = {method: config if isinstance(config, Config) else config(method) for method in methods}
    for method in methods:
        base.find(method)
    configs = [dataclasses.replace(bases[method], method=method, seed=seed) for seed in seeds for method in methods]
    return [(one, folder_names.place(one, Path(out))) for one in configs]


def commands(
    runs: Plan,
    settings: Sequence[str] = (),
    train: Sequence[str] = ("dne-lab", "run"),
    config_file: Path | None = None,
) -> list[str]:
    """One shell command per run.

    Args:
        settings: the ``--set`` values that the plan was made with.
        train: the words that each command begins with.
        config_file: the file (``--config``) that says which run, in place of a method and a preset.
    """
    lines = []
    for config, folder in runs:
        words = [*train, config.method] if config_file is None else [*train, "--config", str(config_file)]
        words += ["--preset", config.preset] if config.preset and config_file is None else []
        words += [word for setting in settings for word in ("--set", setting)]
        words += ["--seeds", str(config.seed), "--out", str(folder.parent)]
        lines.append(" ".join(map(quoted, words)))
    return lines


def quoted(word: str) -> str:
    """A word as a shell reads it; with control characters written out, which `shlex.quote` leaves as they are."""
    if visible(word) == word:
        return shlex.quote(word)
    return "$'" + visible(word.replace("\\", r"\\").replace("'", r"\'").replace("\n", r"\n")) + "'"


def execute(
    runs: Plan,
    stream: ClassStream | None = None,
    seconds: float | None = None,
    jobs: int | str = 1,
    first: str = "",
    viewers: Sequence[Callable[[], Viewer]] = (),
    last: int | None = None,
    behind: Path | None = None,
    engine: Callable[[], engines.Engine] | None = None,
    **settings: Any,
) -> list[Record]:
    """Trains what is left of every run and returns the records, in the order of ``runs``.

    Finished runs are only read. Of the runs whose first task is the same (`sharing.identity`), the first one trains it
    and the others start after it. What is wrong with a configuration is found before the first run is trained.

    Args:
        stream: the data of all runs; default: what each configuration describes.
        seconds: stop with a checkpoint after that much time, without the records of runs that have not begun.
        jobs: how many runs are trained at a time; 1: one after the other in this process. More: each in a process of
            its own with its part of the cores, and begun only when there is memory for it (`parallel_runs`); "auto":
            one run per core, and one on each GPU. A script calls this under ``if __name__ == "__main__":``, as Python's
            multiprocessing asks.
        first: what is said on stderr when nothing is wrong and training begins.
        viewers: each makes what follows one run (`Run.viewers`), in the process that trains it, so with several jobs it
            can be pickled; a viewer with a ``close`` is closed when the run ends or stops.
        last: the task to end after; one run after the other only, as ``behind``.
        behind: the folder of a run outside of the plan, with whose finished first task those begin that have not begun.
        engine: makes what places the runs elsewhere (`engines`), if any is left; ``jobs`` and ``seconds`` do not count.
        settings: those of `Run`: device, checkpoint_seconds, progress.

    Raises:
        LabError: what `Run` raises; finished runs stay finished, and the same call goes on with the others. Of several
            runs the others are trained first, and the error (`parallel_runs.RunsFailed`) has their records.
    """
    distributed.start()
    processes = Processes()
    processes.from_first(lambda: check(runs))  # a wrong folder is found before hours of training
    count = parallel_runs.number(jobs, len(runs), settings.get("device"))
    if engine is not None and processes.world > 1:
        raise LabError("under torchrun all processes train one run together, here: leave --on away.")
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    streams: dict[Data, ClassStream] = {}
    planned = _jobs(runs, stream, streams)
    processes.from_first(lambda: _compare(runs, stream, streams))
    placed = engine() if engine is not None and any(finished(job.folder) is None for job in planned) else None
    if first and processes.first:
        print(first, file=sys.stderr, flush=True)
    if placed is not None:
        streams.clear()
        return engines.execute(planned, placed, stream, viewers=viewers, **settings)
    if count > 1 and any(finished(job.folder) is None for job in planned):
        streams.clear()  # the children open their own
        left = None if seconds is None else max(0.0, deadline - time.monotonic())
        return parallel_runs.execute(planned, count, stream, left, viewers=viewers, **settings)
    outside = None if behind is None else processes.from_first(lambda: Job(read_config(behind), behind))
    records, failed, trained = [], [], False
    for job in planned:
        record = _finished(job.folder)
        if record is None:
            if processes.from_first(lambda: trained and time.monotonic() >= deadline):  # noqa: B023  (called here)
                break
            data = streams[job.config.data] if stream is None else stream
            left = None if seconds is None else max(0.0, deadline - time.monotonic())
            trained = True
            try:
                first_run = outside or processes.from_first(lambda: source(job, planned))  # noqa: B023  (called here)
                record = learn(job, data, first_run, left, viewers, last, **settings)
            except Exception as error:
                if len(planned) == 1 or processes.world > 1:  # processes that train together end together
                    raise
                failed.append((job, failure_text(error)))
                print(f"{job.title} failed: {failed[-1][1].splitlines()[0]}", file=sys.stderr, flush=True)
                continue
        records.append(record)
    if failed:
        raise parallel_runs.failure(planned, failed)
    return records


def _finished(folder: Path) -> Record | None:
    """`finished`, as the first process sees it."""
    return Processes().from_first(lambda: finished(folder))


def check(runs: Plan) -> None:
    """Raises a `LabError` for a folder that cannot be used here, or holds another run."""
    for config, folder in runs:
        refuse_file(folder)
        RunFolder(folder).check(config)


def _compare(runs: Plan, stream: ClassStream | None, streams: dict[Data, ClassStream]) -> None:
    """What finished runs say is shown only if they have learned from these images; a warning if they are not there."""
    for config, folder in runs:
        record = finished(folder)
        if record is None or not record.data_sha256:
            continue
        if stream is None and config.data not in streams:
            try:
                streams[config.data] = run_data.stream_of_run(config, folder)
            except run_data.OtherClasses:
                raise
            except LabError as error:
                warnings.warn(f"{folder} is finished, but its images cannot be compared: {error}", stacklevel=5)
                continue
        run_data.check_finished(folder, record, streams[config.data] if stream is None else stream)


def _jobs(runs: Plan, stream: ClassStream | None, streams: dict[Data, ClassStream]) -> list[Job]:
    """The runs with what their first task has in common; fills ``streams``. Refuses what cannot be trained.

    Where all runs are finished, no data set is opened here.
    """
    done = Processes().from_first(lambda: {folder for _, folder in runs if finished(folder)})
    if all(folder in done for _, folder in runs):
        return [Job(config, folder) for config, folder in runs]
    jobs, tried = [], set()
    for config, folder in runs:
        if stream is None and config.data not in streams:
            streams[config.data] = run_data.stream_of_run(config, folder)
        data = streams[config.data] if stream is None else stream
        alike = settings_sha256(config)
        if alike not in tried and folder not in done:
            Run(config, data, device="cpu", progress=False)  # in memory only: raises what is wrong with it
            tried.add(alike)
        jobs.append(Job(config, folder, sharing.first_task(config, data)))
    return jobs


def left(runs: Plan) -> list[Part]:
    """What is left of a plan, in an order in which its parts can be done, without training anything.

    Where the images of a run are not here, it is not known which others have the same first task: it learns its own.
    """
    streams: dict[Data, ClassStream | None] = {}
    jobs = []
    for config, folder in runs:
        if config.data not in streams:
            try:
                streams[config.data] = from_config(config.data)
            except LabError as error:
                warnings.warn(f"which runs can share a first task is not known here: {error}", stacklevel=2)
                streams[config.data] = None
        data = streams[config.data]
        jobs.append(Job(config, folder, "" if data is None else sharing.first_task(config, data)))
    return parts(steps(jobs))
