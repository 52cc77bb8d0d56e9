"""Colour: a slide's pixels in sRGB by its own ICC profile are Pillow's, of every reader, once and only where asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms
from pydicom.dataset import Dataset

from tests.tiling.dicom_files import write_instance
from tests.tiling.icc_files import by_pillow, rgb_profile
from tests.tiling.ndpi_files import write_ndpi
from tiling.core.errors import SlideError
from tiling.slides import colour
from tiling.slides.slide import Slide

U8 = NDArray[np.uint8]
TEXT = "ZqLaboratoryCanary"
PROFILE = rgb_profile(TEXT)


def picture() -> U8:
    """Colours of all kinds, uint8 (512, 512, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((512, 512), Image.Resampling.BICUBIC))


def tiled(path: Path, profile: bytes | None, **options: Any) -> Path:
    given = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg", "metadata": None} | options
    with tifffile.TiffWriter(path, ome=path.name.endswith(".ome.tif")) as tiff:
        tiff.write(picture(), iccprofile=profile, **given)
    return path


def aperio(path: Path, profile: bytes | None) -> Path:
    said = "Aperio Image Library v12.0.15 \r\n512x512 [0,0 512x512] (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
    return tiled(path, profile, description=said)


def ome(path: Path, profile: bytes | None) -> Path:
    return tiled(path, profile, metadata={"axes": "YXS"})


def dicom(path: Path, profile: bytes | None) -> Path:
    optical = Dataset()
    optical.ObjectiveLensPower = 20.0
    if profile is not None:
        optical.ICCProfile = profile
    return write_instance(path, picture(), OpticalPathSequence=[optical])


def ndpi(path: Path, profile: bytes | None) -> Path:
    return write_ndpi(path, [picture(), picture()[::2, ::2]], profile=profile)


def plain(path: Path, profile: bytes | None) -> Path:
    Image.fromarray(picture()).save(path, icc_profile=profile)
    return path


KINDS: dict[str, Callable[[Path, bytes | None], Path]] = {
    "a.svs": aperio, "a.tif": tiled, "a.ome.tif": ome, "folder/a.dcm": dicom, "a.ndpi": ndpi, "a.png": plain,
    "a.jpg": plain,
}  # fmt: skip


@pytest.fixture(params=KINDS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes | None], Path]:
    """Writes a slide of each kind with that profile."""
    return lambda profile: KINDS[request.param](tmp_path / request.param, profile)


def test_pixels_are_pillows(write: Callable[[bytes | None], Path]) -> None:
    """Of a region, also beyond the edge; of a scaled one; and of the colours that `coloured` is given."""
    path = write(PROFILE)
    with Slide(path) as own, Slide(path, icc="srgb") as slide:
        assert own.has_profile
        assert (own.lacks_profile, slide.lacks_profile) == (False, False)
        for region in ((0, 0, 0, 512, 512), (450, 470, 0, 100, 90)):
            plain = own.read_region(*region)
            np.testing.assert_array_equal(slide.read_region(*region), by_pillow(plain, PROFILE))
        assert np.abs(by_pillow(plain, PROFILE).astype(int) - plain).mean() > 5, "or nothing is shown by it"
        scaled = own.read_scaled(64, 0, (384, 384), (192, 192))
        np.testing.assert_array_equal(slide.read_scaled(64, 0, (384, 384), (192, 192)), by_pillow(scaled, PROFILE))
        np.testing.assert_array_equal(slide.coloured(scaled), by_pillow(scaled, PROFILE))
        assert own.coloured(scaled) is scaled
        assert slide.native_tile_px(0) is None, "no stream can be copied as it is"


def test_a_region_of_several_parts_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiling.slides.slide._READ_PX", 128)
    path = aperio(tmp_path / "a.svs", PROFILE)
    with Slide(path) as own, Slide(path, icc="srgb") as slide:
        whole = own.read_scaled(0, 0, (512, 512), (256, 256))
        np.testing.assert_array_equal(slide.read_scaled(0, 0, (512, 512), (256, 256)), by_pillow(whole, PROFILE))
        for part, same in zip(
            own.overview((512, 512), (256, 256)), slide.overview((512, 512), (256, 256)), strict=True
        ):
            assert part[:2] == same[:2]
            np.testing.assert_array_equal(part[2], same[2])


def test_the_table_of_all_colours_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made once there are many pixels, and shared by slides of one profile."""
    paths = [aperio(tmp_path / f"{name}.svs", PROFILE) for name in "ab"]
    with Slide(paths[0], icc="srgb") as one, Slide(paths[1], icc="srgb") as two:
        computed = one.read_region(0, 0, 0, 512, 512)
        monkeypatch.setattr(colour, "_WORTH_PX", 3 * 512 * 512)
        made = Mock(wraps=colour.ToSrgb.table)
        monkeypatch.setattr(colour.ToSrgb, "table", lambda self: made(self))
        for number, slide in enumerate((one, one, two, two, two)):
            np.testing.assert_array_equal(slide.read_region(0, 0, 0, 512, 512), computed)
            assert made.call_count == int(number >= 1)


@pytest.mark.parametrize("intent", [0, 2])
def test_the_intent_is_the_profiles(tmp_path: Path, intent: int) -> None:
    profile = rgb_profile(intent=intent)
    path = aperio(tmp_path / "a.svs", profile)
    with Slide(path) as own, Slide(path, icc="srgb") as slide:
        plain = own.read_region(0, 0, 0, 512, 512)
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 512, 512), by_pillow(plain, profile))


def test_a_slide_without_a_profile_is_srgb(write: Callable[[bytes | None], Path]) -> None:
    path = write(None)
    with Slide(path) as own, Slide(path, icc="srgb") as slide:
        assert (own.has_profile, own.lacks_profile, slide.lacks_profile) == (False, False, True)
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 99, 99), own.read_region(0, 0, 0, 99, 99))


def lab() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@pytest.mark.parametrize(
    "profile",
    [PROFILE[: len(PROFILE) // 2], TEXT.encode() * 20, lab(), rgb_profile(TEXT, intent=9)],
    ids=["cut", "no profile", "of other colours", "a strange intent"],
)
def test_a_profile_that_cannot_be_used(write: Callable[[bytes | None], Path], profile: bytes) -> None:
    """It is refused where it is asked for, by one sentence without its text; else nobody looks at it."""
    path = write(profile)
    with Slide(path) as slide:
        slide.read_region(0, 0, 0, 8, 8)
        with pytest.raises(SlideError):
            _ = slide.has_profile
    with pytest.raises(SlideError) as refused:
        Slide(path, icc="srgb")
    assert str(refused.value).startswith(f"{path}: has an ICC profile that")
    assert TEXT not in str(refused.value)
    assert "\n" not in str(refused.value)
