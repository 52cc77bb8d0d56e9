"""The heatmap laid over the slide's thumbnail, with colour bar and scale bar, as PNG with a transparent background."""

from __future__ import annotations

import io

import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inference.colours import HEATMAP
from inference.heatmap import assemble
from inference.predict import Prediction
from tiling.preview import nice_length
from tiling.versions import RESEARCH_USE

_HEIGHT_IN = 7.0
_WIDTHS_IN = (3.2, 28.0)  # the least and the greatest: a strip of a slide must not make a giant of a picture
_OPACITY = 0.55


def overlay_png(prediction: Prediction, truth: shapely.Geometry | None = None) -> bytes:
    """The PNG's bytes; equal predictions give equal bytes. `truth` (level-0 pixels) is outlined where given."""
    picture, px0 = prediction.thumbnail, prediction.thumbnail_px0
    height, width = picture.shape[:2]
    size_in = (float(np.clip(_HEIGHT_IN * width / height, *_WIDTHS_IN)) + 1.6, _HEIGHT_IN + 0.9)
    figure = Figure(figsize=size_in, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(picture)
    heat = axes.imshow(heatmap_of(prediction), cmap=HEATMAP, vmin=0, vmax=1, alpha=_OPACITY, interpolation="nearest")
    if truth is not None and not truth.is_empty:
        for ring in _rings(truth):
            axes.plot(*(ring / px0).T, color="black", linewidth=2.6)
            axes.plot(*(ring / px0).T, color="white", linewidth=1.2)
    bar = figure.colorbar(heat, ax=axes, shrink=0.8)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.set_label(f"probability of {prediction.classes[prediction.positive]}", parse_math=False)
    bar.ax.axhline(prediction.threshold, color="black", linewidth=1.5)
    _scale_bar(axes, width, height, prediction.slide.mpp * px0)
    axes.set_axis_off()
    axes.set_title(_title(prediction), fontsize=9, parse_math=False)  # a name may hold dollar signs
    figure.supxlabel(RESEARCH_USE, fontsize=7, x=0.01, ha="left")
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=True, metadata={"Software": None})
    return out.getvalue()


def heatmap_of(prediction: Prediction) -> NDArray[np.float32]:
    """The positive class' probability over the thumbnail, float32 (h, w); NaN where nothing was predicted."""
    return assemble(
        prediction.probabilities[:, prediction.positive],
        prediction.x0,
        prediction.y0,
        prediction.grid.tile_px0,
        prediction.thumbnail_px0,
        prediction.thumbnail.shape[:2],
    )


def _title(prediction: Prediction) -> str:
    grid, made = prediction.grid, prediction.provenance
    tiles = f"{len(prediction.x0)} tiles of {grid.tile_px} px at {grid.mpp:.3g} µm/px"
    return f"{prediction.slide.slide_id}\n{made['backbone']}, model {made['model_sha256'][:8]}, {tiles}"


def _scale_bar(axes: Axes, width: int, height: int, mpp: float) -> None:
    length_um = nice_length(width * mpp / 4)
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    x, y, bar = 0.03 * width, 0.965 * height, length_um / mpp
    axes.plot([x, x + bar], [y, y], color="white", linewidth=6, solid_capstyle="butt")
    axes.plot([x, x + bar], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    label = axes.text(x, y - 0.012 * height, text, fontsize=9, va="bottom")
    label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5})


def _rings(geometry: shapely.Geometry) -> list[NDArray[np.float64]]:
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]
    return [np.asarray(ring.coords) for part in parts for ring in (part.exterior, *part.interiors)]
