"""Who holds a run folder: on this machine, on another one, alive or dead."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

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
        pytest.raises(InUse, match=r"another process, 4321 on node17, last seen 100 s ago") as caught,
        alone_in(file.parent),
    ):
        pass
    assert f"If that machine is dead, the same command works 3 minutes after it was last seen, or at once when you " \
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


def test_of_many_one_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    file = held_elsewhere(tmp_path / "run", age=folder_lock.DEAD + 1)
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


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(files.WriteError, match="Make the folder writable"), alone_in(tmp_path / "run"):
        pass
