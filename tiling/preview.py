"""A store's preview: the thumbnail with the outline of its tissue mask, the kept tiles and a scale bar, as PNG."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.core.arrays import UInt8Array
from tiling.core.files import write_file
from tiling.core.images import length_text, nice_length
from tiling.core.text import counted
from tiling.stores.store import TileStore
from tiling.tissue import INK, TOO_SMALL

_OUTLINE = (0, 114, 178)  # Okabe and Ito's colours: distinct also for colour-blind readers
_TILES = (213, 94, 0)
_CUT = {INK: ((204, 121, 167), "pen ink"), TOO_SMALL: ((0, 158, 115), "too small")}
_LONGEST_SIDE_PX = (700, 3000)  # min and max


def write_preview(store: TileStore, path: Path, kept: NDArray[np.bool_] | None = None) -> None:
    """Draw the preview of a store, or of its `kept` tiles, and write it as PNG. Raises OutputError."""
    ok, png = cv2.imencode(".png", cv2.cvtColor(draw_preview(store, kept), cv2.COLOR_RGB2BGR))
    assert ok
    write_file(path, png.tobytes())


def draw_preview(store: TileStore, kept: NDArray[np.bool_] | None = None) -> UInt8Array:
    """The preview picture, uint8 (h, w, 3), with all tiles or those `kept`, bool (N,)."""
    thumbnail, px0 = store.thumbnail.values, store.thumbnail.downsample
    side = max(thumbnail.shape[:2])
    times = min(max(side, _LONGEST_SIDE_PX[0]), _LONGEST_SIDE_PX[1]) / side
    how = cv2.INTER_AREA if times < 1 else cv2.INTER_CUBIC
    picture = np.asarray(cv2.resize(thumbnail, None, fx=times, fy=times, interpolation=how), np.uint8)
    mask = cv2.resize(store.mask.values.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    corners = np.stack([store.tiles.x0, store.tiles.y0], 1)[slice(None) if kept is None else kept]
    first = np.round(corners / px0 * times).astype(int)
    last = np.round((corners + store.grid.tile_px0) / px0 * times).astype(int)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, _OUTLINE, 2)
    for (xa, ya), (xb, yb) in zip(first.tolist(), last.tolist(), strict=True):
        cv2.rectangle(picture, (xa, ya), (xb, yb), _TILES, 2)
    if store.cut is not None:
        cut = cv2.resize(store.cut.values, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        for value, (colour, _) in _CUT.items():
            lines, _ = cv2.findContours((cut == value).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, lines, -1, colour, 2)
    _scale_bar(picture, store.slide.mpp * px0 / times)
    return np.concatenate([picture, _legend(store, picture.shape[1])])


def _legend(store: TileStore, width: int) -> UInt8Array:
    """What the colours say, what was left out and why, and what is doubtful: lines of text, uint8 (h, width, 3)."""
    summary = store.attributes.tissue_summary
    if summary is None:
        return np.full((0, width, 3), 255, np.uint8)
    lines = [(f"tissue {summary.tissue_mm2:.2f} mm2", _OUTLINE if summary.tissue_mm2 else None)]
    lines += [(counted(len(store), "tile"), _TILES if len(store) else None)]
    colours = {label: colour for colour, label in _CUT.values()}
    left_out = summary.left_out()
    for why, area in left_out.items():
        share = f" ({area / summary.tissue_mm2:.0%} of the tissue)" if summary.tissue_mm2 else ""
        lines.append((f"left out, {why}: {area:.2f} mm2{share}", colours.get(why)))
    drawn = set() if store.cut is None else {_CUT[value][1] for value in np.unique(store.cut.values) if value in _CUT}
    lines += [(f"left out, {why}: below 0.01 mm2", colours[why]) for why in sorted(drawn - left_out.keys())]
    lines += [(f"! {doubt.partition(':')[0]}".replace("²", "2"), None) for doubt in store.attributes.doubts()]
    legend = np.full((8 + 20 * len(lines), width, 3), 255, np.uint8)
    for number, (text, colour) in enumerate(lines):
        top = 8 + 20 * number
        if colour is not None:
            cv2.rectangle(legend, (8, top), (22, top + 12), colour, -1)
        cv2.putText(legend, text, (30, top + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return legend


def _scale_bar(picture: UInt8Array, mpp: float) -> None:
    """Draw a bar of a round length, about a fifth of the width, into the lower left corner."""
    length_um = nice_length(picture.shape[1] * mpp / 5)
    height, width_px = picture.shape[0], max(1, round(length_um / mpp))
    text = length_text(length_um).replace("µ", "u")  # OpenCV's letters have no µ
    cv2.rectangle(picture, (14, height - 22), (14 + width_px, height - 16), (0, 0, 0), -1)
    cv2.putText(picture, text, (14, height - 30), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
