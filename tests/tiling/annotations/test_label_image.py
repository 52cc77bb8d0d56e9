"""Label images: box sums are the oracle; hostile pictures are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
from numpy.typing import NDArray

from tests.tiling.squares import squares
from tiling.annotations.classes import ClassRules
from tiling.annotations.label_image import label_fractions, read_label_image
from tiling.annotations.rasterize import annotation_fractions, annotation_mask
from tiling.core.errors import InputError
from tiling.grid import Bounds, Frame, Raster

SIZE0 = (120, 90)
FRAME = Frame(SIZE0)
TILES = squares([0, 30, 100], [0, 45, 80], 30, SIZE0)


def labels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 4, (30, 40), np.uint8)


def save(path: Path, picture: NDArray[np.generic]) -> Path:
    if path.suffix == ".png":
        PIL.Image.fromarray(picture).save(path)
    else:
        tifffile.imwrite(path, picture)
    return path


@pytest.mark.parametrize(
    ("ending", "dtype"), [("png", "u1"), ("png", "u2"), ("tif", "u1"), ("tiff", "i4"), ("TIF", "u2")]
)
def test_fractions_are_box_means(tmp_path: Path, ending: str, dtype: str) -> None:
    path = save(tmp_path / f"a.{ending}", labels().astype(dtype))
    found = label_fractions(path, TILES, FRAME)
    full = np.zeros((200, 200), np.uint8)
    full[:90, :120] = labels().repeat(3, 0).repeat(3, 1)
    assert list(found) == ["1", "2", "3"]
    for name, fractions in found.items():
        expected = [(full[y : y + 30, x : x + 30] == int(name)).mean() for x, y in TILES.places()]
        np.testing.assert_allclose(fractions, expected, atol=1e-6)


def test_classes_have_names_and_those_without_a_pixel_are_there(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", labels())
    (tmp_path / "a.classes.json").write_text('{"1": "tumour", "2": "tumour", "9": "necrosis"}')
    found = label_fractions(path, TILES, FRAME)
    assert list(found) == ["3", "necrosis", "tumour"]
    assert not found["necrosis"].any()
    (tmp_path / "a.classes.json").unlink()
    plain = label_fractions(path, TILES, FRAME)
    np.testing.assert_allclose(found["tumour"], plain["1"] + plain["2"], atol=1e-6)


def test_a_palette_gives_its_indices(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(labels()).convert("P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    picture.putdata(labels().ravel().tolist())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_image(tmp_path / "a.png", FRAME).values, labels())


@pytest.mark.parametrize("channels", [3, 4])
def test_grey_saved_as_colour_is_taken(tmp_path: Path, channels: int) -> None:
    picture = np.repeat(labels()[..., None], channels, 2)
    picture[..., 3:] = 255
    np.testing.assert_array_equal(read_label_image(save(tmp_path / "a.png", picture), FRAME).values, labels())


@pytest.mark.parametrize(
    ("name", "picture", "reason"),
    [
        ("a.png", np.zeros((40, 30), np.uint8), "is 30 x 40 px, but the slide is 120 x 90"),
        ("a.tif", np.zeros((30, 40), np.float32), "is no picture of one integer"),
        ("a.png", np.eye(3, dtype=np.uint8)[np.zeros((30, 40), int)], "is no picture of one integer"),
        ("a.tif", np.zeros((5, 30, 40), np.uint8), "is no picture of one integer"),
        ("a.tif", np.arange(1200, dtype=np.int32).reshape(30, 40), "holds 1199 values"),
    ],
)
def test_unfit_pictures_are_refused(tmp_path: Path, name: str, picture: NDArray[np.generic], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        label_fractions(save(tmp_path / name, picture), TILES, FRAME)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"II*\0\xff\xff\xff\xff", b"\x89PNG\r\n\x1a\n\0"])
def test_broken_pictures_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as"):
        read_label_image(tmp_path / name, FRAME)


def test_a_list_of_pages_in_a_circle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for _ in range(2):
            tiff.write(labels(), photometric="minisblack", contiguous=False, metadata=None)
    with tifffile.TiffFile(path) as tiff, path.open("r+b") as file:
        first = tiff.pages[0].offset
        assert len(tiff.pages) == 2
        file.seek(tiff.pages.next_page_offset or 0)
        file.write(first.to_bytes(4, "little"))
    with pytest.raises(InputError, match="cannot be read as TIFF"):
        read_label_image(path, FRAME)


def test_a_damaged_tiff_is_refused_or_read(tmp_path: Path) -> None:
    """Whichever byte of its directory is changed."""
    path = save(tmp_path / "a.tif", labels())
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages.first.offset
    refused = 0
    for place in range(start, min(len(data), start + 180)):
        for value in (0, 255):
            path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
            try:
                read_label_image(path, FRAME)
            except InputError as error:
                assert str(path) in str(error)  # noqa: PT017 - reading it is as good
                refused += 1
    assert refused > 20


def test_a_missing_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_label_image(tmp_path / "a.png", FRAME)


@pytest.mark.parametrize("names", ["[1]", "{", '{"one": "tumour"}', "5"])
def test_bad_names_are_refused(tmp_path: Path, names: str) -> None:
    path = save(tmp_path / "a.png", labels())
    (tmp_path / "a.classes.json").write_text(names)
    with pytest.raises(InputError, match=r"a\.classes\.json: .*names"):
        label_fractions(path, TILES, FRAME)


def test_a_name_that_is_no_folder_s_is_percent_encoded_and_may_be_cut_out(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", labels())
    (tmp_path / "a.classes.json").write_text('{"1": "a/b"}')
    assert list(annotation_fractions(path, TILES, FRAME)) == ["2", "3", "a%2Fb"]
    assert list(annotation_fractions(path, TILES, FRAME, ClassRules(cut_out=("a/b", "2")))) == ["3"]


WHOLE, PART = (1200, 900), Bounds(x0=300, y0=200, width0=600, height0=300)
SCANNED, ALIKE = Frame(WHOLE, PART), Frame(WHOLE, Bounds(x0=300, y0=200, width0=600, height0=452))  # 1.327 and 1.333


@pytest.mark.parametrize(
    ("frame", "size", "over"),
    [
        (SCANNED, (120, 90), (0, 0, 1200, 900)),
        (SCANNED, (600, 300), (300, 200, 600, 300)),
        (SCANNED, (61, 30), (300, 200, 600, 300)),
        (ALIKE, (600, 452), (300, 200, 600, 452)),
        (ALIKE, (300, 226), (300, 200, 600, 452)),
        (ALIKE, (400, 300), (0, 0, 1200, 900)),
        (Frame(WHOLE, Bounds(x0=0, y0=0, width0=1200, height0=900)), (77, 58), (0, 0, 1200, 900)),
    ],
)
def test_the_ratio_tells_what_a_picture_covers(
    tmp_path: Path, frame: Frame, size: tuple[int, int], over: tuple[int, int, int, int]
) -> None:
    path = save(tmp_path / "a.png", np.ones(size[::-1], np.uint8))
    x0, y0, width0, height0 = over
    assert read_label_image(path, frame).over == Bounds(x0=x0, y0=y0, width0=width0, height0=height0)
    corners = np.array([0, 299, 300, 301, 860], np.int32)
    tiles = squares(corners, [200] * 5, 40, WHOLE)
    covered = np.clip(np.minimum(corners + 40, x0 + width0) - np.maximum(corners, x0), 0, 40) / 40
    np.testing.assert_allclose(label_fractions(path, tiles, frame)["1"], covered, atol=1e-6)
    mask = annotation_mask(path, frame, Raster(np.zeros((90, 120)), 10.0)).values
    marked = np.zeros((90, 120), np.bool_)
    marked[y0 // 10 : (y0 + height0 + 4) // 10, x0 // 10 : (x0 + width0) // 10] = True  # where a pixel's centre lies
    np.testing.assert_array_equal(mask, marked)


@pytest.mark.parametrize(
    ("size", "reason"), [((100, 75), "or of what was scanned"), ((75, 100), "1200 x 900 or 600 x")]
)
def test_a_picture_of_which_nobody_can_tell_what_it_covers_is_refused(
    tmp_path: Path, size: tuple[int, int], reason: str
) -> None:
    path = save(tmp_path / "a.png", np.ones(size[::-1], np.uint8))
    with pytest.raises(InputError, match=reason):
        read_label_image(path, ALIKE)
