"""A process that imports the package once and forks commands, so that many real processes cost one start.

Forking is safe because this process itself never computes anything. Reads {"words", "folder", "program"} (and
"environment"), {"wait": pid} or {"poll": pid} as lines of JSON; answers with the child's process number, or with its
exit status (minus the signal that killed it; 256: it has not ended). Its arguments are modules to be imported beside
those that every command needs.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from dne_lab.commands import cli


def forked(words: list[str], folder: str, program: str, environment: dict[str, str]) -> int:
    """Starts a command, pytest, or a job of submitit; its process number. It writes to .out and .err, files beside its
    folder."""
    number = os.fork()
    if number:
        return number
    try:
        os.chdir(folder)
        for stream, suffix in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(folder + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= environment
        sys.argv = [program, *words]
        if program == "pytest":
            import pytest

            raise SystemExit(pytest.main(words))
        if program == "submitit":
            from submitit.core.submission import submitit_main

            submitit_main()
        else:
            cli.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    for name in (
        "torch",
        "sklearn.datasets",
        "dne_lab.training.grid",
        "dne_lab.commands.api",
        "dne_lab.measure.tables",
        *sys.argv[1:],
    ):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif "poll" in asked:
            number, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if number else 256
        else:
            environment = asked.get("environment", {})
            answer = forked(asked["words"], str(Path(asked["folder"])), asked["program"], environment)
        print(answer, flush=True)
