"""A run folder belongs to one process at a time: on one machine the system sees to it, between machines a file does.

A lock of the system (flock) is gone with its process, but is not seen from other nodes of a cluster, whose folders lie
on a file system that they share. So the holder also writes `.lock`: machine, process, and, as the time of the file,
when it was last alive. A holder on this machine is judged by the system's lock; one elsewhere is dead when its file has
not been touched for `DEAD` seconds.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dne_lab.core.errors import LabError
from dne_lab.core.files import WriteError, alive, make_folder

LOCK = ".lock"
BEAT, DEAD = 15.0, 180.0  # seconds: a sign of life, and how long one is waited for
LOOK = 1.0  # seconds between two attempts of who waits


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
        file, text = folder / LOCK, _claim(folder, sure)
        over = threading.Event()
        alive = threading.Thread(target=_beat, args=(file, text, over), daemon=True)
        alive.start()
        try:
            yield
        finally:
            over.set()
            alive.join()
            with contextlib.suppress(OSError):  # the folder may have been moved away
                if file.read_text() == text:
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
            holder = _holder(folder / LOCK)[0].get("process")
            which = f" ({holder} of this machine)" if holder else ""
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


def _claim(folder: Path, sure: bool) -> str:
    """Writes the file, after that of a holder who is dead; gives its text."""
    file = folder / LOCK
    mine = {"host": socket.gethostname(), "machine": machine(), "process": os.getpid(), "since": time.time()}
    text = json.dumps(mine)
    while True:
        try:
            handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)  # by one process, on NFS too
        except FileExistsError:
            _remove_dead(file, sure)
            continue
        except OSError as error:
            raise WriteError(f"cannot write {file}: {error.strerror or error}. Make the folder writable.") from error
        with os.fdopen(handle, "w") as opened:
            opened.write(text)
        return text


def _holder(file: Path) -> tuple[dict[str, Any], str]:
    """Who holds a folder, as its file says, and the text of that; nothing while it is being written, or is gone."""
    try:
        text = file.read_text()
        found = json.loads(text)
    except (OSError, ValueError):
        return {}, ""
    return (found if isinstance(found, dict) else {}), text


def _remove_dead(file: Path, sure: bool) -> None:
    """Moves the file of a dead holder out of the way; raises `InUse` if it is not dead.

    ``sure``: this process has the system's lock, so that no other one of this machine holds the folder.
    """
    holder, text = _holder(file)
    if holder.get("machine") == machine():
        if not sure and _runs(holder.get("process")):
            raise InUse(
                f"{file.parent} is in use by another process ({holder['process']} of this machine). Wait for it, or "
                f"give another folder. If that is no process of this program, remove {file}."
            )
    else:
        age = _age(file)
        if age is not None and age < DEAD:
            raise InUse(
                f"{file.parent} is in use by another process, {holder.get('process', 'unknown')} on "
                f"{holder.get('host', 'another machine')}, last seen {max(0, age):.0f} s ago. Wait for it, or give "
                f"another folder. If that machine is dead, the same command works {DEAD / 60:.0f} minutes after it was "
                f"last seen, or at once when you remove {file}."
            )
    aside = _temporary(file)
    try:
        file.rename(aside)
    except FileNotFoundError:  # it has just let go
        return
    if aside.read_text() != text:  # not the one that was judged: another process was faster
        with contextlib.suppress(OSError):
            os.link(aside, file)
    aside.unlink(missing_ok=True)


def _temporary(file: Path) -> Path:
    """A name that no process of any machine uses, and that `files.remove_leftovers` knows."""
    return file.with_name(f"{file.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")


def _age(file: Path) -> float | None:
    """Seconds since the last sign of life, by the clock of the file system; None if the file is gone."""
    clock = _temporary(file)
    try:
        clock.write_bytes(b"")
        return clock.stat().st_mtime - file.stat().st_mtime
    except FileNotFoundError:
        return None
    finally:
        clock.unlink(missing_ok=True)


def _runs(process: object) -> bool:
    """Whether a process of this machine has this number, for all that is known."""
    return not isinstance(process, int) or process == os.getpid() or alive(process)


def _beat(file: Path, text: str, over: threading.Event) -> None:
    """A sign of life every `BEAT` seconds, as long as the file is this process's."""
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):
            if file.read_text() == text:
                os.utime(file)
