"""Slides drawn by other processes: the same pictures, and one that crashes the library that reads it costs itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import simplejpeg

from inference.viewer import workers as viewer_workers
from inference.viewer.cohort import find_cohort
from inference.viewer.pictures import Pictures
from inference.viewer.slide_picture import SlidePicture, SlideSource
from inference.viewer.workers import RemotePicture, Workers
from inference.viewer.zooms import Square
from tests.inference.viewer.conftest import Places


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    workers = Workers(1)
    yield workers
    workers.close()


def test_the_pictures_are_the_same_as_without_them(workers: Workers, places: Places) -> None:
    source = SlideSource("one", places.slides / "one-file.tif", None, None)
    remote, here = RemotePicture(workers, source), SlidePicture(source)
    for name in ("frame", "mpp", "finest_px0", "tile_px", "has_profile", "icc"):
        assert getattr(remote, name) == getattr(here, name)
    for square in (Square(512, 256, 256), Square(0, 0, 2048)):
        assert remote.jpeg(square, 256) == here.jpeg(square, 256)
        assert (remote.region(square, 100) == here.region(square, 100)).all()


def test_a_slide_that_crashes_the_library_costs_itself_alone(
    workers: Workers, places: Places, crashing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tiles are grey, after some tries without another process; another slide is drawn by one begun anew."""
    begun = Mock(wraps=workers._begun)
    monkeypatch.setattr(workers, "_begun", begun)
    monkeypatch.setattr(viewer_workers, "_MAX_LOST", 2)
    cohort = find_cohort([crashing, places.slides / "two-file.tif"])
    pictures = Pictures(cohort.slides, opener=lambda source: RemotePicture(workers, source))
    bad, good = ([one.slide_id for one in cohort.slides].index(name) for name in ("bad", "two-file"))
    fine = pictures.jpeg(good, Square(512, 256, 256))
    drawn = [simplejpeg.decode_jpeg(pictures.jpeg(bad, Square(0, 256 * row, 256))) for row in range(6)]
    grey = [bool(np.abs(tile.astype(int) - 200).mean() < 12) for tile in drawn]
    assert sum(grey) > 2
    assert pictures.jpeg(good, Square(768, 256, 256)) != fine
    assert begun.call_count == 2
