"""The one way in which files are written: completely or not at all."""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from dne_lab.core.errors import LabError


class WriteError(LabError):
    """A file that could not be written. What was there before is still there."""


LONGEST = 80  # characters of a file's name that comes from elsewhere


def file_name(text: str) -> str:
    """``text``, which a record or a user may have chosen, as a part of a file's name: letters, digits and ``._-+``, at
    most 80 of them, and never hidden or a path."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).lstrip(".")[:LONGEST] or "_"


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"cannot {what} {path}: {reason}. Nothing was lost: what had been written before is untouched. Free space "
            "or make the folder writable, then run the same command again; it goes on from there."
        ) from error


def make_folder(path: Path) -> None:
    """Creates a folder and its parents; a `WriteError` where that is impossible."""
    with _explained(path, "make the folder"):
        path.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file by way of a temporary one in the same folder and one rename, so that no reader sees a part of it.

    Raises:
        WriteError: disk full, unwritable folder. The old content of ``path`` is untouched, nothing else is left behind.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path, "write"):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files that a process killed in the middle of a write has left in ``folder``."""
    for file in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # one that cannot be removed does no harm
            file.unlink()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process (the system lets go of it when the process ends, however that happens).

    Raises:
        LabError: another process holds it. File systems and platforms without such locks are not checked.
    """
    make_folder(folder)
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # no such locks on this platform
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"{folder} is in use by another process. Wait for it, or give another folder.") from None
        except OSError as error:  # a file system without locks
            warnings.warn(f"{folder} cannot be locked ({error}): let only one process train in it.", stacklevel=2)
        yield
    finally:
        os.close(handle)
