"""Tile stores and the manifest of their slides -> `Samples`, labelled by annotations or by slide; no pixel is read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tiling import TileStore
from tiling.core.errors import ConfigError, InputError
from tiling.grid import same_scale
from tiling.manifest import ManifestRow, read_manifest
from tiling.stores.features import FeatureStore
from tiling.stores.query import rows_where
from training.config import LearningConfig, TrainConfig
from training.data.preparation import NO_LABEL, capped, class_index, class_names, is_missing, prepared
from training.data.samples import TEXTS, Ints, Samples

log = logging.getLogger(__name__)


def samples_from_stores(
    stores: Path,
    manifest: Path,
    config: TrainConfig,
    *,
    leave_out: Collection[str] = (),
    to_train: bool = True,
) -> Samples:
    """The tiles of the stores `<stores>/<slide_id>.zarr` of a manifest's slides, labelled as `config.label_from` says.

    Slides without a store, without tiles or without usable labels, and tiles between two classes, are left out, with
    the reason and their number in the log.

    Args:
        stores: Folder of the stores.
        manifest: Table of the slides.
        config: The settings of the training; labels, splits and seed among them.
        leave_out: Slides that do not count, by their ids.
        to_train: Whether a model is to be trained on them; if not, the split is "" where the data bring none.

    Returns:
        The tiles.

    Raises:
        InputError: For stores of different tile size or scale, one slide under two names, a slide without the label it
            needs, and slides that cannot be split.
        StoreError: For a damaged store.
    """
    rows = [row for row in read_manifest(manifest) if row.slide_id not in leave_out]
    slides = open_slides(rows, lambda slide_id: stores / f"{slide_id}.zarr", TileStore, stores, manifest)
    _refuse_unlike(slides)
    require_one_icc(slides)
    annotated = sorted({name for slide in slides for name in slide.store.annotations})
    by_annotation = config.label_from == "annotation" or (config.label_from == "auto" and bool(annotated))
    if by_annotation:
        classes = class_names(config, {config.negative_class, *annotated}, manifest)
        if config.negative_class not in classes:
            raise ConfigError("classes", f"lacks the negative class {config.negative_class!r}", "add it to classes")
    else:
        classes = class_names(config, {slide_label(slide.row, manifest, config) for slide in slides}, manifest)
    tables = [_label_slide(slide, classes, by_annotation, config, manifest) for slide in slides]
    kept = [table for table in tables if table.chosen.any()]
    if not kept:
        raise InputError(manifest, "gives no labelled tile", "see the reasons in the log")
    return prepared(_join_slides(kept, classes, config), config, manifest, to_train=to_train)


def annotation_labels(
    fractions: Mapping[str, NDArray[np.float32]], count: int, classes: Sequence[str], config: TrainConfig
) -> tuple[Ints, NDArray[np.bool_]]:
    """The class of each tile by its annotated area, and whether that is clear.

    A tile is of the class with the largest fraction if that reaches `annotation_threshold`, else negative, which is
    clear if the fraction does not exceed `negative_max_fraction`.

    Args:
        fractions: Fraction of each tile under each class's annotations, (`count`,) in [0, 1]; the negative class itself
            and names not in `classes` do not count.
        count: Number of tiles.
        classes: The classes' names; labels are their indices.
        config: The negative class and the two thresholds.

    Returns:
        Labels int64 (`count`,), and bool (`count`,), false where a tile is between the thresholds.

    Raises:
        ValueError: If the negative class is not among `classes`.
    """
    negative = classes.index(config.negative_class)
    covered = np.zeros((len(classes), count), dtype=np.float32)
    for c, name in enumerate(classes):
        if c != negative and name in fractions:
            covered[c] = fractions[name]
    largest = covered.max(axis=0)
    free, covers = largest <= config.negative_max_fraction, largest >= config.annotation_threshold
    return np.where(covers & ~free, covered.argmax(axis=0), negative).astype(np.int64), free | covers


Store = TypeVar("Store", TileStore, FeatureStore)


@dataclass(frozen=True)
class StoredSlide(Generic[Store]):
    """A slide of a manifest and what is stored of it."""

    row: ManifestRow
    path: Path
    store: Store


@dataclass(frozen=True)
class _LabelledSlide:
    slide: StoredSlide[TileStore]
    label: Ints
    """Of its tiles, (N,); this and the next as in `Samples`."""
    clear: NDArray[np.bool_]
    chosen: NDArray[np.bool_]
    """Which tiles count, (N,)."""


def open_slides(
    rows: Iterable[ManifestRow], path_of: Callable[[str], Path], kind: type[Store], folder: Path, manifest: Path
) -> list[StoredSlide[Store]]:
    """The slides that have tiles in their stores; why others are left out is logged.

    Args:
        rows: The slides.
        path_of: Where the store of a slide lies, by its id.
        kind: What the stores are.
        folder: The folder of the stores, to be named in errors.
        manifest: The table of the slides, to be named in errors.

    Returns:
        The slides, at least one.

    Raises:
        InputError: If there is none, and for one slide under two names, which would count twice, and could be trained
            on and tested with.
        StoreError: For a damaged store.
    """
    slides: list[StoredSlide[Store]] = []
    named: dict[str, str] = {}
    for row in rows:
        path = path_of(row.slide_id)
        if not path.is_dir():
            log.warning("%s: left out, it has no store %s", row.slide_id, path)
            continue
        store = kind(path)
        if len(store) == 0:
            log.warning("%s: left out, its store holds no tile", row.slide_id)
            continue
        if (twin := named.setdefault(store.slide.sha256 or row.slide_id, row.slide_id)) != row.slide_id:
            what = f"the slides {twin!r} and {row.slide_id!r} are one and the same (equal SHA-256)"
            raise InputError(manifest, what, "leave one of them out")
        slides.append(StoredSlide(row, path, store))
    if not slides:
        verb = "tile" if kind is TileStore else "embed"
        what = f"holds no tile of any slide of {manifest}"
        raise InputError(folder, what, f"make the stores with specslide {verb} first")
    return slides


def _refuse_unlike(slides: Sequence[StoredSlide[TileStore]]) -> None:
    """Stores of another tile size, or further apart in scale than one scale asked for leads to."""
    first = min(slides, key=lambda slide: (slide.store.grid.tile_px, slide.store.grid.mpp))
    other = max(slides, key=lambda slide: (slide.store.grid.tile_px, slide.store.grid.mpp))
    a, b = first.store.grid, other.store.grid
    if a.tile_px != b.tile_px or not same_scale(a.mpp, b.mpp):
        raise InputError(
            other.path,
            f"has tiles of {b.tile_px} px at {b.mpp:.3g} µm/px, {first.path.name} of {a.tile_px} px at {a.mpp:.3g}",
            f"tile all slides alike, such as with --mpp {max(a.mpp, b.mpp):.4g}, or leave those out",
        )


def require_one_icc(slides: Sequence[StoredSlide[Any]]) -> None:
    """Raise InputError for stores of several colours, naming one of each: a model would learn which is which."""
    by_icc = {slide.store.icc: slide for slide in slides}
    if len(by_icc) > 1:
        what = f"has pixels in sRGB by ICC profile, {by_icc['none'].path.name} as they are in its slide's file"
        raise InputError(by_icc["srgb"].path, what, "make all stores alike, with --icc or without")


def _label_slide(
    slide: StoredSlide[TileStore], classes: tuple[str, ...], by_annotation: bool, config: TrainConfig, manifest: Path
) -> _LabelledSlide:
    """The slide with its tiles' labels; why some are left out is logged."""
    store, row = slide.store, slide.row
    every = np.ones(len(store), np.bool_)
    if not by_annotation:
        label = class_index(slide_label(row, manifest, config), classes, f"{manifest}, slide {row.slide_id}")
        return _LabelledSlide(slide, np.full(len(store), label), every, chosen_rows(slide, config))
    if not store.annotations and row.label != config.negative_class:
        fix = f", or pass --negative-class {row.label} if none of its tissue is to be found" if row.label else ""
        what = "%s: left out, it has neither annotations nor the label %r; annotate it%s"
        log.warning(what, row.slide_id, config.negative_class, fix)
        return _LabelledSlide(slide, np.zeros(len(store), np.int64), every, ~every)
    labels, clear = annotation_labels(store.annotations, len(store), classes, config)
    if not clear.all():
        count = int((~clear).sum())
        log.info("%s: %d of %d tiles lie between two classes, not to be trained on", row.slide_id, count, len(store))
    return _LabelledSlide(slide, labels, clear, chosen_rows(slide, config))


def chosen_rows(slide: StoredSlide[Any], config: LearningConfig) -> NDArray[np.bool_]:
    """Which tiles `config.where` keeps, (N,)."""
    kept = rows_where(slide.store, config.where)
    if not kept.all():
        log.info("%s: %d of %d tiles left out by where", slide.row.slide_id, int((~kept).sum()), len(kept))
    return kept


def _join_slides(tables: Sequence[_LabelledSlide], classes: tuple[str, ...], config: TrainConfig) -> Samples:
    slides = [table.slide for table in tables]
    rows = [capped(np.flatnonzero(table.chosen), table.slide.row.slide_id, config) for table in tables]
    counts = [len(r) for r in rows]
    stores = [slide.store for slide in slides]

    def gather(columns: Iterable[NDArray[Any]]) -> Ints:
        return np.concatenate([c[r] for c, r in zip(columns, rows, strict=True)]).astype(np.int64)

    texts: dict[str, Any] = {
        name: np.repeat([getattr(slide.row, name) or "" for slide in slides], counts) for name in TEXTS
    }
    return Samples(
        kind="stores",
        classes=classes,
        sources=tuple(slide.path for slide in slides),
        hashes=tuple(store.pixels_sha256 for store in stores),
        icc=stores[0].icc,
        whole=tuple(store.sha256 for store in stores),
        tile_px=stores[0].grid.tile_px,
        mpp=float(np.median([store.grid.mpp for store in stores])),
        label=gather(table.label for table in tables),
        source=np.repeat(np.arange(len(slides)), counts),
        row=np.concatenate(rows),
        x0=gather(store.tiles.x0 for store in stores),
        y0=gather(store.tiles.y0 for store in stores),
        tile_px0=np.repeat(np.array([store.grid.tile_px0 for store in stores]), counts),
        clear=gather(table.clear for table in tables).astype(np.bool_),
        slides=tuple(store.slide.sha256 for store in stores),
        **texts,
    )


def slide_label(row: ManifestRow, manifest: Path, config: LearningConfig) -> str:
    """The label of a slide in its manifest. Raises InputError if it has none."""
    if row.label is None or is_missing(row.label, config):
        raise InputError(f"{manifest}, slide {row.slide_id}", f"has no label ({row.label or ''!r})", NO_LABEL)
    return row.label
