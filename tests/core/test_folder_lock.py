"""Who holds a run folder: on this machine, on another one, alive or dead."""

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dne_lab.core import files, folder_lock
from dne_lab.core.errors import LabError
from dne_lab.core.folder_lock import LOCK, InUse, alone_in


def held_elsewhere(folder: Path, age: float) -> Path:
    """What a process of another machine leaves, last seen ``age`` seconds ago."""
    folder.mkdir()
    file = folder / LOCK
    file.write_text(json.dumps({"host": "node17", "machine": "another", "process": 4321, "since": 0.0}))
    os.utime(file, times=(time.time() - age, time.time() - age))
    return file


def test_a_folder_is_held_by_one_process_and_let_go(tmp_path: Path) -> None:
    with alone_in(tmp_path / "run"):
        told = json.loads((tmp_path / "run" / LOCK).read_text())
        assert told["process"] == os.getpid()
        with (
            pytest.raises(LabError, match=rf"in use by another process \({os.getpid()} of this"),
            alone_in(tmp_path / "run"),
        ):
            pass
    assert not list((tmp_path / "run").iterdir())
    with alone_in(tmp_path / "run"):
        pass


def test_a_holder_on_another_machine_is_respected_as_long_as_it_looks_alive(tmp_path: Path) -> None:
    file = held_elsewhere(tmp_path / "run", age=100)
    with (
        pytest.raises(InUse, match=r"another process, 4321 on 'node17', last seen 100 s ago") as caught,
        alone_in(file.parent),
    ):
        pass
    assert f"If that machine is dead, the same command works 180 s after it was last seen, or at once when you " \
        f"remove {file}" in str(caught.value)  # fmt: skip
    assert [path.name for path in file.parent.iterdir()] == [LOCK]
    file.unlink()
    with alone_in(file.parent):
        pass


def test_a_dead_one_is_taken_over_and_one_that_may_die_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = held_elsewhere(tmp_path / "run", age=folder_lock.DEAD + 1)
    with alone_in(file.parent):
        assert json.loads(file.read_text())["process"] == os.getpid()
    monkeypatch.setattr(folder_lock, "LOOK", 0.02)
    file = held_elsewhere(tmp_path / "later", age=folder_lock.DEAD - 0.3)
    with alone_in(file.parent, patience=5.0):
        assert json.loads(file.read_text())["process"] == os.getpid()


def test_a_holder_gives_signs_of_life_until_its_file_is_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "BEAT", 0.01)
    with alone_in(tmp_path / "run"):
        file = tmp_path / "run" / LOCK
        for _ in range(2):
            os.utime(file, times=(1e9, 1e9))
            end = time.monotonic() + 10
            while file.stat().st_mtime == 1e9:
                assert time.monotonic() < end
                time.sleep(0.005)
        file.write_text("another's")
        os.utime(file, times=(1e9, 1e9))
        time.sleep(0.1)
        assert file.stat().st_mtime == 1e9
    assert file.read_text() == "another's"  # not removed either


@pytest.mark.parametrize("system_locks", [True, False])
def test_after_a_kill_the_folder_is_free_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_locks: bool
) -> None:
    folder = tmp_path / "run"
    code = (
        "import os, pathlib, signal, sys; from dne_lab.core.folder_lock import alone_in\n"
        "with alone_in(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(folder_lock.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, folder], cwd=root).returncode == -9
    assert (folder / LOCK).exists()
    if not system_locks:  # as on a file system without them: the process is looked for
        monkeypatch.setattr("fcntl.flock", no_locks)
    with alone_in(folder):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()


def no_locks(*how: object) -> None:
    raise OSError(95, "Operation not supported")


def test_without_locks_of_the_system_the_file_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        alone_in(tmp_path / "run"),
        pytest.raises(InUse, match=r"in use by another process .*remove"),
        alone_in(tmp_path / "run"),
    ):
        pass
    with alone_in(tmp_path / "run"):
        pass


@pytest.mark.parametrize("attempt_number", range(20))
def test_of_many_one_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt_number: int) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    file = held_elsewhere(tmp_path / "run", age=folder_lock.DEAD + 1)
    if attempt_number % 2:  # and one was killed while it took over
        dead = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        mark = file.with_name(f"{LOCK}.{dead}{folder_lock.MARK}")
        mark.touch()
        os.utime(mark, times=(1e9, 1e9))
    results: list[str] = []
    together, over = threading.Barrier(6), threading.Barrier(6)

    def attempt() -> None:
        together.wait()
        try:
            with alone_in(file.parent):
                results.append("held")
                over.wait(10)
        except InUse:
            results.append("in use")
            over.wait(10)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", *["in use"] * 5]
    assert not list(file.parent.iterdir())


def test_who_was_slow_to_look_takes_over_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has judged a holder dead; until it acts another one has taken the folder over, or let it go."""
    monkeypatch.setattr("fcntl.flock", no_locks)
    file = held_elsewhere(tmp_path / "run", age=folder_lock.DEAD + 1)
    judge, others = folder_lock._refuse_living, [True]

    def slow(*judged: Any) -> None:
        judge(*judged)
        if others.pop() if others else False:
            held.enter_context(alone_in(file.parent))

    monkeypatch.setattr(folder_lock, "_refuse_living", slow)
    with contextlib.ExitStack() as held:
        with pytest.raises(InUse, match="of this machine"), alone_in(file.parent):
            pass
        assert [path.name for path in file.parent.iterdir()] == [LOCK]
    assert not list(file.parent.iterdir())


ODD = {
    "empty": b"",
    "cut off": b'{"host": "node17", "mach',
    "no text": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "a number": b"17",
    "deep": b"[" * 4000,
    "long": b" " * 100_000 + b"{}",
    "types": rb'{"host": ["\u001b[31m"], "machine": {}, "process": "x", "since": "now"}',
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_a_file_that_says_nothing_is_respected_while_it_is_young_and_then_replaced(
    tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    file = folder / LOCK
    file.write_bytes(content)
    with pytest.raises(InUse, match=r"another process, .* last seen \d s ago") as caught, alone_in(folder):
        pass
    assert "\x1b" not in str(caught.value) and file.read_bytes() == content
    os.utime(file, times=(time.time() - folder_lock.DEAD - 1,) * 2)
    with alone_in(folder):
        assert json.loads(file.read_text())["process"] == os.getpid()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link", "link to itself"])
def test_what_is_no_file_stays_and_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "run" / LOCK
    file.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(file if kind == "link to itself" else tmp_path / "nowhere")
    with pytest.raises(InUse, match=r"\.lock is no regular file"), alone_in(file.parent):
        pass
    assert [path.name for path in file.parent.iterdir()] == [LOCK] and not (tmp_path / "nowhere").exists()


def test_a_clock_that_is_wrong_is_said(tmp_path: Path) -> None:
    file = held_elsewhere(tmp_path / "run", age=-3600)
    with pytest.raises(InUse, match=r"3[56]\d\d s in the future: a clock is wrong"), alone_in(file.parent):
        pass


def test_a_full_disk_leaves_no_file_that_nobody_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(folder_lock.os, "fdopen", full)
        with pytest.raises(files.WriteError, match=r"cannot write .*No space left"), alone_in(tmp_path / "run"):
            pass
    assert not list((tmp_path / "run").iterdir())
    with alone_in(tmp_path / "run"):
        pass


@contextlib.contextmanager
def full(handle: int, mode: str) -> Iterator[Any]:
    with open(handle, mode):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    yield


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(files.WriteError, match="Make the folder writable"), alone_in(tmp_path / "run"):
        pass
