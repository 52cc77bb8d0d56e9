"""The heatmap as PNG with a transparent background: over the slide's thumbnail, or by itself.

Both have a colour bar from 0 to 1, a scale bar and the outline of what is at or above the threshold, and name the model
and the tiles.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from inference.colours import HEATMAP
from inference.maps.regions import rings_of
from inference.maps.slide_map import probability_map, threshold_rings
from inference.maps.stitch import assemble
from inference.prediction import Prediction
from inference.text import printable, threshold_text
from tiling.core.images import length_text, nice_length
from tiling.core.versions import RESEARCH_USE

_HEIGHT_IN = 7.0
_WIDTHS_IN = (3.2, 28.0)  # min, max: a strip of a slide must not make a giant of a picture
_OPACITY = 0.55
_FRAME = "0.5"


def overlay_png(prediction: Prediction, truth: shapely.Geometry | None = None) -> bytes:
    """PNG of the heatmap over the thumbnail, `truth` (level-0 pixels) outlined; equal predictions give equal bytes."""
    figure, axes = _figure(prediction)
    axes.imshow(prediction.thumbnail.values)
    heat = axes.imshow(heatmap_of(prediction), cmap=HEATMAP, vmin=0, vmax=1, alpha=_OPACITY, interpolation="nearest")
    if truth is not None and not truth.is_empty:
        draw_outlines(axes, rings_of(truth), prediction.thumbnail.downsample, "white")
    return _finished(figure, axes, heat, prediction)


def heatmap_png(prediction: Prediction) -> bytes:
    """PNG of the heatmap without the slide; equal predictions give equal bytes."""
    figure, axes = _figure(prediction)
    found = probability_map(prediction)
    height, width = prediction.thumbnail.values.shape[:2]
    bottom, right = (side * found.downsample / prediction.thumbnail.downsample - 0.5 for side in found.values.shape)
    heat = axes.imshow(
        found.values, cmap=HEATMAP, vmin=0, vmax=1, interpolation="nearest", extent=(-0.5, right, bottom, -0.5)
    )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    frame = Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=_FRAME, linewidth=0.8, clip_on=False)
    axes.add_patch(frame)
    return _finished(figure, axes, heat, prediction)


def _figure(prediction: Prediction) -> tuple[Figure, Axes]:
    height, width = prediction.thumbnail.values.shape[:2]
    size_in = (float(np.clip(_HEIGHT_IN * width / height, *_WIDTHS_IN)) + 1.6, _HEIGHT_IN + 0.9)
    figure = Figure(figsize=size_in, dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _finished(figure: Figure, axes: Axes, heat: AxesImage, prediction: Prediction) -> bytes:
    """The picture with all that explains it."""
    height, width = prediction.thumbnail.values.shape[:2]
    draw_outlines(axes, threshold_rings(prediction), prediction.thumbnail.downsample, "black")
    bar = figure.colorbar(heat, ax=axes, shrink=0.8)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    name, threshold = printable(prediction.heat_name), prediction.heat_threshold
    bar.set_label(f"{name}; black line: threshold {threshold_text(threshold)}", parse_math=False)
    bar.ax.axhline(threshold, color="black", linewidth=1.5)
    _scale_bar(axes, width, height, prediction.slide.mpp * prediction.thumbnail.downsample)
    axes.set_axis_off()
    axes.set_title(_title(prediction), fontsize=9, parse_math=False)  # a name may hold dollar signs
    figure.supxlabel(RESEARCH_USE, fontsize=7, x=0.01, ha="left")
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=True, metadata={"Software": None})
    return out.getvalue()


def heatmap_of(prediction: Prediction) -> NDArray[np.float32]:
    """What the map shows over the thumbnail, float32 (h, w); NaN where nothing was predicted."""
    thumbnail = prediction.thumbnail
    return assemble(prediction.heat, prediction.tiles, thumbnail.downsample, thumbnail.values.shape[:2])


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
    grid, made = prediction.grid, prediction.provenance
    tiles = f"{len(prediction.tiles)} tiles of {grid.tile_px} px at {grid.mpp:.3g} µm/px"
    return f"{printable(prediction.slide.slide_id)}\n{made['backbone']}, model {made['model_sha256'][:8]}, {tiles}"


def _scale_bar(axes: Axes, width: int, height: int, mpp: float) -> None:
    length_um = nice_length(width * mpp / 4)
    x, y, bar = 0.03 * width, 0.965 * height, length_um / mpp
    axes.plot([x, x + bar], [y, y], color="white", linewidth=6, solid_capstyle="butt")
    axes.plot([x, x + bar], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    label = axes.text(x, y - 0.012 * height, length_text(length_um), fontsize=9, va="bottom")
    label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5})
