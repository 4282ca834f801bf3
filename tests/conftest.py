"""Its place puts this folder on the import path: tests share `invented` and the others beside it."""

import gc
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shell import Here

# Files of few tests that take more than five seconds each, in processes of their own or in training.
LONG = (
    "test_front_door",
    "test_run_command",
    "test_controlled_runs",
    "test_large_images",
    "test_on_ray",
    "test_processes",
    "test_malformed",
    "test_project",
    "test_notebook_use",
    "test_notebooks",
    "test_margins",
    "test_pages",
)


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

    First those that drive a browser, then the notebooks and `LONG`, few tests that take long; then those with the most
    tests.
    """
    count = Counter(item.path for item in items)
    browsers = {item.path for item in items if "browser" in getattr(item, "fixturenames", ())}
    few = {path for path in count if path.suffix == ".ipynb" or path.stem in LONG}
    items.sort(key=lambda i: (i.path not in browsers, i.path not in few, -count[i.path], i.path))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays to the end: no search for garbage, such as tests ask for, has to look at it again."""
    gc.collect()
    gc.freeze()
