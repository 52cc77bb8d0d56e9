"""Slide in small -> tissue mask. Pure; knows nothing of slides.

The default method never loses tissue for the hue of its stain: tissue is what differs from the glass near it, in colour
or in the texture of its colour. White, grey and tinted glass, shadows, dust and black borders have neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from tiling import histoprep
from tiling.config import TissueConfig
from tiling.core.arrays import BoolArray, Float64Array, UInt8Array
from tiling.glass import (
    STAINED_OD,
    background_colour,
    channel_range,
    counts,
    density_over,
    local_glass,
    optical_density,
    padding_mask,
)
from tiling.ink import as_nearest, border_mask, ink_mask
from tiling.overview import SPREAD_UNIT, Overview, strips

_MIN_OD = 0.03  # what is stained absorbs; white beside tinted glass does not
_TEXTURE = (3.5, 10.0)  # grey levels: the limit of the glass's texture, at least and at most
_NOISES = 3  # the limit, in the glass's own texture
_LIT = 50  # a pixel whose brightest channel is below is dark
INK, TOO_SMALL = 1, 2
"""What `Found.cut` says."""
_MOST_INK = 4.0  # times the tissue; a slide with more ink than that is stained by a dye that looks like ink
_NOTABLE = 0.78  # brightness in that of the glass
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


@dataclass(frozen=True)
class Found:
    """Tissue and what was left out, bool (h, w) each."""

    tissue: BoolArray
    ink: BoolArray
    """Pen ink, over tissue too."""
    too_small: BoolArray
    """What looked like tissue and was dropped for its size."""
    notable_px: int = 0
    """Pixels outside the tissue that are dark or textured, and neither ink nor dropped for their size."""

    @property
    def cut(self) -> UInt8Array:
        """What is left out: `INK` or `TOO_SMALL`, 0 elsewhere; uint8 (h, w)."""
        cut = self.too_small.astype(np.uint8) * np.uint8(TOO_SMALL)
        cut[self.ink & ~self.tissue] = INK
        return cut


@dataclass(frozen=True)
class Scene:
    """A slide in small, and what on it is surely not tissue."""

    picture: UInt8Array
    """RGB (h, w, 3)."""
    texture: UInt8Array
    """`Overview.texture`, (h, w)."""
    ink: BoolArray
    """Pen ink, (h, w)."""
    clear: BoolArray
    """Neither ink nor white padding nor a black border, (h, w)."""
    glass: Float64Array
    """The commonest colour of the glass, RGB (3,)."""

    @classmethod
    def of(cls, overview: Overview, mpp: float) -> Scene:
        """The scene of a slide in small."""
        picture = overview.picture
        ink = ink_mask(picture, overview.texture, mpp)
        clear = ~(border_mask(picture) | padding_mask(picture) | ink)
        return cls(picture, overview.texture, ink, clear, background_colour(picture, ~clear))


def find_tissue(overview: Overview, mpp: float, config: TissueConfig) -> Found:
    """Where the tissue is by `config.method`, on a slide in small of `mpp` micrometres a pixel.

    A picture that is not bright-field (fluorescence: dark with coloured light) has none, but by `all`. Where there is
    hardly any tissue but for what looks like ink, that counts as tissue: a strong, even dye looks like it. Raises
    ConfigError for `histoprep` without the extra, ValueError for `mask`, which is no detection.
    """
    if config.method not in METHODS:
        raise ValueError(f"{config.method} detects nothing")
    scene = Scene.of(overview, mpp)
    nothing = np.zeros(scene.ink.shape, np.bool_)
    if config.method == "all":
        return Found(~scene.ink if config.drop_ink else ~nothing, scene.ink, nothing)
    if not is_bright_field(overview.picture):
        return Found(nothing, nothing, nothing)
    seen, tissue = _detected(scene, mpp, config)
    if np.count_nonzero(scene.ink) > _MOST_INK * np.count_nonzero(tissue):
        seen, tissue = _detected(replace(scene, ink=nothing, clear=scene.clear | scene.ink), mpp, config)
    too_small = seen & ~tissue
    tissue &= ~scene.ink if config.drop_ink else ~nothing
    return Found(tissue, scene.ink, too_small, _notable_px(scene, tissue | too_small))


def _detected(scene: Scene, mpp: float, config: TissueConfig) -> tuple[BoolArray, BoolArray]:
    """Where the method sees tissue, and what of it is large enough, (h, w) each."""
    seen = METHODS[config.method](scene)
    if config.method != "histoprep":
        seen = as_nearest(seen, scene.ink) & (scene.clear | scene.ink)
        seen = smoothed(seen, mpp, config)
    return seen, sized(seen, mpp, config)


def given_tissue(tissue: BoolArray, overview: Overview, mpp: float, config: TissueConfig) -> Found:
    """The user's own tissue mask, taken as drawn.

    Args:
        tissue: The mask, bool (h, w).
        overview: The slide in small, of (h, w) pixels.
        mpp: Micrometres per pixel of the overview.
        config: The settings: with `drop_ink` the pen ink on the mask is taken away.

    Returns:
        The mask, and where ink was found.
    """
    ink = Scene.of(overview, mpp).ink
    return Found(tissue & ~ink if config.drop_ink else tissue, ink, np.zeros_like(tissue))


def unlike_glass(scene: Scene) -> BoolArray:
    """Where colour or its texture is not that of the glass nearby."""
    picture, clear, glass = scene.picture, scene.clear, scene.glass
    even = clear & (scene.texture <= _texture_limit(scene))
    nearby = local_glass(picture, even, glass)
    found = clear & ~even
    for rows, _, _ in strips(len(picture)):
        lowest, highest = channel_range(density_over(picture, nearby, rows))
        found[rows] |= clear[rows] & (highest - lowest > STAINED_OD) & (highest > _MIN_OD)
    return found


def stained(scene: Scene) -> BoolArray:
    """Where optical density differs between the channels by more than one glass colour and noise do."""
    smooth, found = _smooth(scene.picture), scene.clear.copy()
    for rows, _, _ in strips(len(smooth)):
        lowest, highest = channel_range(optical_density(smooth[rows], scene.glass))
        found[rows] &= highest - lowest > STAINED_OD
    return found


def above_otsu(scene: Scene) -> BoolArray:
    """Where the mean optical density exceeds Otsu's threshold (1979), itself at least `STAINED_OD`.

    Ink and borders are left out of the histogram too, or they would decide the threshold.
    """
    smooth, clear = _smooth(scene.picture), scene.clear
    density = np.empty(clear.shape, np.float32)
    for rows, _, _ in strips(len(smooth)):
        density[rows] = np.clip(optical_density(smooth[rows], scene.glass).mean(2), 0, 2)
    if not clear.any():
        return clear
    levels = np.asarray(np.rint(density * (255 / 2)), np.uint8)
    threshold, _ = cv2.threshold(levels[clear], 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return np.asarray((density > max(threshold * 2 / 255, STAINED_OD)) & clear)


def of_stain_hue(scene: Scene) -> BoolArray:
    """Where HSV saturation, with the glass made white, is at least 18 of 255 and the hue is violet to brown."""
    smooth, found = _smooth(scene.picture), scene.clear.copy()
    for rows, _, _ in strips(len(smooth)):
        white = np.minimum(smooth[rows] * (255 / scene.glass), 255).astype(np.uint8)
        hue, saturation, _ = cv2.split(cv2.cvtColor(white, cv2.COLOR_RGB2HSV))
        found[rows] &= (saturation >= 18) & ((hue >= 120) | (hue <= 20))
    return found


def everywhere(scene: Scene) -> BoolArray:
    """All of the slide."""
    return np.ones(scene.ink.shape, np.bool_)


METHODS: dict[str, Callable[[Scene], BoolArray]] = {
    "local": unlike_glass,
    "specslide": stained,
    "otsu": above_otsu,
    "hsv": of_stain_hue,
    "histoprep": lambda scene: histoprep.tissue(scene.picture),
    "all": everywhere,
}
"""What `--tissue` can name: from a `Scene` to where tissue is, bool (h, w)."""


def is_bright_field(picture: UInt8Array) -> bool:
    """Whether light passes through the slide: the pixels that are lit at all are mostly lit in every channel."""
    darkest, brightest = channel_range(picture)
    lit = np.count_nonzero(brightest >= _LIT)
    return bool(lit >= 0.01 * brightest.size and np.count_nonzero(darkest >= _LIT) > 0.3 * lit)


def smoothed(mask: BoolArray, mpp: float, config: TissueConfig) -> BoolArray:
    """The mask without speckle: edges closed, small holes filled, single pixels and lines opened away.

    Holes are filled before speckle is opened away, or the thin walls of fat cells would go with it.
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    # Framed, or tissue near the edge would be joined to it, and cut off the glass.
    holes = cv2.morphologyEx(np.pad(mask.view(np.uint8), 8), cv2.MORPH_CLOSE, kernel)[8:-8, 8:-8] == 0
    filled = ~_large_objects(holes, config.max_hole_um2 / mpp**2, open_ended=True)
    return np.asarray(cv2.morphologyEx(filled.view(np.uint8), cv2.MORPH_OPEN, _CROSS) > 0)


def sized(mask: BoolArray, mpp: float, config: TissueConfig) -> BoolArray:
    """The mask with its small holes filled and its small objects dropped, by the areas of the settings."""
    filled = ~_large_objects(~mask, config.max_hole_um2 / mpp**2, open_ended=True)
    # On a slide that is itself as small, what fills half of it is no speck.
    return _large_objects(filled, min(config.min_object_um2 / mpp**2, mask.size / 2))


def _texture_limit(scene: Scene) -> float:
    """What texture glass has at most, in units of `Overview.texture`: by that of the clear glass on this slide."""
    seen = np.zeros(256, np.int64)
    for rows, _, _ in strips(len(scene.picture)):
        near = cv2.inRange(scene.picture[rows], scene.glass * (1 - STAINED_OD), scene.glass * (1 + STAINED_OD))
        seen += counts(scene.texture[rows], np.asarray(near, np.uint8) & scene.clear[rows], (0,))
    own = np.searchsorted(np.cumsum(seen), seen.sum() / 2) if seen.any() else 0
    return float(np.clip(_NOISES * own * SPREAD_UNIT, *_TEXTURE) / SPREAD_UNIT)


def _notable_px(scene: Scene, tissue: BoolArray) -> int:
    """Pixels outside the tissue, neither ink nor absent, that are dark or textured."""
    limit, count = _NOTABLE * scene.glass.mean(), 0
    for rows, _, _ in strips(len(scene.picture)):
        dark = cv2.cvtColor(scene.picture[rows], cv2.COLOR_RGB2GRAY) < limit
        marked = dark | (scene.texture[rows] > _TEXTURE[1] / SPREAD_UNIT)
        count += int(np.count_nonzero(marked & scene.clear[rows] & ~tissue[rows]))
    return count


def _smooth(picture: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.8), np.uint8)


def _large_objects(mask: BoolArray, min_px: float, *, open_ended: bool = False) -> BoolArray:
    """The connected objects (8 neighbours) of at least that many pixels; `open_ended`: and all that reach the edge."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_px
    if open_ended:
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            keep[edge] = True
    keep[0] = False  # label 0 is the rest
    return np.asarray(keep[labels])
