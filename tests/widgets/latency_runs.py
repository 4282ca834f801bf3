"""How long a change of the runs explorer takes to be on the screen, with 500 runs in the folder, in a real JupyterLab.

python tests/widgets/latency_runs.py figures/records/timing/runs_explorer.json

A time runs from the key to the second frame after the new lines (or words) stand on the page.
"""

import json
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


def measure() -> dict[str, Any]:
    """All of it."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        many_runs.make(folder / "runs", RUNS)
        (folder / "notebooks").mkdir()
        notebook(folder / "notebooks" / "runs.ipynb", folder / "runs")
        browser = playwright.chromium.launch(executable_path=live.browser_path(), args=list(live.QUIET))
        with live.serving("jupyterlab", folder / "notebooks", folder / "state") as address:
            seen = live.Watched(browser, address)
            page = seen.page
            seen.run_notebook("runs.ipynb")
            page.locator(LINES).first.wait_for(timeout=120_000)
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
        "command": "python tests/widgets/latency_runs.py",
        "what": f"milliseconds from a key to the second frame after the new lines are there; {RUNS} runs in the folder",
        "milliseconds": {
            name: {
                "median": round(statistics.median(values), 1),
                "largest": round(max(values), 1),
                "limit": LIMIT,
                "changes": len(values),
            }
            for name, values in found.items()
        },
        **conditions(outside, complaints),
    }


if __name__ == "__main__":
    tell(measure())
