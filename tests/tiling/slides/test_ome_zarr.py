"""OME-Zarr slides: pixels against the arrays written, scales against the metadata; what is not RGB is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
import zarr.codecs
from numpy.typing import NDArray

from inference.recipes import is_store
from tests.tiling.slides.test_slide import WINDOWS, assert_one_sentence, noise
from tiling import TileStore, TilingConfig, tile_slide
from tiling.config import TissueConfig
from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.slides.files import is_slide, slide_files, slide_name
from tiling.slides.slide import Slide

U8 = NDArray[np.uint8]
Version = Literal["0.4", "0.5"]
VERSIONS: tuple[Version, ...] = ("0.4", "0.5")


def write_ome_zarr(
    folder: Path,
    picture: NDArray[Any],
    version: Version = "0.4",
    *,
    axes: str = "cyx",
    levels: int = 2,
    mpp: float = 0.5,
    unit: str | None = "micrometer",
    scale: float = 1.0,
    colours: tuple[str, ...] = (),
    chunk: int = 64,
    **array: Any,
) -> Path:
    """An OME-Zarr image of a picture (h, w, 3); further axes are of length 3, and hold it at z 1, t 0."""
    form: Literal[2, 3] = 2 if version == "0.4" else 3
    group = zarr.open_group(folder, mode="w", zarr_format=form)
    datasets = []
    for level in range(levels):
        pixels = picture[:: 2**level, :: 2**level]
        shape = {"y": pixels.shape[0], "x": pixels.shape[1], "c": pixels.shape[2], "z": 3, "t": 3}
        data = np.zeros([shape[a] for a in axes], picture.dtype)
        where = tuple({"z": 1, "t": 0}.get(a, slice(None)) for a in axes)
        kept = [a for a in axes if a in "yxc"]
        data[where] = pixels.transpose(["yxc".index(a) for a in kept])
        chunks = tuple(chunk if a in "yx" else 1 for a in axes)
        made = group.create_array(f"s{level}", shape=data.shape, chunks=chunks, dtype=data.dtype, **array)
        made[...] = data
        step = [mpp * 2**level if a in "yx" else 1.0 for a in axes]
        datasets.append({"path": f"s{level}", "coordinateTransformations": [{"type": "scale", "scale": step}]})
    named = [{"name": a, "type": {"c": "channel", "t": "time"}.get(a, "space")} for a in axes]
    for axis in named:
        if axis["name"] in "yx" and unit:
            axis["unit"] = unit
    multiscale: dict[str, Any] = {"axes": named, "datasets": datasets, "name": "Doe^Jane"}
    if scale != 1:
        multiscale["coordinateTransformations"] = [
            {"type": "scale", "scale": [scale if a in "yx" else 1.0 for a in axes]}
        ]
    ome: dict[str, Any] = {"multiscales": [multiscale | ({"version": "0.4"} if form == 2 else {})]}
    if colours:
        ome["omero"] = {"channels": [{"color": colour} for colour in colours]}
    group.attrs.update(ome if form == 2 else {"ome": ome | {"version": "0.5"}})
    return folder


@pytest.fixture
def picture() -> U8:
    return noise(151, 203)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("axes", ["cyx", "yxc", "tczyx", "zcyx"])
def test_pixels_equal_zarrs(tmp_path: Path, picture: U8, version: Version, axes: str) -> None:
    path = write_ome_zarr(tmp_path / "s.ome.zarr", picture, version, axes=axes)
    padded = np.full((400, 500, 3), 255, np.uint8)
    padded[100:251, 100:303] = picture
    with Slide(path) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [(203, 151), (102, 76)]
        assert (slide.mpp, slide.vendor, slide.objective_power) == (0.5, "ome-zarr", None)
        for x, y, w, h in WINDOWS:
            np.testing.assert_array_equal(
                slide.read_region(x, y, 0, w, h), padded[100 + y : 100 + y + h, 100 + x : 100 + x + w]
            )
        np.testing.assert_array_equal(slide.read_region(64, 32, 1, 50, 40), picture[::2, ::2][16:56, 32:82])
        planes = [slide.plane or ""]
    assert ("focal plane 2 of 3" in planes[0], "time point 1 of 3" in planes[0]) == ("z" in axes, "t" in axes)


LAYOUTS: dict[str, tuple[Version, dict[str, Any], str]] = {
    "none": ("0.4", {"compressors": None}, "NONE"),
    "v3 default": ("0.5", {}, "ZSTD"),
    "v3 blosc": ("0.5", {"compressors": zarr.codecs.BloscCodec()}, "BLOSC"),
    "v3 shards": ("0.5", {"shards": (3, 128, 128)}, "ZSTD"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_equals_zarrs(tmp_path: Path, picture: U8, layout: str) -> None:
    version, options, compression = LAYOUTS[layout]
    path = write_ome_zarr(tmp_path / "s.zarr", picture, version, **options)
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 203, 151), picture)
        assert slide.compression() == compression


@pytest.mark.parametrize(
    ("unit", "mpp", "scale", "expected"),
    [
        ("micrometer", 0.25, 1.0, 0.25),
        ("nanometer", 250.0, 1.0, 0.25),
        ("millimeter", 0.00025, 1.0, 0.25),
        ("micrometer", 0.125, 2.0, 0.25),
        (None, 0.25, 1.0, None),
        ("pixel", 0.25, 1.0, None),
    ],
)
def test_the_scale_is_what_the_metadata_say(
    tmp_path: Path, picture: U8, unit: str | None, mpp: float, scale: float, expected: float | None
) -> None:
    path = write_ome_zarr(tmp_path / "s.zarr", picture, unit=unit, mpp=mpp, scale=scale)
    with Slide(path) as slide:
        if expected is not None:
            assert slide.mpp == pytest.approx(expected)
        else:
            with pytest.raises(SlideError, match="--slide-mpp"):
                _ = slide.mpp


def test_of_several_images_the_largest_is_read(tmp_path: Path, picture: U8) -> None:
    """As bioformats2raw writes them: label and macro beside the slide."""
    root = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    for number, of in enumerate([picture[:40, :40], picture, picture[:60, :60]]):
        write_ome_zarr(tmp_path / "s.zarr" / str(number), of)
    with Slide(tmp_path / "s.zarr") as slide:
        assert (slide.width, slide.height, slide.plane) == (203, 151, "image 1 of 3")
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 203, 151), picture)
    assert is_slide(tmp_path / "s.zarr")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_of_such_a_slide_holds_its_pixels(tmp_path: Path, picture: U8, version: Version) -> None:
    path = write_ome_zarr(tmp_path / "case.ome.zarr", picture, version)
    assert (slide_name(path), is_slide(path), is_store(path)) == ("case", True, False)
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", tissue=TissueConfig(method="all"))
    report = tile_slide(path, tmp_path / "stores", config)
    store = TileStore(report.store)
    assert (report.slide_id, is_slide(report.store), is_store(report.store)) == ("case", False, True)
    assert len(store) == 35
    padded = np.full((200, 250, 3), 255, np.uint8)
    padded[:151, :203] = picture
    for (x, y), tile in zip(store.tiles.places(), store.read(slice(None)), strict=True):
        np.testing.assert_array_equal(tile, padded[y : y + 32, x : x + 32])
    with pytest.raises(SlideError, match="tile store"):
        Slide(report.store)


def test_the_hash_is_of_the_images_and_their_places(tmp_path: Path, picture: U8) -> None:
    path = write_ome_zarr(tmp_path / "s.zarr", picture, compressors=None)

    def sha256() -> str:
        with Slide(path) as slide:
            return slide.sha256()

    first = sha256()
    for other in ("labels/cells/.zattrs", "OME/METADATA.ome.xml", ".DS_Store"):
        (path / other).parent.mkdir(parents=True, exist_ok=True)
        (path / other).write_text("{}")
    assert sha256() == first
    chunks = [path / "s0" / name for name in ("0.0.0", "0.1.1")]
    assert {*chunks, path / ".zattrs", path / "s1/.zarray"} <= {*slide_files(path)}
    contents = [chunk.read_bytes() for chunk in chunks]
    for chunk, content in zip(chunks, contents[::-1], strict=True):
        chunk.write_bytes(content)
    assert sha256() != first, "the same bytes in other places are another slide"


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("shape", "options", "named"),
    [
        ((64, 64, 1), {}, "1 channels of the type uint8"),
        ((64, 64, 4), {}, "4 channels"),
        ((64, 64, 3), {"dtype": np.uint16}, "type uint16"),
        ((64, 64, 3), {"colours": ("0000FF", "00FF00", "FF0000")}, "fluorescence"),
    ],
)
def test_what_is_not_rgb_is_named(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], named: str) -> None:
    dtype = options.pop("dtype", np.uint8)
    path = write_ome_zarr(tmp_path / "s.zarr", np.ones(shape, dtype), **options)
    with pytest.raises(UnsupportedSlideError, match=named) as caught:
        Slide(path)
    assert_one_sentence(caught.value, path)


def test_declared_rgb_is_read(tmp_path: Path, picture: U8) -> None:
    with Slide(write_ome_zarr(tmp_path / "s.zarr", picture, colours=("FF0000", "00ff00", "0000FF"))) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 203, 151), picture)


def changed(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_no_codec_that_runs_what_it_reads(tmp_path: Path, picture: U8) -> None:
    path = write_ome_zarr(tmp_path / "s.zarr", picture)
    for key, value in (("filters", [{"id": "pickle", "protocol": 5}]), ("compressor", {"id": "pickle"})):
        copy = Path(shutil.copytree(path, tmp_path / f"{key}.zarr"))
        changed(copy / "s1/.zarray", {key: value})
        with pytest.raises(UnsupportedSlideError, match="codec pickle"):
            Slide(copy)


def test_no_level_lies_elsewhere(tmp_path: Path, picture: U8) -> None:
    write_ome_zarr(tmp_path / "other.zarr", picture)
    for name in ("../other.zarr/s0", str(tmp_path / "other.zarr/s0")):
        path = write_ome_zarr(tmp_path / "s.zarr", picture)
        meta = json.loads((path / ".zattrs").read_text())
        meta["multiscales"][0]["datasets"][0]["path"] = name
        (path / ".zattrs").write_text(json.dumps(meta))
        with pytest.raises(SlideError, match="damaged"):
            Slide(path)


def test_a_damaged_chunk_is_one_sentence(tmp_path: Path, picture: U8) -> None:
    path = write_ome_zarr(tmp_path / "s.zarr", picture, "0.5")
    chunk = path / "s0/c/0/1/1"
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 64, 64), picture[:64, :64])
        with pytest.raises(SlideError, match="damaged") as caught:
            slide.read_region(64, 64, 0, 64, 64)
    assert_one_sentence(caught.value, path)


@pytest.mark.parametrize("version", VERSIONS)
def test_damaged_metadata_are_one_sentence(tmp_path: Path, picture: U8, version: Version) -> None:
    path = write_ome_zarr(tmp_path / "s.zarr", picture, version)
    random, told = np.random.default_rng(0), list[str]()
    for file in sorted(path.rglob("*.json" if version == "0.5" else ".z*")):
        data = file.read_bytes()
        for _ in range(40):
            copy = bytearray(data)
            for place in random.integers(0, len(data), 2):
                copy[place] = random.choice([*b'0123456789"{}[]:,eaz'])
            file.write_bytes(copy)
            try:
                with Slide(path, mpp=0.5) as slide:
                    if slide.width * slide.height < 1_000_000:
                        slide.read_region(0, 0, 0, 64, 64)
            except SlideError as error:
                assert_one_sentence(error, path)
                told.append(str(error))
        file.write_bytes(data)
    assert len(told) > 60
    assert not [text for text in told if "Jane" in text]


def test_no_other_zarr_is_a_slide(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "g.zarr", mode="w").create_array("a", shape=(4,), dtype="u1")
    zarr.open_group(tmp_path / "p.zarr", mode="w", zarr_format=2).attrs["plate"] = {"wells": []}
    for path in tmp_path.iterdir():
        assert not is_slide(path)
        with pytest.raises(SlideError, match="without an OME image"):
            Slide(path)
