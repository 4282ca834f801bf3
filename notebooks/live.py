"""A real JupyterLab or Voilà on loopback, a real browser in front of it, and what is measured there: for the browser
tests, for figures/explorer.py and for tests/notebooks/live_figures.py."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
START = 180  # seconds that a server may take until it answers, on busy cores
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
# Waits until the notebook has a kernel that is idle, then runs all cells; done when they are.
RUN_ALL = """async () => {
  const app = window.jupyterapp;
  await app.restored;
  const ready = async () => {
    const panel = app.shell.currentWidget;
    if (!panel || !panel.sessionContext || !panel.context) return false;
    await panel.context.ready;
    await panel.sessionContext.ready;
    const kernel = panel.sessionContext.session?.kernel;
    return kernel && kernel.connectionStatus === "connected" && kernel.status === "idle";
  };
  const begun = performance.now();
  while (!await ready()) {
    if (performance.now() - begun > 180000) throw new Error("the notebook has no idle kernel after three minutes");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const late = new Promise((_, fail) => setTimeout(() => fail(new Error("the cells took over ten minutes")), 600000));
  await Promise.race([app.commands.execute("notebook:run-all-cells"), late]);
}"""

# Milliseconds from the next key to the second frame after the first change of an element that is seen.
UNTIL_PAINTED = """(selector) => {
  let start = 0;
  document.addEventListener("keydown", () => { start = performance.now(); }, { capture: true, once: true });
  const seen = [...document.querySelectorAll(selector)].find((element) => element.offsetParent);
  window.dnePainted = new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`nothing changed in ${selector}`)), 20000);
    const watching = new MutationObserver(() => {
      watching.disconnect();
      requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
    });
    watching.observe(seen, { subtree: true, childList: true, characterData: true, attributes: true });
  });
}"""


# What lies where in each cell's output, and what plotly holds.
MEASURE = """() => [...document.querySelectorAll(".js-plotly-plot")].map(plot => {
  const area = plot.closest(".jp-OutputArea-output").getBoundingClientRect();
  const own = plot.getBoundingClientRect();
  const cut = [];
  for (const part of plot.querySelectorAll("text, .legend .bg, .cbaxis, .xtick, .ytick")) {
    const box = part.getBoundingClientRect();
    if (box.width === 0 || getComputedStyle(part).opacity === "0" || part.closest(".modebar")) continue;
    if (box.left < own.left - 1 || box.right > own.right + 1 || box.top < own.top - 1 || box.bottom > own.bottom + 1)
      cut.push([part.textContent.slice(0, 60), box.left - own.left, box.right - own.right, box.top - own.top,
                box.bottom - own.bottom].join(" | "));
  }
  for (const title of plot.querySelectorAll(".infolayer .g-xtitle text, .infolayer .g-ytitle text"))
    for (const panel of plot.querySelectorAll(".nsewdrag")) {
      const [one, other] = [title.getBoundingClientRect(), panel.getBoundingClientRect()];
      if (one.width && Math.min(one.right, other.right) > Math.max(one.left, other.left) + 1 &&
          Math.min(one.bottom, other.bottom) > Math.max(one.top, other.top) + 1)
        cut.push("in the panel: " + title.textContent);
    }
  return {area: area.width, left: own.left - area.left, width: own.width, height: own.height,
          layout: plot._fullLayout.height, drawn: plot.querySelector(".main-svg").getBoundingClientRect().width, cut};
})"""
# Pictures: what a committed notebook shows before anything runs.
PICTURES = """() => [...document.querySelectorAll(".jp-RenderedImage img")].map(image => ({
  area: image.closest(".jp-OutputArea-output").getBoundingClientRect().width,
  width: image.getBoundingClientRect().width, height: image.getBoundingClientRect().height,
  natural: image.naturalWidth / image.naturalHeight}))"""


REST, LATEST = 0.2, 20.0  # seconds between two measurements, and until what is wrong stays wrong
TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def misfits(figures: list[dict[str, Any]]) -> list[str]:
    """What is wrong with figures as `MEASURE` measures them."""
    found = []
    for number, figure in enumerate(figures):
        if figure["left"] < -1 or figure["left"] + figure["width"] > figure["area"] + 1:
            found.append(f"figure {number}: wider than its cell ({figure['width']:.0f} of {figure['area']:.0f} pixels)")
        if abs(figure["drawn"] - figure["width"]) > 1 or figure["height"] != figure["layout"]:
            found.append(f"figure {number}: drawn in another size than its place")
        found += [f"figure {number}: cut: {cut}" for cut in figure["cut"]]
    return found


def at_rest(page: Any, width: int, height: int = 1000) -> list[dict[str, Any]]:
    """The figures of a window of this size, once they stay as they are and nothing is wrong, or as they are at last.

    JupyterLab and plotly take a window's new size over one after the other, some time after it has one.
    """
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate(TWO_FRAMES)  # whatever waits for the new size has heard of it
    before, until = None, time.monotonic() + LATEST
    while True:
        now: list[dict[str, Any]] = page.evaluate(MEASURE)
        if (now == before and not misfits(now)) or time.monotonic() > until:
            return now
        before = now
        page.wait_for_timeout(1000 * REST)


def browser_path() -> str | None:
    """The browser of this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def laboratory(folder: Path) -> Path:
    """A copy of the notebooks beside the repository's figures, so that saving a notebook changes nothing."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    (folder / "figures").symlink_to(ROOT / "figures")
    return folder / "notebooks"


@contextlib.contextmanager
def serving(kind: str, root: Path, state: Path) -> Iterator["Served"]:
    """``kind`` is jupyterlab or voila; it answers inside. Settings, caches and logs lie in ``state``."""
    port = _free_port()
    settings = state / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    tracker = state / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True, exist_ok=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}))  # cells out of sight are there too
    names = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "spaces", "IPYTHONDIR": "ipython"}
    names |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime"}
    environment = {**os.environ, **{name: str(state / place) for name, place in names.items()}}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment["OMP_NUM_THREADS"] = "1"
    words = {
        "jupyterlab": ["--allow-root", "--expose-app-in-browser", "--ip=127.0.0.1", "--ServerApp.port_retries=0",
                       f"--ServerApp.root_dir={root}", "--IdentityProvider.token="],
        "voila": [str(root), "--Voila.ip=127.0.0.1", "--port_retries=0"],
    }[kind]  # fmt: skip
    log = state / f"{kind}.log"
    with log.open("w") as out:
        command = [sys.executable, "-m", kind, "--no-browser", f"--port={port}", *words]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + START
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{kind} did not start:\n{log.read_text()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(address + "/", timeout=2):
                break
            time.sleep(0.25)
        yield Served(address, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Served(NamedTuple):
    """Where a server answers, and its process."""

    address: str
    process: int


class Watched:
    """A page, with what it asked of others and what its console complained about."""

    def __init__(self, browser: Any, server: Served, width: int = 1300) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 1000})
        self.address, self.server = server
        address = self.address
        self.outside: list[str] = []
        self.complaints: list[str] = []
        own = (address, address.replace("http", "ws"), "data:", "blob:")
        self.page.on("request", lambda asked: None if asked.url.startswith(own) else self.outside.append(asked.url))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def run_notebook(self, name: str) -> None:
        """Opens a notebook in JupyterLab and runs all its cells."""
        self.page.goto(f"{self.address}/lab/tree/{name}?reset")
        self.page.wait_for_selector(".jp-Notebook", timeout=60_000)
        self.page.evaluate(RUN_ALL)
        wrong = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"], '
        wrong += '.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]'
        assert self.page.locator(wrong).count() == 0, self.page.locator(wrong).first.inner_text()

    def reload(self) -> None:
        """Saves the notebook and loads the page again; the kernel goes on."""
        self.page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save'); }")
        self.page.reload()
        self.page.wait_for_selector(".jp-Notebook", timeout=60_000)

    def bring(self, selector: str) -> None:
        """Scrolls the first visible element of that kind into view."""
        self.page.locator(f"{selector}:visible").first.evaluate("element => element.scrollIntoView({block: 'center'})")

    def seconds(self, selector: str, key: str) -> float:
        """Seconds from a key's press until what ``selector`` finds has changed and is painted."""
        self.page.evaluate(UNTIL_PAINTED, selector)
        self.page.keyboard.press(key)
        return float(self.page.evaluate("() => window.dnePainted")) / 1000
