"""The widgets with JavaScript of their own: pictures in patches that can be clicked, buttons that download and copy.

Everything they need is in this file; the browser asks nobody else for anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray

# Keys pressed inside an explorer are the explorer's: JupyterLab would otherwise move between cells with the arrow keys.
# And sliders, which ipywidgets leaves without a name, have one for those who hear them.
KEYS = """
function nameSliders(output) {
  for (const slider of output.querySelectorAll(".widget-slider:not([data-dne-named])")) {
    const label = slider.querySelector("label"), readout = slider.querySelector(".widget-readout");
    if (!label || !slider.querySelector(".noUi-handle")) continue;
    slider.dataset.dneNamed = "yes";
    for (const handle of slider.querySelectorAll(".noUi-handle")) handle.setAttribute("aria-label", label.textContent);
    if (!readout || readout.contentEditable !== "true") continue;
    readout.setAttribute("role", "textbox");
    readout.setAttribute("aria-label", `${label.textContent}, as a number`);
  }
}
function keepKeys(el, tries = 100) {
  const output = el.closest(".jp-OutputArea-output");
  if (output) nameSliders(output);
  if (output && !output.dataset.dneKeys) {
    output.dataset.dneKeys = "kept";  // JupyterLab looks at the element that has the focus
    output.addEventListener("focusin", (event) => {
      event.target.dataset.lmSuppressShortcuts = "true";
      nameSliders(output);
    });
  }
  if (!output && tries) setTimeout(() => keepKeys(el, tries - 1), 100);
}
"""

PATCHES = """
function bytes(view) { return view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength); }

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "dne-patches";
  root.tabIndex = 0;
  root.setAttribute("role", "application");
  const row = document.createElement("div");
  row.className = "dne-row";
  const told = document.createElement("div");
  told.className = "dne-told";
  told.setAttribute("aria-live", "polite");
  root.append(row, told);
  el.append(root);
  keepKeys(el);
  let canvases = [];

  const scene = () => model.get("scene");
  const grid = () => scene().grid;
  const height = (panel) => panel.side * grid()[0] / grid()[1];
  const where = (patch) => (scene().names || [])[patch] ||
    `patch ${patch} (row ${Math.floor(patch / grid()[1])}, column ${patch % grid()[1]})`;

  function value(panel, patch) {
    const cells = grid()[0] * grid()[1];
    if (panel.words.length) return `: ${panel.words[patch]}`;
    if (panel.numbers < 0) return "";
    const all = new Float32Array(bytes(scene().numbers));
    const number = all[panel.numbers * cells + patch];
    if (number === undefined) return "";  // a patch of the next scene, which is on its way
    return Number.isNaN(number) ? "" : `: ${panel.unit} ${Number(number.toPrecision(3))}`;
  }

  function say(panel, patch) { told.textContent = `${panel.title}, ${where(patch)}${value(panel, patch)}`; }

  function rest() {
    const hint = model.get("hint");
    told.textContent = hint && scene().panels.length ? `chosen: ${where(model.get("patch"))}. ${hint}` : "";
  }

  function build() {
    row.replaceChildren();
    canvases = scene().panels.map((panel, place) => {
      const figure = document.createElement("figure");
      const canvas = document.createElement("canvas");
      const caption = document.createElement("figcaption");
      const enter = model.get("enter") ? document.createElement("button") : null;
      (enter || caption).textContent = panel.title;
      if (enter) {
        caption.append(enter);
        enter.addEventListener("click", () => model.send({ enter: place }));
      }
      figure.style.width = `${panel.side}px`;
      canvas.style.width = `${panel.side}px`;
      canvas.style.height = `${height(panel)}px`;
      figure.append(canvas, caption);
      row.append(figure);
      const patch = (event) => {
        const box = canvas.getBoundingClientRect(), [rows, columns] = grid();
        const y = Math.floor((event.clientY - box.top) / box.height * rows);
        const x = Math.floor((event.clientX - box.left) / box.width * columns);
        return Math.min(rows - 1, Math.max(0, y)) * columns + Math.min(columns - 1, Math.max(0, x));
      };
      canvas.addEventListener("pointermove", (event) => say(scene().panels[place], patch(event)));
      canvas.addEventListener("pointerleave", rest);
      canvas.addEventListener("click", (event) => {
        if (enter) model.send({ enter: place });
        else { choose(patch(event)); root.focus(); }
      });
      return canvas;
    });
  }

  function paint() {
    const pixels = new Uint8Array(bytes(scene().pixels)), [rows, columns] = grid(), chosen = model.get("patch");
    let at = 0;
    scene().panels.forEach((panel, place) => {
      const [high, wide] = panel.size, small = new OffscreenCanvas(wide, high);
      const data = new ImageData(wide, high);
      for (let i = 0; i < high * wide; i++) {
        data.data.set(pixels.subarray(at, at + 3), 4 * i);
        data.data[4 * i + 3] = 255;
        at += 3;
      }
      small.getContext("2d").putImageData(data, 0, 0);
      const canvas = canvases[place], ratio = window.devicePixelRatio || 1;
      const side = Math.round(panel.side * ratio), tall = Math.round(height(panel) * ratio);
      canvas.width = side;
      canvas.height = tall;
      const pen = canvas.getContext("2d"), dy = tall / rows, dx = side / columns;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(small, 0, 0, side, tall);
      if (panel.lines) {
        pen.fillStyle = "rgba(255, 255, 255, 0.35)";
        for (let i = 1; i < rows; i++) pen.fillRect(0, i * dy, side, ratio);
        for (let i = 1; i < columns; i++) pen.fillRect(i * dx, 0, ratio, tall);
      }
      if (panel.texts.length && dy > 11 * ratio) {
        pen.font = `${Math.round(Math.min(13 * ratio, dy * 0.6))}px sans-serif`;
        pen.textAlign = "center";
        pen.textBaseline = "middle";
        panel.texts.forEach((text, i) => {
          pen.fillStyle = panel.dark[i] ? "white" : "black";
          pen.fillText(text, (i % columns + 0.5) * dx, (Math.floor(i / columns) + 0.5) * dy);
        });
      }
      const x = (chosen % columns) * dx, y = Math.floor(chosen / columns) * dy;
      for (const [colour, width] of [["black", 4], ["white", 2]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = width * ratio;
        pen.strokeRect(x, y, dx, dy);
      }
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${panel.title}, ${where(chosen)}${value(panel, chosen)}`);
    });
    root.setAttribute("aria-label", model.get("label"));
  }

  let shape = "";
  function update() {
    const now = JSON.stringify([scene().grid, scene().panels.map((panel) => [panel.title, panel.side])]);
    if (now !== shape) { build(); shape = now; }
    paint();
    rest();
  }

  function choose(patch) {
    if (patch === model.get("patch")) return;
    model.set("patch", patch);
    model.save_changes();
  }

  root.addEventListener("keydown", (event) => {
    const [rows, columns] = grid(), patch = model.get("patch");
    const y = Math.floor(patch / columns), x = patch % columns;
    const to = {
      ArrowLeft: [y, x - 1], ArrowRight: [y, x + 1], ArrowUp: [y - 1, x], ArrowDown: [y + 1, x],
      Home: [y, 0], End: [y, columns - 1], PageUp: [0, x], PageDown: [rows - 1, x],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    event.stopPropagation();
    if (to[0] >= 0 && to[0] < rows && to[1] >= 0 && to[1] < columns) choose(to[0] * columns + to[1]);
  });

  for (const name of ["scene", "patch", "label", "hint"]) model.on(`change:${name}`, update);
  update();
  return () => { for (const name of ["scene", "patch", "label", "hint"]) model.off(`change:${name}`, update); };
}
export default { render };
"""

STYLE = """
.dne-patches { outline-offset: 2px; padding: 2px; border-radius: 2px; width: fit-content;
  min-width: 300px; max-width: 100%; }
.dne-patches:focus-visible { outline: 2px solid #0072b2; }
.dne-row { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-start; }
.dne-row figure { margin: 0; }
.dne-row canvas { display: block; cursor: crosshair; outline: 1px solid #757575; }
.dne-row figcaption { font-size: 12px; line-height: 16px; min-height: 16px; text-align: center;
  color: var(--jp-ui-font-color1, #222); }
.dne-row figcaption button { font: inherit; color: inherit; background: none; border: none; cursor: pointer;
  padding: 0; text-decoration: underline dotted; }
.dne-told { font-size: 12px; line-height: 18px; min-height: 36px; width: 0; min-width: 100%;
  color: var(--jp-ui-font-color1, #222); }
"""

# What only the live explorers need: a page that is saved has its own controls.
_LIVE = """
.dne-explorer :is(select, .noUi-handle):focus-visible { outline: 2px solid #0072b2 !important; outline-offset: 1px; }
@media (max-width: 700px) {  /* a telephone: charts and tables scroll, tabs stand below one another */
  .dne-explorer, .dne-explorer :is(.widget-box, .widget-html, .widget-html-content, .widget-dropdown, .widget-select,
    .lm-Panel, .lm-Widget) { min-width: 0; max-width: 100%; }
  .dne-explorer :is(.widget-html, .widget-html-content) { flex-shrink: 1; overflow-x: auto; }
  .dne-explorer .dne-patches { min-width: 0; }
  .dne-explorer .lm-TabBar, .dne-explorer .lm-TabBar-content { height: auto; max-height: none; flex-wrap: wrap; }
  .dne-explorer .lm-TabBar-tab { min-width: fit-content; }
}
.dne-busy { position: sticky; top: 0; z-index: 5; height: 0 !important; min-height: 0 !important; margin: 0 !important;
  overflow: visible !important; }
.dne-busy [role=status] { width: fit-content; padding: 2px 8px; border-left: 4px solid #0072b2;
  background: var(--jp-layout-color1, Canvas); color: var(--jp-ui-font-color1, CanvasText); }
/* letters of a chart stand on the page's own colour: no one colour is 4.5 to 1 on a light and on a dark one */
.dne-explorer .js-plotly-plot text:not(.heatmap-label text, .hoverlayer text) {
  fill: var(--jp-ui-font-color1, #222) !important; }
.dne-old { opacity: 0.45; cursor: progress; }
"""

_SAVE = """
function render({ model, el }) {
  const button = document.createElement("button");
  button.className = "jupyter-button widget-button lm-Widget";
  button.style.width = "auto";
  button.style.marginRight = "8px";
  button.textContent = model.get("text");
  button.addEventListener("click", () => model.send("save"));
  const write = (file, buffers) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([buffers[0]], { type: file.type }));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  model.on("msg:custom", write);
  el.append(button);
  keepKeys(el);
  return () => model.off("msg:custom", write);
}
export default { render };
"""

_COPY = """
function render({ model, el }) {
  const button = document.createElement("button"), text = document.createElement("textarea");
  const said = document.createElement("div");
  button.className = "jupyter-button widget-button lm-Widget";
  button.style.width = "auto";
  button.textContent = model.get("text");
  text.readOnly = true;
  text.className = "dne-code";
  text.setAttribute("aria-label", "code that makes this view again");
  text.style.cssText = "display: none; width: 720px; max-width: 100%; font: 12px monospace; margin-top: 6px";
  said.setAttribute("aria-live", "polite");
  button.addEventListener("click", () => model.send("code"));
  const show = async (message) => {
    text.value = message.code;
    text.rows = message.code.split("\\n").length;
    text.style.display = "block";
    text.focus();
    text.select();
    let copied = true;  // pages that are not served securely have no clipboard
    try { await navigator.clipboard.writeText(message.code); } catch (error) { copied = document.execCommand("copy"); }
    said.textContent = copied ? "Copied." : "Press Ctrl+C to copy it.";
  };
  model.on("msg:custom", show);
  el.append(button, text, said);
  keepKeys(el);
  return () => model.off("msg:custom", show);
}
export default { render };
"""


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture or map in a row of them.

    Attributes:
        title: what it is.
        pixels: (h, w, 3) uint8; a map has a pixel a patch.
        side: width on the screen; patches are square.
        numbers: a number per patch, told where the pointer is; None for a picture.
        unit: what the numbers are.
        lines: draw the patch grid.
        texts: a word in each patch.
        words: what is told where the pointer is in place of the number, one a patch.
    """

    title: str
    pixels: NDArray[np.uint8]
    side: int
    numbers: NDArray[Any] | None = None
    unit: str = "attention"
    lines: bool = False
    texts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def scene(panels: Sequence[Panel], grid: tuple[int, int], names: Sequence[str] = ()) -> dict[str, Any]:
    """What the browser draws: a description, all pixels one after the other, all numbers as float32.

    ``names``: what places are called where they are no patches.
    """
    listed: list[dict[str, Any]] = []
    numbers = [p.numbers for p in panels if p.numbers is not None]
    for panel in panels:
        place = -1 if panel.numbers is None else sum(p["numbers"] >= 0 for p in listed)
        dark = panel.pixels.reshape(-1, 3).mean(1) < 128 if panel.texts else ()
        texts = {"texts": list(panel.texts), "words": list(panel.words)}
        listed.append(
            {"title": panel.title, "side": panel.side, "size": list(panel.pixels.shape[:2]), "numbers": place}
            | {"unit": panel.unit, "lines": panel.lines, "dark": [bool(d) for d in dark]}
            | texts
        )
    pixels = b"".join(np.ascontiguousarray(panel.pixels, dtype=np.uint8).tobytes() for panel in panels)
    return {
        "grid": list(grid),
        "names": list(names),
        "panels": listed,
        "pixels": pixels,
        "numbers": b"".join(np.asarray(n, dtype="<f4").tobytes() for n in numbers),
    }


class Patches(anywidget.AnyWidget):
    """A row of pictures that share one patch grid; a click, or the arrow keys, choose the patch.

    ``scene`` is made by `scene`; ``patch`` counts from 0 row by row; ``label`` is what a screen reader says.
    """

    _esm = KEYS + PATCHES
    _css = STYLE + _LIVE
    scene = traitlets.Dict({"grid": [1, 1], "panels": [], "pixels": b"", "numbers": b""}).tag(sync=True)
    patch = traitlets.Int(0).tag(sync=True)
    label = traitlets.Unicode("pictures in patches").tag(sync=True)
    hint = traitlets.Unicode("Click a patch, or move it with the arrow keys.").tag(sync=True)
    enter = traitlets.Bool(False).tag(sync=True)

    def on_enter(self, entered: Callable[[int], None]) -> None:
        """From now on a click on a picture, or on its title, does not choose a patch: it calls ``entered``."""
        self.enter = True
        self.on_msg(lambda widget, content, buffers: entered(int(content["enter"])) if "enter" in content else None)


class Download(anywidget.AnyWidget):
    """A button that saves what ``make`` gives, (file name, MIME type, content), where the browser saves downloads."""

    _esm = KEYS + _SAVE
    _css = _LIVE
    text = traitlets.Unicode("save").tag(sync=True)

    def __init__(self, text: str, make: Callable[[], tuple[str, str, bytes]]) -> None:
        super().__init__(text=text)
        self._make = make
        self.on_msg(self._asked)

    def _asked(self, widget: Any, content: Any, buffers: Any) -> None:
        if content == "save":
            name, kind, data = self._make()
            self.send({"name": name, "type": kind}, [data])


class Copy(anywidget.AnyWidget):
    """A button that shows the text that ``make`` gives and copies it."""

    _esm = KEYS + _COPY
    text = traitlets.Unicode("copy as code").tag(sync=True)

    def __init__(self, make: Callable[[], str]) -> None:
        super().__init__()
        self._make = make
        self.on_msg(lambda widget, content, buffers: self.send({"code": self._make()}) if content == "code" else None)
