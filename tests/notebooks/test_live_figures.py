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
from served import live

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


# A figure as plotly makes it, which follows its place's width some time after the window's.
SLOW = """<div class="jp-OutputArea-output"><div class="js-plotly-plot" style="height: 100px">
<svg class="main-svg" style="height: 100px"></svg></div></div><script>{
const plot = document.querySelector(".js-plotly-plot"), drawing = plot.querySelector("svg");
plot._fullLayout = {height: 100};
const follow = () => { drawing.style.width = plot.getBoundingClientRect().width + "px"; };
follow();
addEventListener("resize", () => { if (LATE !== null) setTimeout(follow, LATE); });
}</script>"""


def test_a_figure_that_takes_its_size_late_is_waited_for_and_one_that_never_does_is_found(
    browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 600})
    page.set_content(SLOW.replace("LATE", "700"))
    (figure,) = live.at_rest(page, 1000)
    assert live.misfits([figure]) == [] and figure["drawn"] == figure["width"] < 1000
    page.set_viewport_size({"width": 1280, "height": 600})
    page.set_content(SLOW.replace("LATE", "null"))
    monkeypatch.setattr(live, "LATEST", 1.0)
    assert live.misfits(live.at_rest(page, 1000)) == ["figure 0: drawn in another size than its place"]
    page.close()


def test_what_does_not_fit_is_found() -> None:
    fits = {"area": 400, "left": 0, "width": 400, "drawn": 400, "height": 100, "layout": 100, "cut": []}
    wrong = [fits | {"width": 420, "drawn": 420}, fits | {"left": -5}, fits | {"drawn": 390}, fits | {"layout": 90}]
    assert live.misfits([fits, *wrong, fits | {"cut": ["axis | 3"]}]) == [
        "figure 1: wider than its cell (420 of 400 pixels)",
        "figure 2: wider than its cell (400 of 400 pixels)",
        "figure 3: drawn in another size than its place",
        "figure 4: drawn in another size than its place",
        "figure 5: cut: axis | 3",
    ]
