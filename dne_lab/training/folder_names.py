"""What a run's folder is called: the method, the data, what differs from the preset, and the seed.

The same configuration always gets the same name. Another one gets another name, but for the place of one's own images:
it is no part of a configuration, as folders may be moved. What a name cannot say (a long list, a character that file
systems do not like) is replaced by eight characters of the configuration's hash. Where the name is taken by the run of
another data set whose folder or file is called alike, `place` adds eight characters of a hash of the path.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dne_lab.core import presets
from dne_lab.core.config import Config, field_names
from dne_lab.core.errors import LabError
from dne_lab.core.files import UNSAFE, resolved
from dne_lab.data.datasets import OTHERS as OWN
from dne_lab.methods.base import Method
from dne_lab.models.backbone import FOLLOWS
from dne_lab.training.run_folder import read_config

DEFAULT = "digits"  # the preset of a command that names none
LEFT_OUT = {"method", "preset", "seed", "data.path"}  # fields that are no settings in a name
LONGEST, LONGEST_VALUE = 80, 24  # characters of a part, and of one value


class Piece(NamedTuple):
    """A part of a name; ``exact``: no other configuration has it."""

    text: str
    exact: bool = True


def folder_name(config: Config, apart: bool = False) -> str:
    """``<method>-<data>-<what differs from the preset>-s<seed>``: ``dne-digits-heads3.2-s0``.

    <data> is the preset; of one's own images, the name of their folder or file in place of the preset's data set.
    ``apart``: with a hash of the place of these images, before the seed.
    """
    return _join([Piece(config.method)], config, [*_hash_of_place(config, apart), Piece(f"s{config.seed}")])


def experiment_name(config: Config, apart: bool = False) -> str:
    """`folder_name` without method and seed, for what several runs are made for: ``digits-learn.epochs5``."""
    return _join([], config, _hash_of_place(config, apart))


def place(config: Config, out: Path) -> Path:
    """The run folder of a configuration in the folder ``out``: its `folder_name`, or the one that was given to it.

    Data sets ``a/birds`` and ``b/birds`` have one name. A run folder there that names just these images is theirs,
    whatever it is called. Else the plain name is, unless the images of the run that has it are still where they were,
    in another place; then the name gets a hash of the path. So the hash is there only where it is needed: a run folder
    that was moved together with its images, or whose images alone were moved, is found again.
    """
    plain = out / folder_name(config)
    mine = _images_of(config)
    if mine is None:
        return plain
    apart = out / folder_name(config, apart=True)
    alike = re.escape(plain.name.removesuffix(f"-s{config.seed}")) + rf"(-[0-9a-f]{{8}})?-s{config.seed}"
    there = [folder for folder in _folders(out) if re.fullmatch(alike, folder.name)]
    for folder in (plain, apart, *there):
        if _images_in(folder) == mine:
            return folder
    taken = _images_in(plain)
    return apart if taken is not None and taken.exists() else plain


def _folders(out: Path) -> list[Path]:
    return sorted(folder for folder in out.iterdir() if folder.is_dir()) if out.is_dir() else []


def _images_of(config: Config) -> Path | None:
    """Where one's own images are; None for data sets that have a name."""
    path = config.data.path
    return resolved(path) if config.data.name in OWN and path else None


def _images_in(folder: Path) -> Path | None:
    """Where the images of a run folder are; None if it does not say so (who uses it is told why)."""
    try:
        return _images_of(read_config(folder))
    except (LabError, OSError):
        return None


def _hash_of_place(config: Config, apart: bool) -> list[Piece]:
    images = _images_of(config) if apart else None
    return [] if images is None else [Piece(hashlib.sha256(bytes(images)).hexdigest()[:8])]


def _join(first: list[Piece], config: Config, last: list[Piece]) -> str:
    data = _data(config)
    changed = _differences(config, with_data=data.text == config.preset.replace(",", "+"))
    pieces = [_safe(piece) for piece in (*first, data, changed)]
    if not all(piece.exact for piece in pieces):
        alike = dataclasses.replace(config, seed=0, method=config.method if first else "")
        pieces.append(Piece(alike.sha256[:8]))
    return "-".join(piece.text for piece in (*pieces, *map(_safe, last)) if piece.text)


def _safe(piece: Piece) -> Piece:
    text = UNSAFE.sub("_", piece.text).strip(".")
    if len(text) > LONGEST:  # whole settings, as far as they fit
        text = text[:LONGEST].rpartition("-")[0] or text[:LONGEST]
    return Piece(text, piece.exact and text == piece.text)


def _data(config: Config) -> Piece:
    """The preset, in which the name of other images stands in place of the data set's."""
    data, names = config.data, [name.strip() for name in config.preset.split(",") if name.strip()]
    meant = presets.names_dataset(config.preset)
    if data.name == meant and not (data.name in OWN and data.path):
        return Piece("+".join(names))
    known = {tree["data"]["name"] for tree in presets.PRESETS.values() if "data" in tree}
    own = data.name
    if data.name in OWN and data.path:
        own = resolved(data.path).name
        own = own.removesuffix(".npz") if data.name == "npz" else own
    texts = []
    for name in names:
        if name in presets.PRESETS and presets.names_dataset(name) in OWN:  # imagenet100-b50-10
            own = "-".join([own, *name.split("-")[1:]])
        elif name != DEFAULT:
            texts.append(name)
    # "digits" is left out, alone or beside others; one's own images may be called as a data set is
    exact = bool(names) and (names == [DEFAULT] or DEFAULT not in names) and not (data.name in OWN and own in known)
    exact = exact and not _says_setting(own)
    text = "+".join([own, *texts])
    return Piece(text, exact and not all(piece in presets.PRESETS for piece in text.split("+")))


def _says_setting(name: str) -> bool:
    """Whether a data set's name reads as if a setting followed it, as ``birds-size32`` does."""
    options = [field.name for method in Method.registry.values() for field in dataclasses.fields(method.Options)]
    fields = [_short(name) for name in field_names(Config) if name not in LEFT_OUT]
    setting = re.compile(f"-({'|'.join(map(re.escape, [*fields, *options]))})($|[0-9_-])")
    return setting.search(name) is not None


def _differences(config: Config, with_data: bool) -> Piece:
    """The fields in which a configuration is not its preset: ``heads3.2-learn.epochs5``."""
    try:
        preset = presets.resolve(config.preset, method=config.method, seed=config.seed)
    except LabError:  # a preset of another version, or of the user's own
        return Piece("", False)
    before, now = _flat(preset), _flat(config)
    left_out = LEFT_OUT | (set() if with_data else {"data.name"})
    if config.network.backbone is not None:
        left_out |= {f"network.{name}" for name in FOLLOWS}
    names = [name for name in dict.fromkeys([*now, *before]) if name not in left_out]
    changed = [name for name in names if now.get(name) != before.get(name)]
    values = [_value(now.get(name)) for name in changed]
    texts = (f"{_short(name)}{value[:LONGEST_VALUE]}" for name, value in zip(changed, values, strict=True))
    return Piece("-".join(texts), all(len(value) <= LONGEST_VALUE for value in values))


def _flat(config: Config) -> dict[str, Any]:
    """Dotted fields; a class order that follows from the seed is its rule, weights of a backbone are their file's name,
    as in the configuration's identity."""
    flat: dict[str, Any] = {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = value

    walk(config.to_dict(), "")
    flat["network.backbone_weights"] = config.identity()["network"].get("backbone_weights")
    flat["data.order"] = flat.pop("data.order_rule") or flat["data.order"]
    return flat


def _short(name: str) -> str:
    """The last part of a field's name, where no other field has the same: ``heads``, but ``learn.epochs``."""
    leaves = [known.rpartition(".")[2] for known in field_names(Config)]
    leaf = name.rpartition(".")[2]
    if name.startswith("options."):
        inner = name.removeprefix("options.")
        return name if inner in leaves else inner
    return leaf if leaves.count(leaf) == 1 else name


def _value(value: Any) -> str:
    """A number as it is, a list of numbers with dots (``50.10x5``), words after an underscore."""
    if isinstance(value, bool) or value is None:
        return f"_{str(value).lower()}"
    if isinstance(value, int | float):
        return f"{value:g}" if float(f"{value:g}") == value else str(value)
    if isinstance(value, list) and all(isinstance(one, int) for one in value) and value:
        return _numbers(value)
    return "_" + ("+".join(map(str, value)) or "none" if isinstance(value, list) else str(value))


def _numbers(values: Sequence[int]) -> str:
    runs = ((one, len(list(same))) for one, same in itertools.groupby(values))
    return ".".join(f"{one}x{times}" if times > 2 else ".".join([str(one)] * times) for one, times in runs)
