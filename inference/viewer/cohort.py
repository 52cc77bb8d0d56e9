"""What the viewer shows: heatmaps, stores, features and slides found behind some paths, together by the slides' ids.

Nothing is decoded here. Folders of results are known by what specslide wrote into them, slides by their names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from inference.exports import TABLE
from inference.summary import SUMMARY, HeatmapSummary, read_summary
from tiling.core.artefact import COMMIT, folder_faults
from tiling.core.errors import InputError, SpecslideError
from tiling.manifest import ManifestRow
from tiling.slides.files import slide_name, slides_in
from tiling.slides.ome_zarr_reader import ome_zarr_mark
from tiling.stores.features import MARK as FEATURES_MARK
from tiling.stores.features import FeatureStore
from tiling.stores.store import MARK, TileStore

Kind = Literal["heatmap", "store", "features", "slide"]


@dataclass(frozen=True)
class Result:
    """A heatmap of a slide."""

    folder: Path
    summary: HeatmapSummary


@dataclass(frozen=True)
class Shown:
    """A slide that the viewer shows, with what is at hand of it."""

    slide_id: str
    results: tuple[Result, ...] = ()
    """Heatmaps: one a model, in the order in which they were named."""
    slide: Path | None = None
    store: TileStore | None = None
    """Of the same slide as the heatmaps, as are `features`."""
    features: FeatureStore | None = None
    row: ManifestRow | None = None
    """What the manifest says of it."""

    @property
    def columns(self) -> TileStore | FeatureStore | None:
        """What knows more of the tiles than was predicted, if anything does."""
        return self.store or self.features

    @property
    def maps(self) -> int:
        """How many maps there are: one a heatmap; where nothing was predicted, that of the tiles' columns."""
        return len(self.results) or int(self.columns is not None)

    @property
    def suspicion(self) -> float | None:
        """The score that slides are listed by, of the first heatmap; None where nothing was predicted."""
        return self.results[0].summary.suspicion if self.results else None


@dataclass(frozen=True)
class Cohort:
    """The slides that are shown."""

    slides: tuple[Shown, ...]
    """The most suspicious first, then those of which nothing was predicted."""
    refused: dict[Path, str]
    """What was found and cannot be read, and why."""


@dataclass
class _Found:
    """What was found of one slide."""

    results: list[Result] = field(default_factory=list)
    stores: list[TileStore] = field(default_factory=list)
    features: list[FeatureStore] = field(default_factory=list)
    slides: list[Path] = field(default_factory=list)


def find_cohort(paths: Sequence[Path], rows: Sequence[ManifestRow] = ()) -> Cohort:
    """The slides behind some paths.

    A path is a heatmap, a store of tiles or features, a slide, or a folder that holds such at any depth, as a study
    does. A heatmap is shown over the slide of its id; where that is not at hand, over a store of the same slide.

    Args:
        paths: What the user names.
        rows: Of a manifest: where slides are, what they are called, and what is known of them.

    Returns:
        The slides.

    Raises:
        InputError: If a path does not exist, or nothing is found that can be shown.
    """
    found: dict[str, _Found] = {}
    refused: dict[Path, str] = {}
    id_of = {row.slide_path.resolve(): row.slide_id for row in rows}
    things = dict.fromkeys((kind, path.resolve()) for named in paths for kind, path in _things(named))
    things |= dict.fromkeys(_thing(row.slide_path.resolve()) for row in rows if row.slide_path.exists())
    for kind, path in things:
        try:
            _add(kind, path, id_of.get(path), found)
        except SpecslideError as error:
            refused[path] = f"{error.what}; {error.fix}" if error.fix else error.what
    row_of = {row.slide_id: row for row in rows}
    shown = [_shown(name, of, row_of.get(name)) for name, of in found.items()]
    if not shown:
        where, why = next(iter(refused.items()), (", ".join(map(str, paths)), "holds no heatmap, store or slide"))
        raise InputError(where, why, "pass what specslide heatmap, tile or run wrote, or slides")
    ordered = sorted(shown, key=lambda one: (one.suspicion is None, -(one.suspicion or 0), one.slide_id))
    return Cohort(tuple(ordered), refused)


def _add(kind: Kind, path: Path, slide_id: str | None, found: dict[str, _Found]) -> None:
    """Note one thing under its slide's id. Raises InputError, StoreError."""
    if kind == "heatmap":
        if faults := folder_faults(path, only=frozenset({SUMMARY, TABLE})):
            raise InputError(path, faults[0], "make the heatmap again with --overwrite")
        summary = read_summary(path)
        found.setdefault(summary.slide.slide_id, _Found()).results.append(Result(path, summary))
    elif kind == "store":
        store = TileStore(path)
        found.setdefault(slide_id or store.slide.slide_id, _Found()).stores.append(store)
    elif kind == "features":
        features = FeatureStore(path)
        found.setdefault(slide_id or features.slide_id, _Found()).features.append(features)
    else:
        found.setdefault(slide_id or slide_name(path), _Found()).slides.append(path)


def _shown(name: str, of: _Found, row: ManifestRow | None) -> Shown:
    """One slide, of what was found under its id: heatmaps are of the first one's slide, and so is the store."""
    sha256 = of.results[0].summary.slide.sha256 if of.results else None
    results = tuple(result for result in of.results if result.summary.slide.sha256 == sha256)
    store = next((store for store in of.stores if sha256 in (None, store.slide.sha256)), None)
    features = next((store for store in of.features if sha256 in (None, store.slide.sha256)), None)
    return Shown(name, results, of.slides[0] if of.slides else None, store, features, row)


def _things(path: Path) -> Iterator[tuple[Kind, Path]]:
    """What a path names, or a folder holds at any depth. Raises InputError for a path that cannot be read."""
    if not os.path.lexists(path):
        raise InputError(path, "cannot be read (No such file or directory)", "correct the path")
    try:
        kind = _kind(path)
        yield from _within(path, set()) if kind is None else [(kind, path)]
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check its permissions") from error


def _within(folder: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Kind, Path]]:
    """What lies in a folder and those below it, by name. Raises OSError."""
    place = folder.stat()
    if (place.st_dev, place.st_ino) in seen:  # a link that leads back
        return
    seen.add((place.st_dev, place.st_ino))
    yield from (("slide", path) for path in slides_in(folder))
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir() or path.with_name(f"{path.name}.mrxs").is_file():
            continue
        kind = _kind(path)
        if kind is not None:
            yield kind, path
        elif path.suffix != ".zarr":
            yield from _within(path, seen)


def _thing(path: Path) -> tuple[Kind, Path]:
    return _kind(path) or "slide", path


def _kind(path: Path) -> Kind | None:
    """What a path is; None for a folder that at most holds such."""
    if not path.is_dir() or ome_zarr_mark(path) is not None:
        return "slide"
    if (path / SUMMARY).is_file():
        return "heatmap"
    if not (path / COMMIT).is_file():
        return None
    return "store" if (path / MARK).is_file() else "features" if (path / FEATURES_MARK).is_file() else None
