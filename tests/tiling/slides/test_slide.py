"""Slides: facts and pixels against OpenSlide and tifffile; hostile files; the scale is never guessed."""

from __future__ import annotations

import hashlib
import logging
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from pipeline.demo.synthetic import write_pyramid
from tiling.core.errors import SlideError
from tiling.slides.files import slide_files, slide_name
from tiling.slides.slide import Slide

U8 = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> U8:
    """Smooth coloured noise: survives JPEG well enough to tell places apart."""
    coarse = np.random.default_rng(seed).integers(60, 250, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def on_white(path: Path, x0: int, y0: int, level: int, width: int, height: int) -> U8:
    """The region as OpenSlide gives it, laid over white by Pillow."""
    from PIL import Image

    with openslide.OpenSlide(str(path)) as slide:
        rgba = slide.read_region((x0, y0), level, (width, height))
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def assert_one_sentence(error: SlideError, path: Path) -> None:
    text = str(error)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert "Traceback" not in text


# ------------------------------------------------------------------------------------------------ facts and pixels


@pytest.fixture(params=["svs", "ndpi", "dicom"])
def opened(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """(what is given to Slide, what is given to OpenSlide)."""
    path: Path = request.getfixturevalue(request.param)
    return path, slide_files(path)[0]


def test_facts_equal_openslide(opened: tuple[Path, Path]) -> None:
    with Slide(opened[0]) as slide, openslide.OpenSlide(str(opened[1])) as oracle:
        known = oracle.properties
        assert (slide.width, slide.height) == oracle.dimensions
        assert [(lv.width, lv.height) for lv in slide.levels] == list(oracle.level_dimensions)
        assert [lv.downsample for lv in slide.levels] == list(oracle.level_downsamples)
        assert slide.mpp == pytest.approx(float(known["openslide.mpp-x"]))
        assert slide.vendor == known["openslide.vendor"]
        power = known.get("openslide.objective-power")
        assert slide.objective_power == (float(power) if power else None)


REGIONS = [
    (0, 0, 0, 300, 200),
    (1000, 1500, 0, 257, 131),
    (-40, -30, 0, 120, 100),
    (2150, 2900, 0, 200, 200),
    (3900, 4800, 0, 200, 200),
    (90_000, 90_000, 0, 16, 16),
    (100, 100, 0, 1, 1),
]


@pytest.mark.parametrize("region", REGIONS)
def test_regions_equal_openslide(opened: tuple[Path, Path], region: tuple[int, int, int, int, int]) -> None:
    with Slide(opened[0]) as slide:
        got = slide.read_region(*region)
    assert got.dtype == np.uint8
    assert got.shape == (region[4], region[3], 3)
    np.testing.assert_array_equal(got, on_white(opened[1], *region))


@pytest.mark.parametrize("level", [1, 3, 6])
def test_regions_of_levels_equal_openslide(ndpi: Path, level: int) -> None:
    with Slide(ndpi) as slide:
        got = slide.read_region(512, 1024, level, 60, 50)
    np.testing.assert_array_equal(got, on_white(ndpi, 512, 1024, level, 60, 50))


def test_every_file_of_a_dicom_slide_is_the_slide(dicom: Path) -> None:
    with Slide(dicom) as whole:
        facts = (whole.width, whole.height, whole.mpp, whole.sha256(), whole.levels)
        pixels = whole.read_region(900, 900, 0, 64, 64)
        assert whole.compression() == "JPEG"
    files = slide_files(dicom)
    assert len(files) == 4
    for file in files:
        with Slide(file) as slide:
            assert (slide.width, slide.height, slide.mpp, slide.sha256(), slide.levels) == facts
            np.testing.assert_array_equal(slide.read_region(900, 900, 0, 64, 64), pixels)


def test_ome_tiff_is_read_as_tifffile_reads_it(ome: Path) -> None:
    whole = tifffile.imread(ome)
    with Slide(ome) as slide:
        assert (slide.width, slide.height, slide.vendor) == (1101, 1101, "ome-tiff")
        assert slide.mpp == pytest.approx(0.227, abs=5e-4)
        assert slide.compression() == "JPEG"
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 1101, 1101), whole)


def test_hash_of_a_file_is_its_sha256(svs: Path) -> None:
    with Slide(svs) as slide:
        assert slide.sha256() == "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"
        assert slide.sha256() == hashlib.sha256(svs.read_bytes()).hexdigest()
        assert slide.compression() == "JPEG"


# --------------------------------------------------------------------------------------------------- plain TIFFs

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiled": {"tile": (64, 48)},
    "tiled deflate": {"tile": (32, 32), "compression": "deflate", "predictor": True},
    "tiled jpeg": {"tile": (64, 64), "compression": "jpeg"},
    "stripped": {"rowsperstrip": 13},
    "stripped lzw": {"rowsperstrip": 40, "compression": "lzw"},
    "one strip": {"rowsperstrip": 151},
    "jpeg strips": {"rowsperstrip": 16, "compression": "jpeg"},
}
WINDOWS = [(0, 0, 203, 151), (-9, -7, 60, 50), (150, 100, 90, 90), (77, 33, 1, 1), (203, 151, 5, 5), (-50, 0, 20, 9)]


@pytest.fixture
def ome_pixels(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A small OME-TIFF, which tifffile reads, in the layout asked for."""
    path = tmp_path / "small.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, noise(151, 203), photometric="rgb", metadata=metadata, **LAYOUTS[request.param])
    return path


@pytest.mark.parametrize("ome_pixels", LAYOUTS, indirect=True)
def test_every_layout_equals_tifffile(ome_pixels: Path) -> None:
    padded = np.full((400, 500, 3), 255, np.uint8)
    padded[100:251, 100:303] = tifffile.imread(ome_pixels)
    with Slide(ome_pixels) as slide:
        assert (slide.mpp, slide.vendor) == (0.5, "ome-tiff")
        for x, y, w, h in WINDOWS:
            expected = padded[100 + y : 100 + y + h, 100 + x : 100 + x + w]
            np.testing.assert_array_equal(slide.read_region(x, y, 0, w, h), expected)


def test_a_pyramid_of_sub_levels_is_read(tmp_path: Path) -> None:
    path, big = tmp_path / "levels.ome.tif", noise(256, 320)
    small = np.asarray(cv2.resize(big, (160, 128), interpolation=cv2.INTER_AREA), np.uint8)
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(big, subifds=1, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS"})
        tiff.write(small, subfiletype=1, photometric="rgb", tile=(64, 64))
    with Slide(path, mpp=0.5) as slide:
        assert [(lv.width, lv.height, lv.downsample) for lv in slide.levels] == [(320, 256, 1.0), (160, 128, 2.0)]
        np.testing.assert_array_equal(slide.read_region(64, 32, 1, 50, 40), small[16:56, 32:82])


PHYSICAL = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm", "axes": "YXS"}


@pytest.mark.parametrize("order", [("macro", "slide"), ("slide", "macro")])
@pytest.mark.parametrize("macro_mpp", [8.0, 0.25])
def test_the_scale_is_that_of_the_image_whose_pixels_are_read(
    tmp_path: Path, order: tuple[str, ...], macro_mpp: float
) -> None:
    pixels = {"macro": noise(96, 128), "slide": noise(256, 320)}
    mpp = {"macro": macro_mpp, "slide": 0.5}
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for name in order:
            metadata = PHYSICAL | {"PhysicalSizeX": mpp[name], "PhysicalSizeY": mpp[name]}
            levels = 1 if name == "slide" else 0
            tiff.write(pixels[name], subifds=levels, photometric="rgb", tile=(64, 64), metadata=metadata)
            if levels:
                tiff.write(pixels[name][::2, ::2], subfiletype=1, photometric="rgb", tile=(64, 64))
    with Slide(path) as slide:
        assert (slide.width, slide.height, slide.mpp) == (320, 256, 0.5)
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 320, 256), pixels["slide"])


@pytest.mark.parametrize("data", ["IFD='{}' PlaneCount='1'", "IFD='{}'", "IFD='{}' NumPlanes='1'"])
@pytest.mark.parametrize("directory", [0, 1])
def test_the_scale_follows_the_directories_that_the_xml_names(tmp_path: Path, data: str, directory: int) -> None:
    """The XML names the macro picture first, wherever the slide is in the file."""
    sides = {1 - directory: 64, directory: 128}
    images = "".join(
        f"<Image ID='Image:{n}'><Pixels ID='Pixels:{n}' DimensionOrder='XYCZT' Type='uint8' SizeX='{sides[ifd]}' "
        f"SizeY='{sides[ifd]}' SizeC='3' SizeZ='1' SizeT='1' PhysicalSizeX='{mpp}' PhysicalSizeY='{mpp}'>"
        f"<Channel ID='Channel:{n}:0' SamplesPerPixel='3'/><TiffData {data.format(ifd)}/></Pixels></Image>"
        for n, (mpp, ifd) in enumerate(((8.0, 1 - directory), (0.5, directory)))
    )
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{images}</OME>'
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as tiff:
        for ifd in (0, 1):
            description = None if ifd else xml
            tiff.write(noise(sides[ifd], sides[ifd]), description=description, metadata=None, photometric="rgb")
    with Slide(path) as slide:
        assert (slide.width, slide.mpp) == (128, 0.5)


def positions(width: int, height: int) -> U8:
    """A picture that tells where each pixel lies: four grey levels a step, across and down, to and fro."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.abs(4 * x % 500 - 250), np.abs(4 * y % 500 - 250), np.full_like(x, 120)], -1).astype(np.uint8)


ROUNDED = (2003, 67)  # of a size, OpenSlide divides its levels by 4.095 and 16.8: at the right edge 23 px off
DRIFTING: dict[str, dict[str, Any]] = {
    "ome tiles": {"tile": (64, 64)}, "ome strips": {"rowsperstrip": 16},
    "tiles": {"tile": (64, 64), "compression": "zlib"}, "openslide alone": {"tile": (64, 64), "compression": "zlib"},
}  # fmt: skip


@pytest.mark.parametrize("kind", DRIFTING)
def test_positions_on_levels_do_not_drift(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels at exactly 1/4 and 1/16, their last pixels cut off: the place read is the place asked for."""
    levels, ome = {down: positions(ROUNDED[0] // down, ROUNDED[1] // down) for down in (4, 16)}, kind.startswith("ome")
    base = np.kron(levels[4], np.ones((4, 4, 1), np.uint8))
    base = np.pad(base, ((0, ROUNDED[1] - base.shape[0]), (0, ROUNDED[0] - base.shape[1]), (0, 0)), mode="edge")
    path = tmp_path / f"a{'.ome' * ome}.tif"
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        tiff.write(
            base, photometric="rgb", subifds=2 * ome, metadata={"axes": "YXS"} if ome else None, **DRIFTING[kind]
        )
        for level in levels.values():
            tiff.write(level, photometric="rgb", subfiletype=1, metadata=None, **DRIFTING[kind])
    if kind == "openslide alone":
        monkeypatch.setattr("tiling.slides.slide.open_tiled_levels", lambda *_, **__: None)
    exact = kind != "openslide alone"  # which interpolates, within half a level-0 pixel
    with Slide(path, mpp=0.5) as slide:
        assert [level.downsample for level in slide.levels] == [1.0, 4.0, 16.0]
        for number, down in enumerate(levels, start=1):
            last = (ROUNDED[0] // down - 8) * down
            for x0, y0 in ((0, 0), (4 * down, 0), (last // 2 // down * down, down), (last, down)):
                at = np.s_[y0 // down : y0 // down + 3, x0 // down : x0 // down + 8]
                got = [slide.read_region(x0, y0, number, 8, 3), slide.read_scaled(x0, y0, (8 * down, 3 * down), (8, 3))]
                for pixels in got:
                    off = np.abs(pixels.astype(int) - levels[down][at])
                    assert (off[:-1, :-1] if not exact else off).max() <= (0 if exact else 1), (x0, y0, number)


def test_a_picture_spread_over_several_files_is_refused(tmp_path: Path) -> None:
    """Its other files are not in the hash, and their offsets mean nothing in this one."""
    uid = ["urn:uuid:00000000-0000-0000-0000-00000000000" + d for d in "12"]
    blocks = "".join(
        f'<TiffData FirstZ="{i}" IFD="0" PlaneCount="1"><UUID FileName="{n}.ome.tif">{uid[i]}</UUID></TiffData>'
        for i, n in enumerate(["b", "a"])
    )
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{}">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="64" SizeC="3"'
        ' SizeZ="2" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="3"/>' + blocks + "</Pixels></Image></OME>"
    )
    for name, own in (("a", uid[1]), ("b", uid[0])):
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif", noise(64, 64), description=xml.format(own), metadata=None, photometric="rgb"
        )
    with pytest.raises(SlideError, match="one of several files"):
        Slide(tmp_path / "a.ome.tif")


# ------------------------------------------------------------------------------------------------------- scale


def resolution_tiff(path: Path, x: float, y: float, unit: str) -> Path:
    tifffile.imwrite(
        path, noise(64, 64), photometric="rgb", tile=(32, 32), resolution=(x, y), resolutionunit=unit, metadata=None
    )
    return path


@pytest.mark.parametrize(
    ("x", "y", "unit", "mpp"),
    [(20_000, 20_000, "CENTIMETER", 0.5), (50_800, 50_800, "INCH", 0.5), (20_000, 20_200, "CENTIMETER", 0.4975)],
)
def test_resolution_tags_give_the_scale(tmp_path: Path, x: float, y: float, unit: str, mpp: float) -> None:
    with Slide(resolution_tiff(tmp_path / "r.tif", x, y, unit)) as slide:
        assert slide.mpp == pytest.approx(mpp, rel=1e-3)


@pytest.mark.parametrize(
    ("x", "y", "unit", "reason"),
    [
        (72, 72, "INCH", "which no scanner does"),
        (1, 1, "CENTIMETER", "which no scanner does"),
        (20_000, 10_000, "CENTIMETER", "not square"),
        (1, 1, "NONE", "does not say how many micrometres"),
    ],
)
def test_a_scale_is_never_guessed(tmp_path: Path, x: float, y: float, unit: str, reason: str) -> None:
    path = resolution_tiff(tmp_path / "r.tif", x, y, unit)
    with Slide(path) as slide, pytest.raises(SlideError, match=reason) as caught:
        _ = slide.mpp
    assert_one_sentence(caught.value, path)
    assert "--slide-mpp" in str(caught.value)
    with Slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25


def test_a_missing_scale_quotes_the_objective(tmp_path: Path) -> None:
    path = tmp_path / "aperio.svs"
    write_pyramid(path, noise(256, 256), mpp=None, description="Aperio Image Library v1\r\n256x256 |AppMag = 40")
    with Slide(path) as slide, pytest.raises(SlideError, match=r"pass --slide-mpp, .*\(objective power 40\)"):
        _ = slide.mpp


@pytest.mark.parametrize("mpp", [0.0, -0.5, math.nan, math.inf, 1e-9, 72.0])
def test_an_impossible_given_scale_is_refused(svs: Path, mpp: float) -> None:
    with pytest.raises(SlideError, match="micrometres"):
        Slide(svs, mpp=mpp)


# --------------------------------------------------------------------------------- pictures of large areas


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_the_overview_hardly_depends_on_the_pyramid(tmp_path: Path, levels: int) -> None:
    picture = noise(1100, 900)
    path = tmp_path / "p.tif"
    write_pyramid(path, picture, mpp=0.5, levels=levels, compression="none")
    with Slide(path) as slide:
        assert len(slide.levels) == levels
        overview = slide.read_scaled(0, 0, (896, 1096), (112, 137))
    expected = cv2.resize(picture[:1096, :896], (112, 137), interpolation=cv2.INTER_AREA)
    assert np.abs(overview.astype(int) - expected).max() <= 1


def test_an_overview_put_together_from_blocks_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.tif"
    write_pyramid(path, noise(640, 512), mpp=0.5)
    with Slide(path) as slide:
        whole = slide.read_scaled(0, 0, (512, 640), (64, 80))
        monkeypatch.setattr("tiling.slides.slide._READ_PX", 128)
        np.testing.assert_array_equal(slide.read_scaled(0, 0, (512, 640), (64, 80)), whole)


def test_read_scaled_takes_the_coarsest_level_that_suffices(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    write_pyramid(path, noise(512, 512), mpp=0.5, levels=3)
    with Slide(path) as slide:
        for level, factor in ((0, 1), (1, 2), (2, 4)):
            got = slide.read_scaled(128, 64, (256, 256), (256 // factor, 256 // factor))
            np.testing.assert_array_equal(got, on_white(path, 128, 64, level, 256 // factor, 256 // factor))


# -------------------------------------------------------------------------------------------------- hostile input


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def missing(tmp_path: Path) -> Path:
    return tmp_path / "missing.svs"


def empty(tmp_path: Path) -> Path:
    return write(tmp_path / "empty.svs", b"")


def text(tmp_path: Path) -> Path:
    return write(tmp_path / "text.svs", b"slide_path,slide_id\na.svs,1\n")


def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def fake_dicom(tmp_path: Path) -> Path:
    write(folder(tmp_path) / "a.dcm", b"\0" * 128 + b"DICM" + b"\xff" * 64)
    return tmp_path / "folder"


def bmp(tmp_path: Path) -> Path:
    assert cv2.imwrite(str(tmp_path / "a.bmp"), noise(32, 32))
    return tmp_path / "a.bmp"


def tiff_header(tmp_path: Path) -> Path:
    return write(tmp_path / "header.tif", b"II*\0\x08\0\0\0")


def endless_ifds(tmp_path: Path) -> Path:
    return write(tmp_path / "loop.tif", b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0")


def too_long_name(tmp_path: Path) -> Path:
    return tmp_path / ("x" * 3000)


def nul(tmp_path: Path) -> Path:
    return Path(f"{tmp_path}/a\0b.svs")


def under_a_file(tmp_path: Path) -> Path:
    return text(tmp_path) / "slide.svs"


def dangling(tmp_path: Path) -> Path:
    (tmp_path / "link.svs").symlink_to("nowhere.svs")
    return tmp_path / "link.svs"


HOSTILE = [
    missing, empty, text, folder, fake_dicom, bmp, tiff_header, endless_ifds, too_long_name, nul, under_a_file,
    dangling,
]  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_what_is_no_slide_is_one_sentence(tmp_path: Path, make: Any) -> None:
    path: Path = make(tmp_path)
    with pytest.raises(SlideError) as caught:
        Slide(path)
    assert_one_sentence(caught.value, path)


def read_all(path: Path) -> U8:
    with Slide(path, mpp=0.5) as slide:
        slide.compression()
        return slide.read_scaled(0, 0, (slide.width, slide.height), (slide.width // 16, slide.height // 16))


def read_each(file: Path, contents: Iterable[bytes]) -> tuple[list[str], list[U8]]:
    """Contents written as `file` and read: the reasons for those that fail, the others' pictures.

    Anything but SlideError escapes.
    """
    reasons, pictures = [], []
    for content in contents:
        file.write_bytes(content)
        try:
            pictures.append(read_all(file))
        except SlideError as error:
            assert_one_sentence(error, file)
            reasons.append(error.what)
    return reasons, pictures


@pytest.mark.parametrize("name", ["svs", "ndpi", "ome"])
def test_a_truncated_slide_is_one_sentence_or_its_picture_whole(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    data = path.read_bytes()
    cuts = [1, 4, 7, 8, 9, 16, 100, 1000, *(len(data) * i // 17 for i in range(1, 17)), len(data) - 1000]
    reasons, pictures = read_each(tmp_path / f"cut{''.join(path.suffixes)}", (data[:cut] for cut in cuts))
    assert len(reasons) >= 16  # of an SVS, the end holds label and macro: cut there, the slide itself is whole
    for picture in pictures:
        np.testing.assert_array_equal(picture, read_all(path))


def test_a_truncated_dicom_slide_is_one_sentence(tmp_path: Path, dicom: Path) -> None:
    largest = max(slide_files(dicom), key=lambda p: p.stat().st_size)
    copy = tmp_path / "slide"
    copy.mkdir()
    (copy / largest.name).write_bytes(largest.read_bytes()[:400_000])
    with pytest.raises(SlideError) as caught:
        read_all(copy)
    assert_one_sentence(caught.value, copy)


def test_bytes_changed_in_the_header_never_escape(tmp_path: Path, ome: Path) -> None:
    data, random = ome.read_bytes(), np.random.default_rng(0)

    def changed() -> Iterator[bytes]:
        order: Literal["big", "little"] = "big" if data[:2] == b"MM" else "little"
        for _ in range(150):
            copy = bytearray(data)
            for place in random.integers(0, 330, 3):
                copy[place] = random.integers(0, 256)
            if max(int.from_bytes(copy[at : at + 4], order) for at in (18, 30)) < 5000:  # no sizes of gigabytes
                yield bytes(copy)

    reasons, pictures = read_each(tmp_path / "changed.ome.tif", changed())
    assert len(reasons) > 20
    assert len(pictures) > 5


def test_the_free_text_of_a_damaged_file_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "private.ome.tif"
    xml = "<OME>Jane Doe, 1950-01-01 ZZ</OME>"
    tifffile.imwrite(path, noise(32, 32), photometric="rgb", description=xml, metadata=None)
    path.write_bytes(path.read_bytes().replace(b"ZZ", b"\x9d\xff"))
    with caplog.at_level(logging.DEBUG):
        read_all(path)
    assert "1950" not in caplog.text


_DROPPED = """
import ctypes, sys
from tiling.slides.slide import Slide
from tiling.core.errors import SlideError
try:
    Slide(sys.argv[1])
except SlideError as error:
    print(error)
    sys.exit(7)
"""


def drop_root() -> None:
    """In the child: root's right to read everything is taken away (no effect for other users)."""
    import ctypes

    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("kind", ["file", "folder", "inside"])
def test_unreadable_is_one_sentence(tmp_path: Path, kind: str) -> None:
    place = folder(tmp_path)
    file = write(place / "a.svs", b"II*\0")
    target = {"file": file, "folder": place, "inside": file}[kind]
    closed = file if kind == "file" else place
    closed.chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DROPPED, target], preexec_fn=drop_root, capture_output=True, text=True, check=False
        )
    finally:
        closed.chmod(0o755)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == f"{target}: cannot be read (Permission denied); check the path and its permissions\n"


def open_files() -> int:
    """Open descriptors of this process, where the system tells."""
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.exists() else 0


def test_a_failed_opening_leaves_no_file_open(tmp_path: Path) -> None:
    before = open_files()
    for make in (text, tiff_header):
        for _ in range(5):
            with pytest.raises(SlideError):
                Slide(make(tmp_path))
    assert open_files() == before


# ------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.svs", "b"),
        ("a/b.ome.tif", "b"),
        ("a/B.OME.TIFF", "B"),
        ("a/b.c.svs", "b.c"),
        ("a/b", "b"),
        ("slides/case-1/0.dcm", "case-1"),
        ("stores/case.7.zarr", "case.7"),
        ("TCGA-XX-01Z-00-DX1.0123.svs", "TCGA-XX-01Z-00-DX1.0123"),
    ],
)
def test_slide_name(path: str, name: str) -> None:
    assert slide_name(Path(path)) == name


def test_slide_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "case.7").mkdir()
    assert slide_name(tmp_path / "case.7") == "case.7"
    monkeypatch.chdir(tmp_path / "case.7")
    assert slide_name(Path()) == "case.7"


def test_a_mirax_slide_is_its_index_and_its_folder(tmp_path: Path) -> None:
    index = write(tmp_path / "a.mrxs", b"x")
    (tmp_path / "a").mkdir()
    parts = [write(tmp_path / "a" / name, b"x") for name in ("Data0.dat", "Slidedat.ini")]
    assert slide_files(index) == [index, *parts]
