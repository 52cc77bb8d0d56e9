"""Feature stores and the manifest of their slides -> `Samples`, a row a bag, labelled by slide; no feature is read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tiling.core.errors import InputError
from tiling.core.files import sha256_json
from tiling.manifest import read_manifest
from tiling.stores.features import FeatureStore, feature_path, require_one_encoder
from training.config import BagConfig
from training.data.from_stores import StoredSlide, chosen_rows, open_slides, require_one_icc, slide_label
from training.data.preparation import capped, class_index, class_names, prepared
from training.data.samples import TEXTS, BagPart, Ints, Samples, Split

log = logging.getLogger(__name__)

_OF_A_CASE = ("split", "site")
"""What all slides of a case must share to be one bag."""


def samples_from_features(
    features: Path,
    manifest: Path,
    config: BagConfig,
    *,
    leave_out: Collection[str] = (),
    to_train: bool = True,
) -> Samples:
    """The bags of the stores `<features>/<slide_id>.features.zarr` of a manifest's slides, with the slides' labels.

    `config.bag` says whether a slide is a bag or a case. Slides without a store or without tiles are left out, with the
    reason in the log.

    Args:
        features: Folder of the feature stores.
        manifest: Table of the slides.
        config: The settings of the training; bags, splits and seed among them.
        leave_out: Slides that do not count, by their ids.
        to_train: Whether a model is to be trained on them; if not, the split is "" where the data bring none.

    Returns:
        The bags.

    Raises:
        InputError: For one slide under two names, a slide without a label, a case that cannot be one bag, and bags that
            cannot be split.
        StoreError: For a damaged store, and for features of two encoders, saying how these differ.
    """
    rows = [row for row in read_manifest(manifest) if row.slide_id not in leave_out]
    slides = open_slides(rows, lambda slide_id: feature_path(features, slide_id), FeatureStore, features, manifest)
    require_one_encoder([slide.store for slide in slides])
    require_one_icc(slides)
    classes = class_names(config, {slide_label(slide.row, manifest, config) for slide in slides}, manifest)
    bags: dict[str, list[tuple[StoredSlide[FeatureStore], BagPart]]] = {}
    for slide in slides:
        if len((part := _part(slide, config)).rows):
            bag = slide.row.slide_id if config.bag == "slide" else slide.row.case_id
            bags.setdefault(bag, []).append((slide, part))
    if not bags:
        raise InputError(manifest, "gives no labelled tile", "see the reasons in the log")
    joined = [_joined([slide for slide, _ in bag], manifest) for bag in bags.values()]
    label = [class_index(facts["label"], classes, f"{manifest}, slide {facts['slide_id']}") for facts in joined]
    count, encoder = len(bags), slides[0].store.encoder
    nothing = np.zeros(count, dtype=np.int64)
    texts: dict[str, Any] = {name: np.array([facts[name] for facts in joined]) for name in TEXTS}
    samples = Samples(
        kind="bags",
        classes=classes,
        sources=tuple(bag[0][1].path for bag in bags.values()),
        hashes=tuple(_identity([part for _, part in bag]) for bag in bags.values()),
        tile_px=encoder.tile_px,
        mpp=encoder.mpp,
        label=np.array(label, dtype=np.int64),
        source=np.arange(count),
        row=nothing,
        x0=nothing,
        y0=nothing,
        tile_px0=nothing,
        clear=np.ones(count, np.bool_),
        icc=slides[0].store.icc,
        bags=tuple(tuple(part for _, part in bag) for bag in bags.values()),
        **texts,
    )
    return prepared(samples, config, manifest, to_train=to_train)


def with_fewer_tiles(split: Split, tiles: int, seed: int = 0) -> Split:
    """The same bags of at most so many tiles of each slide; the draw depends on the seed and the slide alone."""
    config, samples = BagConfig(max_tiles_per_slide=tiles, seed=seed), split.samples
    bags = tuple(
        tuple(part._replace(rows=capped(part.rows, part.slide_id, config)) for part in bag) for bag in samples.bags
    )
    hashes = tuple(map(_identity, bags))
    return replace(split, samples=replace(samples, bags=bags, hashes=hashes, whole=samples.hashes))


def _part(slide: StoredSlide[FeatureStore], config: BagConfig) -> BagPart:
    """The slide's tiles that count, by `where` and `max_tiles_per_slide`."""
    rows = capped(np.flatnonzero(chosen_rows(slide, config)), slide.row.slide_id, config)
    return BagPart(slide.path, slide.row.slide_id, rows, slide.store.identity, slide.store.slide.sha256)


def _joined(slides: Sequence[StoredSlide[FeatureStore]], manifest: Path) -> dict[str, str]:
    """Label and texts of a bag. Raises InputError for a case whose slides differ in what a bag has one of."""
    rows = [slide.row for slide in slides]
    facts = {name: [getattr(row, name) or "" for row in rows] for name in ("label", *TEXTS)}
    for name in ("label", *_OF_A_CASE):
        if len(set(facts[name])) > 1:
            what = f"the slides of the case {rows[0].case_id!r} have the {name}s {', '.join(sorted(set(facts[name])))}"
            raise InputError(manifest, what, f"give a case one {name}, or pass --bag slide")
    return {name: ";".join(dict.fromkeys(values)) for name, values in facts.items()}


def _identity(parts: Sequence[BagPart]) -> str:
    """SHA-256 of a bag's stores and rows."""
    return sha256_json([[part.sha256, _digest(part.rows)] for part in parts])


def _digest(rows: Ints) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
