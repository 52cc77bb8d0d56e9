// Every English text of the viewer.
export const TEXTS = {
  back: "All slides",
  previous: "Previous",
  next: "Next",
  full: "Full screen",
  turn: "Turn",
  save: { button: "Save picture", threshold: (value) => `threshold ${value}` },
  panel: "Panel",
  map: "The slide. Arrow keys move it, plus and minus zoom.",
  noSlide: "There is no such slide.",
  otherSlide: "This is not the slide that the heatmap was made of: the file has changed since, or is another one.",
  pixels: {
    store: "The slide is not at hand: its tiles are shown on a thumbnail, tissue only.",
    thumbnail: "The slide is not at hand: only a small picture of it is shown, which came with its features.",
    none: "Neither the slide nor its store is at hand: only what was predicted is shown.",
  },
  colours: { srgb: "Colours in sRGB, by the slide's ICC profile.", lacking: "Colours as scanned: no ICC profile is at hand." },
  list: {
    columns: {
      thumbnail: "", slide_id: "slide", label: "label", positive: "class", score: "score", mean: "mean",
      fraction_above_threshold: "share called", tiles: "tiles", unlike: "unlike", warning: "warning",
    },
    filters: { all: "all slides", warned: "with a warning", called: "called by some tile", bare: "without a heatmap" },
    hint: "Click a column's head to sort. Arrow keys go through the slides, Enter opens one. The score is the mean " +
      "probability of the most suspicious 5% of the tiles, or what a model of bags gives the whole slide. A score is " +
      "the model's and no diagnosis.",
    count: (shown, all) => shown === all ? `${all} slides` : `${shown} of ${all} slides`,
    refused: (count) => `${count} that were found cannot be read; the terminal says why.`,
    confusion: "Slides by label and score",
    called: "called from this score on:",
    atLeast: (value) => `at or above ${value}`,
    below: (value) => `below ${value}`,
    rates: (sensitivity, specificity, name) =>
      `Sensitivity for ${name} ${sensitivity}, specificity ${specificity}, on these slides.`,
  },
  overlay: {
    title: "Overlay", show: "Show the overlay", layer: "What is shown", model: "Model", colours: "Colours",
    opacity: "Opacity", threshold: "Threshold", rising: "Opacity rises with the value", above: "Only at or above the threshold",
    outline: "Outline at the threshold", grid: "Tiles when zoomed in", tissue: "Tissue mask",
    srgb: "sRGB, by each slide's ICC profile",
    none: "Nothing was predicted of this slide.",
    share: (count, total) => `${count.toLocaleString("en")} of ${total.toLocaleString("en")} tiles at or above it.`,
    rates: (sensitivity, specificity) => `Of the tiles at least half under the annotation ${sensitivity} (sensitivity), of those ` +
      `outside it ${specificity} are below it (specificity).`,
    reset: "The model's own",
  },
  scores: { title: "Scores of the slide", bag: "probability of the slide as a whole, calibrated", threshold: "the model's threshold" },
  lists: { title: "Tiles to look at", highest: "Highest", uncertain: "Least certain", unlike: "Most unlike", empty: "None." },
  tile: {
    title: "Tile", none: "Move over the slide; a click pins the tile.", pinned: "Pinned", release: "Release",
    place: (x, y) => `x ${x}, y ${y}`, picture: "The pinned tile at full resolution with its surroundings",
  },
  why: {
    button: "What does the model look at?", asking: "Asking the model...", failed: "The model is busy or the tile cannot be read; ask again.",
    meaning: (name, scale, attention) => `Occlusion map: where the tile is orange, blurring that part lowers its probability of ${name}` +
      `${attention ? " (as if the tile were the whole slide)" : ""}; where it is blue, it raises it. Full colour is a change of ` +
      `${scale}. It does not say what these parts show, or that the model is right.`,
    anew: (again, table) => `From these pixels the probability is ${again}, in the heatmap it is ${table}.`,
  },
  compare: { with: "To the right of the line", none: "the same model", swipe: "Line between the models" },
  beside: {
    choose: "Beside it", none: "nothing", models: "this slide by another model", same: "slides of the same case", others: "other slides",
    locked: "Move both together", map: "The second map. Arrow keys move it, plus and minus zoom.", turn: "Turn",
    caption: (slide, model) => model ? `${slide}: ${model}` : slide,
  },
  marks: {
    title: "Marks", reader: "Your name (letters, digits, -)", name: "Class", note: "Note", polygon: "Polygon",
    rectangle: "Rectangle", point: "Point", tile: "Pinned tile", remove: "Remove", of: (reader) => `by ${reader}`,
    needs: "Say your name and a class first.", saved: "Saved.", empty: "Nothing is drawn yet.",
    failed: (why) => `Not saved: ${why}.`,
    drawing: {
      Polygon: "Click the corners; Enter or a double click ends. Space sets a corner at the middle, Escape gives up.",
      Rectangle: "Click two corners. Space sets one at the middle, Escape gives up.",
      Point: "Click the place. Space sets it at the middle, Escape gives up.",
    },
    kinds: { Polygon: "area", Point: "point" },
  },
  histogram: "Tiles by value",
  unknown: "unknown",
  magnification: (value) => `${value}×`,
  keys: "Keys: o overlay, [ and ] threshold, g tiles, t tissue mask, r turn, s save the picture, n and p next and previous slide, " +
    "0 whole slide, f full screen.",
};
