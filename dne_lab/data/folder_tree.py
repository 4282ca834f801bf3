"""Which image files lie in a tree of class folders: each folder once, and what is passed over is counted."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import unicodedata
import warnings
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

from dne_lab.core.errors import LabError
from dne_lab.core.files import short_path
from dne_lab.data.image_file import EXTENSIONS, in_words
from dne_lab.data.source import SPLITS

LAYOUT = "Expected train/CLASS/IMAGE and test/CLASS/IMAGE (or val/ in place of test/), with the same classes in both."
# Of a link that leads nowhere or to itself, and of what was removed meanwhile; anything else is a fault of the place.
NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF)


def kind_of(place: Path) -> str:
    """ "folder", "file" (a regular one), "other", or "" where there is nothing.

    Raises:
        LabError: the file system does not say (a server that is away, a folder above it that may not be entered).
    """
    try:
        mode = place.stat().st_mode
    except ValueError:  # a path that no system has
        return ""
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return ""
        raise unread(place, error) from error
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def unread(place: str | Path, error: OSError) -> LabError:
    """The sentence for a place that the file system does not give."""
    why = (error.strerror or str(error)).lower()
    return LabError(
        f"{in_words(short_path(Path(place)))} cannot be read: {why}. Make it readable, or move it out of the data."
    )


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; a `LabError` where one is missing."""
    if kind_of(root) != "folder":
        raise LabError(f"{short_path(root)}: no such folder. {LAYOUT}")
    test = next((root / name for name in ("test", "val") if kind_of(root / name) == "folder"), None)
    absent = [] if kind_of(root / "train") == "folder" else ["train/"]
    absent += [] if test else ["test/ or val/"]
    if absent or test is None:
        found = ", ".join([in_words(entry.name) for entry in _entries(str(root))][:8]) or "nothing"
        missing = " and no ".join(absent)
        raise LabError(f"{short_path(root)} has no {missing} (found: {found}). Unpack all of it. {LAYOUT}")
    return {"train": root / "train", "test": test}


class LeftOut:
    """Counts files that are not read, by why, and says so once."""

    def __init__(self) -> None:
        self.why: Counter[str] = Counter()
        self.first = ""

    def add(self, file: str, why: str) -> None:
        """One more."""
        self.why[why] += 1
        self.first = self.first or in_words(file)

    def say(self, root: Path) -> None:
        """A warning with the counts, if there are any."""
        if self.why:
            reasons = ", ".join(f"{count} {why}" for why, count in sorted(self.why.items()))
            count = sum(self.why.values())
            text = f"{short_path(root)}: {count} file(s) left out ({reasons}), the first is {self.first}. "
            warnings.warn(text + f"Images are files called {' '.join(sorted(EXTENSIONS))}.", stacklevel=4)


def scan(folder: Path, left_out: LeftOut) -> dict[str, list[str]]:
    """Class name -> files, both sorted; folders that start with a dot or @ are not classes."""
    classes: dict[str, list[str]] = {}
    for entry in _entries(str(folder)):
        if not _is(entry, entry.is_dir):
            if entry.is_symlink() and not _is(entry, entry.is_file):
                left_out.add(entry.path, "broken link")
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not _hidden(entry.name):  # noqa: PTH122
                left_out.add(entry.path, "in no class folder")
            continue
        if _hidden(entry.name):
            _files(entry.path, left_out, hidden=True)  # counts them
            continue
        name = class_name(entry.name)
        if name in classes:
            raise LabError(
                f"{short_path(folder)} has two class folders that are both {name!r} as text: characters are composed "
                "(\u00e9 is one letter, however a system writes it) and bytes that are no UTF-8 are written out. Put "
                "their images into one folder, or rename one."
            )
        classes[name] = _files(entry.path, left_out)
    return classes


def check_classes(folders: dict[str, Path], files: dict[str, dict[str, list[str]]]) -> None:
    """Both splits have the same classes, each with images, or a `LabError` that says which not."""
    for split, folder in folders.items():
        if not files[split]:
            raise LabError(f"{short_path(folder)} has no class folders. {LAYOUT}")
        empty = [name for name, members in files[split].items() if not members]
        if empty:
            raise LabError(
                f"{in_words(short_path(folder / empty[0]))} has no images ({len(empty)} such class folder(s)). "
                f"Looked for {', '.join(sorted(EXTENSIONS))}. Unpack the data completely, or remove the empty folders."
            )
    for one, other in (SPLITS, SPLITS[::-1]):
        absent = [in_words(name) for name in files[one] if name not in files[other]]
        if absent:
            raise LabError(
                f"{len(absent)} class folder(s) of {short_path(folders[one])} are not in {short_path(folders[other])}: "
                f"{', '.join(absent[:5])}. {LAYOUT}"
            )


def as_text(name: str) -> str:
    """The name of a file as JSON can hold it: bytes that are no UTF-8 as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if not name.isascii() else name


def class_name(name: str) -> str:
    """The name of a folder as text: `as_text`, with composed characters (macOS decomposes them)."""
    return unicodedata.normalize("NFC", as_text(name))


def _hidden(name: str) -> bool:
    """Of files and folders that other programs leave: .ipynb_checkpoints, ._001.jpg, @eaDir."""
    return name.startswith((".", "@"))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise unread(folder, error) from error


def _is(entry: os.DirEntry[str], kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; a link that leads nowhere or to itself is of none."""
    try:
        return kind()
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return False
        raise unread(entry.path, error) from error


def _above(folder: str) -> set[tuple[int, int]]:
    """The folders in which a folder lies, as far as the system tells them."""
    found = set()
    for place in {*Path(os.path.realpath(folder)).parents, *Path(folder).absolute().parents}:
        with contextlib.suppress(OSError):
            status = place.stat()
            found.add((status.st_dev, status.st_ino))
    return found


def _files(top: str, left_out: LeftOut, hidden: bool = False) -> list[str]:
    """The image files below a folder, sorted, through links too.

    No folder is read twice, in whatever ways links lead to it: folders come before links to folders, so that a file is
    called by where it lies. A link to a folder in which all of this lies, such as ``/``, is not followed.
    ``hidden``: files are counted as left out, and none is returned.
    """
    found: list[str] = []
    folders, links = deque([(top, hidden)]), deque[tuple[str, bool]]()
    read: set[tuple[int, int, bool]] = set()
    above = _above(top)
    while folders or links:
        folder, hidden = folders.popleft() if folders else links.popleft()
        try:
            status = os.stat(folder)  # noqa: PTH116  (a Path a file costs ten times as much)
        except OSError as error:
            raise unread(folder, error) from error
        if (status.st_dev, status.st_ino) in above:
            left_out.add(folder, "link to a folder in which it lies")
            continue
        here = (status.st_dev, status.st_ino, hidden)
        if here in read:
            left_out.add(folder, "link to a folder that is read already")
            continue
        read.add(here)
        for entry in _entries(folder):
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            if _is(entry, entry.is_dir):
                (links if entry.is_symlink() else folders).append((entry.path, hidden or _hidden(entry.name)))
            elif hidden or _hidden(entry.name):
                if suffix in EXTENSIONS:
                    left_out.add(entry.path, "hidden")
            elif suffix not in EXTENSIONS:
                left_out.add(entry.path, suffix or "without suffix")
            elif not _is(entry, entry.is_file):
                left_out.add(entry.path, "broken link" if entry.is_symlink() else "no regular file")
            else:
                found.append(entry.path)
    return sorted(found)
