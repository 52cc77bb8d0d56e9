// A second model's heatmap over the same slide: the first to the left of a line that is moved, the other to its right.
import { field, make, modelName, TEXTS } from "./common.js";
import { heatLayer } from "./heat.js";

const T = TEXTS.compare;

// The controls, `redraw` for when the look of the first heatmap has changed, and `words` on what is compared. `panes` are those of the first.
export function comparison(view, panes) {
  const { map, slide } = view;
  const other = heatLayer(view, "other");
  const choice = make("select", {}, make("option", { value: "" }, T.none),
    ...slide.models.map((model) => make("option", { value: model.number }, modelName(model))));
  const swipe = make("input", { type: "range", min: 0, max: 100, value: 50 });
  const line = make("div", { className: "swipe", hidden: true });
  map.getContainer().append(line);
  let [model, look] = [null, null];

  function clip() {
    const on = model !== null;
    const [corner, size] = [map.containerPointToLayerPoint([0, 0]), map.getSize()];
    const x = corner.x + size.x * swipe.value / 100;
    const rect = (left, right) => on ? `rect(${corner.y}px, ${right}px, ${corner.y + size.y}px, ${left}px)` : "";
    for (const name of panes) map.getPane(name).style.clip = rect(corner.x, x);
    for (const name of other.panes) map.getPane(name).style.clip = rect(x, corner.x + size.x);
    line.hidden = !on;
    line.style.left = `${swipe.value}%`;
  }

  async function choose() {
    model = choice.value === "" ? null : slide.models[Number(choice.value)];
    await other.show(model, 0);
    redraw(look);
    clip();
  }

  function redraw(how) {
    look = how;
    if (look !== null) other.redraw(model === null ? look : { ...look, span: model.layers[0].span });
  }

  choice.addEventListener("change", choose);
  swipe.addEventListener("input", clip);
  map.on("move zoom resize", clip);
  const words = () => model === null ? [] : [`${T.with}: ${modelName(model)}`];
  return { elements: [field(T.with, choice), field(T.swipe, swipe)], redraw, words };
}
