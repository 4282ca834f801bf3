"""The figures of committed notebooks live in a real JupyterLab: of those that read records alone, and run in seconds.
`live_figures.py` measures all notebooks in the same way; they train for some minutes together."""

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_notebooks import execute

sys.path.insert(0, str(Path(__file__).parents[1] / "widgets"))
import live_figures
import served

RECORDS_ALONE = ("09", "10")

browser = served.browser  # a fixture


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Any:
    with live_figures.jupyterlab(tmp_path_factory.mktemp("notebooks")) as running:
        yield running


@pytest.mark.parametrize("number", RECORDS_ALONE)
def test_every_figure_fits_and_stays_as_it_is_under_the_mouse(number: str, server: Any, browser: Any) -> None:
    (path,) = [path for path in execute.notebooks() if path.name.startswith(number)]
    figures, found = live_figures.look(server, browser, path)
    assert figures >= 1 and found == []


def test_what_is_too_wide_or_white_is_found(server: Any, browser: Any, tmp_path: Path) -> None:
    """Of a page made by hand: one picture fits, one is wider than its place, one place is white."""
    page = browser.new_page(viewport={"width": 1000, "height": 600})
    area = '<div class="jp-OutputArea-output" style="width: 400px">{}</div>'
    fits, wide = (f'<div><canvas width="{width}" height="100"></canvas></div>' for width in (300, 500))
    white = '<p style="background: #fff; width: 200px; height: 100px">slab</p>'
    page.set_content('<body style="background: #111">' + "".join(map(area.format, (fits, wide, white))))
    assert page.evaluate(live_figures.WIDE) == ["CANVAS.null 100"]
    assert [said.split(" ")[0] for said in page.evaluate(live_figures.WHITE)] == ["P.null"]
    page.close()
