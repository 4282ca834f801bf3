"""``--on ray``: parts of a plan as tasks of a Ray cluster that is running.

A part waits for the reference of another one. Ray starts a part again whose process or node has died, elsewhere if need
be; it goes on from its run folder. The tasks end with the command that has submitted them: the same command goes on.
"""

import logging
import math
import os
import socket
from collections.abc import Sequence
from typing import Any

from dne_lab.core.errors import LabError
from dne_lab.training.engines import Needs, RunFailed, Work, missing, said
from dne_lab.training.graph import Part

RETRIES = 5  # of a part whose process dies: more is a reason to look at it
ANSWER = 10.0  # seconds in which the head of a cluster answers
CANCELLED = 60.0  # seconds for the checkpoints of runs that are stopped


def _train(work: Work, after: object) -> None:
    """A part, as a task; ``after`` is what that before it has given: nothing, but Ray waits for it."""
    try:
        work()
    except KeyboardInterrupt:
        raise RunFailed("stopped, with a checkpoint. The same again goes on from there.") from None


class Ray:
    """The engine: the cluster that ``RAY_ADDRESS`` names, else the one that this machine is a node of."""

    def __init__(self, needs: Needs) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise missing("ray", "ray") from None
        self.ray = ray
        self.needs, wanted_of_each = needs, amounts(needs)
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        try:
            if not ray.is_initialized():  # else by this program, or by the user's own
                ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError) as error:
            raise LabError(
                "--on ray needs a running Ray cluster: start it by `ray start --head` on one machine and `ray start "
                f"--address=...` on the others, then give the command on one of them. ({_first_line(error)})"
            ) from error
        offered = self.ray.cluster_resources()
        for name, wanted in wanted_of_each.items():
            if wanted > offered.get(name, 0.0):
                raise LabError(
                    f"each run is to get {wanted:g} of {name}, and all of the Ray cluster has "
                    f"{offered.get(name, 0.0):g}. Ask for less, or start more nodes."
                )
        more = {name: wanted for name, wanted in wanted_of_each.items() if name not in ("CPU", "GPU")}
        memory = more.pop("memory", None)
        # On a GPU each in a process of its own, which gives its memory back; else the next one saves the imports.
        self.task = self.ray.remote(max_calls=1 if needs.gpus else 0)(_train)
        self.given = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "memory": memory, "resources": more}

    def submit(self, part: Part, work: Work, after: Any | None) -> Any:
        """See `engines.Engine`."""
        return self.task.options(name=part.job.title, max_retries=RETRIES, **self.given).remote(work, after)

    def outcome(self, reference: Any) -> str | None:
        """See `engines.Engine`."""
        if not self.ray.wait([reference], timeout=0)[0]:
            return None
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return said(str(error)) or f"{_first_line(error)} The same again goes on from its last checkpoint."
        return ""

    def describe(self, references: Sequence[Any]) -> str:
        """See `engines.Engine`."""
        nodes = sum(node["Alive"] for node in self.ray.nodes())
        return f"Ray, {nodes} node{'s' * (nodes != 1)}, {self.ray.cluster_resources().get('CPU', 0):g} cores."

    def stop(self, references: Sequence[Any]) -> str:
        """See `engines.Engine`. They write a checkpoint."""
        for reference in references:
            self.ray.cancel(reference)
        self.ray.wait(list(references), num_returns=len(references), timeout=CANCELLED)
        return "every run has been told to write its checkpoint and end; the same command goes on."


def amounts(needs: Needs) -> dict[str, float]:
    """What each part is given, by Ray's names.

    Raises:
        LabError: what Ray does not give.
    """
    if needs.minutes is not None:
        raise LabError("--minutes limits a job of SLURM: leave it away with --on ray.")
    try:
        more = {name: float(value) for name, value in needs.more}
    except ValueError:
        raise LabError(f"--resource {dict(needs.more)}: with --on ray give amounts, such as big_nodes=1.") from None
    asked = {"CPU": needs.cpus, "GPU": needs.gpus, **more}
    for name, amount in asked.items():
        if not 0 <= amount < math.inf or (amount > 1 and amount % 1):
            option = "--gpus" if name == "GPU" else f"--resource {name}"
            raise LabError(f"{option} {amount:g}: Ray gives a part of one, such as 0.25, or a whole number.")
    return asked


def _check_address(address: str) -> None:
    """Raises a `LabError` where nobody answers at ``HOST:PORT``: Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except OSError as error:
        raise LabError(
            f"RAY_ADDRESS={address}: nobody answers there ({error.strerror or error}). Name the head of a cluster that "
            "runs (ray start --head says its address), or unset it."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
