"""The browser of the browser tests; the servers in front of it are `live`'s, beside the notebooks."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "notebooks"))
import live

REQUIRED = os.environ.get("DNE_LAB_BROWSER") == "required"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; where there is none its tests are skipped, or fail if one is required."""
    path = live.browser_path()
    if path is None and not REQUIRED:
        pytest.skip("no browser here: install chromium, or set DNE_LAB_BROWSER=required to fail instead")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(live.QUIET))
        yield opened
        opened.close()
