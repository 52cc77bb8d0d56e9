"""DICOM slides: which files are one, whatever lies beside it; what is not read is named. Oracle: what was written."""

from __future__ import annotations

import logging
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from tests.tiling.dicom_files import REPORT, WHOLE_SLIDE, Encode, frame_place, write_instance, write_object
from tests.tiling.slides.test_slide import assert_one_sentence, noise
from tiling.core.errors import SlideError, UnsupportedSlideError
from tiling.core.files import sha256_file, sha256_json
from tiling.slides.dicom import dicom_folder, read_header
from tiling.slides.files import is_slide, slide_files, slide_name, slides_in
from tiling.slides.slide import Slide

U8 = NDArray[np.uint8]
SYNTAX = "1.2.840.10008.1.2"
JPEG_2000 = f"{SYNTAX}.4.90"
SEGMENTATION, ANNOTATIONS, DIRECTORY = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.91.1",
    "1.2.840.10008.1.3.10",
)


def lossless(tile: U8) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k", reversible=True, mct=True))


def write_slide(folder: Path, picture: U8, names: tuple[str, str] = ("a.dcm", "b.dcm"), series: str = "1") -> Path:
    """Two levels, lossless."""
    for name, level, mpp in ((names[0], picture, 0.5), (names[1], np.ascontiguousarray(picture[::2, ::2]), 1.0)):
        write_instance(
            folder / name, level, mpp=mpp, series=series, syntax=JPEG_2000, colours="YBR_RCT", encode=lossless
        )
    return folder


def pixels(path: Path) -> U8:
    with Slide(path) as slide:
        return slide.read_region(0, 0, 0, slide.width, slide.height)


# --------------------------------------------------------------------------------------------- which files are one


@pytest.fixture
def picture() -> U8:
    return noise(300, 500)


def test_endings_do_not_matter(tmp_path: Path, picture: U8) -> None:
    folder = write_slide(tmp_path / "case", picture, ("1.2.826.0.1.1", "1.2.826.0.1.2"))
    files = sorted(folder.iterdir())
    for path in (folder, *files):
        np.testing.assert_array_equal(pixels(path), picture)
        assert slide_files(path) == files
        assert slide_name(path) == "case"
        assert is_slide(path)
        with Slide(path) as slide:
            assert [(level.width, level.height) for level in slide.levels] == [(500, 300), (250, 150)]
            assert (slide.mpp, slide.objective_power, slide.compression()) == (0.5, 20, "JPEG2000")
            assert slide.sha256() == sha256_json(sorted(sha256_file(file) for file in files))
    assert slides_in(folder) == files[:1]


def test_what_lies_beside_a_slide_is_left_alone(tmp_path: Path, picture: U8, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_slide(tmp_path / "case", picture, ("m.dcm", "n.dcm"))
    with Slide(folder) as slide:
        alone = slide.sha256()
    for name, sop_class in (("a", REPORT), ("b", SEGMENTATION), ("z", ANNOTATIONS), ("DICOMDIR", DIRECTORY)):
        write_object(folder / name, sop_class)
    write_instance(folder / "c.dcm", noise(64, 64, seed=1), series="5", flavour="LABEL")  # of another series
    (folder / "notes.txt").write_text("x" * 200)
    (folder / ".m.dcm").write_bytes((folder / "m.dcm").read_bytes())
    with caplog.at_level(logging.INFO), Slide(folder) as slide:
        assert slide.sha256() == alone
    for kind in ("annotation", "directory", "label or overview", "report", "segmentation"):
        assert f"1 {kind}" in caplog.text
    np.testing.assert_array_equal(pixels(folder), picture)
    assert [path.name for path in slide_files(folder)] == ["m.dcm", "n.dcm"]
    assert slides_in(folder) == [folder / "m.dcm"]
    assert slide_name(folder / "m.dcm") == "case"


def test_label_and_overview_of_its_series_are_the_slides(tmp_path: Path, picture: U8) -> None:
    folder = write_slide(tmp_path / "case", picture)
    for name, flavour in (("0", "LABEL"), ("1", "OVERVIEW"), ("2", "THUMBNAIL")):
        write_instance(folder / name, noise(64, 64, seed=1), flavour=flavour)
    for path in (folder, folder / "0"):
        np.testing.assert_array_equal(pixels(path), picture)
        assert len(slide_files(path)) == 5
    assert slides_in(folder) == [folder / "a.dcm"]


def test_two_slides_in_a_folder_are_two(tmp_path: Path, picture: U8) -> None:
    other = noise(260, 280, seed=2)
    folder = write_slide(write_slide(tmp_path / "case", picture, ("c.dcm", "d.dcm")), other, ("a.dcm", "b"), series="2")
    with pytest.raises(SlideError, match=r"2 DICOM slides .*280 x 260 px, 500 x 300 px") as caught:
        Slide(folder)
    assert_one_sentence(caught.value, folder)
    assert not is_slide(folder)
    assert slides_in(folder) == [folder / "a.dcm", folder / "c.dcm"]
    for names, expected in ((("a.dcm", "b"), other), (("c.dcm", "d.dcm"), picture)):
        for name in names:
            np.testing.assert_array_equal(pixels(folder / name), expected)
            assert slide_files(folder / name) == [folder / n for n in names]
            assert slide_name(folder / name) == names[0].removesuffix(".dcm")


def test_a_level_cut_into_files_is_whole(tmp_path: Path, picture: U8) -> None:
    how = {"syntax": JPEG_2000, "colours": "YBR_RCT", "encode": lossless}
    for part in (0, 1):
        write_instance(tmp_path / "case" / str(part), picture, part=part, **how)  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels(tmp_path / "case"), picture)
    (tmp_path / "case/1").unlink()
    with pytest.raises(SlideError, match="incomplete"):
        Slide(tmp_path / "case")


def test_folders_hold_slides_of_many_formats(tmp_path: Path, picture: U8) -> None:
    write_slide(tmp_path, picture)
    for name in ("x.SVS", "y.ome.tiff", "z.mrxs", "table.csv", "preview.png", ".hidden.svs", "._x.svs"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.svs").mkdir()
    assert [path.name for path in slides_in(tmp_path)] == ["a.dcm", "x.SVS", "y.ome.tiff", "z.mrxs"]


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("syntax", "colours", "encode", "named"),
    [
        (f"{SYNTAX}.4.80", "RGB", imagecodecs.jpegls_encode, "JPEG-LS"),
        (f"{SYNTAX}.4.51", "YBR_FULL_422", None, "JPEG Extended"),
        (f"{SYNTAX}.5", "RGB", imagecodecs.packbits_encode, "RLE"),
        (f"{SYNTAX}.4.50", "YBR_FULL", None, "YBR_FULL"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, picture: U8, syntax: str, colours: str, encode: Encode | None, named: str
) -> None:
    given = {} if encode is None else {"encode": encode}
    path = write_instance(tmp_path / "case/a.dcm", picture, syntax=syntax, colours=colours, **given)  # type: ignore[arg-type]
    for slide in (path, path.parent):
        with pytest.raises(UnsupportedSlideError, match=f"{named}.*not supported") as caught:
            Slide(slide)
        assert_one_sentence(caught.value, slide)


def test_grey_and_deep_pictures_are_named(tmp_path: Path, picture: U8) -> None:
    grey = write_instance(tmp_path / "grey/a", picture[..., 0].copy(), colours="MONOCHROME2", encode=lossless_grey)
    deep = write_instance(tmp_path / "deep/a", picture, BitsAllocated=16, BitsStored=12)
    for path, named in ((grey, "1 samples of 8 bits"), (deep, "3 samples of 16 bits")):
        with pytest.raises(UnsupportedSlideError, match=f"{named}.*not supported"):
            Slide(path)


def lossless_grey(tile: U8) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k", reversible=True))


@pytest.mark.parametrize("syntax", [f"{SYNTAX}.1.99", SYNTAX])
def test_datasets_laid_out_otherwise_are_named(tmp_path: Path, syntax: str) -> None:
    ds = pydicom.dcmread(write_instance(tmp_path / "case/a.dcm", noise(64, 64)))
    del ds.PixelData
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    ds.save_as(tmp_path / "case/a.dcm", implicit_vr=syntax == SYNTAX, little_endian=True)
    with pytest.raises(UnsupportedSlideError, match="not supported"):
        Slide(tmp_path / "case")


def test_focal_planes_are_named(tmp_path: Path, picture: U8) -> None:
    write_instance(tmp_path / "case/a", picture, TotalPixelMatrixFocalPlanes=3)
    with pytest.raises(UnsupportedSlideError, match="3 focal planes"):
        Slide(tmp_path / "case")


def test_frames_without_places_are_refused(tmp_path: Path, picture: U8) -> None:
    """OpenSlide crashes on them."""
    sparse: dict[str, Any] = {"DimensionOrganizationType": "TILED_SPARSE"}
    write_instance(tmp_path / "case/a", picture, **sparse)
    with pytest.raises(SlideError, match="where its frames lie"):
        Slide(tmp_path / "case")
    sparse["PerFrameFunctionalGroupsSequence"] = [
        frame_place(column, row) for row, column in ((257, 1), (1, 257), (1, 1))
    ]  # the fourth is left out
    how: dict[str, Any] = {"syntax": JPEG_2000, "colours": "YBR_RCT", "encode": lossless}
    write_instance(tmp_path / "case/a", picture, frames_of=[2, 1, 0], **how, **sparse)
    expected = picture.copy()
    expected[256:, 256:] = 255
    np.testing.assert_array_equal(pixels(tmp_path / "case"), expected)


def test_images_of_one_size_in_one_series_are_refused(tmp_path: Path, picture: U8) -> None:
    for name in "ab":
        write_instance(tmp_path / "case" / name, picture)
    with pytest.raises(UnsupportedSlideError, match="2 images of 500 x 300 px"):
        Slide(tmp_path / "case")


@pytest.mark.parametrize(("sop_class", "kind"), [(REPORT, "report"), (SEGMENTATION, "segmentation")])
def test_what_is_no_slide_says_what_it_is(tmp_path: Path, sop_class: str, kind: str) -> None:
    path = write_object(tmp_path / "case/a.dcm", sop_class)
    for given in (path, path.parent):
        with pytest.raises(SlideError, match=kind) as caught:
            Slide(given)
        assert_one_sentence(caught.value, given)
    assert slides_in(path.parent) == []


def test_a_label_alone_is_no_slide(tmp_path: Path) -> None:
    path = write_instance(tmp_path / "case/a.dcm", noise(64, 64), flavour="LABEL")
    for given in (path, path.parent):
        with pytest.raises(SlideError, match="label or overview"):
            Slide(given)


def test_a_damaged_header_may_be_any_slides(tmp_path: Path, picture: U8, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_slide(tmp_path / "case", picture)
    (folder / "JaneDoe.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 64)
    with pytest.raises(SlideError, match=r"1 DICOM file.* damaged header") as caught:
        Slide(folder)
    assert "JaneDoe" not in str(caught.value)
    np.testing.assert_array_equal(pixels(folder / "a.dcm"), picture)
    assert "damaged headers (1)" in caplog.text
    with pytest.raises(SlideError, match="damaged DICOM header"):
        Slide(folder / "JaneDoe.dcm")


def test_a_pipe_is_not_waited_for(tmp_path: Path, picture: U8) -> None:
    folder = write_slide(tmp_path / "case", picture)
    os.mkfifo(folder / "pipe.dcm")
    for path in (folder, folder / "a.dcm"):
        with pytest.raises(SlideError, match="pipe"):
            Slide(path)


# ------------------------------------------------------------------------------------------------------- headers


def test_headers_equal_pydicom(dicom: Path) -> None:
    for path in dicom.iterdir():
        ds, header = pydicom.dcmread(path, stop_before_pixels=True), read_header(path)
        assert header is not None
        assert (header.sop_class, header.series) == (WHOLE_SLIDE, ds.SeriesInstanceUID)
        assert header.transfer_syntax == ds.file_meta.TransferSyntaxUID
        assert header.image_type == tuple(ds.ImageType)
        assert header.size == (ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows)
        assert (header.samples, header.bits) == (ds.SamplesPerPixel, ds.BitsAllocated)
        assert header.colours == ds.PhotometricInterpretation
        assert header.frames == int(ds.NumberOfFrames)
        assert header.is_pyramid == ("VOLUME" in ds.ImageType)


def test_damaged_headers_are_read_or_not_in_bounded_time(tmp_path: Path, picture: U8) -> None:
    path = write_instance(tmp_path / "case/a.dcm", picture)
    data, random = path.read_bytes(), np.random.default_rng(0)
    end, none = data.index(b"JPEG") if b"JPEG" in data[:3000] else 1500, 0
    for cut in range(132, end, 7):
        path.write_bytes(data[:cut])
        dicom_folder(path.parent)
    for _ in range(300):
        changed = bytearray(data)
        for place in random.integers(132, end, 3):
            changed[place] = random.integers(0, 256)
        path.write_bytes(changed)
        none += read_header(path) is None
    path.write_bytes(data[:132] + b"\0" * 8_000_000)  # a million empty elements
    assert read_header(path) is None
    assert 0 < none < 300


def test_no_free_text_of_a_header_is_told(tmp_path: Path, picture: U8) -> None:
    secret: dict[str, Any] = {"PatientName": "Doe^Jane", "PatientID": "ID1950", "ContainerIdentifier": "BARCODE77"}
    write_instance(tmp_path / "case/a.dcm", picture, syntax=f"{SYNTAX}.4.80", **secret)
    data = (tmp_path / "case/a.dcm").read_bytes()
    (tmp_path / "case/a.dcm").write_bytes(data.replace(b"YBR_FULL_422", b"Doe^Jane1950"))
    with pytest.raises(SlideError) as caught:
        Slide(tmp_path / "case")
    assert not {"Jane", "1950", "BARCODE"} & {word for word in ("Jane", "1950", "BARCODE") if word in str(caught.value)}


def test_the_real_slide_beside_others(tmp_path: Path, dicom: Path, picture: U8) -> None:
    """The identity of a folder that holds one slide and nothing else is what it was: the hash of all its files."""
    with Slide(dicom) as slide:
        alone, corner = slide.sha256(), slide.read_region(900, 900, 0, 64, 64)
    assert alone == sha256_json(sorted(sha256_file(path) for path in dicom.iterdir()))
    folder = Path(shutil.copytree(dicom, tmp_path / "case"))
    write_slide(folder, picture, ("0.dcm", "1.dcm"), series="2")
    write_object(folder / "2.dcm", REPORT)
    first = min(path for path in folder.iterdir() if path.name[0] == "1" and len(path.name) > 8)
    with Slide(first) as slide:
        assert slide.sha256() == alone
        np.testing.assert_array_equal(slide.read_region(900, 900, 0, 64, 64), corner)


# ------------------------------------------------------------------------------------------- streams that do not fill


def changed(file: Path, frame: int, at: int, form: str, value: int) -> Path:
    """The file with another value in the header of one frame's JPEG 2000 stream, at a place that the standard gives."""
    data, begin = bytearray(file.read_bytes()), -1
    for _ in range(frame + 1):
        begin = data.index(b"\xff\x4f\xff\x51", begin + 1)
    struct.pack_into(form, data, begin + at, value)
    file.write_bytes(data)
    return file


UNFIT = {"an offset": (16, ">I", 1), "less height": (12, ">I", 200), "12 bits": (42, ">B", 11)}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_frame_whose_stream_does_not_fill_it_is_damaged(tmp_path: Path, picture: U8, kind: str) -> None:
    folder = write_slide(tmp_path / "case", picture)
    changed(folder / "a.dcm", 1, *UNFIT[kind])
    with Slide(folder) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 256, 300), picture[:, :256])
        np.testing.assert_array_equal(slide.read_region(256, 256, 0, 244, 44), picture[256:, 256:])
        np.testing.assert_array_equal(slide.read_region(0, 0, 1, 250, 150), picture[::2, ::2])
        for x0, y0 in ((256, 0), (255, 255), (400, 100)):
            with pytest.raises(SlideError, match=r"case: "):
                slide.read_region(x0, y0, 0, 2, 2)


def test_levels_in_jpeg_beside_one_in_jpeg_2000_are_read(tmp_path: Path, picture: U8) -> None:
    folder = write_slide(tmp_path / "case", picture)
    write_instance(folder / "b.dcm", np.full((150, 250, 3), 200, np.uint8), mpp=1.0)
    changed(folder / "a.dcm", 0, *UNFIT["an offset"])
    with Slide(folder) as slide:
        assert (slide.read_region(0, 0, 1, 248, 144) == 200).all()  # blocks of 8 px that lie on the level
        np.testing.assert_array_equal(slide.read_region(256, 0, 0, 244, 300), picture[:, 256:])
        with pytest.raises(SlideError, match=r"case: "):
            slide.read_region(0, 0, 0, 2, 2)


def test_where_frames_are_in_no_known_order_one_that_does_not_fill_costs_its_level(tmp_path: Path, picture: U8) -> None:
    folder = tmp_path / "case"
    for part in (0, 1):
        write_instance(folder / f"{part}.dcm", picture, part=part, syntax=JPEG_2000, colours="YBR_RCT", encode=lossless)
    np.testing.assert_array_equal(pixels(folder), picture)
    changed(folder / "1.dcm", 1, 16, ">I", 1)
    with Slide(folder) as slide, pytest.raises(SlideError, match=r"case: "):
        slide.read_region(0, 0, 0, 20, 20)
