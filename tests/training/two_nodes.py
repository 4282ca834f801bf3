"""A Ray cluster of two nodes with a core each, on loopback, and grids on it while a process, a node and the command
that waits are killed.

Usage, where loopback is the only network and all processes end with the first:
``unshare --net --pid --fork --kill-child --mount-proc python two_nodes.py FOLDER``. Prints what happened as JSON; ends
with status 77 and a reason where no cluster could be started.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_runs as tiny
import torch

from dne_lab.training import engines, grid
from dne_lab.training.engines import Needs
from dne_lab.training.on_ray import Ray

CANNOT = 77  # status: there is nothing to test here
EPOCHS = {"learn.epochs": 150}
SETTINGS: dict[str, Any] = {"device": "cpu", "progress": False, "checkpoint_seconds": 0.2}
# Small, quiet, and with ports of their own: a node that lets its helpers choose them waits for that 15 s at most.
COMMON = ["--num-cpus=1", "--object-store-memory=80000000", "--include-log-monitor=false", "--disable-usage-stats"]
PORTS = "metrics-export", "dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent"


def start(node: int, temporary: str) -> str:
    """Starts one of the two nodes; "", or why that was not possible."""
    own = [f"--{name}-port={6400 + 100 * node + number}" for number, name in enumerate(PORTS)]
    own += (
        ["--head", "--node-ip-address=127.0.0.1", "--port=6379", "--include-dashboard=false", f"--temp-dir={temporary}"]
        if node == 0
        else ["--address=127.0.0.1:6379"]
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "ray.scripts.scripts", "start", *own, *COMMON],
        capture_output=True, text=True, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"node {node} of the Ray cluster did not start: {why}" if done.returncode else ""


def start_both(temporary: str) -> None:
    """Starts the cluster, on a busy machine at the second attempt, or ends with `CANNOT`."""
    for attempt in (1, 2):
        failed = start(0, f"{temporary}/{attempt}") or start(1, "")
        if not failed:
            return
        os.kill(-1, signal.SIGKILL)  # all others of this namespace
        time.sleep(1)
    print(failed)
    sys.exit(CANNOT)


def raylets() -> list[int]:
    """The process numbers of the nodes, in the order in which they were started."""
    names = {int(file.parent.name): file.read_text().strip() for file in Path("/proc").glob("[0-9]*/comm")}
    return sorted(number for number, name in names.items() if name == "raylet")


def parent(number: int) -> int:
    fields = Path(f"/proc/{number}/status").read_text()
    return int(fields.split("PPid:")[1].split()[0])


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
        return int(json.loads((run / ".lock").read_text())["process"])
    except (OSError, ValueError):
        return 0


def planned(folder: Path, *methods: str, seed: int = 0) -> grid.Plan:
    plan = grid.plan(methods, tiny.settings(**EPOCHS), [seed], folder)
    return [(config, folder / f"{config.method}-s{config.seed}") for config, _ in plan]


def on_ray(plan: grid.Plan) -> list[Any]:
    return grid.execute(plan, tiny.stream(), engine=lambda: Ray(Needs()), **SETTINGS)


def same(one: Path, other: Path) -> dict[str, bool]:
    """Which runs are the same, bit for bit, apart from the clock (and what a process that is not buried has left)."""

    def content(run: Path) -> dict[str, Any]:
        return {name: value for name, value in tiny.content(run).items() if not name.startswith(".")}

    return {run.name: content(run) == content(other / run.name) for run in sorted(one.iterdir())}


def grids(folder: Path) -> dict[str, Any]:
    """A worker is killed, then the second node; the runs go on, in the end on the first node alone."""
    methods = ("tiny", "tiny-other", "tiny-alone")
    plan, killed = planned(folder / "ray", *methods), []
    second = raylets()[1]

    def kill() -> None:
        alone = folder / "ray" / "tiny-alone-s0"
        wait_for((alone / "task_01.safetensors").exists)
        number = wait_for(lambda: holder(alone))
        os.kill(number, signal.SIGKILL)
        killed.append("worker")

        def on_second() -> list[int]:
            found = [number for run in (folder / "ray").glob("tiny*") if (number := holder(run))]
            return [number for number in found if parent(number) == second]

        (number, *_) = wait_for(on_second)
        os.kill(second, signal.SIGKILL)
        os.kill(number, signal.SIGKILL)
        killed.append("node")

    killer = threading.Thread(target=kill)
    killer.start()
    records = on_ray(plan)
    killer.join()
    grid.execute(planned(folder / "here", *methods), tiny.stream(), **SETTINGS)
    return {
        "killed": killed,
        "same": same(folder / "here", folder / "ray"),
        "shared": [record.method for record in records if "shared task 1" in record.timing["by_purpose"]],
        "resumed": {record.method: record.timing.get("resumed", 0) for record in records},
        "threads": sorted({record.threads for record in records}),
    }


def command(folder: Path) -> dict[str, Any]:
    """The command that waits gets Ctrl-C, then is killed; the same one goes on."""
    plan = planned(folder / "ray-2", "tiny-alone", seed=1)
    ((_, run),) = plan
    statuses = []
    for task, sent in ((1, signal.SIGINT), (2, signal.SIGKILL)):
        child = os.fork()  # before this process is connected itself
        if not child:
            try:
                on_ray(plan)
            finally:
                os._exit(130)
        wait_for((run / f"task_{task:02d}.safetensors").exists)
        os.kill(child, sent)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        wait_for(lambda: not holder(run) or not Path(f"/proc/{holder(run)}").exists())
    (record,) = on_ray(plan)
    grid.execute(planned(folder / "here-2", "tiny-alone", seed=1), tiny.stream(), **SETTINGS)
    return {
        "statuses": statuses,
        "same": same(folder / "here-2", folder / "ray-2"),
        "resumed": record.timing.get("resumed", 0),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    engines.LOOK = 0.1
    place = Path(sys.argv[1])
    assert os.getpid() == 1, "only in a namespace of its own"
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as temporary:  # a short path: of sockets
        start_both(temporary)
        told: dict[str, Any] = {"nodes": len(raylets()), "start": round(time.monotonic() - begun, 1)}
        for part in (command, grids):
            told[part.__name__] = part(place)
            told[part.__name__]["seconds"] = round(time.monotonic() - begun, 1)
        print(json.dumps(told), flush=True)
        os._exit(0)  # the cluster ends with this process
