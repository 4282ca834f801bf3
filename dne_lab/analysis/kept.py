"""Records of the instruments as JSON files: how they are written, found again and checked."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from dne_lab.errors import LabError
from dne_lab.files import write_text
from dne_lab.measure.record import Record

R = TypeVar("R")


def write(record: Any, path: Path) -> None:
    """Writes a dataclass as a JSON file, atomically."""
    write_text(path, json.dumps(dataclasses.asdict(record), separators=(",", ":"), allow_nan=False) + "\n")


def trained(record: Record) -> dict[str, Any]:
    """What tells one training of a configuration from another, on another machine or version: last digits differ.

    ``digest`` is the start of the SHA-256 of the run's record without its clock.
    """
    tree = json.dumps(record.without_timing(), sort_keys=True)
    told = {name: getattr(record, name) for name in ("LA", "code_version", "torch", "device", "threads")}
    return {**told, "digest": hashlib.sha256(tree.encode()).hexdigest()[:16]}


def among(paths: Path | Iterable[Path], of: type[R]) -> list[R]:
    """All records of a class in files and, recursively, folders, in the order of their paths; other files are passed
    over.

    The class is a dataclass with defaults for ``kind`` (which tells its files) and ``format`` (its version, raised when
    the meaning of a field changes; fields with defaults may be missing), and names in ``AGAIN`` how to make a record.

    Raises:
        LabError: a damaged file, or a record of another version.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    listed = [file for path in given for file in (sorted(path.rglob("*.json")) if path.is_dir() else [path])]
    files = {file.resolve(): file for file in listed}.values()  # once, also where one folder lies in another
    known = {field.name: field.default for field in dataclasses.fields(of)}  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    needed = {f.name for f in dataclasses.fields(of) if f.default is f.default_factory is missing}  # type: ignore[arg-type]
    again = of.AGAIN  # type: ignore[attr-defined]
    found = []
    for file in files:
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LabError(f"{file} cannot be read ({error}). {again}") from error
        if not isinstance(tree, dict) or tree.get("kind") != known["kind"]:
            continue
        if tree.get("format") != known["format"] or not needed <= tree.keys() <= known.keys():
            raise LabError(f"{file}: {known['kind']} record of another version. {again}")
        found.append(of(**tree))
    return found


def find(paths: Path | Iterable[Path], of: type[R]) -> list[R]:
    """`among`, but none at all is a `LabError` too."""
    given = [paths] if isinstance(paths, Path) else list(paths)
    found = among(given, of)
    if not found:
        kind = next(field.default for field in dataclasses.fields(of) if field.name == "kind")  # type: ignore[arg-type]
        raise LabError(f"{', '.join(map(str, given))}: no {kind} record there. {of.AGAIN}")  # type: ignore[attr-defined]
    return found
