"""Every figure of the committed notebooks live in JupyterLab, in windows of 1280 and 1000 pixels.

python tests/notebooks/live_figures.py              all notebooks: executed in JupyterLab, one after the other
python tests/notebooks/live_figures.py 05 08        those whose names start so
python tests/notebooks/live_figures.py --pictures DIR   also takes pictures: light and dark, before and after a touch

All of them train and measure for as long as their first cells say, some ten minutes on two cores; the tests take those
that read records alone.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
import execute  # noqa: E402
import live  # noqa: E402

WIDTHS = (1280, 1000)  # pixels of the window
HIGH = 1000
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
DRAWN = """() => { const all = [...document.querySelectorAll(".jp-RenderedPlotly")];
  return all.every(one => one.querySelector(".main-svg")); }"""
# What is white, or nearly, and larger than a stamp, where the page is dark.
WHITE = """() => [...document.querySelectorAll(".jp-OutputArea-output, .jp-OutputArea-output *")].filter(one => {
  const box = one.getBoundingClientRect(), colour = getComputedStyle(one).backgroundColor.match(/[\\d.]+/g).map(Number);
  return box.width > 60 && box.height > 60 && (colour[3] ?? 1) > 0.5 && Math.min(...colour.slice(0, 3)) > 225;
}).map(one => `${one.tagName}.${one.getAttribute("class")} ${one.innerText?.slice(0, 40)}`)"""
# What reaches beyond its cell: of pictures, tables and widgets; what scrolls on its own is left out.
WIDE = """() => [...document.querySelectorAll(".jp-OutputArea-output")].flatMap(area => {
  const right = area.getBoundingClientRect().right;
  const scrolls = one => one !== area.parentElement &&
    (/auto|scroll/.test(getComputedStyle(one).overflowX) || scrolls(one.parentElement));
  return [...area.querySelectorAll("img, table, canvas, svg:not(.js-plotly-plot *), .widget-box, .jp-RenderedHTML")]
    .filter(one => one.tagName !== "TABLE" || !scrolls(one))
    .filter(one => one.getBoundingClientRect().width && one.getBoundingClientRect().right > right + 1)
    .map(one => `${one.tagName}.${one.getAttribute("class")} ${Math.round(one.getBoundingClientRect().right - right)}`);
})"""


def faults(page: Any, width: int) -> list[str]:
    """What is wrong with the figures of a notebook in a window of this width, before and under the mouse."""
    page.wait_for_function(DRAWN, timeout=60_000)
    before = live.at_rest(page, width, HIGH)
    found = [f"{width} pixels, {what}" for what in live.misfits(before)]
    for plot in page.locator(".js-plotly-plot").all():
        touch(page, plot)
    page.wait_for_timeout(300)
    after = page.evaluate(live.MEASURE)
    if [(one["width"], one["height"]) for one in after] != [(one["width"], one["height"]) for one in before]:
        found.append(f"{width} pixels: sizes change under the mouse")
    return found + [f"{width} pixels: beyond its cell: {what}" for what in page.evaluate(WIDE)]


def touch(page: Any, plot: Any) -> None:
    """Moves the mouse onto a figure."""
    plot.scroll_into_view_if_needed()
    if box := plot.bounding_box():
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def pictures(page: Any, name: str, folder: Path) -> list[str]:
    """Takes the whole notebook in both themes, before and after a touch; what is white in the dark one."""
    found = []
    folder.mkdir(parents=True, exist_ok=True)
    high = page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
    top = "() => { document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0; }"
    for theme, title in THEMES.items():
        change = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
        page.evaluate(change, title)
        page.set_viewport_size({"width": WIDTHS[0], "height": HIGH})
        page.wait_for_timeout(1500)
        if theme == "dark":
            found = [f"white in the dark theme: {what}" for what in page.evaluate(WHITE)]
        page.set_viewport_size({"width": WIDTHS[0], "height": min(high + 200, 16_000)})
        page.wait_for_timeout(1500)
        page.evaluate(top)
        notebook = page.locator(".jp-NotebookPanel-notebook").first
        notebook.screenshot(path=folder / f"{name}-{theme}.png")
        for plot in page.locator(".js-plotly-plot").all():
            touch(page, plot)
        page.evaluate(top)
        notebook.screenshot(path=folder / f"{name}-{theme}-touched.png")
    page.evaluate(change, THEMES["light"])
    return found


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[live.Served]:
    """JupyterLab on a copy of the notebooks."""
    root = folder / "lab"
    root.mkdir()
    with live.serving("jupyterlab", live.laboratory(root), folder / "state") as server:
        yield server


def look(server: live.Served, browser: Any, path: Path, to: Path | None = None) -> tuple[int, list[str]]:
    """Runs a notebook and measures it: the number of its live figures, and what is wrong."""
    watched = live.Watched(browser, server, width=WIDTHS[0])
    watched.run_notebook(path.name)
    found = [fault for width in WIDTHS for fault in faults(watched.page, width)]
    figures = watched.page.locator(".js-plotly-plot").count()
    if to is not None:
        found += pictures(watched.page, path.stem[:2], to)
    found += [f"asked {address}" for address in watched.outside]
    close = "async () => { await window.jupyterapp.serviceManager.sessions.shutdownAll(); }"
    watched.page.evaluate(close)
    watched.page.close()
    return figures, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="how names begin: 05 08; default: all")
    parser.add_argument("--pictures", type=Path, help="folder of the pictures")
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    wrong = False
    chosen = [path for path in execute.notebooks() if not asked.names or path.name.startswith(tuple(asked.names))]
    with tempfile.TemporaryDirectory() as place, jupyterlab(Path(place)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=live.browser_path(), args=list(live.QUIET))
        for path in chosen:
            figures, found = look(server, browser, path, asked.pictures)
            wrong = wrong or bool(found)
            print("\n  ".join([f"{path.name}: {figures} live figures, {len(found)} faults", *found]), flush=True)
        browser.close()
    sys.exit(wrong)


if __name__ == "__main__":
    main()
