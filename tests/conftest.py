"""Its place puts this folder on the import path: tests share `invented` and the others beside it."""

from collections import Counter
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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which files are handed to the two processes: what begins last should be short.

    First those that drive a browser, then the notebooks, few tests that take long; then those with the most tests.
    """
    count = Counter(item.path for item in items)
    browsers = {item.path for item in items if "browser" in getattr(item, "fixturenames", ())}
    notebooks = {path for path in count if path.suffix == ".ipynb"}
    items.sort(key=lambda i: (i.path not in browsers, i.path not in notebooks, -count[i.path], i.path))
