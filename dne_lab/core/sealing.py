"""Damage to a JSON file is seen: a dictionary is written with the digest of its content, and checked when it is read.

A flipped bit of a disk or a number changed by hand makes other results out of a valid file. The digest is SHA-256 over
the content with sorted keys, so white space and the order of the entries do not matter.

A checkpoint is no JSON file: its seal, which covers tensors too, is in `training.run_folder`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dne_lab.core.schema import DamagedError

SEAL = "sha256"  # the entry of a dictionary that holds the digest of all others


def sha256(data: bytes) -> str:
    """The digest of a file's content, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sealed(tree: Mapping[str, Any], apart: str = "") -> dict[str, Any]:
    """A dictionary as a file of this program holds it: with the digest of its content.

    Args:
        apart: an entry with a digest of its own (what depends on the clock), so that the outer one does not change
            when a run is repeated.
    """
    content = {name: value for name, value in tree.items() if name != SEAL}
    outer = dict(content)
    if isinstance(content.get(apart), dict):
        content[apart] = sealed(outer.pop(apart))
    return content | {SEAL: _digest(outer)}


def unsealed(tree: Mapping[str, Any], path: Path, apart: str = "") -> dict[str, Any]:
    """What `sealed` was given; older files hold no digest, and are taken as they are.

    Raises:
        DamagedError: the content is not what was written.
    """
    content = {name: value for name, value in tree.items() if name != SEAL}
    inner = content.get(apart)
    if SEAL in tree:
        right = sealed(content, apart)
        if tree[SEAL] != right[SEAL] or inner != right.get(apart):
            raise DamagedError(
                f"{path} is damaged, or was changed by hand: its content is not what was written (SHA-256). Bring back "
                f'a copy; after a change that you want, remove "{SEAL}" from it.'
            )
    if isinstance(inner, dict):
        content[apart] = {name: value for name, value in inner.items() if name != SEAL}
    return content


def _digest(content: Mapping[str, Any]) -> str:
    try:
        return sha256(json.dumps(content, sort_keys=True).encode())
    except ValueError:  # a whole number of thousands of digits, which no field takes
        return ""
