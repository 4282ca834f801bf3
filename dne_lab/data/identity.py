"""Which classes and images a run has learned from, so that others in the same place are noticed and named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dne_lab.data.source import SPLITS, Source
from dne_lab.data.stream import ClassStream

WORDS = {"train": "training", "test": "test"}
NAMED = 3  # classes and images that a message names; of more it gives the number


@dataclass(frozen=True)
class Images:
    """The images of a source as they were at one time.

    Attributes: ``source`` its name, ``classes`` the class names by number, and by split ``labels`` (n,) int64,
    ``files`` (n names, or none where images do not come in files), ``stamps`` (n, 3) or (0, 3) int64, and ``digests``
    (n, 8) uint8; see `Source`.
    """

    source: str
    classes: tuple[str, ...]
    labels: dict[str, np.ndarray]
    files: dict[str, list[str]]
    stamps: dict[str, np.ndarray]
    digests: dict[str, np.ndarray]

    @classmethod
    def of(cls, source: Source, before: Images | None = None) -> Images:
        """Those of a source now. What is known from ``before`` about files that have not changed is not read again.

        Raises:
            LabError: a file that cannot be read, or is truncated.
        """
        if before is not None:
            before.remember(source)
        return cls(
            source.name,
            source.classes,
            {split: source.labels(split) for split in SPLITS},
            {split: source.names(split) for split in SPLITS},
            {split: source.stamps(split) for split in SPLITS},
            {split: source.digests(split) for split in SPLITS},
        )

    def remember(self, source: Source) -> None:
        """Tells a source what is known of its files: those that have not changed need not be read again."""
        for split in SPLITS:
            if len(self.stamps[split]) == len(self.files[split]) == len(self.digests[split]):
                source.remember(split, self.files[split], self.stamps[split], self.digests[split])

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able rest, for a file; `from_parts` is the inverse."""
        tensors = {
            f"{split}/{name}": torch.from_numpy(np.array(values[split]))
            for split in SPLITS
            for name, values in (("labels", self.labels), ("stamps", self.stamps), ("digests", self.digests))
        }
        return tensors, {"source": self.source, "classes": list(self.classes), "files": self.files}

    @classmethod
    def from_parts(cls, tensors: dict[str, Tensor], info: dict[str, Any]) -> Images:
        """From what `parts` gave.

        Raises:
            KeyError, TypeError: something else.
        """
        labels, stamps, digests = (
            {split: tensors[f"{split}/{name}"].numpy() for split in SPLITS} for name in ("labels", "stamps", "digests")
        )
        files = {split: [str(name) for name in info["files"][split]] for split in SPLITS}
        return cls(info["source"], tuple(info["classes"]), labels, files, stamps, digests)

    def keys(self, split: str) -> list[tuple[Any, ...]]:
        """What an image is found again by: class and file below the class's folder, or class and digest."""
        labels = self.labels[split].tolist()
        if self.files[split]:
            return [
                (label, name.partition("/")[2] or name) for label, name in zip(labels, self.files[split], strict=True)
            ]
        own = [digest.tobytes() for digest in self.digests[split]]
        return list(zip(labels, own, strict=True))

    def name(self, split: str, number: int) -> str:
        """An image in words."""
        if self.files[split]:
            return self.files[split][number]
        return f"number {number} (class {self.classes[self.labels[split][number]]})"


def unlike(there: Images, here: Images) -> list[str]:
    """In what the images ``here`` are not those ``there``, in words; nothing where they are the same."""
    found = []
    if len(there.classes) != len(here.classes):
        found.append(f"{len(there.classes)} classes there, {len(here.classes)} here")
    renamed = [(one, other) for one, other in zip(there.classes, here.classes, strict=False) if one != other]
    if renamed:
        text = _some([f"class {one!r} is called {other!r} here" for one, other in renamed])
        found.append(text)
    for split in SPLITS:
        found += _unlike_images(there, here, split)
    return found


def _unlike_images(there: Images, here: Images, split: str) -> list[str]:
    word, before, now = WORDS[split], there.digests[split], here.digests[split]
    if np.array_equal(before, now) and np.array_equal(there.labels[split], here.labels[split]):
        return []
    if there.files[split] and here.files[split]:
        old = {key: number for number, key in enumerate(there.keys(split))}
        new = {key: number for number, key in enumerate(here.keys(split))}
        gone = [there.name(split, number) for key, number in old.items() if key not in new]
        added = [here.name(split, number) for key, number in new.items() if key not in old]
        both = [(old[key], new[key]) for key in old if key in new]
        changed = [here.name(split, n) for o, n in both if before[o].tobytes() != now[n].tobytes()]
        kinds = (("is gone", gone), ("is new", added), ("has other content", changed))
        return [f"of the {word} images {_some(names)} {how}" for how, names in kinds if names]
    if len(before) != len(now):
        return [f"{len(before):,} {word} images there, {len(now):,} here"]
    if sorted(there.keys(split)) == sorted(here.keys(split)) and not here.files[split]:
        return [f"the {word} images come in another order"]
    other = np.flatnonzero((before != now).any(axis=1) | (there.labels[split] != here.labels[split]))
    return [f"{len(other):,} of {len(now):,} {word} images are others, the first is {here.name(split, int(other[0]))}"]


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def numbers_now(there: Images, here: Images, split: str) -> np.ndarray:
    """Where the images of a split ``there`` are ``here``: (n there,) int64, -1 for one that is gone.

    An image is the same one if it lies in the same file of the same class; where there are no files, if class and
    pixels are the same.
    """
    places: dict[tuple[Any, ...], list[int]] = {}
    for number, key in enumerate(here.keys(split)):
        places.setdefault(key, []).append(number)
    found = []
    for key in there.keys(split):
        waiting = places.get(key)
        found.append(waiting.pop(0) if waiting else -1)
    return np.array(found, dtype=np.int64)


def fingerprint(stream: ClassStream) -> dict[str, Any]:
    """Tells streams apart, JSON-able: names, sizes, hashes of all labels and of the images; computed once a stream.

    Raises:
        LabError: a file that cannot be read, or is truncated.
    """
    known: dict[str, Any] | None = stream.__dict__.get("_fingerprint")
    if known is None:
        known = {"name": stream.name, "tasks": list(stream.tasks), "shape": list(stream.shape)}
        for split in SPLITS:
            index = stream.index(split, range(stream.classes))
            labels = torch.stack([index, stream.labels(split, index)]).numpy().astype("<i8")
            known |= {split: len(index), f"{split}_labels": _hash([labels.tobytes()])}
            behind = stream.source.digests(stream.split_behind(split))
            known[f"{split}_images"] = _hash([behind[index.numpy()].tobytes()])
        known["class_names"] = _hash(name.encode("utf-8", "surrogatepass") + b"\0" for name in stream.class_names)
        stream.__dict__["_fingerprint"] = known
    return dict(known)


YOUNGER = ("train_images", "test_images", "class_names")  # what fingerprints of older runs do not have


def data_sha256(stream: ClassStream) -> str:
    """One hash of the class names and images of a stream, in whatever tasks they come."""
    known = fingerprint(stream)
    return _hash(known[name].encode() for name in YOUNGER)


def images_sha256(stream: ClassStream) -> str:
    """One hash of the images of a stream and of the names of its classes, in whatever order and tasks these come."""
    known = fingerprint(stream)
    names = [stream.source.classes[number] for number in sorted(stream.order)]
    parts = [known["train_images"], known["test_images"], *names]
    return _hash(part.encode("utf-8", "surrogatepass") + b"\0" for part in parts)


def _hash(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]
