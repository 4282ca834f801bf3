"""A run folder belongs to one process at a time: on one machine the system sees to it, between machines a file does.

A lock of the system (flock) is gone with its process, but is not seen from other nodes of a cluster, whose folders lie
on a file system that they share. So the holder also writes `.lock`: machine, process, and, as the time of the file,
when it was last alive. A holder on this machine is judged by the system's lock; one elsewhere is dead when its file has
not been touched for `DEAD` seconds.
"""

import contextlib
import hashlib
import json
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dne_lab.core.errors import LabError, brief
from dne_lab.core.files import WriteError, alive, make_folder

LOCK = ".lock"
BEAT, DEAD = 15.0, 180.0  # seconds: a sign of life, and how long one is waited for
LOOK = 1.0  # seconds between two attempts of who waits
SOON = 0.02  # seconds in which a process that takes over a folder has done so
LONGEST = 4096  # bytes that are read of a file that should hold some 150
MARK = ".taken"  # ends the name of the file of who takes over


class InUse(LabError):
    """Another process trains in this folder."""


@contextlib.contextmanager
def alone_in(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Holds ``folder`` for this process; it is free when the process ends, however that happens.

    Args:
        patience: seconds to wait for another holder to end, or to be known as dead.

    Raises:
        InUse: another process holds it, here or on another machine.
        WriteError: the folder cannot be written to.
    """
    make_folder(folder)
    end = time.monotonic() + patience
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(_held(folder))
                break
            except InUse:
                if time.monotonic() >= end:
                    raise
            time.sleep(LOOK)
        yield


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    with _on_this_machine(folder) as sure:
        file, mine = folder / LOCK, _claim(folder, sure)
        over = threading.Event()
        alive = threading.Thread(target=_beat, args=(file, mine, over), daemon=True)
        alive.start()
        try:
            yield
        finally:
            over.set()
            alive.join()
            with contextlib.suppress(OSError, InUse):  # the folder may have been moved away
                if _content(file) == mine:
                    file.unlink()


@contextlib.contextmanager
def _on_this_machine(folder: Path) -> Iterator[bool]:
    """The system's lock; False where there is none: another platform, or a file system without them, such as NFS."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        sure = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(_content(folder / LOCK) or b"").get("process")
            which = f" ({brief(holder)} of this machine)" if holder else ""
            raise InUse(f"{folder} is in use by another process{which}. Wait for it, or give another folder.") from None
        except OSError:
            sure = False
        yield sure
    finally:
        os.close(handle)


def machine() -> str:
    """What tells this machine from the others of a cluster, and from itself before it was started anew."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname()


def _claim(folder: Path, sure: bool) -> bytes:
    """Writes the file, in the place of that of a holder who is dead; gives its content, which no other one has.

    ``sure``: this process has the system's lock, so that no other one of this machine holds the folder.
    """
    file = folder / LOCK
    told = {"host": socket.gethostname(), "machine": machine(), "process": os.getpid(), "since": time.time()}
    mine = json.dumps(told | {"token": secrets.token_hex(8)}).encode()
    with _explained(file):
        while not _create(file, mine):
            content = _content(file)
            if content is None:  # its holder has just let go
                continue
            _refuse_living(file, content, sure)
            if _take_over(file, content, mine):
                break
        for mark in folder.glob(f"{LOCK}.*{MARK}"):  # of those who wanted to take over what is taken now
            mark.unlink(missing_ok=True)
    return mine


def _create(file: Path, content: bytes) -> bool:
    """Whether there was no such file: of many processes one creates it, on NFS too. It is whole or not there."""
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    return True


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot write {file}: {error.strerror or error}. Make the folder writable, or free space."
        ) from error


def _content(file: Path) -> bytes | None:
    """What the file holds, as far as a lock may be long; None where there is none.

    Raises:
        InUse: something else is there in its place, or it cannot be read.
    """
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            raise InUse(f"{file} is no regular file, and tells nothing of who holds {file.parent}. Move it away.")
        with file.open("rb") as opened:
            return opened.read(LONGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InUse(
            f"{file}, which says who holds {file.parent}, cannot be read: {error.strerror or error}."
        ) from error


def _holder(content: bytes) -> dict[str, Any]:
    """Who holds a folder, as its file says; nothing where that is unreadable, or still being written."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_living(file: Path, content: bytes, sure: bool) -> None:
    """Raises `InUse` unless the holder that wrote this is dead."""
    holder = _holder(content)
    if holder.get("machine") == machine():
        if not sure and _runs(holder.get("process")):
            raise InUse(
                f"{file.parent} is in use by another process ({brief(holder.get('process'))} of this machine). Wait "
                f"for it, or give another folder. If that is no process of this program, remove {file}."
            )
        return
    dead = DEAD if holder else BEAT  # a file that says nothing is being written now, or was cut off
    age = _age(file)
    if age is None or age >= dead:
        return
    who = f"{brief(holder.get('process', 'unknown'))} on {brief(holder.get('host', 'another machine'))}"
    if age < -dead:
        raise InUse(
            f"{file.parent} is in use by another process, {who}, whose last sign of life lies {-age:.0f} s in the "
            f"future: a clock is wrong. If that process is dead, remove {file}."
        )
    raise InUse(
        f"{file.parent} is in use by another process, {who}, last seen {max(0, age):.0f} s ago. Wait for it, or give "
        f"another folder. If that machine is dead, the same command works {dead:.0f} s after it was last seen, or at "
        f"once when you remove {file}."
    )


def _take_over(file: Path, dead: bytes, mine: bytes) -> bool:
    """Puts ``mine`` in the place of what a dead holder has left; False: another process was faster, look again.

    A mark, which one of many can create for this content, keeps out the others between the look and the rename.
    """
    mark = file.with_name(f"{LOCK}.{hashlib.sha256(dead).hexdigest()[:16]}{MARK}")
    if not _create(mark, b""):
        age = _age(mark)
        if age is not None and age > BEAT:  # its maker was killed right here
            mark.unlink(missing_ok=True)
        time.sleep(SOON)
        return False
    try:
        if _content(file) != dead:
            return False
        ready = _temporary(file)
        ready.write_bytes(mine)
        ready.replace(file)
    finally:
        mark.unlink(missing_ok=True)
    time.sleep(SOON)  # who removed the same old mark has replaced it by now
    return _content(file) == mine


def _temporary(file: Path) -> Path:
    """A name that no process of any machine uses, and that `files.remove_leftovers` knows."""
    return file.with_name(f"{file.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")


def _age(file: Path) -> float | None:
    """Seconds since the last sign of life, by the clock of the file system; None if the file is gone."""
    clock = _temporary(file)
    try:
        clock.write_bytes(b"")
        return clock.stat().st_mtime - file.lstat().st_mtime
    except FileNotFoundError:
        return None
    finally:
        clock.unlink(missing_ok=True)


def _runs(process: object) -> bool:
    """Whether a process of this machine has this number, for all that is known."""
    return not isinstance(process, int) or process == os.getpid() or alive(process)


def _beat(file: Path, mine: bytes, over: threading.Event) -> None:
    """A sign of life every `BEAT` seconds, as long as the file is this process's."""
    while not over.wait(BEAT):
        with contextlib.suppress(OSError, InUse):
            if _content(file) == mine:
                os.utime(file)
