"""Opening a source by name, path or arrays, and what an .npz file must hold."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dne_lab.data.source import CIFAR_MEAN, CIFAR_STD, ArraySource, Source
from dne_lab.errors import LabError, unknown

NAMES = ("digits", "digits100", "cifar100", "folder", "npz", "arrays")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def open_source(data: Any, *, path: str | None = None, size: int | None = None, download: bool = False) -> Source:
    """A source of images.

    Args:
        data: "digits", "digits100", "cifar100", "folder", "npz"; a path to an image folder or an .npz file; four arrays
            (train_images, train_labels, test_images, test_labels) as a tuple or a dictionary; or a `Source`.
        path: where the files of "cifar100" (default ``datasets``), "folder" or "npz" are. CIFAR-100 may also lie there
            as an .npz file or a tree of images.
        size: side in pixels that images of a folder are brought to.
        download: fetch CIFAR-100 when it is not there.

    Raises:
        LabError: an unknown name, missing or wrong data.
    """
    from dne_lab.data.digits import digits, digits100
    from dne_lab.data.folder import FolderSource

    if isinstance(data, Source):
        return data
    if isinstance(data, dict):
        absent = [name for name in ARRAYS if name not in data]
        if absent:
            raise LabError(f"arrays: missing {', '.join(absent)}. Give {', '.join(ARRAYS)} and perhaps class_names.")
        data = (*(data[name] for name in ARRAYS), data.get("class_names"))
    if isinstance(data, (tuple, list)):
        if len(data) not in (4, 5):
            raise LabError(f"{len(data)} arrays given. Give ({', '.join(ARRAYS)}), or a fifth with class names.")
        return ArraySource(*data)
    if isinstance(data, Path):
        data = str(data)
    if not isinstance(data, str):
        raise LabError(
            f"data is a {type(data).__name__}: give a name ({', '.join(NAMES)}), a path, arrays or a Source."
        )
    if size is not None and data in ("digits", "digits100", "cifar100", "npz"):
        raise LabError(f"size = {size}: only a folder's images are resized. Leave size out for {data}.")
    if path is not None and data in ("digits", "digits100"):
        raise LabError(f"{data} takes no path ({path}). For images of your own set data.name to folder or npz.")
    if data == "digits":
        return digits()
    if data == "digits100":
        return digits100()
    if data == "cifar100":
        return _cifar100(path, download)
    if data == "arrays":
        raise LabError(f"arrays cannot be opened by name. Pass ({', '.join(ARRAYS)}) from Python, or a stream.")
    if data in ("folder", "npz"):
        if path is None:
            raise LabError(f"data {data!r} needs a path: set data.path (or path=...) to the {data}.")
        return npz(path) if data == "npz" else FolderSource(path, size)
    if Path(data).is_dir():
        return FolderSource(data, size)
    if data.endswith(".npz"):
        return npz(data)
    if Path(data).exists() or any(mark in data for mark in "/\\"):
        raise LabError(f"{data} is neither a folder with train/ and test/ (or val/) nor an .npz file.")
    raise unknown("data set", data, [*NAMES, "a folder", "an .npz file"])


def _cifar100(path: str | None, download: bool) -> Source:
    """CIFAR-100 in torchvision's files, or under the same name from an .npz file or a tree of images."""
    from dne_lab.data.cifar import CIFAR100Source
    from dne_lab.data.folder import FolderSource

    source: Source
    if path is not None and path.endswith(".npz"):
        source = npz(path)
    elif path is not None and (Path(path) / "train").is_dir():
        source = FolderSource(path)
    else:
        return CIFAR100Source(path or "datasets", download=download)
    if len(source.classes) != 100 or source.shape != (3, 32, 32):
        raise LabError(
            f"{path} is not CIFAR-100: it has {len(source.classes)} classes of {source.shape} images, not 100 of "
            "(3, 32, 32). Open it as a folder or an npz instead."
        )
    source.name, source.mean, source.std = "cifar100", CIFAR_MEAN, CIFAR_STD
    return source


def npz(path: str | Path) -> ArraySource:
    """Images from an .npz file with the arrays ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` and
    perhaps ``class_names``; see `ArraySource`. Nothing is unpickled.

    Raises:
        LabError: no such file, not an .npz, arrays missing or wrong.
    """
    layout = f"an .npz with the arrays {', '.join(ARRAYS)} (and perhaps class_names), as numpy.savez writes it"
    if not Path(path).is_file():
        raise LabError(f"{path}: no such file. Expected {layout}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            absent = [name for name in ARRAYS if name not in file]
            if absent:
                raise LabError(
                    f"{path}: no {', '.join(absent)} among its arrays ({', '.join(file.files)}). Expected {layout}."
                )
            arrays = {name: file[name] for name in (*ARRAYS, "class_names") if name in file}
    except LabError:
        raise
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise LabError(f"{path}: cannot be read ({error}). Expected {layout}; Python objects are not read.") from error
    names = arrays.pop("class_names", None)
    try:
        return ArraySource(**arrays, class_names=None if names is None else names.tolist(), name="npz", path=str(path))
    except LabError as error:
        raise LabError(f"{path}: {error}") from None
