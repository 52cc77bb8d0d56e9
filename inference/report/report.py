"""One slide's result as one HTML file that opens without a network: pictures inside, nothing fetched, all text escaped.

What the page shows is computed here; how it looks is `templates/report.html`. Only what is in a prediction gets into
it: no label or macro image, no free text of the slide, no path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from inference.colours import opacity
from inference.maps.overview import LONGEST_PX, assembled, colours, heat, overview, shrunk
from inference.maps.scores import MEANINGS, SlideScores
from inference.maps.slide_map import threshold_rings
from inference.ood import outside
from inference.prediction import FLAG, RATIO, Prediction
from inference.report.evidence import AROUND, AROUND_PX, Evidence, ShownTile
from inference.report.pictures import (
    AGAINST,
    FOR,
    SMALLEST_SCALE,
    greyed,
    influence,
    jpeg,
    outlined,
    png,
    svg_path,
)
from inference.summary import limits_of
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.images import length_text, nice_length
from tiling.core.pages import render
from tiling.core.text import threshold_text
from tiling.grid import Raster
from tiling.quality import METRICS

TEMPLATES = Path(__file__).parent / "templates"
_BINS = 20

_LEFT_OUT = {
    "no_tissue": "hold too little tissue",
    "undecodable": "cannot be decoded: the file is damaged there",
    "filtered": "were left out by the filter of quality columns",
    "outside_roi": "lie outside the region of interest",
    "other_size": "are of another size than the others in the file they were imported from",
}
_COLUMNS = {
    "entropy": "entropy of the classes' probabilities, nats: 0 is sure",
    "spread": "standard deviation over models and orientations",
    "attention": "weight of the tile in what the model says of the slide; their sum is 1",
    "relative_attention": "that over the largest on the slide",
    RATIO: "distance to the training tiles: above 1 is outside what the model has seen",
    FLAG: "1 where that is above 1, else 0",
    **METRICS,
}


def report_html(prediction: Prediction, scores: SlideScores, evidence: Evidence, software: Mapping[str, str]) -> str:
    """The report of a slide as an HTML page; equal input gives equal text.

    Args:
        prediction: What was predicted of the slide.
        scores: The slide's scores.
        evidence: The tiles and quality columns to show.
        software: Versions by name.

    Returns:
        The page.
    """
    name, grid = prediction.positive_class, prediction.grid
    known = outside(prediction.columns, prediction.ood_quantile)
    found = asdict(scores)
    picture = overview(prediction)
    return render(
        "report.html",
        folder=TEMPLATES,
        title=f"{prediction.slide.slide_id}: heatmap of {name}",
        style=_map_style(prediction, picture),
        name=name,
        threshold=threshold_text(prediction.threshold),
        shown=prediction.heat_name,
        attention=prediction.bag is not None,
        shown_threshold=threshold_text(prediction.heat_threshold),
        known=known,
        words=in_words(prediction, scores),
        limits=limits_of(prediction.provenance),
        scores=[(k, number_text(found[k]), words) for k, words in MEANINGS.items() if found[k] is not None],
        slide=_image(picture.values),
        heat=png(heat(prediction, picture)),
        size0=[f"{side:.3f}" for side in _size0(picture)],
        rings=svg_path(threshold_rings(prediction)),
        places=_places(prediction, evidence, picture),
        bar=length_text(_bar_um(prediction, picture)),
        histogram=_histogram(prediction),
        galleries=_galleries(prediction, evidence),
        influence=f"{scale:.2g}" if (scale := _influence_scale(evidence)) is not None else None,
        qupath0=prediction.slide.frame().qupath0,
        tile_um=number_text(grid.tile_px0 * prediction.slide.mpp),
        unlike=_unlike(prediction) if known and 0 < known.tiles < known.total else None,
        columns=_column_rows({**prediction.columns, **evidence.quality}),
        quality_measured=bool(evidence.quality),
        analysed=f"{len(prediction.tiles):,}",
        total=f"{grid.rows * grid.columns:,}",
        left_out=[(_LEFT_OUT.get(why, why), f"{count:,}") for why, count in prediction.left_out.items() if count],
        covered=_covered(prediction),
        provenance=_provenance(prediction, software),
    )  # fmt: skip


def in_words(prediction: Prediction, scores: SlideScores) -> str:
    """The scores of a slide in sentences."""
    name, threshold = prediction.positive_class, prediction.threshold
    if scores.mean is None or scores.top5_mean is None or scores.fraction_above_threshold is None:
        return "No tile of this slide was analysed, so nothing can be said of it. This is not a negative result."
    values = prediction.positives
    called, total = int((values >= threshold).sum()), len(values)
    known = outside(prediction.columns, prediction.ood_quantile)
    sentences = ["What follows is what the model computed, not a finding."] if known and known.tiles == total else []
    if prediction.bag is not None:
        sentences += _of_the_bag(prediction)
    sentences += [
        f"The model calls {called:,} of {total:,} analysed tiles ({scores.fraction_above_threshold:.1%}) {name}: their "
        f"probability reaches its threshold of {threshold_text(threshold)}.",
        f"The most suspicious 5% of the tiles have a mean probability of {scores.top5_mean:.2f}, all tiles one of "
        f"{scores.mean:.2f}.",
    ]
    if scores.area_above_mm2 is not None and scores.largest_region_mm2 is not None and called:
        sentences.append(
            f"Together the called area is {number_text(scores.area_above_mm2)} mm², its largest connected part "
            f"{number_text(scores.largest_region_mm2)} mm²."
        )
    if not called:
        sentences.append(f"That does not show that the slide is free of {name}.")
    return " ".join([*sentences, "A probability is the model's, for one tile; it is not a diagnosis of the slide."])


def _of_the_bag(prediction: Prediction) -> list[str]:
    """What a model of bags says of the slide, and what its map shows, in sentences."""
    assert prediction.bag is not None
    whole, name = float(prediction.bag.probabilities[prediction.positive]), prediction.positive_class
    reaches = "reaches" if whole >= prediction.threshold else "does not reach"
    return [
        f"The model gives the slide as a whole a calibrated probability of {whole:.3f} of {name}, which {reaches} its "
        f"threshold of {threshold_text(prediction.threshold)}.",
        "The map shows attention, how much each tile weighs in that, over the largest on this slide; attention is no "
        "probability, and the most attended tile of any slide has 1.",
        "What follows is of each tile as if it were the whole slide, which the model was not trained to tell.",
    ]


def _column_rows(columns: Mapping[str, Float32Array]) -> list[tuple[str, ...]]:
    """Name, minimum, median, maximum and meaning of the columns that hold a number."""
    known = {name: values.astype(np.float64) for name, values in columns.items() if np.isfinite(values).any()}
    return [
        (name, *map(number_text, np.nanquantile(values, (0, 0.5, 1)).tolist()), _COLUMNS.get(name, ""))
        for name, values in known.items()
    ]


def _map_style(prediction: Prediction, picture: Raster) -> str:
    """The CSS that depends on the map: its width, the scale bar, the legend's colours and the threshold's mark."""
    stops = zip(colours(np.linspace(0, 1, 9))[:, :3].tolist(), opacity(np.linspace(0, 1, 9)).tolist(), strict=True)
    gradient = ", ".join(f"rgba({r},{g},{b},{alpha:.3f})" for (r, g, b), alpha in stops)
    bar = _bar_um(prediction, picture) / (_size0(picture)[0] * prediction.slide.mpp)
    return (
        f"#map {{ max-width: {picture.values.shape[1]}px; }} .bar {{ width: {bar:.4%}; }}\n"
        f".legend {{ background: linear-gradient(to right, {gradient}), #fff; }}\n"
        f".legend i {{ left: {prediction.heat_threshold * 100:.2f}%; }}\n"
        f".influence {{ background: linear-gradient(to right, rgb{AGAINST}, #bbb, rgb{FOR}); }}"
    )


def _bar_um(prediction: Prediction, picture: Raster) -> float:
    return nice_length(_size0(picture)[0] * prediction.slide.mpp / 4)


def _size0(picture: Raster) -> tuple[float, float]:
    """Width and height of what a picture shows, level-0 pixels."""
    height, width = picture.values.shape[:2]
    return width * picture.downsample, height * picture.downsample


def _places(prediction: Prediction, evidence: Evidence, picture: Raster) -> list[dict[str, Any]]:
    """Where the numbered tiles lie, in percent of the map, so that numbers stay legible on a small screen."""
    side, places, (width0, height0) = prediction.grid.tile_px0, [], _size0(picture)
    for shown, tile in enumerate((*evidence.highest, *evidence.lowest), start=1):
        x, y = int(prediction.tiles.x0[tile.row]), int(prediction.tiles.y0[tile.row])
        places.append(
            {
                "number": shown, "x": f"{x / width0:.3%}", "y": f"{y / height0:.3%}", "width": f"{side / width0:.3%}",
                "height": f"{side / height0:.3%}", "middle_x": f"{(x + side / 2) / width0:.3%}",
                "middle_y": f"{(y + side / 2) / height0:.3%}",
            }
        )  # fmt: skip
    return places


def _histogram(prediction: Prediction) -> dict[str, Any] | None:
    """The places of what is drawn in a histogram of the tiles, and its counts; None without tiles."""
    values = prediction.positives.astype(np.float64)
    if not len(values):
        return None
    counts, edges = np.histogram(values, _BINS, (0, 1))
    width, height, left, foot = 640, 220, 50, 40
    inner, tallest, step = height - foot - 20, int(counts.max()), (width - left - 20) / _BINS
    fills = colours((np.arange(_BINS) + 0.5) / _BINS)[:, :3].tolist()
    return {
        "width": width, "height": height, "left": left, "foot": foot, "tallest": f"{tallest:,}",
        "mark": f"{left + prediction.threshold * step * _BINS:.1f}", "middle": f"{left + step * _BINS / 2:.1f}",
        "ticks": [(f"{left + t * step * _BINS:.1f}", f"{t:g}") for t in (0, 0.25, 0.5, 0.75, 1)],
        "bars": [
            {
                "x": f"{left + i * step + 1:.1f}", "y": f"{20 + inner * (1 - n / tallest):.1f}",
                "width": f"{step - 2:.1f}", "height": f"{inner * n / tallest:.1f}", "fill": f"rgb({r},{g},{b})",
            }
            for i, (n, (r, g, b)) in enumerate(zip(counts.tolist(), fills, strict=True))
        ],
        "counts": [
            (f"{a:.2f} to {b:.2f}", f"{n:,}") for a, b, n in zip(edges, edges[1:], counts.tolist(), strict=False)
        ],
    }  # fmt: skip


def _galleries(prediction: Prediction, evidence: Evidence) -> list[tuple[str, list[dict[str, Any]]]]:
    """The tiles to show, by the heading above them, numbered as on the map."""
    what, scale, found = "suspicious" if prediction.bag is None else "attended", _influence_scale(evidence), []
    for title, shown, first in (
        (f"Most {what}", evidence.highest, 1),
        (f"Least {what}", evidence.lowest, len(evidence.highest) + 1),
    ):
        tiles = [{"number": place, **_shown(prediction, tile, scale)} for place, tile in enumerate(shown, first)]
        found += [(title, tiles)] if tiles else []
    return found


def _shown(prediction: Prediction, tile: ShownTile, scale: float | None) -> dict[str, Any]:
    """A tile of a gallery."""
    flags, (left, top), row = prediction.columns.get(FLAG), prediction.slide.frame().qupath0, tile.row
    picture = whole = shrunk(tile.pixels, AROUND_PX)
    if tile.around is not None:
        near = len(tile.around) * (AROUND - 1) // (2 * AROUND)
        far = len(tile.around) - near
        picture, whole = tile.around[near:far, near:far], outlined(tile.around, near, far)
    change = tile.occlusion
    return {
        "src": jpeg(whole),
        "influence": None if change is None or scale is None else jpeg(influence(picture, change, scale)),
        "x": int(prediction.tiles.x0[row]) - left, "y": int(prediction.tiles.y0[row]) - top,
        "p": f"{prediction.probabilities[row, prediction.positive]:.3f}",
        "unlike": flags is not None and bool(flags[row]),
    }  # fmt: skip


def _influence_scale(evidence: Evidence) -> float | None:
    """The largest change of a probability where a part of one of the shown tiles is blurred; None where none is."""
    changes = [tile.occlusion for tile in (*evidence.highest, *evidence.lowest) if tile.occlusion is not None]
    return max(SMALLEST_SCALE, *(float(np.abs(change).max()) for change in changes)) if changes else None


def _covered(prediction: Prediction) -> dict[str, Any]:
    """The slide, greyed where nothing was analysed."""
    picture = overview(prediction, LONGEST_PX // 2)
    return _image(greyed(picture.values, np.isfinite(assembled(prediction.heat, prediction, picture))))


def _unlike(prediction: Prediction) -> dict[str, Any]:
    """Where the tiles out of distribution are; where tiles overlap, more than half of a place's weight must be."""
    picture = overview(prediction, LONGEST_PX // 2)
    unlike = np.nan_to_num(assembled(prediction.columns[FLAG], prediction, picture)) > 0.5
    return _image(greyed(picture.values, unlike))


def _image(picture: UInt8Array) -> dict[str, Any]:
    return {"src": jpeg(picture), "width": picture.shape[1], "height": picture.shape[0]}


def _provenance(prediction: Prediction, software: Mapping[str, str]) -> list[tuple[str, str]]:
    slide, grid, bounds = prediction.slide, prediction.grid, prediction.slide.bounds
    power = "unknown" if slide.objective_power is None else f"{slide.objective_power:g}"
    return [
        ("slide", slide.slide_id),
        ("slide SHA-256", slide.sha256),
        ("size, px", f"{slide.width} x {slide.height}"),
        *([] if bounds is None else [("scanned, px", f"{bounds.width0} x {bounds.height0} from {bounds.corner} on")]),
        ("µm per pixel", f"{slide.mpp:.6g}"),
        ("vendor", slide.vendor),
        ("objective power", power),
        ("tiles", f"{grid.tile_px} px at {grid.mpp:.4g} µm/px, every {grid.stride_px0} px of the slide"),
        ("classes", ", ".join(prediction.classes)),
        *_flat(prediction.provenance),
        *((f"software: {name}", version) for name, version in software.items()),
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield from _flat({str(n): item for n, item in enumerate(value, start=1)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def number_text(value: float) -> str:
    """A number for people: four digits, thousands set apart, and no powers of ten."""
    if 0 < value < 0.001:
        return "< 0.001"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
