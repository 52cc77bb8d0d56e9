// On which parts of the pinned tile the model depends, over its picture, asked of the server by a button.
import { fetched, make, number, TEXTS } from "./common.js";

const T = TEXTS.why;
const MOST_OPAQUE = 0.75; // as in the report
const ANEW = 0.01; // a probability that differs more from the table's is said

// `picture` is a canvas with a tile in the middle half of it.
export function explanation(slide, picture) {
  const button = make("button", { type: "button", hidden: true }, T.button);
  const legend = make("canvas", { className: "legend", width: 256, height: 10, hidden: true });
  const words = make("p", { className: "hint", role: "status", hidden: true });
  let asked = null;

  function show(model, row, probability) {
    asked = row === null || model.occlusion === null ? null : { model, row, probability };
    button.hidden = asked === null;
    legend.hidden = words.hidden = true;
  }

  async function ask() {
    const of = asked;
    button.disabled = true;
    words.hidden = false;
    words.textContent = T.asking;
    const answer = await fetched(`data/${slide.number}/${of.model.number}/occlusion-${of.row}.bin`, "arrayBuffer").catch(() => null);
    button.disabled = false;
    if (of !== asked) return; // another tile was pinned meanwhile
    if (answer === null) words.textContent = T.failed;
    else draw(of, new Float32Array(answer));
  }

  function draw(of, [again, ...change]) {
    const look = of.model.occlusion;
    const scale = change.reduce((most, value) => Math.max(most, Math.abs(value)), look.smallest);
    paint(picture, change, Math.sqrt(change.length), scale, look);
    const context = legend.getContext("2d");
    for (let x = 0; x < legend.width; x++) {
      context.fillStyle = `rgb(${mixed(200, 2 * x / (legend.width - 1) - 1, look)})`;
      context.fillRect(x, 0, 1, legend.height);
    }
    button.hidden = true;
    legend.hidden = words.hidden = false;
    const anew = Math.abs(again - of.probability) > ANEW ? ` ${T.anew(number(again), number(of.probability))}` : "";
    words.textContent = T.meaning(of.model.positive, number(scale), of.model.attention) + anew;
  }

  button.addEventListener("click", ask);
  return { elements: [button, legend, words], show };
}

// A grey value under a share in [-1, 1] of the colour for or against.
function mixed(grey, share, look) {
  const alpha = MOST_OPAQUE * Math.min(1, Math.abs(share));
  return (share > 0 ? look.for : look.against).map((value) => Math.round(grey * (1 - alpha) + value * alpha));
}

// The tile in the middle in grey, under what blurring a part of it changes, side x side numbers.
function paint(canvas, change, side, scale, look) {
  const [start, length] = [Math.round(canvas.width / 4), Math.round(canvas.width / 2)];
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(start, start, length, length);
  for (let y = 0; y < length; y++) {
    for (let x = 0; x < length; x++) {
      const at = 4 * (y * length + x);
      const [r, g, b] = pixels.data.subarray(at, at + 3);
      const share = change[Math.floor(y * side / length) * side + Math.floor(x * side / length)] / scale;
      pixels.data.set(mixed(0.299 * r + 0.587 * g + 0.114 * b, share, look), at);
    }
  }
  context.putImageData(pixels, start, start);
}
