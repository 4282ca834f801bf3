"""A run that is followed while it trains, in a real JupyterLab at 1280 pixels."""

import json
from pathlib import Path
from typing import Any

import served
from pictures import CHANGE, THEMES, pale
from served import live
from test_browser import cells

browser = served.browser  # a fixture

START = """import dne_lab as lab
small = {"learn.epochs": 1, "tune.epochs": 1}
run = lab.start("dne", preset="digits", progress=False, **small)"""
WATCH = "run.watch()"
EXPLORE = "lab.explore(run, run.stream.test_images(3), tab='timeline')"
# Of every cell that trains: what the page has shown since, as often as it changed.
RECORD = """() => {
  window.dneSeen = [];
  const look = () => {
    const words = [...document.querySelectorAll(".jp-OutputArea-output [role=status], .widget-readout")]
      .filter((one) => one.offsetParent).map((one) => one.innerText).join("\\n");
    if (words !== window.dneSeen.at(-1)) window.dneSeen.push(words);
  };
  new MutationObserver(look).observe(document.querySelector(".jp-Notebook"),
    { subtree: true, childList: true, characterData: true });
  look();
}"""
RUN = """async (cell) => {
  const app = window.jupyterapp;
  app.shell.currentWidget.content.activeCellIndex = cell;
  await app.commands.execute("notebook:run-cell");
}"""


def test_a_run_is_followed_and_can_be_read(browser: Any, tmp_path: Path) -> None:
    root = tmp_path / "lab"
    root.mkdir()
    cells(root / "x.ipynb", START, WATCH, EXPLORE, "7")
    with live.serving("jupyterlab", root, tmp_path / "state") as server:
        seen = live.Watched(browser, server, width=1280)
        page = seen.page
        seen.run_notebook("x.ipynb")
        page.get_by_role("tab", name="Through time").wait_for(timeout=60_000)
        page.get_by_text("dne, seed 0: task 1 of 4").wait_for()
        page.evaluate(RECORD)
        page.evaluate(
            "() => { const shown = window.jupyterapp.shell.currentWidget.content;"
            f"shown.widgets[3].model.sharedModel.setSource({json.dumps('run.train()')}); }}"
        )
        page.evaluate(RUN, 3)
        page.get_by_text("dne, seed 0: finished").wait_for(timeout=60_000)
        page.get_by_text("after task 4: DNE predicts").wait_for(timeout=60_000)
        told = "\n".join(page.evaluate("() => window.dneSeen"))
        for task in range(1, 5):
            assert f"last epoch: 1 of stage learn in task {task}" in told, f"losses of task {task}"
        assert "now, in task 1: DNE predicts" in told and "after task 4" in told
        charts = page.locator(".jp-OutputArea-output svg[role=img]:visible")
        losses, accuracy = (charts.nth(i).bounding_box() for i in range(2))
        assert losses["y"] == accuracy["y"] and losses["x"] + losses["width"] <= accuracy["x"]  # on one screen
        assert charts.nth(1).locator("circle").count() == 4
        for theme in THEMES.values():
            page.evaluate(CHANGE, theme)
            page.evaluate(live.TWO_FRAMES)
            looked, found = pale(page)
            assert looked > 50 and found == [], theme
        assert seen.outside == [] and seen.complaints == []
        page.close()
