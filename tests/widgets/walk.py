"""All controls of an explorer in a browser, one after the other: reached by Tab, changed by keys and by the mouse."""

import itertools
import re
import time
from dataclasses import dataclass, field
from typing import Any

ROW = 24  # pixels between controls that stand below one another
PATIENCE = 10_000  # ms that a change may take on busy cores
# What is seen of an explorer besides its controls: words, maps and charts.
SEEN = """() => {
  const root = document.querySelector("[data-walked]"), seen = (one) => one.offsetParent;
  const words = [...root.querySelectorAll(".widget-html-content")].filter(seen).map((one) => one.innerHTML);
  const maps = [...root.querySelectorAll("canvas")].filter(seen).map((one) => one.toDataURL());
  const charts = [...root.querySelectorAll(".js-plotly-plot path.js-line, .js-plotly-plot path.point")]
    .map((one) => one.getAttribute("d"));
  const code = [...root.querySelectorAll("textarea")].filter(seen).map((one) => one.value);
  const tab = [...root.querySelectorAll("[role=tab][aria-selected=true]")].map((one) => one.innerText);
  return JSON.stringify([words, maps, charts, code, tab]);
}"""
CHANGED = f"before => ({SEEN})() !== before"
SETTLED = """() => {
  const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
  return (!kernel || kernel.status === "idle") && !document.querySelector(".dne-busy [role=status]");
}"""
PLAYED = "() => !document.querySelector('[data-walked] .widget-toggle-button.mod-active')"
VALUE = "one => one.options ? [...one.selectedOptions].map(each => each.index) : null"
HIGHEST = "one => Number(one.closest('.widget-slider').querySelector('.noUi-handle').ariaValueMax)"
# Of a control that is greyed out what stands under the mouse, else null.
GREY = """one => {
  const widget = one.closest(".widget-inline-hbox");
  return one.disabled || one.closest("[disabled]") || (widget && widget.querySelector("[disabled]"))
    ? one.title || widget?.querySelector("label")?.title || "" : null;
}"""
# Why nothing changes, where the view says so.
REASON = """() => [...document.querySelectorAll("[data-walked] :is(.dne-said, .dne-message, .dne-told)")]
  .filter((one) => one.offsetParent).flatMap((one) => one.innerText.split("\\n"))
  .find((line) => /nothing is off|was not tried|no such|chosen twice/.test(line)) || "" """
FOCUSED = """() => {
  const one = document.activeElement;
  if (!one.closest("[data-walked]")) return null;
  one.dataset.stop ||= String(document.querySelectorAll("[data-stop]").length);
  const root = one.closest("[data-walked]").getBoundingClientRect();
  const box = one.getBoundingClientRect(), shown = box.width > 0 && box.height > 0;
  const widget = one.closest(".widget-inline-hbox, .lm-TabBar-tab");
  const ring = getComputedStyle(one);
  return { stop: one.dataset.stop, x: box.left - root.left, y: box.top - root.top, width: box.width, height: box.height,
    shown, css: one.className, tag: one.tagName, label: widget?.querySelector("label")?.innerText || "",
    why: one.title || widget?.querySelector("label")?.title || "",
    entered: Boolean(one.closest("figcaption")), now: Number(one.getAttribute("aria-valuenow")),
    low: Number(one.getAttribute("aria-valuemin")), high: Number(one.getAttribute("aria-valuemax")),
    ring: ring.outlineStyle !== "none" && ring.outlineWidth !== "0px" || ring.boxShadow !== "none" };
}"""


@dataclass
class Stop:
    """An element that the Tab key reaches, and what it did."""

    role: str
    name: str
    found: dict[str, Any]
    keys: str = ""  # what happened by keyboard: changed, nothing, downloaded NAME
    mouse: str = ""
    seconds: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether something changed, or the screen says why not."""
        return all(said not in ("nothing", "nothing: ") for said in (self.keys, self.mouse))

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, {self.role} {self.name!r}: keys {self.keys or '-'}, mouse {self.mouse or '-'}"


@dataclass
class Walk:
    """An explorer on a page of JupyterLab or Voilà.

    Args:
        page: of playwright.
        selector: of an element in the explorer.
    """

    page: Any
    selector: str
    stops: dict[str, list[Stop]] = field(default_factory=dict)

    def begin(self) -> None:
        """Marks the explorer, and opens the tree that assistive technology reads."""
        self.page.locator(self.selector).first.evaluate(
            """element => {
              let root = element;
              while (root.parentElement.closest(".widget-vbox, .widget-tab")) {
                root = root.parentElement.closest(".widget-vbox, .widget-tab");
              }
              root.dataset.walked = "yes";
            }"""
        )
        self.session = self.page.context.new_cdp_session(self.page)

    def seen(self) -> str:
        return str(self.page.evaluate(SEEN))

    def spoken(self, stop: str) -> tuple[str, str]:
        """Role and name of an element, as a screen reader has them."""
        which = {"expression": f"document.querySelector('[data-stop=\"{stop}\"]')"}
        found = self.session.send("Runtime.evaluate", which)
        tree = self.session.send(
            "Accessibility.getPartialAXTree", {"objectId": found["result"]["objectId"], "fetchRelatives": False}
        )
        node = tree["nodes"][0]
        return node.get("role", {}).get("value", ""), node.get("name", {}).get("value", "")

    def reach(self) -> list[Stop]:
        """Presses Tab from before the explorer to behind it; what has the focus on the way."""
        self.page.evaluate(
            """() => {
              for (const one of document.querySelectorAll("[data-stop]")) delete one.dataset.stop;
              const before = document.createElement("span");
              before.tabIndex = -1;
              before.id = "before-walk";
              document.getElementById("before-walk")?.remove();
              document.querySelector("[data-walked]").before(before);
              before.focus();
            }"""
        )
        reached: list[Stop] = []
        while True:
            self.page.keyboard.press("Tab")
            found = self.page.evaluate(FOCUSED)
            if found is None or any(found["stop"] == one.found["stop"] for one in reached):
                return reached
            reached.append(Stop(*self.spoken(found["stop"]), found))

    def check(self, stops: list[Stop]) -> None:
        """Role, name, order and focus ring of what was reached."""
        for stop in stops:
            assert stop.role not in ("", "generic", "none") and stop.name, f"without role or name: {stop} {stop.found}"
            assert stop.found["why"] != "null", f"shows null under the mouse: {stop}"
            assert stop.found["ring"], f"does not show that it has the focus: {stop}"
        rows = [(round(stop.found["y"] / ROW), stop.found["x"]) for stop in stops if not stop.found["entered"]]
        backwards = [pair for pair in itertools.pairwise(rows) if pair[1] < pair[0] and pair[1][1] < pair[0][1]]
        assert backwards == [], f"Tab goes back: {backwards}"

    def of(self, stop: Stop) -> Any:
        if stop.found["entered"]:  # titles are made anew when what they say changes
            return self.page.locator("[data-walked] figcaption button:visible").first
        return self.page.locator(f"[data-stop='{stop.found['stop']}']")

    def after(self, before: str, wait: int = PATIENCE) -> str:
        """changed or nothing, once the kernel is idle again."""
        try:
            self.page.wait_for_function(CHANGED, arg=before, timeout=wait)
            found = "changed"
        except Exception as error:
            if "Timeout" not in str(error):
                raise
            found = "nothing"
        self.page.wait_for_function(SETTLED, timeout=60_000)
        if found == "nothing":  # on busy cores it may have come since
            found = "changed" if self.page.evaluate(CHANGED, before) else f"nothing: {self.page.evaluate(REASON)}"
        return found

    def use(self, stop: Stop) -> None:
        """Changes a control by keys and, back again, by the mouse; greyed out ones are asked why they are."""
        why = self.of(stop).evaluate(GREY)
        if why is not None:
            stop.keys = stop.mouse = f"nothing: {why}"
            return
        began = time.monotonic()
        before = self.of(stop).evaluate(VALUE)
        stop.keys = self.by_keys(stop)
        if stop.name == "play":  # else it moves what the next controls are tried on
            self.page.wait_for_function(PLAYED, timeout=60_000)
        again = stop.found["entered"] or stop.name.startswith(("save", "copy", "play"))
        if not again:  # else once more would tell nothing new: what they do is the same
            stop.mouse = self.by_mouse(stop, before)
        stop.seconds = time.monotonic() - began

    def by_keys(self, stop: Stop) -> str:
        self.page.wait_for_function(SETTLED, timeout=60_000)  # what another control has set may still be on its way
        one, before = self.of(stop), self.seen()
        one.focus()
        if stop.role == "slider":
            now, high = one.get_attribute("aria-valuenow"), one.get_attribute("aria-valuemax")
            keys = ["ArrowLeft" if now == high else "ArrowRight"]  # as they are now: others may have moved them
        elif stop.role in ("combobox", "listbox"):
            last = one.evaluate("one => one.selectedIndex === one.options.length - 1")
            keys = ["ArrowUp" if last else "ArrowDown"]
        elif stop.role == "application":
            keys = ["End" if self.left(one) else "Home"]
        elif stop.role in ("button", "tab"):
            return self.pressed(stop, lambda: self.page.keyboard.press("Enter"))
        elif stop.role == "textbox":
            now, high = int(one.inner_text()), int(one.evaluate(HIGHEST))
            keys = ["Control+a", *str(now - 1 if now == high else now + 1), "Enter"]
        else:
            keys = ["Space"]
        for key in keys:
            self.page.keyboard.press(key)
        return self.after(before)

    def by_mouse(self, stop: Stop, value: Any) -> str:
        """Of a choice one of its options, as the list that a browser opens gives it."""
        one, before = self.of(stop), self.seen()
        if stop.role == "slider":
            track = one.locator("xpath=ancestor::*[contains(@class, 'noUi-target')]")
            box, found = track.bounding_box(), stop.found
            place = (found["now"] - found["low"]) / (found["high"] - found["low"])
            track.click(position={"x": min(max(1, place * box["width"]), box["width"] - 1), "y": box["height"] / 2})
        elif stop.role in ("combobox", "listbox"):
            one.select_option(index=value)
        elif stop.role == "application":  # a patch to the side of the one that the keys went to
            canvas = one.locator("canvas").last
            box = canvas.bounding_box()
            canvas.click(position={"x": box["width"] - 4 if self.left(one) else 4, "y": box["height"] - 4})
        elif stop.role in ("button", "tab"):
            return self.pressed(stop, one.click)
        elif stop.role == "textbox":
            return "typed into"
        else:
            one.click()
        return self.after(before)

    def left(self, one: Any) -> bool:
        """Whether the chosen patch, or connection, is in the first column."""
        return bool(
            one.locator("canvas").first.evaluate("one => /column 0\\)|without expert 1\\b/.test(one.ariaLabel)")
        )

    def pressed(self, stop: Stop, press: Any) -> str:
        """Presses a button: what it downloads, or whether something changed."""
        before = self.seen()
        if stop.name.startswith("save"):
            with self.page.expect_download(timeout=10_000) as saved:
                press()
            return f"downloaded {saved.value.suggested_filename}"
        press()
        return self.after(before)


def logged(page: Any) -> int:
    """What JupyterLab has in its log: errors of widgets are shown nowhere else."""
    found = page.locator("#jp-main-statusbar [title*='log entries'], #jp-main-statusbar [title*='new message']")
    return sum(int(re.sub(r"\D", "", text) or 0) for text in found.all_inner_texts())
