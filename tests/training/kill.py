"""Kills runs at random moments, at steps, writes and renames, and lets them go on: not a bit may differ.

`PYTHONPATH=tests python tests/training/kill.py 200 [SEED]` prints how many kills of each kind there were, and how many
bytes were equal. After each kill what is in the folder has to be readable, with its digests, as the explorer reads it.
"""

import collections
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import tiny_runs as tiny
import torch
import zygote

from dne_lab.analysis import run_views
from dne_lab.core.errors import LabError
from dne_lab.training.evaluation import code_version
from dne_lab.training.progress import Terminated

METHODS = ("tiny", "tiny-other", "tiny-joint", "tiny-alone")
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}


def readable(folder: Path) -> bool:
    """Whether there is a record; what is there has to be whole."""
    if not (folder / "record.json").exists():
        return False
    (view,) = run_views.find(folder)
    run_views.losses(view.curves)
    return True


def killed(folder: Path, method: str, draw: random.Random) -> str:
    """Trains on, killed in one of three ways; which, or "" where it came to its end first."""
    if draw.random() < 0.5:
        work = zygote.killed_at(draw.randint(1, 180), lambda: zygote.train(folder, method=method))
        status = zygote.ended(zygote.child(work))
        assert status in (0, -signal.SIGKILL), status
        return "at a step, write or rename" if status else ""

    def work_to_end() -> None:
        try:
            zygote.train(folder, checkpoint_seconds=0.02, method=method)
        except KeyboardInterrupt as error:
            os._exit(143 if isinstance(error, Terminated) else 130)

    number = zygote.child(work_to_end)
    time.sleep(draw.uniform(0.0, 0.6))
    sent = draw.choice(list(SIGNALS))
    os.kill(number, sent)
    status = zygote.ended(number)
    assert status in (0, SIGNALS[sent], -sent), f"{sent.name}: {status}"
    return f"{sent.name} at a random time" if status else ""


def attempt(place: Path, count: int, seed: int) -> tuple[collections.Counter[str], int, int]:
    """Kills ``count`` times: how often in which way, finished runs, and bytes that were compared."""
    draw, kills, runs, size = random.Random(seed), collections.Counter[str](), 0, 0
    for method in METHODS:
        assert zygote.ended(zygote.child(lambda m=method: zygote.train(place / m, method=m))) == 0  # type: ignore[misc]
    while kills.total() < count:
        method, folder = METHODS[runs % len(METHODS)], place / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        while (way := killed(folder, method, draw)) or not (folder / "record.json").exists():
            kills[way] += bool(way)
            readable(folder)
        assert readable(folder) and tiny.content(folder) == tiny.content(place / method), f"{method}: another result"
        size += sum(file.stat().st_size for file in folder.iterdir())
        runs += 1
    return kills, runs, size


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports, once, what takes torch 2 s
    code_version()
    wanted, start = (int(word) for word in [*sys.argv[1:3], *("200", "0")[len(sys.argv[1:3]) :]])
    with tempfile.TemporaryDirectory() as made:
        try:
            table, finished, compared = attempt(Path(made), wanted, start)
        except LabError as error:
            sys.exit(f"what a killed run left cannot be read: {error}")
    for name, number in sorted(table.items()):
        print(f"{name:28} {number:5}")
    print(f"{finished} runs came to their end, all bits of {compared:,} bytes as without a kill")
