"""The heatmap as PNG with a transparent background: over the slide's thumbnail, by itself, or as a bare layer.

The first two have a colour bar from 0 to 1, a scale bar and the outline of what is at or above the threshold, and name
the model and the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from inference.colours import HEATMAP
from inference.maps.overview import heat, overview
from inference.maps.regions import rings_of
from inference.maps.slide_map import probability_map, threshold_rings
from inference.prediction import Prediction
from tiling.core.files import canonical_json
from tiling.core.images import length_text, nice_length
from tiling.core.text import counted, printable, threshold_text
from tiling.core.versions import RESEARCH_USE
from training.evaluation.figures import drawn

_HEIGHT_IN = 7.0
_OPACITY = 0.55
_WIDTHS_IN = (3.2, 28.0)  # min, max: a strip of a slide must not make a giant of a picture
_FRAME = "0.5"


def overlay_png(prediction: Prediction, truth: shapely.Geometry | None = None) -> bytes:
    """PNG of the heatmap over the thumbnail, `truth` (level-0 pixels) outlined; equal predictions give equal bytes."""
    figure, axes = _figure(prediction)
    # No finer than the figure is: matplotlib shrinks slowly.
    picture = overview(prediction, round(figure.dpi * max(figure.get_size_inches())))
    height, width = prediction.thumbnail.values.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(picture.values, extent=extent)
    axes.imshow(heat(prediction, picture), alpha=_OPACITY, interpolation="nearest", extent=extent)
    if truth is not None and not truth.is_empty:
        draw_outlines(axes, rings_of(truth), prediction.thumbnail.downsample, "white")
    return _finished(figure, axes, prediction)


def heatmap_png(prediction: Prediction) -> bytes:
    """PNG of the heatmap without the slide; equal predictions give equal bytes."""
    figure, axes = _figure(prediction)
    found = probability_map(prediction)
    height, width = prediction.thumbnail.values.shape[:2]
    bottom, right = (side * found.downsample / prediction.thumbnail.downsample - 0.5 for side in found.values.shape)
    axes.imshow(found.values, cmap=HEATMAP, vmin=0, vmax=1, interpolation="nearest", extent=(-0.5, right, bottom, -0.5))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    frame = Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=_FRAME, linewidth=0.8, clip_on=False)
    axes.add_patch(frame)
    return _finished(figure, axes, prediction)


def _figure(prediction: Prediction) -> tuple[Figure, Axes]:
    height, width = prediction.thumbnail.values.shape[:2]
    size_in = (float(np.clip(_HEIGHT_IN * width / height, *_WIDTHS_IN)) + 1.6, _HEIGHT_IN + 0.9)
    figure = Figure(figsize=size_in, dpi=150, layout="constrained", facecolor="none")
    return figure, figure.add_subplot()


def _finished(figure: Figure, axes: Axes, prediction: Prediction) -> bytes:
    """The picture with all that explains it."""
    height, width = prediction.thumbnail.values.shape[:2]
    draw_outlines(axes, threshold_rings(prediction), prediction.thumbnail.downsample, "black")
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), HEATMAP), ax=axes, shrink=0.8)
    name, threshold = printable(prediction.heat_name), prediction.heat_threshold
    bar.set_label(f"{name}; black line: threshold {threshold_text(threshold)}", parse_math=False)
    bar.ax.axhline(threshold, color="black", linewidth=1.5)
    _scale_bar(axes, width, height, prediction.slide.mpp * prediction.thumbnail.downsample)
    axes.set_axis_off()
    axes.set_title(_title(prediction), fontsize=9, parse_math=False)  # a name may hold dollar signs
    figure.supxlabel(RESEARCH_USE, fontsize=7, x=0.01, ha="left")
    return drawn(figure)


def write_layer(prediction: Prediction, path: Path) -> None:
    """Write the map as a picture to be laid over the slide, and where it lies as JSON beside it. Raises OSError.

    A pixel of the map is a pixel, in its colour, and transparent where nothing was predicted; there is no frame.
    """
    found = probability_map(prediction)
    pixels = np.asarray(colormaps[HEATMAP](np.nan_to_num(found.values), bytes=True), np.uint8)
    pixels[~np.isfinite(found.values)] = 0
    Image.fromarray(pixels).save(path, format="png")
    (height, width), facts = found.values.shape, prediction.slide
    place = {
        "x0": 0, "y0": 0, "width0": width * found.downsample, "height0": height * found.downsample,
        "level0_pixels_per_pixel": found.downsample, "mpp": found.mpp, "unit": "level-0 pixels",
        "slide": {"slide_id": facts.slide_id, "sha256": facts.sha256, "width0": facts.width, "height0": facts.height},
        "qupath_counts_from": found.qupath0, "shows": found.name, "colours": HEATMAP, "range": [0, 1],
        "threshold": prediction.heat_threshold, "model_sha256": prediction.provenance["model_sha256"],
        "notice": RESEARCH_USE,
    }  # fmt: skip
    path.with_suffix(".json").write_text(canonical_json(place), encoding="utf-8")


def draw_outlines(axes: Axes, rings: Sequence[NDArray[np.float64]], downsample: float, colour: str) -> None:
    """Draw rings on a picture, in a colour with an edge of black or white that sets it off from any ground.

    Args:
        axes: The axes that show the picture.
        rings: (n, 2) each, level-0 pixels.
        downsample: Level-0 pixels per pixel of the picture.
        colour: matplotlib's name of the colour.
    """
    drawn, joints = [ring / downsample - 0.5 for ring in rings], {"capstyle": "projecting", "joinstyle": "round"}
    for shade, width in (("black" if colour == "white" else "white", 2.4), (colour, 1.2)):
        # One collection of all: a line of its own for each ring takes half the time of the picture.
        axes.add_collection(LineCollection(drawn, colors=shade, linewidths=width, zorder=2, **joints))


def _title(prediction: Prediction) -> str:
    grid, sha256 = prediction.grid, prediction.provenance["model_sha256"]
    model = printable(prediction.model_name) + (f", model {sha256[:8]}" if sha256 else "")
    tiles = f"{counted(len(prediction.tiles), 'tile')} of {grid.tile_px} px at {grid.mpp:.3g} µm/px"
    return f"{printable(prediction.slide.slide_id)}\n{model}, {tiles}"


def _scale_bar(axes: Axes, width: int, height: int, mpp: float) -> None:
    length_um = nice_length(width * mpp / 4)
    x, y, bar = 0.03 * width, 0.965 * height, length_um / mpp
    axes.plot([x, x + bar], [y, y], color="white", linewidth=6, solid_capstyle="butt")
    axes.plot([x, x + bar], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    label = axes.text(x, y - 0.012 * height, length_text(length_um), fontsize=9, va="bottom")
    label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5})
