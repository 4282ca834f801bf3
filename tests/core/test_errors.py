"""What an error says of things that are too long to be said."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shell import Here

from dne_lab.core.errors import LONGEST, REASON, LabError, brief, reason, visible
from dne_lab.data import datasets
from dne_lab.measure import tables


def test_a_reason_is_one_line_and_cut() -> None:
    assert reason(ValueError("bad\n  header")) == "bad header" and reason(EOFError()) == "EOFError"
    assert len(reason(ValueError("x" * 70_000))) == REASON


def test_a_value_is_cut() -> None:
    assert brief("abc") == "'abc'" and len(brief("x" * 1000)) == LONGEST


def test_bytes_that_a_damaged_file_puts_into_a_message_are_cut(tmp_path: Path) -> None:
    """The length of a name inside the archive is wrong: zipfile says the name, which is then half the file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name in (f"{array}.npy" for array in datasets.ARRAYS):
            array = io.BytesIO()
            np.save(array, np.zeros((4, 8, 8, 3), np.uint8))
            file.writestr(name, array.getvalue() * 20)
    content = bytearray(packed.getvalue())
    content[26:28] = (9_000).to_bytes(2, "little")  # of the first local header
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(LabError, match="cannot be read") as raised:
        datasets.npz(path)
    assert len(str(raised.value)) < 1000


HOSTILE = "bird\x1b[31m\x9b2J\u202eknurd\r"  # colour, an erased screen, turned letters, overwriting


def test_text_from_elsewhere_cannot_steer_a_terminal(here: Here) -> None:
    shown = r"bird\x1b[31m\x9b2J\u202eknurd\r"
    assert visible(HOSTILE) == shown == str(LabError(HOSTILE)) and visible("a\tb\nÄ") == "a\tb\nÄ"
    table = tables.to_text(pd.DataFrame({"method": [HOSTILE], "LA": [3.0]}))
    assert shown in table and "\x1b" not in table
    done = here("notebooks", "into\x1b[35m")  # said on the other stream
    assert done.code == 0 and r"into\x1b[35m" in done.out and "\x1b" not in done.out
    done = here("report", HOSTILE.replace("\r", ""))
    assert done.code == 2 and r"\x1b[31m\x9b2J\u202e" in done.err and "\x1b" not in done.err
