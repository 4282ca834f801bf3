"""A SLURM of one machine: `sbatch`, `srun`, `squeue`, `scontrol requeue` as files on the path, and what runs the jobs.

It keeps what this project relies on: numbers, ``afterok`` with ``kill-on-invalid-dep``, signals to what srun has
started, and that a requeued job begins anew under its number. Each job is a folder ``DIR/NUMBER`` with its script and a
file ``state``; `Cluster` runs in the tests' process.
"""

import os
import re
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Self

from shell import Nursery

RUNNING = 256  # of `nursery`
COMMANDS = {
    "sbatch": """
import os, pathlib, shutil, sys
place = pathlib.Path(os.environ["STAND_IN_SLURM"])
number = len(list(place.glob("*/script"))) + 1
(place / f"{number}").mkdir()
shutil.copy(sys.argv[1], place / f"{number}" / "script")
(place / f"{number}" / "state").write_text("PENDING")
print("Submitted batch job", number)
""",
    "squeue": """
import os, pathlib
for state in pathlib.Path(os.environ["STAND_IN_SLURM"]).glob("*/state"):
    if state.read_text() in ("PENDING", "RUNNING"):
        print(state.parent.name)
""",
    "scontrol": """
import os, pathlib, sys
assert sys.argv[1] == "requeue"
(pathlib.Path(os.environ["STAND_IN_SLURM"]) / sys.argv[2] / "requeue").touch()
""",
    "srun": "raise SystemExit('only in a script')",
}


class Cluster:
    """Runs the jobs of ``place``, at most ``cores`` at a time, while it is entered.

    A job is a process that ``nursery``, which has imported submitit, forks; of its script the last line counts.
    """

    def __init__(self, place: Path, nursery: Nursery, cores: int = 2) -> None:
        self.place, self.nursery, self.cores = place, nursery, cores
        self.jobs: dict[str, int] = {}  # process numbers
        self.starts: list[str] = []  # numbers, in the order in which they began
        self.over = threading.Event()
        (place / "bin").mkdir(parents=True)
        for name, text in COMMANDS.items():
            file = place / "bin" / name
            file.write_text(f"#!{sys.executable}\n{text.lstrip()}")
            file.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see this cluster."""
        return {"STAND_IN_SLURM": str(self.place), "PATH": f"{self.place / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self._work)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        for process in self.jobs.values():
            os.kill(process, signal.SIGKILL)
            self.nursery.ask(wait=process)

    def asked(self, number: str) -> dict[str, str]:
        """What the script of a job asks for: ``{"time": "240", "dependency": "afterok:1"}``."""
        lines = (self.place / number / "script").read_text().splitlines()
        found = [shlex.split(line.removeprefix("#SBATCH --"))[0] for line in lines if line.startswith("#SBATCH --")]
        return {name: value for name, _, value in (option.partition("=") for option in found)}

    def states(self) -> dict[str, str]:
        return {file.parent.name: file.read_text() for file in sorted(self.place.glob("*/state"))}

    def send(self, number: str, sent: signal.Signals) -> None:
        """To what srun has started, as SLURM does."""
        os.kill(self.jobs[number], sent)

    def _work(self) -> None:
        while not self.over.wait(0.05):
            for number, process in list(self.jobs.items()):
                status = self.nursery.ask(poll=process)
                if status != RUNNING:
                    del self.jobs[number]
                    again = self.place / number / "requeue"
                    ended = "PENDING" if again.exists() else "FAILED" if status else "COMPLETED"
                    again.unlink(missing_ok=True)
                    (self.place / number / "state").write_text(ended)
            states = self.states()
            for number in sorted((n for n, state in states.items() if state == "PENDING"), key=int):
                waits = re.fullmatch(r"afterok:(\d+)", self.asked(number).get("dependency", ""))
                before = states[waits[1]] if waits else "COMPLETED"
                if before == "FAILED":
                    (self.place / number / "state").write_text("FAILED")
                elif before == "COMPLETED" and len(self.jobs) < self.cores:
                    self._start(number)

    def _start(self, number: str) -> None:
        words = shlex.split((self.place / number / "script").read_text().splitlines()[-1])
        place = words.index("submitit.core._submit")
        assert words[0] == "srun" and words[place - 3 : place] == [sys.executable, "-u", "-m"]
        (log,) = (word for word in words if word.endswith("_log.out"))
        own = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SUBMITIT_EXECUTOR": "slurm"}
        self.jobs[number] = self.nursery.ask(
            program="submitit", words=words[place + 1 :], folder=str(self.place / number),
            environment=self.environment | own,
        )  # fmt: skip
        assert "%j" in log
        self.starts.append(number)
        (self.place / number / "state").write_text("RUNNING")


def wait_for(what: object, seconds: float = 120.0) -> None:
    """Until a function gives something true."""
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
