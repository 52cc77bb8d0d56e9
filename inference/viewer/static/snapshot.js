// What maps show, side by side, as a picture: slides, heatmaps, marks and scale bars, with words below.
import { make } from "./common.js";

const [LINE_PX, EDGE_PX] = [18, 8];

// A canvas with the maps as they are seen, and lines of words under them.
export function snapshot(views, words) {
  const places = views.map(({ map }) => map.getContainer().getBoundingClientRect());
  const [left, top] = [Math.min(...places.map((place) => place.left)), Math.min(...places.map((place) => place.top))];
  const [right, bottom] = [Math.max(...places.map((place) => place.right)), Math.max(...places.map((place) => place.bottom))];
  const canvas = make("canvas");
  const context = canvas.getContext("2d");
  context.font = "13px system-ui, sans-serif";
  const lines = wrapped(context, words, right - left - 2 * EDGE_PX);
  const ratio = window.devicePixelRatio;
  [canvas.width, canvas.height] = [right - left, bottom - top + lines.length * LINE_PX + 2 * EDGE_PX].map((px) => Math.round(px * ratio));
  context.scale(ratio, ratio);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.translate(-left, -top);
  views.forEach((view, at) => drawMap(context, view, places[at]));
  Object.assign(context, { font: "13px system-ui, sans-serif", fillStyle: "#000", textBaseline: "top", textAlign: "left" });
  lines.forEach((line, at) => context.fillText(line, left + EDGE_PX, bottom + EDGE_PX + at * LINE_PX));
  return canvas;
}

// Words joined into lines that are no wider than so many pixels, where no word is.
function wrapped(context, words, width) {
  const lines = [words[0]];
  for (const word of words.slice(1)) {
    const longer = `${lines.at(-1)} · ${word}`;
    if (context.measureText(longer).width <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

function drawMap(context, { map, whole, quarters }, place) {
  const container = map.getContainer();
  context.save();
  context.beginPath();
  context.rect(place.left, place.top, place.width, place.height);
  context.clip();
  context.fillStyle = getComputedStyle(container).backgroundColor;
  context.fillRect(place.left, place.top, place.width, place.height);
  context.save();
  const corners = [whole.getNorthWest(), whole.getSouthEast()].map((corner) => map.latLngToContainerPoint(corner));
  clipTo(context, place.left + corners[0].x, place.top + corners[0].y, place.left + corners[1].x, place.top + corners[1].y);
  for (const tile of inOrder(container.querySelectorAll(".leaflet-tile-loaded"), (one) => one.parentElement)) {
    const box = tile.getBoundingClientRect();
    context.save();
    context.translate(box.left + box.width / 2, box.top + box.height / 2);
    context.rotate(quarters() * Math.PI / 2);
    context.drawImage(tile, -box.width / 2, -box.height / 2, box.width, box.height);
    context.restore();
  }
  context.restore();
  for (const layer of inOrder(container.querySelectorAll(".leaflet-pane canvas"), (one) => one.closest(".leaflet-pane"))) {
    drawCanvas(context, layer);
  }
  drawScale(context, container.querySelector(".scale"));
  context.restore();
}

const inOrder = (elements, levelOf) => {
  const height = (one) => Number(getComputedStyle(levelOf(one)).zIndex) || 0;
  return [...elements].sort((one, other) => height(one) - height(other));
};

function clipTo(context, left, top, right, bottom) {
  context.beginPath();
  context.rect(Math.min(left, right), Math.min(top, bottom), Math.abs(right - left), Math.abs(bottom - top));
  context.clip();
}

// A canvas where it lies, as clear as it is, and cut as its pane is.
function drawCanvas(context, layer) {
  const [box, pane] = [layer.getBoundingClientRect(), layer.closest(".leaflet-pane")];
  context.save();
  const cut = pane.style.clip.match(/-?[\d.]+(?=px)/g)?.map(Number); // top, right, lower, left, as seen from the pane's corner
  if (cut) {
    const corner = pane.getBoundingClientRect();
    clipTo(context, corner.left + cut[3], corner.top + cut[0], corner.left + cut[1], corner.top + cut[2]);
  }
  context.globalAlpha = layer.style.opacity === "" ? 1 : Number(layer.style.opacity);
  context.imageSmoothingEnabled = !layer.classList.contains("heat");
  context.drawImage(layer, box.left, box.top, box.width, box.height);
  context.restore();
}

function drawScale(context, scale) {
  if (scale === null) return;
  const [box, bar, words] = [scale, ...scale.children].map((element) => element.getBoundingClientRect());
  context.fillStyle = "rgba(255, 255, 255, 0.8)";
  context.fillRect(box.left, box.top, box.width, box.height);
  context.fillStyle = "#000";
  context.fillRect(bar.left, bar.bottom - 3, bar.width, 3);
  Object.assign(context, { font: "13px system-ui, sans-serif", textBaseline: "middle", textAlign: "center" });
  context.fillText(scale.children[0].textContent, bar.left + bar.width / 2, bar.top + (bar.height - 3) / 2);
  context.fillText(scale.children[1].textContent, words.left + words.width / 2, words.top + words.height / 2);
}

// Hand a canvas to the reader as a PNG file.
export async function download(canvas, name) {
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
