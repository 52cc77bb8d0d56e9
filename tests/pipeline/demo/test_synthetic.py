"""Synthetic slides: the same bytes for the same seed, and a truth that is true."""

from __future__ import annotations

import csv
import json
import uuid
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray
from shapely import Polygon, box, unary_union
from shapely.geometry import shape

from pipeline.demo.synthetic import (
    Anatomy,
    Pen,
    make_cohort,
    make_slide,
    paint,
    plan_anatomy,
    plan_cohort,
    write_pyramid,
)
from tiling.core.artefact import folder_faults
from tiling.core.errors import ConfigError, OutputError

SIZE = (1280, 1024)
N_SLIDES = 6


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small cohort, for reading only."""
    return make_cohort(tmp_path_factory.mktemp("synthetic") / "cohort", n_slides=N_SLIDES, seed=3, size_px=SIZE).parent


def rows(cohort: Path) -> list[dict[str, str]]:
    with (cohort / "manifest.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def pixels(path: Path) -> NDArray[np.int16]:
    """Level 0 as OpenSlide reads it: int16 (H, W, 3)."""
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), np.int16)


def truth_of(cohort: Path, row: dict[str, str]) -> list[Polygon]:
    return [shape(f["geometry"]) for f in json.loads((cohort / row["annotation"]).read_text())["features"]]


def inside(polygon: Polygon, size_px: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size_px[::-1], np.uint8)
    for part in getattr(polygon, "geoms", [polygon]):
        cv2.fillPoly(mask, [np.rint(part.exterior.coords).astype(np.int32)], 1)
        for hole in part.interiors:
            cv2.fillPoly(mask, [np.rint(hole.coords).astype(np.int32)], 0)
    return mask > 0


def haematoxylin(rgb: NDArray[np.int16]) -> NDArray[np.float64]:
    """Optical density in red, which eosin hardly absorbs."""
    return -np.log(np.maximum(rgb[..., 0], 1) / 245)


def green_ink(rgb: NDArray[np.int16]) -> int:
    """Number of pixels much greener than red and blue: no stain is."""
    return int(((rgb[..., 1] - rgb[..., 0] > 40) & (rgb[..., 1] - rgb[..., 2] > 20)).sum())


# ------------------------------------------------------------------------------------------------------ slides


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_slide(tmp_path / name, seed=seed, size_px=SIZE, tumour=True)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_openslide_sees_the_pyramid_and_its_scale(tmp_path: Path) -> None:
    make_slide(tmp_path / "s.tif", seed=1, size_px=SIZE, mpp=0.37, tumour=False, levels=3, tile_px=128)
    with openslide.OpenSlide(tmp_path / "s.tif") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.37, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.37, rel=1e-6)
        assert slide.level_dimensions == ((1280, 1024), (640, 512), (320, 256))
        assert slide.properties["openslide.level[0].tile-width"] == "128"


@pytest.mark.parametrize("size_px", [(4096, 4096), (1024, 1024), (512, 768)])
@pytest.mark.parametrize("tumour", [True, False])
def test_tumours_are_there_when_asked_for_and_lie_inside_the_tissue(size_px: tuple[int, int], tumour: bool) -> None:
    for seed in range(40):
        anatomy = plan_anatomy(np.random.default_rng(seed), size_px=size_px, mpp=0.5, tumour=tumour)
        assert bool(anatomy.tumours) == tumour
        assert len(anatomy.tumours) <= 3
        for polygon in anatomy.tumours:
            assert polygon.is_valid
            assert polygon.within(unary_union(anatomy.tissue))
            assert np.array_equal(np.asarray(polygon.exterior.coords), np.rint(polygon.exterior.coords))
        overlap = sum(p.area for p in anatomy.tumours) - unary_union(anatomy.tumours).area
        assert overlap == pytest.approx(0, abs=1e-6)
        assert all(p.within(box(0, 0, *size_px)) for p in anatomy.tissue)


@pytest.mark.parametrize("seed", range(6))
def test_the_picture_is_painted_from_the_truth(seed: int) -> None:
    size_px = (2048, 2048)
    anatomy = plan_anatomy(np.random.default_rng(seed), size_px=size_px, mpp=0.5, tumour=True)
    density = haematoxylin(paint(anatomy, seed=seed, pen=None, background="white").astype(np.int16))
    tumour = unary_union(anatomy.tumours)
    within = density[inside(tumour, size_px)].mean()
    rim = tumour.buffer(30).difference(tumour.buffer(3)).intersection(unary_union(anatomy.tissue))
    assert within > 2.0 * density[inside(rim, size_px)].mean()
    benign = unary_union(anatomy.tissue).buffer(-20).difference(tumour.buffer(3))
    assert within > 2.0 * density[inside(benign, size_px)].mean()


def test_a_shifted_truth_would_be_noticed() -> None:
    """Guards the test above: the border in the picture is where the polygon is, to a few micrometres."""
    square = box(300, 300, 700, 700)
    anatomy = Anatomy((1024, 1024), 0.5, (box(20, 20, 1004, 1004),), (square,), ())
    density = haematoxylin(paint(anatomy, seed=0, pen=None, background="white").astype(np.int16))
    columns = density[320:680].mean(axis=0)
    assert columns[320:680].mean() > 2 * columns[260:298].mean()
    assert columns[320:680].mean() > 2 * columns[702:740].mean()


def test_the_pen_changes_nothing_but_its_stroke_and_never_covers_tumour() -> None:
    pens: tuple[Pen, ...] = ("blue", "green", "black")
    for seed, pen in enumerate(pens):
        anatomy = plan_anatomy(np.random.default_rng(seed), size_px=SIZE, mpp=0.5, tumour=True)
        clean = paint(anatomy, seed=seed, pen=None, background="white").astype(np.int16)
        marked = paint(anatomy, seed=seed, pen=pen, background="white").astype(np.int16)
        stroke = np.abs(marked - clean).max(axis=-1) > 0
        assert 0.005 < stroke.mean() < 0.15
        assert not (stroke & inside(unary_union(anatomy.tumours), SIZE)).any()
        covered = inside(unary_union(anatomy.tissue), SIZE)
        assert (stroke & covered).any()
        assert (stroke & ~covered).any()


def test_the_background_is_as_asked(tmp_path: Path) -> None:
    corner = {}
    for background in ("white", "grey", "pink"):
        make_slide(tmp_path / "s.tif", seed=2, size_px=SIZE, tumour=False, background=background)
        corner[background] = pixels(tmp_path / "s.tif")[:16, :16].mean(axis=(0, 1))
    assert corner["white"].min() > 240
    assert corner["grey"].max() < 232
    assert corner["pink"][0] - corner["pink"][1] > 6


def test_odd_sizes_and_other_scales_are_painted(tmp_path: Path) -> None:
    truth = make_slide(tmp_path / "s.tif", seed=4, size_px=(701, 523), mpp=0.83, tumour=True)
    assert pixels(tmp_path / "s.tif").shape == (523, 701, 3)
    assert truth


def test_a_slide_too_small_for_tissue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="small"):
        make_slide(tmp_path / "s.tif", seed=0, size_px=(1024, 256), tumour=False)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- the pyramid


def gradient(h: int, w: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:h, :w]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def test_without_compression_the_pixels_come_back_and_levels_are_area_means(tmp_path: Path) -> None:
    level0 = gradient(201, 307)
    write_pyramid(tmp_path / "s.tif", level0, mpp=0.25, levels=2, tile_px=64, compression="none")
    with tifffile.TiffFile(tmp_path / "s.tif") as tiff:
        first, second = (page.asarray() for page in tiff.pages)
        assert [page.aspage().subfiletype for page in tiff.pages] == [0, 1]
    assert np.array_equal(first, level0)
    means = level0[:200, :306].reshape(100, 2, 153, 2, 3).mean(axis=(1, 3))
    assert np.abs(second - means).max() <= 0.5


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_jpeg_colours_survive(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    level0 = np.full((256, 256, 3), (200, 60, 120), np.uint8)
    write_pyramid(tmp_path / "s.tif", level0, mpp=0.5, quality=95, subsampling=subsampling)
    assert np.abs(pixels(tmp_path / "s.tif") - level0).max() <= 3


def test_without_mpp_no_scale_is_written(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "s.tif", gradient(256, 256), mpp=None)
    with openslide.OpenSlide(tmp_path / "s.tif") as slide:
        assert "openslide.mpp-x" not in slide.properties


def test_a_description_is_kept_and_nothing_of_date_or_software(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "s.tif", gradient(256, 256), mpp=0.5, levels=2, description="from a test")
    with tifffile.TiffFile(tmp_path / "s.tif") as tiff:
        assert tiff.pages[0].aspage().tags["ImageDescription"].value == "from a test"
        names = {tag.name for page in tiff.pages for tag in page.aspage().tags}
    assert not names & {"DateTime", "Software", "Artist", "HostComputer"}


def test_too_many_levels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="levels"):
        write_pyramid(tmp_path / "s.tif", gradient(4, 256), mpp=0.5, levels=4)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        write_pyramid(tmp_path / "file" / "s.tif", gradient(64, 64), mpp=0.5)


# -------------------------------------------------------------------------------------------------- the cohort


@pytest.mark.parametrize("n_slides", [6, 7, 9, 12, 31])
def test_no_case_in_two_splits_and_both_labels_in_each(n_slides: int) -> None:
    slides = plan_cohort(n_slides, seed=0)
    splits, labels = defaultdict(set), defaultdict(set)
    for s in slides:
        splits[s.case_id].add(s.split)
        labels[s.split].add(s.label)
    assert len(slides) == n_slides == len({s.slide_id for s in slides}) == len({s.seed for s in slides})
    assert all(len(found) == 1 for found in splits.values())
    assert labels == {split: {"tumour", "benign"} for split in ("train", "val", "test")}
    assert len(splits) == n_slides - (2 if n_slides >= 8 else 1)
    assert sum(s.pen is not None for s in slides) == 1


def test_too_few_slides_are_refused() -> None:
    with pytest.raises(ConfigError):
        plan_cohort(5, seed=0)


def test_the_manifest_points_at_what_is_there(cohort: Path) -> None:
    table = rows(cohort)
    assert set(table[0]) == {
        "slide_path", "slide_id", "case_id", "label", "split", "annotation", "site", "scanner"
    }  # fmt: skip
    assert len(table) == N_SLIDES
    for row in table:
        assert (cohort / row["slide_path"]).is_file()
        assert (cohort / row["annotation"]).is_file()
        assert not Path(row["slide_path"]).is_absolute()


def test_the_annotations_are_what_qupath_expects(cohort: Path) -> None:
    ids = []
    for row in rows(cohort):
        collection = json.loads((cohort / row["annotation"]).read_text())
        assert collection["type"] == "FeatureCollection"
        assert bool(collection["features"]) == (row["label"] == "tumour")
        for feature in collection["features"]:
            ids.append(uuid.UUID(feature["id"]))
            assert feature["type"] == "Feature"
            assert feature["properties"]["objectType"] == "annotation"
            assert feature["properties"]["classification"]["name"] == "tumour"
            assert len(feature["properties"]["classification"]["color"]) == 3
            assert feature["properties"]["isLocked"] is True
    assert len(set(ids)) == len(ids) > 0


def test_the_written_truth_is_dark_in_the_written_slide(cohort: Path) -> None:
    positive = [row for row in rows(cohort) if row["label"] == "tumour"]
    for row in positive:
        density = haematoxylin(pixels(cohort / row["slide_path"]))
        mask = inside(unary_union(truth_of(cohort, row)), SIZE)
        assert density[mask].mean() > 3 * density[~mask].mean()


def test_one_slide_has_pen_and_the_others_none(cohort: Path) -> None:
    ink = {row["slide_id"]: green_ink(pixels(cohort / row["slide_path"])) for row in rows(cohort)}
    marked = [s.slide_id for s in plan_cohort(N_SLIDES, seed=3) if s.pen]
    assert [slide for slide, count in ink.items() if count > 0] == marked
    assert ink[marked[0]] > 0.005 * SIZE[0] * SIZE[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_intact_cohort_is_reused_and_a_damaged_one_made_again(cohort: Path, tmp_path: Path) -> None:
    def again() -> Path:
        return make_cohort(tmp_path / "again", n_slides=N_SLIDES, seed=3, size_px=SIZE)

    manifest = again()
    assert contents(manifest.parent) == contents(cohort)
    slide = manifest.parent / rows(cohort)[0]["slide_path"]
    made = slide.stat().st_mtime_ns
    assert again() == manifest
    assert slide.stat().st_mtime_ns == made
    slide.write_bytes(slide.read_bytes()[:-1])
    again()
    assert folder_faults(manifest.parent) == []
    assert contents(manifest.parent) == contents(cohort)


def test_other_settings_make_the_cohort_anew(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "c", n_slides=6, seed=1, size_px=(512, 512))
    before = manifest.parent.joinpath("slides/synthetic-00.tif").read_bytes()
    make_cohort(tmp_path / "c", n_slides=6, seed=2, size_px=(512, 512))
    assert manifest.parent.joinpath("slides/synthetic-00.tif").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.docx").write_text("years of work")
    with pytest.raises(OutputError, match="cohort"):
        make_cohort(tmp_path / "c", n_slides=6, size_px=(512, 512))
    assert (tmp_path / "c" / "thesis.docx").read_text() == "years of work"


def test_a_stranger_among_the_slides_is_not_deleted(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "c", n_slides=6, size_px=(512, 512))
    stranger = manifest.parent / "slides" / "mine.tif"
    stranger.write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.tif"):
        make_cohort(tmp_path / "c", n_slides=6, seed=9, size_px=(512, 512))
    assert stranger.read_text() == "mine"


def test_a_cohort_whose_list_of_files_is_damaged_is_left_alone(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "c", n_slides=6, size_px=(512, 512))
    (manifest.parent / "commit.json").write_text("{}")
    with pytest.raises(OutputError, match="damaged"):
        make_cohort(tmp_path / "c", n_slides=6, size_px=(512, 512))
    assert manifest.is_file()
