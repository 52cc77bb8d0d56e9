// The page of one slide: the map, the heatmap over it, and the panel beside it.
/* global L */
import { sideBySide } from "./beside.js";
import { checkbox, chosenColours, chosenLook, fetched, field, make, modelName, number, order, percent, TEXTS } from "./common.js";
import { comparison } from "./compare.js";
import { colourWords, deepZoom, drawSquare, linkPlace, pixel0, scaleBar } from "./deep.js";
import { marksPanel } from "./marks.js";
import { addOutline, fetchMask, fetchTiles, heatLayer, highest, histogram, shade, tileFinder } from "./heat.js";
import { download, snapshot } from "./snapshot.js";
import { explanation } from "./why.js";

const T = TEXTS.overlay;
const found = (id) => document.getElementById(id);
const LISTED = 20;
const GRID_FROM_PX = 40; // side of a tile on the screen
const ANNOTATED = 0.5; // share of a tile from which on the annotation is its truth

const slide = await fetched(`data/${Number(new URLSearchParams(location.search).get("slide") ?? 0)}/slide.json`)
  .catch(() => null);
if (slide === null) {
  document.body.replaceChildren(make("p", { className: "notice" }, TEXTS.noSlide), make("a", { href: "index.html" }, TEXTS.back));
  throw new Error(TEXTS.noSlide);
}
const colours = await fetched("data/colours.json");

for (const [id, text] of Object.entries({ back: TEXTS.back, previous: TEXTS.previous, next: TEXTS.next, full: TEXTS.full, turn: TEXTS.turn, save: TEXTS.save.button, "panel-button": TEXTS.panel })) {
  found(id).textContent = text;
}
document.title = `${slide.slide_id}: specslide`;
found("title").textContent = slide.label === null ? slide.slide_id : `${slide.slide_id} (${slide.label})`;
found("notice").textContent = slide.notice;
found("map").setAttribute("aria-label", TEXTS.map);

const icc = chosenColours.read(slide.colours);
const view = deepZoom(found("map"), slide, icc);
const { map } = view;
const showWhole = linkPlace(view);
scaleBar(map, slide);
map.createPane("marks").style.zIndex = 460;

// What is shown of the heatmap, and how. `tiles` and `find` belong to the model and layer that are chosen.
const state = { model: null, layer: 0, tiles: null, find: null, pinned: null, threshold: 0 };
const predicted = slide.models.some((model) => model.sha256 !== null); // else what is laid over it are the tiles' columns
const heat = heatLayer(view, "first");
const tissue = L.layerGroup().addTo(map);
const grid = L.layerGroup().addTo(map);
const mark = L.layerGroup().addTo(map);
const renderer = L.canvas({ pane: "marks", padding: 0.3 });
const compared = slide.models.length > 1 ? comparison(view, heat.panes) : null;
const beside = sideBySide(view, found("beside"), icc, sayColours);

// ------------------------------------------------------------------------------------------------ the panel's parts

const controls = {
  show: checkbox(T.show, predicted), model: make("select"), layer: make("select"), colours: make("select"),
  opacity: make("input", { type: "range", min: 0, max: 100, value: 55 }),
  threshold: make("input", { type: "range", step: "any" }),
  at: make("input", { type: "number", step: "any" }),
  rising: checkbox(T.rising, true), above: checkbox(T.above, false), outline: checkbox(T.outline, true), grid: checkbox(T.grid, true),
  tissue: checkbox(T.tissue, false), srgb: checkbox(T.srgb, icc === "srgb"),
};
// What holds for the next slide too; the threshold is of the model, and whether the overlay is shown of the slide.
const lookInputs = { opacity: controls.opacity, colours: controls.colours,
  ...Object.fromEntries(["rising", "above", "outline", "grid"].map((name) => [name, controls[name].input])) };
const keepLook = () => chosenLook.write(Object.fromEntries(Object.entries(lookInputs)
  .map(([name, input]) => [name, input.type === "checkbox" ? input.checked : input.value])));
const colourNote = make("p", { className: "note", role: "status" });
const legend = make("canvas", { className: "legend", width: 256, height: 14 });
const ends = make("div", { className: "ends" });
const bars = make("canvas", { className: "histogram", width: 300, height: 70 });
const share = make("p", { className: "share", role: "status" });
const tileText = make("dl");
const tilePicture = make("canvas", { hidden: true, role: "img", "aria-label": TEXTS.tile.picture });
const tileTitle = make("p", { role: "status" }, TEXTS.tile.none);
const release = make("button", { type: "button", hidden: true }, TEXTS.tile.release);
const why = explanation(slide, tilePicture);
const listPlace = make("div");

function section(title, open, ...children) {
  return make("details", { open }, make("summary", {}, title), ...children);
}

function buildPanel() {
  const panel = found("panel");
  if (slide.pixels !== "slide") panel.append(make("p", { className: "note" }, TEXTS.pixels[slide.pixels]));
  const layers = [...(slide.mask ? [controls.tissue.label] : []), controls.srgb.label, colourNote, ...beside.elements];
  sayColours();
  if (!predicted) panel.append(make("p", {}, T.none));
  if (!slide.models.length) {
    panel.append(...layers);
    return;
  }
  controls.at.setAttribute("aria-label", T.threshold);
  controls.model.append(...slide.models.map((model) => make("option", { value: model.number }, modelName(model))));
  controls.colours.append(...Object.keys(colours).map((name) => make("option", { value: name }, name)));
  panel.append(
    section(T.title, true, controls.show.label,
      ...(compared === null ? [] : [field(T.model, controls.model), ...compared.elements]),
      field(T.layer, controls.layer), legend, ends, field(T.opacity, controls.opacity),
      field(T.threshold, controls.threshold, controls.at), share, bars,
      controls.above.label, controls.rising.label, controls.outline.label, controls.grid.label, field(T.colours, controls.colours), ...layers),
    section(TEXTS.tile.title, true, tileTitle, release, tilePicture, ...why.elements, tileText),
    section(TEXTS.lists.title, true, listPlace),
    ...(predicted ? [section(TEXTS.scores.title, true, make("dl", { id: "scores" }), make("p", { className: "hint", id: "limits" }))] : []));
}

// ------------------------------------------------------------------------------------------------- the heatmap itself

const model = () => slide.models[state.model];
const layer = () => model().layers[state.layer];
const look = () => ({
  colours: colours[controls.colours.value], span: layer().span, threshold: state.threshold,
  above: controls.above.input.checked, rising: controls.rising.input.checked,
  opacity: controls.show.input.checked ? controls.opacity.value / 100 : 0,
  outlined: controls.show.input.checked && controls.outline.input.checked,
});

async function chooseModel(index) {
  const tiles = await fetchTiles(slide.number, slide.models[index]);
  Object.assign(state, { model: index, tiles, find: tileFinder(tiles, slide.models[index]) });
  controls.layer.replaceChildren(...model().layers.map((one, at) => make("option", { value: at }, one.words)));
  if (predicted) showScores();
  await chooseLayer(0);
}

async function chooseLayer(index) {
  state.layer = index;
  if (!model().layers.length) return;
  await heat.show(model(), index);
  const [low, high] = layer().span;
  const at = layer().threshold ?? (low + high) / 2;
  Object.assign(controls.threshold, { min: low, max: high });
  setThreshold(at);
  showLists();
  showTile();
}

function redraw() {
  if (state.model === null || !model().layers.length) return;
  const how = look();
  heat.redraw(how);
  compared?.redraw(how);
  beside.redraw(how);
  drawLegend(how);
  drawHistogram(how);
  drawGrid();
}

function drawLegend(how) {
  const context = legend.getContext("2d");
  context.clearRect(0, 0, legend.width, legend.height);
  for (let x = 0; x < legend.width; x++) {
    const value = how.span[0] + (how.span[1] - how.span[0]) * x / (legend.width - 1);
    if (how.above && value < how.threshold) continue;
    context.fillStyle = shade(how, x / (legend.width - 1));
    context.fillRect(x, 0, 1, legend.height);
  }
  context.fillStyle = "#d55e00";
  context.fillRect(legend.width * (how.threshold - how.span[0]) / (how.span[1] - how.span[0]) - 1.5, 0, 3, legend.height);
  ends.replaceChildren(...how.span.map((value) => make("span", {}, number(value))));
}

function drawHistogram(how) {
  const [values, bins] = [state.tiles.values[state.layer], 60];
  const counts = histogram(values, how.span, bins);
  const context = bars.getContext("2d");
  const most = Math.max(...counts, 1);
  const width = bars.width / bins;
  context.clearRect(0, 0, bars.width, bars.height);
  counts.forEach((count, bin) => {
    const tall = count ? Math.max(2, bars.height * Math.sqrt(count / most)) : 0; // by the root, so that few are seen
    context.fillStyle = shade({ ...how, rising: false }, bin / (bins - 1));
    context.fillRect(bin * width, bars.height - tall, width - 1, tall);
  });
  context.fillStyle = "#d55e00";
  context.fillRect(bars.width * (how.threshold - how.span[0]) / (how.span[1] - how.span[0]) - 1, 0, 2, bars.height);
  const known = values.filter((value) => !Number.isNaN(value));
  share.textContent = T.share(known.filter((value) => value >= how.threshold).length, known.length) + rates(how.threshold);
  bars.setAttribute("role", "img");
  bars.setAttribute("aria-label", `${TEXTS.histogram}: ${share.textContent}`);
}

// How the tiles called at a threshold go with the annotation, where the positive class has one here.
function rates(threshold) {
  const truth = model().layers.findIndex((one) => one.name === `annotation/${model().positive}`);
  if (truth < 0 || layer().name !== `prob_${model().positive}`) return "";
  const [values, inside] = [state.tiles.values[state.layer], state.tiles.values[truth]];
  const rows = [...values.keys()].filter((row) => !Number.isNaN(values[row]));
  const part = (is, called) => {
    const of = rows.filter((row) => is(inside[row]));
    return of.length ? percent(of.filter((row) => (values[row] >= threshold) === called).length / of.length) : TEXTS.unknown;
  };
  return ` ${T.rates(part((share) => share >= ANNOTATED, true), part((share) => share === 0, false))}`;
}

async function drawTissue() {
  tissue.clearLayers();
  if (!controls.tissue.input.checked) return;
  const { edges, downsample } = await fetchMask(slide);
  addOutline(tissue, renderer, edges, downsample, ["#fff", "#0072b2"]);
}

const wantedColours = () => controls.srgb.input.checked ? "srgb" : "none";

function recolour() {
  chosenColours.write(wantedColours());
  view.recolour(wantedColours());
  beside.recolour(wantedColours());
  sayColours();
  if (state.pinned !== null) pin(state.pinned);
}

// The colours can be changed where one of the slides that are seen has both; of one that has not, which they are is said.
function sayColours() {
  controls.srgb.label.hidden = ![view, ...beside.views()].some((one) => one.slide.colours.both);
  colourNote.textContent = slide.colours.both ? "" : colourWords(slide, wantedColours());
}

// What is seen, with its scale bar and what it is, as a PNG.
function save() {
  const shown = state.model === null || !model().layers.length ? [] : [modelName(model()), layer().words, TEXTS.save.threshold(controls.at.value)];
  const words = [slide.slide_id, ...shown, colourWords(slide, wantedColours()), ...(compared?.words() ?? []), ...beside.words(), slide.notice];
  return download(snapshot([view, ...beside.views()], words.filter((text) => text !== "")), `${slide.slide_id}.png`);
}

// Outlines of the tiles that are seen, where they are large enough.
function drawGrid() {
  grid.clearLayers();
  const side = model()?.tile_px0;
  if (!side || !controls.grid.input.checked || side / pixel0(slide, map.getZoom()) < GRID_FROM_PX) return;
  const seen = map.getBounds();
  const squares = [];
  for (let row = 0; row < state.tiles.count; row++) {
    const [x, y] = [state.tiles.x0[row], state.tiles.y0[row]];
    if (x < seen.getEast() && x + side > seen.getWest() && y < seen.getNorth() && y + side > seen.getSouth()) {
      squares.push([[y, x], [y, x + side], [y + side, x + side], [y + side, x]]);
    }
  }
  grid.addLayer(L.polygon(squares.map((square) => [square]), { renderer, color: "#000", weight: 1, opacity: 0.35, fill: false, interactive: false }));
  mark.eachLayer((line) => line.bringToFront());
}

// ------------------------------------------------------------------------------------- tiles: cursor, pin, lists

// As QuPath counts: from the corner of what was scanned.
const place = (x, y) => TEXTS.tile.place(x - slide.qupath0[0], y - slide.qupath0[1]);
const placeOf = (row) => place(state.tiles.x0[row], state.tiles.y0[row]);

function describe(row) {
  const rows = model().layers.map((one, at) => [one.words, state.tiles.values[at][row]]);
  tileTitle.textContent = placeOf(row);
  tileText.replaceChildren(...rows.flatMap(([words, value]) => [make("dt", {}, words), make("dd", {}, Number.isNaN(value) ? TEXTS.unknown : number(value))]));
}

function showTile(row = state.pinned) {
  release.hidden = state.pinned === null;
  if (row === null) {
    tileTitle.textContent = TEXTS.tile.none;
    tileText.replaceChildren();
  } else describe(row);
}

async function pin(row) {
  state.pinned = row;
  mark.clearLayers();
  tilePicture.hidden = row === null;
  why.show(model(), null);
  showTile();
  if (row === null) return;
  const [x, y, side] = [state.tiles.x0[row], state.tiles.y0[row], model().tile_px0];
  for (const [color, weight] of [["#fff", 5], ["#d55e00", 3]]) {
    mark.addLayer(L.rectangle([[y, x], [y + side, x + side]], { renderer, color, weight, fill: false, interactive: false }));
  }
  await drawSquare(tilePicture, slide, x - side / 2, y - side / 2, 2 * side);
  const context = tilePicture.getContext("2d");
  const scale = tilePicture.width / (2 * side);
  context.lineWidth = Math.max(1, tilePicture.width / 256);
  context.strokeRect(side * scale / 2, side * scale / 2, side * scale, side * scale);
  const shown = model().layers.findIndex((one) => one.name === `prob_${model().positive}`);
  if (state.pinned === row) why.show(model(), row, state.tiles.values[shown]?.[row]);
}

function flyTo(row) {
  const [x, y, side] = [state.tiles.x0[row], state.tiles.y0[row], model().tile_px0];
  const bounds = L.latLngBounds([[y - 1.5 * side, x - 1.5 * side], [y + 2.5 * side, x + 2.5 * side]]);
  map.fitBounds(bounds, { animate: !matchMedia("(prefers-reduced-motion: reduce)").matches });
  pin(row);
}

function showLists() {
  const by = (name) => model().layers.findIndex((one) => one.name === name);
  const values = state.tiles.values;
  const unsure = by("entropy") >= 0 ? values[by("entropy")] : values[0].map((value) => -Math.abs(value - model().threshold));
  const lists = { highest: values[state.layer], ...(predicted ? { uncertain: unsure } : {}), ...(by("ood_ratio") >= 0 ? { unlike: values[by("ood_ratio")] } : {}) };
  listPlace.replaceChildren(...Object.entries(lists).map(([name, ranked]) => make("details", { open: name === "highest" },
    make("summary", {}, TEXTS.lists[name]),
    make("div", { className: "ranked" }, ...highest(ranked, LISTED).map((row, place) => {
      const text = `${place + 1}: ${number(Math.abs(ranked[row]))}`;
      const button = make("button", { type: "button", title: placeOf(row) }, text);
      button.addEventListener("click", () => flyTo(row));
      return button;
    })))));
}

function showScores() {
  const of = model();
  const rows = [[TEXTS.scores.threshold, of.threshold_text], ...(of.bag === null ? [] : [[TEXTS.scores.bag, number(of.bag)]]),
    ...of.scores.map(([name, value, words]) => [words, name.startsWith("fraction") ? percent(value) : number(value)])];
  found("scores").replaceChildren(...rows.flatMap(([words, value]) => [make("dt", {}, words), make("dd", {}, value)]));
  found("limits").textContent = of.limits.join(" ");
  found("warning").hidden = of.warning === null;
  found("warning").textContent = of.warning ?? "";
}

// ------------------------------------------------------------------------------------------------------ what is done

function step(by) {
  const slides = order.read([slide.number]);
  const next = slides[slides.indexOf(slide.number) + by];
  if (next !== undefined) location.assign(`slide.html?slide=${next}`);
}

function move(by) {
  if (state.model === null) return;
  const [low, high] = layer().span;
  setThreshold(Math.min(high, Math.max(low, state.threshold + by * (high - low))));
}

function setThreshold(value) {
  state.threshold = value;
  controls.threshold.value = value;
  controls.at.value = value === layer().threshold && state.layer === 0 ? model().threshold_text : +value.toPrecision(4);
  redraw();
}

function toggle(control) {
  control.input.checked = !control.input.checked;
  control.input.dispatchEvent(new Event("input"));
}

function togglePanel() {
  const open = document.body.classList.toggle("closed");
  found("panel-button").setAttribute("aria-expanded", String(!open));
  for (const one of [view, ...beside.views()]) one.map.invalidateSize();
}

const KEYS = {
  n: () => step(1), p: () => step(-1), 0: showWhole, f: () => found("full").click(),
  r: () => view.turn(1), s: save, t: () => { if (slide.mask) toggle(controls.tissue); }, o: () => toggle(controls.show), g: () => toggle(controls.grid), "[": () => move(-0.01), "]": () => move(0.01),
};

// The corners of the pinned tile; null where none is.
function pinnedTile() {
  if (state.pinned === null) return null;
  const [x, y, side] = [state.tiles.x0[state.pinned], state.tiles.y0[state.pinned], model().tile_px0];
  return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]];
}

const marks = await marksPanel(map, slide, renderer, pinnedTile);
buildPanel();
if (marks !== null) found("panel").append(marks.element);
found("panel").append(make("p", { className: "hint" }, TEXTS.keys));
const untouched = !location.hash;
map.invalidateSize({ pan: false }); // the panel has taken its place
if (untouched) showWhole();
found("turn").addEventListener("click", () => view.turn(1));
found("save").addEventListener("click", save);
controls.tissue.input.addEventListener("input", drawTissue);
controls.srgb.input.addEventListener("input", recolour);
found("previous").addEventListener("click", () => step(-1));
found("next").addEventListener("click", () => step(1));
found("panel-button").addEventListener("click", togglePanel);
found("full").addEventListener("click", () => document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen());
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea") || marks?.busy();
  if (typing || event.ctrlKey || event.altKey || event.metaKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});
map.on("mousemove", ({ latlng }) => {
  const [x, y] = [Math.floor(latlng.lng), Math.floor(latlng.lat)];
  found("where").textContent = place(x, y);
  if (state.find !== null && state.pinned === null) showTile(state.find(x, y));
});

if (slide.models.length) {
  controls.model.addEventListener("change", async () => { await pin(null); await chooseModel(Number(controls.model.value)); });
  controls.layer.addEventListener("change", () => chooseLayer(Number(controls.layer.value)));
  controls.threshold.addEventListener("input", () => setThreshold(Number(controls.threshold.value)));
  controls.at.addEventListener("change", () => setThreshold(Number(controls.at.value)));
  for (const [name, input] of Object.entries(lookInputs)) {
    input.addEventListener("input", () => { keepLook(); redraw(); });
    const kept = chosenLook.read()[name];
    if (kept !== undefined) input[input.type === "checkbox" ? "checked" : "value"] = kept;
  }
  controls.show.input.addEventListener("input", redraw);
  release.addEventListener("click", () => pin(null));
  map.on("click", ({ latlng }) => { if (!marks?.busy()) pin(state.find(latlng.lng, latlng.lat)); });
  map.on("moveend", drawGrid);
  await chooseModel(0);
}
document.body.dataset.ready = "yes";
if ((await fetched(`data/${slide.number}/check.json`)).same === false) {
  found("warning").append(make("p", {}, TEXTS.otherSlide));
  found("warning").hidden = false;
}
