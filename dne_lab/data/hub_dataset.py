"""Data sets of the Hugging Face Hub by name, ``hf:USER/NAME``, read by its library `datasets`.

Nothing is fetched unasked: without ``download`` only the library's own cache is read. The library runs no code of a
repository.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dne_lab.core.errors import LabError, brief, reason
from dne_lab.data.numbered import NumberedSource
from dne_lab.data.source import SPLITS, check_split

PREFIX = "hf:"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"hf:({_PART}(?:/{_PART})?)(?::([A-Za-z0-9._-]+))?(?:#([^#:/\\]+))?")
TESTS = ("test", "validation", "val", "valid")  # the first that there is stands for the test


class Name(NamedTuple):
    """A repository, one of its configurations, and the column with the labels (None: the only one there is)."""

    repository: str
    configuration: str | None
    labels: str | None


def named(text: str) -> Name:
    """``hf:USER/NAME``, perhaps with ``:CONFIGURATION`` and ``#LABELS``; a `LabError` for anything else."""
    found = _NAME.fullmatch(text)
    if found is None or ".." in text or "--" in text:
        raise LabError(
            f"{brief(text)} is no data set of the Hub: write hf:USER/NAME, then :CONFIGURATION if it has several, and "
            "#COLUMN if several columns hold labels."
        )
    return Name(*found.groups())


class HubSource(NumberedSource):
    """A data set of the Hub: ``train``, and ``test`` (or ``validation``).

    Images are those of its only column of images; labels its only column of class labels, else one called "label", else
    the one that the name says (``hf:uoft-cs/cifar100#fine_label``).

    Args:
        name: see `named`.
        size: see `NumberedSource`.
        download: fetch it where the cache of `datasets` lacks it.

    Raises:
        LabError: no such name, splits or columns; not in the cache; `datasets` is not installed.
    """

    def __init__(self, name: str, size: int | None = None, download: bool = False) -> None:
        asked = named(name)
        found = _opened(name, asked, download)
        splits = dict(zip(SPLITS, (_split(name, found, ("train",)), _split(name, found, TESTS)), strict=True))
        features = splits["train"].features
        column = _column(name, features, "Image", ("image", "img"), None)
        target = _column(name, features, "ClassLabel", ("label", "labels"), asked.labels)
        labels = {split: np.asarray(rows.with_format("numpy")[target][:]) for split, rows in splits.items()}
        for split, values in labels.items():
            if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
                raise LabError(f"{name}: the {split} labels in {target!r} are {values.dtype}: no whole numbers.")
        names = getattr(features[target], "names", None) or range(int(labels["train"].max()) + 1)
        read = {split: partial(_image_of, rows, column) for split, rows in splits.items()}
        self._states = {split: str(rows._fingerprint) for split, rows in splits.items()}
        super().__init__(read, labels, names, name=name, size=size)

    def names(self, split: str) -> list[str]:
        """ "CLASS/NUMBER" of every image."""
        return [f"{self.classes[label]}/{number}" for number, label in enumerate(self.labels(split).tolist())]

    def stamps(self, split: str) -> np.ndarray:
        """(n, 3) int64, of the state of the whole split: known digests hold as long as the library says the same."""
        own = hashlib.sha256(f"{self._states[check_split(split)]} {self.size}".encode()).digest()[:24]
        return np.tile(np.frombuffer(own, dtype=np.int64), (len(self.labels(split)), 1))

    def remember(self, split: str, names: list[str], stamps: np.ndarray, digests: np.ndarray) -> None:
        if np.array_equal(stamps, self.stamps(split)) and len(digests) == len(self.labels(split)):
            self.__dict__.setdefault("_digests", {})[split] = digests


def _image_of(rows: Any, column: str, number: int) -> Any:
    return rows[number][column]


def _opened(text: str, name: Name, download: bool) -> Any:
    """The splits of a data set, from the library's cache, or fetched."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise LabError(f"{text} needs datasets, which is not installed here: pip install 'dne-lab[hub]'.") from error
    if Path(name.repository).exists():
        raise LabError(
            f"{text}: there is a file or folder {name.repository} here, which `datasets` would read instead."
        )
    try:
        with _cached_alone(datasets):
            return datasets.load_dataset(name.repository, name.configuration)
    except Exception as error:  # the library's own, of its transport, of damaged files
        missing = error
    if not download and isinstance(missing, OSError):  # with those of a connection, and of a file that is not there
        raise LabError(
            f"{text} is not in the cache of the library `datasets` here. Fetch it once: --download, or "
            "dne_lab.stream(..., download=True)."
        ) from missing
    try:
        if not download:
            raise missing
        return datasets.load_dataset(name.repository, name.configuration)
    except Exception as error:
        asked = " Is there a connection to the Hub, and a data set of that name?" if isinstance(error, OSError) else ""
        raise LabError(f"{text} cannot be read ({reason(error)}).{asked}") from error


@contextmanager
def _cached_alone(datasets: Any) -> Iterator[None]:
    """Inside, the library asks no server: it does so for its newest state even of what it has."""
    before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    loud = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()  # it says each time that no server was asked
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(loud)


def _split(text: str, found: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if name in found:
            return found[name]
    raise LabError(f"{text} has no split called {' or '.join(names)}: it has {', '.join(map(str, found))}.")


def _column(text: str, features: Any, kind: str, usual: tuple[str, ...], wanted: str | None) -> str:
    """The column that holds images or labels."""
    if wanted is not None:
        if wanted not in features:
            raise LabError(f"{text}: there is no column {wanted!r}. It has {', '.join(features)}.")
        return wanted
    fitting = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(fitting) == 1:
        return str(fitting[0])
    for name in usual:
        if name in (fitting or features):
            return name
    if not fitting:
        raise LabError(f"{text} has no column of type {kind}: it has {', '.join(features)}.")
    raise LabError(
        f"{text} has several columns of type {kind}: name one of {', '.join(fitting)}, as in {text}#{fitting[0]}."
    )
