"""Records of the instruments (attention, ablation, probes) as JSON files: how they are written, found and checked."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from dne_lab.core.errors import LabError, brief
from dne_lab.core.files import write_text
from dne_lab.core.schema import load, plain
from dne_lab.core.sealing import sealed, unsealed
from dne_lab.measure.comparison import network_text, tasks_text
from dne_lab.measure.record import M, Record, by_images, trees


def trained(record: Record) -> dict[str, Any]:
    """What tells one training of a configuration from another, on another machine or version: last digits differ.

    ``digest`` is the start of the SHA-256 of the run's record without its clock.
    """
    tree = json.dumps(record.without_timing(), sort_keys=True)
    known = {name: getattr(record, name) for name in ("LA", "code_version", "torch", "device", "threads")}
    known |= {"images_sha256": record.images_sha256} if record.images_sha256 else {}
    return {**known, "digest": hashlib.sha256(tree.encode()).hexdigest()[:16]}


def options_of(record: Record) -> dict[str, Any]:
    """The options of its method that a run was given by name: controls of a variant are among them, and tell its
    measurements from those of the method as it is. Older measurements do not say."""
    given = record.config.get("options", {})
    return {name: value for name, value in given.items() if not isinstance(value, dict)}


class Measurement:
    """Base of the records of instruments, each a `document` with defaults for ``kind``, which tells its files, and
    ``format``, its version, raised when the meaning of a field changes; fields with defaults may be missing."""

    ADVICE: ClassVar[str]  # how to make one
    run: str  # the id of the run's record
    kind: str
    format: int

    @property
    def name(self) -> str:
        """A file name that tells it from the others."""
        return self.run

    def content(self) -> dict[str, Any]:
        """What the JSON file holds: the fields and the digest of them."""
        return sealed(plain(dataclasses.asdict(self)))  # type: ignore[call-overload]  # a subclass is a dataclass

    def write(self, path: Path) -> None:
        """Writes the JSON file, atomically."""
        write_text(path, json.dumps(self.content(), separators=(",", ":"), allow_nan=False) + "\n")

    @classmethod
    def among(cls, paths: str | Path | Iterable[str | Path]) -> list[Self]:
        """All of this class in files and, recursively, folders, in the order of their paths; others are passed over.

        Raises:
            LabError: a damaged file, or a record of another version.
        """
        return [
            cls._of_tree(tree, file)
            for file, tree in trees(paths)
            if isinstance(tree, dict) and tree.get("kind") == cls.kind
        ]

    @classmethod
    def find(cls, paths: str | Path | Iterable[str | Path]) -> list[Self]:
        """`among`, but none at all is a `LabError` too."""
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        found = cls.among(given)
        if not found:
            raise LabError(f"{', '.join(map(str, given))}: no {cls.kind} record there. {cls.ADVICE}")
        return found

    @classmethod
    def _of_tree(cls, tree: dict[str, Any], file: Path) -> Self:
        if tree.get("format") != cls.format:
            raise LabError(
                f"{file}: {cls.kind} record of another version (format {brief(tree.get('format'))} instead of "
                f"{cls.format}). {cls.ADVICE}"
            )
        try:
            return load(cls, unsealed(tree, file))
        except LabError as error:
            raise LabError(
                f"{file}: {cls.kind} record that is damaged or of another version: {error} {cls.ADVICE}"
            ) from error


# Which measurements can be averaged.


def by_setting(found: Iterable[M], key: Callable[[M], tuple[Any, ...]]) -> dict[tuple[Any, ...], list[M]]:
    """Measurements by ``key``, a preset and more; those that `apart` splits have what differs after the preset."""
    made: dict[tuple[Any, ...], list[M]] = {}
    for member in found:
        made.setdefault(key(member), []).append(member)
    return {
        (f"{preset}{more}", *rest): alike
        for (preset, *rest), members in made.items()
        for more, alike in apart(members).items()
    }


def apart(members: Sequence[M]) -> dict[str, list[M]]:
    """Measurements of runs of one method and preset, split by their images and by options of the method (controls), and
    where several are of one seed: runs of other settings. The keys say what tells them apart: ``", 5 epochs"``, nothing
    where no seed is there twice.

    Raises:
        LabError: two measurements of one configuration and seed.
    """
    data = by_images(members)
    parts = {f", images {sha[:8] or 'unknown'}" if len(data) > 1 else "": alike for sha, alike in data.items()}
    for name in ("options", "epochs", "tasks", "heads", "network", "config_sha256"):
        split: dict[str, list[M]] = {}
        for difference, alike in parts.items():
            values = [getattr(member, name, None) or None for member in alike]
            together = all(value == values[0] for value in values) or (name != "options" and _one_a_seed(alike))
            for member, value in zip(alike, values, strict=True):
                more = "" if together else _setting_text(name, value, values)
                split.setdefault(f"{difference}, {more}" if more else difference, []).append(member)
        parts = split
    for alike in parts.values():
        if not _one_a_seed(alike):
            (first, *_) = runs = [getattr(member, "run", "") for member in alike]
            raise LabError(
                f"{len(runs)} measurements of one setting and seed ({first}): they cannot be averaged. Name the folder "
                "of one of them."
            )
    return parts


def _one_a_seed(members: Sequence[Any]) -> bool:
    return len({member.seed for member in members}) == len(members)


def _setting_text(name: str, value: Any, values: Sequence[Any]) -> str:
    if name == "tasks":
        return tasks_text(value)
    if name == "options":
        return ", ".join(f"{option} {_value_text(given)}" for option, given in sorted((value or {}).items()))
    if name == "heads":
        return f"heads {', '.join(map(str, value))}"
    if name == "config_sha256":
        return f"settings {value[:8]}"
    return network_text(value, values) if name == "network" else f"{value} {name}"


def _value_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
