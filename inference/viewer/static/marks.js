// What readers draw: polygons, rectangles and points with a class and a note, saved at once.
/* global L */
import { fetched, field, make, TEXTS } from "./common.js";

const T = TEXTS.marks;
const OWN = "#d55e00";
const OTHERS = "#0072b2";

// The part of the panel where marks are drawn, or null where there is no folder for them.
export async function marksPanel(map, slide, renderer, pinnedTile) {
  if (!slide.drawable) return null;
  const kept = await fetched(`marks/${slide.number}`);
  const state = { marks: [], tag: "", drawing: null, corners: [] };
  const [drawn, growing] = [L.layerGroup().addTo(map), L.layerGroup().addTo(map)];
  const reader = make("input", { autocomplete: "off", maxLength: 40, value: localStorage.getItem("reader") ?? "" });
  const names = [...new Set(slide.models.flatMap((model) => model.classes)), "artefact"];
  const name = make("input", { autocomplete: "off", maxLength: 100, value: names[0] ?? "" });
  name.setAttribute("list", "classes");
  const note = make("textarea", { rows: 2, maxLength: 2000 });
  const said = make("p", { role: "status" });
  const list = make("ul", { className: "marks" });

  const key = () => reader.value.trim().toLowerCase();
  const ready = () => /^[a-z0-9][a-z0-9_-]{0,39}$/.test(key()) && name.value.trim() !== "";

  function ownMarks() {
    const own = kept.readers[key()] ?? { marks: [], tag: "" };
    Object.assign(state, { marks: own.marks, tag: own.tag });
    localStorage.setItem("reader", key());
    draw();
  }

  async function save(marks) {
    const answer = await fetch(`marks/${slide.number}/${key()}`, {
      method: "PUT", credentials: "same-origin", body: JSON.stringify({ marks, tag: state.tag }),
      headers: { "content-type": "application/json", "x-specslide-token": kept.token },
    }).catch((error) => ({ ok: false, text: () => error.message }));
    if (!answer.ok) {
      said.textContent = T.failed(await answer.text());
      return;
    }
    kept.readers[key()] = await answer.json();
    ownMarks();
    said.textContent = T.saved;
  }

  function add(kind, corners) {
    const [width, height] = slide.size0;
    const inside = corners.map(([x, y]) => [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)].map((at) => Math.round(at * 10) / 10));
    const mark = { id: newId(), kind, points: inside, name: name.value.trim(), note: note.value.trim(), time: new Date().toISOString() };
    note.value = "";
    return save([...state.marks, mark]);
  }

  function draw() {
    drawn.clearLayers();
    const all = Object.entries(kept.readers).flatMap(([by, { marks }]) => marks.map((mark) => ({ mark, by, own: by === key() })));
    list.replaceChildren(...all.map(({ mark, by, own }) => {
      const shape = shapeOf(mark, own ? OWN : OTHERS, renderer);
      shape.bindTooltip(make("span", {}, `${mark.name}${mark.note ? `: ${mark.note}` : ""} (${T.of(by)})`));
      drawn.addLayer(shape);
      const go = make("button", { type: "button", title: mark.note }, `${mark.name} (${T.kinds[mark.kind]})${own ? "" : `, ${T.of(by)}`}`);
      go.addEventListener("click", () => mark.kind === "Point" ? map.setView([mark.points[0][1], mark.points[0][0]], slide.zooms - 1) : map.fitBounds(shape.getBounds().pad(0.5)));
      const remove = make("button", { type: "button" }, T.remove);
      remove.addEventListener("click", () => save(state.marks.filter((one) => one.id !== mark.id)));
      return make("li", {}, go, ...(own ? [remove] : []));
    }));
    if (!all.length) list.append(make("li", {}, T.empty));
  }

  function begin(kind) {
    if (!ready()) { said.textContent = T.needs; return; }
    Object.assign(state, { drawing: kind, corners: [] });
    said.textContent = T.drawing[kind];
    document.body.classList.add("drawing");
    document.getElementById("cross").hidden = false;
    map.doubleClickZoom.disable();
    map.getContainer().focus();
  }

  function end() {
    state.drawing = null;
    growing.clearLayers();
    document.body.classList.remove("drawing");
    document.getElementById("cross").hidden = true;
    setTimeout(() => map.doubleClickZoom.enable());
  }

  function corner({ lat, lng }) {
    const last = state.corners.at(-1);
    if (!last || last[0] !== lng || last[1] !== lat) state.corners.push([lng, lat]); // a double click is one corner
    const [kind, corners] = [state.drawing, state.corners];
    growing.clearLayers();
    growing.addLayer(L.polyline(corners.map(([x, y]) => [y, x]), { renderer, color: OWN, weight: 3, interactive: false }));
    for (const [x, y] of corners) growing.addLayer(L.circleMarker([y, x], { renderer, color: OWN, radius: 3, interactive: false }));
    if (kind === "Point") { end(); add("Point", corners); }
    if (kind === "Rectangle" && corners.length === 2) {
      const [[xa, ya], [xb, yb]] = corners;
      end();
      add("Polygon", [[xa, ya], [xb, ya], [xb, yb], [xa, yb]]);
    }
  }

  function finish() {
    const [kind, corners] = [state.drawing, state.corners];
    if (kind !== "Polygon" || corners.length < 3) return;
    end();
    add("Polygon", corners);
  }

  const buttons = ["Polygon", "Rectangle", "Point"].map((kind) => {
    const button = make("button", { type: "button" }, T[kind.toLowerCase()]);
    button.addEventListener("click", () => begin(kind));
    return button;
  });
  const tile = make("button", { type: "button" }, T.tile);
  tile.addEventListener("click", () => {
    const square = pinnedTile();
    if (!ready() || square === null) said.textContent = T.needs;
    else add("Polygon", square);
  });
  map.on("click", (event) => { if (state.drawing) corner(event.latlng); });
  map.on("dblclick", () => { if (state.drawing) finish(); });
  document.addEventListener("keydown", (event) => {
    if (!state.drawing || event.target.matches("input, textarea, select")) return;
    const act = { " ": () => corner(map.getCenter()), Enter: finish, Escape: () => { end(); said.textContent = ""; } }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  reader.addEventListener("change", ownMarks);
  ownMarks();
  const element = make("details", { open: true }, make("summary", {}, T.title), field(T.reader, reader), field(T.name, name),
    make("datalist", { id: "classes" }, ...names.map((value) => make("option", { value }))), field(T.note, note),
    make("div", { className: "buttons" }, ...buttons, tile), said, list);
  return { element, busy: () => state.drawing !== null };
}

function shapeOf(mark, color, renderer) {
  const places = mark.points.map(([x, y]) => [y, x]);
  const look = { renderer, color, weight: 3, fillOpacity: 0.05 };
  return mark.kind === "Point" ? L.circleMarker(places[0], { ...look, radius: 7 }) : L.polygon(places, look);
}

// crypto.randomUUID is only there on pages from this machine or by https.
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
