"""Labelled tiles as a table of facts: image tables or tile stores -> `Samples`, one row a tile; no pixel is read.

Knows nothing of torch or models, and never opens a slide.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from tiling import TileStore
from tiling.core.errors import ConfigError, InputError
from tiling.core.files import sha256_file, sha256_json
from tiling.manifest import ManifestRow, read_manifest, read_table
from tiling.stores.query import rows_where
from training.config import TrainConfig
from training.data.splits import SPLITS, joined, parse_splits, split_by_fold, split_units, torn

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Texts = NDArray[np.str_]

MPP_TOLERANCE = 0.05
"""Stores whose scales differ by more than this fraction are not trained on together."""


@dataclass(frozen=True)
class Samples:
    """N labelled tiles, from images or from tile stores; all arrays are (N,)."""

    kind: Literal["images", "stores"]
    classes: tuple[str, ...]
    """Class names; `label` counts in this order."""
    sources: tuple[Path, ...]
    """Image files, or store folders."""
    hashes: tuple[str, ...]
    """What identifies the content of each source: SHA-256 of an image file, content hash of a store."""
    tile_px: int
    """Side of a stored tile, or of most images, pixels."""
    mpp: float | None
    """Micrometres per pixel of a tile; None if unknown."""
    label: Ints
    source: Ints
    """Index into `sources`."""
    row: Ints
    """Row in the store; 0 for images."""
    x0: Ints
    """Left edge on the slide, level-0 pixels; 0 for images."""
    y0: Ints
    """Upper edge on the slide, level-0 pixels; 0 for images."""
    tile_px0: Ints
    """Side on the slide, level-0 pixels; 0 for images."""
    case_id: Texts
    slide_id: Texts
    split: Texts
    """"train", "val" or "test"; the same for all tiles of a case, and of a site where those are split."""
    site: Texts
    """Where the slide comes from; "" if unknown."""
    scanner: Texts
    """What scanned it; "" if unknown."""
    clear: NDArray[np.bool_]
    """Whether a tile is of its class beyond doubt. Others are validated and tested on, as heatmaps show them too, and
    not trained on."""
    slides: tuple[str, ...] = ()
    """SHA-256 of the slide of each source, where these are stores."""

    def __len__(self) -> int:
        return len(self.label)

    def where(self, split: str) -> Ints:
        """Indices of the tiles of a split, in order; of "train", of those that are clear."""
        chosen = self.split == split
        return np.flatnonzero(chosen & self.clear if split == "train" else chosen)

    def identity(self) -> str:
        """SHA-256 of what is learned from: the content of the sources, which tiles of them, labels and splits."""
        digest = hashlib.sha256()
        for numbers in (self.label, self.source, self.row, *([] if self.clear.all() else [self.clear])):
            digest.update(numbers.astype("<i8").tobytes())
        facts = [self.classes, self.hashes, self.tile_px, self.mpp]
        columns = (self.case_id, self.split, self.slide_id, self.site)  # slide and site, for sampling balances them
        return sha256_json([digest.hexdigest(), *facts, *(column.tolist() for column in columns)])

    def content(self) -> Ints:
        """A number for each tile's source, (N,), equal where the content of the sources is."""
        _, content_of = np.unique(np.array(self.hashes), return_inverse=True)
        return np.asarray(content_of[self.source])

    def levels(self, names: Collection[str], indices: Ints) -> dict[str, NDArray[Any]]:
        """What samplers balance over: by name, the class, slide, case or site of those samples, (n,)."""
        columns = {"class": self.label, "slide": self.slide_id, "case": self.case_id, "site": self.site}
        return {name: columns[name][indices] for name in names}


def samples_from_images(
    index: Path, config: TrainConfig, *, mpp: float | None = None, to_train: bool = True
) -> Samples:
    """The images of a CSV or Parquet table with the columns `path` and `label`.

    Optional columns: `case_id` (else each image is its own case, which is said in the log), `slide_id`, `split`,
    `site`, `scanner`. Paths are relative to the table's folder. `mpp` is the images' scale, needed to use the model on
    slides. Not `to_train`, the data need not serve for training, and the split is "" where they bring none. Raises
    InputError naming the row for a missing label, image or case, naming both for one picture that is in two splits or
    of two classes, and for a table that cannot be split.
    """
    if config.where is not None:
        raise ConfigError("where", "chooses by the columns of tile stores, images have none", "leave it out")
    rows = [_image_row(number, raw, index) for number, raw in enumerate(read_table(index), start=2)]
    if not any(row.case_id for row in rows):
        log.warning("%s: has no case_id, so each image counts as a case of its own", index)
        rows = [replace(row, case_id=str(row.path)) for row in rows]
    for row in rows:
        if not row.case_id:
            raise InputError(row.where, "has no case_id, although other rows have one", "give every image its case")
    rows = _capped_images(rows, config)
    classes = _class_names(config, {row.label for row in rows})
    label = np.array([_class_index(row.label, classes, row.where) for row in rows])
    case_id = np.array([row.case_id for row in rows])
    paths = [row.path for row in rows]
    with ThreadPoolExecutor() as threads:
        hashes = tuple(threads.map(sha256_file, paths))
        sides = Counter(threads.map(_image_side, paths, (row.where for row in rows)))
    nothing = np.zeros(len(rows), dtype=np.int64)
    samples = Samples(
        kind="images",
        classes=classes,
        sources=tuple(paths),
        hashes=hashes,
        tile_px=max(sides, key=lambda side: (sides[side], side)),
        mpp=mpp,
        label=label,
        source=np.arange(len(rows)),
        row=nothing,
        x0=nothing,
        y0=nothing,
        tile_px0=nothing,
        case_id=case_id,
        slide_id=np.array([row.slide_id for row in rows]),
        split=np.array([row.split for row in rows]),
        site=np.array([row.site for row in rows]),
        scanner=np.array([row.scanner for row in rows]),
        clear=np.ones(len(rows), np.bool_),
    )
    return _checked(split_samples(samples, config, index), config, index) if to_train else _as_given(samples, index)


def samples_from_stores(
    stores: Path,
    manifest: Path,
    config: TrainConfig,
    *,
    leave_out: Collection[str] = (),
    to_train: bool = True,
) -> Samples:
    """The tiles of the stores `<stores>/<slide_id>.zarr` of a manifest's slides, labelled as `config.label_from` says.

    The slides of `leave_out` do not count; for `to_train` see `samples_from_images`. Slides without a store, without
    tiles or without usable labels, and tiles between two classes, are left out, with the reason and their number in the
    log. Raises InputError for stores of different tile size or scale, one slide under two names, a slide without the
    label it needs, and slides that cannot be split; StoreError for a damaged store.
    """
    rows = [row for row in read_manifest(manifest) if row.slide_id not in leave_out]
    slides = _open_slides(stores, rows, manifest)
    annotated = sorted({name for slide in slides for name in slide.store.annotations})
    by_annotation = config.label_from == "annotation" or (config.label_from == "auto" and bool(annotated))
    if by_annotation:
        classes = _class_names(config, {config.negative_class, *annotated})
        if config.negative_class not in classes:
            raise ConfigError("classes", f"lacks the negative class {config.negative_class!r}", "add it to classes")
    else:
        classes = _class_names(config, {_slide_label(slide.row, manifest) for slide in slides})
    tables = [_label_slide(slide, classes, by_annotation, config, manifest) for slide in slides]
    kept = [table for table in tables if table.chosen.any()]
    if not kept:
        raise InputError(manifest, "gives no labelled tile", "see the reasons in the log")
    samples = _join_slides(kept, classes, config)
    if not to_train:
        return _as_given(samples, manifest)
    return _checked(split_samples(samples, config, manifest), config, manifest)


def split_samples(samples: Samples, config: TrainConfig, where: Path) -> Samples:
    """The samples in the splits that the data gives, or in made ones where it gives none.

    Made splits keep together what shares a case, a picture or, if sites are split, a site.
    """
    if (samples.split != "").any():
        if config.folds is not None:
            what = "gives splits of its own, which cross-validation would replace"
            raise InputError(where, what, "drop the column split, or train without folds")
        return replace(samples, split=parse_splits(samples.split.tolist(), where))
    ties = (samples.case_id, samples.content())
    if config.group == "site":
        _require_sites(samples, "they are split by site", where)
        unit = joined(samples.site, *ties)
    else:
        unit = joined(*ties)
    if config.folds is None:
        fractions = {"val_fraction": config.val_fraction, "test_fraction": config.test_fraction}
        return replace(samples, split=split_units(unit, samples.label, **fractions, seed=config.data_seed))
    units = len(np.unique(unit))
    if units < config.folds:
        what = f"{units} {config.group}s cannot make {config.folds} folds"
        raise InputError(where, what, f"use at most {units} folds, or add {config.group}s")
    split = split_by_fold(
        unit, samples.label, folds=config.folds, fold=config.fold, val_fraction=config.val_fraction,
        seed=config.data_seed,
    )  # fmt: skip
    return replace(samples, split=split)


def annotation_labels(
    fractions: Mapping[str, NDArray[np.float32]], count: int, classes: Sequence[str], config: TrainConfig
) -> tuple[Ints, NDArray[np.bool_]]:
    """The class of each of `count` tiles from the fractions of it under each class's annotations, and if it is clear.

    A tile is of the class with the largest fraction if that reaches `annotation_threshold`, else negative, which is
    clear if the fraction does not exceed `negative_max_fraction`. Fractions of the negative class itself and of names
    not in `classes` do not count.
    """
    negative = classes.index(config.negative_class)
    covered = np.zeros((len(classes), count), dtype=np.float32)
    for c, name in enumerate(classes):
        if c != negative and name in fractions:
            covered[c] = fractions[name]
    largest = covered.max(axis=0)
    free, covers = largest <= config.negative_max_fraction, largest >= config.annotation_threshold
    return np.where(covers & ~free, covered.argmax(axis=0), negative).astype(np.int64), free | covers


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


def _image_row(number: int, raw: Mapping[str, str], index: Path) -> _ImageRow:
    where = f"{index}, row {number}"
    name = raw.get("path") or raw.get("slide_path")
    if not name:
        raise InputError(where, "has no path", "name the picture in a column called path")
    if not raw.get("label"):
        raise InputError(where, "has no label", "name the class in a column called label")
    path = index.parent / name
    if not path.is_file():
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


@dataclass(frozen=True)
class _StoredSlide:
    row: ManifestRow
    path: Path
    store: TileStore


@dataclass(frozen=True)
class _LabelledSlide:
    slide: _StoredSlide
    label: Ints
    """Of its tiles, (N,); this and the next as in `Samples`."""
    clear: NDArray[np.bool_]
    chosen: NDArray[np.bool_]
    """Which tiles count, (N,)."""


def _open_slides(stores: Path, rows: Iterable[ManifestRow], manifest: Path) -> list[_StoredSlide]:
    """The slides that have tiles, all of one tile size and scale."""
    slides = []
    for row in rows:
        path = stores / f"{row.slide_id}.zarr"
        if not path.is_dir():
            log.warning("%s: left out, it has no store %s", row.slide_id, path)
            continue
        store = TileStore(path)
        if len(store) == 0:
            log.warning("%s: left out, its store holds no tile", row.slide_id)
            continue
        slides.append(_StoredSlide(row, path, store))
    if not slides:
        raise InputError(
            stores, f"holds no tile of any slide of {manifest}", "make the stores with specslide tile first"
        )
    for slide in slides[1:]:
        _refuse_unlike(slides[0], slide)
    _refuse_same(slides, manifest)
    return slides


def _refuse_same(slides: Iterable[_StoredSlide], manifest: Path) -> None:
    """One slide under two names would count twice, and could be trained on and tested with."""
    named: dict[str, str] = {}
    for slide in slides:
        name, sha256 = slide.row.slide_id, slide.store.slide.sha256
        if sha256 in named:
            what = f"the slides {named[sha256]!r} and {name!r} are one and the same (equal SHA-256)"
            raise InputError(manifest, what, "leave one of them out")
        named[sha256] = name


def _refuse_unlike(first: _StoredSlide, other: _StoredSlide) -> None:
    a, b = first.store.grid, other.store.grid
    if a.tile_px != b.tile_px or abs(b.mpp / a.mpp - 1) > MPP_TOLERANCE:
        raise InputError(
            other.path,
            f"has tiles of {b.tile_px} px at {b.mpp:.3g} µm/px, {first.path.name} of {a.tile_px} px at {a.mpp:.3g}",
            "tile all slides alike",
        )


def _label_slide(
    slide: _StoredSlide, classes: tuple[str, ...], by_annotation: bool, config: TrainConfig, manifest: Path
) -> _LabelledSlide:
    """The slide with its tiles' labels; why some are left out is logged."""
    store, row = slide.store, slide.row
    every = np.ones(len(store), np.bool_)
    if not by_annotation:
        label = _class_index(_slide_label(row, manifest), classes, f"{manifest}, slide {row.slide_id}")
        return _LabelledSlide(slide, np.full(len(store), label), every, _chosen(slide, config))
    if not store.annotations and row.label != config.negative_class:
        log.warning("%s: left out, it has neither annotations nor the label %r", row.slide_id, config.negative_class)
        return _LabelledSlide(slide, np.zeros(len(store), np.int64), every, ~every)
    labels, clear = annotation_labels(store.annotations, len(store), classes, config)
    if not clear.all():
        count = int((~clear).sum())
        log.info("%s: %d of %d tiles lie between two classes, not to be trained on", row.slide_id, count, len(store))
    return _LabelledSlide(slide, labels, clear, _chosen(slide, config))


def _chosen(slide: _StoredSlide, config: TrainConfig) -> NDArray[np.bool_]:
    """Which tiles `config.where` keeps, (N,)."""
    kept = rows_where(slide.store, config.where)
    if not kept.all():
        log.info("%s: %d of %d tiles left out by where", slide.row.slide_id, int((~kept).sum()), len(kept))
    return kept


def _join_slides(tables: Sequence[_LabelledSlide], classes: tuple[str, ...], config: TrainConfig) -> Samples:
    slides = [table.slide for table in tables]
    rows = [_capped(np.flatnonzero(table.chosen), table.slide.row.slide_id, config) for table in tables]
    counts = [len(r) for r in rows]
    manifest_rows = [slide.row for slide in slides]
    stores = [slide.store for slide in slides]

    def spread(texts: Iterable[str | None]) -> Texts:
        return np.repeat(np.array([text or "" for text in texts]), counts)

    def gather(columns: Iterable[NDArray[Any]]) -> Ints:
        return np.concatenate([c[r] for c, r in zip(columns, rows, strict=True)]).astype(np.int64)

    return Samples(
        kind="stores",
        classes=classes,
        sources=tuple(slide.path for slide in slides),
        hashes=tuple(store.sha256 for store in stores),
        tile_px=stores[0].grid.tile_px,
        mpp=float(np.median([store.grid.mpp for store in stores])),
        label=gather(table.label for table in tables),
        source=np.repeat(np.arange(len(slides)), counts),
        row=np.concatenate(rows),
        x0=gather(store.tiles.x0 for store in stores),
        y0=gather(store.tiles.y0 for store in stores),
        tile_px0=np.repeat(np.array([store.grid.tile_px0 for store in stores]), counts),
        case_id=spread(row.case_id for row in manifest_rows),
        slide_id=spread(row.slide_id for row in manifest_rows),
        split=spread(row.split for row in manifest_rows),
        site=spread(row.site for row in manifest_rows),
        scanner=spread(row.scanner for row in manifest_rows),
        clear=gather(table.clear for table in tables).astype(np.bool_),
        slides=tuple(store.slide.sha256 for store in stores),
    )


def _capped(rows: Ints, slide_id: str, config: TrainConfig) -> Ints:
    """At most `max_tiles_per_slide` of the rows, in order; the draw depends on the seed and the slide alone."""
    limit = config.max_tiles_per_slide
    if limit is None or len(rows) <= limit:
        return rows
    name = int.from_bytes(hashlib.sha256(slide_id.encode()).digest()[:8])
    return np.sort(np.random.default_rng([config.data_seed, name]).choice(rows, limit, replace=False))


def _capped_images(rows: list[_ImageRow], config: TrainConfig) -> list[_ImageRow]:
    """At most `max_tiles_per_slide` rows of each slide, in their order."""
    of_slide: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        of_slide.setdefault(row.slide_id, []).append(number)
    kept = [_capped(np.array(numbers), slide_id, config) for slide_id, numbers in of_slide.items()]
    return [rows[number] for number in np.sort(np.concatenate(kept)).tolist()]


def _slide_label(row: ManifestRow, manifest: Path) -> str:
    if not row.label:
        raise InputError(f"{manifest}, slide {row.slide_id}", "has no label", "add it in the column label")
    return row.label


def _class_names(config: TrainConfig, found: set[str]) -> tuple[str, ...]:
    """The configured classes, or those found: the negative one first, then by name."""
    classes = config.classes or tuple(sorted(found, key=lambda name: (name != config.negative_class, name)))
    if config.positive_class is not None and config.positive_class not in classes:
        raise ConfigError("positive_class", f"{config.positive_class!r} is none of {', '.join(classes)}", "correct it")
    return classes


def _class_index(name: str, classes: tuple[str, ...], where: str) -> int:
    if name not in classes:
        raise InputError(
            where, f"the label {name!r} is none of {', '.join(classes)}", "correct it or add it to classes"
        )
    return classes.index(name)


def _as_given(samples: Samples, where: Path) -> Samples:
    """The samples in the splits that the data gives, "" where it gives none."""
    if not (samples.split != "").any():
        return samples
    return replace(samples, split=parse_splits(samples.split.tolist(), where))


def _checked(samples: Samples, config: TrainConfig, where: Path) -> Samples:
    """The samples, if a model can be trained, chosen and tested on them."""
    _refuse_leaks(samples, config, where)
    if "site" in config.balance:
        _require_sites(samples, "sampling is balanced over sites", where)
    if len(samples.classes) < 2:
        raise InputError(where, f"all tiles are {samples.classes[0]!r}", "add tiles of another class")
    needed = SPLITS if config.test_fraction > 0 or config.folds is not None else SPLITS[:2]
    units = len(np.unique(samples.case_id if config.group == "case" else samples.site))
    for split in needed:
        if not len(samples.where(split)):
            reason = f"the {split} split is empty: there are {units} {config.group}s in all"
            raise InputError(where, reason, f"add {config.group}s, or give some of them the split {split}")
    present = np.unique(samples.label[samples.where("train")])
    missing = [name for c, name in enumerate(samples.classes) if c not in present]
    if missing:
        raise InputError(
            where, f"the training split has no tile of {missing[0]!r}", "add cases of it, or other classes"
        )
    for split in needed[1:]:
        absent = sorted(set(samples.classes) - {samples.classes[c] for c in samples.label[samples.split == split]})
        if absent:
            log.warning("%s: the %s split has no tile of %s: some metrics are undefined", where, split, absent[0])
    return samples


def _refuse_leaks(samples: Samples, config: TrainConfig, where: Path) -> None:
    """Raise InputError if a case, a site (where those are split) or a picture is in two splits."""
    units = {"case": samples.case_id} | ({"site": samples.site} if config.group == "site" else {})
    for name, unit in units.items():
        if rows := torn(unit, samples.split):
            what = f"the {name} {str(unit[rows[0]])!r} is in two splits"
            raise InputError(where, what, f"put all tiles of a {name} into one split")
    content = samples.content()
    class_of = samples.label if samples.kind == "images" else np.zeros_like(samples.label)
    for side, names in ((samples.split, None), (class_of, samples.classes)):
        if rows := torn(content, side):
            a, b = (samples.sources[samples.source[row]] for row in rows)
            sides = [str(side[row]) if names is None else repr(names[side[row]]) for row in rows]
            what = f"{a} and {b} are the same picture, one is {sides[0]} and the other {sides[1]}"
            raise InputError(where, what, "leave one of them out, or correct it")


def _require_sites(samples: Samples, why: str, where: Path) -> None:
    without = np.flatnonzero(samples.site == "")
    if len(without):
        what = f"the slide {str(samples.slide_id[without[0]])!r} has no site, but {why}"
        raise InputError(where, what, "fill the column site")
