"""The command `run`: a grid, a list of runs or what follows a task of another run, and the table of the records."""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dne_lab.methods  # noqa: F401  (registers the methods)
from dne_lab.commands.arguments import program, settings
from dne_lab.core.config import from_dict
from dne_lab.core.errors import LabError, unknown, visible
from dne_lab.core.files import LONGEST, resolved
from dne_lab.core.schema import read_json
from dne_lab.core.sealing import unsealed
from dne_lab.data.datasets import open_source
from dne_lab.measure import tables
from dne_lab.measure.record import CLOCK, Record
from dne_lab.methods import base
from dne_lab.training import engines, grid, run_data, run_list, sharing
from dne_lab.training.distributed import Processes
from dne_lab.training.parallel_runs import RunsFailed
from dne_lab.training.progress import Terminated
from dne_lab.training.run import Run
from dne_lab.training.run_folder import LAST, RunFolder, finished, record_in
from dne_lab.training.worker import Viewer, watching


def plan(methods: str, preset: str, changes: list[str], seeds: list[int], out: Path) -> grid.Plan:
    """The runs of a command line; "small" and "published" are resolved for each method."""
    chosen = list(dict.fromkeys(m.strip() for m in methods.split(",") if m.strip()))
    if not chosen:
        raise LabError(f"{methods!r} names no method: give one or more, e.g. ia,sta,dne.")
    changed = settings(changes)
    for name in changed:
        if all(base.ignored(method, {name: changed[name]}) for method in chosen):
            base.refuse_ignored(chosen[0], {name: changed[name]})
    return grid.plan(chosen, lambda method: base.configure(method, preset, base.used(method, changed)), seeds, out)


def plan_of_file(file: Path, changes: list[str], seeds: list[int] | None, out: Path) -> grid.Plan:
    """The run of a record.json or config.json, with changes; its own seed, or each of several.

    Raises:
        LabError: no such file, or neither of both; a change that its method does not use.
    """
    try:
        tree = read_json(file)
    except FileNotFoundError:
        raise LabError(f"--config {file}: no such file. Give a run's config.json or record.json.") from None
    if isinstance(tree, dict) and tree.get("imported"):
        raise LabError(f"--config {file} was imported: another program trained it, and there is nothing to train here.")
    if isinstance(tree, dict) and isinstance(tree.get("config"), dict):  # a record
        tree = unsealed(tree, file, CLOCK)["config"]
    try:
        config = from_dict(tree)
    except LabError as error:
        raise LabError(f"--config {file} is neither a run's config.json nor its record.json: {error}") from error
    changed = settings(changes)
    base.refuse_ignored(config.method, changed)
    config = base.with_changes(config, changed)
    if config.data.path is None and config.data.name in ("folder", "npz"):
        raise LabError(
            f"--config {file} does not say where its images are: add --set data.path=PLACE, of the {config.data.name} "
            "that it was trained on."
        )
    each = [config.seed] if seeds is None else seeds
    return grid.plan([config.method], config, each, out)


def begins(runs: grid.Plan) -> str:
    """What is about to be trained, with the epochs of both stages: each stage has its own field for them."""
    left = [config for config, folder in runs if finished(folder) is None]
    if not left:
        return ""
    by_epochs: dict[str, list[str]] = {}
    for config in left:
        cls = base.find(config.method)
        second = cls.uses_memory and not cls.joint and "tune" not in cls.ignores
        epochs = f"learn.epochs = {config.learn.epochs} (stage 1)"
        epochs += f", then tune.epochs = {config.tune.epochs} (stage 2, from task 2 on)" if second else ", no stage 2"
        methods = by_epochs.setdefault(epochs, [])
        methods += [] if config.method in methods else [config.method]
    lines = [f"{len(left)} of {len(runs)} runs to train or to go on with. Epochs per task:"]
    return "\n".join([*lines, *(f"  {', '.join(methods)}: {epochs}" for epochs, methods in by_epochs.items())])


def tell_left_out(runs: grid.Plan, changes: list[str]) -> None:
    """A line on stderr for each method that some changes are not for."""
    for method in dict.fromkeys(config.method for config, _ in runs):
        if names := base.ignored(method, settings(changes)):
            print(f"{method} does not use {', '.join(names)}: left out there.", file=sys.stderr)


def commands(
    runs: grid.Plan, changes: list[str], rest: dict[str, Any], config_file: Path | None = None
) -> tuple[list[str], int]:
    """The commands of what is left, in an order in which they can be given, and how many of them, at the beginning, end
    before the others begin (`graph.parts`).

    ``rest`` are further options: True for a flag, None and False are left out; ``config_file``: says which run
    (`plan_of_file`).
    """
    words: list[str] = []
    for option, value in rest.items():
        if value is not None and value is not False:
            words += [option] if value is True else [option, f"{value:g}" if isinstance(value, float) else str(value)]
    lines, before = [], 0
    for part in grid.left(runs):
        config, folder = part.job.config, part.job.folder
        mine = [f"{name}={value}" for name, value in base.used(config.method, settings(changes)).items()]
        own = [] if part.last is None else ["--last-task", str(part.last)]
        own += [] if part.first is None else ["--first-task-of", str(part.first.folder)]
        lines += grid.commands([(config, folder)], mine, [*program(), "run"], config_file)
        lines[-1] = " ".join([lines[-1], *map(grid.quoted, own + words)])
        before += part.last is not None
    return lines, before


def tell_unusable(runs: grid.Plan) -> None:
    """Says on stderr why the runs could not be trained in their folders. What ``--dry-run`` shows may be meant for
    another machine, so it is shown all the same."""
    try:
        grid.check(runs)
    except LabError as error:
        print(f"Here this would end before it begins: {error}", file=sys.stderr, flush=True)


def show(runs: grid.Plan, changes: list[str], rest: dict[str, Any], config_file: Path | None = None) -> None:
    """Prints `commands`, and on stderr what has to wait for what."""
    lines, before = commands(runs, changes, rest, config_file)
    print("\n".join(lines))
    if before:
        which = "The first command trains" if before == 1 else f"The first {before} commands train"
        print(f"{which} what others begin with: give the rest when that has ended.", file=sys.stderr)
    if done := sum(finished(folder) is not None for _, folder in runs):
        print(f"{done} of {len(runs)} runs are finished.", file=sys.stderr)


def show_jobs(name: str, runs: grid.Plan, cpus: int, gpus: float, minutes: int | None, resources: list[str]) -> None:
    """Prints what the engine of ``--on`` would be given: what each job asks for, and which one waits for which.

    No cluster is asked, so none has to be there.

    Raises:
        LabError: no such engine; amounts that it does not give.
    """
    needs = _needs(cpus, gpus, minutes, resources)
    if name == "slurm":
        from dne_lab.training import on_slurm

        options = on_slurm.options(needs)
        each = " ".join(
            grid.quoted(f"--{option}={value}" if value else f"--{option}") for option, value in options.items()
        )
        notes = [f"sbatch {each}"]
        if not {"mem", "mem-per-cpu", "mem-per-gpu"} & set(options):
            notes.append("Memory: what the cluster gives by default; --resource mem=8G asks for some.")
        notes.append(
            f"{on_slurm.WARNED} s before its time is over a run writes its checkpoint, and its job queues again under "
            "the same number. Jobs of these runs that are in the queue already are followed, not submitted again."
        )
    elif name == "ray":
        from dne_lab.training import on_ray

        notes = [", ".join(f"{grid.quoted(what)} {amount:g}" for what, amount in on_ray.amounts(needs).items())]
        notes.append(
            f"One whose process or node dies begins again from its checkpoint, at most {on_ray.RETRIES} times."
        )
    else:
        raise unknown("engine", name, ENGINES)
    parts = grid.left(runs)
    count = len({part.job.folder for part in parts})
    print(f"{len(parts)} {'job' if len(parts) == 1 else 'jobs'} for {count} of {len(runs)} runs. Each asks for:")
    print(f"  {notes[0]}")
    rows = []
    for part in parts:
        title = part.job.folder.name
        first = "" if part.first is None else f", from task 1 of {part.first.folder.name} on"
        if part.last is not None:
            title = f"task {part.last} of {title}"
        elif part.after is not None and parts[part.after].job == part.job:
            title = f"the rest of {title}"
        rows.append(
            (f"{title}{first}", "at once" if part.after is None else f"after job {part.after + 1} has ended well")
        )
    width = max((len(visible(title)) for title, _ in rows), default=0)
    for number, (title, waits) in enumerate(rows, start=1):
        print(f"job {number}  {visible(title):{width}}  {waits}")
    print("\n".join(notes[1:]))
    if count < len(runs):
        print(f"{len(runs) - count} of {len(runs)} runs are finished.", file=sys.stderr)


ENGINES = ["slurm", "ray"]


def _needs(cpus: int, gpus: float, minutes: int | None, resources: list[str]) -> engines.Needs:
    more = tuple((key.strip(), value) for key, _, value in (pair.partition("=") for pair in resources))
    return engines.Needs(cpus, gpus, minutes, more)


def engine(
    name: str, runs: grid.Plan, cpus: int, gpus: float, minutes: int | None, resources: list[str]
) -> Callable[[], engines.Engine]:
    """What makes the engine of ``--on``, when it is known that something is left.

    Raises:
        LabError: no such engine; amounts that none of them gives.
    """
    needs = _needs(cpus, gpus, minutes, resources)
    if name == "slurm":
        from dne_lab.training.on_slurm import Slurm

        return lambda: Slurm(runs[0][1].parent, needs)
    if name == "ray":
        from dne_lab.training.on_ray import Ray

        return lambda: Ray(needs)
    raise unknown("engine", name, ENGINES)


def download(runs: grid.Plan) -> None:
    """Fetches the data sets of the runs where they are missing."""
    for name, path, size in {(config.data.name, config.data.path, config.data.size) for config, _ in runs}:
        open_source(name, path=path, size=size, download=True)


def plan_of_list(file: Path, out: Path | None, dry_run: bool, as_json: bool) -> grid.Plan:
    """The runs of a list that have no finished record beside it (`run_list.read`); says on stderr, or for a ``dry_run``
    on stdout, how far each one is."""
    listed = run_list.read(file, out)
    if dry_run:
        print(json.dumps(run_list.states(listed), indent=1) if as_json else run_list.text(listed))
        for line in [] if as_json else shared([(run.config, run.folder) for run in listed if run.beside is None]):
            print(line)
    else:
        print(run_list.summary(listed), file=sys.stderr, flush=True)
    return [(run.config, run.folder) for run in listed if run.beside is None]


def shared(runs: grid.Plan) -> list[str]:
    """A sentence for each first task that several of the runs that are left begin with."""
    users: dict[Path, list[str]] = {}
    for part in grid.left(runs):
        if part.first is not None:
            users.setdefault(part.first.folder, []).append(part.job.folder.name)
    return [f"{', '.join(names)}: after the first task of {folder.name}." for folder, names in users.items()]


def go_on(
    path: Path,
    after: int,
    changes: list[str],
    seeds: list[int] | None,
    out: Path,
    as_json: bool,
    requeue: bool = False,
    seconds: float | None = None,
    viewers: Sequence[Callable[[], Viewer]] = (),
    **how: Any,
) -> None:
    """Learns what follows task ``after`` of the run in ``path`` with other settings, and prints the records.

    Every seed (default: that run's) has a folder ``<run>-after<task>-<changes>``, which the same call goes on with.

    Raises:
        LabError: what `Run.fork` raises; a folder that holds something else.
    """
    changed = settings(changes)
    place = changed.get("data.path")
    source = Run.open(path, None if place is None else run_data.stream_at(path, str(place)), **how)
    base.refuse_ignored(source.config.method, changed)
    plan: grid.Plan = []
    for seed in [source.config.seed] if seeds is None else seeds:
        config = base.with_changes(source.config, changed | {"seed": seed})
        behind = sharing.behind(config, source.config, after)
        texts = "-".join(f"{name}={value}" for name, value in changed.items())
        safe = re.sub(r"[^A-Za-z0-9._+=,-]+", "_", texts)[:LONGEST]
        own = [safe, "" if safe == texts else behind.sha256[:8], "" if seeds is None else f"s{seed}"]
        first = path.stem if path.is_file() else resolved(path).name  # a file's name already
        plan.append((behind, out / "-".join(filter(None, (first[:150], f"after{after}", *own)))))
    processes = Processes()
    for config, folder in plan:
        processes.from_first(lambda: RunFolder(folder).check(config))  # noqa: B023  (called here)
    records: list[Record] = []
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    with ending(plan, requeue):
        for config, folder in plan:
            record, late, begun = processes.from_first(
                lambda: (finished(folder), time.monotonic() >= deadline, RunFolder(folder).has(LAST))  # noqa: B023
            )
            if record is None:
                if records and late:
                    break
                run = Run(config, None, folder, **how) if begun else source.fork_as(config, folder, after)
                with watching(run, viewers):
                    run.train(None if seconds is None else max(0.0, deadline - time.monotonic()))
                record = run.record
            records.append(record)
        if processes.first:
            print(json.dumps([r.content() for r in records], indent=1) if as_json else text(plan, records))


LATER = 75  # the status that tells a queue to start the same command again (EX_TEMPFAIL)


@contextmanager
def ending(runs: grid.Plan, requeue: bool, last: int | None = None) -> Iterator[None]:
    """Ends the program with `LATER` where that is asked for, and something is left that has not failed: at the end, or
    after a signal other than Ctrl-C. Errors and signals pass where nothing is left (up to task ``last``)."""
    stopped: BaseException | None = None
    try:
        yield
    except (RunsFailed, Terminated) as error:
        stopped = error
    failed = stopped.folders if isinstance(stopped, RunsFailed) else ()
    others = [folder for _, folder in runs if folder not in failed]
    processes = Processes()
    if requeue and (left := processes.from_first(lambda: sum(not _done(folder, last) for folder in others))):
        message = f"dne-lab: {stopped}\n" if failed else ""
        message += f"{left} of {len(runs)} runs are left: status {LATER}, start the same again."
        if processes.first:
            print(message, file=sys.stderr)
        sys.exit(LATER)
    if stopped is not None:
        raise stopped


def _done(folder: Path, last: int | None) -> bool:
    record = record_in(folder)
    return record is not None and (record.finished or (last is not None and len(record.seen_accuracy) >= last))


def execute(runs: grid.Plan, as_json: bool, requeue: bool = False, **how: Any) -> None:
    """Trains what is left, as `grid.execute` is told by ``how``, and prints all records.

    Raises:
        LabError: a run failed; of several, after the others have ended and the table is printed.
    """
    failure = None
    with ending(runs, requeue, how.get("last")):
        try:
            records = grid.execute(runs, first=begins(runs), **how)
        except RunsFailed as error:
            failure, records = error, error.records
        if Processes().first:
            print(json.dumps([r.content() for r in records], indent=1) if as_json else text(runs, records))
        if failure is not None:
            raise failure


def text(runs: grid.Plan, records: list[Record]) -> str:
    """The table of all finished runs, what is left, and the folders."""
    lines = []
    if any(record.finished for record in records):
        lines.append(tables.to_text(tables.summary(record for record in records if record.seen_accuracy)))
    left = sum(finished(folder) is None for _, folder in runs)
    if left:
        lines.append(f"{left} of {len(runs)} runs are not finished; the same command goes on with them.")
    return "\n".join([*lines, *(f"run folder: {folder}" for _, folder in runs)])
