"""A table of labelled images -> `Samples`; of a picture its header is read and its bytes are hashed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from tiling.core.errors import ConfigError, InputError
from tiling.core.files import sha256_file
from tiling.manifest import read_table
from training.config import TrainConfig
from training.data.preparation import NO_LABEL, capped, class_index, class_names, is_missing, prepared
from training.data.samples import TEXTS, Samples

log = logging.getLogger(__name__)


def samples_from_images(
    index: Path, config: TrainConfig, *, mpp: float | None = None, to_train: bool = True
) -> Samples:
    """The images of a CSV or Parquet table with the columns `path` and `label`.

    Optional columns: `case_id` (else each image is its own case, which is said in the log), `slide_id`, `split`,
    `site`, `scanner`. Paths are relative to the table's folder.

    Args:
        index: The table.
        config: The settings of the training; classes, splits and seed among them.
        mpp: Micrometres per pixel of the images, needed to use the model on slides.
        to_train: Whether a model is to be trained on them; if not, the split is "" where the data bring none.

    Returns:
        The images as tiles.

    Raises:
        InputError: Naming the row for a missing label, image or case; naming both for one picture that is in two splits
            or of two classes; for a table that cannot be split.
        ConfigError: For a setting that images cannot meet.
    """
    if config.where is not None:
        raise ConfigError("where", "chooses by the columns of tile stores, images have none", "leave it out")
    rows = [_image_row(number, raw, index, config) for number, raw in read_table(index).items()]
    if not any(row.case_id for row in rows):
        log.warning("%s: has no case_id, so each image counts as a case of its own", index)
        rows = [replace(row, case_id=str(row.path)) for row in rows]
    for row in rows:
        if not row.case_id:
            raise InputError(row.where, "has no case_id, although other rows have one", "give every image its case")
    rows = _capped_images(rows, config)
    classes = class_names(config, {row.label for row in rows}, index)
    paths = [row.path for row in rows]
    with ThreadPoolExecutor() as threads:
        hashes = tuple(threads.map(sha256_file, paths))
        sides = Counter(threads.map(_image_side, paths, (row.where for row in rows)))
    nothing = np.zeros(len(rows), dtype=np.int64)
    texts: dict[str, Any] = {name: np.array([getattr(row, name) for row in rows]) for name in TEXTS}
    samples = Samples(
        kind="images",
        classes=classes,
        sources=tuple(paths),
        hashes=hashes,
        tile_px=max(sides, key=lambda side: (sides[side], side)),
        mpp=mpp,
        label=np.array([class_index(row.label, classes, row.where) for row in rows]),
        source=np.arange(len(rows)),
        row=nothing,
        x0=nothing,
        y0=nothing,
        tile_px0=nothing,
        clear=np.ones(len(rows), np.bool_),
        **texts,
    )
    return prepared(samples, config, index, to_train=to_train)


@dataclass(frozen=True)
class _ImageRow:
    where: str
    path: Path
    label: str
    case_id: str
    slide_id: str
    split: str
    site: str
    scanner: str


def _image_row(number: int, raw: Mapping[str, str], index: Path, config: TrainConfig) -> _ImageRow:
    where = f"{index}, row {number}"
    name = raw.get("path") or raw.get("slide_path")
    if not name:
        raise InputError(where, "has no path", "name the picture in a column called path")
    if is_missing(raw.get("label"), config):
        raise InputError(where, f"has no label ({raw.get('label', '')!r})", NO_LABEL)
    path = index.parent / name
    try:
        there = path.is_file()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        raise InputError(
            where, f"the picture {path} does not exist", "correct the path, relative to the table's folder"
        )
    optional = {key: raw.get(key, "") for key in ("case_id", "split", "site", "scanner")}
    return _ImageRow(where=where, path=path, label=raw["label"], slide_id=raw.get("slide_id") or name, **optional)


def _image_side(path: Path, where: str) -> int:
    """The shorter side of a picture, pixels, from its header alone."""
    try:
        with PIL.Image.open(path) as picture:
            return min(picture.size)
    except (OSError, PIL.Image.DecompressionBombError) as error:
        raise InputError(
            where, f"{path} is no picture that can be read ({type(error).__name__})", "replace it"
        ) from None


def _capped_images(rows: list[_ImageRow], config: TrainConfig) -> list[_ImageRow]:
    """At most `max_tiles_per_slide` rows of each slide, in their order."""
    of_slide: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        of_slide.setdefault(row.slide_id, []).append(number)
    kept = [capped(np.array(numbers), slide_id, config) for slide_id, numbers in of_slide.items()]
    return [rows[number] for number in np.sort(np.concatenate(kept)).tolist()]
