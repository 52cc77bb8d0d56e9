"""What is drawn for a report alone: tiles, and pictures as data URIs, outlines as SVG paths."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tiling.core.arrays import Float32Array, UInt8Array

FOR, AGAINST = (230, 159, 0), (0, 114, 178)
"""Colours of what speaks for the positive class and against it, which colour-blind readers tell apart."""
SMALLEST_SCALE = 0.02
"""Change of the probability that their full colour stands for at least, lest nothing looks like something."""
_MOST_OPAQUE = 0.75
_JPEG_QUALITY = 85


def greyed(picture: UInt8Array, but: NDArray[np.bool_]) -> UInt8Array:
    """The picture, greyed but where the mask (h, w) is true."""
    return np.where(but[..., None], picture, (picture // 4 + 96).astype(np.uint8))


def outlined(picture: UInt8Array, near: int, far: int) -> UInt8Array:
    """A picture with the outline of the square between two of its rows, and columns, `far` outside."""
    drawn, far = picture.copy(), far - 1
    for colour, width in ((255, 4), (0, 2)):
        cv2.rectangle(drawn, (near, near), (far, far), (colour,) * 3, width)
    return drawn


def influence(tile: UInt8Array, change: Float32Array, scale: float) -> UInt8Array:
    """A tile (h, h, 3) in grey, under by how much blurring lowers its probability (T, T), uint8 (h, h, 3).

    Full colour stands for a change of `scale`.
    """
    side = len(tile)
    share = np.clip(cv2.resize(change, (side, side), interpolation=cv2.INTER_LINEAR) / scale, -1, 1)[..., None]
    grey = np.repeat(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    alpha = _MOST_OPAQUE * np.abs(share)
    return np.asarray(np.rint(grey * (1 - alpha) + np.where(share > 0, FOR, AGAINST) * alpha), np.uint8)


def svg_path(rings: Iterable[NDArray[np.float64]]) -> Markup:
    """Closed rings, each (n, 2), as an SVG path to the nearest unit: a corner, then steps from point to point."""
    parts = []
    for ring in rings:
        points = np.rint(ring[:-1]).astype(int)
        steps = " ".join(f"{dx},{dy}" for dx, dy in np.diff(points, axis=0).tolist())
        parts.append(f"M{points[0, 0]},{points[0, 1]}l{steps}z")
    return Markup("".join(parts))


def jpeg(picture: UInt8Array) -> Markup:
    """A picture as JPEG in a data URI."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return _data_uri("jpeg", cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes())


def png(picture: UInt8Array) -> Markup:
    """A picture as PNG in a data URI."""
    bgra = cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA)
    return _data_uri("png", cv2.imencode(".png", bgra, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes())


def _data_uri(kind: str, data: bytes) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
