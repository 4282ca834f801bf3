"""The page of a saved explorer: its HTML, style and JavaScript; the maps are drawn by the code of the widgets."""

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<div id="controls"></div>
<div id="said" role="status"></div>
<div id="view"></div>
<noscript>This page needs JavaScript to draw its maps.</noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""

CSS = """
:root { color-scheme: light dark; --jp-ui-font-color1: CanvasText; }
body { font: 14px/1.4 system-ui, sans-serif; margin: 12px auto; padding: 0 12px; max-width: 1000px; }
h1 { font-size: 17px; font-weight: 600; margin: 4px 0 10px; }
#controls { display: flex; flex-wrap: wrap; gap: 6px 14px; margin-bottom: 8px; }
#controls label { display: inline-flex; align-items: center; gap: 6px; }
#controls output { min-width: 2ch; font-variant-numeric: tabular-nums; }
#controls input[type=range] { width: 110px; }
#said { margin: 4px 0 10px; }
.dne-patches { min-width: 0; margin-bottom: 10px; }
.side { display: flex; flex-wrap: wrap; gap: 6px 24px; align-items: flex-start; }
table { border-collapse: collapse; font-size: 12px; }
caption { text-align: left; padding-bottom: 4px; }
th, td { padding: 2px 8px 2px 0; text-align: right; font-variant-numeric: tabular-nums; font-weight: normal; }
th:first-child { text-align: left; }
.bar { position: relative; width: 110px; height: 12px; background: rgba(127, 127, 127, 0.18); }
.bar span { position: absolute; left: 0; top: 0; height: 12px; }
.bar i { position: absolute; top: -2px; height: 16px; width: 0; border-left: 2px solid CanvasText; }
.scale { display: inline-block; width: 160px; height: 12px; vertical-align: middle; }
.words { font-size: 12px; margin: 6px 0; }
"""

PAGE = """
const data = JSON.parse(document.getElementById("data").textContent);
const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
async function unpack(text) {
  const stream = new Blob([decode(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const tables = { plain: decode(data.tables.plain), diverging: decode(data.tables.diverging) };
const unpacked = new Map();
function once(text) {
  if (!unpacked.has(text)) {
    if (unpacked.size > 24) unpacked.delete(unpacked.keys().next().value);
    unpacked.set(text, unpack(text));
  }
  return unpacked.get(text);
}

// What the widget's code asks of a model.
class Held {
  constructor(values, sent) { Object.assign(this, { values, sent, waiting: {} }); }
  get(name) { return this.values[name]; }
  set(name, value) {
    this.values[name] = value;
    for (const call of this.waiting[`change:${name}`] || []) call();
  }
  save_changes() { this.sent({ patch: this.values.patch }); }
  send(content) { this.sent(content); }
  on(name, call) { (this.waiting[name] ||= []).push(call); }
  off(name, call) { this.waiting[name] = (this.waiting[name] || []).filter((one) => one !== call); }
}
function patches(label, hint, enter, sent) {
  const el = document.createElement("div");
  const empty = { grid: [1, 1], panels: [], pixels: new Uint8Array(), numbers: new Uint8Array() };
  const model = new Held({ scene: empty, patch: state.patch, label, hint, enter }, sent);
  render({ model, el });
  return { el, model };
}

const state = { view: "one", colours: data.relative, sort: "by layer and head", ...data.start };

function scene(panels, grid) {
  const length = panels.reduce((sum, one) => sum + one.pixels.length, 0);
  const pixels = new Uint8Array(length), numbers = [];
  let at = 0;
  const listed = panels.map((one) => {
    pixels.set(one.pixels, at);
    at += one.pixels.length;
    const place = one.numbers ? numbers.push(one.numbers) - 1 : -1;
    return { title: one.title, side: one.side, size: one.size, numbers: place, unit: one.unit || "attention",
      lines: Boolean(one.lines), texts: one.texts || [], words: one.words || [], dark: one.dark || [] };
  });
  const all = new Float32Array(numbers.length * grid[0] * grid[1]);
  numbers.forEach((row, place) => all.set(row, place * grid[0] * grid[1]));
  return { grid, panels: listed, pixels, numbers: new Uint8Array(all.buffer) };
}

// One scale for all maps on the screen.
function scaleOf(rows, uniform) {
  let low = Infinity, high = 0;
  for (const row of rows) for (const value of row) { low = Math.min(low, value); high = Math.max(high, value); }
  if (state.colours === data.relative) {
    const end = Math.min(Math.max(2, Math.ceil(Math.max(high / uniform, uniform / Math.max(low, 1e-12)))), data.widest);
    const span = Math.log2(end);
    const place = (value) => (Math.log2(Math.max(value / uniform, 1 / end)) + span) / (2 * span);
    return { table: tables.diverging, place, low: (1 / end).toPrecision(2), high: String(end), middle: "1 = uniform" };
  }
  if (state.colours === data.scales[0]) { low = 0; high = Math.max(high, 2 * uniform); }
  const place = (value) => (value - low) / Math.max(high - low, 1e-12);
  return { table: tables.plain, place, low: low.toPrecision(2), high: high.toPrecision(2),
    middle: `uniform ${uniform.toPrecision(2)}` };
}
function coloured(row, scale) {
  const pixels = new Uint8Array(3 * row.length);
  row.forEach((value, i) => {
    const at = 3 * Math.round(255 * Math.min(1, Math.max(0, scale.place(value))));
    pixels.set(scale.table.subarray(at, at + 3), 3 * i);
  });
  return pixels;
}
function legend(scale, label) {
  const box = document.createElement("div"), bar = document.createElement("span"), stops = [];
  box.className = "words";
  for (let i = 0; i <= 16; i++) {
    const at = 3 * Math.round(255 * i / 16);
    stops.push(`rgb(${scale.table.subarray(at, at + 3).join(",")})`);
  }
  bar.className = "scale";
  bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
  box.append(`${label}, ${state.colours}: ${scale.low} `, bar, ` ${scale.high} (${scale.middle})`);
  return box;
}

// One head of one image: its map, effective keys, groups.
function reader(bytes, part, heads, cells) {
  const found = [];
  let at = 0;
  heads.forEach((head, number) => {
    const count = cells * head.columns, start = at, top = part.most[number];
    at += count;
    const shorts = (length) => {
      const view = new DataView(bytes.buffer, bytes.byteOffset + at, 2 * length), values = [];
      for (let i = 0; i < length; i++) values.push(view.getUint16(2 * i, true) / 65535);
      at += 2 * length;
      return values;
    };
    const spread = shorts(cells).map((share) => share * head.keys);
    const groups = head.kind === "patches" ? shorts(4 * cells) : null;
    const row = (patch) => Array.from(bytes.subarray(start + patch * head.columns, start + (patch + 1) * head.columns),
      (byte) => top * (byte / 255) ** 2);
    const column = (key) => Array.from({ length: cells }, (_, patch) => row(patch)[key]);
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const same = groups ? mean(Array.from({ length: cells }, (_, p) => groups[4 * p] + groups[4 * p + 1])) : 0;
    found.push({ ...head, row, column, spread, groups, effective: mean(spread), same });
  });
  return found;
}
function mostRead(head, cells) {
  const experts = [...new Set(head.owners)], best = [];
  for (let patch = 0; patch < cells; patch++) {
    const row = head.row(patch);
    const means = experts.map((expert) => {
      const own = row.filter((_, key) => head.owners[key] === expert);
      return own.reduce((sum, value) => sum + value, 0) / own.length;
    });
    best.push(experts[means.indexOf(Math.max(...means))]);
  }
  return best;
}
function palette(experts) {
  return Uint8Array.from(experts.flatMap((number) => data.palette[(number - 1) % data.palette.length]));
}
function rowsOf(title, head, lines) {
  const table = document.createElement("table"), caption = table.createCaption();
  caption.textContent = title;
  const first = table.createTHead().insertRow();
  for (const text of ["", "", ...head]) first.insertCell().textContent = text;
  for (const { name, share, uniform, colour, cells } of lines) {
    const line = table.insertRow(), header = document.createElement("th");
    header.scope = "row";
    header.textContent = name;
    line.append(header);
    const [bar, fill, mark] = ["div", "span", "i"].map((tag) => document.createElement(tag));
    bar.className = "bar";
    fill.style.width = `${100 * share}%`;
    fill.style.background = colour;
    fill.style.boxShadow = "inset 0 0 0 1px #757575";  // pale colours stand out by it
    mark.style.left = `${100 * uniform}%`;
    bar.append(fill, mark);
    line.insertCell().append(bar);
    for (const text of cells) line.insertCell().textContent = text;
  }
  return table;
}

const view = document.getElementById("view"), controls = document.getElementById("controls");
const chosen = (content) => {
  if ("patch" in content && content.patch !== state.patch) { state.patch = content.patch; draw(); }
};
const main = patches("The image and the head's map; arrow keys choose the patch",
  "Click a patch, or move it with the arrow keys.", false, chosen);
const maps = patches("Attention, head by head; arrow keys choose the patch", "", false, chosen);
const every = patches("All heads; a click enters one", "", true, (content) => {
  if ("enter" in content) {
    const head = shown[content.enter];
    Object.assign(state, { view: "one", layer: head.layer, expert: head.expert, head: head.head });
    draw();
  } else chosen(content);
});
const [beside, below, top_] = [0, 1, 2].map(() => document.createElement("div"));
let shown = [], drawing = 0;
top_.className = "side";
top_.append(main.el, beside);
view.append(top_, maps.el, every.el, below);

const fields = {};
function choice(name, label) {
  const box = document.createElement("label"), select = document.createElement("select");
  box.append(label, select);
  select.addEventListener("change", () => { state[name] = select.value; draw(); });
  controls.append(box);
  fields[name] = (options) => {
    const known = Object.fromEntries(options);
    if (!(state[name] in known)) state[name] = options[0][0];
    const words = JSON.stringify(options);
    if (select.dataset.words !== words) {
      select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
      select.dataset.words = words;
    }
    select.value = state[name];
    box.style.display = options.length > 1 ? "" : "none";
  };
}
function range(name, label) {
  const box = document.createElement("label"), input = document.createElement("input");
  const told = document.createElement("output");
  input.type = "range";
  box.append(label, input, told);
  input.addEventListener("input", () => { state[name] = JSON.parse(input.dataset.values)[input.value]; draw(); });
  controls.append(box);
  fields[name] = (values) => {
    const near = values.reduce((a, b) => (Math.abs(b - state[name]) < Math.abs(a - state[name]) ? b : a));
    state[name] = near;
    input.dataset.values = JSON.stringify(values);
    Object.assign(input, { min: 0, max: values.length - 1, value: values.indexOf(near), disabled: values.length < 2 });
    told.textContent = near;
  };
}
choice("model", "model");
range("image", "image");
choice("view", "show");
choice("kind", "attention");
range("layer", "layer");
range("expert", "task (expert)");
range("head", "query head");
choice("sort", "sort");
choice("colours", "colours");

const distinct = (values) => [...new Set(values)].sort((a, b) => a - b);
const orders = {
  "by layer and head": () => 0,
  "lowest entropy": (one) => Math.log(one.effective) / Math.log(Math.max(one.keys, 2)),
  "most same patch": (one) => -one.same,
};

async function draw() {
  const turn = ++drawing;
  fields.model(Object.keys(data.models).map((name) => [name, name]));
  fields.image(data.images.map((_, number) => number));
  const model = data.models[state.model], grid = model.grid, cells = grid[0] * grid[1];
  const kinds = Object.entries(data.kinds).filter(([kind]) => model.heads.some((head) => head.kind === kind));
  fields.kind(kinds);
  fields.view([["one", "one head"], ["all", "all heads"]]);
  const ofKind = model.heads.filter((head) => head.kind === state.kind);
  fields.layer(distinct(ofKind.map((head) => head.layer)));
  fields.expert(distinct(ofKind.filter((one) => one.layer === state.layer).map((head) => head.expert)));
  const there = ofKind.filter((head) => head.layer === state.layer && head.expert === state.expert);
  fields.head(distinct(there.map((head) => head.head)));
  const byExpert = state.view === "all" && state.kind !== "patches";  // a palette, no scale
  fields.colours((byExpert ? [state.colours] : data.scales).map((name) => [name, name]));
  const names = Object.keys(orders).filter((name) => state.kind === "patches" || name !== "most same patch");
  fields.sort((state.view === "all" ? names : names.slice(0, 1)).map((name) => [name, name]));
  state.patch = Math.min(state.patch, cells - 1);

  const part = model.images[state.image], picture = data.images[state.image];
  const [bytes, pixels] = await Promise.all([once(part.packed), once(picture.pixels)]);
  if (turn !== drawing) return;
  const heads = reader(bytes, part, model.heads, cells).filter((head) => head.kind === state.kind);
  const said = [data.moment, part.said, part.said.includes("truth") ? "" : data.captions[state.image]];
  document.getElementById("said").textContent = said.filter(Boolean).join("; ");
  const own = { title: "picture", pixels, size: picture.size, side: 170, lines: true };
  const one = heads.find((h) => h.layer === state.layer && h.expert === state.expert && h.head === state.head);
  beside.replaceChildren();
  below.replaceChildren();
  maps.el.style.display = every.el.style.display = "none";
  if (state.view === "all") all(heads, grid, cells, own);
  else if (state.kind === "patches") looks(one, grid, cells, own);
  else reads(one, grid, cells, own);
  for (const each of [main, maps, every]) each.model.set("patch", state.patch);
  document.body.dataset.drawn = String(turn);
}

const place = ([, columns]) =>
  `patch ${state.patch} (row ${Math.floor(state.patch / columns)}, column ${state.patch % columns})`;

function looks(head, grid, cells, own) {
  const row = head.row(state.patch), scale = scaleOf([row], 1 / cells), colours = coloured(row, scale);
  const [high, wide] = own.size, over = new Uint8Array(3 * high * wide);
  for (let y = 0; y < high; y++) for (let x = 0; x < wide; x++) {
    const at = 3 * (y * wide + x), grey = (own.pixels[at] + own.pixels[at + 1] + own.pixels[at + 2]) / 3;
    const cell = 3 * (Math.floor(y * grid[0] / high) * grid[1] + Math.floor(x * grid[1] / wide));
    for (let c = 0; c < 3; c++) over[at + c] = Math.round(0.45 * grey + 0.55 * colours[cell + c]);
  }
  const all = head.joint ? "all heads that are read" : "the head";
  const laid = { title: `${all}, over it`, pixels: over, size: own.size, side: 170, numbers: row };
  const map = { title: all, pixels: colours, size: grid, side: 170, numbers: row };
  main.model.set("scene", scene([own, laid, map], grid));
  const keys = [1, head.read - 1, cells - 1, (cells - 1) * (head.read - 1)];
  const total = keys.reduce((sum, count) => sum + count, 0);
  const spanned = (i) => {
    const all = Array.from({ length: cells }, (_, patch) => 100 * head.groups[4 * patch + i]);
    const [low, high] = [Math.min(...all), Math.max(...all)].map((one) => one.toFixed(2));
    return `${(all.reduce((sum, one) => sum + one, 0) / cells).toFixed(2)} (${low} to ${high})`;
  };
  const lines = data.groups.map(([name, words, colour], i) => ({ name, words, colour, count: keys[i], span: spanned(i),
    share: head.groups[4 * state.patch + i] })).filter((line) => line.count > 0).map((line) => ({ ...line,
    uniform: line.count / total,
    cells: [`${(100 * line.share).toFixed(2)}`, `${(100 * line.count / total).toFixed(2)}`, line.span, line.words] }));
  const heads = ["share %", "uniform %", `all ${cells} patches`, ""];
  beside.append(rowsOf(`attention of ${place(grid)} by group`, heads, lines));
  const spread = document.createElement("div");
  spread.className = "words";
  spread.textContent = `effective keys: ${head.spread[state.patch].toPrecision(4)} of ${head.keys}; ` +
    `mean over the image ${head.effective.toPrecision(4)}`;
  const exact = document.createElement("div");
  exact.className = "words";
  exact.textContent = data.exact;
  beside.append(spread, exact, legend(scale, "attention to a patch"));
}

function reads(head, grid, cells, own) {
  const best = mostRead(head, cells), row = head.row(state.patch), uniform = 1 / head.columns;
  const pixels = palette(best), dark = best.map((_, i) => pixels[3 * i] + pixels[3 * i + 1] + pixels[3 * i + 2] < 384);
  main.model.set("scene", scene([own, { title: "expert read most, for each head", pixels, size: grid, side: 170,
    numbers: best, unit: "expert", texts: best.map(String), dark }], grid));
  const columns = head.owners.map((_, key) => head.column(key)), scale = scaleOf(columns, uniform);
  const several = (expert) => head.owners.filter((one) => one === expert).length > 1;
  const seen = {};
  const names = head.owners.map((expert) => {
    const number = seen[expert] = (seen[expert] ?? -1) + 1;
    return `expert ${expert}` + (several(expert) ? ` head ${number}` : "");
  });
  maps.el.style.display = "";
  maps.model.set("scene", scene(columns.map((values, key) => ({ title: names[key], pixels: coloured(values, scale),
    size: grid, side: 78, numbers: values })), grid));
  const top = Math.max(...row, 2 * uniform);
  const lines = names.map((name, key) => ({ name, share: row[key] / top, uniform: uniform / top,
    colour: `rgb(${coloured([row[key]], scale).join(",")})`, cells: [row[key].toPrecision(3)] }));
  beside.append(rowsOf(`what ${place(grid)} of expert ${head.expert} reads (line: uniform ${uniform.toPrecision(3)})`,
    ["attention"], lines));
  below.append(legend(scale, "attention to a head"));
}

function all(heads, grid, cells, own) {
  const key = orders[state.sort], sorted = heads.map((head, place) => [key(head), place, head]);
  sorted.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  shown = sorted.map(([, , head]) => head);
  main.model.set("scene", scene([own], grid));
  every.el.style.display = "";
  const title = (head) =>
    `L${head.layer} E${head.expert} H${head.head}: ${head.effective.toPrecision(3)} of ${head.keys}`;
  const words = document.createElement("div");
  words.className = "words";
  if (state.kind === "patches") {
    const rows = shown.map((head) => head.row(state.patch)), scale = scaleOf(rows, 1 / cells);
    every.model.set("scene", scene(shown.map((head, i) => ({ title: title(head), pixels: coloured(rows[i], scale),
      size: grid, side: 92, numbers: rows[i] })), grid));
    words.textContent = `Each map: where ${place(grid)} looks. `;
    beside.append(legend(scale, "attention to a patch"));
  } else {
    const best = shown.map((head) => mostRead(head, cells));
    every.model.set("scene", scene(shown.map((head, i) => ({ title: title(head), pixels: palette(best[i]), size: grid,
      side: 92, numbers: best[i], unit: "expert" })), grid));
    words.textContent = "Each map: the expert read most at each patch. ";
  }
  words.textContent += "L layer, E expert, H head: effective keys of all keys. A click enters the head.";
  beside.append(words);
}

draw();
"""
