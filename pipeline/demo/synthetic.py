"""Small synthetic H&E-like slides with known tumour regions, the same bytes for the same seed.

The anatomy of a slide is a handful of shapely polygons in level-0 pixels; the picture is painted from them as two
stain densities, haematoxylin and eosin, that the Beer-Lambert law turns into colours. So the truth is not measured
on the picture: the picture is painted from the truth.
Cells and fibres have their size in micrometres, whatever the scale of the slide.

Knows nothing of tiles, stores or models.
"""

from __future__ import annotations

import csv
import io
import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from shapely import Point, Polygon, affinity, box, contains_xy, geometry, prepare, set_precision, unary_union
from shapely.ops import substring

from tiling.core.artefact import COMMIT, atomic_folder, folder_faults, locked_folder, read_commit
from tiling.core.errors import ConfigError, OutputError, SpecslideError
from tiling.core.files import canonical_json, write_file

Background = Literal["white", "grey", "pink"]
Pen = Literal["blue", "green", "black"]
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
Points = NDArray[np.int64]

RECIPE = 1  # raise it when the same seed gives another picture, so that old cohorts are not reused
COHORT = "cohort.json"
_UUIDS = uuid.UUID("6c1c0f0e-5a51-4f5c-8f55-0c6f5d1f0b0a")

_BACKGROUNDS: dict[Background, tuple[int, int, int]] = {
    "white": (245, 245, 244),
    "grey": (224, 225, 226),
    "pink": (243, 231, 236),
}
_PENS: dict[Pen, tuple[float, float, float]] = {  # optical density (natural logarithm) of the ink in R, G, B
    "blue": (2.3, 1.4, 0.35),
    "green": (2.2, 0.55, 1.3),
    "black": (2.4, 2.3, 2.1),
}
# Optical densities (natural logarithm) of the two stains in R, G, B, near Macenko's reference.
_HAEMATOXYLIN = np.array([0.62, 0.70, 0.35])
_EOSIN = np.array([0.14, 0.85, 0.45])
_FULL_DENSITY = 2.8  # stain density that 255 stands for in the canvases
_PLACES = {  # centre x, centre y, radius of each piece of tissue, as fractions of the slide
    1: ((0.50, 0.50, 0.34),),
    2: ((0.29, 0.34, 0.23), (0.70, 0.64, 0.24)),
    3: ((0.28, 0.27, 0.19), (0.73, 0.36, 0.20), (0.40, 0.75, 0.18)),
}


@dataclass(frozen=True)
class SyntheticSlide:
    """One slide of a cohort: what its manifest row says, and what it is painted from."""

    slide_id: str
    case_id: str
    label: Literal["tumour", "benign"]
    split: Literal["train", "val", "test"]
    site: str
    scanner: str
    seed: int
    background: Background
    pen: Pen | None

    @property
    def slide_path(self) -> str:
        """The TIFF, relative to the cohort's folder."""
        return f"slides/{self.slide_id}.tif"

    @property
    def annotation(self) -> str:
        """The GeoJSON of the truth, relative to the cohort's folder."""
        return f"annotations/{self.slide_id}.geojson"


@dataclass(frozen=True)
class Anatomy:
    """What lies where on a slide: shapely polygons in level-0 pixels. Tumours lie inside tissue."""

    size_px: tuple[int, int]
    mpp: float
    tissue: tuple[Polygon, ...]
    tumours: tuple[Polygon, ...]
    fat: tuple[Polygon, ...]


# ---------------------------------------------------------------------------------------------- the two verbs


def make_cohort(
    folder: Path, *, n_slides: int = 12, seed: int = 0, size_px: tuple[int, int] = (4096, 4096), mpp: float = 0.5
) -> Path:
    """Make a cohort of synthetic slides in `folder` and return its `manifest.csv`.

    The folder holds `slides/*.tif`, `annotations/*.geojson`, `manifest.csv` (slide_path and annotation relative to
    the folder, slide_id, case_id, label, split, site, scanner), `cohort.json` and `commit.json`; it appears when it
    is complete. An intact cohort made with the same settings is kept as it is; an older or damaged one is made anew.
    `size_px` is (width, height), `mpp` micrometres per pixel. Raises ConfigError for fewer than 6 slides, and
    OutputError if the folder cannot be written or holds anything else.
    """
    slides = plan_cohort(n_slides, seed)
    made_from = {"recipe": RECIPE, "size_px": list(size_px), "mpp": mpp, "slides": [asdict(s) for s in slides]}
    with locked_folder(folder):
        if not _holds_cohort(folder, made_from):
            with atomic_folder(folder) as new:
                for s in slides:
                    truth = make_slide(
                        new / s.slide_path,
                        seed=s.seed,
                        size_px=size_px,
                        mpp=mpp,
                        tumour=s.label == "tumour",
                        pen=s.pen,
                        background=s.background,
                    )
                    write_file(new / s.annotation, canonical_json(truth_geojson(truth, s.slide_id)))
                write_file(new / "manifest.csv", _manifest(slides))
                write_file(new / COHORT, canonical_json(made_from))
    return folder / "manifest.csv"


def make_slide(
    path: Path,
    *,
    seed: int,
    tumour: bool,
    size_px: tuple[int, int] = (4096, 4096),
    mpp: float = 0.5,
    pen: Pen | None = None,
    background: Background = "white",
    levels: int = 3,
    tile_px: int = 256,
) -> list[Polygon]:
    """Write one synthetic slide and return its tumour regions, disjoint polygons in level-0 pixels.

    `size_px` is (width, height), `mpp` micrometres per pixel. Same arguments, same bytes, under the same versions
    of the libraries. Without `tumour` the list is empty. The pen mark and the background change nothing else.
    Raises ConfigError if the slide is less than 256 micrometres wide or high, and OutputError.
    """
    anatomy = plan_anatomy(np.random.default_rng(seed), size_px=size_px, mpp=mpp, tumour=tumour)
    picture = paint(anatomy, seed=seed, pen=pen, background=background)
    write_pyramid(path, picture, mpp=mpp, tile_px=tile_px, levels=levels)
    return list(anatomy.tumours)


# ------------------------------------------------------------------------------------------------- the cohort


def plan_cohort(n_slides: int, seed: int) -> list[SyntheticSlide]:
    """The slides of a cohort: about half train, a sixth val, a third test, labels alternating within each.

    Two of the training cases have two slides (one in small cohorts). Site, and with it background and scanner, goes
    round in threes, so it tells nothing of the label. The second slide has a pen mark. Raises ConfigError for n < 6.
    """
    if n_slides < 6:
        raise ConfigError("n_slides", f"is {n_slides}", "6 slides or more give each split both labels")
    n_val, n_test = max(2, n_slides // 6), max(2, n_slides // 3)
    n_train = n_slides - n_val - n_test
    n_pairs = min(2, n_train // 2)
    sites: tuple[tuple[str, str, Background], ...] = (
        ("site-a", "scanner-1", "white"),
        ("site-b", "scanner-2", "grey"),
        ("site-c", "scanner-1", "pink"),
    )
    slides = []
    for i in range(n_slides):
        case = i // 2 if i < 2 * n_pairs else i - n_pairs
        site, scanner, background = sites[i % 3]
        slides.append(
            SyntheticSlide(
                slide_id=f"synthetic-{i:02d}",
                case_id=f"case-{case:02d}",
                label="benign" if i % 2 else "tumour",
                split="train" if i < n_train else "val" if i < n_train + n_val else "test",
                site=site,
                scanner=scanner,
                seed=seed * 10_000 + i,
                background=background,
                pen="green" if i == 1 else None,
            )
        )
    return slides


def truth_geojson(truth: Sequence[Polygon], slide_id: str) -> dict[str, Any]:
    """QuPath's FeatureCollection of tumour annotations, in level-0 pixels; ids follow from `slide_id` and place."""
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(_UUIDS, f"{slide_id}/{i}")),
            "geometry": geometry.mapping(polygon),
            "properties": {
                "objectType": "annotation",
                "classification": {"name": "tumour", "color": [200, 0, 0]},
                "isLocked": True,
            },
        }
        for i, polygon in enumerate(truth)
    ]
    return {"type": "FeatureCollection", "features": features}


def _manifest(slides: Sequence[SyntheticSlide]) -> str:
    columns = ["slide_path", "slide_id", "case_id", "label", "split", "annotation", "site", "scanner"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([getattr(s, column) for column in columns] for s in slides)
    return text.getvalue()


def _holds_cohort(folder: Path, made_from: dict[str, Any]) -> bool:
    """Is the very cohort there and intact? Raises OutputError if replacing the folder would remove anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / COHORT).is_file() or not (folder / COMMIT).is_file():
        raise OutputError(folder, "exists and is not a synthetic cohort", "choose another folder")
    try:
        ours = read_commit(folder).files.keys() | {COMMIT}
    except SpecslideError as error:
        raise OutputError(folder, f"is a damaged cohort ({error.what})", "delete it or choose another folder") from None
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in ours:
            raise OutputError(path, "does not belong to the synthetic cohort", "move it or choose another folder")
    return not folder_faults(folder) and json.loads((folder / COHORT).read_text()) == made_from


# ------------------------------------------------------------------------------------------------ the anatomy


def plan_anatomy(rng: np.random.Generator, *, size_px: tuple[int, int], mpp: float, tumour: bool) -> Anatomy:
    """Draw the polygons of a slide: 1 to 3 pieces of tissue, in them 1 to 3 tumours (or none), and some fat.

    Pure. `size_px` is (width, height). Raises ConfigError if the slide is less than 256 micrometres wide or high.
    """
    width, height = size_px
    if min(size_px) * mpp < 256:
        raise ConfigError("size_px", f"{width} x {height} is too small for tissue at {mpp} um/px", "make it larger")
    side = min(size_px)
    tissue = tuple(
        _blob(rng, x * width, y * height, r * side, wobble=0.38).intersection(box(0, 0, width, height))
        for x, y, r in _PLACES[int(rng.integers(1, 4))]
    )
    # Room for the rough edge of the tissue: a tumour never leaves it.
    cores = [_largest(piece.buffer(-max(20 / mpp, 0.015 * side))) for piece in tissue]
    tumours = _tumours(rng, cores, side) if tumour else ()
    away = unary_union(tumours).buffer(60 / mpp)
    fat = []
    for core in cores:
        x, y = _point_inside(rng, core)
        patch = _blob(rng, x, y, side * rng.uniform(0.05, 0.09), wobble=0.5).intersection(core).difference(away)
        fat += _polygons(patch)
    return Anatomy(size_px, mpp, tissue, tumours, tuple(fat))


def _tumours(rng: np.random.Generator, cores: Sequence[Polygon], side: int) -> tuple[Polygon, ...]:
    blobs = []
    for _ in range(rng.integers(1, 4)):
        core = cores[int(rng.integers(len(cores)))]
        x, y = _point_inside(rng, core)
        blob = _blob(rng, x, y, side * rng.uniform(0.10, 0.17), wobble=0.45)
        blobs.append(Polygon(_largest(blob.intersection(core)).exterior))
    # Whole pixels, as drawn by hand; what touches is one region.
    whole = set_precision(unary_union(blobs), 1.0)
    return tuple(Polygon(p.exterior) for p in _polygons(whole) if p.area > 0.002 * side**2)


def _blob(rng: np.random.Generator, x: float, y: float, radius: float, *, wobble: float) -> Polygon:
    """A smooth star-shaped outline around (x, y): a circle with a few random waves on its radius."""
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    waves = sum(
        rng.normal() / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi)) for order in (2, 3, 4, 5, 7, 9)
    )
    r = radius * np.clip(1 + wobble * waves, 0.45, 1.4)
    return Polygon(np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], axis=1))


def _point_inside(rng: np.random.Generator, polygon: Polygon) -> tuple[float, float]:
    x0, y0, x1, y1 = polygon.bounds
    while True:
        x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
        if polygon.contains(Point(x, y)):
            return x, y


def _largest(shape: Any) -> Polygon:
    return max(_polygons(shape), key=lambda p: float(p.area))


def _polygons(shape: Any) -> list[Polygon]:
    """The polygons of any shapely geometry, without lines, points and empty parts."""
    parts = getattr(shape, "geoms", [shape])
    return [p for p in parts if isinstance(p, Polygon) and not p.is_empty]


# ------------------------------------------------------------------------------------------------ the picture


def paint(anatomy: Anatomy, *, seed: int, pen: Pen | None, background: Background) -> U8:
    """Paint a slide: uint8 (height, width, 3), RGB. Pure. The background and the pen change nothing else."""
    rng = np.random.default_rng([seed, 1])
    fields = _fields(anatomy, rng)
    haematoxylin, eosin = _ground(fields, rng, anatomy)
    _draw_fat(haematoxylin, eosin, anatomy, rng)
    glands = _draw_glands(haematoxylin, eosin, anatomy, rng)
    _draw_tumour_cells(haematoxylin, fields, anatomy, rng)
    um = 1 / anatomy.mpp
    taken = unary_union([t.buffer(4 * um) for t in anatomy.tumours] + glands + list(anatomy.fat))
    stroma = unary_union(anatomy.tissue).buffer(-16 * um).difference(taken)
    _draw_fibroblasts(haematoxylin, fields, anatomy.mpp, stroma, rng)
    _draw_lymphocytes(haematoxylin, fields, anatomy.mpp, stroma, rng)
    _draw_dust(haematoxylin, anatomy, rng)
    picture = _stain(haematoxylin, eosin, _BACKGROUNDS[background], rng)
    if pen is not None:
        _draw_pen(picture, anatomy, _PENS[pen], np.random.default_rng([seed, 2]))
    return _through_the_scanner(picture, np.random.default_rng([seed, 3]))


@dataclass(frozen=True)
class _Fields:
    """Smooth maps at half scale, float32 (h, w)."""

    tissue: F32  # 0 background .. 1 tissue
    nest: F32  # 0 elsewhere .. 1 in a nest of tumour cells, never outside the tumour polygons
    phase: F32  # stroma fibres are its contour lines


def _fields(anatomy: Anatomy, rng: np.random.Generator) -> _Fields:
    um = 0.5 / anatomy.mpp  # half-scale pixels per micrometre
    tissue = _inside(anatomy.tissue, anatomy.size_px)
    tumour = _inside(anatomy.tumours, anatomy.size_px)
    shape = tissue.shape
    rough = _noise(rng, shape, 12 * um) + _noise(rng, shape, 45 * um)
    edge = np.clip((tissue / um - 9 + 3 * rough) / 2, 0, 1)
    phase = 30 * _noise(rng, shape, 240 * um) + 7 * _noise(rng, shape, 60 * um) + 1.2 * _noise(rng, shape, 14 * um)
    # Clefts between fibre bundles: thin white lines along them, here and there, and never in tumour.
    closed = 5 * _noise(rng, shape, 130 * um) + 3 * _noise(rng, shape, 25 * um) + 1.5
    cleft = 5 * np.abs(np.sin(phase / 2)) + np.maximum(closed, -0.5)
    cleft = np.clip(np.maximum(cleft, tumour), 0, 1)
    septum = np.abs(_noise(rng, shape, 70 * um)) * 7
    nest = np.clip(septum - 0.5, 0, 1) * np.clip((tumour - 1) / (6 * um), 0, 1)
    return _Fields(tissue=edge * cleft, nest=nest, phase=phase)


def _ground(fields: _Fields, rng: np.random.Generator, anatomy: Anatomy) -> tuple[U8, U8]:
    """Stain densities without nuclei, uint8 at full scale: haematoxylin and eosin."""
    um = 0.5 / anatomy.mpp
    shape = fields.tissue.shape
    fine, coarse = _noise(rng, shape, 2.5 * um), _noise(rng, shape, 120 * um)
    bundles = 0.10 * np.sin(fields.phase) + 0.09 * np.sin(2.3 * fields.phase + 2 * coarse)
    fibres = (0.07 + 0.06 * coarse) * np.sin(5.3 * fields.phase + 1.5 * fine)
    stroma = 0.62 + bundles + fibres + 0.12 * fine + 0.13 * coarse
    cytoplasm = 0.50 + 0.10 * fine + 0.08 * coarse
    eosin = fields.tissue * (stroma + fields.nest * (cytoplasm - stroma))
    haematoxylin = fields.tissue * (0.07 + 0.03 * fine + fields.nest * (0.36 + 0.07 * fine + 0.06 * coarse))
    return _full(haematoxylin, anatomy.size_px), _full(eosin, anatomy.size_px)


def _draw_fat(haematoxylin: U8, eosin: U8, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Packed pale round cells."""
    um = 1 / anatomy.mpp
    for patch in anatomy.fat:
        for x, y in _scatter(rng, patch.buffer(-24 * um), 50 * um, 0.14):
            cell = _blob(rng, x, y, 24 * um * rng.uniform(0.8, 1.06), wobble=0.12)
            _fill(haematoxylin, cell, 0.01)
            _fill(eosin, cell, 0.04)


def _draw_glands(haematoxylin: U8, eosin: U8, anatomy: Anatomy, rng: np.random.Generator) -> list[Polygon]:
    """Benign glands: a lumen in a ring of epithelium with basal nuclei; returns the areas they fill."""
    um = 1 / anatomy.mpp
    nuclei = [_stamp(rng, 3.6 * um, 2.3 * um, k * np.pi / 24, 1.35, 0.3) for k in range(24)]
    others = unary_union(anatomy.tumours + anatomy.fat).buffer(62 * um)
    free = unary_union(anatomy.tissue).buffer(-65 * um).difference(others)
    glands = []
    for x, y in _scatter(rng, free, 150 * um, 0.35):
        if rng.uniform() < 0.3:
            continue
        radius = rng.uniform(24, 48) * um
        outline = _blob(rng, x, y, radius, wobble=0.16)
        hollow = 1 - rng.uniform(13, 17) * um / radius
        lumen = affinity.scale(outline, hollow, hollow, origin=(x, y))
        _fill(haematoxylin, outline, 0.28)
        _fill(eosin, outline, 0.46)
        _fill(haematoxylin, lumen, 0.02)
        _fill(eosin, lumen, 0.06)
        ring = outline.buffer(-4.5 * um).exterior
        for at in np.arange(0, ring.length, 5.6 * um) + rng.uniform(-0.8, 0.8) * um:
            spot = ring.interpolate(at)
            angle = math.atan2(spot.y - y, spot.x - x) + rng.normal(0, 0.15)
            _blit(haematoxylin, nuclei[round(angle / np.pi * 24) % 24], spot.x, spot.y)
        glands.append(outline)
    return glands


def _draw_tumour_cells(haematoxylin: U8, fields: _Fields, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Dense, large, pleomorphic nuclei in the nests, whole inside the tumour polygons."""
    um = 1 / anatomy.mpp
    bank = [_tumour_stamp(rng, um) for _ in range(64)]
    for tumour in anatomy.tumours:
        spots = _scatter(rng, tumour.buffer(-9 * um), 10.5 * um, 0.34)
        for spot in spots[_at(fields.nest, spots) > rng.uniform(0, 0.9, len(spots))]:
            _blit(haematoxylin, bank[int(rng.integers(64))], *spot)


def _draw_fibroblasts(haematoxylin: U8, fields: _Fields, mpp: float, stroma: Any, rng: np.random.Generator) -> None:
    """Sparse thin nuclei along the fibres of the stroma."""
    um = 1 / mpp
    lengths, widths = rng.uniform(4, 6.5, 24) * um, rng.uniform(1.1, 1.7, 24) * um
    bank = [_stamp(rng, a, b, k * np.pi / 24, 1.6, 0.2) for k, (a, b) in enumerate(zip(lengths, widths, strict=True))]
    spots = _scatter(rng, stroma, 21 * um, 0.45)
    spots = spots[(_at(fields.tissue, spots) > 0.95) & (rng.uniform(size=len(spots)) < 0.75)]
    along = _fibre_angle(fields.phase, spots) + rng.normal(0, 0.2, len(spots))
    for spot, k in zip(spots, np.rint(along / np.pi * 24).astype(int) % 24, strict=True):
        _blit(haematoxylin, bank[k], *spot)


def _draw_lymphocytes(haematoxylin: U8, fields: _Fields, mpp: float, stroma: Any, rng: np.random.Generator) -> None:
    """A few clusters of small, round, dark nuclei: dense, and yet no tumour."""
    um = 1 / mpp
    bank = [_stamp(rng, 2.7 * um, rng.uniform(2.3, 2.7) * um, 0, 2.0, 0.25) for _ in range(12)]
    for x, y in _scatter(rng, stroma.buffer(-40 * um), 420 * um, 0.4):
        cluster = _blob(rng, x, y, rng.uniform(25, 55) * um, wobble=0.5).intersection(stroma)
        spots = _scatter(rng, cluster, 7 * um, 0.4)
        for spot in spots[(_at(fields.tissue, spots) > 0.95) & (rng.uniform(size=len(spots)) < 0.7)]:
            _blit(haematoxylin, bank[int(rng.integers(12))], *spot)


def _draw_dust(haematoxylin: U8, anatomy: Anatomy, rng: np.random.Generator) -> None:
    um = 1 / anatomy.mpp
    width, height = anatomy.size_px
    for _ in range(12):
        speck = _blob(rng, rng.uniform(0, width), rng.uniform(0, height), rng.uniform(1, 5) * um, wobble=0.6)
        if not any(speck.intersects(t) for t in anatomy.tumours):
            _fill(haematoxylin, speck, rng.uniform(0.2, 0.9))


def _stain(haematoxylin: U8, eosin: U8, background: tuple[int, int, int], rng: np.random.Generator) -> U8:
    """Beer-Lambert: densities uint8 (h, w) to RGB uint8 (h, w, 3), with this slide's own stain colours."""
    vectors = [v * rng.normal(1, 0.05, 3) * rng.uniform(0.88, 1.15) for v in (_HAEMATOXYLIN, _EOSIN)]
    density = np.arange(256)[:, None] / 255 * _FULL_DENSITY
    light_h, light_e = (np.exp(-density * v) for v in vectors)
    table_h = np.rint(light_h * background).astype(np.uint8)
    table_e = np.rint(light_e * 255).astype(np.uint8)
    channels = [
        cv2.multiply(cv2.LUT(haematoxylin, table_h[:, c]), cv2.LUT(eosin, table_e[:, c]), scale=1 / 255)
        for c in range(3)
    ]
    return _u8(cv2.merge(channels))


def _draw_pen(picture: U8, anatomy: Anatomy, ink: tuple[float, float, float], rng: np.random.Generator) -> None:
    """A thick stroke along part of a piece of tissue, over the background and the tissue's edge, never over tumour."""
    side = min(anatomy.size_px)
    # A smooth line just outside all tissue, thick enough to cover its edge and too thin to reach a tumour.
    around = _largest(unary_union(anatomy.tissue).buffer(0.05 * side).buffer(-0.046 * side)).exterior
    start = rng.uniform(0, 0.55)
    stroke = substring(around, start, start + rng.uniform(0.25, 0.4), normalized=True)
    width, height = anatomy.size_px
    mask = np.zeros((height // 2, width // 2), np.uint8)
    points = np.rint(np.asarray(stroke.coords) / 2).astype(np.int32)
    cv2.polylines(mask, [points], False, 255, thickness=max(3, round(0.011 * side)), lineType=cv2.LINE_AA)
    wet = _u8(cv2.blur(mask, (5, 5))).astype(np.float32) / 255
    wet *= np.clip(0.85 + 0.10 * _noise(rng, mask.shape, side / 100) + 0.05 * _noise(rng, mask.shape, 3), 0, 1)
    density = _full(wet, anatomy.size_px, unit=1.0)
    for c in range(3):
        light = np.rint(np.exp(-np.arange(256) / 255 * ink[c]) * 255).astype(np.uint8)
        picture[..., c] = cv2.multiply(picture[..., c], cv2.LUT(density, light), scale=1 / 255)


def _through_the_scanner(picture: U8, rng: np.random.Generator) -> U8:
    """The optics' blur and the sensor's noise (one noise tile, repeated: nobody sees it)."""
    soft = _u8(cv2.GaussianBlur(picture, (3, 3), 0.6))
    noise = np.rint(rng.normal(0, 1.8, (512, 512, 3))).astype(np.int16)
    for y in range(0, soft.shape[0], 512):
        for x in range(0, soft.shape[1], 512):
            part = soft[y : y + 512, x : x + 512]
            part[:] = np.clip(part + noise[: part.shape[0], : part.shape[1]], 0, 255)
    return soft


# -------------------------------------------------------------------------------------------- brush and canvas


def _noise(rng: np.random.Generator, shape: tuple[int, ...], cell: float) -> F32:
    """Smooth noise of standard deviation about 0.5 and features of about `cell` pixels: float32 of `shape`."""
    cell = max(cell, 1.0)
    h, w = (math.ceil(n / cell) + 3 for n in shape)
    coarse = rng.standard_normal((h, w), np.float32)
    big = cv2.resize(coarse, (round(w * cell), round(h * cell)), interpolation=cv2.INTER_CUBIC)
    return np.asarray(0.6 * big[: shape[0], : shape[1]], np.float32)


def _inside(polygons: Sequence[Polygon], size_px: tuple[int, int]) -> F32:
    """Distance to the outside of the polygons, in half-scale pixels: float32 (height // 2, width // 2)."""
    mask = np.zeros((size_px[1] // 2 + 2, size_px[0] // 2 + 2), np.uint8)  # beyond the slide is outside
    for polygon in polygons:
        _fill(mask, polygon, _FULL_DENSITY, scale=0.5, origin=1)
    return np.asarray(cv2.distanceTransform((mask > 250).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1], np.float32)


def _full(half: NDArray[Any], size_px: tuple[int, int], unit: float = _FULL_DENSITY) -> U8:
    """A half-scale map of 0..unit as a full-scale uint8 canvas."""
    scaled = np.clip(half * (255 / unit), 0, 255).astype(np.uint8)
    return _u8(cv2.resize(scaled, size_px, interpolation=cv2.INTER_LINEAR))


def _fill(canvas: U8, polygon: Polygon, density: float, *, scale: float = 1.0, origin: int = 0) -> None:
    """Fill a polygon, given in level-0 pixels, with a density; edges are smooth."""
    # Level-0 (0, 0) is the corner of the first pixel, OpenCV's is its centre; 4 bits of sub-pixel.
    points = np.rint(((np.asarray(polygon.exterior.coords) * scale) - 0.5 + origin) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], round(density / _FULL_DENSITY * 255), lineType=cv2.LINE_AA, shift=4)


def _scatter(rng: np.random.Generator, shape: Any, spacing: float, jitter: float) -> Points:
    """Points on a shaken grid inside a shape: int64 (N, 2), x and y in level-0 pixels."""
    if shape.is_empty:
        return np.empty((0, 2), np.int64)
    prepare(shape)
    x0, y0, x1, y1 = shape.bounds
    x, y = np.meshgrid(np.arange(x0, x1, spacing), np.arange(y0, y1, spacing * 0.87))
    x[1::2] += spacing / 2  # hexagonal: no rows to see
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.normal(0, jitter * spacing / 2, points.shape)
    inside = contains_xy(shape, points[:, 0], points[:, 1])
    return np.asarray(points[inside], np.int64)


def _stamp(rng: np.random.Generator, a: float, b: float, angle: float, density: float, chromatin: float) -> U8:
    """One nucleus: an uneven ellipse of semi-axes a and b pixels with mottled chromatin and a darker rim."""
    n = math.ceil(max(a, b) * 1.25) + 1
    y, x = np.mgrid[-n : n + 1, -n : n + 1].astype(np.float32)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    theta = np.arctan2(v / b, u / a)
    uneven = 1 + 0.07 * np.cos(2 * theta + rng.uniform(0, 6.3)) + 0.06 * np.cos(3 * theta + rng.uniform(0, 6.3))
    rho = np.hypot(u / a, v / b) / uneven
    body = np.clip((1 - rho) * min(a, b) / 1.6 + 0.5, 0, 1)
    rim = np.exp(-(((rho - 0.82) / 0.2) ** 2))
    mottle = _noise(rng, x.shape, max(2.0, b / 2.5)) + _noise(rng, x.shape, 1.5)
    inked = body * density * (0.85 + chromatin * (0.4 * rim + mottle))
    return _u8(np.clip(inked / _FULL_DENSITY * 255, 0, 255))


def _tumour_stamp(rng: np.random.Generator, um: float) -> U8:
    a = rng.uniform(3.6, 6.2) * um
    density = rng.choice((0.95, 1.3, 1.6, 2.0), p=(0.2, 0.4, 0.28, 0.12))
    return _stamp(rng, a, a * rng.uniform(0.55, 0.95), rng.uniform(0, np.pi), density, 0.4)


def _blit(canvas: U8, stamp: U8, x: float, y: float) -> None:
    """Press a stamp around (x, y), where it is darker than what is there; cut at the canvas's edge."""
    n = stamp.shape[0] // 2
    x0, y0 = int(x) - n, int(y) - n
    top, left = max(0, -y0), max(0, -x0)
    part = canvas[max(0, y0) : max(0, y0 + 2 * n + 1), max(0, x0) : max(0, x0 + 2 * n + 1)]
    np.maximum(part, stamp[top : top + part.shape[0], left : left + part.shape[1]], out=part)


def _at(half: F32, points: Points) -> F32:
    """The values of a half-scale map at level-0 points (N, 2)."""
    h, w = half.shape
    return np.asarray(half[np.clip(points[:, 1] // 2, 0, h - 1), np.clip(points[:, 0] // 2, 0, w - 1)], np.float32)


def _fibre_angle(phase: F32, points: Points) -> NDArray[np.float64]:
    """Direction of the contour line of `phase` at each level-0 point, in radians."""
    across, down = np.array([4, 0]), np.array([0, 4])
    gradient_x = _at(phase, points + across) - _at(phase, points - across)
    gradient_y = _at(phase, points + down) - _at(phase, points - down)
    return np.asarray(np.arctan2(gradient_y, gradient_x) + np.pi / 2, np.float64)


def _u8(array: Any) -> U8:
    """OpenCV's arrays, typed."""
    return np.asarray(array, np.uint8)


# --------------------------------------------------------------------------------------------------- the file


def write_pyramid(
    path: Path,
    level0: U8,
    *,
    mpp: float | None,
    levels: int = 1,
    tile_px: int = 256,
    compression: Literal["jpeg", "none"] = "jpeg",
    quality: int = 85,
    subsampling: tuple[int, int] = (2, 2),
    description: str | None = None,
) -> None:
    """Write `level0`, uint8 (height, width, 3) RGB, as a tiled pyramidal TIFF that OpenSlide opens.

    Each further level is the one before, exactly halved by area; an odd last row or column is dropped. `mpp`, in
    micrometres per pixel, goes into the resolution tags, or nowhere if None. `tile_px` is a multiple of 16. With
    `compression="jpeg"` (`quality` 1-100, chroma `subsampling` such as (1, 1) or (2, 2)) the tiles are YCbCr JPEGs.
    The file carries no date and no software name: same pixels, same bytes. It appears whole or not at all. Raises
    ConfigError if a level would be empty, and OutputError.
    """
    if min(level0.shape[:2]) >> (levels - 1) < 1:
        raise ConfigError("levels", f"{levels} are too many for {level0.shape[1]} x {level0.shape[0]} pixels")
    layout: dict[str, Any] = {"tile": (tile_px, tile_px), "photometric": "rgb", "metadata": None, "software": False}
    if compression == "jpeg":
        layout |= {"compression": "jpeg", "compressionargs": {"level": quality}, "subsampling": subsampling}
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        pixels = level0
        for level in range(levels):
            layout |= {} if mpp is None else _resolution(mpp * 2**level)
            tiff.write(pixels, subfiletype=int(level > 0), description=None if level else description, **layout)
            pixels = _halved(pixels) if level < levels - 1 else pixels
    write_file(path, file.getvalue())


def _resolution(mpp: float) -> dict[str, Any]:
    return {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}


def _halved(pixels: U8) -> U8:
    h, w = pixels.shape[0] // 2, pixels.shape[1] // 2
    return _u8(cv2.resize(pixels[: 2 * h, : 2 * w], (w, h), interpolation=cv2.INTER_AREA))
