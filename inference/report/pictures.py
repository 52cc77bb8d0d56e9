"""The pictures of a report: overview, heatmap and tiles as data URIs, outlines as SVG paths."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from inference.colours import HEATMAP
from inference.maps.stitch import assemble
from inference.predict import Prediction

UInt8Array = NDArray[np.uint8]
Floats = NDArray[np.float32]

LONGEST_PX = 1200
"""Of the longer side of the overview."""
_JPEG_QUALITY = 85
_CLEAREST = 0.25
"""Opacity of the heatmap's colour where the probability is 0. It rises to 1: an even one would hide what tissue looks
like just where nothing was found, under a purple that is taken for haematoxylin."""


def overview(prediction: Prediction, longest: int = LONGEST_PX) -> tuple[UInt8Array, float]:
    """The thumbnail, at most so long, and the level-0 pixels that a pixel of it spans."""
    picture = shrunk(prediction.thumbnail.values, longest)
    return picture, prediction.thumbnail.downsample * prediction.thumbnail.values.shape[1] / picture.shape[1]


def heat(prediction: Prediction, picture: UInt8Array, px0: float) -> UInt8Array:
    """The heatmap over the picture, RGBA; transparent where nothing was analysed."""
    values = assembled(prediction, picture.shape[:2], px0)
    drawn = colours(np.nan_to_num(values))
    drawn[..., 3] = alphas(np.nan_to_num(values))
    drawn[~np.isfinite(values)] = 0
    return drawn


def assembled(prediction: Prediction, shape: Sequence[int], px0: float, values: Floats | None = None) -> Floats:
    """The map of the positive class, or of other values of the tiles (N,); NaN where nothing was analysed."""
    shown = prediction.probabilities[:, prediction.positive] if values is None else values
    corners = (prediction.tiles.x0, prediction.tiles.y0, prediction.grid.tile_px0, px0)
    return assemble(shown, *corners, (shape[0], shape[1]))


def colours(values: NDArray[np.floating[Any]]) -> UInt8Array:
    """RGBA of probabilities."""
    return np.asarray(matplotlib.colormaps[HEATMAP](values.clip(0, 1), bytes=True), np.uint8)


def alphas(values: NDArray[np.floating[Any]]) -> UInt8Array:
    """Opacities of the heatmap's colours."""
    return np.rint(255 * (_CLEAREST + (1 - _CLEAREST) * values.clip(0, 1))).astype(np.uint8)


def shrunk(picture: UInt8Array, longest: int) -> UInt8Array:
    """The picture, its longer side at most so long."""
    scale = longest / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def greyed(picture: UInt8Array, but: NDArray[np.bool_]) -> UInt8Array:
    """The picture, greyed but where the mask (h, w) is true."""
    return np.where(but[..., None], picture, (picture // 4 + 96).astype(np.uint8))


def svg_path(rings: Iterable[NDArray[np.float64]]) -> Markup:
    """Closed rings, each (n, 2), as an SVG path to the nearest unit: a corner, then steps from point to point."""
    parts = []
    for ring in rings:
        points = np.rint(ring[:-1]).astype(int)
        steps = " ".join(f"{dx},{dy}" for dx, dy in np.diff(points, axis=0).tolist())
        parts.append(f"M{points[0, 0]},{points[0, 1]}l{steps}z")
    return Markup("".join(parts))


def jpeg(picture: UInt8Array) -> Markup:
    """As a data URI."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return _data_uri("jpeg", cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes())


def png(picture: UInt8Array) -> Markup:
    """As a data URI."""
    bgra = cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA)
    return _data_uri("png", cv2.imencode(".png", bgra, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes())


def _data_uri(kind: str, data: bytes) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
