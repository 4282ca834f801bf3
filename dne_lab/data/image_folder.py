"""A tree of image files, one folder a class: how ImageNet-100 and one's own pictures come in."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from dne_lab.core.errors import LabError
from dne_lab.data.source import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, SPLITS, Source, check_split

if TYPE_CHECKING:
    from PIL import Image as pillow


EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
LAYOUT = "Expected train/CLASS/IMAGE and test/CLASS/IMAGE (or val/ in place of test/), with the same classes in both."
KEEP_BYTES = 1_000_000_000
A = TypeVar("A")
B = TypeVar("B")


class FolderSource(Source):
    """Image files in ``train/CLASS/`` and ``test/CLASS/`` (or ``val/``), decoded when asked for, always RGB.

    Grey and palette images become RGB, transparency is laid over white, 16-bit values are scaled to 8 bits.

    Args:
        path: the folder.
        size: the shorter side is brought to this many pixels (bicubic), then the centre is cropped. Without it all
            images must have one size (every header is read once to make sure).
        keep: decoded images stay in memory when all of them together take at most this many bytes.

    The mean and deviation are ImageNet's, but CIFAR-100's for images of 32 pixels, so that CIFAR-100 as a folder is
    normalised as `cifar100` is.

    Raises:
        LabError: a missing or half-unpacked folder, images of different sizes, a file that cannot be decoded.
    """

    name = "folder"

    def __init__(self, path: str | Path, size: int | None = None, keep: int = KEEP_BYTES) -> None:
        if size is not None and size < 1:
            raise LabError(f"size = {size}: must be at least 1 pixel.")
        self.path, self.size = str(path), size
        folders = _split_folders(Path(path))
        files = {split: _scan(folder) for split, folder in folders.items()}
        _check_classes(folders, files)
        self.classes = tuple(files["train"])
        self._files = {split: [file for members in files[split].values() for file in members] for split in SPLITS}
        self._labels = {
            split: np.repeat(np.arange(len(files[split])), [len(members) for members in files[split].values()])
            for split in SPLITS
        }
        self.shape = (3, size, size) if size is not None else (3, *self._common_size())
        small = self.shape[1:] == (32, 32)
        self.mean, self.std = (CIFAR_MEAN, CIFAR_STD) if small else (IMAGENET_MEAN, IMAGENET_STD)
        total = sum(map(len, self._files.values())) * int(np.prod(self.shape))
        self._kept: dict[str, Tensor] = {}
        self._known: dict[str, Tensor] = {}
        if total <= keep:
            self._kept = {s: torch.empty((len(self._files[s]), *self.shape), dtype=torch.uint8) for s in SPLITS}
            self._known = {s: torch.zeros(len(self._files[s]), dtype=torch.bool) for s in SPLITS}

    def labels(self, split: str) -> np.ndarray:
        return self._labels[check_split(split)]

    def images(self, split: str, index: Tensor) -> Tensor:
        check_split(split)
        index = index.cpu()
        if not self._kept:
            return self._decode(split, index)
        missing = index[~self._known[split][index]].unique()
        if len(missing):
            self._kept[split][missing] = self._decode(split, missing)
            self._known[split][missing] = True
        return self._kept[split][index]

    def _decode(self, split: str, index: Tensor) -> Tensor:
        files = [self._files[split][number] for number in index.tolist()]
        images = torch.empty((len(files), *self.shape), dtype=torch.uint8)
        for row, pixels in zip(images, _parallel(self._pixels, files), strict=True):
            row.copy_(torch.from_numpy(pixels).permute(2, 0, 1))
        return images

    def _pixels(self, file: str) -> np.ndarray:
        """One file as (H, W, 3) uint8 of the common size."""
        from PIL import Image

        image = _opened(file, lambda opened: _to_rgb(opened, file))
        if self.size is not None and image.size != (self.size, self.size):
            scale = self.size / min(image.size)
            width, height = (max(self.size, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - self.size) // 2, (height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        if image.size != (self.shape[2], self.shape[1]):
            raise _other_size(file, image.size, (self.shape[2], self.shape[1]))
        return np.array(image)

    def _common_size(self) -> tuple[int, int]:
        """(height, width) of all files, from their headers alone."""
        files = [file for split in SPLITS for file in self._files[split]]
        width, height = _opened(files[0], lambda image: image.size)

        def check(file: str) -> None:
            size = _opened(file, lambda image: image.size)
            if size != (width, height):
                raise _other_size(file, size, (width, height))

        list(_parallel(check, files))
        return height, width


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
        raise LabError(f"{root}: no such folder. {LAYOUT}")
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    absent = [] if (root / "train").is_dir() else ["train/"]
    absent += [] if test else ["test/ or val/"]
    if absent or test is None:
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        raise LabError(f"{root} has no {' and no '.join(absent)} (found: {found}). Unpack all of it. {LAYOUT}")
    return {"train": root / "train", "test": test}


def _scan(folder: Path) -> dict[str, list[str]]:
    """Class name -> files, both sorted; folders that start with a dot are not classes."""
    classes = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            files = [
                os.path.join(where, name)  # noqa: PTH118  (a Path an image costs ten times as much)
                for where, _, names in os.walk(entry)
                for name in names
                if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")  # noqa: PTH122
            ]
            classes[entry.name] = sorted(files)
    return classes


def _check_classes(folders: dict[str, Path], files: dict[str, dict[str, list[str]]]) -> None:
    for split, folder in folders.items():
        if not files[split]:
            raise LabError(f"{folder} has no class folders. {LAYOUT}")
        empty = [name for name, members in files[split].items() if not members]
        if empty:
            raise LabError(
                f"{folder / empty[0]} has no images ({len(empty)} such class folder(s)). "
                f"Looked for {', '.join(sorted(EXTENSIONS))}. Unpack the data completely, or remove the empty folders."
            )
    for one, other in (SPLITS, SPLITS[::-1]):
        absent = [name for name in files[one] if name not in files[other]]
        if absent:
            raise LabError(
                f"{len(absent)} class folder(s) of {folders[one]} are not in {folders[other]}: "
                f"{', '.join(absent[:5])}. {LAYOUT}"
            )


def _opened(file: str, use: Callable[[pillow.Image], A]) -> A:
    """``use(image)`` of an open image file; whatever Pillow cannot decode is an error that names the file."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return use(image)
    except LabError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise LabError(f"{file} cannot be decoded ({error}). Copy it again or remove it.") from error


def _to_rgb(image: pillow.Image, file: str) -> pillow.Image:
    """Any image as 8-bit RGB."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise LabError(f"{file} has values from {values.min()} to {values.max()}. Convert it to 8 or 16 bits.")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise LabError(f"{file} holds floating-point pixels: their scale is unknown. Convert it to 8 or 16 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")
