"""The command line as tests use it: in a process of its own, or (many times faster) in this one."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
import torch
from safetensors import safe_open

from dne_lab.commands import cli

ROOT = Path(__file__).parent.parent
TINY = {
    "data.tasks": "6,4", "learn.epochs": 1, "tune.epochs": 1, "learn.batch": 128, "tune.batch": 32, "learn.warmup": 0,
    "network.depth": 2, "network.head_width": 4, "network.heads": "2,1", "memory.budget": 20,
}  # fmt: skip


def sets(**changes: Any) -> list[str]:
    """The words --set a.b=c for TINY with changes; ``__`` stands for the dot, None leaves a field out."""
    fields = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return [word for name, value in fields.items() if value is not None for word in ("--set", f"{name}={value}")]


def run_folder(runs: Path, method: str, seed: int = 0) -> Path:
    """The folder of the one run of a method and a seed, whatever its name says in between."""
    (found,) = runs.glob(f"{method}-*-s{seed}")
    return found


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Here:
    """Commands in this process, in the current folder, on one thread."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *words: object, program: str = "dne-lab") -> Done:
        self.monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        self.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # runs are compared bit for bit
        self.capsys.readouterr()
        with one_thread():
            try:
                cli.main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        return Done(code, *self.capsys.readouterr())


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def there(*words: object, folder: Path) -> Done:
    """A command in a process of its own, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "dne_lab", *map(str, words)],
        cwd=folder, env=environment(), text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


class Nursery:
    """Commands in processes of their own that start at once; see nursery.py.

    ``root``: whose package they are of; ``modules``: what they import beside what all need.
    """

    def __init__(self, root: Path = ROOT, modules: Iterable[str] = ()) -> None:
        self.root, self.modules = root, [*modules]

    def __enter__(self) -> Self:
        path = os.pathsep.join([str(self.root), str(self.root / "tests"), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("nursery.py"), *self.modules],
            env=environment() | {"PYTHONPATH": path}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, **asked: Any) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *words: object, folder: Path, program: str = "dne-lab") -> int:
        """Starts a command (or pytest) in a folder; its process number."""
        return self.ask(words=[str(word) for word in words], folder=str(folder), program=program)

    def ended(self, number: int, folder: Path) -> Done:
        """Waits for the command that was started in a folder."""
        code = self.ask(wait=number)
        return Done(code, *(Path(f"{folder}{suffix}").read_text() for suffix in (".out", ".err")))


def content(folder: Path) -> dict[str, Any]:
    """Everything in a run folder that must not depend on the clock, comparable with ==."""
    found: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.name == "record.json":
            found[file.name] = {**json.loads(file.read_text()), "timing": None}
        elif file.name == "last.safetensors":
            with safe_open(file, "pt") as opened:
                info = json.loads(opened.metadata()["dne-lab"])
                found |= {name: opened.get_tensor(name).numpy().tobytes() for name in opened.keys()}  # noqa: SIM118
            info["state"]["timing"] = info["sha256"] = None
            found[file.name] = info
        else:
            found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """All files below a folder: their content and when they were last written."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns) for file in files}
