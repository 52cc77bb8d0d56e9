"""Label images: pictures over a slide whose integer values are classes; 0 is nothing. PNG and TIFF."""

from __future__ import annotations

import json
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray

from tiling.annotations.classes import column_name
from tiling.core.arrays import BoolArray, Float32Array
from tiling.core.errors import InputError
from tiling.core.tiff import open_tiff
from tiling.grid import Bounds, Frame, Raster, Tiles, box_sums

Labels = NDArray[np.integer]

_MAX_PX = 400_000_000
_MAX_BYTES = 2 * _MAX_PX
_MAX_CLASSES = 256
# What Pillow and tifffile raise for bytes that are not as they should be.
_DAMAGE = (
    OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip
_ASPECT_TOLERANCE = 0.02
_TIFF = (".tif", ".tiff")
SUFFIXES = (".png", *_TIFF)
NAMES = ".classes.json"
"""The names of a label image `a.png` are in `a.classes.json`, as {"1": "tumour", "2": "stroma"}."""


class LabelImage(NamedTuple):
    """Labels and where they lie."""

    values: Labels
    """Unsigned or signed integers or bool, (h, w)."""
    over: Bounds
    """What they cover of the slide."""


def read_label_image(path: Path, frame: Frame) -> LabelImage:
    """A label image over a slide of that frame.

    It may be of any size with the aspect ratio of the whole picture or of what was scanned of it, and covers the one
    that it has the ratio of. A PNG with a palette gives its indices; of a pyramid TIFF the finest level below 400
    megapixels is taken; RGB is taken where it is grey. Raises InputError, also for a picture in colour: it is a
    photograph or a preview.
    """
    labels = _read_tiff(path) if path.suffix.lower() in _TIFF else _read_png(path)
    if labels.ndim == 3 and labels.shape[2] in (3, 4) and (labels[..., :3] == labels[..., :1]).all():
        labels = labels[..., 0]
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "uib":
        what = f"is no picture of one integer a pixel ({labels.dtype}, {labels.shape})"
        raise InputError(path, what, "save one grey level a class")
    return LabelImage(np.asarray(labels), _covered(path, (labels.shape[1], labels.shape[0]), frame))


def _covered(path: Path, size: tuple[int, int], frame: Frame) -> Bounds:
    """What a picture of that size (width, height) covers. Raises InputError if that is nothing, or cannot be told."""
    whole = Frame(frame.size0).scanned
    parts = [whole] if frame.bounds in (None, whole) else [whole, frame.bounds]
    fitting = [part for part in parts if _has_ratio(size, part)]
    # Of two of nearly one ratio it is the one of which its pixels are squares of a whole number of pixels.
    fitting = [part for part in fitting if _divides(size, part)] or fitting if len(fitting) > 1 else fitting
    sides = " or ".join(f"{part.width0} x {part.height0}" for part in parts)
    if not fitting:
        what = f"is {size[0]} x {size[1]} px, but the slide is {sides}"
        raise InputError(path, what, "pass a picture of the whole slide")
    if len(fitting) > 1:
        what = f"is {size[0]} x {size[1]} px: of the whole picture or of what was scanned of it, {sides}?"
        raise InputError(path, what, "save it with the sides of one of them, or draw polygons")
    return fitting[0]


def _has_ratio(size: tuple[int, int], part: Bounds) -> bool:
    # A picture of few pixels cannot have the exact ratio: its sides are whole numbers.
    return abs(size[0] / size[1] * part.height0 / part.width0 - 1) <= _ASPECT_TOLERANCE + 1 / min(size)


def _divides(size: tuple[int, int], part: Bounds) -> bool:
    """Whether a picture has the sides of a part divided by one whole number, but for rounding."""
    times = max(1, round(part.width0 / size[0]))
    return all(abs(n - times * m) < times for n, m in zip((part.width0, part.height0), size, strict=True))


def label_fractions(path: Path, tiles: Tiles, frame: Frame) -> dict[str, Float32Array]:
    """Fraction of each tile that each class covers, float32 (N,), on a slide of that frame.

    Classes are the values other than 0, and those with a name: from `<name>.classes.json` beside the picture, or else
    the number itself. Raises InputError.
    """
    labels = read_label_image(path, frame)
    return {name: _fractions(mask, labels.over, tiles) for name, mask in class_masks(path, labels).items()}


def _fractions(mask: BoolArray, covered: Bounds, tiles: Tiles) -> Float32Array:
    """Mean of a mask (h, w) over each tile; its pixels need not be exactly square."""
    side, wide, high = tiles.side_px0, covered.width0 / mask.shape[1], covered.height0 / mask.shape[0]
    x, y = tiles.x0 - covered.x0, tiles.y0 - covered.y0
    sums = box_sums(mask, x / wide, y / high, (x + side) / wide, (y + side) / high)
    return np.asarray(np.clip(sums * (wide * high / side**2), 0.0, 1.0), np.float32)


def class_masks(path: Path, labels: LabelImage) -> dict[str, BoolArray]:
    """Where each class of a label image is, bool (h, w) of its own pixels, by name as for `label_fractions`, in order.

    Raises InputError.
    """
    masks: dict[str, BoolArray] = {}
    for value, name in _class_names(path, labels.values).items():
        found = labels.values == value
        masks[name] = masks[name] | found if name in masks else found
    return dict(sorted(masks.items()))


def sampled(mask: BoolArray, covered: Bounds, over: Raster) -> Raster:
    """A mask over a part of a slide, sampled at the pixel centres of another picture of the slide.

    Beyond it nothing is marked.
    """
    (height, width), (m, n) = mask.shape, over.values.shape[:2]
    rows = np.floor(((np.arange(m) + 0.5) * over.downsample - covered.y0) * height / covered.height0).astype(int)
    columns = np.floor(((np.arange(n) + 0.5) * over.downsample - covered.x0) * width / covered.width0).astype(int)
    within = [(places >= 0) & (places < end) for places, end in ((rows, height), (columns, width))]
    out = np.zeros((m, n), np.bool_)
    out[np.ix_(*within)] = mask[np.ix_(rows[within[0]], columns[within[1]])]
    return Raster(out, over.downsample)


def _class_names(path: Path, labels: Labels) -> dict[int, str]:
    """The name of each value that is a class."""
    values = [int(value) for value in np.unique(labels) if value]
    given = _given_names(path.with_suffix(NAMES))
    if len(values) > _MAX_CLASSES:
        raise InputError(path, f"holds {len(values)} values", "save one class a value, without interpolation")
    return {value: column_name(given.get(value, str(value))) for value in sorted({*values, *given})}


def _given_names(path: Path) -> dict[int, str]:
    try:
        names = json.loads(path.read_bytes())
        return {int(value): str(name) for value, name in names.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        fix = 'write {"1": "tumour", "2": "stroma"}'
        raise InputError(path, f"gives no names of classes ({type(error).__name__})", fix) from error


def _read_png(path: Path) -> NDArray[np.generic]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path, formats=["PNG"]) as picture:
                return np.asarray(picture)
    except (*_DAMAGE, PIL.Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(path, f"cannot be read as PNG ({reason})", "save it again, at a lower resolution") from error


def _read_tiff(path: Path) -> NDArray[np.generic]:
    try:
        with path.open("rb") as f, open_tiff(f) as tiff:
            levels = tiff.series[0].levels
            level = next((lv for lv in levels if _fits(lv)), None)
            if level is not None:
                page = level.keyframe
                if len(page.dataoffsets) < math.prod(page.chunked):  # each that is missing would be waited for
                    raise ValueError("lists fewer strips or tiles than it has")
                return np.asarray(level.asarray())
    except (*_DAMAGE, tifffile.TiffFileError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(path, f"cannot be read as TIFF ({reason})", "save it again") from error
    raise InputError(path, "is larger than 400 megapixels", "save it at a lower resolution")


def _fits(level: tifffile.TiffPageSeries) -> bool:
    """Whether a level is to be read: a few bytes can claim any size."""
    return math.prod(level.shape[:2]) <= _MAX_PX and level.nbytes <= _MAX_BYTES
