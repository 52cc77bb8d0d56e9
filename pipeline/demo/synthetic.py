"""Small synthetic H&E-like slides with known tumour regions, the same bytes for the same seed.

A cohort is planned (who is in which split, from which site), each slide's anatomy drawn (pipeline.demo.anatomy),
painted (painting) and written (pyramid). Knows nothing of tiles, stores or models.
"""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from shapely import Polygon, geometry

from pipeline.demo.anatomy import Anatomy, plan_anatomy
from pipeline.demo.painting import Background, Pen, paint
from pipeline.demo.pyramid import write_pyramid
from tiling.core.artefact import COMMIT, DONE, Recipe, atomic_folder, locked_folder, read_commit, require_own, state
from tiling.core.errors import ConfigError, OutputError, SpecslideError
from tiling.core.files import canonical_json, write_file
from tiling.core.versions import software_versions

__all__ = ["Anatomy", "Pen", "make_cohort", "make_slide", "paint", "plan_anatomy", "plan_cohort", "write_pyramid"]

MANIFEST = "manifest.csv"
VERSION = 1
"""Of the pictures: raised when the same seed gives other ones, so that old cohorts are not reused."""
_MAKERS = ("numpy", "opencv-python-headless", "shapely", "tifffile")
_UUIDS = uuid.UUID("6c1c0f0e-5a51-4f5c-8f55-0c6f5d1f0b0a")


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


def make_cohort(
    folder: Path, *, n_slides: int = 12, seed: int = 0, size_px: tuple[int, int] = (4096, 4096), mpp: float = 0.5
) -> Path:
    """Make a cohort of synthetic slides: `slides/*.tif`, `annotations/*.geojson`, `manifest.csv` and `commit.json`.

    The manifest has slide_path and annotation, relative to the folder, slide_id, case_id, label, split, site and
    scanner. The folder appears when it is complete. An intact cohort made with the same settings is kept; an older or
    damaged one is made anew.

    Args:
        folder: The cohort's folder.
        n_slides: Number of slides, at least 6.
        seed: Of all that chance decides.
        size_px: (width, height) of each slide.
        mpp: Micrometres per pixel.

    Returns:
        The manifest's path.

    Raises:
        ConfigError: For fewer than 6 slides, and slides less than 256 micrometres wide or high.
        OutputError: If the folder cannot be written or holds anything else.
    """
    slides = plan_cohort(n_slides, seed)
    settings = {"version": VERSION, "size_px": list(size_px), "mpp": mpp, "slides": [asdict(s) for s in slides]}
    recipe = Recipe("cohort", {}, settings)
    with locked_folder(folder):
        _refuse_foreign(folder)
        if state(folder, recipe) != DONE:
            with atomic_folder(folder, recipe, made_with=software_versions(*_MAKERS)) as new:
                for s in slides:
                    truth = make_slide(
                        new / s.slide_path, seed=s.seed, size_px=size_px, mpp=mpp, tumour=s.label == "tumour",
                        pen=s.pen, background=s.background,
                    )  # fmt: skip
                    write_file(new / s.annotation, canonical_json(truth_geojson(truth, s.slide_id)))
                write_file(new / MANIFEST, _manifest(slides))
    return folder / MANIFEST


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
    """Write one synthetic slide; same arguments, same bytes, under the same versions of the libraries.

    Args:
        path: The TIFF.
        seed: Of all that chance decides.
        tumour: Whether there are tumours.
        size_px: (width, height).
        mpp: Micrometres per pixel.
        pen: The colour of a pen mark, or None; it changes nothing else.
        background: The colour of the glass; it changes nothing else.
        levels: Number of levels.
        tile_px: Side of the TIFF's tiles, pixels, a multiple of 16.

    Returns:
        The tumours, disjoint polygons in level-0 pixels; [] without `tumour`.

    Raises:
        ConfigError: If the slide is less than 256 micrometres wide or high, or has too many levels.
        OutputError: If the file cannot be written.
    """
    anatomy = plan_anatomy(np.random.default_rng(seed), size_px=size_px, mpp=mpp, tumour=tumour)
    picture = paint(anatomy, seed=seed, pen=pen, background=background)
    write_pyramid(path, picture, mpp=mpp, tile_px=tile_px, levels=levels)
    return list(anatomy.tumours)


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


def _refuse_foreign(folder: Path) -> None:
    """Raise OutputError if replacing the folder would remove anything but a cohort's files."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    require_own(folder, MANIFEST, "a synthetic cohort")
    try:
        own = read_commit(folder).files.keys() | {COMMIT}
    except SpecslideError as error:
        raise OutputError(folder, f"is a damaged cohort ({error.what})", "delete it or choose another folder") from None
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in own:
            raise OutputError(path, "does not belong to the synthetic cohort", "move it or choose another folder")
