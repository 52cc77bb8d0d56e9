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
from tiling.annotations.rasterize import annotation_fractions
from tiling.core.errors import InputError

SIZE0 = (120, 90)
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
    found = label_fractions(path, TILES)
    full = np.zeros((200, 200), np.uint8)
    full[:90, :120] = labels().repeat(3, 0).repeat(3, 1)
    assert list(found) == ["1", "2", "3"]
    for name, fractions in found.items():
        expected = [(full[y : y + 30, x : x + 30] == int(name)).mean() for x, y in TILES.places()]
        np.testing.assert_allclose(fractions, expected, atol=1e-6)


def test_classes_have_names_and_those_without_a_pixel_are_there(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", labels())
    (tmp_path / "a.classes.json").write_text('{"1": "tumour", "2": "tumour", "9": "necrosis"}')
    found = label_fractions(path, TILES)
    assert list(found) == ["3", "necrosis", "tumour"]
    assert not found["necrosis"].any()
    (tmp_path / "a.classes.json").unlink()
    plain = label_fractions(path, TILES)
    np.testing.assert_allclose(found["tumour"], plain["1"] + plain["2"], atol=1e-6)


def test_a_palette_gives_its_indices(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(labels()).convert("P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    picture.putdata(labels().ravel().tolist())
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_image(tmp_path / "a.png", SIZE0), labels())


@pytest.mark.parametrize("channels", [3, 4])
def test_grey_saved_as_colour_is_taken(tmp_path: Path, channels: int) -> None:
    picture = np.repeat(labels()[..., None], channels, 2)
    picture[..., 3:] = 255
    np.testing.assert_array_equal(read_label_image(save(tmp_path / "a.png", picture), SIZE0), labels())


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
        label_fractions(save(tmp_path / name, picture), TILES)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"II*\0\xff\xff\xff\xff", b"\x89PNG\r\n\x1a\n\0"])
def test_broken_pictures_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as"):
        read_label_image(tmp_path / name, SIZE0)


def test_a_missing_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_label_image(tmp_path / "a.png", SIZE0)


@pytest.mark.parametrize("names", ["[1]", "{", '{"one": "tumour"}', "5"])
def test_bad_names_are_refused(tmp_path: Path, names: str) -> None:
    path = save(tmp_path / "a.png", labels())
    (tmp_path / "a.classes.json").write_text(names)
    with pytest.raises(InputError, match=r"a\.classes\.json: gives no names"):
        label_fractions(path, TILES)


def test_a_name_that_is_no_folder_s_is_percent_encoded_and_may_be_cut_out(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", labels())
    (tmp_path / "a.classes.json").write_text('{"1": "a/b"}')
    assert list(annotation_fractions(path, TILES)) == ["2", "3", "a%2Fb"]
    assert list(annotation_fractions(path, TILES, ClassRules(cut_out=("a/b", "2")))) == ["3"]
