"""The explorers as they are seen in a real JupyterLab, light and dark, whether their letters can be read there, and how
far two such pictures are apart.

python tests/widgets/pictures.py           takes the committed pictures, in tests/widgets/seen, again
python tests/widgets/pictures.py FOLDER    takes them into another folder

Letters are the same on every machine: those of the font that comes with matplotlib. What is left of other versions of
Chromium, smoother edges or a line a pixel further down, is within what `apart` lets pass.
"""

import contextlib
import io
import json
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import many_runs
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from walk import SETTLED

sys.path.insert(0, str(Path(__file__).parents[2] / "notebooks"))
import live

SEEN = Path(__file__).parent / "seen"
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
WIDTH, HEIGHT = 1280, 1700  # pixels of the window, which shows all of every view
RUNS = 24
CELLS = (
    f"""import torch
import dne_lab as lab
from dne_lab.data.datasets import photographs
from dne_lab.data.stream import Batch
folder = {str(live.ROOT / "figures" / "checkpoints" / "cifar100-medium")!r}
photos = photographs(32)[:6]
files = {{name: f"{{folder}}/{{name.lower()}}-s0.safetensors" for name in ("DNE", "STA")}}
explorer = lab.explore(files, Batch(photos, torch.arange(len(photos)) % 3, torch.arange(len(photos))))
explorer""",
    "lab.explore_runs('runs')",
)
STYLE = """@font-face {{ font-family: seen; src: url(data:font/ttf;base64,{font}); }}
* {{ font-family: seen !important; transition: none !important; animation: none !important;
     caret-color: transparent !important; }}"""
REST = "() => { document.activeElement?.blur(); return document.fonts.ready.then(() => true); }"
CHANGE = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
RUN = """code => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code}).done
  .then(reply => reply.content.status)"""

# Letters of outputs whose contrast with what is behind them is below 4.5 to 1 (WCAG 2, 1.4.3); greyed out ones are not
# meant, nor the numbers in the cells of matrices, which stand on the colour of their cell.
PALE = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).slice(0, 3).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor, parts = numbers(colour);
      if (parts.length < 4 || parts[3] > 0.9) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  let looked = 0;
  for (const one of document.querySelectorAll(".jp-OutputArea-output *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.nodeValue.trim());
    if (!own || !one.getClientRects().length || one.closest("g:has(> rect) > text, .heatmap-label, [disabled], style"))
      continue;
    if (one.closest(".widget-inline-hbox")?.querySelector("[disabled]")) continue;
    looked += 1;
    const style = getComputedStyle(one), ink = one instanceof SVGElement ? style.fill : style.color;
    const [high, low] = [light(ink), light(behind(one))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)}: ${one.textContent.trim().slice(0, 40)} (${ink})`);
  }
  return [looked, found];
}"""

HALF, COLOURS = 2, 256  # committed pictures are half as wide and high, and have so many colours
BLUR = 3.0  # of the halves, in their pixels: what is left is where things are, and in which colours
NEAR = 2  # pixels of the halves that something may be moved by
LEVEL = 16  # of 255, by which a colour may be another one
TILE, MOST = 24, 40  # side of a square of the halves, and how many of its pixels may differ
HIGHER = 8  # pixels that a view may be higher or lower


@contextlib.contextmanager
def opened(browser: Any, folder: Path) -> Iterator[live.Watched]:
    """A page of JupyterLab with the explorer of two networks and that of some runs."""
    root = folder / "lab"
    root.mkdir()
    many_runs.make(root / "runs", RUNS)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [
        {"cell_type": "code", "id": str(i), "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for i, source in enumerate(CELLS)
    ]
    tree = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (root / "x.ipynb").write_text(json.dumps(tree))
    with live.serving("jupyterlab", root, folder / "state") as server:
        seen = live.Watched(browser, server, width=WIDTH)
        seen.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        seen.run_notebook("x.ipynb")
        font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        seen.page.add_style_tag(content=STYLE.format(font=b64encode(font.read_bytes()).decode()))
        seen.page.locator(".dne-bars:visible").first.wait_for(timeout=60_000)
        seen.page.locator(".dne-curves path.js-line").first.wait_for(timeout=60_000)
        yield seen
        seen.page.close()


def tabs(page: Any) -> Any:
    """The tabs of the explorer."""
    return page.locator(".jp-OutputArea-output [role=tab]")


def views(page: Any) -> Iterator[tuple[str, Any]]:
    """Brings every tab of the explorer on the screen, then runs one by one and grouped; name and place of each."""
    places = page.locator(".jp-OutputArea-output:has(.dne-explorer)")
    for tab in tabs(page).all():
        tab.click()
        yield tab.inner_text().lower().replace(" ", "-"), places.first
    group = page.get_by_role("checkbox", name="group by configuration")
    for name, grouped in (("runs", False), ("groups-of-runs", True)):
        group.set_checked(grouped)
        yield name, places.last


def taken(page: Any, themes: Sequence[str] = tuple(THEMES)) -> Iterator[tuple[str, Image.Image]]:
    """NAME-THEME and the picture of every view."""
    for theme in themes:
        page.evaluate(CHANGE, THEMES[theme])
        for name, place in views(page):
            yield f"{name}-{theme}", still(page, place)


def still(page: Any, place: Any) -> Image.Image:
    """The picture of an element, once it stays as it is and nothing is being computed."""
    before, now = b"", b"-"
    while now != before:
        page.wait_for_function(SETTLED, timeout=60_000)
        page.mouse.move(0, 0)
        page.evaluate(REST)
        before, now = now, place.screenshot()
        page.wait_for_timeout(100)
    return Image.open(io.BytesIO(now)).convert("RGB")


def pale(page: Any) -> tuple[int, list[str]]:
    """How many letters of outputs were looked at, and which are too pale."""
    looked, found = page.evaluate(PALE)
    return int(looked), list(found)


def halved(picture: Image.Image) -> Image.Image:
    """As it is committed."""
    small = picture.reduce(HALF)
    return small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=8, dither=Image.Dither.NONE)


def apart(committed: Image.Image, now: Image.Image) -> tuple[str, Image.Image]:
    """What is different between a committed picture and one just taken, in words, "" for nothing; and where, in white.

    Compared are both without their details, as `BLUR` leaves them: a pixel is different where nothing within `NEAR` of
    it has its colour, in either direction; a view is, where that holds for more than `MOST` of a square of `TILE`.
    """
    one, other = _coarse(committed.convert("RGB")), _coarse(now.reduce(HALF))
    high, wide = (min(sides) for sides in zip(one.shape[:2], other.shape[:2], strict=True))
    one_part, other_part = one[:high, :wide], other[:high, :wide]
    far = np.abs(one_part - other_part).max(-1)
    if (far > LEVEL).any():
        far = np.maximum(_nearest(one_part, other_part), _nearest(other_part, one_part))
    where = Image.fromarray(np.uint8(255) * (far > LEVEL).astype(np.uint8))
    sizes = [HALF * side for side in committed.size], list(now.size)
    if max(abs(a - b) for a, b in zip(*sizes, strict=True)) > HIGHER:
        return f"{sizes[1][0]} x {sizes[1][1]} pixels, not {sizes[0][0]} x {sizes[0][1]}", where
    sums = np.pad((far > LEVEL).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tiles = sums[TILE:, TILE:] - sums[:-TILE, TILE:] - sums[TILE:, :-TILE] + sums[:-TILE, :-TILE]
    y, x = np.unravel_index(tiles.argmax(), tiles.shape)
    if tiles[y, x] <= MOST:
        return "", where
    share = 100 * tiles[y, x] / TILE**2
    return f"{share:.0f}% of the square of {HALF * TILE} pixels at x = {HALF * x}, y = {HALF * y}", where


def _coarse(picture: Image.Image) -> NDArray[np.int16]:
    """(H, W, 3)"""
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(BLUR)), dtype=np.int16)


def _nearest(one: NDArray[np.int16], other: NDArray[np.int16]) -> NDArray[np.int16]:
    """(H, W): of every pixel the smallest difference to a pixel near it in the other picture."""
    high, wide = one.shape[:2]
    around = np.pad(other, ((NEAR, NEAR), (NEAR, NEAR), (0, 0)), mode="edge")
    steps = range(2 * NEAR + 1)
    moved = (np.abs(one - around[y : y + high, x : x + wide]).max(-1) for y in steps for x in steps)
    least = next(moved)
    for found in moved:
        np.minimum(least, found, out=least)
    return least


def main(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    before = {file.name for file in folder.glob("*.png")}
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=live.browser_path(), args=list(live.QUIET))
        with opened(browser, Path(place)) as seen:
            for name, picture in taken(seen.page):
                halved(picture).save(folder / f"{name}.png", optimize=True)
                before.discard(f"{name}.png")
        browser.close()
    for name in before:  # of views that are no more
        (folder / name).unlink()
    size = sum(file.stat().st_size for file in folder.glob("*.png"))
    print(f"{len(list(folder.glob('*.png')))} pictures, {size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else SEEN)
