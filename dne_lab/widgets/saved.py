"""The explorer as one file: a page that works without a kernel, a server or a network.

Attention is stored as bytes, the square root of its share of the largest entry of a head, so that a value is within
half a percent of that entry; what stands in tables is exact to four digits.
"""

import base64
import gzip
import json
import operator
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dne_lab.analysis.head_table import Head
from dne_lab.analysis.labelling import GROUPS
from dne_lab.analysis.views import PATCHWISE, TASKWISE
from dne_lab.core.errors import LabError, brief
from dne_lab.core.files import absolute, write_text
from dne_lab.plots.attention_colours import RELATIVE, SCALES, WIDEST, Scale, picture, ramp
from dne_lab.plots.style import EXPERT_COLOURS, GROUP_COLOURS, GROUP_WORDS
from dne_lab.widgets import browser
from dne_lab.widgets.overview import SORTS
from dne_lab.widgets.saved_page import CSS, HTML, PAGE
from dne_lab.widgets.subject import Subject

STYLE = browser.STYLE + CSS
SCRIPT = browser.KEYS + browser.PATCHES.replace("export default { render };", "") + PAGE
EXACT = "Shares of one image are exact: nothing is sampled, so they have no interval."
TITLE = "Attention of "  # of models
LARGEST = 50  # MB that a page may have: browsers take long for more
WHOLE = 65535  # shares are stored as 16 bits


def save(
    subject: Subject,
    path: str | Path,
    images: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    experts: Sequence[int] | None = None,
    start: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Writes the page; its path.

    Args:
        subject: its models, at the moment that they are shown.
        path: of an .html file.
        images: numbers of the images that are in it; None: all, and so below.
        layers: from 0.
        experts: from 1, whose queries.
        start: what is seen first: model, image, kind, layer, expert, head, patch.
        force: also replace a file that is no saved explorer.

    Raises:
        LabError: another suffix, a file that is there and no saved explorer, a choice that is not there, a page of more
            than `LARGEST` MB.
    """
    absolute(path)  # whether it can be a file's name
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        raise LabError(f"{path}: the explorer is saved as a page, name a file that ends in .html.")
    if not force and not _is_ours(path):
        raise LabError(f"{path} is there, and no saved explorer: name another file, or give force=True to replace it.")
    chosen = _chosen("images", images, range(len(subject.images)))
    text = page(subject, chosen, layers, experts, start)
    _check_size(len(text.encode()))
    write_text(path, text)
    return path


OURS = (HTML.partition("{title}")[0] + TITLE).encode()  # how every page of `save` begins


def _is_ours(path: Path) -> bool:
    """Whether there is a page of `save`, or nothing, or what `write_text` refuses."""
    try:
        if not path.is_file():
            return True
        with path.open("rb") as file:
            return file.read(len(OURS)) == OURS
    except OSError as error:
        raise LabError(f"{path} is there and cannot be read: {error.strerror}. Name another file.") from error


def _check_size(count: int) -> None:
    if count > LARGEST * 1_000_000:
        raise LabError(
            f"the page has {count / 1e6:.0f} MB or more, at most {LARGEST} are written: give fewer images, layers or "
            "experts."
        )


def _chosen(name: str, given: Sequence[int] | None, there: Sequence[int]) -> list[int]:
    """Each number once, in the order given."""
    if given is None:
        return list(there)
    known = f"there are {there[0]} to {there[-1]}" if there else "there are none"
    chosen: dict[int, None] = {}
    try:
        len(given)  # what has no end is no choice
        for number in map(operator.index, given):
            if number not in there:
                raise LabError(f"{name} = {brief(given)}: {known}.")
            chosen[number] = None
    except TypeError as error:
        raise LabError(f"{name} = {brief(given)}: give a list of whole numbers; {known}.") from error
    if not chosen:
        raise LabError(f"{name} = {brief(given)}: {known}.")
    return list(chosen)


def page(
    subject: Subject,
    images: Sequence[int],
    layers: Sequence[int] | None = None,
    experts: Sequence[int] | None = None,
    start: Mapping[str, Any] | None = None,
) -> str:
    """The page as text, see `save`."""
    models = {name: _model(subject, name, images, layers, experts) for name in subject.models}
    pictures = [picture(subject.images[number]) for number in images]
    first = {"model": next(iter(models)), "image": 0, "kind": "patches", "layer": 0, "expert": 1, "head": 0, "patch": 0}
    first |= {name: value for name, value in (start or {}).items() if name in first}
    first["image"] = images.index(first["image"]) if first["image"] in images else 0
    data = {
        "start": first,
        "models": models,
        "images": [{"pixels": _packed(one.tobytes()), "size": list(one.shape[:2])} for one in pictures],
        "captions": [subject.captions[number] for number in images],
        "kinds": {name: words for name, (words, _) in SORTS.items()},
        "tables": {name: _text(np.asarray(ramp(scale, 256))) for name, scale in _SCALES.items()},
        "palette": [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in EXPERT_COLOURS],
        "groups": [[name, GROUP_WORDS[name], GROUP_COLOURS[name]] for name in GROUPS],
        "scales": list(SCALES),
        "relative": RELATIVE,
        "widest": WIDEST,
        "exact": EXACT,
        "moment": subject.moment_name(subject.moment) if subject.moments else "",
    }
    tree = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    title = f"{TITLE}{', '.join(subject.models)}"
    return HTML.format(title=escape(title), style=STYLE, script=SCRIPT, data=tree)


_SCALES = {"plain": Scale("absolute", 0.0, 1.0), "diverging": Scale(RELATIVE, 1 / 8, 8.0, 1.0, 1.0, diverging=True)}


def _model(
    subject: Subject, name: str, images: Sequence[int], layers: Sequence[int] | None, experts: Sequence[int] | None
) -> dict[str, Any]:
    """One model: which heads there are, and for each image what they do."""
    parts: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []
    size = 0
    for image in images:
        found = subject.heads(name, image)
        of_layers = _chosen("layers", layers, sorted({one.layer for one in found}))
        of_experts = _chosen("experts", experts, sorted({one.expert for one in found}))
        heads = [one for one in found if one.layer in of_layers and one.expert in of_experts]
        described = [_described(one) for one in heads]
        parts.append(
            {
                "said": subject.prediction(name, image),
                "most": [float(one.maps.max()) for one in heads],
                "packed": _packed(b"".join(map(_bytes, heads))),
            }
        )
        size += len(parts[-1]["packed"])
        _check_size(size)  # before hours have gone by
    return {"grid": list(subject.grid(name)), "heads": described, "images": parts}


def _described(one: Head) -> dict[str, Any]:
    return {
        "kind": "patches" if one.kind in PATCHWISE else one.kind, "joint": one.kind == "joint", "layer": one.layer,
        "expert": one.expert, "head": one.head, "keys": one.keys, "columns": one.maps.shape[1],
        "read": len(one.key_expert),
        "owners": list(one.key_expert) if one.kind in TASKWISE else [],
    }  # fmt: skip


def _bytes(one: Head) -> bytes:
    """The map as bytes, effective keys of each patch as 16 bits of all keys, and the four shares as 16 bits."""
    maps = np.rint(255 * np.sqrt(one.maps / one.maps.max())).astype(np.uint8)
    spread = np.rint(WHOLE * one.spread / one.keys).clip(0, WHOLE).astype("<u2")
    groups = b"" if one.groups is None else np.rint(WHOLE * one.groups).clip(0, WHOLE).astype("<u2").tobytes()
    return maps.tobytes() + spread.tobytes() + groups


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.uint8).tobytes()).decode("ascii")


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode("ascii")
