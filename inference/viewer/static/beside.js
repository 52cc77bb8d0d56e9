// A second map beside the first, of another model or another slide, such as another stain; both move and zoom together.
/* global L */
import { checkbox, fetched, field, make, modelName, TEXTS } from "./common.js";
import { colourWords, deepZoom, scaleBar } from "./deep.js";
import { heatLayer } from "./heat.js";

const T = TEXTS.beside;

// The controls, `redraw` for when the look of the first heatmap has changed, `recolour` for other colours of slides, the `views`
// beside the first, one or none, and `words` on them. `icc` are these at first; `changed` is called when another one is beside it.
export function sideBySide(view, place, icc, changed) {
  const { map, slide } = view;
  const models = slide.models.length < 2 ? [] : slide.models.map((model) => [`${slide.number},${model.number}`, modelName(model)]);
  const choice = make("select", {}, make("option", { value: "" }, T.none), ...group(T.models, models));
  const locked = checkbox(T.locked, true);
  locked.label.hidden = true;
  const element = make("div", { hidden: !models.length }, field(T.choose, choice), locked.label);
  let [other, lock, look] = [null, null, null];
  place.setAttribute("aria-label", T.map);

  fetched("data/slides.json").then(({ slides }) => {
    const rest = slides.filter((one) => one.number !== slide.number);
    const kin = (one) => one.case !== null && one.case === slide.case;
    const options = (of) => of.map((one) => [`${one.number},0`, one.label === null ? one.slide_id : `${one.slide_id} (${one.label})`]);
    choice.append(...group(T.same, options(rest.filter(kin))), ...group(T.others, options(rest.filter((one) => !kin(one)))));
    element.hidden = choice.options.length < 2;
  });

  function close() {
    lock?.free();
    other?.map.remove();
    [other, lock] = [null, null];
    place.hidden = true;
    map.invalidateSize();
  }

  async function choose() {
    const [number, model] = choice.value.split(",").map(Number);
    const chosen = choice.value;
    const shown = chosen === "" || number === slide.number ? slide : await fetched(`data/${number}/slide.json`);
    if (chosen !== choice.value) return; // another one was chosen meanwhile
    if (other !== null) close();
    locked.label.hidden = chosen === "";
    if (chosen !== "") await open(shown, model);
    changed();
  }

  async function open(shown, model) {
    const all = map.getBounds().contains(view.whole);
    place.hidden = false;
    map.invalidateSize();
    if (all) map.fitBounds(view.whole, { animate: false });
    const opened = deepZoom(place, shown, icc);
    scaleBar(opened.map, shown);
    const of = shown.models[model];
    const text = T.caption(shown.slide_id, of && modelName(of));
    const say = caption(opened);
    const heat = heatLayer(opened, "beside");
    other = { ...opened, text, model: of, heat, say };
    sayWhat();
    if (shown === slide) opened.turn(view.quarters());
    lock = follow(view, other, locked.input);
    if (of?.map) await heat.show(of, 0);
    redraw(look);
  }

  function sayWhat() {
    const fixed = other.slide.colours.both ? "" : colourWords(other.slide, icc);
    other.say(fixed ? `${other.text}. ${fixed}` : other.text);
  }

  function recolour(wanted) {
    icc = wanted;
    if (other === null) return;
    other.recolour(icc);
    sayWhat();
  }

  function redraw(how) {
    look = how;
    if (look === null || !other?.model?.map) return;
    other.heat.redraw({ ...look, span: other.model.layers[0].span });
  }

  choice.addEventListener("change", choose);
  map.on("turn", () => { if (other?.slide === slide) other.turn(view.quarters() - other.quarters()); });
  const words = () => other === null ? [] : [`${T.choose}: ${other.text}`, colourWords(other.slide, icc)];
  return { elements: [element], redraw, recolour, views: () => other === null ? [] : [other], words };
}

const group = (label, options) =>
  options.length ? [make("optgroup", { label }, ...options.map(([value, text]) => make("option", { value }, text)))] : [];

// Says in a corner of the map what it shows, beside a button that turns it alone.
function caption({ map, turn }) {
  const control = L.control({ position: "topright" });
  const button = make("button", { type: "button", className: "turn" }, T.turn);
  button.addEventListener("click", () => turn(1));
  const words = make("span");
  control.onAdd = () => make("div", { className: "caption" }, words, " ", button);
  control.addTo(map);
  L.DomEvent.disableClickPropagation(control.getContainer());
  return (text) => { words.textContent = text; };
}

// While a box is checked, each of two maps shows what lies as far from a common place as in the other, at the same scale:
// micrometres per pixel where these are known. The common place is the middle of each slide at first, then what lies
// in both middles when the box is checked or one of the maps is turned; of one slide it is the same place.
function follow(one, other, box) {
  const same = one.slide === other.slide;
  const apart = other.slide.zooms - one.slide.zooms + (one.slide.mpp && other.slide.mpp ? Math.log2(other.slide.mpp / one.slide.mpp) : 0);
  const cross = L.circleMarker([0, 0], { radius: 6, color: "#d55e00", weight: 2, fill: false, interactive: false });
  let [places, moving] = [new Map([one, other].map((view) => [view, view.whole.getCenter()])), false];

  const pin = () => {
    places = new Map([one, other].map((view) => [view, (same ? one : view).map.getCenter()]));
  };
  // Where a place of one map lies in the other, and at which zoom.
  const across = (from, to, latlng) => {
    const [zoom, sign] = [from.map.getZoom(), to === other ? 1 : -1];
    const way = from.map.project(latlng, zoom).subtract(from.map.project(places.get(from), zoom));
    return [to.map.unproject(to.map.project(places.get(to), zoom + sign * apart).add(way), zoom + sign * apart), zoom + sign * apart];
  };
  const move = (from, to) => () => {
    if (moving || !box.checked) return;
    moving = true;
    to.map.setView(...across(from, to, from.map.getCenter()), { animate: false });
    moving = false;
  };
  const point = (from, to) => ({ latlng }) => {
    if (box.checked) cross.setLatLng(across(from, to, latlng)[0]).addTo(to.map);
    else cross.remove();
  };
  const away = () => { cross.remove(); };
  const again = () => { pin(); move(one, other)(); };

  const kept = { ...one.map.options };
  for (const { map } of [one, other]) { // any scale of one is one of the other, and no edge holds one back
    map.options.zoomSnap = 0;
    map.setMaxBounds(null);
  }
  other.map.setMinZoom(Math.min(0, apart)).setMaxZoom(other.map.getMaxZoom() + Math.max(0, apart));
  const heard = [[one, other], [other, one]].map(([from, to]) => [from.map, { move: move(from, to), zoom: move(from, to), beforeturn: pin, turn: move(from, to), mousemove: point(from, to), mouseout: away }]);
  for (const [map, events] of heard) map.on(events);
  box.addEventListener("change", again);
  move(one, other)();
  return {
    free() {
      for (const [map, events] of heard) map.off(events);
      box.removeEventListener("change", again);
      away();
      one.map.options.zoomSnap = kept.zoomSnap;
      one.map.setMaxBounds(kept.maxBounds);
    },
  };
}
