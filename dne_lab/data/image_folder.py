"""A tree of image files, one folder per class: how ImageNet-100 and one's own pictures come in."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dne_lab.core.errors import LabError
from dne_lab.core.files import absolute, short_path
from dne_lab.data import image_file
from dne_lab.data.image_file import EXTENSIONS
from dne_lab.data.source import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, SPLITS, Source, check_split, digest

LAYOUT = "Expected train/CLASS/IMAGE and test/CLASS/IMAGE (or val/ in place of test/), with the same classes in both."
KEEP_BYTES = 1_000_000_000
A = TypeVar("A")
B = TypeVar("B")


class FolderSource(Source):
    """Image files in ``train/CLASS/`` and ``test/CLASS/`` (or ``val/``), decoded when asked for, always RGB.

    Images are turned as EXIF says. Grey and palette images become RGB, transparency is laid over white, 16-bit values
    are scaled to 8 bits. Linked folders are followed; files and folders whose names start with a dot or @ are no data.
    A warning says how many files were left out, and why.

    Args:
        path: the folder.
        size: the shorter side is brought to this many pixels (bicubic), then the centre is cropped. Without it all
            images must have one size (every header is read once to make sure).
        keep: decoded images stay in memory when all of them together take at most this many bytes.

    The mean and deviation are ImageNet's, but CIFAR-100's for images of 32 pixels, so that CIFAR-100 as a folder is
    normalised as CIFAR-100 is.

    Raises:
        LabError: a missing, half-unpacked or unreadable folder, images of different sizes, a file whose header cannot
            be read; from `images` and `digests` also a file that cannot be decoded.
    """

    name = "folder"
    from_files = True

    def __init__(self, path: str | Path, size: int | None = None, keep: int = KEEP_BYTES) -> None:
        if size is not None and size < 1:
            raise LabError(f"size = {size}: must be at least 1 pixel.")
        root = absolute(path)
        self.path, self.given, self.size = str(root), str(path), size
        self._folders, left_out = _split_folders(root), LeftOut()
        files = {split: _scan(folder, left_out) for split, folder in self._folders.items()}
        _check_classes(self._folders, files)
        files["test"] = {name: files["test"][name] for name in files["train"]}
        self.classes = tuple(files["train"])
        self._files = {split: [file for members in files[split].values() for file in members] for split in SPLITS}
        self._labels = {
            split: np.repeat(np.arange(len(files[split])), [len(members) for members in files[split].values()])
            for split in SPLITS
        }
        self.shape = (3, *self._size_of_headers())
        left_out.say(root)
        small = self.shape[1:] == (32, 32)
        self.mean, self.std = (CIFAR_MEAN, CIFAR_STD) if small else (IMAGENET_MEAN, IMAGENET_STD)
        total = sum(map(len, self._files.values())) * int(np.prod(self.shape))
        self._decoded: dict[str, Tensor] = {}
        self._known: dict[str, Tensor] = {}
        self._digests: dict[str, np.ndarray] = {}
        self._remembered: dict[str, dict[str, tuple[bytes, bytes]]] = {}  # file's name -> stamp, digest
        if total <= keep:
            self._decoded = {s: torch.empty((len(self._files[s]), *self.shape), dtype=torch.uint8) for s in SPLITS}
            self._known = {s: torch.zeros(len(self._files[s]), dtype=torch.bool) for s in SPLITS}

    def labels(self, split: str) -> np.ndarray:
        return self._labels[check_split(split)]

    def images(self, split: str, index: Tensor) -> Tensor:
        check_split(split)
        index = index.cpu()
        if not self._decoded:
            return self._decode(split, index)
        missing = index[~self._known[split][index]].unique()
        if len(missing):
            self._decoded[split][missing] = self._decode(split, missing)
            self._known[split][missing] = True
        return self._decoded[split][index]

    def _decode(self, split: str, index: Tensor) -> Tensor:
        files = [self._files[split][number] for number in index.tolist()]
        images = torch.empty((len(files), *self.shape), dtype=torch.uint8)
        for row, pixels in zip(images, _parallel(self._pixels, files), strict=True):
            row.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
        return images

    def _pixels(self, file: str) -> np.ndarray:
        """One file as (H, W, 3) uint8 of the common size."""
        image = image_file.opened(file, lambda opened: image_file.to_rgb(opened, file))
        if self.size is not None:
            image = image_file.fitted(image, self.size, self.size)
        if image.size != (self.shape[2], self.shape[1]):
            raise _other_size(file, image.size, (self.shape[2], self.shape[1]))
        return np.array(image)

    def _size_of_headers(self) -> tuple[int, int]:
        """(height, width) of all images; every header is read, so that a file that is no image is found here."""
        files = [file for split in SPLITS for file in self._files[split]]
        first = image_file.opened(files[0], image_file.size)

        def check(file: str) -> None:
            size = image_file.opened(file, image_file.size)
            if self.size is None and size != first:
                raise _other_size(file, size, first)

        list(_parallel(check, files))
        return (first[1], first[0]) if self.size is None else (self.size, self.size)

    def damaged(self) -> list[str]:
        """Decodes every file: a sentence for each that cannot be used."""

        def complaint(file: str) -> str:
            try:
                self._pixels(file)
            except LabError as error:
                return str(error)
            return ""

        files = [file for split in SPLITS for file in self._files[split]]
        return [sentence for sentence in _parallel(complaint, files) if sentence]

    # What tells these images from others ---------------------------------------------------------------------------

    def names(self, split: str) -> list[str]:
        start = len(str(self._folders[check_split(split)])) + 1
        return [_as_text(file[start:].replace(os.sep, "/")) for file in self._files[split]]

    def stamps(self, split: str) -> np.ndarray:
        """(n, 3) int64: size in bytes, nanoseconds of the last change of the content and of the file's entry."""
        found = [_stamp(file) for file in self._files[check_split(split)]]
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    def remember(self, split: str, names: list[str], stamps: np.ndarray, digests: np.ndarray) -> None:
        pairs = zip(names, stamps.astype(np.int64), digests, strict=True)
        self._remembered[check_split(split)] = {name: (stamp.tobytes(), own.tobytes()) for name, stamp, own in pairs}

    def digests(self, split: str) -> np.ndarray:
        """(n, 8) uint8, of the bytes of every file: decoders differ in the last bit from version to version.

        A file that does not end as its format says is decoded to make sure that it is whole. Files whose stamp is the
        one that was `remember`-ed are not read again.
        """
        if split not in self._digests:
            files, stamps, known = self._files[check_split(split)], self.stamps(split), self._remembered.get(split, {})
            before = [known.get(name, (b"", b"")) for name in self.names(split)]
            work = [
                (file, digest if stamp.tobytes() == then else None)
                for file, stamp, (then, digest) in zip(files, stamps, before, strict=True)
            ]
            found = b"".join(_parallel(lambda one: _digest(one[0]) if one[1] is None else one[1], work))
            self._digests[split] = np.frombuffer(found, dtype=np.uint8).reshape(len(files), -1)
        return self._digests[split]


def _stamp(file: str) -> tuple[int, int, int]:
    try:
        found = os.stat(file)  # noqa: PTH116  (a Path an image costs ten times as much)
    except OSError as error:
        raise LabError(f"{file} cannot be read: {error.strerror}.") from error
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest(file: str) -> bytes:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise LabError(f"{file} cannot be read: {error.strerror}.") from error
    if not image_file.complete(content):
        image_file.opened(content, lambda image: image.load(), file)
    return digest(content)


def _other_size(file: str, size: tuple[int, int], common: tuple[int, int]) -> LabError:
    return LabError(
        f"{file} has {size[0]} x {size[1]} pixels, the first image {common[0]} x {common[1]}. "
        "Pass size (data.size), e.g. 224, to bring all images to one size."
    )


def _parallel(work: Callable[[A], B], items: list[A]) -> Iterable[B]:
    """``work`` on every item, in order, on a few threads (Pillow decodes without Python's lock)."""
    threads = min(8, os.cpu_count() or 1, max(1, len(items) // 8))
    if threads == 1:
        return map(work, items)
    with ThreadPoolExecutor(threads) as pool:
        length = min(32, -(-len(items) // threads))  # a few at a time: handing over costs as much as a small image
        parts = [items[start : start + length] for start in range(0, len(items), length)]
        return [result for done in pool.map(lambda part: [work(item) for item in part], parts) for result in done]


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise LabError(
            f"{short_path(root)}: no such folder. {LAYOUT} If the images have moved, name the place where they are."
        )
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    absent = [] if (root / "train").is_dir() else ["train/"]
    absent += [] if test else ["test/ or val/"]
    if absent or test is None:
        found = ", ".join([entry.name for entry in _entries(str(root))][:8]) or "nothing"
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
        self.first = self.first or file

    def say(self, root: Path) -> None:
        """A warning with the counts, if there are any."""
        if self.why:
            reasons = ", ".join(f"{count} {why}" for why, count in sorted(self.why.items()))
            count = sum(self.why.values())
            text = f"{short_path(root)}: {count} file(s) left out ({reasons}), the first is {self.first}. "
            warnings.warn(text + f"Images are files called {' '.join(sorted(EXTENSIONS))}.", stacklevel=4)


def _scan(folder: Path, left_out: LeftOut) -> dict[str, list[str]]:
    """Class name -> files, both sorted; folders that start with a dot or @ are not classes."""
    classes: dict[str, list[str]] = {}
    for entry in _entries(str(folder)):
        if not _is(entry.is_dir):
            if entry.is_symlink() and not _is(entry.is_file):
                left_out.add(entry.path, "broken link")
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not _hidden(entry.name):  # noqa: PTH122
                left_out.add(entry.path, "in no class folder")
            continue
        if _hidden(entry.name):
            list(_walk(entry, left_out, (), hidden=True))  # counts them
            continue
        name = class_name(entry.name)
        if name in classes:
            raise LabError(
                f"{short_path(folder)} has two class folders whose names are the same text, {name!r}, written with "
                "composed and with decomposed characters. Put their images into one of them."
            )
        classes[name] = sorted(_walk(entry, left_out, ()))
    return classes


def class_name(name: str) -> str:
    """The name of a folder as text: composed characters (macOS decomposes them), and ? for bytes that are no UTF-8."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace"))


def _as_text(name: str) -> str:
    """The name of a file as JSON can hold it: bytes that are no UTF-8 as ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if not name.isascii() else name


def _hidden(name: str) -> bool:
    """Of files and folders that other programs leave: .ipynb_checkpoints, ._001.jpg, @eaDir."""
    return name.startswith((".", "@"))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise LabError(
            f"{short_path(Path(folder))} cannot be read: {why}. Make it readable, or move it out of the data."
        ) from error


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; a link that leads to itself is of none."""
    try:
        return kind()
    except OSError:
        return False


def _walk(
    folder: os.DirEntry[str], left_out: LeftOut, above: tuple[tuple[int, int], ...], hidden: bool = False
) -> Iterator[str]:
    """The image files below a folder, through links too (not through one to a folder that it lies in)."""
    found = folder.stat()
    here = (found.st_dev, found.st_ino)
    if here in above:
        left_out.add(folder.path, "link to a folder above it")
        return
    for entry in _entries(folder.path):
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (a Path an image costs ten times as much)
        if _is(entry.is_dir):
            yield from _walk(entry, left_out, (*above, here), hidden or _hidden(entry.name))
        elif hidden or _hidden(entry.name):
            if suffix in EXTENSIONS:
                left_out.add(entry.path, "hidden")
        elif suffix not in EXTENSIONS:
            left_out.add(entry.path, suffix or "without suffix")
        elif not _is(entry.is_file):
            left_out.add(entry.path, "broken link" if entry.is_symlink() else "no regular file")
        else:
            yield entry.path


def _check_classes(folders: dict[str, Path], files: dict[str, dict[str, list[str]]]) -> None:
    for split, folder in folders.items():
        if not files[split]:
            raise LabError(f"{short_path(folder)} has no class folders. {LAYOUT}")
        empty = [name for name, members in files[split].items() if not members]
        if empty:
            raise LabError(
                f"{short_path(folder / empty[0])} has no images ({len(empty)} such class folder(s)). "
                f"Looked for {', '.join(sorted(EXTENSIONS))}. Unpack the data completely, or remove the empty folders."
            )
    for one, other in (SPLITS, SPLITS[::-1]):
        absent = [name for name in files[one] if name not in files[other]]
        if absent:
            raise LabError(
                f"{len(absent)} class folder(s) of {short_path(folders[one])} are not in {short_path(folders[other])}: "
                f"{', '.join(absent[:5])}. {LAYOUT}"
            )
