"""Opening a source by name, path or arrays, and what an .npz file must hold."""

from __future__ import annotations

import functools
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dne_lab.core import chance
from dne_lab.core.errors import LabError, brief, reason, unknown
from dne_lab.core.files import absolute, check_parts, resolved
from dne_lab.data.folder_tree import kind_of
from dne_lab.data.source import CIFAR_MEAN, CIFAR_STD, ArraySource, Source

# Real handwritten digits that come with scikit-learn: ten classes as they are, a hundred in pairs.

TEST_SHARE = 0.3
SIDE = 8


@functools.cache
def _split_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The 1,797 digits as (n, 8, 8) uint8 and their labels, 30% of each class for the test; not to be written to."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # from 0..16
    test = np.zeros(len(images), dtype=bool)
    for number in range(10):
        members = np.flatnonzero(bunch.target == number)
        order = chance.permutation(len(members), "digits", number).numpy()
        test[members[order[: round(TEST_SHARE * len(members))]]] = True
    return {
        "train": (images[~test], bunch.target[~test].astype(np.int64)),
        "test": (images[test], bunch.target[test].astype(np.int64)),
    }


def digits() -> ArraySource:
    """The 8 x 8 grey digits "0" to "9" of scikit-learn (UCI, 1998): 1,258 training and 539 test images."""
    (images, labels), (test_images, test_labels) = _split_digits().values()
    return ArraySource(images.copy(), labels.copy(), test_images.copy(), test_labels.copy(), name="digits")


def digits100(seed: int = 0, train: int = 60, test: int = 20) -> ArraySource:
    """Two-digit numbers "00" to "99" on a 16 x 16 grey canvas: 100 classes of real pixels without a download.

    Each digit stands at its own random height. Training and test numbers are built from disjoint digit images, the same
    on every machine.

    Args:
        seed: what pairs and heights are drawn from.
        train, test: images per class.
    """
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        images, labels = _split_digits()[split]
        pools = [np.flatnonzero(labels == number) for number in range(10)]
        numbers = np.repeat(np.arange(100), count)
        # four draws per image: which left digit, which right one, their heights
        draws = chance.uniform((seed, "digits100", split), torch.arange(len(numbers)), 4).double().numpy()
        canvas = np.zeros((len(numbers), 2 * SIDE, 2 * SIDE), dtype=np.uint8)
        for i, number in enumerate(numbers.tolist()):
            for side, digit in enumerate((number // 10, number % 10)):
                chosen = pools[digit][int(draws[i, side] * len(pools[digit]))]
                top = int(draws[i, 2 + side] * (SIDE + 1))
                canvas[i, top : top + SIDE, side * SIDE : (side + 1) * SIDE] = images[chosen]
        arrays[split] = (canvas, numbers)
    names = [f"{number:02d}" for number in range(100)]
    return ArraySource(*arrays["train"], *arrays["test"], class_names=names, name="digits100")


# CIFAR-100 in torchvision's files.


class CIFAR100Source(ArraySource):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images, 3 x 32 x 32, alphabetical classes.

    Args:
        root: folder that holds ``cifar-100-python``.
        download: fetch it (169 MB) when it is not there. Nothing is ever fetched unasked.

    Raises:
        LabError: the files are not there, are damaged, or cannot be fetched.
    """

    def __init__(self, root: str | Path = "datasets", download: bool = False) -> None:
        from torchvision.datasets import CIFAR100

        try:  # torchvision compares md5 sums before it unpickles
            splits = [CIFAR100(str(absolute(root)), train=train, download=download) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            folder = resolved(root) / "cifar-100-python"
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            why = why.split(" You can use download=True")[0].removesuffix(".")  # own advice follows
            raise LabError(
                f"CIFAR-100 is not complete in {folder} ({why}). "
                "Expected the files train, test and meta of cifar-100-python.tar.gz there. "
                "Get them with `dne-lab run ... --download` or dne_lab.stream('cifar100', path=..., download=True), "
                f"or unpack that archive (www.cs.toronto.edu/~kriz/cifar.html) in {resolved(root)}, "
                f"or set data.path to where it is (an .npz or a tree of images will do; {CIFAR_NPZ} is found)."
            ) from error
        train, test = ((split.data, split.targets) for split in splits)
        names = splits[0].classes
        super().__init__(
            *train, *test, class_names=names, name="cifar100", path=str(root), mean=CIFAR_MEAN, std=CIFAR_STD
        )


CIFAR_NPZ = "datasets/cifar100.npz"
GIVEN = ("arrays", "dataset")  # in Python, and to be found by no name
OTHERS = ("folder", "npz", *GIVEN)  # images of the user's own, beside the names of `NAMED`
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def open_source(data: Any, *, path: str | None = None, size: int | None = None, download: bool = False) -> Source:
    """A source of images.

    Args:
        data: "digits", "digits100", "cifar100", "folder", "npz"; "hf:USER/NAME", a data set of the Hub (`HubSource`); a
            path to an image folder or an .npz file; four arrays (train_images, train_labels, test_images, test_labels)
            as a tuple or a dictionary; two `torch.utils.data.Dataset` (train, test) of (image, label); or a `Source`.
        path: where the files of "cifar100" (default ``datasets``), "folder" or "npz" are. CIFAR-100 may also lie there
            as an .npz file (default ``datasets/cifar100.npz``) or a tree of images.
        size: side in pixels that images of a folder, of the Hub or of PyTorch's data sets are brought to.
        download: fetch CIFAR-100, or a data set of the Hub, when it is not there.

    Raises:
        LabError: an unknown name, missing or wrong data.
    """

    from dne_lab.data.hub_dataset import PREFIX, HubSource
    from dne_lab.data.image_folder import FolderSource

    if not isinstance(data, str | Path):
        if path is not None:
            raise LabError(f"path = {brief(str(path))}: the images are given, not where they are. Leave path out.")
        return _from_python(data, size)
    data = str(data)
    if isinstance(path, Path):
        path = str(path)
    if data.startswith(PREFIX):
        if path is not None:
            raise LabError(f"{data} takes no path ({path}): its library keeps it where HF_HOME says.")
        return HubSource(data, size, download)
    known = NAMED.get(data)
    if size is not None and (known or data == "npz"):
        raise LabError(f"size = {size}: only a folder's images are resized. Leave size out for {data}.")
    if path is not None and known and not known.files:
        raise LabError(f"{data} takes no path ({path}). For images of your own set data.name to folder or npz.")
    if known:
        return known.open(path, download)
    if data in GIVEN:
        what = f"({', '.join(ARRAYS)})" if data == "arrays" else "the two data sets"
        raise LabError(f"{data} cannot be opened by name. Pass {what} from Python, or a stream.")
    if data in ("folder", "npz"):
        if path is None:
            raise LabError(f"data {data!r} needs a path: set data.path (or path=...) to the {data}.")
        return npz(path) if data == "npz" else FolderSource(path, size)
    there = kind_of(absolute(data))
    if there == "folder":
        return FolderSource(data, size)
    if data.endswith(".npz"):
        return npz(data)
    if there or any(mark in data for mark in "/\\"):
        raise LabError(f"{data} is neither a folder with train/ and test/ (or val/) nor an .npz file.")
    raise unknown("data set", data, [*NAMED, *OTHERS, "hf:USER/NAME", "a folder", "an .npz file"])


def _from_python(data: Any, size: int | None) -> Source:
    """A source of what is no name and no path."""
    from dne_lab.data.numbered import of_torch

    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Dataset) for part in data):
        return of_torch(data[0], data[1], size)
    if isinstance(data, Dataset):
        raise LabError(
            "one data set of PyTorch alone: give two, of training and test images, as in dne_lab.stream(train, test, "
            "base=50, step=10)."
        )
    if size is not None:
        raise LabError(f"size = {brief(size)}: arrays and a Source are taken in the size they have. Leave size out.")
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
    names = ", ".join([*NAMED, *OTHERS])
    raise LabError(
        f"data is a {type(data).__name__}: give a name ({names}), a path, arrays, two torch.utils.data.Dataset or a "
        "Source."
    )


def _cifar100(path: str | None, download: bool) -> Source:
    """CIFAR-100 in torchvision's files, or under the same name from an .npz file or a tree of images."""

    from dne_lab.data.image_folder import FolderSource

    source: Source
    if path is None and kind_of(absolute(CIFAR_NPZ)) == "file" and not kind_of(absolute("datasets/cifar-100-python")):
        path = CIFAR_NPZ
    if path is not None and path.endswith(".npz"):
        source = npz(path)
    elif path is not None and kind_of(absolute(path) / "train") == "folder":
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


class Named(NamedTuple):
    """What there is to know of a data set without opening it.

    ``open`` takes a path or None, and whether to fetch what is missing. ``shape``: (C, H, W) of its images; ``tasks``:
    how many classes each task brings where nobody says; ``files``: whether it is read from files, which may not be
    there; ``each``: training images of a class of those files.
    """

    open: Callable[[str | None, bool], Source]
    shape: tuple[int, int, int]
    tasks: tuple[int, ...]
    files: bool = False
    each: int = 0


# A row is all that a data set needs to have a name.
NAMED = {
    "digits": Named(lambda path, download: digits(), (1, SIDE, SIDE), (4, 2, 2, 2)),
    "digits100": Named(lambda path, download: digits100(), (1, 2 * SIDE, 2 * SIDE), (50, *[10] * 5)),
    "cifar100": Named(_cifar100, (3, 32, 32), (50, *[10] * 5), files=True, each=500),
}


def npz(path: str | Path) -> ArraySource:
    """Images from an .npz file with the arrays ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` and
    perhaps ``class_names``; see `ArraySource`. Nothing is unpickled.

    Raises:
        LabError: no such file, not an .npz, arrays missing or wrong.
    """
    layout = f"an .npz with the arrays {', '.join(ARRAYS)} (and perhaps class_names), as numpy.savez writes it"
    file = absolute(path)
    if (there := kind_of(file)) != "file":
        raise LabError(f"{path}: {'is no file' if there else 'no such file'}. Expected {layout}.")
    try:
        with zipfile.ZipFile(file) as packed:
            members = {info.filename.removesuffix(".npy"): info for info in packed.infolist()}
            absent = [name for name in ARRAYS if name not in members]
            if absent:
                raise LabError(
                    f"{path}: no {', '.join(absent)} among its arrays ({', '.join(members)}). Expected {layout}."
                )
            wanted = {name: members[name] for name in (*ARRAYS, "class_names") if name in members}
            check_parts(file, [info for info in packed.infolist() if info.filename.removesuffix(".npy") in wanted])
            arrays: dict[str, Any] = {name: _array_in(packed, info) for name, info in wanted.items()}
    except LabError:
        raise
    except (
        ValueError, OSError, EOFError, LookupError, AttributeError, TypeError, RuntimeError, MemoryError, SyntaxError,
        OverflowError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
    ) as error:  # RuntimeError: encrypted; NotImplementedError: packed in another way  # fmt: skip
        raise LabError(
            f"{path}: cannot be read ({reason(error)}). Expected {layout}; Python objects are not read."
        ) from error
    try:
        return ArraySource(**arrays, name="npz", path=str(path))
    except LabError as error:
        raise LabError(f"{path}: {error}") from None


def _array_in(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array of an .npz; a `ValueError` where its header speaks of more (or less) than there is."""
    with packed.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        there = member.file_size - stream.tell()
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects")
    if not dtype.itemsize:  # an array of any length takes nothing in the file
        raise ValueError(f"{member.filename} is of {dtype!r}, which holds nothing")
    if math.prod(shape) * dtype.itemsize != there:
        raise ValueError(f"{member.filename} says it has the shape {shape} of {dtype}, but has {there:,} bytes")
    with packed.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


# Small photographs that come with scikit-learn: real pictures to look at a trained model with, without a download.

# (left, top, right, bottom) of square cuts from the two pictures of 640 x 427 pixels
CUTS = (
    ("flower", "flower.jpg", (106, 0, 533, 427)),
    ("leaf", "flower.jpg", (0, 0, 300, 300)),
    ("temple", "china.jpg", (107, 0, 534, 427)),
    ("lake", "china.jpg", (300, 100, 600, 400)),
)
PHOTOGRAPHS = tuple(name for name, _, _ in CUTS)


def photographs(size: int = 32) -> Tensor:
    """Four square cuts of scikit-learn's two sample photographs, in the order of `PHOTOGRAPHS`.

    china.jpg is by danielbuechele, flower.jpg by vultilion (both CC BY 2.0).
    They belong to no class of any data set here: they show what a model computes, not how well.

    Args:
        size: side in pixels.

    Returns:
        (4, 3, size, size) uint8.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_image

    if size < 1:
        raise LabError(f"photographs({size}): a side needs at least one pixel.")
    pictures = [Image.fromarray(load_sample_image(file)).crop(box).resize((size, size)) for _, file, box in CUTS]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()
