"""How long a change of the runs explorer takes to be on the screen, with 500 runs, in a real JupyterLab or Voilà.

python tests/widgets/latency_runs.py              in JupyterLab
python tests/widgets/latency_runs.py --voila      in Voilà
python tests/widgets/latency_runs.py FILE.json    what is printed also goes there

A time runs from the key to the second frame after the new lines (or words) stand on the page. On busy cores look at the
CPU milliseconds of the kernel instead, which others do not lengthen as much.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import many_runs
from latency import conditions, tell

sys.path.insert(0, str(Path(__file__).parents[2] / "notebooks"))
import live

RUNS, EACH, LIMIT = 500, 20, 300.0
CELL = "import dne_lab as lab\nexplorer = lab.explore_runs({folder!r})\nexplorer"

# The page is looked at in every frame: plotly takes the old lines away before it draws the new ones.
UNTIL_DRAWN = """(selector) => {
  let start = 0;
  // of lines the path of the first one, of words the text: what costs little to look at
  const state = () => {
    const found = document.querySelector(selector);
    return found && (found.getAttribute("d") || found.textContent);
  };
  const before = state();
  document.addEventListener("keydown", () => { start = performance.now(); }, { capture: true, once: true });
  window.dneDrawn = new Promise((resolve, reject) => {
    const late = performance.now() + 20000;
    const look = () => {
      const now = state();
      if (start && now && now !== before)
        requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
      else if (performance.now() > late) reject(new Error(`nothing changed in ${selector}`));
      else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
}"""
LINES = ".dne-curves path.js-line"


def notebook(place: Path, folder: Path) -> None:
    """A notebook that opens the explorer of a folder."""
    cell = {"cell_type": "code", "id": "one", "metadata": {}, "execution_count": None, "outputs": []}
    cell["source"] = CELL.format(folder=str(folder))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    tree = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    place.write_text(json.dumps(tree))


def taken(page: Any, selector: str, key: str) -> float:
    """Milliseconds of one change."""
    page.evaluate(UNTIL_DRAWN, selector)
    page.keyboard.press(key)
    return float(page.evaluate("() => window.dneDrawn"))


def in_turn(page: Any, selector: str, keys: tuple[str, str], count: int = EACH) -> list[float]:
    """Milliseconds of ``count`` changes by two keys in turn, after two that are not counted."""
    return [taken(page, selector, keys[i % 2]) for i in range(count + 2)][2:]


def filtered(page: Any, count: int = EACH) -> list[float]:
    """Milliseconds from Enter on, of filters that fit some hundred runs or a few."""
    words = ("dne", "ia", "sta finished", "foster -seed=3")  # none has a run of the one before
    field = page.get_by_role("textbox", name="filter")
    times = []
    for number in range(count + 2):
        field.fill(words[number % len(words)])
        times.append(taken(page, LINES, "Enter"))
    field.fill("")
    taken(page, ".dne-count", "Enter")
    return times[2:]


def spent(process: int) -> float:
    """CPU milliseconds of the kernels below a server."""
    total = 0.0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parts = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(parts[1]) == process:
            total += 1000 * (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Times(dict[str, list[float]]):
    """Milliseconds by what was changed, and beside them the CPU milliseconds of the kernel for one change."""

    def __init__(self, server: int) -> None:
        super().__init__()
        self.server, self.before = server, spent(server)
        self.kernel: dict[str, float] = {}

    def __setitem__(self, name: str, values: list[float]) -> None:
        super().__setitem__(name, values)
        now = spent(self.server)
        self.kernel[name], self.before = round((now - self.before) / (len(values) + 2), 1), now


def opened(browser: Any, address: live.Served, kind: str) -> live.Watched:
    """The page with the explorer."""
    seen = live.Watched(browser, address)
    if kind == "voila":
        seen.page.goto(address.address, timeout=120_000)
    else:
        seen.run_notebook("runs.ipynb")
    seen.page.locator(LINES).first.wait_for(timeout=120_000)
    return seen


def measure(kind: str = "jupyterlab") -> dict[str, Any]:
    """All of it."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        many_runs.make(folder / "runs", RUNS)
        (folder / "notebooks").mkdir()
        notebook(folder / "notebooks" / "runs.ipynb", folder / "runs")
        browser = playwright.chromium.launch(executable_path=live.browser_path(), args=list(live.QUIET))
        place = folder / "notebooks" / ("runs.ipynb" if kind == "voila" else "")
        with live.serving(kind, place, folder / "state") as address:
            seen = opened(browser, address, kind)
            page, found = seen.page, Times(address.process)
            listed, tick = page.get_by_role("listbox", name="runs"), page.get_by_role("checkbox", name="group by")
            listed.select_option(index=0)
            listed.focus()
            found["one run, chosen from the list"] = in_turn(page, LINES, ("ArrowDown", "ArrowUp"))
            found["filter"] = filtered(page)
            tick.focus()
            found["group by configuration"] = in_turn(page, LINES, ("Space", "Space"))
            tick.set_checked(True)
            page.locator(".dne-difference:visible").wait_for()
            found["filter, grouped"] = filtered(page)
            page.get_by_role("combobox", name="difference of").focus()
            found["paired difference"] = in_turn(page, ".dne-difference", ("ArrowDown", "ArrowUp"))
            page.get_by_role("combobox", name="beside it").focus()
            found["losses or cost"] = in_turn(page, LINES, ("ArrowDown", "ArrowUp"))
            page.get_by_role("combobox", name="details of").focus()
            found["run of the details"] = in_turn(page, ".dne-confusion", ("ArrowDown", "ArrowUp"))
            outside, complaints = list(seen.outside), list(seen.complaints)
        browser.close()
    return {
        "command": f"python tests/widgets/latency_runs.py{' --voila' * (kind == 'voila')}",
        "what": f"milliseconds from a key to the second frame after the new lines are there; {RUNS} runs in the folder",
        "milliseconds": {
            name: {
                "median": round(statistics.median(values), 1),
                "largest": round(max(values), 1),
                "limit": LIMIT,
                "changes": len(values),
                "kernel_cpu": found.kernel[name],
            }
            for name, values in found.items()
        },
        **conditions(outside, complaints),
    }


if __name__ == "__main__":
    tell(measure("voila" if "--voila" in sys.argv[1:] else "jupyterlab"))
