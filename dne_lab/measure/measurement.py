"""Records of the instruments (attention, ablation, probes) as JSON files: how they are written, found and checked."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

from dne_lab.core.errors import LabError, brief
from dne_lab.core.files import write_text
from dne_lab.core.schema import load, plain
from dne_lab.core.sealing import sealed, unsealed
from dne_lab.measure.record import Record, trees


def trained(record: Record) -> dict[str, Any]:
    """What tells one training of a configuration from another, on another machine or version: last digits differ.

    ``digest`` is the start of the SHA-256 of the run's record without its clock.
    """
    tree = json.dumps(record.without_timing(), sort_keys=True)
    known = {name: getattr(record, name) for name in ("LA", "code_version", "torch", "device", "threads")}
    known |= {"images_sha256": record.images_sha256} if record.images_sha256 else {}
    return {**known, "digest": hashlib.sha256(tree.encode()).hexdigest()[:16]}


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
