// The slide on a Leaflet map whose coordinates are (y, x) in level-0 pixels, from the upper left corner down.
/* global L */
import { length, make, TEXTS } from "./common.js";

export const TILE_PX = 256;

export function deepZoom(place, slide) {
  const [width, height] = slide.size0;
  const scale = 1 / 2 ** slide.zooms;
  const crs = L.extend({}, L.CRS.Simple, { transformation: new L.Transformation(scale, 0, scale, 0) });
  const map = L.map(place, {
    crs, minZoom: 0, maxZoom: slide.zooms + 2, zoomSnap: 0.25, wheelPxPerZoomLevel: 120, attributionControl: false,
    keyboardPanDelta: 120, maxBoundsViscosity: 0.5, zoomAnimationThreshold: 6,
  });
  const whole = L.latLngBounds([0, 0], [height, width]);
  map.setMaxBounds(whole.pad(0.5));
  L.tileLayer("data/{slide}/{z}/{x}-{y}.jpg", {
    slide: slide.number, tileSize: TILE_PX, minNativeZoom: 0, maxNativeZoom: slide.last_drawn, bounds: whole, noWrap: true,
    maxZoom: slide.zooms + 2, keepBuffer: 1, updateWhenZooming: false,
  }).addTo(map);
  const far = 10 * Math.max(width, height);
  const beyond = [[[-far, -far], [-far, far], [far, far], [far, -far]], [[0, 0], [0, width], [height, width], [height, 0]]];
  L.polygon(beyond, { className: "beyond", interactive: false, stroke: false, noClip: true }).addTo(map);
  map.fitBounds(whole, { animate: false });
  return { map, whole };
}

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

// A link to the place that is shown: #x,y,zoom, of the middle, level-0 pixels.
export function linkPlace(map, whole) {
  const go = () => {
    const [x, y, zoom] = location.hash.slice(1).split(",").map(Number);
    if ([x, y, zoom].every(Number.isFinite) && location.hash) map.setView([y, x], zoom, { animate: false });
  };
  go();
  map.on("moveend", () => {
    const middle = map.getCenter();
    history.replaceState(null, "", `#${Math.round(middle.lng)},${Math.round(middle.lat)},${+map.getZoom().toFixed(2)}`);
  });
  addEventListener("hashchange", go);
  return () => map.fitBounds(whole);
}

// A square of the slide at its finest, drawn of the same tiles as the map's, so that it needs nothing else of a server.
export async function drawSquare(canvas, slide, x0, y0, side0) {
  const zoom = slide.last_drawn;
  const px0 = 2 ** (slide.zooms - zoom);
  const step = TILE_PX * px0;
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
    const picture = make("img", { src: `data/${slide.number}/${zoom}/${column}-${row}.jpg` });
    await picture.decode();
    context.drawImage(picture, (column * step - x0) * scale, (row * step - y0) * scale, step * scale, step * scale);
  }));
}
