"""Whether memory grows while explorers are used, opened and closed, in a real JupyterLab with a real browser.

python tests/widgets/memory.py figures/records/timing/explorers_memory.json

Megabytes of the kernel (resident) and of the page's JavaScript after its garbage was collected: before and after
`CHANGES` changes of one explorer, and before and after `OPENED` explorers of two networks and 30 images were opened,
shown and closed one after the other. The page is also measured with as many plain ipywidgets (some 350 models, layouts
and styles counted, as an explorer of two networks has), of which JupyterLab does not give all memory back: what an
explorer leaves behind is to be held against that.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from latency import CHANGES, back_and_forth, conditions, heap, resident, slider, tell

sys.path.insert(0, str(Path(__file__).parents[2] / "notebooks"))
import live

OPENED, FIRST = 50, 5  # the first ones fill what is kept
PREPARED = """import gc
import dne_lab as lab
files = {name: f"../figures/checkpoints/{name.lower()}-digits-s0.safetensors" for name in ("DNE", "STA")}
models = {name: lab.open(file).model for name, file in files.items()}
images = lab.stream("digits").test_images(30)
explorer = None"""
SHOWN = "explorer = lab.explore(models, images)\nexplorer"
PLAIN = """import ipywidgets as widgets
from dne_lab.widgets.panel import close_all
row = lambda: widgets.HBox([widgets.HTML("text"), widgets.Dropdown(options=["a", "b"]), widgets.IntSlider()])
plain = widgets.Tab([widgets.VBox([row() for _ in range(6 + (tab == 0))]) for tab in range(5)])
plain"""
PLAIN_CLOSED = "close_all(plain)\nplain = None\n%reset -f out"
CLOSED = "explorer.close()\nexplorer = None\n%reset -f out\ngc.collect();"  # outputs that are remembered hold it too
RUN = """async (cell) => {
  const app = window.jupyterapp, content = app.shell.currentWidget.content;
  content.activeCellIndex = cell;
  await app.commands.execute("notebook:run-cell");
}"""


def notebook(place: Path) -> None:
    """A notebook with a cell that prepares, and two that show and close an explorer, and plain widgets."""
    cells = [
        {"cell_type": "code", "id": str(i), "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for i, source in enumerate((PREPARED, SHOWN, CLOSED, PLAIN, PLAIN_CLOSED))
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    place.write_text(
        json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})
    )


def measure(opened: int = OPENED, changes: int = CHANGES) -> dict[str, Any]:
    """All of it."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        root = live.laboratory(folder)
        notebook(root / "memory.ipynb")
        browser = playwright.chromium.launch(executable_path=live.browser_path(), args=list(live.QUIET))
        with live.serving("jupyterlab", root, folder / "state") as address:
            seen = live.Watched(browser, address)
            page = seen.page
            seen.run_notebook("memory.ipynb")
            found: dict[str, tuple[float, float]] = {}
            for number in range(FIRST + opened):
                if number == FIRST:
                    found["before explorers"] = resident(seen.server), heap(page)
                page.evaluate(RUN, 1)
                page.locator(".dne-bars:visible").first.wait_for(timeout=60_000)
                page.evaluate(RUN, 2)
            found["after explorers"] = resident(seen.server), heap(page)
            for number in range(FIRST + opened):
                if number == FIRST:
                    found["before plain widgets"] = resident(seen.server), heap(page)
                page.evaluate(RUN, 3)
                page.evaluate(RUN, 4)
            found["after plain widgets"] = resident(seen.server), heap(page)
            page.evaluate(RUN, 1)
            page.locator(".dne-bars:visible").first.wait_for(timeout=60_000)
            slider(page, "layer").focus()
            back_and_forth(seen, ".dne-bars", ("ArrowLeft", "ArrowRight"), 10)
            found["before changes"] = resident(seen.server), heap(page)
            back_and_forth(seen, ".dne-bars", ("ArrowLeft", "ArrowRight"), changes)
            found["after changes"] = resident(seen.server), heap(page)
            outside, complaints = list(seen.outside), list(seen.complaints)
        browser.close()
    return {
        "command": "python tests/widgets/memory.py",
        "what": f"megabytes of kernel and page; {opened} explorers opened and closed, {changes} changes of one",
        "memory_mb": {
            name: {"kernel": round(kernel, 1), "page": round(page, 1)} for name, (kernel, page) in found.items()
        },
        **conditions(outside, complaints),
    }


if __name__ == "__main__":
    tell(measure())
