"""What is found behind paths, and what belongs together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from inference.viewer.cohort import find_cohort
from pipeline.demo.synthetic import write_pyramid
from tests.inference.viewer.conftest import Places, black_tile, write_heatmap
from tiling.core.errors import InputError


def test_heatmaps_get_the_slides_of_the_manifest_and_the_most_suspicious_is_first(places: Places) -> None:
    cohort = find_cohort([places.heatmaps], places.rows)
    assert [one.slide_id for one in cohort.slides] == ["one", "two"]
    assert [one.slide and one.slide.name for one in cohort.slides] == ["one-file.tif", "two-file.tif"]
    assert [one.row and one.row.label for one in cohort.slides] == ["tumour", "benign"]
    assert (cohort.slides[0].store, cohort.refused) == (None, {})


def test_a_folder_of_everything_without_a_manifest(places: Places) -> None:
    """Heatmaps get the store of their slide; files whose names are no ids of heatmaps are slides of their own."""
    cohort = find_cohort([places.heatmaps.parent])
    found = {one.slide_id: (len(one.results), one.slide is not None, one.store is not None) for one in cohort.slides}
    assert found == {
        "one": (1, False, True), "two": (1, False, False), "one-file": (0, True, False), "two-file": (0, True, False),
    }  # fmt: skip


def test_what_is_named_twice_is_one_and_two_models_are_two(places: Places, tmp_path: Path) -> None:
    again = shutil.copytree(places.heatmaps / "one", tmp_path / "other" / "one")
    cohort = find_cohort([places.heatmaps, places.heatmaps / "one", again])
    assert {one.slide_id: len(one.results) for one in cohort.slides} == {"one": 2, "two": 1}


def test_a_store_of_another_slide_is_not_laid_under_a_heatmap(places: Places, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "other.tif", 255 - black_tile(), mpp=0.5)
    write_heatmap(tmp_path / "one", tmp_path / "other.tif", "one", np.full((8, 10), 0.5, np.float32))
    assert find_cohort([tmp_path / "one", places.stores]).slides[0].store is None
    assert find_cohort([places.heatmaps, places.stores]).slides[0].store is not None


def test_a_heatmap_that_was_changed_is_refused(places: Places, tmp_path: Path) -> None:
    folder = shutil.copytree(places.heatmaps / "one", tmp_path / "one")
    text = (folder / "slide.json").read_text()
    (folder / "slide.json").write_text(text.replace("tumour", "benign"))
    with pytest.raises(InputError, match="changed"):
        find_cohort([folder])


def test_what_is_damaged_is_named_and_the_others_are_shown(places: Places, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "slide.json").write_text("{")
    cohort = find_cohort([places.heatmaps, tmp_path])
    assert list(cohort.refused) == [bad]
    assert len(cohort.slides) == 2


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_nothing_to_show_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name):
        find_cohort([tmp_path / name])
