"""Label images: pictures over a whole slide whose integer values are classes; 0 is nothing. PNG and TIFF."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray

from tiling.annotations.classes import column_name
from tiling.core.arrays import BoolArray, Float32Array
from tiling.core.errors import InputError
from tiling.grid import Raster, Tiles, box_sums

Labels = NDArray[np.integer]

_MAX_PX = 400_000_000
_MAX_CLASSES = 256
_ASPECT_TOLERANCE = 0.02
_TIFF = (".tif", ".tiff")
SUFFIXES = (".png", *_TIFF)
NAMES = ".classes.json"
"""The names of a label image `a.png` are in `a.classes.json`, as {"1": "tumour", "2": "stroma"}."""


def read_label_image(path: Path, size0: tuple[int, int]) -> Labels:
    """The values of a label image, unsigned or signed integers or bool (h, w).

    It may be of any size with the aspect ratio of the slide, `size0` level-0 pixels. A PNG with a palette gives its
    indices; of a pyramid TIFF the finest level below 400 megapixels is taken; RGB is taken where it is grey. Raises
    InputError, also for a picture in colour: it is a photograph or a preview.
    """
    labels = _read_tiff(path) if path.suffix.lower() in _TIFF else _read_png(path)
    if labels.ndim == 3 and labels.shape[2] in (3, 4) and (labels[..., :3] == labels[..., :1]).all():
        labels = labels[..., 0]
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "uib":
        what = f"is no picture of one integer a pixel ({labels.dtype}, {labels.shape})"
        raise InputError(path, what, "save one grey level a class")
    height, width = labels.shape
    shown, expected = width / height, size0[0] / size0[1]
    # A picture of few pixels cannot have the exact ratio: its sides are whole numbers.
    if abs(shown / expected - 1) > _ASPECT_TOLERANCE + 1 / min(width, height):
        what = f"is {width} x {height} px, but the slide is {size0[0]} x {size0[1]}"
        raise InputError(path, what, "pass a picture of the whole slide")
    return np.asarray(labels)


def label_fractions(path: Path, tiles: Tiles) -> dict[str, Float32Array]:
    """Fraction of each tile that each class covers, float32 (N,).

    Classes are the values other than 0, and those with a name: from `<name>.classes.json` beside the picture, or else
    the number itself. Raises InputError.
    """
    return {name: _fractions(mask, tiles) for name, mask in class_masks(path, tiles.grid.size0).items()}


def _fractions(mask: BoolArray, tiles: Tiles) -> Float32Array:
    """Mean of a mask (h, w) over each tile; its pixels need not be exactly square."""
    side, wide, high = tiles.side_px0, tiles.grid.width0 / mask.shape[1], tiles.grid.height0 / mask.shape[0]
    sums = box_sums(mask, tiles.x0 / wide, tiles.y0 / high, (tiles.x0 + side) / wide, (tiles.y0 + side) / high)
    return np.asarray(np.clip(sums * (wide * high / side**2), 0.0, 1.0), np.float32)


def class_masks(path: Path, size0: tuple[int, int]) -> dict[str, BoolArray]:
    """Where each class is, bool (h, w) of the label image's own pixels, by name as for `label_fractions`, in order.

    The image covers a slide of `size0` (width, height). Raises InputError.
    """
    labels = read_label_image(path, size0)
    masks: dict[str, BoolArray] = {}
    for value, name in _class_names(path, labels).items():
        found = labels == value
        masks[name] = masks[name] | found if name in masks else found
    return dict(sorted(masks.items()))


def sampled(mask: BoolArray, size0: tuple[int, int], over: Raster) -> Raster:
    """A mask over a slide of `size0` (width, height) on the pixels of another picture of it: each as its centre is.

    Beyond the slide nothing is marked.
    """
    height, width = over.values.shape[:2]
    out = np.zeros((height, width), np.bool_)
    lengths = (size0[1], mask.shape[0], height), (size0[0], mask.shape[1], width)
    rows, columns = (((np.arange(n) + 0.5) * over.downsample * m / s0).astype(int) for s0, m, n in lengths)
    rows, columns = rows[rows < mask.shape[0]], columns[columns < mask.shape[1]]
    out[: len(rows), : len(columns)] = mask[np.ix_(rows, columns)]
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
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(path, f"cannot be read as PNG ({reason})", "save it again, at a lower resolution") from error


def _read_tiff(path: Path) -> NDArray[np.generic]:
    try:
        with tifffile.TiffFile(path) as tiff:
            levels = tiff.series[0].levels
            level = next((lv for lv in levels if np.prod(lv.shape[:2]) <= _MAX_PX), None)
            if level is not None:
                return np.asarray(level.asarray())
    except (OSError, ValueError, IndexError, RuntimeError, tifffile.TiffFileError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(path, f"cannot be read as TIFF ({reason})", "save it again") from error
    raise InputError(path, "is larger than 400 megapixels", "save it at a lower resolution")
