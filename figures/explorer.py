"""Takes figures/explorer.png, the explorer of notebook 06 in a real JupyterLab, used by mouse and keyboard, and saves
the same explorer as figures/explorer.html, a page that needs no kernel.

``python figures/explorer.py`` needs JupyterLab, playwright and chromium; ``--page`` makes the page alone and needs none
of them. The picture is an animated PNG of a few states; where animation is not shown one sees the first.
"""

import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

FIGURES = Path(__file__).parent
sys.path.insert(0, str(FIGURES.parent / "notebooks"))
import live  # noqa: E402

MODELS = ("DNE", "STA", "IA")
PICTURES = 2  # of the sample photographs, in the page
NOTEBOOK = "06_task_attention_explorer.ipynb"
WIDTH, HEIGHT, COLOURS = 1280, 1400, 256  # of the window, which shows all of the explorer; of the palette
MILLISECONDS = 2500  # that a state is shown
HIGHEST = 800  # pixels of the picture: what is below them in one state would be white in all others


def states(page: Any) -> Iterator[None]:
    """Uses the explorer, and stops wherever a picture is to be taken."""
    patches = page.locator(".dne-patches:visible canvas")
    slider = '.widget-slider:visible:has(label:text-is("{}")) .noUi-handle'
    page.locator(slider.format("layer")).first.focus()
    page.keyboard.press("ArrowRight")
    patches.first.click(position={"x": 100, "y": 75})
    yield
    patches.first.click(position={"x": 60, "y": 140})
    yield
    page.get_by_role("tab", name="Spatial and joint").click()
    page.locator(".dne-shares:visible").nth(1).wait_for()
    patches.first.click(position={"x": 100, "y": 75})
    yield
    page.get_by_role("tab", name="Through time").click()
    page.locator(".dne-along:visible").first.wait_for(timeout=60_000)
    yield
    page.get_by_role("tab", name="Overview").click()
    sort = page.locator('.widget-dropdown:visible:has(label:text-is("sort")) select')
    sort.wait_for()
    sort.select_option(label="lowest entropy")
    yield
    page.get_by_role("tab", name="What if").click()
    page.locator(".dne-classes:visible").first.wait_for()
    page.locator('.widget-dropdown:visible:has(label:text-is("switch off")) select').select_option(index=2)
    yield


def taken(page: Any) -> list[Image.Image]:
    """The explorer in every state, in colours that they share."""
    shown = page.locator(".jupyter-widgets.widget-tab, .jupyter-widgets.jp-TabPanel").locator("visible=true").last
    found = []
    for _ in states(page):
        before, now = b"", shown.screenshot()
        while now != before:  # one forward pass and the drawing of its views
            page.wait_for_timeout(3000)
            before, now = now, shown.screenshot()
        found.append(Image.open(io.BytesIO(now)).convert("RGB"))
    width, height = (max(picture.size[side] for picture in found) for side in (0, 1))
    height = min(height, HIGHEST)
    sheet = Image.new("RGB", (width, height * len(found)), "white")
    for number, picture in enumerate(found):
        sheet.paste(picture.crop((0, 0, picture.width, min(picture.height, height))), (0, number * height))
    few = sheet.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return [few.crop((0, number * height, width, (number + 1) * height)) for number in range(len(found))]


def save_page() -> None:
    """figures/explorer.html: the explorer of notebook 06 as one file."""
    import dne_lab as lab
    from dne_lab.data.datasets import photographs

    folder = FIGURES / "checkpoints" / "cifar100-medium"
    runs = {name: lab.open(folder / f"{name.lower()}-s0.safetensors", progress=False) for name in MODELS}
    explorer: Any = lab.explore(runs, photographs(32)[:PICTURES], tab="overview")
    file = explorer.save(FIGURES / "explorer.html")
    print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    save_page()
    if "--page" in sys.argv[1:]:
        return
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        root, state = (Path(place) / name for name in ("lab", "state"))
        root.mkdir()
        browser = playwright.chromium.launch(executable_path=live.browser_path(), args=list(live.QUIET))
        with live.serving("jupyterlab", live.laboratory(root), state) as server:
            seen = live.Watched(browser, server, WIDTH)
            seen.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
            seen.run_notebook(NOTEBOOK)
            seen.page.locator(".dne-bars:visible").first.wait_for(timeout=60_000)
            seen.bring(".dne-bars")
            first, *others = taken(seen.page)
        browser.close()
    file = FIGURES / "explorer.png"
    first.save(file, save_all=True, append_images=others, duration=MILLISECONDS, loop=0, optimize=True)
    print(f"{file.name}: {len(others) + 1} states, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
