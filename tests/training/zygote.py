"""A process that only imports and forks: its children train, are killed for real, and train on.

A fresh interpreter for every child would spend seconds on imports. Forking is safe here because this process itself
never computes anything: no thread pool exists when it forks. Usage: zygote.py FOLDER
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_runs as tiny
import torch

from dne_lab.core import files
from dne_lab.training.evaluation import code_version
from dne_lab.training.progress import Terminated
from dne_lab.training.run import Run
from dne_lab.training.step import Optimisation


def child(work: Callable[[], None]) -> int:
    """Forks a child that does the work; its process number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        work()
        status = 0
    except Terminated:
        status = 143
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(number: int) -> int:
    """Waits for a child: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def train(folder: Path, checkpoint_seconds: float = 0.0, **changes: Any) -> None:
    run = Run(tiny.settings(**changes), tiny.stream(), folder, "cpu", checkpoint_seconds, progress=False)
    run.train()


def killed_at(event: int, work: Callable[[], None]) -> Callable[[], None]:
    """The work, by a process that kills itself at the ``event``-th step, write, or moment before or after a rename."""
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any) -> Any:
            tick()
            result = original(*args)
            tick()
            return result

        setattr(owner, name, call)

    def wrapped() -> None:
        around(Optimisation, "step")
        around(files.os, "fsync")
        around(Path, "replace")
        work()

    return wrapped


def kills(folder: Path) -> dict[str, Any]:
    """Kills at chosen events, then at random times; each run is resumed until it is finished."""
    draw = random.Random(0)
    killed = {"events": 0, "times": 0}
    for _ in range(300):
        status = ended(child(killed_at(draw.randint(1, 180), lambda: train(folder / "events"))))
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        killed["events"] += 1
    longest = 0.35  # seconds; on a machine that finishes before three kills, all over again with less
    while killed["times"] < 3 and longest > 0.01:
        shutil.rmtree(folder / "times", ignore_errors=True)
        killed["times"], status, patience = 0, -signal.SIGKILL, longest
        while status:
            number = child(lambda: train(folder / "times", checkpoint_seconds=0.02))
            time.sleep(draw.uniform(0.0, patience))
            os.kill(number, signal.SIGKILL)
            status = ended(number)
            assert status in (0, -signal.SIGKILL), status
            killed["times"] += status != 0
            patience *= 1.02  # on a busy machine a child may not come to its first checkpoint in less
        longest /= 2
    return killed


def sigterm(folder: Path) -> dict[str, Any]:
    """Ends a child in the middle of a task; then lets another one go on."""

    def slowly() -> None:
        original = Optimisation.step

        def step(self: Optimisation, rate: float) -> None:
            time.sleep(0.02)
            original(self, rate)
            if (folder / "terminated" / "task_01.safetensors").exists():
                (folder / "stepping").touch()  # a step of task 2 has been made: the signal comes behind it

        Optimisation.step = step  # type: ignore[method-assign]
        train(folder / "terminated", checkpoint_seconds=3600)

    number = child(slowly)
    while not (folder / "stepping").exists():
        time.sleep(0.005)
    time.sleep(0.03)
    os.kill(number, signal.SIGTERM)
    status = ended(number)
    found = tiny.content(folder / "terminated")["last.safetensors"][0]["state"]["cursor"]
    assert ended(child(lambda: train(folder / "terminated"))) == 0
    return {"status": status, "cursor": found}


def processes(folder: Path) -> dict[str, Any]:
    """One process, and two that share every batch over loopback."""
    changes = {"options.batch_norm": False, "learn.batch": 6}  # 33 = 5 x 6 + 3: shares of unequal size
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> Callable[[], None]:
        def work() -> None:
            os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            train(folder / "two", checkpoint_seconds=0.05, **changes)
            torch.distributed.destroy_process_group()

        return work

    numbers = [child(rank(0)), child(rank(1)), child(lambda: train(folder / "one", **changes))]
    return {"status": [ended(number) for number in numbers]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports, once, what takes torch 2 s
    code_version()  # once: the source may be edited while this runs
    target = Path(sys.argv[1])
    assert ended(child(lambda: train(target / "whole"))) == 0
    print(json.dumps({work.__name__: work(target) for work in (kills, sigterm, processes)}))
