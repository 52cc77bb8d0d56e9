// The list of slides: sorted, filtered, searched, gone through by keyboard.
import { fetched, make, number, order, percent, TEXTS } from "./common.js";

const T = TEXTS.list;
const FILTERS = {
  all: () => true,
  warned: (slide) => slide.warning !== null,
  called: (slide) => (slide.scores.fraction_above_threshold ?? 0) > 0,
  bare: (slide) => slide.score === null,
};
const VALUES = {
  slide_id: (slide) => slide.slide_id,
  label: (slide) => slide.label,
  positive: (slide) => slide.positive,
  score: (slide) => slide.score,
  mean: (slide) => slide.scores.mean,
  fraction_above_threshold: (slide) => slide.scores.fraction_above_threshold,
  tiles: (slide) => slide.tiles,
  unlike: (slide) => slide.unlike,
  warning: (slide) => slide.warning,
};
const SHOWN = { fraction_above_threshold: percent, unlike: percent, score: number, mean: number, tiles: number };
const NAMES = new Intl.Collator("en", { numeric: true });
const found = (id) => document.getElementById(id);

let slides = [];
let sorted = { column: "score", down: true };

// The token has done its work: what is shown, copied or kept in the history is the address without it.
if (location.search) history.replaceState(null, "", location.pathname);

function compare(a, b) {
  const [one, other] = [VALUES[sorted.column](a) ?? null, VALUES[sorted.column](b) ?? null];
  if (one === null || other === null) return (one === null) - (other === null); // unknown is last either way
  const by = typeof one === "string" ? NAMES.compare(one, other) : one - other;
  return (sorted.down ? -by : by) || NAMES.compare(a.slide_id, b.slide_id);
}

function shownSlides() {
  const words = found("search").value.toLowerCase().split(/\s+/);
  const fits = (slide) => words.every((word) =>
    [slide.slide_id, slide.label, slide.positive].some((text) => (text ?? "").toLowerCase().includes(word)));
  return slides.filter((slide) => FILTERS[found("filter").value](slide) && fits(slide)).sort(compare);
}

function row(slide) {
  const href = `slide.html?slide=${slide.number}`;
  const picture = make("img", { src: `data/${slide.number}/thumbnail.jpg`, alt: "", loading: "lazy" });
  const cells = Object.keys(VALUES).map((name) => {
    const value = VALUES[name](slide);
    if (name === "slide_id") return make("th", { scope: "row" }, make("a", { href }, value));
    return make("td", { className: SHOWN[name] ? "number" : name }, SHOWN[name] ? SHOWN[name](value) : value ?? "");
  });
  return make("tr", { "data-slide": slide.number }, make("td", { className: "picture" }, make("a", { href, tabIndex: -1 }, picture)), ...cells);
}

function head() {
  const cells = Object.keys(VALUES).map((name) => {
    const button = make("button", { type: "button" }, T.columns[name]);
    button.addEventListener("click", () => {
      const first = !["slide_id", "label", "positive"].includes(name);
      sorted = { column: name, down: sorted.column === name ? !sorted.down : first };
      draw();
      document.querySelector(`th[data-column=${name}] button`).focus();
    });
    const at = sorted.column === name ? (sorted.down ? "descending" : "ascending") : "none";
    const className = SHOWN[name] ? "number" : "";
    return make("th", { scope: "col", className, "aria-sort": at, "data-column": name }, button);
  });
  return make("tr", {}, make("th", { scope: "col" }, T.columns.thumbnail), ...cells);
}

function draw() {
  const shown = shownSlides();
  document.querySelector("thead").replaceChildren(head());
  document.querySelector("tbody").replaceChildren(...shown.map(row));
  found("count").textContent = T.count(shown.length, slides.length);
  order.write(shown.map((slide) => slide.number));
}

// How labels and scores go together, from a score on that can be moved.
function confusion() {
  const known = slides.filter((slide) => slide.label !== null && slide.score !== null);
  const positive = known[0]?.positive;
  const of = (slide) => slide.label === positive;
  if (!known.some(of) || known.every(of)) return;
  const slider = make("input", { type: "range", min: 0, max: 1, step: 0.001, value: known[0].threshold });
  const place = make("div", { role: "status" });
  const count = () => {
    const at = Number(slider.value);
    const counted = (truth, above) => known.filter((slide) => of(slide) === truth && (slide.score >= at) === above).length;
    const [hit, missed, wrong, right] = [counted(true, true), counted(true, false), counted(false, true), counted(false, false)];
    const cells = (...values) => values.map((value) => make("td", { className: "number" }, String(value)));
    place.replaceChildren(
      make("table", {},
        make("tr", {}, make("td"), make("th", { scope: "col" }, T.atLeast(number(at))), make("th", { scope: "col" }, T.below(number(at)))),
        make("tr", {}, make("th", { scope: "row" }, positive), ...cells(hit, missed)),
        make("tr", {}, make("th", { scope: "row" }, `not ${positive}`), ...cells(wrong, right))),
      make("p", {}, T.rates(percent(hit / (hit + missed)), percent(right / (right + wrong)), positive)));
  };
  slider.addEventListener("input", count);
  count();
  found("confusion").append(make("h2", {}, T.confusion), make("label", {}, `${positive} ${T.called} `, slider), place);
  found("confusion").hidden = false;
}

function step(by) {
  const links = [...document.querySelectorAll("tbody th a")];
  const at = links.indexOf(document.activeElement);
  links[Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
}

document.addEventListener("keydown", (event) => {
  const letter = event.key.length === 1 && event.target.matches("input");
  if (letter || event.target.matches("input:not([type=search]), select") || event.ctrlKey || event.altKey || event.metaKey) return;
  const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (by) { event.preventDefault(); step(by); }
});

const list = await fetched("data/slides.json");
slides = list.slides;
found("notice").textContent = list.notice;
found("hint").textContent = T.hint + (list.refused ? ` ${T.refused(list.refused)}` : "");
found("filter").append(...Object.entries(T.filters).map(([value, text]) => make("option", { value }, text)));
found("filter").addEventListener("change", draw);
found("search").addEventListener("input", draw);
confusion();
draw();
document.body.dataset.ready = "yes";
