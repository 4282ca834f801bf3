"""The command `check`: every image of a data set is decoded, before hours of training meet the one that is damaged."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dne_lab.commands.arguments import Json
from dne_lab.core.errors import LabError

SHOWN = 20  # damaged files that are listed; --json lists all


def check(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="An image folder, an .npz file, or the name of a data set, as in data.name."
        ),
    ],
    path: Annotated[str | None, typer.Option(help="Where the files of cifar100, folder or npz are.")] = None,
    size: Annotated[int | None, typer.Option(help="Side in pixels that images of a folder are brought to.")] = None,
    as_json: Json = False,
) -> None:
    """Decode every image of a data set: what is there, what is damaged, and the digest by which a run knows it.

    Status 2 where a file is damaged, unreadable or of another size; each is named.
    """
    from dne_lab.data.image_file import in_words

    found = examined(data, path, size)
    print(json.dumps(found, indent=1) if as_json else text(found))
    if found["damaged"]:
        raise LabError(in_words(f"{len(found['damaged'])} file(s) of {data} cannot be used: {found['damaged'][0]}"))


def examined(data: str, path: str | None = None, size: int | None = None) -> dict[str, Any]:
    """What `check` reports: ``source``, ``path``, ``classes``, ``shape``, ``images`` by split, ``digest`` by split and
    ``images_sha256``, as the records of runs have it (both None where a file is damaged), and ``damaged``, a sentence
    per file.

    Raises:
        LabError: what cannot be opened as a data set at all.
    """
    from dne_lab.data.datasets import open_source
    from dne_lab.data.identity import fingerprint, images_sha256
    from dne_lab.data.image_folder import FolderSource
    from dne_lab.data.source import SPLITS
    from dne_lab.data.stream import ClassStream

    source = open_source(data, path=path, size=size)
    damaged = source.damaged() if isinstance(source, FolderSource) else []
    stream = ClassStream(source, (len(source.classes),))
    whole = None if damaged else fingerprint(stream)
    return {
        "source": source.name,
        "path": source.path,
        "classes": list(source.classes),
        "shape": list(source.shape),
        "images": {split: len(source.labels(split)) for split in SPLITS},
        "digest": None if whole is None else {split: whole[f"{split}_images"] for split in SPLITS},
        "images_sha256": None if whole is None else images_sha256(stream),
        "damaged": damaged,
    }


def text(found: dict[str, Any]) -> str:
    """The same for a reader: one line of what there is, and one for each damaged file, whatever it is called."""
    from dne_lab.data.image_file import in_words

    sizes = ", ".join(f"{count:,} {split}" for split, count in found["images"].items())
    place = "" if found["path"] is None else f" in {Path(found['path'])}"
    shape = " x ".join(map(str, found["shape"]))
    lines = [f"{found['source']}{place}: {len(found['classes'])} classes, {sizes} images, {shape}"]
    if found["damaged"]:
        more = len(found["damaged"]) - SHOWN
        lines += found["damaged"][:SHOWN] + ([f"and {more:,} more"] if more > 0 else [])
    else:
        lines.append(f"all images can be decoded; records of runs on them say images_sha256 {found['images_sha256']}")
    return "\n".join(map(in_words, lines))
