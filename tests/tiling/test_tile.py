"""The verb on real and synthetic slides: pixels against OpenSlide, reuse, refusal, privacy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
import shapely
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from pipeline.demo.synthetic import make_slide, write_pyramid
from tiling import Slide, TileStore, TilingConfig, TissueConfig, tile_slide
from tiling.core.artefact import difference, read_commit
from tiling.core.errors import ConfigError, InputError, OutputError, SlideError, StoppedError, StoreError
from tiling.core.settings import checked
from tiling.plan import plan_tiles
from tiling.stores.label import label_store
from tiling.stores.store import verify_store

U8 = NDArray[np.uint8]
FileHashes = Callable[[Path], dict[str, str]]
FAST = TilingConfig(tile_px=64, codec="jpeg:80")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def on_white(oracle: openslide.OpenSlide, x: int, y: int, side: int) -> U8:
    rgba = oracle.read_region((x, y), 0, (side, side))
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


# ------------------------------------------------------------------------------------------------------ real slides


@pytest.fixture(scope="module")
def real(svs: Path, tmp_path_factory: pytest.TempPathFactory) -> TileStore:
    """The SVS at its own scale, lossless, every tile with any tissue: edges too."""
    config = TilingConfig(mpp=0.499, codec="lossless", min_tissue=0.0)
    return TileStore(tile_slide(svs, tmp_path_factory.mktemp("real"), config).store)


def test_lossless_tiles_equal_openslide(real: TileStore, svs: Path) -> None:
    assert real.grid.tile_px0 == 256
    over_the_edge = 0
    with openslide.OpenSlide(str(svs)) as oracle:
        for tile, (x, y) in zip(real.read(slice(None)), real.tiles.places(), strict=True):
            over_the_edge += x + 256 > oracle.dimensions[0] or y + 256 > oracle.dimensions[1]
            np.testing.assert_array_equal(tile, on_white(oracle, x, y, 256))
    assert len(real) > 50
    assert over_the_edge > 0


def test_the_real_slide_is_described(real: TileStore, svs: Path) -> None:
    assert (real.slide.slide_id, real.slide.vendor, real.slide.objective_power) == (svs.stem, "aperio", 20.0)
    assert (real.grid.width0, real.grid.height0, real.grid.mpp) == (2220, 2967, 0.499)
    assert 0.3 < real.mask.values.mean() < 0.9
    assert verify_store(real.path) == []


def test_the_dicom_copy_has_the_same_grid_and_tiles(svs: Path, dicom: Path) -> None:
    """But for tiles at the minimum of tissue: the two readers make the slide in small each their way."""
    config = TilingConfig(mpp=0.499)
    with Slide(svs) as one, Slide(dicom) as other:
        a, b = plan_tiles(one, config), plan_tiles(other, config)
    assert a.tiles.grid == b.tiles.grid
    found, copied = (dict(zip(of.tiles.places(), of.tiles.columns["tissue"], strict=True)) for of in (a, b))
    either = {**copied, **found}
    assert all(either[place] < 0.55 for place in found.keys() ^ copied.keys())
    assert all(abs(found[place] - copied[place]) < 0.05 for place in found.keys() & copied.keys())
    assert len(found.keys() & copied.keys()) > 30


def test_fluorescence_gives_a_valid_empty_store(ndpi: Path, tmp_path: Path) -> None:
    report = tile_slide(ndpi, tmp_path)
    assert (report.tiles, len(TileStore(report.store)), verify_store(report.store)) == (0, 0, [])
    assert names(tmp_path) == ["fluorescence-dapi.png", "fluorescence-dapi.zarr"]


def test_the_ome_tiff_is_tiled(ome: Path, tmp_path: Path) -> None:
    """At its own scale, lossless: tifffile's own pixels, white beyond the edge."""
    config = TilingConfig(mpp=0.227, codec="lossless", min_tissue=0.0)
    store = TileStore(tile_slide(ome, tmp_path, config).store)
    padded = np.full((1400, 1400, 3), 255, np.uint8)
    padded[:1101, :1101] = tifffile.imread(ome)
    assert (store.slide.slide_id, store.slide.vendor) == ("carcinoma-crop", "ome-tiff")
    assert len(store) == 25
    for tile, (x, y) in zip(store.read(slice(None)), store.tiles.places(), strict=True):
        np.testing.assert_array_equal(tile, padded[y : y + 256, x : x + 256])


@pytest.mark.parametrize("name", ["svs", "dicom", "ndpi", "ome"])
def test_pixels_are_never_invented(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(ConfigError, match=r"finer .*--mpp \d"):
        tile_slide(request.getfixturevalue(name), tmp_path, TilingConfig(mpp=0.1))
    assert names(tmp_path) == []


def test_at_twice_the_mpp_tiles_are_area_resampled(svs: Path, tmp_path: Path) -> None:
    store = TileStore(tile_slide(svs, tmp_path, TilingConfig(mpp=0.998, codec="lossless")).store)
    assert (store.grid.tile_px0, store.grid.mpp) == (512, 0.998)
    with openslide.OpenSlide(str(svs)) as oracle:
        for tile, (x, y) in zip(store.read(slice(None)), store.tiles.places(), strict=True):
            expected = cv2.resize(on_white(oracle, x, y, 512), (256, 256), interpolation=cv2.INTER_AREA)
            error = np.square(tile.astype(float) - expected).mean()
            assert error <= 255**2 / 10**4.5, "45 dB"
    assert len(store) >= 8


def every_byte(folder: Path) -> bytes:
    return b"".join(p.read_bytes() + str(p).encode() for p in folder.rglob("*") if p.is_file())


def test_nothing_private_leaves_the_slide(svs: Path, real: TileStore, capfd: pytest.CaptureFixture[str]) -> None:
    with openslide.OpenSlide(str(svs)) as oracle:
        known = dict(oracle.properties)
    keys = ("aperio.User", "aperio.ScanScope ID", "aperio.Date", "aperio.Time", "aperio.ImageID", "aperio.Parmset")
    secrets = [known[key] for key in keys] + ["Aperio Image Library", "ScanScope"]
    blob = every_byte(real.path.parent)
    assert b"aperio" in blob, "the vendor is allowed: the search works"
    for secret in secrets:
        assert secret.encode() not in blob
        assert secret.encode("utf-16-le") not in blob
    # aperio.Filename is "CMU-1", which is also the beginning of the file's own name, the slide's id
    named = json.loads((real.path / "zarr.json").read_text())["attributes"]["slide"].pop("slide_id")
    assert known["aperio.Filename"].encode() not in blob.replace(named.encode(), b"")
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------- the same bytes


def test_the_same_bytes_twice(small_slide: Path, tmp_path: Path, file_hashes: FileHashes) -> None:
    tile_slide(small_slide, tmp_path / "a", FAST)
    tile_slide(small_slide, tmp_path / "b", FAST)
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    assert len(file_hashes(tmp_path / "a")) > 20


def test_a_finished_store_is_reused(small_slide: Path, tmp_path: Path, file_hashes: FileHashes) -> None:
    first = tile_slide(small_slide, tmp_path, FAST)
    before, stamps = file_hashes(tmp_path), {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    second = tile_slide(small_slide, tmp_path, FAST)
    assert (first.reused, second.reused) == (False, True)
    assert (second.slide_id, second.store, second.tiles) == (first.slide_id, first.store, first.tiles)
    assert file_hashes(tmp_path) == before
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_a_lost_preview_is_made_again(small_slide: Path, tmp_path: Path, file_hashes: FileHashes) -> None:
    tile_slide(small_slide, tmp_path, FAST)
    before = file_hashes(tmp_path)
    (tmp_path / "small.png").unlink()
    assert tile_slide(small_slide, tmp_path, FAST).reused
    assert file_hashes(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"codec": "lossless"}, 'codec was "jpeg:80", is "lossless"'),
        ({"tile_px": 32}, "tile_px was 64, is 32"),
        ({"overlap": 0.5}, "overlap was 0.0, is 0.5"),
        ({"mpp": 1.0, "min_tissue": 0.1}, "min_tissue was 0.5, is 0.1, mpp was 0.5, is 1.0"),
        ({"tissue": {"mask_mpp": 4.0}}, "tissue "),
    ],
)
def test_another_configuration_is_refused_by_name(
    small_slide: Path, tmp_path: Path, file_hashes: FileHashes, change: dict[str, Any], reason: str
) -> None:
    tile_slide(small_slide, tmp_path, FAST)
    before = file_hashes(tmp_path)
    other = TilingConfig.model_validate(FAST.model_dump() | change)
    with pytest.raises(StoreError, match=f": {reason}.*--overwrite"):
        tile_slide(small_slide, tmp_path, other)
    assert file_hashes(tmp_path) == before
    replaced = tile_slide(small_slide, tmp_path, other, overwrite=True)
    tile_slide(small_slide, tmp_path / "fresh", other)
    fresh = file_hashes(tmp_path / "fresh")
    assert not replaced.reused
    assert {k: v for k, v in file_hashes(tmp_path).items() if not k.startswith("fresh/")} == fresh


def test_another_scale_or_annotation_is_refused(small_slide: Path, tmp_path: Path) -> None:
    tile_slide(small_slide, tmp_path, FAST)
    with pytest.raises(StoreError, match=r"slide_mpp was null, is 0\.25"):
        tile_slide(small_slide, tmp_path, FAST, slide_mpp=0.25)
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(StoreError, match="the same annotation"):
        tile_slide(small_slide, tmp_path, FAST, annotation=tmp_path / "a.geojson")


def test_another_slide_is_refused(small_slide: Path, tmp_path: Path) -> None:
    other = tmp_path / "small.tif"
    write_pyramid(other, np.full((300, 300, 3), 244, np.uint8), mpp=0.5)
    tile_slide(small_slide, tmp_path / "out", FAST)
    with pytest.raises(StoreError, match="not made from the same slide"):
        tile_slide(other, tmp_path / "out", FAST)


def test_a_damaged_store_is_not_reused(small_slide: Path, tmp_path: Path) -> None:
    store = tile_slide(small_slide, tmp_path, FAST).store
    (store / "commit.json").unlink()
    with pytest.raises(StoreError, match="is not a finished tile store"):
        tile_slide(small_slide, tmp_path, FAST)
    assert not tile_slide(small_slide, tmp_path, FAST, overwrite=True).reused
    assert verify_store(store) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["zarr.json", "scan.svs"])
def test_a_folder_of_something_else_is_never_overwritten(
    small_slide: Path, tmp_path: Path, name: str, overwrite: bool
) -> None:
    """Such as an OME-Zarr image of the slide, in the folder where its store is to go."""
    (tmp_path / "small.zarr").mkdir()
    (tmp_path / "small.zarr" / name).write_text('{"zarr_format": 3, "node_type": "group"}')
    said = "holds something else than a tile store" if overwrite else "is not a finished tile store"
    with pytest.raises((OutputError, StoreError), match=said):
        tile_slide(small_slide, tmp_path, FAST, overwrite=overwrite)
    assert [path.name for path in tmp_path.rglob("*")] == ["small.zarr", name]


@pytest.mark.parametrize("what", ["annotation", "tissue_file"])
def test_a_label_image_in_the_previews_place_is_kept(small_slide: Path, tmp_path: Path, what: str) -> None:
    """As archives lay them: <id>.svs and <id>.png, with --out there."""
    label = tmp_path / "small.png"
    label.write_bytes(b"drawn for days")
    given: dict[str, Any] = {what: label}
    with pytest.raises(OutputError, match=r"small\.png: .*--out"):
        tile_slide(small_slide, tmp_path, FAST, **given)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"small.png": b"drawn for days"}


def test_progress_counts_the_tiles(small_slide: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = tile_slide(small_slide, tmp_path, FAST, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, report.tiles) for i in range(report.tiles)]


# --------------------------------------------------------------------------------------------------- annotations


def test_annotation_fractions_are_exact_areas(tmp_path: Path, small_slide: Path) -> None:
    ring, hole = [[100.5, 60.25], [500, 90], [430, 480], [130, 400]], [[250, 200], [330, 210], [300, 300]]
    shapes = {"tumour": shapely.Polygon(ring, [hole]), "Stroma: µ": shapely.box(340, 0, 700, 520)}
    features = [
        {"type": "Feature", "geometry": shapely.geometry.mapping(s), "properties": {"classification": {"name": n}}}
        for n, s in shapes.items()
    ]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    config = TilingConfig(tile_px=64, overlap=0.5)
    store = TileStore(tile_slide(small_slide, tmp_path / "out", config, annotation=path).store)
    assert set(store.annotations) == set(shapes)
    for name, geometry in shapes.items():
        expected = [
            geometry.intersection(shapely.box(x, y, x + 64, y + 64)).area / 64**2 for x, y in store.tiles.places()
        ]
        assert 0 < sum(f > 0 for f in expected) < len(store)
        np.testing.assert_allclose(store.annotations[name], expected, atol=1e-6)


def test_a_bad_annotation_leaves_nothing(tmp_path: Path, small_slide: Path) -> None:
    (tmp_path / "a.geojson").write_text("no")
    for annotation in ("a.geojson", "missing.geojson"):
        with pytest.raises(InputError, match=annotation):
            tile_slide(small_slide, tmp_path / "out", FAST, annotation=tmp_path / annotation)
    assert names(tmp_path / "out") == []


def test_tumour_of_a_synthetic_slide_lies_in_kept_tiles(tmp_path: Path) -> None:
    """A closed loop: what the painter calls tumour is tissue for the mask."""
    truth = shapely.union_all(make_slide(tmp_path / "s.tif", seed=1, tumour=True, size_px=(1024, 1024)))
    store = TileStore(tile_slide(tmp_path / "s.tif", tmp_path / "out", FAST).store)
    kept = shapely.union_all(shapely.box(store.tiles.x0, store.tiles.y0, store.tiles.x0 + 64, store.tiles.y0 + 64))
    assert truth.intersection(kept).area > 0.95 * truth.area
    assert kept.area < 0.9 * 1024**2


@pytest.mark.parametrize("min_tissue", [0.0, 0.3, 0.9, 1.0])
def test_tiles_have_at_least_the_least_tissue(small_slide: Path, min_tissue: float) -> None:
    with Slide(small_slide) as slide:
        plan = plan_tiles(slide, TilingConfig(tile_px=64, min_tissue=min_tissue))
        every = plan_tiles(slide, TilingConfig(tile_px=64, min_tissue=0.0))
    assert (plan.tiles.columns["tissue"] >= min_tissue).all()
    assert (plan.tiles.columns["tissue"] > 0).all()
    assert len(plan.tiles.x0) == int((every.tiles.columns["tissue"] >= min_tissue).sum())
    assert 0 < len(plan.tiles.x0) < plan.tiles.grid.rows * plan.tiles.grid.columns


# ------------------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("slide_id", ["../evil", "a/b", "..", ".hidden", "a\0b", "x" * 300, "/tmp/evil"])
def test_an_id_cannot_lead_out_of_the_folder(small_slide: Path, tmp_path: Path, slide_id: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a folder"):
        tile_slide(small_slide, tmp_path / "out", FAST, slide_id=slide_id)
    assert names(tmp_path) == []


def test_a_slide_without_scale_leaves_nothing(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "s.tif", np.full((300, 300, 3), 244, np.uint8), mpp=None)
    with pytest.raises(SlideError, match="pass --slide-mpp"):
        tile_slide(tmp_path / "s.tif", tmp_path / "out")
    assert names(tmp_path / "out") == []
    assert TileStore(tile_slide(tmp_path / "s.tif", tmp_path / "out", slide_mpp=0.5).store).slide.mpp == 0.5


def test_a_slide_that_breaks_halfway_leaves_nothing(small_slide: Path, tmp_path: Path) -> None:
    """The middle of the file is gone, its directory and its first tiles are not."""
    data = bytearray(small_slide.read_bytes())
    (tmp_path / "s.tif").write_bytes(data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * (len(data) // 3) :])
    with pytest.raises(SlideError, match="too many"):
        tile_slide(tmp_path / "s.tif", tmp_path / "out", FAST)
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


@pytest.mark.parametrize("step", ["write_tiles", "write_columns"])
def test_a_full_disk_leaves_nothing(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(folder: Path, *_args: object) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"tiling.tile.{step}", full)
    with pytest.raises(OutputError, match=r"No space left on device"):
        tile_slide(small_slide, tmp_path, FAST)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "wrong",
    [{"overlap": 1.0}, {"overlap": -0.1}, {"mpp": 0}, {"mpp": float("inf")}, {"mpp": float("nan")}, {"tile_px": 0},
     {"tile_px": 8193}, {"min_tissue": 1.1}, {"codec": "png"}, {"codec": "jpeg:0"}, {"mpp_tolerance": 0.5},
     {"tilepx": 256}],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TilingConfig.model_validate(wrong)


# ------------------------------------------------------------------------------------------------- tissue and masks


def test_the_mask_does_not_depend_on_the_pyramid(tmp_path: Path) -> None:
    """One synthetic slide saved with one, two and four levels: at most 0.5% of the mask's pixels differ."""
    picture = np.asarray(Image.open(make_slide_picture(tmp_path)).convert("RGB"), np.uint8)
    plans = []
    for levels in (1, 2, 4):
        path = tmp_path / f"{levels}.tif"
        write_pyramid(path, picture, mpp=0.5, levels=levels)
        with Slide(path) as slide:
            assert len(slide.levels) == levels
            plans.append(plan_tiles(slide, TilingConfig(mpp=0.5, tile_px=64)))
    first = plans[0]
    assert 0.1 < first.mask.values.mean() < 0.9
    for plan in plans[1:]:
        assert (plan.mask.values != first.mask.values).mean() <= 0.005
        others = set(plan.tiles.places()) ^ set(first.tiles.places())
        assert len(others) <= 0.01 * len(first.tiles)


def make_slide_picture(folder: Path) -> Path:
    """Stained shapes of many sizes on glass, with texture and soft edges, as PNG."""
    random = np.random.default_rng(5)
    picture = np.full((1500, 2000, 3), 243, np.uint8)
    for _ in range(25):
        x, y, radius = random.integers(0, 2000), random.integers(0, 1500), int(random.integers(20, 260))
        colour = [int(c) for c in np.array([222, 150, 185]) + random.integers(-25, 20, 3)]
        cv2.circle(picture, (int(x), int(y)), radius, colour, -1, cv2.LINE_AA)
    texture = cv2.GaussianBlur(random.normal(0, 40, picture.shape[:2]), (0, 0), 2)[..., None]
    Image.fromarray(np.clip(picture + texture, 0, 255).astype(np.uint8)).save(folder / "picture.png")
    return folder / "picture.png"


MASK_FILES = ("geojson", "png", "tif")


@pytest.mark.parametrize("ending", MASK_FILES)
def test_a_mask_of_the_users_decides_the_tissue(ending: str, small_slide: Path, tmp_path: Path) -> None:
    """The left half of the slide, whatever is on it, and a speck: what the user drew is taken as drawn."""
    mask = tmp_path / f"mask.{ending}"
    if ending == "geojson":
        shapes = [shapely.box(0, 0, 350, 520), shapely.box(600, 100, 640, 140)]
        mask.write_text(shapely.to_geojson(shapely.MultiPolygon(shapes)).join(('{"type":"Feature","geometry":', "}")))
    else:
        picture = np.zeros((520, 700), np.uint8)
        picture[:, :350], picture[100:140, 600:640] = 255, 255
        assert cv2.imwrite(str(mask), picture)
    config = TilingConfig(mpp=0.5, tile_px=50, tissue=TissueConfig(method="mask", min_object_um2=1000))
    store = TileStore(tile_slide(small_slide, tmp_path / "out", config, tissue_file=mask).store)
    assert set(store.tiles.x0.tolist()) == {*range(0, 350, 50), 600}
    assert len(store) == 7 * 10 + 1, "only 20 of the last 50 pixels are on the slide"
    mask.write_bytes(mask.read_bytes() + b" ")
    with pytest.raises(StoreError, match="the same tissue"):
        tile_slide(small_slide, tmp_path / "out", config, tissue_file=mask)


def test_mask_method_and_mask_file_belong_together(small_slide: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        tile_slide(small_slide, tmp_path, TilingConfig(tissue=TissueConfig(method="mask")))
    with pytest.raises(ConfigError, match="belong together"):
        tile_slide(small_slide, tmp_path, TilingConfig(), tissue_file=small_slide)
    (tmp_path / "mask.png").write_bytes(b"no picture")
    config = TilingConfig(tissue=TissueConfig(method="mask"))
    with pytest.raises(InputError, match="cannot be read as PNG"):
        tile_slide(small_slide, tmp_path, config, tissue_file=tmp_path / "mask.png")
    assert names(tmp_path) == ["mask.png"]


# ------------------------------------------------------------------------------------- bad tiles and copied streams


def stained_slide(path: Path, side: int = 2048, mpp: float = 0.5) -> Path:
    """A slide that is tissue all over, of 256 px JPEG tiles."""
    random = np.random.default_rng(3)
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = (200, 120, 170)
    picture[::7] = (140, 80, 150)
    picture += random.integers(0, 12, picture.shape, dtype=np.uint8)
    write_pyramid(path, picture, mpp=mpp, levels=1)
    return path


def damage_tile(path: Path, index: int) -> None:
    """Overwrite the middle of one native tile of level 0."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        offset, size = page.dataoffsets[index], page.databytecounts[index]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)


WHOLE = TilingConfig(mpp=0.5, tile_px=256, codec="lossless", min_tissue=0.1)


def test_a_damaged_tile_is_left_out_and_named(tmp_path: Path) -> None:
    good, bad = stained_slide(tmp_path / "good.tif"), stained_slide(tmp_path / "bad.tif")
    damage_tile(bad, 19)  # column 3, row 2 of 8 x 8
    report = tile_slide(bad, tmp_path / "out", WHOLE.model_copy(update={"max_bad_tiles": 0.02}))
    whole = TileStore(tile_slide(good, tmp_path / "out", WHOLE).store)
    store = TileStore(report.store)
    assert report.bad == store.attributes.bad_tiles == ((768, 512),)
    assert len(store) == len(whole) - 1 == 63
    kept = np.flatnonzero(~((whole.tiles.x0 == 768) & (whole.tiles.y0 == 512)))
    np.testing.assert_array_equal(store.read(range(63)), whole.read(kept))
    np.testing.assert_array_equal(store.quality["focus"], whole.quality["focus"][kept])


def test_the_slide_in_small_is_the_same_with_any_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 16 parts and more, of which the damaged tile touches some, which are looked at again in quarters."""
    monkeypatch.setattr("tiling.slides.slide._PART_PX", 64)
    path = stained_slide(tmp_path / "bad.tif", side=1280)
    damage_tile(path, 12)
    found = {}
    for threads in (1, 2, 5):
        with Slide(path) as slide:
            plan = plan_tiles(slide, WHOLE, threads=threads)
        found[threads] = (plan.tiles.places(), plan.thumbnail.values.tobytes(), plan.mask.values.tobytes())
    assert found[1] == found[2] == found[5]
    assert plan.mask.values.all()  # what is damaged counts as tissue
    assert (plan.thumbnail.values == 255).all(axis=2).sum() > 100


def test_the_slide_is_hashed_while_it_is_tiled_and_a_failure_is_the_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stained_slide(tmp_path / "a.tif", side=512)

    def fails(_slide: Slide, _unwanted: object = None) -> str:
        raise SlideError(path, "cannot be read (Input/output error)")

    with monkeypatch.context() as patch:
        patch.setattr(Slide, "sha256", fails)
        with pytest.raises(SlideError, match="Input/output error"):
            tile_slide(path, tmp_path / "stores", WHOLE)
    assert not list((tmp_path / "stores").glob("*.zarr*/tiles"))
    store = TileStore(tile_slide(path, tmp_path / "stores", WHOLE).store)
    assert store.slide.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("codec", "fast"), [("jpeg:80", True), ("lossless", False), ("source", True)])
def test_the_same_bytes_with_any_number_of_threads(
    tmp_path: Path, file_hashes: FileHashes, monkeypatch: pytest.MonkeyPatch, codec: str, fast: bool
) -> None:
    """A damaged tile among them, after which OpenSlide refuses all that one of its handles is asked."""
    if not fast:
        monkeypatch.setattr("tiling.slides.slide.open_tiled_levels", lambda *_, **__: None)
    path = stained_slide(tmp_path / "bad.tif", side=2560)
    damage_tile(path, 37)  # in the second run of tiles
    config = WHOLE.model_copy(update={"codec": codec, "max_bad_tiles": 0.1})
    made = {}
    for threads in (1, 2, 3, 8) if fast else (1, 3):
        report = tile_slide(path, tmp_path / str(threads), config, threads=threads)
        made[threads] = (report.tiles, report.bad, file_hashes(tmp_path / str(threads)))
    assert made[1][:2] == (99, ((1792, 768),))
    assert all(found == made[1] for found in made.values())


def test_threads_have_ended_before_the_slide_is_closed(tmp_path: Path) -> None:
    """Stopped in the middle, by whoever hears of the progress."""
    path = stained_slide(tmp_path / "s.tif")

    def stop(done: int, total: int) -> None:
        raise StoppedError("test", "stopped", "go on")

    with pytest.raises(StoppedError):
        tile_slide(path, tmp_path / "out", WHOLE.model_copy(update={"tile_px": 64}), threads=3, progress=stop)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("read")]
    assert names(tmp_path / "out") == []


def test_a_damaged_part_is_tissue_unless_the_users_mask_says_otherwise(tmp_path: Path) -> None:
    """On glass, where nothing else is; the user's mask is the tile in the corner."""
    path, mask = tmp_path / "bad.tif", np.zeros((128, 128), np.uint8)
    write_pyramid(path, np.full((2048, 2048, 3), 243, np.uint8), mpp=0.5, levels=1)
    damage_tile(path, 19)
    mask[:16, :16] = 255
    assert cv2.imwrite(str(tmp_path / "mask.png"), mask)
    with Slide(path) as slide:
        found = plan_tiles(slide, WHOLE)
        given = plan_tiles(
            slide, WHOLE.model_copy(update={"tissue": TissueConfig(method="mask")}), tmp_path / "mask.png"
        )
    assert found.tiles.places() == [(768, 512)]
    assert found.mask.values[32:48, 48:64].all()
    assert given.tiles.places() == [(0, 0)]
    np.testing.assert_array_equal(given.mask.values, mask > 0)


@pytest.mark.parametrize("threads", [1, 3])
def test_too_many_damaged_tiles_fail_the_slide(tmp_path: Path, threads: int) -> None:
    path = stained_slide(tmp_path / "bad.tif")
    damage_tile(path, 19)
    with pytest.raises(SlideError, match=r"cannot be decoded.*--max-bad-tiles"):
        tile_slide(path, tmp_path / "out", WHOLE, threads=threads)
    assert names(tmp_path / "out") == []


def test_source_copies_the_streams_of_the_slide(tmp_path: Path) -> None:
    path = stained_slide(tmp_path / "s.tif", side=2048)
    copied = TileStore(tile_slide(path, tmp_path / "copied", WHOLE.model_copy(update={"codec": "source"})).store)
    decoded = TileStore(tile_slide(path, tmp_path / "decoded", WHOLE).store)
    np.testing.assert_array_equal(copied.read(slice(None)), decoded.read(slice(None)))
    np.testing.assert_array_equal(zarr.open_array(copied.path / "tiles", mode="r")[:], decoded.read(slice(None)))
    assert set(copied.quality) == {"pen"}, "the tiles are not decoded, and so not measured"


def test_source_leaves_out_tiles_cut_by_the_edge(svs: Path, tmp_path: Path) -> None:
    config = TilingConfig(mpp=0.499, tile_px=240, codec="source", min_tissue=0.01)
    store = TileStore(tile_slide(svs, tmp_path, config).store)
    assert len(store) > 30
    assert (store.tiles.x0 + 240).max() <= 2220
    assert (store.tiles.y0 + 240).max() <= 2967
    with openslide.OpenSlide(str(svs)) as slide:
        for row in range(0, len(store), 5):
            region = slide.read_region((int(store.tiles.x0[row]), int(store.tiles.y0[row])), 0, (240, 240)).convert(
                "RGB"
            )
            np.testing.assert_array_equal(store.read([row])[0], np.asarray(region))


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"tile_px": 128}, "--tile-px 256 --mpp 0.5"),
        ({"mpp": 1.0}, "--tile-px 256 --mpp 0.5"),
        ({"overlap": 0.5}, "--overlap 0"),
    ],
)
def test_source_says_which_settings_align(tmp_path: Path, change: dict[str, object], advice: str) -> None:
    path = stained_slide(tmp_path / "s.tif", side=1024)
    with pytest.raises(ConfigError, match=advice):
        tile_slide(path, tmp_path / "out", WHOLE.model_copy(update={"codec": "source", **change}))
    assert names(tmp_path / "out") == []


def test_source_needs_jpeg_tiles(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tif", np.full((512, 512, 3), 200, np.uint8), mpp=0.5, compression="none")
    with pytest.raises(ConfigError, match=r"none to copy.*--codec jpeg:90"):
        tile_slide(tmp_path / "a.tif", tmp_path / "out", TilingConfig(mpp=0.5, tile_px=256, codec="source"))


def test_a_scale_too_fine_names_the_slide(small_slide: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mpp: 0\.1 ") as caught:
        tile_slide(small_slide, tmp_path, FAST.model_copy(update={"mpp": 0.1}))
    assert str(small_slide) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "mpp", "recorded"),
    [
        ({"mpp": "native"}, 0.686, ("native", None)),
        ({"mpp": "native", "coarser_ok": True}, 0.686, ("native", None)),
        ({"mpp": 0.5, "coarser_ok": True}, 0.686, (0.5, True)),
        ({"mpp": 0.674, "coarser_ok": True}, 0.686, (0.674, None)),  # within the tolerance: as without it
        ({"mpp": 1.372, "coarser_ok": True}, 1.372, (1.372, None)),
    ],
)
def test_a_coarser_slide_at_its_own_scale(
    tmp_path: Path, settings: dict[str, Any], mpp: float, recorded: tuple[object, object]
) -> None:
    """Its own pixels, nothing enlarged; what was asked for stands in the store."""
    path, config = stained_slide(tmp_path / "s.tif", side=512, mpp=0.686), {"tile_px": 128, "codec": "lossless"}
    report = tile_slide(path, tmp_path / "out", TilingConfig.model_validate(config | settings))
    store = TileStore(report.store)
    assert report.mpp == store.attributes.mpp == pytest.approx(mpp)
    assert (store.attributes.config["mpp"], store.attributes.config.get("coarser_ok")) == recorded
    if mpp == 0.686:
        whole = tifffile.imread(path)
        for tile, (x, y) in zip(store.read(slice(None)), store.tiles.places(), strict=True):
            np.testing.assert_array_equal(tile, whole[y : y + 128, x : x + 128])
    assert len(store) > 0


def test_coarser_ok_is_of_no_account_where_it_is_not_needed(small_slide: Path, tmp_path: Path) -> None:
    """So that after one coarse slide has failed, the stores of the others are kept."""
    tile_slide(small_slide, tmp_path, FAST)
    assert tile_slide(small_slide, tmp_path, FAST.model_copy(update={"coarser_ok": True})).reused
    with pytest.raises(StoreError, match=r'mpp was 0\.5, is "native"'):
        tile_slide(small_slide, tmp_path, FAST.model_copy(update={"mpp": "native"}))


@pytest.mark.parametrize("mpp", [0, -1, "nan", "1001", "naive", None])
def test_a_scale_is_a_number_or_native(mpp: object) -> None:
    assert (TilingConfig(mpp="native").mpp, TilingConfig.model_validate({"mpp": "0.25"}).mpp) == ("native", 0.25)
    with pytest.raises(ConfigError, match=r"^options: mpp: .*micrometres per pixel"):
        checked(TilingConfig, {"mpp": mpp}, "options")


def test_a_slide_larger_than_glass_is_refused(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiling.plan._MAX_MASK_PX", 10)
    with pytest.raises(SlideError, match="more than any glass slide holds"):
        tile_slide(small_slide, tmp_path, FAST)


def test_a_store_carries_its_recipe(tmp_path: Path, small_slide: Path) -> None:
    report = tile_slide(small_slide, tmp_path, TilingConfig(tile_px=64))
    recipe = read_commit(report.store).recipe
    assert recipe is not None
    assert (recipe.artefact, recipe.settings["tile_px"]) == ("store", 64)
    assert recipe.inputs == {"slide": TileStore(report.store).slide.sha256, "annotation": None, "tissue": None}
    label_store(report.store, written_square(tmp_path))
    labelled = read_commit(report.store).recipe
    assert labelled is not None
    assert labelled.settings == recipe.settings
    assert difference(recipe, labelled) == "not made from the same annotation"


def written_square(folder: Path) -> Path:
    path = folder / "square.geojson"
    square = {"type": "Polygon", "coordinates": [[[0, 0], [99, 0], [99, 99], [0, 99], [0, 0]]]}
    path.write_text(json.dumps({"type": "Feature", "geometry": square, "properties": {}}))
    return path
