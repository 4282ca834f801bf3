"""Files are written completely or not at all."""

import errno
import inspect
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dne_lab.core import files
from dne_lab.core.errors import LabError

DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def failing(error: BaseException) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


def test_a_file_and_its_folders_are_written(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a" / "b.txt", "größer")
    files.write_bytes(tmp_path / "a" / "b.txt", b"second")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"second"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.txt"]


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize("error", [DISK_FULL, KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    place: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "b.txt"
    files.write_text(file, "old")
    monkeypatch.setattr(*((os, "fsync") if place == "fsync" else (Path, "replace")), failing(error))
    expected = files.WriteError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        files.write_text(file, "new")
    if expected is files.WriteError:
        assert str(file) in str(caught.value) and "No space left on device" in str(caught.value)
        assert "run the same command again" in str(caught.value)
    assert file.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["b.txt"]


def test_a_file_in_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(LabError, match=r"cannot make the folder .*runs"):
        files.write_text(tmp_path / "runs" / "x" / "record.json", "")
    assert (tmp_path / "runs").read_text() == "a file"


def test_leftovers_of_killed_processes_go_and_nothing_else(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead, alive = child.pid, os.getppid()
    kept = ["record.json", ".hidden", ".notes.tmp", f".record.json.{alive}.tmp", ".record.json.x1.tmp", f".{dead}.tmp"]
    for name in (f".record.json.{dead}.tmp", f".last.safetensors.{os.getpid()}.tmp", *kept):
        (tmp_path / name).write_text("")
    (tmp_path / f".folder.{dead}.tmp").mkdir()
    (tmp_path / f".link.{dead}.tmp").symlink_to(tmp_path / "record.json")
    files.remove_leftovers(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {*kept, f".folder.{dead}.tmp", f".link.{dead}.tmp"}


def test_a_link_in_place_of_the_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / f".record.json.{os.getpid()}.tmp").symlink_to(tmp_path / "thesis.txt")
    files.write_text(tmp_path / "record.json", "{}")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert {file.name for file in tmp_path.iterdir()} == {"thesis.txt", "record.json"}
    assert (tmp_path / "record.json").read_text() == "{}"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(LabError, match=name):
            files.write_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "folder").is_dir()
    with pytest.raises(LabError, match="no regular file"):
        files.write_text(Path("/dev/null"), "text")


def test_places_are_absolute_and_know_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/there/me")
    assert files.absolute("runs/x") == tmp_path / "runs" / "x"
    assert files.absolute("~/runs") == Path("/there/me/runs")
    assert files.short_path(files.absolute("runs/x")) == "runs/x" and files.short_path(Path("/other/x")) == "/other/x"
    with pytest.raises(LabError, match="nobody-here"):
        files.absolute("~nobody-here/x")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(LabError, match="working directory is gone"):
        files.absolute("runs/x")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("text", "name"), [
    ("digits100", "digits100"), ("../../etc/passwd", "_.._etc_passwd"), ("/abs/path", "_abs_path"), ("", "_"),
    ("..", "_"), ("a b\u732b<c>", "a_b_c_"), ("x" * 300, "x" * 80), ("dne-k=2+ia_s0.1", "dne-k_2+ia_s0.1"),
])  # fmt: skip
def test_a_name_from_elsewhere_becomes_a_part_of_a_files_name(text: str, name: str) -> None:
    assert files.file_name(text) == name


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "closed").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.json").touch()
    assert files.inside(tmp_path, "*.json") == [tmp_path / "b" / "x.json"]
    look = os.scandir

    def refuse(place: str) -> Any:
        if place.endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
        return look(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(LabError, match=r"closed cannot be read: Permission denied\. Make it readable, or move it out"):
        files.inside(tmp_path, "*.json")


def test_folders_in_folders_more_often_than_python_calls_itself(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 150)
    deep.mkdir(parents=True)
    (deep / "x.json").touch()
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 120)  # deeper ones would keep pytest from removing them
    try:
        found = files.inside(tmp_path, "*.json")
    finally:
        sys.setrecursionlimit(before)
    assert found == [deep / "x.json"]


def test_a_link_to_nowhere_is_named_where_a_folder_should_be_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(files.WriteError, match=r"link is a link to what is not there, and stays as it is"):
        files.make_folder(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


def test_what_a_file_system_says_is_said() -> None:
    with pytest.raises(LabError, match=r"somewhere cannot be used: Stale file handle"), files.file_errors_said():
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "somewhere")
    with pytest.raises(BrokenPipeError), files.file_errors_said():  # no file's
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_name_is_on_one_line() -> None:
    assert files.short_path(Path("/a\nb/c")) == r"/a\nb/c"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_a_process_that_has_ended_and_is_not_waited_for_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    stat = Path(f"/proc/{child.pid}/stat")
    end = time.monotonic() + 30
    while " Z " not in stat.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not files.alive(child.pid) and child.wait() == 0
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert files.alive(child.pid)
    child.communicate(b"\n")
