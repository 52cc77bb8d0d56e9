"""The verb: a slide becomes a tile store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from tiling.annotations.rasterize import annotation_fractions, annotation_hash
from tiling.config import TilingConfig
from tiling.core.arrays import Float32Array, UInt8Array
from tiling.core.artefact import DONE, Recipe, atomic_folder, locked_folder, require_own, state
from tiling.core.errors import ConfigError, OutputError, SlideError, StoreError
from tiling.core.files import sha256_json
from tiling.core.threads import beside, read_ahead, usable_cores
from tiling.core.versions import software_versions
from tiling.grid import Grid, Tiles
from tiling.manifest import require_slide_id
from tiling.plan import Plan, plan_tiles
from tiling.preview import write_preview
from tiling.quality import Measure, measurer, no_quality
from tiling.reports import TileReport
from tiling.slides.files import slide_name
from tiling.slides.slide import Slide
from tiling.stores.codec import TileCodec
from tiling.stores.group import ANNOTATION
from tiling.stores.store import (
    DECLARE_BOUNDS,
    MARK,
    SlideFacts,
    StoreAttributes,
    TileStore,
    annotated_inputs,
    store_recipe,
)
from tiling.stores.write import write_columns, write_tiles

log = logging.getLogger(__name__)

Tile = TypeVar("Tile")
_RUN = 32  # tiles that a thread does at a time
Chunk = tuple[dict[str, float], bytes]
"""What is measured of a tile, by name, and the bytes that are stored of it."""
Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""

_STORE_SUFFIX = ".zarr"


def tile_slide(
    slide_path: Path | str,
    out_dir: Path | str,
    config: TilingConfig = TilingConfig(),  # noqa: B008 - frozen
    *,
    slide_id: str | None = None,
    slide_mpp: float | None = None,
    annotation: Path | None = None,
    tissue_file: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    threads: int | Callable[[], int] | None = None,
) -> TileReport:
    """Write the tile store `<out_dir>/<slide_id>.zarr` of a slide and its preview picture.

    The store appears whole or not at all, and is the same bytes for the same slide and settings. One that is there
    already, made the same way, is kept.

    Args:
        slide_path: The slide: a file, or the folder of a DICOM or OME-Zarr slide.
        out_dir: The folder of the stores.
        config: How the slide is tiled.
        slide_id: What the slide is called; None: the name of its file.
        slide_mpp: Micrometres per level-0 pixel, in place of what the slide's file says.
        annotation: A file of QuPath, ASAP, ImageScope or HALO, or a label image.
        tissue_file: One of these too: the mask for the tissue method `mask`.
        overwrite: Whether a store made otherwise is replaced, when the new one is complete.
        progress: Called with (tiles done, tiles in all).
        threads: Threads that read, measure and encode; a function is asked as they go on. None: one a core.

    Returns:
        What became of the slide.

    Raises:
        SlideError: If the slide cannot be opened, scaled or read.
        ConfigError: For settings that do not fit the slide, and an id that cannot name a folder.
        InputError: If the annotation or the mask cannot be used.
        OutputError: If the store cannot be written, or something else has its name.
        StoreError: For a store made otherwise, unless `overwrite`.

    Example:
        >>> from tiling import TileStore, TilingConfig, tile_slide
        >>> truth = Path("cohort/annotations/synthetic-04.geojson")
        >>> config = TilingConfig(mpp=1, tile_px=128)
        >>> report = tile_slide("cohort/slides/synthetic-04.tif", "stores", config, annotation=truth)
        >>> store = TileStore(report.store)
        >>> store.read([0]).shape, list(store.annotations)
        ((1, 128, 128, 3), ['tumour'])
    """
    slide_id = require_slide_id(slide_id or slide_name(Path(slide_path)), slide_path)
    store_path = Path(out_dir) / f"{slide_id}{_STORE_SUFFIX}"
    preview_path = store_path.with_suffix(".png")
    if preview_path.resolve() in {path.resolve() for path in (annotation, tissue_file) if path is not None}:
        raise OutputError(preview_path, "is read for the store, whose preview would replace it", "choose another --out")
    workers = threads or usable_cores()
    # The slide is hashed while it is tiled, unless a store is there already, which may be the very one.
    with (
        Slide(slide_path, mpp=slide_mpp, icc=config.icc) as slide,
        locked_folder(store_path),
        beside(slide.sha256) as hashed,
    ):
        config = config.for_slide(slide.mpp)
        inputs = tiling_inputs(config, slide_mpp, annotation, tissue_file)

        def facts() -> SlideFacts:
            return slide_facts(slide, slide_id, hashed.result())

        def recipe() -> Recipe:
            return store_recipe(hashed.result(), inputs)

        kept = _kept(store_path, recipe, overwrite)
        if kept is None:
            plan = plan_tiles(slide, config, tissue_file, threads=workers() if callable(workers) else workers)
            with atomic_folder(store_path, recipe) as folder:
                _write(folder, slide, plan, config, facts, inputs, annotation, progress, workers)
                preview_path.unlink(missing_ok=True)  # of the store that is about to be replaced
            del plan  # its pictures are large, and the preview is drawn from the store's
        store = kept or TileStore(store_path)
        if not preview_path.exists():
            write_preview(store, preview_path)
    of = store.attributes
    for doubt in of.doubts() if kept is None else ():
        log.warning("%s: %s", slide_id, doubt)
    covered = np.logical_or.reduce([np.zeros(len(store), np.bool_), *(c > 0 for c in store.annotations.values())])
    return TileReport(
        slide_id,
        store_path,
        len(store),
        reused=kept is not None,
        mpp=of.mpp,
        tissue=of.tissue_summary,
        doubts=tuple(of.doubts()),
        classes=None if annotation is None else of.annotation,
        annotated=int(covered.sum()),
        bad=of.bad_tiles,
    )


def tiling_inputs(
    config: TilingConfig, slide_mpp: float | None, annotation: Path | None, tissue_file: Path | None = None
) -> dict[str, object]:
    """All that decides a store beside its slide: what its attributes say as `config`.

    A setting that version 0.1 had not is named only where it is not as it was then.

    Args:
        config: The settings, as `TilingConfig.for_slide` gives them.
        slide_mpp: Micrometres per level-0 pixel that the user gave, or None.
        annotation: The annotation file, or None.
        tissue_file: The user's tissue mask, or None.

    Returns:
        The settings by name, and the hashes of the files.

    Raises:
        InputError: For a file that cannot be read.
    """
    inputs = config.model_dump(mode="json")
    if not config.coarser_ok:
        del inputs["coarser_ok"]
    if config.icc == "none":
        del inputs["icc"]
    if not config.tissue.drop_ink:
        del inputs["tissue"]["drop_ink"]
    inputs |= {
        "slide_mpp": slide_mpp,
        "annotation_sha256": None,
        "tissue_sha256": None if tissue_file is None else annotation_hash(tissue_file),
    }
    sha256 = None if annotation is None else annotation_hash(annotation)
    return annotated_inputs(inputs, sha256, config.annotation)


def read_tiles(slide: Slide, tiles: Tiles, max_bad: float) -> Iterator[tuple[int, UInt8Array]]:
    """The pixels of tiles, one after the other: (index, uint8 (tile_px, tile_px, 3)).

    A tile that cannot be decoded is named in the log and left out. Raises SlideError when they are more than the
    fraction `max_bad` of all.
    """
    return _good_tiles(slide, tiles, max_bad, _reads(slide, tiles), threads=1)


def _reads(slide: Slide, tiles: Tiles) -> Callable[[int, int], UInt8Array]:
    """What gives the pixels, (tile_px, tile_px, 3), of the tile at a corner."""
    size0, size = (tiles.side_px0,) * 2, (tiles.grid.tile_px,) * 2
    return lambda x0, y0: slide.read_scaled(x0, y0, size0, size)


def _encoded(read: Callable[[int, int], UInt8Array], measure: Measure, codec: TileCodec) -> Callable[[int, int], Chunk]:
    def get(x0: int, y0: int) -> Chunk:
        tile = read(x0, y0)
        return measure(tile), codec.encode(tile)

    return get


def _copies(slide: Slide, tiles: Tiles) -> Callable[[int, int], Chunk]:
    """What gives the slide's own JPEG stream, a file, of the tile at a corner, not decoded.

    Raises ConfigError, naming the settings that would do, if the grid's tiles are not the slide's own.
    """
    level, side = _own_tiles_level(slide, tiles.grid), tiles.side_px0

    def copy(x0: int, y0: int) -> Chunk:
        stream = slide.native_stream(level, x0 // side, y0 // side)
        if stream is None:
            raise SlideError(slide.path, "leaves out the tile", "use another codec")
        return {}, stream

    return copy


def _inside(plan: Plan) -> Plan:
    """The tiles that lie wholly on the slide: a stream copied from its edge would bring the scanner's padding along."""
    tiles, side = plan.tiles, plan.tiles.side_px0
    inside = np.flatnonzero((tiles.x0 + side <= tiles.grid.width0) & (tiles.y0 + side <= tiles.grid.height0))
    if left_out := len(tiles) - len(inside):
        log.warning("%d tiles at the slide's edge are left out: `source` copies whole tiles", left_out)
    return plan.only(inside)


def _own_tiles_level(slide: Slide, grid: Grid) -> int:
    """The level whose native tiles are the grid's. Raises ConfigError."""
    native = [(i, level.downsample, slide.native_tile_px(i)) for i, level in enumerate(slide.levels)]
    square = [(i, down, size[0]) for i, down, size in native if size is not None and size[0] == size[1]]
    for level, down, side in square:
        if (grid.tile_px, grid.tile_px0, grid.stride_px0) == (side, side * down, side * down):
            return level
    if not square:
        fix = "use --codec jpeg:90 or lossless"
        raise ConfigError(f"{slide.path}: codec", "`source` copies JPEG tiles, and the slide has none to copy", fix)
    choices = " or ".join(f"--tile-px {side} --mpp {slide.mpp * down:g}" for _, down, side in square)
    what = "`source` copies the slide's own tiles, and the tiles asked for are others"
    raise ConfigError(f"{slide.path}: codec", what, f"pass --overlap 0 and {choices}")


def _good_tiles(
    slide: Slide, tiles: Tiles, max_bad: float, get: Callable[[int, int], Tile], threads: int | Callable[[], int]
) -> Generator[tuple[int, Tile]]:
    """What `get` gives of each tile, with its index, in order, whatever the number of threads; see `read_tiles`."""
    places, bad = tiles.places(), 0
    runs = (partial(_tried, get, places[at : at + _RUN]) for at in range(0, len(places), _RUN))
    wanted = threads if callable(threads) else lambda: threads
    most = usable_cores() if callable(threads) else threads
    with closing(read_ahead(runs, most, lambda: 1 if wanted() == 1 else wanted() + 2)) as found:
        for index, tile in enumerate(chain.from_iterable(found)):
            if not isinstance(tile, SlideError):
                yield index, tile
                continue
            bad, (x, y) = bad + 1, places[index]
            if bad > max_bad * len(tiles):
                what = f"has too many tiles that cannot be decoded, {bad} so far, the last at x {x}, y {y}"
                raise SlideError(slide.path, what, "copy or scan the slide again, or raise --max-bad-tiles") from tile
            log.warning("%s: the tile at x %d, y %d is left out, it cannot be decoded", slide.path, x, y)


def _tried(get: Callable[[int, int], Tile], places: Sequence[tuple[int, int]]) -> list[Tile | SlideError]:
    """What `get` gives of each of those places, or why it could not."""
    found: list[Tile | SlideError] = []
    for place in places:
        try:
            found.append(get(*place))
        except SlideError as error:
            found.append(error)
    return found


def slide_facts(slide: Slide, slide_id: str, sha256: str | None = None) -> SlideFacts:
    """The allow-listed facts of a slide, its hash among them, which is computed unless it is known."""
    return SlideFacts(
        slide_id=slide_id,
        sha256=sha256 or slide.sha256(),
        width=slide.width,
        height=slide.height,
        mpp=slide.mpp,
        vendor=slide.vendor,
        objective_power=slide.objective_power,
        level_downsamples=tuple(level.downsample for level in slide.levels),
        bounds=slide.frame.bounds or (slide.frame.scanned if slide.vendor in DECLARE_BOUNDS else None),
        plane=slide.plane,
    )


def _write(
    folder: Path,
    slide: Slide,
    plan: Plan,
    config: TilingConfig,
    facts: Callable[[], SlideFacts],
    inputs: dict[str, object],
    annotation: Path | None,
    progress: Progress | None,
    threads: int | Callable[[], int],
) -> None:
    """Fill the folder of a store from its plan."""
    codec = TileCodec.parse(config.codec)
    copied = codec.kind == "source"
    if copied:
        plan = _inside(plan)
    measure = no_quality if copied else measurer(config.quality, plan.thumbnail.values)
    get = _copies(slide, plan.tiles) if copied else _encoded(_reads(slide, plan.tiles), measure, codec)
    written = _Written(progress or (lambda done, total: None), len(plan.tiles))
    with closing(_good_tiles(slide, plan.tiles, config.max_bad_tiles, get, threads)) as found:
        write_tiles(folder, config.tile_px, codec, written.chunks(found))
    bad = plan.tiles.only(written.missing())
    tiles = plan.tiles.only(written.rows)
    fractions = annotation_fractions(annotation, tiles, slide.frame, config.annotation) if annotation else {}
    names = tuple(measure(np.full((64, 64, 3), 255, np.uint8)))
    attributes = StoreAttributes(
        slide=facts(),
        grid=tiles.grid,
        mpp=tiles.grid.mpp,
        mask_px0=plan.mask.downsample,
        thumbnail_px0=plan.thumbnail.downsample,
        quality=(*names, "pen"),
        bad_tiles=tuple(bad.places()),
        annotation=tuple(fractions),
        tissue_summary=plan.summary,
        lacks_profile=slide.lacks_profile,
        config=inputs,
        config_sha256=sha256_json(inputs),
        software=software_versions(*_MAKERS),
    )
    labels = {f"{ANNOTATION}/{name}": values for name, values in fractions.items()}
    tiles = replace(tiles, columns={**tiles.columns, **written.columns(names), **labels})
    write_columns(folder, tiles, {"mask": plan.mask, "cut": plan.cut, "thumbnail": plan.thumbnail}, attributes)


_MAKERS = ("numpy", "opencv-python-headless", "opencv-python", "openslide-bin", "simplejpeg", "tifffile", "zarr")


class _Written:
    """Which tiles have been written, and what was measured of them."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._measured: list[dict[str, float]] = []
        self.rows: list[int] = []

    def chunks(self, found: Iterable[tuple[int, Chunk]]) -> Iterator[bytes]:
        """The tiles' bytes, as they pass by."""
        for index, (measured, chunk) in found:
            self.rows.append(index)
            self._measured.append(measured)
            self._progress(index + 1, self._total)
            yield chunk

    def missing(self) -> list[int]:
        """The tiles that have not been written."""
        return sorted(set(range(self._total)) - set(self.rows))

    def columns(self, names: Iterable[str]) -> dict[str, Float32Array]:
        """What was measured, (n,) by name."""
        return {name: np.array([tile[name] for tile in self._measured], np.float32) for name in names}


def _kept(path: Path, recipe: Callable[[], Recipe], overwrite: bool) -> TileStore | None:
    """The store that is there already and was made by that recipe; with `overwrite`, another is replaced, not refused.

    Of its bytes only the metadata are checked, with `overwrite` all.
    """
    if not path.exists():
        return None
    try:
        store = TileStore(path)
        found = state(path, recipe(), before=store.recipe, only=None if overwrite else ())
        if found == DONE:
            store.slide.frame()  # raises for a store that does not know it
        else:
            what = found.why if found.why.startswith("is damaged") else f"was made otherwise: {found.why}"
            raise StoreError(path, what, "choose another --out, or pass --overwrite")
    except StoreError as error:
        if not overwrite:
            raise
        require_own(path, MARK, "a tile store")
        log.warning("%s: it is replaced", error)
        return None
    log.info("%s: complete already", path)
    return store
