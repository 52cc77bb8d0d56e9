// A heatmap's numbers in the browser: tiles, their values, maps, and how they are drawn on a map. Knows nothing of the page.
/* global L */
import { fetched, make } from "./common.js";

// The tiles of one model on one slide: { count, x0, y0, values: [Float32Array per layer] }, level-0 pixels.
export async function fetchTiles(slide, model) {
  const bytes = await fetched(`data/${slide}/${model.number}/tiles.bin`, "arrayBuffer");
  const count = new Int32Array(bytes, 0, 1)[0];
  const part = (kind, index) => new kind(bytes, 4 + 4 * count * index, count);
  return {
    count, x0: part(Int32Array, 0), y0: part(Int32Array, 1),
    values: model.layers.map((_, index) => part(Float32Array, 2 + index)),
  };
}

// The map of a layer, row by row; NaN where no tile lies.
async function fetchMap(slide, model, layer) {
  return new Float32Array(await fetched(`data/${slide}/${model.number}/map-${layer}.bin`, "arrayBuffer"));
}

// Which tile lies under a place: of several, the one whose centre is nearest.
export function tileFinder(tiles, model) {
  const key = (x, y) => `${x},${y}`;
  const rows = new Map();
  for (let row = 0; row < tiles.count; row++) rows.set(key(tiles.x0[row], tiles.y0[row]), row);
  const { tile_px0: side, stride_px0: stride } = model;
  return (x, y) => {
    const reach = Math.ceil(side / stride);
    let [best, nearest] = [null, Infinity];
    for (let down = 0; down < reach; down++) {
      for (let across = 0; across < reach; across++) {
        const [left, top] = [(Math.floor(x / stride) - across) * stride, (Math.floor(y / stride) - down) * stride];
        const row = rows.get(key(left, top));
        const far = Math.hypot(x - left - side / 2, y - top - side / 2);
        if (row !== undefined && x < left + side && y < top + side && far < nearest) [best, nearest] = [row, far];
      }
    }
    return best;
  };
}

const CLEAREST = 0.25; // opacity where the value is lowest: an even one would hide tissue just where nothing was found

// Draw a map of a shape into a canvas, turned clockwise: look = { colours, span, threshold, above, rising }.
function paint(canvas, values, [height, width], look, quarters) {
  [canvas.width, canvas.height] = quarters % 2 ? [height, width] : [width, height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  const palette = paletteOf(look);
  const [low, high] = look.span;
  const [first, across, down] = [ // of the pixels in the canvas, for each of the map's
    [0, 1, width], [height - 1, height, -1], [width * height - 1, -1, -width], [(width - 1) * height, -height, 1],
  ][quarters];
  for (let at = 0; at < values.length; at++) {
    const value = values[at];
    if (Number.isNaN(value) || (look.above && value < look.threshold)) continue;
    const colour = palette[Math.round(255 * Math.min(Math.max((value - low) / (high - low), 0), 1))];
    pixels[first + across * (at % width) + down * Math.floor(at / width)] = colour;
  }
  context.putImageData(image, 0, 0);
}

// A heatmap on a slide's map, in panes of its own: the picture, and the outline at the threshold.
export function heatLayer({ map, slide, quarters }, name) {
  const panes = [[`heat-${name}`, 350], [`lines-${name}`, 450]].map(([pane, height]) => {
    map.createPane(pane).style.zIndex = height;
    return pane;
  });
  const renderer = L.canvas({ pane: panes[1], padding: 0.3 });
  const lines = L.layerGroup().addTo(map);
  let [model, values, picture, look] = [null, null, null, null];

  async function show(of, layer) {
    [model, values] = [of, of === null ? null : await fetchMap(slide.number, of, layer)];
    picture?.remove();
    picture = null;
    if (model === null) return;
    const [height, width] = model.map.shape;
    const reach = model.map.downsample;
    const bounds = [[0, 0], [height * reach, width * reach]];
    picture = L.svgOverlay(make("canvas"), bounds, { pane: panes[0], className: "heat" }).addTo(map);
  }

  // how: the look, with `opacity` and whether the `outlined` edge is drawn.
  function redraw(how = look) {
    look = how;
    lines.clearLayers();
    if (picture === null || look === null) return;
    paint(picture.getElement(), values, model.map.shape, look, quarters());
    picture.setOpacity(look.opacity);
    if (!look.outlined) return;
    addOutline(lines, renderer, outline(values, model.map.shape, look.threshold), model.map.downsample, ["#fff", "#000"]);
  }

  map.on("turn", () => redraw());
  return { panes, show, redraw };
}

// Lines between pixels of a map, wide in the first colour and narrow in the second, which is seen on any ground.
export function addOutline(group, renderer, edges, reach, colours) {
  const places = edges.map((ends) => ends.map(([y, x]) => [y * reach, x * reach]));
  for (const [color, weight] of [[colours[0], 4], [colours[1], 2]]) {
    group.addLayer(L.polyline(places, { renderer, color, weight, interactive: false, smoothFactor: 0, lineCap: "square" }));
  }
}

function paletteOf(look) {
  return Uint32Array.from(look.colours, ([red, green, blue], index) => {
    const alpha = look.rising ? Math.round(255 * (CLEAREST + (1 - CLEAREST) * index / 255)) : 255;
    return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
}

// A colour of the legend, as it looks on white.
export function shade(look, part) {
  const [red, green, blue] = look.colours[Math.round(255 * part)];
  return `rgba(${red},${green},${blue},${look.rising ? CLEAREST + (1 - CLEAREST) * part : 1})`;
}

// The lines between what is at or above a threshold and what is not: [[y, x], [y, x]] in pixels of the map.
export function outline(values, [height, width], threshold) {
  const above = (row, column) =>
    row >= 0 && column >= 0 && row < height && column < width && values[row * width + column] >= threshold;
  const lines = [];
  const run = (length, differs, line) => {
    let start = -1;
    for (let at = 0; at <= length; at++) {
      const edge = at < length && differs(at);
      if (edge && start < 0) start = at;
      if (!edge && start >= 0) { lines.push(line(start, at)); start = -1; }
    }
  };
  for (let row = 0; row <= height; row++) {
    run(width, (column) => above(row - 1, column) !== above(row, column), (a, b) => [[row, a], [row, b]]);
  }
  for (let column = 0; column <= width; column++) {
    run(height, (row) => above(row, column - 1) !== above(row, column), (a, b) => [[a, column], [b, column]]);
  }
  return lines;
}

// The tissue mask of a slide: its edges as of `outline`, and level-0 pixels per pixel.
export async function fetchMask(slide) {
  const bytes = await fetched(`data/${slide.number}/mask.bin`, "arrayBuffer");
  const [height, width] = new Int32Array(bytes, 0, 2);
  const [downsample] = new Float32Array(bytes, 8, 1);
  return { edges: outline(new Uint8Array(bytes, 12), [height, width], 1), downsample };
}

// Counts of values in equal bins of a span; what lies beyond is counted at its end.
export function histogram(values, [low, high], bins) {
  const counts = new Array(bins).fill(0);
  for (const value of values) {
    if (Number.isNaN(value)) continue;
    counts[Math.min(Math.max(Math.floor(bins * (value - low) / (high - low)), 0), bins - 1)]++;
  }
  return counts;
}

// Rows of the highest values, the highest first.
export function highest(values, count) {
  const rows = [...values.keys()].filter((row) => !Number.isNaN(values[row]));
  return rows.sort((a, b) => values[b] - values[a] || a - b).slice(0, count);
}
