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
from training.data.radiographs import ENDINGS, dicom_size, is_dicom
from training.data.samples import TEXTS, Samples
from training.data.splits import SPLIT_NAMES

log = logging.getLogger(__name__)


def samples_from_images(
    index: Path, config: TrainConfig, *, mpp: float | None = None, to_train: bool = True
) -> Samples:
    """The images of a table (CSV, TSV or Parquet) with the columns `path` and `label`, or of a folder a class.

    Optional columns: `case_id` (else each image is its own case, which is said in the log), `slide_id`, `split`,
    `site`, `scanner`. Paths are relative to the table's folder. Columns may have the names of `NAMES` too. In a folder
    each class has a folder of its name, which may lie in folders train, val and test.

    Args:
        index: The table, or the folder.
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
    if index.name.lower().endswith(ARCHIVES):
        raise InputError(index, "is an archive", "unpack it with specslide import pictures")
    if index.is_dir():
        table, folder = folder_rows(index), index
    else:
        table, folder = _named(read_table(index), index), index.parent
    rows = [_image_row(number, raw, index, folder, config) for number, raw in table.items()]
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
        sizes = list(threads.map(_image_size, paths, (row.where for row in rows)))
    sides = Counter(map(min, sizes))
    if (others := sum(width != height for width, height in sizes)) and config.fit == "stretch":
        log.warning("%s: %d of %d pictures are no squares and are stretched; see --fit", index, others, len(sizes))
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
        fit=config.fit,
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


NAMES = {
    "path": ("path", "slide_path", "image", "file", "file_name", "img", "image_name"),
    "label": ("label", "class", "target", "category", "class_name", "label_name"),
}
"""What the columns of an image table are called by others, ours first; case does not matter."""
ARCHIVES = (".tar", ".tar.gz", ".tgz")
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", *ENDINGS})


def folder_rows(folder: Path) -> dict[int, dict[str, str]]:
    """The rows of a folder that has a folder a class, perhaps within folders train, val and test.

    Raises InputError if no picture lies so.
    """
    rows: list[dict[str, str]] = []
    tops = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    split_up = bool(tops) and all(place.name.lower() in SPLIT_NAMES for place in tops)
    for top in tops:
        for of_class in sorted(place for place in top.iterdir() if place.is_dir()) if split_up else [top]:
            pictures = sorted(path for path in of_class.rglob("*") if path.suffix.lower() in _PICTURES)
            known = {"label": of_class.name} | ({"split": top.name} if split_up else {})
            rows += [{"path": path.relative_to(folder).as_posix()} | known for path in pictures]
    if not rows:
        there = f"its folders are {', '.join(top.name for top in tops[:9])}" if tops else "it has no folders"
        fix = "put each class's pictures into a folder of its name and pass the folder of those, or pass a table"
        raise InputError(folder, f"holds no pictures in a folder a class; {there}", fix)
    return dict(enumerate(rows, start=1))


def _named(table: dict[int, dict[str, str]], index: Path) -> dict[int, dict[str, str]]:
    """The rows with `path` and `label` under these names. Raises InputError for a column that is missing or twice."""
    there = list(next(iter(table.values())))
    chosen: dict[str, str] = {}
    for ours, names in NAMES.items():
        found = [name for name in names if name in there]
        if not found:
            fix = f"name a column {ours}, or one of {', '.join(names[1:])}"
            raise InputError(index, f"has no {ours}: its columns are {', '.join(there)}", fix)
        if len(found) > 1 and found[0] != ours:
            raise InputError(index, f"has two columns for {ours}: {', '.join(found)}", f"call one of them {ours}")
        chosen[ours] = found[0]
    return {number: row | {ours: row[name] for ours, name in chosen.items()} for number, row in table.items()}


def _image_row(number: int, raw: Mapping[str, str], index: Path, folder: Path, config: TrainConfig) -> _ImageRow:
    where = f"{index}, row {number}"
    name = raw["path"]
    if not name:
        raise InputError(where, "has no path", "name the picture")
    if is_missing(raw["label"], config):
        raise InputError(where, f"has no label ({raw['label']!r})", NO_LABEL)
    path = folder / name
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


def _image_size(path: Path, where: str) -> tuple[int, int]:
    """Width and height of a picture, pixels, from its header alone."""
    if is_dicom(path):
        return dicom_size(path)
    try:
        with PIL.Image.open(path) as picture:
            return picture.size
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
