"""A tree of image files, one folder per class: how ImageNet-100 and one's own pictures come in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from dne_lab.core.errors import LabError
from dne_lab.core.files import absolute
from dne_lab.data import folder_tree, image_file
from dne_lab.data.source import (
    KEEP_BYTES,
    SPLITS,
    Kept,
    Source,
    check_split,
    digest_of,
    usual_statistics,
)

if TYPE_CHECKING:
    from PIL import Image as pillow

PIECE = 1 << 20  # bytes of a file that are read at a time
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
        image_file.check_size(size)
        root = absolute(path)
        self.path, self.given, self.size = str(root), str(path), size
        self._folders, left_out = folder_tree.split_folders(root), folder_tree.LeftOut()
        files = {split: folder_tree.scan(folder, left_out) for split, folder in self._folders.items()}
        folder_tree.check_classes(self._folders, files)
        files["test"] = {name: files["test"][name] for name in files["train"]}
        self.classes = tuple(files["train"])
        self._files = {split: [file for members in files[split].values() for file in members] for split in SPLITS}
        self._labels = {
            split: np.repeat(np.arange(len(files[split])), [len(members) for members in files[split].values()])
            for split in SPLITS
        }
        self.shape = (3, *self._size_of_headers())
        left_out.say(root)
        self.mean, self.std = usual_statistics(self.shape)
        self._kept = Kept({split: len(some) for split, some in self._files.items()}, self.shape, keep, self._decode)
        self._digests: dict[str, np.ndarray] = {}
        self._remembered: dict[str, dict[str, tuple[bytes, bytes]]] = {}  # file's name -> stamp, digest

    def labels(self, split: str) -> np.ndarray:
        return self._labels[check_split(split)]

    def images(self, split: str, index: Tensor) -> Tensor:
        return self._kept(check_split(split), index)

    def _decode(self, split: str, index: Tensor) -> Tensor:
        files = [self._files[split][number] for number in index.tolist()]
        images = torch.empty((len(files), *self.shape), dtype=torch.uint8)
        for row, pixels in zip(images, _parallel(self._pixels, files), strict=True):
            row.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
        return images

    def _pixels(self, file: str) -> np.ndarray:
        """One file as (H, W, 3) uint8 of the common size."""
        return np.array(self._image(file))

    def _image(self, file: str) -> pillow.Image:
        """One file of the common size."""

        def read(opened: pillow.Image) -> pillow.Image:
            image = image_file.to_rgb(opened, file)
            return image if self.size is None else image_file.fitted(image, self.size, self.size)

        image = image_file.opened(file, read)
        if image.size != (self.shape[2], self.shape[1]):
            raise _other_size(file, image.size, (self.shape[2], self.shape[1]))
        return image

    def _size_of_headers(self) -> tuple[int, int]:
        """(height, width) of all images; every header is read, so that a file that is no image is found here."""
        files = [file for split in SPLITS for file in self._files[split]]
        first = image_file.opened(files[0], image_file.size)
        if self.size is None and max(first) > image_file.WIDEST:
            raise LabError(
                f"{image_file.in_words(files[0])} has {first[0]} x {first[1]} pixels, {image_file.WIDEST} a side at "
                "most. Pass size (data.size), e.g. 224, to scale all images down."
            )

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
                self._image(file)
            except LabError as error:
                return str(error)
            return ""

        files = [file for split in SPLITS for file in self._files[split]]
        return [sentence for sentence in _parallel(complaint, files) if sentence]

    # What tells these images from others ---------------------------------------------------------------------------

    def names(self, split: str) -> list[str]:
        start = len(str(self._folders[check_split(split)])) + 1
        return [folder_tree.as_text(file[start:].replace(os.sep, "/")) for file in self._files[split]]

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
        raise folder_tree.unread(file, error) from error
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest(file: str) -> bytes:
    start = end = b""
    length = 0

    def pieces(opened: BinaryIO) -> Iterator[bytes]:
        nonlocal start, end, length
        while piece := opened.read(PIECE):
            start, end, length = start or piece[: image_file.ENDS], end[-image_file.ENDS :] + piece, length + len(piece)
            yield piece

    try:
        with open(file, "rb", buffering=0) as opened:  # noqa: PTH123
            found = digest_of(pieces(opened))
    except OSError as error:
        raise folder_tree.unread(file, error) from error
    if not image_file.complete(start, end, length):
        image_file.opened(file, lambda image: image.load())
    return found


def _other_size(file: str, size: tuple[int, int], common: tuple[int, int]) -> LabError:
    return LabError(
        f"{image_file.in_words(file)} has {size[0]} x {size[1]} pixels, the first image {common[0]} x {common[1]}. "
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
