"""Its place puts this folder on the import path: tests share `invented` and the others beside it."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shell import Here


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Here":
    """Commands in this process and in the test's own folder, without bars of progress."""
    from shell import Here

    from dne_lab.training import progress

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_has_bars", lambda: False)
    return Here(capsys, monkeypatch)
