"""A Ray cluster of two nodes with a core each, on loopback, and a grid on it while the command that waits, a process
and a node are killed.

Usage, where loopback is the only network and all processes end with the first:
``unshare --net --pid --fork --kill-child --mount-proc python two_nodes.py FOLDER``. Prints what happened as JSON; ends
with status 77 and a reason where no cluster could be started.

What is killed is always something that trains: until that is done, an epoch takes two seconds
(`tiny_runs.Slowed`), so nothing here depends on how fast the machine is. What costs time is to import Ray and
PyTorch, in six processes.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_runs as tiny
import torch

from dne_lab.training import engines, grid
from dne_lab.training.engines import Needs
from dne_lab.training.on_ray import Ray
from dne_lab.training.run_folder import LAST

CANNOT = 77  # status: there is nothing to test here
METHODS = "tiny", "tiny-other"  # the first task is a part of its own; after it there is one for each node
CHANGES = {"learn.epochs": 40, "learn.batch": 16}
SETTINGS: dict[str, Any] = {"device": "cpu", "progress": False, "checkpoint_seconds": 1.0}
COMMON = ["--num-cpus=1", "--object-store-memory=80000000", "--include-log-monitor=false", "--disable-usage-stats"]
HEAD = ["--head", "--node-ip-address=127.0.0.1", "--port=6379", "--include-dashboard=false", "--no-monitor"]
PORTS = {
    "metrics-export": "metrics_export",
    "dashboard-agent-listen": "dashboard_agent_listen",
    "dashboard-agent-grpc": "metrics_agent",
    "runtime-env-agent": "runtime_env_agent",
}  # by option and by name
# Seconds that are enough on a machine that is as busy as can be. Ray's workers would give way to all other processes
# (nice 15), and some be started that nobody needs. A dead node is known after 2.5 s.
PATIENT = {
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_health_check_period_ms": "500",
    "RAY_memory_monitor_refresh_ms": "0",
}
# Each node would start two helpers that export statistics and install packages for tasks, and wait 15 s, no more, for
# each to write down its ports: on busy cores they have not even been imported by then. Nothing here needs them, nor the
# server for clients that are no nodes.
PYTHON = """#!/bin/sh
case "$*" in */agent.py*|*/agent/main.py*|*ray.util.client.server*) exec sleep 1000000;; esac
exec {python} "$@"
"""


def start(node: int, folder: Path) -> str:
    """Starts a node as `ray start` does, in a process that has imported Ray already; "", or why that failed."""
    ports = {option: 6400 + 100 * node + number for number, option in enumerate(PORTS)}
    options = [f"--{option}-port={port}" for option, port in ports.items()]
    options += ["--address=127.0.0.1:6379"] if node else [*HEAD, f"--temp-dir={folder}"]
    name = f"{node + 1:056x}"

    def write_ports() -> None:
        while not (sessions := list(folder.glob("session_2*"))):
            time.sleep(0.01)
        for option, port in ports.items():
            (sessions[0] / f"{PORTS[option]}_port_{name}").write_text(str(port))

    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            status = 1
            try:
                for stream in (1, 2):
                    os.dup2(said.fileno(), stream)
                os.environ["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = name
                sys.executable = str(folder.parent / "python")
                threading.Thread(target=write_ports, daemon=True).start()
                ray_command(["start", *options, *COMMON], standalone_mode=False)
                status = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            finally:
                os._exit(status)
        failed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        why = (said.read().strip().splitlines() or ["no reason given"])[-1]
    return f"node {node} of the Ray cluster did not start: {why}" if failed else ""


def processes(name: str) -> list[int]:
    """The numbers of the processes of that name, in the order in which they were started."""
    names = {int(file.parent.name): file.read_text().strip() for file in Path("/proc").glob("[0-9]*/comm")}
    return sorted(number for number, found in names.items() if found == name)


def parent(number: int) -> int:
    """The process that has started a process; 0: it has ended."""
    try:
        return int(Path(f"/proc/{number}/status").read_text().split("PPid:")[1].split()[0])
    except OSError:
        return 0


def wait_for(what: Callable[[], Any], seconds: float = 150.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)
    return found


def holder(run: Path) -> int:
    """The process that trains a run, as its lock says; 0: nobody."""
    try:
        number = int(json.loads((run / ".lock").read_text())["process"])
    except (OSError, ValueError):
        return 0
    return number if parent(number) else 0


def saved(run: Path) -> int:
    """When the last checkpoint of a run was written; 0: never."""
    try:
        return (run / LAST).stat().st_mtime_ns
    except OSError:
        return 0


def trained_on(run: Path, before: int) -> int:
    """The process that trains a run and has written a checkpoint after that of ``before``; 0: none yet."""
    return holder(run) if saved(run) > before else 0


def planned(folder: Path) -> grid.Plan:
    return [(config, folder / config.method) for config, _ in grid.plan(METHODS, tiny.settings(**CHANGES), [0], folder)]


def same(one: Path, other: Path) -> dict[str, bool]:
    """Which runs are the same, bit for bit, apart from the clock (and what a process that is not buried has left)."""

    def content(run: Path) -> dict[str, Any]:
        return {name: value for name, value in tiny.content(run).items() if not name.startswith(".")}

    return {run.name: content(run) == content(other / run.name) for run in sorted(one.iterdir())}


class Story:
    """A grid whose command gets Ctrl-C, then is killed; then a worker of it is, then the second node, and the first one
    does what is left."""

    def __init__(self, folder: Path, nodes: list[int]) -> None:
        self.folder, self.nodes, self.begun = folder, nodes, time.monotonic()
        self.plan = planned(folder / "ray")
        self.runs = [run for _, run in self.plan]
        self.first, self.moved, self.before = self.runs[0], Path(), 0
        self.slowed = tiny.Slowed(folder / "first", folder / "later")
        self.slowed.first.touch()
        self.slowed.later.touch()
        self.happened: dict[str, float] = {}  # and after how many seconds

    def tell(self, what: str) -> None:
        self.happened[what] = round(time.monotonic() - self.begun, 1)
        print(f"{what}: {self.happened[what]} s", file=sys.stderr, flush=True)

    def on_ray(self) -> list[Any]:
        return grid.execute(
            self.plan, tiny.stream(), engine=lambda: Ray(Needs()), viewers=[self.slowed], **SETTINGS
        )  # fmt: skip

    def stop_command(self, sent: int) -> int:
        """Gives the command in a process of its own, which gets a signal when the first run has learned something; its
        status."""
        before = saved(self.first)
        child = os.fork()  # before this process is connected itself
        if not child:
            try:
                self.on_ray()
            finally:
                os._exit(130)
        worker = wait_for(lambda: trained_on(self.first, before))
        os.kill(child, sent)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        wait_for(lambda: not parent(worker))
        self.tell(f"command {signal.Signals(sent).name}")
        return status

    def kill(self) -> None:
        """`_kill`; where that does not succeed, the grid is not waited for."""
        try:
            self._kill()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _kill(self) -> None:
        """Kills the process of the first run; then, when each node has a run, the second node with what is on it."""
        worker = wait_for(lambda: trained_on(self.first, self.before))
        before = saved(self.first)
        os.kill(worker, signal.SIGKILL)
        self.tell("worker")
        wait_for(lambda: trained_on(self.first, before) not in (0, worker))
        self.tell("worker again")
        self.slowed.first.unlink()
        wait_for(lambda: [parent(holder(run)) for run in self.runs] in (self.nodes, self.nodes[::-1]))
        self.moved = next(run for run in self.runs if parent(holder(run)) == self.nodes[1])
        before = saved(self.moved)
        worker = wait_for(lambda: trained_on(self.moved, before))
        for number in (self.nodes[1], worker):
            os.kill(number, signal.SIGKILL)
        self.tell("node")
        self.slowed.later.unlink()

    def told(self) -> dict[str, Any]:
        """What happened."""
        statuses = [self.stop_command(sent) for sent in (signal.SIGINT, signal.SIGKILL)]
        self.before = saved(self.first)
        killer = threading.Thread(target=self.kill)
        killer.start()
        records = self.on_ray()
        killer.join()
        self.tell("end")
        grid.execute(planned(self.folder / "here"), tiny.stream(), **SETTINGS)
        self.tell("the same here")
        return {
            "statuses": statuses,
            "moved": self.moved.name,
            "same": same(self.folder / "here", self.folder / "ray"),
            "shared": [record.method for record in records if "shared task 1" in record.timing["by_purpose"]],
            "resumed": {record.method: record.timing.get("resumed", 0) for record in records},
            "threads": sorted({record.threads for record in records}),
            "seconds": self.happened,
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    engines.LOOK = 0.1
    os.environ.update(PATIENT)
    from ray.scripts.scripts import cli as ray_command

    assert os.getpid() == 1, "only in a namespace of its own"
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as temporary:  # a short path: of sockets
        python = Path(temporary) / "python"
        python.write_text(PYTHON.format(python=sys.executable))
        python.chmod(0o755)
        if failed := start(0, Path(temporary) / "ray") or start(1, Path(temporary) / "ray"):
            print(failed)
            sys.exit(CANNOT)
        nodes = processes("raylet")
        start_seconds = round(time.monotonic() - begun, 1)
        told = Story(Path(sys.argv[1]), nodes).told()
        print(json.dumps({"nodes": len(nodes), "start": start_seconds, **told}), flush=True)
        os._exit(0)  # the cluster ends with this process
