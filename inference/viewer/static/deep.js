// The slide on a Leaflet map whose coordinates are (y, x) in level-0 pixels, from the upper left corner down.
/* global L */
import { length, make, TEXTS } from "./common.js";

// Where a place of a square lies when that is turned clockwise by quarters of a circle; `last` is its largest coordinate.
const turned = (x, y, quarters, last) => [[x, y], [last - y, x], [last - x, last - y], [y, last - x]][quarters];

// A slide on a map that can be turned, in the colours `icc`, "none" or "srgb", where it has them:
// { map, slide, whole, quarters(), turn(by), recolour(icc) }. Turning fires the map's events "beforeturn" and "turn".
export function deepZoom(place, slide, icc) {
  const [width, height] = slide.size0;
  const scale = 1 / 2 ** slide.zooms;
  const side0 = slide.tile_px / scale; // of the square that the tiles fill: turned, they are at the places of tiles again
  let quarters = 0;
  const projection = {
    project: ({ lat, lng }) => L.point(turned(lng, lat, quarters, side0)),
    unproject: ({ x, y }) => L.latLng(turned(x, y, (4 - quarters) % 4, side0).reverse()),
  };
  const crs = L.extend({}, L.CRS.Simple, { projection, transformation: new L.Transformation(scale, 0, scale, 0) });
  const map = L.map(place, {
    crs, minZoom: 0, maxZoom: slide.zooms + 2, zoomSnap: 0.25, wheelPxPerZoomLevel: 120, attributionControl: false,
    keyboardPanDelta: 120, maxBoundsViscosity: 0.5, zoomAnimationThreshold: 6,
  });
  const whole = L.latLngBounds([0, 0], [height, width]);
  map.setMaxBounds(whole.pad(0.5));
  const tiles = (coarser, zIndex) => {
    const layer = L.tileLayer("", {
      tileSize: slide.tile_px * 2 ** coarser, minNativeZoom: coarser, maxNativeZoom: slide.last_drawn, bounds: whole, noWrap: true,
      minZoom: -Infinity, maxZoom: Infinity, keepBuffer: 1, updateWhenZooming: false, zIndex,
    });
    layer.getTileUrl = ({ x, y, z }) => tileAddress(slide, z - coarser, ...turned(x, y, (4 - quarters) % 4, 2 ** (z - coarser) - 1));
    return layer.on("tileloadstart", ({ tile }) => { tile.style.transform += ` rotate(${90 * quarters}deg)`; });
  };
  // Below the tiles a blurred slide, seen where they are not there yet, and through the seams between them at fractions of a zoom.
  const layers = [...(slide.last_drawn ? [tiles(Math.min(3, slide.last_drawn), 0)] : []), tiles(0, 1)];
  choose(slide, icc);
  for (const layer of layers) layer.addTo(map);
  const far = 10 * Math.max(width, height);
  const beyond = [[[-far, -far], [-far, far], [far, far], [far, -far]], [[0, 0], [0, width], [height, width], [height, 0]]];
  L.polygon(beyond, { className: "beyond", interactive: false, weight: 1, opacity: 1, noClip: true }).addTo(map);
  map.fitBounds(whole, { animate: false });
  const turn = (by) => {
    map.fire("beforeturn");
    const [centre, zoom] = [map.getCenter(), map.getZoom()];
    quarters = (quarters + by + 4) % 4;
    map.setView(centre, zoom, { reset: true, animate: false });
    map.fire("turn");
  };
  const recolour = (wanted) => {
    choose(slide, wanted);
    for (const layer of layers) layer.remove().addTo(map); // its own redraw asks for tiles of fractions of a zoom
  };
  return { map, slide, whole, turn, recolour, quarters: () => quarters };
}

const tileAddress = (slide, zoom, column, row) =>
  `data/${slide.number}/${slide.drawn === slide.colours.drawn ? "" : "recoloured/"}${zoom}/${column}-${row}.jpg`;

function choose(slide, icc) {
  slide.drawn = slide.colours.both ? icc : slide.colours.drawn;
}

// What is to be said of a slide's colours where `icc` are asked for.
export const colourWords = (slide, icc) => slide.drawn === "srgb" ? TEXTS.colours.srgb : icc === "srgb" ? TEXTS.colours.lacking : "";

// Level-0 pixels per pixel of the screen.
export const pixel0 = (slide, zoom) => 2 ** (slide.zooms - zoom);

// A bar of a round length and the magnification, which a microscope would need to show as much.
export function scaleBar(map, slide) {
  if (!slide.mpp) return;
  const [bar, words] = [make("div", { className: "bar" }), make("div", { className: "magnification" })];
  const control = L.control({ position: "bottomleft" });
  control.onAdd = () => make("div", { className: "scale" }, bar, words);
  control.addTo(map);
  const draw = () => {
    const mpp = slide.mpp * pixel0(slide, map.getZoom());
    const power = 10 ** Math.floor(Math.log10(mpp * 150));
    const um = Math.max(...[1, 2, 5].map((times) => times * power).filter((about) => about <= mpp * 150));
    bar.style.width = `${um / mpp}px`;
    bar.textContent = length(um);
    words.textContent = TEXTS.magnification(+(10 / mpp).toPrecision(2));
  };
  map.on("zoomend", draw);
  draw();
}

// A link to the place that is shown: #x,y,zoom, of the middle, level-0 pixels, and by how many quarters it is turned.
export function linkPlace({ map, whole, turn, quarters }) {
  const go = () => {
    const [x, y, zoom, turns = 0] = location.hash.slice(1).split(",").map(Number);
    if (![x, y, zoom, turns].every(Number.isFinite) || !location.hash) return;
    map.setView([y, x], zoom, { animate: false });
    if (turns !== quarters()) turn(Math.round(turns - quarters()) % 4);
  };
  go();
  map.on("moveend turn", () => {
    const middle = map.getCenter();
    const turns = quarters() ? `,${quarters()}` : "";
    history.replaceState(null, "", `#${Math.round(middle.lng)},${Math.round(middle.lat)},${+map.getZoom().toFixed(2)}${turns}`);
  });
  addEventListener("hashchange", go);
  return () => map.fitBounds(whole);
}

// A square of the slide at its finest, drawn of the same tiles as the map's, so that it needs nothing else of a server.
export async function drawSquare(canvas, slide, x0, y0, side0) {
  const zoom = slide.last_drawn;
  const px0 = 2 ** (slide.zooms - zoom);
  const step = slide.tile_px * px0;
  canvas.width = canvas.height = Math.min(1024, Math.max(64, Math.round(side0 / px0)));
  const context = canvas.getContext("2d");
  const scale = canvas.width / side0;
  const wanted = [];
  for (let row = Math.max(0, Math.floor(y0 / step)); row * step < Math.min(y0 + side0, slide.size0[1]); row++) {
    for (let column = Math.max(0, Math.floor(x0 / step)); column * step < Math.min(x0 + side0, slide.size0[0]); column++) {
      wanted.push([column, row]);
    }
  }
  await Promise.all(wanted.map(async ([column, row]) => {
    const picture = make("img", { src: tileAddress(slide, zoom, column, row) });
    await picture.decode();
    context.drawImage(picture, (column * step - x0) * scale, (row * step - y0) * scale, step * scale, step * scale);
  }));
}
