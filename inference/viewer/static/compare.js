// A second model's heatmap beside the first one's: the first to the left of a line that is moved, the other to its right.
/* global L */
import { make, TEXTS } from "./common.js";
import { fetchMap, outline, paint } from "./heat.js";

const T = TEXTS.compare;

// The controls, and `redraw` for when the look of the first heatmap has changed. `panes` are those of the first.
export function comparison(map, slide, panes) {
  const [heat, lines] = ["otherHeat", "otherLines"].map((name, at) => {
    map.createPane(name).style.zIndex = map.getPane(panes[at]).style.zIndex;
    return name;
  });
  const renderer = L.canvas({ pane: lines, padding: 0.3 });
  const drawn = L.layerGroup().addTo(map);
  const choice = make("select", {}, make("option", { value: "" }, T.none),
    ...slide.models.map((model) => make("option", { value: model.number }, `${model.name}, ${model.sha256.slice(0, 8)}`)));
  const swipe = make("input", { type: "range", min: 0, max: 100, value: 50 });
  const line = make("div", { className: "swipe", hidden: true });
  map.getContainer().append(line);
  const state = { model: null, values: null, picture: null, look: null };

  function clip() {
    const on = state.model !== null;
    const [corner, size] = [map.containerPointToLayerPoint([0, 0]), map.getSize()];
    const x = corner.x + size.x * swipe.value / 100;
    const rect = (left, right) => on ? `rect(${corner.y}px, ${right}px, ${corner.y + size.y}px, ${left}px)` : "";
    for (const name of panes) map.getPane(name).style.clip = rect(corner.x, x);
    for (const name of [heat, lines]) map.getPane(name).style.clip = rect(x, corner.x + size.x);
    line.hidden = !on;
    line.style.left = `${swipe.value}%`;
  }

  async function choose() {
    state.model = choice.value === "" ? null : slide.models[Number(choice.value)];
    state.values = state.model === null ? null : await fetchMap(slide.number, state.model, 0);
    state.picture?.remove();
    state.picture = null;
    if (state.model !== null) {
      const [height, width] = state.model.map.shape;
      const reach = state.model.map.downsample;
      const canvas = make("canvas", { width, height });
      state.picture = L.svgOverlay(canvas, [[0, 0], [height * reach, width * reach]], { pane: heat, className: "heat" }).addTo(map);
    }
    redraw(state.look);
    clip();
  }

  // look: as of the first heatmap, with `opacity` and whether the `outline` is drawn.
  function redraw(look) {
    state.look = look;
    drawn.clearLayers();
    if (state.picture === null || look === null) return;
    const own = { ...look, span: state.model.layers[0].span };
    paint(state.picture.getElement(), state.values, own);
    state.picture.setOpacity(look.opacity);
    const reach = state.model.map.downsample;
    const edges = look.outline ? outline(state.values, state.model.map.shape, look.threshold) : [];
    const places = edges.map((ends) => ends.map(([y, x]) => [y * reach, x * reach]));
    for (const [color, weight] of [["#fff", 4], ["#000", 2]]) {
      drawn.addLayer(L.polyline(places, { renderer, color, weight, interactive: false, smoothFactor: 0, lineCap: "square" }));
    }
  }

  choice.addEventListener("change", choose);
  swipe.addEventListener("input", clip);
  map.on("move zoom resize", clip);
  const field = (text, input) => make("label", { className: "field" }, make("span", {}, text), input);
  return { elements: [field(T.with, choice), field(T.swipe, swipe)], redraw };
}
