"""The one way in which files are written: completely or not at all."""

import contextlib
import errno
import fnmatch
import glob
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dne_lab.core.errors import LabError, brief

if TYPE_CHECKING:
    import zipfile


class WriteError(LabError):
    """A file that could not be written. What was there before is still there."""


UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
LONGEST = 80  # characters of a file's name that comes from elsewhere


def file_name(text: str) -> str:
    """``text``, which a record or a user may have chosen, as a part of a file's name: letters, digits and ``._-+``, at
    most 80 of them, and never hidden or a path."""
    return UNSAFE.sub("_", text).lstrip(".")[:LONGEST] or "_"


def absolute(path: str | Path) -> Path:
    """``path`` as it is meant now: ``~`` is the home folder, and a relative one begins in the working directory.

    Raises:
        LabError: no path, or what can be no file's name on this system (too long, or with a zero byte in it).
    """
    if not isinstance(path, str | os.PathLike):
        raise LabError(f"{brief(path)}: must be a path, as text or as a pathlib.Path.")
    if path == "":
        raise LabError("the name of a file or folder is empty: give one; . is the working directory.")
    try:
        place = Path(path).expanduser().absolute()
    except FileNotFoundError as error:
        raise LabError(f"{path}: the working directory is gone. Go to one that is there (cd).") from error
    except RuntimeError as error:  # ~someone whom the system does not know
        raise LabError(f"{path}: {str(error).rstrip('.')}. Write the folder out.") from error
    try:
        place.lstat()
    except ValueError as error:
        raise LabError(f"{brief(str(path))} can be no file's name: {error}.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise LabError(too_long(path)) from error
    return place


def resolved(path: str | Path) -> Path:
    """`absolute`, and what links lead to; a link that leads to itself stays, and whoever opens it says so."""
    return Path(os.path.realpath(absolute(path)))


def too_long(path: str | Path) -> str:
    """The sentence for a name that the file system refuses for its length."""
    return f"{brief(str(path))}: is too long a name for a file or folder here. Give a shorter one."


def short_path(path: Path) -> str:
    """A place as messages name it, on one line: from the working directory on where it lies below that."""
    try:
        text = str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere, or the working directory is gone
        text = str(path)
    return text.replace("\n", "\\n")


# What a file system says of a place, whatever the program wanted there: of a network's it may come at any time.
_OF_FILES = {
    errno.ENAMETOOLONG, errno.EIO, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOSPC, errno.EROFS, errno.EFBIG,
    errno.ENOTDIR, errno.ETIMEDOUT, errno.ESTALE, errno.EDQUOT,
}  # fmt: skip


@contextlib.contextmanager
def file_errors_said() -> Iterator[None]:
    """Inside, what the file system says of a place, and nobody has put into words, becomes a `LabError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_FILES or not isinstance(error.filename, str | os.PathLike):
            raise
        if error.errno == errno.ENAMETOOLONG:
            raise LabError(too_long(Path(error.filename))) from error
        raise LabError(
            f"{short_path(Path(error.filename))} cannot be used: {error.strerror}. What was written before is not lost."
        ) from error


def check_regular(path: Path, wanted: str = "a file of its own") -> None:
    """Refuses what would be waited for without an end, or fill the memory: pipes, devices, sockets, and folders.

    Raises:
        LabError: there is something in ``path``, and it is no regular file; ``wanted``: what is to be named instead.
    """
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):  # whoever opens it says that it is not there; ValueError: a path that no system has
        return
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "no regular file"
        raise LabError(f"{short_path(path)} is {what}: name {wanted}.")


_YOUNG = 2e9  # nanoseconds: a file just written may be written again at what its clock takes for the same time


def stamp(path: Path) -> tuple[int, ...]:
    """Tells two states of a file apart without reading it; see `settled`. Raises OSError where there is no file."""
    now = path.stat()
    return now.st_mtime_ns, now.st_ctime_ns, now.st_size, now.st_ino, now.st_dev


def settled(stamp: tuple[int, ...]) -> bool:
    """Whether a file of this `stamp` is old enough for it to be another one after the next change."""
    return time.time_ns() - max(stamp[:2]) > _YOUNG


UNPACKED, TIMES = 256_000_000, 50  # bytes that may always be unpacked, and how many times the packed ones


def check_parts(file: Path, parts: Sequence["zipfile.ZipInfo"]) -> None:
    """Refuses an archive before any of these parts of it is unpacked.

    Raises:
        LabError: a password is needed; two parts of one name; they would fill disk or memory, as they say themselves:
            more than 256 MB and more than 50 times what the file takes.
    """
    if any(part.flag_bits & 1 for part in parts):
        raise LabError(f"{file} is encrypted: unpack it with its password, and pack it anew without one.")
    most = Counter(part.filename for part in parts).most_common(1)
    if most and most[0][1] > 1:
        raise LabError(f"{file} holds {brief(most[0][0])} twice: not what this program or numpy.savez writes.")
    total, packed = sum(part.file_size for part in parts), file.stat().st_size
    if total > max(UNPACKED, TIMES * packed):
        raise LabError(
            f"{file} takes {packed:,} bytes and would be {total:,} bytes unpacked: not what this program or "
            f"numpy.savez writes. Up to {TIMES} times the file's size are unpacked; pack it anew without compression "
            "(zip -0)."
        )


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            if dangling := next((place for place in (path, *path.parents) if _leads_nowhere(place)), None):
                raise WriteError(
                    f"cannot {what} {short_path(path)}: {dangling} is a link to what is not there, and stays as it is. "
                    "Name another place."
                ) from error
            there = next((place for place in (path, *path.parents) if place.exists()), path)
            kind = "a folder" if there.is_dir() else "a file"  # where there should be the other one
            message = f"cannot {what} {short_path(path)}: {there} is {kind} and stays as it is. Name another place."
            raise WriteError(message) from error
        raise WriteError(
            f"cannot {what} {short_path(path)}: {reason}. Nothing was lost: what had been written before is "
            "untouched. Free space or make the folder writable, then run the same command again (training goes on from "
            "where it was)."
        ) from error


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def refuse_file(path: Path) -> None:
    """Raises a `LabError` where a folder that is to be written to is a file, or cannot be written to."""
    there = next((place for place in (path, *path.parents) if place.exists()), None)
    if there is not None and not there.is_dir():
        raise LabError(f"{path} cannot be a folder: {there} is a file, which stays as it is. Name another place.")
    if there is not None and not os.access(there, os.W_OK | os.X_OK):
        raise WriteError(f"{path} cannot be written: {there} is read-only for you. Name another place.")


MOST = 200_000  # files and folders that are looked through


def inside(folder: Path, *patterns: str) -> list[Path]:
    """The files below a folder whose names fit one of the patterns, without hidden ones and hidden folders; linked
    folders are not entered.

    Raises:
        LabError: a folder that cannot be read, however deep: what is in it would be missing in silence. More than
            `MOST` files and folders, as below ``/``.
    """
    found: list[Path] = []
    left, passed = [str(folder)], 0
    while left:  # and not a function that calls itself: folders may lie in each other more often than Python allows
        place = left.pop()
        try:
            with os.scandir(place) as there:
                entries = sorted((one for one in there if not one.name.startswith(".")), key=lambda one: one.name)
            kinds = [(one, one.is_dir(follow_symlinks=False)) for one in entries]
        except OSError as error:
            why = error.strerror or error
            raise LabError(f"{place} cannot be read: {why}. Make it readable, or move it out of {folder}.") from error
        passed += len(entries)
        if passed > MOST:
            raise LabError(f"{folder} holds more than {MOST:,} files and folders. Name a folder with runs or records.")
        left += [one.path for one, is_folder in reversed(kinds) if is_folder]
        found += [
            Path(one.path)
            for one, is_folder in kinds
            if not is_folder and any(fnmatch.fnmatch(one.name, pattern) for pattern in patterns)
        ]
    return found


def make_folder(path: Path) -> None:
    """Creates a folder and its parents; a `WriteError` where that is impossible."""
    with _explained(path, "make the folder"):
        path.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file by way of a temporary one in the same folder and one rename, so that no reader sees a part of it.

    Raises:
        LabError: ``path`` is a folder, a device or the like.
        WriteError: disk full, unwritable folder. The old content of ``path`` is untouched, nothing else is left behind.
    """
    check_regular(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path, "write"):
        try:
            temporary.unlink(missing_ok=True)  # a leftover, or a link that would lead to another file
            with temporary.open("xb") as file:
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


TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.tmp")  # what `write_bytes` calls its files, with the process's number


def remove_leftovers(folder: Path, of: str | None = None) -> None:
    """Removes temporary files that a process killed in the middle of a write has left in ``folder``.

    Only what is called as `write_bytes` calls it, by a process that is no more; the caller holds the folder, or names
    the one file ``of`` which it may write there.
    """
    for file in folder.glob(".*.tmp" if of is None else f".{glob.escape(of)}.*.tmp"):
        writer = TEMPORARY.fullmatch(file.name)
        if writer and not file.is_symlink() and file.is_file() and not alive(int(writer[1])):
            with contextlib.suppress(OSError):  # one that cannot be removed does no harm
                file.unlink()


def alive(process: int) -> bool:
    """Whether a process of this number runs, other than this one, which writes nothing now."""
    if process == os.getpid() or process == 0:
        return False
    if os.name != "posix":  # elsewhere there is no signal that does nothing
        return True
    with contextlib.suppress(OSError, IndexError):  # one that has ended, and whose parent has not looked yet
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X"):
            return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's, or no number of this machine: not ours to judge
        return True
    return True
