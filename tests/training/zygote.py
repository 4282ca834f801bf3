"""A process that only imports and forks: its children train, are killed for real, and train on.

A fresh interpreter for every child would spend seconds on imports. Forking is safe here because this process itself
never computes anything: no thread pool exists when it forks. Usage: zygote.py FOLDER [PART...]
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
from dne_lab.core.errors import LabError
from dne_lab.training import grid
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


SHARED: dict[str, Any] = {"options.batch_norm": False, "learn.batch": 6}  # 33 = 5 x 6 + 3: shares of unequal size


def two(work: Callable[[int], None]) -> list[int]:
    """Two processes that train together over loopback, each told its number; the process numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> Callable[[], None]:
        def alone() -> None:
            os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            work(number)
            torch.distributed.destroy_process_group()

        return alone

    return [child(rank(0)), child(rank(1))]


def processes(folder: Path) -> dict[str, Any]:
    """One process, and two that share every batch."""

    def work(number: int) -> None:
        train(folder / "two", checkpoint_seconds=0.05, **SHARED)

    numbers = [*two(work), child(lambda: train(folder / "one", **SHARED))]
    return {"status": [ended(number) for number in numbers]}


def at_step(count: int, do: Callable[[], None]) -> None:
    """Does something in front of the ``count``-th step from here on."""
    original, made = Optimisation.step, 0

    def step(self: Optimisation, rate: float) -> None:
        nonlocal made
        made += 1
        if made == count:
            do()
        original(self, rate)

    Optimisation.step = step  # type: ignore[method-assign,assignment]


def apart(folder: Path) -> dict[str, Any]:
    """Two processes are stopped by a signal to the second one; then they go on, in one folder, and in a folder each."""

    def stopped(number: int) -> None:
        if number == 1:
            at_step(40, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(folder / "together", 3600, **SHARED)

    told: dict[str, Any] = {"stopped": [ended(number) for number in two(stopped)]}
    told["cursor"] = tiny.content(folder / "together")["last.safetensors"][0]["state"]["cursor"]
    shutil.copytree(folder / "together", folder / "apart-0")
    told["together"] = [ended(number) for number in two(lambda _: train(folder / "together", 3600, **SHARED))]
    told["apart"] = [ended(number) for number in two(lambda n: train(folder / f"apart-{n}", 3600, **SHARED))]
    told["second"] = (folder / "apart-1").exists()
    return told


def failing(folder: Path, work: Callable[[int], None]) -> dict[str, Any]:
    """What two processes end with: kind and text of their errors, and the seconds until both have ended."""
    place = folder / f"failing-{len(list(folder.glob('failing-*')))}"
    place.mkdir()

    def told(number: int) -> None:
        try:
            work(number)
        except LabError as error:
            (place / str(number)).write_text(f"{type(error).__name__}: {error}")
            sys.stderr.flush()
            os._exit(2)

    begun = time.monotonic()
    status = [ended(number) for number in two(told)]
    seconds = time.monotonic() - begun
    return {"status": status, "said": [p.read_text() for p in sorted(place.iterdir())], "seconds": seconds}


def failures(folder: Path) -> dict[str, Any]:
    """One of two processes is killed, has other images, or finds a damaged checkpoint."""

    def killed(number: int) -> None:
        if number == 1:
            at_step(10, lambda: os.kill(os.getpid(), signal.SIGKILL))
        train(folder / "lost", 0.0, **SHARED)

    def others(number: int) -> None:
        Run(tiny.settings(**SHARED), tiny.stream(number), folder / "others", "cpu", progress=False).train()

    def damaged(number: int) -> None:
        train(folder / f"damaged-{number}", **SHARED)

    found = {"killed": failing(folder, killed), "others": failing(folder, others)}
    shutil.copytree(folder / "lost", folder / "damaged-0")
    (folder / "damaged-0" / "last.safetensors").write_bytes(b"damaged")
    found["damaged"] = failing(folder, damaged)
    again = [ended(number) for number in two(lambda _: train(folder / "lost", **SHARED))]
    return found | {"again": again}


def grids(folder: Path) -> dict[str, Any]:
    """Two processes, a folder each, train two runs that share their first task, and print; then once more."""
    from dne_lab.commands import run_command

    def work(number: int) -> None:
        plan = grid.plan(["tiny", "tiny-other"], lambda m: tiny.settings(m, **SHARED), [3], folder / f"grid-{number}")
        for name in ("stdout", "stderr"):
            os.dup2(
                os.open(folder / f"{name}-{number}", os.O_CREAT | os.O_APPEND | os.O_WRONLY),
                getattr(sys, name).fileno(),
            )
        run_command.execute(plan, False, stream=tiny.stream(), device="cpu")
        sys.stdout.flush()

    told: dict[str, Any] = {"status": [ended(number) for _ in range(2) for number in two(work)]}
    told["runs"] = [sorted(p.name for p in (folder / f"grid-{number}").glob("*")) for number in (0, 1)]
    said = {name: [(folder / f"{name}-{number}").read_text() for number in (0, 1)] for name in ("stdout", "stderr")}
    return told | said


PARTS = (kills, sigterm, processes, apart, failures, grids)

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports, once, what takes torch 2 s
    code_version()  # once: the source may be edited while this runs
    target = Path(sys.argv[1])
    assert ended(child(lambda: train(target / "whole"))) == 0
    wanted = sys.argv[2:] or [part.__name__ for part in PARTS]
    print(json.dumps({part.__name__: part(target) for part in PARTS if part.__name__ in wanted}))
