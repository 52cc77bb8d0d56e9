"""Stores in sRGB: their tiles are the slide's pixels by its ICC profile, and their mask is that of stores without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.inference.conftest import picture
from tests.tiling.icc_files import by_pillow, rgb_profile
from tiling import TileStore, TilingConfig, tile_slide
from tiling.core.errors import ConfigError, StoreError
from tiling.core.settings import checked

PROFILE = rgb_profile()
PLAIN = TilingConfig(mpp=1, tile_px=32, codec="lossless", min_tissue=0.1)
SRGB = PLAIN.model_copy(update={"icc": "srgb"})


def write_slide(path: Path, profile: bytes | None, side: int = 64) -> Path:
    """512 px at 0.5 micrometres, in tiles of `side` px."""
    tifffile.imwrite(
        path, picture(), tile=(side, side), photometric="rgb", compression="jpeg", metadata=None, iccprofile=profile,
        resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[TileStore, TileStore]:
    """Of one slide: without its profile, and with."""
    folder = tmp_path_factory.mktemp("icc")
    slide = write_slide(folder / "a.tif", PROFILE)
    plain, srgb = (tile_slide(slide, folder / config.icc, config).store for config in (PLAIN, SRGB))
    return TileStore(plain), TileStore(srgb)


def test_tiles_are_pillows_and_the_mask_stays(stores: tuple[TileStore, TileStore]) -> None:
    plain, srgb = stores
    assert (plain.icc, srgb.icc) == ("none", "srgb")
    assert len(plain) > 20
    for tile, shown in zip(plain.read(slice(None)), srgb.read(slice(None)), strict=True):
        np.testing.assert_array_equal(shown, by_pillow(tile, PROFILE))
    np.testing.assert_array_equal(srgb.thumbnail.values, by_pillow(plain.thumbnail.values, PROFILE))
    np.testing.assert_array_equal(srgb.mask.values, plain.mask.values)
    np.testing.assert_array_equal(srgb.tiles.columns["tissue"], plain.tiles.columns["tissue"])
    assert srgb.attributes.doubts() == plain.attributes.doubts()


def test_a_store_of_other_colours_was_made_otherwise(stores: tuple[TileStore, TileStore]) -> None:
    """Either way; one without a profile applied says nothing of colours, as stores of earlier versions do."""
    slide = stores[0].path.parents[1] / "a.tif"
    for store, own, other in zip(stores, (PLAIN, SRGB), (SRGB, PLAIN), strict=True):
        assert tile_slide(slide, store.path.parent, own).reused
        with pytest.raises(StoreError, match=r"made otherwise.*icc"):
            tile_slide(slide, store.path.parent, other)
    assert "icc" not in stores[0].attributes.config
    assert stores[1].attributes.config["icc"] == "srgb"


def test_a_slide_without_a_profile_is_taken_for_srgb_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slide = write_slide(tmp_path / "a.tif", None)
    plain, srgb = (tile_slide(slide, tmp_path / config.icc, config) for config in (PLAIN, SRGB))
    assert any("ICC" in doubt for doubt in srgb.doubts)
    assert not any("ICC" in doubt for doubt in plain.doubts)
    assert [record.levelname for record in caplog.records if "ICC" in record.message] == ["WARNING"]
    np.testing.assert_array_equal(TileStore(srgb.store).read(slice(None)), TileStore(plain.store).read(slice(None)))
    assert any("ICC" in doubt for doubt in tile_slide(slide, tmp_path / "srgb", SRGB).doubts), "of a kept one, too"


def test_streams_that_are_copied_keep_their_colours() -> None:
    with pytest.raises(ConfigError, match=r"icc: .*source"):
        checked(TilingConfig, {"codec": "source", "icc": "srgb"}, "tile options")
