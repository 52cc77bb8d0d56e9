"""One slide's result as one HTML file that opens without a network: pictures inside, nothing fetched, all text escaped.

Only what is in a prediction gets into it: no label or macro image, no free text of the slide, no path.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from inference.colours import HEATMAP
from inference.maps.contour import threshold_rings
from inference.maps.scores import SlideScores
from inference.maps.slide_map import printable
from inference.maps.stitch import assemble
from inference.ood import FLAG, RATIO, outside
from inference.predict import Prediction, is_store
from tiling import Slide, TileStore
from tiling.core.versions import RESEARCH_USE
from tiling.grid import Tiles
from tiling.preview import length_text, nice_length
from tiling.tile import read_tiles

UInt8Array = NDArray[np.uint8]
Floats = NDArray[np.float32]

SHOWN = 8
"""Tiles shown of the most suspicious, and of the least."""
_LONGEST_PX, _TILE_PX, _BINS = 1200, 160, 20
_JPEG_QUALITY = 85
_CLEAREST = 0.25
"""Opacity of the heatmap's colour where the probability is 0. It rises to 1: an even one would hide what tissue looks
like just where nothing was found, under a purple that is taken for haematoxylin."""

_LEFT_OUT = {
    "no_tissue": "hold too little tissue",
    "undecodable": "cannot be decoded: the file is damaged there",
    "filtered": "were left out by the filter of quality columns",
    "outside_roi": "lie outside the region of interest",
}
# noisy_or is in slide.json only: over many tiles it tends to 1 on any slide, and here it would look like a finding.
_MEANINGS = {
    "mean": "mean probability of the analysed tiles",
    "top5_mean": "mean of the most suspicious 5% of the tiles: sees a small focus on a large slide",
    "fraction_above_threshold": "share of the tiles at or above the threshold",
    "percentile95": "95% of the tiles lie at or below it",
    "area_above_mm2": "area at or above the threshold, mm²",
    "largest_region_mm2": "largest connected part of that area, mm²",
}
_COLUMNS = {
    "entropy": "entropy of the classes' probabilities, nats: 0 is sure",
    "spread": "standard deviation over models and orientations",
    RATIO: "distance to the training tiles: above 1 is outside what the model has seen",
    FLAG: "1 where that is above 1, else 0",
    "focus": "sharpness, the variance of the Laplacian of the grey levels: low is blurred",
    "white": "share of nearly white pixels: glass",
    "black": "share of nearly black pixels",
    "pen": "share of pixels of an ink's colour",
    "saturation": "mean saturation of the colours: 0 is grey, 1 is pure colour",
    "haematoxylin": "mean amount of the stain, as optical density: 0 is none",
    "eosin": "mean amount of the stain, as optical density: 0 is none",
    "dab": "mean amount of the stain, as optical density: 0 is none",
}

_SCRIPT = (
    'const s=document.getElementById("opacity"),h=document.getElementById("heat"),o=document.getElementById("shown");'
    's.addEventListener("input",()=>{h.style.opacity=s.value/100;o.textContent=s.value+"%"});'
    'for(const b of document.querySelectorAll("[data-layer]"))b.addEventListener("change",()=>{'
    'document.getElementById(b.dataset.layer).style.display=b.checked?"":"none"});'
)
_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --ground: #fff; --line: #ccc; --soft: #f2f2f2; --warn: #fff4d6; }
@media (prefers-color-scheme: dark) {
 :root { --text: #eee; --ground: #16181b; --line: #555; --soft: #24272b; --warn: #4a3b10; } }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--text);
 background: var(--ground); overflow-wrap: break-word; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.notice { background: var(--warn); padding: .5rem .8rem; font-weight: 600; }
table { border-collapse: collapse; } caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } .long td { overflow-wrap: anywhere; } th, .tiles { overflow-wrap: anywhere; }
thead th { overflow-wrap: normal; }
figure { margin: 0; } figcaption { font-size: .9rem; }
.stack { position: relative; line-height: 0; max-width: 100%; display: inline-block; background: #fff; }
.stack img { width: 100%; } #slide { height: auto; }
#heat, #lines { position: absolute; left: 0; top: 0; height: 100%; } #heat { image-rendering: pixelated; }
#lines { width: 100%; pointer-events: none; font: bold 14px system-ui, sans-serif; text-anchor: middle; }
#contour { fill: none; stroke-linejoin: round; } .outer { stroke: #fff; stroke-width: 4px; }
.inner { stroke: #000; stroke-width: 2px; } #rings { vector-effect: non-scaling-stroke; }
#places rect { fill: none; stroke: #000; stroke-dasharray: 3; }
#places text { fill: #fff; stroke: #000; stroke-width: 4px; paint-order: stroke; dominant-baseline: central; }
.bar { position: absolute; left: 2%; bottom: 2%; border-bottom: 4px solid #000; background: #fffc; color: #000;
 font-size: .85rem; line-height: 1.4; text-align: center; white-space: nowrap; }
.legend { height: 1rem; position: relative; border: 1px solid var(--line); }
.legend i { position: absolute; top: -4px; bottom: -4px; border-left: 3px solid #d55e00; }
.ends { display: flex; justify-content: space-between; font-size: .9rem; }
input[type=range] { width: min(24rem, 100%); vertical-align: middle; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .8rem; }
.tiles img { width: 100%; image-rendering: auto; border: 1px solid var(--line); }
.tiles figure { position: relative; } .tiles b { position: absolute; left: 0; top: 0; padding: 0 .4em;
 background: #000; color: #fff; }
.chart { max-width: 100%; height: auto; background: var(--soft); } .chart text { fill: var(--text); font-size: 13px; }
.controls { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; }
.controls span:first-child { flex-basis: 100%; } @media print { .controls { display: none; } }
"""


@dataclass(frozen=True)
class Evidence:
    """What the report shows beside the prediction itself."""

    most: tuple[tuple[int, UInt8Array], ...] = ()
    """The most suspicious tiles: their row in the prediction, and pixels uint8 (T, T, 3)."""
    least: tuple[tuple[int, UInt8Array], ...] = ()
    quality: Mapping[str, Floats] = field(default_factory=dict)
    """Quality columns of the predicted tiles, (N,), by name; of a store only."""


def gather_evidence(source: Path, prediction: Prediction, slide_mpp: float | None = None) -> Evidence:
    """Read the tiles to show from the slide or store the prediction was made of. Raises SlideError, StoreError."""
    most, least = extremes(prediction.probabilities[:, prediction.positive])
    rows = np.concatenate([most, least])
    if is_store(source):
        store = TileStore(source)
        row_at = {place: row for row, place in enumerate(store.tiles.places())}
        places = zip(prediction.x0.tolist(), prediction.y0.tolist(), strict=True)
        stored = np.array([row_at[place] for place in places], np.intp)
        pixels = dict(zip(rows.tolist(), store.read(stored[rows]), strict=True))
        quality = {name: values[stored] for name, values in store.quality.items()}
    else:
        with Slide(source, mpp=slide_mpp) as slide:
            found = read_tiles(slide, Tiles(prediction.grid, prediction.x0, prediction.y0).only(rows), 1.0)
            pixels = {int(rows[index]): tile for index, tile in found}
        quality = {}
    most_shown, least_shown = (
        tuple((row, pixels[row]) for row in part.tolist() if row in pixels) for part in (most, least)
    )
    return Evidence(most_shown, least_shown, quality)


def extremes(probabilities: NDArray[np.floating[Any]], count: int = SHOWN) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the most and of the least probable tiles (N,), the extreme first, at most `count`; no tile is in both."""
    order = np.argsort(-probabilities, kind="stable")
    most = order[:count]
    return most, order[len(most) :][::-1][:count]


def report_html(prediction: Prediction, scores: SlideScores, evidence: Evidence, software: Mapping[str, str]) -> str:
    """The page, UTF-8; equal input gives equal text. `software` are versions by name."""
    name = prediction.classes[prediction.positive]
    title = f"{prediction.slide.slide_id}: heatmap of {name}"
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    body = [
        _score_part(prediction, scores),
        _map_part(prediction, evidence),
        _histogram_part(prediction),
        _tiles_part(prediction, evidence),
        _quality_part(prediction, evidence),
        _left_out_part(prediction),
        _provenance_part(prediction, software),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{_text(title)}</h1>\n<p class="notice">{_text(RESEARCH_USE)}</p></header>\n<main>\n'
        + "\n".join(body)
        + f"\n</main>\n<footer><p>{_text(RESEARCH_USE)}</p></footer>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def in_words(prediction: Prediction, scores: SlideScores) -> str:
    """What the scores of a slide say, in sentences."""
    name, threshold = prediction.classes[prediction.positive], prediction.threshold
    if scores.mean is None or scores.top5_mean is None or scores.fraction_above_threshold is None:
        return "No tile of this slide was analysed, so nothing can be said of it. This is not a negative result."
    values = prediction.probabilities[:, prediction.positive]
    called, total = int((values >= threshold).sum()), len(values)
    known = outside(prediction.columns, prediction.ood_quantile)
    sentences = ["What follows is what the model computed, not a finding."] if known and known.tiles == total else []
    sentences += [
        f"The model calls {called:,} of {total:,} analysed tiles ({scores.fraction_above_threshold:.1%}) {name}: their "
        f"probability reaches its threshold of {_plain(threshold)}.",
        f"The most suspicious 5% of the tiles have a mean probability of {scores.top5_mean:.2f}, all tiles one of "
        f"{scores.mean:.2f}.",
    ]
    if scores.area_above_mm2 is not None and scores.largest_region_mm2 is not None and called:
        sentences.append(
            f"Together the called area is {_number(scores.area_above_mm2)} mm², its largest connected part "
            f"{_number(scores.largest_region_mm2)} mm²."
        )
    if not called:
        sentences.append(f"That does not show that the slide is free of {name}.")
    return " ".join([*sentences, "A probability is the model's, for one tile; it is not a diagnosis of the slide."])


def _score_part(prediction: Prediction, scores: SlideScores) -> str:
    found = asdict(scores)
    rows = [(label, _number(found[label]), words) for label, words in _MEANINGS.items() if found[label] is not None]
    table = _table("Scores of the slide", ("score", "value", "what it is"), rows) if rows else ""
    known = outside(prediction.columns, prediction.ood_quantile)
    warning = f'<p class="notice">{_text(known.warning)}</p>' if known and known.warning else ""
    return _section("Score", f"{warning}<p>{_text(in_words(prediction, scores))}</p>{table}")


def _map_part(prediction: Prediction, evidence: Evidence) -> str:
    picture, px0 = _overview(prediction)
    height, width = picture.shape[:2]
    name, share = _text(prediction.classes[prediction.positive]), prediction.threshold * 100
    mpp = prediction.slide.mpp * px0
    length_um = nice_length(width * mpp / 4)
    stops = zip(_colours(np.linspace(0, 1, 9))[:, :3].tolist(), _alphas(np.linspace(0, 1, 9)).tolist(), strict=True)
    colours = ", ".join(f"rgba({r},{g},{b},{alpha / 255:.3f})" for (r, g, b), alpha in stops)
    return _section(
        "Heatmap",
        # The browser is told to forget: it would bring back a box's state, and not that of its layer.
        '<p class="controls"><span><label for="opacity">Opacity of the heatmap over the slide (0% shows the slide '
        'alone)</label> <input type="range" id="opacity" min="0" max="100" value="55" autocomplete="off"> '
        '<output id="shown" for="opacity">55%</output></span>\n'
        f"{_switch('contour', f'Outline of what the model calls {name}')}\n"
        f"{_switch('places', 'Numbers of the tiles shown below')}</p>\n"
        f'<figure style="max-width:{width}px"><div class="stack"><img id="slide" width="{width}" '
        f'height="{height}" alt="Overview of the slide" src="{_jpeg(picture)}">\n'
        f'<img id="heat" style="opacity:.55" alt="Heatmap of the probability of {name} over the slide" '
        f'src="{_png(_heat(prediction, picture, px0))}">{_lines(prediction, evidence, width * px0, height * px0)}'
        f'<span class="bar" style="width:{length_um / (width * mpp):.4%}">{length_text(length_um)}</span></div>\n'
        f'<div class="legend" style="background:linear-gradient(to right, {colours}), #fff">'
        f'<i style="left:{share:.2f}%"></i></div><div class="ends"><span>0</span><span>1</span></div>'
        f"<figcaption>Probability of {name}, from 0 to 1: the lower it is, the more of the slide shows through. The "
        f"mark on the scale is the model's threshold, {_plain(prediction.threshold)}; the black line with white edges "
        "surrounds what reaches it. Where there is no colour nothing was analysed.</figcaption></figure>",
    )


def _switch(layer: str, label: str) -> str:
    """A box that shows and hides a layer of the map; the label is text of the page already."""
    return (
        f'<span><input type="checkbox" id="show-{layer}" data-layer="{layer}" checked autocomplete="off"> '
        f'<label for="show-{layer}">{label}</label></span>'
    )


def _lines(prediction: Prediction, evidence: Evidence, width0: float, height0: float) -> str:
    """What is drawn over the map, (width0, height0) level-0 pixels: the outline at the threshold, numbers of tiles.

    The outline scales with the map. Numbers are placed in percent of it, so that they stay legible on a small screen.
    """
    side, places = prediction.grid.tile_px0, []
    for number, (row, _) in enumerate((*evidence.most, *evidence.least), start=1):
        x, y = int(prediction.x0[row]), int(prediction.y0[row])
        places.append(
            f'<rect x="{x / width0:.3%}" y="{y / height0:.3%}" width="{side / width0:.3%}" '
            f'height="{side / height0:.3%}"/><text x="{(x + side / 2) / width0:.3%}" '
            f'y="{(y + side / 2) / height0:.3%}">{number}</text>'
        )
    name = _text(prediction.classes[prediction.positive])
    return (
        f'<svg id="lines" role="img" aria-label="Outline of what the model calls {name}, and the numbers of the tiles '
        f'shown below"><svg id="contour" viewBox="0 0 {width0:.3f} {height0:.3f}" width="100%" height="100%" '
        f'preserveAspectRatio="none"><defs><path id="rings" d="{_path(threshold_rings(prediction))}"/></defs>'
        '<use href="#rings" class="outer"/><use href="#rings" class="inner"/></svg>'
        f'<g id="places">{"".join(places)}</g></svg>'
    )


def _path(rings: Iterable[NDArray[np.float64]]) -> str:
    """Closed rings, each (n, 2), as an SVG path to the nearest unit: a corner, then steps from point to point."""
    parts = []
    for ring in rings:
        points = np.rint(ring[:-1]).astype(int)
        steps = " ".join(f"{dx},{dy}" for dx, dy in np.diff(points, axis=0).tolist())
        parts.append(f"M{points[0, 0]},{points[0, 1]}l{steps}z")
    return "".join(parts)


def _histogram_part(prediction: Prediction) -> str:
    values = prediction.probabilities[:, prediction.positive].astype(np.float64)
    if not len(values):
        return _section("Probabilities of the tiles", "<p>There are none.</p>")
    counts, edges = np.histogram(values, _BINS, (0, 1))
    return _section("Probabilities of the tiles", _histogram_svg(counts, prediction) + _counts_table(counts, edges))


def _histogram_svg(counts: NDArray[np.int64], prediction: Prediction) -> str:
    width, height, left, foot = 640, 220, 50, 40
    inner, tallest, step = height - foot - 20, int(counts.max()), (width - left - 20) / len(counts)
    fills = _colours((np.arange(len(counts)) + 0.5) / len(counts))[:, :3].tolist()
    bars = "".join(
        f'<rect x="{left + i * step + 1:.1f}" y="{20 + inner * (1 - n / tallest):.1f}" width="{step - 2:.1f}" '
        f'height="{inner * n / tallest:.1f}" fill="rgb({r},{g},{b})" stroke="#777"/>'
        for i, (n, (r, g, b)) in enumerate(zip(counts.tolist(), fills, strict=True))
    )
    name = _text(prediction.classes[prediction.positive])
    mark = left + prediction.threshold * step * len(counts)
    ticks = "".join(
        f'<text x="{left + t * step * len(counts):.1f}" y="{height - 24}" text-anchor="middle">{t:g}</text>'
        for t in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Histogram of the '
        f'probability of {name}; the counts are in the table below">{bars}<line x1="{mark:.1f}" x2="{mark:.1f}" y1="8" '
        f'y2="{height - foot}" stroke="#d55e00" stroke-width="3"/>{ticks}'
        f'<text x="{left + step * len(counts) / 2:.1f}" y="{height - 6}" text-anchor="middle">probability of {name}; '
        f'line: threshold</text><text x="{left - 6}" y="26" text-anchor="end">{tallest:,}</text>'
        f'<text x="{left - 6}" y="{height - foot}" text-anchor="end">0</text></svg>'
    )


def _counts_table(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> str:
    rows = [(f"{a:.2f} to {b:.2f}", f"{n:,}") for a, b, n in zip(edges, edges[1:], counts.tolist(), strict=False)]
    table = _table("Tiles by probability", ("probability", "tiles"), rows)
    return f"<details><summary>Counts as a table</summary>{table}</details>"


def _tiles_part(prediction: Prediction, evidence: Evidence) -> str:
    parts = []
    for title, shown, first in (
        ("Most suspicious", evidence.most, 1),
        ("Least suspicious", evidence.least, len(evidence.most) + 1),
    ):
        if shown:
            figures = "".join(_tile_figure(prediction, *found, n) for n, found in enumerate(shown, first))
            parts.append(f'<h3>{title}</h3><div class="tiles">{figures}</div>')
    side_um = prediction.grid.tile_px0 * prediction.slide.mpp
    text = f"<p>Each tile is {_number(side_um)} µm wide. Its number stands on the map above; x and y are its upper "
    text += "left corner, in pixels of the slide.</p>"
    return _section("Tiles", text + "".join(parts) if parts else "<p>There are none.</p>")


def _tile_figure(prediction: Prediction, row: int, pixels: UInt8Array, number: int) -> str:
    p, x, y = prediction.probabilities[row, prediction.positive], prediction.x0[row], prediction.y0[row]
    flagged = FLAG in prediction.columns and prediction.columns[FLAG][row]
    unlike = "<br><strong>unlike the training tiles</strong>" if flagged else ""
    return (
        f'<figure><b>{number}</b><img src="{_jpeg(_shrunk(pixels, _TILE_PX))}" alt="Tile at x {x}, y {y}, probability '
        f'{p:.3f}"><figcaption>{p:.3f}<br>x {x}, y {y}{unlike}</figcaption></figure>'
    )


def _quality_part(prediction: Prediction, evidence: Evidence) -> str:
    known = outside(prediction.columns, prediction.ood_quantile)
    if known is None:
        parts = ["<p>Whether the tiles are like those the model was trained on was not measured.</p>"]
    else:
        meaning = " Its probabilities mean little there." if known.tiles else ""
        parts = [f"<p>{_text(known.finding + meaning)}</p>"]
        if 0 < known.tiles < known.total:  # where all are, the picture of what was analysed is the same
            parts.append(_unlike_picture(prediction))
    rows = [
        (name, *map(_number, np.nanquantile(values.astype(np.float64), (0, 0.5, 1)).tolist()), _COLUMNS.get(name, ""))
        for name, values in {**prediction.columns, **evidence.quality}.items()
        if np.isfinite(values).any()
    ]
    if rows:
        parts.append(_table("Columns of the tiles", ("column", "least", "median", "most", "what it is"), rows))
    if not evidence.quality:
        parts.append("<p>Focus, pen marks and the like were not measured: a store has them, if its tiles were decoded.")
    return _section("Quality, and what the model knows", "".join(parts))


def _left_out_part(prediction: Prediction) -> str:
    grid, done = prediction.grid, len(prediction.x0)
    total = grid.rows * grid.columns
    rows = [(_LEFT_OUT.get(reason, reason), f"{count:,}") for reason, count in prediction.left_out.items() if count]
    text = f"<p>{done:,} of the {total:,} tiles of the slide's grid were analysed. The slide's own pixels are shown "
    text += "below where a tile was analysed; the rest is greyed.</p>"
    picture, px0 = _overview(prediction, _LONGEST_PX // 2)
    covered = np.isfinite(_assembled(prediction, picture.shape[:2], px0))
    table = _table("Tiles that were not analysed", ("they", "tiles"), rows) if rows else ""
    image = _image(_greyed(picture, covered), "The slide, greyed where not analysed")
    return _section("What was not analysed", f"{text}{table}{image}")


def _unlike_picture(prediction: Prediction) -> str:
    """Where the tiles out of distribution are; where tiles overlap, most of a place's must be."""
    picture, px0 = _overview(prediction, _LONGEST_PX // 2)
    unlike = np.nan_to_num(_assembled(prediction, picture.shape[:2], px0, prediction.columns[FLAG])) > 0.5
    image = _image(_greyed(picture, unlike), "The slide, greyed but for the tiles unlike the training tiles")
    return f"<figure>{image}<figcaption>Where they are: the rest of the slide is greyed.</figcaption></figure>"


def _greyed(picture: UInt8Array, but: NDArray[np.bool_]) -> UInt8Array:
    return np.where(but[..., None], picture, (picture // 4 + 96).astype(np.uint8))


def _image(picture: UInt8Array, alt: str) -> str:
    height, width = picture.shape[:2]
    size = f'width="{width}" height="{height}" style="max-width:100%;height:auto"'
    return f'<img src="{_jpeg(picture)}" {size} alt="{_text(alt)}">'


def _provenance_part(prediction: Prediction, software: Mapping[str, str]) -> str:
    slide, grid = prediction.slide, prediction.grid
    power = "unknown" if slide.objective_power is None else f"{slide.objective_power:g}"
    rows: list[tuple[str, str]] = [
        ("slide", slide.slide_id),
        ("slide SHA-256", slide.sha256),
        ("size, px", f"{slide.width} x {slide.height}"),
        ("µm per pixel", f"{slide.mpp:.6g}"),
        ("vendor", slide.vendor),
        ("objective power", power),
        ("tiles", f"{grid.tile_px} px at {grid.mpp:.4g} µm/px, every {grid.stride_px0} px of the slide"),
        ("classes", ", ".join(prediction.classes)),
        *_flat(prediction.provenance),
        *((f"software: {name}", version) for name, version in software.items()),
    ]
    return _section("Provenance", _table("What this was made from, and with", ("", ""), rows, long=True))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield from _flat({str(n): item for n, item in enumerate(value, start=1)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _overview(prediction: Prediction, longest: int = _LONGEST_PX) -> tuple[UInt8Array, float]:
    """The thumbnail, at most so long, and the level-0 pixels that a pixel of it spans."""
    picture = _shrunk(prediction.thumbnail, longest)
    return picture, prediction.thumbnail_px0 * prediction.thumbnail.shape[1] / picture.shape[1]


def _heat(prediction: Prediction, picture: UInt8Array, px0: float) -> UInt8Array:
    """The heatmap over the picture, RGBA; transparent where nothing was analysed."""
    values = _assembled(prediction, picture.shape[:2], px0)
    colours = _colours(np.nan_to_num(values))
    colours[..., 3] = _alphas(np.nan_to_num(values))
    colours[~np.isfinite(values)] = 0
    return colours


def _assembled(prediction: Prediction, shape: Sequence[int], px0: float, values: Floats | None = None) -> Floats:
    """The map of the positive class, or of other values of the tiles (N,); NaN where nothing was analysed."""
    shown = prediction.probabilities[:, prediction.positive] if values is None else values
    corners = (prediction.x0, prediction.y0, prediction.grid.tile_px0, px0)
    return assemble(shown, *corners, (shape[0], shape[1]))


def _colours(values: NDArray[np.floating[Any]]) -> UInt8Array:
    return np.asarray(matplotlib.colormaps[HEATMAP](values.clip(0, 1), bytes=True), np.uint8)


def _alphas(values: NDArray[np.floating[Any]]) -> UInt8Array:
    """Opacities of the heatmap's colours."""
    return np.rint(255 * (_CLEAREST + (1 - _CLEAREST) * values.clip(0, 1))).astype(np.uint8)


def _shrunk(picture: UInt8Array, longest: int) -> UInt8Array:
    scale = longest / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(picture: UInt8Array) -> str:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return _data_uri("jpeg", cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes())


def _png(picture: UInt8Array) -> str:
    bgra = cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA)
    return _data_uri("png", cv2.imencode(".png", bgra, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>"


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], long: bool = False) -> str:
    """A table of texts, escaped here; the first cell of a row is its head. `long` ones may break anywhere."""
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in columns) if any(columns) else ""
    lines = (
        f'<tr><th scope="row">{_text(first)}</th>' + "".join(f"<td>{_text(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    body = f"<thead><tr>{head}</tr></thead>" if head else ""
    body += f"<tbody>{''.join(lines)}</tbody>"
    kind = "wide long" if long else "wide"
    return f'<div class="{kind}"><table><caption>{_text(caption)}</caption>{body}</table></div>'


def _text(value: object) -> str:
    """Anything as text of the page, in an attribute too; what steers a text's direction or a terminal is replaced."""
    return escape(printable(str(value)))


def _number(value: float) -> str:
    """A number for people: four digits, thousands set apart, and no powers of ten."""
    if 0 < value < 0.001:
        return "< 0.001"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _plain(value: float) -> str:
    """A threshold in three digits, however small it is, without powers of ten."""
    return np.format_float_positional(value, precision=3, unique=False, fractional=False, trim="-")
