"""How long a change takes to be on the screen, and whether memory grows, in a real JupyterLab with a real browser.

python tests/widgets/latency.py figures/records/timing/explorers.json

A time runs from the key to the second frame after the page has changed. Memory is that of the kernel (resident) and of
the page's JavaScript after its garbage was collected, before and after `CHANGES` changes.
"""

import json
import os
import platform
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dne_lab.training.evaluation import code_version

sys.path.insert(0, str(Path(__file__).parents[2] / "notebooks"))
import live

CHANGES = 200
EACH = 20
LIMITS = {"what if, one image": 300.0}  # ms; 200 for all others


def slider(page: Any, name: str) -> Any:
    """The handle of the visible slider with this label."""
    return page.locator(f'.widget-slider:visible:has(label:text-is("{name}")) .noUi-handle').first


def back_and_forth(seen: live.Watched, selector: str, keys: tuple[str, str], count: int = EACH) -> list[float]:
    """Milliseconds of ``count`` changes by two keys in turn."""
    return [1000 * seen.seconds(selector, keys[i % 2]) for i in range(count)]


def resident(process: int) -> float:
    """MB of the kernels below a server."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:  # it has ended
            continue
        parent, size = (
            re.search(r"^PPid:\s+(\d+)", text, re.MULTILINE),
            re.search(r"^VmRSS:\s+(\d+)", text, re.MULTILINE),
        )
        if parent and size and int(parent[1]) == process:
            total += int(size[1]) / 1024
    return total


def heap(page: Any) -> float:
    """MB of the page's JavaScript that is still in use."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    return float(session.send("Runtime.getHeapUsage")["usedSize"]) / 1e6


def measure() -> dict[str, Any]:
    """All of it, on notebook 06."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        root = live.laboratory(folder)
        browser = playwright.chromium.launch(executable_path=live.browser_path(), args=list(live.QUIET))
        with live.serving("jupyterlab", root, folder / "state") as address:
            seen = live.Watched(browser, address)
            page = seen.page
            seen.run_notebook("06_task_attention_explorer.ipynb")
            page.locator(".dne-bars:visible").first.wait_for(timeout=60_000)
            seen.bring(".dne-bars")
            page.locator(".dne-patches:visible").first.focus()
            back_and_forth(seen, ".dne-bars", ("ArrowRight", "ArrowLeft"), 4)  # the first ones load and compile
            found["task attention, patch"] = back_and_forth(seen, ".dne-bars", ("ArrowRight", "ArrowLeft"))
            for control in ("layer", "task (expert)", "image"):
                slider(page, control).focus()
                keys = ("ArrowRight", "ArrowLeft") if control == "image" else ("ArrowLeft", "ArrowRight")
                found[f"task attention, {control}"] = back_and_forth(seen, ".dne-bars", keys)
            page.get_by_role("tab", name="Spatial and joint").click()
            page.locator(".dne-shares:visible").nth(1).wait_for()
            page.locator(".dne-patches:visible").first.focus()
            found["IA and STA, patch"] = back_and_forth(seen, ".dne-shares", ("ArrowRight", "ArrowLeft"))
            slider(page, "layer").focus()
            found["IA and STA, layer"] = back_and_forth(seen, ".dne-shares", ("ArrowLeft", "ArrowRight"))
            page.get_by_role("tab", name="What if").click()
            page.locator(".dne-classes:visible").first.wait_for()
            page.locator('.widget-dropdown:visible:has(label:text-is("switch off")) select').first.focus()
            found["what if, one image"] = back_and_forth(seen, ".dne-classes", ("ArrowDown", "ArrowUp"))
            page.get_by_role("tab", name="Task attention").click()
            seen.bring(".dne-bars")
            slider(page, "layer").focus()
            back_and_forth(seen, ".dne-bars", ("ArrowLeft", "ArrowRight"))
            before = resident(seen.server), heap(page)
            back_and_forth(seen, ".dne-bars", ("ArrowLeft", "ArrowRight"), CHANGES)
            after = resident(seen.server), heap(page)
            outside, complaints = list(seen.outside), list(seen.complaints)
        browser.close()
    return {
        "command": "python tests/widgets/latency.py",
        "what": "milliseconds from a key to the second frame after the page has changed; notebook 06, 64 patches",
        "milliseconds": {
            name: {
                "median": round(statistics.median(values), 1),
                "largest": round(max(values), 1),
                "limit": LIMITS.get(name, 200.0),
                "changes": len(values),
            }
            for name, values in found.items()
        },
        "memory_mb": {
            "changes": CHANGES,
            "kernel_before": round(before[0], 1),
            "kernel_after": round(after[0], 1),
            "page_before": round(before[1], 1),
            "page_after": round(after[1], 1),
        },
        "torch": torch.__version__,
        "threads": 1,
        **conditions(outside, complaints),
    }


def conditions(outside: list[str], complaints: list[str]) -> dict[str, Any]:
    """Under which something was measured: what the page asked of others and complained about, machine and code."""
    return {
        "outside_requests": outside,
        "console_errors": complaints,
        "cores": os.cpu_count(),
        "load_average_1_minute": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "code_version": code_version(),
    }


def tell(measured: dict[str, Any]) -> None:
    """Prints what was measured, and writes it to the file that the command names."""
    text = json.dumps(measured, indent=1)
    print(text)
    for file in [word for word in sys.argv[1:] if not word.startswith("--")]:
        Path(file).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    tell(measure())
