// What both pages share: fetching, building elements, numbers as text.
import { TEXTS } from "./texts.js";

export async function fetched(address, as = "json") {
  const answer = await fetch(address, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer[as]();
}

// An element with properties, attributes (as aria-*, data-*, role) and children; text is text, never markup.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// A control under its words.
export const field = (text, ...inputs) => make("label", { className: "field" }, make("span", {}, text), ...inputs);

export function checkbox(text, checked) {
  const input = make("input", { type: "checkbox", checked });
  return { input, label: make("label", { className: "check" }, input, ` ${text}`) };
}

// "" where nothing was predicted.
export const modelName = (model) => model.sha256 === null ? "" : `${model.name}, ${model.sha256.slice(0, 8)}`;

// A number for people: three digits after the point of what is small, no powers of ten.
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(3);
}

export const percent = (value) => value === null || value === undefined ? "" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;

// The order in which the list shows the slides, so that the next slide is the next in it.
export const order = {
  write: (numbers) => sessionStorage.setItem("order", JSON.stringify(numbers)),
  read: (all) => {
    const kept = JSON.parse(sessionStorage.getItem("order") ?? "[]");
    return Array.isArray(kept) && kept.length ? kept : all;
  },
};

// The colours that a reader chose for slides that have both, "none" or "srgb", as long as the window is open.
export const chosenColours = {
  write: (icc) => sessionStorage.setItem("icc", icc),
  read: ({ both, wanted }) => {
    const kept = sessionStorage.getItem("icc");
    return both && ["none", "srgb"].includes(kept) ? kept : wanted;
  },
};

// How a reader wants overlays to look, by the controls' names, as long as the window is open.
export const chosenLook = {
  write: (look) => sessionStorage.setItem("look", JSON.stringify(look)),
  read: () => JSON.parse(sessionStorage.getItem("look") ?? "{}"),
};

export const length = (um) => um >= 1000 ? `${+(um / 1000).toPrecision(3)} mm` : `${+um.toPrecision(3)} µm`;
export { TEXTS };
