"""TIFFs as converters write them: every compression and layout of colour is read exactly, or refused by its name."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from tests.tiling.slides.test_slide import assert_one_sentence, noise
from tiling import TileStore, TilingConfig, tile_slide
from tiling.config import TissueConfig
from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.slides import tiff_picture, tifffile_reader
from tiling.slides.slide import Slide

U8 = NDArray[np.uint8]
WIDTH, HEIGHT = 203, 151
PICTURE = noise(HEIGHT, WIDTH)
PLANES = np.moveaxis(PICTURE, 2, 0)
ALPHA = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 1)).astype(np.uint8)
SIXTEEN = np.random.default_rng(2).integers(0, 1 << 16, (HEIGHT, WIDTH, 3)).astype(np.uint16)
UM = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
PLAIN: dict[str, Any] = {"metadata": None, "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
COUNTS = ("TileByteCounts", "StripByteCounts")
LAYOUTS: dict[str, dict[str, Any]] = {"tiles": {"tile": (64, 48)}, "strips": {"rowsperstrip": 40}}
WINDOWS = [
    (0, 0, WIDTH, HEIGHT),
    (-9, -7, 60, 50),
    (150, 100, 90, 90),
    (77, 33, 1, 1),
    (203, 151, 5, 5),
    (300, 0, 4, 4),
]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> dict[str, Any]:
    """In tiles or in strips: OpenSlide takes the one for its own."""
    return LAYOUTS[request.param]


def assert_reads(path: Path, expected: NDArray[Any], within: int = 0) -> None:
    """Windows on, over and off the slide show `expected`, and white where it ends."""
    margin = 300
    padded = np.pad(expected, [(margin, margin), (margin, margin), (0, 0)], constant_values=255)
    with Slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
        for x, y, w, h in WINDOWS:
            part = padded[margin + y : margin + y + h, margin + x : margin + x + w].astype(int)
            assert np.abs(slide.read_region(x, y, 0, w, h) - part).max(initial=0) <= within, (x, y, w, h)


def refused(path: Path) -> UnsupportedSlideError:
    with pytest.raises(UnsupportedSlideError) as caught:
        Slide(path)
    assert_one_sentence(caught.value, path)
    assert "damaged" not in str(caught.value)
    return caught.value


def over_white(rgb: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    return np.round(rgb * (alpha / 255) + 255 * (1 - alpha / 255))


# ------------------------------------------------------------------------------------------------- compressions

LOSSLESS = ["none", "lzw", "zlib", "packbits", "lzma", "zstd", "png", "webp", "jpeg2000", "jpegxl", "jpegxr"]


@pytest.mark.parametrize("compression", LOSSLESS)
def test_every_lossless_compression_is_read_exactly(tmp_path: Path, compression: str, layout: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, photometric="rgb", compression=compression, **layout, **PLAIN)
    whole = tifffile.imread(path)
    assert np.array_equal(whole, PICTURE)  # the oracle's own check
    assert_reads(path, whole)
    with Slide(path) as slide:
        assert slide.compression().lower() in (compression, "adobe_deflate")


@pytest.mark.parametrize(
    ("compression", "how"),
    [
        ("webp", {"level": 60, "lossless": False}),
        ("jpeg2000", {"level": 40}),
        ("jpegxl", {"level": 80}),
        ("jpegxr", {"level": 0.8}),
    ],
)
def test_lossy_compressions_are_read_as_tifffile_reads_them(
    tmp_path: Path, compression: str, how: dict[str, Any], layout: dict[str, Any]
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, photometric="rgb", compression=compression, compressionargs=how, **layout, **PLAIN)
    whole = tifffile.imread(path)
    assert not np.array_equal(whole, PICTURE)
    assert_reads(path, whole)


def test_an_unknown_compression_is_named_and_not_called_damage(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, photometric="rgb", compression="lerc", **layout, **PLAIN)
    assert "LERC" in refused(path).what


@pytest.mark.parametrize("compression", ["webp", "jpeg2000", "jpegxl", "png", "lzma"])
def test_a_damaged_tile_is_damage(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, photometric="rgb", compression=compression, tile=(64, 64), **PLAIN)
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages.first.dataoffsets[0], tiff.pages.first.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    with Slide(path) as slide:
        with pytest.raises(SlideError, match="damaged") as caught:
            slide.read_region(0, 0, 0, 8, 8)
        assert not isinstance(caught.value, UnsupportedSlideError)
        np.testing.assert_array_equal(slide.read_region(128, 64, 0, 60, 60), PICTURE[64:124, 128:188])


@pytest.mark.parametrize("compression", [*LOSSLESS, "jpeg"])
@pytest.mark.parametrize("kind", [*LAYOUTS, "planes"])
def test_a_stream_cut_short_is_damage_or_costs_no_pixel(tmp_path: Path, compression: str, kind: str) -> None:
    """Some decoders go on without a word, and make up what is missing."""
    if (compression, kind) == ("webp", "planes"):
        return  # it has none of a single channel
    path, picture = tmp_path / "a.tif", cv2.GaussianBlur(noise(64, 64), (0, 0), 2)
    layout, pixels = LAYOUTS.get(kind, {"tile": (64, 64), "planarconfig": "separate"}), np.asarray(picture)
    pixels = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)) if kind == "planes" else pixels
    tifffile.imwrite(path, pixels, photometric="rgb", compression=compression, **layout, **PLAIN)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff, Slide(path) as slide:
        counts = next(tiff.pages.first.tags[name] for name in COUNTS if name in tiff.pages.first.tags)
        size, kind_of_number = tiff.pages.first.databytecounts[0], "<H" if counts.dtype == 3 else "<I"
        expected = slide.read_region(0, 0, 0, 64, 64)
    found = []
    for missing in (0, 1, 2, 3, 5, 9, 25, 60, size // 2, size - 4):
        struct.pack_into(kind_of_number, data, counts.valueoffset, size - missing)
        path.write_bytes(data)
        try:
            with Slide(path) as slide:
                np.testing.assert_array_equal(slide.read_region(0, 0, 0, 64, 64), expected)
        except SlideError as error:
            assert_one_sentence(error, path)
            found.append("damaged")
        else:
            found.append("whole")
    assert found == sorted(found, reverse=True), "whole, and from some length on damaged"
    assert (found[0], found[-1]) == ("whole", "damaged")


def test_a_plain_pyramid_that_openslide_refuses_keeps_its_levels(tmp_path: Path) -> None:
    path, big = tmp_path / "a.tif", noise(256, 320)
    with tifffile.TiffWriter(path) as tiff:
        for level, kind in ((big, 0), (big[::2, ::2], 1), (big[::4, ::4], 1)):
            tiff.write(level, photometric="rgb", compression="jpegxl", tile=(64, 64), subfiletype=kind, **PLAIN)
    with Slide(path) as slide:
        assert [(lv.width, lv.height, lv.downsample) for lv in slide.levels] == [
            (320, 256, 1),
            (160, 128, 2),
            (80, 64, 4),
        ]
        np.testing.assert_array_equal(slide.read_region(64, 32, 1, 50, 40), big[::2, ::2][16:56, 32:82])


def test_an_aperio_slide_that_openslide_refuses_keeps_its_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    text = "Aperio Image Library v1\r\n203x151 (64x64) |AppMag = 40|MPP = 0.2520|Date = 01/01/50"
    tifffile.imwrite(
        path, PICTURE, photometric="rgb", compression="jpegxl", tile=(64, 64), description=text, metadata=None
    )
    with Slide(path) as slide:
        assert (slide.mpp, slide.objective_power, slide.vendor) == (0.252, 40, "aperio")
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, WIDTH, HEIGHT), PICTURE)


# ---------------------------------------------------------------------------------------------- layouts of colour

COLOURS: dict[str, tuple[NDArray[Any], NDArray[Any], dict[str, Any]]] = {
    "planes": (PLANES, PICTURE, {"planarconfig": "separate"}),
    "unassociated alpha": (
        np.dstack([PICTURE, ALPHA]), over_white(PICTURE, ALPHA), {"extrasamples": ["unassalpha"]},
    ),
    "associated alpha": (
        np.dstack([np.round(PICTURE * (ALPHA / 255)).astype(np.uint8), ALPHA]), over_white(PICTURE, ALPHA),
        {"extrasamples": ["assocalpha"]},
    ),
    "alpha in planes": (
        np.concatenate([PLANES, np.moveaxis(ALPHA, 2, 0)]), over_white(PICTURE, ALPHA),
        {"planarconfig": "separate", "extrasamples": ["unassalpha"]},
    ),
    "16 bits": (SIXTEEN, np.round(SIXTEEN / 257), {}),
    "16 bits in planes": (np.moveaxis(SIXTEEN, 2, 0), np.round(SIXTEEN / 257), {"planarconfig": "separate"}),
    "16 bits, big-endian": (SIXTEEN, np.round(SIXTEEN / 257), {"byteorder": ">"}),
}  # fmt: skip


@pytest.mark.parametrize("compression", ["none", "zlib"])
@pytest.mark.parametrize("kind", COLOURS)
def test_every_layout_of_colour_is_read(tmp_path: Path, kind: str, layout: dict[str, Any], compression: str) -> None:
    stored, expected, how = COLOURS[kind]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="rgb", compression=compression, **how, **layout, **PLAIN)
    assert_reads(path, expected, within=1 if "alpha" in kind else 0)  # OpenSlide and we round once more


@pytest.mark.parametrize(
    ("stored", "how", "named"),
    [
        (PICTURE[..., 0], {"photometric": "minisblack"}, "grey, MINISBLACK, 1 x 8 bits"),
        (PICTURE[..., 0], {"photometric": "miniswhite"}, "grey, MINISWHITE, 1 x 8 bits"),
        (PICTURE[..., 0] > 127, {"photometric": "minisblack"}, "1-bit"),
        (np.dstack([PICTURE, ALPHA]), {"photometric": "separated"}, "CMYK"),
        (PICTURE, {"photometric": "cielab"}, "CIELAB"),
        (PICTURE, {"photometric": "ycbcr", "compression": "zlib"}, "YCBCR"),
        (PICTURE / np.float32(255), {"photometric": "rgb"}, "32-bit samples (IEEEFP)"),
        (PICTURE.astype(np.int8), {"photometric": "rgb"}, "8-bit samples (INT)"),
        (np.dstack([PICTURE, ALPHA]), {"photometric": "rgb", "extrasamples": ["unspecified"]}, "4 samples"),
        (PICTURE[..., :2].copy(), {"photometric": "minisblack", "planarconfig": "contig"}, "2 x 8 bits"),
        (PICTURE, {"photometric": "rgb", "extratags": [(274, "H", 1, 6, True)]}, "orientation 6"),
        (SIXTEEN >> 4, {"photometric": "rgb", "extratags": [(281, "H", 3, (4095,) * 3, True)]}, "use fewer bits"),
    ],
)  # fmt: skip
def test_what_is_not_rgb_is_refused_by_name(
    tmp_path: Path, stored: NDArray[Any], how: dict[str, Any], named: str, layout: dict[str, Any]
) -> None:
    if stored.dtype == np.bool_ and "tile" in layout:
        layout = {"tile": (64, 64)}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, **how, **layout, **PLAIN)
    assert named in refused(path).what


def test_a_palette_is_read_as_openslide_reads_it(tmp_path: Path) -> None:
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) * 7 % 256]).astype(np.uint16) * 257
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE[..., 0], photometric="palette", colormap=colours, tile=(64, 64), **PLAIN)
    assert_reads(path, np.moveaxis(colours[:, PICTURE[..., 0]] // 257, 0, 2))


# --------------------------------------------------------------------------------------- channels, planes, pictures


def write_ome(path: Path, stored: NDArray[Any], axes: str, photometric: str, **more: Any) -> Path:
    tifffile.imwrite(
        path, stored, photometric=photometric, metadata={"axes": axes, **UM, **more}, ome=True, tile=(64, 64),
        compression="zlib", planarconfig="separate" if axes.endswith("SYX") else None,
    )  # fmt: skip
    return path


def test_planes_of_an_ome_tiff_are_colour(tmp_path: Path) -> None:
    assert_reads(write_ome(tmp_path / "a.ome.tif", PLANES, "SYX", "rgb"), PICTURE)


@pytest.mark.parametrize(
    ("channels", "order"),
    [
        ({"Name": ["Red", "Green", "Blue"]}, (0, 1, 2)),
        ({"Name": ["B", "G", "R"]}, (2, 1, 0)),
        ({"Color": [-16776961, 16711935, 65535]}, (0, 1, 2)),  # RGBA, signed
        ({"Color": [65535, -16776961, 16711935]}, (2, 0, 1)),
        ({}, (0, 1, 2)),
    ],
)
def test_three_channels_are_the_colours_they_are_called(
    tmp_path: Path, channels: dict[str, Any], order: tuple[int, ...]
) -> None:
    stored = np.empty_like(PLANES)
    stored[list(np.argsort(order))] = PLANES  # channel i holds the colour order[i]
    assert [int(np.flatnonzero([np.array_equal(s, p) for p in PLANES])[0]) for s in stored] == list(order)
    assert_reads(write_ome(tmp_path / "a.ome.tif", stored, "CYX", "minisblack", Channel=channels), PICTURE)


@pytest.mark.parametrize(
    ("stored", "channels", "named"),
    [
        (PLANES, {"Name": ["DAPI", "FITC", "TRITC"]}, "not called red, green and blue"),
        (PLANES, {"Color": [-1, -1, -1]}, "not called red, green and blue"),
        (PLANES[:2], {}, "2 channels"),
        (np.concatenate([PLANES, PLANES[:1]]), {"Name": ["Red", "Green", "Blue", "IR"]}, "4 channels"),
        (PLANES.astype(np.uint16), {}, "16 bits"),
    ],
)
def test_channels_that_are_no_colours_are_refused(
    tmp_path: Path, stored: NDArray[Any], channels: dict[str, Any], named: str
) -> None:
    error = refused(write_ome(tmp_path / "a.ome.tif", stored, "CYX", "minisblack", Channel=channels))
    assert named in error.what
    assert "DAPI" not in str(error)  # free text


def marked(places: int) -> NDArray[np.uint8]:
    """That many planes, told from each other by their brightness."""
    return np.stack([PICTURE // 4 + 40 * i for i in range(places)])


@pytest.mark.parametrize(
    ("shape", "axes", "taken", "said"),
    [
        ((3,), "ZYXS", 1, "focal plane 2 of 3"),
        ((4,), "ZYXS", 2, "focal plane 3 of 4"),
        ((3,), "TYXS", 0, "time point 1 of 3"),
        ((2, 2), "TZYXS", 1, "time point 1 of 2, focal plane 2 of 2"),
        ((1,), "ZYXS", 0, None),
    ],
)
def test_a_stack_says_which_plane_is_read(
    tmp_path: Path, shape: tuple[int, ...], axes: str, taken: int, said: str | None
) -> None:
    planes = marked(int(np.prod(shape)))
    path = write_ome(tmp_path / "a.ome.tif", planes.reshape(*shape, *PICTURE.shape), axes, "rgb")
    assert_reads(path, planes[taken])
    with Slide(path) as slide:
        assert slide.plane == said


def test_a_store_says_which_plane_it_was_made_of(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", marked(3), "ZYXS", "rgb")
    mask = tmp_path / "all.png"
    assert cv2.imwrite(str(mask), np.full((HEIGHT, WIDTH), 255, np.uint8))
    tissue = TissueConfig(method="mask", min_object_um2=0)
    config = TilingConfig(mpp=0.5, tile_px=32, codec="lossless", tissue=tissue)
    store = TileStore(tile_slide(path, tmp_path, config, tissue_file=mask).store)
    assert (store.attributes.slide.plane, len(store) > 0) == ("focal plane 2 of 3", True)
    for tile, (x0, y0) in zip(store.read(slice(None)), store.tiles.places(), strict=True):
        part = marked(3)[1][y0 : y0 + 32, x0 : x0 + 32]
        np.testing.assert_array_equal(tile[: part.shape[0], : part.shape[1]], part)


def test_channels_of_a_stack_are_taken_from_one_plane(tmp_path: Path) -> None:
    planes = marked(3)
    path = write_ome(tmp_path / "a.ome.tif", np.moveaxis(planes, 3, 1), "ZCYX", "minisblack")
    assert_reads(path, planes[1])


def test_pixels_and_scale_are_those_of_the_largest_picture(tmp_path: Path) -> None:
    path, macro = tmp_path / "a.ome.tif", noise(40, 60)
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for picture, mpp in ((macro, 8.0), (PICTURE, 0.5), (macro, 4.0)):
            scale = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            tiff.write(picture, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", **scale})
    assert_reads(path, PICTURE)
    with Slide(path) as slide:
        assert slide.plane == "picture 2 of 3"


# ---------------------------------------------------------------------------------------------------------- ImageJ


@pytest.mark.parametrize(
    ("unit", "per_unit"),
    [("um", 2.0), ("micron", 2.0), ("microns", 2.0), ("µm", 2.0), ("\\u00B5m", 2.0), ("nm", 0.002), ("mm", 2000.0),
     ("inch", 50_800.0), ("cm", 20_000.0)],
)  # fmt: skip
@pytest.mark.parametrize("tiled", [False, True])
def test_imagej_says_its_scale_per_unit(tmp_path: Path, unit: str, per_unit: float, tiled: bool) -> None:
    path = tmp_path / "a.tif"
    layout = LAYOUTS["tiles"] if tiled else {}
    text = f"ImageJ=1.54f\nunit={unit}\n".encode()
    tifffile.imwrite(
        path, PICTURE, photometric="rgb", description=text, metadata=None, resolution=(per_unit, per_unit),
        resolutionunit="NONE", **layout,
    )  # fmt: skip
    assert_reads(path, PICTURE)


def test_imagej_without_a_physical_unit_has_no_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, imagej=True, resolution=(2, 2), metadata={"unit": "pixel", "axes": "YXS"})
    with Slide(path) as slide, pytest.raises(SlideError, match="--slide-mpp"):
        _ = slide.mpp


def test_the_middle_plane_of_an_imagej_stack_is_read(tmp_path: Path) -> None:
    path, planes = tmp_path / "a.tif", marked(3)
    tifffile.imwrite(path, planes, imagej=True, resolution=(2, 2), metadata={"unit": "um", "axes": "ZYXS"})
    with Slide(path) as slide:
        assert slide.plane == "focal plane 2 of 3"
    assert_reads(path, planes[1])


# ---------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("kind", ["planes", "16 bits, big-endian", "alpha in planes"])
def test_large_uncompressed_strips_are_read_in_part(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, layout: dict[str, Any]
) -> None:
    stored, expected, how = COLOURS[kind]
    path = tmp_path / "a.ome.tif"
    monkeypatch.setattr(tifffile_reader, "_KEPT_RAW_BYTES", 0)
    monkeypatch.delattr(tifffile_reader.TifffileReader, "_decoded")  # whole strips
    axes = "YXS" if stored.shape[-1] in (3, 4) else "SYX"
    tifffile.imwrite(path, stored, photometric="rgb", metadata={"axes": axes, **UM}, ome=True, **how, **layout)
    assert_reads(path, expected, within=1 if "alpha" in kind else 0)


def test_a_strip_as_large_as_the_slide_is_never_in_memory(tmp_path: Path) -> None:
    path, side = tmp_path / "a.tif", 6000
    pixels = tifffile.memmap(path, shape=(side, side, 3), dtype="uint8", photometric="rgb", **PLAIN)
    pixels[3000 : 3000 + HEIGHT, 2000 : 2000 + WIDTH] = PICTURE
    pixels.flush()
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages.first.dataoffsets) == 1
    with Slide(path) as slide:
        tracemalloc.start()
        got = slide.read_region(2000, 3000, 0, WIDTH, HEIGHT)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    np.testing.assert_array_equal(got, PICTURE)
    assert peak < 4 * PICTURE.nbytes  # the strip has 108 MB


def test_a_large_compressed_strip_is_refused_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, photometric="rgb", compression="zlib", rowsperstrip=HEIGHT, **PLAIN)
    assert_reads(path, PICTURE)
    monkeypatch.setattr(tiff_picture, "MAX_SEGMENT_BYTES", WIDTH * HEIGHT * 3 - 1)
    error = refused(path)
    assert f"{WIDTH} x {HEIGHT} px" in error.what
    assert "tiled" in error.fix


# ------------------------------------------------------------------------------------------------- hostile claims


def set_tag(path: Path, name: str, value: int, page: int = 0) -> None:
    """One tag of a page is changed to another 32-bit number."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[page].aspage().tags[name]
    struct.pack_into("<HII", data, tag.offset + 2, 4, 1, value)
    path.write_bytes(data)


BOMBS: dict[str, Callable[[U8], bytes | bytearray]] = {
    "png": lambda pixels: imagecodecs.png_encode(pixels, level=1),
    "webp": lambda pixels: imagecodecs.webp_encode(pixels, lossless=True),
    "jpegxl": lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True, effort=1),
    "jpegxr": lambda pixels: imagecodecs.jpegxr_encode(pixels, level=0.9),
    "jpeg2000": lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0),
    "jpeg": lambda pixels: imagecodecs.jpeg_encode(pixels),
}


@pytest.mark.parametrize("compression", BOMBS)
def test_a_stream_that_claims_more_than_its_tile_is_not_decoded(tmp_path: Path, compression: str) -> None:
    path, other = tmp_path / "a.ome.tif", tmp_path / "b.tif"
    side = 1300
    big = BOMBS[compression](np.zeros((side, side, 3), np.uint8))
    # tiles of JPEG have a reader of their own
    layout: dict[str, Any] = {"rowsperstrip": 64} if compression == "jpeg" else {"tile": (64, 64)}
    how: dict[str, Any] = {"photometric": "rgb", "compression": compression, **layout}
    tifffile.imwrite(path, PICTURE, metadata={"axes": "YXS", **UM}, ome=True, **how)
    tifffile.imwrite(other, PICTURE, metadata=None, **how)
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages.first.tags
        data = bytearray(path.read_bytes()) + big
        kind = "Strip" if compression == "jpeg" else "Tile"
        struct.pack_into("<I", data, tags[f"{kind}Offsets"].valueoffset, len(data) - len(big))
        counts = tags[f"{kind}ByteCounts"]
        assert len(big) < 1 << 16
        struct.pack_into("<H" if counts.dtype == 3 else "<I", data, counts.valueoffset, len(big))
    path.write_bytes(data)
    with Slide(path) as slide:
        tracemalloc.start()
        with pytest.raises(SlideError, match="damaged"):
            slide.read_region(0, 0, 0, 60, 60)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_array_equal(slide.read_region(64, 64, 0, 60, 60), tifffile.imread(other)[64:124, 64:124])
    assert peak < side * side


@pytest.mark.parametrize("compression", ["webp", "lzw"])
@pytest.mark.parametrize(("name", "page"), [("ImageLength", 0), ("ImageWidth", 0), ("ImageLength", 1)])
def test_lists_of_tiles_that_do_not_cover_the_picture_are_damage(
    tmp_path: Path, compression: str, name: str, page: int
) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for level in (PICTURE, PICTURE[::2, ::2]):
            reduced = int(level is not PICTURE)
            tiff.write(level, photometric="rgb", compression=compression, tile=(64, 64), subfiletype=reduced, **PLAIN)
    set_tag(path, name, 1 << 24, page)
    with pytest.raises(SlideError, match="damaged"):
        Slide(path)


def test_a_level_finer_than_the_slide_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(PICTURE, subifds=1, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", **UM})
        tiff.write(noise(2 * HEIGHT, 2 * WIDTH), subfiletype=1, photometric="rgb", tile=(64, 64))
    with pytest.raises(SlideError, match="damaged"):
        Slide(path)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("compression", ["none", "webp"])
def test_a_list_of_pages_in_a_circle_is_not_followed(tmp_path: Path, bigtiff: bool, compression: str) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tiff:
        for _ in range(3):
            tiff.write(PICTURE, photometric="rgb", compression=compression, tile=(64, 64), contiguous=False, **PLAIN)
    with tifffile.TiffFile(path) as tiff, path.open("r+b") as file:
        page = tiff.pages[2]
        file.seek(tiff.pages.next_page_offset or 0)
        file.write(struct.pack(tiff.tiff.offsetformat, page.offset))
    try:
        with Slide(path) as slide:  # OpenSlide sees an end
            np.testing.assert_array_equal(slide.read_region(0, 0, 0, WIDTH, HEIGHT), PICTURE)
    except SlideError as error:
        assert_one_sentence(error, path)


# --------------------------------------------------------------------------------------------- what is said of them


def test_openslide_reads_the_first_of_equal_pages_and_says_so(tmp_path: Path) -> None:
    path, planes = tmp_path / "a.tif", marked(3)
    with tifffile.TiffWriter(path) as tiff:
        for plane in planes:
            tiff.write(plane, photometric="rgb", tile=(64, 64), contiguous=False, **PLAIN)
    assert_reads(path, planes[0])
    with Slide(path) as slide:
        assert (slide.plane, slide.reader) == ("page 1 of 3", "openslide")


@pytest.mark.parametrize(("count", "taken"), [(1, 0), (3, 1), (4, 2)])
def test_the_middle_focal_plane_of_an_aperio_slide_is_read_at_every_level(
    tmp_path: Path, count: int, taken: int
) -> None:
    """OpenSlide lists the planes as levels of one size."""
    path, planes = tmp_path / "a.svs", [plane[:128, :192] for plane in marked(count)]
    text = "Aperio Image Library v1\r\n192x128 (64x64) |AppMag = 20|MPP = 0.5"
    how: dict[str, Any] = {"photometric": "rgb", "description": text, "metadata": None, "contiguous": False}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(planes[0], tile=(64, 64), **how)
        tiff.write(noise(40, 60), **how)  # thumbnail
        for plane in (*planes[1:], *(plane[::2, ::2] for plane in planes)):
            tiff.write(plane, tile=(64, 64), **how)
    with openslide.OpenSlide(path) as oracle:
        assert oracle.level_count == 2 * count
    with Slide(path) as slide:
        assert [(lv.width, lv.height, lv.downsample) for lv in slide.levels] == [(192, 128, 1), (96, 64, 2)]
        assert slide.plane == (f"focal plane {taken + 1} of {count}" if count > 1 else None)
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 192, 128), planes[taken])
        np.testing.assert_array_equal(slide.read_scaled(64, 32, (64, 64), (64, 64)), planes[taken][32:96, 64:128])
        np.testing.assert_array_equal(slide.read_scaled(0, 0, (192, 128), (96, 64)), planes[taken][::2, ::2])


@pytest.mark.parametrize(
    ("name", "compression", "reader"),
    [
        ("a.tif", "webp", "tifffile"),
        ("a.tif", "packbits", "openslide"),
        ("a.tif", "lzw", "openslide, tiles decoded directly"),
        ("a.ome.tif", "lzw", "tifffile, tiles decoded directly"),
    ],
)
def test_a_slide_says_what_reads_it(tmp_path: Path, name: str, compression: str, reader: str) -> None:
    ome = {"metadata": {"axes": "YXS", **UM}, "ome": True} if "ome" in name else PLAIN
    path = tmp_path / name
    tifffile.imwrite(path, PICTURE, photometric="rgb", tile=(64, 64), compression=compression, **ome)
    with Slide(path) as slide:
        assert slide.reader == reader


@pytest.mark.parametrize("compression", ["webp", "lzw", "packbits"])
@pytest.mark.parametrize("damaged", [0, 1])
def test_a_level_of_which_nothing_can_be_decoded_is_found(tmp_path: Path, compression: str, damaged: int) -> None:
    path, big = tmp_path / "a.tif", noise(512, 640)
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate((big, big[::2, ::2])):
            tiff.write(level, photometric="rgb", compression=compression, tile=(64, 64), subfiletype=number, **PLAIN)
    with Slide(path) as slide:
        slide.try_levels()
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[damaged].aspage()
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    data = bytearray(path.read_bytes())
    for offset, size in places[: len(places) // 2]:  # its last part can still be decoded
        data[offset : offset + size] = bytes([128] * size)  # to PackBits: nothing follows
    path.write_bytes(data)
    with Slide(path) as slide:
        slide.try_levels()
    for offset, size in places:
        data[offset : offset + size] = bytes([128] * size)
    path.write_bytes(data)
    with Slide(path) as slide, pytest.raises(SlideError, match=f"level {damaged}"):
        slide.try_levels()


# ------------------------------------------------------------------------------------------------- vendors' slides


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Unsupported TIFF compression: 22610", "JPEGXR_NDPI"),
        ("Slides with dissimilar main images are not supported", "flavour"),
        ("TIFFRGBAImageGet: Doe^Jane", None),
    ],
)
def test_an_error_of_openslide_is_told_for_what_it_is(
    ndpi: Path, monkeypatch: pytest.MonkeyPatch, text: str, named: str | None
) -> None:
    def fails(_: str) -> Callable[[], None]:
        raise openslide.OpenSlideError(text)

    monkeypatch.setattr(openslide, "OpenSlide", type("Failing", (), {"__new__": lambda cls, name: fails(name),
                        "detect_format": staticmethod(openslide.OpenSlide.detect_format)}))  # fmt: skip
    with pytest.raises(SlideError) as caught:
        Slide(ndpi)
    assert isinstance(caught.value, UnsupportedSlideError) == (named is not None)
    assert (named or "damaged") in caught.value.what
    assert "Jane" not in str(caught.value)
