"""Many runs from one description: planned, shown as commands, executed in turn, task 1 trained once a seed."""

import dataclasses
import json
import math
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dne_lab.config import Config, Data
from dne_lab.data.stream import ClassStream, from_config
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.training import sharing
from dne_lab.training.folder import LAST, RECORD, RunFolder
from dne_lab.training.run import Run

Plan = list[tuple[Config, Path]]


def folder_name(config: Config) -> str:
    """``<method>-<preset>-s<seed>``."""
    return "-".join(filter(None, (config.method, config.preset.replace(",", "+"), f"s{config.seed}")))


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
    return [(one, Path(out) / folder_name(one)) for one in configs]


def commands(runs: Plan, settings: Sequence[str] = (), train: Sequence[str] = ("dne-lab", "run")) -> list[str]:
    """One shell command a run. ``settings`` are the ``--set`` values that the plan was made with."""
    lines = []
    for config, folder in runs:
        words = [*train, config.method]
        words += ["--preset", config.preset] if config.preset else []
        words += [word for setting in settings for word in ("--set", setting)]
        words += ["--seeds", str(config.seed), "--out", str(folder.parent)]
        lines.append(shlex.join(words))
    return lines


def execute(
    runs: Plan, stream: ClassStream | None = None, seconds: float | None = None, **settings: Any
) -> list[Record]:
    """Trains what is left of every run and returns the records, in the order of ``runs``.

    Finished runs are only read. Of the runs whose first task is the same (`sharing.identity`), the first one trains it
    and the others start behind it.

    Args:
        stream: the data of all runs; default: what each configuration describes.
        seconds: stop with a checkpoint after that much time, without the records of runs that have not begun.
        settings: those of `Run`: device, checkpoint_seconds, progress.

    Raises:
        LabError: what `Run` raises; finished runs stay finished, and the same call goes on with the others.
    """
    for config, folder in runs:  # a wrong folder is found before hours of training
        RunFolder(folder).check(config)
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    streams: dict[Data, ClassStream] = {}
    first: dict[str, tuple[Config, Path]] = {}
    records, trained = [], False
    for config, folder in runs:
        record = _finished(folder)
        if record is None and trained and time.monotonic() >= deadline:
            break
        if stream is None and config.data not in streams:
            streams[config.data] = from_config(config.data)
        data = streams[config.data] if stream is None else stream
        task = _first_task(config, data)
        if record is None:
            run = _open(config, folder, data, first.get(task), settings)
            run.train(None if seconds is None else max(0.0, deadline - time.monotonic()))
            record, trained = run.record, True
        if task and record.seen_accuracy:
            first.setdefault(task, (config, folder))
        records.append(record)
    return records


def _finished(folder: Path) -> Record | None:
    """The record of a finished run."""
    if not (folder / RECORD).exists():
        return None
    record = Record.from_json(folder / RECORD)
    return record if record.finished else None


def _first_task(config: Config, stream: ClassStream) -> str:
    """What runs with the same first task have in common; "" where it is not shared."""
    shared = base.find(config.method).shares_first_task and len(stream) > 1
    return json.dumps(sharing.identity(config, stream), sort_keys=True) if shared else ""


def _open(
    config: Config, folder: Path, stream: ClassStream, first: tuple[Config, Path] | None, settings: dict[str, Any]
) -> Run:
    """A run as its folder has it, else behind the task 1 of another, else at its start."""
    begun = (folder / LAST).exists() or (folder / RECORD).exists()
    if first is None or begun:
        return Run(config, stream, folder, **settings)
    return sharing.fork(Run(first[0], stream, first[1], **settings), config, folder)
