"""A dictionary with the digest of its content: every change of a value is seen, a change of form is none."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dne_lab.core.errors import LabError
from dne_lab.core.schema import DamagedError, parse
from dne_lab.core.sealing import SEAL, sealed, unsealed

TREE: dict[str, Any] = {
    "a": 1, "b": [0.1, 1e-300, 2.0, -0.0, 10**25, None, True], "c": {"é": "\u202e", "z": {}, "y": []},
    "timing": {"seconds": 1.5},
}  # fmt: skip
HERE = Path("record.json")


def test_what_was_sealed_comes_back(tmp_path: Path) -> None:
    for apart in ("", "timing"):
        written = sealed(TREE, apart)
        assert unsealed(parse(json.dumps(written, indent=1).encode()), HERE, apart) == TREE
        assert sealed(written, apart) == written
    assert unsealed(TREE, HERE, "timing") == TREE  # older files


def test_the_outer_digest_does_not_depend_on_what_is_apart() -> None:
    other = TREE | {"timing": {"seconds": 2.5}}
    one, two = sealed(TREE, "timing"), sealed(other, "timing")
    assert one[SEAL] == two[SEAL] and one["timing"][SEAL] != two["timing"][SEAL]
    assert sealed(TREE)[SEAL] != sealed(other)[SEAL]


def test_every_flipped_bit_is_seen_or_changes_nothing() -> None:
    """Only a flip that takes the digest's own name away makes the file an older one, of which nothing is known."""
    right = json.dumps(sealed(TREE, "timing")).encode()
    ends = {"no JSON": 0, "refused": 0, "same": 0, "nameless": 0}
    for bit in range(8 * len(right)):
        wrong = bytearray(right)
        wrong[bit // 8] ^= 1 << bit % 8
        try:
            tree = parse(bytes(wrong))
        except ValueError:
            ends["no JSON"] += 1
            continue
        try:
            found = unsealed(tree, HERE, "timing")
        except DamagedError as error:
            assert "record.json is damaged" in str(error)
            ends["refused"] += 1
            continue
        if SEAL in tree:
            assert found == TREE
            ends["same"] += 1
        else:
            ends["nameless"] += 1
    assert ends["refused"] > 500 and ends["nameless"] <= 8 * len(SEAL), ends


def test_numbers_come_back_as_they_were_written() -> None:
    draw = random.Random(0)
    numbers = [draw.uniform(-1, 1) * 10.0 ** draw.randrange(-300, 300) for _ in range(5000)]
    assert unsealed(parse(json.dumps(sealed({"numbers": numbers})).encode()), HERE) == {"numbers": numbers}


@pytest.mark.parametrize("wrong", [0, None, [], {}, "", "0" * 64])
def test_another_digest_is_refused(wrong: Any) -> None:
    with pytest.raises(LabError, match="was changed by hand"):
        unsealed(sealed(TREE) | {SEAL: wrong}, HERE)
    with pytest.raises(LabError, match="was changed by hand"):
        unsealed(sealed(TREE, "timing") | {"timing": wrong}, HERE, "timing")
